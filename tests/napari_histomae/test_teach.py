"""The Teach dock: its buttons are pressed and its layers are looked at."""

import numpy as np
import pytest
import shapely
import torch
from PIL import Image
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog, QFileDialog, QInputDialog, QPushButton

from histomae.data.classes import BRACS_7
from histomae.exchange.qupath import read_annotations, write_annotations
from histomae.models.checkpoint import (
    CheckpointHeader,
    checkpoint_tensors,
    save_checkpoint,
)
from histomae.models.mae import DecoderSpec, MaskedAutoencoder
from histomae.models.probe import Probe
from histomae.models.vit import EncoderSpec
from histomae.slides.annotations import Annotation
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide
from napari_histomae import _layers
from napari_histomae._jobs import running_jobs
from napari_histomae._teaching import EmbeddingCache
from napari_histomae._widgets.teach import TeachDock

TILE_PX, MPP = 32, 1.0


@pytest.fixture(scope="module")
def make_model(tmp_path_factory):
    """Return a function that writes an untrained model of a tiny size."""

    def make(*, mpp=MPP, seed=0, name="ellipse_2026-11-20"):
        encoder = EncoderSpec(
            tile_px=TILE_PX, patch_size=8, embed_dim=24, depth=1, num_heads=3
        )
        model = MaskedAutoencoder(
            encoder,
            decoder_dim=16,
            decoder_depth=1,
            decoder_heads=2,
            generator=torch.Generator().manual_seed(seed),
        )
        header = CheckpointHeader(
            architecture="vit_test_patch8_32",
            encoder=encoder,
            decoder=DecoderSpec(dim=16, depth=1, heads=2),
            method="mae",
            mask_ratio=0.75,
            norm_pix=True,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            tile_px=TILE_PX,
            mpp=mpp,
            mpp_given=False,
            step=760,
            config_hash="0123abcd",
        )
        folder = tmp_path_factory.mktemp("runs") / name / "checkpoints"
        folder.mkdir(parents=True)
        save_checkpoint(folder / "last.safetensors", header, checkpoint_tensors(model))
        return folder / "last.safetensors"

    return make


@pytest.fixture(scope="module")
def model_path(make_model):
    return make_model()


class Hand:
    """A person at the dock."""

    def __init__(self, viewer, qtbot):
        self.viewer, self.qtbot = viewer, qtbot
        self.dock = TeachDock(viewer)
        viewer.window.add_dock_widget(self.dock, name="Teach")
        self.session = self.dock._session

    def open(self, path):
        slide = Slide.open(path)
        _layers.open_slide(self.viewer, slide)
        self.dock.book.sync()
        return slide

    def use(self, model_path):
        self.session.use_model(model_path)
        self.wait(lambda: self.dock.model.header is not None)

    def wait(self, what):
        self.qtbot.waitUntil(what)

    def press(self, button):
        """Press a button and wait for what it starts."""
        assert button.isEnabled(), button.toolTip()
        button.click()
        self.wait(lambda: not self.dock.running)

    def draw(self, slide, regions):
        here = self.dock.book.of(slide)
        here.add([Annotation(shapely.box(*box), name) for name, box in regions])
        self.dock.book._commit("drawing")
        self.wait(lambda: not self.dock._recount.isActive())

    def table(self):
        """The rows of the table: class, regions, tiles."""
        table = self.dock.regions.table
        return [
            tuple(table.item(row, column).text() for column in (2, 3, 4))
            for row in range(table.rowCount())
        ]

    def point_at(self, slide, xy_l0):
        self.viewer.cursor.position = tuple(_layers.world_from_l0(slide, xy_l0))

    def key(self, key):
        handler = self.viewer.window._qt_viewer._key_map_handler
        return handler.press_key(key)


@pytest.fixture
def hand(viewer, qtbot):
    made = Hand(viewer, qtbot)
    yield made
    made.dock.shut()


@pytest.fixture
def choose(monkeypatch):
    """Return a function that says which file the next dialogs are answered with."""

    def answer(path):
        for dialog in ("getOpenFileName", "getSaveFileName"):
            monkeypatch.setattr(QFileDialog, dialog, lambda *_, **__: (str(path), ""))

    return answer


#: Regions made of whole tiles, which are 80 x 64 pixels of level 0.
REGIONS = [
    ("Tissue", (640, 512, 960, 768)),
    ("Tissue", (1040, 448, 1360, 704)),
    ("Glass", (0, 0, 320, 128)),
    ("Glass", (1440, 1216, 1760, 1344)),
]


