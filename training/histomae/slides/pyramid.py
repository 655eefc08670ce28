"""A slide as a list of lazy arrays, one per level, for a viewer.

Stored levels may have any factor, leave gaps or be missing altogether. The pyramid's
levels always halve, down to one below ``SMALLEST_PX``; each is read from the nearest
finer stored level, in chunks that are kept in a cache of bounded size.

A viewer takes the quotient of two levels' shapes for the factor between them. To make
that true to the last pixel, every level is filled up with white, right and below, to
whole pixels of the coarsest: by less than one of those.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import SlideError
from histomae.slides.colour import to_srgb

if TYPE_CHECKING:
    from collections.abc import Callable

    from histomae.slides.slide import Slide

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
CHUNK_PX = 512
SMALLEST_PX = 1024
CACHE_BYTES = 512 << 20
#: What a chunk that cannot be read looks like: a grey that no stain has.
UNREADABLE_RGB = (128, 128, 128)


class ChunkCache:
    """Decoded chunks, the least recently used thrown away beyond ``max_bytes``."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._chunks: OrderedDict[tuple[Any, ...], Pixels] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...], make: Callable[[], Pixels]) -> Pixels:
        """Return the chunk of ``key``, made by ``make`` if it is not kept."""
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
        chunk = make()
        with self._lock:
            if key not in self._chunks:
                self._chunks[key] = chunk
                self._bytes += chunk.nbytes
            while self._bytes > self.max_bytes and len(self._chunks) > 1:
                self._bytes -= self._chunks.popitem(last=False)[1].nbytes
        return chunk

    @property
    def nbytes(self) -> int:
        """Bytes of pixels kept."""
        return self._bytes


class PyramidLevel:
    """One level as an array-like of uint8, shape (height, width, 3), read when sliced.

    Parameters
    ----------
    slide
        Where the pixels come from.
    factor
        Level-0 pixels per pixel of this level, a power of two.
    shape_yx
        (height, width) in pixels of this level; white where the slide has ended.
    cache
        Shared by the levels of a pyramid.
    on_error
        Called with the error when a chunk cannot be read; the chunk is then grey and
        is tried again the next time it is asked for.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        slide: Slide,
        factor: int,
        shape_yx: tuple[int, int],
        *,
        cache: ChunkCache,
        on_error: Callable[[SlideError], None] | None = None,
    ) -> None:
        self.shape = (*shape_yx, 3)
        self.factor = factor
        self.chunks = (CHUNK_PX, CHUNK_PX, 3)
        self._slide = slide
        self._cache = cache
        self._on_error = on_error
        self._convert = to_srgb(slide.icc_profile)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes it would take if it were read whole."""
        return self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Pixels:
        """Return the pixels of a slice or an index per axis, with numpy's meaning."""
        keys = _expanded(key, self.ndim)
        (y0, y1), (x0, x1) = (
            _span(one, length)
            for one, length in zip(keys[:2], self.shape[:2], strict=True)
        )
        pixels = self._block(y0, y1, x0, x1)
        rest = tuple(
            _within(one, start) for one, start in zip(keys[:2], (y0, x0), strict=True)
        )
        return pixels[(*rest, keys[2])]

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def _block(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        block = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        if not block.size:
            return block
        for top in range(y0 - y0 % CHUNK_PX, y1, CHUNK_PX):
            for left in range(x0 - x0 % CHUNK_PX, x1, CHUNK_PX):
                chunk = self._chunk(top, left)
                ys = slice(max(y0, top), min(y1, top + chunk.shape[0]))
                xs = slice(max(x0, left), min(x1, left + chunk.shape[1]))
                block[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0] = (
                    chunk[
                        ys.start - top : ys.stop - top, xs.start - left : xs.stop - left
                    ]
                )
        return block

    def _chunk(self, top: int, left: int) -> Pixels:
        size = (
            min(CHUNK_PX, self.shape[1] - left),
            min(CHUNK_PX, self.shape[0] - top),
        )
        try:
            return self._cache.get(
                (self._slide.slide_id, self.factor, top, left),
                lambda: self._read(top, left, size),
            )
        except SlideError as error:
            if self._on_error is not None:
                self._on_error(error)
            return np.full((size[1], size[0], 3), UNREADABLE_RGB, np.uint8)

    def _read(self, top: int, left: int, size: tuple[int, int]) -> Pixels:
        factor = float(self.factor)
        pixels = self._slide.read_scaled(
            (left * factor, top * factor), size, (factor, factor)
        )
        return self._convert(pixels)


def pyramid(
    slide: Slide,
    *,
    cache: ChunkCache | None = None,
    on_error: Callable[[SlideError], None] | None = None,
) -> list[PyramidLevel]:
    """Return the levels of a slide for a viewer, finest first.

    Level ``i`` has ``2**i`` level-0 pixels per pixel, whatever the file stores; the
    last is the first whose longer side is ``SMALLEST_PX`` or less. Every shape is that
    of the last one times a power of two.
    """
    cache = cache or ChunkCache()
    width, height = slide.dimensions
    halvings = max(0, math.ceil(math.log2(max(width, height) / SMALLEST_PX)))
    last = (math.ceil(height / 2**halvings), math.ceil(width / 2**halvings))
    return [
        PyramidLevel(
            slide,
            2**i,
            (last[0] << halvings - i, last[1] << halvings - i),
            cache=cache,
            on_error=on_error,
        )
        for i in range(halvings + 1)
    ]


def _expanded(key: Any, ndim: int) -> tuple[Any, ...]:
    keys = key if isinstance(key, tuple) else (key,)
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        filler = (slice(None),) * (ndim - len(keys) + 1)
        keys = (*keys[:at], *filler, *keys[at + 1 :])
    if len(keys) > ndim:
        raise IndexError(f"{len(keys)} indices are too many for {ndim} axes")
    return (*keys, *(slice(None),) * (ndim - len(keys)))


def _span(key: Any, length: int) -> tuple[int, int]:
    """Return the smallest range that holds what a slice or an index asks for."""
    if isinstance(key, slice):
        wanted = range(length)[key]
        if not wanted:
            return 0, 0
        return min(wanted), max(wanted) + 1
    index = int(key) + length * (int(key) < 0)
    if not 0 <= index < length:
        raise IndexError(f"index {key} is out of range for an axis of {length} pixels")
    return index, index + 1


def _within(key: Any, start: int) -> Any:
    """Return what remains of a key once its span was read."""
    if not isinstance(key, slice):
        return 0
    return slice(None, None, key.step)
