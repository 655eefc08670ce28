"""Tests of histomae.evaluate.trial_files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.errors import DataSetError, RunError
from histomae.evaluate.trial_files import (
    load_evaluation,
    load_trial,
    save_evaluation,
    save_trial,
    trial_path,
)
from histomae.evaluate.trials import Evaluation, Trial


def trial(**changes):
    fields = {
        "candidate": "ours",
        "setting": {"fraction": 0.05, "draw": 1},
        "fold": 2,
        "tested": np.array([1, 0]),
        "probabilities": np.array([[0.25, 0.75], [0.5, 0.5]]),
        "logits": np.array([[0.0, 1.0], [-np.inf, 0.0]]),
        "patch_picture": np.array([0, 0, 1]),
        "patch_probabilities": np.array([[0.2, 0.8], [0.3, 0.7], [0.5, 0.5]]),
        "trained": 7,
        "chosen": {"C": 0.1},
    }
    return Trial(**{**fields, **changes})


@pytest.fixture
def evaluation(tmp_path):
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    (tmp_path / "set" / "in").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "set" / "in" / "a.png")
    pictures = (
        LabelledPicture(
            path=tmp_path / "set" / "in" / "a.png", label=1, patient="p", mpp=0.5
        ),
        LabelledPicture(path=tmp_path / "b.h5", label=0, patient="q", row=3),
    )
    data = LabelledSet(
        name="drawn",
        root=tmp_path / "set",
        classes=ClassSet.of(["benign", "malignant"]),
        pictures=pictures,
        read=lambda picture: pixels,
    )
    return Evaluation(
        protocol="linear",
        data=data,
        trials=(trial(), trial(fold=3, logits=None)),
        facts={"seed": 0, "candidates": {"ours": {"kind": "encoder"}}},
        leaks=("one picture is there twice.",),
        notes=("few patients",),
        embedding={"ours": np.eye(2, dtype=np.float32)},
        published=({"paper": "MPCS", "value": 98.1},),
    )


def saved(folder, evaluation):
    files = []
    for number, one in enumerate(evaluation.trials):
        files.append(folder / "trials" / f"{number}.npz")
        save_trial(files[-1], one)
    save_evaluation(folder, evaluation, files)
    return folder


def test_a_trial_comes_back_as_it_was(tmp_path):
    save_trial(tmp_path / "a.npz", trial())
    found, wanted = vars(load_trial(tmp_path / "a.npz")), vars(trial())
    for name, value in wanted.items():
        np.testing.assert_equal(found[name], value)
    save_trial(tmp_path / "b.npz", trial(logits=None, patch_picture=None))
    assert load_trial(tmp_path / "b.npz").logits is None


def test_an_evaluation_comes_back_as_it_was(tmp_path, evaluation):
    found = load_evaluation(saved(tmp_path / "out", evaluation))
    assert found.data.pictures == evaluation.data.pictures
    assert found.data.classes == evaluation.data.classes
    for name in ("protocol", "facts", "leaks", "notes", "published"):
        assert getattr(found, name) == getattr(evaluation, name)
    assert [one.fold for one in found.trials] == [2, 3]
    np.testing.assert_array_equal(found.embedding["ours"], np.eye(2))
    first, other = found.data.pictures
    np.testing.assert_array_equal(found.data.read(first), evaluation.data.read(first))
    with pytest.raises(DataSetError, match="container"):
        found.data.read(other)


def test_two_that_are_equal_leave_the_same_bytes(tmp_path, evaluation):
    folders = [saved(tmp_path / name, evaluation) for name in ("one", "two")]
    names = [sorted(p.name for p in f.rglob("*.*")) for f in folders]
    assert names[0] == names[1]
    for path in folders[0].rglob("*.*"):
        twin = folders[1] / path.relative_to(folders[0])
        assert path.read_bytes() == twin.read_bytes()


@pytest.mark.parametrize("cut", [0, 40])
def test_a_damaged_trial_is_named(tmp_path, cut):
    path = tmp_path / "a.npz"
    save_trial(path, trial())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RunError, match=r"a\.npz"):
        load_trial(path)


def test_a_folder_without_an_evaluation_is_named(tmp_path):
    with pytest.raises(RunError, match="no finished evaluation"):
        load_evaluation(tmp_path)


def test_the_name_of_a_trial_tells_it_from_others():
    def path(**changes):
        fields = {
            "candidate": "runs/first",
            "identity": "0123",
            "setting": {"draw": 1},
            "fold": 0,
            "plan": "abcd",
        }
        return trial_path(Path("out"), **{**fields, **changes})

    others = [
        path(),
        path(identity="4567"),
        path(setting={"draw": 2}),
        path(fold=1),
        path(plan="efgh"),
    ]
    assert len(set(others)) == len(others)
    assert path() == path()
    assert "runs-first_draw-1_fold-0" in path().name
