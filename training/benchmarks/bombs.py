"""Small files that claim what would fill any memory, or take for ever."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from tiled_slides import DESCRIPTION, coded, stained

if TYPE_CHECKING:
    from collections.abc import Callable

#: TIFF's kinds of numbers.
SHORT, LONG, TEXT, BLOB = 3, 4, 2, 7
#: Tags of a picture in tiles: 64 × 64 pixels of JPEG, in one tile.
PLAIN = {
    254: (LONG, 1, 0),
    256: (LONG, 1, 64),
    257: (LONG, 1, 64),
    258: (SHORT, 1, 8),
    259: (SHORT, 1, 7),
    262: (SHORT, 1, 6),
    277: (SHORT, 1, 3),
    284: (SHORT, 1, 1),
    322: (LONG, 1, 64),
    323: (LONG, 1, 64),
}
Tags = dict[int, tuple[int, int, int]]


def tiff(*pictures: Tags, data: bytes = b"", repeat: int = 1) -> bytes:
    """Make a TIFF of directories whose tags are (type, count, value or place).

    ``data`` begins at byte 8. The last directory is repeated.
    """
    content = bytearray(struct.pack("<2sHI", b"II", 42, 8 + len(data) + len(data) % 2))
    content += data + bytes(len(data) % 2)
    last = len(pictures) - 1
    for number, tags in enumerate(pictures):
        entries = [(tag, *value) for tag, value in sorted(tags.items())]
        body = struct.pack("<H", len(tags))
        body += b"".join(struct.pack("<HHII", *entry) for entry in entries)
        times = repeat if number == last else 1
        size = len(body) + 4
        links = len(content) + size * np.arange(1, times + 1, dtype="<u4")
        if number == last:
            links[-1] = 0
        rows = np.tile(np.frombuffer(body + bytes(4), np.uint8), (times, 1))
        rows[:, -4:] = links.astype("<u4")[:, None].view(np.uint8)
        content += rows.tobytes()
    return bytes(content)


def one_tile(tile: bytes, **claims: tuple[int, int, int]) -> bytes:
    """Make an Aperio slide of one tile, with other tags (``tag_256=...``)."""
    text = DESCRIPTION.encode() + b"\0"
    tags = PLAIN | {
        324: (LONG, 1, 8 + len(text)),
        325: (LONG, 1, len(tile)),
        270: (TEXT, len(text), 8),
    }
    tags |= {int(name.removeprefix("tag_")): claim for name, claim in claims.items()}
    return tiff(tags, data=text + tile)


def jpeg_tile() -> bytes:
    """Return a plain tile."""
    return coded(stained(64, 64), "jpeg ycbcr")


def jpeg_of(width: int, height: int) -> bytes:
    """Return a JPEG that claims a size."""
    tile = jpeg_tile()
    return tile.replace(
        struct.pack(">BHH", 8, 64, 64), struct.pack(">BHH", 8, height, width), 1
    )


def jp2_of(width: int, height: int) -> bytes:
    """Return a JPEG 2000 code stream that claims a size."""
    stream = bytearray(coded(stained(64, 64), "jp2 rgb"))
    stream[8:16] = struct.pack(">II", width, height)
    stream[24:32] = struct.pack(">II", width, height)
    return bytes(stream)


def zeros_deflated(megabytes: int) -> bytes:
    """Return zeros, packed a thousandfold."""
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(megabytes)) + packer.flush()


def giant_macro() -> bytes:
    """Return a slide with a packed picture of a gigapixel beside it."""
    tile, macro = jpeg_tile(), zeros_deflated(100)
    text = DESCRIPTION.encode() + b"\0"
    slide = PLAIN | {
        270: (TEXT, len(text), 8),
        324: (LONG, 1, 8 + len(text)),
        325: (LONG, 1, len(tile)),
    }
    beside = {
        254: (LONG, 1, 9),
        256: (LONG, 1, 32_000),
        257: (LONG, 1, 32_000),
        258: (SHORT, 1, 8),
        259: (SHORT, 1, 8),
        262: (SHORT, 1, 2),
        273: (LONG, 1, 8 + len(text) + len(tile)),
        277: (SHORT, 1, 3),
        278: (LONG, 1, 32_000),
        279: (LONG, 1, len(macro)),
    }
    return tiff(slide, beside, data=text + tile + macro)


def sparse(width: int, height: int) -> bytes:
    """Return a slide that claims a size, with places for a few tiles of it."""
    return one_tile(jpeg_tile(), tag_256=(LONG, 1, width), tag_257=(LONG, 1, height))


#: What they claim, and what makes them.
BOMBS: dict[str, Callable[[], bytes]] = {
    "a million levels": lambda: tiff(PLAIN, repeat=1_000_000),
    "1,001 levels": lambda: tiff(PLAIN, repeat=1001),
    "a text of 2 GB": lambda: tiff(PLAIN | {270: (TEXT, 0x7FFFFFFF, 8)}),
    "tables of 4 GB": lambda: tiff(PLAIN | {347: (BLOB, 0xFFFFFFFF, 8)}),
    "tiles of 1,000,000 pixels": lambda: one_tile(
        jpeg_tile(), tag_322=(LONG, 1, 1_000_000), tag_323=(LONG, 1, 1_000_000)
    ),
    "a tile of 2 GB": lambda: one_tile(jpeg_tile(), tag_325=(LONG, 1, 0x7FFFFFFF)),
    "a billion places": lambda: one_tile(
        jpeg_tile(), tag_324=(LONG, 1 << 30, 8), tag_325=(LONG, 1 << 30, 8)
    ),
    "2³¹ pixels wide": lambda: sparse(0x7FFFFFFF, 64),
    "2³¹ pixels in all": lambda: sparse(46_341, 46_341),
    "2³² pixels high": lambda: sparse(64, 0xFFFFFFFF),
    "a JPEG of 65,500² pixels": lambda: one_tile(jpeg_of(65_500, 65_500)),
    "a JPEG 2000 of 2³¹² pixels": lambda: one_tile(
        jp2_of(0x7FFFFFFF, 0x7FFFFFFF), tag_259=(SHORT, 1, 33005)
    ),
    "a picture of a gigapixel beside it": giant_macro,
    "300 MB of zeros as a tile": lambda: one_tile(
        zeros_deflated(300), tag_259=(SHORT, 1, 8), tag_262=(SHORT, 1, 2)
    ),
    "random bytes": lambda: np.random.default_rng(0).bytes(1 << 16),
}
