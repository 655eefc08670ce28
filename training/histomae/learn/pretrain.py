"""Pretraining from slides to a checkpoint, in a run folder.

:func:`pretrain` is the work; :func:`run_in` does it for a folder: it holds the lock,
records what is said, and makes every end a recorded one.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from histomae.errors import ConfigError, DiskRefusedError, HistomaeError, RunError
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
from histomae.infer.encoder import pick_device
from histomae.learn.loop import (
    Plan,
    awaited,
    build_optimizer,
    fit,
    held_out_loss,
    load_optimizer,
    micro_batch_of,
    optimizer_tensors,
)
from histomae.learn.methods import METHODS, Method, Setting
from histomae.learn.runs import RunFolder, absolute_paths
from histomae.models.checkpoint import (
    OPTIMIZER,
    Checkpoint,
    CheckpointHeader,
    checkpoint_tensors,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
)
from histomae.models.initial import init_encoder
from histomae.models.vit import ENCODER_SIZES
from histomae.slides.crops import CropManifest, CropSpec, build_manifest
from histomae.slides.slide import Slide, default_mpp, find_slides

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from histomae.config import PretrainConfig
    from histomae.learn.crops import Source

#: ImageNet's, as in MAE; weights that a training starts from bring their own.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Crops held out are judged on so many at most, spread over all of them.
MOST_JUDGED = 256
#: Rows of a preview.
PREVIEW_CROPS = 3
#: Micro-batches on a GPU; and on a CPU at most, for larger ones are no faster.
GPU_MICRO_BATCH, CPU_MICRO_BATCH = 64, 16
#: What a modest processor (2 cores) does in half a second, the longest that a stop
#: should wait; floating-point operations.
CPU_WORK = 75e9
#: How often a paused training looks whether it may go on, seconds.
PAUSE_S = 0.1
#: A training with AdamW keeps so many numbers for every weight.
NUMBERS_PER_WEIGHT = 3
#: Settings that say where and how fast, not what: another machine may change them.
MAY_CHANGE = ("slides", "device", "threads", "preview_every", "save_every")
#: Said when they do.
MACHINE_CHANGED = (
    "Going on with another device or number of threads: the numbers are as good, but "
    "not bit for bit those of an uninterrupted run."
)
#: Values that mean: decided at the start.
UNDECIDED = (None, "auto", ())


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
    try:
        while True:
            try:
                event = next(work)
            except StopIteration as stop:
                result: Path = stop.value
                return result
            if not isinstance(event, Heartbeat):
                run.append(event)
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
    """Pretrain an encoder on crops of slides.

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
    SlideError, MissingMppError, UpsamplingError, NotEnoughDataError
        If the slides do not serve.
    CheckpointError, DownloadError
        If the weights to start from do not.
    """
    with ExitStack() as stack:
        work = _Work(config, run, resume, stack)
        steps = work.run()
        try:
            for event in steps:
                yield event
                end = yield from _asked(run, work)
                if end is not None and not isinstance(event, Finished):
                    steps.close()
                    yield from end
                    break
        finally:
            steps.close()
    return run.last if run.last.exists() else run.path


def _asked(
    run: RunFolder, work: _Work
) -> Generator[Event, None, Generator[Event, None, None] | None]:
    """Answer a request: wait while paused; return how to end if that is asked."""
    request = run.requested()
    if request is None:
        return None
    if request == "pause":
        yield Note(f"Paused after step {work.step}.")
        while request == "pause":
            time.sleep(PAUSE_S)
            yield Heartbeat()
            request = run.requested()
        if request not in ("stop", "discard"):
            yield Note("Going on.")
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
    manifest: CropManifest
    source: Source
    plan: Plan
    judged: np.ndarray[Any, np.dtype[np.int64]]


class _Work:
    """A pretraining from settings to the end; ``step`` is the last update made."""

    def __init__(
        self, config: PretrainConfig, run: RunFolder, resume: bool, stack: ExitStack
    ) -> None:
        self._run, self._stack = run, stack
        self._training: _Training | None = None
        self._checkpoint: Checkpoint | None = None
        self._notes: tuple[str, ...] = ()
        if not resume:
            if run.has_begun:
                raise RunError(
                    f"{run.path} already holds a run ({run.state}). Resume it, or "
                    "choose another folder."
                )
            if not run.config_file.exists():
                run.create(config)
            self._config = absolute_paths(config)
        else:
            run.check_unfinished()
            begun = run.config()
            self._config = settled(absolute_paths(config), begun)
            if self._config.device != begun.device or (
                self._config.threads != begun.threads
            ):
                self._notes = (MACHINE_CHANGED,)
            if run.last.exists():
                self._checkpoint = load_checkpoint(run.last)
            run.cut_back(None if self._checkpoint is None else self.step_saved())
        self.step = self._saved_step = self.step_saved()
        judged = [event.step for event in run.events() if isinstance(event, HeldOut)]
        self._judged_step = judged[-1] if judged else -1

    def step_saved(self) -> int:
        """Return the step of the checkpoint this began from; 0 if from none."""
        return 0 if self._checkpoint is None else self._checkpoint.header.step

    # ---- from the beginning to the end

    def run(self) -> Generator[Event, None, None]:
        """Do it all."""
        training = yield from self._prepare()
        self._training = training
        config, plan = training.setting.config, training.plan
        files = 1 if self._run.last.exists() else 2  # the next one is written beside
        check_room(self._run.last, files * self._bytes_needed(training))
        yield self._started(training)
        if self.step % config.preview_every == 0:
            yield from self._judge(training)
        for event in fit(
            training.model,
            training.optimizer,
            method=training.method,
            setting=training.setting,
            source=training.source,
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
            if self.step % config.save_every == 0:
                yield self._save_or_go_on(training)
        yield from self._judge(training)
        yield from self._save_when_there_is_room(training)
        yield Finished(self.step, "done")

    def stop(self) -> Generator[Event, None, None]:
        """Keep what was learned so far."""
        if self._training is not None and self.step > 0:
            if self.step > self._saved_step:
                yield self._save(self._training)
            yield self._save_encoder(self._training)
        yield Finished(self.step, "stopped")

    def discard(self) -> Generator[Event, None, None]:
        """Throw away what was learned."""
        self._run.discard()
        yield Finished(self.step, "discarded")

    # ---- making ready

    def _prepare(self) -> Generator[Event, None, _Training]:
        config = self._config
        device = pick_device(config.device)
        paths = find_slides(config.slides)
        if not paths:
            raise ConfigError("slides", "none is named. Choose slides or a folder.")
        slides = []
        for path in paths:
            slides.append(open_slide(path, config, self._stack))
            yield Heartbeat()
        config = resolved(config, slides, device)
        self._config = config
        self._run.write_config(config)
        manifest, slides = yield from self._crops(config, slides)
        self._stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.threads or torch.get_num_threads())
        training = self._model(config, manifest, slides, device)
        yield from self._start_from(training)
        return training

    def _crops(
        self, config: PretrainConfig, slides: list[Slide]
    ) -> Generator[Event, None, tuple[CropManifest, list[Slide]]]:
        """Draw the crops, or read those of the run; return the slides they are from."""
        assert config.mpp is not None
        file = self._run.crops_file
        if self._checkpoint is not None:
            manifest = CropManifest.load(file)
            return manifest, slides_of(manifest, slides, config, self._stack)
        spec = CropSpec(
            crop_px=config.tile_px,
            mpp=config.mpp,
            per_slide=config.crops_per_slide,
            min_tissue=config.min_tissue,
            max_iou=config.max_iou,
            held_out=config.held_out,
            seed=config.seed,
            allow_upsampling=config.allow_upsampling,
        )
        manifest = yield from build_manifest(slides, spec)
        manifest.save(file)
        return manifest, slides

    def _model(
        self,
        config: PretrainConfig,
        manifest: CropManifest,
        slides: Sequence[Slide],
        device: torch.device,
    ) -> _Training:
        method = METHODS[config.method]
        model = method.build(config, torch.Generator().manual_seed(config.seed))
        if self._checkpoint is None:
            begun = init_encoder(model.encoder, config.init_from)
            self._notes += begun.notes
            mean, std = begun.mean or MEAN, begun.std or STD
        else:
            mean, std = self._checkpoint.header.mean, self._checkpoint.header.std
        model.to(device)
        source = method.source(slides, manifest)
        self._stack.enter_context(source)
        return _Training(
            setting=Setting(config, mean, std),
            method=method,
            model=model,
            optimizer=build_optimizer(model, config),
            manifest=manifest,
            source=source,
            plan=Plan(
                crops=np.flatnonzero(~manifest.held_out),
                batch_size=config.batch_size,
                epochs=config.epochs,
                seed=config.seed,
            ),
            judged=spread(np.flatnonzero(manifest.held_out), MOST_JUDGED),
        )

    def _start_from(self, training: _Training) -> Generator[Event, None, None]:
        """Put the checkpoint's numbers in, or say what the training starts from."""
        for note in self._notes:
            yield Note(note)
        if self._checkpoint is None:
            return
        load_tensors(training.model, self._checkpoint.tensors)
        load_optimizer(
            training.model,
            training.optimizer,
            {
                name.removeprefix(OPTIMIZER): tensor
                for name, tensor in self._checkpoint.tensors.items()
                if name.startswith(OPTIMIZER)
            },
        )
        self._checkpoint = None  # its memory

    def _started(self, training: _Training) -> Started:
        config = training.setting.config
        weights = sum(w.numel() for w in training.model.parameters() if w.requires_grad)
        held_out = int(training.manifest.held_out.sum())
        return Started(
            method=training.method.name,
            step=self.step,
            total_steps=training.plan.total_steps,
            crops=len(training.manifest) - held_out,
            held_out_crops=held_out,
            parameters=weights,
            device=config.device,
            precision=config.precision,
            mpp=training.manifest.mpp,
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
                method=training.method,
                setting=training.setting,
                source=training.source,
            )
            yield HeldOut(self.step, loss)
        if training.method.picture is not None:
            yield from self._preview(training)

    def _preview(self, training: _Training) -> Generator[Event, None, None]:
        shown = training.judged if len(training.judged) else training.plan.crops
        shown = spread(shown, PREVIEW_CROPS)
        crops = yield from awaited(training.source.stream([shown]))
        assert training.method.picture is not None
        training.model.eval()
        picture = training.method.picture(
            training.model, crops, shown, training.setting
        )
        training.model.train()
        path = self._run.previews / f"step_{self.step:07d}.png"
        try:
            with _writing(path), write_beside(path) as beside:
                Image.fromarray(picture).save(beside, format="PNG")
        except DiskRefusedError as error:  # no picture is worth a training
            yield Note(f"{error.reason} The training goes on without it.")
        else:
            yield Preview(self.step, self._run.inside(path))

    def _bytes_needed(self, training: _Training) -> int:
        """Return what a checkpoint takes, roughly."""
        weights = sum(weight.nbytes for weight in training.model.parameters())
        return NUMBERS_PER_WEIGHT * weights

    def _save_or_go_on(self, training: _Training) -> Saved | Note:
        """Save; where the disk refuses, the training goes on in memory."""
        try:
            return self._save(training)
        except DiskRefusedError as error:
            return Note(
                f"{error.reason} The training goes on, and tries again in "
                f"{training.setting.config.save_every} steps: make room meanwhile."
            )

    def _save_when_there_is_room(
        self, training: _Training
    ) -> Generator[Event, None, None]:
        """Save what was trained to the end; wait for room as long as it takes."""
        said = False
        while True:
            try:
                saved = [self._save(training), self._save_encoder(training)]
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

    def _save(self, training: _Training) -> Saved:
        tensors = checkpoint_tensors(training.model)
        state = optimizer_tensors(training.model, training.optimizer)
        tensors |= {OPTIMIZER + name: tensor for name, tensor in state.items()}
        with _writing(self._run.last, self._bytes_needed(training)):
            save_checkpoint(self._run.last, self._header(training), tensors)
        self._saved_step = self.step
        return Saved(self.step, self._run.inside(self._run.last))

    def _save_encoder(self, training: _Training) -> Saved:
        whole = Checkpoint(
            self._header(training), checkpoint_tensors(training.model)
        ).encoder_only()
        with _writing(self._run.encoder):
            save_checkpoint(self._run.encoder, whole.header, whole.tensors)
        return Saved(self.step, self._run.inside(self._run.encoder))

    def _header(self, training: _Training) -> CheckpointHeader:
        config, manifest = training.setting.config, training.manifest
        return CheckpointHeader(
            architecture=config.architecture,
            encoder=training.model.encoder_spec,
            decoder=training.model.decoder_spec,
            method=training.method.name,
            mask_ratio=config.mask_ratio,
            norm_pix=config.norm_pix,
            mean=training.setting.mean,
            std=training.setting.std,
            tile_px=config.tile_px,
            mpp=manifest.mpp,
            mpp_given=any(slide.mpp_source != "file" for slide in manifest.slides),
            step=self.step,
            config_hash=hashlib.sha256(config.to_toml().encode()).hexdigest()[:16],
        )


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
def _writing(path: Path, needed: int = 0) -> Iterator[None]:
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


