"""A frame shows what its view needs: it is read before the frame, not after it."""

import gc
import weakref

import numpy as np
import pytest

from napari_histomae import _early_reading
from napari_histomae._early_reading import read_before_drawing
from napari_histomae._layers import camera


@pytest.fixture(scope="module")
def wide_path(tmp_path_factory, write_slide, tissue_like):
    """A slide of which no view shows all at level 0."""
    path = tmp_path_factory.mktemp("wide") / "wide.tiff"
    return write_slide(path, tissue_like(6000, 5000), levels=4)


class Frames:
    """What the window of a viewer had of a layer when it drew."""

    def __init__(self, viewer):
        self._scene = viewer.window._qt_viewer.canvas._scene_canvas
        self._draw = self._scene._draw_scene
        self._scene._draw_scene = self._on_draw
        self.layer = None
        self.seen = []

    def _on_draw(self, *args, **kwargs):
        if self.layer is not None:
            pixels = self.layer._slice.image.raw
            box = self.layer.corner_pixels.copy()
            self.seen.append((self.layer.data_level, box, pixels))
        self._draw(*args, **kwargs)

    def close(self):
        del self._scene._draw_scene


@pytest.fixture
def window(make_napari_viewer):
    return make_napari_viewer(show=True)


@pytest.fixture
def frames(window):
    frames = Frames(window)
    yield frames
    frames.close()


def opened(window, frames, path, qtbot):
    """Open a slide close up, and wait until it is drawn."""
    (layer,) = window.open(str(path), plugin="napari-histomae")
    frames.layer = layer
    camera(window).zoom = 1 / layer.scale[-1]
    qtbot.waitUntil(lambda: layer.data_level == 0)
    settled(frames, qtbot)
    return layer


def settled(frames, qtbot):
    """Wait until nothing is drawn any more."""
    while True:
        drawn = len(frames.seen)
        qtbot.wait(150)
        if len(frames.seen) == drawn:
            return


def move(window, layer, yx):
    camera(window).center = tuple(layer.data_to_world(yx))[-2:]


def test_a_move_is_drawn_with_its_own_pixels_at_once(window, frames, wide_path, qtbot):
    layer = opened(window, frames, wide_path, qtbot)
    before = len(frames.seen)
    move(window, layer, (3500, 4500))
    qtbot.waitUntil(lambda: len(frames.seen) > before)
    settled(frames, qtbot)
    for level, box, pixels in frames.seen[before:]:  # of a quiet machine one
        (y0, x0), (y1, x1) = box
        assert y0 < 3500 < y1
        assert x0 < 4500 < x1
        there = layer.data[level][y0 : y1 + 1, x0 : x1 + 1]
        np.testing.assert_array_equal(pixels, there)


def test_a_zoom_is_drawn_at_the_level_that_belongs_to_it(
    window, frames, wide_path, qtbot
):
    layer = opened(window, frames, wide_path, qtbot)
    before = len(frames.seen)
    camera(window).zoom /= 4
    qtbot.waitUntil(lambda: len(frames.seen) > before)
    settled(frames, qtbot)
    assert {level for level, _, _ in frames.seen[before:]} == {layer.data_level}
    assert layer.data_level > 0


def test_hidden_slides_and_other_layers_are_left_alone(
    window, frames, wide_path, qtbot, monkeypatch
):
    layer = opened(window, frames, wide_path, qtbot)
    other = window.add_image(np.zeros((50, 50)))
    layer.visible = False
    settled(frames, qtbot)
    asked = []
    for one in (layer, other):
        monkeypatch.setattr(one, "_update_draw", lambda **_: asked.append(1))
    _early_reading._readers[window].on_draw(None)
    assert asked == []
    layer.visible = True
    asked.clear()
    _early_reading._readers[window].on_draw(None)
    assert asked == [1]


def test_napari_that_is_built_otherwise_goes_on_as_before(viewer, slide_path):
    viewer.open(str(slide_path), plugin="napari-histomae")
    reader = _early_reading._EarlyReader(viewer, canvas := Frames.__new__(Frames))
    reader.on_draw(None)  # a canvas of which nothing is known
    assert canvas is not None


def test_it_is_installed_once_and_keeps_no_viewer_alive():
    class Emitter:
        def __init__(self):
            self.calls = []

        def connect(self, call, position):
            self.calls.append((call, position))

    class Some:
        def __init__(self, **parts):
            self.__dict__.update(parts)

    draw = Emitter()
    canvas = Some(_scene_canvas=Some(events=Some(draw=draw)))
    viewer = Some(window=Some(_qt_viewer=Some(canvas=canvas)))
    read_before_drawing(viewer)
    read_before_drawing(viewer)
    read_before_drawing(Some(__wrapped__=viewer))
    assert [position for _, position in draw.calls] == ["first"]
    gone = weakref.ref(viewer)
    del viewer
    gc.collect()
    assert gone() is None


def test_layers_that_are_asked_otherwise_are_not_asked(viewer, monkeypatch):
    monkeypatch.setattr("napari.layers.Image._update_draw", lambda self, view: None)
    read_before_drawing(viewer)
    assert viewer not in _early_reading._readers


@pytest.mark.parametrize("viewer", [None, object()])
def test_without_a_window_nothing_is_done(viewer):
    read_before_drawing(viewer)
