"""To a segmenter, from marked pictures or slides, judged on what was held out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.classes import ClassSet
from histomae.data.marked_sets import Sides, as_tiles, at_mpp, by_patient, joined
from histomae.data.monuseg import NUCLEI
from histomae.errors import NotEnoughDataError
from histomae.evaluate.dense import score_dense
from histomae.events import Note
from histomae.learn.dense import DenseTraining, teach_dense
from histomae.learn.marked_slides import (
    nucleus_cells,
    nucleus_tiles,
    region_tiles,
    regions_apart,
)
from histomae.learn.teach import LabelledSlide, classes_of
from histomae.models.checkpoint import (
    Checkpoint,
    Kept,
    checkpoint_tensors,
    encoder_from,
)
from histomae.models.segmenter import Segmenter, SegmenterHeader, network_of
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.tissue import tissue_cells, tissue_mask

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from histomae.data.marks import MarkedSet
    from histomae.evaluate.dense import DenseScore
    from histomae.events import Event
    from histomae.models.checkpoint import CheckpointHeader
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
#: Share of the patients, or of the regions, that judge.
HOLD_OUT = 0.2
#: Tiles with nuclei that are learned from, of all slides together; memory holds them.
MOST_TILES = 600
#: Tiles with less tissue are no place for nuclei.
LEAST_TISSUE = 0.5


@dataclass(frozen=True, eq=False)
class MarkedSlide:
    """A slide and the centres (n, 2) of its nuclei, level-0 (x, y), each of a class."""

    slide: Slide
    centres_l0: Array
    labels: Array


def fit_pictures(
    data: MarkedSet, header: CheckpointHeader, *, own_mpp: float | None = None
) -> MarkedSet:
    """Bring marked pictures to the tiles of an encoder.

    One trained on slides sees them at its µm per pixel; one trained on whole pictures
    sees each as one tile.

    Raises
    ------
    ConfigError
        If µm are needed and nobody tells them.
    UpsamplingError
        If the pictures are too coarse.
    """
    if header.mpp is None:
        return as_tiles(data, header.tile_px, sector=header.scan_sector)
    return at_mpp(data, header.mpp, own=own_mpp)


def sides_of_nuclei(
    marked: Sequence[MarkedSlide],
    header: CheckpointHeader,
    classes: ClassSet = NUCLEI,
    *,
    hold_out: float = HOLD_OUT,
    tiles: int = MOST_TILES,
    seed: int = 0,
) -> Sides:
    """Part the tiles of slides on which the centres of nuclei are known.

    Of several slides some judge; of a single one blocks of tiles. On a tile that holds
    a centre all nuclei count as marked; other tiles are left out.

    Raises
    ------
    NotEnoughDataError
        If no tile on tissue holds a centre, or one slide's fill one block.
    """
    sets, alone = [], len(marked) == 1
    random = np.random.default_rng(seed)
    for one in marked:
        grid = TileGrid.over(one.slide, TileSpec(header.tile_px, header.known_mpp))
        tissue = tissue_cells(grid, tissue_mask(one.slide), LEAST_TISSUE)
        cells = nucleus_cells(grid, one.centres_l0, tissue)
        many = min(len(cells), max(1, tiles // len(marked)))
        cells = cells[np.sort(random.choice(len(cells), many, replace=False))]
        sets.append(
            nucleus_tiles(
                one.slide,
                grid,
                cells,
                one.centres_l0,
                one.labels,
                classes,
                by_block=alone,
            )
        )
    if not any(map(len, sets)):
        raise NotEnoughDataError(
            "No tile on tissue holds a centre of the tables. Check that each table is "
            "of its slide, in pixels of its finest level."
        )
    what = "block" if alone else "slide"
    return by_patient(joined(sets, "nuclei on slides"), hold_out, seed=seed, what=what)


def sides_of_regions(
    drawn: Sequence[LabelledSlide],
    header: CheckpointHeader,
    *,
    hold_out: float = HOLD_OUT,
    seed: int = 0,
) -> Sides:
    """Part what was drawn on slides: of each class some regions judge.

    They are left blank for whoever learns. The classes are those of the regions.

    Raises
    ------
    NotEnoughDataError
        If fewer than two classes are drawn: all tissue would be of the one.
    """
    colors = classes_of(drawn)
    if len(colors) < 2:
        raise NotEnoughDataError(
            f"{len(colors) or 'No'} class is drawn: areas are told apart by two or "
            "more. Draw regions of another class, or mark the centres of nuclei."
        )
    classes = ClassSet(tuple(colors), tuple(colors.values()))
    known = [one for item in drawn for one in item.annotations if one.class_name]
    judge = regions_apart(known, hold_out, seed) if hold_out else set()
    learn = {one.id for one in known} - judge

    def tiles(hidden: set[str]) -> MarkedSet:
        return joined(
            [
                region_tiles(
                    item.slide,
                    TileGrid.over(
                        item.slide, TileSpec(header.tile_px, header.known_mpp)
                    ),
                    item.annotations,
                    classes,
                    hidden=hidden,
                )
                for item in drawn
                if any(one.class_name for one in item.annotations)
            ],
            "regions on slides",
        )

    if not judge:
        why = "each class has one region only" if hold_out else "nothing was held out"
        return Sides(tiles(judge), None, why)
    return Sides(
        tiles(judge),
        tiles(learn),
        f"on {len(judge)} of {len(known)} regions, which it did not learn from",
    )


def teach_segmenter(
    checkpoint: Checkpoint,
    sides: Sides,
    settings: DenseTraining | None = None,
    *,
    seed: int = 0,
) -> Generator[Event, None, Segmenter]:
    """Teach a decoder on an encoder, and judge it on what was held out.

    Raises
    ------
    NotEnoughDataError
        If nothing is marked.
    DataSetError, SlideError
        If a picture, or a slide, cannot be read.
    ConfigError
        If the encoder is no ViT.
    """
    settings = settings or DenseTraining()
    alone = checkpoint.encoder_only()
    header = alone.header
    for note in sides.taught.notes:
        yield Note(note)
    data = sides.taught
    steps = 0
    network = network_of(encoder_from(alone), header)
    work = teach_dense(network, data, np.arange(len(data)), settings, seed=seed)
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            reader = stop.value
            break
        steps = getattr(event, "step", steps)
        yield event
    scores: dict[str, Any] = {"lines": [f"not judged: {sides.told}"]}
    if sides.judged is not None:
        rows = np.arange(len(sides.judged))
        score = yield from score_dense(reader, sides.judged, rows, seed=seed)
        scores = scores_of(score, data, sides.told)
    tensors = checkpoint_tensors(reader.model)
    return Kept(
        SegmenterHeader(
            encoder=header,
            began_with=checkpoint.encoder_id,
            frozen=settings.frozen,
            width=settings.width,
            class_names=data.classes.names,
            class_colors=data.classes.colors,
            areas=data.partial,
            taught_by=data.name,
            step=steps,
            scores=scores,
        ),
        {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
    )


def scores_of(score: DenseScore, data: MarkedSet, told: str) -> dict[str, Any]:
    """Return a score as plain JSON, ``lines`` being for people."""
    dice = dict(zip(data.classes.names, score.dice.tolist(), strict=True))
    each = ", ".join(f"{name} {_number(value)}" for name, value in dice.items())
    lines = [f"judged {told}"]
    lines.append(
        f"Dice {_number(score.mean_dice)}{_between(score.dice_interval)}"
        + (f": {each}" if len(dice) > 1 else "")
    )
    if not data.partial:
        near = f"{score.near_px:g} px"
        if data.mpp is not None:
            near += f" ({score.near_px * data.mpp:.3g} µm)"
        lines += [
            f"AJI {_number(score.aji)}{_between(score.aji_interval)}",
            f"F1 of centres at {near} {_number(score.f1)}"
            f"{_between(score.f1_interval)}: precision {_number(score.precision)}, "
            f"recall {_number(score.recall)}",
        ]
    plain = {
        "pictures": score.pictures,
        "groups": score.patients,
        "dice": {name: _plain(value) for name, value in dice.items()},
        "dice_interval": [*map(_plain, score.dice_interval)],
        "aji": _plain(score.aji),
        "aji_interval": [*map(_plain, score.aji_interval)],
        "precision": _plain(score.precision),
        "recall": _plain(score.recall),
        "f1": _plain(score.f1),
        "f1_interval": [*map(_plain, score.f1_interval)],
        "near_px": score.near_px,
    }
    return {"lines": lines, **plain}


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _between(interval: tuple[float, float]) -> str:
    low, high = interval
    return "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"


def _plain(value: float) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return None if math.isnan(value) else float(value)
