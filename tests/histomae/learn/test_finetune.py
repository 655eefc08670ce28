"""Tests of histomae.learn.finetune and histomae.learn.labelled_tiles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.tiling import Tiling
from histomae.errors import ConfigError, DataSetError, NotEnoughDataError
from histomae.events import Step, result_of
from histomae.learn import finetune
from histomae.learn.finetune import FineTuning, fine_tune, mixed
from histomae.learn.labelled_tiles import LabelledTiles, count_tiles, tile_numbers
from histomae.models.classifier import Network
from histomae.models.encoders import build
from histomae.models.vit import EncoderSpec
from tests.listening import events_of

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = EncoderSpec(tile_px=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
QUICK = FineTuning(
    epochs=12, warmup_epochs=1, batch_size=8, base_lr=0.05, device="cpu", mixup=0.2
)
WHOLE = Tiling(how="whole")


def network(seed=0):
    module = build(SPEC, generator=torch.Generator().manual_seed(seed))
    return Network(
        module=module,
        tile_px=32,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        width=SPEC.embed_dim,
        pooling="mean",
    )


def pixels_of(picture):
    """Dark or light, with noise that is each picture's own."""
    rng = np.random.default_rng(int(picture.path.stem))
    level = 170 if picture.label else 80
    return rng.integers(level - 60, level + 60, (64, 64, 3)).astype(np.uint8)


def set_of(labels):
    return LabelledSet(
        name="drawn",
        root=Path(),
        classes=ClassSet.of(["dark", "light"]),
        pictures=tuple(
            LabelledPicture(path=Path(f"{i}.png"), label=int(label), patient=f"p{i}")
            for i, label in enumerate(labels)
        ),
        read=pixels_of,
    )


DATA = set_of(np.arange(24) % 2)
SIDES = {
    "train": np.arange(12),
    "val": np.arange(12, 18),
    "test": np.arange(18, 24),
}


def tuned(settings=QUICK, data=DATA, tiling=WHOLE, net=None, seed=0, **sides):
    counts = result_of(count_tiles(data, tiling, 32))
    work = fine_tune(
        net or network(),
        data,
        tiling,
        counts,
        settings=settings,
        seed=seed,
        **(SIDES | sides),
    )
    events, found = events_of(work)
    return [event for event in events if isinstance(event, Step)], found


def test_an_encoder_learns_labels():
    net = network()
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    steps, found = tuned(net=net)
    assert (found.test_logits.argmax(1) == DATA.labels[SIDES["test"]]).all()
    assert len(steps) == 12  # 12 pictures make one whole batch of 8 an epoch
    moved = {
        name: not torch.equal(tensor, before[name])
        for name, tensor in net.module.state_dict().items()
    }
    assert moved.pop("pos_embed") is False  # fixed
    assert all(moved.values())


def test_the_same_seed_gives_the_same_answers():
    settings = replace(QUICK, epochs=2)
    first, second, other = (tuned(settings, seed=seed)[1] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.test_logits, second.test_logits)
    assert not np.array_equal(first.test_logits, other.test_logits)


def test_validation_chooses_the_epoch(monkeypatch):
    looks = []

    class Watched(finetune.BestEpoch):
        def look(self, model, logits, epoch):
            looks.append(logits)
            # Make the second epoch the best, whatever it reached.
            labels = DATA.labels[SIDES["val"]]
            right = 9.0 * np.eye(2)[labels if epoch == 2 else 1 - labels]
            return super().look(model, right, epoch)

    monkeypatch.setattr(finetune, "BestEpoch", Watched)
    _, found = tuned(replace(QUICK, epochs=4))
    assert found.epoch == 2
    np.testing.assert_allclose(found.val_logits, looks[1], atol=1e-6)
    assert not np.allclose(found.val_logits, looks[3], atol=1e-6)
    steps, _ = tuned(replace(QUICK, epochs=9, patience=2))
    assert len(steps) == 5  # two more epochs than the best, and the one that ends it


def test_without_validation_the_last_epoch_is_taken():
    _, found = tuned(replace(QUICK, epochs=2), val=np.arange(0))
    assert found.epoch == 2
    assert found.val_logits.shape == (0, 2)


def test_convolutions_are_tuned_in_whole_batches():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_resnet", num_classes=0)
    width = module.num_features
    net = replace(network(), module=module, width=width, pooling="own")
    settings = replace(QUICK, epochs=1, micro_batch=2)
    seen = []
    module.register_forward_hook(
        lambda module, given, found: seen.append((module.training, len(found)))
    )
    _, found = tuned(settings, net=net)
    assert np.isfinite(found.test_logits).all()
    assert [count for training, count in seen if training] == [8]


def test_every_tile_of_a_picture_is_trained_on_and_answered():
    rule = Tiling(how="patches", patch_px=32)
    _, found = tuned(replace(QUICK, epochs=1), tiling=rule)
    assert found.tiles == 4 * 12
    assert found.test_picture.tolist() == np.repeat(SIDES["test"], 4).tolist()


def test_classes_are_drawn_alike():
    drawn = finetune._drawn(np.array([0] * 2 + [1] * 7), seed=0)
    assert len(drawn) == 14
    assert sorted(drawn[7:].tolist()) == list(range(2, 9))
    assert set(drawn[:7].tolist()) == {0, 1}


def test_pictures_and_labels_are_mixed_in_the_same_shares():
    images = torch.arange(3.0).view(3, 1, 1, 1)
    targets = torch.eye(3)
    found, labels = mixed(images, targets, torch.tensor([1.0, 0.5, 0.25]))
    assert found.flatten().tolist() == [0, 1, 0.5]
    assert labels.tolist() == [[1, 0, 0], [0, 1, 0], [0.75, 0, 0.25]]


def test_labels_are_smoothed():
    class Given:
        pictures = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
        indices = np.array([0, 1])
        epoch = 0

    setting = finetune.Setting(finetune._config(QUICK, 0), (0.5,) * 3, (0.2,) * 3)
    settings = replace(QUICK, mixup=0.0, smoothing=0.2)
    inputs = finetune._inputs(settings, np.array([0, 2]), 4, Given, setting)
    expected = [[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]]
    torch.testing.assert_close(inputs["targets"], torch.tensor(expected))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"drop_path": 1.0}, {"layer_decay": 0}, {"flips": "some"}]
)
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FineTuning(**wrong)


def test_nothing_to_train_on_is_told():
    with pytest.raises(NotEnoughDataError):
        tuned(train=np.arange(0))


# Tiles by number -----------------------------------------------------------------


def test_tiles_are_those_of_their_pictures():
    rule = Tiling(how="patches", patch_px=32)
    counts = result_of(count_tiles(DATA, rule, 32))
    assert counts.tolist() == [4] * len(DATA)
    picture, place = tile_numbers(np.array([5, 2]), counts)
    assert picture.tolist() == [5] * 4 + [2] * 4
    assert place.tolist() == [0, 1, 2, 3] * 2
    with LabelledTiles(DATA, rule, 32, picture, place) as tiles:
        (batch,) = tiles.stream([np.array([6, 1])])
    expected = [
        rule.cut(pixels_of(DATA.pictures[row]), 32)[number]
        for row, number in ((2, 2), (5, 1))
    ]
    np.testing.assert_array_equal(batch, np.stack(expected))


def test_a_tile_that_cannot_be_read_ends_the_work():
    def broken(picture):
        if picture.path.stem == "3":
            raise DataSetError("3.png cannot be read. Remove it.")
        return pixels_of(picture)

    with pytest.raises(DataSetError, match="3"):
        tuned(replace(QUICK, epochs=1), data=replace(DATA, read=broken))
