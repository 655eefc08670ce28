"""The command line: the whole walk on a small slide, its exit codes and its words."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest
import shapely
import timm
import torch
from PIL import Image

from histomae import cli, cli_shared
from histomae.config import METHOD_DEFAULTS, load_recipe
from histomae.errors import HistomaeError
from histomae.evaluate.slides import ANCHORS, CLASS_TOKEN, FINE_TUNED, MEAN, MIL
from histomae.events import (
    Finished,
    Note,
    Progress,
    Started,
    Step,
    event_from_json,
)
from histomae.exchange.features import read_features
from histomae.exchange.qupath import write_annotations
from histomae.infer.encoder import TileEncoder
from histomae.learn.runs import RunFolder
from histomae.models import vit
from histomae.models.probe import Probe
from histomae.models.slide_checkpoint import load_slide_checkpoint
from histomae.slides.annotations import Annotation
from histomae.slides.grid import TileGrid
from histomae.slides.slide import Slide
from histomae.slides.tissue import tissue_cells, tissue_mask
from tests.patience import PATIENCE_S, wait_until

TRAINING = Path(cli.__file__).parents[1]
#: Of the slide: pixels that are not square, a size that no tile divides.
SLIDE_MPP, SIZE, MARGIN = (0.8, 1.0), (900, 500), 60
TILE_PX, MPP = 32, 1.0
RECIPE = """
encoder = "vit_micro"
tile_px = 32
patch_size = 8
mpp = 1.0
crops_per_slide = 46
epochs = 3
warmup_epochs = 1
batch_size = 12
decoder_dim = 16
decoder_depth = 1
decoder_heads = 2
base_lr = 1e-2
device = "cpu"
precision = "f32"
threads = 1
preview_every = 4
save_every = 4
"""
CSV_COLUMNS = [
    *("minx", "miny", "width", "height", "prob_Spots", "prob_Stripes"),
    *("row", "col", "x_um", "y_um", "predicted", "confidence", "entropy"),
    *("slide", "encoder", "probe", "mpp", "mpp_source"),
]


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


def histomae(*arguments: object) -> Said:
    """Run a command in this process, its output in a pipe."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return Said(code, out.getvalue(), err.getvalue())


def complaint(said: Said, *words: str, code: int = 1) -> str:
    """Return the one sentence that a command failed with."""
    lines = [line for line in said.err.splitlines() if line.startswith("histomae: ")]
    assert said.code == code, said
    assert len(lines) == 1, said.err
    assert said.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in said.err
    assert lines[0].endswith(".")
    for word in words:
        assert word in lines[0]
    return lines[0]


