"""Bags: the embedded tiles of one slide, or of one region, with their places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.slide_labels import SEPARATOR
from histomae.errors import FeatureError, NotEnoughDataError
from histomae.models.anchors import BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histomae.models.feature_spec import FeatureSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Bag:
    """The tiles of one slide as vectors in places. Arrays are copied and read-only.

    Raises
    ------
    NotEnoughDataError
        If there is no tile.
    FeatureError
        If two tiles are in one place, a number is not finite, or shapes do not fit.
    """

    slide: str
    """Name of the slide."""
    region: str = ""
    """Name of the region whose tiles these are; empty for the whole slide."""
    patient: str = ""
    """Whose it is, where that is known; a table of labels tells it otherwise."""
    features: Array
    """float32 (L, C), finite: the tiles' embeddings."""
    cells: Array
    """int64 (L, 2): (row, column) of each tile on a square grid, no two alike."""
    spec: FeatureSpec
    """How the tiles became vectors."""

    def __post_init__(self) -> None:
        for name, dtype in (("features", np.float32), ("cells", np.int64)):
            array = np.array(getattr(self, name), dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if not len(self.features):
            raise NotEnoughDataError(
                f"{self.name} has no tile. Embed it again with a lower min_tissue, or "
                "leave it out."
            )
        if reason := self._what_is_wrong():
            raise FeatureError(f"{self.name} {reason}.")

    @property
    def name(self) -> str:
        """What it is called: its slide, and its region."""
        return f"{self.slide}{SEPARATOR}{self.region}" if self.region else self.slide

    def _what_is_wrong(self) -> str:
        """Return why this is no bag, and what to do; empty if it is one."""
        tiles, width = len(self.features), self.spec.width
        if self.features.shape != (tiles, width) or self.cells.shape != (tiles, 2):
            return (
                f"has features of shape {self.features.shape} and cells of shape "
                f"{self.cells.shape}. Give {width} numbers, a row and a column for "
                "each tile"
            )
        bad = int((~np.isfinite(self.features).all(1)).sum())
        if bad:
            return (
                f"has {bad} of {tiles} tiles with numbers that are not finite. Leave "
                "tiles out that could not be read (Bag.of_readable), or embed it again"
            )
        if len(np.unique(self.cells, axis=0)) < tiles:
            return "has two tiles in one place. Embed it again on a single grid"
        if int(np.ptp(self.cells, axis=0).max()) >= 1 << BITS:
            return f"is more than {1 << BITS} tiles long. Give rows and columns"
        return ""

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of_readable(
        cls,
        *,
        slide: str,
        features: Array,
        cells: Array,
        spec: FeatureSpec,
        patient: str = "",
    ) -> Bag:
        """Make a bag of the tiles whose numbers are finite; the rest is left out.

        Raises
        ------
        NotEnoughDataError
            If there is none.
        """
        read = np.isfinite(features).reshape(len(features), -1).all(1)
        return cls(
            slide=slide,
            patient=patient,
            features=np.asarray(features)[read],
            cells=np.asarray(cells)[read],
            spec=spec,
        )


def check_alike(bags: Sequence[Bag], spec: FeatureSpec | None = None) -> None:
    """Refuse bags that must not meet in one model.

    Parameters
    ----------
    spec
        What a trained model takes; None: the first bag's.

    Raises
    ------
    FeatureError
        Naming what differs, and both.
    """
    wanted = spec or bags[0].spec
    other = "the model was trained on" if spec else f"{bags[0].name} has"
    for bag in bags:
        if difference := bag.spec.difference(wanted):
            raise FeatureError(
                f"{bag.name} has other tiles than {other}: {difference}. Embed all "
                "slides with one encoder, pixel size and tile."
            )
