"""What lies where on the synthetic sample slide: sections, regions, tissue and traps.

Everything here is in micrometres from the slide's corner, x before y, and knows no
pixel size: :mod:`histomae.slides._sample_paint` paints it at any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import Delaunay
from skimage.measure import find_contours

from histomae.slides._sample_fields import Field, Floats, lattice, noise
from histomae.slides._sample_places import Bools, Points, pixels_at, spread
from histomae.slides._sample_tissue import (
    CLASS_NAMES,
    FAR_UM,
    SOLID,
    SPINDLE_DENSITY,
    STROMA,
    Mixture,
    Nuclei,
    Plot,
    build,
    spindle_axes,
)
from histomae.slides._sample_traps import KNOT_UM, Traps, make_traps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator as Rng

#: Knots of the outline's distance are this far apart, µm.
OUTLINE_UM = 8.0
#: Share of the frame that is tissue before the cut; its distance from the frame, µm.
TISSUE_SHARE, FRAME_UM = 0.71, 80.0
#: Half the glass between the two sections, µm.
GAP_UM = 45.0
#: A region's area with its share of septum, µm²; half the septum between two, µm; and
#: the radius to which corners are rounded, µm.
REGION_UM2, SEPTUM_UM, CORNER_UM = 205_000.0, 13.0, 50.0
#: Regions take their classes from this cycle: of 24, six of each epithelial class.
CYCLE = (0, 1, 2, 3, 0, 1, 2, 4)


@dataclass(frozen=True)
class Region:
    """A region of one tissue; ``outline_um`` is a polygon in µm."""

    class_name: str
    outline_um: shapely.Polygon


@dataclass(frozen=True)
class Anatomy:
    """The whole slide, µm. All maps are functions of place (see :class:`Field`).

    ``inside`` is the signed distance to the edge of the tissue, µm, positive within;
    ``distance`` that to epithelium, negative within; ``hollow`` the depth in empty
    space (see :class:`Plot`); ``fibres`` the phase, µm, along which collagen varies
    where nothing else guides it.
    """

    size_um: tuple[float, float]
    regions: tuple[Region, ...]
    nuclei: Nuclei
    inside: Field
    distance: Field
    hollow: Field
    fibres: Field
    traps: Traps


def make_anatomy(size_um: tuple[float, float], *, rng: Rng) -> Anatomy:
    """Lay out a slide of (width, height) ``size_um``."""
    outline_rng, region_rng, fibre_rng, trap_rng, tissue_rng = rng.spawn(5)
    inside = _outline(size_um, rng=outline_rng)
    regions = _regions(inside, size_um, rng=region_rng)
    fibres = _fibres(size_um, rng=fibre_rng)
    canvas = _Canvas(size_um)
    mixtures = _mixtures(regions, rng=region_rng)
    owns = tissue_rng.spawn(len(regions))
    parts = [
        canvas.add(region, mixture, rng=own)
        for region, mixture, own in zip(regions, mixtures, owns, strict=True)
    ]
    parts.append(_septa_nuclei(regions, inside, size_um=size_um, rng=fibre_rng))
    nuclei = canvas.follow_fibres(Nuclei.join(parts), fibres, rng=fibre_rng)
    foldable = _foldable(regions, size_um)
    return Anatomy(
        size_um,
        tuple(regions),
        nuclei.where(inside.at_points(nuclei.xy_um) > 4),
        inside,
        Field(canvas.distance, 1.0),
        Field(canvas.hollow, 1.0),
        fibres,
        make_traps(inside, size_um, foldable=foldable, rng=trap_rng),
    )


def one_tissue(
    size_um: tuple[float, float], class_name: str, mixture: Mixture, *, rng: Rng
) -> Anatomy:
    """Fill a rectangle of (width, height) with one tissue, without edge or traps."""
    fibre_rng, tissue_rng = rng.spawn(2)
    region = Region(class_name, shapely.box(0, 0, *size_um))
    fibres, canvas = _fibres(size_um, rng=fibre_rng), _Canvas(size_um)
    nuclei = canvas.add(region, mixture, rng=tissue_rng)
    nothing = Field(np.zeros((2, 2), np.float32), max(size_um))
    return Anatomy(
        size_um,
        (region,),
        canvas.follow_fibres(nuclei, fibres, rng=fibre_rng),
        Field(np.full((2, 2), 10 * FAR_UM, np.float32), max(size_um)),
        Field(canvas.distance, 1.0),
        Field(canvas.hollow, 1.0),
        fibres,
        Traps(nothing, nothing, nothing, nothing),
    )


# ---- sections and regions


def _outline(size_um: tuple[float, float], *, rng: Rng) -> Field:
    """Return the signed distance to the edge of two irregular sections."""
    x, y = lattice(size_um, OUTLINE_UM)
    (width, height), scale = size_um, min(size_um)
    u = 2 * x / width - 1 + rng.uniform(-0.03, 0.03)
    v = (2 * y / height - 1 + rng.uniform(-0.03, 0.03))[:, None]
    bulge = np.abs(u) ** 2.3 + np.abs(v) ** 2.3
    for amount, grain_um in ((0.09, 0.16 * scale), (0.035, 0.05 * scale), (0.012, 24)):
        bulge = bulge + amount * noise(rng, size_um, grain_um=grain_um).at(x, y)
    tissue = bulge < np.quantile(bulge, TISSUE_SHARE)
    cut = width * (0.5 + rng.choice([-1, 1]) * rng.uniform(0.1, 0.16))
    cut = cut + 0.16 * width * rng.uniform(-1, 1) * v
    cut = cut + 26.0 * noise(rng, size_um, grain_um=130.0).at(x, y)
    tissue &= np.abs(x - cut) > GAP_UM
    edge = np.minimum(np.minimum(x, width - x), np.minimum(y, height - y)[:, None])
    edge = edge + 22.0 * noise(rng, size_um, grain_um=90.0).at(x, y)
    tissue = ndimage.binary_opening(tissue & (edge > FRAME_UM), iterations=4)
    distance = ndimage.distance_transform_edt(tissue)
    distance -= ndimage.distance_transform_edt(~tissue)
    distance = ndimage.gaussian_filter(distance, 1.2) * OUTLINE_UM
    return Field(distance.astype(np.float32), OUTLINE_UM)


def _regions(inside: Field, size_um: tuple[float, float], *, rng: Rng) -> list[Region]:
    """Divide the sections into regions of about one size and give them classes."""
    outlines = [
        outline
        for section in _sections(inside)
        for outline in _divide(section, size_um, rng=rng)
    ]
    classes = _mixed(np.resize(CYCLE, len(outlines)), outlines, rng=rng)
    return [
        Region(CLASS_NAMES[index], outline)
        for index, outline in zip(classes, outlines, strict=True)
    ]


def _sections(inside: Field) -> list[shapely.Polygon]:
    """Return the pieces of tissue that are large enough for a region, largest first."""
    contours = find_contours(np.pad(inside.knots, 1, constant_values=-1.0), 0.0)
    rings = [(ring[:, ::-1] - 0.5) * inside.spacing_um for ring in contours]
    pieces = [shapely.Polygon(ring).buffer(0) for ring in rings if len(ring) > 3]
    large = [piece for piece in pieces if piece.area > 0.7 * REGION_UM2]
    return sorted(large, key=lambda piece: -piece.area)


def _divide(
    section: shapely.Polygon, size_um: tuple[float, float], *, rng: Rng
) -> list[shapely.Polygon]:
    """Cut a section into rounded regions with a septum between them."""
    warps = [
        [noise(rng, size_um, grain_um=grain).times(by) for grain, by in waves]
        for waves in (((130.0, 20.0), (45.0, 6.0)),) * 2
    ]

    def warp(xy: Points) -> Points:
        moves = [sum(field.at_points(xy) for field in axis) for axis in warps]
        return xy + np.stack(moves, axis=1)

    body = section.buffer(-SEPTUM_UM)
    regions = []
    for cell in _cells(section, rng=rng):
        part = shapely.transform(cell.intersection(section).segmentize(10.0), warp)
        part = part.intersection(body).buffer(-SEPTUM_UM - CORNER_UM).buffer(CORNER_UM)
        pieces = getattr(part, "geoms", [part])
        piece = max(pieces, key=lambda piece: piece.area, default=part)
        if piece.area > 0.5 * REGION_UM2:
            regions.append(shapely.Polygon(piece.exterior).simplify(0.8))
    return regions


def _cells(section: shapely.Polygon, *, rng: Rng) -> list[Any]:
    """Return polygons that share a section evenly."""
    count = max(1, round(section.area / REGION_UM2))
    if count == 1:
        return [section]
    x0, y0, x1, y1 = section.bounds
    x, y = np.meshgrid(np.arange(x0, x1, 12.0), np.arange(y0, y1, 12.0))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points = points[shapely.contains_xy(section, *points.T)]
    centres, _ = spread(points, count, rounds=40, rng=rng)
    sites = shapely.MultiPoint(centres)
    return list(shapely.voronoi_polygons(sites, extend_to=section).geoms)


def _mixed(classes: Any, outlines: Sequence[shapely.Polygon], *, rng: Rng) -> Any:
    """Return the classes in an order that puts few equal ones side by side."""
    pairs = np.empty((0, 2), int)
    if len(outlines) > 3:
        centres = np.array([outline.centroid.coords[0] for outline in outlines])
        triangles = Delaunay(centres).simplices
        pairs = np.concatenate(
            [triangles[:, [i, j]] for i, j in ((0, 1), (1, 2), (2, 0))]
        )

    def clashes(order: Any) -> int:
        return int((order[pairs[:, 0]] == order[pairs[:, 1]]).sum())

    return min((rng.permutation(classes) for _ in range(80)), key=clashes)


def _mixtures(regions: Sequence[Region], *, rng: Rng) -> list[Mixture]:
    """Return one mixture per region, such that each class has them evenly spread."""
    mixtures: dict[int, Mixture] = {}
    for name in CLASS_NAMES:
        own = [i for i, region in enumerate(regions) if region.class_name == name]
        mixtures.update(zip(own, Mixture.draw(len(own), rng), strict=True))
    return [mixtures[i] for i in range(len(regions))]


# ---- tissue


def _fibres(size_um: tuple[float, float], *, rng: Rng) -> Field:
    """Return the phase of collagen: a plane along one drift, bent by wide waves."""
    drift = rng.uniform(0, np.pi)
    bends = noise(rng, size_um, grain_um=190.0).times(90.0)
    return bends.plus_plane((np.cos(drift), np.sin(drift)))


class _Canvas:
    """The maps of the whole slide at 1 µm per pixel."""

    def __init__(self, size_um: tuple[float, float]) -> None:
        shape = int(np.ceil(size_um[1])), int(np.ceil(size_um[0]))
        self.distance: Floats = np.full(shape, FAR_UM, np.float32)
        self.hollow: Floats = np.full(shape, SOLID, np.float32)

    def add(self, region: Region, mixture: Mixture, *, rng: Rng) -> Nuclei:
        """Build the tissue of ``region`` into the maps and return its nuclei."""
        height, width = self.hollow.shape
        x0, y0, x1, y1 = region.outline_um.buffer(1.5 * FAR_UM).bounds
        x0, y0 = max(int(x0), 0), max(int(y0), 0)
        x1, y1 = min(int(x1) + 1, width), min(int(y1) + 1, height)
        corner = shapely.transform(region.outline_um, lambda xy: xy - (x0, y0))
        plot = Plot.empty((x0, y0), _filled(corner, (y1 - y0, x1 - x0)), rng=rng)
        nuclei = build(plot, region.class_name, mixture=mixture)
        window = np.s_[y0:y1, x0:x1]
        self.distance[window] = np.minimum(self.distance[window], plot.distance)
        self.hollow[window] = np.minimum(self.hollow[window], plot.hollow)
        return nuclei

    def follow_fibres(self, nuclei: Nuclei, fibres: Field, *, rng: Rng) -> Nuclei:
        """Turn spindle nuclei far from epithelium along the fibres, drop any within."""
        distance = self.distance[pixels_at(nuclei.xy_um)]
        spindle = nuclei.class_index == STROMA
        loose = spindle & (distance > 20)
        at = nuclei.xy_um[loose]
        rise_x, rise_y = (
            fibres.at_points(at + step) - fibres.at_points(at) for step in np.eye(2)
        )
        angle = nuclei.angle_rad.copy()
        angle[loose] = np.arctan2(rise_x, -rise_y) + rng.normal(0, 0.2, len(at))
        turned = Nuclei(nuclei.xy_um, angle, nuclei.semi_axes_um, nuclei.class_index)
        return turned.where(~(spindle & (distance < 1.5)))


def _filled(outline: shapely.Polygon, shape: tuple[int, int]) -> Bools:
    """Return the pixels bool (H, W) within ``outline``, given in pixels at edges."""
    image = Image.new("1", shape[::-1])
    corners = [(x - 0.5, y - 0.5) for x, y in outline.exterior.coords]
    ImageDraw.Draw(image).polygon(corners, fill=1)
    return np.array(image)


def _foldable(regions: Sequence[Region], size_um: tuple[float, float]) -> Bools | None:
    """Return the largest region of stroma on the traps' knots, if there is one."""
    stroma = [r.outline_um for r in regions if r.class_name == "Stroma"]
    if not stroma:
        return None
    largest = max(stroma, key=lambda outline: outline.area)
    x, y = lattice(size_um, KNOT_UM)
    knots = shapely.transform(largest, lambda xy: xy / KNOT_UM)
    return _filled(knots, (len(y), len(x)))


def _septa_nuclei(
    regions: Sequence[Region], inside: Field, *, size_um: tuple[float, float], rng: Rng
) -> Nuclei:
    """Return the spindle nuclei of the stroma between the regions."""
    count = rng.poisson(SPINDLE_DENSITY * size_um[0] * size_um[1])
    xy = rng.uniform(0, 1, (count, 2)) * size_um
    xy = xy[inside.at_points(xy) > 5]
    taken = shapely.union_all([region.outline_um.buffer(2) for region in regions])
    shapely.prepare(taken)
    xy = xy[~shapely.contains_xy(taken, *xy.T)]
    axes = spindle_axes(rng, len(xy))
    return Nuclei(xy, np.zeros(len(xy)), axes, np.full(len(xy), STROMA))
