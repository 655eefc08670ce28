"""Files are whole or absent, whatever happens while they are written."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from histomae.files import append_whole, cache, home, runs_folder, write_beside


@pytest.fixture
def path(tmp_path):
    written = tmp_path / "state [1].json"
    written.write_text("old")
    return written


def names(path):
    return [each.name for each in path.parent.iterdir()]


def test_the_new_file_replaces_the_old_one(path):
    with write_beside(path) as beside:
        beside.write_text("new")
        assert beside.parent == path.parent
        assert beside.suffix == ".tmp"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(path) == [path.name]


def test_a_new_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "new.txt"
    with write_beside(path) as beside:
        beside.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_error_leaves_the_old_file(path, error):
    with pytest.raises(error), write_beside(path) as beside:
        beside.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names(path) == [path.name]


def test_writing_nothing_is_an_error(path):
    with pytest.raises(FileNotFoundError), write_beside(path):
        pass
    assert path.read_text() == "old"


def test_bytes_are_appended_whole_or_not_at_all(path, tmp_path):
    assert append_whole(path, b" and new")
    assert path.read_text() == "old and new"
    assert append_whole(tmp_path / "made", b"new")
    assert not append_whole(tmp_path, b"to a folder")
    assert not append_whole(tmp_path / "nowhere" / "file", b"new")
    full = Path("/dev/full")
    if full.exists():
        assert not append_whole(full, b"new")


KILLED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
from pathlib import Path
from histomae.files import write_beside
with write_beside(Path(sys.argv[1])) as beside:
    beside.write_text("half of the n")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_leaves_the_old_file(path, sent):
    training = Path(__file__).parents[2] / "training"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(training)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(sent)
        process.wait()
    assert path.read_text() == "old"
    if sent == signal.SIGINT:
        assert names(path) == [path.name]
    # What could not clean up after itself is swept away by the next who writes.
    with write_beside(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert names(path) == [path.name]


def test_the_file_of_a_living_writer_is_not_swept_away(path):
    with write_beside(path) as one:
        one.write_text("one")
        thread = threading.Thread(target=write_other, args=(path,))
        thread.start()
        thread.join()
        assert path.read_text() == "other"
    assert path.read_text() == "one"
    assert names(path) == [path.name]


def write_other(path):
    with write_beside(path) as beside:
        beside.write_text("other")


def test_files_of_others_are_let_be(path):
    keep = path.parent / ".someone-else.json.1-1.tmp"
    keep.write_text("not ours")
    write_other(path)
    assert keep.exists()


def test_many_threads_write_one_file(path):
    def write(number):
        for _ in range(10):
            with write_beside(path) as beside:
                beside.write_text(str(number) * 5000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        seen.append(path.read_text())
    for thread in threads:
        thread.join()
    assert {text for text in seen if text != "old"} <= {str(n) * 5000 for n in range(4)}
    assert names(path) == [path.name]


def test_own_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path))
    assert home() == tmp_path
    assert cache() == tmp_path / "cache"
    assert runs_folder() == tmp_path / "runs"
    monkeypatch.delenv("HISTOMAE_HOME")
    assert len({home(), cache(), runs_folder()}) == 3
    assert all("histomae" in str(each) for each in (home(), cache(), runs_folder()))
