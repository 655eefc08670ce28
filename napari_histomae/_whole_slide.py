"""What PAMA finds out about the open slide. No widget here; jobs are generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    import napari

    from histomae.events import Event
    from histomae.infer.embed import SlideEmbedding
    from histomae.infer.encoder import TileEncoder
    from histomae.infer.regions import Region
    from histomae.infer.slide_view import SlideView
    from histomae.slides.slide import Slide

AREAS, GATHERED, ONE_ANCHOR = "areas", "gathered", "one anchor"
ATTENTION, ERROR = "slide attention", "slide error"


@dataclass(frozen=True)
class Wanted:
    """What is to be looked at, with what.

    ``features``: the file of the slide's features; None: ``load_encoder`` makes them.
    ``region``: None for the whole slide.
    """

    slide: Slide
    model: Path
    features: Path | None
    load_encoder: Callable[[], TileEncoder]
    region: Region | None = None


def maps_of(view: SlideView) -> list[str]:
    """Return the maps that there are."""
    maps = [AREAS, GATHERED, ONE_ANCHOR]
    if view.attention is not None:
        maps.append(ATTENTION)
    if view.error is not None:
        maps.append(ERROR)
    return maps


def regions_on(viewer: napari.viewer.Viewer, slide: Slide) -> list[Region]:
    """Return what is drawn on a slide, by name."""
    from histomae.infer.regions import named_regions
    from napari_histomae import _layers

    drawn = [
        one
        for layer in _layers.layers_of(viewer, slide, "annotations")
        for one in _layers.annotations_from(layer, slide)
    ]
    return named_regions(drawn) if drawn else []


def look(wanted: Wanted) -> Generator[Event, None, SlideView]:
    """Look at a slide or a region with PAMA; its tiles are embedded if need be.

    Raises
    ------
    CheckpointError
        If a model cannot be loaded.
    FeatureError
        If features are of another slide, or not such as the model was trained on; both
        are named, and nothing is embedded in vain.
    NotEnoughDataError
        If there are too few tiles.
    """
    from histomae.exchange.features import read_features
    from histomae.infer.regions import features_within
    from histomae.infer.slide_view import SlideModel, check_of, view_slide

    model = SlideModel.load(wanted.model)
    file = wanted.features
    if file is None:
        from histomae.infer.kept_features import kept_features

        embedding = embedding_for(model.header.features.pooling, wanted.load_encoder())
        model.check_spec(embedding.spec)
        file = yield from kept_features(wanted.slide, embedding)
    features = read_features(file)
    check_of(features, wanted.slide)
    if wanted.region is not None:
        features = features_within(features, wanted.region)
    return (yield from view_slide(features, model))


def embedding_for(pooling: str | None, encoder: TileEncoder) -> SlideEmbedding:
    """Return how an encoder embeds slides, by the pooling if it has that."""
    from histomae.infer.embed import SlideEmbedding

    return SlideEmbedding(encoder, pooling if pooling in encoder.poolings else None)


def embed_all(
    slides: Sequence[Slide], load_encoder: Callable[[], TileEncoder]
) -> Generator[Event, None, tuple[Path, ...]]:
    """Embed slides, those that were not embedded before; return their files."""
    from histomae.infer.embed import SlideEmbedding
    from histomae.infer.kept_features import kept_features

    embedding = SlideEmbedding(load_encoder())
    files = []
    for slide in slides:
        files.append((yield from kept_features(slide, embedding)))
    return tuple(files)
