"""An evaluation from a data set and candidates to tables, trial by trial.

Each finished trial is a file, so that whatever ends the work, the same call goes on
with what is left. What is examined, and how, is written down before the first trial;
another call on the same folder must ask for the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.leaks import find_leaks, find_seen, seen_by
from histomae.data.words import some_of
from histomae.errors import ConfigError, NotEnoughDataError, RunError
from histomae.evaluate.candidates import check_differ, tiling_for, versions
from histomae.evaluate.clock import Clock
from histomae.evaluate.features import compute_features
from histomae.evaluate.lessons import Lesson, teacher_for, trial_of
from histomae.evaluate.protocols import Settings, tiling_before, tiling_of
from histomae.evaluate.scores import verdicts, write_tables
from histomae.evaluate.trial_files import (
    load_trial,
    save_evaluation,
    save_trial,
    short_hash,
    trial_path,
)
from histomae.evaluate.trials import Evaluation
from histomae.events import Event, Note, Progress
from histomae.files import write_beside
from histomae.learn.labelled_tiles import count_tiles
from histomae.learn.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from histomae.data.labelled import LabelledPicture, LabelledSet
    from histomae.data.leaks import Side
    from histomae.data.split_files import Split
    from histomae.data.tiling import Tiling
    from histomae.evaluate.candidates import Candidate
    from histomae.evaluate.features import Features
    from histomae.evaluate.lessons import Teacher
    from histomae.evaluate.protocols import Job, Protocol, Schedule
    from histomae.evaluate.trials import Trial

Array = np.ndarray[Any, Any]

ASKED = "asked.json"
#: Of larger sets no features are kept for the map.
MOST_EMBEDDED = 20_000
#: Of fewer patients on the test side the intervals say little.
FEW_PATIENTS = 10


def data_hash(data: LabelledSet) -> str:
    """Return a hash of what a data set holds: names, labels, patients, sizes of files.

    16 hexadecimal digits; the same wherever the folder lies.
    """
    rows = [
        [
            name,
            picture.label,
            picture.patient,
            picture.side,
            picture.mpp,
            _bytes(picture),
        ]
        for name, picture in zip(data.names, data.pictures, strict=True)
    ]
    return short_hash([data.classes.names, rows])


def _bytes(picture: LabelledPicture) -> int:
    try:
        return int(picture.path.stat().st_size)
    except OSError:  # reading it will say what is wrong
        return -1


@dataclass(frozen=True, eq=False)
class _Examination:
    """What all trials have in common."""

    protocol: Protocol
    data: LabelledSet
    candidates: tuple[Candidate, ...]
    out: Path
    settings: Settings
    tiling: Tiling
    schedule: Schedule
    asked: dict[str, Any]

    @property
    def plan(self) -> str:
        """Hash of all that a trial depends on, besides its candidate and its fold."""
        return short_hash({k: v for k, v in self.asked.items() if k != "candidates"})

    def paths(self, candidate: Candidate, job: Job) -> list[Path]:
        """Return the files of the trials of a job, one for each part."""
        return [
            trial_path(
                self.out,
                candidate=candidate.name,
                identity=candidate.identity,
                setting={**self.setting(candidate, job), **part.setting},
                fold=job.fold,
                plan=self.plan,
            )
            for part in job.parts
        ]

    def setting(self, candidate: Candidate, job: Job) -> dict[str, str | float]:
        return {**candidate.varied, **job.setting}

    def teacher(self, candidate: Candidate) -> Teacher:
        return teacher_for(self.protocol.teacher or self.settings.teacher, candidate)


def evaluate(
    protocol: Protocol,
    data: LabelledSet,
    candidates: Sequence[Candidate],
    out: Path,
    settings: Settings | None = None,
    *,
    notes: Sequence[str] = (),
    pixels: bool = True,
) -> Generator[Event, None, Evaluation]:
    """Examine candidates on a data set, and write what came of it into a folder.

    Parameters
    ----------
    out
        Written are ``asked.json`` first, ``trials/``, ``features/`` and ``split.json``
        on the way, and at the end ``evaluation.json`` and the tables. Trials that are
        there already are kept.
    notes
        Sentences to stand in the report, such as on a baseline that is left out.
    pixels
        Look for leaks in the pixels too, which reads every picture.

    Raises
    ------
    ConfigError
        If the folder holds another evaluation: it names what differs.
    NotEnoughDataError
        If there is too little to split or to teach.
    DataSetError
        If a picture cannot be read.
    """
    check_differ(candidates, protocol.vary)
    settings, data, schedule = _scheduled(protocol, data, settings)
    tiling = tiling_of(protocol, settings, data, candidates)
    asked = _asked(protocol, data, settings, tiling, schedule, candidates)
    exam = _Examination(
        protocol, data, tuple(candidates), out, settings, tiling, schedule, asked
    )
    _begin(out, asked)
    schedule.split.save(out / "split.json")
    yield Note(f"{data.name}: {len(data)} pictures, {tiling}")
    said = (*data.notes, *schedule.notes, *protocol.notes, *notes)
    yield from map(Note, (*data.notes, *schedule.notes))
    leaks = yield from leaks_of(data, schedule.split, candidates, pixels=pixels)
    yield from map(Note, (f"Leak: {leak}" for leak in leaks.found))
    trials, files = yield from _all_trials(exam)
    evaluation = Evaluation(
        protocol=protocol.name,
        data=data,
        trials=tuple(trials),
        facts=_facts(exam),
        leaks=leaks.found,
        looked_for=leaks.looked_for,
        not_looked_for=leaks.not_looked_for,
        notes=(*said, *leaks.notes, *_caveats(exam)),
        embedding=(yield from _embedding(exam)),
        published=protocol.rows(data.name),
    )
    evaluation = replace(evaluation, notes=(*evaluation.notes, *verdicts(evaluation)))
    write_tables(out, evaluation)
    save_evaluation(out, evaluation, files)
    return evaluation


def check_folder(
    protocol: Protocol,
    data: LabelledSet,
    out: Path,
    settings: Settings | None = None,
) -> None:
    """Refuse what :func:`evaluate` would refuse, whichever candidates are examined.

    Ask it before candidates are made that take long.

    Raises
    ------
    ConfigError
        If the folder holds another evaluation: it names what differs.
    NotEnoughDataError
        If there is too little to split or to teach.
    """
    settings, data, schedule = _scheduled(protocol, data, settings)
    tiling = tiling_before(protocol, settings, data)
    _check_same(out, _asked(protocol, data, settings, tiling, schedule))


def _scheduled(
    protocol: Protocol, data: LabelledSet, settings: Settings | None
) -> tuple[Settings, LabelledSet, Schedule]:
    """Settle what is to be taught and tested, and refuse what cannot be."""
    settings = protocol.settle(settings or Settings())
    data = protocol.prepare(data)
    schedule = protocol.jobs(data, settings)
    _check_classes(data, schedule)
    return settings, data, schedule


def _check_classes(data: LabelledSet, schedule: Schedule) -> None:
    """Refuse a schedule without anything to teach or to test."""
    if not schedule.jobs:
        raise NotEnoughDataError(
            f"{data.name} leaves no fold to teach. Add pictures of other patients."
        )
    for job in schedule.jobs:
        if len(np.unique(data.labels[job.train])) < 2:
            raise NotEnoughDataError(
                f"Fold {job.fold + 1} of {data.name} teaches fewer than two classes. "
                "Choose fewer folds, or add pictures of other patients."
            )


@dataclass(frozen=True)
class Looked:
    """What a search for leaks found, among what, and what it left out; for people."""

    found: tuple[str, ...]
    looked_for: tuple[str, ...]
    not_looked_for: tuple[str, ...]
    notes: tuple[str, ...]
    """Why it was left out."""


def leaks_of(
    data: LabelledSet,
    split: Split,
    candidates: Sequence[Candidate],
    *,
    pixels: bool = True,
) -> Generator[Event, None, Looked]:
    """Look for what stands on two sides, the pretraining of the encoders included.

    Of baselines nothing is asked: they have seen nothing, or photographs.
    """
    sides, unknown, notes = [], [], []
    for one in candidates:
        if one.is_baseline:
            continue
        try:
            sides.append(replace(_seen_by(one), name=one.label))
        except RunError as error:
            unknown.append(one.label)
            notes.append(
                f"What {one.label} was pretrained on is not known, so that it was not "
                f"compared with what is tested on: {error}"
            )
    seen = _seen_together(sides)
    found: dict[str, list[int]] = {}
    hashes: dict[Any, Array] = {}
    for number, fold in enumerate(split.folds, 1):
        for leak in (yield from find_leaks(data, fold, pixels=pixels, hashes=hashes)):
            found.setdefault(leak, []).append(number)
    if not pixels:
        notes.append("Pixels were not compared: doubles of pictures stay unseen.")
    told = tuple(found)
    if len(split.folds) > 1:
        told = tuple(
            f"{leak[:-1]} (fold {', '.join(map(str, folds))})."
            for leak, folds in found.items()
        )
    judged = {
        name: np.unique(
            np.concatenate([dict(fold.sides)[name] for fold in split.folds])
        )
        for name in ("val", "test")
    }
    told += yield from find_seen(data, judged, seen, pixels=pixels, hashes=hashes)
    doubles = ("pictures that look the same",)
    without = (f"the pretraining of {some_of(unknown)}",) if unknown else ()
    return Looked(
        told,
        (
            *("patients", "slides", "files"),
            *(doubles if pixels else ()),
            *map(_by_what, seen),
        ),
        (*(() if pixels else doubles), *without),
        tuple(notes),
    )


def _seen_by(candidate: Candidate) -> Side:
    """Return what a candidate was pretrained on, as its run folder tells."""
    if candidate.run is None:
        raise RunError("it is no run of ours. Name the run folder where there is one.")
    run = RunFolder(candidate.run)
    slides = run.config().slides
    root = Path(slides[0]).expanduser() if slides else None
    return seen_by(run.crops_file, root)


def _by_what(seen: Side) -> str:
    """Return how a pretraining was compared: slides are known by their names alone."""
    return f"the {seen.name}{' (by the names of its slides)' if seen.slides else ''}"


def _seen_together(sides: Sequence[Side]) -> list[Side]:
    """Return one side for all pretrainings that saw the same, as those of a sweep."""
    alike: dict[Any, list[Side]] = {}
    for side in sides:
        boxes = {slide: some.tobytes() for slide, some in side.boxes_l0.items()}
        key = side.patients, side.slides, side.files, frozenset(boxes.items())
        alike.setdefault(key, []).append(side)
    return [
        replace(same[0], name=f"pretraining of {some_of([one.name for one in same])}")
        for same in alike.values()
    ]


# What is asked, written down -----------------------------------------------------


def _asked(
    protocol: Protocol,
    data: LabelledSet,
    settings: Settings,
    tiling: Tiling | None,
    schedule: Schedule,
    candidates: Sequence[Candidate] = (),
) -> dict[str, Any]:
    """Return all that decides on the trials, as JSON; what is not known is left out."""
    told = {
        "protocol": protocol.name,
        "data": data_hash(data),
        **({} if tiling is None else {"tiles": str(tiling)}),
        "split": schedule.split.hash,
        "settings": _plain(settings),
        "candidates": {one.label: one.identity for one in candidates},
    }
    found: dict[str, Any] = json.loads(json.dumps(told))
    return found


def _plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON; how pictures become tiles is told apart."""
    told = asdict(settings)
    for name in ("tiling", "split"):
        told.pop(name)
    told["fine_tuning"].pop("device")
    return told


