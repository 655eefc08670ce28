"""The live curves of a training, chosen and read as a person does."""

import time

import numpy as np
import pytest

from histomae.events import HeldOut, Note, Started, Step
from napari_histomae._widgets.curve_plot import CurvePlot


def step(number, **logged):
    return Step(number, 400, 0.1, 1 / number, 1e-4, number + 0.5, 31.0, 2.0, logged)


@pytest.fixture
def plot(qtbot):
    made = CurvePlot()
    qtbot.addWidget(made)
    made.resize(220, 160)
    made.show()
    qtbot.wait(20)
    return made


def choose(plot, words):
    """Open the menu and press what is called so; return all that is offered."""
    plot.menu.aboutToShow.emit()
    offered = {action.text(): action for action in plot.menu.actions()}
    offered[words].trigger()
    return list(offered)


def drawn(plot, line=0):
    """Return the points of a line."""
    x, y = plot._axes.lines[line].get_data()
    return list(zip(np.asarray(x).tolist(), np.asarray(y).tolist(), strict=True))


def test_it_draws_twice_a_second_at_most(plot, qtbot):
    before, begin = plot.draws, time.monotonic()
    for number in range(1, 401):
        plot.add(step(number))
        qtbot.wait(1)
    plot.add(HeldOut(400, 0.5))
    assert plot.points == 400
    qtbot.waitUntil(lambda: plot.draws > before)
    # One for each half of a second, less the twentieth by which Qt's timers are early.
    assert plot.draws - before <= 1 + (time.monotonic() - begin) / 0.475
    plot.clear()
    assert plot.points == 0


def test_what_has_no_figures_draws_nothing(plot, qtbot):
    before = plot.draws
    plot.add(Note("hello"))
    qtbot.wait(700)
    assert plot.draws == before
    assert plot.button.isHidden()


def test_the_loss_comes_first_with_the_one_held_out(plot):
    for event in (HeldOut(0, 1.5), step(1), step(2), HeldOut(2, 0.75)):
        plot.add(event)
    plot.redraw()
    assert not plot.button.isHidden()
    assert plot.button.text() == "loss ▾"
    assert plot.value.text() == "0.5"
    assert drawn(plot) == [(1, 1.0), (2, 0.5)]
    assert drawn(plot, 1) == [(0, 1.5), (2, 0.75)]
    assert plot.held_out_at(2) == 0.75
    assert plot.held_out_at(1) is None


@pytest.mark.parametrize(
    ("words", "values", "told"),
    [
        ("learning rate", [1e-4, 1e-4], "0.0001"),
        ("gradient norm", [1.5, 2.5], "2.5"),
        ("images/s", [31.0, 31.0], "31"),
        ("entropy of it", [5.5, 5.25], "5.25"),
        ("loss", [1.0, 0.5], "0.5"),
    ],
)
def test_any_figure_can_be_chosen(plot, words, values, told):
    for event in (HeldOut(0, 1.5), step(1, entropy_of_it=5.5)):
        plot.add(event)
    plot.add(step(2, entropy_of_it=5.25))
    offered = choose(plot, words)
    assert offered == [
        *("loss", "learning rate", "gradient norm", "images/s", "entropy of it")
    ]
    assert plot.button.text() == f"{words} ▾"
    assert plot.value.text() == told
    assert [value for _, value in drawn(plot)] == values
    assert bool(drawn(plot, 1)) == (words == "loss")
    assert plot._legend.get_visible() == (words == "loss")
    plot.menu.aboutToShow.emit()
    checked = [action.text() for action in plot.menu.actions() if action.isChecked()]
    assert checked == [words]


def test_a_run_without_the_chosen_figure_shows_its_loss(plot):
    plot.add(step(1, entropy=5.5))
    choose(plot, "entropy")
    plot.clear()
    plot.add(step(1))
    plot.redraw()
    assert plot.shown == "loss"
    assert plot.button.text() == "loss ▾"


def test_a_training_that_went_back_is_drawn_so(plot):
    for number in range(1, 6):
        plot.add(step(number))
    plot.add(Started("mae", 3, 400, 90, 10, 7, "cpu", "f32", 0.5))
    choose(plot, "gradient norm")
    assert [at for at, _ in drawn(plot)] == [1, 2, 3]


def test_a_long_name_leaves_room_for_the_value(plot):
    plot.add(step(1, **{"mean similarity of the queue to the other view": -0.0125}))
    choose(plot, "mean similarity of the queue to the other view")
    assert plot.button.text().endswith("… ▾")
    assert plot.value.width() >= plot.value.fontMetrics().horizontalAdvance("-0.0125")


def test_a_spike_in_a_long_curve_is_drawn(plot):
    for number in range(1, 5001):
        plot.add(step(number, odd=float(number == 3333)))
    choose(plot, "odd")
    assert len(drawn(plot)) <= 1000
    assert (3333, 1.0) in drawn(plot)


def test_it_follows_the_theme(qtbot, make_napari_viewer):
    viewer = make_napari_viewer()
    plot = CurvePlot()
    viewer.window.add_dock_widget(plot)

    def brightness():
        return sum(plot._figure.get_facecolor()[:3])

    for theme, is_shown in (
        ("dark", lambda: brightness() < 1),
        ("light", lambda: brightness() > 2),
    ):
        viewer.theme = theme
        qtbot.waitUntil(is_shown)
