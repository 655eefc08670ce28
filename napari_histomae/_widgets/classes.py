"""The table of classes in Teach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QModelIndex, Qt, Signal
from qtpy.QtGui import QColor, QIcon
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QHeaderView,
    QStyledItemDelegate,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from histomae.data.classes import ClassSet
from napari_histomae._widgets.common import swatch

if TYPE_CHECKING:
    from collections.abc import Mapping

Color = tuple[int, int, int]
SWATCH, KEY, NAME, REGIONS, TILES = range(5)
#: Classes that are seen without scrolling.
ROWS_SHOWN = 7
ROW_PX, HEADER_PX = 23, 22
#: Classes that have a key.
KEYS = 9


class ClassTable(QTableWidget):
    """Classes with their colours, names, regions and tiles; one is drawn with.

    Signals
    -------
    picked
        Another class is drawn with: its name.
    renamed
        (old, new) name, as it was typed.
    recoloured
        (name, colour).
    numbered
        A number was pressed, 1 to 9; the table would else search for it.
    """

    picked = Signal(str)
    renamed = Signal(str, str)
    recoloured = Signal(str, tuple)
    numbered = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, 5, parent)
        self._classes = ClassSet()
        self._filling = False
        self.setHorizontalHeaderLabels(["", "Key", "Class", "Regions", "Tiles"])
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        self.setShowGrid(False)
        self.setItemDelegateForColumn(NAME, _FullNames(self))
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.verticalHeader().setVisible(False)
        self.verticalHeader().setDefaultSectionSize(ROW_PX)
        self.verticalHeader().setMinimumSectionSize(ROW_PX)
        header = self.horizontalHeader()
        header.setFixedHeight(HEADER_PX)
        header.setHighlightSections(False)
        for column, width in ((SWATCH, 26), (KEY, 30), (REGIONS, 56), (TILES, 44)):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
            self.setColumnWidth(column, width)
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        self.horizontalHeaderItem(NAME).setTextAlignment(
            Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
        )

        self.itemChanged.connect(self._on_item_changed)
        self.currentCellChanged.connect(self._on_current_changed)
        self.cellClicked.connect(self._on_cell_clicked)

    @property
    def current(self) -> str:
        """The name of the class that is drawn with; empty if there is none."""
        row = self.currentRow()
        return self._classes.names[row] if 0 <= row < len(self._classes) else ""

    def pick(self, name: str) -> None:
        """Draw with another class."""
        if name in self._classes.names:
            self.setCurrentCell(self._classes.names.index(name), NAME)

    def fill(
        self,
        classes: ClassSet,
        regions: Mapping[str, int],
        tiles: Mapping[str, int],
        tiles_tip: str,
    ) -> None:
        """Show classes, and how much is drawn of each.

        Parameters
        ----------
        tiles_tip
            What a tile is.
        """
        before, row_before = self.current, self.currentRow()
        self._filling = True
        if classes != self._classes or self.rowCount() != len(classes):
            self._classes = classes
            self.setRowCount(len(classes))
            for row in range(len(classes)):
                self._fill_row(row)
            shown = min(max(len(classes), 3), ROWS_SHOWN)
            self.setFixedHeight(HEADER_PX + shown * ROW_PX + 2)
        for row, name in enumerate(classes.names):
            self.item(row, REGIONS).setText(f"{regions.get(name, 0):,}")
            self.item(row, TILES).setText(f"{tiles.get(name, 0):,}")
        self.horizontalHeaderItem(TILES).setToolTip(tiles_tip)
        if before in classes.names:
            row_before = classes.names.index(before)
        if len(classes):
            self.setCurrentCell(min(max(row_before, 0), len(classes) - 1), NAME)
        self._filling = False
        if self.current != before:
            self.picked.emit(self.current)

    def keyPressEvent(self, event: Any) -> None:
        """Hand on the numbers."""
        if event.text() in "123456789" and event.text():
            self.numbered.emit(int(event.text()))
        else:
            super().keyPressEvent(event)

    def edit_name(self, name: str) -> None:
        """Let a class be renamed."""
        self.pick(name)
        self.editItem(self.item(self.currentRow(), NAME))

    def _fill_row(self, row: int) -> None:
        name = self._classes.names[row]
        full = self._classes.full_names[row]
        key = str(row + 1) if row < KEYS else ""
        right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        tip = f"Press {key} over a tile to make it {full}." if key else full
        for column, text, align, note in (
            (SWATCH, "", Qt.AlignmentFlag.AlignCenter, "Click to change the colour."),
            (KEY, key, Qt.AlignmentFlag.AlignCenter, tip),
            (NAME, name, None, f"{full}. Double-click to rename."),
            (REGIONS, "", right, "Regions of this class on the open slides."),
            (TILES, "", right, "Tiles inside them."),
        ):
            item = QTableWidgetItem(text)
            item.setToolTip(note)
            if align is not None:
                item.setTextAlignment(align)
            if column != NAME:
                item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
            if column == SWATCH:
                item.setIcon(_icon(self._classes.colors[row]))
            self.setItem(row, column, item)

    def full_name(self, name: str) -> str:
        """Return the full name of a class."""
        return self._classes.full_name(name)

    def _on_item_changed(self, item: QTableWidgetItem) -> None:
        if self._filling or item.column() != NAME:
            return
        old, new = self._classes.names[item.row()], item.text().strip()
        if new != old:
            # Until it is accepted, the table shows what holds.
            self._filling = True
            item.setText(old)
            self._filling = False
            self.renamed.emit(old, new)

    def _on_current_changed(self, row: int, _column: int, before: int, _: int) -> None:
        if not self._filling and row != before and self.current:
            self.picked.emit(self.current)

    def _on_cell_clicked(self, row: int, column: int) -> None:
        if column != SWATCH:
            return
        name = self._classes.names[row]
        chosen = QColorDialog.getColor(
            QColor(*self._classes.colors[row]), self, f"Colour of {name}"
        )
        if chosen.isValid():
            self.recoloured.emit(name, (chosen.red(), chosen.green(), chosen.blue()))


def _icon(color: Color) -> QIcon:
    """Return a swatch that keeps its colour in the row that is picked."""
    icon = QIcon(swatch(color, 14))
    icon.addPixmap(swatch(color, 14), QIcon.Mode.Selected)
    return icon


class _FullNames(QStyledItemDelegate):
    """Writes the full name of a class behind its short one."""

    def displayText(self, value: Any, _locale: Any) -> str:
        """Return what is shown for a name."""
        table = self.parent()
        full = table.full_name(value) if isinstance(table, ClassTable) else value
        return value if full == value else f"{value} – {full}"

    def initStyleOption(self, option: Any, index: QModelIndex) -> None:
        """Cut a long name at its end."""
        super().initStyleOption(option, index)
        option.textElideMode = Qt.TextElideMode.ElideRight
