"""What Review finds out about slides.

No widget here. The slow ones are generators for :mod:`napari_histomae._jobs`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from histomae.events import Event
    from histomae.infer.closeup import CloseUp, Look
    from histomae.infer.encoder import TileEncoder
    from histomae.infer.predict import Prediction
    from histomae.models.checkpoint import CheckpointHeader
    from histomae.models.probe import Probe
    from histomae.slides.heatmap import Heatmap
    from histomae.slides.slide import Slide
    from napari_histomae._session import Session
    from napari_histomae._teaching import EmbeddingCache

CLASSES, PROBABILITY, CONFIDENCE = "classes", "probability", "confidence"
ATTENTION, ERROR, LIKENESS = "attention", "error", "likeness"
#: Maps that need another look at every tile.
EXTRA = (ATTENTION, ERROR)


@dataclass(frozen=True)
class MapChoice:
    """One of the maps of a slide; ``class_name`` says whose probability."""

    kind: str
    class_name: str = ""

    @property
    def label(self) -> str:
        """What it is called, on the screen and in its layer's name."""
        return f"P({self.class_name})" if self.class_name else self.kind


@dataclass(frozen=True)
class Findings:
    """What an encoder found on a slide; None where nobody asked."""

    encoder_id: str
    prediction: Prediction | None = None
    attention: Heatmap | None = None
    error: Heatmap | None = None
    likeness: Heatmap | None = None

    def has(self, choice: MapChoice) -> bool:
        """Whether a map can be shown."""
        if choice.kind == PROBABILITY:
            known = self.prediction
            return known is not None and choice.class_name in known.class_names
        if choice.kind in (CLASSES, CONFIDENCE):
            return self.prediction is not None
        return getattr(self, choice.kind) is not None


class Results:
    """The findings on the slides of one viewer; get them by :meth:`of`.

    Signals (psygnal)
    -----------------
    changed
        Something else is known of a slide: its id.
    """

    changed = Signal(str)

    def __init__(self) -> None:
        self._found: dict[str, Findings] = {}
        self._model_path: Path | None = None

    @classmethod
    def of(cls, session: Session) -> Results:
        """Return the results of a viewer; they are made when first asked for."""
        if session not in _results:
            _results[session] = cls()
        return _results[session]

    def on(self, slide: Slide | None) -> Findings | None:
        """Return what is known of a slide."""
        return None if slide is None else self._found.get(slide.slide_id)

    def put(self, slide: Slide, findings: Findings) -> None:
        """Keep what was found on a slide, in place of what was known."""
        self._found[slide.slide_id] = findings
        self.changed.emit(slide.slide_id)

    def use_model(self, path: Path | None) -> None:
        """Forget what another model found."""
        if path != self._model_path:
            self._model_path = path
            self._found = {}

    def use_probe(self, slide: Slide | None, probe_id: str | None) -> None:
        """Forget the classes that another classifier found on a slide."""
        found = self.on(slide)
        known = found.prediction if found else None
        if slide and found and known and known.probe_id != probe_id:
            self.put(slide, replace(found, prediction=None))

    def keep_only(self, slides: Iterable[Slide]) -> None:
        """Forget the slides that are closed."""
        open_now = {slide.slide_id for slide in slides}
        self._found = {k: v for k, v in self._found.items() if k in open_now}


_results: weakref.WeakKeyDictionary[Session, Results] = weakref.WeakKeyDictionary()


def choices(class_names: Sequence[str], *, decoder: bool) -> list[MapChoice]:
    """Return the maps that can be asked for.

    Parameters
    ----------
    class_names
        Of the classifier; empty without one: then there is no map of classes.
    decoder
        Whether the model can reconstruct.
    """
    maps = []
    if class_names:
        maps.append(MapChoice(CLASSES))
        maps += [MapChoice(PROBABILITY, name) for name in class_names]
        maps.append(MapChoice(CONFIDENCE))
    maps.append(MapChoice(ATTENTION))
    if decoder:
        maps.append(MapChoice(ERROR))
    maps.append(MapChoice(LIKENESS))
    return maps


# ---- finding out


def check_slide(slide: Slide, header: CheckpointHeader) -> None:
    """Refuse a slide that a model cannot read.

    Raises
    ------
    CheckpointError
        If the model was trained on pictures, and this is none.
    MissingMppError, UpsamplingError
        If its pixel size is unknown, or too coarse.
    """
    from histomae.slides.slide import check_mpp

    if header.mpp is None and slide.is_picture:
        return
    check_mpp(slide, header.known_mpp)


