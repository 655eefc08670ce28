"""The generated trees: what the readers of BRACS and BACH find in them."""

import numpy as np
import pytest

from histomae.data.classes import BACH_4, BRACS_7
from histomae.data.datasets import open_dataset
from histomae.data.sample_sets import sample_bach, sample_bracs
from histomae.errors import ConfigError, DataSetError
from histomae.events import result_of


def test_regions_are_those_of_bracs(tmp_path):
    root = result_of(sample_bracs(tmp_path, cases=28, sets=2, width_px=64))
    found = open_dataset(root)
    assert found.name == "BRACS RoI"
    assert found.classes.names == BRACS_7.names
    assert np.bincount(found.labels).tolist() == [8] * 7
    for name, each in (("train", 4), ("val", 2), ("test", 2)):
        assert np.bincount(found.labels[found.sides == name]).tolist() == [each] * 7
    assert len(set(found.patients)) == 28
    assert {picture.mpp for picture in found.pictures} == {0.25}
    assert found.pictures[0].path.relative_to(root).as_posix() == (
        "latest_version/train/0_N/BRACS_1001_N_1.png"
    )
    one, other = (found.read(picture) for picture in found.pictures[:2])
    assert one.shape == (64, 64, 3)
    assert (one != other).any()


def test_photos_are_those_of_bach(tmp_path):
    root = result_of(sample_bach(tmp_path, cases=9, width_px=64))
    found = open_dataset(root)
    assert found.name == "BACH"
    assert found.classes.names == BACH_4.names
    assert np.bincount(found.labels).tolist() == [3, 2, 2, 2]
    assert {picture.mpp for picture in found.pictures} == {0.42}
    assert found.read(found.pictures[0]).shape == (48, 64, 3)


def test_equal_seeds_draw_equal_trees(tmp_path):
    for number, seed in enumerate((1, 1, 2)):
        result_of(sample_bach(tmp_path / f"{number}", cases=8, seed=seed, width_px=64))
    one, same, other = (
        [path.read_bytes() for path in sorted((tmp_path / number).rglob("*.tif"))]
        for number in "012"
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("draw", "few"), [(sample_bracs, {"cases": 27}), (sample_bach, {"cases": 7})]
)
def test_what_cannot_be_drawn_is_refused(draw, few, tmp_path):
    with pytest.raises(ConfigError, match=r"cases.* at least"):
        result_of(draw(tmp_path, **few))
    assert not list(tmp_path.iterdir())
    (tmp_path / "BRACS_RoI").mkdir()
    (tmp_path / "ICIAR2018_BACH_Challenge").mkdir()
    with pytest.raises(DataSetError, match="is there already"):
        result_of(draw(tmp_path))
