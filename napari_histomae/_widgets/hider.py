"""Hides what lies on the tissue, while a button or a key is held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_histomae import _review_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari.layers import Layer

    from napari_histomae._session import Session

HIDE_KEY = "H"


class Hider:
    """Hides the results on the session's slide, and shows them again."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._hidden: list[Layer] = []

    def hide(self) -> None:
        """Hide every result on the slide, until :meth:`show`."""
        self.show()
        if self._session.slide is not None:
            over = _review_layers.overlays(self._session.viewer, self._session.slide)
            self._hidden = [layer for layer in over if layer.visible]
            for layer in self._hidden:
                layer.visible = False

    def show(self) -> None:
        """Show again what was hidden."""
        hidden, self._hidden = self._hidden, []
        for layer in hidden:
            layer.visible = True

    def hold(self, _viewer: Any) -> Iterator[None]:
        """Hide every result while a key is held: what napari binds to the key."""
        self.hide()
        yield
        self.show()
