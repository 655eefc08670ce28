"""The protocols of MPCS (Chhipa et al., WACV 2023), and the tables that it prints.

BreakHis: one model for each magnification, tested at all four; patients are dealt into
five folds so that each has its share of the eight subtypes. BACH: colours of one
staining. UCSB: each group of pictures left out once. What is chosen is chosen by
patients of the training side, never by the fold that is tested.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data import breakhis
from histomae.data.metrics import mean_and_std
from histomae.data.pictures import scan_sector
from histomae.data.split_files import Fold, Split
from histomae.data.splits import stratified_share
from histomae.errors import DataSetError, NotEnoughDataError
from histomae.evaluate.protocols import Job, Part, Schedule
from histomae.evaluate.scores import PLA, rows, trial_scores
from histomae.slides.reinhard import restained

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from histomae.data.labelled import LabelledPicture, LabelledSet
    from histomae.evaluate.protocols import Settings
    from histomae.evaluate.trials import Evaluation

Array = np.ndarray[Any, Any]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: Names of the settings of a trial, and how much of the labels is meant.
LABELS, TAUGHT, TESTED = "labels", "taught at", "tested at"
FEW, ALL = "20 %", "all"
#: Share of the training side that chooses: of four parts one, as published.
CHOOSING = 0.25
#: The paper's name of the scores.
SCORES = {"ILA": "accuracy", "PLA": PLA}


# BreakHis ------------------------------------------------------------------------


def at_magnifications(data: LabelledSet, settings: Settings) -> Schedule:
    """Teach each fold at each magnification, with a fifth of the labels and with all.

    Five parts of the patients: one is tested. With all labels three teach and one
    chooses; with a fifth one part alone does both. The test side is told apart by the
    magnification of its pictures.

    Raises
    ------
    DataSetError
        If the pictures are not named as in BreakHis.
    NotEnoughDataError
        If a class has fewer patients than there are folds.
    """
    magnification, subtype = _named(data)
    patients = data.patients
    part = dealt(patients, subtype, settings.folds, seed=settings.seed)
    _check_folds(data, part, settings.folds)
    jobs: list[Job] = []
    folds: list[Fold] = []
    for number in range(settings.folds):
        test, few = part == number, part == (number + 1) % settings.folds
        for labels, learning in ((FEW, few), (ALL, ~test)):
            choosing = _choosing(data, learning, few, labels, settings.seed)
            train = learning & ~choosing
            folds.append(Fold(*map(np.flatnonzero, (train, choosing, test))))
            for at in np.unique(magnification).tolist():
                here = magnification == at
                if len(np.unique(data.labels[train & here])) < 2:
                    continue  # a small set may lack a class at a magnification
                jobs.append(
                    Job(
                        setting={LABELS: labels, TAUGHT: f"{at}x"},
                        fold=number,
                        train=np.flatnonzero(train & here),
                        val=np.flatnonzero(choosing & here),
                        test=np.flatnonzero(test),
                        seed=settings.seed,
                        apart=_apart(test, magnification),
                    )
                )
    split = Split(tuple(folds), "patient", settings.seed, data.names)
    return Schedule(jobs=tuple(jobs), split=split, notes=_notes(jobs, magnification))


def _named(data: LabelledSet) -> tuple[Indices, Array]:
    """Return magnification int (n,) and subtype str (n,) of each picture."""
    found = [breakhis.NAME.fullmatch(picture.path.name) for picture in data.pictures]
    if not all(found) or len(data.classes) != 2:
        raise DataSetError(
            f"{data.name} has not the names and the two classes of BreakHis. Choose "
            "BreaKHis_v1, with the task binary."
        )
    names = [match for match in found if match is not None]
    magnification = np.array([int(match["magnification"]) for match in names])
    return magnification, np.array([match["subtype"] for match in names], np.str_)


def dealt(patients: Array, strata: Array, parts: int, *, seed: int) -> Indices:
    """Deal patients into parts, those of a stratum to as many parts as there are.

    As cards are dealt: shuffled within each stratum, then one to each part in turn. No
    part has more than one patient more than another, in all and of each stratum; a
    stratum of three patients is in three of five parts.

    Parameters
    ----------
    patients, strata
        (n,); a patient of several strata counts for the first.

    Returns
    -------
    int64 (n,): the part of each row.
    """
    names, first, row = np.unique(patients, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(names))
    turn = shuffled[np.argsort(strata[first][shuffled], kind="stable")]
    part = np.empty(len(names), np.int64)
    part[turn] = np.arange(len(names)) % parts
    return part[row]


def _check_folds(data: LabelledSet, part: Indices, folds: int) -> None:
    for label, name in enumerate(data.classes.names):
        there = np.unique(part[data.labels == label])
        if len(there) < folds:
            raise NotEnoughDataError(
                f"{name} is in {len(there)} of {folds} folds of patients: there are "
                "too few of it. Choose fewer folds, or more of the data set."
            )


def _choosing(
    data: LabelledSet, learning: Array, few: Array, labels: str, seed: int
) -> Array:
    """Return who chooses, bool (n,): whole patients of those who may learn.

    Of all labels it is one part of four; of a single part a quarter, or nobody where a
    class would be left without a patient on either side.
    """
    if labels == ALL and (learning & ~few).any():
        return few
    chosen = np.zeros(len(data), bool)
    at = np.flatnonzero(learning)
    share = stratified_share(data.labels[at], data.patients[at], CHOOSING, seed=seed)
    kinds = [set(data.labels[at][side].tolist()) for side in (share, ~share)]
    if kinds[0] == kinds[1] and len(kinds[0]) > 1:
        chosen[at[share]] = True
    return chosen


def _apart(test: Array, magnification: Indices) -> tuple[Part, ...]:
    return tuple(
        Part(
            setting={TESTED: f"{at}x"},
            test=np.flatnonzero(test & (magnification == at)),
        )
        for at in np.unique(magnification[test]).tolist()
    )


def _notes(jobs: Sequence[Job], magnification: Indices) -> tuple[str, ...]:
    kinds = len(np.unique(magnification))
    folds = len({job.fold for job in jobs})
    left_out = 2 * kinds * folds - len(jobs)
    if not left_out:
        return ()
    return (
        f"{left_out} of {2 * kinds * folds} trainings are left out: at their "
        "magnification fewer than two classes are there to learn.",
    )


# BACH, UCSB, BUSI ----------------------------------------------------------------


def of_one_staining(data: LabelledSet) -> LabelledSet:
    """Return the set with Reinhard's colours, as pictures are read."""
    return replace(data, read=partial(_changed, data.read, restained))


