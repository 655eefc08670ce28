"""Tissue is found; ink, dust, smears and printed spots are not tissue."""

import numpy as np
import openslide
import pytest

from histomae.errors import ConfigError, MissingMppError
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide
from histomae.slides.tissue import (
    TissueMask,
    TissueParams,
    tissue_cells,
    tissue_in,
    tissue_mask,
)

MPP = 8.0


def found(pixels):
    return tissue_in(pixels, MPP, TissueParams())


def overlap(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


# ---- what is found


def test_tissue_is_found(section):
    pixels, tissue = section()
    assert overlap(found(pixels), tissue) > 0.95


def test_blank_glass_has_no_tissue():
    random = np.random.default_rng(0)
    assert not found(np.full((200, 300, 3), 255, np.uint8)).any()
    noisy = 238 + random.normal(0, 2, (200, 300, 3))
    assert not found(noisy.astype(np.uint8)).any()
    assert not found(np.zeros((1, 1, 3), np.uint8) + np.uint8(255)).any()


def test_a_picture_full_of_tissue_is_all_tissue(section):
    pixels, _ = section()
    full = pixels[120:220, 90:190]  # nothing but the inside of the piece
    assert found(full).mean() > 0.98


def draw_pen(pixels, colour):
    pixels[30:290, 300:312] = colour
    pixels[30:42, 250:390] = colour
    return np.s_[20:300, 240:400]


def draw_dust(pixels):
    random = np.random.default_rng(1)
    for y, x in random.integers((10, 250), (310, 390), (40, 2)):
        pixels[y : y + 3, x : x + 4] = 60
    return np.s_[:, 245:]


def draw_smear(pixels):
    # Dye that ran over the glass: coloured, and without structure.
    y, x = np.mgrid[:320, :400]
    strength = np.exp(-(((x - 330) / 60) ** 2) - ((y - 160) / 110) ** 2)[..., None]
    pinked = pixels * (1 - strength * np.array([0.05, 0.45, 0.25]))
    pixels[:, 245:] = np.rint(pinked[:, 245:]).astype(np.uint8)
    return np.s_[:, 245:]


def draw_spots(pixels):
    y, x = np.mgrid[:320, :400]
    spots = ((x % 25 - 12) ** 2 + (y % 25 - 12) ** 2 < 36) & (x > 245)
    pixels[spots] -= 12
    return np.s_[:, 245:]


@pytest.mark.parametrize(
    "draw",
    [
        lambda pixels: draw_pen(pixels, (40, 120, 60)),
        lambda pixels: draw_pen(pixels, (40, 90, 200)),
        lambda pixels: draw_pen(pixels, (20, 20, 25)),
        draw_dust,
        draw_smear,
        draw_spots,
    ],
    ids=["green pen", "blue pen", "black pen", "dust", "smear", "printed spots"],
)
def test_what_is_not_tissue(section, draw):
    pixels, tissue = section()
    mask = found(pixels.copy())
    where = draw(pixels)
    assert not found(pixels)[where].any()
    # And the tissue is found beside it as without it.
    assert overlap(found(pixels), tissue) > 0.95
    assert overlap(found(pixels), mask) > 0.97


def test_a_pen_across_the_tissue_costs_only_what_it_covers(section):
    pixels, tissue = section()
    pixels[160:170, 40:240] = (30, 110, 60)
    pixels[200:220, 100:120] = (20, 20, 20)  # a dot, no larger than a lumen
    mask = found(pixels)
    assert not mask[160:170].any()
    assert not mask[200:220, 100:120].any()
    assert mask[tissue].mean() > 0.85


def test_small_holes_belong_to_the_tissue_and_large_ones_do_not(section):
    pixels, tissue = section()
    pixels[150:160, 120:130] = 243  # 80 µm: a lumen
    pixels[180:230, 130:180] = 243  # 400 µm: a gap
    mask = found(pixels)
    assert mask[150:160, 120:130].all()
    assert not mask[195:215, 145:165].any()
    assert mask[tissue].mean() > 0.8


def test_tinted_glass_is_glass(section):
    pixels, tissue = section()
    tinted = np.rint(pixels * np.array([0.97, 0.88, 0.95])).astype(np.uint8)
    assert overlap(found(tinted), tissue) > 0.95


@pytest.mark.parametrize("field", ["mpp", "max_px", "texture_um"])
def test_params_are_checked(field):
    with pytest.raises(ConfigError, match=field):
        TissueParams(**{field: 0})


# ---- on a slide


def test_mask_of_a_slide(section_slide):
    path, tissue = section_slide
    with Slide.open(path) as slide:
        mask = tissue_mask(slide)
    assert mask.mask.shape == tissue.shape
    assert mask.pixel_size_l0 == (8, 8)
    assert mask.pixel_um2 == pytest.approx(64)
    assert overlap(mask.mask, tissue) > 0.95
    assert mask.area_mm2() == pytest.approx(mask.mask.sum() * 64e-6)


def test_mask_of_pixels_that_are_not_square(make_slide, section):
    picture, tissue = section()
    pixels = picture.repeat(8, 0).repeat(4, 1)  # 1 µm high and 2 µm wide
    with Slide.open(make_slide(pixels, mpp=(2.0, 1.0), factors=(1,))) as slide:
        mask = tissue_mask(slide)
    assert mask.mask.shape == tissue.shape
    assert mask.pixel_size_l0 == (4, 8)
    assert mask.pixel_um2 == pytest.approx(64)
    assert overlap(mask.mask, tissue) > 0.95


def test_mask_of_a_large_slide_is_coarser(section_slide):
    path, tissue = section_slide
    with Slide.open(path) as slide:
        mask = tissue_mask(slide, TissueParams(max_px=200))
    assert mask.mask.shape == (160, 200)
    assert mask.pixel_size_l0 == (16, 16)
    assert mask.pixel_um2 == pytest.approx(256)
    assert overlap(mask.mask, tissue[::2, ::2]) > 0.9


def test_mask_of_a_slide_without_levels_is_read_in_parts(
    make_slide, section, monkeypatch
):
    picture, tissue = section()
    large = picture.repeat(8, 0).repeat(8, 1)
    monkeypatch.setattr("histomae.slides.slide.MAX_READ_PX", 500_000)
    with Slide.open(make_slide(large, mpp=1.0, factors=(1,))) as slide:
        assert overlap(tissue_mask(slide).mask, tissue) > 0.95


def test_transparent_areas_are_glass(stand_in, section):
    picture, tissue = section()
    pixels = np.dstack([picture, np.where(tissue, 255, 0).astype(np.uint8)])
    eight = {
        openslide.PROPERTY_NAME_MPP_X: "8",
        openslide.PROPERTY_NAME_MPP_Y: "8",
    }
    slide, _ = stand_in([pixels], eight)
    assert overlap(tissue_mask(slide).mask, tissue) > 0.95


def test_mask_needs_a_pixel_size(make_slide):
    with Slide.open(make_slide(mpp=None)) as slide, pytest.raises(MissingMppError):
        tissue_mask(slide)


# ---- shares of boxes and tiles


def plain_fraction(mask, pixel_size, box, steps=40):
    """Sample a box on a fine lattice and count."""
    x0, y0, x1, y1 = box
    hits = 0
    for row in range(steps):
        for col in range(steps):
            x = (x0 + (col + 0.5) / steps * (x1 - x0)) / pixel_size[0]
            y = (y0 + (row + 0.5) / steps * (y1 - y0)) / pixel_size[1]
            inside = 0 <= x < mask.shape[1] and 0 <= y < mask.shape[0]
            hits += bool(inside and mask[int(y), int(x)])
    return hits / steps**2


def test_fraction_matches_a_plain_count():
    random = np.random.default_rng(0)
    mask = random.random((14, 19)) < 0.6
    tissue = TissueMask(mask, (8.5, 5.25), 1.0)
    corners = random.uniform((-30, -30), (150, 80), (25, 2))
    boxes = np.hstack([corners, corners + random.uniform(10, 60, (25, 2))])
    expected = [plain_fraction(mask, (8.5, 5.25), box) for box in boxes]
    np.testing.assert_allclose(tissue.fraction(boxes), expected, atol=0.02)


def test_fraction_of_boxes_on_pixel_edges_is_exact():
    random = np.random.default_rng(1)
    mask = random.random((30, 40)) < 0.5
    tissue = TissueMask(mask, (2.0, 3.0), 1.0)
    for y0, x0 in random.integers(0, 20, (30, 2)):
        high, wide = random.integers(1, 10, 2)
        box = [x0 * 2, y0 * 3, (x0 + wide) * 2, (y0 + high) * 3]
        share = mask[y0 : y0 + high, x0 : x0 + wide].mean()
        assert tissue.fraction(np.array([box]))[0] == pytest.approx(share, abs=1e-12)


def test_fraction_outside_is_none():
    tissue = TissueMask(np.ones((10, 10), bool), (4.0, 4.0), 1.0)
    boxes = np.array(
        [[0, 0, 40, 40], [-40, 0, 40, 40], [30, 30, 50, 50], [60, 60, 80, 80.0]]
    )
    assert tissue.fraction(boxes) == pytest.approx([1, 0.5, 0.25, 0])
    assert tissue.fraction(np.empty((0, 4))).shape == (0,)


def test_cells_with_enough_tissue(section_slide):
    path, _ = section_slide
    with Slide.open(path) as slide:
        tissue = tissue_mask(slide)
        grid = TileGrid.over(slide, TileSpec(100, 1.5))
    cells = tissue_cells(grid, tissue, 0.7)
    shares = {
        (row, col): plain_fraction(tissue.mask, (8, 8), grid.box_l0(row, col))
        for row in range(grid.rows)
        for col in range(grid.cols)
    }
    chosen = [tuple(cell) for cell in cells]
    assert chosen == sorted(chosen)
    for cell, share in shares.items():
        if abs(share - 0.7) > 0.02:  # the count is not exact
            assert (cell in chosen) == (share > 0.7)
    assert 10 < len(chosen) < len(shares) / 2
    assert len(tissue_cells(grid, tissue, 0.0)) == grid.rows * grid.cols


def test_a_blank_slide_has_no_cells(make_slide):
    blank = np.full((600, 800, 3), 245, np.uint8)
    with Slide.open(make_slide(blank, mpp=2.0, factors=(1,))) as slide:
        grid = TileGrid.over(slide, TileSpec(100, 2.0))
        assert tissue_cells(grid, tissue_mask(slide)).shape == (0, 2)


# ---- real slides; boxes (x0, y0, x1, y1) in pixels of 8 µm, from looking at them


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        (
            "her2st-C2",
            [(400, 400, 600, 560), (480, 600, 540, 660), (230, 500, 280, 540)],
            # The pink smear, printed spots, specks, a fibre.
            [
                (700, 150, 800, 560),
                (0, 0, 800, 260),
                (0, 560, 200, 855),
                (0, 720, 800, 855),
            ],
        ),
        (
            "her2st-D1",
            [(250, 200, 500, 350), (380, 350, 440, 430), (120, 270, 160, 290)],
            # The smear, streaks of dried dye, a blurred speck.
            [
                (580, 0, 800, 857),
                (0, 520, 800, 857),
                (0, 0, 500, 80),
                (150, 450, 230, 520),
            ],
        ),
    ],
)
def test_real_tumour_slides(shared_data, name, inside, outside):
    with Slide.open(shared_data / f"slides/her2st/{name}.tiff") as slide:
        tissue = tissue_mask(slide)
    assert max(tissue.mask.shape) == pytest.approx(855, abs=3)
    assert tissue.mask.mean() == pytest.approx(0.17, abs=0.01)
    for x0, y0, x1, y1 in inside:
        assert tissue.mask[y0:y1, x0:x1].mean() > 0.98
    for x0, y0, x1, y1 in outside:
        assert not tissue.mask[y0:y1, x0:x1].any()


@pytest.mark.real_data
def test_real_skin_slide(shared_data):
    path = shared_data / "slides/CMU-1-Small-Region/CMU-1-Small-Region.svs"
    with Slide.open(path) as slide:
        tissue = tissue_mask(slide)
    assert 0.3 < tissue.mask.mean() < 0.5
    assert not tissue.mask[:60, :15].any()
    assert not tissue.mask[:, 128:].any()  # a blue speck lies there
    assert tissue.mask[120:180, 45:65].mean() > 0.95
