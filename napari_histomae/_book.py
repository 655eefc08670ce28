"""The regions of every open slide, their classes, and what can be undone.

What a person drew lives in three places, in this order: the Shapes layers (what is
seen), the book's history (what *Undo* brings back), and a file in each slide's study
folder (what comes back after a crash). The classes are one set for all slides of a
viewer, so that one classifier can be taught on all of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psygnal import Signal
from qtpy.QtCore import QTimer

from histomae.data.classes import PRESETS, ClassSet
from histomae.errors import AnnotationError
from napari_histomae import _layers
from napari_histomae._regions import (
    TOOLS,
    Outline,
    SlideRegions,
    keys_of,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from pathlib import Path

    from napari.layers import Layer

    from histomae.slides.annotations import Annotation
    from histomae.slides.slide import Slide
    from napari_histomae._session import Session

Color = tuple[int, int, int]

#: What a person starts from: to be renamed.
OWN_CLASSES = ClassSet.of(("Invasive", "Stroma", "Fat"))
#: Every change is on the disk this much later, ms.
AUTOSAVE_MS = 400
#: After a failure it is tried again this much later, ms.
RETRY_MS = 10_000
#: Acts that can be undone.
KEPT_ACTS = 200


@dataclass(frozen=True)
class State:
    """All that a person decided, at one moment."""

    classes: ClassSet
    outlines: dict[str, tuple[Outline, ...]]
    """By slide id."""

    def same_as(self, other: State) -> bool:
        """Whether nothing differs."""
        return self.classes == other.classes and (
            {k: keys_of(v) for k, v in self.outlines.items()}
            == {k: keys_of(v) for k, v in other.outlines.items()}
        )


class RegionBook:
    """Every region of the slides of a viewer, their classes, and what was done.

    Call :meth:`sync` once its signals are connected.

    Signals
    -------
    changed
        Regions or classes are others, or another slide is open.
    picked
        Other regions are picked, or the mouse does something else.
    said
        A sentence for the person.
    failed
        What went wrong: an exception or a sentence.
    """

    changed = Signal()
    picked = Signal()
    said = Signal(str)
    failed = Signal(object)

    def __init__(self, session: Session) -> None:
        self._session = session
        self._regions: dict[str, SlideRegions] = {}
        self._classes = OWN_CLASSES
        self._history: list[tuple[str, State]] = []
        self._last = State(self._classes, {})
        self._closed = False
        self.revision = 0
        self._lost: list[tuple[SlideRegions, State]] = []
        self._sync_timer = _once(self.sync, 0)
        self._commit_timer = _once(self._commit_drawn, 0)
        self._save_timer = _once(self.save, AUTOSAVE_MS)
        session.slides_changed.connect(self._on_slides_changed)
        session.viewer.layers.events.removed.connect(self._on_layer_removed)

    def close(self) -> None:
        """Save, and let go of every layer; they stay in the viewer."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._sync_timer, self._commit_timer, self._save_timer):
            timer.stop()
        self._session.slides_changed.disconnect(self._on_slides_changed)
        for regions in self._regions.values():
            if regions.layer is not None and regions.look():
                regions.dirty = True
        self.save()
        for regions in self._regions.values():
            regions.release()
        try:
            layers = self._session.viewer.layers
        except ReferenceError:  # the viewer went first
            return
        layers.events.removed.disconnect(self._on_layer_removed)

    # ---- what there is

    @property
    def classes(self) -> ClassSet:
        """The classes, in order: the first has the key 1."""
        return self._classes

    def of(self, slide: Slide | None) -> SlideRegions | None:
        """Return the regions of an open slide."""
        return None if slide is None else self._regions.get(slide.slide_id)

    @property
    def slides(self) -> list[SlideRegions]:
        """The open slides that have regions, topmost first."""
        return [one for one in self._regions.values() if one.annotations]

    def regions_per_class(self) -> Counter[str]:
        """Return how many regions each class has on all open slides; "" has none."""
        return Counter(
            one.class_name for each in self.slides for one in each.annotations
        )

    @property
    def can_undo(self) -> str:
        """What *Undo* would undo; empty if nothing."""
        return self._history[-1][0] if self._history else ""

    @property
    def drawing(self) -> bool:
        """Whether a region is half drawn."""
        return any(one.drawing for one in self._regions.values())

    def mode(self, slide: Slide | None) -> str:
        """Return what the mouse does on a slide: a name of TOOLS, or nothing."""
        regions = self.of(slide)
        if regions is None or regions.layer is None:
            return ""
        if self._session.viewer.layers.selection.active is not regions.layer:
            return ""
        mode = str(regions.layer.mode)
        return next((tool for tool, its in TOOLS.items() if its == mode), "")

    @property
    def is_closed(self) -> bool:
        """Whether it listens no more."""
        return self._closed

    # ---- acts on regions

    def draw(self, slide: Slide, class_name: str, tool: str) -> None:
        """Make the mouse draw regions of a class on a slide, or pick them."""
        layer = self._regions[slide.slide_id].need_layer()
        viewer = self._session.viewer
        viewer.layers.selection.active = layer
        layer.visible = True
        layer.mode = TOOLS[tool]
        self.draw_class(class_name)

    def draw_class(self, class_name: str) -> None:
        """Make the next region that is drawn one of a class, on every slide."""
        for one in self._regions.values():
            one.draw_with(class_name)

    def stop_drawing(self) -> None:
        """Let the mouse move the slide again."""
        for one in self._regions.values():
            if one.layer is not None:
                one.layer.mode = "pan_zoom"

    def raise_layers(self) -> None:
        """Put what was drawn above everything else."""
        layers = self._session.viewer.layers
        for one in self._regions.values():
            if one.layer is not None:
                layers.move(layers.index(one.layer), len(layers))

    def label_tile(
        self,
        slide: Slide,
        box_l0: tuple[float, float, float, float],
        class_name: str,
    ) -> str:
        """Give a tile a class; take it away where it has it. Return what was done."""
        import shapely

        from histomae.slides.annotations import Annotation

        regions = self._regions[slide.slide_id]
        known = regions.tile_at(box_l0)
        if known is None:
            roi = shapely.box(*box_l0)
            color = self._classes.color_of(class_name)
            regions.add([Annotation(roi, class_name, color)])
            self._commit("labelling a tile")
            return f"This tile is {class_name}."
        rows = regions.rows_of(known.id)
        if known.class_name == class_name:
            regions.remove_rows(rows)
            self._commit("removing a tile")
            return f"This tile is no {class_name} any more."
        regions.relabel_rows(rows, class_name)
        self._commit("relabelling a tile")
        return f"This tile is {class_name} now."

    def relabel_selected(self, slide: Slide, class_name: str) -> int:
        """Give the regions that are picked another class; return how many."""
        regions = self._regions[slide.slide_id]
        rows = regions.selected
        if rows:
            regions.relabel_rows(rows, class_name)
            self._commit("relabelling")
        return len(rows)

    def delete_selected(self, slide: Slide) -> int:
        """Remove the regions that are picked; return how many."""
        regions = self._regions[slide.slide_id]
        rows = regions.selected
        if rows:
            regions.remove_rows(rows)
            self._commit("deleting")
        return len(rows)

    def load(self, slide: Slide, path: Path) -> int:
        """Add the regions of a file to those of a slide; return how many are new.

        Regions that are there already, by their id, are replaced.

        Raises
        ------
        AnnotationError
            If the file cannot be understood.
        """
        from histomae.exchange.qupath import read_annotations

        found = read_annotations(
            path, bounds_xy=slide.bounds_l0[:2], on_skipped=self.said.emit
        )
        regions = self._regions[slide.slide_id]
        used = self.regions_per_class()
        classes = _with_classes_of(self._classes, found, used=used)
        ids = {one.id for one in found}
        rows = [i for i, one in enumerate(regions.outlines) if one.id in ids]
        regions.remove_rows(rows)
        self._give_classes(classes)
        regions.add(found)
        self._commit("loading regions")
        return len(found)

    def save_as(self, slide: Slide, path: Path) -> int:
        """Write the regions of a slide to a file for QuPath; return how many."""
        from histomae.exchange.qupath import write_annotations

        annotations = self._regions[slide.slide_id].annotations
        write_annotations(path, annotations, bounds_xy=slide.bounds_l0[:2])
        return len(annotations)

    # ---- acts on classes

    def use_preset(self, name: str) -> None:
        """Take the classes of a preset, or own ones; those in use stay."""
        wanted = PRESETS.get(name, ClassSet())
        in_use = self.regions_per_class()
        used = [x for x in self._classes.names if in_use[x]]
        if not used and not wanted:
            wanted = OWN_CLASSES
        for class_name in used:
            if class_name not in wanted.names:
                color = self._classes.color_of(class_name)
                wanted = wanted.with_class(class_name, color)
        self._use_classes(wanted, "changing the classes")

    def add_class(self, name: str = "") -> str:
        """Add a class, with a name of its own if none is given; return its name."""
        number = len(self._classes) + 1
        while not name or name in self._classes.names:
            name, number = f"Class {number}", number + 1
        self._use_classes(self._classes.with_class(name), "adding a class")
        return name

    def rename_class(self, old: str, new: str) -> None:
        """Rename a class, and its regions with it.

        Raises
        ------
        ConfigError
            If the name is empty, or another class has it.
        """
        new = new.strip()
        if new == old:
            return
        at = self._classes.names.index(old)
        classes = ClassSet(
            _changed(self._classes.names, at, new),
            self._classes.colors,
            _changed(self._classes.full_names, at, new),
        )
        for one in self._regions.values():
            one.rename_class(old, new)
        self._use_classes(classes, "renaming a class")

    def recolour_class(self, name: str, color: Color) -> None:
        """Give a class another colour."""
        at = self._classes.names.index(name)
        colors = _changed(self._classes.colors, at, color)
        self._use_classes(replace(self._classes, colors=colors), "changing a colour")

    def remove_class(self, name: str) -> int:
        """Remove a class; its regions stay, without one. Return how many."""
        count = self.regions_per_class()[name]
        for one in self._regions.values():
            one.rename_class(name, "")
        self._use_classes(self._classes.without(name), "removing a class")
        return count

    def _use_classes(self, classes: ClassSet, what: str) -> None:
        self._give_classes(classes)
        self._commit(what)

    def _give_classes(self, classes: ClassSet) -> None:
        """Make these the classes of every slide."""
        self._classes = classes
        for one in self._regions.values():
            one.classes = classes

    def _take_new_names(self) -> None:
        """Make classes of names that regions bear and that are none yet."""
        names = (x.class_name for one in self._regions.values() for x in one.outlines)
        self._give_classes(_with_names(self._classes, names))

    # ---- undo

    def undo(self) -> str:
        """Take back the last act; return what it was, or nothing."""
        if not self._history or self.drawing:
            return ""
        self._commit_drawn()
        what, state = self._history.pop()
        self._give_classes(state.classes)
        for slide_id, outlines in state.outlines.items():
            regions = self._regions.get(slide_id)
            if regions is None or keys_of(outlines) == keys_of(regions.outlines):
                continue
            regions.put(outlines)
            regions.regain()
        self._settle(self._state())
        return what

    def _state(self) -> State:
        return State(
            self._classes, {k: one.outlines for k, one in self._regions.items()}
        )

    def _commit_drawn(self) -> None:
        """Note what a person did in the layer itself."""
        if self._closed or self.drawing:
            return
        self._commit_timer.stop()
        before = sum(map(len, self._last.outlines.values()))
        for one in self._regions.values():
            one.look()
        after = sum(len(one.outlines) for one in self._regions.values())
        what = "drawing" if after > before else "deleting" if after < before else ""
        self._commit(what or "changing a region")

    def _commit(self, what: str) -> None:
        self._take_new_names()
        state = self._state()
        if state.same_as(self._last):
            return
        self._history.append((what, self._last))
        del self._history[:-KEPT_ACTS]
        self._settle(state)

    def _settle(self, state: State) -> None:
        """Save what differs from before, and tell."""
        for slide_id, one in self._regions.items():
            one.recolour()
            before = self._last.outlines.get(slide_id, ())
            if self._last.classes != state.classes or before is not one.outlines:
                one.dirty = True
        self._last = state
        self.revision += 1
        self._save_soon()
        self.changed.emit()

    def _save_soon(self) -> None:
        timer = self._save_timer
        if not timer.isActive() or timer.remainingTime() > AUTOSAVE_MS:
            timer.start(AUTOSAVE_MS)

    # ---- slides come and go

    def _on_slides_changed(self) -> None:
        # Layers must not be added while one is being added or removed.
        self._sync_timer.start()

    def sync(self) -> None:
        """Restore the regions of slides that were opened; keep those of closed ones."""
        if self._closed:
            return
        self._sync_timer.stop()
        open_now = {slide.slide_id: slide for slide in self._session.slides}
        for slide_id in [x for x in self._regions if x not in open_now]:
            self._forget(self._regions.pop(slide_id))
        for slide_id, slide in open_now.items():
            if slide_id not in self._regions:
                self._meet(slide)
        lost, self._lost = self._lost, []
        for regions, before in lost:
            self._say_lost(regions, before)
        self._take_new_names()
        for one in self._regions.values():
            one.recolour()
        state = self._state()
        self.revision += not state.same_as(self._last)
        self._last = state
        self.changed.emit()

    def _meet(self, slide: Slide) -> None:
        regions = SlideRegions(self._session, slide)
        regions.touched.connect(self._on_touched)
        regions.picked.connect(self.picked.emit)
        self._regions[slide.slide_id] = regions
        self._adopt_classes(regions)
        regions.classes = self._classes
        shown = _layers.layers_of(self._session.viewer, slide, "annotations")
        if shown:
            regions.adopt(shown[-1])
            self._save_soon()
            return
        try:
            count = regions.restore()
        except (AnnotationError, OSError) as error:
            self.failed.emit(error)
            return
        if count:
            regions.look()
            known = self._classes.names
            self._give_classes(
                _with_classes_of(self._classes, regions.annotations, used=known)
            )
            regions_are = "1 region" if count == 1 else f"{count} regions"
            self.said.emit(f"{regions_are} restored on {slide.name}.")

    def _adopt_classes(self, regions: SlideRegions) -> None:
        """Take the classes last used on a slide; add them where others are in use."""
        known = regions.known_classes()
        if known is None or not len(known):
            return
        if not self._history and not self.regions_per_class():
            self._give_classes(known)
            return
        for name, color in zip(known.names, known.colors, strict=True):
            if name not in self._classes.names:
                self._give_classes(self._classes.with_class(name, color))

    def _forget(self, regions: SlideRegions) -> None:
        """Save the regions of a slide that was closed, and take their layer away."""
        layer = regions.layer
        if layer is not None:
            self._try_to_save(regions)
        regions.release()
        regions.touched.disconnect(self._on_touched)
        regions.picked.disconnect(self.picked.emit)
        if layer is not None and layer in self._session.viewer.layers:
            self._session.viewer.layers.remove(layer)

    def _on_layer_removed(self, event: Any) -> None:
        layer: Layer = event.value
        for one in self._regions.values():
            if one.layer is layer:
                self._try_to_save(one)
                self._lost.append((one, self._state()))
                one.lose()
        # Whether a slide went with its layer is known a moment later.
        self._sync_timer.start()

    def _say_lost(self, regions: SlideRegions, before: State) -> None:
        slide_id = regions.slide.slide_id
        if self._regions.get(slide_id) is regions and before.outlines[slide_id]:
            self._history.append(("removing the layer of regions", before))
            self.said.emit(
                f"The regions of {regions.slide.name} are out of sight, and kept. Undo "
                "brings them back."
            )

    def _on_touched(self) -> None:
        if not self._closed:
            self._commit_timer.start()

    # ---- saving

    def save(self) -> None:
        """Write what is new, now."""
        self._save_timer.stop()
        for one in self._regions.values():
            self._try_to_save(one)

    def _try_to_save(self, regions: SlideRegions) -> None:
        try:
            regions.save()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            self.failed.emit(
                f"The regions of {regions.slide.name} could not be saved ({reason}). "
                "They stay in the window and saving is tried again. Free some room, "
                "or use Save regions to keep them elsewhere."
            )
            if not self._closed:
                self._save_timer.start(RETRY_MS)


