"""Slides on a server: what an address is, copies, and everything that can go wrong."""

import functools
import http.server
import io
import threading
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from histomae.errors import SlideError
from histomae.events import Note, Progress
from histomae.slides import remote
from histomae.slides.remote import address, copied, local_copies
from histomae.slides.slide import Slide
from tests.listening import events_of


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path / "home"))


@pytest.fixture
def cloud():
    """Return fsspec's file system in memory, empty again at the end."""
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


@pytest.fixture
def stored(cloud, make_slide, noise):
    """Return the address of a slide in the cloud, and its pixels."""
    pixels = noise(300, 200)
    cloud.pipe("/ward/a.tiff", Path(make_slide(pixels, factors=(1,))).read_bytes())
    return "memory://ward/a.tiff", pixels


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://ward/a.svs", "s3://ward/a.svs"),
        (Path("s3://ward/a.svs"), "s3://ward/a.svs"),
        (Path("https://a.org/b/c.svs"), "https://a.org/b/c.svs"),
        ("sftp://a@host:22/c.svs", "sftp://a@host:22/c.svs"),
        ("/data/a.svs", None),
        ("a.svs", None),
        ("C:/data/a.svs", None),
        (r"C:\data\a.svs", None),
        (Path("odd:name.svs"), None),
        ("", None),
        ("\0", None),
    ],
)
def test_an_address_is_told_from_a_path(path, url):
    assert address(path) == url


def test_a_slide_is_copied_once_and_reads_as_it_is(cloud, stored, monkeypatch):
    url, pixels = stored
    events, path = events_of(copied(url))
    assert path.name == "a.tiff"
    assert {type(event) for event in events} == {Progress}
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(
            slide.read_scaled((0, 0), (300, 200), (1, 1)), pixels
        )
    opened = []
    monkeypatch.setattr(type(cloud), "_open", lambda *args, **_: opened.append(args))
    assert events_of(copied(url)) == ([], path)
    assert opened == []
    assert cloud.cat("/ward/a.tiff") == path.read_bytes()  # only read


def test_a_changed_original_is_copied_again(cloud, stored):
    url, _ = stored
    _, path = events_of(copied(url))
    cloud.pipe("/ward/a.tiff", path.read_bytes() + b"more")
    events, again = events_of(copied(url))
    assert again == path
    assert events
    assert path.read_bytes().endswith(b"more")


def test_paths_of_files_stay_as_they_are(stored, tmp_path):
    url, _ = stored
    (tmp_path / "here.svs").touch()
    _, paths = events_of(local_copies([tmp_path / "here.svs", url]))
    assert paths[0] == tmp_path / "here.svs"
    assert paths[1].is_file()


def test_addresses_of_one_name_are_two_copies(cloud, stored):
    url, _ = stored
    cloud.pipe("/other/a.tiff", b"another one")
    _, (one, two) = events_of(local_copies([url, "memory://other/a.tiff"]))
    assert one != two
    assert two.read_bytes() == b"another one"


# ---- what can go wrong


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://ward/none.svs", "is not at memory://ward, or that does not answer"),
        ("nowhere://ward/a.svs", "cannot be fetched by nowhere://"),
        ("https://a.org/a.mrxs", "one of several files"),
        ("http://127.0.0.1:9/a.svs", "a.svs is not at http://127.0.0.1:9, or that"),
    ],
)
def test_what_cannot_be_copied_is_said(url, said):
    with pytest.raises(SlideError) as caught:
        events_of(copied(url))
    assert said in str(caught.value)


def test_a_password_is_not_repeated():
    with pytest.raises(SlideError) as caught:
        events_of(copied("http://me:secret@127.0.0.1:9/a.svs"))
    assert "http://127.0.0.1:9, " in str(caught.value)


def test_a_right_that_is_missing_is_named(cloud, stored, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("403")

    monkeypatch.setattr(type(cloud), "_open", refuse)
    with pytest.raises(SlideError, match="does not let you read a"):
        events_of(copied(stored[0]))


@pytest.mark.parametrize("fault", ["cut", "broken off"])
def test_half_a_copy_is_none(cloud, stored, monkeypatch, tmp_path, fault):
    class Half(io.BytesIO):
        def read(self, count=-1):
            if self.tell() and fault == "broken off":
                raise ConnectionResetError("reset by peer")
            return b"" if self.tell() else super().read(100)

    monkeypatch.setattr(type(cloud), "_open", lambda *_, **__: Half(bytes(200)))
    said = "Only 100 of" if fault == "cut" else "reset by peer"
    with pytest.raises(SlideError, match=said):
        events_of(copied(stored[0]))
    assert not any(path.is_file() for path in (tmp_path / "home").rglob("*"))


def test_without_room_nothing_is_begun(stored, monkeypatch):
    monkeypatch.setattr(remote, "SPARE_BYTES", 1 << 60)
    with pytest.raises(SlideError, match="no room for a copy of a"):
        events_of(copied(stored[0]))


def test_a_copy_serves_where_the_server_is_silent(cloud, stored):
    url, _ = stored
    _, path = events_of(copied(url))
    cloud.rm("/ward/a.tiff")
    events, again = events_of(copied(url))
    assert again == path
    (note,) = events
    assert isinstance(note, Note)
    assert "Check the address" in note.text
    assert "The copy of" in note.text


def test_a_slow_server_is_named_once(cloud, stored, monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=clock.__next__))
    monkeypatch.setattr(remote, "PIECE_BYTES", 20_000)
    events, _ = events_of(copied(stored[0]))
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.text.startswith("a.tiff comes slowly from memory://ward: 0.0 MB/s")
    assert "min to go" in note.text


# ---- a real server


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """Return a folder and its address on a server of this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_slide_comes_from_a_web_server(served, make_slide, noise):
    folder, url = served
    pixels = noise(300, 200)
    content = Path(make_slide(pixels, factors=(1,))).read_bytes()
    (folder / "a b.tiff").write_bytes(content)
    _, path = events_of(copied(f"{url}/a%20b.tiff"))
    assert path.name == "a b.tiff"
    assert path.read_bytes() == content
    with Slide.open(path) as slide:
        assert slide.dimensions == (300, 200)
    with pytest.raises(SlideError, match="is not at http://127"):
        events_of(copied(f"{url}/none.svs"))
