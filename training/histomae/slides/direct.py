"""Tiles straight from their bytes, where that is the same as OpenSlide to the bit.

Only the levels of Aperio slides and of plain TIFF (OME-TIFF too), in tiles of JPEG or
JPEG 2000, are read so; formats whose tiles overlap or are stitched never are. And only
after a level has proved itself: some of its tiles, the fullest among them, came out as
OpenSlide reads them. A tile that is odd in any way is left to OpenSlide even then.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histomae.slides import decoders
from histomae.slides.oracle import APERIO, PLAIN_FORMATS
from histomae.slides.stamp import Stamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from histomae.slides.oracle import Oracle
    from histomae.slides.tiff import Directory

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: Set to 0, this environment variable leaves all reading to OpenSlide.
SWITCH_VARIABLE = "HISTOMAE_DIRECT_READER"
# TIFF's numbers.
JPEG, JPEG2000_YCBCR, JPEG2000_RGB = 7, 33003, 33005
PHOTOMETRIC_RGB, PHOTOMETRIC_YCBCR = 2, 6
#: Where OpenSlide lands between pixels and this is undone, grey values may be off.
UNDONE_MAX, UNDONE_MEAN = 4, 1.0


class Decoder(Protocol):
    """From the bytes of a tile to pixels (H, W, 3), or None where it is odd."""

    def __call__(self, data: bytes, *, reduce: int) -> Pixels | None:
        """Decode a tile, ``reduce`` times smaller."""


def is_switched_on() -> bool:
    """Tell whether tiles may be read directly, unless a caller says otherwise."""
    return os.environ.get(SWITCH_VARIABLE, "1") != "0"


class DirectLevel:
    """The tiles of one stored level.

    Parameters
    ----------
    path
        The file; it is opened for every read and closed after it.
    stamp
        By which it is known that the file is still the same.
    directory
        Where its tiles lie.
    decode
        From a tile's bytes to pixels, or None where OpenSlide must be asked; see
        :func:`histomae.slides.decoders.jpeg` for ``reduce``.
    """

    def __init__(
        self,
        path: Path,
        stamp: Stamp,
        directory: Directory,
        decode: Decoder,
    ) -> None:
        self._path = path
        self._stamp = stamp
        self._directory = directory
        self._decode = decode
        self._lock, self._process = threading.Lock(), os.getpid()
        self._is_proved: bool | None = None

    @property
    def keeps_places(self) -> bool:
        """Whether a tile decoded smaller shows everything where it is: JPEG does."""
        return self._directory.compression == JPEG

    def tile(self, col: int, row: int, *, reduce: int = 1) -> Pixels | None:
        """Decode a whole tile, uint8 (H, W, 3); None: OpenSlide must be asked."""
        number = row * self._directory.tiles[0] + col
        start, count = (
            int(numbers[number])
            for numbers in (self._directory.offsets, self._directory.counts)
        )
        # One of no bytes is missing: OpenSlide knows what is shown in its place.
        if not 0 < count <= self._stamp.size - start:
            return None
        try:
            with self._path.open("rb", buffering=0) as file:
                if Stamp.of_open(file.fileno()) != self._stamp:
                    return None
                file.seek(start)
                data = file.read(count)
        except OSError:
            return None
        if data is None or len(data) < count:
            return None
        return self._decode(data, reduce=reduce)

    def is_proved(self, level: int, oracle: Oracle) -> bool:
        """Tell whether this gives what OpenSlide gives; tried once, when first asked.

        Raises
        ------
        SlideError
            If the file cannot be read now; then it is tried again.
        """
        if self._is_proved is None:
            if self._process != os.getpid():
                self._lock, self._process = threading.Lock(), os.getpid()
            with self._lock:
                if self._is_proved is None:
                    self._is_proved = self._proves_itself(level, oracle)
        return self._is_proved

    def _proves_itself(self, level: int, oracle: Oracle) -> bool:
        compared = False
        for col, row in self._samples():
            mine = self.tile(col, row)
            if mine is None:
                continue
            start, size = oracle.box(level, col, row)
            true = oracle.read(level, start, size)
            away = np.abs(mine[: size[1], : size[0]].astype(np.int16) - true)
            if oracle.is_exact(level, start):
                is_same = not away.any()
            else:
                is_same = away.max() <= UNDONE_MAX and away.mean() <= UNDONE_MEAN
            if not is_same:
                return False
            compared = True
        return compared

    def _samples(self) -> Iterator[tuple[int, int]]:
        """Yield (column, row) of the first, the last and the fullest tiles."""
        cols, _ = self._directory.tiles
        counts = self._directory.counts
        half = len(counts) // 2
        fullest = (counts[:half], 0), (counts[half:], half)
        places = [int(part.argmax()) + first for part, first in fullest if len(part)]
        for number in dict.fromkeys((0, *places, len(counts) - 1)):
            yield number % cols, number // cols


def direct_levels(stamp: Stamp, oracle: Oracle) -> dict[int, DirectLevel]:
    """Return the levels of a file that may be read directly, by their number."""
    if oracle.vendor not in PLAIN_FORMATS:
        return {}
    levels = {}
    for level in range(len(oracle.level_sizes)):
        directory = oracle.directories.get(level)
        decode = None if directory is None else _decoder(directory)
        if directory is not None and decode is not None:
            levels[level] = DirectLevel(oracle.path, stamp, directory, decode)
        if oracle.vendor == APERIO and (
            directory is None or not directory.counts.all()
        ):
            # OpenSlide draws what is missing from the finer level, and distrusts what
            # lies above it in all that are coarser.
            break
    return levels


def _decoder(directory: Directory) -> Decoder | None:
    """Return what decodes a directory's tiles, or None if nothing here does."""
    if not directory.is_plain:
        return None
    size = directory.tile_px
    if directory.compression in (JPEG2000_YCBCR, JPEG2000_RGB):
        is_rgb = directory.compression == JPEG2000_RGB
        return partial(decoders.jpeg2000, size=size, is_rgb=is_rgb)
    if directory.compression != JPEG or directory.photometric not in (
        PHOTOMETRIC_RGB,
        PHOTOMETRIC_YCBCR,
    ):
        return None
    head = decoders.jpeg_head(
        directory.jpeg_tables, is_rgb=directory.photometric == PHOTOMETRIC_RGB
    )
    if head is None:
        return None
    return partial(decoders.jpeg, head=head, size=size)
