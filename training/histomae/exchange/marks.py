"""Objects and areas that a segmenter found, as files for other people's tools."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from histomae.exchange.tables import cell
from histomae.files import write_beside

if TYPE_CHECKING:
    import os

    from histomae.slides.annotations import Roi
    from histomae.slides.heatmap import Heatmap

Array = np.ndarray[Any, Any]
Color = tuple[int, int, int]

#: Smaller areas are told in µm².
LEAST_MM2 = 0.01


@dataclass(frozen=True, eq=False, kw_only=True)
class MarkTable:
    """Objects or areas on a slide: n of them, of K classes."""

    centres_l0: Array
    """float (n, 2): (x, y), level-0 pixels."""
    labels: Array
    """int (n,), 0 to K - 1."""
    outlines_l0: tuple[Roi, ...]
    class_names: tuple[str, ...]
    class_colors: tuple[Color, ...]
    slide_name: str
    slide_id: str
    segmenter_id: str
    mpp: tuple[float, float] | None
    """Of level 0, (x, y), µm; None: nobody knows."""
    synthetic: bool = False
    """Whether the slide is made by a program."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sizes(self) -> Array:
        """Area of each, float (n,): µm², or pixels of the picture without ``mpp``."""
        one = 1.0 if self.mpp is None else math.prod(self.mpp)
        return np.array([outline.area for outline in self.outlines_l0], float) * one

    def counts(self) -> dict[str, int]:
        """Return how many there are of each class."""
        many = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return dict(zip(self.class_names, many, strict=True))

    def size_words(self) -> dict[str, str]:
        """Return the area of each class together, as people say it: ``0.42 mm²``."""
        sums = np.bincount(self.labels, self.sizes, len(self.class_names)).tolist()
        words = [_area(size, in_um=self.mpp is not None) for size in sums]
        return dict(zip(self.class_names, words, strict=True))


def _area(size: float, *, in_um: bool) -> str:
    mm2 = size / 1e6
    if in_um and mm2 >= LEAST_MM2:
        return f"{mm2:,.0f} mm²" if mm2 >= 10 else f"{mm2:.2g} mm²"
    return f"{size:,.0f} {'µm²' if in_um else 'px²'}"


def write_mark_csv(path: str | os.PathLike[str], table: MarkTable) -> None:
    """Write a row for each: middle, class, size; a table of centres that we read too.

    Without micrometres their columns are missing. Text that a spreadsheet would run as
    a formula gets an apostrophe before it.
    """
    known = table.mpp is not None
    in_um = ("x_um", "y_um", "area_um2") if known else ("area_px2",)
    with (
        write_beside(Path(path)) as beside,
        beside.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(["x_l0", "y_l0", "class_name", *in_um])
        for xy, label, size in zip(
            table.centres_l0, table.labels, table.sizes, strict=True
        ):
            um = np.round(xy * table.mpp, 2).tolist() if table.mpp is not None else []
            values = [
                *np.round(xy, 2).tolist(),
                table.class_names[label],
                *um,
                round(float(size), 2),
            ]
            writer.writerow([cell(value) for value in values])


def write_raster(
    path: str | os.PathLike[str], raster: Heatmap, mpp: tuple[float, float] | None
) -> None:
    """Write a raster of whole numbers as TIFF, in tiles, with its place on the slide.

    Its description is JSON: ``origin_xy_l0`` and ``pixel_size_l0``; the resolution is
    told where ``mpp``, of level 0, is known.
    """
    place = {"origin_xy_l0": raster.origin_xy_l0, "pixel_size_l0": raster.pixel_size_l0}
    how: dict[str, Any] = {}
    if mpp is not None:
        sides = [p * m for p, m in zip(raster.pixel_size_l0, mpp, strict=True)]
        how = {
            "resolution": [1e4 / side for side in sides],
            "resolutionunit": "CENTIMETER",
        }
    with write_beside(Path(path)) as beside:
        tifffile.imwrite(
            beside,
            np.asarray(raster.values),
            tile=(256, 256),
            compression="zlib",
            photometric="minisblack",
            description=json.dumps(place),
            metadata=None,
            bigtiff=raster.values.nbytes > 2**31,
            **how,
        )
