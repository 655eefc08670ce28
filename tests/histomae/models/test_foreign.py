"""Encoders of other people embed as timm's models do, and what does not fit is named.

Fetching is stood in for: weights are drawn, not downloaded.
"""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from histomae.errors import CheckpointError, ConfigError, DownloadError
from histomae.models.foreign import foreign_encoder


def made(name, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return timm.create_model(name, **settings).eval()


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def without_network(monkeypatch):
    """Draw pretrained weights; return the models made with them."""
    create, fetched = timm.create_model, []

    def draw(name, *, pretrained=False, **settings):
        model = create(name, **settings)
        if pretrained:
            torch.manual_seed(3)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            fetched.append(model)
        return model

    monkeypatch.setattr(timm, "create_model", draw)
    return fetched


def test_a_name_of_timm(without_network, pictures):
    state = torch.get_rng_state()
    found = foreign_encoder("timm:test_vit.r160_in1k")
    assert torch.equal(torch.get_rng_state(), state)
    (model,) = without_network
    assert found.model is model
    assert not found.model.training
    assert (found.name, found.tile_px, found.width) == ("test_vit.r160_in1k", 160, 64)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert found.model(pictures).shape == (2, 64)
    assert len(found.encoder_id) == 16


def test_transformers_are_made_for_the_tile(without_network):
    found = foreign_encoder("timm:test_vit", tile_px=96)
    assert found.tile_px == 96
    assert found.model.patch_embed.grid_size == (6, 6)
    found = foreign_encoder("timm:test_resnet", tile_px=96)
    assert (found.tile_px, found.width) == (96, 96)


def test_the_id_is_of_weights_and_normalisation(without_network):
    one, again, darker = (
        foreign_encoder("timm:test_vit", mean=mean).encoder_id
        for mean in (None, (0.5, 0.5, 0.5), (0.4, 0.5, 0.5))
    )
    assert one == again != darker


@pytest.mark.parametrize("name", ["test_vit17", "vit", "owner/name", ""])
def test_a_name_that_timm_does_not_know(name):
    with pytest.raises(CheckpointError, match="no pretrained model named"):
        foreign_encoder(f"timm:{name}")


def test_without_network_the_cure_is_named(monkeypatch):
    def offline(name, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    for name in ("test_vit", "hf-hub:owner/name"):
        with pytest.raises(DownloadError, match=f"timm:{name} could not be fetched"):
            foreign_encoder(f"timm:{name}")


# Files of weights ------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"]
)
def test_a_file_for_any_model_of_timm(architecture, tmp_path, pictures):
    """With its classifier, as it would be found anywhere."""
    model = made(architecture)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    found = foreign_encoder(str(tmp_path / "w.pth"), architecture=architecture)
    model.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(found.model(pictures), model(pictures))
    assert (found.name, found.tile_px) == (architecture, 160)


def test_layer_scale_is_found_in_the_weights(tmp_path, pictures):
    model = made("test_vit", init_values=0.3, num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = foreign_encoder(str(tmp_path / "w.safetensors"), architecture="test_vit")
    with torch.no_grad():
        torch.testing.assert_close(found.model(pictures), model(pictures))


def test_positions_are_resampled_to_the_tile(tmp_path):
    model = made("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = foreign_encoder(
        str(tmp_path / "w.safetensors"), architecture="test_vit", tile_px=224
    )
    assert found.model.pos_embed.shape == (1, 1 + 14 * 14, 64)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "architecture: .* does not say of what"),
        ({"architecture": "vit_tinny"}, ConfigError, "no model named 'vit_tinny'"),
        (
            {"architecture": "test_vit2"},
            CheckpointError,
            r"w\.safetensors do not fit test_vit2: missing",
        ),
        (
            {"architecture": "test_vit", "std": (1.0, 0.0, 1.0)},
            ConfigError,
            "not of three channels",
        ),
        (
            {"architecture": "test_vit", "tile_px": 100},
            ConfigError,
            "patches of 16 px, which do not divide 100 px",
        ),
    ],
)
def test_what_does_not_fit(settings, error, message, tmp_path):
    save_file(made("test_vit").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(error, match=message):
        foreign_encoder(str(tmp_path / "w.safetensors"), **settings)


def test_a_tile_that_the_model_cannot_take(tmp_path):
    save_file(made("test_convnext").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="test_convnext takes no tile of 1 px"):
        foreign_encoder(
            str(tmp_path / "w.safetensors"), architecture="test_convnext", tile_px=1
        )


def test_a_tile_that_a_pretrained_model_cannot_take(without_network):
    with pytest.raises(ConfigError, match="do not divide 100 px"):
        foreign_encoder("timm:test_vit", tile_px=100)
