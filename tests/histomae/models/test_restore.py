"""Back from normalised targets to pixels, against plain loops."""

import numpy as np
import pytest
import torch

from histomae.models.patches import normalised_target, patchify, random_mask
from histomae.models.restore import (
    neighbour_average,
    patch_statistics,
    restore_patches,
)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 3, 24, 32, generator=generator)
    # each patch its own colour and contrast
    gain = torch.rand(3, 1, 3, 4, generator=generator) + 0.1
    shift = torch.randn(3, 3, 3, 4, generator=generator)
    spread = lambda x: x.repeat_interleave(8, -1).repeat_interleave(8, -2)  # noqa: E731
    return noise * spread(gain) + spread(shift)


@pytest.fixture
def mask():
    noise = torch.rand(3, 12, generator=torch.Generator().manual_seed(1))
    return random_mask(noise, 0.75).mask


def test_neighbours_are_weighted_by_distance(mask):
    values = torch.randn(3, 12, 2, generator=torch.Generator().manual_seed(2))
    averaged = neighbour_average(values, mask, (3, 4)).numpy()
    for n, hidden in np.ndindex(3, 12):
        if not mask[n, hidden]:
            np.testing.assert_array_equal(averaged[n, hidden], values[n, hidden])
            continue
        total, weights = np.zeros(2), 0.0
        for seen in range(12):
            if mask[n, seen]:
                continue
            down = hidden // 4 - seen // 4
            across = hidden % 4 - seen % 4
            weight = 1 / np.hypot(down, across) ** 3
            total += weight * values[n, seen].numpy()
            weights += weight
        np.testing.assert_allclose(averaged[n, hidden], total / weights, rtol=1e-5)


def test_the_nearest_decide():
    values = torch.zeros(1, 49, 1)
    mask = torch.ones(1, 49, dtype=torch.bool)
    values[0, 0], values[0, 48] = 1.0, 3.0  # opposite corners of 7 x 7
    mask[0, [0, 48]] = False
    averaged = neighbour_average(values, mask, (7, 7)).reshape(7, 7)
    assert averaged[0, 1] == pytest.approx(1.0, abs=0.02)
    assert averaged[6, 5] == pytest.approx(3.0, abs=0.02)
    assert averaged[3, 3] == pytest.approx(2.0, abs=1e-6)


def test_statistics_of_patches(images):
    patches = patchify(images, 8)
    found = patch_statistics(patches).numpy()
    for n, index in np.ndindex(3, 12):
        row = patches[n, index].numpy().astype(float)
        assert found[n, index, 0] == pytest.approx(row.mean(), abs=1e-5)
        spread = np.sqrt(row.var(ddof=1) + 1e-6)
        assert found[n, index, 1] == pytest.approx(spread, rel=1e-5)


def restored(images, mask, statistics, prediction=None, *, norm_pix=True):
    if prediction is None:
        prediction = normalised_target(patchify(images, 8))
    return restore_patches(
        prediction,
        images,
        mask,
        patch_size=8,
        norm_pix=norm_pix,
        statistics=statistics,
    )


def test_true_statistics_undo_the_normalisation(images, mask):
    back = restored(images, mask, "true")
    torch.testing.assert_close(back, patchify(images, 8), atol=1e-4, rtol=1e-4)


def test_neighbours_give_mean_and_spread(images, mask):
    back = patch_statistics(restored(images, mask, "neighbours"))
    own = patch_statistics(patchify(images, 8))
    lent = neighbour_average(own, mask, (3, 4))
    torch.testing.assert_close(back, lent, atol=1e-3, rtol=1e-3)


def test_neighbours_know_nothing_of_what_is_hidden(images, mask):
    prediction = torch.randn(3, 12, 192, generator=torch.Generator().manual_seed(3))
    cover = mask.reshape(3, 1, 3, 4).repeat_interleave(8, -1).repeat_interleave(8, -2)
    other = torch.where(cover, images * 5 + 2, images)
    torch.testing.assert_close(
        restored(images, mask, "neighbours", prediction),
        restored(other, mask, "neighbours", prediction),
    )
    assert not torch.allclose(
        restored(images, mask, "true", prediction),
        restored(other, mask, "true", prediction),
    )


def test_plain_pixels_need_no_statistics(images, mask):
    prediction = torch.randn(3, 12, 192)
    assert (
        restored(images, mask, "neighbours", prediction, norm_pix=False) is prediction
    )
