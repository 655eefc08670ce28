"""Segmenters on the command line: taught, told of, used on a slide and a picture."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from histomae.data.marks import discs
from histomae.models.checkpoint import save_checkpoint
from histomae.models.segmenter import load_segmenter
from histomae.models.vit import build_encoder
from tests.histomae.models.test_segmenter import HEADER, SPEC
from tests.histomae.test_cli import complaint, histomae, region

pytestmark = pytest.mark.usefixtures("one_thread")

MPP = HEADER.mpp
COLOURS = np.array([[235, 200, 220], [60, 60, 120]])
QUICK = ("--epochs", 8, "--batch-size", 8, "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("segment")


def save_encoder(path, **changes):
    encoder = build_encoder(SPEC, generator=torch.Generator().manual_seed(0))
    save_checkpoint(path, replace(HEADER, **changes), encoder.state_dict())
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return save_encoder(folder / "encoder.safetensors")


@pytest.fixture(scope="module")
def marks():
    """Discs on a third of a picture of 480 x 320 px; the rest is glass."""
    random = np.random.default_rng(0)
    steps = np.stack(np.meshgrid(np.arange(30, 460, 24), np.arange(30, 300, 24)), -1)
    centres = steps.reshape(-1, 2) + random.uniform(-4, 4, (steps.size // 2, 2))
    return centres, discs(centres, np.zeros(len(centres), int), (320, 480), 7.0)


@pytest.fixture(scope="module")
def slide(make_slide, folder, marks):
    pixels = COLOURS[marks[1].classes]
    noise = np.random.default_rng(1).integers(-12, 12, pixels.shape)
    pixels = (pixels + noise).clip(0, 255).astype(np.uint8)
    pixels[:12], pixels[-12:], pixels[:, :12], pixels[:, -12:] = 245, 245, 245, 245
    return make_slide(pixels, mpp=MPP, factors=(1,), path=folder / "dots.tiff")


@pytest.fixture(scope="module")
def nuclei(folder, marks):
    path = folder / "dots.csv"
    rows = "".join(f"{x:.2f},{y:.2f},nucleus\n" for x, y in marks[0])
    path.write_text(f"x_l0,y_l0,class_name\n{rows}")
    return path


@pytest.fixture(scope="module")
def segmenter(folder, slide, nuclei, encoder):
    out = folder / "dots.segmenter"
    said = histomae(
        *("segment", "teach", slide, "--nuclei", nuclei, "--encoder", encoder),
        *("--out", out, *QUICK, "--epochs", 30),
    )
    assert said.code == 0, said.err
    assert "judged on" in said.out and "blocks it did not learn from" in said.out
    assert "Dice 0." in said.out and "AJI 0." in said.out
    assert "F1 of centres at 12 px (12 µm)" in said.out
    assert said.out.splitlines()[-1] == f"segmenter: {out}"
    return out


def test_a_segmenter_says_what_it_is(segmenter, slide):
    said = histomae("info", segmenter)
    assert said.code == 0, said.err
    assert "dots.segmenter: segmenter " in said.out
    assert "objects: nucleus" in said.out and "tiles of 32 px at 1 µm/px" in said.out
    header = load_segmenter(segmenter).header
    assert header.frozen and not header.areas and header.taught_by == "nuclei on slides"
    assert header.scores["groups"] > 1 and header.scores["dice"]["nucleus"] > 0


def test_it_marks_a_slide(segmenter, slide, marks, folder):
    out = folder / "results"
    said = histomae("segment", slide, "--segmenter", segmenter, "--out", out)
    assert said.code == 0, said.err
    assert said.out.startswith("dots: ") and "nucleus (" in said.out
    features = json.loads((out / "dots.geojson").read_text())["features"]
    with (out / "dots.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(features) > 0
    found = np.array([(float(r["x_l0"]), float(r["y_l0"])) for r in rows])
    far = np.hypot(*(found[:, None] - marks[0]).transpose(2, 0, 1))
    assert (far.min(1) < 6).mean() > 0.8  # it was taught on this slide
    assert not list(out.glob("*.tiff")) and not list(out.glob(".*"))


def test_only_in_regions_and_as_rasters(segmenter, slide, folder, tmp_path):
    drawn = tmp_path / "drawn.geojson"
    box = region(100, 60, 260, 180, "Here", [1, 2, 3])
    drawn.write_text(json.dumps({"type": "FeatureCollection", "features": [box]}))
    said = histomae(
        *("segment", slide, "--segmenter", segmenter, "--out", tmp_path),
        *("--regions", drawn, "--rasters"),
    )
    assert said.code == 0, said.err
    objects = tifffile.imread(tmp_path / "dots.objects.tiff")
    assert objects.shape == (120, 160) and objects.dtype == np.int32
    classes = tifffile.imread(tmp_path / "dots.classes.tiff")
    assert np.array_equal(classes > 0, objects > 0)
    with (tmp_path / "dots.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == objects.max() > 0
    assert all(100 <= float(row["x_l0"]) <= 260 for row in rows)


def test_areas_are_taught_by_regions(slide, encoder, folder, tmp_path):
    drawn = tmp_path / "drawn.geojson"
    boxes = [
        region(x, y, x + 60, y + 60, name, color)
        for name, color, x in (("Left", [1, 2, 3], 20), ("Right", [9, 8, 7], 300))
        for y in (20, 120, 220)
    ]
    drawn.write_text(json.dumps({"type": "FeatureCollection", "features": boxes}))
    out = tmp_path / "areas.segmenter"
    said = histomae(
        *("segment", "teach", slide, "--regions", drawn, "--encoder", encoder),
        *("--out", out, *QUICK, "--fine-tune", "--epochs", 1),
    )
    assert said.code == 0, said.err
    assert "on 2 of 6 regions" in said.out and "AJI" not in said.out
    assert "areas: Left, Right" in said.out and "learned along" in said.out
    header = load_segmenter(out).header
    assert header.areas and header.class_colors == ((1, 2, 3), (9, 8, 7))
    said = histomae("segment", slide, "--segmenter", out, "--out", tmp_path)
    assert said.code == 0, said.err
    features = json.loads((tmp_path / "dots.geojson").read_text())["features"]
    names = {one["properties"]["classification"]["name"] for one in features}
    assert names <= {"Left", "Right"} and names


def test_lesions_are_taught_by_pictures(folder, tmp_path):
    random = np.random.default_rng(0)
    tree = tmp_path / "busi"
    tree.mkdir()
    for kind in ("benign", "malignant"):
        for number in range(1, 4):
            mask = np.zeros((60, 80), np.uint8)
            mask[20 + number : 40, 30 : 50 + number] = 255
            grey = random.integers(60, 90, (60, 80)) - 40 * (mask > 0)
            Image.fromarray(grey.astype(np.uint8)).save(tree / f"{kind} ({number}).png")
            Image.fromarray(mask).save(tree / f"{kind} ({number})_mask.png")
    pictures = save_encoder(tmp_path / "pictures.safetensors", mpp=None)
    out = tmp_path / "lesions.segmenter"
    said = histomae(
        *("segment", "teach", "--data", tree, "--encoder", pictures, "--out", out),
        *(*QUICK, "--epochs", 2, "--hold-out", 0),
    )
    assert said.code == 0, said.err
    assert "not judged: nothing was held out" in said.out
    assert "tiles of 32 px, whole pictures" in said.out
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(tree / "benign (1).png", one)
    said = histomae("segment", one, "--segmenter", out, "--out", tmp_path / "found")
    assert said.code == 0, said.err
    assert re.search(r"benign \([\d,]+ px²\)", said.out), said.out
    # A TIFF without tiles is a picture as well.
    with Image.open(one / "benign (1).png") as picture:
        picture.save(one / "same.tif")
    said = histomae("segment", one, "--segmenter", out, "--out", tmp_path / "found")
    assert said.code == 0, said.err
    outlines = [
        [one["geometry"] for one in json.loads(file.read_text())["features"]]
        for file in sorted((tmp_path / "found").glob("*.geojson"))
    ]
    assert len(outlines) == 2 and outlines[0] == outlines[1]


def test_pictures_are_marked_by_a_segmenter_of_slides(
    segmenter, slide, folder, tmp_path
):
    pixels = tifffile.imread(slide, key=0)
    for name in ("dots.png", "same.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
    how = ("--segmenter", segmenter, "--out", tmp_path / "found")
    said = histomae("segment", tmp_path / "same.tif", *how)
    complaint(said, "same.tif has no micrometres", "--slide-mpp")
    said = histomae("segment", tmp_path, *how, "--slide-mpp", MPP)
    assert said.code == 0, said.err
    rows = [
        (tmp_path / "found" / name).read_text().count("\n")
        for name in ("dots.csv", "same.csv")
    ]
    assert rows[0] == rows[1] > 2


# ---- what goes wrong


def test_pictures_without_micrometres_are_asked_for_them(encoder, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "TCGA-AA-1234.tif")
    (tmp_path / "TCGA-AA-1234.xml").write_text("<Annotations/>")
    said = histomae(
        *("segment", "teach", "--data", tmp_path, "--encoder", encoder),
        *("--out", tmp_path / "x", *QUICK),
    )
    complaint(said, "picture_mpp", "MoNuSeg")
    said = histomae(
        *("segment", "teach", "--data", tmp_path, "--encoder", encoder),
        *("--out", tmp_path / "x", *QUICK, "--picture-mpp", 4),
    )
    complaint(said, "would invent detail")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "none is given"),
        (("--data", "a", "--nuclei", "b"), "data and nuclei are named"),
        (("--nuclei", "a", "b"), "2 files for 1 slide"),
        (("--nuclei", "a", "--hold-out", "2"), "from 0 to 1"),
        (("--nuclei", "a", "--epochs", "0"), "at least 1"),
    ],
)
def test_a_wrong_option_gives_a_sentence(options, words, slide, encoder, tmp_path):
    said = histomae(
        *("segment", "teach", slide, "--encoder", encoder, "--out", tmp_path / "x"),
        *options,
    )
    complaint(said, words)


def test_other_files_give_a_sentence(slide, encoder, segmenter, nuclei, tmp_path):
    said = histomae("segment", slide, "--segmenter", encoder, "--out", tmp_path)
    complaint(said, "is an encoder of tiles, not a segmenter")
    said = histomae(
        *("predict", slide, "--encoder", segmenter, "--probe", "x", "--out", tmp_path)
    )
    complaint(said, "is a segmenter, not an encoder of tiles", "histomae segment")
    said = histomae(
        *("segment", "teach", slide, "--nuclei", slide, "--encoder", encoder),
        *("--out", tmp_path / "x", *QUICK),
    )
    complaint(said, "is no table of centres")
    far = tmp_path / "far.csv"
    far.write_text("x_l0,y_l0,class_name\n99999,99999,nucleus\n")
    said = histomae(
        *("segment", "teach", slide, "--nuclei", far, "--encoder", encoder),
        *("--out", tmp_path / "x", *QUICK),
    )
    complaint(said, "No tile on tissue holds a centre")
    said = histomae(
        *("segment", "teach", "--data", tmp_path, "--encoder", encoder),
        *("--out", tmp_path / "x", *QUICK),
    )
    complaint(said, "no marked pictures")
    said = histomae(
        *("segment", slide, "--segmenter", segmenter, "--out", tmp_path),
        *("--regions", nuclei, nuclei),
    )
    complaint(said, "2 files for 1 slide")


def test_ctrl_c_leaves_the_file_as_it_was(
    slide, nuclei, encoder, segmenter, tmp_path, monkeypatch
):
    def interrupted(*_args, **_named):
        raise KeyboardInterrupt
        yield

    out = tmp_path / "dots.segmenter"
    shutil.copy(segmenter, out)
    before = out.read_bytes()
    monkeypatch.setattr("histomae.evaluate.segment.score_dense", interrupted)
    said = histomae(
        *("segment", "teach", slide, "--nuclei", nuclei, "--encoder", encoder),
        *("--out", out, *QUICK, "--epochs", 1),
    )
    complaint(said, "broken off", code=130)
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]
