"""How much of the attention over a picture lies on what a mask shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.picture_grid import PictureGrid
from histomae.errors import NotEnoughDataError

if TYPE_CHECKING:
    from histomae.slides.grid import TileGrid

Array = np.ndarray[Any, Any]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class AttentionShare:
    """Shares, 0 to 1, of what the tile shows of the picture; black around is left out.

    Attention that minds nothing has a ``mass`` equal to the ``area``.
    """

    mass: float
    """Of the attention, what lies on the mask."""
    area: float
    """Of the picture, what is masked."""

    @property
    def times(self) -> float:
        """How many times as dense the attention is there as on average."""
        return self.mass / self.area

    def words(self, what: str = "lesion") -> str:
        """Say it in one sentence."""
        return (
            f"{self.mass:.0%} of the attention lies on the {what}, which is "
            f"{self.area:.0%} of the picture: {self.times:.1f} times its share."
        )


def share_on_lesion(
    grid: TileGrid, attention: Array, lesion: Bools | None
) -> AttentionShare | None:
    """Return the share of a whole picture's attention on its lesion, bool (H, W).

    None where there is no lesion, or the tile is no whole picture, or nothing is looked
    at, as by a Grad-CAM of a class for which nothing speaks.
    """
    if lesion is None or not isinstance(grid, PictureGrid):
        return None
    try:
        return attention_on(attention, grid.laid(lesion), grid.shown)
    except NotEnoughDataError:
        return None


def on_picture(grid: TileGrid, attention: Array) -> Array:
    """Return attention (grid_h, grid_w), NaN in patches that show no picture."""
    if not isinstance(grid, PictureGrid):
        return attention
    there = _shares(grid.shown, attention.shape) > 0
    return np.where(there, attention, np.float32(np.nan))


def attention_on(attention: Array, mask: Bools, shown: Bools) -> AttentionShare:
    """Return the share of attention on a mask, and the mask's share of the picture.

    The attention of a patch is spread evenly over its pixels; what falls beside the
    picture counts for nothing.

    Parameters
    ----------
    attention
        (grid_h, grid_w), 0 or more.
    mask, shown
        bool (H, W) of the tile, multiples of the grid: what is masked, and where the
        tile shows the picture.

    Raises
    ------
    NotEnoughDataError
        If nothing is masked, or no attention falls on the picture.
    """
    masked = _shares(mask & shown, attention.shape)
    there = _shares(shown, attention.shape)
    whole = float((attention * there).sum())
    if not masked.any() or whole <= 0:
        raise NotEnoughDataError(
            "There is no lesion in the picture, or no attention on it. Choose a "
            "picture with a mask."
        )
    mass = float((attention * masked).sum()) / whole
    return AttentionShare(mass, float(masked.sum() / there.sum()))


def _shares(mask: Bools, grid: tuple[int, ...]) -> Array:
    """Return the share of each patch that is True, (grid_h, grid_w)."""
    (high, wide), (rows, columns) = mask.shape, grid
    blocks = mask.reshape(rows, high // rows, columns, wide // columns)
    shares: Array = blocks.mean((1, 3))
    return shares
