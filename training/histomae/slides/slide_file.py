"""One file, read by whichever reader is right, tile by tile through one cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from histomae.errors import SlideError
from histomae.slides.decoders import REDUCTIONS, reduced_shape
from histomae.slides.direct import DirectLevel, direct_levels, is_switched_on
from histomae.slides.find import opens_as_picture
from histomae.slides.flat import FlatPicture
from histomae.slides.oracle import Oracle
from histomae.slides.stamp import Stamp
from histomae.slides.tile_cache import TileCache, shared_cache

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.slides.tile_cache import TileRequest

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Pair = tuple[int, int]


@dataclass(frozen=True)
class _Opened:
    """A file as it was when it had this stamp, and who reads it."""

    stamp: Stamp
    oracle: Oracle | FlatPicture
    direct: dict[int, DirectLevel]

    @classmethod
    def at(cls, path: Path, *, direct: bool) -> _Opened:
        stamp = Stamp.of(path)
        if opens_as_picture(path):
            return cls(stamp, FlatPicture(path), {})
        oracle = Oracle(path)
        return cls(stamp, oracle, direct_levels(stamp, oracle) if direct else {})

    def is_direct(self, level: int) -> bool:
        reader = self.direct.get(level)
        if reader is None or isinstance(self.oracle, FlatPicture):
            return False
        return reader.is_proved(level, self.oracle)

    def tile(self, level: int, col: int, row: int, reduce: int) -> Pixels:
        """Decode a tile, cut at the level's edges."""
        start, size = self.oracle.box(level, col, row)
        if self.is_direct(level):
            whole = self.direct[level].tile(col, row, reduce=reduce)
            if whole is not None:
                high, wide, _ = reduced_shape(size, reduce)
                is_cut = whole.shape[:2] != (high, wide)
                return whole[:high, :wide] if is_cut else whole
        pixels = self.oracle.read(level, start, size)
        if reduce == 1:
            return pixels
        return np.asarray(Image.fromarray(pixels).reduce(reduce))


class SlideFile:
    """The stored levels of one file.

    Reads are safe from several threads and after a fork. A file that was moved away,
    cut short or copied anew is looked at again at the next read; as soon as it is
    whole, it reads as before. Copies for other processes are opened there.

    Parameters
    ----------
    path
        A file of any format that OpenSlide reads, or a plain picture.
    cache
        Where decoded tiles are kept; None: with those of all other slides.
    direct
        Whether tiles may be read past OpenSlide where that is the same; None: unless
        ``HISTOMAE_DIRECT_READER`` is 0.

    Raises
    ------
    SlideError
        If the file is missing, no slide, or damaged.
    """

    def __init__(
        self, path: Path, *, cache: TileCache | None = None, direct: bool | None = None
    ) -> None:
        self.path = path
        self._cache = shared_cache() if cache is None else cache
        self._may_be_direct = is_switched_on() if direct is None else direct
        self._opened = _Opened.at(path, direct=self._may_be_direct)
        oracle = self._opened.oracle
        self.is_picture = isinstance(oracle, FlatPicture)
        self.properties = oracle.properties
        self.level_sizes = oracle.level_sizes
        self.tile_sizes = oracle.tile_sizes
        self.background_rgb = oracle.background_rgb
        self.associated_sizes = oracle.associated_sizes
        self.stored_box = oracle.stored_box

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_elsewhere, (self.path, self._may_be_direct)

    def _now(self) -> _Opened:
        """Return the file as it is now."""
        opened = self._opened
        if Stamp.of(self.path) != opened.stamp:
            opened = _Opened.at(self.path, direct=self._may_be_direct)
            if opened.oracle.level_sizes != self.level_sizes:
                raise SlideError(
                    f"{self.path.name} has become another slide since it was opened. "
                    "Open it again."
                )
            self._opened = opened
        return opened

    def is_direct(self, level: int) -> bool:
        """Tell whether a level's tiles are read past OpenSlide.

        Raises
        ------
        SlideError
            If the file cannot be read.
        """
        return self._now().is_direct(level)

    def is_quickly_reduced(self, level: int) -> bool:
        """Tell whether tiles are better decoded smaller. See ``Slide``."""
        opened = self._now()
        return opened.is_direct(level) and opened.direct[level].keeps_places

    def beginning(self) -> str:
        """Return the size and the first megabyte, to know the content by."""
        try:
            with self.path.open("rb") as file:
                return str(file.seek(0, 2)) + str(file.seek(0) or file.read(1 << 20))
        except OSError as error:
            raise SlideError(
                f"{self.path.name} cannot be read ({error.strerror}). Check that it is "
                "there and that you may read it."
            ) from error

    def colour_profile(self) -> bytes | None:
        """Return the ICC profile in the file, if any."""
        return self._now().oracle.colour_profile()

    def associated_image(self, name: str) -> Pixels:
        """Return a picture that comes with the slide. See ``Slide``."""
        return self._now().oracle.associated_image(name)

    def read(self, level: int, start: Pair, size: Pair) -> Pixels:
        """Read stored pixels that lie within a level.

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
        opened = self._now()
        if not opened.is_direct(level):
            return opened.oracle.read(level, start, size)
        wide, high = self.tile_sizes[level]
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        (x0, y0), (x1, y1) = start, (start[0] + size[0], start[1] + size[1])
        for row in range(y0 // high, -(-y1 // high)):
            for col in range(x0 // wide, -(-x1 // wide)):
                tile = self.tile(level, col, row)
                x, y = col * wide, row * high
                xs = slice(max(x0, x), min(x1, x + wide))
                ys = slice(max(y0, y), min(y1, y + high))
                pixels[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0] = (
                    tile[ys.start - y : ys.stop - y, xs.start - x : xs.stop - x]
                )
        return pixels

    def try_pixels(self, start: Pair, size: Pair) -> None:
        """Read from level 0 with OpenSlide, whoever reads it otherwise.

        Raises
        ------
        SlideError
            If the file cannot be read there.
        """
        self._now().oracle.read(0, start, size)

    # ---- its tiles

    def tile(self, level: int, col: int, row: int, reduce: int = 1) -> Pixels:
        """Return a tile of the file's own grid, through the cache. See ``Slide``."""
        return self._cache.get(
            self._key(level, col, row, reduce),
            lambda: self._now().tile(level, col, row, reduce),
        )

    def request_tile(
        self, level: int, col: int, row: int, reduce: int = 1, *, priority: int = 0
    ) -> TileRequest:
        """Ask for a tile ahead. See ``Slide``."""
        return self._cache.request(
            self._key(level, col, row, reduce),
            lambda: self._now().tile(level, col, row, reduce),
            priority=priority,
        )

    def cached_tile(
        self, level: int, col: int, row: int, reduce: int = 1
    ) -> Pixels | None:
        """Return a tile if it is decoded already, at once."""
        return self._cache.peek(self._key(level, col, row, reduce))

    def _key(self, level: int, col: int, row: int, reduce: int) -> tuple[Any, ...]:
        opened = self._opened
        opened.oracle.box(level, col, row)  # there is no other tile
        if reduce not in REDUCTIONS:
            raise ValueError(f"a tile is reduced by one of {REDUCTIONS}, not {reduce}")
        return opened.stamp, self._may_be_direct, level, col, row, reduce

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._opened.oracle.close()


def _open_elsewhere(path: Path, direct: bool) -> SlideFile:
    return SlideFile(path, direct=direct)
