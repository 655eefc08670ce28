"""A pretraining from a slide to a checkpoint: stopped, resumed, refused, the same."""

import json
import shutil
import threading
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from histomae.errors import (
    CheckpointError,
    ConfigError,
    DataSetError,
    DiskRefusedError,
    NotEnoughDataError,
    RunError,
    SlideError,
)
from histomae.events import (
    Failed,
    Finished,
    Heartbeat,
    HeldOut,
    Note,
    Preview,
    Saved,
    Started,
    Step,
    result_of,
)
from histomae.infer.encoder import TileEncoder
from histomae.infer.predict import tissue_grid
from histomae.learn import pretrain as module
from histomae.learn import saving
from histomae.learn.augment import Stream, mask_noise, views
from histomae.learn.deciding import MACHINE_CHANGED, settled
from histomae.learn.methods import METHODS, Objective
from histomae.learn.pretrain import pretrain, run_in, spread
from histomae.learn.runs import RunFolder
from histomae.models.checkpoint import autoencoder_from, load_checkpoint
from histomae.slides.crops import CropManifest
from histomae.slides.slide import Slide

pytestmark = pytest.mark.usefixtures("tiny_encoder")


@pytest.fixture
def begin(tmp_path, quick):
    """Return a function that makes a run folder with settings in it."""

    def make(name="run", **changes):
        run = RunFolder(tmp_path / name)
        run.create(quick(**changes))
        return run

    return make


def asking(run, *, at, what="stop"):
    """Run, and ask for ``what`` once ``at`` says so of an event; return the events."""
    events = []
    for event in run_in(run):
        events.append(event)
        if at(event):
            run.request(what)
    return events


def at_step(number):
    return lambda event: isinstance(event, Step) and event.step == number


def losses(run):
    return [(e.step, e.loss, e.lr) for e in run.events() if isinstance(e, Step)]


def kinds(events):
    return [type(event).__name__ for event in events]


# ---- the whole way


def test_a_run_leaves_everything_behind(begin):
    run = begin()
    said = list(run_in(run))
    recorded = list(run.events())
    assert recorded == [event for event in said if not isinstance(event, Heartbeat)]
    assert kinds(said[-3:]) == ["Saved", "Saved", "Finished"]
    assert run.state == "done"
    assert not run.lock_file.exists()

    (started,) = [event for event in recorded if isinstance(event, Started)]
    manifest = CropManifest.load(run.crops_file)
    assert started.crops == (~manifest.held_out).sum() > 20
    assert started.held_out_crops == manifest.held_out.sum() > 0
    steps = [event.step for event in recorded if isinstance(event, Step)]
    assert steps == list(range(1, started.total_steps + 1))
    judged = [event.step for event in recorded if isinstance(event, HeldOut)]
    assert judged == [0, 4, 8]
    assert [e.step for e in recorded if isinstance(e, Preview)] == judged
    saved = [(e.step, e.path.split("/")[-1]) for e in recorded if isinstance(e, Saved)]
    assert [name for name in saved if name[1] != "best.safetensors"] == [
        (3, "last.safetensors"),
        (6, "last.safetensors"),
        (8, "last.safetensors"),
        (8, "encoder.safetensors"),
    ]
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        *("config.toml", "events.jsonl", "crops.parquet", "checkpoints", "previews"),
        "tensorboard",
    }
    assert not list(run.path.rglob("*.tmp"))


def test_it_learns(begin):
    run = begin(epochs=40, warmup_epochs=4, preview_every=1000)
    list(run_in(run))
    before, after = (e.loss for e in run.events() if isinstance(e, HeldOut))
    assert before > 1.05
    assert after < 0.97


def test_settings_are_decided_and_written(begin, tissue_slide):
    run = begin(device="auto", precision="auto", micro_batch=None, threads=None)
    list(run_in(run))
    config = run.config()
    undecided = {f.name for f in fields(config) if getattr(config, f.name) is None}
    assert undecided == {"slide_mpp", "grad_clip", "feature_dim"}
    assert config.mpp == 0.5
    assert config.threads == 1
    assert config.device in ("cpu", "cuda", "mps")
    assert config.precision in ("f32", "bf16")
    assert config.micro_batch in (1, 2, 4, 8, 16, 20)


