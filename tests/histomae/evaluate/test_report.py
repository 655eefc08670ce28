"""The report: all on one page, the same bytes each time, nothing from outside."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from histomae.errors import DataSetError
from histomae.evaluate.point_maps import lay_out
from histomae.evaluate.report import leak_stamp, render, thumbnails, write_report
from histomae.evaluate.summary import COLOUR, setting_words, summarise
from histomae.evaluate.trials import called

MAPS = ("pca",)


class Page(HTMLParser):
    """A page as a reader meets it: its text, addresses, headings, tables, pictures."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.addresses, self.images, self.tables, self.open = [], [], [], []
        self.text, self.ids = "", set()
        self.feed(text)
        assert self.open == [], "an element is never closed"

    def handle_starttag(self, tag, attrs):
        said = dict(attrs)
        self.addresses += [said[key] for key in ("src", "href", "data") if key in said]
        self.ids.add(said.get("id"))
        if tag == "img":
            self.images.append(said)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def evaluation(make_evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return make_evaluation(folder, fractions=(0.2, 1.0))


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    return write_report(evaluation, tmp_path_factory.mktemp("report"), maps=MAPS)


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text("utf-8"))


def rendered(evaluation):
    """Return the page without figures of embeddings: quick."""
    summary = summarise(evaluation)
    return Page(render(summary, thumbnails(evaluation, summary)))


def test_every_figure_is_there_and_has_words(page):
    told = [image["alt"] for image in page.images]
    for figure in (
        "Balanced accuracy of each candidate",
        "Which class was taken for which",
        "ROC",
        "Calibration",
        "Balanced accuracy by labels learned from",
        "By class",
        "By prediction",
        "By patient",
        "By slide",
    ):
        assert any(words.startswith(figure) for words in told), figure
    assert all(told)


def test_every_figure_can_be_opened(page):
    for image in page.images:
        kind, _, data = image["src"].partition(";base64,")
        data = base64.b64decode(data)
        if kind == "data:image/jpeg":
            assert Image.open(io.BytesIO(data)).size == (24, 24)
        else:
            assert kind == "data:image/svg+xml"
            assert data.startswith(b"<svg") and data.rstrip().endswith(b"</svg>")
            assert not re.search(rb'(href|src)="(?!#|data:)', data)


def test_nothing_comes_from_outside(written, page):
    assert all(where.startswith(("data:", "#")) for where in page.addresses)
    text = written.read_text("utf-8")
    assert not re.search(r"https?://|url\(|@import|<script", text)
    inside = [where[1:] for where in page.addresses if where.startswith("#")]
    assert inside and set(inside) <= page.ids


def test_the_same_evaluation_gives_the_same_bytes(evaluation, written, tmp_path):
    again = write_report(evaluation, tmp_path, maps=MAPS)
    for name in ("report.html", "report.json"):
        one, other = written.with_name(name), again.with_name(name)
        assert one.read_bytes() == other.read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "report.html",
        "report.json",
    ]


def test_tables_hold_the_numbers_of_a_plain_loop(evaluation, page):
    labels = evaluation.data.labels
    tables = [t for t in page.tables if t[0][:2] == ["Candidate", "Trials"]]
    assert len(tables) == 2
    column = tables[1][0].index("accuracy")
    for row in tables[1][1:]:
        each = [
            np.mean(trial.probabilities.argmax(1) == labels[trial.tested])
            for trial in evaluation.trials
            if trial.candidate == row[0] and trial.setting["fraction"] == 1.0
        ]
        said = f"{np.mean(each):.3f} ± {np.std(each, ddof=1):.3f}"
        assert row[column].startswith(said)
    best = [row[0] for row in tables[1][1:] if "★" in row[column]]
    assert best == ["micro"]


def test_json_holds_the_same_numbers(evaluation, written):
    told = json.loads(written.with_name("report.json").read_text("utf-8"))
    found = {
        (score["candidate"], score["setting"]["fraction"]): score
        for score in told["scores"]
    }
    assert len(found) == 6
    for trial in evaluation.trials:
        score = found[trial.candidate, trial.setting["fraction"]]
        right = trial.probabilities.argmax(1) == evaluation.data.labels[trial.tested]
        each = score["figures"]["accuracy"]["each"][trial.fold]
        assert each == pytest.approx(right.mean())


