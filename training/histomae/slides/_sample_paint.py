"""Light through the synthetic sample slide: stain densities and what a camera sees.

Beer and Lambert: each stain takes its share of red, green and blue light away, in
proportion to how much of it lies in the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from histomae.slides._sample_fields import Field, Floats, noise, smoothstep
from histomae.slides._sample_tissue import FAT_UM, HOLLOW_EDGE, STROMA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.random import Generator as Rng

    from histomae.slides._sample_anatomy import Anatomy

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: Natural absorbance (red, green, blue) of haematoxylin, eosin, and the traps.
HAEMATOXYLIN, EOSIN = (1.22, 1.42, 0.66), (0.10, 0.98, 0.46)
PEN, SMEAR, DIRT = (2.1, 0.55, 1.35), (0.044, 0.224, 0.105), (1.3, 1.5, 1.8)
#: Glass with the lamp on.
LAMP = (244.0, 243.0, 241.0)
#: Rows painted at a time.
STRIP_PX = 256
#: Side of the tables of fine texture, which repeat without a seam.
TABLE = 512
#: Pitch of the tables of cytoplasm and of chromatin, µm.
CYTOPLASM_UM, CHROMATIN_UM = 0.5, 0.25
#: A nucleus fits within this far of its centre, µm; density 1 is this value of a byte.
REACH_UM, FULL = 9.0, 160.0
#: Nuclei stamped at a time.
BATCH = 500


def paint(anatomy: Anatomy, mpp: float, *, rng: Rng) -> Pixels:
    """Return the slide as the camera sees it, uint8 (H, W, 3) at ``mpp`` µm/px."""
    width, height = (round(side / mpp) for side in anatomy.size_um)
    look = _Look(anatomy, rng)
    nuclei = look.stamp_nuclei((height, width), mpp)
    image = np.empty((height, width, 3), np.uint8)
    x = (np.arange(width) + 0.5) * mpp
    for top in range(0, height, STRIP_PX):
        strip = slice(top, min(top + STRIP_PX, height))
        y = (np.arange(strip.start, strip.stop) + 0.5) * mpp
        image[strip] = look.strip(x, y, nuclei[strip])
    return image


def paint_windows(
    anatomy: Anatomy,
    windows: Sequence[tuple[tuple[float, float], float]],
    size_px: tuple[int, int],
    *,
    rng: Rng,
) -> Iterator[Pixels]:
    """Yield pictures of places, uint8 (H, W, 3), all stained and lit alike.

    Parameters
    ----------
    windows
        Of each its corner (x, y), µm, and its µm/px.
    size_px
        (W, H).
    """
    look = _Look(anatomy, rng)
    width, height = size_px
    for (left, top), mpp in windows:
        nuclei = look.stamp_nuclei((height, width), mpp, corner_um=(left, top))
        x = left + (np.arange(width) + 0.5) * mpp
        y = top + (np.arange(height) + 0.5) * mpp
        yield look.strip(x, y, nuclei)


class _Look:
    """Everything about one slide's looks that is not its anatomy."""

    def __init__(self, anatomy: Anatomy, rng: Rng) -> None:
        self.anatomy = anatomy
        self._strength = rng.normal(1.0, 0.03, 2).astype(np.float32)
        # Thickness and staining vary over the slide as they do on any.
        self._uneven = [self._noise(rng, 330.0) for _ in ("blue", "pink")]
        self._waver, self._bundles = self._noise(rng, 26.0), self._noise(rng, 38.0)
        self._ragged, self._lamp = self._noise(rng, 9.0), self._noise(rng, 900.0)
        self._cytoplasm = _table(rng, 0.95)
        self._chromatin = _table(rng, 2.7)
        self._sensor = rng.normal(0, 1.8, (TABLE, TABLE, 3)).astype(np.float32)
        self._collagen = _strands(rng, {2.6: 0.8, 7.0: 0.65, 20.0: 0.45})
        self._coarse = _strands(rng, {11.0: 0.6, 24.0: 0.8})
        self._fibrils = _strands(rng, {2.6: 0.8, 5.0: 0.65})
        nuclei = anatomy.nuclei
        focus = self._noise(rng, 240.0).at_points(nuclei.xy_um)
        self._blur_um = 0.55 * np.exp(0.3 * focus)
        self._darkness = rng.lognormal(0.0, 0.13, len(nuclei.xy_um))
        self._shift = rng.uniform(0, TABLE * CHROMATIN_UM, (len(nuclei.xy_um), 2))

    def _noise(self, rng: Rng, grain_um: float) -> Field:
        return noise(rng, self.anatomy.size_um, grain_um=grain_um)

    def strip(self, x: Floats, y: Floats, nuclei: Pixels) -> Pixels:
        """Return the colours (len(y), len(x), 3) at ``x`` and ``y``, µm."""
        blue, pink = self._stains(x, y, nuclei)
        traps = self.anatomy.traps
        ink, smear, dirt = (f.at(x, y) for f in (traps.ink, traps.smear, traps.dirt))
        lamp = 1 + 0.006 * self._lamp.at(x, y)
        grain = self._sensor[np.arange(len(y)) % TABLE][:, np.arange(len(x)) % TABLE]
        colours = np.empty((len(y), len(x), 3), np.uint8)
        for k in range(3):
            density = blue * HAEMATOXYLIN[k] + pink * EOSIN[k]
            density += ink * PEN[k] + smear * SMEAR[k] + dirt * DIRT[k]
            light = np.exp(-density) * (LAMP[k] * lamp)
            colours[..., k] = (light + grain[..., k] + 0.5).clip(0, 255)
        return colours

    def _stains(self, x: Floats, y: Floats, nuclei: Pixels) -> tuple[Floats, Floats]:
        """Return the densities of haematoxylin and eosin."""
        at = self.anatomy
        distance, inside = at.distance.at(x, y), at.inside.at(x, y)
        white = 1 - smoothstep(at.hollow.at(x, y), *HOLLOW_EDGE)
        ragged = self._ragged.at(x, y)
        present = smoothstep(inside + 2.5 * ragged, 0.0, 3.0)
        present *= 1 - white
        cell = smoothstep(-distance, -0.4, 0.4)
        fine = _tiled(self._cytoplasm, x, y)
        body = nuclei.astype(np.float32) / FULL
        # No nucleus hangs into a lumen; those of fat cells bulge.
        body *= 1 - smoothstep(white, 0.0, 0.12) * (distance < 0.5 * FAT_UM)
        pink = cell * (0.40 + 0.055 * fine + 0.03 * ragged)
        collagen = (1 - cell) * self._stroma(
            x, y, distance=distance, inside=inside, fine=fine
        )
        pink += collagen
        pink *= present * (1 - 0.35 * body.clip(0, 1))
        blue = cell * (0.135 + 0.03 * fine + 0.02 * ragged) + 0.075 * collagen
        blue = blue * present + body
        double = 1 + at.traps.fold.at(x, y)
        thick = [
            double * strength * (1 + 0.08 * field.at(x, y))
            for strength, field in zip(self._strength, self._uneven, strict=True)
        ]
        return blue * thick[0], pink * thick[1]

    def _stroma(
        self, x: Floats, y: Floats, *, distance: Floats, inside: Floats, fine: Floats
    ) -> Floats:
        """Return the eosin of collagen: wavy, and wrapped around what lies in it."""
        waver, bundles = self._waver.at(x, y), self._bundles.at(x, y)
        fibres = self.anatomy.fibres.at(x, y)
        phase = fibres + 5.0 * waver
        free = _look_up(self._collagen, phase)
        # Two strands take turns, so that no fibre runs on for ever.
        turns = smoothstep(bundles, -0.5, 0.5)
        free += turns * (_look_up(self._collagen, phase + 700) - free)
        # The drift keeps any one shade from always lying at one distance from a gland.
        around = 0.9 * distance + 0.25 * fibres + 2.5 * waver
        near = np.exp(-((distance.clip(0) / 16.0) ** 2))
        strands = free + near * (_look_up(self._fibrils, around) - free)
        eosin = 0.45 + 0.19 * np.tanh(0.6 * strands) + 0.03 * bundles + 0.022 * fine
        # Away from glands collagen lies in coarse bundles with clefts between them.
        coarse = _look_up(self._coarse, fibres + 9.0 * waver + 12.0 * bundles)
        cleft = smoothstep(coarse + 0.4 * bundles, 1.1, 1.6)
        far = smoothstep(distance, 24.0, 56.0) * smoothstep(inside, 10.0, 50.0)
        return eosin * (1 - far * (0.3 * coarse.clip(-2, 1) + 0.8 * cleft)).clip(0.06)

    def stamp_nuclei(
        self,
        shape: tuple[int, int],
        mpp: float,
        *,
        corner_um: tuple[float, float] = (0.0, 0.0),
    ) -> Pixels:
        """Return the haematoxylin of nuclei, uint8 (H, W), ``FULL`` = density 1."""
        nuclei = self.anatomy.nuclei
        xy = nuclei.xy_um - np.array(corner_um)
        reach = int(np.ceil(REACH_UM / mpp))
        side = np.arange(2 * reach + 1)
        padded = shape[0] + 4 * reach + 2, shape[1] + 4 * reach + 2
        canvas = np.zeros(padded, np.uint8)
        corner = np.floor(xy / mpp).astype(int) - reach
        last = np.array(shape[::-1])
        seen = np.flatnonzero(((corner >= -2 * reach) & (corner <= last)).all(1))
        for start in range(0, len(seen), BATCH):
            batch = seen[start : start + BATCH]
            lattice = (corner[batch][:, None] + side[:, None] + 0.5) * mpp
            stamps = self._nuclei(batch, lattice - xy[batch][:, None])
            for (column, row), stamp in zip(
                corner[batch] + 2 * reach, stamps, strict=True
            ):
                window = canvas[row : row + len(side), column : column + len(side)]
                np.maximum(window, stamp, out=window)
        begin = 2 * reach
        return canvas[begin : begin + shape[0], begin : begin + shape[1]]

    def _nuclei(self, batch: Any, offset_um: Floats) -> Pixels:
        """Return stamps uint8 (n, h, w) of nuclei at offsets (n, h, 2) of (x, y)."""
        nuclei = self.anatomy.nuclei.where(batch)
        dx = offset_um[:, None, :, 0].astype(np.float32)
        dy = offset_um[:, :, None, 1].astype(np.float32)
        cos, sin = _column(np.cos(nuclei.angle_rad)), _column(np.sin(nuclei.angle_rad))
        long, short = (_column(axis) for axis in nuclei.semi_axes_um.T)
        u, v = (dx * cos + dy * sin) / long, (dy * cos - dx * sin) / short
        shift = self._shift[batch]
        dents = np.sin(3.0 * u + _column(shift[:, 0])) + np.sin(
            2.5 * v + _column(shift[:, 1])
        )
        radius = np.hypot(u, v) * (1 + 0.05 * dents)
        depth = (1 - radius) * short
        body = smoothstep(depth / _column(self._blur_um[batch]), -1.0, 0.8)
        membrane = np.exp(-((((0.88 - radius) * short) / 0.5) ** 2))
        i = ((dy + _column(shift[:, 1])) / CHROMATIN_UM).astype(int) % TABLE
        j = ((dx + _column(shift[:, 0])) / CHROMATIN_UM).astype(int) % TABLE
        density = 0.70 + 0.12 * self._chromatin[i, j] + 0.20 * membrane
        density += _column(0.06 * (nuclei.class_index >= STROMA))
        density *= _column(self._darkness[batch])
        return (density * body * FULL).clip(0, 255).astype(np.uint8)