def test_the_checkpoint_explains_itself(begin):
    run = begin()
    path = result_of(run_in(run))
    assert path == run.last
    last, encoder = load_checkpoint(run.last), load_checkpoint(run.encoder)
    header = last.header
    assert (header.step, header.mpp, header.tile_px) == (8, 0.5, 32)
    assert (header.method, header.mask_ratio, header.norm_pix) == ("mae", 0.75, True)
    assert header.architecture == "vit_micro_patch8_32"
    assert (header.mean, header.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert header.mpp_given is False
    assert header.decoder.dim == 16
    assert encoder.header.decoder is None
    assert encoder.encoder_id == last.encoder_id
    assert not any(name.startswith(("decoder", "optim")) for name in encoder.tensors)
    tile = np.zeros((1, 32, 32, 3), np.uint8)
    assert TileEncoder.load(run.last).has_decoder
    vector = TileEncoder.load(run.encoder).embed(tile)
    np.testing.assert_array_equal(vector, TileEncoder.load(run.last).embed(tile))


def test_the_held_out_loss_is_that_of_the_saved_model(begin, tissue_slide):
    """Cut the crops again, mask them again, and compare with a plain loop."""
    run = begin(epochs=2)
    list(run_in(run))
    told = [e.loss for e in run.events() if isinstance(e, HeldOut)][-1]
    model = autoencoder_from(load_checkpoint(run.last))
    manifest = CropManifest.load(run.crops_file)
    total = []
    with Slide.open(tissue_slide) as slide, torch.inference_mode():
        for index in np.flatnonzero(manifest.held_out):
            crop = slide.read_region(tuple(manifest.xy_l0[index]), (32, 32), 0.5)
            images = views(
                torch.from_numpy(crop[None].copy()),
                mean=IMAGENET_DEFAULT_MEAN,
                std=IMAGENET_DEFAULT_STD,
            )
            noise = mask_noise(
                *(0, 0, np.array([index])), patches=16, stream=Stream.HELD_OUT_MASK
            )
            output = model(images, mask_ratio=0.75, noise=torch.from_numpy(noise))
            total.append(output.loss.item())
    assert told == pytest.approx(np.mean(total), rel=1e-5)


def test_previews_are_pictures_of_three_tiles(begin):
    run = begin(epochs=1)
    list(run_in(run))
    for event in run.events():
        if isinstance(event, Preview):
            with Image.open(run.path / event.path) as picture:
                assert picture.size == (3 * 32 + 8, 3 * 32 + 8)


def test_without_held_out_crops_previews_show_training_crops(begin):
    run = begin(held_out=0.0, epochs=1)
    list(run_in(run))
    assert "HeldOut" not in kinds(run.events())
    assert "Preview" in kinds(run.events())


def test_the_best_on_held_out_crops_is_kept(begin):
    run = begin(epochs=30, preview_every=3, base_lr=0.3)
    list(run_in(run))
    judged = {e.step: e.loss for e in run.events() if isinstance(e, HeldOut) and e.step}
    best = min(judged, key=judged.get)
    checkpoint = load_checkpoint(run.best)
    assert checkpoint.header.step == best
    assert not any(name.startswith("optimizer") for name in checkpoint.tensors)
    saved = [e.step for e in run.events() if isinstance(e, Saved) and "best" in e.path]
    lowest = np.minimum.accumulate(list(judged.values()))
    improved = [
        step
        for (step, loss), low in zip(list(judged.items())[1:], lowest[:-1], strict=True)
        if loss < low
    ]
    assert saved == [min(judged), *improved]


def test_every_so_often_a_checkpoint_is_kept_for_good(begin):
    run = begin(keep_every=2)
    weights = {}
    for event in run_in(run):
        if isinstance(event, Saved) and "step_" in event.path:
            weights[event.step] = load_checkpoint(run.path / event.path)
    assert list(weights) == [2, 4, 6]
    assert [run.kept(step).exists() for step in weights] == [True] * 3
    assert len({one.encoder_id for one in weights.values()}) == 3
    assert {one.header.step for one in weights.values()} == {2, 4, 6}
    assert weights[6].header.decoder is not None


def test_regions_are_trained_on_and_resumed_exactly(begin):
    how = {"sampler": "region-dense", "region_px": 128, "crops_per_region": 6}
    whole, broken = begin("whole", **how), begin("broken", **how)
    list(run_in(whole))
    assert CropManifest.load(whole.crops_file).reads_regions
    asking(broken, at=at_step(3))
    broken.reopen()
    list(run_in(broken))
    one, other = load_checkpoint(whole.last), load_checkpoint(broken.last)
    assert one.encoder_id == other.encoder_id
    assert losses(whole) == losses(broken)


def test_reading_and_memory_change_no_number(begin):
    first = None
    for number, readers in enumerate((0, 1, 4)):
        run = begin(f"run{number}", readers=readers, cache_gb=5e-5 * number)
        said = [e.text for e in run_in(run) if isinstance(e, Note)]
        assert any("do not fit" in text for text in said)
        first = first or losses(run)
        assert losses(run) == first


# ---- stopping and going on


@pytest.mark.parametrize("stop_after", [3, 4, 5])
def test_stopped_and_resumed_is_the_uninterrupted_run_bit_for_bit(begin, stop_after):
    whole, broken = begin("whole"), begin("broken")
    list(run_in(whole))
    asking(broken, at=at_step(stop_after))
    assert broken.state == "stopped"
    assert load_checkpoint(broken.last).header.step == stop_after
    broken.reopen()
    list(run_in(broken))
    assert losses(broken) == losses(whole)
    one, other = load_checkpoint(whole.last), load_checkpoint(broken.last)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    assert one.header == other.header
    told = [e for e in whole.events() if isinstance(e, HeldOut)]
    assert told == [e for e in broken.events() if isinstance(e, HeldOut)]


def test_heads_and_teachers_are_resumed_too(begin):
    how = {"method": "sd-mae", "prototypes": 64, "mask_ratio": 0.6}
    whole, broken = begin("whole", **how), begin("broken", **how)
    list(run_in(whole))
    asking(broken, at=at_step(5))
    broken.reopen()
    list(run_in(broken))
    assert losses(broken) == losses(whole)
    one, other = load_checkpoint(whole.last), load_checkpoint(broken.last)
    assert {"training.centre", "training.teacher_head.prototypes"} <= set(one.tensors)
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    logged = [e.logged for e in whole.events() if isinstance(e, Step)]
    assert logged[0].keys() == {
        *("hidden", "distillation", "teacher_entropy"),
        *("entropy_of_mean", "prototypes_used"),
    }
    assert autoencoder_from(one).decoder_spec.dim == 16
    best = load_checkpoint(whole.best)
    assert not any(name.startswith("training.") for name in best.tensors)


def test_pairs_are_trained_stopped_and_resumed_exactly(begin):
    """At 0.5 and 1 µm/px: projector and batch norm come back too."""
    how = {"method": "mpcs", "projector_dims": (16, 8), "view_factors": (1.0, 2.0)}
    how["max_iou"] = 0.8
    whole, broken = begin("whole", **how), begin("broken", **how)
    list(run_in(whole))
    asking(broken, at=at_step(5))
    broken.reopen()
    list(run_in(broken))
    assert losses(broken) == losses(whole)
    one, other = load_checkpoint(whole.last), load_checkpoint(broken.last)
    assert "training.projector.1.running_mean" in one.tensors
    assert not any(name.startswith("decoder.") for name in one.tensors)
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    assert (one.header.mpp, one.header.decoder) == (0.5, None)
    manifest = CropManifest.load(whole.crops_file)
    assert (manifest.mpp, manifest.views_mpp) == (1.0, (0.5,))
    logged = [e.logged for e in whole.events() if isinstance(e, Step)]
    assert logged[0].keys() == {
        *("partners_found", "partner_likeness", "others_likeness"),
    }
    with Image.open(next(whole.previews.glob("*.png"))) as sheet:
        assert sheet.size == (2 * 32 + 4, 3 * 32 + 2 * 4)


def test_pairs_go_on_from_an_autoencoder_and_their_encoder_embeds(begin):
    crops = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    first = begin("mae")
    list(run_in(first))
    pairs = begin("mpcs", method="mpcs", init_from=str(first.last), base_lr=1e-6)
    list(run_in(pairs))
    plain, tuned = TileEncoder.load(first.last), TileEncoder.load(pairs.last)
    assert (tuned.has_decoder, tuned.spec) == (False, plain.spec)
    one, other = plain.embed(crops), tuned.embed(crops)
    assert one.shape == other.shape == (len(crops), 16)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.1)  # it began where that ended
    assert tuned.attention(crops).shape == (len(crops), 4, 4)


