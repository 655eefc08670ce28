"""Tests of histomae.evaluate.compare."""

import numpy as np
import pytest

from histomae.errors import NotEnoughDataError
from histomae.evaluate.compare import score_on

NAMES = ("duct", "in situ", "invasive")


def slide(seed, *, apart=1.0, regions=12, each=6, dim=10):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(regions), each)
    labels = groups % 3
    centres = apart * np.random.default_rng(42).normal(size=(3, dim))
    return centres[labels] + rng.normal(size=(len(groups), dim)), labels, groups


def test_features_that_carry_over_score_well():
    score = score_on(*slide(0), *slide(1), NAMES)
    assert score.balanced_accuracy > 0.9
    assert score.low <= score.balanced_accuracy <= score.high
    assert score.confusion.sum(1).tolist() == [24, 24, 24]
    found = np.diag(score.confusion) / 24
    assert score.balanced_accuracy == pytest.approx(found.mean())


def test_features_that_tell_nothing_score_at_chance():
    score = score_on(*slide(0, apart=0), *slide(1, apart=0), NAMES)
    assert score.low < 1 / 3 + 0.1
    assert score.balanced_accuracy < 0.55


def test_the_test_slide_teaches_nothing():
    x, y, groups = slide(1)
    wrong = (y + 1) % 3
    one = score_on(*slide(0), x, y, groups, NAMES)
    other = score_on(*slide(0), x, wrong, groups, NAMES)
    predicted_as = one.confusion.sum(0).tolist()
    assert predicted_as == other.confusion.sum(0).tolist()


def test_tiles_that_could_not_be_read_are_left_out():
    train, test = slide(0), slide(1)
    train[0][:5] = np.nan
    test[0][:6] = np.nan
    score = score_on(*train, *test, NAMES)
    assert score.confusion.sum() == 66


def test_one_test_group_has_no_interval():
    x, y, _ = slide(1)
    score = score_on(*slide(0), x, y, np.zeros_like(y), NAMES)
    assert np.isnan([score.low, score.high]).all()
    assert score.balanced_accuracy > 0.9


def test_a_class_that_is_missing_is_named():
    x, y, groups = slide(0)
    with pytest.raises(NotEnoughDataError, match="no tiles of in situ"):
        score_on(x[y != 1], y[y != 1], groups[y != 1], *slide(1), NAMES)
    nothing = np.full_like(x, np.nan)
    with pytest.raises(NotEnoughDataError, match="the other slide"):
        score_on(x, y, groups, nothing, y, groups, NAMES)
