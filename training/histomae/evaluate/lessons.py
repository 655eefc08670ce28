"""How a fold is taught: from a candidate and three sides to answers on the test side.

A teacher is a name and a function. It takes a :class:`Lesson` and gives a
:class:`Taught`; what is done with the answers (votes, temperature, scores) is the same
for all. To add one, write such a function and put it into ``TEACHERS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier

from histomae.data.metrics import soft_vote
from histomae.evaluate.candidates import tiling_for
from histomae.evaluate.trials import Trial
from histomae.learn.finetune import FineTuning, fine_tune
from histomae.learn.heads import LARS_PROBE, LEADERBOARD, HeadFit, fit_head
from histomae.learn.probe import fit_temperature, fit_validated

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from histomae.data.labelled import LabelledSet
    from histomae.data.tiling import Tiling
    from histomae.evaluate.candidates import Candidate
    from histomae.evaluate.features import Features
    from histomae.events import Event

Array = np.ndarray[Any, Any]
Indices = np.ndarray[Any, np.dtype[np.int64]]

#: Neighbours that vote.
NEIGHBOURS = 20
#: Least probability that a logit is made of.
LEAST = 1e-12


@dataclass(frozen=True, eq=False, kw_only=True)
class Lesson:
    """One candidate and one fold; ``train``, ``val``, ``test`` are rows of the data."""

    candidate: Candidate
    data: LabelledSet
    tiling: Tiling
    train: Indices
    val: Indices
    test: Indices
    seed: int
    features: Features | None = None
    """Of all pictures, averaged or of each tile; None where pixels are learned from."""
    counts: Indices | None = None
    """Tiles of each picture, where pixels are learned from."""
    fine_tuning: FineTuning = field(default_factory=FineTuning)

    def side(self, rows: Indices) -> tuple[Array, Array, Indices]:
        """Return features (q, D), labels (q,) and places in ``rows`` (q,) of a side."""
        assert self.features is not None
        values, place = self.features.of(rows)
        return values, self.data.labels[rows][place], place


@dataclass(frozen=True, eq=False, kw_only=True)
class Taught:
    """What a teacher's pupil answers of the tiles of the test and validation sides.

    ``test`` and ``val`` float (q, K): logits, or probabilities where ``are_logits`` is
    False. ``test_place`` and ``val_place`` int64 (q,): each tile's place in its side.
    """

    test: Array
    test_place: Indices
    val: Array | None = None
    val_place: Indices | None = None
    are_logits: bool = True
    chosen: Mapping[str, str | float] = field(default_factory=dict)
    """What validation chose."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A way of teaching; ``about`` is for people."""

    name: str
    about: str
    teach: Callable[[Lesson], Generator[Event, None, Taught]]
    on_pixels: bool = False
    """Whether the encoder itself is trained; else it is frozen, and features serve."""


def by_regression(lesson: Lesson) -> Generator[Event, None, Taught]:
    """Fit a logistic regression on standardised features, L2 chosen on validation."""
    x, y, _ = lesson.side(lesson.train)
    val_x, val_y, val_place = lesson.side(lesson.val)
    test_x, _, test_place = lesson.side(lesson.test)
    fit = yield from fit_validated(
        np.concatenate([x, val_x]).astype(float),
        np.concatenate([y, val_y]),
        train=np.arange(len(x)),
        val=len(x) + np.arange(len(val_x)),
        num_classes=len(lesson.data.classes),
    )
    return Taught(
        test=fit.logits(test_x),
        test_place=test_place,
        val=fit.logits(val_x),
        val_place=val_place,
        chosen={"C": fit.c},
    )


def by_neighbours(lesson: Lesson) -> Generator[Event, None, Taught]:
    """Take the shares of the classes among the nearest vectors, by cosine."""
    x, y, _ = lesson.side(lesson.train)
    test_x, _, test_place = lesson.side(lesson.test)
    neighbours = min(NEIGHBOURS, len(x))
    model = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
    model.fit(x, y)
    shares = np.zeros((len(test_x), len(lesson.data.classes)))
    shares[:, model.classes_] = model.predict_proba(test_x)
    yield from ()
    return Taught(
        test=shares, test_place=test_place, are_logits=False, chosen={"k": neighbours}
    )


def by_steps(settings: HeadFit, lesson: Lesson) -> Generator[Event, None, Taught]:
    """Train a linear head step by step, its epoch chosen on validation."""
    x, y, _ = lesson.side(lesson.train)
    val_x, val_y, val_place = lesson.side(lesson.val)
    test_x, _, test_place = lesson.side(lesson.test)
    head = yield from fit_head(
        x,
        y,
        val_x,
        val_y,
        num_classes=len(lesson.data.classes),
        settings=settings,
        seed=lesson.seed,
    )
    return Taught(
        test=head.logits(test_x),
        test_place=test_place,
        val=head.logits(val_x),
        val_place=val_place,
        chosen={"epoch": head.epoch},
    )


