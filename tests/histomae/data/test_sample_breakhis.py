"""The generated tree: what BreakHis's reader finds in it, and that places are one."""

import numpy as np
import pytest
from PIL import Image

from histomae.data.breakhis import (
    MAGNIFICATIONS,
    MPP,
    SUBTYPES,
    picture_sets,
    read_breakhis,
)
from histomae.data.pictures import read_picture
from histomae.data.sample_breakhis import sample_breakhis
from histomae.errors import ConfigError, DataSetError
from histomae.events import result_of
from histomae.slides.sample import tissue_pictures

AMOUNTS = {"epithelium": 0.45, "white": 0.1, "density": 8e-3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return result_of(sample_breakhis(folder, cases=9, sets=2, width_px=140))


def test_the_reader_finds_cases_subtypes_and_complete_sets(tree):
    found = read_breakhis(tree)
    assert found.notes == ()
    assert len(found.pictures) == 9 * 2 * 4
    assert {picture.subtype for picture in found.pictures} == set(SUBTYPES)
    assert len({picture.case for picture in found.pictures}) == 9
    sets, note = picture_sets(found.pictures, partial=False, held_out=0.0, seed=0)
    assert len(sets) == 18
    assert note.startswith("18 sets of all four magnifications, 0 of two or three")
    path = found.pictures[0].path
    assert path.relative_to(tree).as_posix() == (
        "histology_slides/breast/benign/SOB/adenosis/SOB_B_A_14-10001/100X/"
        "SOB_B_A-14-10001-100-001.png"
    )
    assert read_picture(path).shape == (92, 140, 3)


def test_the_finer_picture_is_the_middle_of_the_coarser():
    """Seen as coarse, it is the same place: to a pixel, by correlation."""
    how = {"places": 1, "mpps": (1.0, 0.25), "size_px": (160, 120), "seed": (3, 1)}
    ((coarse, fine),) = tissue_pictures("Duct", **AMOUNTS, **how)
    small = np.asarray(Image.fromarray(fine).resize((40, 30), Image.Resampling.BOX))
    grey = coarse.mean(-1)
    seen = small.mean(-1) - small.mean()
    likeness = {}
    for y in range(grey.shape[0] - 30):
        for x in range(grey.shape[1] - 40):
            there = grey[y : y + 30, x : x + 40]
            likeness[y, x] = np.corrcoef(seen.ravel(), there.ravel())[0, 1]
    best = max(likeness, key=likeness.get)
    assert best == (45, 60)
    assert likeness[best] > 0.9


def test_equal_seeds_draw_equal_pictures():
    how = {"places": 1, "mpps": (4.9,), "size_px": (70, 46)}
    (one,), (same,), (other,) = (
        next(tissue_pictures("In situ", **AMOUNTS, seed=seed, **how))
        for seed in ((1, 1), (1, 1), (1, 2))
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_what_cannot_be_drawn_is_refused(tree, tmp_path):
    with pytest.raises(DataSetError, match="is there already"):
        result_of(sample_breakhis(tree.parent))
    with pytest.raises(ConfigError, match=r"cases.* at least 8"):
        result_of(sample_breakhis(tmp_path, cases=7))
    assert not list(tmp_path.iterdir())
    assert MPP[MAGNIFICATIONS[0]] == 0.49
