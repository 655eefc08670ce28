"""What PAMA trains on: slides as bags of tiles, read from feature files.

The counterpart of :mod:`histomae.learn.examples` for methods that see whole slides.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.bags import check_alike
from histomae.errors import ConfigError, NotEnoughDataError, RunError
from histomae.events import Event, Note, Progress
from histomae.exchange.bags import read_bag
from histomae.exchange.features import find_features
from histomae.files import write_beside
from histomae.learn.bags import BagSource
from histomae.learn.examples import GB, Examples
from histomae.models.initial import RANDOM
from histomae.models.slide_checkpoint import name_digits, read_slide_header

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from histomae.config import PretrainConfig
    from histomae.data.bags import Bag
    from histomae.learn.runs import RunFolder
    from histomae.models.feature_spec import FeatureSpec

Indices = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

#: Hexadecimal digits that tell one bag from another.
ID_DIGITS = 16
READING = "reading features"


@dataclass(frozen=True, eq=False, kw_only=True)
class BagExamples(Examples):
    """Slides as bags of tiles."""

    spec: FeatureSpec
    """How the tiles became vectors."""
    seen: tuple[str, ...]
    """Of the slides that the model was ever trained on, sorted: see
    :func:`histomae.models.slide_checkpoint.name_digits`."""
    mean: Floats
    """float64 (C,): of the tiles, all slides counting alike."""
    std: Floats
    """float64 (C,)."""
    what: str = "slide"


@dataclass(frozen=True)
class BagEntry:
    """One line of a run's list of bags."""

    slide: str
    path: str
    bag_id: str
    """Of what is in it: it may have been moved."""
    tiles: int
    held_out: bool


class BagFiles(BagSource):
    """Bags from memory, or from their files.

    Parameters
    ----------
    files
        Where each bag is, and the bag itself if it is kept in memory.
    """

    def __init__(self, files: Sequence[tuple[Path, Bag | None]]) -> None:
        self._files = tuple(files)

    def bag(self, number: int) -> Bag:
        """Return a bag.

        Raises
        ------
        FeatureError
            If its file can no longer be read.
        """
        path, bag = self._files[number]
        return read_bag(path) if bag is None else bag


def slide_bags(
    config: PretrainConfig, run: RunFolder, stack: ExitStack, *, anew: bool
) -> Generator[Event, None, tuple[PretrainConfig, BagExamples]]:
    """Read the feature files, and draw who is held out or read that from the run.

    Slides of a single tile are left out, for nothing of them can be hidden, and so is
    what is there twice.

    Parameters
    ----------
    stack
        Not used: nothing stays open.
    anew
        Draw anew, and write it into the run folder.

    Returns
    -------
    The settings with pixel size and width decided, and the bags.

    Raises
    ------
    FeatureError
        If a file is damaged, or must not be mixed with the others.
    ConfigError
        If a setting is not that of the files.
    NotEnoughDataError
        If no slide is left.
    RunError
        If the run's list of bags, or a bag on it, is missing.
    CheckpointError
        If the weights to start from are of no slide encoder.
    """
    pile = _Pile(int(config.cache_gb * GB))
    paths = find_features(config.slides)
    for done, path in enumerate(paths):
        yield Progress(READING, done, len(paths))
        pile.add(path, read_bag(path))
    yield Progress(READING, len(paths), len(paths))
    if not pile.entries:
        raise NotEnoughDataError(
            "No slide has two tiles or more. Embed slides with more tissue, or with a "
            "lower min_tissue."
        )
    config = _as_in_files(config, pile.spec)
    if anew:
        entries = drawn(list(pile.entries.values()), config.held_out, config.seed)
        write_entries(run, entries)
        for note in pile.notes:
            yield Note(note)
    else:
        entries = read_entries(run)
        _check_there(entries, pile.entries, config)
    if not pile.fits:
        yield Note(
            f"The features do not fit into {config.cache_gb:g} GB (cache_gb): what "
            "does not is read again in every epoch."
        )
    mean, std = pile.scale()
    return config, BagExamples(
        source=BagFiles([pile.files[entry.bag_id] for entry in entries]),
        held_out=np.array([entry.held_out for entry in entries]),
        region=np.arange(len(entries)),
        mpp=pile.spec.mpp,
        mpp_given=False,
        patient=np.unique([entry.slide for entry in entries], return_inverse=True)[1],
        present=np.ones((len(entries), 1), bool),
        spec=pile.spec,
        seen=_seen(config, run, entries, anew=anew),
        mean=mean,
        std=std,
    )


