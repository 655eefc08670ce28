"""Encoders of other people: timm's pretrained models, or a file of weights for one.

They only embed. How their pixels are normalised and how large their tiles are comes
from timm's data configuration, or is given.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer

from histomae.errors import CheckpointError, ConfigError, DownloadError
from histomae.models import tensor_files as files
from histomae.models.checkpoint import encoder_id, misfit
from histomae.models.initial import (
    NOT_THE_ENCODER,
    TIMM,
    load_weights_file,
    resampled_positions,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Before the name of a repository that timm reads from the Hugging Face hub.
HUB = "hf-hub:"
#: What a layer scale begins with does not matter: the weights hold it.
LAYER_SCALE = {"init_values": 1e-5}


@dataclass(frozen=True, eq=False)
class ForeignEncoder:
    """A model that turns (N, 3, H, W) into (N, D), and the pictures it wants.

    ``model`` is in eval mode, on the CPU, H = W = ``tile_px``. ``mean`` and ``std``:
    of each channel, on pixels from 0 to 1. ``encoder_id`` is a short hash of weights
    and normalisation.
    """

    name: str
    model: nn.Module
    tile_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int
    """D."""
    encoder_id: str


def foreign_encoder(
    source: str,
    *,
    architecture: str | None = None,
    tile_px: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> ForeignEncoder:
    """Build an encoder with its weights.

    Parameters
    ----------
    source
        ``timm:NAME``, ``timm:hf-hub:OWNER/NAME``, or the path of a file of weights.
    architecture
        timm's name of the model that a file of weights is for.
    tile_px, mean, std
        Instead of what timm says of the model.

    Raises
    ------
    ConfigError
        If the architecture is missing or unknown, or takes no such tile.
    CheckpointError
        If timm has no such weights, or the file's do not fit; it names what does not.
    DownloadError
        If they cannot be fetched.
    """
    if source.startswith(TIMM):
        name = source.removeprefix(TIMM)
        model = _pretrained(name, tile_px)
    else:
        name = _known_architecture(architecture, source)
        model = _with_weights(name, Path(source).expanduser(), tile_px)
    wanted = resolve_model_data_config(model)
    tile_px = tile_px or int(wanted["input_size"][-1])
    mean = tuple(float(x) for x in mean or wanted["mean"])
    std = tuple(float(x) for x in std or wanted["std"])
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            "std", f"mean {mean} and std {std} are not of three channels. Give three."
        )
    weights = encoder_id(model.state_dict())
    made = hashlib.sha256(f"{name} {mean} {std} {weights}".encode()).hexdigest()[:16]
    width = _width(model, name, tile_px)
    return ForeignEncoder(name, model, tile_px, mean, std, width, made)


def _pretrained(name: str, tile_px: int | None) -> nn.Module:
    if not name.startswith(HUB) and not _is_pretrained(name):
        raise CheckpointError(
            f"timm has no pretrained model named {name[:100]!r}. Choose one of "
            "timm.list_models(pretrained=True), such as timm:vit_small_patch16_224, or "
            f"{TIMM}{HUB}OWNER/NAME from the Hugging Face hub."
        )
    try:
        return _built(name, tile_px, pretrained=True)
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise DownloadError(
            f"{TIMM}{name} could not be fetched ({error!s:.200}). Check the name and "
            "the connection, or name a file of weights with its architecture instead."
        ) from error


def _is_pretrained(name: str) -> bool:
    known = timm.list_models(pretrained=True)
    return name in known or name in {full.split(".")[0] for full in known}


def _known_architecture(architecture: str | None, source: str) -> str:
    if architecture is None:
        raise ConfigError(
            "architecture",
            f"{source} holds weights and does not say of what. Name timm's model, such "
            "as vit_small_patch16_224.",
        )
    if not timm.is_model(architecture):
        raise ConfigError(
            "architecture",
            f"timm has no model named {architecture[:100]!r}. Choose one of "
            "timm.list_models(), such as vit_small_patch16_224.",
        )
    return architecture


def _with_weights(name: str, path: Path, tile_px: int | None) -> nn.Module:
    tensors = load_weights_file(path, without=())
    scaled = any(key.endswith(".ls1.gamma") for key in tensors)
    model = _built(name, tile_px, **(LAYER_SCALE if scaled else {}))
    expected = files.entries_of(model.state_dict())
    settings: Any = model.pretrained_cfg
    head = settings.get("classifier") or ()
    dropped = (*NOT_THE_ENCODER, *([head] if isinstance(head, str) else head))
    weights: dict[str, Tensor] = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
        if key in expected or not key.startswith(dropped)
    }
    if isinstance(model, VisionTransformer) and "pos_embed" in weights:
        weights["pos_embed"] = resampled_positions(model, weights["pos_embed"])
    if difference := misfit(files.entries_of(weights), expected):
        raise CheckpointError(
            f"The weights of {path.name} do not fit {name}: {difference}. Name the "
            "architecture and tile_px they were trained with."
        )
    model.load_state_dict(weights)
    return model


def _built(name: str, tile_px: int | None, **wanted: Any) -> nn.Module:
    """Build a model without a head; transformers are made for the tile's size."""
    if tile_px is not None and not name.startswith(HUB):
        with torch.device("meta"):
            bare = timm.create_model(name, num_classes=0)
        patches: Any = getattr(bare, "patch_embed", None)
        if hasattr(patches, "img_size"):
            wanted["img_size"] = tile_px
            if tile_px % patches.patch_size[0]:
                raise ConfigError(
                    "tile_px",
                    f"{name} has patches of {patches.patch_size[0]} px, which do not "
                    f"divide {tile_px} px. Choose a multiple, or leave it out.",
                )
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(name, num_classes=0, **wanted)
    return model.eval()


@torch.inference_mode()
def _width(model: nn.Module, name: str, tile_px: int) -> int:
    """Return the width of what comes out, by trying."""
    try:
        found = tuple(model(torch.zeros(1, 3, tile_px, tile_px)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            "tile_px",
            f"{name} takes no tile of {tile_px} px ({error!s:.200}). Leave it "
            "out to have the model's own.",
        ) from error
    if len(found) != 2:
        raise CheckpointError(
            f"{name} gives no vector for a tile but numbers of the shape {found}. "
            "Choose another model."
        )
    return found[1]
