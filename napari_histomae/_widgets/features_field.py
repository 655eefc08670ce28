"""Choosing what a model of whole slides learns from: files of tile features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from histomae.events import Event, Progress
from napari_histomae import _whole_slide
from napari_histomae._jobs import Job, describe, start_job
from napari_histomae._widgets.common import (
    SPACING,
    ElidedLabel,
    FieldMark,
    count,
    share_done,
    why_disabled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from napari_histomae._session import Session

NONE_YET = "none yet: drop feature files here, or embed the open slides"
NO_SLIDES = "Open slides first."
NO_ENCODER = (
    "Choose an encoder of tiles in Review first, or train one: with another method."
)


@dataclass(frozen=True)
class FeatureSurvey:
    """What is known of the chosen files: how many, and of how many tiles."""

    slides: int
    tiles: int
    encoder: str


class FeaturesField(QWidget):
    """Feature files, from a disk or made of the open slides; ``changed`` tells of new.

    Slides are embedded by the session's encoder, in the background; those that were
    embedded before are not embedded again.
    """

    changed = Signal()

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session = session
        self._job: Job | None = None
        self.paths: tuple[Path, ...] = ()
        self.survey: FeatureSurvey | None = None
        self.problem = ""
        self.label = ElidedLabel(NONE_YET)
        self.mark = FieldMark()
        self.embed_button = QPushButton("Embed open slides")
        self.embed_button.setToolTip(
            "Turn the tiles of the open slides into features, by the encoder that is "
            "chosen in Review"
        )
        self.cancel_button = QPushButton("Cancel")
        self.files_button = QPushButton("Files…")
        self.files_button.setToolTip("Files of 'histomae embed', TRIDENT or CLAM")
        self.folder_button = QPushButton("Folder…")
        self.folder_button.setToolTip("Every feature file in a folder")
        self.embed_button.clicked.connect(self.embed)
        self.cancel_button.clicked.connect(self.cancel)
        self.files_button.clicked.connect(self._on_files)
        self.folder_button.clicked.connect(self._on_folder)
        session.slides_changed.connect(self._refresh)
        session.model_changed.connect(self._refresh)
        row = QHBoxLayout()
        row.setSpacing(SPACING)
        row.addWidget(self.embed_button, 2)
        row.addWidget(self.cancel_button, 2)
        row.addWidget(self.files_button, 1)
        row.addWidget(self.folder_button, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.label)
        layout.addWidget(self.mark)
        layout.addLayout(row)
        self._refresh()

    @property
    def running(self) -> bool:
        """Whether slides are embedded, or files looked at."""
        return self._job is not None

    def choose(self, paths: Sequence[str | Path]) -> None:
        """Take feature files, or folders of them."""
        chosen = tuple(Path(path) for path in paths)
        self.paths, self.survey, self.problem = chosen, None, ""
        self._start(lambda: look_at(chosen), "Reading features", self._on_surveyed)

    def embed(self) -> None:
        """Embed the open slides and take their features."""
        session, path = self._session, self._session.model_path
        slides = tuple(session.slides)
        self._start(
            lambda: _whole_slide.embed_all(slides, lambda: session.encoder(path)),
            "Embedding slides",
            self.choose,
        )

    def cancel(self) -> None:
        """Stop embedding; slides that are done stay done."""
        if self._job is not None:
            self._job.cancel()

    def shut(self) -> None:
        """Stop, and listen no more."""
        if self._job is not None:
            self._job.abandon()
        self._session.slides_changed.disconnect(self._refresh)
        self._session.model_changed.disconnect(self._refresh)

    def _start(
        self,
        work: Callable[[], Generator[Event, None, Any]],
        name: str,
        on_done: Callable[[Any], None],
    ) -> None:
        if self._job is not None:
            self._job.abandon()
        self._job = start_job(
            self,
            work,
            name=name,
            on_event=self._on_event,
            on_done=lambda found: self._on_done(found, on_done),
            on_failed=self._on_failed,
            on_cancelled=self._on_cancelled,
        )
        self._refresh()
        self.changed.emit()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Progress):
            share = share_done(event.done, event.total)
            self.label.setText(f"{event.what}: {share}")

    def _on_done(self, found: Any, take: Callable[[Any], None]) -> None:
        self._job = None
        self.problem = ""
        take(found)
        self._refresh()
        self.changed.emit()

    def _on_surveyed(self, survey: FeatureSurvey) -> None:
        self.survey = survey

    def _on_failed(self, error: Exception) -> None:
        self._job, self.problem = None, describe(error)
        self._refresh()
        self.changed.emit()

    def _on_cancelled(self) -> None:
        self._job = None
        self._refresh()
        self.changed.emit()

    def _refresh(self) -> None:
        self.embed_button.setVisible(not self.running)
        self.cancel_button.setVisible(self.running)
        if not self.running:
            self.label.setText(self._words())
        self.label.setToolTip("\n".join(map(str, self.paths)) or NONE_YET)
        self.mark.say(self.problem)
        why = "" if self._session.slides else NO_SLIDES
        why_disabled(
            self.embed_button, why or ("" if self._session.model_path else NO_ENCODER)
        )

    def _words(self) -> str:
        if self.survey is None:
            return f"{count(len(self.paths), 'file')}" if self.paths else NONE_YET
        found = self.survey
        slides, tiles = count(found.slides, "bag"), count(found.tiles, "tile")
        return f"{slides} · {tiles} · {found.encoder}"

    def _on_files(self) -> None:
        paths, _ = QFileDialog.getOpenFileNames(
            self, "Features to learn from", "", "Features (*.h5)"
        )
        if paths:
            self.choose(paths)

    def _on_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of feature files")
        if folder:
            self.choose([folder])


def look_at(paths: Sequence[Path]) -> Generator[Event, None, FeatureSurvey]:
    """Read what feature files say of themselves.

    Raises
    ------
    FeatureError
        If one is damaged, or they must not be mixed.
    """
    from histomae.exchange.features import check_alike, find_features, read_header

    files = find_features(paths)
    headers = []
    for number, file in enumerate(files):
        yield Progress("reading features", number, len(files))
        headers.append((file, read_header(file)))
    check_alike(headers)
    tiles = sum(header.tiles for _, header in headers)
    return FeatureSurvey(len(headers), tiles, headers[0][1].spec.encoder)