def _column(values: Any) -> Floats:
    """Return ``values`` (n) as float32 (n, 1, 1)."""
    return np.asarray(values, np.float32)[:, None, None]


def _table(rng: Rng, grain: float) -> Floats:
    """Return unit noise (TABLE, TABLE) that repeats without a seam; grain in knots."""
    white = rng.standard_normal((TABLE, TABLE), dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, grain, mode="wrap")
    table: Floats = (smooth / smooth.std()).astype(np.float32)
    return table


def _tiled(table: Floats, x: Floats, y: Floats) -> Floats:
    """Return ``table`` where ``x`` and ``y``, µm, cross, linear between knots."""
    rows = _between(table, y / CYTOPLASM_UM)
    return np.ascontiguousarray(
        _between(np.ascontiguousarray(rows.T), x / CYTOPLASM_UM).T
    )


def _between(table: Floats, place: Floats) -> Floats:
    """Return rows of ``table`` at ``place``, where knot k is at k + 0.5."""
    first = np.floor(place - 0.5).astype(int)
    t = (place - 0.5 - first).astype(np.float32)[:, None]
    return table[first % TABLE] * (1 - t) + table[(first + 1) % TABLE] * t


def _strands(rng: Rng, layers: dict[float, float]) -> Floats:
    """Return unit noise along a line, per 0.25 µm; ``layers`` are grain: weight."""
    line = np.zeros(8192, np.float32)
    for grain, weight in layers.items():
        layer = rng.standard_normal(len(line), dtype=np.float32)
        layer = ndimage.gaussian_filter1d(layer, grain, mode="wrap")
        line += weight * layer / layer.std()
    table: Floats = (line / line.std()).astype(np.float32)
    return table


def _look_up(line: Floats, place_um: Floats) -> Floats:
    """Return ``line`` at ``place_um``, repeated without end."""
    return line[(place_um * 4).astype(np.int32) % len(line)]
