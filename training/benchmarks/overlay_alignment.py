"""Do overlays lie on the slide? Measured on what napari draws, not by arithmetic.

Slides with dark marks at known places are opened in a real window. Every kind of
overlay is laid over the same marks. At every level of the picture, napari's own choice
at that zoom, the slide alone and each overlay alone are photographed, the edges of the
mark are found in the photograph, and their difference is what counts. Then the corners
are clicked, and the tile that the click finds is compared with the one that is drawn.

An edge is found to a small part of a pixel: it is where the grey between the mark's
inside and its outside adds up to, and the picture is moved by parts of a screen pixel
between photographs.

``--plant`` moves the overlays by ``--plant-px`` level-0 pixels.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from figures import Figure, load, options, report, say
from watch import away_from_the_user

from histomae.slides.annotations import Annotation
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.heatmap import Heatmap
from histomae.slides.slide import Slide
from napari_histomae import _layers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from napari.layers import Layer
    from napari.viewer import Viewer

Array = np.ndarray[Any, Any]
Box = tuple[float, float, float, float]

GLASS, MARK = 215, 40
#: Screen pixels per pixel of level 0 where level 0 is looked at.
CLOSE = 16.0
#: Screen pixels per pixel of a coarser level: napari shows a level only below 1.
AFAR = (0.97, 0.9, 0.8, 0.7, 0.6)
#: An edge is looked for within so many pixels of the level, to either side.
REACH = 6.0
#: Clicks fall so many screen pixels within and without a tile's corner.
BESIDE_PX = 3
#: Less contrast than this, of 255, is no mark.
LEAST_CONTRAST = 30.0
WINDOW_PX = (600, 600)
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Case:
    """A slide. ``size``: (width, height); ``mpp``: (x, y) µm, None: unknown.

    ``factors`` are those of the stored levels, whose sizes are rounded by ``rounding``.
    ``tile_l0`` is a tile's width, level-0 pixels.
    """

    name: str
    size: tuple[int, int]
    mpp: tuple[float, float] | None
    factors: tuple[int, ...]
    tile_l0: float
    rounding: str = "floor"


#: No size is a multiple of the factors, nor of the tile.
CASES = (
    Case("stored 1 4 16", (9274, 7003), (0.2738, 0.2738), (1, 4, 16), 338.9),
    Case("mpp x ≠ y", (6001, 4403), (0.25, 0.31), (1, 2, 4, 8), 180.3, "ceil"),
    Case("one level", (3333, 2777), (0.69, 0.69), (1,), 131.7),
    Case("coarse, mpp x ≠ y", (2901, 2203), (2.31, 1.87), (1, 3), 118.9),
    Case("mpp unknown", (1501, 1203), None, (1, 2), 90.5, "ceil"),
)
QUICK = CASES[3:]


def cases_of(args: argparse.Namespace) -> tuple[Case, ...]:
    """Return the slides that are looked at; one shows whether a defect is seen."""
    if args.quick:
        return QUICK[1:] if args.plant else QUICK
    return CASES


@dataclass(frozen=True)
class Corner:
    """A mark's corner, level-0 (x, y). ``inward`` is 1 if the mark lies after it."""

    xy_l0: tuple[float, float]
    inward: int
    cell: tuple[int, int]


@dataclass(frozen=True)
class Offset:
    """How far an overlay's edge lies from the slide's: (x, y), pixels of the level.

    ``absolute``: how far it lies from where the frame says, likewise.
    """

    case: str
    level: int
    thing: str
    corner: Corner
    from_slide: Array
    absolute: Array

    @property
    def worst_px(self) -> float:
        """In pixels of the level shown; not a number where nothing was drawn."""
        return float(np.abs(self.from_slide).max())

    @property
    def worst_l0(self) -> float:
        """In level-0 pixels."""
        return self.worst_px * 2**self.level

    def __str__(self) -> str:
        x, y = self.from_slide
        at = f"({self.corner.xy_l0[0]:.0f}, {self.corner.xy_l0[1]:.0f})"
        return (
            f"{self.case}, level {self.level}, {self.thing} at {at}: "
            f"{x:+.3f} {y:+.3f} px of the level"
        )


# ---- the slide