def test_convolutions_are_trained_and_used_like_other_encoders(begin):
    how = {"view_factors": (1.0, 1.5), "max_iou": 0.8, "tile_px": 64, "epochs": 1}
    run = begin(method="mpcs", encoder="efficientnet_b2", **how)
    list(run_in(run))
    encoder = TileEncoder.load(run.encoder)
    assert encoder.poolings == ("mean",)
    assert encoder.name.startswith("mpcs efficientnet_b2 step ")
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    assert encoder.embed(tiles).shape == (3, encoder.width) == (3, 1408)
    seen = encoder.attention(tiles)
    assert seen.shape == (3, 2, 2)
    np.testing.assert_allclose(seen.sum((1, 2)), 1, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"pooling: 'class_token' .* Choose mean"):
        encoder.embed(tiles, pooling="class_token")


def test_a_place_that_is_alone_is_refused(begin):
    how = {"method": "mpcs", "held_out": 0.0}
    with pytest.raises(NotEnoughDataError, match=r"fewer than two .* Choose"):
        list(run_in(begin("one", crops_per_slide=1, **how)))
    with pytest.raises(NotEnoughDataError, match="All places are of one"):
        list(run_in(begin("slide", exclude_same_patient=True, **how)))


@pytest.fixture
def breakhis(tmp_path):
    """A tree in BreakHis's layout: four patients with two sets of four each."""
    random = np.random.default_rng(0)
    for case in range(4):
        folder = tmp_path / "BreaKHis_v1" / f"SOB_B_F_14-{case}A"
        folder.mkdir(parents=True)
        for magnification in (40, 100, 200, 400):
            for number in (1, 2):
                pixels = random.integers(0, 256, (46, 70, 3), np.uint8)
                name = f"SOB_B_F-14-{case}A-{magnification}-{number:03}.png"
                Image.fromarray(pixels).save(folder / name)
    return tmp_path / "BreaKHis_v1"