def _begin(out: Path, asked: dict[str, Any]) -> None:
    """Write down what is asked, or check that it was asked before."""
    kept = _check_same(out, asked)
    asked["candidates"] = kept | asked["candidates"]
    with write_beside(out / ASKED) as beside:
        beside.write_text(json.dumps(asked, indent=1) + "\n", "utf-8")


def _check_same(out: Path, asked: dict[str, Any]) -> dict[str, str]:
    """Refuse a folder of which other things were asked; return its candidates.

    Candidates may be added or left out; one of the same name must be the same.
    """
    path = out / ASKED
    if not path.exists():
        return {}
    try:
        before = json.loads(path.read_text("utf-8"))
        kept = dict(before["candidates"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} cannot be read ({error}). Choose another folder."
        ) from error
    differing = [
        f"{name} was {_short(before.get(name))}, now {_short(value)}"
        for name, value in asked.items()
        if name not in ("candidates", "settings") and before.get(name) != value
    ]
    differing += _differing(before.get("settings", {}), asked["settings"])
    differing += [
        f"{name} has other weights or another pooling"
        for name, identity in asked["candidates"].items()
        if kept.get(name, identity) != identity
    ]
    if differing:
        raise ConfigError(
            "out",
            f"{out} holds another evaluation: {'; '.join(differing)}. Ask for the "
            "same to go on with it, or choose another folder.",
        )
    return kept


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{name} was {_short(before.get(name))}, now {_short(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _short(value: Any) -> str:
    told = str(value)
    return told if len(told) <= 60 else f"{told[:57]}..."


# Trials --------------------------------------------------------------------------


def _all_trials(
    exam: _Examination,
) -> Generator[Event, None, tuple[list[Trial], list[Path]]]:
    """Make the trials that are not there yet; return all, and their files."""
    jobs = exam.schedule.jobs
    todo = [(one, job) for one in exam.candidates for job in jobs]
    files = [exam.paths(*each) for each in todo]
    there = sum(all(path.exists() for path in paths) for paths in files)
    if there:
        yield Note(f"{there} of {len(todo)} trials were finished before and are kept.")
    clock = Clock(len(todo) - there)
    trials: list[Trial] = []
    features: Features | None = None
    counts: Array | None = None
    whose: Candidate | None = None
    for number, ((candidate, job), paths) in enumerate(zip(todo, files, strict=True)):
        if all(path.exists() for path in paths):
            trials += map(load_trial, paths)
            continue
        teacher = exam.teacher(candidate)
        if whose is not candidate:
            whose, features, counts = candidate, None, None
            if teacher.on_pixels:
                rule = tiling_for(candidate, exam.tiling)
                counts = yield from count_tiles(exam.data, rule, candidate.tile_px)
            else:
                found = yield from _features(exam, candidate)
                features = found if exam.tiling.votes else found.averaged()
        lesson = Lesson(
            candidate=candidate,
            data=exam.data,
            tiling=exam.tiling,
            train=job.train,
            val=job.val,
            test=job.test,
            seed=job.seed,
            features=features,
            counts=counts,
            fine_tuning=exam.settings.fine_tuning,
        )
        yield Progress("trials", number, len(todo), seconds_left=clock.seconds())
        what = f"trial {number + 1} of {len(todo)}, {candidate.label}"
        taught = yield from clock.timed(what, teacher.teach(lesson))
        trial = trial_of(
            lesson,
            taught,
            setting=exam.setting(candidate, job),
            fold=job.fold,
            teacher=teacher,
        )
        for part, path in zip(job.parts, paths, strict=True):
            save_trial(path, trial.of(part.test, part.setting))
        trials += map(load_trial, paths)
    yield Progress("trials", len(todo), len(todo))
    return trials, [path for paths in files for path in paths]


def _features(
    exam: _Examination, candidate: Candidate
) -> Generator[Event, None, Features]:
    return (
        yield from compute_features(
            exam.data,
            candidate,
            exam.tiling,
            exam.out / "features",
            data_id=exam.asked["data"],
        )
    )


def _embedding(exam: _Examination) -> Generator[Event, None, dict[str, Array]]:
    """Return features of all pictures by candidate, where they were computed anyway."""
    if len(exam.data) > MOST_EMBEDDED:
        return {}
    found = {}
    for candidate in exam.candidates:
        if not exam.teacher(candidate).on_pixels:
            features = yield from _features(exam, candidate)
            found[candidate.label] = features.averaged().values
    return found


# What stands above the report ----------------------------------------------------


def _facts(exam: _Examination) -> dict[str, Any]:
    data, split = exam.data, exam.schedule.split
    return {
        "protocol": exam.protocol.about,
        "teacher": exam.protocol.teacher or exam.settings.teacher,
        "candidates": {
            one.label: {
                "kind": one.kind,
                "hash": one.identity,
                **one.facts,
                "row": one.name,
            }
            for one in exam.candidates
        },
        "varied": list(dict.fromkeys(n for one in exam.candidates for n in one.varied)),
        "tiles": str(exam.tiling),
        "seed": exam.settings.seed,
        "data hash": exam.asked["data"],
        "split": split.kind,
        "split hash": split.hash,
        "settings hash": short_hash(exam.asked["settings"]),
        "settings": exam.asked["settings"],
        "pictures": len(data),
        "patients": len(set(data.patients.tolist())),
        "folds": [
            {
                side: {
                    "pictures": len(rows),
                    "patients": len(np.unique(data.patients[rows])),
                }
                for side, rows in fold.sides
            }
            for fold in split.folds
        ],
        "versions": versions(),
    }


def _caveats(exam: _Examination) -> list[str]:
    """Say what the numbers do not show."""
    data = exam.data
    tested = np.concatenate([job.test for job in exam.schedule.jobs])
    patients = len(np.unique(data.patients[tested]))
    told = []
    if patients < FEW_PATIENTS:
        told.append(
            f"{patients} patients were tested on: intervals over so few are too "
            "narrow to trust, and differences of a few percent mean nothing."
        )
    if any(not len(job.val) for job in exam.schedule.jobs):
        told.append("Nothing was chosen by validation: C is 1, the epoch the last.")
    return told
