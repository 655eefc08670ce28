"""A summary as JSON, and back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture
from histomae.errors import HistomaeError, ReportError
from histomae.evaluate.point_maps import METHODS, PointMap
from histomae.evaluate.summary import (
    Calibration,
    Measured,
    Mistake,
    Roc,
    Score,
    Summary,
    Versus,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What the file says it is, and in which form.
KIND, VERSION = "napari-histomae report", 1
#: A report is text of a few megabytes; what is larger is none.
MOST_BYTES = 1 << 28
NAME = "report.json"
#: The numbers of a paired test.
TESTED = ("value", "low", "high", "p", "sign_flip_p", "mcnemar_p")


def to_json(summary: Summary) -> str:
    """Return a summary as JSON; the same summary gives the same text."""
    told: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        "protocol": summary.protocol,
        "data_name": summary.data_name,
        "root": str(summary.root),
        "classes": asdict(summary.classes),
        "total": summary.total,
        "facts": summary.facts,
        "leaks": summary.leaks,
        "looked_for": summary.looked_for,
        "not_looked_for": summary.not_looked_for,
        "ours": summary.ours,
        "main": summary.main,
        "scores": [asdict(score) for score in summary.scores],
        "versus": [asdict(one) for one in summary.versus],
        "verdict": summary.verdict,
        "caveats": summary.caveats,
        "published": summary.published,
        "maps": [vars(one) for one in summary.maps],
        "mistakes": [asdict(one) for one in summary.mistakes],
        "pictures": {
            str(row): vars(picture) | {"path": _inside(picture.path, summary.root)}
            for row, picture in summary.pictures.items()
        },
        "predicted": {str(row): told for row, told in summary.predicted.items()},
    }
    return json.dumps(_plain(told), allow_nan=False, ensure_ascii=False, indent=1)


def _inside(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; NaN is null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _plain(dict(value)) if hasattr(value, "items") else str(value)


def read_summary(path: str | Path) -> Summary:
    """Read the summary of a report: its JSON file, or the folder that holds it.

    Raises
    ------
    ReportError
        If it is none, or damaged.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        told = json.loads(path.read_text("utf-8"))
        if not isinstance(told, dict) or told.get("kind") != KIND:
            raise ValueError("it is something else")
        if told["version"] != VERSION:
            raise ReportError(
                f"{path.name} is of version {told['version']}, this program reads "
                f"{VERSION}. Make the report anew, or update the program."
            )
        return _summary(told)
    except ReportError:
        raise
    except OSError as error:
        raise ReportError(
            f"{path.name} cannot be read ({error.strerror}). Choose the folder of a "
            "report, or its report.json."
        ) from error
    except (KeyError, TypeError, ValueError, IndexError, HistomaeError) as error:
        raise ReportError(
            f"{path.name} is no report, or damaged ({error!s:.200}). Make it anew."
        ) from error


def _summary(told: Mapping[str, Any]) -> Summary:
    root = Path(told["root"])
    classes = told["classes"]
    summary = Summary(
        protocol=str(told["protocol"]),
        data_name=str(told["data_name"]),
        root=root,
        classes=ClassSet(
            tuple(classes["names"]),
            tuple((int(r), int(g), int(b)) for r, g, b in classes["colors"]),
            tuple(classes["full_names"]),
        ),
        total=int(told["total"]),
        facts=dict(told["facts"]),
        leaks=None if told["leaks"] is None else tuple(map(str, told["leaks"])),
        looked_for=tuple(map(str, told["looked_for"])),
        not_looked_for=tuple(map(str, told["not_looked_for"])),
        ours=str(told["ours"]),
        main=dict(told["main"]),
        scores=tuple(_score(one) for one in told["scores"]),
        versus=tuple(
            Versus(
                other=str(one["other"]),
                **{name: _number(one[name]) for name in TESTED},
            )
            for one in told["versus"]
        ),
        verdict=tuple(map(str, told["verdict"])),
        caveats=tuple(map(str, told["caveats"])),
        published=tuple(dict(one) for one in told["published"]),
        maps=tuple(_map(one) for one in told["maps"]),
        mistakes=tuple(
            Mistake(
                row=int(one["row"]),
                predicted=int(one["predicted"]),
                probability=float(one["probability"]),
            )
            for one in told["mistakes"]
        ),
        pictures={
            int(row): _picture(one, root) for row, one in told["pictures"].items()
        },
        predicted={
            int(row): (int(label), float(probability))
            for row, (label, probability) in told["predicted"].items()
        },
    )
    _check(summary)
    return summary


def _picture(told: Mapping[str, Any], root: Path) -> LabelledPicture:
    box = told.get("box_l0")
    placed = None if box is None else tuple(map(float, box))
    if placed is not None and len(placed) != 4:
        raise ValueError("a place on a slide is none")
    return LabelledPicture(
        **dict(told) | {"path": root / told["path"], "box_l0": placed}
    )


def _score(told: Mapping[str, Any]) -> Score:
    return Score(
        candidate=str(told["candidate"]),
        setting=dict(told["setting"]),
        trials=int(told["trials"]),
        trained=float(told["trained"]),
        tested=int(told["tested"]),
        patients=int(told["patients"]),
        figures={
            str(name): Measured(
                each=tuple(map(_number, one["each"])),
                **{k: _number(one[k]) for k in ("mean", "std", "low", "high")},
            )
            for name, one in told["figures"].items()
        },
        confusion=tuple(tuple(map(int, line)) for line in told["confusion"]),
        class_f1=tuple(map(_number, told["class_f1"])),
        calibration=Calibration(
            count=tuple(map(int, told["calibration"]["count"])),
            confidence=tuple(map(_number, told["calibration"]["confidence"])),
            accuracy=tuple(map(_number, told["calibration"]["accuracy"])),
            ece=_number(told["calibration"]["ece"]),
        ),
        rocs=tuple(
            Roc(
                label=int(one["label"]),
                false_positive=tuple(map(float, one["false_positive"])),
                true_positive=tuple(map(float, one["true_positive"])),
                area=float(one["area"]),
            )
            for one in told["rocs"]
        ),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _map(told: Mapping[str, Any]) -> PointMap:
    first, second = map(str, told["axes"])
    made = PointMap(
        candidate=str(told["candidate"]),
        method=str(told["method"]),
        rows=np.array(told["rows"], np.int64),
        xy=np.array(told["xy"], np.float64),
        axes=(first, second),
    )
    if made.method not in METHODS or made.xy.shape != (len(made.rows), 2):
        raise ValueError("a map of its features is not whole")
    return made


def _check(summary: Summary) -> None:
    """Refuse what could not be drawn."""
    kinds = len(summary.classes)
    if summary.score(summary.ours) is None:
        raise ValueError("the score that it is about is missing")
    for score in summary.scores:
        if np.shape(score.confusion) != (kinds, kinds):
            raise ValueError("a confusion matrix does not fit its classes")
    labels = [
        *(picture.label for picture in summary.pictures.values()),
        *(label for label, _ in summary.predicted.values()),
        *(one.predicted for one in summary.mistakes),
        *(roc.label for score in summary.scores for roc in score.rocs),
    ]
    if not all(0 <= label < kinds for label in labels):
        raise ValueError("a label is not among its classes")
    shown = {row for one in summary.maps for row in one.rows.tolist()}
    if not shown | {one.row for one in summary.mistakes} <= set(summary.pictures):
        raise ValueError("a picture of it is not described")