def region(x0, y0, x1, y1, class_name, color):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": class_name, "color": color},
        },
    }


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """Make ``vit_micro`` 16 wide with one block, and keep to a folder of our own.

    However slow the machine, a pipe gets a line only when work is done.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOMAE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setitem(vit.ENCODER_SIZES, "vit_micro", (16, 1, 2))
        patch.setattr(cli_shared, "LINE_EVERY_S", 1e9)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pixels():
    """Spots on the left half, stripes on the right one, glass around."""
    (width, height), random = SIZE, np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    spots = np.kron(
        random.random((height // 8 + 1, width // 8 + 1)) < 0.3, np.ones((8, 8), bool)
    )[:height, :width]
    ink = np.where(x < width // 2, spots, x // 6 % 3 == 0)
    inside = (abs(x - width / 2) < width / 2 - MARGIN) & (
        abs(y - height / 2) < height / 2 - MARGIN
    )
    painted = np.full((height, width, 3), 245, np.uint8)
    painted[inside] = (225, 150, 190)
    painted[inside & ink] = (90, 50, 130)
    return painted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("walk")


@pytest.fixture(scope="module")
def slide(make_slide, pixels, folder):
    (folder / "slides").mkdir()
    return make_slide(pixels, mpp=SLIDE_MPP, path=folder / "slides" / "walk.tiff")


@pytest.fixture(scope="module")
def regions(folder):
    """Three regions of each class, apart from each other."""
    drawn = []
    for y in (70, 190, 310):
        drawn.append(region(70, y, 230, y + 100, "Spots", [0, 90, 180]))
        drawn.append(region(500, y, 660, y + 100, "Stripes", [230, 160, 0]))
    path = folder / "walk.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": drawn}))
    return path


@pytest.fixture(scope="module")
def recipe(folder):
    path = folder / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def trained(folder, slide, recipe):
    """The run folder of a pretraining, and what was said."""
    run = folder / "run"
    said = histomae("pretrain", slide, f"--recipe={recipe}", "--epochs=4", "--run", run)
    assert said.code == 0, said.err
    return run, said


@pytest.fixture(scope="module")
def taught(folder, slide, regions, trained):
    """A probe, and what was said."""
    path = folder / "walk.probe"
    said = histomae(
        "probe", slide, "--regions", regions, "--encoder", trained[0], "--out", path
    )
    assert said.code == 0, said.err
    return path, said


@pytest.fixture(scope="module")
def tissue(slide, trained):
    """The grid over the slide, and its tiles on tissue."""
    with Slide.open(slide) as opened:
        encoder = TileEncoder.load(RunFolder(trained[0]).last, device="cpu")
        grid = TileGrid.over(opened, encoder.spec)
        return grid, tissue_cells(grid, tissue_mask(opened), 0.5)


# The whole walk --------------------------------------------------------------


def test_pretrain_leaves_a_run_and_says_where(trained):
    path, said = trained
    run = RunFolder(path)
    assert said.out.splitlines() == [f"run folder: {path}", f"checkpoint: {run.last}"]
    assert run.state == "done"
    assert run.encoder.is_file()
    assert len(list(run.previews.glob("*.png"))) >= 2


def test_options_outrank_the_recipe_and_the_recipe_the_defaults(trained, recipe):
    config = RunFolder(trained[0]).config()
    assert config.epochs == 4
    assert config.crops_per_slide == 46
    assert load_recipe(recipe).epochs == 3


def test_progress_in_a_pipe_is_a_few_plain_lines(trained):
    said = trained[1].err
    assert "\r" not in said
    assert "█" not in said
    told = [line for line in said.splitlines() if line.startswith("training: ")]
    assert len(told) == 1
    assert told[0].startswith("training: 12 of 12 (100%), loss ")
    assert "12: wrote checkpoints/last.safetensors" in said
    assert "done at step 12" in said


def test_probe_tells_how_good_it_is(taught):
    path, said = taught
    assert "Spots (" in said.out
    assert "tiles in 3 regions" in said.out
    assert "grouped by region" in said.out
    assert said.out.splitlines()[-1] == f"probe: {path}"
    probe = Probe.load(path)
    assert probe.class_names == ("Spots", "Stripes")
    assert probe.class_colors == ((0, 90, 180), (230, 160, 0))
    assert probe.scores["balanced_accuracy"] > 0.9


@pytest.fixture(scope="module")
def predicted(folder, slide, trained, taught):
    out = folder / "predicted"
    said = histomae(
        *("predict", slide.parent, "--encoder", trained[0]),
        *("--probe", taught[0], "--out", out),
    )
    assert said.code == 0, said.err
    return out, said


def test_predict_writes_a_tile_for_each_tile_on_tissue(predicted, tissue):
    out, said = predicted
    grid, cells = tissue
    document = json.loads((out / "walk.geojson").read_text())
    assert document["type"] == "FeatureCollection"
    assert len(document["features"]) == len(cells) > 100
    for feature, (row, col) in zip(document["features"], cells, strict=True):
        corners = np.array(feature["geometry"]["coordinates"][0])
        box = [*corners.min(0), *corners.max(0)]
        np.testing.assert_allclose(box, grid.box_l0(row, col), atol=0.01)
    tile_mm2 = (TILE_PX * MPP / 1000) ** 2
    assert said.out.startswith(f"walk: {len(cells)} tiles, Spots ")
    areas = [float(part.split()[-2]) for part in said.out.split(", ")[1:]]
    assert sum(areas) == pytest.approx(len(cells) * tile_mm2, abs=0.01)


def test_predict_writes_a_table(predicted, tissue, trained, taught):
    with (predicted[0] / "walk.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == CSV_COLUMNS
    assert len(rows) == len(tissue[1])
    middle_um = SIZE[0] / 2 * SLIDE_MPP[0]
    right = [
        row["predicted"] == ("Spots" if float(row["x_um"]) < middle_um else "Stripes")
        for row in rows
    ]
    assert np.mean(right) > 0.85
    first = rows[0]
    assert float(first["width"]) == pytest.approx(TILE_PX * MPP / SLIDE_MPP[0])
    assert float(first["height"]) == pytest.approx(TILE_PX * MPP / SLIDE_MPP[1])
    assert (first["slide"], first["mpp_source"]) == ("walk", "file")
    assert first["probe"] == Probe.load(taught[0]).probe_id


def test_reconstruct_maps_every_patch_and_shows_tiles(folder, slide, trained, tissue):
    out = folder / "reconstructed"
    said = histomae(
        *("reconstruct", slide, "--encoder", trained[0], "--out", out),
        *("--examples", 3, "--mask-ratio", 0.5, "--statistics", "true"),
    )
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        str(out / "walk.error.png"),
        str(out / "walk.tiles.png"),
    ]
    grid, cells = tissue
    numbers = np.load(out / "walk.error.npz", allow_pickle=False)
    assert numbers["values"].shape == (grid.rows * 4, grid.cols * 4)
    assert np.isfinite(numbers["values"]).sum() == len(cells) * 16
    with Image.open(out / "walk.tiles.png") as sheet:
        assert sheet.size == (3 * TILE_PX + 2 * 4, 3 * TILE_PX + 2 * 4)


@pytest.mark.parametrize("head", ["mean", "rollout", "1"])
def test_attend_maps_every_patch(head, folder, slide, trained, tissue):
    out = folder / f"attended-{head}"
    said = histomae(
        "attend", slide, "--encoder", trained[0], "--out", out, "--head", head
    )
    assert said.code == 0, said.err
    assert said.out.splitlines() == [str(out / "walk.attention.png")]
    values = np.load(out / "walk.attention.npz", allow_pickle=False)["values"]
    assert np.isfinite(values).sum() == len(tissue[1]) * 16
    assert np.nanmean(values) == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def embedded(folder, slide, trained):
    out = folder / "embedded"
    said = histomae("embed", slide.parent, "--encoder", trained[0], "--out", out)
    assert said.code == 0, said.err
    return out, said


def test_embed_writes_a_vector_for_each_tile_on_tissue(embedded, tissue, trained):
    out, said = embedded
    _, cells = tissue
    found = read_features(out / "walk.h5")
    np.testing.assert_array_equal(found.cells, cells)
    encoder = TileEncoder.load(RunFolder(trained[0]).last, device="cpu")
    assert found.header.spec.encoder_id == encoder.encoder_id
    assert said.out == f"{out}: 1 slide embedded\n"
    assert f"embedding tiles: {len(cells)} of {len(cells)} (100%)" in said.err


def test_embed_again_does_the_rest(embedded, slide, trained, folder):
    out, _ = embedded
    (folder / "torn.tiff").write_bytes(b"torn")
    before = (out / "walk.h5").read_bytes()
    said = histomae(
        *("embed", slide, folder / "torn.tiff"),
        *("--encoder", RunFolder(trained[0]).encoder, "--out", out),
    )
    assert said.code == 1
    assert said.out == f"{out}: 0 slides embedded, 1 was done before\n"
    assert said.err.splitlines()[-1] == "histomae: 1 of 2 failed: torn.tiff."
    assert (out / "walk.h5").read_bytes() == before
    said = histomae(
        *("embed", slide, "--encoder", trained[0], "--out", out, "--pooling", "mean")
    )
    assert said.code == 1
    assert "pooling class_token and mean. Choose another folder" in said.err


def test_embed_makes_a_bag_of_each_region(embedded, slide, trained, folder):
    whole = read_features(embedded[0] / "walk.h5")
    grid, (row, col) = whole.header.grid, np.median(whole.cells, 0).astype(int)
    corners = grid.l0_from_grid(np.array([[col, row], [col + 3.0, row + 2.0]]))
    drawn = folder / "drawn.geojson"
    write_annotations(
        drawn,
        [
            Annotation(shapely.box(*corners.ravel()), "Duct"),
            Annotation(shapely.box(0, 0, 2, 2), "Glass"),
        ],
    )
    out = folder / "bags"
    how = ("--encoder", trained[0], "--regions", drawn, "--out", out)
    said = histomae("embed", slide, *how)
    assert said.code == 1
    assert said.out == f"{out}: 1 region embedded\n"
    assert "The region Glass of walk holds no tile of tissue" in said.err
    assert said.err.splitlines()[-1].startswith("histomae: 1 of 2 failed")
    part = read_features(out / "walk.Duct.h5")
    inside = [
        cell
        for cell in whole.cells.tolist()
        if row <= cell[0] < row + 2 and col <= cell[1] < col + 3
    ]
    assert sorted(part.cells.tolist()) == inside
    assert part.header.region == "Duct"
    said = histomae("embed", slide, *how[:4], drawn, "--out", out)
    assert said.code == 1
    assert "2 files for 1 slide" in said.err


def test_embed_with_an_encoder_of_other_people(folder, slide):
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    torch.save(model.state_dict(), folder / "theirs.pth")
    said = histomae(
        *("embed", slide, "--encoder", folder / "theirs.pth", "--out", folder / "own"),
        *("--architecture", "test_vit", "--tile-px", 32, "--precision", "f32"),
        *("--mean", 0.7, 0.5, 0.6, "--std", 0.2, 0.2, 0.2, "--device", "cpu"),
    )
    assert said.code == 0, said.err
    assert "tiles are read at 1 µm/px; --mpp chooses another" in said.err
    spec = read_features(folder / "own" / "walk.h5").header.spec
    assert (spec.encoder, spec.pooling, spec.width) == ("test_vit", "own", 64)
    assert (spec.tile_px, spec.mpp) == (32, 1.0)


def test_embed_on_a_cluster_that_is_not_there(folder, slide, trained, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("histomae.infer.cluster.CONNECT_S", 1)
    said = histomae(
        *("embed", slide, "--encoder", trained[0], "--out", folder / "far"),
        *("--scheduler", "tcp://127.0.0.1:9"),
    )
    assert said.code == 1
    assert "No scheduler answers at tcp://127.0.0.1:9" in said.err


@pytest.fixture(scope="module")
def pretrained(folder, embedded):
    """A run of PAMA on the embedded slide."""
    run = folder / "slides-run"
    how = ["--method", "pama", "--tiles-per-anchor", 18, "--epochs", 3]
    how += ["--warmup-epochs", 0, "--device", "cpu", "--precision", "f32"]
    return run, histomae("pretrain", embedded[0], "--run", run, *how)


def test_pama_is_pretrained_on_feature_files(pretrained, embedded):
    run, said = pretrained
    assert said.code == 0, said.err
    tiles = len(read_features(embedded[0] / "walk.h5").cells)
    config = RunFolder(run).config()
    assert config.batch_size == METHOD_DEFAULTS["pama"]["batch_size"]
    assert (config.feature_dim, config.mpp) == (16, MPP)
    assert "pama: 1 slide, 0 held out, at 1 µm/px; " in said.err
    checkpoint = RunFolder(run).last
    assert said.out.splitlines()[-1] == f"checkpoint: {checkpoint}"
    header = load_slide_checkpoint(checkpoint).header
    assert header.step == 3
    assert header.has_seen("walk")
    assert header.model.tiles_per_anchor == 18
    assert tiles > 18


def test_pama_on_what_are_no_features(slide, tmp_path):
    said = histomae("pretrain", slide, "--method", "pama", "--run", tmp_path / "r")
    complaint(said, slide.name, "no file of features")
    assert not (tmp_path / "r").exists()


def test_an_encoder_of_slides_looks_at_no_tiles(pretrained, slide, tmp_path):
    run, _ = pretrained
    said = histomae("attend", slide, "--encoder", run, "--out", tmp_path)
    complaint(said, "is an encoder of slides, not an encoder of tiles")


@pytest.fixture(scope="module")
def cohort(folder, make_features):
    """Features and labels of eight slides: in one class all numbers are higher."""
    features, table = folder / "cohort", folder / "labels.csv"
    rows = ["slide,patient,label"]
    for number in range(8):
        path = make_features(features / f"s{number}.h5", tiles=30, seed=number)
        read = read_features(path).values
        make_features(path, tiles=30, seed=number, values=read + 9 * (number % 2))
        rows.append(f"s{number}.svs,p{number},{('low', 'high')[number % 2]}")
    table.write_text("\n".join(rows))
    return features, table


@pytest.fixture(scope="module")
def slide_encoder(folder, cohort):
    """A run of PAMA on four of the slides."""
    run = folder / "cohort-run"
    paths = [cohort[0] / f"s{number}.h5" for number in range(4)]
    how = ["--method", "pama", "--tiles-per-anchor", 9, "--epochs", 1]
    how += ["--warmup-epochs", 0, "--held-out", 0]
    how += ["--device", "cpu", "--precision", "f32"]
    said = histomae("pretrain", *paths, "--run", run, *how)
    assert said.code == 0, said.err
    return run


def test_judge_puts_pama_beside_what_knows_no_places(cohort, slide_encoder, tmp_path):
    out = tmp_path / "scores.json"
    said = histomae(
        *("judge", cohort[0], "--labels", cohort[1], "--encoder", slide_encoder),
        *("--folds", 2, "--epochs", 2, "--device", "cpu", "--out", out),
    )
    assert said.code == 0, said.err
    first, *rows, verdict, written = said.out.splitlines()
    assert first == "8 slides of 8 patients"
    assert verdict.startswith("PAMA does not earn its keep here")
    assert written == f"scores: {out}"
    assert "PAMA was pretrained on 4 of the 8 slides it is judged on" in said.err
    found = json.loads(out.read_text())
    assert found["classes"] == ["high", "low"]
    assert found["pretrained_on"] == ["s0", "s1", "s2", "s3"]
    names = [MEAN, MIL, CLASS_TOKEN, ANCHORS, FINE_TUNED]
    assert list(found["scores"]) == names
    for name, row in zip(names, rows, strict=True):
        score = found["scores"][name]
        assert row.startswith(name)
        assert f"AUC {score['auc']['value']:.2f} (" in row
        assert np.sum(score["confusion"]) == score["slides"] == 8
        right = np.trace(score["confusion"]) / 8
        assert score["accuracy"]["value"] == right
    assert found["scores"][MEAN]["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["scores"][MEAN]["confusion"] == [[4, 0], [0, 4]]


def test_judge_without_pama(cohort, tmp_path):
    table = tmp_path / "split.csv"
    sides = ["split", *("train" if n < 6 else "test" for n in range(8))]
    rows = cohort[1].read_text().splitlines()
    table.write_text("\n".join(map(",".join, zip(rows, sides, strict=True))))
    said = histomae("judge", cohort[0], "--labels", table, "--epochs", 1)
    assert said.code == 0, said.err
    first, mean, mil = said.out.splitlines()
    assert first == "2 slides of 2 patients"
    assert mean.startswith(f"{MEAN:<17} AUC 1.00 ")
    assert mil.startswith(f"{MIL:<17} AUC ")


def test_judge_refuses_what_cannot_be_judged(
    cohort, slide_encoder, make_features, tmp_path
):
    features, table = cohort
    complaint(histomae("judge", "--labels", table), "features: none is given")
    asked = histomae("judge", features, "--labels", table, "--folds", 1)
    complaint(asked, "folds: 1 is out of range")
    both = tmp_path / "both.csv"
    both.write_text(
        "slide,patient,label,split\n"
        "s0,a,low,train\ns1,b,high,train\ns2,a,low,test\ns3,c,high,test\n"
    )
    complaint(histomae("judge", features, "--labels", both), "a is both trained on and")
    other = tmp_path / "other.csv"
    other.write_text("slide,patient,label\nx0,a,low\nx1,b,high\n")
    complaint(
        histomae("judge", features, "--labels", other),
        "other.csv names x0 and others, none of which has features",
    )
    few = tmp_path / "few.csv"
    few.write_text("slide,patient,label\ns0,a,low\ns1,a,high\ns2,a,low\n")
    complaint(histomae("judge", features, "--labels", few), "slides of two patients")
    finer = [
        make_features(tmp_path / f"s{number}.h5", tiles=20, seed=number, mpp=0.25)
        for number in range(2)
    ]
    asked = histomae("judge", *finer, "--labels", table, "--encoder", slide_encoder)
    complaint(asked, "other tiles than the model was trained on", "0.25")


def test_judge_takes_an_encoder_of_slides(cohort, trained):
    said = histomae("judge", cohort[0], "--labels", cohort[1], "--encoder", trained[0])
    complaint(said, "Choose a run with the method pama")


def test_info_on_all_that_there_is(slide, trained, taught, embedded, pretrained):
    run = RunFolder(trained[0])
    said = histomae(
        *("info", slide, run.path, run.last, run.encoder, taught[0], slide.parent),
        *(embedded[0] / "walk.h5", RunFolder(pretrained[0]).last),
    )
    assert said.code == 0, said.err
    for words in (
        "walk.tiff: slide, generic-tiff",
        "0.8 × 1 µm/px (file)",
        "run: run, done",
        "step 12 of 12",
        "last.safetensors: encoder",
        "encoder.safetensors: encoder",
        "no decoder",
        "walk.probe: probe",
        "Spots (",
        "walk.h5: features of walk, ",
        "encoder of slides ",
        "pama, 3 steps, mask ratio 0.75, decoder 128 × 1",
        "18 tiles an anchor",
        "pooling class_token",
    ):
        assert words in said.out
    assert said.out.count("walk.tiff: slide") == 2


def test_info_on_a_slide_in_a_cloud(slide, tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path))
    cloud = fsspec.filesystem("memory")
    cloud.pipe("/ward/far.tiff", slide.read_bytes())
    try:
        said = histomae("info", "memory://ward/far.tiff", "memory://ward/none.svs")
    finally:
        cloud.store.clear()
    assert "far.tiff: slide, generic-tiff" in said.out
    assert "copying far.tiff (MB)" in said.err
    assert said.code == 1
    assert "none.svs is not at memory://ward" in said.err


def test_runs_lists_the_runs_of_a_folder(trained, another, tmp_path, monkeypatch):
    said = histomae("runs", trained[0].parent)
    assert (said.code, said.err) == (0, "")
    rows = {line.split()[0]: line for line in said.out.splitlines() if line}
    assert "done" in rows["run"]
    assert "12 of 12" in rows["run"]
    assert "mae, vit_micro_patch8_32" in rows["another"]
    monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path))
    assert histomae("runs").out == f"no runs in {tmp_path / 'runs'}\n"
    complaint(histomae("runs", tmp_path / "nowhere"), "nowhere is no folder")


def test_runs_are_compared(trained, another, tmp_path):
    out = tmp_path / "compared.png"
    said = histomae("runs", "compare", trained[0], another, "--out", out)
    assert (said.code, said.err) == (0, "")
    rows = {line.split("  ")[0]: line.split() for line in said.out.splitlines()}
    assert rows["seed"][1:] == ["0", "1"]
    assert rows["epochs"][1:] == ["4", "1"]
    assert "mask_ratio" not in rows
    made = str(RunFolder(another).last_event.step)
    assert rows["steps"][1:] == ["12", "of", "12", made, "of", made]
    assert said.out.splitlines()[-1] == f"curves: {out}"
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_runs_are_compared_by_name(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path))
    for name in ("one", "two"):
        shutil.copytree(trained[0], tmp_path / "runs" / name)
    out = ("--out", tmp_path / "c.png")
    assert histomae("runs", "compare", "one", "two", *out).code == 0
    complaint(histomae("runs", "compare", "one", "three", *out), "three holds no run")
    complaint(histomae("runs", "compare", "one", *out), "runs", "Name two")
    complaint(histomae("runs", "compare", *out), "runs", "Name two")
    (tmp_path / "runs" / "two" / "config.toml").write_text("epochs = 0")
    complaint(histomae("runs", "compare", "one", "two", *out), "epochs", "at least 1")
    complaint(
        histomae("runs", "compare", "one", "one", "--out", tmp_path / "runs"), "runs"
    )


def test_sample_names_its_files(tmp_path, monkeypatch):
    from histomae.slides import sample

    files = sample.SampleSlide(*(tmp_path / name for name in ("s.tiff", "r", "n")))
    asked = {}

    def make(seed, **wanted):
        asked.update(wanted, seed=seed)
        return files

    monkeypatch.setattr(sample, "sample_slide", make)
    said = histomae("sample", "--folder", tmp_path, "--seed", 3, "--mpp", 0.25)
    assert said.out.split() == [str(tmp_path / name) for name in ("s.tiff", "r", "n")]
    assert asked == {"seed": 3, "mpp": 0.25, "folder": tmp_path}


# Exit codes and help ---------------------------------------------------------


@pytest.mark.parametrize("command", [(), *(tuple(n.split()) for n in cli.COMMANDS)])
def test_help_teaches(command):
    said = histomae(*command, "--help")
    assert said.code == 0
    assert said.err == ""
    assert "{None}" not in said.out
    assert ":func:" not in said.out
    assert "METHODS" not in said.out
    if command:
        assert said.out.startswith(f"usage: histomae {' '.join(command)} ")
    else:
        assert all(name in said.out for name in cli.COMMANDS)


def test_help_of_a_recipe_and_of_a_run_shows_their_settings(recipe, trained):
    assert "(default: 3)" in histomae("pretrain", "--recipe", recipe, "--help").out
    assert "(default: 12)" in histomae("pretrain", "--run", trained[0], "--help").out


def test_version():
    said = histomae("--version")
    assert (said.code, said.out) == (0, f"histomae {cli.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("pretrain", "--epoch", "3"),
        ("pretrain", "--epochs", "many"),
        ("pretrain", "--recipe"),
        ("predict", "a.svs"),
        ("attend", "a.svs", "--encoder", "x", "--out", "y", "--head", "left"),
        ("judge", "features"),
        ("doctor", "--cure"),
        ("runs", "there", "here"),
        ("runs", "compare", "a", "b", "--to", "c.png"),
    ],
    ids=" ".join,
)
def test_what_is_not_understood_exits_with_2(arguments):
    said = histomae(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "histomae" in said.err


# Errors are sentences --------------------------------------------------------


def nowhere(folder):
    return folder / "nowhere.svs"


def without_slides(folder):
    (folder / "papers").mkdir()
    (folder / "papers" / "notes.txt").write_text("nothing to see")
    return folder / "papers"


def empty(folder):
    (folder / "empty.svs").touch()
    return folder / "empty.svs"


def renamed(folder):
    picture = folder / "picture.svs"
    Image.new("RGB", (64, 64)).save(picture, format="PNG")
    return picture


def text(folder):
    (folder / "text.tiff").write_text("This is no slide. " * 100)
    return folder / "text.tiff"


@pytest.mark.parametrize("make", [nowhere, without_slides, empty, renamed, text])
@pytest.mark.parametrize("command", ["pretrain", "attend", "info"])
def test_what_is_no_slide_gives_a_sentence(make, command, tmp_path, trained):
    path = make(tmp_path)
    more = {
        "pretrain": ("--run", tmp_path / "run"),
        "attend": ("--encoder", trained[0], "--out", tmp_path / "out"),
        "info": (),
    }
    said = histomae(command, path, *more[command])
    complaint(said, path.name)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.real_data
@pytest.mark.parametrize("command", ["pretrain", "attend", "info"])
def test_broken_slides_give_a_sentence(command, tmp_path, shared_data, trained):
    broken = sorted((shared_data / "slides" / "broken").iterdir())
    assert broken
    more = {
        "pretrain": ("--run", tmp_path / "run"),
        "attend": ("--encoder", trained[0], "--out", tmp_path / "out"),
        "info": (),
    }
    for path in broken:
        complaint(histomae(command, path, *more[command]), path.name)


def test_one_bad_slide_does_not_keep_the_others_waiting(slide, trained, tmp_path):
    bad = empty(tmp_path)
    said = histomae(
        "attend", bad, slide, "--encoder", trained[0], "--out", tmp_path / "out"
    )
    assert said.code == 1
    assert (tmp_path / "out" / "walk.attention.png").exists()
    complaints = [line for line in said.err.splitlines() if "histomae: " in line]
    assert len(complaints) == 2
    assert "empty.svs" in complaints[0]
    assert complaints[1] == "histomae: 1 of 2 failed."
    described = histomae("info", bad, slide)
    assert described.code == 1
    assert "walk.tiff: slide" in described.out


def test_two_slides_of_one_name_do_not_overwrite_each_other(
    slide, trained, taught, tmp_path
):
    (tmp_path / "a").mkdir()
    twin = tmp_path / "a" / slide.name
    shutil.copy(slide, twin)
    said = histomae(
        *("predict", slide, twin, "--encoder", trained[0], "--probe", taught[0]),
        *("--out", tmp_path / "out"),
    )
    complaint(said, str(slide), str(twin), "--out")
    assert not (tmp_path / "out").exists()


def test_a_slide_without_a_pixel_size_asks_for_it(
    make_slide, pixels, recipe, trained, taught, tmp_path
):
    path = make_slide(pixels, mpp=None, path=tmp_path / "unsized.tiff")
    run, out = tmp_path / "run", tmp_path / "out"
    commands = {
        "pretrain": ("pretrain", path, "--recipe", recipe, "--run", run),
        "predict": (
            *("predict", path, "--encoder", trained[0], "--probe", taught[0]),
            *("--out", out),
        ),
        "attend": ("attend", path, "--encoder", trained[0], "--out", out),
    }
    for command in commands.values():
        complaint(histomae(*command), "unsized.tiff", "--slide-mpp")
    # The same command with what was asked for, in the same folder.
    for command in commands.values():
        said = histomae(*command, "--slide-mpp", 1.0)
        assert said.code == 0, said.err
    assert RunFolder(run).state == "done"
    with (out / "unsized.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["mpp_source"] == "given"
    described = histomae("info", path)
    assert described.code == 0
    assert "--slide-mpp" in described.out
    assert "1 × 1 µm/px (given)" in histomae("info", path, "--slide-mpp", 1).out


def test_a_pixel_size_in_the_file_outranks_slide_mpp(slide):
    assert "0.8 × 1 µm/px (file)" in histomae("info", slide, "--slide-mpp", 0.5).out


def test_nothing_is_upsampled_unasked(make_slide, slide, recipe, trained, tmp_path):
    said = histomae(
        *("pretrain", slide, "--recipe", recipe, "--mpp", 0.5),
        *("--run", tmp_path / "run"),
    )
    complaint(said, "walk.tiff", "invent detail")
    coarse = make_slide(mpp=2.0, path=tmp_path / "coarse.tiff")
    out = tmp_path / "out"
    said = histomae("attend", coarse, "--encoder", trained[0], "--out", out)
    complaint(said, "coarse.tiff", "invent detail")
    assert not out.exists()


def test_a_slide_without_tissue(make_slide, recipe, trained, tmp_path):
    glass = np.full((500, 600, 3), 244, np.uint8)
    path = make_slide(glass, mpp=1.0, path=tmp_path / "glass.tiff")
    said = histomae("attend", path, "--encoder", trained[0], "--out", tmp_path / "out")
    complaint(said, "glass", "tissue")
    said = histomae("pretrain", path, "--recipe", recipe, "--run", tmp_path / "run")
    complaint(said, "tissue")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("epochs = ", ("recipe", "not TOML")),
        ("speed = 3", ("speed", "is no setting")),
        ("epochs = 'many'", ("epochs", "wrong type")),
        ("epochs = 0", ("epochs", "at least 1")),
        ("patch_size = 15", ("patch_size", "does not divide")),
        (None, ("recipe", "neither a file nor one of")),
    ],
)
def test_a_wrong_recipe_gives_a_sentence(written, words, slide, tmp_path):
    path = tmp_path / "mine.toml"
    if written is not None:
        path.write_text(written)
    run = tmp_path / "run"
    complaint(histomae("pretrain", slide, "--recipe", path, "--run", run), *words)
    complaint(histomae("pretrain", slide, f"--recipe={path}", "--run", run), *words)
    assert not run.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epochs", 0), ("epochs", "at least 1")),
        (("--encoder", "vit_huge"), ("encoder", "vit_small")),
        (("--mask-ratio", 75), ("mask_ratio", "from 0 to 1")),
        (("--device", "abacus"), ("device", "'abacus' is not here")),
        (("--init-from", "nowhere.pth"), ("nowhere.pth",)),
    ],
    ids=str,
)
def test_a_wrong_setting_gives_a_sentence(options, words, slide, recipe, tmp_path):
    run = tmp_path / "run"
    said = histomae("pretrain", slide, "--recipe", recipe, *options, "--run", run)
    complaint(said, *words)
    assert not run.exists()


def test_nothing_to_do_gives_a_sentence(trained, tmp_path):
    complaint(histomae("pretrain"), "slides", "none is given")
    complaint(histomae("pretrain", "--run", tmp_path), "holds no run")
    complaint(histomae("info"), "none is given")
    encoder = ("--encoder", trained[0], "--out", tmp_path / "out")
    complaint(histomae("attend", *encoder), "slides", "none is given")
    complaint(histomae("probe", "--regions", "a.geojson", *encoder), "none is given")


def test_each_slide_has_its_regions(slide, regions, trained, tmp_path):
    encoder = ("--encoder", trained[0], "--out", tmp_path / "a.probe")
    said = histomae("probe", slide, "--regions", regions, regions, *encoder)
    complaint(said, "regions", "2 files for 1 slide.")
    said = histomae("probe", slide, "--regions", slide, *encoder)
    complaint(said, "walk.tiff is no JSON")
    said = histomae("probe", slide, "--regions", tmp_path / "none.geojson", *encoder)
    complaint(said, "none.geojson cannot be read")


@pytest.fixture(scope="module")
def own_pictures(folder, pixels):
    """A folder for each of two classes, six pictures each, cut from the slide."""
    root = folder / "own"
    for name, left in (("Spots", 70), ("Stripes", 500)):
        (root / name).mkdir(parents=True)
        for number, top in enumerate(range(70, 370, 50)):
            part = pixels[top : top + 50, left : left + 100]
            Image.fromarray(part).save(root / name / f"{number}.png")
    return root


def test_a_probe_from_pictures(own_pictures, trained, slide, tmp_path):
    out = tmp_path / "own.probe"
    common = ("--encoder", trained[0], "--out", out)
    said = histomae("probe", "--data", own_pictures, *common)
    complaint(said, "mpp", "does not tell the µm per pixel")
    said = histomae("probe", "--data", own_pictures, "--picture-mpp=1", *common)
    assert said.code == 0, said.err
    assert "names no patients" in said.err
    probe = Probe.load(out)
    assert probe.class_names == ("Spots", "Stripes")
    assert probe.scores["grouped_by"] == "picture"
    assert "grouped by picture" in said.out
    assert "Spots (18 tiles in 6 pictures)" in said.out
    said = histomae(
        *("predict", slide, "--encoder", trained[0], "--probe", out),
        *("--out", tmp_path / "map"),
    )
    assert said.code == 0, said.err
    assert (tmp_path / "map" / "walk.csv").exists()


def test_a_probe_is_of_regions_or_of_pictures(own_pictures, trained, slide, tmp_path):
    common = ("--encoder", trained[0], "--out", tmp_path / "a.probe")
    said = histomae("probe", slide, "--data", own_pictures, *common)
    complaint(said, "data", "Teach from one of both.")
    said = histomae("probe", "--data", own_pictures, "--task=binary", *common)
    complaint(said, "none called 'binary'", "Leave it out.")
    said = histomae("probe", "--data", own_pictures, "--picture-mpp=3", *common)
    complaint(said, "would invent detail")


def test_data_sets_are_listed():
    said = histomae("datasets")
    assert said.code == 0
    for words in ("bracs-roi: ", "4,539 pictures", "about 52 GB", "baac093", "binary@"):
        assert words in said.out


def test_a_download_is_checked(own_pictures, tmp_path):
    said = histomae("datasets", "check", own_pictures)
    assert said.code == 0
    assert "12  pictures" in said.out
    assert "nothing is wrong" in said.out
    for name in ("ytma10_010704_benign1_ccd.tif", "ytma10_010704_malignant1_ccd.tif"):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "more.png").write_bytes(b"")
    said = histomae("datasets", "check", tmp_path)
    complaint(said, "3 things wrong")
    assert "wrong count: Benign: 1 pictures, officially 32" in said.out
    assert "extra: more.png" in said.out
    complaint(histomae("datasets", "check", tmp_path / "none"), "does not exist")


def test_one_class_is_not_enough(slide, trained, tmp_path):
    path = tmp_path / "one.geojson"
    drawn = region(70, 70, 230, 170, "Spots", [0, 90, 180])
    path.write_text(json.dumps(drawn))
    said = histomae(
        *("probe", slide, "--regions", path, "--encoder", trained[0]),
        *("--out", tmp_path / "a.probe"),
    )
    complaint(said, "second class")
    assert not (tmp_path / "a.probe").exists()


def test_objects_that_are_no_regions_are_mentioned(slide, regions, trained, tmp_path):
    document = json.loads(regions.read_text())
    point = {"type": "Point", "coordinates": [5, 5]}
    document["features"].append(
        {"type": "Feature", "geometry": point, "properties": {}}
    )
    path = tmp_path / "more.geojson"
    path.write_text(json.dumps(document))
    said = histomae(
        *("probe", slide, "--regions", path, "--encoder", trained[0]),
        *("--out", tmp_path / "a.probe"),
    )
    assert said.code == 0
    assert "6 regions read; 1 of 7 objects left out" in said.err
    assert "left out" not in said.out


def test_attend_on_pictures_tells_the_share_of_the_lesion(tmp_path):
    random = np.random.default_rng(0)
    folder, run, out = (tmp_path / name for name in ("pictures", "run", "out"))
    whole = tmp_path / "whole.toml"
    whole.write_text(RECIPE.replace("mpp = 1.0", ""))
    folder.mkdir()
    for number in range(1, 4):
        pixels = random.integers(0, 256, (40, 60), np.uint8)
        Image.fromarray(pixels).save(folder / f"benign ({number}).png")
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:45] = 255
    Image.fromarray(mask).save(folder / "benign (2)_mask.png")
    said = histomae(
        *("pretrain", folder, "--recipe", whole, "--run", run, "--epochs", 1),
        *("--in-chans", 1, "--batch-size", 2, "--warmup-epochs", 0),
    )
    assert said.code == 0, said.err
    said = histomae("attend", folder, "--encoder", run, "--out", out)
    assert said.code == 0, said.err
    assert len(list(out.glob("*.attention.npz"))) == 3
    (told,) = [line for line in said.out.splitlines() if "lesion" in line]
    assert re.match(r"benign \(2\): \d+% of the attention .* 2[4-6]% of the pic", told)
    said = histomae("attend", folder, "--encoder", run, "--out", out, "--query", "mean")
    assert said.code == 0, said.err
    assert told not in said.out.splitlines()
    said = histomae(
        "attend", folder, "--encoder", run, "--out", out, "--class-name", "a"
    )
    complaint(said, "class_name", "Give both")


@pytest.fixture(scope="module")
def another(folder, slide, recipe):
    """A run of another encoder."""
    run = folder / "another"
    said = histomae(
        *("pretrain", slide, "--recipe", recipe, "--run", run),
        *("--seed", 1, "--epochs", 1),
    )
    assert said.code == 0, said.err
    return run


def test_pairs_of_magnifications_go_the_whole_walk(
    folder, slide, regions, recipe, trained, tmp_path
):
    run, probe, out = folder / "pairs", tmp_path / "a.probe", tmp_path / "out"
    said = histomae(
        *("pretrain", slide, "--recipe", recipe, "--run", run, "--method", "mpcs"),
        *("--view-factors", 1, 1.5, "--projector-dims", 16, 8, "--epochs", 2),
        *("--init-from", RunFolder(trained[0]).last),
    )
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == f"checkpoint: {RunFolder(run).last}"
    config = RunFolder(run).config()
    assert (config.view_factors, config.projector_dims) == ((1.0, 1.5), (16, 8))
    said = histomae("info", RunFolder(run).encoder)
    assert "  mpcs, " in said.out
    assert "steps, no decoder" in said.out
    said = histomae(
        "probe", slide, "--regions", regions, "--encoder", run, "--out", probe
    )
    assert said.code == 0, said.err
    for command in (("predict", "--probe", probe), ("attend",)):
        said = histomae(*command, slide, "--encoder", run, "--out", out)
        assert said.code == 0, said.err
    assert (out / "walk.csv").exists()
    assert (out / "walk.attention.npz").exists()
    said = histomae("reconstruct", slide, "--encoder", run, "--out", out)
    complaint(said, "without its decoder", "mae or sd-mae")


def test_a_probe_on_another_encoder_is_refused(slide, taught, another, tmp_path):
    said = histomae(
        *("predict", slide, "--encoder", another, "--probe", taught[0]),
        *("--out", tmp_path / "out"),
    )
    complaint(said, Probe.load(taught[0]).encoder_id)
    assert not (tmp_path / "out").exists()


def test_what_is_no_encoder_or_probe_is_refused(slide, trained, taught, tmp_path):
    run = RunFolder(trained[0])
    half = tmp_path / "half.safetensors"
    half.write_bytes(run.last.read_bytes()[:-1000])
    out = ("--out", tmp_path / "out")
    complaint(histomae("attend", slide, "--encoder", half, *out), "half.safetensors")
    complaint(histomae("info", half), "half.safetensors")
    said = histomae("attend", slide, "--encoder", slide.parent, *out)
    complaint(said, "holds no checkpoint")
    said = histomae("attend", slide, "--encoder", taught[0], *out)
    complaint(said, "is a probe, not an encoder")
    said = histomae("predict", slide, "--encoder", run.path, "--probe", run.last, *out)
    complaint(said, "is an encoder of tiles, not a probe")
    said = histomae("reconstruct", slide, "--encoder", run.encoder, *out)
    complaint(said, "encoder without its decoder", "last.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("attend", ("--block", 7), ("block", "from 0 to 0")),
        ("attend", ("--head", 5), ("head", "from 0 to 1")),
        ("attend", ("--min-tissue", 50), ("min_tissue", "from 0 to 1")),
        ("reconstruct", ("--mask-ratio", 75), ("mask_ratio", "from 0 to 1")),
        ("reconstruct", ("--examples", 0), ("examples", "at least 1")),
        ("reconstruct", ("--seed", -1), ("seed", "at least 0")),
        ("reconstruct", ("--device", "abacus"), ("device", "abacus")),
    ],
    ids=str,
)
def test_a_wrong_option_gives_a_sentence(
    command, options, words, slide, trained, tmp_path
):
    said = histomae(
        *(command, slide, "--encoder", trained[0], "--out", tmp_path / "out"),
        *options,
    )
    complaint(said, *words)


def test_a_folder_that_cannot_be_written(slide, trained, taught, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    said = histomae("attend", slide, "--encoder", trained[0], "--out", taken)
    complaint(said, "taken")
    said = histomae("pretrain", slide, "--run", taken / "run")
    complaint(said, "taken")


def test_libraries_that_do_not_fit_send_one_to_the_doctor(monkeypatch):
    def unfit():
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr("histomae.doctor.examine", unfit)
    complaint(histomae("doctor"), "torchvision::nms", "histomae doctor")

    def missing():
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr("histomae.doctor.examine", missing)
    complaint(histomae("doctor"), "No module named 'torch'", "histomae doctor")

    def mistaken():
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("histomae.doctor.examine", mistaken)
    with pytest.raises(RuntimeError, match="of ours"):
        histomae("doctor")


def test_ctrl_c_where_nothing_is_to_be_kept(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("histomae.doctor.examine", interrupted)
    complaint(histomae("doctor"), "broken off", code=130)


def test_a_reader_that_goes_away_is_no_error(slide, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with pytest.raises(SystemExit) as end:
            cli.main(["info", str(slide)])
        monkeypatch.undo()
    assert end.value.code == 1


def test_names_that_no_terminal_can_show(make_slide, tmp_path, monkeypatch):
    said = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", said)
    cli.main(["info", str(make_slide(path=tmp_path / "Präparat.tiff"))])
    monkeypatch.undo()
    said.flush()
    assert rb"Pr\xe4parat.tiff: slide" in said.buffer.getvalue()


# Stopping and going on -------------------------------------------------------


def wait_for_step(run: Path, child: subprocess.Popen, log: Path) -> None:
    events = RunFolder(run).events_file

    def is_made() -> bool:
        assert child.poll() is None, log.read_text()
        return events.exists() and '"Step"' in events.read_text()

    wait_until(is_made)


@pytest.fixture(scope="module")
def stopped(folder, slide, recipe):
    """A run that Ctrl-C stopped, its exit code and what it said."""
    run, log = folder / "stopped", folder / "stopped.txt"
    arguments = ["pretrain", str(slide), f"--recipe={recipe}", "--run", str(run)]
    arguments += ["--epochs", "100000"]
    # The small encoder of this module, in a process of its own.
    code = (
        "import sys; from histomae.models import vit; from histomae.cli import main; "
        "vit.ENCODER_SIZES['vit_micro'] = (16, 1, 2); main(sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": str(TRAINING), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_step(run, child, log)
        child.send_signal(signal.SIGINT)
        returned = child.wait(PATIENCE_S)
    finally:
        child.kill()
        child.wait()
    return run, returned, log.read_text()


posix_only = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


@posix_only
def test_ctrl_c_stops_and_keeps(stopped):
    path, returned, said = stopped
    run = RunFolder(path)
    assert returned == 0, said
    assert run.state == "stopped"
    assert run.last.is_file()
    assert run.encoder.is_file()
    assert not run.lock_file.exists()
    assert "Traceback" not in said
    assert "stopped at step " in said
    assert said.splitlines()[-1] == f"checkpoint: {run.last}"


@posix_only
@pytest.mark.parametrize(
    ("option", "name", "before"),
    [
        ("--epochs=400", "epochs", "100000"),  # also what is everybody's default
        ("--batch-size=13", "batch_size", "12"),
        ("--mpp=2", "mpp", "1.0"),
        ("--no-norm-pix", "norm_pix", "True"),
        ("--recipe=quick", "recipe", "keeps its settings"),
    ],
)
def test_settings_given_on_resume_are_refused_by_name(option, name, before, stopped):
    run = RunFolder(stopped[0])
    recorded = run.events_file.read_bytes()
    said = histomae("pretrain", "--run", run.path, option)
    assert complaint(said, before).startswith(f"histomae: {name}: ")
    assert run.state == "stopped"
    assert run.events_file.read_bytes() == recorded


@posix_only
def test_slides_on_resume_are_refused(stopped, slide):
    said = histomae("pretrain", slide, "--run", stopped[0])
    complaint(said, "already holds a run (stopped)", "without slides")


@posix_only
def test_a_stopped_run_goes_on(stopped, folder):
    run = RunFolder(folder / "goes-on")
    shutil.copytree(stopped[0], run.path)
    step = run.last_event.step
    # Enough of it: it stops by request, after some more steps.
    target = step + 5

    def stop_after(event):
        if isinstance(event, Step) and event.step >= target:
            run.request("stop")

    with listening(stop_after):
        said = histomae("pretrain", "--run", run.path, "--save-every", 3)
    assert said.code == 0, said.err
    assert f"going on after step {step}" in said.err
    assert run.state == "stopped"
    steps = [event.step for event in run.events() if isinstance(event, Step)]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] >= target
    assert run.config().save_every == 3
    started = [event for event in run.events() if isinstance(event, Started)]
    assert [event.step for event in started] == [0, step]


@contextlib.contextmanager
def listening(hear):
    """Tell ``hear`` of every event that is shown."""
    show = cli_shared.show_event

    def show_and_tell(event, meter):
        show(event, meter)
        hear(event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_shared, "show_event", show_and_tell)
        yield


def test_a_stop_before_the_first_step_is_no_failure(slide, recipe, tmp_path):
    run = RunFolder(tmp_path / "run")

    def stop_at_once(event):
        if isinstance(event, Started):
            run.request("stop")

    with listening(stop_at_once):
        said = histomae("pretrain", slide, "--recipe", recipe, "--run", run.path)
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1].startswith("no checkpoint: ")
    assert run.state == "stopped"


def test_a_run_that_is_done_is_left_alone(trained):
    run = RunFolder(trained[0])
    complaint(histomae("pretrain", "--run", run.path), "done")
    assert run.state == "done"


def test_a_failure_after_the_start_keeps_the_run(slide, recipe, tmp_path):
    run = RunFolder(tmp_path / "run")

    def fail(event):
        if isinstance(event, Step):
            raise HistomaeError("Something broke. Try again.")

    with listening(fail):
        said = histomae("pretrain", slide, "--recipe", recipe, "--run", run.path)
    complaint(said, "Something broke")
    assert run.config_file.exists()


def test_other_files_in_a_run_folder_are_not_ours_to_remove(recipe, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    run = RunFolder(tmp_path)
    said = histomae(
        *("pretrain", tmp_path / "nowhere.svs", "--recipe", recipe),
        *("--run", run.path),
    )
    complaint(said, "nowhere.svs")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_is_named_after_its_slide(slide, recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path))
    said = histomae("pretrain", slide, "--recipe", recipe, "--epochs", 1)
    path = Path(said.out.splitlines()[0].removeprefix("run folder: "))
    assert path.parent == tmp_path / "runs"
    assert path.name.startswith("walk_")


# Showing ---------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


def some_work():
    yield Note("begun")
    yield Progress("first", 0, 4)
    yield Progress("first", 2, 4, 1.0, 125.0)
    yield Progress("second", 1, 2)
    yield Progress("second", 2, 2)
    yield Finished(3, "done")
    return "result"


def test_a_terminal_gets_bars(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert cli_shared.show(some_work()) == "result"
    assert "\r" in screen.getvalue()
    assert "begun" in screen.getvalue()
    assert "second: 100 %|" in screen.getvalue()
    left = [line.split("\r")[-1] for line in screen.getvalue().split("\n")]
    assert not any("first" in line for line in left)  # unfinished: it was wiped
    assert any("second: 100 %" in line and "2 of 2" in line for line in left)


def test_a_pipe_gets_a_line_every_so_often(monkeypatch):
    monkeypatch.setattr(cli_shared, "LINE_EVERY_S", 10.0)
    pipe, now = io.StringIO(), [0.0]
    lines = cli_shared.Lines(pipe, clock=lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        lines.move("training", second, 1000, "loss 0.9")
    assert pipe.getvalue().splitlines() == [
        f"training: {second} of 1000 ({second / 1000:.0%}), loss 0.9"
        for second in range(10, 100, 10)
    ]
    lines.move("training", 1000, 1000, "")
    assert pipe.getvalue().splitlines()[-1] == "training: 1000 of 1000 (100%)"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (0, ""),
        (0.5, ""),
        (42.4, "42 s left"),
        (100, "2 min left"),
        (3600, "60 min left"),
        (9000, "2.5 h left"),
    ],
)
def test_time_left(seconds, said):
    assert cli_shared.time_left(seconds) == said


def test_work_that_fails_is_closed(monkeypatch):
    closed = []

    def work():
        try:
            yield Note("begun")
            yield Note("going on")
        finally:
            closed.append(True)

    def fail(event, meter):
        raise HistomaeError("It broke. Mend it.")

    monkeypatch.setattr(cli_shared, "show_event", fail)
    with pytest.raises(HistomaeError):
        cli_shared.show(work())
    assert closed == [True]


def test_a_run_records_events_that_can_be_read_back(trained):
    lines = RunFolder(trained[0]).events_file.read_text().splitlines()
    assert isinstance(event_from_json(lines[-1]), Finished)


class TestMaskCheck:
    def test_it_compares_settings_and_suggests_one(self):
        said = histomae("mask-check", "--structure-px", 16)
        assert said.code == 0
        (asked,) = [line for line in said.out.splitlines() if "asked for" in line]
        assert asked.split()[:5] == ["16", "px", "75%", "31.31%", "75.00%"]
        assert said.out.endswith("suggested: --patch-size 8 --mask-ratio 0.6\n")

    def test_lesions_are_a_distribution(self, tmp_path):
        folder = tmp_path / "benign"
        folder.mkdir()
        for number, side in enumerate((12, 16, 64)):
            grain = np.random.default_rng(number).integers(50, 250, (64, 64), np.uint8)
            lesion = np.zeros((64, 64), np.uint8)
            lesion[:side, :side] = 255
            Image.fromarray(grain).save(folder / f"benign ({number}).png")
            Image.fromarray(lesion).save(folder / f"benign ({number})_mask.png")
        asked = ("mask-check", "--tile-px", 64, "--mask-ratio", 0.5, "--busi")
        said = histomae(*asked, tmp_path)
        assert said.out.startswith("3 lesions, width in px of a tile: smallest 14, ")
        (present,) = [line for line in said.out.splitlines() if "asked for" in line]
        # Of one patch, of one patch, and of all.
        assert present.split()[:6] == ["16", "px", "50%", "33.33%", "50.00%", "66.7%"]
        assert said.out.endswith("suggested: --patch-size 4 --mask-ratio 0.5\n")
        complaint(histomae(*asked, tmp_path / "nowhere"), "Dataset_BUSI_with_GT")

    def test_micrometres_become_pixels(self):
        asked = ("mask-check", "--structure-um", 8)
        said = histomae(*asked, "--mpp", 0.5)
        assert said.out == histomae("mask-check", "--structure-px", 16).out
        complaint(histomae(*asked), "mpp", "--structure-um")
        complaint(histomae("mask-check"), "--structure-px")
        complaint(histomae("mask-check", "--structure-px", 300), "within a tile")


class TestFromPretrainingToReport:
    """One recipe for two data sets, drawn after BRACS and BACH."""

    RECIPE = """
