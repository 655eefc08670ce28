"""Many slides become feature files: planned first, then one after the other.

A slide that is done is not done again, so that whatever ends the work, doing it again
goes on with the rest. One bad slide does not end it.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histomae.errors import (
    FeatureError,
    NotEnoughDataError,
    SlideError,
    UpsamplingError,
)
from histomae.events import Note, Progress
from histomae.exchange.features import SUFFIX, read_header, write_features
from histomae.infer.tiles import CLOCK_STEP_S
from histomae.slides.slide import Slide, default_mpp
from histomae.slides.tissue import params_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from histomae.events import Event
    from histomae.exchange.features import FeatureHeader
    from histomae.infer.embed import SlideEmbedding
    from histomae.infer.regions import Region
    from histomae.models.feature_spec import FeatureSpec
    from histomae.slides.tissue import TissueParams

#: What may be wrong with one slide of many.
OF_ONE_SLIDE = (SlideError, UpsamplingError, NotEnoughDataError)


@dataclass(frozen=True)
class SlideTask:
    """One slide, or region of one, to embed, and the file its features go to.

    ``slide_mpp``: pixel size (x, y) of level 0, µm, where the slide's file names none.
    ``tissue``: what counts as tissue on it. ``region``: None for the whole slide.
    """

    slide: Path
    out: Path
    tiles: int
    slide_mpp: tuple[float, float] | None = None
    tissue: TissueParams | None = None
    region: Region | None = None

    @property
    def name(self) -> str:
        """What it is called, with the suffix of its file."""
        name = self.slide.name
        return name if self.region is None else f"{name} · {self.region.name}"


@dataclass(frozen=True)
class Failure:
    """A slide that could not be embedded, and why, as a sentence."""

    slide: Path
    reason: str


@dataclass(frozen=True)
class CohortPlan:
    """What there is to do: ``finished`` are the slides whose features are there."""

    tasks: tuple[SlideTask, ...]
    finished: tuple[Path, ...]
    failures: tuple[Failure, ...]

    @property
    def tiles(self) -> int:
        """Tiles to embed."""
        return sum(task.tiles for task in self.tasks)


@dataclass(frozen=True)
class Embedded:
    """What came of it: the feature files ``written``, and what failed."""

    written: tuple[Path, ...]
    failures: tuple[Failure, ...]


def cohort_mpp(
    slides: Sequence[Path], slide_mpp: float | None = None
) -> Generator[Event, None, float]:
    """Return the pixel size for an encoder that has none of its own, µm.

    It is the coarser of 0.5 and the coarsest slide's own. Slides that cannot be opened
    do not count.
    """
    coarsest = 0.0
    for number, path in enumerate(slides, start=1):
        yield Progress("reading pixel sizes", number, len(slides))
        try:
            with Slide.open(path, fallback_mpp=slide_mpp) as slide:
                coarsest = max(coarsest, default_mpp([slide]))
        except SlideError:
            continue  # the plan says what is wrong with it
    return coarsest or default_mpp([])


def plan_cohort(
    slides: Sequence[Path],
    embedding: SlideEmbedding,
    out: Path,
    *,
    slide_mpp: float | None = None,
    tissue: TissueParams | None = None,
    regions_of: Callable[[Slide], Sequence[Region]] | None = None,
) -> Generator[Event, None, CohortPlan]:
    """Look at every slide, and at what is in ``out`` already.

    ``tissue`` counts on all of them; None: what is remembered for each. With
    ``regions_of`` each of a slide's regions is a file of its own.

    Raises
    ------
    FeatureError
        If a file in ``out`` was made in another way, or is damaged: nothing is mixed
        with it, and nothing is overwritten.
    """
    made = yield from _made_before(out, embedding.spec)
    tasks: list[SlideTask] = []
    finished: list[Path] = []
    failures: list[Failure] = []
    for number, path in enumerate(slides, start=1):
        try:
            with Slide.open(path, fallback_mpp=slide_mpp, tissue=tissue) as slide:
                grid = embedding.grid_over(slide)
                for region in regions_of(slide) if regions_of else (None,):
                    file = out / f"{_stem(path, region)}{SUFFIX}"
                    if file in made:
                        wanted = embedding.header_of(slide, grid, 0, region)
                        _check_made(file, made[file].difference(wanted))
                        finished.append(path)
                        continue
                    try:
                        tiles = len(embedding.cells_of(slide, grid, region))
                    except NotEnoughDataError as error:
                        failures.append(Failure(path, str(error)))
                        yield Note(str(error))
                        continue
                    # What a person said may be known on this machine only.
                    said = None if slide.mpp_source == "file" else slide.mpp
                    tasks.append(
                        SlideTask(path, file, tiles, said, params_of(slide), region)
                    )
        except OF_ONE_SLIDE as error:
            failures.append(Failure(path, str(error)))
            yield Note(str(error))
        yield Progress("looking for tissue", number, len(slides))
    return CohortPlan(tuple(tasks), tuple(finished), tuple(failures))


def _stem(slide: Path, region: Region | None) -> str:
    return slide.stem if region is None else f"{slide.stem}.{region.file_stem}"


def _made_before(
    out: Path, spec: FeatureSpec
) -> Generator[Event, None, dict[Path, FeatureHeader]]:
    """Return the feature files of a folder, all of them made as ``spec`` says."""
    files = sorted(out.glob(f"*{SUFFIX}"))
    made = {}
    for number, file in enumerate(files, start=1):
        made[file] = read_header(file)
        _check_made(file, made[file].spec.difference(spec))
        yield Progress("checking what is done", number, len(files))
    return made


def _check_made(file: Path, difference: str) -> None:
    if difference:
        raise FeatureError(
            f"{file} was made in another way: {difference}. Choose another folder, or "
            "delete the file to make it anew."
        )


def embed_cohort(
    plan: CohortPlan, embedding: SlideEmbedding
) -> Generator[Event, None, Embedded]:
    """Embed the slides of a plan, each into its file, in this process."""
    meter = CohortMeter(plan.tiles)
    written: list[Path] = []
    failures: list[Failure] = []
    for task in plan.tasks:
        try:
            with closing(embed_task(task, embedding)) as work:
                for event in work:
                    if isinstance(event, Progress):
                        yield meter.at(task, event.done)
        except (*OF_ONE_SLIDE, FeatureError) as error:
            failures.append(Failure(task.slide, str(error)))
            yield Note(str(error))
        else:
            written.append(task.out)
            yield Note(f"{task.name}: {task.tiles} tiles")
        yield meter.at(task, task.tiles)
    return Embedded(tuple(written), tuple(failures))


def embed_task(
    task: SlideTask, embedding: SlideEmbedding
) -> Generator[Event, None, None]:
    """Embed one slide into its file.

    Raises
    ------
    SlideError, UpsamplingError, NotEnoughDataError, FeatureError
        If it cannot be done.
    """
    with Slide.open(
        task.slide, fallback_mpp=task.slide_mpp, tissue=task.tissue
    ) as slide:
        features = yield from embedding.features_of(slide, task.region)
    write_features(task.out, features)


class CohortMeter:
    """Tells how far a cohort has come, from how far each of its slides has."""

    def __init__(self, tiles: int) -> None:
        self._total = tiles
        self._done: dict[Path, int] = {}
        self._begin = time.monotonic()

    def at(self, task: SlideTask, done: int) -> Progress:
        """Return the progress of all once one slide has ``done`` tiles.

        Of a slide that is finished an older count may come late: it is let be.
        """
        self._done[task.out] = max(done, self._done.get(task.out, 0))
        done = sum(self._done.values())
        per_s = done / max(time.monotonic() - self._begin, CLOCK_STEP_S)
        left_s = (self._total - done) / per_s if per_s else None
        return Progress("embedding tiles", done, self._total, per_s, left_s)
