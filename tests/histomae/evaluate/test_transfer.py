"""What pretraining brought: three kinds of features that must not be mixed up."""

from types import SimpleNamespace

import numpy as np
import pytest
import shapely
import torch

from histomae.errors import NotEnoughDataError
from histomae.evaluate import transfer
from histomae.evaluate.compare import TransferScore, score_on
from histomae.evaluate.transfer import (
    COLOUR,
    PRETRAINED,
    UNTRAINED,
    lines,
    untrained_like,
    what_pretraining_brought,
)
from histomae.events import result_of
from histomae.infer.encoder import TileEncoder
from histomae.learn.teach import LabelledSlide
from histomae.models.checkpoint import load_checkpoint
from histomae.models.mae import MaskedAutoencoder
from histomae.slides.annotations import Annotation
from histomae.slides.grid import TileSpec
from histomae.slides.slide import Slide

NAMES = ("Upright", "Lying")
TILE, REGIONS = 32, 12


class Crafted:
    """Stands in for an encoder whose features are known."""

    spec = TileSpec(TILE, 1.0)
    header = SimpleNamespace(encoder=SimpleNamespace(embed_dim=4))

    def __init__(self, *, sees_stripes, seed=0):
        self.sees_stripes = sees_stripes
        self.random = np.random.default_rng(seed)
        self.poolings = []

    def embed(self, tiles, *, pooling):
        self.poolings.append(pooling)
        features = self.random.normal(size=(len(tiles), 4)).astype(np.float32)
        if self.sees_stripes:
            light = tiles.mean(-1, dtype=np.float32)
            features[:, 2] = np.abs(np.diff(light, axis=1)).mean((1, 2))
            features[:, 3] = np.abs(np.diff(light, axis=2)).mean((1, 2))
        return features


@pytest.fixture(scope="session")
def make_labelled(make_slide):
    """Return a function that makes a slide of stripes with its regions.

    The stripes of the two classes are upright and lying, in the same two colours,
    or with ``coloured`` in other ones.
    """

    def make(*, coloured=False, classes=NAMES):
        pixels = np.full((REGIONS * 64 + 32, 256, 3), 240, np.uint8)
        y, x = np.mgrid[:64, :96]
        drawn = []
        for number in range(REGIONS):
            name = NAMES[number % 2]
            ink = (x if name == "Upright" else y) // 8 % 2 == 0
            picture = np.where(ink[..., None], (90, 50, 130), (225, 150, 190))
            if coloured and name == "Lying":
                picture = 255 - picture
            top = number * 64
            pixels[top : top + 64, 64:160] = picture
            roi = shapely.box(64, top, 160, top + 64)
            if name in classes:
                drawn.append(Annotation(roi, name))
        path = make_slide(pixels, mpp=1.0)
        return LabelledSlide(Slide.open(path), drawn)

    return make


@pytest.fixture(scope="session")
def stripes(make_labelled):
    pair = make_labelled(), make_labelled()
    yield pair
    for item in pair:
        item.slide.close()


def compared(monkeypatch, pair, *, pretrained, untrained, **options):
    monkeypatch.setattr(transfer, "untrained_like", lambda encoder, seed: untrained)
    return result_of(
        what_pretraining_brought([pair[0]], [pair[1]], pretrained, NAMES, **options)
    )


def test_an_encoder_that_sees_more_wins(stripes, monkeypatch):
    scores = compared(
        monkeypatch,
        stripes,
        pretrained=Crafted(sees_stripes=True),
        untrained=Crafted(sees_stripes=False),
    )
    assert list(scores) == [PRETRAINED, UNTRAINED, COLOUR]
    assert scores[PRETRAINED].balanced_accuracy == 1
    assert scores[UNTRAINED].balanced_accuracy < 0.75
    assert scores[COLOUR].balanced_accuracy < 0.75
    assert scores[PRETRAINED].confusion.tolist() == [[36, 0], [0, 36]]
    verdict = lines(scores)[-1]
    assert verdict == "pretraining beats both the untrained encoder and colour"


def test_an_encoder_that_sees_less_loses(stripes, monkeypatch):
    scores = compared(
        monkeypatch,
        stripes,
        pretrained=Crafted(sees_stripes=False),
        untrained=Crafted(sees_stripes=True),
    )
    assert scores[UNTRAINED].balanced_accuracy == 1
    assert scores[PRETRAINED].balanced_accuracy < 0.75
    assert "does not beat the untrained encoder" in lines(scores)[-1]


def test_where_colour_tells_all_it_wins(make_labelled, monkeypatch):
    scores = compared(
        monkeypatch,
        (make_labelled(coloured=True), make_labelled(coloured=True)),
        pretrained=Crafted(sees_stripes=False, seed=1),
        untrained=Crafted(sees_stripes=False, seed=2),
    )
    assert scores[COLOUR].balanced_accuracy == 1
    assert scores[PRETRAINED].balanced_accuracy < 0.75
    assert "the colour histogram" in lines(scores)[-1]