# ---- classes


def _with_classes_of(
    classes: ClassSet, found: Iterable[Annotation], *, used: Container[str] = ()
) -> ClassSet:
    """Return the classes, and those of some regions in their own colours.

    A class that is not ``used`` yet takes the colour of the first of its regions.
    """
    settled: set[str] = set()
    for one in found:
        name = one.class_name
        if not name.strip() or name in settled:
            continue
        settled.add(name)
        if name not in classes.names:
            classes = classes.with_class(name, one.color)
        elif one.color is not None and name not in used:
            at = classes.names.index(name)
            colors = _changed(classes.colors, at, one.color)
            classes = ClassSet(classes.names, colors, classes.full_names)
    return classes


def _with_names(classes: ClassSet, names: Iterable[str]) -> ClassSet:
    """Return the classes, and new ones for names that are none."""
    for name in names:
        if name.strip() and name not in classes.names:
            classes = classes.with_class(name)
    return classes


def preset_of(classes: ClassSet) -> str:
    """Return the name of the preset that these classes are; empty if none."""
    return next((k for k, preset in PRESETS.items() if preset == classes), "")


def _changed(values: tuple[Any, ...], at: int, new: Any) -> tuple[Any, ...]:
    return (*values[:at], new, *values[at + 1 :])


def _once(call: Any, after_ms: int) -> QTimer:
    timer = QTimer()
    timer.setSingleShot(True)
    timer.setInterval(after_ms)
    timer.timeout.connect(call)
    return timer
