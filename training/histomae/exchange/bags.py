"""From feature files to bags of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histomae.data.bags import Bag
from histomae.exchange.features import read_features

if TYPE_CHECKING:
    import os

    from histomae.exchange.features import SlideFeatures


def bag_of(features: SlideFeatures) -> Bag:
    """Return the tiles of a slide's features as a bag."""
    header = features.header
    return Bag(
        slide=header.slide,
        region=header.region,
        features=features.values,
        cells=features.cells,
        spec=header.spec,
    )


def read_bag(path: str | os.PathLike[str]) -> Bag:
    """Read one slide's features as a bag.

    Raises
    ------
    FeatureError
        As :func:`histomae.exchange.features.read_features`.
    """
    return bag_of(read_features(path))
