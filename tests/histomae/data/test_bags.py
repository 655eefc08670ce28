"""Tests of histomae.data.bags."""

from dataclasses import replace

import numpy as np
import pytest

from histomae.data.bags import Bag, check_alike
from histomae.errors import FeatureError, NotEnoughDataError
from histomae.models.anchors import BITS
from histomae.models.feature_spec import FeatureSpec

SPEC = FeatureSpec(encoder="drawn", width=3, mpp=0.5)


def bag(cells=((0, 0), (0, 1), (2, 5)), values=None, spec=SPEC, name="a"):
    cells = np.array(cells).reshape(-1, 2)
    if values is None:
        values = np.arange(3.0 * len(cells)).reshape(-1, 3)
    return Bag(slide=name, features=values, cells=cells, spec=spec)


def test_a_bag_keeps_its_own_copy_and_no_one_writes_into_it():
    values = np.ones((3, 3), np.float64)
    made = bag(values=values)
    values[:] = 7
    assert len(made) == 3
    assert (made.features.dtype, made.cells.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(made.features, np.ones((3, 3)))
    for array in (made.features, made.cells):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("cells", [[(4, 4)], [(3, n) for n in range(9)]])
def test_one_tile_and_one_row_are_bags(cells):
    assert len(bag(cells)) == len(cells)


def test_an_empty_bag_is_refused():
    with pytest.raises(NotEnoughDataError, match=r"a has no tile\. Embed it again"):
        bag(cells=[], values=np.zeros((0, 3)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"values": np.zeros((3, 4))}, r"shape \(3, 4\).*Give 3 numbers"),
        ({"values": np.zeros((2, 3))}, "for each tile"),
        ({"cells": [(0, 0), (1, 1), (0, 0)]}, "two tiles in one place"),
        ({"cells": [(0, 0), (0, 1), (1 << BITS, 5)]}, "tiles long"),
        ({"values": [[0, 0, 0], [0, np.nan, 0], [0, 0, np.inf]]}, "has 2 of 3 tiles"),
    ],
)
def test_what_is_no_bag_is_refused(wrong, words):
    with pytest.raises(FeatureError, match=words):
        bag(**wrong)


def test_tiles_that_could_not_be_read_are_left_out():
    values = np.array([[1, 1, 1], [0, np.nan, 0], [2, 2, 2]])
    made = Bag.of_readable(
        slide="a", features=values, cells=np.array([(0, 0), (0, 1), (2, 5)]), spec=SPEC
    )
    np.testing.assert_array_equal(made.features, values[[0, 2]])
    np.testing.assert_array_equal(made.cells, [(0, 0), (2, 5)])
    with pytest.raises(NotEnoughDataError):
        Bag.of_readable(
            slide="a",
            features=np.full((2, 3), np.nan),
            cells=np.array([(0, 0), (0, 1)]),
            spec=SPEC,
        )


def test_other_tiles_are_refused_and_both_named():
    other = bag(spec=replace(SPEC, mpp=0.25), name="b")
    check_alike([bag(), bag(name="b")], SPEC)
    with pytest.raises(FeatureError, match=r"b has other tiles than a has: pixel size"):
        check_alike([bag(), other])
    with pytest.raises(FeatureError, match=r"the model was trained on: .*0\.25.*0\.5"):
        check_alike([other], SPEC)
