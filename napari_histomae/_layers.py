"""The one door between slides and layers: level-0 (x, y) to micrometres (y, x).

Frames. ``l0``: level-0 pixels (x, y), measured at pixel *edges*, as everywhere in the
trainer. ``world``: micrometres (y, x), as napari has it (pixels, where a slide's pixel
size is unknown).

The half pixel. napari puts the *centre* of a layer's first pixel at the origin, so the
slide's corner (l0 edge 0) lies at world ``-0.5 * mpp``: an edge ``e`` is at
``(e - 0.5) * mpp``, and a raster with origin ``o`` and pixels ``w`` wide, both in l0,
has its first centre at ``(o + w / 2 - 0.5) * mpp``. Coarser levels of a multiscale
layer keep the *edges*: napari draws pixel ``k`` of a level from ``k * f - 0.5`` to
``(k + 1) * f - 0.5`` (it shifts every texture by half a pixel of level 0, whatever the
level), ``f`` being the quotient of the shapes. Nothing has to be shifted per level;
with shapes rounded from the true factor, ``f`` is off by at most half a pixel of the
level over the whole slide. ``EDGE_TO_CENTRE`` below is the only half pixel there is.

Layers that we make carry ``metadata["histomae"]``, with the slide's id and a ``kind``:
``slide``, ``tissue``, ``heatmap``, ``classes``, ``areas``, ``objects``, ``centres``,
``picture``, ``outline``, ``lesion``, ``marks``, ``arrows`` or ``annotations``;
``sample`` is a picture of no slide. No other layer is ever touched.
"""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.slides.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import napari
    from napari.layers import Image, Labels, Layer, Points, Shapes, Vectors

    from histomae.errors import SlideError
    from histomae.infer.segment import SlideMarks
    from histomae.slides.annotations import Annotation
    from histomae.slides.heatmap import Heatmap
    from histomae.slides.pyramid import PyramidLevel
    from histomae.slides.tissue import TissueMask

Array = np.ndarray[Any, Any]
Color = tuple[int, int, int]

#: From an edge coordinate in level-0 pixels to napari's data coordinate.
EDGE_TO_CENTRE = -0.5
#: Kinds, and names, of the layers of what a segmenter found.
SEGMENTED = ("areas", "objects", "centres")
#: Width of the outline of a tile, pixels of the screen.
OUTLINE_PX = 2.0
#: Key of our entry in a layer's metadata.
KEY = "histomae"
#: Overlays never hide the tissue.
OVERLAY_OPACITY = 0.4
#: What is no tissue lies under a veil, through which it can still be seen.
VEIL_COLOR: Color = (40, 52, 72)
VEIL_OPACITY = 0.55
#: A slide that cannot be read complains no more often than this, s.
COMPLAINT_EVERY_S = 60.0
#: Side of a usual view, screen pixels.
VIEW_PX = 700
#: Regions without a class are drawn in this colour.
NO_CLASS_COLOR: Color = (150, 150, 150)
#: Lesions of a picture: Okabe and Ito's sky blue, which grey does not have.
LESION_COLOR: Color = (86, 180, 233)
LESION_OPACITY = 0.35
#: Straight edges that stand for an ellipse.
ELLIPSE_EDGES = 72


# ---- the frames


def pixel_size_yx(slide: Slide) -> tuple[float, float]:
    """Return world units per level-0 pixel, (y, x): µm, or 1 where that is unknown."""
    return (slide.mpp[1], slide.mpp[0]) if slide.has_mpp else (1.0, 1.0)


def units(slide: Slide) -> tuple[str, str]:
    """Return the units of the world of a slide, (y, x)."""
    return ("um", "um") if slide.has_mpp else ("pixel", "pixel")


def world_from_l0(slide: Slide, xy_l0: Any) -> Array:
    """Turn level-0 (x, y) at pixel edges, (..., 2), into world (y, x), (..., 2)."""
    yx = np.asarray(xy_l0, float)[..., ::-1]
    return (yx + EDGE_TO_CENTRE) * np.array(pixel_size_yx(slide))


def l0_from_world(slide: Slide, world_yx: Any) -> Array:
    """Turn world (y, x), (..., 2), into level-0 (x, y) at pixel edges, (..., 2)."""
    yx = np.asarray(world_yx, float) / np.array(pixel_size_yx(slide))
    return (yx - EDGE_TO_CENTRE)[..., ::-1]


def raster_placement(
    slide: Slide, origin_xy_l0: tuple[float, float], pixel_size_l0: tuple[float, float]
) -> dict[str, Any]:
    """Return ``scale``, ``translate`` and ``units`` of a raster laid over a slide.

    Parameters
    ----------
    origin_xy_l0
        Corner (x, y) of its first pixel.
    pixel_size_l0
        (width, height) of its pixels.
    """
    size = np.asarray(pixel_size_l0, float)
    centre = np.asarray(origin_xy_l0, float) + size / 2
    scale = size[::-1] * np.array(pixel_size_yx(slide))
    return {
        "scale": tuple(scale),
        "translate": tuple(world_from_l0(slide, centre)),
        "units": units(slide),
    }


