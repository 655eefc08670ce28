"""Marked pictures come to the tiles of an encoder, marks in place, and are split."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histomae.data.classes import ClassSet
from histomae.data.marked_sets import as_tiles, at_mpp, by_patient, joined, open_marked
from histomae.data.marks import MarkedPicture, MarkedSet, discs
from histomae.errors import (
    ConfigError,
    DataSetError,
    NotEnoughDataError,
    UpsamplingError,
)

CENTRES = np.array([[30.0, 20.0], [70.0, 40.0], [10.0, 52.0]])
MARKS = discs(CENTRES, [0, 1, 0], (60, 100), 8.0)


def pixels_of(marks):
    return (40 + 100 * (marks.classes > 0)).astype(np.uint8)[..., None].repeat(3, -1)


@pytest.fixture
def data():
    """Eight pictures of four patients, all with the same discs."""
    pictures = tuple(
        MarkedPicture(path=Path(f"{n}.png"), marks=(), patient=f"P{n // 2}")
        for n in range(8)
    )
    return MarkedSet(
        name="discs",
        classes=ClassSet.of(["a", "b"]),
        pictures=pictures,
        read=lambda picture: (pixels_of(MARKS), MARKS),
    )


def test_pictures_are_resampled_with_their_marks(data):
    coarse = at_mpp(data, 0.5, own=0.25)
    pixels, marks = coarse.read(coarse.pictures[0])
    assert coarse.mpp == 0.5 and pixels.shape == (30, 50, 3)
    assert marks.objects.shape == (30, 50)
    order = np.argsort(marks.centres[:, 0])
    expected = CENTRES[np.argsort(CENTRES[:, 0])] / 2
    assert marks.centres[order] == pytest.approx(expected, abs=0.5)
    assert marks.labels[order].tolist() == [0, 0, 1]
    bright = pixels[..., 0] > 90
    assert (bright == (marks.objects > 0)).mean() > 0.95
    known = replace(data, mpp=0.5)
    assert at_mpp(known, 0.5) is known


def test_unknown_and_too_coarse_pictures_are_refused(data):
    with pytest.raises(ConfigError, match="picture_mpp"):
        at_mpp(data, 0.5)
    with pytest.raises(UpsamplingError, match="would invent detail"):
        at_mpp(data, 0.5, own=1.0)
    assert at_mpp(replace(data, mpp=0.25), 0.5, own=9.0).mpp == 0.5  # it knows better


@pytest.mark.parametrize("sector", [False, True])
def test_a_whole_picture_is_one_tile(data, sector):
    tiles = as_tiles(data, 50, sector=sector)
    pixels, marks = tiles.read(tiles.pictures[0])
    assert pixels.shape == (50, 50, 3) and marks.objects.shape == (50, 50)
    order = np.argsort(marks.centres[:, 0])
    expected = CENTRES[np.argsort(CENTRES[:, 0])] / 2 + (0, 10)
    assert marks.centres[order] == pytest.approx(expected, abs=0.6)
    assert not marks.objects[:9].any()


def test_more_objects_than_a_byte_can_count(data):
    centres = np.stack(np.meshgrid(np.arange(4, 100, 5), np.arange(4, 100, 5)), -1)
    many = discs(centres.reshape(-1, 2), np.zeros(400, int), (100, 100), 2.0)
    busy = replace(data, read=lambda picture: (pixels_of(many), many))
    _, marks = as_tiles(busy, 200, sector=False).read(data.pictures[0])
    assert len(marks.labels) == 400 and marks.objects.max() == 400


def test_patients_are_never_on_both_sides(data):
    sides = by_patient(data, 0.25, seed=3)
    taught, judged = (
        {one.patient for one in side.pictures} for side in (sides.taught, sides.judged)
    )
    assert not taught & judged and len(judged) == 1
    assert len(sides.taught) + len(sides.judged) == 8
    assert sides.told == "on 2 pictures of 1 patient it did not learn from"
    assert by_patient(data, 0).judged is None
    assert len(by_patient(data, 0.99).taught) == 2  # one patient is left to learn from
    with pytest.raises(NotEnoughDataError, match="of one slide"):
        by_patient(replace(data, pictures=data.pictures[:2]), 0.2, what="slide")


def test_the_official_split_outranks(data):
    official = tuple(
        replace(one, side="test" if n < 3 else "train")
        for n, one in enumerate(data.pictures)
    )
    sides = by_patient(replace(data, pictures=official), 0.2)
    assert [one.path.stem for one in sides.judged.pictures] == ["0", "1", "2"]
    assert "official test side" in sides.told


def test_sets_are_joined_each_with_its_reader(data):
    other = replace(
        data,
        pictures=(MarkedPicture(path=Path("x.png"), marks=(), patient="X"),),
        read=lambda picture: ("other", picture.patient),
        notes=("note",),
    )
    both = joined([data, other], "both")
    assert len(both) == 9 and both.name == "both" and both.notes == ("note",)
    assert both.read(both.pictures[8]) == ("other", "X")
    assert both.read(both.pictures[0])[1] is MARKS


def test_folders_are_known_by_what_they_hold(tmp_path):
    with pytest.raises(DataSetError, match="neither BUSI"):
        open_marked(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "TCGA-AA-1234-x.tif")
    (tmp_path / "TCGA-AA-1234-x.xml").write_text("<Annotations/>")
    assert open_marked(tmp_path).name == "MoNuSeg"
