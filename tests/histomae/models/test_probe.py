from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from histomae.errors import CheckpointError
from histomae.models.checkpoint import load_checkpoint
from histomae.models.probe import HEADER_READERS, Probe


@pytest.fixture
def probe():
    rng = np.random.default_rng(0)
    return Probe(
        mean=rng.normal(size=5),
        std=rng.uniform(0.5, 2, size=5),
        weight=rng.normal(size=(3, 5)),
        bias=rng.normal(size=3),
        class_names=("Benign", "In situ", "Invasive · µ"),
        class_colors=((0, 128, 0), (255, 165, 0), (200, 30, 30)),
        encoder_id="aaaa1111bbbb2222",
        tile_px=224,
        mpp=0.69,
        pooling="class_token",
        temperature=1.7,
        scores={"balanced_accuracy": 0.91, "folds": [0.9, 0.92], "note": None},
    )


@pytest.fixture
def embeddings():
    return np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)


def test_probabilities_equal_plain_loops(probe, embeddings):
    result = probe.probabilities(embeddings)

    assert result.shape == (7, 3)
    assert result.dtype == np.float32
    for m in range(7):
        logits = []
        for k in range(3):
            total = float(probe.bias[k])
            for d in range(5):
                standard = (embeddings[m, d] - probe.mean[d]) / probe.std[d]
                total += float(probe.weight[k, d]) * float(standard)
            logits.append(math.exp(total / 1.7))
        np.testing.assert_allclose(result[m], np.array(logits) / sum(logits), atol=1e-6)


def test_rows_sum_to_one_however_sure(probe, embeddings):
    sums = probe.probabilities(embeddings * 1e4).sum(axis=1)

    np.testing.assert_allclose(sums, 1, rtol=0, atol=1e-6)


def test_no_tiles_have_no_probabilities(probe):
    assert probe.probabilities(np.zeros((0, 5))).shape == (0, 3)


def test_a_temperature_changes_no_decision(probe, embeddings):
    cool = replace(probe, temperature=0.1)

    hot, cold = probe.probabilities(embeddings), cool.probabilities(embeddings)

    assert (hot.argmax(axis=1) == cold.argmax(axis=1)).all()
    assert (cold.max(axis=1) > hot.max(axis=1)).all()


def test_the_wrong_encoder_is_refused_by_name(probe, embeddings):
    probe.probabilities(embeddings, encoder_id="aaaa1111bbbb2222")
    with pytest.raises(CheckpointError, match=r"aaaa1111bbbb2222.*cccc3333"):
        probe.probabilities(embeddings, encoder_id="cccc3333")
    with pytest.raises(CheckpointError, match=r"cccc3333 \(embeddings of 4\)"):
        probe.probabilities(embeddings[:, :4], encoder_id="cccc3333")
    with pytest.raises(
        CheckpointError, match=r"aaaa1111.*unknown id \(embeddings of 4\)"
    ):
        probe.probabilities(embeddings[:, :4])


def test_what_is_saved_is_loaded(probe, embeddings, tmp_path):
    path = tmp_path / "probe.safetensors"
    probe.save(path)

    found = Probe.load(path)

    for name in ("mean", "std", "weight", "bias"):
        assert getattr(found, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(found, name), getattr(probe, name))
    for name in HEADER_READERS:
        assert getattr(found, name) == getattr(probe, name), name
    assert found.probe_id == probe.probe_id
    np.testing.assert_array_equal(
        found.probabilities(embeddings), probe.probabilities(embeddings)
    )


def test_the_id_is_of_what_it_computes(probe):
    assert len(probe.probe_id) == 16
    assert replace(probe, scores={}).probe_id == probe.probe_id
    assert replace(probe, bias=probe.bias + 1).probe_id != probe.probe_id
    assert replace(probe, encoder_id="other").probe_id != probe.probe_id
    assert replace(probe, temperature=1.0).probe_id != probe.probe_id


def test_arrays_are_copies_and_cannot_be_written(probe):
    mean = np.zeros(5, np.float32)
    other = replace(probe, mean=mean)
    mean[0] = 7

    assert other.mean[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        other.mean[0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": np.zeros(5)}, "std that is not above 0"),
        ({"std": np.ones(4)}, r"std of shape \(4,\), not \(5,\)"),
        ({"weight": np.zeros((2, 5))}, r"weight of shape \(2, 5\), not \(3, 5\)"),
        ({"bias": [0, 0, np.inf]}, "bias that are not finite"),
        ({"mean": np.zeros((1, 5))}, "has mean of shape"),
        ({"class_names": ("a", "b", "a")}, "two or more different"),
        ({"class_colors": ((0, 0, 0),)}, "not one per class"),
        ({"class_colors": ((0, 0, 256),) * 3}, "not one per class"),
        ({"class_colors": ((0, 0),) * 3}, "not one per class"),
        ({"pooling": "max"}, "pooling 'max'"),
        ({"temperature": 0.0}, "not above 0"),
        ({"mpp": -1.0}, "not above 0"),
    ],
)
def test_impossible_probes_cannot_be_made(probe, changes, message):
    with pytest.raises(CheckpointError, match=message):
        replace(probe, **changes)


def test_scores_must_be_json(probe, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        replace(probe, scores={"accuracy": math.nan}).save(tmp_path / "probe")
    assert list(tmp_path.iterdir()) == []


# Files from strangers


def test_hostile_files_are_refused(hostile_file):
    with pytest.raises(CheckpointError) as caught:
        Probe.load(hostile_file)

    assert str(caught.value).startswith("stranger.safetensors")


def test_a_checkpoint_is_no_probe(checkpoint_path):
    with pytest.raises(CheckpointError, match="is an encoder of tiles, not a probe"):
        Probe.load(checkpoint_path)


def test_a_probe_is_no_checkpoint(probe, tmp_path):
    probe.save(tmp_path / "probe.safetensors")

    with pytest.raises(CheckpointError, match="is a probe, not an encoder"):
        load_checkpoint(tmp_path / "probe.safetensors")


def test_a_probe_cut_short_anywhere_is_refused(probe, tmp_path):
    path = tmp_path / "probe.safetensors"
    probe.save(path)
    whole = path.read_bytes()

    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            Probe.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", 9, "format 9"),
        ("class_names", ["a", "b"], "of 2 classes"),
        ("class_names", ["a", "b", 3], "class_names: 3 is no text"),
        ("class_colors", [[0, 0, 0.5]] * 3, "class_colors: 0.5 is no whole number"),
        ("class_colors", [[0, 0, 999]] * 3, "not one per class"),
        ("temperature", -1, "not above 0"),
        ("temperature", "1", "temperature: 1 is no number"),
        ("pooling", "max", "pooling 'max'"),
        ("scores", [], "scores"),
        ("more", 1, "unknown field 'more'"),
    ],
)
def test_lying_headers_are_refused(probe, tmp_path, name, value, message):
    path = tmp_path / "probe.safetensors"
    probe.save(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    own = json.loads(fields["__metadata__"]["histomae-probe"])
    own[name] = value
    fields["__metadata__"]["histomae-probe"] = json.dumps(own)
    text = json.dumps(fields).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    with pytest.raises(CheckpointError, match=rf"^probe\.safetensors.*{message}"):
        Probe.load(path)
