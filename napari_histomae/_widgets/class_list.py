"""Classes of a map, to be shown or hidden, and the probabilities of one tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import QCheckBox, QGridLayout, QHBoxLayout, QLabel, QWidget

from napari_histomae._widgets.common import ElidedLabel, swatch

if TYPE_CHECKING:
    from collections.abc import Sequence

Color = tuple[int, int, int]
#: Height of a class's row, pixels.
ROW_PX = 20
#: Bars are no lower than this, however many classes there are, pixels.
LEAST_BAR_PX = 13


class ClassList(QWidget):
    """A box to tick for each class, with its colour and its area.

    Parameters
    ----------
    columns
        The classes stand side by side in as many.

    Signals
    -------
    changed
        Another set of classes is ticked.
    """

    changed = Signal()

    def __init__(self, parent: QWidget | None = None, *, columns: int = 2) -> None:
        super().__init__(parent)
        self._columns = columns
        self.boxes: list[QCheckBox] = []
        self.areas: list[QLabel] = []
        self._names: tuple[str, ...] = ()
        self._colors: tuple[Color, ...] = ()
        self._layout = QGridLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setHorizontalSpacing(10)
        self._layout.setVerticalSpacing(0)
        for column in range(columns):
            self._layout.setColumnStretch(column, 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in order."""
        return self._names

    @property
    def shown(self) -> list[int]:
        """The labels that are ticked, counted from 1."""
        return [n for n, box in enumerate(self.boxes, start=1) if box.isChecked()]

    def set_classes(self, names: Sequence[str], colors: Sequence[Color]) -> None:
        """List classes, all ticked; those that are listed already stay as they are."""
        if (tuple(names), tuple(colors)) == (self._names, self._colors):
            return
        self._names, self._colors = tuple(names), tuple(colors)
        while self._layout.count():
            item = self._layout.takeAt(0).widget()
            item.setParent(None)
            item.deleteLater()
        self.boxes, self.areas = [], []
        rows = max(1, -(-len(names) // self._columns))
        for number, (name, color) in enumerate(zip(names, colors, strict=True)):
            self._layout.addWidget(
                self._row(name, color), number % rows, number // rows
            )

    def set_areas(self, areas_mm2: Sequence[float]) -> None:
        """Show the area of each class, mm²."""
        self.set_words(
            [f"{area:.2f} mm²" if area < 1 else f"{area:.1f} mm²" for area in areas_mm2]
        )

    def set_words(self, words: Sequence[str]) -> None:
        """Show how much there is of each class."""
        for label, text in zip(self.areas, words, strict=True):
            label.setText(text)

    def _row(self, name: str, color: Color) -> QWidget:
        row = QWidget()
        row.setFixedHeight(ROW_PX)
        box, patch, label, area = QCheckBox(), QLabel(), ElidedLabel(name), QLabel()
        box.setChecked(True)
        box.setToolTip(f"Show {name} on the slide")
        box.toggled.connect(self.changed)
        patch.setPixmap(swatch(color))
        layout = QHBoxLayout(row)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        for widget in (box, patch):
            layout.addWidget(widget)
        layout.addWidget(label, 1)
        layout.addWidget(area)
        self.boxes.append(box)
        self.areas.append(area)
        return row


class ClassBars(QWidget):
    """The probability of each class as a bar in its colour, the likeliest first."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.bars: list[tuple[str, float, Color]] = []
        self.setMinimumWidth(80)

    def set_bars(
        self, names: Sequence[str], probabilities: Any, colors: Sequence[Color]
    ) -> None:
        """Show the probabilities (K,) of one tile."""
        order = np.argsort(-np.asarray(probabilities), kind="stable")
        self.bars = [(names[i], float(probabilities[i]), colors[i]) for i in order]
        self.setToolTip("\n".join(f"{n}  {p:.3f}" for n, p, _ in self.bars))
        self.update()

    def clear(self) -> None:
        """Show nothing."""
        self.bars = []
        self.setToolTip("")
        self.update()

    def sizeHint(self) -> QSize:
        """Ask for room for all bars."""
        return QSize(110, max(1, len(self.bars)) * ROW_PX)

    def paintEvent(self, event: Any) -> None:
        """Draw the bars: a name, its number, and below them the share as a line."""
        if not self.bars:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        most = max(1, int(self.height() // LEAST_BAR_PX))
        shown = self.bars[:most]
        high = min(ROW_PX + 4.0, self.height() / len(shown))
        font = painter.font()
        font.setPixelSize(int(max(9, min(12, high - 5))))
        painter.setFont(font)
        ink = self.palette().color(self.foregroundRole())
        track = QColor(ink)
        track.setAlpha(40)
        number_wide = painter.fontMetrics().horizontalAdvance("0.00") + 4
        for row, (name, share, color) in enumerate(shown):
            top, wide = row * high, float(self.width())
            text = QRectF(0, top, wide - number_wide, high - 4)
            fitting = painter.fontMetrics().elidedText(
                name, Qt.TextElideMode.ElideRight, int(text.width())
            )
            left = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignBottom
            right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignBottom
            painter.setPen(ink)
            painter.drawText(text, int(left), fitting)
            painter.drawText(QRectF(0, top, wide, high - 4), int(right), f"{share:.2f}")
            line = QRectF(0, top + high - 4, wide, 3)
            painter.fillRect(line, track)
            line.setWidth(wide * share)
            painter.fillRect(line, QColor(*color))
        painter.end()
