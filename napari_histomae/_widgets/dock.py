"""What docks have in common: they shut down, work, and take clicks while in front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QWidget

from histomae.events import Progress
from napari_histomae._jobs import start_job
from napari_histomae._widgets.common import human_time, share_done

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from histomae.events import Event
    from napari_histomae._jobs import Job
    from napari_histomae._widgets.common import StateLine
    from napari_histomae._widgets.hooks import ViewerHooks


class Dock(QWidget):
    """A dock of napari that is shut down once, however it goes away."""

    def shut(self) -> None:
        """Let go of everything; more than once is once."""
        raise NotImplementedError

    def event(self, event: QEvent) -> bool:
        """Shut down when napari takes the dock apart."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.shut()
        return super().event(event)

    def closeEvent(self, event: Any) -> None:
        """Shut down."""
        self.shut()
        super().closeEvent(event)


class WorkingDock(Dock):
    """A dock that does one piece of long work at a time, and tells of it in one line.

    What was cancelled is not shown, even if it was done by then.
    """

    state: StateLine
    _job: Job | None = None

    @property
    def running(self) -> bool:
        """Whether work of this dock runs."""
        return self._job is not None

    def cancel(self) -> None:
        """Stop; what is shown stays."""
        if self._job is not None:
            self._job.cancel()
            self.state.working("Stopping…")

    def _start(
        self,
        make: Callable[[], Generator[Event, None, Any]],
        name: str,
        on_done: Callable[[Any], Any],
    ) -> None:
        """Begin work, as :func:`start_job` does; ``on_done`` shows its result."""
        self._job = start_job(
            self,
            make,
            name=name,
            on_event=self._on_job_event,
            on_done=lambda result: self._on_job_done(result, on_done),
            on_failed=self._on_job_failed,
            on_cancelled=self._on_job_cancelled,
        )
        self.state.working(f"{name}…")
        self._refresh()

    def _refresh(self) -> None:
        """Enable what can be done, and say why the rest cannot."""
        raise NotImplementedError

    def _on_event(self, event: Event) -> None:
        """Tell of an event of work that is still wanted."""
        if isinstance(event, Progress):
            self.state.working(_told(event), event.done, event.total)

    def _on_job_event(self, event: Event) -> None:
        if self._job is not None and not self._job.cancelling:
            self._on_event(event)

    def _on_job_done(self, result: Any, on_done: Callable[[Any], Any]) -> None:
        if self._job is not None and self._job.cancelling:  # too late, yet not wanted
            self._on_job_cancelled()
            return
        self._end_job()
        on_done(result)

    def _on_job_failed(self, error: Exception) -> None:
        self._end_job()
        self.state.failed(error)

    def _on_job_cancelled(self) -> None:
        self._end_job()
        self.state.idle("Stopped; nothing was changed.")

    def _end_job(self) -> None:
        self._job = None
        self._refresh()

    def _abandon(self) -> None:
        """Stop what runs, and hear no more of it."""
        if self._job is not None:
            self._job.abandon()


class LookingDock(WorkingDock):
    """A dock that takes clicks and keys of the viewer while it is in front."""

    hooks: ViewerHooks
    #: Until it is shut.
    _open: bool

    def showEvent(self, event: Any) -> None:
        """Take clicks and keys."""
        super().showEvent(event)
        if self._open:
            self.hooks.attach()

    def hideEvent(self, event: Any) -> None:
        """Give clicks and keys back, while another dock is in front."""
        super().hideEvent(event)
        if not event.spontaneous():
            self.hooks.detach()


def _told(event: Progress) -> str:
    """Return how far work is, in words."""
    told = f"{event.what.capitalize()}: {share_done(event.done, event.total)}"
    if event.per_s:
        told += f" · {event.per_s:.{0 if event.per_s >= 10 else 1}f}/s"
    if event.seconds_left is not None and event.done:
        told += f" · {human_time(event.seconds_left)}"
    return told
