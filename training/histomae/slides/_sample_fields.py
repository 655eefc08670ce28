"""Smooth fields in micrometres for the synthetic sample slide.

A field is held on a coarse grid and evaluated wherever it is asked for, so that the
same anatomy can be painted at any pixel size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.random import Generator as Rng

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
#: Standard deviation of a cubic B-spline surface whose coefficients have unit variance.
SPLINE_STD = 0.479


@dataclass(frozen=True)
class Field:
    """A function of (x, y) in µm: ``knots`` float32 (rows, columns), and how joined.

    Knot (row, column) sits at ((column + 0.5) · spacing, (row + 0.5) · spacing) from
    ``origin_um`` (x, y). Degree 1 joins them by straight lines, degree 3 by cubic
    B-splines (which pass near the knots, not through them).
    """

    knots: Floats
    spacing_um: float
    degree: int = 1
    origin_um: tuple[float, float] = (0.0, 0.0)

    def at(self, x_um: Floats, y_um: Floats) -> Floats:
        """Return the values (len(y), len(x)) where ``x_um`` and ``y_um`` cross."""
        across, down = self._weights(x_um, y_um)
        used = np.unique(down.indices)
        rows = slice(used[0], used[-1] + 1)
        narrow = np.ascontiguousarray((across @ self.knots[rows].T).T)
        values: Floats = down[:, rows] @ narrow
        return values

    def at_points(self, xy_um: Floats) -> Floats:
        """Return the values (n) at points (n, 2) of (x, y) in µm."""
        across, down = self._weights(xy_um[:, 0], xy_um[:, 1])
        values: Floats = np.asarray(across.multiply(down @ self.knots).sum(axis=1))
        return values.ravel()

    def times(self, factor: float) -> Field:
        """Return this field times ``factor``."""
        knots = self.knots * np.float32(factor)
        return Field(knots, self.spacing_um, self.degree, self.origin_um)

    def plus_plane(self, slope: tuple[float, float]) -> Field:
        """Return this field plus ``slope`` · (x, y)."""
        rows, columns = self.knots.shape
        x = self.origin_um[0] + (np.arange(columns) + 0.5) * self.spacing_um
        y = self.origin_um[1] + (np.arange(rows) + 0.5) * self.spacing_um
        plane = slope[0] * x + slope[1] * y[:, None]
        knots = (self.knots + plane).astype(np.float32)
        return Field(knots, self.spacing_um, self.degree, self.origin_um)

    def _weights(self, x_um: Floats, y_um: Floats) -> tuple[Any, Any]:
        rows, columns = self.knots.shape
        x = (x_um - self.origin_um[0]) / self.spacing_um
        y = (y_um - self.origin_um[1]) / self.spacing_um
        return _spline(x, columns, self.degree), _spline(y, rows, self.degree)


def noise(rng: Rng, size_um: tuple[float, float], *, grain_um: float) -> Field:
    """Return smooth noise of unit variance, in grains, over (width, height)."""
    columns, rows = (int(np.ceil(side / grain_um)) + 4 for side in size_um)
    knots = rng.standard_normal((rows, columns), dtype=np.float32) / SPLINE_STD
    margin = -1.5 * grain_um
    return Field(knots.astype(np.float32), grain_um, 3, (margin, margin))


def _spline(at: Floats, count: int, degree: int) -> Any:
    """Return the sparse matrix (len(at), count) that evaluates a spline of ``degree``.

    Knot k is at k + 0.5; the outermost knots go on for ever.
    """
    place = at - 0.5
    first = np.floor(place)
    t = place - first
    if degree == 1:
        parts, offsets = [1 - t, t], [0, 1]
    else:
        parts = [
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        ]
        offsets = [-1, 0, 1, 2]
    rows = np.tile(np.arange(len(at)), len(parts))
    columns = np.concatenate([first + offset for offset in offsets])
    columns = columns.clip(0, count - 1).astype(np.int64)
    values = np.concatenate(parts).astype(np.float32)
    return sparse.csr_array((values, (rows, columns)), shape=(len(at), count))


def lattice(size_um: tuple[float, float], step_um: float) -> tuple[Floats, Floats]:
    """Return x and y of knots ``step_um`` apart that cover (width, height)."""
    across, down = (np.arange(int(np.ceil(side / step_um))) for side in size_um)
    return (across + 0.5) * step_um, (down + 0.5) * step_um


def smoothstep(values: Any, low: float, high: float) -> Any:
    """Return 0 below ``low``, 1 above ``high``, and a smooth rise between."""
    t = ((values - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)
