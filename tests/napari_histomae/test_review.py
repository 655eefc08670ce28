"""The Review dock: press its buttons, click on the slide, look at the layers."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from qtpy.QtWidgets import QWidget

from histomae.events import result_of
from histomae.infer.encoder import TileEncoder
from histomae.infer.predict import tissue_grid
from histomae.models.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    checkpoint_tensors,
    save_checkpoint,
)
from histomae.models.cnn import CnnSpec
from histomae.models.encoders import build
from histomae.models.mae import DecoderSpec, MaskedAutoencoder
from histomae.models.probe import Probe
from histomae.models.vit import EncoderSpec
from histomae.slides.slide import Slide
from napari_histomae import _layers, _review
from napari_histomae._session import Session
from napari_histomae._widgets.hooks import ViewerHooks
from napari_histomae._widgets.review import ReviewDock

SPEC = EncoderSpec(tile_px=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
DECODER = DecoderSpec(dim=16, depth=1, heads=2)
MPP = 2.0
NAMES = ("Duct", "Stroma", "Fat")
COLORS = ((0, 90, 180), (230, 160, 0), (0, 160, 120))


def header_of(**changes):
    fields = {
        "architecture": "vit_test_patch8_32",
        "encoder": SPEC,
        "decoder": DECODER,
        "method": "mae",
        "mask_ratio": 0.75,
        "norm_pix": True,
        "mean": (0.7, 0.5, 0.65),
        "std": (0.2, 0.25, 0.18),
        "tile_px": SPEC.tile_px,
        "mpp": MPP,
        "mpp_given": False,
        "step": 1200,
        "config_hash": "0123abcd",
    }
    return CheckpointHeader(**{**fields, **changes})


def save_model(path, *, seed=0, **changes):
    model = MaskedAutoencoder(
        SPEC,
        decoder_dim=DECODER.dim,
        decoder_depth=DECODER.depth,
        decoder_heads=DECODER.heads,
        generator=torch.Generator().manual_seed(seed),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.mul_(3)
    checkpoint = Checkpoint(header_of(**changes), checkpoint_tensors(model))
    if checkpoint.header.decoder is None:
        checkpoint = checkpoint.encoder_only()
    save_checkpoint(path, checkpoint.header, checkpoint.tensors)
    return path


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "micro.safetensors")


@pytest.fixture(scope="session")
def probe_path(tmp_path_factory, model_path, slide_path):
    """A classifier that finds all its classes on the slide."""
    encoder = TileEncoder.load(model_path, device="cpu")
    with Slide.open(slide_path) as slide:
        grid, cells = tissue_grid(slide, encoder)
        tiles = [slide.read_region(grid.xy_l0(*cell), (32, 32), MPP) for cell in cells]
    embedded = encoder.embed(np.stack(tiles))
    weight = np.random.default_rng(0).normal(size=(3, 24)) / 3
    probe = Probe(
        mean=embedded.mean(0),
        std=embedded.std(0) + 1e-6,
        weight=weight,
        bias=np.zeros(3),
        class_names=NAMES,
        class_colors=COLORS,
        encoder_id=encoder.encoder_id,
        tile_px=32,
        mpp=MPP,
        pooling="class_token",
    )
    path = tmp_path_factory.mktemp("probe") / "three.probe"
    probe.save(path)
    return path


@pytest.fixture
def session(viewer):
    return Session.of(viewer)


@pytest.fixture
def dock(viewer, qtbot):
    made = ReviewDock(viewer)
    viewer.window.add_dock_widget(made, name="Review", area="right")
    made.hooks.attach()  # as when the window is shown
    yield made
    made.shut()


@pytest.fixture
def opened(dock, viewer, session, slide_path, model_path, qtbot):
    """The dock with a slide and a model, and no classifier."""
    _layers.open_slide(viewer, Slide.open(slide_path))
    session.use_model(model_path)
    qtbot.waitUntil(lambda: dock.model.header is not None)
    return dock


@pytest.fixture
def taught(opened, session, probe_path):
    """The dock with a slide, a model and a classifier."""
    session.load_probe(probe_path)
    return opened


@pytest.fixture
def mapped(taught, run):
    """The dock after a run with a classifier."""
    run(taught)
    return taught


@pytest.fixture
def run(qtbot):
    def press(dock):
        assert dock.run_button.isEnabled(), dock.run_button.toolTip()
        dock.run_button.click()
        assert dock.running
        finish(dock)

    def finish(dock):
        qtbot.waitUntil(lambda: not dock.running)

    press.finish = finish
    return press


@pytest.fixture
def look(qtbot):
    """Waits until the clicked tile is shown."""

    def wait(dock):
        qtbot.waitUntil(lambda: not dock.looker.looking)

    return wait


def names(viewer):
    return [layer.name for layer in viewer.layers]


def choose_map(dock, label):
    at = dock.maps.map_box.findText(label)
    assert at >= 0
    dock.maps.map_box.setCurrentIndex(at)
    dock.maps.map_box.activated.emit(at)


def offered(dock):
    return [dock.maps.map_box.itemText(i) for i in range(dock.maps.map_box.count())]


def press_mouse(viewer, place_l0, slide, *, moves=(), button=1, modifiers=()):
    """Press, move and release the mouse over a place of a slide."""
    world = tuple(_layers.world_from_l0(slide, place_l0))
    event = SimpleNamespace(
        type="mouse_press",
        button=button,
        modifiers=modifiers,
        pos=np.array([200.0, 150.0]),
        position=world,
    )
    running = [call(viewer, event) for call in list(viewer.mouse_drag_callbacks)]
    for steps in running:
        next(steps, None)
    event.type = "mouse_move"
    for dx, dy in moves:
        event.pos = np.array([200.0 + dx, 150.0 + dy])
        for steps in running:
            next(steps, None)
    event.type = "mouse_release"
    for steps in running:
        next(steps, None)


def edges_um(layer):
    """Return the outer edges (y0, x0, y1, x1) of a layer's pixels in the world."""
    high, wide = layer.data.shape[:2]
    corners = [layer.data_to_world(p) for p in ((-0.5, -0.5), (high - 0.5, wide - 0.5))]
    return np.array(corners).ravel()


