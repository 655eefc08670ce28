"""Pairs of magnifications, and how both pictures of one are changed alike.

The magnifications of a place are numbered from the coarsest. Which two are a pair, and
how they are turned and coloured, are functions of (seed, epoch, index), as all else
(:mod:`histomae.learn.augment`).
"""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.learn.augment import Stream, uniforms

if TYPE_CHECKING:
    from histomae.learn.augment import Doubles, Floats, Indices

Bools = np.ndarray[Any, np.dtype[np.bool_]]

#: How often a picture is turned over, turned, moved and coloured, as published.
OVER, TURN, MOVE, COLOUR = 0.3, 0.3, 0.2, 0.3
#: Largest turn, degrees; largest move, share of the side; largest change of colour.
MOST_TURN, MOST_MOVE, MOST_COLOUR = 90.0, 0.05, 0.1
#: Mirrored left to right, top to bottom, or both.
MIRRORS = np.array([np.diag(d) for d in ((-1, 1), (1, -1), (-1, -1))], np.float64)
#: Brightness, contrast, saturation and hue that change nothing.
SAME_COLOUR = np.array([1.0, 1.0, 1.0, 0.0])
#: Numbers that one change is made of.
CHANGE_NUMBERS = 12


def pairs_of(strategy: str, magnifications: int) -> Indices:
    """Return the pairs (first, second) of a strategy, all as likely, int64 (P, 2).

    ``fixed``: the two finest. ``ordered``: each with the next finer one, the finest
    with the one before, so that this pair is twice as likely. ``random``: any two.
    """
    last = magnifications - 1
    if strategy == "fixed":
        pairs = [(last - 1, last)]
    elif strategy == "ordered":
        pairs = [*pairwise(range(magnifications)), (last, last - 1)]
    else:
        pairs = list(permutations(range(magnifications), 2))
    return np.array(pairs, np.int64)


def possible_pairs(strategy: str, present: Bools) -> Bools:
    """Return which pairs of a strategy each set has, bool (n, P).

    Parameters
    ----------
    present
        bool (n, M): which magnifications there are of each set.
    """
    pairs = pairs_of(strategy, present.shape[1])
    return np.asarray(present[:, pairs].all(-1))


def drawn_pairs(
    seed: int, epoch: int, indices: Indices, *, strategy: str, present: Bools
) -> Indices:
    """Return which two magnifications of each set are its pair, int64 (N, 2).

    Parameters
    ----------
    present
        bool (N, M), of these sets. Each has a pair of the strategy.
    """
    numbers = uniforms(seed, epoch, indices, stream=Stream.PAIR, count=1)
    possible = possible_pairs(strategy, present)
    place = (numbers[:, 0] * possible.sum(1)).astype(np.int64)
    chosen = (possible.cumsum(1) == place[:, None] + 1).argmax(1)
    pairs: Indices = pairs_of(strategy, present.shape[1])[chosen]
    return pairs


def changes(seed: int, epoch: int, indices: Indices) -> tuple[Floats, Floats]:
    """Return how the pictures of each set are changed, all of one set alike.

    Returns
    -------
    Affines float32 (N, 2, 3) and colours float32 (N, 4), for
    :func:`histomae.learn.augment.views`.
    """
    numbers = uniforms(seed, epoch, indices, stream=Stream.CHANGE, count=CHANGE_NUMBERS)
    over, turn, move, colour = (
        (numbers[:, i] < share)[:, None]
        for i, share in enumerate((OVER, TURN, MOVE, COLOUR))
    )
    mirror = MIRRORS[(numbers[:, 4] * len(MIRRORS)).astype(int)]
    linear = np.where(over[:, None], mirror, np.eye(2))
    angle = np.radians(MOST_TURN) * _about_zero(numbers[:, 5])
    linear = _rotations(angle * turn[:, 0]) @ linear
    # Crops are two wide, from -1 to 1.
    shift = 2 * MOST_MOVE * _about_zero(numbers[:, 6:8]) * move
    by = MOST_COLOUR * _about_zero(numbers[:, 8:12]) * colour
    affine = np.concatenate([linear, shift[:, :, None]], axis=2)
    return affine.astype(np.float32), (SAME_COLOUR + by).astype(np.float32)


def _about_zero(numbers: Doubles) -> Doubles:
    """Turn numbers in [0, 1) into numbers in [-1, 1)."""
    return 2 * numbers - 1


def _rotations(angle: Doubles) -> Doubles:
    """Return rotations, float64 (N, 2, 2)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
