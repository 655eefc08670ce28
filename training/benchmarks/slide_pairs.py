"""The pictures of a pair are of one place, and MPCS learns to find one by the other.

An encoder is trained with MPCS on the places of one slide. Then places are drawn in
another slide, and of each two pictures are read, at one pixel size and at twice that.
Registration: the finer picture, shrunk, is laid on the middle of the coarser one; how
far it has to be moved is the error, in pixels of the coarser. Retrieval: how often is
its own partner the nearest to a picture among all, by cosine of the embeddings less
their mean, with the encoder as it began, and after the training? What the mean colour
of a picture tells is measured beside it.

Two slides are given, such as two sections of a tumour; without them two sample slides
are made (with ``--quick`` one, that is trained on and looked at). ``--plant`` reads
pictures that have a corner in common and not a centre; nothing is learned from them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from figures import Figure, load, options, report, say
from PIL import Image
from skimage.registration import phase_cross_correlation

from histomae.config import PretrainConfig
from histomae.evaluate.transfer import untrained_like
from histomae.events import Step, result_of
from histomae.infer.encoder import TileEncoder
from histomae.learn import crops
from histomae.learn.crops import CropReader
from histomae.learn.pretrain import run_in
from histomae.learn.runs import RunFolder
from histomae.models.mpcs import found_partners
from histomae.slides.crops import CropSpec, build_manifest
from histomae.slides.sample import SIZE_UM, sample_slide
from histomae.slides.slide import Slide, default_mpp

if TYPE_CHECKING:
    import argparse

Array = np.ndarray[Any, Any]
#: The coarser picture of a pair has pixels so many times as wide.
FACTOR = 2
#: Options that depend on --quick.
SIZES: dict[str, tuple[float, float]] = {
    "count": (500, 60),
    "registered": (200, 20),
    "train_places": (500, 100),
    "epochs": (100, 12),
    "batch": (100, 25),
    "base_lr": (2.5e-3, 1e-2),
    "patch_size": (16, 32),
}
#: Width and height of a small sample slide, µm.
QUICK_UM = (1600.0, 1200.0)
#: A shift is found to a twentieth of a pixel.
FINENESS = 20
#: Pictures embedded at once.
TOGETHER = 64


def config_of(args: argparse.Namespace) -> PretrainConfig:
    """Return the settings of the training."""
    return PretrainConfig(
        slides=(str(args.slides[0]),),
        method="mpcs",
        encoder=args.encoder,
        init_from=args.init_from,
        tile_px=args.tile_px,
        patch_size=args.patch_size,
        crops_per_slide=args.train_places,
        max_iou=0.5,
        held_out=0.0,
        epochs=args.epochs,
        warmup_epochs=args.epochs / 10,
        batch_size=args.batch,
        base_lr=args.base_lr,
        projector_dims=(512, 128),
        pooling="mean",
        precision="f32",
        device=args.device,
        preview_every=10**9,
        seed=args.seed,
    )


def trained(args: argparse.Namespace, folder: Path) -> RunFolder:
    """Train; tell how it goes."""
    run = RunFolder(folder)
    run.create(config_of(args))
    told = time.monotonic()
    for event in run_in(run):
        if isinstance(event, Step) and time.monotonic() - told > 10:
            told, found = time.monotonic(), event.logged["partners_found"]
            say(f"step {event.step} of {event.total_steps}: {found:.0%} found")
    return run


def places(args: argparse.Namespace, side_px: int, count: int) -> Array:
    """Return places in the other slide, coarse and fine, uint8 (n, 2, H, W, 3)."""
    with ExitStack() as stack:
        slide = stack.enter_context(Slide.open(args.slides[1]))
        mpp = default_mpp([slide])
        spec = CropSpec(
            crop_px=side_px,
            mpp=FACTOR * mpp,
            views_mpp=(mpp,),
            per_slide=count,
            max_iou=0.5,
            held_out=0.0,
            seed=args.seed + 1,
        )
        manifest = result_of(build_manifest([slide], spec))
        reader = stack.enter_context(CropReader([slide], manifest))
        return reader.read_batch(np.arange(len(manifest)))


def registration_errors(pictures: Array) -> Array:
    """Return how far each finer picture is from its place, coarse px (n,)."""
    errors = []
    for coarse, fine in pictures:
        side = len(coarse)
        small = side // FACTOR
        first = (side - small) // 2
        middle = coarse[first : first + small, first : first + small].mean(-1)
        shrunk = Image.fromarray(fine).reduce(FACTOR)
        shift, _, _ = phase_cross_correlation(
            middle,
            np.asarray(shrunk, float).mean(-1),
            upsample_factor=FINENESS,
            normalization=None,
        )
        errors.append(np.hypot(*shift))
    return np.array(errors)


def embedded(encoder: TileEncoder, pictures: Array) -> Array:
    """Return one vector per picture, float32 (n, D)."""
    parts = np.array_split(pictures, -(-len(pictures) // TOGETHER))
    return np.concatenate([encoder.embed(part, pooling="mean") for part in parts])


def partners(coarse: Array, fine: Array) -> float:
    """Return how often a picture's own partner is the nearest, percent."""
    sides = [torch.from_numpy(side - side.mean(0)).float() for side in (coarse, fine)]
    units = [torch.nn.functional.normalize(side, dim=1) for side in sides]
    return 100 * found_partners(*units).item()


