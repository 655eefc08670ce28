"""How good predictions are, from the confusion matrix or from probabilities.

Frame of every confusion matrix: rows are the true class, columns the predicted one.
Of many matrices at once the scores come at once: (..., K, K) gives (...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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


def class_f1(confusion: Array) -> Array:
    """Return the F1 of each class, float (..., K).

    NaN for a class that is neither there nor predicted.
    """
    found = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _ratio(2 * found, confusion.sum(-1) + confusion.sum(-2))


def weighted_f1(confusion: Array) -> Array:
    """Return the mean of F1, each class as often as it is there, float (...)."""
    there = confusion.sum(-1)
    each = np.nan_to_num(class_f1(confusion))
    return _ratio((each * there).sum(-1), there.sum(-1))


def sensitivity(confusion: Array) -> Array:
    """Return the share of class 1 that was found, float (...), of (..., 2, 2)."""
    return _ratio(confusion[..., 1, 1], confusion[..., 1, :].sum(-1))


def specificity(confusion: Array) -> Array:
    """Return the share of class 0 that was left alone, float (...), of (..., 2, 2)."""
    return _ratio(confusion[..., 0, 0], confusion[..., 0, :].sum(-1))


def patient_scores(right: Array, patients: Array) -> Array:
    """Return the share of each patient's pictures that are right, float (P,).

    Parameters
    ----------
    right
        bool (M,).
    patients
        (M,), anything that sorts; the scores come in the order of its values.
    """
    _, group = np.unique(patients, return_inverse=True)
    return np.bincount(group, right) / np.bincount(group)


def patient_level_accuracy(right: Array, patients: Array) -> float:
    """Return PLA: the mean over patients of the share of their pictures that are right.

    Spanhol et al., IEEE TBME 2016. Where every picture counts alike (ILA) it is
    :func:`accuracy`. NaN where there is none.
    """
    return float(patient_scores(right, patients).mean()) if len(right) else np.nan


def mean_and_std(values: Sequence[float] | Array) -> tuple[float, float]:
    """Return the mean over folds, and their standard deviation (n - 1 below).

    Of what is NaN nothing is known and it does not count; the deviation of one value is
    NaN.
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if len(known) else np.nan
    return mean, float(known.std(ddof=1)) if len(known) > 1 else np.nan


# Votes: from the patches of a picture to the picture -----------------------------


def soft_vote(probabilities: Array, picture: Array, count: int) -> Array:
    """Return the mean probabilities of each picture's patches, float (count, K).

    Parameters
    ----------
    probabilities
        float (Q, K), of patches.
    picture
        int (Q,), 0 to count - 1; every picture has a patch.
    """
    sums = np.zeros((count, probabilities.shape[1]))
    np.add.at(sums, picture, probabilities)
    return sums / np.bincount(picture, minlength=count)[:, None]


def majority_vote(probabilities: Array, picture: Array, count: int) -> Array:
    """Return the class that most of each picture's patches are taken for, int (count,).

    Among classes of as many votes that of the higher mean probability wins, and among
    those the first. Parameters are those of :func:`soft_vote`.
    """
    kinds = probabilities.shape[1]
    places = picture * kinds + probabilities.argmax(1)
    votes = np.bincount(places, minlength=count * kinds).reshape(count, kinds)
    leading = votes == votes.max(1, keepdims=True)
    means = soft_vote(probabilities, picture, count)
    return np.where(leading, means, -1.0).argmax(1)


# Calibration ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often predictions are right that are so sure, in B bins of equal width.

    ``edges`` float (B + 1,), from 0 to 1; ``count`` int (B,); ``confidence`` and
    ``accuracy`` float (B,), the means in each bin, NaN where it is empty.
    """

    edges: Array
    count: Array
    confidence: Array
    accuracy: Array

    @property
    def ece(self) -> float:
        """The expected calibration error: how far the two differ, by predictions."""
        there = self.count > 0
        if not there.any():
            return float("nan")
        apart = np.abs(self.accuracy - self.confidence)[there]
        return float(np.average(apart, weights=self.count[there]))


def reliability(labels: Array, probabilities: Array, *, bins: int = 15) -> Reliability:
    """Return how well the probability of the class that is predicted can be trusted.

    Naeini et al., AAAI 2015; Guo et al., ICML 2017.

    Parameters
    ----------
    labels
        int (M,).
    probabilities
        float (M, K); rows sum to 1.
    """
    sure = probabilities.max(1, initial=0.0)
    right = probabilities.argmax(1) == labels if len(labels) else np.zeros(0)
    edges = np.linspace(0, 1, bins + 1)
    # A bin has its upper edge and not its lower one.
    place = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    means = [_ratio(np.bincount(place, x, bins), count) for x in (sure, right)]
    return Reliability(edges, count, *means)


# Intervals and tests -------------------------------------------------------------


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
    return bootstrap_sums(each, metric, seed=seed, draws=draws, level=level)


def bootstrap_sums(
    each: Array,
    metric: Callable[[Array], Array],
    *,
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile interval of a metric of sums over groups.

    Parameters
    ----------
    each
        (P, ...): of each group, such as its confusion matrix or its counts.
    metric
        From sums (draws, ...) to numbers (draws,); draws that give NaN do not count.

    Returns
    -------
    tuple[float, float]
        Low and high; NaN with fewer than two groups, which show no spread.
    """
    if len(each) < 2:
        return float("nan"), float("nan")
    drawn = np.concatenate(
        [
            metric(np.tensordot(times, each, axes=1))
            for times in _times_drawn(len(each), draws, seed)
        ]
    )
    return _interval(drawn[~np.isnan(drawn)], level)


