"""The plots of a report, drawn on axes that somebody else made.

The same functions draw for the page and for the dock; what differs is the ink.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.classes import OKABE_ITO, UNSURE
from histomae.evaluate.scores import FRACTION, MAIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histomae.data.classes import Color
    from histomae.evaluate.summary import Calibration, Roc, Summary

Array = np.ndarray[Any, Any]

#: Longest name that is written out.
NAME_LETTERS = 16
#: Groups of a map that its legend names; of more it only tells how many.
MOST_NAMED = 8
#: How points of a map may be coloured.
COLOURINGS = ("class", "prediction", "patient", "slide")
#: Of curves of one candidate, so that they are told apart.
MARKS = ("o-", "s--", "^:", "D-.", "v-", "P--")
#: Turn of the wheel from one hue to the next, so that neighbours differ most.
GOLDEN = 0.618034


@dataclass(frozen=True)
class Ink:
    """What a plot is drawn in: colours as matplotlib takes them, letters in points."""

    text: str = "#1d2330"
    ground: str = "#ffffff"
    faint: str = "#e4e7ee"
    strong: str = "#5b7fd6"
    letters: float = 9.0


@dataclass(frozen=True, eq=False)
class Colouring:
    """Which group each of m points belongs to: ``of`` int (m,), -1 for none."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    of: Array

    @property
    def rgb(self) -> Array:
        """The colour of each point, float (m, 3), 0 to 1; grey without a group."""
        return np.array([*self.colors, UNSURE], float)[self.of] / 255


def groups_of(values: Sequence[str]) -> Colouring:
    """Colour points by what stands beside them, such as patients; empty is none."""
    names = tuple(sorted({value for value in values if value}))
    place = {name: i for i, name in enumerate(names)}
    of = np.array([place.get(value, -1) for value in values], int)
    return Colouring(names, colours_for(len(names)), of)


def colours_for(many: int) -> tuple[Color, ...]:
    """Return so many colours: the palette's, or hues that go round and round."""
    if many <= len(OKABE_ITO):
        return OKABE_ITO[:many]
    colours = []
    for i in range(many):
        lightness = (0.42, 0.58, 0.7)[i % 3]
        rgb = colorsys.hls_to_rgb(i * GOLDEN % 1, lightness, 0.65)
        colours.append(tuple(round(255 * part) for part in rgb))
    return tuple((r, g, b) for r, g, b in colours)


def colouring(summary: Summary, rows: Sequence[int], by: str) -> Colouring:
    """Colour pictures (rows of the data set) by one of ``COLOURINGS``."""
    pictures = [summary.pictures[row] for row in rows]
    if by in ("patient", "slide"):
        return groups_of([getattr(picture, by) for picture in pictures])
    if by == "prediction":
        labels = [summary.predicted.get(row, (-1, 0.0))[0] for row in rows]
    else:
        labels = [picture.label for picture in pictures]
    classes = summary.classes
    return Colouring(classes.names, classes.colors, np.array(labels, int))


# ---- plots


def prepare(axes: Any, ink: Ink, *, grid: bool = True) -> None:
    """Clear axes and give them their colours."""
    axes.clear()
    axes.set_axis_on()
    axes.set_aspect("auto")
    axes.figure.set_facecolor(ink.ground)
    axes.set_facecolor(ink.ground)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(colors=ink.text, labelsize=ink.letters - 1, length=0, pad=3)
    axes.grid(False)
    if grid:
        axes.grid(True, color=ink.faint, linewidth=0.8)
    axes.set_axisbelow(True)


def plot_confusion(
    axes: Any,
    confusion: Array | Sequence[Sequence[int]],
    names: Sequence[str],
    ink: Ink,
    *,
    counts: Mapping[str, int] | None = None,
) -> None:
    """Draw which class was taken for which: (K, K), rows true, columns predicted.

    A cell is shaded by its share of the row and holds the number.

    Parameters
    ----------
    counts
        What stands beside each true class; None: its row's sum.
    """
    from matplotlib.colors import LinearSegmentedColormap

    prepare(axes, ink, grid=False)
    matrix = np.asarray(confusion)
    total = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    shades = LinearSegmentedColormap.from_list("rows", [ink.faint, ink.strong])
    axes.pcolormesh(
        share, cmap=shades, vmin=0, vmax=1, edgecolors=ink.ground, linewidth=1.5
    )
    axes.invert_yaxis()
    letters = ink.letters - (0 if len(matrix) <= 5 else 1)
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{count:,}",
            ha="center",
            va="center",
            fontsize=letters,
            color=ink.text,
            alpha=0.35 if count == 0 else 1.0,
        )
    places = np.arange(len(matrix)) + 0.5
    beside = [int(n) for n in total[:, 0]]
    if counts is not None:
        beside = [counts.get(name, 0) for name in names]
    cut = [short(name) for name in names]
    told = [f"{name} · {many:,}" for name, many in zip(cut, beside, strict=True)]
    axes.set_xticks(places, cut, fontsize=letters)
    axes.set_yticks(places, told, fontsize=letters)
    if sum(map(len, cut)) > 34:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlabel("was taken for", fontsize=letters, color=ink.text, labelpad=2)


