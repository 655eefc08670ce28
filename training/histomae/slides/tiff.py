"""The directories of a TIFF: where its tiles lie and how they are packed.

A few bytes can claim a million pictures, so nothing is believed before it was checked
against the size of the file. What is odd in any way is said not to be plain, and then
OpenSlide reads it, or refuses it.

Source: TIFF 6.0 (Adobe, 1992), its Technical Note 2 (JPEG in TIFF), and BigTIFF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from histomae.errors import SlideError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Integers = np.ndarray[Any, np.dtype[np.uint64]]

#: Scanners write about ten pictures.
MOST_DIRECTORIES = 1000
MOST_ENTRIES = 1000
#: A text, a table or a profile that is larger is a bomb, or damage.
MOST_TEXT_BYTES = 32 << 20
#: Two million pixels on a side, in tiles of 512, have not so many.
MOST_TILES = 1 << 23

# Tags.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
FILL_ORDER, DESCRIPTION, SAMPLES, PLANAR = 266, 270, 277, 284
TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS, SAMPLE_FORMAT = 322, 323, 324, 325, 339
JPEG_TABLES, XMP, PROFILE, DEPTH = 347, 700, 34675, 32997
TEXTS = frozenset({DESCRIPTION, JPEG_TABLES, XMP, PROFILE})
#: SHORT, LONG and LONG8 as numpy names them.
WHOLE_NUMBERS = {3: "u2", 4: "u4", 16: "u8"}
#: BYTE, ASCII and UNDEFINED.
BYTES = (1, 2, 7)


@dataclass(frozen=True, eq=False)
class Directory:
    """One picture of a TIFF that is stored in tiles.

    ``size``, ``tile_px``: (width, height), pixels. ``offsets``, ``counts``: uint64 (n,)
    of bytes, row by row. ``is_plain``: 8 bits in each of three interleaved samples, one
    place per tile, and nothing that a reader of single tiles must know of.
    ``is_aperio``: its description says so.
    """

    size: tuple[int, int]
    tile_px: tuple[int, int]
    compression: int
    photometric: int
    jpeg_tables: bytes
    offsets: Integers
    counts: Integers
    is_plain: bool
    is_aperio: bool

    @property
    def tiles(self) -> tuple[int, int]:
        """(columns, rows) of tiles."""
        return (
            -(-self.size[0] // self.tile_px[0]),
            -(-self.size[1] // self.tile_px[1]),
        )


def tiled_directories(path: Path) -> tuple[Directory, ...]:
    """Return the tiled pictures of a file, in its order; none if it is no TIFF.

    Raises
    ------
    SlideError
        If the file claims what no slide has, or cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            tiff = _Tiff(file, path.name)
            pictures = (_picture(tiff, entries) for entries in tiff.directories())
            found = tuple(each for each in pictures if each is not None)
            _refuse_what_divides(tiff, found)
            return found
    except SlideError:
        raise
    except OSError as error:
        raise SlideError(
            f"{path.name} cannot be read ({error.strerror}). Check that it is there "
            "and that you may read it."
        ) from error


def _refuse_what_divides(tiff: _Tiff, pictures: tuple[Directory, ...]) -> None:
    """Refuse what makes OpenSlide 4.0.1 divide by zero, which ends the process.

    In an Aperio slide it divides by how many tiles a level has for one of the next
    level, rounded.
    """
    if pictures and pictures[0].is_aperio:
        for fine, coarse in pairwise(pictures):
            if any(
                2 * more < less
                for more, less in zip(fine.tiles, coarse.tiles, strict=True)
            ):
                raise tiff.absurd("coarse levels of more tiles than fine ones")


