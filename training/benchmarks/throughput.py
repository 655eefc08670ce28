"""How fast is the training? Ratios within one run, its contestants taking turns.

- A step of MAE (ViT-S/16, 224 px, the reference decoder 512 x 8 with 16 heads, f32)
  against facebookresearch/mae, where ``--peer`` names a clone of it; and as a share of
  what the processor reaches in multiplying matrices.
- The default recipe against the reference recipe in f32, both by the real trainer.
- The default recipe fed from slides, each crop decoded when it is wanted, against the
  same crops in memory.
- The most memory that the default recipe takes, in a process of its own.
- On a GPU: pictures a second of both recipes, and slides against memory.
- Without goals: what fused attention, a fused optimizer and ``--compile`` bring here.

On a machine that does other things too, ``--clock cpu`` counts the processor's seconds
instead of the wall's. ``--plant`` feeds the training from a reader that decodes in the
step's own thread, slowly.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# As in a training of the dock: threads that wait sleep. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import psutil
import torch
from figures import Figure, load, options, report, say
from trainers import REFERENCE_DECODER, begin, make_slide
from watch import away_from_the_user

from histomae.config import PretrainConfig
from histomae.events import Saved, Started, Step
from histomae.infer.encoder import choose_attention
from histomae.learn import supervise
from histomae.learn.loop import Learner
from histomae.learn.methods import METHODS, Batch, Setting
from histomae.learn.pretrain import run_in
from histomae.models.vit import ENCODER_SIZES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Iterable, Iterator

    from torch import Tensor, nn

    from histomae.learn.crops import CropReader
    from histomae.learn.methods import Method

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: For --quick: steps of some milliseconds.
SMALL = {"encoder": "vit_micro", "tile_px": 64}
SMALL_REFERENCE = {"decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 4}
SMALL_DEFAULT = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
#: Rows and columns of large matrices.
LARGE = 2048
#: Matrices are multiplied for so long at a time, s.
MULTIPLY_S = 0.3
#: What --plant does with each crop, s: more than a step takes on the busiest machine.
SLOW_S, QUICK_SLOW_S = 0.03, 0.25
#: Longest wait for a process that trains, s.
PATIENCE_S = 600.0
GB = 10**9
#: As in MAE.
BETAS = (0.9, 0.95)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


# Sources of crops ------------------------------------------------------------


class Wrapped:
    """A reader of crops with another way to stream them."""

    def __init__(self, reader: CropReader) -> None:
        self.reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)


class InMemory(Wrapped):
    """The same crops, decoded before the training begins."""

    def __init__(self, reader: CropReader) -> None:
        super().__init__(reader)
        self.pixels = reader.read_batch(np.arange(len(reader)))

    def stream(self, batches: Iterable[Any]) -> Iterator[Pixels | None]:
        """Yield the pictures of each batch."""
        for batch in batches:
            yield self.pixels[batch]


class Slow(Wrapped):
    """Decodes crops in the thread of whoever asks, and takes its time."""

    def __init__(self, reader: CropReader, *, seconds: float) -> None:
        super().__init__(reader)
        self.seconds = seconds

    def stream(self, batches: Iterable[Any]) -> Iterator[Pixels | None]:
        """Yield the pictures of each batch."""
        for batch in batches:
            time.sleep(self.seconds * len(batch))
            yield self.reader.read_batch(batch)


def fault_of(args: argparse.Namespace) -> Callable[[CropReader], Any] | None:
    """Return the source that ``--plant`` trains from; None: the reader itself."""
    if not args.plant:
        return None
    return partial(Slow, seconds=QUICK_SLOW_S if args.quick else SLOW_S)


def fed_by(source: Callable[[CropReader], Any] | None) -> Method:
    """Return the MAE, fed by what a source makes of the reader; None: by the reader."""
    mae = METHODS["mae"]

    def examples(*what: Any, **named: Any) -> Generator[Any, None, Any]:
        config, found = yield from mae.examples(*what, **named)
        if source is None:
            return config, found
        return config, replace(found, source=source(found.source))

    return replace(mae, examples=examples)


# Contestants -----------------------------------------------------------------


class Training:
    """The real trainer, some steps at a time: pictures a second."""

    def __init__(
        self,
        folder: Path,
        config: PretrainConfig,
        source: Callable[[CropReader], Any] | None = InMemory,
        *,
        steps: int,
        clock: Callable[[], float],
    ) -> None:
        mae = METHODS["mae"]
        METHODS["mae"] = fed_by(source)
        self._events = run_in(begin(folder, config))
        try:
            started = self._next(Started)
        finally:
            METHODS["mae"] = mae
        self._pictures = steps * min(config.batch_size, started.crops)
        self._steps, self._clock = steps, clock

    def __call__(self) -> float:
        """Time some steps."""
        self._next(Step)  # reading is as far ahead as in mid-training again
        begun = self._clock()
        for _ in range(self._steps):
            self._next(Step)
        return self._pictures / (self._clock() - begun)

    def _next(self, kind: type[Any]) -> Any:
        return next(event for event in self._events if isinstance(event, kind))

    def close(self) -> None:
        """End the training."""
        self._events.close()


@dataclass
class Bare:
    """Forward, backward and update on pictures that are ready: pictures a second."""

    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    pictures: int
    clock: Callable[[], float]

    def __call__(self) -> float:
        """Time a step."""
        begun = self.clock()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()
        return self.pictures / (self.clock() - begun)


def optimizer_of(model: nn.Module, **how: Any) -> torch.optim.AdamW:
    """Return the optimizer of all contestants: one kernel, unless told otherwise."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(
        weights, lr=1e-6, betas=BETAS, weight_decay=0.05, **(how or {"fused": True})
    )


