"""Numbers that papers and boards report, to stand beside ours.

Each row says what was measured how; none was measured here. Shares are in percent as
printed, with the spread over folds or magnifications where one was given. Sources: the
MPCS paper (Chhipa et al., WACV 2023), whose folds choose the epoch on what they test,
and the eva leaderboard for pathology (kaiko.ai, github.com/kaiko-ai/eva, table of
15 models), whose BACH and CRC scores are those of its validation side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MPCS = "MPCS (WACV 2023)"
EVA = "eva leaderboard (kaiko.ai)"
STRATEGIES = ("ImageNet", "MPCS-FP", "MPCS-OP", "MPCS-RP")


def _row(
    paper: str, what: str, metric: str, value: float, spread: float | None = None
) -> dict[str, Any]:
    return {
        "paper": paper,
        "what": what,
        "metric": metric,
        "value": value,
        "spread": spread,
    }


def _few_breakhis() -> list[dict[str, Any]]:
    """Return BreakHis with a fifth of the labels, means over the magnifications."""
    table = {
        ("EfficientNet-b2", "ILA"): (
            *((86.49, 5.63), (88.05, 3.20), (88.89, 2.99), (88.07, 3.63)),
        ),
        ("EfficientNet-b2", "PLA"): (
            *((86.30, 5.14), (88.10, 3.38), (88.80, 3.07), (88.19, 3.48)),
        ),
        ("ResNet-50", "ILA"): (
            *((86.24, 5.32), (87.68, 3.01), (88.38, 3.04), (87.55, 3.24)),
        ),
        ("ResNet-50", "PLA"): (
            *((86.09, 4.86), (87.72, 3.27), (88.38, 3.09), (87.99, 3.14)),
        ),
    }
    return [
        _row(MPCS, f"{strategy}, {encoder}, 20 % of the labels", metric, *values)
        for (encoder, metric), row in table.items()
        for strategy, values in zip(STRATEGIES, row, strict=True)
    ]


def _full_breakhis() -> list[dict[str, Any]]:
    """Return BreakHis with all labels: PLA and ILA, means over the magnifications."""
    table = {
        "EfficientNet-b2": (
            *((90.85, 91.24), (91.33, 91.61), (91.84, 91.94), (92.15, 92.23)),
        ),
        "ResNet-50": (
            *((90.33, 90.89), (91.28, 91.30), (91.82, 92.18), (91.73, 91.48)),
        ),
    }
    rows = [
        _row(MPCS, f"{strategy}, {encoder}, all labels", metric, value)
        for encoder, row in table.items()
        for strategy, values in zip(STRATEGIES, row, strict=True)
        for metric, value in zip(("PLA", "ILA"), values, strict=True)
    ]
    each = {
        "MPCS-OP": (92.45, 93.47, 92.44, 89.00),
        "MPCS-RP": (93.26, 93.57, 92.23, 89.57),
    }
    return rows + [
        _row(MPCS, f"{strategy}, EfficientNet-b2, all labels, {m}x", "PLA", value)
        for strategy, values in each.items()
        for m, value in zip((40, 100, 200, 400), values, strict=True)
    ]


def _bach() -> list[dict[str, Any]]:
    """Return BACH with all labels, on the test side: whole pictures and patches."""
    table = {
        "ImageNet": (90.50, 80.00),
        "MPCS-FP": (90.55, 82.79),
        "MPCS-OP": (91.85, 83.13),
        "MPCS-RP": (91.00, 82.90),
    }
    names = "accuracy (majority vote)", "accuracy of patches"
    return [
        _row(MPCS, f"{strategy}, ResNet-50, all labels", metric, value)
        for strategy, values in table.items()
        for metric, value in zip(names, values, strict=True)
    ]


def _bach_curve() -> list[dict[str, Any]]:
    """Return BACH with fewer labels: accuracy of pictures by majority vote."""
    table = {
        5: (51.25, 50.00, 53.00),
        10: (60.50, 61.75, 62.50),
        20: (69.25, 71.00, 69.00),
        40: (80.75, 81.75, 81.50),
        60: (87.70, 87.75, 86.50),
        80: (89.25, 90.75, 89.75),
        100: (90.55, 91.85, 91.00),
    }
    return [
        {
            **_row(
                MPCS,
                f"{strategy}, ResNet-50, {percent} % of the labels",
                "accuracy (majority vote)",
                value,
            ),
            "fraction": percent / 100,
        }
        for percent, values in table.items()
        for strategy, value in zip(STRATEGIES[1:], values, strict=True)
    ]


def _cells(column: int, how: str) -> list[dict[str, Any]]:
    table = {
        "MPCS-FP": (98.14, 96.29),
        "MPCS-OP": (98.18, 96.36),
        "MPCS-RP": (98.10, 96.22),
    }
    return [
        _row(MPCS, f"{strategy}, {how}", "accuracy", values[column])
        for strategy, values in table.items()
    ]


#: Balanced accuracy by model: BACH, CRC, PatchCamelyon (test).
BOARD = {
    "Virchow2": (88.3, 96.7, 93.8),
    "UNI2-h": (91.5, 96.5, 95.0),
    "Midnight-12k": (90.4, 96.6, 92.9),
    "H-optimus-0": (75.9, 95.5, 94.3),
    "kaiko ViT-B/8": (86.6, 95.9, 91.5),
    "Prov-GigaPath": (75.9, 95.1, 94.5),
    "UNI": (78.5, 94.4, 93.7),
    "Hibou-L": (81.0, 93.2, 95.5),
    "kaiko ViT-L/14": (86.4, 93.8, 91.1),
    "kaiko ViT-B/16": (83.5, 95.7, 90.6),
    "Phikon": (72.9, 94.0, 92.0),
    "kaiko ViT-S/8": (80.2, 95.2, 88.6),
    "Phikon-v2": (73.2, 93.9, 89.4),
    "kaiko ViT-S/16": (81.2, 94.0, 90.2),
    "Lunit ViT-S/16": (78.3, 94.0, 89.7),
}


def _board(column: int) -> list[dict[str, Any]]:
    return [
        _row(EVA, model, "balanced accuracy", values[column])
        for model, values in BOARD.items()
    ]


#: By the beginning of the data set's name in small letters, and by protocol.
TABLE: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("breakhis", "mpcs-breakhis"): _few_breakhis() + _full_breakhis(),
    ("bach", "mpcs-bach"): _bach() + _bach_curve(),
    ("bach", "few-label"): _bach_curve(),
    ("bach", "finetune"): _bach(),
    ("bach", "leaderboard"): _board(0),
    ("nct", "leaderboard"): _board(1),
    ("crc", "leaderboard"): _board(1),
    ("patchcamelyon", "leaderboard"): _board(2),
    ("pcam", "leaderboard"): _board(2),
    ("ucsb", "mpcs-bcc"): _cells(0, "fine-tuned") + _cells(1, "linear"),
    ("ucsb", "finetune"): _cells(0, "fine-tuned"),
    ("ucsb", "linear"): _cells(1, "linear"),
}


def published(protocol: str, data: str) -> tuple[Mapping[str, Any], ...]:
    """Return the rows for a protocol on a data set; none where nothing is known.

    Returns
    -------
    Each with ``paper``, ``what``, ``metric``, ``value`` (percent), ``spread`` or None,
    and ``fraction`` where labels were few.
    """
    name = "".join(char for char in data.lower() if char.isalnum())
    return tuple(
        row
        for (known, of), rows in TABLE.items()
        if of == protocol and name.startswith(known)
        for row in rows
    )
