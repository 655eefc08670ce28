"""OpenSlide's view of a file: exact where it can be, alive after an error."""

import gc
import os
import struct
import weakref

import numpy as np
import pytest

from histomae.errors import SlideError
from histomae.slides import oracle as oracle_module
from histomae.slides.oracle import Oracle, flatten, unmixed
from histomae.slides.slide import Slide


@pytest.mark.parametrize("shift", [0.23, 0.1, 0.004, -0.02, -0.17, -0.25])
@pytest.mark.parametrize("axis", [0, 1])
def test_unmixed_undoes_a_linear_interpolation(noise, shift, axis):
    pixels = np.moveaxis(noise(60, 60).astype(float), axis, 0)
    weight, step = abs(shift), 1 if shift > 0 else -1
    mixed = pixels.copy()
    for at in range(1, 59):
        mixed[at] = (1 - weight) * pixels[at] + weight * pixels[at + step]
    solved = unmixed(np.moveaxis(mixed, 0, axis).astype(np.float32), shift, axis=axis)
    # The ends are not mixed in this test; what that does fades within eight pixels.
    away = np.moveaxis(solved, axis, 0)[9:-9] - pixels[9:-9]
    assert np.abs(away).max() < 0.05


def test_flatten_keeps_opaque_pixels(noise):
    pixels = noise(30, 20)
    rgba = np.dstack([pixels, np.full((20, 30), 255, np.uint8)])
    np.testing.assert_array_equal(flatten(rgba, (1, 2, 3)), pixels)


def test_what_it_says_of_a_file(make_slide):
    oracle = Oracle(make_slide(size=(530, 410), factors=(1, 2), tile=128))
    assert oracle.vendor == "generic-tiff"
    assert oracle.level_sizes == ((530, 410), (265, 205))
    assert oracle.tile_sizes == ((128, 128), (128, 128))
    assert oracle.box(0, 4, 3) == ((512, 384), (18, 26))
    assert [directory.size for directory in oracle.directories.values()] == [
        (530, 410),
        (265, 205),
    ]
    assert oracle.associated_sizes == {}


def test_exact_is_said_of_exact_places(make_slide, noise):
    levels = [noise(1203, 901), noise(601, 450, 1)]
    oracle = Oracle(make_slide(levels=levels))
    for start in ((0, 0), (0, 300), (333, 0), (500, 400)):
        read = oracle.read(1, start, (40, 30)).astype(int)
        stored = levels[1][start[1] : start[1] + 30, start[0] : start[0] + 40]
        assert np.abs(read - stored).max() <= (0 if oracle.is_exact(1, start) else 3)
    assert oracle.is_exact(1, (0, 0))
    assert not oracle.is_exact(1, (500, 400))


def test_an_error_is_no_end(stand_in, noise):
    slide, handle = stand_in([noise(600, 400)])
    handle.broken = [(300, 0, 600, 400)]
    for _ in range(3):
        with pytest.raises(SlideError, match=r"cannot be read at x 310, y 5.*copy it"):
            slide.read_scaled((310, 5), (20, 20), (1, 1))
        assert slide.read_scaled((10, 5), (20, 20), (1, 1)).any()
    assert handle.opened == 1 + 3


@pytest.mark.parametrize(
    "size", [("1000000", "1000000"), ("60000", "60000"), ("33554433", "1")]
)
def test_tiles_too_large_for_memory_are_refused(stand_in, noise, size):
    claimed = dict(
        zip(
            ("openslide.level[0].tile-width", "openslide.level[0].tile-height"),
            size,
            strict=True,
        )
    )
    with pytest.raises(SlideError, match=r"claims tiles of .*converted"):
        stand_in([noise(60, 40)], claimed)


@pytest.mark.parametrize("size", [(1, 240), (240, 1), (7, 7)])
def test_slivers_for_tiles_are_refused(stand_in, noise, size):
    sides = zip(("width", "height"), map(str, size), strict=True)
    claimed = {f"openslide.level[0].tile-{side}": written for side, written in sides}
    with pytest.raises(SlideError, match=r"claims tiles of .*which no scanner writes"):
        stand_in([noise(600, 400)], claimed)


def test_tiles_of_unknown_size_have_one(stand_in, noise):
    for written in ("none", "0", "-5"):
        slide, _ = stand_in(
            [noise(700, 400)], {"openslide.level[0].tile-width": written}
        )
        assert slide.levels[0].tile_px == (512, 512)


