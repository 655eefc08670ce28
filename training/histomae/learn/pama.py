"""Pretraining PAMA: bags of tiles in, hidden tiles predicted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from histomae.errors import CheckpointError
from histomae.learn.augment import Stream
from histomae.learn.bag_files import BagExamples
from histomae.learn.bags import as_inputs, bag_noise, bag_tensors, from_inputs
from histomae.models.bag_tensors import Placing
from histomae.models.checkpoint import encoder_tensors
from histomae.models.initial import RANDOM, InitialWeights
from histomae.models.pama import Pama, pama_spec
from histomae.models.slide_checkpoint import SlideHeader, load_slide_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from histomae.config import PretrainConfig
    from histomae.learn.methods import Batch, Inputs, Setting


def build(config: PretrainConfig, generator: torch.Generator) -> Pama:
    """Make the model that the settings describe."""
    assert config.feature_dim is not None
    spec = pama_spec(
        config.slide_encoder,
        config.feature_dim,
        tiles_per_anchor=config.tiles_per_anchor,
        compat=config.compat,
    )
    return Pama(spec, generator=generator)


def begin(model: Pama, config: PretrainConfig, examples: BagExamples) -> InitialWeights:
    """Give a new model its first weights: random, or an encoder of ours.

    Embeddings are scaled as those trained on, but for the published form.

    Raises
    ------
    CheckpointError
        If the weights cannot be read, do not fit, or are of other tile features.
    """
    source = config.init_from
    if source == RANDOM:
        if not config.compat:
            scale = (examples.mean, examples.std)
            model.encoder.set_scale(*(torch.from_numpy(one).float() for one in scale))
        return InitialWeights(source)
    found = load_slide_checkpoint(source)
    told = found.header
    difference = told.features.difference(examples.spec) or told.model.difference(
        model.spec
    )
    if difference:
        raise CheckpointError(
            f"{source} does not fit: {difference}. Choose another run, or the settings "
            "and features of this one."
        )
    model.encoder.load_state_dict(encoder_tensors(found.tensors))
    return InitialWeights(source)


def inputs(batch: Batch, setting: Setting) -> Inputs:
    """Place a batch of bags, and draw what is hidden and which anchors are dropped."""
    config = setting.config
    bags = bag_tensors(
        batch.pictures,
        batch.indices,
        seed=config.seed,
        epoch=batch.epoch,
        most=config.most_tiles,
        placing=Placing(config.tiles_per_anchor, config.compat),
    )
    noise = partial(
        bag_noise, indices=batch.indices, seed=config.seed, epoch=batch.epoch
    )
    mask = Stream.MASK if batch.training else Stream.HELD_OUT_MASK
    return {
        **as_inputs(bags),
        "noise": noise(bags.places.real_tokens, stream=mask),
        "anchor_noise": noise(bags.places.real_anchors, stream=Stream.ANCHORS),
    }


def loss(model: Any, given: Inputs, config: PretrainConfig) -> Tensor:
    """Return the mean error of the hidden tiles, ()."""
    output = model(
        from_inputs(given),
        mask_ratio=config.mask_ratio,
        noise=given["noise"],
        anchor_dropout=config.anchor_dropout,
        anchor_noise=given["anchor_noise"],
    )
    found: Tensor = output.loss
    return found


def header(model: Pama, setting: Setting, step: int) -> SlideHeader:
    """Return what a checkpoint of the model says of itself."""
    config, examples = setting.config, setting.examples
    assert isinstance(examples, BagExamples)
    return SlideHeader(
        architecture=config.architecture,
        model=model.spec,
        has_decoder=True,
        features=examples.spec,
        seen=examples.seen,
        method=config.method,
        mask_ratio=config.mask_ratio,
        step=step,
        config_hash=config.short_hash,
    )
