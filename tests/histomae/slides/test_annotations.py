"""Tests of histomae.slides.annotations."""

import time
import uuid

import numpy as np
import pytest
import shapely

from histomae.errors import AnnotationError
from histomae.slides.annotations import (
    Annotation,
    covered_cells,
    label_cells,
    roi_from_points,
    valid_roi,
)
from histomae.slides.grid import TileGrid, TileSpec

ROWS, COLS = 9, 12


@pytest.fixture
def grid() -> TileGrid:
    """A grid off the origin, of tiles that are not square in level-0 pixels."""
    return TileGrid(TileSpec(224, 0.5), (30.5, -12.25), (100.3, 80.7), ROWS, COLS)


def blob(rng, centre, radius, points=40):
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    far = radius * rng.uniform(0.5, 1.3, points)
    return shapely.Polygon(centre + far[:, None] * np.c_[np.cos(angle), np.sin(angle)])


def cell_box(grid, row, col, *, share=1.0):
    """The left ``share`` of a cell."""
    x0, y0, x1, y1 = grid.box_l0(row, col)
    return shapely.box(x0, y0, x0 + share * (x1 - x0), y1)


def cover_by_loop(roi, grid):
    """The plain way: every cell against the whole outline."""
    cover = np.zeros(grid.shape)
    for row in range(grid.rows):
        for col in range(grid.cols):
            box = shapely.box(*grid.box_l0(row, col))
            cover[row, col] = roi.intersection(box).area / box.area
    return cover


