"""How a labelled picture of any size becomes the tiles that an encoder takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from histomae.config import check_least, check_one_of, check_within
from histomae.data.pictures import whole_square
from histomae.errors import ConfigError, UpsamplingError

if TYPE_CHECKING:
    from histomae.data.labelled import LabelledPicture

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

HOW = ("whole", "fit", "patches", "mpp")
#: Finer than this share of a picture's own pixel size is up-sampling.
LEAST_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The rule by which pictures become tiles.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    how: str = "whole"
    """``whole``: the picture squeezed into one tile, as most papers do; ``fit``: whole
    in one tile, its shape kept, black around; ``patches``: squares of ``patch_px`` of
    the picture, each resampled to a tile; ``mpp``: resampled to a pixel size and cut
    into tiles."""
    patch_px: int = 224
    """Of ``patches``: side, pixels of the picture."""
    overlap: float = 0.0
    """Share of its side that a patch, or a tile of ``mpp``, has in common with the
    next."""
    mpp: float | None = None
    """Of ``mpp``: µm per pixel; None: the encoder's own."""
    votes: bool = False
    """Whether each tile is classified by itself, and the tiles of a picture vote; else
    their features are averaged and the picture is classified."""

    def __post_init__(self) -> None:
        check_one_of("tiles", self.how, HOW)
        check_least("patch_px", self.patch_px, 1)
        check_within("overlap", self.overlap, 0, 0.9)
        if self.mpp is not None and not self.mpp > 0:
            raise ConfigError("mpp", f"{self.mpp:g} is no pixel size. Choose 0.5, say.")

    def __str__(self) -> str:
        over = f", {self.overlap:.0%} overlap" if self.overlap else ""
        joined = "each votes" if self.votes else "features averaged"
        size = "the encoder's µm/px" if self.mpp is None else f"{self.mpp:g} µm/px"
        return {
            "whole": "the whole picture as one tile",
            "fit": "the whole picture as one tile, its shape kept",
            "patches": f"patches of {self.patch_px} px{over}, {joined}",
            "mpp": f"tiles at {size}{over}, {joined}",
        }[self.how]

    @property
    def is_whole(self) -> bool:
        """Whether every picture is one tile."""
        return self.how in ("whole", "fit")

    def cut(self, picture: Pixels, tile_px: int, *, mpp: float | None = None) -> Pixels:
        """Cut a picture into tiles, row by row from the top left.

        What is left at the right and bottom of the last whole tile is not used. A
        picture smaller than one is mirrored at its edges, with ``mpp``, or taken whole.

        Parameters
        ----------
        picture
            uint8 (H, W, 3).
        mpp
            Of the picture, µm per pixel.

        Returns
        -------
        uint8 (q, tile_px, tile_px, 3), q at least 1.

        Raises
        ------
        ConfigError
            If pixel sizes are needed and not known.
        UpsamplingError
            If the picture is coarser than what is asked for.
        """
        if self.how == "whole":
            return _resized(picture, tile_px, tile_px)[None]
        if self.how == "fit":
            return whole_square(picture, tile_px)[None]
        if self.how == "mpp":
            return _squares(self._at_mpp(picture, tile_px, mpp), tile_px, self.overlap)
        side = min(self.patch_px, *picture.shape[:2])
        squares = _squares(picture, side, self.overlap)
        return np.stack([_resized(square, tile_px, tile_px) for square in squares])

    def _at_mpp(self, picture: Pixels, tile_px: int, mpp: float | None) -> Pixels:
        if self.mpp is None or mpp is None:
            whose = "the encoder" if self.mpp is None else "a picture"
            raise ConfigError(
                "mpp", f"{whose} does not know it. Choose --tiles whole, or give --mpp."
            )
        if self.mpp < LEAST_SHARE * mpp:
            raise UpsamplingError(
                f"A picture at {mpp:g} µm/px cannot be seen at {self.mpp:g}. Choose "
                "--tiles whole, or an encoder of coarser tiles."
            )
        high, wide = (
            max(1, round(length * mpp / self.mpp)) for length in picture.shape[:2]
        )
        picture = _resized(picture, wide, high)
        lacking = [max(0, tile_px - length) for length in picture.shape[:2]]
        if not any(lacking):
            return picture
        around = [(one // 2, one - one // 2) for one in lacking]
        return np.pad(picture, (*around, (0, 0)), mode="symmetric")


def tiles_of(
    tiling: Tiling, picture: LabelledPicture, pixels: Pixels, tile_px: int
) -> Pixels:
    """Return the tiles of a picture, uint8 (q, tile_px, tile_px, 3); see ``cut``.

    Raises
    ------
    ConfigError, UpsamplingError
        Naming the picture.
    """
    try:
        return tiling.cut(pixels, tile_px, mpp=picture.mpp)
    except UpsamplingError as error:
        raise UpsamplingError(f"{picture.name}: {error}") from error


def _squares(picture: Pixels, side: int, overlap: float) -> Pixels:
    """Return the whole squares of a picture, uint8 (q, side, side, 3)."""
    step = max(1, round(side * (1 - overlap)))
    high, wide = picture.shape[:2]
    return np.stack(
        [
            picture[y : y + side, x : x + side]
            for y in range(0, high - side + 1, step)
            for x in range(0, wide - side + 1, step)
        ]
    )


def _resized(picture: Pixels, width: int, height: int) -> Pixels:
    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
