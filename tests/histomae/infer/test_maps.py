"""Maps lie on the patch grid and hold what tiles give one by one."""

import numpy as np
import pytest

from histomae.errors import CheckpointError
from histomae.events import Progress
from histomae.infer.embed import Embeddings
from histomae.infer.maps import (
    attention_map,
    embedding_map,
    error_map,
    limits_around_median,
    limits_of,
    overview,
)
from histomae.infer.reconstruct import covering_masks
from histomae.slides.grid import TileGrid, TileSpec

CELLS = np.array([[5, 5], [5, 6], [6, 5], [8, 9], [7, 2]])


def tile_at(slide, grid, cell):
    return slide.read_region(grid.xy_l0(*cell), (32, 32), 1.0)[None]


def patches_at(heatmap, cell):
    row, col = (4 * x for x in cell)
    return heatmap.values[row : row + 4, col : col + 4]


def check_place(heatmap, grid):
    assert heatmap.values.shape == (4 * grid.rows, 4 * grid.cols)
    assert heatmap.origin_xy_l0 == grid.origin_xy_l0
    assert heatmap.pixel_size_l0 == pytest.approx(
        (grid.tile_size_l0[0] / 4, grid.tile_size_l0[1] / 4)
    )
    assert np.isfinite(heatmap.values).sum() == 16 * len(CELLS)


@pytest.mark.parametrize("head", ["mean", 1, "rollout"])
def test_attention_is_relative_to_each_tile(slide, encoder, grid, run, head):
    work = attention_map(slide, encoder, grid, CELLS, block=1, head=head, batch_size=2)
    events, heatmap = run(work)
    assert [e.done for e in events if isinstance(e, Progress)] == [2, 4, 5]
    check_place(heatmap, grid)
    for cell in CELLS:
        alone = encoder.attention(tile_at(slide, grid, cell), block=1, head=head)[0]
        relative = alone / alone.mean()
        np.testing.assert_allclose(patches_at(heatmap, cell), relative, rtol=1e-4)


def mean_error(encoder, tile, masks):
    """Average over the masks that hid each patch, one by one."""
    total, times = np.zeros((4, 4)), np.zeros((4, 4))
    for mask in masks:
        one = encoder.reconstruct(tile, mask[None])[0]
        total[mask] += one.error[mask]
        times[mask] += 1
    return total / times


@pytest.mark.parametrize("ratio", [None, 0.6])
def test_error_of_every_patch(slide, encoder, grid, run, ratio):
    work = error_map(slide, encoder, grid, CELLS, mask_ratio=ratio, seed=7)
    _, heatmap = run(work)
    check_place(heatmap, grid)
    masks = covering_masks((4, 4), ratio or 0.75, 7)
    for cell in CELLS:
        wanted = mean_error(encoder, tile_at(slide, grid, cell), masks)
        np.testing.assert_allclose(patches_at(heatmap, cell), wanted, rtol=1e-3)


def test_error_needs_a_decoder(slide, bare_encoder, grid, run):
    with pytest.raises(CheckpointError, match="decoder"):
        run(error_map(slide, bare_encoder, grid, CELLS))


def test_overview_is_all_of_them(slide, encoder, grid, run):
    events, found = run(
        overview(slide, encoder, grid, CELLS, block=0, head=2, batch_size=2)
    )
    assert [e.done for e in events if isinstance(e, Progress)] == [2, 4, 5]
    _, attention = run(attention_map(slide, encoder, grid, CELLS, block=0, head=2))
    np.testing.assert_allclose(found.attention.values, attention.values, rtol=1e-3)
    _, error = run(error_map(slide, encoder, grid, CELLS))
    np.testing.assert_allclose(found.error.values, error.values, rtol=1e-3)
    for cell, vector in zip(CELLS, found.embeddings.values, strict=True):
        alone = encoder.embed(tile_at(slide, grid, cell))[0]
        np.testing.assert_allclose(vector, alone, atol=1e-4)
    assert found.embeddings.encoder_id == encoder.encoder_id


def test_overview_without_a_decoder_has_no_error(slide, bare_encoder, grid, run):
    _, found = run(overview(slide, bare_encoder, grid, CELLS))
    assert found.error is None
    assert found.embeddings.values.shape == (5, 24)
    check_place(found.attention, grid)


# ---- likeness

GRID = TileGrid(TileSpec(8, 1.0), (0.0, 0.0), (8.0, 8.0), rows=6, cols=10)


def embeddings(values):
    cells = np.argwhere(np.ones((6, 10), bool))[: len(values)]
    return Embeddings(np.asarray(values, np.float32), cells, GRID, "e", "class_token")


def colours_of(values):
    """Return the colours (60, 3) and the opacities (60,) of tiles."""
    heatmap = embedding_map(embeddings(values))
    assert heatmap.pixel_size_l0 == (8.0, 8.0)
    assert heatmap.values.dtype == np.float32
    rgba = heatmap.values.reshape(60, 4)
    return rgba[:, :3], rgba[:, 3]


def test_likeness_are_principal_components():
    from sklearn.decomposition import PCA

    random = np.random.default_rng(0)
    values = random.normal(size=(60, 8)) * [9, 1, 5, 1, 3, 1, 1, 1]
    colours, opacity = colours_of(values)
    assert (opacity == 1).all()
    assert ((colours >= 0) & (colours <= 1)).all()
    components = PCA(3).fit_transform(values)
    for k in range(3):
        inside = (colours[:, k] > 0) & (colours[:, k] < 1)
        assert inside.sum() >= 55
        # The same but for a shift and a stretch, and perhaps the sign.
        match = np.corrcoef(colours[inside, k], components[inside, k])[0, 1]
        assert abs(match) > 0.9999


def test_likeness_does_not_depend_on_order_or_torn_tiles():
    random = np.random.default_rng(0)
    values = random.normal(size=(40, 6)) * [5, 3, 2, 1, 1, 1]
    straight, opacity = colours_of(values)
    np.testing.assert_array_equal(opacity, [1.0] * 40 + [0.0] * 20)
    back, _ = colours_of(values[::-1])
    np.testing.assert_allclose(straight[:40], back[:40][::-1], atol=1e-5)
    with_hole, opacity = colours_of(np.insert(values, 7, np.nan, axis=0))
    np.testing.assert_array_equal(np.flatnonzero(opacity == 0)[0], 7)
    np.testing.assert_allclose(
        np.delete(with_hole, 7, 0)[:40], straight[:40], atol=1e-5
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_likeness_of_few_tiles(count):
    colours, opacity = colours_of(np.eye(5)[:count] * 3)
    assert np.isfinite(colours).all()
    assert opacity.sum() == count


# ---- limits


def test_limits_leave_out_the_extremes():
    values = np.append(np.linspace(0, 1, 1001), [1e9, np.nan])
    low, high = limits_of(values)
    assert (low, high) == pytest.approx((0.01, 0.99), abs=0.003)


def test_limits_around_the_median():
    values = np.append(np.linspace(0.2, 1.2, 1001), [1e9, np.nan])
    low, high = limits_around_median(values)
    assert (low + high) / 2 == pytest.approx(0.7, abs=0.002)
    assert high - low == pytest.approx(0.98, abs=0.005)


@pytest.mark.parametrize("limits", [limits_of, limits_around_median])
@pytest.mark.parametrize("values", [[], [np.nan], [3.0, 3.0]])
def test_limits_always_differ(limits, values):
    low, high = limits(np.array(values))
    assert low < high
