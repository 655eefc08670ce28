"""What a training promises when something goes wrong: every fault, and what follows.

A full disk, one made read-only, a folder that is sealed; memory that runs out; a loss
or gradient that is no number; a process that is killed, and the viewer that started it;
signals; a stop at any moment; two trainings in one folder. Each is done to a real
training in a process of its own, and each promise is looked at afterwards. What cannot
be done on a machine is counted as skipped, with the reason; it never counts as kept.

``--plant`` puts into each case a defect that programs have (checkpoints written in
place, errors of the disk swallowed, numbers unchecked, ...): every case must break one
of its promises then.
"""

from __future__ import annotations

from disks import NotPossibleHereError, in_own_mounts, sealed, small_disk

if __name__ == "__main__":
    in_own_mounts()  # this begins again: before what takes long to import

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from figures import Figure, load, options, report, say
from kill9 import PATIENCE_S, looks_of, saved_step, start, wait_for_save
from resume_exact import result_of, trained
from spoil import (
    address_space,
    cuda_memory,
    deaf,
    dies_with_its_parent,
    everybody_lives,
    infinite_gradient,
    nan_loss,
    nobody_lives,
    numbers_unchecked,
    quota,
    signals_ignored,
    smaller_batches,
    swallowed_errors,
    torn_checkpoints,
)
from trainers import SMALL, Trainers, begin, kill, make_slide
from watch import away_from_the_user, trainers_in

from histomae.config import PretrainConfig
from histomae.errors import HistomaeError, RunError
from histomae.events import Event, Failed, Finished, HeldOut, Note, Saved, Started, Step
from histomae.learn import supervise
from histomae.learn.pretrain import run_in
from histomae.learn.runs import EventReader, Owner, RunFolder, list_runs
from histomae.models.checkpoint import load_checkpoint

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.process import BaseProcess

    from disks import Disk
    from resume_exact import Result

#: How a sentence begins that says what to do.
CURES = (
    "Attach",
    "Bring",
    "Choose",
    "Delete",
    "Make room",
    "Press",
    "Resume",
    "Start",
    "Stop",
)
#: Longest wait for a process that has to import everything, or for a window, s.
SLOW_S = 900.0
#: A disk that a checkpoint of the small training overfills, and one that holds two, MB.
TOO_SMALL_MB, SMALL_MB = 40, 64
#: For as long a disk refuses, s.
REFUSED_S = 1.0
#: Longest wait for what a sound program does soon and a broken one never, s.
UNSAID_S = 120.0
#: Who has not said by then that the disk refuses, after so many saves, never does.
UNSAID_SAVES = 10
#: When a training is asked to stop.
MOMENTS = ("reading", "stepping", "saving", "previewing")
#: The default recipe, which saves and shows often enough to be met at it.
BUSY = PretrainConfig(
    crops_per_slide=60,
    batch_size=32,
    epochs=10**6,
    warmup_epochs=0,
    save_every=3,
    preview_every=4,
    device="cpu",
)


@dataclass(frozen=True)
class Promise:
    """Something that was promised, and whether it was kept; ``seen`` tells why not."""

    text: str
    is_kept: bool
    seen: str = ""


@dataclass
class Bench:
    """What a case works with: a folder of its own, a slide, and what is planted."""

    folder: Path
    slide: Path
    trainers: Trainers
    args: argparse.Namespace
    random: np.random.Generator
    planted: tuple[Callable[[], None], ...] = ()
    figures: list[Figure] = field(default_factory=list)

    @property
    def plant_names(self) -> list[str]:
        """The names of what is planted: functions of :mod:`spoil`."""
        return [put_in.__name__ for put_in in self.planted]

    def begin(self, path: Path | None = None, **changes: Any) -> RunFolder:
        """Make a run folder with the settings of a small training, changed."""
        config = replace(SMALL, **{"slides": (str(self.slide),), **changes})
        return begin(path or self.folder / "run", config)

    def start(
        self, run: RunFolder, *faults: Callable[[], None]
    ) -> tuple[BaseProcess, bool]:
        """Start a training; return its process, and whether it has made a step."""
        return start(run, self.trainers, spoil=(*faults, *self.planted))


@dataclass(frozen=True)
class Case:
    """A fault, and the check of what was promised.

    ``plant`` is a defect put into the training's process; ``plant_here`` makes a
    context in which one is in this process.
    """

    name: str
    check: Callable[[Bench], Iterator[Promise]]
    plant: Callable[[], None] | None = None
    plant_here: Callable[[], contextlib.AbstractContextManager[Any]] | None = None
    quick: bool = False
    """Whether it is part of the short form."""


