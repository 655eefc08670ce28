"""A plain picture read as a slide of one level.

PNG, JPEG and BMP are no slides to OpenSlide, nor is TIFF without tiles. They are
decoded whole, kept while they are open, and cut into tiles like any level; beyond their
edges is black.
"""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
from PIL import Image, UnidentifiedImageError

from histomae.errors import SlideError
from histomae.slides.find import READ_ERRORS
from histomae.slides.oracle import DEFAULT_TILE_PX, tile_box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
#: Pillow's modes of whole numbers beyond 8 bits and of fractions begin so; it cuts them
#: off at 255, so that all is white.
TOO_DEEP = ("I", "F")
VENDOR = "picture"


def decoded(path: Path) -> Pixels:
    """Read a picture, uint8 (H, W, 3), RGB; what is transparent shows its colour.

    Raises
    ------
    SlideError
        If it cannot be read; it names the file.
    """
    with _legible(path) as picture:
        return np.asarray(picture.convert("RGB"))


@contextmanager
def _legible(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong with it becomes one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what it then refuses
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.mode.startswith(TOO_DEEP):
                    raise SlideError(
                        f"{path.name} has more than 8 bits for a grey value, and does "
                        "not say which is black and which is white. Save it with 8."
                    )
                yield picture
    except BOMBS as error:
        raise SlideError(
            f"{path.name} is too large for a plain picture. Convert it to a pyramidal "
            "TIFF."
        ) from error
    except READ_ERRORS as error:
        known = not isinstance(error, UnidentifiedImageError)
        why = str(error)[:200] if known else "it holds no picture"
        raise SlideError(
            f"{path.name} cannot be read ({why}). Bring the original file back, or "
            "remove it."
        ) from error


class FlatPicture:
    """One picture, with what :class:`histomae.slides.oracle.Oracle` says of a slide.

    Raises
    ------
    SlideError
        If the file is missing or no picture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _legible(path) as picture:
            size = picture.size
            self._profile: bytes | None = picture.info.get("icc_profile")
        self.properties = {openslide.PROPERTY_NAME_VENDOR: VENDOR}
        self.level_sizes = (size,)
        self.tile_sizes = ((DEFAULT_TILE_PX, DEFAULT_TILE_PX),)
        self.background_rgb = (0, 0, 0)
        self.associated_sizes: dict[str, tuple[int, int]] = {}
        self.stored_box = (0, 0, *size)
        self._pixels: Pixels | None = None
        self._lock = threading.Lock()

    def colour_profile(self) -> bytes | None:
        """Return the ICC profile in the file, if any."""
        return self._profile

    def associated_image(self, name: str) -> Pixels:
        """Refuse: nothing comes with a plain picture.

        Raises
        ------
        SlideError
            Always.
        """
        raise SlideError(f"{self.path.name} is a plain picture without {name!r}.")

    def box(
        self, level: int, col: int, row: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (x, y) and (width, height) of a tile, cut at the picture's edges.

        Raises
        ------
        IndexError
            If there is no such tile.
        """
        return tile_box(self.tile_sizes[level], self.level_sizes[level], col, row)

    def read(self, level: int, start: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Read pixels that lie within the picture, uint8 (height, width, 3).

        Raises
        ------
        SlideError
            If the file cannot be read.
        """
        with self._lock:
            if self._pixels is None:
                self._pixels = decoded(self.path)
            pixels = self._pixels
        (x, y), (wide, high) = start, size
        return pixels[y : y + high, x : x + wide].copy()

    def close(self) -> None:
        """Forget the pixels; a later read decodes them again."""
        with self._lock:
            self._pixels = None
