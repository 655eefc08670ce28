"""Encoders of either kind, ViT or convolutional, behind one set of functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histomae.config import POOLINGS
from histomae.models.cnn import CNNS, CnnSpec, build_cnn, map_tokens
from histomae.models.vit import EncoderSpec, build_encoder, encoder_spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

AnySpec = EncoderSpec | CnnSpec


def spec_of(name: str, *, tile_px: int, patch_size: int, in_chans: int = 3) -> AnySpec:
    """Return the spec of an encoder by its name; only a ViT has patches.

    Raises
    ------
    ConfigError
        If the name is unknown or the sizes do not fit.
    """
    if name in CNNS:
        return CnnSpec(name, tile_px, in_chans)
    return encoder_spec(name, tile_px=tile_px, patch_size=patch_size, in_chans=in_chans)


def build(spec: AnySpec, *, generator: torch.Generator | None = None) -> nn.Module:
    """Build an encoder with fresh weights, on torch's default device."""
    if isinstance(spec, CnnSpec):
        return build_cnn(spec, generator=generator)
    return build_encoder(spec, generator=generator)


def tokens_of(encoder: Any, images: Tensor) -> Tensor:
    """Return the tokens (N, T, D) of images (N, C, H, W), after the final norm."""
    found: Tensor = encoder.forward_features(images)
    return map_tokens(found) if found.ndim == 4 else found


def pool(tokens: Tensor, pooling: str, num_prefix_tokens: int) -> Tensor:
    """Turn tokens (N, T, D) into vectors (N, D): ``class_token``, or the ``mean``."""
    if pooling == "class_token":
        return tokens[:, 0]
    return tokens[:, num_prefix_tokens:].float().mean(1)


def poolings_of(spec: AnySpec) -> tuple[str, ...]:
    """Return how tokens may become a vector; the first unless asked otherwise."""
    return ("mean",) if isinstance(spec, CnnSpec) else POOLINGS
