"""Features in a plane: like ones near, always the same."""

import numpy as np
import pytest

from histomae.errors import DependencyError
from histomae.evaluate import point_maps
from histomae.evaluate.point_maps import available, lay_out, make_maps, sampled


@pytest.fixture(scope="module")
def groups():
    """Two lumps of 40 points in 16 dimensions."""
    random = np.random.default_rng(0)
    return random.normal(size=(80, 16)) + 8 * (np.arange(80)[:, None] % 2)


@pytest.mark.parametrize("method", available())
def test_like_ones_lie_near_and_always_in_the_same_place(groups, method):
    rows = np.arange(80)
    one, two = (lay_out("any", rows, groups, method) for _ in range(2))
    assert np.array_equal(one.xy, two.xy)
    centre = [one.xy[rows % 2 == side].mean(0) for side in (0, 1)]
    near = [np.linalg.norm(one.xy - c, axis=1) for c in centre]
    assert np.array_equal(near[1] < near[0], rows % 2 == 1)


def test_many_points_are_a_sample():
    rows = np.arange(5000)
    kept = sampled(rows, most=300)
    assert len(np.unique(kept)) == 300 and np.all(np.diff(kept) > 0)
    assert np.array_equal(kept, sampled(rows, most=300))
    assert np.array_equal(sampled(rows[:10]), rows[:10])


def test_what_is_too_little_has_no_map(groups):
    assert make_maps({"one": groups[:3], "none": groups[:0]}, ["pca"]) == ()
    alike = make_maps({"flat": np.ones((6, 1), np.float32)}, ["pca", "tsne"])
    assert all(np.isfinite(one.xy).all() for one in alike) and len(alike) == 2


def test_a_missing_library_is_named(groups, monkeypatch):
    monkeypatch.setattr(point_maps, "find_spec", lambda name: None)
    assert "umap" not in available()
    with pytest.raises(DependencyError, match=r"pip install 'napari-histomae\[umap\]'"):
        lay_out("any", np.arange(80), groups, "umap")
