"""A run is a folder: settings, events, crops, checkpoints, and who is at work on it.

==================  ==========================================================
``config.toml``     the settings, with everything decided at the start
``events.jsonl``    what was said, one JSON object a line; cut back on resume
``crops.parquet``   which crops; for methods that see whole slides ``bags.csv``
``checkpoints/``    ``last`` (with decoder and optimizer), ``encoder``, ``best`` on
                    crops held out, and those kept for good, by step
``previews/``       pictures of input, masked and reconstruction
``tensorboard/``    the numbers and pictures again, as TensorBoard reads them
``log.txt``         what the process printed
``lock``            who is at work: process, start time, computer
``control``         one word to whoever is at work: stop, discard, pause, resume
==================  ==========================================================

Nothing here needs torch: a viewer lists and follows runs without it.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from histomae.config import PretrainConfig
from histomae.errors import RunError
from histomae.events import (
    Event,
    Failed,
    Finished,
    HeldOut,
    Preview,
    Saved,
    Started,
    Step,
    event_from_json,
)
from histomae.files import append_whole, write_beside
from histomae.slides.remote import address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

Request = Literal["stop", "discard", "pause", "resume"]
REQUESTS: tuple[Request, ...] = ("stop", "discard", "pause", "resume")
State = Literal[
    "new", "running", "stopped", "discarded", "done", "failed", "interrupted"
]
#: Start times of one process, asked twice, may differ by this much, seconds.
START_TOLERANCE_S = 2.0
#: The end of events.jsonl that holds its last event.
TAIL_BYTES = 64 * 1024
#: A lock that is being written is not yet readable; wait so long for it, seconds.
LOCK_PATIENCE_S = 0.5


@dataclass(frozen=True)
class Owner:
    """Who is at work on a run. ``started`` and ``since`` are seconds since 1970."""

    pid: int
    started: float
    host: str
    user: str
    since: float

    @classmethod
    def me(cls) -> Owner:
        """Return this process."""
        started = psutil.Process().create_time()
        return cls(os.getpid(), started, socket.gethostname(), _user(), time.time())

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs; on another computer it is taken to."""
        if self.host != socket.gethostname():
            return True
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # it is there, and somebody else's
            return True

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M")
        return f"process {self.pid} of {self.user} on {self.host}, since {since}"


