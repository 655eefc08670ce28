"""Convolutional encoders: timm's own weights by name, and a map that is tokens."""

import pytest
import timm
import torch

from histomae.errors import CheckpointError, ConfigError
from histomae.models.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    encoder_from,
    load_checkpoint,
    save_checkpoint,
)
from histomae.models.cnn import CNNS, CnnSpec, map_tokens, strength
from histomae.models.encoders import build, pool, poolings_of, spec_of, tokens_of
from histomae.models.initial import init_encoder
from histomae.models.mae import DecoderSpec
from histomae.models.mpcs import Contrastive
from histomae.models.vit import EncoderSpec

SMALL = CnnSpec("efficientnet_b2", 64)


@pytest.fixture(scope="module")
def small():
    """An EfficientNet with running statistics that are not those of the beginning."""
    encoder = build(SMALL, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoder.train()(torch.rand(4, 3, 64, 64))
    return encoder.eval()


@pytest.mark.parametrize("name", CNNS)
def test_what_a_spec_says_is_what_comes_out(name):
    spec = CnnSpec(name, 100)
    with torch.device("meta"):
        tokens = tokens_of(build(spec), torch.zeros(2, 3, 100, 100))
    rows, cols = spec.grid_size
    assert tokens.shape == (2, rows * cols, spec.embed_dim)
    assert poolings_of(spec) == ("mean",)


def test_the_dilated_map_is_four_times_as_fine():
    plain, fine = (CnnSpec(name, 224) for name in ("resnet50", "resnet50_dilated"))
    assert (plain.grid_size, fine.grid_size) == ((7, 7), (28, 28))
    with torch.device("meta"):
        shapes = [
            {k: v.shape for k, v in build(s).state_dict().items()}
            for s in (plain, fine)
        ]
    assert shapes[0] == shapes[1]  # so that one's weights fit the other


def test_names_are_timms_and_the_mean_is_timms_pooling(small):
    theirs = timm.create_model("efficientnet_b2", num_classes=0)
    theirs.load_state_dict(small.state_dict(), strict=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        ours = pool(tokens_of(small, images), "mean", 0)
        torch.testing.assert_close(ours, theirs.eval()(images), rtol=1e-4, atol=1e-5)


def test_tokens_are_the_places_row_by_row():
    features = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4)
    tokens = map_tokens(features)
    assert torch.equal(tokens[1, 1 * 4 + 2], features[1, :, 1, 2])
    shares = strength(tokens.float(), (2, 4))
    torch.testing.assert_close(shares.sum((1, 2)), torch.ones(2))
    expected = (
        features[1, :, 1, 2].float().norm() / features[1].float().norm(dim=0).sum()
    )
    torch.testing.assert_close(shares[1, 1, 2], expected)


def test_weights_come_from_the_generator_and_leave_torchs_alone():
    before = torch.random.get_rng_state()
    one, same, other = (
        build(SMALL, generator=torch.Generator().manual_seed(seed)).conv_stem.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_spec_is_found_by_name():
    assert spec_of("resnet50", tile_px=96, patch_size=16) == CnnSpec("resnet50", 96)
    assert isinstance(spec_of("vit_tiny", tile_px=96, patch_size=16), EncoderSpec)
    with pytest.raises(ConfigError, match="Choose one of resnet50"):
        CnnSpec("alexnet", 96)
    with pytest.raises(ConfigError, match="tile_px: 8 is out of range"):
        CnnSpec("resnet50", 8)


def header(**changes):
    values = {
        "architecture": "efficientnet_b2",
        "encoder": SMALL,
        "decoder": None,
        "method": "mpcs",
        "mask_ratio": 0.0,
        "norm_pix": True,
        "mean": (0.5,) * 3,
        "std": (0.2,) * 3,
        "tile_px": 64,
        "mpp": 0.5,
        "mpp_given": False,
        "step": 3,
        "config_hash": "0" * 16,
    }
    return CheckpointHeader(**{**values, **changes})


def test_a_checkpoint_comes_back_and_can_start_a_training(small, tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_checkpoint(path, header(), small.state_dict())
    found = load_checkpoint(path)
    assert found.header == header()
    again = encoder_from(found)
    for name, tensor in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    model = Contrastive(SMALL, projector_dims=(8,), pooling="class_token")
    begun = init_encoder(model.encoder, str(path))
    assert begun.mean == (0.5, 0.5, 0.5)
    assert model.pooling == "mean"
    model.eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(
        model.encode(images), small(images), rtol=1e-4, atol=1e-5
    )


def test_weights_of_another_kind_are_refused(small, tmp_path):
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        save_checkpoint(
            path, header(encoder=CnnSpec("resnet50", 64)), small.state_dict()
        )
    with pytest.raises(CheckpointError, match="no pretrained EfficientNet named 'vit_"):
        init_encoder(small, "timm:vit_small_patch16_224")
    with pytest.raises(CheckpointError, match=r"decoder is .* convolutions have none"):
        header(decoder=DecoderSpec(16, 1, 2))
    text = (
        header()
        .to_json()
        .replace('"efficientnet_b2", "tile_px"', '"resnet", "tile_px"')
    )
    with pytest.raises(CheckpointError, match="'resnet' is unknown"):
        CheckpointHeader.from_json(text)
    assert Checkpoint(header(), small.state_dict()).encoder_only().header == header()


def test_a_file_of_weights_with_a_head_starts_it(small, tmp_path):
    whole = {**small.state_dict(), "classifier.weight": torch.zeros(5, 1408)}
    torch.save(whole, tmp_path / "weights.pth")
    fresh = build(SMALL, generator=torch.Generator().manual_seed(5))
    init_encoder(fresh, str(tmp_path / "weights.pth"))
    assert torch.equal(fresh.conv_stem.weight, small.conv_stem.weight)
