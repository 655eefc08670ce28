"""Pictures on which objects are marked, and how well found objects agree with them.

Frame: pixels of a picture. Rasters are (H, W); places are (x, y), measured at pixel
edges, so that the first pixel's middle is at (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.draw import polygon2mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from histomae.data.classes import ClassSet

Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: A found centre this near to a true one is meant for it, pixels (SD-MAE's protocol).
NEAR_PX = 12.0


@dataclass(frozen=True, eq=False)
class Marks:
    """What is marked on a picture: n objects, of K classes.

    ``objects`` int32 (H, W): 0 where there is none, else 1 to n; ``labels`` int64 (n,):
    the class of each, 0 to K - 1.
    """

    objects: Array
    labels: Array

    @property
    def classes(self) -> Array:
        """The class of each pixel, int64 (H, W): 0 for none, else 1 to K."""
        return np.concatenate([[0], self.labels + 1])[self.objects]

    @property
    def centres(self) -> Array:
        """The middle of each object, float64 (n, 2) of (x, y)."""
        numbers = np.arange(1, len(self.labels) + 1)
        found = ndimage.center_of_mass(
            np.ones(self.objects.shape), self.objects, numbers
        )
        return np.array(found, float).reshape(-1, 2)[:, ::-1] + 0.5

    def crop(self, rows: slice, columns: slice) -> Marks:
        """Return what lies in a part of the picture; its objects are counted anew."""
        part = self.objects[rows, columns]
        there, places = np.unique(part, return_inverse=True)
        if not len(there) or there[0] != 0:
            there, places = np.concatenate([[0], there]), places + 1
        return Marks(
            places.reshape(part.shape).astype(np.int32), self.labels[there[1:] - 1]
        )

    def depth(self) -> Array:
        """Return how deep inside its object each pixel is, float32 (H, W), 0 to 1.

        The distance to the object's edge as a share of that of its deepest pixel; 0
        outside. Neighbours that touch have a valley between them.
        """
        deep = np.zeros(self.objects.shape, np.float32)
        for number, box in enumerate(ndimage.find_objects(self.objects), start=1):
            if box is not None:
                inside = np.pad(self.objects[box] == number, 1)
                far = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
                deep[box] = np.maximum(deep[box], far / max(far.max(), 1))
        return deep


@dataclass(frozen=True, kw_only=True)
class MarkedPicture:
    """One picture and the file of what is marked on it; nothing of it is in memory."""

    path: Path
    marks: tuple[Path, ...]
    patient: str
    side: str = ""
    """Of the official split; empty where there is none."""
    place: tuple[int, int] | None = None
    """(row, column) of a slide's grid, where it is a tile."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MarkedSet:
    """Marked pictures, n of them, in an order that is always one.

    ``read`` returns the pixels of one, uint8 (H, W, 3), and its marks, and raises
    DataSetError where it cannot.
    """

    name: str
    classes: ClassSet
    pictures: tuple[MarkedPicture, ...]
    read: Callable[[MarkedPicture], tuple[Pixels, Marks]]
    mpp: float | None = None
    """µm per pixel of all; None where it is not told."""
    partial: bool = False
    """Whether what is unmarked may be anything, as around regions that were drawn."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)


def marks_of(outlines: Iterable[tuple[Array, int]], shape: tuple[int, int]) -> Marks:
    """Fill outlines, each a float (m, 2) of (x, y) with its label, into a raster.

    Where two lie on each other the later one is seen; what has no pixel is left out.
    """
    objects, labels = np.zeros(shape, np.int32), []
    for xy, label in outlines:
        labels.append(label)
        # A pixel is inside if its middle is.
        objects[polygon2mask(shape, xy[:, ::-1] - 0.5)] = len(labels)
    whole = Marks(objects, np.array(labels, np.int64))
    return whole.crop(slice(None), slice(None))


def discs(
    centres: Array, labels: Sequence[int] | Array, shape: tuple[int, int], radius: float
) -> Marks:
    """Mark discs around centres, (n, 2) of (x, y), where no outlines are known.

    A pixel that lies in several belongs to the nearest.
    """
    if not len(centres):
        return Marks(np.zeros(shape, np.int32), np.zeros(0, np.int64))
    seeds = np.full(shape, -1)
    nearest = np.full(shape, np.inf)
    for number, (x, y) in enumerate(np.asarray(centres, float)):
        top, left = (max(0, int(v - radius - 1)) for v in (y, x))
        rows, columns = (slice(v, int(v + 2 * radius + 3)) for v in (top, left))
        part = nearest[rows, columns]
        down, across = np.mgrid[: part.shape[0], : part.shape[1]]
        far = np.hypot(down + top + 0.5 - y, across + left + 0.5 - x)
        here = (far <= radius) & (far < part)
        part[here] = far[here]
        seeds[rows, columns][here] = number
    whole = Marks((seeds + 1).astype(np.int32), np.asarray(labels, np.int64))
    return whole.crop(slice(None), slice(None))


# ---- agreement


def aggregated_jaccard(truth: Array, found: Array) -> float:
    """Return AJI of objects, int (H, W) with 0 for none; NaN where there is nothing.

    Kumar et al., IEEE TMI 2017: each true object is taken together with the found one
    of the largest overlap over union; what no true object took counts as union alone.
    """
    pairs = np.stack([truth.ravel(), found.ravel()])
    (one, other), both = np.unique(pairs, axis=1, return_counts=True)
    size = np.bincount(truth.ravel()), np.bincount(found.ravel())
    shared, union, taken = 0, 0, set()
    for number in np.flatnonzero(size[0][1:]) + 1:
        met = (one == number) & (other > 0)
        partners, overlap = other[met], both[met]
        if not len(partners):
            union += size[0][number]
            continue
        unions = size[0][number] + size[1][partners] - overlap
        best = int((overlap / unions).argmax())
        shared, union = shared + overlap[best], union + unions[best]
        taken.add(int(partners[best]))
    left = [n for n in np.flatnonzero(size[1][1:]) + 1 if int(n) not in taken]
    union += size[1][left].sum() if left else 0
    return float(shared / union) if union else float("nan")


def matched(truth: Array, found: Array, *, near_px: float = NEAR_PX) -> int:
    """Return how many centres, (n, 2) and (m, 2), can be paired one to one.

    Of all pairings of centres at most ``near_px`` apart the largest.
    """
    if not len(truth) or not len(found):
        return 0
    far = cdist(truth, found) > near_px
    rows, columns = linear_sum_assignment(far)
    return int((~far[rows, columns]).sum())


def detection_f1(truth: Array, found: Array, *, near_px: float = NEAR_PX) -> float:
    """Return F1 of found centres; NaN where there are none and none was found."""
    total = len(truth) + len(found)
    hits = matched(truth, found, near_px=near_px)
    return 2 * hits / total if total else float("nan")
