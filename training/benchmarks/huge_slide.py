"""What a slide of 200,000 × 200,000 pixels costs: memory, and the time of its tissue.

In a process of its own, with nothing else loaded, the slide is opened, its pyramid for
the viewer is made, and it is read as by a person who looks around: the overview, and
views at random places of every level. Memory is what the process holds more than before
the slide was opened, at its highest; of it the cache of decoded tiles may take its
budget. Then, on a slide of 100,000 × 100,000, everything is timed from opening the file
to the tissue mask, and which levels were read is noted.

The slides are made on the spot: see ``made_slides``. ``--plant`` keeps every tile that
was decoded, and looks for tissue in a finer level than is needed.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from figures import Figure, load, options, report, say
from made_slides import tissue_at, write_made_slide

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

MEMORY_SIDE, TISSUE_SIDE = 200_000, 100_000
#: The layouts of pyramid that are tried: Aperio's usual one, and one great gap.
LAYOUTS = {"four levels": (1, 4, 16, 64), "two levels": (1, 128)}
VIEW_PX = (700, 1000)
WATCH_EVERY_S = 0.002
MB = 1 << 20


# ---- in a process of its own


def measure_memory(path: Path, reads: int, cache_mb: int, *, plant: bool) -> Any:
    """Open, read and return the memory that it took, MB."""
    from histomae.slides.pyramid import pyramid
    from histomae.slides.slide import Slide
    from histomae.slides.tile_cache import shared_cache

    cache = shared_cache()
    cache.max_bytes = cache_mb * MB
    warm_up(path.with_name("usual.svs"))
    cache.clear()
    gc.collect()
    kept: list[Any] = []
    with Watch() as watch:
        before = watch.now()
        slide = Slide.open(path)
        levels = pyramid(slide)
        levels[-1][:]
        most_kept = cache.nbytes
        for view in views(levels, reads):
            pixels = view()
            kept += [pixels] if plant else []
            most_kept = max(most_kept, cache.nbytes)
        del pixels
        gc.collect()
        after = watch.now()
    return {
        "added": (after - before) / MB,
        "at the highest": (watch.highest - before) / MB,
        "cache": most_kept / MB,
    }


def warm_up(path: Path) -> None:
    """Do all of it once with a small slide: what libraries take is not the slide's."""
    from histomae.slides.pyramid import pyramid
    from histomae.slides.slide import Slide

    with Slide.open(path) as slide:
        for level in pyramid(slide):
            level[: VIEW_PX[0], : VIEW_PX[1]]


def views(levels: Any, reads: int) -> Iterator[Any]:
    """Yield what reads one view after the other, through all levels in turn."""
    random = np.random.default_rng(0)
    for number in range(reads):
        level = levels[number % len(levels)]
        y, x = (
            int(random.integers(0, max(1, length - view)))
            for length, view in zip(level.shape[:2], VIEW_PX, strict=True)
        )
        yield lambda level=level, y=y, x=x: level[
            y : y + VIEW_PX[0], x : x + VIEW_PX[1]
        ]