class _Pile:
    """Bags as they are read, each once; as many as fit stay in memory."""

    def __init__(self, memory_bytes: int) -> None:
        self._room = memory_bytes
        self._first: Bag | None = None
        self._sums: list[Floats] = []
        self.entries: dict[str, BagEntry] = {}
        self.files: dict[str, tuple[Path, Bag | None]] = {}
        self.notes: list[str] = []

    @property
    def spec(self) -> FeatureSpec:
        assert self._first is not None
        return self._first.spec

    @property
    def fits(self) -> bool:
        return all(bag is not None for _, bag in self.files.values())

    def add(self, path: Path, bag: Bag) -> None:
        self._first = self._first or bag
        check_alike([self._first, bag])
        name = bag_id(bag)
        if len(bag) < 2:
            self.notes.append(f"{bag.name} has a single tile and is left out.")
            return
        if name in self.entries:
            other = self.entries[name].path
            self.notes.append(f"{path} holds what {other} does, and is left out.")
            return
        self.entries[name] = BagEntry(bag.slide, str(path), name, len(bag), False)
        size = bag.features.nbytes + bag.cells.nbytes
        fits = size <= self._room
        self._room -= size if fits else 0
        self.files[name] = path, bag if fits else None
        wide = bag.features.astype(np.float64)
        self._sums.append(np.stack([wide.mean(0), np.square(wide).mean(0)]))

    def scale(self) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of each number, float64 (C,)."""
        mean, squares = np.mean(self._sums, axis=0)
        return mean, np.sqrt(np.maximum(squares - mean**2, 0))


def bag_id(bag: Bag) -> str:
    """Return what tells a bag from others: a hash of its places and numbers."""
    digest = hashlib.sha256(bag.cells.tobytes())
    digest.update(bag.features.tobytes())
    return digest.hexdigest()[:ID_DIGITS]


def drawn(entries: Sequence[BagEntry], share: float, seed: int) -> list[BagEntry]:
    """Return the entries, a share of the slides held out; one at least is not.

    Regions of one slide stay together.
    """
    slides = list(dict.fromkeys(entry.slide for entry in entries))
    count = min(round(share * len(slides)), len(slides) - 1)
    order = np.random.default_rng(seed).permutation(len(slides))
    chosen = {slides[number] for number in order[:count]}
    return [replace(entry, held_out=entry.slide in chosen) for entry in entries]


def _as_in_files(config: PretrainConfig, spec: FeatureSpec) -> PretrainConfig:
    """Return the settings with what the files say; refuse what they do not."""
    for name, theirs in (("feature_dim", spec.width), ("mpp", spec.mpp)):
        mine = getattr(config, name)
        if mine is not None and mine != theirs:
            raise ConfigError(
                name,
                f"{mine:g} was asked for, and the feature files have "
                f"{'none' if theirs is None else f'{theirs:g}'}. Leave it out, or "
                "embed the slides again.",
            )
    return replace(config, feature_dim=spec.width, mpp=spec.mpp)


def _seen(
    config: PretrainConfig, run: RunFolder, entries: Sequence[BagEntry], *, anew: bool
) -> tuple[str, ...]:
    """Return what stands for the slides trained on, now and before."""
    seen = {name_digits(entry.slide) for entry in entries if not entry.held_out}
    before = config.init_from if anew else run.last
    if before != RANDOM:
        seen |= set(read_slide_header(before).seen)
    return tuple(sorted(seen))


# The list of a run ---------------------------------------------------------------


def write_entries(run: RunFolder, entries: Sequence[BagEntry]) -> None:
    """Write a run's list of bags, as CSV."""
    with (
        write_beside(run.bags_file) as beside,
        beside.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(BagEntry.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in entries)


def read_entries(run: RunFolder) -> list[BagEntry]:
    """Read back what :func:`write_entries` wrote.

    Raises
    ------
    RunError
        If it is missing or damaged.
    """
    try:
        with run.bags_file.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        entries = [
            BagEntry(
                row["slide"],
                row["path"],
                row["bag_id"],
                int(row["tiles"]),
                {"True": True, "False": False}[row["held_out"]],
            )
            for row in rows
        ]
        if not entries:
            raise ValueError("it is empty")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(
            f"{run.bags_file} cannot be read ({error}), and without it the run cannot "
            "go on. Start a new run from its checkpoint (init_from)."
        ) from error
    return entries


def _check_there(
    entries: Iterable[BagEntry],
    found: dict[str, BagEntry],
    config: PretrainConfig,
) -> None:
    """Refuse to go on without a bag that the run was trained on."""
    for entry in entries:
        if entry.bag_id not in found:
            raise RunError(
                f"The run was trained on {entry.path}, which is not among "
                f"{', '.join(config.slides)}, or has changed. Bring it back, or resume "
                "with feature files that name its place."
            )