def box_um(slide, box_l0):
    x0, y0, x1, y1 = box_l0
    return np.ravel([_layers.world_from_l0(slide, p) for p in ((x0, y0), (x1, y1))])


# ---- the first steps


def test_an_empty_dock_says_what_to_do_first(dock, viewer, slide_path):
    assert dock.first_step.text() == "Open the sample slide"
    assert dock.first_step.isVisibleTo(dock)
    assert "Open a slide" in dock.state.text
    assert not dock.export_button.isEnabled()
    assert "classifier" in dock.export_button.toolTip()

    _layers.open_slide(viewer, Slide.open(slide_path))
    assert dock.slide_label.text() == "ellipse"
    assert dock.first_step.text() == "Choose a model…"
    assert "model" in dock.state.text
    press_mouse(viewer, (900, 700), dock.slide)
    assert dock.state.kind == "failed"
    assert "Choose a model" in dock.state.text


def test_with_slide_and_model_it_can_run(opened):
    assert not opened.first_step.isVisibleTo(opened)
    assert opened.run_button.isEnabled()
    assert "Run on slide" in opened.state.text


# ---- without a classifier


def test_without_a_classifier_there_is_no_class_map(opened, viewer, run):
    run(opened)
    assert offered(opened) == ["attention", "error", "likeness"]
    assert names(viewer) == ["ellipse", "ellipse · attention"]
    assert opened.state.kind == "done"
    assert "Teach" in opened.state.text
    assert not opened.maps.classes.isVisibleTo(opened)
    assert opened.tile.teach_button.isVisibleTo(opened)
    assert not opened.tile.next.isEnabled()
    assert not opened.export_button.isEnabled()

    attention = viewer.layers["ellipse · attention"]
    assert str(attention.interpolation2d) == "linear"
    for label in ("error", "likeness"):
        choose_map(opened, label)
        assert not opened.running  # it was made in the same run
    error, likeness = (viewer.layers[f"ellipse · {x}"] for x in ("error", "likeness"))
    assert [x.visible for x in (attention, error, likeness)] == [False, False, True]
    low, high = error.contrast_limits
    median = np.nanmedian(error.data)
    assert (low + high) / 2 == pytest.approx(median, rel=1e-5)
    assert likeness.rgb


def test_maps_lie_on_the_tiles(opened, viewer, run):
    run(opened)
    choose_map(opened, "likeness")
    grid, cells = tissue_grid(
        opened.slide, TileEncoder.load(opened._session.model_path)
    )
    x0, y0, _, _ = grid.box_l0(0, 0)
    _, _, x1, y1 = grid.box_l0(grid.rows - 1, grid.cols - 1)
    wanted = box_um(opened.slide, (x0, y0, x1, y1))
    for name in ("attention", "likeness"):
        layer = viewer.layers[f"ellipse · {name}"]
        np.testing.assert_allclose(edges_um(layer), wanted, atol=1e-6)
    shown = np.argwhere(viewer.layers["ellipse · likeness"].data[..., 3] > 0)
    np.testing.assert_array_equal(shown, cells)


