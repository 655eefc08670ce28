"""The commands that mark nuclei, lesions and areas: to teach a segmenter, to use it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from histomae.cli_shared import (
    Encoder,
    File,
    Folder,
    Slides,
    checkpoint_of,
    counted,
    each_of,
    mention,
    say,
    show,
    told_apart,
)
from histomae.config import check_least, check_within
from histomae.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histomae.data.marked_sets import Sides
    from histomae.exchange.marks import MarkTable
    from histomae.models.checkpoint import CheckpointHeader
    from histomae.slides.annotations import Annotation, Roi
    from histomae.slides.slide import Slide

Tables = Annotated[
    tuple[Path, ...],
    tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint=""),
]


@dataclass(frozen=True, kw_only=True)
class TeachSegmenter:
    """Teach a segmenter to mark nuclei, lesions or areas, and score it.

    It learns from a folder of MoNuSeg or BUSI, from tables of the centres of nuclei on
    slides (columns x_l0, y_l0, class_name), or from areas drawn on them. A part is held
    out and judged: Dice of the classes, AJI of the objects, F1 of centres at 12 px. The
    file holds the encoder too.

    $ histomae segment teach a.svs --nuclei a.csv --encoder runs/first --out a.segmenter
    $ histomae segment teach a.svs --regions a.geojson --encoder runs/first --out b
    $ histomae segment teach --data MoNuSeg --picture-mpp 0.25 --encoder E --out c
    """

    slides: Slides = ()
    """Slide files, or addresses of them."""
    nuclei: Tables = ()
    """Tables (CSV) of the centres of nuclei: one for each slide, in the same order. On
    a tile with a centre all nuclei must be listed."""
    regions: Tables = ()
    """Or GeoJSON files as QuPath writes them: one for each slide, in the same order."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Or marked pictures: the folder of MoNuSeg, or of BUSI."""
    picture_mpp: float | None = None
    """µm per pixel of pictures that do not tell it: 0.25 for MoNuSeg."""
    by_class: bool = False
    """Tell nuclei apart by the class in the table; else all are nuclei."""
    encoder: Encoder
    """A checkpoint of an encoder (a ViT), or a run folder."""
    out: File
    """Where the segmenter is written."""
    fine_tune: bool = False
    """Let the encoder learn along; it takes about three times as long."""
    epochs: int = 40
    """How often each tile is seen."""
    batch_size: int = 16
    """Tiles of a step."""
    tiles: int = 600
    """At most so many tiles with nuclei are learned from: memory holds them."""
    hold_out: float = 0.2
    """Share of the patients, slides or regions that judge; 0: it is not judged, and
    learns from all."""
    seed: int = 0
    """Of what is held out, weights and batches."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __call__(self) -> None:
        """Teach, print the score, and write the file."""
        from histomae.evaluate.describe import describe_weights
        from histomae.evaluate.segment import teach_segmenter
        from histomae.learn.dense import DenseTraining
        from histomae.models.checkpoint import load_checkpoint, save_checkpoint

        self._check()
        checkpoint = load_checkpoint(checkpoint_of(self.encoder))
        settings = DenseTraining(
            epochs=self.epochs,
            batch_size=self.batch_size,
            frozen=not self.fine_tune,
            flips="horizontal" if checkpoint.header.mpp is None else "all",
            device=self.device,
        )
        with ExitStack() as stack:
            sides = self._sides(checkpoint.header, stack)
            taught = show(teach_segmenter(checkpoint, sides, settings, seed=self.seed))
        save_checkpoint(self.out, taught.header, taught.tensors)
        say("\n".join(describe_weights(self.out)))
        say(f"segmenter: {self.out}")

    def _check(self) -> None:
        named = [
            name
            for name in ("data", "nuclei", "regions")
            if getattr(self, name) not in (None, ())
        ]
        if len(named) != 1:
            both = " and ".join(named) + " are named" if named else "none is given"
            raise ConfigError(
                "data", f"{both}. Teach from one of --data, --nuclei and --regions."
            )
        files = self.nuclei or self.regions
        if self.data is None and len(files) != len(self.slides):
            raise ConfigError(
                named[0],
                f"{counted(len(files), 'file')} for "
                f"{counted(len(self.slides), 'slide')}. Give one for each slide, in "
                "the same order.",
            )
        if self.data is not None and self.slides:
            raise ConfigError("data", "slides are named too. Teach from one of both.")
        check_within("hold_out", self.hold_out, 0, 1)
        for name in ("epochs", "batch_size", "tiles"):
            check_least(name, getattr(self, name), 1)
        check_least("seed", self.seed, 0)

    def _sides(self, header: CheckpointHeader, stack: ExitStack) -> Sides:
        from histomae.data.marked_sets import by_patient, open_marked
        from histomae.evaluate.segment import fit_pictures

        if self.data is not None:
            data = fit_pictures(
                open_marked(self.data), header, own_mpp=self.picture_mpp
            )
            return by_patient(data, self.hold_out, seed=self.seed)
        slides = self._open(stack)
        return (
            self._of_nuclei(slides, header)
            if self.nuclei
            else self._of_regions(slides, header)
        )

    def _open(self, stack: ExitStack) -> list[Slide]:
        from histomae.slides.remote import local_copies
        from histomae.slides.slide import Slide

        slides = []
        for path in show(local_copies(self.slides)):
            slides.append(Slide.open(path, fallback_mpp=self.slide_mpp))
            stack.callback(slides[-1].close)
        return slides

    def _of_nuclei(self, slides: Sequence[Slide], header: CheckpointHeader) -> Sides:
        from histomae.data.classes import ClassSet
        from histomae.data.monuseg import NUCLEI
        from histomae.evaluate.segment import MarkedSlide, sides_of_nuclei
        from histomae.learn.marked_slides import class_names_in, read_centres

        classes = NUCLEI
        if self.by_class:
            names = {name for path in self.nuclei for name in class_names_in(path)}
            classes = ClassSet.of(sorted(names))
        return sides_of_nuclei(
            [
                MarkedSlide(slide, *read_centres(path, classes))
                for slide, path in zip(slides, self.nuclei, strict=True)
            ],
            header,
            classes,
            hold_out=self.hold_out,
            tiles=self.tiles,
            seed=self.seed,
        )

    def _of_regions(self, slides: Sequence[Slide], header: CheckpointHeader) -> Sides:
        from histomae.evaluate.segment import sides_of_regions
        from histomae.learn.teach import LabelledSlide

        drawn = [
            LabelledSlide(slide, _drawn(slide, path))
            for slide, path in zip(slides, self.regions, strict=True)
        ]
        return sides_of_regions(drawn, header, hold_out=self.hold_out, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Mark nuclei, lesions or areas on slides or pictures with a segmenter.

    For each it writes NAME.geojson, which QuPath opens (outlines with their classes),
    NAME.csv (a row for each: its middle, class, size), and with --rasters
    NAME.objects.tiff and NAME.classes.tiff. 'histomae segment teach' makes a segmenter.

    $ histomae segment a.svs --segmenter a.segmenter --out results
    $ histomae segment a.svs --regions a.geojson --segmenter a.segmenter --out results
    """

    slides: Slides = ()
    """Slides, pictures, folders of them, or addresses such as s3://bucket/a.svs."""
    segmenter: File
    """The file that 'histomae segment teach' wrote."""
    out: Folder
    """The folder for the results."""
    regions: Tables = ()
    """GeoJSON files as QuPath writes them: one for each slide, in the same order. Only
    what lies in a region is marked."""
    rasters: bool = False
    """Write the number of each object, and the class of each pixel, as TIFF."""
    tissue: str = ""
    """What counts as tissue, as in 'histomae predict'."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides and pictures whose file names none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __call__(self) -> None:
        """Mark every slide."""
        from histomae.exchange.marks import write_mark_csv, write_raster
        from histomae.exchange.qupath import write_marks
        from histomae.infer.dense import DenseReader
        from histomae.infer.segment import plan_segmenting, segment
        from histomae.models.segmenter import load_segmenter
        from histomae.slides.slide import Slide
        from histomae.slides.tissue import TissueParams

        segmenter = load_segmenter(self.segmenter)
        reader = DenseReader.of(segmenter, device=self.device)
        paths = told_apart(self.slides)
        if self.regions and len(self.regions) != len(paths):
            raise ConfigError(
                "regions",
                f"{counted(len(self.regions), 'file')} for "
                f"{counted(len(paths), 'slide')}. Give one GeoJSON file for each "
                "slide, in the same order.",
            )
        files = dict(zip(paths, self.regions, strict=False))
        tissue = TissueParams.from_text(self.tissue) if self.tissue else None

        def look(path: Path) -> None:
            with Slide.open(path, fallback_mpp=self.slide_mpp, tissue=tissue) as slide:
                roi = _roi(slide, files[path]) if path in files else None
                plan = plan_segmenting(slide, segmenter.header, roi)
                marks = show(segment(segmenter, reader, plan))
                corner = slide.bounds_l0[:2]
            table, name = marks.table, slide.name
            write_marks(self.out / f"{name}.geojson", table, bounds_xy=corner)
            write_mark_csv(self.out / f"{name}.csv", table)
            if self.rasters:
                for what in ("objects", "classes"):
                    raster = getattr(marks, what)
                    write_raster(self.out / f"{name}.{what}.tiff", raster, table.mpp)
            say(f"{name}: {_told(table)}")

        each_of(paths, look)


def _told(table: MarkTable) -> str:
    """Return how many there are of each class, and how large they are together."""
    sizes = table.size_words()
    return ", ".join(
        f"{number:,} {name} ({sizes[name]})" for name, number in table.counts().items()
    )


def _drawn(slide: Slide, path: Path) -> list[Annotation]:
    from histomae.exchange.qupath import read_annotations

    return read_annotations(path, bounds_xy=slide.bounds_l0[:2], on_skipped=mention)


def _roi(slide: Slide, path: Path) -> Roi:
    """Return all that is drawn in a file, as one."""
    import shapely

    from histomae.slides.annotations import valid_roi

    return valid_roi(shapely.union_all([one.roi for one in _drawn(slide, path)]))