def scans(data: LabelledSet) -> LabelledSet:
    """Return a set of ultrasound with its pictures cropped to what was scanned."""
    return replace(data, read=partial(_changed, data.read, scan_sector))


def _changed(
    read: Callable[[LabelledPicture], Pixels],
    change: Callable[[Pixels], Pixels],
    picture: LabelledPicture,
) -> Pixels:
    return change(read(picture))


def without_a_group(data: LabelledSet, settings: Settings) -> Schedule:
    """Test each group once, by what learned from all others.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than two groups, or none can be left out.
    """
    groups = data.patients
    names = np.unique(groups)
    folds = []
    for name in names.tolist():
        test, rest = groups == name, np.flatnonzero(groups != name)
        if len(np.unique(data.labels[rest])) < 2:
            continue
        choosing = np.zeros(len(rest), bool)
        if len(np.unique(groups[rest])) > 1:
            labels, its = data.labels[rest], groups[rest]
            choosing = stratified_share(labels, its, CHOOSING, seed=settings.seed)
        folds.append(Fold(rest[~choosing], rest[choosing], np.flatnonzero(test)))
    if not folds:
        raise NotEnoughDataError(
            f"{data.name} has {len(names)} groups of pictures, of which none can be "
            "left out. Choose more of the data set."
        )
    jobs = tuple(
        Job(
            setting={},
            fold=number,
            train=fold.train,
            val=fold.val,
            test=fold.test,
            seed=settings.seed,
        )
        for number, fold in enumerate(folds)
    )
    split = Split(tuple(folds), "patient", settings.seed, data.names)
    return Schedule(jobs=jobs, split=split)


# Its tables ----------------------------------------------------------------------


def magnification_table(
    evaluation: Evaluation, metric: str
) -> dict[tuple[str, str], dict[tuple[str, str], tuple[float, float]]]:
    """Return mean and std over the folds, by candidate and labels, then by (m, m').

    m is the magnification that was taught at, m' that which was tested.
    """
    table: dict[Any, dict[Any, tuple[float, float]]] = defaultdict(dict)
    for (candidate, setting), trials in rows(evaluation).items():
        told = dict(setting)
        found = [trial_scores(evaluation, trial)[metric] for trial in trials]
        row, at = (candidate, told[LABELS]), (told[TAUGHT], told[TESTED])
        table[row][at] = mean_and_std(found)
    return dict(table)


def breakhis_lines(evaluation: Evaluation) -> list[str]:
    """Return the paper's tables for a terminal, in percent, its own rows below.

    ILA and PLA at each magnification, taught and tested at the same, with the mean over
    them; then what was taught at one and tested at another.
    """
    told: list[str] = []
    for score, metric in SCORES.items():
        table = magnification_table(evaluation, metric)
        ats = sorted({at for row in table.values() for at, _ in row}, key=_number)
        head = f"{score}, taught and tested at"
        told.append(f"{head:<42}{'  '.join(map(_wide, ats))}  mean")
        for (candidate, labels), row in table.items():
            same = {at: row[at, at] for at in ats if (at, at) in row}
            cells = [_wide(_cell(same.get(at))) for at in ats]
            mean, std = mean_and_std([value for value, _ in same.values()])
            name = f"{candidate}, labels: {labels}"
            told.append(f"  {name:<40}{'  '.join(cells)}  {_cell((mean, std))}")
    table = magnification_table(evaluation, SCORES["ILA"])
    for (candidate, labels), row in table.items():
        ats = sorted({at for pair in row for at in pair}, key=_number)
        told.append(f"ILA of {candidate}, labels: {labels}: taught at, tested at")
        told.append(f"  {'':<6}{'  '.join(map(_wide, ats))}")
        for taught in ats:
            cells = [_wide(_cell(row.get((taught, at)))) for at in ats]
            told.append(f"  {taught:<6}{'  '.join(cells)}")
    return [*told, *published_lines(evaluation.published)]


def published_lines(published: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows of papers for a terminal, in percent."""
    if not published:
        return []
    lines = ["published, not measured here:"]
    for row in published:
        spread = "" if row.get("spread") is None else f" ± {row['spread']:.2f}"
        what = f"{row['paper']}: {row['what']}"
        lines.append(f"  {what:<70} {row['metric']} {row['value']:.2f}{spread}")
    return lines


def _number(at: str) -> int:
    return int(at.rstrip("x"))


def _wide(text: str) -> str:
    return f"{text:<12}"


def _cell(found: tuple[float, float] | None) -> str:
    if found is None or np.isnan(found[0]):
        return "-"
    mean, std = found
    return f"{100 * mean:.1f}" + ("" if np.isnan(std) else f" ± {100 * std:.1f}")
