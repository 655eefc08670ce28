"""Buttons of Review that read and write files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QMenu, QPushButton, QSizePolicy, QWidget

from histomae.errors import HistomaeError
from napari_histomae import _review

if TYPE_CHECKING:
    from histomae.infer.predict import Prediction
    from histomae.slides.slide import Slide
    from napari_histomae._session import Session

CLASSIFIERS = "Classifiers (*.probe *.safetensors)"
GEOJSON, CSV = ".geojson", ".csv"
KINDS = {GEOJSON: "GeoJSON (*.geojson)", CSV: "Table (*.csv)"}


class ClassifierButton(QPushButton):
    """Says which classifier is in use, and takes another one.

    Signals
    -------
    failed
        A file cannot be used: the exception.
    """

    failed = Signal(object)

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session = session
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        menu = QMenu(self)
        menu.addAction("Choose a classifier…").triggered.connect(self.ask)
        self.drop_action = menu.addAction("Without a classifier")
        self.drop_action.triggered.connect(lambda: self._session.use_probe(None))
        self.setMenu(menu)
        self.refresh()

    def refresh(self) -> None:
        """Say which one is in use."""
        probe, path = self._session.probe, self._session.probe_path
        self.drop_action.setEnabled(probe is not None)
        if probe is None:
            self.setText("no classifier")
            self.setToolTip("Classes are taught in Teach. Or choose a file of them.")
            return
        self.setText(f"+ {len(probe.class_names)} classes")
        names = ", ".join(probe.class_names)
        self.setToolTip(f"{names}\n{path}" if path else names)

    def ask(self) -> None:
        """Ask for a file and use it."""
        slide, known = self._session.slide, self._session.probe_path
        folder = self._session.study_folder(slide) if slide else Path.home()
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Choose a classifier", str(known or folder), CLASSIFIERS
        )
        if chosen:
            self.use(chosen)

    def use(self, path: str | Path) -> None:
        """Use the classifier of a file."""
        try:
            self._session.load_probe(path)
        except HistomaeError as error:
            self.failed.emit(error)


class ExportButton(QPushButton):
    """Writes the classes of the tiles of a slide.

    Signals
    -------
    done, failed
        What was written, or why not: a sentence.
    """

    done = Signal(str)
    failed = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Export", parent)
        self._slide: Slide | None = None
        self._prediction: Prediction | None = None
        menu = QMenu(self)
        for words, suffix in (
            ("Tiles for QuPath (GeoJSON)…", GEOJSON),
            ("Table of tiles (CSV)…", CSV),
        ):
            action = menu.addAction(words)
            action.triggered.connect(lambda _, suffix=suffix: self.ask(suffix))
        self.setMenu(menu)

    def offer(self, slide: Slide | None, prediction: Prediction | None) -> None:
        """Take what can be written."""
        self._slide, self._prediction = slide, prediction

    def ask(self, suffix: str) -> None:
        """Ask for a place and write there."""
        if self._slide is None:
            return
        name = self._slide.path.with_name(f"{self._slide.name}{suffix}")
        chosen, _ = QFileDialog.getSaveFileName(
            self, "Export the tiles", str(name), KINDS[suffix]
        )
        if chosen:
            self.export(Path(chosen).with_suffix(suffix))

    def export(self, path: str | Path) -> None:
        """Write for QuPath (.geojson) or as a table (.csv)."""
        if self._prediction is None or self._slide is None:
            return
        path = Path(path)
        try:
            tiles = _review.export(path, self._slide, self._prediction)
        except OSError as error:
            reason = error.strerror or str(error)
            self.failed.emit(
                f"{path.name} was not written ({reason}). Choose another folder, or "
                "free some room."
            )
            return
        self.done.emit(f"{tiles:,} tiles written to {path.name}.")
