"""The masked autoencoder: embed, hide, encode, decode, compare.

Written from the description of the method (He et al. 2022), on timm's building blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from histomae.errors import ConfigError
from histomae.models.patches import (
    gather_tokens,
    normalised_target,
    patchify,
    random_mask,
)
from histomae.models.vit import (
    NORM_LAYER,
    build_encoder,
    encode_visible,
    init_transformer,
    sincos_2d,
)

if TYPE_CHECKING:
    from histomae.models.vit import EncoderSpec

#: Wider, deeper or more heads than any decoder there is; a bound for strangers' files.
LARGEST_DECODER = {"dim": 8192, "depth": 128, "heads": 128}


@dataclass(frozen=True)
class DecoderSpec:
    """The shape of a decoder."""

    dim: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        for name, largest in LARGEST_DECODER.items():
            value = getattr(self, name)
            if not 1 <= value <= largest:
                raise ConfigError(
                    f"decoder_{name}",
                    f"{value} is out of range. Choose from 1 to {largest}.",
                )
        if self.dim % self.heads or self.dim % 4:
            raise ConfigError(
                "decoder_dim",
                f"{self.dim} must be a multiple of 4 and of the {self.heads} heads. "
                "Choose 192 with 3 heads, or 256 with 8.",
            )


@dataclass(frozen=True, eq=False)
class MaeOutput:
    """What one forward pass gives."""

    loss: Tensor
    """() float32: mean squared error over the hidden patches."""
    prediction: Tensor
    """(N, K, p*p*C): the decoded patches, in the space of the target."""
    mask: Tensor
    """(N, K) bool, True = hidden. K = L and in order where all are decoded."""


class Decoder(nn.Module):
    """MAE's small ViT: mask tokens in, pixels of every patch out."""

    def __init__(self, spec: DecoderSpec, encoder_spec: EncoderSpec) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_spec.embed_dim, spec.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, spec.dim))
        self.pos_embed = nn.Parameter(
            sincos_2d(spec.dim, encoder_spec.grid_size, class_token=True),
            requires_grad=False,
        )
        self.blocks = nn.Sequential(
            *(
                Block(spec.dim, spec.heads, qkv_bias=True, norm_layer=NORM_LAYER)
                for _ in range(spec.depth)
            )
        )
        self.norm = NORM_LAYER(spec.dim)
        entries = encoder_spec.patch_size**2 * encoder_spec.in_chans
        self.head = nn.Linear(spec.dim, entries)

    def forward(
        self, latent: Tensor, ids_restore: Tensor, ids: Tensor | None = None
    ) -> Tensor:
        """Predict patches from the latent of the visible ones.

        Parameters
        ----------
        latent
            (N, 1 + L_keep, D).
        ids_restore
            (N, L) int64.
        ids
            (N, K) int64: the patches that take part; None: all of them, in order.

        Returns
        -------
        Tensor
            (N, K, p*p*C).
        """
        return self.head(self.features(latent, ids_restore, ids)[:, 1:])

    def features(
        self, latent: Tensor, ids_restore: Tensor, ids: Tensor | None = None
    ) -> Tensor:
        """Return what :meth:`forward` predicts from: tokens (N, 1 + K, dim)."""
        tokens = self.embed(latent)
        count, length = ids_restore.shape
        hidden = length + 1 - tokens.shape[1]
        blanks = self.mask_token.to(tokens.dtype).expand(count, hidden, -1)
        patches = torch.cat([tokens[:, 1:], blanks], dim=1)
        patches = gather_tokens(patches, ids_restore)
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed
        if ids is not None:
            patches = gather_tokens(tokens[:, 1:], ids)
            tokens = torch.cat([tokens[:, :1], patches], dim=1)
        return self.norm(self.blocks(tokens))


