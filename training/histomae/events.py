"""What long work says while it runs: small frozen events, yielded by generators.

The command line prints them, a run folder records them, a dock draws them, a test
lists them. Long work is ``Generator[Event, None, Result]``; its result is the
generator's return value.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from histomae.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Generator

Result = TypeVar("Result")


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    def to_json(self) -> str:
        """Return one line of JSON; ``kind`` is the class name."""
        return json.dumps({"kind": type(self).__name__, **asdict(self)})


@dataclass(frozen=True)
class Heartbeat(Event):
    """Nothing new; still alive."""


@dataclass(frozen=True)
class Progress(Event):
    """Some of a known amount of work is done.

    ``per_s`` is in items a second; ``seconds_left`` is None until it can be told.
    """

    what: str
    done: int
    total: int
    per_s: float = 0.0
    seconds_left: float | None = None


@dataclass(frozen=True)
class Note(Event):
    """A sentence for the user: a warning, or something that was decided."""

    text: str


@dataclass(frozen=True)
class Started(Event):
    """A training begins, or goes on at ``step``.

    ``mpp`` is in µm/px; None: the features it trains on do not say. ``processes`` train
    together, one of them being the rule. ``what`` it trains on: a
    crop, a picture, a set of them, or a slide.
    """

    method: str
    step: int
    total_steps: int
    crops: int
    held_out_crops: int
    parameters: int
    device: str
    precision: str
    mpp: float | None
    processes: int = 1
    what: str = "crop"


@dataclass(frozen=True)
class Step(Event):
    """One optimizer update. ``epoch`` is fractional."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    images_per_s: float
    seconds_left: float | None
    logged: dict[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """What makes curves over the steps: its numbers and what the method logs."""
        named = ("loss", "lr", "grad_norm", "images_per_s")
        return {name: getattr(self, name) for name in named} | self.logged


@dataclass(frozen=True)
class HeldOut(Event):
    """The objective on crops held out of training, with fixed masks."""

    step: int
    loss: float

    @property
    def figures(self) -> dict[str, float]:
        """What makes a curve over the steps, under a name of its own."""
        return {"held_out_loss": self.loss}


@dataclass(frozen=True)
class Preview(Event):
    """A picture of input, masked input and reconstruction was written to ``path``.

    ``path`` is relative to the run folder.
    """

    step: int
    path: str


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint was written to ``path``, relative to the run folder."""

    step: int
    path: str


@dataclass(frozen=True)
class Finished(Event):
    """The training ended. ``reason``: ``done``, ``stopped`` or ``discarded``."""

    step: int
    reason: str


@dataclass(frozen=True)
class Failed(Event):
    """The training ended with an error; ``message`` is a sentence for the user."""

    message: str


KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Heartbeat,
        Progress,
        Note,
        Started,
        Step,
        HeldOut,
        Preview,
        Saved,
        Finished,
        Failed,
    )
}


def event_from_json(line: str) -> Event:
    """Read back one line written by :meth:`Event.to_json`.

    Raises
    ------
    RunError
        If the line is no event of this version.
    """
    try:
        fields: dict[str, Any] = json.loads(line)
        return KINDS[fields.pop("kind")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"Not an event of this version: {line[:80]!r}. Read the run with the "
            "version of napari-histomae that wrote it."
        ) from error


def result_of(work: Generator[Event, None, Result]) -> Result:
    """Run long work to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
