"""BUSI, breast ultrasound, from its official layout: pictures, lesions, doubles.

Al-Dhabyani et al., Data in Brief 2020. A picture is ``benign (4).png``, its lesions are
white in ``benign (4)_mask.png`` and, where there are several, ``benign (4)_mask_1.png``
and so on. Patients are not told, and pictures are there twice or nearly so; therefore
those that look alike are found and stand on one side of any split.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from histomae.data.alike import groups_alike
from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.layouts import PAPERS, Kind, read_file
from histomae.data.marks import MarkedPicture, MarkedSet, Marks
from histomae.data.pictures import (
    TOLD_EVERY,
    grey_of,
    read_picture,
    sector_box,
    unreadable,
    whole_square,
)
from histomae.data.small_sets import BENIGN, MALIGNANT
from histomae.data.words import TOLD, some_are
from histomae.errors import DataSetError
from histomae.events import Event, Progress, result_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from pathlib import Path

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Indices = np.ndarray[Any, np.dtype[np.int64]]

CLASSES = ("benign", "malignant", "normal")
NAME = re.compile(
    rf"(?P<name>(?P<kind>{'|'.join(CLASSES)}) \((?P<number>\d+)\))"
    r"(?P<mask>_mask(_\d+)?)?\.png"
)
EXAMPLE = "benign (1).png"
#: A mask's pixel is of the lesion from this grey on.
WHITE = 128


@dataclass(frozen=True)
class Picture:
    """One ultrasound picture, as its name tells."""

    path: Path
    class_name: str
    """One of ``CLASSES``."""
    masks: tuple[Path, ...]
    """Files that show its lesions; normal pictures may have an empty one."""


@dataclass(frozen=True)
class Busi:
    """The pictures of a tree, in the order of class and number."""

    root: Path
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    """Sentences for the user: what was left out, what is missing."""

    @property
    def labels(self) -> Indices:
        """Each picture's place in ``CLASSES``, int64 (n,)."""
        names = [CLASSES.index(picture.class_name) for picture in self.pictures]
        return np.array(names, np.int64)


def is_busi(path: Path) -> bool:
    """Tell whether a folder holds pictures named as in BUSI."""
    return path.is_dir() and any(
        NAME.fullmatch(file.name) for kind in CLASSES for file in path.rglob(f"{kind}*")
    )


def read_busi(root: Path) -> Busi:
    """Find the pictures below a folder, and their masks; none is opened.

    Files whose names are not understood, and masks without a picture, are left out, and
    notes count them.

    Raises
    ------
    DataSetError
        If there is none named as in BUSI, or two have one name.
    """
    found: dict[str, Path] = {}
    masks: dict[str, list[Path]] = {}
    odd = []
    for path in sorted(root.rglob("*.png")):
        match = NAME.fullmatch(path.name)
        if match is None:
            odd.append(path.name)
        elif match["mask"]:
            masks.setdefault(match["name"], []).append(path)
        elif match["name"] in found:
            raise DataSetError(
                f"{found[match['name']]} and {path} have one name. Remove one of them, "
                "or choose the folder Dataset_BUSI_with_GT alone."
            )
        else:
            found[match["name"]] = path
    if not found:
        raise DataSetError(
            f"{root} holds no picture named as in BUSI, such as {EXAMPLE}. Choose the "
            "folder Dataset_BUSI_with_GT."
        )
    pictures = [
        Picture(found[name], name.partition(" ")[0], tuple(masks.get(name, ())))
        for name in sorted(found, key=_class_and_number)
    ]
    lost = [paths[0].name for name, paths in masks.items() if name not in found]
    bare = [p.path.name for p in pictures if not p.masks and p.class_name != "normal"]
    notes = [
        f"{some_are(names)} {what}"
        for names, what in (
            (odd, f"left out: not named as in BUSI ({EXAMPLE})."),
            (lost, "left out: a mask whose picture is missing."),
            (bare, "taken without a lesion: the mask is missing."),
        )
        if names
    ]
    return Busi(root, tuple(pictures), tuple(notes))


