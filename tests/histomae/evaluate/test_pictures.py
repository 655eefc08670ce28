"""Maps as files: the numbers, and colour on the right pixels."""

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from histomae.errors import NotEnoughDataError
from histomae.evaluate import pictures
from histomae.evaluate.pictures import over_slide, write_examples, write_map
from histomae.infer.reconstruct import random_masks
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.heatmap import Heatmap
from histomae.slides.slide import Slide

#: Pixels that are not square, a size that no tile divides.
MPP, SIZE = (0.4, 0.5), (803, 601)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "PICTURE_PX", 200)


@pytest.fixture
def slide(make_slide):
    """A slide all of glass: whatever is not white was laid over it."""
    white = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    with Slide.open(make_slide(white, mpp=MPP)) as opened:
        yield opened


@pytest.fixture
def position_slide(make_slide):
    with Slide.open(make_slide(size=SIZE, mpp=MPP)) as opened:
        yield opened


def cell_under(heatmap, x, y):
    """Return the value at a place of level 0, by a walk over all cells."""
    rows, cols = heatmap.values.shape
    left, top = heatmap.origin_xy_l0
    wide, high = heatmap.pixel_size_l0
    for row in range(rows):
        for col in range(cols):
            inside_x = left + col * wide <= x < left + (col + 1) * wide
            inside_y = top + row * high <= y < top + (row + 1) * high
            if inside_x and inside_y:
                return heatmap.values[row, col]
    return np.nan


@pytest.mark.parametrize("origin", [(0.0, 0.0), (131.7, -40.2)])
def test_colour_lies_on_the_right_pixels(origin, slide):
    grid = TileGrid.over(slide, TileSpec(50, 1.0))  # 125 x 100 level-0 pixels
    assert grid.tile_size_l0 == pytest.approx((125, 100))
    random = np.random.default_rng(0)
    values = random.random(grid.shape)
    values[random.random(grid.shape) < 0.4] = np.nan
    heatmap = Heatmap(values, origin, grid.tile_size_l0)
    picture = over_slide(heatmap, slide, opacity=0.5)
    assert picture.shape == (150, 200, 3)
    assert picture.dtype == np.uint8
    low, high = np.nanpercentile(values, [1, 99])
    for row in range(0, 150, 3):
        for col in range(0, 200, 3):
            x, y = (col + 0.5) * SIZE[0] / 200, (row + 0.5) * SIZE[1] / 150
            value = cell_under(heatmap, x, y)
            wanted = np.array([255.0] * 3)
            if not np.isnan(value):
                scaled = np.clip((value - low) / (high - low), 0, 1)
                colour = np.array(colormaps["viridis"](scaled)[:3]) * 255
                wanted = 0.5 * wanted + 0.5 * colour
            np.testing.assert_allclose(picture[row, col], wanted, atol=1)


def test_the_slide_shows_through(position_slide):
    nothing = Heatmap(np.full((2, 2), np.nan), (0.0, 0.0), (400.0, 300.0))
    picture = over_slide(nothing, position_slide)
    np.testing.assert_array_equal(picture, position_slide.thumbnail(200))
    even = Heatmap(np.ones((1, 1)), (0.0, 0.0), (400.0, 601.0))
    picture = over_slide(even, position_slide, opacity=0.0)
    np.testing.assert_array_equal(picture, position_slide.thumbnail(200))


def test_a_map_of_one_value_has_one_colour(slide):
    even = Heatmap(np.full((1, 2), 3.0), (0.0, 0.0), (400.0, 601.0))
    assert len(np.unique(over_slide(even, slide)[:, :198].reshape(-1, 3), axis=0)) == 1


def test_write_map_keeps_the_numbers_and_their_place(slide, tmp_path):
    grid = TileGrid.over(slide, TileSpec(50, 1.0))
    cells = np.array([[0, 1], [2, 3]])
    values = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    heatmap = Heatmap.from_patches(grid, cells, values)
    picture = write_map(tmp_path / "out" / "a.b.error", heatmap, slide)
    assert picture == tmp_path / "out" / "a.b.error.png"
    assert sorted(path.name for path in picture.parent.iterdir()) == [
        "a.b.error.npz",
        "a.b.error.png",
    ]
    with np.load(picture.with_suffix(".npz"), allow_pickle=False) as kept:
        assert sorted(kept) == ["origin_xy_l0", "pixel_size_l0", "values"]
        np.testing.assert_array_equal(kept["values"], heatmap.values)
        assert kept["values"].shape == (grid.rows * 2, grid.cols * 2)
        np.testing.assert_allclose(kept["pixel_size_l0"], [62.5, 50])
        np.testing.assert_allclose(kept["origin_xy_l0"], [0, 0])
    with Image.open(picture) as shown:
        np.testing.assert_array_equal(np.asarray(shown), over_slide(heatmap, slide))


def test_examples_are_rows_of_tile_masked_and_reconstruction(
    position_slide, encoder, tmp_path
):
    grid = TileGrid.over(position_slide, encoder.spec)
    cells = grid.all_cells()
    path = write_examples(
        tmp_path / "tiles.png", position_slide, encoder, grid, cells, count=3, seed=2
    )
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (3 * 32 + 2 * 4, 3 * 32 + 2 * 4, 3)
    masks = random_masks(3, encoder.grid_size, 0.75, 2)
    chosen = cells[[0, (len(cells) - 1) // 2, len(cells) - 1]]
    for number, (row, col) in enumerate(chosen):
        tile = position_slide.read_region(grid.xy_l0(row, col), (32, 32), 1.0)
        shown = sheet[number * 36 : number * 36 + 32]
        np.testing.assert_array_equal(shown[:, :32], tile)
        hidden = masks[number].repeat(8, 0).repeat(8, 1)
        assert (shown[:, 36:68][hidden] == 128).all()
        np.testing.assert_array_equal(shown[:, 36:68][~hidden], tile[~hidden])
        np.testing.assert_array_equal(shown[:, 72:][~hidden], tile[~hidden])
        assert (shown[:, 72:][hidden] != 128).any()
    assert (sheet[32:36] == 255).all()
    assert (sheet[:, 32:36] == 255).all()


def test_examples_are_no_more_than_there_are(position_slide, encoder, tmp_path):
    grid = TileGrid.over(position_slide, encoder.spec)
    two = grid.all_cells()[:2]
    path = write_examples(
        tmp_path / "tiles.png", position_slide, encoder, grid, two, mask_ratio=0.25
    )
    with Image.open(path) as opened:
        assert opened.height == 2 * 32 + 4
    with pytest.raises(NotEnoughDataError, match="no tile to show"):
        write_examples(tmp_path / "no.png", position_slide, encoder, grid, two[:0])
    assert not (tmp_path / "no.png").exists()
