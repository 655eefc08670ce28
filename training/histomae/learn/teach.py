"""From regions that a person drew to a probe: embed their tiles, then fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.classes import next_color
from histomae.errors import NotEnoughDataError
from histomae.infer.embed import embed_tiles
from histomae.learn.probe import fit_probe
from histomae.slides.annotations import label_cells
from histomae.slides.grid import TileGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from histomae.events import Event
    from histomae.infer.embed import Embeddings
    from histomae.infer.encoder import TileEncoder
    from histomae.models.probe import Probe
    from histomae.slides.annotations import Annotation
    from histomae.slides.slide import Slide

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelledSlide:
    """A slide and the regions drawn on it."""

    slide: Slide
    annotations: Sequence[Annotation]


@dataclass(frozen=True)
class LabelledTiles:
    """Embedded tiles with their classes.

    ``values`` float32 (M, D); ``labels`` int (M,), indices into ``class_names``;
    ``groups`` int (M,), one number per region over all slides.
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
