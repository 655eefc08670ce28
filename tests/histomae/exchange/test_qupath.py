"""Tests of histomae.exchange.qupath."""

import gzip
import json
import logging
import uuid
import zipfile

import numpy as np
import pytest
import shapely

from histomae.data.classes import OKABE_ITO
from histomae.errors import AnnotationError
from histomae.exchange import qupath
from histomae.exchange.qupath import (
    qupath_name,
    read_annotations,
    write_annotations,
    write_predictions,
)
from histomae.exchange.tables import TileTable
from histomae.slides.annotations import Annotation

CANARIES = (
    *("=1+1", "+x", "-x", "@x", "\tx", "\rx", "a\r\nb", "line\nbreak", 'quo"te'),
    *("\u202eltr\u202c", "../../x", "n" * 300, "nul\0", "{}[]\\/", "CON", "µm² – ü"),
    *(" spaced ", "Tumor: DCIS", "Tumor:DCIS", ":", "\ud800", "::a::", "\n"),
)


def square(x=0.0, y=0.0, side=10.0):
    return shapely.box(x, y, x + side, y + side)


def feature(coordinates=None, kind="Polygon", **properties):
    ring = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
    coordinates = [ring] if coordinates is None else coordinates
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def save(path, document):
    path.write_text(json.dumps(document))
    return path


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def same_shape(one, other):
    return shapely.hausdorff_distance(one, other) <= 0.01 and one.area == pytest.approx(
        other.area, rel=0.01
    )


# --- regions, there and back -----------------------------------------------------


@pytest.fixture
def annotations():
    ring = (
        shapely.Point(100.123, 200.456)
        .buffer(50)
        .difference(shapely.Point(100, 200).buffer(20))
    )
    both = shapely.MultiPolygon([square(500, 500), square(600, 600)])
    return [
        Annotation(square(4200, 27300, 224), "DCIS", (217, 56, 30), name="left one"),
        Annotation(ring, "Stroma", (0, 158, 115)),
        Annotation(both, "DCIS", (217, 56, 30)),
        Annotation(square(-7.5, -3.25)),
    ]


@pytest.mark.parametrize("name", ["r.geojson", "r.json", "r.geojson.gz"])
def test_regions_come_back(tmp_path, annotations, name):
    write_annotations(tmp_path / name, annotations)
    found = read_annotations(tmp_path / name)
    assert len(found) == len(annotations)
    for new, old in zip(found, annotations, strict=True):
        assert same_shape(new.roi, old.roi)
        assert (new.class_name, new.name, new.id) == (old.class_name, old.name, old.id)
        assert new.color == old.color
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_gz_names_are_really_compressed(tmp_path, annotations):
    write_annotations(tmp_path / "r.geojson.gz", annotations)
    document = json.loads(gzip.decompress((tmp_path / "r.geojson.gz").read_bytes()))
    assert len(document["features"]) == 4


def test_no_regions_come_back_as_none(tmp_path):
    write_annotations(tmp_path / "r.geojson", [])
    assert read_annotations(tmp_path / "r.geojson") == []


def test_bounds_are_taken_off_and_added(tmp_path, annotations):
    path = tmp_path / "r.geojson"
    write_annotations(path, annotations, bounds_xy=(1000, 20))
    first = json.loads(path.read_text())["features"][0]["geometry"]["coordinates"][0]
    assert np.min(first, axis=0).tolist() == [3200, 27280]
    found = read_annotations(path, bounds_xy=(1000, 20))
    assert all(
        same_shape(new.roi, old.roi)
        for new, old in zip(found, annotations, strict=True)
    )


def test_every_class_has_one_colour_though_none_was_given(tmp_path):
    given = [
        Annotation(square(), "A"),
        Annotation(square(), "B", OKABE_ITO[0]),
        Annotation(square(), "A"),
        Annotation(square(), "C"),
    ]
    write_annotations(tmp_path / "r.json", given)
    colors = [a.color for a in read_annotations(tmp_path / "r.json")]
    assert colors == [OKABE_ITO[1], OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[2]]


@pytest.mark.parametrize("canary", CANARIES)
def test_odd_names_come_back(tmp_path, canary):
    path = tmp_path / "r.geojson"
    write_annotations(path, [Annotation(square(), canary, name=canary)])
    (found,) = read_annotations(path)
    assert (found.class_name, found.name) == (canary, canary)
    assert [p.name for p in tmp_path.iterdir()] == ["r.geojson"]


