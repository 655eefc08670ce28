"""What a person draws is kept, comes back, and every act can be undone."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from napari.components import ViewerModel

from histomae.data.classes import BRACS_3, BRACS_7
from histomae.errors import ConfigError
from histomae.exchange.qupath import read_annotations, write_annotations
from histomae.slides.annotations import Annotation, label_cells
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide
from napari_histomae import _book, _layers, _regions
from napari_histomae._book import RegionBook, preset_of
from napari_histomae._session import Session


class Desk:
    """A viewer without a window, a slide in it, and the book of its regions."""

    def __init__(self, path):
        self.viewer = ViewerModel()
        self.session = Session.of(self.viewer)
        self.said, self.failed = [], []
        self.open(path)
        self.book = RegionBook(self.session)
        self.book.said.connect(self.said.append)
        self.book.failed.connect(lambda error: self.failed.append(str(error)))
        self.book.sync()

    def open(self, path):
        slide = Slide.open(path)
        _layers.open_slide(self.viewer, slide)
        self.slide = slide

    @property
    def here(self):
        return self.book.of(self.slide)

    @property
    def layer(self):
        return self.here.layer

    @property
    def file(self):
        return self.here.path

    def add(self, roi, class_name="Stroma", what="drawing"):
        self.here.add([Annotation(roi, class_name)])
        self.book._commit(what)

    def draw(self, corners_xy_l0, class_name="Stroma"):
        """Draw as a person does: napari adds a shape to the active layer."""
        self.book.draw(self.slide, class_name, "corners")
        data = np.array(corners_xy_l0, float)[:, ::-1] + _layers.EDGE_TO_CENTRE
        self.layer.add(data, shape_type="polygon")
        self.book._commit_drawn()

    def facts(self):
        """What a person sees: classes, and class and place of every region."""
        regions = sorted(
            (one.class_name, one.id, np.round(one.roi.bounds, 1).tolist(), one.color)
            for one in self.here.annotations
        )
        return self.book.classes, regions


@pytest.fixture
def desk(qtbot, slide_path):
    made = []

    def make(path=slide_path):
        made.append(Desk(path))
        return made[-1]

    yield make
    for one in made:
        one.book.close()


TRIANGLE = [(200, 100), (500.5, 140), (320, 460.25)]
SQUARE = [(700, 300), (900, 300), (900, 500), (700, 500)]


def kept(desk):
    return read_annotations(desk.file)


def test_a_region_is_on_the_disk_within_a_second_where_it_was_drawn(desk, qtbot):
    one = desk()
    one.draw(TRIANGLE, "Fat")
    assert _book.AUTOSAVE_MS < 1000
    qtbot.waitUntil(one.file.exists)
    (saved,) = kept(one)
    assert saved.class_name == "Fat"
    assert saved.color == one.book.classes.color_of("Fat")
    expected = shapely.Polygon(TRIANGLE)
    assert saved.roi.symmetric_difference(expected).area < 0.01 * expected.length


def test_it_comes_back_after_a_crash_with_its_classes(desk, qtbot):
    first = desk()
    first.book.use_preset("BRACS-7")
    first.book.recolour_class("PB", (1, 2, 3))
    first.draw(TRIANGLE, "PB")
    holed = shapely.box(600, 300, 900, 600) - shapely.box(700, 400, 800, 500)
    first.add(holed, "DCIS")
    qtbot.waitUntil(lambda: first.file.exists() and len(kept(first)) == 2)
    # No goodbye: the program is gone.
    second = desk()
    assert second.facts() == first.facts()
    assert second.book.classes.names == BRACS_7.names
    assert second.book.classes.color_of("PB") == (1, 2, 3)
    assert second.book.classes.full_name("DCIS") == "Ductal carcinoma in situ"
    assert second.layer in second.viewer.layers
    assert second.viewer.layers.selection.active is not second.layer
    assert second.book.can_undo == ""
    assert second.said == ["2 regions restored on ellipse."]


def test_the_person_is_told_what_was_restored(desk, slide_path):
    first = desk()
    first.draw(TRIANGLE)
    first.draw(SQUARE)
    first.book.close()
    assert first.said == []
    second = desk()
    second.viewer.layers.clear()
    second.book.sync()
    second.open(slide_path)
    second.book.sync()
    assert second.said == ["2 regions restored on ellipse."] * 2


@dataclass(frozen=True)
class Act:
    id: str
    do: object


def _delete(desk):
    desk.book.draw(desk.slide, "Stroma", "select")
    desk.layer.selected_data = {0}
    assert desk.book.delete_selected(desk.slide) == 1


def _relabel(desk):
    desk.book.draw(desk.slide, "Stroma", "select")
    desk.layer.selected_data = {0}
    assert desk.book.relabel_selected(desk.slide, "Fat") == 1


def _delete_in_napari(desk):
    desk.layer.remove([1])
    desk.book._commit_drawn()


def _relabel_in_the_table_of_features(desk):
    table = desk.layer.features.copy()
    table.loc[0, "class"] = "Fat"
    desk.layer.features = table
    desk.book._commit_drawn()


def _move(desk):
    desk.layer.data = [desk.layer.data[0] + 5, *desk.layer.data[1:]]
    desk.book._commit_drawn()


def _remove_class(desk):
    assert desk.book.remove_class("Invasive") == 1
    assert desk.book.regions_per_class()[""] == 1


ACTS = [
    Act("draw", lambda desk: desk.draw([(x + 50, y) for x, y in SQUARE], "Fat")),
    Act("delete", _delete),
    Act("delete in napari", _delete_in_napari),
    Act("relabel", _relabel),
    Act("relabel in napari", _relabel_in_the_table_of_features),
    Act("move", _move),
    Act(
        "label a tile",
        lambda desk: desk.book.label_tile(desk.slide, (40, 30, 80, 62), "Fat"),
    ),
    Act("add a class", lambda desk: desk.book.add_class()),
    Act("rename a class", lambda desk: desk.book.rename_class("Invasive", "IDC")),
    Act("recolour a class", lambda desk: desk.book.recolour_class("Fat", (9, 9, 9))),
    Act("remove a class", _remove_class),
    Act("take a preset", lambda desk: desk.book.use_preset("BACH-4")),
]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.id)
def test_every_act_is_saved_and_can_be_undone(desk, act):
    one = desk()
    one.draw(TRIANGLE, "Invasive")
    one.draw(SQUARE, "Stroma")
    before, acts = one.facts(), len(one.book._history)
    act.do(one)
    after = one.facts()
    assert after != before
    assert len(one.book._history) == acts + 1
    one.book.save()
    assert sorted(x.id for x in kept(one)) == sorted(x[1] for x in after[1])
    assert one.book.undo()
    assert one.facts() == before
    one.book.save()
    assert {(x.class_name, x.id) for x in kept(one)} == {x[:2] for x in before[1]}
    wanted = [one.book.classes.color_of(x) for x in one.layer.features["class"]]
    shown = np.rint(one.layer.edge_color[:2, :3] * 255).astype(int)
    assert shown.tolist() == [list(color) for color in wanted]


def test_everything_is_undone_in_turn_to_the_blank_slide(desk):
    one = desk()
    blank = one.facts()
    one.draw(TRIANGLE, "Invasive")
    one.draw(SQUARE, "Stroma")
    _relabel(one)
    one.book.rename_class("Fat", "Adipose")
    undone = []
    while one.book.can_undo:
        undone.append(one.book.undo())
    assert undone == ["renaming a class", "relabelling", "drawing", "drawing"]
    assert one.facts() == blank
    one.book.save()
    assert kept(one) == []


def test_a_class_keeps_its_name_if_the_new_one_is_taken(desk):
    one = desk()
    one.draw(TRIANGLE, "Invasive")
    before = one.facts()
    for name in ("Stroma", "  "):
        with pytest.raises(ConfigError):
            one.book.rename_class("Invasive", name)
    assert one.facts() == before


def test_a_preset_keeps_the_classes_in_use(desk):
    one = desk()
    one.draw(TRIANGLE, "Fat")
    color = one.book.classes.color_of("Fat")
    one.book.use_preset("BRACS-3")
    assert one.book.classes.names == (*BRACS_3.names, "Fat")
    assert one.book.classes.color_of("Fat") == color
    assert preset_of(one.book.classes) == ""
    one.book.use_preset("own")
    assert one.book.classes.names == ("Fat",)
    one.book.undo()
    one.book.undo()
    one.book.undo()
    one.book.use_preset("BRACS-3")
    assert preset_of(one.book.classes) == "BRACS-3"


class TestTiles:
    """One key labels a tile."""

    SPEC = TileSpec(64, 0.5)

    def test_again_takes_it_away_and_another_class_relabels_it(self, desk):
        one = desk()
        grid = TileGrid.over(one.slide, self.SPEC)
        box = grid.box_l0(7, 9)
        assert "is Stroma" in one.book.label_tile(one.slide, box, "Stroma")
        assert "is Fat now" in one.book.label_tile(one.slide, box, "Fat")
        found = label_cells(one.here.annotations, grid, one.book.classes.names)
        assert found.cells.tolist() == [[7, 9]]
        assert one.book.classes.names[found.labels[0]] == "Fat"
        assert "no Fat" in one.book.label_tile(one.slide, box, "Fat")
        assert one.here.annotations == []

    def test_it_is_found_again_after_a_restart(self, desk):
        one = desk()
        box = TileGrid.over(one.slide, self.SPEC).box_l0(7, 9)
        one.book.label_tile(one.slide, box, "Stroma")
        one.book.close()
        other = desk()
        other.book.label_tile(other.slide, box, "Stroma")
        assert other.here.annotations == []

    def test_it_corrects_a_larger_region(self, desk):
        one = desk()
        grid = TileGrid.over(one.slide, self.SPEC)
        one.add(shapely.box(200, 200, 900, 900), "Stroma")
        one.book.label_tile(one.slide, grid.box_l0(7, 6), "Fat")
        found = label_cells(one.here.annotations, grid, one.book.classes.names)
        fat = found.labels == one.book.classes.names.index("Fat")
        assert found.cells[fat].tolist() == [[7, 6]]
        assert (~fat).sum() > 20


def mouse(kind, y, x, pos):
    return SimpleNamespace(
        type=kind, position=(y, x), pos=np.array(pos, float), modifiers=[]
    )


def press(layer, event):
    for call in layer.mouse_drag_callbacks:
        made = call(layer, event)
        if hasattr(made, "send"):
            list(made)


def test_a_shape_given_up_leaves_no_class_to_the_next(desk):
    one = desk()
    one.draw(TRIANGLE, "Invasive")
    one.book.draw(one.slide, "Fat", "lasso")
    press(one.layer, mouse("mouse_press", 40.0, 40.0, (10, 10)))
    assert one.book.drawing
    press(one.layer, mouse("mouse_press", 40.0, 40.0, (10, 10)))
    one.book._commit_drawn()
    assert not one.book.drawing
    assert len(one.book._history) == 1
    one.draw(SQUARE, "Stroma")
    assert [x.class_name for x in one.here.annotations] == ["Invasive", "Stroma"]
    assert one.here.annotations[1].color == one.book.classes.color_of("Stroma")


def test_nothing_is_undone_while_a_region_is_half_drawn(desk):
    one = desk()
    one.draw(TRIANGLE)
    one.book.draw(one.slide, "Fat", "lasso")
    press(one.layer, mouse("mouse_press", 40.0, 40.0, (10, 10)))
    assert one.book.undo() == ""
    one.book.stop_drawing()
    one.book._commit_drawn()
    assert one.book.undo() == "drawing"


def test_a_pasted_shape_is_a_region_of_its_own(desk):
    one = desk()
    one.draw(TRIANGLE)
    one.book.draw(one.slide, "Stroma", "select")
    one.layer.selected_data = {0}
    one.layer._copy_data()
    one.layer._paste_data()
    one.layer.events.data(value=one.layer.data, action="added")
    one.book._commit_drawn()
    first, second = one.here.annotations
    assert first.id != second.id
    assert second.class_name == "Stroma"


class TestFiles:
    """Nothing that was drawn is lost by a click of ours."""

    def test_removing_the_layer_leaves_the_regions(self, desk, qtbot):
        one = desk()
        one.draw(TRIANGLE)
        one.viewer.layers.remove(one.layer)
        one.book.sync()
        assert "kept. Undo" in one.said[-1]
        assert one.here.annotations == []
        assert len(kept(one)) == 1
        one.book.undo()
        assert len(one.here.annotations) == 1
        one.book.save()
        assert len(kept(one)) == 1
        assert [x.name for x in one.file.parent.glob("*kept*")] == []

    def test_drawing_anew_after_that_puts_the_old_file_aside(self, desk):
        one = desk()
        one.draw(TRIANGLE, "Fat")
        one.viewer.layers.remove(one.layer)
        one.book.sync()
        one.draw(SQUARE, "Stroma")
        one.book.save()
        assert [x.class_name for x in kept(one)] == ["Stroma"]
        (aside,) = one.file.parent.glob("regions-kept-*.geojson")
        assert [x.class_name for x in read_annotations(aside)] == ["Fat"]

    def test_closing_a_slide_and_opening_it_again(self, desk, slide_path):
        one = desk()
        one.draw(TRIANGLE)
        one.viewer.layers.clear()
        one.book.sync()
        assert one.book.slides == []
        assert len(one.viewer.layers) == 0
        one.open(slide_path)
        one.book.sync()
        assert len(one.here.annotations) == 1

    def test_closing_the_slide_alone_takes_its_regions_along(self, desk):
        one = desk()
        one.draw(TRIANGLE)
        path = one.file
        one.viewer.layers.remove(one.session.layer_of(one.slide))
        one.book.sync()
        assert len(one.viewer.layers) == 0
        assert len(read_annotations(path)) == 1

    def test_a_damaged_file_is_kept_and_told(self, desk):
        first = desk()
        first.draw(TRIANGLE)
        first.book.close()
        first.file.write_text(first.file.read_text()[:-40])
        damaged = first.file.read_text()
        second = desk()
        (aside,) = first.file.parent.glob("regions-kept-*.geojson")
        assert aside.read_text() == damaged
        assert "could not be restored" in second.failed[0]
        assert aside.name in second.failed[0]
        second.draw(SQUARE)
        second.book.save()
        assert aside.read_text() == damaged

    def test_a_file_that_somebody_else_wrote_is_put_aside(self, desk):
        one = desk()
        one.draw(TRIANGLE)
        one.book.save()
        other = Annotation(shapely.box(0, 0, 90, 90), "Fat")
        write_annotations(one.file, [other])
        one.draw(SQUARE)
        one.book.save()
        assert len(kept(one)) == 2
        (aside,) = one.file.parent.glob("regions-kept-*.geojson")
        assert [x.id for x in read_annotations(aside)] == [other.id]

    def test_a_full_disk_is_told_and_tried_again(self, desk, qtbot, monkeypatch):
        one = desk()
        full = [True]

        def write(path, annotations, **others):
            if full[0]:
                raise OSError(28, "No space left on device")
            write_annotations(path, annotations, **others)

        monkeypatch.setattr("histomae.exchange.qupath.write_annotations", write)
        monkeypatch.setattr(_book, "RETRY_MS", 50)
        one.draw(TRIANGLE)
        one.book.save()
        assert "No space left" in one.failed[0]
        assert "tried again" in one.failed[0]
        assert len(one.here.annotations) == 1
        full[0] = False
        qtbot.waitUntil(one.file.exists)
        assert len(kept(one)) == 1

    def test_to_a_file_and_back(self, desk, tmp_path, monkeypatch):
        one = desk()
        monkeypatch.setattr(Slide, "bounds_l0", (100, 50, 1600, 1300))
        one.draw(TRIANGLE, "Duct")
        assert "Duct" in one.book.classes.names
        path = tmp_path / "regions.geojson"
        assert one.book.save_as(one.slide, path) == 1
        corners = json.loads(path.read_text())["features"][0]["geometry"]["coordinates"]
        assert min(x for x, _ in corners[0]) == 200 - 100
        before = one.facts()
        one.book.load(one.slide, path)  # the same region: replaced, not doubled
        assert one.facts() == before
        one.layer.remove([0])
        one.book._commit_drawn()
        assert one.book.load(one.slide, path) == 1
        assert one.facts() == before

    def test_a_dock_opened_anew_takes_over_what_is_shown(self, desk):
        one = desk()
        one.draw(TRIANGLE)
        one.book.close()
        one.layer_before = [x for x in one.viewer.layers if _layers.entry_of(x)][-1]
        again = RegionBook(one.session)
        again.sync()
        assert again.of(one.slide).layer is one.layer_before
        assert len(again.of(one.slide).annotations) == 1
        again.save()
        assert list(one.file.parent.glob("*kept*")) == []
        again.close()


def test_many_regions_cost_little(desk):
    """Five hundred regions are not drawn or read again for each act."""
    import time

    one = desk()
    boxes = [
        shapely.box(x, y, x + 20, y + 15).buffer(3)
        for x in range(20, 1700, 65)
        for y in range(20, 1300, 65)
    ]
    one.here.add([Annotation(box, "Stroma") for box in boxes])
    one.book._commit("loading")
    assert len(boxes) == 520
    begin = time.thread_time()
    one.book.label_tile(one.slide, (3, 3, 35, 29), "Fat")
    one.book.save()
    assert time.thread_time() - begin < 10
    assert len(kept(one)) == 521


def test_closing_listens_no_more(desk):
    one = desk()
    one.draw(TRIANGLE)
    layer = one.layer
    one.book.close()
    assert len(kept(one)) == 1
    layer.remove([0])
    one.viewer.layers.clear()
    assert len(kept(one)) == 1
    assert _regions.SAME_PX < 1
