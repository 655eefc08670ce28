"""Does the fast recipe learn as much as the reference? A probe on unseen slides tells.

Every recipe trains on the same crops of the same sample slides, sees as many of them in
the same order, and starts from the same encoder; what differs is the decoder, and the
precision. Then a linear probe is fitted to the embeddings of labelled tiles of some
sample slides, and scored on those of others: how often does it tell duct, in situ and
invasive apart, which share stain and density and differ in arrangement only? The same
is asked of the untrained encoder; if the first recipe does not clearly beat that, the
comparison says nothing, and fails.

``--recipes default mae-60 sd-mae --seeds 3`` compares methods in the place of decoders:
the self-distilled autoencoder with the plain one, at the usual mask ratio and at its
own, on the same crops in as many steps.

The others are compared with the first recipe named, seed by seed; the bound of the
difference is that of Student's t.
What is finished lies in ``--out`` and is not done again. ``--plant`` trains the default
recipe with a learning rate of next to nothing.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from figures import Figure, load, options, report, say
from scipy import stats
from trainers import REFERENCE_DECODER

from histomae.config import PretrainConfig
from histomae.data.breakhis import read_breakhis
from histomae.data.classes import next_color
from histomae.data.pictures import middle_square, read_picture
from histomae.evaluate.compare import score_on
from histomae.evaluate.transfer import untrained_like
from histomae.events import Step, result_of
from histomae.exchange.qupath import read_annotations
from histomae.infer.encoder import TileEncoder
from histomae.infer.tiles import map_tiles
from histomae.learn.pretrain import run_in
from histomae.learn.probe import fit_probe
from histomae.learn.runs import RunFolder
from histomae.slides.annotations import label_cells
from histomae.slides.grid import TileGrid
from histomae.slides.sample import sample_slide
from histomae.slides.slide import Slide

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
#: The decoder of the paper, ours, and ours that paints a third of what is hidden.
REFERENCE, DEFAULT, PARTIAL = "reference", "default", "partial"
#: The self-distilled autoencoder, and the plain one with as much hidden as it has.
SD_MAE, MAE_60 = "sd-mae", "mae-60"
SMALL_DECODER = {"decoder_dim": 192, "decoder_depth": 4, "decoder_heads": 3}
RECIPES: dict[str, dict[str, Any]] = {
    REFERENCE: {**REFERENCE_DECODER, "precision": "f32"},
    DEFAULT: {**SMALL_DECODER, "precision": "bf16"},
    PARTIAL: {**SMALL_DECODER, "precision": "bf16", "decoded_share": 1 / 3},
    SD_MAE: {
        **SMALL_DECODER,
        "precision": "bf16",
        "method": "sd-mae",
        "mask_ratio": 0.6,
    },
    MAE_60: {**SMALL_DECODER, "precision": "bf16", "mask_ratio": 0.6},
}
#: For --quick: a recipe and itself, so that they must come to the same.
SMALL = {"decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2, "precision": "f32"}
CLASSES = ("Duct", "In situ", "Invasive")
#: Seeds of the slides that are trained on, that probes are fitted to, and scored on.
TRAINED, FITTED, SCORED = 1000, 2000, 3000
#: The share of hits that is left to luck where a difference is bounded.
CONFIDENCE = 0.95
#: Filed under two classes with the same pixels.
LEFT_OUT = "13412"


def config_of(name: str, seed: int, args: argparse.Namespace) -> PretrainConfig:
    """Return the settings of one training."""
    slides = [sample(TRAINED + i, args).slide_path for i in range(args.train_slides)]
    return PretrainConfig(
        slides=tuple(str(path) for path in slides),
        encoder=args.encoder,
        tile_px=args.tile_px,
        patch_size=args.patch_size,
        mpp=args.mpp,
        crops_per_slide=args.crops,
        epochs=args.epochs,
        warmup_epochs=args.epochs / 10,
        batch_size=args.batch,
        base_lr=1e-9 if args.plant and name == DEFAULT else args.base_lr,
        preview_every=10**9,
        save_every=100,
        micro_batch=args.micro_batch,
        device=args.device,
        seed=seed,
        **(SMALL if args.quick else RECIPES[name]),
    )


def sample(seed: int, args: argparse.Namespace) -> Any:
    """Return a sample slide, made on first use."""
    folder = args.out / "slides"
    return sample_slide(seed, mpp=args.mpp, folder=folder, size_um=args.slide_um)


def trained(name: str, seed: int, args: argparse.Namespace) -> RunFolder:
    """Train, or go on, or find that it is done."""
    run = RunFolder(args.out / "runs" / f"{name}-{seed}")
    if run.state == "done":
        return run
    if not run.has_begun:
        run.create(config_of(name, seed, args))
    begin = time.monotonic()
    for event in run_in(run):
        if isinstance(event, Step) and event.step % 50 == 0:
            say(f"{run.path.name}: step {event.step} of {event.total_steps}")
    say(f"{run.path.name}: took {time.monotonic() - begin:.0f} s")
    return run


def encoders_of(args: argparse.Namespace) -> dict[tuple[str, int], TileEncoder]:
    """Train what is missing; return the encoders by recipe and seed.

    Under "untrained" stand those that the recipes began from.
    """
    found = {}
    for seed in range(args.seeds):
        for name in args.recipes:
            run = trained(name, seed, args)
            found[name, seed] = TileEncoder.load(run.encoder, device=args.device)
        found["untrained", seed] = untrained_like(
            found[args.recipes[0], seed], seed=seed
        )
    return found


def labelled_tiles(
    first: int, count: int, encoders: Sequence[TileEncoder], args: argparse.Namespace
) -> tuple[Array, Array, Array]:
    """Embed the labelled tiles of slides, by all encoders at once.

    Returns features float32 (M, E, D), labels (M,) and groups (M,), regions.
    """
    parts: list[tuple[Array, Array, Array]] = []
    for number in range(count):
        features, labels, groups = _of_slide(
            sample(first + number, args), encoders, args
        )
        parts.append((features, labels, groups + 1000 * number))
    features, labels, groups = (
        np.concatenate(each) for each in zip(*parts, strict=True)
    )
    return features, labels, groups


def _of_slide(
    made: Any, encoders: Sequence[TileEncoder], args: argparse.Namespace
) -> tuple[Array, Array, Array]:
    names = "".join(encoder.encoder_id for encoder in encoders)
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]
    kept = args.out / "features" / f"{made.slide_path.stem}-{digest}.npz"
    if kept.exists():
        with np.load(kept) as file:
            return file["features"], file["labels"], file["groups"]
    with Slide.open(made.slide_path) as slide:
        grid = TileGrid.over(slide, encoders[0].spec)
        found = label_cells(read_annotations(made.regions_path), grid, CLASSES)
        features = result_of(
            map_tiles(
                slide,
                grid,
                found.cells,
                lambda tiles: np.stack(
                    [one.embed(tiles, pooling=args.pooling) for one in encoders], 1
                ),
                what="embedding",
            )
        )
    say(f"{made.slide_path.stem}: {len(features)} tiles")
    kept.parent.mkdir(exist_ok=True)
    np.savez(kept, features=features, labels=found.labels, groups=found.groups)
    return features, found.labels, found.groups


def breakhis(folder: Path, encoders: Sequence[TileEncoder], pooling: str) -> list[Any]:
    """Score encoders on BreakHis at 100×, benign against malignant, by patient.

    Of every picture the square in the middle, shrunk to a tile: 0.4 µm per pixel.
    """
    tiles, labels, cases = [], [], []
    side = encoders[0].spec.tile_px
    for picture in sorted(read_breakhis(folder).pictures, key=lambda one: one.path):
        if picture.magnification != 100 or picture.case == LEFT_OUT:
            continue
        tiles.append(middle_square(read_picture(picture.path), side))
        labels.append(int(picture.is_malignant))
        cases.append(int(picture.case))
    say(f"BreakHis: {len(tiles)} pictures of {len(set(cases))} patients")
    scores = []
    for encoder in encoders:
        values = np.concatenate(
            [encoder.embed(tile[None], pooling=pooling) for tile in tiles]
        )
        probe = result_of(
            fit_probe(
                values,
                np.array(labels),
                np.array(cases),
                ("benign", "malignant"),
                class_colors=(next_color(()), next_color(())),
                encoder_id=encoder.encoder_id,
                tile_px=side,
                mpp=encoder.spec.mpp,
                pooling=pooling,
                grouped_by="patient",
            )
        )
        scores.append(probe.scores)
    return scores


def bound(differences: Array) -> float:
    """Return the lower bound of the mean of differences (n,), of one side."""
    count = len(differences)
    if count < 2:
        return float("nan")
    error = differences.std(ddof=1) / np.sqrt(count)
    return float(differences.mean() - stats.t.ppf(CONFIDENCE, count - 1) * error)


def measure(args: argparse.Namespace) -> list[Figure]:
    """Train, embed, fit, score; return the figures."""
    encoders = encoders_of(args)
    keys, models = list(encoders), list(encoders.values())
    fit = labelled_tiles(FITTED, args.fit_slides, models, args)
    test = labelled_tiles(SCORED, args.test_slides, models, args)
    points = {
        key: 100
        * score_on(
            fit[0][:, i], *fit[1:], test[0][:, i], *test[1:], CLASSES
        ).balanced_accuracy
        for i, key in enumerate(keys)
    }
    by_recipe = {
        name: np.array([points[name, seed] for seed in range(args.seeds)])
        for name in (*args.recipes, "untrained")
    }
    figures = [
        load(),
        Figure("seeds", args.seeds, at_least=args.least_seeds),
        Figure("tiles that probes were fitted to", len(fit[1])),
        Figure("tiles on other slides", len(test[1]), at_least=args.tiles),
    ]
    for name, scores in by_recipe.items():
        spread = scores.std(ddof=1) if len(scores) > 1 else float("nan")
        figures += [
            Figure(f"{name}: balanced accuracy", scores.mean(), "%"),
            Figure(f"{name}: standard deviation", spread, "points"),
        ]
    if args.breakhis is not None:
        for key, scores in zip(
            keys, breakhis(args.breakhis, models, args.pooling), strict=True
        ):
            say(f"BreakHis, {key[0]}, seed {key[1]}: {scores['summary']}")
    base = args.recipes[0]
    for name in args.recipes[1:]:
        difference = by_recipe[name] - by_recipe[base]
        goal = args.goal if name == DEFAULT else None
        figures += [
            Figure(f"{name} - {base}", difference.mean(), "points"),
            Figure(f"{name} - {base}, 95 % bound", bound(difference), "", None, goal),
        ]
    gain = by_recipe[base] - by_recipe["untrained"]
    figures.append(
        Figure(f"{base} - untrained", gain.mean(), "points", None, args.goal_gain)
    )
    return figures


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--out", type=Path, help="where what is finished is kept")
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=RECIPES,
        default=[REFERENCE, DEFAULT, PARTIAL],
        help="the first is what others are compared with",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--least-seeds", type=int, default=3)
    parser.add_argument("--encoder", default="vit_micro")
    parser.add_argument("--tile-px", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--mpp", type=float, default=1.0, help="of slides and tiles")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--crops", type=int, default=500, help="per slide")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--base-lr", type=float, default=1e-2)
    parser.add_argument("--train-slides", type=int, default=2)
    parser.add_argument("--fit-slides", type=int, default=3)
    parser.add_argument("--test-slides", type=int, default=7)
    parser.add_argument("--slide-um", type=float, nargs=2, default=(3072.0, 2560.0))
    parser.add_argument(
        "--tiles", type=int, default=5000, help="on other slides, least"
    )
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--breakhis", type=Path, help="folder of BreakHis, too")
    parser.add_argument("--goal", type=float, default=-2.0, help="points, the bound")
    parser.add_argument("--goal-gain", type=float, default=5.0, help="points")
    args = parser.parse_args()
    args.slide_um = tuple(args.slide_um)
    if args.quick:
        args.seeds, args.least_seeds, args.recipes = 2, 2, [REFERENCE, DEFAULT]
        args.train_slides = args.fit_slides = args.test_slides = 1
        args.slide_um, args.mpp, args.tiles = (1500.0, 1500.0), 1.0, 100
        args.tile_px, args.patch_size, args.epochs = 64, 16, 4
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        args.out = args.out or Path(folder)
        args.out.mkdir(parents=True, exist_ok=True)
        figures = measure(args)
    return report(figures, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
