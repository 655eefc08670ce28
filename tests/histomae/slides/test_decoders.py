"""Single tiles from their bytes: exactly, or not at all."""

import io

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from benchmarks.tiled_slides import split_tables, stained
from histomae.slides import decoders
from histomae.slides.decoders import jpeg, jpeg2000, jpeg_head

SIZE = (96, 64)


@pytest.fixture(scope="module")
def picture():
    return stained(*SIZE)


@pytest.fixture(scope="module")
def coded(picture):
    return simplejpeg.encode_jpeg(picture, quality=90)


@pytest.fixture
def head():
    return jpeg_head(b"", is_rgb=False)


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def test_a_jpeg(coded, head):
    pixels = jpeg(coded, head, SIZE)
    assert pixels.shape == (64, 96, 3)
    np.testing.assert_array_equal(pixels, simplejpeg.decode_jpeg(coded))


def test_a_progressive_jpeg(picture, head):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=95, progressive=True)
    pixels = jpeg(file.getvalue(), head, SIZE)
    assert np.abs(pixels.astype(int) - picture).mean() < 12


def test_rgb_is_what_the_file_says(picture):
    data = imagecodecs.jpeg8_encode(
        picture, level=95, colorspace="rgb", outcolorspace="rgb"
    )
    pixels = jpeg(data, jpeg_head(b"", is_rgb=True), SIZE)
    assert np.abs(pixels.astype(int) - picture).mean() < 4
    otherwise = jpeg(data, jpeg_head(b"", is_rgb=False), SIZE)
    assert np.abs(otherwise.astype(int) - picture).mean() > 20


#: What the JPEG library complains of, and OpenSlide therefore refuses; or what is not
#: the picture that the file speaks of.
ODD = {
    "cut": lambda data: data[: len(data) // 2],
    "no end": lambda data: data[:-2],
    "ended early": lambda data: data[:-90] + decoders.END,
    "no start": lambda data: data[1:],
    "nothing": lambda _: b"",
    "a start alone": lambda _: decoders.START,
    "a marker cut": lambda data: data[:30],
    "no picture": lambda _: decoders.START + decoders.END,
    "JFIF of version 9": lambda data: data.replace(b"JFIF\0\1", b"JFIF\0\x09"),
    "Adobe's colours 7": lambda data: (
        data[:2] + decoders.SAYS_RGB[:-1] + b"\7" + data[2:]
    ),
    "Adobe's marker long": lambda data: (
        data[:2] + segment(0xEE, b"Adobe" + bytes(9)) + data[2:]
    ),
    "a frame by arithmetic": lambda data: data.replace(b"\xff\xc0", b"\xff\xc9"),
    "another size": lambda data: data.replace(
        b"\x08\x00\x40\x00\x60\x03", b"\x08\x00\x41\x00\x60\x03"
    ),
    "other bits": lambda data: data.replace(
        b"\x08\x00\x40\x00\x60\x03", b"\x0c\x00\x40\x00\x60\x03"
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_not_taken(coded, head, odd):
    data = ODD[odd](coded)
    assert data != coded
    assert jpeg(data, head, SIZE) is None


def test_a_grey_jpeg_is_not_taken(picture, head):
    grey = simplejpeg.encode_jpeg(picture[..., :1].copy(), colorspace="GRAY")
    assert jpeg(grey, head, SIZE) is None


def test_what_does_not_matter_is_let_pass(coded, head):
    extra = segment(0xFE, b"a comment") + segment(0xE2, b"ICC_PROFILE\0")
    extra += segment(0xE0, b"JFXX\0\x13") + segment(0xEE, b"another's")
    pixels = jpeg(coded[:2] + extra + coded[2:], head, SIZE)
    np.testing.assert_array_equal(pixels, jpeg(coded, head, SIZE))


def test_tables_apart(coded, head):
    tables, rest = split_tables(coded)
    pixels = jpeg(rest, jpeg_head(tables, is_rgb=False), SIZE)
    np.testing.assert_array_equal(pixels, jpeg(coded, head, SIZE))
    assert jpeg(rest, head, SIZE) is None


@pytest.mark.parametrize(
    "tables",
    [
        b"\xff",
        b"no tables",
        decoders.START,
        decoders.START + segment(0xDB, bytes(65)),  # no end
        # It would be forgotten at the start of the tile.
        decoders.START + segment(0xDD, b"\0\4") + decoders.END,
        decoders.START + segment(0xC0, bytes(15)) + decoders.END,
        decoders.START + segment(0xDA, bytes(10)) + decoders.END,
        decoders.START + segment(0xEE, b"Adobe" + bytes(6) + b"\7") + decoders.END,
    ],
)
def test_tables_that_are_odd(tables):
    assert jpeg_head(tables, is_rgb=True) is None


# ---- JPEG 2000


@pytest.fixture(scope="module")
def stream(picture):
    return imagecodecs.jpeg2k_encode(
        picture, level=0, reversible=True, codecformat="j2k", mct=False
    )


def test_a_code_stream(picture, stream):
    np.testing.assert_array_equal(jpeg2000(stream, SIZE, is_rgb=True), picture)


def test_ycbcr_becomes_rgb_by_the_textbook(picture, stream):
    rgb = jpeg2000(stream, SIZE, is_rgb=False)
    y, cb, cr = np.moveaxis(picture.astype(float), -1, 0)
    plain = np.stack(
        [
            y + 1.402 * (cr - 128),
            y - 0.34414 * (cb - 128) - 0.71414 * (cr - 128),
            y + 1.772 * (cb - 128),
        ],
        -1,
    )
    assert np.abs(rgb - plain.clip(0, 255)).max() <= 0.5 + 1e-4


def changed(data, at, value):
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    "odd",
    [
        lambda data: b"",
        lambda data: data[:50],
        lambda data: data[: len(data) // 2],
        lambda data: b"\0" * len(data),
        lambda data: changed(data, 8, (97).to_bytes(4, "big")),  # wider
        lambda data: changed(data, 16, (1).to_bytes(4, "big")),  # not from the corner
        lambda data: changed(data, 24, (1).to_bytes(4, "big")),  # in many parts
        lambda data: changed(data, 40, (4).to_bytes(2, "big")),  # four components
        lambda data: changed(data, 42, b"\x0b"),  # twelve bits
        lambda data: changed(data, 46, b"\x02"),  # colours at half the width
    ],
)
def test_an_odd_code_stream_is_not_taken(stream, odd):
    assert jpeg2000(odd(stream), SIZE, is_rgb=True) is None


def test_another_size_is_not_taken(stream):
    assert jpeg2000(stream, (64, 96), is_rgb=True) is None
