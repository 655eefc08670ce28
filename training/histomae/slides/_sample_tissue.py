"""How each tissue of the synthetic sample slide is arranged.

Ducts, in-situ nests and invasive cords are made of the same stuff in the same amounts:
one share of epithelium, one of empty space, one of stroma, one density and shape of
nuclei. Only the arrangement differs, so that no colour statistic tells them apart:

- duct: rings around one central lumen, nuclei pointing at it;
- in situ: solid rounded nests pierced by several small holes, nuclei in no order;
- invasive: long thin cords with slits along them, nuclei in file.

Every empty space is an affine image of one disc with one soft edge and one lining of
cytoplasm. The colours along its edge are then the same in a round lumen, a small hole
and a slit of equal area.

Frame: a plot is a window of the slide at 1 µm per pixel; its coordinates are (x, y) in
µm from the window's corner until :meth:`Plot.nuclei` moves them to the slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from histomae.slides._sample_fields import Floats, noise, smoothstep
from histomae.slides._sample_places import (
    Bools,
    Occupied,
    Points,
    along_contours,
    pixels_at,
    spread,
    streamlines,
    throw_darts,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator as Rng

CLASS_NAMES = ("Duct", "In situ", "Invasive", "Stroma", "Fat")
STROMA = CLASS_NAMES.index("Stroma")
#: Signed distances to epithelium are kept up to this, µm; fat counts as this far, so
#: that collagen keeps together around it.
FAR_UM, FAT_UM = 60.0, 20.0
#: Depth in empty space, in units of its radius: where its soft edge begins and ends,
#: where it counts as solid, how far cytoplasm lines it, and what is far from any.
HOLLOW_EDGE, EDGE, LINING_UM, SOLID = (0.72, 1.10), 0.92, 3.0, 2.0
#: Nuclei are this far apart, µm: as far as there is room, and within a pattern.
GAPS_UM, PATTERN_GAP_UM = (8.6, 7.8, 7.0, 6.4, 5.8, 5.2, 4.6), 6.4
#: Spindle nuclei per µm² of stroma.
SPINDLE_DENSITY = 1.9e-3


@dataclass(frozen=True)
class Nuclei:
    """Nuclei (n): centre (x, y), long axis, half axes (long, short), class index."""

    xy_um: Points
    angle_rad: Floats
    semi_axes_um: Points
    class_index: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def join(cls, parts: Sequence[Nuclei]) -> Nuclei:
        """Return all nuclei of ``parts`` in order."""
        return cls(
            np.concatenate([part.xy_um for part in parts]),
            np.concatenate([part.angle_rad for part in parts]),
            np.concatenate([part.semi_axes_um for part in parts]),
            np.concatenate([part.class_index for part in parts]),
        )

    def where(self, chosen: np.ndarray[Any, Any]) -> Nuclei:
        """Return the nuclei that ``chosen`` marks, bool (n), or numbers, int (k)."""
        return Nuclei(
            self.xy_um[chosen],
            self.angle_rad[chosen],
            self.semi_axes_um[chosen],
            self.class_index[chosen],
        )


@dataclass(frozen=True)
class Mixture:
    """Shares of a region's area, and epithelial nuclei per µm² of epithelium."""

    epithelium: float
    white: float
    density: float

    @classmethod
    def draw(cls, count: int, rng: Rng) -> list[Mixture]:
        """Draw ``count`` mixtures, spread evenly over what all three classes share."""
        level = np.stack([rng.permutation(count) for _ in range(3)]) + 0.5
        low, high = np.array([(0.45, 0.51), (0.095, 0.125), (7.6e-3, 8.8e-3)]).T
        return [cls(*(low + (high - low) * each / count)) for each in level.T]

    @property
    def cover(self) -> float:
        """Share of glands, nests or cords with the space in or along them."""
        return self.epithelium + self.white


