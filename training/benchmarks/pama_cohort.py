"""Does PAMA see how tiles are arranged? Their composition tells nothing here.

A synthetic cohort of drawn features (no pixels). Every slide is a lump of tissue, half
tumour, an eighth lymphocytes, the rest stroma: exactly the same shares in both classes.
In one, lymphocytes lie within the tumour (infiltrated), in the other outside
(excluded). Tiles are their kind's vector with noise.

For each seed a cohort is drawn, PAMA is pretrained on the slides to learn from without
their labels, and all classifiers are fitted to these and judged on the rest. What knows
places must tell the classes apart; what does not must fail. (The quick form leaves out
what is trained on labels by steps: fine-tuning and attention MIL.)

``--plant`` shuffles the places within each slide: then nothing can tell them apart.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from figures import Figure, load, options, report, say
from scipy import ndimage

from histomae.config import PretrainConfig
from histomae.data.bags import Bag
from histomae.data.slide_labels import SlideLabels
from histomae.evaluate.slides import (
    ANCHORS,
    FINE_TUNED,
    MEAN,
    MIL,
    classifiers,
    judge_slides,
    lines,
)
from histomae.events import result_of
from histomae.learn.bags import BagMemory
from histomae.learn.loop import Plan, build_optimizer, fit
from histomae.learn.methods import METHODS, Setting
from histomae.learn.processes import join
from histomae.learn.slide_classes import SlideFit
from histomae.models.feature_spec import FeatureSpec
from histomae.models.pama import Pama, PamaSpec

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from histomae.evaluate.slides import SlideScore

Array = np.ndarray[Any, Any]

CLASSES = ("excluded", "infiltrated")
TUMOUR, LYMPHOCYTES, STROMA = range(3)
WIDTH = 16
#: Spread of a tile around its kind, in units of the spread of the kinds.
NOISE = 0.5
TILES = FeatureSpec(encoder="drawn", width=WIDTH)
SPEC = PamaSpec(
    WIDTH,
    dim=64,
    depth=2,
    heads=4,
    decoder_dim=64,
    decoder_depth=1,
    decoder_heads=4,
    tiles_per_anchor=9,
)


@dataclass(frozen=True)
class Scale:
    """How large a cohort is, and how long it is learned."""

    train: int = 200
    test: int = 120
    pretrain_epochs: int = 15
    epochs: int = 20


QUICK = Scale(train=100, test=60, pretrain_epochs=12)


def tissue(random: np.random.Generator, tiles: int) -> Array:
    """Return the cells (L, 2) of a lump of tissue."""
    row, col = np.mgrid[:24, :24]
    height = ndimage.gaussian_filter(random.standard_normal(row.shape), 3)
    height = height / height.std() - 0.03 * ((row - 12) ** 2 + (col - 12) ** 2)
    chosen = np.argsort(height.ravel())[::-1][:tiles]
    return np.stack(np.unravel_index(chosen, row.shape), 1)


def kinds_of(random: np.random.Generator, cells: Array, label: int) -> Array:
    """Return the kind of each tile: the shares are the same for both labels."""
    tiles = len(cells)
    half, few = tiles // 2, tiles // 8
    centre = cells[random.integers(tiles)]
    near = np.argsort(np.hypot(*(cells - centre).T) + random.normal(0, 0.3, tiles))
    inside = near[: half + few * label]
    around = inside if label else near[half:]
    kinds = np.full(tiles, STROMA)
    kinds[inside] = TUMOUR
    kinds[random.permutation(around)[:few]] = LYMPHOCYTES
    return kinds


def draw(seed: int, number: int, *, shuffled: bool) -> Bag:
    """Draw slide ``number`` of a cohort; even ones are excluded, odd infiltrated."""
    random = np.random.default_rng((seed, number))
    cells = tissue(random, 8 * int(random.integers(10, 21)))
    kinds = kinds_of(random, cells, number % 2)
    centres = np.random.default_rng(seed).standard_normal((3, WIDTH))
    features = centres[kinds] + NOISE * random.standard_normal((len(cells), WIDTH))
    if shuffled:
        cells = random.permutation(cells)
    name = f"{CLASSES[number % 2]}-{number}"
    return Bag(slide=name, patient=name, features=features, cells=cells, spec=TILES)


def pretrained(bags: Sequence[Bag], *, seed: int, epochs: int) -> Pama:
    """Pretrain on bags without labels."""
    config = PretrainConfig(
        batch_size=16,
        micro_batch=16,
        epochs=epochs,
        warmup_epochs=epochs / 5,
        base_lr=2.4e-2,
        grad_clip=1.0,
        tiles_per_anchor=SPEC.tiles_per_anchor,
        precision="f32",
        seed=seed,
    )
    model = Pama(SPEC, generator=torch.Generator().manual_seed(seed))
    numbers = np.arange(len(bags))
    work = fit(
        model,
        build_optimizer(model, config),
        fabric=join("cpu"),
        method=METHODS["pama"],
        setting=Setting(config),
        source=BagMemory(bags),
        plan=Plan(numbers, numbers, config.batch_size, epochs, seed),
    )
    result_of(work)
    return model


def one_cohort(
    seed: int, scale: Scale, *, shuffled: bool, stepwise: bool
) -> dict[str, SlideScore]:
    """Draw a cohort and judge classifiers; without ``stepwise`` the fast ones."""
    count = scale.train + scale.test
    bags = [draw(seed, number, shuffled=shuffled) for number in range(count)]
    is_test = np.arange(count) >= scale.train
    names = tuple(bag.slide for bag in bags)
    labels = SlideLabels(names, names, np.arange(count) % 2, CLASSES, is_test)
    pama = pretrained(bags[: scale.train], seed=seed, epochs=scale.pretrain_epochs)
    settings = SlideFit(
        epochs=scale.epochs,
        batch_size=16,
        micro_batch=16,
        base_lr=2e-2,
        device="cpu",
    )
    compared = classifiers(pama.encoder, settings)
    if not stepwise:
        compared = {n: c for n, c in compared.items() if n not in (MIL, FINE_TUNED)}
    by_name = {bag.slide: bag for bag in bags}
    return result_of(judge_slides(by_name, labels, compared, seed=seed))


def measure(args: argparse.Namespace) -> list[dict[str, SlideScore]]:
    """Judge one cohort per seed."""
    scale, found = QUICK if args.quick else Scale(), []
    for seed in range(args.seeds):
        begin = time.monotonic()
        found.append(
            one_cohort(seed, scale, shuffled=args.plant, stepwise=not args.quick)
        )
        took = time.monotonic() - begin
        say("\n".join([f"seed {seed}, {took:.0f} s", *lines(found[-1])]))
    return found


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, help="cohorts (5; quick: 1)")
    parser.add_argument("--goal-with", type=float, default=0.9, help="AUC, at least")
    parser.add_argument("--goal-without", type=float, default=0.6, help="AUC, at most")
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.quick else 5)
    torch.set_num_threads(1)  # the matrices are small
    begun = time.monotonic()
    found = measure(args)
    took = time.monotonic() - begun
    areas = {name: [scores[name].auc.value for scores in found] for name in found[0]}
    figures = [
        load(),
        Figure("cohorts", args.seeds),
        Figure("slides judged in each", found[0][MEAN].slides, at_least=60),
        Figure("took", took, "s"),
    ]
    for name, values in areas.items():
        told = f"{name}: AUC, mean of the cohorts"
        figures.append(Figure(told, float(np.mean(values))))
    for name in (MEAN, MIL):
        if name in areas:
            told, goal = f"{name}: AUC, best of the cohorts", args.goal_without
            figures.append(Figure(told, max(areas[name]), at_most=goal))
    for name in (ANCHORS, FINE_TUNED):
        if name in areas:
            told, goal = f"{name}: AUC, worst of the cohorts", args.goal_with
            figures.append(Figure(told, min(areas[name]), at_least=goal))
    return report(figures, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
