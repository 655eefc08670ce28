"""Feature files come back as they were, and are refused where they are not sound."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from histomae.errors import FeatureError
from histomae.exchange.features import (
    FeatureHeader,
    SlideFeatures,
    cells_of,
    check_alike,
    find_features,
    read_features,
    read_header,
    write_features,
)
from histomae.models.feature_spec import FeatureSpec
from histomae.slides.grid import TileGrid, TileSpec

#: Tiles of 224 px at 0.69 µm on a slide of 0.4 × 0.5 µm: their corners are not whole.
GRID = TileGrid(TileSpec(224, 0.69), (3.0, 5.5), (386.4, 309.12), rows=9, cols=12)
SPEC = FeatureSpec(
    encoder="mae vit_tiny_patch16_224 step 200",
    encoder_id="0123456789abcdef",
    pooling="class_token",
    width=16,
    tile_px=224,
    mpp=0.69,
    step_px=224,
)
HEADER = FeatureHeader(
    spec=SPEC,
    slide="a",
    tiles=40,
    slide_id="feed",
    slide_mpp=(0.4, 0.5),
    mpp_source="given",
    dimensions=(4700, 2900),
    grid=GRID,
    tissue={"min_tissue": 0.5, "mpp": 8.0},
    precision="bf16",
    unreadable=2,
    synthetic=True,
)


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    cells = GRID.all_cells()[np.sort(random.permutation(9 * 12)[:40])]
    corners = GRID.l0_from_grid(cells[:, ::-1].astype(float))
    values = random.normal(size=(40, 16)).astype(np.float32)
    return SlideFeatures(HEADER, values, np.rint(corners).astype(np.int64), cells)


@pytest.fixture
def path(features, tmp_path):
    write_features(tmp_path / "a.h5", features)
    return tmp_path / "a.h5"


def assert_same(found, expected):
    assert found.header == expected.header
    for name in ("values", "coords_l0", "cells"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


# Our own ---------------------------------------------------------------------


def test_features_come_back(path, features):
    assert read_header(path) == HEADER
    assert_same(read_features(path), features)


def test_the_same_features_are_the_same_bytes(path, features):
    before = path.read_bytes()
    write_features(path, features)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["a.h5"]


def test_the_layout_is_tridents(path, features):
    with h5py.File(path) as file:
        assert file["features"].shape == (40, 16)
        assert file["coords"].dtype == np.int64
        np.testing.assert_array_equal(file["coords"][0], features.coords_l0[0])
        said = dict(file["coords"].attrs)
        assert file["features"].attrs["encoder"] == SPEC.encoder
        assert file["features"].attrs["encoder_id"] == SPEC.encoder_id
    theirs = {
        "patch_size": 224,
        "patch_size_level0": 348,
        "level0_magnification": 25,
        "target_magnification": 14,
        "overlap": 0,
        "name": "a",
        "level0_width": 4700,
        "level0_height": 2900,
    }
    assert {name: said[name] for name in theirs} == theirs
    assert said["mpp"] == 0.69
    assert said["patch_size_um"] == pytest.approx(154.56)
    assert said["step_level0"].tolist() == [386.4, 309.12]
    assert json.loads(said["tissue"]) == HEADER.tissue


def test_a_file_that_is_there_stays_if_the_new_one_fails(path, features):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="no grid to write"):
        write_features(path, replace(features, header=replace(HEADER, grid=None)))
    assert path.read_bytes() == before


# Damage ----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.999])
def test_a_file_cut_short(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FeatureError, match=r"a\.h5 is damaged.*Copy the file again"):
        read_features(path)
    with pytest.raises(FeatureError, match=r"a\.h5 is damaged"):
        read_header(path)


def test_one_changed_bit_anywhere(path):
    data = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 60):
        changed = bytearray(data)
        changed[place] ^= 4
        path.write_bytes(changed)
        if not 104 <= place < 512:  # between digest and data there is nothing
            with pytest.raises(FeatureError, match=r"a\.h5 is damaged"):
                read_features(path)


def plain(path, **data_sets):
    """Write a file as other programs do; a pair is a data set and its attributes."""
    with h5py.File(path, "w") as file:
        for name, (data, attrs) in data_sets.items():
            file.create_dataset(name, data=data).attrs.update(attrs)
    return path


def table(count=6, width=4):
    return np.random.default_rng(1).normal(size=(count, width)).astype(np.float32)


def row_of(count=6, step=256):
    return np.stack([1000 + step * np.arange(count), np.full(count, 700)], 1)


def external_link(path):
    plain(path.with_name("other.h5"), features=(table(), {}))
    with h5py.File(path, "w") as file:
        file["features"] = h5py.ExternalLink("other.h5", "features")
        file["coords"] = row_of()


def external_numbers(path):
    path.with_name("numbers").write_bytes(table().tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "features",
            (6, 4),
            np.float32,
            external=[(str(path.with_name("numbers")), 0, h5py.h5f.UNLIMITED)],
        )
        file["coords"] = row_of()


def bomb(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (10**6, 10**3), np.float32, chunks=(100, 1000))
        file["coords"] = row_of()


def with_nan(at):
    values = table()
    values[at] = np.nan
    return values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: plain(p, coords=(row_of(), {})), "no data set 'features'"),
        (lambda p: plain(p, features=(table(), {})), "no data set 'coords'"),
        (lambda p: p.write_text("<!DOCTYPE html>" * 50), "it is no HDF5 file"),
        (lambda p: p.mkdir(), "no such file"),
        (lambda p: None, "no such file"),
        (
            lambda p: plain(p, features=(with_nan(2), {}), coords=(row_of(), {})),
            "not finite in 1 of 6 tiles. Delete it",
        ),
        (
            lambda p: plain(
                p, features=(table().astype(float) * 1e300, {}), coords=(row_of(), {})
            ),
            "not finite in 6 of 6 tiles",
        ),
        (
            lambda p: plain(p, features=(table(0), {}), coords=(row_of(0), {})),
            "holds no tile",
        ),
        (
            lambda p: plain(p, features=(table(5), {}), coords=(row_of(), {})),
            r"shape \(5, 4\) and its coords \(6, 2\)",
        ),
        (
            lambda p: plain(
                p, features=(table(), {}), coords=(row_of()[[0, 0, 1, 2, 3, 4]], {})
            ),
            "two tiles in one place",
        ),
        (
            lambda p: plain(
                p, features=(table().astype(int), {}), coords=(row_of(), {})
            ),
            "features is no plain array",
        ),
        (external_link, "features is no plain array"),
        (external_numbers, "features is no plain array"),
        (bomb, "declares 4000000000 bytes"),
    ],
)
def test_what_cannot_be_trusted(tmp_path, make, message):
    path = tmp_path / "b.h5"
    make(path)
    with pytest.raises(FeatureError, match=message) as refused:
        read_features(path)
    assert str(refused.value).startswith("b.h5 ")


def test_tiles_that_do_not_lie_on_their_grid(features, tmp_path):
    shifted = replace(features, coords_l0=features.coords_l0 + 3)
    write_features(tmp_path / "a.h5", shifted)
    with pytest.raises(FeatureError, match="do not lie on its grid"):
        read_features(tmp_path / "a.h5")


# Other programs' -------------------------------------------------------------


def test_tridents_file(tmp_path):
    coords = row_of(step=448)
    attrs = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 32,
        "name": "TCGA-1",
        "savetodir": "/job",
        "level0_width": "None",
    }
    values = table()
    path = plain(
        tmp_path / "b.h5",
        features=(values[None], {"encoder": "uni_v1", "name": "TCGA-1"}),
        coords=(coords, attrs),
    )
    found = read_features(path)
    header = found.header
    assert (header.program, header.slide) == ("TRIDENT", "TCGA-1")
    assert header.spec == FeatureSpec(
        encoder="uni_v1", width=4, tile_px=256, step_px=224, magnification=20
    )
    assert "pixel size of the tiles is unknown" in header.caveat
    assert "20x" in header.caveat
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.cells, [[0, col] for col in range(6)])


def test_clams_file(tmp_path):
    values, coords = table().astype(np.float64), row_of().astype(np.int32)
    path = plain(tmp_path / "b.h5", features=(values, {}), coords=(coords, {}))
    found = read_features(path)
    assert (found.header.program, found.header.slide) == ("CLAM", "b")
    assert found.header.spec == FeatureSpec(encoder="unknown", width=4)
    assert found.header.caveat == "the pixel size of the tiles is unknown"
    assert found.values.dtype == np.float32
    np.testing.assert_array_equal(found.cells, [[0, col] for col in range(6)])


def test_our_files_have_no_caveat():
    assert HEADER.caveat == ""


def test_cells_of_several_grids_are_pixels():
    coords = np.concatenate([row_of(), row_of() + np.array([100, 5000])])
    expected = (coords - coords.min(0))[:, ::-1]
    np.testing.assert_array_equal(cells_of(coords), expected)
    np.testing.assert_array_equal(cells_of(coords, 256.0), expected)


def test_cells_of_one_grid_are_rows_and_columns():
    cells = GRID.all_cells()[[0, 1, 2, 14, 15, 40, 80]]
    coords = 512 * cells[:, ::-1] + [37, 91]
    np.testing.assert_array_equal(cells_of(coords), cells - cells.min(0))
    np.testing.assert_array_equal(cells_of(coords[:1]), [[0, 0]])


# Mixing ----------------------------------------------------------------------


def test_files_that_agree_may_be_mixed(tmp_path):
    other = replace(HEADER, slide="b", tiles=3, slide_id="beef", grid=None)
    check_alike([(tmp_path / "a.h5", HEADER), (tmp_path / "b.h5", other)])
    check_alike([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_id": "ffff"},
            r"encoder mae \S+ step 200 \(0123456789abcdef\) and mae \S+ step 200 \(fff",
        ),
        ({"encoder": "uni", "encoder_id": None}, r"\(0123456789abcdef\) and uni\."),
        ({"pooling": "mean"}, "pooling class_token and mean"),
        ({"width": 8}, "width 16 and 8"),
        ({"mpp": 0.5}, "pixel size 0.69 µm/px and 0.5 µm/px"),
        ({"mpp": None}, "pixel size 0.69 µm/px and unknown"),
        ({"tile_px": 256}, "tile size 224 px and 256 px"),
        ({"step_px": 112.0}, "grid step 224 px and 112 px"),
        ({"magnification": 20.0}, "magnification unknown and 20"),
    ],
)
def test_files_that_differ_are_refused_with_both_named(tmp_path, change, message):
    other = replace(HEADER, spec=replace(SPEC, **change))
    files = [(tmp_path / "a.h5", HEADER), (tmp_path / "b.h5", HEADER)]
    with pytest.raises(FeatureError, match=message) as refused:
        check_alike([*files, (tmp_path / "c.h5", other)])
    assert str(refused.value).startswith("a.h5 and c.h5 must not be mixed: ")


def test_the_making_of_one_slide_is_compared_whole():
    assert HEADER.difference(replace(HEADER, tiles=3, precision="f32")) == ""
    told = HEADER.difference(replace(HEADER, tissue={"min_tissue": 0.2}, slide_id="x"))
    assert told == "slide feed and x; tissue's min_tissue 0.5 and 0.2; " + (
        "tissue's mpp 8.0 and unknown"
    )


def test_files_are_found_in_folders_each_once(path):
    (path.parent / "notes.txt").touch()
    (path.parent / "b.h5").touch()
    other = path.with_name("b.h5")
    assert find_features([path.parent, path]) == [path, other]
    with pytest.raises(FeatureError, match="nowhere does not exist"):
        find_features([path.parent / "nowhere"])
    (path.parent / "empty").mkdir()
    with pytest.raises(FeatureError, match="histomae embed"):
        find_features([path.parent / "empty"])
