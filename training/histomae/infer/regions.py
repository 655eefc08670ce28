"""Regions as bags: the tiles of a slide that lie in what a person drew."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import FeatureError, NotEnoughDataError
from histomae.slides.annotations import SAME_COVER, covered_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histomae.exchange.features import SlideFeatures
    from histomae.slides.annotations import Annotation, Roi
    from histomae.slides.grid import TileGrid

Array = np.ndarray[Any, Any]

#: A tile is of a region that covers as much of it.
MIN_COVER = 0.5
#: Hexadecimal digits that tell one outline from another.
ID_DIGITS = 16
NO_NAME = "region"


@dataclass(frozen=True)
class Region:
    """A region of a slide, and what it is called; no two of a slide are called alike.

    ``roi`` is in level-0 pixels (x, y).
    """

    name: str
    roi: Roi

    @property
    def region_id(self) -> str:
        """Short hash of the outline."""
        return hashlib.sha256(self.roi.normalize().wkb).hexdigest()[:ID_DIGITS]

    @property
    def file_stem(self) -> str:
        """Its name as a part of a file's name."""
        return re.sub(r"[^\w-]+", "_", self.name).strip("_") or NO_NAME


def named_regions(annotations: Sequence[Annotation]) -> list[Region]:
    """Return what a person drew as regions, by their names, else by their classes.

    Those that are called alike are numbered, in the order given: ``Duct 1``, ``Duct 2``
    and so on.

    Raises
    ------
    NotEnoughDataError
        If there is none.
    """
    if not annotations:
        raise NotEnoughDataError("There is no region. Draw one around some tissue.")
    names = [one.name or one.class_name or NO_NAME for one in annotations]
    stems = [
        Region(name, one.roi).file_stem.lower()
        for name, one in zip(names, annotations, strict=True)
    ]
    often, seen, regions = Counter(stems), Counter[str](), []
    for name, stem, one in zip(names, stems, annotations, strict=True):
        seen[stem] += 1
        called = name if often[stem] == 1 else f"{name} {seen[stem]}"
        regions.append(Region(called, one.roi))
    return regions


def within(region: Region, slide: str, grid: TileGrid, cells: Array) -> Array:
    """Tell which tiles are of a region: it covers half of each, or more.

    Parameters
    ----------
    slide
        Its name, for the complaint.
    cells
        int (M, 2), (row, column).

    Returns
    -------
    bool (M,), true for one tile at least.

    Raises
    ------
    NotEnoughDataError
        If there is no such tile.
    """
    covered = np.zeros(grid.shape)
    inside, covers = covered_cells(region.roi, grid)
    covered[tuple(inside.T)] = covers
    found: Array = covered[tuple(cells.T)] >= MIN_COVER - SAME_COVER
    if not found.any():
        raise NotEnoughDataError(
            f"The region {region.name} of {slide} holds no tile of tissue. Draw a "
            "larger one, around some tissue."
        )
    return found


def features_within(features: SlideFeatures, region: Region) -> SlideFeatures:
    """Return the features of a region, from those of its slide.

    Raises
    ------
    NotEnoughDataError
        If it holds no tile.
    FeatureError
        If the file does not say where exactly its tiles lie.
    """
    header = features.header
    if header.grid is None:
        raise FeatureError(
            f"The features of {header.slide} do not say exactly where their tiles lie. "
            "Make them with 'histomae embed'."
        )
    kept = within(region, header.slide, header.grid, features.cells)
    return replace(
        features,
        header=replace(
            header,
            tiles=int(kept.sum()),
            region=region.name,
            region_id=region.region_id,
        ),
        values=features.values[kept],
        coords_l0=features.coords_l0[kept],
        cells=features.cells[kept],
    )
