"""The protocols of MPCS: who is on which side, what is told apart, and the tables."""

import csv
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from histomae.data.breakhis import BENIGN, MAGNIFICATIONS, SUBTYPES, read_labelled
from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.pictures import read_picture, scan_sector
from histomae.errors import DataSetError, NotEnoughDataError
from histomae.evaluate.candidates import Compared, open_candidates
from histomae.evaluate.examine import evaluate
from histomae.evaluate.mpcs import (
    LABELS,
    TAUGHT,
    TESTED,
    breakhis_lines,
    dealt,
    magnification_table,
)
from histomae.evaluate.protocols import PROTOCOLS, Settings
from histomae.evaluate.trial_files import load_evaluation
from histomae.evaluate.trials import Trial
from histomae.events import Note, result_of
from histomae.slides.reinhard import restained


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twenty cases of eight subtypes, each once at four magnifications."""
    root = tmp_path_factory.mktemp("tree") / "BreaKHis_v1"
    random = np.random.default_rng(0)
    root.mkdir()
    for case in range(20):
        subtype = list(SUBTYPES)[case % 8]
        for magnification in MAGNIFICATIONS:
            pixels = random.integers(60, 200, (23, 35, 3))
            pixels[..., 0] += 40 * (subtype in BENIGN)
            kind = f"SOB_{'B' if subtype in BENIGN else 'M'}_{subtype}"
            name = f"{kind}-14-{100 + case}-{magnification}-001.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
    return root


@pytest.fixture(scope="module")
def data(tree):
    return read_labelled(tree, "binary")


@pytest.fixture
def compared(write_checkpoint):
    asked = Compared(
        encoders=(str(write_checkpoint()),),
        imagenet=None,
        untrained=False,
        device="cpu",
    )
    return result_of(open_candidates(asked))


def pictures_of(count, labels, patients, read, name="drawn"):
    return LabelledSet(
        name=name,
        root=read.root,
        classes=ClassSet.of([f"c{k}" for k in range(max(labels) + 1)]),
        pictures=tuple(
            LabelledPicture(
                path=read.root / f"{i}.png", label=labels[i], patient=patients[i]
            )
            for i in range(count)
        ),
        read=read,
    )


class Noise:
    """Reads noise, the same for each file."""

    def __init__(self, root, shape):
        self.root, self.shape = root, shape

    def __call__(self, picture):
        random = np.random.default_rng(int(picture.path.stem))
        return random.integers(90, 220, self.shape, np.uint8)


# ---- who is on which side


def test_patients_are_dealt_as_cards_are():
    patients = np.repeat(np.arange(41), 3).astype(str)
    strata = np.repeat(["DC"] * 20 + ["F"] * 10 + ["A"] * 8 + ["PT"] * 3, 3)
    part = dealt(patients, strata, 5, seed=1)
    assert (part.reshape(41, 3) == part.reshape(41, 3)[:, :1]).all()  # whole patients
    sizes = Counter(part[::3].tolist())
    assert set(sizes.values()) == {8, 9}
    for stratum, most in (("DC", 4), ("F", 2), ("A", 2), ("PT", 1)):
        each = Counter(part[::3][strata[::3] == stratum].tolist())
        assert max(each.values()) == most
    np.testing.assert_array_equal(part, dealt(patients, strata, 5, seed=1))
    assert (part != dealt(patients, strata, 5, seed=2)).any()


def test_the_folds_of_breakhis_share_no_patient(data):
    schedule = PROTOCOLS["mpcs-breakhis"].jobs(data, Settings(folds=5))
    magnification = np.array([int(p.path.name.split("-")[3]) for p in data.pictures])
    assert len(schedule.jobs) == 5 * 2 * 4
    for job in schedule.jobs:
        sides = [set(data.patients[rows]) for rows in (job.train, job.val, job.test)]
        assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
        at = int(job.setting[TAUGHT][:-1])
        assert (magnification[job.train] == at).all()
        assert (magnification[job.val] == at).all()
        learned = len(sides[0] | sides[1])
        assert learned == (4 if job.setting[LABELS] == "20 %" else 16)
        if job.setting[LABELS] == "all":
            assert (len(sides[0]), len(sides[1])) == (12, 4)
        parts = {part.setting[TESTED]: part.test for part in job.parts}
        assert list(parts) == ["40x", "100x", "200x", "400x"]
        for name, rows in parts.items():
            assert (magnification[rows] == int(name[:-1])).all()
        assert sorted(np.concatenate(list(parts.values()))) == job.test.tolist()
    tested = [
        job.test
        for job in schedule.jobs
        if job.setting == {LABELS: "all", TAUGHT: "40x"}
    ]
    assert sorted(np.concatenate(tested)) == list(range(len(data)))


def test_what_is_no_breakhis_is_refused(data, tmp_path):
    jobs = PROTOCOLS["mpcs-breakhis"].jobs
    other = pictures_of(4, [0, 1, 0, 1], list("abcd"), Noise(tmp_path, (9, 9, 3)))
    with pytest.raises(DataSetError, match="task binary"):
        jobs(other, Settings())
    few = data.among([i for i, p in enumerate(data.pictures) if p.patient < "104"])
    with pytest.raises(NotEnoughDataError, match="Choose fewer folds"):
        jobs(few, Settings())


# ---- the whole protocol on BreakHis


def test_every_magnification_is_tested_by_what_learned_at_every_one(
    data, compared, tmp_path
):
    protocol, settings = PROTOCOLS["mpcs-breakhis"], Settings(folds=2)
    found = result_of(evaluate(protocol, data, compared, tmp_path, settings))
    names = {trial.candidate for trial in found.trials}
    assert len(found.trials) == len(names) * 2 * 2 * 4 * 4  # folds, labels, m, m'
    table = magnification_table(found, "accuracy")
    ours = table["last", "all"]
    assert len(ours) == 16
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right, patients = Counter(), {}
    for row in rows:
        if row["candidate"] != "last" or row[LABELS] != "all":
            continue
        if (row[TAUGHT], row[TESTED]) == ("40x", "200x"):
            assert "-200-" in row["picture"]
            hit = row["truth"] == row["predicted"]
            right[row["fold"], hit] += 1
            patients.setdefault((row["fold"], row["patient"]), []).append(hit)
    ila = [right[f, True] / (right[f, True] + right[f, False]) for f in ("0", "1")]
    assert ours["40x", "200x"][0] == pytest.approx(np.mean(ila))
    pla = [
        np.mean([np.mean(hits) for (fold, _), hits in patients.items() if fold == f])
        for f in ("0", "1")
    ]
    of_patients = magnification_table(found, "patient-level accuracy")
    assert of_patients["last", "all"]["40x", "200x"][0] == pytest.approx(np.mean(pla))
    told = "\n".join(breakhis_lines(found))
    assert "ILA, taught and tested at" in told
    assert "PLA, taught and tested at" in told
    assert "ILA of last, labels: 20 %: taught at, tested at" in told
    assert "MPCS-OP, EfficientNet-b2, 20 % of the labels" in told
    assert "88.89 ± 2.99" in told
    assert len(load_evaluation(tmp_path).trials) == len(found.trials)
    events = list(evaluate(protocol, data, compared, tmp_path, settings))
    kept = [e.text for e in events if isinstance(e, Note) and "are kept" in e.text]
    assert kept[0].startswith(f"{len(names) * 16} of {len(names) * 16} trials")


def test_a_part_of_a_trial_keeps_its_patches_together():
    random = np.random.default_rng(0)
    trial = Trial(
        candidate="a",
        setting={"x": 1.0},
        fold=0,
        tested=np.array([3, 5, 8]),
        probabilities=random.random((3, 2)),
        patch_picture=np.array([0, 0, 1, 2, 2, 2]),
        patch_probabilities=random.random((6, 2)),
    )
    part = trial.of(np.array([3, 8]), {"y": "b"})
    assert part.setting == {"x": 1.0, "y": "b"}
    assert part.tested.tolist() == [3, 8]
    np.testing.assert_array_equal(part.probabilities, trial.probabilities[[0, 2]])
    assert part.patch_picture.tolist() == [0, 0, 1, 1, 1]
    expected = trial.patch_probabilities[[0, 1, 3, 4, 5]]
    np.testing.assert_array_equal(part.patch_probabilities, expected)


# ---- BACH, UCSB, BUSI


def test_bach_has_35_patches_of_one_staining_and_nested_labels(tmp_path):
    read = Noise(tmp_path, (1536, 2048, 3))
    labels = [i // 100 for i in range(400)]
    data = pictures_of(400, labels, [str(i) for i in range(400)], read, "BACH")
    protocol = PROTOCOLS["mpcs-bach"]
    stained = protocol.prepare(data)
    picture = data.pictures[3]
    pixels = stained.read(picture)
    np.testing.assert_array_equal(pixels, restained(read(picture)))
    assert protocol.tiling.cut(pixels, 32).shape == (35, 32, 32, 3)
    settings = protocol.settle(Settings(draws=1))
    jobs = protocol.jobs(data, settings).jobs
    counts = {}
    for job in jobs:
        assert Counter(data.labels[job.test].tolist()) == dict.fromkeys(range(4), 20)
        assert Counter(data.labels[job.val].tolist()) == dict.fromkeys(range(4), 20)
        each = set(Counter(data.labels[job.train].tolist()).values())
        counts.setdefault(job.setting["fraction"], set()).update(each)
        if job.fold == 0:
            counts.setdefault("rows", []).append(set(job.train.tolist()))
    nested = counts.pop("rows")
    assert all(a < b for a, b in pairwise(nested))
    wanted = {0.05: 3, 0.1: 6, 0.2: 12, 0.4: 24, 0.6: 36, 0.8: 48, 1.0: 60}
    assert counts == {fraction: {each} for fraction, each in wanted.items()}


def test_of_ucsb_each_group_is_left_out_once(compared, tmp_path):
    labels = [0, 1, 0, 1, 0, 1, 0, 1]
    data = pictures_of(8, labels, list("aabbccdd"), Noise(tmp_path, (96, 64, 3)))
    protocol = PROTOCOLS["mpcs-bcc"]
    jobs = protocol.jobs(data, Settings()).jobs
    assert [set(data.patients[job.test]) for job in jobs] == [{c} for c in "abcd"]
    for job in jobs:
        sides = [set(data.patients[rows]) for rows in (job.train, job.val, job.test)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 4
    asked = Settings(
        tiling=type(protocol.tiling)(how="patches", patch_px=32, votes=True)
    )
    found = result_of(evaluate(protocol, data, compared, tmp_path / "out", asked))
    trial = found.trials[0]
    assert np.bincount(trial.patch_picture).tolist() == [6, 6]
    alone = pictures_of(2, [0, 1], ["a", "a"], Noise(tmp_path, (96, 64, 3)))
    with pytest.raises(NotEnoughDataError, match="none can be left out"):
        protocol.jobs(alone, Settings())


def test_busi_is_cropped_to_the_scan_and_stays_upright(tmp_path):
    pixels = np.zeros((50, 90, 3), np.uint8)
    pixels[10:40, 20:80] = np.random.default_rng(0).integers(60, 200, (30, 60, 1))
    Image.fromarray(pixels).save(tmp_path / "0.png")

    def read(picture):
        return read_picture(picture.path)

    read.root = tmp_path
    data = pictures_of(1, [0], ["a"], read)
    protocol = PROTOCOLS["busi"]
    found = protocol.prepare(data).read(data.pictures[0])
    np.testing.assert_array_equal(found, scan_sector(pixels))
    assert protocol.settle(Settings()).fine_tuning.flips == "horizontal"
    assert protocol.tiling.how == "fit"
