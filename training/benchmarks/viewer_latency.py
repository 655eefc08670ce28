"""How long a person waits for the picture: the first one, and after every move.

Measured in the real window, from the act to the frame on the screen that shows what was
asked for: the whole view, at the level that belongs to it.

*First picture*: in a new window a slide is opened as *File > Open* does; in another
one the same picture is added out of memory, and in a third one it is opened by a reader
that has it in memory: that is napari's own share of an opening. In turn with a
slide of 200,000 × 200,000 pixels, one of 10,000 × 10,000 is opened.

*Moves*: jumps, pans and zooms over the large slide, the same for everybody and in turn
with ``--peer napari-wsi``, if that is installed: idle, and while a training that was
started in the Train dock runs.

*Gaps*: while the training runs and the picture is moved without a pause, a timer of
5 ms counts the turns of the window's event loop; then the same over a picture in
memory, which is what drawing alone takes, and over the peer's.

The slides are made on the spot (``made_slides``) unless ``--slide`` names another large
one. ``--plant`` makes every tile late, by 30 ms or ``--late-s``.
"""

from __future__ import annotations

import gc
import importlib.metadata
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from event_loop import (
    QUICK_SETTINGS,
    SETTINGS,
    WINDOW_PX,
    FellShortError,
    Turns,
    _jobs_of,
    p99,
    start_training,
    wait_until,
)
from figures import Figure, load, options, report, say
from made_slides import write_made_slide
from watch import away_from_the_user, end_trainers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from napari.layers import Layer
    from napari.viewer import Viewer

OURS = "napari-histomae"
#: Longest wait for a picture, s.
PATIENCE_S = 600.0
#: Between two moves a person looks at the picture, s.
LOOK_S = 0.15
#: How often the picture is moved while gaps are counted, and how far, screen pixels.
PAN_EVERY_MS, PAN_PX, PANS_ONE_WAY = 50, 60, 40
#: Where that begins, as a share of the picture's width and height, and its pixels per
#: screen pixel; a small picture in memory has less room to be moved in.
PANNED_AT, PANNED_FACTOR, SMALL_FACTOR = 0.4, 1.5, 0.05
IN_MEMORY = "an image in memory"
LARGE, USUAL = (200_000, 200_000), (10_000, 10_000)


class Screen:
    """A window, and the frames that it shows."""

    def __init__(self) -> None:
        import napari

        self.viewer: Viewer = napari.Viewer()
        self.viewer.window.resize(*WINDOW_PX)
        canvas = self.viewer.window._qt_viewer.canvas
        self._began = self._shown = self._changed = 0.0
        canvas._scene_canvas.events.draw.connect(self._on_draw, position="first")
        self._swapped = canvas.native.frameSwapped
        self._swapped.connect(self._on_shown)
        settle()

    def _on_draw(self, _event: Any) -> None:
        self._began = time.perf_counter()

    def _on_shown(self) -> None:
        if self._shown < self._began:  # a frame may be shown again
            self._shown = time.perf_counter()

    def _on_changed(self, _event: Any) -> None:
        self._changed = time.perf_counter()

    def seconds_until_drawn(self, act: Callable[[], Layer]) -> float:
        """Do something that returns a layer; return the time until it is on screen."""
        self._changed = 0.0
        started = time.perf_counter()
        layer = act()
        layer.events.set_data.connect(self._on_changed)
        until = started + PATIENCE_S
        # A frame counts if it was begun after the layer's pixels had changed last: a
        # move is first drawn with the old ones, and they are read after that.
        while not (
            self._shown > self._began > max(started, self._changed) and layer.loaded
        ):
            if time.perf_counter() > until:
                raise FellShortError(f"{layer.name} was not drawn in {PATIENCE_S:g} s")
            process_events(0.05, self._swapped)
        layer.events.set_data.disconnect(self._on_changed)
        return self._shown - started

    def close(self) -> None:
        """Close the window, whatever runs in it."""
        for job in _jobs_of(self.viewer):
            job.before_close = None
        self.viewer.close()


def process_events(most_s: float, *signals: Any) -> None:
    """Let the window live until a signal comes, or the time is over.

    Its loop runs, as it does for a person: otherwise Qt keeps what napari throws away,
    and the wheel that napari turns while it opens a file would turn for ever.
    """
    from qtpy.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    for signal in signals:
        signal.connect(loop.quit)
    QTimer.singleShot(round(most_s * 1000), loop.quit)
    loop.exec_() if hasattr(loop, "exec_") else loop.exec()


