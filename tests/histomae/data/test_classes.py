"""Tests of histomae.data.classes."""

from itertools import combinations

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from histomae.data.classes import (
    BRACS_7,
    OKABE_ITO,
    PRESETS,
    UNSURE,
    ClassSet,
    next_color,
)
from histomae.errors import ConfigError

# How people without one kind of cone see linear RGB (Machado et al. 2009).
SEEN_WITHOUT = {
    "nothing": np.eye(3),
    "long": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "medium": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "short": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def seen(colors, cone):
    rgb = np.array(colors) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(SEEN_WITHOUT[cone]).T, 0, 1)
    gamma = np.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return rgb2lab(gamma[None])[0]


def least_difference(colors, cone):
    return min(deltaE_ciede2000(a, b) for a, b in combinations(seen(colors, cone), 2))


@pytest.mark.parametrize("cone", SEEN_WITHOUT)
@pytest.mark.parametrize("name", PRESETS)
def test_the_colours_of_a_preset_are_told_apart_by_everybody(name, cone):
    assert least_difference([*PRESETS[name].colors, UNSURE], cone) > 10


@pytest.mark.parametrize("cone", SEEN_WITHOUT)
def test_the_palette_is_told_apart_by_everybody(cone):
    assert least_difference(OKABE_ITO, cone) > 10


def test_bracs_runs_from_cool_over_amber_to_warm():
    red, green, blue = np.array(BRACS_7.colors).T
    assert (blue[:3] > red[:3]).all()
    assert (red[3:] > blue[3:]).all()
    assert (green[3:5] > 2 * blue[3:5] - 100).all()
    assert (green[3:5].min() > green[5:]).all()


def test_the_presets_are_the_papers():
    assert BRACS_7.names == ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
    assert BRACS_7.full_name("DCIS") == "Ductal carcinoma in situ"
    assert PRESETS["BRACS-3"].names == ("Benign", "Atypical", "Malignant")
    assert PRESETS["BACH-4"].names == ("Normal", "Benign", "In situ", "Invasive")
    assert PRESETS["BACH-4"].full_name("In situ") == "In situ"


def test_own_classes_take_the_palette_and_keep_their_colours():
    classes = ClassSet.of(["Invasive", "Stroma", "Fat"])
    assert classes.colors == OKABE_ITO[:3]
    fewer = classes.without("Stroma")
    assert fewer.names == ("Invasive", "Fat")
    assert fewer.color_of("Fat") == OKABE_ITO[2]
    assert fewer.with_class("Vessel").color_of("Vessel") == OKABE_ITO[1]
    assert fewer.with_class("Vessel", (1, 2, 3)).colors[-1] == (1, 2, 3)
    assert len(fewer) == 2


def test_a_name_that_is_no_class_is_unsure():
    assert BRACS_7.color_of("something") == UNSURE
    assert BRACS_7.full_name("something") == "something"


def test_there_is_a_new_colour_for_every_class():
    used = []
    for _ in range(20):
        used.append(next_color(used))
    assert tuple(used[:7]) == OKABE_ITO
    assert len({*used, UNSURE, (0, 0, 0), (255, 255, 255)}) == 23
    assert least_difference(used[:12], "nothing") > 8


@pytest.mark.parametrize(
    ("names", "colors", "told"),
    [
        (("A", "A"), ((0, 0, 1), (0, 1, 0)), "there twice"),
        (("A", " "), ((0, 0, 1), (0, 1, 0)), "empty"),
        (("A", "B"), ((0, 0, 1),), "one colour for each"),
    ],
)
def test_wrong_sets_are_refused(names, colors, told):
    with pytest.raises(ConfigError, match=told):
        ClassSet(names, colors)
