"""Tests of histomae.evaluate.published, and of protocols that stand beside it."""

import numpy as np
import pytest

from histomae.data import small_sets
from histomae.evaluate.protocols import PROTOCOLS
from histomae.evaluate.published import published
from histomae.evaluate.scores import ALSO_CALLED


def test_means_over_magnifications_are_those_of_the_printed_entries():
    rows = published("mpcs-breakhis", "BreakHis")
    for strategy, mean in (("MPCS-OP", 91.84), ("MPCS-RP", 92.15)):
        each = [
            row["value"]
            for row in rows
            if row["what"].startswith(f"{strategy}, EfficientNet-b2, all labels, ")
        ]
        assert len(each) == 4
        assert np.mean(each) == pytest.approx(mean, abs=0.011)


def test_the_curve_of_bach_ends_where_all_labels_are():
    curve = published("few-label", "BACH")
    at_all = {r["what"].split(",")[0]: r["value"] for r in curve if r["fraction"] == 1}
    whole = {
        r["what"].split(",")[0]: r["value"]
        for r in published("finetune", "BACH")
        if r["metric"] == "accuracy (majority vote)"
    }
    assert at_all.items() <= whole.items()


@pytest.mark.parametrize(
    ("protocol", "data", "count"),
    [
        ("leaderboard", "BACH", 15),
        ("leaderboard", "PatchCamelyon", 15),
        ("leaderboard", "NCT-CRC-HE", 15),
        ("linear", small_sets.UCSB.title, 3),
        ("linear", "My own pictures", 0),
        ("knn", "BACH", 0),
    ],
)
def test_rows_are_found_by_protocol_and_data_set(protocol, data, count):
    found = PROTOCOLS[protocol].rows(data)
    assert len(found) == count
    for row in found:
        assert 0 < row["value"] < 100
        assert row["metric"] in {
            *("accuracy", "balanced accuracy", "accuracy (majority vote)"),
            *("accuracy of patches", *ALSO_CALLED),
        }
