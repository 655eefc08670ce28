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
    only where OpenSlide detects a slide, or at an address on a server.
    """
    paths = _paths(path)
    return read_slides if paths and all(map(_is_ours, paths)) else None


def read_slides(path: str | Sequence[str]) -> list[LayerData]:
    """Open slides; one that cannot be read gives one sentence, and nothing is added.

    Where the pixel size is missing the user is asked for it, once per slide: the answer
    is remembered. Without an answer the slide opens in pixels. A slide on a server is
    copied first, beside what else is done, and opens when it is here.
    """
    from napari.utils.notifications import show_error

    from histomae.errors import SlideError
    from histomae.slides.find import find_slides
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
        for one in found:
            try:
                layers.append(_read_slide(one))
            except SlideError as error:
                show_error(str(error))
    return layers or NOTHING


def _read_slide(path: Path) -> LayerData:
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
    if not slide.has_mpp:
        _ask_mpp(slide)
    return slide_layer_data(slide, levels)


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
    from histomae.slides.find import SHARED_SUFFIXES, SLIDE_SUFFIXES, is_slide
    from histomae.slides.remote import address

    if address(path) is not None:
        return path.suffix.lower() in (*SLIDE_SUFFIXES, *SHARED_SUFFIXES)
    try:
        if path.is_dir():
            return any(is_slide(inside) for inside in _first_files(path))
    except OSError:
        return False
    return is_slide(path)


def _first_files(folder: Path, most: int = 200) -> list[Path]:
    """Return the files directly in a folder; a big folder is not searched whole."""
    files: list[Path] = []
    for inside in folder.iterdir():
        if inside.is_file():
            files.append(inside)
        if len(files) >= most:
            break
    return files


def _paths(path: str | Sequence[str]) -> list[Path]:
    return [Path(one) for one in ([path] if isinstance(path, str | Path) else path)]
