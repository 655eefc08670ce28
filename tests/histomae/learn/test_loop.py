"""The loop: micro-batches add up exactly, the plan holds, bad numbers stop it."""

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from histomae.config import PretrainConfig
from histomae.errors import MemoryRanOutError, NotEnoughDataError, RunError
from histomae.events import Heartbeat, Note, Step, result_of
from histomae.learn.examples import Examples
from histomae.learn.loop import (
    Plan,
    build_optimizer,
    fit,
    held_out_loss,
    load_optimizer,
    memory_in_words,
    optimizer_tensors,
    split,
)
from histomae.learn.methods import METHODS, Objective, Setting
from histomae.learn.processes import join
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("tiny_encoder")

CONFIG = PretrainConfig(
    encoder="vit_micro",
    tile_px=16,
    patch_size=4,
    decoder_dim=16,
    decoder_depth=1,
    decoder_heads=2,
    epochs=3,
    warmup_epochs=0,
    batch_size=10,
    base_lr=0.05,
    precision="f32",
)
MAE = METHODS["mae"]


class Memory:
    """A source of pictures that are there at once; or, told to, late."""

    def __init__(self, count=24, late=0, side=16):
        random = np.random.default_rng(0)
        coarse = random.integers(40, 200, (count, 4, 4, 3))
        fine = random.integers(-30, 30, (count, side, side, 3))
        pictures = coarse.repeat(side // 4, 1).repeat(side // 4, 2) + fine
        self.pictures, self.late = pictures.astype(np.uint8), late

    def stream(self, batches):
        for batch in batches:
            yield from itertools.repeat(None, self.late)
            yield self.pictures[batch]

    def complaints(self, *, at_the_end=False):
        return []


def train(config, *, method=MAE, source=None, start=0, state=None, count=24, upto=None):
    """Train; return the events, the model and the optimizer."""
    model = method.build(config, torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, config)
    if state is not None:
        model.load_state_dict(state[0])
        load_optimizer(model, optimizer, state[1])
    plan = plan_of(np.arange(count), config.batch_size, config.epochs)
    work = fit(
        model,
        optimizer,
        fabric=join("cpu"),
        method=method,
        setting=setting_of(config),
        source=source or Memory(),
        plan=plan,
        start_step=start,
    )
    events = []
    for event in work:
        events.append(event)
        if isinstance(event, Step) and event.step == upto:
            break
    return events, model, optimizer


def setting_of(config, count=24):
    """Return a setting whose crops are each of a patient of its own."""
    examples = Examples(
        source=Memory(),
        held_out=np.zeros(count, bool),
        region=np.zeros(count, int),
        mpp=0.5,
        mpp_given=False,
        patient=np.arange(count),
        present=np.ones((count, 3), bool),
    )
    return Setting(config, (0.5,) * 3, (0.25,) * 3, examples)


def plan_of(crops, batch_size, epochs):
    """Return a plan of crops that lie in one region."""
    return Plan(crops, np.zeros(len(crops), int), batch_size, epochs, seed=0)


def steps(events):
    return [event for event in events if isinstance(event, Step)]


# ---- the plan


def test_an_epoch_takes_each_crop_once_and_drops_the_rest():
    plan = plan_of(np.arange(100, 124), 10, 3)
    assert (plan.steps_per_epoch, plan.total_steps) == (2, 6)
    epochs, batches = zip(*(plan.batch_at(step) for step in range(6)), strict=True)
    assert epochs == (0, 0, 1, 1, 2, 2)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        both = np.concatenate([first, second])
        assert len(np.unique(both)) == 20
        assert set(both) <= set(range(100, 124))
    assert set(batches[0]) != set(batches[2])


def test_fewer_crops_than_a_batch_are_one_smaller_batch():
    plan = plan_of(np.arange(7), 256, 5)
    assert (plan.crops_per_step, plan.total_steps) == (7, 5)
    assert sorted(plan.batch_at(3)[1]) == list(range(7))


def test_no_crops_are_no_plan():
    with pytest.raises(NotEnoughDataError, match="Choose slides"):
        plan_of(np.arange(0), 10, 1)


def test_the_last_micro_batch_may_be_smaller():
    assert [len(part) for part in split(np.arange(10), 4)] == [4, 4, 2]


# ---- micro-batches


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 5])
def test_micro_batches_add_up_to_the_batch(micro_batch):
    whole, *_ = train(replace(CONFIG, micro_batch=10))
    parts, *_ = train(replace(CONFIG, micro_batch=micro_batch))
    for one, other in zip(steps(whole), steps(parts), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
        assert other.lr == one.lr
    # Gradients, for AdamW turns the rounding of one that should be zero (a key's bias
    # has no influence) into a whole step.
    _, model, _ = train(replace(CONFIG, micro_batch=10), upto=1)
    _, again, _ = train(replace(CONFIG, micro_batch=micro_batch), upto=1)
    for (name, weight), same in zip(
        model.named_parameters(), again.parameters(), strict=True
    ):
        if weight.grad is not None:
            torch.testing.assert_close(
                same.grad, weight.grad, rtol=1e-5, atol=1e-6, msg=name
            )


def test_gradients_are_weighted_by_the_size_of_a_micro_batch():
    """The loss of crop i is i, so that every weighting but the right one shows."""
    told = replace(
        MAE,
        inputs=lambda batch, _: {"i": torch.from_numpy(batch.indices).double()},
        loss=lambda model, given, _: Objective(
            (model.encoder.norm.bias.sum() + 1) * given["i"].mean(),
            {"most": given["i"].mean() * 2},
        ),
    )
    config = replace(CONFIG, micro_batch=4, batch_size=7, epochs=1, base_lr=0.0)
    events, model, _ = train(config, method=told, count=7)
    (step,) = steps(events)
    assert step.loss == pytest.approx(3.0)  # the mean of 0 .. 6
    assert step.logged == {"most": pytest.approx(6.0)}
    gradient = model.encoder.norm.bias.grad
    torch.testing.assert_close(gradient, torch.full_like(gradient, 3.0))


def test_a_loss_that_does_not_split_sees_the_whole_batch():
    seen = []

    def loss(model, given, setting):
        seen.append(len(given["images"]))
        return MAE.loss(model, given, setting)

    contrastive = replace(MAE, splits_over_batch=False, loss=loss)
    train(replace(CONFIG, micro_batch=2, epochs=1), method=contrastive)
    assert seen == [10, 10]


def test_a_heartbeat_comes_after_every_micro_batch_and_while_reading():
    events, *_ = train(replace(CONFIG, micro_batch=4, epochs=1))
    assert [type(event) for event in events] == [*[Heartbeat] * 3, Step] * 2
    late, *_ = train(replace(CONFIG, micro_batch=10, epochs=1), source=Memory(late=2))
    assert [type(event) for event in late] == [*[Heartbeat] * 3, Step] * 2


# ---- learning


def test_one_batch_is_learned_by_heart():
    """METHODS 10 A 6: loss below 0.1 in 300 steps."""
    smooth = Memory(count=4)
    ramp = np.linspace(20, 230, 16)
    for number in range(4):
        picture = ramp[:, None] * 0.5 + ramp[None] * 0.5
        smooth.pictures[number] = np.rot90(picture, number)[..., None].astype(np.uint8)
    config = replace(
        CONFIG, batch_size=4, epochs=300, base_lr=0.6, mask_ratio=0.5, crop_scale_min=1
    )
    still = replace(  # always the same views and masks
        MAE, inputs=lambda batch, setting: MAE.inputs(replace(batch, epoch=0), setting)
    )
    events, *_ = train(config, method=still, source=smooth, count=4)
    assert steps(events)[0].loss > 0.8
    assert steps(events)[-1].loss < 0.1


def test_a_step_says_what_it_did():
    events, *_ = train(replace(CONFIG, warmup_epochs=1))
    told = steps(events)
    assert [step.step for step in told] == [1, 2, 3, 4, 5, 6]
    assert {step.total_steps for step in told} == {6}
    assert [step.epoch for step in told] == [0.5, 1, 1.5, 2, 2.5, 3]
    peak = 0.05 * 10 / 256
    assert [step.lr for step in told[:3]] == pytest.approx([0, peak / 2, peak])
    assert told[-1].seconds_left == 0
    assert all(step.images_per_s > 0 for step in told)
    assert all(step.grad_norm > 0 for step in told)


def test_clipping_bounds_the_gradient_and_reports_it_unclipped():
    config = replace(CONFIG, base_lr=0.0, epochs=1, grad_clip=1e-3)
    events, model, _ = train(config, upto=1)
    gradients = [w.grad for w in model.parameters() if w.grad is not None]
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert steps(events)[0].grad_norm > 0.01


def test_teachers_are_called_after_each_update():
    calls = []

    def loss(model, given, setting):
        objective = MAE.loss(model, given, setting)
        return replace(objective, means={"seen": given["images"].mean((0, 2, 3))})

    def after_step(model, share, means):
        calls.append((share, means["seen"].tolist()))
        return {"counted": len(calls)}

    method = replace(MAE, loss=loss, after_step=after_step)
    config = replace(CONFIG, epochs=2, crop_scale_min=1)
    events, *_ = train(replace(config, micro_batch=4), method=method)
    assert [share for share, _ in calls] == [0.25, 0.5, 0.75, 1.0]
    assert [step.logged for step in steps(events)] == [
        {"counted": number} for number in (1, 2, 3, 4)
    ]
    whole = [seen for _, seen in calls]
    calls.clear()
    train(replace(config, micro_batch=10), method=method)
    np.testing.assert_allclose([seen for _, seen in calls], whole, atol=1e-6)


def test_what_goes_wrong_is_said_once_and_again_when_it_comes_back():
    told = iter(["", "Bad.", "Bad.", "", "Bad.", ""])
    method = replace(MAE, concern=lambda logged: next(told))
    events, *_ = train(CONFIG, method=method)
    assert [e.text for e in events if isinstance(e, Note)] == [
        "Step 2: Bad.",
        "Step 5: Bad.",
    ]


def test_bf16_learns_the_same():
    exact, *_ = train(CONFIG)
    half, *_ = train(replace(CONFIG, precision="bf16"))
    for one, other in zip(steps(exact), steps(half), strict=True):
        assert other.loss == pytest.approx(one.loss, abs=0.02)
        assert other.loss != one.loss


def test_the_whole_loss_is_compiled_where_that_is_asked(monkeypatch):
    compiled = []

    def stand_in(module):
        compiled.append(type(module).__name__)
        return module

    monkeypatch.setattr(torch, "compile", stand_in)
    plain, *_ = train(replace(CONFIG, epochs=1))
    assert not compiled
    same, *_ = train(replace(CONFIG, epochs=1, compile=True))
    assert compiled == ["Learner"]
    assert [e.loss for e in steps(same)] == [e.loss for e in steps(plain)]


# ---- resuming


def test_going_on_from_a_step_is_exact():
    whole, model, _ = train(CONFIG)
    first, begun, optimizer = train(CONFIG, upto=3)
    state = begun.state_dict(), optimizer_tensors(begun, optimizer)
    rest, again, _ = train(CONFIG, start=3, state=state)
    losses = [step.loss for step in steps(first) + steps(rest)]
    assert losses == [step.loss for step in steps(whole)]
    for weight, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_the_optimizer_of_another_model_is_refused():
    _, model, optimizer = train(CONFIG, upto=1)
    tensors = optimizer_tensors(model, optimizer)
    fresh = build_optimizer(model, CONFIG)
    without = {k: v for k, v in tensors.items() if not k.startswith("encoder.norm.")}
    with pytest.raises(RunError, match=r"encoder\.norm\.weight has no state"):
        load_optimizer(model, fresh, without)
    with pytest.raises(RunError, match="1 tensors belong to no weight"):
        load_optimizer(model, fresh, {**tensors, "teacher.bias.step": torch.ones(())})
    wide = {**tensors, "encoder.norm.bias.exp_avg": torch.ones(17)}
    with pytest.raises(RunError, match=r"encoder\.norm\.bias has no state that fits"):
        load_optimizer(model, fresh, wide)


# ---- what goes wrong


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_update(bad):
    calls = itertools.count()

    def loss(model, given, setting):
        objective = MAE.loss(model, given, setting)
        return Objective(objective.loss * (bad if next(calls) == 3 else 1), {})

    config = replace(CONFIG, micro_batch=5)
    _, before, _ = train(config, upto=1)
    model = None

    def build(*args):
        nonlocal model
        model = MAE.build(*args)
        return model

    with pytest.raises(RunError, match=r"became (nan|inf) at step 2; .*Start again"):
        train(config, method=replace(MAE, loss=loss, build=build))
    for weight, same in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_a_gradient_that_is_no_number_stops_too():
    class Cliff(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    def loss(model, given, setting):
        return Objective(Cliff.apply(MAE.loss(model, given, setting).loss), {})

    with pytest.raises(RunError, match="The gradient became"):
        train(CONFIG, method=replace(MAE, loss=loss))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_memory_that_ran_out_is_a_sentence(error):
    with pytest.raises(RunError, match="smaller micro_batch"), memory_in_words():
        raise error


def short_of_memory(most, **changes):
    """Return a method that has memory for so many crops at a time."""

    def loss(model, given, setting):
        if len(given["images"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return MAE.loss(model, given, setting)

    return replace(MAE, loss=loss, **changes)


def test_what_could_not_be_read_is_said():
    class Damaged(Memory):
        def complaints(self, *, at_the_end=False):
            return ["7 crops were left out."] if at_the_end else []

    events, _, _ = train(CONFIG, source=Damaged())
    assert events[-1] == Note("7 crops were left out.")
    assert events.count(events[-1]) == 1
    assert steps(events)[-1].step == steps(events)[-1].total_steps


def test_memory_that_runs_out_halves_the_micro_batch():
    config = replace(CONFIG, micro_batch=10)
    events, model, _ = train(config, method=short_of_memory(3))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert [note.split("going on with ")[1] for note in notes] == [
        "5 crops at a time. The batch stays 10.",
        "2 crops at a time. The batch stays 10.",
    ]
    smooth, same, _ = train(replace(CONFIG, micro_batch=2))
    assert [e.loss for e in steps(events)] == [e.loss for e in steps(smooth)]
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_crop_that_does_not_fit_ends_it():
    with pytest.raises(MemoryRanOutError, match="smaller encoder"):
        train(CONFIG, method=short_of_memory(0))


def test_a_loss_that_does_not_split_is_not_split():
    with pytest.raises(MemoryRanOutError):
        train(CONFIG, method=short_of_memory(3, splits_over_batch=False))


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_in_words():
        raise RuntimeError("shapes do not fit")


# ---- held out


def test_the_held_out_loss_is_the_plain_mean_and_stays_the_same():
    config = replace(CONFIG, micro_batch=4)
    setting = Setting(config, (0.5,) * 3, (0.25,) * 3)
    model = MAE.build(config, torch.Generator().manual_seed(0))
    source, some = Memory(), np.array([3, 5, 7, 11, 13, 17])

    def judged(indices, micro_batch=4):
        given = replace(setting, config=replace(config, micro_batch=micro_batch))
        work = held_out_loss(
            model,
            indices,
            fabric=join("cpu"),
            method=MAE,
            setting=given,
            source=source,
        )
        return result_of(work)

    alone = [judged(np.array([i])) for i in some]
    assert judged(some) == pytest.approx(np.mean(alone), rel=1e-5)
    assert judged(some, 3) == pytest.approx(judged(some), rel=1e-5)
    assert judged(some) == judged(some)
    assert model.training
    assert all(w.grad is None for w in model.parameters())
    assert isinstance(model, nn.Module)


# ---- a loss of the whole batch, whose crops are encoded a few at a time

MPCS = METHODS["mpcs"]
PAIRS = replace(CONFIG, method="mpcs", projector_dims=(12, 8), base_lr=0.02)


class Places(Memory):
    """Places at three magnifications, all of one picture."""

    def stream(self, batches):
        for pictures in super().stream(batches):
            yield (
                pictures[:, None].repeat(3, 1)
                + np.arange(3, dtype=np.uint8)[:, None, None, None]
            )


def train_pairs(config=PAIRS, **how):
    return train(config, method=how.pop("method", MPCS), source=Places(), **how)


def first_gradients(micro_batch):
    _, model, _ = train_pairs(
        replace(PAIRS, micro_batch=micro_batch, base_lr=0.0), upto=1
    )
    gradients = {n: w.grad for n, w in model.named_parameters() if w.requires_grad}
    return gradients, model


def test_gradients_of_cached_parts_are_those_of_the_whole_batch():
    whole, model = first_gradients(10)
    assert all(gradient is not None for gradient in whole.values())
    assert sum(gradient.abs().sum() for gradient in whole.values()) > 0
    for micro_batch in (1, 3, 7):
        parts, other = first_gradients(micro_batch)
        for name, gradient in whole.items():
            torch.testing.assert_close(
                parts[name], gradient, rtol=1e-4, atol=1e-6, msg=name
            )
        for one, same in zip(model.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(same, one)  # batch norm saw the whole batch once


def test_the_batch_is_compared_as_a_whole_whatever_the_micro_batch():
    losses = [
        [step.loss for step in steps(train_pairs(replace(PAIRS, micro_batch=size))[0])]
        for size in (2, 10)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[1][-1] < 0.9 * losses[1][0]


def test_whoever_waits_is_told_between_parts_of_a_whole_batch():
    events, _, _ = train_pairs(replace(PAIRS, micro_batch=5), upto=1)
    assert [type(event) for event in events] == [Heartbeat] * 4 + [Step]


def test_memory_that_runs_out_halves_the_parts_of_a_whole_batch():
    def encode(model, given, setting):
        if len(given["images"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return MPCS.encode(model, given, setting)

    config = replace(PAIRS, micro_batch=10)
    events, _, _ = train_pairs(config, method=replace(MPCS, encode=encode))
    assert sum(isinstance(event, Note) for event in events) == 2
    smooth, _, _ = train_pairs(replace(PAIRS, micro_batch=2))
    # In batch norm's memory the step that failed is not counted.
    assert [e.loss for e in steps(events)] == [e.loss for e in steps(smooth)]


def test_pairs_held_out_are_compared_with_each_other():
    _, model, _ = train_pairs(upto=1)
    losses = []
    for micro_batch in (2, 5, 7):
        config = replace(PAIRS, micro_batch=micro_batch)
        work = held_out_loss(
            model,
            np.arange(7),
            fabric=join("cpu"),
            method=MPCS,
            setting=setting_of(config),
            source=Places(),
        )
        losses.append(result_of(work))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)
    assert model.training


class OneOfTwo:
    """A process of two, which are threads here."""

    world_size, device = 2, torch.device("cpu")

    def __init__(self, rank, meeting, told):
        self.global_rank, self._meeting, self._told = rank, meeting, told

    def all_reduce(self, numbers, *, reduce_op):
        assert reduce_op == "sum"
        self._told[self.global_rank] = numbers
        self._meeting.wait()
        total = self._told[0] + self._told[1]
        self._meeting.wait()
        return total

    def backward(self, loss):
        loss.backward()


def test_two_processes_compare_the_pairs_of_both():
    """The losses are those of one process, wherever a place was encoded."""
    config = replace(PAIRS, batch_size=9, micro_batch=2, held_out=0)
    meeting, told, losses = threading.Barrier(2, timeout=PATIENCE_S), [None, None], {}

    def train_one(rank):
        fabric = OneOfTwo(rank, meeting, told)
        model = MPCS.build(config, torch.Generator().manual_seed(0))
        how = {"fabric": fabric, "method": MPCS, "setting": setting_of(config)}
        work = fit(
            model,
            build_optimizer(model, config),
            source=Places(),
            plan=plan_of(np.arange(24), 9, 3),
            **how,
        )
        losses[rank] = [step.loss for step in steps(work)]
        judged = held_out_loss(model, np.arange(7), source=Places(), **how)
        losses[rank].append(result_of(judged))

    threads = [threading.Thread(target=train_one, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone, _, _ = train_pairs(replace(config, micro_batch=9))
    assert losses[0] == losses[1]
    assert losses[0][:-1] == pytest.approx([e.loss for e in steps(alone)], rel=1e-4)


def test_what_needs_the_whole_batch_says_how_to_make_it_smaller():
    with pytest.raises(MemoryRanOutError, match="smaller batch_size"):
        train(CONFIG, method=short_of_memory(3, splits_over_batch=False))


def test_batch_norm_in_the_encoder_needs_the_whole_batch_at_once():
    seen = []

    def encode(model, given, setting):
        seen.append(len(given["images"]))
        return MPCS.encode(model, given, setting)

    config = replace(PAIRS, encoder="efficientnet_b2", tile_px=64, micro_batch=2)
    method = replace(MPCS, encode=encode)
    source = Places(side=64)
    events, model, _ = train(config, method=method, source=source, upto=1)
    assert seen == [10]
    assert all(w.grad is not None for w in model.parameters() if w.requires_grad)
    assert steps(events)[0].loss > 0


# ---- LARS


def test_lars_moves_every_weight():
    """The published trainer's LARS keeps its learning rate at 0."""
    config = replace(PAIRS, optimizer="lars", base_lr=0.2 * 256 / 10, epochs=1)
    model = MPCS.build(config, torch.Generator().manual_seed(0))
    before = {n: w.clone() for n, w in model.named_parameters() if w.requires_grad}
    events, after, optimizer = train_pairs(config)
    assert [group["lr"] for group in optimizer.param_groups][1] == pytest.approx(
        steps(events)[-1].lr * 0.0048 / 0.2
    )
    for name, weight in after.named_parameters():
        if weight.requires_grad:
            assert not torch.equal(weight, before[name]), name


def test_lars_goes_on_where_it_was():
    config = replace(PAIRS, optimizer="lars", base_lr=1.0)
    whole, model, _ = train_pairs(config)
    _, half, optimizer = train_pairs(config, upto=3)
    state = (half.state_dict(), optimizer_tensors(half, optimizer))
    rest, again, _ = train_pairs(config, start=3, state=state)
    assert [e.loss for e in steps(rest)] == [e.loss for e in steps(whole)[3:]]
    for weight, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same)
