"""To a probe, from regions that a person drew or from pictures of a data set.

Their tiles are embedded, then a linear classifier is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.config import FINEST_MPP_RATIO
from histomae.data.classes import next_color
from histomae.data.pictures import tiles_of
from histomae.data.words import some_have
from histomae.errors import (
    ConfigError,
    DataSetError,
    NotEnoughDataError,
    UpsamplingError,
)
from histomae.events import Note, Progress
from histomae.infer.embed import embed_tiles
from histomae.learn.probe import fit_probe
from histomae.slides.annotations import label_cells
from histomae.slides.grid import TileGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from histomae.data.labelled import LabelledPicture, LabelledSet
    from histomae.events import Event
    from histomae.infer.embed import Embeddings
    from histomae.infer.encoder import TileEncoder
    from histomae.models.probe import Probe
    from histomae.slides.annotations import Annotation
    from histomae.slides.grid import TileSpec
    from histomae.slides.slide import Slide

Color = tuple[int, int, int]

#: Tiles of pictures embedded at a time.
BATCH = 32


@dataclass(frozen=True)
class LabelledSlide:
    """A slide and the regions drawn on it."""

    slide: Slide
    annotations: Sequence[Annotation]


@dataclass(frozen=True)
class LabelledTiles:
    """Embedded tiles with their classes.

    ``values`` float32 (M, D); ``labels`` int (M,), indices into ``class_names``;
    ``groups`` int (M,), one number per region over all slides, or per patient.
    """

    values: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    groups: np.ndarray[Any, np.dtype[np.int64]]
    class_names: tuple[str, ...]


def classes_of(labelled: Sequence[LabelledSlide]) -> dict[str, Color]:
    """Return the classes of some regions with their colours, in order of appearance.

    A class has the colour of its first region that has one, else one that no other
    class has.
    """
    drawn: dict[str, Color | None] = {}
    for annotation in (one for item in labelled for one in item.annotations):
        if name := annotation.class_name:
            drawn[name] = drawn.get(name) or annotation.color
    colors = {name: color for name, color in drawn.items() if color}
    for name in drawn:
        if name not in colors:
            colors[name] = next_color(colors.values())
    return {name: colors[name] for name in drawn}


def embed_labelled(
    labelled: Sequence[LabelledSlide],
    encoder: TileEncoder,
    class_names: Sequence[str],
    *,
    pooling: str | None = None,
    embed: Callable[..., Generator[Event, None, Embeddings]] = embed_tiles,
) -> Generator[Event, None, LabelledTiles]:
    """Embed the tiles inside the regions of some slides.

    A tile that the file cannot give is left out. ``embed`` is called as
    :func:`embed_tiles`: a caller may remember what was embedded before.

    Raises
    ------
    NotEnoughDataError
        If no tile lies in a region of one of the classes.
    """
    values, labels, groups = [], [], []
    regions_before = 0
    for item in labelled:
        grid = TileGrid.over(item.slide, encoder.spec)
        cells = label_cells(item.annotations, grid, class_names)
        if len(cells.cells):
            embedded = yield from embed(
                item.slide, encoder, grid, cells.cells, pooling=pooling
            )
            read = ~np.isnan(embedded.values).any(1)
            values.append(embedded.values[read])
            labels.append(cells.labels[read])
            groups.append(cells.groups[read] + regions_before)
        regions_before += len(item.annotations)
    if not values:
        raise NotEnoughDataError(
            "No tile lies in a region of these classes. Draw regions at least "
            f"{encoder.spec.tile_um:.0f} µm wide, and give each a class."
        )
    return LabelledTiles(
        np.concatenate(values),
        np.concatenate(labels),
        np.concatenate(groups),
        tuple(class_names),
    )


def teach(
    labelled: Sequence[LabelledSlide],
    encoder: TileEncoder,
    *,
    colors: dict[str, Color] | None = None,
    pooling: str | None = None,
    embed: Callable[..., Generator[Event, None, Embeddings]] = embed_tiles,
) -> Generator[Event, None, Probe]:
    """Fit a probe to the regions of some slides.

    Parameters
    ----------
    colors
        The classes and their colours, in their order; by default those of the regions.
    pooling
        One of the encoder's; None: its first.
    embed
        As for :func:`embed_labelled`.

    Raises
    ------
    NotEnoughDataError
        If there are too few regions or classes.
    """
    colors = classes_of(labelled) if colors is None else colors
    tiles = yield from embed_labelled(
        labelled, encoder, list(colors), pooling=pooling, embed=embed
    )
    probe = yield from fit_probe(
        tiles.values,
        tiles.labels,
        tiles.groups,
        tiles.class_names,
        class_colors=tuple(colors.values()),
        encoder_id=encoder.encoder_id,
        tile_px=encoder.spec.tile_px,
        mpp=encoder.spec.mpp,
        pooling=pooling or encoder.poolings[0],
    )
    return probe


# ---- from pictures of a data set


def embed_pictures(
    data: LabelledSet,
    encoder: TileEncoder,
    *,
    mpp: float | None = None,
    pooling: str | None = None,
    allow_upsampling: bool = False,
    skip_unreadable: bool = False,
) -> Generator[Event, None, LabelledTiles]:
    """Cut labelled pictures into the encoder's tiles, at its µm per pixel; embed them.

    Pictures smaller than a tile are left out, and a note counts them; so are classes
    without a tile.

    Parameters
    ----------
    mpp
        µm per pixel of the pictures that do not tell it.

    Raises
    ------
    ConfigError
        If the pixel size of a picture is told nowhere.
    UpsamplingError
        If the pictures are coarser than the encoder's tiles.
    DataSetError
        If a picture cannot be read, unless such are skipped.
    NotEnoughDataError
        If no picture holds a tile.
    """
    spec = encoder.spec
    sizes = [_mpp_of(picture, mpp, data) for picture in data.pictures]
    yield from map(Note, data.notes)
    yield from _compare_mpp(sizes, spec, data, allow_upsampling=allow_upsampling)
    bad: list[DataSetError] = []
    small = 0
    waiting: list[np.ndarray[Any, Any]] = []
    vectors: list[np.ndarray[Any, Any]] = []
    owner: list[int] = []
    for row, picture in enumerate(data.pictures):
        yield Progress("embedding pictures", row, len(data))
        try:
            pixels = data.read(picture)
        except DataSetError as error:
            if not skip_unreadable:
                raise
            bad.append(error)
            continue
        tiles = tiles_of(pixels, spec.tile_px, spec.mpp / sizes[row])
        small += not len(tiles)
        owner += [row] * len(tiles)
        waiting += list(tiles)
        while len(waiting) >= BATCH:
            vectors.append(encoder.embed(np.stack(waiting[:BATCH]), pooling=pooling))
            del waiting[:BATCH]
    if waiting:
        vectors.append(encoder.embed(np.stack(waiting), pooling=pooling))
    yield Progress("embedding pictures", len(data), len(data))
    if bad:
        yield Note(f"{len(bad)} of {len(data)} pictures left out: {bad[0]}")
    if small:
        yield Note(
            f"{small} of {len(data)} pictures left out: smaller than a tile of "
            f"{spec.tile_um:.0f} µm."
        )
    if not owner:
        raise NotEnoughDataError(
            f"No picture of {data.name} holds a tile of {spec.tile_um:.0f} µm. Choose "
            "another data set or magnification, or a model of smaller tiles."
        )
    return (yield from _with_classes(data, np.concatenate(vectors), np.array(owner)))


def _with_classes(
    data: LabelledSet, values: np.ndarray[Any, Any], owner: np.ndarray[Any, Any]
) -> Generator[Event, None, LabelledTiles]:
    """Put vectors (M, D) of the pictures ``owner`` (M,) to the classes that they have.

    Parameters
    ----------
    owner
        int (M,): the picture of each tile.
    """
    labels = data.labels[owner]
    present, label = np.unique(labels, return_inverse=True)
    names = data.classes.names
    absent = [name for number, name in enumerate(names) if number not in present]
    if absent:
        yield Note(f"{some_have(absent)} no tile, and cannot be told from the others.")
    patients = np.unique(data.patients, return_inverse=True)[1]
    return LabelledTiles(
        values,
        label.astype(np.int64),
        patients[owner].astype(np.int64),
        tuple(names[number] for number in present),
    )


def _mpp_of(picture: LabelledPicture, mpp: float | None, data: LabelledSet) -> float:
    if picture.mpp is None and mpp is None:
        raise ConfigError(
            "mpp",
            f"{data.name} does not tell the µm per pixel of {picture.name}. Give that "
            "of its pictures.",
        )
    return picture.mpp or mpp  # type: ignore[return-value]


def _compare_mpp(
    sizes: Sequence[float], spec: TileSpec, data: LabelledSet, *, allow_upsampling: bool
) -> Generator[Event, None, None]:
    """Refuse pictures that are too coarse; say how others are resampled."""
    coarse = [size for size in sizes if spec.mpp < FINEST_MPP_RATIO * size]
    if coarse and not allow_upsampling:
        raise UpsamplingError(
            f"{len(coarse)} pictures of {data.name} have up to {max(coarse):.3g} µm "
            f"per pixel; {spec.mpp:.3g}, which the model was trained at, would invent "
            "detail. Choose finer pictures or a coarser model, or allow up-sampling."
        )
    other = sorted({size for size in sizes if abs(size / spec.mpp - 1) > 0.05})
    if other:
        told = " to ".join(f"{size:.3g}" for size in sorted({other[0], other[-1]}))
        yield Note(
            f"The pictures of {data.name} have {told} µm per pixel, the model's tiles "
            f"{spec.mpp:.3g}: they are resampled."
        )


def teach_pictures(
    data: LabelledSet,
    encoder: TileEncoder,
    *,
    mpp: float | None = None,
    pooling: str | None = None,
    allow_upsampling: bool = False,
    skip_unreadable: bool = False,
) -> Generator[Event, None, Probe]:
    """Fit a probe to the labelled pictures of a data set, scored by patient.

    Class names and colours are those of the data set. Parameters and errors as for
    :func:`embed_pictures`.
    """
    tiles = yield from embed_pictures(
        data,
        encoder,
        mpp=mpp,
        pooling=pooling,
        allow_upsampling=allow_upsampling,
        skip_unreadable=skip_unreadable,
    )
    colors = tuple(data.classes.color_of(name) for name in tiles.class_names)
    probe = yield from fit_probe(
        tiles.values,
        tiles.labels,
        tiles.groups,
        tiles.class_names,
        class_colors=colors,
        encoder_id=encoder.encoder_id,
        tile_px=encoder.spec.tile_px,
        mpp=encoder.spec.mpp,
        pooling=pooling or encoder.poolings[0],
        grouped_by=_grouped_by(data),
    )
    told = {"data": data.name, "pictures": len(data)}
    return replace(probe, scores={**probe.scores, **told})


def _grouped_by(data: LabelledSet) -> str:
    """Return what the patients of a data set are: these, slides, or the pictures."""
    if len(set(data.patients.tolist())) == len(data):
        return "picture"
    if all(picture.patient == picture.slide for picture in data.pictures):
        return "slide"
    return "patient"
