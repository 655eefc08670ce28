"""Tests of histomae.data.metrics."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as oracle

from histomae.data import metrics
from histomae.data.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    bootstrap_auc,
    bootstrap_interval,
    bootstrap_mean,
    class_f1,
    confusion_matrix,
    macro_f1,
    majority_vote,
    mcnemar,
    mean_and_std,
    paired_bootstrap,
    patient_level_accuracy,
    patient_scores,
    reliability,
    sensitivity,
    sign_flip,
    soft_vote,
    specificity,
    weighted_f1,
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


# More scores ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_f1_of_classes_and_weighted_equal_scikit_learns(seed):
    labels, predicted, _ = drawn(seed)
    matrix = confusion_matrix(labels, predicted, num_classes=5)
    np.testing.assert_allclose(
        class_f1(matrix), oracle.f1_score(labels, predicted, average=None)
    )
    assert weighted_f1(matrix) == pytest.approx(
        oracle.f1_score(labels, predicted, average="weighted")
    )


def test_f1_of_a_class_that_is_nowhere_is_unknown_and_does_not_count():
    matrix = confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=3)
    np.testing.assert_allclose(class_f1(matrix), [2 / 3, 2 / 3, np.nan])
    assert weighted_f1(matrix) == pytest.approx(2 / 3)


def test_sensitivity_is_of_class_one_and_specificity_of_class_zero():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    matrix = confusion_matrix(labels, predicted, num_classes=2)
    assert sensitivity(matrix) == pytest.approx(
        oracle.recall_score(labels, predicted, pos_label=1)
    )
    assert specificity(matrix) == 3 / 4


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_auc_equals_scikit_learns(average):
    labels, _, _ = drawn(2, count=80, classes=3)
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(3), size=80) + 0.4 * np.eye(3)[labels]
    probabilities = scores / scores.sum(1, keepdims=True)
    assert auc(labels, probabilities, average=average) == pytest.approx(
        oracle.roc_auc_score(labels, probabilities, multi_class="ovr", average=average)
    )


def test_patient_and_image_level_accuracy_of_the_hand_table():
    # One patient with 2 of 2 right, one with 1 of 4 (METHODS, section 10 E).
    right = np.array([True, True, True, False, False, False])
    patients = np.array(["a", "a", "b", "b", "b", "b"])
    assert patient_level_accuracy(right, patients) == 0.625
    assert right.mean() == 0.5
    assert patient_scores(right, patients).tolist() == [1, 0.25]


def test_mean_and_std_over_folds():
    assert mean_and_std([1, 2, 3, np.nan]) == (2, 1)
    mean, std = mean_and_std([4])
    assert mean == 4
    assert np.isnan(std)


# Votes ---------------------------------------------------------------------------


def test_votes_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    picture = np.sort(np.r_[np.arange(12), rng.integers(12, size=60)])
    probabilities = rng.dirichlet(np.ones(4), size=len(picture))
    soft = soft_vote(probabilities, picture, 12)
    hard = majority_vote(probabilities, picture, 12)
    for one in range(12):
        mine = probabilities[picture == one]
        np.testing.assert_allclose(soft[one], mine.mean(0))
        votes = [sum(row.argmax() == k for row in mine) for k in range(4)]
        leading = [k for k in range(4) if votes[k] == max(votes)]
        assert hard[one] == max(leading, key=lambda k: mine.mean(0)[k])


def test_a_tie_goes_to_the_higher_mean_and_then_to_the_first():
    picture = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    # Of the first picture class 1 has the higher mean; of the second they are equal.
    assert majority_vote(probabilities, picture, 2).tolist() == [1, 0]


def test_every_patch_counts():
    # One vote each for 1 and 0: that the first is not dropped shows in the tie.
    probabilities = np.array([[0.2, 0.8], [0.7, 0.3]])
    assert majority_vote(probabilities, np.zeros(2, int), 1).tolist() == [1]


# Calibration ---------------------------------------------------------------------


def test_the_calibration_error_equals_a_plain_loop():
    labels, _, _ = drawn(0, classes=3)
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), size=len(labels))
    table = reliability(labels, probabilities, bins=10)
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for low in range(10):
        inside = (sure > low / 10) & (sure <= (low + 1) / 10)
        assert table.count[low] == inside.sum()
        if inside.any():
            apart = abs(right[inside].mean() - sure[inside].mean())
            error += inside.mean() * apart
    assert table.ece == pytest.approx(error)


def test_certainty_that_is_always_right_is_calibrated():
    labels = np.array([0, 1, 1])
    assert reliability(labels, np.eye(2)[labels]).ece == 0
    assert reliability(labels, np.eye(2)[1 - labels]).ece == 1


# Tests of two ---------------------------------------------------------------------


def test_mcnemar_equals_the_binomial_test():
    labels = np.zeros(20, int)
    one = np.r_[np.zeros(15, int), np.ones(5, int)]
    other = np.r_[np.ones(12, int), np.zeros(8, int)]
    # 12 only the first has right, 5 only the other.
    assert mcnemar(labels, one, other) == pytest.approx(binomtest(12, 17).pvalue)
    assert mcnemar(labels, one, one) == 1


def test_sign_flip_of_a_few_patients_tries_all_signs():
    # Of the 8 ways to put signs, 2 have a mean as far from 0.
    assert sign_flip(np.array([0.2, 0.3, 0.1])) == pytest.approx(2 / 8)
    assert sign_flip(np.zeros(4)) == 1


def test_sign_flip_of_many_patients_is_close_to_all_signs():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.3, 1, 14)
    exact = sign_flip(differences)
    more = sign_flip(np.r_[differences, 0.0])  # a 0 changes nothing but the way
    assert more == pytest.approx(exact, abs=0.02)


def test_the_paired_bootstrap_sees_what_both_share():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 6)
    labels = rng.integers(2, size=180)
    hard = np.repeat(rng.random(30) < 0.3, 6)  # patients that both get wrong
    one = np.where(hard, 1 - labels, labels)
    other = np.where(rng.random(180) < 0.15, 1 - one, one)
    found = paired_bootstrap(labels, one, other, groups=patients, num_classes=2)
    apart = [
        oracle.balanced_accuracy_score(labels, one)
        - oracle.balanced_accuracy_score(labels, other)
    ]
    assert found.value == pytest.approx(apart[0])
    assert found.low < found.value < found.high
    single = bootstrap_interval(labels, one, groups=patients, num_classes=2)
    assert found.high - found.low < 0.7 * (single[1] - single[0])
    assert 0 < found.p < 0.05
    same = paired_bootstrap(labels, one, one, groups=patients, num_classes=2)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_the_interval_of_a_mean():
    low, high = bootstrap_mean(np.array([0.0, 1.0] * 50))
    assert low == pytest.approx(0.4, abs=0.03)
    assert high == pytest.approx(0.6, abs=0.03)
    assert np.isnan(bootstrap_mean(np.array([1.0]))).all()


def test_intervals_are_the_same_however_many_draws_fit_into_memory(monkeypatch):
    labels, predicted, groups = drawn(1)
    probabilities = np.random.default_rng(1).dirichlet(np.ones(5), size=len(labels))
    other = np.roll(predicted, 1)

    def intervals():
        how = {"groups": groups, "num_classes": 5, "draws": 300}
        return (
            bootstrap_interval(labels, predicted, **how),
            bootstrap_auc(labels, probabilities, groups=groups, draws=300),
            bootstrap_mean(predicted.astype(float), draws=300),
            paired_bootstrap(labels, predicted, other, **how),
        )

    at_once = intervals()
    monkeypatch.setattr(metrics, "MOST_NUMBERS", 1000)
    assert intervals() == at_once