@pytest.fixture
def taught(hand, slide_path, model_path):
    """A hand that has opened a slide, chosen a model and drawn regions."""
    slide = hand.open(slide_path)
    hand.use(model_path)
    hand.draw(slide, REGIONS)
    hand.slide = slide
    return hand


def test_an_empty_dock_says_the_first_step(hand, slide_path, bare_path, model_path):
    dock = hand.dock
    assert dock.first_step.button.text() == "Open the sample slide"
    for button in (dock.regions.draw, dock.train, dock.regions.load, dock.regions.save):
        assert not button.isEnabled()
        assert button.toolTip() == "Open a slide first."
    assert dock.summary.text() == "Open a slide first."
    assert "Train first" in dock.why.text()
    assert dock.regions.undo.toolTip() == "There is nothing to undo."

    bare = hand.open(bare_path)
    assert "no pixel size" in dock.first_step.label.text()
    hand.session.settle_mpp(bare, 0.5)
    hand.viewer.layers.clear()

    slide = hand.open(slide_path)
    assert dock.first_step.button.text() == "Choose a model…"
    assert dock.summary.text() == "Choose a model first."
    hand.use(model_path)
    assert dock.model.currentText() == "ellipse_2026-11-20 · step 760"
    assert dock.first_step.button.text() == "Draw a region"
    assert dock.summary.text() == "Draw a region of each class first."
    dock.first_step.button.click()
    layer = dock.book.of(slide).layer
    assert hand.viewer.layers.selection.active is layer
    assert layer.mode == "add_polygon_lasso"
    assert list(layer.feature_defaults["class"]) == ["Invasive"]
    assert "go around a region of Invasive" in dock.regions.hint.text()
    hand.draw(slide, [("Stroma", (700, 500, 860, 630))])
    assert dock.first_step.isHidden()
    assert dock.summary.text() == "Only Stroma is drawn. Draw a second class."
    dock.regions.draw.click()
    assert layer.mode == "pan_zoom"


def test_from_regions_to_a_map_and_back(taught, tmp_path, choose):
    hand, dock, slide = taught, taught.dock, taught.slide
    assert hand.table() == [
        ("Invasive", "0", "0"),
        ("Stroma", "0", "0"),
        ("Fat", "0", "0"),
        ("Tissue", "2", "32"),
        ("Glass", "2", "16"),
    ]
    assert dock.summary.text() == "48 tiles on 1 slide"
    assert not dock.show_map.isEnabled()

    hand.press(dock.train)
    assert dock.state.kind == "done", dock.state.text
    assert dock.state.text.startswith("Trained on 48 tiles in ")
    assert dock.score.text() == (
        "Balanced accuracy 1.00 (1.00–1.00), grouped by region, 2 folds."
    )
    assert "other patients" in dock.caveat.text()
    assert dock.plot.cells == ["32", "0", "0", "16"]
    probe = hand.session.probe
    assert probe.class_names == ("Tissue", "Glass")
    assert probe.scores["regions"] == {"Tissue": 2, "Glass": 2}

    hand.press(dock.show_map)
    layer = hand.viewer.layers["ellipse · classes"]
    grid = TileGrid.over(slide, TileSpec(TILE_PX, MPP))
    assert layer.data.shape == grid.shape
    assert layer.data[grid.cell_at((905, 685))] == 1 + probe.class_names.index("Tissue")
    assert layer.data[grid.cell_at((30, 30))] == 0  # no tissue, no prediction
    assert np.allclose(layer.scale, np.array(grid.tile_size_l0)[::-1] * (0.5, 0.4))
    assert hand.viewer.layers[-1].name == "ellipse · regions"
    assert "Tissue" in dock.state.text
    assert "mm²" in dock.state.text

    # A class has one colour everywhere.
    dock.book.recolour_class("Tissue", (10, 20, 30))
    assert hand.session.probe.class_colors[0] == (10, 20, 30)
    assert np.allclose(layer.colormap.map(np.array([1]))[0, :3] * 255, (10, 20, 30))

    # Saved, and loaded by somebody else.
    path = tmp_path / "mine"
    choose(path)
    dock.save_classifier.click()
    assert dock.state.text == "The classifier is saved as mine.safetensors."
    saved = path.with_suffix(".safetensors")
    assert Probe.load(saved).probe_id == probe.probe_id
    hand.session.use_probe(None)
    assert dock.score.isHidden()
    choose(saved)
    hand.press(dock.load_classifier)
    assert "Tissue, Glass" in dock.state.text
    assert dock.score.text().startswith("mine.safetensors: Balanced accuracy 1.00")
    assert hand.session.probe_path == saved


