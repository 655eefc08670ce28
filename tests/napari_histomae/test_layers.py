"""The door: what lies at a level-0 pixel is drawn on that pixel, at every level."""

import gc
from pathlib import Path

import numpy as np
import pytest
import shapely

from histomae.errors import SlideError
from histomae.exchange.marks import MarkTable
from histomae.infer.segment import SlideMarks
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.heatmap import Heatmap
from histomae.slides.slide import Slide
from napari_histomae import _layers

#: Of the slide in conftest.py.
MPP_X, MPP_Y = 0.4, 0.5
COLORS = [(230, 159, 0), (86, 180, 233), (0, 158, 115)]


@pytest.fixture
def shown(viewer, slide):
    """The viewer with the slide in it."""
    _layers.open_slide(viewer, slide)
    return viewer


def test_edges_lie_half_a_pixel_before_centres(slide):
    assert _layers.world_from_l0(slide, (0, 0)) == pytest.approx(
        (-MPP_Y / 2, -MPP_X / 2)
    )
    assert _layers.world_from_l0(slide, (0.5, 0.5)) == pytest.approx((0, 0))
    points = np.random.default_rng(0).random((5, 3, 2)) * 1000
    there = _layers.world_from_l0(slide, points)
    assert there.shape == points.shape
    assert _layers.l0_from_world(slide, there) == pytest.approx(points)


def test_a_slide_is_a_lazy_multiscale_layer_in_micrometres(shown, slide):
    layer = shown.layers[0]
    assert layer.multiscale
    assert layer.rgb
    assert layer.scale == pytest.approx((MPP_Y, MPP_X))
    assert [str(unit) for unit in layer.units] == ["micrometer", "micrometer"]
    assert layer.axis_labels == ("y", "x")
    assert layer.metadata["histomae"] == {
        "kind": "slide",
        "path": str(slide.path),
        "slide_id": slide.slide_id,
        "mpp": [pytest.approx(MPP_X), pytest.approx(MPP_Y)],
        "mpp_source": "file",
        "synthetic": False,
    }


def test_a_raster_lies_on_the_level_0_pixels_it_names(shown, slide):
    grid = TileGrid.over(slide, TileSpec(100, 1.0))
    values = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    heatmap = Heatmap(values, grid.origin_xy_l0, grid.tile_size_l0)
    layer = _layers.show_heatmap(shown, slide, heatmap, "map")
    for row, col in ((0, 0), (3, 5), (grid.rows - 1, grid.cols - 1)):
        x0, y0, x1, y1 = grid.box_l0(row, col)
        # napari draws pixel (row, col) from half a pixel before to half one after.
        corners = [layer.data_to_world((row + s, col + s)) for s in (-0.5, 0.5)]
        assert corners[0] == pytest.approx(_layers.world_from_l0(slide, (x0, y0)))
        assert corners[1] == pytest.approx(_layers.world_from_l0(slide, (x1, y1)))


def test_a_raster_shows_its_value_under_every_level_0_pixel(shown, slide):
    grid = TileGrid.over(slide, TileSpec(100, 1.0))
    values = np.arange(grid.rows * grid.cols, dtype=np.float32).reshape(grid.shape)
    heatmap = Heatmap(values, grid.origin_xy_l0, grid.tile_size_l0)
    layer = _layers.show_heatmap(shown, slide, heatmap, "map")
    random = np.random.default_rng(1)
    for xy_l0 in random.random((200, 2)) * slide.dimensions:
        cell = grid.cell_at(tuple(xy_l0))
        world = _layers.world_from_l0(slide, xy_l0)
        assert layer.get_value(world, world=True) == values[cell]


def test_a_click_finds_its_level_0_pixel(shown, slide):
    layer = shown.layers[0]
    data = layer.world_to_data(_layers.world_from_l0(slide, (700.5, 300.5)))
    assert data == pytest.approx((300, 700))


