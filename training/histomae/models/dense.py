"""A class and a depth for each pixel, from the patch tokens of several blocks.

A light convolutional decoder on a ViT. Tokens of several blocks are brought to one
width and added; each step then doubles the grid, and the picture itself, seen through
one convolution, is added before the last one, because a patch has no edges in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from histomae.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from histomae.models.classifier import Network

#: Blocks whose tokens are read.
MOST_TAPS = 4
#: Pixels of the picture that one pixel of the decoder's last grid is wide.
STRIDE = 2
#: Groups of a group norm: statistics of one picture alone, so that batches may be any.
GROUPS = 4


@dataclass(frozen=True)
class Dense:
    """What the decoder says: ``logits`` (N, K + 1, H, W), ``depth`` (N, H, W).

    The first class is none of them; depths are as
    :meth:`histomae.data.marks.Marks.depth` has them, before any clipping.
    """

    logits: Tensor
    depth: Tensor


class DenseDecoder(nn.Module):
    """From the tokens of several blocks, and the picture, to what each pixel is.

    Parameters
    ----------
    inside
        Width of the tokens.
    depth
        Blocks of the encoder.
    patch_px
        Side of its patches: a power of two.
    num_classes
        K.
    width
        Of the decoder.

    Raises
    ------
    ConfigError
        If the patches are no power of two wide.
    """

    def __init__(
        self, inside: int, depth: int, patch_px: int, num_classes: int, width: int
    ) -> None:
        super().__init__()
        self.taps, self.num_classes = taps(depth), num_classes
        doublings = round(math.log2(patch_px / STRIDE))
        if patch_px != STRIDE * 2**doublings or doublings < 0:
            raise ConfigError(
                "encoder",
                f"its patches are {patch_px} px wide. Choose one whose patches are a "
                "power of two.",
            )
        self.norms = nn.ModuleList(nn.LayerNorm(inside) for _ in self.taps)
        self.inlets = nn.ModuleList(nn.Conv2d(inside, width, 1) for _ in self.taps)
        self.steps = nn.ModuleList(_convolution(width) for _ in range(doublings + 1))
        self.stem = nn.Conv2d(3, width, 3, stride=STRIDE, padding=1)
        self.last = _convolution(width)
        self.head = nn.Conv2d(width, num_classes + 2, 1)

    def begin(self, generator: torch.Generator) -> None:
        """Draw the weights with which a training begins."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                spread = math.sqrt(2 / module.weight[0].numel())
                nn.init.normal_(module.weight, std=spread, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)

    def forward(self, tokens: Sequence[Tensor], images: Tensor) -> Dense:
        """Return what images (N, 3, H, W) show, of tokens (N, D, h, w) of each tap."""
        grid = sum(
            inlet(norm(one.movedim(1, -1)).movedim(-1, 1))
            for inlet, norm, one in zip(self.inlets, self.norms, tokens, strict=True)
        )
        grid = self.steps[0](grid)
        for step in self.steps[1:]:
            grid = step(functional.interpolate(grid, scale_factor=2.0, mode="nearest"))
        grid = self.last(grid + self.stem(images))
        said = functional.interpolate(
            self.head(grid).float(),
            images.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        return Dense(said[:, :-1], said[:, -1])


class DenseModel(nn.Module):
    """An encoder, and a decoder that says of each pixel what it is.

    Parameters
    ----------
    network
        Of a ViT; its module is trained in place unless ``frozen``.
    num_classes
        K.
    frozen
        Whether the encoder stays as it is.
    width
        Of the decoder.
    generator
        Of the decoder's weights; None: they are loaded.

    Raises
    ------
    ConfigError
        If the encoder is no ViT, or its patches are no power of two wide.
    """

    def __init__(
        self,
        network: Network,
        num_classes: int,
        *,
        frozen: bool = True,
        width: int = 48,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.encoder: Any = network.module
        self.tile_px, self.frozen = network.tile_px, frozen
        self.num_classes = num_classes
        patch_px, depth = _patch_and_depth(self.encoder)
        self.decoder = DenseDecoder(network.width, depth, patch_px, num_classes, width)
        if generator is not None:
            self.decoder.begin(generator)
        for weight in self.encoder.parameters():
            weight.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> DenseModel:
        """Train, or not; a frozen encoder is always as when it is asked."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Dense:
        """Return what normalised images (N, 3, H, W), H = W = ``tile_px``, show."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder.forward_intermediates(
                images,
                indices=list(self.decoder.taps),
                output_fmt="NCHW",
                intermediates_only=True,
            )
        said: Dense = self.decoder(tokens, images)
        return said


def taps(depth: int) -> tuple[int, ...]:
    """Return which blocks are read, evenly spaced, the last among them."""
    many = min(MOST_TAPS, depth)
    return tuple(int(x) for x in np.linspace(depth / many, depth, many).round() - 1)


def _convolution(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.GroupNorm(GROUPS, width),
        nn.GELU(),
    )


def _patch_and_depth(encoder: Any) -> tuple[int, int]:
    if not hasattr(encoder, "blocks") or not hasattr(encoder, "forward_intermediates"):
        raise ConfigError(
            "encoder", "it has no patches. Choose a Vision Transformer for this."
        )
    return int(encoder.patch_embed.patch_size[0]), len(encoder.blocks)
