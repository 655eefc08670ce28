"""The list of self-supervised methods: which data meet which model and which loss.

A new objective is a module in ``models/`` and a line in :data:`METHODS`; there is one
loop (:mod:`histomae.learn.loop`), which knows of a method only what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.infer.reconstruct import reconstruct_tiles
from histomae.learn import pama
from histomae.learn.augment import (
    FLIPS,
    Stream,
    mask_noise,
    view_affines,
    view_gammas,
    views,
)
from histomae.learn.bag_files import slide_bags
from histomae.learn.examples import places, slide_crops
from histomae.learn.pairs import changes, drawn_pairs
from histomae.models import mpcs, sdmae
from histomae.models.checkpoint import CheckpointHeader, load_checkpoint
from histomae.models.encoders import spec_of
from histomae.models.initial import init_encoder
from histomae.models.mae import MaskedAutoencoder
from histomae.models.mpcs import Contrastive
from histomae.models.patches import random_mask
from histomae.models.sdmae import SelfDistilled
from histomae.models.slide_checkpoint import load_slide_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from histomae.config import PretrainConfig
    from histomae.events import Event
    from histomae.learn.examples import Examples
    from histomae.models.checkpoint import Header, Kept
    from histomae.models.encoders import AnySpec
    from histomae.models.initial import InitialWeights

Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: What a method's loss takes, on the device: tensors by name.
Inputs = dict[str, "Tensor"]


@dataclass(frozen=True)
class Setting:
    """What every function of a method may know.

    The settings, ``mean`` and ``std`` of each channel on pixels from 0 to 1, and what
    it trains on, if that is there.
    """

    config: PretrainConfig
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    examples: Examples | None = None
    """What is trained on; None: nobody knows, as when a model only looks."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch as the loop hands it over.

    ``pictures`` uint8 (N, H, W, 3), as the method's source gives them (of one that sees
    M magnifications (N, M, H, W, 3)), on the device; or, if that is what the source
    gives, :class:`histomae.learn.bags.Bags`. ``indices`` int64 (N,), the numbers of the
    crops. ``training`` is False for crops held out: they are not augmented, and their
    randomness does not change with time.
    """

    pictures: Any
    indices: Indices
    epoch: int
    training: bool = True


@dataclass(frozen=True, eq=False)
class Objective:
    """What a loss gives.

    ``loss`` (), other numbers () worth recording by name, and tensors of any shape
    whose means over the batch :attr:`Task.after_step` needs.
    """

    loss: Tensor
    logged: dict[str, Tensor]
    means: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the loop must know to train a model."""

    splits_over_batch: bool
    """Whether the loss of a batch is the mean of its crops' own losses.

    Then gradients of micro-batches add up to the batch's. Contrastive losses and batch
    norm do not split: the whole batch is needed at once.
    """
    inputs: Callable[[Batch, Setting], Inputs]
    """Make a loss's inputs: augmentation, normalisation, masks. In float32."""
    loss: Callable[[nn.Module, Inputs, Setting], Objective]
    """The objective of a micro-batch; runs in the run's precision."""
    encode: Callable[[nn.Module, Inputs, Setting], Tensor] | None = None
    """What the model makes of each crop alone, (N, ...), where the loss does not split.

    Then crops go through that part of the model a few at a time, in the run's
    precision, and :attr:`loss` is of a whole batch: of ``encoded`` (N, ...), and the
    crops' numbers as ``indices`` (N,).
    """
    after_step: Callable[[Any, float, Inputs], dict[str, float]] | None = None
    """Called after each update: teachers, centres.

    It takes the model, the share of the training that is done, and the means over the
    batch that the loss gave; it returns more to record.
    """
    concern: Callable[[dict[str, float]], str] | None = None
    """Say what is wrong, and what to try, given what a step records; "" if nothing."""


def _begin_tiles(
    model: Any, config: PretrainConfig, examples: Examples
) -> InitialWeights:
    return init_encoder(model.encoder, config.init_from)


def _tile_header(model: Any, setting: Setting, step: int) -> CheckpointHeader:
    config, examples = setting.config, setting.examples
    assert examples is not None
    return CheckpointHeader(
        architecture=config.architecture,
        encoder=model.encoder_spec,
        decoder=model.decoder_spec,
        method=config.method,
        mask_ratio=0.0 if model.decoder is None else config.mask_ratio,
        norm_pix=config.norm_pix,
        mean=setting.mean,
        std=setting.std,
        tile_px=config.tile_px,
        mpp=examples.mpp,
        mpp_given=examples.mpp_given,
        scan_sector=config.scan_sector and examples.mpp is None,
        step=step,
        config_hash=config.short_hash,
    )


