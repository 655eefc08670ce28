"""Checkpoints: weights with everything needed to use them.

A safetensors file. The encoder's parameters stand under timm's names, the decoder's
under ``decoder.``, the optimizer's state under ``optimizer.``, and what else a method
trains with (heads, teachers, centres) under ``training.``; the metadata hold a JSON
header. A file with the encoder alone is one that timm loads.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import timm
import torch

from histomae import __version__
from histomae.errors import CheckpointError
from histomae.models import tensor_files as files
from histomae.models.cnn import CnnSpec
from histomae.models.encoders import AnySpec, build
from histomae.models.mae import DecoderSpec, MaskedAutoencoder
from histomae.models.vit import EncoderSpec

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from typing import Self

    from torch import Tensor, nn

    from histomae.models.tensor_files import Entry, TensorFile

#: Key of the JSON header in the safetensors metadata, by what a file holds; all are
#: here so that one can be told from the other.
HEADER_KEY = "histomae"
SLIDE_KEY = "histomae-slides"
PROBE_KEY = "histomae-probe"
SEGMENTER_KEY = "histomae-segmenter"
HELD = {
    HEADER_KEY: "an encoder of tiles",
    SLIDE_KEY: "an encoder of slides",
    PROBE_KEY: "a probe",
    SEGMENTER_KEY: "a segmenter",
}
#: What to do with what is no encoder, after where one is found.
LOAD_AS = {
    PROBE_KEY: ", and load this as probe",
    SEGMENTER_KEY: "; this is for 'histomae segment', and for the dock Segment",
}
FORMAT = 1
DECODER, OPTIMIZER, TRAINING = "decoder.", "optimizer.", "training."
#: What is there only to go on with the training.
STATE = (OPTIMIZER, TRAINING)
#: AdamW keeps two numbers per weight; twice that leaves room for another optimizer.
MOST_STATE_PER_WEIGHT = 4
#: Room for steps and random states, which do not grow with the weights.
SMALL_STATE_BYTES = 2**20
#: Heads and teachers do not grow with the encoder; this is more than any has.
LARGEST_HEADS_BYTES = 2**28


def current_versions() -> dict[str, str]:
    """Return the versions of what shapes a checkpoint."""
    return {
        "histomae": __version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
    }


class Header(ABC):
    """What every checkpoint says of itself, whatever it holds: a frozen dataclass."""

    key: ClassVar[str]
    """Of its JSON in the metadata."""
    choose: ClassVar[str]
    """Where one like it is found."""
    readers: ClassVar[dict[str, Callable[[Any], Any]]]
    """Of its fields."""
    later: ClassVar[dict[str, Any]] = {}
    """Of fields that older files lack: what held for them."""

    @abstractmethod
    def expected_entries(self) -> dict[str, Entry]:
        """Return dtype and shape of each weight that it promises."""

    def to_json(self) -> str:
        """Return the header as one JSON object."""
        facts: Any = asdict(self)  # type: ignore[call-overload]
        return json.dumps({"format": FORMAT, **facts}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a header; nothing may be missing, unknown or of another type.

        Raises
        ------
        CheckpointError
            If it is not as :meth:`to_json` writes it.
        """
        try:
            values = {**cls.later, **files.parse_object(text)}
            check_format(values.pop("format", None))
            return cls(**files.read_fields(values, cls.readers))
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(
                f"The header is not understood ({error}). Load a checkpoint written by "
                "napari-histomae, or its weights as start for a training."
            ) from error


@dataclass(frozen=True, kw_only=True)
class PretrainedHeader(Header):
    """What a checkpoint of a pretraining says of itself."""

    method: str
    mask_ratio: float
    step: int
    """Optimizer updates made."""
    config_hash: str
    """Of the run's settings."""
    versions: dict[str, str] = field(default_factory=current_versions)

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio <= 1:
            raise bad_header("mask_ratio", self.mask_ratio, "a share from 0 to 1")
        if self.step < 0:
            raise bad_header("step", self.step, "0 or more")

    @abstractmethod
    def without_decoder(self) -> Self:
        """Return the header of the encoder alone."""


#: Of the fields that every header of a pretraining has.
COMMON_READERS: dict[str, Callable[[Any], Any]] = {
    "method": files.text,
    "mask_ratio": files.number,
    "step": files.whole,
    "config_hash": files.text,
    "versions": files.mapping(files.text),
}


def check_format(value: Any) -> None:
    """Refuse a header of another format than this version writes."""
    if value != FORMAT:
        raise CheckpointError(
            f"The header has format {value!r}, this version reads {FORMAT}. Use the "
            "version of napari-histomae that wrote the file, or a newer one."
        )


