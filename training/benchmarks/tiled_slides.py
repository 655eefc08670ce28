"""Slides of tiles as scanners store them, for what needs to know every byte of them.

Each way to code a tile that the readers tell apart: JPEG as YCbCr or RGB, its tables in
every tile or once in a tag, and JPEG 2000 as Aperio writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from histomae.slides import decoders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: (what it is, where its colours stand); ``tables``: those of JPEG stand in a tag.
CODINGS = (
    "jpeg ycbcr",
    "jpeg rgb",
    "jpeg ycbcr tables",
    "jpeg rgb tables",
    "jp2 rgb",
    "jp2 ycbcr",
)
#: TIFF's numbers of the compressions.
COMPRESSIONS = {"jpeg": 7, "jp2 rgb": 33005, "jp2 ycbcr": 33003}
DESCRIPTION = "Aperio Image Library\r\nmade|MPP = 0.5"
#: Peak signal to noise of JPEG 2000, decibels: some 20 : 1 on real tissue.
JP2_DB = 34


def stained(width: int, height: int, seed: int = 0) -> Pixels:
    """Paint what a scanner might see, uint8 (H, W, 3): blobs, edges, grain.

    No two places are alike.
    """
    random = np.random.default_rng(seed)
    coarse = random.integers(60, 250, (height // 8 + 2, width // 8 + 2, 3))
    blobs = Image.fromarray(coarse.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = random.integers(-12, 13, (height, width, 3))
    return (np.asarray(blobs) + grain).clip(0, 255).astype(np.uint8)


def write_tiled(
    path: Path,
    levels: Sequence[Pixels],
    coding: str = "jpeg ycbcr",
    *,
    tile: tuple[int, int] = (256, 256),
    spoil: Callable[[int, list[bytes]], None] | None = None,
    aperio: bool = True,
    bigtiff: bool = False,
) -> Path:
    """Write a slide.

    Parameters
    ----------
    levels
        uint8 (H, W, 3), finest first.
    coding
        One of ``CODINGS``.
    tile
        (width, height) of the tiles.
    spoil
        Called with a level's number and its list of coded tiles, which it may change.
    aperio
        Whether it says that it is Aperio's; with JPEG 2000 it must.
    """
    kind, colours = coding.split()[:2]
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tiff:
        for index, level in enumerate(levels):
            tables, tiles = coded_tiles(level, coding, tile)
            if spoil is not None:
                spoil(index, tiles)
            tiff.write(
                iter(tiles),
                shape=level.shape,
                dtype=np.uint8,
                tile=tile[::-1],
                compression=COMPRESSIONS["jpeg" if kind == "jpeg" else coding],
                photometric=colours if kind == "jpeg" else "rgb",
                # Else what is said to be RGB is turned into YCbCr by the writer.
                compressionargs={"outcolorspace": "rgb"} if colours == "rgb" else None,
                jpegtables=tables,
                description="Aperio Image Library\r\nmade|MPP = 0.5"
                if aperio
                else None,
                subfiletype=1 if index and not aperio else 0,
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def coded_tiles(
    level: Pixels, coding: str, tile: tuple[int, int]
) -> tuple[bytes | None, list[bytes]]:
    """Return the shared JPEG tables, or None, and the coded tiles, row by row."""
    wide, high = tile
    height, width = level.shape[:2]
    beyond = ((0, -height % high), (0, -width % wide), (0, 0))
    filled = np.pad(level, beyond, mode="edge")
    tiles = [
        coded(np.ascontiguousarray(filled[y : y + high, x : x + wide]), coding)
        for y in range(0, height, high)
        for x in range(0, width, wide)
    ]
    if not coding.endswith("tables"):
        return None, tiles
    return split_tables(tiles[0])[0], [split_tables(each)[1] for each in tiles]


def coded(pixels: Pixels, coding: str) -> bytes:
    """Encode one tile as scanners do."""
    kind, colours = coding.split()[:2]
    data: bytes
    if kind == "jp2":
        data = imagecodecs.jpeg2k_encode(
            pixels, level=JP2_DB, codecformat="j2k", mct=colours == "rgb"
        )
    elif colours == "rgb":
        data = imagecodecs.jpeg8_encode(
            pixels, level=80, colorspace="rgb", outcolorspace="rgb"
        )
    else:
        data = simplejpeg.encode_jpeg(pixels, quality=80, colorsubsampling="420")
    return data


def split_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG into one of tables alone, and one without them."""
    found = decoders.segments(jpeg)
    assert found is not None  # we wrote it
    tables = (decoders.QUANTISERS, decoders.CODES)
    shared = [body for marker, body in found[0] if marker in tables]
    own = [body for marker, body in found[0] if marker not in tables]
    return (
        decoders.START + b"".join(shared) + decoders.END,
        decoders.START + b"".join(own) + jpeg[found[1] :],
    )
