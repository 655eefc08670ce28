"""One whole-slide image: its geometry in micrometres, and pixels at any resolution.

Frames. ``l0``: level-0 pixels, origin at the corner of the file, x before y, measured
at pixel *edges* (the first pixel spans 0 to 1). A *factor* is level-0 pixels per pixel
of something; factors stay floats. ``mpp`` is micrometres per pixel.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
from PIL import Image, ImageCms

from histomae.config import FINEST_MPP_RATIO
from histomae.errors import MissingMppError, SlideError, UpsamplingError
from histomae.slides import mpp_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

#: Pixel sizes of level 0 outside this range, µm, are not believed.
MIN_MPP, MAX_MPP = 0.02, 10.0
#: No single read holds more than this many pixels of the file at once.
MAX_READ_PX = 64_000_000
#: Nor decodes more than this in all: about half a minute's work.
MAX_DECODED_PX = 1 << 30
#: OpenSlide moves pixels by fractions in steps of 1/256; less than half is nothing.
LEAST_SHIFT = 1 / 512
#: Pixels read beyond each side where a fraction must be undone.
SHIFT_MARGIN_PX = 8
#: Suffixes that only whole-slide images carry.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu")
#: Suffixes that other images carry too: a slide only where OpenSlide detects one.
SHARED_SUFFIXES = (".tif", ".tiff", ".dcm")


@dataclass(frozen=True)
class Level:
    """One stored level. ``size`` is (width, height); ``factor`` is (x, y), exact."""

    index: int
    size: tuple[int, int]
    factor: tuple[float, float]


class Slide:
    """A whole-slide image that answers in micrometres. Open it with :meth:`open`.

    Reads are safe from several threads. After an error the underlying handle is dead
    (OpenSlide latches errors), so it is reopened and the next read starts afresh.
    """

    def __init__(self, path: Path, mpp: tuple[float, float] | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._handle: openslide.OpenSlide | None = _open_handle(path)
        self._properties = dict(self._handle.properties)
        self._downsamples = tuple(self._handle.level_downsamples)
        self._level_sizes = tuple(self._handle.level_dimensions)
        self._mpp, self.mpp_source = self._settle_mpp(mpp)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        mpp: float | tuple[float, float] | None = None,
        fallback_mpp: float | tuple[float, float] | None = None,
    ) -> Slide:
        """Open a slide.

        Parameters
        ----------
        path
            File of any format that OpenSlide reads.
        mpp
            Level-0 pixel size in µm, one number or (x, y), that outranks the file's.
            Without it: the file's, if it lies within ``MIN_MPP`` to ``MAX_MPP``; else
            the one remembered for this file; else missing. It is never guessed.
        fallback_mpp
            Level-0 pixel size, µm, one number or (x, y), to take where it would be
            missing.

        Raises
        ------
        SlideError
            If the file is missing, no slide, or damaged.
        MissingMppError
            If a given pixel size is not believable.
        """
        slide = cls(Path(path), None if mpp is None else _checked(mpp))
        if not slide.has_mpp and fallback_mpp is not None:
            slide._mpp, slide.mpp_source = _checked(fallback_mpp), "given"
        return slide

    def _settle_mpp(
        self, given: tuple[float, float] | None
    ) -> tuple[tuple[float, float] | None, str]:
        if given is not None:
            return given, "given"
        written = _mpp_in(self._properties)
        if written is not None:
            return written, "file"
        remembered = mpp_memory.recall(self.slide_id)
        if remembered is not None and _believable(remembered):
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
        quick = self._properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
        if quick is None:
            with self.path.open("rb") as file:
                quick = str(self.path.stat().st_size) + str(file.read(1 << 20))
        return hashlib.sha256(quick.encode()).hexdigest()[:16]

    @property
    def vendor(self) -> str:
        """OpenSlide's name of the format."""
        return self._properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0, pixels."""
        return self._level_sizes[0]

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The stored levels, finest first."""
        return tuple(
            Level(index, size, _true_factor(self.dimensions, size))
            for index, size in enumerate(self._level_sizes)
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
            x, y, w, h = (int(self._properties[key]) for key in keys)
        except (KeyError, ValueError):
            return 0, 0, width, height
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        w, h = min(w, width - x), min(h, height - y)
        return (x, y, w, h) if w > 0 and h > 0 else (0, 0, width, height)

    @cached_property
    def background_rgb(self) -> tuple[int, int, int]:
        """Colour of unscanned glass: the file's own, else white."""
        code = self._properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        try:
            red, green, blue = bytes.fromhex(code.lstrip("#"))
        except ValueError:
            return 255, 255, 255
        return red, green, blue

    @cached_property
    def icc_profile(self) -> bytes | None:
        """The colour profile in the file, if any."""
        handle = self._healthy_handle()
        try:
            profile = handle.color_profile
        except ImageCms.PyCMSError:  # damaged: the pixels are shown as they are
            return None
        return None if profile is None else profile.tobytes()

    @cached_property
    def is_synthetic(self) -> bool:
        """Whether the file says that it was made by a program, not a scanner."""
        comment = self._properties.get(openslide.PROPERTY_NAME_COMMENT, "")
        comment += self._properties.get("tiff.ImageDescription", "")
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
        try:
            power = float(self._properties[openslide.PROPERTY_NAME_OBJECTIVE_POWER])
        except (KeyError, ValueError):
            return None
        return 10.0 / power if 1.0 <= power <= 200.0 else None

    def settle_mpp(self, mpp: float | tuple[float, float]) -> None:
        """Take a person's answer for the pixel size (µm) and remember it."""
        pair = _checked(mpp)
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

        Outside the level is background. OpenSlide is asked for nothing there: it cuts
        the fraction of a negative place off, a whole pixel of a small level.
        """
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        pixels[:] = self.background_rgb
        x0, y0 = (max(s, 0) for s in start)
        x1, y1 = (
            min(s + n, end) for s, n, end in zip(start, size, level.size, strict=True)
        )
        if x0 < x1 and y0 < y1:
            inside = self._read_inside(level, (x0, y0), (x1 - x0, y1 - y0))
            left, top = x0 - start[0], y0 - start[1]
            pixels[top : top + y1 - y0, left : left + x1 - x0] = inside
        return pixels

    def _read_inside(
        self, level: Level, start: tuple[int, int], size: tuple[int, int]
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read stored pixels that lie within the level, exactly.

        OpenSlide takes whole level-0 pixels and divides them by a mean downsample, such
        as 2.0001 where the true factor is 2 and does not divide the size. It then lands
        between the level's pixels and mixes neighbours; that is undone here.
        """
        downsample = self._downsamples[level.index]
        if not any(_shift(s, downsample) for s in start):
            return self._decode(level, start, size)
        first = (max(0, start[0] - SHIFT_MARGIN_PX), max(0, start[1] - SHIFT_MARGIN_PX))
        before = (start[0] - first[0], start[1] - first[1])
        wide, high = (
            n + b + SHIFT_MARGIN_PX for n, b in zip(size, before, strict=True)
        )
        mixed = self._decode(level, first, (wide, high)).astype(np.float32)
        mixed = unmixed(mixed, _shift(first[0], downsample), axis=1)
        mixed = unmixed(mixed, _shift(first[1], downsample), axis=0)
        kept = mixed[before[1] :, before[0] :][: size[1], : size[0]]
        return np.rint(kept).clip(0, 255).astype(np.uint8)

    def _decode(
        self, level: Level, start: tuple[int, int], size: tuple[int, int]
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return what OpenSlide makes of a place, laid on the background."""
        downsample = self._downsamples[level.index]
        location = (round(start[0] * downsample), round(start[1] * downsample))
        try:
            rgba = self._healthy_handle().read_region(location, level.index, size)
        except openslide.OpenSlideError as error:
            self._drop_handle()
            raise SlideError(
                f"{self.path.name} cannot be read at x {location[0]}, y {location[1]} "
                f"({error}). The file may be damaged, moved or cut short: check it, or "
                "copy it again."
            ) from error
        return flatten(np.asarray(rgba), self.background_rgb)

    def thumbnail(self, max_px: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the whole slide, uint8 (H, W, 3), no side above ``max_px``."""
        width, height = self.dimensions
        factor = max(width, height) / max_px
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        return self.read_scaled((0, 0), size, (width / size[0], height / size[1]))

    # ---- its handle

    def _healthy_handle(self) -> openslide.OpenSlide:
        with self._lock:
            if self._handle is None:
                self._handle = _open_handle(self.path)
            return self._handle

    def _drop_handle(self) -> None:
        # Another thread may still be reading: the handle closes when it is let go.
        with self._lock:
            self._handle = None

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._drop_handle()

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


def _shift(start: int, downsample: float) -> float:
    """Return by what fraction of a pixel OpenSlide misses a level's pixel ``start``."""
    shift = round(start * downsample) / downsample - start
    return shift if abs(shift) > LEAST_SHIFT else 0.0


def unmixed(
    values: np.ndarray[Any, np.dtype[np.float32]], shift: float, *, axis: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Undo a linear interpolation at ``shift`` pixels, within -0.5 to 0.5.

    Each value is ``(1 - |shift|)`` of its own pixel and ``|shift|`` of the next one
    (the previous one, if negative). The equations are solved one after the other, from
    the far end; what is assumed beyond that end fades within a few pixels.
    """
    weight = abs(shift)
    if not weight:
        return values
    towards = slice(None, None, -1 if shift > 0 else 1)
    lines = np.moveaxis(values, axis, 0)[towards]
    solved = np.empty_like(lines)
    before = lines[0]  # what is assumed beyond the end: its last value goes on
    for line, pixels in zip(lines, solved, strict=True):
        np.divide(line - weight * before, 1 - weight, out=pixels)
        before = pixels
    return np.moveaxis(solved[towards], 0, axis)


def flatten(
    rgba: np.ndarray[Any, np.dtype[np.uint8]], background: tuple[int, int, int]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Lay pixels (H, W, 4), not premultiplied, on a background; returns (H, W, 3)."""
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgb)
    weight = alpha.astype(np.float32) / 255
    mixed = rgb * weight + np.asarray(background, np.float32) * (1 - weight)
    return np.rint(mixed).astype(np.uint8)


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


def is_slide(path: str | Path) -> bool:
    """Tell cheaply whether a path looks like a slide; never raises.

    Slide-only suffixes always are; TIFF and DICOM only where OpenSlide detects one.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in SLIDE_SUFFIXES:
        return True
    if suffix not in SHARED_SUFFIXES:
        return False
    try:
        return openslide.OpenSlide.detect_format(path) is not None
    except (openslide.OpenSlideError, OSError):
        return False


def find_slides(paths: Iterable[str | Path]) -> list[Path]:
    """Return the slides among files and folders, each once, in order.

    A folder is searched to its depth; of a DICOM series only one file is taken.

    Raises
    ------
    SlideError
        If a path does not exist, or a folder holds no slide.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        if not given.exists():
            raise SlideError(f"{given} does not exist. Check the name.")
        inside = _slides_in(given) if given.is_dir() else [given]
        if not inside:
            raise SlideError(f"The folder {given} holds no slide. Choose another one.")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _slides_in(folder: Path) -> list[Path]:
    slides, dicom_folders = [], set()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or not is_slide(path):
            continue
        if path.suffix.lower() == ".dcm":
            if path.parent in dicom_folders:
                continue
            dicom_folders.add(path.parent)
        slides.append(path)
    return slides


def _open_handle(path: Path) -> openslide.OpenSlide:
    if not path.exists():
        raise SlideError(f"{path} does not exist. Check the name, or bring it back.")
    if path.is_dir():
        raise SlideError(f"{path} is a folder. Choose a slide file inside it.")
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(
            f"{path.name} is no slide that OpenSlide reads. Choose an SVS, NDPI, MRXS, "
            "SCN, BIF, tiled TIFF or DICOM slide, or convert it to one of these."
        ) from error
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(
            f"{path.name} cannot be opened ({error}). The file may be damaged: copy it "
            "again from its source."
        ) from error


def _checked(mpp: float | tuple[float, float]) -> tuple[float, float]:
    """Return a person's pixel size as (x, y), or refuse it."""
    pair = (mpp, mpp) if isinstance(mpp, int | float) else mpp
    if not _believable(pair):
        raise MissingMppError(
            f"{mpp} µm per pixel is not believable. Give a number between {MIN_MPP} "
            f"and {MAX_MPP}; most scanners write 0.2 to 0.5."
        )
    return pair


def _believable(mpp_xy: tuple[float, float]) -> bool:
    return all(MIN_MPP <= mpp <= MAX_MPP for mpp in mpp_xy)


def _mpp_in(properties: dict[str, str]) -> tuple[float, float] | None:
    try:
        pair = (
            float(properties[openslide.PROPERTY_NAME_MPP_X]),
            float(properties[openslide.PROPERTY_NAME_MPP_Y]),
        )
    except (KeyError, ValueError):
        return None
    return pair if _believable(pair) else None


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
