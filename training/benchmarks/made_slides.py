"""Slides of any size, made in a moment: a few tiles are drawn, and used everywhere.

A BigTIFF names the place of every tile; nothing forbids that many places are the same.
So a slide of 200,000 × 200,000 pixels, as large as scanners make them, weighs some ten
megabytes: a dozen JPEG tiles for each level, and the lists that point at them. Readers
see a usual Aperio slide. Two pieces of tissue lie on glass; the smallest level is drawn
true to the pixel, the others tile by tile.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, Any]
#: Ways that a tile of tissue, or of glass, can look on one level.
TISSUE_TILES, GLASS_TILES = 8, 2
#: The smallest level is drawn whole; it is no larger than this.
LARGEST_DRAWN_PX = 5_000
#: Sizes of what is seen in tissue, µm: nests of cells, and cells.
NEST_UM, CELL_UM = 32.0, 7.0
GLASS_RGB, PINK_RGB, PURPLE_RGB = (243, 242, 244), (226, 160, 200), (110, 70, 150)
#: TIFF's kinds of numbers: (code, bytes).
SHORT, LONG, LONG8, TEXT = (3, 2), (4, 4), (16, 8), (2, 1)


@dataclass(frozen=True)
class Directory:
    """What the file says of one level; ``offsets`` and ``counts`` one for each tile."""

    size: tuple[int, int]
    offsets: Array
    counts: Array
    description: str


def write_made_slide(
    path: Path,
    size: tuple[int, int] = (200_000, 200_000),
    *,
    factors: tuple[int, ...] = (1, 4, 16, 64),
    tile_px: int = 256,
    mpp: float = 0.25,
) -> Path:
    """Write an Aperio-style slide that is as large as one likes.

    Parameters
    ----------
    size
        (width, height) of level 0, pixels.
    factors
        Level-0 pixels per pixel of each level, finest first; the sizes are rounded
        down, as Aperio does.
    tile_px
        Side of the file's tiles.
    mpp
        µm per pixel of level 0.

    Raises
    ------
    ValueError
        If the last level would be too large to be drawn.
    """
    last = tuple(max(1, side // factors[-1]) for side in size)
    if max(last) > LARGEST_DRAWN_PX:
        raise ValueError(
            f"The last level of {last[0]} × {last[1]} pixels is too large to be drawn. "
            f"Add a level of at most {LARGEST_DRAWN_PX} pixels."
        )
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        directories = []
        for factor in factors:
            shape = (max(1, size[0] // factor), max(1, size[1] // factor))
            grid = (-(-shape[1] // tile_px), -(-shape[0] // tile_px))
            make = _drawn if factor == factors[-1] else _chosen
            tiles, which = make(random, shape, grid, tile_px, mpp * factor)
            starts, lengths = [], []
            for tile in tiles:
                starts.append(file.tell())
                lengths.append(file.write(tile))
            directories.append(
                Directory(
                    shape,
                    np.array(starts, "<u8")[which],
                    np.array(lengths, "<u4")[which],
                    f"Aperio made slide of {size[0]}x{size[1]} -> {shape[0]}x{shape[1]}"
                    f" [{tile_px}x{tile_px}] JPEG; synthetic|AppMag = {10 / mpp:g}|"
                    f"MPP = {mpp:g}",
                )
            )
        # Behind all tiles: a reader that hashes the smallest level's finds them whole.
        places = [_write_directory(file, one, tile_px) for one in directories]
        for at, (_, link) in enumerate(places):
            file.seek(link)
            following = places[at + 1][0] if at + 1 < len(places) else 0
            file.write(struct.pack("<Q", following))
        file.seek(8)
        file.write(struct.pack("<Q", places[0][0]))
    return path


# ---- what is on it


def tissue_at(x: Array, y: Array) -> Array:
    """Tell where tissue is; ``x`` and ``y`` are shares of the width and height."""
    large = ((x - 0.36) / 0.24) ** 2 + ((y - 0.52) / 0.34) ** 2 < 1
    small = ((x - 0.76) / 0.12) ** 2 + ((y - 0.36) / 0.18) ** 2 < 1
    found: Array = large | small
    return found


def _chosen(
    random: np.random.Generator,
    shape: tuple[int, int],
    grid: tuple[int, int],
    tile_px: int,
    mpp: float,
) -> tuple[list[bytes], Array]:
    """Return a few tiles, and which of them lies at each place of the grid."""
    x, y = _shares(grid, tile_px, shape)
    inside = tissue_at(x, y).ravel()
    tissue = random.integers(0, TISSUE_TILES, inside.size)
    glass = TISSUE_TILES + random.integers(0, GLASS_TILES, inside.size)
    side = (tile_px, tile_px)
    tiles = [stained(random, side, mpp) for _ in range(TISSUE_TILES)]
    tiles += [empty(random, side) for _ in range(GLASS_TILES)]
    return [_encoded(tile) for tile in tiles], np.where(inside, tissue, glass)


def _shares(
    grid: tuple[int, int], step: int, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Return where the middles of squares lie, as shares of a level's size."""
    y, x = np.ogrid[: grid[0], : grid[1]]
    return (x + 0.5) * step / shape[0], (y + 0.5) * step / shape[1]


