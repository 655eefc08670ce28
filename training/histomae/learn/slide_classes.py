"""Fitting classifiers of whole slides: fine-tuning PAMA, and attention MIL."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from histomae.config import PretrainConfig
from histomae.learn.augment import Stream
from histomae.learn.bags import (
    BagMemory,
    as_inputs,
    bag_noise,
    bag_tensors,
    from_inputs,
)
from histomae.learn.loop import Plan, build_optimizer, fit
from histomae.learn.methods import Objective, Setting, Task
from histomae.learn.processes import join

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor, nn

    from histomae.data.bags import Bag
    from histomae.events import Event
    from histomae.learn.methods import Batch, Inputs
    from histomae.models.slide_classifier import AttentionMil, SlideClassifier

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class SlideFit:
    """How a classifier of slides is trained. Defaults are those of fine-tuning PAMA."""

    epochs: int = 30
    warmup_epochs: float = 3.0
    batch_size: int = 12
    micro_batch: int = 4
    """Slides at once; the gradients of a batch are summed."""
    base_lr: float = 1e-3
    """Per 256 slides of a batch."""
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    most_tiles: int | None = 2048
    """Of a larger slide so many tiles take part in a step, others in the next."""
    seed: int = 0
    device: str = "auto"


def fit_slides(
    model: SlideClassifier | AttentionMil,
    bags: Sequence[Bag],
    labels: Array,
    settings: SlideFit | None = None,
) -> Generator[Event, None, None]:
    """Train a classifier on labelled slides, in place.

    Classes count alike, however many slides each has.

    Parameters
    ----------
    model
        Moved to the device.
    labels
        int (N,), 0 to K-1; every class has a slide.

    Raises
    ------
    RunError
        If a loss or gradient is not finite.
    MemoryRanOutError
        If one slide does not fit into memory.
    """
    settings = settings or SlideFit()
    known = {field.name for field in fields(PretrainConfig)} & vars(settings).keys()
    config = PretrainConfig(
        **{name: getattr(settings, name) for name in known}, precision="f32"
    )
    labels = np.asarray(labels, np.int64)
    counts = np.bincount(labels, minlength=model.head.out_features)
    weights = torch.from_numpy(len(labels) / (len(counts) * counts)).float()
    fabric = join(settings.device)
    model.to(fabric.device)
    yield from fit(
        model,
        build_optimizer(model, config),
        fabric=fabric,
        method=Task(
            splits_over_batch=True,
            inputs=partial(_inputs, model, labels, settings),
            loss=partial(_loss, weights.to(fabric.device)),
        ),
        setting=Setting(config),
        source=BagMemory(bags),
        plan=Plan(
            crops=np.arange(len(bags)),
            regions=np.arange(len(bags)),
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
        ),
    )


def _inputs(
    model: SlideClassifier | AttentionMil,
    labels: Array,
    settings: SlideFit,
    batch: Batch,
    setting: Setting,
) -> Inputs:
    where = {"seed": settings.seed, "epoch": batch.epoch}
    bags = bag_tensors(
        batch.pictures,
        batch.indices,
        **where,
        most=settings.most_tiles,
        placing=model.placing,
    )
    real = bags.places.real_anchors
    return {
        **as_inputs(bags),
        "anchor_noise": bag_noise(real, batch.indices, **where, stream=Stream.ANCHORS),
        "labels": torch.from_numpy(labels[batch.indices]).to(real.device),
    }


def _loss(
    weights: Tensor, model: nn.Module, inputs: Inputs, setting: Setting
) -> Objective:
    logits = model(from_inputs(inputs), inputs["anchor_noise"])
    losses = functional.cross_entropy(logits, inputs["labels"], reduction="none")
    return Objective((losses * weights[inputs["labels"]]).mean(), {})
