"""Tests of histomae.data.splits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histomae.data.splits import check_no_leak, grouped_folds
from histomae.errors import ConfigError, LabelError


@st.composite
def cohorts(draw):
    """Rows of several classes in groups, pure (regions) or mixed (patients)."""
    groups = draw(st.lists(st.integers(0, 15), min_size=1, max_size=120))
    if draw(st.booleans()):
        class_of = draw(st.lists(st.integers(0, 4), min_size=16, max_size=16))
        labels = [class_of[g] for g in groups]
    else:
        labels = draw(
            st.lists(st.integers(0, 4), min_size=len(groups), max_size=len(groups))
        )
    return np.array(labels), np.array(groups), draw(st.integers(2, 7))


def groups_per_class(labels, groups):
    return {c: len(np.unique(groups[labels == c])) for c in np.unique(labels).tolist()}


@settings(max_examples=150)
@given(cohorts())
def test_no_group_stands_on_both_sides(cohort):
    labels, groups, k = cohort
    split = grouped_folds(labels, groups, k=k, seed=1)
    counts = groups_per_class(labels, groups)
    assert set(split.unscored) == {c for c, count in counts.items() if count == 1}
    scored = [c for c, count in counts.items() if count > 1]
    assert len(split.folds) <= k
    if len(scored) < 2:
        assert split.folds == ()
        return
    assert len(split.folds) <= min(counts[c] for c in scored)
    for train, test in split.folds:
        assert len(test)
        assert not set(groups[train]) & set(groups[test])
        assert not set(train.tolist()) & set(test.tolist())
        assert not set(labels[test].tolist()) & set(split.unscored)
    tested = np.concatenate([test for _, test in split.folds])
    assert sorted(tested.tolist()) == np.flatnonzero(np.isin(labels, scored)).tolist()


@settings(max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=30), st.integers(0, 99))
def test_every_class_of_regions_is_trained_on_in_every_fold(sizes, seed):
    class_of = np.arange(len(sizes)) % 2  # at least two regions of each
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = class_of[groups]
    split = grouped_folds(labels, groups, k=5, seed=seed)
    assert len(split.folds) >= 2
    for train, _ in split.folds:
        assert set(labels[train].tolist()) == {0, 1}


def test_folds_are_as_many_as_the_smallest_class_has_groups():
    labels = np.repeat([0, 1], [40, 30])
    groups = np.concatenate([np.arange(40) % 8, 8 + np.arange(30) % 3])
    assert len(grouped_folds(labels, groups, k=5).folds) == 3
    assert len(grouped_folds(labels, groups, k=2).folds) == 2


def test_folds_are_stratified():
    rng = np.random.default_rng(0)
    groups = np.arange(600) // 10
    labels = np.repeat(rng.permutation(np.arange(60) % 3), 10)
    for _, test in grouped_folds(labels, groups, k=5).folds:
        assert np.bincount(labels[test]).tolist() == [40, 40, 40]


def test_a_class_with_one_group_is_trained_on_and_never_tested():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    split = grouped_folds(labels, groups, k=5)
    assert split.unscored == (2,)
    assert len(split.folds) == 2
    for train, test in split.folds:
        assert {8, 9} <= set(train.tolist())
        assert not {8, 9} & set(test.tolist())


def test_the_seed_decides():
    groups = np.arange(200) // 4
    labels = groups % 2
    one, same, other = (
        [test.tolist() for _, test in grouped_folds(labels, groups, seed=seed).folds]
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_one_fold_is_none():
    with pytest.raises(ConfigError, match="Choose 2 or more"):
        grouped_folds(np.zeros(4, int), np.arange(4), k=1)


class TestNoLeak:
    def test_patients_apart_pass(self):
        check_no_leak(np.array(["a", "a", "b"]), np.array(["c", "d"]))
        check_no_leak(np.array(["a"]), np.array([], dtype=str))

    @pytest.mark.parametrize(
        ("train", "test", "words"),
        [
            ("aab", "ca", "^a is both trained on and tested on"),
            ("abc", "cbx", "^b, c are both"),
            ("abcde", "edcba", "^a, b, c and 2 more are both"),
        ],
    )
    def test_patients_on_both_sides_are_named(self, train, test, words):
        with pytest.raises(LabelError, match=words):
            check_no_leak(np.array(list(train)), np.array(list(test)))
