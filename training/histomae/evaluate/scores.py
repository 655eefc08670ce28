"""From trials to tables: means over folds, intervals over patients, paired tests."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    bootstrap_auc,
    bootstrap_interval,
    bootstrap_mean,
    class_f1,
    confusion_matrix,
    macro_f1,
    majority_vote,
    mcnemar,
    mean_and_std,
    paired_bootstrap,
    patient_level_accuracy,
    patient_scores,
    reliability,
    sensitivity,
    sign_flip,
    specificity,
    weighted_f1,
)
from histomae.evaluate.trials import called, words_of
from histomae.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from histomae.data.metrics import Difference
    from histomae.evaluate.trials import Evaluation, Setting, Trial

Array = np.ndarray[Any, Any]
Row = tuple[Any, ...]
#: Settings that are named in a sentence.
SAID = 3
#: Kinds of candidates that are there only to be beaten.
BASELINES = ("untrained", "ImageNet", "colour histogram")
#: The setting that says how many labels were learned from.
FRACTION = "fraction"
#: What makes repeats of one row of a table and no row of its own.
REPEATS = ("draw", "run", "seed")
#: The score that verdicts are on.
MAIN = "balanced accuracy"
#: Of a confusion matrix.
OF_CONFUSION: dict[str, Callable[[Array], Array]] = {
    "accuracy": accuracy,
    MAIN: balanced_accuracy,
    "macro-F1": macro_f1,
    "weighted-F1": weighted_f1,
}
OF_TWO: dict[str, Callable[[Array], Array]] = {
    "sensitivity": sensitivity,
    "specificity": specificity,
}
AUCS = {"AUC": "macro", "AUC micro": "micro", "AUC weighted": "weighted"}
PLA, ECE = "patient-level accuracy", "ECE"
MAJORITY, PATCHES = "accuracy (majority vote)", "accuracy of patches"
#: Other names of papers for the same numbers.
ALSO_CALLED = {"ILA": "accuracy", "PLA": PLA}


@dataclass(frozen=True)
class Score:
    """One metric of one row of the table.

    ``mean`` and ``std`` (n - 1 below; NaN of one) are over the ``repeats``: folds,
    draws, runs. ``low`` and ``high`` are a 95 % interval over the patients of all of
    them together, NaN where it cannot be told. ``name`` ends in the class for the F1
    of one.
    """

    candidate: str
    setting: Mapping[str, str | float]
    name: str
    mean: float
    std: float
    low: float
    high: float
    repeats: int


def row_of(trial: Trial) -> tuple[str, tuple[tuple[str, str | float], ...]]:
    """Return what names the row of the table that a trial belongs to."""
    setting = tuple(
        (name, value) for name, value in trial.setting.items() if name not in REPEATS
    )
    return trial.candidate, setting


def rows(evaluation: Evaluation) -> dict[Any, list[Trial]]:
    """Return the trials of each row of the table, in the order they were made."""
    found: dict[Any, list[Trial]] = defaultdict(list)
    for trial in evaluation.trials:
        found[row_of(trial)].append(trial)
    return dict(found)


def trial_scores(evaluation: Evaluation, trial: Trial) -> dict[str, float]:
    """Return the metrics of one trial, by name."""
    data = evaluation.data
    labels = data.labels[trial.tested]
    kinds = len(data.classes)
    predicted = trial.probabilities.argmax(1)
    confusion = confusion_matrix(labels, predicted, num_classes=kinds)
    found: dict[str, Any] = {
        name: metric(confusion) for name, metric in OF_CONFUSION.items()
    }
    if kinds == 2:
        found |= {name: metric(confusion) for name, metric in OF_TWO.items()}
    for name, average in AUCS.items():
        found[name] = auc(labels, trial.probabilities, average=average)
    right = predicted == labels
    found[PLA] = patient_level_accuracy(right, data.patients[trial.tested])
    found[ECE] = reliability(labels, trial.probabilities).ece
    if trial.patch_picture is not None and trial.patch_probabilities is not None:
        place, patches = trial.patch_picture, trial.patch_probabilities
        voted = majority_vote(patches, place, len(labels))
        found[MAJORITY] = np.mean(voted == labels)
        found[PATCHES] = np.mean(patches.argmax(1) == labels[place])
    each = class_f1(confusion)
    for name, value in zip(data.classes.names, each, strict=True):
        found[f"F1 {name}"] = value
    return {name: float(value) for name, value in found.items()}


def scores(evaluation: Evaluation) -> tuple[Score, ...]:
    """Return the whole table: each metric of each candidate in each setting."""
    seed = int(evaluation.facts.get("seed", 0))
    table = []
    for (candidate, setting), trials in rows(evaluation).items():
        each = [trial_scores(evaluation, trial) for trial in trials]
        intervals = _intervals(evaluation, trials, seed)
        for name in each[0]:
            mean, std = mean_and_std([one[name] for one in each])
            low, high = intervals.get(name, (np.nan, np.nan))
            table.append(
                Score(candidate, dict(setting), name, mean, std, low, high, len(trials))
            )
    return tuple(table)


@dataclass(frozen=True, eq=False)
class Pooled:
    """The answers of several trials together, m of them.

    ``labels``, ``predicted`` int (m,); ``probabilities`` (m, K); ``patients`` str (m,);
    ``pictures`` int (m,), rows of the data set.
    """

    labels: Array
    predicted: Array
    probabilities: Array
    patients: Array
    pictures: Array


def pooled(evaluation: Evaluation, trials: Sequence[Trial]) -> Pooled:
    """Put the answers of trials together, such as those of all folds."""
    pictures = np.concatenate([trial.tested for trial in trials])
    probabilities = np.concatenate([trial.probabilities for trial in trials])
    data = evaluation.data
    return Pooled(
        data.labels[pictures],
        probabilities.argmax(1),
        probabilities,
        data.patients[pictures],
        pictures,
    )


def _intervals(
    evaluation: Evaluation, trials: Sequence[Trial], seed: int
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals by metric, drawing patients anew."""
    both = pooled(evaluation, trials)
    kinds = len(evaluation.data.classes)
    of_matrix = OF_CONFUSION | (OF_TWO if kinds == 2 else {})
    found = {
        name: bootstrap_interval(
            both.labels,
            both.predicted,
            groups=both.patients,
            num_classes=kinds,
            metric=metric,
            seed=seed,
        )
        for name, metric in of_matrix.items()
    }
    found["AUC"] = bootstrap_auc(
        both.labels, both.probabilities, groups=both.patients, seed=seed
    )
    right = both.predicted == both.labels
    found[PLA] = bootstrap_mean(patient_scores(right, both.patients), seed=seed)
    return found


