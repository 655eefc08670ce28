"""Full fine-tuning: an encoder and a head learn labels together.

The recipe is that of MAE (He et al., CVPR 2022) without its colours: AdamW, learning
rates that fall with the depth, dropped paths, mixed pictures, soft labels. Classes are
drawn alike, and validation chooses the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import beta
from torch import nn
from torch.nn import functional

from histomae.config import PretrainConfig, check_least, check_one_of, check_within
from histomae.errors import NotEnoughDataError
from histomae.events import Heartbeat, Step
from histomae.learn.augment import (
    FLIPS,
    Stream,
    uniforms,
    view_affines,
    views,
)
from histomae.learn.choosing import BestEpoch
from histomae.learn.labelled_tiles import LabelledTiles, tile_numbers
from histomae.learn.loop import BETAS, Plan, awaited, fit, on_device, split
from histomae.learn.methods import Objective, Setting, Task
from histomae.learn.processes import join
from histomae.models.classifier import TileClassifier, layer_groups

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from histomae.data.labelled import LabelledSet
    from histomae.data.tiling import Tiling
    from histomae.events import Event
    from histomae.learn.methods import Batch, Inputs
    from histomae.models.classifier import Network

Array = np.ndarray[Any, Any]
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How an encoder is fine-tuned.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    epochs: int = 50
    warmup_epochs: float = 5.0
    batch_size: int = 32
    micro_batch: int | None = None
    """Tiles at once; None: the whole batch, as batch norm needs it in any case."""
    base_lr: float = 1e-3
    """Per 256 tiles of a batch, of the head."""
    layer_decay: float = 0.65
    """Each layer below learns so much slower."""
    weight_decay: float = 0.05
    drop_path: float = 0.1
    mixup: float = 0.8
    """Both parameters of the beta distribution of shares; 0: tiles stay unmixed."""
    smoothing: float = 0.1
    """Share of a label that is spread over all classes."""
    balanced: bool = True
    """Draw from every class alike, or every tile once in an epoch."""
    crop_scale_min: float = 0.5
    """Least share of a tile's area in a view; MAE's 0.2 destroys magnification."""
    flips: str = "all"
    """all: the eight symmetries of the square; horizontal: ultrasound has an up."""
    grad_clip: float | None = 1.0
    patience: int | None = None
    """Epochs without a better one after which it ends; None: all are made."""
    device: str = "auto"
    precision: str = "f32"

    def __post_init__(self) -> None:
        check_least("epochs", self.epochs, 1)
        check_least("batch_size", self.batch_size, 1)
        check_within("layer_decay", self.layer_decay, 0.01, 1)
        check_within("drop_path", self.drop_path, 0, 0.9)
        check_least("mixup", self.mixup, 0)
        check_within("smoothing", self.smoothing, 0, 0.9)
        check_one_of("flips", self.flips, FLIPS)


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What came of it: logits float64 (q, K) of the tiles of each side, by picture.

    ``val_picture`` and ``test_picture``, int64 (q,): rows of the data set. ``epoch``:
    the one that validation chose; ``tiles``: how many were trained on.
    """

    val_logits: Array
    val_picture: Indices
    test_logits: Array
    test_picture: Indices
    epoch: int
    tiles: int
    model: TileClassifier


