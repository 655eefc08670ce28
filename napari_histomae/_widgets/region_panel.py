"""The part of Teach in which regions are drawn, named and corrected."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QShortcut,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from histomae.data.classes import PRESETS
from histomae.errors import ConfigError, HistomaeError
from napari_histomae import _layers
from napari_histomae._book import preset_of
from napari_histomae._teaching import grid_over
from napari_histomae._widgets.classes import KEYS, ClassTable
from napari_histomae._widgets.common import SPACING, ElidedLabel, count, why_disabled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histomae.slides.grid import TileSpec
    from histomae.slides.slide import Slide
    from napari_histomae._book import RegionBook
    from napari_histomae._session import Session

Color = tuple[int, int, int]

OWN = "Own classes"
#: How a region can be drawn: words, tool of the book, and what the mouse does then.
TOOL_WORDS = (
    ("freehand", "lasso", "Hold the mouse button and go around a region of {}."),
    ("by corners", "corners", "Click each corner around a region of {}; Enter ends."),
    ("rectangle", "rectangle", "Drag over a region of {}."),
)
REGION_FILES = "Regions (*.geojson *.json *.geojson.gz *.zip)"
HALF_DRAWN = "A region is half drawn. Finish it first: press Enter."


class RegionPanel(QWidget):
    """Classes and regions, and everything that is done to them by hand.

    Signals
    -------
    said, hinted, failed
        What was done; what to do; what went wrong, a sentence or an exception.

    Attributes
    ----------
    spec
        The model's tiles; None while there is no model.
    """

    said = Signal(str)
    hinted = Signal(str)
    failed = Signal(object)

    def __init__(
        self, session: Session, book: RegionBook, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._session = session
        self._viewer = session.viewer
        self._book = book
        self.spec: TileSpec | None = None
        self._tiles: Mapping[str, int] = {}
        self._keyed: list[Any] = []
        self._make_fields()
        self._connect()
        self._lay_out()
        self.take_keys()

    # ---- one paragraph each: fields, connections, layout

    def _make_fields(self) -> None:
        self.preset = QComboBox()
        self.preset.addItems([OWN, *PRESETS])
        self.preset.setToolTip("Classes to start from. Those in use stay.")
        self.add_class = push_button("+ class", "Add a class and name it.")
        self.remove_class = push_button("Remove")
        self.table = ClassTable()
        self.draw = push_button("Draw region")
        self.draw.setCheckable(True)
        self.tool = QComboBox()
        self.tool.addItems([words for words, _, _ in TOOL_WORDS])
        self.tool.setToolTip("How a region is drawn.")
        self.select = push_button("Select", "Click regions to change their class.")
        self.select.setCheckable(True)
        self.undo = push_button("Undo")
        self.hint = ElidedLabel()
        self.relabel = push_button("", "Give the picked regions this class.")
        self.delete = push_button("Delete", "Delete the picked regions.")
        self.load = push_button("Load regions…", "Add regions from GeoJSON.")
        self.save = push_button("Save regions…")
        self.saved = ElidedLabel("saved by themselves")
        self.saved.setToolTip(
            "Every change is saved at once in the slide's study, and comes back when "
            "the slide is opened."
        )

    def _connect(self) -> None:
        self._book.changed.connect(self._on_book_changed)
        self._book.picked.connect(self._show_mouse)
        self._session.slide_changed.connect(self.refresh)
        self._viewer.layers.events.inserted.connect(self._on_layers_changed)
        self.preset.activated.connect(self._on_preset_chosen)
        self.add_class.clicked.connect(self._on_add_class)
        self.remove_class.clicked.connect(self._on_remove_class)
        self.table.picked.connect(self._on_class_picked)
        self.table.renamed.connect(self._on_class_renamed)
        self.table.recoloured.connect(self._on_class_recoloured)
        self.table.numbered.connect(self._on_number)
        self.draw.clicked.connect(self._on_draw)
        self.tool.activated.connect(self._on_tool_chosen)
        self.select.clicked.connect(self._on_select)
        self.undo.clicked.connect(self._on_undo)
        self.relabel.clicked.connect(self._on_relabel)
        self.delete.clicked.connect(self._on_delete)
        self.load.clicked.connect(self._on_load)
        self.save.clicked.connect(self._on_save)

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(SPACING)
        layout.addLayout(
            side_by_side(
                QLabel("Classes"), (self.preset, 1), self.add_class, self.remove_class
            )
        )
        layout.addWidget(self.table)
        layout.addLayout(
            side_by_side((self.draw, 1), self.tool, self.select, self.undo)
        )
        layout.addLayout(side_by_side((self.hint, 1), self.relabel, self.delete))
        layout.addLayout(side_by_side(self.load, self.save, (self.saved, 1)))

    # ---- what it shows

    @property
    def slide(self) -> Slide | None:
        """The slide that is worked on."""
        return self._session.slide

    @property
    def class_name(self) -> str:
        """The class that is drawn with."""
        return self.table.current

    def show_tiles(self, tiles: Mapping[str, int]) -> None:
        """Show how many tiles each class has."""
        self._tiles = tiles
        self._fill_table()

    def _on_book_changed(self) -> None:
        self._fill_table()
        self.preset.setCurrentText(preset_of(self._book.classes) or OWN)
        self._book.draw_class(self.class_name)
        self.refresh()

    def _fill_table(self) -> None:
        regions = self._book.regions_per_class()
        self.table.fill(self._book.classes, regions, self._tiles, self._tile_tip())

    def _tile_tip(self) -> str:
        if self.spec is None:
            return "Tiles inside the regions; a model may choose other tiles."
        return (
            f"Tiles inside the regions, {self.spec.tile_um:.0f} µm wide "
            f"({self.spec.tile_px} px at {self.spec.mpp:.3g} µm), as the model sees "
            "them."
        )

    def refresh(self) -> None:
        """Enable what can be done, and say why the rest cannot."""
        slide, classes = self.slide, self._book.classes
        here = self._book.of(slide)
        no_slide = "" if slide is not None else "Open a slide first."
        no_class = "" if self.class_name else "Add a class first."
        some = bool(here and here.annotations)
        why_disabled(self.draw, no_slide or no_class)
        why_disabled(self.select, no_slide or ("" if some else "Draw a region first."))
        tip(
            self.remove_class,
            f"Remove {self.class_name}; its regions stay, without a class.",
            "" if len(classes) else "There is no class.",
        )
        what = self._book.can_undo
        tip(
            self.undo,
            f"Undo {what} (Ctrl+Z)",
            "" if what else "There is nothing to undo.",
        )
        why_disabled(self.load, no_slide)
        tip(
            self.save,
            f"Write the regions of {slide.name if slide else 'the slide'} for QuPath.",
            no_slide or ("" if some else "There are no regions on this slide."),
        )
        self._show_mouse()

    # ---- classes

    def _on_preset_chosen(self) -> None:
        self._book.use_preset(self.preset.currentText())

    def _on_add_class(self) -> None:
        name = self._book.add_class()
        self.table.edit_name(name)

    def _on_remove_class(self) -> None:
        name = self.class_name
        left = self._book.remove_class(name)
        regions = f" Its {count(left, 'region')} stay without a class." if left else ""
        self.said.emit(f"{name} is removed.{regions} Undo brings it back.")

    def _on_class_picked(self, name: str) -> None:
        self._book.draw_class(name)
        self._show_mouse()
        self.refresh()

    def _on_class_renamed(self, old: str, new: str) -> None:
        try:
            self._book.rename_class(old, new)
        except ConfigError as error:
            self.failed.emit(f"{old} keeps its name: {error.reason}")

    def _on_class_recoloured(self, name: str, color: Color) -> None:
        self._book.recolour_class(name, color)

    # ---- drawing

    def _on_draw(self) -> None:
        if self.draw.isChecked() and self.slide is not None:
            self._book.draw(self.slide, self.class_name, self._tool())
        else:
            self._book.stop_drawing()
        self._show_mouse()

    def _on_tool_chosen(self) -> None:
        if self.draw.isChecked():
            self._on_draw()

    def _on_select(self) -> None:
        if self.select.isChecked() and self.slide is not None:
            self._book.draw(self.slide, self.class_name, "select")
        else:
            self._book.stop_drawing()
        self._show_mouse()

    def _tool(self) -> str:
        return TOOL_WORDS[self.tool.currentIndex()][1]

    def _show_mouse(self) -> None:
        """Say what the mouse does, and what can be done with what is picked."""
        mode = self._book.mode(self.slide)
        self.draw.setChecked(mode in {tool for _, tool, _ in TOOL_WORDS})
        self.select.setChecked(mode == "select")
        here = self._book.of(self.slide)
        picked = len(here.selected) if here else 0
        for button in (self.relabel, self.delete):
            button.setVisible(bool(picked))
        self.relabel.setText(f"Make {cut(self.class_name)}")
        if picked:
            self.hint.setText(f"{count(picked, 'region')} picked")
        elif mode == "select":
            self.hint.setText("Click a region; Shift+click adds one.")
        elif self.draw.isChecked():
            words = next(words for _, tool, words in TOOL_WORDS if tool == mode)
            self.hint.setText(words.format(self.class_name))
        else:
            self.hint.setText("or point at a tile and press 1–9")

    def _on_relabel(self) -> None:
        if self.slide is not None:
            number = self._book.relabel_selected(self.slide, self.class_name)
            self.said.emit(f"{count(number, 'region')} made {self.class_name}.")

    def _on_delete(self) -> None:
        if self.slide is not None:
            number = self._book.delete_selected(self.slide)
            self.said.emit(f"{count(number, 'region')} deleted. Undo brings it back.")

    def _on_undo(self) -> None:
        if self._book.drawing:
            self.hinted.emit("A region is half drawn. Finish it first: press Enter.")
            return
        what = self._book.undo()
        self.said.emit(f"Undone: {what}." if what else "There is nothing to undo.")

    def _on_number(self, number: int) -> None:
        """Give the tile under the mouse, or what is picked, the class of a key."""
        names = self._book.classes.names
        if self.slide is None or number > len(names):
            return
        name = names[number - 1]
        if self._book.drawing:
            self.hinted.emit("A region is half drawn. Finish it first: press Enter.")
            return
        here = self._book.of(self.slide)
        if here is not None and here.selected:
            changed = self._book.relabel_selected(self.slide, name)
            self.said.emit(f"{count(changed, 'region')} made {name}.")
            return
        try:
            grid = grid_over(self.slide, self.spec)
        except HistomaeError as error:
            self.failed.emit(error)
            return
        place = _layers.l0_from_world(self.slide, self._viewer.cursor.position[-2:])
        cell = grid.cell_at((float(place[0]), float(place[1])))
        if cell is None:
            self.hinted.emit("There is no tile under the mouse. Point at the slide.")
            return
        self.said.emit(self._book.label_tile(self.slide, grid.box_l0(*cell), name))

    # ---- keys over the picture

    def answer_keys_in(self, dock: QWidget) -> None:
        """Answer the keys in a dock as over the picture."""
        calls: dict[Any, Callable[[], None]] = {
            str(number): partial(self._on_number, number)
            for number in range(1, KEYS + 1)
        }
        calls["Ctrl+Z"] = self._on_undo
        for key, call in calls.items():
            shortcut = QShortcut(QKeySequence(key), dock)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(call)

    @property
    def has_keys(self) -> bool:
        """Whether the keys over the picture are ours."""
        return bool(self._keyed)

    def take_keys(self) -> None:
        """Bind the keys on the viewer, and on our layers: theirs would come first."""
        self.give_keys_back()
        ours = [x for x in self._viewer.layers if _layers.entry_of(x)]
        for one in (self._viewer, *ours):
            for number in range(1, KEYS + 1):
                call = _key_answer(partial(self._on_number, number))
                one.bind_key(str(number), call, overwrite=True)
            one.bind_key("Control-Z", _key_answer(self._on_undo), overwrite=True)
            self._keyed.append(one)

    def give_keys_back(self) -> None:
        for one in self._keyed:
            for key in (*map(str, range(1, KEYS + 1)), "Control-Z"):
                one.bind_key(key, None)
        self._keyed = []

    def _on_layers_changed(self) -> None:
        if self._keyed:
            self.take_keys()
        self.refresh()

    # ---- files of regions

    def _on_load(self) -> None:
        slide = self.slide
        if slide is None:
            return
        chosen, _ = QFileDialog.getOpenFileName(
            self, f"Regions of {slide.name}", str(slide.path.parent), REGION_FILES
        )
        if chosen:
            self.load_from(Path(chosen))

    def load_from(self, path: Path) -> None:
        """Add the regions of a file to the slide that is worked on."""
        if self.slide is None:
            return
        try:
            number = self._book.load(self.slide, path)
        except HistomaeError as error:
            self.failed.emit(error)
            return
        self.said.emit(f"{count(number, 'region')} loaded from {path.name}.")

    def _on_save(self) -> None:
        slide = self.slide
        if slide is None:
            return
        suggested = slide.path.with_name(f"{slide.name}-regions.geojson")
        chosen, _ = QFileDialog.getSaveFileName(
            self, f"Regions of {slide.name}", str(suggested), "GeoJSON (*.geojson)"
        )
        if chosen:
            self.save_to(with_suffix(Path(chosen), ".geojson"))

    def save_to(self, path: Path) -> None:
        """Write the regions of the slide that is worked on, for QuPath."""
        if self.slide is None:
            return
        try:
            number = self._book.save_as(self.slide, path)
        except OSError as error:
            self.failed.emit(not_written(path, error))
            return
        self.said.emit(f"{count(number, 'region')} written to {path.name}.")

    # ---- going

    def shut(self) -> None:
        """Give the keys back, and listen no more."""
        self.give_keys_back()
        self._book.changed.disconnect(self._on_book_changed)
        self._book.picked.disconnect(self._show_mouse)
        self._session.slide_changed.disconnect(self.refresh)
        self._viewer.layers.events.inserted.disconnect(self._on_layers_changed)


def tip(button: QPushButton, usual: str, reason: str) -> None:
    """Enable a button and say what it does, or disable it and say why."""
    button.setProperty("usual_tip", None)
    button.setToolTip(usual)
    why_disabled(button, reason)


def push_button(text: str, tooltip: str = "") -> QPushButton:
    """Return a button as wide as its text."""
    button = QPushButton(text)
    button.setToolTip(tooltip)
    button.setSizePolicy(QSizePolicy.Policy.Minimum, QSizePolicy.Policy.Fixed)
    return button


def side_by_side(*widgets: QWidget | tuple[QWidget, int]) -> QHBoxLayout:
    """Return widgets side by side, each with its stretch."""
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACING)
    for one in widgets:
        widget, stretch = one if isinstance(one, tuple) else (one, 0)
        row.addWidget(widget, stretch)
    return row


def cut(name: str, most: int = 16) -> str:
    """Return a name that fits on a button."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def not_written(path: Path, error: OSError) -> str:
    """Return why a file could not be written, and what to do."""
    reason = error.strerror or type(error).__name__
    return f"{path.name} could not be written ({reason}). Choose another folder."


def with_suffix(path: Path, suffix: str) -> Path:
    """Return a path with a suffix: its own, or this one."""
    return path if path.suffix else path.with_suffix(suffix)


def _key_answer(call: Callable[[], None]) -> Callable[[Any], None]:
    """Return what napari calls for a key; it must be a function, with a name."""

    def answer(_where: Any) -> None:
        call()

    return answer