@pytest.mark.parametrize("canary", CANARIES)
def test_qupath_accepts_every_class_name(canary):
    name = qupath_name(canary)
    # What qupath.lib.objects.classes.PathClass refuses with an exception.
    assert "\n" not in name
    assert "\r" not in name
    assert all(part.strip() for part in name.split(":"))
    assert qupath_name(name) == name


def test_a_class_renamed_in_qupath_is_renamed(tmp_path):
    path = tmp_path / "r.geojson"
    write_annotations(path, [Annotation(square(), "two\nlines")])
    document = json.loads(path.read_text())
    properties = document["features"][0]["properties"]
    assert properties["classification"]["name"] == "two lines"
    properties["classification"]["name"] = "DCIS"
    (found,) = read_annotations(save(path, document))
    assert found.class_name == "DCIS"


# --- files of others -------------------------------------------------------------


@pytest.mark.parametrize(
    ("classification", "class_name", "color"),
    [
        ("Tumor", "Tumor", None),
        ({"name": "Tumor", "color": [200, 0, 0]}, "Tumor", (200, 0, 0)),
        ({"name": "Tumor", "color": [200, 0, 0, 90]}, "Tumor", (200, 0, 0)),
        ({"names": ["Tumor", "DCIS"], "color": [1, 2, 3]}, "Tumor: DCIS", (1, 2, 3)),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor", (200, 0, 0)),
        (
            {"name": "Positive", "colorRGB": -1, "parentClass": {"name": "Tumor"}},
            "Tumor: Positive",
            (255, 255, 255),
        ),
        ({"name": "Tumor", "color": ["red"]}, "Tumor", None),
        ({"name": "Tumor", "color": [1, 2, 999]}, "Tumor", None),
        ({}, "", None),
        (None, "", None),
        (7, "", None),
    ],
)
def test_all_ways_to_write_a_class(tmp_path, classification, class_name, color):
    document = collection(feature(classification=classification))
    (found,) = read_annotations(save(tmp_path / "r.json", document))
    assert (found.class_name, found.color) == (class_name, color)


def test_the_objects_own_colour_is_taken_where_the_class_has_none(tmp_path):
    document = collection(feature(classification="A", color=[9, 8, 7]))
    assert read_annotations(save(tmp_path / "r.json", document))[0].color == (9, 8, 7)


@pytest.mark.parametrize("wrap", [list, collection, lambda f: f])
def test_a_collection_an_array_or_one_feature(tmp_path, wrap):
    one = feature()
    document = wrap([one]) if wrap is list else wrap(one)
    assert len(read_annotations(save(tmp_path / "r.json", document))) == 1


def test_a_byte_order_mark_does_not_matter(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([feature()]), encoding="utf-8-sig")
    assert len(read_annotations(path)) == 1


def test_regions_inside_regions_are_read(tmp_path):
    document = collection(feature(childObjects=[feature(children=[feature()])]))
    assert len(read_annotations(save(tmp_path / "r.json", document))) == 3


def test_a_third_coordinate_and_an_open_ring_are_understood(tmp_path):
    ring = [[0, 0, 5], [4, 0, 5], [4, 4, 5], [0, 4, 5]]
    (found,) = read_annotations(save(tmp_path / "r.json", [feature([ring])]))
    assert found.roi.area == 16


def test_an_outline_that_crosses_itself_is_repaired(tmp_path):
    bow_tie = [[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]]
    (found,) = read_annotations(save(tmp_path / "r.json", [feature([bow_tie])]))
    assert found.roi.is_valid
    assert found.roi.area == pytest.approx(8)


def test_ids_are_kept_made_and_never_doubled(tmp_path):
    given = str(uuid.uuid4())
    features = [
        {**feature(), "id": given},
        {**feature(), "id": given},
        {**feature(), "id": "PathAnnotationObject"},
        feature(),
        {**feature(), "id": 7},
    ]
    path = save(tmp_path / "r.json", features)
    ids = [a.id for a in read_annotations(path)]
    assert ids[0] == given
    assert len(set(ids)) == 5
    assert ids == [a.id for a in read_annotations(path)]


