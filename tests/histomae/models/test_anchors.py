"""Anchors and bins of place, against slow restatements and under all that may move."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from histomae.models.anchors import (
    choose_anchors,
    count_anchors,
    direction_angles,
    direction_bins,
    distance_bins,
    even_order,
)

#: (row, column) turned by 90 degrees.
TURN = np.array([[0, 1], [-1, 0]])


@pytest.fixture(scope="module")
def cells():
    """A lump of tissue with a hole, 500 tiles or so, not symmetric."""
    row, col = np.mgrid[:30, :26]
    lump = ((row - 14) ** 2 + (col - 12) ** 2 < 170) & ~((row < 11) & (col > 15))
    return np.argwhere(lump) + np.array([40, 300])


def moved(cells, quarters, shift=(0, 0)):
    return cells @ np.linalg.matrix_power(TURN, quarters) + np.array(shift)


MOVES = [(0, (5, -70)), (1, (0, 0)), (2, (-9, 4)), (3, (1000, 1))]


class TestAnchors:
    @pytest.mark.parametrize(
        ("tiles", "each", "count"),
        [(1, 144, 1), (143, 144, 1), (144, 144, 2), (2048, 18, 114), (3, 1, 3)],
    )
    def test_their_number(self, tiles, each, count):
        assert count_anchors(tiles, each) == count

    @pytest.mark.parametrize("each", [1, 9, 18, 144, 9999])
    def test_they_are_tiles_and_no_two_alike(self, cells, each):
        anchors = choose_anchors(cells, each)
        assert anchors.dtype == np.int64
        assert len(anchors) == count_anchors(len(cells), each)
        assert len(set(anchors.tolist())) == len(anchors)
        assert anchors.min() >= 0
        assert anchors.max() < len(cells)

    def test_again_they_are_the_same(self, cells):
        first = choose_anchors(cells, 18)
        np.testing.assert_array_equal(first, choose_anchors(cells.copy(), 18))

    @pytest.mark.parametrize("each", [18, 144])
    @pytest.mark.parametrize(("quarters", "shift"), MOVES)
    def test_they_move_with_the_slide(self, cells, each, quarters, shift):
        expected = choose_anchors(cells, each)
        got = choose_anchors(moved(cells, quarters, shift), each)
        np.testing.assert_array_equal(got, expected)

    def test_the_order_of_tiles_does_not_matter(self, cells):
        order = np.random.default_rng(0).permutation(len(cells))
        got = order[choose_anchors(cells[order], 18)]
        np.testing.assert_array_equal(got, choose_anchors(cells, 18))

    def test_they_are_where_k_means_puts_them(self, cells):
        """Tiles are as near to their anchors as to sklearn's centres, snapped."""
        anchors = cells[choose_anchors(cells, 18)]
        centres = KMeans(len(anchors), n_init=3, random_state=0).fit(cells)
        snapped = cells[cdist(centres.cluster_centers_, cells).argmin(1)]
        ours, theirs = (
            np.square(cdist(cells, one).min(1)).sum() for one in (anchors, snapped)
        )
        assert ours < 1.1 * theirs

    def test_tiles_in_a_row(self):
        row = np.stack([np.full(40, 7), np.arange(40)], 1)
        anchors = choose_anchors(row, 10)
        assert len(set(anchors.tolist())) == 5
        assert np.abs(np.sort(row[anchors, 1]) - [4, 12, 20, 28, 36]).max() <= 2

    def test_one_tile(self):
        assert choose_anchors(np.array([[3, 9]]), 144).tolist() == [0]