def fine_tune(
    network: Network,
    data: LabelledSet,
    tiling: Tiling,
    counts: Indices,
    *,
    train: Indices,
    val: Indices,
    test: Indices,
    settings: FineTuning | None = None,
    seed: int = 0,
) -> Generator[Event, None, FineTuned]:
    """Fine-tune an encoder on the tiles of labelled pictures, and ask it of others.

    Parameters
    ----------
    network
        Its module is trained in place; it should be a copy.
    counts
        Tiles of each picture, from :func:`histomae.learn.labelled_tiles.count_tiles`.
    train, val, test
        int64, rows of the data set; without ``val`` the last epoch is kept.

    Raises
    ------
    NotEnoughDataError
        If there is nothing to train on.
    RunError
        If a loss or gradient is not finite.
    MemoryRanOutError
        If one tile does not fit into memory.
    DataSetError
        If a picture cannot be read.
    """
    settings = settings or FineTuning()
    if not len(train):
        raise NotEnoughDataError("There is no picture to train on. Label some.")
    labels = data.labels
    picture, place = tile_numbers(np.asarray(train), counts)
    drawn = (
        _drawn(labels[picture], seed) if settings.balanced else np.arange(len(picture))
    )
    fabric = join(settings.device)
    generator = torch.Generator().manual_seed(seed)
    model = TileClassifier(
        network,
        len(data.classes),
        drop_path=settings.drop_path,
        generator=generator,
    ).to(fabric.device)
    config = _config(settings, seed)
    how = data, tiling, network.tile_px
    asked = {
        side: LabelledTiles(*how, *tile_numbers(np.asarray(rows), counts))
        for side, rows in (("val", val), ("test", test))
    }
    numbers = np.arange(len(drawn))
    plan = Plan(
        numbers,
        numbers,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=seed,
    )
    best = BestEpoch(labels[tile_numbers(np.asarray(val), counts)[0]])
    waited = 0
    with (
        LabelledTiles(*how, picture[drawn], place[drawn]) as source,
        asked["val"],
        asked["test"],
    ):
        training = fit(
            model,
            torch.optim.AdamW(
                layer_groups(
                    model,
                    layer_decay=settings.layer_decay,
                    weight_decay=settings.weight_decay,
                ),
                lr=0.0,
                betas=BETAS,
            ),
            fabric=fabric,
            method=Task(
                splits_over_batch=not _has_batch_norm(model),
                inputs=partial(
                    _inputs, settings, labels[picture[drawn]], len(data.classes)
                ),
                loss=_loss,
            ),
            setting=Setting(config, network.mean, network.std),
            source=source,
            plan=plan,
        )
        for event in training:
            yield event
            if not isinstance(event, Step) or event.step % plan.steps_per_epoch:
                continue
            logits = yield from _answers(model, network, asked["val"], settings)
            better = best.look(model, logits, event.step // plan.steps_per_epoch)
            waited = 0 if better else waited + 1
            if settings.patience is not None and waited > settings.patience:
                break
        training.close()
        best.restore(model)
        found = {}
        for side, tiles in asked.items():
            found[side] = yield from _answers(model, network, tiles, settings)
    return FineTuned(
        found["val"],
        tile_numbers(np.asarray(val), counts)[0],
        found["test"],
        tile_numbers(np.asarray(test), counts)[0],
        best.epoch,
        len(picture),
        model,
    )


def _drawn(labels: Array, seed: int) -> Indices:
    """Return rows such that every class is there as often as the largest, int64."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = max(map(len, rows))
    return np.concatenate([np.resize(rng.permutation(one), most) for one in rows])


def _config(settings: FineTuning, seed: int) -> PretrainConfig:
    known = {field.name for field in fields(PretrainConfig)} & vars(settings).keys()
    said = {name: getattr(settings, name) for name in known}
    return PretrainConfig(**said, seed=seed)


def _has_batch_norm(model: nn.Module) -> bool:
    kinds = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kinds) for module in model.modules())


def _inputs(
    settings: FineTuning,
    labels: Array,
    num_classes: int,
    batch: Batch,
    setting: Setting,
) -> Inputs:
    """Return views and soft labels of a micro-batch, mixed with one another."""
    seed, device = setting.config.seed, batch.pictures.device
    affine = view_affines(
        seed,
        batch.epoch,
        batch.indices,
        scale_min=settings.crop_scale_min,
        symmetries=FLIPS[settings.flips],
    )
    images = views(
        batch.pictures,
        torch.from_numpy(affine).to(device),
        mean=setting.mean,
        std=setting.std,
    )
    truth = torch.from_numpy(labels[batch.indices]).to(device)
    targets = functional.one_hot(truth, num_classes).float()
    targets = targets * (1 - settings.smoothing) + settings.smoothing / num_classes
    if settings.mixup:
        numbers = uniforms(seed, batch.epoch, batch.indices, stream=Stream.MIX, count=1)
        share = beta.ppf(numbers[:, 0], settings.mixup, settings.mixup)
        images, targets = mixed(
            images, targets, torch.from_numpy(share).float().to(device)
        )
    return {"images": images, "targets": targets}


def mixed(images: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each picture, and its label, with that at the same place from the end.

    Zhang et al., ICLR 2018.

    Parameters
    ----------
    images
        (N, C, H, W).
    targets
        (N, K).
    share
        (N,), 0 to 1: how much of the picture itself is kept.
    """
    of_image, of_target = share.view(-1, 1, 1, 1), share.view(-1, 1)
    return (
        of_image * images + (1 - of_image) * images.flip(0),
        of_target * targets + (1 - of_target) * targets.flip(0),
    )


def _loss(model: nn.Module, inputs: Inputs, setting: Setting) -> Objective:
    logits = model(inputs["images"])
    return Objective(functional.cross_entropy(logits, inputs["targets"]), {})


def _answers(
    model: TileClassifier, network: Network, tiles: LabelledTiles, settings: FineTuning
) -> Generator[Event, None, Array]:
    """Return the logits of tiles as they are, float64 (q, K)."""
    chunks = split(np.arange(len(tiles)), settings.micro_batch or settings.batch_size)
    stream, found = tiles.stream(chunks), [np.zeros((0, model.head.out_features))]
    model.eval()
    for _ in chunks:
        ready = yield from awaited(stream)
        with torch.inference_mode():
            images = views(on_device(ready, model), mean=network.mean, std=network.std)
            found.append(model(images).double().cpu().numpy())
        yield Heartbeat()
    model.train()
    return np.concatenate(found)
