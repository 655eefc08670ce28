"""How well objects are marked: Dice of classes, AJI of objects, F1 of centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.marks import NEAR_PX, aggregated_jaccard, matched
from histomae.data.metrics import bootstrap_mean, class_f1, confusion_matrix
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

    ``dice`` float (K,), of all pixels together; ``aji`` the mean over pictures, with a
    95 % interval over patients; ``precision``, ``recall`` and ``f1`` of centres at most
    ``near_px`` apart, of all pictures together, whatever their class. AJI and F1 are
    NaN where marks are partial: what is not marked may be there.
    """

    pictures: int
    dice: Array
    aji: float
    aji_low: float
    aji_high: float
    precision: float
    recall: float
    f1: float


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
    confusion = np.zeros((kinds, kinds), int)
    ajis, patients, counts = [], [], np.zeros(3)
    for number, row in enumerate(np.asarray(rows).tolist()):
        yield Progress("marking pictures", number, len(rows))
        pixels, truth = data.read(data.pictures[row])
        found = reader.mark(pixels)
        confusion += _pixels(truth, found, kinds, partial=data.partial)
        ajis.append(aggregated_jaccard(truth.objects, found.objects))
        patients.append(data.pictures[row].patient)
        one, other = truth.centres, found.centres
        counts += len(one), len(other), matched(one, other, near_px=near_px)
    yield Progress("marking pictures", len(rows), len(rows))
    if data.partial:
        ajis, counts = [np.nan] * len(ajis), counts * np.nan
    there, found_many, hits = counts
    low, high = _interval(np.array(ajis), np.array(patients), seed)
    return DenseScore(
        pictures=len(rows),
        dice=class_f1(confusion)[1:],
        aji=_mean(np.array(ajis)),
        aji_low=low,
        aji_high=high,
        precision=_share(hits, found_many),
        recall=_share(hits, there),
        f1=_share(2 * hits, there + found_many),
    )


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
