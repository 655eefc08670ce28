"""The question for a pixel size that the file does not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari.qt import get_current_stylesheet
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QApplication,
    QDialog,
    QDialogButtonBox,
    QDoubleSpinBox,
    QFormLayout,
    QLabel,
    QMainWindow,
    QVBoxLayout,
    QWidget,
)

from histomae.slides.pixel_size import MAX_MPP, MIN_MPP

if TYPE_CHECKING:
    from histomae.slides.slide import Slide

#: What the field shows where there is nothing to suggest; it is not an answer.
NO_ANSWER = 0.0


class MppDialog(QDialog):
    """Asks how many micrometres a pixel of a slide measures."""

    def __init__(self, slide: Slide, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Pixel size")
        self.setStyleSheet(get_current_stylesheet())
        suggested = slide.suggested_mpp
        width, height = slide.dimensions
        question = QLabel(
            f"<b>{slide.path.name}</b> does not say believably how large its pixels "
            "are.<br>"
            "How many micrometres does one pixel measure?"
        )
        self.field = QDoubleSpinBox()
        self.field.setDecimals(4)
        self.field.setRange(NO_ANSWER, MAX_MPP)
        self.field.setSingleStep(0.01)
        self.field.setSpecialValueText("unknown")
        self.field.setSuffix(" µm per pixel")
        self.field.setValue(suggested or NO_ANSWER)
        hint = (
            f"Filled in from the objective's power ({10 / suggested:.3g}×): only a "
            "guess. Check it."
            if suggested
            else "Scanners write about 0.25 at 40× and 0.5 at 20×."
        )
        self.size_label = QLabel()
        self.buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel
        )
        self.buttons.button(QDialogButtonBox.StandardButton.Cancel).setText(
            "I do not know"
        )
        self._dimensions = (width, height)

        self.field.valueChanged.connect(self._on_value_changed)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        self._on_value_changed(self.field.value())

        form = QFormLayout()
        form.addRow("Pixel size", self.field)
        form.addRow("Then the slide is", self.size_label)
        layout = QVBoxLayout(self)
        layout.addWidget(question)
        layout.addLayout(form)
        for text in (
            hint,
            "The answer is remembered for this slide. Without it the slide is shown in "
            "pixels,<br>and nothing can be trained on it or measured.",
        ):
            label = QLabel(text)
            label.setTextFormat(Qt.TextFormat.RichText)
            layout.addWidget(label)
        layout.addWidget(self.buttons)
        self.field.selectAll()

    @property
    def mpp(self) -> float | None:
        """The answer, µm per pixel; None while there is no believable one."""
        value = self.field.value()
        return value if MIN_MPP <= value <= MAX_MPP else None

    def _on_value_changed(self, value: float) -> None:
        known = self.mpp
        self.buttons.button(QDialogButtonBox.StandardButton.Ok).setEnabled(
            known is not None
        )
        if known is None:
            least = f"at least {MIN_MPP} µm" if value else "unknown"
            self.size_label.setText(least)
            return
        width, height = (n * known / 1000 for n in self._dimensions)
        self.size_label.setText(f"{width:.3g} × {height:.3g} mm")


def ask_mpp(slide: Slide, parent: QWidget | None = None) -> float | None:
    """Ask for a slide's pixel size and remember the answer; None if there is none.

    The slide then knows it. An open layer is re-scaled by ``Session.settle_mpp``, which
    takes the answer again.
    """
    dialog = MppDialog(slide, parent or _window())
    answer = dialog.mpp if dialog.exec_() == QDialog.DialogCode.Accepted else None
    dialog.deleteLater()
    if answer is not None:
        slide.settle_mpp(answer)
    return answer


def _window() -> QWidget | None:
    """Return the window to ask in, so that the dialog has napari's theme."""
    active = QApplication.activeWindow()
    seen = [
        window
        for window in QApplication.topLevelWidgets()
        if isinstance(window, QMainWindow) and window.isVisible()
    ]
    return active or (seen[0] if seen else None)
