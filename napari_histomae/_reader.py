"""Slides for napari's File > Open and drag-and-drop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from histomae.slides.slide import Slide

LayerData = tuple[Any, ...]
#: What napari takes for "claimed, and nothing to add".
NOTHING: list[LayerData] = [(None,)]
#: A slide that takes longer to open lies on something slow, seconds.
SLOW_OPEN_S = 5.0


def get_reader(
    path: str | Sequence[str],
) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return the reader of slides if every path is one, or a folder of some.

    Cheap, and never raises: slide-only suffixes are claimed as they are, TIFF and DICOM
    only where OpenSlide detects a slide, or at an address on a server. Of plain
    pictures those of BUSI and BreakHis, those with a mask beside them, and folders:
    whoever opens other pictures does not want to be asked each time.
    """
    paths = _paths(path)
    return read_slides if paths and all(map(_is_ours, paths)) else None


def read_slides(path: str | Sequence[str]) -> list[LayerData]:
    """Open slides; one that cannot be read gives one sentence, and nothing is added.

    Where the pixel size is missing the user is asked for it, once per slide: the answer
    is remembered. Without an answer the slide opens in pixels. A slide on a server is
    copied first, beside what else is done, and opens when it is here. Of a folder of
    pictures the first opens, and a list of all of them to choose from.
    """
    from napari.utils.notifications import show_error

    from histomae.errors import SlideError
    from histomae.slides.find import find_slides, is_photo
    from histomae.slides.remote import address

    layers: list[LayerData] = []
    for given in _paths(path):
        url = address(given)
        if url is not None:
            from napari_histomae._remote import open_when_copied

            open_when_copied(url)
            continue
        try:
            found = find_slides([given])
        except SlideError as error:
            show_error(str(error))
            continue
        if given.is_dir() and is_photo(found[0]):
            from napari_histomae._pictures import offer_pictures

            offer_pictures(given, found)
            found = found[:1]
        for one in found:
            try:
                layers += _read_slide(one)
            except SlideError as error:
                show_error(str(error))
    if layers:
        import napari

        from napari_histomae._early_reading import read_before_drawing

        read_before_drawing(napari.current_viewer())
    return layers or NOTHING


def _read_slide(path: Path) -> list[LayerData]:
    from napari.utils.notifications import show_warning

    from histomae.slides.slide import Slide
    from napari_histomae._layers import slide_layer_data, slide_levels

    begin = time.monotonic()
    slide = Slide.open(path)
    levels = slide_levels(slide)
    slide.try_pixels()
    if (seconds := time.monotonic() - begin) > SLOW_OPEN_S:
        show_warning(
            f"{path.name} took {seconds:.0f} s to open: it lies on a slow disk or "
            "network. Copy it to this computer to look at it smoothly."
        )
    if slide.is_picture:
        return [slide_layer_data(slide, levels), *_lesions_on(slide)]
    if not slide.has_mpp:
        _ask_mpp(slide)
    return [slide_layer_data(slide, levels)]


def _lesions_on(slide: Slide) -> list[LayerData]:
    """Return the lesions of a picture as a layer, if masks lie beside it."""
    from napari.utils.notifications import show_warning

    from histomae.data.busi import lesion_at
    from histomae.errors import DataSetError
    from napari_histomae._layers import lesion_layer_data

    try:
        lesion = lesion_at(slide.path)
    except DataSetError as error:
        show_warning(f"{error} The picture is shown without its lesion.")
        return []
    return [] if lesion is None else [lesion_layer_data(slide, lesion)]


def _ask_mpp(slide: Slide) -> None:
    """Ask for the pixel size where there is somebody to ask: a window that is seen."""
    from qtpy.QtWidgets import QApplication, QMainWindow

    if QApplication.instance() is None:
        return
    if any(
        isinstance(window, QMainWindow) and window.isVisible()
        for window in QApplication.topLevelWidgets()
    ):
        from napari_histomae._widgets.mpp import ask_mpp

        ask_mpp(slide)


def _is_ours(path: Path) -> bool:
    from histomae.slides.find import (
        SHARED_SUFFIXES,
        SLIDE_SUFFIXES,
        is_picture,
        is_slide,
    )
    from histomae.slides.remote import address

    if address(path) is not None:
        return path.suffix.lower() in (*SLIDE_SUFFIXES, *SHARED_SUFFIXES)
    try:
        if path.is_dir():
            files = _first_files(path)
            return any(is_slide(file) or is_picture(file) for file in files)
        if is_picture(path):
            return _is_known_picture(path)
    except (OSError, ValueError):
        return False
    return is_slide(path)


def _is_known_picture(path: Path) -> bool:
    """Tell whether a picture is of a data set that is read here, or has a mask."""
    from histomae.data import breakhis, busi

    known = (breakhis.NAME, busi.NAME)
    return path.is_file() and bool(
        any(name.fullmatch(path.name) for name in known) or busi.masks_beside(path)
    )


def _first_files(folder: Path, most: int = 200) -> list[Path]:
    """Return files of a folder and of the folders in it; a big one is not searched."""
    files: list[Path] = []
    for inside in (*folder.iterdir(), *folder.glob("*/*")):
        if inside.is_file():
            files.append(inside)
        if len(files) >= most:
            break
    return files


def _paths(path: str | Sequence[str]) -> list[Path]:
    return [Path(one) for one in ([path] if isinstance(path, str | Path) else path)]
