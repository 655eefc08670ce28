"""The live curves of a training: its loss, and whatever else it records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import (
    QHBoxLayout,
    QMenu,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from histomae.evaluate.curves import Curves, thinned
from histomae.events import HeldOut, Started, Step
from napari_histomae._widgets.common import (
    CURVE,
    REDRAW_MS,
    WARN,
    ElidedLabel,
    mute,
    theme_of,
)

if TYPE_CHECKING:
    from histomae.events import Event

#: What every training records, and what it is called; a method may record more.
FIGURES = {
    "loss": "loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_s": "images/s",
}
#: Drawn beside the loss.
HELD_OUT = "held_out_loss"
#: Around the name of a curve and its value, pixels.
BESIDE = 44
#: For the numbers beside the axes: left, below, right, above, in points.
ROOM_PT = (32, 14, 8, 11)


class CurvePlot(QWidget):
    """One curve of a training against its steps, in napari's colours.

    A small menu above it chooses which. Events may be added as fast as they come: it is
    drawn twice a second at most.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(2.4, 1.6))
        self._canvas = FigureCanvasQTAgg(self._figure)
        self._axes = self._figure.add_subplot()
        (self._line,) = self._axes.plot([], [], color=CURVE, linewidth=1)
        (self._dots,) = self._axes.plot(
            [], [], "o", color=WARN, markersize=3, label="held out"
        )
        self._legend = self._axes.legend(
            handles=[self._dots],
            fontsize=7,
            frameon=False,
            loc="upper right",
            handletextpad=0.1,
            borderpad=0,
        )
        self._curves = Curves()
        self._chosen = "loss"
        self.menu = QMenu(self)
        self.menu.aboutToShow.connect(self._fill_menu)
        self.button = QToolButton()
        self.button.setAutoRaise(True)
        self.button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.button.setMenu(self.menu)
        self.button.setToolTip("Choose the curve")
        self.button.setStyleSheet("QToolButton::menu-indicator { image: none; }")
        self.value = ElidedLabel()
        mute(self.value)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REDRAW_MS)
        self._timer.timeout.connect(self.redraw)
        row = QHBoxLayout()
        row.setSpacing(4)
        row.addWidget(self.button)
        row.addWidget(self.value, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addLayout(row)
        layout.addWidget(self._canvas, 1)
        self._canvas.setSizePolicy(
            QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Ignored
        )
        self.setMinimumSize(120, 110)
        self.draws = 0
        self._dress()
        self.redraw()

    # ---- what it knows

    def add(self, event: Event) -> None:
        """Take in what an event says of figures."""
        if isinstance(event, Started | Step | HeldOut):
            self._curves.add(event)
            self._soon()

    def clear(self) -> None:
        """Forget every curve."""
        self._curves = Curves()
        self._soon()

    @property
    def points(self) -> int:
        """Steps it knows."""
        return len(self._curves["loss"][0])

    def held_out_at(self, step: int) -> float | None:
        """Return the loss on crops held out of training at a step, if it is known."""
        return dict(zip(*self._curves[HELD_OUT], strict=True)).get(step)

    # ---- what it shows

    @property
    def figures(self) -> dict[str, str]:
        """What can be chosen, and what it is called."""
        more = [n for n in self._curves.names if n not in FIGURES and n != HELD_OUT]
        return FIGURES | {name: name.replace("_", " ") for name in more}

    @property
    def shown(self) -> str:
        """What is shown: what was chosen, or the loss where there is no such curve."""
        return self._chosen if self._chosen in self.figures else "loss"

    def show_figure(self, name: str) -> None:
        """Show another curve, now."""
        self._chosen = name
        self.redraw()

    def _fill_menu(self) -> None:
        self.menu.clear()
        for name, words in self.figures.items():
            action = self.menu.addAction(words)
            action.setCheckable(True)
            action.setChecked(name == self.shown)
            action.triggered.connect(lambda _, name=name: self.show_figure(name))

    def redraw(self) -> None:
        """Draw now."""
        self._timer.stop()
        name = self.shown
        steps, values = self._curves[name]
        held_out = self._curves[HELD_OUT if name == "loss" else ""]
        self._say(self.figures[name], f"{values[-1]:.3g}" if len(values) else "")
        self._line.set_data(*thinned(steps, values))
        self._dots.set_data(*held_out)
        self._legend.set_visible(bool(len(held_out[0])))
        self._axes.relim()
        self._axes.autoscale_view()
        self._axes.axison = bool(len(steps) or len(held_out[0]))
        self._leave_room()
        self._canvas.draw()
        self.draws += 1

    def _leave_room(self) -> None:
        """Leave room for the numbers beside the axes, however large the plot is.

        A layout that measures them would take as long as drawing them, every time.
        """
        wide, high = self._figure.get_size_inches() * 72
        left, bottom, right, top = ROOM_PT
        self._figure.subplots_adjust(
            left=min(left / wide, 0.4),
            bottom=min(bottom / high, 0.4),
            right=max(1 - right / wide, 0.6),
            top=max(1 - top / high, 0.6),
        )

    def _dress(self) -> None:
        """Take on the colours of napari's theme."""
        theme, axes = theme_of(self), self._axes
        ink, ground = theme.text.as_hex(), theme.background.as_hex()
        self._figure.set_facecolor(ground)
        axes.set_facecolor(ground)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(colors=ink, labelsize=7, length=2)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set(color=ink, fontsize=7)
        axes.grid(True, color=theme.foreground.as_hex(), linewidth=0.6)
        axes.set_axisbelow(True)
        for text in self._legend.get_texts():
            text.set_color(ink)

    def _say(self, words: str, value: str) -> None:
        """Name the curve above it, and its latest value."""
        metrics, mode = self.button.fontMetrics(), Qt.TextElideMode.ElideRight
        room = self.width() - metrics.horizontalAdvance(value) - BESIDE
        self.button.setText(f"{metrics.elidedText(words, mode, room)} ▾")
        self.button.setVisible(bool(self._curves.names))
        self.value.setText(value)

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        restyled = event.type() in (QEvent.Type.StyleChange, QEvent.Type.PaletteChange)
        if restyled and hasattr(self, "_timer"):
            self._dress()
            self._soon()

    def _soon(self) -> None:
        if not self._timer.isActive():
            self._timer.start()
