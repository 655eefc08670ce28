"""SD-MAE: the two views are of the same patches, the teacher learns as it should."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from histomae.models import sdmae
from histomae.models.mae import MaskedAutoencoder
from histomae.models.patches import gather_tokens, random_mask
from histomae.models.sdmae import SelfDistilled, concern, entropy
from histomae.models.vit import EncoderSpec

SPEC = EncoderSpec(tile_px=24, patch_size=8, embed_dim=24, depth=1, num_heads=3)
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def build(seed=0, **how):
    how = {"prototypes": 32, **how}
    generator = torch.Generator().manual_seed(seed)
    return SelfDistilled(SPEC, **DECODER, generator=generator, **how)


@pytest.fixture
def images():
    return torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return torch.rand(4, 9, generator=torch.Generator().manual_seed(2))


def distil(model, images, noise, ratio=0.6):
    return model.distil(images, mask_ratio=ratio, noise=noise)


# ---- the loss


@pytest.mark.parametrize("teacher", ["ema", "reference"])
def test_without_distillation_it_is_a_masked_autoencoder(images, noise, teacher):
    plain = MaskedAutoencoder(
        SPEC, **DECODER, generator=torch.Generator().manual_seed(0)
    )
    model = build(teacher=teacher, distill_weight=0.0)
    assert plain.state_dict().keys() == model.state_dict().keys()
    mae = plain(images, mask_ratio=0.6, noise=noise).loss
    ours = distil(model, images, noise).loss
    assert torch.equal(mae, ours)
    mae.backward()
    ours.backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        if one.requires_grad:
            assert torch.equal(one.grad, other.grad)


def test_the_decoupled_form_weighs_visible_against_hidden(images, noise):
    model = build(teacher="none", visible_weight=0.3)
    out = distil(model, images, noise)
    mask = random_mask(noise, 0.6).mask
    masking = random_mask(noise, 0.6)
    latent = model.forward_encoder(images, masking.ids_keep)
    prediction = model.forward_decoder(latent, masking.ids_restore)
    errors = (prediction - model.target(images)).square().mean(-1)
    expected = 0.7 * errors[mask].mean() + 0.3 * errors[~mask].mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert out.logged["visible"].item() == pytest.approx(errors[~mask].mean().item())


@pytest.mark.parametrize("teacher", ["ema", "reference"])
def test_the_loss_is_the_plain_formula(images, noise, teacher):
    """METHODS 4.3, one picture, one token and one prototype at a time."""
    model = build(teacher=teacher, distill_weight=0.35).double()
    model.centre += 0.05 * torch.rand(32, generator=torch.Generator().manual_seed(3))
    images, noise = images.double(), noise.double()
    out = distil(model, images, noise)
    masking = random_mask(noise, 0.6)
    latent = model.forward_encoder(images, masking.ids_keep)
    features = model.decoder.features(latent, masking.ids_restore)
    total = 0.0
    for n in range(4):
        student, teaching = np.zeros(32), np.zeros(32)
        kept = masking.ids_keep[n].tolist()
        for row, patch in enumerate(kept):
            encoded = latent[n, 1 + row]
            if teacher == "ema":
                encoded = model.adapt(encoded)
            for head, token, into in (
                (model.student_head, encoded, student),
                (model.teacher_head, features[n, 1 + patch], teaching),
            ):
                point = head.layers(token)
                point = point / point.norm()
                for k, prototype in enumerate(head.prototypes):
                    cosine = (point * prototype / prototype.norm()).sum()
                    into[k] += cosine.item() / len(kept)
        sharp = np.exp((teaching - model.centre.numpy()) / 0.04)
        soft = np.exp(student / 0.1)
        total -= (sharp / sharp.sum() * np.log(soft / soft.sum())).sum() / 4
    assert out.logged["distillation"].item() == pytest.approx(total, rel=1e-5)
    expected = 0.65 * out.logged["hidden"].item() + 0.35 * total
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_splits_over_the_batch(images, noise):
    model = build()
    whole = distil(model, images, noise).loss
    alone = [distil(model, images[i : i + 1], noise[i : i + 1]).loss for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_equal_views_cost_the_teachers_entropy():
    model = build()
    teacher = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    student = (teacher - model.centre) * sdmae.STUDENT_T / sdmae.TEACHER_T
    out = model._compare(torch.zeros(()), student, teacher)
    expected = entropy((teacher / sdmae.TEACHER_T).softmax(-1)).mean()
    torch.testing.assert_close(out.logged["distillation"], expected)
    torch.testing.assert_close(out.logged["teacher_entropy"], expected)


def test_temperatures_sharpen_to_one_answer_and_flatten_to_all(monkeypatch):
    model, logits = build(), torch.tensor([[0.3, 0.1] + [0.0] * 30])

    def of_teacher(temperature):
        monkeypatch.setattr(sdmae, "TEACHER_T", temperature)
        return float(
            model._compare(torch.zeros(()), logits, logits).logged["teacher_entropy"]
        )

    assert of_teacher(1e-4) == pytest.approx(0, abs=1e-6)
    assert of_teacher(1e4) == pytest.approx(math.log(32), rel=1e-4)


@pytest.mark.parametrize("teacher", ["ema", "reference"])
def test_hidden_pixels_do_not_reach_the_distillation(images, noise, teacher):
    model = build(teacher=teacher)
    changed = images.clone()
    mask = random_mask(noise, 0.6).mask.view(4, 1, 3, 3)
    hidden = mask.repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(images)
    changed[hidden] = torch.randn(int(hidden.sum()))
    one, other = distil(model, images, noise), distil(model, changed, noise)
    assert torch.equal(one.logged["distillation"], other.logged["distillation"])
    assert not torch.equal(one.logged["hidden"], other.logged["hidden"])


def test_both_views_are_of_the_same_patches(images, noise, monkeypatch):
    """Change one visible patch: the decoded row that moves most is its own."""
    seen = []
    monkeypatch.setattr(
        SelfDistilled,
        "_logits",
        lambda self, encoded, decoded: (
            seen.append((encoded, decoded))
            or (decoded.mean(1)[:, :8], decoded.mean(1)[:, :8])
        ),
    )
    model = build(prototypes=8)
    model.decoder.blocks = torch.nn.Identity()  # rows depend on their own token alone
    model.encoder.blocks = torch.nn.Identity()
    distil(model, images, noise)
    masking = random_mask(noise, 0.6)
    patch = int(masking.ids_keep[0, 2])
    row, col = divmod(patch, 3)
    changed = images.clone()
    changed[0, :, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] += 3
    distil(model, changed, noise)
    (encoded, decoded), (encoded_2, decoded_2) = seen
    for before, after in ((encoded, encoded_2), (decoded, decoded_2)):
        moved = (before - after).abs().sum(-1)[0]
        assert moved.nonzero().flatten().tolist() == [2]


# ---- the teacher


def test_the_teacher_has_no_gradient_and_follows_the_student(images, noise):
    model = build()
    distil(model, images, noise).loss.backward()
    assert all(w.grad is None for w in model.teacher_head.parameters())
    assert all(w.grad is not None for w in model.student_head.parameters())
    with torch.no_grad():
        for weight in model.student_head.parameters():
            weight += 1
    before = [w.clone() for w in model.teacher_head.parameters()]
    means = {name: torch.rand(32) for name in ("logits", "taught", "answers")}
    centre, usage = model.centre.clone(), model.usage.clone()
    model.update(0.5, means)
    keep = (0.99 + 0.996) / 2
    for old, mine, learned in zip(
        before,
        model.teacher_head.parameters(),
        model.student_head.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(mine, keep * old + (1 - keep) * learned)
    torch.testing.assert_close(model.centre, 0.9 * centre + 0.1 * means["logits"])
    torch.testing.assert_close(model.usage, 0.9 * usage + 0.1 * means["taught"])


def test_the_published_teacher_learns_and_centres_probabilities(images, noise):
    model = build(teacher="reference")
    out = distil(model, images, noise)
    out.loss.backward()
    assert all(w.grad is not None for w in model.teacher_head.parameters())
    before = [w.clone() for w in model.teacher_head.parameters()]
    model.update(0.5, out.means)
    for old, now in zip(before, model.teacher_head.parameters(), strict=True):
        assert torch.equal(old, now)
    torch.testing.assert_close(model.centre, 0.1 * out.means["taught"])


def test_what_is_logged_is_what_the_answers_were(images, noise):
    model = build()
    out = distil(model, images, noise)
    masking = random_mask(noise, 0.6)
    features = model.decoder.features(
        model.forward_encoder(images, masking.ids_keep), masking.ids_restore
    )
    decoded = gather_tokens(features[:, 1:], masking.ids_keep)
    taught = functional.softmax(model.teacher_head(decoded).mean(1) / 0.04, -1)
    told = model.update(1.0, out.means)
    used = len(set(taught.argmax(-1).tolist()))
    assert told["prototypes_used"] == used
    usage = 0.9 / 32 + 0.1 * taught.mean(0)
    expected = -(usage * usage.log()).sum() / math.log(32)
    assert told["entropy_of_mean"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture
def train(monkeypatch):
    """Return a training on noisy pictures of eight kinds, with narrow heads.

    It returns what was said and what the last step logged.
    """
    monkeypatch.setattr(sdmae, "HIDDEN", 256)
    spec = EncoderSpec(tile_px=64, patch_size=16, embed_dim=48, depth=2, num_heads=3)

    def run(teacher, steps=200):
        random = torch.Generator().manual_seed(0)
        model = SelfDistilled(
            spec,
            decoder_dim=24,
            decoder_depth=1,
            decoder_heads=2,
            teacher=teacher,
            prototypes=256,
            generator=torch.Generator().manual_seed(0),
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95))
        kinds = torch.randn(8, 3, 64, 64, generator=random)
        said = []
        for step in range(steps):
            which = torch.randint(8, (16,), generator=random)
            noisy = kinds[which] + 0.5 * torch.randn(16, 3, 64, 64, generator=random)
            noise = torch.rand(16, 16, generator=random)
            out = distil(model, noisy, noise)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            logged = model.update(step / steps, out.means)
            said.append(concern(logged))
        return said, logged

    return run


def test_the_published_teacher_collapses_and_is_told(train):
    said, logged = train("reference")
    assert said[0] == ""
    assert said[-1].startswith("The teacher has collapsed")
    assert "Try distill_teacher ema" in said[-1]
    assert logged["entropy_of_mean"] < 0.1
    assert logged["prototypes_used"] == 1


def test_the_moving_average_does_not_collapse(train):
    said, logged = train("ema")
    assert said == [""] * 200
    assert logged["entropy_of_mean"] > 0.5
    assert logged["prototypes_used"] > 3
