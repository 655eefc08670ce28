"""Regions and nuclei on tiles of a slide, against shapely point by point."""

import numpy as np
import pytest
import shapely

from histomae.data.classes import ClassSet
from histomae.data.monuseg import NUCLEI
from histomae.errors import AnnotationError
from histomae.learn.marked_slides import nucleus_tiles, read_centres, region_tiles
from histomae.slides.annotations import Annotation
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide

CLASSES = ClassSet.of(["Duct", "Stroma"])


@pytest.fixture
def slide(make_slide):
    with Slide.open(make_slide(size=(400, 300), mpp=0.5)) as opened:
        yield opened


@pytest.fixture
def grid(slide):
    return TileGrid.over(slide, TileSpec(64, 1.0))  # 128 px of level 0 a side


def test_regions_lie_where_they_were_drawn(slide, grid):
    ring = shapely.Point(150, 120).buffer(90) - shapely.Point(150, 120).buffer(40)
    inner = shapely.box(300, 20, 340, 60)
    regions = [
        Annotation(shapely.box(280, 10, 380, 200), "Stroma"),
        Annotation(inner, "Duct"),  # on the larger one
        Annotation(ring, "Duct"),
        Annotation(shapely.box(0, 250, 50, 300), "Other"),
    ]
    data = region_tiles(slide, grid, regions, CLASSES)
    assert data.partial and data.mpp == 1.0
    places = {picture.place for picture in data.pictures}
    touched = shapely.union_all([one.roi for one in regions[:3]])
    assert places == {
        (int(row), int(col))
        for row, col in grid.all_cells()
        if shapely.box(*grid.box_l0(row, col)).intersects(touched)
    }
    for picture in data.pictures:
        pixels, marks = data.read(picture)
        assert pixels.shape == (64, 64, 3)
        x0, y0, x1, _ = grid.box_l0(*picture.place)
        step = (x1 - x0) / 64
        for row in range(1, 64, 7):
            for col in range(1, 64, 7):
                at = shapely.Point(x0 + (col + 0.5) * step, y0 + (row + 0.5) * step)
                expected = 0
                if regions[0].roi.contains(at):
                    expected = 2
                if regions[1].roi.contains(at) or ring.contains(at):
                    expected = 1
                assert marks.classes[row, col] == expected, (picture.place, row, col)


def test_regions_of_no_class_are_refused(slide, grid):
    with pytest.raises(AnnotationError, match="Duct, Stroma"):
        region_tiles(slide, grid, [Annotation(shapely.box(0, 0, 9, 9), "x")], CLASSES)


def test_nuclei_lie_where_they_are(slide, grid, tmp_path):
    path = tmp_path / "nuclei.csv"
    path.write_text("x_um,y_um,x_l0,y_l0,class_name\n1,1,40,50,Duct\n1,1,127,60,Fat\n")
    xy, labels = read_centres(path, NUCLEI)
    data = nucleus_tiles(slide, grid, np.array([[0, 0], [0, 1]]), xy, labels, NUCLEI)
    _, left = data.read(data.pictures[0])
    assert len(left.labels) == 2
    assert left.centres[0] == pytest.approx([20, 25], abs=0.5)
    _, right = data.read(data.pictures[1])  # the second sticks out into it
    assert len(right.labels) == 1 and right.objects[30, 0] == 1
    assert not data.partial


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "x_l0,y_l0,class_name\n1,x,Duct\n"])
def test_another_table_is_refused(tmp_path, text):
    path = tmp_path / "nuclei.csv"
    path.write_text(text)
    with pytest.raises(AnnotationError, match="no table of centres"):
        read_centres(path, CLASSES)
    with pytest.raises(AnnotationError, match=r"gone\.csv"):
        read_centres(tmp_path / "gone.csv", CLASSES)
