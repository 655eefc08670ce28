"""A slide that could not be read is shown again as soon as its file has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qtpy.QtCore import QCoreApplication, QTimer
from superqt.utils import ensure_main_thread

from histomae.slides.pyramid import RETRY_S

if TYPE_CHECKING:
    from pathlib import Path

    from napari.layers import Layer

State = tuple[int, ...]
#: How often a file is looked at that could not be read, ms.
LOOK_EVERY_MS = 500


def await_return(path: Path) -> None:
    """Draw a slide anew when its file comes back or becomes another one.

    May be called from any thread; without a window it does nothing.
    """
    if QCoreApplication.instance() is not None:
        _watch(path)


@ensure_main_thread  # type: ignore[untyped-decorator]
def _watch(path: Path) -> None:
    if _Watch.running is None:
        _Watch.running = _Watch()
    _Watch.running.add(path)


class _Watch(QTimer):
    """Looks at files that could not be read, as long as there are any."""

    running: ClassVar[_Watch | None] = None

    def __init__(self) -> None:
        super().__init__(QCoreApplication.instance())
        self._states: dict[Path, State | None] = {}
        self.setInterval(LOOK_EVERY_MS)
        self.timeout.connect(self._look)
        self.destroyed.connect(_Watch._forget)

    @staticmethod
    def _forget() -> None:
        _Watch.running = None

    def add(self, path: Path) -> None:
        self._states.setdefault(path, _state(path))
        self.start()

    def _look(self) -> None:
        for path, before in list(self._states.items()):
            now = _state(path)
            if not _layers_of(path) or (now is not None and now != before):
                del self._states[path]
                # By then what failed a moment ago is tried again.
                delay_ms = round(1000 * RETRY_S)
                QTimer.singleShot(delay_ms, lambda path=path: _draw_anew(path))
            else:
                self._states[path] = now
        if not self._states:
            self.stop()


def _state(path: Path) -> State | None:
    """Return by what a file is known to be as it was; None: it is not there."""
    try:
        seen = path.stat()
    except OSError:
        return None
    # The last one changes with the permission to read, too.
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def _layers_of(path: Path) -> list[Layer]:
    import napari

    from napari_histomae._layers import entry_of, slide_layers

    viewer = napari.current_viewer()
    if viewer is None:
        return []
    return [x for x in slide_layers(viewer) if entry_of(x)["path"] == str(path)]


def _draw_anew(path: Path) -> None:
    for layer in _layers_of(path):
        layer.data = layer.data  # napari forgets what it kept of the coarsest level