@dataclass(frozen=True, kw_only=True)
class Method(Task):
    """A way of learning without labels."""

    name: str
    """As in ``PretrainConfig.method``."""
    title: str
    """For a menu."""
    sentence: str
    """What it does, for people."""
    build: Callable[[PretrainConfig, torch.Generator], Any]
    """Make the model; the generator is of its weights.

    A module with ``encoder`` and ``decoder``, for these are what a checkpoint holds
    (:mod:`histomae.models.checkpoint`); the decoder may be None.
    """
    examples: Callable[..., Generator[Event, None, tuple[PretrainConfig, Any]]]
    """Make ready what it trains on, as :func:`histomae.learn.examples.slide_crops`."""
    begin: Callable[[Any, PretrainConfig, Any], InitialWeights] = _begin_tiles
    """Give a new model, made for examples, the weights that the settings name."""
    header: Callable[[Any, Setting, int], Header] = _tile_header
    """Return what a checkpoint of the model, after so many steps, says of itself."""
    load: Callable[[Path], Kept[Any]] = load_checkpoint
    """Read a checkpoint of such a model."""
    picture: Callable[[nn.Module, Pixels, Indices, Setting], Pixels] | None = None
    """Show what the model makes of crops, as of the source; uint8 (H', W', 3)."""


def _mae(config: PretrainConfig, generator: torch.Generator) -> MaskedAutoencoder:
    return MaskedAutoencoder(**_autoencoder(config), generator=generator)


def _encoder_spec(config: PretrainConfig) -> AnySpec:
    return spec_of(
        config.encoder,
        tile_px=config.tile_px,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
    )


def _autoencoder(config: PretrainConfig) -> dict[str, Any]:
    """Return what every masked autoencoder is made from."""
    return {
        "encoder_spec": _encoder_spec(config),
        "decoder_dim": config.decoder_dim,
        "decoder_depth": config.decoder_depth,
        "decoder_heads": config.decoder_heads,
        "norm_pix": config.norm_pix,
    }


