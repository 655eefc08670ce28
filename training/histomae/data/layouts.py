"""What official layouts have in common: how they are found, walked, read and counted.

A reader of one data set is a :class:`Kind` and a function that understands the path of
a picture. Nothing is opened while a tree is read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from histomae.data.pictures import read_picture
from histomae.data.words import some_are, some_have
from histomae.errors import ConfigError, DataSetError
from histomae.slides.find import PICTURE_SUFFIXES

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from histomae.data.classes import ClassSet
    from histomae.data.labelled import LabelledPicture, LabelledSet, Pixels

Understood = TypeVar("Understood")

#: Suffixes of pictures in data sets; some are kept as TIFF.
SUFFIXES = (*PICTURE_SUFFIXES, ".tif", ".tiff")
#: What folders, and columns of tables, call the sides of a split.
SIDE_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
#: What belongs to many data sets and is no picture.
PAPERS = r"(?i).*\.(txt|md|pdf|csv|xlsx|ods|docx?|json|geojson|xml|html|m|py|db)"


def part_of_class(data: LabelledSet, picture: LabelledPicture) -> str:
    """Return the class of a picture, and its side of the official split before it."""
    return f"{picture.side} {data.classes.names[picture.label]}".strip()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A data set that is known: what it is, how it is recognised, read and counted."""

    name: str
    """For the command line, such as bracs-roi."""
    title: str
    tasks: Mapping[str, ClassSet]
    """What can be asked, the finest first; none: classes are those of the files."""
    layout: str
    """Which folder to name, and what is in it."""
    recognises: Callable[[Path], bool]
    """Tells from a few names; quick on a large tree."""
    read: Callable[[Path, str], LabelledSet]
    """Reads a path for a task of ``tasks``; see :meth:`open`."""
    disk_gb: float | None = None
    """About what it needs; None: depends."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Official number of pictures of each part, for the first task."""
    part: Callable[[LabelledSet, LabelledPicture], str] = part_of_class
    """To which part a picture belongs."""
    names: frozenset[str] = frozenset()
    """Official names of all files, where these are a series."""
    besides: str = PAPERS
    """Pattern of names of files that belong to it and are no picture."""
    citation: str = ""
    address: str = ""
    """Where it is offered."""
    flaws: tuple[str, ...] = ()
    """Sentences that its every user must know."""

    @property
    def total(self) -> int:
        """Official number of pictures; 0: there is none."""
        return sum(self.counts.values())

    def open(self, path: Path, task: str | None = None) -> LabelledSet:
        """Read a data set, nothing of whose pixels is opened.

        Parameters
        ----------
        task
            One of ``tasks``; None: the first.

        Raises
        ------
        ConfigError
            If there is no such task.
        DataSetError, LabelError
            If the path is not this data set.
        """
        tasks = tuple(self.tasks)
        if task is not None and task not in tasks:
            choose = f"Choose {', '.join(tasks)}." if tasks else "Leave it out."
            raise ConfigError("task", f"{self.name} has none called {task!r}. {choose}")
        if not path.exists():
            raise DataSetError(f"{path} does not exist. Check the name.")
        data = self.read(path, task or next(iter(tasks), ""))
        return replace(data, notes=(*self.flaws, *data.notes, *_doubts(data)))


def _doubts(data: LabelledSet) -> list[str]:
    """Say which classes have no picture, or one patient only, and who is torn apart."""
    patients: dict[int, set[str]] = defaultdict(set)
    sides: dict[str, set[str]] = defaultdict(set)
    for picture in data.pictures:
        patients[picture.label].add(picture.patient)
        sides[picture.patient].add(picture.side)
    names = data.classes.names
    absent = [name for label, name in enumerate(names) if label not in patients]
    alone = [names[label] for label in sorted(patients) if len(patients[label]) == 1]
    notes = []
    if absent:
        notes.append(f"{some_have(absent)} no picture here.")
    if alone:
        notes.append(
            f"{some_have(alone)} one patient only, and cannot be both learned and "
            "tested."
        )
    torn = sorted(patient for patient, found in sides.items() if len(found - {""}) > 1)
    if torn:
        notes.append(
            f"{some_are(torn)} on more than one side of the split that comes with the "
            "data. Split by patient ('--split patients') if that must not be."
        )
    return notes


# ---- walking a tree


def files_below(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Return the files below a folder with these suffixes, in order.

    What a system hides or leaves beside (``.DS_Store``, ``__MACOSX``) is passed by.
    """
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(
            part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts
        )
        and path.is_file()
    )


def any_named(root: Path, pattern: str, name: re.Pattern[str]) -> bool:
    """Tell whether a folder holds a file of a pattern with such a name."""
    return root.is_dir() and any(
        name.fullmatch(path.name) for path in root.rglob(pattern)
    )


def find_named(
    root: Path,
    understand: Callable[[Path], Understood | None],
    *,
    of: str,
    example: str,
    choose: str,
    or_else: str = "",
    suffixes: tuple[str, ...] = SUFFIXES,
) -> tuple[list[Understood], tuple[str, ...]]:
    """Find the pictures below a folder that are named as in a data set.

    Parameters
    ----------
    understand
        Returns what a path tells; None: it is not named so.
    of, example, choose
        The data set, a name in it, and the folder to choose, for messages.
    or_else
        What else may be wrong with a name, after a comma.

    Returns
    -------
    What was understood, in the order of the files' names, and notes on what was left
    out: what is not understood, or is there twice.

    Raises
    ------
    DataSetError
        If none is named so.
    """
    known: dict[str, Understood] = {}
    odd: list[str] = []
    twice: list[str] = []
    for path in files_below(root, suffixes):
        found = understand(path)
        if found is None:
            odd.append(path.name)
        elif path.name in known:
            twice.append(path.name)
        else:
            known[path.name] = found
    if not known:
        raise DataSetError(
            f"{root} holds no picture named as in {of}, such as {example}. Choose "
            f"{choose}."
        )
    notes = []
    if odd:
        notes.append(
            f"{some_are(odd)} left out: not named as in {of} ({example}){or_else}."
        )
    if twice:
        notes.append(f"{some_are(twice)} left out: there is another one of that name.")
    return [known[name] for name in sorted(known)], tuple(notes)


def side_of(word: str) -> str:
    """Return train, val or test, as a folder or a cell calls it; empty: none."""
    return next((s for s, names in SIDE_NAMES.items() if word.lower() in names), "")


def side_in(path: Path, root: Path) -> str:
    """Return the side that a folder between a root and a file names; empty: none."""
    inside = (root.name, *path.relative_to(root).parts[:-1])
    return next((side for side in map(side_of, reversed(inside)) if side), "")


def read_file(picture: LabelledPicture) -> Pixels:
    """Return the pixels of a picture that is a file, uint8 (H, W, 3)."""
    return read_picture(picture.path)


def no_patients(what: str) -> str:
    """Return the sentence on a data set that names no patients."""
    return (
        f"{what} names no patients: each picture counts as one of its own. Pictures of "
        "one patient may stand on both sides of a split, and make scores too good."
    )
