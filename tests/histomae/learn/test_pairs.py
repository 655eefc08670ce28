"""Pairs of magnifications: as often as published, and both pictures changed alike."""

from collections import Counter

import numpy as np
import pytest
import torch

from histomae.learn.augment import views
from histomae.learn.pairs import (
    CHANGE_NUMBERS,
    changes,
    drawn_pairs,
    pairs_of,
    possible_pairs,
)

MANY = np.arange(12_000)
#: The four magnifications of BreakHis, from the coarsest.
NAMES = np.array([40, 100, 200, 400])


def drawn(strategy, *, seed=0, epoch=0, indices=MANY, magnifications=4):
    present = np.ones((len(indices), magnifications), bool)
    return drawn_pairs(seed, epoch, indices, strategy=strategy, present=present)


def unordered(pairs):
    """Return how often each set of two magnifications is drawn, as shares."""
    count = Counter(frozenset(pair) for pair in NAMES[pairs].tolist())
    return {pair: number / len(pairs) for pair, number in count.items()}


def test_fixed_pairs_are_always_the_two_finest():
    assert set(map(tuple, NAMES[drawn("fixed")].tolist())) == {(200, 400)}


def test_ordered_pairs_are_as_often_as_published():
    pairs = drawn("ordered")
    shares = unordered(pairs)
    assert shares.keys() == {
        frozenset((200, 400)),
        frozenset((40, 100)),
        frozenset((100, 200)),
    }
    assert shares[frozenset((200, 400))] == pytest.approx(0.5, abs=0.02)
    assert shares[frozenset((40, 100))] == pytest.approx(0.25, abs=0.02)
    looked_up = {40: 100, 100: 200, 200: 400, 400: 200}
    assert all(looked_up[a] == b for a, b in NAMES[pairs].tolist())


def test_random_pairs_are_all_as_likely():
    shares = unordered(drawn("random"))
    assert len(shares) == 6
    assert all(share == pytest.approx(1 / 6, abs=0.015) for share in shares.values())


@pytest.mark.parametrize("strategy", ["fixed", "ordered", "random"])
@pytest.mark.parametrize("magnifications", [2, 3, 4])
def test_never_the_same_magnification_twice(strategy, magnifications):
    pairs = drawn(strategy, magnifications=magnifications)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert pairs.min() >= 0
    assert pairs.max() < magnifications


def test_a_pair_depends_on_its_number_and_the_epoch_alone():
    some = MANY[100:300]
    np.testing.assert_array_equal(drawn("random", indices=some), drawn("random")[some])
    assert (drawn("random", epoch=1) != drawn("random")).any()


def test_what_is_missing_is_not_drawn():
    present = np.array([[True, True, False, False], [True, False, True, True]])
    indices = np.tile([0, 1], 500)
    for strategy, first, second in (
        ("ordered", {(0, 1)}, {(2, 3), (3, 2)}),
        ("random", {(0, 1), (1, 0)}, {(0, 2), (2, 0), (0, 3), (3, 0), (2, 3), (3, 2)}),
    ):
        pairs = drawn_pairs(
            0, 0, np.arange(1000), strategy=strategy, present=present[indices]
        )
        assert set(map(tuple, pairs[indices == 0].tolist())) == first
        assert set(map(tuple, pairs[indices == 1].tolist())) == second
    assert possible_pairs("fixed", present)[:, 0].tolist() == [False, True]


def test_all_pairs_of_a_strategy_are_listed_once():
    assert pairs_of("ordered", 2).tolist() == [[0, 1], [1, 0]]
    assert len(np.unique(pairs_of("random", 4), axis=0)) == 12


# ---- the same changes


def test_the_same_pictures_come_out_the_same():
    """The shared augmentation, which the published code misses."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    affine, colour = changes(0, 3, np.arange(20))
    how = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "padding": "reflection"}
    both = views(
        torch.from_numpy(picture.repeat(2, 0)),
        torch.from_numpy(affine.repeat(2, 0)),
        colour=torch.from_numpy(colour.repeat(2, 0)),
        **how,
    )
    assert torch.equal(both[::2], both[1::2])
    plain = views(torch.from_numpy(picture), **how)
    changed = [not torch.equal(*two) for two in zip(both[::2], plain, strict=True)]
    assert sum(changed) > 5


def test_changes_are_as_often_and_as_large_as_published():
    affine, colour = changes(1, 0, MANY)
    linear = affine[:, :, :2]
    turned_over = np.linalg.det(linear) < 0
    assert turned_over.mean() == pytest.approx(0.3 * 2 / 3, abs=0.02)
    moved = (affine[:, :, 2] != 0).any(1)
    assert moved.mean() == pytest.approx(0.2, abs=0.02)
    assert 0.08 < np.abs(affine[:, :, 2]).max() <= 0.1
    np.testing.assert_allclose(
        linear @ linear.transpose(0, 2, 1),
        np.broadcast_to(np.eye(2), linear.shape),
        atol=1e-6,
    )
    recoloured = (colour != (1, 1, 1, 0)).any(1)
    assert recoloured.mean() == pytest.approx(0.3, abs=0.02)
    assert 0.09 < np.abs(colour - (1, 1, 1, 0)).max() <= 0.1 + 1e-6


def test_a_change_depends_on_its_number_and_the_epoch_alone():
    whole, part = changes(0, 2, MANY), changes(0, 2, MANY[50:60])
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[50:60], other)
    assert CHANGE_NUMBERS == 12
    assert (changes(0, 3, MANY)[0] != whole[0]).any()
