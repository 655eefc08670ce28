"""Tests of histomae.learn.heads and histomae.learn.choosing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from histomae.events import Step, result_of
from histomae.learn.choosing import BestEpoch
from histomae.learn.heads import LARS_PROBE, LEADERBOARD, fit_head
from histomae.learn.loop import LARS_TRUST
from histomae.learn.probe import fit_validated
from tests.listening import events_of

pytestmark = pytest.mark.usefixtures("one_thread")


def clouds(count=90, *, apart=3.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = apart * np.eye(3, 8)
    return centres[labels] + rng.normal(size=(count, 8)), labels


def fitted(*given, **how):
    """Return the steps of fitting a head, and the head."""
    events, head = events_of(fit_head(*given, num_classes=3, **how))
    return [event for event in events if isinstance(event, Step)], head


@pytest.mark.parametrize(
    "settings", [LARS_PROBE, replace(LEADERBOARD, steps=400)], ids=["lars", "adamw"]
)
def test_a_head_learns_what_can_be_told_apart(settings):
    (x, y), (val_x, val_y), (test_x, test_y) = (clouds(seed=s) for s in range(3))
    settings = replace(settings, batch_size=16, base_lr=max(0.01, settings.base_lr))
    if settings.optimizer == "lars":
        settings = replace(settings, base_lr=160.0)
    _, head = fitted(x, y, val_x, val_y, settings=settings)
    assert (head.logits(test_x).argmax(1) == test_y).mean() > 0.85
    assert head.epoch >= 1


def test_the_leaderboards_learning_rate_is_that_of_any_number_of_pictures():
    x, y = clouds(30)
    settings = replace(LEADERBOARD, steps=8)
    steps, _ = fitted(x, y, x, y, settings=settings)
    assert len(steps) == 8  # one batch of 30 is an epoch
    assert steps[0].lr == pytest.approx(3e-4)
    assert steps[-1].lr < 0.1 * 3e-4  # half a cosine


def test_the_first_step_of_lars_is_that_of_the_equation():
    x, y = clouds(30)
    settings = replace(LARS_PROBE, epochs=1, warmup_epochs=0)
    twin = torch.nn.Linear(8, 3)
    torch.nn.init.trunc_normal_(
        twin.weight, std=0.01, generator=torch.Generator().manual_seed(4)
    )
    torch.nn.init.zeros_(twin.bias)
    normal = torch.nn.BatchNorm1d(8, affine=False, eps=1e-6)
    logits = twin(normal(torch.from_numpy(x).float()))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)).backward()
    weight, grad = twin.weight.detach(), twin.weight.grad
    lr = 0.1 * 30 / 256
    trust = LARS_TRUST * weight.norm() / grad.norm()
    _, head = fitted(x, y, x[:0], y[:0], settings=settings, seed=4)
    moved = head.module[1].weight
    torch.testing.assert_close(moved, weight - lr * trust * grad, rtol=1e-4, atol=1e-6)


def test_a_head_that_gets_no_better_stops_early():
    x, y = clouds(30)
    rng = np.random.default_rng(0)
    val = rng.normal(size=(30, 8)), rng.integers(3, size=30)
    settings = replace(LEADERBOARD, steps=400, base_lr=0.1)
    steps, head = fitted(x, y, *val, settings=settings)
    assert len(steps) < 400
    assert len(steps) >= head.epoch + 0.2 * 400
    settings = replace(settings, patience=None, steps=100)
    steps, _ = fitted(x, y, *val, settings=settings)
    assert len(steps) == 100


def test_the_same_seed_gives_the_same_head():
    x, y = clouds(30)
    settings = replace(LEADERBOARD, steps=10)
    heads = [fitted(x, y, x, y, settings=settings, seed=seed)[1] for seed in (1, 1, 2)]
    first, second, other = (head.logits(x) for head in heads)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


# Which epoch ---------------------------------------------------------------------


def test_the_best_epoch_is_kept_and_of_equals_the_surer_one():
    labels = np.array([0, 1])
    model = torch.nn.Linear(1, 1)
    best = BestEpoch(labels)
    right = np.array([[1.0, 0.0], [0.0, 1.0]])
    wrong = np.array([[0.0, 1.0], [0.0, 1.0]])
    with torch.no_grad():
        kept = []
        for epoch, logits in enumerate([wrong, right, 3 * right, right, wrong], 1):
            model.weight.fill_(epoch)
            kept.append(best.look(model, logits, epoch))
    assert kept == [True, True, True, False, False]
    best.restore(model)
    assert best.epoch == 3
    assert model.weight.item() == 3


def test_without_validation_the_last_epoch_is_kept():
    model = torch.nn.Linear(1, 1)
    best = BestEpoch(np.zeros(0, int))
    for epoch in (1, 2):
        assert best.look(model, np.zeros((0, 2)), epoch)
    best.restore(model)
    assert best.epoch == 2


# L2 chosen on validation ---------------------------------------------------------


def test_l2_is_chosen_on_validation_and_fitted_to_training_alone():
    x, y = clouds(60, apart=1.0)
    train, val = np.arange(30), np.arange(30, 60)
    fit = result_of(fit_validated(x, y, train=train, val=val, num_classes=3))
    assert fit.chosen
    again = result_of(
        fit_validated(x[train], y[train], train=train, val=train[:0], num_classes=3)
    )
    assert not again.chosen
    assert again.c == 1.0
    # What is validated on has no part in mean, spread and weights.
    other = x.copy()
    other[val] = other[val][::-1]
    y2 = y.copy()
    y2[val] = y2[val][::-1]
    twin = result_of(fit_validated(other, y2, train=train, val=val, num_classes=3))
    np.testing.assert_array_equal(fit.weight, twin.weight)
    np.testing.assert_allclose(fit.mean, x[train].mean(0))
    # Noise for labels: validation prefers a strong L2.
    noise = np.random.default_rng(1).integers(3, size=60)
    strong = result_of(fit_validated(x, noise, train=train, val=val, num_classes=3))
    assert strong.c <= 0.01
