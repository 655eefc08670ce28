"""Colour profiles: what the scanner saw, as a screen should show it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from collections.abc import Callable

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def to_srgb(icc_profile: bytes | None) -> Callable[[Pixels], Pixels]:
    """Return a function from pixels in ``icc_profile`` to sRGB, uint8 (H, W, 3).

    Without a profile, or with one that cannot be understood or is no RGB profile, the
    pixels are returned as they are.
    """
    if icc_profile is None:
        return _unchanged
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)),
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
        )
    except (ImageCms.PyCMSError, OSError):
        return _unchanged

    def convert(pixels: Pixels) -> Pixels:
        image = ImageCms.applyTransform(Image.fromarray(pixels), transform)
        return np.asarray(image)

    return convert


def _unchanged(pixels: Pixels) -> Pixels:
    return pixels
