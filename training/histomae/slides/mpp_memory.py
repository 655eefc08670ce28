"""Pixel sizes a person supplied, remembered per file."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

from histomae.files import home, write_beside

if TYPE_CHECKING:
    from pathlib import Path

#: Two threads that remember at once both keep their answer.
_LOCK = threading.Lock()


def recall(slide_id: str) -> tuple[float, float] | None:
    """Return the (x, y) µm/px remembered for a slide, or None."""
    try:
        mpp_x, mpp_y = _read()[slide_id]
        return float(mpp_x), float(mpp_y)
    except (KeyError, TypeError, ValueError):  # unknown, or damaged: ask again
        return None


def remember(slide_id: str, mpp_xy: tuple[float, float]) -> None:
    """Remember the (x, y) µm/px of level 0 of a slide."""
    with _LOCK:
        _write({**_read(), slide_id: list(mpp_xy)})


def forget(slide_id: str) -> None:
    """Forget what was remembered of a slide."""
    with _LOCK:
        _write({known: mpp for known, mpp in _read().items() if known != slide_id})


def _file() -> Path:
    return home() / "mpp.json"


def _read() -> dict[str, list[float]]:
    try:
        known = json.loads(_file().read_text("utf-8"))
    except (OSError, ValueError):  # absent, or damaged: ask again
        return {}
    return known if isinstance(known, dict) else {}


def _write(known: dict[str, list[float]]) -> None:
    with write_beside(_file()) as beside:
        beside.write_text(json.dumps(known, indent=1), "utf-8")