def write_slide(path: Path, case: Case, marks: list[Box]) -> None:
    """Write a slide with dark boxes, each stored pixel the exact mean of its area."""
    tags: dict[str, Any] = {
        "tile": (256, 256),
        "photometric": "rgb",
        "compression": "deflate",
        "compressionargs": {"level": 1},
        "metadata": None,
    }
    if case.mpp is not None:
        tags["resolution"] = (1e4 / case.mpp[0], 1e4 / case.mpp[1])
        tags["resolutionunit"] = "CENTIMETER"
    with tifffile.TiffWriter(path) as tiff:
        for index, factor in enumerate(case.factors):
            pixels = _painted(case, factor, marks)
            tiff.write(pixels, subfiletype=1 if index else 0, **tags)


def _painted(case: Case, factor: int, marks: list[Box]) -> Array:
    rounded = {"floor": math.floor, "ceil": math.ceil}[case.rounding]
    width, height = (rounded(side / factor) for side in case.size)
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    for x0, y0, x1, y1 in marks:
        left, across = _covered(x0 / factor, x1 / factor)
        top, down = _covered(y0 / factor, y1 / factor)
        grey = GLASS - (GLASS - MARK) * np.outer(down, across)
        at = np.s_[top : top + len(down), left : left + len(across)]
        pixels[at] = np.rint(grey)[..., None]
    return pixels


def _covered(start: float, stop: float) -> tuple[int, Array]:
    """Return the first pixel that an interval touches, and how much of each it has."""
    first, last = math.floor(start), math.ceil(stop)
    edges = np.arange(first, last + 1)
    return first, np.diff(np.clip(edges, start, stop))


def grid_over(case: Case) -> TileGrid:
    """Return the tile grid of a case; the same as ``TileGrid.over`` its slide."""
    mpp_x, mpp_y = case.mpp or (1.0, 1.0)
    spec = TileSpec(100, case.tile_l0 * mpp_x / 100)
    wide, high = spec.tile_um / mpp_x, spec.tile_um / mpp_y
    rows, cols = math.ceil(case.size[1] / high), math.ceil(case.size[0] / wide)
    return TileGrid(spec, (0.0, 0.0), (wide, high), rows, cols)


