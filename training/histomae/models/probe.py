"""Probes: a linear classifier on frozen embeddings, in numpy, and its file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import softmax

from histomae.config import POOLINGS
from histomae.errors import CheckpointError
from histomae.models import tensor_files as files
from histomae.models.checkpoint import FORMAT, HELD, PROBE_KEY, check_format

if TYPE_CHECKING:
    import os

    from histomae.models.tensor_files import TensorFile

ARRAYS = ("mean", "std", "weight", "bias")


@dataclass(frozen=True, eq=False, kw_only=True)
class Probe:
    """A linear classifier on standardised embeddings.

    Arrays are float32, copied and read-only.
    """

    mean: np.ndarray
    """(D,): subtracted from an embedding."""
    std: np.ndarray
    """(D,), above 0: divides it then."""
    weight: np.ndarray
    """(K, D)."""
    bias: np.ndarray
    """(K,)."""
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...]
    """Red, green, blue, 0 to 255."""
    encoder_id: str
    """Of the encoder whose embeddings it was fitted on."""
    tile_px: int
    mpp: float
    pooling: str
    """How tokens became an embedding: class_token or mean."""
    temperature: float = 1.0
    """Divides the logits; fitted so that probabilities are calibrated."""
    scores: dict[str, Any] = field(default_factory=dict)
    """How good it is and how that was measured; plain JSON."""

    def __post_init__(self) -> None:
        for name in ARRAYS:
            array = np.array(getattr(self, name), dtype=np.float32)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        colors = tuple(tuple(color) for color in self.class_colors)
        object.__setattr__(self, "class_colors", colors)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        reason = self._what_is_wrong()
        if reason:
            raise CheckpointError(f"The probe {reason}. Fit it again.")

    def _what_is_wrong(self) -> str:
        """Return why this is no probe; empty if it is one."""
        classes, dim = len(self.class_names), self.mean.size
        shapes = {
            "mean": (dim,),
            "std": (dim,),
            "weight": (classes, dim),
            "bias": (classes,),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                return f"has {name} of shape {array.shape}, not {shape}"
            if not np.isfinite(array).all():
                return f"has numbers in {name} that are not finite"
        if not dim or not (self.std > 0).all():
            return "has a std that is not above 0"
        if classes < 2 or len(set(self.class_names)) != classes:
            return (
                f"has the classes {self.class_names!r:.200}, not two or more different"
            )
        if len(self.class_colors) != classes or not all(
            map(_is_color, self.class_colors)
        ):
            return f"has the colours {self.class_colors!r:.200}, not one per class"
        if self.pooling not in POOLINGS:
            return f"has the pooling {self.pooling!r:.40}, not one of {POOLINGS}"
        if not (self.temperature > 0 and self.mpp > 0 and self.tile_px > 0):
            return "has a temperature, mpp or tile_px that is not above 0"
        return ""

    @property
    def dim(self) -> int:
        """Width of the embeddings it takes, D."""
        return self.mean.size

    @property
    def probe_id(self) -> str:
        """Short hash of what the probe computes, and of its encoder."""
        facts = [self.encoder_id, self.class_names, self.pooling, self.temperature]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name in ARRAYS:
            digest.update(getattr(self, name).tobytes())
        return digest.hexdigest()[:16]

    def check_encoder(self, encoder_id: str, dim: int) -> None:
        """Refuse another encoder than the one the probe was fitted on.

        Raises
        ------
        CheckpointError
            The message names both.
        """
        if encoder_id != self.encoder_id or dim != self.dim:
            raise CheckpointError(
                f"The probe was fitted on encoder {self.encoder_id} (embeddings of "
                f"{self.dim}), and this is encoder {encoder_id} (embeddings of {dim}). "
                "Choose the probe's own encoder, or fit a probe on this one."
            )

    def probabilities(
        self, embeddings: np.ndarray, *, encoder_id: str | None = None
    ) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        embeddings
            (M, D) float.
        encoder_id
            Of the encoder that made them; None: taken on trust.

        Returns
        -------
        np.ndarray
            (M, K) float32; rows sum to 1.

        Raises
        ------
        CheckpointError
            If they come from another encoder, or one of another width.
        """
        unnamed = encoder_id is None and embeddings.shape[-1] == self.dim
        if not unnamed:
            self.check_encoder(encoder_id or "of unknown id", embeddings.shape[-1])
        standard = (np.asarray(embeddings, np.float32) - self.mean) / self.std
        logits = (standard @ self.weight.T + self.bias) / np.float32(self.temperature)
        return softmax(logits, axis=-1).astype(np.float32, copy=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the probe beside ``path`` and rename it."""
        header = {name: getattr(self, name) for name in HEADER_READERS}
        text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
        tensors = {
            name: torch.from_numpy(getattr(self, name).copy()) for name in ARRAYS
        }
        files.write_tensor_file(path, tensors, metadata={PROBE_KEY: text})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read a probe that may come from anyone.

        Raises
        ------
        CheckpointError
            If anything is odd; the message names the file, what is wrong and the cure.
        """
        file = files.open_tensor_file(path)
        header = _header(file)
        _check_entries(file, num_classes=len(header["class_names"]))
        arrays: dict[str, Any] = {k: v.numpy() for k, v in file.read().items()}
        try:
            return cls(**arrays, **header)
        except CheckpointError as error:
            raise CheckpointError(f"{file.path.name}: {error}") from error


def _header(file: TensorFile) -> dict[str, Any]:
    """Return the fields of a probe's JSON header, their types checked."""
    if PROBE_KEY not in file.metadata:
        held = (HELD[key] for key in HELD if key in file.metadata)
        what = next(held, "no file of a probe")
        raise files.refused(
            file.path, f"is {what}, not a probe", "Choose a probe saved by Teach."
        )
    try:
        values = files.parse_object(file.metadata[PROBE_KEY])
        check_format(values.pop("format", None))
        return files.read_fields(values, HEADER_READERS)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path.name}: {error}") from error
    except ValueError as error:
        raise files.refused(
            file.path, f"has a header that is not understood ({error})", "Fit it again."
        ) from error


def _check_entries(file: TensorFile, *, num_classes: int) -> None:
    """Refuse other tensors than the four of a probe, before they are read."""
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    dim = shapes.get("mean", (0,))[:1]
    wanted = {
        "mean": dim,
        "std": dim,
        "weight": (num_classes, *dim),
        "bias": (num_classes,),
    }
    types = {entry.dtype for entry in file.entries.values()}
    if shapes != wanted or types != {torch.float32}:
        raise files.refused(
            file.path,
            f"does not hold the float32 arrays {', '.join(ARRAYS)} of "
            f"{num_classes} classes",
            "Fit the probe again.",
        )


def _is_color(color: Any) -> bool:
    return len(color) == 3 and all(0 <= channel <= 255 for channel in color)


def _plain(value: Any) -> Any:
    """Accept any JSON object: what it means is for people."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!s:.40} is no JSON object")
    return value


HEADER_READERS = {
    "class_names": files.several(files.text),
    "class_colors": files.several(files.several(files.whole)),
    "encoder_id": files.text,
    "tile_px": files.whole,
    "mpp": files.number,
    "pooling": files.text,
    "temperature": files.number,
    "scores": _plain,
}
