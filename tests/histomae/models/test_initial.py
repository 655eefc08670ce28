from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from histomae.errors import CheckpointError, DownloadError
from histomae.models.checkpoint import (
    CheckpointHeader,
    load_checkpoint,
    save_checkpoint,
)
from histomae.models.cnn import CnnSpec
from histomae.models.encoders import build
from histomae.models.initial import (
    InitialWeights,
    _greyed,
    _Weights,
    init_encoder,
    load_weights_file,
)
from histomae.models.vit import EncoderSpec, build_encoder, encoder_spec


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def encoder(spec):
    return build_encoder(spec, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def tensors(model):
    """Weights to start from, those of another encoder."""
    return weights_of(model.encoder)


def test_random_keeps_what_the_encoder_has(encoder):
    before = weights_of(encoder)

    assert init_encoder(encoder, "random") == InitialWeights("random")

    assert_equal(weights_of(encoder), before)


def test_our_checkpoint(encoder, tensors, checkpoint_path):
    started = init_encoder(encoder, str(checkpoint_path))

    assert_equal(weights_of(encoder), tensors)
    header = load_checkpoint(checkpoint_path).header
    assert (started.mean, started.std) == (header.mean, header.std)
    assert started.notes == ()
    assert not encoder.pos_embed.requires_grad


def test_a_foreign_safetensors_file(encoder, tensors, tmp_path):
    save_file(tensors, tmp_path / "foreign.safetensors")

    started = init_encoder(encoder, str(tmp_path / "foreign.safetensors"))

    assert_equal(weights_of(encoder), tensors)
    assert started.mean is None


def renamed(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"model": t, "epoch": 3, "optimizer": {"state": {}}},
        lambda t: {"state_dict": renamed(t, "module.")},
        lambda t: {"model": {"state_dict": renamed(t, "encoder.")}},
        lambda t: renamed(t, "_orig_mod.module.backbone."),
        lambda t: renamed(t, "module.model.encoder."),
        lambda t: {
            **t,
            "mask_token": torch.zeros(1),
            "decoder_embed.weight": torch.zeros(2, 2),
            "decoder.head.weight": torch.zeros(2, 2),
            "head.weight": torch.zeros(2, 2),
            "fc_norm.bias": torch.zeros(2),
        },
        lambda t: {k: v.double() for k, v in t.items()},
    ],
)
@pytest.mark.parametrize("new_format", [True, False])
def test_pytorch_files_of_many_makes(encoder, tensors, tmp_path, wrap, new_format):
    path = tmp_path / "weights.pth"
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=new_format)

    init_encoder(encoder, str(path))

    assert_equal(weights_of(encoder), tensors)


