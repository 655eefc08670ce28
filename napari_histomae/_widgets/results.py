"""The Results dock: the report of an examination, and maps whose points are pictures.

A point of a map leads to its picture, or to its tile on the slide, and a click on the
slide leads back to the point.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
)

from histomae.errors import HistomaeError
from histomae.evaluate.report import figure_words, leak_stamp, spread_words
from histomae.evaluate.report_plots import (
    COLOURINGS,
    along_words,
    name_groups,
    plot_calibration,
    plot_confusion,
    plot_curve,
    plot_map,
    plot_roc,
    plot_scores,
)
from histomae.evaluate.scores import ECE, FRACTION, MAIN
from histomae.evaluate.summary import setting_words
from napari_histomae import _layers, _results
from napari_histomae._results import TileMap
from napari_histomae._review import Results
from napari_histomae._session import Session
from napari_histomae._widgets.common import (
    BAD,
    GOOD,
    SPACING,
    WARN,
    ElidedBox,
    ElidedLabel,
    StateLine,
    count,
    dock_layout,
    why_disabled,
)
from napari_histomae._widgets.dock import LookingDock
from napari_histomae._widgets.hooks import ViewerHooks
from napari_histomae._widgets.plot import Plot

if TYPE_CHECKING:
    import napari

    from histomae.evaluate.point_maps import PointMap
    from histomae.evaluate.report_plots import Colouring
    from histomae.evaluate.summary import Score, Summary
    from histomae.slides.slide import Slide

#: What can be drawn, and what it is called.
SCORES, CONFUSION, ROC = "Scores", "Confusion", "ROC"
CALIBRATION, LABELS, MAP = "Calibration", "Fewer labels", "Map"
PLOTS = (SCORES, CONFUSION, ROC, CALIBRATION, LABELS, MAP)
#: Columns of the table: what stands above them, and which figure stands in them.
COLUMNS = {"balanced acc.": MAIN, "95 %": MAIN, "AUC": "AUC", "ECE": ECE}
STAMPS = {"none": GOOD, "found": BAD, "unknown": WARN}
FILES = "Reports and features (report.json evaluation.json *.h5)"
EMPTY = (
    "Open the report of histomae evaluate, or the features of an open slide "
    "(histomae embed)."
)
#: Height of a table, rows that are seen at once.
MOST_ROWS = 5


class ResultsDock(LookingDock):
    """Opens a report or a file of features; shows tables, plots and maps."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._session = Session.of(viewer)
        self._found = Results.of(self._session)
        self._summary: Summary | None = None
        self._tiles: TileMap | None = None
        self._mistake = -1
        self._open = False
        self._make_fields()
        self._connect()
        self._lay_out()
        self._open_up()
        self._show_all()

    # ---- four paragraphs

    def _make_fields(self) -> None:
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip(EMPTY)
        self.title = ElidedLabel()
        self.stamp = ElidedLabel()
        self.setting_box = ElidedBox()
        self.table = _table()
        self.plot_box = QComboBox()
        self.method_box = QComboBox()
        self.colour_box = QComboBox()
        self.colour_box.addItems([f"by {by}" for by in COLOURINGS])
        self.plot = Plot()
        self.previous = _arrow(Qt.ArrowType.LeftArrow, "The surer mistake before")
        self.next = _arrow(Qt.ArrowType.RightArrow, "The next mistake")
        self.point_label = ElidedLabel()
        self.state = StateLine()
        self.hooks = ViewerHooks(
            self._session.viewer, on_click=self._on_slide_clicked, keys={}
        )

    def _connect(self) -> None:
        self.open_button.clicked.connect(self.ask)
        self.setting_box.activated.connect(lambda _: self._on_setting_chosen())
        self.table.itemSelectionChanged.connect(self._draw)
        self.plot_box.activated.connect(lambda _: self._on_plot_chosen())
        self.method_box.activated.connect(lambda _: self._on_method_chosen())
        self.colour_box.activated.connect(lambda _: self._draw())
        self.plot.picked.connect(self._on_picked)
        self.previous.clicked.connect(lambda: self.step(-1))
        self.next.clicked.connect(lambda: self.step(1))

    def _lay_out(self) -> None:
        top, chosen, points = QHBoxLayout(), QHBoxLayout(), QHBoxLayout()
        for row in (top, chosen, points):
            row.setSpacing(SPACING)
        top.addWidget(self.open_button)
        top.addWidget(self.title, 1)
        chosen.addWidget(QLabel("Show"))
        for box in (self.plot_box, self.method_box, self.colour_box):
            chosen.addWidget(box, 1)
        points.addWidget(self.previous)
        points.addWidget(self.point_label, 1)
        points.addWidget(self.next)
        layout = dock_layout(self)
        layout.addLayout(top)
        layout.addWidget(self.stamp)
        layout.addWidget(self.setting_box)
        layout.addWidget(self.table)
        layout.addLayout(chosen)
        layout.addWidget(self.plot, 1)
        layout.addLayout(points)
        layout.addWidget(self.state)

    # ---- what holds now

    @property
    def summary(self) -> Summary | None:
        """The report that is open."""
        return self._summary

    @property
    def tiles(self) -> TileMap | None:
        """The map of a slide's tiles that is open."""
        return self._tiles

    @property
    def score(self) -> Score | None:
        """The score of the row that is selected: ours, to begin with."""
        if self._summary is None:
            return None
        row = max(0, self.table.currentRow())
        who = self.table.item(row, 0)
        if who is None:
            return None
        return self._summary.score(who.text(), self.setting_box.currentData())

    @property
    def _layout(self) -> PointMap | None:
        """The map that is chosen."""
        if self._tiles is not None:
            return self._tiles.layout
        for one in self._maps:
            if one.method == self.method_box.currentData():
                return one
        return None

    @property
    def _maps(self) -> list[PointMap]:
        """The maps of the candidate that is selected, else of ours."""
        if self._summary is None:
            return []
        score = self.score
        who = score.candidate if score else self._summary.ours
        mine = [one for one in self._summary.maps if one.candidate == who]
        ours = [x for x in self._summary.maps if x.candidate == self._summary.ours]
        return mine or ours

    # ---- opening

    def ask(self) -> None:
        """Ask for a file and open it."""
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Open a report or features", str(Path.home()), FILES
        )
        if chosen:
            self.open(chosen)

    def open(self, path: str | Path, method: str = "pca") -> None:
        """Open a report (its folder or a file in it), or features of an open slide."""
        if self.running:
            return
        slides = self._session.slides
        self._start(
            lambda: _results.open_result(path, slides, method),
            f"Opening {Path(path).name}",
            self._on_opened,
        )

    def _on_opened(self, found: Summary | TileMap) -> None:
        self._tiles = found if isinstance(found, TileMap) else None
        self._summary = None if isinstance(found, TileMap) else found
        self._mistake = -1
        if self._tiles is not None:
            layout = self._tiles.layout
            shown = count(len(layout.rows), "tile")
            some = (
                ""
                if len(layout.rows) == self._tiles.tiles
                else (f" of {self._tiles.tiles:,}, a sample")
            )
            self.state.done(
                f"{shown}{some}. Click a point to go to its tile, or a tile to see its "
                "point."
            )
        elif self._summary is not None:
            self.state.done(_verdict(self._summary))
        self._show_all()

    # ---- the form

    def _refresh(self) -> None:
        why_disabled(self.open_button, "Wait until it is open." if self.running else "")

    def _show_all(self) -> None:
        """Offer what there is to be seen."""
        summary, tiles = self._summary, self._tiles
        self.title.setVisible(True)
        if summary is not None:
            self.title.setText(f"{summary.ours} · {summary.data_name}")
            about = f"{summary.protocol} on {summary.data_name}"
            self.title.setToolTip("\n".join([about, *summary.verdict]))
        elif tiles is not None:
            self.title.setText(f"tiles of {tiles.layout.candidate}")
            self.title.setToolTip(str(tiles.path))
        else:
            self.title.setText("nothing is open")
            self.title.setToolTip(EMPTY)
            self.state.idle(EMPTY)
        for widget in (self.stamp, self.table):
            widget.setVisible(summary is not None)
        self.setting_box.setVisible(summary is not None and len(summary.settings) > 1)
        if summary is not None:
            kind, words = leak_stamp(summary)
            self.stamp.setText(f"● {words}")
            self.stamp.setStyleSheet(f"color: {STAMPS[kind]};")
            self.stamp.setToolTip("\n".join(summary.leaks or (words,)))
            self._fill_settings(summary)
            self._fill_table(summary)
        self._offer_plots()
        self._draw()

    def _fill_settings(self, summary: Summary) -> None:
        self.setting_box.clear()
        for setting in summary.settings:
            self.setting_box.addItem(setting_words(setting), setting)
        self.setting_box.setCurrentIndex(summary.settings.index(summary.main))

    def _fill_table(self, summary: Summary) -> None:
        setting = self.setting_box.currentData()
        shown = [
            score
            for who in summary.candidates
            if (score := summary.score(who, setting)) is not None
        ]
        self.table.blockSignals(True)
        self.table.setRowCount(len(shown))
        for row, score in enumerate(shown):
            self.table.setItem(row, 0, QTableWidgetItem(score.candidate))
            for column, (word, name) in enumerate(COLUMNS.items(), start=1):
                figure = score.figures.get(name)
                interval = word.startswith("95")
                words = spread_words if interval else figure_words
                said = words(figure, "%.2f").replace(" to ", "–")
                # The spread of the first is enough for the room there is.
                item = QTableWidgetItem(said if name == MAIN else said.split(" ")[0])
                item.setToolTip(f"{name} of {score.candidate}: {figure_words(figure)}")
                bold = item.font()
                bold.setBold(
                    not interval and score.candidate in summary.best(setting, name)
                )
                item.setFont(bold)
                self.table.setItem(row, column, item)
        self.table.selectRow(0)
        self.table.blockSignals(False)
        high = self.table.horizontalHeader().sizeHint().height() + 4
        each = self.table.verticalHeader().defaultSectionSize()
        self.table.setFixedHeight(high + each * min(MOST_ROWS, len(shown)))

    def _offer_plots(self) -> None:
        """Offer the plots of what is open, and keep the one that is chosen."""
        summary = self._summary
        known = []
        if summary is not None:
            known = [SCORES, CONFUSION, ROC, CALIBRATION]
            known += [_curve_name(along) for along in summary.along]
            known += [MAP] if summary.maps else []
        elif self._tiles is not None:
            known = [MAP]
        chosen = self.plot_box.currentText()
        self.plot_box.clear()
        self.plot_box.addItems(known)
        self.plot_box.setCurrentText(chosen if chosen in known else (known or [""])[0])
        self.plot_box.setEnabled(bool(known))
        self._offer_maps()

    def _offer_maps(self) -> None:
        from histomae.evaluate.point_maps import METHODS, available

        chosen = self.method_box.currentData()
        mine = [one.method for one in self._maps]
        if self._tiles is not None:
            chosen, mine = self._tiles.layout.method, list(available())
        self.method_box.clear()
        for method in mine:
            self.method_box.addItem(METHODS[method], method)
        self.method_box.setCurrentIndex(max(0, self.method_box.findData(chosen)))
        on_map = self.plot_box.currentText() == MAP
        self.method_box.setVisible(on_map)
        self.colour_box.setVisible(on_map and self._tiles is None)
        mistakes = bool(self._summary and self._summary.mistakes)
        for button in (self.previous, self.next):
            button.setVisible(mistakes)

    def _on_setting_chosen(self) -> None:
        if self._summary is not None:
            self._fill_table(self._summary)
            self._draw()

    def _on_plot_chosen(self) -> None:
        self._offer_maps()
        self._draw()

    def _on_method_chosen(self) -> None:
        if self._tiles is not None:
            self.open(self._tiles.path, self.method_box.currentData())
        else:
            self._draw()

    # ---- plots

    def _draw(self) -> None:
        """Draw what is chosen."""
        kind, score, summary = self.plot_box.currentText(), self.score, self._summary
        self.point_label.setText("")
        if kind == MAP:
            self._draw_map()
        elif summary is None or score is None:
            self.plot.show_plot(None)
        elif kind == SCORES:
            self.plot.show_plot(lambda axes, ink: plot_scores(axes, summary, ink))
        elif kind == CONFUSION:
            self.plot.show_plot(
                lambda axes, ink: plot_confusion(
                    axes, score.confusion, summary.classes.names, ink
                )
            )
        elif kind == ROC:
            self.plot.show_plot(
                lambda axes, ink: plot_roc(axes, score.rocs, summary, ink)
            )
        elif kind == CALIBRATION:
            self.plot.show_plot(
                lambda axes, ink: plot_calibration(axes, score.calibration, ink)
            )
        else:
            along = next(one for one in summary.along if _curve_name(one) == kind)
            self.plot.show_plot(lambda axes, ink: plot_curve(axes, summary, ink, along))
        if summary is not None and summary.mistakes and not self.point_label.text():
            self.point_label.setText(
                f"{count(len(summary.mistakes), 'sure mistake')}: see each with the "
                "arrows"
            )

    def _draw_map(self) -> None:
        layout = self._layout
        if layout is None:
            self.plot.show_plot(None)
            return
        colours = self._colours(layout)

        def draw(axes: Any, ink: Any) -> None:
            plot_map(axes, layout.xy, colours, ink, names=layout.axes)
            name_groups(axes, colours, ink)

        self.plot.show_points(layout.xy, draw)
        if self._tiles is not None:
            known = (colours.of >= 0).any()
            self.point_label.setText(
                ""
                if known
                else "Run a classifier in Review to colour the tiles by class"
            )

    def _colours(self, layout: PointMap) -> Colouring:
        if self._tiles is not None:
            found = self._found.on(self._slide)
            return self._tiles.classes(found.prediction if found else None)
        assert self._summary is not None
        by = COLOURINGS[self.colour_box.currentIndex()]
        return _results.picture_colours(self._summary, layout, by)

    # ---- points, pictures, tiles

    @property
    def _slide(self) -> Slide | None:
        """The slide whose tiles are on the map, while it is open."""
        if self._tiles is None:
            return None
        wanted = self._tiles.slide_id
        return next((x for x in self._session.slides if x.slide_id == wanted), None)

    def _on_picked(self, point: int) -> None:
        """Go to what a point is of."""
        self.plot.mark(point)
        if self._tiles is not None:
            self._go_to_tile(self._tiles, point)
        elif self._layout is not None:
            self._show_picture(int(self._layout.rows[point]))

    def _go_to_tile(self, tiles: TileMap, point: int) -> None:
        slide = self._slide
        if slide is None:
            self.state.idle(
                f"{tiles.layout.candidate} was closed. Open it to see its tiles."
            )
            return
        self._look_at(slide, tiles.box(point))
        self.point_label.setText(self._tile_words(tiles, point))

    def _look_at(self, slide: Slide, box_l0: _results.Box) -> None:
        """Bring a place of a slide into the view, and outline it."""
        viewer = self._session.viewer
        _layers.look_at(viewer, slide, box_l0)
        self._outline(slide, box_l0)

    def _outline(self, slide: Slide, box_l0: _results.Box) -> None:
        viewer = self._session.viewer
        _layers.show_outline(viewer, slide, box_l0, f"{slide.name} · point")

    def _tile_words(self, tiles: TileMap, point: int) -> str:
        colours = tiles.classes(self._prediction)
        label = int(colours.of[point])
        x, y = (tiles.boxes_l0[point, :2] + tiles.boxes_l0[point, 2:]) / 2
        said = [f"tile at {x:,.0f}, {y:,.0f} px"]
        slide = self._slide
        if slide is not None and slide.has_mpp:
            mm_x, mm_y = x * slide.mpp[0] / 1000, y * slide.mpp[1] / 1000
            said = [f"tile at {mm_x:.2f} mm, {mm_y:.2f} mm"]
        return " · ".join(said + ([colours.names[label]] if label >= 0 else []))

    @property
    def _prediction(self) -> Any:
        found = self._found.on(self._slide)
        return found.prediction if found else None

    def _show_picture(self, row: int) -> None:
        """Go to where a picture was cut from, or show it as a layer."""
        assert self._summary is not None
        self.point_label.setText(_results.picture_words(self._summary, row))
        cut = _results.slide_with(self._summary, row, self._session.slides)
        if cut is not None:
            self._look_at(*cut)
            return
        picture = self._summary.pictures[row]
        try:
            pixels = _results.read_pixels(self._summary, row)
        except HistomaeError as error:
            self.state.failed(error)
            return
        _layers.show_sample(self._session.viewer, pixels, picture.name, picture.mpp)

    def step(self, by: int) -> None:
        """Go to the next (1) or the previous (-1) of the surest mistakes."""
        if self._summary is None or not self._summary.mistakes:
            return
        mistakes = self._summary.mistakes
        first = self._mistake < 0
        at = (0 if by > 0 else -1) if first else self._mistake + by
        self._mistake = at % len(mistakes)
        row = mistakes[self._mistake].row
        layout = self._layout if self.plot_box.currentText() == MAP else None
        if layout is not None and row in layout.rows:
            self.plot.mark(layout.rows.tolist().index(row))
        self._show_picture(row)
        told = f"{self._mistake + 1} of {len(mistakes)} · "
        self.point_label.setText(told + self.point_label.text())

    def _on_slide_clicked(self, world_yx: tuple[float, float]) -> None:
        """Mark the point of the tile, or of the picture, that was clicked."""
        if self.plot_box.currentText() != MAP or self._layout is None:
            return
        if self._tiles is not None:
            self._mark_tile(self._tiles, world_yx)
        elif self._summary is not None and self._session.slide is not None:
            slide = self._session.slide
            x, y = _layers.l0_from_world(slide, world_yx).tolist()
            point = _results.point_at(self._summary, self._layout, slide, (x, y))
            if point is not None:
                row = int(self._layout.rows[point])
                self.plot.mark(point)
                self.point_label.setText(_results.picture_words(self._summary, row))

    def _mark_tile(self, tiles: TileMap, world_yx: tuple[float, float]) -> None:
        slide = self._slide
        if slide is None:
            return
        x, y = _layers.l0_from_world(slide, world_yx).tolist()
        point = tiles.at((x, y))
        self.plot.mark(point)
        if point is None:
            _layers.remove(self._session.viewer, slide, f"{slide.name} · point")
            self.point_label.setText("no tile of the map is there")
            return
        self._outline(slide, tiles.box(point))
        self.point_label.setText(self._tile_words(tiles, point))

    def _on_results_changed(self, slide_id: str) -> None:
        if self._tiles is not None and self._tiles.slide_id == slide_id:
            self._draw()

    # ---- coming and going

    def _open_up(self) -> None:
        """Listen to the session."""
        if not self._open:
            self._open = True
            self._found.changed.connect(self._on_results_changed)

    def shut(self) -> None:
        """Stop what runs, give the mouse back, and listen no more."""
        if not self._open:
            return
        self._open = False
        self.hooks.detach()
        self._abandon()
        self._found.changed.disconnect(self._on_results_changed)


def _verdict(summary: Summary) -> str:
    """Return what ours reached, and what it does not beat; the rest is in the table."""
    reached, *beside = summary.verdict
    unbeaten = [line for line in beside if not line.startswith("It beats")]
    return " ".join([reached, *(unbeaten or ["It beats all that stand beside it."])])


def _curve_name(along: str) -> str:
    """Return what a curve is called among the plots."""
    return LABELS if along == FRACTION else f"By {along_words(along)}"


def _table() -> QTableWidget:
    """Return the table of scores: a row is a candidate, and rows are chosen."""
    table = QTableWidget(0, 1 + len(COLUMNS))
    table.setHorizontalHeaderLabels(["candidate", *COLUMNS])
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    table.setShowGrid(False)
    table.setWordWrap(False)
    table.verticalHeader().setVisible(False)
    table.verticalHeader().setDefaultSectionSize(24)
    header = table.horizontalHeader()
    header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    header.setHighlightSections(False)
    return table


def _arrow(kind: Any, tip: str) -> QToolButton:
    button = QToolButton()
    button.setArrowType(kind)
    button.setToolTip(tip)
    return button
