"""A slide as a list of lazy arrays, one per level, for a viewer.

Stored levels may have any factor, leave gaps or be missing altogether. The pyramid's
levels always halve, down to one below ``SMALLEST_PX``. Where the file stores a level of
that very factor, the chunks of the array are the file's own tiles; between two stored
levels, chunks are the means of blocks of the finer one, whose tiles are decoded to
fewer pixels where that is faster. Only where a gap is so wide that too much would be
decoded, the coarser one is shown enlarged; and where there is no coarser one, nothing
is shown of levels for one view of which ``MAX_DECODED_PX`` pixels would not suffice.

A viewer takes the quotient of two levels' shapes for the factor between them. To make
that true to the last pixel, every level is filled up with background, right and below,
to whole pixels of the coarsest: by less than one of those.

What is looked at is decoded in several threads at once; then the chunks around it are
decoded ahead, and given up when something else is looked at.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from histomae.errors import SlideError
from histomae.slides.colour import to_srgb
from histomae.slides.slide import MAX_DECODED_PX
from histomae.slides.tile_cache import shared_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from histomae.slides.slide import Level, Slide
    from histomae.slides.tile_cache import TileCache, TileRequest

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: Small tiles are gathered to chunks of at least this side, pixels.
LEAST_CHUNK_PX = 200
#: Side of a chunk that is not made of the file's tiles, pixels.
CHUNK_PX = 512
#: The coarsest level has no longer side; a window shows it whole, and reads no other.
SMALLEST_PX = 2048
#: A chunk is the mean of blocks of at most this side: of 16 chunks; or of 64 whose
#: tiles are decoded to fewer pixels.
MOST_REDUCTION, MOST_QUICK_REDUCTION = 4, 8
#: Tiles decoded to fewer pixels take so many times less time.
QUICK_GAIN = 4
#: However small a tile is, to read it takes as long as to decode so many pixels.
LEAST_TILE_PX = 1 << 16
#: Chunks ahead are asked for at this priority; what is looked at, at 0.
AHEAD = 1
#: No more than so many of the file's tiles are decoded for one chunk ahead.
MOST_TILES_AHEAD = 16
#: A tile that could not be read is not tried again before this time is over, s.
RETRY_S = 0.5
#: So many of those are known at once.
MOST_FAILURES = 256
#: What a tile that cannot be read looks like: a grey that no stain has, hatched.
UNREADABLE_RGB, HATCH_RGB = (128, 128, 128), (160, 160, 160)
HATCH_EVERY_PX, HATCH_PX = 32, 3
#: A chunk that lies beyond the slide.
NOTHING = np.empty((0, 0, 3), np.uint8)


class IncompleteError(Exception):
    """Part of a chunk cannot be read: it is shown, marked, and not kept."""

    def __init__(self, pixels: Pixels, reason: SlideError) -> None:
        super().__init__(str(reason))
        self.pixels = pixels
        self.reason = reason


class Tiles(Protocol):
    """Where the chunks of a level come from.

    ``chunk_px`` is a chunk's (width, height); ``cost`` how many of the file's tiles are
    decoded for one. A chunk is uint8 (height, width, 3), cut short where the slide
    ends. Both ways to ask for one raise SlideError, or IncompleteError.
    """

    chunk_px: tuple[int, int]
    cost: float

    def peek(self, col: int, row: int) -> Pixels | None:
        """Return a chunk that is decoded already, at once."""

    def get(self, col: int, row: int) -> Pixels:
        """Return a chunk."""

    def request(self, col: int, row: int, priority: int) -> TileRequest:
        """Ask for a chunk ahead."""


class PyramidLevel:
    """One level as an array-like of uint8, shape (height, width, 3), read when sliced.

    Parameters
    ----------
    tiles
        Where its chunks come from.
    factor
        Level-0 pixels per pixel of this level, a power of two.
    shape_yx
        (height, width) in pixels of this level.
    end_xy
        Where what the file stores ends, right and below, in pixels of this level; no
        chunk that lies beyond is asked for: it is background.
    background
        Colour of what lies beyond the slide.
    on_error
        Called with the error when a tile cannot be read; it is then grey and hatched,
        and is tried again when it is asked for later.
    ahead
        Told what was looked at.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        tiles: Tiles,
        factor: int,
        shape_yx: tuple[int, int],
        end_xy: tuple[int, int],
        *,
        background: tuple[int, int, int],
        on_error: Callable[[SlideError], None] | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        self.shape = (*shape_yx, 3)
        self.end_xy = end_xy
        self.factor = factor
        self.tiles = tiles
        self.chunks = (*tiles.chunk_px[::-1], 3)
        self._background = background
        self._on_error = on_error
        self._ahead = ahead
        self._failures: dict[tuple[int, int], _Failure] = {}

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes it would take if it were read whole."""
        return self.size

    @property
    def grid(self) -> tuple[int, int]:
        """(columns, rows) of chunks."""
        return -(-self.shape[1] // self.chunks[1]), -(-self.shape[0] // self.chunks[0])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Pixels:
        """Return the pixels of a slice or an index per axis, with numpy's meaning."""
        keys = _expanded(key, self.ndim)
        (y0, y1), (x0, x1) = (
            _span(one, length)
            for one, length in zip(keys[:2], self.shape[:2], strict=True)
        )
        pixels, error = self.block((x0, y0, x1, y1), at_once=True)
        if error is not None and self._on_error is not None:
            self._on_error(error)
        if self._ahead is not None and pixels.size:
            self._ahead.look(self, *self._touched((x0, y0, x1, y1)))
        rest = tuple(
            _within(one, start) for one, start in zip(keys[:2], (y0, x0), strict=True)
        )
        return pixels[(*rest, keys[2])]

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def block(
        self, box: tuple[int, int, int, int], *, at_once: bool = False
    ) -> tuple[Pixels, SlideError | None]:
        """Return the pixels of a box (x0, y0, x1, y1), and why some cannot be read.

        Parameters
        ----------
        at_once
            Decode in all threads of the cache, and not only in this one.
        """
        x0, y0, x1, y1 = box
        # Levels of absurd factors may end before the box begins.
        block = np.empty((max(0, y1 - y0), max(0, x1 - x0), 3), np.uint8)
        if not block.size:
            return block, None
        cols, rows = self._touched(box)
        wanted = [(col, row) for row in rows for col in cols]
        if at_once:
            self._ask([at for at in wanted if self.is_missing(*at)])
        error = None
        high, wide, _ = self.chunks
        # From the end, while other threads begin at the beginning.
        for col, row in reversed(wanted):
            chunk, reason = self._chunk(col, row)
            error = error or reason
            left, top = col * wide - x0, row * high - y0
            if chunk.shape[:2] != (high, wide):  # the slide ends here
                place = np.s_[max(0, top) : top + high, max(0, left) : left + wide]
                block[place] = self._background
            _paste(block, chunk, left, top)
        return block, error

    def begin(self) -> None:
        """Let other threads begin to decode the whole level."""
        cols, rows = self.grid
        places = [(col, row) for row in range(rows) for col in range(cols)]
        self._ask([at for at in places if not self._is_beyond(*at)])

    def _ask(self, wanted: list[tuple[int, int]]) -> None:
        for at in wanted:
            self.tiles.request(*at, priority=0)

    def _touched(self, box: tuple[int, int, int, int]) -> tuple[range, range]:
        """Return the columns and rows of the chunks that a box touches."""
        x0, y0, x1, y1 = box
        high, wide, _ = self.chunks
        return range(x0 // wide, -(-x1 // wide)), range(y0 // high, -(-y1 // high))

    def is_missing(self, col: int, row: int) -> bool:
        """Tell whether a chunk is not decoded, and worth a try."""
        if self._is_beyond(col, row) or self._failed(col, row):
            return False
        return self.tiles.peek(col, row) is None

    def _is_beyond(self, col: int, row: int) -> bool:
        high, wide, _ = self.chunks
        return col * wide >= self.end_xy[0] or row * high >= self.end_xy[1]

    def _chunk(self, col: int, row: int) -> tuple[Pixels, SlideError | None]:
        if self._is_beyond(col, row):
            return NOTHING, None
        failed = self._failed(col, row)
        if failed is None:
            try:
                return self.tiles.get(col, row), None
            except IncompleteError as error:
                failed = _Failure.now(error.reason, error.pixels)
            except SlideError as error:
                failed = _Failure.now(error)
            if len(self._failures) >= MOST_FAILURES:
                self._failures.clear()
            self._failures[col, row] = failed
        if failed.pixels is None:
            return self._unreadable(col, row), failed.reason
        return failed.pixels, failed.reason

    def _failed(self, col: int, row: int) -> _Failure | None:
        """Return what became of a chunk that could not be read a moment ago."""
        failed = self._failures.get((col, row))
        return failed if failed and time.monotonic() < failed.until else None

    def _unreadable(self, col: int, row: int) -> Pixels:
        high, wide, _ = self.chunks
        ends = self.end_xy[1] - row * high, self.end_xy[0] - col * wide
        return unreadable((min(high, ends[0]), min(wide, ends[1])))


@dataclass(frozen=True, eq=False)
class _Failure:
    """A chunk that is not tried before a time; ``pixels`` are what of it there is."""

    until: float
    reason: SlideError
    pixels: Pixels | None = None

    @classmethod
    def now(cls, reason: SlideError, pixels: Pixels | None = None) -> _Failure:
        """Return what has just happened."""
        # Its traceback would keep the frames of all callers, with their pixels.
        return cls(time.monotonic() + RETRY_S, reason.with_traceback(None), pixels)


def pyramid(
    slide: Slide,
    *,
    cache: TileCache | None = None,
    on_error: Callable[[SlideError], None] | None = None,
) -> list[PyramidLevel]:
    """Return the levels of a slide for a viewer, finest first.

    Level ``i`` has ``2**i`` level-0 pixels per pixel, whatever the file stores. The
    last is the first whose longer side is ``SMALLEST_PX`` or less, or the one that the
    file stores after a wide gap. Every shape is that of the last one times a power of
    two.

    Parameters
    ----------
    cache
        Where chunks that are no tiles of the file are kept; None: where all tiles are.
    on_error
        Called with the error when a tile cannot be read.
    """
    width, height = slide.dimensions
    maker, ahead = _Maker(slide, cache or shared_cache()), Ahead()
    halvings = max(0, math.ceil(math.log2(max(width, height) / SMALLEST_PX)))
    while maker.is_in_wide_gap(2**halvings):  # on to what the file stores
        halvings += 1
    last = (math.ceil(height / 2**halvings), math.ceil(width / 2**halvings))
    levels: dict[int, PyramidLevel] = {}

    def level(factor: int) -> PyramidLevel:
        if factor not in levels:
            times = 2**halvings // factor
            levels[factor] = PyramidLevel(
                maker.tiles(factor, level),
                factor,
                (last[0] * times, last[1] * times),
                maker.end(factor),
                background=slide.background_rgb,
                on_error=on_error,
                ahead=ahead,
            )
        return levels[factor]

    return [level(2**i) for i in range(halvings + 1)]


# ---- where the chunks of a level come from


class _Maker:
    """Decides what each level of a slide is made of."""

    def __init__(self, slide: Slide, cache: TileCache) -> None:
        self._slide = slide
        self._cache = cache
        # Levels of which the pyramid has one just like it; level 0 always is.
        self._stored = {
            int(level.factor[0]): level
            for level in slide.levels
            if level.factor[0] == level.factor[1]
            and math.log2(level.factor[0]).is_integer()
        }

    def tiles(self, factor: int, level: Callable[[int], PyramidLevel]) -> Tiles:
        """Return the chunks of the level of a factor; ``level`` gives other levels."""
        if self._is_too_much(factor):
            return _RefusedTiles(self._slide, factor, self._cache)
        if factor in self._stored:
            return _native_tiles(self._slide, self._stored[factor], self._cache)
        if self._is_near_another(factor):
            return _ResampledTiles(self._slide, factor, self._cache)
        if self.is_in_wide_gap(factor):
            return _EnlargedTiles(self._slide, level(2 * factor), self._cache)
        base = finer = self._finer(factor)
        while factor > finer * MOST_REDUCTION:
            finer *= MOST_REDUCTION
        by, quick = factor // finer, None
        if finer == base:
            quick = _Quick.of(self._slide, self._stored[base], by)
        elif factor == base * MOST_QUICK_REDUCTION:
            quick = self._quick(base)
            by, finer = (by, finer) if quick is None else (factor // base, base)
        return _ReducedTiles(self._slide, level(finer), by, self._cache, quick)

    def is_in_wide_gap(self, factor: int) -> bool:
        """Tell whether the file stores levels on both sides, the finer one far off."""
        finer = self._finer(factor)
        if factor <= finer * MOST_REDUCTION or factor > max(self._stored):
            return False
        is_quick = factor <= finer * MOST_QUICK_REDUCTION and self._quick(finer)
        return not (is_quick or self._is_near_another(factor))

    def _quick(self, finer: int) -> _Quick | None:
        """Return the tiles of a stored level at an eighth, if they are read so."""
        stored = self._stored[finer]
        quick = _Quick.of(self._slide, stored, MOST_QUICK_REDUCTION)
        return quick if quick is not None and quick.is_right else None

    def end(self, factor: int) -> tuple[int, int]:
        """Return where what the file stores ends (x, y), pixels of a factor."""
        source = self._source(factor)
        x, y = (
            math.ceil(end * finer / factor - 1e-6)
            for end, finer in zip(source.stored[2:], source.factor, strict=True)
        )
        return x, y

    def _is_too_much(self, factor: int) -> bool:
        """Tell whether one view would decode more than a person has patience for."""
        source = self._source(factor)
        view = (
            min(end, SMALLEST_PX * factor / finer)
            for end, finer in zip(source.stored[2:], source.factor, strict=True)
        )
        tiles = math.prod(
            math.ceil(v / side) for v, side in zip(view, source.tile_px, strict=True)
        )
        decoded = tiles * max(LEAST_TILE_PX, math.prod(source.tile_px))
        if decoded <= MAX_DECODED_PX:
            return False
        finer = self._finer(factor)
        is_quick = source == self._stored[finer] and self._quick(finer) is not None
        return decoded > MAX_DECODED_PX * (QUICK_GAIN if is_quick else 1)

    def _source(self, factor: int) -> Level:
        """Return the level of the file that is read for the level of a factor."""
        if self._is_near_another(factor):
            return self._nearest(factor)
        if self.is_in_wide_gap(factor):
            return self._stored[min(f for f in self._stored if f >= factor)]
        return self._stored[self._finer(factor)]

    def _finer(self, factor: int) -> int:
        return max(f for f in self._stored if f <= factor)

    def _is_near_another(self, factor: int) -> bool:
        """Tell whether a level of an odd factor is nearer than those that fit."""
        return max(self._nearest(factor).factor) > 1.5 * self._finer(factor)

    def _nearest(self, factor: int) -> Level:
        """Return the coarsest level that the file stores, but no coarser one."""
        finer = [level for level in self._slide.levels if max(level.factor) <= factor]
        return max(finer, key=lambda level: max(level.factor))


def _native_tiles(slide: Slide, level: Level, cache: TileCache) -> Tiles:
    many = tuple(-(-LEAST_CHUNK_PX // side) for side in level.tile_px)
    if many == (1, 1) and slide.icc_profile is None:
        return _NativeTiles(slide, level)
    return _GatheredTiles(slide, level, (many[0], many[1]), cache)


class _Quick:
    """The tiles of a stored level, decoded so many times smaller, as a level."""

    def __init__(self, slide: Slide, stored: Level, by: int) -> None:
        native = _NativeTiles(slide, stored, by)
        wide, high = native.chunk_px
        shape = stored.tiles[1] * high, stored.tiles[0] * wide
        end = -(-stored.stored[2] // by), -(-stored.stored[3] // by)
        background = slide.background_rgb
        self.level = PyramidLevel(native, by, shape, end, background=background)
        self._slide = slide
        self._stored = stored

    @classmethod
    def of(cls, slide: Slide, stored: Level, by: int) -> _Quick | None:
        """Return the tiles, if ``by`` divides them; nothing is read for it."""
        is_whole = all(side % by == 0 for side in stored.tile_px)
        return cls(slide, stored, by) if is_whole else None

    @property
    def is_right(self) -> bool:
        """Whether they show what a mean of the whole tiles would; it is tried once."""
        return self._slide.is_quickly_reduced(self._stored.index)


class _NativeTiles:
    """The file's own tiles of a level, decoded ``reduce`` times smaller."""

    def __init__(self, slide: Slide, level: Level, reduce: int = 1) -> None:
        self.chunk_px = (level.tile_px[0] // reduce, level.tile_px[1] // reduce)
        self.cost = 1.0
        self._slide = slide
        self._level = level
        self._reduce = reduce

    def peek(self, col: int, row: int) -> Pixels | None:
        return self._slide.cached_native_tile(
            self._level.index, col, row, reduce=self._reduce
        )

    def get(self, col: int, row: int) -> Pixels:
        return self._slide.native_tile(self._level.index, col, row, reduce=self._reduce)

    def request(self, col: int, row: int, priority: int) -> TileRequest:
        return self._slide.request_native_tile(
            self._level.index, col, row, reduce=self._reduce, priority=priority
        )


class _MadeTiles:
    """Chunks that are made of others, and kept."""

    def __init__(
        self,
        slide: Slide,
        factor: int,
        chunk_px: tuple[int, int],
        cost: float,
        cache: TileCache,
    ) -> None:
        self.chunk_px = chunk_px
        self.cost = cost
        self._slide = slide
        self._factor = factor
        self._cache = cache

    def _key(self, col: int, row: int) -> tuple[Any, ...]:
        return "view", self._slide.path, self._slide.slide_id, self._factor, col, row

    def peek(self, col: int, row: int) -> Pixels | None:
        return self._cache.peek(self._key(col, row))

    def get(self, col: int, row: int) -> Pixels:
        return self._cache.get(self._key(col, row), lambda: self._make(col, row))

    def request(self, col: int, row: int, priority: int) -> TileRequest:
        return self._cache.request(
            self._key(col, row), lambda: self._make(col, row), priority=priority
        )

    def _make(self, col: int, row: int) -> Pixels:
        raise NotImplementedError

    def _box(self, col: int, row: int) -> tuple[int, int, int, int]:
        """Return (x0, y0, x1, y1) of a chunk, in pixels of this level."""
        wide, high = self.chunk_px
        return col * wide, row * high, (col + 1) * wide, (row + 1) * high


class _GatheredTiles(_MadeTiles):
    """The file's own tiles of a level, several at a time, in the screen's colours."""

    def __init__(
        self, slide: Slide, level: Level, many: tuple[int, int], cache: TileCache
    ) -> None:
        chunk_px = (many[0] * level.tile_px[0], many[1] * level.tile_px[1])
        cost = float(many[0] * many[1])
        super().__init__(slide, int(level.factor[0]), chunk_px, cost, cache)
        # In whole tiles: the slide is larger than this at no place.
        self._stored = _Quick(slide, level, 1).level
        self._convert = to_srgb(slide.icc_profile)

    def _make(self, col: int, row: int) -> Pixels:
        if self.cost == 1:  # if it cannot be read, the mark keeps its colour
            return self._convert(self._stored.tiles.get(col, row))
        box = _before(self._stored.end_xy, self._box(col, row))
        pixels, error = self._stored.block(box)
        return _whole(self._convert(pixels) if pixels.size else pixels, error)


class _ReducedTiles(_MadeTiles):
    """Means of square blocks of a finer level, decoded as such where that is right."""

    def __init__(
        self,
        slide: Slide,
        finer: PyramidLevel,
        by: int,
        cache: TileCache,
        quick: _Quick | None,
    ) -> None:
        cost = finer.tiles.cost * by**2
        super().__init__(slide, finer.factor * by, finer.tiles.chunk_px, cost, cache)
        self._finer = finer
        self._by = by
        self._quick = quick
        self._convert = to_srgb(slide.icc_profile)

    def _make(self, col: int, row: int) -> Pixels:
        box = self._box(col, row)
        if self._quick is not None and self._quick.is_right:
            level = self._quick.level
            pixels, error = level.block(_before(level.end_xy, box))
            return _whole(self._convert(pixels) if pixels.size else pixels, error)
        by, (wide, high) = self._by, self._finer.end_xy
        x0, y0, x1, y1 = (
            by * at for at in _before((-(-wide // by), -(-high // by)), box)
        )
        pixels, error = self._finer.block((x0, y0, x1, y1))
        return _whole(np.asarray(Image.fromarray(pixels).reduce(by)), error)


class _EnlargedTiles(_MadeTiles):
    """Every pixel of a level of twice the factor, as four."""

    def __init__(self, slide: Slide, coarser: PyramidLevel, cache: TileCache) -> None:
        cost = coarser.tiles.cost / 4
        chunk_px = coarser.tiles.chunk_px
        super().__init__(slide, coarser.factor // 2, chunk_px, cost, cache)
        self._coarser = coarser

    def _make(self, col: int, row: int) -> Pixels:
        x0, y0, x1, y1 = self._box(col, row)
        box = (x0 // 2, y0 // 2, -(-x1 // 2), -(-y1 // 2))
        pixels, error = self._coarser.block(_before(self._coarser.end_xy, box))
        large = pixels.repeat(2, 0).repeat(2, 1)
        return _whole(large[y0 % 2 :][: y1 - y0, x0 % 2 :][:, : x1 - x0], error)


class _ResampledTiles(_MadeTiles):
    """A stored level whose factor is near, resampled to the pyramid's."""

    def __init__(self, slide: Slide, factor: int, cache: TileCache) -> None:
        super().__init__(slide, factor, (CHUNK_PX, CHUNK_PX), 4.0, cache)
        self._convert = to_srgb(slide.icc_profile)

    def _make(self, col: int, row: int) -> Pixels:
        x0, y0, x1, y1 = self._box(col, row)
        factor = float(self._factor)
        ends = (-(-side // self._factor) for side in self._slide.dimensions)
        size = tuple(
            max(0, min(stop, end) - start)
            for start, stop, end in zip((x0, y0), (x1, y1), ends, strict=True)
        )
        if not all(size):
            return NOTHING
        return self._convert(
            self._slide.read_scaled(
                (x0 * factor, y0 * factor), (size[0], size[1]), (factor, factor)
            )
        )


class _RefusedTiles(_MadeTiles):
    """Nothing: to show any of it, more would have to be decoded than is reasonable."""

    def __init__(self, slide: Slide, factor: int, cache: TileCache) -> None:
        super().__init__(slide, factor, (CHUNK_PX, CHUNK_PX), math.inf, cache)

    def _make(self, col: int, row: int) -> Pixels:
        raise SlideError(
            f"{self._slide.path.name} has no level small enough to be seen whole. Zoom "
            "in, or convert it to a pyramidal TIFF."
        )


def _before(
    end_xy: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """Return what of a box (x0, y0, x1, y1) lies before an end; it may be empty."""
    x0, y0, x1, y1 = box
    wide, high = end_xy
    return min(x0, wide), min(y0, high), min(x1, wide), min(y1, high)


def _whole(pixels: Pixels, error: SlideError | None) -> Pixels:
    if error is not None:
        raise IncompleteError(pixels, error)
    return pixels


# ---- what is decoded ahead


class Ahead:
    """Asks for the chunks around what was looked at last, and gives up the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[tuple[int, int, int], TileRequest] = {}

    def look(self, level: PyramidLevel, cols: range, rows: range) -> None:
        """Take note that these columns and rows of chunks are looked at."""
        ring = set(_ring(level, cols, rows))
        if level.tiles.cost > MOST_TILES_AHEAD:
            ring.clear()
        with self._lock:
            asked = {at: one for at, one in self._asked.items() if not one.is_done}
            for at in asked.keys() - ring:
                asked.pop(at).cancel()
            for at in ring - asked.keys():
                if level.is_missing(*at[1:]):
                    asked[at] = level.tiles.request(*at[1:], priority=AHEAD)
            self._asked = asked

    @property
    def waiting(self) -> int:
        """How many chunks are asked for and not there yet."""
        with self._lock:
            return sum(not one.is_done for one in self._asked.values())


def _ring(
    level: PyramidLevel, cols: range, rows: range
) -> Iterator[tuple[int, int, int]]:
    """Yield (factor, column, row) of the chunks right around others."""
    most_cols, most_rows = level.grid
    for row in range(max(0, rows.start - 1), min(most_rows, rows.stop + 1)):
        for col in range(max(0, cols.start - 1), min(most_cols, cols.stop + 1)):
            if row not in rows or col not in cols:
                yield level.factor, col, row


# ---- pixels


@lru_cache(maxsize=8)
def unreadable(shape_yx: tuple[int, int]) -> Pixels:
    """Return what stands for pixels (H, W) that cannot be read."""
    y, x = np.ogrid[: shape_yx[0], : shape_yx[1]]
    is_line = (x + y) % HATCH_EVERY_PX < HATCH_PX
    pixels = np.where(is_line[..., None], HATCH_RGB, UNREADABLE_RGB).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def _paste(block: Pixels, chunk: Pixels, left: int, top: int) -> None:
    """Copy what fits of a chunk whose corner lies at (left, top) of a block."""
    high, wide = chunk.shape[:2]
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(len(block), top + high), min(block.shape[1], left + wide)
    if y0 < y1 and x0 < x1:
        block[y0:y1, x0:x1] = chunk[y0 - top : y1 - top, x0 - left : x1 - left]


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
