"""Encoders: timm's Vision Transformer with fixed 2-D sine-cosine positions.

Composition on timm, whose parameter names are kept, so that a saved encoder is one that
``timm.create_model(..., checkpoint_path=...)`` loads.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from histomae.errors import ConfigError
from histomae.models.patches import gather_tokens, patchify

#: Name: (embed_dim, depth, num_heads).
ENCODER_SIZES = {
    "vit_small": (384, 12, 6),
    "vit_tiny": (192, 12, 3),
    "vit_micro": (192, 4, 3),
}
#: Both in the blocks and at the end, as MAE and timm's ViT have it.
NORM_LAYER = partial(nn.LayerNorm, eps=1e-6)
#: Larger than any ViT there is; a stranger's file that says more is refused.
LARGEST = {
    "tile_px": 8192,
    "patch_size": 512,
    "embed_dim": 8192,
    "depth": 128,
    "num_heads": 128,
    "in_chans": 64,
}


@dataclass(frozen=True)
class EncoderSpec:
    """The shape of an encoder: square tiles of ``tile_px``, one class token."""

    tile_px: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    in_chans: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value, largest = getattr(self, field.name), LARGEST[field.name]
            if not 1 <= value <= largest:
                raise ConfigError(
                    field.name, f"{value} is out of range. Choose from 1 to {largest}."
                )
        if self.tile_px % self.patch_size:
            raise ConfigError(
                "patch_size",
                f"{self.patch_size} px does not divide the tile of {self.tile_px} px. "
                "Choose a patch size such as 8, 16 or 32 that does.",
            )
        if self.embed_dim % self.num_heads or self.embed_dim % 4:
            raise ConfigError(
                "embed_dim",
                f"{self.embed_dim} is no multiple of 4 and of the {self.num_heads} "
                "heads. Choose one that is, such as 192 with 3 heads.",
            )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches down and across a tile."""
        side = self.tile_px // self.patch_size
        return side, side

    @property
    def num_patches(self) -> int:
        """Patches in a tile, L."""
        return self.grid_size[0] * self.grid_size[1]


def encoder_spec(
    name: str, *, tile_px: int, patch_size: int, in_chans: int = 3
) -> EncoderSpec:
    """Return the spec of an encoder by the name of its size, such as ``vit_small``."""
    if name not in ENCODER_SIZES:
        raise ConfigError(
            "encoder", f"{name!r} is unknown. Choose one of {', '.join(ENCODER_SIZES)}."
        )
    embed_dim, depth, num_heads = ENCODER_SIZES[name]
    return EncoderSpec(tile_px, patch_size, embed_dim, depth, num_heads, in_chans)


def sincos_2d(dim: int, grid_size: tuple[int, int], *, class_token: bool) -> Tensor:
    """Return the table of 2-D sine-cosine positions.

    The first half of the columns encodes x (the column), the second y; each half holds
    the sines, then the cosines, of ``position * 10000**(-j / (dim/4))``, j = 0, 1, ...

    Parameters
    ----------
    dim
        Width of the tokens, a multiple of 4.
    grid_size
        Patches (down, across).
    class_token
        Begin with a row of zeros.

    Returns
    -------
    Tensor
        (1, T, dim) float32; positions row by row.
    """
    if dim % 4:
        raise ValueError(f"A width of {dim} is no multiple of 4. Choose one that is.")
    rows, cols = grid_size
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y = torch.arange(rows, dtype=torch.float64).repeat_interleave(cols)
    x = torch.arange(cols, dtype=torch.float64).repeat(rows)
    halves = [position[:, None] * omega for position in (x, y)]
    table = torch.cat(
        [f(half) for half in halves for f in (torch.sin, torch.cos)], dim=1
    )
    if class_token:
        table = torch.cat([torch.zeros(1, dim, dtype=torch.float64), table])
    return table.float()[None]


def build_encoder(
    spec: EncoderSpec, *, generator: torch.Generator | None = None
) -> VisionTransformer:
    """Build a timm ViT with fresh weights, its positions fixed.

    It is made on torch's default device; under ``torch.device("meta")`` it has shapes
    but no numbers, for whoever only asks what fits.

    Parameters
    ----------
    generator
        Of the initial weights; None: torch's own.
    """
    device = torch.get_default_device()
    # On meta first: timm's own initialisation would be thrown away.
    with torch.device("meta"):
        encoder = VisionTransformer(
            img_size=spec.tile_px,
            patch_size=spec.patch_size,
            in_chans=spec.in_chans,
            embed_dim=spec.embed_dim,
            depth=spec.depth,
            num_heads=spec.num_heads,
            num_classes=0,
            global_pool="token",
            class_token=True,
            norm_layer=NORM_LAYER,
            weight_init="skip",
        )
    encoder.pos_embed.requires_grad_(False)
    encoder.to_empty(device=device)
    if device.type != "meta":
        init_transformer(encoder, generator=generator)
        nn.init.normal_(encoder.cls_token, std=0.02, generator=generator)
        table = sincos_2d(spec.embed_dim, spec.grid_size, class_token=True)
        encoder.pos_embed.data.copy_(table)
    return encoder


def init_transformer(
    module: nn.Module, *, generator: torch.Generator | None = None
) -> None:
    """Set the weights of all layers of a transformer as MAE does.

    Linear layers, and the patch embedding taken as one, get Xavier-uniform weights and
    zero biases; layer norms 1 and 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.data.flatten(1), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def embed_patches(encoder: VisionTransformer, patches: Tensor) -> Tensor:
    """Embed patches (N, L, p*p*C) with the encoder's convolution: (N, L, D).

    A convolution with stride p is a linear layer on patches; taken as one it can skip
    the hidden ones.
    """
    conv = encoder.patch_embed.proj
    # (D, C, p, p) to the layout of patchify, channel fastest
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(patches, weight, conv.bias)


def embed_visible(
    encoder: VisionTransformer, images: Tensor, ids_keep: Tensor | None = None
) -> Tensor:
    """Return the tokens that enter the first block.

    Parameters
    ----------
    encoder
        From :func:`build_encoder`.
    images
        (N, C, H, W) float, normalised, of the encoder's tile size.
    ids_keep
        (N, L_keep) int64, the visible patches; None: all, in order.

    Returns
    -------
    Tensor
        (N, 1 + L_keep, D): the class token, then the patches as in ``ids_keep``.
    """
    if tuple(images.shape[-2:]) != tuple(encoder.patch_embed.img_size):
        raise ValueError(
            f"The images are {images.shape[-1]} x {images.shape[-2]} px, the encoder "
            f"takes {encoder.patch_embed.img_size[0]} px. Read tiles of that size."
        )
    patches = patchify(images, encoder.patch_embed.patch_size[0])
    positions = encoder.pos_embed[:, 1:]
    if ids_keep is not None:
        patches, positions = gather_tokens(patches, ids_keep), positions[0, ids_keep]
    # Our own table has zeros for the class token; weights from elsewhere may not.
    class_token = encoder.cls_token + encoder.pos_embed[:, :1]
    visible = embed_patches(encoder, patches) + positions
    return torch.cat([class_token.expand(len(images), -1, -1), visible], dim=1)


def encode_visible(
    encoder: VisionTransformer, images: Tensor, ids_keep: Tensor | None = None
) -> Tensor:
    """Encode only the visible patches.

    Takes what :func:`embed_visible` takes and returns the latent, (N, 1 + L_keep, D),
    in the same order. With all patches in order it equals timm's ``forward_features``.
    """
    return encoder.norm(encoder.blocks(embed_visible(encoder, images, ids_keep)))