def camera(viewer: napari.viewer.Viewer) -> Any:
    """Return the viewer's camera; napari 0.9 moved it."""
    scene = getattr(viewer, "scene", None)
    return viewer.camera if scene is None else scene.camera


def scale_bar(viewer: napari.viewer.Viewer) -> Any:
    """Return the viewer's scale bar; napari 0.9 moved it."""
    overlays = getattr(getattr(viewer, "canvas", None), "overlays", None)
    return viewer.scale_bar if overlays is None else overlays.scale_bar


def look_at(
    viewer: napari.viewer.Viewer, slide: Slide, box_l0: tuple[float, ...]
) -> None:
    """Bring a box (x0, y0, x1, y1) of a slide to the middle of the view.

    The zoom is left alone unless the box would be a speck, or larger than the view.
    """
    x0, y0, x1, y1 = box_l0
    eye = camera(viewer)
    eye.center = tuple(world_from_l0(slide, ((x0 + x1) / 2, (y0 + y1) / 2)))
    size = max(np.array([y1 - y0, x1 - x0]) * pixel_size_yx(slide))
    if not 0.05 <= size * eye.zoom / VIEW_PX <= 0.9:
        eye.zoom = 0.3 * VIEW_PX / size


def view_l0(
    viewer: napari.viewer.Viewer, slide: Slide
) -> tuple[float, float, float, float]:
    """Return what is seen of a slide's plane, (x0, y0, x1, y1), level-0 pixels."""
    eye = camera(viewer)
    half = np.array(canvas_size(viewer), float) / eye.zoom / 2
    centre = np.array(eye.center[-2:])
    x0, y0 = l0_from_world(slide, centre - half)
    x1, y1 = l0_from_world(slide, centre + half)
    return float(x0), float(y0), float(x1), float(y1)


def canvas_size(viewer: napari.viewer.Viewer) -> tuple[int, int]:
    """Return (height, width) of the canvas, screen pixels; napari 0.9 made it known."""
    size = getattr(getattr(viewer, "canvas", None), "size", None)
    return tuple(viewer._canvas_size) if size is None else tuple(size)  # type: ignore[return-value]


# ---- the slide itself

#: Slides that are open in some layer, so that a file is opened once. Nothing is kept
#: alive by it.
_open_slides: weakref.WeakValueDictionary[str, Slide] = weakref.WeakValueDictionary()


def slide_levels(slide: Slide) -> list[PyramidLevel]:
    """Return the levels of a slide for a viewer; the first picture is begun already.

    A tile that cannot be read is grey and hatched, and complained of once a minute; it
    is drawn again when the file has changed.
    """
    from histomae.slides.pyramid import pyramid

    levels = pyramid(slide, on_error=_Complaints(slide.path))
    levels[-1].begin()
    return levels


def slide_layer_data(
    slide: Slide, levels: Sequence[PyramidLevel] | None = None
) -> tuple[Any, dict[str, Any], str]:
    """Return a slide as napari's ``(data, attributes, "image")``.

    A lazy multiscale layer, RGB uint8, in micrometres; read as it is looked at.

    Parameters
    ----------
    levels
        What :func:`slide_levels` returned, if it was called before.
    """
    levels = levels or slide_levels(slide)
    _open_slides[_key(slide.path)] = slide
    attributes = {
        "name": slide.name,
        "rgb": True,
        "multiscale": True,
        "scale": pixel_size_yx(slide),
        "units": units(slide),
        "axis_labels": ("y", "x"),
        "metadata": {KEY: slide_entry(slide)},
    }
    return levels, attributes, "image"


def lesion_layer_data(slide: Slide, lesion: Array) -> tuple[Any, dict[str, Any], str]:
    """Return a picture's lesions as napari's ``(data, attributes, "labels")``.

    Parameters
    ----------
    lesion
        bool (H, W), on the picture's own pixels.
    """
    attributes = {
        "name": f"{slide.name} · lesion",
        **raster_placement(slide, (0.0, 0.0), (1.0, 1.0)),
        "colormap": _class_colormap([LESION_COLOR], None),
        "features": _class_table(["lesion"]),
        "opacity": LESION_OPACITY,
        "axis_labels": ("y", "x"),
        "metadata": {
            KEY: {
                "kind": "lesion",
                "slide_id": slide.slide_id,
                "path": str(slide.path),
                "pixel_size_yx": list(pixel_size_yx(slide)),
            }
        },
    }
    return lesion.astype(np.uint8), attributes, "labels"


