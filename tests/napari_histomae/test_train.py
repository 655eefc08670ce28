"""The Train dock, used as a person does, with a trainer that only pretends."""

import json
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from qtpy.QtCore import QMimeData, QUrl
from qtpy.QtWidgets import QFileDialog, QMessageBox

from histomae.config import METHODS, load_recipe, recipe_names
from histomae.events import Finished, HeldOut, Preview, Saved, Started, Step
from histomae.files import runs_folder
from histomae.learn import supervise
from histomae.learn.runs import Owner, RunFolder
from napari_histomae._session import Session
from napari_histomae._widgets import train
from napari_histomae._widgets.train import TrainDock

#: Steps enough for whoever is going to stop it: how long that takes is not told.
ENDLESS = 10**6
#: A process that does what a trainer does, without training. Its steps take 20 ms.
PRETENDER = """
import sys, time
from pathlib import Path
from histomae.events import *
from histomae.learn.runs import RunFolder

run, steps = RunFolder(sys.argv[1]), int(sys.argv[2])
if run.config().epochs == 13:
    sys.exit("unlucky")
with run.lock():
    begin = 0
    for event in run.events():
        begin = max(begin, getattr(event, "step", 0))
    run.append(Started("mae", begin, steps, 90, 10, 1000, "cpu", "f32", 0.5))
    run.previews.mkdir(exist_ok=True)
    reason = "done"
    for step in range(begin + 1, steps + 1):
        time.sleep(0.02)
        run.append(Step(step, steps, step / 9, 1 / step, 1e-4, 1.0, 31.0, 42.0))
        asked = run.requested()
        if asked in ("stop", "discard"):
            reason = {"stop": "stopped", "discard": "discarded"}[asked]
            break
    run.append(HeldOut(step, 0.5))
    run.checkpoints.mkdir(exist_ok=True)
    if reason == "discarded":
        run.discard()
    else:
        run.last.write_bytes(b"weights")
        run.append(Saved(step, "checkpoints/last.safetensors"))
    run.append(Finished(step, reason))
"""


@pytest.fixture
def pretender(tmp_path, monkeypatch):
    """Have runs "trained" by the pretender; returns a function that sets its steps."""
    script = tmp_path / "pretender.py"
    script.write_text(PRETENDER)
    real, started = supervise.start, []

    def take(steps):
        def start(run):
            command = [sys.executable, str(script), str(run.path), str(steps)]
            started.append(real(run, command=command))
            return started[-1]

        monkeypatch.setattr(supervise, "start", start)

    take(10)
    yield take
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def dock(viewer, qtbot):
    made = TrainDock(viewer)
    viewer.window.add_dock_widget(made, name="Train")
    yield made
    if made._job is not None:
        made._job.before_close = None


@pytest.fixture
def ready(dock, viewer, slide_path, qtbot):
    """The dock with a slide open and looked at."""
    Session.of(viewer).open_paths([slide_path])
    qtbot.waitUntil(lambda: dock.slides.survey.tiles is not None)
    return dock


@pytest.fixture
def abroad(tmp_path):
    """A run on a shared disk, in the middle of its training on another computer."""
    run = RunFolder(tmp_path / "shared" / "abroad")
    run.create(load_recipe("quick"))
    owner = Owner(1, 1.0, "another-computer", "ada", time.time())
    run.lock_file.write_text(json.dumps(asdict(owner)))
    run.previews.mkdir()
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(run.previews / "a.png")
    run.append(Started("mae", 0, 100, 90, 10, 1000, "cpu", "f32", 0.5))
    run.append(HeldOut(0, 1.5))
    for number in range(1, 41):
        run.append(one_step(number))
    run.append(Preview(40, "previews/a.png"))
    return run


def one_step(number, **logged):
    return Step(number, 100, number / 9, 1 / number, 1e-4, 1.0, 31.0, 240.0, logged)


def choose_another(dock, run, monkeypatch):
    """Choose a run's folder by *Another folder…*."""
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *a: str(run.path))
    dock.runs.setCurrentIndex(dock.runs.count() - 1)
    dock.runs.activated.emit(dock.runs.currentIndex())


