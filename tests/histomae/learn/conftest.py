"""A school small enough for tests: a tiny encoder, and a slide of tissue."""

from dataclasses import replace

import numpy as np
import pytest

from histomae.config import PretrainConfig
from histomae.models import vit


@pytest.fixture
def tiny_encoder(monkeypatch, one_thread):
    """Make ``vit_micro`` 16 wide with one block."""
    monkeypatch.setitem(vit.ENCODER_SIZES, "vit_micro", (16, 1, 2))


@pytest.fixture(scope="session")
def tissue_slide(make_slide):
    """A disc of spotted tissue on glass: 800 x 800 px at 0.5 µm/px."""
    side = 800
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side - 0.5
    inside = x**2 + y**2 < 0.45**2
    nuclei = np.kron(random.random((side // 8, side // 8)) < 0.3, np.ones((8, 8), bool))
    pixels = np.full((side, side, 3), 245, np.uint8)
    pixels[inside] = (225, 150, 190)
    pixels[inside & nuclei] = (90, 50, 130)
    noise = random.integers(-9, 10, pixels.shape)
    return make_slide((pixels + noise).clip(0, 255).astype(np.uint8), mpp=0.5)


@pytest.fixture(scope="session")
def quick(tissue_slide):
    """Settings of a training of 8 steps that takes a second."""

    def settings(**changes):
        config = PretrainConfig(
            slides=(str(tissue_slide),),
            encoder="vit_micro",
            tile_px=32,
            patch_size=8,
            crops_per_slide=60,
            held_out=0.1,
            decoder_dim=16,
            decoder_depth=1,
            decoder_heads=2,
            epochs=4,
            warmup_epochs=1,
            batch_size=20,
            micro_batch=8,
            base_lr=1e-2,
            device="cpu",
            precision="f32",
            threads=1,
            preview_every=4,
            save_every=3,
        )
        return replace(config, **changes)

    return settings
