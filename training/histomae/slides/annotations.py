"""Regions a person drew, and the tiles of the grid that belong to them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import shapely

from histomae.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histomae.slides.grid import TileGrid

Array = np.ndarray[Any, Any]
Roi: TypeAlias = shapely.Polygon | shapely.MultiPolygon
Color = tuple[int, int, int]

#: Of the UUIDs that are made from other ids.
NAMESPACE = uuid.UUID("8f1f6a52-6c55-5f0b-9d43-0d6f7a5b8f21")
#: Two covers closer than this are the same: polygons are cut in floating point.
SAME_COVER = 1e-9


@dataclass(frozen=True)
class Annotation:
    """A region that a person drew, and its class.

    ``roi`` is a valid polygon or multipolygon in level-0 pixels (x, y), measured at
    pixel edges; one that crosses itself is repaired. ``class_name`` is empty while the
    region has no class. ``id`` is a UUID; one is made from any other text.

    Raises
    ------
    AnnotationError
        If the region has no area, or its colour is none.
    """

    roi: Roi
    class_name: str = ""
    color: Color | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "roi", valid_roi(self.roi))
        object.__setattr__(self, "id", _uuid_of(self.id))
        if self.color is not None:
            object.__setattr__(self, "color", _checked_color(self.color))


@dataclass(frozen=True)
class LabelledCells:
    """Tiles that belong to regions, row by row of the grid.

    ``cells`` int (M, 2) of (row, column); ``labels`` int (M,): index of the class;
    ``groups`` int (M,): index of the annotation.
    """

    cells: Array
    labels: Array
    groups: Array

    def tiles_per_class(self, num_classes: int) -> Array:
        """Return the number of tiles of each class, int (K,)."""
        return np.bincount(self.labels, minlength=num_classes)

    def regions_per_class(self, num_classes: int) -> Array:
        """Return the number of regions of each class that own a tile, int (K,)."""
        pairs = np.unique(np.stack([self.labels, self.groups]), axis=1)
        return np.bincount(pairs[0], minlength=num_classes)


def valid_roi(roi: Roi) -> Roi:
    """Return the area of ``roi``, repaired where its outline crosses itself.

    Raises
    ------
    AnnotationError
        If there is no area left, or a coordinate is not finite.
    """
    if not isinstance(roi, Roi):
        raise AnnotationError(
            f"A region must be an area, not a {type(roi).__name__}. Draw a polygon."
        )
    if not np.isfinite(shapely.get_coordinates(roi)).all():
        raise AnnotationError(
            "A region has a coordinate that is not finite. Draw it again."
        )
    roi = shapely.force_2d(roi)
    if not roi.is_valid:
        # "structure" keeps an area drawn over twice; "linework" would make it a hole.
        roi = shapely.make_valid(roi, method="structure", keep_collapsed=False)
    parts = shapely.get_parts(shapely.get_parts(roi))
    parts = [p for p in parts if isinstance(p, shapely.Polygon) and p.area > 0]
    if not parts or not np.isfinite(roi.area):
        raise AnnotationError(
            "A region has no area. Draw it again, around some tissue."
        )
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def roi_from_points(xy_l0: Array) -> Roi:
    """Return the area inside an outline drawn by hand.

    Parameters
    ----------
    xy_l0
        (P, 2) float, level-0 pixels (x, y); the last point need not be the first.

    Raises
    ------
    AnnotationError
        If the points enclose nothing.
    """
    points = np.asarray(xy_l0, float)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise AnnotationError(
            f"An outline needs three points (x, y) or more, not an array of shape "
            f"{points.shape}. Draw it again."
        )
    if not np.isfinite(points).all():
        raise AnnotationError(
            "An outline has a point that is not finite. Draw it again."
        )
    return valid_roi(shapely.Polygon(points))


def label_cells(
    annotations: Sequence[Annotation],
    grid: TileGrid,
    class_names: Sequence[str],
    *,
    min_cover: float = 0.5,
) -> LabelledCells:
    """Return the tiles that belong to the annotations of the named classes.

    A tile belongs to the annotation that covers most of it, if that is at least
    ``min_cover`` of its area; where two cover it alike the smaller region wins, then
    the one drawn later. An annotation too small to cover any tile so far takes the tile
    under it, unless that is the only one of another region. Annotations of other
    classes, or of none, are left out.
    """
    names = list(class_names)
    listed = [i for i, a in enumerate(annotations) if a.class_name in names]
    claims = [_claims(annotations[i], i, grid) for i in listed]
    if not claims:
        return _no_cells()
    cells, covers, groups, areas = (
        np.concatenate(c) for c in zip(*claims, strict=True)
    )
    flat = cells[:, 0] * grid.cols + cells[:, 1]
    enough = covers >= min_cover - SAME_COVER
    owner = _owners(flat[enough], covers[enough], areas[enough], groups[enough])
    small = [i for i in listed if not enough[groups == i].any()]
    _give_cells_to_small(owner, [(i, annotations[i]) for i in small], grid)
    return _labelled(owner, annotations, grid, names)


def _claims(
    annotation: Annotation, index: int, grid: TileGrid
) -> tuple[Array, Array, Array, Array]:
    """Return the cells (n, 2) an annotation touches, with cover, index and area."""
    cells, covers = covered_cells(annotation.roi, grid)
    count = len(cells)
    areas = np.full(count, annotation.roi.area)
    return cells, covers, np.full(count, index), areas


def covered_cells(roi: Roi, grid: TileGrid) -> tuple[Array, Array]:
    """Return the tiles that ``roi`` touches, and how much of each it covers.

    Returns
    -------
    cells
        int (n, 2) of (row, column).
    covers
        float (n,), above 0 and at most 1.
    """
    corners = grid.grid_from_l0(np.array(roi.bounds).reshape(2, 2))
    first = np.clip(np.floor(corners[0]), 0, (grid.cols, grid.rows)).astype(int)
    last = np.clip(np.ceil(corners[1]), 0, (grid.cols, grid.rows)).astype(int)
    col, row = first.tolist()
    wide, high = (last - first).tolist()
    covers = np.zeros((max(high, 0), max(wide, 0)))
    if covers.size:
        _fill(covers, _inside(roi, grid, (row, col), covers.shape), grid, (row, col))
    rows, cols = np.nonzero(covers)
    return np.stack([rows + row, cols + col], axis=1), covers[rows, cols]


def _fill(covers: Array, piece: Roi, grid: TileGrid, at: tuple[int, int]) -> None:
    """Write the cover of the cells from ``at`` on, of which ``piece`` is the part.

    A block of cells is halved until it is one cell, or wholly inside or outside: so a
    long outline is cut into short pieces, and no cell meets the whole of it.
    """
    high, wide = covers.shape
    share = piece.area / (high * wide * np.prod(grid.tile_size_l0))
    if share >= 1 - SAME_COVER:
        covers[:] = 1.0
    elif covers.size == 1:
        covers[:] = share
    elif share > 0:
        half = (high // 2, wide) if high >= wide else (high, wide // 2)
        second = (half[0] % high, half[1] % wide)
        for corner, block in (
            ((0, 0), covers[: half[0], : half[1]]),
            (second, covers[second[0] :, second[1] :]),
        ):
            start = (at[0] + corner[0], at[1] + corner[1])
            _fill(block, _inside(piece, grid, start, block.shape), grid, start)


def _inside(
    roi: Roi, grid: TileGrid, at: tuple[int, int], shape: tuple[int, ...]
) -> Roi:
    """Return the part of ``roi`` in a block of cells, areas only."""
    end = (at[0] + shape[0], at[1] + shape[1])
    part = shapely.intersection(roi, shapely.box(*grid.xy_l0(*at), *grid.xy_l0(*end)))
    if isinstance(part, Roi):
        return part
    parts = shapely.get_parts(part)
    return shapely.MultiPolygon([p for p in parts if isinstance(p, shapely.Polygon)])


def _owners(flat: Array, covers: Array, areas: Array, groups: Array) -> dict[int, int]:
    """Return which annotation owns each cell (its flat index)."""
    steps = np.round(covers / SAME_COVER)
    order = np.lexsort((-groups, areas, -steps, flat))
    cells, first = np.unique(flat[order], return_index=True)
    return dict(zip(cells.tolist(), groups[order][first].tolist(), strict=True))


def _give_cells_to_small(
    owner: dict[int, int], small: list[tuple[int, Annotation]], grid: TileGrid
) -> None:
    """Give each annotation that covers no cell enough the one under it."""
    for index, annotation in sorted(small, key=lambda s: -s[1].roi.area):
        point = annotation.roi.representative_point()
        cell = grid.cell_at((point.x, point.y))
        if cell is None:
            continue
        flat = cell[0] * grid.cols + cell[1]
        before = owner.get(flat)
        only_one = before is not None and list(owner.values()).count(before) == 1
        if not only_one:
            owner[flat] = index


def _labelled(
    owner: dict[int, int],
    annotations: Sequence[Annotation],
    grid: TileGrid,
    names: list[str],
) -> LabelledCells:
    if not owner:
        return _no_cells()
    flat = np.array(sorted(owner))
    groups = np.array([owner[f] for f in flat.tolist()])
    labels = np.array([names.index(annotations[g].class_name) for g in groups])
    return LabelledCells(np.stack(divmod(flat, grid.cols), axis=1), labels, groups)


def _no_cells() -> LabelledCells:
    none = np.zeros(0, int)
    return LabelledCells(np.zeros((0, 2), int), none, none)


def _uuid_of(value: str) -> str:
    """Return an id as a UUID: itself, or one made from it."""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return str(uuid.uuid5(NAMESPACE, value))


def _checked_color(color: Sequence[int]) -> Color:
    channels = tuple(int(channel) for channel in color)
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise AnnotationError(
            f"{color!r:.80} is no colour. Give red, green and blue from 0 to 255."
        )
    return channels[0], channels[1], channels[2]
