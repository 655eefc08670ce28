"""Splits by patient: nobody on two sides, the same again from a file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.split_files import (
    FRACTIONS,
    Split,
    hold_out,
    nested_fractions,
    official_split,
    split_by_patient,
)
from histomae.data.splits import stratified_share
from histomae.errors import (
    ConfigError,
    DataSetError,
    HistomaeError,
    LabelError,
    NotEnoughDataError,
)

ROOT = Path("/data")


def made(labels, patients, sides=None):
    """Return a data set of pictures that no file holds."""
    sides = [""] * len(labels) if sides is None else sides
    pictures = tuple(
        LabelledPicture(
            path=ROOT / f"{n:04}.png", label=int(label), patient=str(patient), side=side
        )
        for n, (label, patient, side) in enumerate(
            zip(labels, patients, sides, strict=True)
        )
    )
    classes = ClassSet.of(f"class {k}" for k in range(max(labels) + 1))
    return LabelledSet(
        name="Made", root=ROOT, classes=classes, pictures=pictures, read=None
    )


@pytest.fixture
def twenty_patients():
    patients = np.repeat(np.arange(20), 10)
    return made(patients % 3, patients)


def sides_of(fold):
    return {side: set(rows.tolist()) for side, rows in fold.sides}


def check_apart(data, fold):
    rows = np.concatenate([fold.train, fold.val, fold.test])
    assert len(set(rows.tolist())) == len(rows)
    patients = [set(data.patients[rows]) for _, rows in fold.sides]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]


class TestByPatient:
    def test_every_picture_is_tested_once_and_no_patient_is_torn(self, twenty_patients):
        split = split_by_patient(twenty_patients, k=5, seed=3)
        assert (split.kind, split.seed, len(split.folds)) == ("patient", 3, 5)
        for fold in split.folds:
            check_apart(twenty_patients, fold)
            assert len(fold.train) + len(fold.val) + len(fold.test) == 200
            assert 0.1 < len(fold.val) / (len(fold.train) + len(fold.val)) < 0.3
            for _, rows in fold.sides:
                assert set(twenty_patients.labels[rows]) == {0, 1, 2}
        tested = np.concatenate([fold.test for fold in split.folds])
        assert sorted(tested.tolist()) == list(range(200))

    def test_the_seed_decides(self, twenty_patients):
        one, same, other = (
            split_by_patient(twenty_patients, seed=seed).hash for seed in (1, 1, 2)
        )
        assert one == same != other

    def test_validation_may_be_left_out(self, twenty_patients):
        for fold in split_by_patient(twenty_patients, val_share=0).folds:
            assert fold.val.dtype == np.int64
            assert len(fold.val) == 0
            assert len(fold.train) + len(fold.test) == 200

    def test_a_class_with_one_patient_is_never_tested_and_is_told(self):
        patients = np.repeat(np.arange(13), 4)
        labels = np.where(patients == 12, 2, patients % 2)
        split = split_by_patient(made(labels, patients))
        assert split.notes == (
            "class 2 has one patient only: trained on, never tested.",
        )
        for fold in split.folds:
            assert set(range(48, 52)) <= set(fold.train.tolist())

    def test_fewer_folds_are_told(self):
        patients = np.repeat(np.arange(6), 4)
        split = split_by_patient(made(patients % 2, patients), k=5)
        assert len(split.folds) == 3
        assert "3 folds, not 5" in split.notes[0]

    @pytest.mark.parametrize("way", [split_by_patient, hold_out])
    def test_one_patient_a_class_cannot_be_split(self, way):
        with pytest.raises(
            NotEnoughDataError,
            match=r"class 0, class 1 have fewer than 2 patients.*Add pictures",
        ):
            way(made([0, 0, 1, 1], ["a", "a", "b", "b"]))

    def test_two_patients_a_class_leave_nothing_to_validate(self):
        data = made([0, 0, 1, 1], ["a", "b", "c", "d"])
        with pytest.raises(NotEnoughDataError, match="split without validation"):
            split_by_patient(data)
        assert len(split_by_patient(data, val_share=0).folds) == 2

    def test_shares_are_checked(self, twenty_patients):
        with pytest.raises(ConfigError, match="val_share: 1 is not"):
            split_by_patient(twenty_patients, val_share=1)
        with pytest.raises(ConfigError, match="test_share: 0 is not"):
            hold_out(twenty_patients, test_share=0)


@st.composite
def cohorts(draw):
    patients = draw(st.lists(st.integers(0, 15), min_size=2, max_size=80))
    pure = draw(st.booleans())
    labels = [p % 3 if pure else draw(st.integers(0, 2)) for p in patients]
    return made(labels, patients)


@settings(max_examples=15)
@given(cohorts(), st.integers(0, 9), st.sampled_from([0, 0.1, 0.25]))
def test_whatever_the_cohort_nobody_is_on_two_sides(data, seed, val_share):
    for way in (split_by_patient, hold_out):
        try:
            split = way(data, val_share=val_share, seed=seed)
        except HistomaeError:
            continue
        for fold in split.folds:
            check_apart(data, fold)
            assert len(fold.test)
            assert bool(len(fold.val)) == bool(val_share)
            trained = set(data.labels[fold.train])
            assert set(data.labels[fold.val]) <= trained


def test_a_hold_out_is_stratified(twenty_patients):
    (fold,) = hold_out(twenty_patients, test_share=0.3, val_share=0.2, seed=1).folds
    check_apart(twenty_patients, fold)
    for label, total in enumerate(np.bincount(twenty_patients.labels)):
        share = np.sum(twenty_patients.labels[fold.test] == label) / total
        assert share == pytest.approx(0.3, abs=0.1)


def test_a_share_holds_every_class_out_even_if_it_is_small():
    groups = np.repeat(np.arange(4), 10)
    held = stratified_share(groups % 2, groups, 0.05)
    assert set((groups % 2)[held]) == set((groups % 2)[~held]) == {0, 1}


class TestOfficial:
    def test_it_is_honoured(self):
        sides = ["train", "test", "val", "train", "test"]
        data = made([0, 0, 1, 1, 1], "abcde", sides)
        (fold,) = official_split(data).folds
        assert sides_of(fold) == {"train": {0, 3}, "val": {2}, "test": {1, 4}}

    def test_validation_is_carved_out_of_train_where_it_has_none(self):
        patients = np.arange(30)
        sides = ["train"] * 20 + ["test"] * 10
        data = made(patients % 2, patients, sides)
        (fold,) = official_split(data, val_share=0.2).folds
        assert fold.test.tolist() == list(range(20, 30))
        assert len(fold.val) == 4
        assert set(fold.val.tolist()) < set(range(20))

    def test_none_is_refused(self, twenty_patients):
        with pytest.raises(DataSetError, match="no official train and test side"):
            official_split(twenty_patients)

    def test_patients_that_it_tears_are_told(self, tmp_path):
        data = made([0, 1, 0, 1], "abba", ["train", "train", "val", "test"])
        split = official_split(data)
        assert split.notes == (
            "The official split has one patient on the sides train and val: b.",
            "The official split has one patient on the sides train and test: a.",
        )
        split.save(tmp_path / "split.json")
        assert Split.load(tmp_path / "split.json", data).notes == split.notes


class TestFile:
    @pytest.fixture
    def written(self, twenty_patients, tmp_path):
        split = split_by_patient(twenty_patients, seed=2)
        split.save(tmp_path / "split.json")
        return split, tmp_path / "split.json"

    def test_it_is_read_back(self, written, twenty_patients):
        split, path = written
        again = Split.load(path, twenty_patients)
        assert (again.hash, again.kind, again.seed) == (split.hash, "patient", 2)
        for one, other in zip(split.folds, again.folds, strict=True):
            assert sides_of(one) == sides_of(other)
            assert all(rows.dtype == np.int64 for _, rows in other.sides)

    def test_another_order_of_the_data_is_found_again(self, written, twenty_patients):
        split, path = written
        shuffled = twenty_patients.among(np.random.default_rng(0).permutation(200))
        again = Split.load(path, shuffled)
        assert again.hash == split.hash
        names = np.array(twenty_patients.names), np.array(shuffled.names)
        for one, other in zip(split.folds, again.folds, strict=True):
            assert set(names[0][one.test]) == set(names[1][other.test])

    def test_other_pictures_are_named(self, written, twenty_patients):
        _, path = written
        with pytest.raises(DataSetError, match=r"0199.png is missing from the data"):
            Split.load(path, twenty_patients.among(range(199)))
        more = replace(
            twenty_patients,
            pictures=(
                *twenty_patients.pictures,
                LabelledPicture(path=ROOT / "new.png", label=0, patient="x"),
            ),
        )
        with pytest.raises(DataSetError, match=r"new.png is not in the split.*anew"):
            Split.load(path, more)

    def test_a_changed_file_is_refused(self, written, twenty_patients):
        _, path = written
        told = json.loads(path.read_text())
        told["folds"][0]["train"].append(told["folds"][0]["test"].pop())
        path.write_text(json.dumps(told))
        with pytest.raises(DataSetError, match="was changed after it was written"):
            Split.load(path, twenty_patients)

    def test_a_patient_that_is_torn_by_now_is_refused(self, written, twenty_patients):
        _, path = written
        one = [replace(p, patient="same") for p in twenty_patients.pictures]
        with pytest.raises(LabelError, match="same is both trained on and tested on"):
            Split.load(path, replace(twenty_patients, pictures=tuple(one)))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"histomae_split": 1}'])
    def test_another_file_is_refused(self, text, twenty_patients, tmp_path):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(DataSetError, match="is no split"):
            Split.load(path, twenty_patients)
        with pytest.raises(DataSetError, match="is no split"):
            Split.load(tmp_path / "absent.json", twenty_patients)

    def test_a_later_version_is_refused(self, written, twenty_patients):
        _, path = written
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"histomae_split": 9})
        )
        with pytest.raises(DataSetError, match="version 9"):
            Split.load(path, twenty_patients)


class TestFractions:
    labels = np.repeat([0, 1, 2], [100, 60, 7])
    patients = np.arange(167) // 5

    def test_they_are_nested_and_stratified(self):
        drawn = nested_fractions(self.labels, self.patients, seed=0)
        assert tuple(drawn) == FRACTIONS
        before = set()
        for fraction, rows in drawn.items():
            assert before <= set(rows.tolist())
            before = set(rows.tolist())
            counts = np.bincount(self.labels[rows], minlength=3).tolist()
            assert counts == [max(1, round(fraction * total)) for total in (100, 60, 7)]
        assert before == set(range(167))

    def test_few_labels_are_those_of_few_patients(self):
        rows = nested_fractions(self.labels, self.patients, [0.2], seed=0)[0.2]
        # 20 + 12 + 1 rows, five a patient.
        assert len(np.unique(self.patients[rows])) <= 4 + 3 + 1

    def test_draws_differ_by_seed_and_are_the_same_by_it(self):
        one, same, other = (
            nested_fractions(self.labels, self.patients, [0.1], seed=seed)[0.1].tolist()
            for seed in (1, 1, 2)
        )
        assert one == same != other

    @pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
    def test_what_is_no_share_is_refused(self, fraction):
        with pytest.raises(ConfigError, match="above 0, up to 1"):
            nested_fractions(self.labels, self.patients, [fraction], seed=0)
