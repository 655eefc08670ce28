"""The one training loop. It knows of a method what :class:`Task` says, and no more.

A step is: its crops in micro-batches, the gradients of each weighted by its share of
the batch, one look at whether all numbers are finite, one update. Between micro-batches
the loop yields, so that whoever drives it can stop it there. Of several processes each
takes its part of every batch (:mod:`histomae.learn.processes`).

A loss that does not split over the batch is of what the model makes of each crop. That
is computed in micro-batches too, twice: first without gradients, to know how the loss
depends on it, then with, to carry that on into the weights (gradient caching, Gao et
al. 2021). The gradients are those of the whole batch at once.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.optim import Lars
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from histomae.config import CONVOLUTIONS
from histomae.errors import MemoryRanOutError, NotEnoughDataError, RunError
from histomae.events import Event, Heartbeat, Note, Step
from histomae.infer.encoder import choose_attention, computing_in
from histomae.learn.augment import epoch_order
from histomae.learn.methods import Batch
from histomae.learn.processes import part_of, summed
from histomae.learn.schedule import lr_at, parameter_groups, peak_lr

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from contextlib import AbstractContextManager

    from lightning_fabric import Fabric
    from torch import Tensor

    from histomae.config import PretrainConfig
    from histomae.learn.crops import Source
    from histomae.learn.methods import Inputs, Setting, Task

Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: As in MAE: a short memory of squares suits a loss whose masks change at each step.
BETAS = (0.9, 0.95)
#: Where AdamW as one kernel is faster and supported.
FUSED_ON = ("cpu", "cuda")
#: Speed is the median over this many steps, so that a pause does not count.
TIMED_STEPS = 20
#: Of at most so many tokens attention there and back is faster by steps in f32 too.
FEW_TOKENS = 256
#: How torch says on a CPU that memory ran out.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
#: Said where the micro-batch cannot be made smaller.
WHOLE_BATCH = (
    "Memory ran out, and this method needs the whole batch at once. Choose a smaller "
    "batch_size (which changes what is learned) or a smaller encoder, and close other "
    "programs."
)
#: LARS as MPCS has it: momentum, trust in the gradient, and how much slower biases and
#: norms learn, which trust does not slow down.
LARS_MOMENTUM, LARS_TRUST, LARS_BIASES = 0.9, 0.001, 0.0048 / 0.2


@dataclass(frozen=True, eq=False)
class Plan:
    """Which crops each step takes.

    ``crops`` int64 (n,) are the numbers of the training crops, ``regions`` int64 (n,)
    those of the regions they lie in. An epoch is a seeded permutation of the crops in
    batches (see :func:`epoch_order`); what is left of the last batch is dropped. Fewer
    crops than one batch are one smaller batch.
    """

    crops: Indices
    regions: Indices
    batch_size: int
    epochs: int
    seed: int
    _orders: dict[int, Indices] = field(default_factory=dict, init=False, repr=False)

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
        if epoch not in self._orders:
            self._orders.pop(epoch - 2, None)  # reading is ahead of the computing
            self._orders[epoch] = epoch_order(self.seed, epoch, self.regions)
        start = place * self.crops_per_step
        places = self._orders[epoch][start : start + self.crops_per_step]
        return epoch, self.crops[places]


def split(indices: Indices, micro_batch: int) -> list[Indices]:
    """Cut a batch into micro-batches; the last may be smaller."""
    return [
        indices[start : start + micro_batch]
        for start in range(0, len(indices), micro_batch)
    ]


def build_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer of a model; the loop sets its learning rate at each step."""
    device = next(model.parameters()).device
    if config.optimizer == "lars":
        matrices, rest = parameter_groups(model, config.weight_decay)
        groups = [matrices, {**rest, "lr_scale": LARS_BIASES}]
        return Lars(groups, lr=0.0, momentum=LARS_MOMENTUM, trust_coeff=LARS_TRUST)
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=0.0,
        betas=BETAS,
        fused=device.type in FUSED_ON,
    )


