"""The clicked tile: its class, what the encoder looks at, what it imagines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QSlider,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_histomae._review_layers import coloured, diverging_colormap
from napari_histomae._widgets.class_list import ClassBars
from napari_histomae._widgets.common import (
    SPACING,
    ElidedLabel,
    Picture,
    why_disabled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histomae.infer.closeup import CloseUp, Look
    from histomae.models.checkpoint import CheckpointHeader

Color = tuple[int, int, int]
#: Pictures are no lower than this, pixels.
LEAST_PICTURE_PX = 80
#: Places in the grid of pictures, which has so many columns.
TILE, ATTENTION, CLASS, MASKED, REDRAWN, ERROR = range(6)
ACROSS = 3
#: Share hidden that can be chosen, percent.
LEAST_MASK, MOST_MASK = 10, 95
#: A moved slider is taken at its word after so long, ms.
SETTLE_MS = 120
#: Where the colours of hidden patches come from.
STATISTICS = {
    "neighbours": "from visible neighbours",
    "true": "true (knows the hidden pixels)",
}
#: Who looks.
QUERIES = {"class_token": "class token", "mean": "patches"}
HEAD_TIP = "One head, the mean of all, or rollout through the blocks"
STRENGTH_TIP = (
    "Convolutions have no attention. Grad-CAM shows what speaks for a class that was "
    "taught, and is empty where nothing does; strength how strongly the network "
    "answers at each place."
)
NO_DECODER = (
    "This model came without a decoder, so it cannot redraw. Choose last.safetensors "
    "of a run of a masked autoencoder."
)


class TilePanel(QWidget):
    """Shows one tile; says how to look at it.

    Signals
    -------
    look_changed
        Another attention or mask is wanted: see :attr:`look`.
    shown_changed
        What is shown on the slide: see :attr:`attention_shown`.
    step
        The next (1) or the previous (-1) uncertain tile is wanted.
    teach_asked
        The Teach dock is wanted.
    """

    look_changed = Signal()
    shown_changed = Signal()
    step = Signal(int)
    teach_asked = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._header: CheckpointHeader | None = None
        self._classes_taught: tuple[str, ...] = ()
        self._seed = 0
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._make_fields()
        self._connect()
        self._lay_out()
        self.set_model(None)
        self.clear()

    # ---- four paragraphs

    def _make_fields(self) -> None:
        self.title = ElidedLabel()
        self.previous, self.next = QToolButton(), QToolButton()
        self.previous.setArrowType(Qt.ArrowType.LeftArrow)
        self.next.setArrowType(Qt.ArrowType.RightArrow)
        self.pictures = PictureGrid(
            ("tile", "attention", "class", "what it sees", "re-drawn", "error")
        )
        self.bars = ClassBars()
        self.invitation = QLabel("Draw regions of each class in Teach to name tiles.")
        self.invitation.setWordWrap(True)
        self.teach_button = QPushButton("Open Teach")
        self.block, self.head, self.query = QComboBox(), QComboBox(), QComboBox()
        for value, words in QUERIES.items():
            self.query.addItem(words, value)
        self.query.setToolTip(
            "Who looks: the class token; or the patches on average, which is right for "
            "models whose vectors are the mean of the patches"
        )
        self.lesion = QLabel()
        self.lesion.setWordWrap(True)
        self.lesion.setVisible(False)
        self.attention_box = QCheckBox("on slide")
        self.attention_box.setChecked(True)
        self.mask_ratio = QSlider(Qt.Orientation.Horizontal)
        self.mask_ratio.setRange(LEAST_MASK, MOST_MASK)
        self.mask_ratio.setPageStep(5)
        self.mask_label = QLabel()
        self.mask_label.setMinimumWidth(
            self.mask_label.fontMetrics().horizontalAdvance("Mask 95 %") + 2
        )
        self.new_mask = QPushButton("New mask")
        self.redrawn_box = QCheckBox("on slide")
        for box in (self.block, self.head, self.query):
            box.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.statistics = QComboBox()
        self.statistics.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed
        )
        for value, words in STATISTICS.items():
            self.statistics.addItem(words, value)
        self.statistics.setToolTip(
            "The model predicts each hidden patch but for its mean colour and its "
            "contrast. They are taken from the visible patches around it. The true "
            "ones make a better picture that knows what it should not."
        )

    def _connect(self) -> None:
        self.previous.clicked.connect(lambda: self.step.emit(-1))
        self.next.clicked.connect(lambda: self.step.emit(1))
        self.teach_button.clicked.connect(self.teach_asked)
        self._settle.timeout.connect(self.look_changed)
        for box in (self.block, self.head, self.query, self.statistics):
            box.activated.connect(lambda _: self.look_changed.emit())
        self.mask_ratio.valueChanged.connect(self._on_ratio_changed)
        self.new_mask.clicked.connect(self._on_new_mask)
        for check in (self.attention_box, self.redrawn_box):
            check.toggled.connect(lambda _: self.shown_changed.emit())

    def _lay_out(self) -> None:
        invite = QWidget()
        column = QVBoxLayout(invite)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.invitation)
        column.addWidget(self.teach_button)
        column.addStretch(1)
        self._classes = QStackedWidget()
        self._classes.addWidget(self.bars)
        self._classes.addWidget(invite)
        self.pictures.put(CLASS, self._classes)

        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(SPACING)
        layout.addLayout(_row(self.title, self.previous, self.next, stretch=(0,)))
        layout.addWidget(self.pictures, 100)
        layout.addLayout(
            _row(
                QLabel("Attention"),
                self.block,
                self.head,
                self.attention_box,
                stretch=(1, 2),
            )
        )
        self.who_looks = QLabel("Looked at by")
        layout.addLayout(_row(self.who_looks, self.query, stretch=(1,)))
        layout.addWidget(self.lesion)
        layout.addLayout(
            _row(self.mask_label, self.mask_ratio, self.new_mask, stretch=(1,))
        )
        layout.addLayout(
            _row(QLabel("Colours"), self.statistics, self.redrawn_box, stretch=(1,))
        )
        layout.addStretch(1)

    # ---- what the form says

    @property
    def look(self) -> Look:
        """How to look at a tile."""
        from histomae.infer.closeup import Look

        head: Any = self.head.currentData() if self.head.count() else "mean"
        of_class = isinstance(head, tuple)  # Grad-CAM
        return Look(
            block=self.block.currentData() if self.block.count() else -1,
            head="mean" if of_class else head,
            query=self.query.currentData(),
            class_name=head[1] if of_class else "",
            mask_ratio=self.mask_ratio.value() / 100,
            seed=self._seed,
            statistics=self.statistics.currentData(),
        )

    @property
    def attention_shown(self) -> bool:
        """Whether the attention is shown on the slide."""
        return self.attention_box.isChecked()

    @property
    def redrawn_shown(self) -> bool:
        """Whether the reconstruction is shown on the slide."""
        return self.redrawn_box.isChecked()

    # ---- what it shows

    def set_model(self, header: CheckpointHeader | None) -> None:
        """Offer the blocks and heads of a model, and begin with its mask ratio."""
        self._header = header
        blocks, heads = (
            (header.encoder.depth, header.encoder.num_heads) if header else (0, 0)
        )
        self.block.clear()
        for block in range(blocks):
            self.block.addItem(f"block {block + 1}", block)
        self.block.setCurrentIndex(blocks - 1)
        self._offer_heads(heads)
        percent = round(100 * header.mask_ratio) if header else 75
        self.mask_ratio.blockSignals(True)
        self.mask_ratio.setValue(percent)
        self.mask_ratio.blockSignals(False)
        self._say_ratio()
        missing = header is not None and header.decoder is None
        for widget in (self.mask_ratio, self.new_mask, self.redrawn_box):
            widget.setEnabled(not missing)
            widget.setToolTip(NO_DECODER if missing else "")
        self.statistics.setEnabled(
            header is not None and not missing and header.norm_pix
        )

    def set_classes(self, names: Sequence[str]) -> None:
        """Offer Grad-CAM of the classes that are taught, where a model has no heads."""
        if tuple(names) != self._classes_taught:
            self._classes_taught = tuple(names)
            header = self._header
            self._offer_heads(header.encoder.num_heads if header else 0)

    def _offer_heads(self, heads: int) -> None:
        """List the heads of a ViT; of convolutions the classes that Grad-CAM takes."""
        before = self.head.currentText()
        self.head.clear()
        convolutional = self._header is not None and not hasattr(
            self._header.encoder, "patch_size"
        )
        for widget in (self.block, self.query, self.who_looks):
            widget.setVisible(not convolutional)
        if convolutional:
            for name in self._classes_taught:
                self.head.addItem(f"Grad-CAM: {name}", ("class", name))
            self.head.addItem("strength", "mean")
        else:
            self.head.addItem("mean", "mean")
            for head in range(heads):
                self.head.addItem(f"head {head + 1}", head)
            self.head.addItem("rollout", "rollout")
        self.head.setToolTip(STRENGTH_TIP if convolutional else HEAD_TIP)
        self.head.setCurrentIndex(max(0, self.head.findText(before)))

    def set_steps(self, reason: str) -> None:
        """Allow to step from one uncertain tile to the next, or say why not."""
        for button, way in ((self.previous, "Less"), (self.next, "More")):
            arrow = "←" if button is self.previous else "→"
            button.setToolTip(f"{way} certain tile ({arrow})")
            button.setProperty("usual_tip", None)
            why_disabled(button, reason)

    def set_taught(self, taught: bool) -> None:
        """Show classes, or the invitation to teach some."""
        self._classes.setCurrentIndex(0 if taught else 1)
        self.pictures.captions[CLASS].setText("class" if taught else "no classes yet")

    def clear(self) -> None:
        """Show no tile."""
        self.title.setText("Click a tile on the slide")
        self.lesion.setVisible(False)
        for picture in self.pictures.pictures.values():
            picture.set_array(None)
        self.pictures.captions[ERROR].setText("error")
        self.bars.clear()

    def show_tile(
        self,
        closeup: CloseUp,
        class_names: Sequence[str],
        class_colors: Sequence[Color],
    ) -> None:
        """Show one tile.

        Parameters
        ----------
        class_names, class_colors
            Of the probabilities; empty without a classifier.
        """
        row, col = closeup.cell
        if closeup.centre_mm is None:
            self.title.setText("The whole picture")
            self.title.setToolTip("As the model sees it")
        else:
            x_mm, y_mm = closeup.centre_mm
            self.title.setText(f"Tile {row}, {col} · {x_mm:.2f} mm, {y_mm:.2f} mm")
            self.title.setToolTip("Row, column · centre from the slide's corner, x, y")
        self.lesion.setVisible(closeup.lesion is not None)
        if closeup.lesion is not None:
            self.lesion.setText(closeup.lesion.words())
        pictures = self.pictures.pictures
        pictures[TILE].set_array(closeup.tile)
        pictures[ATTENTION].set_array(_coloured(closeup.attention, "magma"))
        if closeup.probabilities is None:
            self.bars.clear()
        else:
            self.bars.set_bars(class_names, closeup.probabilities, class_colors)
        self._show_reconstruction(closeup)

    def _show_reconstruction(self, closeup: CloseUp) -> None:
        one = closeup.reconstruction
        pictures, caption = self.pictures.pictures, self.pictures.captions[ERROR]
        if one is None:
            for number in (MASKED, REDRAWN, ERROR):
                pictures[number].set_array(None)
            caption.setText("error")
            return
        pictures[MASKED].set_array(one.masked)
        pictures[REDRAWN].set_array(one.reconstruction)
        pictures[ERROR].set_array(_coloured(one.error, None), smooth=False)
        caption.setText(f"error {one.loss:.2f}")
        caption.setToolTip(
            "Mean squared error of the hidden patches, each normalised: 1 is a guess "
            "of its mean. Blue patches are better than the median, red ones worse."
        )

    # ---- handlers

    def _on_ratio_changed(self) -> None:
        self._say_ratio()
        self._settle.start()

    def _on_new_mask(self) -> None:
        self._seed += 1
        self.look_changed.emit()

    def _say_ratio(self) -> None:
        self.mask_label.setText(f"Mask {self.mask_ratio.value()} %")


class PictureGrid(QWidget):
    """Pictures in rows of three, each with a caption above it."""

    def __init__(self, captions: Sequence[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.captions = [ElidedLabel(caption) for caption in captions]
        self.pictures: dict[int, Picture] = {}
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(3)
        for number, label in enumerate(self.captions):
            label.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            row, column = divmod(number, ACROSS)
            self._grid.addWidget(label, 2 * row, column)
            self._grid.setColumnStretch(column, 1)
            self.pictures[number] = Picture()
            self.put(number, self.pictures[number])

    def put(self, number: int, widget: QWidget) -> None:
        """Put a widget in the place of a picture."""
        old = self.pictures.get(number)
        if old is not None and old is not widget:
            self._grid.removeWidget(old)
            self.pictures.pop(number).deleteLater()
        row, column = divmod(number, ACROSS)
        widget.setMinimumHeight(LEAST_PICTURE_PX)
        self._grid.addWidget(widget, 2 * row + 1, column)
        self._grid.setRowStretch(2 * row + 1, 1)

    def resizeEvent(self, event: Any) -> None:
        """Keep the places of the pictures from being higher than wide."""
        super().resizeEvent(event)
        side = (self.width() - (ACROSS - 1) * self._grid.spacing()) // ACROSS
        rows = self._grid.rowCount() // 2
        caption = self.captions[0].sizeHint().height()
        row_px = max(LEAST_PICTURE_PX, side) + caption + 2 * self._grid.spacing()
        self.setMaximumHeight(rows * row_px)


def _coloured(values: Any, colors: str | None) -> Any:
    """Return the picture of a map of one tile: of an error, if no colours are named."""
    from histomae.infer.maps import limits_around_median, limits_of

    if colors is None:
        return coloured(values, diverging_colormap(), limits_around_median(values))
    return coloured(values, colors, limits_of(values))


def _row(*widgets: QWidget, stretch: Sequence[int]) -> QHBoxLayout:
    """Lay widgets side by side; those at ``stretch`` share the rest of the width."""
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACING)
    for number, widget in enumerate(widgets):
        row.addWidget(widget, 1 if number in stretch else 0)
    return row
