"""OpenSlide's view of a file: exact where it can be, alive after an error."""

import numpy as np
import pytest

from histomae.slides.oracle import flatten, unmixed


@pytest.mark.parametrize("shift", [0.23, 0.1, 0.004, -0.02, -0.17, -0.25])
@pytest.mark.parametrize("axis", [0, 1])
def test_unmixed_undoes_a_linear_interpolation(noise, shift, axis):
    pixels = np.moveaxis(noise(60, 60).astype(float), axis, 0)
    weight, step = abs(shift), 1 if shift > 0 else -1
    mixed = pixels.copy()
    for at in range(1, 59):
        mixed[at] = (1 - weight) * pixels[at] + weight * pixels[at + step]
    solved = unmixed(np.moveaxis(mixed, 0, axis).astype(np.float32), shift, axis=axis)
    # The ends are not mixed in this test; what that does fades within eight pixels.
    away = np.moveaxis(solved, axis, 0)[9:-9] - pixels[9:-9]
    assert np.abs(away).max() < 0.05


def test_flatten_keeps_opaque_pixels(noise):
    pixels = noise(30, 20)
    rgba = np.dstack([pixels, np.full((20, 30), 255, np.uint8)])
    np.testing.assert_array_equal(flatten(rgba, (1, 2, 3)), pixels)
