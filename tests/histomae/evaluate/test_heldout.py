"""Judging on held-out crops: against plain loops, and by networks that are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from histomae.errors import CheckpointError, NotEnoughDataError, RunError, SlideError
from histomae.evaluate import heldout
from histomae.evaluate.heldout import Judgement, held_out_crops, judge
from histomae.events import Progress, result_of
from histomae.infer.reconstruct import random_masks
from histomae.learn.runs import RunFolder
from histomae.models.checkpoint import autoencoder_from, load_checkpoint
from histomae.models.mae import MaskedAutoencoder
from histomae.slides.crops import CropManifest, SlideEntry
from histomae.slides.slide import Slide
from tests.listening import events_of

PATCH, GRID, SIDE = 8, 4, 32
MEAN, STD = np.array([0.7, 0.5, 0.65]), np.array([0.2, 0.25, 0.18])


@pytest.fixture
def crops():
    """Five noisy crops, each with its own colour and shading."""
    random = np.random.default_rng(3)
    shade = np.linspace(-40, 40, SIDE)[None, :, None, None]
    base = random.integers(80, 180, (5, 1, 1, 3))
    noise = random.integers(-40, 40, (5, SIDE, SIDE, 3))
    return (base + shade + noise).clip(0, 255).astype(np.uint8)


# A slow judge ----------------------------------------------------------------


def patches_of(picture):
    """Return (16, 8, 8, 3): the patches of a picture (32, 32, 3), row by row."""
    return [
        picture[row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH]
        for row in range(GRID)
        for col in range(GRID)
    ]


def filled_in(values, hidden):
    """Replace each hidden value by visible ones, weighted by 1 / distance cubed."""
    filled = []
    for place in range(GRID**2):
        if not hidden[place]:
            filled.append(np.array(values[place]))
            continue
        total, weights = 0.0, 0.0
        for other in range(GRID**2):
            if hidden[other]:
                continue
            distance = math.hypot(
                place // GRID - other // GRID, place % GRID - other % GRID
            )
            total = total + np.array(values[other]) / distance**3
            weights += 1 / distance**3
        filled.append(total / weights)
    return filled


def ring_of(values, hidden):
    """Replace each hidden value by the mean of the visible ones of the eight around."""
    filled = filled_in(values, hidden)
    for place in np.flatnonzero(hidden):
        row, col = divmod(place, GRID)
        around = [
            values[other]
            for other in range(GRID**2)
            if not hidden[other]
            and max(abs(other // GRID - row), abs(other % GRID - col)) == 1
        ]
        if around:
            filled[place] = np.mean(around, 0)
    return filled


def spread_of(patch):
    return math.sqrt(patch.var(ddof=1) + 1e-6)


def predict(model, picture, hidden):
    """Return the network's (16, 8 * 8 * 3) for one picture, normalised."""
    images = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    keep = [place for place in range(GRID**2) if not hidden[place]]
    gone = [place for place in range(GRID**2) if hidden[place]]
    back = [0] * GRID**2
    for position, place in enumerate([*keep, *gone]):
        back[place] = position
    with torch.inference_mode():
        latent = model.forward_encoder(images, torch.tensor([keep]))
        return model.forward_decoder(latent, torch.tensor([back]))[0].numpy()