def test_what_is_no_region_is_counted_and_told(tmp_path, caplog):
    line = [[0, 0], [4, 4], [8, 8], [0, 0]]
    path = save(
        tmp_path / "r.json",
        [
            feature(classification="A"),
            feature([1, 2], "Point"),
            feature([line]),
            feature([]),
            feature([[]]),
            feature([[[0, 0], [1, 1]]]),
            feature(objectType="tile"),
            feature(objectType="cell"),
            {"type": "Feature", "geometry": None, "properties": None},
        ],
    )
    told = []
    assert len(read_annotations(path, on_skipped=told.append)) == 1
    assert "8 of 9" in told[0]
    with caplog.at_level(logging.WARNING):
        read_annotations(path)
    assert caplog.messages == told


def test_predictions_are_no_regions(tmp_path):
    path = save(tmp_path / "r.json", [feature(objectType="tile")] * 3)
    with pytest.raises(AnnotationError, match="3 objects, and none is a region"):
        read_annotations(path)


@pytest.mark.parametrize("entry", ["r.geojson", "folder/r.JSON"])
def test_a_zip_with_one_file_is_read(tmp_path, entry):
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(entry, json.dumps([feature()]))
        archive.writestr("__MACOSX/._r.geojson", "x")
        archive.writestr("readme.txt", "x")
    assert len(read_annotations(path)) == 1


def test_a_zip_with_two_files_is_refused(tmp_path):
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.geojson", "[]")
        archive.writestr("b.geojson", "[]")
    with pytest.raises(AnnotationError, match="2 GeoJSON files, not one"):
        read_annotations(path)


def test_a_zip_in_an_unusual_compression_is_refused(tmp_path):
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.geojson", "[]")
    with pytest.raises(AnnotationError, match="Unpack it first"):
        read_annotations(path)


@pytest.mark.parametrize("pack", ["plain", "gzip", "zip"])
def test_a_bomb_is_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(qupath, "MAX_BYTES", 1024**2)
    data, path = b"[" + b" " * 3 * 1024**2 + b"]", tmp_path / "r.json"
    if pack == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.geojson", data)
    else:
        path.write_bytes(gzip.compress(data) if pack == "gzip" else data)
    with pytest.raises(AnnotationError, match="more than 1 MB"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no JSON"),
        (b"slide", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[" + b"9" * 5000 + b"]", "JSON|feature should"),
        (b"3", "no list of features"),
        (b"null", "no list of features"),
        (b"{}", "no list of features"),
        (b'{"type":"FeatureCollection"}', "no list of features"),
        (b'{"type":"FeatureCollection","features":{}}', "no list of features"),
        (b"[1]", "feature should"),
        (b"\x1f\x8b\x08\x00garbage", "cannot be read|damaged"),
        (b"PK\x03\x04garbage", "damaged"),
        (gzip.compress(b"[]" * 999, mtime=0)[:-9], "cannot be read|damaged"),
    ],
)
def test_files_that_are_not_understood(tmp_path, content, told):
    path = tmp_path / "r.geojson"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=told) as caught:
        read_annotations(path)
    assert str(caught.value).startswith("r.geojson")
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "coordinates",
    [
        [[[0, 0], [4, 0], [float("nan"), 4]]],
        [[[0, 0], [4, 0], [float("inf"), 4]]],
        [[[0, 0], [4, 0], [10**400, 4]]],
        [[[0, 0], [4, 0], ["x", 4]]],
        [[[0, 0], [4, 0], [None, 4]]],
        [[[0, 0], [4, 0], [1]]],
        [[[0, 0], [4, 0], {}]],
        [[0, 0], [4, 0], [4, 4]],
        7,
        "text",
    ],
)
def test_coordinates_that_are_not_understood(tmp_path, coordinates):
    path = save(tmp_path / "r.json", [feature(), feature(coordinates)])
    with pytest.raises(AnnotationError, match=r"r\.json, object 2: its coordinates"):
        read_annotations(path)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.geojson", tmp_path, tmp_path / "nul\0"):
        with pytest.raises(AnnotationError, match="cannot be read"):
            read_annotations(path)


# --- predictions -----------------------------------------------------------------


