"""A tree in BreakHis's official layout, drawn by a program: there is no patient.

It is there to try all that BreakHis is used for without a download, and to prove that
it works: cases, eight subtypes, and complete sets of four magnifications, which show
one place. Subtypes differ in how the same cells are arranged, see
:mod:`histomae.slides.sample`; no accuracy reached on them says anything of a tumour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from histomae.data.breakhis import BENIGN, HEIGHT_PX, MAGNIFICATIONS, MPP
from histomae.errors import ConfigError, DataSetError
from histomae.events import Event, Progress
from histomae.files import write_beside
from histomae.slides.sample import tissue_pictures

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

WIDTH_PX = 700
#: Epithelial nuclei per µm² of epithelium, and how much cases differ in everything.
DENSITY, SPREAD = 8.2e-3, 0.07
#: Folder, arrangement, and shares of epithelium and of empty space, by subtype.
SUBTYPES = {
    "A": ("adenosis", "Duct", 0.42, 0.08),
    "F": ("fibroadenoma", "Duct", 0.30, 0.06),
    "PT": ("phyllodes_tumor", "Duct", 0.22, 0.05),
    "TA": ("tubular_adenoma", "Duct", 0.52, 0.13),
    "DC": ("ductal_carcinoma", "Invasive", 0.48, 0.10),
    "LC": ("lobular_carcinoma", "Invasive", 0.38, 0.06),
    "MC": ("mucinous_carcinoma", "In situ", 0.36, 0.16),
    "PC": ("papillary_carcinoma", "In situ", 0.52, 0.12),
}


def sample_breakhis(
    folder: Path,
    *,
    cases: int = 24,
    sets: int = 2,
    seed: int = 0,
    width_px: int = WIDTH_PX,
) -> Generator[Event, None, Path]:
    """Draw the tree ``BreaKHis_v1`` into a folder; about a second a case at full size.

    Parameters
    ----------
    cases
        Patients, shared out evenly among the subtypes.
    sets
        Pictures of each case at each magnification; numbers are those of the place.
    seed
        Equal seeds give equal trees.
    width_px
        Of a picture; 700 as in BreakHis. Narrower ones show the same places, coarser.

    Raises
    ------
    ConfigError
        If a number is out of range.
    DataSetError
        If there is such a tree already.
    """
    for name, value, least in (
        *(("cases", cases, len(SUBTYPES)), ("sets", sets, 1), ("seed", seed, 0)),
        ("width_px", width_px, 70),
    ):
        if value < least:
            raise ConfigError(
                name, f"{value} is out of range. Choose at least {least}."
            )
    root = folder / "BreaKHis_v1"
    if root.exists():
        raise DataSetError(f"{root} is there already. Choose another folder.")
    size_px = (width_px, round(HEIGHT_PX * width_px / WIDTH_PX))
    mpps = [MPP[m] * WIDTH_PX / width_px for m in MAGNIFICATIONS]
    names = list(SUBTYPES)
    for case in range(cases):
        yield Progress("drawing cases", case, cases)
        subtype = names[case % len(names)]
        _, arrangement, epithelium, white = SUBTYPES[subtype]
        differs = np.random.default_rng((seed, case, 1)).normal(1, SPREAD, 3)
        amounts = np.array((epithelium, white, DENSITY)) * differs
        drawn = tissue_pictures(
            arrangement,
            **dict(zip(("epithelium", "white", "density"), amounts, strict=True)),
            places=sets,
            mpps=mpps,
            size_px=size_px,
            seed=(seed, case),
        )
        for number, pictures in enumerate(drawn, start=1):
            for magnification, pixels in zip(MAGNIFICATIONS, pictures, strict=True):
                write_picture(_path(root, subtype, case, magnification, number), pixels)
    yield Progress("drawing cases", cases, cases)
    return root


def _path(root: Path, subtype: str, case: int, magnification: int, number: int) -> Path:
    benign = subtype in BENIGN
    slide, kind = f"{10001 + case}", f"SOB_{'B' if benign else 'M'}_{subtype}"
    group = root / "histology_slides" / "breast" / ("benign" if benign else "malignant")
    folder = group / "SOB" / SUBTYPES[subtype][0] / f"{kind}_14-{slide}"
    name = f"{kind}-14-{slide}-{magnification}-{number:03}.png"
    return folder / f"{magnification}X" / name


def write_picture(path: Path, pixels: Pixels) -> None:
    """Write pixels, uint8 (H, W, 3), as PNG or TIFF, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".png": "PNG", ".tif": "TIFF"}[path.suffix]
    with write_beside(path) as beside:
        Image.fromarray(pixels).save(beside, format=kind, compress_level=3)
