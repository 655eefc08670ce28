"""How good predictions are, from the confusion matrix or from probabilities.

Frame of every confusion matrix: rows are the true class, columns the predicted one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]


def confusion_matrix(labels: Array, predicted: Array, *, num_classes: int) -> Array:
    """Return how often each class was taken for each, int (K, K).

    Parameters
    ----------
    labels, predicted
        int (M,), 0 to K-1.
    """
    one_group = np.zeros(len(labels), int)
    return _confusions(labels, predicted, one_group, num_classes, num_groups=1)[0]


def accuracy(confusion: Array) -> Array:
    """Return the share found, float (...), of confusion matrices (..., K, K).

    NaN where there is nothing to score.
    """
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def balanced_accuracy(confusion: Array) -> Array:
    """Return the mean share found of each class that is there.

    Parameters
    ----------
    confusion
        (..., K, K).

    Returns
    -------
    Array
        float (...); NaN where there is nothing to score.
    """
    found = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _mean_ratio(found, confusion.sum(-1))


def macro_f1(confusion: Array) -> Array:
    """Return the unweighted mean of F1 over classes that are there or were predicted.

    Parameters
    ----------
    confusion
        (..., K, K).

    Returns
    -------
    Array
        float (...); NaN where there is nothing to score.
    """
    found = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _mean_ratio(2 * found, confusion.sum(-1) + confusion.sum(-2))


def bootstrap_interval(
    labels: Array,
    predicted: Array,
    *,
    groups: Array,
    num_classes: int,
    metric: Callable[[Array], Array] = balanced_accuracy,
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile interval of a metric, by drawing whole groups anew.

    Tiles of one group (region or patient) are alike, so that drawing tiles would make
    the interval far too narrow.

    Parameters
    ----------
    labels, predicted, groups
        int (M,).
    metric
        From confusion matrices (draws, K, K) to numbers (draws,).

    Returns
    -------
    tuple[float, float]
        Low and high; NaN with fewer than two groups, which show no spread.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    if count < 2:
        return float("nan"), float("nan")
    each = _confusions(labels, predicted, group, num_classes, num_groups=count)
    drawn = np.tensordot(_times_drawn(count, draws, seed), each, axes=1)
    return _interval(metric(drawn), level)


def _times_drawn(count: int, draws: int, seed: int) -> Array:
    """Return how often each of ``count`` groups is drawn, int (draws, count)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)


def _interval(values: Array, level: float) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)


def auc(labels: Array, probabilities: Array, weights: Array | None = None) -> Array:
    """Return the area under the ROC curve: one class against the rest, then the mean.

    Classes that are absent, or alone, do not count.

    Parameters
    ----------
    labels
        int (M,), 0 to K-1.
    probabilities
        float (M, K), or anything that grows with them.
    weights
        float (..., M): how often each row counts; None: once.

    Returns
    -------
    Array
        float (...); NaN where there is nothing to score.
    """
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    each = [
        _auc_of(labels == k, column, weights)
        for k, column in enumerate(probabilities.T)
    ]
    areas = np.stack(each, axis=-1)
    there = ~np.isnan(areas)
    return _ratio(np.where(there, areas, 0).sum(-1), there.sum(-1))


def _auc_of(positive: Array, scores: Array, weights: Array) -> Array:
    """Return how often a positive row scores above a negative one; a tie is half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    if not len(starts):
        return np.full(weights.shape[:-1], np.nan)
    sides = [np.where(side, weights, 0.0)[..., order] for side in (positive, ~positive)]
    pos, neg = (np.add.reduceat(side, starts, axis=-1) for side in sides)
    below = neg.cumsum(-1) - neg / 2
    return _ratio((pos * below).sum(-1), pos.sum(-1) * neg.sum(-1))


def bootstrap_auc(
    labels: Array,
    probabilities: Array,
    *,
    groups: Array,
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile interval of :func:`auc`, by drawing whole groups anew.

    As :func:`bootstrap_interval`, with probabilities (M, K) for predictions. Draws in
    which no class can be told from the rest do not count.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    if count < 2:
        return float("nan"), float("nan")
    times = _times_drawn(count, draws, seed)
    areas = auc(labels, probabilities, times[:, group])
    return _interval(areas[~np.isnan(areas)], level)


def _confusions(
    labels: Array, predicted: Array, group: Array, num_classes: int, *, num_groups: int
) -> Array:
    """Return one confusion matrix per group, int (G, K, K)."""
    shape = (num_groups, num_classes, num_classes)
    where = np.ravel_multi_index(
        (np.asarray(group), np.asarray(labels), np.asarray(predicted)), shape
    )
    return np.bincount(where, minlength=int(np.prod(shape))).reshape(shape)


def _mean_ratio(part: Array, whole: Array) -> Array:
    """Return the mean of part / whole over the classes where whole is not 0."""
    there = whole > 0
    ratio = np.divide(part, whole, out=np.zeros(whole.shape), where=there)
    return _ratio(ratio.sum(-1), there.sum(-1))


def _ratio(part: Array, whole: Array) -> Array:
    """Return part / whole; NaN where whole is 0."""
    part, whole = np.asarray(part), np.asarray(whole)
    nothing = np.full(whole.shape, np.nan)
    return np.divide(part, whole, out=nothing, where=whole > 0)
