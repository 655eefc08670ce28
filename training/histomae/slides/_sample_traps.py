"""What a careless laboratory leaves on the synthetic sample slide.

Each trap is a field of 0 to 1 in µm: a pen mark, a smear of dye and dust on the glass,
and a fold in the stroma. None lies in a region of another class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histomae.slides._sample_fields import (
    Field,
    Floats,
    lattice,
    noise,
    smoothstep,
)

if TYPE_CHECKING:
    from numpy.random import Generator as Rng

    from histomae.slides._sample_places import Bools

#: Knots are this far apart, µm: specks on the cover slip are out of focus anyway.
KNOT_UM = 2.0
#: Glass is clear of tissue from the first to the second of these distances, µm.
CLEARANCE_UM = (16.0, 40.0)
#: Glass per speck of dust and per hair, µm².
SPECK_UM2, HAIR_UM2 = 26_000.0, 700_000.0


@dataclass(frozen=True)
class Traps:
    """How much of each lies where, 0 to 1."""

    ink: Field
    smear: Field
    dirt: Field
    fold: Field


def make_traps(
    inside: Field, size_um: tuple[float, float], *, foldable: Bools | None, rng: Rng
) -> Traps:
    """Put the traps on a slide.

    Parameters
    ----------
    inside
        Signed distance to the edge of the tissue, µm, positive within.
    size_um
        Width and height of the slide.
    foldable
        Where the tissue may be folded, on the knots of the traps; None: nowhere.
    rng
        Source of all randomness.
    """
    x, y = lattice(size_um, KNOT_UM)
    glass = smoothstep(-inside.at(x, y), *CLEARANCE_UM)
    corners = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
    pen_at, smear_at = rng.permutation(corners)[:2]
    maps = (
        glass * _pen(size_um, pen_at, rng=rng),
        glass * _smear(size_um, smear_at, rng=rng),
        glass * _dust(glass, rng=rng),
        np.zeros_like(glass) if foldable is None else _fold(foldable, rng=rng),
    )
    return Traps(*(Field(each.astype(np.float32), KNOT_UM) for each in maps))


def _corner_axes(size_um: tuple[float, float], corner: Floats) -> tuple[Floats, Floats]:
    """Return how far the knots lie across a corner, and away from it, µm (H, W)."""
    x, y = lattice(size_um, KNOT_UM)
    dx = np.abs(x - corner[0] * size_um[0])
    dy = np.abs(y - corner[1] * size_um[1])[:, None]
    return (dx - dy) / np.sqrt(2), (dx + dy) / np.sqrt(2)


def _pen(size_um: tuple[float, float], corner: Floats, *, rng: Rng) -> Floats:
    """Return a stroke of a marker across a corner."""
    across, away = _corner_axes(size_um, corner)
    axes, scale = lattice(size_um, KNOT_UM), min(size_um)
    line = scale * (0.125 + 0.025 * np.sin(across / (0.05 * scale)))
    wobble = noise(rng, size_um, grain_um=60.0).at(*axes)
    half = 0.017 * scale * (1 + 0.1 * wobble)
    stroke = smoothstep(half - np.abs(away - line), 0.0, 9.0)
    streaks = 0.85 + 0.09 * noise(rng, size_um, grain_um=14.0).at(*axes)
    ends = smoothstep(0.17 * scale - np.abs(across), 0, 12)
    pen: Floats = stroke * streaks * ends
    return pen


def _smear(size_um: tuple[float, float], corner: Floats, *, rng: Rng) -> Floats:
    """Return a faint smooth film of dye near a corner."""
    across, away = _corner_axes(size_um, corner)
    scale = min(size_um)
    field = noise(rng, size_um, grain_um=0.09 * scale)
    wobble = 0.2 * field.at(*lattice(size_um, KNOT_UM))
    reach = np.hypot(across / (0.17 * scale), (away - 0.14 * scale) / (0.075 * scale))
    smear: Floats = 0.9 * (1 - smoothstep(reach + wobble, 0.3, 1.15))
    return smear


def _dust(glass: Floats, *, rng: Rng) -> Floats:
    """Return specks and a few hairs where there is ``glass``."""
    dirt = np.zeros(glass.shape, np.float32)
    spots = np.argwhere(glass > 0.99)[:, ::-1] * KNOT_UM
    if not len(spots):
        return dirt
    area_um2 = len(spots) * KNOT_UM**2
    for at in rng.choice(spots, round(area_um2 / SPECK_UM2)):
        _add_speck(dirt, at, radius_um=rng.gamma(2.2, 1.9), rng=rng)
    for start in rng.choice(spots, max(1, round(area_um2 / HAIR_UM2))):
        at, turn = start, rng.uniform(0, 2 * np.pi)
        for _ in range(round(rng.uniform(40, 110))):
            turn += rng.normal(0, 0.12)
            at = at + 2.2 * np.array([np.cos(turn), np.sin(turn)])
            _add_speck(dirt, at, radius_um=1.9, rng=rng)
    return dirt


def _add_speck(dirt: Floats, at_um: Floats, *, radius_um: float, rng: Rng) -> None:
    """Put an uneven speck onto the map of dirt, unless it would stick out."""
    reach = int(np.ceil(1.5 * radius_um / KNOT_UM)) + 1
    column, row = (at_um / KNOT_UM).astype(int)
    rows, columns = dirt.shape
    if not (reach < column < columns - reach and reach < row < rows - reach):
        return
    offset = np.arange(-reach, reach + 1) * KNOT_UM
    turn = np.arctan2(offset[:, None], offset)
    waves = 0.25 * np.cos(2 * turn + rng.uniform(0, 6)) + 0.15 * np.cos(3 * turn)
    depth = radius_um * (1 + waves) - np.hypot(offset[:, None], offset)
    speck = smoothstep(depth, -1.0, 2.0) * rng.uniform(0.6, 1.0)
    window = np.s_[row - reach : row + reach + 1, column - reach : column + reach + 1]
    dirt[window] = np.maximum(dirt[window], speck)


def _fold(foldable: Bools, *, rng: Rng) -> Floats:
    """Return a double layer along a wavy line across ``foldable`` (H, W)."""
    rows, columns = np.nonzero(foldable)
    reach = 0.46 * np.sqrt(len(rows)) * KNOT_UM
    height, width = foldable.shape
    dx = (np.arange(width) - columns.mean()) * KNOT_UM
    dy = ((np.arange(height) - rows.mean()) * KNOT_UM)[:, None]
    turn = rng.uniform(0, np.pi)
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = dy * np.cos(turn) - dx * np.sin(turn)
    across = across + 22 * np.sin(along / 85 + rng.uniform(0, 2 * np.pi))
    half = 11 * np.sqrt((1 - (along / reach) ** 2).clip(0))
    fold: Floats = smoothstep(half - np.abs(across), -1.0, 3.0) * (half > 1) * foldable
    return fold