def _mae_inputs(batch: Batch, setting: Setting) -> Inputs:
    config, device = setting.config, batch.pictures.device
    affine = None
    if batch.training:
        affine = view_affines(
            config.seed,
            batch.epoch,
            batch.indices,
            scale_min=config.crop_scale_min,
            symmetries=FLIPS[config.flips],
        )
    images = views(
        batch.pictures,
        None if affine is None else torch.from_numpy(affine).to(device),
        mean=setting.mean,
        std=setting.std,
        gamma=_gamma(batch, config),
    )
    noise = mask_noise(
        config.seed,
        batch.epoch,
        batch.indices,
        patches=(config.tile_px // config.patch_size) ** 2,
        stream=Stream.MASK if batch.training else Stream.HELD_OUT_MASK,
    )
    return {"images": images, "noise": torch.from_numpy(noise).to(device)}


def _gamma(batch: Batch, config: PretrainConfig) -> Tensor | None:
    """Return the power of each crop's greys, (N,), or None: as they are."""
    if not (batch.training and config.gamma):
        return None
    powers = view_gammas(config.seed, batch.epoch, batch.indices, most=config.gamma)
    return torch.from_numpy(powers).to(batch.pictures.device)


def _mae_loss(model: nn.Module, inputs: Inputs, setting: Setting) -> Objective:
    output = model(
        inputs["images"],
        mask_ratio=setting.config.mask_ratio,
        noise=inputs["noise"],
        # Judged, like used, with all of them.
        decoded_share=setting.config.decoded_share if model.training else 1.0,
    )
    return Objective(output.loss, {})


def _mae_picture(
    model: nn.Module, crops: Pixels, indices: Indices, setting: Setting
) -> Pixels:
    """Return rows of crop | masked | reconstruction, always with the same masks."""
    assert isinstance(model, MaskedAutoencoder)
    config = setting.config
    rows, cols = model.encoder_spec.grid_size
    noise = mask_noise(
        config.seed, 0, indices, patches=rows * cols, stream=Stream.HELD_OUT_MASK
    )
    masking = random_mask(torch.from_numpy(noise), config.mask_ratio)
    found = reconstruct_tiles(
        model,
        crops,
        masking.mask.view(-1, rows, cols).numpy(),
        mean=setting.mean,
        std=setting.std,
    )
    return beside(
        [
            (crop, one.masked, one.reconstruction)
            for crop, one in zip(crops, found, strict=True)
        ]
    )


def beside(rows: Sequence[Sequence[Pixels]], *, gap_px: int = 4) -> Pixels:
    """Lay pictures, uint8 (H, W, 3) each, in rows with white between them."""
    side_y, side_x = rows[0][0].shape[:2]
    step_y, step_x = side_y + gap_px, side_x + gap_px
    size = (len(rows) * step_y - gap_px, len(rows[0]) * step_x - gap_px, 3)
    sheet = np.full(size, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * step_y, j * step_x
            sheet[y : y + side_y, x : x + side_x] = picture
    return sheet


def _sd_mae(config: PretrainConfig, generator: torch.Generator) -> SelfDistilled:
    return SelfDistilled(
        **_autoencoder(config),
        teacher=config.distill_teacher,
        prototypes=config.prototypes,
        distill_weight=config.distill_weight,
        visible_weight=config.visible_weight,
        generator=generator,
    )


def _sd_mae_loss(model: Any, inputs: Inputs, setting: Setting) -> Objective:
    output = model.distil(
        inputs["images"],
        mask_ratio=setting.config.mask_ratio,
        noise=inputs["noise"],
    )
    return Objective(output.loss, output.logged, output.means)


def _mpcs(config: PretrainConfig, generator: torch.Generator) -> Contrastive:
    return Contrastive(
        _encoder_spec(config),
        projector_dims=config.projector_dims,
        pooling=config.pooling,
        generator=generator,
    )


def _mpcs_inputs(batch: Batch, setting: Setting) -> Inputs:
    """Return both pictures of each pair, changed alike: ``images`` (N, 2, 3, H, W)."""
    config, device = setting.config, batch.pictures.device
    pair = torch.from_numpy(_pairs(batch, setting)).to(device)
    rows = torch.arange(len(pair), device=device)[:, None]
    pictures = batch.pictures[rows, pair]
    affine = colour = None
    if batch.training:
        affine, colour = (
            torch.from_numpy(change.repeat(2, axis=0)).to(device)
            for change in changes(config.seed, batch.epoch, batch.indices)
        )
    images = views(
        pictures.flatten(0, 1),
        affine,
        mean=setting.mean,
        std=setting.std,
        colour=colour,
        padding="reflection",
    )
    return {"images": images.unflatten(0, (-1, 2))}


def _pairs(batch: Batch, setting: Setting) -> Indices:
    """Return which magnifications of each place are its pair, int64 (N, 2)."""
    assert setting.examples is not None
    return drawn_pairs(
        setting.config.seed,
        batch.epoch if batch.training else 0,
        batch.indices,
        strategy=setting.config.pair_strategy,
        present=setting.examples.present[batch.indices],
    )


def _mpcs_encode(model: Any, inputs: Inputs, setting: Setting) -> Tensor:
    vectors: Tensor = model.encode(inputs["images"].flatten(0, 1))
    return vectors.unflatten(0, (-1, 2))


def _mpcs_loss(model: Any, inputs: Inputs, setting: Setting) -> Objective:
    groups = None
    if setting.config.exclude_same_patient:
        assert setting.examples is not None
        patient = torch.from_numpy(setting.examples.patient)
        groups = patient.to(inputs["indices"].device)[inputs["indices"]]
    loss, logged = model.compare(
        inputs["encoded"], temperature=setting.config.temperature, groups=groups
    )
    return Objective(loss, logged)


def _mpcs_picture(
    model: nn.Module, crops: Pixels, indices: Indices, setting: Setting
) -> Pixels:
    """Return rows of first picture | second picture, as they are changed in training.

    Always with the same changes.
    """
    batch = Batch(torch.from_numpy(crops), indices, epoch=0)
    channels = setting.config.in_chans
    plain = replace(setting, mean=(0,) * channels, std=(1,) * channels)
    images = _mpcs_inputs(batch, plain)["images"].expand(-1, -1, 3, -1, -1)
    shown = (images * 255).round().to(torch.uint8).movedim(2, -1).numpy()
    return beside([tuple(pair) for pair in shown])


def _pama_loss(model: Any, inputs: Inputs, setting: Setting) -> Objective:
    return Objective(pama.loss(model, inputs, setting.config), {})


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="mae",
            title="Masked autoencoder",
            sentence=(
                "Most of each picture is hidden and the network learns to paint it "
                "back from the rest, so that it learns how tissue is built."
            ),
            splits_over_batch=True,
            build=_mae,
            examples=slide_crops,
            inputs=_mae_inputs,
            loss=_mae_loss,
            picture=_mae_picture,
        ),
        Method(
            name="sd-mae",
            title="Self-distilled autoencoder",
            sentence=(
                "A masked autoencoder whose decoder also teaches the encoder what the "
                "visible parts mean, so that these are learned from too."
            ),
            splits_over_batch=True,
            build=_sd_mae,
            examples=slide_crops,
            inputs=_mae_inputs,
            loss=_sd_mae_loss,
            picture=_mae_picture,
            after_step=SelfDistilled.update,
            concern=sdmae.concern,
        ),
        Method(
            name="mpcs",
            title="Magnification pairs",
            sentence=(
                "The network sees each place at two magnifications and learns to tell "
                "it from all other places, so that it knows tissue at any of them."
            ),
            splits_over_batch=False,
            build=_mpcs,
            examples=places,
            inputs=_mpcs_inputs,
            encode=_mpcs_encode,
            loss=_mpcs_loss,
            picture=_mpcs_picture,
            concern=mpcs.concern,
        ),
        Method(
            name="pama",
            title="Slides as a whole",
            sentence=(
                "Most tiles of each slide are hidden and the network learns to predict "
                "them from the others and where they lie, so that it learns how slides "
                "are laid out. It takes the tiles' features, not pixels."
            ),
            splits_over_batch=True,
            build=pama.build,
            examples=slide_bags,
            begin=pama.begin,
            header=pama.header,
            load=load_slide_checkpoint,
            inputs=pama.inputs,
            loss=_pama_loss,
        ),
    )
}
