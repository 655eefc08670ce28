"""The directories of a TIFF, and what a few bytes may claim."""

import struct
import tracemalloc

import numpy as np
import pytest
import tifffile

from histomae.errors import SlideError
from histomae.slides import tiff
from histomae.slides.tiff import tiled_directories


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_as_tifffile_reads_them(tmp_path, stained, bigtiff, byteorder):
    path = tmp_path / "a.tiff"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        for index, size in enumerate(((700, 460), (350, 230), (80, 60))):
            writer.write(
                stained(*size),
                tile=(96, 128) if index < 2 else None,
                compression="jpeg" if index == 0 else "deflate",
                metadata=None,
            )
    found = tiled_directories(path)
    with tifffile.TiffFile(path) as plain:
        pages = [page for page in plain.pages if page.is_tiled]
        assert len(found) == len(pages) == 2
        for directory, page in zip(found, pages, strict=True):
            assert directory.size == (page.imagewidth, page.imagelength)
            assert directory.tile_px == (128, 96)
            assert directory.compression == page.compression
            assert directory.photometric == page.photometric
            assert directory.offsets.tolist() == list(page.dataoffsets)
            assert directory.counts.tolist() == list(page.databytecounts)
            assert directory.jpeg_tables == (page.jpegtables or b"")
            assert directory.is_plain
    assert [each.tiles for each in found] == [(6, 5), (3, 3)]


@pytest.mark.parametrize(
    "odd",
    [
        {"data": np.zeros((300, 300), np.uint8)},
        {"data": np.zeros((300, 300, 4), np.uint8), "extrasamples": ["unspecified"]},
        {"data": np.zeros((300, 300, 3), np.uint16)},
        {"data": np.zeros((300, 300, 3), np.int8)},
        {"data": np.zeros((3, 300, 300), np.uint8), "planarconfig": "separate"},
        {"data": np.zeros((4, 300, 300, 3), np.uint8), "volumetric": True},
    ],
    ids=["grey", "four samples", "16 bits", "signed", "planes", "volume"],
)
def test_odd_pictures_are_not_plain(tmp_path, odd):
    options = dict(odd)
    data = options.pop("data")
    tile = (16, 128, 128) if options.get("volumetric") else (128, 128)
    rgb = "minisblack" if data.ndim == 2 else "rgb"
    tifffile.imwrite(
        tmp_path / "a.tiff",
        data,
        tile=tile,
        photometric=rgb,
        metadata=None,
        **options,
    )
    (directory,) = tiled_directories(tmp_path / "a.tiff")
    assert not directory.is_plain


def classic(*directories, following=None):
    """Make a classic TIFF of directories: each a list of (tag, type, count, value)."""
    content = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for number, entries in enumerate(directories):
        end = len(content) + 2 + 12 * len(entries) + 4
        last = number + 1 == len(directories)
        content += struct.pack("<H", len(entries))
        for entry in entries:
            content += struct.pack("<HHII", *entry)
        content += struct.pack("<I", (following or 0) if last else end)
    return bytes(content)


TILED = [
    (256, 4, 1, 100),
    (257, 4, 1, 100),
    (258, 3, 1, 8),
    (259, 3, 1, 7),
    (262, 3, 1, 6),
    (277, 3, 1, 3),
    (322, 4, 1, 128),
    (323, 4, 1, 128),
    (324, 4, 1, 8),
    (325, 4, 1, 8),
]


def but(*changed):
    """Return the entries of a plain picture, some of them others."""
    tags = {entry[0] for entry in changed}
    return [entry for entry in TILED if entry[0] not in tags] + list(changed)


def read(tmp_path, content):
    path = tmp_path / "claims.tif"
    path.write_bytes(content)
    return tiled_directories(path)


def test_a_plain_picture(tmp_path):
    (directory,) = read(tmp_path, classic(TILED))
    assert directory.is_plain
    assert directory.size == (100, 100)


