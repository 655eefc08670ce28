"""A decoder learns to mark objects, on an encoder that is frozen or learns with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from histomae.config import PretrainConfig, check_one_of
from histomae.errors import NotEnoughDataError
from histomae.events import Progress
from histomae.infer.dense import DenseReader, tile_corners
from histomae.learn.augment import FLIPS, view_affines, views
from histomae.learn.loop import BETAS, Plan, fit
from histomae.learn.methods import Objective, Setting, Task
from histomae.learn.processes import join
from histomae.models.dense import DenseModel

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from torch import Tensor, nn

    from histomae.data.marks import MarkedSet, Marks
    from histomae.events import Event
    from histomae.learn.methods import Batch, Inputs
    from histomae.models.classifier import Network

Array = np.ndarray[Any, Any]
Indices = np.ndarray[Any, np.dtype[np.int64]]
#: Depths count as much as classes.
DEPTH_WEIGHT = 2.0
#: The class of pixels that teach nothing.
ANYTHING = 255


@dataclass(frozen=True, kw_only=True)
class DenseTraining:
    """How a decoder is trained."""

    epochs: int = 40
    warmup_epochs: float = 2.0
    batch_size: int = 16
    base_lr: float = 1.6e-2
    """Per 256 tiles of a batch, of the decoder."""
    encoder_lr: float = 0.05
    """Of the encoder, as a share, where it learns."""
    weight_decay: float = 0.01
    frozen: bool = True
    width: int = 48
    """Of the decoder."""
    flips: str = "all"
    """all: the eight symmetries of the square; horizontal: ultrasound has an up."""
    device: str = "auto"

    def __post_init__(self) -> None:
        check_one_of("flips", self.flips, FLIPS)


def teach_dense(
    network: Network,
    data: MarkedSet,
    rows: Indices,
    settings: DenseTraining | None = None,
    *,
    seed: int = 0,
) -> Generator[Event, None, DenseReader]:
    """Teach a decoder the marks of some pictures; return what marks others.

    Pictures are cut into tiles of the encoder's size; all are held in memory.

    Parameters
    ----------
    network
        Of a ViT; its module is trained in place unless the encoder is frozen.
    rows
        int64 (m,), of the data set.

    Raises
    ------
    NotEnoughDataError
        If there is no picture, or nothing is marked on any.
    DataSetError
        If a picture or its marks cannot be read.
    ConfigError
        If the encoder is no ViT.
    """
    settings = settings or DenseTraining()
    tiles = yield from _cut(data, rows, network.tile_px)
    if not (tiles.classes % ANYTHING).any():
        raise NotEnoughDataError(
            f"Nothing is marked on {len(rows)} pictures of {data.name}. Mark objects."
        )
    fabric = join(settings.device)
    model = DenseModel(
        network,
        len(data.classes),
        frozen=settings.frozen,
        width=settings.width,
        generator=torch.Generator().manual_seed(seed),
    ).to(fabric.device)
    config = PretrainConfig(
        epochs=settings.epochs,
        warmup_epochs=min(settings.warmup_epochs, settings.epochs / 10),
        batch_size=settings.batch_size,
        base_lr=settings.base_lr,
        seed=seed,
    )
    numbers = np.arange(len(tiles.pixels))
    yield from fit(
        model,
        _optimizer(model, settings),
        fabric=fabric,
        method=Task(
            splits_over_batch=True,
            inputs=partial(_inputs, tiles, FLIPS[settings.flips]),
            loss=_loss,
        ),
        setting=Setting(config, network.mean, network.std),
        source=tiles,
        plan=Plan(
            numbers,
            numbers,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=seed,
        ),
    )
    model.eval()
    return DenseReader(
        model, network.mean, network.std, data.classes, areas=data.partial
    )


@dataclass(frozen=True, eq=False)
class _Tiles:
    """Tiles in memory, q of them, as a source of the loop.

    ``pixels`` uint8 (q, H, W, 3); ``classes`` uint8 and ``depth`` float16 (q, H, W).
    """

    pixels: Array
    classes: Array
    depth: Array

    def stream(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Yield the pictures of each batch."""
        for batch in batches:
            yield torch.from_numpy(self.pixels[batch])

    def complaints(self, *, at_the_end: bool = False) -> list[str]:
        """Nothing is left out."""
        return []


