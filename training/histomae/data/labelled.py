"""Labelled pictures of any data set, as every examination takes them.

One row for each picture: where its pixels are, its class, its patient, its pixel size.
Readers make them from official layouts; nothing here knows one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from histomae.data.classes import ClassSet

Array = np.ndarray[Any, Any]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class LabelledPicture:
    """One picture of a data set; nothing of it is in memory."""

    path: Path
    """The file, or the container that holds it."""
    label: int
    """Its place among the classes of the set."""
    patient: str
    """What must not be torn apart: the patient, or what stands for one."""
    slide: str = ""
    """The slide it was cut from; empty where that is not told."""
    mpp: float | None = None
    """µm per pixel; None where that is not known."""
    side: str = ""
    """Of the official split: train, val or test; empty where there is none."""
    row: int | None = None
    """Its place in a container of many; None: the file is the picture."""

    @property
    def name(self) -> str:
        """The name of the file, and its place in it."""
        return self.path.name if self.row is None else f"{self.path.name}#{self.row}"


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledSet:
    """The labelled pictures of a data set, n of them, in an order that is always one.

    ``read`` returns the pixels of one of them, uint8 (H, W, 3), RGB, and raises
    DataSetError where it cannot.
    """

    name: str
    """Of the data set, such as BreakHis."""
    root: Path
    classes: ClassSet
    pictures: tuple[LabelledPicture, ...]
    read: Callable[[LabelledPicture], Pixels]
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was left out, what is doubtful."""

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labels(self) -> Indices:
        """Each picture's class, int64 (n,)."""
        return np.array([picture.label for picture in self.pictures], np.int64)

    @property
    def patients(self) -> Array:
        """Each picture's patient, str (n,)."""
        return np.array([picture.patient for picture in self.pictures], np.str_)

    @property
    def sides(self) -> Array:
        """Each picture's side of the official split, str (n,); empty: none."""
        return np.array([picture.side for picture in self.pictures], np.str_)

    def among(self, rows: Sequence[int] | Indices) -> LabelledSet:
        """Return the set of these rows alone; the classes stay."""
        pictures = tuple(self.pictures[int(row)] for row in rows)
        return replace(self, pictures=pictures)
