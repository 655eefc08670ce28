"""Single tiles from their bytes: as OpenSlide decodes them, or not at all.

A picture is taken only if its own header agrees with what the file says of it, and if
the decoder had nothing to complain of: OpenSlide counts a warning of the JPEG library
as an error, and so does this. None is returned for what is odd; it need not be wrong.
"""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: By how much a tile can be decoded smaller: by two to the power of the place here.
REDUCTIONS = (1, 2, 4, 8)

START, END = b"\xff\xd8", b"\xff\xd9"
#: Baseline, extended and progressive, by Huffman's code.
FRAMES = (0xC0, 0xC1, 0xC2)
SCAN = 0xDA
QUANTISERS, CODES, RESTARTS, COMMENT = 0xDB, 0xC4, 0xDD, 0xFE
APP0, APP14 = 0xE0, 0xEE
APPLICATIONS = range(0xE0, 0xF0)
#: The only marker by which a JPEG says that its samples are RGB, or YCbCr.
SAYS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
SAYS_YCBCR = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"


def jpeg_head(tables: bytes, *, is_rgb: bool) -> bytes | None:
    """Return how every JPEG of a TIFF begins whose tables and colours stand in tags.

    Parameters
    ----------
    tables
        The tag JPEGTables: a JPEG of tables alone. Empty: there is none.
    is_rgb
        Whether samples are RGB; else YCbCr. What a tile says of itself does not count.
    """
    says = SAYS_RGB if is_rgb else SAYS_YCBCR
    if not tables:
        return START + says
    found = segments(tables[:-2])
    if found is None or tables[-2:] != END or found[1] != len(tables) - 2:
        return None
    allowed = {QUANTISERS, CODES, COMMENT, *APPLICATIONS}
    if any(marker not in allowed for marker, _ in found[0]):
        return None
    kept = _without_colours(found[0])
    return None if kept is None else START + says + kept


def jpeg(
    data: bytes, head: bytes, size: tuple[int, int], *, reduce: int = 1
) -> Pixels | None:
    """Decode a tile.

    Parameters
    ----------
    data
        A JPEG, perhaps without its tables.
    head
        What :func:`jpeg_head` returned for its file.
    size
        (width, height) that it must have.
    reduce
        One of ``REDUCTIONS``: a pixel is the mean of so many by so many, taken from the
        lowest frequencies alone.

    Returns
    -------
    uint8 (height, width, 3), RGB; both divided by ``reduce``, rounded up.
    """
    found = segments(data)
    if found is None:
        return None
    frames = [body for marker, body in found[0] if marker in FRAMES]
    allowed = {QUANTISERS, CODES, RESTARTS, COMMENT, *FRAMES, *APPLICATIONS}
    if len(frames) != 1 or any(marker not in allowed for marker, _ in found[0]):
        return None
    # Bits per sample, height, width, samples.
    if struct.unpack(">BHHB", frames[0][4:10].ljust(6, b"\0")) != (8, *size[::-1], 3):
        return None
    kept = _without_colours(found[0])
    if kept is None:
        return None
    whole = head + kept + data[found[1] :]
    shape = reduced_shape(size, reduce)
    least = {} if reduce == 1 else {"min_height": shape[0], "min_width": shape[1]}
    try:
        pixels = simplejpeg.decode_jpeg(
            whole, "RGB", strict=True, min_factor=reduce, **least
        )
    except ValueError:
        return None
    return pixels if pixels.shape == shape else None


def segments(data: bytes) -> tuple[list[tuple[int, bytes]], int] | None:
    """Return the (marker, whole segment) before the first scan, and where they end."""
    if data[:2] != START:
        return None
    found = []
    at = 2
    while at < len(data):
        if data[at] != 0xFF or at + 4 > len(data):
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SCAN:
            break
        if length < 2 or at + 2 + length > len(data):
            return None
        found.append((marker, data[at : at + 2 + length]))
        at += 2 + length
    return found, at


def _without_colours(segments: list[tuple[int, bytes]]) -> bytes | None:
    """Return segments without those that name colours; None if one is not in order.

    The JPEG library complains of such, and so of a picture that would then be taken.
    """
    kept = []
    for marker, body in segments:
        if marker == APP0 and body[4:9] == b"JFIF\0":
            if len(body) < 16 or body[9] != 1:  # its version
                return None
        elif marker == APP14 and body[4:9] == b"Adobe":
            if len(body) != 16 or body[15] > 1:
                return None
        else:
            kept.append(body)
    return b"".join(kept)


