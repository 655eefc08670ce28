"""Damaged slides: none crashes the reader, hangs it, or gives pixels that are wrong.

Slides of every kind are damaged by a seeded hand, over and over: cut short, bits
flipped, blocks wiped out, entries of their directories overwritten, sizes made huge.
Each mutant goes through all that the package does with a slide (open, thumbnail, first
view, regions, tissue, pictures that come with it) in a process of its own, which is
watched: it may fail by ``SlideError`` alone, within some seconds and some memory. And
each tile that the direct reader gives is compared with OpenSlide's: it may not differ,
and there may be none where OpenSlide refuses. Last come files of a few bytes that claim
what no memory holds: they are refused before any is taken, or do no harm.

Real slides are taken from ``HISTOMAE_TEST_DATA`` where that is set, the others made.

``--plant`` lets the direct reader take tiles of which the JPEG library complains.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import psutil
import tifffile
from bombs import BOMBS
from figures import Figure, load, options, report, say
from tiled_slides import stained, write_tiled

from histomae.errors import SlideError
from histomae.slides import decoders
from histomae.slides.direct import UNDONE_MAX
from histomae.slides.pyramid import pyramid
from histomae.slides.slide import Slide
from histomae.slides.tile_cache import TileCache
from histomae.slides.tissue import tissue_mask

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

Array = np.ndarray[Any, Any]

REGIONS = 20
#: Tiles of a level that are compared; all of them where there are no more.
COMPARED_TILES = 48
CACHE_BYTES = 64 << 20
#: How often a child is looked at, seconds.
LOOK_S = 0.02
#: On a machine that does other things too, a second is long: a child that stands still
#: is stopped after so many times the time that a step may take.
PATIENCE = 30
#: What claims too much is refused within so many seconds and megabytes.
BOMB_S, BOMB_MB = 1.0, 200.0
#: Numbers that no size is.
HUGE = (0, 1, 65_535, 1_000_000, 0x7FFFFFFF, 0xFFFFFFFF)
#: TIFF: width, height, tile's width and height, places, bytes, strips, rows of a strip.
SIZE_TAGS = (256, 257, 322, 323, 324, 325, 273, 278, 279)
#: DICOM: rows, columns, whole columns and rows, frames.
SIZE_ELEMENTS = (
    b"\x28\x00\x10\x00",
    b"\x28\x00\x11\x00",
    b"\x48\x00\x06\x00",
    b"\x48\x00\x07\x00",
    b"\x28\x00\x08\x00",
)


@dataclass(frozen=True)
class Fixture:
    """A slide to damage: ``path``, and the files that belong to it."""

    name: str
    path: Path
    beside: tuple[Path, ...] = ()

    @property
    def is_tiff(self) -> bool:
        """Whether it has TIFF's directories."""
        return self.path.suffix != ".dcm"


@dataclass
class Verdict:
    """What became of mutants."""

    count: int = 0
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    giants: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    compared: int = 0
    bombs: int = 0
    refused_bombs: int = 0
    slow_bombs: list[str] = field(default_factory=list)
    most_seconds: float = 0.0
    most_bytes: int = 0

    @property
    def faults(self) -> int:
        """How many things were not as they should be."""
        return sum(len(lines) for lines in self.kinds().values())

    def kinds(self) -> dict[str, list[str]]:
        """Return the kinds of faults."""
        return {
            "crash": self.crashes,
            "hang": self.hangs,
            "giant": self.giants,
            "no SlideError": self.strangers,
            "wrong": self.wrong,
            "costly bomb": self.slow_bombs,
        }


def main() -> int:
    """Run it; return the exit code."""
    arguments = parser().parse_args()
    if arguments.quick:
        arguments.each = 12
    if arguments.plant:
        decoders.jpeg = lenient_jpeg
    verdict = Verdict()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        fixtures = list(made(Path(folder), small=arguments.quick))
        if not arguments.quick:
            fixtures += real()
        for number, fixture in enumerate(fixtures):
            begin = time.monotonic()
            mutants = (
                (f"{fixture.name} {each} ({arguments.seed})", (number, each))
                for each in range(arguments.each)
            )
            run_all(fixture, mutants, Path(folder), arguments, verdict)
            say(
                f"{fixture.name}: {arguments.each} mutants in "
                f"{time.monotonic() - begin:.0f} s"
            )
        for number, name in enumerate(BOMBS):
            look_for_long(start_bomb(name, Path(folder), number), arguments, verdict)
    for kind, lines in verdict.kinds().items():
        for line in lines[:20]:
            say(f"{kind}: {line}")
    say(f"refused at: {dict(verdict.steps)}")
    return report(figures(verdict, len(fixtures), arguments), as_json=arguments.json)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    given = options(__doc__)
    given.add_argument("--each", type=int, default=125, help="mutants of each slide")
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    given.add_argument("--goal-s", type=float, default=5, help="seconds for a step")
    given.add_argument("--goal-mb", type=float, default=1000, help="memory for one, MB")
    given.add_argument("--keep", type=Path, help="a folder for mutants that misbehave")
    return given


