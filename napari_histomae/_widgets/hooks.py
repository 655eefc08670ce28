"""Clicks on the slide and keys, taken while a dock is shown and given back after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    import napari

#: A press and a release this near to each other are a click, screen pixels.
CLICK_PX = 5
LEFT_BUTTON = 1


class ViewerHooks:
    """What a dock wants to hear of the viewer; nothing until :meth:`attach`.

    Parameters
    ----------
    on_click
        Called with the world coordinates (y, x) of a click: a press and a release of
        the left button in nearly the same place, while the mouse moves the picture (not
        while it draws).
    keys
        What to do when a key is pressed. A generator function goes on when the key is
        released.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        *,
        on_click: Callable[[tuple[float, float]], None],
        keys: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self._viewer = viewer
        self._on_click = on_click
        self._keys = dict(keys)
        self._before: dict[str, Any] = {}
        self._attached = False

    @property
    def attached(self) -> bool:
        """Whether it listens."""
        return self._attached

    def attach(self) -> None:
        """Listen."""
        if self._attached:
            return
        self._attached = True
        self._viewer.mouse_drag_callbacks.append(self._on_drag)
        for key, act in self._keys.items():
            self._before[key] = self._viewer.bind_key(key, None)
            self._viewer.bind_key(key, act, overwrite=True)

    def detach(self) -> None:
        """Give everything back."""
        if not self._attached:
            return
        self._attached = False
        if self._on_drag in self._viewer.mouse_drag_callbacks:
            self._viewer.mouse_drag_callbacks.remove(self._on_drag)
        for key in self._keys:
            self._viewer.bind_key(key, None)
            before = self._before.pop(key, None)
            if before is not None:
                self._viewer.bind_key(key, before, overwrite=True)

    def _on_drag(self, viewer: Any, event: Any) -> Generator[None, None, None]:
        if event.button != LEFT_BUTTON or event.modifiers or not self._is_free():
            return
        start, world = np.array(event.pos), tuple(event.position)[-2:]
        farthest = 0.0
        yield
        while event.type == "mouse_move":
            farthest = max(farthest, _distance(event.pos, start))
            yield
        if max(farthest, _distance(event.pos, start)) < CLICK_PX:
            self._on_click((float(world[0]), float(world[1])))

    def _is_free(self) -> bool:
        """Whether the mouse moves the picture, and does not draw."""
        active = self._viewer.layers.selection.active
        return active is None or str(active.mode) == "pan_zoom"


def _distance(one: Any, other: Any) -> float:
    return float(np.hypot(*(np.asarray(one) - np.asarray(other))))