def _picture(tiff: _Tiff, entries: dict[int, _Entry]) -> Directory | None:
    def number(tag: int, otherwise: int = -1) -> int:
        values = tiff.numbers(entries.get(tag), most=1)
        return int(values[0]) if len(values) == 1 else otherwise

    if TILE_WIDTH not in entries and TILE_HEIGHT not in entries:
        return None
    size = number(WIDTH), number(HEIGHT)
    tile_px = number(TILE_WIDTH), number(TILE_HEIGHT)
    if min(tile_px) < 1:  # OpenSlide 4.0.1 divides by it, and takes the process along
        raise tiff.absurd("tiles of no size")
    if min(size) < 1:
        return None
    places = -(-size[0] // tile_px[0]) * -(-size[1] // tile_px[1])
    offsets, counts = (
        tiff.numbers(entries.get(tag), most=MOST_TILES) for tag in (OFFSETS, COUNTS)
    )
    bits = tiff.numbers(entries.get(BITS), most=3).tolist()
    formats = tiff.numbers(entries.get(SAMPLE_FORMAT), most=3)
    return Directory(
        size=size,
        tile_px=tile_px,
        compression=number(COMPRESSION),
        photometric=number(PHOTOMETRIC),
        jpeg_tables=tiff.blob(entries.get(JPEG_TABLES)),
        offsets=offsets,
        counts=counts,
        is_plain=(
            len(offsets) == len(counts) == places
            and bits in ([8], [8, 8, 8])
            and number(SAMPLES) == 3
            and number(PLANAR, 1) == number(FILL_ORDER, 1) == number(DEPTH, 1) == 1
            and bool((formats == 1).all())
        ),
        is_aperio=tiff.blob(entries.get(DESCRIPTION)).startswith(b"Aperio"),
    )


@dataclass(frozen=True)
class _Entry:
    """What one tag holds: ``count`` values of a type, from a place in the file."""

    type: int
    count: int
    place: int


class _Tiff:
    """A file whose every number is doubted."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._size = file.seek(0, 2)
        head = self._read(0, 16).ljust(16, b"\0")
        self._order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        magic = self._unpack("H", head[2:4])[0] if self._order else 0
        self._is_big = magic == 43
        self._first = 0
        if self._is_big and self._unpack("HH", head[4:8]) == (8, 0):
            self._first = self._unpack("Q", head[8:])[0]
        elif magic == 42:
            self._first = self._unpack("I", head[4:8])[0]

    def directories(self) -> Iterator[dict[int, _Entry]]:
        """Yield the entries of one directory after the other, until one is damaged."""
        seen: set[int] = set()
        place = self._first
        while place and place not in seen:
            if len(seen) == MOST_DIRECTORIES:
                raise self.absurd(f"more than {MOST_DIRECTORIES} pictures")
            seen.add(place)
            entries, place = self._directory(place)
            yield entries

    def _directory(self, place: int) -> tuple[dict[int, _Entry], int]:
        """Return the entries of the directory at a place, and the next one's place."""
        length, word = ("Q", "Q") if self._is_big else ("H", "I")
        start = place + struct.calcsize(length)
        head = self._read(place, start - place)
        count = self._unpack(length, head)[0] if len(head) == start - place else 0
        row = 4 + 2 * struct.calcsize(word)
        table = self._read(start, min(count, MOST_ENTRIES) * row + row)
        if not 0 < count <= MOST_ENTRIES or len(table) < count * row:
            return {}, 0
        entries: dict[int, _Entry] = {}
        for number in range(count):
            tag, kind, values, inside = self._unpack(
                f"HH{word}{word}", table[number * row : (number + 1) * row]
            )
            nbytes = values * (np.dtype(WHOLE_NUMBERS.get(kind, "u1")).itemsize)
            if tag in TEXTS and nbytes > MOST_TEXT_BYTES:
                raise self.absurd(f"a text of {nbytes / 1e6:.0f} MB")
            if nbytes <= struct.calcsize(word):  # it stands in the entry itself
                inside = start + number * row + row - struct.calcsize(word)
            # A tag that comes twice is not to be trusted.
            entries[tag] = _Entry(0 if tag in entries else kind, values, inside)
        end = table[count * row : count * row + struct.calcsize(word)]
        whole = len(end) == struct.calcsize(word)
        return entries, self._unpack(word, end)[0] if whole else 0

    def numbers(self, entry: _Entry | None, *, most: int) -> Integers:
        """Return an entry's whole numbers, uint64 (n,); none if it has no, or more."""
        if entry is None or entry.type not in WHOLE_NUMBERS or entry.count > most:
            return np.empty(0, np.uint64)
        kind = np.dtype(self._order + WHOLE_NUMBERS[entry.type])
        read = self._read(entry.place, entry.count * kind.itemsize)
        if len(read) < entry.count * kind.itemsize:
            return np.empty(0, np.uint64)
        return np.frombuffer(read, kind).astype(np.uint64, copy=False)

    def blob(self, entry: _Entry | None) -> bytes:
        """Return an entry's bytes; none if it has no, or not all of them are there."""
        if entry is None or entry.type not in BYTES:
            return b""
        read = self._read(entry.place, entry.count)
        return read if len(read) == entry.count else b""

    def _read(self, place: int, nbytes: int) -> bytes:
        if not 0 <= place < self._size:
            return b""
        self._file.seek(place)
        return self._file.read(min(nbytes, self._size - place)) or b""

    def _unpack(self, form: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack(self._order + form, data)

    def absurd(self, what: str) -> SlideError:
        """Return the error of a file that claims what no slide has."""
        return SlideError(
            f"{self._name} claims {what}. It is damaged, or no slide: copy it again "
            "from its source."
        )
