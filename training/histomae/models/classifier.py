"""A classifier of tiles: an encoder, and a linear head, trained together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from histomae.models.encoders import pool, tokens_of

if TYPE_CHECKING:
    from torch import Tensor

#: How timm calls what leaves out a branch, in blocks of every kind.
DROP_PATHS = ("drop_path", "drop_path1", "drop_path2")
#: A model of other people makes its own vector of a tile.
OWN = "own"


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """An encoder to be trained on, and the pictures it takes.

    ``module`` turns normalised (N, 3, H, W), H = W = ``tile_px``, into tokens or, where
    ``pooling`` is ``own``, into vectors (N, ``width``).
    """

    module: nn.Module
    tile_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int
    pooling: str


class DropPath(nn.Module):
    """Leaves a branch out for some samples while training; the others are made up for.

    As timm's, with a generator of its own, so that a training is repeatable.
    """

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rate, self._generator = rate, generator

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch (N, ...), of dropped samples zero."""
        if not (self.training and self.rate):
            return branch
        shape = (len(branch), *(1,) * (branch.ndim - 1))
        drawn = torch.rand(shape, generator=self._generator).to(branch.device)
        return branch * (drawn >= self.rate) / (1 - self.rate)


class TileClassifier(nn.Module):
    """An encoder, the layer norm of its vector, and a linear head.

    Parameters
    ----------
    network
        Its module is trained in place.
    num_classes
        K.
    drop_path
        Of the last block; it rises from 0 in even steps, block by block.
    generator
        On the CPU: of the head's weights, and of what is dropped.
    """

    def __init__(
        self,
        network: Network,
        num_classes: int,
        *,
        drop_path: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder: Any = network.module
        self.pooling = network.pooling
        self.norm = nn.LayerNorm(network.width)
        self.head = nn.Linear(network.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)
        if drop_path:
            drop_paths(self.encoder, drop_path, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of normalised images (N, 3, H, W)."""
        if self.pooling == OWN:
            vectors = self.encoder(images)
        else:
            prefix = getattr(self.encoder, "num_prefix_tokens", 0)
            vectors = pool(tokens_of(self.encoder, images), self.pooling, prefix)
        logits: Tensor = self.head(self.norm(vectors.float()))
        return logits


def drop_paths(encoder: nn.Module, rate: float, generator: torch.Generator) -> None:
    """Have the blocks of timm's model drop their branches, the last most often."""
    blocks = [
        module
        for module in encoder.modules()
        if any(hasattr(module, name) for name in DROP_PATHS)
    ]
    for number, block in enumerate(blocks):
        share = rate * number / max(1, len(blocks) - 1)
        for name in DROP_PATHS:
            if hasattr(block, name):
                setattr(block, name, DropPath(share, generator))


def layer_groups(
    model: TileClassifier, *, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return an optimizer's groups: the deeper a layer, the faster it learns.

    ``lr_scale`` of the head and its norm is 1, of block k of depth n, from 0,
    ``layer_decay ** (n - k)``, of the patch embedding and the tokens
    ``layer_decay ** (n + 1)`` (Bao et al., BEiT); the encoder's last norm learns with
    the last block, as timm has it. Biases, norms and tokens do not decay.
    """
    encoder = model.encoder
    tokens = encoder.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ()
    groups = param_groups_layer_decay(
        encoder, weight_decay, no_weight_decay_list=tokens, layer_decay=layer_decay
    )
    below = [{**one, "lr_scale": layer_decay * one["lr_scale"]} for one in groups]
    return [
        *below,
        {"params": [model.head.weight], "weight_decay": weight_decay, "lr_scale": 1.0},
        {
            "params": [*model.norm.parameters(), model.head.bias],
            "weight_decay": 0.0,
            "lr_scale": 1.0,
        },
    ]
