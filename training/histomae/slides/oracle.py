"""OpenSlide's view of one file: every format, and the measure of every other reader.

OpenSlide latches errors: after one, a handle gives nothing any more. It is then let go
and the next read opens another. At most ``MOST_OPEN`` handles are open at once, those
not used for longest are closed first; all share one cache of ``CACHE_BYTES``. A forked
process opens handles of its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
from PIL import ImageCms

from histomae.errors import SlideError
from histomae.slides.stamp import Stamp
from histomae.slides.tiff import tiled_directories

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.slides.tiff import Directory

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: OpenSlide's names of the formats whose tiles lie edge to edge.
APERIO, PLAIN_TIFF = "aperio", "generic-tiff"
PLAIN_FORMATS = (APERIO, PLAIN_TIFF)
MOST_OPEN = 64
CACHE_BYTES = 32 << 20
#: OpenSlide moves pixels by fractions in steps of 1/256; less than half is nothing.
LEAST_SHIFT = 1 / 512
#: Pixels read beyond each side where a fraction must be undone.
SHIFT_MARGIN_PX = 8
#: Side of the tiles of a level whose file names none.
DEFAULT_TILE_PX = 512
#: Nobody stores a slide in smaller tiles, and to read them would take for ever.
LEAST_TILE_SIDE_PX = 8
#: Tiles of more pixels are not decoded: 64 MB each.
MOST_TILE_PX = 1 << 24
#: Nor are pictures that come with a slide.
MOST_ASSOCIATED_PX = 1 << 24
#: Pixels are laid on a background so many at a time.
BAND_PX = 1 << 18


def tile_box(
    tile_px: tuple[int, int], level_size: tuple[int, int], col: int, row: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (x, y) and (width, height) of a tile, cut at the level's edges.

    Raises
    ------
    IndexError
        If there is no such tile.
    """
    wide, high = tile_px
    level_w, level_h = level_size
    x, y = col * wide, row * high
    if not (0 <= x < level_w and 0 <= y < level_h):
        raise IndexError(f"the level has no tile in column {col}, row {row}")
    return (x, y), (min(wide, level_w - x), min(high, level_h - y))


