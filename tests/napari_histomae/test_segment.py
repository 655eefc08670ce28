"""The Segment dock: press its buttons, look at the layers."""

import shutil

import numpy as np
import pytest
import shapely

from histomae.models.segmenter import load_segmenter
from histomae.slides.annotations import Annotation
from histomae.slides.slide import Slide
from napari_histomae import _layers, _segment
from napari_histomae._session import Session
from napari_histomae._widgets import segment
from napari_histomae._widgets.segment import SegmentDock
from tests.napari_histomae.test_review import save_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "micro.safetensors")


@pytest.fixture
def session(viewer):
    return Session.of(viewer)


@pytest.fixture
def dock(viewer):
    made = SegmentDock(viewer)
    viewer.window.add_dock_widget(made, name="Segment", area="right")
    made.hooks.attach()
    yield made
    made.shut()


@pytest.fixture
def wait(qtbot):
    def until_done(dock):
        qtbot.waitUntil(lambda: not (dock.running or dock._settle.isActive()))

    return until_done


@pytest.fixture
def opened(dock, viewer, session, slide_path, model_path, qtbot):
    _layers.open_slide(viewer, Slide.open(slide_path))
    session.use_model(model_path)
    qtbot.waitUntil(lambda: dock.model.header is not None)
    return dock


def points_on(viewer, slide, many=60):
    """Add the centres of nuclei, as a person would: a layer that is not ours."""
    random = np.random.default_rng(0)
    xy = random.uniform((600, 450), (1200, 900), (many, 2))
    return viewer.add_points(
        _layers.world_from_l0(slide, xy), name="my nuclei", units=("um", "um")
    ), xy


@pytest.fixture
def taught(opened, viewer, wait):
    """A dock that was taught nuclei by a layer of points, one pass."""
    points_on(viewer, opened.slide)
    viewer.layers.selection.active = viewer.layers[0]
    opened._refresh()
    opened.epochs.setValue(1)
    opened.source.setCurrentText("nuclei: points of my nuclei")
    opened._refresh()
    assert opened.teach_button.isEnabled(), opened.teach_button.toolTip()
    opened.teach_button.click()
    assert opened.running and opened.cancel_button.isEnabled()
    wait(opened)
    assert opened.ready is not None, opened.state.text
    return opened


def named(viewer, what):
    return [one for one in viewer.layers if one.name.endswith(f"· {what}")]


def test_an_empty_dock_says_the_first_step(dock, viewer, slide_path):
    assert dock.mark_button.toolTip() == segment.NO_SLIDE
    assert dock.estimate.text() == segment.NO_SLIDE
    _layers.open_slide(viewer, Slide.open(slide_path))
    assert dock.mark_button.toolTip() == segment.NO_SEGMENTER
    assert dock.teach_button.toolTip() == segment.NO_MODEL
    assert dock.save_button.toolTip() == segment.NOT_TAUGHT


def test_it_is_taught_by_points_and_saved(taught, tmp_path, wait):
    assert "F1 of centres" in taught.score.text()
    assert taught.segmenter_label.text() == "taught now, not saved"
    taught.save(tmp_path / "mine.segmenter")
    assert "saved as mine.segmenter" in taught.state.text
    header = load_segmenter(tmp_path / "mine.segmenter").header
    assert header.class_names == ("nucleus",) and not header.areas
    taught.use(tmp_path / "mine.segmenter")
    wait(taught)
    assert taught.segmenter_label.text() == "mine.segmenter"


def test_points_become_centres_where_they_lie(opened, viewer):
    layer, xy = points_on(viewer, opened.slide, 5)
    lesson = _segment.by_points(layer, opened.slide)
    assert lesson.words == "my nuclei"
    sides = lesson.sides(opened.model.header)
    first = sides.taught.pictures[0]
    _, marks = sides.taught.read(first)
    x0, y0, x1, _ = _grid(opened).box_l0(*first.place)
    where = marks.centres * (x1 - x0) / opened.model.header.tile_px
    for x, y in np.add(where, (x0, y0)):
        assert np.hypot(*(xy - (x, y)).T).min() < 40


def _grid(dock):
    from histomae.slides.grid import TileGrid

    return TileGrid.over(dock.slide, dock.model.spec)


def test_what_is_seen_is_marked_and_removed(taught, viewer, wait):
    slide = taught.slide
    _layers.look_at(viewer, slide, (700, 500, 900, 700))
    wait(taught)
    assert "tile" in taught.estimate.text(), taught.estimate.text()
    taught.mark_button.click()
    wait(taught)
    assert taught.found is not None, taught.state.text
    (areas,) = named(viewer, "areas")
    x0, y0, _, _ = _layers.view_l0(viewer, slide)
    place = taught.found.classes.origin_xy_l0
    assert place == pytest.approx((max(0, np.floor(x0)), max(0, np.floor(y0))), abs=1)
    assert areas.data.dtype == np.uint8 and str(areas.units[0]) == "micrometer"
    (centres,) = named(viewer, "centres")
    table = taught.found.table
    assert len(centres.data) == len(table)
    where = np.array([centres.data_to_world(at) for at in centres.data])
    assert _layers.l0_from_world(slide, where.reshape(-1, 2)) == pytest.approx(
        table.centres_l0
    )
    assert taught.classes.areas[0].text().startswith(f"{len(table):,} · ")
    taught.classes.boxes[0].setChecked(False)
    assert not centres.shown.any()
    assert areas.colormap.color_dict[1][3] == 0
    taught.classes.boxes[0].setChecked(True)
    taught.opacity.setValue(70)
    assert areas.opacity == pytest.approx(0.7) and centres.shown.all()
    taught.mark_button.click()  # again replaces its layers
    wait(taught)
    assert len(named(viewer, "areas")) == len(named(viewer, "centres")) == 1
    taught.remove_button.click()
    assert not named(viewer, "areas") and not named(viewer, "centres")
    assert not taught.export_button.isEnabled()