def bootstrap_mean(
    values: Array, *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Return a percentile interval of the mean of values (P,), such as patients'.

    NaN with fewer than two, which show no spread.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    drawn = [times @ values for times in _times_drawn(len(values), draws, seed)]
    return _interval(np.concatenate(drawn) / len(values), level)


@dataclass(frozen=True)
class Difference:
    """By how much one candidate scores above another on the same pictures.

    ``low`` and ``high``: a 95 % interval over patients; ``p``: how likely a difference
    at least as large is if they are equally good. NaN where nothing can be said.
    """

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    labels: Array,
    one: Array,
    other: Array,
    *,
    groups: Array,
    num_classes: int,
    metric: Callable[[Array], Array] = balanced_accuracy,
    seed: int = 0,
    draws: int = 2000,
) -> Difference:
    """Return by how much ``one`` scores above ``other``, drawing the same groups anew.

    ``p`` is twice the smaller share of the draws in which the difference is of one
    sign, each with one more (Davison and Hinkley 1997).

    Parameters
    ----------
    labels, one, other
        int (M,): the truth, and what each predicts.
    groups
        (M,), such as patients.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    each = [
        _confusions(labels, predicted, group, num_classes, num_groups=max(count, 1))
        for predicted in (one, other)
    ]
    value = float(np.subtract(*(metric(matrices.sum(0)) for matrices in each)))
    if count < 2:
        return Difference(value, np.nan, np.nan, np.nan)
    drawn = np.concatenate(
        [
            np.subtract(*(metric(np.tensordot(times, one, axes=1)) for one in each))
            for times in _times_drawn(count, draws, seed)
        ]
    )
    drawn = drawn[~np.isnan(drawn)]
    low, high = _interval(drawn, 0.95)
    sides = [int((drawn <= 0).sum()), int((drawn >= 0).sum())]
    return Difference(value, low, high, min(1.0, 2 * (min(sides) + 1) / (draws + 1)))


def mcnemar(labels: Array, one: Array, other: Array) -> float:
    """Return the two-sided p of McNemar's exact test, on pictures.

    It takes pictures for independent, which those of one patient are not: where there
    are several of each, :func:`sign_flip` over patients says what holds. 1 where both
    are right and wrong on the same pictures.
    """
    only_one = int(((one == labels) & (other != labels)).sum())
    only_other = int(((one != labels) & (other == labels)).sum())
    if not only_one + only_other:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)


#: Of more patients, signs are drawn rather than all tried.
ALL_SIGNS = 14


def sign_flip(differences: Array, *, seed: int = 0, draws: int = 10_000) -> float:
    """Return the two-sided p of a permutation test on paired differences.

    If neither is better, each patient's difference might as well have had the other
    sign: p is the share of the ways to put signs whose mean is at least as far from 0.

    Parameters
    ----------
    differences
        float (P,), such as one candidate's score of each patient less the other's.
    """
    differences = np.asarray(differences, float)
    count = len(differences)
    if not count:
        return float("nan")
    if count <= ALL_SIGNS:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        signs, seen = 1 - 2 * bits, 0
    else:
        rng = np.random.default_rng(seed)
        signs, seen = rng.choice((-1, 1), size=(draws, count)), 1
    reached = np.abs(signs @ differences) >= np.abs(differences.sum()) - 1e-12
    return float((reached.sum() + seen) / (len(signs) + seen))


#: Numbers of one array while groups are drawn anew.
MOST_NUMBERS = 4_000_000


def _times_drawn(
    count: int, draws: int, seed: int, *, rows: int = 0
) -> Iterator[Array]:
    """Yield how often each of ``count`` groups is drawn, int (part of draws, count).

    Parts are so small that arrays of as many rows, or groups, fit into memory; all
    together they are the same draws whatever their size.
    """
    rng = np.random.default_rng(seed)
    most = max(1, MOST_NUMBERS // max(count, rows))
    shares = np.full(count, 1 / count)
    for start in range(0, draws, most):
        yield rng.multinomial(count, shares, size=min(most, draws - start))


def _interval(values: Array, level: float) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)


def auc(
    labels: Array,
    probabilities: Array,
    weights: Array | None = None,
    *,
    average: str = "macro",
) -> Array:
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
    average
        ``macro``: classes count alike; ``weighted``: each as often as it is there;
        ``micro``: one curve of all rows and classes together.

    Returns
    -------
    Array
        float (...); NaN where there is nothing to score.
    """
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    kinds = probabilities.shape[1]
    is_class = labels[:, None] == np.arange(kinds)
    if average == "micro":
        every = np.repeat(weights, kinds, axis=-1)
        return _auc_of(is_class.ravel(), probabilities.ravel(), every)
    each = [
        _auc_of(truth, column, weights)
        for truth, column in zip(is_class.T, probabilities.T, strict=True)
    ]
    areas = np.stack(each, axis=-1)
    there = ~np.isnan(areas)
    share = weights @ is_class if average == "weighted" else there
    found = np.where(there, areas, 0) * share
    return _ratio(found.sum(-1), (there * share).sum(-1))


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
    areas = np.concatenate(
        [
            auc(labels, probabilities, times[:, group])
            for times in _times_drawn(count, draws, seed, rows=len(group))
        ]
    )
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