def by_lars(lesson: Lesson) -> Generator[Event, None, Taught]:
    """Train MAE's linear probe: batch norm and a linear layer, by LARS."""
    return (yield from by_steps(LARS_PROBE, lesson))


def by_adamw(lesson: Lesson) -> Generator[Event, None, Taught]:
    """Train the leaderboard's linear layer: AdamW, 12,500 steps, early stop."""
    return (yield from by_steps(LEADERBOARD, lesson))


def by_fine_tuning(lesson: Lesson) -> Generator[Event, None, Taught]:
    """Train the whole encoder and a head on the tiles of the training side."""
    candidate = lesson.candidate
    assert candidate.network is not None
    assert lesson.counts is not None
    tuned = yield from fine_tune(
        candidate.network(),
        lesson.data,
        tiling_for(candidate, lesson.tiling),
        lesson.counts,
        train=lesson.train,
        val=lesson.val,
        test=lesson.test,
        settings=lesson.fine_tuning,
        seed=lesson.seed,
    )
    return Taught(
        test=tuned.test_logits,
        test_place=_places(tuned.test_picture),
        val=tuned.val_logits,
        val_place=_places(tuned.val_picture),
        chosen={"epoch": tuned.epoch},
    )


def _places(picture: Indices) -> Indices:
    """Turn rows, those of a picture side by side, into places from 0."""
    new = np.diff(picture, prepend=-1) != 0
    return np.cumsum(new) - 1


LINEAR, KNN, SGD, BOARD, FINE_TUNED = (
    *("linear", "knn", "sgd-probe", "leaderboard", "finetune"),
)
TEACHERS: dict[str, Teacher] = {
    teacher.name: teacher
    for teacher in (
        Teacher(
            name=LINEAR,
            about="logistic regression (LBFGS), L2 chosen on validation",
            teach=by_regression,
        ),
        Teacher(name=KNN, about="20 nearest neighbours, cosine", teach=by_neighbours),
        Teacher(
            name=SGD,
            about="batch norm and a linear layer, LARS 0.1 per 256, 90 epochs (MAE)",
            teach=by_lars,
        ),
        Teacher(
            name=BOARD,
            about="one linear layer, AdamW 3e-4, batch 256, 12,500 steps, early stop",
            teach=by_adamw,
        ),
        Teacher(
            name=FINE_TUNED,
            about="the whole encoder, epoch chosen on validation",
            teach=by_fine_tuning,
            on_pixels=True,
        ),
    )
}


def teacher_for(name: str, candidate: Candidate) -> Teacher:
    """Return a teacher; of a candidate that cannot be trained, the linear probe."""
    teacher = TEACHERS[name]
    if teacher.on_pixels and candidate.network is None:
        return TEACHERS[LINEAR]
    return teacher


def trial_of(
    lesson: Lesson,
    taught: Taught,
    *,
    setting: Mapping[str, str | float],
    fold: int,
    teacher: Teacher,
) -> Trial:
    """Turn answers on tiles into a trial on pictures.

    Of several tiles the mean of the probabilities is the picture's (soft vote); logits
    are then its logarithms. A temperature that softens is fitted on validation.
    """
    count = len(lesson.test)
    trial = Trial(
        candidate=lesson.candidate.name,
        setting=setting,
        fold=fold,
        tested=lesson.test,
        probabilities=np.zeros((0, 0)),
        trained=len(lesson.train),
        chosen={"taught by": teacher.name, **taught.chosen},
    )
    if not _one_each(taught.test_place, count):
        tiles = softmax(taught.test, axis=1) if taught.are_logits else taught.test
        trial = replace(
            trial, patch_picture=taught.test_place, patch_probabilities=tiles
        )
    if not taught.are_logits:
        shares = soft_vote(taught.test, taught.test_place, count)
        return replace(trial, probabilities=shares)
    logits = _of_pictures(taught.test, taught.test_place, count)
    temperature = 1.0
    if taught.val is not None and taught.val_place is not None and len(lesson.val):
        val = _of_pictures(taught.val, taught.val_place, len(lesson.val))
        temperature = fit_temperature(val, lesson.data.labels[lesson.val])
    return replace(
        trial,
        logits=logits,
        probabilities=softmax(logits / temperature, axis=1),
        chosen={**trial.chosen, "temperature": temperature},
    )


def _one_each(place: Indices, count: int) -> bool:
    return len(place) == count and bool((place == np.arange(count)).all())


def _of_pictures(logits: Array, place: Indices, count: int) -> Array:
    """Return the logits of pictures, float64 (count, K), from those of their tiles."""
    if _one_each(place, count):
        return np.asarray(logits, float)
    probabilities = soft_vote(softmax(logits, axis=1), place, count)
    return np.log(np.maximum(probabilities, LEAST))
