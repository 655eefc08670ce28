"""Does the window stay alive while a pretraining runs? Measured in the real window.

A slide is opened in napari, *Start* is pressed in the Train dock, and from the first
step on a timer of 5 ms counts the turns of the window's event loop. A *gap* is the time
between two successive calls of that timer: 5 ms where nothing else happens; whoever
presses a key within a gap waits for its end. Then *Stop and keep* is pressed, and the
time until the dock is idle again is taken.

The slide is the synthetic sample unless ``--slide`` names another. ``--pan`` moves the
picture all the while, as a person does who looks around. ``--plant`` blocks the window
for 150 ms four times a second.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from figures import Figure, load, options, report, say
from trainers import make_slide
from watch import away_from_the_user, end_trainers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from napari.viewer import Viewer

    from napari_histomae._widgets.train import TrainDock

TICK_MS = 5
#: What --plant does, and how often it begins.
BLOCK_S, BLOCK_EVERY_MS = 0.150, 250
#: How often --pan moves the picture, and how far, screen pixels.
PAN_EVERY_MS, PAN_PX = 50, 20
#: Longest wait for the trainer's first step, or its end, s.
PATIENCE_S = 900.0
#: A training that is far from its end when the measurement is over.
SETTINGS = {"epochs": "100000"}
#: The same, with steps of a few milliseconds.
QUICK_SETTINGS = {
    "epochs": "100000",
    "tile_px": "64",
    "crops_per_slide": "40",
    "batch_size": "8",
}
WINDOW_PX = (1280, 800)


class FellShortError(Exception):
    """The training did not do what the measurement needs."""


class Turns:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.times: list[float] = []
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(lambda: self.times.append(time.perf_counter()))

    def start(self) -> None:
        """Begin to count."""
        self.times.clear()
        self._timer.start(TICK_MS)

    def stop(self) -> np.ndarray[Any, Any]:
        """Return the gaps, ms."""
        self._timer.stop()
        return np.diff(self.times) * 1000


# ---- the window


def wait_until(
    ready: Callable[[], bool], dock: TrainDock, *, most_s: float = PATIENCE_S
) -> None:
    """Let the window live until something is so.

    Raises
    ------
    FellShortError
        If it is not so in time.
    """
    from qtpy.QtCore import QEventLoop, QTimer

    until = time.monotonic() + most_s
    loop, look = QEventLoop(), QTimer()
    look.timeout.connect(
        lambda: loop.quit() if ready() or time.monotonic() > until else None
    )
    look.start(TICK_MS)
    loop.exec_() if hasattr(loop, "exec_") else loop.exec()
    look.stop()
    if not ready():
        raise FellShortError(f"waited {most_s:g} s; the dock says: {dock.state.text}")


def start_training(viewer: Viewer, slide: Path, settings: dict[str, str]) -> TrainDock:
    """Open a slide and press *Start*; return the dock once it shows a step."""
    from napari_histomae._session import Session
    from napari_histomae._widgets.train import TrainDock

    dock = TrainDock(viewer)
    viewer.window.add_dock_widget(dock, name="Train", area="right")
    Session.of(viewer).open_paths([slide])
    for name, text in settings.items():
        dock.settings.edit(name, text)
    wait_until(
        lambda: dock.slides.survey.tiles is not None and dock.start_button.isEnabled(),
        dock,
    )
    dock.start_button.click()
    wait_until(lambda: dock.plot.points > 0 or not dock.running, dock)
    if not dock.running:
        raise FellShortError(f"no training: {dock.state.text}")
    return dock


def measure(
    viewer: Viewer, dock: TrainDock, args: argparse.Namespace
) -> tuple[np.ndarray[Any, Any], int, float]:
    """Return the gaps (ms), the steps made meanwhile, and what Stop took (s)."""
    from qtpy.QtCore import QTimer

    turns, before = Turns(), dock.plot.points
    disturbances = []
    if args.plant:
        disturbances.append((BLOCK_EVERY_MS, lambda: time.sleep(BLOCK_S)))
    if args.pan:
        disturbances.append((PAN_EVERY_MS, pan_of(viewer)))
    timers = []
    for every_ms, act in disturbances:
        timer = QTimer()
        timer.timeout.connect(act)
        timer.start(every_ms)
        timers.append(timer)
    turns.start()
    until = time.monotonic() + args.seconds
    wait_until(
        # A busy machine may make no step in that time.
        lambda: (
            (time.monotonic() > until and dock.plot.points > before) or not dock.running
        ),
        dock,
        most_s=args.seconds + PATIENCE_S,
    )
    gaps = turns.stop()
    for timer in timers:
        timer.stop()
    if not dock.running:
        raise FellShortError(f"the training ended by itself: {dock.state.text}")
    steps = dock.plot.points - before
    pressed = time.monotonic()
    dock.stop_button.click()
    wait_until(lambda: not dock.running, dock)
    return gaps, steps, time.monotonic() - pressed


def pan_of(viewer: Viewer) -> Callable[[], None]:
    """Return a function that moves the picture a little, to and fro."""
    from napari_histomae._layers import camera

    eye, calls = camera(viewer), iter(range(sys.maxsize))
    eye.zoom *= 3

    def pan() -> None:
        *front, y, x = eye.center
        to = 1 if next(calls) // 20 % 2 else -1
        eye.center = (*front, y, x + to * PAN_PX / eye.zoom)

    return pan


def run(folder: Path, slide: Path, args: argparse.Namespace) -> list[Figure]:
    """Train, measure, and return the figures."""
    import napari

    before = load()
    viewer = napari.Viewer()
    viewer.window.resize(*WINDOW_PX)
    settings = QUICK_SETTINGS if args.quick else SETTINGS
    say(f"{slide.name}: waiting for the first step")
    try:
        dock = start_training(viewer, slide, settings)
        say(f"counting for {args.seconds:g} s")
        gaps, steps, stop_s = measure(viewer, dock, args)
        say(dock.state.text)
    finally:
        # First the trainer: a window over a training asks what to do with it.
        end_trainers(str(folder))
        for job in _jobs_of(viewer):
            job.before_close = None
        viewer.close()
    frozen = gaps[gaps > args.goal_ms].sum() / gaps.sum() * 100
    return [
        before,
        load(),
        Figure("turns of the event loop", len(gaps), at_least=1),
        Figure("steps of the training meanwhile", steps, at_least=1),
        Figure("median gap", float(np.median(gaps)), "ms"),
        Figure("longest gap", float(gaps.max()), "ms"),
        Figure(f"share of the time in gaps over {args.goal_ms:g} ms", frozen, "%"),
        Figure("99th percentile of the gaps", p99(gaps), "ms", args.goal_ms),
        Figure("from Stop to an idle dock", stop_s, "s", args.goal_stop_s),
    ]


def p99(gaps: np.ndarray[Any, Any]) -> float:
    """Return the 99th percentile."""
    return float(np.percentile(gaps, 99))


def _jobs_of(viewer: Viewer) -> list[Any]:
    from napari_histomae._jobs import running_jobs

    return running_jobs(viewer.window._qt_window)


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--slide", type=Path, help="a slide to train on")
    parser.add_argument("--seconds", type=float, help="how long (60; quick: 3)")
    parser.add_argument("--goal-ms", type=float, default=100.0)
    parser.add_argument("--goal-stop-s", type=float, default=2.0)
    parser.add_argument("--pan", action="store_true", help="move the picture meanwhile")
    args = parser.parse_args()
    args.seconds = args.seconds or (3.0 if args.quick else 60.0)
    slide = args.slide
    if slide is None and not args.quick:
        from histomae.slides.sample import sample_slide

        say("making the sample slide, unless it is there")
        slide = sample_slide().slide_path
    try:
        with away_from_the_user() as folder:
            figures = run(folder, slide or make_slide(folder / "a.tiff"), args)
    except FellShortError as error:
        say(f"FAILED: {error}")
        return 1
    return report(figures, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
