"""The settings of a pretraining as a form, made from ``PretrainConfig``.

The form knows labels and units; what is right is decided by the dataclass, whose
``ConfigError`` names the field that is wrong.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import pairwise
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QGridLayout, QLabel, QLineEdit, QWidget

from histomae.config import PretrainConfig
from histomae.errors import ConfigError
from napari_histomae._widgets.common import BAD, FieldMark

#: How a field that is wrong is drawn.
WRONG = f"QLineEdit {{ border: 1px solid {BAD}; }}"


@dataclass(frozen=True)
class Shown:
    """How one setting is shown: its label, unit, and how many of that unit are 1."""

    name: str
    label: str
    unit: str = ""
    per_one: float = 1.0
    empty: str = ""
    """What an empty field stands for; a setting without it may not be empty."""
    choices: dict[str, str] = field(default_factory=dict)


#: The settings that matter, in the order in which they are shown.
SETTINGS = (
    Shown("tile_px", "Tile", "px"),
    Shown("mpp", "Pixel size", "µm", empty="auto"),
    Shown(
        "encoder",
        "Encoder",
        choices={
            "vit_small": "ViT-small",
            "vit_tiny": "ViT-tiny",
            "vit_micro": "ViT-micro",
        },
    ),
    Shown("patch_size", "Patch", "px"),
    Shown("mask_ratio", "Hidden", "%", per_one=100.0),
    Shown("crops_per_slide", "Crops/slide"),
    Shown("epochs", "Epochs"),
    Shown("warmup_epochs", "Warm-up", "ep."),
    Shown("batch_size", "Batch"),
    Shown("base_lr", "Learn. rate"),
)


class SettingsForm(QWidget):
    """Two columns of fields; ``changed`` tells that a person edited one."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._base = PretrainConfig()
        self._editors: dict[str, QLineEdit | QComboBox] = {}
        self.mark = FieldMark()
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setHorizontalSpacing(4)
        layout.setVerticalSpacing(3)
        for index, shown in enumerate(SETTINGS):
            row, column = index // 2, index % 2 * 3
            label = QLabel(shown.label)
            editor = self._editor(shown)
            help_text = f"{setting_help()[shown.name]}\n({shown.name})"
            label.setToolTip(help_text)
            editor.setToolTip(help_text)
            self._editors[shown.name] = editor
            layout.addWidget(label, row, column)
            if shown.unit:
                layout.addWidget(editor, row, column + 1)
                layout.addWidget(QLabel(shown.unit), row, column + 2)
            else:
                layout.addWidget(editor, row, column + 1, 1, 2)
            layout.setColumnStretch(column + 1, 1)
        self.set_config(self._base)

    def _editor(self, shown: Shown) -> QLineEdit | QComboBox:
        if shown.choices:
            box = QComboBox()
            for value, text in shown.choices.items():
                box.addItem(text, value)
            box.setMinimumContentsLength(8)
            box.setSizeAdjustPolicy(
                QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
            )
            box.activated.connect(self._on_edited)
            return box
        line = QLineEdit()
        line.setMinimumWidth(52)
        line.setAlignment(Qt.AlignmentFlag.AlignRight)
        line.setPlaceholderText(shown.empty)
        line.textEdited.connect(self._on_edited)
        return line

    # ---- values

    def set_config(self, config: PretrainConfig) -> None:
        """Show these settings; those that have no field are kept as they are."""
        self._base = config
        for shown in SETTINGS:
            self._set_text(shown, getattr(config, shown.name))
        self.say(None)

    def config(self) -> PretrainConfig:
        """Return the settings in the form.

        Raises
        ------
        ConfigError
            If one is wrong; its ``field`` names it.
        """
        return self._base.changed({s.name: self._value(s) for s in SETTINGS})

    def text(self, name: str) -> str:
        """Return what a field shows."""
        editor = self._editors[name]
        if isinstance(editor, QComboBox):
            return editor.currentText()
        return editor.text()

    def edit(self, name: str, text: str) -> None:
        """Type into a field, as a person does."""
        editor = self._editors[name]
        if isinstance(editor, QComboBox):
            editor.setCurrentIndex(editor.findData(text))
        else:
            editor.setText(text)
        self._on_edited()

    def set_automatic(self, name: str, text: str) -> None:
        """Say what an empty field stands for, such as ``auto: 0.69``."""
        editor = self._editors[name]
        if isinstance(editor, QLineEdit):
            editor.setPlaceholderText(text)

    def say(self, problem: ConfigError | None) -> None:
        """Mark the field that is wrong and say why; None: all is well."""
        for name, editor in self._editors.items():
            wrong = problem is not None and problem.field == name
            editor.setStyleSheet(WRONG if wrong else "")
        self.mark.say("" if problem is None else sentence(problem))

    def marked(self) -> list[str]:
        """Return the names of the fields that are marked."""
        return [name for name, e in self._editors.items() if e.styleSheet() == WRONG]

    def _value(self, shown: Shown) -> Any:
        editor = self._editors[shown.name]
        if isinstance(editor, QComboBox):
            return editor.currentData()
        text = editor.text().strip().replace(",", ".")
        if not text:
            if shown.empty:
                return None
            raise ConfigError(shown.name, "is empty. Give a number.")
        whole = isinstance(_defaults()[shown.name], int)
        try:
            return int(text) if whole else float(text) / shown.per_one
        except ValueError as error:
            kind = "whole number" if whole else "number"
            raise ConfigError(
                shown.name, f"{text!r} is no {kind}. Give one."
            ) from error

    def _set_text(self, shown: Shown, value: Any) -> None:
        editor = self._editors[shown.name]
        if isinstance(editor, QComboBox):
            editor.setCurrentIndex(editor.findData(value))
        elif value is None:
            editor.clear()
        else:
            editor.setText(f"{value * shown.per_one:g}")

    def _on_edited(self) -> None:
        self.changed.emit()


def sentence(problem: ConfigError) -> str:
    """Return what is wrong under the label that a person sees."""
    labels = {shown.name: shown.label for shown in SETTINGS}
    return f"{labels.get(problem.field, problem.field)}: {problem.reason}"


def summary(config: PretrainConfig, mpp: float | None) -> str:
    """Return the present values in one line; ``mpp`` is what None comes to."""
    resolution = config.mpp or mpp
    parts = [f"tile {config.tile_px} px"]
    if resolution is not None:
        parts.append(f"{resolution:.3g} µm/px")
    parts += [
        f"hidden {config.mask_ratio:.0%}".replace("%", " %"),
        f"batch {config.batch_size}",
    ]
    return " · ".join(parts)


@cache
def setting_help() -> dict[str, str]:
    """Return the text under each field of ``PretrainConfig``."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(PretrainConfig))).body
    texts = {}
    for first, second in pairwise(getattr(made, "body", [])):
        match first, second:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = text
    return texts


@cache
def _defaults() -> dict[str, Any]:
    return {one.name: one.default for one in fields(PretrainConfig)}
