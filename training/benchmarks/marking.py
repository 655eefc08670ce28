"""A decoder on patch tokens learns to mark objects that it has not seen.

Nuclei: taught on tiles of one sample slide, by the centres of its nuclei, and judged on
another slide's: F1 of centres at most 12 pixels apart. Regions: taught by the regions
of one sample slide and judged by those of the other: Dice of their classes, where
something is drawn. Lesions, with ``--busi``: taught on the pictures of BUSI, a part of
the patients kept for judging: Dice and AJI.

The encoder is a checkpoint (``--encoder``), frozen unless ``--learn``; without one it
is an untrained one of tiles of ``--tile-px``, which shows what the decoder does by
itself.
``--plant`` gives each picture the marks of another: nothing can be learned then.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from figures import Figure, options, report, say

from histomae.data.busi import read_marked_busi
from histomae.data.classes import ClassSet
from histomae.data.monuseg import NUCLEI
from histomae.evaluate.dense import score_dense
from histomae.events import result_of
from histomae.exchange.qupath import read_annotations
from histomae.learn.dense import DenseTraining, teach_dense
from histomae.learn.marked_slides import nucleus_tiles, read_centres, region_tiles
from histomae.models.checkpoint import encoder_from, load_checkpoint
from histomae.models.classifier import Network
from histomae.models.vit import build_encoder, encoder_spec
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.sample import SIZE_UM, sample_slide
from histomae.slides.slide import Slide
from histomae.slides.tissue import tissue_cells, tissue_mask

if TYPE_CHECKING:
    import argparse

    from histomae.data.marks import MarkedPicture, MarkedSet, Marks
    from histomae.evaluate.dense import DenseScore

Array = np.ndarray[Any, Any]
#: Width and height of a small sample slide, µm.
QUICK_UM = (1600.0, 1200.0)
#: µm per pixel of nuclei, and of regions, which are large.
NUCLEI_MPP, REGIONS_MPP = 0.5, 1.0
#: BUSI's pictures are shrunk so many times.
SHRUNK = 4


def network_of(args: argparse.Namespace) -> Network:
    """Return the encoder, fresh for each task."""
    if args.encoder is None:
        spec = encoder_spec("vit_micro", tile_px=args.tile_px, patch_size=16)
        module = build_encoder(spec, generator=torch.Generator().manual_seed(0)).eval()
        mean, std = (0.7, 0.5, 0.65), (0.2, 0.25, 0.18)
        return Network(
            module=module,
            tile_px=spec.tile_px,
            mean=mean,
            std=std,
            width=spec.embed_dim,
            pooling="mean",
        )
    checkpoint = load_checkpoint(args.encoder)
    header = checkpoint.header
    return Network(
        module=encoder_from(checkpoint.encoder_only()).eval(),
        tile_px=header.tile_px,
        mean=header.mean,
        std=header.std,
        width=header.encoder.embed_dim,
        pooling="mean",
    )


def shuffled(data: MarkedSet) -> MarkedSet:
    """Give each picture the marks of another one, cut to its size."""
    order = [*data.pictures[len(data) // 2 :], *data.pictures[: len(data) // 2]]
    other = dict(zip(data.pictures, order, strict=True))

    def read(picture: MarkedPicture) -> tuple[Array, Marks]:
        pixels, marks = data.read(picture)[0], data.read(other[picture])[1]
        high, wide = np.minimum(pixels.shape[:2], marks.objects.shape)
        return pixels[:high, :wide], marks.crop(slice(high), slice(wide))

    return replace(data, read=read)


def measured(
    args: argparse.Namespace,
    data: tuple[MarkedSet, MarkedSet],
    rows: tuple[Array, Array],
    *,
    flips: str = "all",
) -> DenseScore:
    """Teach on some pictures and judge on others."""
    taught = shuffled(data[0]) if args.plant else data[0]
    settings = DenseTraining(
        epochs=args.epochs, frozen=not args.learn, flips=flips, batch_size=args.batch
    )
    reader = result_of(teach_dense(network_of(args), taught, rows[0], settings))
    return result_of(score_dense(reader, data[1], rows[1]))


def nuclei_and_regions(
    args: argparse.Namespace, folder: Path
) -> tuple[list[DenseScore], tuple[str, ...]]:
    """Measure on two sample slides; with ``--quick`` nuclei alone.

    Returns also the names of the regions' classes.
    """
    size = QUICK_UM if args.quick else SIZE_UM
    nuclei, regions, spec = [], [], network_of(args).tile_px
    for seed in (0, 1):
        files = sample_slide(seed, folder=folder, size_um=size)
        slide = Slide.open(files.slide_path)
        grid = TileGrid.over(slide, TileSpec(spec, NUCLEI_MPP))
        cells = tissue_cells(grid, tissue_mask(slide), 0.9)
        many = min(args.tiles, len(cells))
        chosen = np.random.default_rng(0).choice(len(cells), many, replace=False)
        xy, labels = read_centres(files.nuclei_path, NUCLEI)
        nuclei.append(
            nucleus_tiles(slide, grid, cells[np.sort(chosen)], xy, labels, NUCLEI)
        )
        drawn = read_annotations(files.regions_path)
        classes = ClassSet.of(sorted({one.class_name for one in drawn}))
        coarse = TileGrid.over(slide, TileSpec(spec, REGIONS_MPP))
        regions.append(region_tiles(slide, coarse, drawn, classes))
    found = []
    tasks = {"nuclei": nuclei} if args.quick else {"nuclei": nuclei, "regions": regions}
    for what, pair in tasks.items():
        say(f"{what}: {len(pair[0])} tiles to learn from, {len(pair[1])} to judge by")
        rows = tuple(np.arange(len(one)) for one in pair)
        found.append(measured(args, (pair[0], pair[1]), (rows[0], rows[1])))
    return found, regions[0].classes.names


def lesions(args: argparse.Namespace) -> DenseScore:
    """Measure on BUSI, a third of the patients kept for judging."""
    whole = read_marked_busi(args.busi)

    def read(picture: MarkedPicture) -> tuple[Array, Marks]:
        pixels, marks = whole.read(picture)
        part = replace(marks, objects=marks.objects[::SHRUNK, ::SHRUNK])
        return pixels[::SHRUNK, ::SHRUNK], part.crop(slice(None), slice(None))

    data = replace(whole, read=read)
    patients = np.array([picture.patient for picture in data.pictures])
    judged = np.isin(patients, np.unique(patients)[::3])
    say(
        f"lesions: {(~judged).sum()} pictures to learn from, {judged.sum()} to judge by"
    )
    rows = np.flatnonzero(~judged), np.flatnonzero(judged)
    return measured(args, (data, data), rows, flips="horizontal")


def main() -> int:
    """Measure, print and judge."""
    parser = options(__doc__)
    parser.add_argument("--encoder", type=Path, help="a checkpoint")
    parser.add_argument("--tile-px", type=int, default=128, help="without a checkpoint")
    parser.add_argument("--learn", action="store_true", help="the encoder learns along")
    parser.add_argument("--busi", type=Path, help="folder of BUSI")
    parser.add_argument("--samples", type=Path, help="folder to keep sample slides in")
    parser.add_argument("--tiles", type=int, help="tiles of nuclei of each slide")
    parser.add_argument("--epochs", type=int, help="of each training")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--goal-f1", type=float, default=0.7)
    parser.add_argument("--goal-dice", type=float, default=0.25)
    args = parser.parse_args()
    args.tiles = args.tiles or (24 if args.quick else 200)
    args.epochs = args.epochs or (16 if args.quick else 40)
    if args.quick:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="marking-") as folder:
        found, names = nuclei_and_regions(args, args.samples or Path(folder))
    nuclei, *regions = found
    figures = [
        Figure("nuclei: F1 of centres", nuclei.f1, at_least=args.goal_f1),
        Figure("nuclei: precision", nuclei.precision),
        Figure("nuclei: recall", nuclei.recall),
        Figure("nuclei: Dice", float(nuclei.dice[0])),
        Figure("nuclei: AJI", nuclei.aji),
        *(
            Figure(
                "regions: Dice, mean over classes",
                float(np.nanmean(one.dice)),
                at_least=args.goal_dice,
            )
            for one in regions
        ),
        *(
            Figure(f"regions: Dice of {name}", float(dice))
            for one in regions
            for name, dice in zip(names, one.dice, strict=True)
        ),
    ]
    if args.busi:
        lesion = lesions(args)
        figures += [
            Figure("lesions: Dice, mean over classes", float(np.nanmean(lesion.dice))),
            Figure("lesions: AJI", lesion.aji),
            Figure("lesions: F1 of centres", lesion.f1),
        ]
    return report(figures, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