def plot_roc(axes: Any, rocs: Sequence[Roc], summary: Summary, ink: Ink) -> None:
    """Draw how many of each class are found at how many false alarms."""
    prepare(axes, ink)
    axes.plot([0, 1], [0, 1], color=ink.text, alpha=0.35, linewidth=0.8, dashes=(4, 3))
    for roc in rocs:
        name = short(summary.classes.names[roc.label])
        _line(
            axes,
            roc.false_positive,
            roc.true_positive,
            summary.classes.colors[roc.label],
            ink,
            f"{name} {roc.area:.2f}",
        )
    _unit_square(axes)
    _label(axes, ink, "false alarms (of the others)", "found (of the class)")
    if rocs:
        _legend(axes, ink, "lower right", "area under it")


def plot_calibration(axes: Any, found: Calibration, ink: Ink) -> None:
    """Draw how often predictions are right that are so sure; on the line is honest."""
    prepare(axes, ink)
    bins = len(found.count)
    places = (np.arange(bins) + 0.5) / bins
    share = np.array(found.count) / max(1, sum(found.count))
    axes.bar(places, share, width=0.9 / bins, color=ink.text, alpha=0.15, linewidth=0)
    axes.plot([0, 1], [0, 1], color=ink.text, alpha=0.35, linewidth=0.8, dashes=(4, 3))
    sure, right = np.array(found.confidence), np.array(found.accuracy)
    known = np.isfinite(sure)
    axes.plot(
        sure[known], right[known], "o-", color=ink.strong, linewidth=1.6, markersize=4
    )
    _unit_square(axes)
    _label(axes, ink, "how sure it is", "how often it is right")
    axes.text(
        0.03,
        0.97,
        f"ECE {found.ece:.3f}, all together" if math.isfinite(found.ece) else "",
        transform=axes.transAxes,
        va="top",
        color=ink.text,
        fontsize=ink.letters,
    )