def test_a_model_without_its_decoder(
    dock, viewer, session, slide_path, tmp_path, qtbot
):
    path = save_model(tmp_path / "bare.safetensors", decoder=None)
    _layers.open_slide(viewer, Slide.open(slide_path))
    session.use_model(path)
    qtbot.waitUntil(lambda: dock.model.header is not None)
    assert offered(dock) == ["attention", "likeness"]
    assert not dock.tile.new_mask.isEnabled()
    assert "decoder" in dock.tile.new_mask.toolTip()
    dock.looker.look_at((5, 5), is_cell=True)
    qtbot.waitUntil(lambda: not dock.looker.looking)
    assert names(viewer) == ["ellipse", "ellipse · attention 2/mean", "ellipse · tile"]


# ---- with a classifier


def test_run_shows_the_classes(mapped, viewer):
    assert mapped.state.kind == "done"
    assert offered(mapped)[0] == "classes"
    assert names(viewer) == ["ellipse", "ellipse · classes"]
    layer, prediction = viewer.layers["ellipse · classes"], mapped.prediction
    np.testing.assert_array_equal(
        layer.data, prediction.class_map(0.5, unsure=4).values
    )
    assert layer.opacity == pytest.approx(0.4)
    assert list(layer.features["class"]) == ["", *NAMES, "unsure"]
    for label, color in enumerate(COLORS, start=1):
        drawn = layer.colormap.map(np.array([label]))[0]
        np.testing.assert_allclose(drawn, [*(c / 255 for c in color), 1], atol=0.01)
    x0, y0, _, _ = prediction.grid.box_l0(0, 0)
    rows, cols = prediction.grid.shape
    _, _, x1, y1 = prediction.grid.box_l0(rows - 1, cols - 1)
    wanted = box_um(mapped.slide, (x0, y0, x1, y1))
    np.testing.assert_allclose(edges_um(layer), wanted, atol=1e-6)


def test_running_again_replaces_the_layers(mapped, viewer, run):
    choose_map(mapped, "P(Duct)")
    choose_map(mapped, "classes")
    before = viewer.layers["ellipse · classes"]
    assert "ellipse · P(Duct)" in names(viewer)
    run(mapped)
    assert names(viewer) == ["ellipse", "ellipse · classes"]
    assert viewer.layers["ellipse · classes"] is before


def test_probabilities_are_made_when_asked_for(mapped, viewer):
    choose_map(mapped, "P(Stroma)")
    layer = viewer.layers["ellipse · P(Stroma)"]
    assert layer.contrast_limits == [0, 1]
    assert not viewer.layers["ellipse · classes"].visible
    assert mapped.maps.threshold_words.text() == "Show from"
    np.testing.assert_array_equal(
        layer.data, mapped.prediction.probability_map("Stroma").values
    )
    mapped.maps.threshold.setValue(40)
    assert np.nanmin(layer.data) >= 0.4
    choose_map(mapped, "classes")
    assert mapped.maps.threshold_words.text() == "Sure from"
    assert mapped.maps.threshold.value() == 50

    choose_map(mapped, "confidence")
    layer = viewer.layers["ellipse · confidence"]
    assert layer.contrast_limits == pytest.approx([1 / 3, 1])
    assert [x.name for x in viewer.layers if x.visible] == ["ellipse", layer.name]
    assert not mapped.maps.threshold.isVisibleTo(mapped)


def test_attention_is_made_when_asked_for(mapped, viewer, run):
    choose_map(mapped, "attention")
    assert mapped.running
    run.finish(mapped)
    layer = viewer.layers["ellipse · attention"]
    assert layer.visible
    alphas = layer.colormap.map(np.array([0, 0.5, 1, np.nan]))[:, 3]
    np.testing.assert_allclose(alphas, [0, 0.5, 1, 0], atol=0.01)
    assert mapped.prediction is not None
    choose_map(mapped, "classes")
    assert viewer.layers["ellipse · classes"].visible


def test_a_map_chosen_meanwhile_is_made_next(taught, viewer, qtbot):
    taught.run_button.click()
    choose_map(taught, "error")
    qtbot.waitUntil(
        lambda: "ellipse · error" in viewer.layers and not taught.running,
    )
    assert viewer.layers["ellipse · error"].visible
    assert taught.prediction is not None