def test_only_new_tiles_are_embedded_when_it_is_taught_again(taught):
    hand, dock = taught, taught.dock
    cache = EmbeddingCache.of(hand.session)
    hand.press(dock.train)
    assert cache.embedded == 48
    hand.draw(taught.slide, [("Tissue", (640, 832, 960, 1024))])
    assert dock.summary.text() == "60 tiles on 1 slide, changed since"
    hand.press(dock.train)
    assert cache.embedded == 60
    assert hand.session.probe.scores["tiles"] == {"Tissue": 44, "Glass": 16}
    assert dock.summary.text() == "60 tiles on 1 slide"
    hand.press(dock.show_map)
    after_map = cache.embedded
    hand.press(dock.show_map)
    assert cache.embedded == after_map


def test_a_class_with_one_region_is_not_scored_and_it_is_said(taught):
    hand, dock = taught, taught.dock
    hand.draw(taught.slide, [("Fat", (880, 256, 1040, 384))])
    assert "1 region only: Fat" in dock.summary.text()
    hand.press(dock.train)
    assert "Fat cannot be scored: one region only. Draw a second." in dock.score.text()
    assert hand.session.probe.class_names == ("Fat", "Tissue", "Glass")


def test_regions_of_every_open_slide_are_learned_from(
    hand, slide_path, model_path, write_slide, tissue_like, tmp_path
):
    first = hand.open(slide_path)
    other = write_slide(
        tmp_path / "other.tiff", tissue_like(900, 700, seed=1), mpp_x=0.5, mpp_y=0.25
    )
    second = hand.open(other)
    hand.use(model_path)
    hand.draw(first, REGIONS[:1])
    hand.draw(second, [("Glass", (0, 0, 192, 384))])
    assert hand.dock.summary.text().startswith("25 tiles on 2 slides")
    hand.press(hand.dock.train)
    assert hand.session.probe.scores["tiles"] == {"Tissue": 16, "Glass": 9}
    assert "Not scored" in hand.dock.score.text()


def test_a_slide_that_the_model_cannot_read_is_named(
    hand, slide_path, make_model, write_slide, tissue_like, tmp_path
):
    coarse = write_slide(
        tmp_path / "coarse.tiff", tissue_like(600, 500), mpp_x=2.0, mpp_y=2.0
    )
    hand.open(slide_path)
    slide = hand.open(coarse)
    hand.use(make_model())
    hand.draw(slide, [("Fat", (100, 100, 300, 300))])
    assert "coarse.tiff has 2 µm per pixel" in hand.dock.summary.text()
    assert not hand.dock.train.isEnabled()


def test_errors_are_sentences_and_the_dock_goes_on(taught, make_model, tmp_path):
    hand, dock = taught, taught.dock
    hand.press(dock.train)
    hand.use(make_model(seed=1, name="another"))
    hand.press(dock.show_map)
    assert dock.state.kind == "failed"
    assert "was trained on the model" in dock.state.text
    assert dock.show_map.isEnabled()

    wrong = tmp_path / "notes.safetensors"
    wrong.write_text("these are notes")
    dock.load_classifier_from(wrong)
    hand.wait(lambda: not dock.running)
    assert dock.state.kind == "failed"
    assert "notes.safetensors" in dock.state.text
    dock.load_regions_from(wrong)
    assert dock.state.kind == "failed"
    hand.session.use_model(wrong)
    hand.wait(lambda: hand.session.model_path is None)
    assert "notes.safetensors" in dock.state.text
    assert dock.summary.text() == "Choose a model first."

    hand.session.use_model(tmp_path / "gone.safetensors")
    hand.wait(lambda: hand.session.model_path is None)
    assert "gone.safetensors" in dock.state.text
    dock.save_classifier_to(tmp_path / "no" / "such" / "folder" / "x.safetensors")
    assert dock.state.text


def test_training_can_be_cancelled(taught, monkeypatch):
    hand, dock = taught, taught.dock

    def forever(*args, **kwargs):
        import time

        from histomae.events import Progress

        done = 0
        while True:
            done += 1
            time.sleep(0.01)
            yield Progress("embedding tiles", done, 10_000, 31.0, 240.0)

    monkeypatch.setattr("histomae.infer.embed.embed_tiles", forever)
    dock.train.click()
    hand.wait(lambda: dock.state.text.startswith("Embedding tiles"))
    assert " % · 31/s · about 4 min left" in dock.state.text
    assert dock.train.text() == "Cancel"
    assert dock.show_map.toolTip() == "Wait until it is done, or press Cancel."
    dock.train.click()
    hand.wait(lambda: not dock.running)
    assert dock.state.text == "Stopped; nothing was changed."
    assert dock.train.text() == "Train"
    assert hand.session.probe is None
    assert running_jobs(dock) == []


