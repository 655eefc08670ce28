"""One file, read by whichever reader is right, tile by tile through one cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import SlideError
from histomae.slides.oracle import Oracle
from histomae.slides.tile_cache import TileCache, shared_cache

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.slides.tile_cache import TileRequest

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Stamp:
    """By what a file is known again without reading it."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Look at a file.

        Raises
        ------
        SlideError
            If it is missing or cannot be looked at.
        """
        try:
            seen = path.stat()
        except FileNotFoundError as error:
            raise SlideError(
                f"{path} does not exist. Check the name, or bring it back."
            ) from error
        except OSError as error:
            raise SlideError(
                f"{path.name} cannot be looked at ({error.strerror}). Check that its "
                "folder can be reached."
            ) from error
        return cls(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)


@dataclass(frozen=True)
class _Opened:
    """A file as it was when it had this stamp."""

    stamp: Stamp
    oracle: Oracle

    @classmethod
    def at(cls, path: Path) -> _Opened:
        stamp = Stamp.of(path)
        return cls(stamp, Oracle(path))


class SlideFile:
    """Stored levels of one file. Reads are safe from several threads and after a fork.

    A file that was moved away, cut short or copied anew is looked at again at the next
    read; as soon as it is whole, it reads as before.

    Parameters
    ----------
    path
        A file of any format that OpenSlide reads.
    cache
        Where decoded tiles are kept; None: with those of all other slides.

    Raises
    ------
    SlideError
        If the file is missing, no slide, or damaged.
    """

    def __init__(self, path: Path, *, cache: TileCache | None = None) -> None:
        self.path = path
        self._cache = shared_cache() if cache is None else cache
        self._opened = _Opened.at(path)
        self.properties = self._opened.oracle.properties
        self.level_sizes = self._opened.oracle.level_sizes
        self.tile_sizes = self._opened.oracle.tile_sizes
        self.background_rgb = self._opened.oracle.background_rgb

    def _now(self) -> _Opened:
        """Return the file as it is now."""
        if Stamp.of(self.path) != self._opened.stamp:
            again = _Opened.at(self.path)
            if again.oracle.level_sizes != self.level_sizes:
                raise SlideError(
                    f"{self.path.name} has become another slide since it was opened. "
                    "Open it again."
                )
            self._opened = again
        return self._opened

    def colour_profile(self) -> bytes | None:
        """Return the ICC profile in the file, if any."""
        return self._now().oracle.colour_profile()

    def read(self, level: int, start: tuple[int, int], size: tuple[int, int]) -> Pixels:
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
        return self._now().oracle.read(level, start, size)

    # ---- its tiles

    def tile(self, level: int, col: int, row: int) -> Pixels:
        """Return a tile of the file's own grid, through the cache. See ``Slide``."""
        return self._cache.get(
            self._key(level, col, row), lambda: self._decode(level, col, row)
        )

    def request_tile(
        self, level: int, col: int, row: int, *, priority: int = 0
    ) -> TileRequest:
        """Ask for a tile ahead. See ``Slide``."""
        return self._cache.request(
            self._key(level, col, row),
            lambda: self._decode(level, col, row),
            priority=priority,
        )

    def cached_tile(self, level: int, col: int, row: int) -> Pixels | None:
        """Return a tile if it is decoded already, at once."""
        return self._cache.peek(self._key(level, col, row))

    def _key(self, level: int, col: int, row: int) -> Key:
        self._box(level, col, row)
        return self._opened.stamp, level, col, row

    def _box(
        self, level: int, col: int, row: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (x, y) and (width, height) of a tile, cut at the level's edges."""
        (wide, high), (level_w, level_h) = (
            self.tile_sizes[level],
            self.level_sizes[level],
        )
        x, y = col * wide, row * high
        if not (0 <= x < level_w and 0 <= y < level_h):
            raise IndexError(f"level {level} has no tile in column {col}, row {row}")
        return (x, y), (min(wide, level_w - x), min(high, level_h - y))

    def _decode(self, level: int, col: int, row: int) -> Pixels:
        return self._now().oracle.read(level, *self._box(level, col, row))

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._opened.oracle.close()
