"""Tiles of labelled pictures by number, as the training loop reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.tiling import tiles_of
from histomae.errors import DataSetError
from histomae.events import Event, Progress
from histomae.learn.crops import MEMORY_BYTES, READERS, Reader

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.data.labelled import LabelledSet
    from histomae.data.tiling import Tiling

Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: Pictures between two words on how far the counting is.
TOLD_EVERY = 50


def count_tiles(
    data: LabelledSet, tiling: Tiling, tile_px: int
) -> Generator[Event, None, Indices]:
    """Return how many tiles each picture gives, int64 (n,).

    Raises
    ------
    DataSetError
        If a picture cannot be read.
    """
    if tiling.is_whole:
        return np.ones(len(data), np.int64)
    counts = np.zeros(len(data), np.int64)
    for row, picture in enumerate(data.pictures):
        if row % TOLD_EVERY == 0:
            yield Progress("counting tiles", row, len(data))
        counts[row] = len(tiles_of(tiling, picture, data.read(picture), tile_px))
    yield Progress("counting tiles", len(data), len(data))
    return counts


def tile_numbers(rows: Indices, counts: Indices) -> tuple[Indices, Indices]:
    """Return the picture, and the place in it, of each tile of some pictures.

    Parameters
    ----------
    rows
        int64 (m,), of the data set.
    counts
        int64 (n,), from :func:`count_tiles`.

    Returns
    -------
    int64 (q,) each: rows of the data set, and numbers from 0.
    """
    picture = np.repeat(rows, counts[rows])
    starts = np.cumsum(counts[rows]) - counts[rows]
    return picture, np.arange(len(picture)) - np.repeat(starts, counts[rows])


class LabelledTiles(Reader):
    """Reads tiles of labelled pictures; a picture is decoded for all of its tiles.

    A tile that cannot be read ends the work: another in its place would have another
    label.

    Parameters
    ----------
    picture, place
        int64 (q,), of each tile; see :func:`tile_numbers`.
    memory_bytes, readers
        As for :class:`histomae.learn.crops.CropReader`.
    """

    what = "tiles"
    errors = (DataSetError,)

    def __init__(
        self,
        data: LabelledSet,
        tiling: Tiling,
        tile_px: int,
        picture: Indices,
        place: Indices,
        *,
        memory_bytes: int = MEMORY_BYTES,
        readers: int = READERS,
    ) -> None:
        each = 3 * tile_px**2 * (int(place.max(initial=0)) + 1)
        super().__init__(
            np.zeros(len(picture), bool),
            room=max(1, memory_bytes // each),
            evicts=True,
            readers=readers,
        )
        self._data, self._tiling, self._tile_px = data, tiling, tile_px
        self._picture, self._place = picture, place

    def read(self, index: int) -> Pixels:
        """Return tile ``index``, uint8 (tile_px, tile_px, 3).

        Raises
        ------
        DataSetError
            If its picture cannot be read.
        """
        row = int(self._picture[index])
        return self._decoded(row, row)[int(self._place[index])]

    def read_batch(self, indices: Indices) -> Pixels:
        """Return several tiles, uint8 (N, tile_px, tile_px, 3)."""
        return np.stack([self.read(index) for index in indices.tolist()])

    def _decode(self, index: int) -> Pixels:
        picture = self._data.pictures[index]
        return tiles_of(self._tiling, picture, self._data.read(picture), self._tile_px)