@pytest.mark.parametrize("level", [0, 1])
def test_what_is_drawn_lines_up(
    make_napari_viewer, write_slide, tmp_path, level, qtbot
):
    """A black square on the slide and a raster pixel over it cover the same screen."""
    x0, y0, side = 400, 300, 200
    pixels = np.full((1370, 1811, 3), 255, np.uint8)
    pixels[y0 : y0 + side, x0 : x0 + side] = 0
    path = write_slide(tmp_path / "square.tiff", pixels, levels=1)
    viewer = make_napari_viewer(show=True)
    slide = Slide.open(path)
    base = _layers.open_slide(viewer, slide)
    raster = Heatmap(np.ones((1, 1), np.float32), (x0, y0), (side, side))
    over = _layers.show_heatmap(
        viewer, slide, raster, "over", opacity=1, contrast_limits=(0, 1)
    )
    base.locked_data_level = level
    camera = _layers.camera(viewer)
    camera.center = _layers.world_from_l0(slide, (x0 + side / 2, y0 + side / 2))
    camera.zoom = 2 / MPP_X  # two screen pixels per level-0 pixel in x
    boxes = []
    for visible in (False, True):
        over.visible = visible
        qtbot.wait(50)
        picture = viewer.screenshot(flash=False).astype(int)
        changed = abs(picture[..., :3] - 255).max(-1) > 127
        inside = np.argwhere(changed & (picture[..., 3] > 0))
        centre = np.array(picture.shape[:2]) // 2
        near = inside[(abs(inside - centre) < 400).all(1)]
        boxes.append([*near.min(0), *(near.max(0) + 1)])
    allowed_l0 = max(1.0, 0.5 * 2**level)
    assert np.abs(np.subtract(*boxes)).max() / 2 <= allowed_l0


def test_looking_at_a_tile_centres_it(shown, slide):
    _layers.look_at(shown, slide, (1000, 800, 1100, 880))
    camera = _layers.camera(shown)
    assert camera.center[-2:] == pytest.approx(
        _layers.world_from_l0(slide, (1050, 840))
    )
    assert 0.05 < 40 * camera.zoom / 700 < 0.9
    zoom = camera.zoom
    _layers.look_at(shown, slide, (0, 0, 100, 80))
    assert camera.zoom == zoom


def test_no_number_is_transparent(shown, slide):
    values = np.array([[0.5, np.nan]], np.float32)
    layer = _layers.show_heatmap(
        shown, slide, Heatmap(values, (0, 0), (100, 100)), "map"
    )
    assert layer.colormap.map(np.array([np.nan]))[0, 3] == 0
    assert layer.contrast_limits == [0.5, 1.5]
    assert layer.opacity == pytest.approx(0.4)


def test_colours_become_a_picture_with_holes(shown, slide):
    values = np.array([[[1.0, 0.5, 0.0], [np.nan] * 3]])
    layer = _layers.show_heatmap(
        shown, slide, Heatmap(values, (0, 0), (100, 100)), "colours"
    )
    assert layer.rgb
    assert layer.data[0].tolist() == [[255, 128, 0, 255], [0, 0, 0, 0]]


def test_a_second_result_replaces_the_first_and_stays_hidden(shown, slide):
    first = Heatmap(np.zeros((2, 3), np.float32), (0, 0), (500, 500))
    second = Heatmap(np.ones((4, 6), np.float32), (10, 20), (250, 250))
    layer = _layers.show_heatmap(shown, slide, first, "map", contrast_limits=(0, 1))
    layer.visible, layer.opacity, layer.colormap = False, 0.7, "magma"
    again = _layers.show_heatmap(shown, slide, second, "map", contrast_limits=(0, 2))
    assert [x.name for x in shown.layers] == ["ellipse", "map"]
    assert again.data.shape == (4, 6)
    assert again.scale == pytest.approx((250 * MPP_Y, 250 * MPP_X))
    assert again.contrast_limits == [0, 2]
    assert (again.visible, again.opacity, again.colormap.name) == (False, 0.7, "magma")
    colours = Heatmap(np.zeros((2, 2, 3)), (0, 0), (500, 500))
    _layers.show_heatmap(shown, slide, second, "top")
    third = _layers.show_heatmap(shown, slide, colours, "map")
    assert [x.name for x in shown.layers] == ["ellipse", "map", "top"]
    assert third.rgb
    assert not third.visible


