"""Tiles of a slide in batches, read ahead of whoever computes on them."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import NotEnoughDataError, SlideError
from histomae.events import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from histomae.events import Event
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
READERS = 2
#: Batches read ahead.
AHEAD = 2
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
) -> Iterator[TileBatch]:
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
        xy_l0 = grid.xy_l0(*cells[index])
        try:
            tiles.append(slide.read_region(xy_l0, (side, side), grid.spec.mpp))
        except SlideError as error:
            failure = error
        else:
            read.append(index)
    pixels = np.stack(tiles) if tiles else np.empty((0, side, side, 3), np.uint8)
    return TileBatch(pixels, np.array(read, int), np.setdiff1d(batch, read), failure)


def map_tiles(
    slide: Slide,
    grid: TileGrid,
    cells: Array,
    compute: Callable[[Array], Array],
    *,
    what: str,
    batch_size: int = 32,
) -> Generator[Event, None, Array]:
    """Compute something of every tile, with progress.

    Parameters
    ----------
    cells
        int (M, 2) of (row, column).
    compute
        From uint8 (n, H, W, 3) to float (n, ...).

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
        raise NotEnoughDataError(
            f"{slide.name} has no tile to look at. Check that the slide has tissue, or "
            "choose a smaller tile."
        )
    results: Array | None = None
    begin = time.monotonic()
    done = 0
    for batch in read_tiles(slide, grid, cells, batch_size=batch_size):
        if len(batch.index):
            values = compute(batch.tiles)
            if results is None:
                results = np.full((len(cells), *values.shape[1:]), np.nan, np.float32)
            results[batch.index] = values
        done += len(batch.index) + len(batch.unreadable)
        per_s = done / max(time.monotonic() - begin, CLOCK_STEP_S)
        yield Progress(what, done, len(cells), per_s, (len(cells) - done) / per_s)
    assert results is not None  # an unreadable slide has raised by now
    return results
