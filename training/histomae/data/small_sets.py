"""Data sets whose layout is told in a few lines: BACH, UCSB, NCT-CRC-HE.

BACH (ICIAR 2018): ``Photos/Benign/b001.tif``, 100 of each class. UCSB breast cancer
cell: ``ytma10_010704_benign1_ccd.tif``, the array, a date, the class. NCT-CRC-HE-100K
and CRC-VAL-HE-7K: ``TUM/TUM-AEPINLNQ.tif``; the second is the test side of the first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from histomae.data.classes import BACH_4, OKABE_ITO, ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.layouts import (
    Kind,
    any_named,
    find_named,
    no_patients,
    read_file,
)
from histomae.data.tables import read_csv
from histomae.data.words import some_are

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.data.classes import Color

BENIGN: Color = OKABE_ITO[4]
MALIGNANT: Color = OKABE_ITO[5]
BENIGN_MALIGNANT = ClassSet(("Benign", "Malignant"), (BENIGN, MALIGNANT))

# ---- BACH

BACH_MPP = 0.42
BACH_FOLDERS = ("normal", "benign", "insitu", "invasive")
BACH_PREFIX = ("n", "b", "is", "iv")
BACH_NAME = re.compile(r"(?P<class>n|b|is|iv)(?P<number>\d{3})\.tif")
BACH_TABLE = "microscopy_ground_truth.csv"


def read_bach(root: Path, task: str) -> LabelledSet:
    """Find the photos below a folder; the table of labels is compared where it is."""

    def understand(path: Path) -> LabelledPicture | None:
        match = BACH_NAME.fullmatch(path.name)
        folder = path.parent.name.lower().replace(" ", "")
        if match is None or folder not in BACH_FOLDERS:
            return None
        label = BACH_FOLDERS.index(folder)
        return LabelledPicture(path=path, label=label, patient=path.stem, mpp=BACH_MPP)

    found, notes = find_named(
        root,
        understand,
        of="BACH",
        example="Benign/b001.tif",
        choose="the folder Photos of ICIAR2018_BACH_Challenge",
    )
    odd = [p.path.name for p in found if _stands_elsewhere(p)]
    if odd:
        notes += (f"{some_are(odd)} in another folder than named; the folder counts.",)
    notes += _against_table(root, found)
    return LabelledSet(
        name="BACH",
        root=root,
        classes=BACH_4,
        pictures=tuple(found),
        read=read_file,
        notes=notes,
    )


def _stands_elsewhere(picture: LabelledPicture) -> bool:
    match = BACH_NAME.fullmatch(picture.path.name)
    return match is not None and BACH_PREFIX.index(match["class"]) != picture.label


def _against_table(root: Path, found: list[LabelledPicture]) -> tuple[str, ...]:
    """Say which photos the table of labels puts into another class than the folder."""
    table = next(iter(sorted(root.rglob(BACH_TABLE))), None)
    if table is None:
        return ()
    rows, columns = read_csv(table)
    lines = [tuple(row.values())[:2] for row in rows] + [tuple(columns)[:2]]
    told = {
        name.lower(): cell.lower().replace(" ", "")
        for line in lines
        if len(line) == 2
        for name, cell in (line, line[::-1])
        if name.lower().endswith(".tif")
    }
    torn = [
        picture.path.name
        for picture in found
        if told.get(picture.path.name, BACH_FOLDERS[picture.label])
        != BACH_FOLDERS[picture.label]
    ]
    if not torn:
        return ()
    return (f"{some_are(torn)} of another class in {table.name}; the folder counts.",)


BACH = Kind(
    name="bach",
    title="BACH (ICIAR 2018), photos of breast tissue",
    tasks={"4-classes": BACH_4},
    layout="The folder Photos, with Normal, Benign, InSitu and Invasive.",
    recognises=lambda path: any_named(path, "*.tif", BACH_NAME),
    read=read_bach,
    disk_gb=4,
    counts=dict.fromkeys(BACH_4.names, 100),
    names=frozenset(f"{p}{n:03}.tif" for p in BACH_PREFIX for n in range(1, 101)),
    citation=(
        "Aresta et al., BACH: Grand challenge on breast cancer histology images. "
        "Medical Image Analysis 56, 2019. doi:10.1016/j.media.2019.05.010"
    ),
    address="https://iciar2018-challenge.grand-challenge.org",
    flaws=(no_patients("BACH"),),
)

# ---- UCSB breast cancer cell

UCSB_NAME = re.compile(
    r"(?P<array>ytma\d+)_\d+_(?P<class>benign|malignant)\d+_ccd\.tif"
)


def read_ucsb(root: Path, task: str) -> LabelledSet:
    """Find the pictures below a folder; the array stands for the patient."""

    def understand(path: Path) -> LabelledPicture | None:
        match = UCSB_NAME.fullmatch(path.name)
        if match is None:
            return None
        label = int(match["class"] == "malignant")
        return LabelledPicture(path=path, label=label, patient=match["array"])

    found, notes = find_named(
        root,
        understand,
        of="the UCSB benchmark",
        example="ytma10_010704_benign1_ccd.tif",
        choose="its folder of images",
    )
    return LabelledSet(
        name="UCSB breast cancer cell",
        root=root,
        classes=BENIGN_MALIGNANT,
        pictures=tuple(found),
        read=read_file,
        notes=notes,
    )


UCSB = Kind(
    name="ucsb",
    title="UCSB breast cancer cell",
    tasks={"binary": BENIGN_MALIGNANT},
    layout="The folder Images, all files in it.",
    recognises=lambda path: any_named(path, "ytma*.tif", UCSB_NAME),
    read=read_ucsb,
    disk_gb=0.2,
    counts={"Benign": 32, "Malignant": 26},
    citation=(
        "Drelie Gelasca et al., Evaluation and benchmark for biological image "
        "segmentation. ICIP 2008. doi:10.1109/ICIP.2008.4712130"
    ),
    address="https://bioimage.ucsb.edu/research/bio-segmentation",
    flaws=(
        "UCSB names arrays (ytma10), no patients: an array counts as one. Its pixel "
        "size is not told.",
    ),
)

# ---- NCT-CRC-HE

NCT_MPP = 0.5
NCT_CLASSES = ClassSet(
    names=("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"),
    colors=(*OKABE_ITO[:5], (150, 75, 0), (120, 200, 160), OKABE_ITO[6], MALIGNANT),
    full_names=(
        "Adipose tissue",
        "Background",
        "Debris",
        "Lymphocytes",
        "Mucus",
        "Smooth muscle",
        "Normal colon mucosa",
        "Cancer-associated stroma",
        "Colorectal adenocarcinoma",
    ),
)
NCT_TASKS = {"9-classes": NCT_CLASSES, "8-classes": NCT_CLASSES.without("BACK")}
NCT_NAME = re.compile(rf"(?P<class>{'|'.join(NCT_CLASSES.names)})-[A-Z]+\.tif")
NCT_SIDES = {"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "test"}
_NCT_COUNTS = {
    "train": (10407, 10566, 11512, 11557, 8896, 13536, 8763, 10446, 14317),
    "test": (1338, 847, 339, 634, 1035, 592, 741, 421, 1233),
}


def read_nct(root: Path, task: str) -> LabelledSet:
    """Find the pictures below a folder; background is left out of eight classes."""
    classes = NCT_TASKS[task]

    def understand(path: Path) -> LabelledPicture | None:
        match = NCT_NAME.fullmatch(path.name)
        if match is None or path.parent.name != match["class"]:
            return None
        name = match["class"]
        return LabelledPicture(
            path=path,
            label=classes.names.index(name) if name in classes.names else -1,
            patient=path.stem,
            mpp=NCT_MPP,
            side=_nct_side(path, root),
        )

    found, notes = find_named(
        root,
        understand,
        of="NCT-CRC-HE",
        example="TUM/TUM-AEPINLNQ.tif",
        choose="the folder above NCT-CRC-HE-100K and CRC-VAL-HE-7K",
        or_else=", or in the folder of another class",
    )
    return LabelledSet(
        name="NCT-CRC-HE",
        root=root,
        classes=classes,
        pictures=tuple(picture for picture in found if picture.label >= 0),
        read=read_file,
        notes=notes,
    )


def _nct_side(path: Path, root: Path) -> str:
    """Return train or test by the folder's name, NCT-CRC-HE-100K-NONORM too."""
    inside = (root.name, *path.relative_to(root).parts[:-1])
    for part in inside:
        for name, side in NCT_SIDES.items():
            if part.startswith(name):
                return side
    return ""


NCT = Kind(
    name="nct-crc",
    title="NCT-CRC-HE-100K and CRC-VAL-HE-7K, colorectal tissue",
    tasks=NCT_TASKS,
    layout="The folder above NCT-CRC-HE-100K and CRC-VAL-HE-7K.",
    recognises=lambda path: any_named(path, "*.tif", NCT_NAME),
    read=read_nct,
    disk_gb=16,
    counts={
        f"{side} {name}": number
        for side, numbers in _NCT_COUNTS.items()
        for name, number in zip(NCT_CLASSES.names, numbers, strict=True)
    },
    citation=(
        "Kather et al., Predicting survival from colorectal cancer histology slides "
        "using deep learning. PLoS Medicine 16, 2019. doi:10.1371/journal.pmed.1002730"
    ),
    address="https://doi.org/10.5281/zenodo.1214456",
    flaws=(
        no_patients("NCT-CRC-HE")
        + " The official sides share none: split it in no other way.",
        "In NCT-CRC-HE colour and compression alone tell many classes apart: compare "
        "with the colour baseline.",
    ),
)