@dataclass(frozen=True)
class Comparison:
    """Two candidates on the same pictures, in one setting.

    ``difference`` is of balanced accuracy, ``one`` less ``other``; ``mcnemar_p`` takes
    pictures for independent, ``sign_flip_p`` only patients.
    """

    one: str
    other: str
    setting: Setting
    difference: Difference
    mcnemar_p: float
    sign_flip_p: float


def compare(
    evaluation: Evaluation,
    one: str,
    other: str,
    setting: Setting | None = None,
    other_setting: Setting | None = None,
) -> Comparison:
    """Test two candidates of one evaluation against each other, paired by picture.

    Of several repeats the probabilities of a picture are averaged first.

    Parameters
    ----------
    setting
        Of the row of ``one``.
    other_setting
        Of the row of ``other``; None: the same.

    Raises
    ------
    KeyError
        If a candidate has no trial in that setting.
    """
    setting = dict(setting or {})
    theirs = setting if other_setting is None else other_setting
    answers = [
        _averaged(evaluation, one, setting),
        _averaged(evaluation, other, theirs),
    ]
    shared = np.intersect1d(answers[0][0], answers[1][0])
    predicted = [
        probabilities[np.searchsorted(pictures, shared)].argmax(1)
        for pictures, probabilities in answers
    ]
    data, seed = evaluation.data, int(evaluation.facts.get("seed", 0))
    labels, patients = data.labels[shared], data.patients[shared]
    of_patients = [patient_scores(each == labels, patients) for each in predicted]
    return Comparison(
        one,
        other,
        setting,
        paired_bootstrap(
            labels,
            *predicted,
            groups=patients,
            num_classes=len(data.classes),
            seed=seed,
        ),
        mcnemar(labels, *predicted),
        sign_flip(of_patients[0] - of_patients[1], seed=seed),
    )


