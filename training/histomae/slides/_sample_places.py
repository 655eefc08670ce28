"""Where things go on the synthetic sample slide: apart, evenly spread, or in lines.

Rasters have 1 µm per pixel and points are (x, y) in µm from the raster's corner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator as Rng

    from histomae.slides._sample_fields import Floats

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Points = np.ndarray[Any, np.dtype[np.floating[Any]]]
#: Step along a traced line, µm.
STEP_UM = 1.5


class Occupied:
    """Keeps things ``gap_um`` apart; whatever is not ``free`` bool (H, W) is taken."""

    def __init__(self, free: Bools, gap_um: float) -> None:
        self._pad = int(np.ceil(gap_um))
        self._map = np.pad(~free, self._pad, constant_values=True)
        offsets = np.arange(-self._pad, self._pad + 1)
        self._disc = offsets[:, None] ** 2 + offsets**2 < gap_um**2

    def taken(self, x: float, y: float) -> bool:
        """Return whether (x, y), at most the gap outside the raster, is too near."""
        return bool(self._map[int(y) + self._pad, int(x) + self._pad])

    def take(self, x: float, y: float) -> None:
        """Put something at (x, y) within the raster."""
        row, column, side = int(y), int(x), 2 * self._pad + 1
        self._map[row : row + side, column : column + side] |= self._disc


def throw_darts(
    free: Bools,
    count: int,
    *,
    gaps_um: Sequence[float],
    rng: Rng,
    kept: Sequence[tuple[float, float]] = (),
) -> Points:
    """Return up to ``count`` points (n, 2): those ``kept``, then random ``free`` ones.

    They are apart by the first gap as long as there is room, then by the next.
    """
    pixels = np.argwhere(free)[:, ::-1]
    pixels = rng.permutation(pixels)[: 60 * max(count, 1)]
    thrown = pixels + rng.uniform(0, 1, pixels.shape)
    places = list(kept)
    for gap_um in gaps_um:
        if len(places) >= count:
            break
        occupied = Occupied(free, gap_um)
        for x, y in places:
            occupied.take(x, y)
        for x, y in thrown:
            if len(places) >= count:
                break
            if not occupied.taken(x, y):
                occupied.take(x, y)
                places.append((x, y))
    return np.array(places).reshape(-1, 2)


def spread(
    points: Points, count: int, *, rounds: int, rng: Rng
) -> tuple[Points, Floats]:
    """Spread ``count`` centres over ``points`` (m, 2); also each one's share of them.

    Lloyd's iteration: a few rounds give an even but irregular spread.
    """
    centres = points[rng.choice(len(points), count, replace=False)]
    shares = np.full(count, 1 / count)
    for _ in range(rounds):
        owner = cKDTree(centres).query(points)[1]
        sizes = np.bincount(owner, minlength=count).clip(1)
        sums = [np.bincount(owner, points[:, k], minlength=count) for k in (0, 1)]
        centres = np.stack(sums, axis=1) / sizes[:, None]
        shares = sizes / len(points)
    return centres, shares


def streamlines(
    inside: Bools, angle: Floats, *, spacing_um: float, rng: Rng
) -> list[Points]:
    """Trace lines along ``angle`` (H, W), radians, about ``spacing_um`` apart.

    Each is (n, 2), with a point every ``STEP_UM``; where lines close in on each other
    the later one ends, which looks like a branch once both have a width.
    """
    inner = ndimage.binary_erosion(inside, iterations=7)
    heading = np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(float)
    seeds, paths = Occupied(inner, spacing_um), Occupied(inner, 0.55 * spacing_um)
    pixels = np.argwhere(inner)[:, ::-1] + 0.5
    lines = []
    for start in rng.permutation(pixels)[:6000]:
        if seeds.taken(*start):
            continue
        back, ahead = (
            _trace(start, sign * heading, length_um=length, paths=paths)
            for sign, length in zip((-1, 1), rng.uniform(30, 140, 2), strict=True)
        )
        line = np.concatenate([back[::-1], [start], ahead])
        if len(line) < 16:
            continue
        lines.append(line)
        for x, y in line[::2]:
            seeds.take(x, y)
            paths.take(x, y)
    return lines


def _trace(
    start: Floats, heading: Floats, *, length_um: float, paths: Occupied
) -> Points:
    """Follow ``heading`` (H, W, 2) from ``start`` until something is in the way."""
    x, y = start
    points = []
    for _ in range(int(length_um / STEP_UM)):
        dx, dy = heading[int(y), int(x)]
        x, y = x + STEP_UM * dx, y + STEP_UM * dy
        if paths.taken(x, y):
            break
        points.append((x, y))
    return np.array(points).reshape(-1, 2)


def pixels_at(points: Points) -> tuple[Any, Any]:
    """Return the index (rows, columns) of the pixels that hold ``points`` (n, 2)."""
    rows, columns = points[:, ::-1].astype(int).T
    return rows, columns


def along_contours(height: Floats, points: Points) -> Floats:
    """Return the direction (n), radians, of ``height``'s contour lines at points."""
    down, across = np.gradient(height, axis=0), np.gradient(height, axis=1)
    index = pixels_at(points)
    angle: Floats = np.arctan2(across[index], -down[index])
    return angle
