"""Where the tissue is: a mask from a small level, and the tiles it covers.

Glass is judged from the slide itself: its colour is that of the brightest tenth of the
picture. Tissue absorbs light *and* is textured at the scale of cells; a smear of dye is
coloured but smooth, a printed spot or a faint edge hardly absorbs, a speck is small,
and ink is greener than it is red, which haematoxylin and eosin never are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import disk, remove_small_holes, remove_small_objects

from histomae.errors import ConfigError

if TYPE_CHECKING:
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class TissueParams:
    """What counts as tissue; lengths in µm, areas in mm², densities optical."""

    mpp: float = 8.0
    """Resolution of the mask, µm per pixel."""
    max_px: int = 4096
    """Longer side of the mask at most; a larger slide gets a coarser mask."""
    least_density: float = 0.06
    """Optical density above the glass that tissue has at least (Otsu may ask more)."""
    most_otsu: float = 0.20
    """Otsu's threshold is not believed above this: fat and stroma are pale."""
    texture_um: float = 72.0
    """Window in which texture is measured."""
    least_texture: float = 0.045
    """Standard deviation of the optical density within the window, at least."""
    closing_um: float = 32.0
    """Gaps narrower than this are closed."""
    least_area_mm2: float = 0.05
    """Smaller pieces are dust."""
    largest_hole_mm2: float = 0.05
    """Smaller holes (lumina, vacuoles) belong to the tissue."""

    def __post_init__(self) -> None:
        for name in ("mpp", "max_px", "texture_um"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"{getattr(self, name)} must be above zero.")


@dataclass(frozen=True)
class TissueMask:
    """Where the tissue is: ``mask`` bool (H, W), True = tissue.

    Its first pixel has its corner at the origin of level 0; ``pixel_size_l0`` is the
    (width, height) of a pixel in level-0 pixels, ``pixel_um2`` its area in µm².
    """

    mask: Bools
    pixel_size_l0: tuple[float, float]
    pixel_um2: float

    def area_mm2(self) -> float:
        """Return the area of tissue, mm²."""
        return float(self.mask.sum() * self.pixel_um2 / 1e6)

    def fraction(self, boxes_l0: Floats) -> Floats:
        """Return the share of tissue (M,) in boxes (M, 4) of (x0, y0, x1, y1) in l0.

        What lies outside the slide is not tissue.
        """
        boxes = np.asarray(boxes_l0, float).reshape(-1, 4)
        total = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1))
        total[1:, 1:] = self.mask.cumsum(0).cumsum(1)
        x0, y0, x1, y1 = (boxes / np.tile(self.pixel_size_l0, 2)).T

        def below(x: Floats, y: Floats) -> Floats:
            # Linear between the corners of pixels: exact for boxes that cut pixels.
            return ndimage.map_coordinates(total, [y, x], order=1, mode="nearest")

        covered = below(x1, y1) - below(x0, y1) - below(x1, y0) + below(x0, y0)
        share: Floats = covered / ((x1 - x0) * (y1 - y0))
        return share.clip(0, 1)


def tissue_mask(slide: Slide, params: TissueParams | None = None) -> TissueMask:
    """Find the tissue of a slide from a level near ``params.mpp``.

    Raises
    ------
    MissingMppError
        If the slide's pixel size is unknown.
    SlideError
        If the slide cannot be read.
    """
    params = params or TissueParams()
    width, height = slide.dimensions
    mpp_x, mpp_y = slide.mpp
    size = (width * mpp_x / params.mpp, height * mpp_y / params.mpp)
    shrink = max(1.0, max(size) / params.max_px)
    size_px = (max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink)))
    factor = (width / size_px[0], height / size_px[1])
    rgb = slide.read_scaled((0, 0), size_px, factor)
    pixel_um = (factor[0] * mpp_x, factor[1] * mpp_y)
    mask = tissue_in(rgb, float(np.sqrt(pixel_um[0] * pixel_um[1])), params)
    return TissueMask(mask, factor, pixel_um[0] * pixel_um[1])


def tissue_in(
    rgb: np.ndarray[Any, np.dtype[np.uint8]], mpp: float, params: TissueParams
) -> Bools:
    """Return the tissue (H, W) of a picture, uint8 (H, W, 3) at ``mpp`` µm/px."""
    density = _optical_density(rgb)
    threshold = _density_threshold(density, params)
    absorbs = ndimage.median_filter(density, 3) > threshold
    window = max(3, round(params.texture_um / mpp) | 1)
    textured = _local_std(density, window) > params.least_texture
    ink = ndimage.binary_dilation(_ink(rgb), disk(2))
    mask = absorbs & textured & ~ink
    radius = round(params.closing_um / mpp / 2)
    if radius >= 1:
        padded = np.pad(mask, radius)
        mask = ndimage.binary_closing(padded, disk(radius))[
            radius:-radius, radius:-radius
        ]
    pixel_mm2 = (mpp / 1000) ** 2
    mask = remove_small_holes(mask, max_size=int(params.largest_hole_mm2 / pixel_mm2))
    mask &= ~ink  # closing and filling went over it
    kept: Bools = remove_small_objects(
        mask, max_size=int(params.least_area_mm2 / pixel_mm2)
    )
    return kept


def _optical_density(rgb: np.ndarray[Any, np.dtype[np.uint8]]) -> Floats:
    """Return the mean over channels of -log10(light / glass), clipped to 0..2."""
    light = rgb.astype(np.float32)
    brightness = light.mean(-1)
    glass = light[brightness >= np.quantile(brightness, 0.9)].mean(0)
    # A picture full of tissue has no glass: never take less than a pale grey for it.
    glass = np.maximum(glass, 200)
    density: Floats = -np.log10((light + 1) / (glass + 1)).mean(-1)
    return density.clip(0, 2)


def _density_threshold(density: Floats, params: TissueParams) -> float:
    if np.ptp(density) < params.least_density:
        return params.least_density
    otsu = threshold_otsu(density.clip(0, 0.6))
    return float(np.clip(otsu / 2, params.least_density, params.most_otsu))


def _local_std(values: Floats, window: int) -> Floats:
    mean = ndimage.uniform_filter(values, window)
    square = ndimage.uniform_filter(values * values, window)
    std: Floats = np.sqrt((square - mean * mean).clip(0))
    return std


def _ink(rgb: np.ndarray[Any, np.dtype[np.uint8]]) -> Bools:
    """Return where a pen drew: ink is greener than red, or black."""
    red, green, blue = np.moveaxis(rgb.astype(np.int16), -1, 0)
    coloured = green - red > 20
    black = np.maximum(np.maximum(red, green), blue) < 60
    ink: Bools = ndimage.binary_opening(coloured | black, disk(1))
    return ink


def tissue_cells(
    grid: TileGrid, tissue: TissueMask, min_tissue: float = 0.5
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (row, column) (M, 2) of the tiles with enough tissue, row by row."""
    cells = grid.all_cells()
    return cells[tissue.fraction(grid.boxes_l0(cells)) >= min_tissue]
