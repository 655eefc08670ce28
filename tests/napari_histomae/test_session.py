"""What the docks of one viewer share."""

import gc
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from napari.utils._proxies import PublicOnlyProxy

from histomae.errors import CheckpointError, MissingMppError
from histomae.files import home
from histomae.slides.heatmap import Heatmap
from histomae.slides.slide import Slide
from napari_histomae import _layers
from napari_histomae._session import Session


@pytest.fixture
def session(viewer):
    return Session.of(viewer)


@pytest.fixture
def heard(session):
    """The names of the signals that were sent, in order."""
    names = []
    for name in ("slides_changed", "slide_changed", "model_changed", "probe_changed"):
        getattr(session, name).connect(lambda name=name: names.append(name))
    return names


def test_there_is_one_per_viewer_also_behind_a_proxy(viewer, session):
    assert Session.of(viewer) is session
    assert Session.of(PublicOnlyProxy(viewer)) is session


def test_it_does_not_keep_the_viewer_alive(qapp):
    from napari.components import ViewerModel

    model = ViewerModel()
    session = weakref.ref(Session.of(model))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert session() is None


def test_it_knows_the_slides_that_are_open(viewer, session, heard, slide_path):
    assert session.slides == []
    assert session.slide is None
    (layer,) = session.open_paths([slide_path])
    assert [slide.name for slide in session.slides] == ["ellipse"]
    assert session.slide is session.slides[0]
    assert session.slide_of(layer) is session.slide
    assert session.layer_of(session.slide) is layer
    assert heard == ["slides_changed", "slide_changed"]
    viewer.layers.clear()
    assert session.slides == []
    assert session.slide is None
    assert heard[2:] == ["slides_changed", "slide_changed"]


def test_the_slide_worked_on_follows_the_active_layer(
    viewer, session, heard, slide_path, tmp_path, write_slide, tissue_like
):
    other_path = write_slide(tmp_path / "other.tiff", tissue_like(700, 900, seed=1))
    session.open_paths([slide_path])
    session.open_paths([other_path])
    first, second = viewer.layers
    assert session.slide.name == "other"
    viewer.layers.selection.active = first
    assert session.slide.name == "ellipse"
    other = session.slide_of(second)
    over = _layers.show_heatmap(
        viewer, other, Heatmap(np.ones((2, 2), np.float32), (0, 0), (9, 9)), "map"
    )
    assert session.slide.name == "ellipse"
    viewer.layers.selection.active = over
    assert session.slide is other
    viewer.layers.selection.active = viewer.add_points()
    assert session.slide is other
    viewer.layers.remove(second)
    assert session.slide.name == "ellipse"


def test_the_same_slide_twice_is_one_slide(session, slide_path):
    session.open_paths([slide_path])
    session.open_paths([slide_path])
    assert len(session.slides) == 1


def test_a_slide_whose_layer_is_removed_is_let_go(viewer, session, slide_path):
    session.open_paths([slide_path])
    slide = weakref.ref(session.slide)
    viewer.layers.clear()
    for _ in range(3):
        gc.collect()
    assert slide() is None


def test_an_answered_pixel_size_rescales_the_layers(viewer, session, heard, bare_path):
    slide = Slide.open(bare_path)
    layer = _layers.open_slide(viewer, slide)
    with pytest.raises(MissingMppError):
        session.settle_mpp(slide, 352.78)
    assert layer.scale == pytest.approx((1, 1))
    heard.clear()
    session.settle_mpp(slide, 0.5)
    assert layer.scale == pytest.approx((0.5, 0.5))
    assert heard == ["slides_changed"]
    assert Slide.open(bare_path).mpp == (0.5, 0.5)


def test_each_slide_has_a_study_folder(session, slide):
    folder = session.study_folder(slide)
    assert folder == home() / "studies" / f"ellipse-{slide.slide_id[:8]}"


def test_models_are_loaded_once_and_again_when_the_file_changes(
    session, heard, tmp_path, monkeypatch
):
    loads = []

    class TileEncoder:
        @classmethod
        def load(cls, path):
            loads.append(path)
            return cls()

    room = SimpleNamespace(TileEncoder=TileEncoder)
    monkeypatch.setitem(sys.modules, "histomae.infer.encoder", room)
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(CheckpointError, match="No model is chosen"):
        session.encoder()
    path.write_bytes(b"one")
    session.use_model(path)
    assert heard == ["model_changed"]
    assert session.model_path == path
    first = session.encoder()
    assert session.encoder() is first
    path.write_bytes(b"another")
    assert session.encoder() is not first
    assert len(loads) == 2
    path.unlink()
    with pytest.raises(CheckpointError, match="not there any more"):
        session.encoder()


def test_the_classifier_is_shared(session, heard):
    probe = object()
    session.use_probe(probe, "a.probe")
    assert session.probe is probe
    assert session.probe_path.name == "a.probe"
    assert heard == ["probe_changed"]
