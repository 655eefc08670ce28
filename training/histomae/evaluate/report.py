"""The report of an evaluation: one page that needs nothing else, and JSON beside it.

The same evaluation gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import DataSetError
from histomae.evaluate.point_maps import available
from histomae.evaluate.report_plots import (
    COLOURINGS,
    Colouring,
    Ink,
    along_words,
    colouring,
    plot_calibration,
    plot_confusion,
    plot_curve,
    plot_map,
    plot_roc,
    plot_scores,
)
from histomae.evaluate.scores import ALSO_CALLED, MAIN
from histomae.evaluate.summary import FIGURES, best_of, setting_words, summarise
from histomae.evaluate.summary_files import NAME, to_json
from histomae.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from histomae.evaluate.point_maps import PointMap
    from histomae.evaluate.summary import Measured, Score, Summary, Versus
    from histomae.evaluate.trials import Evaluation

Array = np.ndarray[Any, Any]
PAGE = "report.html"
#: Longest side of the picture of a mistake, pixels.
THUMB_PX = 168
#: Dots per inch of what is drawn as pixels inside a figure: the points of maps.
DPI = 150
#: So that the same figure is the same text.
SVG_STYLE = {
    "svg.hashsalt": "histomae",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}


@dataclass(frozen=True)
class Plot:
    """A figure of the page: an address that holds it whole, and words for it."""

    source: str
    title: str
    words: str


def write_report(
    evaluation: Evaluation,
    folder: str | Path,
    *,
    maps: Sequence[str] | None = None,
) -> Path:
    """Write ``report.html`` and ``report.json`` into a folder; return the page.

    Parameters
    ----------
    maps
        How features are laid out: ``pca``, ``tsne``, ``umap``; None: all that can be
        used here.

    Raises
    ------
    DependencyError
        If a map needs a library that is not installed.
    """
    ways = available() if maps is None else maps
    summary = summarise(evaluation, maps=ways)
    page = render(summary, thumbnails(evaluation, summary))
    folder = Path(folder)
    for name, text in ((NAME, to_json(summary)), (PAGE, page)):
        with write_beside(folder / name) as beside:
            beside.write_text(text, "utf-8", newline="\n")
    return folder / PAGE


def thumbnails(evaluation: Evaluation, summary: Summary) -> dict[int, str]:
    """Return the pictures of the mistakes as addresses; what is unreadable is empty."""
    return {
        mistake.row: _thumbnail(evaluation, mistake.row) for mistake in summary.mistakes
    }


def _thumbnail(evaluation: Evaluation, row: int) -> str:
    from PIL import Image

    try:
        pixels = evaluation.data.read(evaluation.data.pictures[row])
    except DataSetError:
        return ""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMB_PX, THUMB_PX))
    kept = io.BytesIO()
    picture.save(kept, "JPEG", quality=88)
    return _address("image/jpeg", kept.getvalue())


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# ---- the page


def render(summary: Summary, thumbs: Mapping[int, str]) -> str:
    """Return the page of a summary.

    Parameters
    ----------
    thumbs
        The addresses of the pictures of its mistakes, by row.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    house = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    house.filters |= {"figure": figure_words, "spread": spread_words, "value": plain}
    score = summary.score(summary.ours)
    assert score is not None
    return house.get_template("report.html.j2").render(
        summary=summary,
        score=score,
        shown=FIGURES,
        setting_words=setting_words,
        stamp=leak_stamp(summary),
        tables=_tables(summary),
        published=_published(summary, score),
        facts=_facts(summary.facts),
        scores_plot=_scores_plot(summary),
        ours_plots=_ours_plots(summary, score),
        curve_plots=_curve_plots(summary),
        map_plots=_map_plots(summary),
        mistakes=[(one, thumbs.get(one.row, "")) for one in summary.mistakes],
    )


