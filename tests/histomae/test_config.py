"""Settings are checked where they are made, and go to TOML and back."""

import tomllib
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from histomae.config import PretrainConfig, load_recipe, recipe_names
from histomae.errors import ConfigError


def test_toml_round_trip_of_the_defaults():
    config = PretrainConfig()
    assert PretrainConfig.from_toml(config.to_toml()) == config


def test_toml_round_trip_of_everything():
    config = PretrainConfig(
        slides=("a slide.svs", "folder/ö"),
        encoder="vit_tiny",
        init_from="timm:vit_tiny",
        tile_px=96,
        mpp=0.69,
        slide_mpp=0.25,
        allow_upsampling=True,
        patch_size=8,
        norm_pix=False,
        view_factors=(1.0, 1.5),
        projector_dims=(512, 64),
        micro_batch=4,
        grad_clip=1.0,
        threads=2,
        seed=7,
    )
    again = PretrainConfig.from_toml(config.to_toml())
    assert again == config
    for field in fields(config):
        assert type(getattr(again, field.name)) is type(getattr(config, field.name))


def test_what_is_none_is_left_out_of_toml():
    written = tomllib.loads(PretrainConfig().to_toml())
    assert "mpp" not in written
    assert written["slides"] == []
    assert written["mask_ratio"] == 0.75


def test_a_recipe_lists_only_differences():
    base = PretrainConfig(epochs=3, warmup_epochs=1, mpp=0.5)
    config = PretrainConfig.from_toml("seed = 4", base=base)
    assert config == replace(base, seed=4)


def test_whole_numbers_become_numbers():
    config = PretrainConfig.from_toml("warmup_epochs = 4\nmpp = 1")
    assert type(config.warmup_epochs) is float
    assert type(config.mpp) is float


def test_paths_become_text():
    config = PretrainConfig(slides=[Path("a.svs"), "b.svs"])
    assert config.slides == ("a.svs", "b.svs")
    assert PretrainConfig.from_toml(config.to_toml()) == config


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        PretrainConfig().epochs = 3


def test_pairs_need_a_batch_of_single_crops():
    with pytest.raises(ConfigError, match="batch_size: of one leaves mpcs nothing"):
        PretrainConfig(method="mpcs", batch_size=1)
    with pytest.raises(ConfigError, match="sampler: region-dense cuts crops of one"):
        PretrainConfig(method="mpcs", sampler="region-dense")


def test_convolutions_have_no_patches():
    config = PretrainConfig(method="mpcs", encoder="efficientnet_b2", tile_px=341)
    assert config.architecture == "efficientnet_b2"
    with pytest.raises(ConfigError, match="tile_px: 48 px are too few"):
        replace(config, tile_px=48)


def test_architecture_is_named_after_timm():
    assert PretrainConfig().architecture == "vit_small_patch16_224"
    small = PretrainConfig(encoder="vit_micro", tile_px=96, patch_size=8)
    assert small.architecture == "vit_micro_patch8_96"


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"},
        {"encoder": "vit_huge"},
        {"precision": "f8"},
        *({name: 0} for name in ("tile_px", "patch_size", "crops_per_slide", "epochs")),
        *({name: 0} for name in ("batch_size", "decoder_dim", "decoder_depth")),
        *({name: 0} for name in ("decoder_heads", "preview_every", "save_every")),
        {"micro_batch": 0},
        {"threads": -1},
        {"seed": -1},
        {"min_tissue": 1.1},
        {"max_iou": -0.1},
        {"mask_ratio": float("nan")},
        {"mask_ratio": 0.0},
        {"mask_ratio": 1.0},
        {"held_out": 0.6},
        {"held_out": -0.1},
        {"crop_scale_min": 0.01},
        {"mpp": 0.0},
        {"mpp": 500.0},
        {"slide_mpp": -0.5},
        {"base_lr": -1e-4},
        {"base_lr": float("inf")},
        {"min_lr": float("nan")},
        {"weight_decay": -0.1},
        {"grad_clip": 0.0},
        {"warmup_epochs": -1.0},
        {"warmup_epochs": 401.0},
        {"patch_size": 15},
        {"pair_strategy": "mixed"},
        {"pooling": "max"},
        {"optimizer": "sgd"},
        {"temperature": 0.0},
        {"projector_dims": ()},
        {"projector_dims": (0,)},
        {"view_factors": ()},
        {"view_factors": (1.0,)},
        {"view_factors": (2.0, 2.0)},
        {"view_factors": (0.5, 1.0)},
        {"encoder": "resnet50"},  # hides no patches
        {"decoder_dim": 190},
        {"decoder_dim": 6},
        # The wrong type.
        {"slides": "one.svs"},
        {"slides": [3]},
        {"method": 3},
        {"tile_px": 224.5},
        {"tile_px": "224"},
        {"epochs": True},
        {"epochs": None},
        {"mpp": True},
        {"mpp": "0.5"},
        {"micro_batch": 2.5},
        {"threads": 1.5},
        {"norm_pix": 1},
        {"allow_upsampling": "yes"},
        {"view_factors": "1 2"},
        {"view_factors": (1.0, "2")},
        {"projector_dims": (16.5,)},
        {"seed": 1.0},
    ],
    ids=lambda wrong: str(wrong),
)
def test_a_wrong_setting_is_named(wrong):
    (name,) = wrong
    for make in (
        lambda: PretrainConfig(**wrong),
        lambda: PretrainConfig().changed(wrong),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: .*(Choose|Give) ") as caught:
            make()
        assert caught.value.field == name
        assert caught.value.reason in str(caught.value)


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match=r"^epoch: is no setting.*epochs") as caught:
        PretrainConfig.from_toml("epoch = 4")
    assert caught.value.field == "epoch"


def test_no_toml_is_refused():
    with pytest.raises(ConfigError, match=r"recipe: not TOML .*line 1.* Mend"):
        PretrainConfig.from_toml("epochs is 4")


def test_none_is_allowed_where_it_means_something():
    config = PretrainConfig(mpp=0.5, threads=2)
    assert config.changed({"mpp": None, "threads": None}) == PretrainConfig()


# ---- recipes


def test_recipes_load():
    assert recipe_names() == ("paper", "quick", "ultrasound")
    for name in recipe_names():
        config = load_recipe(name)
        assert config != PretrainConfig()
        assert PretrainConfig.from_toml(config.to_toml()) == config


def test_the_paper_recipe_is_the_papers():
    config = load_recipe("paper")
    assert config.architecture == "vit_small_patch16_224"
    assert config.mask_ratio == 0.75
    assert (config.decoder_dim, config.decoder_depth, config.decoder_heads) == (
        256,
        8,
        8,
    )


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\nwarmup_epochs = 0.5\n", "utf-8")
    assert load_recipe(path) == PretrainConfig(epochs=3, warmup_epochs=0.5)
    assert load_recipe(str(path)).epochs == 3


def test_a_recipe_that_is_not_there(tmp_path):
    for missing in ("papers", tmp_path / "mine.toml", tmp_path):
        with pytest.raises(ConfigError, match="neither a file nor one of paper, quick"):
            load_recipe(missing)


def test_a_recipe_that_is_no_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"mine\.toml cannot be read.*Choose"):
        load_recipe(path)
