"""Tests of histomae.learn.probe."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from histomae.data.splits import grouped_folds
from histomae.errors import NotEnoughDataError
from histomae.events import Heartbeat, Note, Progress, result_of
from histomae.learn import probe as module
from histomae.learn.probe import (
    C_GRID,
    DEFAULT_C,
    fit_linear,
    fit_probe,
    fit_temperature,
    log_loss,
)
from histomae.models.probe import Probe
from tests.listening import events_of

COLORS = ((0, 0, 255), (255, 160, 0), (200, 0, 30), (0, 150, 100))


def tiles(*, regions=(6, 5, 7), each=8, dim=16, apart=1.5, region_spread=0.5, seed=0):
    """Embeddings of tiles: each class has a centre, and each region one of its own."""
    rng = np.random.default_rng(seed)
    class_of = np.repeat(np.arange(len(regions)), regions)
    centres = apart * np.random.default_rng(42).normal(size=(len(regions), dim))
    places = centres[class_of] + region_spread * rng.normal(size=(len(class_of), dim))
    groups = np.repeat(np.arange(len(class_of)), each)
    x = places[groups] + rng.normal(size=(len(groups), dim))
    return (5 + 3 * x).astype(np.float32), class_of[groups], groups


def fitting(embeddings, labels, groups, names=("A", "B", "C"), **options):
    settings = {
        "class_colors": COLORS[: len(names)],
        "encoder_id": "enc",
        "tile_px": 224,
        "mpp": 0.5,
        "pooling": "mean",
    }
    return fit_probe(embeddings, labels, groups, names, **{**settings, **options})


def test_a_probe_finds_the_classes_and_explains_itself(tmp_path):
    x, y, groups = tiles()
    probe = result_of(fitting(x, y, groups))
    assert isinstance(probe, Probe)
    assert (probe.probabilities(x).argmax(1) == y).mean() > 0.95
    assert (probe.class_names, probe.pooling) == (("A", "B", "C"), "mean")
    scores = probe.scores
    assert scores["balanced_accuracy"] > 0.8
    assert scores["interval"][0] <= scores["balanced_accuracy"] <= scores["interval"][1]
    assert 0 < scores["macro_f1"] <= 1
    assert scores["folds"] == 5
    assert scores["tiles"] == {"A": 48, "B": 40, "C": 56}
    assert scores["regions"] == {"A": 6, "B": 5, "C": 7}
    assert np.sum(scores["confusion"], axis=1).tolist() == [48, 40, 56]
    assert scores["unscored"] == []
    assert "grouped by region, 5 folds" in scores["summary"]
    assert "other patients" in scores["caveat"]
    json.dumps(scores, allow_nan=False)
    probe.save(tmp_path / "p.probe")
    assert Probe.load(tmp_path / "p.probe").scores == scores


def test_chance_is_chance_though_tiles_of_a_region_are_alike():
    x, y, groups = tiles(apart=0, region_spread=4, regions=(8, 8, 8), seed=3)
    scores = result_of(fitting(x, y, groups)).scores
    assert scores["balanced_accuracy"] < 0.6
    by_tile = result_of(fitting(x, y, np.arange(len(y)))).scores
    assert by_tile["balanced_accuracy"] > 0.75  # what a leak would have claimed


def test_no_fit_sees_a_group_it_is_judged_on(monkeypatch):
    x, y, groups = tiles()
    x = x.astype(np.float64)
    row_of = {row.tobytes(): i for i, row in enumerate(x)}
    seen, judged = [], []
    fit, logits = module._fit, module.LinearFit.logits

    def watched_fit(model, features, *args, **options):
        made = fit(model, features, *args, **options)
        seen.append((made, {groups[row_of[row.tobytes()]] for row in features}))
        return made

    def watched_logits(self, features):
        known = next(there for made, there in seen if made is self)
        here = {groups[row_of[row.tobytes()]] for row in features}
        judged.append(here)
        assert not known & here
        return logits(self, features)

    monkeypatch.setattr(module, "_fit", watched_fit)
    monkeypatch.setattr(module.LinearFit, "logits", watched_logits)
    result_of(fitting(x, y, groups))
    assert set.union(*judged) == set(groups.tolist())
    assert len(judged) > 5 * 3


def test_the_fit_is_scikit_learns():
    x, y, groups = tiles(region_spread=1.5, apart=0.7)
    fit = result_of(fit_linear(x, y, groups=groups, num_classes=3))
    standard = StandardScaler().fit(x.astype(float))
    model = LogisticRegression(
        C=fit.c, class_weight="balanced", tol=1e-8, max_iter=9999
    ).fit(standard.transform(x.astype(float)), y)
    np.testing.assert_allclose(
        softmax(fit.logits(x), axis=1),
        model.predict_proba(standard.transform(x.astype(float))),
        atol=0.01,
    )


def test_two_classes_become_two_rows_of_a_softmax():
    x, y, groups = tiles(regions=(5, 5), apart=0.6)
    fit = result_of(fit_linear(x, y, groups=groups, num_classes=2))
    standard = (x.astype(float) - x.mean(0)) / x.astype(float).std(0)
    model = LogisticRegression(C=fit.c, class_weight="balanced", tol=1e-8)
    expected = model.fit(standard, y).predict_proba(standard)
    np.testing.assert_allclose(softmax(fit.logits(x), axis=1), expected, atol=0.01)


def test_c_is_the_best_of_a_plain_search_over_inner_folds():
    x, y, groups = tiles(region_spread=2.0, apart=0.7, regions=(9, 9, 9))
    x = x.astype(float)
    losses = []
    for c in C_GRID:
        logits = np.full((len(y), 3), np.nan)
        for train, test in grouped_folds(y, groups, k=module.INNER_FOLDS).folds:
            mean, std = x[train].mean(0), x[train].std(0)
            model = LogisticRegression(C=c, class_weight="balanced", max_iter=9999)
            model.fit((x[train] - mean) / std, y[train])
            logits[test] = model.decision_function((x[test] - mean) / std)
        losses.append(log_loss(logits, y))
    enough = min(losses) / (1 - module.BETTER_BY)
    fit = result_of(fit_linear(x, y, groups=groups, num_classes=3))
    assert fit.chosen
    assert losses[C_GRID.index(fit.c)] <= 1.005 * enough
    assert fit.c < C_GRID[-1] / 10


def test_classes_count_alike_however_many_tiles_they_have():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [600, 60])
    x = rng.normal(size=(660, 4)) + y[:, None] * 0.6
    fit = result_of(fit_linear(x, y, groups=np.arange(660) // 10, num_classes=2))
    found = fit.logits(x).argmax(1)
    assert abs((found[y == 0] == 0).mean() - (found[y == 1] == 1).mean()) < 0.1


def test_log_loss_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(30, 3)), rng.integers(3, size=30)
    logits[4] = np.nan
    of_class = []
    for c in range(3):
        rows = [i for i in range(30) if y[i] == c and i != 4]
        of_class.append(np.mean([-np.log(softmax(logits[i] / 2)[c]) for i in rows]))
    assert log_loss(logits, y, temperature=2.0) == pytest.approx(np.mean(of_class))


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    y = np.array([rng.choice(3, p=softmax(row)) for row in logits])
    assert fit_temperature(3 * logits, y) == pytest.approx(3, rel=0.1)
    assert fit_temperature(logits / 3, y) == pytest.approx(1, abs=0.01)
    assert fit_temperature(np.full((5, 2), np.nan), np.zeros(5, int)) == 1.0


def test_probabilities_are_calibrated_out_of_fold():
    x, y, groups = tiles(apart=0.25, region_spread=1.5, regions=(12, 12, 12), seed=5)
    probe = result_of(fitting(x, y, groups))
    assert probe.temperature >= 1
    assert probe.scores["calibrated"]


def test_a_class_with_one_region_is_said_to_be_unscored():
    x, y, groups = tiles(regions=(4, 1, 4))
    scores = result_of(fitting(x, y, groups)).scores
    assert scores["unscored"] == ["B"]
    assert np.sum(scores["confusion"], axis=1).tolist() == [32, 0, 32]
    assert scores["folds"] == 4
    assert "B cannot be scored: one region only. Draw a second." in scores["summary"]


def test_one_region_of_each_class_gives_a_probe_without_scores():
    x, y, groups = tiles(regions=(1, 1, 1))
    probe = result_of(fitting(x, y, groups))
    assert (probe.probabilities(x).argmax(1) == y).mean() > 0.9
    assert probe.scores["balanced_accuracy"] is None
    assert probe.scores["confusion"] is None
    assert probe.scores["folds"] == 0
    assert probe.scores["c"] == DEFAULT_C
    assert probe.scores["summary"].startswith("Not scored. A, B and C cannot")
    assert probe.temperature == 1.0
    json.dumps(probe.scores, allow_nan=False)


def test_two_regions_of_each_class_are_enough_for_scores():
    x, y, groups = tiles(regions=(2, 2))
    scores = result_of(fitting(x, y, groups, ("A", "B"))).scores
    assert scores["folds"] == 2
    assert scores["balanced_accuracy"] > 0.7
    assert scores["c_chosen_by"] == "region-wise validation"


def test_mixed_groups_as_patients_have_are_fine():
    rng = np.random.default_rng(0)
    for seed in range(10):
        y = np.random.default_rng(seed).integers(3, size=60)
        x = rng.normal(size=(60, 5)) + y[:, None]
        groups = np.random.default_rng(seed).integers(5, size=60)
        scores = result_of(fitting(x, y, groups, grouped_by="patient")).scores
        assert "grouped by patient" in scores["summary"]
        assert scores["caveat"] == ""


def test_a_fold_that_lacks_a_class_never_predicts_it():
    x, y, groups = tiles(regions=(3, 3, 3))
    there = y != 1
    fit = result_of(fit_linear(x[there], y[there], groups=groups[there], num_classes=3))
    assert set(fit.logits(x).argmax(1).tolist()) == {0, 2}
    one = y == 2
    fit = result_of(fit_linear(x[one], y[one], groups=groups[one], num_classes=3))
    assert set(fit.logits(x).argmax(1).tolist()) == {2}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("A", "B", "C", "D"), "No tile of D. Draw a region"),
        (("A", "B", "C", "D", "E", "F"), "No tile of D, E and F. Draw a region"),
    ],
)
def test_a_class_without_tiles_is_named(names, told):
    x, y, groups = tiles()
    colors = [(i, 0, 0) for i in range(len(names))]
    with pytest.raises(NotEnoughDataError, match=told):
        result_of(fitting(x, y, groups, names, class_colors=colors))


@pytest.mark.parametrize("names", [(), ("A",)])
def test_one_class_is_not_enough(names):
    x, y, groups = tiles(regions=(3,))
    with pytest.raises(NotEnoughDataError, match="Add a second class"):
        result_of(fitting(x, y, groups, names))


def test_no_tile_at_all_is_not_enough():
    none = np.zeros(0, int)
    with pytest.raises(NotEnoughDataError, match="No tile of A, B and C"):
        result_of(fitting(np.zeros((0, 4), np.float32), none, none))


def test_tiles_that_could_not_be_read_are_left_out_and_told():
    x, y, groups = tiles()
    x[::10] = np.nan
    events, probe = events_of(fitting(x, y, groups))
    assert "15 tiles" in next(e.text for e in events if isinstance(e, Note))
    assert sum(probe.scores["tiles"].values()) == len(x) - 15


def test_features_that_never_change_do_no_harm():
    x, y, groups = tiles()
    x[:, 3] = 7.0
    x[:, 5] = 0.0
    probe = result_of(fitting(x, y, groups))
    assert np.isfinite(probe.probabilities(x)).all()
    assert probe.std[3] == probe.std[5] == 1


def test_the_same_seed_gives_the_same_probe():
    x, y, groups = tiles(apart=0.5)
    one, same = (result_of(fitting(x, y, groups, seed=4)) for _ in range(2))
    assert one.probe_id == same.probe_id
    assert one.scores == same.scores


def test_it_tells_how_far_it_is_and_can_be_cancelled():
    x, y, groups = tiles()
    events = list(fitting(x, y, groups))
    progress = [e for e in events if isinstance(e, Progress)]
    assert [e.done for e in progress] == [0, 1, 2, 3, 4, 5, 6]
    assert {e.total for e in progress} == {6}
    assert any(isinstance(e, Heartbeat) for e in events)
    work = fitting(x, y, groups)
    next(work)
    work.close()


def test_five_hundred_tiles_of_four_classes_are_told_apart():
    x, y, groups = tiles(
        regions=(6, 6, 6, 7), each=20, dim=192, apart=0.15, region_spread=0.6
    )
    assert x.shape == (500, 192)
    probe = result_of(fitting(x, y, groups, ("A", "B", "C", "D")))
    assert probe.scores["balanced_accuracy"] > 0.4
