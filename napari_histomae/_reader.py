"""Slides for napari's File > Open and drag-and-drop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from histomae.slides.slide import Slide

LayerData = tuple[Any, ...]
#: What napari takes for "claimed, and nothing to add".
NOTHING: list[LayerData] = [(None,)]


def get_reader(
    path: str | Sequence[str],
) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return the reader of slides if every path is one, or a folder of some.

    Cheap, and never raises: slide-only suffixes are claimed as they are, TIFF and DICOM
    only where OpenSlide detects a slide.
    """
    paths = _paths(path)
    return read_slides if paths and all(map(_is_ours, paths)) else None


def read_slides(path: str | Sequence[str]) -> list[LayerData]:
    """Open slides; one that cannot be read gives one sentence, and nothing is added.

    Where the pixel size is missing the user is asked for it, once per slide: the answer
    is remembered. Without an answer the slide opens in pixels.
    """
    from napari.utils.notifications import show_error

    from histomae.errors import SlideError
    from histomae.slides.find import find_slides

    layers: list[LayerData] = []
    for given in _paths(path):
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
    from histomae.slides.slide import Slide
    from napari_histomae._layers import slide_layer_data, slide_levels

    slide = Slide.open(path)
    levels = slide_levels(slide)
    slide.try_pixels()
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
    from histomae.slides.find import is_slide

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
