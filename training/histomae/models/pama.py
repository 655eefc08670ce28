"""PAMA: a masked autoencoder over the tiles of a whole slide (Wu et al. 2023, 2024).

Tiles are tokens. They never look at each other: a few anchors look at all tokens and
are looked at by them, so that cost and memory grow as tokens × anchors. Where a token
lies as seen from an anchor enters as two biases of the attention, by distance and by
direction, and directions are told from the anchor's own main direction (*kernel
reorientation*), so that a slide has no up.

Written from the description of the method. The clean form is exactly indifferent to
quarter turns, shifts, the order of tiles and anchors, and padding. ``compat`` gives the
published equations, which are not: there the class token, padding and the anchor's own
tile vote for the main direction, the class token lies in the mean of all bins, and
padding is hidden, predicted and looked at by the class token.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from histomae.errors import ConfigError
from histomae.models.anchors import DIRECTION_BINS
from histomae.models.bag_tensors import (
    CLASS_DIRECTION,
    CLASS_DISTANCE,
    NO_DIRECTION,
    Places,
    Placing,
)
from histomae.models.patches import gather_tokens
from histomae.models.vit import NORM_LAYER, init_transformer

if TYPE_CHECKING:
    from histomae.models.bag_tensors import BagTensors

#: Scores of pairs that may not look at each other; their weight is exactly 0.
NEVER = -1e9
#: Larger than any there is; a stranger's file that says more is refused.
LARGEST = {
    "feature_dim": 65_536,
    "dim": 8192,
    "depth": 128,
    "heads": 128,
    "decoder_dim": 8192,
    "decoder_depth": 128,
    "decoder_heads": 128,
    "tiles_per_anchor": 1_000_000,
    "compat": 1,
}
#: Name: (dim, depth, heads, decoder_dim, decoder_depth, decoder_heads). The first is
#: the published one; the second trains on a CPU.
SIZES = {
    "pama_base": (1024, 4, 8, 512, 2, 8),
    "pama_small": (256, 2, 8, 128, 1, 8),
}


@dataclass(frozen=True)
class PamaSpec:
    """The shape of a PAMA, and how it tells places."""

    feature_dim: int
    """Width of the tiles' embeddings."""
    dim: int = 1024
    depth: int = 4
    heads: int = 8
    decoder_dim: int = 512
    decoder_depth: int = 2
    decoder_heads: int = 8
    tiles_per_anchor: int = 144
    compat: bool = False
    """The published equations instead of the clean form."""

    @property
    def placing(self) -> Placing:
        """How places are told."""
        return Placing(self.tiles_per_anchor, self.compat)

    def difference(self, other: PamaSpec) -> str:
        """Say in what two differ, naming both; empty where they are alike."""
        names = [field.name for field in fields(self)]
        return "; ".join(
            f"{name} {getattr(self, name)} and {getattr(other, name)}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        )

    def __post_init__(self) -> None:
        for field in fields(self):
            value, largest = getattr(self, field.name), LARGEST[field.name]
            if not (field.name == "compat" or 1 <= value <= largest):
                raise ConfigError(
                    field.name, f"{value} is out of range. Choose from 1 to {largest}."
                )
        for dim, heads in (("dim", "heads"), ("decoder_dim", "decoder_heads")):
            if getattr(self, dim) % getattr(self, heads):
                raise ConfigError(
                    dim,
                    f"{getattr(self, dim)} is no multiple of the {getattr(self, heads)}"
                    " heads. Choose one that is, such as 256 with 8.",
                )


def pama_spec(
    size: str, feature_dim: int, *, tiles_per_anchor: int = 144, compat: bool = False
) -> PamaSpec:
    """Return the spec of a size of ``SIZES``."""
    return PamaSpec(
        feature_dim, *SIZES[size], tiles_per_anchor=tiles_per_anchor, compat=compat
    )


class Looks(NamedTuple):
    """Who looks at whom in one block, and how directions are told."""

    anchors: Tensor
    """(B, h, K, 1+L): what each anchor takes from class token and tokens; sums to 1."""
    tokens: Tensor
    """(B, h, 1+L, K): what class token and tokens take from each anchor; sums to 1."""
    main_directions: Tensor
    """int64 (B, h, K): the direction bin that a head calls 0 at an anchor."""


def main_directions(scores: Tensor, directions: Tensor) -> Tensor:
    """Let tokens vote, by the size of their scores, for each anchor's main direction.

    Parameters
    ----------
    scores
        (B, h, K, T): of each anchor for each token, any sign.
    directions
        int64 (B, K, T); those beyond the last direction bin do not vote.

    Returns
    -------
    int64 (B, h, K), 0 to 7. It has no gradient.
    """
    with torch.no_grad():
        sizes = scores.abs()
        if sizes.itemsize < 4:  # half precision cannot add up thousands
            sizes = sizes.float()
        ballots = sizes.new_zeros(*scores.shape[:3], CLASS_DIRECTION + 1)
        chosen = directions[:, None].expand_as(scores)
        votes = ballots.scatter_add(-1, chosen, sizes)
        return votes[..., :DIRECTION_BINS].argmax(-1)


def by_relative_direction(table: Tensor, directions: Tensor, main: Tensor) -> Tensor:
    """Look up what belongs to each direction, told from an anchor's main direction.

    The table is turned rather than the directions, whose copies for each head would
    take most of the memory.

    Parameters
    ----------
    table
        (10,): of the eight directions, of no direction, and of the class token.
    directions
        int64 (B, K, T).
    main
        int64 (B, h, K).

    Returns
    -------
    (B, h, K, T): ``table[(directions - main) mod 8]``; the last two are not turned.
    """
    bins = torch.arange(DIRECTION_BINS, device=main.device)
    turned = table[(bins - main[..., None]) % DIRECTION_BINS]
    rest = table[DIRECTION_BINS:].expand(*main.shape, -1)
    indices = directions[:, None].expand(-1, main.shape[1], -1, -1)
    return torch.cat([turned, rest], dim=-1).gather(-1, indices)


class PositionAwareAttention(nn.Module):
    """PACA: anchors look at tokens, tokens at anchors, with biases by place."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.distance_bias = nn.Parameter(torch.empty(heads, CLASS_DISTANCE + 1))
        self.direction_bias = nn.Parameter(torch.empty(CLASS_DIRECTION + 1))

    def forward(
        self, tokens: Tensor, anchors: Tensor, places: Places, pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what tokens (B, T, D) and anchors (B, K, D) take from each other.

        ``places`` are those of all T tokens, the class token first; ``pairs`` bool
        (B, K, T) says which may look at each other.
        """
        of_tokens, of_anchors = self._split(tokens), self._split(anchors)
        looks = self._looks(of_tokens, of_anchors, places, pairs)
        to_tokens = self._joined(looks.tokens @ of_anchors[2])
        return to_tokens, self._joined(looks.anchors @ of_tokens[2])

    def looks(
        self, tokens: Tensor, anchors: Tensor, places: Places, pairs: Tensor
    ) -> Looks:
        """Return the weights with which :meth:`forward` mixes."""
        return self._looks(self._split(tokens), self._split(anchors), places, pairs)

    def _looks(
        self, of_tokens: Tensor, of_anchors: Tensor, places: Places, pairs: Tensor
    ) -> Looks:
        scale = of_tokens.shape[-1] ** -0.5
        scores = (of_anchors[0] * scale) @ of_tokens[1].mT
        main = main_directions(scores, places.directions)
        bias = by_relative_direction(self.direction_bias, places.directions, main)
        bias = bias + self._by_distance(places.distances)
        never = ~pairs[:, None]
        to_anchors = (scores + bias).masked_fill(never, NEVER).softmax(-1)
        scores = (of_tokens[0] * scale) @ of_anchors[1].mT
        to_tokens = (scores + bias.mT).masked_fill(never.mT, NEVER).softmax(-1)
        return Looks(to_anchors, to_tokens, main)

    def _by_distance(self, distances: Tensor) -> Tensor:
        """Return the bias (B, h, K, T) of each distance."""
        count, anchors, _ = distances.shape
        table = self.distance_bias[:, None].expand(count, -1, anchors, -1)
        return table.gather(-1, distances[:, None].expand(-1, self.heads, -1, -1))

    def _split(self, tokens: Tensor) -> Tensor:
        """Return queries, keys and values, (3, B, h, T, D/h)."""
        count, length, _ = tokens.shape
        qkv = self.qkv(tokens).view(count, length, 3, self.heads, -1)
        return qkv.permute(2, 0, 3, 1, 4)

    def _joined(self, mixed: Tensor) -> Tensor:
        """Project the heads' (B, h, T, D/h) to (B, T, D)."""
        return self.proj(mixed.transpose(1, 2).flatten(2))


class PamaBlock(nn.Module):
    """A transformer block whose weights tokens and anchors share."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = NORM_LAYER(dim)
        self.attn = PositionAwareAttention(dim, heads)
        self.norm2 = NORM_LAYER(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(
        self, tokens: Tensor, anchors: Tensor, places: Places, pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, D) and anchors (B, K, D) after the block."""
        # The residual is taken after the norm, unlike in a ViT.
        tokens, anchors = self.norm1(tokens), self.norm1(anchors)
        to_tokens, to_anchors = self.attn(tokens, anchors, places, pairs)
        tokens, anchors = tokens + to_tokens, anchors + to_anchors
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens, anchors + self.mlp(self.norm2(anchors))

    def looks(
        self, tokens: Tensor, anchors: Tensor, places: Places, pairs: Tensor
    ) -> Looks:
        """Return who looks at whom in this block."""
        return self.attn.looks(self.norm1(tokens), self.norm1(anchors), places, pairs)


def with_class_token(places: Places, *, compat: bool) -> tuple[Places, Tensor]:
    """Put the class token first; return all places, and who may look at whom.

    The class token has bins of its own, and padding lies in no direction, so that it
    has no vote. As published the class token has the mean bins of each anchor's row,
    rounded down, and looks at padded anchors too.

    Returns
    -------
    Places
        Of T = 1 + L tokens.
    Tensor
        bool (B, K, T).
    """
    anchors, real = places.real_anchors[:, :, None], places.real_tokens
    directions = places.directions
    if compat:
        distance = places.distances.double().mean(-1, keepdim=True).long()
        direction = places.directions.double().mean(-1, keepdim=True).long()
        first = torch.ones_like(anchors)
    else:
        distance = torch.full_like(places.distances[..., :1], CLASS_DISTANCE)
        direction = torch.full_like(places.directions[..., :1], CLASS_DIRECTION)
        directions = directions.masked_fill(~real[:, None], NO_DIRECTION)
        first = anchors
    pairs = torch.cat([first, anchors & real[:, None]], dim=-1)
    everywhere = replace(
        places,
        distances=torch.cat([distance, places.distances], dim=-1),
        directions=torch.cat([direction, directions], dim=-1),
        real_tokens=torch.cat([torch.ones_like(real[:, :1]), real], dim=-1),
    )
    return everywhere, pairs


class PamaEncoder(nn.Module):
    """Tile embeddings in; tokens, a class token for the slide, and anchors out."""

    def __init__(self, spec: PamaSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Linear(spec.feature_dim, spec.dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, spec.dim))
        self.anchor_token = nn.Parameter(torch.empty(1, 1, spec.dim))
        self.blocks = nn.ModuleList(
            PamaBlock(spec.dim, spec.heads) for _ in range(spec.depth)
        )
        self.norm = NORM_LAYER(spec.dim)
        self.feature_mean: Tensor
        self.feature_std: Tensor
        self.register_buffer("feature_mean", torch.zeros(spec.feature_dim))
        self.register_buffer("feature_std", torch.ones(spec.feature_dim))

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Take embeddings less ``mean`` (C,), over ``std`` (C,) where that is not 0.

        So that encoders of tiles with large and with small numbers serve alike, and the
        error of a tile is 1 where nothing was learned of it.
        """
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 0, std, 1.0))

    def scaled(self, bags: BagTensors) -> Tensor:
        """Return tiles as the model takes and predicts them, (B, L, C).

        Zeros stand in the padding, whatever stood there.
        """
        scaled = (bags.features - self.feature_mean) / self.feature_std
        return scaled.masked_fill(~bags.places.real_tokens[..., None], 0.0)

    def forward(
        self, features: Tensor, places: Places, *, anchor_scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Encode tiles.

        Parameters
        ----------
        features
            (B, L, C), see :meth:`scaled`.
        places
            Of the L tiles.
        anchor_scale
            Factor of the anchors' common first vector.

        Returns
        -------
        Tensor
            (B, 1 + L, D): the class token, then the tiles.
        Tensor
            (B, K, D): the anchors.
        """
        tokens, anchors = self._first(features, places, anchor_scale)
        everywhere, pairs = with_class_token(places, compat=self.spec.compat)
        for block in self.blocks:
            tokens, anchors = block(tokens, anchors, everywhere, pairs)
        return self.norm(tokens), self.norm(anchors)

    def encode(self, bags: BagTensors) -> tuple[Tensor, Tensor]:
        """Encode all tiles of bags: tokens (B, 1 + L, D) and anchors (B, K, D)."""
        return self(self.scaled(bags), bags.places)

    def looks(self, bags: BagTensors) -> list[Looks]:
        """Return who looks at whom in each block, of all tiles of bags."""
        tokens, anchors = self._first(self.scaled(bags), bags.places, 1.0)
        everywhere, pairs = with_class_token(bags.places, compat=self.spec.compat)
        found = []
        for block in self.blocks:
            assert isinstance(block, PamaBlock)
            found.append(block.looks(tokens, anchors, everywhere, pairs))
            tokens, anchors = block(tokens, anchors, everywhere, pairs)
        return found

    def _first(
        self, features: Tensor, places: Places, anchor_scale: float
    ) -> tuple[Tensor, Tensor]:
        count, number = places.real_anchors.shape
        class_token = self.cls_token.expand(count, -1, -1)
        tokens = torch.cat([class_token, self.embed(features)], dim=1)
        return tokens, (self.anchor_token * anchor_scale).expand(count, number, -1)


class PamaDecoder(nn.Module):
    """Mask tokens in, embeddings of every tile out; places are all it has to go by."""

    def __init__(self, spec: PamaSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Linear(spec.dim, spec.decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, spec.decoder_dim))
        self.blocks = nn.ModuleList(
            PamaBlock(spec.decoder_dim, spec.decoder_heads)
            for _ in range(spec.decoder_depth)
        )
        self.norm = NORM_LAYER(spec.decoder_dim)
        self.head = nn.Linear(spec.decoder_dim, spec.feature_dim)

    def forward(
        self, latent: Tensor, anchors: Tensor, places: Places, masking: BagMasking
    ) -> Tensor:
        """Predict the embedding of every tile, (B, L, C).

        Parameters
        ----------
        latent
            (B, 1 + L_keep, D) of the class token and the visible tiles.
        anchors
            (B, K, D).
        places
            Of all L tiles.
        masking
            Which were visible.
        """
        tokens, anchors = self.embed(latent), self.embed(anchors)
        visible = gather_tokens(tokens[:, 1:], masking.rank)
        mask_token = self.mask_token.to(visible.dtype)
        tiles = torch.where(masking.hidden[..., None], mask_token, visible)
        tokens = torch.cat([tokens[:, :1], tiles], dim=1)
        everywhere, pairs = with_class_token(places, compat=self.spec.compat)
        for block in self.blocks:
            tokens, anchors = block(tokens, anchors, everywhere, pairs)
        return self.head(self.norm(tokens)[:, 1:])


@dataclass(frozen=True, eq=False)
class BagMasking:
    """Which tiles of each bag the encoder sees; bags may see different numbers."""

    ids_keep: Tensor
    """int64 (B, L_keep): the visible tiles, in the encoder's order."""
    real_keep: Tensor
    """bool (B, L_keep): the rest is padding."""
    hidden: Tensor
    """bool (B, L), True = not seen; padding is never seen."""
    rank: Tensor
    """int64 (B, L): where a visible tile stands in ``ids_keep``; 0 for hidden ones."""


def mask_bags(noise: Tensor, real: Tensor, keep: Tensor) -> BagMasking:
    """Keep the ``keep`` (B,) real ones with the least noise (B, L) of each bag.

    What stands in padding does not matter.
    """
    order = noise.masked_fill(~real, torch.inf).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    places = torch.arange(int(keep.max()), device=noise.device)
    hidden = rank >= keep[:, None]
    return BagMasking(
        ids_keep=order[:, : len(places)],
        real_keep=places < keep[:, None],
        hidden=hidden,
        rank=rank.masked_fill(hidden, 0),
    )


def drop_anchors(
    places: Places, share: float, noise: Tensor, *, compat: bool = False
) -> Places:
    """Drop a share of each bag's anchors: those with the most noise (B, K).

    One at least stays. As published padded anchors count too.
    """
    real = torch.ones_like(places.real_anchors) if compat else places.real_anchors
    # A hair more, so that 4.999 of 5 are 5.
    keep = (real.sum(1) * (1 - share) + 1e-6).long().clamp(min=1)
    kept = mask_bags(noise, real, keep)
    return places.of_anchors(kept.ids_keep, kept.real_keep)


@dataclass(frozen=True, eq=False)
class PamaOutput:
    """What one forward pass gives."""

    loss: Tensor
    """() at least float32: mean over the bags of their hidden tiles' mean error."""
    prediction: Tensor
    """(B, L, C): the embeddings of all tiles, see :meth:`PamaEncoder.scaled`."""
    mask: Tensor
    """bool (B, L), True = hidden and counted; never padding."""


class Pama(nn.Module):
    """An encoder that sees few tiles of a slide and a decoder that predicts the rest.

    Made on torch's default device; under ``torch.device("meta")`` it has shapes only.

    Parameters
    ----------
    spec
        Its shape.
    generator
        Of the initial weights; None: torch's own.
    """

    def __init__(
        self, spec: PamaSpec, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = PamaEncoder(spec)
        self.decoder = PamaDecoder(spec)
        if self.encoder.cls_token.device.type != "meta":
            init_pama(self, generator=generator)

    def forward(
        self,
        bags: BagTensors,
        *,
        mask_ratio: float,
        noise: Tensor,
        anchor_dropout: float = 0.0,
        anchor_noise: Tensor | None = None,
    ) -> PamaOutput:
        """Hide, encode, decode and compare.

        The loss splits over the batch: it is the mean of the bags' own losses.

        Parameters
        ----------
        bags
            A padded batch; each bag has two tiles at least.
        mask_ratio
            Share of each bag's tiles to hide; one at least is hidden, and one not.
        noise
            (B, L) float, uniform: the tiles with the most noise are hidden.
        anchor_dropout
            Share of each bag's anchors that do not take part, while training.
        anchor_noise
            (B, K) float, uniform: the anchors with the most noise are dropped. Needed
            where some are.
        """
        tiles, places, scale = self.encoder.scaled(bags), bags.places, 1.0
        if self.training and anchor_dropout:
            assert anchor_noise is not None
            compat = self.spec.compat
            places = drop_anchors(places, anchor_dropout, anchor_noise, compat=compat)
            scale = 1 / (1 - anchor_dropout) if compat else 1.0
        real = bags.places.real_tokens
        counted = torch.ones_like(real) if self.spec.compat else real
        masking = mask_bags(noise, counted, self._visible(counted, mask_ratio))
        seen = places.of_tokens(masking.ids_keep, masking.real_keep)
        visible = gather_tokens(tiles, masking.ids_keep)
        latent, anchors = self.encoder(visible, seen, anchor_scale=scale)
        prediction = self.decoder(latent, anchors, places, masking)
        mask = masking.hidden & counted
        return PamaOutput(bag_loss(prediction, tiles, mask), prediction, mask)

    def _visible(self, counted: Tensor, mask_ratio: float) -> Tensor:
        """Return how many tiles of each bag are seen, int64 (B,)."""
        tiles = counted.sum(1)
        if int(tiles.min()) < 2 or not 0 < mask_ratio < 1:
            raise ValueError(
                f"Nothing is left to see or to hide of {int(tiles.min())} tiles at a "
                f"mask ratio of {mask_ratio}. Give bags of two tiles or more, and a "
                "ratio such as 0.75."
            )
        if self.spec.compat:
            return (tiles * (1 - mask_ratio)).long().clamp(min=1)
        hidden = (tiles * mask_ratio).round().long()
        return (tiles - hidden).clamp(min=1).minimum(tiles - 1)


def bag_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the bags of their hidden tiles' mean squared error.

    Parameters
    ----------
    prediction, target
        (B, L, C).
    mask
        bool (B, L), True = hidden; one at least in each bag.
    """
    wide = target.to(torch.promote_types(target.dtype, torch.float32))
    error = (prediction.to(wide.dtype) - wide).square().mean(-1)
    return ((error * mask).sum(1) / mask.sum(1)).mean()


def init_pama(model: Pama, *, generator: torch.Generator | None = None) -> None:
    """Set all weights: matrices as in MAE, biases by place normal, tokens small."""
    init_transformer(model, generator=generator)
    for module in model.modules():
        if isinstance(module, PositionAwareAttention):
            nn.init.normal_(module.distance_bias, generator=generator)
            nn.init.normal_(module.direction_bias, generator=generator)
    encoder = model.encoder
    for token in (encoder.cls_token, encoder.anchor_token, model.decoder.mask_token):
        nn.init.normal_(token, std=0.02, generator=generator)
