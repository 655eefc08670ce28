"""Colour profiles turn what the scanner saw into what a screen should show."""

import numpy as np
import pytest
from PIL import ImageCms

from histomae.slides.colour import to_srgb
from histomae.slides.slide import Slide


def test_without_a_profile_nothing_changes(noise):
    pixels = noise(20, 10)
    assert to_srgb(None)(pixels) is pixels


def test_srgb_stays_srgb(noise):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = noise(40, 30)
    converted = to_srgb(profile)(pixels)
    assert converted.dtype == np.uint8
    assert np.abs(converted.astype(int) - pixels).max() <= 1


def test_swapped_primaries_are_swapped_back(noise, swapped_profile):
    pixels = noise(40, 30)
    converted = to_srgb(swapped_profile)(pixels)
    assert np.abs(converted.astype(int) - pixels[..., ::-1]).max() <= 2


@pytest.mark.parametrize("content", [b"", b"nothing", bytes(128)])
def test_a_profile_that_cannot_be_understood(noise, content):
    pixels = noise(20, 10)
    assert to_srgb(content)(pixels) is pixels


def test_a_profile_that_is_not_of_rgb(noise):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    pixels = noise(20, 10)
    assert to_srgb(profile)(pixels) is pixels


@pytest.mark.real_data
def test_real_profile_is_understood(shared_data, noise):
    with Slide.open(shared_data / "slides/small/boxes.tiff") as slide:
        profile = slide.icc_profile
        convert = to_srgb(profile)
        pixels = slide.read_scaled((0, 0), (300, 250), (1, 1))
    assert profile is not None
    assert convert(pixels).shape == pixels.shape
    assert convert(pixels) is not pixels
