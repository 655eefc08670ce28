"""What the docks of one viewer share: open slides, the model, the classifier.

There is one session per viewer and it holds no widget. It says what changes by signals;
docks listen to them and never reach for each other.
"""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from histomae.errors import SlideError
from histomae.files import home
from napari_histomae import _layers
from napari_histomae._early_reading import read_before_drawing

if TYPE_CHECKING:
    from collections.abc import Iterable

    import napari
    from napari.layers import Layer

    from histomae.infer.encoder import TileEncoder
    from histomae.models.probe import Probe
    from histomae.slides.slide import Slide
    from histomae.slides.tissue import TissueParams

logger = logging.getLogger(__name__)

#: Models kept in memory at once.
MODELS_KEPT = 2

_sessions: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()


class Session:
    """The shared state of one viewer; get it by :meth:`of`.

    Signals (psygnal)
    -----------------
    slides_changed
        A slide was opened or closed, or its pixel size became known.
    slide_changed
        Another slide is the one worked on (:attr:`slide`).
    tissue_changed
        Something else counts as tissue on a slide: its id.
    model_changed, slide_model_changed, probe_changed
        :attr:`model_path`, :attr:`slide_model_path`, or :attr:`probe`, is another one.
    """

    slides_changed = Signal()
    slide_changed = Signal()
    tissue_changed = Signal(str)
    model_changed = Signal()
    slide_model_changed = Signal()
    probe_changed = Signal()

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        # The session must not keep the viewer alive.
        self._viewer = weakref.ref(viewer)
        self._slide: Slide | None = None
        self._slides: dict[str, Slide] = {}
        self._model_path: Path | None = None
        self._slide_model_path: Path | None = None
        self._encoders: dict[tuple[str, int, int], TileEncoder] = {}
        self._probe: Probe | None = None
        self._probe_path: Path | None = None
        read_before_drawing(viewer)
        viewer.layers.events.inserted.connect(self._on_layers_changed)
        viewer.layers.events.removed.connect(self._on_layers_changed)
        viewer.layers.selection.events.active.connect(self._on_active_changed)
        self._on_layers_changed()

    @classmethod
    def of(cls, viewer: napari.viewer.Viewer) -> Session:
        """Return the session of a viewer; it is made when first asked for."""
        real = getattr(viewer, "__wrapped__", viewer)  # docks are given a proxy
        if real not in _sessions:
            _sessions[real] = cls(real)
        return _sessions[real]

    @property
    def viewer(self) -> napari.viewer.Viewer:
        """The viewer, which is alive as long as anybody asks."""
        viewer = self._viewer()
        if viewer is None:
            raise ReferenceError("The viewer is gone. Open a new one.")
        return viewer

    # ---- slides

    @property
    def slides(self) -> list[Slide]:
        """The slides that are open, topmost first, each once."""
        return list(self._slides.values())

    @property
    def slide(self) -> Slide | None:
        """The slide that is worked on.

        That of the active layer, be it the slide or something that lies on it; else the
        one worked on before; else the topmost slide that is shown.
        """
        return self._slide

    def slide_of(self, layer: Layer | None) -> Slide | None:
        """Return the slide that a layer shows or lies on; None if it is not ours."""
        if layer is None:
            return None
        return self._slides.get(str(_layers.entry_of(layer).get("slide_id")))

    def layer_of(self, slide: Slide) -> Layer | None:
        """Return the layer that shows a slide."""
        shown = _layers.layers_of(self.viewer, slide, "slide")
        return shown[-1] if shown else None

    def open_paths(self, paths: Iterable[str | Path]) -> list[Layer]:
        """Open slide files in the viewer, as a drop onto it would.

        A file that cannot be read is complained of in a notification.
        """
        layers: list[Layer] = []
        for path in paths:
            layers += self.viewer.open(str(path), plugin="napari-histomae")
        return layers

    def settle_mpp(self, slide: Slide, mpp: float | tuple[float, float]) -> None:
        """Take a person's answer for a pixel size (µm), and re-scale the layers.

        Raises
        ------
        MissingMppError
            If it is not believable.
        """
        slide.settle_mpp(mpp)
        _layers.apply_mpp(self.viewer, slide)
        self.viewer.reset_view()
        self.slides_changed.emit()

    def set_tissue(self, slide: Slide, params: TissueParams) -> None:
        """Take what counts as tissue on a slide, and remember it."""
        from histomae.slides.tissue import remember_params, remembered_params

        if params != remembered_params(slide):
            remember_params(slide, params)
            self.tissue_changed.emit(slide.slide_id)

    def study_folder(self, slide: Slide) -> Path:
        """Return the folder of what was drawn and found on a slide."""
        return home() / "studies" / f"{slide.name}-{slide.slide_id[:8]}"

    def _on_layers_changed(self) -> None:
        open_now: dict[str, Slide] = {}
        for layer in _layers.slide_layers(self.viewer):
            entry = _layers.entry_of(layer)
            if entry["slide_id"] in open_now:
                continue
            try:
                open_now[entry["slide_id"]] = _layers.slide_behind(entry)
            except SlideError as error:  # a copied layer whose file is gone
                logger.warning("%s", error)
        if open_now and not self._slides:
            _layers.scale_bar(self.viewer).visible = True
        if list(open_now) != list(self._slides):
            self._slides = open_now
            self.slides_changed.emit()
        self._choose_slide()

    def _on_active_changed(self) -> None:
        self._choose_slide()

    def _choose_slide(self) -> None:
        chosen = self.slide_of(self.viewer.layers.selection.active)
        if chosen is None and self._slide in self._slides.values():
            chosen = self._slide
        if chosen is None:
            shown = [x for x in _layers.slide_layers(self.viewer) if x.visible]
            chosen = self.slide_of(shown[0]) if shown else None
        if chosen is None:
            chosen = next(iter(self._slides.values()), None)
        if chosen is not self._slide:
            self._slide = chosen
            self.slide_changed.emit()

    # ---- the model

    @property
    def model_path(self) -> Path | None:
        """The checkpoint of the encoder in use."""
        return self._model_path

    def use_model(self, path: str | Path | None) -> None:
        """Make a checkpoint the one in use; it is loaded when it is first needed."""
        self._model_path = None if path is None else Path(path)
        self.model_changed.emit()

    def encoder(self, path: str | Path | None = None) -> TileEncoder:
        """Return the encoder of a checkpoint, by default of the one in use.

        It takes a second the first time: call it inside a job. Kept while the file is
        the same.

        Raises
        ------
        CheckpointError
            If there is none, or it cannot be used.
        """
        from histomae.errors import CheckpointError
        from histomae.infer.encoder import TileEncoder

        chosen = self._model_path if path is None else Path(path)
        if chosen is None:
            raise CheckpointError("No model is chosen. Choose one, or train one.")
        key = _file_key(chosen)
        if key not in self._encoders:
            loaded = TileEncoder.load(chosen)
            while len(self._encoders) >= MODELS_KEPT:
                self._encoders.pop(next(iter(self._encoders)))
            self._encoders[key] = loaded
        return self._encoders[key]

    @property
    def slide_model_path(self) -> Path | None:
        """The checkpoint of the model of whole slides (PAMA) in use."""
        return self._slide_model_path

    def use_slide_model(self, path: str | Path | None) -> None:
        """Make a checkpoint of PAMA the one in use."""
        self._slide_model_path = None if path is None else Path(path)
        self.slide_model_changed.emit()

    # ---- the classifier

    @property
    def probe(self) -> Probe | None:
        """The classifier in use."""
        return self._probe

    @property
    def probe_path(self) -> Path | None:
        """The file it came from, or was saved to."""
        return self._probe_path

    def use_probe(self, probe: Probe | None, path: str | Path | None = None) -> None:
        """Make a classifier the one in use."""
        self._probe = probe
        self._probe_path = None if path is None else Path(path)
        self.probe_changed.emit()

    def load_probe(self, path: str | Path) -> Probe:
        """Read a classifier from a file and make it the one in use.

        Raises
        ------
        CheckpointError
            If the file holds none.
        """
        from histomae.models.probe import Probe

        probe = Probe.load(Path(path))
        self.use_probe(probe, path)
        return probe


def _file_key(path: Path) -> tuple[str, int, int]:
    from histomae.errors import CheckpointError

    try:
        stat = path.stat()
    except OSError as error:
        raise CheckpointError(
            f"{path.name} is not there any more. Choose another model."
        ) from error
    return str(path.absolute()), stat.st_mtime_ns, stat.st_size
