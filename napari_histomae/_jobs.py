"""Long work in a background thread, its events in the window.

One wrapper for everything slow: a generator of events (``histomae.events``) runs in one
of napari's worker threads, and what it says arrives on the window's thread. The traps
that this module is for:

- Qt's generator workers take a ``RuntimeError`` for "the worker was deleted" and end
  without a signal; PyTorch reports nearly everything as one. Here no exception reaches
  the worker: it arrives at ``on_failed``.
- Quitting a worker leaves its generator open, with its files and memory. Here it is
  closed in its own thread before ``on_cancelled`` is called.
- A thread that is alive when the interpreter leaves aborts it. Here jobs are cancelled
  and joined when their window closes; and the program waits for those that are slow to
  hear it.
- Thousands of events at once would freeze the window: they are handed over in slices of
  a few milliseconds.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.qt.threading import GeneratorWorker
from napari.utils import progress
from qtpy.QtCore import QEvent, QObject, QThreadPool, QTimer
from qtpy.QtWidgets import QApplication, QMainWindow, QWidget

from histomae.errors import HistomaeError
from histomae.events import Event, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

logger = logging.getLogger(__name__)

#: Longest time spent on events before the window gets its turn, s.
SLICE_S = 0.010
#: How long a closing window waits for its jobs, s.
JOIN_S = 5.0
#: How long the program waits for those that did not stop by then, s.
LEAVE_S = 60.0


@dataclass(frozen=True)
class _Outcome:
    """How a job ended: ``kind`` is ``done``, ``failed`` or ``cancelled``."""

    kind: str
    value: Any = None


class Job(QObject):
    """One piece of long work; made by :func:`start_job`.

    ``before_close``, if set, is asked when the window is about to close while the job
    runs; it returns False to keep the window open.
    """

    def __init__(
        self,
        make_generator: Callable[[], Generator[Event, None, Any]],
        *,
        name: str,
        on_event: Callable[[Event], None] | None,
        on_done: Callable[[Any], None] | None,
        on_failed: Callable[[Exception], None] | None,
        on_cancelled: Callable[[], None] | None,
    ) -> None:
        super().__init__()
        self.name = name
        self.before_close: Callable[[], bool] | None = None
        self._make = make_generator
        self._calls = {
            "event": on_event,
            "done": on_done,
            "failed": on_failed,
            "cancelled": on_cancelled,
        }
        self._cancel = threading.Event()
        self._thread_ended = threading.Event()
        self._inbox: deque[Event | _Outcome] = deque()
        self._awake = False
        self._draining = False
        self._silent = False
        self._running = True
        self._bar: progress | None = None
        self._worker = GeneratorWorker(self._in_thread)
        self._worker.yielded.connect(self._drain)
        self._worker.finished.connect(self._on_finished)

    # ---- what the window may ask

    @property
    def running(self) -> bool:
        """Whether its end has not been reported yet."""
        return self._running

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Ask it to stop before its next event; ``on_cancelled`` tells when it did."""
        self._cancel.set()

    def abandon(self) -> None:
        """Ask it to stop, and call nobody any more: the window that listened goes."""
        self._silent = True
        self._close_bar()
        self.cancel()

    def join(self, timeout_s: float = JOIN_S) -> bool:
        """Wait until its thread has ended; return whether it has."""
        return self._thread_ended.wait(timeout_s)

    # ---- in the worker's thread

    def _in_thread(self) -> Generator[None, None, None]:
        """Run the work; every yield only wakes the window."""
        outcome = _Outcome("cancelled")
        try:
            work = self._make()
            try:
                while not self._cancel.is_set():
                    try:
                        self._inbox.append(next(work))
                    except StopIteration as stop:
                        outcome = _Outcome("done", stop.value)
                        break
                    # One wake-up is enough until the window has looked into the box.
                    if not self._awake:
                        self._awake = True
                        yield
            finally:
                work.close()
        except Exception as error:  # noqa: BLE001  the one place that reports it
            outcome = _Outcome("failed", error)
        finally:
            self._inbox.append(outcome)
            self._thread_ended.set()

    # ---- on the window's thread

    def _start(self) -> None:
        # A job that follows a training sleeps most of the time: it takes no slot of
        # the pool, which has as many as the machine has cores.
        QThreadPool.globalInstance().releaseThread()
        self._worker.start()

    def _drain(self) -> None:
        # napari's progress bar lets Qt's events through: without this the job's end
        # would overtake its last event.
        if self._draining:
            return
        self._draining = True
        try:
            self._drain_slice()
        finally:
            self._draining = False

    def _drain_slice(self) -> None:
        end = time.monotonic() + SLICE_S
        while True:
            self._awake = False  # before looking, so that no item is left unannounced
            if not self._inbox:
                return
            if time.monotonic() > end:
                self._awake = True
                QTimer.singleShot(1, self._drain)
                return
            self._deliver(self._inbox.popleft())

    def _on_finished(self) -> None:
        if not self._thread_ended.is_set():  # someone else told the worker to quit
            self._inbox.append(_Outcome("cancelled"))
            self._thread_ended.set()
        self._drain()

    def _deliver(self, item: Event | _Outcome) -> None:
        if isinstance(item, _Outcome):
            self._end(item)
            return
        if isinstance(item, Progress):
            self._show_in_activity_bar(item)
        self._call("event", item)

    def _end(self, outcome: _Outcome) -> None:
        if not self._running:
            return
        self._retire()
        if outcome.kind == "failed":
            _log_failure(self.name, outcome.value)
        values = () if outcome.kind == "cancelled" else (outcome.value,)
        self._call(outcome.kind, *values)

    def _retire(self) -> None:
        if self._running:
            self._running = False
            _forget(self)
            QThreadPool.globalInstance().reserveThread()
            self._close_bar()

    def _call(self, kind: str, *values: Any) -> None:
        call = self._calls[kind]
        if call is not None and not self._silent:
            call(*values)

    def _show_in_activity_bar(self, event: Progress) -> None:
        if self._silent:
            return
        if self._bar is None:
            self._bar = progress(total=event.total, desc=self.name)
        if self._bar.total != event.total:
            self._bar.reset(total=event.total)
        self._bar.update(event.done - self._bar.n)
        # napari turns a wheel while there is a bar, and draws the whole window for each
        # of its thirty pictures a second: not over the hours of training that follow.
        if 0 < event.total <= event.done:
            self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def start_job(
    parent: QWidget,
    make_generator: Callable[[], Generator[Event, None, Any]],
    *,
    name: str,
    on_event: Callable[[Event], None] | None = None,
    on_done: Callable[[Any], None] | None = None,
    on_failed: Callable[[Exception], None] | None = None,
    on_cancelled: Callable[[], None] | None = None,
) -> Job:
    """Run long work in a background thread; the calls come on the window's thread.

    Parameters
    ----------
    parent
        The widget that starts it: when its window closes, or it is destroyed, the job
        is cancelled and joined.
    make_generator
        Makes the generator, in the thread. It yields events and returns the result.
    name
        A few words for the activity bar: "Predicting her2st-C2".
    on_event, on_done, on_failed, on_cancelled
        Called with each event; the result; the exception; nothing. Exactly one of the
        last three is called, once, after the last event.
    """
    job = Job(
        make_generator,
        name=name,
        on_event=on_event,
        on_done=on_done,
        on_failed=on_failed,
        on_cancelled=on_cancelled,
    )
    _remember(job, parent)
    job._start()
    return job