def measure(args: argparse.Namespace) -> list[Figure]:
    """Lay places on each other, train and embed; return the figures."""
    if args.plant:
        crops.inset_l0 = lambda size, *_: 0 * size
    wide = places(args, args.registered_px, args.registered)
    errors = registration_errors(wide)
    say(f"{len(errors)} places laid on each other")
    registered = [
        load(),
        Figure("places laid on each other", len(errors)),
        Figure("registration error, median", np.median(errors), "px"),
        Figure("registration error, largest", errors.max(), "px", args.goal_px),
    ]
    return registered if args.plant else [*registered, *learned(args)]


def learned(args: argparse.Namespace) -> list[Figure]:
    """Train, and find the partners of places."""
    pictures = places(args, args.tile_px, args.count)
    coarse, fine = pictures[:, 0], pictures[:, 1]
    by_colour = partners(coarse.mean((1, 2)), fine.mean((1, 2)))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = trained(args, Path(folder, "run"))
        after = TileEncoder.load(run.last, device=args.device)
    took = time.monotonic() - begun
    before = untrained_like(after)
    if args.init_from != "random":
        before = TileEncoder.load(Path(args.init_from), device=args.device)
    found = [
        partners(embedded(encoder, coarse), embedded(encoder, fine))
        for encoder in (before, after)
    ]
    return [
        Figure("training", took, "s"),
        Figure("places to find", len(pictures), at_least=args.count),
        Figure("found by chance", 100 / len(pictures), "%"),
        Figure("found by mean colour", by_colour, "%"),
        Figure("found before training", found[0], "%"),
        Figure("found after training", found[1], "%"),
        Figure(
            "found after less before", found[1] - found[0], "%", at_least=args.goal_gain
        ),
    ]


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--slides", nargs=2, type=Path, help="to train on, to look at")
    parser.add_argument("--samples", type=Path, help="folder to keep sample slides in")
    parser.add_argument("--count", type=int, help="places to find (500; quick: 60)")
    parser.add_argument("--registered", type=int, help="laid on (200; quick: 20)")
    parser.add_argument("--registered-px", type=int, default=224)
    parser.add_argument("--train-places", type=int, help="(500; quick: 100)")
    parser.add_argument("--epochs", type=int, help="(100; quick: 12)")
    parser.add_argument("--batch", type=int, help="(100; quick: 25)")
    parser.add_argument("--base-lr", type=float, help="(2.5e-3; quick: 1e-2)")
    parser.add_argument("--encoder", default="vit_micro")
    parser.add_argument("--init-from", default="random", help="a checkpoint")
    parser.add_argument("--tile-px", type=int, default=96)
    parser.add_argument("--patch-size", type=int, help="(16; quick: 32)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal-px", type=float, default=1.0)
    parser.add_argument("--goal-gain", type=float, default=10.0, help="percent points")
    args = parser.parse_args()
    for name, (full, quick) in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    with tempfile.TemporaryDirectory() as folder:
        if args.slides is None:
            size_um, seeds = (QUICK_UM, (1, 1)) if args.quick else (SIZE_UM, (1, 2))
            kept = args.samples or Path(folder)
            args.slides = [
                sample_slide(seed, folder=kept, size_um=size_um).slide_path
                for seed in seeds
            ]
        return report(measure(args), as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
