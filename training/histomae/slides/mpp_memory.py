"""Pixel sizes a person supplied, remembered per file."""

from __future__ import annotations

from histomae.slides.memory import Memory

_MEMORY = Memory("mpp.json")


def recall(slide_id: str) -> tuple[float, float] | None:
    """Return the (x, y) µm/px remembered for a slide, or None."""
    try:
        mpp_x, mpp_y = _MEMORY.recall(slide_id)
        return float(mpp_x), float(mpp_y)
    except (TypeError, ValueError):  # unknown, or damaged: ask again
        return None


def remember(slide_id: str, mpp_xy: tuple[float, float]) -> None:
    """Remember the (x, y) µm/px of level 0 of a slide."""
    _MEMORY.remember(slide_id, list(mpp_xy))


def forget(slide_id: str) -> None:
    """Forget what was remembered of a slide."""
    _MEMORY.forget(slide_id)
