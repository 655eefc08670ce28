"""What Results shows: a report of an examination, or the tiles of a slide on a map.

No widget here. The slow ones are generators for :mod:`napari_histomae._jobs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import FeatureError
from histomae.evaluate.report_plots import Colouring, colouring

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from histomae.evaluate.point_maps import PointMap
    from histomae.evaluate.summary import Summary
    from histomae.events import Event
    from histomae.infer.predict import Prediction
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
Box = tuple[float, float, float, float]
FEATURES = ".h5"


@dataclass(frozen=True, eq=False)
class TileMap:
    """Tiles of a slide laid out in a plane.

    ``layout.rows`` int (m,) are rows of the file; ``boxes_l0`` float (m, 4), corners
    (x0, y0, x1, y1) of the same tiles; ``tiles`` counts all of the file.
    """

    slide_id: str
    path: Path
    layout: PointMap
    boxes_l0: Array
    tiles: int

    def at(self, xy_l0: tuple[float, float]) -> int | None:
        """Return the point whose tile holds a place of the slide; None: none shown."""
        x, y = xy_l0
        x0, y0, x1, y1 = self.boxes_l0.T
        found = np.flatnonzero((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1))
        return int(found[0]) if len(found) else None

    def box(self, point: int) -> Box:
        """Return the tile of a point, level-0 (x0, y0, x1, y1)."""
        x0, y0, x1, y1 = self.boxes_l0[point].tolist()
        return x0, y0, x1, y1

    def classes(self, prediction: Prediction | None) -> Colouring:
        """Colour the tiles by their predicted class; grey where nothing is known."""
        labels = np.full(len(self.boxes_l0), -1)
        if prediction is None or prediction.slide_id != self.slide_id:
            return Colouring((), (), labels)
        known = np.zeros(prediction.grid.shape, int)  # 0: none
        known[tuple(prediction.cells.T)] = prediction.labels()
        centres = (self.boxes_l0[:, :2] + self.boxes_l0[:, 2:]) / 2
        for point, centre in enumerate(centres):
            cell = prediction.grid.cell_at((centre[0], centre[1]))
            if cell is not None:
                labels[point] = known[cell] - 1
        return Colouring(prediction.class_names, prediction.class_colors, labels)


def open_result(
    path: str | Path, slides: Sequence[Slide], method: str = "pca"
) -> Generator[Event, None, Summary | TileMap]:
    """Open a report (its folder or JSON), or a file of features of an open slide.

    Raises
    ------
    ReportError
        If it is no report, or damaged.
    RunError
        If it is the folder of an evaluation that cannot be read.
    FeatureError
        If its slide is not open, or it does not tell where its tiles lie.
    """
    from histomae.evaluate.summary_files import NAME, read_summary

    yield from ()
    path = Path(path)
    if path.suffix == FEATURES:
        return tile_map(path, slides, method)
    folder = path if path.is_dir() else path.parent
    if not (folder / NAME).exists() and _is_evaluation(path):
        return _summed_up(folder)
    return read_summary(path)


def _is_evaluation(path: Path) -> bool:
    from histomae.evaluate.trial_files import EVALUATION

    return (path / EVALUATION).is_file() if path.is_dir() else path.name == EVALUATION


def _summed_up(folder: Path) -> Summary:
    """Sum up an evaluation of which no report was written."""
    from histomae.evaluate.summary import summarise
    from histomae.evaluate.trial_files import load_evaluation

    return summarise(load_evaluation(folder), maps=("pca",))


def tile_map(path: Path, slides: Sequence[Slide], method: str) -> TileMap:
    """Lay out the features of one of the open slides.

    Raises
    ------
    FeatureError
        If its slide is not open, or it does not tell where its tiles lie.
    """
    from histomae.evaluate.point_maps import LEAST_POINTS, lay_out, sampled
    from histomae.exchange.features import read_features

    features = read_features(path)
    header = features.header
    if header.grid is None or header.slide_id is None:
        raise FeatureError(
            f"{path.name} does not tell how large its tiles are. Embed the slide with "
            "histomae embed."
        )
    if header.slide_id not in [slide.slide_id for slide in slides]:
        raise FeatureError(
            f"{path.name} is of {header.slide}, which is not open. Open that slide "
            "first."
        )
    if header.tiles < LEAST_POINTS:
        raise FeatureError(
            f"{path.name} has {header.tiles} tiles, too few for a map. Embed a slide "
            "with more tissue."
        )
    rows = sampled(np.arange(header.tiles))
    return TileMap(
        slide_id=header.slide_id,
        path=path,
        layout=lay_out(header.slide, rows, features.values[rows], method),
        boxes_l0=header.grid.boxes_l0(features.cells[rows]),
        tiles=header.tiles,
    )


def picture_colours(summary: Summary, layout: PointMap, by: str) -> Colouring:
    """Colour the pictures of a report's map."""
    return colouring(summary, layout.rows.tolist(), by)


def picture_words(summary: Summary, row: int) -> str:
    """Say what a picture is, and what it was taken for."""
    picture, names = summary.pictures[row], summary.classes.names
    said = [f"{picture.name}: {names[picture.label]}"]
    if row in summary.predicted:
        label, sure = summary.predicted[row]
        verb = "taken for" if label != picture.label else "found, as"
        said.append(f"{verb} {names[label]} ({sure:.2f})")
    said.append(f"patient {picture.patient}")
    if picture.slide and picture.slide != picture.patient:
        said.append(f"slide {picture.slide}")
    return ", ".join(said)


def slide_with(
    summary: Summary, row: int, slides: Sequence[Slide]
) -> tuple[Slide, Box] | None:
    """Return the open slide that a picture was cut from, and where; None: not known."""
    picture = summary.pictures[row]
    if picture.box_l0 is None or not picture.slide:
        return None
    names = (picture.slide, Path(picture.slide).stem)
    found = [slide for slide in slides if slide.name in names]
    return (found[0], picture.box_l0) if found else None


def point_at(
    summary: Summary, layout: PointMap, slide: Slide, xy_l0: tuple[float, float]
) -> int | None:
    """Return the point of the picture that was cut from a place of a slide."""
    x, y = xy_l0
    for point, row in enumerate(layout.rows.tolist()):
        cut = slide_with(summary, row, [slide])
        if cut is not None:
            x0, y0, x1, y1 = cut[1]
            if x0 <= x < x1 and y0 <= y < y1:
                return point
    return None


def read_pixels(summary: Summary, row: int) -> Array:
    """Return the pixels of a picture of a report, uint8 (H, W, 3).

    Raises
    ------
    DataSetError
        If it cannot be read any more.
    """
    from histomae.data.datasets import open_dataset
    from histomae.data.pictures import read_picture

    picture = summary.pictures[row]
    if picture.row is None:
        return read_picture(picture.path)
    # It lies in a container, and its data set knows how.
    return open_dataset(summary.root).read(picture)