def test_keys_label_the_tile_under_the_mouse(hand, slide_path, model_path):
    slide = hand.open(slide_path)
    hand.use(model_path)
    book = hand.dock.book
    hand.point_at(slide, (725.0, 515.0))
    hand.viewer.layers.selection.active = hand.session.layer_of(slide)
    assert hand.key("2")
    (tile,) = book.of(slide).annotations
    grid = TileGrid.over(slide, TileSpec(TILE_PX, MPP))
    box = grid.box_l0(*grid.cell_at((725.0, 515.0)))
    assert tile.class_name == "Stroma"
    assert tile.roi.bounds == pytest.approx(box, abs=0.01)
    hand.wait(lambda: hand.table()[1] == ("Stroma", "1", "1"))
    # On the regions' own layer, 3 would delete what is selected.
    hand.viewer.layers.selection.active = book.of(slide).layer
    hand.key("3")
    assert [x.class_name for x in book.of(slide).annotations] == ["Fat"]
    hand.key("3")
    assert book.of(slide).annotations == []
    hand.key("Control-Z")
    assert [x.class_name for x in book.of(slide).annotations] == ["Fat"]
    hand.key("9")  # there is no ninth class
    hand.point_at(slide, (-4000, 0))
    hand.key("1")
    assert "no tile under the mouse" in hand.dock.state.text
    assert len(book.of(slide).annotations) == 1


def test_picked_regions_are_relabelled_and_deleted(taught):
    hand, dock = taught, taught.dock
    here = dock.book.of(taught.slide)
    dock.regions.select.click()
    assert here.layer.mode == "select"
    here.layer.selected_data = {0, 1}
    assert dock.regions.hint.text() == "2 regions picked"
    dock.regions.table.pick("Fat")
    assert dock.regions.relabel.text() == "Make Fat"
    dock.regions.relabel.click()
    assert dock.book.regions_per_class() == {"Fat": 2, "Glass": 2}
    assert here.selected == [0, 1]
    hand.key("2")
    assert dock.book.regions_per_class() == {"Stroma": 2, "Glass": 2}
    dock.regions.delete.click()
    assert dock.book.regions_per_class() == {"Glass": 2}
    for _ in range(3):
        dock.regions.undo.click()
    assert dock.book.regions_per_class() == {"Tissue": 2, "Glass": 2}
    assert dock.state.text == "Undone: relabelling."


def test_classes_are_edited_in_the_table(hand, slide_path, monkeypatch):
    slide = hand.open(slide_path)
    dock = hand.dock
    hand.draw(slide, [("Invasive", (700, 500, 860, 630))])
    dock.regions.table.item(0, 2).setText("IDC")
    assert dock.book.of(slide).annotations[0].class_name == "IDC"
    dock.regions.table.item(1, 2).setText("IDC")
    assert dock.regions.table.item(1, 2).text() == "Stroma"
    assert "Stroma keeps its name" in dock.state.text
    monkeypatch.setattr(QColorDialog, "getColor", lambda *_, **__: QColor(5, 6, 7))
    dock.regions.table.cellClicked.emit(0, 0)
    assert dock.book.of(slide).annotations[0].color == (5, 6, 7)
    dock.regions.add_class.click()
    assert dock.regions.class_name == "Class 4"
    dock.regions.remove_class.click()
    assert [row[0] for row in hand.table()] == ["IDC", "Stroma", "Fat"]
    dock.regions.table.pick("IDC")
    dock.regions.remove_class.click()
    assert "stay without a class" in dock.state.text
    assert dock.book.of(slide).annotations[0].class_name == ""
    dock.regions.undo.click()
    assert dock.book.of(slide).annotations[0].class_name == "IDC"
    dock.regions.preset.setCurrentText("BRACS-7")
    dock.regions.preset.activated.emit(1)
    assert [row[0] for row in hand.table()][:3] == ["N", "PB", "UDH"]
    assert (
        dock.regions.preset.currentText() == "Own classes"
    )  # IDC is in use, and stays


def test_regions_come_from_a_file_and_go_to_one(hand, slide_path, tmp_path, choose):
    slide = hand.open(slide_path)
    path = tmp_path / "drawn.geojson"
    drawn = [
        Annotation(shapely.box(*box), name, (1, 2, 3)) for name, box in REGIONS[:3]
    ]
    write_annotations(path, drawn)
    choose(path)
    hand.dock.regions.load.click()
    assert hand.dock.state.text == "3 regions loaded from drawn.geojson."
    assert hand.dock.book.regions_per_class() == {"Tissue": 2, "Glass": 1}
    out = tmp_path / "out.geojson"
    choose(out)
    hand.dock.regions.save.click()
    assert [x.id for x in read_annotations(out)] == [x.id for x in drawn]
    assert hand.dock.book.of(slide).layer is not None