def finish(dock, qtbot):
    qtbot.waitUntil(lambda: not dock.running)


def test_every_method_and_recipe_has_words():
    assert set(train.METHOD_WORDS) == set(METHODS)
    assert set(train.PRESET_WORDS) == set(recipe_names())


class TestChoosing:
    def test_an_empty_dock_says_the_first_step(self, dock):
        assert dock.state.text == "Open a slide to train on, or drop slide files here."
        assert not dock.slides.sample_button.isHidden()
        assert not dock.start_button.isEnabled()
        assert "slide" in dock.start_button.toolTip()

    def test_the_open_slides_are_taken(self, ready):
        assert ready.slides.follows_open_slides
        assert ready.slides.label.text().startswith("1 open slide · ")
        assert ready.slides.label.text().endswith("tissue tiles")
        assert ready.slides.sample_button.isHidden()
        assert ready.start_button.isEnabled()
        assert ready.state.text == "Press Start to train an encoder on these slides."
        assert ready.settings._editors["mpp"].placeholderText() == "0.5"

    def test_tiles_are_counted_again_for_another_size(self, ready, qtbot):
        before = ready.slides.survey.tiles
        ready.settings.edit("tile_px", "128")
        not_yet = (None, before)
        qtbot.waitUntil(lambda: ready.slides.survey.tiles not in not_yet)
        assert ready.slides.survey.tiles > 2 * before

    def test_files_and_folders_can_be_dropped(self, dock, slide_path, qtbot):
        mime = QMimeData()
        mime.setUrls([QUrl.fromLocalFile(str(slide_path))])

        class Drop:
            accepted = False

            def mimeData(self):
                return mime

            def acceptProposedAction(self):
                self.accepted = True

        drop = Drop()
        dock.dragEnterEvent(drop)
        assert drop.accepted
        dock.dropEvent(drop)
        assert dock.slides.paths == (slide_path,)
        qtbot.waitUntil(lambda: dock.slides.survey.tiles is not None)
        assert dock.slides.label.text().startswith("1 slide · ")
        assert dock.config().slides == (str(slide_path),)

    def test_a_folder_can_be_chosen(self, dock, slide_path, qtbot, monkeypatch):
        folder = str(slide_path.parent)
        monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *a: folder)
        dock.slides.folder_button.click()
        qtbot.waitUntil(lambda: bool(dock.slides.survey.slides))
        assert [s.name for s in dock.slides.survey.slides] == ["ellipse"]
        dock.slides.open_button.setEnabled(True)
        dock.slides.open_button.click()
        assert dock.slides.paths == ()

    def test_a_file_that_is_no_slide_is_said_where_it_was_chosen(
        self, dock, tmp_path, qtbot
    ):
        (tmp_path / "empty.svs").touch()
        dock.slides.choose([tmp_path / "empty.svs"])
        qtbot.waitUntil(lambda: bool(dock.slides.problem))
        assert "empty.svs" in dock.slides.mark.text()
        assert not dock.start_button.isEnabled()
        assert "empty.svs" in dock.start_button.toolTip()

    def test_a_missing_pixel_size_can_be_entered(
        self, dock, bare_path, qtbot, monkeypatch
    ):
        def ask(slide, parent=None):
            slide.settle_mpp(0.5)
            return 0.5

        monkeypatch.setattr("napari_histomae._widgets.mpp.ask_mpp", ask)
        dock.slides.choose([bare_path])
        qtbot.waitUntil(lambda: bool(dock.slides.survey.without_mpp))
        assert dock.slides.mark.text() == "bare.tiff has no pixel size."
        assert "pixel size" in dock.start_button.toolTip()
        dock.slides.mpp_button.click()
        qtbot.waitUntil(lambda: dock.slides.survey.tiles is not None)
        assert dock.start_button.isEnabled()


