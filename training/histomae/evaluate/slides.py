"""Whether a slide's class shows in its tiles, and whether PAMA earns its keep.

Classifiers of whole slides are fitted to some patients and judged on others, side by
side: PAMA, frozen and fine-tuned, beside two that know no places, the mean of the tiles
and attention MIL. On a small cohort these are hard to beat.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import softmax

from histomae.data.bags import check_alike
from histomae.data.metrics import (
    accuracy,
    auc,
    bootstrap_auc,
    bootstrap_interval,
    confusion_matrix,
    macro_f1,
)
from histomae.data.splits import check_no_leak, grouped_folds
from histomae.errors import NotEnoughDataError
from histomae.events import Note, Progress
from histomae.infer.slides import classify_slides, embed_slides, mean_of_tiles
from histomae.learn.probe import fit_linear
from histomae.learn.slide_classes import SlideFit, fit_slides
from histomae.models.slide_classifier import AttentionMil, SlideClassifier

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

    from histomae.data.bags import Bag
    from histomae.data.slide_labels import SlideLabels
    from histomae.events import Event
    from histomae.models.pama import PamaEncoder

Array = np.ndarray[Any, Any]

MEAN, MIL = "mean of tiles", "attention MIL"
CLASS_TOKEN, ANCHORS = "PAMA, class token", "PAMA, anchors"
FINE_TUNED = "PAMA, fine-tuned"
#: Attention MIL is small and begins from nothing.
MIL_LR = 2e-2


@dataclass(frozen=True, eq=False)
class Sides:
    """Slides to learn from, and slides to be judged on.

    ``labels`` and ``groups`` int (N,) are of the slides to learn from: their classes, 0
    to ``num_classes - 1``, and patients.
    """

    train: tuple[Bag, ...]
    labels: Array
    groups: Array
    test: tuple[Bag, ...]
    num_classes: int
    seed: int = 0


if TYPE_CHECKING:
    #: Learns from one side; returns probabilities (M, K) for the other.
    Classifier = Callable[[Sides], Generator[Event, None, Array]]


@dataclass(frozen=True, eq=False)
class Measure:
    """A score with its 95 % interval over patients; NaN where it cannot be told."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, eq=False)
class SlideScore:
    """How good predictions of whole slides are.

    ``auc`` is one class against the rest, averaged; ``confusion`` int (K, K) has true
    classes in rows, predicted ones in columns.
    """

    accuracy: Measure
    macro_f1: Measure
    auc: Measure
    confusion: Array
    bags: int
    slides: int
    patients: int


def score_slides(
    labels: Array,
    probabilities: Array,
    groups: Array,
    *,
    slides: Sequence[str] | None = None,
    seed: int = 0,
) -> SlideScore:
    """Score predictions.

    Parameters
    ----------
    labels, groups
        int (M,): class and patient of each bag.
    probabilities
        float (M, K).
    slides
        The slide of each bag; None: each is one.
    """
    kinds, predicted = probabilities.shape[1], probabilities.argmax(1)
    confusion = confusion_matrix(labels, predicted, num_classes=kinds)
    interval = partial(
        bootstrap_interval,
        labels,
        predicted,
        groups=groups,
        num_classes=kinds,
        seed=seed,
    )
    return SlideScore(
        Measure(float(accuracy(confusion)), *interval(metric=accuracy)),
        Measure(float(macro_f1(confusion)), *interval(metric=macro_f1)),
        Measure(
            float(auc(labels, probabilities)),
            *bootstrap_auc(labels, probabilities, groups=groups, seed=seed),
        ),
        confusion,
        len(labels),
        len(labels) if slides is None else len(set(slides)),
        len(np.unique(groups)),
    )


# The classifiers -----------------------------------------------------------------


def by_mean(sides: Sides) -> Generator[Event, None, Array]:
    """Logistic regression on the mean of a slide's tiles."""
    return (
        yield from _linear(sides, mean_of_tiles(sides.train), mean_of_tiles(sides.test))
    )


