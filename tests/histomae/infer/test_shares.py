"""Attention on a lesion, against numbers that can be worked out by hand."""

import numpy as np
import pytest

from histomae.errors import NotEnoughDataError
from histomae.infer.shares import AttentionShare, attention_on, share_on_lesion
from histomae.slides.grid import TileGrid, TileSpec

ALL = np.ones((8, 8), bool)


def box(y0, y1, x0, x1):
    mask = np.zeros((8, 8), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_attention_that_minds_nothing_has_the_share_of_the_area():
    lesion = box(1, 6, 2, 7)
    found = attention_on(np.full((4, 4), 0.3), lesion, ALL)
    assert found.mass == pytest.approx(25 / 64)
    assert found.area == pytest.approx(25 / 64)
    assert found.times == pytest.approx(1)


def test_a_patch_counts_by_how_much_of_it_is_lesion():
    attention = np.array([[0.5, 0.2], [0.2, 0.1]])
    found = attention_on(attention, box(0, 4, 0, 6), ALL)  # one patch and half of one
    assert found == AttentionShare(pytest.approx(0.5 + 0.1), pytest.approx(24 / 64))
    assert found.words() == (
        "60% of the attention lies on the lesion, which is 38% of the picture: 1.6 "
        "times its share."
    )


def test_what_falls_beside_the_picture_does_not_count():
    shown = box(2, 6, 0, 8)  # black above and below
    attention = np.array([[0.4, 0.1], [0.4, 0.1]])
    found = attention_on(attention, box(0, 8, 0, 4), shown)
    assert found == AttentionShare(pytest.approx(0.8), pytest.approx(0.5))


def test_a_plain_loop_finds_the_same():
    random = np.random.default_rng(0)
    attention = random.random((4, 2))
    mask, shown = random.random((2, 8, 8)) < 0.5
    on, there = 0.0, 0.0
    for y in range(8):
        for x in range(8):
            there += attention[y // 2, x // 4] * shown[y, x]
            on += attention[y // 2, x // 4] * (shown[y, x] and mask[y, x])
    found = attention_on(attention, mask, shown)
    assert found.mass == pytest.approx(on / there)
    assert found.area == pytest.approx((mask & shown).sum() / shown.sum())


def test_without_lesion_or_attention_there_is_no_share():
    for attention, mask in ((np.ones((2, 2)), ~ALL), (np.zeros((2, 2)), ALL)):
        with pytest.raises(NotEnoughDataError, match="Choose a picture with a mask"):
            attention_on(attention, mask, ALL)
    tiles = TileGrid(TileSpec(8, 0.5), (0.0, 0.0), (8.0, 8.0), 1, 1)
    assert share_on_lesion(tiles, np.ones((2, 2)), ALL) is None
