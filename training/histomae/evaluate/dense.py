"""How well objects are marked: Dice of classes, AJI of objects, F1 of centres."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.marks import NEAR_PX, aggregated_jaccard, matched
from histomae.data.metrics import (
    bootstrap_mean,
    bootstrap_sums,
    class_f1,
    confusion_matrix,
)
from histomae.events import Progress

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.data.marks import MarkedSet, Marks
    from histomae.events import Event
    from histomae.infer.dense import DenseReader

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseScore:
    """How found objects agree with marked ones on some pictures; K classes.

    ``dice`` float (K,), of all pixels together, NaN of a class that none of them is
    of; ``aji`` the mean over pictures;
    ``precision``, ``recall`` and ``f1`` of centres at most ``near_px`` apart, of all
    pictures together, whatever their class. The 95 % intervals, (low, high), are over
    patients; NaN of fewer than two. AJI and F1 are NaN where marks are partial: what is
    not marked may be there.
    """

    pictures: int
    patients: int
    dice: Array
    dice_interval: tuple[float, float]
    """Of its mean over the classes."""
    aji: float
    aji_interval: tuple[float, float]
    precision: float
    recall: float
    f1: float
    f1_interval: tuple[float, float]
    near_px: float

    @property
    def mean_dice(self) -> float:
        """Over the classes that are there; NaN without any."""
        return float(_mean_dice(self.dice))


def score_dense(
    reader: DenseReader,
    data: MarkedSet,
    rows: Array,
    *,
    near_px: float = NEAR_PX,
    seed: int = 0,
) -> Generator[Event, None, DenseScore]:
    """Mark pictures, rows int (m,) of the data set, and compare with what is marked.

    Raises
    ------
    DataSetError
        If a picture cannot be read.
    """
    kinds = len(data.classes) + 1
    names = [data.pictures[row].patient for row in np.asarray(rows).tolist()]
    known, patients = np.unique(names, return_inverse=True)
    confusion = np.zeros((len(known), kinds, kinds), int)
    counts = np.zeros((len(known), 3), int)
    ajis = np.full(len(names), np.nan)
    began = time.perf_counter()
    for number, row in enumerate(np.asarray(rows).tolist()):
        took = time.perf_counter() - began
        left = took / number * (len(rows) - number) if number else None
        yield Progress("judging", number, len(rows), seconds_left=left)
        pixels, truth = data.read(data.pictures[row])
        found = reader.marks_in(*(yield from reader.look(pixels)))
        patient = patients[number]
        confusion[patient] += _pixels(truth, found, kinds, partial=data.partial)
        if not data.partial:
            ajis[number] = aggregated_jaccard(truth.objects, found.objects)
            one, other = truth.centres, found.centres
            hits = matched(one, other, near_px=near_px)
            counts[patient] += len(one), len(other), hits
    yield Progress("judging", len(rows), len(rows))
    there, found_many, hits = counts.sum(0)
    return DenseScore(
        pictures=len(rows),
        patients=len(known),
        dice=_dice(confusion.sum(0)),
        dice_interval=bootstrap_sums(
            confusion, lambda sums: _mean_dice(_dice(sums)), seed=seed
        ),
        aji=_mean(ajis),
        aji_interval=_interval(ajis, patients, seed),
        precision=_share(hits, found_many),
        recall=_share(hits, there),
        f1=float(_f1(counts.sum(0))),
        f1_interval=bootstrap_sums(counts, _f1, seed=seed),
        near_px=near_px,
    )


def _dice(confusion: Array) -> Array:
    """Return Dice of each class but none, float (..., K); it is F1 of pixels.

    NaN of a class that is not there: what was taken for it counts against the others.
    """
    there = confusion[..., 1:, :].sum(-1) > 0
    return np.where(there, class_f1(confusion)[..., 1:], np.nan)


def _mean_dice(dice: Array) -> Array:
    known = ~np.isnan(dice)
    many = known.sum(-1)
    return np.where(many > 0, np.nansum(dice, -1) / np.maximum(many, 1), np.nan)


def _f1(counts: Array) -> Array:
    """Return F1, float (...), of how many are there, were found, and fit: (..., 3)."""
    total = counts[..., 0] + counts[..., 1]
    return np.where(total > 0, 2 * counts[..., 2] / np.maximum(total, 1), np.nan)


def _pixels(truth: Marks, found: Marks, kinds: int, *, partial: bool) -> Array:
    """Return how often a pixel of each class was taken for each, int (K + 1, K + 1)."""
    one, other = truth.classes.ravel(), found.classes.ravel()
    if partial:
        one, other = one[one > 0], other[one > 0]
    return confusion_matrix(one, other, num_classes=kinds)


def _interval(values: Array, patients: Array, seed: int) -> tuple[float, float]:
    """Return an interval over patients of their mean values."""
    known = ~np.isnan(values)
    each = [
        values[known & (patients == patient)].mean()
        for patient in np.unique(patients[known])
    ]
    return bootstrap_mean(np.array(each), seed=seed)


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
