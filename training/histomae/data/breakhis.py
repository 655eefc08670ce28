"""BreakHis from its official tree: pictures, patients, and sets of magnifications.

Everything is told by the names of the files (Spanhol et al., IEEE TBME 2016), such as
``SOB_B_TA-14-4659-40-001.png``: benign or malignant, subtype, year, slide,
magnification, number. The digits of the slide are the case, which is the patient: the
slides 22549AB and 22549CD are of one. Pictures of one slide and one number at several
magnifications are a set; they show the same area, and are not registered.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.layouts import Kind, find_named, read_file
from histomae.data.picture_sets import PictureSets
from histomae.data.small_sets import BENIGN_MALIGNANT
from histomae.data.splits import whole_groups

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from histomae.data.classes import Color

#: From the coarsest.
MAGNIFICATIONS = (40, 100, 200, 400)
#: µm per pixel at each magnification, as published.
MPP = {40: 0.49, 100: 0.20, 200: 0.10, 400: 0.05}
#: Height of a picture; a few are 456.
HEIGHT_PX = 460
SUBTYPES = {
    "A": "Adenosis",
    "F": "Fibroadenoma",
    "PT": "Phyllodes tumour",
    "TA": "Tubular adenoma",
    "DC": "Ductal carcinoma",
    "LC": "Lobular carcinoma",
    "MC": "Mucinous carcinoma",
    "PC": "Papillary carcinoma",
}
BENIGN = ("A", "F", "PT", "TA")
NAME = re.compile(
    r"SOB_(?P<kind>[BM])_(?P<subtype>[A-Z]+)-(?P<year>\d+)-(?P<slide>\d+\w*)"
    r"-(?P<magnification>\d+)-(?P<number>\d+)\.png"
)
EXAMPLE = "SOB_B_TA-14-4659-40-001.png"


@dataclass(frozen=True)
class Picture:
    """One picture, as its name tells."""

    path: Path
    subtype: str
    """One of ``SUBTYPES``."""
    slide: str
    magnification: int
    number: int

    @property
    def case(self) -> str:
        """The patient."""
        return re.match(r"\d+", self.slide)[0]  # type: ignore[index]

    @property
    def is_malignant(self) -> bool:
        """Whether it is of a malignant tumour."""
        return self.subtype not in BENIGN


@dataclass(frozen=True)
class BreakHis:
    """The pictures of a tree, in the order of their names."""

    root: Path
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    """Sentences for the user: what was left out, what is doubtful."""


def is_breakhis(path: Path) -> bool:
    """Tell whether a folder holds pictures named as in BreakHis."""
    return path.is_dir() and next(path.rglob("SOB_*.png"), None) is not None


def read_breakhis(root: Path) -> BreakHis:
    """Find the pictures below a folder; none is opened.

    Pictures whose names are not understood, or that are there twice, are left out, and
    notes count them.

    Raises
    ------
    DataSetError
        If there is none named as in BreakHis.
    """
    pictures, notes = find_named(
        root,
        _picture,
        of="BreakHis",
        example=EXAMPLE,
        choose="the folder BreaKHis_v1",
        or_else=", or of a subtype or magnification that it does not have",
        suffixes=(".png",),
    )
    return BreakHis(root, tuple(pictures), (*notes, *_doubts(pictures)))


def _picture(path: Path) -> Picture | None:
    found = NAME.fullmatch(path.name)
    if found is None or found["subtype"] not in SUBTYPES:
        return None
    if (found["kind"] == "B") != (found["subtype"] in BENIGN):
        return None
    magnification = int(found["magnification"])
    if magnification not in MAGNIFICATIONS:
        return None
    number = int(found["number"])
    return Picture(path, found["subtype"], found["slide"], magnification, number)


def _doubts(pictures: Iterable[Picture]) -> list[str]:
    """Say which slides stand under two subtypes, as 13412 does, pixel for pixel."""
    subtypes = defaultdict(set)
    for picture in pictures:
        subtypes[picture.slide].add(picture.subtype)
    return [
        f"Slide {slide} stands under {' and '.join(sorted(names))}: its label is in "
        "doubt. Its patient is always on one side of a split."
        for slide, names in sorted(subtypes.items())
        if len(names) > 1
    ]


# ---- sets of magnifications


def picture_sets(
    pictures: Iterable[Picture], *, partial: bool, held_out: float, seed: int
) -> tuple[PictureSets, str]:
    """Put pictures of one slide and number together.

    Parameters
    ----------
    partial
        Keep sets that lack some of the magnifications; there are two at least.
    held_out
        Share of the sets kept out of training, whole patients at a time; none where
        there is only one patient.

    Returns
    -------
    The sets, and a sentence on how many there are and what was left out.
    """
    found: dict[tuple[str, str, int], dict[int, Picture]] = defaultdict(dict)
    for picture in pictures:
        key = (picture.subtype, picture.slide, picture.number)
        found[key][picture.magnification] = picture
    complete = [one for one in found.values() if len(one) == len(MAGNIFICATIONS)]
    lacking = [one for one in found.values() if 2 <= len(one) < len(MAGNIFICATIONS)]
    kept = complete + lacking if partial else complete
    cases = tuple(next(iter(one.values())).case for one in kept)
    sets = PictureSets(
        paths=tuple(
            tuple(one[m].path if m in one else None for m in MAGNIFICATIONS)
            for one in kept
        ),
        cases=cases,
        views=len(MAGNIFICATIONS),
        held_out=whole_groups(cases, held_out, seed),
    )
    note = (
        f"{len(complete)} sets of all four magnifications, {len(lacking)} of two or "
        f"three ({'taken too' if partial else 'left out; partial_sets takes them'}), "
        f"{len(set(cases))} patients."
    )
    return sets, note


# ---- as labelled pictures

#: Benign ones from blue to green, malignant ones from yellow to red.
COLORS: tuple[Color, ...] = (
    *((0, 114, 178), (86, 180, 233), (120, 94, 180), (0, 158, 115)),
    *((213, 94, 0), (240, 228, 66), (204, 121, 167), (150, 20, 40)),
)
SUBTYPE_SET = ClassSet(tuple(SUBTYPES), COLORS, tuple(SUBTYPES.values()))
_AT = ("", *(f"@{magnification}" for magnification in MAGNIFICATIONS))
TASKS = {
    f"{name}{at}": classes
    for name, classes in (("subtype", SUBTYPE_SET), ("binary", BENIGN_MALIGNANT))
    for at in _AT
}
_COUNTS = {
    "A": (114, 113, 111, 106),
    "F": (253, 260, 264, 237),
    "PT": (109, 121, 108, 115),
    "TA": (149, 150, 140, 130),
    "DC": (864, 903, 896, 788),
    "LC": (156, 170, 163, 137),
    "MC": (205, 222, 196, 169),
    "PC": (145, 142, 135, 138),
}


def read_labelled(root: Path, task: str) -> LabelledSet:
    """Find the pictures for a task, such as ``subtype``, or ``binary@200``: at 200x."""
    name, _, magnification = task.partition("@")
    tree = read_breakhis(root)
    wanted = {int(magnification)} if magnification else set(MAGNIFICATIONS)
    return LabelledSet(
        name="BreakHis",
        root=root,
        classes=TASKS[task],
        pictures=tuple(
            LabelledPicture(
                path=picture.path,
                label=int(picture.is_malignant)
                if name == "binary"
                else list(SUBTYPES).index(picture.subtype),
                patient=picture.case,
                slide=picture.slide,
                mpp=MPP[picture.magnification],
            )
            for picture in tree.pictures
            if picture.magnification in wanted
        ),
        read=read_file,
        notes=tree.notes,
    )


def _part(data: LabelledSet, picture: LabelledPicture) -> str:
    """Return the subtype and magnification of a picture."""
    magnification = next(m for m, mpp in MPP.items() if mpp == picture.mpp)
    return f"{data.classes.names[picture.label]} {magnification}x"


KIND = Kind(
    name="breakhis",
    title="BreakHis, breast tumours at four magnifications",
    tasks=TASKS,
    layout="The folder BreaKHis_v1.",
    recognises=is_breakhis,
    read=read_labelled,
    disk_gb=4,
    counts={
        f"{subtype} {magnification}x": number
        for subtype, numbers in _COUNTS.items()
        for magnification, number in zip(MAGNIFICATIONS, numbers, strict=True)
    },
    part=_part,
    citation=(
        "Spanhol et al., A dataset for breast cancer histopathological image "
        "classification. IEEE TBME 63, 2016. doi:10.1109/TBME.2015.2496264"
    ),
    address=(
        "https://web.inf.ufpr.br/vri/databases/"
        "breast-cancer-histopathological-database-breakhis"
    ),
)