def slowly(checkpoint, crops, *, seed):
    """Return the six numbers of a judgement, by loops over crops and patches."""
    header = checkpoint.header
    trained = autoencoder_from(checkpoint)
    untrained = MaskedAutoencoder(
        header.encoder,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
        norm_pix=header.norm_pix,
        generator=torch.Generator().manual_seed(seed),
    ).eval()
    masks = random_masks(len(crops), (GRID, GRID), 0.75, seed)
    numbers = {name: [] for name in ("trained", "untrained", "zero", "neighbours")}
    errors = {name: [] for name in (*numbers, "interpolated")}
    for crop, mask in zip(crops, masks, strict=True):
        pixels = crop / 255
        normal = (pixels - MEAN) / STD
        hidden = mask.ravel()
        true_patches, normal_patches = patches_of(pixels), patches_of(normal)
        means = filled_in([patch.mean() for patch in normal_patches], hidden)
        spreads = filled_in([spread_of(patch) for patch in normal_patches], hidden)
        colours = [patch.mean((0, 1)) for patch in true_patches]
        fills = {
            "neighbours": ring_of(colours, hidden),
            "interpolated": filled_in(colours, hidden),
        }
        for name, model in (("trained", trained), ("untrained", untrained)):
            predicted = predict(model, normal, hidden)
            for place in np.flatnonzero(hidden):
                target = normal_patches[place]
                guess = predicted[place].reshape(PATCH, PATCH, 3)
                shown = guess
                if header.norm_pix:
                    target = (target - target.mean()) / spread_of(target)
                    shown = guess * spreads[place] + means[place]
                numbers[name].append(((guess - target) ** 2).mean())
                shown = (shown * STD + MEAN).clip(0, 1)
                errors[name].append(((shown - true_patches[place]) ** 2).mean())
        for place in np.flatnonzero(hidden):
            target = normal_patches[place]
            if header.norm_pix:
                target = (target - target.mean()) / spread_of(target)
            numbers["zero"].append((target**2).mean())
            for name, fill in fills.items():
                errors[name].append(((true_patches[place] - fill[place]) ** 2).mean())
    return {
        "loss_trained": np.mean(numbers["trained"]),
        "loss_zero": np.mean(numbers["zero"]),
        "loss_untrained": np.mean(numbers["untrained"]),
        "pixels_trained": np.mean(errors["trained"]),
        "pixels_neighbours": np.mean(errors["neighbours"]),
        "pixels_interpolated": np.mean(errors["interpolated"]),
        "pixels_untrained": np.mean(errors["untrained"]),
    }


@pytest.mark.parametrize("norm_pix", [True, False])
def test_it_equals_a_slow_judge(norm_pix, crops, write_checkpoint):
    path = write_checkpoint(norm_pix=norm_pix)
    judged = result_of(judge(path, crops[:2], seed=5))
    assert judged.crops == 2
    for name, number in slowly(load_checkpoint(path), crops[:2], seed=5).items():
        assert getattr(judged, name) == pytest.approx(number, rel=1e-4), name


def test_batches_change_nothing(crops, write_checkpoint):
    path = write_checkpoint()
    events, judged = events_of(judge(path, crops, batch_size=2))
    whole = result_of(judge(path, crops))
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [
        *((2, 5), (4, 5), (5, 5))
    ]
    for name in ("loss_trained", "loss_zero", "pixels_trained", "pixels_neighbours"):
        assert getattr(judged, name) == pytest.approx(getattr(whole, name), rel=1e-5)


# Networks that are known -----------------------------------------------------


def test_an_untrained_checkpoint_has_learned_nothing(crops, write_checkpoint):
    judged = result_of(judge(write_checkpoint(seed=1), crops, seed=0))
    assert not judged.learned
    assert judged.loss_trained > judged.loss_zero
    assert judged.loss_zero == pytest.approx(191 / 192, abs=1e-3)
    assert "does not yet beat predicting zero" in judged.lines()[-1]


def test_the_untrained_network_is_the_one_of_the_seed(crops, write_checkpoint):
    judged = result_of(judge(write_checkpoint(seed=4), crops, seed=4))
    assert judged.loss_trained == judged.loss_untrained
    assert judged.pixels_trained == judged.pixels_untrained
    assert not judged.learned


class Oracle(MaskedAutoencoder):
    """Has seen the answer."""

    def forward_encoder(self, images, ids_keep):
        self.answer = self.target(images)
        return super().forward_encoder(images, ids_keep)

    def forward_decoder(self, latent, ids_restore):
        return self.answer


@pytest.mark.parametrize("norm_pix", [True, False])
def test_an_oracle_has_learned(norm_pix, crops, write_checkpoint, monkeypatch):
    def oracle(checkpoint):
        model = autoencoder_from(checkpoint)
        model.__class__ = Oracle
        return model

    monkeypatch.setattr(heldout, "autoencoder_from", oracle)
    judged = result_of(judge(write_checkpoint(norm_pix=norm_pix), crops))
    assert judged.loss_trained < 1e-9
    assert judged.pixels_trained < 0.5 * judged.pixels_neighbours
    if not norm_pix:  # nothing of a patch has to be taken from its neighbours
        assert judged.pixels_trained < 1e-9
    assert judged.learned
    assert judged.lines()[-1] == "it learned more than the visible neighbours tell"


