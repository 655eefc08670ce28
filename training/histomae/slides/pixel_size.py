"""The size of a pixel: which numbers are believed, and where a file writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openslide

from histomae.errors import MissingMppError
from histomae.slides import ome

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Pixel sizes of level 0 outside this range, µm, are not believed.
MIN_MPP, MAX_MPP = 0.02, 10.0


def believable(mpp_xy: tuple[float, float]) -> bool:
    """Tell whether µm/px in x and in y can be those of a slide's level 0."""
    return all(MIN_MPP <= mpp <= MAX_MPP for mpp in mpp_xy)


def checked(mpp: float | tuple[float, float]) -> tuple[float, float]:
    """Return a person's pixel size as (x, y), µm.

    Raises
    ------
    MissingMppError
        If it is not believable.
    """
    pair = (mpp, mpp) if isinstance(mpp, int | float) else mpp
    if not believable(pair):
        raise MissingMppError(
            f"{mpp} µm per pixel is not believable. Give a number between {MIN_MPP} "
            f"and {MAX_MPP}; most scanners write 0.2 to 0.5."
        )
    return pair


def written_in(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the (x, y) µm/px that a file gives, or None if it is not believable.

    What OpenSlide says comes first, then the description of an OME-TIFF.
    """
    for look in (_openslides, _omes):
        pair = look(properties)
        if pair is not None and believable(pair):
            return pair
    return None


def _openslides(properties: Mapping[str, str]) -> tuple[float, float] | None:
    try:
        return (
            float(properties[openslide.PROPERTY_NAME_MPP_X]),
            float(properties[openslide.PROPERTY_NAME_MPP_Y]),
        )
    except (KeyError, ValueError):
        return None


def _omes(properties: Mapping[str, str]) -> tuple[float, float] | None:
    return ome.pixel_size_um(properties.get("tiff.ImageDescription", ""))


def suggested_by(properties: Mapping[str, str]) -> float | None:
    """Return a guess, µm/px, from the objective's power: to pre-fill a question."""
    try:
        power = float(properties[openslide.PROPERTY_NAME_OBJECTIVE_POWER])
    except (KeyError, ValueError):
        return None
    return 10.0 / power if 1.0 <= power <= 200.0 else None