def slide_entry(slide: Slide) -> dict[str, Any]:
    """Return what a slide's layer remembers of it; small, and can be pickled."""
    return {
        "kind": "slide",
        "path": str(slide.path),
        "slide_id": slide.slide_id,
        "mpp": list(slide.mpp) if slide.has_mpp else None,
        "mpp_source": slide.mpp_source,
        "synthetic": slide.is_synthetic,
    }


def open_slide(viewer: napari.viewer.Viewer, slide: Slide) -> Image:
    """Add a slide to the viewer as a layer of its own."""
    levels, attributes, _ = slide_layer_data(slide)
    return viewer.add_image(levels, **attributes)


def slide_behind(entry: Mapping[str, Any]) -> Slide:
    """Return the open slide of a layer's entry; it is opened anew if it was closed.

    Raises
    ------
    SlideError
        If the file cannot be opened any more.
    """
    path = str(entry["path"])
    slide = _open_slides.get(_key(path))
    if slide is None:
        mpp = entry.get("mpp")
        slide = Slide.open(path, mpp=tuple(mpp) if mpp else None)
        _open_slides[_key(path)] = slide
    return slide


def entry_of(layer: Layer) -> dict[str, Any]:
    """Return what we wrote into a layer; empty for a layer that is not ours."""
    entry = layer.metadata.get(KEY, {})
    return entry if isinstance(entry, dict) else {}


def slide_layers(viewer: napari.viewer.Viewer) -> list[Layer]:
    """Return the layers that are slides, from the top of the picture down."""
    return [x for x in reversed(viewer.layers) if entry_of(x).get("kind") == "slide"]


def layers_of(
    viewer: napari.viewer.Viewer, slide: Slide, kind: str | None = None
) -> list[Layer]:
    """Return our layers of a slide, of one kind or of all but the slide itself."""
    ours = [x for x in viewer.layers if entry_of(x).get("slide_id") == slide.slide_id]
    if kind is None:
        return [x for x in ours if entry_of(x)["kind"] != "slide"]
    return [x for x in ours if entry_of(x)["kind"] == kind]


def apply_mpp(viewer: napari.viewer.Viewer, slide: Slide) -> None:
    """Give the layers of a slide the pixel size that it has by now.

    Rasters on the slide are moved with it; what was drawn stays on its pixels.
    """
    new = np.array(pixel_size_yx(slide))
    for layer in [*layers_of(viewer, slide, "slide"), *layers_of(viewer, slide)]:
        old = np.array(entry_of(layer).get("pixel_size_yx") or _old_pixel_size(layer))
        layer.scale = np.array(layer.scale) * new / old
        layer.translate = np.array(layer.translate) * new / old
        layer.units = units(slide)
        if entry_of(layer)["kind"] == "slide":
            layer.metadata[KEY] = slide_entry(slide)
        else:
            entry_of(layer)["pixel_size_yx"] = list(new)


def _old_pixel_size(layer: Layer) -> tuple[float, float]:
    mpp = entry_of(layer).get("mpp")
    return (mpp[1], mpp[0]) if mpp else (1.0, 1.0)


def _key(path: str | Path) -> str:
    return str(Path(path).absolute())