def figures(
    verdict: Verdict, fixtures: int, arguments: argparse.Namespace
) -> list[Figure]:
    """Return what is printed."""
    return [
        load(),
        Figure("slides that were damaged", fixtures),
        Figure("mutants", verdict.count),
        Figure("of them refused somewhere, by SlideError", verdict.refused),
        Figure("tiles compared with OpenSlide's", verdict.compared),
        Figure("longest step", verdict.most_seconds, "s of a core"),
        Figure("largest memory of one", verdict.most_bytes / 1e6, "MB"),
        Figure("crashes", len(verdict.crashes), at_most=0),
        Figure(f"steps over {arguments.goal_s:g} s", len(verdict.hangs), at_most=0),
        Figure(f"over {arguments.goal_mb:g} MB", len(verdict.giants), at_most=0),
        Figure("failures that are no SlideError", len(verdict.strangers), at_most=0),
        Figure("tiles that OpenSlide refuses or differ", len(verdict.wrong), at_most=0),
        Figure("files that claim what no memory holds", verdict.bombs),
        Figure("of them refused, by SlideError", verdict.refused_bombs),
        Figure(
            f"of them over {BOMB_S:g} s a step or {BOMB_MB:g} MB",
            len(verdict.slow_bombs),
            at_most=0,
        ),
    ]


# ---- the slides


def made(folder: Path, *, small: bool) -> Iterator[Fixture]:
    """Write slides of every coding; their levels divide, so that tiles compare."""
    levels = [stained(512, 384), stained(256, 192, 1), stained(128, 96, 2)]
    for name, coding, more in (
        ("Aperio JPEG", "jpeg rgb tables", {}),
        ("TIFF JPEG", "jpeg ycbcr", {"aperio": False}),
        ("Aperio JPEG 2000 RGB", "jp2 rgb", {}),
        ("Aperio JPEG 2000 YCbCr", "jp2 ycbcr", {}),
        ("BigTIFF JPEG", "jpeg ycbcr tables", {"aperio": False, "bigtiff": True}),
    )[: 3 if small else None]:
        path = folder / f"{name}.svs"
        yield Fixture(name, write_tiled(path, levels, coding, tile=(64, 64), **more))


def real() -> Iterator[Fixture]:
    """Find real slides that are small enough."""
    data = os.environ.get("HISTOMAE_TEST_DATA")
    if not data:
        say("HISTOMAE_TEST_DATA is not set: only slides that were made are damaged")
        return
    slides = Path(data) / "slides"
    for name, pattern in (
        ("real SVS", "CMU-1-Small-Region/*.svs"),
        ("small SVS", "small/small.svs"),
        ("small TIFF, deflate", "small/boxes.tiff"),
        ("real DICOM", "CMU-1-Small-Region-DICOM/*.dcm"),
        ("small DICOM", "small/*.dcm"),
    ):
        # The largest file of a DICOM series holds its finest level.
        found = sorted(slides.glob(pattern), key=lambda path: -path.stat().st_size)
        if found:
            yield Fixture(name, found[0], tuple(found[1:]))


# ---- their damage


def damage(fixture: Fixture, random: np.random.Generator) -> tuple[str, bytes]:
    """Return a mutant's bytes, and what was done."""
    content = bytearray(fixture.path.read_bytes())
    ways: dict[str, Callable[[bytearray, np.random.Generator], None]] = {
        "cut": _cut,
        "bits": _flip,
        "block": _wipe,
        "head": _scratch_head,
    }
    if fixture.is_tiff:
        ways |= {
            "entry": lambda data, rng: _spoil_entry(data, rng, fixture.path),
            "array": lambda data, rng: _spoil_array(data, rng, fixture.path),
            "huge": lambda data, rng: _enlarge_tiff(data, rng, fixture.path),
        }
    else:
        ways["huge"] = _enlarge_dicom
    way = str(random.choice(list(ways)))
    ways[way](content, random)
    return way, bytes(content)


