"""Does PAMA see how tiles are arranged? Their composition tells nothing here.

A synthetic cohort of drawn features (no pixels). Every slide is a lump of tissue, half
tumour, an eighth lymphocytes, the rest stroma. In one class lymphocytes lie within the
tumour (infiltrated), in the other outside (excluded). Tiles are their kind's vector
with noise. Slides come as twins, one of each class, on the same side of the split: the
same tissue and the very same tiles in other places. So whatever knows no places gives
twins the same score, and its AUC is a half by construction, whatever it has learned.

For each seed a cohort is drawn, PAMA is pretrained on the slides to learn from without
their labels, and all classifiers are fitted to these and judged on the rest. What knows
places must tell the classes apart; what does not must fail. (The quick form leaves out
what is trained on labels by steps: fine-tuning and attention MIL.)

A handful goes the whole way from pixels: tiles are cut from the sample slide, laid out
as drawn ones are, written as slides, embedded with an encoder that was pretrained on
them, read as bags, and judged by a table of labels. They are too few for a goal.

``--plant`` shuffles the places within each slide: then nothing can tell them apart.
"""

from __future__ import annotations

import csv
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import tifffile
import torch
from figures import Figure, load, options, report, say
from scipy import ndimage

from histomae.config import PretrainConfig
from histomae.data.bags import Bag
from histomae.data.slide_labels import SlideLabels
from histomae.evaluate.slide_cohort import read_cohort
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
from histomae.exchange.qupath import read_annotations
from histomae.infer.cohort import embed_cohort, plan_cohort
from histomae.infer.embed import SlideEmbedding
from histomae.infer.encoder import TileEncoder
from histomae.learn.bags import BagMemory
from histomae.learn.loop import Plan, build_optimizer, fit
from histomae.learn.methods import METHODS, Setting
from histomae.learn.pretrain import run_in
from histomae.learn.processes import join
from histomae.learn.runs import RunFolder
from histomae.learn.slide_classes import SlideFit
from histomae.models.feature_spec import FeatureSpec
from histomae.models.pama import Pama, PamaSpec
from histomae.slides.annotations import label_cells
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.sample import sample_slide
from histomae.slides.slide import Slide

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from histomae.evaluate.slides import SlideScore

Array = np.ndarray[Any, Any]

CLASSES = ("excluded", "infiltrated")
TUMOUR, LYMPHOCYTES, STROMA = range(3)
#: What stands for each kind on the sample slide; its tiles, and the glass around them.
PAINTED = ("Invasive", "In situ", "Stroma")
PIXELS, GLASS = TileSpec(64, 1.0), 244
#: Tiles along a side of a drawn slide.
SIDE = 24
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
    pixels: int = 40
    """Slides that go the whole way from pixels; two thirds are learned from."""


QUICK = Scale(train=100, test=60, pretrain_epochs=12, pixels=0)


def tissue(random: np.random.Generator, tiles: int) -> Array:
    """Return the cells (L, 2) of a lump of tissue."""
    row, col = np.mgrid[:SIDE, :SIDE]
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


def lay_out(random: np.random.Generator, label: int) -> tuple[Array, Array, Array]:
    """Lay tiles out: cells (L, 2), the kinds (L,) of the tiles, and where each goes.

    Both labels have the same cells and tiles, sorted by kind; the tile ``n`` goes to
    the cell ``places[n]``.
    """
    cells = tissue(random, 8 * int(random.integers(10, 21)))
    kinds = [kinds_of(random, cells, one) for one in range(2)]
    return (
        cells,
        np.sort(kinds[0]),
        np.lexsort((random.random(len(cells)), kinds[label])),
    )


