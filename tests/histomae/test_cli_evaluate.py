"""The command 'evaluate': from a table of pictures to scores and a report."""

import contextlib
import csv
import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from histomae import cli
from histomae.evaluate import examine
from histomae.evaluate.trial_files import load_evaluation
from histomae.learn.runs import RunFolder
from histomae.models.checkpoint import CheckpointHeader, save_checkpoint
from histomae.models.encoders import build
from histomae.models.vit import EncoderSpec

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = EncoderSpec(tile_px=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
BARE = ("--imagenet", "none", "--device", "cpu", "--folds", "3")


@dataclass
class Said:
    code: int
    out: str
    err: str


def histomae(*arguments):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(one) for one in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures of stripes and of noise, six patients, listed in a CSV."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = [("path", "label", "patient")]
    for number in range(24):
        striped = number % 2
        pixels = rng.integers(80, 140, (48, 48, 3))
        pixels += striped * 50 * (np.arange(48) // 4 % 2)[:, None, None]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        label = "striped" if striped else "plain"
        rows.append((f"{number}.png", label, f"p{number // 4}"))
    with (folder / "pictures.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "pictures.csv"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    header = CheckpointHeader(
        architecture="vit_test_patch8_32",
        encoder=SPEC,
        decoder=None,
        method="mae",
        mask_ratio=0.75,
        norm_pix=True,
        mean=(0.7, 0.5, 0.65),
        std=(0.2, 0.25, 0.18),
        tile_px=32,
        mpp=1.0,
        mpp_given=False,
        step=12,
        config_hash="0123abcd",
    )
    module = build(SPEC, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("run") / "small.safetensors"
    save_checkpoint(path, header, module.state_dict())
    return path


def test_a_table_of_pictures_becomes_a_table_of_scores(table, encoder, tmp_path):
    out = tmp_path / "out"
    arguments = ("evaluate", "linear", "--data", table, "--encoder", encoder)
    said = histomae(*arguments, "--out", out, *BARE)
    assert said.code == 0, said.err
    assert "balanced accuracy" in said.out
    for name in ("small", "untrained", "colour histogram"):
        assert any(line.startswith(name) for line in said.out.splitlines())
    assert f"report: {out / 'report.html'}" in said.out
    assert (out / "report.html").stat().st_size > 1000
    evaluation = load_evaluation(out)
    assert len(evaluation.trials) == 9
    assert evaluation.facts["candidates"]["small"]["kind"] == "encoder"
    with (out / "scores.csv").open() as file:
        reached = {
            row["candidate"]: float(row["mean"])
            for row in csv.DictReader(file)
            if row["metric"] == "balanced accuracy"
        }
    assert reached["small"] > 0.9
    again = histomae(*arguments, "--out", out, *BARE)
    assert "9 of 9 trials were finished before and are kept." in again.err
    assert again.out == said.out
    quick = histomae(*arguments, "--out", out, *BARE, "--no-compare-pixels")
    told = (quick.out + quick.err).lower()
    assert told.count("pixels were not compared") == 1  # of three folds


RECIPE = """
encoder = "vit_micro"
tile_px = 32
patch_size = 8
decoder_dim = 16
decoder_depth = 1
decoder_heads = 2
epochs = 1
warmup_epochs = 0
batch_size = 8
device = "cpu"
precision = "f32"
threads = 1
"""


def test_one_command_pretrains_for_each_value_and_examines_them(
    table, encoder, tmp_path
):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    out = tmp_path / "out"
    arguments = (
        *("evaluate", "knn", "--data", table, "--encoder", encoder, "--out", out),
        *("--pretrain", table.parent, "--recipe", tmp_path / "recipe.toml", *BARE),
        *("--vary", "mask_ratio=0.5,0.75", "decoder_depth=2"),
    )
    said = histomae(*arguments)
    assert said.code == 0, said.err
    runs = sorted((out / "pretrained").iterdir())
    assert [run.name for run in runs] == ["mask_ratio-0.5", "mask_ratio-0.75"]
    assert all(RunFolder(run).config().decoder_depth == 2 for run in runs)
    rows = [line.split("  ")[0] for line in said.out.splitlines()]
    assert rows[1:6] == [
        *("encoder mask_ratio 0.5", "encoder mask_ratio 0.75", "small"),
        *("untrained 1", "untrained 2"),
    ]
    # All that is tested on was pretrained on, by both in the same way.
    evaluation = load_evaluation(out)
    both = "pretraining of encoder mask_ratio 0.5, encoder mask_ratio 0.75"
    assert any(f"files in {both} and test" in leak for leak in evaluation.leaks)
    assert "the pretraining of small" in evaluation.not_looked_for
    page = (out / "report.html").read_text("utf-8")
    assert "Balanced accuracy by mask ratio" in page
    again = histomae(*arguments)
    assert "2 of 2 pretrainings were done before and are kept." in again.err
    assert again.out == said.out


def test_ctrl_c_keeps_finished_trials(table, encoder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    saved = []
    save_trial = examine.save_trial

    def save_and_press(path, trial):
        save_trial(path, trial)
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(examine, "save_trial", save_and_press)
    arguments = ("evaluate", "knn", "--data", table, "--encoder", encoder)
    said = histomae(*arguments, "--out", out, *BARE)
    assert said.code == 130
    assert "the same command goes on" in said.err
    assert not (out / "evaluation.json").exists()
    monkeypatch.undo()
    said = histomae(*arguments, "--out", out, *BARE)
    assert said.code == 0, said.err
    assert "2 of 9 trials were finished before and are kept." in said.err


@pytest.mark.parametrize(
    ("protocol", "more", "words"),
    [
        ("linea", (), "Choose linear, knn"),
        ("transfer", (), "the data set to test on"),
        ("linear", ("--test-data", "here"), "Choose transfer"),
        ("mask-ratio", (), "different mask_ratio, and these have 0.75"),
        ("linear", ("--vary", "masks"), "masks: is no setting"),
        ("linear", ("--recipe", "quick"), "Name slides there"),
        ("linear", ("--tiles", "patches", "--overlap", "1"), "from 0 to 0.9"),
        ("linear", ("--kind", "bach"), "BACH"),
    ],
)
def test_what_cannot_be_done_gives_a_sentence(
    protocol, more, words, table, encoder, tmp_path
):
    said = histomae(
        *("evaluate", protocol, "--data", table, "--encoder", encoder),
        *("--out", tmp_path / "out", *BARE, *more),
    )
    assert said.code == 1
    assert words in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize("sweep", [False, True], ids=["examined", "pretrained"])
def test_another_data_set_in_the_same_folder_is_refused(
    table, encoder, tmp_path, sweep
):
    out = tmp_path / "out"
    out.mkdir()
    asked = {"protocol": "linear", "data": "other", "candidates": {}, "settings": {}}
    (out / "asked.json").write_text(json.dumps(asked))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    pretrained = ("--pretrain", table.parent, "--recipe", tmp_path / "recipe.toml")
    said = histomae(
        *("evaluate", "linear", "--data", table, "--encoder", encoder),
        *("--out", out, *BARE),
        *((*pretrained, "--vary", "mask_ratio=0.5,0.75") if sweep else ()),
    )
    assert said.code == 1
    assert "data was other" in said.err
    assert [path.name for path in out.iterdir()] == ["asked.json"]
