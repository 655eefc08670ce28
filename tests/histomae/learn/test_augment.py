"""Views against slow plain loops; randomness against numpy's own Philox."""

import numpy as np
import pytest
import torch
from PIL import Image

from histomae.learn.augment import (
    MIRRORED,
    MIXED_REGIONS,
    SYMMETRIES,
    Stream,
    affines,
    epoch_order,
    mask_noise,
    recoloured,
    uniforms,
    view_affines,
    view_boxes,
    view_gammas,
    views,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
WHOLE = np.array([[0.0, 0, 1, 1]])


@pytest.fixture
def crops():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (3, 24, 24, 3), np.uint8)


def levels(images):
    """Undo the normalisation: float (N, 3, H, W) to grey levels (N, H, W, 3)."""
    scaled = images.permute(0, 2, 3, 1).double().numpy() * STD + MEAN
    return scaled * 255


def seen(crops, boxes, which):
    affine = affines(boxes, SYMMETRIES[which])
    return levels(
        views(torch.from_numpy(crops), torch.from_numpy(affine), mean=MEAN, std=STD)
    )


def bilinear(picture, x, y):
    """Return a picture's colour at a place measured at pixel edges."""
    last_y, last_x = picture.shape[0] - 1, picture.shape[1] - 1
    x, y = np.clip(x - 0.5, 0, last_x), np.clip(y - 0.5, 0, last_y)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, last_x), min(y0 + 1, last_y)
    top = picture[y0, x0] * (1 - (x - x0)) + picture[y0, x1] * (x - x0)
    bottom = picture[y1, x0] * (1 - (x - x0)) + picture[y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


# ---- pictures


def test_without_affine_the_view_is_the_crop_normalised(crops):
    images = views(torch.from_numpy(crops), mean=MEAN, std=STD)
    assert images.dtype == torch.float32
    assert images.shape == (3, 3, 24, 24)
    expected = (crops / 255 - MEAN) / STD
    np.testing.assert_allclose(
        images.permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-5
    )


def test_the_identity_is_the_crop_exactly(crops):
    image = torch.from_numpy(crops)
    affine = torch.from_numpy(affines(np.repeat(WHOLE, 3, 0), SYMMETRIES[[0, 0, 0]]))
    whole = views(image, affine, mean=MEAN, std=STD)
    assert torch.equal(whole, views(image, mean=MEAN, std=STD))


@pytest.mark.parametrize("which", range(8))
def test_each_symmetry_is_numpys_exactly(crops, which):
    turned = np.rot90(crops, which % 4, axes=(1, 2))
    if which >= 4:  # mirrored, then turned
        turned = np.rot90(crops[:, :, ::-1], which % 4, axes=(1, 2))
    got = seen(crops, np.repeat(WHOLE, 3, 0), [which] * 3)
    np.testing.assert_array_equal(np.rint(got), turned)
    np.testing.assert_allclose(got, turned, atol=1e-3)


def test_a_crop_of_a_crop_is_plain_bilinear(crops):
    boxes = np.array(
        [[0.1, 0.05, 0.7, 0.8], [0.0, 0.0, 0.5, 1.0], [0.3, 0.2, 0.7, 0.8]]
    )
    got = seen(crops, boxes, [0, 0, 0])
    for picture, (x, y, w, h), view in zip(
        crops.astype(float), boxes, got, strict=True
    ):
        for i in range(24):
            for j in range(24):
                place = ((x + w * (j + 0.5) / 24) * 24, (y + h * (i + 0.5) / 24) * 24)
                expected = bilinear(picture, *place)
                # rounded to whole levels; a half may go either way
                assert np.abs(view[i, j] - expected).max() <= 0.501


def test_the_crop_is_taken_first_and_turned_then(crops):
    box = np.repeat([[0.2, 0.1, 0.6, 0.7]], 3, 0)
    plain = seen(crops, box, [0, 0, 0])
    turned = seen(crops, box, [1, 6, 3])
    np.testing.assert_allclose(turned[0], np.rot90(plain[0]), atol=1.01)
    np.testing.assert_allclose(turned[1], np.rot90(plain[1][:, ::-1], 2), atol=1.01)
    np.testing.assert_allclose(turned[2], np.rot90(plain[2], 3), atol=1.01)


# ---- boxes


def test_boxes_stay_inside_and_keep_their_area_and_shape():
    numbers = np.random.default_rng(1).random((20_000, 4))
    x, y, w, h = view_boxes(numbers, scale_min=0.5).T
    assert min(x.min(), y.min()) >= 0
    assert max((x + w).max(), (y + h).max()) <= 1 + 1e-12
    np.testing.assert_allclose(w * h, 0.5 + 0.5 * numbers[:, 0], atol=1e-12)
    assert (w / h).min() >= 3 / 4 - 1e-12
    assert (w / h).max() <= 4 / 3 + 1e-12
    # all of both ranges, and no side of the crop preferred
    assert (w * h).min() < 0.51
    assert (w / h).min() < 0.76
    assert abs(np.log(w / h).mean()) < 0.005
    assert abs((x - (1 - w) / 2).mean()) < 0.002


def test_a_scale_of_one_takes_the_whole_crop():
    boxes = view_boxes(np.random.default_rng(1).random((50, 4)), scale_min=1.0)
    np.testing.assert_allclose(boxes, np.repeat(WHOLE, 50, 0), atol=1e-12)


# ---- randomness


def test_numbers_are_those_of_numpys_philox():
    got = uniforms(7, 3, np.array([5, 0, 5]), stream=Stream.VIEW, count=6)
    for row, index in zip(got, (5, 0, 5), strict=True):
        key = np.array([7, 3 << 8 | Stream.VIEW], np.uint64)
        philox = np.random.Philox(key=key, counter=[0, index, 0, 0])
        np.testing.assert_array_equal(row, np.random.Generator(philox).random(6))


def test_numbers_depend_on_seed_epoch_index_and_purpose_only():
    every = np.arange(50)
    whole = mask_noise(0, 2, every, patches=9)
    some = np.array([41, 3, 17])
    np.testing.assert_array_equal(mask_noise(0, 2, some, patches=9), whole[some])
    others = [
        mask_noise(1, 2, every, patches=9),
        mask_noise(0, 3, every, patches=9),
        mask_noise(0, 2, every + 50, patches=9),
        mask_noise(0, 2, every, patches=9, stream=Stream.HELD_OUT_MASK),
    ]
    for other in others:
        assert not np.isin(other, whole).any()
    assert len(np.unique(whole)) == whole.size
    assert np.array_equal(mask_noise(-1, 0, some, patches=9)[:, 0] >= 0, [True] * 3)


def test_every_symmetry_comes_as_often():
    affine = view_affines(0, 1, np.arange(8000), scale_min=0.5)
    signs = np.sign(np.round(affine[:, :, :2], 6)).reshape(-1, 4)
    _, counts = np.unique(signs, axis=0, return_counts=True)
    assert len(counts) == 8
    assert ((counts - 1000) ** 2 / 1000).sum() < 24.3  # chi square, 7 degrees, 0.1 %


def test_an_epoch_is_a_seeded_permutation():
    regions = np.repeat(np.arange(25), 4)
    order = epoch_order(0, 4, regions)
    assert sorted(order) == list(range(100))
    assert not np.array_equal(order, epoch_order(0, 5, regions))
    assert not np.array_equal(order, epoch_order(1, 4, regions))
    np.testing.assert_array_equal(order, epoch_order(0, 4, regions))


def test_an_epoch_goes_through_many_regions_at_a_time():
    """Each region is read within one block of an epoch, mixed with others."""
    count = 3 * MIXED_REGIONS
    regions = np.random.default_rng(0).permutation(np.repeat(np.arange(count), 5))
    taken = regions[epoch_order(0, 0, regions)].reshape(3, -1)
    for block in taken:
        assert np.bincount(block, minlength=count).tolist().count(5) == MIXED_REGIONS
        assert len(set(block[: MIXED_REGIONS // 2])) > MIXED_REGIONS // 3
    later = regions[epoch_order(0, 1, regions)].reshape(3, -1)
    assert set(taken[0]) != set(later[0])


# ---- colours


def test_colours_change_as_a_plain_loop_has_it():
    random = np.random.default_rng(4)
    pictures = random.uniform(60, 190, (3, 3, 4, 5))
    wanted = np.array([(1.1, 0.95, 1.05, 0.07), (0.9, 1.1, 0.9, -0.1), (1, 1, 1, 0)])
    images = torch.from_numpy(pictures).float()
    found = recoloured(images.clone(), torch.from_numpy(wanted).float()).numpy()
    luma = np.array([0.299, 0.587, 0.114])
    for picture, (bright, contrast, vivid, hue), got in zip(
        pictures, wanted, found, strict=True
    ):
        picture = picture * bright
        mean = np.tensordot(luma, picture, 1).mean()
        picture = (picture - mean) * contrast + mean
        axis, angle = np.ones(3) / np.sqrt(3), 2 * np.pi * hue
        for y in range(4):
            for x in range(5):
                pixel = picture[:, y, x]
                pixel = vivid * pixel + (1 - vivid) * luma @ pixel
                turned = (  # Rodrigues
                    pixel * np.cos(angle)
                    + np.cross(axis, pixel) * np.sin(angle)
                    + axis * (axis @ pixel) * (1 - np.cos(angle))
                )
                np.testing.assert_allclose(got[:, y, x], turned.clip(0, 255), rtol=1e-4)
    np.testing.assert_allclose(found[2], pictures[2], rtol=1e-5)


def test_greys_have_no_hue_and_colours_stay_within_their_range():
    grey = torch.full((1, 3, 2, 2), 100.0)
    same = recoloured(grey.clone(), torch.tensor([[1, 1.1, 1.1, 0.1]]))
    torch.testing.assert_close(same, grey)
    bright = recoloured(torch.full((1, 3, 2, 2), 250.0), torch.tensor([[1.1, 1, 1, 0]]))
    assert bright.max() == 255


def test_mirroring_never_turns_what_is_above_below():
    affine = view_affines(
        0, 1, np.arange(2000), scale_min=0.5, symmetries=MIRRORED
    ).round(6)
    assert (affine[:, 1, 1] > 0).all()
    assert (affine[:, [0, 1], [1, 0]] == 0).all()
    assert 900 < (affine[:, 0, 0] < 0).sum() < 1100


def test_gammas_are_as_often_lighter_as_darker():
    powers = view_gammas(3, 1, np.arange(4000), most=0.25)
    assert powers.dtype == np.float32
    assert powers.min() >= 1 / 1.25 - 1e-6
    assert powers.max() <= 1.25 + 1e-6
    assert np.log(powers).mean() == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(
        view_gammas(3, 1, np.array([7]), most=0.25), powers[7]
    )
    assert (view_gammas(3, 2, np.arange(9), most=0.25) != powers[:9]).all()


def test_a_power_of_the_greys_and_one_channel():
    random = np.random.default_rng(0)
    crops = random.integers(0, 256, (2, 4, 5, 1), np.uint8).repeat(3, -1)
    gamma = torch.tensor([0.8, 1.25])
    found = views(torch.from_numpy(crops), mean=(0.4,), std=(0.2,), gamma=gamma)
    assert found.shape == (2, 1, 4, 5)
    for picture, power, got in zip(crops[..., 0], gamma.tolist(), found, strict=True):
        levels = np.round(255 * (picture / 255.0) ** power)
        np.testing.assert_allclose(got[0], (levels / 255 - 0.4) / 0.2, atol=1e-5)


def test_a_grey_is_weighted_as_pillow_does():
    random = np.random.default_rng(0)
    crops = random.integers(0, 256, (1, 40, 50, 3), np.uint8)
    found = views(torch.from_numpy(crops), mean=(0.0,), std=(1.0,)) * 255
    theirs = np.asarray(Image.fromarray(crops[0]).convert("L"))
    assert np.abs(found[0, 0].numpy() - theirs).max() <= 1
