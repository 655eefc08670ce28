"""Pictures that are files: read as RGB, squared, and damaged ones are named."""

import numpy as np
import pytest
from PIL import Image

from histomae.data.pictures import middle_square, read_picture, readable
from histomae.errors import DataSetError
from histomae.events import Note, result_of


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
    work, notes = readable(pictures, skip_unreadable=True), []
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            good = stop.value
            break
        if isinstance(event, Note):
            notes.append(event.text)
    assert {path.name for path in good} == {"a.png", "b.png"}
    (note,) = notes
    assert note.startswith("2 of 4 pictures cannot be read and are left out: cut.png")
    assert "text.png" in note


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataSetError, match=r"gone\.png cannot be read"):
        read_picture(tmp_path / "gone.png")
