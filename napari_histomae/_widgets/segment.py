"""The Segment dock: nuclei, lesions and areas marked by a segmenter, and taught."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QFileDialog,
    QFrame,
    QGridLayout,
    QInputDialog,
    QLabel,
    QMenu,
    QPushButton,
    QSlider,
    QSpinBox,
)

from histomae.errors import HistomaeError
from histomae.events import Note, Step, result_of
from histomae.files import runs_folder
from napari_histomae import _layers, _segment
from napari_histomae._segment import REGIONS, VIEW, WHOLE, Ready
from napari_histomae._session import Session
from napari_histomae._widgets.class_list import ClassList
from napari_histomae._widgets.common import (
    ElidedBox,
    ElidedLabel,
    StateLine,
    beside,
    count,
    dock_layout,
    human_time,
    mute,
    share_done,
    why_disabled,
)
from napari_histomae._widgets.dock import LookingDock
from napari_histomae._widgets.hider import HIDE_KEY, Hider
from napari_histomae._widgets.hooks import ViewerHooks
from napari_histomae._widgets.model import ModelChooser
from napari_histomae._widgets.region_panel import not_written, with_suffix

if TYPE_CHECKING:
    import napari

    from histomae.events import Event
    from histomae.infer.segment import SegmentPlan, SlideMarks
    from histomae.slides.slide import Slide
    from napari_histomae._segment import Lesson

NO_SLIDE = "Open a slide first: drag a file into the window."
NO_SEGMENTER = "Choose a segmenter first, or teach one below."
NO_MODEL = "Choose a model first, or make one in Train."
NOT_TAUGHT = "Teach a segmenter first."
NOTHING = "Mark something first."
FILES = "Segmenters (*.segmenter *.safetensors)"
#: What may be marked, in words.
PARTS = {
    VIEW: "what is seen",
    REGIONS: "the drawn regions",
    WHOLE: "the whole slide",
}
EXPORTS = (
    ("For QuPath (GeoJSON)…", ".geojson", "GeoJSON (*.geojson)"),
    ("Table (CSV)…", ".csv", "Table (*.csv)"),
    ("Raster (TIFF)…", ".tiff", "TIFF (*.tiff)"),
)
#: What a segmenter is taught by.
DRAWN, TABLE, PICTURES = "regions", "table", "pictures"
#: The view is asked what it shows this much after it moved, ms.
SETTLE_MS = 200
EPOCHS, MOST_EPOCHS = 30, 500


class SegmentDock(LookingDock):
    """Mark a part of a slide with a segmenter; teach one; export what was found."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._session = Session.of(viewer)
        self._camera = _layers.camera(self._session.viewer)
        self._hider = Hider(self._session)
        self._ready: Ready | None = None
        self._path: Path | None = None
        self._plan: SegmentPlan | None = None
        self._problem = ""
        self._found: dict[str, SlideMarks] = {}
        self._open = False
        self._make_fields()
        self._connect()
        self._lay_out()
        self._open_up()
        self._look_around()

    # ---- four paragraphs: fields, connections, layout; the initial values come last

    def _make_fields(self) -> None:
        self.segmenter_label = ElidedLabel()
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip(
            "Choose a segmenter: the file that Teach below, or 'histomae segment "
            "teach', wrote."
        )
        self.slide_label = ElidedLabel()
        self.part = ElidedBox()
        for part, words in PARTS.items():
            self.part.addItem(words, part)
        self.part.setToolTip("What is marked. Regions are drawn in Teach.")
        self.mark_button = QPushButton("Mark")
        self.cancel_button = QPushButton("Cancel")
        self.estimate = ElidedLabel()
        mute(self.estimate)
        self.classes = ClassList(columns=1)
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setValue(round(100 * _layers.OVERLAY_OPACITY))
        self.hide_button = QPushButton("Hide")
        self.hide_button.setToolTip(
            f"Hold to see the bare tissue; the key {HIDE_KEY} does the same."
        )
        self.remove_button = QPushButton("Remove")
        self.export_button = QPushButton("Export")
        self.export_button.setMenu(QMenu(self.export_button))
        self.teach_title = QLabel("Teach a segmenter")
        self.model = ModelChooser(self._session)
        self.source = ElidedBox()
        self.source.setToolTip(
            "Areas are taught by regions drawn in Teach, two classes or more. Nuclei "
            "by their centres: a layer of points on the slide, or a table."
        )
        self.epochs = QSpinBox()
        self.epochs.setRange(1, MOST_EPOCHS)
        self.epochs.setValue(EPOCHS)
        self.epochs.setToolTip("How often each tile is looked at. More takes longer.")
        self.teach_button = QPushButton("Teach")
        self.save_button = QPushButton("Save…")
        self.score = QLabel()
        self.score.setWordWrap(True)
        self.score.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.state = StateLine()
        self.hooks = ViewerHooks(
            self._session.viewer,
            on_click=lambda _: None,
            keys={HIDE_KEY: self._hider.hold},
        )
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)

    def _connect(self) -> None:
        self.open_button.clicked.connect(self._on_open)
        self.part.activated.connect(lambda _: self._look_around())
        self.mark_button.clicked.connect(self.mark)
        self.cancel_button.clicked.connect(self.cancel)
        self.classes.changed.connect(self._restyle)
        self.opacity.valueChanged.connect(lambda _: self._restyle())
        self.hide_button.pressed.connect(self._hider.hide)
        self.hide_button.released.connect(self._hider.show)
        self.remove_button.clicked.connect(self.remove)
        for words, suffix, kind in EXPORTS:
            action = self.export_button.menu().addAction(words)
            action.triggered.connect(partial(self._on_export, suffix, kind))
        self.model.ready.connect(self._refresh)
        self.model.failed.connect(self.state.failed)
        self.source.activated.connect(lambda _: self._refresh())
        self.teach_button.clicked.connect(self._on_teach)
        self.save_button.clicked.connect(self._on_save)
        self._settle.timeout.connect(self._look_around)

    def _lay_out(self) -> None:
        form = QGridLayout()
        form.setColumnStretch(1, 1)
        rows = (
            ("Segmenter", beside(self.segmenter_label), self.open_button),
            ("Slide", beside(self.slide_label), None),
            ("Mark", beside(self.part), self.mark_button),
            ("", beside(self.estimate), self.cancel_button),
        )
        for number, (word, widget, button) in enumerate(rows):
            form.addWidget(QLabel(word), number, 0)
            form.addWidget(widget, number, 1)
            if button is not None:
                form.addWidget(button, number, 2)
        shown = QGridLayout()
        shown.setColumnStretch(1, 1)
        shown.addWidget(QLabel("Opacity"), 0, 0)
        shown.addWidget(self.opacity, 0, 1)
        for column, button in enumerate(
            (self.hide_button, self.remove_button, self.export_button), start=2
        ):
            shown.addWidget(button, 0, column)
        taught = QGridLayout()
        taught.setColumnStretch(1, 1)
        taught.addWidget(QLabel("Model"), 0, 0)
        taught.addWidget(self.model, 0, 1)
        taught.addWidget(QLabel("By"), 1, 0)
        taught.addWidget(self.source, 1, 1)
        taught.addWidget(QLabel("Passes"), 2, 0)
        buttons = (self.epochs, self.teach_button, self.save_button)
        taught.addWidget(beside(*buttons), 2, 1)
        line = QFrame()
        line.setFrameShape(QFrame.Shape.HLine)
        line.setEnabled(False)
        layout = dock_layout(self)
        layout.addLayout(form)
        layout.addWidget(self.classes)
        layout.addLayout(shown)
        layout.addWidget(line)
        layout.addWidget(self.teach_title)
        layout.addLayout(taught)
        layout.addWidget(self.score)
        layout.addStretch(1)
        layout.addWidget(self.state)

    # ---- what holds now

    @property
    def slide(self) -> Slide | None:
        """The slide that is worked on."""
        return self._session.slide

    @property
    def ready(self) -> Ready | None:
        """The segmenter in use."""
        return self._ready

    @property
    def found(self) -> SlideMarks | None:
        """What was found on the slide."""
        return None if self.slide is None else self._found.get(self.slide.slide_id)

    # ---- work that takes time

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Step):
            self.state.working(
                f"Teaching: {share_done(event.step, event.total_steps)} · loss "
                f"{event.loss:.2f} · {human_time(event.seconds_left)}",
                event.step,
                event.total_steps,
            )
        elif isinstance(event, Note):
            self.score.setText(event.text)
        else:
            super()._on_event(event)

    # ---- the segmenter

    def _on_open(self) -> None:
        folder = self._path or runs_folder()
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Choose a segmenter", str(folder), FILES
        )
        if chosen:
            self.use(chosen)

    def use(self, path: str | Path) -> None:
        """Read a segmenter and use it."""
        path = Path(path)
        if not self.running:
            self._start(
                lambda: _segment.open_segmenter(path),
                f"Opening {path.name}",
                lambda ready: self._on_ready(ready, path),
            )

    def _on_ready(self, ready: Ready, path: Path | None) -> None:
        self._ready, self._path = ready, path
        header = ready.segmenter.header
        self.classes.set_classes(header.class_names, header.class_colors)
        self._show_words()
        lines = header.scores.get("lines")
        self.score.setText("\n".join(map(str, lines)) if lines else "")
        what = ", ".join(header.class_names)
        self.state.done(f"It marks {what}. Press Mark.")
        self._look_around()

    # ---- marking

    def mark(self) -> None:
        """Mark the part that is chosen; the result arrives as layers."""
        slide, ready = self.slide, self._ready
        if slide is None or ready is None or self._plan is None or self.running:
            return
        planned = self._plan
        self._start(
            lambda: _segment.mark(planned, ready),
            f"Marking {slide.name}",
            partial(self._on_marked, slide),
        )

    def _on_marked(self, slide: Slide, marks: SlideMarks) -> None:
        if slide not in self._session.slides:
            self.state.idle(f"{slide.name} was closed meanwhile.")
            return
        self._found[slide.slide_id] = marks
        _layers.show_segmented(
            self._session.viewer,
            slide,
            marks,
            shown=self.classes.shown,
            opacity=self.opacity.value() / 100,
        )
        self._show_words()
        what = "area" if marks.areas else "object"
        self.state.done(f"{slide.name}: {count(len(marks.table), what)}.")
        self._refresh()

    def remove(self) -> None:
        """Take away the layers of what was found on the slide."""
        slide = self.slide
        if slide is None:
            return
        for layer in _layers.segmented_layers(self._session.viewer, slide):
            self._session.viewer.layers.remove(layer)
        self._found.pop(slide.slide_id, None)
        self._show_words()
        self._refresh()
        self.state.idle("Removed. Mark brings it back.")

    def _show_words(self) -> None:
        """Say how many there are of each class, and how large they are."""
        marks, names = self.found, self.classes.names
        if marks is None or marks.table.class_names != names:
            self.classes.set_words([""] * len(names))
            return
        sizes, many = marks.table.size_words(), marks.table.counts()
        self.classes.set_words(
            [
                sizes[name] if marks.areas else f"{many[name]:,} · {sizes[name]}"
                for name in names
            ]
        )

    def _restyle(self) -> None:
        """Draw the classes that are ticked, as strongly as is asked for."""
        slide, marks = self.slide, self.found
        if slide is None or marks is None:
            return
        table, shown = marks.table, self.classes.shown
        for layer in _layers.segmented_layers(self._session.viewer, slide):
            kind = _layers.entry_of(layer)["kind"]
            if kind == "areas":
                _layers.restyle_classes(layer, table.class_colors, shown)
            if kind == "centres":
                layer.shown = _layers.shown_centres(table.labels, shown)
            else:
                layer.opacity = self.opacity.value() / 100

    # ---- how long it would take

    def _look_around(self) -> None:
        """Plan what is chosen, and say how much that is before it is begun."""
        slide, ready, part = self.slide, self._ready, self.part.currentData()
        if self.running:
            self._settle.start()
            return
        self._plan, self._problem = None, ""
        if slide is not None and ready is not None:
            try:
                roi = _segment.roi_of(self._session.viewer, slide, part)
                if roi is None and not slide.is_picture:
                    self._start(
                        lambda: _segment.plan(slide, ready, None),
                        f"Looking for the tissue of {slide.name}",
                        self._on_planned,
                    )
                    return
                self._plan = result_of(_segment.plan(slide, ready, roi))
            except HistomaeError as error:
                self._problem = str(error)
        self._refresh()

    def _on_planned(self, planned: SegmentPlan) -> None:
        self._plan = planned
        self.state.idle("Press Mark.")
        self._refresh()

    def _on_moved(self) -> None:
        if self._ready is not None and self.part.currentData() == VIEW:
            self._settle.start()

    # ---- teaching

    def _on_teach(self) -> None:
        kind = self.source.currentData()
        if self.slide is None or self.running:
            return
        if kind == TABLE:
            self._ask_table(self.slide)
        elif kind == PICTURES:
            self._ask_pictures()
        elif kind == DRAWN:
            session = self._session
            self.teach(_segment.by_regions(session.viewer, session.slides))
        else:
            layer = self._session.viewer.layers[kind]
            self.teach(_segment.by_points(layer, self.slide))

    def _ask_table(self, slide: Slide) -> None:
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Centres of nuclei", str(slide.path.parent), "Tables (*.csv)"
        )
        if chosen:
            self.teach(_segment.by_table(Path(chosen), slide))

    def _ask_pictures(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "The folder of MoNuSeg or BUSI")
        if not chosen:
            return
        mpp = None
        if self.model.header is not None and not self.model.takes_pictures:
            mpp, agreed = QInputDialog.getDouble(
                self, "Marked pictures", "µm per pixel of them:", 0.25, 0.02, 10, 3
            )
            if not agreed:
                return
        self.teach(_segment.by_pictures(Path(chosen), mpp))

    def teach(self, lesson: Lesson) -> None:
        """Teach a segmenter; it is in use at once, and is saved by Save."""
        model, epochs = self._session.model_path, self.epochs.value()
        if model is None or self.running:
            return
        self._start(
            lambda: _segment.teach(model, lesson, epochs),
            f"Teaching by {lesson.words}",
            lambda ready: self._on_ready(ready, None),
        )

    # ---- files

    def _on_save(self) -> None:
        slide = self.slide
        folder = self._session.study_folder(slide) if slide else runs_folder()
        chosen, _ = QFileDialog.getSaveFileName(
            self, "Save the segmenter", str(folder / "taught.segmenter"), FILES
        )
        if chosen:
            self.save(with_suffix(Path(chosen), ".segmenter"))

    def save(self, path: Path) -> None:
        """Write the segmenter in use."""
        from histomae.models.checkpoint import save_checkpoint

        if self._ready is None:
            return
        segmenter = self._ready.segmenter
        try:
            save_checkpoint(path, segmenter.header, segmenter.tensors)
        except OSError as error:
            self.state.failed(not_written(path, error))
            return
        self._path = path
        self.state.done(f"The segmenter is saved as {path.name}.")
        self._refresh()

    def _on_export(self, suffix: str, kind: str) -> None:
        if self.slide is None:
            return
        name = self.slide.path.with_name(f"{self.slide.name}.marks{suffix}")
        chosen, _ = QFileDialog.getSaveFileName(self, "Export", str(name), kind)
        if chosen:
            self.export(Path(chosen).with_suffix(suffix))

    def export(self, path: Path) -> None:
        """Write what was found: .geojson for QuPath, .csv, or .tiff."""
        slide, marks = self.slide, self.found
        if slide is None or marks is None:
            return
        try:
            self.state.done(_segment.export(path, slide, marks))
        except OSError as error:
            self.state.failed(not_written(path, error))

    # ---- what others change

    def _refresh(self) -> None:
        slide, ready = self.slide, self._ready
        self.slide_label.setText(slide.name if slide is not None else "none is open")
        if ready is None:
            self.segmenter_label.setText("none is chosen")
        else:
            self.segmenter_label.setText(
                self._path.name if self._path else "taught now, not saved"
            )
            self.segmenter_label.setToolTip(_tip(ready, self._path))
        first = "" if slide is not None else NO_SLIDE
        first = first or ("" if ready is not None else NO_SEGMENTER) or self._problem
        self.estimate.setText(first or self._told())
        busy = "Wait until it is done, or press Cancel." if self.running else ""
        self.cancel_button.setEnabled(self.running)
        why_disabled(self.open_button, busy)
        unplanned = "" if self._plan is not None else "It is being planned."
        why_disabled(self.mark_button, first or busy or unplanned)
        nothing = "" if self.found is not None else NOTHING
        for button in (self.remove_button, self.export_button):
            why_disabled(button, busy or nothing)
        self._refresh_sources()
        no_model = "" if self._session.model_path is not None else NO_MODEL
        no_slide = "" if slide is not None else NO_SLIDE
        if self.source.currentData() == PICTURES:
            no_slide = ""
        why_disabled(self.teach_button, busy or no_slide or no_model)
        unsaved = "" if ready is not None else NOT_TAUGHT
        why_disabled(self.save_button, busy or unsaved)
        if self.state.kind in ("idle", "done") and first:
            self.state.idle(first)

    def _told(self) -> str:
        """Return how much is planned, and about how long it takes."""
        if self._plan is None or self._ready is None:
            return ""
        seconds = self._ready.seconds(self._plan)
        return f"{count(self._plan.tiles, 'tile')}, {_about(seconds)}"

    def _refresh_sources(self) -> None:
        """List what can teach; what was chosen stays so."""
        chosen = self.source.currentText()
        self.source.clear()
        self.source.addItem("areas: regions drawn in Teach", DRAWN)
        for layer in self._session.viewer.layers:
            ours = _layers.entry_of(layer).get("kind") in (None, "centres")
            if type(layer).__name__ == "Points" and ours and len(layer.data):
                self.source.addItem(f"nuclei: points of {layer.name}", layer.name)
        self.source.addItem("nuclei: a table of centres…", TABLE)
        self.source.addItem("marked pictures: MoNuSeg, BUSI…", PICTURES)
        self.source.setCurrentIndex(max(0, self.source.findText(chosen)))

    def _on_slides_changed(self) -> None:
        known = {slide.slide_id for slide in self._session.slides}
        self._found = {k: v for k, v in self._found.items() if k in known}
        self._show_words()
        self._look_around()

    # ---- coming and going

    def _open_up(self) -> None:
        self._open = True
        for moved in (self._camera.events.zoom, self._camera.events.center):
            moved.connect(self._on_moved)
        self._session.slides_changed.connect(self._on_slides_changed)
        self._session.slide_changed.connect(self._on_slides_changed)

    def shut(self) -> None:
        """Stop what runs, give back keys, and listen no more."""
        if not self._open:
            return
        self._open = False
        self._settle.stop()
        self.hooks.detach()
        self._hider.show()
        self._abandon()
        for moved in (self._camera.events.zoom, self._camera.events.center):
            moved.disconnect(self._on_moved)
        self._session.slides_changed.disconnect(self._on_slides_changed)
        self._session.slide_changed.disconnect(self._on_slides_changed)
        self.model.shut()

    def showEvent(self, event: Any) -> None:
        """Look again: regions may have been drawn meanwhile."""
        super().showEvent(event)
        if self._open:
            self._look_around()


def _about(seconds: float) -> str:
    """Return how long something takes, as a person says it."""
    if seconds < 3:
        return "a moment"
    return human_time(seconds).removesuffix(" left")


def _tip(ready: Ready, path: Path | None) -> str:
    header = ready.segmenter.header
    where = "whole pictures"
    if header.mpp is not None:
        where = f"tiles of {header.tile_px * header.mpp:.0f} µm at {header.mpp:.3g} µm"
    return f"{', '.join(header.class_names)}; {where}" + (f"\n{path}" if path else "")
