"""What trials amount to: the numbers against plain loops, and what is said of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from histomae.errors import ReportError
from histomae.evaluate.summary import setting_words, summarise
from histomae.evaluate.summary_files import read_summary, to_json


@pytest.fixture(scope="module")
def evaluation(make_evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return make_evaluation(folder, fractions=(0.2, 1.0), folds=3)


@pytest.fixture(scope="module")
def summary(evaluation):
    return summarise(evaluation, maps=("pca",))


def trials_of(evaluation, candidate, fraction=1.0):
    return [
        trial
        for trial in evaluation.trials
        if trial.candidate == candidate and trial.setting["fraction"] == fraction
    ]


@pytest.mark.parametrize("candidate", ["micro", "untrained", "colour histogram"])
@pytest.mark.parametrize("fraction", [0.2, 1.0])
def test_figures_are_those_of_a_plain_loop(evaluation, summary, candidate, fraction):
    score = summary.score(candidate, {"protocol": "linear probe", "fraction": fraction})
    labels = evaluation.data.labels
    each = {"balanced accuracy": [], "macro-F1": [], "weighted-F1": [], "AUC": []}
    per_patient = []
    for trial in trials_of(evaluation, candidate, fraction):
        truth, taken = labels[trial.tested], trial.probabilities.argmax(1)
        each["balanced accuracy"].append(balanced_accuracy_score(truth, taken))
        each["macro-F1"].append(f1_score(truth, taken, average="macro"))
        each["weighted-F1"].append(f1_score(truth, taken, average="weighted"))
        each["AUC"].append(
            np.mean(
                [roc_auc_score(truth == k, trial.probabilities[:, k]) for k in range(3)]
            )
        )
        right = {}
        for row, label in zip(trial.tested, taken, strict=True):
            patient = evaluation.data.pictures[row].patient
            right.setdefault(patient, []).append(label == labels[row])
        per_patient.append(np.mean([np.mean(of) for of in right.values()]))
    each["patient-level accuracy"] = per_patient
    for name, values in each.items():
        found = score.figures[name]
        assert found.each == pytest.approx(values)
        assert found.mean == pytest.approx(np.mean(values))
        assert found.std == pytest.approx(np.std(values, ddof=1))
        assert found.low < found.high
    assert score.trials == 3
    assert score.tested == 48 and score.patients == 8


def test_a_confusion_counts_every_test(evaluation, summary):
    counted = np.zeros((3, 3), int)
    for trial in trials_of(evaluation, "micro"):
        for row, told in zip(trial.tested, trial.probabilities, strict=True):
            counted[evaluation.data.pictures[row].label, told.argmax()] += 1
    assert np.array_equal(summary.score("micro").confusion, counted)


def test_roc_and_calibration_are_of_all_tests(evaluation, summary):
    trials = trials_of(evaluation, "micro")
    truth = np.concatenate([evaluation.data.labels[t.tested] for t in trials])
    told = np.concatenate([t.probabilities for t in trials])
    score = summary.score("micro")
    assert [roc.area for roc in score.rocs] == pytest.approx(
        [roc_auc_score(truth == k, told[:, k]) for k in range(3)]
    )
    for roc in score.rocs:
        assert np.all(np.diff(roc.false_positive) >= 0)
        assert (roc.true_positive[0], roc.true_positive[-1]) == (0, 1)
    error = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (told.max(1) > low) & (told.max(1) <= high)
        if inside.any():
            right = (told.argmax(1) == truth)[inside].mean()
            error += inside.mean() * abs(right - told.max(1)[inside].mean())
    assert score.calibration.ece == pytest.approx(error)
    assert sum(score.calibration.count) == 48


def test_the_main_setting_has_the_most_labels(summary):
    assert summary.main == {"protocol": "linear probe", "fraction": 1.0}
    assert setting_words(summary.main) == "linear probe · 100 % of the labels"
    points = summary.curves("fraction")[0].points
    assert [share for share, _ in points] == [0.2, 1.0]
    assert points[1][1] == summary.score("micro").figures["balanced accuracy"]


def test_draws_are_repetitions_and_no_setting(evaluation):
    first = trials_of(evaluation, "micro")[0]
    twice = [
        replace(first, setting={"protocol": "linear probe", "draw": draw})
        for draw in (0, 1)
    ]
    found = summarise(replace(evaluation, trials=tuple(twice)))
    (score,) = found.scores
    assert score.trials == 2 and score.setting == {"protocol": "linear probe"}
    assert score.tested == len(first.tested)
    assert score.figures["accuracy"].std == 0
    assert np.sum(score.confusion) == 2 * len(first.tested)


def test_mistakes_come_surest_first(evaluation, summary):
    wrong = {}
    for trial in trials_of(evaluation, "micro"):
        for row, told in zip(trial.tested.tolist(), trial.probabilities, strict=True):
            if told.argmax() != evaluation.data.pictures[row].label:
                wrong[row] = (int(told.argmax()), told.max())
    surest = sorted(wrong, key=lambda row: -wrong[row][1])[:12]
    assert surest, "an evaluation without a mistake shows nothing"
    assert [one.row for one in summary.mistakes] == surest
    for one in summary.mistakes:
        assert (one.predicted, one.probability) == pytest.approx(wrong[one.row])


def test_pairs_are_compared_on_the_same_pictures(evaluation, summary):
    by_name = {one.other: one for one in summary.versus}
    assert set(by_name) == {"untrained", "colour histogram"}
    mine, theirs = (
        np.sum(summary.score(who).confusion * np.eye(3), 1)
        / np.sum(summary.score(who).confusion, 1)
        for who in ("micro", "untrained")
    )
    one = by_name["untrained"]
    assert one.value == pytest.approx((mine - theirs).mean())
    assert one.low < one.value < one.high
    assert one.p < 0.05


def test_it_says_when_ours_does_not_beat_colour(make_evaluation, tmp_path):
    won = summarise(make_evaluation(tmp_path, {"ours": 3.0, "colour histogram": 0.5}))
    assert any("It beats colour histogram" in line for line in won.verdict)
    assert not any("worth no more" in line for line in won.verdict)
    lost = summarise(make_evaluation(tmp_path, {"ours": 0.2, "colour histogram": 3.0}))
    assert any("It does not beat colour histogram" in line for line in lost.verdict)
    assert any("worth no more here than a histogram" in line for line in lost.verdict)
    tie = make_evaluation(tmp_path, {"ours": 1.0})
    same = tuple(replace(trial, candidate="colour histogram") for trial in tie.trials)
    drawn = summarise(replace(tie, trials=tie.trials + same))
    assert any("It does not beat colour histogram" in line for line in drawn.verdict)
    worse = same[0].probabilities.copy()
    right = worse.argmax(1) == tie.data.labels[same[0].tested]
    worse[right.argmax()] = np.roll(worse[right.argmax()], 1)  # one picture less
    nearly = (replace(same[0], probabilities=worse), *same[1:])
    told = summarise(replace(tie, trials=tie.trials + nearly)).verdict
    (line,) = [line for line in told if "It scores above colour histogram" in line]
    assert "chance alone may explain" in line
    alone = summarise(tie)
    assert any("Nothing was examined beside it" in line for line in alone.verdict)


def test_it_says_what_the_numbers_do_not_show(evaluation, summary, make_evaluation):
    told = " ".join(summary.caveats)
    for said in ("drawn by a program", "other scanners", "chosen by people"):
        assert said in told
    bare = replace(
        evaluation.data,
        pictures=tuple(
            replace(picture, slide="", mpp=None) for picture in evaluation.data.pictures
        ),
    )
    told = " ".join(summarise(replace(evaluation, data=bare)).caveats)
    assert "which slide" in told and "pixel size" in told


def test_rows_without_features_are_left_out_of_the_map(evaluation):
    features = evaluation.embedding["micro"].copy()
    features[3] = np.nan
    found = summarise(replace(evaluation, embedding={"micro": features}), maps=["pca"])
    (made,) = found.maps
    assert made.rows.tolist() == [row for row in range(48) if row != 3]
    kept = np.delete(features, 3, 0).astype(float)
    _, _, turned = np.linalg.svd(kept - kept.mean(0), full_matrices=False)
    expected = np.abs((kept - kept.mean(0)) @ turned[:2].T)
    assert np.abs(made.xy) == pytest.approx(expected, abs=1e-3)
    assert "%" in made.axes[0]


def test_without_a_trial_there_is_nothing_to_sum_up(evaluation):
    with pytest.raises(ValueError, match="no trial"):
        summarise(replace(evaluation, trials=()))


# JSON ------------------------------------------------------------------------


def test_what_is_written_is_read_as_it_was(summary, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(to_json(summary), "utf-8")
    found = read_summary(tmp_path)
    assert to_json(found) == to_json(summary)
    assert found.score("micro").rocs == summary.score("micro").rocs
    assert found.pictures == summary.pictures
    assert np.array_equal(found.maps[0].xy, summary.maps[0].xy)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: told.pop("scores"),
        lambda told: told.update(version=99),
        lambda told: told.update(kind="recipe"),
        lambda told: told.update(scores=[]),
        lambda told: told["scores"][0]["confusion"].pop(),
        lambda told: told["maps"][0]["xy"].pop(),
        lambda told: told["maps"][0]["rows"].__setitem__(0, 4711),
        lambda told: told["mistakes"][0].update(predicted=7),
        lambda told: told["pictures"]["0"].pop("label"),
        lambda told: told["pictures"]["0"].update(label=-1),
        lambda told: told.update(predicted={"0": [5, 0.9]}),
        lambda told: told["classes"]["colors"].pop(),
    ],
    ids=range(12),
)
def test_a_damaged_report_is_refused(summary, tmp_path, spoil):
    told = json.loads(to_json(summary))
    spoil(told)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(told), "utf-8")
    with pytest.raises(ReportError, match=r"report\.json"):
        read_summary(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"kind": 1}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text, "utf-8")
    with pytest.raises(ReportError, match="no report"):
        read_summary(tmp_path)
    with pytest.raises(ReportError, match="cannot be read"):
        read_summary(tmp_path / "other.json")
