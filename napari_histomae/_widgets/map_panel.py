"""The maps of a slide: which one, which classes, from which confidence on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSlider,
    QWidget,
)

from histomae.data.classes import UNSURE
from napari_histomae import _layers, _review, _review_layers
from napari_histomae._widgets.class_list import ClassList
from napari_histomae._widgets.common import SPACING
from napari_histomae._widgets.hider import HIDE_KEY, Hider

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from histomae.infer.predict import Prediction
    from histomae.slides.slide import Slide
    from napari_histomae._review import Findings, MapChoice, Results
    from napari_histomae._session import Session

#: Where the threshold of a kind of map begins, percent, and what it is called.
FIRST_THRESHOLDS = {_review.CLASSES: 50, _review.PROBABILITY: 0}
THRESHOLD_WORDS = {
    _review.CLASSES: (
        "Sure from",
        "Tiles whose likeliest class is less probable than this are unsure.",
    ),
    _review.PROBABILITY: ("Show from", "Less probable tiles are not shown."),
}


class MapPanel(QWidget):
    """Shows the maps of the session's slide as layers; nothing here is slow.

    Signals
    -------
    wanted
        A map was chosen that nobody has made yet: its kind.
    """

    wanted = Signal(str)

    def __init__(
        self, session: Session, results: Results, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._session = session
        self._results = results
        self._hider = Hider(session)
        self._thresholds = dict(FIRST_THRESHOLDS)
        self._make_fields()
        self._connect()
        self._lay_out()
        self.offer((), decoder=False)

    # ---- four paragraphs

    def _make_fields(self) -> None:
        self.map_box = QComboBox()
        self.hide_button = QPushButton("Hide")
        self.hide_button.setToolTip(
            f"Hold to see the bare tissue; the key {HIDE_KEY} does the same."
        )
        self.threshold, self.threshold_label = _slider()
        self.threshold_words = QLabel()
        self.opacity, self.opacity_label = _slider()
        self.classes = ClassList()

    def _connect(self) -> None:
        self.map_box.activated.connect(lambda _: self._on_map_chosen())
        self.hide_button.pressed.connect(self.hide_overlays)
        self.hide_button.released.connect(self.show_overlays)
        self.threshold.valueChanged.connect(self._on_threshold_changed)
        self.opacity.valueChanged.connect(self._on_opacity_changed)
        self.classes.changed.connect(self._on_classes_changed)
        self.opacity.setValue(round(100 * _layers.OVERLAY_OPACITY))

    def _lay_out(self) -> None:
        chosen, sliders = QHBoxLayout(), QHBoxLayout()
        for row in (chosen, sliders):
            row.setSpacing(SPACING)
        chosen.addWidget(QLabel("Map"))
        chosen.addWidget(self.map_box, 1)
        chosen.addWidget(self.hide_button)
        sliders.addWidget(self.threshold_words)
        sliders.addWidget(self.threshold, 1)
        sliders.addWidget(self.threshold_label)
        sliders.addWidget(QLabel("Opacity"))
        sliders.addWidget(self.opacity, 1)
        sliders.addWidget(self.opacity_label)
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setVerticalSpacing(SPACING)
        layout.addLayout(chosen, 0, 0)
        layout.addLayout(sliders, 1, 0)
        layout.addWidget(self.classes, 2, 0)

    # ---- what holds now

    @property
    def choice(self) -> MapChoice:
        """The map that is chosen."""
        chosen: MapChoice = self.map_box.currentData()
        return chosen

    @property
    def findings(self) -> Findings | None:
        """What is known of the slide."""
        return self._results.on(self._slide)

    @property
    def prediction(self) -> Prediction | None:
        """The classes of the slide's tiles."""
        return self.findings.prediction if self.findings else None

    @property
    def _slide(self) -> Slide | None:
        return self._session.slide

    # ---- what is shown

    def offer(
        self, class_names: Sequence[str], *, decoder: bool, begin: bool = False
    ) -> None:
        """Offer the maps that can be made.

        Parameters
        ----------
        class_names
            Of the classifier; empty without one.
        begin
            Choose the first map, and not the one that was chosen.
        """
        before = self.map_box.currentText()
        self.map_box.clear()
        for choice in _review.choices(class_names, decoder=decoder):
            self.map_box.addItem(choice.label, choice)
        at = -1 if begin else self.map_box.findText(before)
        self.map_box.setCurrentIndex(max(0, at))
        self.refresh()

    def choose_known(self) -> None:
        """Choose the first map that is known, if the chosen one is not."""
        found = self.findings
        if found is None or found.has(self.choice):
            return
        for at in range(self.map_box.count()):
            if found.has(self.map_box.itemData(at)):
                self.map_box.setCurrentIndex(at)
                break
        self.refresh()

    def refresh(self) -> None:
        """List the classes of the slide, with their areas."""
        known = self.prediction
        self.classes.setVisible(known is not None)
        if known is not None:
            self.classes.set_classes(
                (*known.class_names, _review_layers.UNSURE_NAME),
                (*known.class_colors, UNSURE),
            )
            self._refresh_areas()
        self._refresh_threshold()

    def _refresh_threshold(self) -> None:
        """Show the threshold of this kind of map, if it has one."""
        kind = self.choice.kind
        for widget in (self.threshold_words, self.threshold, self.threshold_label):
            widget.setVisible(kind in self._thresholds)
        if kind in self._thresholds:
            words, tip = THRESHOLD_WORDS[kind]
            self.threshold_words.setText(words)
            self.threshold.setToolTip(tip)
            self.threshold.blockSignals(True)
            self.threshold.setValue(self._thresholds[kind])
            self.threshold.blockSignals(False)
            self.threshold_label.setText(f"{self._thresholds[kind]} %")

    def show_map(self, *, fresh: bool = False) -> None:
        """Show the chosen map; if ``fresh``, those of an earlier survey are removed."""
        found, slide = self.findings, self._slide
        if found is None or slide is None or not found.has(self.choice):
            return
        viewer = self._session.viewer
        if fresh:
            _review_layers.drop_maps(viewer, slide, self.choice)
        _review_layers.show_map(
            viewer,
            slide,
            found,
            self.choice,
            threshold=self._thresholds.get(self.choice.kind, 0) / 100,
            shown=self.classes.shown,
            opacity=self.opacity.value() / 100,
        )

    def hide_overlays(self) -> None:
        """Hide every result on the slide, until :meth:`show_overlays`."""
        self._hider.hide()

    def show_overlays(self) -> None:
        """Show again what was hidden."""
        self._hider.show()

    def hold_to_hide(self, viewer: Any) -> Iterator[None]:
        """Hide every result while a key is held: what napari binds to the key."""
        return self._hider.hold(viewer)

    # ---- handlers

    def _on_map_chosen(self) -> None:
        self.refresh()
        found = self.findings
        if found is None:
            return
        if found.has(self.choice):
            self.show_map()
        else:
            self.wanted.emit(self.choice.kind)

    def _on_threshold_changed(self) -> None:
        self._thresholds[self.choice.kind] = self.threshold.value()
        self.threshold_label.setText(f"{self.threshold.value()} %")
        self._refresh_areas()
        self.show_map()

    def _on_opacity_changed(self) -> None:
        self.opacity_label.setText(f"{self.opacity.value()} %")
        if self._slide is not None:
            for layer in _review_layers.map_layers(self._session.viewer, self._slide):
                layer.opacity = self.opacity.value() / 100

    def _on_classes_changed(self) -> None:
        if self._slide is None or self.prediction is None:
            return
        for layer in _layers.layers_of(self._session.viewer, self._slide, "classes"):
            _review_layers.restyle(layer, self.prediction, self.classes.shown)

    def _refresh_areas(self) -> None:
        known = self.prediction
        if known is not None:
            areas = list(
                known.area_mm2(self._thresholds[_review.CLASSES] / 100).values()
            )
            unsure = sum(known.area_mm2().values()) - sum(areas)
            self.classes.set_areas([*areas, max(0.0, unsure)])


def _slider() -> tuple[QSlider, QLabel]:
    """Return a slider from 0 to 100 and the label of its value."""
    slider, label = QSlider(Qt.Orientation.Horizontal), QLabel()
    slider.setRange(0, 100)
    slider.setPageStep(5)
    label.setMinimumWidth(label.fontMetrics().horizontalAdvance("100 %"))
    return slider, label
