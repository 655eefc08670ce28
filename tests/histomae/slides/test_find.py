"""Which files are slides: by name, or because OpenSlide says so."""

import pytest
from PIL import Image

from histomae.errors import SlideError
from histomae.slides.find import find_slides, is_slide


def test_find_slides_in_files_and_folders(make_slide, tmp_path):
    folder = tmp_path / "cohort" / "inner"
    folder.mkdir(parents=True)
    first = make_slide(path=folder.parent / "b.tiff", factors=(1,))
    second = make_slide(path=folder / "a.tif", factors=(1,))
    Image.new("RGB", (30, 30)).save(folder / "picture.tif")
    (folder / "notes.txt").write_text("none")
    claimed = folder / "c.svs"
    claimed.write_text("claimed by its name")
    assert find_slides([tmp_path / "cohort"]) == [first, second, claimed]
    round_about = folder / ".." / "b.tiff"
    assert find_slides([first, tmp_path / "cohort", str(first), round_about]) == [
        first,
        second,
        claimed,
    ]


def test_find_slides_says_what_is_missing(tmp_path):
    with pytest.raises(SlideError, match=r"nowhere\.svs does not exist\. Check"):
        find_slides([tmp_path / "nowhere.svs"])
    with pytest.raises(SlideError, match=r"holds no slide\. Choose"):
        find_slides([tmp_path])


def test_is_slide_never_raises(make_slide, tmp_path):
    assert is_slide(make_slide(factors=(1,)))
    assert is_slide("anything.SVS")
    picture = tmp_path / "picture.tif"
    Image.new("RGB", (30, 30)).save(picture)
    (tmp_path / "empty.tiff").touch()
    (tmp_path / "folder.dcm").mkdir()
    for name in ("picture.tif", "empty.tiff", "absent.tif", "folder.dcm", "a.png"):
        assert not is_slide(tmp_path / name)
