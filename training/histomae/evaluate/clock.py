"""How long work still takes that is made of parts, such as trials or pretrainings."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from histomae.events import Event, Heartbeat, Note, Progress, Result, Started, Step

if TYPE_CHECKING:
    from collections.abc import Generator


class Clock:
    """Tells how much time is left of all parts, by those that were done."""

    def __init__(self, parts: int) -> None:
        self._left, self._done, self._took = float(parts), 0.0, 0.0

    def timed(
        self, what: str, work: Generator[Event, None, Result]
    ) -> Generator[Event, None, Result]:
        """Do one part, its steps told as progress; what was done before counts not."""
        begin, before = time.monotonic(), 0.0
        try:
            while True:
                try:
                    event = next(work)
                except StopIteration as stop:
                    result: Result = stop.value
                    break
                if isinstance(event, Started):
                    before = event.step / event.total_steps
                if isinstance(event, Step):
                    share = event.step / event.total_steps
                    left = self.seconds(share, before, time.monotonic() - begin)
                    yield Progress(
                        what, event.step, event.total_steps, seconds_left=left
                    )
                elif isinstance(event, Progress):
                    yield replace(event, seconds_left=self.seconds())
                else:
                    yield event if isinstance(event, Note) else Heartbeat()
        finally:
            work.close()
        self._took += time.monotonic() - begin
        self._done, self._left = self._done + 1 - before, self._left - 1
        return result

    def seconds(
        self, share: float = 0.0, before: float = 0.0, took: float = 0.0
    ) -> float | None:
        """Return the time left.

        Parameters
        ----------
        share
            Of a part, that is done by now.
        before
            Of it, that was done before it went on; ``took`` is what the rest took.
        """
        done = self._done + share - before
        if not done:
            return None
        return (self._took + took) / done * (self._left - share)
