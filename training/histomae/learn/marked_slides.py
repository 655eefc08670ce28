"""Tiles of slides as marked pictures: regions that were drawn, centres of nuclei."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histomae.data.marks import MarkedPicture, MarkedSet, Marks, discs, marks_of
from histomae.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from histomae.data.classes import ClassSet
    from histomae.slides.annotations import Annotation
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
#: Radius of the disc that stands for a nucleus of which only the centre is known, µm.
NUCLEUS_UM = 3.5
#: Of a table of centres.
COLUMNS = ("x_l0", "y_l0", "class_name")
#: Tiles, across and down, that are held out together where one slide is all there is.
BLOCK = 3


def region_tiles(
    slide: Slide,
    grid: TileGrid,
    regions: Sequence[Annotation],
    classes: ClassSet,
    *,
    hidden: Collection[str] = (),
) -> MarkedSet:
    """Return the tiles that drawn regions touch, each piece of a region an object.

    What is not drawn may be anything. Regions of other classes are left out; where two
    lie on each other, the smaller one is seen.

    Parameters
    ----------
    hidden
        Ids of regions that are kept from whoever learns: their place may be anything.

    Raises
    ------
    AnnotationError
        If no region is of these classes, or none is left.
    """
    known = [one for one in regions if one.class_name in classes.names]
    if not known:
        raise AnnotationError(
            f"No region on {slide.name} is of the classes {', '.join(classes.names)}. "
            "Draw some, or name the classes that are drawn."
        )
    known.sort(key=lambda one: -one.roi.area)
    tree = shapely.STRtree([one.roi for one in known])
    there = shapely.STRtree([one.roi for one in known if one.id not in hidden])
    boxes = shapely.box(*grid.boxes_l0(grid.all_cells()).T)
    touched = np.unique(there.query(boxes, predicate="intersects")[0])
    secret = len(classes)

    def marks(cell: tuple[int, int]) -> Marks:
        box = shapely.box(*grid.box_l0(*cell))
        there = sorted(tree.query(box, predicate="intersects").tolist())
        side = grid.spec.tile_px
        kinds = [
            secret if one.id in hidden else classes.names.index(one.class_name)
            for one in known
        ]
        outlines = [
            (_in_tile(grid, cell, xy), kinds[number])
            for number in there
            for xy in _rings(known[number].roi & box)
        ]
        marked = marks_of(outlines, (side, side))
        shown = np.where(marked.classes == secret + 1, 0, marked.objects)
        return Marks(shown, marked.labels).crop(slice(None), slice(None))

    return _marked(slide, grid, grid.all_cells()[touched], classes, marks, partial=True)


def _rings(geometry: Any) -> Iterator[Array]:
    """Yield the outlines of a geometry, holes bridged by cutting it into triangles."""
    for part in shapely.get_parts(geometry):
        if part.geom_type == "Polygon" and part.area:
            pieces = [part] if not part.interiors else _without_holes(part)
            yield from (np.asarray(piece.exterior.coords) for piece in pieces)


def _without_holes(polygon: Any) -> list[Any]:
    triangles = shapely.get_parts(shapely.delaunay_triangles(polygon))
    return [
        piece
        for triangle in triangles
        for piece in shapely.get_parts(triangle & polygon)
        if piece.geom_type == "Polygon"
    ]


def nucleus_tiles(
    slide: Slide,
    grid: TileGrid,
    cells: Array,
    centres_l0: Array,
    labels: Array,
    classes: ClassSet,
    *,
    radius_um: float = NUCLEUS_UM,
    by_block: bool = False,
) -> MarkedSet:
    """Return tiles at ``cells`` (m, 2) with a disc at each nucleus.

    They are of one patient, the slide; or, ``by_block``, of as many as there are blocks
    of ``BLOCK`` tiles square, so that some may judge the others.

    Parameters
    ----------
    centres_l0
        float (n, 2), level-0 (x, y), of all nuclei on these tiles.
    labels
        int (n,), the class of each.
    """
    radius = radius_um / grid.spec.mpp

    def marks(cell: tuple[int, int]) -> Marks:
        xy, side = _in_tile(grid, cell, centres_l0), grid.spec.tile_px
        near = ((xy > -radius) & (xy < side + radius)).all(1)
        return discs(xy[near], labels[near], (side, side), radius)

    data = _marked(slide, grid, cells, classes, marks, partial=False)
    if not by_block:
        return data
    blocks = tuple(
        replace(one, patient=f"{slide.name} {row // BLOCK} {column // BLOCK}")
        for one, (row, column) in zip(data.pictures, cells.tolist(), strict=True)
    )
    return replace(data, pictures=blocks)


def regions_apart(regions: Sequence[Annotation], share: float, seed: int) -> set[str]:
    """Choose regions that judge, by their ids: of each class a share of its regions.

    Of a class with one region none is chosen.
    """
    random = np.random.default_rng(seed)
    chosen: set[str] = set()
    for name in sorted({one.class_name for one in regions}):
        ids = [one.id for one in regions if one.class_name == name]
        many = min(max(1, round(share * len(ids))), len(ids) - 1)
        chosen |= set(random.permutation(ids)[:many].tolist())
    return chosen


def nucleus_cells(grid: TileGrid, centres_l0: Array, tissue: Array) -> Array:
    """Return the tiles, int (m, 2) of (row, column), that hold a centre of a nucleus.

    ``tissue`` int (t, 2) are the tiles to choose from.
    """
    column_row = np.floor(grid.grid_from_l0(centres_l0)).astype(int)
    held = {(row, column) for column, row in column_row.tolist()}
    kept = [cell for cell in tissue.tolist() if tuple(cell) in held]
    return np.array(kept, int).reshape(-1, 2)


def class_names_in(path: Path) -> set[str]:
    """Return the names of the classes in a table of centres.

    Raises
    ------
    AnnotationError
        If it is no such table.
    """
    return {row["class_name"] for row in _rows_of(path)}


def read_centres(path: Path, classes: ClassSet) -> tuple[Array, Array]:
    """Read a table with columns ``x_l0``, ``y_l0`` and ``class_name``.

    Returns
    -------
    float64 (n, 2), level-0 (x, y), and int64 (n,), the class of each: its place in
    ``classes``, or 0 where there is one class only.

    Raises
    ------
    AnnotationError
        If it is no such table.
    """
    rows, one = _rows_of(path), len(classes) == 1
    try:
        xy = np.array([(float(r["x_l0"]), float(r["y_l0"])) for r in rows], float)
        labels = [0 if one else classes.names.index(r["class_name"]) for r in rows]
        if not np.isfinite(xy).all():
            raise ValueError("a place is not finite")
    except (ValueError, TypeError) as error:
        raise _no_table(path, error) from error
    return xy.reshape(-1, 2), np.array(labels, np.int64)


def _rows_of(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if None in [row[name] for name in COLUMNS]:
                raise ValueError("a row is too short")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise _no_table(path, error) from error
    return rows


def _no_table(path: Path, error: Exception) -> AnnotationError:
    return AnnotationError(
        f"{path.name} is no table of centres ({error!s:.100}). Give it the columns "
        "x_l0, y_l0 and class_name."
    )


def _in_tile(grid: TileGrid, cell: tuple[int, int], xy_l0: Array) -> Array:
    """Turn level-0 (x, y) into pixels of a tile, at edges."""
    row, col = cell
    return (grid.grid_from_l0(xy_l0) - (col, row)) * grid.spec.tile_px


def _marked(
    slide: Slide,
    grid: TileGrid,
    cells: Array,
    classes: ClassSet,
    marks: Any,
    *,
    partial: bool,
) -> MarkedSet:
    side = grid.spec.tile_px

    def read(picture: MarkedPicture) -> tuple[Array, Marks]:
        assert picture.place is not None
        corner = grid.xy_l0(*picture.place)
        pixels = slide.read_region(corner, (side, side), grid.spec.mpp)
        return pixels, marks(picture.place)

    return MarkedSet(
        name=slide.name,
        classes=classes,
        pictures=tuple(
            MarkedPicture(
                path=slide.path,
                marks=(),
                patient=slide.name,
                place=(int(row), int(col)),
            )
            for row, col in cells
        ),
        read=read,
        mpp=grid.spec.mpp,
        partial=partial,
    )
