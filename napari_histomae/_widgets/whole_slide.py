"""The Whole slide dock: a slide as PAMA sees it, its anchors, attention and error."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSlider,
    QToolButton,
    QWidget,
)

from napari_histomae import _layers, _slide_layers, _whole_slide
from napari_histomae._session import Session
from napari_histomae._whole_slide import Wanted
from napari_histomae._widgets.class_list import ClassBars
from napari_histomae._widgets.common import (
    SPACING,
    ElidedBox,
    ElidedLabel,
    StateLine,
    dock_layout,
    mute,
    why_disabled,
)
from napari_histomae._widgets.dock import LookingDock
from napari_histomae._widgets.hider import HIDE_KEY, Hider
from napari_histomae._widgets.hooks import ViewerHooks
from napari_histomae._widgets.model import ModelChooser, SlideModelChooser

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer

    from histomae.infer.regions import Region
    from histomae.infer.slide_view import SlideView, TileWords
    from histomae.slides.slide import Slide

NO_SLIDE = "Open a slide first: drag a file into the window."
NO_MODEL = (
    "Choose a model of whole slides first, or make one in Train: Method, Slides as a "
    "whole."
)
NO_TILES = "Choose the encoder of its tiles, or a file of their features (…)."
WHOLE_SLIDE = "whole slide"
#: What each map is called, and what it says.
MAPS = {
    _whole_slide.AREAS: (
        "Areas of the anchors",
        "Each tile in the colour of the anchor nearest to it.",
    ),
    _whole_slide.GATHERED: (
        "Gathered by",
        "Each tile in the colour of the anchor that takes most of it.",
    ),
    _whole_slide.ONE_ANCHOR: (
        "One anchor's look",
        "Where the anchor nearest to the clicked tile looks: bright is much.",
    ),
    _whole_slide.ATTENTION: (
        "Attention",
        "Which tiles the slide as a whole is told by: bright is much.",
    ),
    _whole_slide.ERROR: (
        "Error",
        "Which tiles are unlike what the rest lets expect: red is more than usual, "
        "blue is less.",
    ),
}
#: Anchors that are listed of the clicked tile.
ANCHORS_LISTED = 6


class WholeSlideDock(LookingDock):
    """Look at a slide, or at a region drawn on it, with PAMA."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._session = Session.of(viewer)
        self._features: Path | None = None
        self._view: SlideView | None = None
        self._viewed: Slide | None = None
        self._tile: TileWords | None = None
        self._outline: Layer | None = None
        self._hider = Hider(self._session)
        self._camera = _layers.camera(self._session.viewer)
        self._open = False
        self._make_fields()
        self._connect()
        self._lay_out()
        self._open_up()
        self._refresh()

    # ---- four paragraphs: fields, connections, layout; the initial values come last

    def _make_fields(self) -> None:
        self.model = SlideModelChooser(self._session)
        self.encoder = ModelChooser(self._session)
        self.file_button = QToolButton()
        self.file_button.setText("…")
        self.file_label = ElidedLabel()
        self.slide_label = ElidedLabel()
        self.part = ElidedBox()
        self.part.setToolTip(
            "The whole slide, or a region drawn in Teach: its tiles alone"
        )
        self.run_button = QPushButton("Look at slide")
        self.cancel_button = QPushButton("Cancel")
        self.map_box = QComboBox()
        self.map_words = QLabel()
        self.map_words.setWordWrap(True)
        mute(self.map_words)
        self.hide_button = QPushButton("Hide")
        self.hide_button.setToolTip(
            f"Hold to see the bare tissue; the key {HIDE_KEY} does the same."
        )
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setValue(round(100 * _layers.OVERLAY_OPACITY))
        self.marks_box = QCheckBox("Anchors")
        self.marks_box.setChecked(True)
        self.marks_box.setToolTip("Mark the tiles that are anchors")
        self.arrows_box = QCheckBox("Directions")
        self.arrows_box.setToolTip(
            "At each anchor, the direction from which a head tells all others"
        )
        self.head = QComboBox()
        self.head.setToolTip("Whose main direction is drawn; each head has its own")
        self.title = ElidedLabel("Click a tile on the slide")
        self.words = QLabel()
        self.words.setWordWrap(True)
        self.words.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.bars = ClassBars()
        self.state = StateLine()
        self.hooks = ViewerHooks(
            self._session.viewer,
            on_click=self.on_click,
            keys={HIDE_KEY: self._hider.hold},
        )

    def _connect(self) -> None:
        for chooser in (self.model, self.encoder):
            chooser.ready.connect(self._refresh)
            chooser.failed.connect(self.state.failed)
        self.file_button.clicked.connect(self._on_file)
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.cancel)
        self.part.activated.connect(lambda _: self._refresh())
        self.map_box.activated.connect(lambda _: self._show_map())
        self.hide_button.pressed.connect(self._hider.hide)
        self.hide_button.released.connect(self._hider.show)
        self.opacity.valueChanged.connect(lambda _: self._show_map())
        self.marks_box.toggled.connect(lambda _: self._show_marks())
        self.arrows_box.toggled.connect(lambda _: self._show_marks())
        self.head.activated.connect(lambda _: self._show_marks())

    def _lay_out(self) -> None:
        form = QGridLayout()
        form.setHorizontalSpacing(SPACING)
        form.setVerticalSpacing(SPACING)
        form.setColumnStretch(1, 1)
        rows = (
            ("Model", _row(self.model)),
            ("Tiles", _row(self.encoder, self.file_label, self.file_button)),
            ("Slide", _row(self.slide_label)),
            ("Look at", _row(self.part, self.run_button, self.cancel_button)),
            ("Map", _row(self.map_box, self.hide_button)),
            ("", _row(self.map_words)),
            ("Opacity", _row(self.opacity)),
            ("Show", _row(self.marks_box, self.arrows_box, self.head)),
        )
        for number, (word, row) in enumerate(rows):
            form.addWidget(QLabel(word), number, 0)
            form.addLayout(row, number, 1)
        self.map_box.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        line = QFrame()
        line.setFrameShape(QFrame.Shape.HLine)
        line.setEnabled(False)
        layout = dock_layout(self)
        layout.addLayout(form)
        layout.addWidget(line)
        layout.addWidget(self.title)
        layout.addWidget(self.words)
        layout.addWidget(self.bars)
        layout.addStretch(1)
        layout.addWidget(self.state)

    # ---- what holds now

    @property
    def slide(self) -> Slide | None:
        """The slide that is worked on."""
        return self._session.slide

    @property
    def view(self) -> SlideView | None:
        """What was found, if it was on this slide."""
        return self._view if self._viewed is self.slide else None

    @property
    def tile(self) -> TileWords | None:
        """What is said of the clicked tile."""
        return self._tile

    # ---- running

    def use_features(self, path: str | Path | None) -> None:
        """Take the tiles from a file of features; None: the encoder makes them."""
        self._features = None if path is None else Path(path)
        self._refresh()

    def run(self) -> None:
        """Look at the slide, or at the region that is chosen."""
        slide, model = self.slide, self._session.slide_model_path
        if slide is None or model is None or self.running:
            return
        encoder, session = self._session.model_path, self._session
        region: Region | None = self.part.currentData()
        wanted = Wanted(
            slide, model, self._features, lambda: session.encoder(encoder), region
        )
        self._start(
            lambda: _whole_slide.look(wanted),
            f"Looking at {slide.name}",
            partial(self._on_view, slide),
        )

    def _on_view(self, slide: Slide, view: SlideView) -> None:
        if slide not in self._session.slides:
            self.state.idle(f"{slide.name} was closed meanwhile.")
            return
        self._forget()
        self._view, self._viewed = view, slide
        self._offer(view)
        self.state.done(
            f"{slide.name}: {len(view.cells):,} tiles, {len(view.anchors):,} anchors. "
            "Click a tile."
        )
        self._refresh()
        self._show_map()
        self._show_marks()

    # ---- what is shown

    def _offer(self, view: SlideView) -> None:
        """Offer the maps and heads of a view; what was chosen stays so."""
        chosen, head = self.map_box.currentData(), self.head.currentIndex()
        self.map_box.clear()
        for kind in _whole_slide.maps_of(view):
            self.map_box.addItem(MAPS[kind][0], kind)
        self.map_box.setCurrentIndex(max(0, self.map_box.findData(chosen)))
        self.head.clear()
        for number in range(len(view.angles)):
            self.head.addItem(f"head {number + 1}", number)
        self.head.setCurrentIndex(head if 0 <= head < len(view.angles) else 0)

    def choose_map(self, kind: str) -> None:
        """Show a map, as if it was chosen in the box."""
        self.map_box.setCurrentIndex(self.map_box.findData(kind))
        self._show_map()

    def _show_map(self) -> None:
        kind, slide, view = self.map_box.currentData(), self.slide, self.view
        self.map_words.setText(MAPS[kind][1] if kind else "")
        if view is not None and slide is not None and kind:
            anchor = 0 if self._tile is None else self._tile.nearest - 1
            _slide_layers.show_map(
                self._session.viewer,
                slide,
                view,
                kind,
                anchor=anchor,
                opacity=self.opacity.value() / 100,
            )

    def _show_marks(self) -> None:
        slide, view, viewer = self.slide, self.view, self._session.viewer
        self.head.setEnabled(self.arrows_box.isChecked())
        if view is None or slide is None:
            return
        _slide_layers.show_anchors(
            viewer, slide, view, visible=self.marks_box.isChecked()
        )
        _slide_layers.show_directions(
            viewer,
            slide,
            view,
            self.head.currentData(),
            visible=self.arrows_box.isChecked(),
        )

    def on_click(self, world_yx: tuple[float, float]) -> None:
        """Say what is known of the tile that was clicked."""
        if self.view is not None and self.slide is not None:
            x, y = _layers.l0_from_world(self.slide, world_yx)
            cell = self.view.grid.cell_at((float(x), float(y)))
            if cell is not None:
                self.look_at(cell)

    def look_at(self, cell: tuple[int, int]) -> None:
        """Say what is known of the tile at (row, column)."""
        slide, view = self.slide, self.view
        tile = None if view is None else view.tile_at(cell)
        if slide is None or view is None:
            return
        if tile is None:
            self.state.idle("This place is no tile of what was looked at.")
            return
        self._tile = tile
        x0, y0, x1, y1 = view.grid.box_l0(*cell)
        mpp_x, mpp_y = slide.mpp
        x_mm, y_mm = (x0 + x1) / 2 * mpp_x / 1000, (y0 + y1) / 2 * mpp_y / 1000
        self.title.setText(f"Tile {cell[0]}, {cell[1]} · {x_mm:.2f} mm, {y_mm:.2f} mm")
        self.words.setText(words_of(tile))
        colors = _slide_layers.anchor_colors(len(view.anchors))
        listed = tile.weights[:ANCHORS_LISTED]
        self.bars.set_bars(
            [f"takes from anchor {anchor}" for anchor, _ in listed],
            [weight for _, weight in listed],
            [colors[anchor - 1] for anchor, _ in listed],
        )
        self.bars.setMinimumHeight(self.bars.sizeHint().height())
        viewer = self._session.viewer
        self._outline = _slide_layers.show_tile(viewer, slide, view, cell)
        if self.map_box.currentData() == _whole_slide.ONE_ANCHOR:
            self._show_map()

    def _forget(self) -> None:
        """Show nothing of what was looked at before."""
        slide, self._view, self._viewed = self._viewed, None, None
        self._tile, self._outline = None, None
        self.title.setText("Click a tile on the slide")
        self.words.setText("")
        self.bars.clear()
        if slide is not None and slide in self._session.slides:
            _slide_layers.drop(self._session.viewer, slide)

    def _on_zoomed(self) -> None:
        slide = self._viewed
        if slide is not None and self._outline in list(self._session.viewer.layers):
            _layers.fit_outline(self._session.viewer, slide, self._outline)

    # ---- what others change

    def _on_slides_changed(self) -> None:
        if self._viewed is not None and self._viewed not in self._session.slides:
            self._forget()
        self._refresh()

    def _refresh(self) -> None:
        slide = self.slide
        self.slide_label.setText(slide.name if slide is not None else "none is open")
        self.encoder.setVisible(self._features is None)
        self.file_label.setVisible(self._features is not None)
        self.file_label.setText(self._features.name if self._features else "")
        self.file_button.setToolTip(
            "Take the tiles' features from a file"
            if self._features is None
            else "Let an encoder make the features again"
        )
        self._refresh_parts()
        self.run_button.setVisible(not self.running)
        self.cancel_button.setVisible(self.running)
        why_disabled(self.run_button, self._problem())
        known = self.view is not None
        for widget in (
            self.map_box,
            self.hide_button,
            self.opacity,
            self.marks_box,
            self.arrows_box,
        ):
            widget.setEnabled(known)
        self.head.setEnabled(known and self.arrows_box.isChecked())
        if self.state.kind == "idle":
            self.state.idle(self._problem() or "Press Look at slide.")

    def _refresh_parts(self) -> None:
        """List the whole slide and the regions drawn on it."""
        chosen, slide = self.part.currentText(), self.slide
        self.part.clear()
        self.part.addItem(WHOLE_SLIDE, None)
        if slide is not None:
            for region in _whole_slide.regions_on(self._session.viewer, slide):
                self.part.addItem(region.name, region)
        self.part.setCurrentIndex(max(0, self.part.findText(chosen)))

    def _problem(self) -> str:
        """Return why nothing can be looked at; empty if it can."""
        if self.slide is None:
            return NO_SLIDE
        if self._session.slide_model_path is None:
            return NO_MODEL
        if self._features is None and self._session.model_path is None:
            return NO_TILES
        return ""

    def _on_file(self) -> None:
        if self._features is not None:
            self.use_features(None)
            return
        path, _ = QFileDialog.getOpenFileName(
            self, "Features of this slide", "", "Features (*.h5)"
        )
        if path:
            self.use_features(path)

    # ---- coming and going

    def _open_up(self) -> None:
        self._open = True
        self._camera.events.zoom.connect(self._on_zoomed)
        self._session.slides_changed.connect(self._on_slides_changed)
        self._session.slide_changed.connect(self._on_slides_changed)

    def shut(self) -> None:
        """Stop what runs, give back keys and mouse, and listen no more."""
        if not self._open:
            return
        self._open = False
        self.hooks.detach()
        self._hider.show()
        self._abandon()
        self._camera.events.zoom.disconnect(self._on_zoomed)
        self._session.slides_changed.disconnect(self._on_slides_changed)
        self._session.slide_changed.disconnect(self._on_slides_changed)
        self.model.shut()
        self.encoder.shut()

    def showEvent(self, event: Any) -> None:
        """Look again: regions may have been drawn meanwhile."""
        super().showEvent(event)
        if self._open:
            self._refresh()


def words_of(tile: TileWords) -> str:
    """Return what is known of a tile, in lines."""
    if tile.is_anchor:
        lines = [f"It is anchor {tile.nearest}."]
    else:
        lines = [f"Nearest anchor {tile.nearest}, {tile.apart_um / 1000:.2f} mm away."]
    lines.append(f"Most of it is taken by anchor {tile.gathered_by}.")
    if tile.attention is not None:
        lines.append(f"Attention {tile.attention:.1f} × that of an even look.")
    if tile.error is not None and tile.error_rank is not None:
        share = int(100 * tile.error_rank)  # never 100: itself is one of them
        lines.append(f"Error {tile.error:.2f}, larger than that of {share} % of tiles.")
    return "\n".join(lines)


def _row(*widgets: QWidget) -> QHBoxLayout:
    """Lay widgets side by side; the first two share what room there is."""
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACING)
    for widget in widgets:
        wide = not isinstance(widget, QToolButton | QPushButton)
        row.addWidget(widget, 1 if wide else 0)
    return row
