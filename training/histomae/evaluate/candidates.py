"""What is compared: the encoders of the user, and baselines that they must beat."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import timm
import torch

from histomae.config import PretrainConfig
from histomae.errors import CheckpointError, ConfigError, HistomaeError, RunError
from histomae.evaluate.baselines import colour_histogram
from histomae.evaluate.transfer import COLOUR, UNTRAINED, untrained
from histomae.evaluate.trials import called
from histomae.events import Event, Note
from histomae.infer.embedder import EncoderChoice, ForeignTileEncoder
from histomae.infer.encoder import TileEncoder, pick_device, pick_precision
from histomae.learn.runs import RunFolder
from histomae.models.checkpoint import (
    Checkpoint,
    current_versions,
    encoder_from,
    load_checkpoint,
)
from histomae.models.classifier import OWN, Network
from histomae.models.foreign import ForeignEncoder, foreign_encoder
from histomae.models.initial import TIMM

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from histomae.data.tiling import Tiling


Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

OURS, FOREIGN, IMAGENET = "encoder", "foreign encoder", "ImageNet"
#: The weights that stand for ImageNet: supervised, ViT-S/16.
IMAGENET_SOURCE = "timm:vit_small_patch16_224.augreg_in21k_ft_in1k"
#: Tiles that are computed at a time, by device.
BATCHES = {"cpu": 32}
GPU_BATCH = 256
#: Of a baseline without an encoder to go by.
TILE_PX = 224


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """One row of the table: what turns tiles into features, or is trained on them."""

    name: str
    """Of the row of the table, or of the rows of a sweep."""
    kind: str
    """encoder, foreign encoder, untrained, ImageNet, or colour histogram."""
    identity: str
    """Hash of its weights, and of how it makes a vector."""
    tile_px: int
    mpp: float | None
    """µm per pixel of the tiles that it was trained on; None: unknown."""
    embed: Callable[[Pixels], Floats]
    """From tiles, uint8 (N, tile_px, tile_px, 3), to float32 (N, D); in eval mode."""
    network: Callable[[], Network] | None = None
    """Makes a fresh copy of the encoder, to be fine-tuned; None: nothing to train."""
    run: Path | None = None
    """The folder of the training that made it; None: nobody knows what it has seen."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the report, as JSON."""
    varied: Mapping[str, str | float] = field(default_factory=dict)
    """Settings of its pretraining, which set it apart from others of its name."""

    @property
    def label(self) -> str:
        """What it is called; no two of an evaluation have one label."""
        return called(self.name, self.varied)

    @property
    def is_baseline(self) -> bool:
        """Whether it is there only to be beaten."""
        return self.kind in (UNTRAINED, IMAGENET, COLOUR)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Which candidates are compared, as a person says it."""

    encoders: tuple[str, ...] = ()
    """Checkpoints, run folders, ``timm:NAME``, or ``ARCHITECTURE=FILE`` for a file of
    weights of a timm model."""
    imagenet: str | None = IMAGENET_SOURCE
    """Said as an encoder of other people; None: left out."""
    untrained: bool = True
    colour: bool = True
    pooling: str | None = None
    """class_token, mean, or own for encoders of other people; None: each its first."""
    mpp: float | None = None
    """Of the tiles of other people's encoders, µm per pixel."""
    device: str = "auto"
    precision: str = "f32"
    seed: int = 0
    swept: tuple[str, ...] = ()
    """Encoders, said in the same way, that are rows of one sweep: they differ in"""
    vary: tuple[str, ...] = ()
    """these settings of their pretraining."""


def open_candidates(
    asked: Compared,
) -> Generator[Event, None, tuple[Candidate, ...]]:
    """Load what is compared; no two have one name, the user's encoders come first.

    The ImageNet baseline is left out with a note where it cannot be loaded, and the
    untrained one where no encoder is ours.

    Raises
    ------
    ConfigError
        If no encoder is named, or one does not fit.
    CheckpointError, DownloadError
        If one cannot be loaded.
    """
    sources = (*asked.swept, *asked.encoders)
    if not sources:
        raise ConfigError(
            "encoder", "none is given. Name a checkpoint, a run folder or timm:NAME."
        )
    found: list[Candidate] = []
    starts: list[Checkpoint | None] = []
    for source in sources:
        yield Note(f"loading {source}")
        opened = _loaded(source)
        found.append(_candidate(opened, asked))
        starts.append(opened.checkpoint if isinstance(opened, Named) else None)
    swept = len(asked.swept)
    found[:swept] = _swept(found[:swept], asked.vary)
    if asked.untrained:
        found += _untrained(found, starts, asked)
    if asked.imagenet is not None:
        try:
            opened = _loaded(asked.imagenet)
            named = replace(_candidate(opened, asked), name=IMAGENET, kind=IMAGENET)
            found.append(named)
        except HistomaeError as error:
            yield Note(f"The ImageNet baseline is left out: {error}")
    if asked.colour:
        found.append(colour_candidate(found[0].tile_px, mpp=found[0].mpp))
    return _named_apart(found)


