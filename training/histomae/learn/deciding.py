"""Settings that are decided at the start of a run, and never again.

What is timed here is written into the run's ``config.toml``: a run that is resumed goes
on with it, whatever the machine does meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.errors import ConfigError
from histomae.events import Event, Heartbeat
from histomae.learn.loop import (
    Learner,
    awaited,
    memory_in_words,
    micro_batch_of,
    on_device,
)
from histomae.learn.methods import Batch, Setting

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn

    from histomae.config import PretrainConfig
    from histomae.learn.examples import Examples
    from histomae.learn.loop import Indices
    from histomae.learn.methods import Method

#: Settings that say where and how fast, not what: another machine may change them.
MAY_CHANGE = (
    *("slides", "device", "threads", "readers", "cache_gb", "compile"),
    *("preview_every", "save_every", "keep_every"),
)
#: Changes of these make the numbers others, in their last bits.
ROUNDS_OTHERWISE = ("device", "threads", "compile")
#: Said when they change.
MACHINE_CHANGED = (
    "Going on with another device or number of threads: the numbers are as good, but "
    "not bit for bit those of an uninterrupted run."
)
#: Values that mean: decided at the start.
UNDECIDED = (None, "auto", ())
#: Micro-batches at most: on a processor larger ones are no faster.
LARGEST_MICRO_BATCH = {"cpu": 16, "cuda": 64, "mps": 64}
#: Longest micro-batch, seconds: what a stop has to wait for.
MICRO_BATCH_S = 0.5
#: Crops that are timed, and how often.
TIMED_CROPS, TIMED_RUNS = 2, 2
#: bf16 rounds more; it has to be faster by this much to be worth it.
WORTH_IT = 1.1


def settled(config: PretrainConfig, begun: PretrainConfig) -> PretrainConfig:
    """Return the settings to go on with, those of the run that has ``begun``.

    Raises
    ------
    ConfigError
        If a setting that shapes the result differs; it names the first.
    """
    changes = {}
    for field in fields(config):
        name = field.name
        now, before = getattr(config, name), getattr(begun, name)
        if now == before or now in UNDECIDED:
            continue
        if name not in MAY_CHANGE:
            raise ConfigError(
                name,
                f"was {before!r} when the run began and is {now!r} now. Resume with "
                "the run's own settings, or start a new run from its checkpoint.",
            )
        changes[name] = now
    return replace(begun, **changes)


def decided(
    setting: Setting, method: Method, model: nn.Module, examples: Examples
) -> Generator[Event, None, PretrainConfig]:
    """Decide what the settings leave open, by trying it on some of the examples.

    The model is left as it is.
    """
    config = setting.config
    if config.precision == "auto" or config.micro_batch is None:
        indices = np.flatnonzero(~examples.held_out)[:TIMED_CROPS]
        pictures = yield from awaited(examples.source.stream([indices]))
        timed = partial(_seconds, model, method, pictures, indices)
        if config.precision == "auto":
            took = {}
            for precision in ("f32", "bf16"):
                tried = replace(config, precision=precision)
                took[precision] = yield from timed(replace(setting, config=tried))
            config = replace(config, precision=faster_precision(**took))
        if config.micro_batch is None:
            seconds = yield from timed(replace(setting, config=config))
            device = next(model.parameters()).device.type
            size = micro_batch(seconds / len(indices), device)
            config = replace(config, micro_batch=size)
    assert config.micro_batch is not None
    config = replace(config, micro_batch=min(config.micro_batch, config.batch_size))
    return replace(config, micro_batch=micro_batch_of(method, config))


def faster_precision(*, f32: float, bf16: float) -> str:
    """Return the precision to train in, given what a step takes in each, seconds."""
    return "bf16" if bf16 * WORTH_IT < f32 else "f32"


def micro_batch(per_crop_s: float, device_type: str) -> int:
    """Return how many crops take half a second at most: a power of two, bounded."""
    size = LARGEST_MICRO_BATCH.get(device_type, LARGEST_MICRO_BATCH["cpu"])
    while size > 1 and size * per_crop_s > MICRO_BATCH_S:
        size //= 2
    return size


def _seconds(
    model: nn.Module,
    method: Method,
    pictures: Any,
    indices: Indices,
    setting: Setting,
) -> Generator[Event, None, float]:
    """Return how long crops take there and back, the least of several times.

    Weights are not changed by it, and what else the model keeps is put back.
    """
    device = next(model.parameters()).device
    learner = Learner(model, method, setting)
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    took = []
    for _ in range(1 + TIMED_RUNS):  # the first one warms up
        begin = time.perf_counter()
        batch = Batch(on_device(pictures, model), indices, epoch=0)
        with memory_in_words():
            inputs = method.inputs(batch, setting)
            found = learner(inputs, encode=method.encode is not None)[""]
            found.sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - begin)
        yield Heartbeat()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)
    return min(took)