def _drawn(
    random: np.random.Generator,
    shape: tuple[int, int],
    grid: tuple[int, int],
    tile_px: int,
    mpp: float,
) -> tuple[list[bytes], Array]:
    """Return the tiles of a level drawn pixel by pixel, and 0, 1, 2 … for each."""
    rows, cols = grid
    whole = (rows * tile_px, cols * tile_px)
    x, y = _shares(whole, 1, shape)
    inside = tissue_at(x, y)
    picture = empty(random, whole)
    picture[inside] = stained(random, whole, mpp)[inside]
    tiles = picture.reshape(rows, tile_px, cols, tile_px, 3).swapaxes(1, 2)
    flat = tiles.reshape(-1, tile_px, tile_px, 3)
    return [_encoded(tile) for tile in flat], np.arange(rows * cols)


def stained(random: np.random.Generator, side: tuple[int, int], mpp: float) -> Array:
    """Draw tissue in pink and purple, uint8 (H, W, 3), at ``mpp`` µm/px."""
    nests, cells = (_checks(random, side, um / mpp) for um in (NEST_UM, CELL_UM))
    purple = (0.6 * (nests < 0.5) + 0.4 * cells)[..., None].astype(np.float32)
    mixed = (1 - purple) * np.float32(PINK_RGB) + purple * np.float32(PURPLE_RGB)
    return _grainy(random, mixed, 6)


def empty(random: np.random.Generator, side: tuple[int, int]) -> Array:
    """Draw bare glass, uint8 (H, W, 3)."""
    return _grainy(random, np.full((*side, 3), GLASS_RGB, np.float32), 1.5)


def _checks(
    random: np.random.Generator, side: tuple[int, int], cell_px: float
) -> Array:
    """Return squares of random value, 0 to 1, of so many pixels; at least one."""
    cell = max(1, round(cell_px))
    drawn = random.random((-(-side[0] // cell), -(-side[1] // cell)), np.float32)
    return drawn.repeat(cell, 0).repeat(cell, 1)[: side[0], : side[1]]


def _grainy(random: np.random.Generator, picture: Array, grain: float) -> Array:
    noise = random.standard_normal(picture.shape[:2], np.float32)[..., None]
    return np.rint(picture + grain * noise).clip(0, 255).astype(np.uint8)


def _encoded(tile: Array) -> bytes:
    jpeg: bytes = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(tile), level=80, subsampling="420"
    )
    return jpeg


# ---- how it is written


def _write_directory(file: Any, one: Directory, tile_px: int) -> tuple[int, int]:
    """Write a directory; return its place, and that of its link to the next one."""
    values = {
        254: (LONG, [0]),
        256: (LONG, [one.size[0]]),
        257: (LONG, [one.size[1]]),
        258: (SHORT, [8, 8, 8]),
        259: (SHORT, [7]),  # JPEG
        262: (SHORT, [6]),  # YCbCr
        270: (TEXT, one.description.encode() + b"\0"),
        277: (SHORT, [3]),
        284: (SHORT, [1]),
        322: (LONG, [tile_px]),
        323: (LONG, [tile_px]),
        324: (LONG8, one.offsets),
        325: (LONG, one.counts),
        530: (SHORT, [2, 2]),
    }
    entries = []
    for tag, ((code, width), numbers) in values.items():
        raw = (
            numbers
            if isinstance(numbers, bytes)
            else np.asarray(numbers, f"<u{width}").tobytes()
        )
        inline = raw.ljust(8, b"\0")
        if len(raw) > 8:
            inline = struct.pack("<Q", file.tell())
            file.write(raw + b"\0" * (-len(raw) % 8))
        entries.append(struct.pack("<HHQ", tag, code, len(raw) // width) + inline)
    place = file.tell()
    file.write(struct.pack("<Q", len(entries)) + b"".join(entries))
    link = file.tell()
    file.write(struct.pack("<Q", 0))
    return place, link
