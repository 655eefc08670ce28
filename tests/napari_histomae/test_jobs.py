"""Long work in a thread: what it says arrives, and it always ends."""

import os
import subprocess
import sys
import threading
import time

import pytest
from napari.utils import progress
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QMainWindow, QWidget

from histomae.errors import SlideError
from histomae.events import Note, Progress
from napari_histomae._jobs import describe, running_jobs, start_job


class Heard:
    """Lists what a job says, and whether it said it on the window's thread."""

    def __init__(self):
        self.events, self.ends, self.threads = [], [], set()

    def calls(self):
        return {
            "on_event": self._on_event,
            "on_done": lambda value: self._end("done", value),
            "on_failed": lambda error: self._end("failed", error),
            "on_cancelled": lambda: self._end("cancelled", None),
        }

    def _on_event(self, event):
        self.threads.add(threading.current_thread())
        self.events.append(event)

    def _end(self, kind, value):
        self.threads.add(threading.current_thread())
        self.ends.append((kind, value))


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def window(qtbot):
    main = QMainWindow()
    main.setCentralWidget(QWidget())
    qtbot.addWidget(main)
    return main


def start(window, make, heard):
    return start_job(window.centralWidget(), make, name="a test", **heard.calls())


def forever(closed=None):
    try:
        while True:
            time.sleep(0.005)
            yield Note("on it")
    finally:
        if closed is not None:
            closed.append(threading.current_thread())


def test_events_arrive_in_order_on_the_windows_thread(window, heard, qtbot):
    def work():
        for number in range(5000):
            yield Progress("counting", number + 1, 5000)
        return "result"

    job = start(window, work, heard)
    qtbot.waitUntil(lambda: bool(heard.ends))
    assert [event.done for event in heard.events] == list(range(1, 5001))
    assert heard.ends == [("done", "result")]
    assert heard.threads == {threading.main_thread()}
    assert not job.running
    assert running_jobs() == []


def test_the_activity_bar_is_there_as_long_as_something_is_counted(
    window, heard, qtbot
):
    go_on = threading.Event()

    def work():
        yield Progress("finding tissue", 1, 2)
        go_on.wait()
        yield Progress("finding tissue", 2, 2)
        yield from forever()  # a training is followed so, for hours

    def bars():
        return [bar.desc for bar in progress._all_instances]

    job = start(window, work, heard)
    qtbot.waitUntil(lambda: bars() == ["a test"])
    go_on.set()
    qtbot.waitUntil(lambda: not bars())
    assert job.running
    job.cancel()
    qtbot.waitUntil(lambda: bool(heard.ends))


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, SlideError])
@pytest.mark.parametrize("events", [0, 1])
def test_every_error_is_told_once(window, heard, qtbot, kind, events):
    def work():
        for _ in range(events):
            yield Note("before")
        raise kind("mat1 and mat2 do not fit")
        yield

    start(window, work, heard)
    qtbot.waitUntil(lambda: bool(heard.ends))
    qtbot.wait(20)
    assert [end[0] for end in heard.ends] == ["failed"]
    assert type(heard.ends[0][1]) is kind
    assert len(heard.events) == events


def test_an_error_before_the_generator_exists_is_told(window, heard, qtbot):
    def work():
        raise SlideError("There is no slide. Open one.")

    start(window, work, heard)
    qtbot.waitUntil(lambda: bool(heard.ends))
    assert heard.ends[0][0] == "failed"


def test_cancel_closes_the_generator_in_its_thread_before_it_is_told(
    window, heard, qtbot
):
    closed = []
    job = start(window, lambda: forever(closed), heard)
    qtbot.waitUntil(lambda: len(heard.events) > 2)
    job.cancel()
    qtbot.waitUntil(lambda: bool(heard.ends))
    assert heard.ends == [("cancelled", None)]
    assert len(closed) == 1
    assert closed[0] is not threading.main_thread()


def test_a_flood_of_events_leaves_the_window_alive(window, heard, qtbot):
    """In 10 ms there is time for five events of 2 ms; then the window has its turn."""

    def work():
        for _ in range(300):
            yield Note("quick")

    at_once, since_a_turn = [], []

    def on_event(event):
        if not since_a_turn:
            QTimer.singleShot(0, turn)
        since_a_turn.append(event)
        time.sleep(0.002)

    def turn():
        at_once.append(len(since_a_turn))
        since_a_turn.clear()

    start_job(
        window.centralWidget(),
        work,
        name="a flood",
        **heard.calls() | {"on_event": on_event},
    )
    qtbot.waitUntil(lambda: bool(heard.ends) and not since_a_turn)
    assert sum(at_once) == 300
    assert max(at_once) <= 12  # a slice, and at most another before the turn


