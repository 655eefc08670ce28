"""Where the tissue is: a mask from a small level, and the tiles it covers.

Glass is judged from the slide itself: its colour is that of the brightest tenth of the
picture. Tissue absorbs light *and* is textured at the scale of cells; a smear of dye is
coloured but smooth, a printed spot or a faint edge hardly absorbs, a speck is small.
What is left out as a mark: ink, which takes more red than green out of the light, as
haematoxylin and eosin do not; what is grey (edges of glass, dust, black ink); and what
is dark without any structure (a solid stroke of any colour).

What counts as tissue may be set for each slide, and is remembered.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from histomae.errors import ConfigError
from histomae.slides.memory import Memory

if TYPE_CHECKING:
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Level, Slide

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

#: Resolution of a mask, µm per pixel, where the file has a level for it.
MASK_MPP = 8.0
#: A level of more pixels than this is not read where there is a smaller one.
MOST_LEVEL_PX = 6_000_000
#: So many tiles of it may be waiting to be decoded.
MOST_TILES_AT_ONCE = 500
#: A mask has no more pixels than this.
MOST_MASK_PX = 10_000_000
#: Optical density is counted in steps; one above 1 is as good as 1.
STEPS = 255
#: Where Otsu's threshold is believed, optical density: fat and stroma are pale.
LEAST_OTSU, MOST_OTSU = 0.06, 0.20
#: Window in which texture and colour are judged, µm; and the blocks that it is made of.
WINDOW_UM, BLOCK_UM = 72.0, 24.0
#: A mark's colour is judged where it is at least this dense.
LEAST_MARK_DENSITY = 0.04
#: Ink: red above green by this share of the mean density. Blue nuclei stay below 0.2.
INK_SHARE = 0.25
#: Grey: the channels differ by less than this share; stained tissue by 0.3 at least.
GREY_SHARE = 0.25
#: A solid stroke: at least so dense, and varying by less than this share of it.
SOLID_DENSITY, SOLID_SHARE = 0.45, 0.10
#: A mark is left out with so much around it, µm.
MARK_MARGIN_UM = 16.0
#: Largest values that a person may set.
LARGEST = {
    "least_density": 1.0,
    "least_texture": 1.0,
    "closing_um": 1000.0,
    "least_area_mm2": 100.0,
    "largest_hole_mm2": 100.0,
}


@dataclass(frozen=True)
class TissueParams:
    """What counts as tissue; lengths in µm, areas in mm², densities optical."""

    least_density: float | None = None
    """Density above the glass that tissue has at least; None: half of Otsu's."""
    least_texture: float = 0.045
    """Standard deviation of the density at the scale of cells, at least."""
    closing_um: float = 32.0
    """Gaps narrower than this are closed."""
    least_area_mm2: float = 0.05
    """Smaller pieces are dust."""
    largest_hole_mm2: float = 0.05
    """Smaller holes (lumina, vacuoles) belong to the tissue."""
    leave_out_marks: bool = True
    """Whether ink, dust and edges of glass are left out."""

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            value = getattr(self, name)
            automatic = value is None and name == "least_density"
            if not automatic and not _is_within(value, most):
                raise ConfigError(
                    name, f"{value!r} is no number from 0 to {most:g}. Choose one."
                )
        if not isinstance(self.leave_out_marks, bool):
            raise ConfigError(
                "leave_out_marks",
                f"{self.leave_out_marks!r} is neither true nor false. Choose one.",
            )

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the defaults, by name."""
        usual = asdict(TissueParams())
        return {k: v for k, v in asdict(self).items() if v != usual[k]}

    @classmethod
    def from_text(cls, text: str) -> TissueParams:
        """Return what a text such as ``closing_um=0, leave_out_marks=false`` says.

        Raises
        ------
        ConfigError
            If it names an unknown setting, or a value is wrong.
        """
        said: dict[str, Any] = {}
        for part in text.replace(",", " ").split():
            name, _, value = part.partition("=")
            if name not in asdict(cls()):
                raise ConfigError(
                    "tissue",
                    f"{part!r} is no setting=value. The settings are: "
                    f"{', '.join(asdict(cls()))}.",
                )
            try:
                said[name] = json.loads(value)
            except ValueError as error:
                raise ConfigError(
                    name, f"{value!r} is no number, nor true or false. Choose one."
                ) from error
        return cls(**said)

    @property
    def text(self) -> str:
        """What differs from the defaults, as :meth:`from_text` reads it."""
        return ", ".join(f"{k}={json.dumps(v)}" for k, v in self.changes.items())


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


# ---- what is remembered

_MEMORY = Memory("tissue.json")


def remembered_params(slide: Slide) -> TissueParams:
    """Return what was set for a slide; the defaults if nothing readable was."""
    try:
        return TissueParams(**_MEMORY.recall(slide.slide_id))
    except (TypeError, ConfigError):
        return TissueParams()


def params_of(slide: Slide) -> TissueParams:
    """Return what counts as tissue on a slide: as it was opened, else remembered."""
    return slide.tissue or remembered_params(slide)


def remember_params(slide: Slide, params: TissueParams) -> None:
    """Remember what is set for a slide; the defaults need no remembering."""
    if params.changes:
        _MEMORY.remember(slide.slide_id, params.changes)
    else:
        _MEMORY.forget(slide.slide_id)


# ---- finding it


def tissue_mask(slide: Slide, params: TissueParams | None = None) -> TissueMask:
    """Find the tissue of a slide.

    Parameters
    ----------
    params
        What counts as tissue; None: see :func:`params_of`.

    Raises
    ------
    MissingMppError
        If the slide's pixel size is unknown.
    SlideError
        If the slide cannot be read.
    """
    return overview(slide).tissue(params or params_of(slide))


def overview(slide: Slide) -> Overview:
    """Read the picture in which tissue is sought, from one small level.

    It has ``MASK_MPP`` µm per pixel where a level of at most ``MOST_LEVEL_PX`` pixels
    is fine enough; else it is as coarse as the finest level of that size. Level 0 of a
    large slide is read only where the file has nothing else.

    Raises
    ------
    MissingMppError, SlideError
        As :func:`tissue_mask`.
    """
    width, height = slide.dimensions
    mpp_x, mpp_y = slide.mpp
    level = _level_for_tissue(slide)
    finest = [
        max(f, MASK_MPP / mpp) for f, mpp in zip(level.factor, slide.mpp, strict=True)
    ]
    pixels = width / finest[0] * height / finest[1]
    shrink = max(1.0, (pixels / MOST_MASK_PX) ** 0.5)
    factor = (finest[0] * shrink, finest[1] * shrink)
    size = (_pixels(width, factor[0]), _pixels(height, factor[1]))
    if slide.is_direct(level.index) and np.prod(level.tiles) <= MOST_TILES_AT_ONCE:
        for col, row in np.ndindex(level.tiles):  # to be decoded by all processors
            slide.request_native_tile(level.index, col, row)
    rgb = slide.read_scaled((0, 0), size, factor)
    return Overview(rgb, factor, (factor[0] * mpp_x, factor[1] * mpp_y))


def _level_for_tissue(slide: Slide) -> Level:
    small = [lv for lv in slide.levels if lv.size[0] * lv.size[1] <= MOST_LEVEL_PX]
    fine = [
        lv
        for lv in small
        if all(
            f * mpp <= MASK_MPP * 1.001
            for f, mpp in zip(lv.factor, slide.mpp, strict=True)
        )
    ]
    return (fine[-1:] or small[:1] or slide.levels[-1:])[0]


@dataclass(frozen=True, eq=False)
class Overview:
    """A slide at a glance, in which tissue can be sought again and again.

    ``rgb`` is uint8 (H, W, 3), its corner at the origin of level 0; a pixel is
    ``pixel_size_l0`` (width, height) large, which is ``pixel_um`` in µm. What does not
    depend on the settings is worked out once.
    """

    rgb: Bytes
    pixel_size_l0: tuple[float, float]
    pixel_um: tuple[float, float]

    def tissue(self, params: TissueParams) -> TissueMask:
        """Return what is tissue by these settings."""
        least = params.least_density
        if least is None:
            least = self.automatic_density
        mask = self._absorbs(least) & self._varies(params.least_texture)
        marks = self._marks if params.leave_out_marks else np.zeros_like(mask)
        mask &= ~marks
        mask = closed(mask, round(params.closing_um / self._mpp / 2))
        pixel_mm2 = self.pixel_um[0] * self.pixel_um[1] / 1e6
        mask = ~without_small(~mask, params.largest_hole_mm2 / pixel_mm2)
        mask &= ~marks  # closing and filling went over them
        mask = without_small(mask, params.least_area_mm2 / pixel_mm2)
        return TissueMask(mask, self.pixel_size_l0, pixel_mm2 * 1e6)

    @cached_property
    def automatic_density(self) -> float:
        """The least density that tissue has in this picture, by Otsu's method."""
        counts = np.bincount(self._density[::2, ::2].ravel(), minlength=STEPS + 1)
        most = round(0.6 * STEPS)
        counts[most] = counts[most:].sum()
        counts = counts[: most + 1]
        if np.ptp(np.flatnonzero(counts)) < LEAST_OTSU * STEPS:
            return LEAST_OTSU
        hist = counts, np.arange(most + 1) / STEPS
        return float(np.clip(threshold_otsu(hist=hist) / 2, LEAST_OTSU, MOST_OTSU))

    # ---- what is seen in it

    @property
    def _mpp(self) -> float:
        return float(np.sqrt(self.pixel_um[0] * self.pixel_um[1]))

    @cached_property
    def _densities(self) -> Image.Image:
        """-log10(light / glass) of each channel, 0 to 1 in steps, as a picture."""
        every = max(1, round((self.rgb.size / 3 / 100_000) ** 0.5))
        some = self.rgb[::every, ::every].reshape(-1, 3)
        brightness = some.mean(-1)
        glass = some[brightness >= np.quantile(brightness, 0.9)].mean(0)
        # A picture full of tissue has no glass: never take less than a pale grey.
        glass = np.maximum(glass, 200)
        light = np.arange(256)[:, None]
        steps = -np.log10((light + 1) / (glass + 1)) * STEPS
        table = np.rint(steps).clip(0, STEPS).astype(int).T.ravel()
        return Image.fromarray(self.rgb).point(table.tolist())

    @cached_property
    def _density(self) -> Bytes:
        """The mean over the channels, (H, W) in steps."""
        return np.asarray(self._densities.convert("L", (1 / 3, 1 / 3, 1 / 3, 0)))

    @cached_property
    def _without_specks(self) -> Bytes:
        return median3(self._density)

    def _absorbs(self, least_density: float) -> Bools:
        return self._without_specks > least_density * STEPS

    def _varies(self, least_texture: float) -> Bools:
        return self._whole(self._texture > least_texture * STEPS)

    @property
    def _block(self) -> int:
        """Side, in pixels, of the blocks in which texture and colour are judged."""
        return max(1, round(BLOCK_UM / self._mpp))

    def _smoothed(self, values: np.ndarray[Any, Any]) -> Floats:
        """Return the means within the window, one for each block."""
        blocks = np.asarray(Image.fromarray(values).reduce(self._block), np.float32)
        window = max(3, round(WINDOW_UM / self._mpp / self._block) | 1)
        means: Floats = ndimage.uniform_filter(blocks, window)
        return means

    def _whole(self, blocks: Bools) -> Bools:
        """Spread one value for each block over the pixels."""
        high, wide = self.rgb.shape[:2]
        return blocks.repeat(self._block, 0).repeat(self._block, 1)[:high, :wide]

    @cached_property
    def _texture(self) -> Floats:
        """Standard deviation of the density within the window, in steps."""
        density = self._density.astype(np.float32)
        mean, square = self._smoothed(density), self._smoothed(density * density)
        deviation: Floats = np.sqrt((square - mean * mean).clip(0))
        return deviation

    @cached_property
    def _marks(self) -> Bools:
        """Where something lies that was never stained: ink, dust, edges of glass."""
        channels = [self._smoothed(np.asarray(c)) for c in self._densities.split()]
        red, green, _ = channels
        mean = sum(channels) / 3
        ink = red - green > INK_SHARE * mean
        apart = np.max(channels, 0) - np.min(channels, 0)
        grey = apart < GREY_SHARE * mean
        seen = mean > LEAST_MARK_DENSITY * STEPS
        solid = (mean > SOLID_DENSITY * STEPS) & (self._texture < SOLID_SHARE * mean)
        # Where a window is all within a stroke, the stroke goes on for half a window.
        half = round(WINDOW_UM / 2 / self._mpp / self._block)
        marks = (seen & (ink | grey)) | dilated(solid, half)
        return dilated(self._whole(marks), round(MARK_MARGIN_UM / self._mpp))