class TestSettings:
    def test_a_preset_fills_the_form_and_an_edit_makes_it_custom(self, ready):
        assert ready.preset.currentData() == "quick"
        assert ready.settings.config().epochs == load_recipe("quick").epochs
        ready.settings.edit("epochs", "50")
        assert ready.preset.currentData() == train.CUSTOM
        ready.preset.setCurrentIndex(ready.preset.findData("paper"))
        ready.preset.activated.emit(ready.preset.currentIndex())
        assert ready.settings.config() == load_recipe("paper")

    def test_a_method_brings_what_is_usual_with_it(self, ready):
        ready.settings.edit("epochs", "7")
        for name, hidden in (("sd-mae", "60"), ("mae", "75")):
            ready.method.setCurrentIndex(ready.method.findData(name))
            ready.method.activated.emit(ready.method.currentIndex())
            assert ready.config().method == name
            assert ready.settings.text("mask_ratio") == hidden
            assert ready.settings.text("epochs") == "7"
        ready.method.setCurrentIndex(ready.method.findData("mpcs"))
        ready.settings.edit("view_factors", "1, 1.5")
        assert ready.config().view_factors == (1.0, 1.5)
        ready.use_recipe("quick")
        assert ready.config().method == "mae"

    def test_a_recipe_file_can_be_loaded(self, ready, tmp_path, monkeypatch):
        recipe = tmp_path / "mine.toml"
        recipe.write_text('epochs = 77\ninit_from = "timm:vit_small_patch16_224"\n')
        monkeypatch.setattr(
            QFileDialog, "getOpenFileName", lambda *a: (str(recipe), "")
        )
        ready.preset.setCurrentIndex(ready.preset.findData(train.RECIPE_FILE))
        ready.preset.activated.emit(ready.preset.currentIndex())
        assert ready.config().epochs == 77
        assert ready.config().init_from == "timm:vit_small_patch16_224"
        recipe.write_text("epochs = 'many'")
        ready.preset.setCurrentIndex(ready.preset.findData(train.RECIPE_FILE))
        ready.preset.activated.emit(ready.preset.currentIndex())
        assert ready.state.kind == "failed"
        assert "epochs" in ready.state.text

    def test_a_recipe_for_files_of_features_asks_for_them(self, ready, tmp_path):
        recipe = tmp_path / "slides.toml"
        recipe.write_text('method = "pama"\nepochs = 77\n')
        ready.use_recipe(str(recipe))
        assert (ready.config().method, ready.config().epochs) == ("pama", 77)
        assert ready.config().slides == ()
        assert "feature files" in ready.start_button.toolTip()
        assert ready.preset.currentData() == train.CUSTOM

    def test_a_wrong_setting_is_marked_and_start_says_why(self, ready):
        ready.settings.edit("patch_size", "15")
        assert ready.settings.marked() == ["patch_size"]
        assert ready.more.is_open
        assert "does not divide" in ready.settings.mark.text()
        assert not ready.start_button.isEnabled()
        assert "does not divide" in ready.start_button.toolTip()
        ready.settings.edit("patch_size", "16")
        assert ready.settings.marked() == []
        assert ready.start_button.isEnabled()

    def test_nothing_is_upsampled(self, ready):
        ready.settings.edit("mpp", "0.25")
        assert ready.settings.marked() == ["mpp"]
        assert "invent detail" in ready.settings.mark.text()

    def test_weights_to_start_from_are_not_a_run_to_resume(
        self, ready, tmp_path, monkeypatch
    ):
        def pick(kind):
            ready.source.setCurrentIndex(ready.source.findData(kind))
            ready.source.activated.emit(ready.source.currentIndex())

        assert ready.config().init_from == "random"
        assert ready._weights_row.isHidden()
        weights = tmp_path / "encoder.safetensors"
        weights.touch()
        monkeypatch.setattr(
            QFileDialog, "getOpenFileName", lambda *a: (str(weights), "")
        )
        pick(train.OURS)
        assert ready.config().init_from == str(weights)
        weights.unlink()
        ready._check()
        assert "does not exist" in ready.weights_mark.text()
        assert not ready.start_button.isEnabled()
        pick(train.TIMM)
        assert "timm model" in ready.weights_mark.text()
        ready.weights.setText("vit_small_patch16_224")
        ready.weights.textEdited.emit("")
        assert ready.config().init_from == "timm:vit_small_patch16_224"
        assert ready.start_button.isEnabled()
        pick(train.RANDOM)
        assert ready.config().init_from == "random"
        assert "Resume" in ready.source.toolTip()

    def test_the_run_gets_a_name_that_is_free(self, ready):
        name = ready.run_name.text()
        assert name.startswith("ellipse_20")
        assert ready.run_path == runs_folder() / name
        RunFolder(ready.run_path).create(ready.config())
        ready._check()
        assert "holds a run already" in ready.why.text()
        assert not ready.start_button.isEnabled()
        ready._on_slides_changed()
        assert ready.run_name.text() == f"{name}_2"
        assert ready.start_button.isEnabled()


