"""A whole picture as the one tile that an encoder trained on pictures looks at.

Frames. ``l0``: pixels of the picture, x before y, at pixel edges. ``tile``: pixels of
the square that the encoder sees, black where there is no picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from histomae.data.pictures import as_tile, grey_of, sector_box, whole_square
from histomae.slides.grid import TileGrid, TileSpec

if TYPE_CHECKING:
    from histomae.slides.slide import Slide

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class PictureSpec(TileSpec):
    """A tile that is a whole picture; its ``mpp`` is NaN: nobody knows it."""

    mpp: float = math.nan

    def __post_init__(self) -> None:
        """Take what a header has checked."""


@dataclass(frozen=True)
class PictureGrid(TileGrid):
    """A grid of one tile, which holds a picture as the training saw it.

    ``box_l0`` of the tile reaches beyond the picture where the tile is black. ``part``
    is (x0, y0, x1, y1) in l0 of what is shown: all of the picture, or the scan of an
    ultrasound, if ``sector``.
    """

    part: tuple[int, int, int, int]
    sector: bool

    @classmethod
    def of(cls, slide: Slide, tile_px: int, *, sector: bool) -> PictureGrid:
        """Lay the tile over a picture.

        Raises
        ------
        SlideError
            If the picture cannot be read.
        """
        width, height = slide.dimensions
        rows, columns = slice(0, height), slice(0, width)
        if sector:
            rows, columns = sector_box(grey_of(_pixels(slide)))
        x0, x1, _ = columns.indices(width)
        y0, y1, _ = rows.indices(height)
        # As whole_square lays it: rounded to whole pixels, then put into the middle.
        factor = tile_px / max(x1 - x0, y1 - y0)
        wide = max(1, round((x1 - x0) * factor))
        high = max(1, round((y1 - y0) * factor))
        size_x, size_y = (x1 - x0) / wide, (y1 - y0) / high
        left, top = (tile_px - wide) // 2, (tile_px - high) // 2
        return cls(
            spec=PictureSpec(tile_px),
            origin_xy_l0=(x0 - left * size_x, y0 - top * size_y),
            tile_size_l0=(tile_px * size_x, tile_px * size_y),
            rows=1,
            cols=1,
            part=(x0, y0, x1, y1),
            sector=sector,
        )

    def read(self, slide: Slide, row: int, col: int) -> Pixels:
        """Return the picture as the encoder sees it, uint8 (tile_px, tile_px, 3)."""
        return as_tile(_pixels(slide), self.spec.tile_px, sector=self.sector)

    def laid(self, mask: Bools) -> Bools:
        """Lay a mask of the picture, bool (H, W) in l0, on the tile: bool (px, px)."""
        x0, y0, x1, y1 = self.part
        cut = mask[y0:y1, x0:x1].astype(np.uint8)
        nearest = Image.Resampling.NEAREST
        return whole_square(cut, self.spec.tile_px, resample=nearest) > 0

    @property
    def shown(self) -> Bools:
        """Where the tile shows the picture, bool (px, px): not black around it."""
        _, _, x1, y1 = self.part
        return self.laid(np.ones((y1, x1), bool))


def _pixels(slide: Slide) -> Pixels:
    return slide.read_scaled((0, 0), slide.dimensions, (1.0, 1.0))