def _averaged(
    evaluation: Evaluation, candidate: str, setting: Setting
) -> tuple[Array, Array]:
    """Return the pictures that were tested, ascending, and the answers on them."""
    trials = [
        trial
        for trial in evaluation.trials
        if trial.candidate == candidate and setting.items() <= trial.setting.items()
    ]
    if not trials:
        raise KeyError(candidate)
    both = pooled(evaluation, trials)
    pictures, place = np.unique(both.pictures, return_inverse=True)
    sums = np.zeros((len(pictures), both.probabilities.shape[1]))
    np.add.at(sums, place, both.probabilities)
    return pictures, sums / np.bincount(place)[:, None]


def verdicts(evaluation: Evaluation) -> tuple[str, ...]:
    """Say of each encoder which baselines it does not beat, and what is left open.

    Judged is balanced accuracy; a tie is no win.
    """
    baselines = [
        name for name, kind in kinds_of(evaluation).items() if kind in BASELINES
    ]
    means = {
        (score.candidate, tuple(score.setting.items())): score.mean
        for score in scores_of(evaluation, MAIN)
    }
    told: dict[str, list[str]] = defaultdict(list)
    for (name, setting), mean in means.items():
        if name in baselines or not baselines:
            continue
        unbeaten, open_ = [], []
        for other in baselines:
            tried = [dict(each) for who, each in means if who == other]
            beside = fitting(tried, dict(setting))
            if beside is None:
                continue
            if not mean > means[other, tuple(beside.items())]:
                unbeaten.append(other)
            elif not _is_shown(evaluation, name, other, dict(setting), beside):
                open_.append(other)
        where = words_of(dict(setting))
        if unbeaten:
            told[f"{name} does not beat {' nor '.join(unbeaten)}"].append(where)
        if open_:
            above = f"{name} scores above {' and '.join(open_)}"
            told[f"{above}, but so few patients leave that open"].append(where)
    return tuple(
        f"{sentence}{f' ({_shortly(where)})' if any(where) else ''}."
        for sentence, where in told.items()
    )


def kinds_of(evaluation: Evaluation) -> dict[str, str]:
    """Return what kind of candidate each row is of, by the row's name."""
    told = evaluation.facts.get("candidates", {})
    return {str(one.get("row", name)): str(one["kind"]) for name, one in told.items()}


def unvaried(facts: Mapping[str, Any], setting: Setting) -> dict[str, str | float]:
    """Return what of a setting is not varied by a sweep over encoders."""
    varied = facts.get("varied", ())
    return {name: told for name, told in setting.items() if name not in varied}


def fitting(
    settings: Iterable[dict[str, str | float]], wanted: Setting
) -> dict[str, str | float] | None:
    """Return the setting of a candidate that stands beside a wanted one.

    That is the same, or what it has of it: what was not varied for a baseline stands
    beside all values. None: it was tried in others.
    """
    found = [one for one in settings if one.items() <= wanted.items()]
    return max(found, key=len, default=None)


def _shortly(where: Sequence[str]) -> str:
    """Return the settings of which something is true; of many how many."""
    return "; ".join(where) if len(where) <= SAID else f"in {len(where)} settings"


def _is_shown(
    evaluation: Evaluation, one: str, other: str, setting: Setting, beside: Setting
) -> bool:
    """Tell whether the interval of the difference is all above 0."""
    return compare(evaluation, one, other, setting, beside).difference.low > 0


def scores_of(evaluation: Evaluation, name: str) -> list[Score]:
    """Return one metric of every row, without intervals, which take time."""
    found = []
    for (candidate, setting), trials in rows(evaluation).items():
        each = [trial_scores(evaluation, trial)[name] for trial in trials]
        mean, std = mean_and_std(each)
        found.append(
            Score(
                candidate, dict(setting), name, mean, std, np.nan, np.nan, len(trials)
            )
        )
    return found


# Tables --------------------------------------------------------------------------

#: Metrics of the table for a terminal, by what stands above them.
COLUMNS = {
    MAIN: MAIN,
    "accuracy": "accuracy",
    "macro-F1": "macro-F1",
    "AUC": "AUC",
    "PLA": PLA,
    "ECE": ECE,
}


def lines(evaluation: Evaluation) -> list[str]:
    """Return the table for a terminal: mean ± std, and of the first the interval."""
    by_row: dict[Any, dict[str, Score]] = defaultdict(dict)
    for score in scores(evaluation):
        key = score.candidate, tuple(score.setting.items())
        by_row[key][score.name] = score
    table = [("", *COLUMNS)]
    for (candidate, setting), found in by_row.items():
        name = called(candidate, dict(setting))
        table.append((name, *(_cell(found.get(of)) for of in COLUMNS.values())))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            f"{cell:<{wide}}" for cell, wide in zip(row, widths, strict=True)
        ).rstrip()
        for row in table
    ]


