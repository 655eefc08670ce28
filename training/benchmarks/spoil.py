"""What can be wrong in a training: faults of the world, and defects of a program.

Each is a function that is called in the training's process before it begins
(``Trainers.start(run, spoil=...)``), or makes one that is.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from histomae.learn import loop, methods, runs, saving
from histomae.learn.methods import METHODS, Objective
from histomae.learn.runs import Owner, RunFolder
from histomae.models import tensor_files
from histomae.models.mae import MaskedAutoencoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from histomae.learn.methods import Inputs, Setting

Array = np.ndarray[Any, Any]
Indices = np.ndarray[Any, np.dtype[np.int64]]
#: A disk on which everything fits, bytes.
ENDLESS = 2**50


# Faults of the world ---------------------------------------------------------


def quota() -> None:
    """Show endless room, as a disk with a quota does: the write itself is refused."""
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: usage(path)._replace(free=ENDLESS)


def nan_loss(at: int) -> Callable[[], None]:
    """Make the loss of update number ``at``, from 1, not a number."""
    return partial(_spoil_loss, at, "loss")


def infinite_gradient(at: int) -> Callable[[], None]:
    """Make a gradient of update number ``at``, from 1, infinite, but not the loss."""
    return partial(_spoil_loss, at, "gradient")


def _spoil_loss(at: int, what: str) -> None:
    mae, calls = METHODS["mae"], [0]

    def loss(model: nn.Module, inputs: Inputs, setting: Setting) -> Objective:
        objective = mae.loss(model, inputs, setting)
        calls[0] += model.training
        if calls[0] != at or not model.training:
            return objective
        if what == "loss":
            return Objective(objective.loss * math.nan, objective.logged)
        objective.loss.register_hook(lambda gradient: gradient * math.inf)
        return objective

    METHODS["mae"] = replace(mae, loss=loss)


def cuda_memory(calls: tuple[int, ...]) -> Callable[[], None]:
    """Let a graphics card run out of memory at these calls of the model, from 1."""
    return partial(_cuda_memory, calls)


def _cuda_memory(calls: tuple[int, ...]) -> None:
    forward, made = MaskedAutoencoder.forward, [0]

    def refusing(self: MaskedAutoencoder, *args: Any, **named: Any) -> Any:
        made[0] += self.training
        if self.training and made[0] in calls:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
                "capacity of 8.00 GiB of which 1.00 GiB is free."
            )
        return forward(self, *args, **named)

    MaskedAutoencoder.forward = refusing


def address_space(megabytes: int) -> Callable[[], None]:
    """Let the first step have no more memory than so much beyond what is in use."""
    return partial(_address_space, megabytes)


def _address_space(megabytes: int) -> None:
    import resource

    forward, limits = MaskedAutoencoder.forward, []

    def limited(self: MaskedAutoencoder, *args: Any, **named: Any) -> Any:
        if not limits:
            most = psutil.Process().memory_info().vms + megabytes * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            limits.append(most)
        return forward(self, *args, **named)

    MaskedAutoencoder.forward = limited


# Defects of a program --------------------------------------------------------


def torn_checkpoints() -> None:
    """Write checkpoints in place, over the old ones."""
    tensor_files.write_beside = write_in_place


@contextlib.contextmanager
def write_in_place(path: Path) -> Iterator[Path]:
    """Write as is often done: over the old file, with none beside it."""
    path.parent.mkdir(exist_ok=True)
    yield path


def dwelling_saves(seconds: float) -> Callable[[], None]:
    """Let every save rest in its midst, with half of the file written."""
    return partial(_dwelling_saves, seconds)


def _dwelling_saves(seconds: float) -> None:
    write = tensor_files.write_beside

    @contextlib.contextmanager
    def in_halves(path: Path) -> Iterator[Path]:
        with write(path) as beside:
            yield beside
            whole = beside.read_bytes()
            os.truncate(beside, len(whole) // 2)
            time.sleep(seconds)
            beside.write_bytes(whole)

    tensor_files.write_beside = in_halves


def swallowed_errors() -> None:
    """Take no notice of a disk that refuses a checkpoint."""
    quota()
    save = saving.save_checkpoint

    def unheard(*what: Any) -> None:
        with contextlib.suppress(OSError):
            save(*what)

    saving.save_checkpoint = unheard


def restless_masks() -> None:
    """Draw the masks from a generator that begins anew with the process."""
    generator = np.random.default_rng(0)

    def draw(_seed: int, _epoch: int, indices: Array, *, patches: int, **_: Any) -> Any:
        return generator.random((len(indices), patches), np.float32)

    methods.mask_noise = draw


def numbers_unchecked() -> None:
    """Take every number for finite."""
    math.isfinite = lambda _: True


def smaller_batches() -> None:
    """Take the first micro-batch of a batch only: halving it shrinks the batch."""
    split = loop.split

    def first(indices: Indices, micro_batch: int) -> list[Indices]:
        return split(indices, micro_batch)[:1]

    loop.split = first


def deaf() -> None:
    """Hear no request."""
    RunFolder.requested = lambda self: None


def nobody_lives() -> None:
    """Take every owner of a run for dead."""
    Owner.is_alive = property(lambda self: False)


def everybody_lives() -> None:
    """Take every owner of a run for alive."""
    Owner.is_alive = property(lambda self: True)


def signals_ignored() -> None:
    """Let signals do what they do to a program that never heard of them."""

    @contextlib.contextmanager
    def nothing(run: RunFolder) -> Iterator[None]:
        yield

    runs.stop_on_signals = nothing


def dies_with_its_parent() -> None:
    """End when the process that started this one ends (Linux)."""
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, 9)