def test_a_closing_window_cancels_and_joins_and_tells_nobody(window, heard, qtbot):
    closed = []
    job = start(window, lambda: forever(closed), heard)
    qtbot.waitUntil(lambda: len(heard.events) > 2)
    window.close()
    assert closed
    assert not job.running
    qtbot.wait(50)
    assert heard.ends == []


def test_a_shown_window_ends_its_jobs_only_once_it_closed(window, heard, qtbot):
    window.show()
    qtbot.waitExposed(window)
    job = start(window, forever, heard)
    qtbot.waitUntil(lambda: len(heard.events) > 2)
    window.close()
    assert not job.running


def test_a_job_may_keep_its_window_open(window, heard, qtbot):
    window.show()
    qtbot.waitExposed(window)
    job = start(window, forever, heard)
    asked = []
    job.before_close = lambda: asked.append(True) or len(asked) > 1
    assert not window.close()
    assert job.running
    assert window.close()
    assert not job.running
    assert len(asked) == 2


def test_a_new_window_is_not_taken_for_one_that_is_gone(heard, qtbot):
    """Windows are freed at once but die later, and a new one may have the same id."""
    for _ in range(20):
        window = QMainWindow()
        window.setCentralWidget(QWidget())
        begun = Heard()
        start(window, forever, begun)
        qtbot.waitUntil(lambda begun=begun: len(begun.events) > 0)
        window.close()
        window.deleteLater()
        del window
    last = QMainWindow()
    qtbot.addWidget(last)
    last.setCentralWidget(QWidget())
    job = start(last, forever, heard)
    qtbot.waitUntil(lambda: len(heard.events) > 5)
    assert job.running


def test_many_followers_do_not_fill_the_pool(window, heard, qtbot):
    jobs = [start(window, forever, Heard()) for _ in range(6)]

    def work():
        yield Note("mine")

    start(window, work, heard)
    qtbot.waitUntil(lambda: bool(heard.ends))
    for job in jobs:
        job.cancel()
    qtbot.waitUntil(lambda: not running_jobs())


def test_a_viewer_that_closes_ends_its_jobs(make_napari_viewer, heard, qtbot):
    viewer = make_napari_viewer()
    dock = QWidget()
    viewer.window.add_dock_widget(dock)
    closed = []
    job = start_job(dock, lambda: forever(closed), name="a test", **heard.calls())
    qtbot.waitUntil(lambda: len(heard.events) > 2)
    viewer.close()
    assert not job.running
    assert closed


DEAF = """
import time
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QMainWindow
from napari_histomae import _jobs

def deaf():
    begin = time.monotonic()
    while time.monotonic() - begin < 1:
        sum(range(10_000))  # in Python, where a thread would be cut off
    yield

_jobs.JOIN_S = 0.1
app = QApplication([])
window = QMainWindow()
window.show()
_jobs.start_job(window, deaf, name="deaf")
QTimer.singleShot(100, window.close)
app.exec()
"""


def test_a_program_that_leaves_waits_for_what_does_not_hear():
    """Else the interpreter would be torn down beneath the thread: a crash."""
    done = subprocess.run(
        [sys.executable, "-c", DEAF],
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        check=False,
    )
    assert done.returncode == 0


class OutOfMemoryError(RuntimeError):
    """Stands for PyTorch's."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SlideError("It is gone. Open another."), "It is gone. Open another."),
        (RuntimeError("shape mismatch\nmore"), "(RuntimeError: shape mismatch). Press"),
        (KeyError(), "(KeyError). Press Details"),
        (MemoryError(), "not enough memory"),
        (OutOfMemoryError("CUDA out of memory"), "not enough memory"),
        (OSError(28, "No space left", "/runs/a.bin"), "(a.bin): No space left."),
        (RuntimeError("operator torchvision::nms does not exist"), "--force-reinstall"),
    ],
)
def test_every_error_is_one_sentence_that_says_what_to_do(error, says):
    assert says in describe(error)
    assert "\n" not in describe(error)