def test_a_dock_that_is_taken_away_saves_and_lets_go(taught):
    hand, dock = taught, taught.dock
    path = dock.book.of(taught.slide).path
    layer = dock.book.of(taught.slide).layer
    assert "1" in {str(key) for key in hand.viewer.keymap}
    hand.viewer.window.remove_dock_widget(dock)
    assert dock.book.is_closed
    assert len(read_annotations(path)) == 4
    assert "1" not in {str(key) for key in hand.viewer.keymap}
    assert not layer.keymap
    assert layer in hand.viewer.layers
    layer.remove([0])
    hand.viewer.layers.clear()
    assert len(read_annotations(path)) == 4
    # Opened again it takes over where it was.
    assert running_jobs(dock) == []


def test_nothing_is_cut_off_in_a_small_window(
    make_napari_viewer, qtbot, slide_path, model_path
):
    viewer = make_napari_viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    hand = Hand(viewer, qtbot)
    hand.slide = hand.open(slide_path)
    hand.dock.book.use_preset("BRACS-7")
    hand.use(model_path)
    tiles = [
        (name, (x, y, x + 80, y + 64))
        for x, name in zip(range(480, 1040, 80), BRACS_7.names, strict=True)
        for y in (512, 640)
    ]
    hand.draw(hand.slide, tiles)
    hand.press(hand.dock.train)
    assert len(hand.dock.plot.cells) == 49
    dock = hand.dock
    for theme in ("dark", "light"):
        viewer.theme = theme
        qtbot.wait(50)
        assert dock.height() >= dock.minimumSizeHint().height()
        assert dock.minimumSizeHint().width() <= 380
        assert viewer.window._qt_window.height() <= 800
        for button in dock.findChildren(QPushButton):
            if button.isVisible():
                assert button.width() >= button.sizeHint().width(), button.text()
        assert dock.regions.table.verticalScrollBar().maximum() == 0
    dock.shut()


class TestLabelledImages:
    @pytest.fixture
    def images(self, tmp_path):
        """Two classes of three pictures each, 130 x 70 px, told apart by colour."""
        rng = np.random.default_rng(0)
        for name, color in (("Pale", (220, 180, 200)), ("Dark", (90, 50, 130))):
            for number in range(3):
                noise = rng.integers(-9, 10, (70, 130, 3))
                path = tmp_path / "images" / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((noise + color).astype(np.uint8)).save(path)
        return tmp_path / "images"

    @pytest.fixture
    def answers(self, monkeypatch):
        """Answer the dialogs: a folder, and 1 µm per pixel; note what was asked."""
        asked = []

        def answer(folder, *, agreed=True):
            def say(*arguments):
                asked.append(arguments[2])
                return 1.0, agreed

            monkeypatch.setattr(QInputDialog, "getDouble", say)
            monkeypatch.setattr(
                QFileDialog, "getExistingDirectory", lambda *_: str(folder)
            )
            return asked

        return answer

    def choose_folder(self, hand):
        folder, _ = hand.dock.images.menu().actions()
        folder.trigger()
        hand.wait(lambda: not hand.dock.running)

    def test_they_teach_a_classifier(self, hand, model_path, images, answers):
        assert not hand.dock.images.isEnabled()
        assert "Choose a model" in hand.dock.images.toolTip()
        hand.use(model_path)
        asked = answers(images)
        assert hand.dock.images.isEnabled()
        self.choose_folder(hand)
        probe = hand.session.probe
        assert asked == ["µm per pixel of the images:"]
        assert probe.class_names == ("Dark", "Pale")
        assert probe.scores["tiles"] == {"Dark": 24, "Pale": 24}
        assert "Pictures of one patient" in hand.dock.caveat.text()
        assert "names no patients" in hand.dock.state.text

    def test_who_does_not_answer_changes_nothing(
        self, hand, model_path, images, answers
    ):
        hand.use(model_path)
        answers(images, agreed=False)
        self.choose_folder(hand)
        assert hand.session.probe is None

    def test_a_folder_of_none_says_so(self, hand, model_path, tmp_path, answers):
        hand.use(model_path)
        answers(tmp_path)
        self.choose_folder(hand)
        assert "no data set that is known" in hand.dock.state.text
        assert hand.session.probe is None
