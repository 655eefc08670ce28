"""A tree in BreakHis's official layout, drawn by a program: there is no patient.

It is there to try all that BreakHis is used for without a download, and to prove that
it works: cases, eight subtypes, and complete sets of four magnifications, which show
one place. Subtypes differ in how the same cells are arranged, see
:mod:`histomae.slides.sample`; no accuracy reached on them says anything of a tumour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from histomae.config import check_least
from histomae.data.breakhis import BENIGN, HEIGHT_PX, MAGNIFICATIONS, MPP
from histomae.data.sample_tissue import (
    case_pictures,
    new_tree,
    write_picture,
)
from histomae.events import Event, Progress

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


WIDTH_PX = 700
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
    check_least("cases", cases, len(SUBTYPES))
    check_least("sets", sets, 1)
    check_least("seed", seed, 0)
    check_least("width_px", width_px, 70)
    root = new_tree(folder / "BreaKHis_v1")
    size_px = (width_px, round(HEIGHT_PX * width_px / WIDTH_PX))
    mpps = [MPP[m] * WIDTH_PX / width_px for m in MAGNIFICATIONS]
    names = list(SUBTYPES)
    for case in range(cases):
        yield Progress("drawing cases", case, cases)
        subtype = names[case % len(names)]
        drawn = case_pictures(
            SUBTYPES[subtype][1:],
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