class Watch:
    """Watches how much memory this process holds."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._over = threading.Event()
        self.highest = 0

    def now(self) -> int:
        """Return the bytes that are held now."""
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._over.wait(WATCH_EVERY_S):
            self.highest = max(self.highest, self.now())

    def __enter__(self) -> Watch:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.highest = max(self.highest, self.now())
        self._over.set()


def measure_tissue(path: Path, repeats: int, *, plant: bool) -> Any:
    """Return the seconds from opening a file to its tissue, and the finest level."""
    from histomae.slides import tissue
    from histomae.slides.slide import Slide
    from histomae.slides.slide_file import SlideFile
    from histomae.slides.tile_cache import shared_cache

    if plant:
        tissue.MOST_LEVEL_PX = 50_000_000
    read, real = [], SlideFile.read

    def watched(file: Any, level: int, *place: Any) -> Any:
        read.append(level)
        return real(file, level, *place)

    SlideFile.read = watched  # type: ignore[method-assign]
    taken, cpu = [], []
    for _ in range(repeats + 1):
        shared_cache().clear()
        began, began_cpu = time.perf_counter(), time.process_time()
        with Slide.open(path) as slide:
            found = tissue.tissue_mask(slide)
            finest = len(slide.levels) - 1 - min(read)
        taken.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return {
        "s": float(np.median(taken[1:])),
        "least_s": min(taken[1:]),
        "cpu_s": float(np.median(cpu[1:])),
        "finer_levels": finest,
        "share": float(found.mask.mean()),
    }


# ---- the whole of it


def in_own_process(what: str, *arguments: object) -> Any:
    """Run one of the measurements in a process of its own; return what it found."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import huge_slide as h; "
        "from pathlib import Path; "
        "rest = json.loads(sys.argv[4]); "
        "print(json.dumps(getattr(h, sys.argv[2])(Path(sys.argv[3]), *rest[0], "
        "**rest[1])))"
    )
    path, *rest = arguments
    plant = {"plant": rest.pop()}
    command = [sys.executable, "-c", code, str(Path(__file__).parent), what, str(path)]
    process = subprocess.run(
        [*command, json.dumps([rest, plant])],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])
    return json.loads(process.stdout.splitlines()[-1])


def run(folder: Path, args: argparse.Namespace) -> list[Figure]:
    """Measure everything; return the figures."""
    figures = [load()]
    write_made_slide(folder / "usual.svs", (10_000, 10_000), factors=(1, 4, 16))
    for name, factors in LAYOUTS.items():
        say(f"memory, {name}: {args.reads} reads")
        side = args.side or MEMORY_SIDE
        slide = folder / f"{len(factors)}.svs"
        write_made_slide(slide, (side, side), factors=factors)
        held = in_own_process(
            "measure_memory", slide, args.reads, args.cache_mb, args.plant
        )
        figures += [
            Figure(f"memory at the highest, {name}", held["at the highest"], "MB"),
            Figure(f"cache at the highest, {name}", held["cache"], "MB", args.cache_mb),
            Figure(f"memory added, {name}", held["added"], "MB", args.goal_mb),
        ]
    side = args.side or TISSUE_SIDE
    for name, factors in (("four levels", (1, 4, 16, 64)), ("two levels", (1, 64))):
        say(f"tissue, {name}: {args.repeats} times")
        slide = folder / f"tissue-{len(factors)}.svs"
        write_made_slide(slide, (side, side), factors=factors)
        found = in_own_process("measure_tissue", slide, args.repeats, args.plant)
        figures += tissue_figures(name, found, args)
    return figures


def tissue_figures(name: str, found: Any, args: argparse.Namespace) -> list[Figure]:
    """Return what is said of a tissue mask; how much tissue there is, is known."""
    y, x = np.ogrid[0.0005:1:1000j, 0.0005:1:1000j]
    true = float(tissue_at(x, y).mean())
    wrong = abs(found["share"] - true) / true * 100
    return [
        Figure(f"area of tissue, wrong by, {name}", wrong, "%", 3.0),
        Figure(f"levels finer than needed, {name}", found["finer_levels"], at_most=0),
        Figure(f"tissue mask at the quickest, {name}", found["least_s"], "s"),
        Figure(f"time of processors for it, {name}", found["cpu_s"], "s"),
        Figure(f"tissue mask, {name}", found["s"], "s", args.goal_tissue_s),
    ]


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--reads", type=int, help="views read (200; quick: 40)")
    parser.add_argument("--repeats", type=int, help="tissue masks (15; quick: 3)")
    parser.add_argument(
        "--side", type=int, help="of both slides, px (200,000; 100,000)"
    )
    parser.add_argument("--cache-mb", type=int, default=32, help="the cache's budget")
    parser.add_argument("--goal-mb", type=float, default=80.0)
    parser.add_argument("--goal-tissue-s", type=float, default=0.15)
    args = parser.parse_args()
    args.reads = args.reads or (40 if args.quick else 200)
    args.repeats = args.repeats or (3 if args.quick else 15)
    with tempfile.TemporaryDirectory(prefix="huge-slide-") as folder:
        os.environ["HISTOMAE_HOME"] = folder
        figures = run(Path(folder), args)
    return report(figures, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