class _Complaints:
    """Says once a minute that a slide cannot be read; called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: float | None = None
        self._lock = threading.Lock()

    def __call__(self, error: SlideError) -> None:
        from napari_histomae._returns import await_return

        await_return(self._path)
        with self._lock:
            now = time.monotonic()
            if self._last is not None and now - self._last < COMPLAINT_EVERY_S:
                return
            self._last = now
        from napari.utils.notifications import show_error

        show_error(f"{error} Unreadable parts are shown in grey.")


# ---- results on the slide


def show_heatmap(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    heatmap: Heatmap,
    name: str,
    *,
    colormap: Any = "viridis",
    contrast_limits: tuple[float, float] | None = None,
    opacity: float = OVERLAY_OPACITY,
    interpolation: str = "nearest",
    visible: bool = True,
) -> Image:
    """Lay numbers over a slide; NaN is transparent.

    Values (rows, columns) are coloured by ``colormap`` within ``contrast_limits`` (the
    range of the values, if None); values (rows, columns, 3 or 4) in 0 to 1 are colours.
    A layer of the same name on the same slide is replaced, and stays shown or hidden.

    Parameters
    ----------
    interpolation
        ``nearest`` for tiles, ``linear`` for attention.
    """
    values = np.asarray(heatmap.values)
    attributes: dict[str, Any] = {
        **raster_placement(slide, heatmap.origin_xy_l0, heatmap.pixel_size_l0),
        "interpolation2d": interpolation,
        "opacity": opacity,
        "blending": "translucent",
        "visible": visible,
    }
    if values.ndim == 3:
        values = _rgba(values)
        attributes["rgb"] = True
    else:
        values = values.astype(np.float32)
        attributes["colormap"] = colormap
        attributes["contrast_limits"] = contrast_limits or _limits(values)
    return _show(viewer, slide, "heatmap", name, values, attributes, viewer.add_image)


def show_classes(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    heatmap: Heatmap,
    name: str,
    class_names: Sequence[str],
    class_colors: Sequence[Color],
    *,
    kind: str = "classes",
    shown: Iterable[int] | None = None,
    opacity: float = OVERLAY_OPACITY,
    visible: bool = True,
) -> Labels:
    """Lay a map of classes over a slide: ints (rows, columns), 1 to K, 0 = none.

    The status bar names the class under the mouse. ``shown`` lists the labels (1 to K)
    that are drawn, all by default; see :func:`restyle_classes`. A layer of the same
    name on the same slide is replaced.
    """
    attributes = {
        **raster_placement(slide, heatmap.origin_xy_l0, heatmap.pixel_size_l0),
        "colormap": _class_colormap(class_colors, shown),
        "features": _class_table(class_names),
        "opacity": opacity,
        "blending": "translucent",
        "visible": visible,
    }
    few = len(class_names) < 256
    labels = np.asarray(heatmap.values).astype(np.uint8 if few else np.uint16)
    layer = _show(viewer, slide, kind, name, labels, attributes, viewer.add_labels)
    layer.editable = False
    return layer


def restyle_classes(
    layer: Labels, class_colors: Sequence[Color], shown: Iterable[int] | None = None
) -> None:
    """Recolour a map of classes, and draw only the labels (1 to K) in ``shown``."""
    layer.colormap = _class_colormap(class_colors, shown)


def show_tissue(
    viewer: napari.viewer.Viewer, slide: Slide, tissue: TissueMask, name: str
) -> Image:
    """Lay a veil over whatever is no tissue; the tissue itself is left as it is.

    It lies right above the slide, below all results. A layer of the same name on the
    same slide is replaced.
    """
    from napari.utils.colormaps import Colormap

    veil = _rgba_of(VEIL_COLOR, 1.0)
    attributes = {
        **raster_placement(slide, (0.0, 0.0), tissue.pixel_size_l0),
        "colormap": Colormap([veil * (1, 1, 1, 0), veil], name="veil"),
        "contrast_limits": (0, 1),
        "interpolation2d": "nearest",
        "opacity": VEIL_OPACITY,
        "blending": "translucent",
    }
    known = set(viewer.layers)
    veiled = (~tissue.mask).astype(np.uint8)
    layer = _show(viewer, slide, "tissue", name, veiled, attributes, viewer.add_image)
    if layer not in known:
        put_right_above(viewer, slide, layer)
    return layer


def put_right_above(viewer: napari.viewer.Viewer, slide: Slide, layer: Layer) -> None:
    """Move a layer to right above its slide: below what was drawn or clicked."""
    below = layers_of(viewer, slide, "slide")
    if below:
        at = viewer.layers.index(below[-1]) + 1
        viewer.layers.move(viewer.layers.index(layer), at)


def show_picture(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    rgb: Array,
    box_l0: tuple[float, float, float, float],
    name: str,
    *,
    opacity: float = 1.0,
    visible: bool = True,
) -> Image:
    """Lay a picture, uint8 (H, W, 3), over the box (x0, y0, x1, y1) of a slide.

    A layer of the same name on the same slide is replaced.
    """
    x0, y0, x1, y1 = box_l0
    high, wide = rgb.shape[:2]
    attributes = {
        **raster_placement(slide, (x0, y0), ((x1 - x0) / wide, (y1 - y0) / high)),
        "rgb": True,
        "opacity": opacity,
        "blending": "translucent",
        "visible": visible,
    }
    return _show(viewer, slide, "picture", name, rgb, attributes, viewer.add_image)


def show_segmented(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    marks: SlideMarks,
    *,
    shown: Iterable[int] | None = None,
    opacity: float = OVERLAY_OPACITY,
) -> list[Layer]:
    """Show what a segmenter found on a part of a slide: areas, objects, their centres.

    Of areas there is one layer, their classes; of objects two more: their numbers, at
    first hidden, and their centres, which carry class and size in the layer's table.
    ``shown`` lists the classes (1 to K) that are drawn. Layers of the same names on the
    same slide are replaced.
    """
    prefix, table = f"{slide.name} · ", marks.table
    # Another part, another segmenter: what is left of the last one would mislead.
    for name in SEGMENTED:
        remove(viewer, slide, prefix + name)
    layers: list[Layer] = [
        show_classes(
            viewer,
            slide,
            marks.classes,
            f"{prefix}areas",
            table.class_names,
            table.class_colors,
            kind="areas",
            shown=shown,
            opacity=opacity,
        )
    ]
    if marks.areas:
        put_right_above(viewer, slide, layers[0])
        return layers
    objects = marks.objects
    place = raster_placement(slide, objects.origin_xy_l0, objects.pixel_size_l0)
    numbers = _show(
        viewer,
        slide,
        "objects",
        f"{prefix}objects",
        np.asarray(objects.values).astype(np.int32),
        {**place, "opacity": opacity, "visible": False},
        viewer.add_labels,
    )
    centres = _show(
        viewer,
        slide,
        "centres",
        f"{prefix}centres",
        table.centres_l0[:, ::-1] + EDGE_TO_CENTRE,
        {
            "scale": pixel_size_yx(slide),
            "units": units(slide),
            "features": {
                "class": [table.class_names[label] for label in table.labels],
                "area": np.round(table.sizes, 1),
            },
            "face_color": _colors_of(table.labels, table.class_colors),
            "border_color": "white",
            "border_width": 0.1,
            "size": _radius(table.outlines_l0),
            "shown": shown_centres(table.labels, shown),
        },
        viewer.add_points,
    )
    for layer in (numbers, layers[0]):
        put_right_above(viewer, slide, layer)
    return [*layers, numbers, centres]


def _colors_of(labels: Array, colors: Sequence[Any]) -> Any:
    """Return the colour of each label; of none any colour, for napari wants one."""
    return (np.array(colors) / 255)[labels] if len(labels) else "white"


def _radius(outlines_l0: Sequence[Any]) -> float:
    """Return the radius of a disc as large as most objects, level-0 pixels."""
    areas = [outline.area for outline in outlines_l0] or [1.0]
    return float(np.sqrt(np.median(areas) / np.pi))


def shown_centres(labels: Array, shown: Iterable[int] | None) -> Array:
    """Return which centres are drawn, bool (n,), of labels (n,), 0 to K - 1."""
    if shown is None:
        return np.ones(len(labels), bool)
    return np.isin(labels + 1, list(shown))


def segmented_layers(viewer: napari.viewer.Viewer, slide: Slide) -> list[Layer]:
    """Return the layers of what a segmenter found on a slide."""
    return [x for kind in SEGMENTED for x in layers_of(viewer, slide, kind)]


def show_sample(
    viewer: napari.viewer.Viewer, rgb: Array, name: str, mpp: float | None
) -> Image:
    """Show a picture of no slide, uint8 (H, W, 3), and go there.

    It lies left of the origin, beside whatever is open, and takes the place of the one
    shown before. ``mpp``: µm per pixel; None: its pixels are the world's.
    """
    for old in [x for x in viewer.layers if entry_of(x).get("kind") == "sample"]:
        viewer.layers.remove(old)
    scale = mpp or 1.0
    high, wide = (side * scale for side in rgb.shape[:2])
    layer = viewer.add_image(
        rgb,
        rgb=True,
        name=name,
        scale=(scale, scale),
        translate=(0.0, -1.1 * wide),
        units=("um", "um") if mpp else ("pixel", "pixel"),
        axis_labels=("y", "x"),
        metadata={KEY: {"kind": "sample"}},
    )
    eye = camera(viewer)
    eye.center = (high / 2, -0.6 * wide)
    eye.zoom = 0.6 * VIEW_PX / max(high, wide)
    return layer


def show_outline(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    box_l0: tuple[float, float, float, float],
    name: str,
    *,
    color: Color = (255, 210, 0),
) -> Shapes:
    """Draw the outline of a box (x0, y0, x1, y1) on a slide.

    The line is as thin as it can be seen now; see :func:`fit_outline`. A layer of the
    same name on the same slide is replaced.
    """
    x0, y0, x1, y1 = box_l0
    corners = np.array([[y0, x0], [y0, x1], [y1, x1], [y1, x0]]) + EDGE_TO_CENTRE
    attributes = {
        "shape_type": "rectangle",
        "scale": pixel_size_yx(slide),
        "units": units(slide),
        "edge_color": _rgba_of(color, 1.0),
        "face_color": np.zeros(4),
        "edge_width": _outline_width(viewer, slide),
        "opacity": 1.0,
    }
    return _show(
        viewer, slide, "outline", name, corners[None], attributes, viewer.add_shapes
    )


def show_marks(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    xy_l0: Array,
    size_l0: float,
    name: str,
    *,
    visible: bool = True,
) -> Points:
    """Ring places (M, 2) of (x, y) on a slide, ``size_l0`` wide, level-0 pixels.

    A layer of the same name on the same slide is replaced.
    """
    attributes = {
        "scale": pixel_size_yx(slide),
        "units": units(slide),
        "size": size_l0,
        "symbol": "disc",
        "face_color": [1.0, 1.0, 1.0, 0.9],
        "border_color": [0.0, 0.0, 0.0, 1.0],
        "border_width": 0.2,
        "opacity": 1.0,
        "visible": visible,
    }
    places = np.asarray(xy_l0, float)[:, ::-1] + EDGE_TO_CENTRE
    return _show(viewer, slide, "marks", name, places, attributes, viewer.add_points)


def show_arrows(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    arrows_l0: Array,
    name: str,
    *,
    width_l0: float,
    color: Color = (255, 210, 0),
    visible: bool = True,
) -> Vectors:
    """Draw arrows on a slide.

    Parameters
    ----------
    arrows_l0
        (M, 2, 2): start (x, y) and displacement (x, y), level-0 pixels. A layer of the
        same name on the same slide is replaced.
    """
    vectors = np.asarray(arrows_l0, float)[..., ::-1].copy()
    vectors[:, 0] += EDGE_TO_CENTRE
    attributes = {
        "scale": pixel_size_yx(slide),
        "units": units(slide),
        "vector_style": "arrow",
        "edge_color": _rgba_of(color, 1.0),
        "edge_width": width_l0,
        "opacity": 1.0,
        "visible": visible,
    }
    return _show(viewer, slide, "arrows", name, vectors, attributes, viewer.add_vectors)


def fit_outline(viewer: napari.viewer.Viewer, slide: Slide, layer: Shapes) -> None:
    """Give an outline the same width on the screen after the zoom changed."""
    layer.edge_width = [_outline_width(viewer, slide)] * layer.nshapes


def _outline_width(viewer: napari.viewer.Viewer, slide: Slide) -> float:
    """Return the width of an outline, level-0 pixels."""
    return OUTLINE_PX / (camera(viewer).zoom * max(pixel_size_yx(slide)))


def remove(viewer: napari.viewer.Viewer, slide: Slide, name: str) -> None:
    """Remove our layer of that name on that slide, if there is one."""
    layer = _find(viewer, slide, name)
    if layer is not None:
        viewer.layers.remove(layer)


def _show(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    kind: str,
    name: str,
    data: Array,
    attributes: dict[str, Any],
    add: Any,
) -> Any:
    """Add a layer, or put new data into the one of that name; selection stays."""
    selected = set(viewer.layers.selection)
    active = viewer.layers.selection.active
    old = _find(viewer, slide, name)
    entry = {
        "kind": kind,
        "slide_id": slide.slide_id,
        "path": str(slide.path),
        "pixel_size_yx": list(pixel_size_yx(slide)),
    }
    place = None
    if old is not None:
        if entry_of(old)["kind"] == kind and np.ndim(old.data) == data.ndim:
            _update(old, data, attributes)
            old.metadata[KEY] = entry
            return old
        place, attributes["visible"] = viewer.layers.index(old), old.visible
        viewer.layers.remove(old)
    layer = add(
        data,
        name=name,
        axis_labels=("y", "x"),
        metadata={KEY: entry},
        **attributes,
    )
    if place is not None:
        viewer.layers.move(viewer.layers.index(layer), place)
    if active is not None and active in viewer.layers:
        viewer.layers.selection = {x for x in selected if x in viewer.layers}
        viewer.layers.selection.active = active
    return layer


def _update(layer: Layer, data: Array, attributes: dict[str, Any]) -> None:
    """Replace data and place; how it looks (shown, opacity, colours) is the user's."""
    layer.data = data
    for name in ("scale", "translate", "units", "contrast_limits", "features"):
        if name in attributes:
            setattr(layer, name, attributes[name])
    if "colormap" in attributes and entry_of(layer)["kind"] == "classes":
        layer.colormap = attributes["colormap"]


