"""Huge slides of few bytes: what OpenSlide sees of them."""

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from benchmarks.made_slides import tissue_at, write_made_slide

#: The corners of a square, (x, y).
AROUND = np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]])


@pytest.mark.parametrize(
    ("size", "how", "most_mb"),
    [
        ((200_000, 200_000), {"factors": (1, 128)}, 12),
        ((100_000, 100_000), {}, 5),
        ((10_000, 10_000), {"factors": (1, 4, 16), "tile_px": 240, "mpp": 0.5}, 2),
    ],
    ids=["level 0 and a small one", "four levels", "a usual one"],
)
def test_a_made_slide_is_an_aperio_slide(made_slide, size, how, most_mb):
    path = made_slide(size, **how)
    assert path.stat().st_size < most_mb * 1e6
    factors = how.get("factors", (1, 4, 16, 64))
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == how.get("mpp", 0.25)
        assert slide.properties["openslide.quickhash-1"]
        assert slide.level_dimensions == tuple(
            (size[0] // factor, size[1] // factor) for factor in factors
        )
        tile = how.get("tile_px", 256)
        assert int(slide.properties["openslide.level[0].tile-width"]) == tile


def test_every_level_shows_the_same_tissue(made_slide):
    size = (100_000, 100_000)
    places = np.random.default_rng(0).uniform(0.02, 0.98, (40, 2))
    with openslide.OpenSlide(made_slide(size)) as slide:
        for level, factor in enumerate(slide.level_downsamples):
            for x, y in places:
                near = tissue_at(x + 0.02 * AROUND[0], y + 0.02 * AROUND[1])
                if near.all() != near.any():  # an edge runs through
                    continue
                corner = (int(x * size[0]), int(y * size[1]))
                seen = np.asarray(slide.read_region(corner, level, (20, 20)))
                stained = seen[..., 1].mean() < 200
                assert stained == near.all(), (level, factor, x, y)


def test_the_tiles_are_jpeg_tiles(made_slide):
    path = made_slide((100_000, 100_000))
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        page = tiff.pages[0]
        assert len(set(page.dataoffsets)) == 10
        across = -(-page.imagewidth // page.tilewidth)
        row, col = 150, 200
        at = row * across + col
        file.seek(page.dataoffsets[at])
        tile = imagecodecs.jpeg8_decode(file.read(page.databytecounts[at]))
    with openslide.OpenSlide(path) as slide:
        seen = slide.read_region((col * 256, row * 256), 0, (256, 256))
    np.testing.assert_array_equal(np.asarray(seen)[..., :3], tile)


def test_a_last_level_too_large_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Add a level of at most 5000 pixels"):
        write_made_slide(tmp_path / "a.svs", (100_000, 100_000), factors=(1, 4))