def plot_scores(axes: Any, summary: Summary, ink: Ink, *, figure: str = MAIN) -> None:
    """Draw each candidate's mean in the main setting, with its interval; ours first."""
    prepare(axes, ink)
    shown = [score for who in summary.candidates if (score := summary.score(who))]
    for place, score in enumerate(shown):
        found, color = score.figures[figure], candidate_colour(summary, score.candidate)
        if not math.isnan(found.low):
            axes.plot([found.low, found.high], [place, place], color=color, linewidth=2)
        axes.plot(found.each, [place] * len(found.each), "|", color=color, markersize=9)
        axes.plot(found.mean, place, "o", color=color, markersize=7)
    chance = 1 / max(1, len(summary.classes))
    axes.axvline(chance, color=ink.text, alpha=0.35, linewidth=0.8, dashes=(4, 3))
    axes.set_yticks(range(len(shown)), [short(score.candidate) for score in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.grid(False, axis="y")
    _label(axes, ink, figure, "")


def plot_curve(
    axes: Any, summary: Summary, ink: Ink, along: str, *, figure: str = MAIN
) -> None:
    """Draw a figure against a setting: the share of labels, or what a sweep varied.

    Bars are 95 % intervals. What knows nothing of the setting is a broken line.
    """
    prepare(axes, ink)
    values = summary.values(along)
    numbers = all(isinstance(value, int | float) for value in values)
    place = {v: float(v) if numbers else float(i) for i, v in enumerate(values)}
    for number, curve in enumerate(summary.curves(along, figure)):
        color = candidate_colour(summary, curve.candidate)
        ours = curve.candidate == summary.ours
        beside = ", ".join(_value(value) for value in curve.setting.values())
        name = ": ".join(filter(None, [short(curve.candidate), beside]))
        if curve.level is not None:
            axes.axhline(
                curve.level.mean, color=color, linewidth=1.2, dashes=(4, 2), label=name
            )
        x = [place[value] for value, _ in curve.points]
        for at, (_, found) in zip(x, curve.points, strict=True):
            axes.plot([at, at], [found.low, found.high], color=color, linewidth=1)
        if x:
            axes.plot(
                x,
                [found.mean for _, found in curve.points],
                MARKS[number % len(MARKS)] if ours else "o-",
                color=color,
                linewidth=2.2 if ours else 1.2,
                markersize=5 if ours else 4,
                zorder=3 if ours else 2,
                label=name,
            )
    if along == FRACTION:
        axes.set_xscale("log")
        axes.minorticks_off()
    told = [_share(v) if along == FRACTION else _value(v) for v in values]
    axes.set_xticks([place[value] for value in values], told)
    _label(axes, ink, along_words(along), figure)
    if values:
        _legend(axes, ink, "best")


def along_words(along: str) -> str:
    """Return what stands below a curve against a setting."""
    return "labels learned from" if along == FRACTION else along.replace("_", " ")


def _share(value: str | float) -> str:
    return f"{100 * float(value):g} %"


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def plot_map(
    axes: Any,
    xy: Array,
    colours: Colouring,
    ink: Ink,
    *,
    names: tuple[str, str] = ("", ""),
) -> Any:
    """Draw points (m, 2) in the colours of their groups; returns the points.

    Parameters
    ----------
    names
        Of both directions, where they mean something.
    """
    prepare(axes, ink, grid=False)
    points = axes.scatter(
        *xy.T,
        s=float(np.clip(4000 / max(1, len(xy)), 7, 28)),
        c=colours.rgb,
        edgecolors=ink.text,
        linewidths=0.25,
        rasterized=True,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set(visible=True, color=ink.faint)
    _label(axes, ink, *names)
    return points


def name_groups(axes: Any, colours: Colouring, ink: Ink) -> None:
    """Name the groups of a map beside it, or only tell how many there are."""
    from matplotlib.lines import Line2D

    there = [i for i in range(len(colours.names)) if (colours.of == i).any()]
    if not there:
        return
    if len(there) > MOST_NAMED:
        axes.set_title(
            f"{len(there)} of them",
            fontsize=ink.letters - 1,
            color=ink.text,
            loc="left",
        )
        return
    marks = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            markersize=5,
            markerfacecolor=np.array(colours.colors[i]) / 255,
            markeredgecolor=ink.text,
            markeredgewidth=0.25,
            label=short(colours.names[i]),
        )
        for i in there
    ]
    axes.legend(
        handles=marks,
        fontsize=ink.letters - 1,
        labelcolor=ink.text,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=min(4, len(there)),
        handletextpad=0.1,
        columnspacing=0.8,
        borderaxespad=0.2,
    )


def candidate_colour(summary: Summary, candidate: str) -> str:
    """Return the colour of a candidate: ours stands out, the others keep theirs."""
    place = summary.candidates.index(candidate)
    if place == 0:
        return Ink.strong
    red, green, blue = OTHERS[(place - 1) % len(OTHERS)]
    return f"#{red:02x}{green:02x}{blue:02x}"


#: Colours of baselines; none is near that of ours, and all are seen on light and dark.
OTHERS: tuple[Color, ...] = (
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (200, 140, 0),
    (128, 128, 128),
)


def short(name: str) -> str:
    """Return a name that fits beside a plot."""
    return name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"


def _line(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    color: Color,
    ink: Ink,
    label: str,
) -> None:
    """Draw a line that is seen on any ground, also a yellow one on white."""
    from matplotlib.patheffects import Normal, Stroke

    rim = Stroke(linewidth=2.4, foreground=ink.text, alpha=0.45)
    axes.plot(
        x,
        y,
        color=np.array(color) / 255,
        linewidth=1.6,
        label=label,
        path_effects=[rim, Normal()],
    )


def _unit_square(axes: Any) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_aspect("equal")


def _label(axes: Any, ink: Ink, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=ink.letters, color=ink.text, labelpad=3)
    axes.set_ylabel(y, fontsize=ink.letters, color=ink.text, labelpad=3)


def _legend(axes: Any, ink: Ink, place: str, title: str = "") -> None:
    made = axes.legend(
        fontsize=ink.letters - 1,
        title=title or None,
        title_fontsize=ink.letters - 1,
        labelcolor=ink.text,
        frameon=False,
        loc=place,
        borderpad=0.2,
        handlelength=1.4,
        labelspacing=0.3,
    )
    made.get_title().set_color(ink.text)
