from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from histomae.models.attention import (
    capture_attention,
    class_attention,
    iter_attention,
    rollout,
)
from histomae.models.vit import EncoderSpec, build_encoder

SPEC = EncoderSpec(tile_px=32, patch_size=8, embed_dim=24, depth=3, num_heads=3)


@pytest.fixture
def encoder():
    return build_encoder(SPEC, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def attentions(encoder, images):
    return capture_attention(encoder, images)


def slow_attention(encoder, images):
    """What timm itself multiplies values with, seen where it drops attention out."""
    seen = []
    for block in encoder.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        encoder.forward_features(images)
    return seen


def test_attention_is_what_timm_computes(encoder, images, attentions):
    expected = slow_attention(encoder, images)

    assert len(attentions) == 3
    for ours, timms in zip(attentions, expected, strict=True):
        assert ours.shape == (2, 3, 17, 17)
        torch.testing.assert_close(ours, timms, rtol=0, atol=1e-6)


def test_attention_is_a_softmax_of_queries_and_keys(encoder, images, attentions):
    tokens = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    tokens = torch.cat([encoder.cls_token.expand(2, -1, -1), tokens], dim=1)
    first = encoder.blocks[0]
    qkv = first.attn.qkv(first.norm1(tokens)).detach().numpy()

    for n, head, t in np.ndindex(2, 3, 17):
        query = qkv[n, t, head * 8 : head * 8 + 8]
        keys = qkv[n, :, 24 + head * 8 : 24 + head * 8 + 8]
        scores = np.exp([query @ key / np.sqrt(8) for key in keys])
        np.testing.assert_allclose(
            attentions[0][n, head, t], scores / scores.sum(), rtol=0, atol=1e-6
        )


def test_rows_sum_to_one(attentions):
    for attention in attentions:
        assert (attention >= 0).all()
        # 17 float32 numbers that sum to 1
        torch.testing.assert_close(
            attention.sum(dim=-1), torch.ones(2, 3, 17), rtol=0, atol=1e-6
        )


def test_the_encoder_is_left_as_it_was(encoder, images):
    fused = [block.attn.fused_attn for block in encoder.blocks]
    before = encoder(images)

    capture_attention(encoder, images)

    assert fused == [True] * 3
    assert [block.attn.fused_attn for block in encoder.blocks] == fused
    assert not any(module._forward_hooks for module in encoder.modules())
    assert torch.equal(encoder(images), before)


def test_threads_may_share_an_encoder(encoder, images, attentions):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: capture_attention(encoder, images), range(8)))

    for result in results:
        for ours, expected in zip(result, attentions, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_a_few_blocks_suffice(encoder, images, attentions):
    first = capture_attention(encoder, images, num_blocks=1)

    assert len(first) == 1
    assert torch.equal(first[0], attentions[0])


def test_no_gradients_are_kept(encoder, images):
    assert not any(a.requires_grad for a in iter_attention(encoder, images))
    assert torch.is_grad_enabled()


def test_rollout_equals_plain_loops(attentions):
    result = rollout(attentions)

    for n in range(2):
        expected = np.eye(17)
        for attention in attentions:
            step = np.zeros((17, 17))
            for t, u in np.ndindex(17, 17):
                mean = sum(attention[n, h, t, u].item() for h in range(3)) / 3
                step[t, u] = 0.5 * mean + (0.5 if t == u else 0)
            step /= step.sum(axis=1, keepdims=True)
            expected = step @ expected
        np.testing.assert_allclose(result[n], expected, rtol=0, atol=1e-6)


def test_rollout_goes_from_the_last_block_to_the_first():
    # Block 1: token 0 looks at 1. Block 2: token 0 looks at 2. Then token 0 draws on
    # itself, on 1 and on 2; in the wrong order the shares differ.
    first, second = torch.eye(3), torch.eye(3)
    first[0], second[0] = torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1])
    second[2], first[2] = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])

    result = rollout([first[None, None], second[None, None]])

    # token 0: half from itself (half itself, half 1), half from 2 (half itself, half 1)
    assert result[0, 0].tolist() == [0.25, 0.5, 0.25]


def test_rollout_takes_an_iterator(encoder, images, attentions):
    assert torch.equal(rollout(iter_attention(encoder, images)), rollout(attentions))
    with pytest.raises(ValueError, match="Give one block"):
        rollout([])


def test_maps_of_the_class_token(attentions):
    def ask(**how):
        return class_attention(attentions, grid_size=(4, 4), **how)

    assert torch.equal(ask(head=1), attentions[-1][:, 1, 0, 1:].reshape(2, 4, 4))
    assert torch.equal(
        ask(head=2, block=0), attentions[0][:, 2, 0, 1:].reshape(2, 4, 4)
    )
    assert torch.equal(ask(block=-3, head=0), ask(block=0, head=0))
    assert torch.equal(ask(), attentions[-1].mean(dim=1)[:, 0, 1:].reshape(2, 4, 4))
    assert torch.equal(
        ask(head="rollout"), rollout(attentions)[:, 0, 1:].reshape(2, 4, 4)
    )
    assert torch.equal(
        ask(head="rollout", block=1), rollout(attentions[:2])[:, 0, 1:].reshape(2, 4, 4)
    )


def test_registers_are_left_out():
    attention = torch.rand(1, 2, 3 + 6, 3 + 6)

    result = class_attention([attention], head=0, num_prefix_tokens=3, grid_size=(2, 3))

    assert torch.equal(result[0].flatten(), attention[0, 0, 0, 3:])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"block": 3}, "no block 3. Choose from 0 to 2"),
        ({"block": -4}, "no block -4"),
        ({"head": 3}, "no head 3. Choose from 0 to 2"),
        ({"head": -1}, "no head -1"),
        ({"head": "max"}, "no head 'max'"),
    ],
)
def test_what_is_not_there_is_refused(attentions, how, message):
    with pytest.raises(ValueError, match=message):
        class_attention(attentions, grid_size=(4, 4), **how)
