"""Pictures that are files: read as RGB, squared, and damaged ones are named."""

import numpy as np
import pytest
from PIL import Image

from histomae.data.pictures import (
    find_pictures,
    middle_square,
    read_picture,
    readable,
    scan_sector,
    tiles_of,
    whole_square,
)
from histomae.errors import DataSetError
from histomae.events import Note, result_of
from tests.listening import events_of


@pytest.fixture
def pictures(tmp_path):
    """Four files: two good ones, a cut one, and a text."""
    random = np.random.default_rng(0)
    for name in ("a", "b", "cut"):
        pixels = random.integers(0, 256, (46, 70, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(cut.read_bytes()[:3000])
    (tmp_path / "text.png").write_text("no picture")
    return sorted(tmp_path.glob("*.png"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_every_kind_of_picture_is_read_as_rgb(tmp_path, mode):
    grey = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    grey.convert(mode).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert found.shape == (6, 10, 3)
    np.testing.assert_array_equal(found[..., 1], np.arange(60).reshape(6, 10))


def test_the_middle_keeps_its_shape():
    picture = np.zeros((46, 70, 3), np.uint8)
    picture[:, 12:58] = 200  # the middle square
    picture[:, :12] = picture[:, 58:] = 255
    small = middle_square(picture, 23)
    assert small.shape == (23, 23, 3)
    assert (small == 200).all()


def test_what_cannot_be_read_is_refused_by_name(pictures):
    with pytest.raises(DataSetError, match=r"2 of 4 .* skip_unreadable\. cut\.png"):
        result_of(readable(pictures, skip_unreadable=False))


def test_or_left_out_by_choice_and_told(pictures):
    events, good = events_of(readable(pictures, skip_unreadable=True))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert {path.name for path in good} == {"a.png", "b.png"}
    (note,) = notes
    assert note.startswith("2 of 4 pictures cannot be read and are left out: cut.png")
    assert "text.png" in note


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataSetError, match=r"gone\.png cannot be read"):
        read_picture(tmp_path / "gone.png")


def test_pictures_are_found_below_folders_and_masks_are_not(tmp_path):
    for name in ("b/x.JPG", "a.png", "a_mask.png", "a_mask_1.png", "t.txt", "m.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_pictures([tmp_path, tmp_path / "a.png"])
    assert [path.name for path in found] == ["a.png", "x.JPG", "m.bmp"]
    with pytest.raises(DataSetError, match="does not exist"):
        find_pictures([tmp_path / "nowhere"])


def test_margins_and_texts_beside_a_scan_go():
    picture = np.zeros((120, 200, 3), np.uint8)
    grain = np.random.default_rng(0).integers(30, 200, (80, 120, 1), np.uint8)
    picture[20:100, 50:170] = grain * [1, 1, 0.5]
    picture[5:12, 5:60:4] = 255  # thin strokes of a text
    picture[30:90, 180:182] = 255  # a scale
    found = scan_sector(picture)
    assert found.shape == (80, 120, 3)
    assert (found[..., 0] == found[..., 2]).all()  # grey
    black = np.zeros((10, 12, 3), np.uint8)
    assert scan_sector(black).shape == (10, 12, 3)


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (1, 300), (64, 64)])
def test_the_whole_picture_keeps_its_shape(shape):
    tile = whole_square(np.full((*shape, 3), 200, np.uint8), 64)
    assert tile.shape == (64, 64, 3)
    high, wide = (np.flatnonzero(tile.max((2, axis)) > 100) for axis in (1, 0))
    factor = 64 / max(shape)
    for found, side in ((high, shape[0]), (wide, shape[1])):
        assert len(found) == max(1, round(side * factor))
        assert abs((found[0] + found[-1]) / 2 - 31.5) <= 0.5


class TestTiles:
    @pytest.fixture
    def places(self, position_picture):
        """Red is x, green is y."""
        return position_picture(250, 130)

    def test_they_lie_edge_to_edge_in_the_middle(self, places):
        tiles = tiles_of(places, 60, 1.0)
        assert tiles.shape == (8, 60, 60, 3)
        # 250 = 5 + 4 x 60 + 5, 130 = 5 + 2 x 60 + 5.
        for number, tile in enumerate(tiles):
            row, col = divmod(number, 4)
            y, x = 5 + row * 60, 5 + col * 60
            np.testing.assert_array_equal(tile, places[y : y + 60, x : x + 60])

    def test_they_are_resampled(self, places):
        tiles = tiles_of(places, 60, 2.0)
        assert tiles.shape == (2, 60, 60, 3)
        # A pixel is the middle of two, from the picture's sixth.
        red = 5.5 + 2 * np.arange(120)
        np.testing.assert_allclose(np.hstack(tiles)[30, 3:-3, 0], red[3:-3], atol=1)

    def test_a_picture_as_large_as_a_tile_is_one(self, places):
        square = places[:130, :130]
        np.testing.assert_array_equal(tiles_of(square, 130, 1.0)[0], square)
        assert len(tiles_of(square[1:], 130, 1.0)) == 0
        assert len(tiles_of(np.zeros((256, 256, 3), np.uint8), 224, 256 / 224)) == 1
