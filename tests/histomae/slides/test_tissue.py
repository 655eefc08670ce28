"""Tissue is found; ink, edges of glass, dust, smears and spots are not tissue."""

import json

import numpy as np
import openslide
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.made_slides import tissue_at
from histomae.errors import ConfigError, MissingMppError
from histomae.files import home
from histomae.slides import tissue as tissue_module
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide
from histomae.slides.slide_file import SlideFile
from histomae.slides.tissue import (
    Overview,
    TissueMask,
    TissueParams,
    closed,
    dilated,
    median3,
    overview,
    params_of,
    remember_params,
    remembered_params,
    tissue_cells,
    tissue_mask,
    without_small,
)

MPP = 8.0


def found(pixels, mpp=MPP, **params):
    seen = Overview(pixels, (1.0, 1.0), (mpp, mpp))
    return seen.tissue(TissueParams(**params)).mask


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


def test_a_picture_of_black_and_nearly_black_is_no_tissue():
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[50:150, 80:200] = 30
    assert not found(pixels).any()


def test_a_picture_full_of_tissue_is_all_tissue(section):
    pixels, _ = section()
    full = pixels[120:220, 90:190]  # nothing but the inside of the piece
    assert found(full).mean() > 0.98


def draw_pen(pixels, colour):
    """Draw a felt pen: a soft stroke and a thin one, of a dye that light goes through.

    Where the dye lies twice as thick, twice the light is lost.
    """
    drawn = Image.new("L", pixels.shape[1::-1])
    pen = ImageDraw.Draw(drawn)
    pen.line([(300, 30), (310, 150), (280, 290)], fill=255, width=40)
    pen.line([(250, 40), (390, 60), (370, 200)], fill=255, width=18)
    random = np.random.default_rng(3)
    streaks = ndimage.gaussian_filter(random.normal(size=pixels.shape[:2]), 5)
    thick = ndimage.gaussian_filter(np.asarray(drawn) / 255, 1.5)
    thick *= 1 + 0.15 * streaks / streaks.std()
    dye = np.log(np.array(colour) / 243)
    inked = pixels[:, 215:] * np.exp(thick[:, 215:, None].clip(0) * dye)
    pixels[:, 215:] = np.rint(inked).clip(0, 255).astype(np.uint8)
    return np.s_[:, 245:]


def draw_glass_edges(pixels):
    """Draw the edge of a cover slip, a shadow along it, and the frame of the scan."""
    random = np.random.default_rng(2)
    y, x = np.mgrid[:320, :400]
    from_edge = x - 300 - y * 0.05
    light = 1 - 0.6 * np.exp(-(from_edge**2) / 3)
    light -= 0.15 * np.exp(-((from_edge - 8) ** 2) / 40)
    light[:, 385:] = 0.25 + 0.1 * random.random((320, 15))
    light[:6, 245:] = 0.4
    dark = pixels[:, 245:] * light[:, 245:, None]
    pixels[:, 245:] = np.rint(dark).astype(np.uint8)
    return np.s_[:, 245:]


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


INKS = {
    "green": (40, 120, 60),
    "pale green": (150, 205, 160),
    "blue": (40, 90, 200),
    "dull blue": (50, 70, 160),
    "dark blue": (35, 40, 110),
    "pale blue": (110, 140, 200),
    "black": (20, 20, 25),
    "worn black": (70, 70, 75),
}
MARKS = {
    **{
        f"{name} pen": lambda pixels, ink=ink: draw_pen(pixels, ink)
        for name, ink in INKS.items()
    },
    "glass edges": draw_glass_edges,
    "dust": draw_dust,
    "smear": draw_smear,
    "printed spots": draw_spots,
}


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("factor", [1, 2], ids=["at 8 µm", "at 16 µm"])
def test_what_is_not_tissue(section, mark, factor):
    pixels, tissue = section()
    marked = pixels.copy()
    where = MARKS[mark](marked)
    if factor == 2:  # as from a coarser level
        pixels, marked = (
            np.asarray(Image.fromarray(picture).reduce(2))
            for picture in (pixels, marked)
        )
        tissue = tissue[::2, ::2]
        where = np.s_[:, where[1].start // 2 + 1 :]
    mask = found(pixels, MPP * factor)
    with_mark = found(marked, MPP * factor)
    assert not with_mark[where].any()
    # And the tissue is found beside it as without it.
    assert overlap(with_mark, tissue) > 0.92
    assert overlap(with_mark, mask) > 0.96


def test_marks_are_found_only_where_they_are_left_out(section):
    pixels, _ = section()
    where = draw_pen(pixels, INKS["green"])
    assert not found(pixels)[where].any()
    assert found(pixels, leave_out_marks=False)[where].sum() > 1000


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


# ---- what a person sets


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("least_density", -0.1),
        ("least_texture", None),
        ("least_texture", "0.1"),
        ("closing_um", float("nan")),
        ("least_area_mm2", 1e9),
        ("largest_hole_mm2", True),
        ("leave_out_marks", 1),
    ],
)
def test_params_are_checked(field, value):
    with pytest.raises(ConfigError, match=field):
        TissueParams(**{field: value})