class MaskedAutoencoder(nn.Module):
    """An encoder that sees few patches and a decoder that predicts the others.

    Made on torch's default device; under ``torch.device("meta")`` it has shapes only.

    Parameters
    ----------
    encoder_spec
        Shape of the encoder.
    decoder_dim, decoder_depth, decoder_heads
        Shape of the decoder.
    norm_pix
        Predict pixels normalised within each patch.
    generator
        Of the initial weights; None: torch's own.
    """

    encoder: nn.Module  # timm's VisionTransformer
    decoder: Decoder

    def __init__(
        self,
        encoder_spec: EncoderSpec,
        *,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
        norm_pix: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder_spec = encoder_spec
        self.decoder_spec = DecoderSpec(decoder_dim, decoder_depth, decoder_heads)
        self.norm_pix = norm_pix
        self.encoder = build_encoder(encoder_spec, generator=generator)
        self.decoder = Decoder(self.decoder_spec, encoder_spec)
        if self.decoder.mask_token.device.type != "meta":
            init_transformer(self.decoder, generator=generator)
            nn.init.normal_(self.decoder.mask_token, std=0.02, generator=generator)

    def forward(
        self,
        images: Tensor,
        *,
        mask_ratio: float,
        noise: Tensor,
        decoded_share: float = 1.0,
    ) -> MaeOutput:
        """Hide, encode, decode and compare.

        The loss may be split over the batch: every image hides the same number of
        patches, so that it is the mean of the images' own losses, and the mean over
        micro-batches, weighted by their sizes, is the loss of the whole.

        Parameters
        ----------
        images
            (N, C, H, W) float, normalised, of the encoder's tile size.
        mask_ratio
            Share of the patches to hide; it must hide one at least.
        noise
            (N, L) float, uniform: the patches with the most noise are hidden.
        decoded_share
            Share of the hidden patches that are decoded and compared, those with the
            least noise; the others cost nothing and are as good as not there.
        """
        masking = random_mask(noise, mask_ratio)
        if masking.ids_keep.shape[1] == masking.mask.shape[1]:
            raise ValueError(
                f"A mask ratio of {mask_ratio} hides none of {noise.shape[1]} patches. "
                "Choose a larger one, such as 0.75."
            )
        latent = self.forward_encoder(images, masking.ids_keep)
        target, mask, ids = self.target(images), masking.mask, None
        if decoded_share < 1:
            ids = masking.first(decoded_share)
            target, mask = gather_tokens(target, ids), mask.gather(1, ids)
        prediction = self.decoder(latent, masking.ids_restore, ids)
        loss = masked_loss(prediction, target, mask=mask)
        return MaeOutput(loss, prediction, mask)

    def forward_encoder(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        """Encode the visible patches ``ids_keep`` (N, L_keep): (N, 1 + L_keep, D)."""
        return encode_visible(self.encoder, images, ids_keep)

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict all patches, (N, L, p*p*C), from the latent (N, 1 + L_keep, D)."""
        return self.decoder(latent, ids_restore)

    def target(self, images: Tensor) -> Tensor:
        """Return what should be predicted, (N, L, p*p*C), at least float32.

        Where ``norm_pix`` is set these are patches normalised by their own statistics.
        """
        patches = patchify(images, self.encoder_spec.patch_size)
        if self.norm_pix:
            return normalised_target(patches)
        return patches.to(torch.promote_types(patches.dtype, torch.float32))


def patch_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each patch, (N, L), at least float32.

    Parameters
    ----------
    prediction, target
        (N, L, p*p*C); the target sets the precision.
    """
    return (prediction.to(target.dtype) - target).square().mean(dim=-1)


def masked_loss(prediction: Tensor, target: Tensor, *, mask: Tensor) -> Tensor:
    """Return the mean error of the hidden patches; visible ones do not count.

    Parameters
    ----------
    prediction, target
        (N, L, p*p*C).
    mask
        (N, L) bool, True = hidden.
    """
    error = patch_error(prediction, target)
    return (error * mask).sum() / mask.sum()
