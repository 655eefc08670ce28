"""A person's own labelled pictures: a folder for each class, or a table.

``carcinoma/a.png``, or ``train/carcinoma/a.png`` where there is a split; or a CSV with
the columns path, label, patient and, if wanted, split, mpp and slide. Paths are
those of files from the table's folder on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.layouts import (
    Kind,
    files_below,
    no_patients,
    read_file,
    side_in,
    side_of,
)
from histomae.data.tables import check_columns, read_csv
from histomae.data.words import some_are, some_have, some_of
from histomae.errors import DataSetError, LabelError, NotEnoughDataError
from histomae.slides.find import MASK

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.data.tables import Row

BEGIN = "path,label,patient"


# ---- a folder for each class


def is_folders(path: Path) -> bool:
    """Tell whether a folder holds two folders of pictures at least."""
    return path.is_dir() and len(_class_names(_labelled_files(path))) > 1


def _labelled_files(root: Path) -> list[Path]:
    """Return the pictures that are in a folder of a class, not masks."""
    return [
        path
        for path in files_below(root)
        if not MASK.search(path.stem) and path.parent != root
        if not side_of(path.parent.name)
    ]


def _class_names(paths: list[Path]) -> list[str]:
    return sorted({path.parent.name for path in paths})


def read_folders(root: Path, task: str) -> LabelledSet:
    """Find pictures in folders that are named as their classes."""
    paths = _labelled_files(root)
    names = _class_names(paths)
    if len(names) < 2:
        raise NotEnoughDataError(
            f"{root} holds no folders of two classes with pictures. Put the pictures "
            "of each class into a folder of its name, or name a table "
            f"({BEGIN})."
        )
    pictures = tuple(
        LabelledPicture(
            path=path,
            label=names.index(path.parent.name),
            patient=path.relative_to(root).as_posix(),
            side=side_in(path.parent, root),
        )
        for path in paths
    )
    return LabelledSet(
        name=root.resolve().name,
        root=root,
        classes=ClassSet.of(names),
        pictures=pictures,
        read=read_file,
        notes=(
            no_patients(root.name) + " A table tells them.",
            f"{root.name} does not tell the pixel size of its pictures.",
        ),
    )


# ---- a table


def is_table(path: Path) -> bool:
    """Tell whether a path is a table of labels."""
    return path.is_file() and path.suffix.lower() == ".csv"


def read_labels(path: Path, task: str) -> LabelledSet:
    """Read a table of pictures; each is there, and none is named twice.

    Raises
    ------
    LabelError
        If the table cannot be understood.
    DataSetError
        If a picture is missing.
    """
    rows, columns = read_csv(path)
    check_columns(path, columns, ("path", "label"), BEGIN)
    labelled = [row for row in rows if row["path"] and row["label"]]
    _check_paths(path, labelled)
    names = sorted({row["label"] for row in labelled})
    if len(names) < 2:
        raise NotEnoughDataError(
            f"The pictures of {path.name} are of too few classes "
            f"({some_of(names) or 'none'}). Label pictures of two classes or more."
        )
    pictures = tuple(_picture(path, row, names) for row in labelled)
    return LabelledSet(
        name=path.stem,
        root=path.parent,
        classes=ClassSet.of(names),
        pictures=pictures,
        read=read_file,
        notes=_table_notes(path, rows, labelled),
    )


def _check_paths(path: Path, rows: list[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row["path"] in seen:
            raise LabelError(
                f"{path.name} has {row['path']} twice. Leave one row for each picture."
            )
        seen.add(row["path"])
    missing = [row["path"] for row in rows if not (path.parent / row["path"]).is_file()]
    if missing:
        raise DataSetError(
            f"{some_are(missing)} named in {path.name} and missing. Write paths from "
            "the table's folder on, or remove these rows."
        )


def _picture(path: Path, row: Row, names: list[str]) -> LabelledPicture:
    return LabelledPicture(
        path=path.parent / row["path"],
        label=names.index(row["label"]),
        patient=row.get("patient") or row["path"],
        mpp=_mpp(path, row),
        side=_side(path, row),
        slide=row.get("slide", ""),
    )


def _mpp(path: Path, row: Row) -> float | None:
    text = row.get("mpp", "")
    if not text:
        return None
    try:
        mpp = float(text)
    except ValueError:
        mpp = 0.0
    if not 0.02 <= mpp <= 10:
        raise LabelError(
            f"{path.name} gives {row['path']} {text!r:.40} µm per pixel. Write a "
            "number from 0.02 to 10, or leave the cell empty."
        )
    return mpp


def _side(path: Path, row: Row) -> str:
    text = row.get("split", "")
    side = side_of(text)
    if text and not side:
        raise LabelError(
            f"{path.name} puts {row['path']} on the side {text!r:.40}. Write train, "
            "val or test, or leave the column out."
        )
    return side


def _table_notes(path: Path, rows: list[Row], labelled: list[Row]) -> tuple[str, ...]:
    notes = []
    bare = [
        row["path"] or "a row" for row in rows if not row["path"] or not row["label"]
    ]
    if bare:
        notes.append(f"{some_have(bare)} no path or no label: left out.")
    if not any(row.get("patient") for row in labelled):
        notes.append(no_patients(path.name))
    elif lone := [row["path"] for row in labelled if not row["patient"]]:
        notes.append(f"{some_have(lone)} no patient: each counts as one of its own.")
    if unknown := [row["path"] for row in labelled if not row.get("mpp")]:
        notes.append(f"{some_have(unknown)} no pixel size told.")
    return tuple(notes)


FOLDERS = Kind(
    name="folders",
    title="Your own pictures, a folder for each class",
    tasks={},
    layout="The folder above those of the classes; train, val and test if wanted.",
    recognises=is_folders,
    read=read_folders,
)
TABLE = Kind(
    name="table",
    title=f"Your own pictures, a CSV table ({BEGIN}[,split,mpp])",
    tasks={},
    layout="The table; paths in it are those of files from its folder on.",
    recognises=is_table,
    read=read_labels,
)
