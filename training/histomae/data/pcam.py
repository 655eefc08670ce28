"""PatchCamelyon from its HDF5 files (Veeling et al., MICCAI 2018).

``camelyonpatch_level_2_split_train_x.h5`` holds pictures uint8 (n, 96, 96, 3), the
file ``_y.h5`` their labels, and ``_meta.csv`` the slides that they are from.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.layouts import PAPERS, Kind
from histomae.data.small_sets import BENIGN, MALIGNANT
from histomae.data.tables import read_csv
from histomae.errors import DataSetError

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.data.labelled import Pixels

    Box = tuple[float, float, float, float]

#: µm per pixel: CAMELYON16's 0.243 at level 0, of which this is level 2.
MPP = 0.972
SIDE_PX = 96
#: Level-0 pixels of a pixel.
DOWNSAMPLE = 4
STEM = "camelyonpatch_level_2_split_"
#: What files call the sides.
FILE_SIDES = {"train": "train", "val": "valid", "test": "test"}
CLASSES = ClassSet(("No tumour", "Tumour"), (BENIGN, MALIGNANT))


def is_pcam(path: Path) -> bool:
    """Tell whether a folder holds the files of PatchCamelyon, packed or not."""
    return path.is_dir() and next(path.rglob(f"{STEM}*_x.h5*"), None) is not None


def read_pcam(root: Path, task: str) -> LabelledSet:
    """List the pictures of the files in a folder; the labels are read."""
    pictures: list[LabelledPicture] = []
    notes: list[str] = []
    for side, word in FILE_SIDES.items():
        path = next(iter(sorted(root.rglob(f"{STEM}{word}_x.h5"))), None)
        if path is None:
            notes.append(f"{STEM}{word}_x.h5 is missing: there is no {side} side.")
            continue
        labels = _labels(path)
        places = _places(path, len(labels))
        if not places:
            notes.append(
                f"{STEM}{word}_meta.csv is missing: the slides of the {side} side are "
                "not known, and each picture counts as a patient of its own."
            )
        alone = [(f"{side} {row}", None) for row in range(len(labels))]
        pictures += [
            LabelledPicture(
                path=path,
                label=int(label),
                patient=name,
                slide=name if places else "",
                box_l0=box,
                mpp=MPP,
                side=side,
                row=row,
            )
            for row, (label, (name, box)) in enumerate(
                zip(labels, places or alone, strict=True)
            )
        ]
    if not pictures:
        raise DataSetError(
            f"{root} holds no file {STEM}train_x.h5. Choose the folder of "
            "PatchCamelyon, and unpack its files (.gz)."
        )
    return LabelledSet(
        name="PatchCamelyon",
        root=root,
        classes=CLASSES,
        pictures=tuple(pictures),
        read=read_row,
        notes=tuple(notes),
    )


def _labels(path: Path) -> np.ndarray[Any, Any]:
    """Return the label of each picture, int (n,), checked against the pictures."""
    beside = path.with_name(path.name.replace("_x.h5", "_y.h5"))
    shape = _array(path, "x").shape
    labels = np.asarray(_array(beside, "y")).reshape(-1)
    if shape != (len(labels), SIDE_PX, SIDE_PX, 3):
        raise DataSetError(
            f"{path.name} holds pictures {shape}, and {beside.name} {len(labels)} "
            "labels. Bring the original files back."
        )
    if not np.isin(labels, (0, 1)).all():
        raise DataSetError(
            f"{beside.name} holds other labels than 0 and 1. Bring the original back."
        )
    return labels


def _places(path: Path, count: int) -> list[tuple[str, Box | None]]:
    """Return the slide of each picture, and its box; none where there is no table."""
    table = path.with_name(path.name.replace("_x.h5", "_meta.csv"))
    if not table.exists():
        return []
    rows, columns = read_csv(table)
    if "wsi" not in columns or len(rows) != count:
        raise DataSetError(
            f"{table.name} does not name the slide (wsi) of each of the {count} "
            "pictures. Bring the original back, or remove it."
        )
    if not {"coord_x", "coord_y"} <= columns:
        return [(row["wsi"], None) for row in rows]
    return [(row["wsi"], _box(row)) for row in rows]


def _box(row: dict[str, str]) -> Box:
    x, y = float(row["coord_x"]), float(row["coord_y"])
    return x, y, x + SIDE_PX * DOWNSAMPLE, y + SIDE_PX * DOWNSAMPLE


def read_row(picture: LabelledPicture) -> Pixels:
    """Return one picture of a file, uint8 (96, 96, 3)."""
    try:
        return np.asarray(_array(picture.path, "x")[picture.row], np.uint8)
    except (OSError, ValueError) as error:
        raise DataSetError(
            f"{picture.name} cannot be read ({error}). Bring the original file back."
        ) from error


def _array(path: Path, name: str) -> Any:
    stat = path.stat() if path.exists() else None
    return _opened(path, stat and (stat.st_mtime_ns, stat.st_size), name)


@lru_cache(maxsize=6)
def _opened(path: Path, version: tuple[int, int] | None, name: str) -> Any:
    """Return an array of a file, which stays open for the next picture."""
    import h5py

    try:
        return h5py.File(path, "r")[name]
    except (OSError, KeyError) as error:
        raise DataSetError(
            f"{path.name} cannot be read ({error}). Bring the original file back."
        ) from error


def _side(data: LabelledSet, picture: LabelledPicture) -> str:
    return picture.side


PCAM = Kind(
    name="pcam",
    title="PatchCamelyon, metastases in lymph nodes",
    tasks={"binary": CLASSES},
    layout="The folder of camelyonpatch_level_2_split_train_x.h5 and the others.",
    recognises=is_pcam,
    read=read_pcam,
    disk_gb=9,
    counts={"train": 262144, "val": 32768, "test": 32768},
    part=_side,
    besides=PAPERS + rf"|{STEM}\w+\.h5(\.gz)?",
    citation=(
        "Veeling et al., Rotation equivariant CNNs for digital pathology. MICCAI 2018. "
        "doi:10.1007/978-3-030-00934-2_24"
    ),
    address="https://github.com/basveeling/pcam",
    flaws=(
        "PatchCamelyon names slides, no patients: a slide counts as one. The label is "
        "of the middle 32 x 32 px alone.",
    ),
)
