"""The Whole slide dock: press its buttons, click on the slide, look at the layers."""

import numpy as np
import pytest
import shapely
import torch

from histomae.events import result_of
from histomae.infer.embed import SlideEmbedding
from histomae.infer.encoder import TileEncoder
from histomae.infer.kept_features import kept_features
from histomae.models.checkpoint import checkpoint_tensors, save_checkpoint
from histomae.models.feature_spec import FeatureSpec
from histomae.models.pama import Pama, PamaSpec
from histomae.models.slide_checkpoint import SlideHeader
from histomae.slides.annotations import Annotation
from histomae.slides.slide import Slide
from napari_histomae import _layers, _slide_layers, _whole_slide
from napari_histomae._session import Session
from napari_histomae._widgets import whole_slide
from napari_histomae._widgets.whole_slide import WholeSlideDock
from tests.napari_histomae.test_review import save_model

MPP = 2.0


def save_pama(path, features, **changes):
    spec = PamaSpec(
        features.width,
        dim=16,
        depth=2,
        heads=2,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
        tiles_per_anchor=18,
    )
    header = SlideHeader(
        architecture="pama_test",
        model=spec,
        has_decoder=True,
        features=features,
        seen=(),
        method="pama",
        mask_ratio=0.75,
        step=3,
        config_hash="0123abcd",
    )
    pama = Pama(spec, generator=torch.Generator().manual_seed(0))
    save_checkpoint(path, header, checkpoint_tensors(pama))
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "micro.safetensors")


@pytest.fixture(scope="module")
def pama_path(tmp_path_factory, model_path):
    spec = SlideEmbedding(TileEncoder.load(model_path, device="cpu")).spec
    return save_pama(tmp_path_factory.mktemp("pama") / "pama.safetensors", spec)


@pytest.fixture
def session(viewer):
    return Session.of(viewer)


@pytest.fixture
def dock(viewer):
    made = WholeSlideDock(viewer)
    viewer.window.add_dock_widget(made, name="Whole slide", area="right")
    made.hooks.attach()
    yield made
    made.shut()


@pytest.fixture
def ready(dock, viewer, session, slide_path, model_path, pama_path, qtbot):
    _layers.open_slide(viewer, Slide.open(slide_path))
    session.use_model(model_path)
    session.use_slide_model(pama_path)
    qtbot.waitUntil(
        lambda: None not in (dock.model.header, dock.encoder.header),
    )
    return dock


@pytest.fixture
def press(qtbot):
    def run(dock):
        assert dock.run_button.isEnabled(), dock.run_button.toolTip()
        dock.run_button.click()
        assert dock.running
        qtbot.waitUntil(lambda: not dock.running)

    return run


@pytest.fixture
def seen(ready, press):
    press(ready)
    assert ready.view is not None, ready.state.text
    return ready


def layer(viewer, what):
    (found,) = [one for one in viewer.layers if one.name.endswith(f"· {what}")]
    return found


def test_an_empty_dock_says_the_first_step(
    dock, viewer, session, slide_path, pama_path
):
    assert dock.run_button.toolTip() == whole_slide.NO_SLIDE
    _layers.open_slide(viewer, Slide.open(slide_path))
    assert dock.run_button.toolTip() == whole_slide.NO_MODEL
    session.use_slide_model(pama_path)
    dock.model.ready.emit()
    assert dock.run_button.toolTip() == whole_slide.NO_TILES
    dock.use_features("some.h5")
    assert dock.run_button.isEnabled()
    assert dock.file_label.text() == "some.h5"


