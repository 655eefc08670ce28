"""How fast slides become vectors, and whether they are the right ones.

A ViT-S/16 with drawn weights embeds tiles of a slide as ``histomae embed`` does: read
beside computing, in bf16 where the processor has it. Beside it, in the same run, the
same model in plain torch: float32, all cores at one batch, tiles in memory. The best of
several rounds counts, since other work disturbs; on a busy machine trust the ratio.

``--plant`` rounds the weights to eight bits, as fast and no longer the same vectors.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from figures import Figure, load, options, report, say
from trainers import make_slide

from histomae.events import result_of
from histomae.infer.embed import CPU_BATCH, embed_tiles
from histomae.infer.encoder import TileEncoder, pick_device, pick_precision
from histomae.infer.predict import tissue_grid
from histomae.infer.reconstruct import normalised
from histomae.models.checkpoint import Checkpoint, CheckpointHeader
from histomae.models.vit import build_encoder, encoder_spec
from histomae.slides.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]


def drawn(name: str) -> Checkpoint:
    """Return a checkpoint of an encoder with drawn weights."""
    spec = encoder_spec(name, tile_px=224, patch_size=16)
    encoder = build_encoder(spec, generator=torch.Generator().manual_seed(0))
    header = CheckpointHeader(
        architecture=f"{name}_patch16_224",
        encoder=spec,
        decoder=None,
        method="mae",
        mask_ratio=0.75,
        norm_pix=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        tile_px=224,
        mpp=0.5,
        mpp_given=False,
        step=0,
        config_hash="",
    )
    return Checkpoint(header, dict(encoder.state_dict()))


def rounded(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same with its weights in eight bits."""
    coarse = {
        name: tensor.to(torch.float8_e4m3fn).float()
        for name, tensor in checkpoint.tensors.items()
    }
    return Checkpoint(checkpoint.header, coarse)


def plain(encoder: TileEncoder, tiles: Array) -> Array:
    """Embed tiles as a few lines of torch would."""
    header, model = encoder.header, encoder._encoder
    found = []
    with torch.inference_mode():
        for start in range(0, len(tiles), CPU_BATCH):
            images = normalised(
                tiles[start : start + CPU_BATCH],
                header.mean,
                header.std,
                encoder.device,
            )
            found.append(model.forward_features(images)[:, 0].cpu().numpy())
    return np.concatenate(found)


def timed(
    work: Callable[[], Array], count: int, speeds: list[tuple[float, float]]
) -> Array:
    """Return what comes out; add tiles a second of the clock, and of computing."""
    clock, computing = time.perf_counter(), time.process_time()
    values = work()
    took = time.perf_counter() - clock, time.process_time() - computing
    speeds.append((count / took[0], count / took[1]))
    return values


def cosines(one: Array, other: Array) -> Array:
    """Return the cosine of each row with its counterpart."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    product: Array = (one * other).sum(1) / lengths
    return product


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--tiles", type=int, help="a round (256; quick: 32)")
    parser.add_argument("--rounds", type=int, help="(5; quick: 1)")
    parser.add_argument("--encoder", default="vit_small", help="or vit_tiny, vit_micro")
    parser.add_argument("--goal-per-s", type=float, help="tiles/s (33; quick: 0)")
    parser.add_argument("--goal-ratio", type=float, help="times plain (1.7; quick: 0)")
    parser.add_argument("--goal-cosine", type=float, default=0.999)
    args = parser.parse_args()
    count = args.tiles or (32 if args.quick else 256)
    per_s = args.goal_per_s if args.goal_per_s is not None else 0 if args.quick else 33
    ratio = args.goal_ratio if args.goal_ratio is not None else 0 if args.quick else 1.7

    checkpoint = drawn(args.encoder)
    device = pick_device()
    precision = pick_precision("auto", device)
    exact = TileEncoder(checkpoint, device)
    fast = TileEncoder(
        rounded(checkpoint) if args.plant else checkpoint, device, precision=precision
    )
    speeds: dict[str, list[tuple[float, float]]] = {"fast": [], "plain": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        Slide.open(make_slide(Path(folder, "a.tiff"))) as slide,
    ):
        grid, cells = tissue_grid(slide, exact)
        cells = np.resize(cells, (count, 2))
        side = (grid.spec.tile_px,) * 2
        tiles = np.stack([slide.read_region(grid.xy_l0(*c), side, 0.5) for c in cells])

        def embed() -> Array:
            work = embed_tiles(slide, fast, grid, cells, batch_size=CPU_BATCH)
            return result_of(work).values

        for number in range(args.rounds or (1 if args.quick else 5)):
            found = timed(embed, count, speeds["fast"])
            wanted = timed(lambda: plain(exact, tiles), count, speeds["plain"])
            say(f"round {number + 1}: {precision} {speeds['fast'][-1][0]:.1f} tiles/s")
    (fast_s, fast_cpu_s), (plain_s, plain_cpu_s) = (
        np.max(speeds[name], 0).tolist() for name in ("fast", "plain")
    )
    apart = cosines(found - found.mean(0), wanted - wanted.mean(0))
    return report(
        [
            load(),
            Figure("tiles a round", count),
            Figure("computed in bf16", precision == "bf16"),
            Figure("tiles a CPU second", fast_cpu_s),
            Figure("plain float32, tiles a CPU second", plain_cpu_s),
            Figure("plain float32, tiles a second", plain_s),
            Figure("cosine to float32 of what tells tiles apart", float(apart.mean())),
            Figure(
                "cosine to float32",
                float(cosines(found, wanted).min()),
                at_least=args.goal_cosine,
            ),
            Figure("times plain float32", fast_s / plain_s, "", None, ratio),
            Figure("tiles a second", fast_s, "", None, per_s),
        ],
        as_json=args.json,
    )


if __name__ == "__main__":
    sys.exit(main())
