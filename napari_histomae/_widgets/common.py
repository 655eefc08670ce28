"""What the three docks are built of."""

from __future__ import annotations

import math
import traceback
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from qtpy.QtCore import QEvent, QObject, QPoint, QRect, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QImage, QPainter, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QDockWidget,
    QFrame,
    QGraphicsOpacityEffect,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_histomae._jobs import describe, window_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.utils.theme import Theme

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: A plot is drawn again no more often than this, ms.
REDRAW_MS = 500
#: Space between the rows of a dock, and around them, pixels.
SPACING, MARGIN = 6, 8

#: Opacity of what is said in passing.
MUTED = 0.7
#: Least width of a dock: a window of 1280 pixels leaves the slide 550.
DOCK_WIDTH = 384

#: Property that tells our docks from others.
OUR_DOCK = "histomae_dock"
#: Colour of curves; it is seen on dark and on light.
CURVE = "#5b7fd6"
#: Colours of a state that mean the same in both themes; they are readable on both.
GOOD, BAD, WARN = "#2e9e6b", "#d9534f", "#c98a1b"


# ---- words


def share_done(done: int, total: int) -> str:
    """Return how much of something is done: ``45 %``."""
    return f"{done / max(total, 1):.0%}".replace("%", " %")


def human_time(seconds: float | None) -> str:
    """Return a time left as a person says it: ``about 4 min``."""
    if seconds is None or not math.isfinite(seconds):
        return "time left not known yet"
    if seconds < 1:
        return "almost done"
    if seconds < 50:
        return f"{max(5, round(seconds / 5) * 5)} s left"
    if seconds < 55 * 60:
        return f"about {max(1, round(seconds / 60))} min left"
    hours = seconds / 3600
    if hours < 10:
        return f"about {hours:.1f} h left"
    return (
        f"about {hours:.0f} h left"
        if hours < 48
        else f"about {hours / 24:.0f} days left"
    )


