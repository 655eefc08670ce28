"""One tile, looked at closely: its class, what the encoder sees, what it imagines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.events import Heartbeat
from histomae.infer.reconstruct import Reconstruction, random_masks
from histomae.infer.shares import AttentionShare, on_picture, share_on_lesion
from histomae.slides.heatmap import Heatmap

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.events import Event
    from histomae.infer.encoder import TileEncoder
    from histomae.models.attention import Head, Query
    from histomae.models.probe import Probe
    from histomae.models.restore import Statistics
    from histomae.slides.grid import TileGrid
    from histomae.slides.slide import Slide

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Look:
    """How to look at a tile: which attention, and which mask.

    ``block`` and ``head`` are those of ``TileEncoder.attention``; ``mask_ratio`` is the
    share hidden, ``seed`` draws the mask, ``statistics`` colours what was hidden (see
    :func:`histomae.models.restore.restore_patches`). ``query`` says who looks;
    ``class_name``, of convolutions: Grad-CAM of that class in the place of attention.
    """

    block: int = -1
    head: Head = "mean"
    query: Query = "class_token"
    class_name: str = ""
    mask_ratio: float = 0.75
    seed: int = 0
    statistics: Statistics = "neighbours"


@dataclass(frozen=True)
class CloseUp:
    """What can be said of the tile at ``cell``, (row, column) of ``grid``.

    ``tile``: uint8 (H, W, 3) at the encoder's mpp. ``attention``: float32 (grid_h,
    grid_w). ``reconstruction`` is None where the encoder came without its decoder,
    ``probabilities`` (K,) where there is no probe. ``centre_mm`` is (x, y) from the
    corner of the slide, None where that has no micrometres. ``lesion`` tells how much
    of the attention lies on the lesion of a picture that has a mask.
    """

    grid: TileGrid
    cell: tuple[int, int]
    centre_mm: tuple[float, float] | None
    tile: Array
    attention: Array
    reconstruction: Reconstruction | None
    probabilities: Array | None
    look: Look
    lesion: AttentionShare | None = None

    @property
    def box_l0(self) -> tuple[float, float, float, float]:
        """Corners (x0, y0, x1, y1), level-0 pixels."""
        return self.grid.box_l0(*self.cell)

    @property
    def attention_map(self) -> Heatmap:
        """The attention at its place on the slide; NaN beside a whole picture."""
        x0, y0, x1, y1 = self.box_l0
        rows, columns = self.attention.shape
        size = ((x1 - x0) / columns, (y1 - y0) / rows)
        return Heatmap(on_picture(self.grid, self.attention), (x0, y0), size)


def look_closely(
    slide: Slide,
    encoder: TileEncoder,
    grid: TileGrid,
    cell: tuple[int, int],
    *,
    probe: Probe | None = None,
    look: Look | None = None,
    lesion: Array | None = None,
) -> Generator[Event, None, CloseUp]:
    """Read one tile and ask the encoder all about it.

    Parameters
    ----------
    lesion
        Where the picture shows one, bool (H, W), if that is known.

    Raises
    ------
    SlideError
        If the tile cannot be read.
    ConfigError
        If the encoder has no such block or head.
    """
    look = look or Look()
    tile = grid.read(slide, *cell)
    yield Heartbeat()
    probabilities = None
    if probe is not None:
        embedding = encoder.embed(tile[None], pooling=probe.pooling)
        probabilities = probe.probabilities(embedding)[0]
        yield Heartbeat()
    attention = _attention(encoder, tile, look, probe)
    yield Heartbeat()
    return CloseUp(
        grid=grid,
        cell=cell,
        centre_mm=_centre_mm(slide, grid.box_l0(*cell)),
        tile=tile,
        attention=attention,
        reconstruction=_reconstruction(encoder, tile, look),
        probabilities=probabilities,
        look=look,
        lesion=share_on_lesion(grid, attention, lesion),
    )


def _centre_mm(slide: Slide, box: tuple[float, ...]) -> tuple[float, float] | None:
    if not slide.has_mpp:
        return None
    x0, y0, x1, y1 = box
    mpp_x, mpp_y = slide.mpp
    return (x0 + x1) / 2 * mpp_x / 1000, (y0 + y1) / 2 * mpp_y / 1000


def look_again(
    closeup: CloseUp,
    encoder: TileEncoder,
    look: Look,
    *,
    probe: Probe | None = None,
    lesion: Array | None = None,
) -> CloseUp:
    """Look at the same tile another way; only what differs is computed."""
    old = closeup.look
    attention, reconstruction = closeup.attention, closeup.reconstruction
    if _gaze(look) != _gaze(old):
        attention = _attention(encoder, closeup.tile, look, probe)
    mask = (look.mask_ratio, look.seed, look.statistics)
    if mask != (old.mask_ratio, old.seed, old.statistics):
        reconstruction = _reconstruction(encoder, closeup.tile, look)
    return replace(
        closeup,
        attention=attention,
        reconstruction=reconstruction,
        look=look,
        lesion=share_on_lesion(closeup.grid, attention, lesion),
    )


def _gaze(look: Look) -> tuple[Any, ...]:
    """Return what the map of attention depends on."""
    return look.block, look.head, look.query, look.class_name


def _attention(
    encoder: TileEncoder, tile: Array, look: Look, probe: Probe | None
) -> Array:
    if look.class_name and probe is not None:
        return encoder.grad_cam(tile[None], probe, look.class_name)[0]
    block, head, query = look.block, look.head, look.query
    return encoder.attention(tile[None], block=block, head=head, query=query)[0]


def _reconstruction(
    encoder: TileEncoder, tile: Array, look: Look
) -> Reconstruction | None:
    if not encoder.has_decoder:
        return None
    masks = random_masks(1, encoder.grid_size, look.mask_ratio, look.seed)
    return encoder.reconstruct(tile[None], masks, statistics=look.statistics)[0]