class Record:
    """What a run records, read as it comes."""

    def __init__(self, run: RunFolder) -> None:
        self._reader = EventReader(run)
        self._unread: deque[Event] = deque()

    def wait(
        self,
        said: Callable[[Event], bool],
        process: BaseProcess | None = None,
        *,
        most_s: float = PATIENCE_S,
    ) -> Event | None:
        """Return the next event of which something is so; None: it never came."""
        until = time.monotonic() + most_s
        while True:
            alive = process is None or process.is_alive()
            self._unread.extend(self._reader.read())
            while self._unread:
                event = self._unread.popleft()
                if said(event):
                    return event
            if time.monotonic() > until or not alive:
                return None
            time.sleep(0.01)


# What is looked at -----------------------------------------------------------


def ends_with_what_to_do(text: str) -> bool:
    """Tell whether one of the last two sentences says what to do."""
    sentences = re.split(r"(?<=[.!?:;])\s+", text.strip())
    return any(sentence.startswith(CURES) for sentence in sentences[-2:])


def names_folder_and_megabytes(text: str, run: RunFolder) -> bool:
    """Tell whether a message says where there is no room, how much it takes and is."""
    numbers = re.findall(r"(\d+\.\d) MB", text)
    return str(run.last.parent) in text and len(numbers) == 2


