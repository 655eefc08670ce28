"""Numbers on a grid over a slide, and where the grid lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from histomae.slides.grid import TileGrid

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Heatmap:
    """A raster laid over a slide.

    ``values`` is (rows, columns) or (rows, columns, channels); ``origin_xy_l0`` is the
    corner of its first pixel and ``pixel_size_l0`` the (width, height) of each, both in
    level-0 pixels. Where nothing was computed floats are NaN and integers 0.
    """

    values: Array
    origin_xy_l0: tuple[float, float]
    pixel_size_l0: tuple[float, float]

    @classmethod
    def from_cells(cls, grid: TileGrid, cells: Array, values: Array) -> Heatmap:
        """Lay one value (or one row of channels) per tile on the tile grid.

        Parameters
        ----------
        cells
            (M, 2) of (row, column).
        values
            (M,) or (M, channels).
        """
        raster = _blank((*grid.shape, *values.shape[1:]), values.dtype)
        raster[cells[:, 0], cells[:, 1]] = values
        return cls(raster, grid.origin_xy_l0, grid.tile_size_l0)

    @classmethod
    def from_patches(cls, grid: TileGrid, cells: Array, values: Array) -> Heatmap:
        """Lay a small raster per tile on the patch grid.

        Parameters
        ----------
        cells
            (M, 2) of (row, column).
        values
            (M, grid_h, grid_w): one number per patch of each tile.
        """
        high, wide = values.shape[1:]
        raster = _blank((grid.rows, high, grid.cols, wide), values.dtype)
        raster[cells[:, 0], :, cells[:, 1]] = values
        width, height = grid.tile_size_l0
        return cls(
            raster.reshape(grid.rows * high, grid.cols * wide),
            grid.origin_xy_l0,
            (width / wide, height / high),
        )


def _blank(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    fill = np.nan if np.issubdtype(dtype, np.floating) else 0
    return np.full(shape, fill, dtype)
