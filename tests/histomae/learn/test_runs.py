"""The run folder: what is written can be read, by one owner at a time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from histomae.config import PretrainConfig
from histomae.errors import ConfigError, RunError
from histomae.events import (
    Failed,
    Finished,
    HeldOut,
    Note,
    Preview,
    Progress,
    Saved,
    Started,
    Step,
)
from histomae.learn.runs import (
    EventReader,
    Owner,
    RunFolder,
    list_runs,
    stop_on_signals,
)
from tests.patience import wait_until


def step(number, total=9):
    return Step(number, total, number / 3, 1 / number, 1e-4, 1.0, 10.0, 2.0)


@pytest.fixture
def run(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.create(PretrainConfig(slides=("a.svs",)))
    return made


@pytest.fixture
def sleeper():
    """A process that does nothing, and lives until the test is over."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def owner_of(process, **changes):
    started = psutil.Process(process.pid).create_time()
    host = socket.gethostname()
    return replace(Owner(process.pid, started, host, "ada", time.time()), **changes)


def write_lock(run, owner):
    run.lock_file.write_text(json.dumps(asdict(owner)))


# ---- a full disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_events_wait_for_room(run, monkeypatch):
    run.append(Note("before"))
    file = type(run).events_file
    with monkeypatch.context() as patch:
        patch.setattr(type(run), "events_file", Path("/dev/full"))
        run.append(Note("no room"))
        run.append(step(1))
    assert type(run).events_file is file
    assert list(run.events()) == [Note("before")]
    run.append(step(2))
    assert list(run.events()) == [Note("before"), Note("no room"), step(1), step(2)]


