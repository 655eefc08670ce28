"""The synthetic sample slide: readable, reproducible, true, and not told by colour."""

import csv
import hashlib
import json
import uuid
from collections import Counter
from itertools import combinations

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histomae.errors import ConfigError
from histomae.slides.sample import CLASS_COLORS, sample_slide
from histomae.slides.slide import Slide

EPITHELIAL = ("Duct", "In situ", "Invasive")
SMALL_UM = (1000.0, 1100.0)
TILE_PX = 224
#: Chance is 0.33.
COLOUR_GOAL = 0.6


@pytest.fixture(scope="session")
def sample(made_once):
    """The sample slide in full, seed 0."""
    return sample_slide(0, folder=made_once)


@pytest.fixture(scope="session")
def other_sample(made_once):
    """The sample slide in full, seed 1."""
    return sample_slide(1, folder=made_once)


@pytest.fixture(scope="session")
def small(made_once):
    """A small sample slide."""
    return sample_slide(5, folder=made_once, size_um=SMALL_UM)


@pytest.fixture(scope="session")
def labelled_tiles(sample, other_sample):
    """Tiles of both slides, each (n, 224, 224, 3), with their labels (n)."""
    return [_labelled_tiles(one) for one in (sample, other_sample)]


def _features(one):
    return json.loads(one.regions_path.read_text(encoding="utf-8"))["features"]


def _regions(one):
    return [
        (
            feature["properties"]["classification"]["name"],
            shapely.geometry.shape(feature["geometry"]),
        )
        for feature in _features(one)
    ]


def _nuclei(one):
    with one.nuclei_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    xy_l0 = np.array([(row["x_l0"], row["y_l0"]) for row in rows], float)
    xy_um = np.array([(row["x_um"], row["y_um"]) for row in rows], float)
    return xy_l0, xy_um, np.array([row["class_name"] for row in rows])


def _picture(one, level=0):
    with openslide.OpenSlide(one.slide_path) as slide:
        size = slide.level_dimensions[level]
        return np.asarray(slide.read_region((0, 0), level, size))[..., :3]