def test_a_classifier_taken_meanwhile(opened, viewer, session, probe_path, run):
    opened.run_button.click()
    session.load_probe(probe_path)
    run.finish(opened)
    assert opened.maps.choice.kind == "attention"
    assert viewer.layers["ellipse · attention"].visible
    assert opened.prediction is None
    run(opened)
    choose_map(opened, "classes")
    assert opened.prediction is not None
    assert viewer.layers["ellipse · classes"].visible


def test_threshold_classes_and_opacity_are_instant(mapped, viewer):
    layer, prediction = viewer.layers["ellipse · classes"], mapped.prediction
    mapped.maps.threshold.setValue(70)
    np.testing.assert_array_equal(
        layer.data, prediction.class_map(0.7, unsure=4).values
    )
    areas = prediction.area_mm2(0.7)
    shown = [float(label.text().split()[0]) for label in mapped.maps.classes.areas]
    assert shown[:3] == pytest.approx([areas[n] for n in NAMES], abs=0.006)
    assert sum(shown) == pytest.approx(sum(prediction.area_mm2().values()), abs=0.03)

    mapped.maps.classes.boxes[1].click()
    alphas = layer.colormap.map(np.array([1, 2, 3, 4]))[:, 3]
    np.testing.assert_array_equal(alphas, [1, 0, 1, 1])
    mapped.maps.classes.boxes[1].click()
    assert layer.colormap.map(np.array([2]))[0, 3] == 1

    mapped.maps.opacity.setValue(75)
    assert layer.opacity == pytest.approx(0.75)
    assert not mapped.running


def test_holding_the_key_hides_all_but_tissue_and_regions(mapped, viewer, look):
    _layers.show_annotations(viewer, mapped.slide, [])
    mapped.looker.look_at((5, 5), is_cell=True)
    look(mapped)
    before = {layer.name for layer in viewer.layers if layer.visible}
    assert {"ellipse · classes", "ellipse · tile"} < before
    held = viewer.keymap[_key("H")](viewer)
    next(held)
    shown = {layer.name for layer in viewer.layers if layer.visible}
    assert shown == {"ellipse", "ellipse · regions"}
    next(held, None)
    assert {layer.name for layer in viewer.layers if layer.visible} == before

    mapped.maps.hide_button.pressed.emit()
    assert not viewer.layers["ellipse · classes"].visible
    mapped.maps.hide_button.released.emit()
    assert viewer.layers["ellipse · classes"].visible


def _key(name):
    from napari.utils.key_bindings import coerce_keybinding

    return coerce_keybinding(name)


# ---- the clicked tile


def test_a_click_shows_its_tile(taught, viewer, session, look):
    slide = taught.slide
    place = (1000.0, 700.0)
    press_mouse(viewer, place, slide, moves=[(1, 2), (3, -2)])
    look(taught)
    closeup = taught.looker.closeup
    # tiles of 64 µm are 160 x 128 pixels
    assert closeup.cell == (5, 6)
    assert taught.tile.title.text() == "Tile 5, 6 · 0.42 mm, 0.35 mm"

    assert names(viewer) == [
        "ellipse",
        "ellipse · reconstruction",
        "ellipse · attention 2/mean",
        "ellipse · tile",
    ]
    box = box_um(slide, (960, 640, 1120, 768))
    redrawn = viewer.layers["ellipse · reconstruction"]
    attention = viewer.layers["ellipse · attention 2/mean"]
    for layer in (redrawn, attention):
        np.testing.assert_allclose(edges_um(layer), box, atol=1e-6)
    np.testing.assert_array_equal(redrawn.data, closeup.reconstruction.reconstruction)
    np.testing.assert_array_equal(attention.data, closeup.attention)
    outline = viewer.layers["ellipse · tile"]
    corners = [outline.data_to_world(outline.data[0][i]) for i in (0, 2)]
    np.testing.assert_allclose(np.ravel(corners), box, atol=1e-6)
    for zoom in (0.1, 3.0):
        viewer.scene.camera.zoom = zoom
        on_screen = outline.edge_width[0] * 0.5 * zoom
        assert on_screen == pytest.approx(_layers.OUTLINE_PX)

    tile = slide.read_region((960, 640), (32, 32), MPP)
    np.testing.assert_array_equal(closeup.tile, tile)
    encoder = session.encoder()
    wanted = session.probe.probabilities(encoder.embed(tile[None]))[0]
    bars = {name: share for name, share, _ in taught.tile.bars.bars}
    assert bars == pytest.approx(dict(zip(NAMES, wanted, strict=True)), abs=1e-5)
    assert [color for *_, color in taught.tile.bars.bars] == [
        COLORS[i] for i in np.argsort(-wanted)
    ]
    assert all(p.has_picture for p in taught.tile.pictures.pictures.values())


