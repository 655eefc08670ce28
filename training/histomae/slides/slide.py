"""One whole-slide image: its geometry in micrometres, and pixels at any resolution.

Frames. ``l0``: level-0 pixels, origin at the corner of the file, x before y, measured
at pixel *edges* (the first pixel spans 0 to 1). A *factor* is level-0 pixels per pixel
of something; factors stay floats. ``mpp`` is micrometres per pixel.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
from PIL import Image

from histomae.config import FINEST_MPP_RATIO
from histomae.errors import MissingMppError, SlideError, UpsamplingError
from histomae.slides import mpp_memory, pixel_size
from histomae.slides.slide_file import SlideFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from histomae.slides.tile_cache import TileCache, TileRequest
    from histomae.slides.tissue import TissueParams

#: Side of the piece of level 0 that is tried before a slide is believed, pixels.
TRIED_PX = 64
#: No single read holds more than this many pixels of the file at once.
MAX_READ_PX = 16_000_000
#: Nor decodes more than this in all: about half a minute's work.
MAX_DECODED_PX = 1 << 30


@dataclass(frozen=True)
class Level:
    """One stored level. ``size`` is (width, height); ``factor`` is (x, y), exact.

    ``tile_px`` is (width, height) of the tiles in which the file stores the level.
    Those that there are lie within ``stored``, (x0, y0, x1, y1); beyond is background.
    """

    index: int
    size: tuple[int, int]
    factor: tuple[float, float]
    tile_px: tuple[int, int]
    stored: tuple[int, int, int, int]

    @property
    def tiles(self) -> tuple[int, int]:
        """(columns, rows) of tiles; the last ones may be cut by the level's edge."""
        return (
            -(-self.size[0] // self.tile_px[0]),
            -(-self.size[1] // self.tile_px[1]),
        )


class Slide:
    """A whole-slide image that answers in micrometres. Open it with :meth:`open`.

    Reads are safe from several threads, and in a forked process. An error is no end: as
    soon as the file can be read again, the next read does.
    """

    def __init__(self, file: SlideFile, mpp: tuple[float, float] | None = None) -> None:
        self.path = file.path
        self._file = file
        self.tissue: TissueParams | None = None
        self._mpp, self.mpp_source = self._settle_mpp(mpp)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        mpp: float | tuple[float, float] | None = None,
        fallback_mpp: float | tuple[float, float] | None = None,
        tissue: TissueParams | None = None,
        cache: TileCache | None = None,
        direct: bool | None = None,
    ) -> Slide:
        """Open a slide.

        Parameters
        ----------
        path
            File of any format that OpenSlide reads; or PNG, JPEG or BMP, which has one
            level and no pixel size.
        mpp
            Level-0 pixel size in µm, one number or (x, y), that outranks the file's.
            Without it: the file's, if it lies within ``MIN_MPP`` to ``MAX_MPP``; else
            the one remembered for this file; else missing. It is never guessed.
        fallback_mpp
            Level-0 pixel size, µm, one number or (x, y), to take where it would be
            missing.
        tissue
            What counts as its tissue; None: what is remembered for it, see
            :func:`histomae.slides.tissue.params_of`.
        cache
            Where decoded tiles are kept; None: with those of all other slides.
        direct
            Whether tiles may be read past OpenSlide, several times as fast, where that
            has shown itself to be the same; None: unless the environment variable
            ``HISTOMAE_DIRECT_READER`` is 0.

        Raises
        ------
        SlideError
            If the file is missing, no slide, or damaged.
        MissingMppError
            If a given pixel size is not believable.
        """
        given = None if mpp is None else pixel_size.checked(mpp)
        slide = cls(SlideFile(Path(path), cache=cache, direct=direct), given)
        if not slide.has_mpp and fallback_mpp is not None:
            slide._mpp, slide.mpp_source = pixel_size.checked(fallback_mpp), "given"
        slide.tissue = tissue
        return slide

    def _settle_mpp(
        self, given: tuple[float, float] | None
    ) -> tuple[tuple[float, float] | None, str]:
        if given is not None:
            return given, "given"
        written = pixel_size.written_in(self.properties)
        if written is not None:
            return written, "file"
        remembered = mpp_memory.recall(self.slide_id)
        if remembered is not None and pixel_size.believable(remembered):
            return remembered, "remembered"
        return None, "missing"

    # ---- what it is

    @property
    def name(self) -> str:
        """File name without its suffix."""
        return self.path.stem

    @cached_property
    def slide_id(self) -> str:
        """Short hash of what is in the file, whatever the file is called."""
        quick = self.properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
        if quick is None:
            quick = self._file.beginning()
        return hashlib.sha256(quick.encode()).hexdigest()[:16]

    @property
    def vendor(self) -> str:
        """OpenSlide's name of the format."""
        return self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")

    @property
    def is_picture(self) -> bool:
        """Whether it is a plain picture: one level, and micrometres only if given."""
        return self._file.is_picture

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0, pixels."""
        return self._file.level_sizes[0]

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The stored levels, finest first."""
        return tuple(
            Level(
                index,
                size,
                _true_factor(self.dimensions, size),
                tile_px,
                (0, 0, *size) if index else self._file.stored_box,
            )
            for index, (size, tile_px) in enumerate(
                zip(self._file.level_sizes, self._file.tile_sizes, strict=True)
            )
        )

    @cached_property
    def bounds_l0(self) -> tuple[int, int, int, int]:
        """The scanned area: (x, y, width, height), level-0 pixels."""
        keys = (
            openslide.PROPERTY_NAME_BOUNDS_X,
            openslide.PROPERTY_NAME_BOUNDS_Y,
            openslide.PROPERTY_NAME_BOUNDS_WIDTH,
            openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
        )
        width, height = self.dimensions
        try:
            x, y, w, h = (int(self.properties[key]) for key in keys)
        except (KeyError, ValueError):
            return 0, 0, width, height
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        w, h = min(w, width - x), min(h, height - y)
        return (x, y, w, h) if w > 0 and h > 0 else (0, 0, width, height)

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """Colour of unscanned glass: the file's own, else white."""
        return self._file.background_rgb

    @cached_property
    def icc_profile(self) -> bytes | None:
        """The colour profile in the file, if any."""
        return self._file.colour_profile()

    @property
    def properties(self) -> Mapping[str, str]:
        """What the file says of itself, as OpenSlide names it."""
        return MappingProxyType(self._file.properties)

    @cached_property
    def is_synthetic(self) -> bool:
        """Whether the file says that it was made by a program, not a scanner."""
        comment = self.properties.get(openslide.PROPERTY_NAME_COMMENT, "")
        comment += self.properties.get("tiff.ImageDescription", "")
        return "synthetic" in comment.lower()

    # ---- its resolution

    @property
    def has_mpp(self) -> bool:
        """Whether the pixel size is known."""
        return self._mpp is not None

    @property
    def mpp(self) -> tuple[float, float]:
        """Level-0 pixel size (x, y), µm.

        Raises
        ------
        MissingMppError
            If neither the file, nor the caller, nor an earlier answer gave it.
        """
        if self._mpp is None:
            if self.is_picture:
                raise MissingMppError(
                    f"The picture {self.path.name} has no micrometres, which this "
                    "needs. Choose a model that was trained on pictures, or enter its "
                    "µm per pixel (--slide-mpp on the command line)."
                )
            raise MissingMppError(
                f"The slide {self.path.name} has no believable pixel size. Enter the "
                "µm per pixel of its finest level (--slide-mpp on the command line)."
            )
        return self._mpp

    @property
    def native_mpp(self) -> float:
        """The coarser of the two level-0 pixel sizes, µm."""
        return max(self.mpp)

    @property
    def suggested_mpp(self) -> float | None:
        """A guess from the objective's power, only to pre-fill a question."""
        return pixel_size.suggested_by(self.properties)

    def settle_mpp(self, mpp: float | tuple[float, float]) -> None:
        """Take a person's answer for the pixel size (µm) and remember it."""
        pair = pixel_size.checked(mpp)
        mpp_memory.remember(self.slide_id, pair)
        self._mpp, self.mpp_source = pair, "given"

    # ---- its pixels

    def read_region(
        self, xy_l0: tuple[float, float], size_px: tuple[int, int], mpp: float
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read a rectangle that is square in micrometres.

        Parameters
        ----------
        xy_l0
            Its top-left corner (x, y), level-0 pixels; fractions and places outside the
            slide are allowed (outside is background).
        size_px
            Its (width, height) in pixels of ``mpp``.
        mpp
            Micrometres per pixel of the result, in x and in y.

        Returns
        -------
        uint8 array (height, width, 3), RGB.

        Raises
        ------
        SlideError
            If the file cannot be read there.
        MissingMppError
            If the slide's pixel size is unknown.
        """
        mpp_x, mpp_y = self.mpp
        return self.read_scaled(xy_l0, size_px, (mpp / mpp_x, mpp / mpp_y))

    def read_scaled(
        self,
        xy_l0: tuple[float, float],
        size_px: tuple[int, int],
        factor_xy: tuple[float, float],
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read a rectangle at so many level-0 pixels per pixel.

        Pixels come from the nearest finer stored level and are resampled exactly: the
        corner may be fractional, and two adjacent reads fit without a seam.

        Parameters
        ----------
        xy_l0
            Its top-left corner (x, y), level-0 pixels.
        size_px
            Its (width, height) in pixels of the result.
        factor_xy
            Level-0 pixels per pixel of the result, in x and in y.

        Returns
        -------
        uint8 array (height, width, 3), RGB.

        Raises
        ------
        SlideError
            If the file cannot be read there, or too much is asked for at once.
        """
        level = self._level_for(factor_xy)
        scale = tuple(f / lf for f, lf in zip(factor_xy, level.factor, strict=True))
        # The level's own frame: pixels of the level, measured at their edges.
        corner = tuple(c / lf for c, lf in zip(xy_l0, level.factor, strict=True))
        extent = tuple(n * s for n, s in zip(size_px, scale, strict=True))
        self._refuse_too_much(extent, MAX_DECODED_PX)
        margin = tuple(math.ceil(2 * max(s, 1.0)) for s in scale)
        start = tuple(math.floor(c) - m for c, m in zip(corner, margin, strict=True))
        stop = tuple(
            math.ceil(c + e) + m for c, e, m in zip(corner, extent, margin, strict=True)
        )
        size = (stop[0] - start[0], stop[1] - start[1])
        x0, y0, x1, y1 = self._stored_part(level, start, size)
        if x0 >= x1 or y0 >= y1:
            return self._background(size_px)
        if size[0] * size[1] > MAX_READ_PX and max(size_px) > 1:
            return self._read_halves(xy_l0, size_px, factor_xy)
        self._refuse_too_much(size, MAX_READ_PX)
        left, top = corner[0] - start[0], corner[1] - start[1]
        if _is_whole((left, top)) and _equal(extent, size_px):  # stored as it is wanted
            start = (start[0] + round(left), start[1] + round(top))
            return self._read_level(level, (start[0], start[1]), size_px)
        pixels = self._read_level(level, (start[0], start[1]), size)
        # First across, then down: left to itself Pillow chooses by size, and two reads
        # of one place would round differently.
        across = Image.fromarray(pixels).resize(
            (size_px[0], size[1]),
            Image.Resampling.BICUBIC,
            (left, 0, left + extent[0], size[1]),
        )
        resized = across.resize(
            size_px, Image.Resampling.BICUBIC, (0, top, size_px[0], top + extent[1])
        )
        return np.asarray(resized)

    def _read_halves(
        self,
        xy_l0: tuple[float, float],
        size_px: tuple[int, int],
        factor_xy: tuple[float, float],
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read a rectangle as two that hold less of the file at once."""
        axis = int(size_px[1] > size_px[0])  # 0: side by side, 1: one above the other
        first, second, corner = list(size_px), list(size_px), list(xy_l0)
        first[axis] = size_px[axis] // 2
        second[axis] = size_px[axis] - first[axis]
        corner[axis] += first[axis] * factor_xy[axis]
        return np.concatenate(
            [
                self.read_scaled(xy_l0, (first[0], first[1]), factor_xy),
                self.read_scaled(
                    (corner[0], corner[1]), (second[0], second[1]), factor_xy
                ),
            ],
            axis=1 - axis,
        )

    def _refuse_too_much(self, extent: Sequence[float], most_px: int) -> None:
        if extent[0] * extent[1] > most_px:
            raise SlideError(
                f"{self.path.name}: {extent[0]:.0f} × {extent[1]:.0f} pixels are too "
                "many to read at once. Read a smaller region; if the slide lacks small "
                "levels, convert it to a pyramidal TIFF."
            )

    def _level_for(self, factor_xy: tuple[float, float]) -> Level:
        """Return the coarsest level that is no coarser than asked in x nor in y."""
        fitting = [
            level
            for level in self.levels
            if all(
                have <= want * 1.001
                for have, want in zip(level.factor, factor_xy, strict=True)
            )
        ]
        return fitting[-1] if fitting else self.levels[0]

    def _read_level(
        self, level: Level, start: tuple[int, int], size: tuple[int, int]
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read stored pixels; ``start``, ``size``: (x, y) in pixels of ``level``.

        Outside the level is background. The file is asked for nothing there: OpenSlide
        cuts the fraction of a negative place off, a whole pixel of a small level.
        """
        x0, y0, x1, y1 = self._stored_part(level, start, size)
        if (x1 - x0, y1 - y0) == size:
            return self._file.read(level.index, start, size)
        pixels = self._background(size)
        if x0 < x1 and y0 < y1:
            inside = self._file.read(level.index, (x0, y0), (x1 - x0, y1 - y0))
            left, top = x0 - start[0], y0 - start[1]
            pixels[top : top + y1 - y0, left : left + x1 - x0] = inside
        return pixels

    def _stored_part(
        self, level: Level, start: Sequence[int], size: Sequence[int]
    ) -> tuple[int, int, int, int]:
        """Return the corners (x0, y0, x1, y1) of what the file has of a rectangle.

        It has nothing of it unless x0 < x1 and y0 < y1.
        """
        box = level.stored
        return (
            max(start[0], box[0]),
            max(start[1], box[1]),
            min(start[0] + size[0], box[2]),
            min(start[1] + size[1], box[3]),
        )

    def _background(self, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        pixels[:] = np.tile(np.array(self.background_rgb, np.uint8), (size[0], 1))
        return pixels

    def thumbnail(self, max_px: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the whole slide, uint8 (H, W, 3), no side above ``max_px``."""
        width, height = self.dimensions
        factor = max(width, height) / max_px
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        return self.read_scaled((0, 0), size, (width / size[0], height / size[1]))

    # ---- its tiles

    def native_tile(
        self, level: int, col: int, row: int, *, reduce: int = 1
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return one of the tiles in which the file stores a level.

        It comes through the cache of decoded tiles, which all slides share; who asks
        for a tile that is being decoded waits for that one.

        Parameters
        ----------
        level
            Number of the level.
        col, row
            Place in the level's grid of tiles, see :attr:`Level.tiles`.
        reduce
            1, 2, 4 or 8: to be shown, where a level is missing, a tile may be decoded
            to so many times fewer pixels across and down, up to four times as fast. A
            pixel is about the mean of those it stands for, but not to the bit; with
            JPEG 2000 it is the smoothed picture at the first of them.

        Returns
        -------
        uint8 (height, width, 3), RGB, read-only: of ``Level.tile_px``, cut at the edges
        of the level; divided by ``reduce`` and rounded up.

        Raises
        ------
        SlideError
            If the file cannot be read there.
        IndexError
            If there is no such tile.
        """
        return self._file.tile(level, col, row, reduce)

    def cached_native_tile(
        self, level: int, col: int, row: int, *, reduce: int = 1
    ) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """Return a native tile if it is decoded already, at once; else None."""
        return self._file.cached_tile(level, col, row, reduce)

    def request_native_tile(
        self, level: int, col: int, row: int, *, reduce: int = 1, priority: int = 0
    ) -> TileRequest:
        """Ask for a native tile ahead; it is decoded in another thread.

        Parameters
        ----------
        priority
            Lower is served first; equal ones in the order of asking. A request whose
            ``cancel`` was called before it was begun is never decoded, unless someone
            else asked for the tile too.
        """
        return self._file.request_tile(level, col, row, reduce, priority=priority)

    def is_direct(self, level: int) -> bool:
        """Tell whether a level's tiles are read past OpenSlide.

        Raises
        ------
        SlideError
            If the file cannot be read.
        """
        return self._file.is_direct(level)

    def try_pixels(self) -> None:
        """Refuse a slide that opens but cannot be read.

        A damaged spot is no reason to refuse a slide: one of two places must be
        readable.

        Raises
        ------
        SlideError
            If neither is.
        """
        x, y, width, height = self.bounds_l0
        size = (min(TRIED_PX, width), min(TRIED_PX, height))
        middle = (x + (width - size[0]) // 2, y + (height - size[1]) // 2)
        try:
            self._file.try_pixels(middle, size)
        except SlideError:
            self._file.try_pixels((x, y), size)

    def is_quickly_reduced(self, level: int) -> bool:
        """Tell whether tiles are decoded faster to fewer pixels, each at its place.

        Raises
        ------
        SlideError
            If the file cannot be read.
        """
        return self._file.is_quickly_reduced(level)

    # ---- the pictures that come with it

    @property
    def associated_sizes(self) -> Mapping[str, tuple[int, int]]:
        """(width, height) of the pictures that come with the slide, by name.

        A label or macro picture may show who the patient is.
        """
        return MappingProxyType(self._file.associated_sizes)

    def associated_image(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return a picture that comes with the slide, uint8 (H, W, 3), RGB.

        Raises
        ------
        SlideError
            If there is none of that name, or it cannot be read.
        """
        return self._file.associated_image(name)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._file.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r})"


def default_mpp(slides: Sequence[Slide]) -> float:
    """Return the coarser of 0.5 and the coarsest pixel size among the slides, µm."""
    return max([0.5, *(slide.native_mpp for slide in slides)])


def check_mpp(slide: Slide, mpp: float, *, allow_upsampling: bool = False) -> None:
    """Refuse an ``mpp`` (µm/px) that is finer than the slide has.

    Raises
    ------
    UpsamplingError
        If ``mpp`` is below 0.9 times the slide's own and up-sampling is not allowed.
    """
    if allow_upsampling or mpp >= FINEST_MPP_RATIO * slide.native_mpp:
        return
    raise UpsamplingError(
        f"{slide.path.name} has {slide.native_mpp:.3g} µm per pixel; {mpp:.3g} would "
        f"invent detail. Choose {slide.native_mpp:.3g} or more, or allow up-sampling."
    )


def _true_factor(full: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Return level-0 pixels per pixel of a level, in x and y.

    Writers round a level's size, so the ratio of sizes is a little off the factor they
    used. Where one whole number explains both sizes, that number is the factor.
    """
    ratio = (full[0] / size[0], full[1] / size[1])
    whole = round(math.sqrt(ratio[0] * ratio[1]))
    if whole >= 1 and all(
        math.floor(f / whole) <= s <= math.ceil(f / whole)
        for f, s in zip(full, size, strict=True)
    ):
        return float(whole), float(whole)
    return ratio


def _equal(extent: Iterable[float], size: Iterable[float]) -> bool:
    return all(abs(e - s) < 1e-3 for e, s in zip(extent, size, strict=True))


def _is_whole(numbers: Iterable[float]) -> bool:
    return all(abs(number - round(number)) < 1e-6 for number in numbers)
