"""The pixel size in the OME-XML of an OME-TIFF, read without trusting it.

Only the first element that has one is looked for, within the first ``MOST_BYTES``. No
document type is accepted, so there are no entities to expand or to fetch.

Source: OME-XML schema 2016-06, element Pixels.
"""

from __future__ import annotations

from xml.parsers import expat

MOST_BYTES = 1 << 20
PIECE_BYTES = 1 << 16
#: µm in a unit of length. The schema's own default is µm.
UNITS_UM = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


class _Found(Exception):
    def __init__(self, attributes: dict[str, str]) -> None:
        super().__init__()
        self.attributes = attributes


def pixel_size_um(text: str) -> tuple[float, float] | None:
    """Return (x, y) µm/px of the first picture of an OME-XML, or None.

    Whatever is no OME-XML, damaged or hostile has none.
    """
    if "<OME" not in text[:4096]:
        return None
    data = text[:MOST_BYTES].encode(errors="replace")
    try:
        _look(data)
    except _Found as found:
        return _size_in(found.attributes)
    except (expat.ExpatError, ValueError):
        return None
    return None


def _look(data: bytes) -> None:
    """Read until an element has a pixel size."""
    parser = expat.ParserCreate("utf-8")

    def element(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(":")[2] == "Pixels" and "PhysicalSizeX" in attributes:
            raise _Found(attributes)

    def refuse(*_: object) -> None:
        raise ValueError("a document type")

    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = refuse
    for start in range(0, len(data), PIECE_BYTES):
        parser.Parse(data[start : start + PIECE_BYTES])


def _size_in(attributes: dict[str, str]) -> tuple[float, float] | None:
    x = attributes["PhysicalSizeX"]
    y = attributes.get("PhysicalSizeY", x)
    unit_x, unit_y = (
        UNITS_UM.get(attributes.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"
    )
    if unit_x is None or unit_y is None:
        return None
    try:
        return float(x) * unit_x, float(y) * unit_y
    except ValueError:
        return None