def ours(
    config: PretrainConfig,
    clock: Callable[[], float],
    *,
    is_compiled: bool = False,
    fuses_attention: bool | None = None,
) -> Bare:
    """Return our own step, without the loop around it.

    ``fuses_attention``: None as the loop chooses.
    """
    method, setting = METHODS["mae"], Setting(config, (0.5,) * 3, (0.25,) * 3)
    model = method.build(config, torch.Generator().manual_seed(0))
    count = config.micro_batch or 1
    pixels = torch.from_numpy(noise(config)).permute(0, 2, 3, 1).contiguous()
    inputs = method.inputs(Batch(pixels, np.arange(count), 0), setting)
    learner: Any = Learner(model, method, setting)
    if fuses_attention is not None:
        choose_attention(model, torch.device("cpu"), by_steps=not fuses_attention)
    if is_compiled:
        learner = torch.compile(learner)
    return Bare(lambda: learner(inputs)[""], optimizer_of(model), count, clock)


def peers(folder: Path, config: PretrainConfig, clock: Callable[[], float]) -> Bare:
    """Return the step of facebookresearch/mae, from a clone of it.

    Its code is of 2021; what timm and NumPy have dropped since is handed to it.
    """
    sys.path.insert(0, str(folder))
    try:
        import models_mae
    finally:
        sys.path.remove(str(folder))
    block = models_mae.Block
    models_mae.Block = lambda *sizes, qk_scale=None, **more: block(*sizes, **more)
    vars(np).setdefault("float", float)
    dim, depth, heads = ENCODER_SIZES[config.encoder]
    torch.manual_seed(0)
    model = models_mae.MaskedAutoencoderViT(
        img_size=config.tile_px,
        patch_size=config.patch_size,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        decoder_embed_dim=config.decoder_dim,
        decoder_depth=config.decoder_depth,
        decoder_num_heads=config.decoder_heads,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        norm_pix_loss=config.norm_pix,
    )
    images = torch.from_numpy(noise(config)).float() / 64 - 2
    count = len(images)
    return Bare(
        lambda: model(images, mask_ratio=config.mask_ratio)[0],
        optimizer_of(model),
        count,
        clock,
    )


def noise(config: PretrainConfig) -> Pixels:
    """Return pictures of a micro-batch, uint8 (N, 3, H, W)."""
    size = (config.micro_batch or 1, 3, config.tile_px, config.tile_px)
    return np.random.default_rng(0).integers(0, 256, size, np.uint8)


@dataclass
class Update:
    """The optimizer's part of a step alone: updates a second."""

    optimizer: torch.optim.Optimizer
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.full_like(weight, 1e-3)
        self.optimizer.step()

    def __call__(self) -> float:
        """Time ten updates."""
        begun = self.clock()
        for _ in range(10):
            self.optimizer.step()
        return 10 / (self.clock() - begun)


