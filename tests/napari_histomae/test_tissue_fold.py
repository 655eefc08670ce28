"""What counts as tissue: sliders moved, the veil looked at, what others hear of it."""

from functools import partial

import numpy as np
import pytest

from histomae.slides.tissue import TissueParams, remembered_params, tissue_mask
from napari_histomae import _layers
from napari_histomae._session import Session
from napari_histomae._widgets.tissue_fold import KNOBS, TissueFold, density_of
from napari_histomae._widgets.train import TrainDock

STRICT = TissueParams(least_texture=density_of(40))


@pytest.fixture
def session(viewer, slide_path):
    session = Session.of(viewer)
    session.open_paths([slide_path])
    return session


@pytest.fixture
def fold(viewer, session, qtbot):
    """The fold in a dock of its own, still closed."""
    made = TissueFold(session)
    viewer.window.add_dock_widget(made, name="Tissue")
    viewer.window._qt_window.show()
    qtbot.waitUntil(made.isVisible)
    yield made
    made.shut()


def veil(session):
    """Return the layer over what is no tissue; None if there is none."""
    layers = _layers.layers_of(session.viewer, session.slides[0], "tissue")
    assert len(layers) <= 1
    return layers[0] if layers else None


def wait_for_veil(qtbot, session, params):
    """Wait until the veil leaves just the tissue free that these settings give."""
    wanted = ~tissue_mask(session.slides[0], params).mask

    def is_there():
        layer = veil(session)
        return layer is not None and np.array_equal(layer.data, wanted)

    qtbot.waitUntil(is_there)
    return veil(session)


def test_the_veil_lies_over_what_is_no_tissue(fold, session, qtbot):
    slide = session.slide
    assert fold.fold.summary == "automatic"
    assert veil(session) is None
    fold.fold.set_open(True)
    layer = wait_for_veil(qtbot, session, TissueParams())
    assert layer.name == f"{slide.name} · tissue"
    viewer = session.viewer
    assert viewer.layers.index(layer) == 1 + viewer.layers.index(
        session.layer_of(slide)
    )
    assert viewer.layers.selection.active is not layer
    clear, veiled = layer.colormap.colors
    assert clear[3] == 0
    assert veiled[3] == 1
    assert layer.opacity < 0.7  # what is left out can still be seen
    # It lies where the slide is: the middle is tissue, the corner is none.
    width, height = slide.dimensions
    for xy, is_veiled in (((width / 2, height / 2), 0), ((5, 5), 1)):
        value = layer.get_value(_layers.world_from_l0(slide, xy), world=True)
        assert value == is_veiled
    tissue = tissue_mask(slide)
    share = tissue.area_mm2() / (width * 0.4 / 1000 * height * 0.5 / 1000)
    said = f"{tissue.area_mm2():.3g} mm², {100 * share:.0f} % of the slide"
    assert fold.fold.summary == said
    fold.fold.set_open(False)
    assert veil(session) is None
    assert fold.fold.summary == "automatic"


def test_moving_a_slider_moves_the_veil_and_is_remembered(fold, session, qtbot):
    fold.fold.set_open(True)
    wait_for_veil(qtbot, session, TissueParams())
    heard = []
    session.tissue_changed.connect(heard.append)
    with qtbot.waitSignal(fold._settle.timeout):
        for at in (20, 30, 40):
            fold.sliders["least_texture"].setValue(at)
    assert fold.params == STRICT
    assert heard == [session.slide.slide_id]  # once, for all of it
    assert remembered_params(session.slide) == STRICT
    wait_for_veil(qtbot, session, STRICT)
    assert fold.reset.isEnabled()
    fold.fold.set_open(False)
    assert fold.fold.summary == "set for this slide"
    fold.fold.set_open(True)
    fold.reset.click()
    wait_for_veil(qtbot, session, TissueParams())
    assert not fold.reset.isEnabled()
    qtbot.waitUntil(lambda: len(heard) == 2)
    assert remembered_params(session.slide) == TissueParams()


def test_every_setting_has_its_own_slider(fold):
    assert {knob.name for knob in KNOBS} | {"leave_out_marks"} == set(
        TissueParams.__dataclass_fields__
    )
    for knob in KNOBS:
        fold.set_params(TissueParams())
        usual = fold._values[knob.name].text()
        slider = fold.sliders[knob.name]
        slider.setValue(slider.maximum())
        assert fold.params.changes == {knob.name: knob.steps[-1]}
        assert fold._values[knob.name].text() == knob.says(knob.steps[-1]) != usual
    fold.set_params(TissueParams())
    fold.marks.click()
    assert fold.params.changes == {"leave_out_marks": False}