# ---- small tools on masks; scipy's own take ten times as long on large ones


def median3(values: Bytes) -> Bytes:
    """Return the median of each pixel (H, W) and its eight neighbours."""
    around = np.pad(values, 1, mode="edge")
    above, here, below = around[:-2], around[1:-1], around[2:]
    low, high = np.minimum(above, here), np.maximum(above, here)
    middle, high = np.minimum(high, below), np.maximum(high, below)
    low, middle = np.minimum(low, middle), np.maximum(low, middle)

    def sides(columns: Bytes) -> tuple[Bytes, Bytes, Bytes]:
        return columns[:, :-2], columns[:, 1:-1], columns[:, 2:]

    # The median is that of: the highest of the lows, the middle of the middles and
    # the lowest of the highs.
    return _middle(
        np.maximum.reduce(sides(low)),
        _middle(*sides(middle)),
        np.minimum.reduce(sides(high)),
    )


def _middle(one: Bytes, two: Bytes, three: Bytes) -> Bytes:
    least, most = np.minimum(one, two), np.maximum(one, two)
    middle: Bytes = np.maximum(least, np.minimum(most, three))
    return middle


def dilated(mask: Bools, radius: int) -> Bools:
    """Return ``mask`` (H, W), grown by a disk of so many pixels."""
    wide = [mask]  # grown along the rows, by 0, 1, 2 … pixels
    for by in range(1, radius + 1):
        grown = wide[-1].copy()
        grown[:, by:] |= mask[:, :-by]
        grown[:, :-by] |= mask[:, by:]
        wide.append(grown)
    out = wide[radius].copy()
    for by in range(1, min(radius, len(mask) - 1) + 1):
        row = wide[int((radius**2 - by**2) ** 0.5)]
        out[by:] |= row[:-by]
        out[:-by] |= row[by:]
    return out


def closed(mask: Bools, radius: int) -> Bools:
    """Return ``mask`` (H, W) with the gaps closed that hold no disk of that radius."""
    if radius < 1:
        return mask
    grown = dilated(np.pad(mask, radius), radius)
    return ~dilated(~grown, radius)[radius:-radius, radius:-radius]


def without_small(mask: Bools, most_px: float) -> Bools:
    """Return ``mask`` (H, W) without its pieces of up to ``most_px`` pixels."""
    pieces, _ = ndimage.label(mask)
    is_large = np.bincount(pieces.ravel()) > most_px
    is_large[0] = False
    kept: Bools = is_large[pieces]
    return kept


def tissue_cells(
    grid: TileGrid, tissue: TissueMask, min_tissue: float = 0.5
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (row, column) (M, 2) of the tiles with enough tissue, row by row."""
    cells = grid.all_cells()
    return cells[tissue.fraction(grid.boxes_l0(cells)) >= min_tissue]


def _is_within(value: Any, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= most


def _pixels(length: int, factor: float) -> int:
    """Return how many pixels of so many level-0 pixels cover a length."""
    return max(1, int(np.ceil(length / factor - 1e-6)))