class RunFolder:
    """The folder of one run; it need not exist yet. Cheap: it holds nothing open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._waiting: list[str] = []  # events for which there was no room yet

    # ---- what is in it

    @property
    def config_file(self) -> Path:
        """The settings, as TOML."""
        return self.path / "config.toml"

    @property
    def events_file(self) -> Path:
        """What was said, one event a line."""
        return self.path / "events.jsonl"

    @property
    def crops_file(self) -> Path:
        """The crop manifest."""
        return self.path / "crops.parquet"

    @property
    def bags_file(self) -> Path:
        """The list of bags, of methods that see whole slides."""
        return self.path / "bags.csv"

    @property
    def log_file(self) -> Path:
        """What the process printed."""
        return self.path / "log.txt"

    @property
    def lock_file(self) -> Path:
        """Who is at work."""
        return self.path / "lock"

    @property
    def control_file(self) -> Path:
        """One word to whoever is at work."""
        return self.path / "control"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from: encoder, decoder and optimizer."""
        return self.checkpoints / "last.safetensors"

    @property
    def encoder(self) -> Path:
        """The encoder alone, which timm loads too."""
        return self.checkpoints / "encoder.safetensors"

    @property
    def best(self) -> Path:
        """Encoder and decoder at the step that did best on crops held out."""
        return self.checkpoints / "best.safetensors"

    def kept(self, step: int) -> Path:
        """Return the checkpoint of a step that is kept for good, without optimizer."""
        return self.checkpoints / f"step_{step:07d}.safetensors"

    @property
    def previews(self) -> Path:
        """Folder of the pictures."""
        return self.path / "previews"

    @property
    def tensorboard(self) -> Path:
        """Folder of the file that TensorBoard reads."""
        return self.path / "tensorboard"

    def inside(self, path: Path) -> str:
        """Return a path of this folder as events name it: relative, with slashes."""
        return path.relative_to(self.path).as_posix()

    # ---- its settings

    def create(self, config: PretrainConfig) -> None:
        """Make the folder and write the settings; paths in them become absolute.

        Raises
        ------
        RunError
            If a run is in the folder, or the folder cannot be made.
        """
        if self.config_file.exists() or self.events_file.exists():
            raise RunError(
                f"{self.path} already holds a run ({self.state}). Resume it, or choose "
                "another folder."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_config(absolute_paths(config))
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written ({error.strerror}). Choose a folder "
                "you may write to, on a disk with free room."
            ) from error

    def config(self) -> PretrainConfig:
        """Return the settings.

        Raises
        ------
        RunError
            If the folder holds none.
        ConfigError
            If they cannot be understood.
        """
        try:
            text = self.config_file.read_text("utf-8", "replace")
        except OSError as error:
            raise RunError(
                f"{self.path} holds no run: config.toml cannot be read "
                f"({error.strerror}). Choose a folder that a training wrote."
            ) from error
        return PretrainConfig.from_toml(text)

    def write_config(self, config: PretrainConfig) -> None:
        """Write the settings; the old file stays until the new one is whole."""
        with write_beside(self.config_file) as beside:
            beside.write_text(config.to_toml(), "utf-8")

    # ---- its events

    def append(self, event: Event) -> None:
        """Record an event; it is on its way to the disk when this returns.

        While the disk is full events wait in memory and are written with a later one.
        """
        self._waiting.append(event.to_json() + "\n")
        if append_whole(self.events_file, "".join(self._waiting).encode()):
            self._waiting.clear()

    def events(self) -> Iterator[Event]:
        """Yield what was recorded; half a line at the end is left out."""
        for line in _whole_lines(self.events_file):
            yield event_from_json(line)

    @property
    def last_event(self) -> Event | None:
        """The last event that was recorded, if any."""
        lines = list(_whole_lines(self.events_file, tail=TAIL_BYTES))
        return event_from_json(lines[-1]) if lines else None

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to lose or to go on from."""
        return self.last.exists() or self.last_event is not None

    @property
    def state(self) -> State:
        """How it stands; ``interrupted``: its process died without a word."""
        owner = self.owner()
        if owner is not None and owner.is_alive:
            return "running"
        match self.last_event:
            case None:
                return "new" if owner is None else "interrupted"
            case Finished(reason="done"):
                return "done"
            case Finished(reason="stopped"):
                return "stopped"
            case Finished(reason="discarded"):
                return "discarded"
            case Failed():
                return "failed"
        return "interrupted"

    def check_unfinished(self) -> None:
        """Refuse to go on with a run that is done.

        Raises
        ------
        RunError
            If it is.
        """
        match self.last_event:
            case Finished(step=step, reason="done"):
                raise RunError(
                    f"{self.path.name} is done ({step} steps). Start a new run from "
                    "its checkpoint (init_from) to train on."
                )

    def cut_back(self, step: int | None) -> None:
        """Forget what was recorded after ``step``, and that the run had ended.

        None forgets everything. Half a line that a killed process left goes too.
        """
        kept: list[str] = []
        for line in _whole_lines(self.events_file):
            event = event_from_json(line)
            if step is None or _step_of(event) > step:
                break
            if not isinstance(event, Finished | Failed):
                kept.append(line)
        self._rewrite_events(kept)

    def _rewrite_events(self, lines: list[str]) -> None:
        with write_beside(self.events_file) as beside:
            beside.write_text("".join(lines), "utf-8", newline="\n")

    def forget_unstarted(self) -> None:
        """Empty the folder of a run that failed before it began, for another try."""
        if self.last.exists() or any(isinstance(e, Started) for e in self.events()):
            return
        for file in (
            *(self.config_file, self.events_file),
            *(self.crops_file, self.bags_file),
        ):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            self.path.rmdir()

    def discard(self) -> None:
        """Remove the checkpoints."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    # ---- requests to whoever is at work

    def request(self, what: Request) -> None:
        """Ask the process at work to stop (and keep), discard, pause or resume."""
        if what not in REQUESTS:
            raise RunError(f"{what!r} is no request. Ask for {', '.join(REQUESTS)}.")
        with write_beside(self.control_file) as beside:
            beside.write_text(what, "utf-8")

    def requested(self) -> Request | None:
        """Return what was asked and not yet answered."""
        try:
            word = self.control_file.read_text("utf-8").strip()
        except OSError:
            return None
        return next((known for known in REQUESTS if known == word), None)

    def clear_request(self) -> None:
        """Forget what was asked."""
        with suppress(OSError):
            self.control_file.unlink()

    # ---- who is at work

    def owner(self) -> Owner | None:
        """Return who holds the run, alive or dead."""
        give_up = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                return Owner(**json.loads(self.lock_file.read_text("utf-8")))
            except FileNotFoundError:
                return None
            except (OSError, ValueError, TypeError) as error:
                if time.monotonic() > give_up:
                    raise RunError(
                        f"{self.lock_file} cannot be read ({error}). If no training "
                        "runs there, delete this file and try again."
                    ) from error
            time.sleep(0.05)

    def free_or_raise(self) -> None:
        """Clear what a dead owner left behind.

        Raises
        ------
        RunError
            If somebody is at work; the message says who, and since when.
        """
        owner = self.owner()
        if owner is None:
            return
        if owner.is_alive:
            raise self._taken(owner)
        self._take_away(owner)
        self.clear_request()

    def reopen(self) -> None:
        """Make ready for a new process: no dead owner, no old request, no old end.

        Raises
        ------
        RunError
            If somebody is at work, or the run is done.
        """
        self.free_or_raise()
        self.check_unfinished()
        self.clear_request()
        if isinstance(self.last_event, Finished | Failed):
            kept = [
                line
                for line in _whole_lines(self.events_file)
                if not isinstance(event_from_json(line), Finished | Failed)
            ]
            self._rewrite_events(kept)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run, so that no other process works on it.

        Raises
        ------
        RunError
            If somebody else does.
        """
        me = Owner.me()
        self.free_or_raise()
        try:
            self._claim(me)
        except FileExistsError:
            owner = self.owner()
            raise self._taken(owner or me) from None
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written ({error.strerror}). Choose a folder "
                "you may write to, on a disk with free room."
            ) from error
        try:
            _mend(self.events_file)
            yield
        finally:
            if self.owner() == me:
                self.lock_file.unlink(missing_ok=True)

    def _claim(self, me: Owner) -> None:
        """Create the lock, whole at once where the file system has links."""
        beside = self.path / f".lock.{me.pid}.tmp"
        beside.write_text(json.dumps(asdict(me)), "utf-8")
        try:
            os.link(beside, self.lock_file)
        except FileExistsError:
            raise
        except OSError:  # no links here (FAT, some network shares)
            with self.lock_file.open("x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(me)))
        finally:
            beside.unlink(missing_ok=True)

    def _take_away(self, dead: Owner) -> None:
        """Remove a dead owner's lock, but not one that was taken meanwhile."""
        aside = self.path / f".lock.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            self.lock_file.replace(aside)
        except FileNotFoundError:  # somebody else was quicker
            return
        try:
            found = Owner(**json.loads(aside.read_text("utf-8")))
            if found != dead:
                with suppress(OSError):
                    os.link(aside, self.lock_file)
                raise self._taken(found)
        finally:
            aside.unlink(missing_ok=True)

    def _taken(self, owner: Owner) -> RunError:
        cure = "Attach to it, or stop it first."
        if owner.host != socket.gethostname():
            cure = (
                f"Stop it there; if that computer no longer works on it, delete "
                f"{self.lock_file}."
            )
        return RunError(f"{self.path} is in use by {owner}. {cure}")

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"