# Slides ----------------------------------------------------------------------


def open_slide(path: Path, config: PretrainConfig, stack: ExitStack) -> Slide:
    """Open a slide until ``stack`` ends; ``slide_mpp`` serves where the file has none.

    Raises
    ------
    SlideError
        If it cannot be opened.
    MissingMppError
        If its pixel size is unknown.
    """
    slide = stack.enter_context(Slide.open(path, fallback_mpp=config.slide_mpp))
    _ = slide.mpp  # says what is missing
    return slide


def slides_of(
    manifest: CropManifest,
    slides: Iterable[Slide],
    config: PretrainConfig,
    stack: ExitStack,
) -> list[Slide]:
    """Return the slides of a manifest, in its order, with the pixel sizes it noted.

    They are known by what is in them, so that they may have been moved.

    Raises
    ------
    RunError
        If one is missing.
    """
    known = {slide.slide_id: slide for slide in slides}
    ordered = []
    for entry in manifest.slides:
        slide = known.get(entry.slide_id)
        if slide is None:
            raise RunError(
                f"The run was trained on {entry.path}, which is not among "
                f"{', '.join(config.slides)}, or has changed. Bring it back, or resume "
                "with slides that name its place."
            )
        if slide.mpp != (entry.mpp_x, entry.mpp_y):
            mpp = (entry.mpp_x, entry.mpp_y)
            slide = stack.enter_context(Slide.open(slide.path, mpp=mpp))
        ordered.append(slide)
    return ordered


