"""Tiles of a slide in batches, read ahead of whoever computes on them."""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.errors import NotEnoughDataError, SlideError
from histomae.events import Heartbeat, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from concurrent.futures import Future

    from histomae.events import Event
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
#: A processor is kept busy by two; a GPU takes all there is.
READERS = min(16, max(2, os.cpu_count() or 2))
#: Batches read ahead.
AHEAD = READERS
#: Batches computed at a time on a GPU: one is copied while the other is computed.
GPU_AT_ONCE = 2
#: The one who waits for a batch is alive at least so often.
HEARTBEAT_S = 0.2
CPU = torch.device("cpu")
#: That torch would use at once.
CORES = torch.get_num_threads()
#: Some clocks stand still for so long.
CLOCK_STEP_S = 1e-3


@dataclass(frozen=True)
class TileBatch:
    """Some tiles: ``tiles`` uint8 (n, H, W, 3) of the cells ``index`` int (n,).

    ``unreadable`` (k,) are the cells that the file could not give, for the reason
    ``error``; n may be 0.
    """

    tiles: Array
    index: Array
    unreadable: Array
    error: SlideError | None = None


def read_tiles(
    slide: Slide, grid: TileGrid, cells: Array, *, batch_size: int
) -> Generator[TileBatch, None, None]:
    """Yield the tiles at ``cells`` (M, 2) of (row, column), in order, in batches.

    Raises
    ------
    SlideError
        If a whole batch cannot be read: the file is gone, or badly damaged.
    """
    batches = [
        np.arange(start, min(start + batch_size, len(cells)))
        for start in range(0, len(cells), batch_size)
    ]
    with ThreadPoolExecutor(READERS) as pool:
        ahead = deque(
            pool.submit(_read, slide, grid, cells, batch) for batch in batches[:AHEAD]
        )
        try:
            for number in range(len(batches)):
                batch = ahead.popleft().result()
                if number + AHEAD < len(batches):
                    wanted = batches[number + AHEAD]
                    ahead.append(pool.submit(_read, slide, grid, cells, wanted))
                if batch.error and len(batch.unreadable) in (batch_size, len(cells)):
                    raise SlideError(
                        f"No tile of {len(batch.unreadable)} in a row could be read. "
                        f"{batch.error}"
                    ) from batch.error
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(slide: Slide, grid: TileGrid, cells: Array, batch: Array) -> TileBatch:
    side = grid.spec.tile_px
    tiles: list[Array] = []
    read: list[int] = []
    failure: SlideError | None = None
    for index in batch:
        try:
            tiles.append(grid.read(slide, *cells[index]))
        except SlideError as error:
            failure = error
        else:
            read.append(index)
    pixels = np.stack(tiles) if tiles else np.empty((0, side, side, 3), np.uint8)
    return TileBatch(pixels, np.array(read, int), np.setdiff1d(batch, read), failure)


def no_tiles(slide: Slide) -> NotEnoughDataError:
    """Return the error for a slide without tissue."""
    return NotEnoughDataError(
        f"{slide.name} has no tile to look at. Check that the slide has tissue, or "
        "choose a smaller tile."
    )


def map_tiles(
    slide: Slide,
    grid: TileGrid,
    cells: Array,
    compute: Callable[[Array], Array],
    *,
    what: str,
    batch_size: int = 32,
    device: torch.device = CPU,
) -> Generator[Event, None, Array]:
    """Compute something of every tile, with progress.

    On a processor each core computes a batch of its own: several cores at one batch
    wait for each other at every layer, the longer the busier the machine is.

    Parameters
    ----------
    cells
        int (M, 2) of (row, column).
    compute
        From uint8 (n, H, W, 3) to float (n, ...). Several threads call it at once.
    device
        Where it computes.

    Returns
    -------
    float32 (M, ...): NaN where the file could not give the tile.

    Raises
    ------
    NotEnoughDataError
        If there is no cell.
    SlideError
        If a whole batch cannot be read.
    """
    if not len(cells):
        raise no_tiles(slide)
    results: Array | None = None
    begin = time.monotonic()
    done = 0
    at_once = CORES if device.type == "cpu" else GPU_AT_ONCE
    batches = read_tiles(slide, grid, cells, batch_size=batch_size)
    with closing(batches), closing(_computed(batches, compute, at_once)) as computed:
        for ready in computed:
            if ready is None:
                yield Heartbeat()
                continue
            batch, values = ready
            if len(batch.index):
                if results is None:
                    shape = (len(cells), *values.shape[1:])
                    results = np.full(shape, np.nan, np.float32)
                results[batch.index] = values
            done += len(batch.index) + len(batch.unreadable)
            per_s = done / max(time.monotonic() - begin, CLOCK_STEP_S)
            yield Progress(what, done, len(cells), per_s, (len(cells) - done) / per_s)
    assert results is not None  # an unreadable slide has raised by now
    return results


def _computed(
    batches: Iterator[TileBatch], compute: Callable[[Array], Array], at_once: int
) -> Generator[tuple[TileBatch, Array] | None, None, None]:
    """Yield batches with what was computed of them, in order; None while one waits."""
    with ThreadPoolExecutor(at_once, initializer=_compute_alone) as pool:
        flying: deque[tuple[TileBatch, Future[Array]]] = deque()
        try:
            while True:
                while len(flying) <= at_once and (batch := next(batches, None)):
                    work = compute if len(batch.index) else _nothing
                    flying.append((batch, pool.submit(work, batch.tiles)))
                if not flying:
                    return
                batch, future = flying.popleft()
                while not wait([future], HEARTBEAT_S).done:
                    yield None
                yield batch, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            _compute_together_again()


def _compute_alone() -> None:
    """Have torch compute in the calling thread alone, not on all cores."""
    torch.set_num_threads(1)


def _compute_together_again() -> None:
    """Undo what torch keeps of that for threads to come, in a thread without a past."""
    thread = Thread(target=torch.set_num_threads, args=(CORES,))
    thread.start()
    thread.join()


def _nothing(tiles: Array) -> Array:
    return tiles
