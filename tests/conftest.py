"""Fixtures shared by all tests."""

import gc
import itertools
import os
import random
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import tifffile
from PIL import Image

from benchmarks.made_slides import write_made_slide
from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.pictures import read_picture
from histomae.evaluate.trials import Evaluation, Trial
from histomae.exchange.features import FeatureHeader, SlideFeatures, write_features
from histomae.models.feature_spec import FeatureSpec
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.tile_cache import shared_cache
from tests.patience import wait_until

# Before torch is imported: threads that wait sleep, as in a training of the dock.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parents[1]

# The same examples each time, however long they take.
hypothesis.settings.register_profile(
    "this suite",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("this suite")


def pytest_collection_finish():
    """Spare the collector what was imported, which stays: it is called a lot.

    napari's fixture has it look at everything several times for each viewer, and torch
    and its like are some hundred thousand objects.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Let all be looked at once more: some libraries complain of what is left."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def private_folders(tmp_path_factory, monkeypatch):
    """Keep what the program remembers away from the user's own folders."""
    folder = tmp_path_factory.mktemp("histomae-home")
    monkeypatch.setenv("HISTOMAE_HOME", str(folder))


@pytest.fixture(autouse=True)
def numbers_are_the_same():
    """Draw what is drawn without a seed alike, whichever tests were run before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  what libraries draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_is_decoded_afterwards():
    """Let no test find tiles being decoded that an earlier one asked for ahead."""
    yield
    wait_until(lambda: not shared_cache()._here().jobs, "the end of decoding")


@pytest.fixture(scope="module")
def one_thread():
    """Compute on one thread: small matrices, summed in one order on any machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Path:
    """Return a folder that all processes of a test run share.

    For what takes long to make and is only read: the first who needs it makes it there.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real slides and images; skip where it is absent."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("HISTOMAE_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set HISTOMAE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def position_picture():
    """Return a function that makes a picture whose pixels say where they are.

    ``position_picture(width, height)``: red is x and green is y modulo 256, blue names
    the block of 256; whichever pixel is read, its place can be told.
    """

    def draw(width: int, height: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        return np.stack(
            [x % 256, y % 256, (x // 256 * 16 + y // 256) % 256], -1
        ).astype(np.uint8)

    return draw


@pytest.fixture(scope="session")
def shrink():
    """Return a function that shrinks a picture by the mean of whole blocks.

    ``shrink(pixels, factor, rounding="floor")``: the sides that the factor does not
    divide are cut (``floor``) or repeated at the edge (``ceil``), as writers do.
    """

    def by_mean(pixels: np.ndarray, factor: int, rounding: str = "floor") -> np.ndarray:
        if rounding == "ceil":
            over = [(0, -side % factor) for side in pixels.shape[:2]]
            pixels = np.pad(pixels, (*over, (0, 0)), mode="edge")
        high, wide = (side // factor for side in pixels.shape[:2])
        blocks = pixels[: high * factor, : wide * factor].reshape(
            high, factor, wide, factor, 3
        )
        return np.rint(blocks.mean((1, 3))).astype(np.uint8)

    return by_mean


@pytest.fixture(scope="session")
def make_slide(tmp_path_factory, position_picture, shrink):
    """Return a function that writes a slide which OpenSlide opens as generic TIFF.

    ``make_slide(pixels=None, ...) -> Path``

    pixels
        uint8 (H, W, 3); None: a position picture of ``size``.
    size
        (width, height), used without ``pixels``.
    mpp
        µm per pixel of level 0, one number or (x, y); None: the file says nothing.
    factors
        Level-0 pixels per pixel of each level. Or ``levels``: the pictures themselves.
    rounding
        ``floor`` or ``ceil``: what becomes of sides that a factor does not divide.
    compression
        ``deflate`` or ``none`` keep the pixels exact; ``jpeg`` does not.
    description
        Text for the TIFF's ImageDescription, such as "synthetic".
    path
        Where to write; None: a new folder.
    """
    number = itertools.count()

    def write(
        pixels=None,
        *,
        size=(803, 601),
        mpp=0.5,
        factors=(1, 4),
        levels=None,
        rounding="floor",
        compression="deflate",
        tile=256,
        description=None,
        iccprofile=None,
        path=None,
    ) -> Path:
        if path is None:
            path = tmp_path_factory.mktemp("slide") / f"slide-{next(number)}.tiff"
        if levels is None:
            pixels = position_picture(*size) if pixels is None else pixels
            levels = [
                pixels if factor == 1 else shrink(pixels, factor, rounding)
                for factor in factors
            ]
        tags = {
            "tile": (tile, tile),
            "photometric": "rgb",
            "compression": None if compression == "none" else compression,
            "metadata": None,
            "iccprofile": iccprofile,
        }
        if mpp is not None:
            mpp_x, mpp_y = (mpp, mpp) if isinstance(mpp, int | float) else mpp
            tags["resolution"] = (1e4 / mpp_x, 1e4 / mpp_y)
            tags["resolutionunit"] = "CENTIMETER"
        with tifffile.TiffWriter(path) as tiff:
            for index, level in enumerate(levels):
                tiff.write(
                    level,
                    subfiletype=1 if index else 0,
                    description=None if index else description,
                    **tags,
                )
        return Path(path)

    return write


@pytest.fixture(scope="session")
def made_slide(tmp_path_factory):
    """Return a function that writes a huge slide of a few megabytes, once of each kind.

    ``made_slide(size, factors=..., tile_px=..., mpp=...) -> Path``; see the benchmarks'
    ``made_slides``.
    """
    folder, made = tmp_path_factory.mktemp("made"), {}

    def write(size=(200_000, 200_000), **how) -> Path:
        key = (size, *how.items())
        if key not in made:
            made[key] = write_made_slide(folder / f"made-{len(made)}.svs", size, **how)
        return made[key]

    return write


@pytest.fixture(scope="session")
def make_features():
    """Return a function that writes a file of a slide's features.

    ``make_features(path, cells=None, values=None, ...) -> Path``

    path
        Where to write; its stem is the slide's name.
    cells
        int (N, 2), (row, column); None: a lump of ``tiles`` tiles, drawn by ``seed``.
    values
        float (N, D); None: what changes smoothly over the slide, about a level of its
        own, seen through ``width`` numbers, and noise.
    spec
        Changes of how the tiles became vectors.
    """

    def write(
        path, cells=None, values=None, *, tiles=60, width=6, seed=0, **spec
    ) -> Path:
        random = np.random.default_rng(seed)
        if cells is None:
            row, col = np.mgrid[:14, :14]
            near = np.hypot(row - 7 + random.normal(), 1.4 * (col - 7))
            order = np.argsort((near + random.random(near.shape)).ravel())[:tiles]
            cells = np.stack(np.unravel_index(np.sort(order), near.shape), 1)
        if values is None:
            seen_as = np.random.default_rng(0).normal(size=(2, width))
            smooth = np.sin(cells @ random.normal(size=2) / 4 + 6 * random.random())
            hidden = np.stack([np.full(len(cells), random.normal()), smooth], 1)
            values = hidden @ seen_as + 0.2 * random.normal(size=(len(cells), width))
        how = {
            "encoder": "drawn",
            "encoder_id": "0123456789abcdef",
            "pooling": "mean",
            "width": values.shape[1],
            "tile_px": 224,
            "mpp": 0.5,
            "step_px": 224,
            **spec,
        }
        grid = TileGrid(
            TileSpec(how["tile_px"], how["mpp"]),
            (0.0, 0.0),
            (float(how["tile_px"]),) * 2,
            rows=int(cells[:, 0].max()) + 1,
            cols=int(cells[:, 1].max()) + 1,
        )
        header = FeatureHeader(
            spec=FeatureSpec(**how),
            slide=Path(path).stem,
            tiles=len(cells),
            slide_id=Path(path).stem,
            slide_mpp=(how["mpp"],) * 2,
            mpp_source="file",
            dimensions=(grid.cols * how["tile_px"], grid.rows * how["tile_px"]),
            grid=grid,
        )
        corners = np.rint(grid.l0_from_grid(cells[:, ::-1].astype(float)))
        features = SlideFeatures(
            header, values.astype(np.float32), corners.astype(np.int64), cells
        )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_features(path, features)
        return Path(path)

    return write


@pytest.fixture(scope="session")
def make_evaluation():
    """Return a function that makes an evaluation of drawn pictures and predictions.

    ``make_evaluation(folder, skill=..., ...) -> Evaluation``

    folder
        Where its pictures are written: 24 pixels wide, one file each.
    skill
        By candidate how much it knows, 0: nothing; the first is ours.
    patients
        Each with a slide of its own and six pictures, of every class.
    fractions
        Shares of labels that were tried.
    """

    def make(
        folder,
        skill=None,
        *,
        patients=8,
        names=("benign", "atypical", "malignant"),
        fractions=(1.0,),
        folds=2,
        seed=0,
        **more,
    ) -> Evaluation:
        random = np.random.default_rng(seed)
        skill = skill or {"micro": 2.5, "untrained": 0.5, "colour histogram": 1.0}
        kinds, pictures = len(names), []
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(6 * patients):
            label, patient = number % kinds, number // 6
            path = folder / f"{number:03}.png"
            pixels = random.integers(0, 90, (24, 24, 3)) + 120
            pixels[..., label % 3] += 40
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            pictures.append(
                LabelledPicture(
                    path=path,
                    label=label,
                    patient=f"P{patient:02}",
                    slide=f"S{patient:02}",
                    mpp=0.5,
                )
            )
        data = LabelledSet(
            name="Drawn",
            root=folder,
            classes=ClassSet.of(names),
            pictures=tuple(pictures),
            read=lambda picture: read_picture(picture.path),
            notes=("The pictures are drawn by a program.",),
        )
        fold_of = np.arange(patients).repeat(6) % folds
        truth = np.eye(kinds)[data.labels]
        trials, embedding = [], {}
        for candidate, knows in skill.items():
            noise = random.normal(size=(len(pictures), 12))
            embedding[candidate] = noise.astype(np.float32)
            embedding[candidate][:, :kinds] += knows * truth
            for share, fold in itertools.product(fractions, range(folds)):
                tested = np.flatnonzero(fold_of == fold)
                logits = random.normal(size=(len(tested), kinds))
                logits += knows * share**0.25 * truth[tested]
                odds = np.exp(logits)
                setting = {"protocol": "linear probe"}
                if len(fractions) > 1:
                    setting["fraction"] = share
                trials.append(
                    Trial(
                        candidate=candidate,
                        setting=setting,
                        fold=fold,
                        tested=tested,
                        probabilities=odds / odds.sum(1, keepdims=True),
                        logits=logits,
                        trained=round(share * (fold_of != fold).sum()),
                    )
                )
        said = {
            "protocol": "probe",
            "facts": {
                "candidates": {
                    name: {"kind": name if place else "encoder", "hash": f"{place:016}"}
                    for place, name in enumerate(skill)
                },
                "tiles": "whole, 0.5 µm/px",
                "split hash": "0123456789abcdef",
                "seed": 0,
            },
            "leaks": (),
            "notes": ("Nothing is known of other scanners.",),
            "published": (
                {
                    "paper": "Anybody et al. 2020",
                    "what": "ViT-S, full labels",
                    "metric": "accuracy",
                    "value": 88.5,
                    "spread": 2.1,
                },
            ),
        }
        return Evaluation(
            data=data, trials=tuple(trials), embedding=embedding, **said | more
        )

    return make
