"""Tiles of a slide as vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import ConfigError, FeatureError
from histomae.exchange.features import FeatureHeader, SlideFeatures
from histomae.infer.encoder import check_pooling
from histomae.infer.regions import within
from histomae.infer.tiles import map_tiles, no_tiles
from histomae.models.feature_spec import FeatureSpec
from histomae.slides.grid import TileGrid
from histomae.slides.tissue import params_of, tissue_cells, tissue_mask

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.events import Event
    from histomae.infer.embedder import Embedder
    from histomae.infer.regions import Region
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
#: More tiles at a time gain nothing on a processor; a GPU would wait for them.
CPU_BATCH, GPU_BATCH = 16, 64


@dataclass(frozen=True)
class Embeddings:
    """One vector per tile: ``values`` float32 (M, D) for ``cells`` int (M, 2).

    ``cells`` are (row, column) of ``grid``. Rows are NaN where a tile could not be
    read. Vectors of different encoders must never be mixed: ``encoder_id`` tells.
    """

    values: np.ndarray[Any, np.dtype[np.float32]]
    cells: np.ndarray[Any, np.dtype[np.int64]]
    grid: TileGrid
    encoder_id: str
    pooling: str


def embed_tiles(
    slide: Slide,
    encoder: Embedder,
    grid: TileGrid,
    cells: np.ndarray[Any, Any],
    *,
    pooling: str | None = None,
    batch_size: int = 32,
) -> Generator[Event, None, Embeddings]:
    """Embed the tiles at ``cells`` (M, 2) of (row, column).

    ``pooling``: one of the encoder's; None: its first.

    Raises
    ------
    NotEnoughDataError
        If there is no cell.
    SlideError
        If the slide cannot be read.
    """
    pooling = pooling or encoder.poolings[0]
    values = yield from map_tiles(
        slide,
        grid,
        cells,
        lambda tiles: encoder.embed(tiles, pooling=pooling),
        what="embedding tiles",
        batch_size=batch_size,
        device=encoder.device,
    )
    return Embeddings(values, np.asarray(cells), grid, encoder.encoder_id, pooling)


@dataclass(frozen=True)
class SlideEmbedding:
    """How the tiles of whole slides become features.

    ``pooling``: one of the encoder's; None: its first. Tiles with a smaller share of
    tissue than ``min_tissue`` are left out. ``batch_size``: tiles computed at a time;
    None: by device.
    """

    encoder: Embedder
    pooling: str | None = None
    min_tissue: float = 0.5
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_pooling(self.encoder, self.chosen_pooling)
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(
                "batch_size", f"{self.batch_size} is too small. Choose 1."
            )

    @property
    def chosen_pooling(self) -> str:
        """The pooling, decided."""
        return self.pooling or self.encoder.poolings[0]

    def grid_over(self, slide: Slide) -> TileGrid:
        """Return the grid of the encoder's tiles over a slide.

        Raises
        ------
        UpsamplingError
            If the encoder's tiles are finer than the slide.
        MissingMppError
            If the slide's pixel size is unknown.
        """
        return TileGrid.over(slide, self.encoder.spec)

    def cells_of(
        self, slide: Slide, grid: TileGrid, region: Region | None = None
    ) -> Array:
        """Return (row, column) (M, 2) of the tiles on tissue, or on that of a region.

        Raises
        ------
        NotEnoughDataError
            If there is none.
        """
        cells = tissue_cells(grid, tissue_mask(slide), self.min_tissue)
        if not len(cells):
            raise no_tiles(slide)
        if region is not None:
            cells = cells[within(region, slide.name, grid, cells)]
        return cells

    @property
    def spec(self) -> FeatureSpec:
        """How the tiles become vectors, as files of features say it."""
        encoder, tiles = self.encoder, self.encoder.spec
        return FeatureSpec(
            encoder=encoder.name,
            encoder_id=encoder.encoder_id,
            pooling=self.chosen_pooling,
            width=encoder.width,
            tile_px=tiles.tile_px,
            mpp=tiles.mpp,
            step_px=tiles.tile_px,
        )

    def header_of(
        self, slide: Slide, grid: TileGrid, tiles: int, region: Region | None = None
    ) -> FeatureHeader:
        """Return what a file of a slide's features says of itself."""
        return FeatureHeader(
            spec=self.spec,
            slide=slide.name,
            region=region.name if region else "",
            region_id=region.region_id if region else "",
            tiles=tiles,
            slide_id=slide.slide_id,
            slide_mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            dimensions=slide.dimensions,
            grid=grid,
            tissue={"min_tissue": self.min_tissue, **asdict(params_of(slide))},
            precision=self.encoder.precision,
            synthetic=slide.is_synthetic,
        )

    def features_of(
        self, slide: Slide, region: Region | None = None
    ) -> Generator[Event, None, SlideFeatures]:
        """Embed the tiles of a slide, or of a region of it, that can be read.

        Raises
        ------
        NotEnoughDataError
            If the slide has no tissue, or the region no tile.
        SlideError
            If the slide cannot be read.
        FeatureError
            If the encoder gives no finite number.
        """
        grid = self.grid_over(slide)
        cells = self.cells_of(slide, grid, region)
        by_device = CPU_BATCH if self.encoder.device.type == "cpu" else GPU_BATCH
        embeddings = yield from embed_tiles(
            slide,
            self.encoder,
            grid,
            cells,
            pooling=self.chosen_pooling,
            batch_size=self.batch_size or by_device,
        )
        read = np.isfinite(embeddings.values).all(1)
        if not read.any():
            raise FeatureError(
                f"{self.encoder.name} gives no finite number for any tile of "
                f"{slide.name}. Choose f32 as precision, or another encoder."
            )
        cells = cells[read]
        corners = grid.l0_from_grid(cells[:, ::-1].astype(float))
        header = self.header_of(slide, grid, len(cells), region)
        return SlideFeatures(
            replace(header, unreadable=int((~read).sum())),
            embeddings.values[read],
            np.rint(corners).astype(np.int64),
            cells,
        )