class TestTraining:
    def test_from_start_to_a_model(self, ready, pretender, qtbot):
        pretender(60)
        path = ready.run_path
        ready.start_button.click()
        assert ready.running
        assert ready.start_button.isHidden()
        assert not ready.stop_button.isHidden()
        finish(ready, qtbot)
        assert ready.state.kind == "done"
        assert ready.state.text.startswith("Done after 60 steps.")
        assert "0.500" in ready.state.text
        assert ready.plot.points == 60
        run = RunFolder(path)
        assert run.state == "done"
        assert run.config() == ready.config()
        assert ready.runs.run.path == path
        assert ready.runs.currentText().endswith("· done")
        assert Session.of(ready._session.viewer).model_path == run.last
        assert not ready.start_button.isHidden()
        assert ready.run_name.text() != path.name

    def test_stop_keeps_and_resume_goes_on(self, ready, pretender, qtbot):
        pretender(ENDLESS)
        ready.start_button.click()
        qtbot.waitUntil(lambda: ready.plot.points > 5)
        ready.stop_button.click()
        assert "Stopping" in ready.state.text
        assert not ready.stop_button.isEnabled()
        finish(ready, qtbot)
        assert ready.state.text.startswith("Stopped and kept after")
        assert ready.resume_button.isEnabled()
        stopped_at = ready.plot.points
        pretender(stopped_at + 10)
        ready.resume_button.click()
        finish(ready, qtbot)
        assert ready.state.text.startswith("Done after")
        assert ready.plot.points == stopped_at + 10
        assert not ready.resume_button.isEnabled()
        assert ready.resume_button.toolTip() == "This run is done."

    def test_discard_asks_and_throws_away(self, ready, pretender, qtbot, monkeypatch):
        pretender(ENDLESS)
        ready.start_button.click()
        qtbot.waitUntil(lambda: ready.plot.points > 2)
        answers = [
            QMessageBox.StandardButton.Cancel,
            QMessageBox.StandardButton.Discard,
        ]
        monkeypatch.setattr(QMessageBox, "question", lambda *a: answers.pop(0))
        ready.discard_button.click()
        assert ready.stop_button.isEnabled()
        ready.discard_button.click()
        finish(ready, qtbot)
        assert ready.state.text == "Discarded: the model was thrown away."
        assert ready._session.model_path is None
        assert not ready.use_button.isEnabled()

    def test_a_trainer_that_dies_becomes_a_sentence(self, ready, pretender, qtbot):
        ready.settings.edit("epochs", "13")
        ready.start_button.click()
        finish(ready, qtbot)
        assert ready.state.kind == "failed"
        assert "exit code 1" in ready.state.text
        assert "unlucky" in ready.state.details

    def test_a_folder_that_cannot_be_written_becomes_a_sentence(
        self, ready, qtbot, tmp_path
    ):
        (tmp_path / "file").touch()
        ready._runs_folder = tmp_path / "file"
        ready._check()
        ready.start_button.click()
        finish(ready, qtbot)
        assert ready.state.kind == "failed"
        assert "cannot be written" in ready.state.text

    def test_a_run_of_somebody_else_is_attached_to(
        self, dock, pretender, qtbot, slide_path
    ):
        pretender(ENDLESS)
        run = RunFolder(runs_folder() / "theirs")
        run.create(load_recipe("quick").changed({"slides": (str(slide_path),)}))
        process = supervise.start(run)
        qtbot.waitUntil(lambda: run.state == "running")
        dock._refresh_runs()
        dock._say_where_to_begin()
        assert dock.state.text == "theirs is being trained. Press Attach to watch it."
        dock.attach_button.click()
        qtbot.waitUntil(lambda: dock.plot.points > 3)
        assert dock._job.before_close is None
        dock.stop_button.click()
        finish(dock, qtbot)
        assert process.wait() == 0
        assert run.state == "stopped"

    def test_a_long_finished_run_is_shown(self, dock, qtbot):
        run = RunFolder(runs_folder() / "long")
        run.create(load_recipe("quick"))
        run.previews.mkdir()
        sheet = np.zeros((30, 30, 3), np.uint8)
        Image.fromarray(sheet).save(run.previews / "a.png")
        run.append(Started("mpcs", 0, 3000, 90, 10, 1000, "cpu", "f32", 0.5))
        with run.events_file.open("a") as file:
            for step in range(1, 3001):
                one = Step(step, 3000, step / 9, 1 / step, 1e-4, 1.0, 31.0, 4.0)
                file.write(one.to_json() + "\n")
        run.append(Preview(3000, "previews/a.png"))
        run.append(Saved(3000, "checkpoints/last.safetensors"))
        run.append(Finished(3000, "done"))
        dock._refresh_runs()
        dock.attach_button.click()
        finish(dock, qtbot)
        assert dock.plot.points == 3000
        assert dock.preview.has_picture
        assert dock.preview.captions == ("one view", "the other")
        assert dock.state.text.startswith("Done after 3,000 steps.")

    def test_any_folder_can_be_attached_to(self, dock, tmp_path, monkeypatch):
        run = RunFolder(tmp_path / "elsewhere")
        run.create(load_recipe("quick"))
        choose_another(dock, run, monkeypatch)
        assert dock.runs.run.path == run.path
        assert dock.attach_button.isEnabled()
        monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *a: "")
        dock.runs.setCurrentIndex(dock.runs.count() - 1)
        dock.runs.activated.emit(dock.runs.currentIndex())
        assert dock.runs.run.path == run.path

    def test_a_run_on_another_computer_is_shown_live(
        self, dock, abroad, qtbot, monkeypatch
    ):
        choose_another(dock, abroad, monkeypatch)
        assert dock.runs.currentText() == "abroad · running"
        assert not dock.resume_button.isEnabled()
        dock.attach_button.click()
        qtbot.waitUntil(lambda: dock.plot.points == 40)
        assert dock.plot.held_out_at(0) == 1.5
        assert dock.preview.has_picture
        qtbot.waitUntil(lambda: "step 40 of 100" in dock.state.text)
        assert "31 img/s · about 4 min left" in dock.state.text
        assert dock.state.fraction == pytest.approx(0.4)

        abroad.append(one_step(41, teacher_entropy=2.5))
        qtbot.waitUntil(lambda: dock.plot.points == 41)
        qtbot.waitUntil(lambda: "step 41 of 100" in dock.state.text)
        assert "teacher_entropy" in dock.plot.figures
        dock.stop_button.click()
        assert abroad.requested() == "stop"
        abroad.append(Finished(41, "stopped"))
        abroad.lock_file.unlink()
        finish(dock, qtbot)
        assert dock.state.text.startswith("Stopped and kept after 41 steps.")

    def test_what_was_only_watched_is_left_without_a_question(
        self, dock, viewer, abroad, qtbot, monkeypatch
    ):
        asked = []
        monkeypatch.setattr(QMessageBox, "exec_", asked.append)
        choose_another(dock, abroad, monkeypatch)
        dock.attach_button.click()
        qtbot.waitUntil(lambda: dock.plot.points == 40)
        viewer.close()
        assert asked == []
        assert not dock.running
        assert abroad.state == "running"
        assert abroad.requested() is None

    def test_what_was_begun_here_is_asked_for_again_after_another_was_watched(
        self, ready, abroad, pretender, qtbot, monkeypatch
    ):
        pretender(ENDLESS)
        ready.start_button.click()
        qtbot.waitUntil(lambda: ready.plot.points > 2)
        mine = ready._run
        choose_another(ready, abroad, monkeypatch)
        ready.attach_button.click()
        qtbot.waitUntil(lambda: ready.plot.points == 40)
        assert ready._job.before_close is None
        ready.runs.choose(mine)
        ready._refresh_buttons()
        ready.attach_button.click()
        assert ready._job.before_close is not None
        mine.request("stop")
        finish(ready, qtbot)

    def test_a_model_of_an_earlier_run_is_used(self, dock, qtbot):
        run = RunFolder(runs_folder() / "earlier")
        run.create(load_recipe("quick"))
        run.checkpoints.mkdir()
        run.last.write_bytes(b"weights")
        run.append(Finished(5, "stopped"))
        dock._refresh_runs()
        dock.use_button.click()
        assert dock._session.model_path == run.last
        assert "earlier" in dock.state.text

    def test_a_closing_window_asks_once_and_the_training_lives_on(
        self, ready, viewer, pretender, qtbot, monkeypatch
    ):
        pretender(ENDLESS)
        asked = []
        monkeypatch.setattr(
            TrainDock, "_may_close", lambda self: asked.append(True) or True
        )
        ready.start_button.click()
        qtbot.waitUntil(lambda: ready.plot.points > 2)
        run = ready._run
        viewer.close()
        assert asked == [True]
        assert not ready.running
        assert run.state == "running"
        run.request("stop")
        qtbot.waitUntil(lambda: run.state == "stopped")

    def test_a_closing_dock_lets_go_and_the_training_lives_on(
        self, ready, viewer, pretender, qtbot, complaints, slide_path
    ):
        pretender(ENDLESS)
        ready.start_button.click()
        qtbot.waitUntil(lambda: ready.plot.points > 2)
        run, job = ready._run, ready._job
        viewer.window.remove_dock_widget(ready)
        qtbot.waitUntil(lambda: not job.running)
        assert "press Attach" in complaints.texts[-1]
        assert run.state == "running"
        viewer.layers.clear()
        again = TrainDock(viewer)
        viewer.window.add_dock_widget(again, name="Train again")
        assert "Press Attach to watch it" in again.state.text
        again.attach_button.click()
        qtbot.waitUntil(lambda: again.plot.points > 2)
        again.stop_button.click()
        finish(again, qtbot)
        assert run.state == "stopped"

    @pytest.mark.parametrize(
        ("press", "closes", "request_made"),
        [(0, True, None), (1, True, "stop"), (2, False, None)],
    )
    def test_the_question_has_three_answers(
        self, ready, pretender, qtbot, monkeypatch, press, closes, request_made
    ):
        asked = []
        monkeypatch.setattr(QMessageBox, "exec_", lambda self: None)
        monkeypatch.setattr(
            QMessageBox, "clickedButton", lambda self: _in_order(self)[press]
        )
        monkeypatch.setattr(RunFolder, "request", lambda self, what: asked.append(what))
        ready._run = RunFolder(ready.run_path)
        monkeypatch.setattr(TrainDock, "running", True)
        assert ready._may_close() is closes
        assert asked == ([request_made] if request_made else [])


