"""The smallest structure: the answer follows the settings, and a button mends them."""

import pytest

from histomae.data.masking import MaskSetting
from napari_histomae._widgets.structure_field import INVITATION, StructureField
from napari_histomae._widgets.train import TrainDock


@pytest.fixture
def field(qtbot):
    made = StructureField()
    qtbot.addWidget(made)
    return made


def name(field, size, unit="px"):
    field.unit.setCurrentIndex(field.unit.findData(unit))
    field.size.setText(size)
    field.size.textEdited.emit(size)


def test_it_invites_and_then_answers(field):
    assert field.answer.text() == INVITATION
    assert field.take_button.isHidden()
    field.show_setting(224, None, MaskSetting(16, 0.75))
    name(field, "16")
    assert "at worst 75 %" in field.answer.text()
    assert field.suggestion == MaskSetting(8, 0.6)
    assert field.take_button.text() == "Take 8 px, 60 %"
    assert "0.97 % of the masks" in field.take_button.toolTip()
    field.show_setting(224, None, MaskSetting(8, 0.6))
    assert field.answer.text().endswith("It stays in sight.")
    assert field.take_button.isHidden()


def test_micrometres_need_a_pixel_size(field):
    field.show_setting(224, None, MaskSetting(16, 0.75))
    name(field, "8", "µm")
    assert "Open a slide first" in field.answer.text()
    field.show_setting(224, 0.5, MaskSetting(16, 0.75))
    assert field.in_pixels.text() == "= 16 px"
    field.show_setting(224, 0.25, MaskSetting(16, 0.75))
    assert field.in_pixels.text() == "= 32 px"


@pytest.mark.parametrize(
    ("size", "told"),
    [
        *(("eight", "no number"), ("300", "no size within a tile of 224 px")),
        *(("-3", "above 0"), ("1", "Only a finer pixel size helps")),
    ],
)
def test_what_helps_nothing_is_said(field, size, told):
    field.show_setting(224, None, MaskSetting(16, 0.75))
    name(field, size)
    assert told in field.answer.text()
    assert field.take_button.isHidden()


def test_in_the_dock_it_stands_beside_the_settings(viewer, qtbot):
    dock = TrainDock(viewer)
    viewer.window.add_dock_widget(dock, name="Train")
    dock.use_recipe("paper")
    dock.more.set_open(True)
    name(dock.structure, "16")
    before = dock.structure.answer.text()
    assert "75 %" in before
    dock.settings.edit("mask_ratio", "60")
    after = dock.structure.answer.text()
    assert after != before
    assert "60 %" in after
    dock.settings.edit("patch_size", "32")
    dock.structure.take_button.click()
    assert dock.settings.text("patch_size") == "8"
    assert dock.settings.text("mask_ratio") == "60"
    assert dock.structure.answer.text().endswith("It stays in sight.")
    dock.method.setCurrentIndex(dock.method.findData("mpcs"))
    assert dock.structure.isHidden()
