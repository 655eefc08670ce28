"""The choice of a model: the runs that were trained here, or any checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QSizePolicy, QWidget

from histomae.config import ON_FEATURES
from histomae.errors import HistomaeError
from histomae.files import runs_folder
from histomae.learn.runs import RunFolder
from napari_histomae._jobs import start_job
from napari_histomae._widgets.common import ElidedBox

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.events import Event
    from histomae.slides.grid import TileSpec
    from napari_histomae._jobs import Job
    from napari_histomae._session import Session

#: Runs offered without asking for a file.
RUNS_SHOWN = 8
CHOOSE = "Choose a file…"


class ModelChooser(ElidedBox):
    """The session's model, and others to take instead.

    Signals
    -------
    ready
        Another model is in use and :attr:`header` tells what it is, or none is.
    failed
        The file cannot be used: the exception.
    """

    ready = Signal()
    failed = Signal(object)

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.header: Any = None  # a CheckpointHeader, or a SlideHeader
        self._session = session
        self._job: Job | None = None
        self.setPlaceholderText("Choose a model…")
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setMinimumContentsLength(8)
        self.activated.connect(self._on_activated)
        self._changes.connect(self._on_model_changed)
        self._on_model_changed()

    # ---- what another kind of model has otherwise

    @property
    def _path(self) -> Path | None:
        return self._session.model_path

    @property
    def _changes(self) -> Any:
        return self._session.model_changed

    def _use(self, path: str | Path | None) -> None:
        self._session.use_model(path)

    def _newest(self) -> list[Path]:
        return newest_models()

    def _read(self, path: Path) -> Generator[Event, None, Any]:
        return _header_of(path)

    def _said(self) -> str:
        """Return what the header tells of the model, on one line."""
        assert self.header is not None
        side_px, mpp = self.header.tile_px, self.header.mpp
        if mpp is None:
            return (
                f"{self.header.architecture}, whole pictures in {side_px} px, without "
                "micrometres"
            )
        return (
            f"{self.header.architecture}, tiles of {side_px * mpp:.0f} µm "
            f"({side_px} px at {mpp:.3g} µm)"
        )

    # ---- what all have

    @property
    def spec(self) -> TileSpec | None:
        """The tiles that the model takes; None too if it takes whole pictures."""
        from histomae.slides.grid import TileSpec

        if self.header is None or self.header.mpp is None:
            return None
        return TileSpec(self.header.tile_px, self.header.mpp)

    @property
    def takes_pictures(self) -> bool:
        """Whether it was trained on whole pictures, which have no micrometres."""
        return self.header is not None and self.header.mpp is None

    def shut(self) -> None:
        """Listen no more."""
        self._changes.disconnect(self._on_model_changed)
        if self._job is not None:
            self._job.abandon()

    def choose_file(self) -> None:
        """Ask for a checkpoint and use it."""
        folder = self._path or runs_folder()
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Choose a model", str(folder), "Models (*.safetensors)"
        )
        if chosen:
            self._use(chosen)

    def showPopup(self) -> None:
        """List the newest runs first."""
        self._fill()
        super().showPopup()

    def _fill(self) -> None:
        current = self._path
        self.blockSignals(True)
        self.clear()
        if current is not None:
            self._add(current, self._title(current))
        for path in self._newest():
            if path != current:
                self._add(path, model_name(path))
        self.addItem(CHOOSE)
        self.setCurrentIndex(0 if current is not None else -1)
        self.blockSignals(False)
        self.setToolTip(self._tip())

    def _add(self, path: Path, title: str) -> None:
        self.addItem(title, str(path))

    def _title(self, path: Path) -> str:
        step = f" · step {self.header.step:,}" if self.header else ""
        return f"{model_name(path)}{step}"

    def _tip(self) -> str:
        path = self._path
        if path is None:
            return "A model is made in Train. Choose one, or a file of one."
        return str(path) if self.header is None else f"{self._said()}\n{path}"

    def _on_activated(self, index: int) -> None:
        path = self.itemData(index)
        if path is None:
            self._fill()  # shows the present model again, whatever is chosen
            self.choose_file()
        elif Path(path) != self._path:
            self._use(path)

    def _on_model_changed(self) -> None:
        if self._job is not None:
            self._job.abandon()
            self._job = None
        self.header = None
        self._fill()
        path = self._path
        if path is None:
            self.ready.emit()
            return
        # torch is loaded for it: not on the window's thread.
        self._job = start_job(
            self,
            lambda: self._read(path),
            name=f"Looking at {model_name(path)}",
            on_done=self._on_header,
            on_failed=self._on_failed,
        )

    def _on_header(self, header: Any) -> None:
        self.header = header
        self._fill()
        self.ready.emit()

    def _on_failed(self, error: Exception) -> None:
        self._use(None)
        self.failed.emit(error)


class SlideModelChooser(ModelChooser):
    """The session's model of whole slides (PAMA), and others to take instead."""

    @property
    def _path(self) -> Path | None:
        return self._session.slide_model_path

    @property
    def _changes(self) -> Any:
        return self._session.slide_model_changed

    def _use(self, path: str | Path | None) -> None:
        self._session.use_slide_model(path)

    def _newest(self) -> list[Path]:
        return newest_models(of_slides=True)

    def _read(self, path: Path) -> Generator[Event, None, Any]:
        from histomae.models.slide_checkpoint import read_slide_header

        yield from ()
        return read_slide_header(path)

    def _said(self) -> str:
        assert self.header is not None
        features = self.header.features
        at = "" if features.mpp is None else f", tiles at {features.mpp:.3g} µm"
        return f"{self.header.architecture}, on features of {features.encoder}{at}"


def _header_of(path: Path) -> Generator[Event, None, Any]:
    from histomae.models.checkpoint import read_header

    yield from ()
    return read_header(path)


def model_name(path: Path) -> str:
    """Return a short name of a checkpoint: that of its run, or of its file."""
    path = Path(path)
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.stem


def newest_models(folder: Path | None = None, *, of_slides: bool = False) -> list[Path]:
    """Return the checkpoints of the newest runs; those with a decoder first.

    Models of tiles, or those of whole slides.
    """
    found: list[tuple[float, Path]] = []
    for run in (folder or runs_folder()).glob("*/checkpoints"):
        if learns_slides(RunFolder(run.parent)) != of_slides:
            continue
        for name in ("last.safetensors", "encoder.safetensors"):
            try:
                found.append(((run / name).stat().st_mtime, run / name))
                break
            except OSError:
                continue
    return [path for _, path in sorted(found, reverse=True)[:RUNS_SHOWN]]


def learns_slides(run: RunFolder) -> bool:
    """Return whether a run is one of whole slides; one that cannot be read is not."""
    try:
        return run.config().method in ON_FEATURES
    except (HistomaeError, OSError):
        return False