class Learner(nn.Module):
    """A method's loss of its model, as one module.

    So that its forward pass is what several processes share and what may be compiled,
    whatever parts of the model the method calls.
    """

    def __init__(self, model: nn.Module, method: Task, setting: Setting) -> None:
        super().__init__()
        self.model = model
        self._method, self._setting = method, setting
        config = setting.config
        tokens = (config.tile_px // config.patch_size) ** 2
        choose_attention(
            model,
            next(model.parameters()).device,
            by_steps=config.precision == "bf16" or tokens <= FEW_TOKENS,
        )

    def forward(self, inputs: Inputs, *, encode: bool = False) -> dict[str, Tensor]:
        """Return the means over a micro-batch: the loss under "", what is logged, ().

        Those of any shape that are for :attr:`Task.after_step` begin with a dot. With
        ``encode``, return only what :attr:`Task.encode` does, under "".
        """
        device = next(self.model.parameters()).device
        with computing_in(self._setting.config.precision, device):
            if encode:
                assert self._method.encode is not None
                return {"": self._method.encode(self.model, inputs, self._setting)}
            objective = self._method.loss(self.model, inputs, self._setting)
        means = {f".{name}": value for name, value in objective.means.items()}
        return {"": objective.loss, **objective.logged, **means}


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    fabric: Fabric,
    method: Task,
    setting: Setting,
    source: Source,
    plan: Plan,
    start_step: int = 0,
) -> Generator[Event, None, None]:
    """Train from update number ``start_step`` to the end of the plan.

    Yields a ``Step`` after each update and a ``Heartbeat`` after each micro-batch, or
    while reading is slow. It may be closed at any of them: the model is then as the
    last ``Step`` left it. When memory runs out, the step is made again with micro-
    batches of half the size; a ``Note`` says so.

    Raises
    ------
    RunError
        If a loss or gradient is not finite (before the update is made).
    MemoryRanOutError
        If the smallest micro-batch does not fit into memory, or there may be none.
    SlideError
        If no slide can be read.
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
    learner = _shared(model, method, setting, fabric)
    parts = partial(_micro_batches, plan, fabric)
    gradients = _accumulate if method.encode is None else _accumulate_cached
    pictures = source.stream(parts(start_step, micro_batch))
    model.train()
    took: deque[float] = deque(maxlen=TIMED_STEPS)
    worried = False
    for step in range(start_step, plan.total_steps):
        begin = time.perf_counter()
        lr = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        while True:
            optimizer.zero_grad(set_to_none=True)
            try:
                totals = yield from gradients(
                    learner,
                    pictures,
                    method,
                    setting,
                    fabric,
                    plan.batch_at(step),
                    micro_batch,
                )
                break
            except MemoryRanOutError as error:
                if not in_parts(method, config):
                    raise MemoryRanOutError(WHOLE_BATCH) from error
                if micro_batch == 1 or fabric.world_size > 1:
                    raise
            micro_batch //= 2
            pictures = source.stream(parts(step, micro_batch))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            yield Note(
                f"Memory ran out at step {step + 1}: going on with {micro_batch} crops "
                f"at a time. The batch stays {plan.crops_per_step}."
            )
        means = {
            name[1:]: summed(totals.pop(name), fabric)
            for name in list(totals)
            if name.startswith(".")
        }
        loss, grad_norm, logged = _checked(weights, totals, step, config, fabric)
        optimizer.step()
        if method.after_step is not None:
            done = (step + 1) / plan.total_steps
            logged |= method.after_step(model, done, means)
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
        said = method.concern(logged) if method.concern is not None else ""
        if said and not worried:
            yield Note(f"Step {step + 1}: {said}")
        worried = bool(said)
        is_last = step + 1 == plan.total_steps
        yield from map(Note, source.complaints(at_the_end=is_last))


def _shared(
    model: nn.Module, method: Task, setting: Setting, fabric: Fabric
) -> nn.Module:
    """Return the learner, its gradients averaged over the processes."""
    learner: Any = Learner(model, method, setting)
    if setting.config.compile:
        learner = torch.compile(learner)
    if fabric.world_size == 1 or method.encode is not None:
        return learner  # type: ignore[no-any-return]
    return fabric.setup_module(learner, move_to_device=False)


def held_out_loss(
    model: nn.Module,
    indices: Indices,
    *,
    fabric: Fabric,
    method: Task,
    setting: Setting,
    source: Source,
) -> Generator[Event, None, float]:
    """Return the objective on crops held out of training.

    They are not augmented, and what is hidden of them is the same at every call.
    """
    chunks = split(part_of(indices, fabric), micro_batch_of(method, setting.config))
    pictures = source.stream(chunks)
    learner = Learner(model, method, setting)
    encode = method.encode is not None
    total, encoded = 0.0, []
    learner.eval()
    try:
        for chunk in chunks:
            ready = yield from awaited(pictures)
            with torch.inference_mode(), memory_in_words():
                batch = Batch(on_device(ready, model), chunk, epoch=0, training=False)
                found = learner(method.inputs(batch, setting), encode=encode)[""]
            if encode:
                encoded.append(found)
            else:
                total += found.item() * len(chunk) / len(indices)
            yield Heartbeat()
        if encode:
            with torch.inference_mode(), memory_in_words():
                whole = _of_all(torch.cat(encoded), indices, fabric)
                total = learner(_of_batch(whole, indices))[""].item()
            total /= fabric.world_size
    finally:
        learner.train()
    return summed(torch.tensor(total, device=fabric.device), fabric).item()


def micro_batch_of(method: Task, config: PretrainConfig) -> int:
    """Return how many crops go through the model at once."""
    if config.micro_batch is None or not in_parts(method, config):
        return config.batch_size
    return config.micro_batch


def in_parts(method: Task, config: PretrainConfig) -> bool:
    """Whether crops may go through the model a few at a time."""
    if method.encode is None:
        return method.splits_over_batch
    return config.encoder not in CONVOLUTIONS  # whose batch norm sees the batch


def _micro_batches(
    plan: Plan, fabric: Fabric, start_step: int, micro_batch: int
) -> Iterator[Indices]:
    for step in range(start_step, plan.total_steps):
        yield from split(part_of(plan.batch_at(step)[1], fabric), micro_batch)


def _accumulate(
    learner: nn.Module,
    pictures: Iterator[Any],
    method: Task,
    setting: Setting,
    fabric: Fabric,
    batch: tuple[int, Indices],
    micro_batch: int,
) -> Generator[Event, None, dict[str, Tensor]]:
    """Add up the gradients of a batch; return its mean loss and other means.

    Of several processes each returns its share of the means.
    """
    epoch, indices = batch
    chunks = split(part_of(indices, fabric), micro_batch)
    totals: dict[str, Tensor] = {}
    for number, chunk in enumerate(chunks, 1):
        ready = yield from awaited(pictures)
        share = len(chunk) / len(indices)
        with memory_in_words(), _gradients_kept(learner, fabric, number < len(chunks)):
            inputs = method.inputs(
                Batch(on_device(ready, learner), chunk, epoch), setting
            )
            logged = learner(inputs)
            # The gradients of the processes are averaged, and should be summed.
            fabric.backward(logged[""] * (share * fabric.world_size))
        for name, value in logged.items():
            part = value.detach().float() * share
            totals[name] = totals[name] + part if name in totals else part
        yield Heartbeat()
    return totals


def _accumulate_cached(
    learner: nn.Module,
    pictures: Iterator[Any],
    method: Task,
    setting: Setting,
    fabric: Fabric,
    batch: tuple[int, Indices],
    micro_batch: int,
) -> Generator[Event, None, dict[str, Tensor]]:
    """Do what :func:`_accumulate` does, of a loss that does not split over the batch.

    Of several processes each encodes its part, and all compute the loss of the whole.
    """
    epoch, indices = batch
    chunks = split(part_of(indices, fabric), micro_batch)
    at_once = len(chunks) == 1  # then once is enough

    def encoded(ready: Any, chunk: Indices) -> Tensor:
        pictures = Batch(on_device(ready, learner), chunk, epoch)
        found: Tensor = learner(method.inputs(pictures, setting), encode=True)[""]
        return found

    kept, parts = [], []
    for chunk in chunks:
        ready = yield from awaited(pictures)
        kept.append(ready)
        with memory_in_words(), torch.set_grad_enabled(at_once):
            parts.append(encoded(ready, chunk))
        yield Heartbeat()
    with memory_in_words():
        mine = torch.cat(parts).detach().requires_grad_()
        whole = _of_all(mine, indices, fabric)
        logged = learner(_of_batch(whole, indices))
        # Below, what the processes found is added up: of this all found the same.
        fabric.backward(logged[""] / fabric.world_size)
    assert mine.grad is not None
    towards = (mine.grad * fabric.world_size).split([len(chunk) for chunk in chunks])
    for ready, chunk, part, toward in zip(kept, chunks, parts, towards, strict=True):
        with memory_in_words():
            again = part if at_once else encoded(ready, chunk)
            torch.autograd.backward(again, toward)
        yield Heartbeat()
    for weight in learner.parameters():
        if weight.grad is not None:
            weight.grad = summed(weight.grad, fabric)
    return {k: v.detach().float() / fabric.world_size for k, v in logged.items()}


def _of_all(mine: Tensor, indices: Indices, fabric: Fabric) -> Tensor:
    """Return what all processes encoded of a batch, in order; gradients to ``mine``."""
    if fabric.world_size == 1:
        return mine
    parts = np.array_split(indices, fabric.world_size)
    begin = sum(map(len, parts[: fabric.global_rank]))
    end = begin + len(mine)
    whole = mine.new_zeros((len(indices), *mine.shape[1:]))
    whole[begin:end] = mine.detach()
    whole = summed(whole, fabric)
    return torch.cat([whole[:begin], mine, whole[end:]])


def _of_batch(encoded: Tensor, indices: Indices) -> Inputs:
    """Return what the loss of a whole batch is of."""
    return {
        "encoded": encoded,
        "indices": torch.from_numpy(indices).to(encoded.device),
    }


def _gradients_kept(
    learner: nn.Module, fabric: Fabric, more_follow: bool
) -> AbstractContextManager[None]:
    """Keep the processes from sharing gradients before the last micro-batch."""
    if fabric.world_size == 1:
        return nullcontext()
    return fabric.no_backward_sync(learner, enabled=more_follow)  # type: ignore[arg-type]


def awaited(pictures: Iterator[Any]) -> Generator[Event, None, Any]:
    """Return what a source gives next; a heartbeat tells that one waits."""
    while (ready := next(pictures)) is None:
        yield Heartbeat()
    return ready


def on_device(pictures: Any, model: nn.Module) -> Any:
    """Return what a source gave on the device of a model."""
    device = next(model.parameters()).device
    if not isinstance(pictures, np.ndarray):  # a source's own kind
        return pictures.to(device)
    tensor = torch.from_numpy(pictures)
    if device.type == "cuda":  # pinned, so that the copy runs beside the computing
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _checked(
    weights: list[nn.Parameter],
    totals: dict[str, Tensor],
    step: int,
    config: PretrainConfig,
    fabric: Fabric,
) -> tuple[float, float, dict[str, float]]:
    """Clip the gradients and return loss, gradient norm and the rest as numbers.

    The numbers come in one transfer, so that a GPU is waited for once per step.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = get_total_norm(gradients)
    means = summed(torch.stack([*totals.values()]), fabric)
    grad_norm, *values = torch.cat([norm.float()[None], means]).tolist()
    numbers = dict(zip(totals, values, strict=True))
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
