from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import histomae
from histomae.errors import CheckpointError
from histomae.models.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    autoencoder_from,
    checkpoint_tensors,
    encoder_from,
    encoder_id,
    encoder_tensors,
    load_checkpoint,
    load_tensors,
    read_header,
    save_checkpoint,
)
from histomae.models.mae import MaskedAutoencoder
from histomae.models.vit import build_encoder, encode_visible, encoder_spec


def test_what_is_saved_is_loaded(checkpoint_path, model, header):
    found = load_checkpoint(checkpoint_path)

    assert found.header == header
    assert read_header(checkpoint_path) == header
    expected = checkpoint_tensors(model)
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found.tensors[name], tensor), name


def test_the_header_says_who_wrote_it(header):
    assert header.versions == {
        "histomae": histomae.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def test_names_are_timms_and_the_decoders(model):
    names = set(checkpoint_tensors(model))

    assert {"cls_token", "blocks.1.attn.qkv.weight", "norm.bias"} <= names
    assert {"decoder.mask_token", "decoder.blocks.0.mlp.fc1.bias"} <= names
    assert not any(name.startswith("encoder.") for name in names)


def test_models_come_back(checkpoint_path, model):
    images = torch.randn(2, 3, 32, 32)
    noise = torch.rand(2, 16)
    found = load_checkpoint(checkpoint_path)

    autoencoder, encoder = autoencoder_from(found), encoder_from(found)

    assert not autoencoder.training
    assert not encoder.training
    assert not encoder.pos_embed.requires_grad
    expected = model(images, mask_ratio=0.75, noise=noise)
    got = autoencoder(images, mask_ratio=0.75, noise=noise)
    assert torch.equal(got.prediction, expected.prediction)
    assert torch.equal(
        encode_visible(encoder, images), encode_visible(model.encoder, images)
    )


def test_a_model_that_learns_on_leaves_the_checkpoint_alone(checkpoint_path):
    found = load_checkpoint(checkpoint_path)
    before = found.tensors["norm.bias"].clone()

    with torch.no_grad():
        encoder_from(found).norm.bias += 1

    assert torch.equal(found.tensors["norm.bias"], before)


def test_norm_pix_comes_back(tmp_path, model, header):
    save_checkpoint(
        tmp_path / "plain", replace(header, norm_pix=False), checkpoint_tensors(model)
    )

    assert not autoencoder_from(load_checkpoint(tmp_path / "plain")).norm_pix


def test_an_encoder_alone(tmp_path, checkpoint_path, model):
    whole = load_checkpoint(checkpoint_path)
    alone = whole.encoder_only()
    save_checkpoint(tmp_path / "encoder.safetensors", alone.header, alone.tensors)

    found = load_checkpoint(tmp_path / "encoder.safetensors")

    assert found.header.decoder is None
    assert found.tensors.keys() == model.encoder.state_dict().keys()
    assert found.encoder_id == whole.encoder_id
    with pytest.raises(CheckpointError, match=r"Choose checkpoints/last\.safetensors"):
        autoencoder_from(found)


def test_timm_loads_our_encoder(tmp_path, header):
    spec = encoder_spec("vit_small", tile_px=224, patch_size=16)
    encoder = build_encoder(spec, generator=torch.Generator().manual_seed(0)).eval()
    own = replace(
        header,
        architecture="vit_small_patch16_224",
        encoder=spec,
        decoder=None,
        tile_px=224,
    )
    path = tmp_path / "encoder.safetensors"
    save_checkpoint(path, own, encoder.state_dict())

    timms = timm.create_model(
        own.architecture, num_classes=0, checkpoint_path=str(path)
    ).eval()

    for name, tensor in encoder.state_dict().items():
        assert torch.equal(timms.state_dict()[name], tensor), name
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features = timms.forward_features(images)
        # sums of 384 and 1536 float32 products in another order
        torch.testing.assert_close(
            encode_visible(encoder, images), features, rtol=0, atol=2e-5
        )


def test_optimizer_state_travels_along(tmp_path, model, header):
    state = {
        "optimizer.0.exp_avg": torch.rand(3, 24),
        "optimizer.0.step": torch.tensor(7.0),
        "optimizer.rng": torch.arange(5000, dtype=torch.uint8),
    }
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, header, {**checkpoint_tensors(model), **state})

    found = load_checkpoint(path)

    for name, tensor in state.items():
        assert torch.equal(found.tensors[name], tensor)
    assert not any(k.startswith("optimizer") for k in encoder_tensors(found.tensors))
    autoencoder_from(found)


