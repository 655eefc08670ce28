"""Sweeps: encoders pretrained one after the other, broken off, and gone on with."""

import itertools
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from histomae.config import PretrainConfig
from histomae.data.leaks import seen_by
from histomae.errors import ConfigError, HistomaeError, RunError
from histomae.evaluate import clock
from histomae.evaluate.sweeps import configs, pretrain_each, read_values, varied
from histomae.events import Note, Progress, Started, Step, result_of
from histomae.learn.runs import RunFolder
from histomae.models.checkpoint import load_checkpoint
from tests.listening import events_of

#: Of 12 pictures, in batches of 4.
STEPS = 2 * 3
VALUES = {"mask_ratio": (0.5, 0.75)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def base(pictures):
    return PretrainConfig(
        slides=(str(pictures),),
        encoder="vit_micro",
        tile_px=16,
        patch_size=4,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
        held_out=0.0,
        epochs=2,
        warmup_epochs=1,
        batch_size=4,
        device="cpu",
        threads=1,
        readers=0,
        preview_every=100,
        save_every=100,
    )


def weights(run):
    return load_checkpoint(RunFolder(run).last).tensors


def test_values_are_read_as_in_a_recipe():
    told = read_values(
        ["mask_ratio=0.5,0.75", "patch_size = 8, 16", "method=sd-mae", "norm_pix=true"]
    )
    assert told == {
        "mask_ratio": (0.5, 0.75),
        "patch_size": (8, 16),
        "method": ("sd-mae",),
        "norm_pix": (True,),
    }
    assert varied(told) == ("mask_ratio", "patch_size")
    found = configs(PretrainConfig(), told)
    assert list(found) == [
        "mask_ratio-0.5_patch_size-8",
        "mask_ratio-0.5_patch_size-16",
        "mask_ratio-0.75_patch_size-8",
        "mask_ratio-0.75_patch_size-16",
    ]
    one = found["mask_ratio-0.75_patch_size-8"]
    assert (one.mask_ratio, one.patch_size, one.method) == (0.75, 8, "sd-mae")
    assert read_values(["mask_ratio"]) == {"mask_ratio": ()}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"masks": (1,)}, "is no setting"),
        ({"mask_ratio": ()}, "Say mask_ratio=VALUE,VALUE"),
        ({"mask_ratio": (0.5, "much")}, "Give a number"),
        ({"patch_size": (4, 7)}, "does not divide"),
    ],
)
def test_a_wrong_value_ends_a_sweep_before_it_begins(values, words, base, tmp_path):
    with pytest.raises(ConfigError, match=words):
        next(pretrain_each(base, values, tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_encoder_is_pretrained_for_each_value_all_else_the_same(
    base, pictures, tmp_path
):
    said, runs = events_of(pretrain_each(base, VALUES, tmp_path))
    assert [run.relative_to(tmp_path).as_posix() for run in runs] == [
        *("pretrained/mask_ratio-0.5", "pretrained/mask_ratio-0.75"),
    ]
    told = [RunFolder(run).config() for run in runs]
    assert [one.mask_ratio for one in told] == [0.5, 0.75]
    assert told[0].changed({"mask_ratio": 0.75, "micro_batch": 1}) == told[1].changed(
        {"micro_batch": 1}
    )
    seen = [seen_by(RunFolder(run).crops_file, pictures) for run in runs]
    assert {p.name for p, _ in seen[0].files} == {p.name for p, _ in seen[1].files}
    moved = [event for event in said if isinstance(event, Progress)]
    each = [
        e for e in moved if e.what.startswith("pretraining 2 of 2, mask_ratio-0.75")
    ]
    assert [e.done for e in each if e.total == STEPS] == list(range(1, STEPS + 1))
    assert all(event.seconds_left is not None for event in each)
    assert (moved[-1].what, moved[-1].done, moved[-1].total) == ("pretraining", 2, 2)
    # Another value is added; the others are kept.
    written = [RunFolder(run).last.stat().st_mtime_ns for run in runs]
    more = {"mask_ratio": (0.5, 0.625, 0.75)}
    said, again = events_of(pretrain_each(base, more, tmp_path))
    assert (again[0], again[2]) == runs
    assert [RunFolder(run).last.stat().st_mtime_ns for run in runs] == written
    notes = [event.text for event in said if isinstance(event, Note)]
    assert notes[0] == "2 of 3 pretrainings were done before and are kept."


@pytest.fixture
def ctrl_c():
    """Hear it, also where a shell in the background had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_what_was_learned_and_the_sweep_goes_on(base, tmp_path):
    whole = result_of(pretrain_each(base, VALUES, tmp_path / "whole"))
    work = pretrain_each(base, VALUES, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        while True:
            event = next(work)
            if isinstance(event, Progress) and event.what.startswith("pretraining 2"):
                os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    first, second = (
        RunFolder(tmp_path / "parts" / "pretrained" / run.name) for run in whole
    )
    assert (first.state, second.state) == ("done", "stopped")
    step = load_checkpoint(second.last).header.step
    assert 0 < step < STEPS
    said, runs = events_of(pretrain_each(base, VALUES, tmp_path / "parts"))
    notes = [event.text for event in said if isinstance(event, Note)]
    assert "1 of 2 pretrainings were done before and are kept." in notes
    assert "mask_ratio-0.75 goes on from its checkpoint." in notes
    begun = [event for event in second.events() if isinstance(event, Started)]
    assert [event.step for event in begun] == [0, step]
    for one, other in zip(map(weights, runs), map(weights, whole), strict=True):
        for name, tensor in other.items():
            np.testing.assert_array_equal(one[name], tensor, err_msg=name)


def test_a_run_that_is_stopped_from_elsewhere_ends_the_sweep(base, tmp_path):
    work = pretrain_each(base, VALUES, tmp_path)
    run = RunFolder(tmp_path / "pretrained" / "mask_ratio-0.5")
    with pytest.raises(RunError, match="stopped from elsewhere"):
        while True:
            if isinstance(next(work), Progress) and run.config_file.exists():
                run.request("stop")


def test_a_sweep_with_other_settings_or_pictures_is_refused(
    base, pictures, tmp_path, tmp_path_factory
):
    one = {"mask_ratio": (0.5,)}
    result_of(pretrain_each(base, one, tmp_path))
    for changes in ({"epochs": 3}, {"seed": 1}):
        with pytest.raises(ConfigError, match="when the run began"):
            next(pretrain_each(base.changed(changes), one, tmp_path))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(ConfigError, match=f"was pretrained on {pictures.name}, and"):
        next(pretrain_each(base.changed({"slides": (str(elsewhere),)}), one, tmp_path))


def test_what_fails_before_it_begins_leaves_no_run_behind(base, tmp_path):
    nothing = base.changed({"slides": (str(tmp_path / "nowhere"),)})
    with pytest.raises(HistomaeError, match="nowhere"):
        result_of(pretrain_each(nothing, VALUES, tmp_path / "out"))
    assert not list((tmp_path / "out" / "pretrained").iterdir())
    assert len(result_of(pretrain_each(base, VALUES, tmp_path / "out"))) == 2


def test_the_clock_minds_what_was_done_before(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    def begun(step, steps=4):
        yield Started("mae", step, steps, 1, 0, 1, "cpu", "f32", None)
        for done in range(step + 1, steps + 1):
            yield Step(done, steps, 0.0, 0.0, 0.0, 0.0, 0.0, None)

    parts = clock.Clock(2)
    assert parts.seconds() is None
    said = [e for e in parts.timed("one", begun(2)) if isinstance(e, Progress)]
    # A quarter of a part in one second, five quarters are left; then half in two.
    assert [event.seconds_left for event in said] == [5.0, 4.0]
    assert parts.seconds() == 6.0  # with a second to close
