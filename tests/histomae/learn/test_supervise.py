"""A process of its own: started, followed, asked to stop, and its death explained."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from histomae.config import PretrainConfig
from histomae.errors import RunError
from histomae.events import Failed, Finished, Heartbeat, Saved, Started, Step
from histomae.learn import supervise as supervising
from histomae.learn.runs import RunFolder
from histomae.learn.supervise import death, follow, start, supervise
from tests.patience import wait_until

#: What a trainer does, without torch. Its steps take 20 ms.
TRAINER = """
import sys, time
from histomae.events import *
from histomae.learn.runs import RunFolder, stop_on_signals
run, steps = RunFolder(sys.argv[1]), int(sys.argv[2])
print("hello from the trainer", flush=True)
with run.lock(), stop_on_signals(run):
    run.append(Started("mae", 0, steps, 9, 1, 7, "cpu", "f32", 0.5))
    for step in range(1, steps + 1):
        time.sleep(0.02)
        run.append(Step(step, steps, step / 9, 1 / step, 1e-4, 1.0, 31.0, 42.0))
        if run.requested() == "stop":
            run.append(Finished(step, "stopped"))
            break
    else:
        run.append(Finished(step, "done"))
"""
#: Steps enough for whoever is going to stop it: how long that takes is not told.
ENDLESS = 10**6
posix = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


@pytest.fixture
def folder(tmp_path):
    """A run folder; whoever still works on it at the end of the test is ended."""
    made = RunFolder(tmp_path / "run")
    yield made
    owner = made.owner()
    if owner is not None and owner.is_alive:
        psutil.Process(owner.pid).kill()


@pytest.fixture
def run(folder):
    folder.create(PretrainConfig(slides=("a.svs",)))
    return folder


def command(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def trainer(run, steps):
    return start(run, command=command(TRAINER, run.path, steps))


def plain(events):
    return [event for event in events if not isinstance(event, Heartbeat)]


def test_a_run_is_followed_to_its_end(run):
    process = trainer(run, 5)
    events = list(follow(run, process))
    assert plain(events) == list(run.events())
    assert events[-1] == Finished(5, "done") or events[-1] == Heartbeat()
    assert plain(events)[-1] == Finished(5, "done")
    assert process.returncode == 0
    assert "hello from the trainer" in run.log_file.read_text()


def test_a_heartbeat_comes_within_a_fifth_of_a_second(run, monkeypatch):
    """It is asleep for no longer between two of them."""
    asleep = []
    monkeypatch.setattr(supervising, "time", SimpleNamespace(sleep=asleep.append))
    codes = iter([None] * 8 + [0])
    silent = SimpleNamespace(poll=lambda: next(codes), returncode=0)
    work = follow(run, silent)
    for number in range(1, 9):
        assert next(work) == Heartbeat()
        assert len(asleep) == number
    assert 0 < max(asleep) <= 0.2


@posix
def test_the_process_is_on_its_own_and_makes_way(run):
    process = trainer(run, ENDLESS)
    try:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
        mine = psutil.Process().nice()
        assert psutil.Process(process.pid).nice() == min(mine + 5, 19)
    finally:
        process.kill()
        process.wait()


def _share(pid):
    """Its session's niceness; None in a session without one, as a container's first."""
    try:
        text = Path(f"/proc/{pid}/autogroup").read_text("ascii")
    except OSError:
        return None
    return int(text.rpartition("nice")[2]) if text else None


def test_its_session_makes_way_too(run):
    process = trainer(run, ENDLESS)
    try:
        share = _share(process.pid)
        if share is None:
            pytest.skip("sessions have no share of time here")
        assert share == min((_share("self") or 0) + 5, 19)
    finally:
        process.kill()
        process.wait()


def test_the_first_session_of_a_container_has_no_share(run, monkeypatch):
    read, written = Path.read_text, {}
    own = Path("/proc/self/autogroup")
    monkeypatch.setattr(
        Path, "read_text", lambda path, *a: "" if path == own else read(path, *a)
    )
    monkeypatch.setattr(
        Path, "write_text", lambda path, text, *a: written.update({path: text})
    )
    supervising._lower_priority(12345678)
    assert written == {Path("/proc/12345678/autogroup"): "5"}


def test_a_stop_is_heard_and_the_run_can_go_on(run):
    process = trainer(run, ENDLESS)
    events = []
    for event in follow(run, process):
        events.append(event)
        if isinstance(event, Step) and event.step == 3:
            run.request("stop")
    assert plain(events)[-1].reason == "stopped"
    assert run.state == "stopped"

    process = trainer(run, 2)
    again = plain(follow(run, process))
    assert again[-1] == Finished(2, "done")  # not the end of the first time
    assert sum(isinstance(event, Finished) for event in again) == 1


@posix
def test_a_terminated_trainer_stops_and_keeps(run):
    process = trainer(run, ENDLESS)
    wait_until(lambda: isinstance(run.last_event, Step))
    process.terminate()
    events = plain(follow(run, process))
    assert events[-1].reason == "stopped"
    assert process.returncode == 0


def test_two_on_one_folder_are_one_too_many(run):
    process = trainer(run, ENDLESS)
    try:
        wait_until(lambda: run.state == "running")
        with pytest.raises(RunError, match=f"in use by process {process.pid}"):
            trainer(run, 1)
    finally:
        run.request("stop")
        process.wait()


def test_somebody_elses_run_is_followed_by_its_lock(run):
    process = trainer(run, 20)
    wait_until(lambda: run.state == "running")
    events = plain(follow(run))
    assert events == list(run.events())
    assert events[-1] == Finished(20, "done")
    process.wait()


def test_a_run_that_ended_is_told_and_left(run):
    run.append(Started("mae", 0, 5, 9, 1, 7, "cpu", "f32", 0.5))
    run.append(Finished(5, "done"))
    assert plain(follow(run)) == list(run.events())
    assert plain(follow(RunFolder(run.path.parent / "nothing"))) == []


# ---- death


def test_a_death_without_a_word_is_a_sentence(run):
    code = "import sys; print('about to'); sys.exit('ImportError: no torch')"
    process = start(run, command=command(code))
    *_, last = plain(follow(run, process))
    assert isinstance(last, Failed)
    assert "exit code 1" in last.message
    assert '"ImportError: no torch"' in last.message
    assert "log.txt" in last.message
    assert list(run.events()) == []  # told, not recorded


@posix
def test_a_kill_is_taken_for_want_of_memory(run):
    process = trainer(run, ENDLESS)
    wait_until(lambda: isinstance(run.last_event, Step))
    process.kill()
    *_, last = plain(follow(run, process))
    assert isinstance(last, Failed)
    assert "memory ran out" in last.message
    assert "no checkpoint yet" in last.message
    assert "micro_batch" in last.message
    assert run.state == "interrupted"
    assert plain(follow(run))[-1].message.startswith("The training's process is gone")

    process = trainer(run, 2)  # and it starts again without a question
    assert plain(follow(run, process))[-1] == Finished(2, "done")


@posix
def test_a_crash_names_its_signal(run):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    process = start(run, command=command(code))
    *_, last = plain(follow(run, process))
    assert "crashed (SIGSEGV)" in last.message


def test_a_failure_in_words_is_not_explained_again(run):
    code = (
        "import sys\n"
        "from histomae.events import Failed\n"
        "from histomae.learn.runs import RunFolder\n"
        "RunFolder(sys.argv[1]).append(Failed('No tissue. Choose slides.'))\n"
        "sys.exit(1)\n"
    )
    process = start(run, command=command(code, run.path))
    assert plain(follow(run, process)) == [Failed("No tissue. Choose slides.")]


def test_the_log_may_be_missing_or_odd(run):
    assert "last words" not in death(run, 3)
    run.log_file.write_bytes(b"\xff\xfe broken\n\n  \n")
    assert "broken" in death(run, 3)
    run.last.parent.mkdir()
    run.last.write_bytes(b"")
    assert "the last checkpoint is kept" in death(run, -getattr(signal, "SIGKILL", 9))


def test_a_folder_without_settings_starts_nothing(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        start(RunFolder(tmp_path))


def test_leaving_does_not_end_the_training(run):
    process = trainer(run, 30)
    events = follow(run, process)
    next(events)
    events.close()
    assert process.wait() == 0
    assert run.state == "done"


# ---- the real thing


def test_the_real_trainer_from_start_to_stop_to_end(folder, quick):
    """As the dock does it: the command line in a process of its own."""
    run = folder
    config = quick(epochs=4, preview_every=500, save_every=500, batch_size=8)
    asked = False
    events = []
    for event in supervise(config, run):
        events.append(event)
        if not asked and isinstance(event, Step) and event.step >= 3:
            asked = True
            run.request("stop")
    failures = [event.message for event in events if isinstance(event, Failed)]
    assert failures == []
    assert plain(events)[-1].reason == "stopped"
    assert run.last.exists()
    stopped_at = plain(events)[-1].step

    again = plain(follow(run, start(run)))
    assert [event.step for event in again if isinstance(event, Started)] == [
        0,
        stopped_at,
    ]
    assert again[-1].reason == "done"
    numbers = [event.step for event in again if isinstance(event, Step)]
    assert numbers == list(range(1, numbers[-1] + 1))
    assert any(isinstance(event, Saved) for event in again)
    assert not run.lock_file.exists()


def test_following_needs_no_torch():
    code = (
        "import sys, histomae.learn.supervise\n"
        "sys.exit('torch' in sys.modules or 'openslide' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