def test_a_layer_of_the_users_with_that_name_is_left_alone(shown, slide):
    theirs = shown.add_image(np.zeros((4, 4)), name="map")
    ours = _layers.show_heatmap(
        shown, slide, Heatmap(np.ones((2, 2), np.float32), (0, 0), (9, 9)), "map"
    )
    assert theirs in shown.layers
    assert theirs.data.shape == (4, 4)
    assert ours.name != theirs.name or ours is not theirs
    _layers.remove(shown, slide, ours.name)
    assert theirs in shown.layers
    assert ours not in shown.layers


def test_showing_a_result_keeps_the_selection(shown, slide):
    base = shown.layers[0]
    shown.layers.selection.active = base
    _layers.show_heatmap(
        shown, slide, Heatmap(np.ones((2, 2), np.float32), (0, 0), (9, 9)), "map"
    )
    assert shown.layers.selection.active is base


def test_classes_are_named_in_the_status_bar_and_can_be_hidden(shown, slide):
    labels = np.array([[0, 1], [2, 3]])
    heatmap = Heatmap(labels, (0, 0), (400, 400))
    layer = _layers.show_classes(
        shown, slide, heatmap, "classes", ["A", "B", "C"], COLORS
    )
    where = _layers.world_from_l0(slide, (200, 600))
    assert "class: B" in layer.get_status(where, world=True)["value"]
    assert not layer.editable
    colour = layer.colormap.map(np.array([0, 2]))
    assert colour[0, 3] == 0
    assert colour[1] == pytest.approx([86 / 255, 180 / 255, 233 / 255, 1], abs=1e-3)
    _layers.restyle_classes(layer, COLORS, shown=[1])
    assert layer.colormap.map(np.array([1, 2]))[:, 3].tolist() == [1, 0]
    again = _layers.show_classes(
        shown,
        slide,
        Heatmap(labels.T, (0, 0), (400, 400)),
        "classes",
        ["X"],
        COLORS[:1],
    )
    assert again is layer
    assert list(layer.features["class"]) == ["", "X"]


def test_a_picture_fills_its_box(shown, slide):
    rgb = np.zeros((50, 100, 3), np.uint8)
    layer = _layers.show_picture(shown, slide, rgb, (100, 200, 300, 280), "tile")
    corner = layer.data_to_world((-0.5, -0.5))
    assert corner == pytest.approx(_layers.world_from_l0(slide, (100, 200)))
    corner = layer.data_to_world((49.5, 99.5))
    assert corner == pytest.approx(_layers.world_from_l0(slide, (300, 280)))


def test_a_slide_without_pixel_size_is_in_pixels_until_it_is_known(viewer, bare_path):
    slide = Slide.open(bare_path)
    layer = _layers.open_slide(viewer, slide)
    over = _layers.show_heatmap(
        viewer, slide, Heatmap(np.ones((2, 2), np.float32), (10, 20), (50, 50)), "map"
    )
    assert layer.scale == pytest.approx((1, 1))
    assert [str(unit) for unit in layer.units] == ["pixel", "pixel"]
    slide.settle_mpp((0.4, 0.5))
    _layers.apply_mpp(viewer, slide)
    assert layer.scale == pytest.approx((0.5, 0.4))
    assert [str(unit) for unit in over.units] == ["micrometer", "micrometer"]
    assert layer.metadata["histomae"]["mpp"] == [0.4, 0.5]
    corner = over.data_to_world((-0.5, -0.5))
    assert corner == pytest.approx(_layers.world_from_l0(slide, (10, 20)))
    slide.settle_mpp(0.8)
    _layers.apply_mpp(viewer, slide)
    assert layer.scale == pytest.approx((0.8, 0.8))
    corner = over.data_to_world((-0.5, -0.5))
    assert corner == pytest.approx(_layers.world_from_l0(slide, (10, 20)))