def digest(path: Path) -> str:
    """Return a hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def steps_of(run: RunFolder) -> list[int]:
    """Return the steps that were recorded."""
    return [event.step for event in run.events() if isinstance(event, Step)]


def started(run: RunFolder) -> Started:
    """Return what was recorded when it last began."""
    return [event for event in run.events() if isinstance(event, Started)][-1]


def notes_of(run: RunFolder) -> list[str]:
    """Return the sentences that were recorded."""
    return [event.text for event in run.events() if isinstance(event, Note)]


def no_partial_file(run: RunFolder) -> Promise:
    """Look for temporary files."""
    left = partial_files(run)
    return Promise("no partial file is left", not left, ", ".join(left))


def partial_files(run: RunFolder) -> list[str]:
    """Return the temporary files there are."""
    return [str(path.relative_to(run.path)) for path in run.path.rglob("*.tmp")]


def checkpoint_is_valid(run: RunFolder) -> Promise:
    """Load every checkpoint there is, of which there must be one, and look for NaN."""
    seen = "" if run.last.exists() else "none"
    for path in sorted(run.path.rglob("*.safetensors")):
        try:
            tensors = load_checkpoint(path).tensors
        except HistomaeError as error:
            seen = str(error)
        else:
            broken = [n for n, t in tensors.items() if not torch.isfinite(t).all()]
            seen = seen or (f"{path.name}: {broken[0]} is not finite" if broken else "")
    text = "every checkpoint loads, and all its numbers are finite"
    return Promise(text, not seen, seen)


def ended(run: RunFolder, reason: str) -> Promise:
    """Look at how the run says that it ended."""
    last = run.last_event
    good = isinstance(last, Finished) and last.reason == reason
    return Promise(f"the run ended as {reason}, and says so", good, str(last))


def goes_on(run: RunFolder, bench: Bench) -> Iterator[Promise]:
    """Go on without the fault, and stop in order."""
    process, going = bench.start(run)
    yield Promise("the run goes on without a question", going, str(run.last_event))
    run.request("stop")
    process.join(PATIENCE_S)
    kill(process)
    yield ended(run, "stopped")
    yield checkpoint_is_valid(run)


# Disks -----------------------------------------------------------------------


def disk_too_small(bench: Bench) -> Iterator[Promise]:
    """Begin on a disk that does not hold two checkpoints."""
    with small_disk(bench.folder / "disk", TOO_SMALL_MB) as disk:
        run = bench.begin(disk.path / "run", epochs=10**6)
        process, _ = bench.start(run)
        kill(process)
        steps = steps_of(run)
        yield Promise("it is refused before the first step", not steps, str(steps))
        last = run.last_event
        text = last.message if isinstance(last, Failed) else str(last)
        yield Promise(
            "the message names the folder and the megabytes",
            names_folder_and_megabytes(text, run) and ends_with_what_to_do(text),
            text,
        )
        yield no_partial_file(run)
        disk.enlarge()
        yield from goes_on(run, bench)


def disk_full(bench: Bench) -> Iterator[Promise]:
    """Fill the disk in mid-run, but for a megabyte."""
    with small_disk(bench.folder / "disk", SMALL_MB) as disk:
        yield from refused(bench, disk, lambda: disk.fill(leave=2**20), disk.enlarge)


def disk_full_to_the_last_byte(bench: Bench) -> Iterator[Promise]:
    """Fill the disk so that there is no room for an event either."""
    with small_disk(bench.folder / "disk", SMALL_MB) as disk:
        yield from refused(bench, disk, disk.fill, disk.enlarge, can_say=False)


def disk_full_in_mid_write(bench: Bench) -> Iterator[Promise]:
    """Fill a disk that says it has room, as under a quota: the write breaks off."""
    with small_disk(bench.folder / "disk", SMALL_MB) as disk:
        full = lambda: disk.fill(leave=10 * 2**20)  # noqa: E731
        yield from refused(bench, disk, full, disk.enlarge, quota)


def disk_read_only(bench: Bench) -> Iterator[Promise]:
    """Make the disk read-only in mid-run."""
    with small_disk(bench.folder / "disk", SMALL_MB) as disk:
        read_only, writable = disk.make_read_only, disk.make_writable
        yield from refused(bench, disk, read_only, writable, can_say=False)


def folder_sealed(bench: Bench) -> Iterator[Promise]:
    """Let nothing be written into the folder of the checkpoints."""
    run = bench.begin(epochs=10**6)
    with contextlib.ExitStack() as stack:
        yield from outlives(
            bench,
            run,
            lambda: stack.enter_context(sealed(run.checkpoints)),
            stack.close,
        )


def refused(
    bench: Bench,
    disk: Disk,
    refuse: Callable[[], Any],
    allow: Callable[[], Any],
    *faults: Callable[[], None],
    can_say: bool = True,
) -> Iterator[Promise]:
    """Train on a disk that refuses for a while."""
    run = bench.begin(disk.path / "run", epochs=10**6)
    yield from outlives(bench, run, refuse, allow, *faults, can_say=can_say)


def outlives(
    bench: Bench,
    run: RunFolder,
    refuse: Callable[[], Any],
    allow: Callable[[], Any],
    *faults: Callable[[], None],
    can_say: bool = True,
) -> Iterator[Promise]:
    """Let the disk refuse after the first checkpoint, and then give way.

    ``can_say``: there is room to record meanwhile that it does.
    """
    record = Record(run)
    process, _ = bench.start(run, *faults)
    try:
        record.wait(lambda event: isinstance(event, Saved), process)
        refuse()
        unsaid_at = steps_of(run)[-1] + UNSAID_SAVES * run.config().save_every
        # A save may have been under way: it is over when the next one was refused.
        record.wait(
            lambda event: (
                isinstance(event, Note)
                or (isinstance(event, Step) and event.step > unsaid_at)
            ),
            process,
            most_s=PATIENCE_S if can_say else REFUSED_S,
        )
        yield checkpoint_is_valid(run)
        before = digest(run.last)
        time.sleep(REFUSED_S)
        yield Promise(
            "the old checkpoint is intact", digest(run.last) == before, run.last.name
        )
        # It tries again and again: a file is left if one is there all the time.
        gone = until(lambda: not partial_files(run), UNSAID_S)
        yield Promise("no partial file is left", gone, ", ".join(partial_files(run)))
        yield Promise("the training goes on in memory", process.is_alive())
        at = saved_step(run) if checkpoint_is_valid(run).is_kept else 0
        allow()
        saved = record.wait(
            lambda event: isinstance(event, Saved) and event.step > at, process
        )
        yield Promise("it saves again once there is room", saved is not None)
        seen = " | ".join(notes_of(run)[:3])
        yield Promise(
            "the message names the folder and the megabytes",
            any(names_folder_and_megabytes(text, run) for text in notes_of(run)),
            seen or "nothing was said",
        )
        yield from stops(run, process)
    finally:
        allow()
        kill(process)


def stops(run: RunFolder, process: BaseProcess) -> Iterator[Promise]:
    """Stop in order, and look at what is left."""
    run.request("stop")
    process.join(PATIENCE_S)
    yield ended(run, "stopped")
    yield checkpoint_is_valid(run)
    yield no_partial_file(run)
    steps = steps_of(run)
    whole = steps == list(range(1, len(steps) + 1))
    yield Promise("no step is missing in the record", whole, f"{len(steps)} of them")


def disk_full_at_the_end(bench: Bench) -> Iterator[Promise]:
    """Fill the disk before the last checkpoint is written."""
    with small_disk(bench.folder / "disk", SMALL_MB) as disk:
        run = bench.begin(disk.path / "run", epochs=4)
        record = Record(run)
        process, _ = bench.start(run)
        try:
            record.wait(lambda event: isinstance(event, Saved), process)
            disk.fill(leave=2**20)
            said = record.wait(
                lambda e: isinstance(e, Note) and "waits" in e.text, process
            )
            yield Promise("it waits, and says so", said is not None, str(said))
            time.sleep(REFUSED_S)
            yield Promise("it waits in memory", process.is_alive())
            disk.enlarge()
            process.join(PATIENCE_S)
            yield ended(run, "done")
            yield checkpoint_is_valid(run)
            last = steps_of(run)[-1]
            yield Promise(
                "the last step is in the checkpoint", saved_step(run) == last, f"{last}"
            )
        finally:
            kill(process)


# Memory ----------------------------------------------------------------------


def cuda_out_of_memory(bench: Bench) -> Iterator[Promise]:
    """Let a (pretended) graphics card run out of memory twice, in the first step."""
    # At once; and, with half of the crops at a time, at the second half.
    fault = cuda_memory((1, 3))
    yield from halved(bench, SMALL, fault, times=2, is_exact=True)


def cuda_out_of_memory_later(bench: Bench) -> Iterator[Promise]:
    """Let it run out in the middle of the run."""
    config = replace(SMALL, slides=(str(bench.slide),), epochs=4)
    whole = trained(bench.folder / "whole", config, bench.trainers)
    short = trained(
        bench.folder / "short",
        config,
        bench.trainers,
        spoil=(cuda_memory((6,)), *bench.planted),
    )
    yield ended(RunFolder(bench.folder / "short"), "done")
    close = have_close_losses(short, whole)
    yield Promise("the losses are those of an undisturbed run", close)


def little_address_space(bench: Bench) -> Iterator[Promise]:
    """Give the process less memory than a step takes that computes its batch whole."""
    config = replace(SMALL, tile_px=128, batch_size=64, precision="f32")
    config = replace(config, decoder_dim=256, decoder_depth=4, crops_per_slide=200)
    yield from halved(bench, config, address_space(bench.args.spare_mb))


def halved(
    bench: Bench,
    config: PretrainConfig,
    fault: Callable[[], None],
    *,
    times: int = 1,
    is_exact: bool = False,
) -> Iterator[Promise]:
    """Run out of memory; the result must be that of fewer crops at a time.

    ``is_exact``: to the last bit, as it is where this happens in the first step.
    """
    config = replace(
        config,
        slides=(str(bench.slide),),
        epochs=2,
        micro_batch=config.batch_size,
        held_out=0.0,  # its loss is rounded by the crops at a time
    )
    folder = bench.folder / "short"
    short = trained(folder, config, bench.trainers, spoil=(fault, *bench.planted))
    run = RunFolder(folder)
    yield ended(run, "done")
    said = [text for text in notes_of(run) if text.startswith("Memory ran out")]
    yield Promise("it is said each time", len(said) >= times, " | ".join(said))
    if not said:
        return
    batches = {int(re.findall(r"batch stays (\d+)", text)[0]) for text in said}
    batch = min(config.batch_size, started(run).crops)
    yield Promise("the batch stays the same", batches == {batch}, str(batches))
    sizes = [int(re.findall(r"with (\d+) crops", text)[0]) for text in said]
    wanted = [config.batch_size // 2 ** (i + 1) for i in range(len(said))]
    yield Promise("the crops at a time are halved", sizes == wanted, str(sizes))
    smaller = replace(config, micro_batch=sizes[-1])
    whole = trained(bench.folder / "whole", smaller, bench.trainers)
    same = short == whole if is_exact else have_close_losses(short, whole)
    yield Promise(f"the result is that with {sizes[-1]} at a time", same)


def have_close_losses(one: Result, other: Result) -> bool:
    """Tell whether two trainings went the same way, but for rounding."""
    losses = [[numbers[1] for numbers in result.numbers] for result in (one, other)]
    return len(losses[0]) == len(losses[1]) and np.allclose(*losses, rtol=1e-3)


# Numbers that are none -------------------------------------------------------


def loss_is_nan(bench: Bench) -> Iterator[Promise]:
    """Make the loss of step 8 NaN."""
    yield from caught(bench, nan_loss(8), "loss", 8)


def gradient_is_infinite(bench: Bench) -> Iterator[Promise]:
    """Make the gradient of step 8 infinite."""
    yield from caught(bench, infinite_gradient(8), "gradient", 8)


def caught(
    bench: Bench, fault: Callable[[], None], what: str, at: int
) -> Iterator[Promise]:
    """Spoil a number; no checkpoint may know it, and the run must go on from before."""
    config = replace(SMALL, slides=(str(bench.slide),), epochs=4)
    folder = bench.folder / "short"
    trained(folder, config, bench.trainers, spoil=(fault, *bench.planted))
    run = RunFolder(folder)
    last = run.last_event
    text = last.message if isinstance(last, Failed) else str(last)
    yield Promise("the run ends with a sentence", isinstance(last, Failed), text)
    yield Promise("it says what to do", ends_with_what_to_do(text), text)
    named = f"step {at}" in text and what in text
    yield Promise(f"it is caught in the step, and named as a {what}", named, text)
    steps = steps_of(run)
    yield Promise("that step is not made", steps[-1:] == [at - 1], str(steps[-1:]))
    yield checkpoint_is_valid(run)
    yield no_partial_file(run)
    process = bench.trainers.start(run)
    process.join(PATIENCE_S)
    kill(process)
    yield ended(run, "done")
    whole = trained(bench.folder / "whole", config, bench.trainers)
    yield Promise(
        "resumed without the fault, it is the undisturbed run", result_of(run) == whole
    )


# Processes that end ----------------------------------------------------------


def child_killed(bench: Bench) -> Iterator[Promise]:
    """Kill the training's process under its follower, and under a stranger's."""
    run = bench.begin(epochs=10**6)
    for whose in ("its own", "another's"):
        process = supervise.start(run)
        mine = process if whose == "its own" else None
        said: Event | None = None
        begun = saved_step(run)
        if mine is None:
            until(lambda: run.owner() is not None, SLOW_S)
        for event in supervise.follow(run, mine):
            if isinstance(event, Step) and event.step == begun + 5:
                process.kill()
                process.wait()
            said = event
        text = said.message if isinstance(said, Failed) else str(said)
        yield Promise(
            f"{whose} follower says it in a sentence", isinstance(said, Failed), text
        )
        yield Promise("that says what to do", ends_with_what_to_do(text), text)
        yield Promise("the run is open", run.state == "interrupted", run.state)
    yield checkpoint_is_valid(run)
    yield from goes_on(run, bench)


def viewer_killed(bench: Bench) -> Iterator[Promise]:
    """Kill napari over a training that its dock started; attach, and stop it."""
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise NotPossibleHereError("no display: run this under xvfb-run")
    home = bench.folder / "home"
    home.mkdir()
    viewer = window("napari_that_starts", home, str(bench.slide), *bench.plant_names)
    until(lambda: bool(list_runs(home / "runs")), SLOW_S)
    runs = list_runs(home / "runs")
    begun = runs and Record(runs[0]).wait(lambda e: isinstance(e, Step), most_s=SLOW_S)
    if not begun:
        viewer.kill()
        yield Promise("the dock starts a training", False)
        return
    run, record = runs[0], Record(runs[0])
    viewer.kill()
    viewer.wait()
    before = steps_of(run)[-1]
    later = record.wait(lambda e: isinstance(e, Step) and e.step > before + 3)
    yield Promise("the training goes on", later is not None, str(run.last_event))
    if later is None:
        return
    yield Promise("its folder says so", run.state == "running", run.state)
    last, dock = None, window("napari_that_attaches", home, str(run.path))
    give_up = time.monotonic() + SLOW_S
    for event in supervise.follow(run):
        last = event
        if time.monotonic() > give_up:
            break
    try:
        told, _ = dock.communicate(timeout=SLOW_S)
    except subprocess.TimeoutExpired:
        dock.kill()
        told = ""
    shown = json.loads(told.splitlines()[-1]) if told.strip() else {}
    points = shown.get("points", 0)
    yield Promise("another window attaches", points > before, str(shown))
    yield Promise("and sees the end", shown.get("kind") == "done", str(shown))
    yield Promise("so does a follower", isinstance(last, Finished), str(last))
    yield ended(run, "stopped")
    yield checkpoint_is_valid(run)
    # It has said its last word; to leave takes it a moment.
    gone = until(lambda: not trainers_in(str(home)), bench.args.goal_exit_s)
    yield Promise("no process is left", gone)


def window(program: str, home: Path, *words: str) -> subprocess.Popen[str]:
    """Start a program of this module that opens napari."""
    code = f"import sys, faults; faults.{program}(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={
            **os.environ,
            "HISTOMAE_HOME": str(home),
            "NAPARI_CONFIG": str(home / "napari.yaml"),
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def napari_that_starts(slide: str, *planted: str) -> None:
    """Open napari, press *Start* in the Train dock, and stay."""
    import napari
    from event_loop import QUICK_SETTINGS, start_training

    begin_it = supervise.start
    supervise.start = lambda run: begin_it(run, command=command_line(run, planted))
    viewer = napari.Viewer()
    start_training(viewer, Path(slide), QUICK_SETTINGS)
    napari.run()


def napari_that_attaches(run_path: str) -> None:
    """Open napari, press *Attach*, then *Stop and keep*; print what the dock shows."""
    import napari
    from event_loop import wait_until

    from napari_histomae._widgets.train import TrainDock

    viewer = napari.Viewer()
    dock = TrainDock(viewer)
    viewer.window.add_dock_widget(dock, name="Train", area="right")
    dock.runs.choose(RunFolder(run_path))
    dock.attach_button.click()
    last = steps_of(RunFolder(run_path))[-1]
    wait_until(lambda: dock.plot.points > last + 3, dock)
    points = dock.plot.points
    dock.stop_button.click()
    wait_until(lambda: not dock.running, dock)
    shown = {"points": points, "kind": dock.state.kind, "text": dock.state.text}
    print(json.dumps(shown), flush=True)
    viewer.close()


def command_line(run: RunFolder, planted: Sequence[str]) -> list[str] | None:
    """Return the command that goes on with a run, with these functions of ``spoil``.

    None without any: that of :func:`supervise.start`.
    """
    if not planted:
        return None
    code = (
        "import sys, spoil; [getattr(spoil, name)() for name in sys.argv[2:]]; "
        "from histomae.cli import main; "
        "sys.exit(main(['pretrain', '--run', sys.argv[1]]))"
    )
    return [sys.executable, "-c", code, str(run.path), *planted]


def signals(bench: Bench) -> Iterator[Promise]:
    """Send SIGTERM and SIGINT to the command line: before a step, and later."""
    took = []
    for number in (signal.SIGTERM, signal.SIGINT):
        for when in ("before the first step", "later"):
            what = f"{number.name} {when}"
            run = bench.begin(bench.folder / what.replace(" ", "-"), epochs=10**6)
            process = supervise.start(run, command=command_line(run, bench.plant_names))
            if when == "later":
                Record(run).wait(lambda e: isinstance(e, Step), most_s=SLOW_S)
            else:
                until(run.lock_file.exists, SLOW_S)
            sent = time.monotonic()
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(bench.args.goal_exit_s + 5)
            took.append(time.monotonic() - sent)
            process.kill()
            code = process.wait()
            yield Promise(f"{what}: the exit code is 0", code == 0, f"{code}")
            yield ended(run, "stopped")
            yield Promise("the run is free", not run.lock_file.exists())
            yield no_partial_file(run)
            if when == "later":
                yield checkpoint_is_valid(run)
    name, goal = "longest from a signal to the exit", bench.args.goal_exit_s
    bench.figures.append(Figure(name, max(took), "s", goal))
    yield Promise("it ends in time", max(took) <= goal, f"{max(took):.2f} s")


# Stop ------------------------------------------------------------------------


def stopped_at_any_moment(bench: Bench) -> Iterator[Promise]:
    """Ask for a stop at random moments; each time the run must be idle soon."""
    args = bench.args
    slides = (str(bench.slide),)
    config = replace(SMALL, slides=slides, epochs=10**6, preview_every=5)
    if not args.quick:
        config = replace(BUSY, slides=slides, threads=args.threads)
    run = begin(bench.folder / "run", config)
    took: dict[str, list[float]] = {moment: [] for moment in MOMENTS}
    ready_s = 1.0
    for number in range(args.count):
        moment = MOMENTS[number % len(MOMENTS)]
        begun = time.monotonic()
        process, going = (
            (bench.trainers.start(run, spoil=bench.planted), True)
            if moment == "reading"
            else bench.start(run)
        )
        if moment != "reading":
            ready_s = time.monotonic() - begun
        wait_for(moment, run, process, bench.random, ready_s)
        asked = time.monotonic()
        run.request("stop")
        process.join(args.goal_idle_s + 5)
        took[moment].append(time.monotonic() - asked)
        idle = not process.is_alive()
        kill(process)
        if not (going and idle and isinstance(run.last_event, Finished)):
            yield Promise(f"it stops while {moment}", False, str(run.last_event))
            break
        if run.last.exists():
            load_checkpoint(run.last)
        if (number + 1) % 10 == 0:
            say(f"stopped {number + 1} times")
    yield checkpoint_is_valid(run)
    yield no_partial_file(run)
    every = [seconds for moment in took.values() for seconds in moment]
    for moment, seconds in took.items():
        longest = max(seconds, default=float("nan"))
        bench.figures.append(Figure(f"stops while {moment}", len(seconds)))
        bench.figures.append(Figure(f"longest to idle while {moment}", longest, "s"))
    bench.figures += [
        Figure("from stop to idle, 95th percentile", np.percentile(every, 95), "s"),
        Figure("from stop to idle, longest", max(every), "s", args.goal_idle_s),
    ]
    yield Promise("it is idle in time", max(every) <= args.goal_idle_s, f"{every} s")


def wait_for(
    moment: str,
    run: RunFolder,
    process: BaseProcess,
    random: np.random.Generator,
    ready_s: float,
) -> None:
    """Wait for the moment at which a training is to be stopped."""
    delay = random.uniform(0, 0.3)
    if moment == "reading":
        time.sleep(random.uniform(0, ready_s))
    elif moment == "stepping":
        time.sleep(delay)
    elif moment == "saving":
        wait_for_save(run, process, delay / 100, looks_of(run.last))
    else:
        record = Record(run)
        record.wait(lambda event: isinstance(event, HeldOut), process)
        time.sleep(delay / 10)


# Two in one folder -----------------------------------------------------------


def two_in_one_folder(bench: Bench) -> Iterator[Promise]:
    """Begin a second training where one is at work, and two at the same moment."""
    run = bench.begin(epochs=10**6)
    first, _ = bench.start(run)
    text = refusal(run)
    owner = run.owner()
    yield Promise("the second is refused", bool(text), text)
    named = owner is not None and str(owner) in text and str(first.pid) in text
    yield Promise("it is told who, and since when", named, text)
    yield Promise("and what to do", ends_with_what_to_do(text), text)
    yield Promise("the first goes on", first.is_alive() and run.state == "running")
    second, going = bench.start(run)
    yield Promise("another process is refused too", not going)
    kill(second)
    yield from stops(run, first)
    kill(first)
    for number in range(bench.args.races):
        both = [bench.trainers.start(run, spoil=bench.planted) for _ in range(2)]
        until(lambda two=both: not all(p.is_alive() for p in two), PATIENCE_S)
        alive = [process for process in both if process.is_alive()]
        Record(run).wait(lambda event: isinstance(event, Step))
        owner = run.owner()
        one = len(alive) == 1 and owner is not None and owner.pid == alive[0].pid
        yield Promise("of two at once, one begins", one, f"race {number + 1}, {owner}")
        run.request("stop")
        for process in both:
            process.join(PATIENCE_S)
            kill(process)
    yield checkpoint_is_valid(run)


def refusal(run: RunFolder) -> str:
    """Return what is said to a training that begins here; nothing if it may."""
    work = run_in(run)
    try:
        next(work)
    except RunError as error:
        return str(error)
    work.close()
    return ""


def stale_locks(bench: Bench) -> Iterator[Promise]:
    """Begin where a dead process left its lock; its number may be another's now."""
    run = bench.begin(epochs=10**6)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    me = Owner.me()
    for whose, owner in (
        ("a dead process", replace(me, pid=dead.pid)),
        ("a number used again", replace(me, started=me.started - 3600)),
    ):
        run.lock_file.write_text(json.dumps(owner.__dict__), "utf-8")
        process, going = bench.start(run)
        yield Promise(f"the lock of {whose} is cleared without a question", going)
        run.request("stop")
        process.join(PATIENCE_S)
        kill(process)
        yield Promise("and the run ends free", not run.lock_file.exists())
    run.lock_file.write_text(json.dumps({**me.__dict__, "host": "another"}), "utf-8")
    text = refusal(run)
    yield Promise("that of another computer is respected", bool(text), text)
    yield Promise("with what to do", "another" in text and "delete" in text, text)


