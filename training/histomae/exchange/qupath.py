"""GeoJSON as QuPath reads and writes it: regions in and out, what was found out.

Coordinates in these files are level-0 pixels (x, y). QuPath crops some slides to their
``openslide.bounds`` and counts from that corner: ``bounds_xy`` is that corner, taken
off on writing and added on reading; (0, 0) for the slide's own origin.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import struct
import uuid
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from histomae.data.classes import next_color
from histomae.errors import AnnotationError
from histomae.files import write_beside
from histomae.slides.annotations import NAMESPACE, Annotation, valid_roi

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TextIO

    from histomae.exchange.marks import MarkTable
    from histomae.exchange.tables import TileTable

    Color = tuple[int, int, int]

_log = logging.getLogger(__name__)

#: A file that unpacks to more is no file of regions.
MAX_BYTES = 256 * 1024**2
#: Where a class name that QuPath would refuse is kept as it was.
TRUE_NAME = "histomae_class"
#: Objects that no person drew.
NOT_DRAWN = frozenset(
    {"tile", "cell", "detection", "tmaCore", "tma_core", "root"}
    | {"PathTileObject", "PathCellObject", "PathDetectionObject"}
    | {"TMACoreObject", "PathRootObject"}
)
CURE = "Export regions from QuPath as GeoJSON, or choose another file."


# --- writing ---------------------------------------------------------------------


def write_annotations(
    path: str | os.PathLike[str],
    annotations: Sequence[Annotation],
    *,
    bounds_xy: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Write regions that QuPath opens as annotations; ``.gz`` names are compressed.

    Every class gets a colour, without which QuPath refuses the file.
    """
    colors = _colors_of_classes(annotations)
    features = (_annotation_feature(a, colors, bounds_xy) for a in annotations)
    _write_features(Path(path), features)


