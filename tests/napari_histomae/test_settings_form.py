"""The form of a pretraining: it shows PretrainConfig, and PretrainConfig judges it."""

from dataclasses import fields, replace

import pytest

from histomae.config import ENCODERS, PretrainConfig, load_recipe, recipe_names
from histomae.errors import ConfigError
from napari_histomae._widgets.settings_form import (
    SETTINGS,
    SettingsForm,
    sentence,
    setting_help,
    summary,
)


@pytest.fixture
def form(qtbot):
    made = SettingsForm()
    qtbot.addWidget(made)
    return made


def test_every_field_is_a_setting_and_explains_itself():
    known = {one.name for one in fields(PretrainConfig)}
    assert {shown.name for shown in SETTINGS} <= known
    assert known <= set(setting_help())
    encoder = next(shown for shown in SETTINGS if shown.name == "encoder")
    assert set(encoder.choices) == set(ENCODERS)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_comes_back_as_it_went_in(form, name):
    config = load_recipe(name)
    form.set_config(config)
    assert form.config() == config


def test_each_method_shows_its_own_settings(form):
    def shown():
        return {s.label for s in SETTINGS if not form._rows[s.name][0].isHidden()}

    assert "Hidden" in shown()
    assert not {"Seen at", "Pairs", "Temp. τ"} & shown()
    form.show_method("mpcs")
    assert {"Seen at", "Pairs", "Temp. τ"} <= shown()
    assert "Hidden" not in shown()
    form.edit("view_factors", "1, 1.5")
    form.edit("pair_strategy", "random")
    assert form.config().view_factors == (1.0, 1.5)
    assert form.config().pair_strategy == "random"
    assert form.text("pair_strategy") == "any two"
    form.edit("view_factors", "1, two")
    with pytest.raises(ConfigError, match="no list of numbers") as caught:
        form.config()
    assert caught.value.field == "view_factors"
    form.show_method("mae")
    assert form.config().view_factors == (1.0, 2.0, 4.0)  # what is not shown is kept


def test_the_summary_tells_what_matters_to_a_method():
    config = PretrainConfig(method="mpcs", view_factors=(2.0, 1.0))
    assert summary(config, 0.69) == "tile 224 px · 0.69, 1.38 µm/px · batch 256"


def test_what_has_no_field_is_kept(form):
    config = PretrainConfig(decoder_dim=128, decoder_heads=4, seed=7, mpp=0.69)
    form.set_config(config)
    assert form.config() == config


def test_people_write_percent_and_commas(form):
    form.edit("mask_ratio", "60")
    form.edit("mpp", "0,69")
    assert form.config().mask_ratio == pytest.approx(0.6)
    assert form.config().mpp == pytest.approx(0.69)
    form.edit("mpp", "")
    assert form.config().mpp is None


@pytest.mark.parametrize(
    ("name", "text", "wrong", "says"),
    [
        ("patch_size", "15", "patch_size", "does not divide"),
        ("tile_px", "abc", "tile_px", "no whole number"),
        ("tile_px", "", "tile_px", "is empty"),
        ("mask_ratio", "100", "mask_ratio", "none visible"),
        ("mask_ratio", "250", "mask_ratio", "out of range"),
        ("epochs", "2", "warmup_epochs", "longer than the training"),
        ("batch_size", "0", "batch_size", "Choose at least 1"),
        ("base_lr", "-1", "base_lr", "Choose at least 0"),
        ("mpp", "0.001", "mpp", "out of range"),
    ],
)
def test_the_wrong_field_is_marked_and_says_why(form, name, text, wrong, says):
    form.set_config(load_recipe("quick"))
    form.edit(name, text)
    with pytest.raises(ConfigError) as caught:
        form.config()
    assert caught.value.field == wrong
    form.say(caught.value)
    assert form.marked() == [wrong]
    assert says in form.mark.text()
    assert "_" not in form.mark.text().split(":")[0]
    form.say(None)
    assert form.marked() == []
    assert form.mark.isHidden()


def test_editing_is_told_but_setting_is_not(form):
    told = []
    form.changed.connect(lambda: told.append(True))
    form.set_config(PretrainConfig(epochs=80))
    assert told == []
    form.edit("epochs", "90")
    form.edit("encoder", "vit_tiny")
    assert len(told) == 2
    assert form.config() == replace(PretrainConfig(), epochs=90, encoder="vit_tiny")


def test_the_summary_uses_peoples_units():
    config = PretrainConfig(batch_size=64)
    assert summary(config, 0.69) == "tile 224 px · 0.69 µm/px · hidden 75 % · batch 64"
    assert summary(config, None) == "tile 224 px · hidden 75 % · batch 64"
    assert summary(replace(config, mpp=1.0), 0.69).count("1 µm/px") == 1


def test_an_unknown_field_is_named_as_it_is():
    assert sentence(ConfigError("seed", "is odd.")) == "seed: is odd."
