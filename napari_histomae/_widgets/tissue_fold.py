"""What counts as tissue on the slide, seen at once on the slide itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QDockWidget,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from histomae.slides.tissue import (
    Overview,
    TissueMask,
    TissueParams,
    overview,
    remembered_params,
)
from napari_histomae import _layers
from napari_histomae._jobs import Job, describe, start_job
from napari_histomae._widgets.common import (
    SPACING,
    FieldMark,
    MoreSettings,
    why_disabled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from histomae.events import Event
    from histomae.slides.slide import Slide
    from napari_histomae._session import Session

#: What is set is remembered, and told to others, so long after the last change, ms.
SETTLE_MS = 400


@dataclass(frozen=True)
class Knob:
    """One slider: the setting that it moves, and the values on its way.

    ``tip`` ends with what happens further left.
    """

    name: str
    label: str
    tip: str
    steps: tuple[float, ...]
    says: Callable[[float], str]

    def nearest(self, value: float) -> int:
        """Return the number of the step next to a value."""
        return min(range(len(self.steps)), key=lambda at: abs(self.steps[at] - value))


def density_of(percent: float) -> float:
    """Return the optical density that takes so many percent of the light."""
    return -math.log10(1 - percent / 100)


def light_taken(density: float) -> str:
    """Return how much light an optical density takes."""
    return f"{100 * (1 - 10**-density):.0f} %"


AREAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
KNOBS = (
    Knob(
        "least_density",
        "Stain from",
        "Tissue takes at least so much of the light.\n"
        "Further left, paler tissue is taken in.",
        tuple(map(density_of, range(2, 61))),
        light_taken,
    ),
    Knob(
        "least_texture",
        "Texture from",
        "From cell to cell the light varies by at least so much.\n"
        "Further left, smoother areas are taken in.",
        tuple(map(density_of, range(41))),
        light_taken,
    ),
    Knob(
        "least_area_mm2",
        "Pieces from",
        "Smaller pieces are dust.\nFurther left, smaller ones are taken in.",
        AREAS,
        "{:g} mm²".format,
    ),
    Knob(
        "largest_hole_mm2",
        "Holes up to",
        "Smaller holes belong to the tissue.\nFurther left, smaller ones are left out.",
        AREAS,
        "{:g} mm²".format,
    ),
    Knob(
        "closing_um",
        "Gaps up to",
        "Narrower gaps belong to the tissue.\n"
        "Further left, narrower ones are left out.",
        tuple(range(0, 401, 8)),
        "{:g} µm".format,
    ),
)


class TissueFold(QWidget):
    """A fold with what counts as tissue on the slide that is worked on.

    While it is open, what is no tissue lies under a veil on the slide, drawn anew with
    every change. What is set is remembered for that slide.
    """

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session = session
        self._slide: Slide | None = None
        self._veiled: Slide | None = None
        self._overview: Overview | None = None
        self._params = TissueParams()
        self._job: Job | None = None
        self._look_again = self._is_shut = False
        self._dock: QDockWidget | None = None
        self._is_in_front = True
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._make_fields()
        self._connect()
        self._lay_out()
        self._on_slide_changed()

    # ---- four paragraphs: fields, connections, layout; the initial values come last

    def _make_fields(self) -> None:
        self.fold = MoreSettings("Tissue", one_line=True)
        self.sliders: dict[str, QSlider] = {}
        self._values: dict[str, QLabel] = {}
        for knob in KNOBS:
            slider = QSlider(Qt.Orientation.Horizontal)
            slider.setRange(0, len(knob.steps) - 1)
            slider.setPageStep(5)
            slider.setToolTip(knob.tip)
            self.sliders[knob.name] = slider
            self._values[knob.name] = label = QLabel()
            label.setMinimumWidth(label.fontMetrics().horizontalAdvance("15 %, auto "))
        self.marks = QCheckBox("Leave out pen marks, dust, glass edges")
        self.marks.setToolTip(
            "What is inked, grey, or dark without any structure is no tissue."
        )
        self.reset = QPushButton("Reset")
        self.reset.setToolTip("Back to what is usual, for this slide")
        self.mark = FieldMark()

    def _connect(self) -> None:
        self.fold.toggled.connect(self._on_shown)
        for knob in KNOBS:
            self.sliders[knob.name].valueChanged.connect(
                lambda at, knob=knob: self._edit(**{knob.name: float(knob.steps[at])})
            )
        self.marks.toggled.connect(lambda on: self._edit(leave_out_marks=bool(on)))
        self.reset.clicked.connect(lambda: self.set_params(TissueParams()))
        self._settle.timeout.connect(self._keep)
        self._session.slide_changed.connect(self._on_slide_changed)
        self._session.slides_changed.connect(self._on_slide_changed)
        self._session.tissue_changed.connect(self._on_tissue_changed)

    def _lay_out(self) -> None:
        form = QGridLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.setHorizontalSpacing(SPACING)
        form.setVerticalSpacing(1)
        form.setColumnStretch(1, 1)
        for row, knob in enumerate(KNOBS):
            form.addWidget(QLabel(knob.label), row, 0)
            form.addWidget(self.sliders[knob.name], row, 1)
            form.addWidget(self._values[knob.name], row, 2)
        last = QHBoxLayout()
        last.addWidget(self.marks, 1)
        last.addWidget(self.reset)
        body = QVBoxLayout(self.fold.body)
        body.setContentsMargins(0, 0, 0, 0)
        body.setSpacing(2)
        body.addLayout(form)
        body.addLayout(last)
        body.addWidget(self.mark)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.fold)

    # ---- what is set

    @property
    def params(self) -> TissueParams:
        """What counts as tissue, as the fold shows it."""
        return self._params

    def set_params(self, params: TissueParams) -> None:
        """Set all of it, as a person does; the slide shows it."""
        if params != self._params:
            self._params = params
            self._show_fields()
            self._settle.start()
            self._look()

    def _edit(self, **changes: Any) -> None:
        self.set_params(replace(self._params, **changes))

    def _keep(self) -> None:
        """Remember what is set, and tell others."""
        self._settle.stop()
        if self._slide is not None:
            self._session.set_tissue(self._slide, self._params)

    def _show_fields(self) -> None:
        for knob in KNOBS:
            value = getattr(self._params, knob.name)
            is_automatic = value is None
            if is_automatic and self._overview is not None:
                value = self._overview.automatic_density
            says = "auto" if value is None else knob.says(value)
            if is_automatic and value is not None:
                says += ", auto"
            self._values[knob.name].setText(says)
            slider = self.sliders[knob.name]
            slider.blockSignals(True)
            slider.setValue(knob.nearest(value or 0.0))
            slider.blockSignals(False)
        self.marks.blockSignals(True)
        self.marks.setChecked(self._params.leave_out_marks)
        self.marks.blockSignals(False)
        why_disabled(self.reset, "" if self._params.changes else "Nothing is changed.")
        if not self._is_looked_at:
            usual = "set for this slide" if self._params.changes else "automatic"
            self.fold.set_summary(usual if self._slide else "")

    # ---- the slide

    def _on_slide_changed(self) -> None:
        slide = self._session.slide
        if slide is not None and not slide.has_mpp:
            slide = None
        if slide is not self._slide:
            if self._settle.isActive():
                self._keep()  # of the slide before
            self._lift_veil()
            self._slide, self._overview = slide, None
            self._params = TissueParams() if slide is None else remembered_params(slide)
            self.mark.say("")
            self._show_fields()
            self._look()
        self.setVisible(slide is not None)

    def _on_tissue_changed(self, slide_id: str) -> None:
        """Follow another fold."""
        if self._slide is None or self._slide.slide_id != slide_id:
            return
        params = remembered_params(self._slide)
        if params != self._params and not self._settle.isActive():
            self._params = params
            self._show_fields()
            self._look()

    # ---- looking for it, in the background; the latest wish counts

    @property
    def _is_looked_at(self) -> bool:
        is_seen = self.isVisible() and self._is_in_front
        return self.fold.is_open and is_seen and not self._is_shut

    def _on_shown(self) -> None:
        if self._is_looked_at:
            self._look()
        else:
            self._lift_veil()
            self._show_fields()

    def _look(self) -> None:
        if self._slide is None or not self._is_looked_at:
            return
        if self._job is not None and self._job.running:
            self._look_again = True
            return
        slide, seen, params = self._slide, self._overview, self._params
        self._look_again = False
        self._job = start_job(
            self,
            lambda: find(slide, seen, params),
            name="Looking for tissue",
            on_done=lambda found: self._on_found(slide, *found),
            on_failed=self._on_failed,
            on_cancelled=lambda: None,
        )

    def _on_found(self, slide: Slide, seen: Overview, tissue: TissueMask) -> None:
        if slide is self._slide:
            self._overview = seen
            self._show_fields()
        if slide is not self._slide or self._look_again:
            self._look()
        if slide is not self._slide or not self._is_looked_at:
            return
        name = f"{slide.name} · tissue"
        _layers.show_tissue(self._session.viewer, slide, tissue, name)
        self._veiled = slide
        share = tissue.area_mm2() / slide_mm2(slide)
        self.fold.set_summary(
            f"{tissue.area_mm2():.3g} mm², {share:.0%}".replace("%", " %")
            + " of the slide"
        )

    def _on_failed(self, error: Exception) -> None:
        self.mark.say(describe(error))

    def _lift_veil(self) -> None:
        slide, self._veiled = self._veiled, None
        if slide is not None:
            viewer = self._session.viewer
            _layers.remove(viewer, slide, f"{slide.name} · tissue")

    # ---- coming and going

    def showEvent(self, event: Any) -> None:
        """Show the veil with the dock."""
        super().showEvent(event)
        self._watch_dock()
        self._on_shown()

    def hideEvent(self, event: Any) -> None:
        """Lift the veil."""
        super().hideEvent(event)
        if not event.spontaneous():
            self._on_shown()

    def _watch_dock(self) -> None:
        """Listen to the dock: behind another one, Qt calls it visible still."""
        around: Any = self.parent()
        while not (around is None or isinstance(around, QDockWidget)):
            around = around.parent()
        if around is not None and around is not self._dock:
            self._dock = around
            around.visibilityChanged.connect(self._on_dock_in_front)

    def _on_dock_in_front(self, is_in_front: bool) -> None:
        self._is_in_front = is_in_front
        if not self._is_shut:
            self._on_shown()

    def shut(self) -> None:
        """Keep what is set, lift the veil, and listen no more."""
        if self._is_shut:
            return
        if self._settle.isActive():
            self._keep()
        self._is_shut = True
        self._lift_veil()
        if self._job is not None:
            self._job.abandon()
        self._session.slide_changed.disconnect(self._on_slide_changed)
        self._session.slides_changed.disconnect(self._on_slide_changed)
        self._session.tissue_changed.disconnect(self._on_tissue_changed)


def find(
    slide: Slide, seen: Overview | None, params: TissueParams
) -> Generator[Event, None, tuple[Overview, TissueMask]]:
    """Look for tissue; the slide is read only the first time."""
    yield from ()
    seen = seen or overview(slide)
    return seen, seen.tissue(params)


def slide_mm2(slide: Slide) -> float:
    """Return the area of a slide, mm²."""
    sides = zip(slide.dimensions, slide.mpp, strict=True)
    return math.prod(pixels * mpp / 1000 for pixels, mpp in sides)
