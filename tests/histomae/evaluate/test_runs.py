"""Runs side by side: the list, the comparison, and the picture."""

import json
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histomae.config import PretrainConfig
from histomae.data.classes import OKABE_ITO
from histomae.errors import ConfigError, NotEnoughDataError, RunError
from histomae.evaluate.runs import (
    RunReport,
    compare,
    differences,
    draw,
    labels,
    overview,
    trend,
)
from histomae.events import Failed, Finished, HeldOut, Started, Step
from histomae.learn.runs import RunFolder

BLUE, VERMILLION = OKABE_ITO[4], OKABE_ITO[5]


@pytest.fixture
def make_run(tmp_path):
    """Return a function that makes a run of some steps, each with half the loss."""

    def make(name, *, steps=4, end="done", active=None, crops=90, **settings):
        run = RunFolder(tmp_path / name)
        run.create(PretrainConfig(slides=("/a.svs",), **settings))
        if steps:
            run.append(Started("mae", 0, 9, crops, 10, 7, "cpu", "f32", 0.5))
            run.append(HeldOut(0, 1.5))
        for number in range(1, steps + 1):
            loss, pace = 0.5**number, 10.0 * number
            run.append(Step(number, 9, number / 3, loss, 1e-4, 1.0, pace, 2.0))
        if steps:
            run.append(HeldOut(steps - 1, 0.75))
            run.append(HeldOut(steps, 0.875))
            run.append(Finished(steps, end))
        if active is not None:
            for file in (run.events_file, run.config_file):
                if file.exists():
                    os.utime(file, (active, active))
        return run

    return make