@pytest.mark.parametrize("seed", range(5))
def test_cover_equals_a_plain_loop(grid, seed):
    rng = np.random.default_rng(seed)
    roi = valid_roi(blob(rng, rng.uniform(0, 1000, 2), rng.uniform(50, 600)))
    cells, covers = covered_cells(roi, grid)
    raster = np.zeros(grid.shape)
    raster[cells[:, 0], cells[:, 1]] = covers
    np.testing.assert_allclose(raster, cover_by_loop(roi, grid), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_a_cell_goes_to_the_annotation_that_covers_most(grid, seed):
    rng = np.random.default_rng(seed)
    annotations = [
        Annotation(blob(rng, rng.uniform(100, 900, 2), 250), class_name=name)
        for name in ("A", "B", "A", "C")
    ]
    found = label_cells(annotations, grid, ["C", "A", "B"])
    cover = np.stack([cover_by_loop(a.roi, grid) for a in annotations])
    best = cover.max(0)
    for row in range(ROWS):
        for col in range(COLS):
            here = (found.cells == (row, col)).all(1)
            assert here.any() == (best[row, col] >= 0.5)
            if here.any() and best[row, col] < 1 - 1e-9:
                assert found.groups[here] == [cover[:, row, col].argmax()]
    names = [annotations[g].class_name for g in found.groups]
    assert [["C", "A", "B"][label] for label in found.labels] == names
    assert found.cells.tolist() == sorted(found.cells.tolist())


def test_an_exact_half_is_enough_and_less_is_not(grid):
    half = Annotation(cell_box(grid, 2, 3, share=0.5), "A")
    large = shapely.union(cell_box(grid, 4, 3), cell_box(grid, 4, 4, share=0.49))
    found = label_cells([half, Annotation(large, "B")], grid, ["A", "B"])
    assert found.cells.tolist() == [[2, 3], [4, 3]]


def test_min_cover_is_a_setting(grid):
    large = shapely.union(cell_box(grid, 4, 3), cell_box(grid, 4, 4, share=0.4))
    cells = label_cells([Annotation(large, "A")], grid, ["A"], min_cover=0.3).cells
    assert cells.tolist() == [[4, 3], [4, 4]]


def test_a_small_annotation_takes_the_cell_under_it(grid):
    def dot(row, col):
        return Annotation(shapely.box(*grid.box_l0(row, col)).centroid.buffer(3), "A")

    block = shapely.box(*grid.box_l0(0, 0)[:2], *grid.box_l0(1, 2)[2:])
    found = label_cells(
        [dot(6, 7), Annotation(block, "B"), dot(1, 1)], grid, ["A", "B"]
    )
    owners = dict(zip(map(tuple, found.cells.tolist()), found.groups, strict=True))
    block_cells = {(row, col): 1 for row in (0, 1) for col in (0, 1, 2)}
    assert owners == {**block_cells, (1, 1): 2, (6, 7): 0}


def test_a_small_annotation_leaves_another_its_only_cell(grid):
    owner = Annotation(cell_box(grid, 1, 1, share=0.8), "A")
    tiny = Annotation(shapely.box(*grid.box_l0(1, 1)).centroid.buffer(3), "B")
    found = label_cells([owner, tiny], grid, ["A", "B"])
    assert found.groups.tolist() == [0]


def test_the_inner_of_nested_regions_wins(grid):
    outer = Annotation(shapely.box(0, 0, 900, 700), "A")
    inner = Annotation(shapely.box(*grid.box_l0(3, 3)).buffer(20), "B")
    for order in ([outer, inner], [inner, outer]):
        found = label_cells(order, grid, ["A", "B"])
        at = (found.cells == (3, 3)).all(1)
        assert found.labels[at] == [1]


def test_the_later_of_equal_regions_wins(grid):
    box = cell_box(grid, 3, 3)
    found = label_cells([Annotation(box, "A"), Annotation(box, "B")], grid, ["A", "B"])
    assert found.labels.tolist() == [1]


def test_annotations_of_other_classes_are_left_out(grid):
    whole = Annotation(shapely.box(-100, -100, 5000, 5000), "Tissue")
    none = Annotation(cell_box(grid, 0, 0))
    found = label_cells(
        [whole, none, Annotation(cell_box(grid, 1, 1), "A")], grid, ["A"]
    )
    assert found.cells.tolist() == [[1, 1]]
    assert found.groups.tolist() == [2]


def test_outside_the_grid_there_are_no_cells(grid):
    away = Annotation(shapely.box(9000, 9000, 9900, 9900), "A")
    for annotations in ([], [away], [Annotation(shapely.box(-90, -90, -50, -50), "A")]):
        found = label_cells(annotations, grid, ["A", "B"])
        assert found.cells.shape == (0, 2)
        assert found.tiles_per_class(2).tolist() == [0, 0]
        assert found.regions_per_class(2).tolist() == [0, 0]


def test_tiles_and_regions_are_counted(grid):
    annotations = [
        Annotation(shapely.union(cell_box(grid, 0, 0), cell_box(grid, 0, 1)), "B"),
        Annotation(cell_box(grid, 5, 5), "B"),
        Annotation(cell_box(grid, 7, 7), "A"),
    ]
    found = label_cells(annotations, grid, ["A", "B", "C"])
    assert found.tiles_per_class(3).tolist() == [1, 3, 0]
    assert found.regions_per_class(3).tolist() == [1, 2, 0]


def test_a_long_outline_is_quick():
    rng = np.random.default_rng(0)
    grid = TileGrid(TileSpec(224, 0.5), (0.0, 0.0), (200.0, 200.0), 400, 400)
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    far = 30_000 + 4_000 * np.sin(9 * angle) + rng.uniform(0, 40, len(angle))
    outline = 40_000 + far[:, None] * np.c_[np.cos(angle), np.sin(angle)]
    annotation = Annotation(roi_from_points(outline), "A")
    started = time.thread_time()
    found = label_cells([annotation], grid, ["A"])
    assert time.thread_time() - started < 60
    assert len(found.cells) * 200**2 == pytest.approx(annotation.roi.area, rel=0.01)


def test_a_bow_tie_becomes_two_triangles():
    roi = roi_from_points(np.array([(0, 0), (10, 10), (10, 0), (0, 10)]))
    assert roi.is_valid
    assert roi.area == pytest.approx(50)


def test_an_outline_drawn_round_twice_has_no_hole():
    angle = np.linspace(0, 3.6 * np.pi, 200)
    points = (10 + 0.2 * angle)[:, None] * np.c_[np.cos(angle), np.sin(angle)]
    roi = roi_from_points(points)
    assert roi.is_valid
    assert roi.area > np.pi * 10**2


def test_a_hole_stays_a_hole():
    ring = shapely.Point(0, 0).buffer(10).difference(shapely.Point(0, 0).buffer(5))
    assert Annotation(ring).roi.area == pytest.approx(ring.area)


def test_spikes_and_lines_are_dropped():
    mixed = shapely.MultiPolygon(
        [shapely.box(0, 0, 4, 4), shapely.Polygon([(9, 9), (10, 10), (11, 11)])]
    )
    assert valid_roi(mixed).equals(shapely.box(0, 0, 4, 4))


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0), (1, 1)],
        [(0, 0), (5, 5), (9, 9)],
        [(3, 3), (3, 3), (3, 3)],
        [(0, 0), (1, 0), (np.nan, 1)],
        [(0, 0), (1, 0), (np.inf, 1)],
        [1, 2, 3],
        [],
    ],
)
def test_outlines_without_area_are_refused(points):
    with pytest.raises(AnnotationError, match="Draw it again"):
        roi_from_points(np.array(points, float))


@pytest.mark.parametrize(
    "roi",
    [
        shapely.Point(1, 1),
        shapely.LineString([(0, 0), (1, 1)]),
        shapely.Polygon(),
        shapely.MultiPolygon(),
        shapely.Polygon([(0, 0), (1, 1), (2, 2)]),
        None,
    ],
)
def test_what_is_no_area_is_refused(roi):
    with pytest.raises(AnnotationError, match="Draw"):
        Annotation(roi)


def test_ids_are_uuids_and_colours_are_checked():
    box = shapely.box(0, 0, 1, 1)
    assert Annotation(box).id != Annotation(box).id
    made = Annotation(box, id="region 7").id
    assert str(uuid.UUID(made)) == made == Annotation(box, id="region 7").id
    given = str(uuid.uuid4())
    assert Annotation(box, id=given).id == given
    assert Annotation(box, color=np.array([1, 2, 3])).color == (1, 2, 3)
    with pytest.raises(AnnotationError, match="0 to 255"):
        Annotation(box, color=(1, 2, 300))
