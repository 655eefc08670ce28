"""Is a pretrained autoencoder any good? Judged on crops held out of its training.

The normalised masked loss alone flatters: predicting each channel's usual offset is
already far below 1. So the restored pixels are compared too, with the simplest guess
that looks at the same visible patches, and with the same network untrained.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.errors import NotEnoughDataError
from histomae.events import Progress
from histomae.infer.reconstruct import (
    normalised,
    random_masks,
    reconstruct_tiles,
)
from histomae.learn.crops import CropReader
from histomae.models.checkpoint import autoencoder_from, load_checkpoint
from histomae.models.mae import MaskedAutoencoder
from histomae.models.patches import normalised_target, patchify
from histomae.models.restore import neighbour_average
from histomae.models.vit import EncoderSpec
from histomae.slides.crops import CropManifest
from histomae.slides.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from histomae.events import Event
    from histomae.learn.runs import RunFolder
    from histomae.models.checkpoint import CheckpointHeader

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Judgement:
    """Errors on hidden patches; smaller is better.

    ``loss_*`` are mean squared errors to the training target, ``pixels_*`` to pixels
    from 0 to 1. ``neighbours`` fills each hidden patch with the mean colour of the
    visible ones among the eight around it; ``interpolated`` with an average of all
    visible ones, weighted by nearness (the strictest guess that knows no tissue);
    ``untrained`` is the same network before training.
    """

    crops: int
    loss_trained: float
    loss_zero: float
    loss_untrained: float
    pixels_trained: float
    pixels_neighbours: float
    pixels_interpolated: float
    pixels_untrained: float

    @property
    def learned(self) -> bool:
        """Whether it beats both the untrained network and its visible neighbours."""
        return (
            self.loss_trained < min(self.loss_zero, self.loss_untrained)
            and self.pixels_trained < self.pixels_neighbours
            and self.pixels_trained < self.pixels_untrained
        )

    def _unbeaten(self) -> str:
        """Return the first guess that is at least as good."""
        if not self.loss_trained < self.loss_zero:
            return "predicting zero"
        if not (
            self.loss_trained < self.loss_untrained
            and self.pixels_trained < self.pixels_untrained
        ):
            return "the untrained network"
        return "filling in the neighbours' colour"

    def lines(self) -> list[str]:
        """Return the figures as sentences, the verdict last."""
        return [
            f"held-out crops: {self.crops}",
            f"normalised masked loss: {self.loss_trained:.4f} "
            f"(predicting zero {self.loss_zero:.4f}, "
            f"untrained {self.loss_untrained:.4f})",
            f"masked-pixel error: {self.pixels_trained:.5f} "
            f"(visible neighbours' mean {self.pixels_neighbours:.5f}, "
            f"interpolated {self.pixels_interpolated:.5f}, "
            f"untrained {self.pixels_untrained:.5f})",
            "it learned more than the visible neighbours tell"
            if self.learned
            else f"it does not yet beat {self._unbeaten()}: train longer",
        ]


def held_out_crops(run: RunFolder) -> Pixels:
    """Cut the crops again that a run held out of its training: uint8 (N, H, W, 3).

    Raises
    ------
    RunError
        If the run has no list of crops.
    SlideError
        If a slide of it is gone or cannot be read.
    """
    manifest = CropManifest.load(run.crops_file)
    side = (manifest.crop_px, manifest.crop_px)
    with ExitStack() as stack:
        slides = [
            stack.enter_context(Slide.open(entry.path, mpp=(entry.mpp_x, entry.mpp_y)))
            for entry in manifest.slides
        ]
        with CropReader(slides, manifest) as reader:
            held_out = np.flatnonzero(manifest.held_out).tolist()
            crops = [reader.read(index) for index in held_out]
    return np.array(crops, np.uint8).reshape(-1, *side, 3)


def judge(
    checkpoint_path: Path, crops: Pixels, *, seed: int = 0, batch_size: int = 16
) -> Generator[Event, None, Judgement]:
    """Judge a checkpoint on crops that took no part in its training.

    Parameters
    ----------
    checkpoint_path
        With its decoder.
    crops
        uint8 (N, H, W, 3), of the checkpoint's tile size and mpp.
    seed
        Of the masks and of the untrained network.

    Raises
    ------
    CheckpointError
        If the file is no checkpoint with a decoder.
    NotEnoughDataError
        If there is no crop.
    """
    if not len(crops):
        raise NotEnoughDataError(
            "No crop was held out of training. Set held_out to 0.1 and train again."
        )
    checkpoint = load_checkpoint(checkpoint_path)
    header = checkpoint.header
    trained = autoencoder_from(checkpoint)
    untrained = MaskedAutoencoder(
        trained.encoder_spec,
        decoder_dim=trained.decoder_spec.dim,
        decoder_depth=trained.decoder_spec.depth,
        decoder_heads=trained.decoder_spec.heads,
        norm_pix=header.norm_pix,
        generator=torch.Generator().manual_seed(seed),
    ).eval()
    masks = random_masks(len(crops), header.encoder.grid_size, header.mask_ratio, seed)
    sums = np.zeros(7)
    for start in range(0, len(crops), batch_size):
        part = slice(start, start + batch_size)
        sums += _batch_errors(
            trained, untrained, crops[part], masks[part], header
        ) * len(crops[part])
        done = min(start + batch_size, len(crops))
        yield Progress("judging on held-out crops", done, len(crops))
    return Judgement(len(crops), *(float(total) for total in sums / len(crops)))


def _batch_errors(
    trained: MaskedAutoencoder,
    untrained: MaskedAutoencoder,
    crops: Pixels,
    masks: Bools,
    header: CheckpointHeader,
) -> np.ndarray[Any, Any]:
    losses, pixels = [], []
    for model in (trained, untrained):
        results = reconstruct_tiles(
            model, crops, masks, mean=header.mean, std=header.std
        )
        losses.append(np.mean([result.loss for result in results]))
        pixels.append(np.mean([np.nanmean(result.pixel_error) for result in results]))
    zero = _loss_of_zero(crops, masks, header)
    neighbours, interpolated = _fill_errors(crops, masks, header)
    return np.array(
        [losses[0], zero, losses[1], pixels[0], neighbours, interpolated, pixels[1]]
    )


def _patch_size(header: CheckpointHeader) -> int:
    assert isinstance(header.encoder, EncoderSpec)  # as everything with a decoder
    return header.encoder.patch_size


def _loss_of_zero(crops: Pixels, masks: Bools, header: CheckpointHeader) -> float:
    """Return the loss of predicting zero everywhere."""
    images = normalised(crops, header.mean, header.std, torch.device("cpu"))
    target = patchify(images, _patch_size(header))
    if header.norm_pix:
        target = normalised_target(target)
    return float(target.square().mean(-1)[_flat(masks)].mean())


def _fill_errors(
    crops: Pixels, masks: Bools, header: CheckpointHeader
) -> tuple[float, float]:
    """Return the pixel errors of filling hidden patches with a colour.

    That of the visible ones among the eight around it, and that interpolated from all
    visible ones, which also serves where none of the eight is visible.
    """
    patch_size, hidden = _patch_size(header), _flat(masks)
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    colours = patchify(images, patch_size).unflatten(-1, (patch_size**2, -1))
    mean = colours.mean(2)
    interpolated = neighbour_average(mean, hidden, header.encoder.grid_size)
    around = _mean_of_eight(mean, ~hidden, header.encoder.grid_size)
    ring = torch.where(around.isnan(), interpolated, around)
    errors = [
        (colours - fill[:, :, None]).square().mean((-1, -2))[hidden].mean()
        for fill in (ring, interpolated)
    ]
    return float(errors[0]), float(errors[1])


def _mean_of_eight(
    values: torch.Tensor, visible: torch.Tensor, grid_size: tuple[int, int]
) -> torch.Tensor:
    """Return the mean (N, L, F) of the visible among the eight around each patch.

    NaN where none of them is visible.
    """
    count, _, width = values.shape
    shown = visible.float().view(count, 1, *grid_size)
    planes = values.transpose(1, 2).reshape(count, width, *grid_size) * shown
    sums = torch.nn.functional.avg_pool2d(
        torch.cat([planes, shown], 1), 3, stride=1, padding=1
    )
    own = torch.cat([planes, shown], 1) / 9
    around = (sums - own).flatten(2).transpose(1, 2)
    seen = around[..., -1:] > 1e-6
    return torch.where(seen, around[..., :-1] / around[..., -1:], torch.nan)


def _flat(masks: Bools) -> torch.Tensor:
    return torch.from_numpy(masks.reshape(len(masks), -1))
