"""A segmenter reads a slide, or parts of it: areas or objects, wherever they lie.

A part is read in blocks with a margin, so that memory does not grow with it; an object
belongs to the block that its middle lies in.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from scipy import ndimage
from skimage.measure import find_contours
from skimage.segmentation import clear_border

from histomae.data.picture_grid import PictureGrid
from histomae.errors import AnnotationError, NotEnoughDataError
from histomae.events import Progress
from histomae.exchange.marks import MarkTable
from histomae.infer.dense import DenseReader, tiles_in
from histomae.models.segmenter import segmenter_id
from histomae.slides.annotations import valid_roi
from histomae.slides.heatmap import Heatmap
from histomae.slides.slide import check_mpp
from histomae.slides.tissue import tissue_mask

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from histomae.data.marks import Marks
    from histomae.events import Event
    from histomae.models.segmenter import Segmenter, SegmenterHeader
    from histomae.slides.annotations import Roi
    from histomae.slides.slide import Slide
    from histomae.slides.tissue import TissueMask

Array = np.ndarray[Any, Any]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
#: Side of a block, and what is read around it, in tiles.
BLOCK, MARGIN = 6, 0.5
#: Rasters of larger parts are thinned out: every second pixel, every third, and so on.
MOST_RASTER_PX = 2**25
#: Smaller areas get no outline, pixels.
LEAST_AREA_PX = 64
#: An outline may be so far from the pixels' edges, in pixels.
SIMPLER_PX = 0.3


@dataclass(frozen=True, eq=False)
class SlideMarks:
    """Objects or areas on a part of a slide, as a table of n and as rasters.

    ``classes`` (uint8, 1 to K, 0 for none) and ``objects`` (int32, 1 to n); those of
    large parts are thinned out. ``areas``: these are areas of tissue, not objects.
    """

    table: MarkTable
    classes: Heatmap
    objects: Heatmap
    areas: bool


@dataclass(frozen=True)
class _Block:
    """Pixels of the frame: its own, and those that are read."""

    top: int
    left: int
    high: int
    wide: int
    margin: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) that are read."""
        return self.high + 2 * self.margin, self.wide + 2 * self.margin

    @property
    def corner(self) -> tuple[int, int]:
        """(row, column) of the first one that is read."""
        return self.top - self.margin, self.left - self.margin

    @property
    def own(self) -> tuple[slice, slice]:
        """Its own among those that are read."""
        m = self.margin
        return slice(m, m + self.high), slice(m, m + self.wide)


@dataclass(frozen=True, eq=False)
class SegmentPlan:
    """How a part of a slide is read: ``tiles`` will be looked at.

    ``roi``: what is asked for, level-0; None: all tissue. ``size_l0``: (width, height)
    of a pixel of the frame, whose corner lies at ``origin_l0``.
    """

    slide: Slide
    roi: Roi | None
    picture: PictureGrid | None
    origin_l0: tuple[float, float]
    size_l0: tuple[float, float]
    shape: tuple[int, int]
    blocks: tuple[_Block, ...]
    tiles: int

    def box_l0(self, block: _Block) -> tuple[float, float, float, float]:
        """Return the corners (x0, y0, x1, y1) of a block's own pixels."""
        (x, y), (w, h) = self.origin_l0, self.size_l0
        return (
            *(x + block.left * w, y + block.top * h),
            *(x + (block.left + block.wide) * w, y + (block.top + block.high) * h),
        )

    def l0_of(self, xy: Array) -> Array:
        """Turn (..., 2) of (x, y) in the frame into level-0."""
        found: Array = np.asarray(xy, float) * self.size_l0 + self.origin_l0
        return found


