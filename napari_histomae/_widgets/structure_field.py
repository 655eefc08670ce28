"""The smallest structure that must stay visible, and what becomes of it."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from histomae.data.masking import AT_MOST, MaskSetting, hidden_entirely, suggested
from histomae.errors import ConfigError
from napari_histomae._widgets.common import SPACING, ElidedLabel

MICROMETRES, PIXELS = "µm", "px"
INVITATION = "Name a size to see how often a mask hides it wholly."


class StructureField(QWidget):
    """A size, how often a mask hides something of that size, and what to do about it.

    ``taken`` hands over the patch size and the mask ratio of a suggestion.
    """

    taken = Signal(int, float)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._tile_px = 224
        self._mpp: float | None = None
        self._setting = MaskSetting(16, 0.75)
        self._suggestion: MaskSetting | None = None
        self.size = QLineEdit()
        self.size.setPlaceholderText("none")
        self.size.setMaximumWidth(64)
        self.size.setToolTip(
            "Width of the smallest structure that must not be lost:\n"
            "a nucleus is 6 to 15 µm wide, a small duct 50 to 100 µm."
        )
        self.unit = QComboBox()
        self.unit.addItem("µm", MICROMETRES)
        self.unit.addItem("px of a tile", PIXELS)
        self.in_pixels = QLabel()
        self.answer = ElidedLabel()
        self.take_button = QPushButton()
        self.answer.setMinimumHeight(self.take_button.sizeHint().height())
        self.size.textEdited.connect(self._answer)
        self.unit.activated.connect(self._answer)
        self.take_button.clicked.connect(self._on_take)
        self._lay_out()
        self._answer()

    def _lay_out(self) -> None:
        row = QHBoxLayout()
        row.setSpacing(SPACING)
        row.addWidget(QLabel("Smallest structure"))
        row.addWidget(self.size)
        row.addWidget(self.unit)
        row.addWidget(self.in_pixels)
        row.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, SPACING, 0, 0)
        layout.setSpacing(3)
        layout.addLayout(row)
        line = QHBoxLayout()
        line.setSpacing(SPACING)
        line.addWidget(self.answer, 1)
        line.addWidget(self.take_button)
        layout.addLayout(line)

    def show_setting(
        self, tile_px: int, mpp: float | None, setting: MaskSetting
    ) -> None:
        """Answer for these settings; ``mpp`` in µm per pixel, None: not known yet."""
        self._tile_px, self._mpp, self._setting = tile_px, mpp, setting
        self._answer()

    @property
    def suggestion(self) -> MaskSetting | None:
        """The setting that the button hands over; None: it is hidden."""
        return self._suggestion

    def _size_px(self) -> float | None:
        """Return the width in pixels of a tile; None where nothing is named.

        Raises
        ------
        ConfigError
            If it is no number, or its pixels are not known.
        """
        text = self.size.text().strip().replace(",", ".")
        if not text:
            return None
        try:
            size = float(text)
        except ValueError as error:
            raise ConfigError("structure", f"{text!r} is no number.") from error
        if self.unit.currentData() == PIXELS:
            return size
        if self._mpp is None:
            raise ConfigError(
                "structure",
                "Open a slide first, or give the width in pixels.",
            )
        return size / self._mpp

    def _answer(self) -> None:
        """Say how often the structure is hidden, and suggest what hides it less."""
        self._suggestion = size_px = None
        try:
            size_px = self._size_px()
            text = INVITATION if size_px is None else self._found(size_px)
        except ConfigError as error:
            text = error.reason
        self.answer.setText(text)
        converted = size_px is not None and self.unit.currentData() == MICROMETRES
        self.in_pixels.setText(f"= {size_px:.3g} px" if converted else "")
        self._offer(size_px)

    def _offer(self, size_px: float | None) -> None:
        """Show the button if there is a suggestion, with what it would bring."""
        better = self._suggestion
        self.take_button.setVisible(better is not None)
        if better is None or size_px is None:
            return
        ratio = _percent(better.mask_ratio)
        then = hidden_entirely(size_px, self._tile_px, better)
        self.take_button.setText(f"Take {better.patch_size} px, {ratio}")
        self.take_button.setToolTip(
            f"Patches of {better.patch_size} px and {ratio} hidden: "
            f"{_percent(then.mean)} of the masks hide all of it.\n"
            f"The fastest setting with which no more than {_percent(AT_MOST)} do."
        )

    def _found(self, size_px: float) -> str:
        hidden = hidden_entirely(size_px, self._tile_px, self._setting)
        text = f"Wholly hidden: {_percent(hidden.mean)}"
        better = suggested(size_px, self._tile_px, self._setting)
        if better is None:
            return f"{text}. Only a finer pixel size helps."
        if better == self._setting:
            return f"{text}. It stays in sight."
        self._suggestion = better
        return f"{text}, at worst {_percent(hidden.worst)}"

    def _on_take(self) -> None:
        if self._suggestion is not None:
            self.taken.emit(self._suggestion.patch_size, self._suggestion.mask_ratio)


def _percent(share: float) -> str:
    """Return a share as a person reads it; what is tiny is said to be so."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