def marked_cells(case: Case, grid: TileGrid, coarsest: int) -> Array:
    """Return (row, column) of a tile near each end of the slide, and between.

    The last one is as near to the far corner as its edges can be seen, at the level of
    the factor ``coarsest``.
    """
    room = (REACH + 1) * coarsest
    last = [
        math.floor((side - room) / tile) - 1
        for side, tile in zip(case.size[::-1], grid.tile_size_l0[::-1], strict=True)
    ]
    middle = [number // 2 for number in last]
    return np.array([(1, 1), middle, last])


def corners_of(grid: TileGrid, cells: Array) -> list[Corner]:
    """Return the first and the last corner of each tile."""
    corners = []
    for row, col in cells:
        x0, y0, x1, y1 = grid.box_l0(row, col)
        corners.append(Corner((x0, y0), 1, (int(row), int(col))))
        corners.append(Corner((x1, y1), -1, (int(row), int(col))))
    return corners


# ---- what is laid over it


def overlays(
    viewer: Viewer, slide: Slide, grid: TileGrid, cells: Array
) -> dict[str, Layer]:
    """Lay every kind of overlay over the marked tiles, through the door."""
    ones = np.ones(len(cells), np.float32)
    plain: dict[str, Any] = {
        "colormap": "gray",
        "contrast_limits": (0, 1),
        "opacity": 1.0,
    }
    fine = max(2, round(grid.tile_size_l0[0] / 4))
    patches = np.ones((len(cells), fine, fine), np.float32)
    smooth = Heatmap.from_patches(grid, cells, patches)
    smooth = Heatmap(
        np.nan_to_num(smooth.values), smooth.origin_xy_l0, smooth.pixel_size_l0
    )
    layers: dict[str, Layer] = {
        "heatmap": _layers.show_heatmap(
            viewer, slide, Heatmap.from_cells(grid, cells, ones), "heatmap", **plain
        ),
        "patches, linear": _layers.show_heatmap(
            viewer, slide, smooth, "patches", interpolation="linear", **plain
        ),
        "classes": _layers.show_classes(
            viewer,
            slide,
            Heatmap.from_cells(grid, cells, ones.astype(np.uint8)),
            "classes",
            ["tumour"],
            [WHITE],
            opacity=1.0,
        ),
        "annotations": _annotations(viewer, slide, grid, cells),
    }
    picture = np.full((48, 56, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        name = f"picture {number}"
        box = grid.box_l0(*cell)
        layers[name] = _layers.show_picture(viewer, slide, picture, box, name)
    return layers


def _annotations(viewer: Viewer, slide: Slide, grid: TileGrid, cells: Array) -> Layer:
    from shapely.geometry import box

    regions = [
        Annotation(
            roi=box(*grid.box_l0(*cell)),
            class_name="tumour",
            color=WHITE,
            id=str(number),
        )
        for number, cell in enumerate(cells)
    ]
    layer = _layers.show_annotations(viewer, slide, regions, "regions")
    layer.edge_width = 0  # the line has a width of its own; the face is the region
    layer.face_color = "white"
    layer.selected_data = set()
    return layer


# ---- the photographs


class Studio:
    """A real window with one slide, its overlays, and a camera."""

    def __init__(self, viewer: Viewer, slide: Slide, *, moves: int) -> None:
        from napari_histomae._widgets.hooks import ViewerHooks

        self.viewer = viewer
        self.slide = slide
        self.moves = moves
        self.base = _layers.open_slide(viewer, slide)
        self.wrong_levels = 0
        self._factor = 1
        self._clicked: list[tuple[float, float]] = []
        self._hooks = ViewerHooks(viewer, on_click=self._clicked.append, keys={})
        self._hooks.attach()

    @property
    def levels(self) -> int:
        """How many levels the viewer's pyramid has."""
        return len(self.base.data)

    def close(self) -> None:
        """Empty the window."""
        from qtpy.QtWidgets import QApplication

        self._hooks.detach()
        self.viewer.layers.clear()
        # Drawn once without the layers; else the next ones can crash Mesa's renderer.
        QApplication.processEvents()
        self.photograph()
        self.slide.close()

    def look_at(self, xy_l0: tuple[float, float], level: int) -> None:
        """Centre a place, at a zoom at which napari shows ``level``."""
        from qtpy.QtWidgets import QApplication

        self.show(self.base)
        self._factor = 2**level
        sizes = _layers.pixel_size_yx(self.slide)
        zooms = [CLOSE / min(sizes)]
        if level:
            zooms = [each / self._factor / max(sizes) for each in AFAR]
        for zoom in zooms:
            _layers.camera(self.viewer).zoom = zoom
            self._centre(xy_l0, 0.0)
            QApplication.processEvents()
            self.photograph()
            if self.base.data_level == level:
                return
        self.wrong_levels += 1

    def show(self, layer: Layer) -> None:
        """Show one layer alone."""
        for one in self.viewer.layers:
            if one.visible != (one is layer):  # to set it draws all anew
                one.visible = one is layer

    def corner(self, corner: Corner) -> tuple[Array, Array]:
        """Find a corner in what is shown.

        Returns
        -------
        (x, y) from where it should be to where it is, pixels of the level; and (x, y)
        on the canvas in the last photograph, screen pixels.
        """
        found = []
        for move in range(self.moves):
            away_px = (move + 0.5) / self.moves - 0.5
            self._centre(corner.xy_l0, away_px)
            picture = self.photograph()
            middle = np.array(picture.shape[1::-1]) / 2
            expected = middle - away_px
            reach = REACH * self.px_per_level_px
            edges = [
                edge_in(picture, expected, reach, axis=axis, inward=corner.inward)
                for axis in (0, 1)
            ]
            found.append(edges - expected)
        offset = np.mean(found, 0)
        return offset / self.px_per_level_px, expected + offset

    @property
    def px_per_level_px(self) -> Array:
        """Screen pixels per pixel of the level shown, (x, y)."""
        sizes = np.array(_layers.pixel_size_yx(self.slide))[::-1]
        zoom: float = _layers.camera(self.viewer).zoom
        return sizes * zoom * self._factor

    def photograph(self) -> Array:
        """Return the canvas as it is, (height, width, 4)."""
        shot: Array = self.viewer.screenshot(canvas_only=True, flash=False)
        return shot

    def click(self, xy_px: tuple[int, int]) -> Array:
        """Click on the canvas; return the level-0 (x, y) that the plugin hears."""
        from qtpy.QtCore import QPoint, Qt
        from qtpy.QtTest import QTest
        from qtpy.QtWidgets import QApplication

        self._clicked.clear()
        canvas = self.viewer.window._qt_viewer.canvas.native
        QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=QPoint(*xy_px), delay=1)
        QApplication.processEvents()
        if len(self._clicked) != 1:
            return np.full(2, np.nan)
        return _layers.l0_from_world(self.slide, self._clicked[0])

    def _centre(self, xy_l0: tuple[float, float], away_px: float) -> None:
        """Centre a place, so many screen pixels past it in both directions."""
        eye = _layers.camera(self.viewer)
        there = place_in_world(self.slide, xy_l0)
        eye.center = tuple(there + away_px / eye.zoom)


def place_in_world(slide: Slide, xy_l0: tuple[float, float]) -> Array:
    """Return world (y, x) of a place, by napari's rule and not by the door's.

    A layer's first pixel has its centre at the origin, so its edge is half a pixel
    before it.
    """
    y, x = xy_l0[1] - 0.5, xy_l0[0] - 0.5
    return np.array([y, x]) * _layers.pixel_size_yx(slide)


def edge_in(
    picture: Array, xy_px: Array, reach_px: Array, *, axis: int, inward: int
) -> float:
    """Find an edge near a corner of a mark, to a part of a pixel.

    Parameters
    ----------
    picture
        (height, width, 3 or more).
    xy_px
        Where the corner is expected.
    reach_px
        How far from it, in x and y, to look.
    axis
        0: the upright edge, found in x; 1: the level one, found in y.
    inward
        1 if the mark lies after its corner, -1 if before.

    Returns
    -------
    Its place, screen pixels from the picture's corner; not a number without an edge.
    """
    colours = picture[..., :3].astype(float)
    if axis == 1:
        colours = colours.swapaxes(0, 1)
    at, beside = xy_px[axis], xy_px[1 - axis]
    reach, along = reach_px[axis], reach_px[1 - axis]
    low, high = math.floor(at - reach), math.ceil(at + reach)
    band = sorted(round(beside + inward * along * part) for part in (0.4, 1.0))
    if low < 0 or band[0] < 0 or colours[band[0] : band[1], low:high].size == 0:
        return math.nan
    profile = colours[band[0] : band[1], low:high].mean(0)
    if inward < 0:
        profile = profile[::-1]
    level_ground = max(2, len(profile) // 5)
    outside, inside = profile[:level_ground].mean(0), profile[-level_ground:].mean(0)
    contrast = inside - outside
    if np.abs(contrast).max() < LEAST_CONTRAST:
        return math.nan
    share = ((profile - outside) @ contrast) / (contrast @ contrast)
    return float(high - share.sum()) if inward > 0 else float(low + share.sum())


# ---- the measurement


@dataclass
class Findings:
    """What was measured, over all cases."""

    offsets: list[Offset]
    clicks_l0: list[float]
    wrong_tiles: int = 0
    clicks: int = 0
    wrong_levels: int = 0
    round_trip_l0: float = 0.0


def measure(viewer: Viewer, case: Case, path: Path, args: Any, into: Findings) -> None:
    """Measure one slide."""
    grid = grid_over(case)
    coarsest = 2 ** max(0, math.ceil(math.log2(max(case.size) / 1024)))
    cells = marked_cells(case, grid, coarsest)
    write_slide(path, case, [grid.box_l0(*cell) for cell in cells])
    slide = Slide.open(path)
    if case.mpp is not None:
        made = TileGrid.over(slide, grid.spec)
        assert np.allclose(made.tile_size_l0, grid.tile_size_l0, rtol=1e-6)
        assert made.shape == grid.shape
    studio = Studio(viewer, slide, moves=args.moves)
    layers = overlays(viewer, slide, grid, cells)
    into.round_trip_l0 = max(
        into.round_trip_l0, round_trip(slide, layers["annotations"], grid, cells)
    )
    for level in range(studio.levels):
        first = len(into.offsets)
        for corner in corners_of(grid, cells):
            studio.look_at(corner.xy_l0, level)
            slide_at, at_px = studio.corner(corner)
            for x in _measured(studio, layers, corner, slide_at, case.name, level):
                into.offsets.append(x)
            _click_around(studio, grid, corner, at_px, level, into)
        worst = _worst(into.offsets[first:], "worst_px")
        say(f"  {worst}")
    into.wrong_levels += studio.wrong_levels
    studio.close()


def _measured(
    studio: Studio,
    layers: dict[str, Layer],
    corner: Corner,
    slide_at: Array,
    case: str,
    level: int,
) -> Iterator[Offset]:
    """Yield the offset of every overlay from the slide, at one corner."""
    yield Offset(case, level, "the slide", corner, slide_at * 0, slide_at)
    x0, y0 = corner.xy_l0
    for thing, layer in layers.items():
        if thing.startswith("picture") and not _holds(layer, studio.slide, (x0, y0)):
            continue
        studio.show(layer)
        at, _ = studio.corner(corner)
        yield Offset(case, level, thing.split()[0], corner, at - slide_at, at)
    studio.show(studio.base)


def _holds(layer: Layer, slide: Slide, xy_l0: tuple[float, float]) -> bool:
    """Whether a picture reaches to a place, roughly."""
    data = np.array(layer.world_to_data(place_in_world(slide, xy_l0)))
    shape = np.array(layer.data.shape[:2])
    return bool((data > -2).all() and (data < shape + 1).all())


def _click_around(
    studio: Studio,
    grid: TileGrid,
    corner: Corner,
    at_px: Array,
    level: int,
    into: Findings,
) -> None:
    """Click within and without a corner that was found on the canvas."""
    for side in (1, -1):
        there = np.rint(at_px + side * corner.inward * BESIDE_PX).astype(int)
        heard = studio.click((int(there[0]), int(there[1])))
        found = grid.cell_at((heard[0], heard[1])) if np.isfinite(heard).all() else None
        into.clicks += 1
        into.wrong_tiles += (found == corner.cell) != (side == 1)
        if level == 0:
            # A click means the middle of its screen pixel.
            away_l0 = (there + 0.5 - at_px) / studio.px_per_level_px
            off = heard - (np.array(corner.xy_l0) + away_l0)
            into.clicks_l0.append(float(np.abs(off).max()))


def round_trip(slide: Slide, regions: Layer, grid: TileGrid, cells: Array) -> float:
    """Return how far places come back from where they were, level-0 pixels."""
    random = np.random.default_rng(0)
    places = random.random((1000, 2)) * slide.dimensions
    there = _layers.world_from_l0(slide, places)
    worst = np.abs(_layers.l0_from_world(slide, there) - places).max()
    drawn = _layers.annotations_from(regions, slide)
    back = np.array(sorted(region.roi.bounds for region in drawn))
    known = np.array(sorted(grid.box_l0(*cell) for cell in cells))
    return float(max(worst, np.abs(back - known).max()))


def _worst(offsets: list[Offset], by: str) -> Offset:
    """Return the worst; one that is not a number is worse than any."""
    values = [getattr(offset, by) for offset in offsets]
    return offsets[int(np.argmax(np.nan_to_num(values, nan=np.inf)))]


def figures_of(found: Findings, args: argparse.Namespace) -> list[Figure]:
    """Return what was found, with its goals."""
    close = [offset for offset in found.offsets if offset.level == 0]
    on_frame = [x for x in found.offsets if x.thing == "the slide"]
    slide_off = max(np.abs(x.absolute).max() for x in on_frame)
    clicks = max(found.clicks_l0)
    edges = sum(2 for x in found.offsets if x.thing != "the slide")
    px_goal, l0_goal = args.goal_level_px, args.goal_l0_px
    return [
        load(),
        Figure("edges measured", edges, at_least=1),
        Figure("views in which napari chose another level", found.wrong_levels, "", 0),
        Figure("slide from its own frame", float(slide_off), "px of the level shown"),
        Figure("places there and back", found.round_trip_l0, "level-0 px", 1e-3),
        Figure(f"clicks of {found.clicks} on a wrong tile", found.wrong_tiles, "", 0),
        Figure("click from the place clicked", clicks, "level-0 px", l0_goal),
        Figure(
            "overlay from slide at level 0",
            _worst(close, "worst_l0").worst_l0,
            "level-0 px",
            l0_goal,
        ),
        Figure(
            "overlay from slide at any level",
            _worst(found.offsets, "worst_px").worst_px,
            "px of the level shown",
            px_goal,
        ),
    ]


def main() -> int:
    """Measure; return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--goal-level-px", type=float, default=0.5)
    parser.add_argument("--goal-l0-px", type=float, default=1.0)
    parser.add_argument(
        "--moves", type=int, help="photographs of each edge (16; quick: 2)"
    )
    parser.add_argument(
        "--plant-px", type=float, default=1.0, help="level-0 px that --plant moves by"
    )
    args = parser.parse_args()
    args.moves = args.moves or (2 if args.quick else 16)
    if args.plant:
        _layers.EDGE_TO_CENTRE += args.plant_px
    found = Findings([], [])
    with away_from_the_user() as folder:
        import napari
        from qtpy.QtWidgets import QDockWidget

        viewer = napari.Viewer()
        for dock in viewer.window._qt_window.findChildren(QDockWidget):
            dock.hide()  # less to paint
        viewer.window.resize(*WINDOW_PX)
        for number, case in enumerate(cases_of(args)):
            say(f"{case.name}: {case.size[0]} × {case.size[1]} px, worst at each level")
            measure(viewer, case, folder / f"{number}.tiff", args, found)
        viewer.close()
    say(f"worst of all: {_worst(found.offsets, 'worst_px')}")
    return report(figures_of(found, args), as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