def settle(seconds: float = 0.3) -> None:
    """Let the window live for a while."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        process_events(until - time.perf_counter())


def picture_in_memory(path: Path) -> np.ndarray[Any, Any]:
    """Return the coarsest level of a slide as the viewer has it, uint8 (H, W, 3)."""
    from histomae.slides.pyramid import pyramid
    from histomae.slides.slide import Slide

    with Slide.open(path) as slide:
        return np.asarray(pyramid(slide)[-1][:])


# ---- the first picture


def open_as(viewer: Viewer, path: Path, plugin: str) -> Layer:
    """Open a slide as a person does; return its layer."""
    return viewer.open(str(path), plugin=plugin)[-1]


def open_out_of_memory(viewer: Viewer, path: Path, picture: Any) -> Layer:
    """Open a slide as a person does, but have its reader return a picture at once."""
    from napari_histomae import _reader

    with patch.object(_reader, "_read_slide", return_value=[(picture, {}, "image")]):
        return open_as(viewer, path, OURS)


def first_pictures(
    large: Path, usual: Path, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the seconds until the first picture in a new window, of each in turn."""
    from histomae.slides.tile_cache import shared_cache

    in_memory = picture_in_memory(large)
    acts: dict[str, Callable[[Viewer], Layer]] = {
        "memory": lambda viewer: viewer.add_image(in_memory, rgb=True),
        "opened": lambda viewer: open_out_of_memory(viewer, large, in_memory),
        "large": lambda viewer: open_as(viewer, large, OURS),
        "usual": lambda viewer: open_as(viewer, usual, OURS),
    }
    if args.peer:
        acts["peer"] = lambda viewer: open_as(viewer, large, args.peer)
    taken: dict[str, list[float]] = {name: [] for name in acts}
    # The first time, things are imported. A picture in memory needs most of them.
    warming_up = ("memory", "opened") if args.quick else tuple(acts)
    for name in (*warming_up, *args.first * tuple(acts)):
        shared_cache().clear()
        gc.collect()
        screen = Screen()
        settle(0.1 if args.quick else 1.0)
        seconds = screen.seconds_until_drawn(partial(acts[name], screen.viewer))
        screen.close()
        taken[name].append(seconds)
    return {name: seconds[-args.first :] for name, seconds in taken.items()}


# ---- moves


@dataclass(frozen=True)
class Move:
    """Where a view goes: its middle (x, y), level-0 pixels, and those per screen px."""

    kind: str
    xy_l0: tuple[float, float]
    factor: float


def moves_over(size: tuple[int, int], count: int, seed: int) -> list[Move]:
    """Return moves over the middle of a slide: jumps, pans and zooms, always the same.

    Every jump goes where nobody was before.
    """
    random, moves = np.random.default_rng(seed), []
    deepest = max(2.0, min(size) / 2_000)
    xy, factor = np.array(size) / 2, 4.0
    view = np.array([500, 700])
    for number in range(count):
        kind = ("jump", "pan", "pan", "zoom")[number % 4]
        if kind == "jump":
            xy = random.uniform(0.2, 0.8, 2) * size
            factor = float(np.exp(random.uniform(0, np.log(deepest))))
        elif kind == "pan":
            angle = random.uniform(0, 2 * np.pi)
            step = np.array([np.cos(angle), np.sin(angle)])
            xy = xy + random.uniform(0.3, 0.9) * view * factor * step
        else:
            factor *= float(random.choice([0.5, 2.0]))
        xy = xy.clip(0.1 * np.array(size), 0.9 * np.array(size))
        factor = min(max(factor, 0.8), deepest)
        moves.append(Move(kind, (float(xy[0]), float(xy[1])), factor))
    return moves


def look(viewer: Viewer, layer: Layer, move: Move) -> Layer:
    """Move the view."""
    from napari_histomae._layers import camera

    eye, x_y = camera(viewer), move.xy_l0
    eye.center = tuple(layer.data_to_world(x_y[::-1]))[-2:]
    eye.zoom = 1 / (move.factor * abs(float(layer.scale[-1])))
    return layer


