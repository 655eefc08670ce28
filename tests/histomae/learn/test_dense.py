"""A decoder on patch tokens learns to mark objects; its encoder stays, or learns."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from histomae.data.classes import ClassSet
from histomae.data.marks import MarkedPicture, MarkedSet, Marks, discs
from histomae.errors import ConfigError, NotEnoughDataError
from histomae.evaluate.dense import score_dense
from histomae.events import Step, result_of
from histomae.infer.dense import objects_in, tile_corners
from histomae.learn.dense import (
    ANYTHING,
    DenseTraining,
    _loss,
    _tiles_of,
    teach_dense,
)
from histomae.models.classifier import Network
from histomae.models.dense import Dense, DenseModel, taps
from histomae.models.vit import EncoderSpec, build_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 32
CLASSES = ClassSet.of(["dark", "red"])
QUICK = DenseTraining(epochs=12, batch_size=8, base_lr=0.3, width=16, device="cpu")


@pytest.fixture
def network():
    """A function that makes a small encoder, always the same one."""

    def make(patch_size=8):
        spec = EncoderSpec(SIDE, patch_size, embed_dim=16, depth=3, num_heads=2)
        encoder = build_encoder(spec, generator=torch.Generator().manual_seed(0))
        return Network(
            module=encoder.eval(),
            tile_px=SIDE,
            mean=(0.8, 0.6, 0.6),
            std=(0.2, 0.3, 0.3),
            width=16,
            pooling="mean",
        )

    return make


def drawn(number):
    """Return a picture of discs, dark and red, and its marks."""
    random = np.random.default_rng(number)
    steps = np.stack(np.meshgrid([8, 24, 40], [8, 24]), -1).reshape(-1, 2)
    centres = steps + random.uniform(-2, 2, steps.shape)
    marks = discs(centres, random.integers(0, 2, 6), (32, 48), 5.0)
    colours = np.array([[235, 225, 230], [60, 60, 120], [200, 40, 40]])
    noise = random.integers(-12, 12, (32, 48, 3))
    return (colours[marks.classes] + noise).clip(0, 255).astype(np.uint8), marks


@pytest.fixture
def data():
    """Twelve pictures of six discs each, on which everything is marked."""
    pictures = tuple(
        MarkedPicture(path=Path(f"{n}.png"), marks=(), patient=f"P{n // 2}")
        for n in range(12)
    )
    return MarkedSet(
        name="discs",
        classes=CLASSES,
        pictures=pictures,
        read=lambda picture: drawn(int(picture.path.stem)),
    )


def test_it_learns_to_mark_objects(network, data):
    reader = result_of(teach_dense(network(), data, np.arange(8), QUICK))
    score = result_of(score_dense(reader, data, np.arange(8, 12)))
    assert score.pictures == 4
    assert (score.dice > 0.8).all()
    assert score.aji > 0.6 and score.patients == 2
    for value, (low, high) in (
        (score.aji, score.aji_interval),
        (score.f1, score.f1_interval),
        (score.mean_dice, score.dice_interval),
    ):
        assert low <= value <= high
    assert score.mean_dice == pytest.approx(score.dice.mean())
    assert score.f1 > 0.9
    assert score.f1 == pytest.approx(
        2 / (1 / score.precision + 1 / score.recall), abs=1e-9
    )


def test_wrong_marks_teach_nothing(network, data):
    wrong = replace(
        data,
        read=lambda p: (drawn(int(p.path.stem))[0], drawn(int(p.path.stem) + 5)[1]),
    )
    reader = result_of(teach_dense(network(), wrong, np.arange(8), QUICK))
    score = result_of(score_dense(reader, data, np.arange(8, 12)))
    assert score.dice.mean() < 0.7


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_stays_as_it_is(network, data, frozen):
    made = network()
    before = copy.deepcopy(made.module.state_dict())
    settings = replace(QUICK, epochs=1, frozen=frozen)
    reader = result_of(teach_dense(made, data, np.arange(8), settings))
    after = reader.model.encoder.state_dict()
    same = [torch.equal(before[name], after[name]) for name in before]
    assert all(same) if frozen else not all(same)
    assert not made.module.training


def test_two_trainings_are_the_same(network, data):
    losses = []
    for _ in range(2):
        events = teach_dense(network(), data, np.arange(4), replace(QUICK, epochs=2))
        losses.append([event.loss for event in events if isinstance(event, Step)])
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_pictures_become_tiles_of_the_encoder():
    pixels, marks = drawn(0)
    tiles = list(_tiles_of(pixels, marks, SIDE, False))
    assert len(tiles) == 2
    assert np.array_equal(tiles[1][0], pixels[:, 16:])
    assert np.array_equal(tiles[1][1], marks.classes[:, 16:])
    (small,) = _tiles_of(
        pixels[:20, :30], marks.crop(slice(20), slice(30)), SIDE, False
    )
    assert small[0].shape == (SIDE, SIDE, 3)
    assert (small[1][20:] == ANYTHING).all() and (small[1][:, 30:] == ANYTHING).all()
    (partial,) = _tiles_of(pixels[:, :32], marks.crop(slice(32), slice(32)), SIDE, True)
    marked = marks.classes[:, :32] > 0
    assert np.array_equal(partial[1] == ANYTHING, ~marked)


def test_partial_marks_are_judged_where_they_are(network, data):
    part = replace(data, partial=True)
    reader = result_of(teach_dense(network(), part, np.arange(8), QUICK))
    score = result_of(score_dense(reader, part, np.arange(8, 12)))
    assert reader.areas and (score.dice > 0.8).all()
    assert np.isnan([score.aji, score.f1, score.recall, *score.f1_interval]).all()


def test_a_rare_class_counts_as_much_as_a_common_one():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 4, 6, 6)).astype(np.float32)
    truth = random.integers(1, 3, (2, 6, 6))
    truth[0, 0, :3] = 3  # rare
    truth[1, :2] = ANYTHING
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    known = truth != ANYTHING
    shares = []
    for kind in (1, 2, 3):
        said, there = odds[:, kind][known], (truth == kind)[known]
        shares.append((2 * said[there].sum() + 1) / (said.sum() + there.sum() + 1))
    said = Dense(torch.from_numpy(logits), torch.zeros(2, 6, 6))
    inputs = {
        "images": torch.zeros(2, 3, 6, 6),
        "classes": torch.from_numpy(truth),
        "depth": torch.zeros(2, 6, 6),
    }
    logged = _loss(lambda images: said, inputs, None).logged
    assert logged["dice"].item() == pytest.approx(1 - np.mean(shares), rel=1e-5)
    likely = -np.log(np.take_along_axis(odds, truth[:, None] % ANYTHING, 1))[:, 0]
    assert logged["entropy"].item() == pytest.approx(likely[known].mean(), rel=1e-5)


def test_classes_that_are_not_there_do_not_lower_the_mean(data):
    def read(picture):
        labels = [0] if picture.patient == "P0" else [0, 1]
        objects = np.repeat(np.arange(1, len(labels) + 1), 6 // len(labels) * 4)
        marks = Marks(objects.reshape(6, 4).astype(np.int32), np.array(labels))
        return np.zeros((6, 4, 3), np.uint8), marks

    class Reader:
        """Finds the second class in the two lower rows, wherever it looks."""

        def look(self, pixels):
            return np.zeros(0), np.zeros(0)
            yield

        def marks_in(self, _odds, _depth):
            objects = np.repeat([1, 2], [16, 8]).reshape(6, 4).astype(np.int32)
            return Marks(objects, np.array([0, 1]))

    three = ClassSet.of(["dark", "red", "blue"])
    some = replace(data, read=read, partial=True, classes=three)
    score = result_of(score_dense(Reader(), some, np.array([0, 2])))  # of P0 and P1
    alone = 2 * 16 / (24 + 16)  # the first: all is dark
    other = (2 * 12 / (12 + 16) + 2 * 8 / (12 + 8)) / 2
    both = 2 * 28 / (36 + 32), 2 * 8 / (12 + 16)
    assert score.dice[:2] == pytest.approx(both) and np.isnan(score.dice[2])
    assert score.mean_dice == pytest.approx(np.mean(both))
    seen = [alone, other, np.mean(both)]
    assert score.dice_interval == pytest.approx((min(seen), max(seen)))


def test_nothing_to_learn_is_said(network, data):
    with pytest.raises(NotEnoughDataError):
        result_of(teach_dense(network(), data, np.zeros(0, np.int64), QUICK))
    nothing = Marks(np.zeros((32, 48), np.int32), np.zeros(0, np.int64))
    bare = replace(data, read=lambda p: (drawn(0)[0], nothing))
    with pytest.raises(NotEnoughDataError, match="Nothing is marked"):
        result_of(teach_dense(network(), bare, np.arange(2), QUICK))
    with pytest.raises(ConfigError, match="flips"):
        DenseTraining(flips="none")


# ---- the model


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_it_answers_for_every_pixel(network, patch_size):
    model = DenseModel(
        network(patch_size), 2, width=8, generator=torch.Generator().manual_seed(0)
    )
    said = model(torch.zeros(2, 3, SIDE, SIDE))
    assert said.logits.shape == (2, 3, SIDE, SIDE) and said.depth.shape == (2, 32, 32)


def test_several_blocks_are_read():
    assert taps(12) == (2, 5, 8, 11)
    assert taps(4) == (0, 1, 2, 3) and taps(2) == (0, 1) and taps(1) == (0,)


def test_an_encoder_without_patches_is_refused(network):
    odd = replace(network(), module=torch.nn.Conv2d(3, 8, 3))
    with pytest.raises(ConfigError, match="Vision Transformer"):
        DenseModel(odd, 2, generator=torch.Generator())


# ---- from numbers to objects


def test_objects_that_touch_are_parted():
    truth = discs(np.array([[12.0, 14.0], [21.0, 14.0]]), [0, 1], (28, 34), 6.0)
    inside = truth.objects > 0
    odds = np.zeros((28, 34, 3))
    odds[..., 0] = ~inside
    odds[..., 1] = inside & (truth.classes != 2)
    odds[..., 2] = truth.classes == 2
    found = objects_in(odds, truth.depth())
    assert len(found.labels) == 2
    assert np.array_equal(found.classes > 0, inside)
    order = found.centres[:, 0].argsort()
    assert found.labels[order].tolist() == [0, 1]
    assert found.centres[order] == pytest.approx(truth.centres, abs=1)


def test_specks_are_no_objects_and_flat_parts_are():
    odds = np.zeros((20, 20, 2))
    odds[..., 0] = 0.6
    odds[2, 2, 1] = 1  # one pixel
    odds[8:14, 8:14, 1] = 1
    found = objects_in(odds, np.zeros((20, 20)))
    assert len(found.labels) == 1 and found.objects[10, 10] == 1
    empty = objects_in(np.eye(2)[np.zeros((9, 9), int)], np.zeros((9, 9)))
    assert len(empty.labels) == 0 and empty.centres.shape == (0, 2)


@pytest.mark.parametrize(("length", "stride"), [(32, 16), (50, 16), (64, 32), (33, 32)])
def test_tiles_cover_a_picture(length, stride):
    seen = np.zeros((length, length + 5), bool)
    for top, left in tile_corners(seen.shape, 32, stride):
        assert 0 <= top <= length - 32 and 0 <= left <= length + 5 - 32
        seen[top : top + 32, left : left + 32] = True
    assert seen.all()
