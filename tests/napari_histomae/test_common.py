"""The pieces that the docks are built of."""

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget, QMainWindow, QPushButton, QWidget

from histomae.errors import SlideError
from napari_histomae._widgets.common import (
    ElidedBox,
    ElidedLabel,
    FieldMark,
    MoreSettings,
    PictureStrip,
    StateLine,
    dock_layout,
    human_time,
    swatch,
    why_disabled,
)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "time left not known yet"),
        (float("inf"), "time left not known yet"),
        (0.2, "almost done"),
        (12, "10 s left"),
        (100, "about 2 min left"),
        (54 * 60, "about 54 min left"),
        (2.5 * 3600, "about 2.5 h left"),
        (20 * 3600, "about 20 h left"),
        (72 * 3600, "about 3 days left"),
    ],
)
def test_time_left_as_a_person_says_it(seconds, said):
    assert human_time(seconds) == said


def test_the_state_line_says_one_thing_at_a_time(qtbot):
    line = StateLine()
    qtbot.addWidget(line)
    kinds = []
    line.changed.connect(kinds.append)
    line.idle("Choose a slide.")
    assert (line.kind, line.text, line.fraction) == ("idle", "Choose a slide.", None)
    line.working("Embedding", 30, 120)
    assert line.fraction == pytest.approx(0.25)
    line.working("Waiting")
    assert line.fraction is None
    line.done("212 tiles")
    assert line.fraction is None
    assert kinds == ["working", "done"]


def test_a_failure_is_a_sentence_with_its_trace_folded_away(qtbot):
    line = StateLine()
    qtbot.addWidget(line)
    try:
        raise SlideError("C2 is gone. Open another.")
    except SlideError as error:
        line.failed(error)
    assert line.text == "C2 is gone. Open another."
    assert "Traceback" in line.details
    assert line._details.isHidden()
    line._details_button.click()
    assert not line._details.isHidden()
    line.idle("Again")
    assert line.details == ""
    assert line._details_button.isHidden()


def test_more_settings_fold_and_show_their_values(qtbot):
    fold = MoreSettings()
    qtbot.addWidget(fold)
    assert not fold.is_open
    assert fold.body.isHidden()
    fold.set_summary("tile 224 px · 0.5 µm/px")
    assert fold.summary == "tile 224 px · 0.5 µm/px"
    fold.set_open(True)
    assert not fold.body.isHidden()


def test_a_long_text_is_cut_and_kept_whole_in_the_tooltip(qtbot):
    label = ElidedLabel("runs/" + "a" * 200)
    qtbot.addWidget(label)
    label.resize(100, 20)
    label.show()
    assert label.text().endswith("aaa")
    assert "…" in super(ElidedLabel, label).text()
    assert label.toolTip() == label.text()
    label.setToolTip("the folder")
    label.setText("short")
    assert label.toolTip() == "the folder"


def test_a_long_choice_ends_in_dots(qtbot):
    box = ElidedBox()
    qtbot.addWidget(box)
    box.setPlaceholderText("Choose")
    box.resize(150, 24)
    box.show()
    assert box.drawn_text == "Choose"
    box.addItems(["short", "her2st-C2_" + "a" * 60 + " · step 600"])
    box.setCurrentIndex(0)
    assert box.drawn_text == "short"
    box.setCurrentIndex(1)
    assert "…" in box.drawn_text
    assert box.drawn_text.startswith("her2") and box.drawn_text.endswith("600")
    assert box.fontMetrics().horizontalAdvance(box.drawn_text) < 150
    box.grab()  # it can be painted


def test_pictures_side_by_side(qtbot):
    strip = PictureStrip(["tile", "masked"])
    qtbot.addWidget(strip)
    strip.resize(300, 150)
    strip.show()
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, :20] = 255
    strip.set_pictures([picture, None])
    assert strip.pictures[0].has_picture
    assert not strip.pictures[1].has_picture
    shown = strip.pictures[0].pixmap()
    assert shown.width() == pytest.approx(2 * shown.height(), abs=2)
    assert shown.toImage().pixelColor(2, 2).red() == 255
    assert shown.toImage().pixelColor(shown.width() - 3, 2).red() == 0
    strip.set_caption(1, "re-drawn")
    assert strip.captions[1].text() == "re-drawn"
    clicks = []
    strip.clicked.connect(lambda *at: clicks.append(at))
    qtbot.mouseClick(strip.pictures[0], Qt.MouseButton.LeftButton)
    assert clicks[0][0] == 0
    assert clicks[0][1:] == pytest.approx((0.5, 0.5), abs=0.05)


def test_a_disabled_button_says_why(qtbot):
    button = QPushButton("Start")
    qtbot.addWidget(button)
    button.setToolTip("Begin the training")
    why_disabled(button, "Choose a slide first.")
    assert not button.isEnabled()
    assert button.toolTip() == "Choose a slide first."
    why_disabled(button, "It is running already.")
    why_disabled(button, "")
    assert button.isEnabled()
    assert button.toolTip() == "Begin the training"


def test_a_mark_is_seen_only_when_something_is_wrong(qtbot):
    mark = FieldMark()
    qtbot.addWidget(mark)
    assert mark.isHidden()
    mark.say("Too small. Choose at least 1.")
    assert not mark.isHidden()
    mark.say("")
    assert mark.isHidden()


def test_a_swatch_has_its_colour(qapp):
    assert swatch((1, 2, 3)).toImage().pixelColor(3, 3).getRgb()[:3] == (1, 2, 3)


def test_docks_of_ours_share_tabs_and_others_do_not(qtbot):
    main = QMainWindow()
    qtbot.addWidget(main)
    main.resize(900, 600)
    main.show()
    qtbot.waitExposed(main)

    def add(inner):
        dock = QDockWidget()
        dock.setWidget(inner)
        main.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, dock)
        qtbot.wait(20)
        return dock

    def ours():
        inner = QWidget()
        dock_layout(inner)
        return inner

    foreign, first, second = add(QWidget()), add(ours()), add(ours())
    assert main.tabifiedDockWidgets(second) == [first]
    assert main.tabifiedDockWidgets(foreign) == []
    third = add(ours())
    assert set(main.tabifiedDockWidgets(third)) == {first, second}
    main.splitDockWidget(foreign, third, Qt.Orientation.Vertical)
    third.hide()
    third.show()
    qtbot.wait(20)
    assert main.tabifiedDockWidgets(third) == []