def test_papers_stand_beside_ours_on_their_scale(page):
    (table,) = [t for t in page.tables if t[0][-1] == "Here"]
    assert table[1][:4] == [
        "Anybody et al. 2020",
        "ViT-S, full labels",
        "accuracy",
        "88.5 ± 2.1",
    ]
    assert 50 < float(table[1][4]) <= 100


def test_facts_and_caveats_are_told(page):
    (facts,) = [t for t in page.tables if t[0] == ["Fact", "Value"]]
    told = dict(facts[1:])
    assert told["split hash"] == "0123456789abcdef" and told["seed"] == "0"
    assert told["candidates · micro · kind"] == "encoder"
    for said in ("Nothing is known of other scanners.", "chosen by people"):
        assert said in page.text


def test_a_leak_is_stamped(evaluation):
    found = replace(evaluation, leaks=("Patient P01 is on two sides.",))
    page = rendered(found)
    assert "1 leak was found" in page.text
    assert "Patient P01 is on two sides." in page.text
    assert "No leak" not in page.text
    looked = summarise(evaluation)
    assert leak_stamp(looked) == ("none", "No leak was found")
    assert leak_stamp(replace(looked, leaks=None))[0] == "unknown"
    assert "not looked for" in rendered(replace(evaluation, leaks=None)).text


def test_the_stamp_says_among_what_leaks_were_looked_for(evaluation):
    some = replace(
        evaluation,
        looked_for=("patients", "slides", "files"),
        not_looked_for=("pictures that look the same",),
    )
    told = (
        "No leak was found among patients, slides and files. Not looked for: pictures "
        "that look the same"
    )
    assert leak_stamp(summarise(some)) == ("unknown", told)
    assert told in rendered(some).text
    all_of_it = replace(some, not_looked_for=())
    assert leak_stamp(summarise(all_of_it))[0] == "none"
    found = leak_stamp(summarise(replace(some, leaks=("a.", "b."))))
    assert found[0] == "found" and found[1].startswith("2 leaks were found among")
    assert "Not looked for" in found[1]


@pytest.fixture(scope="module")
def sweep(make_evaluation, tmp_path_factory):
    """Two settings varied: of ours 2 x 3 encoders, untrained by one of them."""
    folder = tmp_path_factory.mktemp("swept")
    values = [(p, r) for p in (8.0, 16.0) for r in (0.5, 0.6, 0.75)]
    skill = {f"{p:g} {r:g}": 3 * r + (p == 8) for p, r in values}
    made = make_evaluation(folder, {**skill, "8": 0.4, "16": 0.2, "colour": 0.3})
    names = {**{f"{p:g} {r:g}": "encoder" for p, r in values}, "colour": "colour"}

    def setting(name):
        told = zip(("patch_size", "mask_ratio"), name.split(), strict=False)
        return {} if name == "colour" else {key: float(value) for key, value in told}

    trials = tuple(
        replace(
            trial,
            candidate=names.get(trial.candidate, "untrained"),
            setting=setting(trial.candidate),
        )
        for trial in made.trials
    )
    kinds = {"encoder": "encoder", "untrained": "untrained", "colour": COLOUR}
    facts = {
        "candidates": {name: {"kind": kind} for name, kind in kinds.items()},
        "varied": ["patch_size", "mask_ratio"],
        "seed": 0,
    }
    embedding = {
        called(name, setting(old)): values
        for old, values in made.embedding.items()
        for name in [names.get(old, "untrained")]
    }
    return replace(made, trials=trials, facts=facts, embedding=embedding)