@dataclass
class Multiply:
    """Matrices (M, K) times (K, N), f32, one after the other: operations a second."""

    shapes: list[tuple[int, int, int]]
    clock: Callable[[], float]
    _pairs: list[tuple[Tensor, Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self._pairs = [
            (torch.randn(m, k), torch.randn(k, n), torch.empty(m, n))
            for m, k, n in self.shapes
        ]

    def __call__(self) -> float:
        """Time some rounds."""
        done, begun = 0, self.clock()
        while done == 0 or self.clock() - begun < MULTIPLY_S:
            for one, other, out in self._pairs:
                torch.mm(one, other, out=out)
            done += sum(2 * m * k * n for m, k, n in self.shapes)
        return done / (self.clock() - begun)


# Counting operations ---------------------------------------------------------


def tokens_of(config: PretrainConfig) -> tuple[int, int]:
    """Return how many patches a tile has, and how many of them the encoder sees."""
    patches = (config.tile_px // config.patch_size) ** 2
    return patches, patches - round(patches * config.mask_ratio)


def operations(config: PretrainConfig) -> float:
    """Return the floating-point operations of a training step, for one picture.

    Of matrix products, two for each multiply-add; backward takes twice as many as
    forward. A block of width D takes 12 D² multiply-adds a token, and 2 T D for its
    attention over T tokens.
    """
    dim, depth, _ = ENCODER_SIZES[config.encoder]
    patches, visible = tokens_of(config)
    entries = 3 * config.patch_size**2

    def block(tokens: int, width: int) -> int:
        return tokens * (12 * width**2 + 2 * tokens * width)

    forward = (
        visible * entries * dim
        + depth * block(visible + 1, dim)
        + (visible + 1) * dim * config.decoder_dim
        + config.decoder_depth * block(patches + 1, config.decoder_dim)
        + patches * config.decoder_dim * entries
    )
    return 3 * 2 * forward


def shapes_of(config: PretrainConfig) -> list[tuple[int, int, int]]:
    """Return the products of one encoder and one decoder block, as (M, K, N)."""
    count = config.micro_batch or 1
    patches, visible = tokens_of(config)
    dim, _, _ = ENCODER_SIZES[config.encoder]
    return [
        (count * (tokens + 1), width * k, width * n)
        for tokens, width in ((visible, dim), (patches, config.decoder_dim))
        for k, n in ((1, 3), (1, 1), (1, 4), (4, 1))
    ]


# Measuring -------------------------------------------------------------------


def take_turns(
    contestants: dict[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Let everyone run once a round, to and fro; return all speeds."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for name, run in contestants.items():
        say(f"warming up: {name}")
        run()
    for number in range(rounds):
        order = list(contestants)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            rates[name].append(contestants[name]())
        say(f"round {number + 1} of {rounds}")
    return rates


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """Return how many times as fast one is: the median over the rounds."""
    pairs = zip(rates[one], rates[other], strict=True)
    return statistics.median(a / b for a, b in pairs)


def most_memory(folder: Path, config: PretrainConfig) -> tuple[float, float]:
    """Return the most memory (GB) of a process that trains, saves and stops.

    And how much of it is its own: the rest are files of libraries, which the system may
    drop and read again.
    """
    run = begin(folder, replace(config, save_every=2))
    process = supervise.start(run)
    most, own, until = 0.0, 0.0, time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        peak, now = resident(process.pid)
        most, own = max(most, peak), max(own, now)
        if isinstance(run.last_event, Saved):
            run.request("stop")
        time.sleep(0.02)
    process.kill()
    return most, own


def resident(pid: int) -> tuple[float, float]:
    """Return the most memory that a process has had, and what is its own now, GB."""
    peak = own = 0
    with suppress(OSError, psutil.Error):  # it has just ended
        peak = own = psutil.Process(pid).memory_info().rss
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():  # Linux
            name, _, told = line.partition(":")
            if name == "VmHWM":
                peak = int(told.split()[0]) * 1024
            if name == "RssAnon":
                own = int(told.split()[0]) * 1024
    return peak / GB, own / GB


@dataclass(frozen=True)
class Recipes:
    """The settings that are compared."""

    reference: PretrainConfig
    default: PretrainConfig


def recipes(slide: Path, args: argparse.Namespace) -> Recipes:
    """Return the two recipes, to be run for ever."""
    common = PretrainConfig(
        slides=(str(slide),),
        **(SMALL if args.quick else {}),
        crops_per_slide=args.crops,
        epochs=10**6,
        warmup_epochs=0,
        batch_size=args.batch,
        micro_batch=args.micro_batch,
        preview_every=10**9,
        save_every=10**9,
        held_out=0.0,
        device="cpu",
        precision="f32",
        threads=args.threads,
    )
    return Recipes(
        replace(common, **(SMALL_REFERENCE if args.quick else REFERENCE_DECODER)),
        replace(common, **(SMALL_DEFAULT if args.quick else {})),
    )


# Part by part ----------------------------------------------------------------

BARE, PEER, GEMM, OWN = (
    "our step",
    "the peer's step",
    "large GEMM",
    "GEMM of its shapes",
)
PRECISIONS = ("f32", "bf16")


def on_cpu(folder: Path, found: Recipes, args: argparse.Namespace) -> list[Figure]:
    """Compare on the processor."""
    clock = CLOCKS[args.clock]
    torch.set_num_threads(args.threads)
    reference = found.reference
    steps = {
        BARE: ours(reference, clock),
        GEMM: Multiply([(LARGE, LARGE, LARGE)], clock),
        OWN: Multiply(shapes_of(reference), clock),
    }
    if args.peer:
        steps[PEER] = peers(args.peer, reference, clock)
    rates = take_turns(steps, args.rounds)
    figures = []
    if args.peer:
        name = "our step against facebookresearch/mae, f32"
        times = ratio(rates, BARE, PEER)
        figures.append(Figure(name, times, "times", at_least=args.goal_peer))
    share = ratio(rates, BARE, GEMM) * operations(reference) * 100
    shapes = ratio(rates, BARE, OWN) * operations(reference) * 100
    figures += [
        Figure("our step, f32", statistics.median(rates[BARE]), "img/s"),
        Figure("operations of a step", operations(reference) / 1e9, "GFLOP/img"),
        Figure("GEMM, large", statistics.median(rates[GEMM]) / 1e9, "GFLOP/s"),
        Figure("GEMM, own shapes", statistics.median(rates[OWN]) / 1e9, "GFLOP/s"),
        Figure("our step, share of GEMM on its own shapes", shapes, "%"),
        Figure("our step, share of large GEMM", share, "%", at_least=args.goal_gemm),
    ]
    return [*figures, *by_the_trainer(folder, found, args, clock)]


def by_the_trainer(
    folder: Path,
    found: Recipes,
    args: argparse.Namespace,
    clock: Callable[[], float],
) -> list[Figure]:
    """Compare recipes and sources by the real trainer."""
    how = {"steps": args.steps, "clock": clock}
    defaults = {name: replace(found.default, precision=name) for name in PRECISIONS}
    trainings = {"reference": Training(folder / "reference", found.reference, **how)}
    for name, config in defaults.items():
        trainings[name] = Training(folder / name, config, **how)
        trainings[f"{name}, slides"] = Training(
            folder / f"{name}-slides",
            replace(config, cache_gb=0.0),
            fault_of(args),
            **how,
        )
    rates = take_turns(trainings, args.rounds)
    for training in trainings.values():
        training.close()
    figures = []
    for name in ("reference", *PRECISIONS):
        what = "reference recipe, f32" if name == "reference" else f"default, {name}"
        speed = statistics.median(rates[name])
        figures.append(Figure(f"{what}, by the trainer", speed, "img/s"))
    fastest = max(PRECISIONS, key=lambda name: ratio(rates, name, "reference"))
    for name in PRECISIONS:
        goal = args.goal_recipe if name == fastest else None
        times = ratio(rates, name, "reference")
        what = f"default recipe in {name} against the reference in f32"
        figures.append(Figure(what, times, "times", at_least=goal))
    share = ratio(rates, f"{fastest}, slides", fastest)
    what = f"default recipe in {fastest}, from slides against from memory"
    figures.append(Figure(what, share, "times", at_least=args.goal_slides))
    return figures


def what_pays(found: Recipes, args: argparse.Namespace) -> list[Figure]:
    """Compare ways of doing the same."""
    clock = CLOCKS[args.clock]
    config = replace(found.default, precision="bf16")
    model = METHODS["mae"].build(config, torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[], float]] = {
        "plain": ours(config, clock),
        "attention fused": ours(config, clock, fuses_attention=True),
        "AdamW fused": Update(optimizer_of(model), clock),
        "AdamW by weight": Update(optimizer_of(model, foreach=False), clock),
    }
    if args.compile:
        ways["compiled"] = ours(config, clock, is_compiled=True)
    rates = take_turns(ways, args.rounds)
    attention = ratio(rates, "attention fused", "plain")
    adam = ratio(rates, "AdamW fused", "AdamW by weight")
    figures = [
        Figure(
            "a step with fused attention (SDPA) against by steps", attention, "times"
        ),
        Figure("an update by fused AdamW against weight by weight", adam, "times"),
    ]
    if args.compile:
        compiled = ratio(rates, "compiled", "plain")
        figures.append(Figure("a compiled step against a plain one", compiled, "times"))
    return figures


def on_gpu(folder: Path, found: Recipes, args: argparse.Namespace) -> list[Figure]:
    """Measure on a graphics card."""
    card = {
        "device": "cuda",
        "precision": "bf16",
        "micro_batch": args.gpu_micro_batch,
        "batch_size": args.gpu_micro_batch * 4,
    }
    how = {"steps": args.gpu_steps, "clock": time.perf_counter}
    reference = replace(found.reference, **card)
    default = replace(found.default, **card)
    trainings = {
        "reference": Training(folder / "gpu-reference", reference, **how),
        "default": Training(folder / "gpu-default", default, **how),
        "slides": Training(
            folder / "gpu-slides",
            replace(default, cache_gb=0.0),
            fault_of(args),
            **how,
        ),
    }
    rates = take_turns(trainings, args.rounds)
    for training in trainings.values():
        training.close()
    name = torch.cuda.get_device_name()
    both = (("reference", args.goal_gpu_reference), ("default", args.goal_gpu_default))
    return [
        *(
            Figure(
                f"{recipe} recipe in bf16 on {name}",
                statistics.median(rates[recipe]),
                "img/s",
                at_least=goal,
            )
            for recipe, goal in both
        ),
        Figure(
            "default recipe on the GPU, from slides against from memory",
            ratio(rates, "slides", "default"),
            "times",
            at_least=args.goal_gpu_slides,
        ),
    ]


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    add, cores = parser.add_argument, torch.get_num_threads()
    add("--peer", type=Path, help="a clone of facebookresearch/mae")
    add("--slide", type=Path, help="to take crops from (the sample slide)")
    add("--crops", type=int, help="of the slide (400; quick: 40)")
    add("--rounds", type=int, help="turns of everyone (7; quick: 2)")
    add("--steps", type=int, default=2, help="of a training, a turn")
    add("--batch", type=int, help="crops of a step (32; quick: 8)")
    add("--micro-batch", type=int, help="crops at a time (8; quick: 4)")
    add("--threads", type=int, default=cores, help=f"({cores})")
    add("--clock", choices=CLOCKS, default="wall")
    add("--compile", action="store_true", help="try torch.compile too (a minute)")
    add("--gpu-micro-batch", type=int, default=256)
    add("--gpu-steps", type=int, default=10)
    add("--goal-peer", type=float, help="times the peer (1; quick: none)")
    add("--goal-gemm", type=float, help="%% of the GEMM rate (80; quick: none)")
    add("--goal-recipe", type=float, help="times the reference (6; quick: none)")
    add("--goal-slides", type=float, help="of the speed from memory (.97; quick: .3)")
    add("--goal-memory-gb", type=float, default=1.5)
    add("--goal-gpu-reference", type=float, default=8000.0, help="img/s")
    add("--goal-gpu-default", type=float, default=17000.0, help="img/s")
    add("--goal-gpu-slides", type=float, default=0.9)
    args = parser.parse_args()
    set_sizes(args)
    with away_from_the_user() as folder:
        figures = measure(folder, args)
    return report(figures, as_json=args.json)


def set_sizes(args: argparse.Namespace) -> None:
    """Fill in what was not given, for the short form or the long one."""
    for name, short, long in (
        ("crops", 40, 400),
        ("rounds", 2, 7),
        ("batch", 8, 32),
        ("micro_batch", 4, 8),
        ("goal_peer", None, 1.0),
        ("goal_gemm", None, 80.0),
        ("goal_recipe", None, 6.0),
        ("goal_slides", 0.3, 0.97),
    ):
        if getattr(args, name) is None:
            setattr(args, name, short if args.quick else long)


def measure(folder: Path, args: argparse.Namespace) -> list[Figure]:
    """Measure everything that can be measured here."""
    slide = args.slide
    if slide is None and args.quick:
        slide = make_slide(folder / "a.tiff")
    elif slide is None:
        from histomae.slides.sample import sample_slide

        say("making the sample slide, unless it is there")
        slide = sample_slide().slide_path
    found, before, left_out = recipes(slide, args), load(), []
    say("measuring memory")
    config = replace(found.default, precision="auto", micro_batch=None)
    memory, own = most_memory(folder / "memory", config)
    figures = [
        *on_cpu(folder, found, args),
        Figure("of the memory, not files of libraries", own, "GB"),
        Figure("most memory of the default recipe", memory, "GB", args.goal_memory_gb),
    ]
    figures += what_pays(found, args)
    if not args.peer:
        left_out.append("facebookresearch/mae: give --peer")
    if not args.compile:
        left_out.append("torch.compile: give --compile")
    if torch.cuda.is_available():
        figures += on_gpu(folder, found, args)
    else:
        left_out.append("a GPU: there is none")
    return [
        before,
        load(),
        Figure("rows left out", len(left_out), "; ".join(left_out)),
        *figures,
    ]


if __name__ == "__main__":
    sys.exit(main())
