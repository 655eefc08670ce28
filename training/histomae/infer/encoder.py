"""A trained encoder that takes tiles as pictures and gives numbers back.

Load it once, then ask it for embeddings, attention and reconstructions of tiles; the
rest of the reading room lays the answers over a slide.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histomae.data.picture_grid import PictureGrid
from histomae.errors import CheckpointError, ConfigError
from histomae.infer.reconstruct import (
    Reconstruction,
    normalised,
    reconstruct_tiles,
)
from histomae.models.attention import class_attention, iter_attention, rollout
from histomae.models.checkpoint import (
    Checkpoint,
    autoencoder_from,
    encoder_from,
    load_checkpoint,
)
from histomae.models.cnn import CnnSpec, strength
from histomae.models.encoders import pool, poolings_of, tokens_of
from histomae.models.gradcam import grad_cam, probe_logits
from histomae.slides.grid import TileGrid, TileSpec

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.infer.embedder import Embedder
    from histomae.models.attention import Head, Query
    from histomae.models.mae import MaskedAutoencoder
    from histomae.models.probe import Probe
    from histomae.models.restore import Statistics
    from histomae.slides.slide import Slide

Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

#: How a tile's tokens become one vector.


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto``: CUDA, else Apple's GPU, else the CPU.

    Raises
    ------
    ConfigError
        If it is not there.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device",
            f"{name!r} is not here ({str(error).splitlines()[0]}). Choose auto or cpu.",
        ) from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return ``f32`` or ``bf16``; ``auto``: bf16 where the device computes in it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "f32"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "f32"


def cpu_has_bf16() -> bool:
    """Tell whether the processor multiplies matrices of bf16 (AVX-512 or AMX)."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def computing_in(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which matrices are multiplied in ``precision``.

    Sums along the network stay in float32: kept in bf16 as well, embeddings come out no
    faster, and lose twenty times as much of what tells one tile from another.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def choose_attention(model: Any, device: torch.device, *, by_steps: bool) -> None:
    """Have timm's attention computed step by step, or by the one fused kernel.

    On a processor the fused kernel takes half as long again in bf16 (a ViT-S gains 7 %
    by steps), and less time in f32. Elsewhere it is always used.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = not (by_steps and device.type == "cpu")


def check_pooling(encoder: Embedder, pooling: str) -> None:
    """Refuse what an encoder cannot do with its tokens."""
    if pooling not in encoder.poolings:
        raise ConfigError(
            "pooling",
            f"{pooling!r} is unknown. Choose {' or '.join(encoder.poolings)}.",
        )


class TileEncoder:
    """A checkpoint, ready to look at tiles.

    Tiles are uint8 (N, H, W, 3) RGB with H = W = ``spec.tile_px``, read at
    ``spec.mpp``; everything returned is a NumPy array. ``precision`` is that of
    :meth:`embed`, f32 or bf16.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, *, precision: str = "f32"
    ) -> None:
        self.header = checkpoint.header
        self.encoder_id = checkpoint.encoder_id
        self.device = device
        self.precision = precision
        self._autoencoder: MaskedAutoencoder | None = None
        self._encoder: Any  # timm's VisionTransformer
        if checkpoint.header.decoder is not None:
            self._autoencoder = autoencoder_from(checkpoint).to(device)
            self._encoder = self._autoencoder.encoder
        else:
            self._encoder = encoder_from(checkpoint).to(device)
        choose_attention(self._encoder, device, by_steps=precision == "bf16")

    @classmethod
    def load(
        cls, path: Path, *, device: str = "auto", precision: str = "f32"
    ) -> TileEncoder:
        """Read a checkpoint of ours.

        Raises
        ------
        CheckpointError
            If the file is no checkpoint of ours, damaged, or does not fit itself.
        ConfigError
            If the device is not there.
        """
        where = pick_device(device)
        precision = pick_precision(precision, where)
        return cls(load_checkpoint(path), where, precision=precision)

    @property
    def name(self) -> str:
        """What it is, for people."""
        header = self.header
        return f"{header.method} {header.architecture} step {header.step}"

    @property
    def poolings(self) -> tuple[str, ...]:
        """How a tile may become one vector; the first unless asked otherwise."""
        return poolings_of(self.header.encoder)

    @property
    def width(self) -> int:
        """Length of an embedding, D."""
        return self.header.encoder.embed_dim

    @property
    def spec(self) -> TileSpec:
        """The tiles that it was trained on.

        Raises
        ------
        CheckpointError
            If these were whole pictures, whose micrometres nobody knows.
        """
        return TileSpec(self.header.tile_px, self.header.known_mpp)

    def grid_over(self, slide: Slide) -> TileGrid:
        """Lay its tiles over a slide; of a plain picture, one tile shows all of it.

        Raises
        ------
        CheckpointError
            If it was trained on pictures and this is none.
        MissingMppError, UpsamplingError
            If it was trained on slides, and this has no micrometres or too few pixels.
        """
        if self.header.mpp is None and slide.is_picture:
            side, sector = self.header.tile_px, self.header.scan_sector
            return PictureGrid.of(slide, side, sector=sector)
        return TileGrid.over(slide, self.spec)

    @property
    def is_convolutional(self) -> bool:
        """Whether it has no attention; then Grad-CAM stands for it."""
        return isinstance(self.header.encoder, CnnSpec)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of patches in a tile."""
        return self.header.encoder.grid_size

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return self.header.encoder.depth

    @property
    def num_heads(self) -> int:
        """Attention heads in each block."""
        return self.header.encoder.num_heads

    @property
    def has_decoder(self) -> bool:
        """Whether it can reconstruct."""
        return self._autoencoder is not None

    @torch.inference_mode()
    def embed(self, tiles: Pixels, *, pooling: str | None = None) -> Floats:
        """Return one vector per tile, float32 (N, D), after the final norm.

        ``pooling``: the ``class_token``, or the ``mean`` of the patch tokens; None: the
        first of ``poolings``. Convolutions have only the mean, over their places.
        """
        pooling = pooling or self.poolings[0]
        check_pooling(self, pooling)
        with computing_in(self.precision, self.device):
            tokens = tokens_of(self._encoder, self._images(tiles))
        pooled = pool(tokens, pooling, getattr(self._encoder, "num_prefix_tokens", 0))
        return pooled.float().cpu().numpy()

    @torch.inference_mode()
    def attention(
        self,
        tiles: Pixels,
        *,
        block: int = -1,
        head: Head = "mean",
        query: Query = "class_token",
    ) -> Floats:
        """Return where the encoder looks, float32 (N, grid_h, grid_w).

        Parameters
        ----------
        block
            Index of the transformer block; -1 is the last.
        head
            A head's index, ``mean`` over the heads, or ``rollout`` through all blocks
            up to this one.
        query
            Who looks: the ``class_token``, or the patches on average (``mean``), which
            is right where a tile's vector is their mean.

        Raises
        ------
        ConfigError
            If there is no such block or head.

        Notes
        -----
        Convolutions have no attention: of them it is how strongly they answer at each
        place, the length of its vector.
        """
        self._check_attention(block, head)
        if self.is_convolutional:
            tokens = tokens_of(self._encoder, self._images(tiles))
            return strength(tokens, self.grid_size).cpu().numpy()
        # One block at a time: those of a batch together would fill the memory.
        blocks = islice(
            iter_attention(self._encoder, self._images(tiles)),
            block % self.num_blocks + 1,
        )
        attentions = (
            [rollout(blocks)[:, None]] if head == "rollout" else deque(blocks, maxlen=1)
        )
        maps = class_attention(
            attentions,
            head="mean" if head == "rollout" else head,
            query=query,
            num_prefix_tokens=self._encoder.num_prefix_tokens,
            grid_size=self.grid_size,
        )
        return maps.float().cpu().numpy()

    def grad_cam(self, tiles: Pixels, probe: Probe, class_name: str) -> Floats:
        """Return what speaks for a class, float32 (N, grid_h, grid_w), 0 or more.

        See :func:`histomae.models.gradcam.grad_cam`; the numbers of tiles compare.

        Raises
        ------
        ConfigError
            If the encoder is a ViT, or the probe has no such class.
        CheckpointError
            If the probe was fitted to another encoder.
        """
        if not self.is_convolutional:
            raise ConfigError(
                "class_name",
                "Grad-CAM is of convolutions, and this model has attention: leave the "
                "class out.",
            )
        if class_name not in probe.class_names:
            raise ConfigError(
                "class_name",
                f"{class_name!r} is unknown. Choose one of "
                f"{', '.join(probe.class_names)}.",
            )
        probe.check_encoder(self.encoder_id, self.width)
        with torch.no_grad():
            features = self._encoder.forward_features(self._images(tiles))
        label = probe.class_names.index(class_name)
        return grad_cam(features, probe_logits(probe), label).float().cpu().numpy()

    def _check_attention(self, block: int, head: Head) -> None:
        if not -self.num_blocks <= block < self.num_blocks:
            raise ConfigError(
                "block",
                f"{block} is not there. Choose from 0 to {self.num_blocks - 1}.",
            )
        heads = ("mean", "rollout", *range(self.num_heads))
        if head not in heads:
            raise ConfigError(
                "head",
                f"{head!r} is not there. Choose mean, rollout, or from 0 to "
                f"{self.num_heads - 1}.",
            )

    def reconstruct(
        self, tiles: Pixels, masks: Bools, *, statistics: Statistics = "neighbours"
    ) -> list[Reconstruction]:
        """Hide patches and predict them; see :func:`reconstruct_tiles`.

        Parameters
        ----------
        masks
            bool (N, grid_h, grid_w), True = hidden, as many hidden in each tile.

        Raises
        ------
        CheckpointError
            If the checkpoint holds no decoder.
        """
        if self._autoencoder is None:
            raise CheckpointError(
                "This model is an encoder without its decoder, so it cannot "
                "reconstruct. Choose checkpoints/last.safetensors of a run of a masked "
                "autoencoder (mae, sd-mae)."
            )
        return reconstruct_tiles(
            self._autoencoder,
            tiles,
            masks,
            mean=self.header.mean,
            std=self.header.std,
            statistics=statistics,
        )

    def _images(self, tiles: Pixels) -> torch.Tensor:
        return normalised(tiles, self.header.mean, self.header.std, self.device)
