"""A segmenter explains itself, comes back as it was, and is taken for nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from histomae.errors import CheckpointError
from histomae.infer.dense import DenseReader
from histomae.models.checkpoint import (
    CheckpointHeader,
    Kept,
    checkpoint_tensors,
    encoder_from,
    load_checkpoint,
    save_checkpoint,
)
from histomae.models.dense import DenseModel
from histomae.models.probe import Probe
from histomae.models.segmenter import (
    SegmenterHeader,
    load_segmenter,
    model_from,
    network_of,
    read_segmenter_header,
    segmenter_id,
)
from histomae.models.slide_checkpoint import load_slide_checkpoint
from histomae.models.vit import EncoderSpec, build_encoder

SIDE = 32
SPEC = EncoderSpec(SIDE, 8, embed_dim=16, depth=2, num_heads=2)
HEADER = CheckpointHeader(
    method="mae",
    mask_ratio=0.75,
    step=7,
    config_hash="0123abcd",
    architecture="vit_test",
    encoder=SPEC,
    decoder=None,
    norm_pix=True,
    mean=(0.8, 0.6, 0.6),
    std=(0.2, 0.3, 0.3),
    tile_px=SIDE,
    mpp=1.0,
    mpp_given=False,
)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def encoder():
    """A small encoder, as a checkpoint."""
    return Kept(HEADER, build_encoder(SPEC, generator=drawn(0)).state_dict())


@pytest.fixture(scope="module")
def segmenter(encoder):
    network = network_of(encoder_from(encoder), encoder.header)
    model = DenseModel(network, 2, width=8, generator=drawn(1))
    header = SegmenterHeader(
        encoder=encoder.header,
        began_with=encoder.encoder_id,
        frozen=True,
        width=8,
        class_names=("nucleus", "mitosis"),
        class_colors=((0, 114, 178), (213, 94, 0)),
        areas=False,
        taught_by="slides",
        step=40,
        scores={"lines": ["Dice 0.80"]},
    )
    return Kept(header, checkpoint_tensors(model))


@pytest.fixture
def path(segmenter, tmp_path):
    found = tmp_path / "nuclei.segmenter"
    save_checkpoint(found, segmenter.header, segmenter.tensors)
    return found


def test_it_comes_back_as_it_was(segmenter, encoder, path):
    again = load_segmenter(path)
    assert again.header == segmenter.header == read_segmenter_header(path)
    assert again.header.mpp == 1.0 and again.header.tile_px == SIDE
    assert again.encoder_id == encoder.encoder_id
    assert segmenter_id(again) == segmenter_id(segmenter)
    pixels = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    said = [DenseReader.of(x, device="cpu").say(pixels) for x in (segmenter, again)]
    assert np.array_equal(said[0][0], said[1][0])
    assert np.array_equal(said[0][1], said[1][1])
    assert said[0][0].sum(-1) == pytest.approx(np.ones((1, SIDE, SIDE)), abs=1e-5)


def test_its_id_is_of_the_decoder_too(segmenter):
    changed = {name: one.clone() for name, one in segmenter.tensors.items()}
    changed["decoder.head.bias"] += 1
    assert segmenter_id(Kept(segmenter.header, changed)) != segmenter_id(segmenter)


def test_it_is_refused_where_something_else_is_wanted(path):
    for load in (load_checkpoint, load_slide_checkpoint, Probe.load):
        with pytest.raises(CheckpointError, match=r"nuclei\.segmenter is a segmenter"):
            load(path)
    with pytest.raises(CheckpointError, match="'histomae segment'"):
        load_checkpoint(path)


def test_other_files_are_refused(encoder, tmp_path):
    other = tmp_path / "encoder.safetensors"
    save_checkpoint(other, encoder.header, encoder.tensors)
    with pytest.raises(CheckpointError, match="is an encoder of tiles, not a segmen"):
        load_segmenter(other)
    other.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CheckpointError, match="is an archive or a pickled"):
        load_segmenter(other)


def test_tensors_that_do_not_fit_are_refused(segmenter, tmp_path):
    odd = dict(segmenter.tensors)
    del odd["decoder.head.bias"]
    with pytest.raises(CheckpointError, match=r"missing: decoder\.head\.bias"):
        save_checkpoint(tmp_path / "odd.segmenter", segmenter.header, odd)
    header = replace(segmenter.header, class_names=("a",), class_colors=((1, 2, 3),))
    with pytest.raises(CheckpointError, match=r"decoder\.head"):
        save_checkpoint(tmp_path / "odd.segmenter", header, segmenter.tensors)
    broken = {name: one.clone() for name, one in segmenter.tensors.items()}
    broken["decoder.head.bias"][0] = float("nan")
    save_checkpoint(tmp_path / "odd.segmenter", segmenter.header, broken)
    with pytest.raises(CheckpointError, match="not finite"):
        load_segmenter(tmp_path / "odd.segmenter")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_names", ("a", "a")),
        ("class_names", ()),
        ("class_colors", ((0, 0, 0), (0, 0, 999))),
        ("class_colors", ((0, 0, 0),)),
        ("width", 10**6),
        ("step", -1),
    ],
)
def test_a_header_that_cannot_be_is_refused(segmenter, name, value):
    with pytest.raises(CheckpointError, match=name):
        replace(segmenter.header, **{name: value})


def test_a_header_with_a_strange_field_is_refused(segmenter):
    text = segmenter.header.to_json()
    for wrong in (
        text.replace('"frozen": true', '"frozen": 1'),
        text.replace('"frozen"', '"frosted"'),
        text.replace('"embed_dim": 16', '"embed_dim": 16000000'),
    ):
        assert wrong != text
        with pytest.raises((CheckpointError, ValueError)):
            SegmenterHeader.from_json(wrong)


def test_the_model_is_ready_to_be_asked(segmenter):
    model = model_from(segmenter)
    assert not model.training and not model.encoder.training
