"""What PAMA makes of a slide, against plain loops and on slides made for it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from histomae.errors import (
    CheckpointError,
    ConfigError,
    FeatureError,
    NotEnoughDataError,
)
from histomae.events import Progress
from histomae.exchange.features import read_features
from histomae.infer.slide_view import (
    SlideModel,
    check_of,
    class_attention,
    hidden_error,
    view_slide,
)
from histomae.models.anchors import direction_bins
from histomae.models.bag_tensors import batch_bags, place_bag
from histomae.models.checkpoint import checkpoint_tensors, save_checkpoint
from histomae.models.feature_spec import FeatureSpec
from histomae.models.pama import Pama, PamaSpec
from histomae.models.slide_checkpoint import SlideHeader

WIDTH = 6
FEATURES = FeatureSpec(
    encoder="drawn",
    encoder_id="0123456789abcdef",
    pooling="mean",
    width=WIDTH,
    tile_px=224,
    mpp=0.5,
    step_px=224,
)
#: (row, column) turned by 90 degrees.
TURN = np.array([[0, 1], [-1, 0]])


def model_of(*, seed=0, decoder=True, **changes):
    spec = PamaSpec(
        WIDTH,
        **{
            "dim": 16,
            "depth": 2,
            "heads": 2,
            "decoder_dim": 16,
            "decoder_depth": 1,
            "decoder_heads": 2,
            "tiles_per_anchor": 9,
            **changes,
        },
    )
    pama = Pama(spec, generator=torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in pama.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    header = SlideHeader(
        architecture="pama_test",
        model=spec,
        has_decoder=True,
        features=FEATURES,
        seen=(),
        method="pama",
        mask_ratio=0.75,
        step=3,
        config_hash="0123abcd",
    )
    cpu = torch.device("cpu")
    return SlideModel(header, pama.encoder, pama if decoder else None, cpu)


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture
def features(make_features, tmp_path):
    """A lump of 60 tiles."""
    return read_features(make_features(tmp_path / "lump.h5"))


@pytest.fixture
def view(features, model, run):
    return run(view_slide(features, model))[1]


def tensors_of(features, model):
    placed = place_bag(features.values, features.cells, model.encoder.spec.placing)
    return batch_bags([placed])


def looks_of(features, model):
    with torch.no_grad():
        return model.encoder.looks(tensors_of(features, model))


class TestAnchors:
    def test_what_they_gather_is_the_mean_of_the_heads_without_the_class_token(
        self, view, features, model
    ):
        looks = looks_of(features, model)[-1].anchors[0].double().numpy()
        heads, anchors, tokens = looks.shape
        assert (anchors, tokens) == (len(view.anchors), len(view.cells) + 1) == (7, 61)
        for k in range(anchors):
            taken = [sum(looks[h, k, 1 + i] for h in range(heads)) for i in range(60)]
            expected = np.array(taken) / sum(taken)
            np.testing.assert_allclose(view.gathers[k], expected, atol=1e-6)
        for i in range(60):
            most = max(range(anchors), key=lambda k: view.gathers[k, i])
            assert view.gathered_by[i] == most
        assert len(set(view.gathered_by.tolist())) > 1

    def test_each_tile_is_nearest_to_one(self, view):
        for i, cell in enumerate(view.cells):
            apart = [np.hypot(*(cell - view.cells[a])) for a in view.anchors]
            assert view.nearest[i] == int(np.argmin(apart))
        assert view.nearest[view.anchors].tolist() == list(range(len(view.anchors)))

    def test_what_a_tile_takes_sums_to_one(self, view, features, model):
        looks = looks_of(features, model)[-1].tokens[0].numpy()
        np.testing.assert_allclose(view.looks.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(view.looks, looks.mean(0)[1:], atol=1e-6)
        np.testing.assert_allclose(view.gathers.sum(1), 1, atol=1e-5)

    def test_the_map_counts_from_one_and_is_empty_beside_the_tissue(self, view):
        heatmap = view.gathered_map()
        rows, cols = view.cells.T
        assert heatmap.values.shape == view.grid.shape
        np.testing.assert_array_equal(heatmap.values[rows, cols], view.gathered_by + 1)
        assert (heatmap.values > 0).sum() == len(view.cells)
        areas = view.area_map().values[rows, cols]
        np.testing.assert_array_equal(areas, view.nearest + 1)
        third = view.one_anchor_map(2).values
        np.testing.assert_allclose(third[rows, cols], 60 * view.gathers[2], rtol=1e-5)
        assert np.isnan(third).sum() == third.size - 60

    def test_another_block_sees_otherwise(self, features, model, view, run):
        _, first = run(view_slide(features, model, block=0, rounds=1))
        assert np.abs(first.gathers - view.gathers).max() > 1e-3
        np.testing.assert_array_equal(first.anchors, view.anchors)
        with pytest.raises(ConfigError, match="2 does not exist"):
            run(view_slide(features, model, block=2))


class TestArrows:
    @pytest.mark.parametrize("compat", [False, True])
    def test_they_point_where_the_heads_look(self, features, compat, run):
        model = model_of(compat=compat)
        _, view = run(view_slide(features, model, rounds=1))
        main = looks_of(features, model)[-1].main_directions[0].numpy()
        for head in range(2):
            arrows = view.arrows_l0(head, length=1.5)
            for k, (start, along) in enumerate(arrows):
                row, col = view.cells[view.anchors[k]]
                np.testing.assert_allclose(
                    start, [224 * (col + 0.5), 224 * (row + 0.5)]
                )
                assert np.hypot(*along) == pytest.approx(1.5 * 224)
                # A far tile in that direction has that bin.
                far = np.rint([along[1], along[0]]).astype(int)
                bins = direction_bins(
                    np.array([[0, 0], far]), np.array([0]), compat=compat
                )
                assert bins[0, 1] == main[head, k]
        assert len(set(main.ravel().tolist())) > 2

    def test_they_turn_with_the_slide(self, features, view, model, run):
        cells = features.cells @ TURN
        turned = replace(features, cells=cells - cells.min(0))
        _, other = run(view_slide(turned, model, rounds=1))
        where = {tuple(cell): k for k, cell in enumerate(other.cells[other.anchors])}
        for k, anchor in enumerate(view.anchors):
            twin = where[tuple(view.cells[anchor] @ TURN - cells.min(0))]
            for head in range(2):
                x, y = view.arrows_l0(head)[k, 1]
                down_right = np.array([y, x]) @ TURN
                np.testing.assert_allclose(
                    other.arrows_l0(head)[twin, 1], down_right[::-1], atol=1e-9
                )
        np.testing.assert_allclose(other.attention, view.attention, rtol=1e-4)


class TestAttention:
    def test_it_is_the_product_of_all_blocks(self, view, features, model):
        looks = looks_of(features, model)
        tiles, anchors = 61, len(view.anchors)
        whole = np.eye(tiles + anchors)
        for one in looks:
            mixed = np.zeros_like(whole)
            mixed[:tiles, tiles:] = one.tokens[0].double().mean(0)
            mixed[tiles:, :tiles] = one.anchors[0].double().mean(0)
            whole = (np.eye(len(whole)) + mixed) / 2 @ whole
        expected = whole[0, 1:tiles] / whole[0, 1:tiles].sum()
        np.testing.assert_allclose(view.attention, expected, rtol=1e-4)
        assert view.attention.sum() == pytest.approx(1, abs=1e-5)
        relative = view.attention_map().values
        assert np.nanmean(relative) == pytest.approx(1, abs=1e-4)

    def test_a_model_of_one_block_has_none(self, features, run):
        shallow = model_of(depth=1)
        assert class_attention(looks_of(features, shallow)) is None
        _, view = run(view_slide(features, shallow, rounds=1))
        assert view.attention is None
        with pytest.raises(ConfigError, match="one block"):
            view.attention_map()


class TestError:
    def test_it_is_the_mean_over_the_masks_that_hide_a_tile(self, features, model, run):
        bags = tensors_of(features, model)
        masks = np.random.default_rng(0).random((5, 60)) < 0.75
        masks[:, :45], masks[:, 45:] = True, False
        for number, mask in enumerate(masks):
            mask[:] = np.roll(mask, 13 * number)
        _, found = run(hidden_error(model.pama, bags, masks))
        sums, times = np.zeros(60), np.zeros(60)
        for mask in masks:
            with torch.no_grad():
                output = model.pama(
                    bags, mask_ratio=0.75, noise=torch.tensor(mask[None] * 1.0)
                )
            np.testing.assert_array_equal(output.mask[0].numpy(), mask)
            for i in np.flatnonzero(mask):
                sums[i] += ((output.prediction[0, i] - bags.features[0, i]) ** 2).mean()
                times[i] += 1
        np.testing.assert_allclose(found, sums / times, rtol=1e-5)

    def test_every_tile_is_hidden_whatever_the_ratio(self, features, model, run):
        for ratio in (0.1, 0.5, 0.9):
            events, view = run(view_slide(features, model, mask_ratio=ratio, rounds=1))
            assert np.isfinite(view.error).all()
            assert [e.done for e in events if isinstance(e, Progress)][-1] >= 1

    def test_the_same_seed_gives_the_same(self, features, model, view, run):
        again, other = (
            run(view_slide(features, model, seed=seed))[1] for seed in (0, 1)
        )
        np.testing.assert_array_equal(again.error, view.error)
        assert np.abs(other.error - view.error).max() > 1e-4

    def test_a_tile_unlike_its_surroundings_has_the_largest(self, features, run):
        """Its numbers are as large as any other's: only its place makes it odd."""
        row, col = (features.cells - 7).T / 3
        smooth = np.stack([np.sin(row), np.cos(row), np.sin(col), np.cos(col)], 1)
        usual = np.hstack([smooth, smooth[:, :2]]).astype(np.float32)
        model = model_of(seed=1, tiles_per_anchor=5)
        bags = tensors_of(replace(features, values=usual), model)
        optimizer = torch.optim.AdamW(model.pama.parameters(), lr=5e-3)
        random = torch.Generator().manual_seed(0)
        for _ in range(150):
            noise = torch.rand((1, 60), generator=random)
            loss = model.pama(bags, mask_ratio=0.75, noise=noise).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        odd = 31
        planted = usual.copy()
        planted[odd] = -usual[odd]
        _, view = run(view_slide(replace(features, values=planted), model))
        assert view.error.argmax() == odd
        assert view.error[odd] > 2 * np.sort(view.error)[-2]
        assert view.tile_at(features.cells[odd]).error_rank == pytest.approx(59 / 60)

    def test_without_a_decoder_there_is_none(self, features, run):
        _, view = run(view_slide(features, model_of(decoder=False)))
        assert view.error is None
        assert view.tile_at(view.cells[0]).error is None
        with pytest.raises(ConfigError, match="without its decoder"):
            view.error_map()


