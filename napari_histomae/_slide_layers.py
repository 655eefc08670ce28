"""What PAMA found on a slide, as layers."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

from napari_histomae import _layers, _review_layers, _whole_slide

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer

    from histomae.infer.slide_view import SlideView
    from histomae.slides.slide import Slide

Color = tuple[int, int, int]
#: Neighbouring numbers get colours far apart.
GOLDEN = 0.618034
#: In a layer's metadata: it belongs to the view of the whole slide.
WHOLE = "whole"
#: Size of an anchor's mark, length and width of an arrow, in tiles.
MARK, ARROW, WIDTH = 0.7, 2.4, 0.3


def anchor_colors(count: int) -> list[Color]:
    """Return a colour for each anchor; those of neighbouring numbers differ most."""
    colors = []
    for number in range(count):
        hue = number * GOLDEN % 1
        light = (0.5, 0.65, 0.4)[number % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, light, 0.75)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def show_map(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    view: SlideView,
    kind: str,
    *,
    anchor: int = 0,
    opacity: float = _layers.OVERLAY_OPACITY,
) -> Layer:
    """Show one map of the whole slide, right above the slide, and hide the others.

    Parameters
    ----------
    anchor
        From 0: whose, for the map of one anchor.
    """
    known = set(viewer.layers)
    if kind in (_whole_slide.AREAS, _whole_slide.GATHERED):
        layer: Layer = _show_anchors(viewer, slide, view, kind)
    else:
        layer = _show_numbers(viewer, slide, view, kind, anchor)
    layer.opacity = opacity
    _layers.entry_of(layer)[WHOLE] = True
    for other in _review_layers.map_layers(viewer, slide):
        if (other is layer) != other.visible:
            other.visible = other is layer
    if layer not in known:
        _layers.put_right_above(viewer, slide, layer)
    return layer


def _show_anchors(
    viewer: napari.viewer.Viewer, slide: Slide, view: SlideView, kind: str
) -> Layer:
    areas = kind == _whole_slide.AREAS
    count = len(view.anchors)
    return _layers.show_classes(
        viewer,
        slide,
        view.area_map() if areas else view.gathered_map(),
        _name(slide, kind),
        [f"anchor {number + 1}" for number in range(count)],
        anchor_colors(count),
    )


def _show_numbers(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    view: SlideView,
    kind: str,
    anchor: int,
) -> Layer:
    from histomae.infer.maps import limits_around_median, limits_of

    style: dict[str, Any]
    if kind == _whole_slide.ERROR:
        heatmap = view.error_map()
        style = {
            "colormap": _review_layers.diverging_colormap(),
            "contrast_limits": limits_around_median(heatmap.values),
        }
    else:
        heatmap = (
            view.attention_map()
            if kind == _whole_slide.ATTENTION
            else view.one_anchor_map(anchor)
        )
        style = {
            "colormap": "viridis",
            "contrast_limits": limits_of(heatmap.values),
        }
    return _layers.show_heatmap(viewer, slide, heatmap, _name(slide, kind), **style)


def show_anchors(
    viewer: napari.viewer.Viewer, slide: Slide, view: SlideView, *, visible: bool = True
) -> Layer:
    """Mark the tiles that are anchors."""
    tile = min(view.grid.tile_size_l0)
    layer = _layers.show_marks(
        viewer,
        slide,
        view.arrows_l0(0)[:, 0],
        MARK * tile,
        _name(slide, "anchors"),
        visible=visible,
    )
    _layers.entry_of(layer)[WHOLE] = True
    layer.visible = visible
    return layer


def show_directions(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    view: SlideView,
    head: int,
    *,
    visible: bool = True,
) -> Layer:
    """Draw a head's (from 0) main direction at each anchor as an arrow."""
    layer = _layers.show_arrows(
        viewer,
        slide,
        view.arrows_l0(head, ARROW),
        _name(slide, "directions"),
        width_l0=WIDTH * min(view.grid.tile_size_l0),
        visible=visible,
    )
    _layers.entry_of(layer)[WHOLE] = True
    layer.visible = visible
    return layer


def show_tile(
    viewer: napari.viewer.Viewer, slide: Slide, view: SlideView, cell: tuple[int, int]
) -> Layer:
    """Outline the tile that was clicked."""
    box = view.grid.box_l0(*cell)
    layer = _layers.show_outline(viewer, slide, box, _name(slide, "slide tile"))
    _layers.entry_of(layer)[WHOLE] = True
    return layer


def drop(viewer: napari.viewer.Viewer, slide: Slide) -> None:
    """Remove whatever is shown of a view of the whole slide."""
    for layer in _layers.layers_of(viewer, slide):
        if _layers.entry_of(layer).get(WHOLE):
            viewer.layers.remove(layer)


def _name(slide: Slide, what: str) -> str:
    return f"{slide.name} · {what}"
