"""Pretraining PAMA by the one loop: inputs, whole runs, exact resume, other weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from histomae.config import METHOD_DEFAULTS, PretrainConfig
from histomae.data.bags import Bag
from histomae.errors import CheckpointError, NotEnoughDataError
from histomae.events import HeldOut, Note, Saved, Started, Step
from histomae.exchange.bags import read_bag
from histomae.infer.encoder import TileEncoder
from histomae.learn.bag_files import read_entries
from histomae.learn.bags import Bags
from histomae.learn.methods import METHODS, Batch, Setting
from histomae.learn.pretrain import run_in
from histomae.learn.runs import RunFolder
from histomae.models import pama
from histomae.models.bag_tensors import batch_bags, place_bag
from histomae.models.feature_spec import FeatureSpec
from histomae.models.slide_checkpoint import (
    load_slide_checkpoint,
    name_digits,
    pama_from,
)

PAMA = METHODS["pama"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch, one_thread):
    """Make ``pama_small`` 16 wide with one block."""
    monkeypatch.setitem(pama.SIZES, "pama_small", (16, 1, 2, 16, 1, 2))


@pytest.fixture(scope="module")
def folder(make_features, tmp_path_factory):
    """Twelve slides of 30 to 63 tiles that one could learn something from."""
    folder = tmp_path_factory.mktemp("features")
    for number in range(12):
        make_features(folder / f"s{number:02}.h5", tiles=30 + 3 * number, seed=number)
    return folder


@pytest.fixture
def begin(folder, tmp_path):
    """Return a function that makes a run folder with settings in it."""

    def make(name="run", **changes):
        run = RunFolder(tmp_path / name)
        settings = {
            **METHOD_DEFAULTS["pama"],
            "slides": (str(folder),),
            "method": "pama",
            "epochs": 4,
            "warmup_epochs": 1,
            "batch_size": 5,
            "micro_batch": 2,
            "held_out": 0.2,
            "tiles_per_anchor": 9,
            "most_tiles": 40,
            "base_lr": 0.3,
            "device": "cpu",
            "precision": "f32",
            "threads": 1,
            "preview_every": 4,
            "save_every": 3,
        }
        run.create(PretrainConfig(**{**settings, **changes}))
        return run

    return make


def losses(run):
    return [(e.step, e.loss, e.lr) for e in run.events() if isinstance(e, Step)]


def stop_after(run, step):
    for event in run_in(run):
        if isinstance(event, Step) and event.step == step:
            run.request("stop")


def same_tensors(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


# ---- what the loop is given


SPEC = FeatureSpec(encoder="drawn", width=6)
CONFIG = PretrainConfig(
    method="pama", tiles_per_anchor=9, most_tiles=40, feature_dim=6, seed=3
)


@pytest.fixture(scope="module")
def bags(folder):
    return [read_bag(path) for path in sorted(folder.iterdir())]


def inputs(bags, numbers, *, config=CONFIG, **kind):
    given = Bags(tuple(bags[number] for number in numbers))
    return PAMA.inputs(Batch(given, np.array(numbers), **kind), Setting(config))


def test_a_bag_looks_the_same_in_any_micro_batch(bags):
    whole = inputs(bags, [11, 2, 7], epoch=2)
    part = inputs(bags, [2], epoch=2)
    tiles, anchors = part["features"].shape[1], part["distances"].shape[1]
    assert (tiles, anchors) == (36, 5)
    for name in ("features", "noise", "real_tokens"):
        assert torch.equal(whole[name][1, :tiles], part[name][0])
    for name in ("distances", "directions"):
        assert torch.equal(whole[name][1, :anchors, :tiles], part[name][0])
    assert torch.equal(whole["anchor_noise"][1, :anchors], part["anchor_noise"][0])
    assert not whole["real_tokens"][1, tiles:].any()


def test_a_large_slide_shows_other_tiles_in_each_epoch(bags):
    first, second = (inputs(bags, [11], epoch=epoch)["features"] for epoch in (0, 1))
    assert first.shape == second.shape == (1, 40, 6)
    assert not torch.equal(first, second)
    known = {row.tobytes() for row in bags[11].features}
    for shown in (first, second):
        rows = {row.tobytes() for row in shown[0].numpy()}
        assert len(rows) == 40
        assert rows <= known


def test_masks_and_dropped_anchors_change_with_the_epoch_but_not_held_out(bags):
    one, other = (inputs(bags, [2], epoch=epoch) for epoch in (0, 1))
    for name in ("noise", "anchor_noise"):
        assert not torch.equal(one[name], other[name])
    held = [
        inputs(bags, [2], epoch=0, training=training)["noise"]
        for training in (False, False, True)
    ]
    assert torch.equal(held[0], held[1])
    assert not torch.equal(held[0], held[2])


def test_the_batchs_loss_is_the_mean_of_its_slides(bags):
    model = PAMA.build(CONFIG, torch.Generator().manual_seed(0)).train()
    setting = Setting(CONFIG)
    assert PAMA.splits_over_batch
    whole = PAMA.loss(model, inputs(bags, [11, 2, 7], epoch=1), setting).loss
    alone = [
        PAMA.loss(model, inputs(bags, [n], epoch=1), setting).loss for n in (11, 2, 7)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_settings_make_the_model():
    config = replace(CONFIG, slide_encoder="pama_base", compat=True)
    with torch.device("meta"):
        model = PAMA.build(config, None)
    assert model.spec == pama.pama_spec("pama_base", 6, tiles_per_anchor=9, compat=True)
    assert config.architecture == "pama_base"


# ---- whole runs


def test_a_run_leaves_everything_behind(begin, folder):
    run = begin()
    list(run_in(run))
    events = list(run.events())
    assert run.state == "done"
    (started,) = [event for event in events if isinstance(event, Started)]
    assert (started.crops, started.held_out_crops, started.what) == (10, 2, "slide")
    assert started.mpp == 0.5
    assert [e.step for e in events if isinstance(e, Step)] == list(range(1, 9))
    assert [e.step for e in events if isinstance(e, HeldOut)] == [0, 4, 8]
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        *("config.toml", "events.jsonl", "bags.csv", "checkpoints", "tensorboard")
    }
    config = run.config()
    assert (config.feature_dim, config.mpp) == (6, 0.5)
    entries = read_entries(run)
    assert [entry.slide for entry in entries] == sorted(
        path.stem for path in folder.iterdir()
    )
    header = load_slide_checkpoint(run.last).header
    assert (header.step, header.method, header.mask_ratio) == (8, "pama", 0.75)
    assert header.model == pama.PamaSpec(6, 16, 1, 2, 16, 1, 2, 9)
    assert header.features == read_bag(next(folder.iterdir())).spec
    trained = {entry.slide for entry in entries if not entry.held_out}
    assert [header.has_seen(e.slide) for e in entries] == [
        e.slide in trained for e in entries
    ]
    alone = load_slide_checkpoint(run.encoder)
    assert not alone.header.has_decoder
    assert alone.encoder_id == load_slide_checkpoint(run.last).encoder_id
    assert not any(name.startswith(("decoder", "optim")) for name in alone.tensors)


def test_it_learns(begin):
    run = begin(epochs=60, warmup_epochs=6, preview_every=1000)
    list(run_in(run))
    before, after = (e.loss for e in run.events() if isinstance(e, HeldOut))
    assert before > 0.95
    assert after < 0.75


def test_the_held_out_loss_is_that_of_the_saved_model(begin):
    run = begin(epochs=1, most_tiles=2048)
    list(run_in(run))
    told = [e.loss for e in run.events() if isinstance(e, HeldOut)][-1]
    model, total = pama_from(load_slide_checkpoint(run.last)), []
    for number, entry in enumerate(read_entries(run)):
        if not entry.held_out:
            continue
        bag = read_bag(entry.path)
        placed = place_bag(bag.features, bag.cells, model.spec.placing)
        noise = PAMA.inputs(
            Batch(Bags((bag,)), np.array([number]), 0, training=False),
            Setting(run.config()),
        )["noise"]
        with torch.inference_mode():
            found = model(batch_bags([placed]), mask_ratio=0.75, noise=noise)
        assert found.mask.sum() == round(0.75 * len(bag))
        total.append(found.loss.item())
    assert len(total) == 2
    assert told == pytest.approx(np.mean(total), rel=1e-5)


@pytest.mark.parametrize("compat", [False, True])
def test_tiles_are_scaled_but_in_the_published_form(compat, begin, make_features):
    run = begin(epochs=1, compat=compat)
    list(run_in(run))
    encoder = pama_from(load_slide_checkpoint(run.last)).encoder
    if compat:
        assert torch.equal(encoder.feature_mean, torch.zeros(6))
        assert torch.equal(encoder.feature_std, torch.ones(6))
        return
    bags = [read_bag(entry.path).features for entry in read_entries(run)]
    mean = np.mean([bag.mean(0) for bag in bags], 0)
    np.testing.assert_allclose(encoder.feature_mean, mean, atol=1e-6)
    assert ((encoder.feature_std > 0.3) & (encoder.feature_std < 1.2)).all()


def test_the_published_form_trains(begin):
    run = begin(compat=True)
    list(run_in(run))
    assert load_slide_checkpoint(run.last).header.model.compat
    assert len(losses(run)) == 8


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_stopped_and_resumed_is_the_uninterrupted_run_bit_for_bit(begin, stop):
    whole, broken = begin("whole"), begin("broken")
    list(run_in(whole))
    stop_after(broken, stop)
    assert load_slide_checkpoint(broken.last).header.step == stop
    broken.reopen()
    list(run_in(broken))
    assert losses(broken) == losses(whole)
    one, other = (load_slide_checkpoint(run.last) for run in (whole, broken))
    same_tensors(one, other)
    assert one.header == other.header
    told = [e for e in whole.events() if isinstance(e, HeldOut)]
    assert told == [e for e in broken.events() if isinstance(e, HeldOut)]


def test_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(begin):
    whole, killed = begin("whole"), begin("killed")
    list(run_in(whole))
    work = run_in(killed)
    for event in work:
        if isinstance(event, Step) and event.step == 5:
            break
    work.close()
    assert load_slide_checkpoint(killed.last).header.step == 3
    list(run_in(killed))
    assert losses(killed) == losses(whole)
    same_tensors(*(load_slide_checkpoint(run.last) for run in (whole, killed)))


def test_memory_and_micro_batches_change_no_number(begin):
    one, little, alone = (
        begin("one"),
        begin("little", cache_gb=0.0),
        begin("alone", micro_batch=5),
    )
    for run in (one, little, alone):
        list(run_in(run))
    assert losses(one) == losses(little)
    for mine, theirs in zip(losses(one), losses(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_what_is_left_open_is_decided_and_written(begin):
    run = begin(precision="auto", micro_batch=None)
    list(run_in(run))
    config = run.config()
    assert config.precision in ("f32", "bf16")
    assert config.micro_batch in (1, 2, 4, 5)


def test_half_precision_trains(begin):
    run = begin(precision="bf16")
    list(run_in(run))
    assert all(np.isfinite(loss) for _, loss, _ in losses(run))


def test_one_slide_is_enough(begin, folder):
    run = begin(slides=(str(folder / "s03.h5"),), epochs=3, warmup_epochs=0)
    list(run_in(run))
    (started,) = [e for e in run.events() if isinstance(e, Started)]
    assert (started.crops, started.held_out_crops) == (1, 0)
    assert len(losses(run)) == 3


@pytest.mark.parametrize(
    "cells",
    [np.stack([np.zeros(30, int), np.arange(30)], 1), np.array([[0, 0], [5, 7]])],
)
def test_a_row_and_a_pair_are_slides_too(cells, begin, make_features, tmp_path):
    path = make_features(tmp_path / "odd" / "odd.h5", cells)
    run = begin(slides=(str(path),), epochs=2)
    list(run_in(run))
    assert all(np.isfinite(loss) for _, loss, _ in losses(run))


# ---- starting from weights


def test_it_starts_from_another_run_and_remembers_its_slides(
    begin, make_features, tmp_path
):
    first = begin("first")
    list(run_in(first))
    path = make_features(tmp_path / "new" / "new.h5", seed=50)
    begun = {"slides": (str(path),), "init_from": str(first.encoder), "base_lr": 0.0}
    second = begin("second", **begun, epochs=2, weight_decay=0.0)
    stop_after(second, 1)
    second.reopen()
    list(run_in(second))
    before, after = (load_slide_checkpoint(run.last) for run in (first, second))
    assert before.encoder_id == after.encoder_id
    assert after.header.has_seen("new")
    assert set(before.header.seen) < set(after.header.seen)
    assert name_digits("new") not in before.header.seen


@pytest.mark.parametrize(
    ("changes", "features", "words"),
    [
        ({"tiles_per_anchor": 18}, {}, "tiles_per_anchor 9 and 18"),
        ({}, {"encoder_id": "fedc"}, "encoder drawn .0123.* and drawn .fedc"),
    ],
)
def test_weights_of_another_kind_are_refused(
    changes, features, words, begin, make_features, tmp_path
):
    first = begin("first", epochs=1)
    list(run_in(first))
    path = make_features(tmp_path / "new" / "new.h5", **features)
    second = begin("second", slides=(str(path),), init_from=str(first.last), **changes)
    with pytest.raises(CheckpointError, match=rf"does not fit: {words}"):
        list(run_in(second))


def test_an_encoder_of_tiles_is_none_of_slides_and_the_reverse(begin, quick, tmp_path):
    run = begin(epochs=1)
    list(run_in(run))
    with pytest.raises(CheckpointError, match="is an encoder of slides, not an encode"):
        TileEncoder.load(run.last)
    tiles = RunFolder(tmp_path / "tiles")
    tiles.create(quick(epochs=1, encoder="vit_micro"))
    list(run_in(tiles))
    second = begin("second", init_from=str(tiles.encoder))
    with pytest.raises(CheckpointError, match="of tiles, not an encoder of slides"):
        list(run_in(second))
    third = RunFolder(tmp_path / "third")
    third.create(quick(init_from=str(run.encoder)))
    with pytest.raises(CheckpointError):
        list(run_in(third))


def test_a_slide_that_is_too_small_is_told(begin, make_features, tmp_path):
    make_features(tmp_path / "two" / "a.h5", seed=1)
    make_features(tmp_path / "two" / "b.h5", tiles=1, seed=2)
    run = begin(slides=(str(tmp_path / "two"),), epochs=1)
    list(run_in(run))
    notes = [event.text for event in run.events() if isinstance(event, Note)]
    assert "b has a single tile and is left out." in notes


def test_every_save_is_readable(begin):
    run = begin(keep_every=2)
    for event in run_in(run):
        if isinstance(event, Saved):
            load_slide_checkpoint(run.path / event.path)
    assert run.kept(2).exists()


def test_a_bag_must_have_a_tile():
    with pytest.raises(NotEnoughDataError, match="has no tile"):
        Bag(
            slide="a",
            features=np.empty((0, 6), np.float32),
            cells=np.empty((0, 2), np.int64),
            spec=SPEC,
        )
