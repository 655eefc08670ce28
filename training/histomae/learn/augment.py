"""Views of crops, and the noise of masks: pure functions of (seed, epoch, index).

Which part of a crop is taken, how it is turned, and which patches are hidden depend on
the run's seed, the epoch and the number of the crop in the manifest, and on nothing
else: not on reading threads, on micro-batches, or on how often the run was resumed.
Colour is left alone, but where a method asks for other colours.

Frames. A *box* is in shares of the crop, x before y, measured at pixel edges. An
*affine* maps places of the view to places of the crop, both from −1 to 1 edge to edge,
x before y: ``crop = affine @ (view_x, view_y, 1)``.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from histomae.models.patches import LUMA, grey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Indices = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]

#: Least and largest width : height of a view's box.
RATIOS = (3 / 4, 4 / 3)
#: The eight symmetries of a square, as (x, y) of the crop from (x, y) of the view:
#: turned by 0, 90, 180, 270 degrees counterclockwise; then mirrored, and turned.
TURNS = ([[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]])
SYMMETRIES: Doubles = np.array(
    [*TURNS, *(np.diag([-1, 1]) @ np.array(turn) for turn in TURNS)], np.float64
)
#: As it is, and left for right: all that leaves shadows below what casts them.
MIRRORED: Doubles = SYMMETRIES[[0, 4]]
#: By the setting ``flips``.
FLIPS = {"all": SYMMETRIES, "horizontal": MIRRORED}
#: The product with the axis of greys, (1, 1, 1), as a matrix.
CROSS = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))
#: Regions whose crops are shuffled together: a shuffle buffer, in reading order.
MIXED_REGIONS = 64
#: Numbers that one view is made of.
VIEW_NUMBERS = 5


class Stream(IntEnum):
    """What random numbers are for; streams never share numbers."""

    ORDER = 0
    VIEW = 1
    MASK = 2
    HELD_OUT_MASK = 3
    PART_OF_BAG = 4
    ANCHORS = 5
    PAIR = 6
    CHANGE = 7
    MIX = 8
    GAMMA = 9


def uniforms(
    seed: int, epoch: int, indices: Indices, *, stream: Stream, count: int
) -> Doubles:
    """Return random numbers in [0, 1), float64 (N, count), one row per crop.

    Row i depends on (seed, epoch, indices[i], stream) alone: Philox, a counter-based
    generator, is keyed by them. Its counter is set rather than a generator made per
    crop, which is five times as fast.
    """
    bits = _philox(seed, epoch, stream)
    state: Any = bits.state
    draw = np.random.Generator(bits).random
    rows = np.empty((len(indices), count))
    for row, index in zip(rows, indices, strict=True):
        state["state"]["counter"][:] = 0, index, 0, 0
        bits.state = state
        draw(out=row)
    return rows


def _philox(seed: int, epoch: int, stream: Stream) -> np.random.Philox:
    key = np.array([seed % 2**64, epoch << 8 | stream], np.uint64)
    return np.random.Philox(key=key)


def epoch_order(seed: int, epoch: int, regions: Indices) -> Indices:
    """Return the order of an epoch: a permutation of the crops, int64 (n,).

    The regions are shuffled and taken ``MIXED_REGIONS`` at a time; the crops of those
    are shuffled. So crops of one region are read within a short time, and yet every
    batch is of many regions.

    Parameters
    ----------
    regions
        int64 (n,): the number of each crop's region, from 0.
    """
    random = np.random.Generator(_philox(seed, epoch, Stream.ORDER))
    place = random.permutation(int(regions.max(initial=-1)) + 1)
    mixed = random.permutation(len(regions))
    block = place[regions[mixed]] // MIXED_REGIONS
    return mixed[np.argsort(block, kind="stable")]


def mask_noise(
    seed: int,
    epoch: int,
    indices: Indices,
    *,
    patches: int,
    stream: Stream = Stream.MASK,
) -> Floats:
    """Return the noise of :func:`histomae.models.patches.random_mask`.

    float32 (N, patches), uniform in [0, 1).
    """
    noise = uniforms(seed, epoch, indices, stream=stream, count=patches)
    return noise.astype(np.float32)


def view_affines(
    seed: int,
    epoch: int,
    indices: Indices,
    *,
    scale_min: float,
    symmetries: Doubles = SYMMETRIES,
) -> Floats:
    """Return the affine of each crop's view, float32 (N, 2, 3).

    A box of ``scale_min`` to 1 of the area, somewhere in the crop, then one of
    ``symmetries`` (K, 2, 2): the eight of the square, unless fewer make sense.
    """
    numbers = uniforms(seed, epoch, indices, stream=Stream.VIEW, count=VIEW_NUMBERS)
    which = (numbers[:, 4] * len(symmetries)).astype(int)
    return affines(view_boxes(numbers[:, :4], scale_min=scale_min), symmetries[which])


def view_gammas(seed: int, epoch: int, indices: Indices, *, most: float) -> Floats:
    """Return the power of each crop's greys, float32 (N,), see :func:`views`.

    Its logarithm is uniform, so that a picture is made lighter as often as darker: from
    1 / (1 + ``most``) to 1 + ``most``.
    """
    numbers = uniforms(seed, epoch, indices, stream=Stream.GAMMA, count=1)[:, 0]
    return np.exp((2 * numbers - 1) * np.log1p(most)).astype(np.float32)


def view_boxes(numbers: Doubles, *, scale_min: float) -> Doubles:
    """Turn uniform numbers (N, 4) into boxes (N, 4): x, y, width, height.

    The area is uniform from ``scale_min`` to 1, the logarithm of width : height uniform
    over those of ``RATIOS`` with which the box fits, and its place over where it fits.
    """
    area = scale_min + (1 - scale_min) * numbers[:, 0]
    low = np.log(np.maximum(RATIOS[0], area))
    high = np.log(np.minimum(RATIOS[1], 1 / area))
    ratio = np.exp(low + (high - low) * numbers[:, 1])
    sides = np.sqrt(np.stack([area * ratio, area / ratio], 1)).clip(max=1)
    return np.hstack([numbers[:, 2:4] * (1 - sides), sides])


def affines(boxes: Doubles, symmetries: Doubles) -> Floats:
    """Return the affines, float32 (N, 2, 3), of boxes (N, 4) turned (N, 2, 2)."""
    corner, sides = boxes[:, :2], boxes[:, 2:]
    shift = 2 * corner + sides - 1
    return np.concatenate(
        [sides[:, :, None] * symmetries, shift[:, :, None]], axis=2, dtype=np.float32
    )


def views(
    crops: Tensor,
    affine: Tensor | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    colour: Tensor | None = None,
    gamma: Tensor | None = None,
    padding: str = "border",
) -> Tensor:
    """Turn crops into normalised views on the device they are on.

    The view is sampled bilinearly and rounded to whole grey levels, so that a view that
    only turns the crop is the turned crop exactly, and every device gives the same.

    Parameters
    ----------
    crops
        uint8 (N, H, W, 3), H = W where an affine turns them.
    affine
        float32 (N, 2, 3), on the same device; None: the crop as it is.
    mean, std
        Of each channel, on pixels from 0 to 1; of one, views are grey.
    colour
        float32 (N, 4), see :func:`recoloured`; None: as it is.
    gamma
        float32 (N,): pixels from 0 to 1 are raised to this power; None: as they are.
    padding
        What lies outside a crop: its ``border``, or its ``reflection``.

    Returns
    -------
    float32 (N, C, H, W), C the length of ``mean``: 3 or 1.
    """
    images = crops.permute(0, 3, 1, 2).to(
        torch.float32, memory_format=torch.contiguous_format
    )
    if affine is not None:
        images = functional.grid_sample(
            images,
            _grid(affine, (images.shape[2], images.shape[3])),
            mode="bilinear",
            padding_mode=padding,
            align_corners=False,
        ).round_()
    if colour is not None:
        images = recoloured(images, colour)
    if gamma is not None:
        images = (images / 255).pow_(gamma.view(-1, 1, 1, 1)).mul_(255).round_()
    if len(mean) == 1:
        images = grey(images)
    shift, scale = _levels(tuple(mean), tuple(std), images.device)
    return images.sub_(shift).mul_(scale)


def recoloured(images: Tensor, colour: Tensor) -> Tensor:
    """Change the colours of pictures.

    Parameters
    ----------
    images
        float32 (N, 3, H, W), red, green, blue from 0 to 255.
    colour
        float32 (N, 4). Factors of brightness, of contrast about the picture's mean
        grey, and of saturation; then the turn of the hue about the axis of greys, in
        full turns. (1, 1, 1, 0) changes nothing.

    Returns
    -------
    float32 (N, 3, H, W), from 0 to 255.
    """
    luma = torch.tensor(LUMA, device=images.device)
    brightness, contrast, saturation, hue = (
        numbers.view(-1, 1, 1, 1) for numbers in colour.unbind(1)
    )
    images = images * brightness
    grey = torch.einsum("nchw,c->nhw", images, luma).mean((1, 2)).view(-1, 1, 1, 1)
    images = (images - grey) * contrast + grey
    eye, cross = torch.eye(3, device=images.device), torch.tensor(CROSS).to(images)
    turn = (2 * torch.pi * hue).view(-1, 1, 1)
    along = (1 - turn.cos()) / 3  # what is grey stays
    turned = turn.cos() * eye + along + turn.sin() / 3**0.5 * cross
    share = saturation.view(-1, 1, 1)
    faded = share * eye + (1 - share) * luma.expand(3, 3)
    return torch.einsum("nij,njhw->nihw", turned @ faded, images).clamp_(0, 255)


def _grid(affine: Tensor, size: tuple[int, int]) -> Tensor:
    """Return where each pixel of the view lies in the crop, (N, H, W, 2).

    As ``functional.affine_grid``, which multiplies matrices of width three for it and
    takes longer than the sampling.
    """
    y, x = (_centres(pixels, affine.device) for pixels in size)
    along_x = affine[:, :, 0, None] * x
    along_y = affine[:, :, 1, None] * y + affine[:, :, 2, None]
    planes = along_y[:, :, :, None] + along_x[:, :, None, :]
    return planes.permute(0, 2, 3, 1).contiguous()


@cache
def _centres(pixels: int, device: torch.device) -> Tensor:
    """Return the centres of pixels on an axis from −1 to 1, edge to edge."""
    places = (torch.arange(pixels, dtype=torch.float64) * 2 + 1) / pixels - 1
    return places.float().to(device)


@cache
def _levels(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return mean, and one over std, in grey levels of 0 to 255, (1, 3, 1, 1) each."""
    levels = torch.tensor([mean, std], dtype=torch.float64) * 255
    shift, spread = levels.view(2, 1, -1, 1, 1)
    return shift.float().to(device), (1 / spread).float().to(device)