class TestOneTile:
    def test_what_is_said_is_what_is_known(self, view):
        tile = 17
        words = view.tile_at(view.cells[tile])
        anchor = view.cells[view.anchors[view.nearest[tile]]]
        apart = np.hypot(*(anchor - view.cells[tile]))
        assert words.nearest == view.nearest[tile] + 1
        assert words.apart_um == pytest.approx(apart * 112)
        assert words.gathered_by == view.gathered_by[tile] + 1
        assert [w for _, w in words.weights] == sorted(view.looks[tile].tolist())[::-1]
        assert dict(words.weights)[3] == pytest.approx(view.looks[tile, 2])
        assert words.attention == pytest.approx(view.attention[tile] * 60)
        assert words.error == pytest.approx(view.error[tile])
        assert words.error_rank == (view.error < view.error[tile]).sum() / 60
        assert words.is_anchor == (tile in view.anchors)

    def test_beside_the_tissue_is_none(self, view):
        assert view.tile_at((999, 999)) is None


class TestWhatCannotBe:
    def test_other_tiles_are_refused_with_both_named(
        self, make_features, tmp_path, model, run
    ):
        path = make_features(tmp_path / "b.h5", encoder_id="fedcba", mpp=0.7)
        with pytest.raises(FeatureError) as caught:
            run(view_slide(read_features(path), model))
        for words in ("drawn (fedcba)", "drawn (0123456789abcdef)", "0.7", "0.5 µm/px"):
            assert words in str(caught.value)

    def test_a_single_tile_is_too_little(self, make_features, tmp_path, model, run):
        path = make_features(tmp_path / "one.h5", np.array([[3, 4]]))
        with pytest.raises(NotEnoughDataError, match="single tile"):
            run(view_slide(read_features(path), model))

    def test_tiles_in_one_row_will_do(self, make_features, tmp_path, model, run):
        cells = np.stack([np.full(30, 5), np.arange(30)], 1)
        path = make_features(tmp_path / "row.h5", cells)
        _, view = run(view_slide(read_features(path), model))
        assert np.isfinite(view.error).all()
        assert view.attention.sum() == pytest.approx(1, abs=1e-5)
        x, y = np.abs(view.arrows_l0(0)[:, 1]).T
        np.testing.assert_allclose(y, 0, atol=1e-9)  # nobody is above or below
        np.testing.assert_allclose(x, 224)

    def test_features_of_another_slide_are_refused(self, features):
        check_of(features, SimpleNamespace(name="lump", slide_id="lump"))
        with pytest.raises(FeatureError, match=r"slide lump \(lump\).*C2 \(77\)"):
            check_of(features, SimpleNamespace(name="C2", slide_id="77"))
        bare = replace(features, header=replace(features.header, grid=None))
        with pytest.raises(FeatureError, match="exactly where"):
            check_of(bare, SimpleNamespace(name="lump", slide_id="lump"))

    def test_a_checkpoint_is_read_with_its_decoder_or_without(
        self, tmp_path, features, model, view, run
    ):
        path = tmp_path / "last.safetensors"
        save_checkpoint(path, model.header, checkpoint_tensors(model.pama))
        _, again = run(view_slide(features, SlideModel.load(path, device="cpu")))
        np.testing.assert_array_equal(again.error, view.error)
        bare, encoder = model.header.without_decoder(), model.encoder.state_dict()
        save_checkpoint(path, bare, encoder)
        assert SlideModel.load(path, device="cpu").pama is None
        with pytest.raises(CheckpointError):
            SlideModel.load(tmp_path / "none.safetensors")
