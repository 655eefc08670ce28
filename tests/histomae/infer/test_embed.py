"""Embeddings of a slide's tiles are those of the tiles one by one."""

import numpy as np
import pytest

from histomae.infer.embed import embed_tiles
from histomae.infer.predict import tissue_grid


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_each_tile_has_its_own_vector(slide, encoder, grid, run, pooling):
    cells = np.array([[7, 7], [0, 0], [5, 9], [6, 3], [9, 4]])
    events, found = run(
        embed_tiles(slide, encoder, grid, cells, pooling=pooling, batch_size=2)
    )
    assert [event.done for event in events] == [2, 4, 5]
    assert found.values.shape == (5, 24)
    assert found.values.dtype == np.float32
    assert (found.encoder_id, found.pooling) == (encoder.encoder_id, pooling)
    assert found.grid is grid
    np.testing.assert_array_equal(found.cells, cells)
    for cell, vector in zip(cells, found.values, strict=True):
        tile = slide.read_region(grid.xy_l0(*cell), (32, 32), 1.0)
        alone = encoder.embed(tile[None], pooling=pooling)[0]
        np.testing.assert_allclose(vector, alone, atol=1e-5)


def test_tissue_grid_has_the_encoders_tiles_on_tissue(slide, encoder):
    grid, cells = tissue_grid(slide, encoder)
    assert grid.spec == encoder.spec
    # 452 x 435 µm in tiles of 32 µm, the last ones sticking out
    assert grid.shape == (14, 15)
    inside = ((cells + 0.5) / [13.6, 14.1] - 0.5) / 0.4
    assert ((inside**2).sum(1) < 1.35).all()
    ellipse = np.pi * 0.4**2 * 13.6 * 14.1
    assert len(cells) == pytest.approx(ellipse, rel=0.1)
