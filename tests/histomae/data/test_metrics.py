"""Tests of histomae.data.metrics."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from histomae.data.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    bootstrap_auc,
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
    assert accuracy(matrix) == pytest.approx(np.mean(labels == predicted))


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


class TestAuc:
    @staticmethod
    def drawn(seed, *, count=60, classes=3):
        """Return labels, probabilities with many ties, and groups."""
        rng = np.random.default_rng(seed)
        labels = rng.integers(classes, size=count)
        scores = rng.random((count, classes)) + 0.4 * np.eye(classes)[labels]
        return labels, np.round(scores, 1), rng.integers(count // 4, size=count)

    @staticmethod
    def by_pairs(labels, scores):
        """Return the share of pairs in the right order, one class after the other."""
        areas = []
        for k in range(scores.shape[1]):
            above, below = scores[labels == k, k], scores[labels != k, k]
            if len(above) and len(below):
                gap = above[:, None] - below
                areas.append(np.mean((gap > 0) + (gap == 0) / 2))
        return np.mean(areas) if areas else np.nan

    @pytest.mark.parametrize("seed", range(3))
    def test_it_is_the_share_of_pairs_in_the_right_order(self, seed):
        labels, scores, _ = self.drawn(seed)
        assert auc(labels, scores) == pytest.approx(self.by_pairs(labels, scores))
        each = [oracle.roc_auc_score(labels == k, scores[:, k]) for k in range(3)]
        assert auc(labels, scores) == pytest.approx(np.mean(each))

    def test_in_closed_form(self):
        labels = np.array([0, 0, 1, 1])
        for ones, expected in [
            ((0.1, 0.2, 0.3, 0.4), 1),
            ((0.4, 0.3, 0.2, 0.1), 0),
            ((0.5, 0.5, 0.5, 0.5), 0.5),
            ((0.1, 0.3, 0.2, 0.4), 0.75),
            ((0.1, 0.3, 0.3, 0.4), 0.875),
        ]:
            of_one = np.array(ones)
            both = np.stack([1 - of_one, of_one], 1)
            assert auc(labels, both) == pytest.approx(expected)

    def test_weights_are_rows_repeated(self):
        labels, scores, _ = self.drawn(5)
        times = np.random.default_rng(6).integers(0, 4, size=(2, 3, 60))
        found = auc(labels, scores, times)
        assert found.shape == (2, 3)
        for where in np.ndindex(2, 3):
            rows = np.repeat(np.arange(60), times[where])
            expected = self.by_pairs(labels[rows], scores[rows])
            assert found[where] == pytest.approx(expected)

    def test_classes_that_are_absent_or_alone_do_not_count(self):
        labels, scores, _ = self.drawn(7)
        more = np.concatenate([scores, np.random.default_rng(8).random((60, 1))], 1)
        assert auc(labels, more) == pytest.approx(float(auc(labels, scores)))
        assert np.isnan(auc(np.zeros(4, int), scores[:4]))
        assert np.isnan(auc(np.zeros(0, int), scores[:0]))

    def test_the_interval_equals_a_plain_loop_over_groups(self):
        labels, scores, groups = self.drawn(9)
        low, high = bootstrap_auc(labels, scores, groups=groups, seed=3, draws=40)
        rng, names = np.random.default_rng(3), np.unique(groups)
        share = np.full(len(names), 1 / len(names))
        areas = []
        for times in rng.multinomial(len(names), share, size=40):
            rows = np.concatenate(
                [
                    np.tile(np.flatnonzero(groups == name), often)
                    for name, often in zip(names, times, strict=True)
                ]
            )
            areas.append(self.by_pairs(labels[rows], scores[rows]))
        assert (low, high) == pytest.approx(tuple(np.percentile(areas, (2.5, 97.5))))
        assert low < auc(labels, scores) < high

    def test_draws_of_one_class_do_not_count(self):
        labels, groups = np.array([0, 1]), np.array([0, 1])
        right = np.array([[0.9, 0.1], [0.2, 0.8]])
        assert bootstrap_auc(labels, right, groups=groups) == (1, 1)

    def test_one_group_shows_no_spread(self):
        labels, scores, _ = self.drawn(1)
        found = bootstrap_auc(labels, scores, groups=np.zeros(60))
        assert np.isnan(found).all()
