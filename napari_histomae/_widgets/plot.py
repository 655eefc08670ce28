"""A plot in napari's colours, drawn by the functions that draw the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QEvent, QTimer, Signal
from qtpy.QtWidgets import QSizePolicy, QVBoxLayout, QWidget

from histomae.evaluate.report_plots import Ink
from napari_histomae._widgets.common import REDRAW_MS, theme_of

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]
#: A click this near to a point is meant for it, pixels of the screen.
NEAR_PX = 12
#: Letters of a plot in a dock, points.
LETTERS = 8.0


class Plot(QWidget):
    """One plot; it is drawn anew when the theme changes.

    Signals
    -------
    picked
        A point of :meth:`show_points` was clicked: which.
    """

    picked = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(3.2, 1.8), layout="constrained")
        self._canvas = FigureCanvasQTAgg(self._figure)
        self._canvas.mpl_connect("button_press_event", self._on_pressed)
        self._axes = self._figure.add_subplot()
        self._draw: Callable[[Any, Ink], Any] | None = None
        self._points: Array | None = None
        self._marked: int | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REDRAW_MS // 5)
        self._timer.timeout.connect(self.redraw)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._canvas)
        self._canvas.setSizePolicy(
            QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Ignored
        )
        self.setMinimumSize(160, 110)

    @property
    def axes(self) -> Any:
        """What is drawn on."""
        return self._axes

    @property
    def marked(self) -> int | None:
        """The point that is marked."""
        return self._marked

    def show_plot(self, draw: Callable[[Any, Ink], Any] | None) -> None:
        """Draw something, given axes and ink; None clears."""
        self._draw, self._points, self._marked = draw, None, None
        self.redraw()

    def show_points(self, xy: Array, draw: Callable[[Any, Ink], Any]) -> None:
        """Draw points (m, 2) that can be clicked."""
        self._draw, self._points, self._marked = draw, xy, None
        self.redraw()

    def mark(self, point: int | None) -> None:
        """Put a ring around a point, or around none."""
        self._marked = point
        self.redraw()

    def place_of(self, point: int) -> tuple[float, float]:
        """Return where a point is drawn, pixels of the canvas from the lower left."""
        assert self._points is not None
        x, y = self._axes.transData.transform(self._points[point])
        return float(x), float(y)

    def redraw(self) -> None:
        """Draw now."""
        self._timer.stop()
        theme = theme_of(self)
        ink = Ink(
            text=theme.text.as_hex(),
            ground=theme.background.as_hex(),
            faint=theme.foreground.as_hex(),
            strong=theme.current.as_hex() if self._points is None else Ink.strong,
            letters=LETTERS,
        )
        self._figure.set_facecolor(ink.ground)
        self._axes.clear()
        self._axes.set_facecolor(ink.ground)
        if self._draw is None:
            self._axes.set_axis_off()
        else:
            self._draw(self._axes, ink)
            self._draw_mark(ink)
        self._canvas.draw()

    def _draw_mark(self, ink: Ink) -> None:
        if self._points is None or self._marked is None:
            return
        for size, color, width in ((150, ink.ground, 5.0), (150, ink.text, 2.0)):
            x, y = self._points[self._marked]
            self._axes.scatter(
                x,
                y,
                s=size,
                facecolors="none",
                edgecolors=color,
                linewidths=width,
                zorder=5,
            )

    def _on_pressed(self, event: Any) -> None:
        if self._points is None or not len(self._points) or event.inaxes is None:
            return
        drawn = self._axes.transData.transform(self._points)
        apart = np.hypot(*(drawn - (event.x, event.y)).T)
        if apart.min() <= NEAR_PX * self.devicePixelRatioF():
            self.picked.emit(int(apart.argmin()))

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        timer = getattr(self, "_timer", None)
        if timer is not None and event.type() in (
            QEvent.Type.StyleChange,
            QEvent.Type.PaletteChange,
        ):
            timer.start()
