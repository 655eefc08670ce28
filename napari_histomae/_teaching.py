"""What Teach computes: which tiles are labelled, a classifier of them, a map.

No widget here. The slow ones are generators for :mod:`napari_histomae._jobs`. A tile is
embedded once: teaching again after one more region embeds the new tiles only, and a
second map of a slide embeds none.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import HistomaeError
from histomae.events import Heartbeat
from histomae.slides.annotations import label_cells
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import default_mpp

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from histomae.data.classes import ClassSet
    from histomae.events import Event
    from histomae.infer.embed import Embeddings
    from histomae.infer.encoder import TileEncoder
    from histomae.infer.predict import Prediction
    from histomae.models.probe import Probe
    from histomae.slides.annotations import Annotation
    from histomae.slides.slide import Slide
    from napari_histomae._session import Session

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Drawn:
    """A slide and the regions on it."""

    slide: Slide
    regions: Sequence[Annotation]


def grid_over(slide: Slide, spec: TileSpec | None) -> TileGrid:
    """Return the tiles of a slide as a model sees them.

    Parameters
    ----------
    spec
        The model's; None, while there is none: what a training would choose.

    Raises
    ------
    MissingMppError, UpsamplingError
        If the slide's pixel size is unknown, or too coarse for the model.
    """
    return TileGrid.over(slide, spec or TileSpec(mpp=default_mpp([slide])))


@dataclass(frozen=True)
class Counts:
    """How much there is to learn from.

    ``tiles``, and ``regions`` that own one, of each class on all slides; ``refused``
    says of a slide why its regions cannot be used.
    """

    tiles: dict[str, int]
    regions: dict[str, int]
    slides: int
    refused: tuple[tuple[Slide, str], ...]

    @property
    def taught(self) -> list[str]:
        """The classes that have a tile."""
        return [name for name, tiles in self.tiles.items() if tiles]

    @property
    def single(self) -> list[str]:
        """The classes with one region, which cannot be scored."""
        return [name for name, regions in self.regions.items() if regions == 1]


def count_tiles(
    drawn: Sequence[Drawn], spec: TileSpec | None, classes: ClassSet
) -> Counts:
    """Return the labelled tiles of each class.

    Parameters
    ----------
    spec
        The model's tiles; None as for :func:`grid_over`.
    """
    tiles = np.zeros(len(classes), int)
    regions = np.zeros(len(classes), int)
    slides = 0
    refused = []
    for one in drawn:
        try:
            grid = grid_over(one.slide, spec)
        except HistomaeError as error:
            refused.append((one.slide, str(error)))
            continue
        found = label_cells(one.regions, grid, classes.names)
        tiles += found.tiles_per_class(len(classes))
        regions += found.regions_per_class(len(classes))
        slides += bool(len(found.cells))
    return Counts(
        dict(zip(classes.names, tiles.tolist(), strict=True)),
        dict(zip(classes.names, regions.tolist(), strict=True)),
        slides,
        tuple(refused),
    )


def train_classifier(
    load_encoder: Callable[[], TileEncoder],
    drawn: Sequence[Drawn],
    classes: ClassSet,
    cache: EmbeddingCache,
) -> Generator[Event, None, Probe]:
    """Embed the labelled tiles of every slide and fit a probe; scores are its own.

    Slides that the model cannot read, and classes without a tile, are left out.

    Raises
    ------
    CheckpointError
        If the model cannot be loaded.
    NotEnoughDataError
        If fewer than two classes have a tile.
    """
    from histomae.learn.teach import LabelledSlide, teach

    encoder = load_encoder()
    counts = count_tiles(drawn, encoder.spec, classes)
    left_out = {slide.slide_id for slide, _ in counts.refused}
    labelled = [
        LabelledSlide(one.slide, one.regions)
        for one in drawn
        if one.slide.slide_id not in left_out
    ]
    colors = {name: classes.color_of(name) for name in counts.taught}
    return (yield from teach(labelled, encoder, colors=colors, embed=cache.embed))


@dataclass(frozen=True)
class LabelledImages:
    """A data set that was found, and what a person must say before it can teach.

    ``tasks`` are the sets of classes that it offers; none: those of its files.
    """

    path: Path
    kind: str
    name: str
    tasks: tuple[str, ...]
    lacks_mpp: bool

    @property
    def task(self) -> str | None:
        """The task where there is no choice."""
        return self.tasks[0] if self.tasks else None


def find_labelled_images(path: Path) -> Generator[Event, None, LabelledImages]:
    """Find out which labelled images a folder or a table holds.

    Raises
    ------
    DataSetError, LabelError
        If it holds none.
    """
    from histomae.data.datasets import kind_of

    yield Heartbeat()
    kind = kind_of(path)
    yield Heartbeat()
    data = kind.open(path)
    lacks_mpp = any(picture.mpp is None for picture in data.pictures)
    return LabelledImages(path, kind.name, data.name, tuple(kind.tasks), lacks_mpp)


def train_on_images(
    load_encoder: Callable[[], TileEncoder],
    found: LabelledImages,
    task: str | None,
    mpp: float | None,
) -> Generator[Event, None, Probe]:
    """Fit a probe to labelled images; those that cannot be read are left out.

    Raises
    ------
    CheckpointError
        If the model cannot be loaded.
    UpsamplingError
        If the images are coarser than the model's tiles.
    NotEnoughDataError
        If fewer than two classes have a tile.
    """
    from histomae.data.datasets import open_dataset
    from histomae.learn.teach import teach_pictures

    encoder = load_encoder()
    data = open_dataset(found.path, found.kind, task=task)
    return (yield from teach_pictures(data, encoder, mpp=mpp, skip_unreadable=True))


def read_slide(
    load_encoder: Callable[[], TileEncoder],
    probe: Probe,
    slide: Slide,
    cache: EmbeddingCache,
) -> Generator[Event, None, Prediction]:
    """Predict the class of every tile on a slide's tissue.

    Raises
    ------
    CheckpointError
        If the probe belongs to another model.
    NotEnoughDataError
        If the slide has no tissue.
    """
    from histomae.infer.predict import check_fits, predict_embeddings, tissue_grid

    encoder = load_encoder()
    check_fits(encoder, probe)
    grid, cells = tissue_grid(slide, encoder)
    embedded = yield from cache.embed(
        slide, encoder, grid, cells, pooling=probe.pooling
    )
    return predict_embeddings(slide, embedded, probe)


#: One per viewer.
_caches: weakref.WeakKeyDictionary[Session, EmbeddingCache] = (
    weakref.WeakKeyDictionary()
)


class EmbeddingCache:
    """Remembers the embedding of every tile, float32 (D,) each, while the viewer lives.

    ``embedded`` counts the tiles that had to be computed.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], dict[tuple[int, int], Array]] = {}
        self.embedded = 0

    @classmethod
    def of(cls, session: Session) -> EmbeddingCache:
        """Return the cache of a viewer; it is made when first asked for."""
        if session not in _caches:
            _caches[session] = cls()
        return _caches[session]

    def embed(
        self,
        slide: Slide,
        encoder: TileEncoder,
        grid: TileGrid,
        cells: Array,
        *,
        pooling: str | None = None,
        batch_size: int = 32,
    ) -> Generator[Event, None, Embeddings]:
        """Embed tiles as :func:`histomae.infer.embed.embed_tiles` does, each once.

        A tile that could not be read is tried again the next time.
        """
        from histomae.infer.embed import Embeddings, embed_tiles

        pooling = pooling or encoder.poolings[0]
        key = (encoder.encoder_id, pooling, slide.slide_id, grid)
        known = self._known.setdefault(key, {})
        wanted = [(int(row), int(col)) for row, col in cells]
        new = [cell for cell in wanted if cell not in known]
        values: dict[tuple[int, int], Array] = {}
        if new or not wanted:
            # Without any tile it is asked too: it says what is wrong.
            fresh = yield from embed_tiles(
                slide,
                encoder,
                grid,
                np.array(new, int).reshape(-1, 2),
                pooling=pooling,
                batch_size=batch_size,
            )
            self.embedded += len(new)
            values = dict(zip(new, fresh.values, strict=True))
            known.update(
                {cell: row for cell, row in values.items() if np.isfinite(row).all()}
            )
        values.update((cell, known[cell]) for cell in wanted if cell in known)
        rows = [values[cell] for cell in wanted]
        return Embeddings(
            np.stack(rows), np.asarray(cells), grid, encoder.encoder_id, pooling
        )
