"""BUSI from its official tree, made and real."""

import numpy as np
import pytest
from PIL import Image

from histomae.data.alike import groups_alike
from histomae.data.busi import (
    doubts,
    is_busi,
    lesion_mask,
    lesion_tiles,
    lesion_width,
    read_busi,
    read_marked_busi,
)
from histomae.data.masking import MaskSetting, chances_hidden
from histomae.data.pictures import find_pictures, read_picture, sector_box
from histomae.errors import DataSetError
from histomae.events import result_of


def box(mask, y0, y1, x0, x1):
    mask[y0:y1, x0:x1] = 255
    return mask


@pytest.fixture
def busi(tmp_path):
    """Two benign pictures, of which one has two lesions, a malignant, a normal one."""
    root = tmp_path / "Dataset_BUSI_with_GT"
    random = np.random.default_rng(0)
    for kind, number in (
        ("benign", 2),
        ("benign", 10),
        ("malignant", 1),
        ("normal", 1),
    ):
        pixels = random.integers(0, 256, (60, 80, 3), np.uint8)
        (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / kind / f"{kind} ({number}).png")
    blank = np.zeros((60, 80), np.uint8)
    for name, mode, mask in (
        ("benign/benign (2)_mask", "1", box(blank.copy(), 5, 10, 5, 15)),
        ("benign/benign (2)_mask_1", "RGB", box(blank.copy(), 30, 40, 50, 60)),
        ("benign/benign (10)_mask", "RGBA", box(blank.copy(), 0, 60, 0, 80)),
        ("normal/normal (1)_mask", "L", blank),
    ):
        Image.fromarray(mask).convert(mode).save(root / f"{name}.png")
    return root


def test_pictures_classes_and_masks_are_read_from_the_names(busi):
    (busi / "benign" / "benign(3).png").write_bytes(b"")
    (busi / "benign" / "benign (4)_mask.png").write_bytes(b"")
    assert is_busi(busi)
    found = read_busi(busi)
    names = [picture.path.name for picture in found.pictures]
    assert names == [
        *("benign (2).png", "benign (10).png", "malignant (1).png", "normal (1).png")
    ]
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 2])
    assert [len(picture.masks) for picture in found.pictures] == [2, 1, 0, 1]
    assert [note.partition(".png")[0] for note in found.notes] == [
        *("benign(3)", "benign (4)_mask", "malignant (1)")
    ]


def test_a_lesion_is_all_of_its_masks(busi):
    two, whole, bare, normal = (
        lesion_mask(p.path, p.masks) for p in read_busi(busi).pictures
    )
    assert two.sum() == 5 * 10 + 10 * 10
    assert two[5:10, 5:15].all()
    assert two[30:40, 50:60].all()
    assert whole.all()
    assert not bare.any()
    assert not normal.any()


def test_a_lesion_lies_on_its_tile_where_it_does_on_the_picture(busi):
    first, second, whole = result_of(lesion_tiles(read_busi(busi), 40))
    assert whole[5:35].all()  # 80 x 60 becomes 40 x 30, black above and below
    assert not whole[[4, 35]].any()
    for lesion, (y0, y1, x0, x1) in (
        (first, (5, 10, 5, 15)),
        (second, (30, 40, 50, 60)),
    ):
        rows, columns = (np.flatnonzero(lesion.any(axis)) for axis in (1, 0))
        np.testing.assert_allclose(
            [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1],
            [y0 / 2 + 5, y1 / 2 + 5, x0 / 2, x1 / 2],
            atol=0.5,
        )
    assert lesion_width(second) == pytest.approx(2 * np.sqrt(25 / np.pi))