class Named(NamedTuple):
    """A checkpoint of ours, what it is called in a table, and the run it is of."""

    name: str
    checkpoint: Checkpoint
    run: Path | None = None


def _swept(found: Sequence[Candidate], names: Sequence[str]) -> list[Candidate]:
    """Make rows of one sweep of the encoders whose settings are known.

    One that is like another in all of them stays a row of its own name.

    Raises
    ------
    ConfigError
        If a name is no setting, or the encoders do not differ in it.
    """
    PretrainConfig.check_names(names)
    swept, seen = [], []
    for one in found:
        varied = _settings(one, names)
        named = replace(one, name=OURS) if varied and varied not in seen else one
        seen.append(varied)
        swept.append(replace(named, varied=varied))
    check_differ(swept, names)
    return swept


def _settings(candidate: Candidate, names: Sequence[str]) -> dict[str, str | float]:
    """Return settings of a pretraining; none if one of them is not known."""
    told: Mapping[str, Any] = candidate.facts if candidate.kind == OURS else {}
    if candidate.run is not None:
        with suppress(RunError):  # a folder that came without its settings
            told = vars(RunFolder(candidate.run).config())
    known = {name: told[name] for name in names if told.get(name) is not None}
    return {
        name: value if isinstance(value, str) else float(value)
        for name, value in known.items()
        if len(known) == len(names)
    }


def check_differ(candidates: Sequence[Candidate], names: Iterable[str]) -> None:
    """Refuse a sweep over encoders that are all alike.

    Raises
    ------
    ConfigError
        If they have fewer than two values of a setting.
    """
    for name in names:
        ours = [one.varied for one in candidates if not one.is_baseline]
        values = {str(told[name]) for told in ours if name in told}
        if len(values) < 2:
            raise ConfigError(
                "encoder",
                f"a sweep compares encoders of different {name}, and these have "
                f"{' and '.join(values) or 'none that is known'}. Name run folders "
                f"that differ in it, or slides to pretrain on and its values.",
            )


def _untrained(
    found: Sequence[Candidate], starts: Sequence[Checkpoint | None], asked: Compared
) -> list[Candidate]:
    """Return an untrained network of each shape; of a sweep it is what it begins at.

    It is set apart by what all encoders of its shape have in common.
    """
    fresh: dict[Any, Candidate] = {}
    for one, checkpoint in zip(found, starts, strict=True):
        if checkpoint is None:
            continue
        shape = checkpoint.header.encoder
        if shape in fresh:
            common = dict(fresh[shape].varied.items() & one.varied.items())
            fresh[shape] = replace(fresh[shape], varied=common)
        else:
            start = untrained(checkpoint.header, seed=asked.seed)
            made = _candidate(Named(UNTRAINED, start), asked, kind=UNTRAINED)
            fresh[shape] = replace(made, varied=one.varied)
    return list(fresh.values())


def _loaded(source: str) -> Named | ForeignEncoder:
    """Load an encoder as a person names it."""
    architecture, equals, file = source.partition("=")
    if equals and timm.is_model(architecture):
        return foreign_encoder(file, architecture=architecture)
    path = Path(source).expanduser()
    if path.is_dir():
        path = RunFolder(path).last
        if not path.exists():
            raise CheckpointError(
                f"{source} holds no checkpoint. Give a run folder whose training has "
                "saved one, or a file."
            )
    if not path.exists() and not source.startswith(TIMM):
        raise CheckpointError(
            f"{source} does not exist. Check the name, or say {TIMM}NAME."
        )
    if EncoderChoice(source=str(path)).is_ours:
        return Named(_short_name(path), load_checkpoint(path), _run_of(path))
    return foreign_encoder(source)


def _candidate(
    loaded: Named | ForeignEncoder, asked: Compared, *, kind: str = OURS
) -> Candidate:
    device = pick_device(asked.device)
    precision = pick_precision(asked.precision, device)
    if isinstance(loaded, Named):
        name, checkpoint, run = loaded
        encoder = TileEncoder(checkpoint, device, precision=precision)
        made = ours(name, checkpoint, encoder, pooling=asked.pooling, kind=kind)
        return replace(made, run=run)
    return _foreign(loaded, asked, device, precision)