def _cut(data: bytearray, random: np.random.Generator) -> None:
    del data[int(random.integers(0, len(data))) :]


def _flip(data: bytearray, random: np.random.Generator) -> None:
    for at in random.integers(0, len(data), 2 ** random.integers(0, 9)):
        data[at] ^= 1 << int(random.integers(0, 8))


def _wipe(data: bytearray, random: np.random.Generator) -> None:
    start = int(random.integers(0, len(data)))
    length = min(int(2 ** random.integers(3, 14)), len(data) - start)
    data[start : start + length] = (
        bytes(length) if random.random() < 0.5 else random.bytes(length)
    )


def _scratch_head(data: bytearray, random: np.random.Generator) -> None:
    for at in random.integers(0, min(2048, len(data)), random.integers(1, 9)):
        data[at] = int(random.integers(0, 256))


def _tags(path: Path) -> list[Any]:
    with tifffile.TiffFile(path) as tiff:
        return [tag for page in tiff.pages for tag in page.tags.values()]


def _spoil_entry(data: bytearray, random: np.random.Generator, path: Path) -> None:
    tags = _tags(path)
    for _ in range(int(random.integers(1, 4))):
        at = tags[random.integers(0, len(tags))].offset + int(random.integers(0, 12))
        data[at] = int(random.integers(0, 256))


