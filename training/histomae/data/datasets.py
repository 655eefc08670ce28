"""The data sets that are known, by their official layouts: opened, listed, verified."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from histomae.data import bracs, breakhis, busi, own_pictures, pcam, small_sets
from histomae.data.layouts import files_below
from histomae.data.pictures import readable, unreadable
from histomae.errors import ConfigError, DataSetError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from histomae.data.labelled import LabelledSet
    from histomae.data.layouts import Kind
    from histomae.events import Event

#: In the order in which they are tried: a person's own come last.
KINDS: tuple[Kind, ...] = (
    bracs.ROIS,
    bracs.SLIDES,
    small_sets.BACH,
    breakhis.KIND,
    small_sets.UCSB,
    busi.KIND,
    pcam.PCAM,
    small_sets.NCT,
    own_pictures.TABLE,
    own_pictures.FOLDERS,
)
AUTO = "auto"


def kind_of(path: Path, kind: str = AUTO) -> Kind:
    """Return the kind of that name, or, for ``auto``, the one that a path is.

    Raises
    ------
    ConfigError
        If there is none of that name.
    DataSetError
        If a path is none that is known.
    """
    names = ", ".join(known.name for known in KINDS)
    if kind != AUTO:
        for known in KINDS:
            if known.name == kind:
                return known
        raise ConfigError("kind", f"{kind!r} is not known. Choose auto, {names}.")
    if not path.exists():
        raise DataSetError(f"{path} does not exist. Check the name.")
    for known in KINDS:
        if known.recognises(path):
            return known
    raise DataSetError(
        f"{path} is no data set that is known ({names}). Choose the folder that "
        "'histomae datasets' names, or write a table: path,label,patient."
    )


def open_dataset(
    path: Path, kind: str = AUTO, *, task: str | None = None
) -> LabelledSet:
    """Read a data set from its official layout; see :meth:`Kind.open`.

    Nothing of the pictures is opened, but for BUSI, whose doubles stand for patients.

    Parameters
    ----------
    kind
        A name of ``KINDS``; ``auto``: whichever the path is.
    task
        One of the kind's; None: its first, the finest.
    """
    return kind_of(path, kind).open(path, task)


def only_readable(
    data: LabelledSet, *, skip_unreadable: bool = False
) -> Generator[Event, None, LabelledSet]:
    """Look into every picture of a data set; return those that can be read.

    Raises
    ------
    DataSetError
        If one cannot, unless they should be skipped: then notes name them.
    """
    good = yield from readable(
        data.pictures, skip_unreadable=skip_unreadable, read=data.read
    )
    rows = [row for row, picture in enumerate(data.pictures) if picture in good]
    left_out = len(data) - len(rows)
    if not left_out:
        return data
    note = f"{left_out} of {len(data)} pictures cannot be read and are left out."
    return replace(data.among(rows), notes=(*data.notes, note))


# ---- verifying a download


@dataclass(frozen=True, eq=False)
class Check:
    """What a download holds: its pictures, how many of each part, and what is wrong.

    ``wrong`` are lines, a file or a part each; none: it is whole.
    """

    kind: Kind
    data: LabelledSet
    found: dict[str, int]
    wrong: tuple[str, ...]


def check_dataset(path: Path, kind: str = AUTO) -> Generator[Event, None, Check]:
    """Verify a download: official counts, missing, extra and unreadable files.

    Slides are only counted, not read.

    Raises
    ------
    DataSetError, LabelError
        If the path is no such data set.
    """
    known = kind_of(path, kind)
    data = known.open(path)
    bad = {}
    if known.name != bracs.SLIDES.name:
        bad = yield from unreadable(data.pictures, read=data.read)
    found = dict(Counter(known.part(data, picture) for picture in data.pictures))
    wrong = [
        *_counts(known, found),
        *_files(known, path, data),
        *(f"unreadable: {error}" for error in bad.values()),
    ]
    return Check(known, data, found, tuple(wrong))


def _counts(kind: Kind, found: dict[str, int]) -> list[str]:
    if not kind.counts:
        return []
    return [
        f"wrong count: {part or 'no part'}: {found.get(part, 0)} pictures, "
        f"officially {kind.counts.get(part, 0)}"
        for part in sorted({*kind.counts, *found})
        if found.get(part, 0) != kind.counts.get(part, 0)
    ]


def _files(kind: Kind, path: Path, data: LabelledSet) -> list[str]:
    taken = {picture.path for picture in data.pictures}
    missing = sorted(kind.names - {one.name for one in taken})
    lines = [f"missing: {name}" for name in missing]
    if path.is_dir() and kind.counts:
        besides = re.compile(kind.besides)
        lines += [
            f"extra: {file.relative_to(path).as_posix()}"
            for file in files_below(path)
            if file not in taken and not besides.fullmatch(file.name)
        ]
    return lines
