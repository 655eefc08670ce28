"""Tests of histomae.evaluate.baselines."""

import numpy as np

from histomae.evaluate.baselines import colour_histogram


def test_it_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, size=(3, 9, 7, 3), dtype=np.uint8)
    features = colour_histogram(tiles, bins=4)
    assert features.shape == (3, 4**3 + 6)
    assert features.dtype == np.float32
    for tile, row in zip(tiles, features, strict=True):
        counts = np.zeros((4, 4, 4))
        for red, green, blue in tile.reshape(-1, 3):
            counts[red // 64, green // 64, blue // 64] += 1
        np.testing.assert_allclose(row[:64], counts.ravel() / 63, atol=1e-6)
        for channel in range(3):
            values = tile[..., channel] / 255
            np.testing.assert_allclose(row[64 + channel], values.mean(), rtol=1e-5)
            np.testing.assert_allclose(row[67 + channel], values.std(), rtol=1e-5)


def test_the_arrangement_does_not_matter():
    rng = np.random.default_rng(1)
    tile = rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    shuffled = rng.permutation(tile.reshape(-1, 3)).reshape(tile.shape)
    one, other = colour_histogram(np.stack([tile, shuffled]))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_black_and_white_are_the_first_and_the_last_bin():
    tiles = np.stack([np.zeros((4, 4, 3)), np.full((4, 4, 3), 255)]).astype(np.uint8)
    features = colour_histogram(tiles)
    assert features[0, 0] == 1
    assert features[1, 511] == 1


def test_no_tiles_give_no_rows():
    none = np.zeros((0, 4, 4, 3), np.uint8)
    assert colour_histogram(none).shape == (0, 518)