def test_load_tensors_fills_a_model(model, checkpoint_path):
    other = MaskedAutoencoder(
        model.encoder_spec, decoder_dim=16, decoder_depth=1, decoder_heads=2
    )
    assert not torch.equal(other.decoder.mask_token, model.decoder.mask_token)

    load_tensors(other, load_checkpoint(checkpoint_path).tensors)

    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_load_tensors_names_what_does_not_fit(model, checkpoint_path):
    other = MaskedAutoencoder(
        model.encoder_spec, decoder_dim=24, decoder_depth=1, decoder_heads=2
    )
    before = {k: v.clone() for k, v in other.state_dict().items()}

    with pytest.raises(
        CheckpointError, match=r"decoder\.blocks\.0\.attn\.proj\.bias is 16 and not 24"
    ):
        load_tensors(other, load_checkpoint(checkpoint_path).tensors)

    for name, value in before.items():
        assert torch.equal(other.state_dict()[name], value), name


# The id of an encoder


def test_the_encoders_id_is_of_its_weights_only(model, header):
    tensors = checkpoint_tensors(model)
    expected = encoder_id(tensors)

    assert len(expected) == 16
    assert encoder_id(model.encoder.state_dict()) == expected
    assert encoder_id(dict(reversed(tensors.items()))) == expected
    assert Checkpoint(header, tensors).encoder_id == expected
    changed = {k: v.clone() for k, v in tensors.items()}
    changed["decoder.mask_token"] += 1
    assert encoder_id(changed) == expected
    changed["norm.bias"][0] += 1e-6
    assert encoder_id(changed) != expected
    assert (
        encoder_id({**tensors, "cls_token": tensors["cls_token"].flatten()}) != expected
    )


# Headers


def test_headers_are_plain_json(header):
    values = json.loads(header.to_json())

    assert values["format"] == 1
    assert values["encoder"]["patch_size"] == 8
    assert values["mean"] == [0.485, 0.456, 0.406]
    assert CheckpointHeader.from_json(header.to_json()) == header
    alone = replace(header, decoder=None)
    assert CheckpointHeader.from_json(alone.to_json()) == alone


def test_older_files_lack_what_came_later(header):
    values = json.loads(header.to_json())
    del values["scan_sector"]
    assert CheckpointHeader.from_json(json.dumps(values)) == header


@pytest.mark.parametrize(
    "name", [f.name for f in fields(CheckpointHeader) if f.name != "scan_sector"]
)
def test_every_field_is_needed(header, name):
    values = json.loads(header.to_json())
    del values[name]

    with pytest.raises(CheckpointError, match=f"no field '{name}'"):
        CheckpointHeader.from_json(json.dumps(values))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=6,
)
GOOD_HEADER = {
    "format": 1,
    "architecture": "a",
    "encoder": {
        "tile_px": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "in_chans": 3,
    },
    "decoder": {"dim": 16, "depth": 1, "heads": 2},
    "method": "mae",
    "mask_ratio": 0.75,
    "norm_pix": True,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "tile_px": 32,
    "mpp": 0.5,
    "mpp_given": False,
    "step": 3,
    "config_hash": "",
    "versions": {},
}
PLACES = [(name,) for name in GOOD_HEADER] + [
    (name, part) for name in ("encoder", "decoder") for part in GOOD_HEADER[name]
]


@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_header_is_read_back_the_same_or_refused(place, value):
    values = json.loads(json.dumps(GOOD_HEADER))
    inside = values if len(place) == 1 else values[place[0]]
    inside[place[-1]] = value

    try:
        header = CheckpointHeader.from_json(json.dumps(values))
    except CheckpointError as error:
        assert str(error).endswith(".")
    else:
        assert CheckpointHeader.from_json(header.to_json()) == header


