"""Linear heads on frozen features, trained step by step as papers and boards do it.

The loop is the one of all trainings (:mod:`histomae.learn.loop`); the vectors of a
batch take the place of its pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.optim import Lars
from torch import nn
from torch.nn import functional

from histomae.config import PretrainConfig
from histomae.events import Step
from histomae.learn.choosing import BestEpoch
from histomae.learn.loop import LARS_MOMENTUM, LARS_TRUST, Plan, fit
from histomae.learn.methods import Objective, Setting, Task
from histomae.learn.processes import join
from histomae.learn.schedule import REFERENCE_BATCH, parameter_groups

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from histomae.events import Event
    from histomae.learn.methods import Batch, Inputs

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class HeadFit:
    """How a linear head is trained.

    Without ``epochs`` the training ends after ``steps``.
    """

    optimizer: str
    """lars or adamw."""
    base_lr: float
    """Learning rate; of lars per 256 vectors of a batch."""
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    warmup_epochs: float = 0.0
    normalised: bool = False
    """Whether features pass a batch norm without weights first, as MAE does it."""
    patience: float | None = None
    """Share of all epochs without a better one after which the training ends."""
    device: str = "cpu"


#: The linear probe of MAE, without its random crops: features are computed once.
LARS_PROBE = HeadFit(
    optimizer="lars",
    base_lr=0.1,
    batch_size=16_384,
    epochs=90,
    warmup_epochs=10,
    normalised=True,
)
#: That of kaiko's eva leaderboard, for patches.
LEADERBOARD = HeadFit(
    optimizer="adamw", base_lr=3e-4, batch_size=256, steps=12_500, patience=0.2
)


@dataclass(frozen=True, eq=False)
class Head:
    """A trained head; ``epoch`` is that whose weights it has."""

    module: nn.Module
    epoch: int

    @torch.inference_mode()
    def logits(self, features: Array) -> Array:
        """Return the logits, float64 (M, K), of features (M, D)."""
        x = torch.from_numpy(np.asarray(features, np.float32))
        found: Array = self.module(x).double().numpy()
        return found


class _Vectors:
    """Gives the vectors of a batch; see :class:`histomae.learn.crops.Source`."""

    def __init__(self, features: Floats) -> None:
        self._features = features

    def stream(self, batches: Iterable[Indices]) -> Iterator[Floats]:
        return (self._features[batch] for batch in batches)

    def complaints(self, *, at_the_end: bool = False) -> list[str]:
        return []


def fit_head(
    features: Array,
    labels: Array,
    val_features: Array,
    val_labels: Array,
    *,
    num_classes: int,
    settings: HeadFit,
    seed: int = 0,
) -> Generator[Event, None, Head]:
    """Train a linear head; of its epochs the one is kept that validation likes best.

    Parameters
    ----------
    features, val_features
        float (M, D).
    labels, val_labels
        int (M,), 0 to K-1.

    Raises
    ------
    RunError
        If a loss is not finite.
    """
    x = np.ascontiguousarray(features, np.float32)
    y = np.asarray(labels, np.int64)
    model = _head(x.shape[1], num_classes, settings, seed)
    per_step = min(settings.batch_size, len(x))
    steps_per_epoch = max(1, len(x) // per_step)
    epochs = settings.epochs or ceil((settings.steps or 1) / steps_per_epoch)
    config = PretrainConfig(
        epochs=epochs,
        warmup_epochs=settings.warmup_epochs,
        batch_size=settings.batch_size,
        base_lr=_per_batch(settings, per_step),
        seed=seed,
        precision="f32",
    )
    fabric = join(settings.device)
    model.to(fabric.device)
    val_x = torch.from_numpy(np.asarray(val_features, np.float32)).to(fabric.device)
    best, waited = BestEpoch(np.asarray(val_labels, np.int64)), 0
    rows = np.arange(len(x))
    training = fit(
        model,
        _optimizer(model, settings),
        fabric=fabric,
        method=Task(
            splits_over_batch=not settings.normalised,
            inputs=partial(_inputs, torch.from_numpy(y).to(fabric.device)),
            loss=_loss,
        ),
        setting=Setting(config),
        source=_Vectors(x),
        plan=Plan(rows, rows, batch_size=settings.batch_size, epochs=epochs, seed=seed),
    )
    for event in training:
        yield event
        if not isinstance(event, Step) or event.step % steps_per_epoch:
            continue
        epoch = event.step // steps_per_epoch
        better = best.look(model, _answers(model, val_x), epoch)
        waited = 0 if better else waited + 1
        if settings.patience is not None and waited > settings.patience * epochs:
            break
        if settings.steps is not None and event.step >= settings.steps:
            break
    training.close()
    best.restore(model)
    return Head(model.cpu().eval(), best.epoch)


def _head(width: int, num_classes: int, settings: HeadFit, seed: int) -> nn.Module:
    head = nn.Linear(width, num_classes)
    generator = torch.Generator().manual_seed(seed)
    nn.init.trunc_normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    if not settings.normalised:
        return head
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), head)


def _per_batch(settings: HeadFit, per_step: int) -> float:
    """Return the loop's base_lr, which it scales by the size of a batch."""
    if settings.optimizer == "lars":
        return settings.base_lr
    return settings.base_lr * REFERENCE_BATCH / per_step


def _optimizer(model: nn.Module, settings: HeadFit) -> torch.optim.Optimizer:
    if settings.optimizer != "lars":
        return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    matrices, rest = parameter_groups(model, 0.0)
    # Without decay timm's trusts no weight unless told to; MAE's trusts matrices.
    groups = [{**matrices, "always_adapt": True}, rest]
    return Lars(groups, lr=0.0, momentum=LARS_MOMENTUM, trust_coeff=LARS_TRUST)


def _inputs(labels: torch.Tensor, batch: Batch, setting: Setting) -> Inputs:
    rows = torch.from_numpy(batch.indices).to(labels.device)
    return {"features": batch.pictures, "labels": labels[rows]}


def _loss(model: nn.Module, inputs: Inputs, setting: Setting) -> Objective:
    logits = model(inputs["features"])
    return Objective(functional.cross_entropy(logits, inputs["labels"]), {})


def _answers(model: nn.Module, features: torch.Tensor) -> Array:
    """Return the logits of features without training on them."""
    model.eval()
    with torch.inference_mode():
        found: Array = model(features).double().cpu().numpy()
    model.train()
    return found
