"""What the trials of an evaluation amount to: all that a report or a dock shows.

A summary holds numbers and names, no picture and no model; it is kept as JSON, so that
whoever opens it draws the same plots without computing anything anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.metrics import class_f1, confusion_matrix, reliability
from histomae.evaluate.point_maps import PointMap, make_maps
from histomae.evaluate.scores import (
    BASELINES,
    ECE,
    FRACTION,
    MAIN,
    PLA,
    REPEATS,
    compare,
    fitting,
    kinds_of,
    pooled,
    rows,
    scores,
    trial_scores,
    unvaried,
)
from histomae.evaluate.trials import called

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from histomae.data.classes import ClassSet
    from histomae.data.labelled import LabelledPicture
    from histomae.evaluate.trials import Evaluation, Trial

Array = np.ndarray[Any, Any]
Setting = dict[str, str | float]

#: What stands first in tables, and on cards.
FIGURES = (MAIN, "accuracy", PLA, "macro-F1", "weighted-F1", "AUC", ECE)
#: Where less is better.
LESS_IS_BETTER = (ECE,)
#: What colour alone reaches; a trained encoder that is not above it learned nothing.
COLOUR = BASELINES[-1]
#: Points of a ROC curve that are kept, and mistakes that are shown.
ROC_POINTS, MOST_MISTAKES = 101, 12
#: A difference of a larger p is not told from chance.
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure of a candidate: ``each`` trial's, and what they are together.

    See :class:`histomae.evaluate.scores.Score`.
    """

    each: tuple[float, ...]
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Roc:
    """One class against the rest: rates 0 to 1, rising, and the area under them."""

    label: int
    false_positive: tuple[float, ...]
    true_positive: tuple[float, ...]
    area: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities can be trusted, in B bins of equal width from 0 to 1.

    ``count`` (B,) predictions in each; ``confidence`` and ``accuracy`` (B,), their
    means, NaN where there is none; ``ece``, the expected calibration error.
    """

    count: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    ece: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """One candidate in one setting: its trials together; K classes.

    ``confusion`` (K, K), rows true, columns predicted, of every tested picture as often
    as it was tested.
    """

    candidate: str
    setting: Setting
    trials: int
    trained: float
    """Pictures trained on, the mean over trials."""
    tested: int
    """Pictures, each counted once."""
    patients: int
    """Of the tested pictures."""
    figures: Mapping[str, Measured]
    confusion: tuple[tuple[int, ...], ...]
    class_f1: tuple[float, ...]
    """(K,); NaN of a class that is neither there nor predicted."""
    rocs: tuple[Roc, ...]
    """Of the classes that are there, and not alone."""
    calibration: Calibration

    @property
    def words(self) -> str:
        """The setting as a person says it."""
        return setting_words(self.setting)


@dataclass(frozen=True, kw_only=True)
class Versus:
    """By how much ours scores above another, on the same pictures in the main setting.

    ``value`` of balanced accuracy with a 95 % interval and ``p`` over patients drawn
    anew; ``sign_flip_p`` and ``mcnemar_p`` as in
    :class:`histomae.evaluate.scores.Comparison`.
    """

    other: str
    value: float
    low: float
    high: float
    p: float
    sign_flip_p: float
    mcnemar_p: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure of a candidate against a setting.

    ``points`` are values, rising, and the figure at each; ``level`` is the figure of
    one that knows nothing of the setting. ``setting`` sets it apart from others of its
    candidate.
    """

    candidate: str
    setting: Setting
    points: tuple[tuple[str | float, Measured], ...]
    level: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A picture that was taken for another class: its row, for what, how surely."""

    row: int
    predicted: int
    probability: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary:
    """An evaluation in numbers; see :class:`~histomae.evaluate.trials.Evaluation`."""

    protocol: str
    data_name: str
    root: Path
    classes: ClassSet
    total: int
    """Pictures of the data set."""
    facts: Mapping[str, Any]
    leaks: tuple[str, ...] | None
    """None: not looked for; empty: none found."""
    looked_for: tuple[str, ...]
    """Among what, and"""
    not_looked_for: tuple[str, ...]
    """among what not."""
    ours: str
    """The candidate that the report is about."""
    main: Setting
    """The setting that confusions, curves and mistakes are of."""
    scores: tuple[Score, ...]
    versus: tuple[Versus, ...]
    verdict: tuple[str, ...]
    """Sentences: what ours reached, and whether it beats each baseline."""
    caveats: tuple[str, ...]
    """Sentences: what the numbers do not show."""
    published: tuple[Mapping[str, Any], ...]
    maps: tuple[PointMap, ...]
    mistakes: tuple[Mistake, ...]
    """Of ours in the main setting, the surest first."""
    pictures: Mapping[int, LabelledPicture]
    """Those of the maps and the mistakes, by row of the data set."""
    predicted: Mapping[int, tuple[int, float]]
    """What ours took them for in the main setting, and how surely, where tested."""

    @property
    def candidates(self) -> list[str]:
        """All candidates, ours first."""
        others = [s.candidate for s in self.scores if s.candidate != self.ours]
        return [self.ours, *dict.fromkeys(others)]

    @property
    def settings(self) -> list[Setting]:
        """All settings of ours, in the order in which they were tried."""
        return [score.setting for score in self.scores if score.candidate == self.ours]

    @property
    def figure_names(self) -> list[str]:
        """The figures that any score has, in the order of the table."""
        known = dict.fromkeys(name for s in self.scores for name in s.figures)
        return [*FIGURES, *(name for name in known if name not in FIGURES)]

    @property
    def varied(self) -> tuple[str, ...]:
        """Settings of the pretraining that a sweep varied."""
        return tuple(self.facts.get("varied", ()))

    def score(self, candidate: str, setting: Setting | None = None) -> Score | None:
        """Return a candidate's score in a setting, by default the main one.

        What was not varied for a baseline stands beside all values.
        """
        mine = [score for score in self.scores if score.candidate == candidate]
        wanted = self.main if setting is None else setting
        there = fitting([score.setting for score in mine], wanted)
        return next((score for score in mine if score.setting == there), None)

    def best(self, setting: Setting, figure: str) -> list[str]:
        """Return who has the best mean of a figure in a setting."""
        found = (self.score(who, setting) for who in self.candidates)
        shown = [score for score in found if score is not None]
        return [score.candidate for score in best_of(shown, figure)]

    def tables(self) -> list[tuple[Setting, list[Score]]]:
        """Return the scores that stand together: all values of a sweep in one table."""
        tables: list[tuple[Setting, list[Score]]] = []
        for setting in self.settings:
            fixed = unvaried(self.facts, setting)
            if fixed in [known for known, _ in tables]:
                continue
            rows: list[Score] = []
            for who in self.candidates:
                mine = [score for score in self.scores if score.candidate == who]
                those = [unvaried(self.facts, score.setting) for score in mine]
                there = fitting(those, fixed)
                pairs = zip(mine, those, strict=True)
                rows += [score for score, its in pairs if its == there]
            tables.append((fixed, rows))
        return tables

    @property
    def along(self) -> list[str]:
        """Settings that figures are drawn against: those of ours with two values."""
        names = (FRACTION, *self._by_values()[:1])
        return [name for name in names if len(self.values(name)) > 1]

    def values(self, name: str) -> list[str | float]:
        """Return the values of a setting that ours was tried in, rising."""
        found = [s[name] for s in self.settings if name in s]
        numbers = all(isinstance(value, int | float) for value in found)
        known = list(dict.fromkeys(found))
        return sorted(known, key=float) if numbers else known

    def _by_values(self) -> list[str]:
        """Return what was varied, that with the most values first."""
        return sorted(self.varied, key=lambda name: -len(self.values(name)))

    def curves(self, along: str, figure: str = MAIN) -> list[Curve]:
        """Return a figure of each candidate against a setting, all else as in main.

        Of a sweep of two settings ours has a curve for each value of the other.
        """
        split = [name for name in self.varied if name != along]
        rest = {k: v for k, v in self.main.items() if k not in (along, *split)}
        found: dict[Any, dict[str | float | None, Measured]] = {}
        for score in self.scores:
            setting = score.setting
            fixed = {k: v for k, v in setting.items() if k not in (along, *split)}
            if figure in score.figures and fixed.items() <= rest.items():
                beside = {k: v for k, v in setting.items() if k in split}
                key = score.candidate, tuple(beside.items())
                value = setting.get(along)
                found.setdefault(key, {})[value] = score.figures[figure]
        return [
            Curve(
                candidate=who,
                setting=dict(beside),
                points=tuple(
                    (value, points[value])
                    for value in self.values(along)
                    if value in points
                ),
                level=points.get(None),
            )
            for (who, beside), points in found.items()
        ]


def best_of(shown: Sequence[Score], figure: str) -> list[Score]:
    """Return which scores have the best mean of a figure."""
    sign = -1 if figure in LESS_IS_BETTER else 1
    known = [
        (score, sign * score.figures[figure].mean)
        for score in shown
        if figure in score.figures and not math.isnan(score.figures[figure].mean)
    ]
    best = max((mean for _, mean in known), default=math.nan)
    return [score for score, mean in known if mean == best]


# ---- summing up


def summarise(evaluation: Evaluation, *, maps: Sequence[str] = ()) -> Summary:
    """Sum up an evaluation.

    Parameters
    ----------
    maps
        How features are laid out; see :data:`~histomae.evaluate.point_maps.METHODS`.

    Raises
    ------
    ValueError
        If the evaluation has no trial.
    DependencyError
        If a map needs a library that is not installed.
    """
    if not evaluation.trials:
        raise ValueError("The evaluation has no trial. Run it first.")
    found = tuple(_scores(evaluation))
    ours = _ours(evaluation)
    main = _main_setting(evaluation, found, ours)
    versus = tuple(_all_versus(evaluation, found, ours, main))
    predicted = _predicted(evaluation, ours, main)
    mistakes = _mistakes(evaluation, predicted)
    made = make_maps(_features(evaluation, found, main), maps)
    shown = sorted(
        {mistake.row for mistake in mistakes}
        | {row for one in made for row in one.rows.tolist()}
    )
    return Summary(
        protocol=evaluation.protocol,
        data_name=evaluation.data.name,
        root=evaluation.data.root,
        classes=evaluation.data.classes,
        total=len(evaluation.data),
        facts=evaluation.facts,
        leaks=evaluation.leaks,
        looked_for=evaluation.looked_for,
        not_looked_for=evaluation.not_looked_for,
        ours=ours,
        main=main,
        scores=found,
        versus=tuple(test for test, _ in versus),
        verdict=_verdict(evaluation, found, versus, ours, main),
        caveats=_caveats(evaluation, found, ours, main),
        published=evaluation.published,
        maps=made,
        mistakes=mistakes,
        pictures={row: evaluation.data.pictures[row] for row in shown},
        predicted={row: predicted[row] for row in shown if row in predicted},
    )


def _features(
    evaluation: Evaluation, found: Sequence[Score], main: Setting
) -> dict[str, Array]:
    """Return the features of each candidate; of a sweep those of the main setting."""
    features = {}
    for who in dict.fromkeys(score.candidate for score in found):
        tried = [score.setting for score in found if score.candidate == who]
        there = fitting(tried, main) or {}
        fixed = unvaried(evaluation.facts, there)
        label = called(who, {k: v for k, v in there.items() if k not in fixed})
        if label in evaluation.embedding:
            features[who] = evaluation.embedding[label]
    return features


def _ours(evaluation: Evaluation) -> str:
    """Return the first candidate that is no baseline."""
    kinds = kinds_of(evaluation)
    known = dict.fromkeys(trial.candidate for trial in evaluation.trials)
    trained = [name for name in known if kinds.get(name) not in BASELINES]
    return next(iter([*trained, *known]))


def _scores(evaluation: Evaluation) -> Iterable[Score]:
    """Return the score of each row of the table."""
    table = scores(evaluation)
    for (candidate, setting), trials in rows(evaluation).items():
        each = [trial_scores(evaluation, trial) for trial in trials]
        figures = {
            one.name: Measured(
                each=tuple(found[one.name] for found in each),
                mean=one.mean,
                std=one.std,
                low=one.low,
                high=one.high,
            )
            for one in table
            if one.candidate == candidate and one.setting == dict(setting)
        }
        yield _score(evaluation, candidate, dict(setting), trials, figures)


def _score(
    evaluation: Evaluation,
    candidate: str,
    setting: Setting,
    trials: Sequence[Trial],
    figures: Mapping[str, Measured],
) -> Score:
    both = pooled(evaluation, trials)
    kinds = len(evaluation.data.classes)
    confusion = confusion_matrix(both.labels, both.predicted, num_classes=kinds)
    return Score(
        candidate=candidate,
        setting=setting,
        trials=len(trials),
        trained=float(np.mean([trial.trained for trial in trials])),
        tested=len(np.unique(both.pictures)),
        patients=len(np.unique(both.patients)),
        # The F1 of each class has a place of its own.
        figures={k: v for k, v in figures.items() if not k.startswith("F1 ")},
        confusion=tuple(tuple(line) for line in confusion.tolist()),
        class_f1=tuple(class_f1(confusion).tolist()),
        rocs=tuple(_rocs(both.labels, both.probabilities)),
        calibration=_calibration(both.labels, both.probabilities),
    )


def _setting(trial: Trial) -> Setting:
    return {k: v for k, v in trial.setting.items() if k not in REPEATS}


def _calibration(truth: Array, probabilities: Array) -> Calibration:
    found = reliability(truth, probabilities)
    return Calibration(
        count=tuple(found.count.tolist()),
        confidence=tuple(found.confidence.tolist()),
        accuracy=tuple(found.accuracy.tolist()),
        ece=found.ece,
    )


def _rocs(truth: Array, probabilities: Array) -> Iterable[Roc]:
    from sklearn.metrics import roc_curve

    for label in range(probabilities.shape[1]):
        positive = truth == label
        if not positive.any() or positive.all():
            continue
        false, true, _ = roc_curve(positive, probabilities[:, label])
        area = float(np.trapezoid(true, false))
        if len(false) > ROC_POINTS:
            kept = np.unique(np.linspace(0, len(false) - 1, ROC_POINTS).astype(int))
            false, true = false[kept], true[kept]
        yield Roc(
            label=label,
            false_positive=tuple(false.tolist()),
            true_positive=tuple(true.tolist()),
            area=area,
        )


def _all_versus(
    evaluation: Evaluation, found: Sequence[Score], ours: str, main: Setting
) -> Iterable[tuple[Versus, Score]]:
    """Compare ours with each other candidate on the pictures that both were tested on.

    A baseline that knows nothing of a sweep is compared as it is; of a sweep ours is
    compared with its other values too.
    """
    fixed = unvaried(evaluation.facts, main)
    for score in found:
        its = score.setting
        if score.candidate == ours:
            if its == main or unvaried(evaluation.facts, its) != fixed:
                continue
            apart = {k: v for k, v in its.items() if k not in fixed}
            told = f"{ours}, {setting_words(apart)}"
        else:
            tried = [s.setting for s in found if s.candidate == score.candidate]
            if fitting(tried, main) != its:
                continue
            told = score.candidate
        test = compare(evaluation, ours, score.candidate, main, its)
        versus = Versus(
            other=told,
            value=test.difference.value,
            low=test.difference.low,
            high=test.difference.high,
            p=test.difference.p,
            sign_flip_p=test.sign_flip_p,
            mcnemar_p=test.mcnemar_p,
        )
        yield versus, score


def _main_setting(evaluation: Evaluation, found: Sequence[Score], ours: str) -> Setting:
    """Return the first setting of ours, of those with the most labels.

    Of a sweep it is the value that does best.
    """
    mine = [score for score in found if score.candidate == ours]
    most = max(float(score.setting.get(FRACTION, 1.0)) for score in mine)
    full = [s for s in mine if float(s.setting.get(FRACTION, 1.0)) == most]
    fixed = unvaried(evaluation.facts, full[0].setting)
    swept = [s for s in full if unvaried(evaluation.facts, s.setting) == fixed]
    return (best_of(swept, MAIN) or full)[0].setting


def _predicted(
    evaluation: Evaluation, ours: str, main: Setting
) -> dict[int, tuple[int, float]]:
    """Return what ours took each tested picture for: the mean over its trials."""
    total = np.zeros((len(evaluation.data), len(evaluation.data.classes)))
    times = np.zeros(len(evaluation.data))
    for trial in evaluation.trials:
        if trial.candidate == ours and _setting(trial) == main:
            np.add.at(total, trial.tested, trial.probabilities)
            np.add.at(times, trial.tested, 1)
    tested = np.flatnonzero(times)
    mean = total[tested] / times[tested, None]
    best, surest = mean.argmax(1).tolist(), mean.max(1).tolist()
    return dict(zip(tested.tolist(), zip(best, surest, strict=True), strict=True))


def _mistakes(
    evaluation: Evaluation, predicted: Mapping[int, tuple[int, float]]
) -> tuple[Mistake, ...]:
    labels = evaluation.data.labels
    wrong = [
        Mistake(row=row, predicted=label, probability=probability)
        for row, (label, probability) in predicted.items()
        if label != labels[row]
    ]
    return tuple(sorted(wrong, key=lambda one: -one.probability)[:MOST_MISTAKES])


# ---- in words


def setting_words(setting: Mapping[str, str | float]) -> str:
    """Return a setting as a person says it: ``linear · 20 % of the labels``."""
    return " · ".join(_said(*item) for item in setting.items()) or "as it is"


def _said(name: str, value: str | float) -> str:
    if name == FRACTION:
        return f"{100 * float(value):g} % of the labels"
    if isinstance(value, str):
        return value
    return f"{name.replace('_', ' ')} {value:g}"


def _verdict(
    evaluation: Evaluation,
    found: Sequence[Score],
    versus: Sequence[tuple[Versus, Score]],
    ours: str,
    main: Setting,
) -> tuple[str, ...]:
    """Return what ours reached, and beside each other candidate; a tie is no win."""
    kinds = kinds_of(evaluation)
    mine = next(
        score.figures[MAIN]
        for score in found
        if (score.candidate, score.setting) == (ours, main)
    )
    said = [f"{ours} reaches a balanced accuracy of {mine.mean:.3f}{_spread(mine)}."]
    swept = [each for each in versus if each[1].candidate == ours]
    if swept:
        said[0] += f" {_of_a_sweep(evaluation, swept, main)}"
    for test, score in versus:
        if score.candidate == ours:
            continue
        theirs = score.figures[MAIN]
        beats = mine.mean > theirs.mean
        said.append(_beside(test, theirs, beats=beats))
        if not beats and kinds.get(test.other) == COLOUR:
            said.append(
                "What it knows of the tissue is worth no more here than a histogram "
                "of the colours: train longer, or on more slides."
            )
    if len(swept) == len(versus):
        said.append("Nothing was examined beside it: without a baseline, no verdict.")
    return tuple(said)


def _of_a_sweep(
    evaluation: Evaluation, others: Sequence[tuple[Versus, Score]], main: Setting
) -> str:
    """Return how the value that does best stands to the one that comes next."""
    fixed = unvaried(evaluation.facts, main)
    best = setting_words({k: v for k, v in main.items() if k not in fixed})
    test, score = max(others, key=lambda each: each[1].figures[MAIN].mean)
    its = {k: v for k, v in score.setting.items() if k not in fixed}
    shown = not math.isnan(test.p) and test.p < SIGNIFICANT
    return (
        f"Of {len(others) + 1} values it does best with {best}; next comes "
        f"{setting_words(its)} ({score.figures[MAIN].mean:.3f}"
        f"{'' if math.isnan(test.p) else f'; p = {test.p:.2g} over patients'})"
        f"{'.' if shown else ', which chance alone may explain.'}"
    )


def _beside(test: Versus, theirs: Measured, *, beats: bool) -> str:
    """Return how ours stands to another candidate, and how sure that is."""
    known = not math.isnan(test.p)
    p = f"p = {test.p:.2g} over patients" if known else "no test could be made"
    if not beats:
        return f"It does not beat {test.other} ({theirs.mean:.3f}; {p})."
    if known and test.p < SIGNIFICANT:
        return f"It beats {test.other} ({theirs.mean:.3f}; {p})."
    return (
        f"It scores above {test.other} ({theirs.mean:.3f}), but chance alone may "
        f"explain that ({p})."
    )


def _spread(figure: Measured) -> str:
    if math.isnan(figure.low):
        return ""
    return f" (95 % interval over patients {figure.low:.3f} to {figure.high:.3f})"


def _caveats(
    evaluation: Evaluation, found: Sequence[Score], ours: str, main: Setting
) -> tuple[str, ...]:
    """Return the sentences of the evaluation and its data, and what the counts say."""
    score = next(s for s in found if s.candidate == ours and s.setting == main)
    data, tested = evaluation.data, np.sum(score.confusion, 1)
    said = [*evaluation.notes, *data.notes]
    if any(name in main for name in evaluation.facts.get("varied", ())):
        said.append(
            "Which value does best was judged by the pictures tested on: its score is "
            "a little too good. Confirm it on other pictures."
        )
    lacking = [
        n for n, many in zip(data.classes.names, tested, strict=True) if not many
    ]
    if lacking:
        said.append(f"No picture of {', '.join(lacking)} was tested on.")
    if not any(picture.slide for picture in data.pictures):
        said.append(
            "The data set does not tell which slide a picture is from: whether slides "
            "look different for other reasons than their classes cannot be seen."
        )
    if any(picture.mpp is None for picture in data.pictures):
        said.append("The pixel size of some pictures is unknown.")
    said.append(
        f"All pictures are from {data.name} and were chosen by people: the numbers "
        "say nothing of other scanners and stains, nor of places that nobody chose."
    )
    return tuple(dict.fromkeys(said))