@pytest.mark.parametrize(
    "how",
    [
        {"moves": [(3, 4)]},
        {"moves": [(30, 0), (0, 0)]},
        {"button": 2},
        {"modifiers": ("Shift",)},
    ],
    ids=["dragged", "dragged and back", "right button", "with shift"],
)
def test_what_is_no_click(opened, viewer, how):
    press_mouse(viewer, (1000, 700), opened.slide, **how)
    assert not opened.looker.looking
    assert opened.looker.closeup is None


def test_no_tile_while_drawing_or_beside_the_slide(opened, viewer, look):
    drawn = viewer.add_shapes(name="mine")
    drawn.mode = "add_polygon"
    press_mouse(viewer, (1000, 700), opened.slide)
    assert not opened.looker.looking
    drawn.mode = "pan_zoom"
    press_mouse(viewer, (-50, 700), opened.slide)
    look(opened)
    assert opened.looker.closeup is None
    press_mouse(viewer, (1000, 700), opened.slide)
    look(opened)
    assert opened.looker.closeup.cell == (5, 6)


def test_the_newest_click_wins(opened, viewer, look):
    for x in (700, 900, 1100):
        press_mouse(viewer, (x, 700), opened.slide)
    look(opened)
    assert opened.looker.closeup.cell == (5, 6)
    press_mouse(viewer, (700, 700), opened.slide)
    look(opened)
    assert opened.looker.closeup.cell == (5, 4)
    assert len(viewer.layers) == 4


def test_block_and_head(opened, viewer, session, look):
    opened.looker.look_at((5, 5), is_cell=True)
    look(opened)
    tile = opened.looker.closeup.tile[None]
    for block, head, name in ((0, 2, "1/3"), (1, "rollout", "2/rollout")):
        opened.tile.block.setCurrentIndex(block)
        opened.tile.head.setCurrentIndex(opened.tile.head.findData(head))
        opened.tile.head.activated.emit(0)
        look(opened)
        layer = viewer.layers[f"ellipse · attention {name}"]
        wanted = session.encoder().attention(tile, block=block, head=head)[0]
        np.testing.assert_allclose(layer.data, wanted, atol=1e-6)
        assert len(viewer.layers) == 4


def test_masks(opened, viewer, look, qtbot):
    opened.looker.look_at((5, 5), is_cell=True)
    look(opened)
    first = opened.looker.closeup.reconstruction
    assert first.mask.sum() == 12

    opened.tile.new_mask.click()
    look(opened)
    second = opened.looker.closeup.reconstruction
    assert (second.mask != first.mask).any()

    opened.tile.statistics.setCurrentIndex(1)
    assert "knows the hidden" in opened.tile.statistics.currentText()
    opened.tile.statistics.activated.emit(1)
    look(opened)
    third = opened.looker.closeup.reconstruction
    np.testing.assert_array_equal(third.mask, second.mask)
    assert (third.reconstruction != second.reconstruction).any()

    with qtbot.waitSignal(opened.tile.look_changed):
        opened.tile.mask_ratio.setValue(50)
    look(opened)
    fourth = opened.looker.closeup.reconstruction
    assert fourth.mask.sum() == 8
    assert opened.tile.mask_label.text() == "Mask 50 %"
    layer = viewer.layers["ellipse · reconstruction"]
    np.testing.assert_array_equal(layer.data, fourth.reconstruction)


def test_what_of_the_tile_is_on_the_slide(opened, viewer, look):
    opened.looker.look_at((5, 5), is_cell=True)
    look(opened)
    attention = viewer.layers["ellipse · attention 2/mean"]
    redrawn = viewer.layers["ellipse · reconstruction"]
    assert (attention.visible, redrawn.visible) == (True, False)
    opened.tile.redrawn_box.click()
    opened.tile.attention_box.click()
    assert (attention.visible, redrawn.visible) == (False, True)
    opened.looker.look_at((6, 5), is_cell=True)
    look(opened)
    assert (attention.visible, redrawn.visible) == (False, True)


def test_arrows_go_through_the_uncertain_tiles(mapped, viewer, look):
    prediction = mapped.prediction
    cells = prediction.cells[prediction.least_confident()].tolist()
    visited = []
    for key in ("Right", "Right", "Right", "Left", "Left", "Left"):
        viewer.keymap[_key(key)](viewer)
        look(mapped)
        visited.append(list(mapped.looker.closeup.cell))
    assert visited == [cells[i] for i in (0, 1, 2, 1, 0, 0)]
    x0, y0, x1, y1 = prediction.grid.box_l0(*cells[0])
    centre = _layers.world_from_l0(mapped.slide, ((x0 + x1) / 2, (y0 + y1) / 2))
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], centre, atol=1e-6)
    mapped.tile.next.click()
    look(mapped)
    assert list(mapped.looker.closeup.cell) == cells[1]