def count(number: int, one: str, many: str | None = None) -> str:
    """Return ``1 slide`` or ``1,204 tiles``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


# ---- themes


def theme_of(widget: QWidget) -> Theme:
    """Return the theme of napari's window around a widget, else that of its settings.

    They differ: Ctrl+Shift+T changes the window's alone.
    """
    from napari.settings import get_settings
    from napari.utils.theme import get_theme

    viewer = getattr(getattr(window_of(widget), "_qt_viewer", None), "viewer", None)
    name = viewer.theme if viewer is not None else get_settings().appearance.theme
    if name == "system":
        from napari.utils.theme import get_system_theme

        name = get_system_theme()
    return get_theme(name)


# ---- pieces


class StateLine(QFrame):
    """The one line at the bottom of a dock: what happens, how far, or what went wrong.

    ``kind`` is ``idle``, ``working``, ``done`` or ``failed``; ``changed`` tells that it
    is another one. A failure keeps its technical details folded under *Details*.
    """

    changed = Signal(str)

    _MARKS: ClassVar[dict[str, str]] = {
        "idle": "○",
        "working": "◐",
        "done": "●",
        "failed": "▲",
    }
    _COLOURS: ClassVar[dict[str, str | None]] = {
        "idle": None,
        "working": None,
        "done": GOOD,
        "failed": BAD,
    }

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.kind = "idle"
        self._mark = QLabel()
        self._mark.setFixedWidth(22)
        self._mark.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._text = QLabel()
        self._text.setWordWrap(True)
        self._text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._text.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred
        )
        # Room for two lines, so that nothing above moves when the text gets longer.
        self._text.setMinimumHeight(2 * self.fontMetrics().lineSpacing() + 4)
        self._text.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self._details_button = QToolButton()
        self._details_button.setText("Details")
        self._details_button.setCheckable(True)
        self._details_button.toggled.connect(self._on_details_toggled)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setFixedHeight(6)
        self._details = QPlainTextEdit()
        self._details.setReadOnly(True)
        self._details.setMaximumHeight(140)
        self._details.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)

        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACING)
        row.addWidget(self._mark, 0, Qt.AlignmentFlag.AlignTop)
        row.addWidget(self._text, 1)
        row.addWidget(self._details_button, 0, Qt.AlignmentFlag.AlignTop)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self._bar)
        layout.addLayout(row)
        layout.addWidget(self._details)
        for hidden in (self._bar, self._details, self._details_button):
            hidden.setVisible(False)

    @property
    def text(self) -> str:
        """What it says."""
        return self._text.text()

    @property
    def details(self) -> str:
        """What is under *Details*."""
        return self._details.toPlainText()

    @property
    def fraction(self) -> float | None:
        """How far the work is, 0 to 1; None where that is not shown."""
        if self._bar.isHidden() or self._bar.maximum() == 0:
            return None
        return self._bar.value() / self._bar.maximum()

    def idle(self, text: str) -> None:
        """Say what to do next, or nothing."""
        self._set("idle", text)

    def working(
        self, text: str, done: float | None = None, total: float | None = None
    ) -> None:
        """Say what is being done, and how far; without ``total`` the bar wanders."""
        self._set("working", text, keep_bar=True)
        self._bar.setVisible(True)
        if done is None or not total:
            self._bar.setRange(0, 0)
        else:
            self._bar.setRange(0, 1000)
            self._bar.setValue(round(1000 * min(1.0, done / total)))

    def done(self, text: str) -> None:
        """Say what came out."""
        self._set("done", text)

    def failed(self, what: str | BaseException, details: str = "") -> None:
        """Say what went wrong and what to do about it."""
        if isinstance(what, BaseException):
            details = details or "".join(traceback.format_exception(what))
            what = describe(what)
        self._set("failed", what, details=details)

    def _set(
        self, kind: str, text: str, *, details: str = "", keep_bar: bool = False
    ) -> None:
        self._mark.setText(self._MARKS[kind] if text else "")
        self._text.setText(text)
        if kind == self.kind and not details and not self.details:
            return  # styles and layouts are slow, and progress comes often
        self.kind = kind
        colour = self._COLOURS[kind]
        self._mark.setStyleSheet(f"color: {colour};" if colour else "")
        self._details.setPlainText(details)
        self._details_button.setVisible(bool(details))
        self._details_button.setChecked(False)
        self._details.setVisible(False)
        if not keep_bar:
            self._bar.setVisible(False)
        self.changed.emit(kind)

    def _on_details_toggled(self, shown: bool) -> None:
        self._details.setVisible(shown)


class MoreSettings(QWidget):
    """A fold for what is rarely needed; its title shows the present values.

    Put a layout on ``body``; call :meth:`set_summary` when a value changes.

    Parameters
    ----------
    one_line
        Show the values beside the title, and also while the fold is open.
    """

    toggled = Signal(bool)

    def __init__(
        self,
        title: str = "More settings",
        parent: QWidget | None = None,
        *,
        one_line: bool = False,
    ) -> None:
        super().__init__(parent)
        self._one_line = one_line
        self._button = QToolButton()
        self._button.setCheckable(True)
        self._button.setAutoRaise(True)
        self._button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._button.setArrowType(Qt.ArrowType.RightArrow)
        self._button.setText(title)
        self._summary = ElidedLabel()
        mute(self._summary)
        self.body = QWidget()
        self.body.setVisible(False)
        self._button.toggled.connect(self._on_toggled)

        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        title_row = QHBoxLayout()
        title_row.addWidget(self._button)
        layout.addLayout(title_row)
        if one_line:
            title_row.addWidget(self._summary, 1)
        else:
            title_row.addStretch(1)
            layout.addWidget(self._summary)
        layout.addWidget(self.body)

    @property
    def is_open(self) -> bool:
        """Whether the fold is open."""
        return self._button.isChecked()

    def set_open(self, shown: bool) -> None:
        """Open or close the fold."""
        self._button.setChecked(shown)

    def set_summary(self, text: str) -> None:
        """Show the present values under the title, while the fold is closed."""
        self._summary.setText(text)

    @property
    def summary(self) -> str:
        """What is shown under the title."""
        return self._summary.text()

    def _on_toggled(self, shown: bool) -> None:
        self.body.setVisible(shown)
        self._summary.setVisible(self._one_line or not shown)
        self._button.setArrowType(
            Qt.ArrowType.DownArrow if shown else Qt.ArrowType.RightArrow
        )
        self.toggled.emit(shown)


class ElidedLabel(QLabel):
    """A label of one line that never widens its dock; the whole text is its tooltip.

    ``text()`` is the whole text, whatever is drawn.
    """

    def __init__(
        self,
        text: str = "",
        *,
        mode: Qt.TextElideMode = Qt.TextElideMode.ElideRight,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._full = ""
        self._tip: str | None = None
        self._mode = mode
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.setText(text)

    def setText(self, text: str) -> None:
        """Show a text, cut short where there is no room."""
        self._full = text
        if self._tip is None:
            super().setToolTip(text)
        self._elide()

    def text(self) -> str:
        """Return the whole text."""
        return self._full

    def setToolTip(self, text: str) -> None:
        """Show another text than the whole one as the tooltip."""
        self._tip = text
        super().setToolTip(text)

    def resizeEvent(self, event: Any) -> None:
        """Cut the text to the new width."""
        super().resizeEvent(event)
        self._elide()

    def minimumSizeHint(self) -> QSize:
        """Return the room of a few letters."""
        return QSize(24, super().minimumSizeHint().height())

    def _elide(self) -> None:
        metrics = self.fontMetrics()
        super().setText(metrics.elidedText(self._full, self._mode, self.width()))


class Picture(QLabel):
    """One picture, as large as its place allows, its sides in proportion."""

    clicked = Signal(float, float)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._pixmap: QPixmap | None = None
        self._smooth = True
        self.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.setMinimumSize(40, 40)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Expanding)

    @property
    def has_picture(self) -> bool:
        """Whether there is a picture."""
        return self._pixmap is not None

    def set_array(self, rgb: Pixels | None, *, smooth: bool = True) -> None:
        """Show uint8 (H, W, 3), or nothing."""
        self.set_pixmap(None if rgb is None else pixmap_from(rgb), smooth=smooth)

    def set_pixmap(self, pixmap: QPixmap | None, *, smooth: bool = True) -> None:
        """Show a pixmap, or nothing."""
        self._pixmap, self._smooth = pixmap, smooth
        self._fit()

    def resizeEvent(self, event: Any) -> None:
        """Fit the picture to the new size."""
        super().resizeEvent(event)
        self._fit()

    def mousePressEvent(self, event: Any) -> None:
        """Tell where the picture was clicked, as shares of its width and height."""
        shown = self.pixmap()
        if shown is None or shown.isNull():
            return
        x = event.position().x() - (self.width() - shown.width()) / 2
        y = event.position().y() - (self.height() - shown.height()) / 2
        if 0 <= x < shown.width() and 0 <= y < shown.height():
            self.clicked.emit(x / shown.width(), y / shown.height())

    def sizeHint(self) -> QSize:
        """Ask for no more than a small square: the layout decides."""
        return QSize(80, 80)

    def minimumSizeHint(self) -> QSize:
        """Shrink as far as needed."""
        return QSize(40, 40)

    def _fit(self) -> None:
        if self._pixmap is None or self._pixmap.isNull():
            self.clear()
            return
        mode = (
            Qt.TransformationMode.SmoothTransformation
            if self._smooth
            else Qt.TransformationMode.FastTransformation
        )
        self.setPixmap(
            self._pixmap.scaled(self.size(), Qt.AspectRatioMode.KeepAspectRatio, mode)
        )


class Sheet(QWidget):
    """One picture of several columns, each with a caption right above it."""

    def __init__(self, captions: Sequence[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._captions = tuple(captions)
        self._pixmap: QPixmap | None = None
        self.setMinimumSize(60, 60)

    @property
    def has_picture(self) -> bool:
        """Whether there is a picture."""
        return self._pixmap is not None

    @property
    def captions(self) -> tuple[str, ...]:
        """What stands above each column."""
        return self._captions

    def set_captions(self, captions: Sequence[str]) -> None:
        """Say what is shown from now on: a caption for each column."""
        self._captions = tuple(captions)
        self.update()

    def set_pixmap(self, pixmap: QPixmap | None) -> None:
        """Show a picture, or nothing."""
        self._pixmap = None if pixmap is None or pixmap.isNull() else pixmap
        self.update()

    def paintEvent(self, event: Any) -> None:
        """Draw the captions and, under them, the picture as large as it fits."""
        if self._pixmap is None:
            return
        top = self.fontMetrics().height() + 2
        room = QSize(self.width(), max(1, self.height() - top))
        size = self._pixmap.size().scaled(room, Qt.AspectRatioMode.KeepAspectRatio)
        left = (self.width() - size.width()) // 2
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        painter.drawPixmap(QRect(QPoint(left, top), size), self._pixmap)
        wide = size.width() / len(self._captions)
        for column, caption in enumerate(self._captions):
            box = QRect(round(left + column * wide), 0, round(wide), top)
            text = self.fontMetrics().elidedText(
                caption, Qt.TextElideMode.ElideRight, box.width()
            )
            painter.drawText(box, Qt.AlignmentFlag.AlignCenter, text)
        painter.end()


class PictureStrip(QWidget):
    """Pictures side by side, each with a caption above it.

    Parameters
    ----------
    captions
        One for each picture; the pictures come by :meth:`set_pictures`.
    """

    clicked = Signal(int, float, float)

    def __init__(self, captions: Sequence[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.pictures = [Picture() for _ in captions]
        self.captions = [ElidedLabel(caption) for caption in captions]
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        for column, (label, picture) in enumerate(
            zip(self.captions, self.pictures, strict=True)
        ):
            label.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            layout.addWidget(label, 0, column)
            layout.addWidget(picture, 1, column)
            layout.setColumnStretch(column, 1)
            picture.clicked.connect(
                lambda x, y, column=column: self.clicked.emit(column, x, y)
            )
        layout.setRowStretch(1, 1)

    def set_pictures(
        self, pictures: Sequence[Pixels | None], *, smooth: bool = True
    ) -> None:
        """Show uint8 (H, W, 3) pictures, one for each caption; None empties a place."""
        for picture, rgb in zip(self.pictures, pictures, strict=True):
            picture.set_array(rgb, smooth=smooth)

    def set_caption(self, index: int, text: str) -> None:
        """Change the caption of one picture."""
        self.captions[index].setText(text)


def pixmap_from(rgb: Pixels) -> QPixmap:
    """Turn uint8 (H, W, 3) or (H, W, 4) into a pixmap of its own memory."""
    pixels = np.ascontiguousarray(rgb, np.uint8)
    high, wide, channels = pixels.shape
    form = (
        QImage.Format.Format_RGB888 if channels == 3 else QImage.Format.Format_RGBA8888
    )
    image = QImage(pixels.data, wide, high, channels * wide, form)
    return QPixmap.fromImage(image.copy())


def swatch(color: tuple[int, int, int], side: int = 12) -> QPixmap:
    """Return a small square of a class's colour."""
    return pixmap_from(np.full((side, side, 3), color, np.uint8))