def until(ready: Callable[[], bool], most_s: float) -> bool:
    """Wait until something is so; return whether it is."""
    give_up = time.monotonic() + most_s
    while not ready():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def no_cure() -> contextlib.AbstractContextManager[Any]:
    """Let the death of a process be told without what to do."""
    return mock.patch.object(supervise, "death", lambda *_: "It ended.")


CASES = (
    Case("disk too small", disk_too_small, quota),
    Case("disk full", disk_full, swallowed_errors),
    Case("disk full to the last byte", disk_full_to_the_last_byte, swallowed_errors),
    Case(
        "disk full in mid-write", disk_full_in_mid_write, torn_checkpoints, quick=True
    ),
    Case("disk full at the end", disk_full_at_the_end, swallowed_errors),
    Case("disk read-only", disk_read_only, swallowed_errors),
    Case("folder sealed", folder_sealed, swallowed_errors),
    Case("address space", little_address_space, smaller_batches),
    Case("CUDA memory", cuda_out_of_memory, smaller_batches, quick=True),
    Case("CUDA memory later", cuda_out_of_memory_later, smaller_batches),
    Case("NaN loss", loss_is_nan, numbers_unchecked, quick=True),
    Case("infinite gradient", gradient_is_infinite, numbers_unchecked),
    Case("child killed", child_killed, plant_here=no_cure),
    Case("viewer killed", viewer_killed, dies_with_its_parent),
    Case("signals", signals, signals_ignored),
    Case("stop at any moment", stopped_at_any_moment, deaf, quick=True),
    Case("two in one folder", two_in_one_folder, nobody_lives),
    Case("stale locks", stale_locks, everybody_lives, quick=True),
)


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, help="these cases")
    parser.add_argument("--count", type=int, help="stops (60; quick: 4)")
    parser.add_argument("--races", type=int, help="starts of two (10; quick: 1)")
    parser.add_argument("--threads", type=int, help="of the training that is stopped")
    parser.add_argument("--spare-mb", type=int, default=450, help="address space")
    parser.add_argument("--goal", type=int, default=0, help="promises broken, at most")
    parser.add_argument("--goal-idle-s", type=float, default=2.0)
    parser.add_argument("--goal-exit-s", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, short, long in (("count", 4, 60), ("races", 1, 10)):
        if getattr(args, name) is None:
            setattr(args, name, short if args.quick else long)
    with away_from_the_user() as folder:
        figures = measure(folder, args)
    return report(figures, as_json=args.json)


def promises_of(case: Case, bench: Bench) -> Iterator[Promise]:
    """Check a case; what ends it early is a broken promise."""
    try:
        yield from case.check(bench)
    except HistomaeError as error:
        yield Promise("it can be looked at", False, str(error))


def measure(folder: Path, args: argparse.Namespace) -> list[Figure]:
    """Do every case; return the figures."""
    slide, trainers = make_slide(folder / "a.tiff"), Trainers()
    chosen = [
        case
        for case in CASES
        if (case.name in args.only if args.only else case.quick or not args.quick)
    ]
    checked, broken, skipped, figures = 0, {}, {}, []
    for number, case in enumerate(chosen):
        say(f"{case.name}: {(case.check.__doc__ or '').splitlines()[0]}")
        bench = Bench(
            folder / str(number),
            slide,
            trainers,
            args,
            np.random.default_rng(args.seed),
            (case.plant,) if args.plant and case.plant else (),
        )
        bench.folder.mkdir()
        try:
            with (
                case.plant_here()
                if args.plant and case.plant_here
                else contextlib.nullcontext()
            ):
                promises = list(promises_of(case, bench))
        except NotPossibleHereError as error:
            skipped[case.name] = str(error)
            say(f"  skipped: {error}")
            continue
        for promise in promises:
            if not promise.is_kept:
                say(f"  BROKEN: {promise.text} ({promise.seen})")
        checked += len(promises)
        if any(not promise.is_kept for promise in promises):
            broken[case.name] = sum(not promise.is_kept for promise in promises)
        figures += bench.figures
    why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
    return [
        load(),
        *figures,
        Figure("cases run", len(chosen) - len(skipped), at_least=1),
        Figure("cases skipped", len(skipped), why),
        Figure("promises looked at", checked),
        Figure("cases with a broken promise", len(broken), ", ".join(broken)),
        Figure("promises broken", sum(broken.values()), "", args.goal),
    ]


if __name__ == "__main__":
    sys.exit(main())
