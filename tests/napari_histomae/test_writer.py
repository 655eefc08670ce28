"""Regions saved by napari's File > Save."""

import json

import numpy as np
import pytest

from histomae.errors import AnnotationError
from histomae.exchange.qupath import read_annotations
from histomae.slides.slide import Slide
from napari_histomae import _layers
from napari_histomae._writer import write_regions

SQUARE = np.array([[0, 0], [0, 10], [10, 10], [10, 0]]) + 99.5


def test_regions_are_saved_in_level_0_pixels(viewer, slide, tmp_path):
    _layers.open_slide(viewer, slide)
    layer = _layers.show_annotations(viewer, slide, [])
    _layers.set_drawing_class(layer, "Stroma", (10, 20, 30))
    layer.add_polygons(SQUARE)
    path = tmp_path / "regions.geojson"
    written = layer.save(str(path), plugin="napari-histomae")
    assert [str(one) for one in written] == [str(path)]
    found = read_annotations(path)
    (only,) = getattr(found, "annotations", found)
    assert only.roi.bounds == (100, 100, 110, 110)
    assert only.class_name == "Stroma"
    assert only.color == (10, 20, 30)
    assert json.loads(path.read_text("utf-8"))["type"] == "FeatureCollection"


def test_shapes_drawn_by_hand_lie_on_the_slide_that_is_worked_on(
    viewer, slide_path, tmp_path
):
    from napari_histomae._session import Session

    session = Session.of(viewer)
    session.open_paths([slide_path])
    scale = _layers.pixel_size_yx(session.slide)
    layer = viewer.add_shapes([SQUARE], shape_type="polygon", scale=scale)
    path = tmp_path / "regions.geojson"
    write_regions(str(path), *layer.as_layer_data_tuple()[:2])
    (only,) = read_annotations(path)
    assert only.roi.bounds == pytest.approx((100, 100, 110, 110))


def test_without_a_slide_it_says_what_to_do(viewer, tmp_path):
    layer = viewer.add_shapes([SQUARE], shape_type="polygon")
    with pytest.raises(AnnotationError, match="Open the slide"):
        write_regions(str(tmp_path / "a.geojson"), *layer.as_layer_data_tuple()[:2])


def test_a_slide_that_is_gone_is_said(viewer, slide_path, tmp_path):
    import shutil

    path = shutil.copy(slide_path, tmp_path / "gone.tiff")
    slide = Slide.open(path)
    layer = _layers.show_annotations(viewer, slide, [])
    path.unlink()
    data, attributes, _ = layer.as_layer_data_tuple()
    del slide
    _layers._open_slides.clear()
    with pytest.raises(OSError, match="does not exist"):
        write_regions(str(tmp_path / "a.geojson"), data, attributes)
