"""The Teach dock: draw regions, give them classes, train a classifier, see its map."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QMenu,
    QPushButton,
    QWidget,
)

from histomae.events import Heartbeat, Note
from napari_histomae import _layers
from napari_histomae._book import RegionBook
from napari_histomae._session import Session
from napari_histomae._teaching import (
    Counts,
    Drawn,
    EmbeddingCache,
    count_tiles,
    find_labelled_images,
    read_slide,
    train_classifier,
    train_on_images,
)
from napari_histomae._widgets.common import (
    SPACING,
    ElidedLabel,
    StateLine,
    count,
    dock_layout,
    mute,
    why_disabled,
)
from napari_histomae._widgets.dock import WorkingDock
from napari_histomae._widgets.model import ModelChooser, newest_models
from napari_histomae._widgets.region_panel import (
    RegionPanel,
    not_written,
    push_button,
    side_by_side,
    with_suffix,
)
from napari_histomae._widgets.scores import ConfusionPlot

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import napari

    from histomae.events import Event
    from histomae.infer.predict import Prediction
    from histomae.models.probe import Probe
    from histomae.slides.slide import Slide
    from napari_histomae._teaching import LabelledImages

Color = tuple[int, int, int]

#: Labelled tiles are counted this much after the last change, ms.
RECOUNT_MS = 120
CLASSIFIER_FILES = "Classifiers (*.safetensors)"


class TeachDock(WorkingDock):
    """Regions of classes, a classifier of them, and how good it is."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._session = Session.of(napari_viewer)
        self._viewer = self._session.viewer
        self._book = RegionBook(self._session)
        self._cache = EmbeddingCache.of(self._session)
        self._counts: Counts | None = None
        self._job_began = 0.0
        self._notes: list[str] = []
        self._taught_revision: int | None = None
        self._make_fields()
        self._connect()
        self._set_first_values()
        self._lay_out()

    # ---- one paragraph each: fields, connections, first values, layout

    def _make_fields(self) -> None:
        self.first_step = _FirstStep()
        self.model = ModelChooser(self._session)
        self.regions = RegionPanel(self._session, self._book)
        self.train = push_button(
            "Train", "Train a classifier on the tiles in the regions."
        )
        self.train.setMinimumWidth(90)
        self.images = push_button(
            "Labelled images…",
            "Train a classifier on pictures instead: a public data set such as BRACS, "
            "your own in a folder for each class, or a table (path,label,patient).",
        )
        self.images.setMenu(QMenu(self.images))
        self.summary = ElidedLabel()
        self.score = QLabel()
        self.score.setWordWrap(True)
        self.score.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.caveat = QLabel()
        self.caveat.setWordWrap(True)
        mute(self.caveat)
        self.plot = ConfusionPlot()
        self.show_map = push_button(
            "Show on slide", "Class of every tile on the tissue."
        )
        self.save_classifier = push_button("Save classifier…", "")
        self.load_classifier = push_button("Load classifier…", "")
        self.why = ElidedLabel()
        self.state = StateLine()
        self._recount = QTimer(self)
        self._recount.setSingleShot(True)
        self._recount.setInterval(RECOUNT_MS)

    def _connect(self) -> None:
        self._book.changed.connect(self._on_book_changed)
        self._book.said.connect(self.state.done)
        self._book.failed.connect(self.state.failed)
        self._session.slide_changed.connect(self._on_book_changed)
        self._session.probe_changed.connect(self._on_probe_changed)
        self.first_step.button.clicked.connect(self._on_first_step)
        self.model.ready.connect(self._on_model_ready)
        self.model.failed.connect(self.state.failed)
        self.regions.said.connect(self.state.done)
        self.regions.hinted.connect(self.state.idle)
        self.regions.failed.connect(self.state.failed)
        self.regions.answer_keys_in(self)
        self.train.clicked.connect(self._on_train)
        menu = self.images.menu()
        menu.addAction("Folder…").triggered.connect(self._on_image_folder)
        menu.addAction("Table (CSV)…").triggered.connect(self._on_image_table)
        self.show_map.clicked.connect(self._on_show_map)
        self.save_classifier.clicked.connect(self._on_save_classifier)
        self.load_classifier.clicked.connect(self._on_load_classifier)
        self._recount.timeout.connect(self._on_recount)

    def _set_first_values(self) -> None:
        self._book.sync()
        self._on_recount()
        self._on_probe_changed()
        if not self.state.text:
            self.state.idle("Nothing is taught yet.")

    def _lay_out(self) -> None:
        layout = dock_layout(self)
        layout.addWidget(self.first_step)
        layout.addLayout(side_by_side(QLabel("Model"), (self.model, 1)))
        layout.addWidget(self.regions)
        layout.addLayout(side_by_side((self.train, 1), self.images))
        layout.addWidget(self.summary)
        layout.addWidget(self.score)
        layout.addWidget(self.caveat)
        layout.addWidget(self.plot, 1)
        layout.addLayout(
            side_by_side(self.show_map, self.save_classifier, self.load_classifier)
        )
        layout.addWidget(self.why)
        layout.addStretch(0)
        layout.addWidget(self.state)

    # ---- what the form says

    @property
    def book(self) -> RegionBook:
        """The regions and classes."""
        return self._book

    @property
    def slide(self) -> Slide | None:
        """The slide that is worked on."""
        return self._session.slide

    # ---- the state of the form follows

    def _on_book_changed(self) -> None:
        self._recount.start()
        self._restyle_map()
        self._refresh()

    def _on_recount(self) -> None:
        self._counts = count_tiles(self._drawn(), self.model.spec, self._book.classes)
        self.regions.show_tiles(self._counts.tiles)
        self._refresh()

    def _drawn(self) -> list[Drawn]:
        return [Drawn(one.slide, tuple(one.annotations)) for one in self._book.slides]

    def _refresh(self) -> None:
        """Enable what can be done, and say why the rest cannot."""
        self._show_first_step()
        busy = "Wait until it is done, or press Cancel." if self.running else ""
        problem = self._why_not_train()
        self.train.setText("Cancel" if self.running else "Train")
        why_disabled(self.train, "" if self.running else problem)
        no_model = "" if self._session.model_path else "Choose a model first."
        why_disabled(self.images, busy or no_model)
        self.summary.setText(problem or self._what_is_taught())
        no_map = self._why_no_map()
        why_disabled(self.show_map, busy or no_map)
        no_probe = "" if self._session.probe else "Train first, or load a classifier."
        why_disabled(self.save_classifier, busy or no_probe)
        why_disabled(self.load_classifier, busy)
        self.why.setText("" if self.running else no_map)
        self.why.setVisible(bool(self.why.text()))

    def _why_not_train(self) -> str:
        if self.slide is None:
            return "Open a slide first."
        if self._session.model_path is None:
            return "Choose a model first."
        if self.model.takes_pictures:
            return "This model takes whole pictures. Choose one trained on slides."
        counts = self._counts
        if counts is None:
            return ""
        refused = f" {counts.refused[0][1]}" if counts.refused else ""
        taught = counts.taught
        if not taught:
            return refused.strip() or "Draw a region of each class first."
        if len(taught) == 1:
            return f"Only {taught[0]} is drawn. Draw a second class.{refused}"
        return ""

    def _what_is_taught(self) -> str:
        counts = self._counts
        if counts is None:
            return ""
        where = count(counts.slides, "slide")
        told = f"{count(sum(counts.tiles.values()), 'tile')} on {where}"
        if self._taught_revision not in (None, self._book.revision):
            told += ", changed since"
        if counts.refused:
            told += f", not {counts.refused[0][0].name}: {counts.refused[0][1]}"
        if counts.single:
            told += f" · 1 region only: {', '.join(counts.single)}"
        return told

    def _why_no_map(self) -> str:
        if self._session.probe is None:
            return "Train first, or load a classifier, to see a map."
        if self.slide is None:
            return "Open a slide to see a map of it."
        if self._session.model_path is None:
            return "Choose the classifier's model to see a map."
        return ""

    # ---- the first step

    def _show_first_step(self) -> None:
        slide = self.slide
        if slide is None:
            self.first_step.say("Drag a slide in, or", "Open the sample slide")
        elif not slide.has_mpp:
            self.first_step.say(
                f"{slide.name} has no pixel size.", "Enter the pixel size…"
            )
        elif self._session.model_path is None:
            self.first_step.say("First choose what Train made.", "Choose a model…")
        elif not self._book.slides:
            self.first_step.say("Then show it what is what.", "Draw a region")
        else:
            self.first_step.setVisible(False)

    def _on_first_step(self) -> None:
        if self.slide is None:
            self._open_sample()
        elif not self.slide.has_mpp:
            self._ask_mpp(self.slide)
        elif self._session.model_path is not None:
            self.regions.draw.click()
        elif newest_models():
            self.model.showPopup()
        else:
            self.model.choose_file()

    def _open_sample(self) -> None:
        self._start(_sample_path, "Making the sample slide", self._on_sample)

    def _on_sample(self, path: Path) -> None:
        self.state.done("The sample slide is open. It is synthetic.")
        self._session.open_paths([path])

    def _ask_mpp(self, slide: Slide) -> None:
        from napari_histomae._widgets.mpp import ask_mpp

        answer = ask_mpp(slide, self)
        if answer is not None:
            self._session.settle_mpp(slide, answer)

    # ---- the model

    def _on_model_ready(self) -> None:
        self.regions.spec = self.model.spec
        self._on_recount()

    def load_regions_from(self, path: Path) -> None:
        """Add the regions of a file to the slide that is worked on."""
        self.regions.load_from(path)

    # ---- work that takes time

    def _start(
        self,
        make: Callable[[], Generator[Event, None, Any]],
        name: str,
        on_done: Callable[[Any], Any],
    ) -> None:
        self._notes = []
        self._job_began = time.monotonic()
        super()._start(make, name, on_done)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Note):
            self._notes.append(event.text)
        else:
            super()._on_event(event)

    # ---- the classifier

    def _on_train(self) -> None:
        if self.running:
            self.cancel()
            return
        drawn, classes = self._drawn(), self._book.classes
        load = partial(self._session.encoder, self._session.model_path)
        revision = self._book.revision
        self._start(
            lambda: train_classifier(load, drawn, classes, self._cache),
            "Training the classifier",
            lambda probe: self._on_trained(probe, revision),
        )

    def _on_image_folder(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "The folder of the images")
        if chosen:
            self.teach_labelled_images(Path(chosen))

    def _on_image_table(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(
            self, "The table of the images", str(Path.home()), "Tables (*.csv)"
        )
        if chosen:
            self.teach_labelled_images(Path(chosen))

    def teach_labelled_images(self, path: Path) -> None:
        """Find out what labelled images a path holds, and train on them.

        What it does not tell is asked: which classes, and the pixel size.
        """
        self._start(
            lambda: find_labelled_images(path), f"Reading {path.name}", self._on_images
        )

    def _on_images(self, found: LabelledImages) -> None:
        task, mpp = found.task, None
        if len(found.tasks) > 1:
            task, agreed = QInputDialog.getItem(
                self, "Labelled images", "Which classes?", found.tasks, 0, False
            )
            if not agreed:
                return
        if found.lacks_mpp:
            asked = "µm per pixel of the images:"
            mpp, agreed = QInputDialog.getDouble(
                self, "Labelled images", asked, 0.25, 0.02, 10, 3
            )
            if not agreed:
                return
        load = partial(self._session.encoder, self._session.model_path)
        self._start(
            lambda: train_on_images(load, found, task, mpp),
            f"Training on {found.name}",
            lambda probe: self._on_trained(probe, None),
        )

    def _on_trained(self, probe: Probe, revision: int | None) -> None:
        self._taught_revision = revision
        self._session.use_probe(probe)
        took = time.monotonic() - self._job_began
        tiles = sum(probe.scores.get("tiles", {}).values())
        told = f"Trained on {count(tiles, 'tile')} in {took:.0f} s."
        self.state.done(" ".join([told, *self._notes]))

    def _on_probe_changed(self) -> None:
        probe = self._session.probe
        if probe is None:
            self.score.setText("")
            self.plot.show_scores([], None, {})
        else:
            scores = probe.scores
            self.score.setText(_score_text(scores, self._session.probe_path))
            self.score.setToolTip(_score_tip(scores))
            self.caveat.setText(scores.get("caveat", ""))
            self.plot.show_scores(
                probe.class_names, scores.get("confusion"), scores.get("tiles", {})
            )
        self.score.setVisible(probe is not None)
        self.plot.setVisible(bool(probe and probe.scores.get("confusion")))
        self.caveat.setVisible(bool(probe is not None and self.caveat.text()))
        self._refresh()

    def _on_save_classifier(self) -> None:
        slide = self.slide
        folder = self._session.study_folder(slide) if slide else Path.home()
        folder.mkdir(parents=True, exist_ok=True)
        chosen, _ = QFileDialog.getSaveFileName(
            self,
            "Save the classifier",
            str(folder / "classifier.safetensors"),
            CLASSIFIER_FILES,
        )
        if chosen:
            self.save_classifier_to(with_suffix(Path(chosen), ".safetensors"))

    def save_classifier_to(self, path: Path) -> None:
        """Write the classifier in use to a file."""
        probe = self._session.probe
        if probe is None:
            return
        try:
            probe.save(path)
        except OSError as error:
            self.state.failed(not_written(path, error))
            return
        self._session.use_probe(probe, path)
        self.state.done(f"The classifier is saved as {path.name}.")

    def _on_load_classifier(self) -> None:
        slide = self.slide
        folder = self._session.study_folder(slide) if slide else Path.home()
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Load a classifier", str(folder), CLASSIFIER_FILES
        )
        if chosen:
            self.load_classifier_from(Path(chosen))

    def load_classifier_from(self, path: Path) -> None:
        """Use the classifier of a file."""

        def read() -> Generator[Event, None, Any]:
            from histomae.models.probe import Probe

            yield from ()
            return Probe.load(path)

        def loaded(probe: Probe) -> None:
            self._taught_revision = None
            self._session.use_probe(probe, path)
            names = ", ".join(probe.class_names)
            self.state.done(f"{path.name} is in use: {names}.")

        self._start(read, f"Loading {path.name}", loaded)

    # ---- the map

    def _on_show_map(self) -> None:
        slide, probe = self.slide, self._session.probe
        if slide is None or probe is None:
            return
        load = partial(self._session.encoder, self._session.model_path)
        self._start(
            lambda: read_slide(load, probe, slide, self._cache),
            f"Reading {slide.name}",
            partial(self._on_read, slide, probe),
        )

    def _on_read(self, slide: Slide, probe: Probe, prediction: Prediction) -> None:
        if slide not in self._session.slides:
            self.state.idle(f"{slide.name} was closed meanwhile. Open it again.")
            return
        _layers.show_classes(
            self._viewer,
            slide,
            prediction.class_map(),
            map_name(slide),
            prediction.class_names,
            self._colours_now(probe),
        )
        self._book.raise_layers()
        if self._session.probe is not probe:
            self._session.use_probe(probe)
        areas = prediction.area_mm2()
        told = " · ".join(f"{name} {area:.2g} mm²" for name, area in areas.items())
        self.state.done(f"{told}. The map lies on {slide.name}.")

    def _colours_now(self, probe: Probe) -> list[Color]:
        """Return a probe's colours; those of the table where it knows the class."""
        classes = self._book.classes
        return [
            classes.color_of(name) if name in classes.names else own
            for name, own in zip(probe.class_names, probe.class_colors, strict=True)
        ]

    def _restyle_map(self) -> None:
        """Give a class the same colour on the map as in the table."""
        probe = self._session.probe
        if probe is None:
            return
        colours = self._colours_now(probe)
        if list(probe.class_colors) == colours:
            return
        from dataclasses import replace

        self._session.use_probe(
            replace(probe, class_colors=tuple(colours)), self._session.probe_path
        )
        for slide in self._session.slides:
            for layer in _layers.layers_of(self._viewer, slide, "classes"):
                if layer.name == map_name(slide):
                    _layers.restyle_classes(layer, colours)

    # ---- coming and going

    def showEvent(self, event: Any) -> None:
        """Take the keys while the dock is in front."""
        super().showEvent(event)
        if not self._book.is_closed and not self.regions.has_keys:
            self.regions.take_keys()

    def hideEvent(self, event: Any) -> None:
        """Give the keys back, and save: this may be the end."""
        super().hideEvent(event)
        self.regions.give_keys_back()
        self._book.save()

    def shut(self) -> None:
        """Save the regions, stop the work, listen no more."""
        if self._book.is_closed:
            return
        self._book.stop_drawing()
        self.regions.shut()
        self._book.close()
        self._recount.stop()
        self._abandon()
        self.model.shut()
        self._session.slide_changed.disconnect(self._on_book_changed)
        self._session.probe_changed.disconnect(self._on_probe_changed)


