"""How good predictions are, all from the confusion matrix.

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
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    drawn = np.tensordot(times, each, axes=1)
    tails = (50 * (1 - level), 50 * (1 + level))
    low, high = np.percentile(metric(drawn), tails)
    return float(low), float(high)


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
    count = there.sum(-1)
    nothing = np.full(count.shape, np.nan)
    return np.divide(ratio.sum(-1), count, out=nothing, where=count > 0)
