"""Protocols: how a data set is examined, as papers do it. The only list.

A protocol says in one place

- what becomes of the data set first (``prepare``), and how pictures become tiles
  (``tiling``; None: as asked, or by what pictures and encoder know);
- which splits, and what is varied over them (``jobs``: rows to train on, to validate
  on and to test on, each with the ``setting`` that a table groups by);
- how a fold is taught (``teacher``, one of :data:`histomae.evaluate.lessons.TEACHERS`;
  empty: as asked);
- in which settings of their pretraining the encoders differ (``vary``; any protocol
  takes others as asked);
- which published rows stand beside it (``published``).

To add one, make a :class:`Protocol` and put it into ``PROTOCOLS`` under its name: the
command line, the report and resuming then know it. Trials whose settings differ in
``fold``, ``draw`` or ``run`` alone are repeats of one row of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.config import check_least, check_one_of
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.split_files import (
    FRACTIONS,
    Fold,
    Split,
    hold_out,
    nested_fractions,
    official_split,
    split_by_patient,
)
from histomae.data.tiling import LEAST_SHARE, Tiling
from histomae.errors import ConfigError, NotEnoughDataError
from histomae.evaluate import scores
from histomae.evaluate.lessons import BOARD, FINE_TUNED, KNN, LINEAR, SGD, TEACHERS
from histomae.evaluate.published import published
from histomae.learn.finetune import FineTuning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from histomae.evaluate.candidates import Candidate
    from histomae.evaluate.trials import Evaluation

Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: Of fractions below this share several draws are taught.
FEW = 0.4
#: Ways to split, besides a file.
AUTO, OFFICIAL, PATIENTS, HOLD_OUT = "auto", "official", "patients", "hold-out"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person chooses of an evaluation; the protocol decides the rest.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    tiling: Tiling | None = None
    """How pictures become tiles; None: as the protocol has it."""
    split: str = AUTO
    """auto: the official split where there is one, else patients; official; patients:
    folds by patient; hold-out; or a file of a split."""
    folds: int = 5
    val_share: float = 0.2
    """Of the training side, for what is chosen by validation."""
    seed: int = 0
    teacher: str = LINEAR
    """Of protocols that leave it open; one of :data:`TEACHERS`."""
    fractions: tuple[float, ...] = FRACTIONS
    """Of few-label: shares of the labels that are trained on."""
    draws: int = 3
    """Of few-label: draws of each fraction below 40 %."""
    runs: int = 5
    """Of leaderboard: trainings with other seeds."""
    fine_tuning: FineTuning = field(default_factory=FineTuning)

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("draws", 1), ("runs", 1), ("seed", 0)):
            check_least(name, getattr(self, name), least)
        check_one_of("teacher", self.teacher, TEACHERS)


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """Some of the rows of a test side, with what sets them apart in the table."""

    setting: Mapping[str, str | float]
    test: Indices


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """One fold to be taught to each candidate; rows of the data set.

    ``apart``: parts of the test side that are rows of the table of their own, though
    taught but once, such as magnifications; none: it is one.
    """

    setting: Mapping[str, str | float]
    fold: int
    train: Indices
    val: Indices
    test: Indices
    seed: int
    apart: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the test side is told in, one part at least."""
        return self.apart or (Part(setting={}, test=self.test),)


@dataclass(frozen=True, eq=False, kw_only=True)
class Schedule:
    """All jobs of an evaluation, the split that they come from, and what is to say."""

    jobs: tuple[Job, ...]
    split: Split
    notes: tuple[str, ...] = ()


def split_of(data: LabelledSet, settings: Settings) -> Split:
    """Return the split that is asked for.

    Raises
    ------
    DataSetError, LabelError, NotEnoughDataError
        If the data set has no such split.
    """
    share, seed = settings.val_share, settings.seed
    if settings.split == HOLD_OUT:
        return hold_out(data, val_share=share, seed=seed)
    is_official = {"train", "test"} <= set(data.sides.tolist())
    if settings.split == OFFICIAL or (settings.split == AUTO and is_official):
        return official_split(data, val_share=share, seed=seed)
    if settings.split in (AUTO, PATIENTS):
        return split_by_patient(data, k=settings.folds, val_share=share, seed=seed)
    return Split.load(Path(settings.split), data)


