"""Tiles come in order, and a bad spot in the file costs its own tiles only."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import numpy as np
import pytest
import torch

from histomae.errors import NotEnoughDataError, SlideError
from histomae.events import Heartbeat, Progress
from histomae.infer import tiles as tiles_module
from histomae.infer.tiles import AHEAD, CORES, READERS, map_tiles, read_tiles
from histomae.slides.grid import TileGrid, TileSpec
from tests.patience import PATIENCE_S


class Spotty:
    """A slide whose tiles are filled with their column, some of them unreadable."""

    name = "spotty"

    def __init__(self, bad=()):
        self.bad = set(bad)
        self.reads = 0

    def read_region(self, xy_l0, size_px, mpp):
        self.reads += 1
        col = round(xy_l0[0] / 8)
        if col in self.bad:
            raise SlideError(f"column {col} is torn. Scan it anew.")
        return np.full((*size_px, 3), col, np.uint8)


ROW = TileGrid(TileSpec(8, 1.0), (0.0, 0.0), (8.0, 8.0), rows=1, cols=200)


def cells_to(count):
    return np.stack([np.zeros(count, int), np.arange(count)], 1)


def columns(tiles):
    return tiles[:, 0, 0, 0].astype(np.float32)


def test_tiles_are_those_of_their_cells(slide, grid):
    cells = np.array([[5, 3], [0, 0], [6, 7], [2, 1], [13, 13]])
    batches = list(read_tiles(slide, grid, cells, batch_size=2))
    assert [len(batch.index) for batch in batches] == [2, 2, 1]
    tiles = np.concatenate([batch.tiles for batch in batches])
    for tile, (row, col) in zip(tiles, cells, strict=True):
        alone = slide.read_region(grid.xy_l0(row, col), (32, 32), 1.0)
        np.testing.assert_array_equal(tile, alone)


def test_results_are_in_the_order_of_the_cells(run):
    cells = cells_to(7)[::-1]
    events, values = run(
        map_tiles(Spotty(), ROW, cells, columns, what="counting", batch_size=3)
    )
    np.testing.assert_array_equal(values, [6, 5, 4, 3, 2, 1, 0])
    assert values.dtype == np.float32
    assert [(e.what, e.done, e.total) for e in events if isinstance(e, Progress)] == [
        ("counting", 3, 7),
        ("counting", 6, 7),
        ("counting", 7, 7),
    ]
    assert events[-1].seconds_left == 0
    assert all(event.per_s > 0 for event in events)


def test_an_unreadable_tile_is_nan(run):
    _, values = run(
        map_tiles(Spotty({1, 4}), ROW, cells_to(6), columns, what="x", batch_size=3)
    )
    np.testing.assert_array_equal(values, [0, np.nan, 2, 3, np.nan, 5])


def test_the_last_tile_may_be_unreadable_though_it_is_a_batch_of_its_own(run):
    events, values = run(
        map_tiles(Spotty({6}), ROW, cells_to(7), columns, what="x", batch_size=3)
    )
    np.testing.assert_array_equal(values, [0, 1, 2, 3, 4, 5, np.nan])
    assert events[-1].done == 7


@pytest.mark.parametrize("count", [2, 7])
def test_a_whole_batch_that_cannot_be_read_ends_the_work(run, count):
    slide = Spotty(range(200))
    with pytest.raises(SlideError, match=r"No tile of \d in a row .* Scan it anew"):
        run(map_tiles(slide, ROW, cells_to(count), columns, what="x", batch_size=3))


def test_no_cells(run):
    with pytest.raises(NotEnoughDataError, match="spotty has no tile"):
        run(map_tiles(Spotty(), ROW, cells_to(0), columns, what="x"))


def test_batches_are_computed_at_once_each_in_a_thread_of_its_own(run):
    together = Barrier(CORES, timeout=PATIENCE_S)
    threads = []

    def compute(tiles):
        together.wait()
        threads.append(torch.get_num_threads())
        return columns(tiles)

    cells = cells_to(3 * CORES)
    _, values = run(map_tiles(Spotty(), ROW, cells, compute, what="x", batch_size=1))
    np.testing.assert_array_equal(values, np.arange(3 * CORES))
    assert threads == [1] * 3 * CORES


def test_the_rest_of_the_program_computes_on_all_cores_as_before(run):
    before = torch.get_num_threads()
    run(map_tiles(Spotty(), ROW, cells_to(9), columns, what="x", batch_size=2))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == CORES
    assert torch.get_num_threads() == before


def test_it_is_alive_while_a_batch_takes_long(run, monkeypatch):
    monkeypatch.setattr(tiles_module, "HEARTBEAT_S", 0.01)
    waited = Event()

    def compute(tiles):
        waited.wait(PATIENCE_S)
        return columns(tiles)

    work = map_tiles(Spotty(), ROW, cells_to(2), compute, what="x")
    assert isinstance(next(work), Heartbeat)
    waited.set()
    events, values = run(work)
    assert isinstance(events[-1], Progress)
    np.testing.assert_array_equal(values, [0, 1])


def test_closing_ends_the_reading():
    slide = Spotty()
    work = map_tiles(slide, ROW, cells_to(200), columns, what="x", batch_size=4)
    next(work)
    work.close()
    read = slide.reads
    assert read <= 4 * (1 + CORES + 1 + AHEAD + READERS)
    with pytest.raises(StopIteration):
        next(work)
    assert slide.reads == read