def test_pairs_of_breakhis_are_trained_and_resumed_exactly(begin, breakhis):
    how = {"method": "mpcs", "slides": (str(breakhis),), "projector_dims": (16, 8)}
    how |= {"batch_size": 3, "held_out": 0.25, "exclude_same_patient": True}
    whole, broken = begin("whole", **how), begin("broken", **how)
    said = list(run_in(whole))
    asking(broken, at=at_step(5))
    broken.reopen()
    list(run_in(broken))
    assert losses(broken) == losses(whole)
    notes = [event.text for event in said if isinstance(event, Note)]
    assert notes[0].startswith("8 sets of all four magnifications")
    (started,) = [event for event in said if isinstance(event, Started)]
    assert (started.crops, started.held_out_crops) == (6, 2)
    assert started.mpp == pytest.approx(0.2 * 460 / 32)


def test_breakhis_is_refused_in_words(begin, breakhis, tissue_slide):
    how = {"method": "mpcs", "projector_dims": (16, 8)}
    both = begin("both", slides=(str(breakhis), str(tissue_slide)), **how)
    with pytest.raises(DataSetError, match="Train on this folder alone"):
        list(run_in(both))
    (one, *_) = sorted(breakhis.rglob("*-40-001.png"))
    one.write_bytes(b"damaged")
    how["slides"] = (str(breakhis),)
    with pytest.raises(DataSetError, match=f"1 of 32 .*{one.name}"):
        list(run_in(begin("damaged", **how)))
    skipped = begin("skipped", skip_unreadable=True, **how)
    said = [e.text for e in run_in(skipped) if isinstance(e, Note)]
    assert one.name in said[0]
    assert said[1].startswith("7 sets of all four magnifications, 1 of two or three")
    for path in breakhis.rglob("*-200-*.png"):
        path.unlink()
    with pytest.raises(NotEnoughDataError, match=r"has 0 sets .* strategy ordered"):
        list(run_in(begin("three", skip_unreadable=True, **how)))
    how |= {"partial_sets": True, "pair_strategy": "fixed"}
    with pytest.raises(NotEnoughDataError, match=r"strategy fixed.*partial_sets"):
        list(run_in(begin("fixed", skip_unreadable=True, **how)))


def test_without_distillation_the_run_is_that_of_a_masked_autoencoder(begin):
    plain, same = begin("plain"), begin("same", method="sd-mae", distill_weight=0.0)
    list(run_in(plain))
    list(run_in(same))
    assert losses(plain) == losses(same)
    one, other = load_checkpoint(plain.last), load_checkpoint(same.last)
    assert one.encoder_id == other.encoder_id


