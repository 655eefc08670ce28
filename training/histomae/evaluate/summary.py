"""What the trials of an evaluation amount to: all that a report or a dock shows.

A summary holds numbers and names, no picture and no model; it is kept as JSON, so that
whoever opens it draws the same plots without computing anything anew.
"""

from __future__ import annotations

import math
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
    mean_and_std,
    paired_bootstrap,
    patient_level_accuracy,
    patient_scores,
    reliability,
    sign_flip,
    weighted_f1,
)
from histomae.evaluate.point_maps import PointMap, make_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from histomae.data.classes import ClassSet
    from histomae.data.labelled import LabelledPicture
    from histomae.evaluate.trials import Evaluation, Trial

Array = np.ndarray[Any, Any]
Setting = dict[str, str | float]

#: What is measured of a confusion matrix, in the order of the table.
OF_CONFUSION: dict[str, Callable[[Array], Array]] = {
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
}
PATIENTS, AUC = "patient_accuracy", "auc"
#: What decides who is best.
HEADLINE = "balanced_accuracy"
#: What a figure is called.
WORDS = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    PATIENTS: "Patient accuracy",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    AUC: "AUC",
}
#: Settings that are only repetitions: averaged over, as folds are.
REPEATED = ("draw", "run")
FRACTION = "fraction"
#: What colour alone reaches; a trained encoder that is not above it learned nothing.
COLOUR = "colour"
#: Points of a ROC curve that are kept, and mistakes that are shown.
ROC_POINTS, MOST_MISTAKES = 101, 12
#: A difference of a larger p is not told from chance.
SIGNIFICANT = 0.05
#: With fewer patients an interval over them is too narrow.
FEW_PATIENTS = 10


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure of a candidate.

    ``each`` trial's, their mean and standard deviation (ddof 1; NaN of one trial), and
    a 95 % bootstrap interval over the patients of all tested pictures together (NaN of
    one patient).
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

    ``value`` of the headline figure with a 95 % interval and ``p`` over patients drawn
    anew; ``p_signs``: of the patients' accuracies, by turning signs.
    """

    other: str
    pictures: int
    value: float
    low: float
    high: float
    p: float
    p_signs: float


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
        """All settings, in the order in which they were tried."""
        return _unique(score.setting for score in self.scores)

    @property
    def figure_names(self) -> list[str]:
        """The figures that any score has, in the order of the table."""
        known = {name for score in self.scores for name in score.figures}
        return [name for name in WORDS if name in known]

    def score(self, candidate: str, setting: Setting | None = None) -> Score | None:
        """Return a candidate's score in a setting, by default the main one."""
        wanted = self.main if setting is None else setting
        for score in self.scores:
            if score.candidate == candidate and score.setting == wanted:
                return score
        return None

    def best(self, setting: Setting, figure: str) -> list[str]:
        """Return who has the highest mean of a figure in a setting."""
        means = {
            score.candidate: score.figures[figure].mean
            for score in self.scores
            if score.setting == setting and figure in score.figures
        }
        known = [mean for mean in means.values() if not math.isnan(mean)]
        return [who for who, mean in means.items() if known and mean == max(known)]

    def label_curve(
        self, candidate: str, figure: str = HEADLINE
    ) -> list[tuple[float, Measured]]:
        """Return a figure against the share of labels, rising; all else as in main."""
        rest = {k: v for k, v in self.main.items() if k != FRACTION}
        points = [
            (float(score.setting[FRACTION]), score.figures[figure])
            for score in self.scores
            if score.candidate == candidate
            and FRACTION in score.setting
            and {k: v for k, v in score.setting.items() if k != FRACTION} == rest
        ]
        return sorted(points, key=lambda point: point[0])


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
    scores = tuple(_score(evaluation, trials) for trials in _grouped(evaluation))
    ours = str(evaluation.facts.get("ours", evaluation.trials[0].candidate))
    main = _main_setting(scores, ours)
    versus = tuple(_all_versus(evaluation, ours, main))
    predicted = _predicted(evaluation, ours, main)
    mistakes = _mistakes(evaluation, predicted)
    made = make_maps(evaluation.embedding, maps)
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
        ours=ours,
        main=main,
        scores=scores,
        versus=versus,
        verdict=_verdict(scores, versus, ours, main),
        caveats=_caveats(evaluation, scores, ours, main),
        published=evaluation.published,
        maps=made,
        mistakes=mistakes,
        pictures={row: evaluation.data.pictures[row] for row in shown},
        predicted={row: predicted[row] for row in shown if row in predicted},
    )


