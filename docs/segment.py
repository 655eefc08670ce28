"""Nuclei marked on the sample slide: pictures of the *Segment* dock (``make docs``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from windows import in_window

from histomae.exchange.qupath import read_annotations
from histomae.slides.slide import Slide
from napari_histomae import _layers, _segment
from napari_histomae._session import Session
from napari_histomae._widgets.segment import TABLE
from napari_histomae.demo import PLUGIN, Steps, photograph, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import napari

    from histomae.slides.sample import SampleSlide

#: A region of this class is in the middle of the picture, at so many pixels per µm.
SHOWN, ZOOM = "Duct", 1.4
#: Enough for round nuclei that a program drew.
PASSES = 6


def mark_nuclei(
    encoder: Path, sample: SampleSlide, out: Path, *, themes: Sequence[str] = ()
) -> int:
    """Teach nuclei by the sample's table, mark what is seen, and take the pictures.

    Returns
    -------
    The exit code.
    """

    def steps(viewer: napari.Viewer) -> Steps:
        slide = Slide.open(sample.slide_path)
        _layers.open_slide(viewer, slide)
        Session.of(viewer).use_model(encoder)
        _, dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Segment")
        yield lambda: dock.model.header is not None
        dock.source.setCurrentIndex(dock.source.findData(TABLE))
        dock.epochs.setValue(PASSES)
        dock.teach(_segment.by_table(sample.nuclei_path, slide))
        yield lambda: not dock.running
        say(dock.score.text())
        place = next(
            one
            for one in read_annotations(sample.regions_path)
            if one.class_name == SHOWN
        )
        _layers.look_at(viewer, slide, place.roi.bounds)
        _layers.camera(viewer).zoom = ZOOM
        yield None
        dock.part.activated.emit(dock.part.currentIndex())
        yield dock.mark_button.isEnabled
        dock.mark_button.click()
        yield lambda: not dock.running
        say(dock.state.text)
        yield from photograph(viewer, out, "segment", themes)

    return in_window("Segment", steps)
