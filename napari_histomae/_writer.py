"""Regions to GeoJSON, for napari's File > Save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histomae.errors import AnnotationError


def write_regions(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write a Shapes layer as GeoJSON that QuPath opens, in level-0 pixels.

    The layer must lie on a slide: one that the docks made, or any drawn while a slide
    that they know was open.

    Raises
    ------
    AnnotationError
        If it is not known on which slide the shapes lie.
    """
    from napari.layers import Shapes

    from histomae.exchange.qupath import write_annotations
    from napari_histomae._layers import annotations_from, entry_of, slide_behind

    layer = Shapes(data, **attributes)
    entry = entry_of(layer) or _entry_of_current_slide()
    if not entry:
        raise AnnotationError(
            "It is not known which slide these shapes lie on. Open the slide, select "
            "it, and save the shapes again."
        )
    slide = slide_behind(entry)
    write_annotations(
        Path(path), annotations_from(layer, slide), bounds_xy=slide.bounds_l0[:2]
    )
    return [path]


def _entry_of_current_slide() -> dict[str, Any]:
    """Return the entry of the slide that is worked on in the viewer, if any."""
    import napari

    from napari_histomae._layers import slide_entry
    from napari_histomae._session import Session

    viewer = napari.current_viewer()
    slide = Session.of(viewer).slide if viewer is not None else None
    return slide_entry(slide) if slide is not None else {}
