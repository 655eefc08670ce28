"""Writing checkpoints where the disk may be full: nothing that was saved is lost."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from histomae.errors import DiskRefusedError
from histomae.events import Saved
from histomae.learn.loop import load_optimizer, optimizer_tensors
from histomae.models.checkpoint import (
    OPTIMIZER,
    Kept,
    checkpoint_tensors,
    load_tensors,
    load_training,
    save_checkpoint,
    training_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from histomae.learn.methods import Method, Setting
    from histomae.learn.runs import RunFolder
    from histomae.models.checkpoint import Header

#: A training with AdamW keeps so many numbers for every weight.
NUMBERS_PER_WEIGHT = 3


class Keeper:
    """Writes the checkpoints of one training into its run folder."""

    def __init__(
        self,
        run: RunFolder,
        *,
        model: Any,  # see Method.build
        optimizer: torch.optim.Optimizer,
        method: Method,
        setting: Setting,
    ) -> None:
        self._run, self._model, self._optimizer = run, model, optimizer
        self._method, self._setting = method, setting

    def check_room(self) -> None:
        """Refuse to begin where the first checkpoints would not fit.

        Raises
        ------
        DiskRefusedError
            It names the folder and the megabytes.
        """
        files = 1 if self._run.last.exists() else 2  # the next one is written beside
        check_room(self._run.last, files * self._bytes_needed)

    def save_last(self, step: int) -> Saved:
        """Write the checkpoint that a training goes on from."""
        state = optimizer_tensors(self._model, self._optimizer)
        tensors = {OPTIMIZER + name: tensor for name, tensor in state.items()}
        tensors |= training_tensors(self._model)
        return self._save(self._run.last, step, tensors, needed=self._bytes_needed)

    def save_best(self, step: int) -> Saved:
        """Write what does best on crops held out, without the optimizer."""
        return self._save(self._run.best, step, {})

    def save_kept(self, step: int) -> Saved:
        """Write a checkpoint that is kept for good, without the optimizer."""
        return self._save(self._run.kept(step), step, {})

    def save_encoder(self, step: int) -> Saved:
        """Write the encoder alone."""
        whole = Kept(self._header(step), checkpoint_tensors(self._model))
        alone = whole.encoder_only()
        with writing(self._run.encoder):
            save_checkpoint(self._run.encoder, alone.header, alone.tensors)
        return Saved(step, self._run.inside(self._run.encoder))

    def go_on_from(self, checkpoint: Kept[Any]) -> None:
        """Put the numbers of a checkpoint into the model and the optimizer.

        Raises
        ------
        CheckpointError, RunError
            If they are of another model.
        """
        load_tensors(self._model, checkpoint.tensors)
        load_training(self._model, checkpoint.tensors)
        state = {
            name.removeprefix(OPTIMIZER): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(OPTIMIZER)
        }
        load_optimizer(self._model, self._optimizer, state)

    def _save(
        self, path: Path, step: int, more: dict[str, torch.Tensor], *, needed: int = 0
    ) -> Saved:
        tensors = checkpoint_tensors(self._model) | more
        with writing(path, needed or self._weight_bytes):
            save_checkpoint(path, self._header(step), tensors)
        return Saved(step, self._run.inside(path))

    @property
    def _weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self._model.parameters())

    @property
    def _bytes_needed(self) -> int:
        """What a checkpoint with the optimizer takes, roughly."""
        return NUMBERS_PER_WEIGHT * self._weight_bytes

    def _header(self, step: int) -> Header:
        return self._method.header(self._model, self._setting, step)


def check_room(path: Path, needed: int) -> None:
    """Refuse to write ``needed`` bytes where they do not fit.

    Raises
    ------
    DiskRefusedError
        It names the folder and the megabytes.
    """
    free = _free_at(path)
    if free < needed:
        raise _refused(path, "too little room", needed)


@contextmanager
def writing(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn the system's refusal to write into a sentence; the old file is intact."""
    check_room(path, needed)
    try:
        yield
    except OSError as error:
        raise _refused(path, error.strerror or str(error), needed) from error


def _refused(path: Path, reason: str, needed: int) -> DiskRefusedError:
    free = _free_at(path)
    room = f"{free / 2**20:.1f} MB are free there"
    if needed:
        room = f"it takes {needed / 2**20:.1f} MB, and {room}"
    return DiskRefusedError(
        f"{path.name} cannot be written to {path.parent} ({reason}; {room}). What was "
        "saved before is intact."
    )


def _free_at(path: Path) -> int:
    folder = next(parent for parent in path.parents if parent.is_dir())
    return shutil.disk_usage(folder).free