def test_a_slide_is_opened_once_and_let_go(slide_path):
    slide = Slide.open(slide_path)
    data = _layers.slide_layer_data(slide)
    entry = data[1]["metadata"]["histomae"]
    assert _layers.slide_behind(entry) is slide
    del slide, data
    gc.collect()
    assert str(slide_path) not in _layers._open_slides
    assert _layers.slide_behind(entry).slide_id == entry["slide_id"]


def test_a_slide_that_fails_complains_once_a_minute(complaints):
    say = _layers._Complaints(Path("C2.tiff"))
    for _ in range(5):
        say(SlideError("C2.tiff cannot be read. Check it."))
    assert complaints.texts == [
        "C2.tiff cannot be read. Check it. Unreadable parts are shown in grey."
    ]


class TestRegions:
    """What a person draws, to level-0 pixels and back."""

    @pytest.fixture
    def annotation(self):
        annotations = pytest.importorskip("histomae.slides.annotations")

        def make(roi, class_name="Stroma", **others):
            values = {"color": (1, 2, 3), "id": "one", "name": ""} | others
            return annotations.Annotation(roi=roi, class_name=class_name, **values)

        return make

    def test_come_back_as_they_were(self, shown, slide, annotation):
        from shapely.geometry import MultiPolygon, Polygon, box

        holed = box(100, 100, 400, 300).difference(box(150, 150, 250, 250))
        holed = holed.difference(box(300, 200, 350, 250))
        parts = MultiPolygon([box(500, 500, 600, 600), box(700, 500, 760, 640)])
        before = [
            annotation(Polygon([(0, 0), (50.5, 0), (20, 80.25)]), name="tip"),
            annotation(holed, "Duct", id="two", color=(9, 8, 7)),
            annotation(parts, "", id="three", color=None),
        ]
        layer = _layers.show_annotations(shown, slide, before)
        after = _layers.annotations_from(layer, slide)
        assert [x.id for x in after] == [x.id for x in before]
        assert [x.class_name for x in after] == ["Stroma", "Duct", ""]
        assert after[0].name == "tip"
        assert after[1].color == (9, 8, 7)
        for old, new in zip(before, after, strict=True):
            assert new.roi.is_valid
            assert new.roi.symmetric_difference(old.roi).area == pytest.approx(
                0, abs=1e-6
            )

    def test_lie_on_the_pixels_they_name(self, shown, slide, annotation):
        from shapely.geometry import box

        layer = _layers.show_annotations(
            shown, slide, [annotation(box(10, 20, 30, 60))]
        )
        world = np.array([layer.data_to_world(point) for point in layer.data[0]])
        assert world.min(0) == pytest.approx(_layers.world_from_l0(slide, (10, 20)))
        assert world.max(0) == pytest.approx(_layers.world_from_l0(slide, (30, 60)))

    def test_newly_drawn_ones_take_the_class_and_keep_an_id(
        self, shown, slide, annotation
    ):
        layer = _layers.show_annotations(shown, slide, [])
        _layers.set_drawing_class(layer, "Fat", (250, 200, 0))
        layer.add_rectangles(np.array([[0, 0], [0, 10], [10, 10], [10, 0]]) + 99.5)
        layer.add_ellipses(np.array([[0, 0], [0, 20], [10, 20], [10, 0]]) + 299.5)
        layer.add_paths(np.array([[0, 0], [5, 5], [9, 1]]))
        first, second = _layers.annotations_from(layer, slide)
        assert first.class_name == second.class_name == "Fat"
        assert first.color == (250, 200, 0)
        assert first.id
        assert first.id != second.id
        assert first.roi.bounds == (100, 100, 110, 110)
        assert second.roi.area == pytest.approx(np.pi * 5 * 10, rel=0.01)
        again = _layers.annotations_from(layer, slide)
        assert [x.id for x in again] == [first.id, second.id]
        _layers.recolour(layer, {"Fat": (0, 0, 255)})
        assert layer.edge_color[0] == pytest.approx([0, 0, 1, 1])

    def test_of_a_layer_that_is_not_ours(self, shown, slide, annotation):
        layer = shown.add_shapes(
            [np.array([[0, 0], [0, 1], [1, 1], [1, 0]])],
            shape_type="polygon",
            scale=(100, 100),
            translate=(50, 30),
        )
        (only,) = _layers.annotations_from(layer, slide)
        assert only.class_name == ""
        expected = np.array([30, 50, 130, 150]) / np.tile([MPP_X, MPP_Y], 2) + 0.5
        assert only.roi.bounds == pytest.approx(tuple(expected))

    def test_a_crossing_outline_is_mended(self, shown, slide, annotation):
        layer = _layers.show_annotations(shown, slide, [])
        layer.add_polygons(np.array([[0, 0], [10, 10], [10, 0], [0, 10.0]]))
        (only,) = _layers.annotations_from(layer, slide)
        assert only.roi.is_valid
        assert only.roi.area == pytest.approx(50)


