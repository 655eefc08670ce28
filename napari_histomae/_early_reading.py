"""What a frame shows of a slide is read before it is drawn, and not after it.

napari finds out which part of a slide a view needs when it has drawn the view already.
So after a move the old pixels are drawn first, then the new ones are read, and then all
is drawn again: two frames, one after the other, in which the window answers nobody.
Here the same question is asked of our slides right before; napari, when it asks again,
finds nothing left to read.

napari has no public place for this. Where a version of it is built in another way, all
goes on as it does without.
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

from napari_histomae._layers import slide_layers

if TYPE_CHECKING:
    import napari

#: What a layer is told when it is asked what a view needs.
TOLD = {"scale_factor", "corner_pixels_displayed", "shape_threshold"}

_readers: weakref.WeakKeyDictionary[Any, _EarlyReader] = weakref.WeakKeyDictionary()


def read_before_drawing(viewer: napari.viewer.Viewer | None) -> None:
    """Have the slides of a viewer read before it draws them, from now on.

    Harmless when repeated, and for a viewer without a window.
    """
    real = getattr(viewer, "__wrapped__", viewer)  # docks are given a proxy
    window = getattr(real, "window", None)
    canvas = getattr(getattr(window, "_qt_viewer", None), "canvas", None)
    draw = getattr(getattr(canvas, "_scene_canvas", None), "events", None)
    if real is None or draw is None or real in _readers or not _can_be_asked():
        return
    reader = _readers[real] = _EarlyReader(real, canvas)
    draw.draw.connect(reader.on_draw, position="first")


def _can_be_asked() -> bool:
    """Whether this napari asks its layers as those did that this was written for."""
    from napari.layers import Image

    ask = getattr(Image, "_update_draw", None)
    return ask is not None and set(inspect.signature(ask).parameters) >= TOLD


class _EarlyReader:
    """Reads for one viewer; the viewer is not kept alive by it."""

    def __init__(self, viewer: napari.viewer.Viewer, canvas: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._canvas = weakref.ref(canvas)

    def on_draw(self, _event: Any) -> None:
        """Ask each slide that is shown to read what the view needs and lacks."""
        viewer, canvas = self._viewer(), self._canvas()
        if viewer is None or canvas is None or viewer.dims.ndisplay != 2:
            return
        # As napari's canvas asks its layers; by now only the view has moved, and the
        # viewer's camera will hear of it after the frame.
        corners = getattr(canvas, "_viewbox_corners_in_world", None)
        size_xy = getattr(canvas, "_current_viewbox_size", None)
        if corners is None or size_xy is None:
            return
        for layer in slide_layers(viewer):
            if layer.visible:
                layer._update_draw(
                    scale_factor=layer.scale_factor,
                    corner_pixels_displayed=corners[:, list(viewer.dims.displayed)],
                    shape_threshold=size_xy[::-1],
                )
