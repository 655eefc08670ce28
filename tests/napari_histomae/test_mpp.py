"""The question for a missing pixel size."""

import pytest
from qtpy.QtWidgets import QDialogButtonBox

from histomae.slides.slide import Slide
from napari_histomae._widgets.mpp import MppDialog, ask_mpp

OK = QDialogButtonBox.StandardButton.Ok


@pytest.fixture
def bare(bare_path):
    with Slide.open(bare_path) as slide:
        yield slide


def test_nothing_is_guessed_where_nothing_is_known(bare, qtbot):
    dialog = MppDialog(bare)
    qtbot.addWidget(dialog)
    assert dialog.mpp is None
    assert not dialog.buttons.button(OK).isEnabled()
    dialog.field.setValue(0.5)
    assert dialog.mpp == 0.5
    assert dialog.buttons.button(OK).isEnabled()
    assert dialog.size_label.text() == "0.3 × 0.25 mm"


def test_the_objectives_power_fills_the_field(bare, qtbot):
    bare._file.properties["openslide.objective-power"] = "20"
    dialog = MppDialog(bare)
    qtbot.addWidget(dialog)
    assert dialog.mpp == 0.5


@pytest.mark.parametrize("value", [0.0, 0.01])
def test_what_is_not_believable_is_no_answer(bare, qtbot, value):
    dialog = MppDialog(bare)
    qtbot.addWidget(dialog)
    dialog.field.setValue(value)
    assert dialog.mpp is None
    assert not dialog.buttons.button(OK).isEnabled()


def test_an_answer_is_remembered(bare, bare_path, qtbot, monkeypatch):
    def answer(dialog):
        dialog.field.setValue(0.46)
        return dialog.DialogCode.Accepted

    monkeypatch.setattr(MppDialog, "exec_", answer)
    assert ask_mpp(bare) == pytest.approx(0.46)
    assert bare.mpp == pytest.approx((0.46, 0.46))
    with Slide.open(bare_path) as again:
        assert again.mpp_source == "remembered"


def test_no_answer_leaves_it_unknown(bare, qtbot, monkeypatch):
    monkeypatch.setattr(MppDialog, "exec_", lambda self: self.DialogCode.Rejected)
    assert ask_mpp(bare) is None
    assert not bare.has_mpp
