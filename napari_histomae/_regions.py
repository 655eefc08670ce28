"""The regions that a person draws on one slide: their layer, and their file.

Nothing that was drawn is lost by a click of ours: removing the layer leaves the file,
and a file that is not ours to overwrite is put aside under another name.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from histomae.data.classes import ClassSet
from histomae.errors import AnnotationError
from histomae.files import write_beside
from napari_histomae import _layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from napari.layers import Shapes

    from histomae.slides.annotations import Annotation
    from histomae.slides.slide import Slide
    from napari_histomae._session import Session

Array = np.ndarray[Any, Any]
Color = tuple[int, int, int]

#: Corners of a tile's square agree to this much, level-0 pixels: files keep two digits.
SAME_PX = 0.05
#: Modes of a Shapes layer in which a click draws or picks, by the name of the tool.
TOOLS = {
    "lasso": "add_polygon_lasso",
    "corners": "add_polygon",
    "rectangle": "add_rectangle",
    "select": "select",
}
DRAWING_MODES = frozenset({"add_polygon_lasso", "add_polygon", "add_rectangle"})
PICKING_MODES = frozenset({"select", "direct"})


@dataclass(frozen=True, eq=False)
class Outline:
    """One shape of a layer of regions: ``vertices`` (M, 2), the layer's data (y, x)."""

    vertices: Array
    kind: str
    class_name: str
    id: str
    name: str

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What makes it equal to another."""
        return self.kind, self.class_name, self.id, self.name, self.vertices.tobytes()


def keys_of(outlines: Iterable[Outline]) -> list[tuple[Any, ...]]:
    """Return what makes some outlines equal to others."""
    return [outline.key for outline in outlines]


class SlideRegions:
    """The regions of one slide: their layer and their file.

    Signals
    -------
    touched
        A person changed something in the layer.
    picked
        Other shapes are picked, or the mouse does something else.
    """

    touched = Signal()
    picked = Signal()

    def __init__(self, session: Session, slide: Slide) -> None:
        self.slide = slide
        self.classes = ClassSet()
        self.path = session.study_folder(slide) / "regions.geojson"
        self.layer: Shapes | None = None
        self.drawing = False
        self.dirty = False
        self._session = session
        self._quiet = False
        # The file as we last saw it; another one is not ours to overwrite.
        self._stamp: tuple[int, int] | None = None
        self._left_behind = False
        self._outlines: tuple[Outline, ...] = ()
        self._annotations: list[Annotation] | None = None
        self._drawn_with = ""
        # Shapes beyond these were added by a person and are not yet looked at.
        self._settled = 0
        self._shown_in: tuple[ClassSet, tuple[Outline, ...]] | None = None

    # ---- what there is

    @property
    def outlines(self) -> tuple[Outline, ...]:
        """The shapes of the layer, as they were when they were last looked at."""
        return self._outlines

    @property
    def annotations(self) -> list[Annotation]:
        """The regions, in level-0 pixels."""
        if self.layer is None:
            return []
        if self._annotations is None:
            self._annotations = _layers.annotations_from(self.layer, self.slide)
        return self._annotations

    @property
    def selected(self) -> list[int]:
        """The shapes that are picked, where picking is what a click does."""
        layer = self.layer
        if layer is None or str(layer.mode) not in PICKING_MODES:
            return []
        return sorted(int(i) for i in layer.selected_data)

    # ---- the layer

    def take(self, layer: Shapes) -> None:
        """Make a layer the one that shows these regions."""
        self.release()
        self.layer, self._settled = layer, layer.nshapes
        layer.events.data.connect(self._on_data)
        layer.events.features.connect(self._on_features)
        layer.events.highlight.connect(self._on_highlight)
        layer.events.mode.connect(self._on_highlight)
        self.look()

    def adopt(self, layer: Shapes) -> None:
        """Take over a layer that shows what the file holds, or something newer."""
        self.take(layer)
        self._stamp = _stamp_of(self.path)
        self.dirty = True

    def release(self) -> None:
        """Let go of the layer; it stays as it is."""
        if self.layer is not None:
            self.layer.events.data.disconnect(self._on_data)
            self.layer.events.features.disconnect(self._on_features)
            self.layer.events.highlight.disconnect(self._on_highlight)
            self.layer.events.mode.disconnect(self._on_highlight)
        self.layer, self.drawing = None, False
        self._outlines, self._annotations = (), None

    def lose(self) -> None:
        """Let go of a layer that was removed; its file is from now on another's."""
        self.release()
        self._left_behind = True

    def need_layer(self) -> Shapes:
        """Return the layer; an empty one is made where there is none."""
        if self.layer is None:
            self.take(self._show([]))
        assert self.layer is not None
        return self.layer

    def _show(self, annotations: Sequence[Annotation]) -> Shapes:
        """Show regions in a new layer; the active layer stays the active one."""
        selection = self._session.viewer.layers.selection
        active = selection.active
        layer = _layers.show_annotations(
            self._session.viewer,
            self.slide,
            annotations,
            class_colors=colors_of(self.classes),
        )
        if active is not None and active in self._session.viewer.layers:
            selection.active = active
        return layer

    def look(self) -> bool:
        """Read the layer's shapes; return whether they differ from those known."""
        if self.layer is None:
            new: tuple[Outline, ...] = ()
        else:
            self._mend(self.layer)
            new = _outlines_of(self.layer)
        known = {outline.key: outline for outline in self._outlines}
        new = tuple(known.get(outline.key, outline) for outline in new)
        changed = keys_of(new) != keys_of(self._outlines)
        if changed:
            self._outlines, self._annotations = new, None
        return changed

    def put(self, wanted: tuple[Outline, ...]) -> None:
        """Make the layer show these outlines, touching only what differs."""
        self.look()
        if not wanted and self.layer is None:
            return
        layer = self.need_layer()
        surplus = Counter(keys_of(self._outlines))
        surplus.subtract(keys_of(wanted))
        missing = Counter(keys_of(wanted))
        missing.subtract(keys_of(self._outlines))
        removed = [
            i for i, outline in enumerate(self._outlines) if _take_one(surplus, outline)
        ]
        added = [outline for outline in wanted if _take_one(missing, outline)]
        with _Quiet(self):
            layer.selected_data = set()
            if removed:
                layer.remove(removed)
            if added:
                _add_outlines(layer, added, self.classes)
        self.look()

    def add(self, annotations: Sequence[Annotation]) -> None:
        """Add regions."""
        layer = self.need_layer()
        with _Quiet(self):
            colors = colors_of(self.classes)
            _layers.add_annotations(layer, annotations, class_colors=colors)
        self.look()

    def remove_rows(self, rows: Sequence[int]) -> None:
        """Remove shapes."""
        if self.layer is not None and rows:
            with _Quiet(self):
                self.layer.remove(list(rows))
            self.look()

    def relabel_rows(self, rows: Iterable[int], class_name: str) -> None:
        """Give shapes another class."""
        if self.layer is None:
            return
        self.look()
        chosen = set(rows)
        names = [outline.class_name for outline in self._outlines]
        self._set_classes(
            [class_name if i in chosen else name for i, name in enumerate(names)]
        )

    def rename_class(self, old: str, new: str) -> None:
        """Give every shape of a class another class."""
        names = [outline.class_name for outline in self._outlines]
        if old in names:
            self._set_classes([new if name == old else name for name in names])

    def _set_classes(self, names: list[str]) -> None:
        assert self.layer is not None
        with _Quiet(self):
            table = self.layer.features.copy()
            table["class"] = np.array(names, object)
            self.layer.features = table
        self.look()

    def rows_of(self, region_id: str) -> list[int]:
        """Return the shapes of a region."""
        return [i for i, one in enumerate(self._outlines) if one.id == region_id]

    def tile_at(self, box_l0: tuple[float, float, float, float]) -> Annotation | None:
        """Return the region that is exactly this tile, if there is one."""
        area = (box_l0[2] - box_l0[0]) * (box_l0[3] - box_l0[1])
        for one in self.annotations:
            near = np.allclose(one.roi.bounds, box_l0, rtol=0, atol=SAME_PX)
            if near and one.roi.area > 0.999 * area:
                return one
        return None

    def recolour(self) -> None:
        """Give every shape the colour of its class."""
        if self.layer is None or self._shown_in == (self.classes, self._outlines):
            return
        with _Quiet(self):
            _layers.recolour(self.layer, colors_of(self.classes))
        self._annotations = None
        self._shown_in = (self.classes, self._outlines)

    def draw_with(self, class_name: str) -> None:
        """Make the next region that is drawn one of a class."""
        self._drawn_with = class_name
        layer = self.layer
        if layer is None or self.drawing:
            return
        with _Quiet(self):
            if str(layer.mode) in DRAWING_MODES:
                # napari would take the colours of what it has just drawn.
                layer.selected_data = set()
            _layers.set_drawing_class(
                layer, class_name, self.classes.color_of(class_name)
            )

    def _mend(self, layer: Shapes) -> None:
        """Put the layer's table right, and give every new shape an id.

        napari leaves a row behind for a shape that was given up before it had three
        corners: the next shape would get its class. (Its colour stays too, at the end
        of the layer's colours, where it does no harm.) Whenever the table is set,
        napari draws on with the class of its last row.
        """
        count = layer.nshapes
        with _Quiet(self):
            if len(layer.features) > count:
                layer.features = layer.features.iloc[:count].reset_index(drop=True)
            known = {outline.id for outline in self._outlines}
            for row in range(count):
                mine = _text(layer.features, row, "id")
                pasted = row >= self._settled and mine in known
                if not mine or pasted:
                    _set_id(layer, row)
        self._settled = count
        self.draw_with(self._drawn_with)

    def _on_data(self, event: Any) -> None:
        action = str(getattr(event, "action", "changed"))
        if action == "adding":
            self.drawing = True
        elif action in ("added", "removed", "changed"):
            self.drawing = False
            if self._quiet and self.layer is not None:
                self._settled = self.layer.nshapes
            elif self.layer is not None:
                self._settled = min(self._settled, self.layer.nshapes)
            self._tell()

    def _on_features(self) -> None:
        self._tell()

    def _on_highlight(self) -> None:
        if not self._quiet:
            self.picked.emit()

    def _tell(self) -> None:
        if not self._quiet and not self.drawing:
            self.touched.emit()

    # ---- the file

    def restore(self) -> int:
        """Show what the file holds; return the number of regions.

        Raises
        ------
        AnnotationError
            If it cannot be read; it is put aside then.
        """
        from histomae.exchange.qupath import read_annotations

        if not self.path.exists():
            return 0
        try:
            found = read_annotations(self.path)
        except AnnotationError as error:
            kept = _put_aside(self.path)
            raise AnnotationError(
                f"The regions of {self.slide.name} could not be restored. Their file "
                f"is kept as {kept.name}. {error}"
            ) from error
        self._stamp = _stamp_of(self.path)
        if found:
            self.take(self._show(found))
        return len(found)

    def known_classes(self) -> ClassSet | None:
        """Return the classes that were last used on this slide."""
        try:
            known = json.loads(self._classes_path.read_text("utf-8"))
            return ClassSet(
                tuple(map(str, known["names"])),
                tuple((int(r), int(g), int(b)) for r, g, b in known["colors"]),
                tuple(map(str, known["full_names"])),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a convenience: the regions hold names and colours too

    def save(self) -> None:
        """Write the regions and the classes, if there is something new.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        if not self.dirty or self.layer is None:
            return
        from histomae.exchange.qupath import write_annotations

        strange = self._left_behind or _stamp_of(self.path) != self._stamp
        if strange and self.path.exists():
            _put_aside(self.path)
        write_annotations(self.path, self.annotations)
        self._stamp, self._left_behind = _stamp_of(self.path), False
        text = json.dumps(
            {
                "names": self.classes.names,
                "colors": self.classes.colors,
                "full_names": self.classes.full_names,
            },
            indent=1,
        )
        with write_beside(self._classes_path) as beside:
            beside.write_text(text, "utf-8")
        self.dirty = False

    def regain(self) -> None:
        """Take the file for ours again: what it holds is back in the layer."""
        self._left_behind = False

    @property
    def _classes_path(self) -> Path:
        return self.path.with_name("classes.json")


class _Quiet:
    """While it lasts, what happens to a layer is our doing and not a person's."""

    def __init__(self, regions: SlideRegions) -> None:
        self._regions = regions

    def __enter__(self) -> None:
        self._before, self._regions._quiet = self._regions._quiet, True

    def __exit__(self, *error: object) -> None:
        self._regions._quiet = self._before


# ---- shapes


def _outlines_of(layer: Shapes) -> tuple[Outline, ...]:
    table = layer.features
    return tuple(
        Outline(
            np.array(vertices),
            str(kind),
            _text(table, row, "class"),
            _text(table, row, "id"),
            _text(table, row, "name"),
        )
        for row, (vertices, kind) in enumerate(
            zip(layer.data, layer.shape_type, strict=True)
        )
    )


def _text(table: Any, row: int, column: str) -> str:
    value = table[column].iloc[row] if column in table else ""
    return value if isinstance(value, str) else ""


def _set_id(layer: Shapes, row: int) -> None:
    table = layer.features
    if "id" in table:
        table.loc[table.index[row], "id"] = str(uuid.uuid4())


def _add_outlines(
    layer: Shapes, outlines: Sequence[Outline], classes: ClassSet
) -> None:
    first = layer.nshapes
    layer.add(
        [one.vertices for one in outlines],
        shape_type=[one.kind for one in outlines],
        edge_width=layer.current_edge_width,
    )
    table = layer.features.copy()
    rows = table.index[first:]
    table.loc[rows, "class"] = np.array([x.class_name for x in outlines], object)
    table.loc[rows, "id"] = np.array([x.id for x in outlines], object)
    table.loc[rows, "name"] = np.array([x.name for x in outlines], object)
    layer.features = table
    _layers.recolour(layer, colors_of(classes))


def _take_one(counts: Counter[Any], outline: Outline) -> bool:
    if counts[outline.key] <= 0:
        return False
    counts[outline.key] -= 1
    return True


def colors_of(classes: ClassSet) -> dict[str, Color]:
    """Return the colour of each class."""
    return dict(zip(classes.names, classes.colors, strict=True))


# ---- files


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _put_aside(path: Path) -> Path:
    """Rename a file so that it is not overwritten; return its new name."""
    number = 1
    while (kept := path.with_stem(f"{path.stem}-kept-{number}")).exists():
        number += 1
    path.rename(kept)
    return kept
