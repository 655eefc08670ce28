"""Pretraining from slides to a checkpoint, in a run folder.

:func:`pretrain` is the work; :func:`run_in` does it for a folder: it holds the lock,
records what is said, and makes every end a recorded one.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from histomae.errors import DiskRefusedError, HistomaeError, RunError
from histomae.events import (
    Event,
    Failed,
    Finished,
    Heartbeat,
    HeldOut,
    Note,
    Preview,
    Saved,
    Started,
    Step,
)
from histomae.files import write_beside
from histomae.learn.deciding import (
    MACHINE_CHANGED,
    ROUNDS_OTHERWISE,
    decided,
    settled,
)
from histomae.learn.loop import (
    Plan,
    awaited,
    build_optimizer,
    fit,
    held_out_loss,
)
from histomae.learn.methods import METHODS, Method, Setting
from histomae.learn.processes import (
    agreed,
    is_first,
    join,
    leave,
    with_shared_norms,
)
from histomae.learn.runs import RunFolder, absolute_paths
from histomae.learn.saving import Keeper, writing
from histomae.learn.tensorboard import TensorBoard
from histomae.models.initial import usual_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from lightning_fabric import Fabric

    from histomae.config import PretrainConfig
    from histomae.learn.examples import Examples
    from histomae.learn.loop import Indices, Pixels
    from histomae.models.checkpoint import Kept

#: Crops held out are judged on so many at most, spread over all of them.
MOST_JUDGED = 256
#: Rows of a preview.
PREVIEW_CROPS = 3
#: How often a paused training looks whether it may go on, seconds.
PAUSE_S = 0.1


def run_in(
    run: RunFolder, config: PretrainConfig | None = None
) -> Generator[Event, None, Path]:
    """Pretrain as the settings of a run folder say, from where it stands.

    Everything but heartbeats is recorded in ``events.jsonl``; an error too, before it
    is raised again. Returns what :func:`pretrain` returns.

    Parameters
    ----------
    config
        To go on elsewhere: it may differ from the folder's in ``MAY_CHANGE``.

    Raises
    ------
    RunError
        If another process is at work in the folder, or the run is done.
    ConfigError
        If ``config`` differs in what shapes the result; nothing is recorded then.
    """
    if not is_first():  # one of several processes, which only computes
        return (yield from pretrain(config or run.config(), run))
    with run.lock():
        run.check_unfinished()
        if config is not None:
            config = settled(config, run.config())
        try:
            config = config or run.config()
            work = pretrain(config, run, resume=run.has_begun)
            return (yield from _recorded(work, run))
        except HistomaeError as error:
            run.append(Failed(str(error)))
            raise
        except Exception as error:  # the one place that tells the user
            run.append(Failed(_unexpected(error)))
            raise


def _recorded(
    work: Generator[Event, None, Path], run: RunFolder
) -> Generator[Event, None, Path]:
    board = TensorBoard(run)
    try:
        while True:
            try:
                event = next(work)
            except StopIteration as stop:
                result: Path = stop.value
                return result
            if not isinstance(event, Heartbeat):
                run.append(event)
                board.write(event)
            yield event
    finally:
        work.close()


def _unexpected(error: Exception) -> str:
    return (
        f"The training stopped on an error of the program "
        f"({type(error).__name__}: {error}). The last checkpoint is kept: resume from "
        "it; log.txt in the run folder tells more."
    )


def pretrain(
    config: PretrainConfig, run: RunFolder, *, resume: bool = False
) -> Generator[Event, None, Path]:
    """Pretrain an encoder on crops of slides, or on slides as bags of tiles.

    Asks the run folder between micro-batches whether to stop, pause or discard, and
    writes checkpoints, previews, the crops and the resolved settings into it; recording
    the events is the caller's (see :func:`run_in`).

    Parameters
    ----------
    config
        The settings; those left open are decided now and written to the folder. On
        resume they may not differ from the run's.
    run
        The folder. Without ``resume`` no run may be in it.
    resume
        Go on from the last checkpoint, exactly; from the beginning if there is none.

    Returns
    -------
    Path of the checkpoint with the decoder; of the folder if nothing was trained.

    Raises
    ------
    RunError
        If there is a run in the folder already, or nothing left to do.
    ConfigError
        If a setting cannot be met, or differs from the run that is resumed.
    SlideError, MissingMppError, UpsamplingError, NotEnoughDataError, FeatureError
        If the slides, or their features, do not serve.
    CheckpointError, DownloadError
        If the weights to start from do not.
    """
    with ExitStack() as stack:
        fabric = join(config.device)
        stack.callback(leave)
        work = _Work(config, run, resume, fabric, stack)
        steps = work.run()
        try:
            for event in steps:
                yield event
                end = yield from _asked(run, work, event)
                if end is not None and not isinstance(event, Finished):
                    steps.close()
                    yield from end
                    break
        finally:
            steps.close()
    return run.last if run.last.exists() else run.path


def _asked(
    run: RunFolder, work: _Work, event: Event
) -> Generator[Event, None, Generator[Event, None, None] | None]:
    """Answer a request: wait while paused; return how to end if that is asked."""
    request = work.requested(event)
    if request is None:
        return None
    if request == "pause":
        yield Note(f"Paused after step {work.step}.")
        while request == "pause":
            time.sleep(PAUSE_S)
            yield Heartbeat()
            request = work.requested(event)
        if request not in ("stop", "discard"):
            yield Note("Going on.")
    if is_first():
        run.clear_request()
    if request == "stop":
        return work.stop()
    return work.discard() if request == "discard" else None


@dataclass(frozen=True)
class _Training:
    """All that was made ready before the first step."""

    setting: Setting
    method: Method
    model: Any  # see Method.build
    optimizer: torch.optim.Optimizer
    examples: Examples
    plan: Plan
    judged: Indices
    keeper: Keeper


@dataclass(frozen=True)
class _Begin:
    """Where a training begins: the same in all of its processes."""

    config: PretrainConfig
    step: int = 0
    judged_step: int = -1
    best: float = float("inf")
    notes: tuple[str, ...] = ()


class _Work:
    """A pretraining from settings to the end; ``step`` is the last update made.

    Of several processes the first one alone writes.
    """

    def __init__(
        self,
        config: PretrainConfig,
        run: RunFolder,
        resume: bool,
        fabric: Fabric,
        stack: ExitStack,
    ) -> None:
        self._run, self._fabric, self._stack = run, fabric, stack
        self._training: _Training | None = None
        self._checkpoint: Kept[Any] | None = None
        begin = _Begin(config)
        if self._is_first:
            begin = self._go_on(config) if resume else self._begin(config)
        self._beginning = agreed(begin, fabric)
        self.step = self._saved_step = self._beginning.step
        self._judged_step = self._beginning.judged_step
        self._best = self._beginning.best
        if self.step and not self._is_first:
            self._checkpoint = METHODS[config.method].load(run.last)

    @property
    def _is_first(self) -> bool:
        return bool(self._fabric.is_global_zero)

    def _begin(self, config: PretrainConfig) -> _Begin:
        run = self._run
        if run.has_begun:
            raise RunError(
                f"{run.path} already holds a run ({run.state}). Resume it, or choose "
                "another folder."
            )
        if not run.config_file.exists():
            run.create(config)
        return _Begin(absolute_paths(config))

    def _go_on(self, config: PretrainConfig) -> _Begin:
        run = self._run
        run.check_unfinished()
        begun = run.config()
        config = settled(absolute_paths(config), begun)
        if run.last.exists():
            self._checkpoint = METHODS[config.method].load(run.last)
        step = None if self._checkpoint is None else self._checkpoint.header.step
        run.cut_back(step)
        judged = {e.step: e.loss for e in run.events() if isinstance(e, HeldOut)}
        processes = [e.processes for e in run.events() if isinstance(e, Started)]
        changed = self._fabric.world_size not in (processes or [1])[-1:]
        for name in ROUNDS_OTHERWISE:
            changed |= getattr(config, name) != getattr(begun, name)
        return _Begin(
            config,
            step=step or 0,
            judged_step=max(judged, default=-1),
            best=min((judged[n] for n in judged if n), default=float("inf")),
            notes=(MACHINE_CHANGED,) if changed else (),
        )

    # ---- from the beginning to the end

    def run(self) -> Generator[Event, None, None]:
        """Do it all."""
        training = yield from self._prepare()
        self._training = training
        config, plan = training.setting.config, training.plan
        if self._is_first:
            training.keeper.check_room()
        yield self._started(training)
        if self.step % config.preview_every == 0:
            yield from self._judge(training)
        for event in fit(
            training.model,
            training.optimizer,
            fabric=self._fabric,
            method=training.method,
            setting=training.setting,
            source=training.examples.source,
            plan=plan,
            start_step=self.step,
        ):
            if isinstance(event, Step):
                self.step = event.step
            yield event
            if not isinstance(event, Step) or self.step == plan.total_steps:
                continue
            if self.step % config.preview_every == 0:
                yield from self._judge(training)
            if config.keep_every and self.step % config.keep_every == 0:
                yield from self._save_if_there_is_room(training.keeper.save_kept)
            if self.step % config.save_every == 0:
                yield from self._save_or_go_on(training)
        yield from self._judge(training)
        yield from self._save_when_there_is_room(training)
        yield Finished(self.step, "done")

    def stop(self) -> Generator[Event, None, None]:
        """Keep what was learned so far."""
        if self._training is not None and self.step > 0 and self._is_first:
            if self.step > self._saved_step:
                yield self._training.keeper.save_last(self.step)
            yield self._training.keeper.save_encoder(self.step)
        yield Finished(self.step, "stopped")

    def discard(self) -> Generator[Event, None, None]:
        """Throw away what was learned."""
        if self._is_first:
            self._run.discard()
        yield Finished(self.step, "discarded")

    def requested(self, event: Event) -> str | None:
        """Return what was asked of the training, the same in all of its processes.

        Several processes agree on it after each step, for between steps they are not at
        the same place.
        """
        if self._fabric.world_size == 1:
            return self._run.requested()
        if not isinstance(event, Step):
            return None
        return agreed(self._run.requested() if self._is_first else None, self._fabric)

    # ---- making ready

    def _prepare(self) -> Generator[Event, None, _Training]:
        config = self._beginning.config
        method, fabric = METHODS[config.method], self._fabric
        self._stack.callback(torch.set_num_threads, torch.get_num_threads())
        threads = config.threads or torch.get_num_threads()
        torch.set_num_threads(threads)
        device = fabric.device.type if fabric.world_size > 1 else str(fabric.device)
        config = replace(config, device=device, threads=threads)
        with fabric.rank_zero_first():  # the others read the crops that it writes
            anew = self._checkpoint is None and self._is_first
            config, examples = yield from method.examples(
                config, self._run, self._stack, anew=anew
            )
        model = method.build(config, torch.Generator().manual_seed(config.seed))
        for note in self._beginning.notes:
            yield Note(note)
        if self._checkpoint is None:
            begun = method.begin(model, config, examples)
            for note in begun.notes:
                yield Note(note)
            usual_mean, usual_std = usual_pixels(config.in_chans)
            mean, std = begun.mean or usual_mean, begun.std or usual_std
        else:
            mean, std = self._checkpoint.header.mean, self._checkpoint.header.std
        model.to(fabric.device)
        if self._is_first:
            setting = Setting(config, mean, std, examples)
            config = yield from decided(setting, method, model, examples)
            self._run.write_config(config)
        setting = Setting(agreed(config, fabric), mean, std, examples)
        model.encoder = with_shared_norms(model.encoder, fabric)
        return self._ready(setting, method, model, examples)

    def _ready(
        self, setting: Setting, method: Method, model: Any, examples: Examples
    ) -> _Training:
        config = setting.config
        crops = np.flatnonzero(~examples.held_out)
        optimizer = build_optimizer(model, config)
        training = _Training(
            setting=setting,
            method=method,
            model=model,
            optimizer=optimizer,
            examples=examples,
            plan=Plan(
                crops=crops,
                regions=examples.region[crops],
                batch_size=config.batch_size,
                epochs=config.epochs,
                seed=config.seed,
            ),
            judged=spread(np.flatnonzero(examples.held_out), MOST_JUDGED),
            keeper=Keeper(
                self._run,
                model=model,
                optimizer=optimizer,
                method=method,
                setting=setting,
            ),
        )
        if self._checkpoint is not None:
            training.keeper.go_on_from(self._checkpoint)
            self._checkpoint = None  # its memory
        return training

    def _started(self, training: _Training) -> Started:
        config = training.setting.config
        weights = sum(w.numel() for w in training.model.parameters() if w.requires_grad)
        return Started(
            method=training.method.name,
            step=self.step,
            total_steps=training.plan.total_steps,
            crops=len(training.plan.crops),
            held_out_crops=int(training.examples.held_out.sum()),
            parameters=weights,
            device=config.device,
            precision=config.precision,
            mpp=training.examples.mpp,
            processes=self._fabric.world_size,
            what=training.examples.what,
        )

    # ---- looking, and keeping

    def _judge(self, training: _Training) -> Generator[Event, None, None]:
        """Measure the objective on crops held out, and picture a few of them."""
        if self._judged_step == self.step:  # before it was stopped
            return
        if len(training.judged):
            loss = yield from held_out_loss(
                training.model,
                training.judged,
                fabric=self._fabric,
                method=training.method,
                setting=training.setting,
                source=training.examples.source,
            )
            yield HeldOut(self.step, loss)
            if self.step and loss < self._best:
                self._best = loss
                yield from self._save_if_there_is_room(training.keeper.save_best)
        if training.method.picture is not None and self._is_first:
            yield from self._preview(training, training.method.picture)

    def _preview(
        self, training: _Training, picture: Callable[..., Pixels]
    ) -> Generator[Event, None, None]:
        shown = training.judged if len(training.judged) else training.plan.crops
        shown = spread(shown, PREVIEW_CROPS)
        crops = yield from awaited(training.examples.source.stream([shown]))
        training.model.eval()
        sheet = picture(training.model, crops, shown, training.setting)
        training.model.train()
        path = self._run.previews / f"step_{self.step:07d}.png"
        try:
            with writing(path), write_beside(path) as beside:
                Image.fromarray(sheet).save(beside, format="PNG")
        except DiskRefusedError as error:  # no picture is worth a training
            yield Note(f"{error.reason} The training goes on without it.")
        else:
            yield Preview(self.step, self._run.inside(path))

    def _save_if_there_is_room(
        self, save: Callable[[int], Saved]
    ) -> Generator[Event, None, None]:
        """Save what nothing depends on; where the disk refuses, go on without it."""
        if not self._is_first:
            return
        try:
            yield save(self.step)
        except DiskRefusedError as error:
            yield Note(f"{error.reason} The training goes on without it.")

    def _save_or_go_on(self, training: _Training) -> Generator[Event, None, None]:
        """Save; where the disk refuses, the training goes on in memory."""
        if not self._is_first:
            return
        try:
            yield training.keeper.save_last(self.step)
            self._saved_step = self.step
        except DiskRefusedError as error:
            yield Note(
                f"{error.reason} The training goes on, and tries again in "
                f"{training.setting.config.save_every} steps: make room meanwhile."
            )

    def _save_when_there_is_room(
        self, training: _Training
    ) -> Generator[Event, None, None]:
        """Save what was trained to the end; wait for room as long as it takes."""
        said, keeper = False, training.keeper
        while self._is_first:
            try:
                saved = [keeper.save_last(self.step), keeper.save_encoder(self.step)]
            except DiskRefusedError as error:
                if not said:
                    yield Note(
                        f"{error.reason} The training is at its end and waits, in "
                        "memory, to be saved: make room."
                    )
                said = True
                time.sleep(PAUSE_S)
                yield Heartbeat()
            else:
                yield from saved
                return


def spread(indices: Indices, most: int) -> Indices:
    """Return at most so many of the indices, evenly spread over all of them."""
    if len(indices) <= most:
        return indices
    return indices[np.arange(most) * len(indices) // most]
