"""Is a resumed training the uninterrupted one? To the last bit, on one machine.

For every precision and number of reading threads a pretraining runs through, and the
same one is killed (SIGKILL) in the middle of its epochs and gone on with, again and
again. Weights and the optimizer's state must have the same SHA-256, and the recorded
losses, learning rates and gradient norms must be the same numbers. The uninterrupted
ones of a precision must agree too: neither reading threads nor a repetition may matter.

``--plant`` draws the masks from a generator that begins anew with each process.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from figures import Figure, load, options, report, say
from spoil import restless_masks
from trainers import SMALL, Trainers, begin, kill, make_slide

from histomae.events import HeldOut, Step
from histomae.models.checkpoint import load_checkpoint

if TYPE_CHECKING:
    import argparse

    from trainers import Spoil

    from histomae.config import PretrainConfig
    from histomae.learn.runs import RunFolder

READERS = (0, 2, 4)
PRECISIONS = ("f32", "bf16")
#: Longest wait for a training, s.
PATIENCE_S = 1200.0


@dataclass(frozen=True)
class Result:
    """What a training came to."""

    digest: str
    numbers: list[tuple[float, ...]]


@dataclass
class Findings:
    """What was compared."""

    comparisons: int = 0
    kills: int = 0
    weights_differ: int = 0
    losses_differ: int = 0
    unlike: list[str] = field(default_factory=list)

    def compare(self, name: str, one: Result, other: Result) -> None:
        """Count whether two trainings came to the same."""
        self.comparisons += 1
        weights, losses = one.digest != other.digest, one.numbers != other.numbers
        self.weights_differ += weights
        self.losses_differ += losses
        if weights or losses:
            self.unlike.append(name)
            say(f"{name}: not the same")


def result_of(run: RunFolder) -> Result:
    """Read what a training left behind."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(run.last).tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    numbers: list[tuple[float, ...]] = []
    for event in run.events():
        if isinstance(event, Step):
            numbers.append((event.step, event.loss, event.lr, event.grad_norm))
        if isinstance(event, HeldOut):
            numbers.append((event.step, event.loss))
    return Result(digest.hexdigest(), numbers)


def trained(
    folder: Path, config: PretrainConfig, trainers: Trainers, *, spoil: Spoil = ()
) -> Result:
    """Train without a break."""
    run = begin(folder, config)
    process = trainers.start(run, spoil=spoil)
    process.join(PATIENCE_S)
    kill(process)
    return result_of(run)


def killed(
    folder: Path,
    config: PretrainConfig,
    trainers: Trainers,
    at_steps: list[int],
    *,
    spoil: Spoil = (),
) -> tuple[Result, int]:
    """Train, and be killed after each of these steps; then go on to the end.

    Returns what it came to, and how often it was killed.
    """
    run, kills = begin(folder, config), 0
    for step in (*at_steps, None):
        process = trainers.start(run, spoil=spoil, dies_after=step)
        process.join(PATIENCE_S)
        kills += process.exitcode == -signal.SIGKILL
        kill(process)
    return result_of(run), kills


def measure(folder: Path, args: argparse.Namespace) -> Findings:
    """Compare every precision and number of readers."""
    slide, found, trainers = make_slide(folder / "a.tiff"), Findings(), Trainers()
    random = np.random.default_rng(args.seed)
    spoil = (restless_masks,) if args.plant else ()
    precisions, readers, epochs = PRECISIONS, READERS, 12
    if args.quick:
        precisions, readers, epochs = PRECISIONS[:1], READERS[1:2], 4
    config = replace(SMALL, slides=(str(slide),), epochs=epochs, preview_every=7)
    for precision in precisions:
        first: Result | None = None
        for number in readers:
            name = f"{precision}, {number} reading threads"
            say(name)
            here = folder / f"{precision}-{number}"
            one = replace(config, precision=precision, readers=number)
            whole = trained(here / "whole", one, trainers, spoil=spoil)
            last = int(whole.numbers[-1][0])
            moments = sorted(random.integers(1, last, args.count).tolist())
            resumed, kills = killed(
                here / "resumed", one, trainers, moments, spoil=spoil
            )
            found.kills += kills
            found.compare(f"{name}, resumed", whole, resumed)
            if first is None:
                again = trained(here / "again", one, trainers, spoil=spoil)
                found.compare(f"{name}, again", whole, again)
                first = whole
            else:
                found.compare(f"{name}, as with {readers[0]}", whole, first)
    return found


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--count", type=int, default=3, help="kills of each training")
    parser.add_argument("--goal", type=int, default=0, help="differences, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args)
    return report(
        [
            load(),
            Figure("kills", found.kills, at_least=1),
            Figure("trainings compared", found.comparisons, at_least=1),
            Figure("of them with other losses", found.losses_differ, "", args.goal),
            Figure("of them with other weights", found.weights_differ, "", args.goal),
        ],
        as_json=args.json,
    )


if __name__ == "__main__":
    sys.exit(main())
