"""A trained encoder and a probe read a slide: a probability of each class per tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.picture_grid import PictureGrid
from histomae.errors import CheckpointError
from histomae.exchange.tables import TileTable
from histomae.infer.embed import Embeddings, embed_tiles
from histomae.slides.heatmap import Heatmap
from histomae.slides.tissue import tissue_cells, tissue_mask

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.events import Event
    from histomae.infer.encoder import TileEncoder
    from histomae.models.probe import Probe
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Prediction:
    """What a probe says of a slide's tiles.

    ``probabilities`` float32 (M, K) for ``cells`` int (M, 2) of (row, column) of
    ``grid``; rows are NaN where a tile could not be read.
    """

    grid: TileGrid
    cells: Array
    probabilities: Array
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...]
    encoder_id: str
    probe_id: str
    slide_id: str
    slide_name: str
    mpp: tuple[float, float]
    mpp_source: str
    synthetic: bool = False

    @property
    def confidence(self) -> Array:
        """The largest probability of each tile, float32 (M,)."""
        return self.probabilities.max(1)

    @property
    def read(self) -> Array:
        """Which tiles could be read, bool (M,)."""
        return np.asarray(np.isfinite(self.probabilities).all(1))

    def labels(self, threshold: float = 0.0, *, unsure: int = 0) -> Array:
        """Return the class of each tile, uint8 (M,): 1 to K.

        Tiles that are less confident than ``threshold`` are ``unsure``; those that
        could not be read are 0.
        """
        best = np.argmax(np.nan_to_num(self.probabilities), 1) + 1
        sure = np.where(self.confidence >= threshold, best, unsure)
        return np.where(self.read, sure, 0).astype(np.uint8)

    def class_map(self, threshold: float = 0.0, *, unsure: int = 0) -> Heatmap:
        """Return the classes as a raster: 1 to K, 0 where there is none.

        See :meth:`labels`.
        """
        labels = self.labels(threshold, unsure=unsure)
        return Heatmap.from_cells(self.grid, self.cells, labels)

    def probability_map(self, class_name: str, threshold: float = 0.0) -> Heatmap:
        """Return the probability of one class as a raster; NaN below ``threshold``."""
        column = self.probabilities[:, self.class_names.index(class_name)]
        shown = np.where(column >= threshold, column, np.float32(np.nan))
        return Heatmap.from_cells(self.grid, self.cells, shown)

    def confidence_map(self) -> Heatmap:
        """Return the largest probability as a raster."""
        return Heatmap.from_cells(self.grid, self.cells, self.confidence)

    def least_confident(self) -> Array:
        """Return indices of tiles, int (m,), the least confident first.

        Tiles that could not be read are left out.
        """
        order: Array = np.argsort(self.confidence, kind="stable")
        return order[self.read[order]]

    def area_mm2(self, threshold: float = 0.0) -> dict[str, float]:
        """Return the area of each class, mm²; unsure tiles count for none."""
        tile_mm2 = (self.grid.spec.tile_um / 1000) ** 2
        labels = self.labels(threshold)
        return {
            name: float((labels == number).sum() * tile_mm2)
            for number, name in enumerate(self.class_names, start=1)
        }

    def table(self) -> TileTable:
        """Return the tiles that could be read as a table, for other people's tools."""
        read = self.read
        cells = self.cells[read]
        boxes = self.grid.boxes_l0(cells)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        return TileTable(
            boxes_l0=boxes,
            rows=cells[:, 0],
            cols=cells[:, 1],
            xy_um=centres * np.array(self.mpp),
            probabilities=self.probabilities[read],
            class_names=self.class_names,
            class_colors=self.class_colors,
            slide_name=self.slide_name,
            slide_id=self.slide_id,
            encoder_id=self.encoder_id,
            probe_id=self.probe_id,
            mpp=self.grid.spec.mpp,
            mpp_source=self.mpp_source,
            synthetic=self.synthetic,
        )


def tissue_grid(
    slide: Slide, encoder: TileEncoder, *, min_tissue: float = 0.5
) -> tuple[TileGrid, Array]:
    """Return the encoder's tile grid over a slide, and its tiles on tissue (M, 2).

    Of a plain picture, the one tile that shows it, if the encoder was trained on such.

    Raises
    ------
    CheckpointError
        If the encoder was trained on pictures, and this is none.
    UpsamplingError
        If the encoder was trained at a finer mpp than the slide has.
    """
    grid = encoder.grid_over(slide)
    if isinstance(grid, PictureGrid):
        return grid, grid.all_cells()
    return grid, tissue_cells(grid, tissue_mask(slide), min_tissue)


def predict_slide(
    slide: Slide,
    encoder: TileEncoder,
    probe: Probe,
    *,
    min_tissue: float = 0.5,
    batch_size: int = 32,
) -> Generator[Event, None, Prediction]:
    """Predict the class of every tile on tissue.

    Raises
    ------
    CheckpointError
        If the probe was fitted to another encoder.
    UpsamplingError
        If the encoder was trained at a finer mpp than the slide has.
    NotEnoughDataError
        If the slide has no tissue.
    """
    check_fits(encoder, probe)
    grid, cells = tissue_grid(slide, encoder, min_tissue=min_tissue)
    embeddings = yield from embed_tiles(
        slide, encoder, grid, cells, pooling=probe.pooling, batch_size=batch_size
    )
    return predict_embeddings(slide, embeddings, probe)


def check_fits(encoder: TileEncoder, probe: Probe) -> None:
    """Refuse a probe that was fitted to another encoder.

    Raises
    ------
    CheckpointError
        Naming both.
    """
    if probe.encoder_id != encoder.encoder_id:
        raise CheckpointError(
            f"This classifier was trained on the model {probe.encoder_id}, not on "
            f"{encoder.encoder_id}. Choose its own model, or train it anew on this one."
        )


def predict_embeddings(
    slide: Slide, embeddings: Embeddings, probe: Probe
) -> Prediction:
    """Predict from embeddings that are at hand."""
    return Prediction(
        grid=embeddings.grid,
        cells=embeddings.cells,
        probabilities=probe.probabilities(embeddings.values).astype(np.float32),
        class_names=tuple(probe.class_names),
        class_colors=tuple(probe.class_colors),
        encoder_id=embeddings.encoder_id,
        probe_id=probe.probe_id,
        slide_id=slide.slide_id,
        slide_name=slide.name,
        mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        synthetic=slide.is_synthetic,
    )
