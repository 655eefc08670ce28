"""Tiles and crops against OpenSlide: how much faster, and are they the same.

Native tiles of JPEG and of JPEG 2000, and crops of 224 pixels at random places, are
read by the package's reader, and by OpenSlide as its users do: the region, as RGB, as
an array. Neither keeps a tile. The rates are of one core: tiles per second of its time,
whatever else the machine does. Readers take turns, and the median counts.

Crops are also cut from aligned regions of 1,024 pixels, sixteen from each: what
training from regions reads.

With ``HISTOMAE_TEST_DATA`` set the JPEG slide is a real one; the JPEG 2000 slide is
made of its pixels, as Aperio would write it.

``--plant`` changes a pixel of every tile that a level was not tried on.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
from figures import Figure, load, options, report, say
from tiled_slides import stained, write_tiled

from histomae.slides import direct
from histomae.slides.slide import Slide
from histomae.slides.tile_cache import TileCache

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

Array = np.ndarray[Any, Any]
Place = tuple[int, int]

CROP_PX, REGION_PX = 224, 1024
CROPS_PER_REGION = (REGION_PX // CROP_PX) ** 2
#: Real slides under the folder of data.
REAL_JPEG = "slides/her2st/her2st-C2.tiff"
#: Side of what is made of pixels of the real slide, or painted.
MADE_PX, QUICK_PX = 2048, 1024


def main() -> int:
    """Run it; return the exit code."""
    arguments = parser().parse_args()
    if arguments.quick:
        arguments.tiles, arguments.turns = 40, 3
    if arguments.plant:
        plant()
    figures = []
    with tempfile.TemporaryDirectory(prefix="reader-speed-") as folder:
        jpeg, jp2 = slides(Path(folder), QUICK_PX if arguments.quick else MADE_PX)
        figures += of_tiles("JPEG", jpeg, arguments, goal=arguments.goal_jpeg)
        figures += of_tiles("JPEG 2000", jp2, arguments, goal=arguments.goal_jp2)
        figures += of_crops("JPEG", jpeg, arguments, arguments.goal_crops_jpeg)
        figures += of_crops("JPEG 2000", jp2, arguments, arguments.goal_crops_jp2)
    return report([load(), *figures], as_json=arguments.json)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    given = options(__doc__)
    given.add_argument("--tiles", type=int, default=300, help="tiles a turn")
    given.add_argument("--turns", type=int, default=7, help="turns of each reader")
    given.add_argument(
        "--goal-jpeg", type=float, default=4.0, help="JPEG tiles: times OpenSlide"
    )
    given.add_argument(
        "--goal-jp2", type=float, default=1.3, help="JPEG 2000 tiles: times OpenSlide"
    )
    given.add_argument(
        "--goal-crops-jpeg", type=float, default=3500, help="crops a second, JPEG"
    )
    given.add_argument(
        "--goal-crops-jp2", type=float, default=400, help="crops a second, JPEG 2000"
    )
    return given


def slides(folder: Path, side: int) -> tuple[Path, Path]:
    """Return a JPEG and a JPEG 2000 slide."""
    data = os.environ.get("HISTOMAE_TEST_DATA")
    real = Path(data) / REAL_JPEG if data else None
    if real is None or not real.is_file():
        say("HISTOMAE_TEST_DATA has no slides: a painted one is read")
        real = write_tiled(folder / "jpeg.svs", [stained(side, side)])
    with Slide.open(real, mpp=0.5) as slide:
        x, y = (max(0, (full - side) // 2) for full in slide.dimensions)
        pixels = slide.read_region((x, y), (side, side), 0.5)
    return real, write_tiled(folder / "jp2.svs", [pixels], "jp2 rgb")


def of_tiles(
    name: str, path: Path, arguments: argparse.Namespace, goal: float
) -> list[Figure]:
    """Read native tiles."""
    say(f"{name}: native tiles of {path.name}")
    slide, oracle = opened(path)
    cols, rows = slide.levels[0].tiles
    step = max(1, cols * rows // arguments.tiles)
    # In the order of the file; all of the slide, glass and tissue.
    places = [(number % cols, number // cols) for number in range(0, cols * rows, step)]
    wide, high = slide.levels[0].tile_px

    def ours(place: Place) -> Array:
        return slide.native_tile(0, *place)

    def theirs(place: Place) -> Array:
        return as_users_do(oracle, (place[0] * wide, place[1] * high), (wide, high))

    differ = 0
    for place in places:
        tile = ours(place)
        height, width = tile.shape[:2]
        differ += int((tile != theirs(place)[:height, :width]).any(-1).sum())
    fast, slow, times = rates(ours, theirs, places, arguments.turns)
    slide.close()
    return [
        Figure(f"{name}: native tiles, OpenSlide", slow, "/s of a core"),
        Figure(f"{name}: native tiles", fast, "/s of a core"),
        Figure(f"{name}: native tiles against OpenSlide", times, "×", at_least=goal),
        Figure(f"{name}: pixels that differ from OpenSlide's", differ, at_most=0),
    ]


def of_crops(
    name: str, path: Path, arguments: argparse.Namespace, goal: float
) -> list[Figure]:
    """Read crops at random places, and from aligned regions."""
    say(f"{name}: crops of {path.name}")
    slide, oracle = opened(path)
    random = np.random.default_rng(0)
    width, height = slide.dimensions
    room = (width - CROP_PX, height - CROP_PX)
    places = [
        tuple(xy) for xy in random.integers(0, room, (arguments.tiles, 2)).tolist()
    ]
    regions = [
        (x // REGION_PX * REGION_PX, y // REGION_PX * REGION_PX)
        for x, y in places[: max(2, len(places) // CROPS_PER_REGION)]
    ]

    def ours(place: Place) -> Array:
        return slide.read_region(place, (CROP_PX, CROP_PX), 0.5)

    def theirs(place: Place) -> Array:
        return as_users_do(oracle, place, (CROP_PX, CROP_PX))

    def aligned(place: Place) -> Array:
        region = slide.read_region(place, (REGION_PX, REGION_PX), 0.5)
        side = REGION_PX // CROP_PX * CROP_PX
        cut = region[:side, :side].reshape(-1, CROP_PX, side // CROP_PX, CROP_PX, 3)
        return cut.swapaxes(1, 2).reshape(-1, CROP_PX, CROP_PX, 3)

    fast, slow, times = rates(ours, theirs, places, arguments.turns)
    dense, _, _ = rates(aligned, theirs, regions, arguments.turns)
    slide.close()
    return [
        Figure(f"{name}: random crops, OpenSlide", slow, "/s of a core"),
        Figure(f"{name}: random crops", fast, "/s of a core"),
        Figure(f"{name}: random crops against OpenSlide", times, "×"),
        Figure(
            f"{name}: crops from aligned regions",
            dense * CROPS_PER_REGION,
            "/s of a core",
            at_least=goal,
        ),
    ]


def opened(path: Path) -> tuple[Slide, openslide.OpenSlide]:
    """Open a slide for both readers; neither keeps a tile."""
    slide = Slide.open(path, mpp=0.5, cache=TileCache(0))
    slide.is_direct(0)  # it proves itself before the clock runs
    oracle = openslide.OpenSlide(path)
    oracle.set_cache(openslide.OpenSlideCache(0))
    return slide, oracle


def as_users_do(oracle: openslide.OpenSlide, place: Place, size: Place) -> Array:
    """Read a region of level 0 with OpenSlide."""
    return np.asarray(oracle.read_region(place, 0, size).convert("RGB"))


def rates(
    ours: Callable[[Place], Array],
    theirs: Callable[[Place], Array],
    places: Sequence[Place],
    turns: int,
) -> tuple[float, float, float]:
    """Return reads per second of one core, of each, and the median of the quotients."""
    pairs = [(_rate(ours, places), _rate(theirs, places)) for _ in range(turns)]
    fast, slow = zip(*pairs, strict=True)
    return median(fast), median(slow), median(one / two for one, two in pairs)


def _rate(read: Callable[[Place], Array], places: Sequence[Place]) -> float:
    begin = time.process_time()
    for place in places:
        read(place)
    return len(places) / (time.process_time() - begin)


def plant() -> None:
    """Let the direct reader be wrong where it was not tried."""
    right = direct.DirectLevel.tile

    def wrong(
        self: direct.DirectLevel, col: int, row: int, *, reduce: int = 1
    ) -> Array | None:
        tile = right(self, col, row, reduce=reduce)
        if tile is None or (col, row) in set(self._samples()):
            return tile
        tile = tile.copy()
        tile[-1, 0, 0] ^= 1
        return tile

    direct.DirectLevel.tile = wrong  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