# Files from strangers, and damaged ones


def test_hostile_files_are_refused(hostile_file):
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(hostile_file)
    seconds = time.process_time() - start

    message = str(caught.value)
    assert message.startswith("stranger.safetensors")
    assert message.endswith(".")
    assert len(message) < 1000
    assert seconds < 2
    if "NaN among" not in message and "not finite" not in message:
        with pytest.raises(CheckpointError):
            read_header(hostile_file)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors cannot be read"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_file_cut_short_anywhere_is_refused(checkpoint_path):
    whole = checkpoint_path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    cuts = {*range(0, 12), *range(12, length, 97), length - 1, length, length + 1}
    cuts |= {*range(length, len(whole), 2003), len(whole) - 1}

    for cut in sorted(cuts):
        checkpoint_path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            load_checkpoint(checkpoint_path)


def test_a_header_with_any_byte_changed_is_refused_or_read(checkpoint_path, header):
    whole = checkpoint_path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    generator = torch.Generator().manual_seed(0)

    for place in range(0, length, 41):
        damaged = bytearray(whole)
        damaged[place] ^= int(torch.randint(1, 256, (), generator=generator))
        checkpoint_path.write_bytes(damaged)
        try:
            found = load_checkpoint(checkpoint_path)
        except CheckpointError:
            continue
        # what is left are harmless words and numbers of the header
        assert found.header.encoder == header.encoder


def test_a_save_that_is_killed_leaves_the_old_file(checkpoint_path, header):
    before = checkpoint_path.read_bytes()
    script = f"""
import os
from pathlib import Path
from histomae.models import tensor_files

class Half:
    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data)
        if self.file.tell() > {len(before) // 2}:
            self.file.flush()
            os._exit(9)

opened = Path.open
file = tensor_files.open_tensor_file({str(checkpoint_path)!r})
tensors = file.read()
Path.open = lambda path, mode: Half(opened(path, mode))
tensors["norm.bias"] += 1
tensor_files.write_tensor_file(file.path, tensors, metadata=file.metadata)
"""
    training = str(Path(histomae.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        env={**os.environ, "PYTHONPATH": training},
    )

    assert done.returncode == 9
    assert list(checkpoint_path.parent.glob(".*.tmp"))
    assert checkpoint_path.read_bytes() == before
    load_checkpoint(checkpoint_path)


def test_a_save_that_fails_leaves_nothing(tmp_path, model, header, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 1000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "new", header, checkpoint_tensors(model))

    assert list(tmp_path.iterdir()) == []


def test_nothing_is_saved_that_could_not_be_loaded(tmp_path, model, header):
    tensors = checkpoint_tensors(model)
    cases = {
        r"missing: norm\.bias": {k: v for k, v in tensors.items() if k != "norm.bias"},
        "unexpected: head": {**tensors, "head": torch.zeros(1)},
        "cls_token is 24 and not 1 x 1 x 24": {
            **tensors,
            "cls_token": tensors["cls_token"].flatten(),
        },
        "cls_token is torch.float16 and not torch.float32": {
            **tensors,
            "cls_token": tensors["cls_token"].half(),
        },
    }

    for message, wrong in cases.items():
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(tmp_path / "new", header, wrong)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_others_are_told_apart(tmp_path, model):
    save_file(model.encoder.state_dict(), tmp_path / "foreign.safetensors")

    with pytest.raises(CheckpointError, match="can only start a training"):
        load_checkpoint(tmp_path / "foreign.safetensors")


def test_pickles_are_told_apart(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "weights.pth")

    with pytest.raises(CheckpointError, match="pickled PyTorch file"):
        load_checkpoint(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_px": 64}, "tile_px is 64 and must be 32"),
        ({"mask_ratio": 1.5}, "mask_ratio is 1.5"),
        ({"mpp": 0.0}, "mpp is 0.0"),
        ({"std": (0.1, 0.1)}, "std is"),
        ({"mean": ()}, "mean is"),
        ({"step": -1}, "step is -1"),
    ],
)
def test_impossible_headers_cannot_be_made(header, changes, message):
    with pytest.raises(CheckpointError, match=message):
        replace(header, **changes)
