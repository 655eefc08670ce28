"""Weights to start a training from: none, a checkpoint, timm's, or a file of weights.

Starting from weights is not resuming: only the encoder is taken, and it may come from a
model of another tile size, whose positions are then resampled.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # only the name of what torch.load raises
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from histomae.errors import CheckpointError, DownloadError
from histomae.models import tensor_files as files
from histomae.models.checkpoint import (
    HEADER_KEY,
    encoder_tensors,
    load_checkpoint,
    misfit,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor, nn

RANDOM = "random"
TIMM = "timm:"
#: What other programs put around a state dict, and in front of its names.
WRAPPERS = ("state_dict", "model")
PREFIXES = ("_orig_mod.", "module.", "model.", "encoder.", "backbone.")
#: What the models of each of timm's modules are called, and one of them.
TIMM_WORDS = {
    "vision_transformer": ("vision transformer", "vit_small_patch16_224.augreg_in21k"),
    "resnet": ("ResNet", "resnet50.a1_in1k"),
    "efficientnet": ("EfficientNet", "efficientnet_b2.ra_in1k"),
}
#: Parts that an encoder does without.
NOT_THE_ENCODER = ("decoder", "head", "mask_token", "fc_norm", "fc.", "classifier.")
#: What torch.load has been seen to raise on damaged or hostile files.
LOAD_ERRORS = (
    *(UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(AssertionError, MemoryError, OverflowError),
)


@dataclass(frozen=True)
class InitialWeights:
    """What an encoder was started from."""

    source: str
    mean: tuple[float, ...] | None = None
    """Of the pixels it was trained on, per channel, 0 to 1; None: unknown."""
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was left out, or resampled."""


