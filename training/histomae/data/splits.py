"""Folds, and shares held out, in which no group stands on both sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.words import some_are
from histomae.errors import ConfigError, LabelError

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]

#: Shuffles tried for folds that leave every class something to learn from.
ATTEMPTS = 20


@dataclass(frozen=True)
class GroupedFolds:
    """Folds for scoring, and the classes that cannot be scored.

    ``folds`` holds (train, test) pairs of row indices, none where fewer than two
    classes can be scored. ``unscored`` are the classes with one group only: their rows
    are trained on and never tested.
    """

    folds: tuple[tuple[Array, Array], ...]
    unscored: tuple[int, ...]


def check_no_leak(train: Array, test: Array) -> None:
    """Refuse a split with a patient on both sides.

    Parameters
    ----------
    train, test
        str (M,): the patient of each row.

    Raises
    ------
    LabelError
        Naming the first few.
    """
    both = [str(one) for one in np.intersect1d(train, test)]
    if both:
        raise LabelError(
            f"{some_are(both)} both trained on and tested on, which makes scores too "
            "good. Put all slides of a patient on one side."
        )


def grouped_folds(
    labels: Array, groups: Array, *, k: int = 5, seed: int = 0
) -> GroupedFolds:
    """Split rows into at most ``k`` folds, stratified, with whole groups on one side.

    Groups are regions, slides or patients. There are as many folds as the class with
    the fewest groups has groups, if that is less than ``k``.

    Parameters
    ----------
    labels, groups
        int (M,).

    Raises
    ------
    ConfigError
        If ``k`` is below 2.
    """
    if k < 2:
        raise ConfigError("folds", f"{k} is too small. Choose 2 or more.")
    labels, groups = np.asarray(labels), np.asarray(groups)
    counts = {int(c): len(np.unique(groups[labels == c])) for c in np.unique(labels)}
    unscored = tuple(c for c, count in counts.items() if count < 2)
    scored = [c for c, count in counts.items() if count >= 2]
    if len(scored) < 2:
        return GroupedFolds((), unscored)
    k = min(k, *(counts[c] for c in scored))
    tried = (_split(labels, groups, scored, k, seed + i) for i in range(ATTEMPTS))
    return GroupedFolds(_first_complete(tried, labels, scored), unscored)


def _first_complete(
    tried: Any, labels: Array, scored: list[int]
) -> tuple[tuple[Array, Array], ...]:
    """Return the first folds that train on every class, else those that lack least."""
    best: tuple[tuple[Array, Array], ...] = ()
    least = np.inf
    for folds in tried:
        lacking = sum(
            len(set(scored) - set(np.unique(labels[train]).tolist()))
            for train, _ in folds
        )
        if lacking < least:
            best, least = folds, lacking
        if not lacking:
            break
    return best


def _split(
    labels: Array, groups: Array, scored: list[int], k: int, seed: int
) -> tuple[tuple[Array, Array], ...]:
    # Most who come for whole_groups never split into folds, and it takes a second.
    from sklearn.model_selection import StratifiedGroupKFold

    tested = np.isin(labels, scored)
    rows = np.flatnonzero(tested)
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    folds = []
    for _, chosen in splitter.split(rows, labels[rows], groups[rows]):
        held_out = np.isin(groups, groups[rows[chosen]])
        if held_out.any():
            folds.append((np.flatnonzero(~held_out), np.flatnonzero(held_out & tested)))
    return tuple(folds)


def whole_groups(groups: Sequence[str], share: float, seed: int) -> Array:
    """Hold whole groups out until they have so many of the rows, or a little more.

    Parameters
    ----------
    groups
        The name of each row's group. The last group is never held out.
    share
        Of the rows, 0 to 1.

    Returns
    -------
    bool (n,), True = held out.
    """
    count, wanted = Counter(groups), share * len(groups)
    names = sorted(count)
    out: set[str] = set()
    for name in np.random.default_rng(seed).permutation(names)[: len(names) - 1]:
        if sum(count[one] for one in out) >= wanted:
            break
        out.add(str(name))
    return np.array([group in out for group in groups], bool)


def stratified_share(
    labels: Array, groups: Array, share: float, *, seed: int = 0
) -> Array:
    """Hold whole groups out, about this share of the rows of every class.

    What is left keeps every class; what is held out has every class of several groups.
    Of several orders of the groups the one is taken whose shares come closest.

    Parameters
    ----------
    labels, groups
        int (n,).
    share
        Of the rows, 0 to 1.

    Returns
    -------
    bool (n,), True = held out.
    """
    classes, label = np.unique(labels, return_inverse=True)
    names, group = np.unique(groups, return_inverse=True)
    count = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(count, (group, label), 1)
    wanted = share * count.sum(0)
    best = np.zeros(len(names), bool)
    least = np.inf
    for attempt in range(ATTEMPTS):
        out = _greedy(count, wanted, np.random.default_rng([seed, attempt]))
        held = count[out].sum(0)
        off = (np.abs(held - wanted) / count.sum(0)).sum() + (held == 0).sum()
        if off < least:
            best, least = out, off
        if least < 0.01 * len(classes):
            break
    return best[group]


def _greedy(count: Array, wanted: Array, rng: np.random.Generator) -> Array:
    """Take groups, given their rows of each class, that are wanted or come closer."""
    out = np.zeros(len(count), bool)
    total = count.sum(0)
    held = np.zeros_like(total)
    for one in rng.permutation(len(count)):
        rows = count[one]
        first = ((rows > 0) & (held == 0)).any()
        off, then = (np.abs(h - wanted) / total for h in (held, held + rows))
        if (first or then.sum() < off.sum()) and (held + rows < total).all():
            out[one], held = True, held + rows
    return out
