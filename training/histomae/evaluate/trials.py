"""What an examination leaves: trials, and all that must stand beside their scores.

A trial is one candidate (an encoder, or a baseline), taught once and tested once: one
fold of one setting. Everything a report shows is computed from the trials of one
evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histomae.data.labelled import LabelledSet

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One candidate, taught and tested once; m pictures of its test side, K classes."""

    candidate: str
    """Whose it is: the encoder's name, or that of a baseline, such as colour."""
    setting: Mapping[str, str | float]
    """What was varied, such as protocol, fraction, draw, magnification."""
    fold: int
    tested: Indices
    """Rows of the data set, int64 (m,)."""
    probabilities: Floats
    """float64 (m, K), of whole pictures, after the temperature."""
    logits: Floats | None = None
    """float64 (m, K) before the temperature, where there are such."""
    patch_picture: Indices | None = None
    """Of each patch its place in ``tested``, int64 (q,); None: pictures are whole."""
    patch_probabilities: Floats | None = None
    """float64 (q, K)."""
    trained: int = 0
    """Pictures that were trained on."""
    chosen: Mapping[str, str | float] = field(default_factory=dict)
    """What validation chose, such as C, temperature, epoch."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """All trials of a protocol on a data set of n pictures, and what was done."""

    protocol: str
    data: LabelledSet
    trials: tuple[Trial, ...]
    facts: Mapping[str, Any]
    """What stands above every report, as JSON: encoder and its hash, µm per pixel, crop
    rule, seed, hash of the split, of the data, of the settings, patients on each side,
    versions."""
    leaks: tuple[str, ...] = ()
    """Sentences on what stands on two sides; empty: looked for and none found."""
    notes: tuple[str, ...] = ()
    """Sentences: what the numbers do not show."""
    embedding: Mapping[str, Array] = field(default_factory=dict)
    """Features by candidate, float32 (n, D), for the map; may be empty."""
    published: tuple[Mapping[str, Any], ...] = ()
    """Rows of papers to stand beside ours: paper, what, metric, value, spread."""