def _class_and_number(name: str) -> tuple[str, int]:
    match = NAME.fullmatch(f"{name}.png")
    assert match is not None
    return match["kind"], int(match["number"])


def masks_beside(path: Path) -> tuple[Path, ...]:
    """Return the masks of a picture, named as in BUSI, that lie beside it."""
    name = re.compile(rf"{re.escape(path.stem)}_mask(_\d+)?")
    same = path.parent.glob(f"*{path.suffix}")
    return tuple(sorted(one for one in same if name.fullmatch(one.stem)))


def lesion_mask(path: Path, masks: Sequence[Path]) -> Bools:
    """Return where a picture shows lesions, bool (H, W): all of its masks together.

    Raises
    ------
    DataSetError
        If the picture or a mask cannot be read, or their sizes differ.
    """
    shape = read_picture(path).shape[:2]
    found = [_mask(mask, shape) for mask in masks]
    return np.logical_or.reduce([np.zeros(shape, bool), *found])


def lesion_at(path: Path) -> Bools | None:
    """Return where a picture's file shows lesions; None if no mask lies beside it.

    Raises
    ------
    DataSetError
        As :func:`lesion_mask`.
    """
    masks = masks_beside(path)
    return lesion_mask(path, masks) if masks else None


def _mask(path: Path, shape: tuple[int, ...]) -> Bools:
    """Return one mask, bool (H, W), of a picture of this shape."""
    mask = read_picture(path).max(-1) >= WHITE
    if mask.shape != shape:
        raise DataSetError(
            f"{path.name} is {mask.shape[1]} x {mask.shape[0]} px, its picture "
            f"{shape[1]} x {shape[0]}. Bring the original files back."
        )
    return np.asarray(mask)


def lesion_tiles(busi: Busi, tile_px: int) -> Generator[Event, None, list[Bools]]:
    """Lay each lesion on the tile that shows its picture, bool (tile_px, tile_px).

    Each mask is a lesion; empty ones are left out. Tiles are as
    :func:`histomae.data.pictures.as_tile` makes them of ultrasound.

    Raises
    ------
    DataSetError
        As :func:`lesion_mask`.
    """
    lesions = []
    for number, picture in enumerate(busi.pictures):
        if number % TOLD_EVERY == 0:
            yield Progress("measuring lesions", number, len(busi.pictures))
        pixels = read_picture(picture.path)
        box = sector_box(grey_of(pixels))
        for path in picture.masks:
            mask = _mask(path, pixels.shape[:2])[box].astype(np.uint8)
            tile = whole_square(mask, tile_px, resample=Image.Resampling.NEAREST)
            if tile.any():
                lesions.append(tile > 0)
    yield Progress("measuring lesions", len(busi.pictures), len(busi.pictures))
    return lesions


def lesion_width(lesion: Bools) -> float:
    """Return the diameter of a disc as large as a lesion, pixels."""
    return float(2 * np.sqrt(lesion.sum() / np.pi))


def doubts(busi: Busi, group: Indices) -> list[str]:
    """Say which pictures are there more than once, and which under two classes.

    Parameters
    ----------
    group
        int (n,), as :func:`histomae.data.alike.groups_alike` numbers them.
    """
    rows = [np.flatnonzero(group == g).tolist() for g in np.unique(group)]
    several = [[busi.pictures[row] for row in one] for one in rows if len(one) > 1]
    torn = [one for one in several if len({p.class_name for p in one}) > 1]
    notes = []
    if several:
        notes.append(f"Alike, and always on one side of a split: {_equal(several)}.")
    if torn:
        notes.append(f"Alike under two classes, a label is in doubt: {_equal(torn)}.")
    return notes


def _equal(groups: Sequence[Sequence[Picture]]) -> str:
    some = [" = ".join(p.path.stem for p in one) for one in groups[:TOLD]]
    more = f"; and {len(groups) - TOLD} more" if len(groups) > TOLD else ""
    return "; ".join(some) + more


