"""What does a training step of PAMA take? Memory and time, by the size of a slide.

For each number of tiles a process of its own builds the published model, places a
slide's tiles, makes one training step at batch 1 (forward, backward, AdamW) on the CPU
and tells its peak memory. Tiles look at anchors alone, so that it grows as tiles ×
anchors; a single attention between all tiles would take what the last column says.

``--csv`` and ``--png`` keep the curve. ``--plant`` makes every tile an anchor.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from figures import Figure, load, options, report, say

SIZES = (1250, 2500, 5000, 10_000, 20_000)
QUICK = (500, 2000)
GIB = 2**30
#: Of a tile's embedding: a ViT-S.
WIDTH = 384


@dataclass(frozen=True)
class Cost:
    """What one step took."""

    tiles: int
    anchors: int
    peak_gib: float
    """Of the whole process."""
    step_gib: float
    """Of that, what the step took beside the program and the weights."""
    place_s: float
    forward_s: float
    backward_s: float
    all_pairs_gib: float
    """One float32 score for each head and pair of tiles."""


def peak_bytes() -> int:
    """Return the largest memory this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def step(tiles: int, size: str, tiles_per_anchor: int, threads: int) -> Cost:
    """Make one training step in this process."""
    import numpy as np
    import torch

    from histomae.models.bag_tensors import batch_bags, place_bag
    from histomae.models.pama import Pama, pama_spec

    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    spec = pama_spec(size, WIDTH, tiles_per_anchor=tiles_per_anchor)
    model = Pama(spec, generator=torch.Generator().manual_seed(0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for weight in model.parameters():  # the optimizer's numbers are no part of a step
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    # A full grid less a tenth of its tiles: tissue has holes.
    side = int((tiles / 0.9) ** 0.5) + 1
    cells = np.argwhere(random.random((side, side)) < 0.95)[:tiles]
    features = random.standard_normal((tiles, WIDTH)).astype(np.float32)
    before, begin = peak_bytes(), time.monotonic()
    bags = batch_bags([place_bag(features, cells, spec.placing)])
    anchors = bags.places.real_anchors.shape[1]
    placed = time.monotonic()
    loss = model(
        bags,
        mask_ratio=0.75,
        noise=torch.rand(1, tiles),
        anchor_dropout=0.2,
        anchor_noise=torch.rand(1, anchors),
    ).loss
    forward = time.monotonic()
    loss.backward()
    optimizer.step()
    return Cost(
        tiles,
        anchors,
        peak_bytes() / GIB,
        (peak_bytes() - before) / GIB,
        placed - begin,
        forward - placed,
        time.monotonic() - forward,
        4 * spec.decoder_heads * tiles**2 / GIB,
    )


def step_apart(tiles: int, args: argparse.Namespace) -> Cost:
    """Make one training step in a process of its own."""
    command = [
        *(sys.executable, __file__, "--one", str(tiles)),
        *("--model", args.model, "--tiles-per-anchor", str(args.tiles_per_anchor)),
        *("--threads", str(args.threads)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The step on {tiles} tiles failed:\n{done.stderr}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def row(cost: Cost) -> str:
    """Return a line of the table."""
    return (
        f"{cost.tiles:>6} tiles, {cost.anchors:>5} anchors: peak {cost.peak_gib:5.2f} "
        f"GiB (step {cost.step_gib:5.2f}), placing {cost.place_s:5.2f} s, forward "
        f"{cost.forward_s:6.1f} s, backward {cost.backward_s:6.1f} s; all pairs of "
        f"tiles: {cost.all_pairs_gib:6.2f} GiB"
    )


def write_csv(path: Path, costs: list[Cost]) -> None:
    """Write the curve as a table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(costs[0])))
        writer.writeheader()
        writer.writerows(map(asdict, costs))


def draw(path: Path, costs: list[Cost], goal_gib: float) -> None:
    """Draw the curve."""
    from matplotlib.figure import Figure as Sheet

    sheet = Sheet(figsize=(9, 3.6), layout="constrained")
    memory, duration = sheet.subplots(1, 2)
    tiles = [cost.tiles for cost in costs]
    memory.plot(tiles, [c.peak_gib for c in costs], "o-", label="whole process")
    memory.plot(tiles, [c.step_gib for c in costs], "o-", label="the step alone")
    memory.plot(
        tiles,
        [c.all_pairs_gib for c in costs],
        "k:",
        label="one score per pair of tiles",
    )
    memory.axhline(goal_gib, color="0.6", linewidth=1)
    memory.set(xlabel="tiles of the slide", ylabel="peak memory, GiB", ylim=0)
    memory.legend(frameon=False)
    for name in ("place", "forward", "backward"):
        seconds = [getattr(cost, f"{name}_s") for cost in costs]
        duration.plot(tiles, seconds, "o-", label=name)
    duration.set(xlabel="tiles of the slide", ylabel="seconds", ylim=0)
    duration.legend(frameon=False)
    sheet.savefig(path, dpi=130)


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--tiles", type=int, nargs="+", help=f"{SIZES}; quick: {QUICK}")
    parser.add_argument("--model", help="pama_base; quick: pama_small")
    parser.add_argument("--tiles-per-anchor", type=int, default=144)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--goal-gib", type=float, help="peak, at most (8; quick: 1.4)")
    parser.add_argument("--csv", type=Path, help="keep the curve as a table")
    parser.add_argument("--png", type=Path, help="draw the curve")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model or ("pama_small" if args.quick else "pama_base")
    if args.one:
        cost = step(args.one, args.model, args.tiles_per_anchor, args.threads)
        print(json.dumps(asdict(cost)))
        return 0
    if args.plant:
        args.tiles_per_anchor = 1
    goal = args.goal_gib or (1.4 if args.quick else 8.0)
    costs = []
    for tiles in args.tiles or (QUICK if args.quick else SIZES):
        costs.append(step_apart(tiles, args))
        say(row(costs[-1]))
    if args.csv:
        write_csv(args.csv, costs)
    if args.png:
        draw(args.png, costs, goal)
    figures = [load()]
    for cost in costs:
        taken = cost.forward_s + cost.backward_s
        figures.append(Figure(f"a step on {cost.tiles} tiles", taken, "s"))
        figures.append(
            Figure(f"memory of a step on {cost.tiles} tiles", cost.step_gib, "GiB")
        )
    largest = costs[-1]
    figures += [
        Figure("anchors of the largest slide", largest.anchors),
        Figure("scores of all its pairs of tiles", largest.all_pairs_gib, "GiB"),
        Figure(f"peak at {largest.tiles} tiles", largest.peak_gib, "GiB", goal),
    ]
    return report(figures, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
