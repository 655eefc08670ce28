"""Bags of tiles as tensors: places told from anchors, padded into a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from histomae.models.anchors import (
    DIRECTION_BINS,
    DISTANCE_BINS,
    choose_anchors,
    direction_bins,
    distance_bins,
)
from histomae.models.patches import gather_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
#: Bins of the class token, which has no place; one beyond the last bin of tiles.
CLASS_DISTANCE = DISTANCE_BINS + 1
CLASS_DIRECTION = DIRECTION_BINS + 1
#: The direction in which an anchor lies from itself.
NO_DIRECTION = DIRECTION_BINS


@dataclass(frozen=True, eq=False)
class PlacedBag:
    """The tiles of one bag as its anchors see them, in numpy."""

    features: Array
    """float32 (L, C): the tiles' embeddings."""
    anchors: Array
    """int64 (K,): indices of the tiles that are anchors."""
    distances: Array
    """uint8 (K, L), see :func:`histomae.models.anchors.distance_bins`."""
    directions: Array
    """uint8 (K, L), see :func:`histomae.models.anchors.direction_bins`."""


@dataclass(frozen=True)
class Placing:
    """How places are told."""

    tiles_per_anchor: int = 144
    """See :func:`histomae.models.anchors.choose_anchors`."""
    compat: bool = False
    """Directions as published."""


def place_bag(features: Array, cells: Array, placing: Placing) -> PlacedBag:
    """Choose a bag's anchors and tell its places.

    Parameters
    ----------
    features
        float32 (L, C), finite.
    cells
        int64 (L, 2), (row, column) of each tile, no two alike.
    """
    anchors = choose_anchors(cells, placing.tiles_per_anchor)
    return PlacedBag(
        features,
        anchors,
        distance_bins(cells, anchors),
        direction_bins(cells, anchors, compat=placing.compat),
    )


@dataclass(frozen=True, eq=False)
class Places:
    """How tokens lie as seen from anchors, a padded batch.

    What stands in padding never matters, unless the model is asked for the published
    equations.
    """

    distances: Tensor
    """int64 (B, K, L)."""
    directions: Tensor
    """int64 (B, K, L)."""
    real_tokens: Tensor
    """bool (B, L): the rest is padding."""
    real_anchors: Tensor
    """bool (B, K)."""

    def of_tokens(self, ids: Tensor, real: Tensor) -> Places:
        """Return the places of the tokens ``ids`` (B, L') alone, those ``real``."""
        columns = ids[:, None, :].expand(-1, self.distances.shape[1], -1)
        return replace(
            self,
            distances=self.distances.gather(2, columns),
            directions=self.directions.gather(2, columns),
            real_tokens=self.real_tokens.gather(1, ids) & real,
        )

    def of_anchors(self, ids: Tensor, real: Tensor) -> Places:
        """Return the places as the anchors ``ids`` (B, K') see them, those ``real``."""
        return replace(
            self,
            distances=gather_tokens(self.distances, ids),
            directions=gather_tokens(self.directions, ids),
            real_anchors=self.real_anchors.gather(1, ids) & real,
        )


@dataclass(frozen=True, eq=False)
class BagTensors:
    """A batch of bags, padded to the longest."""

    features: Tensor
    """float (B, L, C)."""
    places: Places

    def cleared(self) -> Tensor:
        """Return the features with zeros in the padding, whatever stood there."""
        return self.features.masked_fill(~self.places.real_tokens[..., None], 0.0)

    def to(self, device: torch.device | str) -> BagTensors:
        """Return the batch on another device."""
        places = {
            k: v.to(device, non_blocking=True) for k, v in vars(self.places).items()
        }
        features = self.features.to(device, non_blocking=True)
        return BagTensors(features, Places(**places))


def batch_bags(bags: Sequence[PlacedBag]) -> BagTensors:
    """Pad bags with zeros to the longest of them."""
    tiles = max(len(bag.features) for bag in bags)
    anchors = max(len(bag.anchors) for bag in bags)
    real = [np.ones(len(bag.features), bool) for bag in bags]
    width = bags[0].features.shape[1]
    return BagTensors(
        _padded([bag.features for bag in bags], (tiles, width)),
        Places(
            distances=_padded([b.distances for b in bags], (anchors, tiles)).long(),
            directions=_padded([b.directions for b in bags], (anchors, tiles)).long(),
            real_tokens=_padded(real, (tiles,)),
            real_anchors=_padded(
                [np.ones(len(bag.anchors), bool) for bag in bags], (anchors,)
            ),
        ),
    )


def _padded(arrays: Sequence[Array], shape: tuple[int, ...]) -> Tensor:
    """Stack arrays, each in the first corner of ``shape``."""
    stacked = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[tuple(slice(side) for side in array.shape)] = array
    return torch.from_numpy(stacked)
