"""How good a classifier is, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_histomae._widgets.common import REDRAW_MS, theme_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = np.ndarray[Any, Any]
#: Longest class name that is written out.
NAME_LETTERS = 14


class ConfusionPlot(QWidget):
    """Which class was taken for which, in napari's colours.

    A row is a true class, with the number of its tiles; a cell is shaded by the share
    of the row and holds the number of tiles.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(3.2, 1.8), layout="constrained")
        self._canvas = FigureCanvasQTAgg(self._figure)
        self._axes = self._figure.add_subplot()
        self._names: list[str] = []
        self._confusion: Array | None = None
        self._tiles: Mapping[str, int] = {}
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REDRAW_MS // 5)
        self._timer.timeout.connect(self.redraw)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._canvas)
        self.setMinimumSize(160, 110)
        self.setMaximumHeight(240)

    @property
    def cells(self) -> list[str]:
        """The numbers that are written in the cells, row by row."""
        return [text.get_text() for text in self._axes.texts]

    def show_scores(
        self,
        names: Sequence[str],
        confusion: Sequence[Sequence[int]] | None,
        tiles: Mapping[str, int],
    ) -> None:
        """Draw a confusion matrix (rows true, columns predicted); None clears it.

        Parameters
        ----------
        tiles
            Tiles that were taught, of each class.
        """
        self._names = list(names)
        self._confusion = None if confusion is None else np.array(confusion)
        self._tiles = tiles
        self.redraw()

    def redraw(self) -> None:
        """Draw now."""
        self._timer.stop()
        theme = theme_of(self)
        ink, ground = theme.text.as_hex(), theme.background.as_hex()
        axes = self._axes
        axes.clear()
        self._figure.set_facecolor(ground)
        axes.set_facecolor(ground)
        if self._confusion is None:
            axes.set_axis_off()
        else:
            axes.set_axis_on()
            self._draw_matrix(axes, self._confusion, ink, ground)
        self._canvas.draw()

    def _draw_matrix(self, axes: Any, confusion: Array, ink: str, ground: str) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        theme = theme_of(self)
        shades = LinearSegmentedColormap.from_list(
            "rows", [theme.foreground.as_hex(), theme.current.as_hex()]
        )
        total = confusion.sum(1, keepdims=True)
        share = np.divide(
            confusion, total, out=np.zeros(confusion.shape), where=total > 0
        )
        axes.pcolormesh(
            share, cmap=shades, vmin=0, vmax=1, edgecolors=ground, linewidth=1.5
        )
        axes.invert_yaxis()
        size = 8 if len(confusion) <= 5 else 7
        for (row, column), count in np.ndenumerate(confusion):
            faint = 0.35 if count == 0 else 1.0
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{count:,}",
                ha="center",
                va="center",
                fontsize=size,
                color=ink,
                alpha=faint,
            )
        places = np.arange(len(confusion)) + 0.5
        short = [_short(name) for name in self._names]
        counted = [
            f"{_short(name)} · {self._tiles.get(name, 0):,}" for name in self._names
        ]
        axes.set_xticks(places, short, fontsize=size)
        axes.set_yticks(places, counted, fontsize=size)
        if sum(map(len, short)) > 34:
            for label in axes.get_xticklabels():
                label.set(rotation=30, ha="right", rotation_mode="anchor")
        axes.tick_params(colors=ink, length=0, pad=3)
        axes.set_xlabel("was taken for", fontsize=8, color=ink, labelpad=2)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        timer = getattr(self, "_timer", None)
        if timer is not None and event.type() in (
            QEvent.Type.StyleChange,
            QEvent.Type.PaletteChange,
        ):
            timer.start()


def _short(name: str) -> str:
    return name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"