def test_regions_of_different_slides_are_different_groups(
    make_labelled, stripes, monkeypatch
):
    seen = []

    def note_groups(*arguments, **options):
        seen.append((arguments[2], arguments[5], arguments[1]))
        return score_on(*arguments, **options)

    monkeypatch.setattr(transfer, "score_on", note_groups)
    monkeypatch.setattr(
        transfer, "untrained_like", lambda e, seed: Crafted(sees_stripes=False)
    )
    pretrained = Crafted(sees_stripes=True)
    result_of(
        what_pretraining_brought(
            [stripes[0], stripes[1]],
            [make_labelled()],
            pretrained,
            NAMES,
            pooling="mean",
        )
    )
    assert set(pretrained.poolings) == {"mean"}
    assert len(seen) == 3
    for train_groups, test_groups, labels in seen:
        regions, tiles = np.unique(train_groups, return_counts=True)
        assert len(regions) == 2 * REGIONS
        assert (tiles == 6).all()
        assert len(np.unique(test_groups)) == REGIONS
        for region in regions:
            assert len(np.unique(labels[train_groups == region])) == 1


def test_slides_without_regions_of_the_classes_are_passed_over(
    make_labelled, stripes, monkeypatch
):
    monkeypatch.setattr(
        transfer, "untrained_like", lambda e, seed: Crafted(sees_stripes=False)
    )
    encoder = Crafted(sees_stripes=True)
    bare = make_labelled(classes=())
    scores = result_of(
        what_pretraining_brought([bare, stripes[0]], [stripes[1], bare], encoder, NAMES)
    )
    assert scores[PRETRAINED].confusion.sum() == 72
    with pytest.raises(NotEnoughDataError, match="Upright, Lying"):
        result_of(what_pretraining_brought([bare], [stripes[1]], encoder, NAMES))
    with pytest.raises(NotEnoughDataError, match="Upright, Lying"):
        result_of(what_pretraining_brought([stripes[0]], [bare], encoder, NAMES))
    half = make_labelled(classes=("Upright",))
    with pytest.raises(NotEnoughDataError, match="no tiles of Lying"):
        result_of(what_pretraining_brought([half], [stripes[1]], encoder, NAMES))


# The untrained network -------------------------------------------------------


def test_the_untrained_encoder_is_the_one_that_a_run_begins_with(
    encoder, write_checkpoint
):
    fresh = untrained_like(encoder, seed=7)
    begun = MaskedAutoencoder(
        encoder.header.encoder,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
        generator=torch.Generator().manual_seed(7),
    )
    tiles = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    begun.eval()
    shift, scale = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (encoder.header.mean, encoder.header.std)
    )
    images = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - shift) / scale
    with torch.inference_mode():
        wanted = begun.encoder.forward_features(images)[:, 0].numpy()
    np.testing.assert_allclose(fresh.embed(tiles), wanted, atol=1e-5)
    assert fresh.spec == encoder.spec
    assert fresh.encoder_id != encoder.encoder_id
    assert not np.allclose(fresh.embed(tiles), encoder.embed(tiles), atol=1e-2)
    bare = load_checkpoint(write_checkpoint(decoder=False))
    without_decoder = TileEncoder(bare, torch.device("cpu"))
    assert untrained_like(without_decoder, seed=7).encoder_id == fresh.encoder_id


# The verdict -----------------------------------------------------------------


def scores_of(pretrained, untrained, colour, low=0.1):
    reached = {PRETRAINED: pretrained, UNTRAINED: untrained, COLOUR: colour}
    return {
        name: TransferScore(value, low, low + 0.2, np.eye(2, dtype=int))
        for name, value in reached.items()
    }


@pytest.mark.parametrize(
    ("reached", "verdict"),
    [
        ((0.9, 0.6, 0.7), "beats both the untrained encoder and colour"),
        ((0.7, 0.8, 0.6), "does not beat the untrained encoder: train longer"),
        ((0.7, 0.6, 0.8), "does not beat the colour histogram: train longer"),
        ((0.7, 0.7, 0.6), "does not beat the untrained encoder: train longer"),
        (
            (0.5, 0.6, 0.5),
            "does not beat the untrained encoder nor the colour histogram: train",
        ),
    ],
)
def test_the_verdict(reached, verdict):
    said = lines(scores_of(*reached))
    assert verdict in said[-1]
    assert len(said) == 4
    for line, name, value in zip(
        said[:3], (PRETRAINED, UNTRAINED, COLOUR), reached, strict=True
    ):
        assert line.startswith(name)
        assert f"{value:.2f} (0.10 to 0.30)" in line


def test_without_an_interval_it_says_why():
    assert "no interval" in lines(scores_of(0.9, 0.6, 0.7, low=np.nan))[0]