def _grouped(evaluation: Evaluation) -> list[list[Trial]]:
    """Return the trials of each candidate in each setting."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in evaluation.trials:
        key = (trial.candidate, *sorted(_setting(trial).items()))
        groups.setdefault(key, []).append(trial)
    return list(groups.values())


def _setting(trial: Trial) -> Setting:
    return {k: v for k, v in trial.setting.items() if k not in REPEATED}


def _score(evaluation: Evaluation, trials: Sequence[Trial]) -> Score:
    data, kinds = evaluation.data, len(evaluation.data.classes)
    rows = np.concatenate([trial.tested for trial in trials])
    probabilities = np.concatenate([trial.probabilities for trial in trials])
    truth, patients = data.labels[rows], data.patients[rows]
    confusion = confusion_matrix(truth, probabilities.argmax(1), num_classes=kinds)
    return Score(
        candidate=trials[0].candidate,
        setting=_setting(trials[0]),
        trials=len(trials),
        trained=float(np.mean([trial.trained for trial in trials])),
        tested=len(np.unique(rows)),
        patients=len(np.unique(patients)),
        figures=_figures(evaluation, trials, truth, probabilities, patients),
        confusion=tuple(tuple(line) for line in confusion.tolist()),
        class_f1=tuple(class_f1(confusion).tolist()),
        calibration=_calibration(truth, probabilities),
        rocs=tuple(_rocs(truth, probabilities)),
    )


def _figures(
    evaluation: Evaluation,
    trials: Sequence[Trial],
    truth: Array,
    probabilities: Array,
    patients: Array,
) -> dict[str, Measured]:
    """Return every figure; truth (M,) and probabilities (M, K) of the trials joined."""
    data, seed = evaluation.data, _seed(evaluation)
    kinds, labels = len(data.classes), data.labels
    taken = probabilities.argmax(1)
    confusions = [
        confusion_matrix(labels[t.tested], t.probabilities.argmax(1), num_classes=kinds)
        for t in trials
    ]
    figures = {
        name: _measured(
            [metric(confusion) for confusion in confusions],
            bootstrap_interval(
                truth,
                taken,
                groups=patients,
                num_classes=kinds,
                metric=metric,
                seed=seed,
            ),
        )
        for name, metric in OF_CONFUSION.items()
    }
    right = [t.probabilities.argmax(1) == labels[t.tested] for t in trials]
    figures[PATIENTS] = _measured(
        [
            patient_level_accuracy(found, data.patients[trial.tested])
            for found, trial in zip(right, trials, strict=True)
        ],
        bootstrap_mean(patient_scores(taken == truth, patients), seed=seed),
    )
    figures[AUC] = _measured(
        [auc(labels[t.tested], t.probabilities) for t in trials],
        bootstrap_auc(truth, probabilities, groups=patients, seed=seed),
    )
    return figures


def _seed(evaluation: Evaluation) -> int:
    """Return the seed of whatever is drawn."""
    return int(evaluation.facts.get("seed", 0))


def _measured(each: Sequence[Any], interval: tuple[float, float]) -> Measured:
    values = tuple(float(value) for value in each)
    mean, std = mean_and_std(values)
    return Measured(each=values, mean=mean, std=std, low=interval[0], high=interval[1])


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


def _all_versus(evaluation: Evaluation, ours: str, main: Setting) -> Iterable[Versus]:
    """Compare ours with each other candidate, trial by trial."""
    trials: dict[str, dict[Any, Trial]] = {}
    for trial in evaluation.trials:
        if _setting(trial) == main:
            which = (trial.fold, *sorted(trial.setting.items()))
            trials.setdefault(trial.candidate, {})[which] = trial
    mine = trials.pop(ours)
    for other, theirs in trials.items():
        pairs = [
            (mine[which], theirs[which])
            for which in mine
            if which in theirs
            and np.array_equal(mine[which].tested, theirs[which].tested)
        ]
        if pairs:
            yield _versus(evaluation, other, pairs)


def _versus(
    evaluation: Evaluation, other: str, pairs: Sequence[tuple[Trial, Trial]]
) -> Versus:
    data, seed = evaluation.data, _seed(evaluation)
    rows = np.concatenate([one.tested for one, _ in pairs])
    one, two = (
        np.concatenate([pair[side].probabilities for pair in pairs]).argmax(1)
        for side in (0, 1)
    )
    truth, patients = data.labels[rows], data.patients[rows]
    found = paired_bootstrap(
        truth,
        one,
        two,
        groups=patients,
        num_classes=len(data.classes),
        metric=OF_CONFUSION[HEADLINE],
        seed=seed,
    )
    apart = np.subtract(*(patient_scores(x == truth, patients) for x in (one, two)))
    return Versus(
        other=other,
        pictures=len(np.unique(rows)),
        value=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        p_signs=sign_flip(apart, seed=seed),
    )


def _main_setting(scores: Sequence[Score], ours: str) -> Setting:
    """Return the first setting of ours, of those with the most labels."""
    mine = [score.setting for score in scores if score.candidate == ours]
    most = max(float(setting.get(FRACTION, 1.0)) for setting in mine)
    return next(s for s in mine if float(s.get(FRACTION, 1.0)) == most)


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
    scores: Sequence[Score], versus: Sequence[Versus], ours: str, main: Setting
) -> tuple[str, ...]:
    """Return what ours reached, and beside each other candidate; a tie is no win."""
    there = {s.candidate: s.figures[HEADLINE] for s in scores if s.setting == main}
    mine, tests = there.pop(ours), {one.other: one for one in versus}
    said = [f"{ours} reaches a balanced accuracy of {mine.mean:.3f}{_spread(mine)}."]
    for other, theirs in there.items():
        beats = mine.mean > theirs.mean
        verb = "beats" if beats else "does not beat"
        said.append(f"It {verb} {other} ({theirs.mean:.3f}){_doubt(tests.get(other))}.")
        if not beats and other == COLOUR:
            said.append(
                "What it knows of the tissue is worth no more here than a histogram "
                "of the colours: train longer, or on more slides."
            )
    if not there:
        said.append("Nothing was examined beside it: without a baseline, no verdict.")
    return tuple(said)


def _doubt(test: Versus | None) -> str:
    """Return what a test says of a difference between two candidates."""
    if test is None or math.isnan(test.p):
        return "; no test could be made"
    sure = "" if test.p < SIGNIFICANT else ", which chance alone may explain"
    return f"; p = {test.p:.2g} over patients{sure}"


def _spread(figure: Measured) -> str:
    if math.isnan(figure.low):
        return ""
    return f" (95 % interval over patients {figure.low:.3f} to {figure.high:.3f})"


def _caveats(
    evaluation: Evaluation, scores: Sequence[Score], ours: str, main: Setting
) -> tuple[str, ...]:
    """Return the sentences of the evaluation and its data, and what the counts say."""
    score = next(s for s in scores if s.candidate == ours and s.setting == main)
    data = evaluation.data
    tested = np.sum(score.confusion, 1)
    said = [*evaluation.notes, *data.notes]
    if score.patients < FEW_PATIENTS:
        said.append(
            f"Only {score.patients} patients were tested on: the intervals are too "
            "narrow, and another few patients may give other numbers."
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


def _unique(settings: Iterable[Setting]) -> list[Setting]:
    kept: list[Setting] = []
    for setting in settings:
        if setting not in kept:
            kept.append(setting)
    return kept
