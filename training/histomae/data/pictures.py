"""Pictures that are plain files: read, and checked before anything depends on them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image
from scipy import ndimage

from histomae.data.words import TOLD
from histomae.errors import DataSetError, SlideError
from histomae.events import Event, Note, Progress
from histomae.slides.find import is_photo, pictures_in
from histomae.slides.flat import decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Item = TypeVar("Item")

#: Grey levels up to this one are black margin around an ultrasound scan.
BLACK = 5
#: Half the width of the strokes of a text, pixels.
STROKE_PX = 3
#: Pictures between two words on how far the check is.
TOLD_EVERY = 100


def read_picture(path: Path) -> Pixels:
    """Read a picture, uint8 (H, W, 3), RGB; what is transparent shows its colour.

    Raises
    ------
    DataSetError
        If it cannot be read; it names the file.
    """
    try:
        return decoded(path)
    except SlideError as error:
        raise DataSetError(str(error)) from error


def find_pictures(paths: Iterable[Path]) -> list[Path]:
    """Return the pictures among files and folders, each once, in order.

    A folder is searched to its depth. Masks of lesions, whose names end in ``_mask`` or
    ``_mask_1`` and the like, are no pictures.

    Raises
    ------
    DataSetError
        If a path does not exist.
    """
    found: dict[Path, None] = {}
    for given in paths:
        if not given.exists():
            raise DataSetError(f"{given} does not exist. Check the name.")
        one = [given] if is_photo(given) and given.is_file() else []
        found |= dict.fromkeys(pictures_in(given) if given.is_dir() else one)
    return list(found)


def scan_sector(picture: Pixels) -> Pixels:
    """Return what an ultrasound device scanned: a picture without its black margins.

    That is the box around the largest connected part that is not black, once thin
    strokes are taken away: texts and scales beside the scan go. It is grey in all three
    channels. A picture that is black throughout comes back whole.

    Parameters
    ----------
    picture
        uint8 (H, W, 3).

    Returns
    -------
    uint8 (H', W', 3).
    """
    grey = grey_of(picture)
    box = sector_box(grey)
    return np.repeat(grey[box][..., None], 3, axis=-1)


def grey_of(picture: Pixels) -> Pixels:
    """Return the greys of a picture, uint8 (H, W)."""
    return np.asarray(Image.fromarray(picture).convert("L"))


def sector_box(grey: Pixels) -> tuple[slice, slice]:
    """Return the rows and columns of :func:`scan_sector`, given uint8 (H, W)."""
    # Closed, then opened; beyond the picture's edge the scan goes on.
    kept = ndimage.binary_dilation(grey > BLACK, iterations=STROKE_PX)
    kept = ndimage.binary_erosion(kept, iterations=2 * STROKE_PX, border_value=1)
    kept = ndimage.binary_dilation(kept, iterations=STROKE_PX)
    parts, count = ndimage.label(kept)
    if not count:
        return slice(None), slice(None)
    largest = np.bincount(parts.ravel())[1:].argmax()
    rows, columns = ndimage.find_objects(parts)[largest]
    return rows, columns


def whole_square(
    picture: Pixels,
    side_px: int,
    *,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Pixels:
    """Return a whole picture in the middle of a black square; it keeps its shape.

    Parameters
    ----------
    picture
        uint8 (H, W, 3) or (H, W); or int32 (H, W), of numbers.

    Returns
    -------
    (side_px, side_px, 3) or (side_px, side_px), of the same type.
    """
    factor = side_px / max(picture.shape[:2])
    high, wide = (max(1, round(side * factor)) for side in picture.shape[:2])
    small = Image.fromarray(picture).resize((wide, high), resample)
    square = np.zeros((side_px, side_px, *picture.shape[2:]), picture.dtype)
    y, x = (side_px - high) // 2, (side_px - wide) // 2
    square[y : y + high, x : x + wide] = small
    return square


def as_tile(picture: Pixels, side_px: int, *, sector: bool) -> Pixels:
    """Return a picture as a network sees it: the whole of it, black around.

    ``sector``: cropped to the scan of an ultrasound first, and grey.
    """
    return whole_square(scan_sector(picture) if sector else picture, side_px)


def middle_square(picture: Pixels, side_px: int) -> Pixels:
    """Return the largest square in the middle of a picture, resampled to a side.

    Parameters
    ----------
    picture
        uint8 (H, W, 3).

    Returns
    -------
    uint8 (side_px, side_px, 3).
    """
    side = min(picture.shape[:2])
    y, x = ((length - side) // 2 for length in picture.shape[:2])
    square = Image.fromarray(picture[y : y + side, x : x + side])
    return np.asarray(square.resize((side_px, side_px), Image.Resampling.BICUBIC))


def unreadable(
    paths: Sequence[Item], *, read: Callable[[Any], Pixels] = read_picture
) -> Generator[Event, None, dict[Item, DataSetError]]:
    """Look into every picture; return those that cannot be read, and why."""
    bad = {}
    for number, path in enumerate(paths):
        if number % TOLD_EVERY == 0:
            yield Progress("looking at pictures", number, len(paths))
        try:
            read(path)
        except DataSetError as error:
            bad[path] = error
    yield Progress("looking at pictures", len(paths), len(paths))
    return bad


def tiles_of(picture: Pixels, tile_px: int, factor: float) -> Pixels:
    """Cut a picture into tiles, edge to edge, what is left over shared by both sides.

    Parameters
    ----------
    picture
        uint8 (H, W, 3).
    factor
        Pixels of the picture for one of a tile; the picture is resampled.

    Returns
    -------
    uint8 (n, tile_px, tile_px, 3), row by row; none of a picture smaller than a tile.
    """
    high, wide = (side / factor / tile_px for side in picture.shape[:2])
    rows, cols = (math.floor(count + 1e-6) for count in (high, wide))
    if not rows * cols:
        return np.empty((0, tile_px, tile_px, 3), np.uint8)
    size = (cols * tile_px, rows * tile_px)
    left = (picture.shape[1] - size[0] * factor) / 2
    top = (picture.shape[0] - size[1] * factor) / 2
    box = (max(left, 0.0), max(top, 0.0), picture.shape[1] - max(left, 0.0))
    resampled = Image.fromarray(picture).resize(
        size, Image.Resampling.BICUBIC, (*box, picture.shape[0] - max(top, 0.0))
    )
    tiles = np.asarray(resampled).reshape(rows, tile_px, cols, tile_px, 3)
    return tiles.swapaxes(1, 2).reshape(-1, tile_px, tile_px, 3)


def readable(
    paths: Sequence[Item],
    *,
    skip_unreadable: bool,
    read: Callable[[Any], Pixels] = read_picture,
) -> Generator[Event, None, frozenset[Item]]:
    """Look into every picture; return those that can be read.

    Raises
    ------
    DataSetError
        If one cannot, unless they should be skipped: then a note names them.
    """
    found = yield from unreadable(paths, read=read)
    bad = list(found.values())
    if bad:
        which = f"{len(bad)} of {len(paths)} pictures cannot be read"
        if not skip_unreadable:
            raise DataSetError(
                f"{which}. To go on without them, choose skip_unreadable. {bad[0]}"
            )
        more = f" and {len(bad) - TOLD} more" if len(bad) > TOLD else ""
        reasons = "; ".join(str(error).partition(". ")[0] for error in bad[:TOLD])
        yield Note(f"{which} and are left out: {reasons}{more}.")
    return frozenset(paths) - frozenset(found)
