"""A whole picture as one tile: what the training saw, at its place on the picture."""

import numpy as np
import pytest
from PIL import Image

from histomae.data.picture_grid import PictureGrid
from histomae.data.pictures import as_tile
from histomae.slides.slide import Slide

#: Of the picture and, in it, of the scan: x0, y0, x1, y1.
SIZE, SCAN = (300, 211), (40, 20, 271, 190)


@pytest.fixture
def pixels():
    random = np.random.default_rng(0)
    picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    x0, y0, x1, y1 = SCAN
    grey = random.integers(60, 200, (y1 - y0, x1 - x0, 1), np.uint8)
    picture[y0:y1, x0:x1] = grey
    return picture


@pytest.fixture
def slide(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    with Slide.open(tmp_path / "scan.png") as opened:
        yield opened


@pytest.mark.parametrize(("sector", "part"), [(False, (0, 0, *SIZE)), (True, SCAN)])
def test_the_tile_is_what_the_training_saw(slide, pixels, sector, part):
    grid = PictureGrid.of(slide, 64, sector=sector)
    assert grid.part == part
    assert grid.shape == (1, 1)
    expected = as_tile(pixels, 64, sector=sector)
    np.testing.assert_array_equal(grid.read(slide, 0, 0), expected)
    assert np.isnan(grid.spec.mpp)


@pytest.mark.parametrize("sector", [False, True])
def test_a_spot_of_the_picture_lies_where_the_grid_says(pixels, tmp_path, sector):
    pixels[100:108, 200:208] = 255
    spot = pixels == 255
    Image.fromarray(np.where(spot, 255, pixels // 4 + 10).astype(np.uint8)).save(
        tmp_path / "spot.png"
    )
    with Slide.open(tmp_path / "spot.png") as slide:
        grid = PictureGrid.of(slide, 64, sector=sector)
        tile = grid.read(slide, 0, 0)[..., 0].astype(float)
    bright = np.argwhere(tile > 0.8 * tile.max())
    x, y = bright.mean(0)[::-1] + 0.5
    size = np.array(grid.tile_size_l0) / 64
    found = np.array(grid.origin_xy_l0) + (x, y) * size
    np.testing.assert_allclose(found, (204, 104), atol=size.max())
    laid = np.argwhere(grid.laid(spot[..., 0])).mean(0)[::-1] + 0.5
    np.testing.assert_allclose(laid, (x, y), atol=1)


def test_what_is_shown_is_what_is_not_black(slide):
    grid = PictureGrid.of(slide, 64, sector=True)
    np.testing.assert_array_equal(grid.shown, grid.read(slide, 0, 0).any(-1))
    high = round(64 * 170 / 231)
    assert grid.shown.sum() == 64 * high
