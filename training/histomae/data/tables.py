"""Tables that people write: CSV with commas or semicolons, and Excel's workbooks."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from histomae.errors import LabelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Row = dict[str, str]


def read_csv(path: Path) -> tuple[list[Row], set[str]]:
    """Return the rows and the columns' names in small letters; cells are stripped.

    Raises
    ------
    LabelError
        If it cannot be read.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(
            f"{path} cannot be read ({error}). Give a CSV file in UTF-8."
        ) from error
    first = text.partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    header, *lines = list(csv.reader(text.splitlines(), delimiter=delimiter)) or [[]]
    return _rows(header, lines)


def read_workbook(path: Path) -> list[tuple[list[Row], set[str]]]:
    """Return the sheets of a workbook (.xlsx), each as :func:`read_csv` does.

    Raises
    ------
    LabelError
        If it cannot be read.
    """
    from zipfile import BadZipFile

    from openpyxl import load_workbook

    try:
        book = load_workbook(path, read_only=True, data_only=True)
        sheets = [
            [["" if c is None else str(c) for c in row] for row in sheet.values]
            for sheet in book.worksheets
        ]
        book.close()
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise LabelError(
            f"{path} cannot be read ({error}). Bring the original workbook back, or "
            "save its sheet as CSV in UTF-8."
        ) from error
    return [_rows(sheet[0], sheet[1:]) for sheet in sheets if sheet]


def check_columns(
    path: Path, columns: set[str], wanted: Sequence[str], begin: str
) -> None:
    """Refuse a table without the columns that are wanted.

    Raises
    ------
    LabelError
        Naming the first that is missing; ``begin`` is how it should begin.
    """
    for name in wanted:
        if name not in columns:
            raise LabelError(
                f"{path.name} has no column {name!r}. Begin it with the line {begin!r}."
            )


def _rows(
    header: Sequence[str], lines: Sequence[Sequence[str]]
) -> tuple[list[Row], set[str]]:
    names = [name.strip().lower() for name in header]
    blank = dict.fromkeys(names, "")
    rows = [
        blank | dict(zip(names, (cell.strip() for cell in line), strict=False))
        for line in lines
    ]
    return [row for row in rows if any(row.values())], set(names)
