"""Who trains, who chooses and who tests: splits by patient, kept as files.

Validation is carved out of the training side, never out of the test side. A split names
its pictures, so that it is found again in another order, and refused where it does not
fit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.splits import check_no_leak, grouped_folds, stratified_share
from histomae.data.words import some_are, some_have, some_of
from histomae.errors import ConfigError, DataSetError, NotEnoughDataError
from histomae.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from histomae.data.labelled import LabelledSet

Array = np.ndarray[Any, Any]
Indices = np.ndarray[Any, np.dtype[np.int64]]

#: Of the file.
VERSION = 1
#: Label fractions of the papers' curves.
FRACTIONS = (0.05, 0.10, 0.20, 0.40, 0.60, 0.80, 1.0)
SIDES = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of a data set, int64, in ascending order; none is on two sides.

    ``val`` is empty where nothing is chosen by validation.
    """

    train: Indices
    val: Indices
    test: Indices

    @property
    def sides(self) -> tuple[tuple[str, Indices], ...]:
        """The three sides with their names."""
        return tuple((side, getattr(self, side)) for side in SIDES)


@dataclass(frozen=True, eq=False)
class Split:
    """The folds of a data set.

    ``kind`` is ``patient``, ``hold-out`` or ``official``. ``names`` are those of all
    pictures of the data set, in its order, as :attr:`LabelledSet.names` gives them.
    ``notes`` are sentences for the user.
    """

    folds: tuple[Fold, ...]
    kind: str
    seed: int
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """SHA-256 of who is on which side of which fold, whatever the order."""
        names = np.array(self.names, np.str_)
        sides = [
            {side: sorted(names[rows].tolist()) for side, rows in fold.sides}
            for fold in self.folds
        ]
        told = json.dumps([sorted(self.names), sides], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the split as JSON."""
        told = {
            "histomae_split": VERSION,
            "hash": self.hash,
            "kind": self.kind,
            "seed": self.seed,
            "notes": self.notes,
            "folds": [
                {side: rows.tolist() for side, rows in fold.sides}
                for fold in self.folds
            ],
            "names": self.names,
        }
        with write_beside(path) as beside:
            beside.write_text(json.dumps(told) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path, data: LabelledSet) -> Split:
        """Read what :meth:`save` wrote, for a data set in whatever order.

        Raises
        ------
        DataSetError
            If the file is no split, was changed, or is of other pictures.
        LabelError
            If a patient is on two sides, which only official splits may have.
        """
        split = _read(path)
        place = {name: row for row, name in enumerate(data.names)}
        _check_names(split.names, place, path)
        to_row = np.array([place[name] for name in split.names], np.int64)
        moved = tuple(
            Fold(*(np.sort(to_row[rows]) for _, rows in fold.sides))
            for fold in split.folds
        )
        split = cls(moved, split.kind, split.seed, data.names, split.notes)
        if split.kind != "official":
            for fold in split.folds:
                _check_patients(fold, data.patients)
        return split


def _read(path: Path) -> Split:
    """Read a file as it stands; its hash must be that of what it holds."""
    try:
        told = json.loads(path.read_text("utf-8"))
        version, names = told["histomae_split"], tuple(map(str, told["names"]))
        folds = tuple(
            Fold(*(_rows(fold[side], len(names)) for side in SIDES))
            for fold in told["folds"]
        )
        notes = tuple(map(str, told["notes"]))
        split = Split(folds, str(told["kind"]), int(told["seed"]), names, notes)
        hash_then = told["hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataSetError(
            f"{path} is no split ({reason:.200}). Make it anew, or name the file that "
            "was written."
        ) from error
    if version != VERSION:
        raise DataSetError(
            f"{path} is a split of version {version}, this is version {VERSION}. Read "
            "it with the napari-histomae that wrote it, or make it anew."
        )
    if split.hash != hash_then:
        raise DataSetError(
            f"{path} was changed after it was written: its hash does not fit. Bring "
            "the original file back, or make it anew."
        )
    return split


def _rows(told: Sequence[int], count: int) -> Indices:
    rows = np.asarray(told, np.int64).reshape(-1)
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise ValueError(f"a row is not among its {count} names")
    return rows


def _check_names(names: Sequence[str], place: Mapping[str, int], path: Path) -> None:
    known = set(names)
    missing = [name for name in names if name not in place]
    extra = [name for name in place if name not in known]
    reasons = []
    if missing:
        reasons.append(f"{some_are(missing)} missing from the data")
    if extra:
        reasons.append(f"{some_are(extra)} not in the split")
    if reasons:
        raise DataSetError(
            f"{path.name} is the split of other pictures: {', and '.join(reasons)}. "
            "Choose the data set and the task that it was made for, or make it anew."
        )


def _check_patients(fold: Fold, patients: Array) -> None:
    """Refuse a fold with a patient on two sides."""
    check_no_leak(patients[np.concatenate([fold.train, fold.val])], patients[fold.test])
    check_no_leak(patients[fold.train], patients[fold.val])


# ---- ways to split


def split_by_patient(
    data: LabelledSet, *, k: int = 5, seed: int = 0, val_share: float = 0.2
) -> Split:
    """Split into ``k`` folds by patient, stratified by class.

    There are fewer folds where a class has fewer patients. A class with one patient is
    trained on and never tested; a note says so.

    Parameters
    ----------
    val_share
        Of the training side of each fold, carved out of it by patient; 0: none.

    Raises
    ------
    NotEnoughDataError
        If fewer than two classes have two patients, or, with validation, three.
    ConfigError
        If ``k`` is below 2 or the share is none.
    """
    labels, groups = data.labels, _numbers(data.patients)
    found = grouped_folds(labels, groups, k=k, seed=seed)
    if not found.folds:
        raise _too_few(data)
    folds = tuple(
        _with_validation(data, train, test, val_share, seed)
        for train, test in found.folds
    )
    notes = _notes(data, found.unscored)
    if len(folds) < k:
        notes += (f"{len(folds)} folds, not {k}: a class has no more patients.",)
    return Split(folds, "patient", seed, data.names, notes)


def hold_out(
    data: LabelledSet,
    *,
    test_share: float = 0.2,
    val_share: float = 0.2,
    seed: int = 0,
) -> Split:
    """Hold a share of the pictures out for testing, whole patients, stratified.

    ``val_share`` is of the rest, which trains. Raises as :func:`split_by_patient`.
    """
    _check_share("test_share", test_share, least=0.01)
    labels, groups = data.labels, _numbers(data.patients)
    alone = _with_fewer_patients(labels, groups, than=2)
    if len(np.unique(labels)) - len(alone) < 2:
        raise _too_few(data)
    held_out = stratified_share(labels, groups, test_share, seed=seed)
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    fold = _with_validation(data, train, test, val_share, seed)
    return Split((fold,), "hold-out", seed, data.names, _notes(data, alone))


def official_split(
    data: LabelledSet, *, val_share: float = 0.2, seed: int = 0
) -> Split:
    """Return the split that the data set came with.

    Where it has no validation, that is carved out of its training side by patient.
    Patients on two of its sides are told in a note and left where they are.

    Raises
    ------
    DataSetError
        If it came with none.
    NotEnoughDataError
        As :func:`split_by_patient`.
    """
    train, val, test = (np.flatnonzero(data.sides == side) for side in SIDES)
    if not len(train) or not len(test):
        lacking = " and ".join(s for s in ("train", "test") if s not in data.sides)
        raise DataSetError(
            f"{data.name} in {data.root} has no official {lacking} side. Split it by "
            "patient, or bring the missing folder back."
        )
    if len(val):
        fold = Fold(train, val, test)
    else:
        fold = _with_validation(data, train, test, val_share, seed)
    return Split((fold,), "official", seed, data.names, _torn(fold, data.patients))


def nested_fractions(
    labels: Array,
    patients: Array,
    fractions: Sequence[float] = FRACTIONS,
    *,
    seed: int,
) -> dict[float, Indices]:
    """Draw shares of the labels of a training side, each within the next larger one.

    Of every class the same share is drawn, one picture at least. Patients are taken one
    after the other, in an order drawn by the seed, so that few labels are also those of
    few patients, as when one begins to label.

    Parameters
    ----------
    labels, patients
        (n,): the class and the patient of each row of the training side.
    fractions
        Above 0, up to 1.

    Returns
    -------
    dict[float, Indices]
        By fraction, int64 rows of ``labels``, ascending.
    """
    labels = np.asarray(labels)
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ConfigError(
                "fractions", f"{fraction} is none. Give shares above 0, up to 1."
            )
    rng = np.random.default_rng(seed)
    groups = _numbers(patients)
    turn = rng.permutation(groups.max(initial=-1) + 1)[groups]
    order = np.lexsort((rng.random(len(labels)), turn))
    of_class = [order[labels[order] == label] for label in np.unique(labels)]
    return {
        fraction: np.sort(
            np.concatenate(
                [rows[: max(1, round(fraction * len(rows)))] for rows in of_class]
            )
        )
        for fraction in fractions
    }


def _with_validation(
    data: LabelledSet, train: Indices, test: Indices, share: float, seed: int
) -> Fold:
    """Carve validation out of the training side, whole patients at a time."""
    _check_share("val_share", share)
    if not share:
        return Fold(train, train[:0], test)
    labels, groups = data.labels[train], _numbers(data.patients[train])
    alone = _with_fewer_patients(labels, groups, than=2)
    if len(np.unique(labels)) - len(alone) < 2:
        raise _too_few(data, least=3)
    held_out = stratified_share(labels, groups, share, seed=seed)
    return Fold(train[~held_out], train[held_out], test)


def _check_share(name: str, share: float, *, least: float = 0.0) -> None:
    if not least <= share < 1:
        raise ConfigError(name, f"{share} is not in {least} to 1. Choose 0.2, say.")


def _with_fewer_patients(labels: Array, groups: Array, than: int) -> tuple[int, ...]:
    """Return the classes with fewer patients than so many."""
    return tuple(
        int(label)
        for label in np.unique(labels)
        if len(np.unique(groups[labels == label])) < than
    )


def _too_few(data: LabelledSet, least: int = 2) -> NotEnoughDataError:
    classes = _with_fewer_patients(data.labels, data.patients, than=least)
    names = [data.classes.names[label] for label in classes]
    who = some_have(names) if names else "Too many classes have"
    without = ", or split without validation (val_share 0)" if least > 2 else ""
    return NotEnoughDataError(
        f"{data.name}: {who} fewer than {least} patients, and a patient is on one side "
        f"only. Add pictures of other patients{without}."
    )


def _notes(data: LabelledSet, alone: Sequence[int]) -> tuple[str, ...]:
    names = [data.classes.names[label] for label in alone]
    if not names:
        return ()
    return (f"{some_have(names)} one patient only: trained on, never tested.",)


def _torn(fold: Fold, patients: Array) -> tuple[str, ...]:
    """Say which patients stand on two sides."""
    notes = []
    for number, (side, rows) in enumerate(fold.sides):
        for other, others in fold.sides[number + 1 :]:
            both = np.intersect1d(patients[rows], patients[others]).tolist()
            if both:
                count = f"{len(both)} patients" if len(both) > 1 else "one patient"
                notes.append(
                    f"The official split has {count} on the sides {side} and {other}: "
                    f"{some_of(both)}."
                )
    return tuple(notes)


def _numbers(patients: Array) -> Indices:
    return np.unique(patients, return_inverse=True)[1].astype(np.int64)