def test_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(begin):
    """A process that dies loses what came after its last checkpoint, no more."""
    whole, killed = begin("whole"), begin("killed")
    list(run_in(whole))
    work = run_in(killed)
    for event in work:
        if at_step(5)(event):
            break
    work.close()
    assert killed.state == "interrupted"
    assert killed.last_event.step == 5
    assert load_checkpoint(killed.last).header.step == 3
    list(run_in(killed))
    assert [e.step for e in killed.events() if isinstance(e, Started)] == [0, 3]
    assert losses(killed) == losses(whole)
    one, other = load_checkpoint(whole.last), load_checkpoint(killed.last)
    assert one.encoder_id == other.encoder_id


def test_killed_before_the_first_checkpoint_begins_again(begin):
    run = begin()
    work = run_in(run)
    for event in work:
        if at_step(2)(event):
            break
    work.close()
    list(run_in(run))
    assert [e.step for e in run.events() if isinstance(e, Started)] == [0]
    assert [number for number, *_ in losses(run)] == list(range(1, 9))


def test_killed_between_the_last_save_and_the_end_finishes(begin):
    run = begin()
    work = run_in(run)
    for event in work:
        if isinstance(event, Saved) and event.step == 8:
            break
    work.close()
    assert run.state == "interrupted"
    list(run_in(run))
    assert run.state == "done"
    assert run.encoder.exists()
    assert [number for number, *_ in losses(run)] == list(range(1, 9))


def test_a_stop_takes_effect_at_the_next_micro_batch(begin):
    run = begin(micro_batch=1)
    events = asking(run, at=at_step(4))
    last = events.index(next(e for e in events if at_step(4)(e)))
    after = [e for e in events[last + 1 :] if not isinstance(e, Heartbeat)]
    assert kinds(after) == ["Saved", "Saved", "Finished"]
    assert after[-1] == Finished(4, "stopped")
    assert run.requested() is None


def test_a_stop_within_a_step_keeps_the_last_whole_step(begin):
    run = begin(micro_batch=4)
    seen = []

    def third_heartbeat_after_step_4(event):
        if seen or at_step(4)(event):
            seen.append(event)
        beats = sum(isinstance(e, Heartbeat) for e in seen)
        return beats == 7 and isinstance(event, Heartbeat)  # judging comes between

    asking(run, at=third_heartbeat_after_step_4)
    assert run.last_event.reason == "stopped"
    assert load_checkpoint(run.last).header.step == run.last_event.step


def test_a_stop_before_the_first_step_keeps_nothing(begin):
    run = begin()
    events = asking(run, at=lambda event: isinstance(event, Started))
    assert events[-1] == Finished(0, "stopped")
    assert not run.checkpoints.exists()


def test_discarding_removes_the_checkpoints(begin):
    run = begin()
    path = None
    work = run_in(run)
    while path is None:
        try:
            event = next(work)
        except StopIteration as stop:
            path = stop.value
        if at_step(4)(event):
            run.request("discard")
    assert path == run.path
    assert run.state == "discarded"
    assert not run.checkpoints.exists()


def test_a_pause_waits_and_changes_nothing(begin):
    whole, paused = begin("whole"), begin("paused")
    list(run_in(whole))
    beats = 0
    for event in run_in(paused):
        if at_step(2)(event):
            paused.request("pause")
        if isinstance(event, Note):
            beats = 0
        beats += isinstance(event, Heartbeat)
        if beats == 3 and paused.requested() == "pause":
            paused.request("resume")
    notes = [event.text for event in paused.events() if isinstance(event, Note)]
    assert notes[-2:] == ["Paused after step 2.", "Going on."]
    assert losses(paused) == losses(whole)
    assert paused.requested() is None


def test_a_paused_run_can_be_stopped(begin):
    run = begin()
    for event in run_in(run):
        if at_step(2)(event):
            run.request("pause")
        if isinstance(event, Note) and event.text.startswith("Paused"):
            run.request("stop")
    assert run.last_event == Finished(2, "stopped")
    assert "Going on." not in [e.text for e in run.events() if isinstance(e, Note)]


# ---- refusals


