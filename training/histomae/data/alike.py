"""Pictures that are nearly the same, found by a perceptual hash.

The hash is the signs of the lowest frequencies of a small grey version (the discrete
cosine transform, as pHash does it): scaling, compression and brightness leave it nearly
as it is. Pictures whose hashes differ in few bits are alike, and so is what is alike to
one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from histomae.data.pictures import TOLD_EVERY, grey_of, read_picture
from histomae.events import Event, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Item = TypeVar("Item")

#: Side of the small grey version, and of the square of its lowest frequencies.
SMALL_PX, FREQUENCIES = 64, 16
#: Pictures are alike whose hashes differ in no more of their 255 bits: of ninety of
#: BUSI, nearly the same ones differ in 10 to 62, and others in 82 and more.
ALIKE_BITS = 64
#: Hashes compared with all others at a time.
AT_ONCE = 1024


def perceptual_hash(picture: Pixels) -> Bools:
    """Return the hash of a picture, bool (255,).

    Parameters
    ----------
    picture
        uint8 (H, W, 3).
    """
    grey = Image.fromarray(grey_of(picture))
    small = grey.resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX)
    frequencies = dctn(np.asarray(small, np.float64), norm="ortho")
    low = frequencies[:FREQUENCIES, :FREQUENCIES].ravel()[1:]  # brightness apart
    return np.asarray(low > np.median(low))


def hashes_of(
    pictures: Sequence[Item], *, read: Callable[[Any], Pixels] = read_picture
) -> Generator[Event, None, Bools]:
    """Return the hash of each picture, bool (n, 255).

    Raises
    ------
    DataSetError
        If a picture cannot be read.
    """
    hashes = []
    for number, picture in enumerate(pictures):
        if number % TOLD_EVERY == 0:
            yield Progress("comparing pictures", number, len(pictures))
        hashes.append(perceptual_hash(read(picture)))
    yield Progress("comparing pictures", len(pictures), len(pictures))
    return np.array(hashes, bool).reshape(-1, FREQUENCIES**2 - 1)


def groups_alike(paths: Sequence[Path]) -> Generator[Event, None, Indices]:
    """Return the number of each picture's group of alike ones, int64 (n,).

    Raises
    ------
    DataSetError
        If a picture cannot be read.
    """
    return groups_of((yield from hashes_of(paths)))


def groups_of(hashes: Bools) -> Indices:
    """Return the number of the group of each hash, bool (n, bits): int64 (n,).

    Whatever is alike to one of a group belongs to it.
    """
    near = _differing(hashes, hashes) <= ALIKE_BITS
    return connected_components(csr_array(near), directed=False)[1].astype(np.int64)


def alike_pairs(ones: Bools, others: Bools) -> list[tuple[int, int]]:
    """Return which of ``ones`` (n, bits) are alike to which of ``others`` (m, bits)."""
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(ones), AT_ONCE):
        near = _differing(ones[start : start + AT_ONCE], others) <= ALIKE_BITS
        pairs += [(start + int(i), int(j)) for i, j in np.argwhere(near)]
    return pairs


def _differing(ones: Bools, others: Bools) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return in how many bits each of ``ones`` differs from each of ``others``."""
    mine, theirs = ones.astype(np.float32), others.astype(np.float32)
    return mine @ (1 - theirs).T + (1 - mine) @ theirs.T
