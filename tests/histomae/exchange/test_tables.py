"""Tests of histomae.exchange.tables."""

import csv
import math

import numpy as np
import pytest

from histomae.exchange.tables import TileTable, write_csv

CANARIES = (
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "quo\"te's",
    "two\nlines",
    "two\n=lines",
    "a;=b",
    "a,=b",
    "  =1",
    "＝1",
    "\u202egnp.exe",
    "../../etc/passwd",
    "x" * 300,
    "nul\0byte",
    "ünï – µm²",
)


def make_table(**changes) -> TileTable:
    boxes = np.array([[0, 0, 324.6, 324.6], [324.6, 0, 649.2, 324.6], [-5, 9, 1, 15]])
    values = {
        "boxes_l0": boxes,
        "rows": np.array([0, 0, 3]),
        "cols": np.array([0, 1, 4]),
        "xy_um": (boxes[:, :2] + boxes[:, 2:]) / 2 * 0.69,
        "probabilities": np.array(
            [[0.5, 0.25, 0.25], [0, 0, 1], [np.nan] * 3], np.float32
        ),
        "class_names": ("Benign", "In situ", "Invasive"),
        "class_colors": ((0, 0, 255), (255, 160, 0), (200, 0, 30)),
        "slide_name": "her2st-C2",
        "slide_id": "0123abcd",
        "encoder_id": "enc0",
        "probe_id": "probe0",
        "mpp": 1.0,
        "mpp_source": "file",
    }
    return TileTable(**{**values, **changes})


def read_rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_columns_are_wsinfers_and_then_ours(tmp_path):
    write_csv(tmp_path / "t.csv", make_table())
    rows = read_rows(tmp_path / "t.csv")
    assert list(rows[0]) == [
        *("minx", "miny", "width", "height"),
        *("prob_Benign", "prob_In situ", "prob_Invasive"),
        *("row", "col", "x_um", "y_um", "predicted", "confidence", "entropy"),
        *("slide", "encoder", "probe", "mpp", "mpp_source"),
    ]
    assert rows[0]["minx"] == "0"
    assert rows[1]["minx"] == rows[1]["width"] == "324.6"
    assert rows[2]["minx"] == "-5"  # a number is no formula
    assert [r["predicted"] for r in rows] == ["Benign", "Invasive", ""]
    assert rows[1]["confidence"] == "1"
    assert (rows[2]["prob_Benign"], rows[2]["entropy"]) == ("", "")
    assert (rows[2]["row"], rows[2]["col"]) == ("3", "4")
    assert float(rows[0]["x_um"]) == pytest.approx(324.6 / 2 * 0.69, abs=0.005)
    assert (rows[0]["slide"], rows[0]["mpp"]) == ("her2st-C2", "1")


def test_entropy_is_in_nats():
    entropy = make_table().entropy
    by_hand = -sum(p * math.log(p) for p in (0.5, 0.25, 0.25))
    np.testing.assert_allclose(entropy, [by_hand, 0, np.nan], atol=1e-7)
    assert make_table().predicted == [0, 2, None]


@pytest.mark.parametrize("canary", CANARIES)
def test_no_cell_is_a_formula(tmp_path, canary):
    table = make_table(
        class_names=(canary, "b", "c"), slide_name=canary, mpp_source=canary
    )
    write_csv(tmp_path / "t.csv", table)
    text = (tmp_path / "t.csv").read_text("utf-8")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    for cell in cells:
        is_number = cell.replace(".", "").lstrip("-").isdigit()
        assert is_number or not cell.lstrip(" ").startswith(tuple("=+-@\t\r＝"))
    for separator in ",;\t\n":  # nor is a part, wherever a spreadsheet splits
        for part in text.split(separator):
            assert not part.strip('" ').startswith(("=", "@", "+"))
    row = read_rows(tmp_path / "t.csv")[0]
    assert row["slide"].replace("'", "") == canary.replace("'", "").replace("\0", "")
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_other_text_is_left_as_it_is(tmp_path):
    write_csv(tmp_path / "t.csv", make_table(slide_name="S-12 + x = 3, @home's"))
    assert read_rows(tmp_path / "t.csv")[0]["slide"] == "S-12 + x = 3,' @home's"


def test_a_table_may_be_empty(tmp_path):
    none = make_table(
        boxes_l0=np.zeros((0, 4)),
        rows=np.zeros(0, int),
        cols=np.zeros(0, int),
        xy_um=np.zeros((0, 2)),
        probabilities=np.zeros((0, 3)),
    )
    write_csv(tmp_path / "t.csv", none)
    assert read_rows(tmp_path / "t.csv") == []
    assert len(none) == 0


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"rows has shape \(2,\)"):
        make_table(rows=np.array([0, 1]))
    with pytest.raises(ValueError, match="class_colors"):
        make_table(class_colors=((0, 0, 0),))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    lone_surrogate = make_table(slide_name="\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_csv(path, lone_surrogate)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