def _cut(
    data: MarkedSet, rows: Indices, tile_px: int
) -> Generator[Event, None, _Tiles]:
    found: list[tuple[Array, Array, Array]] = []
    for number, row in enumerate(rows.tolist()):
        yield Progress("reading marked pictures", number, len(rows))
        found += _tiles_of(*data.read(data.pictures[row]), tile_px, data.partial)
    yield Progress("reading marked pictures", len(rows), len(rows))
    if not found:
        raise NotEnoughDataError(f"There is no picture of {data.name} to learn from.")
    pixels, classes, depth = (np.stack(each) for each in zip(*found, strict=True))
    return _Tiles(pixels, classes, depth)


def _tiles_of(
    pixels: Array, marks: Marks, tile_px: int, partial_marks: bool
) -> Iterator[tuple[Array, Array, Array]]:
    """Yield the tiles of a picture; one that is smaller is filled up at its edges."""
    classes: Array = marks.classes.astype(np.uint8)
    depth: Array = marks.depth().astype(np.float16)
    if partial_marks:
        classes[classes == 0] = ANYTHING
    missing = [max(0, tile_px - side) for side in classes.shape]
    pads = [(0, missing[0]), (0, missing[1])]
    pixels = np.pad(pixels, [*pads, (0, 0)], mode="edge")
    classes = np.pad(classes, pads, constant_values=ANYTHING)
    depth = np.pad(depth, pads)
    for top, left in tile_corners(classes.shape, tile_px, tile_px):
        at = slice(top, top + tile_px), slice(left, left + tile_px)
        yield pixels[at], classes[at], depth[at]


def _optimizer(model: DenseModel, settings: DenseTraining) -> torch.optim.Optimizer:
    encoder = [w for w in model.encoder.parameters() if w.requires_grad]
    known = {id(weight) for weight in model.encoder.parameters()}
    decoder = [w for w in model.parameters() if id(w) not in known]
    groups = [{"params": decoder, "lr_scale": 1.0}]
    if encoder:
        groups.append({"params": encoder, "lr_scale": settings.encoder_lr})
    return torch.optim.AdamW(
        groups, lr=0.0, betas=BETAS, weight_decay=settings.weight_decay
    )


def _inputs(tiles: _Tiles, symmetries: Array, batch: Batch, setting: Setting) -> Inputs:
    """Return turned tiles, and their classes and depths turned alike."""
    device = batch.pictures.device
    affine = torch.from_numpy(
        view_affines(
            setting.config.seed,
            batch.epoch,
            batch.indices,
            scale_min=1.0,
            symmetries=symmetries,
        )
    ).to(device)
    marks = np.stack([tiles.classes[batch.indices], tiles.depth[batch.indices]], 1)
    turned = functional.grid_sample(
        torch.from_numpy(marks.astype(np.float32)).to(device),
        functional.affine_grid(affine, list(marks.shape), align_corners=False),
        mode="nearest",
        padding_mode="border",
        align_corners=False,
    )
    return {
        "images": views(batch.pictures, affine, mean=setting.mean, std=setting.std),
        "classes": turned[:, 0].round().long(),
        "depth": turned[:, 1],
    }


def _loss(model: nn.Module, inputs: Inputs, setting: Setting) -> Objective:
    """Return cross-entropy, 1 - mean soft Dice of the classes, the depth's error²."""
    said, truth = model(inputs["images"]), inputs["classes"]
    known = (truth != ANYTHING)[:, None]
    truth = truth * known[:, 0]
    every = functional.cross_entropy(said.logits, truth, reduction="none")
    entropy = (every * known[:, 0]).sum() / known.sum().clamp(min=1)
    shares = said.logits.softmax(1) * known
    there = functional.one_hot(truth, shares.shape[1]).movedim(-1, 1) * known
    over = (0, 2, 3)
    both, sizes = (shares * there).sum(over), (shares + there).sum(over)
    dice = 1 - ((2 * both[1:] + 1) / (sizes[1:] + 1)).mean()  # rare classes count too
    apart = (said.depth - inputs["depth"]) ** 2 * known[:, 0]
    depth = apart.sum() / known.sum().clamp(min=1)
    total = entropy + dice + DEPTH_WEIGHT * depth
    return Objective(total, {"entropy": entropy, "dice": dice, "depth": depth})
