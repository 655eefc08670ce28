"""One file tile by tile: its own grid, through the shared cache."""

import pickle

import numpy as np
import pytest

from histomae.errors import SlideError
from histomae.slides.slide import Slide
from histomae.slides.tile_cache import TileCache


@pytest.fixture
def cache():
    return TileCache(8 << 20)


def test_native_tiles_lie_edge_to_edge(make_slide, noise, cache):
    levels = [noise(530, 410), noise(265, 205, 1)]
    path = make_slide(levels=levels, tile=128)
    with Slide.open(path, cache=cache) as slide:
        assert [level.tiles for level in slide.levels] == [(5, 4), (3, 2)]
        for level, pixels in zip(slide.levels, levels, strict=True):
            cols, rows = level.tiles
            joined = np.vstack(
                [
                    np.hstack(
                        [
                            slide.native_tile(level.index, col, row)
                            for col in range(cols)
                        ]
                    )
                    for row in range(rows)
                ]
            )
            np.testing.assert_array_equal(joined, pixels)


@pytest.mark.parametrize(
    "place", [(0, 5, 0), (0, 0, 4), (0, -1, 0), (0, 0, -1), (2, 0, 0)]
)
def test_there_is_no_such_tile(make_slide, place, cache):
    path = make_slide(size=(530, 410), factors=(1, 2), tile=128)
    with Slide.open(path, cache=cache) as slide, pytest.raises(IndexError):
        slide.native_tile(*place)


def test_tiles_are_decoded_once_for_all_who_open_the_file(make_slide, cache):
    path = make_slide(size=(530, 410), factors=(1,), tile=128)
    with Slide.open(path, cache=cache) as one, Slide.open(path, cache=cache) as two:
        assert one.cached_native_tile(0, 1, 2) is None
        asked = one.request_native_tile(0, 1, 2)
        tile = two.native_tile(0, 1, 2)
        assert asked.result(10) is tile
        assert one.cached_native_tile(0, 1, 2) is tile
        assert cache.nbytes == tile.nbytes


def test_a_file_of_the_same_name_is_another_file(make_slide, noise, cache, tmp_path):
    path = make_slide(noise(300, 200), factors=(1,), path=tmp_path / "a.tiff")
    slide = Slide.open(path, cache=cache)
    np.testing.assert_array_equal(
        slide.native_tile(0, 0, 0), noise(300, 200)[:200, :256]
    )
    path.unlink()
    make_slide(noise(300, 200, 5), factors=(1,), path=path)
    read = slide.read_scaled((0, 0), (300, 200), (1, 1))
    np.testing.assert_array_equal(read, noise(300, 200, 5))
    np.testing.assert_array_equal(
        slide.native_tile(0, 0, 0), noise(300, 200, 5)[:200, :256]
    )
    path.unlink()
    make_slide(noise(310, 200), factors=(1,), path=path)
    with pytest.raises(SlideError, match=r"a\.tiff has become another.*Open it again"):
        slide.read_scaled((0, 0), (300, 200), (1, 1))


def test_a_copy_for_another_process_is_opened_there(make_slide, noise):
    path = make_slide(noise(300, 200), mpp=None, factors=(1,))
    slide = Slide.open(path, mpp=0.3, direct=False)
    copy = pickle.loads(pickle.dumps(slide))
    assert copy.mpp == (0.3, 0.3)
    assert copy.slide_id == slide.slide_id
    assert copy._file._opened.oracle is not slide._file._opened.oracle
    assert not copy._file._may_be_direct
    np.testing.assert_array_equal(
        copy.read_region((5, 6), (40, 30), 0.3), noise(300, 200)[6:36, 5:45]
    )
    path.unlink()
    with pytest.raises(SlideError, match="bring it back"):
        pickle.loads(pickle.dumps(slide))


def test_what_was_decoded_outlives_the_file(make_tiled, stained, cache):
    path = make_tiled([stained(600, 400)], tile=(128, 128))
    slide = Slide.open(path, cache=cache)
    tile = slide.native_tile(0, 1, 1)
    away = path.rename(path.with_suffix(".away"))
    assert slide.native_tile(0, 1, 1) is tile
    for _ in range(2):
        with pytest.raises(SlideError, match="bring it back"):
            slide.native_tile(0, 2, 1)
    away.rename(path)
    assert slide.native_tile(0, 2, 1).shape == (128, 128, 3)
    assert slide.is_direct(0)


def test_a_file_cut_short_and_whole_again(make_tiled, stained, cache):
    path = make_tiled([stained(600, 400)], tile=(128, 128))
    content = path.read_bytes()
    slide = Slide.open(path, cache=cache, direct=True)
    whole = [slide.native_tile(0, col, row) for row in range(4) for col in range(5)]
    cache.clear()
    path.write_bytes(content[: len(content) * 2 // 3])
    for place in ((0, 0), (4, 3)):
        with pytest.raises(SlideError, match="copy it again"):
            slide.native_tile(0, *place)
    path.write_bytes(content)
    again = [slide.native_tile(0, col, row) for row in range(4) for col in range(5)]
    for one, two in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert slide.is_direct(0)


def test_regions_come_through_the_cache(make_tiled, stained, cache):
    path = make_tiled([stained(600, 400)], tile=(128, 128))
    with Slide.open(path, cache=cache, direct=True) as slide:
        slide.read_scaled((100, 100), (60, 60), (1, 1))
        kept = [
            (col, row)
            for row in range(4)
            for col in range(5)
            if slide.cached_native_tile(0, col, row) is not None
        ]
        assert {(0, 0), (1, 0), (0, 1), (1, 1)} <= set(kept)
        before = slide.read_scaled((100, 100), (60, 60), (1, 1))
        before[:] = 0  # whoever reads may change what is read
        assert slide.read_scaled((100, 100), (60, 60), (1, 1)).any()
