"""The Train dock: pretraining an encoder on slides.

The training runs in a process of its own, which a background thread follows through
the run's folder. What is shown is what the folder says, whoever began the run.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_info
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from histomae.config import (
    MASKING,
    METHOD_DEFAULTS,
    ON_FEATURES,
    PretrainConfig,
    load_recipe,
    recipe_names,
)
from histomae.data.masking import MaskSetting
from histomae.errors import ConfigError, UpsamplingError
from histomae.events import (
    Event,
    Failed,
    Finished,
    Note,
    Preview,
    Progress,
    Saved,
    Started,
    Step,
)
from histomae.files import runs_folder
from histomae.learn.runs import RunFolder, list_runs
from histomae.slides.slide import check_mpp
from napari_histomae._jobs import Job, start_job
from napari_histomae._session import Session
from napari_histomae._widgets.common import (
    SPACING,
    ElidedBox,
    ElidedLabel,
    FieldMark,
    MoreSettings,
    Sheet,
    StateLine,
    beside,
    count,
    dock_layout,
    human_time,
    mute,
    why_disabled,
)
from napari_histomae._widgets.curve_plot import CurvePlot
from napari_histomae._widgets.dock import Dock
from napari_histomae._widgets.features_field import FeaturesField
from napari_histomae._widgets.model import learns_slides
from napari_histomae._widgets.runs_box import (
    RESUMABLE,
    STATE_WORDS,
    RunsBox,
    run_state,
)
from napari_histomae._widgets.settings_form import SettingsForm, summary
from napari_histomae._widgets.slides_field import (
    SlidesField,
    dropped_paths,
    on_drop,
)
from napari_histomae._widgets.structure_field import StructureField
from napari_histomae._widgets.tissue_fold import TissueFold

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import napari

#: What each method is called, and when to choose it.
METHOD_WORDS = {
    "mae": (
        "Masked autoencoder",
        "Hides most of every tile and learns to redraw it. Needs no labels.",
    ),
    "sd-mae": (
        "Self-distilled autoencoder",
        "Also learns what the visible parts mean, from its own decoder. Needs no "
        "labels; a little slower.",
    ),
    "mpcs": (
        "Magnification pairs",
        "Sees each place at two magnifications and learns to tell it from all others. "
        "Needs no labels; learns no redrawing.",
    ),
    "pama": (
        "Slides as a whole",
        "Hides most tiles of a slide and learns to tell them from the others and their "
        "places. Takes tiles that an encoder turned into features.",
    ),
}
#: What the columns of each method's previews are, and what they show.
REDRAWN = (
    ("tile", "masked", "re-drawn"),
    "What the network sees of three tiles, and how it redraws what is hidden",
)
PREVIEW_WORDS = {
    "mae": REDRAWN,
    "sd-mae": REDRAWN,
    "mpcs": (
        ("one view", "the other"),
        "Three places as the network sees them, each at two magnifications",
    ),
}
#: What each recipe is called.
PRESET_WORDS = {
    "quick": "Quick look · a laptop, minutes",
    "ultrasound": "Ultrasound, ViT-S/8 · a GPU, hours",
    "paper": "Paper, ViT-S/16 · a GPU, hours",
}
CUSTOM, RECIPE_FILE = "Custom", "From a recipe file…"
#: Where the weights to begin with come from.
RANDOM, OURS, TIMM, FILE = "random", "ours", "timm", "file"
SOURCES = {
    RANDOM: "Random weights",
    OURS: "A model of ours",
    TIMM: "A timm model",
    FILE: "A weights file",
}
#: Earlier runs that are listed.
RUNS_LISTED = 30
#: Progress is said no more often than this, ms.
TICK_MS = 200


class TrainDock(Dock):
    """Choose slides and settings, start, watch, and use what comes out."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._session = Session.of(viewer)
        self._run: RunFolder | None = None
        self._begun: set[Path] = set()
        self._job: Job | None = None
        self._news: Step | None = None
        self._asked = self._saved = self._is_shut = False
        self._problem = ""
        self._unit = "img"
        self._made_name = ""
        self._tick = QTimer(self)
        self._tick.setSingleShot(True)
        self._tick.setInterval(TICK_MS)
        self.setAcceptDrops(True)
        self._make_fields()
        self._connect()
        self._lay_out()
        self._on_preset_chosen()
        self._refresh_runs()
        self._on_slides_changed()
        self._say_where_to_begin()

    # ---- four paragraphs: fields, connections, layout; the initial values come last

    def _make_fields(self) -> None:
        self.slides = SlidesField(self._session)
        self.features = FeaturesField(self._session)
        self.tissue = TissueFold(self._session)
        self.method = QComboBox()
        for name in METHOD_WORDS:
            self.method.addItem(METHOD_WORDS[name][0], name)
        self.method_words = QLabel()
        self.method_words.setWordWrap(True)
        mute(self.method_words)
        self.preset = ElidedBox()
        for name in sorted(recipe_names(), key=lambda n: n != "quick"):
            self.preset.addItem(PRESET_WORDS.get(name, name), name)
        self.preset.addItem(CUSTOM, CUSTOM)
        self.preset.addItem(RECIPE_FILE, RECIPE_FILE)
        self.source = ElidedBox()
        for name, words in SOURCES.items():
            self.source.addItem(words, name)
        self.source.setToolTip(
            "Weights that a new training begins with.\n"
            "To go on with a training that was stopped, use Resume below."
        )
        self.weights = QLineEdit()
        self.weights_button = QToolButton()
        self.weights_button.setText("…")
        self.weights_mark = FieldMark()
        self.settings = SettingsForm()
        self.structure = StructureField()
        self.more = MoreSettings()
        self.run_name = QLineEdit()
        self.folder_button = QToolButton()
        self.folder_button.setText("…")
        self.folder_button.setToolTip("Choose the folder in which runs are kept")
        self._runs_folder = runs_folder()
        self.start_button = QPushButton("Start")
        self.stop_button = QPushButton("Stop and keep")
        self.stop_button.setToolTip("End the training now and keep what was learned")
        self.discard_button = QPushButton("Discard…")
        self.discard_button.setToolTip("End the training and throw away its model")
        self.why = FieldMark()
        self.plot = CurvePlot()
        self.preview = Sheet(())
        self._say_what_is_shown(self.method.currentData())
        self.note = ElidedLabel()
        mute(self.note)
        self.runs = RunsBox()
        self.resume_button = QPushButton("Resume")
        self.attach_button = QPushButton("Attach")
        self.use_button = QPushButton("Use this model")
        self.state = StateLine()

    def _connect(self) -> None:
        self.slides.changed.connect(self._on_slides_changed)
        self.slides.surveyed.connect(self._check)
        self.features.changed.connect(self._on_slides_changed)
        self.method.currentIndexChanged.connect(self._on_method_changed)
        self.method.activated.connect(self._on_method_chosen)
        self.preset.activated.connect(self._on_preset_chosen)
        self.source.activated.connect(self._on_source_chosen)
        self.weights.textEdited.connect(self._check)
        self.weights_button.clicked.connect(self._on_browse_weights)
        self.settings.changed.connect(self._on_settings_edited)
        self.structure.taken.connect(self._on_suggestion_taken)
        self.run_name.textEdited.connect(self._check)
        self.folder_button.clicked.connect(self._on_browse_folder)
        self.start_button.clicked.connect(self._on_start)
        self.stop_button.clicked.connect(self._on_stop)
        self.discard_button.clicked.connect(self._on_discard)
        self.runs.about_to_open.connect(self._refresh_runs)
        self.runs.activated.connect(self._on_run_chosen)
        self.resume_button.clicked.connect(self._on_resume)
        self.attach_button.clicked.connect(self._on_attach)
        self.use_button.clicked.connect(self._on_use)
        self._tick.timeout.connect(self._on_tick)
        self._session.slide_changed.connect(self._say_where_to_begin)
        self._on_method_changed()

    def _lay_out(self) -> None:
        fold = QVBoxLayout(self.more.body)
        fold.setContentsMargins(0, 0, 0, 0)
        fold.addWidget(self.settings)
        fold.addWidget(self.structure)
        for whole in (self.settings, self.structure):  # pressed together by no layout
            whole.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self._weights_row = beside(self.weights, self.weights_button)
        form = QGridLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.setHorizontalSpacing(SPACING)
        form.setVerticalSpacing(4)
        form.setColumnStretch(1, 1)
        rows: list[tuple[str | None, QWidget]] = [
            ("Slides", _stacked(self.slides, self.features)),
            (None, self.tissue),
            ("Method", self.method),
            ("", self.method_words),
            ("Preset", self.preset),
            ("Start from", self.source),
            ("", self._weights_row),
            ("", self.weights_mark),
            (None, self.more),
            (None, self.settings.mark),
            ("Save to", beside(self.run_name, self.folder_button)),
        ]
        for number, (label, field) in enumerate(rows):
            if label is None:
                form.addWidget(field, number, 0, 1, 2)
                continue
            form.addWidget(field, number, 1)
            if label:
                form.addWidget(QLabel(label), number, 0, _beside_first_line(field))

        layout = dock_layout(self)
        layout.addLayout(form)
        layout.addWidget(
            beside(self.start_button, self.stop_button, self.discard_button)
        )
        layout.addWidget(self.why)
        layout.addWidget(self._pictures(), 1)
        layout.addWidget(self.note)
        layout.addWidget(_beside_label(QLabel("Runs"), self.runs))
        layout.addWidget(
            beside(self.resume_button, self.attach_button, self.use_button)
        )
        layout.addWidget(self.state)

    def _pictures(self) -> QWidget:
        """Return a curve beside what the network sees now."""
        both = beside(self.plot, self.preview)
        both.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        both.setMinimumHeight(110)
        return both

    # ---- the form

    @property
    def on_features(self) -> bool:
        """Whether the method learns from feature files, and not from slides."""
        return self.method.currentData() in ON_FEATURES

    @property
    def sources(self) -> tuple[Path, ...]:
        """What is learned from: slides, or feature files; and folders of them."""
        return self.features.paths if self.on_features else self.slides.paths

    @property
    def run_path(self) -> Path:
        """The folder that a new run is written to."""
        return self._runs_folder / self.run_name.text().strip()

    @property
    def init_from(self) -> str:
        """The setting of that name, from the row *Start from*."""
        kind = self.source.currentData()
        text = self.weights.text().strip()
        if kind == RANDOM:
            return RANDOM
        return f"timm:{text.removeprefix('timm:')}" if kind == TIMM else text

    def config(self) -> PretrainConfig:
        """Return the settings of the form.

        Raises
        ------
        ConfigError
            If one is wrong.
        """
        told = {
            "slides": tuple(str(path) for path in self.sources),
            "method": self.method.currentData(),
            "init_from": self.init_from,
        }
        if self.on_features:
            told["mpp"] = None  # the files say it
        return self.settings.config().changed(told)

    def _on_method_changed(self) -> None:
        method = self.method.currentData()
        self.method_words.setText(METHOD_WORDS[method][1])
        self.settings.show_method(method)
        self.structure.setVisible(method in MASKING)
        self.slides.setVisible(not self.on_features)
        self.features.setVisible(self.on_features)
        self.preview.setVisible(method in PREVIEW_WORDS)

    def _on_method_chosen(self) -> None:
        """Take what is usual with a method, in the place of what was with the last."""
        name, config = self.method.currentData(), self.settings.config()
        usual = PretrainConfig(method=name, **METHOD_DEFAULTS[name])
        changed = ("method", *METHOD_DEFAULTS[config.method], *METHOD_DEFAULTS[name])
        self.settings.set_config(
            config.changed({one: getattr(usual, one) for one in changed})
        )
        if self.on_features:  # presets are of tiles
            self.preset.setCurrentIndex(self.preset.findData(CUSTOM))
        self._on_slides_changed()

    def _on_preset_chosen(self) -> None:
        name = self.preset.currentData()
        if name == CUSTOM:
            self.more.set_open(True)
            return
        if name == RECIPE_FILE:
            name, _ = QFileDialog.getOpenFileName(
                self, "Recipe", "", "Recipes (*.toml)"
            )
        if name:
            self.use_recipe(name)
        else:
            self.preset.setCurrentIndex(self.preset.findData(CUSTOM))

    def use_recipe(self, name: str) -> None:
        """Fill the form from a recipe: a name, or a TOML file."""
        known = self.preset.findData(name)
        self.preset.setCurrentIndex(
            known if known >= 0 else self.preset.findData(CUSTOM)
        )
        try:
            config = load_recipe(name)
        except ConfigError as error:
            self.state.failed(error)
            return
        self.settings.set_config(config)
        self.method.setCurrentIndex(self.method.findData(config.method))
        self._on_source_is(config.init_from)
        self._check()

    def _on_settings_edited(self) -> None:
        self.preset.setCurrentIndex(self.preset.findData(CUSTOM))
        self._check()

    def _on_suggestion_taken(self, patch_size: int, mask_ratio: float) -> None:
        self.settings.edit("patch_size", f"{patch_size}")
        self.settings.edit("mask_ratio", f"{100 * mask_ratio:g}")

    def _on_source_chosen(self) -> None:
        kind = self.source.currentData()
        self.weights.clear()
        if kind in (OURS, FILE):
            self._on_browse_weights()
        self._show_source()
        self._check()

    def _on_source_is(self, init_from: str) -> None:
        kind = RANDOM if init_from == RANDOM else FILE
        if init_from.startswith("timm:"):
            kind, init_from = TIMM, init_from.removeprefix("timm:")
        self.source.setCurrentIndex(self.source.findData(kind))
        self.weights.setText("" if kind == RANDOM else init_from)
        self._show_source()

    def _show_source(self) -> None:
        kind = self.source.currentData()
        self._weights_row.setVisible(kind != RANDOM)
        self.weights_button.setVisible(kind in (OURS, FILE))
        self.weights.setPlaceholderText(
            "vit_small_patch16_224.augreg_in21k" if kind == TIMM else "no file yet"
        )

    def _on_browse_weights(self) -> None:
        ours = self.source.currentData() == OURS
        path, _ = QFileDialog.getOpenFileName(
            self,
            "Model to start from" if ours else "Weights to start from",
            str(self._runs_folder) if ours else "",
            "Models (*.safetensors)"
            if ours
            else "Weights (*.safetensors *.pth *.pt *.bin)",
        )
        if path:
            self.weights.setText(path)
            self.weights.setToolTip(path)
        self._check()

    def _on_browse_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(
            self, "Folder in which runs are kept", str(self._runs_folder)
        )
        if folder:
            self._runs_folder = Path(folder)
            self._refresh_runs()
            self._check()

    def _on_slides_changed(self) -> None:
        self._name_the_run()
        self._check()

    def _name_the_run(self) -> None:
        """Suggest a folder that does not exist, unless a person wrote a name."""
        if self.run_name.text() and self.run_name.text() != self._made_name:
            return
        paths = self.sources
        stem = paths[0].stem if paths else "run"
        if len(paths) > 1:
            stem += f"+{len(paths) - 1}"
        name = base = f"{stem}_{date.today():%Y-%m-%d}"
        number = 1
        while (self._runs_folder / name).exists():
            number += 1
            name = f"{base}_{number}"
        self._made_name = name
        self.run_name.setText(name)

    # ---- the check: what is wrong, where, and why

    def _check(self) -> None:
        """Mark what is wrong and allow Start only if nothing is."""
        problem = self._find_problem()
        in_form = problem is not None and problem.field not in ("slides", "init_from")
        in_form = in_form and problem is not None and problem.field != "save to"
        self.settings.say(problem if in_form else None)
        if in_form:
            self.more.set_open(True)
        source_wrong = problem is not None and problem.field == "init_from"
        self.weights_mark.say(problem.reason if problem and source_wrong else "")
        self._problem = "" if problem is None else problem.reason
        self._show_automatic()
        self.run_name.setToolTip(str(self.run_path))
        self._refresh_buttons()
        self._say_where_to_begin()

    def _find_problem(self) -> ConfigError | None:
        """Return the first thing that is wrong; ``field`` may name a row."""
        try:
            config = self.config()
        except ConfigError as error:
            return error
        if self.on_features:
            why = self._problem_of_features()
            found = ConfigError("slides", why) if why else None
            return found or self._problem_of_source() or self._problem_of_folder()
        self.slides.set_tiles(config.tile_px, config.mpp)
        if not self.slides.paths:
            return ConfigError("slides", "Open a slide, or choose some, first.")
        if self.slides.problem:
            return ConfigError("slides", self.slides.problem)
        if self.slides.survey.pictures is not None and config.mpp is not None:
            return ConfigError("mpp", "Pictures are taken whole: leave it on auto.")
        if self.slides.survey.without_mpp:
            name = self.slides.survey.without_mpp[0].path.name
            return ConfigError("slides", f"Enter the pixel size of {name} first.")
        for slide in self.slides.survey.slides:
            try:
                if config.mpp is not None:
                    check_mpp(
                        slide, config.mpp, allow_upsampling=config.allow_upsampling
                    )
            except UpsamplingError as error:
                return ConfigError("mpp", str(error))
        return self._problem_of_source() or self._problem_of_folder()

    def _problem_of_features(self) -> str:
        if self.features.running:
            return "Wait until the features are there."
        none = "Choose feature files, or embed the open slides, first."
        return self.features.problem or ("" if self.features.paths else none)

    def _problem_of_source(self) -> ConfigError | None:
        kind, text = self.source.currentData(), self.weights.text().strip()
        if kind == RANDOM:
            return None
        if kind == TIMM:
            why = "" if text else "Name a timm model, such as vit_small_patch16_224."
        elif not text:
            why = "Choose a file of weights, or random weights."
        else:
            why = (
                "" if Path(text).is_file() else "This file does not exist. Choose one."
            )
        return ConfigError("init_from", why) if why else None

    def _problem_of_folder(self) -> ConfigError | None:
        if not self.run_name.text().strip():
            return ConfigError("save to", "Give the run a name first.")
        if RunFolder(self.run_path).config_file.exists():
            return ConfigError(
                "save to",
                f"{self.run_path.name} holds a run already. Give another name, or "
                "resume it below.",
            )
        return None

    def _show_automatic(self) -> None:
        """Show what is decided by the slides, and the fold's summary."""
        mpp = self.slides.survey.mpp
        self.settings.set_automatic("mpp", "auto" if mpp is None else f"{mpp:.3g}")
        try:
            config = self.config()
        except ConfigError:
            self.more.set_summary("a setting is wrong")
            return
        self.more.set_summary(summary(config, mpp))
        self.structure.show_setting(
            config.tile_px,
            config.mpp or mpp,
            MaskSetting(config.patch_size, config.mask_ratio),
        )

    # ---- the training

    @property
    def running(self) -> bool:
        """Whether a training is followed."""
        return self._job is not None and self._job.running

    def _on_start(self) -> None:
        from histomae.learn.supervise import supervise

        config, run = self.config(), RunFolder(self.run_path)
        self._begun.add(run.path)
        self._follow(run, lambda: supervise(config, run))

    def _on_resume(self) -> None:
        run = self.runs.run
        if run is not None:
            self._begun.add(run.path)
            self._follow(run, lambda: resumed(run))

    def _on_attach(self) -> None:
        from histomae.learn.supervise import follow

        run = self.runs.run
        if run is not None:
            self._follow(run, lambda: follow(run))

    def _follow(
        self, run: RunFolder, make: Callable[[], Generator[Event, None, Any]]
    ) -> None:
        """Show a run from its beginning until it ends.

        A closing window asks what becomes of it only if it was begun here.
        """
        if self._job is not None:
            self._job.abandon()  # the training itself goes on
        self._run, self._news = run, None
        self._asked = self._saved = False
        self.plot.clear()
        self._show_preview(None)
        self.note.setText("")
        self.state.working(f"{run.path.name}: starting the trainer…")
        self._job = start_job(
            self,
            make,
            name=f"Training {run.path.name}",
            on_event=self._on_event,
            on_done=self._on_follow_ended,
            on_failed=self._on_follow_failed,
            on_cancelled=self._refresh_buttons,
        )
        if run.path in self._begun:
            self._job.before_close = self._may_close
        self._refresh_buttons()

    def _on_event(self, event: Event) -> None:
        self.plot.add(event)
        match event:
            case Started():
                self._say_what_is_shown(event.method)
                self._unit = "img" if event.what == "crop" else f"{event.what}s"
                self.state.working(
                    f"{count(event.crops, event.what)} for training, "
                    f"{event.held_out_crops} held out · {event.device}"
                )
                self._saved = True
            case Step():
                self._news = event  # said a few times a second, not at each step
                if not self._tick.isActive():
                    self._tick.start()
            case Progress():
                self.state.working(
                    f"{event.what}: {event.done} of {event.total}",
                    event.done,
                    event.total,
                )
            case Preview():
                self._show_preview(event.path)
            case Note():
                self.note.setText(event.text)
            case Saved():
                self._saved = True
            case Finished():
                self._on_finished(event)
            case Failed():
                self._news = None
                self.state.failed(event.message, details=self._log_tail())

    def _on_tick(self) -> None:
        """Say the latest news of a training that steps along."""
        step, self._news = self._news, None
        if step is not None and not self._asked:
            words = step_words(step, self._unit)
            self.state.working(words, step.step, step.total_steps)
        if self._saved:
            self._saved = False
            self._refresh_runs()

    def _on_finished(self, event: Finished) -> None:
        self._news = None
        if event.reason == "discarded":
            self.state.done("Discarded: the model was thrown away.")
            return
        how = "Done" if event.reason == "done" else "Stopped and kept"
        text = f"{how} after {count(event.step, 'step')}."
        held_out = self.plot.held_out_at(event.step)
        if held_out is not None:
            text += f" Loss on what was held out: {held_out:.3f}."
        if self._run is not None and self._run.last.exists():
            if learns_slides(self._run):
                self._session.use_slide_model(self._run.last)
                text += " The model is ready in Whole slide."
            elif self._session.model_path is None:
                self._session.use_model(self._run.last)
                text += " The model is ready in Teach and Review."
            else:
                text += " Press Use this model to go on with it."
        self.state.done(text)

    def _on_follow_ended(self, result: Any) -> None:
        if self.state.kind == "working":  # the folder says no more
            self.state.idle("Nothing more is recorded in this run.")
        self._name_the_run()
        self._refresh_runs()
        self._check()

    def _on_follow_failed(self, error: Exception) -> None:
        self.state.failed(error)
        self._refresh_runs()
        self._check()

    def _on_stop(self) -> None:
        self._ask_trainer("stop", "Stopping: writing what was learned…")

    def _on_discard(self) -> None:
        if self._confirm_discard():
            self._ask_trainer("discard", "Discarding…")

    def _ask_trainer(self, request: Any, words: str) -> None:
        if self._run is None:
            return
        try:
            self._run.request(request)
        except OSError as error:
            self.state.failed(error)
            return
        self._asked = True
        self.state.working(words)
        self.stop_button.setEnabled(False)
        self.discard_button.setEnabled(False)

    def _confirm_discard(self) -> bool:
        answer = QMessageBox.question(
            self,
            "Discard the training?",
            "The training ends and its model is thrown away. This cannot be undone.",
            QMessageBox.StandardButton.Discard | QMessageBox.StandardButton.Cancel,
            QMessageBox.StandardButton.Cancel,
        )
        return bool(answer == QMessageBox.StandardButton.Discard)

    def _may_close(self) -> bool:
        """Ask what becomes of the training when the window closes."""
        if self._run is None or not self.running:
            return True
        box = QMessageBox(self)
        box.setWindowTitle("A training is running")
        box.setText(f"{self._run.path.name} is still being trained.")
        box.setInformativeText(
            "It runs in a process of its own and can go on without the window: attach "
            "to it later from the Train dock."
        )
        leave = box.addButton("Leave it running", QMessageBox.ButtonRole.AcceptRole)
        stop = box.addButton("Stop and keep", QMessageBox.ButtonRole.DestructiveRole)
        box.addButton("Do not close", QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(leave)
        box.exec_()
        chosen = box.clickedButton()
        if chosen is stop:
            self._run.request("stop")
        return chosen is leave or chosen is stop

    # ---- what is shown of it

    def _say_what_is_shown(self, method: str) -> None:
        captions, words = PREVIEW_WORDS.get(method, REDRAWN)
        self.preview.set_captions(captions)
        self.preview.setToolTip(words)

    def _show_preview(self, path: str | None) -> None:
        pixmap = None
        if path is not None and self._run is not None:
            pixmap = QPixmap(str(self._run.path / path))
        self.preview.set_pixmap(pixmap)

    def _log_tail(self, most: int = 4000) -> str:
        if self._run is None:
            return ""
        try:
            text = self._run.log_file.read_text("utf-8", errors="replace")
        except OSError:
            return ""
        return text[-most:]

    def _say_where_to_begin(self) -> None:
        if self.state.kind != "idle":
            return
        running = [run for run in self.runs.all_runs if run.state == "running"]
        if running:
            self.state.idle(
                f"{running[0].path.name} is being trained. Press Attach to watch it."
            )
        elif self.sources and self._problem:
            self.state.idle("Something above is marked: mend it to begin.")
        elif self.sources:
            pictures = self.slides.survey.pictures is not None
            what = (
                "learn from these features"
                if self.on_features
                else f"train an encoder on these {'pictures' if pictures else 'slides'}"
            )
            self.state.idle(f"Press Start to {what}.")
        elif self.on_features:
            self.state.idle(self._problem)
        else:
            self.state.idle("Open a slide to train on, or drop slide files here.")

    # ---- earlier runs

    def _refresh_runs(self) -> None:
        self.runs.show_runs(list_runs(self._runs_folder)[:RUNS_LISTED], self._run)
        self._refresh_buttons()

    def _on_run_chosen(self) -> None:
        if self.runs.wants_another:
            folder = QFileDialog.getExistingDirectory(
                self, "Folder of a run", str(self._runs_folder)
            )
            self.runs.choose(RunFolder(folder) if folder else None)
        self._refresh_buttons()

    def _on_use(self) -> None:
        run = self.runs.run
        if run is None:
            return
        if learns_slides(run):
            self._session.use_slide_model(run.last)
            self.state.done(f"{run.path.name} is the model in Whole slide now.")
        else:
            self._session.use_model(run.last)
            self.state.done(f"{run.path.name} is the model in Teach and Review now.")

    def _refresh_buttons(self) -> None:
        running = self.running
        self.start_button.setVisible(not running)
        self.stop_button.setVisible(running)
        self.discard_button.setVisible(running)
        self.stop_button.setEnabled(True)
        self.discard_button.setEnabled(True)
        why_disabled(self.start_button, self._problem)
        # What is wrong is said where it is wrong; here only what has no other place.
        field = self.features if self.on_features else self.slides
        elsewhere = field.mark.text() or self.weights_mark.text()
        elsewhere = elsewhere or self.settings.mark.text()
        said = "" if running or elsewhere else self._problem
        self.why.say(said if self.sources else "")
        run = self.runs.run
        state = None if run is None else run_state(run)
        none = "Choose an earlier run first." if run is None else ""
        followed = running and run is not None and self._is_followed(run)
        words = STATE_WORDS.get(state or "", "unreadable")
        why_disabled(
            self.resume_button,
            none or ("" if state in RESUMABLE else f"This run is {words}."),
        )
        why_disabled(
            self.attach_button, none or ("It is shown already." if followed else "")
        )
        has_model = run is not None and run.last.exists()
        why_disabled(
            self.use_button, none or ("" if has_model else "It has no model yet.")
        )

    def _is_followed(self, run: RunFolder) -> bool:
        return self._run is not None and self._run.path == run.path

    # ---- Qt's events

    def dragEnterEvent(self, event: Any) -> None:
        """Accept files."""
        if dropped_paths(event):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """Train on the files and folders that were dropped."""
        field = self.features if self.on_features else self.slides
        on_drop(field.choose, event)

    def shut(self) -> None:
        """Stop what runs for this dock, and listen no more; a training goes on."""
        if self._is_shut:
            return
        self._is_shut = True
        self.slides.shut()
        self.features.shut()
        self.tissue.shut()
        self._tick.stop()
        self._session.slide_changed.disconnect(self._say_where_to_begin)
        if self._job is None or not self._job.running:
            return
        self._job.abandon()
        if self._run is not None and self._job.before_close is not None:
            show_info(
                f"{self._run.path.name} is trained on. Open the Train dock and press "
                "Attach to watch it."
            )


def resumed(run: RunFolder) -> Generator[Event, None, None]:
    """Start the process of a run that had ended, and follow it.

    Raises
    ------
    RunError
        If somebody is at work in the folder.
    """
    from histomae.learn.supervise import follow, start

    yield from follow(run, start(run))


def step_words(step: Step, unit: str = "img") -> str:
    """Return how far a training is, in one line; ``unit`` is what it learns from."""
    share = step.step / step.total_steps
    return (
        f"{share:.0%}".replace("%", " %") + f" · step {step.step:,} of "
        f"{step.total_steps:,} · {step.images_per_s:.0f} {unit}/s · "
        f"{human_time(step.seconds_left)}"
    )


def _beside_first_line(field: QWidget) -> Qt.AlignmentFlag:
    """Return where the label of a field stands: beside its first line."""
    tall = field.findChild(SlidesField) is not None
    return Qt.AlignmentFlag.AlignTop if tall else Qt.AlignmentFlag.AlignVCenter


def _stacked(*widgets: QWidget) -> QWidget:
    """Put widgets into one place; one at a time is shown."""
    holder = QWidget()
    column = QVBoxLayout(holder)
    column.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        column.addWidget(widget)
    return holder


def _beside_label(label: QLabel, widget: QWidget) -> QWidget:
    holder = QWidget()
    row = QHBoxLayout(holder)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACING)
    row.addWidget(label)
    row.addWidget(widget, 1)
    return holder
