"""BreakHis from its tree: the case is the patient, sets are complete or are told."""

import numpy as np
import pytest

from histomae.data.breakhis import (
    MAGNIFICATIONS,
    is_breakhis,
    picture_sets,
    read_breakhis,
)
from histomae.data.picture_sets import PictureSets
from histomae.errors import DataSetError, RunError

ALL = MAGNIFICATIONS


def sets_of(root, *, partial=False, held_out=0.0, seed=0):
    pictures = read_breakhis(root).pictures
    return picture_sets(pictures, partial=partial, held_out=held_out, seed=seed)


def test_a_name_tells_everything(breakhis):
    root = breakhis(("TA", "4659", 1, (40,)), ("DC", "2523", 13, (400,)))
    benign, malignant = read_breakhis(root).pictures
    assert (benign.subtype, benign.slide, benign.case) == ("TA", "4659", "4659")
    assert (benign.magnification, benign.number) == (40, 1)
    assert not benign.is_malignant
    assert malignant.is_malignant
    assert (malignant.magnification, malignant.number) == (400, 13)
    assert is_breakhis(root)
    assert is_breakhis(root.parent)


def test_slides_of_one_number_are_one_patient(breakhis):
    root = breakhis(*(("A", f"22549{end}", 1, (100,)) for end in ("AB", "CD", "G")))
    assert {picture.case for picture in read_breakhis(root).pictures} == {"22549"}


def test_what_is_not_understood_is_left_out_and_counted(breakhis):
    root = breakhis(("F", "9133", 1, ALL))
    (good,) = root.rglob("*-40-001.png")
    for name in (
        "SOB_B_F-14-9133-250-001.png",  # no such magnification
        "SOB_B_XX-14-9133-40-001.png",  # no such subtype
        "SOB_M_F-14-9133-40-002.png",  # malignant and benign
        "thumbnail.png",
    ):
        good.with_name(name).write_bytes(good.read_bytes())
    copy = root / "copy" / good.name
    copy.parent.mkdir()
    copy.write_bytes(good.read_bytes())
    tree = read_breakhis(root)
    assert len(tree.pictures) == 4
    odd, twice = tree.notes
    assert odd.startswith("SOB_B_F-14-9133-250-001.png, ")
    assert "and 1 more are left out: not named as in BreakHis" in odd
    assert twice.startswith(f"{good.name} is left out: there is another")


def test_a_slide_under_two_subtypes_is_told(breakhis):
    root = breakhis(("DC", "13412", 1, (100,)), ("LC", "13412", 1, (100,)))
    (note,) = read_breakhis(root).notes
    assert note.startswith("Slide 13412 stands under DC and LC")


def test_a_folder_without_such_pictures_is_refused(tmp_path):
    assert not is_breakhis(tmp_path)
    assert not is_breakhis(tmp_path / "missing")
    with pytest.raises(DataSetError, match=r"holds no picture .* Choose the folder"):
        read_breakhis(tmp_path)


# ---- sets


def test_a_set_has_all_four_magnifications(breakhis):
    root = breakhis(
        ("F", "1", 1, ALL),
        ("F", "1", 2, (40, 100)),
        ("F", "2AB", 1, ALL),
        ("F", "3", 7, (400,)),
        ("PT", "2AB", 1, (40, 100, 200)),  # another subtype is another place
    )
    sets, note = sets_of(root)
    assert len(sets) == 2
    assert sets.present.all()
    assert sets.cases == ("1", "2")
    assert [path.name.split("-")[3] for path in sets.paths[1]] == list(map(str, ALL))
    assert note == (
        "2 sets of all four magnifications, 2 of two or three (left out; partial_sets "
        "takes them), 2 patients."
    )
    partial, note = sets_of(root, partial=True)
    assert len(partial) == 4
    assert partial.present.tolist()[2:] == [
        [True, True, False, False],
        [True, True, True, False],
    ]
    assert "2 of two or three (taken too)" in note


def test_patients_are_held_out_whole(breakhis):
    root = breakhis(*(("F", f"{case}A", n, ALL) for case in range(9) for n in (1, 2)))
    sets, _ = sets_of(root, held_out=0.3)
    assert 5 <= sets.held_out.sum() <= 6
    cases = np.array(sets.cases)
    assert not set(cases[sets.held_out]) & set(cases[~sets.held_out])
    np.testing.assert_array_equal(
        sets_of(root, held_out=0.3)[0].held_out, sets.held_out
    )
    assert not sets_of(root)[0].held_out.any()
    _, patients = np.unique(cases, return_inverse=True)
    np.testing.assert_array_equal(sets.patient, patients)


def test_the_last_patient_is_never_held_out(breakhis):
    sets, _ = sets_of(breakhis(("F", "1", 1, ALL), ("F", "1", 2, ALL)), held_out=0.5)
    assert not sets.held_out.any()


def test_sets_are_found_again_where_the_tree_has_moved(breakhis, tmp_path):
    root = breakhis(("F", "1", 1, ALL), ("F", "2", 1, (40, 100)))
    sets, _ = sets_of(root, partial=True, held_out=0.4)
    file = tmp_path / "sets.parquet"
    sets.save(file, root)
    moved = root.rename(tmp_path / "moved")
    again = PictureSets.load(file, moved)
    assert again.cases == sets.cases
    np.testing.assert_array_equal(again.present, sets.present)
    np.testing.assert_array_equal(again.held_out, sets.held_out)
    assert again.paths[0][0] == moved / sets.paths[0][0].relative_to(root)
    again.paths[0][0].unlink()
    with pytest.raises(RunError, match=r"001\.png, which is missing\. Bring it back"):
        PictureSets.load(file, moved)
    file.write_bytes(b"no table")
    with pytest.raises(RunError, match="no list of pictures"):
        PictureSets.load(file, moved)


def test_the_real_sample_has_four_pairs_and_no_complete_set(shared_data):
    root = shared_data / "BreaKHis_v1"
    tree = read_breakhis(root)
    assert len(tree.pictures) == 109
    assert {p.case for p in tree.pictures if p.slide.startswith("22549")} == {"22549"}
    sets, note = picture_sets(tree.pictures, partial=True, held_out=0, seed=0)
    assert note.startswith("0 sets of all four magnifications, 4 of two or three")
    np.testing.assert_array_equal(sets.present, [[True, True, False, False]] * 4)
