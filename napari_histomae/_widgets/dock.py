"""What docks have in common: they shut down, and take clicks while they are seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QWidget

if TYPE_CHECKING:
    from napari_histomae._widgets.hooks import ViewerHooks


class Dock(QWidget):
    """A dock of napari that is shut down once, however it goes away."""

    def shut(self) -> None:
        """Let go of everything; more than once is once."""
        raise NotImplementedError

    def event(self, event: QEvent) -> bool:
        """Shut down when napari takes the dock apart."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.shut()
        return super().event(event)

    def closeEvent(self, event: Any) -> None:
        """Shut down."""
        self.shut()
        super().closeEvent(event)


class LookingDock(Dock):
    """A dock that takes clicks and keys of the viewer while it is in front."""

    hooks: ViewerHooks
    #: Until it is shut.
    _open: bool

    def showEvent(self, event: Any) -> None:
        """Take clicks and keys."""
        super().showEvent(event)
        if self._open:
            self.hooks.attach()

    def hideEvent(self, event: Any) -> None:
        """Give clicks and keys back, while another dock is in front."""
        super().hideEvent(event)
        if not event.spontaneous():
            self.hooks.detach()