class _Weights(NamedTuple):
    """Weights under timm's names, and the pixels they were trained on."""

    tensors: dict[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def init_encoder(encoder: nn.Module, source: str) -> InitialWeights:
    """Copy weights from ``source`` into an encoder.

    Parameters
    ----------
    encoder
        From :func:`histomae.models.encoders.build`; changed in place, or not at all.
    source
        ``random`` (the encoder keeps what it has), ``timm:NAME``, or the path of a
        checkpoint of ours, a safetensors file, or a PyTorch file of plain weights.

    Raises
    ------
    CheckpointError
        If the weights cannot be read or do not fit; the message names what does not.
    DownloadError
        If timm's weights cannot be fetched.
    """
    if source == RANDOM:
        return InitialWeights(source)
    if source.startswith(TIMM):
        weights = _timm_weights(encoder, source.removeprefix(TIMM))
    else:
        weights = _weights_of_file(Path(source).expanduser())
    weights, greyed = _greyed(encoder, weights)
    notes = _copy(encoder, weights.tensors, source)
    return InitialWeights(source, weights.mean, weights.std, (*greyed, *notes))


#: The first layers of the encoders: what takes pixels.
FIRST_LAYERS = ("patch_embed.proj", "conv1", "conv_stem")
#: Of pixels from 0 to 1, where weights do not say it: those of ImageNet.
USUAL_MEAN, USUAL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def usual_pixels(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std of pixels from 0 to 1: ImageNet's; of one, their mean."""
    if channels == 1:
        return (sum(USUAL_MEAN) / 3,), (sum(USUAL_STD) / 3,)
    return USUAL_MEAN, USUAL_STD


def _greyed(encoder: nn.Module, weights: _Weights) -> tuple[_Weights, tuple[str, ...]]:
    """Return weights for one channel, where they are of three and the encoder has one.

    The weights of the three are summed, each in the units of its own channel, so that a
    grey picture gives what it gave in three equal channels. Where the layer has a bias
    also the channels' means are exact; else the grey's is chosen so that they are on
    average.
    """
    mine, tensors = encoder.state_dict(), weights.tensors
    for layer in FIRST_LAYERS:
        name, bias = f"{layer}.weight", f"{layer}.bias"
        have, want = tensors.get(name), mine.get(name)
        if have is None or want is None or have.ndim != 4:
            continue
        if (have.shape[1], want.shape[1]) != (3, 1):
            continue
        mean = torch.tensor(weights.mean or USUAL_MEAN, device=have.device)
        std = torch.tensor(weights.std or USUAL_STD, device=have.device)
        usual = usual_pixels(1)
        if weights.mean is not None and weights.std is not None:
            usual = (sum(weights.mean) / 3,), (sum(weights.std) / 3,)
        (grey_mean,), (grey_std,) = usual
        each = have.float() / std.view(1, 3, 1, 1)
        changed = {name: each.sum(1, keepdim=True) * grey_std}
        if bias in tensors:
            shift = (each * (grey_mean - mean).view(1, 3, 1, 1)).sum((1, 2, 3))
            changed[bias] = tensors[bias].float() + shift
        note = "The weights of three colour channels were summed up for one grey."
        return _Weights({**tensors, **changed}, *usual), (note,)
    return weights, ()


def load_weights_file(
    path: str | os.PathLike[str], *, without: tuple[str, ...] = NOT_THE_ENCODER
) -> dict[str, Tensor]:
    """Read an encoder's weights from a file of another program.

    Safetensors, or a PyTorch file, of which only plain tensors are read and nothing in
    it is run. Wrappers and prefixes are taken off, and what then begins with a word of
    ``without`` is left out: decoder and head.

    Returns
    -------
    dict[str, Tensor]
        Under timm's names, if the file has them.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise files.unreadable(path, FileNotFoundError(2, "no such file"))
    if files.is_tensor_file(path):
        tensors = files.open_tensor_file(path).read()
    else:
        tensors = _unwrapped(path, _load_torch(path))
    return _bare_names(path, tensors, without)


def _weights_of_file(path: Path) -> _Weights:
    """Return weights, mean and std of a checkpoint of ours, or of another's file."""
    if path.is_file() and files.is_tensor_file(path):
        metadata = files.open_tensor_file(path).metadata
        if HEADER_KEY in metadata:
            found = load_checkpoint(path)
            header, tensors = found.header, encoder_tensors(found.tensors)
            return _Weights(tensors, header.mean, header.std)
    return _Weights(load_weights_file(path))


def _load_torch(path: Path) -> Any:
    """Unpickle plain tensors and containers; anything else in the file is refused."""
    cure = "Choose a .safetensors file, or save the bare state dict of the model."
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        # A path that ends in .safetensors would be memory-mapped.
        with path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise files.refused(
            path, f"holds no plain weights that can be read ({reason})", cure
        ) from error


def _check_zip(path: Path) -> None:
    """Refuse archives that torch.save does not write: programs, and zip bombs."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = {member.filename.rpartition("/")[2] for member in members}
    if "data.pkl" not in names or "constants.pkl" in names:
        raise ValueError("an archive of something else, or a program")
    unpacked = sum(member.file_size for member in members)
    if unpacked > path.stat().st_size or len(members) > files.MAX_ENTRIES:
        raise ValueError("the archive unpacks to more than its size")


def _unwrapped(path: Path, value: Any) -> dict[str, Tensor]:
    """Return the state dict inside what a file held."""
    for _ in WRAPPERS:
        for wrapper in WRAPPERS:
            if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
                value = value[wrapper]
    if not isinstance(value, dict):
        raise files.refused(
            path, "holds no dictionary of weights", "Save the model's state dict."
        )
    tensors = {k: v for k, v in value.items() if isinstance(v, torch.Tensor)}
    if len(tensors) > files.MAX_ENTRIES or not all(isinstance(k, str) for k in tensors):
        raise files.refused(
            path, "has no names for its weights", "Save the model's state dict."
        )
    return tensors


def _bare_names(
    path: Path, tensors: Mapping[str, Tensor], without: tuple[str, ...]
) -> dict[str, Tensor]:
    """Take prefixes off the names and leave out what is not wanted."""
    bare: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        name = _without_prefixes(full_name)
        if name.startswith(without):
            continue
        if name in bare:
            raise files.refused(
                path,
                f"has two weights for {name[:100]}",
                "Save the state dict of one encoder only.",
            )
        bare[name] = tensor
    return bare


def _without_prefixes(name: str) -> str:
    """Take off all known prefixes, in whatever order they stand."""
    prefix = next((p for p in PREFIXES if name.startswith(p)), None)
    return name if prefix is None else _without_prefixes(name.removeprefix(prefix))


def _timm_weights(encoder: nn.Module, name: str) -> _Weights:
    """Return weights, mean and std of a pretrained model that timm knows by name."""
    kind = type(encoder).__module__.rpartition(".")[2]
    known = timm.list_models(module=kind, pretrained=True)
    if name not in known and name not in {full.split(".")[0] for full in known}:
        words, example = TIMM_WORDS.get(kind, (kind, known[0]))
        raise CheckpointError(
            f"timm has no pretrained {words} named {name[:100]!r}. Choose one of "
            f"timm.list_models(module={kind!r}, pretrained=True), such as "
            f"{TIMM}{example}."
        )
    with torch.device("meta"):  # whether it fits is known before anything is fetched
        bare = timm.create_model(name, num_classes=0, pretrained=False)
    bare_weights, _ = _greyed(encoder, _Weights(bare.state_dict()))
    _resampled(encoder, bare_weights.tensors, f"{TIMM}{name}")
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, num_classes=0, pretrained=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DownloadError(
            f"The weights of {TIMM}{name} could not be fetched ({error!s:.200}). Check "
            "the connection, or name a file of weights instead."
        ) from error
    settings = model.pretrained_cfg
    return _Weights(model.state_dict(), tuple(settings["mean"]), tuple(settings["std"]))


def _copy(
    encoder: nn.Module, tensors: Mapping[str, Tensor], source: str
) -> tuple[str, ...]:
    """Copy weights that fit; return what was done to make them fit."""
    fitting, notes = _resampled(encoder, tensors, source)
    for name, tensor in fitting.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source} holds numbers in {name} that are not finite. Choose other "
                "weights."
            )
    encoder.load_state_dict(fitting)
    return notes


def _resampled(
    encoder: nn.Module, tensors: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return weights as float32, their positions resampled to the encoder's grid.

    Raises
    ------
    CheckpointError
        If they do not fit then.
    """
    wide = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    notes: tuple[str, ...] = ()
    positions = wide.get("pos_embed")
    if positions is not None and isinstance(encoder, VisionTransformer):
        wide["pos_embed"] = resampled_positions(encoder, positions)
    if positions is not wide.get("pos_embed"):
        grid: Any = encoder.patch_embed
        side, (rows, columns) = _grid_side(positions), grid.grid_size
        notes = (
            f"Positions were resampled from {side} x {side} patches to "
            f"{columns} x {rows}.",
        )
    difference = misfit(files.entries_of(wide), files.entries_of(encoder.state_dict()))
    if difference:
        raise CheckpointError(
            f"The weights of {source} do not fit the encoder: {difference}. Choose the "
            "encoder and patch_size they were trained with, or init_from random."
        )
    return wide, notes


def resampled_positions(encoder: VisionTransformer, positions: Tensor) -> Tensor:
    """Return a table of positions (1, T, D) resampled to the encoder's grid.

    One that fits, or is of no square grid, comes back itself.
    """
    grid, side = encoder.patch_embed.grid_size, _grid_side(positions)
    if not side or (side, side) == tuple(grid):
        return positions
    return resample_abs_pos_embed(
        positions, new_size=list(grid), old_size=[side, side], num_prefix_tokens=1
    )


def _grid_side(positions: Tensor | None) -> int:
    """Return the side of the square grid behind a table of positions; 0 for none."""
    if positions is None or positions.ndim != 3 or positions.shape[1] < 2:
        return 0
    side = math.isqrt(positions.shape[1] - 1)
    return side if side * side == positions.shape[1] - 1 else 0