def spread(
    indices: np.ndarray[Any, np.dtype[np.int64]], most: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return at most so many of the indices, evenly spread over all of them."""
    if len(indices) <= most:
        return indices
    return indices[np.arange(most) * len(indices) // most]


# Settings --------------------------------------------------------------------


def settled(config: PretrainConfig, begun: PretrainConfig) -> PretrainConfig:
    """Return the settings to go on with, those of the run that has ``begun``.

    Raises
    ------
    ConfigError
        If a setting that shapes the result differs; it names the first.
    """
    changes = {}
    for field in fields(config):
        name = field.name
        now, before = getattr(config, name), getattr(begun, name)
        if now == before or now in UNDECIDED:
            continue
        if name not in MAY_CHANGE:
            raise ConfigError(
                name,
                f"was {before!r} when the run began and is {now!r} now. Resume with "
                "the run's own settings, or start a new run from its checkpoint.",
            )
        changes[name] = now
    return replace(begun, **changes)


def resolved(
    config: PretrainConfig, slides: Sequence[Slide], device: torch.device
) -> PretrainConfig:
    """Decide what the settings leave open."""
    method = METHODS[config.method]
    micro_batch = config.micro_batch
    if micro_batch is None:
        micro_batch = (
            GPU_MICRO_BATCH if device.type != "cpu" else cpu_micro_batch(config)
        )
    decided = replace(
        config,
        device=str(device),
        precision=pick_precision(config.precision, device),
        threads=config.threads or torch.get_num_threads(),
        micro_batch=min(micro_batch, config.batch_size),
        mpp=default_mpp(slides) if config.mpp is None else config.mpp,
    )
    return replace(decided, micro_batch=micro_batch_of(method, decided))


def pick_precision(name: str, device: torch.device) -> str:
    """Return ``f32`` or ``bf16``; ``auto``: bf16 where the device computes in it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "f32"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "f32"


def cpu_has_bf16() -> bool:
    """Tell whether the processor multiplies matrices of bf16 (AVX-512 or AMX)."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def cpu_micro_batch(config: PretrainConfig) -> int:
    """Return how many crops a processor handles in half a second, a power of two.

    From the count of operations, not from a clock, so that the same settings give the
    same run.
    """
    width, depth, _ = ENCODER_SIZES[config.encoder]
    patches = (config.tile_px // config.patch_size) ** 2
    visible = patches - round(patches * config.mask_ratio) + 1
    # Multiply-adds of a block: 12 D² a token, and its attention.
    seen = depth * visible * (12 * width**2 + 2 * visible * width)
    decoder = 12 * config.decoder_dim**2 + 2 * patches * config.decoder_dim
    painted = config.decoder_depth * patches * decoder
    work = 2 * 3 * (seen + painted)  # forward, and twice that backward
    size = CPU_MICRO_BATCH
    while size > 1 and size * work > CPU_WORK:
        size //= 2
    return size
