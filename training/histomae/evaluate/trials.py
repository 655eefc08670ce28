"""What an examination leaves: trials, and all that must stand beside their scores.

A trial is one candidate (an encoder, or a baseline), taught once and tested once: one
fold of one setting. Everything a report shows is computed from the trials of one
evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from histomae.data.labelled import LabelledSet

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


Setting = Mapping[str, str | float]


def words_of(setting: Setting) -> str:
    """Return a setting in words, named as in tables: ``fraction 0.2, draw 1``."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in setting.items()
    )


def called(candidate: str, setting: Setting) -> str:
    """Return what one row of the table is called."""
    return " ".join(filter(None, [candidate, words_of(setting)]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One candidate, taught and tested once; m pictures of its test side, K classes."""

    candidate: str
    """Whose it is: the encoder's name, or that of a baseline, such as colour."""
    setting: Setting
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

    def of(self, tested: Indices, setting: Setting) -> Trial:
        """Return the trial of some of the rows tested, told apart by more setting."""
        kept = np.isin(self.tested, tested)
        picture, votes = self.patch_picture, self.patch_probabilities
        if picture is not None and votes is not None:
            patches = kept[picture]
            picture, votes = (np.cumsum(kept) - 1)[picture[patches]], votes[patches]
        return replace(
            self,
            setting={**self.setting, **setting},
            tested=self.tested[kept],
            probabilities=self.probabilities[kept],
            logits=None if self.logits is None else self.logits[kept],
            patch_picture=picture,
            patch_probabilities=votes,
        )


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
    leaks: tuple[str, ...] | None = None
    """Sentences on what stands on two sides; empty: looked for and none found; None:
    not looked for."""
    looked_for: tuple[str, ...] = ()
    """Among what leaks were looked for, and"""
    not_looked_for: tuple[str, ...] = ()
    """among what they were not, such as pixels."""
    notes: tuple[str, ...] = ()
    """Sentences: what the numbers do not show."""
    embedding: Mapping[str, Array] = field(default_factory=dict)
    """Features by candidate, float32 (n, D), for the map; may be empty."""
    published: tuple[Mapping[str, Any], ...] = ()
    """Rows of papers to stand beside ours: paper, what, metric, value, spread."""
