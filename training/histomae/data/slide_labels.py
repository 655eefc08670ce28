"""Labels of whole slides, from a table that a person wrote."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histomae.data.splits import check_no_leak
from histomae.data.tables import check_columns, read_csv
from histomae.data.words import is_or_are, some_have, some_of
from histomae.errors import LabelError, NotEnoughDataError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

Array = np.ndarray[Any, Any]
SIDES = ("train", "test")


#: Between a slide and its region.
SEPARATOR = " · "


class Named(Protocol):
    """What may have a label: a slide, or a region of one."""

    @property
    def slide(self) -> str:
        """Name of the slide."""

    @property
    def name(self) -> str:
        """What it is called itself."""


@dataclass(frozen=True, eq=False)
class SlideLabels:
    """Slides, or regions of slides, with their patients and classes, M rows.

    Raises
    ------
    NotEnoughDataError
        If fewer than two classes have a slide.
    LabelError
        If a patient is on both sides of the given split.
    """

    slides: tuple[str, ...]
    patients: tuple[str, ...]
    labels: Array
    """int64 (M,), indices into ``class_names``."""
    class_names: tuple[str, ...]
    is_test: Array | None = None
    """bool (M,): the split that the table gives; None: it gives none."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was left out, what is doubtful."""

    def __post_init__(self) -> None:
        there = np.unique(self.labels)
        if len(there) < 2:
            found = " and ".join(self.class_names[i] for i in there) or "none"
            raise NotEnoughDataError(
                f"The labelled slides are of too few classes ({found}). Label slides "
                "of two classes or more."
            )
        if self.is_test is not None:
            patients = np.array(self.patients)
            check_no_leak(patients[~self.is_test], patients[self.is_test])

    def __len__(self) -> int:
        return len(self.slides)

    @property
    def groups(self) -> Array:
        """A number for each slide's patient, int64 (M,)."""
        return np.unique(np.array(self.patients), return_inverse=True)[1]

    def has(self, bag: Named) -> bool:
        """Return whether a row names a bag, or its slide."""
        there = {bag.name, bag.slide}
        return any(_known(told, there) is not None for told in self.slides)

    def among(self, bags: Iterable[Named]) -> SlideLabels:
        """Return a row for each bag that has a label; rows without one are in a note.

        A row names a region (``slide · region``), or a slide for all of its regions,
        with or without the suffix of its file. The rows are in the order of the table,
        and are named as the bags.

        Raises
        ------
        LabelError
            If two rows name one slide, or one region.
        NotEnoughDataError
            If fewer than two classes are left.
        """
        bags = list(bags)
        there = {told for bag in bags for told in (bag.name, bag.slide)}
        known = [_known(told, there) for told in self.slides]
        for name, times in Counter(name for name in known if name is not None).items():
            if times > 1:
                raise LabelError(
                    f"{times} rows of the labels name the slide {name}, with and "
                    "without its file's suffix. Leave one row for each slide."
                )
        row_of = {name: row for row, name in enumerate(known)}
        found = [row_of.get(bag.name, row_of.get(bag.slide)) for bag in bags]
        labelled = [
            (row, bag.name)
            for row, bag in zip(found, bags, strict=True)
            if row is not None
        ]
        labelled.sort(key=lambda each: each[0])  # the bags of a row keep their order
        rows = np.array([row for row, _ in labelled], np.int64)
        missing = [s for row, s in enumerate(self.slides) if row not in found]
        notes = self.notes
        if missing:
            notes += (
                f"{some_have(missing)} a label and no features, and "
                f"{is_or_are(missing)} left out.",
            )
        return SlideLabels(
            tuple(name for _, name in labelled),
            tuple(self.patients[row] for row in rows),
            self.labels[rows],
            self.class_names,
            None if self.is_test is None else self.is_test[rows],
            notes,
        )


def _known(told: str, there: set[str]) -> str | None:
    """Return what a row names: as it is, or without the suffix of a slide's file."""
    slide, dot, region = told.partition(SEPARATOR)
    without = f"{Path(slide).stem}{dot}{region}"
    return next((one for one in (told, without) if one in there), None)


def read_slide_labels(path: str | os.PathLike[str]) -> SlideLabels:
    """Read a table with the columns ``slide``, ``patient`` and ``label``.

    CSV with commas or semicolons, the columns in any order. A fourth column, ``split``,
    may say ``train`` or ``test``. A slide without a label is left out. A slide without
    a patient counts as a patient of its own, and a note says what that puts at risk.

    Raises
    ------
    LabelError
        If the table cannot be read, a column is missing, a slide is there twice, or a
        patient is on both sides of the split.
    NotEnoughDataError
        If fewer than two classes have a slide.
    """
    path = Path(path)
    rows, columns = _rows(path)
    labelled = [row for row in rows if row["label"]]
    unlabelled = [row["slide"] for row in rows if not row["label"]]
    notes = []
    if unlabelled:
        notes.append(
            f"{some_have(unlabelled)} no label and {is_or_are(unlabelled)} left out."
        )
    unknown = [row["slide"] for row in labelled if not row["patient"]]
    if unknown:
        notes.append(
            f"{path.name} names no patient of {some_of(unknown)}: each counts as a "
            "patient of its own. If some are of one patient, the scores are too good."
        )
    names = tuple(sorted({row["label"] for row in labelled}))
    return SlideLabels(
        tuple(row["slide"] for row in labelled),
        tuple(row["patient"] or f"slide {row['slide']}" for row in labelled),
        np.array([names.index(row["label"]) for row in labelled], np.int64),
        names,
        _split(path, labelled) if "split" in columns else None,
        tuple(notes),
    )


def _rows(path: Path) -> tuple[list[dict[str, str]], set[str]]:
    """Return the rows, every cell stripped, and the columns' names in small letters."""
    rows, columns = read_csv(path)
    check_columns(path, columns, ("slide", "label"), "slide,patient,label")
    rows = [{"patient": ""} | row for row in rows if row["slide"]]
    seen: set[str] = set()
    for row in rows:
        if row["slide"] in seen:
            raise LabelError(
                f"{path.name} has {row['slide']} twice. Leave one row for each slide."
            )
        seen.add(row["slide"])
    return rows, columns


def _split(path: Path, rows: Sequence[dict[str, str]]) -> Array:
    sides = [row["split"].lower() for row in rows]
    for row, side in zip(rows, sides, strict=True):
        if side not in SIDES:
            raise LabelError(
                f"{path.name} puts {row['slide']} on the side {row['split']!r:.40}. "
                "Write train or test for every slide, or leave the column out."
            )
    if len(set(sides)) < 2:
        raise LabelError(
            f"{path.name} puts every slide on the side {sides[0]}. Name slides of "
            "both sides, or leave the column out."
        )
    return np.array([side == "test" for side in sides])
