"""A slide is read in blocks; objects lie where they are drawn, each once."""

from types import SimpleNamespace

import numpy as np
import pytest
import shapely
import tifffile
import torch
from scipy import ndimage

from histomae.data.classes import ClassSet
from histomae.data.marks import discs
from histomae.errors import (
    CheckpointError,
    MissingMppError,
    NotEnoughDataError,
    UpsamplingError,
)
from histomae.events import Progress, result_of
from histomae.exchange.marks import write_mark_csv, write_raster
from histomae.exchange.qupath import read_annotations, write_marks
from histomae.infer import segment as module
from histomae.infer.dense import DenseReader, areas_in, tiles_in
from histomae.infer.segment import outline_of, plan_segmenting, segment
from histomae.learn.marked_slides import read_centres
from histomae.slides.slide import Slide
from histomae.slides.tissue import TissueMask

CLASSES = ClassSet.of(["dark", "red"])
COLOURS = np.array([[235, 200, 220], [60, 60, 120], [200, 40, 40]])
#: Of level 0; it is read at 1 µm.
MPP = 0.5
SIDE = 16


class ColourReader(DenseReader):
    """Says what the colours of the picture say."""

    tile_px = SIDE

    def __init__(self, areas=False):
        self.classes, self.areas = CLASSES, areas

    def look(self, pixels):
        yield from ()
        far = ((pixels[:, :, None].astype(float) - COLOURS) ** 2).sum(-1)
        odds = np.eye(3)[far.argmin(-1)]
        depth = ndimage.distance_transform_edt(odds[..., 0] == 0) / 6
        return odds, depth.clip(0, 1)


def a_segmenter(mpp=1.0):
    def known():
        if mpp is None:
            raise CheckpointError("It was trained on pictures. Choose another.")
        return mpp

    class Encoder:
        scan_sector = False

        @property
        def known_mpp(self):
            return known()

    header = SimpleNamespace(tile_px=SIDE, mpp=mpp, encoder=Encoder())
    return SimpleNamespace(
        header=header, tensors={"head": torch.zeros(1)}, encoder_id="0"
    )


@pytest.fixture(scope="module")
def truth():
    """Sixty discs on a picture of 400 x 300 px at 0.5 µm."""
    random = np.random.default_rng(0)
    steps = np.stack(np.meshgrid(np.arange(20, 400, 40), np.arange(20, 300, 40)), -1)
    centres = steps.reshape(-1, 2)[:60] + random.uniform(-5, 5, (60, 2))
    return centres, random.integers(0, 2, 60)


@pytest.fixture(scope="module")
def slide(make_slide, truth):
    marks = discs(*truth, (300, 400), 10.0)
    pixels = COLOURS[marks.classes].astype(np.uint8)
    with Slide.open(make_slide(pixels, mpp=MPP, factors=(1,))) as opened:
        yield opened


@pytest.fixture(autouse=True)
def all_tissue(monkeypatch):
    """Take everything for tissue: the slide is painted."""
    whole = TissueMask(np.ones((3, 4), bool), (100.0, 100.0), 1.0)
    monkeypatch.setattr(module, "tissue_mask", lambda slide: whole)


def found_on(slide, roi=None, *, areas=False):
    plan = plan_segmenting(slide, a_segmenter().header, roi)
    return result_of(segment(a_segmenter(), ColourReader(areas), plan))


def matched_to(truth, table, within=1.0):
    """Return which true disc each found one is."""
    far = np.hypot(*(table.centres_l0[:, None] - truth[0]).transpose(2, 0, 1))
    assert far.min(1).max() < within
    return far.argmin(1)


def test_objects_on_the_seams_of_blocks_are_found_once(slide, truth):
    marks = found_on(slide)
    table = marks.table
    assert len(table) == 60  # blocks are 96 px wide, and discs lie on their seams
    which = matched_to(truth, table)
    assert sorted(which) == list(range(60))
    assert np.array_equal(table.labels, truth[1][which])
    assert table.counts() == {
        "dark": int((truth[1] == 0).sum()),
        "red": int((truth[1] == 1).sum()),
    }
    expected = np.pi * 5**2  # µm²
    assert table.sizes == pytest.approx(np.full(60, expected), rel=0.15)
    for number, outline in enumerate(table.outlines_l0):
        assert outline.contains(shapely.Point(table.centres_l0[number]))


def test_rasters_lie_on_the_slide(slide, truth):
    marks = found_on(slide)
    assert marks.objects.pixel_size_l0 == pytest.approx((2, 2))
    for number, (x, y) in enumerate(marks.table.centres_l0):
        at = int(y / 2), int(x / 2)
        assert marks.objects.values[at] == number + 1
        assert marks.classes.values[at] == marks.table.labels[number] + 1
    assert marks.classes.values.dtype == np.uint8


