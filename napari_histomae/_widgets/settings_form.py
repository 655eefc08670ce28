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

from histomae.config import METHODS, ON_FEATURES, PretrainConfig
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
    methods: tuple[str, ...] = METHODS
    """Those that it is a setting of."""


#: Methods that look at pixels.
ON_PIXELS = tuple(name for name in METHODS if name not in ON_FEATURES)
#: The settings that matter, in the order in which they are shown.
SETTINGS = (
    Shown(
        "slide_encoder",
        "Encoder",
        choices={"pama_small": "small", "pama_base": "base"},
        methods=ON_FEATURES,
    ),
    Shown("tiles_per_anchor", "Anchor", "tiles", methods=ON_FEATURES),
    Shown("most_tiles", "At most", "tiles", methods=ON_FEATURES),
    Shown("anchor_dropout", "Dropped", "%", per_one=100.0, methods=ON_FEATURES),
    Shown("tile_px", "Tile", "px", methods=ON_PIXELS),
    Shown("mpp", "Pixel size", "µm", empty="auto", methods=ON_PIXELS),
    Shown(
        "encoder",
        "Encoder",
        choices={
            "vit_small": "ViT-small",
            "vit_tiny": "ViT-tiny",
            "vit_micro": "ViT-micro",
            "resnet50": "ResNet-50",
            "resnet50_dilated": "ResNet-50/8",
            "efficientnet_b2": "EffNet-b2",
        },
        methods=ON_PIXELS,
    ),
    Shown("patch_size", "Patch", "px", methods=ON_PIXELS),
    Shown(
        "mask_ratio",
        "Hidden",
        "%",
        per_one=100.0,
        methods=("mae", "sd-mae", *ON_FEATURES),
    ),
    Shown(
        "pair_strategy",
        "Pairs",
        choices={"ordered": "one finer", "random": "any two", "fixed": "finest"},
        methods=("mpcs",),
    ),
    Shown("view_factors", "Seen at", "×", methods=("mpcs",)),
    Shown("temperature", "Temp. τ", methods=("mpcs",)),
    Shown("crops_per_slide", "Crops/slide", methods=ON_PIXELS),
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
        self._rows: dict[str, tuple[QWidget, ...]] = {}
        self._shown: tuple[Shown, ...] = ()
        self.mark = FieldMark()
        self._form = QGridLayout(self)
        self._form.setContentsMargins(0, 0, 0, 0)
        self._form.setHorizontalSpacing(4)
        self._form.setVerticalSpacing(3)
        for shown in SETTINGS:
            label = QLabel(shown.label, self)
            editor = self._editor(shown)
            editor.setParent(self)
            help_text = f"{setting_help()[shown.name]}\n({shown.name})"
            label.setToolTip(help_text)
            editor.setToolTip(help_text)
            unit = (QLabel(shown.unit, self),) if shown.unit else ()
            self._editors[shown.name] = editor
            self._rows[shown.name] = (label, editor, *unit)
        self.show_method(self._base.method)
        self.set_config(self._base)

    def show_method(self, method: str) -> None:
        """Show the settings that a method has; the others keep their values."""
        self._shown = tuple(shown for shown in SETTINGS if method in shown.methods)
        for widget in (one for row in self._rows.values() for one in row):
            self._form.removeWidget(widget)
            widget.hide()
        for index, shown in enumerate(self._shown):
            row, column = index // 2, index % 2 * 3
            label, editor, *unit = self._rows[shown.name]
            self._form.addWidget(label, row, column)
            self._form.addWidget(editor, row, column + 1, 1, 1 if unit else 2)
            for widget in unit:
                self._form.addWidget(widget, row, column + 2)
            for widget in (label, editor, *unit):
                widget.show()
            self._form.setColumnStretch(column + 1, 1)

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
        return self._base.changed({s.name: self._value(s) for s in self._shown})

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
        text = editor.text().strip()
        if not text:
            if shown.empty:
                return None
            raise ConfigError(shown.name, "is empty. Give a number.")
        if isinstance(_defaults()[shown.name], tuple):
            return _numbers(shown.name, text)
        text = text.replace(",", ".")
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
        elif isinstance(value, tuple):
            editor.setText(", ".join(f"{number:g}" for number in value))
        else:
            editor.setText(f"{value * shown.per_one:g}")

    def _on_edited(self) -> None:
        self.changed.emit()


def _numbers(name: str, text: str) -> tuple[float, ...]:
    """Return the numbers of a list such as ``1, 2, 4``."""
    try:
        return tuple(float(one) for one in text.replace(",", " ").split())
    except ValueError as error:
        raise ConfigError(
            name, f"{text!r} is no list of numbers. Give one such as 1, 2, 4."
        ) from error


def sentence(problem: ConfigError) -> str:
    """Return what is wrong under the label that a person sees."""
    labels = {shown.name: shown.label for shown in SETTINGS}
    return f"{labels.get(problem.field, problem.field)}: {problem.reason}"


def summary(config: PretrainConfig, mpp: float | None) -> str:
    """Return the present values in one line; ``mpp`` is what None comes to."""
    if config.method in ON_FEATURES:
        return (
            f"{config.slide_encoder} · hidden {config.mask_ratio:.0%}".replace(
                "%", " %"
            )
            + f" · {config.tiles_per_anchor} tiles per anchor · batch "
            f"{config.batch_size}"
        )
    resolution = config.mpp or mpp
    parts = [f"tile {config.tile_px} px"]
    pairs = config.method == "mpcs"
    if resolution is not None:
        factors = sorted(config.view_factors) if pairs else (1.0,)
        seen = ", ".join(f"{resolution * factor:.3g}" for factor in factors)
        parts.append(f"{seen} µm/px")
    if not pairs:
        parts.append(f"hidden {config.mask_ratio:.0%}".replace("%", " %"))
    return " · ".join([*parts, f"batch {config.batch_size}"])


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
