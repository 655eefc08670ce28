"""Looks at the tile that was clicked, in the background, and shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

from napari_histomae import _layers, _review, _review_layers
from napari_histomae._jobs import start_job

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from napari.layers import Layer
    from qtpy.QtWidgets import QWidget

    from histomae.events import Event
    from histomae.infer.closeup import CloseUp
    from histomae.infer.predict import Prediction
    from histomae.models.checkpoint import CheckpointHeader
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide
    from napari_histomae._jobs import Job
    from napari_histomae._session import Session
    from napari_histomae._widgets.tile_panel import TilePanel


class TileLooker(QObject):
    """The tile that is looked at closely, in the panel and on the slide.

    Signals
    -------
    failed
        A tile could not be looked at: the exception, or a sentence.
    """

    failed = Signal(object)

    def __init__(self, session: Session, panel: TilePanel, parent: QWidget) -> None:
        super().__init__(parent)
        self.closeup: CloseUp | None = None
        self._session = session
        self._panel = panel
        self._widget = parent
        self._slide: Slide | None = None
        self._num_blocks = 1
        self._job: Job | None = None
        self._outline: Layer | None = None
        self._camera = _layers.camera(session.viewer)
        self._camera.events.zoom.connect(self._on_zoomed)
        panel.look_changed.connect(self._on_look_changed)
        panel.shown_changed.connect(self._show_layers)

    @property
    def looking(self) -> bool:
        """Whether a tile is being looked at."""
        return self._job is not None

    def use_model(self, header: CheckpointHeader | None) -> None:
        """Look with another model from now on."""
        self._num_blocks = header.encoder.depth if header else 1
        self.forget()
        self._panel.set_model(header)

    def on_click(self, world_yx: tuple[float, float]) -> None:
        """Look at the tile that was clicked, if it is one of the slide."""
        if self._session.slide is not None:
            x, y = _layers.l0_from_world(self._session.slide, world_yx)
            self.look_at((float(x), float(y)))

    def look_at(
        self, place: tuple[float, float] | tuple[int, int], *, is_cell: bool = False
    ) -> None:
        """Look at the tile at a place of the session's slide.

        Parameters
        ----------
        place
            Level-0 (x, y); or, if ``is_cell``, (row, column) of the tile grid.
        """
        slide, path = self._session.slide, self._session.model_path
        if slide is None:
            return
        if path is None:
            self.failed.emit("Choose a model first: it is what looks at the tile.")
            return
        session, probe, look = self._session, self._session.probe, self._panel.look
        self._start(
            slide,
            lambda: _review.look_at(
                lambda: session.encoder(path),
                probe,
                slide,
                place,
                look,
                is_cell=is_cell,
            ),
        )

    def look_again(self) -> None:
        """Look at the same tile with what holds now, such as another classifier."""
        if self.closeup is not None and self._slide is self._session.slide:
            self.look_at(self.closeup.cell, is_cell=True)

    def step(self, prediction: Prediction, by: int) -> None:
        """Go to the next (1) or the previous (-1) tile, from the least certain on."""
        cells = prediction.cells[prediction.least_confident()].tolist()
        if not cells:
            return
        here = list(self.closeup.cell) if self.closeup is not None else None
        at = cells.index(here) + by if here in cells else 0
        row, col = cells[min(max(at, 0), len(cells) - 1)]
        self.go_to((row, col), prediction.grid)

    def go_to(self, cell: tuple[int, int], grid: TileGrid) -> None:
        """Bring a tile (row, column) into view and look at it."""
        slide = self._session.slide
        if slide is not None:
            _layers.look_at(self._session.viewer, slide, grid.box_l0(*cell))
            self.look_at(cell, is_cell=True)

    def keep_only(self, slide: Slide | None) -> None:
        """Forget the tile if it lies on another slide."""
        if self._slide is not None and self._slide is not slide:
            self.forget()

    def forget(self) -> None:
        """Show no tile any more."""
        self.stop()
        slide, self._slide = self._slide, None
        self.closeup, self._outline = None, None
        self._panel.clear()
        if slide is not None and slide in self._session.slides:
            _review_layers.remove_closeup(self._session.viewer, slide)

    def stop(self) -> None:
        """Give up the tile that is being looked at."""
        if self._job is not None:
            self._job.abandon()
            self._job = None

    def shut(self) -> None:
        """Stop, and listen no more."""
        self.stop()
        self._camera.events.zoom.disconnect(self._on_zoomed)

    # ---- in the background

    def _start(
        self, slide: Slide, work: Callable[[], Generator[Event, None, Any]]
    ) -> None:
        """Begin to look; an earlier look is given up for it."""
        self.stop()
        self._job = start_job(
            self._widget,
            work,
            name="Looking at a tile",
            on_done=lambda closeup: self._on_done(slide, closeup),
            on_failed=self._on_failed,
        )

    def _on_look_changed(self) -> None:
        closeup, slide, path = self.closeup, self._slide, self._session.model_path
        if closeup is None or slide is None or path is None:
            return
        session, look, probe = self._session, self._panel.look, self._session.probe
        self._start(
            slide,
            lambda: _review.look_once_more(
                lambda: session.encoder(path), closeup, look, slide=slide, probe=probe
            ),
        )

    def _on_done(self, slide: Slide, closeup: CloseUp | None) -> None:
        self._job = None
        if closeup is None or slide not in self._session.slides:
            return
        self.keep_only(slide)
        self.closeup, self._slide = closeup, slide
        probe = self._session.probe
        self._panel.show_tile(
            closeup,
            probe.class_names if probe else (),
            probe.class_colors if probe else (),
        )
        self._show_layers()

    def _on_failed(self, error: Exception) -> None:
        self._job = None
        self.failed.emit(error)

    def _show_layers(self) -> None:
        if self.closeup is not None and self._slide is not None:
            shown = _review_layers.show_closeup(
                self._session.viewer,
                self._slide,
                self.closeup,
                self._num_blocks,
                attention=self._panel.attention_shown,
                reconstruction=self._panel.redrawn_shown,
            )
            self._outline = shown.outline

    def _on_zoomed(self) -> None:
        if self._outline is not None and self._slide is not None:
            _layers.fit_outline(self._session.viewer, self._slide, self._outline)
