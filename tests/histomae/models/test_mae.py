from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from histomae.errors import ConfigError
from histomae.models.mae import MaskedAutoencoder, masked_loss, patch_error
from histomae.models.patches import patchify, random_mask, unpatchify
from histomae.models.vit import EncoderSpec

SPEC = EncoderSpec(tile_px=24, patch_size=8, embed_dim=24, depth=2, num_heads=3)


def build(*, norm_pix=True, seed=0):
    return MaskedAutoencoder(
        SPEC,
        decoder_dim=16,
        decoder_depth=2,
        decoder_heads=2,
        norm_pix=norm_pix,
        generator=torch.Generator().manual_seed(seed),
    )


def stir(model):
    """Give biases, norms and tokens values that would show if they were forgotten."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos_embed" not in name and parameter.ndim != 2:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def model():
    return build()


@pytest.fixture
def images():
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return torch.rand(3, 9, generator=torch.Generator().manual_seed(2))


# The oracle: METHODS 1.1 and 1.2 in numpy, one token at a time ------------------


def layer_norm(x, weights, name):
    normal = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def gelu(x):
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def attend(tokens, weights, name, heads):
    dim = len(tokens[0])
    width = dim // heads
    qkv = [linear(token, weights, f"{name}.qkv") for token in tokens]
    out = []
    for t in range(len(tokens)):
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            query = qkv[t][:dim][part]
            keys = [one[dim : 2 * dim][part] for one in qkv]
            values = [one[2 * dim :][part] for one in qkv]
            scores = np.exp([query @ key / math.sqrt(width) for key in keys])
            scores /= scores.sum()
            mixed.append(sum(s * v for s, v in zip(scores, values, strict=True)))
        out.append(linear(np.concatenate(mixed), weights, f"{name}.proj"))
    return out


def block(tokens, weights, name, heads):
    normal = [layer_norm(t, weights, f"{name}.norm1") for t in tokens]
    attended = attend(normal, weights, f"{name}.attn", heads)
    tokens = [t + a for t, a in zip(tokens, attended, strict=True)]
    out = []
    for token in tokens:
        hidden = linear(
            layer_norm(token, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"
        )
        out.append(token + linear(gelu(hidden), weights, f"{name}.mlp.fc2"))
    return out


def position(x, y, dim):
    row = []
    for place in (x, y):
        angles = [place * 10000 ** (-j / (dim / 4)) for j in range(dim // 4)]
        row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return np.array(row)


def oracle(image, noise, ratio, weights, *, norm_pix, share=1.0):
    """Return prediction (K, 192), hidden (K,) and summed error of one image."""
    p, side = 8, 3
    order = sorted(range(9), key=lambda i: noise[i])
    keep = order[: 9 - round(9 * ratio)]
    shown = list(range(9))
    if share < 1:
        shown = order[: len(keep) + max(1, round((9 - len(keep)) * share))]
    pixels = []
    for row in range(side):
        for col in range(side):
            cut = image[:, row * p : (row + 1) * p, col * p : (col + 1) * p]
            pixels.append(cut)
    kernel = weights["encoder.patch_embed.proj.weight"]
    bias = weights["encoder.patch_embed.proj.bias"]
    tokens = [weights["encoder.cls_token"][0, 0]]
    for i in keep:
        embedded = np.array([(kernel[d] * pixels[i]).sum() for d in range(24)])
        tokens.append(embedded + bias + position(i % side, i // side, 24))
    for b in range(2):
        tokens = block(tokens, weights, f"encoder.blocks.{b}", 3)
    tokens = [layer_norm(t, weights, "encoder.norm") for t in tokens]
    tokens = [linear(t, weights, "decoder.embed") for t in tokens]
    full = [tokens[0]]
    for i in shown:
        known = (
            tokens[1 + keep.index(i)]
            if i in keep
            else weights["decoder.mask_token"][0, 0]
        )
        full.append(known + position(i % side, i // side, 16))
    for b in range(2):
        full = block(full, weights, f"decoder.blocks.{b}", 2)
    prediction = np.array(
        [
            linear(layer_norm(t, weights, "decoder.norm"), weights, "decoder.head")
            for t in full[1:]
        ]
    )
    error = 0.0
    for place, i in enumerate(shown):
        if i in keep:
            continue
        target = pixels[i].transpose(1, 2, 0).reshape(-1)
        if norm_pix:
            target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
        error += ((prediction[place] - target) ** 2).mean()
    return prediction, np.array([i not in keep for i in shown]), error


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize(("ratio", "share"), [(0.75, 1.0), (0.3, 1.0), (0.75, 0.4)])
def test_loss_prediction_and_mask_equal_plain_loops(
    images, noise, ratio, share, norm_pix
):
    model = stir(build(norm_pix=norm_pix)).double()
    # the tables are stored as float32; the oracle reckons them exactly
    tolerance = 2e-6
    weights = {k: v.detach().numpy() for k, v in model.state_dict().items()}

    out = model(images.double(), mask_ratio=ratio, noise=noise, decoded_share=share)

    errors = 0.0
    for n in range(3):
        prediction, hidden, error = oracle(
            images[n].double().numpy(),
            noise[n].tolist(),
            ratio,
            weights,
            norm_pix=norm_pix,
            share=share,
        )
        np.testing.assert_allclose(
            out.prediction[n].detach(), prediction, rtol=0, atol=tolerance
        )
        assert out.mask[n].tolist() == hidden.tolist()
        errors += error
    assert out.loss.item() == pytest.approx(
        errors / out.mask.sum().item(), rel=0, abs=tolerance
    )


def test_loss_of_two_patches_by_hand():
    prediction = torch.tensor([[[1.0, 2.0], [5.0, 5.0]]])
    target = torch.tensor([[[0.0, 0.0], [2.0, 1.0]]])

    assert patch_error(prediction, target).tolist() == [[2.5, 12.5]]
    hidden = torch.tensor([[False, True]])
    assert masked_loss(prediction, target, mask=hidden).item() == 12.5
    both = torch.tensor([[True, True]])
    assert masked_loss(prediction, target, mask=both).item() == 7.5


def test_visible_predictions_do_not_count(model, images, noise):
    out = model(images, mask_ratio=0.75, noise=noise)
    target = model.target(images)
    corrupted = torch.where(out.mask[..., None], out.prediction, 1e6)

    assert masked_loss(corrupted, target, mask=out.mask) == out.loss


def test_the_loss_splits_over_the_batch(images, noise):
    model = build().double()
    whole = model(images.double(), mask_ratio=0.75, noise=noise).loss
    parts = [
        model(images[n : n + 1].double(), mask_ratio=0.75, noise=noise[n : n + 1]).loss
        for n in range(3)
    ]

    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)


def test_predicting_zero_costs_nearly_one(model, images, noise):
    target = model.target(images)
    mask = random_mask(noise, 0.75).mask
    entries = target.shape[-1]

    loss = masked_loss(torch.zeros_like(target), target, mask=mask)

    # unbiased variance 1, so the mean square is (n - 1) / n; noise images vary by 1
    assert loss.item() == pytest.approx((entries - 1) / entries, abs=1e-5)


def test_everything_learns_but_the_positions(images, noise):
    model = stir(build())
    model(images, mask_ratio=0.75, noise=noise).loss.backward()

    for name, parameter in model.named_parameters():
        if "pos_embed" in name:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_hidden_pixels_reach_the_target_only(images, noise):
    model = build().double()
    masking = random_mask(noise, 0.75)
    patches = patchify(images.double(), 8)
    patches = torch.where(masking.mask[..., None], patches.flip(-1) * 3 + 1, patches)
    changed = unpatchify(patches, 8, (24, 24))
    target = model.target(images.double())

    gradients = []
    latents = []
    for inputs in (images.double(), changed):
        model.zero_grad()
        latents.append(model.forward_encoder(inputs, masking.ids_keep))
        prediction = model.forward_decoder(latents[-1], masking.ids_restore)
        masked_loss(prediction, target, mask=masking.mask).backward()
        gradients.append(model.encoder.patch_embed.proj.weight.grad.clone())

    assert torch.equal(*latents)
    assert torch.equal(*gradients)
    assert not torch.equal(model.target(changed), target)


def test_a_tiny_model_learns_one_batch_by_heart(noise):
    x, y = torch.arange(24.0), torch.arange(24.0)[:, None]
    waves = [
        torch.sin(x / 3) + torch.cos(y / 4),
        torch.sin(x / 5 + 1) + torch.cos(y / 2),
    ]
    batch = torch.stack([wave.expand(3, -1, -1) for wave in waves])
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))

    for _ in range(300):
        loss = model(batch, mask_ratio=0.75, noise=noise[:2]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.1


def test_autocast_keeps_the_loss_in_float32(model, images, noise):
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, mask_ratio=0.75, noise=noise)
    out.loss.backward()
    exact = model(images, mask_ratio=0.75, noise=noise)

    assert out.loss.dtype == torch.float32
    assert out.prediction.dtype == torch.bfloat16
    # bfloat16 has 8 bits: predictions near 1 are off by a few parts in 256
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=0.01)
    assert all(
        torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad
    )


def test_hiding_nothing_is_refused(model, images, noise):
    with pytest.raises(ValueError, match="hides none of 9 patches"):
        model(images, mask_ratio=0.0, noise=noise)


def test_hiding_everything_works(model, images, noise):
    out = model(images, mask_ratio=1.0, noise=noise)

    assert out.mask.all()
    assert torch.isfinite(out.loss)


def test_the_same_generator_gives_the_same_model(model):
    again, other = build(), build(seed=1)

    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not torch.equal(other.decoder.mask_token, model.decoder.mask_token)
    assert not model.decoder.pos_embed.requires_grad


def test_on_meta_there_are_shapes_and_no_numbers(model):
    with torch.device("meta"):
        bare = build()

    assert all(p.device.type == "meta" for p in bare.parameters())
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (bare, model)]
    assert shapes[0] == shapes[1]


def test_the_papers_size():
    with torch.device("meta"):
        model = MaskedAutoencoder(
            EncoderSpec(224, 16, 384, 12, 6),
            decoder_dim=192,
            decoder_depth=4,
            decoder_heads=3,
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 23.7


def test_an_impossible_decoder_is_refused():
    with pytest.raises(ConfigError, match="decoder_dim: 18 must be"):
        MaskedAutoencoder(SPEC, decoder_dim=18, decoder_depth=1, decoder_heads=2)
    with pytest.raises(ConfigError, match="decoder_depth: 0"):
        MaskedAutoencoder(SPEC, decoder_dim=16, decoder_depth=0, decoder_heads=2)
