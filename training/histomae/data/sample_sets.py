"""Trees in the official layouts of BRACS and BACH, drawn by a program.

They are there to walk from a pretraining to a report without a download. Classes differ
in how the same cells are arranged and in how much of them there is, see
:mod:`histomae.slides.sample`; no accuracy reached on them says anything of a tumour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from histomae.config import check_least
from histomae.data import bracs
from histomae.data.classes import BACH_4, BRACS_7
from histomae.data.sample_tissue import (
    case_pictures,
    new_tree,
    write_picture,
)
from histomae.data.small_sets import BACH_MPP, BACH_PREFIX
from histomae.events import Event, Progress

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


#: Sides of the split, as the slides of a class are dealt.
DEALT = ("train", "train", "test", "val")
#: Arrangement, and shares of epithelium and of empty space, by class.
BRACS_LOOKS = {
    "N": ("Duct", 0.26, 0.14),
    "PB": ("Duct", 0.38, 0.10),
    "UDH": ("Duct", 0.50, 0.07),
    "FEA": ("In situ", 0.30, 0.15),
    "ADH": ("In situ", 0.42, 0.11),
    "DCIS": ("In situ", 0.54, 0.08),
    "IC": ("Invasive", 0.48, 0.09),
}
BACH_LOOKS = {
    "Normal": ("Duct", 0.28, 0.14),
    "Benign": ("Duct", 0.46, 0.08),
    "In situ": ("In situ", 0.50, 0.10),
    "Invasive": ("Invasive", 0.48, 0.09),
}
BACH_FOLDERS = ("Normal", "Benign", "InSitu", "Invasive")


def sample_bracs(
    folder: Path,
    *,
    cases: int = 28,
    sets: int = 2,
    seed: int = 0,
    width_px: int = 1024,
) -> Generator[Event, None, Path]:
    """Draw the tree ``BRACS_RoI`` into a folder: square regions at 0.25 µm/px.

    Parameters
    ----------
    cases
        Slides, shared out evenly among the seven classes; a half of each class is on
        the train side, a quarter on each other.
    sets
        Regions of each slide.
    seed
        Equal seeds give equal trees.
    width_px
        Of a region.

    Raises
    ------
    ConfigError
        If a number is out of range.
    DataSetError
        If there is such a tree already.
    """
    names = BRACS_7.names
    check_least("cases", cases, len(names) * len(DEALT))
    check_least("sets", sets, 1)
    check_least("seed", seed, 0)
    root = new_tree(folder / "BRACS_RoI")
    for case in range(cases):
        yield Progress("drawing slides", case, cases)
        label = case % len(names)
        name, side = names[label], DEALT[case // len(names) % len(DEALT)]
        inside = root / "latest_version" / side / f"{label}_{name}"
        drawn = case_pictures(
            BRACS_LOOKS[name],
            places=sets,
            mpps=(bracs.MPP,),
            size_px=(width_px, width_px),
            seed=(seed, case),
        )
        for number, (pixels,) in enumerate(drawn, start=1):
            write_picture(inside / f"BRACS_{1001 + case}_{name}_{number}.png", pixels)
    yield Progress("drawing slides", cases, cases)
    return root


def sample_bach(
    folder: Path, *, cases: int = 48, seed: int = 0, width_px: int = 2048
) -> Generator[Event, None, Path]:
    """Draw the tree ``ICIAR2018_BACH_Challenge`` into a folder: photos at 0.42 µm/px.

    Parameters
    ----------
    cases
        Photos, shared out evenly among the four classes; each is a patient's.
    seed
        Equal seeds give equal trees.
    width_px
        Of a photo, which is three quarters as high.

    Raises
    ------
    ConfigError
        If a number is out of range.
    DataSetError
        If there is such a tree already.
    """
    names = BACH_4.names
    check_least("cases", cases, 2 * len(names))
    check_least("seed", seed, 0)
    root = new_tree(folder / "ICIAR2018_BACH_Challenge")
    for case in range(cases):
        yield Progress("drawing photos", case, cases)
        label, number = case % len(names), case // len(names) + 1
        ((pixels,),) = case_pictures(
            BACH_LOOKS[names[label]],
            places=1,
            mpps=(BACH_MPP,),
            size_px=(width_px, round(width_px * 0.75)),
            seed=(seed, case),
        )
        inside = root / "Photos" / BACH_FOLDERS[label]
        write_picture(inside / f"{BACH_PREFIX[label]}{number:03}.tif", pixels)
    yield Progress("drawing photos", cases, cases)
    return root
