"""Slides for the archive's tests: written on the spot, or stood in for."""

import io

import numpy as np
import openslide
import pytest
from PIL import Image, ImageCms

from benchmarks import tiled_slides
from histomae.slides.slide import Slide


class StandIn:
    """What ``openslide.OpenSlide`` offers, over pictures that lie in memory.

    It shows what no real file at hand has. ``levels`` are uint8 (H, W, 4), finest
    first; ``broken`` holds boxes (x0, y0, x1, y1) in level-0 pixels that cannot be
    read; ``reads`` lists the (level, width, height) asked for.
    """

    def __init__(self, levels, properties, profile=None):
        self.levels = levels
        self.properties = properties
        self.profile = profile
        self.broken = []
        self.reads = []
        self.opened = 0
        self.level_dimensions = tuple((lv.shape[1], lv.shape[0]) for lv in levels)
        wide, high = self.level_dimensions[0]
        self.level_downsamples = tuple(
            (wide / w + high / h) / 2 for w, h in self.level_dimensions
        )

    @property
    def color_profile(self):
        if self.profile is None:
            return None
        return ImageCms.getOpenProfile(io.BytesIO(self.profile))

    def read_region(self, location, level, size):
        self.reads.append((level, *size))
        down = self.level_downsamples[level]
        x, y = (round(place / down) for place in location)
        for x0, y0, x1, y1 in self.broken:
            left, top = (place * down for place in (x, y))
            right, bottom = left + size[0] * down, top + size[1] * down
            if left < x1 and top < y1 and right > x0 and bottom > y0:
                raise openslide.OpenSlideError("Cannot read raw tile")
        picture = np.zeros((size[1], size[0], 4), np.uint8)
        there = self.levels[level][y : y + size[1], x : x + size[0]]
        picture[: there.shape[0], : there.shape[1]] = there
        return Image.fromarray(picture)

    def close(self):
        pass


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return a function that opens a slide on a stand-in for OpenSlide's handle.

    ``stand_in(levels, properties=None, profile=None) -> (Slide, StandIn)``; by default
    the file says 0.5 µm/px.
    """

    def make(levels, properties=None, profile=None):
        written = {
            openslide.PROPERTY_NAME_MPP_X: "0.5",
            openslide.PROPERTY_NAME_MPP_Y: "0.5",
            openslide.PROPERTY_NAME_VENDOR: "stand-in",
            openslide.PROPERTY_NAME_QUICKHASH1: "of a stand-in",
            **(properties or {}),
        }
        known = {key: value for key, value in written.items() if value is not None}
        handle = StandIn([opaque(level) for level in levels], known, profile)
        path = tmp_path / "stand-in.mrxs"
        path.write_bytes(b"nothing that anyone reads")

        def open_handle(_):
            handle.opened += 1
            return handle

        monkeypatch.setattr("histomae.slides.oracle._open_handle", open_handle)
        return Slide.open(path), handle

    return make


def opaque(level):
    if level.shape[-1] == 4:
        return level
    return np.dstack([level, np.full(level.shape[:2], 255, np.uint8)])


@pytest.fixture
def swapped_profile():
    """Return an ICC profile whose red is blue and whose blue is red."""
    profile = bytearray(
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    entries = int.from_bytes(profile[128:132], "big")
    for at in range(132, 132 + 12 * entries, 12):
        name = bytes(profile[at : at + 4])
        profile[at : at + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(name, name)
    return bytes(profile)


@pytest.fixture
def noise():
    """Return a function that makes a picture in which no two places look the same."""

    def draw(width, height, seed=0):
        random = np.random.default_rng(seed)
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)

    return draw


@pytest.fixture(scope="session")
def section():
    """Return a function that paints a section at 8 µm/px, as a thumbnail shows it.

    ``section(height=320, width=400) -> (pixels, tissue)``: white glass with a textured
    pink and purple piece; ``tissue`` bool (H, W) says where.
    """

    def paint(height=320, width=400, seed=0):
        random = np.random.default_rng(seed)
        pixels = 243 + random.normal(0, 1.5, (height, width, 3))
        y, x = np.mgrid[:height, :width]
        tissue = ((x - 140) / 90) ** 2 + ((y - 170) / 100) ** 2 < 1
        # Nuclei, and the nests that they form: texture at both scales.
        nests = random.random((-(-height // 4), -(-width // 4), 1)) < 0.5
        nests = nests.repeat(4, 0).repeat(4, 1)[:height, :width]
        purple = 0.7 * nests + 0.3 * random.random((height, width, 1))
        stained = (1 - purple) * (226, 160, 200) + purple * (110, 70, 150)
        pixels[tissue] = stained[tissue]
        return np.rint(pixels).clip(0, 255).astype(np.uint8), tissue

    return paint


@pytest.fixture(scope="session")
def section_slide(section, make_slide):
    """Return the path of a slide that shows a section at 1 µm/px and its tissue.

    ``section_slide -> (path, tissue)``; a pixel of ``tissue`` is 8 µm wide.
    """
    picture, tissue = section()
    large = picture.repeat(8, 0).repeat(8, 1)
    return make_slide(large, mpp=1.0, factors=(1, 8)), tissue


@pytest.fixture(scope="session")
def stained():
    """Return a function that paints what a scanner might see: no two places alike."""
    return tiled_slides.stained


@pytest.fixture(scope="session")
def make_tiled(tmp_path_factory):
    """Return a function that writes a slide of tiles as scanners store them.

    ``make_tiled(levels, coding="jpeg ycbcr", ...) -> Path``; see
    :func:`benchmarks.tiled_slides.write_tiled`.
    """

    def write(levels, *arguments, **options):
        path = tmp_path_factory.mktemp("tiled") / "slide.svs"
        return tiled_slides.write_tiled(path, levels, *arguments, **options)

    return write
