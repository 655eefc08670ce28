"""Any encoder embeds, and says of itself what files of features must know."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from histomae.errors import ConfigError
from histomae.infer.embedder import EncoderChoice, ForeignTileEncoder, open_embedder
from histomae.infer.encoder import TileEncoder
from histomae.infer.reconstruct import normalised

CPU = torch.device("cpu")
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.3, 0.2)


@pytest.fixture
def theirs():
    """A small model of timm's."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=32).eval()


@pytest.fixture
def weights(theirs, tmp_path):
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    return str(tmp_path / "theirs.safetensors")


@pytest.fixture
def foreign(weights):
    choice = EncoderChoice(
        source=weights,
        architecture="test_vit",
        tile_px=32,
        mpp=0.7,
        mean=MEAN,
        std=STD,
        device="cpu",
        precision="f32",
    )
    return open_embedder(choice)


@pytest.fixture
def images(tiles):
    return normalised(tiles, MEAN, STD, CPU)


def test_a_foreign_encoder_says_what_it_is(foreign):
    assert isinstance(foreign, ForeignTileEncoder)
    assert (foreign.name, foreign.width) == ("test_vit", 64)
    assert (foreign.spec.tile_px, foreign.spec.mpp) == (32, 0.7)
    assert foreign.poolings == ("own", "class_token", "mean")


def test_it_embeds_as_timm_does(foreign, theirs, images, tiles):
    with torch.no_grad():
        own, tokens = theirs(images), theirs.forward_features(images)
    for pooling, expected in (
        ("own", own),
        ("class_token", tokens[:, 0]),
        ("mean", tokens[:, 1:].mean(1)),
    ):
        found = foreign.embed(tiles, pooling=pooling)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_model_without_tokens_has_its_own_pooling_alone(tmp_path, tiles):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    choice = EncoderChoice(
        source=str(tmp_path / "w.safetensors"),
        architecture="test_resnet",
        tile_px=32,
        mpp=1.0,
    )
    foreign = open_embedder(choice)
    assert foreign.poolings == ("own",)
    assert foreign.embed(tiles).shape == (8, 96)
    with pytest.raises(ConfigError, match="Choose own"):
        foreign.embed(tiles, pooling="mean")


def test_in_bf16_it_embeds_almost_the_same(foreign, weights, tiles):
    half = open_embedder(
        EncoderChoice(
            source=weights,
            architecture="test_vit",
            tile_px=32,
            mpp=0.7,
            mean=MEAN,
            std=STD,
            precision="bf16",
        )
    )
    assert (half.encoder_id, half.precision) == (foreign.encoder_id, "bf16")
    one, other = half.embed(tiles), foreign.embed(tiles)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.05 * np.abs(other).max())


def test_our_checkpoint_is_known_by_its_header(checkpoint_path, encoder, tiles):
    path = checkpoint_path
    choice = EncoderChoice(source=str(path), device="cpu", precision="f32", mpp=1.0)
    assert choice.is_ours
    found = open_embedder(choice)
    assert isinstance(found, TileEncoder)
    assert found.encoder_id == encoder.encoder_id
    expected = encoder.embed(tiles)
    np.testing.assert_array_equal(found.embed(tiles), expected)
    with pytest.raises(ConfigError, match=r"trained with 1\.0, not 0\.5. Leave it out"):
        open_embedder(EncoderChoice(source=str(path), mpp=0.5))


def test_others_do_not_say_their_pixel_size(weights):
    choice = EncoderChoice(source=weights, architecture="test_vit")
    assert not choice.is_ours
    with pytest.raises(ConfigError, match=r"mpp: .* Give µm per pixel"):
        open_embedder(choice)


def test_a_name_of_timm_is_never_ours():
    assert not EncoderChoice(source="timm:vit_tiny_patch16_224").is_ours
    assert not EncoderChoice(source="nowhere.safetensors").is_ours