def test_few_handles_are_open_at_once(make_slide, monkeypatch):
    monkeypatch.setattr(oracle_module, "MOST_OPEN", 3)
    path = make_slide(factors=(1,))
    oracles = [Oracle(path) for _ in range(8)]
    assert [each._handle is not None for each in oracles] == [False] * 5 + [True] * 3
    first = oracles[0].read(0, (0, 0), (20, 20))
    assert [each._handle is not None for each in oracles[:6]] == [True] + [False] * 5
    np.testing.assert_array_equal(first, oracles[7].read(0, (0, 0), (20, 20)))


def test_handles_of_what_is_gone_are_not_counted(make_slide):
    path = make_slide(factors=(1,))
    oracles = [Oracle(path) for _ in range(4)]
    assert all(weakref.ref(each) in oracle_module._OPEN for each in oracles)
    del oracles
    gc.collect()
    assert all(known() is not None for known in list(oracle_module._OPEN))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_opens_its_own_handle(make_slide, noise):
    pixels = noise(300, 200)
    oracle = Oracle(make_slide(pixels, factors=(1,)))
    inherited = oracle._handle
    with oracle._lock:  # as if a thread of the parent were just in the midst
        child = os.fork()
    if not child:
        same = (oracle.read(0, (7, 9), (30, 20)) == pixels[9:29, 7:37]).all()
        os._exit(0 if same and oracle._handle is not inherited else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(oracle.read(0, (0, 0), (300, 200)), pixels)


def test_a_property_whose_name_is_damaged_is_left_out(make_tiled, stained):
    path = make_tiled([stained(100, 80)])
    content = path.read_bytes()
    assert content.count(b"MPP = 0.5") == 1
    path.write_bytes(content.replace(b"MPP = 0.5", b"M\xff\xfe = 0.5"))
    oracle = Oracle(path)
    assert oracle.vendor == "aperio"
    assert "aperio.MPP" not in oracle.properties
    assert all(isinstance(value, str) for value in oracle.properties.values())


def test_what_is_claimed_beyond_the_last_tile_is_background(make_tiled, stained):
    # The height of a picture of four rows of tiles, made huge.
    path = make_tiled([stained(300, 500)], tile=(128, 128))
    content = path.read_bytes()
    claim = struct.pack("<HHII", 257, 4, 1, 500)
    assert content.count(claim) == 1
    path.write_bytes(content.replace(claim, struct.pack("<HHII", 257, 4, 1, 200_000)))
    with Slide.open(path) as slide:
        assert slide.dimensions == (300, 200_000)
        assert slide._file.stored_box == (0, 0, 300, 512)
        true = oracle_module._open_handle(path)
        for y in (0, 300, 490, 600, 100_000):
            read = slide.read_scaled((20, y), (60, 50), (1, 1))
            rgba = np.asarray(true.read_region((20, y), 0, (60, 50)))
            np.testing.assert_array_equal(read, flatten(rgba, (255, 255, 255)))
        assert slide.thumbnail(256).shape[0] == 256


# ---- pictures that come with a slide


@pytest.mark.real_data
def test_real_associated_images(shared_data):
    path = shared_data / "slides/CMU-1-Small-Region/CMU-1-Small-Region.svs"
    oracle = Oracle(path)
    assert oracle.associated_sizes == {
        "label": (387, 463),
        "macro": (1280, 431),
        "thumbnail": (574, 768),
    }
    for name, (wide, high) in oracle.associated_sizes.items():
        picture = oracle.associated_image(name)
        assert picture.shape == (high, wide, 3)
        assert 20 < picture.std() < 120
    with pytest.raises(SlideError, match=r"has no picture 'face'.*label, macro"):
        oracle.associated_image("face")


def test_a_giant_associated_image_is_not_read(stand_in, noise):
    claimed = {
        "openslide.associated.macro.width": "100000",
        "openslide.associated.macro.height": "100000",
        "openslide.associated.label.width": "many",
        "openslide.associated.label.height": "20",
    }
    slide, _ = stand_in([noise(60, 40)], claimed)
    assert dict(slide.associated_sizes) == {"macro": (100000, 100000)}
    with pytest.raises(SlideError, match="no picture 'macro' of at most 16 million"):
        slide.associated_image("macro")