def test_what_is_shown_is_not_changed_by_showing_it(fold, session, qtbot):
    # No step of any slider is just this.
    odd = TissueParams(0.0777, 0.0333, 17.0, 0.033, 0.777, leave_out_marks=False)
    session.set_tissue(session.slide, odd)
    assert fold.params == odd
    fold.fold.set_open(True)
    wait_for_veil(qtbot, session, odd)
    assert fold.params == odd
    assert fold._values["closing_um"].text() == "17 µm"


def test_two_folds_say_the_same(fold, session, qtbot):
    other = TissueFold(session)
    qtbot.addWidget(other)
    fold.sliders["least_texture"].setValue(40)
    qtbot.waitUntil(lambda: other.params == STRICT)
    other.reset.click()
    qtbot.waitUntil(lambda: fold.params == TissueParams())
    other.shut()


def test_each_slide_has_its_own(
    fold, session, write_slide, tissue_like, tmp_path, qtbot
):
    first = session.slide
    fold.fold.set_open(True)
    fold.sliders["least_texture"].setValue(40)
    session.open_paths([write_slide(tmp_path / "b.tiff", tissue_like(900, 700, 3))])
    session.viewer.layers.selection.active = session.viewer.layers[-1]
    second = session.slide
    assert second is not first
    # What was set a moment ago was kept, for the slide that it was set for.
    assert remembered_params(first) == STRICT
    assert remembered_params(second) == TissueParams() == fold.params
    of_slide = partial(_layers.layers_of, session.viewer, kind="tissue")
    qtbot.waitUntil(lambda: len(of_slide(second)) == 1)
    assert not of_slide(first)
    session.viewer.layers.selection.active = session.layer_of(first)
    assert fold.params == STRICT


def test_a_slide_without_a_pixel_size_has_no_fold(viewer, bare_path, slide_path, qtbot):
    session = Session.of(viewer)
    fold = TissueFold(session)
    qtbot.addWidget(fold)
    assert fold.isHidden()
    session.open_paths([bare_path])
    assert fold.isHidden()
    session.settle_mpp(session.slide, 0.5)
    assert not fold.isHidden()
    fold.shut()


def test_a_slide_that_cannot_be_read_says_so(fold, session, monkeypatch, qtbot):
    from histomae.errors import SlideError

    def unreadable(slide):
        raise SlideError("ellipse.tiff cannot be read. Copy it again.")

    monkeypatch.setattr("napari_histomae._widgets.tissue_fold.overview", unreadable)
    fold.fold.set_open(True)
    qtbot.waitUntil(lambda: "Copy it again" in fold.mark.text())
    assert veil(session) is None


def test_behind_another_dock_there_is_no_veil(fold, viewer, session, qtbot):
    from qtpy.QtWidgets import QDockWidget, QWidget

    fold.fold.set_open(True)
    wait_for_veil(qtbot, session, TissueParams())
    mine = fold.parent()
    while not isinstance(mine, QDockWidget):
        mine = mine.parent()
    other = viewer.window.add_dock_widget(QWidget(), name="Other")
    viewer.window._qt_window.tabifyDockWidget(mine, other)

    def in_front(dock):
        dock.raise_()  # again, until Qt has laid the docks out
        return not dock.visibleRegion().isEmpty()

    qtbot.waitUntil(lambda: in_front(other) and veil(session) is None)
    qtbot.waitUntil(lambda: in_front(mine))
    wait_for_veil(qtbot, session, TissueParams())


def test_a_fold_that_is_shut_keeps_what_was_set_and_lifts_its_veil(
    fold, session, qtbot
):
    fold.fold.set_open(True)
    wait_for_veil(qtbot, session, TissueParams())
    fold.sliders["least_texture"].setValue(40)
    fold.shut()
    assert veil(session) is None
    assert remembered_params(session.slide) == STRICT
    session.set_tissue(session.slide, TissueParams())
    assert fold.params == STRICT  # it listens no more


def test_training_counts_the_tiles_of_what_was_set(viewer, session, qtbot):
    dock = TrainDock(viewer)
    qtbot.addWidget(dock)
    qtbot.waitUntil(lambda: dock.slides.survey.tiles is not None)
    before = dock.slides.survey.tiles
    dock.tissue.sliders["least_texture"].setValue(40)
    none_or_before = (None, before)  # None while they are counted
    qtbot.waitUntil(lambda: dock.slides.survey.tiles not in none_or_before)
    assert dock.slides.survey.tiles < before
    dock.tissue.reset.click()
    qtbot.waitUntil(lambda: dock.slides.survey.tiles == before)
    dock.shut()
