"""What a segmenter found, as people say it."""

import numpy as np
import pytest
import shapely

from histomae.exchange.marks import MarkTable


def squares(*sides, mpp):
    """One class for each square, by the length of its side in level-0 pixels."""
    return MarkTable(
        centres_l0=np.zeros((len(sides), 2)),
        labels=np.arange(len(sides)),
        outlines_l0=tuple(shapely.box(0, 0, side, side) for side in sides),
        class_names=tuple(map(str, sides)),
        class_colors=((0, 0, 0),) * len(sides),
        slide_name="s",
        slide_id="s",
        segmenter_id="0",
        mpp=mpp,
    )


@pytest.mark.parametrize(
    ("mpp", "words"),
    [
        (None, ["100 px²", "40,000 px²", "1,000,000 px²", "100,000,000 px²"]),
        ((0.5, 0.5), ["25 µm²", "0.01 mm²", "0.25 mm²", "25 mm²"]),
        ((4.0, 2.0), ["800 µm²", "0.32 mm²", "8 mm²", "800 mm²"]),
    ],
)
def test_areas_are_told_in_a_unit_that_suits_them(mpp, words):
    table = squares(10, 200, 1000, 10_000, mpp=mpp)
    assert list(table.size_words().values()) == words