@pytest.mark.parametrize(
    "entries",
    [
        but((322, 4, 1, 64)),  # four tiles and one place
        but((324, 4, 2, 8)),
        but((325, 5, 1, 8)),  # a fraction
        but((325, 4, 1 << 30, 8)),  # more numbers than the file has
        but((266, 3, 1, 2)),  # bits the other way
        but((277, 3, 1, 4)),
        but((258, 3, 1, 16)),
        but((32997, 4, 1, 5)),
        [*TILED, (325, 4, 1, 8)],  # twice
        [*TILED, (277, 3, 1, 3)],
    ],
)
def test_what_is_not_as_it_should_be_is_not_plain(tmp_path, entries):
    (directory,) = read(tmp_path, classic(entries))
    assert not directory.is_plain


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"II",
        b"II*\0",
        b"MM\0*\0\0\0\x08",
        b"II*\0\xff\xff\xff\x7f",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"II+\0\x07\0\0\0" + bytes(8),
        b"\x89PNG\r\n\x1a\n" + bytes(90),
        classic(TILED)[:60],
        classic([(256, 4, 1, 100)] * 1001),
        classic(but((256, 4, 1, 0))),
    ],
)
def test_what_is_no_tiled_tiff_has_none(tmp_path, content):
    assert read(tmp_path, content) == ()


@pytest.mark.parametrize(
    "tile",
    [
        but((322, 4, 1, 0)),
        but((323, 3, 1, 1 << 16)),  # as 16 bits it is none
        but((322, 1, 1, 256)),  # as a byte it is none
        but((322, 4, 0, 128)),
        [*TILED, (323, 4, 1, 128)],
        [entry for entry in TILED if entry[0] != 323],
    ],
)
def test_tiles_without_a_size_are_refused(tmp_path, tile):
    # OpenSlide would divide by it, and take the process along.
    with pytest.raises(SlideError, match="claims tiles of no size"):
        read(tmp_path, classic(tile))


def test_an_aperio_slide_whose_coarse_level_has_more_tiles_is_refused(tmp_path):
    # OpenSlide would divide by the rounded quotient, and take the process along.
    text = (270, 2, 7, 8)
    fine, coarse = (
        [entry for entry in but((322, 4, 1, tile), (323, 4, 1, tile)) if entry[0] < 324]
        for tile in (128, 25)
    )
    content = bytearray(classic([text, *fine], coarse))
    content[8:8] = b"Aperio \0"
    content[4:8] = struct.pack("<I", 16)
    following = struct.unpack_from("<I", content, 16 + 2 + 12 * (len(fine) + 1))[0]
    struct.pack_into("<I", content, 16 + 2 + 12 * (len(fine) + 1), following + 8)
    with pytest.raises(SlideError, match="coarse levels of more tiles than fine"):
        read(tmp_path, bytes(content))
    content[8:14] = b"Anyone"
    assert len(read(tmp_path, bytes(content))) == 2


def test_a_chain_that_bites_its_tail(tmp_path):
    assert len(read(tmp_path, classic(TILED, TILED, following=8))) == 2


@pytest.mark.parametrize(
    ("content", "claim"),
    [
        (classic(*[[(256, 4, 1, 1)]] * 100_000), "more than 1000 pictures"),
        (classic([(270, 2, 0x7FFFFFFF, 8)]), "a text of 2147 MB"),
        (classic([(347, 7, 0x7FFFFFFF, 8)]), "a text of 2147 MB"),
    ],
    ids=["pictures", "description", "tables"],
)
def test_absurd_claims_are_refused_before_memory_is_taken(tmp_path, content, claim):
    path = tmp_path / "bomb.svs"
    path.write_bytes(content)

    tracemalloc.start()
    with pytest.raises(SlideError, match=rf"bomb\.svs claims {claim}.*copy it"):
        tiled_directories(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.tiff"
    path.write_bytes(classic(TILED))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(SlideError, match=r"a\.tiff cannot be read \(Permission denied"):
        tiled_directories(path)


def test_limits_are_far_above_real_slides():
    # Two million pixels on a side in tiles of 1024; a scanner's ten pictures.
    assert tiff.MOST_TILES > (2_000_000 / 1024) ** 2
    assert tiff.MOST_DIRECTORIES >= 100