def _labelled_tiles(one):
    """Tiles on a grid that lie mostly in a region of epithelium."""
    picture = _picture(one)
    tiles, labels = [], []
    for class_name, roi in _regions(one):
        if class_name not in EPITHELIAL:
            continue
        x0, y0, x1, y1 = (int(edge // TILE_PX) for edge in roi.bounds)
        for row in range(y0, y1 + 1):
            for column in range(x0, x1 + 1):
                x, y = column * TILE_PX, row * TILE_PX
                box = shapely.box(x, y, x + TILE_PX, y + TILE_PX)
                if roi.intersection(box).area > 0.5 * box.area:
                    tiles.append(picture[y : y + TILE_PX, x : x + TILE_PX])
                    labels.append(EPITHELIAL.index(class_name))
    return np.array(tiles), np.array(labels)


# ---- the file


def test_openslide_reads_a_pyramid_in_micrometres(sample):
    with openslide.OpenSlide(sample.slide_path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert slide.dimensions == (6144, 5120)
        assert slide.level_count >= 3
        assert max(slide.level_dimensions[-1]) < 1024


def test_says_that_it_is_synthetic(sample):
    with Slide.open(sample.slide_path) as slide:
        assert slide.mpp == pytest.approx((0.5, 0.5))
        assert slide.is_synthetic
    assert all("synthetic" in path.name for path in vars(sample).values())
    truth = json.loads(sample.regions_path.read_text(encoding="utf-8"))
    assert truth["metadata"]["synthetic"] is True
    assert all("not a patient" in str(feature) for feature in truth["features"])


def test_each_level_is_the_mean_of_the_finer_one(small):
    fine, coarse = _picture(small, 0).astype(float), _picture(small, 1)
    height, width = coarse.shape[:2]
    fine = fine[: 2 * height, : 2 * width]
    mean = fine.reshape(height, 2, width, 2, 3).mean((1, 3))

    def off(expected):
        return np.abs(expected - coarse).mean()

    # JPEG's share is the rest; a pixel that was picked, or a shift, is further off.
    assert off(mean) < 3
    assert off(mean) < 0.6 * off(fine[::2, ::2])
    assert off(mean) < 0.6 * off(np.roll(mean, 1, axis=1))


def test_equal_seeds_give_equal_bytes(small, tmp_path):
    def digests(one):
        paths = (one.slide_path, one.regions_path, one.nuclei_path)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    again = sample_slide(5, folder=tmp_path / "again", size_um=SMALL_UM)
    other = sample_slide(6, folder=tmp_path / "other", size_um=SMALL_UM)
    assert digests(again) == digests(small)
    assert all(a != b for a, b in zip(digests(other), digests(small), strict=True))


def test_kept_in_the_cache_and_reused(monkeypatch, tmp_path, small):
    monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path))
    folder = tmp_path / "cache" / "sample"
    folder.mkdir(parents=True)
    for path in vars(small).values():
        (folder / path.name).write_bytes(b"kept")
    reused = sample_slide(5, size_um=SMALL_UM)
    assert {path.parent for path in vars(reused).values()} == {folder}
    assert all(path.read_bytes() == b"kept" for path in vars(reused).values())
    reused.regions_path.unlink()
    remade = sample_slide(5, size_um=SMALL_UM)
    assert remade.slide_path.read_bytes() == small.slide_path.read_bytes()


def test_finer_pixels_show_the_same_anatomy(small, tmp_path):
    fine = sample_slide(5, mpp=0.25, folder=tmp_path, size_um=SMALL_UM)
    with Slide.open(fine.slide_path) as a, Slide.open(small.slide_path) as b:
        assert a.mpp == pytest.approx((0.25, 0.25))
        assert a.dimensions == tuple(2 * side for side in b.dimensions)
    blurred = [
        ndimage.gaussian_filter(picture.astype(float), (4, 4, 0))
        for picture in (_picture(fine, 1), _picture(small))
    ]
    assert np.abs(blurred[0] - blurred[1]).mean() < 1.5
    xy_l0, xy_um, _ = _nuclei(fine)
    assert np.allclose(xy_um, _nuclei(small)[1])
    assert np.allclose(xy_l0 * 0.25, xy_um, atol=0.01)


def test_interrupted_making_leaves_no_part_of_a_slide(monkeypatch, tmp_path):
    write = tifffile.TiffWriter.write

    def write_one_level(self, data, **options):
        if options["subfiletype"]:
            raise OSError("the disk is full")
        return write(self, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tifffile.TiffWriter, "write", write_one_level)
        with pytest.raises(OSError, match="disk is full"):
            sample_slide(5, folder=tmp_path, size_um=SMALL_UM)
    assert not [path for path in tmp_path.iterdir() if "tif" in path.name]
    assert sample_slide(5, folder=tmp_path, size_um=SMALL_UM).exists


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("seed", {"seed": -1}),
        ("mpp", {"mpp": 0.3}),
        ("size_um", {"size_um": (3000.0, 500.0)}),
    ],
)
def test_wrong_arguments_are_named(field, arguments, tmp_path):
    with pytest.raises(ConfigError, match=r"give .+\.") as caught:
        sample_slide(**arguments, folder=tmp_path / "none")
    assert caught.value.field == field
    assert not (tmp_path / "none").exists()


# ---- the truth


def test_regions_are_annotations_of_qupath(sample):
    features = _features(sample)
    identities = [uuid.UUID(feature["id"]) for feature in features]
    assert len(set(identities)) == len(features)
    for feature in features:
        properties = feature["properties"]
        classification = properties["classification"]
        assert properties["objectType"] == "annotation"
        assert properties["name"].startswith(classification["name"])
        assert tuple(classification["color"]) == CLASS_COLORS[classification["name"]]
        ring = feature["geometry"]["coordinates"][0]
        assert feature["geometry"]["type"] == "Polygon"
        assert ring[0] == ring[-1]


def test_enough_regions_of_each_class_inside_the_slide(sample):
    regions = _regions(sample)
    counts = Counter(class_name for class_name, _ in regions)
    assert all(counts[class_name] >= 6 for class_name in EPITHELIAL)
    assert counts["Stroma"] >= 3
    assert counts["Fat"] >= 3
    frame = shapely.box(0, 0, 6144, 5120)
    for _, roi in regions:
        assert roi.is_valid
        assert frame.contains(roi)
        assert roi.area > 8 * TILE_PX**2
    assert all(a.disjoint(b) for (_, a), (_, b) in combinations(regions, 2))


def test_regions_cover_the_tissue_and_no_trap(sample):
    coarse = _picture(sample, 3).astype(float)
    factor = 6144 / coarse.shape[1]
    y, x = (np.indices(coarse.shape[:2]) + 0.5) * factor
    stained = ndimage.gaussian_filter(coarse[..., 1], 1.5) < 215
    covered = np.zeros(stained.shape, bool)
    for class_name, roi in _regions(sample):
        within = shapely.contains_xy(roi, x, y)
        covered |= within
        assert class_name == "Fat" or stained[within].mean() > 0.85
    red, green, blue = np.moveaxis(coarse, -1, 0)
    ink = (green - red > 40) & (green - blue > 20)
    assert ink.sum() > 500
    assert not (ink & covered).any()
    assert 0.5 < covered.mean() < 0.7
    assert (stained & covered).sum() > 0.75 * (stained & ~ink).sum()