def _find(viewer: napari.viewer.Viewer, slide: Slide, name: str) -> Layer | None:
    named = [layer for layer in layers_of(viewer, slide) if layer.name == name]
    return named[0] if named else None


def _limits(values: Array) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low, low + 1.0)


def _rgba(colours: Array) -> Array:
    """Turn colours (H, W, 3 or 4), 0 to 1 or NaN, into uint8 (H, W, 4)."""
    known = np.isfinite(colours).all(-1, keepdims=True)
    alpha = colours[..., 3:] if colours.shape[-1] == 4 else 1.0
    rgba = np.concatenate([colours[..., :3], known * alpha], -1)
    return np.rint(np.nan_to_num(rgba).clip(0, 1) * 255).astype(np.uint8)


def _class_colormap(class_colors: Sequence[Color], shown: Iterable[int] | None) -> Any:
    from napari.utils.colormaps import DirectLabelColormap

    wanted = set(range(1, len(class_colors) + 1) if shown is None else shown)
    colours: dict[int | None, Array] = {None: np.zeros(4), 0: np.zeros(4)}
    for label, rgb in enumerate(class_colors, start=1):
        alpha = 1.0 if label in wanted else 0.0
        colours[label] = np.array([*(c / 255 for c in rgb), alpha])
    return DirectLabelColormap(color_dict=colours)