class TestMaps:
    def test_areas_lie_on_their_tiles(self, seen, viewer):
        view, slide = seen.view, seen.slide
        assert seen.map_box.currentData() == _whole_slide.AREAS
        shown = layer(viewer, "areas")
        for tile in (0, 7, len(view.cells) - 1):
            x0, y0, x1, y1 = view.grid.box_l0(*view.cells[tile])
            world = _layers.world_from_l0(slide, ((x0 + x1) / 2, (y0 + y1) / 2))
            assert shown.get_value(tuple(world), world=True) == view.nearest[tile] + 1
        assert np.unique(shown.data).tolist() == list(range(len(view.anchors) + 1))

    def test_each_kind_is_shown_alone(self, seen, viewer):
        kinds = [seen.map_box.itemData(n) for n in range(seen.map_box.count())]
        assert kinds == list(whole_slide.MAPS)
        for kind in kinds:
            seen.choose_map(kind)
            maps = [one for one in viewer.layers if one.name.split("· ")[-1] in kinds]
            assert [one.name for one in maps if one.visible] == [f"ellipse · {kind}"]
        error = layer(viewer, "slide error")
        rows, cols = seen.view.cells.T
        np.testing.assert_allclose(error.data[rows, cols], seen.view.error)
        assert np.isfinite(error.data).sum() == len(rows)
        attention = layer(viewer, "slide attention").data[rows, cols]
        np.testing.assert_allclose(
            attention, seen.view.attention * len(rows), rtol=1e-5
        )

    def test_anchors_are_marked_and_arrows_begin_there(self, seen, viewer):
        view, slide = seen.view, seen.slide
        marks, arrows = layer(viewer, "anchors"), layer(viewer, "directions")
        assert marks.visible
        assert not arrows.visible
        seen.arrows_box.setChecked(True)
        assert arrows.visible
        x, y = view.grid.l0_from_grid(view.cells[view.anchors, ::-1] + 0.5).T
        world = _layers.world_from_l0(slide, np.stack([x, y], -1))
        for number, place in enumerate(world):
            np.testing.assert_allclose(marks.data_to_world(marks.data[number]), place)
            start, along = arrows.data[number]
            np.testing.assert_allclose(arrows.data_to_world(start), place)
            turn = np.arctan2(along[1] * 0.4, along[0] * 0.5)  # µm: right, down
            wanted = view.angles[0, number]
            assert np.cos(turn - wanted) == pytest.approx(1)
        seen.head.setCurrentIndex(1)
        seen.head.activated.emit(1)
        along = layer(viewer, "directions").data[:, 1] * (0.5, 0.4)
        turns = np.arctan2(along[:, 1], along[:, 0])
        np.testing.assert_allclose(np.cos(turns - view.angles[1]), 1)

    def test_holding_hides_all_and_opacity_is_the_maps(self, seen, viewer):
        seen.opacity.setValue(70)
        assert layer(viewer, "areas").opacity == pytest.approx(0.7)
        seen.hide_button.pressed.emit()
        assert [one.name for one in viewer.layers if one.visible] == ["ellipse"]
        seen.hide_button.released.emit()
        assert layer(viewer, "areas").visible

    def test_again_replaces_the_layers(self, seen, viewer, press):
        before = [one.name for one in viewer.layers]
        press(seen)
        assert sorted(one.name for one in viewer.layers) == sorted(before)


class TestTile:
    def test_a_click_says_what_is_known(self, seen, viewer):
        view, slide = seen.view, seen.slide
        tile = 11
        x0, y0, x1, _ = view.grid.box_l0(*view.cells[tile])
        seen.on_click(tuple(_layers.world_from_l0(slide, ((x0 + x1) / 2, y0 + 5))))
        known = seen.tile
        assert known == view.tile_at(view.cells[tile])
        assert f"anchor {known.nearest}" in seen.words.text()
        assert f"Error {known.error:.2f}" in seen.words.text()
        weights = [share for _, share, _ in seen.bars.bars]
        assert weights == pytest.approx([w for _, w in known.weights][: len(weights)])
        colors = _slide_layers.anchor_colors(len(view.anchors))
        assert seen.bars.bars[0][2] == colors[known.weights[0][0] - 1]
        outline = layer(viewer, "slide tile")
        top_left = outline.data_to_world(outline.data[0].min(0))
        np.testing.assert_allclose(top_left, _layers.world_from_l0(slide, (x0, y0)))

    def test_one_anchors_look_is_that_of_the_clicked_tile(self, seen, viewer):
        seen.choose_map(_whole_slide.ONE_ANCHOR)
        view = seen.view
        tile = int(np.flatnonzero(view.nearest == 2)[0])
        seen.look_at(tuple(view.cells[tile]))
        rows, cols = view.cells.T
        shown = layer(viewer, "one anchor").data[rows, cols]
        np.testing.assert_allclose(shown, view.gathers[2] * len(rows), rtol=1e-5)

    def test_glass_says_nothing(self, seen):
        seen.on_click(tuple(_layers.world_from_l0(seen.slide, (3, 3))))
        assert seen.tile is None
        assert "no tile" in seen.state.text


