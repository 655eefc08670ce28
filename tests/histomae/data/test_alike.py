"""Pictures that are nearly the same are found, and others are not."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from histomae.data.alike import ALIKE_BITS, groups_alike, groups_of, perceptual_hash
from histomae.errors import DataSetError
from histomae.events import result_of


def scan(seed, size=(150, 190)):
    """A picture with the grain of an ultrasound."""
    noise = np.random.default_rng(seed).standard_normal(size)
    smooth = gaussian_filter(noise, (3, 6))
    grey = (128 + 300 * smooth).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def distance(one, other):
    return (perceptual_hash(one) ^ perceptual_hash(other)).sum()


def test_what_was_saved_again_is_alike_and_another_is_not():
    one = scan(0)
    image = Image.fromarray(one)
    smaller = np.asarray(image.resize((140, 110), Image.Resampling.BICUBIC))
    brighter = (one * 0.7 + 40).astype(np.uint8)
    labelled = one.copy()
    labelled[10:18, 10:60] = 255
    for same in (one, smaller, brighter, labelled):
        assert distance(one, same) <= ALIKE_BITS
    others = [distance(one, scan(seed)) for seed in range(1, 20)]
    assert min(others) > ALIKE_BITS
    assert 100 < np.mean(others) < 150


def test_groups_are_those_of_a_plain_loop():
    random = np.random.default_rng(0)
    seeds = random.random((6, 255)) < 0.5
    hashes = seeds[random.integers(0, 6, 40)] ^ (random.random((40, 255)) < 0.12)
    group = np.arange(40)
    for _ in range(40):
        for i in range(40):
            for j in range(40):
                if (hashes[i] ^ hashes[j]).sum() <= ALIKE_BITS:
                    group[i] = group[j] = min(group[i], group[j])
    found = groups_of(hashes)
    same = found[:, None] == found
    np.testing.assert_array_equal(same, group[:, None] == group)
    assert 1 < len(set(found.tolist())) < 40


def test_files_are_compared_and_what_cannot_be_read_is_named(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for path, seed in zip(paths, (0, 1, 0, 2), strict=True):
        Image.fromarray(scan(seed)).save(path)
    group = result_of(groups_alike(paths)).tolist()
    assert group[0] == group[2]
    assert len(set(group)) == 3
    paths[1].write_bytes(b"torn")
    with pytest.raises(DataSetError, match=r"b\.png cannot be read"):
        result_of(groups_alike(paths))
    assert len(result_of(groups_alike([]))) == 0