def by_frozen(
    pama: PamaEncoder, pooling: str, sides: Sides
) -> Generator[Event, None, Array]:
    """Logistic regression on PAMA's vectors of slides; PAMA stays as it is."""
    train = yield from embed_slides(pama, sides.train, pooling=pooling)
    test = yield from embed_slides(pama, sides.test, pooling=pooling)
    return (yield from _linear(sides, train, test))


def _linear(sides: Sides, train: Array, test: Array) -> Generator[Event, None, Array]:
    fit = yield from fit_linear(
        train.astype(float),
        sides.labels,
        groups=sides.groups,
        num_classes=sides.num_classes,
        seed=sides.seed,
    )
    return np.asarray(softmax(fit.logits(test), axis=1))


def by_mil(settings: SlideFit, sides: Sides) -> Generator[Event, None, Array]:
    """Attention MIL, from random weights."""
    model = AttentionMil(
        sides.train[0].spec.width,
        sides.num_classes,
        generator=torch.Generator().manual_seed(sides.seed),
    )
    settings = replace(settings, base_lr=MIL_LR)
    return (yield from _fitted(model, settings, sides))


def by_fine_tuning(
    pama: PamaEncoder, settings: SlideFit, sides: Sides
) -> Generator[Event, None, Array]:
    """PAMA's encoder and a head, all weights trained on; ``pama`` stays as it is."""
    model = SlideClassifier(
        copy.deepcopy(pama),
        sides.num_classes,
        generator=torch.Generator().manual_seed(sides.seed),
    )
    return (yield from _fitted(model, settings, sides))


def _fitted(
    model: SlideClassifier | AttentionMil, settings: SlideFit, sides: Sides
) -> Generator[Event, None, Array]:
    settings = replace(settings, seed=sides.seed)
    yield from fit_slides(model, sides.train, sides.labels, settings)
    return (yield from classify_slides(model, sides.test))


def classifiers(
    pama: PamaEncoder | None = None, settings: SlideFit | None = None
) -> dict[str, Classifier]:
    """Return the classifiers by name; without ``pama`` those that need none."""
    settings = settings or SlideFit()
    found: dict[str, Classifier] = {MEAN: by_mean, MIL: partial(by_mil, settings)}
    if pama is not None:
        found[CLASS_TOKEN] = partial(by_frozen, pama, "class_token")
        found[ANCHORS] = partial(by_frozen, pama, "anchors")
        found[FINE_TUNED] = partial(by_fine_tuning, pama, settings)
    return found


# Judging ----------------------------------------------------------------------------


def judge_slides(
    bags: Mapping[str, Bag],
    labels: SlideLabels,
    compared: Mapping[str, Classifier],
    *,
    folds: int = 5,
    seed: int = 0,
    pretrained_on: Collection[str] = (),
) -> Generator[Event, None, dict[str, SlideScore]]:
    """Judge classifiers on slides of patients that they did not learn from.

    By the table's own split, if it gives one, or by folds in which all slides of a
    patient stand on one side; each slide is then judged once.

    Parameters
    ----------
    bags
        By their names; labelled slides without a bag are left out. Regions of a slide
        are bags of their own, and of one patient.
    compared
        From :func:`classifiers`.
    pretrained_on
        Names of the slides that PAMA was pretrained on.

    Returns
    -------
    The score of each classifier.

    Raises
    ------
    NotEnoughDataError
        If fewer than two classes have slides of two patients, or the split leaves one
        out.
    FeatureError
        If the bags must not be mixed.
    LabelError
        If a patient is on both sides.
    """
    labels = labels.among(bags.values())
    for note in labels.notes:
        yield Note(note)
    rows = [bags[name] for name in labels.slides]
    check_alike(rows)
    splits = _splits(labels, folds=folds, seed=seed)
    tested = np.sort(np.concatenate([test for _, test in splits]))
    if note := _seen_before([rows[i].slide for i in tested], pretrained_on):
        yield Note(note)
    if labels.is_test is None and len(tested) < len(labels):
        yield Note(
            f"{len(labels) - len(tested)} bags are of classes with one patient only: "
            "they are learned from, and cannot be judged."
        )
    found = {name: np.full((len(rows), _kinds(labels)), np.nan) for name in compared}
    for fold, (train, test) in enumerate(splits):
        check_no_leak(*(np.array(labels.patients)[side] for side in (train, test)))
        sides = Sides(
            tuple(rows[i] for i in train),
            labels.labels[train],
            labels.groups[train],
            tuple(rows[i] for i in test),
            _kinds(labels),
            seed,
        )
        for done, (name, classifier) in enumerate(compared.items()):
            so_far, total = (len(compared) * n for n in (fold, len(splits)))
            yield Progress("judging classifiers", so_far + done, total)
            found[name][test] = yield from classifier(sides)
    return {
        name: score_slides(
            labels.labels[tested],
            each[tested],
            labels.groups[tested],
            slides=[rows[i].slide for i in tested],
            seed=seed,
        )
        for name, each in found.items()
    }