def test_another_classifier_looks_again_and_forgets_the_classes(
    mapped, viewer, session, look
):
    mapped.looker.look_at((5, 5), is_cell=True)
    look(mapped)
    session.use_probe(None)
    look(mapped)
    assert mapped.prediction is None
    assert mapped.tile.bars.bars == []
    assert offered(mapped)[0] == "attention"
    assert not mapped.maps.classes.isVisibleTo(mapped)
    assert mapped.looker.closeup.probabilities is None


# ---- files


def test_export(mapped, tmp_path):
    mapped.export(tmp_path / "tiles.geojson")
    features = json.loads((tmp_path / "tiles.geojson").read_text())["features"]
    prediction = mapped.prediction
    assert len(features) == len(prediction.cells)
    assert features[0]["properties"]["objectType"] == "tile"
    ring = features[0]["geometry"]["coordinates"][0]
    x0, y0, x1, y1 = prediction.grid.box_l0(*prediction.cells[0])
    xs, ys = zip(*ring, strict=True)
    assert (min(xs), min(ys), max(xs), max(ys)) == pytest.approx((x0, y0, x1, y1))
    assert f"{len(features)} tiles written to tiles.geojson" in mapped.state.text

    mapped.export(tmp_path / "tiles.csv")
    with (tmp_path / "tiles.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(features)
    assert float(rows[3]["prob_Fat"]) == pytest.approx(
        prediction.probabilities[3, 2], abs=1e-6
    )

    mapped.export(tmp_path / "tiles.geojson" / "tiles.csv")
    assert mapped.state.kind == "failed"
    assert "tiles.csv was not written" in mapped.state.text


# ---- what goes wrong


def test_a_classifier_of_another_model(opened, viewer, session, probe_path, run, look):
    from dataclasses import replace

    session.use_probe(replace(Probe.load(probe_path), encoder_id="f" * 16))
    run(opened)
    assert opened.state.kind == "failed"
    assert "Choose its own model" in opened.state.text
    assert names(viewer) == ["ellipse"]
    assert opened.run_button.isEnabled()
    opened.looker.look_at((5, 5), is_cell=True)
    look(opened)
    assert opened.looker.closeup.probabilities is None

    session.use_probe(replace(Probe.load(probe_path), mpp=4.0))
    assert not opened.run_button.isEnabled()
    assert "another model" in opened.run_button.toolTip()


def test_files_that_are_no_model_and_no_classifier(
    opened, session, tmp_path, model_path, qtbot
):
    opened.use_classifier(model_path)
    assert opened.state.kind == "failed"
    assert "not a probe" in opened.state.text
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    session.use_model(broken)
    qtbot.waitUntil(lambda: session.model_path is None)
    assert opened.state.kind == "failed"
    assert "broken.safetensors" in opened.state.text


def test_a_slide_that_is_too_coarse(opened, viewer, tmp_path, write_slide, tissue_like):
    path = write_slide(
        tmp_path / "coarse.tiff", tissue_like(300, 300), mpp_x=4, mpp_y=4
    )
    _layers.open_slide(viewer, Slide.open(path))
    assert opened.slide.name == "coarse"
    assert not opened.run_button.isEnabled()
    assert "µm" in opened.run_button.toolTip()


def test_cancel(opened, viewer, qtbot, monkeypatch):
    import threading

    go_on = threading.Event()
    embed = TileEncoder.embed

    def slowly(self, tiles, **options):
        go_on.wait(60)
        return embed(self, tiles, **options)

    monkeypatch.setattr(TileEncoder, "embed", slowly)
    opened.run_button.click()
    assert opened.cancel_button.isVisibleTo(opened)
    assert not opened.run_button.isVisibleTo(opened)
    opened.cancel_button.click()
    assert "Stopping" in opened.state.text
    go_on.set()
    qtbot.waitUntil(lambda: not opened.running)
    assert opened.state.text == "Stopped; nothing was changed."
    assert names(viewer) == ["ellipse"]
    assert opened.run_button.isVisibleTo(opened)


# ---- coming and going


def test_every_slide_has_its_own_findings(
    mapped, viewer, tmp_path, write_slide, tissue_like, look
):
    first = mapped.slide
    mapped.looker.look_at((5, 5), is_cell=True)
    look(mapped)
    other = write_slide(tmp_path / "other.tiff", tissue_like(900, 700, seed=1))
    layer = _layers.open_slide(viewer, Slide.open(other))
    assert mapped.slide.name == "other"
    assert mapped.prediction is None
    assert not mapped.export_button.isEnabled()
    assert mapped.looker.closeup is None
    assert "ellipse · tile" not in names(viewer)

    viewer.layers.selection.active = viewer.layers["ellipse"]
    assert mapped.slide is first
    assert mapped.prediction is not None
    assert mapped.export_button.isEnabled()
    viewer.layers.remove(viewer.layers["ellipse"])
    assert mapped.slide.name == "other"
    assert _review.Results.of(mapped._session).on(first) is None
    viewer.layers.remove(layer)


def test_what_teach_found_is_taken(taught, session, qtbot):
    cache = taught._cache
    slide, load = taught.slide, session.encoder
    look = taught.tile.look
    work = _review.survey(load, session.probe, slide, cache, look)
    _review.Results.of(session).put(slide, result_of(work))
    assert taught.export_button.isEnabled()
    assert taught.maps.classes.names == (*NAMES, "unsure")


def test_closing_gives_everything_back(viewer, slide_path, qtbot):
    mine = []
    viewer.bind_key("H", mine.append)
    drags = list(viewer.mouse_drag_callbacks)
    dock = ReviewDock(viewer)
    docked = viewer.window.add_dock_widget(dock, name="Review", area="right")
    viewer.window._qt_window.show()
    qtbot.waitUntil(lambda: dock.hooks.attached)
    assert len(viewer.mouse_drag_callbacks) == len(drags) + 1
    assert _key("Left") in viewer.keymap

    docked.hide()
    assert not dock.hooks.attached
    docked.show()
    assert dock.hooks.attached

    viewer.window.remove_dock_widget(docked)
    assert not dock.hooks.attached
    assert viewer.mouse_drag_callbacks == drags
    assert _key("Left") not in viewer.keymap
    viewer.keymap[_key("H")](viewer)
    assert mine == [viewer]
    before = dock.slide_label.text()
    _layers.open_slide(viewer, Slide.open(slide_path))
    assert dock.slide_label.text() == before


def test_closing_stops_what_runs(opened, viewer, qtbot):
    from napari_histomae._jobs import running_jobs

    opened.run_button.click()
    opened.looker.look_at((5, 5), is_cell=True)
    window = viewer.window._qt_window
    opened.close()
    qtbot.waitUntil(lambda: not running_jobs(window))
    assert names(viewer) == ["ellipse"]


def test_it_fits_in_a_small_window(mapped, session, qtbot, run):
    from dataclasses import replace

    seven = tuple(f"Carcinoma number {i}" for i in range(7))
    probe = session.probe
    session.use_probe(
        replace(
            probe,
            class_names=seven,
            class_colors=tuple((i, i, i) for i in range(7)),
            weight=np.zeros((7, 24)),
            bias=np.zeros(7),
        )
    )
    run(mapped)
    mapped.looker.look_at((5, 5), is_cell=True)
    qtbot.waitUntil(lambda: not mapped.looker.looking)
    least = mapped.minimumSizeHint()
    assert least.width() <= 380
    assert least.height() <= 700
    assert len(mapped.tile.bars.bars) == 7


def test_hooks_need_no_dock(viewer):
    clicks = []
    hooks = ViewerHooks(viewer, on_click=clicks.append, keys={})
    hooks.attach()
    hooks.attach()
    event = SimpleNamespace(
        type="mouse_press", button=1, modifiers=(), pos=(1, 1), position=(3.0, 4.0, 5.0)
    )
    steps = hooks._on_drag(viewer, event)
    next(steps)
    event.type = "mouse_release"
    next(steps, None)
    assert clicks == [(4.0, 5.0)]
    hooks.detach()
    hooks.detach()
    assert not hooks.attached


def test_the_widget_is_a_widget(dock):
    assert isinstance(dock, QWidget)


# ---- pictures, and convolutions


@pytest.fixture
def picture_path(tmp_path):
    random = np.random.default_rng(0)
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[10:110, 20:140] = random.integers(60, 200, (100, 120, 1))
    Image.fromarray(pixels).save(tmp_path / "benign (1).png")
    mask = np.zeros((120, 160), np.uint8)
    mask[30:60, 50:90] = 255
    Image.fromarray(mask).save(tmp_path / "benign (1)_mask.png")
    return tmp_path / "benign (1).png"


def test_a_picture_is_looked_at_with_a_model_of_pictures(
    dock, viewer, session, picture_path, tmp_path, qtbot, run, look
):
    session.open_paths([picture_path])
    session.use_model(
        save_model(tmp_path / "us.safetensors", mpp=None, scan_sector=True)
    )
    qtbot.waitUntil(lambda: dock.model.header is not None)
    assert dock.model.spec is None
    assert "whole pictures" in dock.model.toolTip()
    assert not dock.tissue.isVisibleTo(dock)
    run(dock)
    assert "benign (1) · attention" in names(viewer)
    slide = session.slide
    press_mouse(viewer, (60, 50), slide)
    look(dock)
    closeup = dock.looker.closeup
    assert dock.tile.title.text() == "The whole picture"
    assert closeup.lesion.area == pytest.approx(0.1, abs=0.02)
    assert dock.tile.lesion.text() == closeup.lesion.words()
    assert dock.tile.lesion.isVisibleTo(dock)
    layer = viewer.layers["benign (1) · attention 2/mean"]
    # The scan of 120 x 100 px is as wide as the tile; above and below is black.
    x0, y0, x1, y1 = closeup.box_l0
    assert (x0, x1) == pytest.approx((20, 140))
    assert (y0 + y1) / 2 == pytest.approx(60, abs=2)
    np.testing.assert_allclose(edges_um(layer), box_um(slide, closeup.box_l0), atol=0.6)
    before = closeup.attention
    dock.tile.query.setCurrentIndex(1)
    dock.tile.query.activated.emit(1)
    look(dock)
    assert not np.allclose(dock.looker.closeup.attention, before)
    assert "benign (1) · attention 2/mean, patches" in names(viewer)


def test_what_does_not_fit_together_is_said(
    dock, viewer, session, picture_path, slide_path, model_path, tmp_path, qtbot
):
    session.open_paths([picture_path])
    session.use_model(model_path)
    qtbot.waitUntil(lambda: dock.model.header is not None)
    assert not dock.run_button.isEnabled()
    assert "model that was trained on pictures" in dock.run_button.toolTip()
    pictures = save_model(tmp_path / "us.safetensors", mpp=None)
    session.use_model(pictures)
    qtbot.waitUntil(lambda: dock.model.takes_pictures)
    assert dock.run_button.isEnabled()
    session.open_paths([slide_path])
    viewer.layers.selection.active = viewer.layers["ellipse"]
    assert not dock.run_button.isEnabled()
    assert "one that was trained on slides" in dock.run_button.toolTip()


@pytest.fixture(scope="module")
def network_path(tmp_path_factory):
    """A convolutional encoder."""
    spec = CnnSpec("efficientnet_b2", 64)
    network = build(spec, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 64, 64))
    changes = {"architecture": "efficientnet_b2", "encoder": spec, "decoder": None}
    header = header_of(**changes, tile_px=64, method="mpcs", mask_ratio=0.0)
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    save_checkpoint(path, header, network.eval().state_dict())
    return path


