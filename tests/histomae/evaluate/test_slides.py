"""Judging classifiers of slides: patients apart, scores, words, the cohort."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from histomae.data.bags import Bag
from histomae.data.slide_labels import SlideLabels
from histomae.errors import FeatureError, LabelError, NotEnoughDataError
from histomae.evaluate.slide_cohort import read_cohort, write_scores
from histomae.evaluate.slides import (
    ANCHORS,
    CLASS_TOKEN,
    FINE_TUNED,
    MEAN,
    MIL,
    classifiers,
    judge_slides,
    lines,
    score_slides,
)
from histomae.events import Note, Progress, result_of
from histomae.exchange.features import read_features, write_features
from histomae.learn.slide_classes import SlideFit
from histomae.models.feature_spec import FeatureSpec
from histomae.models.pama import Pama, PamaSpec
from tests.listening import events_of

TILES = FeatureSpec(encoder="drawn", width=4)


def bag(name, level, spec=TILES):
    random = np.random.default_rng(int(name[1:]))
    cells = np.stack(np.divmod(np.arange(20), 5), 1)
    values = random.standard_normal((20, 4)) + level
    return Bag(slide=name, features=values, cells=cells, spec=spec)


@pytest.fixture
def labels():
    """Twelve slides of six patients, two classes."""
    names = tuple(f"s{number}" for number in range(12))
    patients = tuple(f"p{number // 2}" for number in range(12))
    return SlideLabels(names, patients, np.arange(12) // 2 % 2, ("low", "high"))


@pytest.fixture
def bags(labels):
    levels = zip(labels.slides, labels.labels, strict=True)
    return {name: bag(name, 4.0 * level) for name, level in levels}


class Watcher:
    """A classifier that knows the answers, and keeps the sides that it was given."""

    def __init__(self, labels, wrong=()):
        rows = zip(labels.slides, labels.labels, strict=True)
        self.answers = {name: int(label) ^ (name in wrong) for name, label in rows}
        self.sides = []

    def __call__(self, sides):
        self.sides.append(sides)
        yield Note("at work")
        return np.eye(sides.num_classes)[[self.answers[b.slide] for b in sides.test]]


def judged(*given, **how):
    """Return the scores and what was said."""
    said, found = events_of(judge_slides(*given, **how))
    notes = [event.text for event in said if isinstance(event, Note)]
    return found, [text for text in notes if text != "at work"], said


def names(bags):
    return {bag.slide for bag in bags}


def test_each_slide_is_judged_once_by_what_saw_other_patients(bags, labels):
    watcher = Watcher(labels, wrong=("s3",))
    scores, notes, said = judged(bags, labels, {"all": watcher}, folds=3)
    assert len(watcher.sides) == 3
    patient = dict(zip(labels.slides, labels.patients, strict=True))
    for sides in watcher.sides:
        assert names(sides.train) | names(sides.test) == set(labels.slides)
        assert not {patient[n] for n in names(sides.train)} & {
            patient[n] for n in names(sides.test)
        }
        for one, label in zip(sides.train, sides.labels, strict=True):
            assert label == labels.labels[labels.slides.index(one.slide)]
    tested = [one.slide for sides in watcher.sides for one in sides.test]
    assert sorted(tested) == sorted(labels.slides)
    assert scores["all"].accuracy.value == pytest.approx(11 / 12)
    np.testing.assert_array_equal(scores["all"].confusion, [[6, 0], [1, 5]])
    assert (scores["all"].slides, scores["all"].patients) == (12, 6)
    assert notes == []
    moved = [event.done for event in said if isinstance(event, Progress)]
    assert moved == [0, 1, 2]


def test_the_split_of_the_table_is_kept(bags, labels):
    is_test = np.arange(12) >= 8
    watcher = Watcher(labels)
    scores, _, _ = judged(bags, replace(labels, is_test=is_test), {"all": watcher})
    (sides,) = watcher.sides
    assert names(sides.test) == {"s8", "s9", "s10", "s11"}
    assert scores["all"].slides == 4


def test_regions_of_a_slide_are_bags_and_stay_on_one_side(bags, labels):
    regions = {
        one.name: one
        for each in bags.values()
        for region in ("a", "b")
        for one in [replace(each, region=region)]
    }
    named = {"s3 · b": 1 - labels.labels[3]}  # a region of another class than its slide
    more = SlideLabels(
        (*labels.slides, *named),
        (*labels.patients, "p1"),
        np.array([*labels.labels, *named.values()]),
        labels.class_names,
    )
    sides = []

    def watch(given):
        sides.append(given)
        yield Note("at work")
        return np.eye(2)[np.zeros(len(given.test), int)]

    seen = ["s0", "s3"]
    scores, notes, _ = judged(
        regions, more, {"all": watch}, folds=3, pretrained_on=seen
    )
    assert (scores["all"].bags, scores["all"].slides) == (24, 12)
    assert scores["all"].patients == 6
    assert lines(scores)[0] == "24 bags of 12 slides of 6 patients"
    assert notes[0].startswith("PAMA was pretrained on 2 of the 12 slides")
    patient = dict(zip(labels.slides, labels.patients, strict=True))
    tested = []
    for given in sides:
        both = [
            {patient[bag.slide] for bag in each} for each in (given.train, given.test)
        ]
        assert not both[0] & both[1]
        tested += [bag.name for bag in given.test]
        for one, label in zip(given.train, given.labels, strict=True):
            own = labels.labels[labels.slides.index(one.slide)]
            assert label == named.get(one.name, own)
    assert sorted(tested) == sorted(regions)


def test_slides_that_were_seen_are_told(bags, labels):
    watcher, is_test = Watcher(labels), np.arange(12) >= 8
    split = replace(labels, is_test=is_test)
    seen = ["s0", "s1", "s9"]
    _, notes, _ = judged(bags, split, {"all": watcher}, pretrained_on=seen)
    (note,) = notes
    assert note.startswith("PAMA was pretrained on 1 of the 4 slides it is judged on")
    _, notes, _ = judged(bags, split, {"all": watcher}, pretrained_on=seen[:2])
    assert notes == []


def test_a_class_of_one_patient_is_learned_from_and_not_judged(bags, labels):
    third = labels.labels.copy()
    third[10:] = 2
    more = replace(labels, labels=third, class_names=("low", "high", "rare"))
    watcher = Watcher(more)
    scores, notes, _ = judged(bags, more, {"all": watcher}, folds=2)
    assert scores["all"].slides == 10
    assert notes[0].startswith("2 bags are of classes with one patient only")
    assert all({"s10", "s11"} <= names(sides.train) for sides in watcher.sides)


def test_what_cannot_be_judged_is_refused(bags, labels):
    one = replace(labels, patients=("p",) * 12)
    with pytest.raises(NotEnoughDataError, match="slides of two patients"):
        judged(bags, one, {})
    lacking = replace(labels, is_test=labels.labels == 1)
    with pytest.raises(NotEnoughDataError, match="No slide of high is left"):
        judged(bags, lacking, {})
    with pytest.raises(LabelError, match="both trained on"):
        replace(labels, is_test=np.arange(12) % 2 == 1)
    finer = {**bags, "s3": bag("s3", 0, replace(TILES, mpp=0.25))}
    with pytest.raises(FeatureError, match="s3 has other tiles than s0"):
        judged(finer, labels, {})


def test_all_classifiers_find_what_is_there(bags, labels):
    generator = torch.Generator().manual_seed(0)
    spec = PamaSpec(4, 16, 2, 2, 8, 1, 2, tiles_per_anchor=5)
    pama = Pama(spec, generator=generator).encoder.eval()
    before = {name: value.clone() for name, value in pama.state_dict().items()}
    settings = SlideFit(epochs=6, warmup_epochs=1, base_lr=0.2, device="cpu")
    compared = classifiers(pama, settings)
    assert list(compared) == [MEAN, MIL, CLASS_TOKEN, ANCHORS, FINE_TUNED]
    assert list(classifiers()) == [MEAN, MIL]
    scores, _, _ = judged(bags, labels, compared, folds=2)
    for name, score in scores.items():
        assert score.auc.value >= 0.9, name
    assert all(torch.equal(before[n], v) for n, v in pama.state_dict().items())


class TestScores:
    def test_of_whole_slides(self):
        true = np.array([0, 0, 1, 1])
        probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9]])
        score = score_slides(true, probabilities, np.arange(4))
        assert score.accuracy.value == 0.75
        assert score.macro_f1.value == pytest.approx((2 / 3 + 4 / 5) / 2)
        assert score.auc.value == 1
        np.testing.assert_array_equal(score.confusion, [[1, 1], [0, 2]])
        assert score.accuracy.low < 0.75 < score.accuracy.high

    def test_of_one_patient_there_is_no_interval(self):
        score = score_slides(np.array([0, 1]), np.eye(2), np.zeros(2))
        assert str(score.auc) == "1.00"

    @pytest.mark.parametrize(
        ("right", "verdict"),
        [
            (12, "PAMA earns its keep"),
            (8, "PAMA scores higher, but"),
            (5, "PAMA does not earn its keep"),
        ],
    )
    def test_the_verdict(self, right, verdict):
        """Against chance; of pairs of slides ``right`` of 12 are told apart."""
        true = np.arange(24) % 2
        told = np.arange(24) // 2 < right
        certain = np.where(told, true, 1 - true)
        both = {
            MEAN: score_slides(true, np.full((24, 2), 0.5), np.arange(24)),
            ANCHORS: score_slides(true, np.eye(2)[certain], np.arange(24)),
        }
        first, mean, anchors, last = lines(both)
        assert first == "24 slides of 24 patients"
        assert mean.startswith("mean of tiles     AUC 0.50 (0.50 to 0.50), accuracy ")
        assert anchors.startswith(f"PAMA, anchors     AUC {right / 12:.2f} (")
        assert last.startswith(verdict)
        assert len(lines({MEAN: both[MEAN]})) == 2

    def test_as_json(self, labels, tmp_path):
        score = score_slides(np.array([0, 1]), np.eye(2), np.zeros(2))
        write_scores(tmp_path / "s.json", {MEAN: score}, labels, seed=3)
        found = json.loads((tmp_path / "s.json").read_text("utf-8"))
        assert (found["seed"], found["classes"]) == (3, ["low", "high"])
        assert found["scores"][MEAN]["auc"] == {"value": 1, "low": None, "high": None}
        assert found["scores"][MEAN]["confusion"] == [[1, 0], [0, 1]]


class TestCohort:
    @pytest.fixture
    def folder(self, make_features, tmp_path):
        for number in range(4):
            make_features(tmp_path / "h5" / f"s{number}.h5", tiles=12, seed=number)
        return tmp_path / "h5"

    def table(self, folder, *rows):
        path = folder.parent / "labels.csv"
        path.write_text("\n".join(("slide,patient,label", *rows)))
        return path

    def test_labelled_slides_are_read(self, folder):
        table = self.table(folder, "s0.svs,a,x", "s2,b,y", "s9,c,y")
        said, (bags, labels) = events_of(read_cohort([folder], table))
        assert list(bags) == ["s0", "s2"]
        assert labels.slides == ("s0", "s2")
        assert labels.notes == ("s9 has a label and no features, and is left out.",)
        notes = [event.text for event in said if isinstance(event, Note)]
        assert notes == ["2 bags have features and no label: left out."]

    def test_regions_of_one_slide_are_no_doubles(self, folder):
        for region in ("tumour", "margin"):
            found = read_features(folder / "s1.h5")
            header = replace(found.header, region=region)
            write_features(folder / f"s1.{region}.h5", replace(found, header=header))
        (folder / "s1.h5").unlink()
        table = self.table(folder, "s0,a,x", "s1.svs,b,y", "s1.svs · margin,b,x")
        bags, labels = result_of(read_cohort([folder], table))
        assert set(bags) == {"s0", "s1 · tumour", "s1 · margin"}
        told = dict(zip(labels.slides, labels.labels.tolist(), strict=True))
        assert told == {"s0": 0, "s1 · tumour": 1, "s1 · margin": 0}
        assert labels.patients == ("a", "b", "b")
        (folder / "again.h5").write_bytes((folder / "s1.margin.h5").read_bytes())
        with pytest.raises(FeatureError, match="are both of s1 · margin"):
            result_of(read_cohort([folder], table))

    def test_what_does_not_fit_is_refused(self, folder, make_features, tmp_path):
        with pytest.raises(LabelError, match="names x and others, none of which"):
            result_of(read_cohort([folder], self.table(folder, "x,a,x", "y,b,y")))
        table = self.table(folder, "s0,a,x", "s1,b,y")
        twice = make_features(tmp_path / "more" / "s1.h5", tiles=12)
        with pytest.raises(FeatureError, match="are both of s1"):
            result_of(read_cohort([folder, twice], table))
        (folder / "s1.h5").write_bytes((folder / "s1.h5").read_bytes()[:900])
        with pytest.raises(FeatureError, match="s1"):
            result_of(read_cohort([folder], table))
