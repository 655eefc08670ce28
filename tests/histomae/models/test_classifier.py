"""Tests of histomae.models.classifier."""

import copy

import pytest
import timm
import torch

from histomae.models.classifier import (
    DropPath,
    Network,
    TileClassifier,
    layer_groups,
)
from histomae.models.encoders import build
from histomae.models.vit import EncoderSpec

DEPTH, WIDTH = 3, 24
SPEC = EncoderSpec(tile_px=32, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=3)
COLOURS = {"mean": (0.5,) * 3, "std": (0.2,) * 3}


def ours(*, pooling="mean", drop_path=0.0, seed=0):
    module = build(SPEC, generator=torch.Generator().manual_seed(seed))
    network = Network(
        module=module, tile_px=32, width=WIDTH, pooling=pooling, **COLOURS
    )
    generator = torch.Generator().manual_seed(seed)
    return TileClassifier(network, 4, drop_path=drop_path, generator=generator)


def test_each_layer_learns_slower_than_the_one_above():
    model = ours()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = layer_groups(model, layer_decay=0.5, weight_decay=0.05)
    scale, decay = {}, {}
    for group in groups:
        for weight in group["params"]:
            scale[names[id(weight)]] = group["lr_scale"]
            decay[names[id(weight)]] = group["weight_decay"]
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(scale) == trained
    assert scale["head.weight"] == scale["norm.weight"] == 1
    assert scale["encoder.norm.weight"] == 0.5
    for block in range(DEPTH):
        expected = 0.5 ** (DEPTH - block)
        assert scale[f"encoder.blocks.{block}.attn.qkv.weight"] == expected
    assert scale["encoder.patch_embed.proj.weight"] == 0.5 ** (DEPTH + 1)
    assert scale["encoder.cls_token"] == 0.5 ** (DEPTH + 1)
    assert decay["encoder.blocks.0.attn.qkv.weight"] == 0.05
    assert decay["head.weight"] == 0.05
    no_decay = ("bias", "norm.weight", "norm1.weight", "norm2.weight", "cls_token")
    assert all(not decay[name] for name in trained if name.endswith(no_decay))


def test_a_dropped_branch_is_zero_and_the_others_make_up_for_it():
    drop = DropPath(0.25, torch.Generator().manual_seed(0))
    branch = torch.ones(4000, 2, 3)
    assert torch.equal(drop.eval()(branch), branch)
    found = drop.train()(branch)
    dropped = (found == 0).all((1, 2))
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.allclose(found[~dropped], torch.tensor(4 / 3))


def test_paths_are_dropped_more_often_the_deeper_they_are_and_repeatably():
    model = ours(drop_path=0.2)
    rates = [block.drop_path1.rate for block in model.encoder.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    first, second = (ours(drop_path=0.5).train()(images) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, ours(drop_path=0.5).eval()(images))


@pytest.mark.parametrize("pooling", ["mean", "class_token"])
def test_logits_are_those_of_the_pooled_tokens(pooling):
    model = ours(pooling=pooling).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = model.encoder.forward_features(images)
    vector = tokens[:, 1:].mean(1) if pooling == "mean" else tokens[:, 0]
    expected = model.head(model.norm(vector))
    torch.testing.assert_close(model(images), expected)


def test_a_network_of_other_people_makes_its_own_vector():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_resnet", num_classes=0).eval()
    network = Network(
        module=module, tile_px=64, width=module.num_features, pooling="own", **COLOURS
    )
    plain = copy.deepcopy(module)
    model = TileClassifier(
        network, 2, drop_path=0.3, generator=torch.Generator().manual_seed(0)
    ).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(images), model.head(model.norm(plain(images))))
    rates = [m.rate for m in model.encoder.modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    scales = {
        g["lr_scale"] for g in layer_groups(model, layer_decay=0.5, weight_decay=0.0)
    }
    assert len(scales) > 3