def jpeg2000(
    data: bytes, size: tuple[int, int], *, is_rgb: bool, reduce: int = 1
) -> Pixels | None:
    """Decode a tile of an Aperio slide: a bare code stream.

    Parameters
    ----------
    size
        (width, height) that it must have.
    is_rgb
        Whether it gives RGB; else YCbCr, which is turned into RGB here.
    reduce
        One of ``REDUCTIONS``: only the coarser wavelets are decoded.

    Returns
    -------
    uint8 (height, width, 3), RGB; both divided by ``reduce``, rounded up.
    """
    if not _is_plain_jpeg2000(data, size):
        return None
    try:
        if reduce == 1:
            pixels = imagecodecs.jpeg2k_decode(data)
        else:
            pixels = _coarse_jpeg2000(data, reduce)
    except (RuntimeError, OSError, ValueError):
        return None
    if pixels.dtype != np.uint8 or pixels.shape != reduced_shape(size, reduce):
        return None
    return pixels if is_rgb else _rgb_from_ycbcr(pixels)


def _coarse_jpeg2000(data: bytes, reduce: int) -> Pixels:
    with Image.open(io.BytesIO(data), formats=["JPEG2000"]) as picture:
        # An option of this format's plugin, whatever the base class has of that name.
        picture.reduce = REDUCTIONS.index(reduce)  # type: ignore[method-assign, assignment]
        return np.asarray(picture)


def reduced_shape(size: tuple[int, int], reduce: int) -> tuple[int, int, int]:
    """Return the array's shape of a picture of (width, height), reduced."""
    return -(-size[1] // reduce), -(-size[0] // reduce), 3


def _is_plain_jpeg2000(data: bytes, size: tuple[int, int]) -> bool:
    """Tell whether a code stream is one picture of three whole 8-bit components."""
    head = struct.Struct(">HHHH8IH")  # SOC, SIZ, its length, profile, sizes, components
    if len(data) < head.size + 9:
        return False
    soc, siz, length, _, *sizes, components = head.unpack_from(data)
    wide, high, left, top, part_w, part_h, part_left, part_top = sizes
    return (
        (soc, siz, length, components) == (0xFF4F, 0xFF51, 47, 3)
        and (wide, high, left, top, part_left, part_top) == (*size, 0, 0, 0, 0)
        and (part_w >= wide and part_h >= high)
        and data[head.size : head.size + 9] == b"\x07\x01\x01" * 3
    )


@cache
def _colour_tables() -> tuple[Pixels, np.ndarray[Any, Any], Pixels]:
    """Return red by 256 Cr + Y, what green gets by 256 Cb + Cr, blue by 256 Cb + Y."""
    away = np.arange(256) - 128
    luma = np.arange(256)
    red, blue = (
        (luma + np.rint(weight * away).astype(int)[:, None]).clip(0, 255)
        for weight in (1.402, 1.772)
    )
    from_cb = np.rint(65536 * (0.5 - 0.34414 * away)).astype(int)
    from_cr = np.rint(65536 * -0.71414 * away).astype(int)
    green = (from_cb[:, None] + from_cr) >> 16
    return (
        red.astype(np.uint8).ravel(),
        green.astype(np.int16).ravel(),
        blue.astype(np.uint8).ravel(),
    )


def _rgb_from_ycbcr(pixels: Pixels) -> Pixels:
    """Turn YCbCr into RGB in whole numbers, rounding as OpenSlide does.

    ITU-R BT.601; green is added up in 1/65536 and rounded once.
    """
    red, green, blue = _colour_tables()
    y, cb, cr = (np.ascontiguousarray(pixels[..., part]) for part in range(3))
    cb, cr = cb.astype(np.uint16), cr.astype(np.uint16)
    rgb = np.empty_like(pixels)
    # No index can be outside: not looking takes a third less time.
    rgb[..., 0] = red.take(cr << 8 | y, mode="clip")
    rgb[..., 1] = (green.take(cb << 8 | cr, mode="clip") + y).clip(0, 255)
    rgb[..., 2] = blue.take(cb << 8 | y, mode="clip")
    return rgb
