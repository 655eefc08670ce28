"""Which files are slides, and which are plain pictures."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import openslide
from PIL import Image

from histomae.errors import SlideError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Suffixes that only whole-slide images carry.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu")
#: Suffixes that other images carry too: a slide only where OpenSlide detects one.
TIFF_SUFFIXES = (".tif", ".tiff")
SHARED_SUFFIXES = (*TIFF_SUFFIXES, ".dcm")
#: Suffixes of plain pictures alone, which have one level and no micrometres.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
#: What Pillow has been seen to raise on damaged files.
READ_ERRORS = (OSError, SyntaxError, ValueError, IndexError, EOFError)
#: TIFF's tag of what only tiled pictures have.
TILE_WIDTH = 322
#: What the name of a mask of lesions ends in, before its suffix.
MASK = re.compile(r"_mask(_\d+)?$")


def is_slide(path: str | Path) -> bool:
    """Tell cheaply whether a path looks like a slide; never raises.

    Slide-only suffixes always are; TIFF and DICOM only where OpenSlide detects one.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in SLIDE_SUFFIXES:
        return True
    if suffix not in SHARED_SUFFIXES:
        return False
    try:
        return openslide.OpenSlide.detect_format(path) is not None
    except (openslide.OpenSlideError, OSError):
        return False


def is_picture(path: str | Path) -> bool:
    """Tell whether a file is named as a plain picture, and not as a mask of one."""
    path = Path(path)
    return path.suffix.lower() in PICTURE_SUFFIXES and not MASK.search(path.stem)


def opens_as_picture(path: Path) -> bool:
    """Tell whether a file is read as a plain picture: TIFF is, where it has no tiles.

    One with tiles is a slide, or was one: a damaged slide never passes for a picture.
    """
    suffix = path.suffix.lower()
    return suffix in PICTURE_SUFFIXES or (
        suffix in TIFF_SUFFIXES and not is_slide(path) and _is_without_tiles(path)
    )


def _is_without_tiles(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever reads it will hear of these
            with Image.open(path, formats=["TIFF"]) as picture:
                return TILE_WIDTH not in picture.getexif()
    except (*READ_ERRORS, Image.DecompressionBombError):
        return False


def is_photo(path: str | Path) -> bool:
    """Tell whether a file is a plain picture, and not named as a mask.

    TIFF may be, where it is no slide.
    """
    path = Path(path)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return is_picture(path)
    return not MASK.search(path.stem) and not is_slide(path)


def pictures_in(folder: Path) -> list[Path]:
    """Return the plain pictures of a folder to its depth, in order; masks are none."""
    return [p for p in sorted(folder.rglob("*")) if is_photo(p) and p.is_file()]


def holds_pictures(path: Path) -> bool:
    """Tell whether a path is a plain picture, or a folder of some and of no slide."""
    if not path.is_dir():
        return is_photo(path) and path.is_file()
    return not any(map(is_slide, path.rglob("*"))) and bool(pictures_in(path))


def find_slides(paths: Iterable[str | Path]) -> list[Path]:
    """Return the slides among files and folders, each once, in order.

    A folder is searched to its depth; of a DICOM series only one file is taken. A
    folder that holds plain pictures and no slide is taken for these.

    Raises
    ------
    SlideError
        If a path does not exist, or a folder holds no slide.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        if not given.exists():
            raise SlideError(f"{given} does not exist. Check the name.")
        inside = [given]
        if given.is_dir():
            inside = _slides_in(given) or pictures_in(given)
        if not inside:
            raise SlideError(f"The folder {given} holds no slide. Choose another one.")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _slides_in(folder: Path) -> list[Path]:
    slides, dicom_folders = [], set()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or not is_slide(path):
            continue
        if path.suffix.lower() == ".dcm":
            if path.parent in dicom_folders:
                continue
            dicom_folders.add(path.parent)
        slides.append(path)
    return slides
