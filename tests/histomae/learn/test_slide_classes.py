"""Fitting classifiers of slides: what they learn, class weights, parts, repetition."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from histomae.data.bags import Bag
from histomae.events import Step, result_of
from histomae.infer.slides import classify_slides
from histomae.learn import slide_classes
from histomae.learn.slide_classes import SlideFit, fit_slides
from histomae.models.feature_spec import FeatureSpec
from histomae.models.pama import Pama, PamaSpec
from histomae.models.slide_classifier import AttentionMil, SlideClassifier

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = PamaSpec(
    feature_dim=4,
    dim=16,
    depth=2,
    heads=2,
    decoder_dim=8,
    decoder_depth=1,
    decoder_heads=2,
    tiles_per_anchor=6,
)
LABELS = np.arange(12) % 2
FIT = SlideFit(
    epochs=15, warmup_epochs=1, batch_size=6, micro_batch=3, base_lr=0.5, device="cpu"
)


@pytest.fixture
def bags():
    """Twelve slides; in every other the first number is higher in half the tiles."""
    return [bag(number) for number in range(12)]


def bag(number):
    random = np.random.default_rng(number)
    cells = np.stack(np.divmod(random.permutation(100)[: 20 + number], 10), 1)
    values = random.standard_normal((len(cells), 4))
    values[: len(cells) // 2, 0] += 3 * (number % 2)
    spec = FeatureSpec(encoder="drawn", width=4)
    return Bag(slide=f"s{number}", features=values, cells=cells, spec=spec)


def mil(seed=0):
    return AttentionMil(4, 2, dim=16, generator=torch.Generator().manual_seed(seed))


def fine_tuned():
    generator = torch.Generator().manual_seed(0)
    encoder = Pama(SPEC, generator=generator).encoder
    return SlideClassifier(encoder, 2, generator=generator)


@pytest.mark.parametrize("make", [mil, fine_tuned])
def test_it_learns_what_is_there_to_learn(make, bags):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = [e for e in fit_slides(model, bags, LABELS, FIT) if isinstance(e, Step)]
    assert len(steps) == FIT.epochs * 2
    assert steps[-1].loss < steps[0].loss / 2
    found = result_of(classify_slides(model, bags))
    np.testing.assert_array_equal(found.argmax(1), LABELS)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    trained = {n for n, _ in model.named_parameters()}
    same = {n for n in trained if torch.equal(before[n], model.state_dict()[n])}
    assert same == set()


def test_the_same_again_gives_the_same(bags):
    weights = []
    for seed in (0, 0, 1):
        model = mil()
        settings = SlideFit(**{**vars(FIT), "epochs": 2, "seed": seed})
        result_of(fit_slides(model, bags, LABELS, settings))
        weights.append(model.head.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_classes_count_alike(bags, micro_batch):
    """The loss of all slides at once is the mean over classes of their means."""
    labels = np.array([0] * 9 + [1] * 2 + [2])
    model = AttentionMil(4, 3, dim=16, generator=torch.Generator().manual_seed(2))
    probabilities = torch.from_numpy(result_of(classify_slides(model, bags)))
    each = functional.nll_loss(
        probabilities.log(), torch.from_numpy(labels), reduction="none"
    )
    expected = np.mean([float(each[labels == k].mean()) for k in range(3)])
    settings = SlideFit(
        epochs=1, batch_size=12, micro_batch=micro_batch, warmup_epochs=0, device="cpu"
    )
    work = fit_slides(model, bags, labels, settings)
    (step,) = (event for event in work if isinstance(event, Step))
    assert step.loss == pytest.approx(expected, rel=1e-5)


def test_of_large_slides_other_tiles_take_part_each_time(bags, monkeypatch):
    seen = []
    plain = slide_classes.bag_tensors

    def watched(*given, **how):
        made = plain(*given, **how)
        seen.extend(
            zip(
                given[1].tolist(),
                made.features.numpy(),
                made.places.real_tokens.sum(1).tolist(),
                strict=True,
            )
        )
        return made

    monkeypatch.setattr(slide_classes, "bag_tensors", watched)
    settings = SlideFit(**{**vars(FIT), "epochs": 2, "most_tiles": 22})
    result_of(fit_slides(mil(), bags, LABELS, settings))
    assert sorted(number for number, _, _ in seen) == sorted([*range(12)] * 2)
    assert [count for _, _, count in seen] == [min(20 + n, 22) for n, _, _ in seen]
    first, second = (
        {n: values for n, values, _ in part} for part in (seen[:12], seen[12:])
    )
    np.testing.assert_array_equal(first[2], second[2])
    assert not np.array_equal(first[11], second[11])
