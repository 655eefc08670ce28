"""Reinhard's colour transfer: pictures of one staining, whoever stained them.

Reinhard et al., Color transfer between images, IEEE CG&A 2001. Colours are taken to the
space lαβ of Ruderman et al. (1998), in which they hardly depend on each other; there
each channel is given another mean and spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: From red, green, blue to the answers of the eye's cones (Reinhard's equation 4).
LMS = np.array(
    ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
)
#: From their logarithms to lαβ (equation 6).
LAB = np.diag((3**-0.5, 6**-0.5, 2**-0.5)) @ np.array(
    ((1, 1, 1), (1, 1, -2), (1, -1, 0))
)
#: What is darker than this, of 255, is taken for it: black has no logarithm.
LEAST = 1.0
#: A channel without any spread is moved, not stretched.
LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Stain:
    """Mean and standard deviation of l, α, β: natural logarithms of grey levels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


#: Of a field of the slide TCGA-A2-A3XS, H&E of breast, which MPCS normalised BACH to;
#: as HistomicsTK publishes it.
TCGA_A2_A3XS = Stain(
    (8.63234435, -0.11501964, 0.03868433), (0.57506023, 0.10403329, 0.01364062)
)


def lab_of(pixels: Array) -> Array:
    """Turn red, green, blue from 0 to 255, (..., 3), into lαβ, float64 (..., 3)."""
    cones: Array = np.maximum(np.asarray(pixels, float) @ LMS.T, LEAST)
    lab: Array = np.log(cones) @ LAB.T
    return lab


def rgb_of(lab: Array) -> Array:
    """Turn lαβ back into red, green, blue, float64 (..., 3), not clipped."""
    rgb: Array = np.exp(lab @ np.linalg.inv(LAB).T) @ np.linalg.inv(LMS).T
    return rgb


def stain_of(pixels: Pixels) -> Stain:
    """Measure a picture, uint8 (H, W, 3), all its pixels alike."""
    lab = lab_of(pixels).reshape(-1, 3)
    mean, std = lab.mean(0).tolist(), lab.std(0).tolist()
    return Stain((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def restained(pixels: Pixels, target: Stain = TCGA_A2_A3XS) -> Pixels:
    """Give a picture, uint8 (H, W, 3), the colours of a target; its shape stays."""
    own = stain_of(pixels)
    lab = lab_of(pixels) - np.array(own.mean)
    lab *= np.array(target.std) / np.maximum(own.std, LEAST_SPREAD)
    rgb = rgb_of(lab + np.array(target.mean))
    return np.rint(rgb.clip(0, 255)).astype(np.uint8)
