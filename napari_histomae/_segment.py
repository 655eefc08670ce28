"""What the Segment dock does on slides. No widget here; jobs are generators."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_histomae import _layers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    import napari
    from napari.layers import Points

    from histomae.data.marked_sets import Sides
    from histomae.events import Event
    from histomae.infer.dense import DenseReader
    from histomae.infer.segment import SegmentPlan, SlideMarks
    from histomae.models.checkpoint import CheckpointHeader
    from histomae.models.segmenter import Segmenter
    from histomae.slides.annotations import Roi
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
#: What may be marked.
VIEW, REGIONS, WHOLE = "view", "regions", "whole"
#: Tiles by which the speed is measured.
TIMED = 4


@dataclass(frozen=True, eq=False)
class Ready:
    """A segmenter that can be used at once; ``tile_s``: seconds for each tile."""

    segmenter: Segmenter
    reader: DenseReader
    tile_s: float

    def seconds(self, plan: SegmentPlan) -> float:
        """Return about how long a plan takes."""
        return self.tile_s * plan.tiles


def open_segmenter(path: Path) -> Generator[Event, None, Ready]:
    """Read a segmenter and find out how fast it is here.

    Raises
    ------
    CheckpointError
        If the file is none.
    """
    from histomae.models.segmenter import load_segmenter

    yield from ()
    return make_ready(load_segmenter(path))


def make_ready(segmenter: Segmenter) -> Ready:
    """Make a segmenter ready, and find out how fast it is here."""
    from histomae.infer.dense import DenseReader

    reader = DenseReader.of(segmenter)
    side = reader.tile_px
    tiles = np.full((TIMED, side, side, 3), 200, np.uint8)
    reader.say(tiles)  # the first time takes longer
    began = time.perf_counter()
    reader.say(tiles)
    return Ready(segmenter, reader, (time.perf_counter() - began) / TIMED)


# ---- which part


def roi_of(viewer: napari.viewer.Viewer, slide: Slide, part: str) -> Roi | None:
    """Return a part of a slide in level-0 pixels; None: all of it.

    Raises
    ------
    AnnotationError
        If nothing is drawn, or nothing of the slide is seen.
    """
    import shapely

    from histomae.errors import AnnotationError
    from histomae.slides.annotations import valid_roi

    if part == WHOLE:
        return None
    if part == REGIONS:
        drawn = _drawn_on(viewer, slide)
        if not drawn:
            raise AnnotationError(
                f"No region is drawn on {slide.name}. Draw one in Teach, or choose "
                "what is seen."
            )
        return valid_roi(shapely.union_all([one.roi for one in drawn]))
    x, y, width, height = slide.bounds_l0
    whole = shapely.box(x, y, x + width, y + height)
    seen = shapely.box(*_layers.view_l0(viewer, slide)) & whole
    if not seen.area:
        raise AnnotationError(
            f"Nothing of {slide.name} is seen. Move it into the view, or press the "
            "house below the list of layers."
        )
    return valid_roi(seen)


def _drawn_on(viewer: napari.viewer.Viewer, slide: Slide) -> list[Any]:
    return [
        one
        for layer in _layers.layers_of(viewer, slide, "annotations")
        for one in _layers.annotations_from(layer, slide)
    ]


def plan(
    slide: Slide, ready: Ready, roi: Roi | None
) -> Generator[Event, None, SegmentPlan]:
    """Say what will be looked at: the tissue of a whole slide takes a while to find.

    Raises
    ------
    CheckpointError, MissingMppError, UpsamplingError, NotEnoughDataError
        If the slide cannot be read so.
    """
    from histomae.infer.segment import plan_segmenting

    yield from ()
    return plan_segmenting(slide, ready.segmenter.header, roi)


def mark(planned: SegmentPlan, ready: Ready) -> Generator[Event, None, SlideMarks]:
    """Mark what was planned."""
    from histomae.infer.segment import segment

    return (yield from segment(ready.segmenter, ready.reader, planned))


# ---- teaching


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a segmenter is taught by: what makes its sides of an encoder's header."""

    words: str
    sides: Callable[[CheckpointHeader], Sides]


