"""A small model and its checkpoint, for the examination."""

import pytest
import torch

from histomae.infer.encoder import TileEncoder
from histomae.models.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    checkpoint_tensors,
    load_checkpoint,
    save_checkpoint,
)
from histomae.models.mae import DecoderSpec, MaskedAutoencoder
from histomae.models.vit import EncoderSpec

SPEC = EncoderSpec(tile_px=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
DECODER = DecoderSpec(dim=16, depth=1, heads=2)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Small matrices."""


@pytest.fixture(scope="session")
def make_checkpoint():
    """Return a function that makes an untrained checkpoint: ``seed``, ``norm_pix``."""

    def make(seed=1, *, norm_pix=True):
        model = MaskedAutoencoder(
            SPEC,
            decoder_dim=DECODER.dim,
            decoder_depth=DECODER.depth,
            decoder_heads=DECODER.heads,
            norm_pix=norm_pix,
            generator=torch.Generator().manual_seed(seed),
        )
        header = CheckpointHeader(
            architecture="vit_test_patch8_32",
            encoder=SPEC,
            decoder=DECODER,
            method="mae",
            mask_ratio=0.75,
            norm_pix=norm_pix,
            mean=(0.7, 0.5, 0.65),
            std=(0.2, 0.25, 0.18),
            tile_px=32,
            mpp=1.0,
            mpp_given=False,
            step=12,
            config_hash="0123abcd",
        )
        return Checkpoint(header, checkpoint_tensors(model))

    return make


@pytest.fixture
def write_checkpoint(make_checkpoint, tmp_path):
    """Return a function that writes one and returns its path."""

    def write(seed=1, *, norm_pix=True, decoder=True, name="last.safetensors"):
        made = make_checkpoint(seed, norm_pix=norm_pix)
        made = made if decoder else made.encoder_only()
        save_checkpoint(tmp_path / name, made.header, made.tensors)
        return tmp_path / name

    return write


@pytest.fixture
def encoder(write_checkpoint):
    path = write_checkpoint()
    return TileEncoder(load_checkpoint(path), torch.device("cpu"))
