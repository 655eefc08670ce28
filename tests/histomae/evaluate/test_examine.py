"""Tests of an examination: from drawn pictures to tables, trial by trial."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from histomae.config import PretrainConfig
from histomae.data.classes import ClassSet
from histomae.data.datasets import open_dataset
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.picture_sets import PictureSets
from histomae.data.pictures import read_picture
from histomae.data.tiling import Tiling
from histomae.errors import ConfigError, DownloadError, NotEnoughDataError
from histomae.evaluate import candidates as candidates_module
from histomae.evaluate.candidates import Compared, open_candidates
from histomae.evaluate.examine import check_folder, data_hash, evaluate
from histomae.evaluate.features import compute_features
from histomae.evaluate.lessons import Lesson, Taught, Teacher, trial_of
from histomae.evaluate.protocols import PROTOCOLS, Settings, tiling_of, transfer
from histomae.evaluate.scores import MAIN, compare, lines, scores, verdicts
from histomae.evaluate.trial_files import load_evaluation
from histomae.evaluate.trials import Evaluation, Trial
from histomae.events import Note, Progress, result_of
from histomae.learn.finetune import FineTuning
from histomae.learn.runs import RunFolder
from histomae.models.checkpoint import save_checkpoint
from tests.listening import events_of

#: Pictures of each class of each patient.
EACH = 2
NAMES = ("smooth", "striped", "spotted")


def drawn(root, *, patients=6, name="drawn", seed=0, wide=64):
    """A set whose classes differ in arrangement, and not at all in colour."""
    rng = np.random.default_rng(seed)
    pictures = []
    for patient in range(patients):
        for label, kind in enumerate(NAMES):
            for number in range(EACH):
                pixels = rng.integers(90, 130, (wide, wide, 3))
                y, x = np.mgrid[:wide, :wide]
                if kind == "striped":
                    pixels += 60 * (((x + number) // 4 % 2) * 2 - 1)[..., None]
                if kind == "spotted":
                    pixels += 60 * (((x // 4 + y // 4) % 2) * 2 - 1)[..., None]
                path = root / f"{patient}-{kind}-{number}.png"
                path.parent.mkdir(exist_ok=True, parents=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
                pictures.append(
                    LabelledPicture(path=path, label=label, patient=f"p{patient}")
                )
    return LabelledSet(
        name=name,
        root=root,
        classes=ClassSet.of(NAMES),
        pictures=tuple(pictures),
        read=lambda picture: read_picture(picture.path),
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def compared(write_checkpoint):
    """Our encoder, the untrained one and colour, on the CPU."""
    asked = Compared(encoders=(str(write_checkpoint()),), imagenet=None, device="cpu")
    return result_of(open_candidates(asked))


TILES = Tiling(how="patches", patch_px=32, votes=True)
QUICK = Settings(
    folds=3,
    runs=2,
    draws=2,
    fractions=(0.2, 1.0),
    tiling=Tiling(how="whole"),
    fine_tuning=FineTuning(
        epochs=2, warmup_epochs=1, batch_size=8, device="cpu", base_lr=1e-2
    ),
)


# Candidates ----------------------------------------------------------------------


def test_the_table_has_baselines_below_our_encoder(compared):
    kinds = [candidate.kind for candidate in compared]
    assert kinds == ["encoder", "untrained", "colour histogram"]
    assert compared[0].name == "last"
    assert compared[0].identity != compared[1].identity
    assert compared[0].facts["mask_ratio"] == 0.75


def test_imagenet_is_left_out_with_a_note_where_it_cannot_be_loaded(
    write_checkpoint, monkeypatch
):
    def offline(source, **how):
        raise DownloadError("no connection. Check it.")

    monkeypatch.setattr(candidates_module, "foreign_encoder", offline)
    asked = Compared(encoders=(str(write_checkpoint()),), device="cpu")
    events, found = events_of(open_candidates(asked))
    assert "ImageNet" not in [candidate.kind for candidate in found]
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("ImageNet" in note and "no connection" in note for note in notes)


def test_encoders_of_one_name_are_numbered(write_checkpoint, tmp_path):
    first = write_checkpoint()
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "last.safetensors"
    second.write_bytes(first.read_bytes())
    asked = Compared(
        encoders=(str(first), str(second)), imagenet=None, colour=False, device="cpu"
    )
    found = result_of(open_candidates(asked))
    assert [one.name for one in found] == ["last 1", "last 2", "untrained"]


def test_a_file_of_weights_of_a_timm_model_is_a_candidate(
    data, write_checkpoint, tmp_path
):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    source = f"test_vit={tmp_path / 'weights.safetensors'}"
    asked = Compared(
        encoders=(str(write_checkpoint()), source),
        imagenet=source,
        untrained=False,
        colour=False,
        device="cpu",
    )
    found = result_of(open_candidates(asked))
    kinds = {one.name: one.kind for one in found}
    assert kinds == {
        "last": "encoder",
        "test_vit": "foreign encoder",
        "ImageNet": "ImageNet",
    }
    settings = replace(QUICK, fine_tuning=replace(QUICK.fine_tuning, epochs=1))
    out = tmp_path / "out"
    few = data.among(np.flatnonzero(np.isin(data.patients, ["p0", "p1", "p2"])))
    evaluation = result_of(
        evaluate(PROTOCOLS["finetune"], few, found[1:2], out, settings)
    )
    assert {t.chosen["taught by"] for t in evaluation.trials} == {"finetune"}
    # What is trained is a copy.
    torch.testing.assert_close(
        found[1].network().module.state_dict(), model.state_dict()
    )


# Features ------------------------------------------------------------------------


def test_features_are_those_of_each_picture_and_computed_once(data, compared, tmp_path):
    ours = compared[0]
    found = result_of(
        compute_features(data, ours, TILES, tmp_path, data_id=data_hash(data))
    )
    assert len(found.values) == 4 * len(data)  # 64 px hold four patches of 32
    for row in (0, 7, len(data) - 1):
        tiles = TILES.cut(data.read(data.pictures[row]), 32)
        np.testing.assert_allclose(
            found.values[found.picture == row], ours.embed(tiles), atol=1e-5
        )

    def never(tiles):
        raise AssertionError("computed again")

    again = result_of(
        compute_features(
            data, replace(ours, embed=never), TILES, tmp_path, data_id=data_hash(data)
        )
    )
    np.testing.assert_array_equal(found.values, again.values)
    values, place = found.of(np.array([5, 2]))
    np.testing.assert_array_equal(place, [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(values[4:], found.values[found.picture == 2])
    np.testing.assert_allclose(
        found.averaged().values[5], values[:4].mean(0), atol=1e-6
    )


# Protocols -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected():
    """Trials of each candidate, with QUICK and three folds."""
    return {
        "linear": 3,
        "knn": 3,
        "sgd-probe": 3,
        "finetune": 3,
        "few-label": 3 * (2 + 1),
    }


@pytest.mark.parametrize("name", ["linear", "knn", "sgd-probe", "few-label"])
def test_a_protocol_tests_every_picture_of_every_row(
    name, data, compared, tmp_path, expected
):
    evaluation = result_of(
        evaluate(PROTOCOLS[name], data, compared, tmp_path / "out", QUICK)
    )
    by_candidate = {one.name: [] for one in compared}
    for trial in evaluation.trials:
        by_candidate[trial.candidate].append(trial)
        train = trial.trained
        assert 0 < train < len(data)
        np.testing.assert_allclose(trial.probabilities.sum(1), 1)
        patients = set(data.patients[trial.tested])
        assert len(trial.tested) == len(patients) * len(NAMES) * EACH
    assert {len(t) for t in by_candidate.values()} == {expected[name]}
    tested = np.concatenate([t.tested for t in by_candidate["last"]])
    assert set(tested.tolist()) == set(range(len(data)))


def test_features_tell_arrangements_apart_and_colour_does_not(data, compared, tmp_path):
    evaluation = result_of(
        evaluate(PROTOCOLS["linear"], data, compared, tmp_path / "out", QUICK)
    )
    reached = {
        score.candidate: score.mean
        for score in scores(evaluation)
        if score.name == MAIN
    }
    assert reached["last"] > 0.8
    assert reached["untrained"] > 0.8  # a random network sees edges too
    found = compare(evaluation, "last", "colour histogram")
    assert found.difference.value == pytest.approx(
        reached["last"] - reached["colour histogram"], abs=0.1
    )
    assert lines(evaluation)[1].startswith("last")
    said = " ".join(evaluation.notes)
    assert "patients were tested on" in said


def test_an_encoder_that_does_not_beat_colour_is_told(tmp_path, compared):
    folder = tmp_path / "set"
    data = drawn(folder)
    for picture in data.pictures:  # now colour says it all
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[..., picture.label] = 200
        Image.fromarray(pixels).save(picture.path)
    evaluation = result_of(
        evaluate(PROTOCOLS["linear"], data, compared, tmp_path / "out", QUICK)
    )
    assert any(
        "last does not beat" in note and "colour histogram" in note
        for note in evaluation.notes
    )


@pytest.mark.parametrize(
    ("fractions", "where"),
    [((0.2, 1.0), "fraction 0.2; fraction 1"), ((0.1, 0.2, 0.4, 1.0), "in 4 settings")],
)
def test_verdicts_name_few_settings_and_count_many(data, fractions, where):
    right = np.eye(len(NAMES))[data.labels]
    wrong = np.roll(right, 1, axis=1)
    answers = {"ours": wrong, "colour histogram": right, "untrained": wrong}
    evaluation = Evaluation(
        protocol="few-label",
        data=data,
        trials=tuple(
            Trial(
                candidate=name,
                setting={"fraction": fraction},
                fold=0,
                tested=np.arange(len(data)),
                probabilities=answer,
            )
            for name, answer in answers.items()
            for fraction in fractions
        ),
        facts={
            "candidates": {
                "ours": {"kind": "encoder"},
                "colour histogram": {"kind": "colour histogram"},
                "untrained": {"kind": "untrained"},
            }
        },
    )
    assert verdicts(evaluation) == (
        f"ours does not beat colour histogram nor untrained ({where}).",
    )


def test_the_real_sample_is_examined_with_votes_of_its_patches(
    shared_data, compared, tmp_path
):
    ucsb = open_dataset(shared_data / "UCSB_BreastCancerCell")
    settings = replace(QUICK, tiling=Tiling(how="patches", patch_px=224, votes=True))
    evaluation = result_of(
        evaluate(PROTOCOLS["linear"], ucsb, compared, tmp_path, settings)
    )
    ours = [trial for trial in evaluation.trials if trial.candidate == "last"]
    assert [len(trial.tested) for trial in ours] == [6, 6, 6]  # three arrays
    assert all(len(trial.patch_picture) == 6 * 12 for trial in ours)
    tested = np.concatenate([trial.tested for trial in ours])
    assert sorted(tested.tolist()) == list(range(18))
    assert evaluation.leaks == ()
    assert len(evaluation.published) == 3


def test_patches_vote(data, compared, tmp_path):
    evaluation = result_of(
        evaluate(
            PROTOCOLS["linear"],
            data,
            compared[:1],
            tmp_path / "out",
            replace(QUICK, tiling=TILES),
        )
    )
    trial = evaluation.trials[0]
    assert len(trial.patch_picture) == 4 * len(trial.tested)
    for place in range(len(trial.tested)):
        mine = trial.patch_probabilities[trial.patch_picture == place]
        np.testing.assert_allclose(np.exp(trial.logits[place]), mine.mean(0), atol=1e-9)
    names = {score.name for score in scores(evaluation)}
    assert {"accuracy (majority vote)", "accuracy of patches"} <= names


def test_fine_tuning_trains_what_can_be_trained(data, compared, tmp_path):
    evaluation = result_of(
        evaluate(PROTOCOLS["finetune"], data, compared, tmp_path / "out", QUICK)
    )
    taught = {t.candidate: t.chosen["taught by"] for t in evaluation.trials}
    assert taught == {
        "last": "finetune",
        "untrained": "finetune",
        "colour histogram": "linear",
    }
    assert all(t.chosen["epoch"] in (1, 2) for t in evaluation.trials[:6])


def test_probing_leaves_the_encoder_as_it_was(data, write_checkpoint, tmp_path):
    asked = Compared(
        encoders=(str(write_checkpoint()),), imagenet=None, colour=False, device="cpu"
    )
    seen = []
    original = candidates_module.TileEncoder

    class Watched(original):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self)

        def embed(self, tiles, **how):
            assert not self._encoder.training
            return super().embed(tiles, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates_module, "TileEncoder", Watched)
        found = result_of(open_candidates(asked))

    def hashes():
        return [
            {k: v.numpy().tobytes() for k, v in one._encoder.state_dict().items()}
            for one in seen
        ]

    before = hashes()
    assert len(before) == 2
    for name in ("linear", "knn", "finetune"):
        out = tmp_path / name
        result_of(evaluate(PROTOCOLS[name], data, found, out, QUICK))
    assert hashes() == before


def test_the_leaderboard_is_run_several_times(data, compared, tmp_path, monkeypatch):
    from histomae.evaluate import lessons

    few = replace(lessons.LEADERBOARD, steps=30)
    monkeypatch.setattr(lessons, "LEADERBOARD", few)
    evaluation = result_of(
        evaluate(PROTOCOLS["leaderboard"], data, compared[:1], tmp_path / "out", QUICK)
    )
    assert [t.setting for t in evaluation.trials] == [{"run": 0}, {"run": 1}]
    first, second = evaluation.trials
    assert not np.array_equal(first.probabilities, second.probabilities)
    (main,) = [one for one in scores(evaluation) if one.name == MAIN]
    assert main.repeats == 2


def test_transfer_teaches_on_one_set_and_tests_on_the_other(data, compared, tmp_path):
    other = drawn(tmp_path / "other", name="other", patients=3, seed=1)
    both, protocol = transfer(data, other)
    evaluation = result_of(
        evaluate(protocol, both, compared[:1], tmp_path / "out", QUICK)
    )
    across = [t for t in evaluation.trials if t.setting["taught on"] == "drawn"]
    fresh = [t for t in evaluation.trials if t.setting["taught on"] == "other"]
    (one,) = across
    assert set(one.tested) == set(range(len(data), len(both)))
    assert set(np.concatenate([t.tested for t in fresh])) == set(one.tested)
    assert one.trained > 0.7 * len(data)
    # The same patient number is another patient in another set.
    assert not set(both.patients[: len(data)]) & set(both.patients[len(data) :])


def test_transfer_between_other_classes_is_a_fresh_layer_only(data, tmp_path):
    other = replace(
        drawn(tmp_path / "other", name="other", patients=3),
        classes=ClassSet.of(["a", "b", "c"]),
    )
    found, protocol = transfer(data, other)
    assert found is other
    assert "other classes" in protocol.notes[-1]
    jobs = protocol.jobs(found, QUICK).jobs
    assert {job.setting["taught on"] for job in jobs} == {"other"}


def swept(one, **varied):
    """Return a candidate as one of the rows of a sweep."""
    return replace(one, name="encoder", varied=varied, identity=f"{varied}")


def test_a_sweep_needs_encoders_that_differ(data, compared, tmp_path):
    protocol = PROTOCOLS["mask-ratio"]
    with pytest.raises(ConfigError, match="different mask_ratio"):
        result_of(evaluate(protocol, data, compared, tmp_path, QUICK))
    values = [swept(compared[0], mask_ratio=ratio) for ratio in (0.75, 0.5)]
    evaluation = result_of(
        evaluate(protocol, data, (*values, compared[2]), tmp_path, QUICK)
    )
    ratios = {(t.candidate, tuple(t.setting.items())) for t in evaluation.trials}
    assert ratios == {
        ("encoder", (("mask_ratio", 0.75),)),
        ("encoder", (("mask_ratio", 0.5),)),
        ("colour histogram", ()),
    }
    assert evaluation.facts["varied"] == ["mask_ratio"]
    assert list(evaluation.embedding) == [
        *("encoder mask_ratio 0.75", "encoder mask_ratio 0.5", "colour histogram"),
    ]
    with (tmp_path / "tests.csv").open() as file:
        tests = [(row["setting"], row["other"]) for row in csv.DictReader(file)]
    assert tests == [
        ("mask_ratio 0.75", "encoder"),
        ("mask_ratio 0.75", "colour histogram"),
        ("mask_ratio 0.5", "colour histogram"),
    ]


def a_run(folder, made, **settings):
    """Make a run folder of a checkpoint, as if it had been pretrained so."""
    run = RunFolder(folder)
    run.create(PretrainConfig(**settings))
    run.checkpoints.mkdir()
    save_checkpoint(run.last, made.header, made.tensors)
    return str(run.path)


def test_encoders_by_hand_are_told_apart_by_their_runs(make_checkpoint, tmp_path):
    how = {"imagenet": None, "device": "cpu"}
    runs = tuple(
        a_run(tmp_path / name, make_checkpoint(seed), mask_ratio=ratio, seed=number)
        for seed, (name, ratio, number) in enumerate(
            [("a", 0.5, 0), ("b", 0.75, 0), ("c", 0.75, 1)]
        )
    )
    asked = Compared(swept=runs, vary=("mask_ratio",), **how)
    assert [one.label for one in result_of(open_candidates(asked))] == [
        *("encoder mask_ratio 0.5", "encoder mask_ratio 0.75", "c mask_ratio 0.75"),
        *("untrained", "colour histogram"),
    ]
    with_seeds = replace(asked, vary=("mask_ratio", "seed"))
    found = result_of(open_candidates(with_seeds))
    assert {one.name for one in found[:3]} == {"encoder"}
    beside = Compared(swept=runs[:2], encoders=runs[2:], vary=("mask_ratio",), **how)
    assert result_of(open_candidates(beside))[2].label == "c"
    with pytest.raises(ConfigError, match="different epochs, and these have 400"):
        result_of(open_candidates(replace(asked, vary=("epochs",))))
    with pytest.raises(ConfigError, match="is no setting"):
        result_of(open_candidates(replace(asked, vary=("masks",))))


def test_tiles_at_the_encoders_pixel_size_where_all_know_it(data, compared):
    def rule(mpp):
        pictures = tuple(replace(one, mpp=mpp) for one in data.pictures)
        known = replace(data, pictures=pictures)
        settings = replace(QUICK, tiling=None)
        return tiling_of(PROTOCOLS["linear"], settings, known, compared)

    assert rule(0.25) == Tiling(how="mpp", mpp=1.0)
    assert rule(2.0).how == "whole"  # would be up-sampled
    assert rule(None).how == "whole"


def test_a_folder_is_checked_before_there_are_candidates(data, compared, tmp_path):
    knn = PROTOCOLS["knn"]
    check_folder(knn, data, tmp_path, QUICK)  # nothing is there yet
    result_of(evaluate(knn, data, compared[2:], tmp_path, QUICK))
    before = (tmp_path / "asked.json").read_bytes()
    check_folder(knn, data, tmp_path, QUICK)
    for name, changes in {
        "seed": {"seed": 1},
        "split": {"folds": 2},
        "tiles": {"tiling": TILES},
    }.items():
        with pytest.raises(ConfigError, match=f"another evaluation: .*{name} was"):
            check_folder(knn, data, tmp_path, replace(QUICK, **changes))
    with pytest.raises(ConfigError, match="protocol was knn, now linear"):
        check_folder(PROTOCOLS["linear"], data, tmp_path, QUICK)
    # Where encoders decide on the tiles, those are left to the examination.
    with_size = [replace(one, mpp=1.0) for one in data.pictures]
    sized = replace(data, pictures=tuple(with_size))
    result_of(evaluate(knn, sized, compared[2:], tmp_path / "sized", QUICK))
    check_folder(knn, sized, tmp_path / "sized", replace(QUICK, tiling=None))
    assert (tmp_path / "asked.json").read_bytes() == before


# Resuming, and the same again ------------------------------------------------------


def test_two_evaluations_leave_the_same_tables(data, compared, tmp_path):
    for name in ("one", "two"):
        result_of(evaluate(PROTOCOLS["linear"], data, compared, tmp_path / name, QUICK))
    for file in ("scores.csv", "trials.csv", "predictions.csv", "tests.csv"):
        first = (tmp_path / "one" / file).read_bytes()
        assert first == (tmp_path / "two" / file).read_bytes()
        assert first.count(b"\n") > 2
    first, second = (
        (tmp_path / name / "evaluation.json").read_bytes() for name in ("one", "two")
    )
    assert first == second


def test_what_is_broken_off_goes_on_with_what_is_finished(data, compared, tmp_path):
    out = tmp_path / "out"
    work = evaluate(PROTOCOLS["linear"], data, compared, out, QUICK)
    while len(list(out.glob("trials/*.npz"))) < 4:
        next(work)
    work.close()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("trials/*.npz")}
    events, evaluation = events_of(
        evaluate(PROTOCOLS["linear"], data, compared, out, QUICK)
    )
    notes = [event.text for event in events if isinstance(event, Note)]
    assert f"{len(kept)} of 9 trials were finished before and are kept." in notes
    for name, written in kept.items():
        assert (out / "trials" / name).stat().st_mtime_ns == written
    whole = result_of(
        evaluate(PROTOCOLS["linear"], data, compared, tmp_path / "whole", QUICK)
    )
    for one, other in zip(evaluation.trials, whole.trials, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    loaded = load_evaluation(out)
    assert lines(loaded) == lines(evaluation)
    moves = [event for event in events if isinstance(event, Progress)]
    assert any(event.seconds_left is not None for event in moves)


def test_another_evaluation_in_the_folder_is_refused_and_named(
    data, compared, write_checkpoint, tmp_path
):
    out = tmp_path / "out"
    result_of(evaluate(PROTOCOLS["linear"], data, compared, out, QUICK))

    def refused(words, **changes):
        asked = {
            "protocol": PROTOCOLS["linear"],
            "data": data,
            "candidates": compared,
            "out": out,
            "settings": QUICK,
            **changes,
        }
        with pytest.raises(ConfigError, match=words):
            result_of(evaluate(**asked))

    refused("protocol was linear", protocol=PROTOCOLS["knn"])
    refused("data was", data=data.among(np.arange(len(data) - 1)))
    refused("tiles was", settings=replace(QUICK, tiling=TILES))
    refused("seed was 0, now 1", settings=replace(QUICK, seed=1))
    other = write_checkpoint(seed=5)
    asked = Compared(encoders=(str(other),), imagenet=None, device="cpu")
    refused("last has other weights", candidates=result_of(open_candidates(asked)))
    # One more candidate is no other evaluation.
    more = (*compared, replace(compared[0], name="more", identity="0"))
    result_of(evaluate(PROTOCOLS["linear"], data, more, out, QUICK))
    assert len(json.loads((out / "asked.json").read_text())["candidates"]) == 4


def test_too_few_patients_are_told(data, compared, tmp_path):
    one = data.among(np.flatnonzero(data.patients == "p0"))
    with pytest.raises(NotEnoughDataError):
        result_of(evaluate(PROTOCOLS["linear"], one, compared, tmp_path, QUICK))


# Leaks ---------------------------------------------------------------------------


def neighbours_on(data, candidates, out, **changes):
    return result_of(
        evaluate(PROTOCOLS["knn"], data, candidates, out, QUICK, **changes)
    )


def test_a_torn_patient_and_a_double_are_stamped(data, compared, tmp_path):
    twin = tmp_path / "twin.png"
    shutil.copy(data.pictures[0].path, twin)
    pictures = [
        replace(one, side="test" if one.patient in ("p4", "p5") else "train")
        for one in data.pictures
    ]
    clean = replace(data, pictures=tuple(pictures))
    assert neighbours_on(clean, compared, tmp_path / "clean").leaks == ()
    pictures[3] = replace(pictures[3], patient="p4")  # trains; p4 is tested on
    pictures.append(
        replace(pictures[0], path=twin, patient="p9", side="test")  # its twin trains
    )
    evaluation = neighbours_on(
        replace(data, pictures=tuple(pictures)), compared, tmp_path / "out"
    )
    told = " ".join(evaluation.leaks)
    assert "1 patient in training and test: p4" in told
    assert "twin.png" in told
    assert load_evaluation(tmp_path / "out").leaks == evaluation.leaks
    assert any("pretrained on is not known" in note for note in evaluation.notes)
    unseen = neighbours_on(
        replace(data, pictures=tuple(pictures)),
        compared,
        tmp_path / "fast",
        pixels=False,
    )
    assert "twin.png" not in " ".join(unseen.leaks)
    assert any("Pixels were not compared" in note for note in unseen.notes)
    doubles = "pictures that look the same"
    assert doubles in evaluation.looked_for and doubles in unseen.not_looked_for
    assert "the pretraining of last" in unseen.not_looked_for
    assert load_evaluation(tmp_path / "fast").not_looked_for == unseen.not_looked_for


def test_what_pretraining_saw_is_compared_with_what_is_tested_on(
    data, make_checkpoint, tmp_path
):
    runs = [
        RunFolder(a_run(tmp_path / name, make_checkpoint(), slides=(str(data.root),)))
        for name in ("run", "twin", "other")
    ]
    seen = PictureSets(
        paths=tuple((one.path,) for one in data.pictures[:3]),
        cases=("0", "1", "2"),
        held_out=np.array([False, False, True]),
        views=1,
    )
    for run in runs[:2]:
        seen.save(run.crops_file, data.root)
    replace(seen, held_out=np.ones(3, bool)).save(runs[2].crops_file, data.root)
    asked = Compared(
        encoders=tuple(str(run.path) for run in runs),
        imagenet=None,
        colour=False,
        device="cpu",
    )
    found = result_of(open_candidates(asked))
    evaluation = neighbours_on(data, found, tmp_path / "out", pixels=False)
    told = " ".join(evaluation.leaks)
    assert "pretraining of run, twin and test" in told  # they saw the same
    tested = [leak for leak in evaluation.leaks if "file" in leak and "test" in leak]
    assert [leak.partition(":")[0] for leak in tested] == [
        "2 files in pretraining of run, twin and test"  # of all folds together
    ]
    assert "other" not in told
    assert evaluation.looked_for[-2:] == (
        *("the pretraining of run, twin", "the pretraining of other"),
    )
    assert evaluation.not_looked_for == ("pictures that look the same",)
    assert data.pictures[0].path.name in told
    assert data.pictures[2].path.name not in told  # held out of the training


# From answers to a trial ---------------------------------------------------------


def test_answers_that_are_too_sure_are_softened_by_validation(data, compared):
    lesson = Lesson(
        candidate=compared[0],
        data=data,
        tiling=QUICK.tiling,
        train=np.arange(6),
        val=np.arange(6, 18),
        test=np.arange(18, 24),
        seed=0,
    )
    rng = np.random.default_rng(0)
    wrong = rng.permutation(12) < 4
    truth = np.where(wrong, (data.labels[lesson.val] + 1) % 3, data.labels[lesson.val])
    sure = 20.0 * np.eye(3)
    taught = Taught(
        test=sure[data.labels[lesson.test]],
        test_place=np.arange(6),
        val=sure[truth],
        val_place=np.arange(12),
    )
    teacher = Teacher(name="t", about="", teach=lambda lesson: iter(()))
    trial = trial_of(lesson, taught, setting={}, fold=0, teacher=teacher)
    assert trial.chosen["temperature"] > 2
    sharp = torch.softmax(torch.from_numpy(trial.logits), 1).numpy().max()
    assert trial.probabilities.max() < sharp
