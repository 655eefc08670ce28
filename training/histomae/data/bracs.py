"""BRACS from its official trees: regions of interest, and whole slides.

Brancati et al., Database 2022. A region is ``train/0_N/BRACS_1003728_N_1.png``: side of
the official split, class, slide, class, number; before the release it was named
``1231_pathologicalbenign_23.png``. Slides are ``BRACS_1003728.svs``; their labels, sets
and patients stand in the workbook BRACS.xlsx, which tells the patients of the regions
too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histomae.data.classes import BRACS_3, BRACS_7
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.layouts import (
    PAPERS,
    Kind,
    any_named,
    find_named,
    read_file,
    side_in,
    side_of,
)
from histomae.data.tables import read_csv, read_workbook
from histomae.data.words import some_are, some_have
from histomae.errors import DataSetError, LabelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

#: µm per pixel of the regions, and of level 0 of the slides.
MPP = 0.25
#: Of each class the group that it belongs to, by place.
GROUP = (0, 0, 0, 1, 1, 2, 2)
#: What classes were called before the release, by place.
OLD_NAMES = ("benign", "pathologicalbenign", "udh", "fea", "adh", "dcis", "malignant")
TASKS = {"7-classes": BRACS_7, "3-groups": BRACS_3}
ROI = re.compile(
    r"(?i)BRACS_(?P<slide>\w+?)_(?P<class>N|PB|UDH|FEA|ADH|DCIS|IC)_\d+\.png"
)
OLD_ROI = re.compile(rf"(?P<slide>\d+)_(?P<class>{'|'.join(OLD_NAMES)})_\d+\.png")
WSI = re.compile(r"(?i)BRACS_\w+\.svs")
EXAMPLE = "BRACS_1003728_N_1.png"


@dataclass(frozen=True)
class Entry:
    """What the workbook tells of a slide; empty: it does not."""

    class_name: str
    patient: str
    side: str


def is_rois(path: Path) -> bool:
    """Tell whether a folder holds regions named as in BRACS."""
    return any_named(path, "*.png", ROI) or any_named(path, "*.png", OLD_ROI)


def is_slides(path: Path) -> bool:
    """Tell whether a folder holds slides named as in BRACS."""
    return any_named(path, "*.svs", WSI)


def read_rois(root: Path, task: str) -> LabelledSet:
    """Find the regions below a folder."""
    book = _workbook(root)
    entries = _entries(book) if book else {}

    def understand(path: Path) -> LabelledPicture | None:
        match = ROI.fullmatch(path.name)
        old = OLD_ROI.fullmatch(path.name)
        if match:
            slide, label = f"BRACS_{match['slide']}", _label(match["class"])
        elif old:
            slide, label = old["slide"], OLD_NAMES.index(old["class"])
        else:
            return None
        entry = entries.get(slide)
        return LabelledPicture(
            path=path,
            label=_asked(label, task),
            patient=entry.patient if entry and entry.patient else slide,
            slide=slide,
            mpp=MPP,
            side=side_in(path, root),
        )

    found, notes = find_named(
        root, understand, of="BRACS", example=EXAMPLE, choose="its folder of regions"
    )
    strange = sorted(
        p.path.name
        for p in found
        if _folder_differs(p.path) and not OLD_ROI.fullmatch(p.path.name)
    )
    if strange:
        notes += (f"{some_are(strange)} in the folder of another class than named.",)
    unknown = sorted({p.slide for p in found if not _patient_of(entries, p.slide)})
    return _set("BRACS RoI", root, task, found, (*notes, *_unknown(unknown)))


def read_slides(root: Path, task: str) -> LabelledSet:
    """List the slides below a folder with what the workbook says of them.

    Where it is silent, the folders tell: ``train/Group_BT/Type_PB``.
    """
    book = _workbook(root)
    entries = _entries(book) if book else {}
    unlabelled: list[str] = []

    def understand(path: Path) -> LabelledPicture | None:
        if not WSI.fullmatch(path.name):
            return None
        entry = entries.get(path.stem, Entry("", "", ""))
        name = entry.class_name or path.parent.name.removeprefix("Type_")
        if _label(name) < 0:
            unlabelled.append(path.name)
            return None
        return LabelledPicture(
            path=path,
            label=_asked(_label(name), task),
            patient=entry.patient or path.stem,
            slide=path.stem,
            mpp=MPP,
            side=entry.side or side_in(path, root),
        )

    found, notes = find_named(
        root,
        understand,
        of="BRACS",
        example="BRACS_1003728.svs",
        choose="its folder of slides, with BRACS.xlsx in it",
        or_else=", or without a label in BRACS.xlsx or its folder's name",
        suffixes=(".svs",),
    )
    unknown = sorted({p.slide for p in found if not _patient_of(entries, p.slide)})
    there = {picture.slide for picture in found}
    missing = sorted(slide for slide in entries if slide not in there)
    if missing:
        notes += (f"{some_are(missing)} in {book.name if book else ''}, not here.",)
    return _set("BRACS WSI", root, task, found, (*notes, *_unknown(unknown)))


def _set(
    name: str,
    root: Path,
    task: str,
    found: list[LabelledPicture],
    notes: tuple[str, ...],
) -> LabelledSet:
    return LabelledSet(
        name=name,
        root=root,
        classes=TASKS[task],
        pictures=tuple(found),
        read=read_file if name == "BRACS RoI" else _refuse_slide,
        notes=notes,
    )


def _refuse_slide(picture: LabelledPicture) -> np.ndarray[Any, Any]:
    raise DataSetError(
        f"{picture.path.name} is a whole slide, not a picture. Embed it ('histomae "
        "embed') and judge its features ('histomae judge'), or choose bracs-roi."
    )


def _label(name: str) -> int:
    """Return the place of a class among the seven; -1: it is none."""
    upper = name.strip().upper()
    return BRACS_7.names.index(upper) if upper in BRACS_7.names else -1


def _asked(label: int, task: str) -> int:
    return GROUP[label] if task == "3-groups" else label


def _folder_differs(path: Path) -> bool:
    match = ROI.fullmatch(path.name)
    folder = path.parent.name.partition("_")[2]
    return bool(
        match and _label(folder) >= 0 and _label(folder) != _label(match["class"])
    )


def _patient_of(entries: Mapping[str, Entry], slide: str) -> str:
    return entries[slide].patient if slide in entries else ""


def _unknown(slides: list[str]) -> tuple[str, ...]:
    if not slides:
        return ()
    return (
        f"{some_have(slides)} no patient told: each slide counts as one of its own. "
        "Put BRACS.xlsx beside the folders, or slides of a patient may be torn apart.",
    )


# ---- the workbook


def _workbook(root: Path) -> Path | None:
    """Return the workbook, or its sheet as CSV, in a folder or the two above it."""
    for folder in (root, *root.parents[:2]):
        tables = files_below_once(folder)
        if tables:
            return tables[0]
    return None


def files_below_once(folder: Path) -> list[Path]:
    """Return the tables of BRACS in a folder itself."""
    found = [*folder.glob("BRACS*.xlsx"), *folder.glob("BRACS*.csv")]
    return sorted(path for path in found if path.is_file())


def _entries(path: Path) -> dict[str, Entry]:
    """Return what a workbook says of each slide."""
    is_csv = path.suffix.lower() == ".csv"
    for rows, columns in [read_csv(path)] if is_csv else read_workbook(path):
        name, label = (_column(columns, w) for w in ("filename", "wsi label"))
        patient, side = (_column(columns, w) for w in ("patient", "set"))
        if name and label:
            return {
                row[name].removesuffix(".svs"): Entry(
                    row[label].upper(),
                    f"patient {row[patient]}" if patient and row[patient] else "",
                    side_of(row[side]) if side else "",
                )
                for row in rows
                if row[name]
            }
    raise LabelError(
        f"{path.name} has no sheet with the columns 'WSI Filename' and 'WSI label'. "
        "Bring the original workbook back."
    )


def _column(columns: set[str], words: str) -> str | None:
    """Return the column whose name has these words; None: there is none."""
    return next((name for name in sorted(columns) if words in name), None)


def _counts(rows: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return counts of each side by class."""
    return {
        f"{side} {name}": number
        for side, numbers in rows.items()
        for name, number in zip(BRACS_7.names, numbers, strict=True)
    }


