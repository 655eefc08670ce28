"""Runs side by side: how each stands, in what they differ, their curves."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.classes import OKABE_ITO
from histomae.errors import ConfigError, HistomaeError, NotEnoughDataError, RunError
from histomae.evaluate.curves import Curves, thinned
from histomae.events import HeldOut, Started, Step
from histomae.files import runs_folder, write_beside
from histomae.learn.runs import RunFolder, list_runs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from histomae.config import PretrainConfig

Array = np.ndarray[Any, Any]
#: Said where a run has no such figure yet.
NONE = "–"
#: Of the columns of the overview.
TITLES = (
    *("run", "state", "steps", "best held-out loss", "last loss", "size"),
    *("last active", "method"),
)
#: The trend of a loss is its mean over this share of the steps.
TREND = 0.02
#: With fewer points the whole of a loss is shown.
EARLY = 8
#: So few points of a curve are marked.
FEW = 60
#: Those that are seen on white; dashed from the seventh run on.
COLOURS = [tuple(c / 255 for c in OKABE_ITO[i]) for i in (4, 5, 2, 0, 1, 6)]
STYLES = ("-", "--", ":")
#: What is drawn of each run, and what it is called.
PANELS = {"loss": "loss", "held_out_loss": "held-out loss", "lr": "learning rate"}


@dataclass(frozen=True, eq=False)
class RunReport:
    """A run as its folder tells it.

    ``crops_per_step`` and ``total_steps`` are 0 until it starts.
    """

    run: RunFolder
    state: str
    config: PretrainConfig
    curves: Curves
    step: int
    total_steps: int
    crops_per_step: int

    @classmethod
    def of(cls, run: RunFolder) -> RunReport:
        """Read a run.

        Raises
        ------
        RunError, ConfigError
            If it cannot be read.
        """
        config, curves = run.config(), Curves()
        step = total_steps = crops_per_step = 0
        for event in run.events():
            curves.add(event)
            if isinstance(event, Started | Step):
                step, total_steps = event.step, event.total_steps
            if isinstance(event, Started):
                crops_per_step = min(config.batch_size, event.crops)
        return cls(run, run.state, config, curves, step, total_steps, crops_per_step)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.run.path.resolve().name

    @property
    def best(self) -> HeldOut | None:
        """The lowest loss on crops held out."""
        steps, losses = self.curves["held_out_loss"]
        if not len(losses):
            return None
        lowest = losses.argmin()
        return HeldOut(int(steps[lowest]), float(losses[lowest]))

    def last(self, name: str) -> float | None:
        """Return the latest value of a figure."""
        values = self.curves[name][1]
        return float(values[-1]) if len(values) else None


# Lists -----------------------------------------------------------------------


def overview(folder: Path) -> list[str]:
    """Return a table of the runs in a folder, or of the one that the folder is.

    The one last active comes first; one that cannot be read says why.

    Raises
    ------
    RunError
        If there is no such folder; that of new runs may not be there yet.
    """
    if not folder.is_dir() and folder != runs_folder():
        raise RunError(f"{folder} is no folder. Name one in which runs are kept.")
    runs = list_runs(folder)
    if RunFolder(folder).config_file.exists():
        runs = [RunFolder(folder)]
    if not runs:
        return [f"no runs in {folder}"]
    rows = [_row(run) for run in sorted(runs, key=_active, reverse=True)]
    return [str(folder), "", *_table([TITLES, *rows])]


def _row(run: RunFolder) -> tuple[str, ...]:
    try:
        report = RunReport.of(run)
    except (HistomaeError, OSError) as error:
        return run.path.resolve().name, f"unreadable: {' '.join(str(error).split())}"
    return (
        report.name,
        report.state,
        _steps(report),
        _best(report),
        _number(report.last("loss")),
        _size(run),
        datetime.fromtimestamp(_active(run)).strftime("%Y-%m-%d %H:%M"),
        f"{report.config.method}, {report.config.architecture}",
    )


def _active(run: RunFolder) -> float:
    """Return when a run last said something, or was made, seconds since 1970."""
    for file in (run.events_file, run.config_file):
        with suppress(OSError):
            return file.stat().st_mtime
    return 0.0


def _size(run: RunFolder) -> str:
    total = 0
    for path in run.path.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            total += path.lstat().st_size
    megabytes = total / 1e6
    return f"{megabytes:.1f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def _steps(report: RunReport) -> str:
    return f"{report.step} of {report.total_steps}" if report.total_steps else NONE


def _best(report: RunReport) -> str:
    if report.best is None:
        return NONE
    return f"{report.best.loss:.4f} at {report.best.step}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns; the last cell of a row may be long."""
    widths = [
        max(len(row[column]) for row in rows if len(row) > column + 1)
        for column in range(max(map(len, rows)) - 1)
    ]
    return [
        "  ".join([*(f"{c:<{w}}" for c, w in zip(row[:-1], widths, strict=False))])
        + f"  {row[-1]}"
        for row in rows
    ]


# Comparisons -----------------------------------------------------------------


