"""Bags as training examples: parts of slides, anchors and masks for a step.

Which tiles of a large bag take part, which anchors are dropped and which tiles are
hidden depend on the run's seed, the epoch and the number of the bag, and on nothing
else, as for crops (:mod:`histomae.learn.augment`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from histomae.learn.augment import Stream, uniforms
from histomae.models.anchors import even_order
from histomae.models.bag_tensors import BagTensors, Places, batch_bags, place_bag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from histomae.data.bags import Bag
    from histomae.models.bag_tensors import Placing

Indices = np.ndarray[Any, np.dtype[np.int64]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Bags:
    """Some bags, and the device on which their tensors will be wanted."""

    bags: tuple[Bag, ...]
    device: torch.device | str = "cpu"

    def to(self, device: torch.device) -> Bags:
        """Return the same bags for another device."""
        return replace(self, device=device)


class BagSource(ABC):
    """Bags by number: a source of the loop."""

    @abstractmethod
    def bag(self, number: int) -> Bag:
        """Return a bag."""

    def stream(self, batches: Iterable[Indices]) -> Iterator[Bags | None]:
        """Yield the bags of each batch of numbers, in order; never late."""
        for batch in batches:
            yield Bags(tuple(self.bag(number) for number in batch.tolist()))

    def complaints(self, *, at_the_end: bool = False) -> list[str]:
        """Return nothing: a bag that cannot be read ends the training."""
        return []


class BagMemory(BagSource):
    """Bags that are all in memory."""

    def __init__(self, bags: Sequence[Bag]) -> None:
        self._bags = tuple(bags)

    def bag(self, number: int) -> Bag:
        """Return a bag."""
        return self._bags[number]


def thinned(cells: Indices, numbers: Doubles) -> Indices:
    """Choose tiles all over a slide, as many as there are random numbers.

    In an order in which neighbours follow each other the tiles are cut into as many
    runs of equal length, and one tile is taken of each. So tissue is thinned evenly,
    and keeps its outline, by which distances are told: cutting a window would change
    what a distance means, and taking the first tiles would show the top of each slide.

    Parameters
    ----------
    cells
        int64 (L, 2).
    numbers
        float64 (M,), uniform in [0, 1), M at most L.

    Returns
    -------
    int64 (M,), indices of tiles in rising order.
    """
    edges = np.arange(len(numbers) + 1) * len(cells) // len(numbers)
    taken = edges[:-1] + (numbers * np.diff(edges)).astype(np.int64)
    return np.sort(even_order(cells)[taken])


def part_of_bag(
    bag: Bag, most: int | None, *, seed: int, epoch: int, index: int
) -> Bag:
    """Return a bag of at most ``most`` tiles, evenly thinned; None: the whole bag."""
    if most is None or len(bag) <= most:
        return bag
    numbers = uniforms(
        seed, epoch, np.array([index]), stream=Stream.PART_OF_BAG, count=most
    )
    taken = thinned(bag.cells, numbers[0])
    return replace(bag, features=bag.features[taken], cells=bag.cells[taken])


def bag_tensors(
    bags: Bags,
    indices: Indices,
    *,
    seed: int,
    epoch: int,
    most: int | None,
    placing: Placing,
) -> BagTensors:
    """Place a part of each bag and pad them into a batch, on their device.

    Parameters
    ----------
    indices
        int64 (B,), the numbers of the bags.
    most
        See :func:`part_of_bag`.
    """
    placed = []
    for bag, index in zip(bags.bags, indices.tolist(), strict=True):
        part = part_of_bag(bag, most, seed=seed, epoch=epoch, index=index)
        placed.append(place_bag(part.features, part.cells, placing))
    return batch_bags(placed).to(bags.device)


def bag_noise(
    real: Tensor, indices: Indices, *, seed: int, epoch: int, stream: Stream
) -> Tensor:
    """Return the noise of masks or of anchor dropout, float32 (B, L).

    A bag's numbers do not depend on the bags beside it: in its padding stand ones.

    Parameters
    ----------
    real
        bool (B, L), the rest is padding.
    indices
        int64 (B,), the numbers of the bags.
    """
    noise = torch.ones(real.shape, dtype=torch.float32)
    for row, index, count in zip(noise, indices, real.sum(1).tolist(), strict=True):
        one = uniforms(seed, epoch, np.array([index]), stream=stream, count=count)
        row[:count] = torch.from_numpy(one[0])
    return noise.to(real.device)


def as_inputs(bags: BagTensors) -> dict[str, Tensor]:
    """Return the tensors of a batch by name, as the loop hands them on."""
    return {"features": bags.features, **vars(bags.places)}


def from_inputs(inputs: dict[str, Tensor]) -> BagTensors:
    """Return the batch behind what :func:`as_inputs` returned, and perhaps more."""
    places = {name: inputs[name] for name in Places.__dataclass_fields__}
    return BagTensors(inputs["features"], Places(**places))