def _class_table(class_names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the layer's table: napari shows the row whose ``index`` is the label."""
    return {
        "index": list(range(len(class_names) + 1)),
        "class": ["", *class_names],
    }


# ---- what a person draws


def show_annotations(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    annotations: Sequence[Annotation],
    name: str | None = None,
    *,
    class_colors: Mapping[str, Color] | None = None,
) -> Shapes:
    """Show regions as a Shapes layer that can be drawn in.

    Its table has the columns ``class``, ``id`` and ``name``; parts of one region share
    an id, and a hole is drawn by a slit that leads to it. A layer of the same name on
    the same slide is replaced.
    """
    rings, rows = _drawn(annotations, class_colors or {})
    name = name or f"{slide.name} · regions"
    remove(viewer, slide, name)
    edges = [_rgba_of(row[3], 1.0) for row in rows]
    faces = [_rgba_of(row[3], 0.2) for row in rows]
    layer = viewer.add_shapes(
        rings or None,
        shape_type="polygon",
        ndim=2,
        name=name,
        scale=pixel_size_yx(slide),
        units=units(slide),
        axis_labels=("y", "x"),
        features=_region_table(rows),
        feature_defaults={"class": "", "id": "", "name": ""},
        edge_color=edges or [_rgba_of(NO_CLASS_COLOR, 1.0)],
        face_color=faces or [_rgba_of(NO_CLASS_COLOR, 0.2)],
        edge_width=edge_width(slide),
        opacity=1.0,
        metadata={
            KEY: {
                "kind": "annotations",
                "slide_id": slide.slide_id,
                "path": str(slide.path),
                "pixel_size_yx": list(pixel_size_yx(slide)),
            }
        },
    )
    layer.current_edge_width = edge_width(slide)
    return layer


def add_annotations(
    layer: Shapes,
    annotations: Sequence[Annotation],
    *,
    class_colors: Mapping[str, Color] | None = None,
) -> None:
    """Add regions to a layer of :func:`show_annotations`."""
    rings, rows = _drawn(annotations, class_colors or {})
    if not rings:
        return
    first = layer.nshapes
    layer.add(
        rings,
        shape_type="polygon",
        edge_color=[_rgba_of(row[3], 1.0) for row in rows],
        face_color=[_rgba_of(row[3], 0.2) for row in rows],
        edge_width=layer.current_edge_width,
    )
    table = layer.features.copy()
    for column, values in _region_table(rows).items():
        table.loc[table.index[first:], column] = values
    layer.features = table


def _drawn(
    annotations: Sequence[Annotation], class_colors: Mapping[str, Color]
) -> tuple[list[Array], list[tuple[str, str, str, Color]]]:
    """Return the outlines of regions in the layer's data, and the rows of its table."""
    rings: list[Array] = []
    rows: list[tuple[str, str, str, Color]] = []
    for one in annotations:
        colour = class_colors.get(one.class_name) or one.color or NO_CLASS_COLOR
        for ring in _rings(one.roi):
            rings.append(ring[:, ::-1] + EDGE_TO_CENTRE)
            rows.append((one.class_name, one.id, one.name, colour))
    return rings, rows


def edge_width(slide: Slide) -> float:
    """Return a line width, level-0 pixels, that is seen in a view of the slide."""
    return max(1.0, max(slide.dimensions) / 700)


def set_drawing_class(layer: Shapes, class_name: str, color: Color) -> None:
    """Make the next region that is drawn one of a class."""
    selected, layer.selected_data = set(layer.selected_data), set()
    layer.feature_defaults = {"class": class_name, "id": "", "name": ""}
    layer.current_edge_color = _rgba_of(color, 1.0)
    layer.current_face_color = _rgba_of(color, 0.2)
    layer.selected_data = selected


def recolour(layer: Shapes, class_colors: Mapping[str, Color]) -> None:
    """Give every region of a layer the colour of its class."""
    names = list(layer.features["class"]) if layer.nshapes else []
    colours = [class_colors.get(name, NO_CLASS_COLOR) for name in names]
    if colours:
        layer.edge_color = [_rgba_of(colour, 1.0) for colour in colours]
        layer.face_color = [_rgba_of(colour, 0.2) for colour in colours]


def annotations_from(layer: Shapes, slide: Slide) -> list[Annotation]:
    """Return the regions of a Shapes layer, ours or anybody's, in level-0 pixels.

    Lines and paths enclose nothing and are left out. A region without an id is given
    one, which the layer keeps. Shapes of one id and class are one region.
    """
    from shapely.ops import unary_union

    from histomae.slides.annotations import Annotation

    table = layer.features
    parts: dict[tuple[str, str], list[Any]] = {}
    names: dict[tuple[str, str], str] = {}
    colours: dict[tuple[str, str], Color] = {}
    for row, (vertices, kind) in enumerate(
        zip(layer.data, layer.shape_type, strict=True)
    ):
        roi = _roi(_outline(vertices, kind), layer, slide)
        if roi is None:
            continue
        key = (_region_id(layer, row), _cell(table, row, "class"))
        parts.setdefault(key, []).append(roi)
        names[key] = _cell(table, row, "name")
        red, green, blue = np.rint(layer.edge_color[row][:3] * 255).astype(int)
        colours[key] = (int(red), int(green), int(blue))
    return [
        Annotation(
            roi=unary_union(rois) if len(rois) > 1 else rois[0],
            class_name=class_name,
            color=colours[(id_, class_name)],
            id=id_,
            name=names[(id_, class_name)],
        )
        for (id_, class_name), rois in parts.items()
    ]


def _region_id(layer: Shapes, row: int) -> str:
    known = _cell(layer.features, row, "id")
    if known:
        return known
    made = str(uuid.uuid4())
    if "id" in layer.features:
        layer.features.loc[layer.features.index[row], "id"] = made
    return made


def _cell(table: Any, row: int, column: str) -> str:
    """Return a text from a layer's table; empty where it has none."""
    if column not in table:
        return ""
    value = table[column].iloc[row]
    return value if isinstance(value, str) else ""


def _outline(vertices: Array, kind: str) -> Array | None:
    """Return the corners (M, 2) of a shape that encloses something."""
    if kind in ("line", "path"):
        return None
    if kind != "ellipse":
        return np.asarray(vertices, float)
    # napari keeps an ellipse as the four corners of the box around it.
    corner = np.asarray(vertices, float)
    centre = corner.mean(0)
    one, other = (corner[1] - corner[0]) / 2, (corner[2] - corner[1]) / 2
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_EDGES, endpoint=False)[:, None]
    return centre + np.cos(angle) * one + np.sin(angle) * other


