"""A small slide with tissue, and a small model that looks at it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from histomae.infer.encoder import TileEncoder
from histomae.models.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    checkpoint_tensors,
    save_checkpoint,
)
from histomae.models.mae import DecoderSpec, MaskedAutoencoder
from histomae.models.probe import Probe
from histomae.models.vit import EncoderSpec
from histomae.slides.grid import TileGrid
from histomae.slides.slide import Slide
from tests.listening import events_of

SPEC = EncoderSpec(tile_px=32, patch_size=8, embed_dim=24, depth=3, num_heads=3)
DECODER = DecoderSpec(dim=16, depth=1, heads=2)
MPP = 1.0
#: Of the slide: pixels that are not square, a size that no tile divides.
SLIDE_MPP, SIZE = (0.4, 0.5), (1130, 870)


def small_model(*, seed=0, norm_pix=True):
    """A model with random weights, large enough that its answers differ."""
    generator = torch.Generator().manual_seed(seed)
    model = MaskedAutoencoder(
        SPEC,
        decoder_dim=DECODER.dim,
        decoder_depth=DECODER.depth,
        decoder_heads=DECODER.heads,
        norm_pix=norm_pix,
        generator=generator,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.mul_(3)
    return model


def header_of(model, **changes):
    fields = {
        "architecture": "vit_test_patch8_32",
        "encoder": SPEC,
        "decoder": DECODER,
        "method": "mae",
        "mask_ratio": 0.75,
        "norm_pix": model.norm_pix,
        "mean": (0.7, 0.5, 0.65),
        "std": (0.2, 0.25, 0.18),
        "tile_px": SPEC.tile_px,
        "mpp": MPP,
        "mpp_given": False,
        "step": 12,
        "config_hash": "0123abcd",
    }
    return CheckpointHeader(**{**fields, **changes})


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def checkpoint(model):
    return Checkpoint(header_of(model), checkpoint_tensors(model))


@pytest.fixture
def encoder(checkpoint):
    return TileEncoder(checkpoint, torch.device("cpu"))


@pytest.fixture
def bare_encoder(checkpoint):
    """The same without its decoder."""
    return TileEncoder(checkpoint.encoder_only(), torch.device("cpu"))


@pytest.fixture
def checkpoint_path(checkpoint, tmp_path):
    save_checkpoint(
        tmp_path / "last.safetensors", checkpoint.header, checkpoint.tensors
    )
    return tmp_path / "last.safetensors"


@pytest.fixture
def other_encoder():
    """Of the same shape, with other weights."""
    model = small_model(seed=1)
    other = Checkpoint(header_of(model), checkpoint_tensors(model))
    return TileEncoder(other, torch.device("cpu"))


@pytest.fixture
def cohort(tissue_path, tmp_path):
    """Three slides of one content, in a folder."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.tiff", "b.tiff", "c.tiff"):
        shutil.copy(tissue_path, folder / name)
    return sorted(folder.iterdir())


@pytest.fixture
def probe(encoder):
    random = np.random.default_rng(0)
    return Probe(
        mean=np.zeros(24),
        std=np.ones(24),
        weight=random.normal(size=(3, 24)),
        bias=np.zeros(3),
        class_names=("Duct", "Stroma", "Fat"),
        class_colors=((0, 90, 180), (230, 160, 0), (0, 160, 120)),
        encoder_id=encoder.encoder_id,
        tile_px=SPEC.tile_px,
        mpp=MPP,
        pooling="class_token",
    )


@pytest.fixture(scope="session")
def tissue_path(make_slide):
    width, height = SIZE
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    inside = ((x / width - 0.5) / 0.4) ** 2 + ((y / height - 0.5) / 0.4) ** 2 < 1
    spots = random.random((height // 8 + 1, width // 8 + 1)) < 0.3
    nuclei = np.kron(spots, np.ones((8, 8), bool))[:height, :width]
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[inside] = (225, 150, 190)
    pixels[inside & nuclei] = (90, 50, 130)
    return make_slide(pixels, mpp=SLIDE_MPP)


@pytest.fixture
def slide(tissue_path):
    with Slide.open(tissue_path) as opened:
        yield opened


@pytest.fixture
def grid(slide, encoder):
    return TileGrid.over(slide, encoder.spec)


@pytest.fixture
def tiles():
    """Eight noisy tiles, each with its own colour; read-only, as slides give them."""
    random = np.random.default_rng(1)
    base = random.integers(60, 200, (8, 1, 1, 3))
    noise = random.integers(-50, 50, (8, 32, 32, 3))
    made = (base + noise).clip(0, 255).astype(np.uint8)
    made.flags.writeable = False
    return made


@pytest.fixture
def run():
    return events_of
