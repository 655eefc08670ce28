"""A slide's predictions as a plain table, and as CSV."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import entr

from histomae.files import write_beside

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

Array = np.ndarray[Any, Any]
Color = tuple[int, int, int]

# What a spreadsheet takes for a formula, at the start of a cell or after a sign that
# it may take for the end of one (OWASP, "CSV injection").
FORMULA = re.compile(r"(^|[,;|\t\r\n])(?=\s*[=+\-@\t\r＝＋－＠])")


@dataclass(frozen=True)
class TileTable:
    """Predictions of the M tiles of a slide, for other people's tools."""

    boxes_l0: Array
    """float (M, 4): corners (x0, y0, x1, y1), level-0 pixels from the file's origin."""
    rows: Array
    """int (M,): row in the tile grid."""
    cols: Array
    """int (M,): column in the tile grid."""
    xy_um: Array
    """float (M, 2): centre (x, y), micrometres from the file's origin."""
    probabilities: Array
    """float (M, K); NaN where a tile could not be read."""
    class_names: tuple[str, ...]
    class_colors: tuple[Color, ...]
    slide_name: str
    slide_id: str
    encoder_id: str
    probe_id: str
    mpp: float
    """Of the tiles, µm/px."""
    mpp_source: str
    """Where the slide's pixel size comes from: file, given or remembered."""
    synthetic: bool = False
    """Whether the slide is made by a program."""

    def __post_init__(self) -> None:
        count, classes = len(self.boxes_l0), len(self.class_names)
        shapes = {
            "boxes_l0": (count, 4),
            "rows": (count,),
            "cols": (count,),
            "xy_um": (count, 2),
            "probabilities": (count, classes),
            "class_colors": (classes, 3),
        }
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape and 0 not in shape:
                raise ValueError(
                    f"{name} has shape {np.shape(getattr(self, name))}, not {shape}. "
                    "Give one row per tile and one column per class."
                )

    def __len__(self) -> int:
        return len(self.boxes_l0)

    @property
    def entropy(self) -> Array:
        """How undecided each prediction is, nats: float (M,), 0 to ln K."""
        return np.asarray(entr(np.asarray(self.probabilities, float)).sum(1))

    @property
    def confidence(self) -> Array:
        """The largest probability of each tile, float (M,)."""
        return np.asarray(self.probabilities, float).max(1)

    @property
    def predicted(self) -> list[int | None]:
        """The index of the likeliest class of each tile; None where there is none."""
        likely = np.asarray(self.probabilities, float)
        unread = np.isnan(likely).any(axis=1)
        likeliest = np.nan_to_num(likely).argmax(axis=1)
        return [None if no else int(k) for no, k in zip(unread, likeliest, strict=True)]


def write_csv(path: str | os.PathLike[str], table: TileTable) -> None:
    """Write a table of tiles as CSV: first the columns of wsinfer, then ours.

    ``minx``, ``miny``, ``width``, ``height`` are level-0 pixels. Text that a
    spreadsheet would run as a formula gets an apostrophe before it.
    """
    columns = [
        *("minx", "miny", "width", "height"),
        *(f"prob_{name}" for name in table.class_names),
        *("row", "col", "x_um", "y_um", "predicted", "confidence", "entropy"),
        *("slide", "encoder", "probe", "mpp", "mpp_source"),
    ]
    with (
        write_beside(Path(path)) as beside,
        beside.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow([cell(column) for column in columns])
        for row in _rows(table):
            writer.writerow([cell(value) for value in row])


def _rows(table: TileTable) -> Iterator[list[Any]]:
    boxes = np.asarray(table.boxes_l0, float)
    sizes = boxes[:, 2:] - boxes[:, :2]
    entropy, confidence, predicted = table.entropy, table.confidence, table.predicted
    facts = [
        *(table.slide_name, table.encoder_id, table.probe_id),
        *(table.mpp, table.mpp_source),
    ]
    for i, likely in enumerate(predicted):
        yield [
            *np.round(boxes[i, :2], 2).tolist(),
            *np.round(sizes[i], 2).tolist(),
            *(_number(p) for p in table.probabilities[i]),
            *(int(table.rows[i]), int(table.cols[i])),
            *np.round(table.xy_um[i], 2).tolist(),
            "" if likely is None else table.class_names[likely],
            *(_number(confidence[i]), _number(entropy[i])),
            *facts,
        ]


def _number(value: float) -> float | None:
    """Return a number of six decimals; None, an empty cell, for NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def cell(value: Any) -> Any:
    """Return a value that no spreadsheet takes for a formula; numbers as they are."""
    if isinstance(value, str):
        return FORMULA.sub(r"\1'", value.replace("\0", ""))
    return int(value) if isinstance(value, float) and value.is_integer() else value