def leak_stamp(summary: Summary) -> tuple[str, str]:
    """Return the leak stamp: ``found``, ``none`` or ``unknown``, and its words.

    They say among what leaks were looked for, and among what not; ``none`` is only said
    where nothing was left out.
    """
    if summary.leaks is None:
        return "unknown", "Leaks were not looked for"
    many, left_out = len(summary.leaks), summary.not_looked_for
    said = f"{many or 'No'} {'leaks were' if many > 1 else 'leak was'} found"
    if summary.looked_for:
        said += f" among {_listed(summary.looked_for)}"
    if left_out:
        said += f". Not looked for: {_listed(left_out)}"
    return "found" if many else "unknown" if left_out else "none", said


def _listed(names: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def figure_words(figure: Measured | None, form: str = "%.3f") -> str:
    """Return ``0.812 ± 0.031``, as far as it is known."""
    if figure is None or math.isnan(figure.mean):
        return "–"
    if math.isnan(figure.std):
        return form % figure.mean
    return f"{form % figure.mean} ± {form % figure.std}"


def spread_words(figure: Measured | Versus | None, form: str = "%.3f") -> str:
    """Return ``0.750 to 0.871``; empty where there is no interval."""
    if figure is None or math.isnan(figure.low):
        return ""
    return f"{form % figure.low} to {form % figure.high}"


def plain(value: Any, digits: int = 4) -> str:
    """Return a value in words, a number to so many digits; a dash for what is none."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.{digits}g}"
    return str(value)


def _tables(summary: Summary) -> list[tuple[str, list[tuple[str, Score, set[str]]]]]:
    """Return the tables: each row's name, its score, and the figures it is best in."""
    tables = []
    for setting, shown in summary.tables():
        best = {name: best_of(shown, name) for name in FIGURES}
        rows = [
            (
                _row_words(summary, score),
                score,
                {name for name in best if score in best[name]},
            )
            for score in shown
        ]
        varied = f"by {' and '.join(map(along_words, summary.varied))}"
        told = setting_words(setting) if setting or not summary.varied else varied
        tables.append((told, rows))
    return tables


def _row_words(summary: Summary, score: Score) -> str:
    """Return what a row is called: its candidate, and what was varied."""
    varied = {k: v for k, v in score.setting.items() if k in summary.varied}
    return f"{score.candidate} · {setting_words(varied)}" if varied else score.candidate


def _published(summary: Summary, score: Score) -> list[dict[str, str]]:
    """Return the papers' rows with ours beside each, on the scale of the paper."""
    rows = []
    for row in summary.published:
        metric = str(row.get("metric", ""))
        mine = score.figures.get(ALSO_CALLED.get(metric, metric))
        value = row.get("value")
        percent = isinstance(value, int | float) and value > 1
        rows.append(
            {
                "paper": str(row.get("paper", "")),
                "what": str(row.get("what", "")),
                "metric": metric,
                "value": plain(value) if value is not None else "–",
                "spread": plain(row["spread"]) if row.get("spread") else "",
                "ours": plain(mine.mean * (100 if percent else 1)) if mine else "–",
            }
        )
    return rows


def _facts(facts: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return facts as pairs of words, what is nested named by its path."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        words = f"{before}{str(name).replace('_', ' ')}"
        if isinstance(value, dict):
            rows += _facts(value, f"{words} · ")
        elif isinstance(value, list | tuple):
            rows.append((words, ", ".join(map(plain, value)) or "–"))
        elif value is None:
            rows.append((words, "not known"))
        elif isinstance(value, bool):
            rows.append((words, "yes" if value else "no"))
        else:
            rows.append((words, plain(value)))
    return rows


# ---- its figures


def _scores_plot(summary: Summary) -> Plot:
    many = len(summary.candidates)
    told = [
        f"{who} {figure_words(score.figures[MAIN])}"
        for who in summary.candidates
        if (score := summary.score(who))
    ]
    return _plot(
        (7.2, 0.9 + 0.36 * many),
        lambda axes: plot_scores(axes, summary, Ink()),
        "Balanced accuracy of each candidate",
        f"Dots are means, strokes the trials, bars 95 % intervals over patients; the "
        f"broken line is chance. {'; '.join(told)}.",
    )


def _ours_plots(summary: Summary, score: Score) -> list[Plot]:
    kinds = len(summary.classes)
    side = float(np.clip(1.6 + 0.45 * kinds, 3.4, 4.6))
    areas = [f"{summary.classes.names[r.label]} {r.area:.2f}" for r in score.rocs]
    return [
        _plot(
            (side + 0.6, side),
            lambda axes: plot_confusion(
                axes, np.array(score.confusion), summary.classes.names, Ink()
            ),
            "Which class was taken for which",
            "Rows are true classes with their number of tests, shades the share of "
            "the row.",
        ),
        _plot(
            (4.6, 4.4),
            lambda axes: plot_roc(axes, score.rocs, summary, Ink()),
            "ROC, each class against the rest",
            f"Area under the curve: {', '.join(areas) or 'nothing to score'}.",
        ),
        _plot(
            (4.6, 4.4),
            lambda axes: plot_calibration(axes, score.calibration, Ink()),
            "Calibration",
            "On the broken line it is as often right as it says; below, it is too "
            f"sure. Grey: how many predictions are so sure. Expected calibration "
            f"error of all trials together {score.calibration.ece:.3f}.",
        ),
    ]


def _curve_plots(summary: Summary) -> list[Plot]:
    return [
        _plot(
            (6.4, 3.8),
            partial(_draw_curve, summary, along),
            f"Balanced accuracy by {along_words(along)}",
            "Means over trials; bars are 95 % intervals over patients, broken lines "
            f"what it does not concern. {_curve_words(summary, along)}",
        )
        for along in summary.along
    ]


def _draw_curve(summary: Summary, along: str, axes: Any) -> None:
    plot_curve(axes, summary, Ink(), along)


def _curve_words(summary: Summary, along: str) -> str:
    told = []
    for curve in summary.curves(along):
        if curve.candidate == summary.ours:
            points = [f"{plain(v)}: {figure_words(m)}" for v, m in curve.points]
            beside = f" ({setting_words(curve.setting)})" if curve.setting else ""
            told.append(f"{curve.candidate}{beside} {', '.join(points)}.")
    return " ".join(told)


def _map_plots(summary: Summary) -> list[tuple[str, list[Plot]]]:
    """Return the maps of ours, each in every colouring that tells groups apart."""
    rows = []
    for one in summary.maps:
        if one.candidate == summary.ours:
            ways = [
                (by, colouring(summary, one.rows.tolist(), by)) for by in COLOURINGS
            ]
            told = [
                _map_plot(one, colours, by)
                for by, colours in ways
                if (colours.of >= 0).any()
            ]
            rows.append((one.words, told))
    return rows


def _map_plot(one: PointMap, colours: Colouring, by: str) -> Plot:
    return _plot(
        (2.7, 2.7),
        lambda axes: plot_map(axes, one.xy, colours, Ink(letters=8), names=one.axes),
        f"By {by}",
        _map_words(one, colours, by),
    )


def _map_words(one: PointMap, colours: Colouring, by: str) -> str:
    if by in ("class", "prediction"):
        return f"{one.words} of {len(one.rows)} pictures by {by}."
    many = len(colours.names)
    return f"{one.words}, a colour for each of {many} {by}s."


def _plot(
    size: tuple[float, float], draw: Callable[[Any], None], title: str, words: str
) -> Plot:
    """Draw one figure of ``size`` inches into an address that needs nothing else."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    kept = io.StringIO()
    with rc_context(SVG_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(
            kept, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None}
        )
    drawn = kept.getvalue()
    drawn = drawn[drawn.index("<svg") :]  # without the address of its grammar
    return Plot(_address("image/svg+xml", drawn.encode()), title, words)