def survey(
    load_encoder: Callable[[], TileEncoder],
    probe: Probe | None,
    slide: Slide,
    cache: EmbeddingCache,
    look: Look,
) -> Generator[Event, None, Findings]:
    """Look at every tile on a slide's tissue.

    With a probe: its prediction. Without one: attention, errors and likeness, and never
    a class.

    Raises
    ------
    CheckpointError
        If the model cannot be loaded, or the probe belongs to another one.
    NotEnoughDataError
        If the slide has no tissue.
    """
    from histomae.infer.maps import embedding_map, overview
    from histomae.infer.predict import check_fits, predict_embeddings, tissue_grid

    encoder = load_encoder()
    if probe is not None:
        check_fits(encoder, probe)
    grid, cells = tissue_grid(slide, encoder)
    if probe is None:
        seen = yield from overview(
            slide,
            encoder,
            grid,
            cells,
            block=look.block,
            head=look.head,
            query=look.query,
        )
        return Findings(
            encoder.encoder_id,
            attention=seen.attention,
            error=seen.error,
            likeness=embedding_map(seen.embeddings),
        )
    embeddings = yield from cache.embed(
        slide, encoder, grid, cells, pooling=probe.pooling
    )
    return Findings(
        encoder.encoder_id,
        prediction=predict_embeddings(slide, embeddings, probe),
        likeness=embedding_map(embeddings),
    )


def survey_more(
    load_encoder: Callable[[], TileEncoder],
    slide: Slide,
    findings: Findings,
    kind: str,
    look: Look,
    probe: Probe | None = None,
) -> Generator[Event, None, Findings]:
    """Add one of the ``EXTRA`` maps to what is known of a slide.

    The probe is for Grad-CAM, where the look names a class.
    """
    from histomae.infer.maps import attention_map, error_map
    from histomae.infer.predict import tissue_grid

    encoder = load_encoder()
    grid, cells = tissue_grid(slide, encoder)
    if kind == ATTENTION:
        heatmap = yield from attention_map(
            slide,
            encoder,
            grid,
            cells,
            block=look.block,
            head=look.head,
            query=look.query,
            probe=probe,
            class_name=look.class_name,
        )
        return replace(findings, attention=heatmap)
    heatmap = yield from error_map(slide, encoder, grid, cells)
    return replace(findings, error=heatmap)


def look_at(
    load_encoder: Callable[[], TileEncoder],
    probe: Probe | None,
    slide: Slide,
    place: tuple[float, float] | tuple[int, int],
    look: Look,
    *,
    is_cell: bool = False,
) -> Generator[Event, None, CloseUp | None]:
    """Look closely at the tile at a place; None beside the slide.

    Parameters
    ----------
    probe
        Left aside if it belongs to another model.
    place
        Level-0 (x, y); or, if ``is_cell``, (row, column) of the encoder's grid.
    """
    from histomae.infer.closeup import look_closely

    encoder = load_encoder()
    grid = encoder.grid_over(slide)
    cell = (int(place[0]), int(place[1])) if is_cell else grid.cell_at(place)
    if cell is None:
        return None
    if probe is not None and probe.encoder_id != encoder.encoder_id:
        probe = None
    return (
        yield from look_closely(
            slide, encoder, grid, cell, probe=probe, look=look, lesion=_lesion(slide)
        )
    )


def look_once_more(
    load_encoder: Callable[[], TileEncoder],
    closeup: CloseUp,
    look: Look,
    *,
    slide: Slide,
    probe: Probe | None = None,
) -> Generator[Event, None, CloseUp]:
    """Look at the same tile of a slide another way."""
    from histomae.infer.closeup import look_again

    yield from ()
    lesion = _lesion(slide)
    return look_again(closeup, load_encoder(), look, probe=probe, lesion=lesion)


def _lesion(slide: Slide) -> Any:
    """Return where a picture shows lesions, if masks that can be read lie beside it."""
    from histomae.data.busi import lesion_at
    from histomae.errors import DataSetError

    try:
        return lesion_at(slide.path) if slide.is_picture else None
    except DataSetError:  # the reader has said it
        return None


def export(path: str | Path, slide: Slide, prediction: Prediction) -> int:
    """Write a prediction for QuPath (.geojson) or for spreadsheets (.csv).

    Returns
    -------
    int
        Number of tiles written.
    """
    from histomae.exchange.qupath import write_predictions
    from histomae.exchange.tables import write_csv

    table = prediction.table()
    if Path(path).suffix.lower() == ".csv":
        write_csv(path, table)
    else:
        write_predictions(path, table, bounds_xy=slide.bounds_l0[:2])
    return len(table)
