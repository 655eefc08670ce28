"""Convolutional encoders, as MPCS has them: timm's networks without their heads.

What a network makes of a tile is a map of vectors; each of its places is a token, and
there is no class token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import timm
import torch

from histomae.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class _Known:
    """A network: timm's name and settings, width of its map, pixels per place."""

    timm_name: str
    width: int
    stride: int
    settings: tuple[tuple[str, Any], ...] = ()


#: The dilated one has a map four times as fine (output stride 8), as published.
CNNS = {
    "resnet50": _Known("resnet50", 2048, 32),
    "resnet50_dilated": _Known("resnet50", 2048, 8, (("output_stride", 8),)),
    "efficientnet_b2": _Known("efficientnet_b2", 1408, 32),
}
#: Smaller tiles have a map of a single place; a stranger's larger ones are refused.
TILE_PX, IN_CHANS = (32, 8192), (1, 64)


@dataclass(frozen=True)
class CnnSpec:
    """The shape of a convolutional encoder, for square tiles of ``tile_px``.

    It has no blocks of attention: its ``depth`` and ``num_heads`` are 1, for whoever
    asks where it looks.
    """

    name: str
    tile_px: int
    in_chans: int = 3

    depth = num_heads = 1

    def __post_init__(self) -> None:
        if self.name not in CNNS:
            raise ConfigError(
                "encoder",
                f"{self.name[:80]!r} is unknown. Choose one of {', '.join(CNNS)}.",
            )
        for field, (least, most) in (("tile_px", TILE_PX), ("in_chans", IN_CHANS)):
            if not least <= getattr(self, field) <= most:
                raise ConfigError(
                    field,
                    f"{getattr(self, field)} is out of range. Choose from {least} to "
                    f"{most}.",
                )

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return CNNS[self.name].width

    @property
    def grid_size(self) -> tuple[int, int]:
        """Places of the map down and across a tile."""
        side = -(-self.tile_px // CNNS[self.name].stride)
        return side, side


def build_cnn(spec: CnnSpec, *, generator: torch.Generator | None = None) -> nn.Module:
    """Build a network of timm's with fresh weights, on torch's default device.

    Parameters
    ----------
    generator
        Of the initial weights; None: torch's own.
    """
    known = CNNS[spec.name]
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        if generator is not None:  # timm draws from torch's own
            seed = torch.randint(2**62, (1,), generator=generator, device="cpu")
            torch.manual_seed(int(seed))
        return timm.create_model(
            known.timm_name,
            num_classes=0,
            in_chans=spec.in_chans,
            **dict(known.settings),
        )


def map_tokens(features: Tensor) -> Tensor:
    """Turn a map (N, D, h, w) into tokens (N, h*w, D), row by row."""
    return features.flatten(2).transpose(1, 2)


def strength(tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Return how strongly a network answers at each place, (N, h, w), of sum 1.

    Parameters
    ----------
    tokens
        (N, h*w, D).
    """
    lengths = tokens.float().norm(dim=-1)
    shares = lengths / lengths.sum(1, keepdim=True).clamp_min(1e-12)
    return shares.unflatten(1, grid_size)