def mute(widget: QWidget) -> QWidget:
    """Draw a widget paler than the rest, in any theme; returns it."""
    effect = QGraphicsOpacityEffect(widget)
    effect.setOpacity(MUTED)
    widget.setGraphicsEffect(effect)
    return widget


class FieldMark(QLabel):
    """A sentence under a field that is wrong, in the colour of errors; else hidden."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWordWrap(True)
        self.setStyleSheet(f"color: {BAD};")
        self.setVisible(False)

    def say(self, text: str) -> None:
        """Show a sentence, or hide it if it is empty."""
        self.setText(text)
        self.setVisible(bool(text))


def why_disabled(button: QPushButton, reason: str) -> None:
    """Enable a button, or disable it and say why in its tooltip.

    Parameters
    ----------
    reason
        Empty if the button may be pressed.
    """
    button.setEnabled(not reason)
    if reason:
        if button.property("usual_tip") is None:
            button.setProperty("usual_tip", button.toolTip())
        button.setToolTip(reason)
    elif button.property("usual_tip") is not None:
        button.setToolTip(button.property("usual_tip"))
        button.setProperty("usual_tip", None)


def dock_layout(widget: QWidget) -> QVBoxLayout:
    """Give a dock its layout, rows from top to bottom; docks of ours share tabs."""
    widget.setMinimumWidth(DOCK_WIDTH)
    widget.setProperty(OUR_DOCK, True)
    # Until it has its tab it asks for no height: the window would grow, and stay so.
    widget.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Ignored)
    widget.installEventFilter(_TabsTogether(widget))
    layout = QVBoxLayout(widget)
    layout.setContentsMargins(MARGIN, MARGIN, MARGIN, MARGIN)
    layout.setSpacing(SPACING)
    return layout


class _TabsTogether(QObject):
    """Puts a dock of ours on one pile of tabs with the others, when first shown.

    napari stacks docks that are opened from its menu; three of ours would need more
    height than a window has. Where a person puts them afterwards, they stay.
    """

    def __init__(self, widget: QWidget) -> None:
        super().__init__(widget)
        self._done = False

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Wait for the dock to be shown."""
        if event.type() == QEvent.Type.Show and not self._done:
            self._done = True
            QTimer.singleShot(0, self._settle)  # napari is still placing it
        return False

    def _settle(self) -> None:
        self._tabify()
        dock = self.parent()
        if isinstance(dock, QWidget):
            dock.setSizePolicy(
                QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding
            )

    def _tabify(self) -> None:
        mine: Any = self.parent()
        while not (mine is None or isinstance(mine, QDockWidget)):
            mine = mine.parent()
        if mine is None or mine.isFloating():
            return
        main = mine.parent()
        if not isinstance(main, QMainWindow):
            return
        for other in main.findChildren(QDockWidget):
            inner = other.widget()
            if other is mine or inner is None or not inner.property(OUR_DOCK):
                continue
            if other.isVisible() and not other.isFloating():
                if other not in main.tabifiedDockWidgets(mine):
                    main.tabifyDockWidget(other, mine)
                mine.show()
                mine.raise_()
                return


def beside(*widgets: QWidget) -> QWidget:
    """Put widgets side by side; they share the width, small buttons apart."""
    holder = QWidget()
    row = QHBoxLayout(holder)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACING)
    for widget in widgets:
        row.addWidget(widget, 0 if isinstance(widget, QToolButton) else 1)
    return holder


class ElidedBox(QComboBox):
    """A box that never widens its dock; what it has no room for ends in dots."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.setMinimumContentsLength(10)

    def paintEvent(self, event: Any) -> None:
        """Draw the box with its text cut to the room between frame and arrow."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        option.currentText = self.drawn_text
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    @property
    def drawn_text(self) -> str:
        """What is seen of the current text, or of the placeholder without one."""
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        room = self.style().subControlRect(
            QStyle.ComplexControl.CC_ComboBox,
            option,
            QStyle.SubControl.SC_ComboBoxEditField,
            self,
        )
        return self.fontMetrics().elidedText(
            self.currentText() or self.placeholderText(),
            Qt.TextElideMode.ElideMiddle,
            room.width() - 2 * SPACING,
        )
