"""What the commands share: their arguments, what they open, how events are shown."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TextIO

import tyro
from tqdm import tqdm

from histomae.errors import (
    CheckpointError,
    ConfigError,
    DataSetError,
    HistomaeError,
    NotEnoughDataError,
    SlideError,
    UpsamplingError,
)
from histomae.events import (
    Event,
    Finished,
    HeldOut,
    Note,
    Preview,
    Progress,
    Result,
    Saved,
    Started,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from histomae.infer.encoder import TileEncoder

#: What is wrong with one slide of several: the others are still done.
OF_ONE_SLIDE = (SlideError, DataSetError, UpsamplingError, NotEnoughDataError)
BAR = "{desc}: {percentage:3.0f} %|{bar}| {n_fmt} of {total_fmt}{postfix}"
#: Without a terminal a line tells of the progress so often, seconds.
LINE_EVERY_S = 10.0

Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Encoder = Annotated[Path, tyro.conf.arg(metavar="FILE|FOLDER")]
Slides = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="SLIDE [SLIDE ...]", help_behavior_hint=""),
]


def each_of(
    paths: Sequence[Path],
    do: Callable[[Path], None],
    *,
    of_one: tuple[type[HistomaeError], ...] = OF_ONE_SLIDE,
) -> None:
    """Do something to each path; go on after those that fail, then exit with 1."""
    failed = 0
    for path in paths:
        try:
            do(path)
        except of_one as error:
            complain(error)
            failed += 1
    if failed and len(paths) > 1:
        complain(f"{failed} of {len(paths)} failed.")
    if failed:
        sys.exit(1)


def told_apart(paths: Sequence[Path]) -> list[Path]:
    """Return the slides among files, folders and addresses; no two of one name."""
    from histomae.slides.find import find_slides
    from histomae.slides.remote import local_copies

    if not paths:
        raise ConfigError("slides", "none is given. Name slides or a folder.")
    by_name: dict[str, Path] = {}
    for path in find_slides(show(local_copies(paths))):
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise ConfigError(
                "slides",
                f"{other} and {path} would write the same files. Do them one after the "
                "other, each with its own --out.",
            )
    return list(by_name.values())


def encoder_of(path: Path, device: str) -> TileEncoder:
    """Load an encoder from a checkpoint, or from the last one of a run folder."""
    from histomae.infer.encoder import TileEncoder

    return TileEncoder.load(checkpoint_of(path), device=device)


def checkpoint_of(path: Path) -> Path:
    """Return the checkpoint that is named: a file, or the last one of a run folder."""
    return last_of(path) if path.is_dir() else path


def last_of(folder: Path) -> Path:
    """Return the last checkpoint of a run folder."""
    from histomae.learn.runs import RunFolder

    last = RunFolder(folder).last
    if not last.exists():
        raise CheckpointError(
            f"{folder} holds no checkpoint. Give a run folder whose training has "
            "saved one, or a file."
        )
    return last


# Showing ---------------------------------------------------------------------


def say(text: object) -> None:
    """Print a line of results, at once."""
    print(text, flush=True)


def mention(text: str) -> None:
    """Print a line beside the results."""
    tqdm.write(text, file=sys.stderr)


def complain(error: object) -> None:
    """Print what went wrong as one line on standard error."""
    print(f"histomae: {' '.join(str(error).splitlines())}", file=sys.stderr)


def show(work: Generator[Event, None, Result]) -> Result:
    """Run long work to its end, showing its events on standard error."""
    meter: Meter = Bar() if sys.stderr.isatty() else Lines(sys.stderr)
    try:
        while True:
            try:
                show_event(next(work), meter)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
    finally:
        meter.close()
        work.close()


class Meter(Protocol):
    """Shows how far work has come."""

    def move(self, what: str, done: int, total: int, told: str) -> None:
        """Show ``done`` of ``total`` of the work called ``what``, and what is told."""

    def close(self) -> None:
        """End what is shown."""


def show_event(event: Event, meter: Meter) -> None:
    """Show one event: far work in the meter, the rest as lines."""
    match event:
        case Progress():
            told = time_left(event.seconds_left)
            meter.move(event.what, event.done, event.total, told)
        case Step():
            pace = f"loss {event.loss:.4f}, {event.images_per_s:.0f} images/s"
            told = ", ".join(filter(None, [pace, time_left(event.seconds_left)]))
            meter.move("training", event.step, event.total_steps, told)
        case Started():
            begun = f"going on after step {event.step}; " if event.step else ""
            mpp = "" if event.mpp is None else f", at {event.mpp:.3g} µm/px"
            mention(
                f"{event.method}: {begun}{counted(event.crops, event.what)}, "
                f"{event.held_out_crops} held out{mpp}; {event.parameters / 1e6:.1f} M "
                f"parameters on {event.device} in {event.precision}"
            )
        case HeldOut():
            mention(f"step {event.step}: held-out loss {event.loss:.4f}")
        case Preview() | Saved():
            mention(f"step {event.step}: wrote {event.path}")
        case Note():
            mention(event.text)
        case Finished():
            meter.close()
            mention(f"{event.reason} at step {event.step}")


class Bar:
    """A moving bar, for a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def move(self, what: str, done: int, total: int, told: str) -> None:
        """Move the bar; other work gets a new one."""
        if self._bar is not None and self._bar.desc != what:
            self._bar.leave = False  # it went over into what comes
            self.close()
        if self._bar is None:
            self._bar = tqdm(
                desc=what, total=total, initial=done, bar_format=BAR, dynamic_ncols=True
            )
        self._bar.set_postfix_str(told, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:  # it stays above what comes
            self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines:
    """A line every so often, for a file or a pipe."""

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._clock = stream, clock
        self._last = clock()

    def move(self, what: str, done: int, total: int, told: str) -> None:
        """Print a line if the last one is old, or the work is done."""
        now = self._clock()
        if done < total and now - self._last < LINE_EVERY_S:
            return
        self._last = now
        share = f"{what}: {done} of {total} ({done / max(total, 1):.0%})"
        line = ", ".join(filter(None, [share, told]))
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


def time_left(seconds: float | None) -> str:
    """Return ``4 min left``; empty where it is not known, or nothing is left."""
    if not seconds or seconds < 1:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds / 3600:.1f} h left"


def counted(number: int, what: str) -> str:
    """Return ``1 tile``, ``2 tiles``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
