"""Baselines that a trained encoder must beat."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def colour_histogram(tiles: Array, *, bins: int = 8) -> Array:
    """Describe tiles by their colours alone, whatever their arrangement.

    Parameters
    ----------
    tiles
        uint8 (N, H, W, 3), RGB.
    bins
        Of each channel.

    Returns
    -------
    Array
        float32 (N, bins**3 + 6): the share of the pixels in each bin of red × green ×
        blue, then mean and standard deviation of each channel on a scale of 0 to 1.
    """
    features = [_one_histogram(tile.reshape(-1, 3), bins) for tile in tiles]
    return np.array(features, np.float32).reshape(len(tiles), bins**3 + 6)


def _one_histogram(pixels: Array, bins: int) -> Array:
    steps = (pixels.astype(np.int64) * bins) // 256
    places = (steps[:, 0] * bins + steps[:, 1]) * bins + steps[:, 2]
    shares = np.bincount(places, minlength=bins**3) / len(pixels)
    return np.concatenate([shares, pixels.mean(0) / 255, pixels.std(0) / 255])
