"""A prediction says of each tile what the probe says of its embedding."""

from dataclasses import replace

import numpy as np
import pytest

from histomae.errors import CheckpointError, UpsamplingError
from histomae.infer.predict import Prediction, predict_slide, tissue_grid
from histomae.slides.grid import TileGrid, TileSpec

GRID = TileGrid(TileSpec(100, 2.0), (3.0, 5.0), (400.0, 320.0), rows=3, cols=4)
NAN = (np.nan, np.nan)


@pytest.fixture
def prediction():
    """Five tiles, one of them torn."""
    return Prediction(
        grid=GRID,
        cells=np.array([[0, 0], [0, 2], [1, 1], [2, 0], [2, 3]]),
        probabilities=np.array(
            [(0.9, 0.1), (0.4, 0.6), NAN, (0.2, 0.8), (0.55, 0.45)], np.float32
        ),
        class_names=("Duct", "Fat"),
        class_colors=((1, 2, 3), (4, 5, 6)),
        encoder_id="e",
        probe_id="p",
        slide_id="s",
        slide_name="C2",
        mpp=(0.5, 0.625),
        mpp_source="file",
    )


def test_labels_and_what_is_unsure(prediction):
    np.testing.assert_array_equal(prediction.labels(), [1, 2, 0, 2, 1])
    np.testing.assert_array_equal(prediction.labels(0.6), [1, 2, 0, 2, 0])
    np.testing.assert_array_equal(prediction.labels(0.7, unsure=3), [1, 3, 0, 2, 3])
    assert prediction.labels().dtype == np.uint8


def test_class_map_lies_on_the_grid(prediction):
    heatmap = prediction.class_map(0.7, unsure=3)
    np.testing.assert_array_equal(
        heatmap.values, [[1, 0, 3, 0], [0, 0, 0, 0], [2, 0, 0, 3]]
    )
    assert heatmap.origin_xy_l0 == (3.0, 5.0)
    assert heatmap.pixel_size_l0 == (400.0, 320.0)


def test_probability_and_confidence_maps(prediction):
    nan = np.nan
    np.testing.assert_array_equal(
        prediction.probability_map("Fat").values,
        np.array([[0.1, nan, 0.6, nan], [nan] * 4, [0.8, nan, nan, 0.45]], np.float32),
    )
    np.testing.assert_array_equal(
        prediction.probability_map("Fat", 0.5).values,
        np.array([[nan, nan, 0.6, nan], [nan] * 4, [0.8, nan, nan, nan]], np.float32),
    )
    np.testing.assert_array_equal(
        prediction.confidence_map().values,
        np.array([[0.9, nan, 0.6, nan], [nan] * 4, [0.8, nan, nan, 0.55]], np.float32),
    )


def test_areas(prediction):
    # a tile of 200 µm is 0.04 mm²
    assert prediction.area_mm2() == pytest.approx({"Duct": 0.08, "Fat": 0.08})
    assert prediction.area_mm2(0.7) == pytest.approx({"Duct": 0.04, "Fat": 0.04})


def test_least_confident_first_without_the_torn_tile(prediction):
    np.testing.assert_array_equal(prediction.least_confident(), [4, 1, 3, 0])


def test_table_leaves_the_torn_tile_out(prediction):
    table = replace(prediction, synthetic=True).table()
    assert len(table) == 4
    np.testing.assert_array_equal(table.rows, [0, 0, 2, 2])
    np.testing.assert_array_equal(table.cols, [0, 2, 0, 3])
    np.testing.assert_array_equal(table.boxes_l0[1], [803, 5, 1203, 325])
    np.testing.assert_allclose(table.xy_um[1], [1003 * 0.5, 165 * 0.625])
    assert (table.mpp, table.mpp_source, table.synthetic) == (2.0, "file", True)
    assert (table.encoder_id, table.probe_id, table.slide_id) == ("e", "p", "s")


def test_predict_slide_is_the_probe_on_each_tile(slide, encoder, probe, run):
    events, found = run(predict_slide(slide, encoder, probe, batch_size=16))
    grid, cells = tissue_grid(slide, encoder)
    np.testing.assert_array_equal(found.cells, cells)
    assert events[-1].done == events[-1].total == len(cells)
    for index in (0, 17, len(cells) - 1):
        tile = slide.read_region(grid.xy_l0(*cells[index]), (32, 32), 1.0)
        wanted = probe.probabilities(encoder.embed(tile[None]))[0]
        np.testing.assert_allclose(found.probabilities[index], wanted, atol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert (found.encoder_id, found.probe_id) == (encoder.encoder_id, probe.probe_id)
    assert (found.slide_id, found.slide_name) == (slide.slide_id, slide.name)
    assert (found.mpp, found.mpp_source) == (slide.mpp, "file")
    assert not found.synthetic


def test_a_probe_of_another_encoder(slide, encoder, probe, run):
    stranger = replace(probe, encoder_id="0" * 16)
    with pytest.raises(CheckpointError, match=f"0000.*{encoder.encoder_id}"):
        run(predict_slide(slide, encoder, stranger))


def test_a_slide_that_is_too_coarse(tissue_path, encoder, probe, run):
    from histomae.slides.slide import Slide

    with (
        Slide.open(tissue_path, mpp=4.0) as coarse,
        pytest.raises(UpsamplingError),
    ):
        run(predict_slide(coarse, encoder, probe))