def _kinds(labels: SlideLabels) -> int:
    return len(labels.class_names)


def _splits(
    labels: SlideLabels, *, folds: int, seed: int
) -> tuple[tuple[Array, Array], ...]:
    """Return rows to learn from and to judge; every class is learned in each."""
    if labels.is_test is None:
        splits = grouped_folds(labels.labels, labels.groups, k=folds, seed=seed).folds
        if not splits:
            raise NotEnoughDataError(
                "Fewer than two classes have slides of two patients, so that nothing "
                "can be learned from one and judged on the other. Label more slides."
            )
    else:
        sides = np.flatnonzero(~labels.is_test), np.flatnonzero(labels.is_test)
        splits = (sides,)
    for train, _ in splits:
        lacking = set(range(_kinds(labels))) - set(labels.labels[train].tolist())
        if lacking:
            named = ", ".join(labels.class_names[i] for i in sorted(lacking))
            raise NotEnoughDataError(
                f"No slide of {named} is left to learn from. Label more slides of it, "
                "of other patients, or leave it out."
            )
    return splits


def _seen_before(tested: Sequence[str], pretrained_on: Collection[str]) -> str:
    """Tell how many slides to be judged were pretrained on; empty for none."""
    slides = set(tested)
    seen = len(slides & set(pretrained_on))
    if not seen:
        return ""
    return (
        f"PAMA was pretrained on {seen} of the {len(slides)} slides it is judged on, "
        "without their labels: on new slides it may do a little worse."
    )


def lines(scores: Mapping[str, SlideScore]) -> list[str]:
    """Return the scores as a table, and whether PAMA earns its keep.

    It does where all of its interval is above the AUC of both that know no places.
    """
    table = [
        f"{name:<17} AUC {score.auc}, accuracy {score.accuracy}, macro-F1 "
        f"{score.macro_f1}"
        for name, score in scores.items()
    ]
    one = next(iter(scores.values()))
    regions = f"{one.bags} bags of " if one.bags > one.slides else ""
    told = [f"{regions}{one.slides} slides of {one.patients} patients", *table]
    with_places = CLASS_TOKEN, ANCHORS, FINE_TUNED
    placed = [scores[name].auc for name in with_places if name in scores]
    others = [scores[name].auc.value for name in (MEAN, MIL) if name in scores]
    return [*told, _verdict(placed, max(others))] if placed and others else told


def _verdict(placed: list[Measure], other: float) -> str:
    best = max(placed, key=lambda measure: measure.value)
    if best.low > other:
        return "PAMA earns its keep: where tiles lie tells more than which there are"
    if best.value > other:
        return (
            "PAMA scores higher, but so few patients leave that open: label more slides"
        )
    return "PAMA does not earn its keep here: which tiles there are tells as much"
