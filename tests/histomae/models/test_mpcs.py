"""MPCS: the loss is the published one, both sides count, and in full precision."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from histomae.models.mpcs import (
    Contrastive,
    Projector,
    concern,
    found_partners,
    nt_xent,
)
from histomae.models.vit import EncoderSpec

SPEC = EncoderSpec(tile_px=24, patch_size=8, embed_dim=24, depth=1, num_heads=3)


def points(count, dim=5, seed=0):
    """Return two sides of unit vectors in float64."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return functional.normalize(made, dim=-1)


def by_hand(first, second, temperature, groups=None):
    """METHODS 5.4, one point and one other at a time."""
    count = len(first)
    rows = [*first, *second]
    total = 0.0
    for i, point in enumerate(rows):
        partner = (i + count) % (2 * count)
        below = 0.0
        for k, other in enumerate(rows):
            same_place = k % count == i % count
            same_group = groups is not None and groups[k % count] == groups[i % count]
            if k != i and (same_place or not same_group):
                below += math.exp(float(point @ other) / temperature)
        above = math.exp(float(point @ rows[partner]) / temperature)
        total -= math.log(above / below)
    return total / (2 * count)


def build(**how):
    generator = torch.Generator().manual_seed(0)
    return Contrastive(SPEC, projector_dims=(16, 8), generator=generator, **how)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 1, 0]])
def test_the_loss_is_the_plain_formula(temperature, groups):
    first, second = points(6)
    labels = None if groups is None else torch.tensor(groups)
    ours = nt_xent(first, second, temperature=temperature, groups=labels)
    assert ours.item() == pytest.approx(
        by_hand(first, second, temperature, groups), rel=1e-12
    )


def test_both_sides_count_alike_and_the_order_of_places_does_not():
    first, second = points(7)
    loss = nt_xent(first, second, temperature=0.1)
    torch.testing.assert_close(nt_xent(second, first, temperature=0.1), loss)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    mixed = nt_xent(first[order], second[order], temperature=0.1)
    torch.testing.assert_close(mixed, loss)


def test_at_a_high_temperature_all_others_are_as_likely():
    first, second = points(9)
    loss = nt_xent(first, second, temperature=1e9)
    assert loss.item() == pytest.approx(math.log(2 * 9 - 1), rel=1e-8)


def test_the_gradient_is_that_of_small_differences():
    first, second = points(4)
    assert torch.autograd.gradcheck(
        lambda a, b: nt_xent(a, b, temperature=0.3),
        (first.clone().requires_grad_(), second.clone().requires_grad_()),
    )


def test_places_of_one_patient_are_not_told_apart():
    """Only the partner is left where all are of one group: nothing is to be learned."""
    first, second = points(5)
    alone = nt_xent(first, second, temperature=0.1, groups=torch.zeros(5))
    assert alone.item() == pytest.approx(0, abs=1e-12)


def test_partners_that_are_found():
    first = torch.eye(4)
    assert found_partners(first, first).item() == 1
    assert found_partners(first, first[[1, 0, 2, 3]]).item() == 0.5
    assert found_partners(first, first.roll(1, 0)).item() == 0


# ---- projector and model


def test_the_projector_is_as_published():
    kinds = [type(layer) for layer in Projector(24, (16, 12, 8))]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Linear, nn.BatchNorm1d]
    projector = Projector(24, (16, 8))
    assert all(
        layer.bias is None for layer in projector if hasattr(layer, "in_features")
    )
    assert not projector[-1].affine
    found = projector(torch.randn(10, 24))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(10))


def test_batch_norm_sees_both_sides_of_all_pairs():
    model = build()
    vectors = torch.randn(6, 2, 24, generator=torch.Generator().manual_seed(1))
    loss, logged = model.compare(vectors, temperature=0.1)
    together = model.projector(vectors.reshape(12, 24)).view(6, 2, 8)
    expected = by_hand(*together.detach().double().unbind(1), 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    partners = (together[:, 0] * together[:, 1]).sum(1).mean()
    torch.testing.assert_close(logged["partner_likeness"], partners)
    cosines = together[:, 0] @ together[:, 1].T
    others = (cosines.sum() - cosines.trace()) / 30
    torch.testing.assert_close(logged["others_likeness"], others)


def test_what_is_compared_is_in_full_precision():
    model = build()
    vectors = torch.randn(6, 2, 24, generator=torch.Generator().manual_seed(1))
    plain, _ = model.compare(vectors, temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = model.compare(vectors, temperature=0.01)
    assert half.dtype == torch.float32
    assert torch.equal(half, plain)


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_a_picture_is_encoded_alone(pooling):
    model = build(pooling=pooling)
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    found = model.encode(images)
    tokens = model.encoder.forward_features(images)
    expected = tokens[:, 0] if pooling == "class_token" else tokens[:, 1:].mean(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.encode(images[1:2]), found[1:2])


def test_weights_come_from_the_generator():
    one, other = build(), build()
    for weight, same in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_a_collapse_is_said_in_words():
    assert "look alike" in concern({"others_likeness": 0.99})
    assert concern({"others_likeness": 0.3}) == ""
    assert concern({}) == ""