def by_folds(data: LabelledSet, settings: Settings) -> Schedule:
    """Teach each fold of the split once."""
    split = split_of(data, settings)
    jobs = tuple(
        _job(fold, number, settings.seed) for number, fold in enumerate(split.folds)
    )
    return Schedule(jobs=jobs, split=split, notes=split.notes)


def _job(fold: Fold, number: int, seed: int, **setting: str | float) -> Job:
    return Job(
        setting=setting,
        fold=number,
        train=fold.train,
        val=fold.val,
        test=fold.test,
        seed=seed,
    )


def by_fractions(data: LabelledSet, settings: Settings) -> Schedule:
    """Teach each fold with fewer and fewer labels; its other sides stay."""
    split = split_of(data, settings)
    jobs = []
    for number, fold in enumerate(split.folds):
        for draw in range(settings.draws):
            nested = nested_fractions(
                data.labels[fold.train],
                data.patients[fold.train],
                settings.fractions,
                seed=settings.seed + draw,
            )
            for fraction, rows in nested.items():
                if fraction < FEW or not draw:
                    fewer = replace(fold, train=fold.train[rows])
                    setting = {"fraction": fraction, "draw": draw}
                    jobs.append(_job(fewer, number, settings.seed, **setting))
    return Schedule(jobs=tuple(jobs), split=split, notes=split.notes)


def by_runs(data: LabelledSet, settings: Settings) -> Schedule:
    """Teach the first fold again and again, with other seeds."""
    split = split_of(data, settings)
    jobs = tuple(
        _job(split.folds[0], 0, settings.seed + run, run=run)
        for run in range(settings.runs)
    )
    return Schedule(jobs=jobs, split=split, notes=split.notes)


def unchanged(data: LabelledSet) -> LabelledSet:
    """Return the data set as it is."""
    return data


def as_asked(settings: Settings) -> Settings:
    """Return the settings as they are."""
    return settings


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a data set is examined; see the module."""

    name: str
    about: str
    """One sentence for help and report."""
    teacher: str = ""
    jobs: Callable[[LabelledSet, Settings], Schedule] = by_folds
    tiling: Tiling | None = None
    prepare: Callable[[LabelledSet], LabelledSet] = unchanged
    settle: Callable[[Settings], Settings] = as_asked
    """What the protocol fixes of the settings."""
    vary: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """In which settings of their pretraining encoders differ, unless asked otherwise,
    and the values of a sweep."""
    lines: Callable[[Evaluation], list[str]] = scores.lines
    """Its table for a terminal."""
    task: str | None = None
    """Of the data set, unless asked otherwise; None: its first."""
    published: Callable[[str], tuple[Mapping[str, Any], ...]] | None = None
    """From the data set's name; None: those known for this protocol."""
    notes: tuple[str, ...] = ()
    """What its numbers do not show."""

    def rows(self, data: str) -> tuple[Mapping[str, Any], ...]:
        """Return the published rows for a data set."""
        if self.published is not None:
            return self.published(data)
        return published(self.name, data)


def tiling_before(
    protocol: Protocol, settings: Settings, data: LabelledSet
) -> Tiling | None:
    """Return how pictures become tiles, whoever is examined; None: encoders decide."""
    asked = settings.tiling or protocol.tiling
    if asked is None and any(picture.mpp is None for picture in data.pictures):
        return Tiling(how="whole")
    return asked


def tiling_of(
    protocol: Protocol,
    settings: Settings,
    data: LabelledSet,
    candidates: Sequence[Candidate],
) -> Tiling:
    """Return how pictures become tiles: as asked, as the protocol has it, or as fits.

    What fits are tiles at the encoder's pixel size, their features averaged, where
    every picture and every candidate knows its own and none would be up-sampled; else
    whole pictures.
    """
    decided = tiling_before(protocol, settings, data)
    if decided is not None:
        return decided
    known = [picture.mpp for picture in data.pictures if picture.mpp is not None]
    wanted = [candidate.mpp for candidate in candidates]
    if None in wanted or len(set(wanted)) != 1:
        return Tiling(how="whole")
    mpp = wanted[0]
    assert mpp is not None
    fits = mpp >= LEAST_SHARE * max(known, default=mpp)
    return Tiling(how="mpp", mpp=mpp) if fits else Tiling(how="whole")


# From one data set to another ----------------------------------------------------


