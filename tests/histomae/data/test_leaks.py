"""Leaks that are put there are found; where there is none, none is."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.layouts import read_file
from histomae.data.leaks import find_leaks, seen_by
from histomae.data.picture_sets import PictureSets
from histomae.data.split_files import Fold
from histomae.errors import RunError
from histomae.events import Progress, result_of
from histomae.slides.crops import CropManifest, SlideEntry
from tests.listening import events_of

FOLD = Fold(np.arange(4), np.arange(4, 6), np.arange(6, 9))


def noise(seed):
    """Return a coarse pattern that no other seed has, uint8 (60, 60, 3)."""
    small = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), np.uint8)
    return small.repeat(3, 0).repeat(3, 1)


@pytest.fixture
def data(tmp_path):
    """Nine pictures of nine patients and slides, each somewhere on its slide."""
    pictures = []
    for number in range(9):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(number)).save(path)
        pictures.append(
            LabelledPicture(
                path=path,
                label=number % 2,
                patient=f"p{number}",
                slide=f"s{number}",
                box_l0=(100.0, 100.0, 200.0, 200.0),
            )
        )
    return LabelledSet(
        name="Nine",
        root=tmp_path / "pictures",
        classes=ClassSet.of(["a", "b"]),
        pictures=tuple(pictures),
        read=read_file,
    )


def changed(data, row, **changes):
    pictures = list(data.pictures)
    pictures[row] = replace(pictures[row], **changes)
    return replace(data, pictures=tuple(pictures))


def manifest(path, slide, xy_l0, held_out=False):
    """Write the crops of a run: one, 100 px at 0.5 µm/px of a slide of 0.25."""
    entry = SlideEntry(f"/slides/{slide}.svs", "id", 0.25, 0.25, "file")
    other = SlideEntry("/slides/other.svs", "other", 0.5, 0.5, "file")
    CropManifest(
        slides=(entry, other),
        slide_index=np.array([0, 1]),
        xy_l0=np.array([xy_l0, (0, 0)], float),
        held_out=np.array([held_out, False]),
        crop_px=100,
        mpp=0.5,
        region_xy_l0=np.zeros((2, 2)),
        region_px=1024,
    ).save(path)
    return path


def test_where_there_is_none_none_is_found(data):
    events, found = events_of(find_leaks(data, FOLD))
    assert found == ()
    assert any(isinstance(event, Progress) for event in events)


def test_a_patient_on_two_sides(data):
    assert result_of(find_leaks(changed(data, 7, patient="p1"), FOLD)) == (
        "1 patient in training and test: p1.",
    )


def test_files_of_one_name_are_not_one_file(data):
    other = data.root / "more" / "1.png"
    other.parent.mkdir()
    Image.fromarray(noise(99)).save(other)
    assert result_of(find_leaks(changed(data, 7, path=other), FOLD)) == ()
    same = changed(data, 7, path=data.pictures[1].path)
    assert result_of(find_leaks(same, FOLD))[0] == "1 file in training and test: 1.png."


def test_a_slide_and_a_crop_that_overlaps(data):
    shifted = changed(data, 7, slide="s1", box_l0=(190.0, 150.0, 290.0, 250.0))
    assert result_of(find_leaks(shifted, FOLD)) == (
        "1 slide in training and test: s1.",
        "1 overlapping crop of test with training, on s1.",
    )
    beside = changed(data, 7, slide="s1", box_l0=(200.0, 100.0, 300.0, 200.0))
    assert result_of(find_leaks(beside, FOLD)) == ("1 slide in training and test: s1.",)


def test_a_picture_that_is_there_twice(data):
    Image.fromarray(noise(5)).resize((50, 50)).save(
        data.pictures[8].path.with_suffix(".jpg"), quality=60
    )
    twice = changed(data, 8, path=data.pictures[8].path.with_suffix(".jpg"))
    assert result_of(find_leaks(twice, FOLD)) == (
        "1 pair of pictures that look the same in validation and test: 5.png = 8.jpg.",
    )
    assert result_of(find_leaks(twice, FOLD, pixels=False)) == ()


class TestPretraining:
    def test_a_slide_and_an_overlapping_crop(self, data, tmp_path):
        # 100 px at 0.5 are 200 px of level 0.
        seen = seen_by(manifest(tmp_path / "crops.parquet", "s6", (-80, -50)))
        assert result_of(find_leaks(data, FOLD, seen=[seen], pixels=False)) == (
            "1 patient in pretraining and test: p6.",
            "1 slide in pretraining and test: s6.",
            "1 overlapping crop of test with pretraining, on s6.",
        )

    def test_beside_the_picture_only_the_slide_is_told(self, data, tmp_path):
        seen = seen_by(manifest(tmp_path / "crops.parquet", "s6", (200, 0)))
        leaks = result_of(find_leaks(data, FOLD, seen=[seen], pixels=False))
        assert not any("overlapping" in leak for leak in leaks)
        assert len(leaks) == 2

    @pytest.mark.parametrize(
        ("slide", "held_out"), [("s0", False), ("elsewhere", False), ("s6", True)]
    )
    def test_what_is_none(self, data, tmp_path, slide, held_out):
        """A slide of the training side, of none, or one that was held out."""
        path = manifest(tmp_path / "crops.parquet", slide, (100, 100), held_out)
        leaks = result_of(find_leaks(data, FOLD, seen=[seen_by(path)], pixels=False))
        assert leaks == ()

    def test_another_slide_of_a_patient(self, data, tmp_path):
        """A slide of the training side, whose patient has another one tested."""
        data = changed(data, 6, patient="p0")
        seen = seen_by(manifest(tmp_path / "crops.parquet", "s0", (0, 0)))
        leaks = result_of(find_leaks(data, FOLD, seen=[seen], pixels=False))
        assert "1 patient in pretraining and test: p0." in leaks

    def test_plain_pictures(self, data, tmp_path):
        paths = [data.pictures[row].path for row in (0, 6, 7)]
        copy = data.root / "copy.png"
        Image.fromarray(noise(8)).save(copy)
        sets = PictureSets(
            tuple((path,) for path in (*paths, copy)),
            ("0", "1", "2", "3"),
            np.array([False, False, True, False]),
            1,
        )
        sets.save(tmp_path / "crops.parquet", data.root)
        with pytest.raises(RunError):
            seen_by(tmp_path / "crops.parquet")
        seen = seen_by(tmp_path / "crops.parquet", data.root)
        assert result_of(find_leaks(data, FOLD, seen=[seen])) == (
            "1 patient in pretraining and test: p6.",
            "1 file in pretraining and test: 6.png.",
            "1 pair of pictures that look the same in pretraining and test: "
            "copy.png = 8.png.",
        )


def test_of_several_folds_a_picture_is_read_once(data):
    reads = []

    def read(picture):
        reads.append(picture.name)
        return read_file(picture)

    twice = changed(data, 8, path=data.pictures[0].path)
    counted, hashes = replace(twice, read=read), {}
    turned = Fold(FOLD.test, FOLD.val, FOLD.train)
    found = [
        result_of(find_leaks(counted, fold, hashes=hashes)) for fold in (FOLD, turned)
    ]
    assert len(reads) == len(data)
    assert found == [result_of(find_leaks(twice, fold)) for fold in (FOLD, turned)]
    assert all(found)
