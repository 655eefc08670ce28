"""Whatever turns tiles into vectors: an encoder of ours, or one of other people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from histomae.config import POOLINGS
from histomae.errors import ConfigError
from histomae.infer.encoder import (
    TileEncoder,
    check_pooling,
    choose_attention,
    computing_in,
    pick_device,
    pick_precision,
)
from histomae.infer.reconstruct import normalised
from histomae.models.checkpoint import HEADER_KEY
from histomae.models.encoders import pool
from histomae.models.foreign import foreign_encoder
from histomae.models.initial import TIMM
from histomae.models.tensor_files import is_tensor_file, open_tensor_file
from histomae.slides.grid import TileSpec

if TYPE_CHECKING:
    from histomae.models.foreign import ForeignEncoder

Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: A foreign model's own way to make one vector of a tile.
OWN = "own"


class Embedder(Protocol):
    """What turns tiles, uint8 (N, H, W, 3) at ``spec.mpp``, into float32 (N, D)."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def encoder_id(self) -> str:
        """Short hash: vectors of different encoders must never be mixed."""

    @property
    def spec(self) -> TileSpec:
        """The tiles it takes."""

    @property
    def width(self) -> int:
        """Length of a vector, D."""

    @property
    def precision(self) -> str:
        """f32 or bf16."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def poolings(self) -> tuple[str, ...]:
        """How a tile may become one vector; the first unless asked otherwise."""

    def embed(self, tiles: Pixels, *, pooling: str) -> Floats:
        """Return one vector per tile."""


class ForeignTileEncoder:
    """A model of other people, ready to embed tiles; see :class:`Embedder`.

    Pooling is the model's ``own``; vision transformers also give their ``class_token``
    and the ``mean`` of their patch tokens.
    """

    def __init__(
        self,
        foreign: ForeignEncoder,
        *,
        mpp: float,
        device: torch.device,
        precision: str = "f32",
    ) -> None:
        self.name, self.encoder_id = foreign.name, foreign.encoder_id
        self.width, self.spec = foreign.width, TileSpec(foreign.tile_px, mpp)
        self.device, self.precision = device, precision
        self._mean, self._std = foreign.mean, foreign.std
        self._model: Any = foreign.model.to(device)
        has_tokens = getattr(self._model, "num_prefix_tokens", 0) > 0
        self.poolings = (OWN, *POOLINGS) if has_tokens else (OWN,)
        choose_attention(self._model, device, by_steps=precision == "bf16")

    @torch.inference_mode()
    def embed(self, tiles: Pixels, *, pooling: str = OWN) -> Floats:
        """Return one vector per tile, float32 (N, D)."""
        check_pooling(self, pooling)
        images = normalised(tiles, self._mean, self._std, self.device)
        with computing_in(self.precision, self.device):
            if pooling == OWN:
                vectors = self._model(images)
            else:
                tokens = self._model.forward_features(images)
                vectors = pool(tokens, pooling, self._model.num_prefix_tokens)
        return vectors.float().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class EncoderChoice:
    """Which encoder, as a person says it; None: as the encoder itself has it.

    ``source``: a checkpoint of ours, ``timm:NAME``, or a file of weights, whose
    ``architecture`` is then timm's name. For the encoders of other people ``mpp`` must
    be said, and the rest may be.
    """

    source: str
    architecture: str | None = None
    tile_px: int | None = None
    mpp: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    device: str = "auto"
    precision: str = "auto"

    @property
    def is_ours(self) -> bool:
        """Whether the source is a checkpoint, which knows everything itself."""
        path = Path(self.source).expanduser()
        if self.source.startswith(TIMM) or not path.is_file():
            return False
        return is_tensor_file(path) and HEADER_KEY in open_tensor_file(path).metadata


def open_embedder(choice: EncoderChoice) -> Embedder:
    """Load an encoder.

    Raises
    ------
    ConfigError
        If a setting does not fit the encoder, or is missing.
    CheckpointError
        If the weights are damaged or do not fit.
    DownloadError
        If they cannot be fetched.
    """
    if choice.is_ours:
        return _own(choice)
    if choice.mpp is None:
        raise ConfigError("mpp", f"{choice.source} does not say it. Give µm per pixel.")
    device = pick_device(choice.device)
    foreign = foreign_encoder(
        choice.source,
        architecture=choice.architecture,
        tile_px=choice.tile_px,
        mean=choice.mean,
        std=choice.std,
    )
    precision = pick_precision(choice.precision, device)
    return ForeignTileEncoder(
        foreign, mpp=choice.mpp, device=device, precision=precision
    )


def _own(choice: EncoderChoice) -> TileEncoder:
    path = Path(choice.source).expanduser()
    encoder = TileEncoder.load(path, device=choice.device, precision=choice.precision)
    header = encoder.header
    for name in ("architecture", "tile_px", "mpp", "mean", "std"):
        asked, trained = getattr(choice, name), getattr(header, name)
        if asked is not None and asked != trained:
            raise ConfigError(
                name,
                f"{path.name} was trained with {trained}, not {asked}. Leave it out.",
            )
    return encoder