def test_what_does_not_fit_is_refused_by_name(busi, tmp_path):
    mask = busi / "benign" / "benign (2)_mask_1.png"
    Image.fromarray(np.zeros((60, 79), np.uint8)).save(mask)
    picture = read_busi(busi).pictures[0]
    with pytest.raises(DataSetError, match=r"_mask_1\.png is 79 x 60 px.*Bring"):
        lesion_mask(picture.path, picture.masks)
    mask.write_bytes(b"torn")
    with pytest.raises(DataSetError, match=r"_mask_1\.png cannot be read"):
        lesion_mask(picture.path, picture.masks)
    (busi / "copy").mkdir()
    (busi / "copy" / "normal (1).png").write_bytes(b"")
    with pytest.raises(DataSetError, match="have one name"):
        read_busi(busi)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not is_busi(empty)
    assert not is_busi(tmp_path / "nowhere")
    with pytest.raises(DataSetError, match="Choose the folder Dataset_BUSI"):
        read_busi(empty)


def test_doubles_are_told_and_labels_in_doubt(busi):
    found = read_busi(busi)
    assert doubts(found, np.arange(4)) == []
    notes = doubts(found, np.array([0, 1, 1, 2]))
    assert "benign (10) = malignant (1)" in notes[0]
    assert "label is in doubt: benign (10) = malignant (1)" in notes[1]
    assert len(doubts(found, np.array([0, 0, 1, 2]))) == 1


def test_each_mask_is_a_lesion_of_its_class(busi):
    data = read_marked_busi(busi)
    by_name = {picture.path.stem: picture for picture in data.pictures}
    assert "normal (1)" not in by_name
    for name, picture in by_name.items():
        pixels, marks = data.read(picture)
        masks = [read_picture(path).max(-1) >= 128 for path in picture.marks]
        shown = [mask for mask in masks if mask.any()]
        assert pixels.shape[:2] == marks.objects.shape
        assert np.array_equal(marks.objects > 0, np.any(masks, 0))
        assert len(marks.labels) == len(shown)
        kind = ("benign", "malignant").index(name.partition(" ")[0])
        assert (marks.labels == kind).all()


@pytest.fixture(scope="module")
def real(shared_data):
    return read_busi(shared_data / "Dataset_BUSI_with_GT")


class TestTheRealSample:
    def test_all_of_it_is_understood(self, real, shared_data):
        assert np.bincount(real.labels).tolist() == [40, 30, 20]
        assert real.notes == ()
        assert len(find_pictures([shared_data / "Dataset_BUSI_with_GT"])) == 90
        assert sum(len(picture.masks) > 1 for picture in real.pictures) == 2

    def test_lesions_are_where_something_was_scanned(self, real):
        for picture in real.pictures:
            lesion = lesion_mask(picture.path, picture.masks)
            assert lesion.any() == (picture.class_name != "normal"), picture.path
            rows, columns = sector_box(read_picture(picture.path)[..., 0])
            inside = lesion[rows, columns].sum()
            assert inside >= 0.99 * lesion.sum(), picture.path
            assert lesion[rows, columns].size >= 0.5 * lesion.size

    def test_its_doubles_are_found(self, real):
        group = result_of(groups_alike([picture.path for picture in real.pictures]))
        notes = doubts(real, group)
        assert len(notes) == 1  # none under two classes
        assert "malignant (4) = malignant (5); malignant (6) = " in notes[0]
        assert notes[0].endswith("; and 1 more.")
        sizes = np.bincount(np.bincount(group))
        assert sizes[1:].tolist() == [80, 3, 0, 1]

    def test_lesions_are_laid_on_tiles_as_the_network_sees_them(self, real):
        lesions = result_of(lesion_tiles(real, 224))
        assert len(lesions) == 72  # seventy pictures, two of them with two
        assert all(lesion.shape == (224, 224) and lesion.any() for lesion in lesions)
        widths = np.array([lesion_width(lesion) for lesion in lesions])
        assert 10 < widths.min() < 25
        assert 30 < np.median(widths) < 90
        coarse = chances_hidden(lesions, MaskSetting(16, 0.75))
        fine = chances_hidden(lesions, MaskSetting(8, 0.6))
        assert (fine <= coarse).all()
        assert coarse.max() > 0.5
        assert fine.max() < 0.2
