"""The learning rate's three landmarks, and who decays."""

import math

import pytest
import torch

from histomae.learn.schedule import lr_at, parameter_groups, peak_lr
from histomae.models.mae import MaskedAutoencoder
from histomae.models.vit import EncoderSpec

PLAN = {"total_steps": 100, "warmup_steps": 10, "peak": 4e-3, "minimum": 1e-5}


def test_landmarks():
    assert lr_at(0, **PLAN) == 0
    assert lr_at(10, **PLAN) == pytest.approx(4e-3)
    assert lr_at(55, **PLAN) == pytest.approx((4e-3 + 1e-5) / 2)
    assert lr_at(100, **PLAN) == pytest.approx(1e-5)


def test_every_step_follows_the_closed_form():
    for step in range(101):
        if step < 10:
            expected = 4e-3 * step / 10
        else:
            angle = math.pi * (step - 10) / 90
            expected = 1e-5 + (4e-3 - 1e-5) * (1 + math.cos(angle)) / 2
        assert lr_at(step, **PLAN) == pytest.approx(expected, rel=1e-12)


def test_warm_up_may_be_nothing_a_fraction_or_everything():
    assert lr_at(0, total_steps=10, warmup_steps=0, peak=1.0) == 1.0
    assert lr_at(1, total_steps=10, warmup_steps=2.5, peak=1.0) == pytest.approx(0.4)
    assert lr_at(10, total_steps=10, warmup_steps=10, peak=1.0, minimum=0.1) == 0.1


def test_the_peak_is_per_256_crops():
    assert peak_lr(1.5e-4, 256) == 1.5e-4
    assert peak_lr(1.5e-4, 32) == pytest.approx(1.5e-4 / 8)


def test_only_matrices_decay():
    model = MaskedAutoencoder(
        EncoderSpec(32, 8, 16, 1, 2), decoder_dim=16, decoder_depth=1, decoder_heads=2
    )
    decaying, rest = parameter_groups(model, 0.05)
    names = {id(w): name for name, w in model.named_parameters()}
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    assert {names[id(w)] for w in decaying["params"]} == {
        name
        for name, w in model.named_parameters()
        if name.endswith(".weight") and w.ndim > 1
    }
    kept = {names[id(w)] for w in rest["params"]}
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.norm.bias"} <= kept
    assert not any("pos_embed" in name for name in kept)  # frozen: in neither
    trained = sum(w.requires_grad for w in model.parameters())
    assert len(decaying["params"]) + len(rest["params"]) == trained


def test_positions_that_are_learned_do_not_decay():
    model = torch.nn.Module()
    model.pos_embed = torch.nn.Parameter(torch.ones(1, 5, 8))
    assert [len(g["params"]) for g in parameter_groups(model, 0.05)] == [0, 1]
