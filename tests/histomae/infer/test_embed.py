"""Embeddings of a slide's tiles are those of the tiles one by one."""

import numpy as np
import pytest

from histomae.errors import ConfigError, FeatureError, SlideError
from histomae.events import Progress
from histomae.infer.embed import SlideEmbedding, embed_tiles
from histomae.infer.predict import tissue_grid
from histomae.models.feature_spec import FeatureSpec
from histomae.slides.tissue import TissueParams, remember_params


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_each_tile_has_its_own_vector(slide, encoder, grid, run, pooling):
    cells = np.array([[7, 7], [0, 0], [5, 9], [6, 3], [9, 4]])
    events, found = run(
        embed_tiles(slide, encoder, grid, cells, pooling=pooling, batch_size=2)
    )
    assert [e.done for e in events if isinstance(e, Progress)] == [2, 4, 5]
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


# Slides as features ----------------------------------------------------------


def test_features_of_a_slide_are_those_of_its_tiles_on_tissue(slide, encoder, run):
    embedding = SlideEmbedding(encoder, pooling="mean", min_tissue=0.4, batch_size=7)
    _, found = run(embedding.features_of(slide))
    grid, cells = tissue_grid(slide, encoder, min_tissue=0.4)
    np.testing.assert_array_equal(found.cells, cells)
    for cell, xy_l0, vector in zip(
        cells[::20], found.coords_l0[::20], found.values[::20], strict=True
    ):
        np.testing.assert_allclose(xy_l0, grid.xy_l0(*cell), atol=0.5)
        tile = slide.read_region(grid.xy_l0(*cell), (32, 32), 1.0)
        alone = encoder.embed(tile[None], pooling="mean")[0]
        np.testing.assert_allclose(vector, alone, atol=1e-5)
    header = found.header
    assert header.spec == FeatureSpec(
        encoder="mae vit_test_patch8_32 step 12",
        encoder_id=encoder.encoder_id,
        pooling="mean",
        width=24,
        tile_px=32,
        mpp=1.0,
        step_px=32,
    )
    assert (header.slide, header.slide_id) == (slide.name, slide.slide_id)
    assert (header.slide_mpp, header.mpp_source) == (slide.mpp, "file")
    assert (header.grid, header.tiles, header.unreadable) == (grid, len(cells), 0)
    assert header.tissue["min_tissue"] == 0.4


def test_features_say_by_which_settings_tissue_was_found(slide, encoder, run):
    remember_params(slide, TissueParams(least_density=0.15, closing_um=8.0))
    embedding = SlideEmbedding(encoder, pooling="mean", min_tissue=0.4, batch_size=7)
    _, found = run(embedding.features_of(slide))
    assert found.header.tissue["least_density"] == 0.15
    assert found.header.tissue["closing_um"] == 8.0


def test_tiles_that_cannot_be_read_are_left_out_and_counted(
    slide, encoder, run, monkeypatch
):
    read, torn = slide.read_region, []

    def tear(xy_l0, size_px, mpp):
        if size_px == (32, 32) and xy_l0[0] > 700:
            torn.append(xy_l0)
            raise SlideError("torn. Scan it anew.")
        return read(xy_l0, size_px, mpp)

    monkeypatch.setattr(slide, "read_region", tear)
    _, found = run(SlideEmbedding(encoder, batch_size=64).features_of(slide))
    assert found.header.unreadable == len(torn) > 0
    assert found.coords_l0[:, 0].max() <= 700
    assert len(found.values) == found.header.tiles


def test_an_encoder_that_makes_nothing_of_it(slide, encoder, run, monkeypatch):
    def nothing(tiles, pooling):
        return np.full((len(tiles), 24), np.nan, np.float32)

    monkeypatch.setattr(encoder, "embed", nothing)
    with pytest.raises(FeatureError, match="Choose f32 as precision"):
        run(SlideEmbedding(encoder).features_of(slide))


@pytest.mark.parametrize(
    ("settings", "field"), [({"pooling": "own"}, "pooling"), ({"batch_size": 0}, "b")]
)
def test_how_it_cannot_be_done(encoder, settings, field):
    with pytest.raises(ConfigError, match=f"^{field}"):
        SlideEmbedding(encoder, **settings)