def _in_order(box):
    """The buttons of a question: leave, stop, do not close."""
    words = ["Leave it running", "Stop and keep", "Do not close"]
    return sorted(box.buttons(), key=lambda button: words.index(button.text()))


def test_a_folder_of_pictures_is_trained_on(dock, tmp_path, qtbot, slide_path):
    for number in range(3):
        pixels = np.full((40, 60), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"benign ({number}).png")
    Image.new("L", (60, 40)).save(tmp_path / "benign (0)_mask.png")
    dock.slides.choose([tmp_path])
    qtbot.waitUntil(lambda: dock.slides.survey.pictures == 3)
    assert dock.slides.label.text() == f"folder {tmp_path.name} · 3 pictures"
    assert dock.start_button.isEnabled()
    assert "on these pictures" in dock.state.text
    assert dock.config().slides == (str(tmp_path),)
    dock._on_event(Started("mae", 0, 9, 3, 1, 9, "cpu", "f32", None, what="picture"))
    assert "3 pictures for training" in dock.state.text
    dock.slides.choose([tmp_path, slide_path])
    qtbot.waitUntil(lambda: bool(dock.slides.problem))
    assert "one folder of them" in dock.slides.problem
    assert not dock.start_button.isEnabled()


class TestWholeSlides:
    """The method that learns from files of features."""

    @pytest.fixture
    def pama(self, dock):
        at = dock.method.findData("pama")
        dock.method.setCurrentIndex(at)
        dock.method.activated.emit(at)
        return dock

    @pytest.fixture
    def files(self, make_features, tmp_path):
        folder = tmp_path / "features"
        return [
            make_features(folder / f"{n}.h5", tiles=30 + n, seed=n) for n in range(3)
        ]

    def choose(self, dock, paths, qtbot):
        dock.features.choose(paths)
        qtbot.waitUntil(lambda: not dock.features.running)

    def test_its_settings_take_the_place_of_those_of_tiles(self, pama):
        assert pama.slides.isHidden()
        assert not pama.features.isHidden()
        assert pama.preview.isHidden()
        assert pama.settings.text("tiles_per_anchor") == "144"
        assert pama.settings.text("epochs") == "100"
        assert pama.preset.currentData() == train.CUSTOM
        pama.settings.edit("tiles_per_anchor", "18")
        pama.settings.edit("mask_ratio", "60")
        config = pama.config()
        assert (config.tiles_per_anchor, config.mask_ratio) == (18, 0.6)
        assert config.mpp is None
        assert "18 tiles per anchor" in pama.more.summary
        at = pama.method.findData("mae")
        pama.method.setCurrentIndex(at)
        pama.method.activated.emit(at)
        assert not pama.slides.isHidden()
        assert pama.features.isHidden()

    def test_files_are_counted_and_trained_on(
        self, pama, files, qtbot, pretender, viewer
    ):
        assert "feature files" in pama.start_button.toolTip()
        self.choose(pama, [files[0].parent], qtbot)
        assert pama.features.label.text() == "3 bags · 93 tiles · drawn"
        assert pama.start_button.isEnabled(), pama.start_button.toolTip()
        assert pama.run_name.text().startswith("features_")
        pama.start_button.click()
        finish(pama, qtbot)
        run = RunFolder(pama._run.path)
        assert run.config().method == "pama"
        assert run.config().slides == (str(files[0].parent),)
        session = Session.of(viewer)
        assert session.slide_model_path == run.last
        assert session.model_path is None
        assert "Whole slide" in pama.state.text

    def test_files_that_must_not_be_mixed_are_marked(
        self, pama, files, make_features, qtbot
    ):
        other = make_features(files[0].parent / "z.h5", encoder_id="77", seed=9)
        self.choose(pama, [*files, other], qtbot)
        assert "must not be mixed" in pama.features.mark.text()
        assert "drawn (77)" in pama.features.mark.text()
        assert not pama.start_button.isEnabled()

    def test_open_slides_are_embedded_first(
        self, pama, viewer, slide_path, tmp_path, qtbot
    ):
        from tests.napari_histomae.test_review import save_model

        session = Session.of(viewer)
        assert "Open slides" in pama.features.embed_button.toolTip()
        session.open_paths([slide_path])
        assert "encoder" in pama.features.embed_button.toolTip()
        session.use_model(save_model(tmp_path / "micro.safetensors"))
        assert pama.features.embed_button.isEnabled()
        pama.features.embed_button.click()
        assert not pama.start_button.isEnabled()
        qtbot.waitUntil(lambda: bool(pama.features.survey or pama.features.problem))
        assert pama.features.problem == ""
        (file,) = pama.features.paths
        assert file.name.startswith("ellipse-")
        qtbot.waitUntil(pama.start_button.isEnabled)

    def test_a_run_of_it_is_used_in_whole_slide(self, pama, files, qtbot, pretender):
        self.choose(pama, files, qtbot)
        pama.start_button.click()
        finish(pama, qtbot)
        pama._session.use_slide_model(None)
        pama.use_button.click()
        assert pama._session.slide_model_path == pama.runs.run.last
        assert "Whole slide" in pama.state.text