def _roi(outline: Array | None, layer: Shapes, slide: Slide) -> Any:
    """Turn an outline in the layer's data into a geometry in l0; None if empty."""
    from shapely import make_valid
    from shapely.geometry import MultiPolygon, Polygon

    if outline is None or len(outline) < 3:
        return None
    world = _to_world(layer, outline)
    roi = make_valid(Polygon(l0_from_world(slide, world)))
    polygons = [x for x in getattr(roi, "geoms", [roi]) if isinstance(x, Polygon)]
    polygons += [
        y
        for x in getattr(roi, "geoms", [])
        if isinstance(x, MultiPolygon)
        for y in x.geoms
    ]
    polygons = [x for x in polygons if x.area > 0]
    if not polygons:
        return None
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


def _to_world(layer: Layer, points: Array) -> Array:
    """Turn points (M, 2) of a layer's data into world; the transform is affine."""
    origin = np.zeros(layer.ndim)
    corner = np.asarray(layer.data_to_world(origin))[-2:]
    axes = [
        np.asarray(layer.data_to_world(step))[-2:] - corner
        for step in np.eye(layer.ndim)[-2:]
    ]
    return corner + points[:, -2:] @ np.array(axes)


def _rings(roi: Any) -> list[Array]:
    """Return the outlines (M, 2) of (x, y) of a geometry, a slit leading to a hole."""
    rings = []
    for polygon in getattr(roi, "geoms", [roi]):
        ring = np.asarray(polygon.exterior.coords)[:-1]
        for hole in polygon.interiors:
            ring = _with_hole(ring, np.asarray(hole.coords)[:-1])
        rings.append(ring)
    return rings


def _with_hole(ring: Array, hole: Array) -> Array:
    """Join a hole to an outline along the shortest line between their corners."""
    apart = ((ring[:, None] - hole[None]) ** 2).sum(-1)
    at, to = np.unravel_index(int(apart.argmin()), apart.shape)
    turned = np.roll(hole, -to, axis=0)
    return np.concatenate([ring[: at + 1], turned, turned[:1], ring[at:]])


def _region_table(rows: Sequence[tuple[str, str, str, Color]]) -> dict[str, Array]:
    # Of objects, so that a table without rows still takes text.
    return {
        "class": np.array([row[0] for row in rows], object),
        "id": np.array([row[1] for row in rows], object),
        "name": np.array([row[2] for row in rows], object),
    }


def _rgba_of(color: Color, alpha: float) -> Array:
    return np.array([*(c / 255 for c in color), alpha])