CITATION = (
    "Brancati et al., BRACS: A dataset for breast carcinoma subtyping in H&E histology "
    "images. Database 2022, baac093. doi:10.1093/database/baac093"
)
ROIS = Kind(
    name="bracs-roi",
    title="BRACS, regions of interest of breast lesions",
    tasks=TASKS,
    layout="The folder with train, val and test; in each 0_N to 6_IC.",
    recognises=is_rois,
    read=read_rois,
    disk_gb=52,
    counts=_counts(
        {
            "train": (357, 714, 389, 624, 387, 665, 521),
            "val": (46, 43, 46, 49, 41, 40, 47),
            "test": (81, 79, 82, 83, 79, 85, 81),
        }
    ),
    citation=CITATION,
    address="https://www.bracs.icar.cnr.it",
)
SLIDES = Kind(
    name="bracs-wsi",
    title="BRACS, whole slides of breast lesions",
    tasks=TASKS,
    layout="The folder with the slides and BRACS.xlsx, below train, val and test.",
    recognises=is_slides,
    read=read_slides,
    disk_gb=1100,
    counts=_counts(
        {
            "train": (27, 120, 56, 24, 28, 40, 100),
            "val": (10, 11, 9, 6, 8, 9, 12),
            "test": (7, 16, 9, 11, 12, 12, 20),
        }
    ),
    besides=PAPERS + r"|.*\.qpdata",
    citation=CITATION,
    address="https://www.bracs.icar.cnr.it",
    flaws=(
        "Patient 67 is known to stand on two sides of the official split of the "
        "slides; the regions' is by patient.",
    ),
)
