"""What the benchmarks share: their options, and figures with goals, printed last."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Figure:
    """One number that was measured; with a goal it can fall short.

    A value that is not a number falls short of every goal.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether it reaches its goal, if it has one."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def __str__(self) -> str:
        text = f"{self.name:<58} {self.value:>9.5g} {self.unit}".rstrip()
        for words, goal in (("at most", self.at_most), ("at least", self.at_least)):
            if goal is not None:
                text += f"  (goal: {words} {goal:g}{'' if self.is_met else ', MISSED'})"
        return text


def options(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a short form, for tests")
    parser.add_argument(
        "--plant",
        action="store_true",
        help="plant the defect that this looks for; it must then fail",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def say(text: str) -> None:
    """Tell how far it is; the standard output is for the figures."""
    print(text, file=sys.stderr, flush=True)


def load() -> Figure:
    """Return how busy the machine is: figures of time mean little without it."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return Figure("load average of the machine", busy, f"of {os.cpu_count()} cores")


def report(figures: Sequence[Figure], *, as_json: bool) -> int:
    """Print the figures and return the exit code: 1 if one falls short."""
    passed = all(figure.is_met for figure in figures)
    if as_json:
        rows = {
            figure.name: {
                # JSON knows no "not a number".
                "value": figure.value if figure.value == figure.value else None,
                "unit": figure.unit,
                "at_most": figure.at_most,
                "at_least": figure.at_least,
                "is_met": figure.is_met,
            }
            for figure in figures
        }
        # Figures are often NumPy's numbers, which json does not know.
        said = {"passed": bool(passed), "figures": rows}
        print(json.dumps(said, default=lambda number: number.item()))
    else:
        for figure in figures:
            print(figure)
        print("passed" if passed else "FAILED")
    return 0 if passed else 1
