"""What pretraining brought: the same probe on three kinds of features, on other slides.

A probe is fitted to the labelled tiles of some slides and scored on those of others,
once on the pretrained encoder's embeddings, once on the same network untrained, and
once on colour histograms. If the first does not win, pretraining brought nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.errors import NotEnoughDataError
from histomae.evaluate.baselines import colour_histogram
from histomae.evaluate.compare import TransferScore, score_on
from histomae.infer.encoder import TileEncoder
from histomae.infer.tiles import map_tiles
from histomae.models.checkpoint import Checkpoint
from histomae.models.encoders import build
from histomae.slides.annotations import label_cells
from histomae.slides.grid import TileGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from histomae.events import Event
    from histomae.learn.teach import LabelledSlide
    from histomae.models.checkpoint import CheckpointHeader

Array = np.ndarray[Any, Any]

PRETRAINED, UNTRAINED, COLOUR = "pretrained", "untrained", "colour histogram"
#: As the verdict calls them.
NAMES = {UNTRAINED: "the untrained encoder", COLOUR: "the colour histogram"}


def untrained(header: CheckpointHeader, *, seed: int = 0) -> Checkpoint:
    """Return an encoder of the same shape with its initial weights."""
    header = replace(header, decoder=None, step=0)
    generator = torch.Generator().manual_seed(seed)
    return Checkpoint(header, build(header.encoder, generator=generator).state_dict())


def untrained_like(encoder: TileEncoder, *, seed: int = 0) -> TileEncoder:
    """Return :func:`untrained` as an encoder of tiles, on the same device."""
    return TileEncoder(untrained(encoder.header, seed=seed), encoder.device)


def what_pretraining_brought(
    taught: Sequence[LabelledSlide],
    unseen: Sequence[LabelledSlide],
    encoder: TileEncoder,
    class_names: Sequence[str],
    *,
    pooling: str | None = None,
    seed: int = 0,
) -> Generator[Event, None, dict[str, TransferScore]]:
    """Score the three kinds of features on slides that no probe saw.

    Parameters
    ----------
    taught, unseen
        Slides with regions: to fit the probes to, and to score them on.
    class_names
        The classes to tell apart; other regions are left out.

    Returns
    -------
    ``pretrained``, ``untrained`` and ``colour histogram``, each with its balanced
    accuracy and a 95 % interval over the regions of the unseen slides.

    Raises
    ------
    NotEnoughDataError
        If a class has no tile to learn from, or no slide has a tile to be scored on.
    """
    untrained = untrained_like(encoder, seed=seed)

    def compute(tiles: Array) -> Array:
        return np.hstack(
            [
                encoder.embed(tiles, pooling=pooling),
                untrained.embed(tiles, pooling=pooling),
                colour_histogram(tiles),
            ]
        )

    train = yield from _features(taught, encoder, class_names, compute)
    test = yield from _features(unseen, encoder, class_names, compute)
    width = encoder.header.encoder.embed_dim
    columns = {
        PRETRAINED: slice(0, width),
        UNTRAINED: slice(width, 2 * width),
        COLOUR: slice(2 * width, None),
    }
    return {
        name: score_on(
            train[0][:, part],
            *train[1:],
            test[0][:, part],
            *test[1:],
            class_names,
            seed=seed,
        )
        for name, part in columns.items()
    }


def _features(
    labelled: Sequence[LabelledSlide],
    encoder: TileEncoder,
    class_names: Sequence[str],
    compute: Callable[[Array], Array],
) -> Generator[Event, None, tuple[Array, Array, Array]]:
    """Return features (M, F), labels (M,) and groups (M,) of tiles inside regions."""
    features, labels, groups = [], [], []
    regions_before = 0
    for item in labelled:
        grid = TileGrid.over(item.slide, encoder.spec)
        found = label_cells(item.annotations, grid, class_names)
        if len(found.cells):
            computed = yield from map_tiles(
                item.slide, grid, found.cells, compute, what="comparing features"
            )
            features.append(computed)
            labels.append(found.labels)
            groups.append(found.groups + regions_before)
        regions_before += len(item.annotations)
    if not features:
        raise NotEnoughDataError(
            f"No tile lies in a region of {', '.join(class_names)}. Draw regions of "
            "these classes on the slides to learn from and on those to score on."
        )
    return np.concatenate(features), np.concatenate(labels), np.concatenate(groups)


def lines(scores: dict[str, TransferScore]) -> list[str]:
    """Return the scores as sentences, the verdict last.

    Pretraining beats what it scores above; a tie is no win.
    """
    said = [f"{name:<17} {_told(score)}" for name, score in scores.items()]
    reached = scores[PRETRAINED].balanced_accuracy
    unbeaten = [
        NAMES[name]
        for name, score in scores.items()
        if name != PRETRAINED and not reached > score.balanced_accuracy
    ]
    verdict = (
        f"pretraining does not beat {' nor '.join(unbeaten)}: train longer, or on more "
        "slides"
        if unbeaten
        else "pretraining beats both the untrained encoder and colour"
    )
    return [*said, verdict]


def _told(score: TransferScore) -> str:
    told = f"balanced accuracy {score.balanced_accuracy:.2f}"
    if np.isnan(score.low):
        return f"{told} (one region only: no interval)"
    return f"{told} ({score.low:.2f} to {score.high:.2f})"
