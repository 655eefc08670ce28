"""What is hidden is hidden, what is shown is shown, and the error is the objective."""

import numpy as np
import pytest
import torch

from histomae.infer.reconstruct import (
    HIDDEN_RGB,
    covering_masks,
    normalised,
    random_masks,
    reconstruct_tiles,
)

MEAN, STD = (0.7, 0.5, 0.65), (0.2, 0.25, 0.18)


def reconstruct(model, tiles, masks, **options):
    return reconstruct_tiles(model, tiles, masks, mean=MEAN, std=STD, **options)


def on_pixels(mask):
    """Turn a mask of patches into one of pixels."""
    return np.kron(mask, np.ones((8, 8), bool))


@pytest.mark.parametrize(
    ("ratio", "hidden"), [(0.75, 12), (0.5, 8), (0.9, 14), (0.0, 1), (1.0, 15)]
)
def test_random_masks_hide_so_many(ratio, hidden):
    masks = random_masks(50, (4, 4), ratio, seed=3)
    assert masks.shape == (50, 4, 4)
    assert masks.dtype == bool
    assert (masks.sum((1, 2)) == hidden).all()
    assert len({mask.tobytes() for mask in masks}) > 10
    np.testing.assert_array_equal(masks, random_masks(50, (4, 4), ratio, seed=3))
    assert (masks != random_masks(50, (4, 4), ratio, seed=4)).any()


@pytest.mark.parametrize(
    ("ratio", "count"), [(0.75, 2), (0.5, 2), (0.4, 3), (0.25, 4), (0.0, 16), (1.0, 2)]
)
def test_covering_masks_hide_everything_once(ratio, count):
    masks = covering_masks((4, 4), ratio, seed=0)
    assert len(masks) == count
    assert masks.any(0).all()
    assert len(set(masks.sum((1, 2)).tolist())) == 1


def test_normalised_is_channel_first(tiles):
    images = normalised(tiles, MEAN, STD, torch.device("cpu")).numpy()
    assert images.dtype == np.float32
    for n, y, x, c in [(0, 0, 0, 0), (3, 5, 7, 1), (7, 31, 30, 2)]:
        wanted = (tiles[n, y, x, c] / 255 - MEAN[c]) / STD[c]
        assert images[n, c, y, x] == pytest.approx(wanted, abs=1e-6)


def test_pictures_show_what_is_visible_and_hide_the_rest(model, tiles):
    masks = random_masks(8, (4, 4), 0.75, seed=0)
    for tile, mask, one in zip(
        tiles, masks, reconstruct(model, tiles, masks), strict=True
    ):
        hidden = on_pixels(mask)
        np.testing.assert_array_equal(one.masked[~hidden], tile[~hidden])
        assert (one.masked[hidden] == HIDDEN_RGB).all()
        np.testing.assert_array_equal(one.reconstruction[~hidden], tile[~hidden])
        assert (one.reconstruction[hidden] != tile[hidden]).any()
        np.testing.assert_array_equal(one.mask, mask)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_error_is_the_objective_patch_by_patch(model, tiles, norm_pix):
    model.norm_pix = norm_pix
    masks = random_masks(8, (4, 4), 0.75, seed=0)
    results = reconstruct(model, tiles, masks)
    images = normalised(tiles, MEAN, STD, torch.device("cpu"))
    with torch.no_grad():
        hidden = torch.from_numpy(masks.reshape(8, 16))
        output = model(images, mask_ratio=0.75, noise=hidden.float())
    np.testing.assert_array_equal(output.mask, hidden)
    for n, one in enumerate(results):
        for row, col in np.ndindex(4, 4):
            if not masks[n, row, col]:
                assert np.isnan(one.error[row, col])
                continue
            pixels = images[n, :, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
            target = np.moveaxis(pixels.numpy(), 0, -1).reshape(-1).astype(float)
            if norm_pix:
                spread = np.sqrt(target.var(ddof=1) + 1e-6)
                target = (target - target.mean()) / spread
            guess = output.prediction[n, row * 4 + col].numpy()
            wanted = ((guess - target) ** 2).mean()
            assert one.error[row, col] == pytest.approx(wanted, rel=1e-4)
    mean = np.mean([one.loss for one in results])
    assert mean == pytest.approx(output.loss.item(), rel=1e-4)


def test_pixel_error_is_that_of_the_picture(model, tiles):
    masks = random_masks(8, (4, 4), 0.5, seed=0)
    for tile, one in zip(tiles, reconstruct(model, tiles, masks), strict=True):
        apart = (one.reconstruction / 255 - tile / 255) ** 2
        by_patch = apart.reshape(4, 8, 4, 8, 3).mean((1, 3, 4))
        seen = one.pixel_error[one.mask]
        np.testing.assert_allclose(seen, by_patch[one.mask], atol=2e-3)
        assert np.isnan(one.pixel_error[~one.mask]).all()


def test_hidden_pixels_do_not_leak_into_the_picture(model, tiles):
    mask = random_masks(1, (4, 4), 0.75, seed=0)
    other = np.array(tiles[:1])
    other[0, on_pixels(mask[0])] = 255 - other[0, on_pixels(mask[0])] // 2
    honest = [reconstruct(model, t, mask)[0] for t in (tiles[:1], other)]
    np.testing.assert_array_equal(honest[0].reconstruction, honest[1].reconstruction)
    knowing = [
        reconstruct(model, t, mask, statistics="true")[0] for t in (tiles[:1], other)
    ]
    assert (knowing[0].reconstruction != knowing[1].reconstruction).any()


def test_one_tile_at_a_time_says_the_same(model, tiles):
    masks = random_masks(8, (4, 4), 0.75, seed=0)
    together = reconstruct(model, tiles, masks)
    alone = reconstruct(model, tiles[2:3], masks[2:3])[0]
    np.testing.assert_allclose(together[2].error, alone.error, rtol=1e-4)


def test_each_tile_must_hide_as_many(model, tiles):
    masks = random_masks(2, (4, 4), 0.5, seed=0)
    masks[0, masks[0]] = False
    masks[0, 0, 0] = True
    with pytest.raises(ValueError, match="Hide the same number"):
        reconstruct(model, tiles[:2], masks)
