"""The list of methods: what each line promises, and that MAE keeps it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from histomae.config import METHOD_DEFAULTS, PretrainConfig
from histomae.config import METHODS as NAMES
from histomae.learn.augment import Stream, mask_noise, views
from histomae.learn.methods import METHODS, Batch, Setting, beside
from histomae.models.patches import random_mask

CONFIG = PretrainConfig(
    encoder="vit_micro",
    tile_px=32,
    patch_size=8,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=2,
    seed=3,
)
SETTING = Setting(CONFIG, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return METHODS["mae"].build(CONFIG, torch.Generator().manual_seed(0))


@pytest.fixture
def crops():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def inputs(crops, indices, **kind):
    batch = Batch(torch.from_numpy(crops), np.array(indices), **kind)
    return METHODS["mae"].inputs(batch, SETTING)


def test_the_settings_know_every_method():
    assert tuple(METHODS) == NAMES
    for name, method in METHODS.items():
        assert method.name == name
        assert method.title
        assert method.sentence.endswith(".")


def test_usual_settings_are_settings():
    assert METHOD_DEFAULTS.keys() == METHODS.keys()
    assert (
        PretrainConfig(method="sd-mae", **METHOD_DEFAULTS["sd-mae"]).mask_ratio == 0.6
    )


def test_weights_come_from_the_generator(model):
    again = METHODS["mae"].build(CONFIG, torch.Generator().manual_seed(0))
    other = METHODS["mae"].build(CONFIG, torch.Generator().manual_seed(1))
    weights = model.encoder.patch_embed.proj.weight
    assert torch.equal(weights, again.encoder.patch_embed.proj.weight)
    assert not torch.equal(weights, other.encoder.patch_embed.proj.weight)


def test_a_crop_looks_the_same_in_any_micro_batch(crops):
    whole = inputs(crops, [9, 4, 7, 1], epoch=2)
    part = inputs(crops[2:3], [7], epoch=2)
    assert torch.equal(whole["images"][2:3], part["images"])
    assert torch.equal(whole["noise"][2:3], part["noise"])
    later = inputs(crops, [9, 4, 7, 1], epoch=3)
    assert not torch.equal(whole["images"], later["images"])
    assert not torch.equal(whole["noise"], later["noise"])


def test_held_out_crops_are_seen_plain_and_masked_alike(crops):
    got = inputs(crops, [0, 1, 2, 3], epoch=0, training=False)
    plain = views(torch.from_numpy(crops), mean=SETTING.mean, std=SETTING.std)
    assert torch.equal(got["images"], plain)
    noise = mask_noise(3, 0, np.arange(4), patches=16, stream=Stream.HELD_OUT_MASK)
    assert np.array_equal(got["noise"].numpy(), noise)


def test_part_of_the_hidden_patches_is_painted_in_training_and_all_when_judged(
    model, crops
):
    given, seen = inputs(crops, [0, 1, 2, 3], epoch=1), []
    setting = replace(SETTING, config=replace(CONFIG, decoded_share=0.5))
    hook = model.decoder.head.register_forward_hook(
        lambda *passed: seen.append(passed[2].shape[1])
    )
    METHODS["mae"].loss(model.train(), given, setting)
    METHODS["mae"].loss(model.eval(), given, setting)
    model.train()
    hook.remove()
    assert seen == [4 + 6, 16]


def test_the_batchs_loss_is_the_mean_of_its_crops(model, crops):
    method = METHODS["mae"]
    assert method.splits_over_batch
    whole = method.loss(model, inputs(crops, [0, 1, 2, 3], epoch=1), SETTING).loss
    alone = [
        method.loss(model, inputs(crops[i : i + 1], [i], epoch=1), SETTING).loss
        for i in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_the_picture_is_rows_of_three(model, crops):
    indices = np.array([5, 6, 7])
    picture = METHODS["mae"].picture(model.eval(), crops[:3], indices, SETTING)
    assert picture.shape == (3 * 32 + 2 * 4, 3 * 32 + 2 * 4, 3)
    assert picture.dtype == np.uint8
    noise = mask_noise(3, 0, indices, patches=16, stream=Stream.HELD_OUT_MASK)
    mask = random_mask(torch.from_numpy(noise), CONFIG.mask_ratio).mask
    for row in range(3):
        shown = [picture[row * 36 : row * 36 + 32, x : x + 32] for x in (0, 36, 72)]
        np.testing.assert_array_equal(shown[0], crops[row])
        hidden = np.kron(mask[row].view(4, 4).numpy(), np.ones((8, 8), bool))
        for panel in shown[1:]:
            np.testing.assert_array_equal(panel[~hidden], crops[row][~hidden])
        assert (shown[1][hidden] == 128).all()
        assert (shown[2][hidden] != 128).any()


def test_pictures_beside_each_other_do_not_touch():
    one = np.zeros((5, 7, 3), np.uint8)
    sheet = beside([(one, one), (one, one)], gap_px=2)
    assert sheet.shape == (12, 16, 3)
    assert (sheet == 0).sum() == 4 * one.size
    assert (sheet[5:7] == 255).all()
    assert (sheet[:, 7:9] == 255).all()