def running_jobs(parent: QWidget | None = None) -> list[Job]:
    """Return the jobs that run in the window of a widget, or in all windows."""
    if parent is None:
        return [job for keeper in _keepers.values() for job in keeper.jobs]
    window = window_of(parent)
    keeper = _keepers.get(id(window))
    return list(keeper.jobs) if keeper is not None and keeper.keeps(window) else []


def describe(error: BaseException) -> str:
    """Return one sentence for a person; a stack trace is for *Details*."""
    if isinstance(error, HistomaeError):
        return str(error)
    said = (str(error).strip().splitlines() or [""])[0][:200]
    # PyTorch's own class for a graphics card that is full; it is not imported for this.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "There is not enough memory. Close other programs, or choose less."
    if "torchvision::nms" in said:
        return (
            "torch and torchvision do not fit each other. Run: pip install "
            "--force-reinstall torch torchvision"
        )
    if isinstance(error, OSError) and error.strerror:
        where = f" ({Path(error.filename).name})" if error.filename else ""
        return (
            f"A file cannot be read or written{where}: {error.strerror}. Check that it "
            "is there, that you may use it, and that the disk has room."
        )
    name = type(error).__name__
    return (
        f"Something unforeseen happened ({f'{name}: {said}' if said else name}). Press "
        "Details, and report it."
    )


# ---- one keeper per window: it ends the window's jobs when the window closes


class _Keeper(QObject):
    """Watches one window and ends its jobs when it closes."""

    def __init__(self, window: QWidget) -> None:
        super().__init__()
        self.jobs: list[Job] = []
        self._window = weakref.ref(window)
        self._key = id(window)
        self._closing = False
        window.installEventFilter(self)
        window.destroyed.connect(self._on_gone)
        app = QApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self.end_all)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Ask before a window closes over a training; end the jobs once it closed."""
        if event.type() == QEvent.Type.Close:
            if not self._may_close():
                event.ignore()
                return True
            self._closing = True
            window = self._window()
            if window is None or not window.isVisible():
                self.end_all()  # no Hide will come
        elif event.type() == QEvent.Type.Hide and self._closing:
            self.end_all()
        elif event.type() == QEvent.Type.Show:
            self._closing = False
        return False

    def _may_close(self) -> bool:
        return all(
            job.before_close()
            for job in list(self.jobs)
            if job.before_close is not None
        )

    def _on_gone(self) -> None:
        self.end_all()
        if _keepers.get(self._key) is self:
            del _keepers[self._key]

    def keeps(self, window: QWidget) -> bool:
        """Whether this is the window: ids are used again once a window is gone."""
        return self._window() is window

    def end_all(self) -> None:
        """Cancel and join every job; nobody is told."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job.abandon()
        for job in jobs:
            job._retire()
            if not job.join():
                logger.warning("%s did not stop within %g s.", job.name, JOIN_S)


_keepers: dict[int, _Keeper] = {}


@atexit.register
def _wait_for_threads() -> None:
    """Let the last threads end, after the windows are gone."""
    QThreadPool.globalInstance().waitForDone(round(LEAVE_S * 1000))


def window_of(widget: QWidget) -> QWidget:
    """Return the main window around a widget, else its own window."""
    around = widget
    while around is not None and not isinstance(around, QMainWindow):
        around = around.parentWidget()
    return around if around is not None else widget.window()


def _remember(job: Job, parent: QWidget) -> None:
    window = window_of(parent)
    keeper = _keepers.get(id(window))
    if keeper is None or not keeper.keeps(window):
        keeper = _keepers[id(window)] = _Keeper(window)
    keeper.jobs.append(job)
    parent.destroyed.connect(job.abandon)


def _forget(job: Job) -> None:
    for keeper in _keepers.values():
        if job in keeper.jobs:
            keeper.jobs.remove(job)


def _log_failure(name: str, error: BaseException) -> None:
    if isinstance(error, HistomaeError):
        logger.info("%s: %s", name, error)
    else:
        logger.error("%s failed", name, exc_info=error)
