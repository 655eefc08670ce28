"""A file from a server on this machine: the right one, and all the wrong ones."""

import hashlib
import http.server
import threading
from dataclasses import replace

import pytest

from histomae.errors import DownloadError
from histomae.events import Progress, result_of
from histomae.slides.download import CMU_SMALL_REGION, Download, fetch

CONTENT = bytes(range(256)) * 2000


class Server(http.server.ThreadingHTTPServer):
    """Serves ``/whole``, ``/other``, ``/cut`` (too short) and nothing else."""

    asked = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        if self.path == "/gone":
            self.send_error(404)
            return
        body = CONTENT[::-1] if self.path == "/other" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if self.path == "/cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def whole(server) -> Download:
    return Download(
        url=f"http://127.0.0.1:{server.server_port}/whole",
        name="slide.svs",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
    )


def at(download, page):
    return replace(download, url=download.url.replace("/whole", page))


def test_fetches_once_and_tells_how_far(whole, server, tmp_path):
    events = list(fetch(whole, folder=tmp_path))
    assert (tmp_path / "slide.svs").read_bytes() == CONTENT
    assert all(isinstance(event, Progress) for event in events)
    assert (events[-1].done, events[-1].total) == (len(CONTENT), len(CONTENT))
    assert result_of(fetch(whole, folder=tmp_path)) == tmp_path / "slide.svs"
    assert server.asked == 1


def test_a_damaged_copy_is_fetched_again(whole, server, tmp_path):
    (tmp_path / "slide.svs").write_bytes(CONTENT[:-1])
    path = result_of(fetch(whole, folder=tmp_path))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("/other", "not the file that is expected"),
        ("/cut", "Only 1,000 of 512,000 bytes"),
        ("/gone", "HTTP 404"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_left(whole, tmp_path, page, says):
    with pytest.raises(DownloadError, match=says):
        result_of(fetch(at(whole, page), folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_too_long_is_refused_early(whole, tmp_path):
    expected = replace(whole, size_bytes=10)
    with pytest.raises(DownloadError):
        result_of(fetch(expected, folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_offline_is_said_clearly(whole, server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"cannot be reached.*sample slide"):
        result_of(fetch(whole, folder=tmp_path, timeout_s=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_data
def test_the_real_slide_is_the_one_expected(shared_data):
    path = shared_data / "slides/CMU-1-Small-Region/CMU-1-Small-Region.svs"
    content = path.read_bytes()
    assert len(content) == CMU_SMALL_REGION.size_bytes
    assert hashlib.sha256(content).hexdigest() == CMU_SMALL_REGION.sha256
