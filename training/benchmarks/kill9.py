"""Is a checkpoint ever lost? A training is killed at random moments, hundreds of times.

A pretraining that saves every few steps runs in a process of its own, gets SIGKILL, and
is started again in the same folder; ``--inside`` of the kills wait for a save to begin
(which with ``--quick`` takes until it is killed: then none comes too late).
After each the checkpoint must be readable, no further behind than one interval, and the
next process must go on from it without a question. At the end the training is stopped
in order, and no temporary file may be left.

What is proven is that the death of the process does no harm; that of the power supply
is another matter (files are flushed before they are renamed).

``--plant`` writes the checkpoint over the old one.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from figures import Figure, load, options, report, say
from spoil import dwelling_saves, torn_checkpoints
from trainers import SMALL, Trainers, begin, kill, make_slide

from histomae.errors import HistomaeError
from histomae.events import Failed, Finished, Step
from histomae.models.checkpoint import load_checkpoint

if TYPE_CHECKING:
    import argparse
    from multiprocessing.process import BaseProcess

    from histomae.learn.runs import RunFolder

#: A kill falls within so many seconds of the first new step.
WITHIN_S = 0.4
#: Longest wait for a process to make a step, or a save, s.
PATIENCE_S = 600.0


@dataclass
class Findings:
    """What the kills did."""

    kills: int = 0
    inside: int = 0
    unreadable: int = 0
    stuck: int = 0
    lost_steps: int = 0


def saves(run: RunFolder) -> list[Path]:
    """Return the checkpoints that are being written now."""
    return list(run.last.parent.glob(".*.tmp"))


def looks_of(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file; they change when it is written in place."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


def last_step(run: RunFolder) -> int:
    """Return the last step that was recorded, 0 without any."""
    event = run.last_event
    if isinstance(event, Step):
        return event.step
    return max((e.step for e in run.events() if isinstance(e, Step)), default=0)


def saved_step(run: RunFolder) -> int:
    """Return the step of the checkpoint, 0 without one."""
    return load_checkpoint(run.last).header.step if run.last.exists() else 0


def start(run: RunFolder, trainers: Trainers, **how: Any) -> tuple[BaseProcess, bool]:
    """Start a training; return its process, and whether it has made a step."""
    said, going = multiprocessing.Pipe(duplex=False)
    process = trainers.start(run, going=going, **how)
    going.close()
    try:
        goes_on = said.poll(PATIENCE_S) and bool(said.recv())
    except EOFError:  # it ended without a step
        goes_on = False
    said.close()
    return process, goes_on


def wait_for_save(
    run: RunFolder,
    process: BaseProcess,
    delay_s: float,
    before: tuple[int, int] | None,
) -> None:
    """Wait until a save has begun, and a part of it is done.

    ``before`` is how the checkpoint looked; where it is written in place, it changes.
    """
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.is_alive():
        if saves(run) or looks_of(run.last) != before:
            break
    time.sleep(delay_s)


def measure(run: RunFolder, args: argparse.Namespace) -> Findings:
    """Kill and go on."""
    random, trainers, found = np.random.default_rng(args.seed), Trainers(), Findings()
    spoil = (torn_checkpoints,) if args.plant else ()
    dwells = (dwelling_saves(PATIENCE_S),) if args.quick else ()
    inside = set(random.permutation(args.count)[: args.inside].tolist())
    for number in range(args.count):
        lingers = dwells if number in inside else ()
        before = looks_of(run.last)
        process, goes_on = start(run, trainers, spoil=(*spoil, *lingers))
        if not goes_on:
            found.stuck += 1
            kill(process)
            break
        if number in inside:
            if not lingers:
                before = looks_of(run.last)
            wait_for_save(run, process, random.uniform(0, 0.004), before)
        else:
            time.sleep(random.uniform(0, WITHIN_S))
        kill(process)
        found.kills += 1
        found.inside += bool(saves(run))
        try:
            lost = last_step(run) - saved_step(run)
        except HistomaeError as error:
            say(f"kill {number + 1}: {error}")
            found.unreadable += 1
            break
        found.lost_steps = max(found.lost_steps, lost)
        if (number + 1) % 20 == 0:
            say(f"{number + 1} kills, at step {last_step(run)}")
    else:
        found.stuck += not stops(run, trainers)
    return found


def stops(run: RunFolder, trainers: Trainers) -> bool:
    """Go on once more, stop in order, and tell whether that worked."""
    process, goes_on = start(run, trainers)
    run.request("stop")
    process.join(PATIENCE_S)
    done = goes_on and not process.is_alive() and isinstance(run.last_event, Finished)
    kill(process)
    return done


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--count", type=int, help="kills (200; quick: 4)")
    parser.add_argument("--inside", type=int, help="of them in a save (50; quick: 2)")
    parser.add_argument("--goal", type=int, default=0, help="checkpoints lost, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.count = args.count or (4 if args.quick else 200)
    args.inside = (2 if args.quick else 50) if args.inside is None else args.inside
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        slide = make_slide(Path(folder, "a.tiff"))
        config = replace(SMALL, slides=(str(slide),), epochs=10**6)
        run = begin(Path(folder, "run"), config)
        found = measure(run, args)
        left = list(run.path.rglob("*.tmp"))
        for path in left:
            say(f"left: {path.relative_to(run.path)}")
        failures = sum(isinstance(event, Failed) for event in run.events())
    return report(
        [
            load(),
            Figure("kills", found.kills, at_least=args.count),
            Figure("of them inside a save", found.inside, at_least=args.inside),
            Figure("took", time.monotonic() - begun, "s"),
            Figure("trainings that did not go on", found.stuck, "", 0),
            Figure("failures recorded", failures, "", 0),
            Figure("temporary files left", len(left), "", 0),
            Figure("steps lost at most", found.lost_steps, "", config.save_every),
            Figure("checkpoints lost or unreadable", found.unreadable, "", args.goal),
        ],
        as_json=args.json,
    )


if __name__ == "__main__":
    sys.exit(main())