def test_params_come_back_from_their_text():
    assert TissueParams().text == ""
    assert TissueParams.from_text("") == TissueParams()
    params = TissueParams(least_density=0.1, closing_um=0.0, leave_out_marks=False)
    assert TissueParams.from_text(params.text) == params
    assert TissueParams.from_text(" closing_um=4,least_density=null ") == TissueParams(
        closing_um=4
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("closing=4", "tissue: 'closing=4' is no setting=value"),
        ("closing_um", "closing_um: '' is no number"),
        ("closing_um=wide", "closing_um: 'wide' is no number"),
        ("closing_um=-1", "closing_um: -1 is no number from 0 to 1000"),
    ],
)
def test_a_text_that_says_no_params_is_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        TissueParams.from_text(text)
    assert words in str(caught.value)


def test_what_a_slide_is_opened_with_outranks_what_is_remembered(section_slide):
    path, params = section_slide[0], TissueParams(least_density=0.3)
    with Slide.open(path) as plain, Slide.open(path, tissue=params) as slide:
        remember_params(plain, TissueParams(least_density=0.1))
        assert params_of(plain) == TissueParams(least_density=0.1)
        assert params_of(slide) == params
        np.testing.assert_array_equal(
            tissue_mask(slide).mask, tissue_mask(plain, params).mask
        )
        remember_params(plain, TissueParams())


def test_each_param_does_what_it_says(section):
    pixels, _ = section()
    pixels[40:60, 320:340] = pixels[150:170, 120:140]  # a piece of 0.026 mm²
    pixels[150:175, 120:145] = 243  # a hole of 0.04 mm²
    pixels[:, 130:134] = 243  # a gap of 32 µm
    mask = found(pixels)
    assert not mask[40:60, 320:340].any()
    assert mask[150:175, 120:145].all()
    assert mask[100, 130:134].all()
    assert found(pixels, least_area_mm2=0.01)[42:58, 322:338].all()
    assert not found(pixels, largest_hole_mm2=0.02)[155:170, 138:142].any()
    assert not found(pixels, closing_um=8, largest_hole_mm2=0)[100, 131:133].any()
    # More is asked of tissue, less is tissue.
    dense = [found(pixels, least_density=d).sum() for d in (0.02, 0.1, 0.3, 0.9)]
    assert dense == sorted(dense, reverse=True)
    assert dense[0] > 1.2 * dense[2] > 0
    assert dense[3] == 0
    varied = [found(pixels, least_texture=t).sum() for t in (0.0, 0.05, 0.15, 0.5)]
    assert varied == sorted(varied, reverse=True)
    assert varied[0] > varied[2]
    assert varied[3] == 0


def test_one_overview_answers_every_question(section):
    pixels, _ = section()
    seen = Overview(pixels, (1.0, 1.0), (MPP, MPP))
    for params in (TissueParams(), TissueParams(closing_um=0), TissueParams()):
        alone = Overview(pixels, (1.0, 1.0), (MPP, MPP)).tissue(params)
        np.testing.assert_array_equal(seen.tissue(params).mask, alone.mask)


def test_what_is_set_is_remembered_for_that_slide(section_slide, make_slide):
    path, _ = section_slide
    params = TissueParams(least_density=0.3, leave_out_marks=False)
    with Slide.open(path) as slide, Slide.open(make_slide()) as other:
        usual = tissue_mask(slide).mask
        assert remembered_params(slide) == TissueParams()
        remember_params(slide, params)
        assert remembered_params(slide) == params
        assert remembered_params(other) == TissueParams()
        np.testing.assert_array_equal(
            tissue_mask(slide).mask, tissue_mask(slide, params).mask
        )
        assert tissue_mask(slide).mask.sum() < usual.sum()
        np.testing.assert_array_equal(tissue_mask(slide, TissueParams()).mask, usual)
        remember_params(slide, TissueParams())
        assert remembered_params(slide) == TissueParams()
    assert json.loads((home() / "tissue.json").read_text()) == {}