def compare(reports: Sequence[RunReport]) -> list[str]:
    """Return the settings in which runs differ and their figures, side by side.

    Raises
    ------
    ConfigError
        If there are not two runs at least.
    """
    if len(reports) < 2:
        raise ConfigError("runs", "there is nothing to compare. Name two at least.")
    titles = labels(reports)
    settings = differences([report.config for report in reports])
    lines = ["the settings are the same"]
    if settings:
        lines = _table([("settings that differ", *titles), *settings])
    return [*lines, "", *_table([("figures", *titles), *_figures(reports)])]


def labels(reports: Sequence[RunReport]) -> list[str]:
    """Return the names of runs; their whole paths where names are the same."""
    times = Counter(report.name for report in reports)
    return [r.name if times[r.name] == 1 else str(r.run.path) for r in reports]


def differences(configs: Sequence[PretrainConfig]) -> list[tuple[str, ...]]:
    """Return the settings that are not the same: the name, and each one's value."""
    rows = []
    for field in fields(configs[0]):
        values = [getattr(config, field.name) for config in configs]
        if any(value != values[0] for value in values):
            rows.append((field.name, *map(_told, values)))
    return rows


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        more = f" and {len(value) - 1} more" if len(value) > 1 else ""
        return f"{value[0]}{more}" if value else NONE
    return NONE if value is None else str(value)


def _figures(reports: Sequence[RunReport]) -> list[tuple[str, ...]]:
    def row(name: str, *cells: str) -> tuple[str, ...]:
        return name, *cells

    return [
        row("state", *(r.state for r in reports)),
        row("steps", *map(_steps, reports)),
        row("crops seen", *(f"{r.step * r.crops_per_step:,}" for r in reports)),
        row("last loss", *(_number(r.last("loss")) for r in reports)),
        row("best held-out loss", *map(_best, reports)),
        row("last held-out loss", *(_number(r.last("held_out_loss")) for r in reports)),
        row("images/s, median", *map(_pace, reports)),
        row("size", *(_size(r.run) for r in reports)),
    ]


def _pace(report: RunReport) -> str:
    paces = report.curves["images_per_s"][1]
    return f"{np.median(paces):.1f}" if len(paces) else NONE


def draw(path: Path, reports: Sequence[RunReport]) -> None:
    """Draw loss, held-out loss and learning rate of runs into one picture, a PNG.

    They stand against the step, and, if the runs take different numbers of crops a
    step, against the crops seen too.

    Raises
    ------
    NotEnoughDataError
        If none of the runs has made a step.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not any(report.curves.names for report in reports):
        raise NotEnoughDataError("No run has made a step. Compare them later.")
    against = {"step": [1] * len(reports)}
    crops = [report.crops_per_step for report in reports]
    if len(set(crops) - {0}) > 1:
        against["crops seen"] = crops
    figure = Figure(figsize=(2 + 5 * len(against), 8), layout="constrained")
    grid = figure.subplots(
        len(PANELS), len(against), sharex="col", sharey="row", squeeze=False
    )
    for row, name in zip(grid, PANELS, strict=True):
        row[0].set_ylabel(PANELS[name])
        for axes, scales in zip(row, against.values(), strict=True):
            for number, (report, scale) in enumerate(zip(reports, scales, strict=True)):
                steps, values = report.curves[name]
                wide = int(len(values) * TREND) if name == "loss" else 0
                _draw_curve(axes, steps * scale, values, wide, _look(number))
            axes.grid(True, color="0.9")
            axes.spines[["top", "right"]].set_visible(False)
    for axes, name in zip(grid[:2, 0], PANELS, strict=False):
        _leave_out_the_fall(axes, [report.curves[name][1] for report in reports])
    for axes, what in zip(grid[-1], against, strict=True):
        axes.set_xlabel(what)
    handles = [Line2D([], [], **_look(number)) for number in range(len(reports))]
    figure.legend(
        handles, labels(reports), loc="outside upper center", frameon=False, ncols=3
    )
    with write_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def _look(number: int) -> dict[str, Any]:
    """Return how the curves of one run look."""
    style = STYLES[number // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": style}


def _draw_curve(
    axes: Axes, x: Array, values: Array, wide: int, look: dict[str, Any]
) -> None:
    """Draw a curve; one that is noisy pale, with its trend over it."""
    if wide > 1:
        axes.plot(*thinned(x, values), linewidth=0.8, alpha=0.25, color=look["color"])
        values = trend(values, wide)
    marker = "." if len(values) <= FEW else None
    axes.plot(*thinned(x, values), marker=marker, **look)


def _leave_out_the_fall(axes: Axes, losses: Sequence[Array]) -> None:
    """Show the losses after the first quarter large: there runs differ by little."""
    late = [values[len(values) // 4 :] for values in losses if len(values) >= EARLY]
    if late:
        low, high = np.min(np.concatenate(late)), np.max(np.concatenate(late))
        margin = 0.1 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)


def trend(values: Array, width: int) -> Array:
    """Return the mean (N,) of the ``width`` values around each; ends are held."""
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), "valid")