@dataclass
class Plot:
    """A region under construction, arrays (H, W).

    ``inside`` bool is the region; ``distance`` float32 is the signed distance to
    epithelium, µm, negative within; ``hollow`` float32 is the depth in the nearest
    empty space, 0 in its middle and 1 at its edge; ``lining`` float32 is the signed
    distance to the cytoplasm around empty space.
    """

    origin_um: tuple[int, int]
    inside: Bools
    distance: Floats
    hollow: Floats
    lining: Floats
    rng: Rng

    @classmethod
    def empty(cls, origin_um: tuple[int, int], inside: Bools, *, rng: Rng) -> Plot:
        """Return a plot with nothing in it yet."""
        far = np.full(inside.shape, FAR_UM, np.float32)
        solid = np.full(inside.shape, SOLID, np.float32)
        return cls(origin_um, inside, far, solid, far.copy(), rng)

    @property
    def area_um2(self) -> float:
        """Area of the region."""
        return float(self.inside.sum())

    def noise(self, grain_um: float) -> Floats:
        """Return smooth unit noise over the window."""
        height, width = self.inside.shape
        field = noise(self.rng, (width, height), grain_um=grain_um)
        return field.at(np.arange(width) + 0.5, np.arange(height) + 0.5)

    def epithelium(self) -> Bools:
        """Return where there is solid epithelium."""
        mask: Bools = self.inside & (self.distance < 0) & (self.hollow > EDGE)
        return mask

    def settle_border(self, share: float) -> None:
        """Roughen the border and shift it: solid epithelium then has ``share``."""
        self.distance += 0.6 * self.noise(7.0)
        solid = self.inside & (self.hollow > EDGE)
        lined = solid & (self.lining < 0)
        wanted = round(share * self.area_um2) - int(lined.sum())
        others = self.distance[solid & ~lined]
        wanted = min(max(wanted, 0), len(others) - 1)
        self.distance -= np.partition(others, wanted)[wanted]
        self.distance = np.minimum(self.distance, self.lining)
        # Outlines know the distance only nearby; farther out it is measured.
        measured = ndimage.distance_transform_edt(self.distance > 0)
        far = smoothstep(self.distance, 6.0, 14.0)
        self.distance += far * (measured.clip(0, FAR_UM) - self.distance)

    def settle_nuclei(self, density: float, pattern: Points | None = None) -> Points:
        """Return places (n, 2) for nuclei: exactly ``density`` per µm² of epithelium.

        Those of the ``pattern`` that fit come first, then any that fit.
        """
        count = round(density * self.epithelium().sum())
        beside_hollow = ndimage.minimum_filter(self.hollow, 7) < EDGE
        free = self.inside & (self.distance < -2.2) & ~beside_hollow
        occupied = Occupied(free, PATTERN_GAP_UM)
        kept: list[tuple[float, float]] = []
        for x, y in () if pattern is None else self._within(pattern):
            if len(kept) < count and not occupied.taken(x, y):
                occupied.take(x, y)
                kept.append((x, y))
        return throw_darts(free, count, gaps_um=GAPS_UM, rng=self.rng, kept=kept)

    def _within(self, points: Points) -> Points:
        """Return the points that lie in the window, shuffled."""
        height, width = self.inside.shape
        within = (points > 0).all(1) & (points < (width, height)).all(1)
        return self.rng.permutation(points[within])

    def nuclei(self, xy: Points, angle: Floats, *, class_index: int) -> Nuclei:
        """Return nuclei at ``xy`` of the plot: spindles in stroma and fat."""
        draw = spindle_axes if class_index >= STROMA else _round_axes
        return Nuclei(
            xy + np.asarray(self.origin_um, float),
            angle,
            draw(self.rng, len(xy)),
            np.full(len(xy), class_index),
        )


def build(plot: Plot, class_name: str, *, mixture: Mixture) -> Nuclei:
    """Fill ``plot`` with the tissue of ``class_name`` and return its nuclei.

    Stroma and fat take no notice of the ``mixture``.
    """
    if class_name == "Fat":
        return _fat(plot)
    if class_name == "Stroma":
        return _spindles(plot)
    arrange = {"Duct": _ducts, "In situ": _nests, "Invasive": _cords}[class_name]
    xy, angle = arrange(plot, mixture)
    cells = plot.nuclei(xy, angle, class_index=CLASS_NAMES.index(class_name))
    return Nuclei.join([cells, _spindles(plot)])


# ---- ducts and nests