def time_moves(
    screens: dict[str, tuple[Screen, Layer]], moves: list[Move]
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the seconds of every move on every screen, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in screens}
    for number, move in enumerate(moves):
        names = list(screens)
        for name in names[:: 1 if number % 2 else -1]:
            screen, layer = screens[name]
            act = partial(look, screen.viewer, layer, move)
            taken[name].append(screen.seconds_until_drawn(act))
            settle(LOOK_S)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def gaps_while_panning(
    screen: Screen, layer: Layer, seconds: float, factor: float = PANNED_FACTOR
) -> Any:
    """Return the gaps (ms) between turns of the event loop while the picture moves."""
    from qtpy.QtCore import QTimer

    from napari_histomae._layers import camera

    x, y = layer.extent.data[1, :-3:-1] * PANNED_AT
    start = float(x), float(y)
    look(screen.viewer, layer, Move("jump", start, factor))
    settle(1.0)
    eye, turns, timer = camera(screen.viewer), Turns(), QTimer()
    pans = iter(range(sys.maxsize))

    def pan() -> None:
        leg = next(pans) // PANS_ONE_WAY % 4
        down, right = ((0, 1), (1, 0), (0, -1), (1, 0))[leg]
        *front, y, x = eye.center
        by = PAN_PX / eye.zoom
        eye.center = (*front, y + down * by, x + right * by)

    timer.timeout.connect(pan)
    timer.start(PAN_EVERY_MS)
    turns.start()
    settle(seconds)
    timer.stop()
    return turns.stop()


# ---- the whole of it


def run(folder: Path, args: argparse.Namespace) -> list[Figure]:
    """Measure everything; return the figures."""
    say("making the slides")
    large = args.slide or write_made_slide(folder / "large.svs", args.size)
    usual = write_made_slide(folder / "usual.svs", USUAL, factors=(1, 4, 16))
    if args.plant:
        plant(args.late_s)
    figures = [load()]
    say(f"first pictures, {args.first} of each")
    figures += first_figures(first_pictures(large, usual, args), args)
    screen, peer = Screen(), Screen() if args.peer else None
    screens = [screen, *filter(None, [peer])]
    try:
        moves = moves_over(args.size, args.moves, seed=0)
        say(f"{len(moves)} moves, idle")
        layer = open_as(screen.viewer, large, OURS)
        shown = {OURS: (screen, layer)}
        if peer is not None:
            shown[args.peer] = (peer, open_as(peer.viewer, large, args.peer))
        settle(1.0)
        figures += move_figures("idle", time_moves(shown, moves), args)
        if not args.no_training:
            say("waiting for the first step of a training")
            # Not in the first window, which has a large slide to train on. That one
            # stays: where two are open, napari 0.9 draws none after one has lost a
            # layer.
            screen = Screen()
            screens.append(screen)
            settings = QUICK_SETTINGS if args.quick else SETTINGS
            dock = start_training(screen.viewer, args.train_on or usual, settings)
            layer = open_as(screen.viewer, large, OURS)
            shown[OURS] = (screen, layer)
            settle(1.0)
            say(f"{len(moves)} moves, training")
            # Others: who stands where the first move goes would never be drawn anew.
            moves = moves_over(args.size, args.moves, seed=1)
            figures += move_figures("training", time_moves(shown, moves), args)
            say(f"panning for {args.seconds:g} s each")
            steps = dock.plot.points
            gaps = {OURS: gaps_while_panning(screen, layer, args.seconds)}
            wait_until(lambda: dock.plot.points > steps or not dock.running, dock)
            if not dock.running:
                raise FellShortError(f"the training ended: {dock.state.text}")
            steps = dock.plot.points - steps
            if peer is not None:
                gaps[args.peer] = gaps_while_panning(*shown[args.peer], args.seconds)
            screens.append(Screen())
            layer = screens[-1].viewer.add_image(picture_in_memory(large), rgb=True)
            gaps[IN_MEMORY] = gaps_while_panning(
                screens[-1], layer, args.seconds, SMALL_FACTOR
            )
            figures += gap_figures(gaps, steps, args)
    finally:
        # First the trainer: a window over a training asks what to do with it.
        end_trainers(str(folder))
        for one in screens:
            one.close()
    return [*figures, load()]


def plant(late_s: float) -> None:
    """Make every tile of a file late."""
    from histomae.slides.slide_file import SlideFile

    seen_now = SlideFile._now

    def late(file: Any) -> Any:
        time.sleep(late_s)
        return seen_now(file)

    SlideFile._now = late  # type: ignore[method-assign]


