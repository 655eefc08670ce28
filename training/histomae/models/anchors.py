"""Where tiles lie to each other: anchors, and bins of distance and direction.

PAMA (Wu et al. 2023) tells a slide's tiles apart by where they lie as seen from a few
*anchors*, tiles spread over the slide. Everything here is a pure function of *cells*,
int (L, 2), the (row, column) of each tile on the tile grid; nothing has L × L numbers.

A slide has no up: turned by 90, 180 or 270 degrees, shifted, or with its tiles in
another order it has the same anchors, distances, and directions that turn with it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

Cells = np.ndarray[Any, np.dtype[np.int64]]
Bins = np.ndarray[Any, np.dtype[np.uint8]]

DISTANCE_BINS = 64
DIRECTION_BINS = 8
#: Rounds of k-means, as published.
ROUNDS = 10
#: Bits of a row or column.
BITS = 20
#: Angles this near to the edge of a bin, in bins, lie on it.
ON_EDGE = 1e-9


def count_anchors(tiles: int, tiles_per_anchor: int) -> int:
    """Return how many anchors a bag of tiles has: ⌊n/g⌋ + 1, never more than tiles."""
    return min(tiles // tiles_per_anchor + 1, tiles)


def choose_anchors(cells: Cells, tiles_per_anchor: int) -> Cells:
    """Choose the tiles that are anchors: k-means on places, snapped to tiles.

    Deterministic, and the same tiles whatever the order, place or orientation of the
    grid. (A set of cells that a quarter or half turn maps onto itself has no
    orientation that could be told; its anchors may turn.)

    Parameters
    ----------
    cells
        int (L, 2), no two alike.
    tiles_per_anchor
        See :func:`count_anchors`.

    Returns
    -------
    int64 (K,), indices of tiles, no two alike.
    """
    upright = _upright(cells)
    count = count_anchors(len(cells), tiles_per_anchor)
    order = even_order(upright)
    first = order[((np.arange(count) + 0.5) * len(cells) / count).astype(int)]
    places = upright.astype(float)
    with warnings.catch_warnings():  # a centre without tiles stays where it is
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        centres, _ = kmeans2(places, places[first], ROUNDS, minit="matrix")
    # Tiles row by row, so that the nearest of several as near is always the same.
    by_row = np.lexsort(upright.T[::-1])
    return by_row[_nearest_each(centres, places[by_row])]


def _nearest_each(centres: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> Cells:
    """Return for each centre in turn the nearest place that no other centre took."""
    free = np.ones(len(places), bool)
    chosen = np.empty(len(centres), np.int64)
    for number, centre in enumerate(centres):
        apart = np.square(places - centre).sum(1)
        chosen[number] = np.where(free, apart, np.inf).argmin()
        free[chosen[number]] = False
    return chosen


def _upright(cells: Cells) -> Cells:
    """Return cells shifted to (0, 0) and turned to the one of four orientations.

    It is the one whose sorted cells come first in the dictionary.
    """
    turned = [cells, cells[:, ::-1] * (1, -1), -cells, cells[:, ::-1] * (-1, 1)]
    shifted = [one - one.min(0) for one in turned]
    return min(shifted, key=lambda one: np.sort(one[:, 0] << BITS | one[:, 1]).tolist())


def even_order(cells: Cells) -> Cells:
    """Return an order in which tiles that follow each other lie near each other.

    Rows and columns interleaved bit by bit (Morton 1966): the quarters of the slide
    follow each other, and within each its quarters, and so on. Every n-th tile in this
    order is an even thinning, whatever the shape of the tissue.

    Returns
    -------
    int64 (L,), a permutation.
    """
    row, col = (cells - cells.min(0)).T
    code = np.zeros(len(cells), np.int64)
    for bit in range(BITS):
        code |= (row >> bit & 1) << 2 * bit + 1 | (col >> bit & 1) << 2 * bit
    return np.argsort(code, kind="stable")


def distance_bins(cells: Cells, anchors: Cells, bins: int = DISTANCE_BINS) -> Bins:
    """Return how far each tile is from each anchor, relative to the slide's extent.

    ``bins`` equal steps from 0 to the largest distance of any two tiles; a pair exactly
    so far apart gets the bin ``bins`` of its own, as published. Whole numbers only, so
    that turned or enlarged cells have the same bins exactly.

    Parameters
    ----------
    cells
        int (L, 2).
    anchors
        int (K,), indices of tiles.

    Returns
    -------
    uint8 (K, L), 0 to ``bins``.
    """
    apart = np.square(cells[anchors, None] - cells[None]).sum(-1)
    extent = max(_squared_extent(cells), 1)
    return np.sqrt(bins**2 * apart // extent).astype(np.uint8)


def _squared_extent(cells: Cells) -> int:
    """Return the square of the largest distance of two tiles.

    These two are the first or the last of their rows.
    """
    by_row = cells[np.lexsort(cells.T[::-1])]
    starts = np.flatnonzero(np.diff(by_row[:, 0], prepend=by_row[0, 0] - 1))
    ends = np.append(starts[1:], len(by_row)) - 1
    outer = by_row[np.union1d(starts, ends)]
    return max(int(np.square(outer - one).sum(1).max()) for one in outer)


def direction_bins(
    cells: Cells, anchors: Cells, bins: int = DIRECTION_BINS, *, compat: bool = False
) -> Bins:
    """Return in which direction each tile lies as seen from each anchor.

    Bins are centred on 0°, 45°, … for eight, from the direction of rows to that of
    columns, so that a quarter turn adds ``bins``/4 to every one.

    Parameters
    ----------
    cells
        int (L, 2).
    anchors
        int (K,), indices of tiles.
    bins
        A multiple of 4.
    compat
        As published: bins begin at −180°, exactly 180° is in the last bin with its
        neighbours below it, and an anchor lies from itself in the direction 0°.

    Returns
    -------
    uint8 (K, L), 0 to ``bins - 1``; an anchor's own tile has ``bins``.
    """
    down, right = np.moveaxis(cells[None] - cells[anchors, None], -1, 0)
    turns = np.arctan2(right, down) * (bins / (2 * np.pi))
    if compat:
        found = np.floor(turns + ON_EDGE) + bins // 2
        return np.minimum(found, bins - 1).astype(np.uint8)
    found = np.floor(turns + 0.5 + ON_EDGE) % bins
    found[(down == 0) & (right == 0)] = bins
    return found.astype(np.uint8)


def direction_angles(
    directions: np.ndarray[Any, Any],
    bins: int = DIRECTION_BINS,
    *,
    compat: bool = False,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the middle of each direction bin: the inverse of :func:`direction_bins`.

    Parameters
    ----------
    directions
        int (...), 0 to ``bins - 1``.

    Returns
    -------
    float64 (...), radians from the direction of rows (down) to that of columns (right).
    """
    middle = directions - bins // 2 + 0.5 if compat else directions
    return np.asarray(middle, float) * (2 * np.pi / bins)
