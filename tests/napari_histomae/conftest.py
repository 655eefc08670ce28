"""Slides made on the spot, and a viewer that the docks are used in."""

from functools import partial

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager

from histomae.slides.slide import Slide
from tests.patience import PATIENCE_S

#: A size that no tile divides; the pixels are not square.
WIDTH, HEIGHT = 1810, 1370
MPP_X, MPP_Y = 0.4, 0.5


def _write_slide(path, pixels, *, mpp_x=MPP_X, mpp_y=MPP_Y, levels=3):
    """Write a tiled pyramid that OpenSlide opens as generic-tiff."""
    resolution = None if mpp_x is None else (1e4 / mpp_x, 1e4 / mpp_y)
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            tiff.write(
                pixels[:: 2**level, :: 2**level],
                tile=(128, 128),
                photometric="rgb",
                compression="zlib",
                resolution=resolution,
                resolutionunit="CENTIMETER" if resolution else None,
                subfiletype=1 if level else 0,
                metadata=None,
            )
    return path


def _tissue_like(width=WIDTH, height=HEIGHT, seed=0):
    """Return white glass with a textured pink and purple ellipse of "tissue"."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = ((x / width - 0.5) / 0.4) ** 2 + ((y / height - 0.5) / 0.4) ** 2 < 1
    spots = random.random((height // 8 + 1, width // 8 + 1)) < 0.3
    nuclei = np.kron(spots, np.ones((8, 8), bool))[:height, :width]
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[inside] = (225, 150, 190)
    pixels[inside & nuclei] = (90, 50, 130)
    return pixels


@pytest.fixture(scope="session")
def write_slide():
    """The function that writes a slide."""
    return _write_slide


@pytest.fixture(scope="session")
def tissue_like():
    """The function that paints the pixels of one."""
    return _tissue_like


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return _write_slide(folder / "ellipse.tiff", _tissue_like())


@pytest.fixture
def slide(slide_path):
    with Slide.open(slide_path) as opened:
        yield opened


@pytest.fixture
def bare_path(tmp_path):
    """A slide that does not say how large its pixels are."""
    return _write_slide(tmp_path / "bare.tiff", _tissue_like(600, 500), mpp_x=None)


@pytest.fixture
def qtbot(qtbot, monkeypatch):
    """pytest-qt's, which waits patiently."""
    for name in ("waitUntil", "waitSignal", "waitExposed"):
        wait = partial(getattr(qtbot, name), timeout=round(1000 * PATIENCE_S))
        monkeypatch.setattr(qtbot, name, wait)
    return qtbot


@pytest.fixture(autouse=True)
def no_disk_is_slow(monkeypatch):
    """Complain of no slow disk: on a busy machine all are."""
    monkeypatch.setattr("napari_histomae._reader.SLOW_OPEN_S", float("inf"))


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer()


@pytest.fixture
def complaints():
    """The messages shown as napari notifications during the test."""
    first = len(notification_manager.records)

    class Complaints:
        @property
        def texts(self):
            return [str(r.message) for r in notification_manager.records[first:]]

    return Complaints()