def test_nothing_is_lost_without_resume(begin, quick):
    run = begin()
    asking(run, at=at_step(3))
    with pytest.raises(RunError, match=r"already holds a run \(stopped\)"):
        next(pretrain(quick(), run))
    assert load_checkpoint(run.last).header.step == 3


def test_a_changed_setting_is_refused_by_name(begin, quick):
    run = begin()
    asking(run, at=at_step(3))
    for name, value in {"base_lr": 0.5, "seed": 1, "encoder": "vit_tiny"}.items():
        with pytest.raises(ConfigError, match=f"^{name}: was .* is {value!r} now"):
            next(pretrain(quick(**{name: value}), run, resume=True))
    assert len(losses(run)) == 3  # nothing was cut


def test_what_was_left_open_may_stay_open(begin, quick):
    run = begin()
    asking(run, at=at_step(3))
    open_again = quick(micro_batch=None, precision="auto", device="auto", slides=())
    assert settled(open_again, run.config()) == run.config()
    list(pretrain(open_again, run, resume=True))


def test_another_place_and_machine_may_go_on_and_are_told(
    begin, quick, tissue_slide, monkeypatch
):
    run = begin()
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    asking(run, at=at_step(3))
    moved = run.path.parent / "moved.tiff"
    moved.write_bytes(tissue_slide.read_bytes())
    changed = quick(slides=(str(moved),), threads=2)
    events = list(pretrain(changed, run, resume=True))
    assert MACHINE_CHANGED in [e.text for e in events if isinstance(e, Note)]
    assert run.config().threads == 2
    assert events[-1] == Finished(8, "done")
    assert threads[-2:] == [2, 1]  # and as before at the end


def test_a_slide_that_changed_is_missed(begin, quick, make_slide):
    run = begin()
    asking(run, at=at_step(3))
    other = make_slide(np.full((300, 300, 3), 200, np.uint8))
    with pytest.raises(RunError, match=r"was trained on .*Bring it back"):
        list(pretrain(quick(slides=(str(other),)), run, resume=True))


def test_a_run_that_is_done_stays_done(begin):
    run = begin(epochs=1)
    list(run_in(run))
    with pytest.raises(RunError, match="is done"):
        list(run_in(run))
    assert run.state == "done"


def test_the_second_process_is_refused_and_writes_nothing(begin):
    run = begin()
    with run.lock(), pytest.raises(RunError, match="is in use by process"):
        list(run_in(run))
    assert run.last_event is None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"slides": ()}, ConfigError, "none is named"),
        ({"slides": ("/nowhere/a.svs",)}, SlideError, "does not exist"),
        ({"device": "cuda:77"}, ConfigError, "is not here"),
        ({"min_tissue": 1.0, "tile_px": 512}, NotEnoughDataError, "Choose slides"),
    ],
)
def test_what_cannot_begin_is_recorded_in_words(begin, changes, error, words):
    run = begin(**changes)
    with pytest.raises(error, match=words):
        list(run_in(run))
    assert isinstance(run.last_event, Failed)
    assert words in run.last_event.message
    assert run.state == "failed"


def test_a_slide_without_mpp_needs_one(begin, make_slide, tissue_slide):
    with Slide.open(tissue_slide) as slide:
        pixels = slide.read_region((0, 0), (800, 800), 0.5)
    bare = str(make_slide(pixels, mpp=None))
    with pytest.raises(SlideError, match="no believable pixel size"):
        list(run_in(begin("without", slides=(bare,))))
    run = begin("with", slides=(bare,), slide_mpp=0.5, epochs=1)
    list(run_in(run))
    assert load_checkpoint(run.last).header.mpp_given is True


def test_a_failed_start_can_be_tried_again(begin, tissue_slide):
    missing = begin().path.parent / "late.tiff"
    run = begin("again", slides=(str(missing),), epochs=1)
    with pytest.raises(SlideError):
        list(run_in(run))
    missing.write_bytes(tissue_slide.read_bytes())
    list(run_in(run))
    assert run.state == "done"


# ---- what goes wrong on the way


def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing_bad(
    begin, monkeypatch
):
    mae, calls = METHODS["mae"], []

    def loss(model, inputs, setting):
        objective = mae.loss(model, inputs, setting)
        calls.append(model.training)
        broken = sum(calls) > 3 * 4  # three micro-batches a step
        return Objective(objective.loss * (float("nan") if broken else 1), {})

    monkeypatch.setitem(METHODS, "mae", replace(mae, loss=loss))
    run = begin()
    with pytest.raises(RunError, match="became nan at step 5"):
        list(run_in(run))
    assert run.state == "failed"
    assert "grad_clip" in run.last_event.message
    assert load_checkpoint(run.last).header.step == 3


