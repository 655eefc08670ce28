"""The Results dock: open a report, press, click points and tiles, look at layers."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backend_bases import MouseEvent
from matplotlib.colors import to_hex
from napari.settings import get_settings
from napari.utils.theme import get_theme

from histomae.data.pictures import read_picture
from histomae.evaluate.report import write_report
from histomae.evaluate.summary import summarise
from histomae.evaluate.trial_files import save_evaluation, save_trial
from histomae.infer.predict import Prediction
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide
from napari_histomae import _layers
from napari_histomae._review import Findings, Results
from napari_histomae._session import Session
from napari_histomae._widgets.results import MAP, PLOTS, ResultsDock

CELLS = np.stack(np.mgrid[:6, :8], -1).reshape(-1, 2)


@pytest.fixture(scope="module")
def evaluation(make_evaluation, tmp_path_factory):
    return make_evaluation(tmp_path_factory.mktemp("drawn"), fractions=(0.2, 1.0))


@pytest.fixture(scope="module")
def report(evaluation, tmp_path_factory):
    page = write_report(evaluation, tmp_path_factory.mktemp("report"), maps=("pca",))
    return page.parent


@pytest.fixture
def dock(viewer, qtbot):
    made = ResultsDock(viewer)
    viewer.window.add_dock_widget(made, name="Results", area="right")
    yield made
    made.shut()


@pytest.fixture
def opened(dock, report, wait):
    dock.open(report)
    wait(dock)
    return dock


@pytest.fixture
def wait(qtbot):
    def until_idle(dock):
        qtbot.waitUntil(lambda: not dock.running)

    return until_idle


@pytest.fixture
def on_slide(dock, viewer, slide_path, make_features, tmp_path, wait):
    """The dock with an open slide and the features of its tiles."""
    slide = Slide.open(slide_path)
    _layers.open_slide(viewer, slide)
    path = make_features(tmp_path / f"{slide.slide_id}.h5", CELLS)
    dock.open(path)
    wait(dock)
    assert dock.state.kind == "done", dock.state.text
    return dock


def choose(box, words):
    """Choose what is called so, as a person does."""
    at = box.findText(words)
    assert at >= 0, [box.itemText(i) for i in range(box.count())]
    box.setCurrentIndex(at)
    box.activated.emit(at)


def click(dock, point):
    """Press on a point of the map."""
    x, y = dock.plot.place_of(point)
    canvas = dock.plot.axes.figure.canvas
    canvas.callbacks.process(
        "button_press_event", MouseEvent("button_press_event", canvas, x, y, 1)
    )


def column(dock, number):
    return [dock.table.item(r, number).text() for r in range(dock.table.rowCount())]


def samples(viewer):
    return [x for x in viewer.layers if _layers.entry_of(x).get("kind") == "sample"]


def point_colours(dock):
    (points,) = dock.plot.axes.collections[:1]
    return points.get_facecolors()[:, :3]


# ---- a report


def test_an_empty_dock_says_what_to_open(dock):
    assert "histomae evaluate" in dock.state.text
    assert dock.table.isHidden() and dock.plot_box.count() == 0


def test_the_table_holds_the_numbers_of_the_report(opened, evaluation):
    summary = summarise(evaluation)
    assert column(opened, 0) == ["micro", "untrained", "colour histogram"]
    means = [
        f"{summary.score(who).figures['AUC'].mean:.2f}" for who in column(opened, 0)
    ]
    assert column(opened, 3) == means
    figure = summary.score("micro").figures["balanced accuracy"]
    assert column(opened, 1)[0] == f"{figure.mean:.2f} ± {figure.std:.2f}"
    assert column(opened, 2)[0] == f"{figure.low:.2f}–{figure.high:.2f}"
    assert "No leak was found" in opened.stamp.text()
    assert "It beats all" in opened.state.text
    assert "It beats untrained" in opened.title.toolTip()


def test_every_plot_of_the_report_is_drawn(opened):
    offered = [opened.plot_box.itemText(i) for i in range(opened.plot_box.count())]
    assert offered == list(PLOTS)
    drawn = set()
    for name in PLOTS:
        choose(opened.plot_box, name)
        axes = opened.plot.axes
        assert len(axes.lines) + len(axes.collections) > 0, name
        drawn.add((axes.get_xlabel(), axes.get_ylabel()))
    assert len(drawn) == len(PLOTS)


def by_key(viewer, theme):
    viewer.theme = theme  # as Ctrl+Shift+T: the settings stay


def by_settings(viewer, theme):
    get_settings().appearance.theme = theme


@pytest.mark.parametrize("switch", [by_key, by_settings])
def test_its_plot_follows_the_theme(opened, viewer, qtbot, switch):
    axes = opened.plot.axes

    def dressed(theme):
        ground, ink = axes.figure.get_facecolor(), axes.get_yticklabels()[0].get_color()
        wanted = theme.background.as_hex(), theme.text.as_hex()
        return [to_hex(x) for x in (ground, ink)] == [to_hex(x) for x in wanted]

    for name in ("light", "dark"):
        switch(viewer, name)
        qtbot.waitUntil(lambda name=name: dressed(get_theme(name)))


def test_a_row_and_a_setting_choose_what_is_drawn(opened, evaluation):
    choose(opened.plot_box, "Confusion")
    for who, fraction in (("untrained", 1.0), ("colour histogram", 0.2)):
        share = f"linear probe · {100 * fraction:g} % of the labels"
        choose(opened.setting_box, share)
        opened.table.selectRow(column(opened, 0).index(who))
        counted = np.zeros((3, 3), int)
        for trial in evaluation.trials:
            if (trial.candidate, trial.setting["fraction"]) == (who, fraction):
                truth = evaluation.data.labels[trial.tested]
                np.add.at(counted, (truth, trial.probabilities.argmax(1)), 1)
        cells = [int(text.get_text()) for text in opened.plot.axes.texts]
        assert cells == counted.ravel().tolist()


def test_a_point_of_the_map_shows_its_picture(opened, evaluation, viewer):
    choose(opened.plot_box, MAP)
    for point in (5, 17):
        click(opened, point)
        picture = evaluation.data.pictures[point]
        (layer,) = samples(viewer)
        assert layer.name == picture.name
        assert np.array_equal(layer.data, read_picture(picture.path))
        assert layer.scale.tolist() == [0.5, 0.5]
        assert picture.patient in opened.point_label.text()
        assert opened.plot.marked == point


def test_colours_follow_class_and_patient(opened, evaluation):
    choose(opened.plot_box, MAP)
    pictures, classes = evaluation.data.pictures, evaluation.data.classes
    expected = np.array([classes.colors[p.label] for p in pictures]) / 255
    assert np.allclose(point_colours(opened), expected)
    choose(opened.colour_box, "by patient")
    colours = [tuple(rgb) for rgb in point_colours(opened)]
    for one, other in ((0, 5), (0, 6), (12, 13)):
        same = pictures[one].patient == pictures[other].patient
        assert (colours[one] == colours[other]) == same


def test_the_arrows_go_through_the_surest_mistakes(opened, viewer):
    choose(opened.plot_box, MAP)
    mistakes = opened.summary.mistakes
    assert len(mistakes) > 1
    for place, button in ((0, opened.next), (1, opened.next), (0, opened.previous)):
        button.click()
        picture = opened.summary.pictures[mistakes[place].row]
        assert [layer.name for layer in samples(viewer)] == [picture.name]
        assert opened.plot.marked == mistakes[place].row
        assert "taken for" in opened.point_label.text()


def test_a_missing_picture_is_complained_of(opened, report, viewer, monkeypatch):
    choose(opened.plot_box, MAP)
    path = opened.summary.pictures[3].path
    hidden = path.with_suffix(".gone")
    path.rename(hidden)
    try:
        click(opened, 3)
    finally:
        hidden.rename(path)
    assert opened.state.kind == "failed" and path.name in opened.state.text
    assert samples(viewer) == []


def test_a_leak_is_stamped(dock, make_evaluation, tmp_path, wait):
    made = make_evaluation(tmp_path / "drawn", leaks=("P01 is on two sides.",))
    dock.open(write_report(made, tmp_path, maps=()).parent / "report.json")
    wait(dock)
    assert "1 leak was found" in dock.stamp.text()
    assert "P01 is on two sides." in dock.stamp.toolTip()
    assert dock.plot_box.findText(MAP) < 0  # no map was made


def test_an_evaluation_without_a_report_is_summed_up(dock, evaluation, tmp_path, wait):
    files = []
    for number, trial in enumerate(evaluation.trials):
        files.append(tmp_path / "trials" / f"{number}.npz")
        save_trial(files[-1], trial)
    save_evaluation(tmp_path, evaluation, files)
    dock.open(tmp_path)
    wait(dock)
    assert column(dock, 0) == ["micro", "untrained", "colour histogram"]
    choose(dock.plot_box, MAP)
    assert len(point_colours(dock)) == len(evaluation.data)


def test_what_is_no_report_is_said(dock, tmp_path, wait):
    (tmp_path / "report.json").write_text("{}")
    dock.open(tmp_path)
    wait(dock)
    assert dock.state.kind == "failed" and "no report" in dock.state.text


def test_a_picture_leads_to_its_place_on_an_open_slide(
    dock, viewer, slide_path, evaluation, tmp_path, wait
):
    boxes = [(200.0 * (n % 8), 150.0 * (n // 8)) for n in range(len(evaluation.data))]
    pictures = tuple(
        replace(picture, slide="ellipse", box_l0=(x, y, x + 200, y + 150))
        for picture, (x, y) in zip(evaluation.data.pictures, boxes, strict=True)
    )
    cut = replace(evaluation, data=replace(evaluation.data, pictures=pictures))
    dock.open(write_report(cut, tmp_path, maps=("pca",)).parent)
    wait(dock)
    choose(dock.plot_box, MAP)
    click(dock, 3)
    assert len(samples(viewer)) == 1  # the slide is not open
    slide = Slide.open(slide_path)
    _layers.open_slide(viewer, slide)
    for layer in samples(viewer):
        viewer.layers.remove(layer)
    click(dock, 21)
    x, y = boxes[21]
    centre = _layers.world_from_l0(slide, (x + 100, y + 75))
    assert np.allclose(_layers.camera(viewer).center[-2:], centre)
    assert samples(viewer) == []
    x, y = boxes[34]
    dock.hooks._on_click(tuple(_layers.world_from_l0(slide, (x + 9, y + 140))))
    assert dock.plot.marked == 34
    assert pictures[34].name in dock.point_label.text()


# ---- tiles of a slide


def test_a_point_leads_to_its_tile(on_slide, viewer):
    (slide,) = Session.of(viewer).slides
    for point in (0, 29):
        click(on_slide, point)
        row, col = CELLS[point]
        box = np.array([col, row, col + 1, row + 1]) * 224.0
        centre = _layers.world_from_l0(slide, (box[:2] + box[2:]) / 2)
        assert np.allclose(_layers.camera(viewer).center[-2:], centre)
        (outline,) = _layers.layers_of(viewer, slide, "outline")
        corners = _layers.l0_from_world(
            slide, outline.data[0] * outline.scale + outline.translate
        )
        assert np.allclose([*corners.min(0), *corners.max(0)], box)


def test_a_tile_leads_back_to_its_point(on_slide, viewer):
    (slide,) = Session.of(viewer).slides
    for point in (11, 40):
        row, col = CELLS[point]
        world = _layers.world_from_l0(slide, (224 * (col + 0.7), 224 * (row + 0.2)))
        on_slide.hooks._on_click(tuple(world))
        assert on_slide.plot.marked == point
    on_slide.hooks._on_click(tuple(_layers.world_from_l0(slide, (-50, -50))))
    assert on_slide.plot.marked is None
    assert _layers.layers_of(viewer, slide, "outline") == []


def test_tiles_take_the_colours_of_their_classes(on_slide, viewer):
    session = Session.of(viewer)
    (slide,) = session.slides
    grey = point_colours(on_slide)
    assert len(np.unique(grey, axis=0)) == 1
    assert "Review" in on_slide.point_label.text()
    # A grid of its own: half as wide, so that four of its tiles are one of the map's.
    grid = TileGrid(TileSpec(112, 0.5), (0.0, 0.0), (112.0, 112.0), rows=12, cols=16)
    cells = grid.all_cells()
    left = cells[:, 1] < 8
    colors = ((0, 90, 180), (230, 160, 0))
    found = Prediction(
        grid=grid,
        cells=cells,
        probabilities=np.stack([left, ~left], 1).astype(np.float32),
        class_names=("Duct", "Stroma"),
        class_colors=colors,
        encoder_id="e",
        probe_id="p",
        slide_id=slide.slide_id,
        slide_name=slide.name,
        mpp=slide.mpp,
        mpp_source="file",
    )
    Results.of(session).put(slide, Findings("e", prediction=found))
    expected = [colors[0] if col < 4 else colors[1] for _, col in CELLS]
    assert np.allclose(point_colours(on_slide), np.array(expected) / 255)
    click(on_slide, 0)
    assert "Duct" in on_slide.point_label.text()


def test_features_of_a_closed_slide_are_refused(dock, make_features, tmp_path, wait):
    dock.open(make_features(tmp_path / "elsewhere.h5"))
    wait(dock)
    assert dock.state.kind == "failed" and "not open" in dock.state.text


def test_a_slide_that_is_closed_leaves_the_map(on_slide, viewer):
    (slide,) = Session.of(viewer).slides
    viewer.layers.remove(Session.of(viewer).layer_of(slide))
    click(on_slide, 3)
    assert "was closed" in on_slide.state.text


def test_a_dock_that_is_shut_listens_no_more(on_slide, viewer):
    (slide,) = Session.of(viewer).slides
    on_slide.shut()
    assert not on_slide.hooks.attached
    Results.of(Session.of(viewer)).put(slide, Findings("e"))  # no one complains
