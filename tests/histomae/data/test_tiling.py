"""Tests of histomae.data.tiling."""

from pathlib import Path

import numpy as np
import pytest

from histomae.data.labelled import LabelledPicture
from histomae.data.tiling import Tiling, tiles_of
from histomae.errors import ConfigError, UpsamplingError


def picture(height, width):
    """Red and green say where a pixel is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "count"),
    [((1536, 2048), 512, 0.5, 35), ((768, 896), 224, 0.0, 12), ((40, 40), 40, 0.0, 1)],
    ids=["BACH", "UCSB", "one"],
)
def test_patches_are_those_of_the_papers(size, patch, overlap, count):
    pixels = picture(*size)
    tiles = Tiling(how="patches", patch_px=patch, overlap=overlap).cut(pixels, patch)
    assert tiles.shape == (count, patch, patch, 3)
    across = (size[1] - patch) // round(patch * (1 - overlap)) + 1
    step = round(patch * (1 - overlap))
    for number in (0, count // 2, count - 1):
        y, x = (place * step for place in divmod(number, across))
        np.testing.assert_array_equal(
            tiles[number], pixels[y : y + patch, x : x + patch]
        )


def test_a_patch_is_resampled_to_the_encoders_tile():
    tiles = Tiling(how="patches", patch_px=64).cut(picture(128, 128), 32)
    assert tiles.shape == (4, 32, 32, 3)
    assert tiles[0, 16, 16, 0] == pytest.approx(33, abs=1)


def test_whole_squeezes_and_fit_keeps_the_shape():
    pixels = np.full((50, 100, 3), 200, np.uint8)
    assert (Tiling(how="whole").cut(pixels, 32) == 200).all()
    fitted = Tiling(how="fit").cut(pixels, 32)[0]
    assert (fitted[8:24] == 200).all()
    assert not fitted[:8].any()


def test_at_a_pixel_size_a_tile_shows_as_many_micrometres_of_any_picture():
    rule = Tiling(how="mpp", mpp=0.5)
    fine = rule.cut(picture(256, 256), 64, mpp=0.25)
    assert fine.shape == (4, 64, 64, 3)
    assert fine[1, 0, 0, 0] == pytest.approx(128, abs=2)
    assert rule.cut(picture(256, 256), 64, mpp=0.5).shape[0] == 16


def test_a_picture_smaller_than_a_tile_is_mirrored():
    tile = Tiling(how="mpp", mpp=1.0).cut(picture(20, 40), 40, mpp=1.0)[0]
    np.testing.assert_array_equal(tile[10:30], picture(20, 40))
    np.testing.assert_array_equal(tile[9], tile[10])


def test_nothing_is_upsampled_and_the_picture_is_named():
    one = LabelledPicture(path=Path("a.png"), label=0, patient="p", mpp=0.5)
    with pytest.raises(UpsamplingError, match="a.png"):
        tiles_of(Tiling(how="mpp", mpp=0.25), one, picture(64, 64), 32)


@pytest.mark.parametrize("mpp", [None, 0.5])
def test_unknown_pixel_sizes_are_asked_for(mpp):
    with pytest.raises(ConfigError, match="does not know"):
        Tiling(how="mpp", mpp=mpp).cut(picture(64, 64), 32, mpp=None if mpp else 0.5)


@pytest.mark.parametrize(
    "wrong", [{"how": "tiles"}, {"patch_px": 0}, {"overlap": 1.0}, {"mpp": 0.0}]
)
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError):
        Tiling(**wrong)