def make_table(**changes) -> TileTable:
    boxes = np.array([[4200, 27300, 4424, 27524], [4424.25, 27300, 4648.5, 27524]])
    values = {
        "boxes_l0": boxes,
        "rows": np.array([3, 3]),
        "cols": np.array([0, 1]),
        "xy_um": boxes[:, :2] * 0.5,
        "probabilities": np.array([[0.125, 0.875], [np.nan, np.nan]], np.float32),
        "class_names": ("Fibroadenoma", "Ductal carcinoma"),
        "class_colors": ((47, 127, 193), (217, 56, 30)),
        "slide_name": "C2",
        "slide_id": "51de",
        "encoder_id": "enc",
        "probe_id": "probe",
        "mpp": 0.5,
        "mpp_source": "given",
        "synthetic": True,
    }
    return TileTable(**{**values, **changes})


def refuse_constant(name):
    raise AssertionError(f"bare {name} is no JSON")


def read_features(path):
    text = path.read_text("ascii")
    return json.loads(text, parse_constant=refuse_constant)["features"]


def test_a_tile_is_written_as_qupath_wants_it(tmp_path):
    write_predictions(tmp_path / "p.geojson", make_table())
    tile, unread = read_features(tmp_path / "p.geojson")
    ring = [[4200, 27300], [4424, 27300], [4424, 27524], [4200, 27524], [4200, 27300]]
    entropy = -sum(p * np.log(p) for p in (0.125, 0.875))
    assert tile == {
        "type": "Feature",
        "id": str(uuid.UUID(tile["id"])),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "tile",
            "name": "tile 3, 0",
            "isLocked": True,
            "classification": {"name": "Ductal carcinoma", "color": [217, 56, 30]},
            "measurements": {
                "prob: Fibroadenoma": 0.125,
                "prob: Ductal carcinoma": 0.875,
                "entropy": pytest.approx(entropy, abs=1e-6),
            },
            "metadata": {
                "slide": "C2",
                "model": "histomae",
                "model_sha256": "enc",
                "probe": "probe",
                "mpp": 0.5,
                "mpp_source": "given",
                "synthetic": True,
            },
        },
    }
    assert uuid.UUID(tile["id"]).version == 5
    assert set(unread["properties"]["measurements"].values()) == {"NaN"}
    assert "classification" not in unread["properties"]
    assert unread["geometry"]["coordinates"][0][0] == [4424.25, 27300]


def ids_of(path, table, **options):
    write_predictions(path, table, **options)
    return [one["id"] for one in read_features(path)]


def test_the_id_is_of_slide_encoder_and_place(tmp_path):
    path = tmp_path / "p.geojson"
    ids = ids_of(path, make_table())
    assert len(set(ids)) == 2
    assert ids == ids_of(path, make_table(probe_id="taught more"))
    assert ids == ids_of(path, make_table(), bounds_xy=(100, 50))
    assert not set(ids) & set(ids_of(path, make_table(slide_id="other")))
    assert not set(ids) & set(ids_of(path, make_table(encoder_id="other")))


def test_bounds_are_taken_off_tiles(tmp_path):
    write_predictions(tmp_path / "p.geojson", make_table(), bounds_xy=(4000, 27000))
    ring = read_features(tmp_path / "p.geojson")[0]["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1] == [200, 300]


@pytest.mark.parametrize("canary", CANARIES)
def test_odd_class_names_are_written_safely(tmp_path, canary):
    table = make_table(class_names=("a", canary), slide_name=canary)
    write_predictions(tmp_path / "p.geojson", table)
    properties = read_features(tmp_path / "p.geojson")[0]["properties"]
    assert properties["classification"]["name"] == qupath_name(canary)
    assert properties["measurements"][f"prob: {canary}"] == 0.875
    assert properties["metadata"]["slide"] == canary
    assert [p.name for p in tmp_path.iterdir()] == ["p.geojson"]


def test_infinities_are_text(tmp_path):
    table = make_table(probabilities=np.array([[np.inf, 0], [0, -np.inf]]))
    write_predictions(tmp_path / "p.geojson", table)
    first, second = read_features(tmp_path / "p.geojson")
    assert first["properties"]["measurements"]["prob: Fibroadenoma"] == "inf"
    assert second["properties"]["measurements"]["prob: Ductal carcinoma"] == "-inf"


def test_no_tiles_are_a_file_too(tmp_path):
    nothing = make_table(
        boxes_l0=np.zeros((0, 4)),
        rows=np.zeros(0, int),
        cols=np.zeros(0, int),
        xy_um=np.zeros((0, 2)),
        probabilities=np.zeros((0, 2)),
    )
    write_predictions(tmp_path / "p.geojson", nothing)
    assert read_features(tmp_path / "p.geojson") == []
