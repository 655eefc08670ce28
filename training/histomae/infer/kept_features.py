"""Features of slides that are embedded once and kept for the next time."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from histomae.errors import FeatureError
from histomae.exchange.features import SUFFIX, read_header, write_features
from histomae.files import cache

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from histomae.events import Event
    from histomae.exchange.features import FeatureHeader
    from histomae.infer.embed import SlideEmbedding
    from histomae.slides.slide import Slide

#: Hexadecimal digits that tell slides, and ways to embed them, apart in names.
NAME_DIGITS = 8


def kept_features(
    slide: Slide, embedding: SlideEmbedding, *, folder: Path | None = None
) -> Generator[Event, None, Path]:
    """Return the file of a slide's features; it is made if it is not there.

    Made anew, too, where something else counts as tissue since, or it is damaged.

    Parameters
    ----------
    folder
        Where it is kept; None: the program's cache.

    Raises
    ------
    UpsamplingError, MissingMppError, NotEnoughDataError, SlideError, FeatureError
        If the slide cannot be embedded.
    """
    folder = folder or cache() / "features"
    how = hashlib.sha256(repr(embedding.spec).encode()).hexdigest()[:NAME_DIGITS]
    file = folder / f"{slide.name}-{slide.slide_id[:NAME_DIGITS]}-{how}{SUFFIX}"
    wanted = embedding.header_of(slide, embedding.grid_over(slide), 0)
    if not _holds(file, wanted):
        write_features(file, (yield from embedding.features_of(slide)))
    return file


def _holds(file: Path, wanted: FeatureHeader) -> bool:
    if not file.exists():
        return False
    try:
        return not read_header(file).difference(wanted)
    except FeatureError:
        return False
