"""How good a classifier is, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histomae.evaluate.report_plots import plot_confusion
from napari_histomae._widgets.plot import Plot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qtpy.QtWidgets import QWidget


class ConfusionPlot(Plot):
    """Which class was taken for which, in napari's colours.

    A row is a true class, with the number of its tiles; a cell is shaded by the share
    of the row and holds the number of tiles.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setMaximumHeight(240)

    @property
    def cells(self) -> list[str]:
        """The numbers that are written in the cells, row by row."""
        return [text.get_text() for text in self.axes.texts]

    def show_scores(
        self,
        names: Sequence[str],
        confusion: Sequence[Sequence[int]] | None,
        tiles: Mapping[str, int],
    ) -> None:
        """Draw a confusion matrix (rows true, columns predicted); None clears it.

        Parameters
        ----------
        tiles
            Tiles that were taught, of each class.
        """
        if confusion is None:
            self.show_plot(None)
            return
        self.show_plot(
            lambda axes, ink: plot_confusion(axes, confusion, names, ink, counts=tiles)
        )
