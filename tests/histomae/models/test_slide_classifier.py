"""Classifiers of slides against plain restatements, one slide at a time."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from histomae.models.bag_tensors import Placing, batch_bags, place_bag
from histomae.models.pama import Pama, PamaSpec
from histomae.models.slide_classifier import AttentionMil, SlideClassifier

SPEC = PamaSpec(
    feature_dim=6,
    dim=16,
    depth=2,
    heads=2,
    decoder_dim=8,
    decoder_depth=1,
    decoder_heads=2,
    tiles_per_anchor=5,
)
PLACING = Placing(5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def slide(seed, tiles):
    random = np.random.default_rng(seed)
    cells = np.stack(np.divmod(random.permutation(64)[:tiles], 8), 1)
    return place_bag(random.standard_normal((tiles, 6)), cells, PLACING)


def shaken(model):
    """Return the model in float64 with every weight moved, so that none is idle."""
    model, generator = model.double().eval(), seeded(1)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight += 0.3 * noise
    return model


@pytest.fixture
def slides():
    return [slide(0, 40), slide(1, 12), slide(2, 25)]


@pytest.fixture
def mil():
    return shaken(AttentionMil(6, 3, dim=8, generator=seeded()))


@pytest.fixture
def classifier():
    encoder = Pama(SPEC, generator=seeded()).encoder
    return shaken(SlideClassifier(encoder, 3, generator=seeded()))


class TestAttentionMil:
    def test_the_equations(self, mil, slides):
        w = {name: value.numpy() for name, value in mil.state_dict().items()}

        def linear(name, x):
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        with torch.no_grad():
            found = mil(batch_bags(slides)).numpy()
        for row, one in zip(found, slides, strict=True):
            tiles = np.maximum(linear("embed", one.features), 0)
            gated = np.tanh(linear("value", tiles)) * expit(linear("gate", tiles))
            weights = softmax(linear("weight", gated)[:, 0])
            np.testing.assert_allclose(row, linear("head", weights @ tiles), rtol=1e-10)

    def test_it_minds_no_places(self, mil, slides):
        one = slides[0]
        turned = np.random.default_rng(5).permutation(len(one.features))
        cells = np.stack(np.divmod(np.arange(40), 5), 1)
        other = place_bag(one.features[turned], cells, PLACING)
        with torch.no_grad():
            torch.testing.assert_close(mil(batch_bags([one])), mil(batch_bags([other])))


class TestSlideClassifier:
    def test_logits_are_of_the_class_token(self, classifier, slides):
        with torch.no_grad():
            found = classifier(batch_bags(slides))
            for row, one in zip(found, slides, strict=True):
                tokens, _ = classifier.encoder.encode(batch_bags([one]))
                torch.testing.assert_close(row, classifier.head(tokens[0, 0]))
        assert found.shape == (3, 3)
        assert classifier.placing == SPEC.placing

    def test_anchors_are_dropped_only_in_training_and_with_noise(
        self, classifier, slides
    ):
        bags = batch_bags(slides)
        real = bags.places.real_anchors
        noise = torch.rand(real.shape, generator=seeded(3))
        with torch.no_grad():
            whole = classifier(bags)
            torch.testing.assert_close(classifier(bags, noise), whole)
            classifier.train()
            torch.testing.assert_close(classifier(bags), whole)
            dropped = classifier(bags, noise)
            classifier.anchor_dropout = 0.0
            torch.testing.assert_close(classifier(bags, noise), whole)
        assert (dropped - whole).abs().amax() > 1e-3

    def test_a_new_head_is_seeded(self):
        encoder = Pama(SPEC, generator=seeded()).encoder
        one, same, other = (
            SlideClassifier(encoder, 2, generator=seeded(s)).head.weight
            for s in (4, 4, 5)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["mil", "classifier"])
def test_padding_never_matters(name, request, slides):
    model = request.getfixturevalue(name)
    bags = batch_bags(slides)
    with torch.no_grad():
        bags.features[~bags.places.real_tokens] = torch.nan
        found = model(bags)
        for row, one in zip(found, slides, strict=True):
            torch.testing.assert_close(row, model(batch_bags([one]))[0])


@pytest.mark.parametrize("name", ["mil", "classifier"])
def test_every_weight_learns(name, request, slides):
    model = request.getfixturevalue(name).train()
    model(batch_bags(slides)).square().sum().backward()
    for what, weight in model.named_parameters():
        assert weight.grad is not None, what
        assert weight.grad.any(), what
