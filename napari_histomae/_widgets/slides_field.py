"""Choosing the slides of a training: the open ones, files, or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from histomae.errors import DataSetError, HistomaeError, SlideError
from histomae.events import Event, Progress
from histomae.slides.find import (
    SHARED_SUFFIXES,
    SLIDE_SUFFIXES,
    find_slides,
    holds_pictures,
    pictures_in,
)
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide, default_mpp
from histomae.slides.tissue import (
    TissueMask,
    TissueParams,
    remembered_params,
    tissue_cells,
    tissue_mask,
)
from napari_histomae._jobs import Job, describe, start_job
from napari_histomae._widgets.common import (
    SPACING,
    ElidedLabel,
    FieldMark,
    count,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from napari_histomae._session import Session

#: Tissue by the slide's id and what counts as tissue on it.
Masks = dict[tuple[str, TissueParams], TissueMask]
#: Wait for more typing before slides are looked at again, ms.
PATIENCE_MS = 300


@dataclass(frozen=True)
class Opened(Event):
    """The slides are open and their pixel sizes known; their tissue is not yet."""

    survey: Survey


@dataclass(frozen=True)
class Survey:
    """What is known of the chosen slides.

    ``mpp`` is what an automatic pixel size comes to, µm; None while it is unknown.
    ``tiles`` counts tiles with tissue; ``pictures``, where plain pictures are chosen in
    the place of slides, these.
    """

    slides: tuple[Slide, ...] = ()
    mpp: float | None = None
    tiles: int | None = None
    pictures: int | None = None

    @property
    def without_mpp(self) -> tuple[Slide, ...]:
        """The slides whose pixel size nobody knows."""
        return tuple(slide for slide in self.slides if not slide.has_mpp)


class SlidesField(QWidget):
    """The slides row of a dock: what is chosen, and the buttons to choose.

    Without a choice it follows the slides that are open. ``changed`` tells that other
    slides are chosen, ``surveyed`` that more is known of them.
    """

    changed = Signal()
    surveyed = Signal()

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session = session
        self._chosen: tuple[Path, ...] = ()
        self._spec: tuple[int, float | None] = (224, None)
        self._masks: Masks = {}
        self._job: Job | None = None
        self.survey = Survey()
        self.problem = ""

        self.label = ElidedLabel()
        self.open_button = QPushButton("In viewer")
        self.open_button.setToolTip("Train on the slides that are open in the viewer")
        self.files_button = QPushButton("Files…")
        self.files_button.setToolTip("Choose slide files; or drop them on this dock")
        self.folder_button = QPushButton("Folder…")
        self.folder_button.setToolTip(
            "Train on every slide in a folder, or on its pictures, such as BUSI's"
        )
        self.sample_button = QPushButton("Open the sample slide")
        self.sample_button.setToolTip(
            "A synthetic slide, made on this computer; nothing is downloaded"
        )
        self.mpp_button = QPushButton("Enter the pixel size…")
        self.mark = FieldMark()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PATIENCE_MS)

        self._timer.timeout.connect(self._look)
        self.open_button.clicked.connect(self.follow_open_slides)
        self.files_button.clicked.connect(self._on_files)
        self.folder_button.clicked.connect(self._on_folder)
        self.sample_button.clicked.connect(self._on_sample)
        self.mpp_button.clicked.connect(self._on_mpp)
        session.slides_changed.connect(self._on_slides_changed)
        session.tissue_changed.connect(self._on_tissue_changed)

        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACING)
        for button in (self.open_button, self.files_button, self.folder_button):
            row.addWidget(button, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.label)
        layout.addWidget(self.sample_button)
        layout.addWidget(self.mark)
        layout.addWidget(self.mpp_button)
        layout.addLayout(row)
        self._refresh()
        self._timer.start()  # by then it stands in its window

    # ---- what is chosen

    @property
    def paths(self) -> tuple[Path, ...]:
        """The chosen files and folders, else the files of the open slides."""
        return self._chosen or tuple(slide.path for slide in self._session.slides)

    @property
    def follows_open_slides(self) -> bool:
        """Whether the slides are those that are open."""
        return not self._chosen

    def choose(self, paths: Sequence[str | Path]) -> None:
        """Choose slide files or folders; none: follow the open slides."""
        self._chosen = tuple(Path(path) for path in paths)
        self._renew()

    def follow_open_slides(self) -> None:
        """Take the slides that are open in the viewer, now and later."""
        self.choose(())

    def set_tiles(self, tile_px: int, mpp: float | None) -> None:
        """Count tiles of this size, at ``mpp`` µm/px (None: automatic)."""
        if (tile_px, mpp) != self._spec:
            self._spec = (tile_px, mpp)
            self._timer.start()

    def shut(self) -> None:
        """Stop looking at slides, and listen no more."""
        self._stop_looking()
        self._session.slides_changed.disconnect(self._on_slides_changed)
        self._session.tissue_changed.disconnect(self._on_tissue_changed)

    def _stop_looking(self) -> None:
        self._timer.stop()
        if self._job is not None:
            self._job.abandon()

    # ---- looking at them, in the background

    def _on_slides_changed(self) -> None:
        if self.follows_open_slides or self.survey.without_mpp:
            self._renew()

    def _on_tissue_changed(self, slide_id: str) -> None:
        if slide_id in {slide.slide_id for slide in self.survey.slides}:
            self._timer.start()

    def _renew(self) -> None:
        self.survey, self.problem = Survey(), ""
        self._refresh()
        self.changed.emit()
        self._look()

    def _look(self) -> None:
        self._stop_looking()
        if not self.paths:
            return
        known = {str(s.path): s for s in self._session.slides}
        paths, (tile_px, mpp) = self.paths, self._spec
        self._job = start_job(
            self,
            lambda: survey(paths, tile_px, mpp, known=known, masks=self._masks),
            name="Looking for tissue",
            on_event=self._on_event,
            on_done=self._on_surveyed,
            on_failed=self._on_survey_failed,
        )

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._on_surveyed(event.survey)

    def _on_surveyed(self, found: Survey) -> None:
        self.survey, self.problem = found, ""
        self._refresh()
        self.surveyed.emit()

    def _on_survey_failed(self, error: Exception) -> None:
        self.survey, self.problem = Survey(), describe(error)
        self._refresh()
        self.surveyed.emit()

    def _refresh(self) -> None:
        has_any = bool(self.paths)
        self.sample_button.setVisible(not has_any)
        self.open_button.setEnabled(bool(self._session.slides))
        self.label.setText(self._words() if has_any else "none yet: drop slides here")
        names = "\n".join(str(path) for path in self.paths)
        self.label.setToolTip(names or "Open a slide, or drop slide files here")
        unknown = self.survey.without_mpp
        says = self.problem
        if unknown and not says:
            says = f"{unknown[0].path.name} has no pixel size."
        self.mark.say(says)
        self.mpp_button.setVisible(bool(unknown))

    def _words(self) -> str:
        found = self.survey
        if found.pictures is not None:
            return f"folder {self.paths[0].name} · {count(found.pictures, 'picture')}"
        number = len(found.slides) or len(self.paths)
        text = count(number, "slide" if self._chosen else "open slide")
        if not found.slides and self._chosen and self._chosen[0].is_dir():
            text = f"folder {self._chosen[0].name}"
        if found.tiles is not None:
            return f"{text} · {count(found.tiles, 'tissue tile')}"
        waiting = not self.problem and not found.without_mpp
        return f"{text} · looking for tissue…" if waiting else text

    # ---- the buttons

    def _on_files(self) -> None:
        patterns = " ".join(f"*{end}" for end in (*SLIDE_SUFFIXES, *SHARED_SUFFIXES))
        paths, _ = QFileDialog.getOpenFileNames(
            self, "Slides to train on", "", f"Slides ({patterns})"
        )
        if paths:
            self.choose(paths)

    def _on_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(
            self, "Folder of slides, or of pictures, to train on"
        )
        if folder:
            self.choose([folder])

    def _on_sample(self) -> None:
        self.sample_button.setEnabled(False)
        self.label.setText("making the sample slide…")
        self._job = start_job(
            self,
            _make_sample,
            name="Making the sample slide",
            on_done=self._on_sample_made,
            on_failed=self._on_sample_failed,
        )

    def _on_sample_made(self, path: Path) -> None:
        self.sample_button.setEnabled(True)
        self._session.open_paths([path])

    def _on_sample_failed(self, error: Exception) -> None:
        self.sample_button.setEnabled(True)
        self.problem = describe(error)
        self._refresh()

    def _on_mpp(self) -> None:
        from napari_histomae._widgets.mpp import ask_mpp

        slide = self.survey.without_mpp[0]
        answer = ask_mpp(slide, self)
        if answer is None:
            return
        if slide in self._session.slides:
            self._session.settle_mpp(slide, answer)
        self._renew()


def survey(
    paths: Sequence[Path],
    tile_px: int,
    mpp: float | None,
    *,
    known: dict[str, Slide],
    masks: Masks,
) -> Generator[Event, None, Survey]:
    """Open slides and count their tiles of tissue.

    Parameters
    ----------
    paths
        Files and folders.
    tile_px, mpp
        The tile, its pixel size in µm; None: the automatic one.
    known
        Slides that are open already, by path.
    masks
        Tissue found before; what is found is added.

    Raises
    ------
    SlideError
        If a slide cannot be opened or read.
    DataSetError
        If pictures are mixed with slides.
    """
    if any(map(holds_pictures, paths)):
        return _pictures(paths)
    slides = []
    for path in find_slides(paths):
        slides.append(known.get(str(path)) or Slide.open(path))
        yield Progress("opening slides", len(slides), len(slides))
    if any(not slide.has_mpp for slide in slides):
        return Survey(tuple(slides))
    automatic = default_mpp(slides)
    yield Opened(Survey(tuple(slides), automatic))
    tiles: int | None = 0
    for number, slide in enumerate(slides):
        yield Progress("looking for tissue", number, len(slides))
        key = (slide.slide_id, remembered_params(slide))
        if key not in masks:
            masks[key] = tissue_mask(slide, key[1])
        counted = _tiles_in(slide, TileSpec(tile_px, mpp or automatic), masks[key])
        tiles = None if tiles is None or counted is None else tiles + counted
    return Survey(tuple(slides), automatic, tiles)


def _pictures(paths: Sequence[Path]) -> Survey:
    """Count the pictures of a folder.

    Raises
    ------
    DataSetError
        If it is not one folder alone.
    """
    if len(paths) > 1 or not paths[0].is_dir():
        raise DataSetError(
            "Pictures are trained on by themselves. Choose one folder of them, or "
            "slides alone."
        )
    return Survey(pictures=len(pictures_in(paths[0])))


def _tiles_in(slide: Slide, spec: TileSpec, tissue: TissueMask) -> int | None:
    """Count tiles with tissue; None if the slide has no such resolution."""
    try:
        grid = TileGrid.over(slide, spec)
    except SlideError:
        raise
    except HistomaeError:
        return None
    return len(tissue_cells(grid, tissue))


def _make_sample() -> Generator[Event, None, Path]:
    """Make the sample slide, unless it is there."""
    from histomae.slides.sample import sample_slide

    yield Progress("making the sample slide", 0, 1)
    path: Any = sample_slide().slide_path
    return Path(path)


def dropped_paths(event: Any) -> list[Path]:
    """Return the local files of a drag or drop."""
    data = event.mimeData()
    urls = data.urls() if data.hasUrls() else []
    return [Path(url.toLocalFile()) for url in urls if url.isLocalFile()]


def on_drop(take: Callable[[list[Path]], None], event: Any) -> None:
    """Hand the files of a drop over, if there are any."""
    paths = dropped_paths(event)
    if paths:
        take(paths)
        event.acceptProposedAction()