def list_runs(folder: str | os.PathLike[str]) -> list[RunFolder]:
    """Return the runs in a folder, the latest first."""
    found = [RunFolder(file.parent) for file in Path(folder).glob("*/config.toml")]
    return sorted(found, key=lambda run: run.config_file.stat().st_mtime, reverse=True)


class EventReader:
    """Reads what is added to a run's events, also while they are being cut back.

    Holds nothing open between reads. On resume the file is replaced by its own
    beginning; what was read already is not read again.
    """

    def __init__(self, run: RunFolder) -> None:
        self._file = run.events_file
        self._offset = 0
        self._identity: int | None = None
        self._seen: list[int] = []

    def read(self) -> list[Event]:
        """Return the events since the last call; a line that is not whole waits."""
        try:
            with self._file.open("rb") as file:
                status = os.fstat(file.fileno())
                replaced = self._identity not in (None, status.st_ino)
                if replaced or status.st_size < self._offset:
                    return self._read_again(file.read(), status.st_ino)
                self._identity = status.st_ino
                file.seek(self._offset)
                return self._take(file.read())
        except FileNotFoundError:
            return []

    def _take(self, data: bytes) -> list[Event]:
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode("utf-8", "replace").split("\n")[:-1]
        self._seen += [hash(line) for line in lines]
        return [event_from_json(line) for line in lines]

    def _read_again(self, data: bytes, identity: int) -> list[Event]:
        """Skip the beginning that was read from the file's predecessor."""
        before, self._seen = self._seen, []
        self._offset, self._identity = 0, identity
        events = self._take(data)
        same = 0
        for old, new in zip(before, self._seen, strict=False):
            if old != new:
                break
            same += 1
        return events[same:]


@contextmanager
def stop_on_signals(run: RunFolder) -> Iterator[list[int]]:
    """Make Ctrl-C and SIGTERM ask the run to stop and keep; the second one kills.

    For the main thread of a process that trains; elsewhere it does nothing. Yields a
    list to which a signal that came is added.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)
        run.request("stop")

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def absolute_paths(config: PretrainConfig) -> PretrainConfig:
    """Make paths independent of where a process is started."""
    slides = tuple(
        address(slide) or str(Path(slide).absolute()) for slide in config.slides
    )
    changes: dict[str, Any] = {"slides": slides}
    if Path(config.init_from).is_file():
        changes["init_from"] = str(Path(config.init_from).absolute())
    return config.changed(changes)


def _step_of(event: Event) -> int:
    """Return the step that an event tells of; 0 for those that tell of none."""
    if isinstance(event, Started | Step | HeldOut | Preview | Saved):
        return event.step
    return 0


def _whole_lines(path: Path, *, tail: int | None = None) -> Iterator[str]:
    """Yield the lines of a file that end, or those within its last bytes."""
    try:
        with path.open("rb") as file:
            start = 0
            if tail is not None:
                start = max(0, file.seek(0, os.SEEK_END) - tail)
                file.seek(start)
            if start:
                file.readline()  # the rest of a line
            for line in file:
                if line.endswith(b"\n"):
                    yield line.decode("utf-8", "replace")
    except FileNotFoundError:
        return


def _mend(path: Path) -> None:
    """Cut off half a line at the end."""
    with suppress(FileNotFoundError), path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without user names
        return "an unknown user"
