"""What PAMA makes of one slide, tile by tile: anchors, directions, attention, error.

All of it is numbers on the tile grid; whoever draws them turns them into layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.data.bags import check_alike
from histomae.errors import ConfigError, FeatureError, NotEnoughDataError
from histomae.events import Progress
from histomae.exchange.bags import bag_of
from histomae.infer.encoder import pick_device
from histomae.infer.reconstruct import covering_masks
from histomae.models.anchors import direction_angles
from histomae.models.bag_tensors import batch_bags, place_bag
from histomae.models.slide_checkpoint import (
    load_slide_checkpoint,
    pama_from,
    slide_encoder_from,
)
from histomae.slides.heatmap import Heatmap

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Sequence

    from histomae.events import Event
    from histomae.exchange.features import SlideFeatures
    from histomae.models.bag_tensors import BagTensors
    from histomae.models.feature_spec import FeatureSpec
    from histomae.models.pama import Looks, Pama, PamaEncoder
    from histomae.models.slide_checkpoint import SlideHeader
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]

#: How often each tile is hidden at least, among others each time.
ROUNDS = 4
LOOKING, PREDICTING = "looking at the slide", "predicting hidden tiles"


@dataclass(frozen=True, eq=False)
class SlideModel:
    """A PAMA, ready to look at slides.

    ``pama`` is None where the checkpoint came without its decoder.
    """

    header: SlideHeader
    encoder: PamaEncoder
    pama: Pama | None
    device: torch.device

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> SlideModel:
        """Read a checkpoint of PAMA.

        Raises
        ------
        CheckpointError
            If it holds none, or is damaged.
        ConfigError
            If there is no such device.
        """
        kept, chosen = load_slide_checkpoint(Path(path)), pick_device(device)
        if not kept.header.has_decoder:
            return cls(kept.header, slide_encoder_from(kept).to(chosen), None, chosen)
        pama = pama_from(kept).to(chosen)
        return cls(kept.header, pama.encoder, pama, chosen)

    def check_spec(self, spec: FeatureSpec) -> None:
        """Refuse tiles other than it was trained on, before any is embedded.

        Raises
        ------
        FeatureError
            Naming both.
        """
        if difference := spec.difference(self.header.features):
            raise FeatureError(
                f"The model was trained on other tiles than this encoder makes: "
                f"{difference}. Choose the encoder it was trained on, "
                f"{self.header.features.encoder}, or a file of its features."
            )


@dataclass(frozen=True)
class TileWords:
    """What can be said of one tile of a slide.

    ``nearest`` is the number of the anchor nearest to it, ``apart_um`` how far that is,
    µm; ``gathered_by`` the anchor that takes most of it. ``weights`` are anchors and
    what the tile takes from each, the most first. ``attention`` is the slide's, 1 where
    it is that of a tile that stands out in nothing. ``error`` is 1 where nothing was
    learned of the tile, ``error_rank`` the share of tiles with a smaller one. Anchors
    are counted from 1.
    """

    cell: tuple[int, int]
    nearest: int
    apart_um: float
    gathered_by: int
    is_anchor: bool
    weights: tuple[tuple[int, float], ...]
    attention: float | None
    error: float | None
    error_rank: float | None


@dataclass(frozen=True, eq=False)
class SlideView:
    """What PAMA makes of the L tiles of a slide, or of a region of it.

    There are K anchors, which are tiles, and h heads.
    """

    grid: TileGrid
    cells: Array
    """int64 (L, 2): (row, column) of each tile."""
    anchors: Array
    """int64 (K,): indices of the tiles that are anchors."""
    nearest: Array
    """int64 (L,), 0 to K - 1: the anchor nearest to each tile, by place alone."""
    gathers: Array
    """float32 (K, L): of what an anchor takes from tiles, the share of each; sums to 1.
    Mean of the heads."""
    looks: Array
    """float32 (L, K): what a tile takes from each anchor; sums to 1. Mean of the
    heads."""
    angles: Array
    """float64 (h, K): the main direction of each head at each anchor, radians from down
    to right on the slide."""
    attention: Array | None
    """float32 (L,): what reaches the class token from each tile; sums to 1. None for a
    model of one block, whose class token looks at anchors that know no tile."""
    error: Array | None
    """float32 (L,): how badly each tile is predicted while it is hidden, 1 where
    nothing was learned of it. None where the model came without its decoder."""

    @property
    def gathered_by(self) -> Array:
        """Which anchor takes most of each tile, int64 (L,), 0 to K - 1."""
        return self.gathers.argmax(0)

    def area_map(self) -> Heatmap:
        """Return the anchor nearest to each tile, uint16, counted from 1."""
        return self._map((self.nearest + 1).astype(np.uint16))

    def gathered_map(self) -> Heatmap:
        """Return the anchor that takes most of each tile, uint16, counted from 1."""
        return self._map((self.gathered_by + 1).astype(np.uint16))

    def one_anchor_map(self, anchor: int) -> Heatmap:
        """Return what an anchor (from 0) takes of each tile, float32: 1 is even."""
        return self._map(self.gathers[anchor] * len(self.cells))

    def attention_map(self) -> Heatmap:
        """Return the slide's attention, float32: 1 where a tile stands out in nothing.

        Raises
        ------
        ConfigError
            If the model has none.
        """
        if self.attention is None:
            raise ConfigError(
                "map", "a model of one block has no attention. Choose a deeper one."
            )
        return self._map(self.attention * len(self.cells))

    def error_map(self) -> Heatmap:
        """Return the error of each tile, float32.

        Raises
        ------
        ConfigError
            If the model came without its decoder.
        """
        if self.error is None:
            raise ConfigError(
                "map", "the model came without its decoder. Choose last.safetensors."
            )
        return self._map(self.error)

    def _map(self, values: Array) -> Heatmap:
        return Heatmap.from_cells(self.grid, self.cells, values)

    def arrows_l0(self, head: int, length: float = 1.0) -> Array:
        """Return an arrow from the middle of each anchor along a head's main direction.

        Parameters
        ----------
        head
            From 0.
        length
            In tiles.

        Returns
        -------
        float64 (K, 2, 2): start (x, y) and displacement (x, y), level-0 pixels.
        """
        middles = self.cells[self.anchors, ::-1] + 0.5
        start = self.grid.l0_from_grid(middles)
        right, down = np.sin(self.angles[head]), np.cos(self.angles[head])
        along = np.stack([right, down], -1) * length * np.array(self.grid.tile_size_l0)
        return np.stack([start, along], 1)

    def tile_at(self, cell: tuple[int, int]) -> TileWords | None:
        """Say what is known of the tile at (row, column); None if it is no tile."""
        found = np.flatnonzero((self.cells == cell).all(1))
        if not len(found):
            return None
        tile = int(found[0])
        nearest = int(self.nearest[tile])
        apart = np.hypot(*(self.cells[self.anchors[nearest]] - self.cells[tile]))
        order = np.argsort(-self.looks[tile], kind="stable")
        error = None if self.error is None else float(self.error[tile])
        return TileWords(
            cell=(int(cell[0]), int(cell[1])),
            nearest=nearest + 1,
            apart_um=float(apart) * self.grid.spec.tile_um,
            gathered_by=int(self.gathered_by[tile]) + 1,
            is_anchor=tile in self.anchors,
            weights=tuple((int(k) + 1, float(self.looks[tile, k])) for k in order),
            attention=None
            if self.attention is None
            else float(self.attention[tile]) * len(self.cells),
            error=error,
            error_rank=None
            if self.error is None
            else float((self.error < error).mean()),
        )


def check_of(features: SlideFeatures, slide: Slide) -> None:
    """Refuse features that are not of a slide, or cannot be laid over it.

    Raises
    ------
    FeatureError
        Naming both.
    """
    header = features.header
    if header.grid is None:
        raise FeatureError(
            f"The features of {header.slide} ({header.program}) do not say exactly "
            "where their tiles lie. Make them with 'histomae embed'."
        )
    if header.slide_id != slide.slide_id:
        raise FeatureError(
            f"The features are of the slide {header.slide} ({header.slide_id}), not of "
            f"{slide.name} ({slide.slide_id}). Choose those of this slide."
        )


def view_slide(
    features: SlideFeatures,
    model: SlideModel,
    *,
    block: int = -1,
    mask_ratio: float | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Generator[Event, None, SlideView]:
    """Look at a slide, or a region, with PAMA.

    Parameters
    ----------
    features
        Of its tiles, two at least.
    block
        Whose looks and directions are told; -1 is the last.
    mask_ratio
        Share of the tiles hidden at a time; None: as in training.
    rounds
        How often each tile is hidden at least, among others each time.
    seed
        Of what is hidden: the same seed gives the same errors.

    Raises
    ------
    FeatureError
        If the tiles are not such as the model was trained on, naming both; or their
        grid is unknown.
    NotEnoughDataError
        If there is a single tile.
    ConfigError
        If there is no such block.
    """
    bag, spec = bag_of(features), model.encoder.spec
    check_alike([bag], model.header.features)
    grid = features.header.grid
    if grid is None:
        raise FeatureError(
            f"The features of {bag.slide} do not say exactly where their tiles lie. "
            "Make them with 'histomae embed'."
        )
    if len(bag) < 2:
        raise NotEnoughDataError(
            f"{bag.name} has a single tile, of which nothing can be told. Draw a "
            "larger region, or choose the whole slide."
        )
    if not -spec.depth <= block < spec.depth:
        raise ConfigError(
            "block", f"{block} does not exist. Choose from 0 to {spec.depth - 1}."
        )
    yield Progress(LOOKING, 0, 1)
    placed = place_bag(bag.features, bag.cells, spec.placing)
    tensors = batch_bags([placed]).to(model.device)
    with torch.inference_mode():
        looks = model.encoder.looks(tensors)
    chosen = looks[block]
    taken = chosen.anchors[0, :, :, 1:].mean(0)
    directions = chosen.main_directions[0].cpu().numpy()
    yield Progress(LOOKING, 1, 1)
    ratio = model.header.mask_ratio if mask_ratio is None else mask_ratio
    error = None
    if model.pama is not None:
        masks = np.concatenate(
            [
                covering_masks((1, len(bag)), ratio, seed * rounds + number)[:, 0]
                for number in range(rounds)
            ]
        )
        error = yield from hidden_error(model.pama, tensors, masks)
    return SlideView(
        grid=grid,
        cells=bag.cells,
        anchors=placed.anchors,
        nearest=_nearest(bag.cells, placed.anchors),
        gathers=_numbers(taken / taken.sum(-1, keepdim=True)),
        looks=_numbers(chosen.tokens[0, :, 1:].mean(0)),
        angles=direction_angles(directions, compat=spec.compat),
        attention=class_attention(looks),
        error=error,
    )


def class_attention(looks: Sequence[Looks]) -> Array | None:
    """Return what reaches the class token from each tile, through all blocks.

    Attention rollout (Abnar & Zuidema 2020) over tokens and anchors: in each block half
    of a token, or anchor, is what it was, and half what it takes, mean of the heads.

    Parameters
    ----------
    looks
        Of one slide (B = 1), the first block first.

    Returns
    -------
    float32 (L,), sums to 1; None if nothing reaches it, as in a model of one block.
    """
    first = looks[0].anchors[0].mean(0)
    anchors, tokens = first.new_zeros(first.shape[0]), first.new_zeros(first.shape[1])
    tokens[0] = 1
    for one in reversed(looks):
        by_anchors, by_tokens = one.anchors[0].mean(0), one.tokens[0].mean(0)
        tokens, anchors = (
            (tokens + anchors @ by_anchors) / 2,
            (anchors + tokens @ by_tokens) / 2,
        )
    reached = tokens[1:]
    total = float(reached.sum())
    return _numbers(reached / total) if total > 0 else None


def hidden_error(
    pama: Pama, bags: BagTensors, masks: Array
) -> Generator[Event, None, Array]:
    """Return how badly each tile is predicted, over the masks that hide it.

    Parameters
    ----------
    pama
        In evaluation mode.
    bags
        A single bag of L tiles.
    masks
        bool (n, L), True = hidden; each tile in one at least.

    Returns
    -------
    float32 (L,): mean squared error of its scaled embedding, averaged over the masks.
    """
    target = pama.encoder.scaled(bags)
    total = target.new_zeros(target.shape[1], dtype=torch.float64)
    times = torch.zeros_like(total)
    for number, mask in enumerate(masks):
        yield Progress(PREDICTING, number, len(masks))
        noise = torch.from_numpy(mask[None].astype(np.float32)).to(target.device)
        with torch.inference_mode():
            output = pama(bags, mask_ratio=float(mask.mean()), noise=noise)
            error = (output.prediction.float() - target).square().mean(-1)[0]
            total += torch.where(output.mask[0], error, 0).double()
            times += output.mask[0]
    yield Progress(PREDICTING, len(masks), len(masks))
    return _numbers(total / times)


def _nearest(cells: Array, anchors: Array) -> Array:
    """Return the anchor nearest to each tile, int64 (L,); of several, the first."""
    apart = np.square(cells[anchors, None] - cells[None]).sum(-1)
    found: Array = apart.argmin(0)
    return found


def _numbers(values: torch.Tensor) -> Array:
    found: Array = values.float().cpu().numpy()
    return found