def transfer(taught: LabelledSet, tested: LabelledSet) -> tuple[LabelledSet, Protocol]:
    """Return both data sets as one, and the protocol that teaches across them.

    Tested is always the second. Two rows come of each candidate: taught on the first
    (its validation by patient), and a fresh layer taught on the second by folds, which
    says what the encoder's features are worth there. Where the classes differ by name
    only the fresh layer is possible.
    """
    here = PROTOCOLS["transfer"]
    if set(taught.classes.names) != set(tested.classes.names):
        note = (
            f"{taught.name} has other classes than {tested.name}: no layer that was "
            f"taught on it can be tested there, and only a fresh layer on "
            f"{tested.name} is."
        )
        fresh = partial(_fresh_layers, tested.name)
        return tested, replace(here, jobs=fresh, notes=(*here.notes, note))
    order = [taught.classes.names.index(name) for name in tested.classes.names]
    both = LabelledSet(
        name=f"{taught.name} to {tested.name}",
        root=tested.root,
        classes=taught.classes,
        pictures=tuple(
            replace(
                picture,
                label=order[picture.label] if data is tested else picture.label,
                patient=f"{number}:{picture.patient}",
                side="",
            )
            for number, data in enumerate((taught, tested))
            for picture in data.pictures
        ),
        read=partial(_read_either, taught, tested, {p.path for p in tested.pictures}),
        notes=(*taught.notes, *tested.notes),
    )
    jobs = partial(_across, taught.name, tested.name, len(taught))
    return both, replace(here, jobs=jobs)


def _read_either(
    taught: LabelledSet, tested: LabelledSet, paths: set[Path], picture: LabelledPicture
) -> Pixels:
    """Read a picture of one of two sets; ``paths`` are those of the second."""
    return (tested if picture.path in paths else taught).read(picture)


def _fresh_layers(name: str, data: LabelledSet, settings: Settings) -> Schedule:
    found = by_folds(data, settings)
    jobs = tuple(
        replace(job, setting={"taught on": name, "tested on": name})
        for job in found.jobs
    )
    return replace(found, jobs=jobs)


def _across(
    taught: str, tested: str, count: int, data: LabelledSet, settings: Settings
) -> Schedule:
    first, second = np.arange(count), np.arange(count, len(data))
    settings = replace(settings, split=PATIENTS)
    own = split_of(data.among(first), settings).folds[0]
    # All of the first set teaches or validates: its test side teaches too.
    train, val = np.concatenate([own.train, own.test]), own.val
    if not len(second):
        raise NotEnoughDataError(f"{tested} holds no picture. Choose another.")
    across = Fold(np.sort(train), val, second)
    within = split_of(data.among(second), settings)
    folds = (
        across,
        *(Fold(*(second[rows] for _, rows in fold.sides)) for fold in within.folds),
    )
    split = Split(folds, "patient", settings.seed, data.names, within.notes)
    whole = {"taught on": taught, "tested on": tested}
    fresh = {"taught on": tested, "tested on": tested}
    jobs = (
        _job(across, 0, settings.seed, **whole),
        *(
            _job(fold, number, settings.seed, **fresh)
            for number, fold in enumerate(folds[1:])
        ),
    )
    return Schedule(jobs=jobs, split=split, notes=within.notes)


# The protocols of one paper ------------------------------------------------------


def _at_magnifications(data: LabelledSet, settings: Settings) -> Schedule:
    from histomae.evaluate.mpcs import at_magnifications

    return at_magnifications(data, settings)


def _without_a_group(data: LabelledSet, settings: Settings) -> Schedule:
    from histomae.evaluate.mpcs import without_a_group

    return without_a_group(data, settings)


def _at_each_magnification(evaluation: Evaluation) -> list[str]:
    from histomae.evaluate.mpcs import breakhis_lines

    return breakhis_lines(evaluation)


def _beside_published(evaluation: Evaluation) -> list[str]:
    from histomae.evaluate.mpcs import published_lines

    return [*scores.lines(evaluation), *published_lines(evaluation.published)]


def _of_one_staining(data: LabelledSet) -> LabelledSet:
    from histomae.evaluate.mpcs import of_one_staining

    return of_one_staining(data)


def _scans(data: LabelledSet) -> LabelledSet:
    from histomae.evaluate.mpcs import scans

    return scans(data)