# ---- as marked pictures


def read_marked_busi(root: Path) -> MarkedSet:
    """Find the pictures that have lesions: each mask is one, of its picture's class.

    Pictures that look alike count as a patient, as in :func:`read_labelled`.
    """
    busi = read_busi(root)
    classes = TASKS["benign-malignant"]
    kept = [p for p in busi.pictures if p.masks and p.class_name in classes.names]
    group = result_of(groups_alike([picture.path for picture in kept]))
    return MarkedSet(
        name="BUSI",
        classes=classes,
        pictures=tuple(
            MarkedPicture(
                path=picture.path, marks=picture.masks, patient=f"like {int(number)}"
            )
            for picture, number in zip(kept, group, strict=True)
        ),
        read=_read_lesions,
        notes=busi.notes,
    )


def _read_lesions(picture: MarkedPicture) -> tuple[np.ndarray[Any, Any], Marks]:
    pixels = read_picture(picture.path)
    match = NAME.fullmatch(picture.path.name)
    assert match is not None
    label = TASKS["benign-malignant"].names.index(match["kind"])
    objects = np.zeros(pixels.shape[:2], np.int32)
    for number, path in enumerate(picture.marks, start=1):
        objects[_mask(path, pixels.shape[:2])] = number
    marks = Marks(objects, np.full(len(picture.marks), label))
    return pixels, marks.crop(slice(None), slice(None))  # an empty mask is no lesion


# ---- as labelled pictures

_COLORS = {"benign": BENIGN, "malignant": MALIGNANT, "normal": (0, 158, 115)}
TASKS = {
    "3-classes": ClassSet(CLASSES, tuple(_COLORS.values())),
    "benign-malignant": ClassSet(CLASSES[:2], (BENIGN, MALIGNANT)),
}
OFFICIAL = {"benign": 437, "malignant": 210, "normal": 133}


def read_labelled(root: Path, task: str) -> LabelledSet:
    """Find the pictures, and look at them: those that look alike count as a patient.

    One that cannot be read counts as a patient of its own.
    """
    busi = read_busi(root)
    classes = TASKS[task]
    kept = [p for p in busi.pictures if p.class_name in classes.names]
    paths = [picture.path for picture in kept]
    bad: Iterable[Path] = ()
    try:
        group = result_of(groups_alike(paths))
    except DataSetError:
        bad = result_of(unreadable(paths))
        kept = [picture for picture in kept if picture.path not in bad]
        group = result_of(groups_alike([picture.path for picture in kept]))
    seen = Busi(root, tuple(kept), ())
    patient = {p.path: f"like {int(g)}" for p, g in zip(kept, group, strict=True)}
    return LabelledSet(
        name="BUSI",
        root=root,
        classes=classes,
        pictures=tuple(
            LabelledPicture(
                path=picture.path,
                label=classes.names.index(picture.class_name),
                patient=patient.get(picture.path, picture.path.stem),
            )
            for picture in busi.pictures
            if picture.class_name in classes.names
        ),
        read=read_file,
        notes=(*busi.notes, *doubts(seen, group)),
    )


KIND = Kind(
    name="busi",
    title="BUSI, breast ultrasound",
    tasks=TASKS,
    layout="The folder Dataset_BUSI_with_GT.",
    recognises=is_busi,
    read=read_labelled,
    disk_gb=0.3,
    counts=OFFICIAL,
    names=frozenset(
        f"{name} ({number}).png"
        for name, total in OFFICIAL.items()
        for number in range(1, total + 1)
    ),
    besides=PAPERS + r"|.*_mask(_\d+)?\.png",
    citation=(
        "Al-Dhabyani et al., Dataset of breast ultrasound images. Data in Brief 28, "
        "2020. doi:10.1016/j.dib.2019.104863"
    ),
    address="https://doi.org/10.1016/j.dib.2019.104863",
    flaws=(
        "BUSI names no patients, and holds pictures twice, some under two classes: "
        "those that look alike count as a patient. Its pictures have no micrometres.",
    ),
)
