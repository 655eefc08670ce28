"""Attention maps: what the encoder looked at.

The weights are computed anew from each block's queries and keys, beside the block's
own fused attention, which never tells them. Nothing in the encoder is switched or
hooked, so that several threads may ask the same encoder at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from histomae.models.vit import embed_visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor, nn

Head = int | Literal["mean", "rollout"]
#: Whose looks are shown: the class token's, or those of all patches on average, which
#: is what models that are pooled by the mean of their patches have been trained for.
Query = Literal["class_token", "mean"]


def rollout(attentions: Iterable[Tensor]) -> Tensor:
    """Multiply attention through the blocks, each averaged with the residual.

    ``R = A_L ... A_2 A_1`` with ``A = norm(0.5 * mean over heads + 0.5 * identity)``;
    norm makes rows sum to 1. Row t of R says from which input tokens the output token t
    draws.

    Parameters
    ----------
    attentions
        (N, heads, T, T) per block, first block first. May be an iterator such as
        :func:`iter_attention`: one block at a time is held.

    Returns
    -------
    Tensor
        (N, T, T), rows sum to 1.
    """
    product: Tensor | None = None
    for attention in attentions:
        identity = torch.eye(attention.shape[-1], device=attention.device)
        step = 0.5 * attention.mean(dim=1) + 0.5 * identity
        step = step / step.sum(dim=-1, keepdim=True)
        product = step if product is None else step @ product
    if product is None:
        raise ValueError("There is no attention to multiply. Give one block at least.")
    return product


@torch.no_grad()
def iter_attention(encoder: VisionTransformer, images: Tensor) -> Iterator[Tensor]:
    """Yield the attention of each block in turn, first block first.

    Parameters
    ----------
    encoder
        From :func:`histomae.models.vit.build_encoder`, in eval mode.
    images
        (N, C, H, W) float, normalised.

    Yields
    ------
    Tensor
        (N, heads, T, T); row t sums to 1 over the tokens that token t looks at.
    """
    tokens = embed_visible(encoder, images)
    for block in encoder.blocks:
        yield _attention_weights(block.attn, block.norm1(tokens))
        tokens = block(tokens)


def capture_attention(
    encoder: VisionTransformer, images: Tensor, *, num_blocks: int | None = None
) -> list[Tensor]:
    """Return the attention of the first ``num_blocks`` blocks (None: of all).

    See :func:`iter_attention` for the rest, and prefer it for :func:`rollout`: a ViT-S
    at 224 px has 11 MB of attention per image.
    """
    kept = []
    for attention in iter_attention(encoder, images):
        kept.append(attention)
        if len(kept) == num_blocks:
            break
    return kept


def class_attention(
    attentions: Sequence[Tensor],
    *,
    block: int = -1,
    head: Head = "mean",
    query: Query = "class_token",
    num_prefix_tokens: int = 1,
    grid_size: tuple[int, int],
) -> Tensor:
    """Return how much each patch is looked at.

    Parameters
    ----------
    attentions
        (N, heads, T, T) per block, as :func:`capture_attention` returns them.
    block
        Which block; negative counts from the last. For a rollout: the last block taken.
    head
        A head's number, ``"mean"`` over the heads, or ``"rollout"`` through the blocks.
    query
        Who looks: the ``class_token``, or the patches, on average (``mean``).
    num_prefix_tokens
        Class token and registers, left out of the map.
    grid_size
        Patches (down, across).

    Returns
    -------
    Tensor
        (N, grid_h, grid_w), not negative; with the prefix tokens' share it sums to 1.
    """
    if not -len(attentions) <= block < len(attentions):
        raise ValueError(
            f"There is no block {block}. Choose from 0 to {len(attentions) - 1}."
        )
    block %= len(attentions)
    if head == "rollout":
        weights = rollout(attentions[: block + 1])
    elif head == "mean":
        weights = attentions[block].mean(dim=1)
    else:
        weights = _one_head(attentions[block], head)
    rows = weights[:, :1] if query == "class_token" else weights[:, num_prefix_tokens:]
    return rows[..., num_prefix_tokens:].mean(1).reshape(-1, *grid_size)


def _one_head(attention: Tensor, head: int | str) -> Tensor:
    """Return (N, T, T) of one head of (N, heads, T, T)."""
    heads = attention.shape[1]
    if not isinstance(head, int) or not 0 <= head < heads:
        raise ValueError(
            f"There is no head {head!r}. Choose from 0 to {heads - 1}, 'mean' or "
            "'rollout'."
        )
    return attention[:, head]


def _attention_weights(attn: nn.Module, tokens: Tensor) -> Tensor:
    """Return the softmax that timm's ``Attention`` applies to ``tokens`` (N, T, D)."""
    n, length, _ = tokens.shape
    qkv = attn.qkv(tokens).reshape(n, length, 3, attn.num_heads, -1)  # type: ignore[operator]
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attn.q_norm(query), attn.k_norm(key)  # type: ignore[operator]
    scores = (query * attn.scale) @ key.transpose(-2, -1)
    return scores.float().softmax(dim=-1)
