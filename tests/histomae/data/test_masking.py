"""The chance that a mask hides a structure: closed form against counting masks."""

from math import comb

import numpy as np
import pytest

from histomae.data.masking import (
    MaskSetting,
    chances_all_hidden,
    hidden_entirely,
    suggested,
)
from histomae.errors import ConfigError


@pytest.mark.parametrize(("patches", "ratio"), [(196, 0.75), (49, 0.6), (9, 0.5)])
def test_the_chances_are_those_of_counting_masks(patches, ratio):
    hidden = round(patches * ratio)
    chances = chances_all_hidden(patches, ratio)
    assert len(chances) == patches + 1
    for n in range(patches + 1):
        masks = comb(patches - n, hidden - n) if n <= hidden else 0
        assert chances[n] == pytest.approx(masks / comb(patches, hidden), rel=1e-9)


@pytest.mark.parametrize(
    ("lesion_px", "patch", "ratio", "chance"),
    [
        *((16, 16, 0.75, 0.75), (16, 16, 0.6, 0.60), (16, 8, 0.75, 0.32)),
        *((16, 8, 0.6, 0.13), (16, 8, 0.5, 0.062), (32, 16, 0.75, 0.31)),
        *((32, 16, 0.6, 0.13), (32, 8, 0.75, 9.5e-3), (32, 8, 0.6, 2.6e-4)),
        *((32, 8, 0.5, 1.3e-5), (48, 16, 0.75, 0.07), (48, 16, 0.6, 9e-3)),
        *((48, 8, 0.75, 2.4e-5), (48, 8, 0.6, 6e-9)),
    ],
)
def test_lesions_on_the_patch_grid(lesion_px, patch, ratio, chance):
    found = hidden_entirely(lesion_px, 224, MaskSetting(patch, ratio))
    assert found.worst == pytest.approx(chance, rel=0.06)
    assert found.mean < found.worst


@pytest.mark.parametrize("size_px", [5.0, 8.0, 13.5])
def test_the_mean_is_what_a_slow_simulation_finds(size_px):
    """Throw squares on tiles, and masks over them, and count."""
    tile, patch, ratio, draws = 48, 8, 0.6, 20_000
    side = tile // patch
    random = np.random.default_rng(0)
    gone = 0
    for _ in range(draws):
        mask = np.zeros(side**2, bool)
        mask[random.permutation(side**2)[: round(side**2 * ratio)]] = True
        mask = mask.reshape(side, side)
        x, y = (patch + random.random(2) * patch) / patch  # anywhere on the grid
        rows = slice(int(y), int(np.ceil(y + size_px / patch)))
        cols = slice(int(x), int(np.ceil(x + size_px / patch)))
        gone += mask[rows, cols].all()
    found = hidden_entirely(size_px, tile, MaskSetting(patch, ratio)).mean
    error = np.sqrt(found * (1 - found) / draws)
    assert gone / draws == pytest.approx(found, abs=4 * error)


def test_nothing_is_hidden_or_everything():
    assert hidden_entirely(20, 64, MaskSetting(16, 0.0)).worst == 0
    assert hidden_entirely(20, 64, MaskSetting(16, 1.0)).mean == pytest.approx(1)
    whole = hidden_entirely(64, 64, MaskSetting(16, 0.75))
    assert whole.mean == whole.worst == 0


def test_the_fastest_setting_that_serves_is_suggested():
    present = MaskSetting(16, 0.75)
    assert suggested(64, 224, present) == present
    found = suggested(16, 224, present)
    assert found == MaskSetting(8, 0.6)
    assert hidden_entirely(16, 224, found).mean <= 0.05
    assert hidden_entirely(16, 224, MaskSetting(8, 0.75)).mean > 0.05
    # Never a coarser one, and only patches that divide the tile.
    assert suggested(16, 224, MaskSetting(8, 0.5)) == MaskSetting(8, 0.5)
    assert suggested(9, 72, MaskSetting(24, 0.75)) == MaskSetting(8, 0.5)
    assert suggested(1, 224, present) is None


@pytest.mark.parametrize(
    ("size_px", "patch", "ratio", "field"),
    [
        *((0, 16, 0.5, "structure"), (65, 16, 0.5, "structure")),
        *((float("nan"), 16, 0.5, "structure"), (8, 10, 0.5, "patch_size")),
        *((8, 0, 0.5, "patch_size"), (8, 16, 1.5, "mask_ratio")),
    ],
)
def test_what_makes_no_sense_is_refused(size_px, patch, ratio, field):
    with pytest.raises(ConfigError) as caught:
        hidden_entirely(size_px, 64, MaskSetting(patch, ratio))
    assert caught.value.field == field
