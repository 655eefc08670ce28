"""What tile embeddings are of: they may meet in one model only where this agrees."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileKind:
    """How the tiles of a slide became vectors.

    Places are told in tiles and relative to the slide's extent, so that a model that
    learned tiles of 112 µm would take tiles of 224 µm for the same.
    """

    encoder_id: str
    """Of the encoder of the tiles."""
    feature_dim: int
    """Width of a tile's embedding, C."""
    mpp: float
    """µm per pixel of the tiles."""
    step_um: float
    """From one tile to the next, µm."""

    def difference(self, other: TileKind) -> str:
        """Say in what two differ, naming both; empty where they may be mixed."""
        return "; ".join(
            f"{what} {mine:{form}} and {theirs:{form}}{unit}"
            for what, form, unit, mine, theirs in (
                ("encoder", "", "", self.encoder_id, other.encoder_id),
                ("width", "", "", self.feature_dim, other.feature_dim),
                ("pixel size", ".6g", " µm", self.mpp, other.mpp),
                ("grid step", ".6g", " µm", self.step_um, other.step_um),
            )
            if f"{mine:{form}}" != f"{theirs:{form}}"
        )