def test_an_error_of_the_program_is_recorded_and_raised(begin, monkeypatch):
    def loss(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setitem(METHODS, "mae", replace(METHODS["mae"], loss=loss))
    run = begin()
    with pytest.raises(RuntimeError, match="shapes"):
        list(run_in(run))
    assert "RuntimeError: shapes do not fit" in run.last_event.message
    assert not run.lock_file.exists()


@pytest.fixture
def full_disk(monkeypatch):
    """Return a switch: while it is set, the disk is full."""
    full = threading.Event()
    save = saving.save_checkpoint

    def refusing(path, header, tensors):
        if full.is_set():
            raise OSError(28, "No space left on device")
        save(path, header, tensors)

    monkeypatch.setattr(saving, "save_checkpoint", refusing)
    return full


def test_a_full_disk_does_not_end_a_training(begin, full_disk):
    run = begin(save_every=2)
    whole = begin("whole", save_every=2)
    list(run_in(whole))
    full_disk.set()
    notes = []
    for event in run_in(run):
        if isinstance(event, Note):
            notes.append(event.text)
            if "waits, in memory" in event.text:
                full_disk.clear()
    assert "No space left on device" in notes[0]
    assert "MB are free there" in notes[0]
    assert "tries again in 2 steps" in notes[0]
    assert "make room" in notes[-1]
    assert run.state == "done"
    one, other = load_checkpoint(run.last), load_checkpoint(whole.last)
    assert one.encoder_id == other.encoder_id


def test_a_training_that_waits_for_room_can_be_stopped(begin, full_disk):
    run = begin(save_every=2)
    full_disk.set()
    with pytest.raises(DiskRefusedError, match="Make room"):
        asking(run, at=lambda e: isinstance(e, Note) and "waits" in e.text)
    assert "Make room" in run.last_event.message
    assert not run.last.exists()


def test_a_disk_without_room_is_named_before_the_first_step(begin, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage)
    run = begin()
    with pytest.raises(DiskRefusedError, match=r"takes \d+\.\d MB, and 0\.0 MB are"):
        list(run_in(run))
    assert not losses(run)
    assert str(run.last.parent) in run.last_event.message


def test_a_picture_is_not_worth_a_training(begin, monkeypatch):
    def save(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Image.Image, "save", save)
    run = begin()
    said = list(run_in(run))
    assert any("goes on without it" in e.text for e in said if isinstance(e, Note))
    assert run.state == "done"


# ---- starting from weights


def test_a_run_starts_from_another_ones_encoder(begin):
    first = begin("first", seed=5)
    list(run_in(first))
    second = begin("second", init_from=str(first.last), epochs=1, base_lr=0.0)
    list(run_in(second))
    one, other = load_checkpoint(first.last), load_checkpoint(second.last)
    assert one.encoder_id == other.encoder_id  # nothing was learned at a rate of 0
    decoder = "decoder.embed.weight"
    assert not torch.equal(one.tensors[decoder], other.tensors[decoder])


def test_few_are_spread_over_many():
    assert spread(np.arange(100, 110), 3).tolist() == [100, 103, 106]
    assert spread(np.arange(2), 3).tolist() == [0, 1]


def test_events_are_plain_json(begin):
    run = begin(epochs=1)
    list(run_in(run))
    for line in run.events_file.read_text().splitlines():
        assert json.loads(line)["kind"]


@pytest.fixture
def busi(tmp_path):
    """A tree in BUSI's layout: twelve pictures, two of them the same, with masks."""
    random = np.random.default_rng(0)
    for number in range(1, 13):
        kind = ("benign", "malignant", "normal")[number % 3]
        folder = tmp_path / "BUSI" / kind
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (46, 70, 3), np.uint8)
        if number == 12:
            pixels = np.asarray(
                Image.open(tmp_path / "BUSI/malignant/malignant (1).png")
            )
        Image.fromarray(pixels).save(folder / f"{kind} ({number}).png")
        Image.new("1", (70, 46)).save(folder / f"{kind} ({number})_mask.png")
    return tmp_path / "BUSI"


