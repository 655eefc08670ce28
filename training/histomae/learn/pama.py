"""Pretraining PAMA: bags of tiles in, hidden tiles predicted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from histomae.learn.augment import Stream
from histomae.learn.bags import as_inputs, bag_noise, bag_tensors, from_inputs
from histomae.learn.methods import Objective, Task

if TYPE_CHECKING:
    from torch import nn

    from histomae.learn.methods import Batch, Inputs, Setting
    from histomae.models.bag_tensors import Placing


def pama_task(
    placing: Placing, *, most_tiles: int | None = 2048, anchor_dropout: float = 0.2
) -> Task:
    """Return what the loop must know to pretrain a PAMA.

    Its source gives :class:`histomae.learn.bags.Bags`, of two tiles or more each; seed
    and mask ratio are those of the settings.

    Parameters
    ----------
    placing
        That of the model.
    most_tiles
        Of a larger slide so many tiles take part in a step, others in the next epoch;
        None: all.
    anchor_dropout
        Share of each bag's anchors that do not take part in a step.
    """
    return Task(
        splits_over_batch=True,
        inputs=partial(_inputs, placing, most_tiles),
        loss=partial(_loss, anchor_dropout),
    )


def _inputs(
    placing: Placing, most_tiles: int | None, batch: Batch, setting: Setting
) -> Inputs:
    seed, epoch = setting.config.seed, batch.epoch
    bags = bag_tensors(
        batch.pictures,
        batch.indices,
        seed=seed,
        epoch=epoch,
        most=most_tiles,
        placing=placing,
    )
    noise = partial(bag_noise, indices=batch.indices, seed=seed, epoch=epoch)
    mask = Stream.MASK if batch.training else Stream.HELD_OUT_MASK
    return {
        **as_inputs(bags),
        "noise": noise(bags.places.real_tokens, stream=mask),
        "anchor_noise": noise(bags.places.real_anchors, stream=Stream.ANCHORS),
    }


def _loss(
    anchor_dropout: float, model: nn.Module, inputs: Inputs, setting: Setting
) -> Objective:
    output = model(
        from_inputs(inputs),
        mask_ratio=setting.config.mask_ratio,
        noise=inputs["noise"],
        anchor_dropout=anchor_dropout,
        anchor_noise=inputs["anchor_noise"],
    )
    return Objective(output.loss, {})
