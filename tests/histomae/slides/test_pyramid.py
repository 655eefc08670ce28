"""A slide as lazy arrays: numpy's meaning, bounded memory, never a whole level 0."""

import gc
import struct
import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import openslide
import pytest

from benchmarks import tiled_slides
from histomae.errors import SlideError
from histomae.slides import pyramid as pyramid_module
from histomae.slides import slide_file
from histomae.slides.pyramid import UNREADABLE_RGB, pyramid, unreadable
from histomae.slides.slide import Slide
from histomae.slides.tile_cache import TileCache
from tests.patience import PATIENCE_S

CHUNK = 64


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 px and levels down to 100 px: much happens in a small slide."""
    monkeypatch.setattr(pyramid_module, "CHUNK_PX", CHUNK)
    monkeypatch.setattr(pyramid_module, "LEAST_CHUNK_PX", CHUNK)
    monkeypatch.setattr(pyramid_module, "SMALLEST_PX", 100)
    monkeypatch.setattr("histomae.slides.oracle.DEFAULT_TILE_PX", CHUNK)


@pytest.fixture
def open_slide(make_slide, noise):
    """Return a function that opens a slide of noise in small tiles, and its pictures.

    ``open_slide(size, factors, tile=64, **how) -> (Slide, {factor: picture})``
    """
    opened = []

    def make(size=(403, 305), factors=(1,), tile=CHUNK, **how):
        wide, high = size
        pictures = {f: noise(wide // f, high // f, seed=f) for f in factors}
        path = make_slide(levels=list(pictures.values()), tile=tile, **how)
        opened.append(Slide.open(path))
        return opened[-1], pictures

    yield make
    for slide in opened:
        slide.close()


def filled_up(pixels, shape):
    """Fill a picture up with white to a shape."""
    over = np.subtract(shape[:2], pixels.shape[:2]).clip(0)
    return np.pad(pixels, ((0, over[0]), (0, over[1]), (0, 0)), constant_values=255)[
        : shape[0], : shape[1]
    ]


def reduced(pixels, by):
    """Return the means of square blocks, one after the other."""
    high, wide = len(pixels) // by, pixels.shape[1] // by
    means = np.empty((high, wide, 3))
    for y in range(high):
        for x in range(wide):
            block = pixels[y * by : (y + 1) * by, x * by : (x + 1) * by]
            means[y, x] = block.reshape(-1, 3).mean(0)
    return means


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
@pytest.mark.parametrize("tile", [64, 48, 80, 256])
def test_slicing_means_what_it_means_in_numpy(open_slide, tile):
    slide, pictures = open_slide(tile=tile)
    level = pyramid(slide)[0]
    pixels = filled_up(pictures[1], (312, 408))
    assert level.shape == pixels.shape == (312, 408, 3)
    assert (level.ndim, level.dtype, level.size) == (3, np.uint8, pixels.size)
    assert len(level) == 312
    random = np.random.default_rng(0)
    for _ in range(300):
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


# ---- what the levels show


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "factors",
    [(1,), (1, 2, 4, 8), (1, 4), (1, 4, 8), (1, 2)],
    ids=lambda factors: str(factors),
)
def test_a_level_is_that_of_the_file_or_the_mean_of_the_finer_one(open_slide, factors):
    slide, pictures = open_slide((790, 602), factors)
    levels = pyramid(slide)
    assert [level.factor for level in levels] == [1, 2, 4, 8]
    shapes = [(608, 792, 3), (304, 396, 3), (152, 198, 3), (76, 99, 3)]
    assert [level.shape for level in levels] == shapes
    for level in levels:
        if level.factor in factors:
            # To the bit; OpenSlide's fractions of a pixel are undone but roughly.
            stored = filled_up(pictures[level.factor], level.shape).astype(int)
            is_exact = level.factor == 1 or factors == (1, 2)
            assert np.abs(level[:] - stored).max() <= (0 if is_exact else 3)
        else:
            finer = max(f for f in factors if f < level.factor)
            by = level.factor // finer
            whole = np.multiply(level.shape[:2], by)
            means = reduced(filled_up(pictures[finer], whole), by)
            assert np.abs(level[:] - means).max() <= (1 if finer == 1 else 2)


@pytest.mark.usefixtures("small_chunks")
def test_a_wide_gap_is_bridged_from_both_sides(open_slide):
    slide, pictures = open_slide((1600, 1216), (1, 16))
    levels = {level.factor: level for level in pyramid(slide)}
    assert sorted(levels) == [1, 2, 4, 8, 16]
    shape = np.multiply(levels[4].shape[:2], 4)
    means = reduced(filled_up(pictures[1], shape), 4)
    assert np.abs(levels[4][:] - means).max() <= 0.5
    # Enlarged: not 64 tiles of the file for one of the screen.
    coarse = filled_up(pictures[16], levels[16].shape)
    np.testing.assert_array_equal(levels[8][:], coarse.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(
        levels[8][33:90, 51:131], coarse.repeat(2, 0).repeat(2, 1)[33:90, 51:131]
    )


def test_the_last_level_is_one_that_the_file_stores(stand_in):
    sides = {1: 10_000, 16: 625}
    slide, handle = stand_in(
        [np.broadcast_to(np.uint8(200), (side, side, 4)) for side in sides.values()]
    )
    levels = pyramid(slide)
    assert [level.shape[0] for level in levels] == [10_000, 5_000, 2_500, 1_250, 625]
    levels[-1][:]
    levels[-2][:]
    assert {level for level, _, _ in handle.reads} == {1}


def test_jpeg_tiles_are_decoded_to_fewer_pixels(made_slide, monkeypatch):
    decoded, decode = [], slide_file.SlideFile.tile

    def watched(file, level, col, row, reduce):
        decoded.append(reduce)
        return decode(file, level, col, row, reduce)

    monkeypatch.setattr(slide_file.SlideFile, "tile", watched)
    with Slide.open(made_slide((10_000, 10_000), factors=(1, 16))) as slide:
        levels = {level.factor: level for level in pyramid(slide)}
        y, x, side = 5120, 1024, 512  # an edge of the tissue runs through
        # Blocks, for a slice would let the chunks around it be decoded as well.
        fine, _ = levels[1].block((x, y, x + side, y + side))
        assert np.ptp(fine.mean(-1)) > 100
        for factor in (2, 4, 8):
            decoded.clear()
            top, left, n = y // factor, x // factor, side // factor
            coarse, _ = levels[factor].block((left, top, left + n, top + n))
            assert set(decoded) == {factor}
            assert levels[factor].chunks == levels[1].chunks
            assert np.abs(reduced(fine, factor) - coarse).mean() < 1


@pytest.mark.usefixtures("small_chunks")
def test_a_level_of_another_factor_is_resampled(open_slide):
    slide, _ = open_slide((790, 602), (1, 3))
    levels = {level.factor: level for level in pyramid(slide)}
    for factor in (4, 8):
        wide, high = (-(-side // factor) for side in slide.dimensions)
        whole = slide.read_scaled((0, 0), (wide, high), (factor, factor))
        # Chunk by chunk it is the same picture, but for what is rounded twice.
        shown = levels[factor][:high, :wide].astype(int)
        assert np.abs(shown - whole).max() <= 3


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("tile", "chunk"), [(64, 64), (80, 80), (256, 256), (32, 64), (48, 96)]
)
def test_chunks_are_the_tiles_of_the_file(open_slide, tile, chunk):
    slide, _ = open_slide((790, 602), (1, 4), tile=tile)
    assert {level.chunks for level in pyramid(slide)} == {(chunk, chunk, 3)}


@pytest.mark.usefixtures("small_chunks")
def test_tiles_of_the_file_are_decoded_once(open_slide, monkeypatch):
    slide, _ = open_slide((512, 512))
    decoded = watch_tiles(monkeypatch)
    levels = pyramid(slide, cache=TileCache())
    levels[0][64:128, 64:192]
    assert set(decoded) >= {(0, 1, 1), (0, 2, 1)}
    levels[1][32:64, 32:96]  # the same places, half as large
    levels[0][:]
    assert sorted(decoded) == [(0, col, row) for col in range(8) for row in range(8)]


def watch_tiles(monkeypatch, meanwhile=lambda: None):
    """Return the list of (level, column, row) to which every decoded tile is added."""
    decoded, decode = [], slide_file._Opened.tile

    def watched(opened, level, col, row, reduce):
        meanwhile()
        decoded.append((level, col, row))
        return decode(opened, level, col, row, reduce)

    monkeypatch.setattr(slide_file._Opened, "tile", watched)
    return decoded


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
def test_beyond_the_slide_is_background(make_slide, noise, stand_in):
    with Slide.open(make_slide(noise(403, 305) // 2, factors=(1,))) as slide:
        whole = pyramid(slide)[0][:]
    assert (whole[305:] == 255).all()
    assert (whole[:, 403:] == 255).all()
    assert (whole[:305, :403] < 255).all()
    colour = {openslide.PROPERTY_NAME_BACKGROUND_COLOR: "F0E8F4"}
    slide, _ = stand_in([noise(403, 305)], colour)
    assert (pyramid(slide)[0][305:] == (0xF0, 0xE8, 0xF4)).all()


def test_without_small_levels_a_huge_slide_is_not_decoded_whole(stand_in):
    side = 40_000
    slide, handle = stand_in([np.broadcast_to(np.uint8(200), (side, side, 4))])
    errors = []
    levels = pyramid(slide, on_error=errors.append)
    assert (levels[-1][:] == unreadable(levels[-1].shape[:2])).all(-1).mean() > 0.9
    assert handle.reads == []
    assert "convert it to a pyramidal TIFF" in str(errors[0])
    errors.clear()
    assert np.ptp(levels[3][600:1200, 800:1600]) == 0  # nearer, it is shown
    assert errors == []


def test_what_is_claimed_but_not_stored_is_not_decoded(make_tiled, monkeypatch):
    path = make_tiled([tiled_slides.stained(500, 500)], tile=(128, 128))
    content = path.read_bytes()
    claim = struct.pack("<HHII", 257, 4, 1, 500)
    assert content.count(claim) == 1
    path.write_bytes(content.replace(claim, struct.pack("<HHII", 257, 4, 1, 1_000_000)))
    decoded = watch_tiles(monkeypatch)
    with Slide.open(path, cache=TileCache()) as slide:
        levels = pyramid(slide, cache=TileCache())
        whole = levels[4][:]
        levels[-1][:]
    assert {(col, row) for _, col, row in decoded} == set(np.ndindex(4, 4))
    assert whole.shape[0] >= 1_000_000 / 16
    assert (whole[:31, :31] < 255).any(-1).all()
    assert (whole[32:] == 255).all()


def test_what_cannot_be_read_costs_no_memory(stand_in):
    side = 6_000  # fewer chunks than failures are kept
    slide, handle = stand_in([np.broadcast_to(np.uint8(200), (side, side, 4))])
    handle.broken = [(0, 0, side, side)]
    levels = pyramid(slide, cache=TileCache(0), on_error=lambda _: None)
    tracemalloc.start()
    try:
        levels[-1][:]
        gc.collect()
        # Of the pixels that were decoded for them, the failures keep none.
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    failures = [one for level in levels for one in level._failures.values()]
    assert len(failures) > 50
    pictures = sum(one.pixels.nbytes for one in failures if one.pixels is not None)
    assert kept < pictures + (8 << 20)


def test_a_mark_ends_where_the_slide_does(stand_in):
    slide, handle = stand_in([np.broadcast_to(np.uint8(200), (300, 200, 4))])
    handle.broken = [(0, 0, 200, 300)]
    (level,) = pyramid(slide, cache=TileCache(0))
    (_, failure) = level._chunk(0, 0)
    assert "cannot be read" in str(failure)
    assert level._chunk(0, 0)[0].shape == (300, 200, 3)


def test_a_box_beyond_a_level_is_empty(make_slide, noise):
    (level, *_) = pyramid(Slide.open(make_slide(noise(300, 200))))
    pixels, error = level.block((10**6, 0, 300, 200))
    assert (pixels.size, error) == (0, None)


def test_a_real_size_has_real_levels(stand_in):
    slide, _ = stand_in([np.zeros((2967, 2220, 3), np.uint8)])
    assert [level.shape for level in pyramid(slide)] == [
        (2968, 2220, 3),
        (1484, 1110, 3),
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
    settle(levels)
    read = sum(wide * high for level, wide, high in handle.reads if level == 0)
    # What is looked at, and one ring of chunks around it.
    assert 600 * 800 <= read <= 25 * 512 * 512
    handle.reads.clear()
    levels[0][3000:3600, 5000:5800]  # kept
    levels[0][2600:3100, 4700:5100]  # was next to it
    levels[0][10:10, 5:9]  # nothing
    assert handle.reads == []
    levels[-1][:]  # the whole slide, from the small level
    assert {level for level, _, _ in handle.reads} == {1}


def settle(levels):
    """Wait until all is decoded that was asked for ahead."""
    for request in list(levels[0]._ahead._asked.values()):
        request.result(PATIENCE_S)


def test_making_a_pyramid_reads_nothing(stand_in, noise):
    slide, handle = stand_in([noise(3000, 2000)])
    pyramid(slide)
    assert handle.reads == []


@pytest.mark.usefixtures("small_chunks")
def test_cache_is_bounded(make_slide, noise):
    pixels = noise(704, 504)
    cache = TileCache(max_bytes=5 * CHUNK * CHUNK * 3)
    path = make_slide(pixels, factors=(1,), tile=CHUNK)
    with Slide.open(path, cache=cache) as slide:
        levels = pyramid(slide, cache=cache)
        for _ in range(2):
            np.testing.assert_array_equal(levels[0][:], pixels)
            assert 0 < cache.nbytes <= cache.max_bytes
            levels[1][:]
            assert 0 < cache.nbytes <= cache.max_bytes


def test_two_slides_share_a_cache_without_mixing(make_slide, noise):
    cache = TileCache()
    pictures = [noise(90, 80, seed) for seed in (1, 2)]
    slides = [
        Slide.open(make_slide(picture, factors=(1,)), cache=cache)
        for picture in pictures
    ]
    for _ in range(2):
        for slide, picture in zip(slides, pictures, strict=True):
            np.testing.assert_array_equal(pyramid(slide, cache=cache)[0][:], picture)


@pytest.mark.usefixtures("small_chunks")
def test_several_threads_slice(make_slide, noise):
    pixels = noise(500, 400)
    cache = TileCache(max_bytes=10 * CHUNK * CHUNK * 3)
    path = make_slide(pixels, factors=(1,), tile=CHUNK)
    level = pyramid(Slide.open(path, cache=cache))[0]
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


# ---- what is decoded ahead


@pytest.mark.usefixtures("small_chunks")
def test_the_ring_around_a_view_is_decoded_ahead(open_slide, monkeypatch):
    slide, pictures = open_slide((1024, 1024))
    decoded = watch_tiles(monkeypatch)
    levels = pyramid(slide)
    levels[0][300:500, 520:700]  # columns 8 to 10, rows 4 to 7
    settle(levels)
    around = [(0, col, row) for col in range(7, 12) for row in range(3, 9)]
    assert sorted(decoded) == around
    decoded.clear()
    moved = np.s_[240:440, 460:640]
    np.testing.assert_array_equal(levels[0][moved], pictures[1][moved])
    settle(levels)
    assert sorted(decoded) == [
        (0, col, row)
        for col in range(6, 11)
        for row in range(2, 8)
        if (0, col, row) not in around
    ]
    assert levels[0]._ahead.waiting == 0


@pytest.mark.usefixtures("small_chunks")
def test_what_is_asked_for_ahead_is_given_up_when_the_view_moves_on(
    open_slide, monkeypatch
):
    slide, _ = open_slide((1024, 1024))
    levels = pyramid(slide)
    gate = threading.Event()

    def meanwhile():
        if threading.current_thread() is not threading.main_thread():
            assert gate.wait(PATIENCE_S)

    decoded = watch_tiles(monkeypatch, meanwhile)
    levels[0][:10, :10]
    levels[0][900:910, 900:910]
    assert levels[0]._ahead.waiting > 0
    gate.set()
    settle(levels)
    # Of the first ring only what a thread had begun with.
    first_ring = {(0, 1, 0), (0, 0, 1), (0, 1, 1)}
    assert {(0, 0, 0), (0, 14, 14)} <= set(decoded)
    begun = len(first_ring & set(decoded))
    assert begun < 3 or slide._file._cache._threads >= 3
    assert set(decoded) - first_ring == {
        (0, 0, 0),
        *((0, col, row) for col in (13, 14, 15) for row in (13, 14, 15)),
    }


@pytest.mark.usefixtures("small_chunks")
def test_dear_chunks_are_not_made_ahead(open_slide, monkeypatch):
    slide, _ = open_slide((1600, 1216), tile=32)  # of 4 tiles each
    decoded = watch_tiles(monkeypatch)
    levels = pyramid(slide)
    levels[2][100:110, 100:110]
    settle(levels)
    assert len(decoded) == levels[2].tiles.cost == 64
    assert levels[0]._ahead.waiting == 0


# ---- what cannot be read


@pytest.fixture
def broken(stand_in, noise, small_chunks, monkeypatch):
    """A slide of noise with a place that cannot be read, and what hears of errors."""
    pixels = noise(256, 192)
    slide, handle = stand_in([pixels])
    handle.broken = [(70, 70, 80, 80)]
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(pyramid_module, "time", clock)
    return slide, handle, pixels, now


def test_a_tile_that_cannot_be_read_is_marked_and_reported(broken):
    slide, handle, pixels, now = broken
    errors = []
    level = pyramid(slide, on_error=errors.append)[0]
    opened = handle.opened
    expected = pixels.copy()
    expected[64:128, 64:128] = unreadable((64, 64))
    np.testing.assert_array_equal(level[:], expected)
    assert [type(error) for error in errors] == [SlideError]
    assert "stand-in.mrxs cannot be read at x 64, y 64" in str(errors[0])
    assert handle.opened > opened  # OpenSlide's handle was dead
    # For a moment it is not tried again; then it is, and all is well.
    handle.broken = []
    np.testing.assert_array_equal(level[:], expected)
    now[0] += pyramid_module.RETRY_S
    np.testing.assert_array_equal(level[:], pixels)
    assert len(errors) == 2


def test_a_mark_is_grey_and_hatched():
    mark = unreadable((64, 100))
    colours, counts = np.unique(mark.reshape(-1, 3), axis=0, return_counts=True)
    assert (np.ptp(colours, axis=1) == 0).all()
    assert len(colours) == 2
    assert tuple(colours[counts.argmax()]) == UNREADABLE_RGB


def test_only_the_part_that_cannot_be_read_is_marked_on_a_coarser_level(broken):
    slide, handle, pixels, now = broken
    errors = []
    levels = pyramid(slide, on_error=errors.append)
    whole = reduced(pixels, 2)
    is_marked = np.zeros(whole.shape[:2], bool)
    is_marked[32:64, 32:64] = True
    shown = levels[1][:]
    assert np.abs(shown - whole)[~is_marked].max() <= 0.5
    assert (np.ptp(shown[is_marked], axis=-1) == 0).all()
    assert len(errors) == 1
    handle.broken = []
    now[0] += pyramid_module.RETRY_S
    assert np.abs(levels[1][:] - whole).max() <= 0.5


def test_a_tile_that_cannot_be_read_needs_no_listener(broken):
    slide, handle, _, _ = broken
    handle.broken = [(0, 0, 5, 5)]
    assert pyramid(slide)[0][0, 20].tolist() == list(UNREADABLE_RGB)


def test_failures_do_not_pile_up(broken, monkeypatch):
    slide, handle, _, _ = broken
    monkeypatch.setattr(pyramid_module, "MOST_FAILURES", 3)
    handle.broken = [(0, 0, 256, 192)]
    level = pyramid(slide)[0]
    level[:]
    assert 1 <= len(level._failures) <= 3


# ---- colours


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
        assert [level.factor for level in levels] == [1, 2]
        fine = levels[0][1024:1152, 1024:1152]
        coarse = levels[1][512:576, 512:576]
    away = np.abs(reduced(fine, 2) - coarse)
    assert away.max() <= 12  # JPEG, decoded to half its size: clipped once, not thrice
    assert away.mean() < 0.5
