"""Patches: images cut into tokens' pixels and put back, and which are hidden.

Pure functions on tensors; nothing here has weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Added to a patch's variance, so that a blank patch has the finite target 0.
NORM_PIX_EPS = 1e-6
#: How much of red, green and blue is in a grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


def grey(images: Tensor) -> Tensor:
    """Turn pictures (N, 3, H, W) from 0 to 255 into whole greys, (N, 1, H, W).

    One whose channels are the same keeps its numbers.
    """
    luma = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    return (images * luma).sum(1, keepdim=True).round()


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches.

    Parameters
    ----------
    images
        (N, C, H, W), any dtype; H and W are multiples of ``patch_size``.
    patch_size
        Side p of a patch, pixels.

    Returns
    -------
    Tensor
        (N, L, p*p*C); patches row by row, L = (H/p)*(W/p). Inside a patch pixels go row
        by row with the channel fastest: entry ``(py*p + px)*C + c``.
    """
    n, channels, height, width = images.shape
    p = patch_size
    if height % p or width % p:
        raise ValueError(
            f"Patches of {p} px do not divide an image of {width} x {height} px. "
            "Crop the image, or choose a patch size that divides both sides."
        )
    rows, cols = height // p, width // p
    cut = images.reshape(n, channels, rows, p, cols, p)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * cols, p * p * channels)


def unpatchify(patches: Tensor, patch_size: int, size: tuple[int, int]) -> Tensor:
    """Put patches back into images; the inverse of :func:`patchify`.

    Parameters
    ----------
    patches
        (N, L, p*p*C), as :func:`patchify` returns them.
    patch_size
        Side p of a patch, pixels.
    size
        (H, W) of the images.

    Returns
    -------
    Tensor
        (N, C, H, W), of the dtype of ``patches``.
    """
    n, count, entries = patches.shape
    p, (height, width) = patch_size, size
    rows, cols = height // p, width // p
    if height % p or width % p or rows * cols != count or entries % (p * p):
        raise ValueError(
            f"{count} patches of {entries} numbers do not fill {width} x {height} px "
            f"in patches of {p} px. Give the size of the image that was cut."
        )
    channels = entries // (p * p)
    cut = patches.reshape(n, rows, cols, p, p, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, height, width)


@dataclass(frozen=True, eq=False)
class Masking:
    """Which patches of each image the encoder sees.

    Every image hides the same number, so that the visible ones stack into a batch.
    """

    ids_keep: Tensor
    """(N, L_keep) int64: the visible patches, in the encoder's order."""
    ids_restore: Tensor
    """(N, L) int64: where each patch stands among the visible, then hidden, ones."""
    mask: Tensor
    """(N, L) bool, True = hidden."""

    def first(self, share: float) -> Tensor:
        """Return the visible patches and the first of the hidden ones, (N, K) int64.

        ``share`` of the hidden patches, one at least.
        """
        keep, count = self.ids_keep.shape[1], self.mask.shape[1]
        hidden = max(1, round((count - keep) * share))
        return torch.argsort(self.ids_restore, dim=1)[:, : keep + hidden]


def random_mask(noise: Tensor, mask_ratio: float) -> Masking:
    """Hide the patches with the largest noise.

    Parameters
    ----------
    noise
        (N, L) float; independent uniform numbers hide patches at random.
    mask_ratio
        Share to hide, 0 to 1; ``L - round(L * mask_ratio)`` patches stay visible.
    """
    if not 0.0 <= mask_ratio <= 1.0:
        raise ValueError(f"mask_ratio is {mask_ratio}. Choose a share from 0 to 1.")
    count = noise.shape[1]
    # round, not int: int(100 * (1 - 0.9)) is 9.
    return _masking(noise, count - round(count * mask_ratio))


def chosen_mask(mask: Tensor) -> Masking:
    """Hide exactly the patches of ``mask``, (N, L) bool, True = hidden."""
    hidden = mask.sum(dim=1)
    if not bool((hidden == hidden[0]).all()):
        raise ValueError(
            f"The images hide {sorted(set(hidden.tolist()))} patches. Hide the same "
            "number in each, or give one image at a time."
        )
    return _masking(mask.to(torch.uint8), mask.shape[1] - int(hidden[0]))


def _masking(order: Tensor, keep: int) -> Masking:
    """Keep the ``keep`` patches that come first in ``order``, (N, L)."""
    ids_shuffle = torch.argsort(order, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    return Masking(ids_shuffle[:, :keep], ids_restore, ids_restore >= keep)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick ``ids`` (N, K) among the tokens or patches (N, T, D): (N, K, D)."""
    batch = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
    return tokens[batch, ids]


def normalised_target(patches: Tensor) -> Tensor:
    """Normalise each patch by its own mean and unbiased variance.

    The statistics are over all p*p*C entries jointly. A constant patch becomes 0.

    Parameters
    ----------
    patches
        (N, L, p*p*C) float.

    Returns
    -------
    Tensor
        The same shape, at least float32 whatever the precision of ``patches``.
    """
    wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
    var, mean = torch.var_mean(wide, dim=-1, keepdim=True, correction=1)
    return (wide - mean) / (var + NORM_PIX_EPS).sqrt()
