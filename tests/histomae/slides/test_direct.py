"""Past OpenSlide: the same pixels to the bit, or OpenSlide's own."""

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter

from benchmarks.tiled_slides import CODINGS
from histomae.errors import SlideError
from histomae.slides import decoders, direct
from histomae.slides.slide import Slide
from histomae.slides.tile_cache import TileCache


@pytest.fixture
def both():
    """Return a function that opens a file twice: directly, and by OpenSlide alone."""
    opened = []

    def open_both(path, **options):
        pair = [
            Slide.open(path, cache=TileCache(64 << 20), direct=each, **options)
            for each in (True, False)
        ]
        opened.extend(pair)
        return pair

    yield open_both
    for slide in opened:
        slide.close()


def outcome(slide, place):
    """Return what reading a tile gives: pixels, or the class of its error."""
    try:
        return slide.native_tile(*place)
    except SlideError:
        return SlideError


def tiles_that_differ(fast, slow):
    """Return the places of tiles that two readers do not read alike."""
    found = []
    for level in fast.levels:
        for col, row in np.ndindex(*level.tiles):
            place = level.index, col, row
            one, two = outcome(fast, place), outcome(slow, place)
            if one is SlideError or two is SlideError:
                same = one is two
            else:
                same = np.array_equal(one, two)
            if not same:
                found.append(place)
    return found


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("bigtiff", [False, True])
def test_same_pixels_as_openslide(make_tiled, stained, both, coding, bigtiff):
    levels = [stained(700, 460), stained(350, 230, 1)]
    path = make_tiled(levels, coding, tile=(128, 96), bigtiff=bigtiff)
    fast, slow = both(path)
    assert [fast.is_direct(level.index) for level in fast.levels] == [True, True]
    assert not slow.is_direct(0)
    assert tiles_that_differ(fast, slow) == []
    random = np.random.default_rng(1)
    for _ in range(25):
        x, y = random.integers(-90, 700, 2).tolist()
        size = tuple(random.integers(1, 200, 2).tolist())
        factor = random.choice([1.0, 1.7, 2.0, 4.0])
        reads = [
            slide.read_scaled((x * 2, y * 2), size, (factor, factor))
            for slide in (fast, slow)
        ]
        np.testing.assert_array_equal(*reads)


def test_real_pixels_are_read_not_only_equal_ones(make_tiled, stained, both):
    picture = stained(500, 300)
    fast, _ = both(make_tiled([picture]))
    read = fast.read_scaled((0, 0), (500, 300), (1, 1)).astype(int)
    assert np.abs(read - picture).mean() < 12  # JPEG, but this picture


def test_a_level_that_openslide_blends_is_read_as_it_is_stored(
    make_tiled, stained, both
):
    levels = [stained(1203, 901), stained(601, 450, 1)]
    path = make_tiled(levels)
    fast, slow = both(path)
    assert fast.is_direct(1)
    with tifffile.TiffFile(path) as tiff:
        stored = tiff.pages[1].asarray()
    read = fast.read_scaled((0, 0), (601, 450), (2, 2))
    np.testing.assert_array_equal(read, stored)
    away = np.abs(slow.read_scaled((0, 0), (601, 450), (2, 2)).astype(int) - stored)
    assert away.max() <= direct.UNDONE_MAX


def test_it_can_be_switched_off(make_tiled, stained, monkeypatch):
    path = make_tiled([stained(300, 200)])
    assert Slide.open(path).is_direct(0)
    monkeypatch.setenv(direct.SWITCH_VARIABLE, "0")
    assert not Slide.open(path).is_direct(0)
    assert Slide.open(path, direct=True).is_direct(0)
    monkeypatch.setenv(direct.SWITCH_VARIABLE, "1")
    assert not Slide.open(path, direct=False).is_direct(0)


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_other_compressions_are_openslides(make_slide, compression):
    with Slide.open(make_slide(compression=compression)) as slide:
        assert not slide.is_direct(0)


def test_only_formats_without_seams(stand_in, noise):
    slide, _ = stand_in([noise(300, 200)])
    assert not slide.is_direct(0)


