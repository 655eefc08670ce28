"""What a file is, in lines for a person."""

import json

import numpy as np
import pytest

from histomae.config import PretrainConfig
from histomae.errors import CheckpointError, HistomaeError, RunError, SlideError
from histomae.evaluate.describe import contents, describe
from histomae.events import Failed, Finished, HeldOut, Step
from histomae.learn.runs import RunFolder
from histomae.models.probe import Probe
from histomae.slides.slide import Slide


@pytest.fixture
def probe():
    def make(**scores):
        return Probe(
            mean=np.zeros(24),
            std=np.ones(24),
            weight=np.eye(2, 24),
            bias=np.zeros(2),
            class_names=("Duct", "Fat tissue"),
            class_colors=((0, 90, 180), (230, 160, 0)),
            encoder_id="0123456789abcdef",
            tile_px=32,
            mpp=0.69,
            pooling="class_token",
            scores=scores,
        )

    return make


# Slides ----------------------------------------------------------------------


@pytest.fixture
def tissue(make_slide, tmp_path):
    """A millimetre of spotted tissue on glass; pixels that are not square."""
    random = np.random.default_rng(0)
    pixels = np.full((600, 800, 3), 245, np.uint8)
    spots = np.kron(random.random((50, 62)) < 0.3, np.ones((8, 8), bool))
    pixels[100:500, 150:646] = (225, 150, 190)
    pixels[100:500, 150:646][spots] = (90, 50, 130)
    return make_slide(pixels, mpp=(1.25, 1.0), factors=(1, 4), path=tmp_path / "a.tiff")


def test_a_slide(tissue):
    first, size, mpp, area, square = describe(tissue)
    assert first == "a.tiff: slide, generic-tiff"
    assert size == "  800 × 600 px, 2 levels (downsamples 1, 4)"
    assert mpp == "  1.25 × 1 µm/px (file), 1.00 × 0.60 mm"
    assert area.startswith("  tissue 0.2")
    assert "not square" in square


def test_a_slide_of_one_level(make_slide):
    assert "  803 × 601 px, one level" in describe(make_slide(factors=(1,)))


def test_a_slide_without_a_pixel_size(make_slide):
    path = make_slide(mpp=None)
    assert describe(path)[-1] == "  no believable pixel size: give --slide-mpp"
    assert "  2 × 2 µm/px (given), 1.61 × 1.20 mm" in describe(path, slide_mpp=2.0)


def test_a_slide_that_is_synthetic_and_coloured(make_slide):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = make_slide(description="synthetic sample", iccprofile=profile)
    said = "\n".join(describe(path))
    assert "synthetic: made by a program" in said
    assert "colour profile" in said


def test_the_scanned_area_and_the_objective_are_told(make_slide, monkeypatch):
    path = make_slide(mpp=None)
    monkeypatch.setattr(Slide, "bounds_l0", (10, 20, 300, 400))
    monkeypatch.setattr(Slide, "suggested_mpp", 0.25)
    said = describe(path)
    assert "  scanned area x 10, y 20, 300 × 400" in said
    assert said[-1].endswith("give --slide-mpp; its objective suggests 0.25")


@pytest.mark.real_data
def test_real_slides(shared_data):
    for path in (
        shared_data / "slides" / "CMU-1-Small-Region" / "CMU-1-Small-Region.svs",
        shared_data / "slides" / "her2st" / "her2st-C2.tiff",
    ):
        said = "\n".join(describe(path))
        assert "µm/px (file)" in said
        assert "tissue" in said
    boxes = describe(shared_data / "slides" / "small" / "boxes.tiff")
    assert "no believable pixel size" in boxes[-1]


def test_a_folder_is_its_slides(tissue, make_slide, tmp_path):
    make_slide(path=tmp_path / "b.tiff")
    (tmp_path / "notes.txt").write_text("nothing")
    assert contents(tmp_path) == [tissue, tmp_path / "b.tiff"]
    said = describe(tmp_path)
    assert [line for line in said if "slide" in line] == [
        "a.tiff: slide, generic-tiff",
        "b.tiff: slide, generic-tiff",
    ]
    assert contents(tissue) == [tissue]


