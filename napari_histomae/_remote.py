"""A slide on a server is copied in the background, and opens when it is here."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import napari
from napari.utils.notifications import show_error, show_info, show_warning

from histomae.events import Note
from histomae.slides.remote import copied
from napari_histomae._jobs import describe, start_job

if TYPE_CHECKING:
    from pathlib import Path

    from histomae.events import Event


def open_when_copied(url: str) -> None:
    """Copy a slide and open it in the viewer of now; its progress is in the window."""
    viewer = napari.current_viewer()
    name = PurePosixPath(urlsplit(url).path).name
    if viewer is None:
        show_error(
            f"{name} can only be copied where there is a viewer. Open one first."
        )
        return

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            show_warning(event.text)

    def open_copy(path: Path) -> None:
        viewer.open(str(path), plugin="napari-histomae")

    start_job(
        viewer.window._qt_window,
        lambda: copied(url),
        name=f"Copying {name}",
        on_event=tell,
        on_done=open_copy,
        on_failed=lambda error: show_error(describe(error)),
    )
    show_info(f"{name} is being copied to this computer; it opens when it is here.")
