"""What is decided at the start: timed once, written down, never against the user."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from histomae.events import Heartbeat
from histomae.learn import deciding
from histomae.learn.deciding import decided, faster_precision, micro_batch
from histomae.learn.examples import Examples
from histomae.learn.methods import METHODS, Setting

pytestmark = pytest.mark.usefixtures("tiny_encoder")
MAE = METHODS["mae"]


class Grey:
    """A source of grey pictures."""

    def stream(self, batches):
        for batch in batches:
            yield np.full((len(batch), 32, 32, 3), 128, np.uint8)

    def complaints(self, *, at_the_end=False):
        return []


EXAMPLES = Examples(
    Grey(),
    np.zeros(40, bool),
    np.zeros(40, int),
    0.5,
    False,
    patient=np.zeros(40, int),
    present=np.ones((40, 1), bool),
)


def decide(config, method=MAE):
    model = method.build(config, torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    setting = Setting(config, (0.5,) * 3, (0.25,) * 3)
    events = []
    work = decided(setting, method, model, EXAMPLES)

    def told():
        events.append((yield from work))

    said = list(told())
    assert all(isinstance(event, Heartbeat) for event in said)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(weight.grad is None for weight in model.parameters())
    return events[0], said


@pytest.mark.parametrize(
    ("f32", "bf16", "chosen"),
    [(1.0, 0.5, "bf16"), (1.0, 0.95, "f32"), (1.0, 3.0, "f32")],
)
def test_bf16_is_taken_where_it_is_clearly_faster(f32, bf16, chosen):
    assert faster_precision(f32=f32, bf16=bf16) == chosen


@pytest.mark.parametrize(
    ("per_crop_s", "device", "size"),
    [
        (0.001, "cpu", 16),
        (0.001, "cuda", 64),
        (0.05, "cpu", 8),
        (0.25, "cpu", 2),
        (9.0, "cpu", 1),
        (0.01, "mps", 32),
    ],
)
def test_a_micro_batch_takes_half_a_second_at_most(per_crop_s, device, size):
    assert micro_batch(per_crop_s, device) == size


def test_what_is_open_is_timed(quick, monkeypatch):
    took = {"f32": 3.0, "bf16": 1.0}
    seen = []

    def seconds(model, method, pictures, indices, setting):
        assert len(indices) == 2
        seen.append(setting.config.precision)
        yield Heartbeat()
        return took[setting.config.precision] / 10

    monkeypatch.setattr(deciding, "_seconds", seconds)
    config, _ = decide(quick(precision="auto", micro_batch=None))
    assert seen == ["f32", "bf16", "bf16"]
    assert (config.precision, config.micro_batch) == ("bf16", 8)  # 0.05 s a crop


def test_timing_runs_the_model_and_changes_nothing(quick):
    config, said = decide(quick(precision="auto", micro_batch=None))
    assert config.precision in ("f32", "bf16")
    assert config.micro_batch in (1, 2, 4, 8, 16)
    assert len(said) == 3 * (1 + deciding.TIMED_RUNS)


def test_what_was_chosen_is_kept(quick, monkeypatch):
    monkeypatch.delattr(deciding, "_seconds")
    config, said = decide(quick(precision="bf16", micro_batch=5))
    assert (config.precision, config.micro_batch, said) == ("bf16", 5, [])
    config, _ = decide(quick(micro_batch=64))
    assert config.micro_batch == 20  # the batch


def test_a_method_that_does_not_split_takes_its_batch_whole(quick):
    whole = replace(MAE, splits_over_batch=False)
    config, _ = decide(quick(micro_batch=None), whole)
    assert config.micro_batch == 20
