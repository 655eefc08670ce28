"""Numbers land on the tiles and patches that they belong to."""

import numpy as np
import pytest

from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.heatmap import Heatmap


@pytest.fixture
def grid():
    return TileGrid(TileSpec(32, 0.5), (30.5, 40.0), (40.0, 50.0), rows=3, cols=4)


def place(heatmap, row, col):
    """Return the box (x0, y0, x1, y1) of a raster's pixel, level-0 pixels."""
    (x, y), (wide, high) = heatmap.origin_xy_l0, heatmap.pixel_size_l0
    return (
        x + col * wide,
        y + row * high,
        x + (col + 1) * wide,
        y + (row + 1) * high,
    )


def test_one_value_per_tile(grid):
    cells = np.array([[2, 3], [0, 1]])
    heatmap = Heatmap.from_cells(grid, cells, np.array([0.25, 0.75], np.float32))
    assert heatmap.values.shape == grid.shape
    assert heatmap.values.dtype == np.float32
    assert heatmap.values[2, 3] == 0.25
    assert heatmap.values[0, 1] == 0.75
    assert np.isnan(heatmap.values).sum() == 10
    for cell in cells:
        assert place(heatmap, *cell) == pytest.approx(grid.box_l0(*cell))


def test_one_colour_per_tile(grid):
    colours = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    heatmap = Heatmap.from_cells(grid, np.array([[1, 1], [2, 0]]), colours)
    assert heatmap.values.shape == (3, 4, 3)
    assert heatmap.values[2, 0].tolist() == [4, 5, 6]
    assert heatmap.values.sum() == 21  # elsewhere nothing


def test_integers_are_nought_where_nothing_is(grid):
    heatmap = Heatmap.from_cells(grid, np.array([[1, 2]]), np.array([7]))
    assert heatmap.values[1, 2] == heatmap.values.sum() == 7


def test_no_tile_at_all(grid):
    heatmap = Heatmap.from_cells(grid, np.empty((0, 2), int), np.empty(0))
    assert np.isnan(heatmap.values).all()


def test_a_raster_per_tile(grid):
    random = np.random.default_rng(0)
    cells = np.array([[0, 0], [2, 1], [1, 3]])
    values = random.random((3, 4, 2))
    heatmap = Heatmap.from_patches(grid, cells, values)
    assert heatmap.values.shape == (12, 8)
    assert heatmap.pixel_size_l0 == (20.0, 12.5)
    for (row, col), tile in zip(cells, values, strict=True):
        x0, y0, x1, y1 = grid.box_l0(row, col)
        for high in range(4):
            for wide in range(2):
                at = (row * 4 + high, col * 2 + wide)
                assert heatmap.values[at] == tile[high, wide]
                assert place(heatmap, *at) == pytest.approx(
                    (
                        x0 + wide * (x1 - x0) / 2,
                        y0 + high * (y1 - y0) / 4,
                        x0 + (wide + 1) * (x1 - x0) / 2,
                        y0 + (high + 1) * (y1 - y0) / 4,
                    )
                )
    assert np.isnan(heatmap.values).sum() == 12 * 8 - 3 * 8
