"""A slide that goes away while it is read: nothing crashes, and it reads on when back.

While a slide is looked at, predicted on or trained on, its file is cut short, deleted,
renamed away or made unreadable, and a moment later it is there again as it was. The
readers may fail only by ``SlideError`` meanwhile. What counts is how long after the
file's return a place that was never read before can be read.

Then slides are opened and closed a thousand times, and read as often as one likes
(``--reads``): descriptors, threads and memory must be where they were.

Readers run in a process of their own, as a user who owns nothing else: for the
administrator no file is unreadable.

``--plant`` keeps the handle of OpenSlide after an error, which is then dead.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from figures import Figure, load, options, report, say
from tiled_slides import stained, write_tiled

from histomae.errors import SlideError
from histomae.infer.tiles import read_tiles
from histomae.learn.crops import CropReader
from histomae.slides.crops import CropManifest, SlideEntry
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.oracle import Oracle
from histomae.slides.pyramid import pyramid
from histomae.slides.slide import Slide
from histomae.slides.tile_cache import TileCache

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

FAULTS = ("unreadable", "cut short", "deleted", "renamed away")
#: A user without rights, where there are users by number.
NOBODY = 65534
#: A fault lasts so long, and the readers read so long between faults, seconds.
FAULT_S, REST_S = 0.05, 0.03
#: With --quick faults are few: each lasts until it is noticed, but no longer, seconds.
UNNOTICED_S = 1.0
TILE_PX = 64
MB = 1e6


def main() -> int:
    """Run it; return the exit code."""
    arguments = parser().parse_args()
    if arguments.quick:
        arguments.count, arguments.opens, arguments.reads = 2, 60, 1500
    with tempfile.TemporaryDirectory(prefix="slide-faults-") as folder:
        told, status = in_a_process(arguments, Path(folder))
    figures = [
        load(),
        Figure("ways to go away, times what is done meanwhile", told.get("ways", 0)),
        Figure("faults", told.get("faults", 0)),
        Figure("of them noticed by a reader", told.get("noticed", 0), at_least=1),
        Figure("crashes", int(status != 0), at_most=0),
        Figure("failures that are no SlideError", told.get("strangers", -1), at_most=0),
        Figure("reads of wrong pixels", told.get("wrong", -1), at_most=0),
        Figure(
            "longest time until it reads again",
            told.get("longest_s", float("nan")),
            "s",
            at_most=arguments.goal_s,
        ),
        Figure("opens and closes", told.get("opens", 0)),
        Figure("descriptors more than before", told.get("files", -1), at_most=0),
        Figure("threads more than before", told.get("threads", -1), at_most=0),
        Figure("reads", told.get("reads", 0)),
        Figure(
            "memory more after them",
            told.get("grown_mb", float("nan")),
            "MB",
            at_most=arguments.goal_mb,
        ),
    ]
    return report(figures, as_json=arguments.json)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    given = options(__doc__)
    given.add_argument("--count", type=int, default=100, help="faults of each kind")
    given.add_argument("--opens", type=int, default=1000, help="opens and closes")
    given.add_argument("--reads", type=int, default=100_000, help="reads")
    given.add_argument("--late-s", type=float, default=15, help="longest wait for it")
    given.add_argument("--goal-s", type=float, default=2, help="until it reads again")
    given.add_argument("--goal-mb", type=float, default=5, help="growth of memory")
    return given


def in_a_process(
    arguments: argparse.Namespace, folder: Path
) -> tuple[dict[str, Any], int]:
    """Do all of it in a child without rights; return what it told and its status."""
    out, into = os.pipe()
    process = os.fork()
    if not process:
        os.close(out)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        if arguments.plant:
            Oracle.close = lambda _: None  # type: ignore[method-assign]
        told: dict[str, Any] = {}
        try:
            told |= faults(arguments, folder)
            told |= opens(arguments, folder)
            told |= reads(arguments, folder)
        finally:
            os.write(into, json.dumps(told).encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(process, 0)[1]
    return json.loads(said or b"{}"), status


# ---- faults


class Reader(threading.Thread):
    """Reads a slide all the time, each time another place.

    ``read`` reads the place of a number, and returns whether its pixels are right.
    """

    def __init__(self, read: Callable[[int], bool]) -> None:
        super().__init__(daemon=True)
        self._read = read
        self._is_over = threading.Event()
        self.good = threading.Condition()
        self.last_good = 0.0
        self.refused = self.wrong = 0
        self.strangers: list[str] = []

    def run(self) -> None:
        """Read until :meth:`stop`."""
        for number in count():
            if self._is_over.is_set():
                return
            begin = time.monotonic()
            try:
                self.wrong += not self._read(number)
            except SlideError:
                self.refused += 1
                time.sleep(0.005)
                continue
            except Exception as error:  # noqa: BLE001 - what is looked for
                self.strangers.append(repr(error))
                continue
            with self.good:
                self.last_good = begin
                self.good.notify_all()

    def notices_more_than(self, refused: int) -> None:
        """Wait for one more read that is refused, if it does not take long."""
        give_up = time.monotonic() + UNNOTICED_S
        while self.refused <= refused and time.monotonic() < give_up:
            time.sleep(0.002)

    def reads_again(self, since: float, late_s: float) -> float:
        """Return how long after a time a read that began later came out well.

        ``late_s``: for longer nobody waits.
        """
        with self.good:
            self.good.wait_for(lambda: self.last_good > since, late_s)
        return time.monotonic() - since

    def stop(self) -> None:
        """End the thread."""
        self._is_over.set()
        self.join()


def faults(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let a slide go away and come back while it is read."""
    path = write_tiled(
        folder / "slide.svs",
        [stained(1024, 768), stained(256, 192, 1)],
        tile=(TILE_PX, TILE_PX),
    )
    content = path.read_bytes()
    told: dict[str, Any] = {"ways": 0, "faults": 0, "noticed": 0, "longest_s": 0.0}
    told |= {"strangers": 0, "wrong": 0}
    for fault, user in product(FAULTS, (view, inference, training)):
        longest = 0.0
        # OpenSlide reads what is not read directly: both must recover.
        for direct in (True, False):
            with user(path, direct) as read:
                reader = Reader(read)
                reader.start()
                for _ in range(-(-arguments.count // 2)):
                    time.sleep(REST_S)
                    begin = reader.refused
                    with away(path, content, fault):
                        time.sleep(FAULT_S)
                        if arguments.quick:
                            reader.notices_more_than(begin)
                    took = reader.reads_again(time.monotonic(), arguments.late_s)
                    longest = max(longest, took)
                    told["noticed"] += reader.refused > begin
                    told["faults"] += 1
                    if longest > arguments.late_s:
                        break
                reader.stop()
            told["strangers"] += len(reader.strangers)
            told["wrong"] += reader.wrong
            for line in reader.strangers[:3]:
                say(f"{user.__name__}, {fault}: {line}")
        told["ways"] += 1
        told["longest_s"] = max(told["longest_s"], longest)
        say(f"{user.__name__}, {fault}: reads again after {longest:.2f} s at most")
        if longest > arguments.late_s:
            break
    return told


@contextmanager
def away(path: Path, content: bytes, fault: str) -> Iterator[None]:
    """Take a file away; bring it back at the end."""
    elsewhere = path.with_suffix(".elsewhere")
    if fault == "cut short":
        os.truncate(path, len(content) // 3)
    elif fault == "deleted":
        path.unlink()
    elif fault == "renamed away":
        path.rename(elsewhere)
    else:
        path.chmod(0)
    try:
        yield
    finally:
        if fault == "cut short":
            path.write_bytes(content)
        elif fault == "deleted":
            elsewhere.write_bytes(content)
            elsewhere.rename(path)
        elif fault == "renamed away":
            elsewhere.rename(path)
        else:
            path.chmod(0o600)


@contextmanager
def view(path: Path, direct: bool) -> Iterator[Callable[[int], bool]]:
    """Look at places of the viewer's pyramid; what cannot be read is marked, once."""
    truth = whole(path)
    with Slide.open(path, cache=TileCache(0), direct=direct) as slide:

        def read(number: int) -> bool:
            failed: list[SlideError] = []
            level = pyramid(slide, cache=TileCache(0), on_error=failed.append)[0]
            y, x = place(number, truth.shape[:2])
            seen = np.asarray(level[y : y + TILE_PX, x : x + TILE_PX])
            if failed:
                raise failed[0]
            return np.array_equal(seen, truth[y : y + TILE_PX, x : x + TILE_PX])

        yield read


@contextmanager
def inference(path: Path, direct: bool) -> Iterator[Callable[[int], bool]]:
    """Read batches of tiles, as prediction does."""
    truth = whole(path)
    with Slide.open(path, cache=TileCache(0), direct=direct) as slide:
        grid = TileGrid.over(slide, TileSpec(TILE_PX, slide.mpp[0]))
        cells = grid.all_cells()

        def read(number: int) -> bool:
            wanted = cells[[number % len(cells), number * 7 % len(cells)]]
            for batch in read_tiles(slide, grid, wanted, batch_size=2):
                for tile, index in zip(batch.tiles, batch.index, strict=True):
                    row, col = wanted[index] * TILE_PX
                    if not np.array_equal(
                        tile, truth[row : row + TILE_PX, col : col + TILE_PX]
                    ):
                        return False
                if len(batch.unreadable):
                    raise SlideError("Some tiles could not be read.")
            return True

        yield read


@contextmanager
def training(path: Path, direct: bool) -> Iterator[Callable[[int], bool]]:
    """Read batches of crops, as training does: others stand in for what is unread."""
    truth = whole(path)
    with Slide.open(path, cache=TileCache(0), direct=direct) as slide:
        corners = np.argwhere(np.ones((10, 14), bool))[:, ::-1] * 64.0 + 13
        manifest = CropManifest(
            slides=(SlideEntry(str(path), slide.slide_id, *slide.mpp, "file"),),
            slide_index=np.zeros(len(corners), np.int64),
            xy_l0=corners,
            held_out=np.zeros(len(corners), bool),
            crop_px=TILE_PX,
            mpp=slide.mpp[0],
            region_xy_l0=corners,
            region_px=TILE_PX,
        )
        everything = [
            truth[y : y + TILE_PX, x : x + TILE_PX].tobytes()
            for x, y in corners.astype(int).tolist()
        ]
        with CropReader([slide], manifest, memory_bytes=0) as reader:

            def read(number: int) -> bool:
                batch = (np.arange(4) + 4 * number) % len(corners)
                (crops,) = (
                    ready for ready in reader.stream([batch]) if ready is not None
                )
                right = [everything[index] for index in batch]
                got = [crop.tobytes() for crop in crops]
                if any(crop not in right for crop in got):
                    return all(crop in everything for crop in got)
                if got != right:
                    raise SlideError("Others stood in for some crops.")
                return True

            yield read


def whole(path: Path) -> np.ndarray[Any, Any]:
    """Return level 0 as OpenSlide reads it."""
    with Slide.open(path, cache=TileCache(0), direct=False) as slide:
        return slide.read_scaled((0, 0), slide.dimensions, (1, 1))


def place(number: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a place (y, x), another one for each number."""
    random = np.random.default_rng(number)
    y, x = random.integers(0, [side - TILE_PX for side in shape])
    return int(y), int(x)


# ---- what must not grow


def opens(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Open a slide, read it, and close it, over and over."""
    path = folder / "slide.svs"

    def once() -> None:
        with Slide.open(path, cache=TileCache(1 << 20)) as slide:
            slide.read_scaled((100, 100), (50, 50), (1, 1))
            slide.native_tile(0, 1, 1)

    process = psutil.Process()
    for _ in range(10):
        once()
    gc.collect()
    files, threads = process.num_fds(), process.num_threads()
    for _ in range(arguments.opens):
        once()
    gc.collect()
    return {
        "opens": arguments.opens,
        "files": process.num_fds() - files,
        "threads": process.num_threads() - threads,
    }


def reads(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Read tiles and regions of a slide, over and over."""
    process = psutil.Process()
    with Slide.open(folder / "slide.svs", cache=TileCache(1 << 20)) as slide:
        cols, rows = slide.levels[0].tiles

        def many(numbers: range) -> None:
            for number in numbers:
                if number % 10:
                    slide.native_tile(0, number % cols, number // cols % rows)
                else:
                    xy = (number * 37 % 900, number * 53 % 700)
                    slide.read_region(xy, (TILE_PX, TILE_PX), slide.mpp[0])

        many(range(min(2000, arguments.reads)))
        before = process.memory_info().rss
        many(range(arguments.reads))
        grown = process.memory_info().rss - before
    return {"reads": arguments.reads, "grown_mb": grown / MB}


if __name__ == "__main__":
    sys.exit(main())