def test_grad_cam_stands_for_attention(
    dock, viewer, session, slide_path, network_path, qtbot, run, look
):
    session.open_paths([slide_path])
    session.use_model(network_path)
    qtbot.waitUntil(lambda: dock.model.header is not None)
    assert [dock.tile.head.itemText(0)] == ["strength"]
    encoder = TileEncoder.load(network_path, device="cpu")
    random = np.random.default_rng(0)
    probe = Probe(
        mean=np.zeros(1408),
        std=np.ones(1408),
        weight=random.normal(size=(2, 1408)),
        bias=np.zeros(2),
        class_names=NAMES[:2],
        class_colors=COLORS[:2],
        encoder_id=encoder.encoder_id,
        tile_px=64,
        mpp=MPP,
        pooling="mean",
    )
    session.use_probe(probe)
    shown = [dock.tile.head.itemText(i) for i in range(dock.tile.head.count())]
    assert shown == ["Grad-CAM: Duct", "Grad-CAM: Stroma", "strength"]
    assert not dock.tile.query.isVisibleTo(dock)
    dock.tile.head.setCurrentIndex(1)
    place = (900, 700)
    press_mouse(viewer, place, session.slide)
    look(dock)
    tile = dock.looker.closeup.tile
    expected = encoder.grad_cam(tile[None], probe, "Stroma")[0]
    layer = viewer.layers["ellipse · Grad-CAM Stroma"]
    np.testing.assert_allclose(layer.data, expected, rtol=1e-3, atol=1e-6)
    assert _layers.entry_of(layer)["attention"] == "Grad-CAM Stroma"
    choose_map(dock, "attention")
    run(dock)
    assert "ellipse · attention" in names(viewer)
