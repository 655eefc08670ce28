"""Training in a process of its own, seen from another: start, follow, explain its end.

The viewer's memory comes back when the training ends, a crash cannot take the viewer
along, and a viewer that goes away leaves the training alive. All talk is through the
run folder: no pipe, nothing that breaks when one side is gone. Nothing here needs
torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import histomae
from histomae.events import Event, Failed, Finished, Heartbeat
from histomae.learn.runs import EventReader, RunFolder

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from histomae.config import PretrainConfig

#: How often the run folder is looked at, seconds; at most 0.2.
LOOK_S = 0.1
#: Lower priority than the viewer's, so that its window stays alive.
NICENESS = 5
#: Bytes at the end of the log that hold its last line.
LOG_TAIL = 8192


def start(
    run: RunFolder, *, command: Sequence[str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the training of a run folder, or go on with it, in a process of its own.

    The process has its own session (Ctrl-C here does not reach it), writes what it
    prints to ``log.txt``, and outlives this one.

    Parameters
    ----------
    run
        A folder with settings.
    command
        What to run instead of ``python -m histomae pretrain --run FOLDER``.

    Raises
    ------
    RunError
        If the folder holds no run, or somebody is at work on it.
    """
    run.config()
    run.reopen()
    if command is None:
        folder = str(run.path.absolute())
        # -P: no file in the working folder can stand in for a module.
        command = [sys.executable, "-P", "-m", "histomae", "pretrain", "--run", folder]
    with run.log_file.open("ab") as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tempfile.gettempdir(),
            env=_environment(),
            **_own_session(),
        )
    _lower_priority(process.pid)
    return process


def follow(
    run: RunFolder, process: subprocess.Popen[bytes] | None = None
) -> Generator[Event, None, None]:
    """Yield what a run records, from its beginning, until it ends.

    Between events a ``Heartbeat`` comes at least every 0.2 s. After a resume, what was
    yielded before is not yielded again; ``Started.step`` says to where it was cut back.
    A process that died without a word becomes a ``Failed`` that says how; it is not
    recorded. Closing this generator leaves the training alone.

    Parameters
    ----------
    run
        Its folder, whoever trains in it.
    process
        From :func:`start`; None: somebody else's, known by the folder's lock.
    """
    reader = EventReader(run)
    last: Event | None = None
    while True:
        # Asked before reading, so that nothing said before the end is missed.
        at_work = _at_work(run, process)
        events = reader.read()
        for event in events:
            last = event
            yield event
        if not at_work:
            break
        if not events:
            time.sleep(LOOK_S)
        yield Heartbeat()
    if not isinstance(last, Finished | Failed) and (last or process):
        yield Failed(death(run, None if process is None else process.returncode))


def supervise(config: PretrainConfig, run: RunFolder) -> Generator[Event, None, None]:
    """Create a run, start its process, and follow it.

    Raises
    ------
    RunError
        If the folder cannot be used.
    """
    run.create(config)
    process = start(run)
    yield from follow(run, process)


def death(run: RunFolder, returncode: int | None) -> str:
    """Say in a sentence how a process ended that recorded no end."""
    log = run.log_file
    line = _last_line(log)
    said = f' Its last words: "{line}".' if line else ""
    kept = "the last checkpoint is kept" if run.last.exists() else "no checkpoint yet"
    if returncode is None:
        how = "The training's process is gone without a word"
    elif returncode == -getattr(signal, "SIGKILL", 9):
        return (
            "The training was ended by the system, most likely because memory ran out "
            f"({kept}).{said} Choose a smaller micro_batch or encoder, close other "
            f"programs, and resume; the log is {log.name} in the run folder."
        )
    elif returncode < 0:
        how = f"The training crashed ({_signal_name(-returncode)})"
    else:
        how = f"The training ended early (exit code {returncode})"
    return (
        f"{how}; {kept}.{said} Resume it, and if it ends again look into {log.name} in "
        "the run folder."
    )


def _at_work(run: RunFolder, process: subprocess.Popen[bytes] | None) -> bool:
    if process is not None:
        return process.poll() is None
    owner = run.owner()
    return owner is not None and owner.is_alive


def _environment() -> dict[str, str]:
    """Return the environment of a training: this package, and a log that is written."""
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    # A thread that waits for another one sleeps instead of spinning. On cores that are
    # shared with the viewer this trains 3 to 6 times as fast; on idle ones 5 % slower.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    root = Path(histomae.__file__).parents[1]
    if root.name not in ("site-packages", "dist-packages"):  # a checkout
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def _lower_priority(pid: int) -> None:
    """Give a process in a session of its own less than the viewer's share of time."""
    with suppress(psutil.Error):
        if os.name == "nt":
            psutil.Process(pid).nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            psutil.Process(pid).nice(min(psutil.Process().nice() + NICENESS, 19))
    # Linux shares time between sessions first, and there only this number counts:
    # niceness is among the processes of one session. See sched(7), "autogroup".
    # The first session of a system or container has none: its file is empty.
    with suppress(OSError, ValueError):
        mine = Path("/proc/self/autogroup").read_text("ascii").rpartition("nice")[2]
        lower = min(int(mine or 0) + NICENESS, 19)
        Path(f"/proc/{pid}/autogroup").write_text(str(lower), "ascii")


def _own_session() -> dict[str, Any]:
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        return {"creationflags": flags}
    return {"start_new_session": True}


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