GOOD = Judgement(
    crops=9,
    loss_trained=0.7,
    loss_zero=0.99,
    loss_untrained=1.4,
    pixels_trained=0.01,
    pixels_neighbours=0.02,
    pixels_interpolated=0.015,
    pixels_untrained=0.03,
)


@pytest.mark.parametrize(
    ("changes", "unbeaten"),
    [
        ({"loss_trained": 0.99}, "predicting zero"),
        ({"loss_untrained": 0.6}, "the untrained network"),
        ({"pixels_untrained": 0.01}, "the untrained network"),
        ({"pixels_neighbours": 0.009}, "filling in the neighbours' colour"),
    ],
)
def test_every_guess_must_be_beaten(changes, unbeaten):
    assert GOOD.learned
    worse = replace(GOOD, **changes)
    assert not worse.learned
    assert worse.lines()[-1] == f"it does not yet beat {unbeaten}: train longer"


def test_the_figures_are_told():
    told = "\n".join(GOOD.lines())
    for figure in ("9", "0.7000", "0.9900", "1.4000"):
        assert figure in told
    for figure in ("0.01000", "0.02000", "0.01500", "0.03000"):
        assert figure in told


def test_without_crops_or_decoder_it_says_so(crops, write_checkpoint, tmp_path):
    with pytest.raises(NotEnoughDataError, match="held_out"):
        result_of(judge(write_checkpoint(), crops[:0]))
    bare = write_checkpoint(decoder=False)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        result_of(judge(bare, crops))
    with pytest.raises(CheckpointError, match="nowhere"):
        result_of(judge(tmp_path / "nowhere.safetensors", crops))


# The crops held out ----------------------------------------------------------


@pytest.fixture
def run(make_slide, tmp_path):
    """A run on two slides; the first one's file says another pixel size."""
    paths = [
        make_slide(mpp=0.5, path=tmp_path / "one.tiff"),
        make_slide(size=(700, 500), mpp=(0.4, 0.5), path=tmp_path / "two.tiff"),
    ]
    manifest = CropManifest(
        slides=(
            SlideEntry(str(paths[0]), "one", 1.0, 1.0, "given"),
            SlideEntry(str(paths[1]), "two", 0.4, 0.5, "file"),
        ),
        slide_index=np.array([0, 1, 0, 1, 1]),
        xy_l0=np.array([[10, 20], [30, 40], [301, 57], [60, 300], [7, 9]], float),
        held_out=np.array([False, True, True, False, True]),
        crop_px=24,
        mpp=1.0,
        region_xy_l0=np.zeros((5, 2)),
        region_px=1024,
    )
    folder = RunFolder(tmp_path / "run")
    manifest.save(folder.crops_file)
    return folder


def test_held_out_crops_are_cut_again(run, position_picture):
    crops = held_out_crops(run)
    assert crops.shape == (3, 24, 24, 3)
    assert crops.dtype == np.uint8
    manifest = CropManifest.load(run.crops_file)
    # The second is of a slide at its own pixels: they say where they are.
    picture = position_picture(803, 601)
    np.testing.assert_array_equal(crops[1], picture[57 : 57 + 24, 301 : 301 + 24])
    for crop, number in ((crops[0], 1), (crops[2], 4)):
        x, y = manifest.xy_l0[number]
        with Slide.open(manifest.slides[1].path) as slide:
            wanted = slide.read_region((x, y), (24, 24), 1.0)
        np.testing.assert_array_equal(crop, wanted)
        # 2.5 level-0 pixels wide and 2 high: its middle is at 12 pixels.
        centre = crop[11:13, 11:13, :2].mean((0, 1))
        np.testing.assert_allclose(centre, [x + 12 * 2.5 - 0.5, y + 24 - 0.5], atol=1)


def test_a_run_that_held_nothing_out(run):
    manifest = CropManifest.load(run.crops_file)
    nothing = replace(manifest, held_out=np.zeros(5, bool))
    nothing.save(run.crops_file)
    assert held_out_crops(run).shape == (0, 24, 24, 3)


def test_slides_that_are_gone(run, tmp_path):
    (tmp_path / "two.tiff").unlink()
    with pytest.raises(SlideError, match=r"two\.tiff"):
        held_out_crops(run)
    with pytest.raises(RunError, match=r"crops\.parquet"):
        held_out_crops(RunFolder(tmp_path / "elsewhere"))
