"""The learning rate of each step, and which weights decay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: Batch that ``base_lr`` is meant for.
REFERENCE_BATCH = 256
#: Learned tokens, positions and biases by place: of several dimensions, but no
#: matrices, so without decay.
TOKENS = (
    *("cls_token", "mask_token", "anchor_token", "pos_embed", "reg_token"),
    "distance_bias",
)


def peak_lr(base_lr: float, batch_size: int) -> float:
    """Return the largest learning rate: ``base_lr`` is per 256 crops of a batch."""
    return base_lr * batch_size / REFERENCE_BATCH


def lr_at(
    step: int,
    *,
    total_steps: int,
    warmup_steps: float,
    peak: float,
    minimum: float = 0.0,
) -> float:
    """Return the learning rate after ``step`` of ``total_steps`` updates.

    Linear from 0 to ``peak`` over ``warmup_steps``, then half a cosine down to
    ``minimum`` at the end. Update number n, counted from 0, is made with ``lr_at(n)``.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if step >= total_steps:
        return minimum
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's two groups: matrices, which decay, and the rest, which do not.

    Matrices are weights of two or more dimensions (a convolution is one). Biases,
    norms, and unlike the reference the class token, mask token and positions do not
    decay: pulling them towards zero regularises nothing. Frozen weights are left out.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        token = name.rpartition(".")[2] in TOKENS
        (rest if token or weight.ndim < 2 else matrices).append(weight)
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
