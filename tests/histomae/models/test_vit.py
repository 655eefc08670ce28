from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from timm.layers import build_sincos2d_pos_embed

from histomae.errors import ConfigError
from histomae.models.patches import patchify, unpatchify
from histomae.models.vit import (
    ENCODER_SIZES,
    EncoderSpec,
    build_encoder,
    embed_patches,
    encode_visible,
    encoder_spec,
    sincos_2d,
)

TINY = EncoderSpec(tile_px=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)


@pytest.fixture
def encoder():
    return build_encoder(TINY, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_sizes_by_name():
    spec = encoder_spec("vit_small", tile_px=224, patch_size=16)

    assert spec == EncoderSpec(224, 16, embed_dim=384, depth=12, num_heads=6)
    assert spec.grid_size == (14, 14)
    assert spec.num_patches == 196
    assert set(ENCODER_SIZES) == {"vit_small", "vit_tiny", "vit_micro"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_px": 33}, "8 px does not divide the tile of 33 px"),
        ({"embed_dim": 26}, "26 is no multiple of 4"),
        ({"num_heads": 5}, "and of the 5 heads"),
        ({"depth": 0}, "depth: 0 is out of range"),
        ({"embed_dim": 10**9}, "embed_dim: 1000000000 is out of range"),
    ],
)
def test_impossible_specs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        EncoderSpec(**{**vars(TINY), **changes})


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigError, match="Choose one of vit_small"):
        encoder_spec("vit_giant", tile_px=224, patch_size=16)


@pytest.mark.parametrize("grid", [(14, 14), (2, 5), (7, 3)])
def test_positions_equal_the_closed_form(grid):
    dim = 16
    table = sincos_2d(dim, grid, class_token=True)

    assert table.shape == (1, 1 + grid[0] * grid[1], dim)
    assert table.dtype == torch.float32
    assert torch.equal(table[0, 0], torch.zeros(dim))
    for y, x in np.ndindex(grid):
        row = []
        for position in (x, y):
            angles = [position * 10000 ** (-j / (dim / 4)) for j in range(dim // 4)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        # half a unit in the last place of float32 numbers up to 1
        np.testing.assert_allclose(
            table[0, 1 + y * grid[1] + x], row, rtol=0, atol=2**-24
        )


def test_positions_equal_timms_with_the_halves_swapped():
    ours = sincos_2d(384, (14, 14), class_token=False)[0]
    timms = build_sincos2d_pos_embed([14, 14], 384, interleave_sin_cos=True)

    # timm reckons in float32: angles up to 13 are off by up to a unit in the last place
    torch.testing.assert_close(
        ours, torch.cat([timms[:, 192:], timms[:, :192]], dim=1), rtol=0, atol=1e-6
    )


def test_positions_need_a_width_of_fours():
    with pytest.raises(ValueError, match="6 is no multiple of 4"):
        sincos_2d(6, (2, 2), class_token=False)


def test_names_and_shapes_are_timms():
    with torch.device("meta"):
        ours = build_encoder(encoder_spec("vit_small", tile_px=224, patch_size=16))
        timms = timm.create_model("vit_small_patch16_224", num_classes=0)

    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, timms)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in ours.parameters()) == 21_665_664
    epsilons = {m.eps for m in ours.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert epsilons == {1e-6}


def test_initial_weights(encoder):
    for name, parameter in encoder.named_parameters():
        if name == "pos_embed":
            expected = sincos_2d(24, (4, 4), class_token=True)
            assert torch.equal(parameter, expected)
            assert not parameter.requires_grad
            continue
        assert parameter.requires_grad, name
        if name == "cls_token":
            assert 0 < parameter.abs().max() < 0.02 * 5
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            fan_out, fan_in = parameter.flatten(1).shape
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert 0.9 * bound < parameter.abs().max() <= bound, name


def test_initial_weights_repeat_with_the_generator(encoder):
    state = torch.get_rng_state()
    again = build_encoder(TINY, generator=torch.Generator().manual_seed(0))

    assert torch.equal(torch.get_rng_state(), state)  # torch's own is left alone
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_embedding_patches_equals_the_convolution(encoder, images):
    embedded = embed_patches(encoder, patchify(images, 8))

    torch.testing.assert_close(embedded, encoder.patch_embed(images), rtol=0, atol=1e-6)


def test_all_patches_in_order_give_timms_features(encoder, images):
    features = encoder.forward_features(images)
    in_order = torch.arange(16).expand(2, -1)

    torch.testing.assert_close(
        encode_visible(encoder, images), features, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        encode_visible(encoder, images, in_order), features, rtol=0, atol=1e-5
    )


def test_all_patches_shuffled_give_timms_features_of_a_real_size():
    spec = encoder_spec("vit_micro", tile_px=96, patch_size=16)
    encoder = build_encoder(spec, generator=torch.Generator().manual_seed(0)).eval()
    # a learned class position, as weights from elsewhere have
    encoder.pos_embed.data[:, 0] = torch.randn(192)
    images = torch.randn(2, 3, 96, 96)
    shuffle = torch.rand(2, 36).argsort(dim=1)

    with torch.no_grad():
        latent = encode_visible(encoder, images, shuffle)
        features = encoder.forward_features(images)

    torch.testing.assert_close(latent[:, 0], features[:, 0], rtol=0, atol=1e-5)
    for n, place in np.ndindex(2, 36):
        expected = features[n, 1 + shuffle[n, place]]
        torch.testing.assert_close(latent[n, 1 + place], expected, rtol=0, atol=1e-5)


def test_hidden_patches_do_not_reach_the_encoder(encoder, images):
    ids_keep = torch.tensor([[3, 7, 0], [15, 2, 8]])
    changed = patchify(images, 8)
    for n in range(2):
        for patch in set(range(16)) - set(ids_keep[n].tolist()):
            changed[n, patch] = torch.nan

    latent = encode_visible(encoder, images, ids_keep)
    again = encode_visible(encoder, unpatchify(changed, 8, (32, 32)), ids_keep)

    assert latent.shape == (2, 4, 24)
    assert torch.equal(again, latent)


def test_images_of_another_size_are_refused(encoder):
    with pytest.raises(ValueError, match="40 x 32 px, the encoder takes 32 px"):
        encode_visible(encoder, torch.zeros(1, 3, 32, 40))
