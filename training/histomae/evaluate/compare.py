"""Which features tell classes apart on a slide that was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.metrics import (
    balanced_accuracy,
    bootstrap_interval,
    confusion_matrix,
)
from histomae.errors import NotEnoughDataError
from histomae.events import result_of
from histomae.learn.probe import fit_linear

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TransferScore:
    """How good a probe is on another slide.

    ``low`` and ``high`` are a 95 % interval over the groups of the other slide, NaN if
    it has one only. ``confusion`` int (K, K): rows true, columns predicted.
    """

    balanced_accuracy: float
    low: float
    high: float
    confusion: Array


def score_on(
    train_features: Array,
    train_labels: Array,
    train_groups: Array,
    test_features: Array,
    test_labels: Array,
    test_groups: Array,
    class_names: Sequence[str],
    *,
    seed: int = 0,
) -> TransferScore:
    """Fit a probe on one slide's tiles and score it on another's.

    Parameters
    ----------
    train_features, test_features
        float (M, D); rows that are not finite are left out.
    train_labels, test_labels
        int (M,), index of the class.
    train_groups, test_groups
        int (M,): region or patient of each tile.

    Raises
    ------
    NotEnoughDataError
        If a class is missing from the training tiles, or there is no test tile.
    """
    train = np.isfinite(train_features).all(1)
    test = np.isfinite(test_features).all(1)
    missing = set(range(len(class_names))) - set(
        np.unique(train_labels[train]).tolist()
    )
    if missing or not test.any():
        lacking = (
            ", ".join(class_names[i] for i in sorted(missing)) or "the other slide"
        )
        raise NotEnoughDataError(
            f"There are no tiles of {lacking}. Draw more regions, or leave it out."
        )
    fit = result_of(
        fit_linear(
            train_features[train],
            train_labels[train],
            groups=train_groups[train],
            num_classes=len(class_names),
            seed=seed,
        )
    )
    predicted = fit.logits(test_features[test]).argmax(1)
    truth, kinds = test_labels[test], len(class_names)
    confusion = confusion_matrix(truth, predicted, num_classes=kinds)
    low, high = bootstrap_interval(
        truth, predicted, groups=test_groups[test], num_classes=kinds, seed=seed
    )
    return TransferScore(float(balanced_accuracy(confusion)), low, high, confusion)