def first_figures(
    taken: dict[str, list[float]], args: argparse.Namespace
) -> list[Figure]:
    """Return what is said of the first pictures."""
    median = {name: float(np.median(seconds)) for name, seconds in taken.items()}
    names = {
        "memory": "first picture, an image in memory",
        "opened": "first picture, an image in memory opened by a reader",
        "usual": "first picture, a slide of 10,000²",
        "large": "first picture, the large slide",
        "peer": f"first picture, the large slide, {args.peer}",
    }
    figures = [Figure(names[name], value, "s") for name, value in median.items()]
    return [
        *figures,
        Figure(
            "first picture, against an image in memory",
            median["large"] / median["memory"],
            "x",
            args.goal_first,
        ),
        Figure(
            "first picture, against that one opened",
            median["large"] / median["opened"],
            "x",
        ),
        Figure(
            "first picture, large against 10,000²",
            median["large"] / median["usual"],
            "x",
            args.goal_huge,
        ),
    ]


def move_figures(
    when: str, taken: dict[str, np.ndarray[Any, Any]], args: argparse.Namespace
) -> list[Figure]:
    """Return what is said of the moves; ratios where there is a peer."""
    figures = []
    for percent, goal in ((50, args.goal_p50), (95, args.goal_p95)):
        ms = {
            name: float(np.percentile(t, percent)) * 1000 for name, t in taken.items()
        }
        figures += [
            Figure(f"move until drawn, {when}, p{percent}, {name}", value, "ms")
            for name, value in ms.items()
        ]
        if args.peer:
            figures.append(
                Figure(
                    f"{args.peer} against ours, {when}, p{percent}",
                    ms[args.peer] / ms[OURS],
                    "x",
                    None,
                    goal,
                )
            )
    return figures


def gap_figures(
    gaps: dict[str, Any], steps: int, args: argparse.Namespace
) -> list[Figure]:
    """Return what is said of the gaps (ms) between turns of the event loop."""
    ours = gaps[OURS]
    return [
        Figure("steps of the training meanwhile", steps, at_least=1),
        Figure("longest gap, panning", float(ours.max()), "ms", args.goal_longest_ms),
        Figure("99th percentile of the gaps", p99(ours), "ms", args.goal_gap_ms),
        *(
            Figure(f"{what}, {name}", value, "ms")
            for name, found in gaps.items()
            if name != OURS
            for what, value in (
                ("longest gap, panning", float(found.max())),
                ("99th percentile of the gaps", p99(found)),
            )
        ),
        Figure(
            f"99th percentile of the gaps, against {IN_MEMORY}",
            p99(ours) / p99(gaps[IN_MEMORY]),
            "x",
        ),
    ]


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--peer", help="a plugin to compare with, such as napari-wsi")
    parser.add_argument("--slide", type=Path, help="a large slide to move over")
    parser.add_argument("--train-on", type=Path, help="a slide to train on meanwhile")
    parser.add_argument("--first", type=int, help="first pictures (9; quick: 2)")
    parser.add_argument("--moves", type=int, help="moves (60; quick: 8)")
    parser.add_argument("--seconds", type=float, help="of panning (30; quick: 3)")
    parser.add_argument("--no-training", action="store_true", help="only the idle part")
    parser.add_argument("--late-s", type=float, default=0.030, help="of every tile")
    parser.add_argument("--goal-first", type=float, default=1.15)
    parser.add_argument("--goal-huge", type=float, default=1.2)
    parser.add_argument("--goal-p50", type=float, default=2.0)
    parser.add_argument("--goal-p95", type=float, default=3.0)
    parser.add_argument("--goal-gap-ms", type=float, default=60.0)
    parser.add_argument("--goal-longest-ms", type=float, default=150.0)
    args = parser.parse_args()
    args.first = args.first or (2 if args.quick else 9)
    args.moves = args.moves or (8 if args.quick else 60)
    args.seconds = args.seconds or (3.0 if args.quick else 30.0)
    args.size = LARGE
    if args.slide is not None:
        from histomae.slides.slide import Slide

        with Slide.open(args.slide) as slide:
            args.size = slide.dimensions
    if args.peer:
        try:
            say(f"{args.peer} {importlib.metadata.version(args.peer)}")
        except importlib.metadata.PackageNotFoundError:
            parser.error(f"{args.peer} is not installed. Install it, or leave it out.")
    try:
        with away_from_the_user() as folder:
            figures = run(folder, args)
    except FellShortError as error:
        say(f"FAILED: {error}")
        return 1
    return report(figures, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