def test_pictures_are_trained_on_and_resumed_exactly(begin, busi, tissue_slide):
    how = {"slides": (str(busi),), "batch_size": 4, "held_out": 0.25}
    how |= {"flips": "horizontal", "scan_sector": True}
    whole, broken = begin("whole", **how), begin("broken", **how)
    said = list(run_in(whole))
    asking(broken, at=at_step(5))
    broken.reopen()
    list(run_in(broken))
    assert losses(broken) == losses(whole)
    notes = " ".join(event.text for event in said if isinstance(event, Note))
    assert "malignant (1) = benign (12)" in notes or "benign (12) = mal" in notes
    assert "label is in doubt" in notes
    (started,) = [event for event in said if isinstance(event, Started)]
    assert started.crops + started.held_out_crops == 12
    assert 3 <= started.held_out_crops <= 4
    assert started.mpp is None
    encoder = TileEncoder.load(whole.last)
    assert encoder.header.mpp is None
    with pytest.raises(CheckpointError, match="Choose one that was trained on slides"):
        _ = encoder.spec
    tiles = np.zeros((2, 32, 32, 3), np.uint8)
    assert encoder.attention(tiles).shape == (2, 4, 4)


def test_grey_pictures_go_the_whole_walk(begin, busi):
    """One channel, gamma and sector: in the checkpoint, and as an encoder looks."""
    how = {"slides": (str(busi),), "batch_size": 4, "in_chans": 1, "gamma": 0.2}
    how |= {"flips": "horizontal", "scan_sector": True, "epochs": 1}
    run = begin("grey", **how, warmup_epochs=0.5, preview_every=1)
    (started,) = [event for event in run_in(run) if isinstance(event, Started)]
    assert started.what == "picture"
    assert losses(run) != losses_without_gamma(begin, how)
    encoder = TileEncoder.load(run.last)
    header = encoder.header
    assert (header.encoder.in_chans, header.scan_sector) == (1, True)
    assert (len(header.mean), len(header.std)) == (1, 1)
    with Slide.open(sorted(busi.rglob("normal (*).png"))[0]) as picture:
        grid, cells = tissue_grid(picture, encoder)
        tile = grid.read(picture, 0, 0)
    assert cells.tolist() == [[0, 0]]
    assert (tile[..., 0] == tile[..., 1]).all()
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 1:3] = True
    (one,) = encoder.reconstruct(tile[None], masks)
    assert one.reconstruction.shape == (32, 32, 3)
    assert (one.reconstruction == one.reconstruction[..., :1]).all()
    np.testing.assert_array_equal(one.reconstruction[:8], tile[:8])
    with pytest.raises(ConfigError, match="neither 3 nor 1"):
        run.config().changed({"in_chans": 2})


def losses_without_gamma(begin, how):
    other = begin("plain", **{**how, "gamma": 0.0}, warmup_epochs=0.5)
    list(run_in(other))
    return losses(other)


def test_weights_in_colour_begin_a_grey_training(begin, busi):
    how = {"slides": (str(busi),), "batch_size": 4, "epochs": 1, "warmup_epochs": 0.5}
    colour = begin("colour", **how)
    list(run_in(colour))
    grey = begin("grey", **how, in_chans=1, init_from=str(colour.last))
    notes = [event.text for event in run_in(grey) if isinstance(event, Note)]
    assert any("summed up for one grey" in note for note in notes)
    assert TileEncoder.load(grey.last).header.mean == pytest.approx((0.449,))


def test_pictures_are_refused_in_words(begin, busi, tissue_slide, tmp_path):
    def refused(name, error, match, **how):
        with pytest.raises(error, match=match):
            list(run_in(begin(name, **{"slides": (str(busi),), "batch_size": 4} | how)))

    both = (str(tissue_slide), str(busi))
    refused("both", DataSetError, "Name one folder of pictures", slides=both)
    refused("mpp", ConfigError, "Leave it out", mpp=0.5)
    (one, *_) = sorted(busi.rglob("normal (*).png"))
    refused("file", DataSetError, "Name one folder", slides=(str(one),))
    one.write_bytes(b"damaged")
    refused("damaged", DataSetError, "1 of 12 .* skip_unreadable")
    how = {"slides": (str(busi),), "batch_size": 4, "skip_unreadable": True}
    said = list(run_in(begin("skipped", **how)))
    (started,) = [event for event in said if isinstance(event, Started)]
    assert started.crops + started.held_out_crops == 11