def ours(
    name: str,
    checkpoint: Checkpoint,
    encoder: TileEncoder,
    *,
    pooling: str | None = None,
    kind: str = OURS,
) -> Candidate:
    """Return a candidate for an encoder of ours."""
    header = checkpoint.header
    chosen = pooling if pooling in encoder.poolings else encoder.poolings[0]

    def network() -> Network:
        return Network(
            module=encoder_from(checkpoint.encoder_only()),
            tile_px=header.tile_px,
            mean=header.mean,
            std=header.std,
            width=encoder.width,
            pooling="mean" if pooling is None else chosen,
        )

    return Candidate(
        name=name,
        kind=kind,
        identity=f"{encoder.encoder_id}-{chosen}-{encoder.precision}",
        tile_px=header.tile_px,
        mpp=header.mpp,
        embed=lambda tiles: encoder.embed(tiles, pooling=chosen),
        network=network,
        facts={
            "id": encoder.encoder_id,
            "architecture": header.architecture,
            "method": header.method,
            "mask_ratio": header.mask_ratio,
            "step": header.step,
            "tile_px": header.tile_px,
            "mpp": header.mpp,
            "pooling": chosen,
            "width": encoder.width,
            "config_hash": header.config_hash,
        },
    )


def _short_name(path: Path) -> str:
    """Return the name of a checkpoint for a table: that of its run, if it is of one."""
    run = _run_of(path)
    return path.stem if run is None else run.name


def _run_of(path: Path) -> Path | None:
    path = path.resolve()
    return path.parents[1] if path.parent.name == "checkpoints" else None


def _foreign(
    foreign: ForeignEncoder, asked: Compared, device: torch.device, precision: str
) -> Candidate:
    encoder = ForeignTileEncoder(
        foreign, mpp=asked.mpp or 1.0, device=device, precision=precision
    )
    pooling = asked.pooling
    chosen = pooling if pooling and pooling in encoder.poolings else OWN

    def network() -> Network:
        return Network(
            module=copy.deepcopy(foreign.model),
            tile_px=foreign.tile_px,
            mean=foreign.mean,
            std=foreign.std,
            width=foreign.width,
            pooling=chosen,
        )

    return Candidate(
        name=foreign.name,
        kind=FOREIGN,
        identity=f"{foreign.encoder_id}-{chosen}-{precision}",
        tile_px=foreign.tile_px,
        mpp=asked.mpp,
        embed=lambda tiles: encoder.embed(tiles, pooling=chosen),
        network=network,
        facts={
            "id": foreign.encoder_id,
            "architecture": foreign.name,
            "tile_px": foreign.tile_px,
            "mpp": asked.mpp,
            "pooling": chosen,
            "width": foreign.width,
        },
    )


def colour_candidate(tile_px: int = TILE_PX, *, mpp: float | None = None) -> Candidate:
    """Return the colour histogram of tiles, which knows nothing but colours."""
    told = f"{COLOUR} 8 bins {tile_px}"
    return Candidate(
        name=COLOUR,
        kind=COLOUR,
        identity=hashlib.sha256(told.encode()).hexdigest()[:16],
        tile_px=tile_px,
        mpp=mpp,
        embed=colour_histogram,
        facts={"bins": 8, "tile_px": tile_px, "mpp": mpp},
    )


def _named_apart(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Give candidates of one label numbers."""
    counts, seen = Counter(one.label for one in found), Counter[str]()
    named = []
    for one in found:
        seen[one.label] += 1
        number = f" {seen[one.label]}" if counts[one.label] > 1 else ""
        named.append(replace(one, name=f"{one.name}{number}"))
    return tuple(named)


def tiling_for(candidate: Candidate, tiling: Tiling) -> Tiling:
    """Return the rule for a candidate: where it asks for its µm per pixel, with them.

    Raises
    ------
    ConfigError
        If the candidate does not know them.
    """
    if tiling.how != "mpp" or tiling.mpp is not None:
        return tiling
    if candidate.mpp is None:
        raise ConfigError(
            "mpp",
            f"{candidate.name} does not know it. Give --mpp, or choose --tiles whole.",
        )
    return replace(tiling, mpp=candidate.mpp)


def batch_size() -> int:
    """Return how many tiles are computed at a time."""
    return BATCHES["cpu"] if not torch.cuda.is_available() else GPU_BATCH


def versions() -> dict[str, str]:
    """Return the versions of what a score depends on."""
    import sklearn

    return {
        **current_versions(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