def _cell(score: Score | None) -> str:
    if score is None or np.isnan(score.mean):
        return "-"
    spread = "" if np.isnan(score.std) else f" ± {score.std:.3f}"
    if score.name != MAIN or np.isnan(score.low):
        return f"{score.mean:.3f}{spread}"
    return f"{score.mean:.3f} ({score.low:.2f} to {score.high:.2f})"


def write_tables(folder: Path, evaluation: Evaluation) -> None:
    """Write the tables as CSV: scores, trials, predictions, and paired tests.

    ``scores.csv`` is the table; ``trials.csv`` each fold; ``predictions.csv`` each
    picture of each fold; ``tests.csv`` every encoder against every other candidate.
    """
    names = [name for trial in evaluation.trials for name in trial.setting]
    varied = list(dict.fromkeys(names))
    shown = [name for name in varied if name not in REPEATS]
    numbers = ("mean", "std", "low", "high", "repeats")
    _write(
        folder / "scores.csv",
        ("candidate", *shown, "metric", *numbers),
        (
            (
                score.candidate,
                *(score.setting.get(name, "") for name in shown),
                score.name,
                *(getattr(score, number) for number in numbers),
            )
            for score in scores(evaluation)
        ),
    )
    each = [trial_scores(evaluation, trial) for trial in evaluation.trials]
    metrics = list(dict.fromkeys(name for one in each for name in one))
    _write(
        folder / "trials.csv",
        ("candidate", *varied, "fold", "trained", "tested", *metrics, "chosen"),
        (
            (
                trial.candidate,
                *(trial.setting.get(name, "") for name in varied),
                trial.fold,
                trial.trained,
                len(trial.tested),
                *(found.get(name, "") for name in metrics),
                words_of(trial.chosen),
            )
            for trial, found in zip(evaluation.trials, each, strict=True)
        ),
    )
    _write(
        folder / "predictions.csv",
        (
            *("candidate", *varied, "fold", "picture", "patient", "truth", "predicted"),
            *evaluation.data.classes.names,
        ),
        _predictions(evaluation, varied),
    )
    _write(folder / "tests.csv", TESTS, _tests(evaluation))


TESTS = (
    *("one", "other", "setting", "other setting", "difference", "low", "high", "p"),
    *("mcnemar p", "sign flip p"),
)


def _predictions(evaluation: Evaluation, varied: Sequence[str]) -> Iterator[Row]:
    data = evaluation.data
    for trial in evaluation.trials:
        setting = [trial.setting.get(name, "") for name in varied]
        for row, answer in zip(trial.tested, trial.probabilities, strict=True):
            picture = data.pictures[row]
            yield (
                trial.candidate,
                *setting,
                trial.fold,
                picture.name,
                picture.patient,
                data.classes.names[picture.label],
                data.classes.names[int(answer.argmax())],
                *answer.tolist(),
            )


def _tests(evaluation: Evaluation) -> Iterator[Row]:
    """Yield the paired tests of each encoder against all that come after it.

    The rows of a sweep are tested against each other too.
    """
    kinds, known = kinds_of(evaluation), list(rows(evaluation))
    for number, (one, setting) in enumerate(known):
        if kinds.get(one) in BASELINES:
            continue
        for other, its in known[number + 1 :]:
            fits = set(its) <= set(setting)
            if other == one:
                fixed = [unvaried(evaluation.facts, dict(s)) for s in (setting, its)]
                fits = fixed[0] == fixed[1]
            if not fits:
                continue
            found = compare(evaluation, one, other, dict(setting), dict(its))
            difference = found.difference
            yield (
                one,
                other,
                words_of(dict(setting)),
                words_of(dict(its)),
                difference.value,
                difference.low,
                difference.high,
                difference.p,
                found.mcnemar_p,
                found.sign_flip_p,
            )


def _write(path: Path, head: Sequence[str], table: Iterable[Row]) -> None:
    with write_beside(path) as beside, beside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([_text(value) for value in row] for row in table)


def _text(value: Any) -> Any:
    """Return a number with six digits; what is unknown is empty."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value
