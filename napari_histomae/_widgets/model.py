"""The choice of a model: the runs that were trained here, or any checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QSizePolicy, QWidget

from histomae.files import runs_folder
from napari_histomae._jobs import start_job
from napari_histomae._widgets.common import ElidedBox

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.events import Event
    from histomae.models.checkpoint import CheckpointHeader
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
        self.header: CheckpointHeader | None = None
        self._session = session
        self._job: Job | None = None
        self.setPlaceholderText("Choose a model…")
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setMinimumContentsLength(8)
        self.activated.connect(self._on_activated)
        session.model_changed.connect(self._on_model_changed)
        self._on_model_changed()

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
        self._session.model_changed.disconnect(self._on_model_changed)
        if self._job is not None:
            self._job.silence()
            self._job.cancel()

    def choose_file(self) -> None:
        """Ask for a checkpoint and use it."""
        folder = self._session.model_path or runs_folder()
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Choose a model", str(folder), "Models (*.safetensors)"
        )
        if chosen:
            self._session.use_model(chosen)

    def showPopup(self) -> None:
        """List the newest runs first."""
        self._fill()
        super().showPopup()

    def _fill(self) -> None:
        current = self._session.model_path
        self.blockSignals(True)
        self.clear()
        if current is not None:
            self._add(current, self._title(current))
        for path in newest_models():
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
        path = self._session.model_path
        if path is None:
            return "A model is made in Train. Choose one, or a file of one."
        if self.header is None:
            return str(path)
        side_px, mpp = self.header.tile_px, self.header.mpp
        if mpp is None:
            return (
                f"{self.header.architecture}, whole pictures in {side_px} px, without "
                f"micrometres\n{path}"
            )
        return (
            f"{self.header.architecture}, tiles of {side_px * mpp:.0f} µm "
            f"({side_px} px at {mpp:.3g} µm)\n{path}"
        )

    def _on_activated(self, index: int) -> None:
        path = self.itemData(index)
        if path is None:
            self._fill()  # shows the present model again, whatever is chosen
            self.choose_file()
        elif Path(path) != self._session.model_path:
            self._session.use_model(path)

    def _on_model_changed(self) -> None:
        if self._job is not None:
            self._job.silence()
            self._job.cancel()
            self._job = None
        self.header = None
        self._fill()
        path = self._session.model_path
        if path is None:
            self.ready.emit()
            return
        # torch is loaded for it: not on the window's thread.
        self._job = start_job(
            self,
            lambda: _header_of(path),
            name=f"Looking at {model_name(path)}",
            on_done=self._on_header,
            on_failed=self._on_failed,
        )

    def _on_header(self, header: CheckpointHeader) -> None:
        self.header = header
        self._fill()
        self.ready.emit()

    def _on_failed(self, error: Exception) -> None:
        self._session.use_model(None)
        self.failed.emit(error)


def _header_of(path: Path) -> Generator[Event, None, Any]:
    from histomae.models.checkpoint import read_header

    yield from ()
    return read_header(path)


def model_name(path: Path) -> str:
    """Return a short name of a checkpoint: that of its run, or of its file."""
    path = Path(path)
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.stem


def newest_models(folder: Path | None = None) -> list[Path]:
    """Return the checkpoints of the newest runs; those with a decoder first."""
    found: list[tuple[float, Path]] = []
    for run in (folder or runs_folder()).glob("*/checkpoints"):
        for name in ("last.safetensors", "encoder.safetensors"):
            try:
                found.append(((run / name).stat().st_mtime, run / name))
                break
            except OSError:
                continue
    return [path for _, path in sorted(found, reverse=True)[:RUNS_SHOWN]]