def plan_segmenting(
    slide: Slide, header: SegmenterHeader, roi: Roi | None = None
) -> SegmentPlan:
    """Say what will be looked at; nothing is, but where the tissue lies.

    Parameters
    ----------
    roi
        Level-0; None: all tissue of a slide, all of a picture.

    Raises
    ------
    CheckpointError
        If the segmenter is of whole pictures, and this is none.
    MissingMppError, UpsamplingError
        If it is of slides, and this has no micrometres or too few pixels.
    NotEnoughDataError
        If there is nothing to look at.
    """
    side = header.tile_px
    if header.mpp is None and slide.is_picture:
        grid = PictureGrid.of(slide, side, sector=header.encoder.scan_sector)
        size = grid.tile_size_l0[0] / side, grid.tile_size_l0[1] / side
        whole = (_Block(0, 0, side, side, 0),)
        return SegmentPlan(
            slide, roi, grid, grid.origin_xy_l0, size, (side, side), whole, 1
        )
    mpp = header.encoder.known_mpp
    check_mpp(slide, mpp)
    size = mpp / slide.mpp[0], mpp / slide.mpp[1]
    x, y, width, height = slide.bounds_l0
    x0, y0, x1, y1 = (x, y, x + width, y + height)
    if roi is not None:
        left, top, right, bottom = roi.bounds
        x0, y0 = max(x0, math.floor(left)), max(y0, math.floor(top))
        x1, y1 = min(x1, math.ceil(right)), min(y1, math.ceil(bottom))
    shape = math.ceil((y1 - y0) / size[1]), math.ceil((x1 - x0) / size[0])
    plan = SegmentPlan(slide, roi, None, (x0, y0), size, shape, (), 0)
    wanted = roi if roi is not None or slide.is_picture else _tissue_roi(slide)
    blocks = tuple(
        block
        for block in _blocks(shape, side)
        if wanted is None or wanted.intersects(shapely.box(*plan.box_l0(block)))
    )
    if not blocks:
        raise NotEnoughDataError(
            f"{slide.name} has nothing to look at there. Draw a region on its tissue, "
            "or set what counts as tissue."
        )
    tiles = sum(tiles_in(block.shape, side) for block in blocks)
    return SegmentPlan(slide, roi, None, (x0, y0), size, shape, blocks, tiles)


def _blocks(shape: tuple[int, int], tile_px: int) -> Iterator[_Block]:
    step, margin = BLOCK * tile_px, math.ceil(MARGIN * tile_px)
    for top in range(0, shape[0], step):
        for left in range(0, shape[1], step):
            high, wide = min(step, shape[0] - top), min(step, shape[1] - left)
            yield _Block(top, left, high, wide, margin)


def _tissue_roi(slide: Slide) -> Any:
    """Return the boxes of a slide's tissue, prepared to be met."""
    tissue = _tissue_and_holes(slide)
    rows, columns = np.nonzero(tissue.mask)
    w, h = tissue.pixel_size_l0
    boxes = shapely.box(columns * w, rows * h, (columns + 1) * w, (rows + 1) * h)
    found = shapely.union_all(boxes)
    shapely.prepare(found)
    return found


def _tissue_and_holes(slide: Slide) -> TissueMask:
    """Find the tissue of a slide; a hole in it is fat, or pale, but no glass."""
    tissue = tissue_mask(slide)
    holes = clear_border(ndimage.label(~tissue.mask)[0]) > 0
    return replace(tissue, mask=tissue.mask | holes)