class _FirstStep(QWidget):
    """What to do first, and the button that does it."""

    def __init__(self) -> None:
        super().__init__()
        self.label = QLabel()
        self.label.setWordWrap(True)
        self.button = QPushButton()
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACING)
        row.addWidget(self.label, 1)
        row.addWidget(self.button)

    def say(self, text: str, button: str) -> None:
        """Show the step."""
        self.label.setText(text)
        self.button.setText(button)
        self.setVisible(True)


def map_name(slide: Slide) -> str:
    """Return the name of the layer with the map of classes of a slide."""
    return f"{slide.name} · classes"


def _sample_path() -> Generator[Event, None, Path]:
    """Make the sample slide, unless it is there."""
    from histomae.slides.sample import sample_slide

    yield Heartbeat()
    return Path(sample_slide().slide_path)


def _score_text(scores: dict[str, Any], path: Path | None) -> str:
    """Return how good a classifier is, and how that was measured."""
    told = scores.get("summary") or "This file does not say how good the classifier is."
    return f"{path.name}: {told}" if path is not None else str(told)


def _score_tip(scores: dict[str, Any]) -> str:
    regions, tiles = scores.get("regions", {}), scores.get("tiles", {})
    group = scores.get("grouped_by", "region")
    lines = [
        f"{name}: {count(regions.get(name, 0), group)}, {count(number, 'tile')}"
        for name, number in tiles.items()
    ]
    return "\n".join(lines)
