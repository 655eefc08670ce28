"""Marked sets: found by their layout, brought to an encoder's tiles, joined, split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from histomae.config import FINEST_MPP_RATIO
from histomae.data.busi import is_busi, read_marked_busi
from histomae.data.marks import MarkedSet, Marks
from histomae.data.monuseg import read_monuseg
from histomae.data.pictures import as_tile, grey_of, sector_box, whole_square
from histomae.errors import (
    ConfigError,
    DataSetError,
    NotEnoughDataError,
    UpsamplingError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from histomae.data.marks import MarkedPicture, Pixels

Array = np.ndarray[Any, Any]
Read = tuple["Pixels", Marks]
NEAREST = Image.Resampling.NEAREST


def open_marked(path: Path) -> MarkedSet:
    """Find the marked pictures of BUSI or MoNuSeg below a folder.

    Raises
    ------
    DataSetError
        If it is neither.
    """
    if is_busi(path):
        return read_marked_busi(path)
    if path.is_dir() and any(path.rglob("*.xml")):
        return read_monuseg(path)
    raise DataSetError(
        f"{path} holds no marked pictures that are known: neither BUSI's, with their "
        "masks, nor MoNuSeg's (.tif), with their outlines (.xml). Choose the folder of "
        "one of these, or name slides with --nuclei or --regions."
    )


# ---- brought to the tiles of an encoder


def at_mpp(data: MarkedSet, mpp: float, *, own: float | None = None) -> MarkedSet:
    """Return marked pictures resampled to ``mpp``, µm per pixel.

    Parameters
    ----------
    own
        That of the pictures, where these do not tell it.

    Raises
    ------
    ConfigError
        If nobody tells it.
    UpsamplingError
        If they are coarser than asked for.
    """
    own = data.mpp or own
    if own is None:
        raise ConfigError(
            "picture_mpp",
            f"is needed: the pictures of {data.name} do not tell their µm per pixel, "
            "and the encoder was trained on slides. Give it (0.25 at 40x), or choose "
            "an encoder that was trained on pictures.",
        )
    if mpp < FINEST_MPP_RATIO * own:
        raise UpsamplingError(
            f"The pictures of {data.name} have {own:.3g} µm per pixel; the encoder's "
            f"{mpp:.3g} would invent detail. Choose an encoder of coarser tiles."
        )
    if data.mpp == mpp:
        return data
    factor = own / mpp

    def resampled(pixels: Pixels, marks: Marks) -> Read:
        high, wide = (max(1, round(side * factor)) for side in pixels.shape[:2])
        small = Image.fromarray(pixels).resize((wide, high), Image.Resampling.BICUBIC)
        objects = Image.fromarray(marks.objects).resize((wide, high), NEAREST)
        return np.asarray(small), _anew(np.asarray(objects), marks)

    return replace(data, read=_then(data, resampled), mpp=mpp)


def as_tiles(data: MarkedSet, tile_px: int, *, sector: bool) -> MarkedSet:
    """Return whole pictures as the one tile that an encoder of pictures sees.

    ``sector``: cropped to the scan of an ultrasound first, and grey.
    """

    def laid(pixels: Pixels, marks: Marks) -> Read:
        box = sector_box(grey_of(pixels)) if sector else (slice(None), slice(None))
        objects = whole_square(marks.objects[box], tile_px, resample=NEAREST)
        return as_tile(pixels, tile_px, sector=sector), _anew(objects, marks)

    return replace(data, read=_then(data, laid))


def _then(
    data: MarkedSet, change: Callable[[Pixels, Marks], Read]
) -> Callable[[MarkedPicture], Read]:
    return lambda picture: change(*data.read(picture))


def _anew(objects: Array, marks: Marks) -> Marks:
    """Return marks with another raster; objects that vanished are left out."""
    return Marks(objects, marks.labels).crop(slice(None), slice(None))


# ---- joined and split


def joined(sets: Sequence[MarkedSet], name: str) -> MarkedSet:
    """Return the pictures of several sets of the same classes as one."""
    readers = {picture: one.read for one in sets for picture in one.pictures}
    return replace(
        sets[0],
        name=name,
        pictures=tuple(readers),
        read=lambda picture: readers[picture](picture),
        notes=tuple(note for one in sets for note in one.notes),
    )


@dataclass(frozen=True, eq=False)
class Sides:
    """Whom a segmenter learns from, and by whom it is judged; None: by nobody.

    ``told``: how they were parted, for people.
    """

    taught: MarkedSet
    judged: MarkedSet | None
    told: str


def by_patient(
    data: MarkedSet, share: float, *, seed: int = 0, what: str = "patient"
) -> Sides:
    """Part marked pictures: as their official split says, else by patient.

    Parameters
    ----------
    share
        Of the patients that are kept for judging; 0: nobody judges.
    what
        A patient is called.

    Raises
    ------
    NotEnoughDataError
        If there is one patient only.
    """
    if not share:
        return Sides(data, None, "nothing was held out")
    sides = np.array([picture.side for picture in data.pictures])
    if {"train", "test"} <= set(sides.tolist()):
        held = sides == "test"
        told = f"on the {held.sum()} pictures of the official test side"
    else:
        patients = np.array([picture.patient for picture in data.pictures])
        known = np.unique(patients)
        if len(known) < 2:
            raise NotEnoughDataError(
                f"The marked pictures are of one {what}: none can be held out to judge "
                "by. Add some of another, or choose a hold_out of 0."
            )
        many = min(max(1, round(share * len(known))), len(known) - 1)
        chosen = np.random.default_rng(seed).permutation(known)[:many]
        held = np.isin(patients, chosen)
        told = (
            f"on {held.sum()} pictures of {many} {what}{'s' * (many != 1)} it did not "
            "learn from"
        )
    return Sides(_only(data, ~held), _only(data, held), told)


def _only(data: MarkedSet, kept: Array) -> MarkedSet:
    pictures = zip(data.pictures, kept, strict=True)
    return replace(data, pictures=tuple(one for one, here in pictures if here))
