"""Maps of a whole slide that need no probe: attention, error, and likeness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.infer.embed import Embeddings
from histomae.infer.reconstruct import covering_masks
from histomae.infer.tiles import map_tiles
from histomae.slides.heatmap import Heatmap

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.events import Event
    from histomae.infer.encoder import TileEncoder
    from histomae.models.attention import Head, Query
    from histomae.models.probe import Probe
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]


def attention_map(
    slide: Slide,
    encoder: TileEncoder,
    grid: TileGrid,
    cells: Array,
    *,
    block: int = -1,
    head: Head = "mean",
    query: Query = "class_token",
    probe: Probe | None = None,
    class_name: str = "",
    batch_size: int = 16,
) -> Generator[Event, None, Heatmap]:
    """Return where the encoder looks in every tile, on the patch grid.

    Each tile is divided by its own mean, so that 1 is the attention of a patch that
    stands out in nothing and tiles can be compared. With a probe's ``class_name``, of
    convolutions: Grad-CAM of that class, whose numbers compare as they are.
    """

    def compute(tiles: Array) -> Array:
        if probe is not None and class_name:
            return encoder.grad_cam(tiles, probe, class_name)
        return _relative_attention(encoder, tiles, block, head, query)

    values = yield from map_tiles(
        slide,
        grid,
        cells,
        compute,
        what="reading attention",
        batch_size=batch_size,
        device=encoder.device,
    )
    return Heatmap.from_patches(grid, cells, values)


def error_map(
    slide: Slide,
    encoder: TileEncoder,
    grid: TileGrid,
    cells: Array,
    *,
    mask_ratio: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Generator[Event, None, Heatmap]:
    """Return how badly each patch is predicted when hidden, on the patch grid.

    Every patch is hidden at least once; its value is the objective there, averaged over
    the times that it was hidden.

    Raises
    ------
    CheckpointError
        If the encoder came without its decoder.
    """
    masks = _masks(encoder, mask_ratio, seed)

    def compute(tiles: Array) -> Array:
        return _errors(encoder, tiles, masks)

    values = yield from map_tiles(
        slide,
        grid,
        cells,
        compute,
        what="reconstructing",
        batch_size=batch_size,
        device=encoder.device,
    )
    return Heatmap.from_patches(grid, cells, values)


def _relative_attention(
    encoder: TileEncoder, tiles: Array, block: int, head: Head, query: Query
) -> Array:
    maps = encoder.attention(tiles, block=block, head=head, query=query)
    relative: Array = maps / maps.mean((1, 2), keepdims=True)
    return relative


def _masks(encoder: TileEncoder, mask_ratio: float | None, seed: int) -> Array:
    ratio = encoder.header.mask_ratio if mask_ratio is None else mask_ratio
    return covering_masks(encoder.grid_size, ratio, seed)


def _errors(encoder: TileEncoder, tiles: Array, masks: Array) -> Array:
    """Return the mean error (n, grid_h, grid_w) over the masks that hid each patch."""
    errors = [
        [one.error for one in encoder.reconstruct(tiles, _repeated(mask, tiles))]
        for mask in masks
    ]
    mean: Array = np.nanmean(np.array(errors), 0)
    return mean


def _repeated(mask: Array, tiles: Array) -> Array:
    return np.broadcast_to(mask, (len(tiles), *mask.shape))


@dataclass(frozen=True)
class Overview:
    """What an encoder makes of a slide before anybody taught it a class.

    ``error`` is None where the encoder came without its decoder.
    """

    embeddings: Embeddings
    attention: Heatmap
    error: Heatmap | None


def overview(
    slide: Slide,
    encoder: TileEncoder,
    grid: TileGrid,
    cells: Array,
    *,
    block: int = -1,
    head: Head = "mean",
    query: Query = "class_token",
    seed: int = 0,
    batch_size: int = 16,
) -> Generator[Event, None, Overview]:
    """Embed the tiles and map their attention and error, reading each tile once.

    See :func:`attention_map` and :func:`error_map`.
    """
    masks = _masks(encoder, None, seed) if encoder.has_decoder else None

    def compute(tiles: Array) -> Array:
        parts = [
            _relative_attention(encoder, tiles, block, head, query),
            encoder.embed(tiles),
        ]
        if masks is not None:
            parts.append(_errors(encoder, tiles, masks))
        return np.hstack([part.reshape(len(tiles), -1) for part in parts])

    values = yield from map_tiles(
        slide,
        grid,
        cells,
        compute,
        what="looking at tiles",
        batch_size=batch_size,
        device=encoder.device,
    )
    patches = math.prod(encoder.grid_size)
    width = values.shape[1] - patches * (1 if masks is None else 2)
    attention, embedded, errors = np.split(values, [patches, patches + width], 1)
    by_patch = (-1, *encoder.grid_size)
    return Overview(
        Embeddings(
            embedded,
            np.asarray(cells),
            grid,
            encoder.encoder_id,
            encoder.poolings[0],
        ),
        Heatmap.from_patches(grid, cells, attention.reshape(by_patch)),
        None
        if masks is None
        else Heatmap.from_patches(grid, cells, errors.reshape(by_patch)),
    )


def embedding_map(embeddings: Embeddings) -> Heatmap:
    """Return the first three principal components of the tiles as colours.

    Tiles of like colour are alike to the encoder; the colours have no other meaning.
    Values are float32 (rows, columns, 4), RGBA from 0 to 1, transparent where there is
    no tile. Each component is stretched between its 2nd and 98th percentile.
    """
    rgba = np.zeros((len(embeddings.values), 4), np.float32)
    read = np.isfinite(embeddings.values).all(1)
    rgba[read, :3] = _stretched(_principal_components(embeddings.values[read], 3))
    rgba[read, 3] = 1
    raster = np.zeros((*embeddings.grid.shape, 4), np.float32)
    raster[tuple(embeddings.cells.T)] = rgba
    grid = embeddings.grid
    return Heatmap(raster, grid.origin_xy_l0, grid.tile_size_l0)


def _principal_components(values: Array, count: int) -> Array:
    """Return the coordinates (M, count) of rows (M, D), the widest spread first."""
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :count]
    # An axis may point either way: turn it, so that a tile keeps its colour.
    largest = np.abs(axes).argmax(0)
    axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])
    components: Array = np.zeros((len(values), count))
    components[:, : axes.shape[1]] = centred @ axes
    return components


def _stretched(values: Array) -> Array:
    low, high = np.percentile(values, [2, 98], axis=0)
    stretched: Array = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return stretched


def limits_of(values: Array) -> tuple[float, float]:
    """Return limits for colours: the 1st and the 99th percentile of what is known."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = (float(x) for x in np.percentile(known, [1, 99]))
    return (low, high) if high > low else (low, low + 1.0)


def limits_around_median(values: Array) -> tuple[float, float]:
    """Return limits for diverging colours, the median of what is known in the middle.

    98 of 100 values lie within.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    median = float(np.median(known))
    reach = float(np.percentile(np.abs(known - median), 98)) or 1.0
    return median - reach, median + reach
