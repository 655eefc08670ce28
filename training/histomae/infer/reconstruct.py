"""What a masked autoencoder sees of a tile, and what it makes of the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.models.mae import patch_error
from histomae.models.patches import chosen_mask, grey, patchify, unpatchify
from histomae.models.restore import Statistics, restore_patches

if TYPE_CHECKING:
    from histomae.models.mae import MaskedAutoencoder

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
#: The colour of what is hidden in a masked picture.
HIDDEN_RGB = (128, 128, 128)


@dataclass(frozen=True)
class Reconstruction:
    """One tile, hidden in part and predicted.

    ``masked``: the tile with its hidden patches grey. ``reconstruction``: the visible
    patches as they are, the hidden ones as predicted. Both uint8 (H, W, 3).
    ``error``: float32 (grid_h, grid_w), the objective of each hidden patch (mean
    squared difference to the normalised target), NaN where visible.
    ``pixel_error``: the same on pixels from 0 to 1, after restoring colour.
    ``mask``: bool (grid_h, grid_w), True = hidden.
    """

    masked: Pixels
    reconstruction: Pixels
    error: Floats
    pixel_error: Floats
    mask: Bools

    @property
    def loss(self) -> float:
        """The objective over the hidden patches of this tile."""
        return float(np.nanmean(self.error))


def random_masks(
    count: int, grid_size: tuple[int, int], mask_ratio: float, seed: int
) -> Bools:
    """Return ``count`` random masks, bool (count, grid_h, grid_w), True = hidden.

    Whatever the ratio, one patch at least is hidden and one is visible.
    """
    patches = math.prod(grid_size)
    hidden = _num_hidden(patches, mask_ratio)
    order = np.random.default_rng(seed).random((count, patches)).argsort(1)
    return (order.argsort(1) < hidden).reshape(count, *grid_size)


def covering_masks(grid_size: tuple[int, int], mask_ratio: float, seed: int) -> Bools:
    """Return the fewest masks that hide every patch at least once.

    bool (n, grid_h, grid_w), True = hidden, each hiding ``mask_ratio`` of the patches;
    n is 1 / mask_ratio, rounded up.
    """
    patches = math.prod(grid_size)
    hidden = _num_hidden(patches, mask_ratio)
    order = np.random.default_rng(seed).permutation(patches)
    masks = np.zeros((math.ceil(patches / hidden), patches), bool)
    for number, mask in enumerate(masks):
        mask[order.take(np.arange(hidden) + number * hidden, mode="wrap")] = True
    return masks.reshape(-1, *grid_size)


def _num_hidden(patches: int, mask_ratio: float) -> int:
    return min(max(round(patches * mask_ratio), 1), patches - 1)


def normalised(
    tiles: Pixels,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> torch.Tensor:
    """Turn uint8 (N, H, W, 3) into normalised float32 (N, C, H, W) on ``device``.

    C is the length of ``mean``: 3, or 1 where the model takes greys.
    """
    # Copied: what a slide gives may be read-only, which tensors cannot be.
    images = torch.tensor(tiles, device=device).permute(0, 3, 1, 2).float()
    images = (grey(images) if len(mean) == 1 else images) / 255
    shift, scale = _per_channel(mean, device), _per_channel(std, device)
    return (images - shift) / scale


def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


@torch.inference_mode()
def reconstruct_tiles(
    model: MaskedAutoencoder,
    tiles: Pixels,
    masks: Bools,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    statistics: Statistics = "neighbours",
) -> list[Reconstruction]:
    """Hide patches of tiles and predict them.

    Parameters
    ----------
    model
        In evaluation mode.
    tiles
        uint8 (N, H, W, 3).
    masks
        bool (N, grid_h, grid_w), True = hidden, as many hidden in each tile.
    mean, std
        Of the normalisation the model was trained with, per channel.
    statistics
        See :func:`histomae.models.restore.restore_patches`.
    """
    device = next(model.parameters()).device
    patch_size = model.encoder_spec.patch_size
    shift, scale = _per_channel(mean, device), _per_channel(std, device)
    images = normalised(tiles, mean, std, device)
    size = (images.shape[-2], images.shape[-1])

    hidden = torch.tensor(masks.reshape(len(masks), -1), device=device)
    masking = chosen_mask(hidden)
    latent = model.forward_encoder(images, masking.ids_keep)
    prediction = model.forward_decoder(latent, masking.ids_restore).float()
    error = patch_error(prediction, model.target(images))
    restored = restore_patches(
        prediction,
        images,
        hidden,
        patch_size=patch_size,
        norm_pix=model.norm_pix,
        statistics=statistics,
    )
    predicted = (unpatchify(restored, patch_size, size) * scale + shift).clip(0, 1)
    truth = images * scale + shift
    pixel_error = patchify((predicted - truth).square(), patch_size).mean(-1)

    grid = masks.shape[1:]
    shown = hidden.view(len(tiles), 1, *grid)
    cover = shown.repeat_interleave(patch_size, -1).repeat_interleave(patch_size, -2)
    hidden_rgb = torch.tensor(HIDDEN_RGB, device=device).view(1, 3, 1, 1) / 255
    truth, predicted = truth.expand(-1, 3, -1, -1), predicted.expand(-1, 3, -1, -1)
    nowhere = torch.full_like(error, torch.nan)
    return [
        Reconstruction(*parts)
        for parts in zip(
            _pictures(torch.where(cover, hidden_rgb, truth)),
            _pictures(torch.where(cover, predicted, truth)),
            torch.where(hidden, error, nowhere).view(-1, *grid).cpu().numpy(),
            torch.where(hidden, pixel_error, nowhere).view(-1, *grid).cpu().numpy(),
            masks,
            strict=True,
        )
    ]


def _pictures(images: torch.Tensor) -> Pixels:
    """Turn float (N, 3, H, W) in 0 to 1 into uint8 (N, H, W, 3)."""
    return images.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