def test_what_is_nothing(tmp_path):
    with pytest.raises(SlideError, match="does not exist"):
        describe(tmp_path / "nowhere.svs")
    assert contents(tmp_path) == [tmp_path]
    with pytest.raises(SlideError, match="holds no slide"):
        describe(tmp_path)
    (tmp_path / "note.txt").write_text("a text that is no slide")
    with pytest.raises(SlideError, match="no slide"):
        describe(tmp_path / "note.txt")


# Weights ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["last.safetensors", "renamed.bin", "bare"])
def test_a_checkpoint_whatever_its_name(name, write_checkpoint, encoder):
    said = describe(write_checkpoint(name=name))
    assert said[0] == f"{name}: encoder {encoder.encoder_id}, vit_test_patch8_32"
    assert said[1] == "  mae, 12 steps, mask ratio 0.75, decoder 16 × 1"
    assert said[2] == "  tiles of 32 px at 1 µm/px"
    assert "torch " in said[3]
    assert "no decoder" in describe(write_checkpoint(decoder=False))[1]


@pytest.mark.parametrize("name", ["a.probe", "a.safetensors", "probe-of-mine"])
def test_a_probe_whatever_its_name(name, probe, tmp_path):
    made = probe(
        tiles={"Duct": 12, "Fat tissue": 1},
        regions={"Duct": 3, "Fat tissue": 1},
        summary="Balanced accuracy 0.91.",
        caveat="On other patients it may do worse.",
        confusion=[[11, 1], [0, 105]],
    )
    made.save(tmp_path / name)
    assert describe(tmp_path / name) == [
        f"{name}: probe {made.probe_id} of the encoder 0123456789abcdef",
        "  tiles of 32 px at 0.69 µm/px",
        "  classes: Duct (12 tiles in 3 regions), Fat tissue (1 tile in 1 region)",
        "  Balanced accuracy 0.91.",
        "  On other patients it may do worse.",
        "  tiles of regions it did not learn from, rows true, columns predicted:",
        "                Duct  Fat tissue",
        "    Duct          11           1",
        "    Fat tissue     0         105",
    ]


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"summary": None, "caveat": 3, "confusion": None},
        {"tiles": [1, 2], "regions": "many", "confusion": "none"},
        {"tiles": {"Duct": "a lot"}, "confusion": [[1, 2], [3]]},
        {"confusion": [[1]]},
        {"confusion": {"Duct": 1}},
        {"confusion": [[1e300, 1], [1, 1]]},
        {"confusion": [["a", "b"], ["c", "d"]]},
    ],
    ids=json.dumps,
)
def test_scores_of_a_stranger_do_no_harm(scores, probe, tmp_path):
    probe(**scores).save(tmp_path / "a.probe")
    assert len(describe(tmp_path / "a.probe")) == 3


@pytest.mark.parametrize("damage", [b"", b"12345678{}", b"\x80\x02}", b"PK\x03\x04"])
def test_damaged_weights(damage, tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        describe(path)


# Runs ------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "first")
    folder.create(PretrainConfig(slides=("/slides/a.svs",)))
    return folder


def a_step(step):
    return Step(
        step=step,
        total_steps=40,
        epoch=1.0,
        loss=1 / step,
        lr=0.1,
        grad_norm=1.0,
        images_per_s=9.0,
        seconds_left=None,
    )


def test_a_run_that_has_not_begun(run):
    assert describe(run.path) == [
        "first: run, new",
        "  mae, vit_small_patch16_224, on /slides/a.svs",
    ]
    assert contents(run.path) == [run.path]


def test_a_run_tells_how_far_it_came(run):
    for event in (a_step(9), HeldOut(9, 0.5), a_step(10), Finished(10, "stopped")):
        run.append(event)
    said = describe(run.path)
    assert said[0] == "first: run, stopped"
    assert said[2:] == [
        "  step 10 of 40, loss 0.1000",
        "  held-out loss 0.5000 at step 9",
    ]


def test_a_run_that_failed_tells_why(run):
    run.append(Failed("The disk is full. Make room and resume."))
    assert describe(run.path)[-1] == "  The disk is full. Make room and resume."


def test_a_run_that_cannot_be_read(run):
    run.events_file.write_text("nonsense\n")
    with pytest.raises(RunError, match="nonsense"):
        describe(run.path)
    run.config_file.write_text("epochs = 'nonsense'")
    with pytest.raises(HistomaeError, match="epochs"):
        describe(run.path)
