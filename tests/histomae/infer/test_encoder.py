"""An encoder on tiles gives what timm and plain loops give."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from histomae.data.pictures import as_tile
from histomae.errors import CheckpointError, ConfigError, MissingMppError
from histomae.infer.closeup import Look, look_again, look_closely
from histomae.infer.encoder import TileEncoder, pick_device, pick_precision
from histomae.infer.maps import attention_map
from histomae.infer.reconstruct import normalised, random_masks
from histomae.infer.shares import attention_on
from histomae.models.attention import capture_attention
from histomae.models.checkpoint import Checkpoint, CheckpointHeader, save_checkpoint
from histomae.models.cnn import CnnSpec
from histomae.models.encoders import build
from histomae.models.probe import Probe
from histomae.slides.slide import Slide


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


# ---- who looks, pictures, greys, and what speaks for a class


def test_the_patches_look_on_average(encoder, tiles):
    images = encoder._images(tiles)
    attention = capture_attention(encoder._encoder, images)[1].numpy()
    expected = np.zeros((8, 4, 4))
    for tile in range(8):
        for patch in range(16):
            weights = [
                attention[tile, head, 1 + query, 1 + patch]
                for head in range(3)
                for query in range(16)
            ]
            expected[tile, patch // 4, patch % 4] = np.mean(weights)
    found = encoder.attention(tiles, block=1, query="mean")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    rolled = encoder.attention(tiles, head="rollout", query="mean")
    assert (rolled.sum((1, 2)) < 1).all()
    assert not np.allclose(rolled, encoder.attention(tiles, head="rollout"))


@pytest.fixture
def on_pictures(checkpoint):
    header = replace(checkpoint.header, mpp=None, scan_sector=True)
    return TileEncoder(Checkpoint(header, checkpoint.tensors), torch.device("cpu"))


def test_an_encoder_of_pictures_sees_one_whole(on_pictures, slide, tmp_path, run):
    pixels = np.zeros((50, 90, 3), np.uint8)
    pixels[10:40, 20:80] = np.random.default_rng(0).integers(60, 200, (30, 60, 1))
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    lesion = np.zeros((50, 90), bool)
    lesion[20:30, 30:50] = True
    with Slide.open(tmp_path / "scan.png") as picture:
        grid = on_pictures.grid_over(picture)
        work = look_closely(picture, on_pictures, grid, (0, 0), lesion=lesion)
        _, closeup = run(work)
        _, heatmap = run(attention_map(picture, on_pictures, grid, grid.all_cells()))
    np.testing.assert_array_equal(closeup.tile, as_tile(pixels, 32, sector=True))
    assert closeup.centre_mm is None
    assert closeup.lesion.area == pytest.approx(1 / 9, abs=0.02)
    wanted = attention_on(closeup.attention, grid.laid(lesion), grid.shown)
    assert closeup.lesion == wanted
    beside = closeup.attention_map.values
    assert np.isnan(beside[[0, -1]]).all()  # 32 x 16 px of the tile show the scan
    np.testing.assert_array_equal(beside[1:3], closeup.attention[1:3])
    relative = closeup.attention / closeup.attention.mean()
    np.testing.assert_allclose(heatmap.values, relative, rtol=1e-4)
    assert heatmap.origin_xy_l0 == grid.origin_xy_l0
    again = look_again(closeup, on_pictures, Look(head=1), lesion=lesion)
    assert again.lesion != closeup.lesion
    with pytest.raises(CheckpointError, match="trained on slides"):
        on_pictures.grid_over(slide)


def test_an_encoder_of_slides_needs_micrometres(encoder, tmp_path):
    Image.new("RGB", (90, 50)).save(tmp_path / "scan.png")
    refused = pytest.raises(MissingMppError, match="trained on pictures")
    with Slide.open(tmp_path / "scan.png") as picture, refused:
        encoder.grid_over(picture)


@pytest.fixture(scope="module")
def convolutional():
    spec = CnnSpec("efficientnet_b2", 64)
    network = build(spec, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 64, 64))
    header = CheckpointHeader(
        architecture="efficientnet_b2",
        encoder=spec,
        decoder=None,
        method="mpcs",
        mask_ratio=0.0,
        norm_pix=True,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        tile_px=64,
        mpp=1.0,
        mpp_given=False,
        step=1,
        config_hash="0",
    )
    made = Checkpoint(header, network.eval().state_dict())
    return TileEncoder(made, torch.device("cpu"))


@pytest.fixture(scope="module")
def its_probe(convolutional):
    random = np.random.default_rng(0)
    return Probe(
        mean=np.zeros(1408),
        std=np.ones(1408),
        weight=random.normal(size=(2, 1408)),
        bias=np.zeros(2),
        class_names=("Duct", "Fat"),
        class_colors=((0, 0, 0), (9, 9, 9)),
        encoder_id=convolutional.encoder_id,
        tile_px=64,
        mpp=1.0,
        pooling="mean",
    )


def test_grad_cam_of_a_probes_class(convolutional, its_probe, slide, run):
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with torch.no_grad():
        images = convolutional._images(tiles)
        features = convolutional._encoder.forward_features(images).numpy()
    for label, name in enumerate(its_probe.class_names):
        activation = np.einsum("c,nchw->nhw", its_probe.weight[label], features)
        found = convolutional.grad_cam(tiles, its_probe, name)
        assert found.shape == (3, 2, 2)
        np.testing.assert_allclose(found, activation.clip(0) / 4, rtol=1e-3, atol=1e-5)
    grid = convolutional.grid_over(slide)
    how = {"probe": its_probe, "class_name": "Fat"}
    _, heatmap = run(
        attention_map(slide, convolutional, grid, np.array([[3, 3]]), **how)
    )
    tile = grid.read(slide, 3, 3)
    expected = convolutional.grad_cam(tile[None], its_probe, "Fat")[0]
    np.testing.assert_allclose(heatmap.values[6:8, 6:8], expected, rtol=1e-4)
    look = Look(class_name="Duct")
    _, near = run(
        look_closely(slide, convolutional, grid, (3, 3), probe=its_probe, look=look)
    )
    expected = convolutional.grad_cam(tile[None], its_probe, "Duct")[0]
    np.testing.assert_allclose(near.attention, expected, rtol=1e-4)


def test_grad_cam_is_refused_where_it_says_nothing(
    convolutional, its_probe, encoder, probe, tiles
):
    with pytest.raises(ConfigError, match="this model has attention"):
        encoder.grad_cam(tiles, probe, "Duct")
    large = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(ConfigError, match="Choose one of Duct, Fat"):
        convolutional.grad_cam(large, its_probe, "Bone")
    with pytest.raises(CheckpointError, match="own encoder"):
        convolutional.grad_cam(large, probe, "Duct")