def _ducts(plot: Plot, mixture: Mixture) -> tuple[Points, Floats]:
    """Arrange rings of nuclei around one lumen each: places (n, 2), directions (n)."""
    shapes = _outlines(plot, mixture, spacing_um=plot.rng.uniform(50, 58), aspect=1.22)
    lumen = np.sqrt(mixture.white / mixture.cover) / EDGE
    for shape in shapes:
        shape.add_to(plot)
        axes = np.array([shape.aspect, 1 / shape.aspect]) * shape.radius * lumen
        _hollow(plot, shape.centre, semi_axes_um=axes, angle=shape.angle)
    plot.settle_border(mixture.epithelium)
    rings = np.concatenate([_ring(shape, mixture, rng=plot.rng) for shape in shapes])
    xy = plot.settle_nuclei(mixture.density, rings)
    centres = np.array([shape.centre for shape in shapes])
    outward = xy - centres[cKDTree(centres).query(xy)[1]]
    angle = np.arctan2(outward[:, 1], outward[:, 0])
    return xy, angle + plot.rng.normal(0, 0.15, len(xy))


def _nests(plot: Plot, mixture: Mixture) -> tuple[Points, Floats]:
    """Arrange rounded nests full of nuclei, pierced by several small holes."""
    spacing = plot.rng.uniform(100, 116)
    for shape in _outlines(plot, mixture, spacing_um=spacing, aspect=1.15):
        shape.add_to(plot)
        area = np.pi * shape.radius**2 * mixture.white / mixture.cover
        holes = max(2, round(area / plot.rng.uniform(240, 300)))
        size = np.sqrt(area / holes / np.pi) / EDGE
        for centre in _scatter_in(shape, holes, size_um=size, rng=plot.rng):
            stretch = plot.rng.uniform(1.0, 1.2)
            axes = np.array([stretch, 1 / stretch]) * size
            _hollow(plot, centre, semi_axes_um=axes, angle=plot.rng.uniform(0, np.pi))
    plot.settle_border(mixture.epithelium)
    xy = plot.settle_nuclei(mixture.density)
    return xy, plot.rng.uniform(0, np.pi, len(xy))


@dataclass(frozen=True)
class _Outline:
    """A rounded closed curve: an ellipse with a few gentle waves."""

    centre: Floats
    radius: float
    aspect: float
    angle: float
    waves: Floats
    phases: Floats

    def reach(self, turn: Any) -> Any:
        """Return the radius of the curve, in units of ``radius``, before stretching."""
        orders = zip((2, 3, 4), self.waves, self.phases, strict=True)
        return 1 + sum(wave * np.cos(n * turn + phase) for n, wave, phase in orders)

    def points(self, depth: Floats, turn: Floats) -> Points:
        """Return the points (n, 2) at ``depth`` (1 = on the curve) and ``turn``."""
        distance = depth * self.reach(turn) * self.radius
        u = distance * np.cos(turn) * self.aspect
        v = distance * np.sin(turn) / self.aspect
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.centre + np.stack([u * cos - v * sin, u * sin + v * cos], axis=1)

    def add_to(self, plot: Plot) -> None:
        """Lower the plot's distance to the signed distance to this curve."""
        window, u, v = _turned(plot, self.centre, self.angle, 1.4 * self.radius + 20)
        u, v = u / self.aspect, v * self.aspect
        distance = np.hypot(u, v) / self.reach(np.arctan2(v, u)) - self.radius
        plot.distance[window] = np.minimum(plot.distance[window], distance)


