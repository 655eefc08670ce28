"""The Review dock: a model and its classifier on the slide, and tiles looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
)

from histomae.errors import HistomaeError
from napari_histomae import _review
from napari_histomae._review import Findings, MapChoice, Results
from napari_histomae._session import Session
from napari_histomae._teaching import EmbeddingCache
from napari_histomae._widgets.common import (
    SPACING,
    ElidedLabel,
    StateLine,
    dock_layout,
    why_disabled,
)
from napari_histomae._widgets.dock import LookingDock
from napari_histomae._widgets.hider import HIDE_KEY
from napari_histomae._widgets.hooks import ViewerHooks
from napari_histomae._widgets.map_panel import MapPanel
from napari_histomae._widgets.model import ModelChooser
from napari_histomae._widgets.review_files import ClassifierButton, ExportButton
from napari_histomae._widgets.tile_looker import TileLooker
from napari_histomae._widgets.tile_panel import TilePanel
from napari_histomae._widgets.tissue_fold import TissueFold

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    import napari

    from histomae.events import Event
    from histomae.infer.predict import Prediction
    from histomae.slides.slide import Slide

NO_SLIDE = "Open a slide first: drag a file into the window."
NO_MODEL = "Choose a model first, or make one in Train."
NO_CLASSES = "Run a classifier on the slide first."


class ReviewDock(LookingDock):
    """Run a model on the slide, see the maps, click tiles, export."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._session = Session.of(viewer)
        self._results = Results.of(self._session)
        self._cache = EmbeddingCache.of(self._session)
        self._open = False
        self._make_fields()
        self._connect()
        self._lay_out()
        self._open_up()
        self._on_model_ready()

    # ---- four paragraphs: fields, connections, layout; the initial values come last

    def _make_fields(self) -> None:
        self.model = ModelChooser(self._session)
        self.classifier = ClassifierButton(self._session)
        self.slide_label = ElidedLabel()
        self.first_step = QPushButton()
        self.run_button = QPushButton("Run on slide")
        self.cancel_button = QPushButton("Cancel")
        self.tissue = TissueFold(self._session)
        self.maps = MapPanel(self._session, self._results)
        self.tile = TilePanel()
        self.looker = TileLooker(self._session, self.tile, self)
        self.export_button = ExportButton()
        self.export_why = ElidedLabel()
        self.export_why.setEnabled(False)
        self.state = StateLine()
        self.hooks = ViewerHooks(
            self._session.viewer,
            on_click=self.looker.on_click,
            keys={
                HIDE_KEY: self.maps.hold_to_hide,
                "Left": lambda _: self.step(-1),
                "Right": lambda _: self.step(1),
            },
        )

    def _connect(self) -> None:
        self.model.ready.connect(self._on_model_ready)
        self.model.failed.connect(self.state.failed)
        self.classifier.failed.connect(self.state.failed)
        self.first_step.clicked.connect(self._on_first_step)
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.cancel)
        self.maps.wanted.connect(self._on_map_wanted)
        self.tile.step.connect(self.step)
        self.tile.teach_asked.connect(self._open_teach)
        self.looker.failed.connect(self.state.failed)
        self.export_button.done.connect(self.state.done)
        self.export_button.failed.connect(self.state.failed)

    def _lay_out(self) -> None:
        model, slide, export = QHBoxLayout(), QHBoxLayout(), QHBoxLayout()
        for row in (model, slide, export):
            row.setSpacing(SPACING)
        model.addWidget(self.model, 3)
        model.addWidget(self.classifier, 2)
        slide.addWidget(self.slide_label, 1)
        for button in (self.first_step, self.run_button, self.cancel_button):
            slide.addWidget(button)
        export.addWidget(self.export_button)
        export.addWidget(self.export_why, 1)
        form = QGridLayout()
        form.setHorizontalSpacing(SPACING)
        form.setVerticalSpacing(SPACING)
        form.setColumnStretch(1, 1)
        for number, (word, row) in enumerate((("Model", model), ("Slide", slide))):
            form.addWidget(QLabel(word), number, 0)
            form.addLayout(row, number, 1)
        line = QFrame()
        line.setFrameShape(QFrame.Shape.HLine)
        line.setEnabled(False)

        layout = dock_layout(self)
        layout.addLayout(form)
        layout.addWidget(self.tissue)
        layout.addWidget(self.maps)
        layout.addWidget(line)
        layout.addWidget(self.tile, 1)
        layout.addLayout(export)
        layout.addWidget(self.state)

    # ---- what holds now

    @property
    def slide(self) -> Slide | None:
        """The slide that is reviewed."""
        return self._session.slide

    @property
    def findings(self) -> Findings | None:
        """What the model and classifier in use have found on the slide."""
        return self._results.on(self.slide)

    @property
    def prediction(self) -> Prediction | None:
        """The classes of the slide's tiles."""
        return self.findings.prediction if self.findings else None

    # ---- running

    def run(self) -> None:
        """Look at every tile of the slide; the result arrives as layers."""
        slide, probe, load = self.slide, self._session.probe, self._load()
        if slide is None or load is None or self.running:
            return
        kind, look, cache = self.maps.choice.kind, self.tile.look, self._cache

        def work() -> Generator[Event, None, Findings]:
            found = yield from _review.survey(load, probe, slide, cache, look)
            if kind in _review.EXTRA and not found.has(MapChoice(kind)):
                found = yield from _review.survey_more(
                    load, slide, found, kind, look, probe
                )
            return found

        self._read(slide, work, fresh=True)

    def _on_map_wanted(self, kind: str) -> None:
        """Make a map that the slide was read without."""
        slide, found, load = self.slide, self.findings, self._load()
        if slide is None or found is None or load is None or self.running:
            return
        if kind not in _review.EXTRA:
            return
        look, probe = self.tile.look, self._session.probe
        self._read(
            slide,
            lambda: _review.survey_more(load, slide, found, kind, look, probe),
            fresh=False,
        )

    def _load(self) -> Callable[[], Any] | None:
        """Return what loads the model in use; to be called in a job."""
        path, session = self._session.model_path, self._session
        return None if path is None else lambda: session.encoder(path)

    def _read(
        self,
        slide: Slide,
        work: Callable[[], Generator[Event, None, Findings]],
        *,
        fresh: bool,
    ) -> None:
        """Run a survey in the background and show its map."""
        self._start(
            work,
            f"Reading {slide.name}",
            lambda found: self._on_found(slide, found, fresh=fresh),
        )

    def _on_found(self, slide: Slide, found: Findings, *, fresh: bool) -> None:
        if slide not in self._session.slides:
            self.state.idle(f"{slide.name} was closed meanwhile.")
            return
        self._results.put(slide, found)
        self._results.use_probe(slide, self._probe_id)
        self.state.done(_summary(slide, found))
        if slide is self.slide:
            chosen = self.maps.choice.kind
            if chosen not in _review.EXTRA:
                self.maps.choose_known()
            self.maps.show_map(fresh=fresh)
            if not found.has(self.maps.choice):  # chosen while this was made
                self._on_map_wanted(chosen)

    def _on_results_changed(self, slide_id: str) -> None:
        """Take what was found, here or in Teach."""
        if self.slide is not None and self.slide.slide_id == slide_id:
            self.maps.refresh()
            self._refresh()

    def _on_tissue_changed(self, slide_id: str) -> None:
        known = self._results.on(self.slide)
        if known and self.slide and self.slide.slide_id == slide_id:
            self.state.idle("The tissue was set anew. Run on slide to take it in.")

    # ---- tiles

    def step(self, by: int) -> None:
        """Go to the next (1) or the previous (-1) tile, from the least certain on."""
        if self.prediction is None:
            self.state.idle(NO_CLASSES)
        else:
            self.looker.step(self.prediction, by)

    # ---- what others change

    @property
    def _probe_id(self) -> str | None:
        return self._session.probe.probe_id if self._session.probe else None

    def _on_model_ready(self) -> None:
        if self.running:
            self.cancel()  # what another model finds is of no use
        self._results.use_model(self._session.model_path)
        self.looker.use_model(self.model.header)
        self._on_probe_changed()

    def _on_probe_changed(self) -> None:
        probe = self._session.probe
        self.tile.set_taught(probe is not None)
        self.tile.set_classes(probe.class_names if probe else ())
        self.classifier.refresh()
        self.looker.look_again()
        self._show_all(begin=True)

    def _on_slides_changed(self) -> None:
        self._results.keep_only(self._session.slides)
        self._on_slide_changed()

    def _on_slide_changed(self) -> None:
        self.looker.keep_only(self.slide)
        self._show_all()

    def _show_all(self, *, begin: bool = False) -> None:
        slide, probe, header = self.slide, self._session.probe, self.model.header
        self.slide_label.setText(slide.name if slide is not None else "none is open")
        self.slide_label.setToolTip(str(slide.path) if slide is not None else NO_SLIDE)
        self._results.use_probe(slide, self._probe_id)
        self.maps.offer(
            probe.class_names if probe else (),
            decoder=header is not None and header.decoder is not None,
            begin=begin,
        )
        self._refresh()
        if self.state.kind in ("idle", "done"):
            self.state.idle(self._what_next())

    def _refresh(self) -> None:
        first = self._first_step()
        self.first_step.setText(first)
        self.first_step.setVisible(bool(first))
        self.run_button.setVisible(not self.running and not first)
        self.cancel_button.setVisible(self.running)
        why_disabled(self.run_button, self._problem())
        nothing = "" if self.prediction else NO_CLASSES
        self.tile.set_steps(nothing)
        self.export_button.offer(self.slide, self.prediction)
        why_disabled(self.export_button, nothing)
        self.export_why.setText(nothing)

    def _problem(self) -> str:
        """Return why the slide cannot be read with this model; empty if it can."""
        slide, header, probe = self.slide, self.model.header, self._session.probe
        if slide is None:
            return NO_SLIDE
        if self._session.model_path is None:
            return NO_MODEL
        if header is None:
            return "The model is being opened."
        try:
            _review.check_slide(slide, header)
        except HistomaeError as error:
            return str(error)
        if probe and (probe.tile_px, probe.mpp) != (header.tile_px, header.mpp):
            return "This classifier belongs to another model. Choose its own."
        return ""

    def _what_next(self) -> str:
        if self._problem():
            return self._problem()
        if self.findings is None:
            return "Run on slide makes the maps. Click a tile to look closely."
        return "Click a tile to look closely."

    def _first_step(self) -> str:
        if self.slide is None:
            return "Open the sample slide"
        return "" if self._session.model_path is not None else "Choose a model…"

    def _on_first_step(self) -> None:
        if self.slide is None:
            self._session.viewer.open_sample("napari-histomae", "sample_slide")
        else:
            self.model.choose_file()

    def _open_teach(self) -> None:
        window = self._session.viewer.window
        window.add_plugin_dock_widget("napari-histomae", "Teach", tabify=True)

    # ---- files

    def use_classifier(self, path: str | Path) -> None:
        """Read a classifier and use it; say what is wrong with the file."""
        self.classifier.use(path)

    def export(self, path: str | Path) -> None:
        """Write the classes of the tiles for QuPath (.geojson) or as a table (.csv)."""
        self.export_button.export(path)

    # ---- coming and going

    def _open_up(self) -> None:
        """Listen to the session."""
        if not self._open:
            self._open = True
            session = self._session
            session.slides_changed.connect(self._on_slides_changed)
            session.slide_changed.connect(self._on_slide_changed)
            session.probe_changed.connect(self._on_probe_changed)
            session.tissue_changed.connect(self._on_tissue_changed)
            self._results.changed.connect(self._on_results_changed)

    def shut(self) -> None:
        """Stop what runs, give back keys and mouse, and listen no more."""
        if not self._open:
            return
        self._open = False
        self.hooks.detach()
        self.maps.show_overlays()
        self.looker.shut()
        self.tissue.shut()
        self._abandon()
        session = self._session
        session.slides_changed.disconnect(self._on_slides_changed)
        session.slide_changed.disconnect(self._on_slide_changed)
        session.probe_changed.disconnect(self._on_probe_changed)
        session.tissue_changed.disconnect(self._on_tissue_changed)
        self._results.changed.disconnect(self._on_results_changed)
        self.model.shut()


def _summary(slide: Slide, found: Findings) -> str:
    if found.prediction is not None:
        return f"{slide.name}: {len(found.prediction.cells):,} tiles read."
    return f"{slide.name}: attention, errors and likeness. Classes are taught in Teach."