def write_predictions(
    path: str | os.PathLike[str],
    table: TileTable,
    *,
    bounds_xy: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Write predictions that QuPath opens as tiles, locked, with measurements.

    The id of a tile is made from slide, encoder and place, so that predictions of a
    classifier that was taught more take the place of the older ones.
    """
    measured, predicted = _measurements(table), table.predicted
    facts = _facts(table)
    features = (
        _feature(
            _tile_id(table, i),
            {
                "type": "Polygon",
                "coordinates": [_box_ring(table.boxes_l0[i], bounds_xy)],
            },
            {
                "objectType": "tile",
                "name": f"tile {table.rows[i]}, {table.cols[i]}",
                "isLocked": True,
                **_class_of_tile(table, likely),
                "measurements": dict(zip(measured, values, strict=True)),
                "metadata": facts,
            },
        )
        for i, (likely, values) in enumerate(
            zip(predicted, zip(*measured.values(), strict=True), strict=True)
        )
    )
    _write_features(Path(path), features)


def write_marks(
    path: str | os.PathLike[str],
    table: MarkTable,
    *,
    bounds_xy: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Write what a segmenter found, that QuPath opens as detections with their outline.

    The id of one is made from slide, segmenter and place. A person drew none of them,
    and so none is read back as a region.
    """
    unit = "px^2" if table.mpp is None else "µm^2"
    facts = {
        "slide": table.slide_name,
        "model": "histomae",
        "segmenter": table.segmenter_id,
        "synthetic": table.synthetic,
    }

    def feature(number: int) -> dict[str, Any]:
        label = table.labels[number]
        x, y = table.centres_l0[number]
        place = f"{table.slide_id}|{table.segmenter_id}|{label}|{x:.2f}|{y:.2f}"
        name, color = table.class_names[label], table.class_colors[label]
        return _feature(
            str(uuid.uuid5(NAMESPACE, place)),
            _geometry(table.outlines_l0[number], bounds_xy),
            {
                "objectType": "detection",
                "classification": _classification(name, color),
                "measurements": {f"Area {unit}": _measurement(table.sizes[number])},
                "metadata": facts,
            },
        )

    _write_features(Path(path), (feature(number) for number in range(len(table))))


def _measurements(table: TileTable) -> dict[str, list[float | str]]:
    """Return the columns of numbers that QuPath shows, by name."""
    columns = {
        f"prob: {name}": column
        for name, column in zip(table.class_names, table.probabilities.T, strict=True)
    }
    columns["entropy"] = table.entropy
    return {name: [_measurement(v) for v in column] for name, column in columns.items()}


def _class_of_tile(table: TileTable, likely: int | None) -> dict[str, Any]:
    if likely is None:
        return {}
    name, color = table.class_names[likely], table.class_colors[likely]
    return {"classification": _classification(name, color)}


def _tile_id(table: TileTable, index: int) -> str:
    x, y = table.boxes_l0[index][:2]
    place = f"{table.slide_id}|{table.encoder_id}|{x:.2f}|{y:.2f}"
    return str(uuid.uuid5(NAMESPACE, place))


def _facts(table: TileTable) -> dict[str, str | float | bool]:
    """Return where the predictions come from; QuPath keeps plain values only."""
    return {
        "slide": table.slide_name,
        "model": "histomae",
        "model_sha256": table.encoder_id,
        "probe": table.probe_id,
        "mpp": table.mpp,
        "mpp_source": table.mpp_source,
        "synthetic": table.synthetic,
    }


def _annotation_feature(
    annotation: Annotation, colors: dict[str, Color], bounds_xy: tuple[float, float]
) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"}
    if annotation.name:
        properties["name"] = annotation.name
    if annotation.class_name:
        name = annotation.class_name
        properties["classification"] = _classification(name, colors[name])
        if qupath_name(name) != name:
            properties["metadata"] = {TRUE_NAME: name}
    geometry = _geometry(annotation.roi, bounds_xy)
    return _feature(annotation.id, geometry, properties)


def _feature(
    identity: str, geometry: dict[str, Any], properties: dict[str, Any]
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": identity,
        "geometry": geometry,
        "properties": properties,
    }


def _classification(name: str, color: Color) -> dict[str, Any]:
    return {"name": qupath_name(name), "color": [int(channel) for channel in color]}


def qupath_name(name: str) -> str:
    """Return a class name that QuPath accepts.

    It refuses a whole file for a line break in a name or an empty name, takes a colon
    for the sign between a class and its subclass, and strips spaces.
    """
    parts = [" ".join(part.split()) for part in name.split(":")]
    return ": ".join(part for part in parts if part) or "Unnamed"


def _colors_of_classes(annotations: Iterable[Annotation]) -> dict[str, Color]:
    """Return a colour per class: its first region's own, else one of the palette."""
    colors: dict[str, Color | None] = {}
    for annotation in annotations:
        known = colors.get(annotation.class_name)
        colors[annotation.class_name] = known or annotation.color
    for name, color in colors.items():
        if color is None:
            colors[name] = next_color([c for c in colors.values() if c])
    return {name: color for name, color in colors.items() if color}


def _geometry(roi: Any, bounds_xy: tuple[float, float]) -> dict[str, Any]:
    polygons = [
        [_ring(ring, bounds_xy) for ring in (polygon.exterior, *polygon.interiors)]
        for polygon in shapely.get_parts(roi)
    ]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _ring(ring: Any, bounds_xy: tuple[float, float]) -> list[list[float]]:
    points = np.round(shapely.get_coordinates(ring) - np.array(bounds_xy), 2)
    return [[_short(x), _short(y)] for x, y in points.tolist()]


def _box_ring(box: Any, bounds_xy: tuple[float, float]) -> list[list[float]]:
    edges = np.round(np.asarray(box, float) - [*bounds_xy, *bounds_xy], 2)
    x0, y0, x1, y1 = (_short(edge) for edge in edges.tolist())
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def _short(number: float) -> float:
    return int(number) if number.is_integer() else number


def _measurement(value: float) -> float | str:
    """Return a number for JSON, which has none for NaN and infinity: these as text."""
    value = float(value)
    if np.isfinite(value):
        return round(value, 6)
    return "NaN" if np.isnan(value) else "inf" if value > 0 else "-inf"


def _write_features(path: Path, features: Iterable[dict[str, Any]]) -> None:
    with write_beside(path) as beside, _text_file(beside, path.suffix == ".gz") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for number, feature in enumerate(features):
            text = json.dumps(feature, allow_nan=False, separators=(",", ":"))
            file.write(",\n" * bool(number) + text)
        file.write("]}\n")


@contextmanager
def _text_file(path: Path, compressed: bool) -> Iterator[TextIO]:
    with path.open("wb") as raw:
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if compressed else raw
        with io.TextIOWrapper(packed, encoding="ascii", newline="\n") as text:
            yield text


# --- reading ---------------------------------------------------------------------


def read_annotations(
    path: str | os.PathLike[str],
    *,
    bounds_xy: tuple[float, float] = (0.0, 0.0),
    on_skipped: Callable[[str], None] = _log.warning,
) -> list[Annotation]:
    """Read regions from GeoJSON: plain, compressed (.gz) or the one file in a .zip.

    Parameters
    ----------
    bounds_xy
        Corner that the file counts from, level-0 pixels.
    on_skipped
        Told, in a sentence, how many objects are no regions: points, lines, tiles,
        cells, and outlines without area.

    Raises
    ------
    AnnotationError
        If the file cannot be read or understood, or has objects but no region.
    """
    path = Path(path)
    features = _features(_parsed(path), path.name)
    annotations: list[Annotation] = []
    ids: set[str] = set()
    for number, feature in enumerate(features, start=1):
        try:
            roi = _roi(feature, bounds_xy)
        except AnnotationError as error:
            raise AnnotationError(f"{path.name}, object {number}: {error}") from error
        if roi is not None:
            annotations.append(_annotation(feature, roi, ids))
            ids.add(annotations[-1].id)
    skipped = len(features) - len(annotations)
    if skipped and not annotations:
        raise AnnotationError(
            f"{path.name} has {len(features)} objects, and none is a region that a "
            f"person drew. {CURE}"
        )
    if skipped:
        on_skipped(
            f"{path.name}: {len(annotations)} regions read; {skipped} of "
            f"{len(features)} objects left out, which are no regions (points, lines, "
            "tiles, cells, or outlines without area)."
        )
    return annotations


def _parsed(path: Path) -> Any:
    """Return the JSON of a file, unpacked if need be."""
    try:
        data = _bytes(path)
    except (OSError, EOFError, ValueError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise AnnotationError(
            f"{path.name} cannot be read: {reason}. {CURE}"
        ) from error
    except (zlib.error, zipfile.BadZipFile) as error:
        raise AnnotationError(
            f"{path.name} is damaged ({error}). Export it again."
        ) from error
    if len(data) > MAX_BYTES:
        raise AnnotationError(
            f"{path.name} holds more than {MAX_BYTES // 1024**2} MB. Export only the "
            "regions, without cells and other detections."
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path.name} is no JSON ({error}). {CURE}") from error


def _bytes(path: Path) -> bytes:
    """Return what a file holds, unpacked; at most one byte more than is allowed."""
    with path.open("rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=raw) as packed:
                return packed.read(MAX_BYTES + 1)
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(raw) as archive:
                return _only_entry(archive, path.name)
        return raw.read(MAX_BYTES + 1)


def _only_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    entries = [
        entry
        for entry in archive.infolist()
        if entry.filename.lower().endswith((".geojson", ".json"))
        and not entry.filename.startswith("__MACOSX/")
    ]
    if len(entries) != 1:
        raise AnnotationError(
            f"{name} holds {len(entries)} GeoJSON files, not one. Unpack it and choose "
            "one of them."
        )
    encrypted = entries[0].flag_bits & 1
    plain = entries[0].compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if encrypted or not plain:
        raise AnnotationError(
            f"{name} is packed in a way that cannot be read here (a password, or an "
            "unusual compression). Unpack it first."
        )
    with archive.open(entries[0]) as entry:
        return entry.read(MAX_BYTES + 1)


def _features(document: Any, name: str) -> list[dict[str, Any]]:
    """Return all objects of a document, those inside other objects too."""
    if isinstance(document, dict) and document.get("type") == "Feature":
        document = [document]
    if isinstance(document, dict):
        document = document.get("features")
    if not isinstance(document, list):
        raise AnnotationError(
            f"{name} is JSON, but has no list of features as GeoJSON has. {CURE}"
        )
    found: list[dict[str, Any]] = []
    waiting = document[::-1]
    while waiting:
        feature = waiting.pop()
        if not isinstance(feature, dict):
            raise AnnotationError(
                f"{name}: {str(feature)[:40]!r} stands where a feature should. {CURE}"
            )
        found.append(feature)
        properties = _properties(feature)
        children = properties.get("childObjects", properties.get("children"))
        if isinstance(children, list):
            waiting.extend(children[::-1])
    return found


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _roi(feature: dict[str, Any], bounds_xy: tuple[float, float]) -> Any:
    """Return the area of an object that a person drew; None for any other."""
    properties = _properties(feature)
    kind = properties.get("objectType", properties.get("object_type"))
    geometry = feature.get("geometry")
    if kind in NOT_DRAWN or not isinstance(geometry, dict):
        return None
    coordinates: Any = geometry.get("coordinates")
    if geometry.get("type") == "Polygon":
        coordinates = [coordinates]
    elif geometry.get("type") != "MultiPolygon":
        return None
    try:
        polygons = [_polygon(rings, bounds_xy) for rings in coordinates]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise AnnotationError(
            f"its coordinates are not understood ({error}). {CURE}"
        ) from error
    areas = [polygon for polygon in polygons if polygon is not None]
    try:
        return valid_roi(shapely.MultiPolygon(areas))
    except AnnotationError:  # they are finite, so there is no area
        return None


def _polygon(rings: list[Any], bounds_xy: tuple[float, float]) -> Any:
    """Return a polygon of an outline and holes; None if the outline is a line."""
    outlines = [_points(ring, bounds_xy) for ring in rings]
    if not outlines or len(outlines[0]) < 3:
        return None
    holes = [points for points in outlines[1:] if len(points) >= 3]
    return shapely.Polygon(outlines[0], holes)


def _points(ring: list[Any], bounds_xy: tuple[float, float]) -> Any:
    """Return points (P, 2); a third number (z) is left out."""
    points = np.array([(point[0], point[1]) for point in ring], np.float64)
    if not np.isfinite(points).all():
        raise ValueError("a number is not finite")
    return points.reshape(-1, 2) + np.array(bounds_xy)


def _annotation(feature: dict[str, Any], roi: Any, ids: set[str]) -> Annotation:
    properties = _properties(feature)
    given = properties.get("classification")
    class_name = _class_name(given)
    metadata = properties.get("metadata")
    true_name = metadata.get(TRUE_NAME) if isinstance(metadata, dict) else None
    if isinstance(true_name, str) and qupath_name(true_name) == class_name:
        class_name = true_name
    color = (
        given.get("color", given.get("colorRGB")) if isinstance(given, dict) else None
    )
    name = properties.get("name")
    return Annotation(
        roi,
        class_name,
        _color(color) or _color(properties.get("color")),
        _id(feature, ids),
        name if isinstance(name, str) else "",
    )


def _class_name(given: Any) -> str:
    """Return the class from any of the ways in which QuPath has written it."""
    if isinstance(given, str):
        return given
    if not isinstance(given, dict):
        return ""
    names = [given.get("name")]
    if isinstance(given.get("names"), list):
        names = given["names"]
    parent = given.get("parentClass")
    while isinstance(parent, dict):  # before version 0.4
        names = [parent.get("name"), *names]
        parent = parent.get("parentClass")
    return ": ".join(name for name in names if isinstance(name, str))


def _color(value: Any) -> Color | None:
    """Return red, green, blue from a list or from one packed number."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value >> 16 & 255, value >> 8 & 255, value & 255]
    if not isinstance(value, list) or len(value) not in (3, 4):
        return None
    if not all(isinstance(channel, int) and 0 <= channel <= 255 for channel in value):
        return None
    return value[0], value[1], value[2]


def _id(feature: dict[str, Any], ids: set[str]) -> str:
    """Return the object's UUID, or one made from its content; none of ``ids``."""
    try:
        identity = str(uuid.UUID(feature["id"]))
    except (KeyError, ValueError, AttributeError, TypeError):
        identity = str(uuid.uuid5(NAMESPACE, json.dumps(feature, sort_keys=True)))
    while identity in ids:
        identity = str(uuid.uuid5(NAMESPACE, identity))
    return identity
