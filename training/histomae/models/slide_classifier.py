"""Classifiers of whole slides: on PAMA's class token, and attention MIL beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from histomae.models.bag_tensors import Placing
from histomae.models.pama import drop_anchors
from histomae.models.vit import init_transformer

if TYPE_CHECKING:
    from histomae.models.bag_tensors import BagTensors
    from histomae.models.pama import PamaEncoder


class SlideClassifier(nn.Module):
    """PAMA's encoder and a linear head on its class token.

    Parameters
    ----------
    encoder
        Trained or not; it is fine-tuned with the head.
    num_classes
        K.
    anchor_dropout
        Share of each bag's anchors that do not take part, while training.
    generator
        Of the head's weights; None: torch's own.
    """

    def __init__(
        self,
        encoder: PamaEncoder,
        num_classes: int,
        *,
        anchor_dropout: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.anchor_dropout = anchor_dropout
        self.head = nn.Linear(encoder.cls_token.shape[-1], num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    @property
    def placing(self) -> Placing:
        """How it wants places told."""
        return self.encoder.spec.placing

    def forward(self, bags: BagTensors, anchor_noise: Tensor | None = None) -> Tensor:
        """Return the logits (B, K); ``anchor_noise`` (B, A) is for training."""
        places = bags.places
        if self.training and self.anchor_dropout and anchor_noise is not None:
            places = drop_anchors(places, self.anchor_dropout, anchor_noise)
        tokens, _ = self.encoder(self.encoder.scaled(bags), places)
        return self.head(tokens[:, 0])


class AttentionMil(nn.Module):
    """Attention MIL (Ilse et al. 2018): a weighted mean of tiles, without places.

    Each tile's weight comes from its own embedding, through a gate; what is beside a
    tile plays no part.
    """

    #: It looks at no places: one anchor is soonest told.
    placing = Placing(tiles_per_anchor=10**9)

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        *,
        dim: int = 128,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(feature_dim, dim)
        self.value = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.weight = nn.Linear(dim, 1)
        self.head = nn.Linear(dim, num_classes)
        init_transformer(self, generator=generator)

    def forward(self, bags: BagTensors, anchor_noise: Tensor | None = None) -> Tensor:
        """Return the logits (B, K); ``anchor_noise`` is not used."""
        tiles = self.embed(bags.cleared()).relu()
        gated = self.value(tiles).tanh() * self.gate(tiles).sigmoid()
        scores = self.weight(gated).squeeze(-1)
        weights = scores.masked_fill(~bags.places.real_tokens, -torch.inf).softmax(1)
        return self.head((weights[..., None] * tiles).sum(1))
