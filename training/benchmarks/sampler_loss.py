"""Does it hurt to train on many crops of few regions? The loss on another slide tells.

The region-dense sampler decodes a region once for many crops, so that neighbours, which
are alike, are trained on together and less tissue is seen. Both samplers train the same
network with the same seeds on equally many crops of the same slides, equally often;
then both networks are judged on the same crops of slides that none was trained on, with
the same masks. Zero is the loss of nothing learned at all; what counts is by how many
per cent the region-dense loss is larger, on average over the seeds.

The slides are real ones where ``HISTOMAE_TEST_DATA`` is set, else samples, made on the
spot. ``--plant`` lets all crops of a slide come from a single region.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from figures import Figure, load, options, report, say

from histomae.config import PretrainConfig
from histomae.evaluate.heldout import Judgement, judge
from histomae.events import result_of
from histomae.learn.crops import CropReader
from histomae.learn.pretrain import run_in
from histomae.learn.runs import RunFolder
from histomae.slides.crops import CropManifest, CropSpec, build_manifest
from histomae.slides.sample import sample_slide
from histomae.slides.slide import Slide

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

RANDOM, DENSE = "random", "region-dense"
#: A real slide to train on, one to judge by, and the pixel size of both, µm.
REAL, REAL_MPP = ("her2st/her2st-C2.tiff", "her2st/her2st-D1.tiff"), 0.69
SAMPLE_MPP = 0.5


def slides(folder: Path, args: argparse.Namespace) -> tuple[Path, Path, float]:
    """Return a slide to train on, one to judge by, and their pixel size."""
    data = os.environ.get("HISTOMAE_TEST_DATA")
    real = [Path(data) / "slides" / name for name in REAL] if data else []
    if real and all(path.is_file() for path in real):
        return real[0], real[1], REAL_MPP
    side = (args.sample_um, args.sample_um)
    made = [sample_slide(seed, folder=folder, size_um=side) for seed in (1, 2)]
    return made[0].slide_path, made[1].slide_path, SAMPLE_MPP


def config_of(
    sampler: str, seed: int, slide: Path, mpp: float, args: argparse.Namespace
) -> PretrainConfig:
    """Return the settings of one training."""
    planted = args.plant and sampler == DENSE
    return PretrainConfig(
        slides=(str(slide),),
        encoder="vit_micro",
        decoder_depth=1,
        tile_px=args.tile_px,
        mpp=mpp,
        crops_per_slide=args.crops,
        sampler=sampler,
        region_px=args.region_px,
        crops_per_region=args.crops if planted else args.crops_per_region,
        held_out=0.0,
        epochs=args.epochs,
        warmup_epochs=args.epochs / 10,
        batch_size=args.batch,
        micro_batch=args.batch,
        base_lr=args.base_lr,
        precision="f32",
        preview_every=10**9,
        save_every=10**9,
        device="cpu",
        seed=seed,
    )


def trained(run: RunFolder, config: PretrainConfig) -> CropManifest:
    """Train; return on which crops."""
    begin = time.monotonic()
    run.create(config)
    result_of(run_in(run))
    say(f"{run.path.name}: took {time.monotonic() - begin:.0f} s")
    return CropManifest.load(run.crops_file)


def crops_to_judge_by(
    slide: Path, mpp: float, args: argparse.Namespace
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return crops of a slide, drawn at random: uint8 (N, H, W, 3)."""
    spec = CropSpec(args.tile_px, mpp, args.judged, held_out=0.0, seed=10**6)
    with Slide.open(slide) as opened:
        manifest = result_of(build_manifest([opened], spec))
        with CropReader([opened], manifest) as reader:
            return np.stack([reader.read(index) for index in range(len(manifest))])


def measure(folder: Path, args: argparse.Namespace) -> list[Figure]:
    """Train and judge; return the figures."""
    train_on, judge_by, mpp = slides(folder, args)
    crops = crops_to_judge_by(judge_by, mpp, args)
    found: dict[str, list[Judgement]] = {RANDOM: [], DENSE: []}
    crops_of: dict[str, list[CropManifest]] = {RANDOM: [], DENSE: []}
    for seed in range(args.seeds):
        for sampler, judgements in found.items():
            run = RunFolder(folder / f"{sampler}-{seed}")
            config = config_of(sampler, seed, train_on, mpp, args)
            crops_of[sampler].append(trained(run, config))
            judgements.append(result_of(judge(run.last, crops)))
    counts = {len(each) for several in crops_of.values() for each in several}
    regions = min(int(each.region.max()) + 1 for each in crops_of[DENSE])
    return [
        load(),
        Figure("crops trained on, fewest", min(counts)),
        Figure("crops trained on, most", max(counts), "", min(counts)),
        Figure(
            "regions that they are from, region-dense",
            regions,
            at_least=min(counts) // args.crops_per_region,
        ),
        Figure("crops of another slide", len(crops)),
        *figures(found, args),
    ]


def figures(
    found: dict[str, list[Judgement]],
    args: argparse.Namespace,
) -> list[Figure]:
    """Return what is printed."""

    def losses(judgements: Sequence[Judgement]) -> np.ndarray[tuple[int], np.dtype]:
        return np.array([each.loss_trained for each in judgements])

    plain, dense = (losses(found[sampler]) for sampler in (RANDOM, DENSE))
    more = 100 * (dense / plain - 1)
    untrained = np.mean([each.loss_untrained for each in found[RANDOM]])
    gain = 100 * (1 - plain.mean() / min(untrained, found[RANDOM][0].loss_zero))
    return [
        Figure("seeds", args.seeds),
        Figure("loss of predicting zero", found[RANDOM][0].loss_zero),
        Figure("loss, random", plain.mean()),
        Figure("loss, region-dense", dense.mean()),
        Figure("learned at all, random", gain, "%", None, args.goal_gain),
        Figure("loss more by region-dense, at worst", more.max(), "%"),
        Figure("loss more by region-dense", more.mean(), "%", args.goal),
    ]


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--crops", type=int, default=480, help="trained on")
    parser.add_argument("--judged", type=int, default=300, help="crops judged by")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--base-lr", type=float, default=1e-2)
    parser.add_argument("--tile-px", type=int, default=64)
    parser.add_argument("--region-px", type=int, default=256)
    parser.add_argument("--crops-per-region", type=int, default=16)
    parser.add_argument("--sample-um", type=float, default=3000.0)
    parser.add_argument("--goal", type=float, default=1.0, help="per cent")
    parser.add_argument("--goal-gain", type=float, default=5.0, help="per cent")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.crops, args.judged, args.epochs = 1, 64, 32, 2
        args.sample_um, args.goal, args.goal_gain = 1000.0, 50.0, -50.0
    with tempfile.TemporaryDirectory(prefix="sampler-loss-") as folder:
        found = measure(Path(folder), args)
    return report(found, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