def _outlines(
    plot: Plot, mixture: Mixture, *, spacing_um: float, aspect: float
) -> list[_Outline]:
    """Return round things that together cover their share of the plot."""
    rng = plot.rng
    pixels = np.argwhere(plot.inside)[:, ::-1] + 0.5
    thinned = rng.permutation(pixels)[: max(2000, len(pixels) // 12)]
    count = max(2, round(plot.area_um2 / (0.866 * spacing_um**2)))
    centres, shares = spread(thinned, count, rounds=7, rng=rng)
    radii = np.sqrt(shares * plot.area_um2 * mixture.cover / np.pi)
    return [
        _Outline(
            centre,
            float(radius),
            np.sqrt(rng.uniform(1.0, aspect)),
            rng.uniform(0, np.pi),
            rng.normal(0, 0.03, 3),
            rng.uniform(0, 2 * np.pi, 3),
        )
        for centre, radius in zip(centres, radii, strict=True)
    ]


def _turned(
    plot: Plot, centre: Floats, angle: float, reach_um: float
) -> tuple[Any, Floats, Floats]:
    """Return the window around ``centre`` and its (u, v) (h, w) along ``angle``, µm."""
    height, width = plot.inside.shape
    x0, y0 = np.floor(centre - reach_um).astype(int).clip(0)
    x1, y1 = np.minimum(np.ceil(centre + reach_um).astype(int), (width, height))
    dx = np.arange(x0, x1) + 0.5 - centre[0]
    dy = (np.arange(y0, y1) + 0.5 - centre[1])[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.s_[y0:y1, x0:x1], dx * cos + dy * sin, dy * cos - dx * sin


def _hollow(plot: Plot, centre: Floats, *, semi_axes_um: Floats, angle: float) -> float:
    """Empty a gently waved ellipse; return the area of the region that this opened."""
    window, u, v = _turned(plot, centre, angle, 1.6 * semi_axes_um.max() + 3)
    u, v = u / semi_axes_um[0], v / semi_axes_um[1]
    turn, phases = np.arctan2(v, u), plot.rng.uniform(0, 2 * np.pi, 2)
    waves = 0.06 * np.cos(2 * turn + phases[0]) + 0.05 * np.cos(3 * turn + phases[1])
    depth = np.hypot(u, v).clip(1e-3) / (1 + waves)
    opened = (depth < EDGE) & (plot.hollow[window] >= EDGE) & plot.inside[window]
    plot.hollow[window] = np.minimum(plot.hollow[window], depth)
    steepness = np.hypot(u / semi_axes_um[0], v / semi_axes_um[1]) / depth
    lining = (depth - EDGE) / steepness - LINING_UM
    plot.lining[window] = np.minimum(plot.lining[window], lining)
    return float(opened.sum())


def _scatter_in(shape: _Outline, count: int, *, size_um: float, rng: Rng) -> Points:
    """Return ``count`` centres of holes of radius ``size_um``, apart, in a nest."""
    deepest = max(0.2, 1 - (size_um + 6.5) / shape.radius)
    depth = deepest * np.sqrt(rng.uniform(0, 1, 40 * count))
    points = shape.points(depth, rng.uniform(0, 2 * np.pi, 40 * count))
    return spread(points, count, rounds=4, rng=rng)[0]


def _ring(shape: _Outline, mixture: Mixture, *, rng: Rng) -> Points:
    """Return places for nuclei around a duct, by turns nearer and farther out."""
    share = mixture.epithelium / mixture.cover
    count = max(4, round(mixture.density * np.pi * shape.radius**2 * share))
    turn = 2 * np.pi * (np.arange(count) + rng.normal(0, 0.12, count)) / count
    depth = 0.77 + np.where(np.arange(count) % 2, 0.045, -0.045)
    return shape.points(depth + rng.normal(0, 0.015, count), turn + rng.uniform(0, 6))


# ---- cords


def _cords(plot: Plot, mixture: Mixture) -> tuple[Points, Floats]:
    """Arrange long thin cords along one drift, with slits along them."""
    rng = plot.rng
    bend = 0.55 * plot.noise(110.0) + 0.22 * plot.noise(28.0)
    angle = rng.uniform(0, np.pi) + bend
    lines = streamlines(plot.inside, angle, spacing_um=rng.uniform(24, 27), rng=rng)
    apart = np.ones(plot.inside.shape, bool)
    apart[pixels_at(np.concatenate(lines))] = False
    plot.distance = ndimage.distance_transform_edt(apart).astype(np.float32)
    _slits(plot, lines, angle=angle, area_um2=mixture.white * plot.area_um2)
    plot.distance += 1.3 * plot.noise(22.0)
    plot.settle_border(mixture.epithelium)
    xy = plot.settle_nuclei(mixture.density, _files(plot, lines, mixture))
    return xy, angle[pixels_at(xy)] + rng.normal(0, 0.15, len(xy))


def _slits(plot: Plot, lines: list[Points], *, angle: Floats, area_um2: float) -> None:
    """Open slits beside the cords, ``area_um2`` in all; first where there is room."""
    rng = plot.rng
    places = rng.permutation(np.concatenate([line[4:-4] for line in lines]))
    occupied = Occupied(plot.inside, 14.0)
    opened = 0.0
    for room_um in (5.2, 0.0):
        for x, y in places:
            if opened >= area_um2:
                return
            long = rng.uniform(18, 24)
            short = long / 3.9
            heading = float(angle[int(y), int(x)])
            side = rng.choice([-1.0, 1.0]) * (5.6 + short)
            centre = np.array([x - side * np.sin(heading), y + side * np.cos(heading)])
            column, row = centre.astype(int)
            if occupied.taken(*centre) or plot.distance[row, column] < room_um + short:
                continue
            occupied.take(*centre)
            axes = np.array([long, short])
            opened += _hollow(plot, centre, semi_axes_um=axes, angle=heading)


def _files(plot: Plot, lines: list[Points], mixture: Mixture) -> Points:
    """Return places along the cords, by turns left and right, as many as are wanted."""
    rng = plot.rng
    widths = [np.maximum(-2 * plot.distance[pixels_at(line)], 0.5) for line in lines]
    count = mixture.density * float(plot.epithelium().sum())
    pace = sum(float(width.sum()) for width in widths) / count
    places = []
    for line, width in zip(lines, widths, strict=True):
        area, index = np.cumsum(width), np.arange(len(line))
        steps = np.arange(rng.uniform(0.3, 0.7), area[-1] / pace)
        steps += rng.normal(0, 0.08, len(steps))
        along = np.interp(steps * pace, area, index)
        xy = np.stack([np.interp(along, index, line[:, k]) for k in (0, 1)], axis=1)
        tangent = np.gradient(line, axis=0)[along.astype(int)]
        normal = tangent[:, ::-1] * (1, -1) / np.hypot(*tangent.T)[:, None]
        side = np.where(np.arange(len(xy)) % 2, 1, -1) * rng.normal(2.9, 0.4, len(xy))
        places.append(xy + side[:, None] * normal)
    return np.concatenate(places)


# ---- fat and stroma


def _fat(plot: Plot) -> Nuclei:
    """Arrange large empty cells with thin rims, and a flat nucleus in some."""
    pixels = np.argwhere(plot.inside)[:, ::-1] + 0.5
    spacing = plot.rng.uniform(52, 64)
    count = max(3, round(plot.area_um2 / (0.866 * spacing**2)))
    centres, _ = spread(pixels[::16], count, rounds=3, rng=plot.rng)
    bends = [4.0 * plot.noise(30.0)[plot.inside] for _ in "xy"]
    nearest = cKDTree(centres).query(pixels + np.stack(bends, axis=1), k=2)[0]
    border = ndimage.gaussian_filter(ndimage.distance_transform_edt(plot.inside), 2.0)
    rim = np.minimum(nearest[:, 1] - nearest[:, 0], 2 * border[plot.inside] - 3)
    plot.hollow[plot.inside] = (SOLID - rim / 3.4).clip(0, SOLID)
    away = FAT_UM + ndimage.distance_transform_edt(~plot.inside)
    plot.distance = np.minimum(away, FAR_UM).astype(np.float32)
    free = plot.inside & (plot.hollow > 1.4)
    xy = throw_darts(free, round(1.2 * count), gaps_um=(14.0,), rng=plot.rng)
    angle = along_contours(ndimage.gaussian_filter(plot.hollow, 3.0), xy)
    return plot.nuclei(xy, angle, class_index=CLASS_NAMES.index("Fat"))


def _spindles(plot: Plot) -> Nuclei:
    """Put spindle nuclei between whatever else is in the plot, along the fibres."""
    ground = plot.inside & (plot.distance > 0) & (plot.hollow > EDGE)
    free = plot.inside & (plot.distance > 1.9) & (plot.hollow > 1.15)
    count = round(SPINDLE_DENSITY * ground.sum())
    xy = throw_darts(free, count, gaps_um=(9.0, 6.0, 4.0), rng=plot.rng)
    angle = along_contours(ndimage.gaussian_filter(plot.distance, 2.0), xy)
    angle = angle + plot.rng.normal(0, 0.2, len(xy))
    return plot.nuclei(xy, angle, class_index=STROMA)


def _round_axes(rng: Rng, count: int) -> Points:
    """Return half axes (n, 2) of epithelial nuclei, µm: one distribution for all."""
    size = rng.normal(1.0, 0.09, count).clip(0.8, 1.25)
    ratio = rng.normal(1.48, 0.12, count).clip(1.2, 1.8)
    return 3.75 * size[:, None] * np.stack([np.sqrt(ratio), 1 / np.sqrt(ratio)], axis=1)


def spindle_axes(rng: Rng, count: int) -> Points:
    """Return half axes (n, 2) of spindle nuclei, µm."""
    long = rng.normal(6.0, 0.9, count).clip(4.0, 8.0)
    return np.stack([long, rng.normal(1.65, 0.22, count).clip(1.1, 2.2)], axis=1)
