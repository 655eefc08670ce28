"""The numbers of a run against its steps, from what its events say."""

from __future__ import annotations

from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.events import Event, HeldOut, Started, Step

if TYPE_CHECKING:
    from collections.abc import Iterable

Array = np.ndarray[Any, Any]
#: Points of a curve that are drawn; more cannot be told apart.
DRAWN_POINTS = 1000


class Curves:
    """Curves by the name of their figure, such as ``loss`` and ``held_out_loss``.

    They follow the events: where a training goes back to a checkpoint, what came after
    it is forgotten.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._points: dict[str, tuple[array[int], array[float]]] = {}
        for event in events:
            self.add(event)

    @property
    def names(self) -> list[str]:
        """The figures, in the order in which they first came."""
        return list(self._points)

    def __getitem__(self, name: str) -> tuple[Array, Array]:
        """Return a curve: steps int64 (N,), rising, and values float64 (N,)."""
        steps, values = self._points.get(name, (array("q"), array("d")))
        return np.array(steps, np.int64), np.array(values, np.float64)

    def add(self, event: Event) -> None:
        """Take in what an event says; most say nothing of figures."""
        if isinstance(event, Started):
            for curve in self._points.values():
                _cut(curve, event.step + 1)
        if isinstance(event, Step | HeldOut):
            for name, value in event.figures.items():
                curve = self._points.setdefault(name, (array("q"), array("d")))
                _cut(curve, event.step)
                curve[0].append(event.step)
                curve[1].append(value)


def _cut(curve: tuple[array[int], array[float]], step: int) -> None:
    """Forget the points from a step on."""
    steps, values = curve
    while steps and steps[-1] >= step:
        steps.pop()
        values.pop()


def thinned(
    steps: Array, values: Array, *, most: int = DRAWN_POINTS
) -> tuple[Array, Array]:
    """Return at most so many points of a curve (N,) that look like all of them.

    Of every stretch the lowest and the highest stay, so that no spike is lost; so do
    the first point and the last.
    """
    if len(values) <= most:
        return steps, values
    kept = {0, len(values) - 1}
    for begin, end in pairwise(np.linspace(0, len(values), most // 2).astype(int)):
        stretch = values[begin:end]
        kept |= {begin + int(stretch.argmin()), begin + int(stretch.argmax())}
    chosen = sorted(kept)
    return steps[chosen], values[chosen]
