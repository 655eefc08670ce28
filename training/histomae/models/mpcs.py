"""MPCS: one place at two magnifications should look alike (Chhipa et al., WACV 2023).

An encoder, a projector, and a loss that tells the two pictures of a place from those of
all other places in the batch. The two sides count alike, the temperature is a setting,
and what is compared is of unit length in full precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from histomae.models.encoders import build, pool, poolings_of, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histomae.models.encoders import AnySpec

#: Pictures of different places that are more alike than this are all alike.
COLLAPSED = 0.98


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    groups: Tensor | None = None,
) -> Tensor:
    """Return the normalised temperature-scaled cross entropy of N pairs, ().

    Each of the 2N points should be told from the 2N - 1 others as its partner's.

    Parameters
    ----------
    first, second
        (N, D), unit vectors; row n of both is one place.
    temperature
        τ, which likenesses are divided by.
    groups
        int (N,): places of one group are not told apart; None: all are.
    """
    pairs = len(first)
    points = torch.cat([first, second])
    likeness = points @ points.T / temperature
    left_out = torch.eye(2 * pairs, dtype=torch.bool, device=points.device)
    if groups is not None:
        same = groups[:, None] == groups
        same.fill_diagonal_(False)  # the partner stays
        left_out |= same.repeat(2, 2)
    partner = torch.arange(2 * pairs, device=points.device).roll(pairs)
    return functional.cross_entropy(likeness.masked_fill(left_out, -torch.inf), partner)


def found_partners(first: Tensor, second: Tensor) -> Tensor:
    """Return the share of points whose nearest point on the other side is theirs, ().

    Parameters
    ----------
    first, second
        (N, D), unit vectors; row n of both is one place.
    """
    likeness = first @ second.T
    own = torch.arange(len(first), device=first.device)
    found = [(likeness.argmax(dim) == own).float().mean() for dim in (0, 1)]
    return torch.stack(found).mean()


class Projector(nn.Sequential):
    """Vectors (N, D) to unit vectors (N, P) in which places are compared.

    Linear layers without bias, each but the last with batch norm and a rectifier; then
    batch norm without weights of its own.
    """

    def __init__(self, dim: int, dims: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for width in dims[:-1]:
            layers += [
                nn.Linear(dim, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            ]
            dim = width
        last = nn.Linear(dim, dims[-1], bias=False)
        super().__init__(*layers, last, nn.BatchNorm1d(dims[-1], affine=False))

    def forward(self, vectors: Tensor) -> Tensor:
        """Project."""
        return functional.normalize(super().forward(vectors), dim=-1)


class Contrastive(nn.Module):
    """An encoder and a projector; there is no decoder.

    Parameters
    ----------
    encoder_spec
        Shape of the encoder.
    projector_dims
        Widths of the projector's layers.
    pooling
        ``class_token``, or the ``mean`` of the patch tokens; of convolutions always
        the mean.
    generator
        Of the initial weights; None: torch's own.
    """

    decoder = None
    decoder_spec = None

    def __init__(
        self,
        encoder_spec: AnySpec,
        *,
        projector_dims: Sequence[int],
        pooling: str = "class_token",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        known = poolings_of(encoder_spec)
        self.encoder_spec = encoder_spec
        self.pooling = pooling if pooling in known else known[0]
        self._prefix_tokens = len(known) - 1
        self.encoder = build(encoder_spec, generator=generator)
        self.projector = Projector(encoder_spec.embed_dim, projector_dims)
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, generator=generator)

    def encode(self, images: Tensor) -> Tensor:
        """Return a vector for each picture: (N, C, H, W) to (N, D).

        Each is encoded alone, unless batch norm in the encoder mixes them.
        """
        tokens = tokens_of(self.encoder, images)
        return pool(tokens, self.pooling, self._prefix_tokens)

    def compare(
        self, vectors: Tensor, *, temperature: float, groups: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a whole batch, (), and what is worth recording, () each.

        Batch norm sees both sides of all pairs.

        Parameters
        ----------
        vectors
            (N, 2, D) from :meth:`encode`.
        temperature, groups
            See :func:`nt_xent`.
        """
        # A likeness divided by 0.01 has no digit left in bf16.
        with torch.autocast(vectors.device.type, enabled=False):
            wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
            points = self.projector(wide.flatten(0, 1)).view(*vectors.shape[:2], -1)
            first, second = points.unbind(1)
            loss = nt_xent(first, second, temperature=temperature, groups=groups)
            with torch.no_grad():
                others = ~torch.eye(len(first), dtype=torch.bool, device=first.device)
                logged = {
                    "partners_found": found_partners(first, second),
                    "partner_likeness": (first * second).sum(1).mean(),
                    "others_likeness": (first @ second.T)[others].mean(),
                }
        return loss, logged


def concern(logged: dict[str, float]) -> str:
    """Say what is wrong where all places look alike."""
    likeness = logged.get("others_likeness", 0.0)
    if likeness < COLLAPSED:
        return ""
    return (
        f"All places look alike to the encoder (mean cosine {likeness:.2f} between "
        "different ones), so that it learns nothing. Try a smaller base_lr, a larger "
        "batch_size, or weights to start from."
    )