def _spoil_array(data: bytearray, random: np.random.Generator, path: Path) -> None:
    places = [tag for tag in _tags(path) if tag.code in (324, 325) and tag.count > 1]
    tag = places[random.integers(0, len(places))] if places else _tags(path)[0]
    width = max(1, tag.valuebytecount // tag.count)
    for _ in range(int(random.integers(1, 5))):
        at = tag.valueoffset + width * int(random.integers(0, tag.count))
        value = int(random.choice([*HUGE, random.integers(0, 2 * len(data))]))
        if random.random() < 0.3:
            value = 256**width - 1 - value
        data[at : at + width] = (value % 256**width).to_bytes(width, "little")


def _enlarge_tiff(data: bytearray, random: np.random.Generator, path: Path) -> None:
    tags = [tag for tag in _tags(path) if tag.code in SIZE_TAGS]
    word = 8 if data[2] == 43 else 4
    for _ in range(int(random.integers(1, 4))):
        tag = tags[random.integers(0, len(tags))]
        value = int(random.choice(HUGE)).to_bytes(word, "little")
        # As its value, or as how many there are.
        at = tag.offset + 4 + (word if random.random() < 0.7 else 0)
        data[at : at + word] = value


def _enlarge_dicom(data: bytearray, random: np.random.Generator) -> None:
    there = [element for element in SIZE_ELEMENTS if data.find(element) >= 0]
    element = there[random.integers(0, len(there))]
    at = data.find(element) + 8
    width = 4 if element[:2] == b"\x48\x00" else 2
    value = int(random.choice(HUGE)) % 256**width
    digits = b"99999999"[: int(random.integers(1, 5))]
    frames = element == SIZE_ELEMENTS[-1]  # written in digits
    put = digits if frames else value.to_bytes(width, "little")
    data[at : at + len(put)] = put


# ---- one mutant, in a child


def go_through(path: Path, random: np.random.Generator, told: Told) -> None:
    """Do all that is done with a slide; tell what failed as it should."""
    cache = TileCache(CACHE_BYTES)
    with told.step("open"):
        slide = Slide.open(path, fallback_mpp=0.5, cache=cache)
    if told.failed:
        return
    with told.step("thumbnail"):
        slide.thumbnail(512)
    with told.step("view"):
        unreadable: list[Exception] = []
        levels = pyramid(slide, cache=cache, on_error=unreadable.append)
        np.asarray(levels[-1][:])
        y, x = (side // 2 for side in levels[0].shape[:2])
        np.asarray(levels[0][y : y + 600, x : x + 800])
        if unreadable:
            raise unreadable[0]
    for number in range(REGIONS):
        with told.step(f"region {number}"):
            xy = random.uniform(-50, 1, 2) + random.random(2) * slide.dimensions
            mpp = slide.mpp[0] * float(random.choice([1, 1, 1.7, 4, 8]))
            slide.read_region((float(xy[0]), float(xy[1])), (100, 100), mpp)
    with told.step("tissue"):
        tissue_mask(slide)
    for name in slide.associated_sizes:
        with told.step(f"picture {name}"):
            slide.associated_image(name)
    with told.step("profile"):
        slide.icc_profile  # noqa: B018 - it is read here
    with told.step("identity"):
        slide.slide_id  # noqa: B018


@dataclass
class Told:
    """What a child tells of its way through a mutant, while it goes."""

    out: int
    failed: list[str] = field(default_factory=list)

    def tell(self, **what: Any) -> None:
        """Write one line."""
        os.write(self.out, json.dumps(what).encode() + b"\n")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; a failure that is a SlideError is as it should be."""
        self.tell(begun=name)
        begin = time.process_time()
        try:
            yield
        except SlideError:
            self.failed.append(name)
            self.tell(failed=name.split()[0])
        self.tell(ended=name, seconds=time.process_time() - begin)


def compare(path: Path, random: np.random.Generator) -> tuple[int, list[str]]:
    """Compare tiles read directly with OpenSlide's; return how many, and which differ.

    Where OpenSlide blends pixels, only that is undone again: to a few grey values.
    """
    compared, wrong = 0, []
    try:
        slide = Slide.open(path, fallback_mpp=0.5, cache=TileCache(0))
        opened = slide._file._now()
    except SlideError:
        return 0, []
    for level, reader in opened.direct.items():
        try:
            if not opened.is_direct(level):
                continue
        except SlideError:
            continue
        cols, rows = slide.levels[level].tiles
        numbers = random.permutation(min(cols * rows, 1 << 20))[:COMPARED_TILES]
        for row, col in (divmod(int(number), cols) for number in numbers):
            mine = reader.tile(col, row)
            if mine is None:
                continue
            start, size = opened.oracle.box(level, col, row)
            is_exact = opened.oracle.is_exact(level, start)
            try:
                true = opened.oracle.read(level, start, size)
            except SlideError:
                if is_exact:  # else it touched another tile
                    wrong.append(f"level {level}, tile {col} {row}: refused")
                continue
            away = np.abs(mine[: size[1], : size[0]].astype(int) - true).max()
            compared += 1
            if away > (0 if is_exact else UNDONE_MAX):
                wrong.append(f"level {level}, tile {col} {row}: {away} away")
    return compared, wrong


def in_child(fixture: Fixture, folder: Path, seed: tuple[int, ...], out: int) -> None:
    """Damage a slide and go through it."""
    told = Told(out)
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    try:
        way, content = damage(fixture, random)
        told.tell(way=way)
        path = folder / fixture.path.name
        path.write_bytes(content)
        for other in fixture.beside:
            shutil.copy(other, folder / other.name)
        go_through(path, random, told)
        compared, wrong = compare(path, random)
        told.tell(compared=compared, wrong=wrong, ended="all", seconds=0)
    except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
        told.tell(stranger=traceback.format_exc(limit=-4))


# ---- all of them


@dataclass(frozen=True)
class Child:
    """A process that goes through one mutant."""

    name: str
    process: int
    out: int
    folder: Path
    begun: float


def run_all(
    fixture: Fixture,
    mutants: Iterator[tuple[str, tuple[int, int]]],
    folder: Path,
    arguments: argparse.Namespace,
    verdict: Verdict,
) -> None:
    """Run the mutants of a slide, some at a time."""
    running: list[Child] = []
    todo = list(mutants)[::-1]
    while todo or running:
        while todo and len(running) < arguments.jobs:
            name, seed = todo.pop()
            running.append(start(fixture, name, folder, (arguments.seed, *seed)))
        time.sleep(LOOK_S)
        for child in list(running):
            if look_at(child, arguments, verdict):
                running.remove(child)


def start(fixture: Fixture, name: str, folder: Path, seed: tuple[int, ...]) -> Child:
    """Fork a child for one mutant."""
    out, into = os.pipe()
    place = folder / "-".join(map(str, ("mutant", *seed)))
    process = os.fork()
    if not process:
        os.close(out)
        alone()
        in_child(fixture, place, seed, into)
        os._exit(0)
    os.close(into)
    return Child(name, process, out, place, time.monotonic())


def alone() -> None:
    """Leave no core and no words behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # GLib's words before it aborts


# ---- what claims too much


def start_bomb(name: str, folder: Path, number: int) -> Child:
    """Fork a child that goes through a file which claims too much."""
    out, into = os.pipe()
    place = folder / f"bomb-{number}"
    place.mkdir()
    path = place / "bomb.svs"
    path.write_bytes(BOMBS[name]())
    process = os.fork()
    if not process:
        os.close(out)
        alone()
        told = Told(into)
        told.tell(way=name, base=psutil.Process().memory_info().rss)
        try:
            go_through(path, np.random.default_rng(0), told)
        except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
            told.tell(stranger=traceback.format_exc(limit=-4))
        os._exit(0)
    os.close(into)
    return Child(f"bomb: {name}", process, out, place, time.monotonic())


def look_for_long(
    child: Child, arguments: argparse.Namespace, verdict: Verdict
) -> None:
    """Wait for a child with a bomb, and put down how it ended."""
    while not look_at(child, arguments, verdict):
        time.sleep(LOOK_S)


def look_at(child: Child, arguments: argparse.Namespace, verdict: Verdict) -> bool:
    """Tell whether a child has ended, and if so put down how."""
    try:
        memory = psutil.Process(child.process).memory_info().rss
    except psutil.Error:
        memory = 0
    is_late = time.monotonic() - child.begun > PATIENCE * arguments.goal_s
    is_stopped = is_late or memory > 2e6 * arguments.goal_mb
    if is_stopped:
        os.kill(child.process, signal.SIGKILL)
    process, status, used = os.wait4(child.process, 0 if is_stopped else os.WNOHANG)
    if not process:
        return False
    before = verdict.faults
    put_down(child, status, is_stopped, used.ru_maxrss * 1024, arguments, verdict)
    if arguments.keep and verdict.faults > before:
        shutil.copytree(
            child.folder, arguments.keep / child.folder.name, dirs_exist_ok=True
        )
    shutil.rmtree(child.folder, ignore_errors=True)
    return True


def put_down(
    child: Child,
    status: int,
    is_stopped: bool,
    most_bytes: int,
    arguments: argparse.Namespace,
    verdict: Verdict,
) -> None:
    """Read what a child told, and judge it."""
    lines = read_all(child.out)
    way = next((line["way"] for line in lines if "way" in line), "?")
    last = next((line["begun"] for line in lines[::-1] if "begun" in line), "?")
    where = f"{child.name}, {way}, {last}"
    for line in lines:
        seconds = line.get("seconds", 0.0)
        verdict.most_seconds = max(verdict.most_seconds, seconds)
        if seconds > arguments.goal_s:
            verdict.hangs.append(f"{where}: {line['ended']}, {seconds:.1f} s")
        if "stranger" in line:
            verdict.strangers.append(f"{where}: {line['stranger']}")
        verdict.wrong += [f"{where}: {each}" for each in line.get("wrong", ())]
        verdict.compared += line.get("compared", 0)
        verdict.steps.update([line["failed"]] if "failed" in line else ())
    if is_stopped and most_bytes <= 1e6 * arguments.goal_mb:
        verdict.hangs.append(f"{where}: stopped")
    elif not is_stopped and status:
        verdict.crashes.append(f"{where}: signal {status & 0x7F}")
    if most_bytes > 1e6 * arguments.goal_mb:
        verdict.giants.append(f"{where}: {most_bytes / 1e6:.0f} MB")
    refused = any("failed" in line for line in lines)
    base = next((line["base"] for line in lines if "base" in line), None)
    if base is not None:
        verdict.bombs += 1
        slowest = max((line.get("seconds", 0.0) for line in lines), default=0.0)
        more_mb = (most_bytes - base) / 1e6
        verdict.refused_bombs += refused
        if slowest > BOMB_S or more_mb > BOMB_MB:
            verdict.slow_bombs.append(f"{where}: {slowest:.2f} s, {more_mb:.0f} MB")
    else:
        verdict.count += 1
        verdict.refused += refused
    verdict.most_bytes = max(verdict.most_bytes, most_bytes)


def read_all(out: int) -> list[dict[str, Any]]:
    """Read and close a pipe whose writer has ended; one line is one thing told."""
    with os.fdopen(out, "rb") as pipe:
        return [json.loads(line) for line in pipe]


def lenient_jpeg(
    data: bytes, head: bytes, size: tuple[int, int], *, reduce: int = 1
) -> Array | None:
    """Decode a tile whatever the JPEG library says of it."""
    found = decoders.segments(data)
    if found is None:
        return None
    whole = head + b"".join(body for _, body in found[0]) + data[found[1] :]
    try:
        pixels: Array = imagecodecs.jpeg8_decode(whole)
    except (RuntimeError, ValueError):
        return None
    return pixels if pixels.shape == decoders.reduced_shape(size, reduce) else None


if __name__ == "__main__":
    sys.exit(main())