class TestEvenOrder:
    def test_it_is_a_permutation(self, cells):
        order = even_order(cells)
        assert sorted(order.tolist()) == list(range(len(cells)))

    def test_quarters_follow_each_other(self):
        square = np.argwhere(np.ones((8, 8), bool))
        tiles = square[even_order(square)]
        for part in range(4):
            quarter = tiles[part * 16 : (part + 1) * 16] // 4
            assert (quarter == (part // 2, part % 2)).all()

    def test_every_fourth_tile_is_an_even_thinning(self, cells):
        """Each block of 4 × 4 full tiles keeps 4 of its 16, or nearly so."""
        thinned = cells[even_order(cells)[::4]]
        blocks = []
        for tiles in (cells, thinned):
            raster = np.zeros((32, 32), int)
            raster[tuple((tiles - cells.min(0)).T)] = 1
            blocks.append(raster.reshape(8, 4, 8, 4).sum((1, 3)))
        whole = blocks[0] == 16
        assert whole.sum() > 10
        assert set(blocks[1][whole].tolist()) <= {3, 4, 5}


def slow_distances(cells, anchors, bins=64):
    """METHODS 6.1.4 with every pair of tiles, one at a time."""
    extent = max(math.dist(one, other) for one in cells for other in cells)
    width = extent / bins
    return [
        [math.floor(math.dist(cells[k], tile) / width + 1e-9) for tile in cells]
        for k in anchors
    ]


class TestDistances:
    def test_against_all_pairs(self, cells):
        some = cells[np.random.default_rng(1).permutation(len(cells))[:90]]
        anchors = choose_anchors(some, 18)
        got = distance_bins(some, anchors)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, slow_distances(some, anchors))

    def test_the_farthest_pair_has_the_last_bin(self):
        cells = np.array([[0, 0], [3, 4], [1, 1]])
        assert distance_bins(cells, np.array([0])).tolist() == [[0, 64, 18]]

    @pytest.mark.parametrize(("quarters", "shift"), MOVES)
    def test_they_stay_when_the_slide_moves(self, cells, quarters, shift):
        anchors = choose_anchors(cells, 18)
        got = distance_bins(moved(cells, quarters, shift), anchors)
        np.testing.assert_array_equal(got, distance_bins(cells, anchors))

    def test_they_stay_when_the_slide_grows(self, cells):
        anchors = choose_anchors(cells, 18)
        got = distance_bins(cells * 7, anchors)
        np.testing.assert_array_equal(got, distance_bins(cells, anchors))

    def test_one_tile_is_at_no_distance(self):
        assert distance_bins(np.array([[5, 5]]), np.array([0])).tolist() == [[0]]


class TestDirections:
    def test_the_eight_neighbours(self):
        around = np.array(
            [
                *((0, 0), (1, 0), (1, 1), (0, 1), (-1, 1)),
                *((-1, 0), (-1, -1), (0, -1), (1, -1)),
            ]
        )
        got = direction_bins(around, np.array([0]))
        assert got.tolist() == [[8, 0, 1, 2, 3, 4, 5, 6, 7]]

    def test_against_angles_one_at_a_time(self, cells):
        anchors = choose_anchors(cells, 144)
        got = direction_bins(cells, anchors)
        for k, row in zip(anchors, got.tolist(), strict=True):
            for tile, found in zip(cells, row, strict=True):
                down, right = (tile - cells[k]).tolist()
                if (down, right) == (0, 0):
                    assert found == 8
                    continue
                degrees = math.degrees(math.atan2(right, down)) % 360
                away = (degrees - 45 * found + 180) % 360 - 180
                assert abs(away) < 22.5

    @pytest.mark.parametrize("bins", [4, 8, 16])
    def test_a_quarter_turn_adds_a_quarter(self, cells, bins):
        """Bins of four have their edges on diagonals, where tiles lie."""
        anchors = choose_anchors(cells, 18)
        before = direction_bins(cells, anchors, bins).astype(int)
        after = direction_bins(moved(cells, 1, (3, 3)), anchors, bins)
        there = before < bins
        assert (~there).sum() == len(anchors)
        # TURN takes rows to columns: the direction of rows is then that of columns.
        expected = np.where(there, (before + bins // 4) % bins, bins)
        np.testing.assert_array_equal(after, expected)

    def test_as_published(self, cells):
        anchors = choose_anchors(cells, 18)
        got = direction_bins(cells, anchors, compat=True)
        for k, row in zip(anchors, got, strict=True):
            for tile, found in zip(cells, row, strict=True):
                down, right = (tile - cells[k]).tolist()
                theta = math.atan2(right, down)
                published = math.floor(theta / (2 * math.pi / 8) + 1e-12) + 4
                assert found == min(published, 7)

    def test_published_bins_do_not_turn_with_the_slide(self, cells):
        """The reason for the clean form: the clamp at 180° is one-sided."""
        anchors = choose_anchors(cells, 18)
        before = direction_bins(cells, anchors, compat=True).astype(int)
        after = direction_bins(moved(cells, 1), anchors, compat=True)
        other = np.ones(before.shape, bool)
        other[np.arange(len(anchors)), anchors] = False
        assert ((before + 2) % 8 != after)[other].any()


class TestAngles:
    @pytest.mark.parametrize("compat", [False, True])
    def test_they_are_the_middles_of_the_bins(self, compat):
        angles = direction_angles(np.arange(8), compat=compat)
        away = np.rint(1e5 * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(int)
        cells = np.vstack([[0, 0], away])
        found = direction_bins(cells, np.array([0]), compat=compat)
        np.testing.assert_array_equal(found[0, 1:], np.arange(8))
        # A little less than half a bin to either side is the same bin still.
        for off in (-0.99, 0.99):
            turned = angles + off * np.pi / 8
            near = np.rint(1e5 * np.stack([np.cos(turned), np.sin(turned)], 1))
            cells = np.vstack([[0, 0], near.astype(int)])
            found = direction_bins(cells, np.array([0]), compat=compat)
            np.testing.assert_array_equal(found[0, 1:], np.arange(8))
