"""Pictures that are plain files: read, and checked before anything depends on them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from histomae.errors import DataSetError
from histomae.events import Event, Note, Progress

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: What Pillow has been seen to raise on damaged files.
READ_ERRORS = (
    *(UnidentifiedImageError, Image.DecompressionBombError),
    *(OSError, SyntaxError, ValueError, IndexError, EOFError),
)
#: Pictures between two words on how far the check is.
TOLD_EVERY = 100
#: Names told in one sentence.
TOLD = 3


def read_picture(path: Path) -> Pixels:
    """Read a picture, uint8 (H, W, 3), RGB; what is transparent shows its colour.

    Raises
    ------
    DataSetError
        If it cannot be read; it names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))
    except (*READ_ERRORS, Image.DecompressionBombWarning) as error:
        raise DataSetError(
            f"{path.name} cannot be read ({str(error)[:200]}). Bring the original "
            "file back, or remove it."
        ) from error


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


def readable(
    paths: Sequence[Path], *, skip_unreadable: bool
) -> Generator[Event, None, frozenset[Path]]:
    """Look into every file; return those that can be read.

    Raises
    ------
    DataSetError
        If one cannot, unless they should be skipped: then a note names them.
    """
    bad: list[DataSetError] = []
    good = set()
    for number, path in enumerate(paths):
        if number % TOLD_EVERY == 0:
            yield Progress("looking at pictures", number, len(paths))
        try:
            read_picture(path)
            good.add(path)
        except DataSetError as error:
            bad.append(error)
    yield Progress("looking at pictures", len(paths), len(paths))
    if bad:
        which = f"{len(bad)} of {len(paths)} pictures cannot be read"
        if not skip_unreadable:
            raise DataSetError(
                f"{which}. To go on without them, choose skip_unreadable. {bad[0]}"
            )
        more = f" and {len(bad) - TOLD} more" if len(bad) > TOLD else ""
        told = "; ".join(str(error).partition(". ")[0] for error in bad[:TOLD])
        yield Note(f"{which} and are left out: {told}{more}.")
    return frozenset(good)