def test_a_drawn_region_alone_is_marked(taught, viewer, wait):
    slide = taught.slide
    taught.part.setCurrentIndex(taught.part.findData(_segment.REGIONS))
    taught._look_around()
    assert "No region is drawn" in taught.estimate.text()
    assert not taught.mark_button.isEnabled()
    roi = shapely.Point(900, 700).buffer(150)
    _layers.show_annotations(viewer, slide, [Annotation(roi, "Here")])
    taught._look_around()
    taught.mark_button.click()
    wait(taught)
    assert all(shapely.contains_xy(roi, taught.found.table.centres_l0))
    assert taught.found.classes.origin_xy_l0 == (750, 550)


def test_a_whole_slide_is_marked_after_a_word_on_time(taught, wait, tmp_path):
    taught.part.setCurrentIndex(taught.part.findData(_segment.WHOLE))
    taught.part.activated.emit(taught.part.currentIndex())
    wait(taught)
    assert "tiles, " in taught.estimate.text()
    assert taught.mark_button.isEnabled(), taught.mark_button.toolTip()
    taught.mark_button.click()
    wait(taught)
    for suffix in (".geojson", ".csv", ".tiff"):
        taught.export(tmp_path / f"out{suffix}")
        assert f"written to out{suffix}" in taught.state.text
        assert (tmp_path / f"out{suffix}").exists()


def test_marking_is_cancelled(taught, viewer, wait):
    taught.part.setCurrentIndex(taught.part.findData(_segment.WHOLE))
    taught.part.activated.emit(taught.part.currentIndex())
    wait(taught)
    taught.mark_button.click()
    taught.cancel_button.click()
    wait(taught)
    assert "Stopped" in taught.state.text and taught.found is None
    assert not named(viewer, "areas")
    assert taught.mark_button.isEnabled()


def test_areas_are_taught_by_drawn_regions(opened, viewer, wait):
    boxes = [
        Annotation(shapely.box(x, y, x + 150, y + 150), name)
        for name, x in (("Left", 500), ("Right", 1000))
        for y in (400, 650)
    ]
    _layers.show_annotations(viewer, opened.slide, boxes)
    opened.epochs.setValue(1)
    opened.source.setCurrentIndex(opened.source.findData(segment.DRAWN))
    opened.teach_button.click()
    wait(opened)
    assert opened.classes.names == ("Left", "Right"), opened.state.text
    assert "on 2 of 4 regions" in opened.score.text()
    _layers.look_at(viewer, opened.slide, (500, 400, 1200, 900))
    wait(opened)
    opened.mark_button.click()
    wait(opened)
    assert opened.found.areas and named(viewer, "areas")
    assert not named(viewer, "centres") and not named(viewer, "objects")
    assert "mm²" in opened.classes.areas[0].text()


def test_a_slide_that_is_too_coarse_is_refused_in_words(taught, viewer, tmp_path, wait):
    coarse = tmp_path / "coarse.tiff"
    shutil.copy(taught.slide.path, coarse)
    for layer in list(viewer.layers):
        viewer.layers.remove(layer)
    slide = Slide.open(coarse, mpp=9.0)
    _layers.open_slide(viewer, slide)
    viewer.reset_view()
    taught._look_around()
    wait(taught)
    assert "would invent detail" in taught.estimate.text()
    assert "would invent detail" in taught.state.text
    assert not taught.mark_button.isEnabled()


def test_what_is_no_segmenter_is_refused_in_words(opened, model_path, wait):
    opened.use(model_path)
    wait(opened)
    assert opened.state.kind == "failed"
    assert "is an encoder of tiles, not a segmenter" in opened.state.text
    opened.use(model_path.with_name("gone.segmenter"))
    wait(opened)
    assert "gone.segmenter cannot be read" in opened.state.text
    assert opened.ready is None


def test_one_class_of_regions_teaches_no_areas(opened, viewer, wait):
    drawn = [Annotation(shapely.box(500, 400, 900, 800), "Only")]
    _layers.show_annotations(viewer, opened.slide, drawn)
    opened.source.setCurrentIndex(opened.source.findData(segment.DRAWN))
    opened.teach_button.click()
    wait(opened)
    assert opened.state.kind == "failed" and "another class" in opened.state.text


def test_other_maps_leave_it_alone(taught, viewer, wait):
    taught.mark_button.click()
    wait(taught)
    from napari_histomae import _review_layers

    assert not [
        one
        for one in _review_layers.map_layers(viewer, taught.slide)
        if one.name.endswith("areas")
    ]
    taught.hide_button.pressed.emit()
    assert not named(viewer, "areas")[0].visible
    taught.hide_button.released.emit()
    assert named(viewer, "areas")[0].visible
