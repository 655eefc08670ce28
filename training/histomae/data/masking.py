"""What masking leaves of small structures: the chance that one is hidden entirely.

An autoencoder learns of a structure only what it sees of it. A mask hides M of the L
patches of a tile, all choices alike; the n patches that a structure touches are among
them with the chance C(L-n, M-n) / C(L, M). It falls fast with n: smaller patches and
smaller mask ratios keep small lesions in sight (the idea of Fan et al., 2024).

Lengths are in pixels of the tile, as the network sees it. The random resized crop of a
training view only enlarges what it shows, so that the chances are those at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.config import check_within
from histomae.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Array = np.ndarray[Any, Any]

#: Settings that are compared, from the fastest to train.
PATCH_SIZES = (32, 16, 8, 4)
MASK_RATIOS = (0.75, 0.6, 0.5)
#: A structure hidden more often than this is in danger of being lost.
AT_MOST = 0.05


@dataclass(frozen=True)
class Hidden:
    """How often a structure is hidden entirely, as shares of the masks."""

    mean: float
    """Over all places that it may have on the patch grid."""
    worst: float
    """Where it lies on as few patches as it can."""


@dataclass(frozen=True)
class MaskSetting:
    """The side of a patch, pixels, and the share of the patches that is hidden."""

    patch_size: int
    mask_ratio: float


def chances_all_hidden(patches: int, mask_ratio: float) -> Array:
    """Return the chance that n given patches are all hidden, float64 (patches + 1,).

    Entry n is C(L-n, M-n) / C(L, M), with L patches of which M, their share
    ``mask_ratio`` to the next whole number, are hidden; as
    :func:`histomae.models.patches.random_mask` hides them.
    """
    hidden = round(patches * mask_ratio)
    n = np.arange(patches)
    return np.cumprod([1.0, *((hidden - n).clip(min=0) / (patches - n))])


def hidden_entirely(size_px: float, tile_px: int, setting: MaskSetting) -> Hidden:
    """Return how often a structure is hidden entirely, in closed form.

    The structure is a square of ``size_px``; a round one of that width touches fewer
    patches only where it touches many, and the chance is next to nothing. Its place is
    uniform, so that along each axis it touches ceil(s/p) patches, or one more with the
    chance r/p, where s = (ceil(s/p) - 1) p + r.

    Raises
    ------
    ConfigError
        If the structure does not fit into the tile, or the setting does not.
    """
    patch = setting.patch_size
    _check(size_px, tile_px, setting)
    side = tile_px // patch
    fewest = math.ceil(size_px / patch)
    over = size_px / patch - (fewest - 1)
    chance = chances_all_hidden(side**2, setting.mask_ratio)
    touched = np.minimum([fewest, fewest + 1], side)
    along = np.array([1 - over, over])
    mean = np.outer(along, along) * chance[np.outer(touched, touched)]
    return Hidden(float(mean.sum()), float(chance[fewest**2]))


def chances_hidden(lesions: Sequence[Bools], setting: MaskSetting) -> Array:
    """Return how often each lesion is hidden entirely, float64 (n,).

    Parameters
    ----------
    lesions
        bool (tile_px, tile_px) each; the patches that one touches are counted.

    Raises
    ------
    ConfigError
        If the setting does not fit the tiles.
    """
    return np.array([_chance_hidden(lesion, setting) for lesion in lesions])


def _chance_hidden(lesion: Bools, setting: MaskSetting) -> float:
    tile_px, patch = len(lesion), setting.patch_size
    _check(tile_px, tile_px, setting)
    side = tile_px // patch
    touched = lesion.reshape(side, patch, side, patch).any((1, 3)).sum()
    return float(chances_all_hidden(side**2, setting.mask_ratio)[touched])


def settings_from(present: MaskSetting, tile_px: int) -> list[MaskSetting]:
    """Return the present setting and finer ones, from the fastest to train.

    Raises
    ------
    ConfigError
        If the present one does not fit the tile.
    """
    _check(tile_px, tile_px, present)
    return _finer(tile_px, present)


def compared(
    size_px: float, tile_px: int, present: MaskSetting
) -> list[tuple[MaskSetting, Hidden]]:
    """Return how often a structure is hidden with the present setting, and with finer.

    From the fastest to train.

    Raises
    ------
    ConfigError
        As :func:`hidden_entirely`.
    """
    return [
        (setting, hidden_entirely(size_px, tile_px, setting))
        for setting in settings_from(present, tile_px)
    ]


def suggested(
    size_px: float, tile_px: int, present: MaskSetting, *, at_most: float = AT_MOST
) -> MaskSetting | None:
    """Return the fastest setting that hides a structure ``at_most`` so often, on mean.

    The present one if it does; else the largest patches not above its own, and of
    these the largest ratio not above its own. None if not even the finest does.

    Raises
    ------
    ConfigError
        As :func:`hidden_entirely`.
    """
    for setting, hidden in compared(size_px, tile_px, present):
        if hidden.mean <= at_most:
            return setting
    return None


def _finer(tile_px: int, present: MaskSetting) -> list[MaskSetting]:
    """Return the settings to try: the present, then from the fastest to train."""
    patches = sorted({present.patch_size, *PATCH_SIZES}, reverse=True)
    ratios = sorted({present.mask_ratio, *MASK_RATIOS}, reverse=True)
    return [
        MaskSetting(patch, ratio)
        for patch in patches
        if patch <= present.patch_size and not tile_px % patch
        for ratio in ratios
        if ratio <= present.mask_ratio
    ]


def _check(size_px: float, tile_px: int, setting: MaskSetting) -> None:
    if tile_px < 1 or setting.patch_size < 1 or tile_px % setting.patch_size:
        raise ConfigError(
            "patch_size",
            f"{setting.patch_size} px does not divide the tile of {tile_px} px. Choose "
            "a patch size such as 8, 16 or 32 that does.",
        )
    check_within("mask_ratio", setting.mask_ratio, 0, 1)
    if not 0 < size_px <= tile_px:
        raise ConfigError(
            "structure",
            f"{size_px:g} px is no size within a tile of {tile_px} px. Give a width "
            "above 0 that fits.",
        )
