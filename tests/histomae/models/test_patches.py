from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from histomae.models.patches import (
    chosen_mask,
    gather_tokens,
    normalised_target,
    patchify,
    random_mask,
    unpatchify,
)


def noise(n, count, seed=0):
    return torch.rand(n, count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [1, 8, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(32, 32), (48, 16), (16, 80)])
def test_unpatchify_undoes_patchify(p, channels, size):
    images = torch.arange(2 * channels * size[0] * size[1]).reshape(2, channels, *size)

    patches = patchify(images, p)

    assert patches.shape == (2, size[0] * size[1] // p**2, p * p * channels)
    assert torch.equal(unpatchify(patches, p, size), images)


def test_patches_go_row_by_row_with_the_channel_fastest():
    p, channels, height, width = 4, 3, 8, 12
    images = torch.rand(2, channels, height, width)

    patches = patchify(images, p)

    for n, y, x, c in np.ndindex(2, height, width, channels):
        patch = (y // p) * (width // p) + x // p
        entry = ((y % p) * p + x % p) * channels + c
        assert patches[n, patch, entry] == images[n, c, y, x]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not divide an image of 30 x 32 px"):
        patchify(torch.zeros(1, 3, 32, 30), 16)
    with pytest.raises(ValueError, match="do not fill 64 x 32 px"):
        unpatchify(torch.zeros(1, 4, 768), 16, (32, 64))


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [
        (196, 0.5, 98),
        (196, 0.6, 78),
        (196, 0.75, 49),
        (196, 0.9, 20),  # the reference truncates to 19
        (100, 0.9, 10),  # where int(100 * (1 - 0.9)) is 9
        (9, 0.0, 9),
        (9, 1.0, 0),
        (15, 0.99, 0),
    ],
)
def test_every_image_hides_exactly_the_share(count, ratio, kept):
    masking = random_mask(noise(5, count), ratio)

    assert masking.ids_keep.shape == (5, kept)
    assert masking.mask.dtype == torch.bool
    assert (masking.mask.sum(dim=1) == count - kept).all()


def test_masking_agrees_with_plain_loops():
    values = noise(4, 20)
    masking = random_mask(values, 0.7)

    for row in range(4):
        order = sorted(range(20), key=lambda i, row=row: values[row, i].item())
        assert masking.ids_keep[row].tolist() == order[:6]
        for place, patch in enumerate(order):
            assert masking.ids_restore[row, patch] == place
            assert masking.mask[row, patch] == (place >= 6)


def test_ids_restore_undoes_the_shuffle():
    values = noise(3, 35)
    masking = random_mask(values, 0.4)
    tokens = torch.rand(3, 35, 2)
    shuffled = gather_tokens(tokens, values.argsort(dim=1))

    assert torch.equal(gather_tokens(shuffled, masking.ids_restore), tokens)
    assert torch.equal(
        gather_tokens(tokens, masking.ids_keep),
        shuffled[:, : masking.ids_keep.shape[1]],
    )


def test_patches_are_hidden_equally_often():
    images, count, ratio = 4000, 16, 0.75
    masks = random_mask(noise(images, count), ratio).mask
    # Hidden patches are drawn without replacement: counts have this variance, and the
    # scaled sum of squares has count - 1 degrees of freedom.
    variance = images * ratio * (1 - ratio) * count / (count - 1)
    statistic = ((masks.sum(dim=0) - images * ratio) ** 2).sum().item() / variance

    assert chi2.ppf(0.001, count - 1) < statistic < chi2.ppf(0.999, count - 1)


def test_masks_differ_between_images_and_steps_and_repeat_with_the_seed():
    first, second = (
        random_mask(noise(2, 196, 0), 0.75),
        random_mask(noise(2, 196, 1), 0.75),
    )
    again = random_mask(noise(2, 196, 0), 0.75)

    assert not torch.equal(first.mask[0], first.mask[1])
    assert not torch.equal(first.mask, second.mask)
    assert torch.equal(first.mask, again.mask)


def test_a_wrong_ratio_is_refused():
    with pytest.raises(ValueError, match=r"mask_ratio is 1\.5"):
        random_mask(noise(1, 4), 1.5)


def test_a_chosen_mask_hides_what_it_says():
    mask = random_mask(noise(3, 12), 0.5).mask

    masking = chosen_mask(mask)

    assert torch.equal(masking.mask, mask)
    for row in range(3):
        visible = [i for i in range(12) if not mask[row, i]]
        assert masking.ids_keep[row].tolist() == visible


def test_a_chosen_mask_hides_as_many_in_each_image():
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        chosen_mask(torch.tensor([[True, False, False], [True, True, False]]))


def test_targets_have_mean_0_and_unbiased_variance_1():
    patches = torch.rand(2, 5, 48, dtype=torch.float64) * 3 + 7
    target = normalised_target(patches)

    for n, patch in np.ndindex(2, 5):
        values = patches[n, patch].numpy()
        expected = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
        np.testing.assert_allclose(
            target[n, patch].numpy(), expected, rtol=0, atol=1e-12
        )
    # the epsilon takes eps / variance off the variance of 1
    torch.testing.assert_close(
        target.var(dim=-1), 1 / (1 + 1e-6 / patches.var(dim=-1)), rtol=1e-12, atol=0
    )


def test_targets_ignore_brightness_and_contrast_of_a_patch():
    patches = torch.randn(2, 5, 48, dtype=torch.float64)
    gain, offset = torch.rand(2, 5, 1) + 0.5, torch.randn(2, 5, 1)

    changed = normalised_target(patches * gain + offset)

    # exact but for the epsilon: below 1e-6 / (variance of 0.25) of values up to 4
    torch.testing.assert_close(changed, normalised_target(patches), rtol=0, atol=2e-5)


def test_a_blank_patch_has_the_target_0():
    target = normalised_target(torch.full((1, 1, 48), 0.5))

    assert torch.equal(target, torch.zeros(1, 1, 48))


def test_targets_of_half_precision_are_float32():
    assert normalised_target(torch.rand(1, 2, 8).bfloat16()).dtype == torch.float32
