"""Rows and columns of tiles over a slide, and where each of them lies."""

import math

import numpy as np
import openslide
import pytest

from histomae.errors import ConfigError, MissingMppError, UpsamplingError
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide


@pytest.fixture
def uneven(make_slide):
    """A grid over a slide that no tile divides, its pixels 0.4 by 0.5 µm."""
    with Slide.open(make_slide(size=(1000, 700), mpp=(0.4, 0.5))) as slide:
        yield TileGrid.over(slide, TileSpec(tile_px=100, mpp=0.6))


def test_a_tile_in_micrometres():
    assert TileSpec(224, 0.5).tile_um == 112.0


@pytest.mark.parametrize("field", ["tile_px", "mpp"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_tile_that_cannot_be(field, value):
    with pytest.raises(ConfigError, match=f"{field}: .* Choose") as caught:
        TileSpec(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("mpp", [math.nan, math.inf])
def test_a_pixel_size_that_cannot_be(mpp):
    with pytest.raises(ConfigError, match="mpp"):
        TileSpec(mpp=mpp)


def test_grid_covers_the_slide(uneven):
    # A tile is 60 µm: 150 by 120 level-0 pixels.
    assert uneven.tile_size_l0 == pytest.approx((150, 120))
    assert uneven.shape == (6, 7)  # 700 / 120 and 1000 / 150, rounded up
    assert uneven.origin_xy_l0 == (0.0, 0.0)
    assert uneven.box_l0(5, 6) == pytest.approx((900, 600, 1050, 720))  # sticks out


def test_grid_that_divides_has_no_tile_more(make_slide):
    with Slide.open(make_slide(size=(600, 400), mpp=0.5)) as slide:
        assert TileGrid.over(slide, TileSpec(100, 0.5)).shape == (4, 6)
        assert TileGrid.over(slide, TileSpec(10_000, 0.5)).shape == (1, 1)


def test_rounding_adds_no_tile(stand_in):
    # A tile is 288 pixels, which the computer makes 287.99999999999994.
    mpp = {openslide.PROPERTY_NAME_MPP_X: "0.525", openslide.PROPERTY_NAME_MPP_Y: "0.5"}
    slide, _ = stand_in([np.zeros((8, 8 * 288, 3), np.uint8)], mpp)
    assert TileGrid.over(slide, TileSpec(96, 1.575)).cols == 8


def test_a_tile_at_own_mpp_is_whole_pixels(make_slide):
    with Slide.open(make_slide(mpp=0.69)) as slide:
        grid = TileGrid.over(slide, TileSpec(224, slide.native_mpp))
    assert grid.tile_size_l0 == pytest.approx((224, 224), abs=1e-9)


def test_grid_begins_at_the_bounds(stand_in, noise):
    properties = {
        openslide.PROPERTY_NAME_BOUNDS_X: "30",
        openslide.PROPERTY_NAME_BOUNDS_Y: "50",
        openslide.PROPERTY_NAME_BOUNDS_WIDTH: "110",
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT: "80",
    }
    slide, _ = stand_in([noise(300, 200)], properties)
    grid = TileGrid.over(slide, TileSpec(20, 0.5))
    assert grid.origin_xy_l0 == (30.0, 50.0)
    assert grid.shape == (4, 6)
    assert grid.box_l0(0, 0) == (30, 50, 50, 70)
    assert grid.cell_at((29, 60)) is None


def test_grid_refuses_what_the_slide_has_not(make_slide):
    with Slide.open(make_slide(mpp=0.5)) as slide:
        with pytest.raises(UpsamplingError):
            TileGrid.over(slide, TileSpec(224, 0.25))
        finer = TileGrid.over(slide, TileSpec(224, 0.25), allow_upsampling=True)
        assert finer.tile_size_l0 == (112, 112)
    with Slide.open(make_slide(mpp=None)) as slide, pytest.raises(MissingMppError):
        TileGrid.over(slide, TileSpec())


def test_frames_round_trip(uneven):
    random = np.random.default_rng(0)
    places = random.uniform(-500, 2000, (4, 5, 2))
    there = uneven.grid_from_l0(places)
    assert there.shape == places.shape
    np.testing.assert_allclose(uneven.l0_from_grid(there), places, atol=1e-9)
    np.testing.assert_allclose(
        uneven.l0_from_grid(np.array([[2.0, 3.0]])), [[2 * 150, 3 * 120]]
    )


def test_every_cell_is_found_at_its_own_places(uneven):
    random = np.random.default_rng(1)
    for row, col in uneven.all_cells():
        x0, y0, x1, y1 = uneven.box_l0(row, col)
        assert uneven.xy_l0(row, col) == (x0, y0)
        for _ in range(5):
            x, y = random.uniform((x0, y0), (x1, y1))
            assert uneven.cell_at((x, y)) == (row, col)
        assert uneven.cell_at((x0 + 1e-6, y0 + 1e-6)) == (row, col)
    for outside in ((-0.1, 5), (5, -0.1), (1050.1, 5), (5, 720.1)):
        assert uneven.cell_at(outside) is None


def test_all_cells_row_by_row(uneven):
    expected = [(row, col) for row in range(6) for col in range(7)]
    assert [tuple(cell) for cell in uneven.all_cells()] == expected
    boxes = uneven.boxes_l0(uneven.all_cells())
    for box, (row, col) in zip(boxes, expected, strict=True):
        assert tuple(box) == pytest.approx(uneven.box_l0(row, col))
    assert uneven.boxes_l0(np.empty((0, 2), int)).shape == (0, 4)


def test_tiles_show_what_lies_under_them(make_slide, noise):
    pixels = noise(330, 230)
    with Slide.open(make_slide(pixels, mpp=0.5, factors=(1,))) as slide:
        grid = TileGrid.over(slide, TileSpec(50, 0.5))
        for row, col in ((0, 0), (2, 3), (4, 6)):
            x, y = (round(edge) for edge in grid.xy_l0(row, col))
            tile = slide.read_region(grid.xy_l0(row, col), (50, 50), grid.spec.mpp)
            there = pixels[y : y + 50, x : x + 50]
            np.testing.assert_array_equal(tile[: len(there), : there.shape[1]], there)
            assert (tile[len(there) :] == 255).all()
