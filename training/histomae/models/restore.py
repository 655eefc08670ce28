"""From a masked autoencoder's prediction back to pixels, honestly.

With normalised targets the network says nothing about the mean and spread of a hidden
patch. Demos take both from the hidden patch itself, which lets the answer into the
picture. Here they come from the visible patches around it, unless asked otherwise.
"""

from __future__ import annotations

from typing import Literal

import torch

from histomae.models.patches import patchify

Statistics = Literal["neighbours", "true"]


def neighbour_average(
    values: torch.Tensor, mask: torch.Tensor, grid_size: tuple[int, int]
) -> torch.Tensor:
    """Replace the values of hidden patches by those of the visible ones around them.

    Each hidden patch takes the average of all visible patches, weighted by the inverse
    cube of their distance (of the whole and half powers from 2 to 8, this fills in
    tissue best).

    Parameters
    ----------
    values
        (N, L, F), one row of numbers per patch, row by row of the patch grid.
    mask
        bool (N, L), True = hidden.
    grid_size
        (rows, columns) of the patch grid; their product is L.

    Returns
    -------
    (N, L, F): visible rows as they were, hidden rows averaged.
    """
    rows, columns = grid_size
    ys, xs = torch.meshgrid(
        torch.arange(rows, device=values.device),
        torch.arange(columns, device=values.device),
        indexing="ij",
    )
    places = torch.stack([ys.flatten(), xs.flatten()], 1).to(values.dtype)
    squared = (places[:, None] - places[None]).square().sum(-1)
    nearness = squared.clamp(min=1).pow(-1.5)
    weights = nearness[None] * (~mask)[:, None, :]
    average = weights @ values / weights.sum(-1, keepdim=True)
    return torch.where(mask[..., None], average, values)


def patch_statistics(patches: torch.Tensor) -> torch.Tensor:
    """Return the mean and the spread (N, L, 2) of each patch (N, L, p*p*C).

    The spread is that of METHODS' normalised target: unbiased, with 1e-6 added to the
    variance.
    """
    variance, mean = torch.var_mean(patches, dim=-1, correction=1)
    return torch.stack([mean, (variance + 1e-6).sqrt()], -1)


def restore_patches(
    prediction: torch.Tensor,
    images: torch.Tensor,
    mask: torch.Tensor,
    *,
    patch_size: int,
    norm_pix: bool,
    statistics: Statistics = "neighbours",
) -> torch.Tensor:
    """Turn predicted patches into pixels in the space of ``images``.

    Parameters
    ----------
    prediction
        (N, L, p*p*C), as the autoencoder gives it.
    images
        (N, C, H, W), normalised as for the autoencoder.
    mask
        bool (N, L), True = hidden.
    statistics
        Where a hidden patch's mean and spread come from when the target is normalised:
        the visible ``neighbours``, or the ``true`` hidden pixels (then the picture
        knows what it should not).

    Returns
    -------
    (N, L, p*p*C) in the space of ``images``.
    """
    if not norm_pix:
        return prediction
    mean_and_spread = patch_statistics(patchify(images, patch_size))
    if statistics == "neighbours":
        grid_size = (images.shape[-2] // patch_size, images.shape[-1] // patch_size)
        mean_and_spread = neighbour_average(mean_and_spread, mask, grid_size)
    return prediction * mean_and_spread[..., 1:] + mean_and_spread[..., :1]
