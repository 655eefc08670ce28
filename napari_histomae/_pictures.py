"""A folder of pictures that is open: a list, and one of them in the viewer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QListWidget, QVBoxLayout, QWidget

from napari_histomae import _layers
from napari_histomae._session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import napari

TITLE = "Pictures"


def offer_pictures(folder: Path, paths: Sequence[Path]) -> None:
    """List the pictures of a folder beside the viewer, if a window is open.

    A list that is there already shows this folder instead.
    """
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is None or len(paths) < 2:
        return
    shown = viewer.window.dock_widgets.get(TITLE)
    if not isinstance(shown, PictureList):
        shown = PictureList(viewer)
        viewer.window.add_dock_widget(shown, name=TITLE, area="left")
    shown.offer(folder, paths)


class PictureList(QWidget):
    """The pictures of a folder; the one that is chosen takes the place of the last."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._session = Session.of(viewer)
        self._paths: list[Path] = []
        self.names = QListWidget()
        self.names.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.names.currentRowChanged.connect(self._on_row_changed)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.addWidget(self.names)

    def offer(self, folder: Path, paths: Sequence[Path]) -> None:
        """List the pictures of a folder; the first is taken as the one that is open."""
        self._paths = list(paths)
        self.names.blockSignals(True)
        self.names.clear()
        for path in paths:
            self.names.addItem(path.relative_to(folder).as_posix())
        self.names.setCurrentRow(0)
        self.names.blockSignals(False)

    def _on_row_changed(self, row: int) -> None:
        if row >= 0:
            self.show_picture(self._paths[row])

    def show_picture(self, path: Path) -> None:
        """Open a picture, and close those of the list that are open."""
        listed = {str(one) for one in self._paths}
        open_now = [s for s in self._session.slides if str(s.path) in listed]
        if not self._session.open_paths([path]):
            return  # the reader has said why
        viewer = self._session.viewer
        for slide in open_now:
            if slide.path == path:
                continue
            for layer in (
                *_layers.layers_of(viewer, slide),
                *_layers.layers_of(viewer, slide, "slide"),
            ):
                viewer.layers.remove(layer)
        viewer.reset_view()
