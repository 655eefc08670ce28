"""Reading crops: the right pixels, in order, each decoded once while memory allows."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from histomae.errors import SlideError
from histomae.learn import crops
from histomae.learn.crops import CropReader
from histomae.slides.crops import CropManifest, SlideEntry
from histomae.slides.slide import Slide
from tests.patience import PATIENCE_S, wait_until


class FakeSlide:
    """Gives pictures that say where they were read; counts and may dawdle."""

    def __init__(self, name, wait_s=0.0):
        self.name, self.wait_s = name, wait_s
        self.reads = []
        self.lock = threading.Lock()

    def read_region(self, xy_l0, size_px, mpp):
        time.sleep(self.wait_s)
        with self.lock:
            self.reads.append(xy_l0)
        picture = np.zeros((size_px[1], size_px[0], 3), np.uint8)
        picture[..., 0], picture[..., 1], picture[..., 2] = *xy_l0, self.name
        return picture


@pytest.fixture
def manifest():
    entries = [SlideEntry(f"{name}.svs", name, 0.5, 0.5, "file") for name in "ab"]
    return CropManifest(
        slides=tuple(entries),
        slide_index=np.arange(10) % 2,
        xy_l0=np.stack([np.arange(10.0), np.arange(10.0) + 100], 1),
        held_out=np.zeros(10, bool),
        crop_px=4,
        mpp=0.5,
        region_xy_l0=np.zeros((10, 2)),
        region_px=8,
    )


def told(pictures):
    """Return (x, y, slide) that each picture says."""
    return [tuple(picture[0, 0].tolist()) for picture in pictures]


def test_each_crop_is_the_manifests(manifest):
    slides = [FakeSlide(1), FakeSlide(2)]
    with CropReader(slides, manifest) as reader:
        assert len(reader) == 10
        got = reader.read_batch(np.array([3, 0, 8]))
    assert got.shape == (3, 4, 4, 3)
    assert got.dtype == np.uint8
    assert told(got) == [(3, 103, 2), (0, 100, 1), (8, 108, 1)]


@pytest.mark.parametrize("readers", [0, 1, 2, 4])
def test_batches_come_in_order_whatever_the_number_of_readers(manifest, readers):
    random = np.random.default_rng(0)
    batches = [random.permutation(10)[: random.integers(1, 6)] for _ in range(30)]
    slides = [FakeSlide(1, 0.001), FakeSlide(2)]
    with CropReader(slides, manifest, readers=readers) as reader:
        got = [batch for batch in reader.stream(iter(batches)) if batch is not None]
    assert len(got) == 30
    for indices, pictures in zip(batches, got, strict=True):
        assert [x for x, _, _ in told(pictures)] == indices.tolist()


def test_each_crop_is_decoded_once_while_they_fit(manifest):
    slides = [FakeSlide(1), FakeSlide(2)]
    with CropReader(slides, manifest, readers=1) as reader:
        assert reader.fits_in_memory
        for _ in range(3):
            reader.read_batch(np.arange(10))
    assert sum(len(slide.reads) for slide in slides) == 10


def test_what_does_not_fit_is_read_again(manifest):
    slides = [FakeSlide(1), FakeSlide(2)]
    room = 6 * 4 * 4 * 3
    with CropReader(slides, manifest, memory_bytes=room, readers=1) as reader:
        assert not reader.fits_in_memory
        for _ in range(3):
            reader.read_batch(np.arange(10))
    assert sum(len(slide.reads) for slide in slides) == 6 + 3 * 4


@pytest.fixture
def dense(manifest):
    """Crops of 4 px in regions of 8 px: those of an even number in the first one."""
    return replace(
        manifest,
        slide_index=np.zeros(10, int),
        xy_l0=np.stack([np.arange(10) % 2 * 100 + np.arange(10) % 5, np.ones(10)], 1),
        region_xy_l0=np.stack([np.arange(10) % 2 * 100.0, np.zeros(10)], 1),
        reads_regions=True,
    )


class Ramp(FakeSlide):
    """Its pixels say where they are."""

    mpp = (0.5, 0.5)

    def read_region(self, xy_l0, size_px, mpp):
        picture = super().read_region(xy_l0, size_px, mpp)
        y, x = np.mgrid[: size_px[1], : size_px[0]]
        picture[..., 0], picture[..., 1] = x + xy_l0[0], y + xy_l0[1]
        return picture


def test_a_region_is_decoded_once_for_all_of_its_crops(dense):
    slide = Ramp(7)
    with CropReader([slide], dense) as reader:
        assert reader.fits_in_memory
        got = reader.read_batch(np.arange(10))
    assert told(got) == [(*map(int, xy), 7) for xy in dense.xy_l0]
    assert sorted(slide.reads) == [(0, 0), (100, 0)]


def test_the_regions_used_last_are_kept(dense):
    slide = Ramp(7)
    room = 8 * 8 * 3
    with CropReader([slide], dense, memory_bytes=room, readers=0) as reader:
        assert not reader.fits_in_memory
        reader.read_batch(np.array([0, 2, 4, 1, 3, 5, 0]))
    assert slide.reads == [(0, 0), (100, 0), (0, 0)]


def test_who_asks_for_what_is_being_decoded_waits_for_it(dense):
    slide = Ramp(7, wait_s=0.1)
    with CropReader([slide], dense, readers=4) as reader:
        batches = [np.array([index]) for index in (0, 2, 4, 6)]
        got = [batch for batch in reader.stream(batches) if batch is not None]
    assert len(got) == 4
    assert slide.reads == [(0, 0)]


def test_a_read_that_failed_is_tried_again(manifest):
    class Moody(FakeSlide):
        def read_region(self, *where):
            if not self.reads:
                self.reads.append(None)
                raise SlideError("a.svs cannot be read. Copy it again.")
            return super().read_region(*where)

    with CropReader([Moody(1), FakeSlide(2)], manifest) as reader:
        with pytest.raises(SlideError, match="Copy it again"):
            reader.read(0)
        assert told([reader.read(0)]) == [(0, 100, 1)]


def test_slow_reading_says_so_instead_of_blocking(manifest):
    go_on = threading.Event()

    class Slow(FakeSlide):
        def read_region(self, *where):
            go_on.wait(PATIENCE_S)
            return super().read_region(*where)

    with CropReader([Slow(1), FakeSlide(2)], manifest) as reader:
        stream = reader.stream([np.array([0]), np.array([2])])
        assert next(stream) is None
        go_on.set()
        got = [batch for batch in stream if batch is not None]
        assert told([batch[0] for batch in got]) == [(0, 100, 1), (2, 102, 1)]


def test_reading_is_ahead_of_the_computing(manifest):
    slides = [FakeSlide(1), FakeSlide(2)]
    with CropReader(slides, manifest, readers=2) as reader:
        stream = reader.stream([np.array([i]) for i in range(10)])
        next(stream)
        wait_until(lambda: sum(len(slide.reads) for slide in slides) == 3)
        time.sleep(0.1)
        assert sum(len(slide.reads) for slide in slides) == 3  # and no further


class Damaged(FakeSlide):
    """Cannot be read where x is one of ``bad``; everywhere, without."""

    def __init__(self, name, bad=None):
        super().__init__(name)
        self.bad = bad

    def read_region(self, xy_l0, size_px, mpp):
        if self.bad is None or xy_l0[0] in self.bad:
            raise SlideError("a.svs cannot be read. Copy it again.")
        return super().read_region(xy_l0, size_px, mpp)


def test_others_stand_in_for_crops_that_cannot_be_read(manifest):
    with CropReader([Damaged(1, {2, 6}), FakeSlide(2)], manifest) as reader:
        got = reader.read_batch(np.array([2, 4, 6, 5, 6]))
        assert [x for x, _, _ in told(got)] == [4, 4, 5, 5, 4]
        assert reader.complaints() == [
            "2 of 10 crops could not be read and were left out. a.svs cannot be read. "
            "Copy it again."
        ]
        assert reader.complaints() == reader.complaints(at_the_end=True) == []
        reader.read_batch(np.array([2, 4, 6]))  # the same again
        assert reader.complaints(at_the_end=True) == []
        with pytest.raises(SlideError, match="Copy it again"):
            reader.read(2)


def test_complaints_do_not_come_for_every_crop(manifest):
    with CropReader([Damaged(1), FakeSlide(2)], manifest) as reader:
        said = []
        for index in (0, 2, 4, 6, 8):
            reader.read_batch(np.array([index, 1]))
            said += reader.complaints()
        assert [each.split(" of ")[0] for each in said] == ["1", "2", "4"]
        (last,) = reader.complaints(at_the_end=True)
        assert last.startswith("5 of 10 crops")


def test_a_batch_without_any_takes_another_of_its_kind(manifest):
    held_out = np.arange(10) % 2 == 0
    manifest = replace(manifest, held_out=held_out)
    slides = [Damaged(1, {0, 2}), Damaged(2, {1, 3})]
    with CropReader(slides, manifest) as reader:
        for batch in ([0], [2, 0], [1], [3, 1]):
            for x, _, _ in told(reader.read_batch(np.array(batch))):
                assert x not in (0, 1, 2, 3)
                assert held_out[x] == held_out[batch[0]]


def test_when_nothing_can_be_read_it_waits_and_then_ends(manifest, monkeypatch):
    monkeypatch.setattr(crops, "AGAIN_S", 0.01)
    monkeypatch.setattr(crops, "GIVE_UP_S", 0.2)
    slide = Damaged(1)
    with CropReader([slide, Damaged(2)], manifest) as reader:
        with pytest.raises(SlideError, match=r"No crop could be .*resume.*a\.svs"):
            list(reader.stream([np.array([0])]))
        monkeypatch.setattr(crops, "GIVE_UP_S", 20)
        stream = reader.stream([np.array([0, 4])])
        assert next(stream) is None
        slide.bad = ()  # the drive is back
        got = next(batch for batch in stream if batch is not None)
        assert [x for x, _, _ in told(got)] == [0, 0]


def test_closing_does_not_wait_for_slides_that_are_gone(manifest, monkeypatch):
    monkeypatch.setattr(crops, "GIVE_UP_S", 10 * PATIENCE_S)
    begin = time.monotonic()
    with CropReader([Damaged(1), Damaged(2)], manifest) as reader:
        stream = reader.stream([np.array([0])])
        assert next(stream) is None
        stream.close()
    assert time.monotonic() - begin < PATIENCE_S


def test_a_region_that_cannot_be_read_does_not_cost_its_crops(dense):
    class Holed(Ramp):
        def read_region(self, xy_l0, size_px, mpp):
            if size_px[0] == dense.region_px and xy_l0[0] == 0:
                raise SlideError("A tile of this region is damaged. Copy it again.")
            return super().read_region(xy_l0, size_px, mpp)

    everything = np.arange(10)
    with CropReader([Ramp(7)], dense) as whole, CropReader([Holed(7)], dense) as holed:
        np.testing.assert_array_equal(
            whole.read_batch(everything), holed.read_batch(everything)
        )
        assert holed.complaints(at_the_end=True) == []


def test_closing_ends_the_threads(manifest):
    before = set(threading.enumerate())
    with CropReader([FakeSlide(1, 0.01), FakeSlide(2)], manifest) as reader:
        stream = reader.stream(np.array([i % 10]) for i in range(1000))
        next(stream)
        stream.close()
    assert set(threading.enumerate()) <= before


# ---- places seen at several magnifications


@pytest.fixture(scope="module")
def smooth_slide(make_slide):
    """A slide whose red is x and green is y, at 0.5 µm/px, 1200 px wide."""
    y, x = np.mgrid[:1200, :1200]
    pixels = np.stack([x / 1200 * 255, y / 1200 * 255, x * 0 + 128], -1)
    return make_slide(pixels.round().astype(np.uint8), mpp=0.5, factors=(1, 2, 4))


@pytest.mark.parametrize("views_mpp", [(1.0, 0.5), (1.3,), (0.71, 0.6)])
def test_all_views_of_a_place_have_one_centre_and_their_own_pixel_size(
    smooth_slide, views_mpp
):
    entry = SlideEntry(str(smooth_slide), "a", 0.5, 0.5, "file")
    manifest = CropManifest(
        slides=(entry,),
        slide_index=np.zeros(3, int),
        xy_l0=np.array([[100.0, 250], [301, 17], [611, 590]]),
        held_out=np.zeros(3, bool),
        crop_px=64,
        mpp=2.0,
        region_xy_l0=np.zeros((3, 2)),
        region_px=64,
        views_mpp=views_mpp,
    )
    with (
        Slide.open(smooth_slide) as slide,
        CropReader([slide], manifest) as reader,
    ):
        pictures = reader.read_batch(np.arange(3))
    assert pictures.shape == (3, 1 + len(views_mpp), 64, 64, 3)
    level_per_px = 255 / 1200
    for corner, views in zip(manifest.xy_l0, pictures.astype(float), strict=True):
        for mpp, view in zip((2.0, *views_mpp), views, strict=True):
            # Measured at pixel edges, a pixel's colour is that of its centre less half.
            centre = (corner + 128 - 0.5) * level_per_px
            assert view[..., 0].mean() == pytest.approx(centre[0], abs=0.3)
            assert view[..., 1].mean() == pytest.approx(centre[1], abs=0.3)
            slope = np.polyfit(np.arange(64), view[..., 0].mean(0), 1)[0]
            assert slope == pytest.approx(mpp / 0.5 * level_per_px, rel=0.02)


def test_memory_is_counted_with_all_views(manifest):
    seen = replace(manifest, mpp=1.0, views_mpp=(0.5,))
    room = 10 * 4 * 4 * 3
    for listed, fits in ((manifest, True), (seen, False)):
        reader = CropReader([FakeSlide(1)] * 2, listed, memory_bytes=room)
        assert reader.fits_in_memory == fits
        reader.close()