def test_half_a_line_is_taken_back(run):
    if not hasattr(os, "fork"):
        pytest.skip("needs a limit on the size of files")
    import resource

    run.append(Note("before"))
    size = run.events_file.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        run.append(Note("longer than twenty bytes"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert run.events_file.stat().st_size == size
    run.append(step(2))
    kept = [Note("before"), Note("longer than twenty bytes"), step(2)]
    assert list(run.events()) == kept


# ---- settings


def test_settings_come_back_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    config = PretrainConfig(slides=("a.svs",), init_from=weights.name, epochs=50)
    run = RunFolder(tmp_path / "deep" / "run")
    run.create(config)
    assert run.config() == replace(
        config, slides=(str(tmp_path / "a.svs"),), init_from=str(weights)
    )
    assert run.state == "new"


def test_addresses_of_slides_stay_as_they_are(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create(PretrainConfig(slides=("s3://ward/a.svs",)))
    assert run.config().slides == ("s3://ward/a.svs",)


def test_a_folder_that_holds_a_run_is_refused(run):
    with pytest.raises(RunError, match=r"already holds a run \(new\).*another folder"):
        run.create(PretrainConfig())


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        RunFolder(tmp_path).config()
    assert RunFolder(tmp_path / "nothing").state == "new"


def test_a_place_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").create(PretrainConfig())


def test_damaged_settings_are_named(run):
    run.config_file.write_text("epochs = many")
    with pytest.raises(ConfigError):
        run.config()


# ---- events


def test_events_come_back_as_they_were(run):
    said = [Started("mae", 0, 9, 90, 10, 7, "cpu", "f32", 0.5), step(1), Note("µ – ok")]
    for event in said:
        run.append(event)
    assert list(run.events()) == said
    assert run.last_event == said[-1]


def test_half_a_line_at_the_end_is_left_out(run):
    run.append(step(1))
    with run.events_file.open("a") as file:
        file.write(step(2).to_json()[:30])
    assert list(run.events()) == [step(1)]
    assert run.last_event == step(1)
    with run.lock():  # and cut off by the next owner
        run.append(step(3))
    assert list(run.events()) == [step(1), step(3)]


def test_the_last_event_is_found_at_the_end_of_a_long_file(run):
    line = step(5).to_json() + "\n"
    run.events_file.write_text(line * 2000 + step(6).to_json() + "\n")
    assert run.last_event == step(6)


def test_cutting_back_keeps_what_the_checkpoint_knows(run):
    kept = [
        Progress("finding tissue", 1, 1),
        Started("mae", 0, 9, 90, 10, 7, "cpu", "f32", 0.5),
        HeldOut(0, 1.5),
        step(1),
        step(2),
        Preview(2, "previews/2.png"),
        Saved(2, "checkpoints/last.safetensors"),
    ]
    for event in [*kept, step(3), Note("late"), Finished(3, "stopped")]:
        run.append(event)
    run.cut_back(2)
    assert list(run.events()) == kept
    run.cut_back(None)
    assert list(run.events()) == []
    assert not run.has_begun


def test_a_stop_at_the_checkpoint_loses_only_the_end(run):
    for event in (step(1), Finished(1, "stopped")):
        run.append(event)
    run.cut_back(1)
    assert list(run.events()) == [step(1)]


def test_a_follower_reads_what_is_new_once(run):
    reader = EventReader(run)
    assert reader.read() == []
    run.append(step(1))
    run.append(step(2))
    assert reader.read() == [step(1), step(2)]
    assert reader.read() == []
    with run.events_file.open("a") as file:
        file.write(step(3).to_json())
    assert reader.read() == []  # not whole yet
    with run.events_file.open("a") as file:
        file.write("\n")
    assert reader.read() == [step(3)]


def test_what_is_no_text_is_named(run):
    run.events_file.write_bytes(b"\xff\xfe\x00nonsense\n")
    for read in (EventReader(run).read, lambda: list(run.events()), lambda: run.state):
        with pytest.raises(RunError, match="Not an event of this version"):
            read()


def test_a_follower_survives_cutting_back(run):
    reader = EventReader(run)
    for number in (1, 2, 3):
        run.append(step(number))
    assert len(reader.read()) == 3
    run.cut_back(1)
    assert reader.read() == []
    again = replace(step(2), loss=0.25)
    run.append(again)
    assert reader.read() == [again]
    run.cut_back(1)
    run.append(again)
    assert reader.read() == []  # the same, line for line


# ---- state


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (Finished(3, "done"), "done"),
        (Finished(3, "stopped"), "stopped"),
        (Finished(0, "discarded"), "discarded"),
        (Failed("It broke. Mend it."), "failed"),
        (step(3), "interrupted"),
    ],
)
def test_the_last_word_is_the_state(run, event, state):
    run.append(step(1))
    run.append(event)
    assert run.state == state


def test_a_live_owner_means_running_a_dead_one_interrupted(run, sleeper):
    write_lock(run, owner_of(sleeper))
    assert run.state == "running"
    write_lock(run, owner_of(sleeper, started=1.0))
    assert run.state == "interrupted"


def test_what_is_done_stays_done(run):
    run.append(Finished(9, "done"))
    for go_on in (run.reopen, run.check_unfinished):
        with pytest.raises(RunError, match="is done"):
            go_on()
    assert run.state == "done"


def test_reopening_forgets_the_end_but_nothing_else(run):
    for event in (step(1), Finished(1, "stopped")):
        run.append(event)
    run.request("stop")
    run.reopen()
    assert list(run.events()) == [step(1)]
    assert run.requested() is None


def test_runs_are_listed_latest_first(tmp_path):
    for number, name in enumerate(("old", "mid", "new")):
        RunFolder(tmp_path / name).create(PretrainConfig())
        os.utime(tmp_path / name / "config.toml", (number, number))
    (tmp_path / "other").mkdir()
    assert [run.path.name for run in list_runs(tmp_path)] == ["new", "mid", "old"]
    assert list_runs(tmp_path / "nowhere") == []


# ---- requests


def test_requests_are_heard_until_they_are_cleared(run):
    assert run.requested() is None
    for what in ("pause", "resume", "stop", "discard"):
        run.request(what)
        assert run.requested() == what
    run.clear_request()
    run.clear_request()
    assert run.requested() is None
    with pytest.raises(RunError, match="'halt' is no request"):
        run.request("halt")
    run.control_file.write_text("nonsense")
    assert run.requested() is None


# ---- the lock


def test_the_second_owner_is_refused_with_who_and_when(run, sleeper):
    since = time.mktime((2026, 3, 4, 5, 6, 0, 0, 0, -1))
    write_lock(run, owner_of(sleeper, since=since))
    said = f"process {sleeper.pid} of ada on {socket.gethostname()}, since 2026-03-04 "
    for attempt in (run.lock, run.free_or_raise, run.reopen):
        with pytest.raises(RunError, match=said):  # noqa: SIM117
            with attempt() or pytest.fail("was let in"):
                pass
    assert run.lock_file.exists()


def test_one_process_cannot_hold_a_run_twice(run):
    with run.lock(), pytest.raises(RunError, match="is in use"), run.lock():
        pass
    assert not run.lock_file.exists()


def test_a_dead_owners_lock_is_cleared_with_what_was_asked_of_it(run, sleeper):
    dead = owner_of(sleeper)
    sleeper.kill()
    sleeper.wait()
    write_lock(run, dead)
    run.request("stop")
    with run.lock():
        assert run.owner() == Owner.me() or run.owner().pid == os.getpid()
        assert run.requested() is None
    assert sorted(p.name for p in run.path.iterdir()) == ["config.toml"]


def test_a_recycled_pid_is_not_the_owner(run, sleeper):
    write_lock(run, owner_of(sleeper, started=time.time() - 1e6))
    with run.lock():
        pass


def test_a_zombie_is_dead(run):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = owner_of(process)
    wait_until(lambda: not owner.is_alive)  # though nobody has waited for it
    process.wait()


def test_an_owner_on_another_computer_is_believed(run, sleeper):
    write_lock(run, owner_of(sleeper, host="elsewhere", started=1.0))
    with (
        pytest.raises(RunError, match=r"on elsewhere.*delete .*lock"),
        run.lock(),
    ):
        pass


def test_a_lock_that_is_no_lock_is_named(run):
    run.lock_file.write_text('{"pid": 1')
    with pytest.raises(RunError, match="delete this file"):
        run.free_or_raise()


def test_of_many_who_find_a_dead_lock_one_gets_in(run, sleeper):
    dead = owner_of(sleeper, started=1.0)
    script = (
        "import sys\n"
        "from histomae.learn.runs import RunFolder\n"
        "from histomae.errors import RunError\n"
        "run = RunFolder(sys.argv[1])\n"
        "print('here', flush=True)\n"
        "input()\n"
        "try:\n"
        "    with run.lock():\n"
        "        print('in', flush=True)\n"
        "        input()\n"
        "except RunError:\n"
        "    print('out', flush=True)\n"
    )
    write_lock(run, dead)
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(run.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(3)
    ]
    assert [process.stdout.readline() for process in crowd] == ["here\n"] * 3
    for process in crowd:
        process.stdin.write("\n")
        process.stdin.flush()
    # Who got in stays until all have tried.
    said = sorted(process.stdout.readline().strip() for process in crowd)
    for process in crowd:
        process.communicate("\n")
    assert said == ["in", "out", "out"]


# ---- signals


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_only_once(run, number):
    before = signal.getsignal(number)
    with stop_on_signals(run):
        os.kill(os.getpid(), number)
        wait_until(lambda: run.requested() == "stop")
        assert signal.getsignal(number) is before  # a second one ends at once
    assert signal.getsignal(number) is before


def test_signals_are_left_alone_outside_the_main_thread(run):
    worked = []

    def body():
        with stop_on_signals(run):
            worked.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert worked == [True]