def cells(lines, name):
    """Return what stands in the line of a run or figure, cut where two spaces are."""
    (line,) = [line for line in lines if line.startswith(name)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


# The list --------------------------------------------------------------------


def test_a_line_tells_how_a_run_stands(make_run, tmp_path):
    made = time.mktime((2026, 3, 4, 5, 6, 0, 0, 0, -1))
    run = make_run("first", end="stopped", active=made, encoder="vit_tiny")
    (run.path / "big").write_bytes(bytes(2_500_000))
    assert cells(overview(tmp_path), "first") == [
        *("first", "stopped", "4 of 9", "0.7500 at 3", "0.0625", "2.5 MB"),
        *("2026-03-04 05:06", "mae, vit_tiny_patch16_224"),
    ]


def test_the_latest_comes_first_and_the_columns_are_straight(make_run, tmp_path):
    make_run("old", active=1000)
    make_run("a-long-name", active=3000)
    make_run("new", active=2000, end="stopped")
    folder, empty, titles, *lines = overview(tmp_path)
    assert (folder, empty) == (str(tmp_path), "")
    assert [line.split()[0] for line in lines] == ["a-long-name", "new", "old"]
    for column, words in (("state", ["done", "stopped", "done"]), ("steps", ["4"] * 3)):
        begin = titles.index(column)
        assert [line[begin:].split()[0] for line in lines] == words
        assert all(line[begin - 2 : begin] == "  " for line in lines)


def test_a_run_that_has_said_nothing_has_no_figures(make_run, tmp_path):
    make_run("new", steps=0)
    assert cells(overview(tmp_path), "new")[1:5] == ["new", "–", "–", "–"]


def garbled(run):
    run.events_file.write_bytes(b"\xff\xfe\x00nonsense\n")
    return "Not an event"


def cut_short(run):
    run.config_file.write_text("epochs = ")
    return "not TOML"


def of_another_version(run):
    run.config_file.write_text("speed = 3")
    return "is no setting"


def half_locked(run):
    run.lock_file.write_text('{"pid"')
    return "delete this file"


def not_text(run):
    run.config_file.write_bytes(b"\xff\xfe\x00")
    return "not TOML"


@pytest.mark.parametrize(
    "damage", [garbled, cut_short, of_another_version, half_locked, not_text]
)
def test_one_damaged_run_does_not_spoil_the_list(make_run, tmp_path, damage):
    make_run("good")
    words = damage(make_run("bad"))
    lines = overview(tmp_path)
    assert cells(lines, "good")[1] == "done"
    _, why = cells(lines, "bad")
    assert why.startswith("unreadable: ")
    assert words in why
    assert why.endswith(".")


def test_a_run_that_is_written_to_is_running(make_run, tmp_path):
    run = make_run("there")
    owner = {"pid": 1, "started": 1.0, "host": "elsewhere", "user": "ada", "since": 1.0}
    run.lock_file.write_text(json.dumps(owner))
    assert owner["host"] != socket.gethostname()
    assert cells(overview(tmp_path), "there")[1] == "running"


def test_a_run_folder_is_a_list_of_one(make_run, monkeypatch):
    make_run("other")
    monkeypatch.chdir(make_run("one").path)
    lines = overview(Path())
    assert len(lines) == 4
    assert lines[-1].startswith("one  done")


def test_where_no_runs_are(tmp_path, monkeypatch):
    assert overview(tmp_path) == [f"no runs in {tmp_path}"]
    with pytest.raises(RunError, match="is no folder"):
        overview(tmp_path / "nowhere")
    monkeypatch.setenv("HISTOMAE_HOME", str(tmp_path))
    assert overview(tmp_path / "runs") == [f"no runs in {tmp_path / 'runs'}"]


# The comparison --------------------------------------------------------------


def test_only_settings_that_differ_are_told(make_run):
    runs = [
        make_run("a", seed=1, batch_size=64),
        make_run("b", seed=2, batch_size=64, init_from="timm:vit_tiny"),
    ]
    rows = differences([run.config() for run in runs])
    assert rows == [("init_from", "random", "timm:vit_tiny"), ("seed", "1", "2")]
    assert differences([runs[0].config()] * 2) == []


def test_many_slides_are_told_in_short():
    few = PretrainConfig(slides=("/a.svs",))
    many = PretrainConfig(slides=("/a.svs", "/b.svs", "/c.svs"))
    assert differences([few, many, PretrainConfig()]) == [
        ("slides", "/a.svs", "/a.svs and 2 more", "–")
    ]


def test_figures_stand_side_by_side(make_run):
    runs = [
        make_run("a", steps=4, batch_size=64),
        make_run("b", steps=3, batch_size=256, end="stopped"),
        make_run("c", steps=0),
    ]
    lines = compare([RunReport.of(run) for run in runs])
    table = lines[lines.index("") + 1 :]

    def told(name):
        return cells(table, name)[1:]

    assert told("figures") == ["a", "b", "c"]
    assert told("state") == ["done", "stopped", "new"]
    assert told("steps") == ["4 of 9", "3 of 9", "–"]
    assert told("crops seen") == ["256", "270", "0"]  # 90 crops are a batch at most
    assert told("last loss") == ["0.0625", "0.1250", "–"]
    assert told("best held-out") == ["0.7500 at 3", "0.7500 at 2", "–"]
    assert told("last held-out") == ["0.8750", "0.8750", "–"]
    assert told("images/s") == ["25.0", "20.0", "–"]


def test_the_same_settings_are_said_to_be(make_run):
    reports = [RunReport.of(make_run(name)) for name in "ab"]
    assert compare(reports)[0] == "the settings are the same"


def test_a_report_is_of_the_steps_that_count(make_run):
    """A run that was cut back, and one that failed."""
    run = make_run("a", steps=5)
    run.cut_back(3)
    run.append(Started("mae", 3, 9, 90, 10, 7, "cpu", "f32", 0.5))
    run.append(Failed("It broke. Mend it."))
    report = RunReport.of(run)
    assert (report.step, report.state, report.best.loss) == (3, "failed", 1.5)
    assert report.curves["loss"][0].tolist() == [1, 2, 3]


def test_one_run_is_nothing_to_compare(make_run):
    with pytest.raises(ConfigError, match="Name two"):
        compare([RunReport.of(make_run("a"))])


def test_runs_of_one_name_are_told_apart(make_run):
    runs = [make_run("x/same"), make_run("y/same"), make_run("other")]
    assert labels([RunReport.of(run) for run in runs]) == [
        *(str(runs[0].path), str(runs[1].path), "other")
    ]


# The picture -----------------------------------------------------------------


def ink(path, color):
    """Return the pixels of a colour: for each row of panels and column, how many."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    near = (abs(pixels - color) < 40).all(-1)
    return near, pixels.shape


def test_all_curves_are_in_one_picture(make_run, tmp_path):
    reports = [RunReport.of(make_run(name, steps=9)) for name in "ab"]
    draw(tmp_path / "out" / "curves.png", reports)
    for color in (BLUE, VERMILLION):
        near, (height, width, _) = ink(tmp_path / "out" / "curves.png", color)
        assert width < height
        for third in np.split(near[: height // 3 * 3], 3):
            if color == VERMILLION:  # the second run lies over the first
                assert third.sum() > 300
        assert near[: height // 20].sum() > 20  # the legend


def test_crops_seen_are_drawn_too_where_batches_differ(make_run, tmp_path):
    reports = [
        RunReport.of(make_run("a", steps=9, batch_size=20)),
        RunReport.of(make_run("b", steps=9, batch_size=80)),
    ]
    draw(tmp_path / "curves.png", reports)
    spans = []
    for color in (BLUE, VERMILLION):
        near, (height, width, _) = ink(tmp_path / "curves.png", color)
        assert width > height
        right = near[height // 3 :, width // 2 :]
        spans.append(np.ptp(np.flatnonzero(right.any(0))))
    assert 0.15 < spans[0] / spans[1] < 0.3  # a quarter of the other's crops


def test_no_curve_no_picture(make_run, tmp_path):
    reports = [RunReport.of(make_run(name, steps=0)) for name in "ab"]
    with pytest.raises(NotEnoughDataError, match="Compare them later"):
        draw(tmp_path / "curves.png", reports)
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("wide", [1, 2, 5, 8])
def test_a_trend_is_the_mean_around_each_point(wide):
    values = np.random.default_rng(0).random(30)
    plain = []
    for at in range(30):
        around = range(at - wide // 2, at - wide // 2 + wide)
        plain.append(np.mean([values[min(max(i, 0), 29)] for i in around]))
    np.testing.assert_allclose(trend(values, wide), plain)
