"""A decoder marks objects or areas on pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from histomae.data.classes import ClassSet
from histomae.data.marks import Marks
from histomae.events import Heartbeat, result_of
from histomae.infer.encoder import pick_device
from histomae.infer.reconstruct import normalised
from histomae.models.segmenter import model_from

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from histomae.events import Event
    from histomae.models.dense import DenseModel
    from histomae.models.segmenter import Segmenter

Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: Tiles seen at once.
TOGETHER = 8
#: A hollow this deep between two summits parts two objects.
HOLLOW = 0.15
#: Smaller ones are specks, square pixels.
LEAST_PX = 12


class DenseReader:
    """A trained decoder and its encoder, ready to mark pictures.

    Parameters
    ----------
    mean, std
        Of each channel, on pixels from 0 to 1.
    areas
        Whether it tells areas apart (see :func:`areas_in`), not objects.
    """

    def __init__(
        self,
        model: DenseModel,
        mean: Sequence[float],
        std: Sequence[float],
        classes: ClassSet,
        *,
        areas: bool = False,
    ) -> None:
        self.model, self.classes, self.areas = model, classes, areas
        self._mean, self._std = tuple(mean), tuple(std)

    @classmethod
    def of(cls, segmenter: Segmenter, *, device: str = "auto") -> DenseReader:
        """Make a segmenter ready.

        Raises
        ------
        ConfigError
            If the device is not there.
        """
        header = segmenter.header
        return cls(
            model_from(segmenter).to(pick_device(device)),
            header.encoder.mean,
            header.encoder.std,
            ClassSet(header.class_names, header.class_colors),
            areas=header.areas,
        )

    @property
    def tile_px(self) -> int:
        """Side of the tiles that it sees."""
        return self.model.tile_px

    @torch.inference_mode()
    def say(self, tiles: Pixels) -> tuple[Array, Array]:
        """Return class probabilities and depths of tiles, float32.

        (N, H, W, K + 1) and (N, H, W), of uint8 (N, H, W, 3), H = W = ``tile_px``.
        """
        self.model.eval()
        device = next(self.model.parameters()).device
        said = self.model(normalised(tiles, self._mean, self._std, device))
        odds = said.logits.softmax(1).movedim(1, -1)
        return odds.cpu().numpy(), said.depth.cpu().numpy()

    def look(self, pixels: Pixels) -> Generator[Event, None, tuple[Array, Array]]:
        """Return class probabilities (H, W, K + 1) and depths (H, W), float32.

        Tiles overlap by half, and count the less the farther from their middle. Yields
        a heartbeat after each batch of them.
        """
        side = self.tile_px
        high, wide = pixels.shape[:2]
        pads = [(0, max(0, side - high)), (0, max(0, side - wide)), (0, 0)]
        padded = np.pad(pixels, pads, mode="edge")
        weight = _window(side)
        total = np.zeros((*padded.shape[:2], self.model.num_classes + 2), np.float32)
        sums = np.zeros((*padded.shape[:2], 1), np.float32)
        corners = tile_corners(padded.shape[:2], side, side // 2)
        for start in range(0, len(corners), TOGETHER):
            part = corners[start : start + TOGETHER]
            at = [(slice(t, t + side), slice(x, x + side)) for t, x in part]
            odds, depth = self.say(np.stack([padded[one] for one in at]))
            both = np.concatenate([odds, depth[..., None]], -1)
            for one, values in zip(at, both, strict=True):
                total[one] += values * weight
                sums[one] += weight
            yield Heartbeat()
        found = (total / sums)[:high, :wide]
        return found[..., :-1], found[..., -1].clip(0, 1)

    def marks_in(self, probabilities: Array, depth: Array) -> Marks:
        """Return the areas, or the objects, of what :meth:`look` returned."""
        if self.areas:
            return areas_in(probabilities)
        return objects_in(probabilities, depth)

    def mark(self, pixels: Pixels) -> Marks:
        """Return the objects, or areas, on a picture, uint8 (H, W, 3)."""
        return self.marks_in(*result_of(self.look(pixels)))


def tiles_in(shape: tuple[int, int], tile_px: int) -> int:
    """Return how many tiles :meth:`DenseReader.look` sees of a picture."""
    padded = tuple(max(side, tile_px) for side in shape)
    return len(tile_corners(padded, tile_px, tile_px // 2))


def areas_in(probabilities: Array) -> Marks:
    """Give each pixel its likeliest class; what of one class hangs together is an area.

    Parameters
    ----------
    probabilities
        float (H, W, K + 1), the first of no class.
    """
    classes = probabilities.argmax(-1)
    objects, labels = np.zeros(classes.shape, np.int32), list[int]()
    for kind in range(1, probabilities.shape[-1]):
        parts, count = ndimage.label(classes == kind)
        objects[parts > 0] = parts[parts > 0] + len(labels)
        labels += [kind - 1] * count
    return Marks(objects, np.array(labels, np.int64))


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
