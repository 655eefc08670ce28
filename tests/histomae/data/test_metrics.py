"""Tests of histomae.data.metrics."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from histomae.data.metrics import (
    balanced_accuracy,
    bootstrap_interval,
    confusion_matrix,
    macro_f1,
)


def drawn(seed, *, count=200, classes=5, right=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    guess = rng.integers(classes, size=count)
    predicted = np.where(rng.random(count) < right, labels, guess)
    return labels, predicted, rng.integers(count // 10, size=count)


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_scikit_learns(seed):
    labels, predicted, _ = drawn(seed)
    matrix = confusion_matrix(labels, predicted, num_classes=5)
    np.testing.assert_array_equal(matrix, oracle.confusion_matrix(labels, predicted))
    assert balanced_accuracy(matrix) == pytest.approx(
        oracle.balanced_accuracy_score(labels, predicted)
    )
    assert macro_f1(matrix) == pytest.approx(
        oracle.f1_score(labels, predicted, average="macro")
    )


def test_classes_that_are_absent_do_not_count():
    labels, predicted = np.array([0, 0, 2, 2]), np.array([0, 2, 2, 2])
    matrix = confusion_matrix(labels, predicted, num_classes=4)
    assert balanced_accuracy(matrix) == pytest.approx((0.5 + 1) / 2)
    assert macro_f1(matrix) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_a_class_only_predicted_lowers_f1_and_not_recall():
    matrix = confusion_matrix(np.array([0, 0]), np.array([0, 1]), num_classes=2)
    assert balanced_accuracy(matrix) == 0.5
    assert macro_f1(matrix) == pytest.approx((2 / 3 + 0) / 2)


def test_nothing_to_score_is_nan():
    assert np.isnan(balanced_accuracy(np.zeros((3, 3))))
    none = np.zeros(0, int)
    assert confusion_matrix(none, none, num_classes=2).tolist() == [[0, 0], [0, 0]]


def test_many_matrices_at_once():
    matrices = np.stack(
        [confusion_matrix(*drawn(seed)[:2], num_classes=5) for seed in range(3)]
    )
    for score in (balanced_accuracy, macro_f1):
        np.testing.assert_allclose(score(matrices), [score(one) for one in matrices])


def test_the_interval_equals_a_plain_loop_over_groups():
    labels, predicted, groups = drawn(1)
    low, high = bootstrap_interval(
        labels, predicted, groups=groups, num_classes=5, seed=3, draws=4000
    )
    rng, kinds = np.random.default_rng(99), np.unique(groups)
    scores = []
    for _ in range(2000):
        rows = np.concatenate(
            [np.flatnonzero(groups == g) for g in rng.choice(kinds, len(kinds))]
        )
        found = [
            (predicted[rows][labels[rows] == c] == c).mean()
            for c in np.unique(labels[rows])
        ]
        scores.append(np.mean(found))
    np.testing.assert_allclose(
        (low, high), np.percentile(scores, (2.5, 97.5)), atol=0.01
    )


def test_the_interval_is_seeded_and_holds_the_score():
    labels, predicted, groups = drawn(2)
    both = [
        bootstrap_interval(labels, predicted, groups=groups, num_classes=5, seed=7)
        for _ in range(2)
    ]
    assert both[0] == both[1]
    score = balanced_accuracy(confusion_matrix(labels, predicted, num_classes=5))
    assert both[0][0] < score < both[0][1]


def test_alike_tiles_of_few_groups_give_a_wide_interval():
    groups = np.repeat(np.arange(8), 100)
    labels = groups % 2
    predicted = np.where(groups < 6, labels, 1 - labels)  # two whole groups are wrong
    wide = bootstrap_interval(labels, predicted, groups=groups, num_classes=2)
    as_if_alone = bootstrap_interval(
        labels, predicted, groups=np.arange(800), num_classes=2
    )
    assert wide[1] - wide[0] > 5 * (as_if_alone[1] - as_if_alone[0])


def test_one_group_shows_no_spread():
    labels, predicted, _ = drawn(0)
    one = bootstrap_interval(
        labels, predicted, groups=np.zeros_like(labels), num_classes=5
    )
    assert np.isnan(one).all()
    none = np.zeros(0, int)
    assert np.isnan(bootstrap_interval(none, none, groups=none, num_classes=2)).all()