def test_a_reader_that_is_wrong_is_not_taken(make_tiled, stained, both, monkeypatch):
    path = make_tiled([stained(500, 300)])
    right = decoders.jpeg

    def almost_right(*given, **options):
        pixels = right(*given, **options).copy()
        pixels[40, 50, 1] ^= 1
        return pixels

    monkeypatch.setattr(decoders, "jpeg", almost_right)
    fast, slow = both(path)
    assert not fast.is_direct(0)
    assert tiles_that_differ(fast, slow) == []


def test_colours_are_those_of_the_tag_not_of_the_tile(make_tiled, stained, both):
    # Tiles that say RGB of YCbCr, and the other way round: OpenSlide goes by the tag.
    picture = stained(300, 200)
    for said in ("jpeg ycbcr", "jpeg rgb"):

        def swap(_, tiles, mark=SAYS_OTHERWISE[said]):
            tiles[:] = [each[:2] + mark + each[2:] for each in tiles]

        fast, slow = both(make_tiled([picture], said, spoil=swap))
        assert fast.is_direct(0)
        assert tiles_that_differ(fast, slow) == []
        shown = fast.read_scaled((0, 0), (300, 200), (1, 1)).astype(int)
        assert np.abs(shown - picture).mean() < 12


JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
SAYS_OTHERWISE = {
    "jpeg ycbcr": decoders.SAYS_RGB,
    "jpeg rgb": JFIF,
}


# ---- smaller