def test_half_precision_is_widened(encoder, tensors, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    torch.save(half, tmp_path / "half.pt")

    init_encoder(encoder, str(tmp_path / "half.pt"))

    assert_equal(weights_of(encoder), {k: v.float() for k, v in half.items()})


def test_positions_of_another_grid_are_resampled(tensors, tmp_path):
    larger = build_encoder(EncoderSpec(56, 8, embed_dim=24, depth=2, num_heads=3))
    torch.save(tensors, tmp_path / "small.pth")

    started = init_encoder(larger, str(tmp_path / "small.pth"))

    assert started.notes == ("Positions were resampled from 4 x 4 patches to 7 x 7.",)
    expected = resample_abs_pos_embed(tensors["pos_embed"], [7, 7])
    assert torch.equal(larger.pos_embed, expected)
    assert torch.equal(larger.pos_embed[:, 0], tensors["pos_embed"][:, 0])
    assert torch.equal(larger.cls_token, tensors["cls_token"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.bias"), r"missing: norm\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda t: t.update({"patch_embed.proj.weight": torch.zeros(24, 3, 16, 16)}),
            r"patch_embed\.proj\.weight is 24 x 3 x 16 x 16 and not 24 x 3 x 8 x 8",
        ),
        (
            lambda t: t.update(pos_embed=torch.zeros(1, 16, 24)),
            "pos_embed is 1 x 16 x 24",
        ),
        (lambda t: t.update(pos_embed=torch.zeros(17, 24)), "pos_embed is 17 x 24"),
        (
            lambda t: t.update(pos_embed=torch.zeros(1, 10, 12)),
            "pos_embed is 1 x 17 x 12",
        ),
        (lambda t: t.pop("pos_embed"), "missing: pos_embed"),
        (
            lambda t: t.update(cls_token=torch.zeros(1, 1, 24, dtype=torch.int32)),
            r"cls_token is torch\.int32",
        ),
        (
            lambda t: t["norm.bias"].fill_(torch.nan),
            r"in norm\.bias that are not finite",
        ),
        (
            lambda t: t.update({"module.norm.bias": torch.zeros(24)}),
            r"two weights for norm",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(
    encoder, tensors, tmp_path, change, message
):
    before = weights_of(encoder)
    change(tensors)
    save_file(tensors, tmp_path / "odd.safetensors")

    with pytest.raises(CheckpointError, match=message):
        init_encoder(encoder, str(tmp_path / "odd.safetensors"))

    assert_equal(weights_of(encoder), before)


def test_a_checkpoint_of_another_encoder_is_refused(checkpoint_path):
    wider = build_encoder(EncoderSpec(32, 8, embed_dim=48, depth=2, num_heads=3))

    with pytest.raises(CheckpointError, match=r"24 and not 48.*init_from random"):
        init_encoder(wider, str(checkpoint_path))


@pytest.mark.parametrize(
    "held", [[1, 2], torch.zeros(3), {"model": 3}, {1: torch.zeros(1)}]
)
def test_files_without_a_state_dict_are_refused(encoder, tmp_path, held):
    torch.save(held, tmp_path / "odd.pth")

    with pytest.raises(CheckpointError, match=r"odd\.pth|missing: blocks"):
        init_encoder(encoder, str(tmp_path / "odd.pth"))


def test_a_missing_file_is_one_sentence(encoder, tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth cannot be read"):
        init_encoder(encoder, str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights_file(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, and refused
def test_hostile_files_start_nothing(encoder, hostile_file):
    before = weights_of(encoder)

    with pytest.raises(CheckpointError):
        init_encoder(encoder, str(hostile_file))

    assert_equal(weights_of(encoder), before)


def test_pytorch_files_cut_short_are_refused(encoder, tensors, tmp_path):
    path = tmp_path / "weights.pth"
    for new_format in (True, False):
        torch.save(tensors, path, _use_new_zipfile_serialization=new_format)
        whole = path.read_bytes()
        for cut in range(0, len(whole), 4001):
            path.write_bytes(whole[:cut])
            with pytest.raises(CheckpointError):
                load_weights_file(path)


# timm; the fetching itself is stood in for


@pytest.fixture
def micro():
    """An encoder of which timm has pretrained ones of the same shape."""
    return build_encoder(encoder_spec("vit_tiny", tile_px=96, patch_size=16))


def test_timm_weights(micro, monkeypatch):
    create = timm.create_model
    made = []

    def without_network(name, *, pretrained, **settings):
        model = create(name, pretrained=False, **settings)
        if pretrained:
            made.append(model)
        return model

    monkeypatch.setattr(timm, "create_model", without_network)
    state = torch.get_rng_state()

    started = init_encoder(micro, "timm:vit_tiny_patch16_224")

    assert torch.equal(torch.get_rng_state(), state)
    assert started.notes == ("Positions were resampled from 14 x 14 patches to 6 x 6.",)
    assert started.mean == made[0].pretrained_cfg["mean"]
    assert started.std == made[0].pretrained_cfg["std"]
    assert torch.equal(micro.blocks[3].mlp.fc1.weight, made[0].blocks[3].mlp.fc1.weight)


def test_timm_models_that_do_not_fit_are_never_fetched(micro, monkeypatch):
    create = timm.create_model

    def no_network(name, *, pretrained, **settings):
        assert not pretrained
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(CheckpointError, match="384 and not 192"):
        init_encoder(micro, "timm:vit_small_patch16_224")


@pytest.mark.parametrize("name", ["resnet50", "vit_tiny_patch17", "hf-hub:a/b", ""])
def test_unknown_timm_names_are_refused(micro, name):
    with pytest.raises(CheckpointError, match="no pretrained vision transformer named"):
        init_encoder(micro, f"timm:{name}")


def test_without_network_the_cure_is_named(micro, monkeypatch):
    create = timm.create_model

    def offline(name, *, pretrained, **settings):
        if pretrained:
            raise OSError("no route to host")
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(DownloadError, match="name a file of weights instead"):
        init_encoder(micro, "timm:vit_tiny_patch16_224")


def test_weights_of_colour_answer_a_grey_picture_as_before(tmp_path):
    """Exactly as in three equal channels, each normalised by its own mean and std."""
    mean, std = torch.tensor((0.7, 0.5, 0.65)), torch.tensor((0.2, 0.25, 0.18))
    shape = {"tile_px": 16, "patch_size": 8}
    colour = build_encoder(EncoderSpec(**shape, embed_dim=8, depth=1, num_heads=2))
    with torch.no_grad():
        colour.patch_embed.proj.bias.normal_()
    header = CheckpointHeader(
        architecture="a",
        encoder=EncoderSpec(**shape, embed_dim=8, depth=1, num_heads=2),
        decoder=None,
        method="mae",
        mask_ratio=0.75,
        norm_pix=True,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        tile_px=16,
        mpp=None,
        mpp_given=False,
        step=1,
        config_hash="0",
    )
    save_checkpoint(tmp_path / "colour.safetensors", header, colour.state_dict())
    spec = EncoderSpec(**shape, embed_dim=8, depth=1, num_heads=2, in_chans=1)
    grey = build_encoder(spec)

    started = init_encoder(grey, str(tmp_path / "colour.safetensors"))

    assert "summed up" in started.notes[0]
    picture = torch.rand(3, 1, 16, 16)
    in_colour = (picture.expand(-1, 3, -1, -1) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    in_grey = (picture - started.mean[0]) / started.std[0]
    torch.testing.assert_close(
        grey.forward_features(in_grey), colour.forward_features(in_colour)
    )


def test_convolutions_of_colour_are_summed_too():
    bare = build(CnnSpec("efficientnet_b2", 64))
    grey = build(CnnSpec("efficientnet_b2", 64, in_chans=1))
    weights, notes = _greyed(grey, _Weights(bare.state_dict(), (0.5,) * 3, (0.2,) * 3))
    assert len(notes) == 1
    grey.load_state_dict(weights.tensors)
    picture = torch.rand(2, 1, 64, 64)
    bare.eval(), grey.eval()
    torch.testing.assert_close(
        grey.forward_features(picture),
        bare.forward_features(picture.expand(-1, 3, -1, -1)),
        rtol=1e-4,
        atol=1e-4,
    )
