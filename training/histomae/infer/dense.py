"""A decoder marks objects: on a picture, and on a part of a slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from histomae.data.marks import Marks
from histomae.errors import ConfigError
from histomae.infer.reconstruct import normalised
from histomae.slides.heatmap import Heatmap
from histomae.slides.slide import check_mpp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histomae.data.classes import ClassSet
    from histomae.models.dense import DenseModel
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: Tiles seen at once.
TOGETHER = 8
#: A hollow this deep between two summits parts two objects.
HOLLOW = 0.15
#: Smaller ones are specks, square pixels.
LEAST_PX = 12
#: Sides of a part of a slide, pixels: it is held in memory.
MOST_PX = 4096


@dataclass(frozen=True, eq=False)
class SlideMarks:
    """Objects on a part of a slide: n of them.

    ``classes`` (1 to K, 0 for none) and ``objects`` (1 to n) are rasters;
    ``centres_l0`` float (n, 2), level-0 (x, y); ``labels`` int (n,), 0 to K - 1.
    """

    classes: Heatmap
    objects: Heatmap
    centres_l0: Array
    labels: Array
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]


class DenseReader:
    """A trained decoder and its encoder, ready to mark pictures.

    Parameters
    ----------
    mean, std
        Of each channel, on pixels from 0 to 1.
    """

    def __init__(
        self,
        model: DenseModel,
        mean: Sequence[float],
        std: Sequence[float],
        classes: ClassSet,
    ) -> None:
        self.model, self.classes = model, classes
        self._mean, self._std = tuple(mean), tuple(std)

    @property
    def tile_px(self) -> int:
        """Side of the tiles that it sees."""
        return self.model.tile_px

    @torch.inference_mode()
    def look(self, pixels: Pixels) -> tuple[Array, Array]:
        """Return class probabilities (H, W, K + 1) and depths (H, W), float32.

        Tiles overlap by half, and count the less the farther from their middle.
        """
        side = self.tile_px
        high, wide = pixels.shape[:2]
        pads = [(0, max(0, side - high)), (0, max(0, side - wide)), (0, 0)]
        padded = np.pad(pixels, pads, mode="edge")
        weight = _window(side)
        kinds = self.model.num_classes + 2
        total = np.zeros((*padded.shape[:2], kinds), np.float32)
        sums = np.zeros(padded.shape[:2], np.float32)
        corners = tile_corners(padded.shape[:2], side, side // 2)
        self.model.eval()
        device = next(self.model.parameters()).device
        for start in range(0, len(corners), TOGETHER):
            part = corners[start : start + TOGETHER]
            tiles = np.stack([padded[t : t + side, x : x + side] for t, x in part])
            said = self.model(normalised(tiles, self._mean, self._std, device))
            both = torch.cat([said.logits.softmax(1), said.depth[:, None]], 1)
            for (top, left), one in zip(part, both.movedim(1, -1).cpu(), strict=True):
                total[top : top + side, left : left + side] += one.numpy() * weight
                sums[top : top + side, left : left + side] += weight[..., 0]
        found = (total / sums[..., None])[:high, :wide]
        return found[..., :-1], found[..., -1].clip(0, 1)

    def mark(self, pixels: Pixels) -> Marks:
        """Return the objects on a picture, uint8 (H, W, 3)."""
        return objects_in(*self.look(pixels))

    def mark_slide(
        self, slide: Slide, box_l0: tuple[float, float, float, float], mpp: float
    ) -> SlideMarks:
        """Mark a part (x0, y0, x1, y1) of a slide, read at ``mpp``.

        Raises
        ------
        ConfigError
            If the part is larger than ``MOST_PX``, or empty.
        UpsamplingError, MissingMppError
            If the slide is too coarse, or its pixel size unknown.
        SlideError
            If it cannot be read.
        """
        check_mpp(slide, mpp)
        x0, y0, x1, y1 = box_l0
        size_l0 = mpp / slide.mpp[0], mpp / slide.mpp[1]
        wide, high = round((x1 - x0) / size_l0[0]), round((y1 - y0) / size_l0[1])
        if not (0 < wide <= MOST_PX and 0 < high <= MOST_PX):
            raise ConfigError(
                "box", f"{wide} x {high} px is no size. Choose from 1 to {MOST_PX}."
            )
        found = self.mark(slide.read_region((x0, y0), (wide, high), mpp))
        return SlideMarks(
            Heatmap(found.classes.astype(np.uint8), (x0, y0), size_l0),
            Heatmap(found.objects, (x0, y0), size_l0),
            found.centres * np.array(size_l0) + (x0, y0),
            found.labels,
            self.classes.names,
            self.classes.colors,
        )


def objects_in(probabilities: Array, depth: Array) -> Marks:
    """Part what is no background into objects, at the hollows between their summits.

    Parameters
    ----------
    probabilities
        float (H, W, K + 1), the first of no class.
    depth
        float (H, W), 0 to 1: see :meth:`histomae.data.marks.Marks.depth`.

    Returns
    -------
    Marks
        Each object with the class that most of it is taken for.
    """
    inside = probabilities.argmax(-1) > 0
    smooth = np.where(inside, ndimage.gaussian_filter(depth, 1.0), 0.0)
    summits, _ = ndimage.label(h_maxima(smooth, HOLLOW), np.ones((3, 3)))
    parts, _ = ndimage.label(inside)
    # A part without a summit of its own is an object too.
    bare = np.setdiff1d(parts[inside], parts[(summits > 0) & inside])
    seeds = np.where(inside, summits, 0)
    seeds = np.where(np.isin(parts, bare) & inside, seeds.max() + parts, seeds)
    objects = watershed(-smooth, seeds, mask=inside)
    kept = np.flatnonzero(np.bincount(objects.ravel())[1:] >= LEAST_PX) + 1
    relabel = np.zeros(int(objects.max(initial=0)) + 1, np.int32)
    relabel[kept] = np.arange(1, len(kept) + 1)
    objects = relabel[objects]
    index = np.arange(1, len(kept) + 1)
    weights = [
        ndimage.sum_labels(probabilities[..., kind], objects, index)
        for kind in range(1, probabilities.shape[-1])
    ]
    labels = np.argmax(weights, 0) if len(kept) else np.zeros(0)
    return Marks(objects, labels.astype(np.int64))


def tile_corners(
    shape: tuple[int, ...], side: int, stride: int
) -> list[tuple[int, int]]:
    """Return (top, left) of tiles that cover a picture of at least one tile's size.

    They are ``stride`` apart, the last one shifted so as not to stick out.
    """
    ends = [length - side for length in shape[:2]]
    starts = [[*range(0, end, stride), end] for end in ends]
    return [(top, left) for top in starts[0] for left in starts[1]]


def _window(side: int) -> Array:
    """Return how much a tile's pixels count, float32 (side, side, 1), above 0."""
    ramp = 1 - np.abs(np.linspace(-1, 1, side)) + 1e-2
    window: Array = np.outer(ramp, ramp)[..., None].astype(np.float32)
    return window