def test_nuclei_lie_in_the_tissue_they_belong_to(sample):
    xy_l0, xy_um, names = _nuclei(sample)
    assert np.allclose(xy_um, xy_l0 * 0.5, atol=0.01)
    for class_name in (*EPITHELIAL, "Fat"):
        own = shapely.union_all(
            [roi for name, roi in _regions(sample) if name == class_name]
        )
        assert shapely.contains_xy(own.buffer(3), *xy_l0[names == class_name].T).all()
    picture = _picture(sample)
    column, row = xy_l0[np.isin(names, EPITHELIAL)].astype(int).T
    assert (picture[row, column, 0] < 150).mean() > 0.97


def test_nuclear_density_is_the_same_in_all_three(sample, other_sample):
    for one in (sample, other_sample):
        xy_l0, _, names = _nuclei(one)
        for kinds in ({*EPITHELIAL}, {"Stroma"}):
            density = []
            chosen = xy_l0[np.isin(names, list(kinds))]
            for class_name in EPITHELIAL:
                rois = [roi for name, roi in _regions(one) if name == class_name]
                inside = shapely.contains_xy(shapely.union_all(rois), *chosen.T)
                density.append(inside.sum() / sum(roi.area for roi in rois))
            assert max(density) < 1.1 * min(density)


# ---- the task: arrangement, not colour


def _marginal_histogram(tiles):
    """16 bins per channel."""
    counts = [
        [np.bincount(tile[..., k].ravel() // 16, minlength=16) for k in range(3)]
        for tile in tiles
    ]
    return np.array(counts).reshape(len(tiles), -1) / TILE_PX**2


def _joint_histogram(bins):
    def histogram(tiles):
        codes = [
            (tile.astype(int) * bins // 256) @ (bins**2, bins, 1) for tile in tiles
        ]
        counts = [np.bincount(code.ravel(), minlength=bins**3) for code in codes]
        return np.array(counts) / TILE_PX**2

    return histogram


def _strong_colour(tiles):
    """6 × 6 × 6 joint bins, and the mean and the spread of each channel."""
    channels = tiles.reshape(len(tiles), -1, 3)
    moments = [channels.mean(1), channels.std(1)]
    return np.concatenate([_joint_histogram(6)(tiles), *moments], axis=1)


def _form(tiles):
    """How directed edges are, and how round, at some scales: no colour at all."""
    red = tiles[:, ::2, ::2, 0].astype(np.float32) / 255
    features = []
    for scale in (1, 2, 4, 8):
        dx, dy = (
            ndimage.gaussian_filter(red, (0, scale, scale), order=order)
            for order in ((0, 0, 1), (0, 1, 0))
        )
        total = (dx**2 + dy**2).mean((1, 2))
        directed = np.hypot((dx**2 - dy**2).mean((1, 2)), 2 * (dx * dy).mean((1, 2)))
        features += [np.log(total), directed / total]
    return np.stack(features, axis=1)


def _accuracy_across_slides(labelled_tiles, describe):
    """Balanced accuracy, trained on one slide and tested on the other, both ways."""
    described = [(describe(tiles), labels) for tiles, labels in labelled_tiles]
    accuracy = []
    for train, test in ((0, 1), (1, 0)):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        model.fit(*described[train])
        features, labels = described[test]
        accuracy.append(balanced_accuracy_score(labels, model.predict(features)))
    return accuracy


def test_there_are_enough_tiles(labelled_tiles):
    for _, labels in labelled_tiles:
        assert np.bincount(labels).min() >= 60


@pytest.mark.parametrize(
    "describe",
    [_marginal_histogram, _joint_histogram(8), _strong_colour],
    ids=["16 bins per channel", "8 x 8 x 8 bins", "6 x 6 x 6 bins and moments"],
)
def test_colour_does_not_tell_the_three_apart(labelled_tiles, describe):
    accuracy = _accuracy_across_slides(labelled_tiles, describe)
    assert max(accuracy) <= COLOUR_GOAL


def test_form_does(labelled_tiles):
    accuracy = _accuracy_across_slides(labelled_tiles, _form)
    assert min(accuracy) >= 0.85