def table_of(slide, centres_l0, labels, outlines_l0):
    """Return a table of what was found on a slide, of two classes."""
    return MarkTable(
        centres_l0=centres_l0,
        labels=labels,
        outlines_l0=outlines_l0,
        class_names=("benign", "malignant"),
        class_colors=((0, 90, 180), (230, 60, 0)),
        slide_name=slide.name,
        slide_id=slide.slide_id,
        segmenter_id="0123",
        mpp=slide.mpp,
    )


def test_marks_become_labels_and_points(viewer, slide):
    _layers.open_slide(viewer, slide)
    objects = np.zeros((40, 60), np.int32)
    objects[5:11, 8:16], objects[20:24, 30:34] = 1, 2
    size, origin = (2.0, 4.0), (100.0, 60.0)
    centres = np.array([[12.0, 8.0], [32.0, 22.0]]) * size + origin
    outlines = shapely.box(0, 0, 5, 4), shapely.box(0, 0, 2, 2)
    table = table_of(slide, centres, np.array([0, 1]), outlines)
    marks = SlideMarks(
        table,
        Heatmap(objects.astype(np.uint8), origin, size),
        Heatmap(objects, origin, size),
        areas=False,
    )
    for _ in range(2):  # again replaces its layers
        areas, found, points = _layers.show_segmented(viewer, slide, marks)
    assert len(_layers.layers_of(viewer, slide)) == 3
    for layer in (areas, found):
        place = _layers.l0_from_world(slide, layer.data_to_world((8, 12)))
        assert place == pytest.approx([12.5 * 2 + 100, 8.5 * 4 + 60])
        assert np.array_equal(layer.data, objects)
    where = np.array([points.data_to_world(at) for at in points.data])
    assert _layers.l0_from_world(slide, where) == pytest.approx(centres)
    assert list(points.features["class"]) == ["benign", "malignant"]
    assert points.face_color[1, :3] == pytest.approx(np.array([230, 60, 0]) / 255)
    assert list(points.features["area"]) == pytest.approx([20 * 0.2, 4 * 0.2])
    # Areas have no centres, and what showed objects before is gone.
    marks = SlideMarks(table, marks.classes, marks.objects, areas=True)
    (areas,) = _layers.show_segmented(viewer, slide, marks, shown=[2])
    assert _layers.segmented_layers(viewer, slide) == [areas]
    assert [areas.colormap.color_dict[label][3] for label in (1, 2)] == [0, 1]


def test_where_nothing_was_found_there_are_empty_layers(viewer, slide):
    _layers.open_slide(viewer, slide)
    table = table_of(slide, np.empty((0, 2)), np.empty(0, np.int64), ())
    size, origin = (2.0, 4.0), (100.0, 60.0)
    nothing = Heatmap(np.zeros((40, 60), np.int32), origin, size)
    classes = Heatmap(np.zeros((40, 60), np.uint8), origin, size)
    marks = SlideMarks(table, classes, nothing, areas=False)
    for _ in range(2):  # a second time in their place
        areas, objects, centres = _layers.show_segmented(viewer, slide, marks)
        assert not areas.data.any() and not objects.data.any()
        assert len(centres.data) == 0
