"""From feature files and a table to a cohort of labelled slides; its scores as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histomae.data.slide_labels import read_slide_labels
from histomae.errors import FeatureError, LabelError
from histomae.events import Note, Progress
from histomae.exchange.bags import read_bag
from histomae.exchange.features import find_features
from histomae.files import write_beside

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Mapping, Sequence

    from histomae.data.bags import Bag
    from histomae.data.slide_labels import SlideLabels
    from histomae.evaluate.slides import Measure, SlideScore
    from histomae.events import Event

READING = "reading features"


def read_cohort(
    paths: Sequence[str | os.PathLike[str]], table: str | os.PathLike[str]
) -> Generator[Event, None, tuple[dict[str, Bag], SlideLabels]]:
    """Read the features of labelled slides; the others are counted in a note.

    Parameters
    ----------
    paths
        Feature files, or folders of them.
    table
        See :func:`histomae.data.slide_labels.read_slide_labels`.

    Returns
    -------
    Bags by their names, those of regions too, and the labels of these.

    Raises
    ------
    LabelError
        If the table is damaged, or names no slide that has features.
    FeatureError
        If a file is damaged, or two are of one slide or of one region.
    NotEnoughDataError
        If fewer than two classes have a slide with features.
    """
    labels, files = read_slide_labels(table), find_features(paths)
    bags: dict[str, Bag] = {}
    source: dict[str, Path] = {}
    for done, path in enumerate(files):
        yield Progress(READING, done, len(files))
        bag = read_bag(path)
        other = source.setdefault(bag.name, path)
        if other != path:
            raise FeatureError(f"{other} and {path} are both of {bag.name}. Give one.")
        if labels.has(bag):
            bags[bag.name] = bag
    yield Progress(READING, len(files), len(files))
    if not bags:
        raise LabelError(
            f"{Path(table).name} names {labels.slides[0]} and others, none of which "
            f"has features; {next(iter(source))} and others have. Write the slides' "
            "names as in the feature files."
        )
    labels = labels.among(bags.values())
    bags = {name: bags[name] for name in labels.slides}
    if unlabelled := len(source) - len(bags):
        has = "bag has" if unlabelled == 1 else "bags have"
        yield Note(f"{unlabelled} {has} features and no label: left out.")
    return bags, labels


def write_scores(
    path: str | os.PathLike[str],
    scores: Mapping[str, SlideScore],
    labels: SlideLabels,
    **told: Any,
) -> None:
    """Write scores as JSON, beside and renamed; what cannot be told is null.

    Parameters
    ----------
    told
        What else is to be in it.
    """
    rows = {name: _as_row(score) for name, score in scores.items()}
    text = json.dumps(
        {**told, "classes": labels.class_names, "scores": rows},
        indent=2,
        allow_nan=False,
        ensure_ascii=False,
    )
    with write_beside(Path(path)) as beside:
        beside.write_text(text + "\n", "utf-8")


def _as_row(score: SlideScore) -> dict[str, Any]:
    return {
        "bags": score.bags,
        "slides": score.slides,
        "patients": score.patients,
        "accuracy": _as_numbers(score.accuracy),
        "macro_f1": _as_numbers(score.macro_f1),
        "auc": _as_numbers(score.auc),
        "confusion": score.confusion.tolist(),
    }


def _as_numbers(measure: Measure) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else value
        for name, value in vars(measure).items()
    }