def test_a_sweep_is_one_table_and_a_curve(sweep):
    summary = summarise(sweep, maps=MAPS)
    ours = [score for score in summary.scores if score.candidate == "encoder"]
    best = max(ours, key=lambda score: score.figures["balanced accuracy"].mean)
    assert summary.main == best.setting
    told = f"Of 6 values it does best with {setting_words(best.setting)}; next comes"
    assert told in summary.verdict[0]
    assert any("a little too good" in caveat for caveat in summary.caveats)
    (table,) = summary.tables()
    assert len(table[1]) == 6 + 2 + 1
    page = Page(render(summary, thumbnails(sweep, summary)))
    (rows,) = [t for t in page.tables if t[0][:2] == ["Candidate", "Trials"]]
    assert rows[1][0] == "encoder · patch size 8 · mask ratio 0.5"
    assert [row[0] for row in rows[-3:]] == [
        *("untrained · patch size 8", "untrained · patch size 16", "colour"),
    ]
    (curve,) = [i["alt"] for i in page.images if " by mask ratio" in i["alt"]]
    for (size, ratio), score in (
        (tuple(score.setting.values()), score)
        for score in summary.scores
        if score.candidate == "encoder"
    ):
        mean = score.figures["balanced accuracy"].mean
        assert f"{ratio:g}: {mean:.3f}" in curve.partition(f"patch size {size:g}")[2]
    assert {one.candidate for one in summary.maps} == {"encoder", "untrained", "colour"}
    layout = lay_out(
        "encoder",
        np.arange(len(sweep.data)),
        sweep.embedding[called("encoder", summary.main)],
        "pca",
    )
    np.testing.assert_array_equal(summary.maps[0].xy, layout.xy)


def test_what_a_sweep_draws_are_its_scores(sweep):
    summary = summarise(sweep)
    assert summary.along == ["mask_ratio"]
    curves = {
        (c.candidate, *c.setting.values()): c for c in summary.curves("mask_ratio")
    }
    assert list(curves) == [
        ("encoder", 8.0),
        ("encoder", 16.0),
        ("untrained", 8.0),
        ("untrained", 16.0),
        ("colour",),
    ]
    for (who, *size), curve in curves.items():
        for value, found in curve.points:
            setting = {"patch_size": size[0], "mask_ratio": value}
            score = summary.score(who, setting)
            assert score.setting == setting
            assert found == score.figures["balanced accuracy"]
        assert [v for v, _ in curve.points] == (
            [0.5, 0.6, 0.75] if who == "encoder" else []
        )
        assert (curve.level is None) == (who == "encoder")
    beside = summary.score("untrained", {"patch_size": 16.0, "mask_ratio": 0.5})
    assert beside.setting == {"patch_size": 16.0}
    assert summary.score("untrained", {"patch_size": 4.0}) is None
    swept = [one for one in summary.versus if one.other.startswith("encoder")]
    assert len(swept) == 5 and len(summary.versus) == 5 + 2
    main = summary.score("encoder").figures["balanced accuracy"].mean
    for one in swept:
        assert one.low <= one.value <= one.high
    assert main == max(
        s.figures["balanced accuracy"].mean
        for s in summary.scores
        if s.candidate == "encoder"
    )


def test_losing_to_colour_is_said_on_the_page(make_evaluation, tmp_path):
    page = rendered(make_evaluation(tmp_path, {"ours": 0.1, "colour histogram": 3.0}))
    assert "It does not beat colour histogram" in page.text
    assert "a histogram of the colours" in page.text
    assert "What it depends on" not in page.text  # nothing was varied


def test_names_of_strangers_stay_text(make_evaluation, tmp_path):
    nasty = '<script>alert("1")</script>'
    made = make_evaluation(
        tmp_path, {nasty: 1.0, "colour histogram": 0.5}, names=("a<b", "c&d")
    )
    page = rendered(made)
    assert nasty in page.text
    assert "a<b" in page.text and "c&d" in page.text


def test_a_picture_that_is_gone_leaves_its_place(evaluation):
    def gone(picture):
        raise DataSetError(f"{picture.name} cannot be read. Bring it back.")

    page = rendered(replace(evaluation, data=replace(evaluation.data, read=gone)))
    assert "the picture cannot be read" in page.text


def test_two_classes_one_patient_and_one_fold_are_reported_too(
    make_evaluation, tmp_path
):
    made = make_evaluation(
        tmp_path,
        {"ours": 1.0, "colour histogram": 0.5},
        patients=1,
        names=("no", "yes"),
        folds=1,
    )
    page = rendered(made)
    assert "no interval" in page.text
    assert "nan" not in page.text
