"""What a person said of a slide, remembered by the slide's id in a file of JSON."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from histomae.files import home, write_beside

if TYPE_CHECKING:
    from pathlib import Path


class Memory:
    """Answers to one question, kept in a file of that name among the user's own.

    A file that is absent or damaged remembers nothing: the question is asked again.
    """

    def __init__(self, file_name: str) -> None:
        self._name = file_name
        # Two threads that remember at once both keep their answer.
        self._lock = threading.Lock()

    def recall(self, slide_id: str) -> Any:
        """Return what was said of a slide, or None."""
        return self._read().get(slide_id)

    def remember(self, slide_id: str, answer: Any) -> None:
        """Keep what was said of a slide, in place of what was said before."""
        with self._lock:
            self._write({**self._read(), slide_id: answer})

    def forget(self, slide_id: str) -> None:
        """Forget what was said of a slide."""
        with self._lock:
            self._write({k: v for k, v in self._read().items() if k != slide_id})

    def _file(self) -> Path:
        return home() / self._name

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._file().read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, Any]) -> None:
        with write_beside(self._file()) as beside:
            beside.write_text(json.dumps(known, indent=1), "utf-8")
