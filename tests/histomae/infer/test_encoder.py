"""An encoder on tiles gives what timm and plain loops give."""

import numpy as np
import pytest
import torch

from histomae.errors import CheckpointError, ConfigError
from histomae.infer.encoder import TileEncoder, pick_device, pick_precision
from histomae.infer.reconstruct import normalised, random_masks
from histomae.models.attention import capture_attention
from histomae.models.checkpoint import save_checkpoint


@pytest.fixture
def images(encoder, tiles):
    header = encoder.header
    return normalised(tiles, header.mean, header.std, torch.device("cpu"))


def test_it_says_what_it_is(encoder, bare_encoder):
    assert encoder.spec.tile_px == 32
    assert encoder.spec.mpp == 1.0
    assert encoder.grid_size == (4, 4)
    assert (encoder.num_blocks, encoder.num_heads) == (3, 3)
    assert encoder.has_decoder
    assert not bare_encoder.has_decoder
    assert encoder.encoder_id == bare_encoder.encoder_id


def test_load_is_the_same(encoder, checkpoint, tiles, tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, checkpoint.header, checkpoint.tensors)
    loaded = TileEncoder.load(path, device="cpu")
    assert loaded.encoder_id == encoder.encoder_id
    np.testing.assert_array_equal(loaded.embed(tiles), encoder.embed(tiles))


def test_embeddings_are_timms(encoder, model, images, tiles):
    with torch.no_grad():
        tokens = model.encoder.forward_features(images).numpy()
    embedded = encoder.embed(tiles)
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(embedded, tokens[:, 0], atol=1e-5)
    mean = encoder.embed(tiles, pooling="mean")
    np.testing.assert_allclose(mean, tokens[:, 1:].mean(1), atol=1e-5)


def test_unknown_pooling(encoder, tiles):
    with pytest.raises(ConfigError, match="class_token or mean"):
        encoder.embed(tiles, pooling="max")


@pytest.mark.parametrize("block", [0, 1, 2, -1, -3])
def test_attention_of_a_head_and_of_their_mean(encoder, model, images, tiles, block):
    weights = capture_attention(model.encoder, images)[block].numpy()
    rows = weights[:, :, 0, 1:].reshape(8, 3, 4, 4)
    for head in range(3):
        maps = encoder.attention(tiles, block=block, head=head)
        np.testing.assert_allclose(maps, rows[:, head], atol=1e-6)
    maps = encoder.attention(tiles, block=block)
    assert maps.shape == (8, 4, 4)
    np.testing.assert_allclose(maps, rows.mean(1), atol=1e-6)


@pytest.mark.parametrize("block", [0, 1, 2, -1])
def test_rollout_goes_up_to_the_block(encoder, model, images, tiles, block):
    weights = capture_attention(model.encoder, images)
    for n in range(8):
        product = np.eye(17)
        for one in weights[: block % 3 + 1]:
            product = (0.5 * one[n].numpy().mean(0) + 0.5 * np.eye(17)) @ product
        maps = encoder.attention(tiles, block=block, head="rollout")
        wanted = product[0, 1:].reshape(4, 4)
        np.testing.assert_allclose(maps[n], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ({"block": 3}, "block"),
        ({"block": -4}, "block"),
        ({"head": 3}, "head"),
        ({"head": "max"}, "head"),
        ({"block": 9, "head": "rollout"}, "block"),
    ],
)
def test_attention_that_is_not_there(encoder, tiles, choice, field):
    with pytest.raises(ConfigError, match="Choose") as caught:
        encoder.attention(tiles, **choice)
    assert caught.value.field == field


def test_reconstruct_is_the_models(encoder, tiles):
    masks = random_masks(8, encoder.grid_size, 0.75, seed=0)
    results = encoder.reconstruct(tiles, masks)
    assert len(results) == 8
    assert 0 < results[0].loss < 100
    assert results[0].reconstruction.shape == (32, 32, 3)


def test_an_encoder_alone_cannot_reconstruct(bare_encoder, tiles):
    masks = random_masks(8, (4, 4), 0.75, seed=0)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        bare_encoder.reconstruct(tiles, masks)


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="Choose auto or cpu"):
        pick_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda' is not here"):
            pick_device("cuda")


# Precision -------------------------------------------------------------------


def test_precision_is_what_was_asked_or_what_the_processor_has(monkeypatch):
    cpu = torch.device("cpu")
    assert pick_precision("f32", cpu) == "f32"
    assert pick_precision("bf16", cpu) == "bf16"
    for has, expected in ((True, "bf16"), (False, "f32")):
        capabilities = {"avx512_bf16": has, "amx_bf16": False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert pick_precision("auto", cpu) == expected


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_bf16_embeds_almost_as_f32(encoder, checkpoint, tiles, pooling):
    half = TileEncoder(checkpoint, torch.device("cpu"), precision="bf16")
    exact = encoder.embed(tiles, pooling=pooling)
    found = half.embed(tiles, pooling=pooling)
    assert found.dtype == np.float32
    assert not np.array_equal(found, exact)
    cosine = (found * exact).sum(1) / np.linalg.norm(found, axis=1)
    cosine /= np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.999


def test_bf16_leaves_attention_and_reconstruction_as_they_are(
    encoder, checkpoint, tiles
):
    half = TileEncoder(checkpoint, torch.device("cpu"), precision="bf16")
    np.testing.assert_allclose(
        half.attention(tiles), encoder.attention(tiles), atol=1e-6
    )
    masks = random_masks(8, (4, 4), 0.75, seed=0)
    one, other = (e.reconstruct(tiles, masks)[3].error for e in (half, encoder))
    np.testing.assert_allclose(one, other, atol=1e-5)