@pytest.mark.parametrize("coding", CODINGS)
def test_a_reduced_tile_shows_the_same(make_tiled, stained, both, coding):
    picture = Image.fromarray(stained(300, 210)).filter(ImageFilter.GaussianBlur(9))
    fast, slow = both(make_tiled([np.array(picture)], coding, tile=(128, 96)))
    for slide in (fast, slow):
        for place in ((0, 0), (1, 1), (2, 2)):  # the last one is cut
            whole = slide.native_tile(0, *place)
            for reduce in (2, 4, 8):
                small = slide.native_tile(0, *place, reduce=reduce)
                assert small.shape == decoders.reduced_shape(whole.shape[1::-1], reduce)
                inside = (whole.shape[0] // reduce, whole.shape[1] // reduce)
                cut = whole[: inside[0] * reduce, : inside[1] * reduce].astype(float)
                blocks = cut.reshape(inside[0], reduce, inside[1], reduce, 3)
                expected = blocks.mean((1, 3))
                if slide is fast and "jp2" in coding:
                    # Wavelets lie on the first of the pixels, not in their middle.
                    expected = blocks[:, 0, :, 0]
                away = np.abs(expected - small[: inside[0], : inside[1]])
                most = 0.6 if slide is slow else 8 if coding == "jp2 ycbcr" else 4
                assert away.mean() < most, (reduce, place)
                assert slide.cached_native_tile(0, *place, reduce=reduce) is small
                asked = slide.request_native_tile(0, *place, reduce=reduce)
                assert asked.result(10) is small
    with pytest.raises(ValueError, match="one of"):
        fast.native_tile(0, 0, 0, reduce=3)


# ---- damage


def cut(jpeg):
    return jpeg[: len(jpeg) * 2 // 3]


def flip(jpeg):
    """Damage the coded pixels so that the decoder must notice."""
    return jpeg[: len(jpeg) // 2] + b"\xff\xd9" + jpeg[len(jpeg) // 2 :]


def zeros(jpeg):
    return bytes(len(jpeg))


DAMAGE = {"cut": cut, "ended early": flip, "zeros": zeros, "empty": lambda _: b""}


@pytest.mark.parametrize("coding", ["jpeg ycbcr", "jpeg rgb tables", "jp2 rgb"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tile_is_as_openslide_says(make_tiled, stained, both, coding, damage):
    def spoil(level, tiles):
        if not level:
            tiles[7] = DAMAGE[damage](tiles[7])

    path = make_tiled(
        [stained(600, 400), stained(300, 200, 1)], coding, tile=(128, 128), spoil=spoil
    )
    fast, slow = both(path)
    assert fast.is_direct(0)
    assert tiles_that_differ(fast, slow) == []
    if damage != "empty":  # that one is missing, and drawn as OpenSlide draws it
        with pytest.raises(SlideError, match="cannot be read"):
            fast.native_tile(0, 2, 1)
    # An error is no end, not even for OpenSlide, which latches it.
    for slide in (fast, slow):
        assert slide.native_tile(0, 0, 0).shape == (128, 128, 3)


def test_random_damage_never_gives_other_pixels(make_tiled, stained, both):
    # One level and one column: each tile has its own way to be damaged.
    random = np.random.default_rng(5)

    def spoil(_, tiles):
        for number, tile in enumerate(tiles):
            if number % 4 == 0:
                continue
            damaged = bytearray(tile)
            for at in random.integers(0, len(tile), random.integers(1, 4)):
                damaged[at] ^= 1 << random.integers(0, 8)
            tiles[number] = bytes(damaged)

    for coding in ("jpeg ycbcr", "jpeg rgb tables", "jp2 ycbcr"):
        fast, slow = both(
            make_tiled([stained(64, 64 * 60)], coding, tile=(64, 64), spoil=spoil)
        )
        assert tiles_that_differ(fast, slow) == []


def test_tiles_missing_in_an_aperio_slide(make_tiled, stained, both):
    # OpenSlide draws what is missing from the finer level, and distrusts what lies
    # above it in the coarser ones.
    def spoil(level, tiles):
        if level == 1:
            tiles[3] = b""

    path = make_tiled(
        [stained(1024, 768), stained(512, 384, 1), stained(256, 192, 2)],
        tile=(128, 128),
        spoil=spoil,
    )
    fast, slow = both(path)
    assert [fast.is_direct(level.index) for level in fast.levels] == [True, True, False]
    assert tiles_that_differ(fast, slow) == []


def test_a_tile_that_claims_more_bytes_than_the_file_has(make_tiled, stained, both):
    path = make_tiled([stained(600, 400)], tile=(128, 128), bigtiff=True)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags[325]
        place = tag.valueoffset + 7 * tag.valuebytecount // tag.count
        width = tag.valuebytecount // tag.count
    content = bytearray(path.read_bytes())
    content[place : place + width] = b"\xff" * (width - 1) + b"\x7f"
    path.write_bytes(content)
    for slide in both(path):
        with pytest.raises(SlideError, match=r"column 2, row 1 .*more bytes than"):
            slide.read_scaled((260, 130), (50, 50), (1, 1))
        assert slide.read_scaled((0, 0), (128, 128), (1, 1)).shape == (128, 128, 3)


def test_two_levels_of_one_size_are_left_to_openslide(make_tiled, stained, both):
    path = make_tiled([stained(300, 200), stained(300, 200, 1)], aperio=False)
    fast, slow = both(path)
    assert not fast.is_direct(0)
    assert tiles_that_differ(fast, slow) == []


# ---- real slides


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region/CMU-1-Small-Region.svs", "small/small.svs"]
)
def test_real_aperio_slides_to_the_bit(shared_data, both, name):
    fast, slow = both(shared_data / "slides" / name)
    assert fast.is_direct(0)
    assert tiles_that_differ(fast, slow) == []


@pytest.mark.real_data
def test_real_tumour_slide_to_the_bit(shared_data, both):
    fast, slow = both(shared_data / "slides/her2st/her2st-D1.tiff")
    assert all(fast.is_direct(level.index) for level in fast.levels)
    random = np.random.default_rng(2)
    cols, rows = fast.levels[0].tiles
    for _ in range(40):
        place = int(random.integers(0, cols)), int(random.integers(0, rows))
        np.testing.assert_array_equal(
            fast.native_tile(0, *place), slow.native_tile(0, *place)
        )
    with tifffile.TiffFile(fast.path) as tiff:
        for level, page in list(zip(fast.levels, tiff.pages, strict=True))[2:]:
            whole = fast.read_scaled((0, 0), level.size, level.factor)
            np.testing.assert_array_equal(whole, page.asarray())