class TestRegions:
    @pytest.fixture
    def drawn(self, ready, viewer):
        x, y = 905, 685
        _layers.show_annotations(
            viewer,
            ready.slide,
            [
                Annotation(shapely.box(x - 400, y - 300, x + 400, y + 300), "Duct"),
                Annotation(shapely.box(0, 0, 90, 90), "Glass"),
            ],
        )
        ready._refresh()
        return ready

    def choose(self, dock, name):
        at = dock.part.findText(name)
        assert at > 0
        dock.part.setCurrentIndex(at)
        dock.part.activated.emit(at)

    def test_a_region_is_a_bag(self, drawn, press):
        press(drawn)
        whole = drawn.view
        self.choose(drawn, "Duct")
        press(drawn)
        part = drawn.view
        assert 20 < len(part.cells) < len(whole.cells)
        middles = part.grid.l0_from_grid(part.cells[:, ::-1] + 0.5)
        assert (np.abs(middles - (905, 685)) <= (400, 300)).all()
        assert len(part.anchors) < len(whole.anchors)
        assert drawn.part.currentText() == "Duct"

    def test_one_without_tissue_is_told(self, drawn, press):
        self.choose(drawn, "Glass")
        press(drawn)
        assert drawn.state.kind == "failed"
        assert "region Glass of ellipse holds no tile" in drawn.state.text


class TestFeatures:
    def test_they_are_made_once(self, seen, press, monkeypatch):
        def never(*_, **__):
            raise AssertionError("embedded again")

        monkeypatch.setattr(SlideEmbedding, "features_of", never)
        before = seen.view
        press(seen)
        assert seen.state.kind == "done"
        np.testing.assert_array_equal(seen.view.error, before.error)

    def test_a_file_will_do(self, ready, session, press, model_path, tmp_path):
        embedding = SlideEmbedding(TileEncoder.load(model_path, device="cpu"))
        file = result_of(kept_features(ready.slide, embedding, folder=tmp_path))
        session.use_model(None)
        ready.use_features(file)
        press(ready)
        assert ready.state.kind == "done"

    def test_other_features_are_refused_with_both_named(
        self, ready, session, press, tmp_path, monkeypatch
    ):
        spec = FeatureSpec(
            encoder="another", encoder_id="77", width=24, tile_px=32, mpp=2.0
        )
        session.use_slide_model(save_pama(tmp_path / "other.safetensors", spec))
        monkeypatch.setattr(SlideEmbedding, "features_of", None)  # not in vain
        press(ready)
        assert ready.state.kind == "failed"
        assert "vit_test_patch8_32" in ready.state.text
        assert "another (77)" in ready.state.text

    def test_those_of_another_slide_are_refused(
        self, ready, press, make_features, tmp_path
    ):
        ready.use_features(make_features(tmp_path / "foreign.h5"))
        press(ready)
        assert ready.state.kind == "failed"
        assert "foreign" in ready.state.text
        assert "ellipse" in ready.state.text

    def test_cancel_leaves_all_as_it_was(self, ready, viewer, qtbot):
        ready.run_button.click()
        ready.cancel_button.click()
        qtbot.waitUntil(lambda: not ready.running)
        assert ready.view is None
        assert "nothing was changed" in ready.state.text
        assert len(viewer.layers) == 1


def test_closing_the_slide_forgets_it(seen, viewer):
    viewer.layers.clear()
    assert seen.view is None
    assert seen.tile is None
    assert seen.run_button.toolTip() == whole_slide.NO_SLIDE
