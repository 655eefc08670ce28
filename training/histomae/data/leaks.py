"""What stands on two sides of an examination: patients, slides, places, pixels.

Sides are the training without labels, the training with labels, validation and test.
Whatever two of them share makes a score too good, and is told in a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.alike import alike_pairs, hashes_of
from histomae.data.picture_sets import PictureSets
from histomae.data.pictures import read_picture
from histomae.data.words import TOLD, some_of
from histomae.errors import RunError
from histomae.slides.crops import CropManifest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from histomae.data.labelled import LabelledPicture, LabelledSet
    from histomae.data.split_files import Fold
    from histomae.events import Event

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Box = tuple[float, float, float, float]

#: What a side is called in a sentence.
TOLD_SIDES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True, eq=False)
class Side:
    """What one side holds, as plain tables.

    ``boxes_l0`` by slide float (n, 4), corners (x0, y0, x1, y1) in level-0 pixels.
    ``files`` are the pictures, each with its row in a container, or None.
    """

    name: str
    patients: frozenset[str] = frozenset()
    slides: frozenset[str] = frozenset()
    boxes_l0: Mapping[str, Floats] = field(default_factory=dict)
    files: frozenset[tuple[Path, int | None]] = frozenset()


def seen_by(crops_file: Path, root: Path | None = None) -> Side:
    """Return what a pretraining was shown, from the file of crops in its run folder.

    Crops and pictures that it held out of training do not count.

    Parameters
    ----------
    crops_file
        ``crops.parquet``, of slides or of plain pictures.
    root
        The folder of the pictures that it was trained on; not needed for slides.

    Raises
    ------
    RunError
        If the file cannot be read, or is of pictures and no root is given.
    """
    try:
        return _of_manifest(CropManifest.load(crops_file))
    except RunError:
        if root is None:
            raise
        return _of_sets(PictureSets.load(crops_file, root))


def _of_manifest(manifest: CropManifest) -> Side:
    boxes = {}
    for index, slide in enumerate(manifest.slides):
        rows = (manifest.slide_index == index) & ~manifest.held_out
        um = manifest.crop_px * manifest.mpp
        corner = manifest.xy_l0[rows]
        size = np.array([um / slide.mpp_x, um / slide.mpp_y])
        if len(corner):
            boxes[slide_name(slide.path)] = np.hstack([corner, corner + size])
    return Side("pretraining", slides=frozenset(boxes), boxes_l0=boxes)


def _of_sets(sets: PictureSets) -> Side:
    trained = [
        (paths, case)
        for paths, case, out in zip(sets.paths, sets.cases, sets.held_out, strict=True)
        if not out
    ]
    files = {(p.resolve(), None) for paths, _ in trained for p in paths if p}
    # Of plain pictures a case is a number that means nothing elsewhere.
    cases = {case for _, case in trained} if sets.views > 1 else set()
    return Side("pretraining", patients=frozenset(cases), files=frozenset(files))


def slide_name(path: str | Path) -> str:
    """Return what a slide is called, wherever it lies: its name without suffix."""
    return Path(path).name.partition(".")[0]


def find_leaks(
    data: LabelledSet,
    fold: Fold,
    *,
    seen: Sequence[Side] = (),
    pixels: bool = True,
    hashes: dict[Any, Bools] | None = None,
) -> Generator[Event, None, tuple[str, ...]]:
    """Return sentences on what stands on two sides; none: nothing was found.

    Parameters
    ----------
    seen
        What pretrainings were shown; see :func:`seen_by`. All of it is compared with
        validation and test; that labels are learned on slides seen before is no leak.
    pixels
        Compare the pixels too, which reads every picture of the fold, and every file
        that a pretraining was shown.
    hashes
        Of pictures and files that were read for another fold; new ones are added.

    Raises
    ------
    DataSetError
        If a picture cannot be read.
    """
    rows = dict(fold.sides)
    sides = [_of_rows(data, name, some) for name, some in rows.items() if len(some)]
    known = {} if hashes is None else hashes
    leaks: list[str] = []
    for one, other in combinations(sides, 2):
        leaks += _between(one, other)
    if pixels:
        leaks += yield from _alike(data, rows, known)
    judged = {name: some for name, some in rows.items() if name != "train"}
    before = yield from find_seen(data, judged, seen, pixels=pixels, hashes=known)
    return (*leaks, *before)


def find_seen(
    data: LabelledSet,
    rows: Mapping[str, Any],
    seen: Sequence[Side],
    *,
    pixels: bool = True,
    hashes: dict[Any, Bools] | None = None,
) -> Generator[Event, None, tuple[str, ...]]:
    """Return sentences on what pretrainings were shown of what judges.

    Parameters
    ----------
    rows
        Of ``val`` and ``test``; of several folds all together, as a pretraining is the
        same for each.
    seen, pixels, hashes
        As for :func:`find_leaks`.

    Raises
    ------
    DataSetError
        If a picture cannot be read.
    """
    judged = [_of_rows(data, name, some) for name, some in rows.items() if len(some)]
    leaks: list[str] = []
    for one in seen:
        shown = _with_patients(one, data)
        for other in judged:
            leaks += _between(shown, other)
    if pixels:
        leaks += yield from _alike_seen(
            data, rows, seen, {} if hashes is None else hashes
        )
    return tuple(leaks)


def _of_rows(data: LabelledSet, name: str, rows: Iterable[int]) -> Side:
    pictures = [data.pictures[int(row)] for row in rows]
    boxes: dict[str, list[Box]] = {}
    for picture in pictures:
        if picture.slide and picture.box_l0 is not None:
            boxes.setdefault(slide_name(picture.slide), []).append(picture.box_l0)
    return Side(
        name,
        patients=frozenset(picture.patient for picture in pictures),
        slides=frozenset(slide_name(p.slide) for p in pictures if p.slide),
        boxes_l0={slide: np.array(some, float) for slide, some in boxes.items()},
        files=frozenset((p.path.resolve(), p.row) for p in pictures),
    )


def _with_patients(seen: Side, data: LabelledSet) -> Side:
    """Add the patients of slides and files that a pretraining was shown."""
    patients = {
        picture.patient
        for picture in data.pictures
        if slide_name(picture.slide) in seen.slides
        or (picture.path.resolve(), picture.row) in seen.files
    }
    return replace(seen, patients=seen.patients | patients)


# ---- two sides


def _between(one: Side, other: Side) -> list[str]:
    """Say what two sides share, but for their pixels."""
    shared = (
        ("patient", sorted(one.patients & other.patients)),
        ("slide", sorted(one.slides & other.slides)),
        ("file", sorted(map(_name, one.files & other.files))),
    )
    leaks = [
        f"{_times(len(both), what)} in {_and(one, other)}: {some_of(both)}."
        for what, both in shared
        if both
    ]
    overlapping = {
        slide: count
        for slide in sorted(set(one.boxes_l0) & set(other.boxes_l0))
        if (count := _overlaps(one.boxes_l0[slide], other.boxes_l0[slide]))
    }
    if overlapping:
        total = sum(overlapping.values())
        leaks.append(
            f"{_times(total, 'overlapping crop')} of {_called(other)} with "
            f"{_called(one)}, on {some_of(list(overlapping))}."
        )
    return leaks


def _name(file: tuple[Path, int | None]) -> str:
    path, row = file
    return path.name if row is None else f"{path.name}#{row}"


def _overlaps(mine: Floats, others: Floats) -> int:
    """Return how many of ``others`` (m, 4) overlap one of ``mine`` (n, 4)."""
    hit = np.zeros(len(others), bool)
    for box in mine:
        low = np.maximum(others[:, :2], box[:2])
        high = np.minimum(others[:, 2:], box[2:])
        hit |= (high > low).all(1)
    return int(hit.sum())


def _alike(
    data: LabelledSet, rows: Mapping[str, Any], remembered: dict[Any, Bools]
) -> Generator[Event, None, list[str]]:
    """Say which pictures of two sides look the same, though their files differ."""
    sides = yield from _hashed(data, rows, remembered)
    leaks = []
    for (one, mine), (other, others) in combinations(sides.items(), 2):
        pairs = alike_pairs(mine[1], others[1])
        named = [(mine[0][i].name, others[0][j].name) for i, j in pairs]
        leaks += _told_alike(named, Side(one), Side(other))
    return leaks


def _alike_seen(
    data: LabelledSet,
    rows: Mapping[str, Any],
    seen: Sequence[Side],
    remembered: dict[Any, Bools],
) -> Generator[Event, None, list[str]]:
    """Say which pictures look the same as others that a pretraining was shown."""
    sides = yield from _hashed(data, rows, remembered)
    leaks = []
    for known in seen:
        files = sorted(path for path, row in known.files if row is None)
        before = yield from _hashes(files, remembered, read_picture)
        for name, (there, their_hashes) in sides.items() if files else ():
            named = [
                (files[i].name, there[j].name)
                for i, j in alike_pairs(before, their_hashes)
                if files[i] != there[j].path.resolve()
            ]
            leaks += _told_alike(named, known, Side(name))
    return leaks


def _hashed(
    data: LabelledSet, rows: Mapping[str, Any], remembered: dict[Any, Bools]
) -> Generator[Event, None, dict[str, tuple[list[LabelledPicture], Bools]]]:
    """Return the pictures of each side that has some, and their hashes."""
    sides = {}
    for name, some in rows.items():
        if len(some):
            pictures = [data.pictures[int(row)] for row in some]
            sides[name] = (
                pictures,
                (yield from _hashes(pictures, remembered, data.read)),
            )
    return sides


def _hashes(
    pictures: Sequence[Any], remembered: dict[Any, Bools], read: Callable[[Any], Pixels]
) -> Generator[Event, None, Bools]:
    """Return the hash of each picture, computed where it is not remembered."""
    new = [one for one in dict.fromkeys(pictures) if one not in remembered]
    found = yield from hashes_of(new, read=read)
    remembered.update(zip(new, found, strict=True))
    known = [remembered[one] for one in pictures]
    return np.array(known, bool).reshape(len(pictures), found.shape[1])


def _told_alike(pairs: list[tuple[str, str]], one: Side, other: Side) -> list[str]:
    if not pairs:
        return []
    some = "; ".join(f"{mine} = {theirs}" for mine, theirs in pairs[:TOLD])
    more = f"; and {len(pairs) - TOLD} more" if len(pairs) > TOLD else ""
    return [
        f"{_times(len(pairs), 'pair')} of pictures that look the same in "
        f"{_and(one, other)}: {some}{more}."
    ]


# ---- words


def _called(side: Side) -> str:
    return TOLD_SIDES.get(side.name, side.name)


def _and(one: Side, other: Side) -> str:
    return f"{_called(one)} and {_called(other)}"


def _times(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
