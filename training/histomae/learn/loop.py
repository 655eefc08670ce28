"""The one training loop. It knows of a method what :class:`Method` says, and no more.

A step is: its crops in micro-batches, the gradients of each weighted by its share of
the batch, one look at whether all numbers are finite, one update. Between micro-batches
the loop yields, so that whoever drives it can stop it there.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from histomae.errors import MemoryRanOutError, NotEnoughDataError, RunError
from histomae.events import Event, Heartbeat, Note, Step
from histomae.learn.augment import epoch_order
from histomae.learn.methods import Batch
from histomae.learn.schedule import lr_at, parameter_groups, peak_lr

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from torch import Tensor, nn

    from histomae.config import PretrainConfig
    from histomae.learn.crops import Source
    from histomae.learn.methods import Method, Objective, Setting

Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: As in MAE: a short memory of squares suits a loss whose masks change at each step.
BETAS = (0.9, 0.95)
#: Where AdamW as one kernel is faster and supported.
FUSED_ON = ("cpu", "cuda")
#: Speed is the median over this many steps, so that a pause does not count.
TIMED_STEPS = 20
#: How torch says on a CPU that memory ran out.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True, eq=False)
class Plan:
    """Which crops each step takes.

    ``crops`` int64 (n,) are the numbers of the training crops. An epoch is a seeded
    permutation of them in batches; what is left of the last batch is dropped. Fewer
    crops than one batch are one smaller batch.
    """

    crops: Indices
    batch_size: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        if not len(self.crops):
            raise NotEnoughDataError(
                "There is no crop to train on. Choose slides with more tissue, or hold "
                "fewer crops out."
            )

    @cached_property
    def crops_per_step(self) -> int:
        """Crops of every batch."""
        return min(self.batch_size, len(self.crops))

    @cached_property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.crops) // self.crops_per_step

    @property
    def total_steps(self) -> int:
        """Steps of the training."""
        return self.steps_per_epoch * self.epochs

    def batch_at(self, step: int) -> tuple[int, Indices]:
        """Return the epoch, and the crop numbers, of update number ``step`` from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, len(self.crops))
        start = place * self.crops_per_step
        return epoch, self.crops[order[start : start + self.crops_per_step]]


def split(indices: Indices, micro_batch: int) -> list[Indices]:
    """Cut a batch into micro-batches; the last may be smaller."""
    return [
        indices[start : start + micro_batch]
        for start in range(0, len(indices), micro_batch)
    ]


def build_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """Make the optimizer of a model; the loop sets its learning rate at each step."""
    device = next(model.parameters()).device
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=0.0,
        betas=BETAS,
        fused=device.type in FUSED_ON,
    )


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    method: Method,
    setting: Setting,
    source: Source,
    plan: Plan,
    start_step: int = 0,
) -> Generator[Event, None, None]:
    """Train from update number ``start_step`` to the end of the plan.

    Yields a ``Step`` after each update and a ``Heartbeat`` after each micro-batch, or
    while reading is slow. It may be closed at any of them: the model is then as the
    last ``Step`` left it. When memory runs out, the step is made again with micro-
    batches of half the size, if the method's loss splits over the batch; a ``Note``
    says so.

    Raises
    ------
    RunError
        If a loss or gradient is not finite (before the update is made).
    MemoryRanOutError
        If the smallest micro-batch does not fit into memory.
    SlideError
        If a slide cannot be read.
    """
    config = setting.config
    micro_batch = micro_batch_of(method, config)
    schedule = partial(
        lr_at,
        total_steps=plan.total_steps,
        warmup_steps=config.warmup_epochs * plan.steps_per_epoch,
        peak=peak_lr(config.base_lr, plan.crops_per_step),
        minimum=config.min_lr,
    )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    pictures = source.stream(_micro_batches(plan, start_step, micro_batch))
    model.train()
    took: deque[float] = deque(maxlen=TIMED_STEPS)
    for step in range(start_step, plan.total_steps):
        begin = time.perf_counter()
        lr = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        while True:
            optimizer.zero_grad(set_to_none=True)
            try:
                totals = yield from _accumulate(
                    model, pictures, method, setting, plan.batch_at(step), micro_batch
                )
                break
            except MemoryRanOutError:
                if micro_batch == 1 or not method.splits_over_batch:
                    raise
            micro_batch //= 2
            pictures = source.stream(_micro_batches(plan, step, micro_batch))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            yield Note(
                f"Memory ran out at step {step + 1}: going on with {micro_batch} crops "
                f"at a time. The batch stays {plan.crops_per_step}."
            )
        loss, grad_norm, logged = _checked(weights, totals, step, config)
        optimizer.step()
        if method.after_step is not None:
            method.after_step(model, (step + 1) / plan.total_steps)
        took.append(time.perf_counter() - begin)
        pace = median(took)
        yield Step(
            step=step + 1,
            total_steps=plan.total_steps,
            epoch=(step + 1) / plan.steps_per_epoch,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            images_per_s=plan.crops_per_step / pace,
            seconds_left=pace * (plan.total_steps - step - 1),
            logged=logged,
        )