encoder = "vit_micro"
tile_px = 32
patch_size = 8
epochs = 2
warmup_epochs = 1
batch_size = 8
decoder_dim = 16
decoder_depth = 1
decoder_heads = 2
device = "cpu"
precision = "f32"
threads = 1
"""

    @pytest.fixture(
        params=[
            (("--cases", 28, "--sets", 1), "bracs", "latest_version/train"),
            (("--cases", 24), "bach", "."),
        ],
        ids=["BRACS", "BACH"],
    )
    def walked(self, request, tmp_path):
        how, tree, unlabelled = request.param
        drawn = histomae("sample", f"--{tree}", tmp_path, "--width-px", 96, *how)
        assert drawn.code == 0, drawn.err
        root = Path(drawn.out.strip())
        (tmp_path / "recipe.toml").write_text(self.RECIPE)
        run, out = tmp_path / "run", tmp_path / "out"
        learned = histomae(
            *("pretrain", root / unlabelled, "--run", run),
            *("--recipe", tmp_path / "recipe.toml"),
        )
        assert learned.code == 0, learned.err
        command = (
            *("evaluate", "linear", "--data", root, "--encoder", run, "--out", out),
            *("--imagenet", "none", "--folds", "2", "--device", "cpu"),
        )
        return histomae(*command), out, command

    def test_the_same_recipe_leads_to_a_report(self, walked, request):
        said, out, command = walked
        assert said.code == 0, said.err
        told = json.loads((out / "evaluation.json").read_text("utf-8"))
        rows = [line.split("  ")[0] for line in said.out.splitlines()]
        assert {"run", "untrained", "colour histogram"} <= set(rows)
        page = (out / "report.html").read_text("utf-8")
        assert "untrained" in page
        # Pretrained on the train side of BRACS, and on all of BACH.
        leaks = "in pretraining of run and test" in " ".join(told["leaks"])
        assert leaks == ("BACH" in request.node.name)
        table = {path.name: path.read_bytes() for path in out.glob("*.csv")}
        again = histomae(*command)
        assert "were finished before and are kept" in again.err
        assert table == {path.name: path.read_bytes() for path in out.glob("*.csv")}
