"""A window of napari in which a script presses buttons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import napari
from qtpy.QtWidgets import QApplication

from napari_histomae.demo import WINDOW_PX, Script, Steps

if TYPE_CHECKING:
    from collections.abc import Callable


def in_window(title: str, steps: Callable[[napari.Viewer], Steps]) -> int:
    """Take steps in a new window and close it; return the exit code."""
    viewer = napari.Viewer(title=title)
    viewer.window.resize(*WINDOW_PX)

    def ended() -> None:
        viewer.close()
        QApplication.instance().quit()

    script = Script(steps(viewer), ended)
    napari.run()
    return script.exit_code or 0