@pytest.mark.parametrize(
    "damaged", [[1], {"least_density": 7}, {"what": 1}, "x", {"closing_um": "wide"}]
)
def test_a_damaged_memory_is_no_memory(make_slide, damaged):
    with Slide.open(make_slide()) as slide:
        home().mkdir(parents=True, exist_ok=True)
        (home() / "tissue.json").write_text(json.dumps({slide.slide_id: damaged}))
        assert remembered_params(slide) == TissueParams()


# ---- the small tools


def test_tools_match_the_slow_ones():
    random = np.random.default_rng(0)
    for shape in ((1, 1), (2, 9), (37, 23), (40, 64)):
        values = random.integers(0, 256, shape, dtype=np.uint8)
        slow = ndimage.median_filter(values, 3, mode="nearest")
        np.testing.assert_array_equal(median3(values), slow)
        for share in (0.02, 0.5, 0.9):
            mask = random.random(shape) < share
            for radius in (0, 1, 2, 5, 11):
                y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
                disk = x**2 + y**2 <= radius**2
                np.testing.assert_array_equal(
                    dilated(mask, radius), ndimage.binary_dilation(mask, disk)
                )
                wide = np.pad(mask, radius + 1)
                slow = ndimage.binary_closing(wide, disk)
                inside = np.s_[radius + 1 : -radius - 1, radius + 1 : -radius - 1]
                np.testing.assert_array_equal(closed(mask, radius), slow[inside])
            np.testing.assert_array_equal(
                without_small(mask, 3), plain_without_small(mask, 3)
            )


def plain_without_small(mask, most):
    """Flood every piece, pixel by pixel."""
    left, kept = {tuple(at) for at in np.argwhere(mask)}, np.zeros_like(mask)
    while left:
        piece, border = [], [left.pop()]
        while border:
            y, x = border.pop()
            piece.append((y, x))
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    border.append(near)
        if len(piece) > most:
            kept[tuple(np.array(piece).T)] = True
    return kept


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


def test_mask_of_a_large_slide_is_coarser(section_slide, monkeypatch):
    path, tissue = section_slide
    monkeypatch.setattr(tissue_module, "MOST_MASK_PX", 160 * 200)
    with Slide.open(path) as slide:
        mask = tissue_mask(slide)
    assert mask.mask.shape == (160, 200)
    assert mask.pixel_size_l0 == (16, 16)
    assert mask.pixel_um2 == pytest.approx(256)
    assert overlap(mask.mask, tissue[::2, ::2]) > 0.9


@pytest.mark.parametrize(
    ("sides", "mpp", "level", "size"),
    [
        ((20_000, 5_000, 1_250), 0.25, 2, (625, 625)),  # 4 µm/px, shrunk to 8
        ((20_000, 5_000, 1_250), 0.5, 2, (1_250, 1_250)),
        ((20_000, 1_250), 2.0, 1, (1_250, 1_250)),  # nothing finer that is small
        ((20_000, 300), 0.25, 1, (300, 300)),
        ((2_000, 500), 2.0, 1, (500, 500)),
        ((2_000, 100), 2.0, 0, (500, 500)),  # level 0 is small itself
        ((3_000,), 2.0, 0, (750, 750)),
    ],
)
def test_a_small_level_is_read_and_never_a_large_one(stand_in, sides, mpp, level, size):
    levels = [np.broadcast_to(np.uint8(240), (side, side, 4)) for side in sides]
    slide, handle = stand_in(
        levels,
        {
            openslide.PROPERTY_NAME_MPP_X: str(mpp),
            openslide.PROPERTY_NAME_MPP_Y: str(mpp),
        },
    )
    seen = overview(slide)
    assert {at for at, _, _ in handle.reads} == {level}
    assert seen.rgb.shape[1::-1] == size
    assert seen.pixel_size_l0 == pytest.approx((sides[0] / size[0],) * 2)
    assert seen.pixel_um == pytest.approx((sides[0] / size[0] * mpp,) * 2)


@pytest.mark.parametrize("factors", [(1, 64), (1, 4, 16, 64)])
def test_mask_of_a_huge_slide(made_slide, monkeypatch, factors):
    """A slide of 25 mm and 10,000 million pixels, of which two million are read."""
    size, read = (100_000, 100_000), []
    real_read = SlideFile.read

    def watched(file, level, start, size):
        read.append((level, size[0] * size[1]))
        return real_read(file, level, start, size)

    monkeypatch.setattr(SlideFile, "read", watched)
    with Slide.open(made_slide(size, factors=factors)) as slide:
        mask = tissue_mask(slide)
    assert {level for level, _ in read} == {len(factors) - 1}
    assert sum(pixels for _, pixels in read) < 2.5e6
    y, x = (np.indices(mask.mask.shape) + 0.5) * mask.pixel_size_l0[0] / size[0]
    assert overlap(mask.mask, tissue_at(x, y)) > 0.99


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
