"""The list of earlier runs, each with how it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal

from histomae.errors import HistomaeError
from napari_histomae._widgets.common import ElidedBox

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

    from histomae.learn.runs import RunFolder

#: How a run stands, in words.
STATE_WORDS = {
    "new": "not begun",
    "running": "running",
    "stopped": "stopped",
    "discarded": "discarded",
    "done": "done",
    "failed": "failed",
    "interrupted": "interrupted",
}
#: Runs in these states can go on.
RESUMABLE = ("stopped", "failed", "interrupted", "new")


class RunsBox(ElidedBox):
    """The earlier runs, each with how it stands."""

    about_to_open = Signal()
    ANOTHER = "Another folder…"

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._runs: list[RunFolder] = []

    @property
    def all_runs(self) -> list[RunFolder]:
        """The runs that are listed."""
        return list(self._runs)

    @property
    def run(self) -> RunFolder | None:
        """The one that is chosen."""
        index = self.currentIndex()
        return self._runs[index] if 0 <= index < len(self._runs) else None

    @property
    def wants_another(self) -> bool:
        """Whether a folder that is not listed is asked for."""
        return self.currentText() == self.ANOTHER

    def show_runs(self, runs: list[RunFolder], selected: RunFolder | None) -> None:
        """List runs; one that is selected and not among them is added."""
        before = selected or self.run
        known = {run.path for run in runs}
        if before is not None and before.path not in known:
            if before.config_file.exists():
                runs = [before, *runs]
            else:
                before = None
        self._runs = runs
        self.clear()
        for run in runs:
            words = STATE_WORDS.get(run_state(run), "unreadable")
            self.addItem(f"{run.path.name} · {words}")
            self.setItemData(
                self.count() - 1, str(run.path), Qt.ItemDataRole.ToolTipRole
            )
        if not runs:
            self.setPlaceholderText("none yet")
        self.addItem(self.ANOTHER)
        paths = [run.path for run in runs]
        wanted = paths.index(before.path) if before and before.path in paths else 0
        self.setCurrentIndex(wanted if runs else -1)

    def choose(self, run: RunFolder | None) -> None:
        """Choose a run, listed or not."""
        self.setCurrentIndex(0 if self._runs else -1)
        self.show_runs(self._runs, run)

    def showPopup(self) -> None:
        """List the runs as they are now."""
        self.about_to_open.emit()
        super().showPopup()


def run_state(run: RunFolder) -> str:
    """Return how a run stands; ``unreadable`` if its folder is damaged."""
    try:
        return run.state
    except (HistomaeError, OSError):
        return "unreadable"
