"""MoNuSeg from its official layout: pictures of nuclei, outlines in Aperio's XML.

Kumar et al., IEEE TMI 2017 and 2020. A picture is ``Tissue Images/TCGA-….tif``, its
outlines stand in ``Annotations/TCGA-….xml``; in the test data both lie side by side.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from histomae.data.classes import ClassSet
from histomae.data.marks import MarkedPicture, MarkedSet, Marks, marks_of
from histomae.data.pictures import read_picture
from histomae.data.words import some_have
from histomae.errors import DataSetError

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
NUCLEI = ClassSet(("nucleus",), ((0, 114, 178),))
#: Twelve characters of a barcode name the patient.
PATIENT = re.compile(r"TCGA-\w{2}-\w{4}")
#: An outline file of a thousand nuclei has 2 MB; more is none.
MOST_BYTES = 1 << 26


def read_monuseg(root: Path) -> MarkedSet:
    """Find the pictures below a folder that have outlines; none is opened.

    Raises
    ------
    DataSetError
        If there is none.
    """
    outlines = {path.stem: path for path in sorted(root.rglob("*.xml"))}
    pictures = {path.stem: path for path in sorted(root.rglob("*.tif"))}
    both = [name for name in pictures if name in outlines]
    if not both:
        raise DataSetError(
            f"{root} holds no picture (.tif) with outlines (.xml) of the same name. "
            "Choose the folder of MoNuSeg."
        )
    alone = sorted(pictures.keys() ^ outlines.keys())
    return MarkedSet(
        name="MoNuSeg",
        classes=NUCLEI,
        pictures=tuple(
            MarkedPicture(
                path=pictures[name],
                marks=(outlines[name],),
                patient=patient_of(name),
                side=_side(pictures[name].relative_to(root)),
            )
            for name in both
        ),
        read=read_marked,
        notes=(
            "MoNuSeg is of nominal 40x; its files do not tell micrometres.",
            *([f"{some_have(alone)} no partner and are left out."] if alone else ()),
        ),
    )


def _side(path: Path) -> str:
    """Return the official side of a picture, by its folders below the root."""
    return "test" if "test" in path.parent.as_posix().lower() else "train"


def patient_of(name: str) -> str:
    """Return the patient in a TCGA barcode; another name stands for itself."""
    found = PATIENT.match(name)
    return found[0] if found else name


def read_marked(picture: MarkedPicture) -> tuple[Pixels, Marks]:
    """Return a picture and its nuclei.

    Raises
    ------
    DataSetError
        If a file of it cannot be read.
    """
    pixels = read_picture(picture.path)
    outlines = [(xy, 0) for path in picture.marks for xy in read_outlines(path)]
    return pixels, marks_of(outlines, pixels.shape[:2])


def read_outlines(path: Path) -> list[Array]:
    """Return the outlines in a file of Aperio's ImageScope, float64 (m, 2) of (x, y).

    Raises
    ------
    DataSetError
        If the file is none, or damaged.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        text = path.read_bytes()
        # Entities can grow without bound, and ImageScope writes none.
        if b"<!" in text.replace(b"<!--", b""):
            raise ValueError("it declares types or entities")
        root = ElementTree.fromstring(text)
        rings = [
            np.array(
                [
                    (float(at.attrib["X"]), float(at.attrib["Y"]))
                    for at in region.iter("Vertex")
                ]
            )
            for region in root.iter("Region")
        ]
        if not all(np.isfinite(ring).all() for ring in rings):
            raise ValueError("a place is not finite")
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise DataSetError(
            f"{path.name} holds no outlines that can be read ({error!s:.200}). Bring "
            "the original file back, or remove it."
        ) from error
    return [ring for ring in rings if len(ring) >= 3]