def by_regions(viewer: napari.viewer.Viewer, slides: Sequence[Slide]) -> Lesson:
    """Teach areas by what is drawn on the open slides now."""
    from histomae.evaluate.segment import sides_of_regions
    from histomae.learn.teach import LabelledSlide

    drawn = [LabelledSlide(one, tuple(_drawn_on(viewer, one))) for one in slides]
    return Lesson("regions", lambda header: sides_of_regions(drawn, header))


def by_points(layer: Points, slide: Slide) -> Lesson:
    """Teach nuclei by the points of a layer on a slide, each a centre."""
    from histomae.data.classes import ClassSet
    from histomae.data.monuseg import NUCLEI
    from histomae.evaluate.segment import MarkedSlide, sides_of_nuclei

    world = np.array([layer.data_to_world(at)[-2:] for at in layer.data])
    xy = _layers.l0_from_world(slide, world.reshape(-1, 2))
    names = [str(one) for one in layer.features.get("class", []) if str(one)]
    classes, labels = NUCLEI, np.zeros(len(xy), np.int64)
    if len(names) == len(xy) and len(set(names)) > 1:
        classes = ClassSet.of(sorted(set(names)))
        labels = np.array([classes.names.index(name) for name in names])
    marked = MarkedSlide(slide, xy, labels)
    return Lesson(layer.name, lambda header: sides_of_nuclei([marked], header, classes))


def by_table(path: Path, slide: Slide) -> Lesson:
    """Teach nuclei by a table of their centres on a slide (CSV)."""
    from histomae.data.monuseg import NUCLEI
    from histomae.evaluate.segment import MarkedSlide, sides_of_nuclei
    from histomae.learn.marked_slides import read_centres

    def sides(header: CheckpointHeader) -> Sides:
        marked = MarkedSlide(slide, *read_centres(path, NUCLEI))
        return sides_of_nuclei([marked], header)

    return Lesson(path.name, sides)


def by_pictures(path: Path, mpp: float | None) -> Lesson:
    """Teach by the folder of MoNuSeg or BUSI."""
    from histomae.data.marked_sets import by_patient, open_marked
    from histomae.evaluate.segment import HOLD_OUT, fit_pictures

    def sides(header: CheckpointHeader) -> Sides:
        data = fit_pictures(open_marked(path), header, own_mpp=mpp)
        return by_patient(data, HOLD_OUT)

    return Lesson(path.name, sides)


def teach(model: Path, lesson: Lesson, epochs: int) -> Generator[Event, None, Ready]:
    """Teach a segmenter on a frozen encoder, and judge it on what was held out.

    Raises
    ------
    HistomaeError
        If there is not enough to learn from, or the encoder is no ViT.
    """
    from histomae.evaluate.segment import teach_segmenter
    from histomae.learn.dense import DenseTraining
    from histomae.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model)
    settings = DenseTraining(
        epochs=epochs,
        flips="horizontal" if checkpoint.header.mpp is None else "all",
    )
    sides = lesson.sides(checkpoint.header)
    return make_ready((yield from teach_segmenter(checkpoint, sides, settings)))


# ---- files


def export(path: Path, slide: Slide, marks: SlideMarks) -> str:
    """Write for QuPath (.geojson), as a table (.csv) or as a raster (.tiff).

    Returns
    -------
    str
        What was written, for people.
    """
    from histomae.exchange.marks import write_mark_csv, write_raster
    from histomae.exchange.qupath import write_marks

    suffix = path.suffix.lower()
    if suffix == ".csv":
        write_mark_csv(path, marks.table)
    elif suffix == ".tiff":
        raster = marks.classes if marks.areas else marks.objects
        write_raster(path, raster, marks.table.mpp)
    else:
        write_marks(path, marks.table, bounds_xy=slide.bounds_l0[:2])
    what = "areas" if marks.areas else "objects"
    return f"{len(marks.table):,} {what} written to {path.name}."