def segment(
    segmenter: Segmenter, reader: DenseReader, plan: SegmentPlan
) -> Generator[Event, None, SlideMarks]:
    """Read a part of a slide as planned; yields how far it is, in tiles.

    What is found is told of tissue alone, holes in it included: on glass a segmenter of
    areas would find some too.

    Parameters
    ----------
    reader
        Of the segmenter.

    Raises
    ------
    SlideError
        If the slide cannot be read.
    """
    canvas = _Canvas(plan)
    done, began = 0, time.perf_counter()
    yield Progress("segmenting", 0, plan.tiles)
    for block in plan.blocks:
        pixels = _pixels(plan, block, segmenter.header.mpp)
        odds, depth = yield from reader.look(pixels)
        marks = reader.marks_in(odds, depth)
        if reader.areas:
            canvas.add_areas(block, marks)
        else:
            canvas.add_objects(block, marks)
        done += tiles_in(block.shape, reader.tile_px)
        pace = done / max(time.perf_counter() - began, 1e-9)
        left = (plan.tiles - done) / pace
        yield Progress("segmenting", done, plan.tiles, pace, left)
    if reader.areas:
        canvas.close_areas(len(reader.classes))
    slide = plan.slide
    table = MarkTable(
        centres_l0=np.array(canvas.centres, float).reshape(-1, 2),
        labels=np.array(canvas.labels, np.int64),
        outlines_l0=tuple(canvas.outlines),
        class_names=reader.classes.names,
        class_colors=reader.classes.colors,
        slide_name=slide.name,
        slide_id=slide.slide_id,
        segmenter_id=segmenter_id(segmenter),
        mpp=slide.mpp if slide.has_mpp else None,
        synthetic=slide.is_synthetic,
    )
    classes, objects = canvas.heatmap(canvas.classes()), canvas.heatmap(canvas.raster)
    return SlideMarks(table, classes, objects, reader.areas)


def _pixels(plan: SegmentPlan, block: _Block, mpp: float | None) -> Array:
    if plan.picture is not None:
        return plan.picture.read(plan.slide, 0, 0)
    assert mpp is not None
    row, column = block.corner
    x, y = plan.l0_of(np.array([column, row]))
    return plan.slide.read_region((float(x), float(y)), block.shape[::-1], mpp)


