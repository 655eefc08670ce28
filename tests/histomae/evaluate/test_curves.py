"""The numbers of a run against its steps."""

import numpy as np
import pytest

from histomae.evaluate.curves import Curves, thinned
from histomae.events import Finished, HeldOut, Note, Started, Step


def started(step):
    return Started("mae", step, 9, 90, 10, 7, "cpu", "f32", 0.5)


def step(number, loss=0.5, **logged):
    return Step(number, 9, number / 3, loss, 1e-4, 2.0, 10.0, 2.0, logged)


def points(curves, name):
    steps, values = curves[name]
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def test_each_figure_has_its_curve():
    curves = Curves(
        [
            *(Note("hello"), started(0), HeldOut(0, 1.5), step(1, 0.75)),
            *(step(2, 0.25, entropy=3.5), HeldOut(2, 1.25), Finished(2, "stopped")),
        ]
    )
    assert curves.names == [
        *("held_out_loss", "loss", "lr", "grad_norm", "images_per_s", "entropy")
    ]
    assert points(curves, "loss") == [(1, 0.75), (2, 0.25)]
    assert points(curves, "held_out_loss") == [(0, 1.5), (2, 1.25)]
    assert points(curves, "grad_norm") == [(1, 2.0), (2, 2.0)]
    assert points(curves, "images_per_s") == [(1, 10.0), (2, 10.0)]
    assert points(curves, "lr") == [(1, 1e-4), (2, 1e-4)]
    assert points(curves, "entropy") == [(2, 3.5)]
    assert points(curves, "nothing") == []


def test_what_came_after_the_checkpoint_is_forgotten():
    curves = Curves([started(0), step(1), step(2), HeldOut(2, 1.0), step(3)])
    curves.add(HeldOut(3, 0.9))
    curves.add(started(2))
    assert points(curves, "loss") == [(1, 0.5), (2, 0.5)]
    assert points(curves, "held_out_loss") == [(2, 1.0)]
    curves.add(step(3, 0.125))
    assert points(curves, "loss")[-1] == (3, 0.125)


def test_begun_again_a_step_is_there_once():
    curves = Curves([started(0), HeldOut(0, 1.5), step(1), step(2)])
    for event in (started(0), HeldOut(0, 1.25), step(1)):
        curves.add(event)
    assert points(curves, "held_out_loss") == [(0, 1.25)]
    assert len(points(curves, "loss")) == 1


@pytest.mark.parametrize("count", [0, 1, 999, 1000])
def test_few_points_are_all_kept(count):
    steps, values = np.arange(count), np.random.default_rng(0).random(count)
    for given, kept in zip((steps, values), thinned(steps, values), strict=True):
        np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize("count", [1001, 1500, 54321])
def test_of_many_points_no_spike_is_lost(count):
    random = np.random.default_rng(count)
    steps, values = np.arange(5, 5 + count), random.normal(size=count)
    spikes = random.permutation(count)[:8]
    values[spikes] = np.array([50, -50] * 4) + random.normal(size=8)
    kept_steps, kept = thinned(steps, values)
    assert len(kept_steps) == len(kept) <= 1000
    assert (np.diff(kept_steps) > 0).all()
    assert (kept_steps[0], kept_steps[-1]) == (5, count + 4)
    np.testing.assert_array_equal(kept, values[kept_steps - 5])
    assert set(kept_steps - 5) >= set(spikes.tolist())


def test_a_smooth_curve_looks_the_same():
    steps = np.arange(20000)
    values = np.sin(steps / 3000)
    again = np.interp(steps, *thinned(steps, values, most=400))
    np.testing.assert_allclose(again, values, atol=0.002)