def _a_quarter_validates(settings: Settings) -> Settings:
    """Of BACH 60 pictures of each class teach, 20 validate, 20 test."""
    return replace(settings, val_share=0.25)


def _upright(settings: Settings) -> Settings:
    """Ultrasound is flipped left for right alone: shadows fall down."""
    return replace(
        settings, fine_tuning=replace(settings.fine_tuning, flips="horizontal")
    )


# The list ------------------------------------------------------------------------

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="linear",
            about="A linear probe on frozen features: logistic regression, L2 chosen "
            "on validation.",
            teacher=LINEAR,
        ),
        Protocol(
            name="knn",
            about="The 20 nearest neighbours of frozen features, by cosine.",
            teacher=KNN,
            notes=(
                "Autoencoders are known to do worse by neighbours than by a linear "
                "probe or fine-tuning.",
            ),
        ),
        Protocol(
            name="sgd-probe",
            about="The linear probe of MAE and SD-MAE: batch norm and a linear layer, "
            "trained by LARS.",
            teacher=SGD,
            notes=(
                "This probe was made for batches of 16,384 and a million pictures: on "
                "small sets it makes few steps and stays behind 'linear'. Features are "
                "computed once, without random crops.",
            ),
        ),
        Protocol(
            name="leaderboard",
            about="The protocol of the eva leaderboard: frozen encoder, one linear "
            "layer, AdamW 3e-4, batch 256, 12,500 steps, early stop, 5 runs.",
            teacher=BOARD,
            jobs=by_runs,
            tiling=Tiling(how="whole"),
            notes=(
                "The leaderboard scores sets without a test side on validation; here "
                "the test side is always apart.",
            ),
        ),
        Protocol(
            name="finetune",
            about="Full fine-tuning: the whole encoder learns with the head; "
            "validation chooses the epoch.",
            teacher=FINE_TUNED,
        ),
        Protocol(
            name="few-label",
            about="What is reached with few labels: nested shares of the training "
            "side, several draws of the small ones.",
            jobs=by_fractions,
        ),
        Protocol(
            name="transfer",
            about="Taught on one data set and tested on another, beside a fresh layer "
            "on the other.",
        ),
        Protocol(
            name="mask-ratio",
            about="Encoders that were pretrained with different mask ratios, side by "
            "side.",
            vary={"mask_ratio": (0.5, 0.75, 0.875)},
        ),
        Protocol(
            name="crop-size",
            about="Encoders that were pretrained on crops of different sizes, side by "
            "side.",
            vary={"tile_px": (128, 224, 320)},
        ),
        Protocol(
            name="mpcs-breakhis",
            about="BreakHis as MPCS has it: malignant or not, a model for each "
            "magnification, tested at all of them; five folds of patients, a fifth of "
            "the labels and all.",
            jobs=_at_magnifications,
            lines=_at_each_magnification,
            task="binary",
            tiling=Tiling(how="whole"),
            notes=(
                "The paper chose the epoch on the fold that it tested; here patients "
                "of the training side choose, and with a fifth of the labels these "
                "are among the fifth.",
            ),
        ),
        Protocol(
            name="mpcs-bach",
            about="BACH as MPCS has it: Reinhard's colours, patches of 512 px that "
            "overlap by half and vote; five folds, nested shares of the labels.",
            jobs=by_fractions,
            settle=_a_quarter_validates,
            prepare=_of_one_staining,
            lines=_beside_published,
            tiling=Tiling(how="patches", patch_px=512, overlap=0.5, votes=True),
        ),
        Protocol(
            name="mpcs-bcc",
            about="UCSB breast cancer cell as MPCS has it: patches of 224 px that "
            "vote; each group of pictures is tested once by what learned from the "
            "others.",
            jobs=_without_a_group,
            lines=_beside_published,
            tiling=Tiling(how="patches", patch_px=224, votes=True),
            notes=(
                "The paper does not say that it keeps the pictures of an array "
                "together; here they are, and numbers are lower for it.",
            ),
        ),
        Protocol(
            name="busi",
            about="BUSI by folds whose sides share no picture that looks alike; whole "
            "scans, upright.",
            prepare=_scans,
            settle=_upright,
            tiling=Tiling(how="fit"),
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """Return a protocol by its name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(
            "protocol", f"{name!r:.40} is unknown. Choose {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]
