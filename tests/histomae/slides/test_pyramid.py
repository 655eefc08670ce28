"""A slide as lazy arrays: numpy's meaning, bounded memory, never a whole level 0."""

import threading

import numpy as np
import openslide
import pytest

from histomae.errors import SlideError
from histomae.slides import pyramid as pyramid_module
from histomae.slides.pyramid import UNREADABLE_RGB, ChunkCache, pyramid
from histomae.slides.slide import Slide


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 px and levels down to 100 px: much happens in a small slide."""
    monkeypatch.setattr(pyramid_module, "CHUNK_PX", 64)
    monkeypatch.setattr(pyramid_module, "SMALLEST_PX", 100)


def filled_up(pixels, multiple):
    """Fill a picture up with white to whole multiples of so many pixels."""
    high, wide = pixels.shape[:2]
    return np.pad(
        pixels,
        ((0, -high % multiple), (0, -wide % multiple), (0, 0)),
        constant_values=255,
    )


def random_key(random, shape):
    """Make a key such as people and viewers write."""
    keys = []
    for length in shape[: random.integers(0, 4)]:
        kind = random.integers(0, 4)
        if kind == 0:
            keys.append(int(random.integers(-length, length)))
        elif kind == 1:
            keys.append(np.int64(random.integers(0, length)))
        else:
            start, stop = (
                None if random.random() < 0.2 else int(at)
                for at in random.integers(-length - 9, length + 9, 2)
            )
            step = random.choice([None, 1, 2, 7, -1, -3, 500])
            keys.append(slice(start, stop, step))
    if random.random() < 0.3:
        keys = [*keys[: random.integers(0, len(keys) + 1)], ...]
    return keys[0] if len(keys) == 1 and random.random() < 0.5 else tuple(keys)


@pytest.mark.usefixtures("small_chunks")
def test_slicing_means_what_it_means_in_numpy(make_slide, noise):
    pixels = noise(403, 305)
    with Slide.open(make_slide(pixels, factors=(1,))) as slide:
        level = pyramid(slide)[0]
        pixels = filled_up(pixels, 8)
        assert level.shape == pixels.shape == (312, 408, 3)
        assert (level.ndim, level.dtype, level.size) == (3, np.uint8, pixels.size)
        assert len(level) == 312
        random = np.random.default_rng(0)
        for _ in range(600):
            key = random_key(random, pixels.shape)
            np.testing.assert_array_equal(level[key], pixels[key], err_msg=str(key))
        for key in ((slice(7, 90), ..., 1), (..., 2), (..., -1, 0), (3, 4, 1), (), ...):
            np.testing.assert_array_equal(level[key], pixels[key])
        np.testing.assert_array_equal(np.asarray(level), pixels)
        np.testing.assert_array_equal(np.asarray(level, float), pixels)


@pytest.mark.parametrize("key", [512, -513, (0, 512), (0, 0, 3), (0, 0, 0, 0)])
def test_what_is_outside_is_an_index_error(make_slide, noise, key):
    level = pyramid(Slide.open(make_slide(noise(403, 305), factors=(1,))))[0]
    with pytest.raises(IndexError):
        level[key]


def test_what_is_returned_can_be_changed_without_harm(make_slide, noise):
    pixels = noise(60, 40)
    with Slide.open(make_slide(pixels, factors=(1,))) as slide:
        level = pyramid(slide)[0]
        level[:10][:] = 0
        np.testing.assert_array_equal(level[:10], pixels[:10])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "factors", [(1,), (1, 2, 4), (1, 4), (1, 8)], ids=lambda factors: str(factors)
)
def test_levels_halve_whatever_the_file_stores(make_slide, noise, factors):
    pixels = noise(790, 602)
    with Slide.open(make_slide(pixels, factors=factors)) as slide:
        levels = pyramid(slide)
        assert [level.factor for level in levels] == [1, 2, 4, 8]
        assert [level.shape for level in levels] == [
            (608, 792, 3),
            (304, 396, 3),
            (152, 198, 3),
            (76, 99, 3),
        ]
        for level in levels:
            wide, high = level.shape[1], level.shape[0]
            whole = slide.read_scaled((0, 0), (wide, high), (level.factor,) * 2)
            # Chunk by chunk it is the same picture, but for what is rounded twice.
            assert np.abs(level[:].astype(int) - whole).max() <= 3
            # And it shows the slide: the mean of a block of noise is its grey.
            inside = level[: 600 // level.factor, : 784 // level.factor]
            assert inside.mean() == pytest.approx(pixels.mean(), abs=2)


@pytest.mark.parametrize("size", [(3333, 2777), (1025, 5), (1024, 1024), (9274, 7003)])
def test_quotient_of_shapes_is_the_factor(stand_in, size):
    picture = np.broadcast_to(np.uint8(200), (*size[::-1], 4))
    slide, _ = stand_in([picture])
    levels = pyramid(slide)
    for level in levels:
        quotients = np.divide(levels[0].shape[:2], level.shape[:2])
        assert (quotients == level.factor).all()
    beyond = np.subtract(levels[0].shape[:2], size[::-1])
    assert (beyond >= 0).all()
    assert (beyond < levels[-1].factor).all()


@pytest.mark.usefixtures("small_chunks")
def test_beyond_the_slide_is_white(make_slide, noise):
    with Slide.open(make_slide(noise(403, 305) // 2, factors=(1,))) as slide:
        whole = pyramid(slide)[0][:]
    assert (whole[305:] == 255).all()
    assert (whole[:, 403:] == 255).all()
    assert (whole[:305, :403] < 255).all()


@pytest.mark.usefixtures("small_chunks")
def test_chunks_of_a_single_level_fit_without_a_seam(make_slide, noise):
    with Slide.open(make_slide(noise(700, 500), factors=(1,))) as slide:
        for level in pyramid(slide):
            wide, high = level.shape[1], level.shape[0]
            whole = slide.read_scaled((0, 0), (wide, high), (level.factor,) * 2)
            np.testing.assert_array_equal(level[:], whole)


def test_a_real_size_has_real_levels(stand_in):
    slide, _ = stand_in([np.zeros((2967, 2220, 3), np.uint8)])
    assert [level.shape for level in pyramid(slide)] == [
        (2968, 2220, 3),
        (1484, 1110, 3),
        (742, 555, 3),
    ]


def test_a_tiny_slide_has_one_level(stand_in, noise):
    slide, _ = stand_in([noise(16, 16)])
    (level,) = pyramid(slide)
    assert level[:].shape == (16, 16, 3)


def test_a_window_reads_a_window(stand_in):
    # 60 million pixels, of which a screen shows a few.
    full = np.broadcast_to(np.uint8(200), (6000, 10_000, 4))
    small = np.broadcast_to(np.uint8(200), (375, 625, 4))
    slide, handle = stand_in([full, small])
    levels = pyramid(slide)
    levels[0][3000:3600, 5000:5800]
    read = sum(wide * high for level, wide, high in handle.reads if level == 0)
    assert 600 * 800 <= read <= 9 * 512 * 512
    handle.reads.clear()
    levels[0][3000:3600, 5000:5800]  # kept
    levels[0][10:10, 5:9]  # nothing
    assert handle.reads == []
    levels[-1][:]  # the whole slide, from the small level
    assert {level for level, _, _ in handle.reads} == {1}


def test_making_a_pyramid_reads_nothing(stand_in, noise):
    slide, handle = stand_in([noise(3000, 2000)])
    pyramid(slide)
    assert handle.reads == []


@pytest.mark.usefixtures("small_chunks")
def test_cache_is_bounded(make_slide, noise):
    pixels = noise(704, 504)
    cache = ChunkCache(max_bytes=5 * 64 * 64 * 3)
    with Slide.open(make_slide(pixels, factors=(1,))) as slide:
        level = pyramid(slide, cache=cache)[0]
        for _ in range(2):
            np.testing.assert_array_equal(level[:], pixels)
            assert 0 < cache.nbytes <= cache.max_bytes


def test_cache_keeps_what_was_used_last():
    cache = ChunkCache(max_bytes=3)
    made = []

    def ask(key):
        def make():
            made.append(key)
            return np.zeros(1, np.uint8)

        cache.get((key,), make)

    for key in "abcadab":
        ask(key)
    assert made == list("abcdb")  # d pushed b out, for a had been used since
    assert cache.nbytes == 3


def test_cache_holds_one_chunk_that_is_too_large():
    cache = ChunkCache(max_bytes=10)
    for key in "ab":
        chunk = cache.get((key,), lambda: np.zeros(50, np.uint8))
        assert chunk.nbytes == 50
    assert cache.nbytes == 50


def test_two_slides_share_a_cache_without_mixing(make_slide, noise):
    cache = ChunkCache()
    pictures = [noise(90, 80, seed) for seed in (1, 2)]
    slides = [Slide.open(make_slide(picture, factors=(1,))) for picture in pictures]
    for _ in range(2):
        for slide, picture in zip(slides, pictures, strict=True):
            np.testing.assert_array_equal(pyramid(slide, cache=cache)[0][:], picture)


@pytest.mark.usefixtures("small_chunks")
def test_several_threads_slice(make_slide, noise):
    pixels = noise(500, 400)
    slide = Slide.open(make_slide(pixels, factors=(1,)))
    level = pyramid(slide, cache=ChunkCache(max_bytes=10 * 64 * 64 * 3))[0]
    wrong = []

    def look(seed):
        random = np.random.default_rng(seed)
        for _ in range(25):
            y, x = (int(at) for at in random.integers(0, 300, 2))
            window = np.s_[y : y + 90, x : x + 90]
            wrong.append((level[window] != pixels[window]).sum())

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 100
    assert not any(wrong)


@pytest.mark.usefixtures("small_chunks")
def test_a_chunk_that_cannot_be_read_is_grey_and_reported(stand_in, noise):
    pixels = noise(256, 192)
    slide, handle = stand_in([pixels])
    errors = []
    level = pyramid(slide, on_error=errors.append)[0]
    handle.broken = [(70, 70, 80, 80)]
    opened = handle.opened
    shown = level[:]
    expected = pixels.copy()
    expected[64:128, 64:128] = UNREADABLE_RGB
    np.testing.assert_array_equal(shown, expected)
    assert [type(error) for error in errors] == [SlideError]
    assert "stand-in.mrxs cannot be read at x 64, y 64" in str(errors[0])
    assert handle.opened > opened  # OpenSlide's handle was dead
    handle.broken = []
    np.testing.assert_array_equal(level[:], pixels)
    assert len(errors) == 1


@pytest.mark.usefixtures("small_chunks")
def test_a_chunk_that_cannot_be_read_needs_no_listener(stand_in, noise):
    slide, handle = stand_in([noise(100, 90)])
    handle.broken = [(0, 0, 5, 5)]
    assert pyramid(slide)[0][0, 0].tolist() == list(UNREADABLE_RGB)


def test_colour_profile_is_honoured(make_slide, noise, swapped_profile):
    pixels = noise(90, 70)
    path = make_slide(pixels, factors=(1,), iccprofile=swapped_profile)
    with Slide.open(path) as slide:
        shown = pyramid(slide)[0][:]
        stored = slide.read_region((0, 0), (90, 70), 0.5)
    assert np.abs(shown.astype(int) - pixels[..., ::-1]).max() <= 2
    np.testing.assert_array_equal(stored, pixels)  # a model sees what it always saw


def test_transparent_areas_are_white(stand_in):
    slide, _ = stand_in([np.zeros((40, 50, 4), np.uint8)])
    assert (pyramid(slide)[0][:] == 255).all()


def test_pixels_that_are_not_square_stay_pixels(stand_in, noise):
    pixels = noise(90, 60)
    slide, _ = stand_in([pixels], {openslide.PROPERTY_NAME_MPP_Y: "0.25"})
    np.testing.assert_array_equal(pyramid(slide)[0][:], pixels)


@pytest.mark.real_data
def test_real_slide_of_one_level_gets_virtual_ones(shared_data):
    path = shared_data / "slides/CMU-1-Small-Region/CMU-1-Small-Region.svs"
    with Slide.open(path) as slide:
        levels = pyramid(slide)
        assert [level.factor for level in levels] == [1, 2, 4]
        fine = levels[0][1024:1152, 1024:1152].astype(float)
        coarse = levels[2][256:288, 256:288]
    means = fine.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(means - coarse).mean() < 6
