"""Tiles of a slide as vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.infer.tiles import map_tiles

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.events import Event
    from histomae.infer.encoder import TileEncoder
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide


@dataclass(frozen=True)
class Embeddings:
    """One vector per tile: ``values`` float32 (M, D) for ``cells`` int (M, 2).

    ``cells`` are (row, column) of ``grid``. Rows are NaN where a tile could not be
    read. Vectors of different encoders must never be mixed: ``encoder_id`` tells.
    """

    values: np.ndarray[Any, np.dtype[np.float32]]
    cells: np.ndarray[Any, np.dtype[np.int64]]
    grid: TileGrid
    encoder_id: str
    pooling: str


def embed_tiles(
    slide: Slide,
    encoder: TileEncoder,
    grid: TileGrid,
    cells: np.ndarray[Any, Any],
    *,
    pooling: str = "class_token",
    batch_size: int = 32,
) -> Generator[Event, None, Embeddings]:
    """Embed the tiles at ``cells`` (M, 2) of (row, column).

    Raises
    ------
    NotEnoughDataError
        If there is no cell.
    SlideError
        If the slide cannot be read.
    """
    values = yield from map_tiles(
        slide,
        grid,
        cells,
        lambda tiles: encoder.embed(tiles, pooling=pooling),
        what="embedding tiles",
        batch_size=batch_size,
    )
    return Embeddings(values, np.asarray(cells), grid, encoder.encoder_id, pooling)
