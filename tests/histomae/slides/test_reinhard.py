"""Reinhard's transfer against a plain loop, and what it must leave."""

import math

import numpy as np
import pytest

from histomae.slides.reinhard import (
    TCGA_A2_A3XS,
    Stain,
    lab_of,
    restained,
    rgb_of,
    stain_of,
)


@pytest.fixture
def pixels():
    random = np.random.default_rng(0)
    pink = random.normal((200, 140, 180), (20, 25, 15), (9, 7, 3))
    return pink.clip(1, 255).astype(np.uint8)


def plain(red, green, blue):
    """Equations 4 and 6, a number at a time."""
    long = math.log(0.3811 * red + 0.5783 * green + 0.0402 * blue)
    middle = math.log(0.1967 * red + 0.7244 * green + 0.0782 * blue)
    short = math.log(0.0241 * red + 0.1288 * green + 0.8444 * blue)
    return (
        (long + middle + short) / math.sqrt(3),
        (long + middle - 2 * short) / math.sqrt(6),
        (long - middle) / math.sqrt(2),
    )


def test_lab_is_that_of_the_paper(pixels):
    found = lab_of(pixels)
    for y in range(9):
        for x in range(7):
            expected = plain(*pixels[y, x].tolist())
            np.testing.assert_allclose(found[y, x], expected, rtol=1e-12)
    np.testing.assert_allclose(rgb_of(found), pixels, atol=1e-9)


def test_a_plain_loop_gives_the_same_colours(pixels):
    target = Stain((8.6, -0.1, 0.04), (0.3, 0.08, 0.02))
    lab = [[plain(*pixel) for pixel in row] for row in pixels.tolist()]
    numbers = [pixel for row in lab for pixel in row]
    moved = np.zeros((9, 7, 3))
    for channel in range(3):
        values = [pixel[channel] for pixel in numbers]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        for y in range(9):
            for x in range(7):
                stretched = (lab[y][x][channel] - mean) / spread * target.std[channel]
                moved[y, x, channel] = stretched + target.mean[channel]
    expected = np.rint(rgb_of(moved).clip(0, 255))
    np.testing.assert_array_equal(restained(pixels, target), expected)


def test_the_result_has_the_targets_colours(pixels):
    target = Stain((8.6, -0.1, 0.04), (0.3, 0.08, 0.01))  # nothing is clipped
    found = stain_of(restained(pixels, target))
    np.testing.assert_allclose(found.mean, target.mean, atol=0.01)
    np.testing.assert_allclose(found.std, target.std, atol=0.01)
    own = stain_of(pixels)
    np.testing.assert_array_equal(restained(pixels, own), pixels)


def test_what_has_one_colour_is_moved(pixels):
    blank = np.full((4, 4, 3), 240, np.uint8)
    found = restained(blank)
    assert (found == found[0, 0]).all()
    np.testing.assert_allclose(lab_of(found[0, 0])[0], TCGA_A2_A3XS.mean[0], atol=0.02)
    assert restained(np.zeros((2, 2, 3), np.uint8)).dtype == np.uint8