def draw(seed: int, number: int, *, shuffled: bool) -> Bag:
    """Draw slide ``number`` of a cohort; even ones are excluded, odd infiltrated.

    Slides 2 n and 2 n + 1 are twins: the same tiles in other places.
    """
    random = np.random.default_rng((seed, number // 2))
    cells, kinds, places = lay_out(random, number % 2)
    centres = np.random.default_rng(seed).standard_normal((3, WIDTH))
    features = np.empty((len(cells), WIDTH))
    noise = random.standard_normal(features.shape)
    features[places] = centres[kinds] + NOISE * noise
    if shuffled:
        cells = random.permutation(cells)
    name = name_of(number)
    return Bag(slide=name, patient=name, features=features, cells=cells, spec=TILES)


def name_of(number: int) -> str:
    """Return the name of a slide, which is that of its patient too."""
    return f"{CLASSES[number % 2]}-{number}"


def pretrained(bags: Sequence[Bag], *, seed: int, epochs: int) -> Pama:
    """Pretrain on bags without labels."""
    spec = replace(SPEC, feature_dim=bags[0].spec.width)
    config = PretrainConfig(
        batch_size=16,
        micro_batch=16,
        epochs=epochs,
        warmup_epochs=epochs / 5,
        base_lr=2.4e-2,
        grad_clip=1.0,
        tiles_per_anchor=spec.tiles_per_anchor,
        precision="f32",
        seed=seed,
    )
    model = Pama(spec, generator=torch.Generator().manual_seed(seed))
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
    by_name = {bag.slide: bag for bag in bags}
    return judged(by_name, labels, scale, seed, stepwise=stepwise)


def judged(
    bags: dict[str, Bag],
    labels: SlideLabels,
    scale: Scale,
    seed: int,
    *,
    stepwise: bool,
) -> dict[str, SlideScore]:
    """Pretrain on the slides to learn from, and judge classifiers on the rest."""
    assert labels.is_test is not None
    learned = np.array(labels.slides)[~labels.is_test]
    known = [bags[name] for name in learned]
    pama = pretrained(known, seed=seed, epochs=scale.pretrain_epochs)
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
    return result_of(judge_slides(bags, labels, compared, seed=seed))


# The whole way from pixels ---------------------------------------------------------


def cut_tiles(folder: Path) -> list[Array]:
    """Return the sample slide's tiles of each kind, uint8 (n, 64, 64, 3)."""
    sample = sample_slide(0, mpp=PIXELS.mpp, folder=folder)
    with Slide.open(sample.slide_path) as slide:
        grid = TileGrid.over(slide, PIXELS)
        drawn = read_annotations(sample.regions_path)
        found = label_cells(drawn, grid, PAINTED, min_cover=0.9)
        size = (PIXELS.tile_px, PIXELS.tile_px)
        tiles = np.stack(
            [slide.read_region(grid.xy_l0(*c), size, PIXELS.mpp) for c in found.cells]
        )
    return [tiles[found.labels == kind] for kind in range(len(PAINTED))]


def write_slide(folder: Path, number: int, tiles: Sequence[Array], seed: int) -> Path:
    """Lay tiles out as slide ``number`` of a cohort, on glass; write it as TIFF."""
    random = np.random.default_rng((seed, number // 2))
    cells, kinds, places = lay_out(random, number % 2)
    pictures = [tiles[kind][random.integers(len(tiles[kind]))] for kind in kinds]
    side = PIXELS.tile_px
    canvas = np.full((*[(SIDE + 2) * side] * 2, 3), GLASS, np.uint8)
    for (row, col), picture in zip(cells[places] + 1, pictures, strict=True):
        canvas[row * side :, col * side :][:side, :side] = picture
    path = folder / f"{name_of(number)}.tiff"
    tifffile.imwrite(
        path,
        canvas,
        tile=(256, 256),
        photometric="rgb",
        compression="deflate",
        resolution=(1e4 / PIXELS.mpp,) * 2,
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


def from_pixels(scale: Scale, folder: Path) -> tuple[dict[str, SlideScore], int]:
    """Paint slides, embed and judge them; return the scores, and the tiles found."""
    slides = folder / "slides"
    slides.mkdir()
    tiles = cut_tiles(folder)
    paths = [write_slide(slides, n, tiles, seed=0) for n in range(scale.pixels)]
    train = 2 * (scale.pixels // 3)  # twins stay together
    table = folder / "labels.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "patient", "label", "split"])
        for number, path in enumerate(paths):
            split = "train" if number < train else "test"
            writer.writerow([path.stem, path.stem, CLASSES[number % 2], split])
    run = RunFolder(folder / "encoder")
    run.create(
        PretrainConfig(
            slides=tuple(map(str, paths[:train])),
            encoder="vit_micro",
            tile_px=PIXELS.tile_px,
            mpp=PIXELS.mpp,
            decoder_depth=1,
            crops_per_slide=30,
            epochs=10,
            warmup_epochs=1,
            batch_size=32,
            base_lr=1e-2,
            precision="f32",
            device="cpu",
        )
    )
    embedding = SlideEmbedding(TileEncoder.load(result_of(run_in(run)), device="cpu"))
    plan = result_of(plan_cohort(paths, embedding, folder / "features"))
    written = result_of(embed_cohort(plan, embedding)).written
    bags, labels = result_of(read_cohort(written, table))
    found = sum(len(bag) for bag in bags.values())
    return judged(bags, labels, scale, 0, stepwise=False), found


def measure(args: argparse.Namespace, scale: Scale) -> list[dict[str, SlideScore]]:
    """Judge one cohort per seed."""
    found = []
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
    parser.add_argument("--pixels", type=int, help="slides from pixels (40; quick: 0)")
    parser.add_argument("--goal-with", type=float, default=0.9, help="AUC, at least")
    parser.add_argument("--goal-without", type=float, default=0.6, help="AUC, at most")
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.quick else 5)
    scale = QUICK if args.quick else Scale()
    if args.pixels is not None:
        scale = replace(scale, pixels=args.pixels)
    torch.set_num_threads(1)  # the matrices are small
    begun = time.monotonic()
    found = measure(args, scale)
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
    if scale.pixels:
        with tempfile.TemporaryDirectory() as folder:
            scores, tiles = from_pixels(scale, Path(folder))
        say("\n".join(["from pixels", *lines(scores)]))
        laid = sum(
            len(draw(0, number, shuffled=False)) for number in range(scale.pixels)
        )
        figures.append(Figure("from pixels: slides", scale.pixels))
        share = Figure("from pixels: tiles found", tiles / laid, at_least=0.95)
        figures.append(share)
        for name, score in scores.items():
            figures.append(Figure(f"from pixels: {name}: AUC", score.auc.value))
    return report(figures, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
