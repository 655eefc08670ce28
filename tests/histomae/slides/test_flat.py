"""Plain pictures as slides: the pixels that are in the file, and nothing invented."""

import numpy as np
import pytest
from PIL import Image

from histomae.errors import MissingMppError, SlideError
from histomae.slides.find import (
    find_slides,
    holds_pictures,
    is_picture,
    opens_as_picture,
)
from histomae.slides.pyramid import pyramid
from histomae.slides.slide import Slide


@pytest.fixture
def pixels(position_picture):
    return position_picture(700, 530)


@pytest.fixture
def path(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


@pytest.fixture
def slide(path):
    with Slide.open(path) as opened:
        yield opened


def test_it_has_one_level_and_no_micrometres(slide):
    assert slide.is_picture
    assert slide.dimensions == (700, 530)
    assert [level.factor for level in slide.levels] == [(1.0, 1.0)]
    assert (slide.has_mpp, slide.mpp_source) == (False, "missing")
    assert slide.associated_sizes == {}
    with pytest.raises(MissingMppError, match=r"picture scan\.png has no micrometres"):
        _ = slide.mpp
    with pytest.raises(SlideError, match="without 'label'"):
        slide.associated_image("label")


def test_its_pixels_are_those_of_the_file(slide, pixels):
    np.testing.assert_array_equal(slide.read_scaled((0, 0), (700, 530), (1, 1)), pixels)
    part = slide.read_scaled((650, 500), (100, 60), (1, 1))
    np.testing.assert_array_equal(part[:30, :50], pixels[500:, 650:])
    assert not part[30:].any()  # black beyond the edges
    assert not part[:, 50:].any()
    right = slide.native_tile(0, 1, 1)
    np.testing.assert_array_equal(right, pixels[512:, 512:])
    with pytest.raises(IndexError, match="no tile"):
        slide.native_tile(0, 2, 0)
    assert not slide.is_direct(0)
    slide.close()
    np.testing.assert_array_equal(
        slide.read_scaled((9, 8), (1, 1), (1, 1)), [[[9, 8, 0]]]
    )


def test_the_viewer_gets_levels_down_to_a_small_one(slide, pixels):
    levels = pyramid(slide)
    np.testing.assert_array_equal(np.asarray(levels[0])[:530, :700], pixels)


def test_a_persons_micrometres_are_taken(path):
    with Slide.open(path, mpp=0.1) as slide:
        assert slide.mpp == (0.1, 0.1)
        assert slide.read_region((0, 0), (35, 26), 2.0).shape == (26, 35, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
@pytest.mark.parametrize("suffix", ["png", "BMP", "tif"])
def test_other_colours_become_rgb(mode, suffix, pixels, tmp_path):
    if (mode, suffix) == ("LA", "BMP"):
        return  # Pillow writes none
    picture = Image.fromarray(pixels[:20, :30]).convert(mode)
    picture.save(tmp_path / f"one.{suffix}")
    with Slide.open(tmp_path / f"one.{suffix}") as slide:
        found = slide.read_scaled((0, 0), (30, 20), (1, 1))
    with Image.open(tmp_path / f"one.{suffix}") as stored:
        np.testing.assert_array_equal(found, np.asarray(stored.convert("RGB")))


def test_what_cannot_be_read_is_one_sentence(path, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SlideError, match=r"text\.png .*holds no picture\)\. Bring"):
        Slide.open(tmp_path / "text.png")
    with pytest.raises(SlideError, match=r"missing\.png"):
        Slide.open(tmp_path / "missing.png")
    half = tmp_path / "half.png"
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    slide = Slide.open(half)  # its size is told, its pixels are not there
    with pytest.raises(SlideError, match=r"half\.png cannot be read"):
        slide.try_pixels()


def test_a_bomb_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(SlideError, match=r"scan\.png is too large .*pyramidal TIFF"):
        Slide.open(path)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32), ("tif", np.float32)],
)
def test_what_would_be_cut_off_at_white_is_refused(suffix, kind, tmp_path):
    deep = Image.fromarray(np.full((20, 30), 900, kind))
    deep.save(tmp_path / f"deep.{suffix}")
    with pytest.raises(SlideError, match=r"more than 8 bits .*Save it with 8"):
        Slide.open(tmp_path / f"deep.{suffix}")


def test_a_tiff_without_tiles_is_a_picture(pixels, path, tmp_path, make_slide):
    plain = tmp_path / "scan.tif"
    Image.fromarray(pixels).save(plain)
    with Slide.open(plain) as slide, Slide.open(path) as png:
        assert slide.is_picture and not slide.has_mpp
        where = (650, 500), (100, 60), (1, 1)
        np.testing.assert_array_equal(
            slide.read_scaled(*where), png.read_scaled(*where)
        )
    assert find_slides([tmp_path]) == [path, plain]
    with Slide.open(make_slide(pixels)) as tiled:
        assert not tiled.is_picture
    plain.write_bytes(plain.read_bytes()[:1000])
    with pytest.raises(SlideError, match=r"scan\.tif cannot be read"):
        Slide.open(plain).try_pixels()


def test_a_slide_that_is_damaged_does_not_pass_for_a_picture(
    pixels, make_slide, monkeypatch
):
    tiled = make_slide(pixels)
    monkeypatch.setattr("histomae.slides.find.is_slide", lambda path: False)
    assert not opens_as_picture(tiled)
    tiled.write_bytes(tiled.read_bytes()[:4])
    assert not opens_as_picture(tiled)


def test_a_folder_of_pictures_is_taken_for_these(path, tmp_path, make_slide):
    Image.new("L", (5, 5)).save(tmp_path / "scan_mask_1.png")
    (tmp_path / "in").mkdir()
    Image.new("L", (5, 5)).save(tmp_path / "in" / "b.jpg")
    assert find_slides([tmp_path]) == [tmp_path / "in" / "b.jpg", path]
    assert is_picture(path)
    assert not is_picture(tmp_path / "scan_mask.png")
    assert [holds_pictures(p) for p in (tmp_path, path, tmp_path / "no.png")] == [
        *(True, True, False)
    ]
    slide = make_slide(path=tmp_path / "s.tiff")
    assert find_slides([tmp_path]) == [slide]
    assert not holds_pictures(tmp_path)