class _Canvas:
    """What was found so far: a raster of the frame, thinned out, and a list."""

    def __init__(self, plan: SegmentPlan) -> None:
        self._plan = plan
        self.step = max(1, math.ceil(math.sqrt(math.prod(plan.shape) / MOST_RASTER_PX)))
        shape = [len(range(self.step // 2, n, self.step)) or 1 for n in plan.shape]
        self.raster = np.zeros(shape, np.int32)
        self.centres: list[Array] = []
        self.labels: list[int] = []
        self.outlines: list[Roi] = []
        self._tissue = None
        if plan.roi is not None:
            shapely.prepare(plan.roi)
        if not plan.slide.is_picture:
            self._tissue = _tissue_and_holes(plan.slide)

    def classes(self) -> Array:
        """Return the class of each pixel of the raster, uint8."""
        table = np.concatenate([[0], np.array(self.labels, int) + 1]).astype(np.uint8)
        found: Array = table[self.raster]
        return found

    def heatmap(self, values: Array) -> Heatmap:
        """Lay a raster over the slide."""
        size = self._plan.size_l0[0] * self.step, self._plan.size_l0[1] * self.step
        return Heatmap(values, self._plan.origin_l0, size)

    def add_objects(self, block: _Block, marks: Marks) -> None:
        """Take the objects whose middle lies in a block, and in what is asked for."""
        row, column = block.corner
        usable, middles = self._usable(block), marks.centres
        numbers = np.zeros(len(marks.labels) + 1, np.int32)
        boxes = ndimage.find_objects(marks.objects)
        centres = self._plan.l0_of(np.add(middles, (column, row)))
        asked = self._asked(centres[:, 0], centres[:, 1])
        for number, ((x, y), box) in enumerate(zip(middles, boxes, strict=True)):
            if not (asked[number] and usable[int(y), int(x)]):
                continue
            top, left = box[0].start, box[1].start
            shape = outline_of(marks.objects[box] == number + 1)
            if shape is None:
                continue
            self._append(shape, (left + column, top + row), int(marks.labels[number]))
            self.centres.append(centres[number])
            numbers[number + 1] = len(self.labels)
        self._paint(block.corner, numbers[marks.objects])

    def add_areas(self, block: _Block, marks: Marks) -> None:
        """Take the classes of a block's own pixels, on tissue."""
        x, y = self._middles(block)
        inside = self._usable(block) & self._asked(x[None, :], y[:, None])
        kinds = np.where(inside, marks.classes, 0)[block.own]
        self._paint((block.top, block.left), kinds.astype(np.int32))

    def close_areas(self, num_classes: int) -> None:
        """Turn classes into areas: what of one class hangs together."""
        kinds, self.raster = self.raster, np.zeros_like(self.raster)
        for kind in range(1, num_classes + 1):
            parts, _ = ndimage.label(kinds == kind)
            for number, box in enumerate(ndimage.find_objects(parts), start=1):
                mask = parts[box] == number
                if mask.sum() < LEAST_AREA_PX:
                    continue
                shape = outline_of(mask)
                if shape is None:
                    continue
                corner = box[1].start, box[0].start
                self._append(shape, corner, kind - 1, self.step)
                middle = self.outlines[-1].representative_point()
                self.centres.append(np.array([middle.x, middle.y]))
                self.raster[box][mask] = len(self.labels)

    def _append(
        self, shape: Any, corner_xy: tuple[int, int], label: int, step: int = 1
    ) -> None:
        moved = shapely.transform(
            shape, lambda xy: self._plan.l0_of((xy + corner_xy) * step)
        )
        self.outlines.append(moved)
        self.labels.append(label)

    def _asked(self, x: Array, y: Array) -> Bools:
        """Tell which places, level-0, are asked for; x and y are broadcast."""
        if self._plan.roi is None:
            return np.ones(np.broadcast_shapes(x.shape, y.shape), bool)
        found: Bools = shapely.contains_xy(self._plan.roi, x, y)
        return found

    def _middles(self, block: _Block) -> tuple[Array, Array]:
        """Return where the pixels' middles lie, x of the columns and y of the rows."""
        (row, column), (high, wide) = block.corner, block.shape
        (x, y), (w, h) = self._plan.origin_l0, self._plan.size_l0
        across, down = np.arange(wide) + column + 0.5, np.arange(high) + row + 0.5
        return x + across * w, y + down * h

    def _usable(self, block: _Block) -> Bools:
        """Return which pixels a block may fill: its own; of a picture; on tissue."""
        inside = np.zeros(block.shape, bool)
        inside[block.own] = True
        if self._plan.picture is not None:
            inside &= self._plan.picture.shown
        if self._tissue is not None:
            (w, h), mask = self._tissue.pixel_size_l0, self._tissue.mask
            x, y = self._middles(block)
            at_row = np.clip((y / h).astype(int), 0, mask.shape[0] - 1)
            at_column = np.clip((x / w).astype(int), 0, mask.shape[1] - 1)
            inside &= mask[np.ix_(at_row, at_column)]
        return inside

    def _paint(self, corner: tuple[int, int], numbers: Array) -> None:
        """Put numbers where there are none yet; ``corner`` may lie outside."""
        places, picked = [], []
        for first, length, room in zip(
            corner, numbers.shape, self.raster.shape, strict=True
        ):
            half = self.step // 2
            start = max(0, math.ceil((first - half) / self.step))
            stop = min(room, math.ceil((first + length - half) / self.step))
            at = np.arange(start, max(start, stop))
            places.append(at)
            picked.append(at * self.step + half - first)
        old = self.raster[np.ix_(*places)]
        new = numbers[np.ix_(*picked)]
        self.raster[np.ix_(*places)] = np.where(old > 0, old, new)


def outline_of(mask: Bools) -> Roi | None:
    """Return the outline of a part that hangs together, in pixels, at pixel edges.

    It passes within half a pixel of them. None: it has no area.
    """
    rings = find_contours(np.pad(mask, 1).astype(np.float32), 0.5)
    polygons = [shapely.Polygon(ring[:, ::-1] - 0.5) for ring in rings if len(ring) > 3]
    if not polygons:
        return None
    polygons.sort(key=lambda one: -one.area)
    whole = shapely.Polygon(
        polygons[0].exterior, [hole.exterior for hole in polygons[1:]]
    )
    try:
        return valid_roi(whole.simplify(SIMPLER_PX))
    except AnnotationError:
        return None
