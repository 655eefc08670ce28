"""Maps and tiles as files that a person can look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from histomae.errors import NotEnoughDataError
from histomae.files import write_beside
from histomae.infer.maps import limits_of
from histomae.infer.reconstruct import random_masks
from histomae.learn.methods import beside

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.infer.encoder import TileEncoder
    from histomae.models.restore import Statistics
    from histomae.slides.grid import TileGrid
    from histomae.slides.heatmap import Heatmap
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
#: Longer side of a map's picture, pixels.
PICTURE_PX = 1600


def write_map(path: Path, heatmap: Heatmap, slide: Slide) -> Path:
    """Write a map as numbers, ``path.npz``, and over the slide, ``path.png``.

    The arrays in the file are ``values`` (rows, columns), NaN where there is none, and
    ``origin_xy_l0`` and ``pixel_size_l0``, (x, y) in level-0 pixels. Returns the path
    of the picture.
    """
    with (
        write_beside(path.with_name(path.name + ".npz")) as unfinished,
        unfinished.open("wb") as file,
    ):
        np.savez_compressed(
            file,
            values=heatmap.values,
            origin_xy_l0=np.array(heatmap.origin_xy_l0),
            pixel_size_l0=np.array(heatmap.pixel_size_l0),
        )
    picture = path.with_name(path.name + ".png")
    save_picture(picture, over_slide(heatmap, slide))
    return picture


def over_slide(heatmap: Heatmap, slide: Slide, *, opacity: float = 0.55) -> Array:
    """Return the slide with a map (rows, columns) over it, uint8 (H, W, 3).

    Colours run from the map's 1st to its 99th percentile; where it is NaN the slide
    shows as it is.
    """
    rgb = slide.thumbnail(PICTURE_PX).astype(np.float32)
    height, width = rgb.shape[:2]
    level_w, level_h = slide.dimensions
    # The map's pixel under each pixel of the picture, by their centres in level 0.
    x = (np.arange(width) + 0.5) * level_w / width
    y = (np.arange(height) + 0.5) * level_h / height
    col = np.floor((x - heatmap.origin_xy_l0[0]) / heatmap.pixel_size_l0[0]).astype(int)
    row = np.floor((y - heatmap.origin_xy_l0[1]) / heatmap.pixel_size_l0[1]).astype(int)
    rows, cols = heatmap.values.shape[:2]
    inside = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))[None]
    values = heatmap.values[row.clip(0, rows - 1)][:, col.clip(0, cols - 1)]
    low, high = limits_of(heatmap.values)
    scaled = ((values - low) / (high - low)).clip(0, 1)
    shown = inside & ~np.isnan(values)
    colours = colormaps["viridis"](np.nan_to_num(scaled))[..., :3] * 255
    rgb[shown] = (1 - opacity) * rgb[shown] + opacity * colours[shown]
    return rgb.round().astype(np.uint8)


def write_examples(
    path: Path,
    slide: Slide,
    encoder: TileEncoder,
    grid: TileGrid,
    cells: Array,
    *,
    count: int = 8,
    mask_ratio: float | None = None,
    seed: int = 0,
    statistics: Statistics = "neighbours",
) -> Path:
    """Write a sheet of tiles: a row each, input, masked and reconstruction.

    Tiles are taken at equal distances along ``cells``.

    Raises
    ------
    NotEnoughDataError
        If there is no cell, or ``count`` is 0.
    """
    count = min(count, len(cells))
    if count < 1:
        raise NotEnoughDataError(
            f"{slide.name} has no tile to show. Ask for one at least, of a slide with "
            "tissue."
        )
    chosen = cells[np.linspace(0, len(cells) - 1, count).astype(int)]
    tiles = np.stack([grid.read(slide, row, col) for row, col in chosen])
    ratio = encoder.header.mask_ratio if mask_ratio is None else mask_ratio
    masks = random_masks(len(tiles), encoder.grid_size, ratio, seed)
    results = encoder.reconstruct(tiles, masks, statistics=statistics)
    rows = [
        [tile, result.masked, result.reconstruction]
        for tile, result in zip(tiles, results, strict=True)
    ]
    save_picture(path, beside(rows))
    return path


def save_picture(path: Path, rgb: Array) -> None:
    """Write uint8 (H, W, 3) as PNG."""
    with write_beside(path) as unfinished:
        Image.fromarray(rgb).save(unfinished, format="PNG")
