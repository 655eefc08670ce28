"""What Review found, as layers: maps of a slide, and the tile that was clicked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.classes import UNSURE
from napari_histomae import _layers
from napari_histomae._review import (
    ATTENTION,
    CLASSES,
    CONFIDENCE,
    ERROR,
    LIKENESS,
    PROBABILITY,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import napari
    from napari.layers import Labels, Layer

    from histomae.infer.closeup import CloseUp, Look
    from histomae.infer.predict import Prediction
    from histomae.slides.heatmap import Heatmap
    from histomae.slides.slide import Slide
    from napari_histomae._review import Findings, MapChoice

Array = np.ndarray[Any, Any]
Color = tuple[int, int, int]

#: What tiles are called whose class is not certain.
UNSURE_NAME = "unsure"
#: Colours of errors: better than usual, usual (pale), worse.
DIVERGING = np.array([[0.02, 0.44, 0.69], [0.97, 0.97, 0.97], [0.79, 0.0, 0.13]])
#: The attention of one tile may hide more of it than a map: it is the only one.
TILE_OPACITY = 0.8
#: In a layer's metadata: what is shown of the clicked tile alone.
TILE = "tile"


# ---- maps as layers


def show_map(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    findings: Findings,
    choice: MapChoice,
    *,
    threshold: float = 0.0,
    shown: Iterable[int] | None = None,
    opacity: float = _layers.OVERLAY_OPACITY,
) -> Layer:
    """Show one map of a slide, right above the slide, and hide the others.

    Parameters
    ----------
    threshold
        Tiles of less confidence are unsure; of less probability, left out.
    shown
        Labels (1 to K, K + 1 for unsure) that are drawn; None: all.
    """
    add = _show_classes if choice.kind == CLASSES else _show_numbers
    known = set(viewer.layers)
    layer = add(viewer, slide, findings, choice, threshold, shown)
    layer.opacity = opacity
    for other in map_layers(viewer, slide):
        if (other is layer) != other.visible:
            other.visible = other is layer
    if layer not in known:
        _layers.put_right_above(viewer, slide, layer)
    return layer


def restyle(layer: Labels, prediction: Prediction, shown: Iterable[int] | None) -> None:
    """Draw only some labels of the map of classes."""
    _layers.restyle_classes(layer, (*prediction.class_colors, UNSURE), shown)


def map_layers(viewer: napari.viewer.Viewer, slide: Slide) -> list[Layer]:
    """Return the layers that show maps of a slide, not those of one tile."""
    return [
        layer
        for kind in ("classes", "heatmap")
        for layer in _layers.layers_of(viewer, slide, kind)
        if not _layers.entry_of(layer).get(TILE)
    ]


def overlays(viewer: napari.viewer.Viewer, slide: Slide) -> list[Layer]:
    """Return every layer of results on a slide, so that they can be hidden."""
    return [
        layer
        for layer in _layers.layers_of(viewer, slide)
        if _layers.entry_of(layer)["kind"] != "annotations"
    ]


def drop_maps(viewer: napari.viewer.Viewer, slide: Slide, but: MapChoice) -> None:
    """Remove the maps of an earlier survey; the one that is shown next is kept."""
    kept = _name(slide, but)
    for layer in map_layers(viewer, slide):
        if layer.name != kept:
            viewer.layers.remove(layer)


def _name(slide: Slide, choice: MapChoice) -> str:
    return f"{slide.name} · {choice.label}"


def _show_classes(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    findings: Findings,
    choice: MapChoice,
    threshold: float,
    shown: Iterable[int] | None,
) -> Layer:
    prediction = findings.prediction
    assert prediction is not None
    unsure = len(prediction.class_names) + 1
    return _layers.show_classes(
        viewer,
        slide,
        prediction.class_map(threshold, unsure=unsure),
        _name(slide, choice),
        (*prediction.class_names, UNSURE_NAME),
        (*prediction.class_colors, UNSURE),
        shown=shown,
    )


def _show_numbers(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    findings: Findings,
    choice: MapChoice,
    threshold: float,
    shown: Iterable[int] | None,
) -> Layer:
    from histomae.infer.maps import limits_around_median, limits_of

    heatmap = _heatmap(findings, choice, threshold)
    style: dict[str, Any] = {}
    if choice.kind == PROBABILITY:
        style = {"colormap": "viridis", "contrast_limits": (0.0, 1.0)}
    elif choice.kind == CONFIDENCE:
        assert findings.prediction is not None
        least = 1 / len(findings.prediction.class_names)
        style = {"colormap": "viridis", "contrast_limits": (least, 1.0)}
    elif choice.kind == ATTENTION:
        style = {
            "colormap": attention_colormap(),
            "contrast_limits": limits_of(heatmap.values),
            "interpolation": "linear",
        }
    elif choice.kind == ERROR:
        style = {
            "colormap": diverging_colormap(),
            "contrast_limits": limits_around_median(heatmap.values),
        }
    return _layers.show_heatmap(viewer, slide, heatmap, _name(slide, choice), **style)


def _heatmap(findings: Findings, choice: MapChoice, threshold: float) -> Heatmap:
    if choice.kind in (ATTENTION, ERROR, LIKENESS):
        heatmap: Heatmap = getattr(findings, choice.kind)
        return heatmap
    assert findings.prediction is not None
    if choice.kind == CONFIDENCE:
        return findings.prediction.confidence_map()
    return findings.prediction.probability_map(choice.class_name, threshold)


def diverging_colormap() -> Any:
    """Return the colours of errors, pale in the middle."""
    from napari.utils.colormaps import Colormap

    return Colormap(DIVERGING, name="error")


def attention_colormap() -> Any:
    """Return the colours of attention: clear where there is little, bright where much.

    So the tissue is seen wherever the model does not look.
    """
    from napari.utils.colormaps import Colormap, ensure_colormap

    colors = ensure_colormap("inferno").map(np.linspace(0.3, 1, 256)).copy()
    colors[:, 3] = np.linspace(0, 1, len(colors))
    return Colormap(colors, name="attention")


# ---- the clicked tile as layers


@dataclass(frozen=True)
class TileLayers:
    """What is shown of the clicked tile on the slide; None where there is nothing."""

    outline: Layer
    attention: Layer
    reconstruction: Layer | None


def attention_name(look: Look, num_blocks: int) -> str:
    """Return ``12/3``: block and head, counted from 1; ``12/mean``, ``12/rollout``.

    Looked at by the patches ``12/mean, patches``; of Grad-CAM its class.
    """
    if look.class_name:
        return f"Grad-CAM {look.class_name}"
    block = look.block % num_blocks + 1
    head = look.head + 1 if isinstance(look.head, int) else look.head
    by = ", patches" if look.query == "mean" else ""
    return f"attention {block}/{head}{by}"


def show_closeup(
    viewer: napari.viewer.Viewer,
    slide: Slide,
    closeup: CloseUp,
    num_blocks: int,
    *,
    attention: bool = True,
    reconstruction: bool = False,
) -> TileLayers:
    """Show the clicked tile on its slide, in place of the one clicked before.

    Parameters
    ----------
    attention, reconstruction
        Whether these layers are seen.
    """
    from histomae.infer.maps import limits_of

    prefix = f"{slide.name} · "
    redrawn = None
    if closeup.reconstruction is not None:
        redrawn = _layers.show_picture(
            viewer,
            slide,
            closeup.reconstruction.reconstruction,
            closeup.box_l0,
            f"{prefix}reconstruction",
        )
    else:
        _layers.remove(viewer, slide, f"{prefix}reconstruction")
    name = prefix + attention_name(closeup.look, num_blocks)
    for old in tile_layers(viewer, slide):
        if _layers.entry_of(old)["kind"] == "heatmap":
            old.name = name
    looked = _layers.show_heatmap(
        viewer,
        slide,
        closeup.attention_map,
        name,
        colormap=attention_colormap(),
        contrast_limits=limits_of(closeup.attention_map.values),
        opacity=TILE_OPACITY,
        interpolation="linear",
    )
    outline = _layers.show_outline(viewer, slide, closeup.box_l0, f"{prefix}tile")
    for layer, seen in (
        (looked, attention),
        (redrawn, reconstruction),
        (outline, True),
    ):
        if layer is not None:
            _layers.entry_of(layer)[TILE] = True
            layer.visible = seen
    _layers.entry_of(looked)["attention"] = attention_name(closeup.look, num_blocks)
    return TileLayers(outline, looked, redrawn)


def tile_layers(viewer: napari.viewer.Viewer, slide: Slide) -> list[Layer]:
    """Return the layers of the clicked tile."""
    return [
        layer
        for layer in _layers.layers_of(viewer, slide)
        if _layers.entry_of(layer).get(TILE)
    ]


def remove_closeup(viewer: napari.viewer.Viewer, slide: Slide) -> None:
    """Remove what is shown of a clicked tile."""
    for layer in tile_layers(viewer, slide):
        viewer.layers.remove(layer)


def coloured(
    values: Array, colors: Any, limits: tuple[float, float], unknown: Color = UNSURE
) -> Array:
    """Turn numbers (H, W) into uint8 (H, W, 3); NaN becomes ``unknown``.

    Parameters
    ----------
    colors
        A napari colormap, or the name of one.
    """
    from napari.utils.colormaps import ensure_colormap

    low, high = limits
    shares = ((np.nan_to_num(values) - low) / (high - low)).clip(0, 1)
    rgba = ensure_colormap(colors).map(shares.ravel().astype(np.float32))
    rgb = np.rint(rgba[:, :3] * 255).astype(np.uint8).reshape(*values.shape, 3)
    rgb[~np.isfinite(values)] = unknown
    return rgb
