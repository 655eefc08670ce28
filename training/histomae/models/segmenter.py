"""Segmenters: an encoder and the decoder that marks objects or areas, in one file.

The same file as :mod:`histomae.models.checkpoint` describes, with another header. The
encoder stands in it whole, under timm's names, because it may have learned along; the
decoder stands under ``decoder.``. So a segmenter needs no other file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from histomae.models import tensor_files as files
from histomae.models.checkpoint import (
    SEGMENTER_KEY,
    CheckpointHeader,
    Header,
    Kept,
    bad_header,
    checkpoint_tensors,
    current_versions,
    load_kept,
    load_tensors,
    read_kept_header,
    weights_id,
)
from histomae.models.classifier import Network
from histomae.models.dense import DenseModel
from histomae.models.encoders import build

if TYPE_CHECKING:
    import os

    from torch import nn

    from histomae.models.tensor_files import Entry

Color = tuple[int, int, int]
#: A decoder is light; a stranger's file that says more is refused.
WIDEST, MOST_CLASSES = 1024, 255


def _encoder_header(value: Any) -> CheckpointHeader:
    given = files.mapping(lambda one: one)(value)
    return CheckpointHeader(
        **files.read_fields(
            {**CheckpointHeader.later, **given}, CheckpointHeader.readers
        )
    )


@dataclass(frozen=True, kw_only=True)
class SegmenterHeader(Header):
    """What a segmenter says of itself; K classes."""

    key = SEGMENTER_KEY
    choose = "Choose a segmenter: 'histomae segment teach' makes one"
    readers: ClassVar = {
        "encoder": _encoder_header,
        "began_with": files.text,
        "frozen": files.flag,
        "width": files.whole,
        "class_names": files.several(files.text),
        "class_colors": files.several(files.several(files.whole)),
        "areas": files.flag,
        "taught_by": files.text,
        "step": files.whole,
        "scores": files.mapping(lambda one: one),
        "versions": files.mapping(files.text),
    }

    encoder: CheckpointHeader
    """Of the encoder that it began with: its tiles, and how they were made."""
    began_with: str
    """Id of that encoder; with ``frozen`` it is the one inside."""
    frozen: bool
    width: int
    """Of the decoder."""
    class_names: tuple[str, ...]
    class_colors: tuple[Color, ...]
    """Red, green, blue, 0 to 255."""
    areas: bool
    """It tells areas of tissue apart, all of which are of a class; else it finds
    objects, and most of a picture is none."""
    taught_by: str
    """What was marked: the name of a data set, or ``slides``."""
    step: int
    """Optimizer updates made."""
    scores: dict[str, Any] = field(default_factory=dict)
    """How good it is and how that was measured; plain JSON."""
    versions: dict[str, str] = field(default_factory=current_versions)

    def __post_init__(self) -> None:
        colors = tuple(tuple(color) for color in self.class_colors)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "class_colors", colors)
        names = self.class_names
        if self.encoder.decoder is not None:
            raise bad_header("encoder", "one with a decoder", "one without")
        if not 1 <= len(set(names)) == len(names) <= MOST_CLASSES or "" in names:
            raise bad_header("class_names", names, "different names, one or more")
        if len(colors) != len(names) or not all(map(_is_color, colors)):
            raise bad_header("class_colors", colors, "one colour for each class")
        if not 1 <= self.width <= WIDEST:
            raise bad_header("width", self.width, f"from 1 to {WIDEST}")
        if self.step < 0:
            raise bad_header("step", self.step, "0 or more")

    @property
    def tile_px(self) -> int:
        """Side of the tiles that it sees."""
        return self.encoder.tile_px

    @property
    def mpp(self) -> float | None:
        """µm per pixel of these; None: whole pictures, of which nobody knows."""
        return self.encoder.mpp

    def expected_entries(self) -> dict[str, Entry]:
        """Return dtype and shape of each weight that it promises."""
        return files.entries_of(checkpoint_tensors(_bare_model(self)))


Segmenter = Kept[SegmenterHeader]


def load_segmenter(path: str | os.PathLike[str]) -> Segmenter:
    """Read a segmenter; it may come from anyone.

    Raises
    ------
    CheckpointError
        If anything is odd; the message names the file, what is wrong and the cure.
    """
    return load_kept(path, SegmenterHeader)


def read_segmenter_header(path: str | os.PathLike[str]) -> SegmenterHeader:
    """Read what a segmenter says of itself; quick, no tensor is read.

    Raises
    ------
    CheckpointError
        As :func:`load_segmenter`.
    """
    return read_kept_header(path, SegmenterHeader)


def segmenter_id(segmenter: Segmenter) -> str:
    """Return a short hash of all its weights."""
    return weights_id(segmenter.tensors)


def model_from(segmenter: Segmenter) -> DenseModel:
    """Build the model of a segmenter, in eval mode, on the CPU."""
    model = _bare_model(segmenter.header)
    model.to_empty(device="cpu")
    load_tensors(model, segmenter.tensors)
    return model.eval()


def network_of(module: nn.Module, header: CheckpointHeader) -> Network:
    """Return an encoder as what a decoder is put on."""
    return Network(
        module=module,
        tile_px=header.tile_px,
        mean=header.mean,
        std=header.std,
        width=header.encoder.embed_dim,
        pooling="mean",
    )


def _bare_model(header: SegmenterHeader) -> DenseModel:
    with torch.device("meta"):
        return DenseModel(
            network_of(build(header.encoder.encoder), header.encoder),
            len(header.class_names),
            width=header.width,
            generator=None,
        )


def _is_color(color: tuple[int, ...]) -> bool:
    return len(color) == 3 and all(0 <= channel <= 255 for channel in color)
