"""The slides under File > Open Sample."""

import hashlib
import http.server
import threading
from types import SimpleNamespace

import pytest

from histomae.errors import DownloadError
from histomae.files import cache
from histomae.slides import download
from napari_histomae import _sample_data


def test_the_synthetic_slide_says_that_it_is_synthetic(viewer, slide_path, monkeypatch):
    from histomae.slides import sample

    made = SimpleNamespace(slide_path=slide_path)
    monkeypatch.setattr(sample, "sample_slide", lambda: made)
    viewer.open_sample("napari-histomae", "sample_slide")
    (layer,) = viewer.layers
    assert layer.name == "ellipse (synthetic)"
    assert layer.metadata["histomae"]["path"] == str(slide_path)


class TestDownload:
    """A real slide from a public server; here the server is this machine."""

    @pytest.fixture
    def server(self, slide_path, monkeypatch):
        content = slide_path.read_bytes()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
            wanted = download.Download(
                url=f"http://127.0.0.1:{running.server_port}/small.tiff",
                name="small.tiff",
                sha256=hashlib.sha256(content).hexdigest(),
                size_bytes=len(content),
            )
            monkeypatch.setattr(download, "CMU_SMALL_REGION", wanted)
            thread = threading.Thread(target=running.serve_forever, args=(0.01,))
            thread.start()
            yield running
            running.shutdown()
            thread.join()

    def test_is_fetched_once_and_opened(self, viewer, server):
        viewer.open_sample("napari-histomae", "cmu_small_region")
        assert [layer.name for layer in viewer.layers] == ["small"]
        assert (cache() / "downloads" / "small.tiff").is_file()
        server.shutdown()
        server.server_close()
        viewer.open_sample("napari-histomae", "cmu_small_region")
        assert len(viewer.layers) == 2

    def test_offline_gives_a_sentence(self, server):
        server.shutdown()
        server.server_close()
        with pytest.raises(DownloadError, match=r"cannot be reached.*sample slide"):
            _sample_data.cmu_small_region()
