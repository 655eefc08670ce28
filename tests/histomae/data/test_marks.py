"""Marks on pictures, and how found objects agree with them, against plain loops."""

import itertools

import numpy as np
import pytest

from histomae.data.marks import (
    Marks,
    aggregated_jaccard,
    detection_f1,
    discs,
    marks_of,
    matched,
)


@pytest.fixture
def blobs():
    """A function that draws objects at random: int32 (24, 24)."""

    def draw(seed, count=5):
        random = np.random.default_rng(seed)
        objects = np.zeros((24, 24), np.int32)
        for number in range(1, count + 1):
            top, left = random.integers(0, 18, 2)
            high, wide = random.integers(2, 7, 2)
            objects[top : top + high, left : left + wide] = number
        return Marks(objects, random.integers(0, 3, count)).crop(
            slice(None), slice(None)
        )

    return draw


def slow_aji(truth, found):
    """Kumar's definition, pixel by pixel."""
    shared = union = 0
    used = set()
    for one in sorted(set(truth.ravel()) - {0}):
        best = (-1.0, 0, int((truth == one).sum()), None)
        for other in sorted(set(found.ravel()) - {0}):
            both = int(((truth == one) & (found == other)).sum())
            either = int(((truth == one) | (found == other)).sum())
            if both and both / either > best[0]:
                best = (both / either, both, either, other)
        shared, union = shared + best[1], union + best[2]
        used.add(best[3])
    for other in set(found.ravel()) - {0} - used:
        union += int((found == other).sum())
    return shared / union


@pytest.mark.parametrize("seed", range(6))
def test_aji_is_that_of_a_plain_loop(blobs, seed):
    truth, found = blobs(seed).objects, blobs(seed + 100, 6).objects
    assert aggregated_jaccard(truth, found) == pytest.approx(slow_aji(truth, found))
    assert aggregated_jaccard(truth, truth) == 1


def test_aji_of_nothing():
    nothing, one = np.zeros((4, 4), int), np.eye(4, dtype=int)
    assert np.isnan(aggregated_jaccard(nothing, nothing))
    assert aggregated_jaccard(nothing, one) == aggregated_jaccard(one, nothing) == 0


def test_centres_are_paired_one_to_one():
    truth = np.array([[0.0, 0.0], [10.0, 0.0]])
    # Greedy pairing of the nearest would leave one of them alone.
    found = np.array([[9.0, 0.0], [21.0, 0.0]])
    assert matched(truth, found) == 2
    assert matched(truth, np.repeat(truth[:1], 3, 0)) == 2
    assert matched(truth[:1], np.repeat(truth[:1], 3, 0)) == 1
    assert detection_f1(truth, found[1:]) == pytest.approx(2 / 3)
    assert np.isnan(detection_f1(truth[:0], found[:0]))
    assert detection_f1(truth, found[:0]) == 0


@pytest.mark.parametrize(("apart", "hits"), [(12.0, 1), (12.01, 0)])
def test_near_is_twelve_pixels(apart, hits):
    assert matched(np.zeros((1, 2)), np.array([[apart, 0.0]])) == hits


@pytest.mark.parametrize("seed", range(5))
def test_most_pairs_are_found(seed):
    random = np.random.default_rng(seed)
    truth, found = random.random((4, 2)) * 30, random.random((5, 2)) * 30
    near = np.hypot(*(truth[:, None] - found[None]).T).T <= 12
    most = max(
        sum(near[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(5), 4)
    )
    assert matched(truth, found) == most


def test_classes_and_centres(blobs):
    marks = blobs(3)
    for number, label in enumerate(marks.labels, start=1):
        rows, columns = np.nonzero(marks.objects == number)
        middle = columns.mean() + 0.5, rows.mean() + 0.5
        assert marks.centres[number - 1] == pytest.approx(middle)
        assert set(marks.classes[rows, columns]) == {label + 1}
    assert (marks.classes[marks.objects == 0] == 0).all()


def test_a_part_counts_its_objects_anew(blobs):
    marks = blobs(1)
    part = marks.crop(slice(4, 20), slice(3, 15))
    assert set(part.objects.ravel()) <= set(range(len(part.labels) + 1))
    assert np.array_equal(part.classes, marks.classes[4:20, 3:15])
    empty = marks.crop(slice(0, 0), slice(None))
    assert len(empty.labels) == 0


def test_depth_is_highest_in_the_middle_and_falls_to_the_edge():
    objects = np.zeros((11, 16), np.int32)
    objects[2:9, 1:8] = 1
    objects[2:9, 8:15] = 2  # they touch
    deep = Marks(objects, np.zeros(2, int)).depth()
    assert deep[5, 4] == deep[5, 11] == 1
    assert deep[5, 7] == deep[5, 8] == pytest.approx(0.25)
    assert (deep[objects == 0] == 0).all() and (deep[objects > 0] > 0).all()


def test_outlines_are_filled_by_the_middles_of_pixels():
    square = np.array([[1, 1], [5, 1], [5, 4], [1, 4]], float)
    found = marks_of([(square, 2)], (6, 8))
    expected = np.zeros((6, 8), int)
    expected[1:4, 1:5] = 1
    assert np.array_equal(found.objects, expected)
    assert found.labels.tolist() == [2]
    speck = np.array([[0.1, 0.1], [0.2, 0.1], [0.2, 0.2]])
    assert marks_of([(speck, 0), (square, 1)], (6, 8)).labels.tolist() == [1]


def test_discs_lie_around_their_centres():
    random = np.random.default_rng(0)
    centres = random.random((8, 2)) * 40
    found = discs(centres, np.arange(8), (40, 40), 5.0)
    down, across = np.mgrid[:40, :40] + 0.5
    far = np.hypot(across[..., None] - centres[:, 0], down[..., None] - centres[:, 1])
    expected = np.where(far.min(-1) <= 5, far.argmin(-1) + 1, 0)
    assert np.array_equal(found.classes, expected)
    assert discs(centres[:0], [], (4, 4), 2.0).objects.sum() == 0
    beyond = discs(np.array([[-2.0, 3.0]]), [0], (8, 8), 4.0)
    assert beyond.objects[3, 0] == 1