def test_large_parts_are_thinned_out_and_stay_in_place(slide, monkeypatch):
    whole = found_on(slide)
    monkeypatch.setattr(module, "MOST_RASTER_PX", 5000)
    thin = found_on(slide)
    assert len(thin.table) == 60 and thin.objects.values.size < 5000
    step = round(thin.objects.pixel_size_l0[0] / 2)
    assert step == 3
    expected = whole.objects.values[step // 2 :: step, step // 2 :: step]
    assert np.array_equal(thin.objects.values, expected)


def test_only_what_is_asked_for(slide, truth):
    roi = shapely.Point(200, 150).buffer(70)
    marks = found_on(slide, roi)
    inside = shapely.contains_xy(roi, truth[0])
    which = matched_to(truth, marks.table)
    assert set(which) == set(np.flatnonzero(inside))
    x, y = marks.objects.origin_xy_l0
    assert (x, y) == (130, 80)
    assert marks.objects.values.shape == (70, 70)


def test_areas_are_what_hangs_together(slide, truth):
    marks = found_on(slide, areas=True)
    assert marks.areas and len(marks.table) == 60
    matched_to(truth, marks.table, within=10)
    with_none = areas_in(np.eye(3)[np.zeros((4, 4), int)])
    assert not len(with_none.labels) and not with_none.objects.any()
    odds = np.eye(3)[np.array([[1, 1, 0, 1], [2, 2, 2, 1]])]
    parts = areas_in(odds)
    assert parts.labels.tolist() == [0, 0, 1]
    assert parts.classes.tolist() == [[1, 1, 0, 1], [2, 2, 2, 1]]


def test_there_are_no_areas_on_glass(slide, monkeypatch):
    mask = np.zeros((3, 4), bool)
    mask[0, :2] = True
    tissue = TissueMask(mask, (100.0, 100.0), 1.0)
    monkeypatch.setattr(module, "tissue_mask", lambda slide: tissue)
    marks = found_on(slide, areas=True)
    assert 0 < len(marks.table) < 15
    assert not marks.classes.values[50:].any()
    assert not marks.classes.values[:, 100:].any()
    mask[:] = False
    with pytest.raises(NotEnoughDataError, match="nothing to look at"):
        found_on(slide)


def test_a_hole_in_tissue_is_no_glass(slide, monkeypatch):
    mask = np.ones((6, 8), bool)
    mask[2, 3] = False  # a hole
    mask[4:, 5] = False  # a crack from the edge
    tissue = TissueMask(mask, (50.0, 50.0), 1.0)
    monkeypatch.setattr(module, "tissue_mask", lambda slide: tissue)
    told = found_on(slide, areas=True).classes.values
    mask[:] = True
    whole = found_on(slide, areas=True).classes.values
    crack = np.s_[100:150, 125:150]
    assert whole[crack].any() and not told[crack].any()
    hole = np.s_[50:75, 75:100]
    assert told[hole].any() and np.array_equal(told[hole], whole[hole])


def test_progress_counts_tiles(slide):
    plan = plan_segmenting(slide, a_segmenter().header)
    events = list(segment(a_segmenter(), ColourReader(), plan))
    told = [one for one in events if isinstance(one, Progress)]
    assert told[0].done == 0 and told[-1].done == told[-1].total == plan.tiles
    assert plan.tiles == sum(tiles_in(one.shape, SIDE) for one in plan.blocks)
    assert told[1].seconds_left > 0 and told[-1].seconds_left == 0


def test_slides_that_cannot_be_read_so_are_refused(slide, make_slide):
    with pytest.raises(UpsamplingError):
        plan_segmenting(slide, a_segmenter(0.2).header)
    with pytest.raises(CheckpointError, match="pictures"):
        plan_segmenting(slide, a_segmenter(None).header)
    with Slide.open(make_slide(mpp=None)) as bare, pytest.raises(MissingMppError):
        plan_segmenting(bare, a_segmenter().header)


def test_an_outline_has_the_holes_of_its_part():
    mask = np.ones((12, 20), bool)
    mask[4:8, 5:15] = False
    outline = outline_of(mask)
    assert len(outline.interiors) == 1
    assert outline.area == pytest.approx(mask.sum(), rel=0.02)
    assert outline.bounds == (0, 0, 20, 12)
    assert not outline.contains(shapely.Point(10, 6))


# ---- files


def test_qupath_gets_detections_that_nobody_drew(slide, tmp_path):
    import json

    table = found_on(slide).table
    path = tmp_path / "found.geojson"
    write_marks(path, table, bounds_xy=(10, 20))
    features = json.loads(path.read_text())["features"]
    assert len(features) == len({one["id"] for one in features}) == 60
    for number, one in enumerate(features):
        assert one["properties"]["objectType"] == "detection"
        kind = one["properties"]["classification"]
        assert kind["name"] == CLASSES.names[table.labels[number]]
        assert kind["color"] == list(CLASSES.colors[table.labels[number]])
        area = one["properties"]["measurements"]["Area µm^2"]
        assert area == pytest.approx(table.sizes[number], abs=1e-5)
        ring = np.add(one["geometry"]["coordinates"][0], (10, 20))
        assert (ring[0] == ring[-1]).all()
        # Two decimals are written.
        assert shapely.Polygon(ring).area == pytest.approx(
            table.outlines_l0[number].area, abs=0.5
        )
    with pytest.raises(ValueError, match="none is a region"):
        read_annotations(path)


def test_the_table_can_be_learned_from(slide, tmp_path):
    table = found_on(slide).table
    write_mark_csv(tmp_path / "found.csv", table)
    xy, labels = read_centres(tmp_path / "found.csv", CLASSES)
    assert xy == pytest.approx(table.centres_l0, abs=0.01)
    assert np.array_equal(labels, table.labels)


def test_rasters_as_tiff_know_their_place(slide, tmp_path):
    import json

    marks = found_on(slide)
    write_raster(tmp_path / "o.tiff", marks.objects, marks.table.mpp)
    with tifffile.TiffFile(tmp_path / "o.tiff") as file:
        page = file.pages[0]
        assert np.array_equal(page.asarray(), marks.objects.values)
        place = json.loads(page.description)
        assert place == {"origin_xy_l0": [0, 0], "pixel_size_l0": [2.0, 2.0]}
        number, over = page.tags["XResolution"].value
        assert number / over == pytest.approx(1e4)  # 1 µm per pixel, in a centimetre
