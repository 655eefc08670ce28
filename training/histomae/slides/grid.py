"""The tile grid: rows and columns of square tiles over a slide.

Frames. ``l0``: level-0 pixels (x, y), measured at pixel edges. ``grid``: (column, row)
as floats, the first tile spanning 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import ConfigError
from histomae.slides.slide import check_mpp

if TYPE_CHECKING:
    from histomae.slides.slide import Slide

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class TileSpec:
    """What a tile is: its side in pixels, and the micrometres of a pixel."""

    tile_px: int = 224
    mpp: float = 0.5

    def __post_init__(self) -> None:
        if self.tile_px < 1:
            raise ConfigError("tile_px", f"{self.tile_px} is too small. Choose 224.")
        if not 0 < self.mpp < math.inf:
            raise ConfigError("mpp", f"{self.mpp} is no pixel size. Choose 0.5.")

    @property
    def tile_um(self) -> float:
        """Side of a tile, µm."""
        return self.tile_px * self.mpp


@dataclass(frozen=True)
class TileGrid:
    """Tiles edge to edge over the scanned area of a slide.

    ``origin_xy_l0`` is the corner of the first tile and ``tile_size_l0`` a tile's
    (width, height), both level-0 pixels and not whole in general; tiles are square in
    micrometres, so the two differ where the slide's mpp does.
    """

    spec: TileSpec
    origin_xy_l0: tuple[float, float]
    tile_size_l0: tuple[float, float]
    rows: int
    cols: int

    @classmethod
    def over(
        cls, slide: Slide, spec: TileSpec, *, allow_upsampling: bool = False
    ) -> TileGrid:
        """Lay a grid over ``slide.bounds_l0``; the last row and column may stick out.

        Raises
        ------
        UpsamplingError
            If ``spec.mpp`` is finer than the slide has.
        MissingMppError
            If the slide's pixel size is unknown.
        """
        check_mpp(slide, spec.mpp, allow_upsampling=allow_upsampling)
        x, y, width, height = slide.bounds_l0
        tile_w, tile_h = (spec.tile_um / mpp for mpp in slide.mpp)
        return cls(
            spec=spec,
            origin_xy_l0=(float(x), float(y)),
            tile_size_l0=(tile_w, tile_h),
            rows=max(1, math.ceil(height / tile_h - 1e-9)),
            cols=max(1, math.ceil(width / tile_w - 1e-9)),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.cols

    def read(
        self, slide: Slide, row: int, col: int
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read a tile, uint8 (tile_px, tile_px, 3), RGB.

        Raises
        ------
        SlideError
            If the file cannot be read there.
        """
        side = (self.spec.tile_px, self.spec.tile_px)
        return slide.read_region(self.xy_l0(row, col), side, self.spec.mpp)

    def xy_l0(self, row: int, col: int) -> tuple[float, float]:
        """Top-left corner (x, y) of a tile, level-0 pixels."""
        x, y = self.l0_from_grid(np.array([col, row], float))
        return float(x), float(y)

    def box_l0(self, row: int, col: int) -> tuple[float, float, float, float]:
        """Corners (x0, y0, x1, y1) of a tile, level-0 pixels."""
        return (*self.xy_l0(row, col), *self.xy_l0(row + 1, col + 1))

    def boxes_l0(self, cells: np.ndarray[Any, Any]) -> Floats:
        """Corners (M, 4) of the tiles at ``cells`` (M, 2) of (row, column)."""
        corner = np.asarray(cells, float).reshape(-1, 2)[:, ::-1]
        return np.hstack([self.l0_from_grid(corner), self.l0_from_grid(corner + 1)])

    def cell_at(self, xy_l0: tuple[float, float]) -> tuple[int, int] | None:
        """Return (row, column) of the tile that holds a place, or None outside."""
        col, row = np.floor(self.grid_from_l0(np.asarray(xy_l0, float))).astype(int)
        inside = 0 <= row < self.rows and 0 <= col < self.cols
        return (int(row), int(col)) if inside else None

    def all_cells(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return every (row, column), shape (rows * columns, 2), row by row."""
        return np.argwhere(np.ones(self.shape, bool))

    def l0_from_grid(self, grid_xy: Floats) -> Floats:
        """Turn (..., 2) of (column, row) into level-0 (x, y)."""
        return grid_xy * np.array(self.tile_size_l0) + np.array(self.origin_xy_l0)

    def grid_from_l0(self, xy_l0: Floats) -> Floats:
        """Turn (..., 2) of level-0 (x, y) into (column, row)."""
        return (xy_l0 - np.array(self.origin_xy_l0)) / np.array(self.tile_size_l0)