def bad_header(name: str, value: Any, wanted: str) -> CheckpointError:
    """Return the error for a field of a header."""
    return CheckpointError(
        f"The header's {name} is {value!r:.80} and must be {wanted}. Correct it, or "
        "use another checkpoint."
    )


CNN_READERS = {"name": files.text, "tile_px": files.whole, "in_chans": files.whole}


def _encoder_spec(value: Any) -> AnySpec:
    if isinstance(value, dict) and "name" in value:
        return CnnSpec(**files.read_fields(value, CNN_READERS))
    values = files.mapping(files.whole)(value)
    readers = dict.fromkeys(EncoderSpec.__dataclass_fields__, files.whole)
    return EncoderSpec(**files.read_fields(values, readers))


def _decoder_spec(value: Any) -> DecoderSpec | None:
    if value is None:
        return None
    values = files.mapping(files.whole)(value)
    readers = dict.fromkeys(DecoderSpec.__dataclass_fields__, files.whole)
    return DecoderSpec(**files.read_fields(values, readers))


@dataclass(frozen=True, kw_only=True)
class CheckpointHeader(PretrainedHeader):
    """What a checkpoint of an encoder of tiles says of itself."""

    key = HEADER_KEY
    choose = "Choose checkpoints/encoder.safetensors of a run"
    readers: ClassVar = {
        **COMMON_READERS,
        "architecture": files.text,
        "encoder": _encoder_spec,
        "decoder": _decoder_spec,
        "norm_pix": files.flag,
        "mean": files.several(files.number),
        "std": files.several(files.number),
        "tile_px": files.whole,
        "mpp": files.optional(files.number),
        "mpp_given": files.flag,
        "scan_sector": files.flag,
    }
    later: ClassVar = {"scan_sector": False}

    architecture: str
    """Name after timm's pattern, such as ``vit_small_patch16_224``."""
    encoder: AnySpec
    decoder: DecoderSpec | None
    """None: the file holds the encoder alone."""
    norm_pix: bool
    mean: tuple[float, ...]
    """Of each channel, on pixels from 0 to 1."""
    std: tuple[float, ...]
    tile_px: int
    mpp: float | None
    """Micrometres per pixel of the tiles it was trained on; None: whole pictures, of
    which nobody knows."""
    mpp_given: bool
    """A person supplied the mpp of one slide at least."""
    scan_sector: bool = False
    """Pictures were cropped to what an ultrasound device scanned, and grey."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        channels = self.encoder.in_chans
        if self.tile_px != self.encoder.tile_px:
            raise bad_header("tile_px", self.tile_px, f"{self.encoder.tile_px}")
        if self.decoder is not None and not isinstance(self.encoder, EncoderSpec):
            raise bad_header("decoder", self.decoder, "null: convolutions have none")
        if self.mpp is not None and not 0 < self.mpp <= 1000:
            raise bad_header("mpp", self.mpp, "µm per pixel, above 0")
        if len(self.mean) != channels:
            raise bad_header("mean", self.mean, f"{channels} numbers")
        if len(self.std) != channels or min(self.std) <= 0:
            raise bad_header("std", self.std, f"{channels} numbers above 0")

    @property
    def known_mpp(self) -> float:
        """``mpp`` of a model that looks at slides.

        Raises
        ------
        CheckpointError
            If it was trained on pictures.
        """
        if self.mpp is None:
            raise CheckpointError(
                "This model was trained on whole pictures without micrometres, and "
                "cannot say at which pixel size to read a slide. Choose one that was "
                "trained on slides."
            )
        return self.mpp

    def expected_entries(self) -> dict[str, Entry]:
        """Return dtype and shape of each weight that it promises."""
        with torch.device("meta"):
            if self.decoder is None:
                return files.entries_of(build(self.encoder).state_dict())
            model = _bare_model(self, self.decoder)
            return files.entries_of(checkpoint_tensors(model))

    def without_decoder(self) -> Self:
        """Return the header of the encoder alone."""
        return replace(self, decoder=None)


H = TypeVar("H", bound=Header)
P = TypeVar("P", bound=PretrainedHeader)


@dataclass(frozen=True, eq=False)
class Kept(Generic[H]):
    """A header and the tensors it describes."""

    header: H
    tensors: dict[str, Tensor]

    @cached_property
    def encoder_id(self) -> str:
        """Short hash of the encoder's weights."""
        return encoder_id(self.tensors)

    def encoder_only(self: Kept[P]) -> Kept[P]:
        """Return the same without decoder and state of the training."""
        return Kept(self.header.without_decoder(), encoder_tensors(self.tensors))


Checkpoint = Kept[CheckpointHeader]


def encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors of a checkpoint."""
    return {k: v for k, v in tensors.items() if not k.startswith((DECODER, *STATE))}


def encoder_id(tensors: Mapping[str, Tensor]) -> str:
    """Return a short hash of the encoder's weights: of names, types, shapes and bytes.

    Two files with one encoder have one id, whatever else they hold.
    """
    return weights_id(encoder_tensors(tensors))


def weights_id(tensors: Mapping[str, Tensor]) -> str:
    """Return a short hash of weights: of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


# Models and tensors ----------------------------------------------------------


def checkpoint_tensors(model: Any) -> dict[str, Tensor]:
    """Return a model's tensors under the names of a checkpoint; nothing is copied.

    Its ``decoder`` may be None.
    """
    found: dict[str, Tensor] = {**model.encoder.state_dict()}
    if model.decoder is not None:
        found |= {DECODER + k: v for k, v in model.decoder.state_dict().items()}
    return found


def load_tensors(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's weights into a model; the training's state is left alone.

    Raises
    ------
    CheckpointError
        If they do not fit; nothing is copied then.
    """
    weights = {k: v for k, v in tensors.items() if not k.startswith(STATE)}
    difference = misfit(
        files.entries_of(weights), files.entries_of(checkpoint_tensors(model))
    )
    if difference:
        raise CheckpointError(
            f"The weights do not fit the model: {difference}. Resume with the settings "
            "of the run that wrote them."
        )
    model.encoder.load_state_dict(encoder_tensors(weights))
    if model.decoder is not None:
        model.decoder.load_state_dict(
            {k[len(DECODER) :]: v for k, v in weights.items() if k.startswith(DECODER)}
        )


def training_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a model holds beside encoder and decoder, under ``training.``."""
    return {
        TRAINING + name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(("encoder.", DECODER))
    }


def load_training(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`training_tensors` returned.

    Raises
    ------
    CheckpointError
        If it is of another model; nothing is copied then.
    """
    found = {k: v for k, v in tensors.items() if k.startswith(TRAINING)}
    mine = training_tensors(model)
    difference = misfit(files.entries_of(found), files.entries_of(mine))
    if difference:
        raise CheckpointError(
            f"The training's state does not fit the model: {difference}. Resume with "
            "the settings of the run that wrote it."
        )
    for name, tensor in mine.items():
        tensor.copy_(found[name])


def encoder_from(checkpoint: Checkpoint) -> nn.Module:
    """Build the encoder of a checkpoint, in eval mode, on the CPU."""
    with torch.device("meta"):
        encoder = build(checkpoint.header.encoder)
    encoder.to_empty(device="cpu")
    encoder.load_state_dict(encoder_tensors(checkpoint.tensors))
    return encoder.eval()


def autoencoder_from(checkpoint: Checkpoint) -> MaskedAutoencoder:
    """Build the whole model of a checkpoint, in eval mode, on the CPU.

    Raises
    ------
    CheckpointError
        If the checkpoint holds the encoder alone.
    """
    if checkpoint.header.decoder is None:
        raise CheckpointError(
            "The checkpoint holds the encoder alone, and reconstructions need the "
            "decoder. Choose checkpoints/last.safetensors of a run of a masked "
            "autoencoder (mae, sd-mae)."
        )
    with torch.device("meta"):
        model = _bare_model(checkpoint.header, checkpoint.header.decoder)
    model.to_empty(device="cpu")
    load_tensors(model, checkpoint.tensors)
    return model.eval()


def _bare_model(header: CheckpointHeader, decoder: DecoderSpec) -> MaskedAutoencoder:
    assert isinstance(header.encoder, EncoderSpec)  # the header sees to it
    return MaskedAutoencoder(
        header.encoder,
        decoder_dim=decoder.dim,
        decoder_depth=decoder.depth,
        decoder_heads=decoder.heads,
        norm_pix=header.norm_pix,
    )


def misfit(found: Mapping[str, Entry], expected: Mapping[str, Entry]) -> str:
    """Say how two sets of tensors differ; empty where they agree."""
    both = sorted(found.keys() & expected.keys())
    shapes = [
        f"{name} is {_shape(found[name])} and not {_shape(expected[name])}"
        for name in both
        if found[name].shape != expected[name].shape
    ]
    dtypes = [
        f"{name} is {found[name].dtype} and not {expected[name].dtype}"
        for name in both
        if found[name].dtype != expected[name].dtype
    ]
    differences = [
        _listed("missing", sorted(expected.keys() - found.keys())),
        _listed("unexpected", sorted(found.keys() - expected.keys())),
        _listed("of another shape", shapes),
        _listed("of another type", dtypes),
    ]
    return "; ".join(filter(None, differences))


def _listed(what: str, names: list[str]) -> str:
    """Return the first few of many names after ``what``; empty for none."""
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(name[:100] for name in names[:3])}{more}"


def _shape(entry: Entry) -> str:
    return " x ".join(map(str, entry.shape)) or "a single number"


# Files -----------------------------------------------------------------------


def save_checkpoint(
    path: str | os.PathLike[str],
    header: Header,
    tensors: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint beside ``path`` and rename it.

    Parameters
    ----------
    path
        Ends in ``.safetensors`` by custom.
    header
        What the tensors are.
    tensors
        Float32 weights under the names of :func:`checkpoint_tensors`; any others begin
        with ``optimizer.`` or ``training.``.

    Raises
    ------
    CheckpointError
        If the tensors are not those that the header promises.
    """
    _check_entries(Path(path), header, files.entries_of(tensors))
    files.write_tensor_file(path, tensors, metadata={header.key: header.to_json()})


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of an encoder of tiles; it may come from anyone.

    Its header, names, types and shapes are checked before the tensors are read.

    Raises
    ------
    CheckpointError
        If anything is odd; the message names the file, what is wrong and the cure.
    """
    return load_kept(path, CheckpointHeader)


def load_kept(path: str | os.PathLike[str], kind: type[H]) -> Kept[H]:
    """Read a checkpoint with a header of one kind, as :func:`load_checkpoint`."""
    file, header = _open_checkpoint(path, kind)
    tensors = file.read()
    _check_finite(file.path, tensors)
    return Kept(header, tensors)


def read_header(path: str | os.PathLike[str]) -> CheckpointHeader:
    """Read what a checkpoint of an encoder of tiles says of itself, if its file fits.

    Quick: no tensor is read.

    Raises
    ------
    CheckpointError
        As :func:`load_checkpoint`.
    """
    return read_kept_header(path, CheckpointHeader)


def read_kept_header(path: str | os.PathLike[str], kind: type[H]) -> H:
    """Read a header of one kind, as :func:`read_header`."""
    return _open_checkpoint(path, kind)[1]


def held_in(path: str | os.PathLike[str]) -> str | None:
    """Return the key of what a file holds, one of ``HELD``; None: none of them.

    Raises
    ------
    CheckpointError
        If it is no safetensors file, or is damaged.
    """
    metadata = files.open_tensor_file(path).metadata
    return next((key for key in HELD if key in metadata), None)


def _open_checkpoint(
    path: str | os.PathLike[str], kind: type[H]
) -> tuple[TensorFile, H]:
    file = files.open_tensor_file(path)
    if kind.key not in file.metadata:
        raise _another_kind(file, kind)
    try:
        header = kind.from_json(file.metadata[kind.key])
    except CheckpointError as error:
        raise CheckpointError(f"{file.path.name}: {error}") from error
    _check_entries(file.path, header, file.entries)
    return file, header


def _another_kind(file: TensorFile, kind: type[Header]) -> CheckpointError:
    for key, held in HELD.items():
        if key in file.metadata:
            return files.refused(
                file.path,
                f"is {held}, not {HELD[kind.key]}",
                f"{kind.choose}{LOAD_AS.get(key, '')}.",
            )
    return files.refused(
        file.path,
        "has no header of napari-histomae",
        f"{kind.choose}; other weights can only start a training.",
    )


def _check_entries(path: Path, header: Header, entries: Mapping[str, Entry]) -> None:
    """Refuse a set of tensors that is not the one a header promises."""
    expected = header.expected_entries()
    weights = {k: v for k, v in entries.items() if not k.startswith(STATE)}
    difference = misfit(weights, expected)
    if difference:
        raise files.refused(
            path,
            f"does not hold the weights of its architecture: {difference}",
            "Choose another checkpoint, or make this one again.",
        )
    size = sum(entry.num_bytes for entry in expected.values())
    heads, state = (
        sum(e.num_bytes for k, e in entries.items() if k.startswith(prefix))
        for prefix in (TRAINING, OPTIMIZER)
    )
    most = MOST_STATE_PER_WEIGHT * (size + heads) + SMALL_STATE_BYTES
    if heads > LARGEST_HEADS_BYTES or state > most:
        raise files.refused(
            path,
            f"holds {state + heads} bytes of training state beside {size} of weights",
            "Load another checkpoint; no training of ours writes so much.",
        )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not name.startswith(STATE) and not bool(torch.isfinite(tensor).all()):
            raise files.refused(
                path,
                f"holds numbers in {name} that are not finite",
                "Its training went astray: load an earlier checkpoint.",
            )