def held_out_loss(
    model: nn.Module,
    indices: Indices,
    *,
    method: Method,
    setting: Setting,
    source: Source,
) -> Generator[Event, None, float]:
    """Return the objective on crops held out of training.

    They are not augmented, and what is hidden of them is the same at every call.
    """
    chunks = split(indices, micro_batch_of(method, setting.config))
    pictures = source.stream(chunks)
    total = 0.0
    model.eval()
    try:
        for chunk in chunks:
            ready = yield from awaited(pictures)
            with torch.inference_mode(), memory_in_words():
                batch = Batch(_on_device(ready, model), chunk, epoch=0, training=False)
                objective = _objective(model, batch, method, setting)
                total += objective.loss.item() * len(chunk) / len(indices)
            yield Heartbeat()
    finally:
        model.train()
    return total


def micro_batch_of(method: Method, config: PretrainConfig) -> int:
    """Return how many crops go through the model at once."""
    if config.micro_batch is None or not method.splits_over_batch:
        return config.batch_size
    return config.micro_batch


def _micro_batches(plan: Plan, start_step: int, micro_batch: int) -> Iterator[Indices]:
    for step in range(start_step, plan.total_steps):
        yield from split(plan.batch_at(step)[1], micro_batch)


def _accumulate(
    model: nn.Module,
    pictures: Iterator[Pixels | None],
    method: Method,
    setting: Setting,
    batch: tuple[int, Indices],
    micro_batch: int,
) -> Generator[Event, None, dict[str, Tensor]]:
    """Add up the gradients of a batch; return its mean loss and other means."""
    epoch, indices = batch
    totals: dict[str, Tensor] = {}
    for chunk in split(indices, micro_batch):
        ready = yield from awaited(pictures)
        share = len(chunk) / len(indices)
        with memory_in_words():
            one = Batch(_on_device(ready, model), chunk, epoch)
            objective = _objective(model, one, method, setting)
            (objective.loss * share).backward()
        for name, value in {"": objective.loss, **objective.logged}.items():
            part = value.detach().float() * share
            totals[name] = totals[name] + part if name in totals else part
        yield Heartbeat()
    return totals


def _objective(
    model: nn.Module, batch: Batch, method: Method, setting: Setting
) -> Objective:
    inputs = method.inputs(batch, setting)
    half = setting.config.precision == "bf16"
    with torch.autocast(batch.pictures.device.type, torch.bfloat16, enabled=half):
        return method.loss(model, inputs, setting)


def awaited(pictures: Iterator[Pixels | None]) -> Generator[Event, None, Pixels]:
    """Return the next pictures of a source; a heartbeat tells that one waits."""
    while (ready := next(pictures)) is None:
        yield Heartbeat()
    return ready


def _on_device(pictures: Pixels, model: nn.Module) -> Tensor:
    device = next(model.parameters()).device
    tensor = torch.from_numpy(pictures)
    if device.type == "cuda":  # pinned, so that the copy runs beside the computing
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _checked(
    weights: list[nn.Parameter],
    totals: dict[str, Tensor],
    step: int,
    config: PretrainConfig,
) -> tuple[float, float, dict[str, float]]:
    """Clip the gradients and return loss, gradient norm and the rest as numbers.

    The numbers come in one transfer, so that a GPU is waited for once per step.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = get_total_norm(gradients)
    values = torch.stack([norm.float(), *totals.values()]).tolist()
    grad_norm, numbers = values[0], dict(zip(totals, values[1:], strict=True))
    loss = numbers.pop("")
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        what = f"The loss became {loss}"
        if math.isfinite(loss):
            what = f"The gradient became {grad_norm}"
        raise RunError(
            f"{what} at step {step + 1}; this update was not made, and no checkpoint "
            "holds it. Start again from the last checkpoint (init_from) with half the "
            "base_lr, or with grad_clip 1."
        )
    if config.grad_clip is not None:
        clip_grads_with_norm_(weights, config.grad_clip, norm)
    return loss, grad_norm, numbers


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Turn torch's ways of saying that memory ran out into a sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(
            phrase in str(error) for phrase in NO_MEMORY
        ):
            raise
        raise MemoryRanOutError(
            "Memory ran out. Choose a smaller micro_batch (the result stays the same), "
            "or a smaller encoder, and close other programs."
        ) from error


# The optimizer's state as tensors by name -------------------------------------


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return the optimizer's state by ``weight.key``, such as ``norm.bias.exp_avg``."""
    names: dict[Tensor, str] = {w: name for name, w in model.named_parameters()}
    return {
        f"{names[weight]}.{key}": value
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` returned.

    Raises
    ------
    RunError
        If it is of another model.
    """
    names = {weight: name for name, weight in model.named_parameters()}
    ordered = [w for group in optimizer.param_groups for w in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    taken = 0
    for number, weight in enumerate(ordered):
        prefix = f"{names[weight]}."
        keys = [name for name in tensors if name.rpartition(".")[0] + "." == prefix]
        states[number] = {key[len(prefix) :]: tensors[key] for key in keys}
        fits = all(
            value.shape in (weight.shape, ()) for value in states[number].values()
        )
        if not (keys and fits):
            raise _other_optimizer(f"{names[weight]} has no state that fits")
        taken += len(keys)
    if taken != len(tensors):
        raise _other_optimizer(f"{len(tensors) - taken} tensors belong to no weight")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def _other_optimizer(reason: str) -> RunError:
    return RunError(
        f"The checkpoint's optimizer state is of another model ({reason}). Start a new "
        "run from this checkpoint (init_from) instead."
    )
