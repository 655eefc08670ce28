"""Checkpoints of PAMA: encoders of whole slides, beside those of tiles.

The same file as :mod:`histomae.models.checkpoint` describes, with another header: it
says of which tile features the model is made, and which slides it has seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from histomae.errors import CheckpointError
from histomae.models import tensor_files as files
from histomae.models.checkpoint import (
    COMMON_READERS,
    SLIDE_KEY,
    Kept,
    PretrainedHeader,
    bad_header,
    checkpoint_tensors,
    encoder_tensors,
    load_kept,
    load_tensors,
    read_kept_header,
)
from histomae.models.feature_spec import FeatureSpec
from histomae.models.pama import Pama, PamaEncoder, PamaSpec

if TYPE_CHECKING:
    import os
    from typing import Self

    from histomae.models.tensor_files import Entry

#: Hexadecimal digits that stand for a slide's name.
NAME_DIGITS = 8


FEATURE_READERS = {
    "encoder": files.text,
    "encoder_id": files.optional(files.text),
    "pooling": files.optional(files.text),
    "width": files.whole,
    "tile_px": files.optional(files.whole),
    "mpp": files.optional(files.number),
    "step_px": files.optional(files.number),
    "magnification": files.optional(files.number),
}


def _features(value: Any) -> FeatureSpec:
    values = files.mapping(lambda one: one)(value)
    return FeatureSpec(**files.read_fields(values, FEATURE_READERS))


def _model(value: Any) -> PamaSpec:
    readers = dict.fromkeys(PamaSpec.__dataclass_fields__, files.whole)
    readers["compat"] = files.flag
    values = files.mapping(lambda one: one)(value)
    return PamaSpec(**files.read_fields(values, readers))


@dataclass(frozen=True, kw_only=True)
class SlideHeader(PretrainedHeader):
    """What a checkpoint of an encoder of slides says of itself."""

    key = SLIDE_KEY
    choose = "Choose a run with the method pama, or its checkpoints/last.safetensors"
    readers: ClassVar = {
        **COMMON_READERS,
        "architecture": files.text,
        "model": _model,
        "has_decoder": files.flag,
        "features": _features,
        "seen": files.several(files.text),
    }
    #: It looks at no pixels.
    mean: ClassVar[tuple[float, ...]] = ()
    std: ClassVar[tuple[float, ...]] = ()

    architecture: str
    """Such as ``pama_small``."""
    model: PamaSpec
    has_decoder: bool
    features: FeatureSpec
    """How the tiles became vectors."""
    seen: tuple[str, ...]
    """Of the slides that it was trained on: see :func:`name_digits`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.feature_dim != self.features.width:
            raise bad_header(
                "feature_dim", self.model.feature_dim, f"{self.features.width}"
            )

    def expected_entries(self) -> dict[str, Entry]:
        """Return dtype and shape of each weight that it promises."""
        with torch.device("meta"):
            if not self.has_decoder:
                return files.entries_of(PamaEncoder(self.model).state_dict())
            return files.entries_of(checkpoint_tensors(Pama(self.model)))

    def without_decoder(self) -> Self:
        """Return the header of the encoder alone."""
        return replace(self, has_decoder=False)

    def has_seen(self, slide: str) -> bool:
        """Tell whether a slide of this name was trained on."""
        return name_digits(slide) in self.seen


SlideCheckpoint = Kept[SlideHeader]


def name_digits(slide: str) -> str:
    """Return what stands for a slide's name: it is short, and tells no patient."""
    return hashlib.sha256(slide.encode()).hexdigest()[:NAME_DIGITS]


def load_slide_checkpoint(path: str | os.PathLike[str]) -> SlideCheckpoint:
    """Read a checkpoint of PAMA; it may come from anyone.

    Raises
    ------
    CheckpointError
        If anything is odd; the message names the file, what is wrong and the cure.
    """
    return load_kept(path, SlideHeader)


def read_slide_header(path: str | os.PathLike[str]) -> SlideHeader:
    """Read what a checkpoint of PAMA says of itself; quick, no tensor is read.

    Raises
    ------
    CheckpointError
        As :func:`load_slide_checkpoint`.
    """
    return read_kept_header(path, SlideHeader)


def slide_encoder_from(checkpoint: SlideCheckpoint) -> PamaEncoder:
    """Build the encoder of a checkpoint, in eval mode, on the CPU."""
    with torch.device("meta"):
        encoder = PamaEncoder(checkpoint.header.model)
    encoder.to_empty(device="cpu")
    encoder.load_state_dict(encoder_tensors(checkpoint.tensors))
    return encoder.eval()


def pama_from(checkpoint: SlideCheckpoint) -> Pama:
    """Build the whole model of a checkpoint, in eval mode, on the CPU.

    Raises
    ------
    CheckpointError
        If the checkpoint holds the encoder alone.
    """
    if not checkpoint.header.has_decoder:
        raise CheckpointError(
            "The checkpoint holds the encoder alone, and predicting tiles needs the "
            "decoder. Choose checkpoints/last.safetensors of the run."
        )
    with torch.device("meta"):
        model = Pama(checkpoint.header.model)
    model.to_empty(device="cpu")
    load_tensors(model, checkpoint.tensors)
    return model.eval()