class Oracle:
    """One file as OpenSlide reads it. Levels are numbers, 0 is finest.

    Attributes
    ----------
    properties
        What the file says of itself, as OpenSlide names it.
    level_sizes
        (width, height) of each level, pixels.
    tile_sizes
        (width, height) of the tiles in which each level is stored, pixels.
    associated_sizes
        (width, height) of the pictures that come with the slide, by name.
    directories
        By level: the one directory of a TIFF that holds it, where that is certain.
    stored_box
        The part of level 0 that has tiles, (x0, y0, x1, y1); beyond it is background.

    Raises
    ------
    SlideError
        If the file is missing, no slide, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self._process = threading.Lock(), os.getpid()
        self._handle: openslide.OpenSlide | None = None
        directories = tiled_directories(path)  # claims are checked before OpenSlide
        handle = self._healthy_handle()
        self.properties = _legible(handle)
        self.level_sizes: tuple[tuple[int, int], ...] = tuple(handle.level_dimensions)
        self._downsamples = tuple(handle.level_downsamples)
        self.tile_sizes = tuple(
            _tile_size(self.properties, level) for level in range(len(self.level_sizes))
        )
        self.associated_sizes = _associated_sizes(self.properties)
        self._refuse_odd_tiles()
        self.directories = self._matched(directories)
        self.stored_box = self._stored_box()
        self._overlong = {
            level: _overlong(directory, Stamp.of(path).size)
            for level, directory in self.directories.items()
        }

    @property
    def vendor(self) -> str:
        """OpenSlide's name of the format."""
        return self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """Colour of unscanned glass: the file's own, else white."""
        code = self.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        try:
            red, green, blue = bytes.fromhex(code.lstrip("#"))
        except ValueError:
            return 255, 255, 255
        return red, green, blue

    def colour_profile(self) -> bytes | None:
        """Return the ICC profile in the file, if any."""
        handle = self._healthy_handle()
        try:
            profile = handle.color_profile
        except ImageCms.PyCMSError:  # damaged: the pixels are shown as they are
            return None
        return None if profile is None else profile.tobytes()

    def associated_image(self, name: str) -> Pixels:
        """Return a picture that comes with the slide, uint8 (H, W, 3).

        Raises
        ------
        SlideError
            If there is none of that name, or it cannot be read.
        """
        wide, high = self.associated_sizes.get(name, (0, 0))
        if not 0 < wide * high <= MOST_ASSOCIATED_PX:
            raise SlideError(
                f"{self.path.name} has no picture {name!r} of at most "
                f"{MOST_ASSOCIATED_PX >> 20} million pixels. It has: "
                f"{', '.join(self.associated_sizes) or 'none'}."
            )
        try:
            rgba = self._healthy_handle().associated_images[name]
        except (openslide.OpenSlideError, KeyError) as error:
            self.close()
            raise SlideError(
                f"The picture {name!r} of {self.path.name} cannot be read ({error}). "
                "The file may be damaged: copy it again."
            ) from error.with_traceback(None)
        return flatten(np.asarray(rgba), self.background_rgb)

    # ---- its pixels

    def box(
        self, level: int, col: int, row: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (x, y) and (width, height) of a tile, cut at the level's edges.

        Raises
        ------
        IndexError
            If there is no such tile.
        """
        return tile_box(self.tile_sizes[level], self.level_sizes[level], col, row)

    def read(self, level: int, start: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Read stored pixels that lie within a level.

        OpenSlide takes whole level-0 pixels and divides them by a mean downsample, such
        as 2.0001 where the true factor is 2 and does not divide the size. It then lands
        between the level's pixels and mixes neighbours; that is undone here, to within
        a few grey values. See :meth:`is_exact`.

        Parameters
        ----------
        start, size
            (x, y) and (width, height), pixels of the level.

        Returns
        -------
        uint8 (height, width, 3), RGB.

        Raises
        ------
        SlideError
            If the file cannot be read there.
        """
        downsample = self._downsamples[level]
        if self.is_exact(level, start):
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

    def is_exact(self, level: int, start: tuple[int, int]) -> bool:
        """Tell whether a read from ``start`` gives the stored pixels to the bit."""
        return not any(_shift(s, self._downsamples[level]) for s in start)

    def _decode(
        self, level: int, start: tuple[int, int], size: tuple[int, int]
    ) -> Pixels:
        """Return what OpenSlide makes of a place, laid on the background."""
        downsample = self._downsamples[level]
        location = (round(start[0] * downsample), round(start[1] * downsample))
        self._refuse_overlong(level, start, size)
        try:
            rgba = self._healthy_handle().read_region(location, level, size)
        except openslide.OpenSlideError as error:
            self.close()
            raise SlideError(
                f"{self.path.name} cannot be read at x {location[0]}, y {location[1]} "
                f"({error}). The file may be damaged, moved or cut short: check it, or "
                "copy it again."
            ) from error.with_traceback(None)  # else whoever keeps it keeps the handle
        return flatten(np.asarray(rgba), self.background_rgb)

    # ---- what it claims

    def _refuse_odd_tiles(self) -> None:
        for wide, high in self.tile_sizes:
            if wide * high > MOST_TILE_PX:
                raise SlideError(
                    f"{self.path.name} claims tiles of {wide} × {high} pixels, too "
                    "many to take into memory. It is damaged, or must be converted to "
                    "a TIFF of small tiles."
                )
            if min(wide, high) < LEAST_TILE_SIDE_PX:
                raise SlideError(
                    f"{self.path.name} claims tiles of {wide} × {high} pixels, which "
                    "no scanner writes. It is damaged: copy it again from its source."
                )

    def _matched(self, directories: tuple[Directory, ...]) -> dict[int, Directory]:
        """Return by level the only directory of its size and tiles."""
        matched = {}
        for level, shape in enumerate(
            zip(self.level_sizes, self.tile_sizes, strict=True)
        ):
            fitting = [
                each for each in directories if (each.size, each.tile_px) == shape
            ]
            if len(fitting) == 1:
                matched[level] = fitting[0]
        return matched

    def _stored_box(self) -> tuple[int, int, int, int]:
        wide, high = self.level_sizes[0]
        directory = self.directories.get(0)
        if directory is None or self.vendor not in PLAIN_FORMATS:
            return 0, 0, wide, high
        cols, rows = directory.tiles
        counts = directory.counts[: cols * rows]
        if len(counts) == cols * rows and counts.all():
            return 0, 0, wide, high
        stored = np.flatnonzero(counts)
        if not len(stored):
            return 0, 0, wide, high
        (x, y), (tile_w, tile_h) = divmod(stored, cols)[::-1], directory.tile_px
        return (
            int(x.min()) * tile_w,
            int(y.min()) * tile_h,
            min(wide, (int(x.max()) + 1) * tile_w),
            min(high, (int(y.max()) + 1) * tile_h),
        )

    def _refuse_overlong(
        self, level: int, start: tuple[int, int], size: tuple[int, int]
    ) -> None:
        """Refuse tiles of more bytes than the file has: OpenSlide would take them all.

        Without memory for them it ends the process.
        """
        for col, row in self._overlong.get(level, ()):
            (x, y), (wide, high) = self.box(level, col, row)
            if (
                x < start[0] + size[0]
                and y < start[1] + size[1]
                and x + wide > start[0]
                and y + high > start[1]
            ):
                raise SlideError(
                    f"{self.path.name} cannot be read at column {col}, row {row} of "
                    f"level {level}: the tile claims more bytes than the file has. The "
                    "file is damaged or cut short: copy it again."
                )

    # ---- its handle

    def _healthy_handle(self) -> openslide.OpenSlide:
        if self._process != os.getpid():
            self._leave_to_parent()
        with self._lock:
            if self._handle is None:
                self._handle = _open_handle(self.path)
            handle = self._handle
        _used(self)
        return handle

    def _leave_to_parent(self) -> None:
        # Its locks may be held by a thread that does not exist here: never touched.
        _INHERITED.append(self._handle)
        self._handle = None
        self._lock, self._process = threading.Lock(), os.getpid()

    def close(self) -> None:
        """Let the handle go; a later read opens another."""
        # Another thread may still be reading: the handle closes when it is let go.
        if self._process != os.getpid():
            self._leave_to_parent()
        with self._lock:
            self._handle = None


#: The oracles whose handle is open, the least recently used first.
_OPEN: OrderedDict[weakref.ref[Oracle], None] = OrderedDict()
#: Handles of the parent process.
_INHERITED: list[openslide.OpenSlide | None] = []
#: The process, and the cache of decoded tiles that its handles share.
_CACHE: list[tuple[int, openslide.OpenSlideCache]] = []


def _used(oracle: Oracle) -> None:
    """Note that an oracle's handle was used; close the one that was not for longest."""
    key = weakref.ref(oracle, lambda gone: _OPEN.pop(gone, None))
    _OPEN.pop(key, None)
    _OPEN[key] = None
    while len(_OPEN) > MOST_OPEN:
        oldest = _OPEN.popitem(last=False)[0]()
        if oldest is not None:
            oldest.close()


def _open_handle(path: Path) -> openslide.OpenSlide:
    try:
        handle = openslide.OpenSlide(path)
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
    handle.set_cache(_shared_cache())
    return handle


def _shared_cache() -> openslide.OpenSlideCache:
    if not _CACHE or _CACHE[-1][0] != os.getpid():  # a parent's is left alone
        _CACHE.append((os.getpid(), openslide.OpenSlideCache(CACHE_BYTES)))
    return _CACHE[-1][1]


def _tile_size(properties: dict[str, str], level: int) -> tuple[int, int]:
    keys = (f"openslide.level[{level}].tile-{side}" for side in ("width", "height"))
    try:
        wide, high = (int(properties[key]) for key in keys)
    except (KeyError, ValueError):
        return DEFAULT_TILE_PX, DEFAULT_TILE_PX
    return (wide, high) if wide > 0 < high else (DEFAULT_TILE_PX, DEFAULT_TILE_PX)


def _legible(handle: openslide.OpenSlide) -> dict[str, str]:
    """Return the properties, but for those whose name is damaged."""
    found = {}
    for name in handle.properties:
        try:
            found[name] = handle.properties[name]
        except KeyError:  # it is no UTF-8, and cannot be asked for
            continue
    return found


def _associated_sizes(properties: dict[str, str]) -> dict[str, tuple[int, int]]:
    sizes = {}
    for key, wide in properties.items():
        if key.startswith("openslide.associated.") and key.endswith(".width"):
            high = properties.get(f"{key.removesuffix('width')}height", "")
            name = key.removeprefix("openslide.associated.").removesuffix(".width")
            if wide.isdecimal() and high.isdecimal():
                sizes[name] = int(wide), int(high)
    return sizes


def _overlong(directory: Directory, file_bytes: int) -> list[tuple[int, int]]:
    """Return (column, row) of tiles that claim more bytes than the file has."""
    cols, rows = directory.tiles
    numbers = np.flatnonzero(directory.counts[: cols * rows] > file_bytes).tolist()
    return [(number % cols, number // cols) for number in numbers]


# What it does to pixels -------------------------------------------------------


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
) -> Pixels:
    """Lay pixels (H, W, 4), not premultiplied, on a background; returns (H, W, 3)."""
    flat = np.ascontiguousarray(rgba[..., :3])
    rows = max(1, BAND_PX // max(1, rgba.shape[1]))
    for top in range(0, len(flat), rows):
        band, alpha = flat[top : top + rows], rgba[top : top + rows, :, 3:]
        if not alpha.any():
            band[:] = background
        elif alpha.min() < 255:
            weight = alpha.astype(np.float32) / 255
            mixed = band * weight + np.asarray(background, np.float32) * (1 - weight)
            band[:] = np.rint(mixed)
    return flat
