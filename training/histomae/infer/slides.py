"""Whole slides as vectors, and what a slide classifier makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.errors import ConfigError
from histomae.events import Progress
from histomae.models.bag_tensors import batch_bags, place_bag

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import Tensor

    from histomae.data.bags import Bag
    from histomae.events import Event
    from histomae.models.bag_tensors import BagTensors, Placing
    from histomae.models.pama import PamaEncoder
    from histomae.models.slide_classifier import AttentionMil, SlideClassifier

Array = np.ndarray[Any, Any]

#: How a slide becomes one vector.
POOLINGS = ("class_token", "anchors")


def mean_of_tiles(bags: Sequence[Bag]) -> Array:
    """Return each slide's mean embedding, float32 (N, C): tiles without places."""
    return np.stack([bag.features.mean(0) for bag in bags])


def pooled(tokens: Tensor, anchors: Tensor, pooling: str) -> Tensor:
    """Return one vector for a slide from PAMA's tokens (1, T, D), anchors (1, K, D).

    ``class_token`` is (1, D), as published; pretraining teaches it little, for nothing
    is predicted from it. ``anchors`` is (1, 2 D), mean and spread over the anchors:
    each has seen its surroundings, and how these differ tells how the slide is made.
    """
    if pooling == "class_token":
        return tokens[:, 0]
    spread, mean = torch.std_mean(anchors, dim=1, correction=0)
    return torch.cat([mean, spread], dim=-1)


def embed_slides(
    encoder: PamaEncoder, bags: Sequence[Bag], *, pooling: str = "anchors"
) -> Generator[Event, None, Array]:
    """Return a vector for each slide, float32 (N, D) or (N, 2 D): see :func:`pooled`.

    Every tile and every anchor takes part, one slide at a time.

    Raises
    ------
    ConfigError
        If there is no such pooling.
    """
    if pooling not in POOLINGS:
        raise ConfigError(
            "pooling", f"{pooling!r} is unknown. Choose one of {', '.join(POOLINGS)}."
        )

    def look(tensors: BagTensors) -> Tensor:
        return pooled(*encoder.encode(tensors), pooling)

    placing, what = encoder.spec.placing, "embedding slides"
    return (yield from _each(encoder, look, bags, placing, what))


def classify_slides(
    model: SlideClassifier | AttentionMil, bags: Sequence[Bag]
) -> Generator[Event, None, Array]:
    """Return the probability of each class for each slide, float32 (N, K)."""

    def probabilities(tensors: BagTensors) -> Tensor:
        logits: Tensor = model(tensors)
        return logits.softmax(-1)

    what = "classifying slides"
    return (yield from _each(model, probabilities, bags, model.placing, what))


def _each(
    model: torch.nn.Module,
    look: Callable[[BagTensors], Tensor],
    bags: Sequence[Bag],
    placing: Placing,
    what: str,
) -> Generator[Event, None, Array]:
    device = next(model.parameters()).device
    model.eval()
    rows = []
    for done, bag in enumerate(bags):
        yield Progress(what, done, len(bags))
        placed = place_bag(bag.features, bag.cells, placing)
        with torch.inference_mode():
            rows.append(look(batch_bags([placed]).to(device)).float().cpu().numpy())
    yield Progress(what, len(bags), len(bags))
    return np.concatenate(rows)
