"""How tiles became vectors: those of different kinds must never be mixed."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """How tiles became vectors: files may be mixed where all of it agrees.

    None: the file does not say.
    """

    encoder: str
    """Name, for people."""
    encoder_id: str | None = None
    """Hash of the encoder's weights."""
    pooling: str | None = None
    """How a tile's tokens became one vector."""
    width: int
    """D."""
    tile_px: int | None = None
    """Side of a tile, pixels of ``mpp``."""
    mpp: float | None = None
    """µm per pixel of the tiles, exactly."""
    step_px: float | None = None
    """From one tile to the next, pixels of ``mpp``; ``tile_px`` where they touch."""
    magnification: float | None = None
    """Nominal, where the file says that instead of ``mpp``."""

    def difference(self, other: FeatureSpec) -> str:
        """Say in what two differ, naming both; empty where they may be mixed."""
        compared: list[tuple[str, object, object]] = [
            ("encoder", self._named, other._named),
            ("pooling", self.pooling, other.pooling),
            ("width", self.width, other.width),
            ("pixel size", _um(self.mpp), _um(other.mpp)),
            ("magnification", self.magnification, other.magnification),
            ("tile size", _px(self.tile_px), _px(other.tile_px)),
            ("grid step", _px(self.step_px), _px(other.step_px)),
        ]
        return "; ".join(
            f"{what} {or_unknown(mine)} and {or_unknown(theirs)}"
            for what, mine, theirs in compared
            if mine != theirs
        )

    @property
    def _named(self) -> str:
        return (
            f"{self.encoder} ({self.encoder_id})" if self.encoder_id else self.encoder
        )


def _um(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g} µm/px"


def _px(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g} px"


def or_unknown(value: object) -> object:
    """Return the value, or the word for one that is not known."""
    return UNKNOWN if value is None else value
