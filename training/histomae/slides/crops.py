"""Random crops from the tissue of whole slides, and the manifest that lists them.

HMAE (arXiv 2410.12006) pretrains on random regions of every slide, many and with
little redundancy. The paper gives no algorithm; this one draws corners around tissue
pixels and rejects what lies outside, holds too little tissue, or overlaps a crop that
was accepted. The region-dense sampler takes many overlapping crops from each of fewer
regions instead: a region is decoded once for all of them. Each slide has its own random
stream, so that adding a slide changes no crop of another one.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histomae.errors import NotEnoughDataError, RunError
from histomae.events import Event, Note, Progress
from histomae.files import write_beside
from histomae.slides.slide import check_mpp
from histomae.slides.tissue import TissueMask, params_of, tissue_mask

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from histomae.slides.slide import Slide

Floats = np.ndarray[Any, np.dtype[np.float64]]
#: Draws per crop wanted before giving up.
TRIES_PER_CROP = 50
#: Crops that are held out of training together, as neighbours.
CLUSTER_CROPS = 16


@dataclass(frozen=True)
class CropSpec:
    """Which crops are wanted; see :class:`histomae.config.PretrainConfig`."""

    crop_px: int
    mpp: float
    per_slide: int
    min_tissue: float = 0.5
    max_iou: float = 0.25
    held_out: float = 0.1
    seed: int = 0
    allow_upsampling: bool = False
    sampler: str = "random"
    region_px: int = 1024
    crops_per_region: int = 16
    views_mpp: tuple[float, ...] = ()
    """Finer pixel sizes at which the middle of a random crop is seen too, as many
    pixels wide: it holds as large a share of tissue in each."""

    @property
    def is_dense(self) -> bool:
        """Whether many crops are taken from one region."""
        return self.sampler == "region-dense"


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a manifest: where it was, what it is, and its µm per pixel.

    ``tissue`` is what counted as tissue, where that differs from the defaults; see
    :attr:`histomae.slides.tissue.TissueParams.text`.
    """

    path: str
    slide_id: str
    mpp_x: float
    mpp_y: float
    mpp_source: str
    tissue: str = ""


@dataclass(frozen=True)
class CropManifest:
    """Which crop comes from which slide; enough to cut every one of them again.

    ``slide_index`` int (n,) points into ``slides``; ``xy_l0`` float (n, 2) are top-left
    corners (x, y) in level-0 pixels; ``held_out`` bool (n,) marks the crops that are
    kept out of training. No held-out crop overlaps a training crop.

    ``region_xy_l0`` float (n, 2) are the corners of the squares, ``region_px`` pixels
    at ``mpp`` wide, in which the crops lie. Where ``reads_regions``, each is a cut from
    its region, whole pixels from the corner; else they only tell who are neighbours.

    ``views_mpp`` are finer pixel sizes at which the middle of each crop is seen too.
    """

    slides: tuple[SlideEntry, ...]
    slide_index: np.ndarray[Any, np.dtype[np.int64]]
    xy_l0: Floats
    held_out: np.ndarray[Any, np.dtype[np.bool_]]
    crop_px: int
    mpp: float
    region_xy_l0: Floats
    region_px: int
    reads_regions: bool = False
    views_mpp: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.slide_index)

    @cached_property
    def region(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Number of each crop's region, int64 (n,), from 0 without a gap."""
        places = np.column_stack([self.slide_index, self.region_xy_l0])
        numbers: np.ndarray[Any, np.dtype[np.int64]]
        _, numbers = np.unique(places, axis=0, return_inverse=True)
        return numbers.reshape(-1)

    def save(self, path: Path) -> None:
        """Write the manifest as Parquet."""
        header = {
            "slides": [asdict(slide) for slide in self.slides],
            "crop_px": self.crop_px,
            "mpp": self.mpp,
            "region_px": self.region_px,
            "reads_regions": self.reads_regions,
            "views_mpp": self.views_mpp,
        }
        table = pa.table(
            {
                "slide_index": self.slide_index,
                "x_l0": self.xy_l0[:, 0],
                "y_l0": self.xy_l0[:, 1],
                "held_out": self.held_out,
                "region_x_l0": self.region_xy_l0[:, 0],
                "region_y_l0": self.region_xy_l0[:, 1],
            },
            metadata={"histomae": json.dumps(header)},
        )
        with write_beside(path) as beside:
            pq.write_table(table, beside)

    @classmethod
    def load(cls, path: Path) -> CropManifest:
        """Read a manifest.

        Raises
        ------
        RunError
            If the file is missing, damaged or not a manifest.
        """
        try:
            table = pq.read_table(path, memory_map=False)
            header = json.loads(table.schema.metadata[b"histomae"])
            crop_xy, region_xy = (
                np.stack([table[f"{of}{axis}_l0"].to_numpy() for axis in "xy"], 1)
                for of in ("", "region_")
            )
            return cls(
                slides=tuple(SlideEntry(**slide) for slide in header["slides"]),
                slide_index=table["slide_index"].to_numpy(),
                xy_l0=crop_xy,
                held_out=np.asarray(table["held_out"].to_pylist(), bool),
                crop_px=int(header["crop_px"]),
                mpp=float(header["mpp"]),
                region_xy_l0=region_xy,
                region_px=int(header["region_px"]),
                reads_regions=bool(header["reads_regions"]),
                views_mpp=tuple(map(float, header.get("views_mpp", ()))),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path.name} is no list of crops ({error}). Start a new run; the "
                "crops are drawn again from the same seed."
            ) from error


def build_manifest(
    slides: Sequence[Slide], spec: CropSpec
) -> Generator[Event, None, CropManifest]:
    """Draw the crops of every slide.

    Raises
    ------
    UpsamplingError
        If ``spec.mpp`` is finer than a slide has.
    NotEnoughDataError
        If no slide yields a crop.
    """
    index: list[int] = []
    corners: list[Floats] = []
    regions: list[Floats] = []
    held_out: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    begin = time.monotonic()
    for number, slide in enumerate(slides):
        finest = min((spec.mpp, *spec.views_mpp))
        check_mpp(slide, finest, allow_upsampling=spec.allow_upsampling)
        yield Progress("finding tissue", number, len(slides))
        if spec.is_dense:
            xy_l0, region_xy_l0 = sample_regions(slide, tissue_mask(slide), spec)
        else:
            xy_l0 = sample_crops(slide, tissue_mask(slide), spec)
            region_l0 = _side_l0(slide, spec, spec.region_px)
            region_xy_l0 = np.floor(xy_l0 / region_l0) * region_l0
        if len(xy_l0) < spec.per_slide:
            yield Note(
                f"{slide.path.name}: {len(xy_l0)} crops instead of {spec.per_slide}; "
                "its tissue has no room for more."
            )
        side_l0 = _side_l0(slide, spec, spec.crop_px)
        held = hold_out(xy_l0, side_l0, spec, slide.slide_id)
        keep = held.train | held.out
        index += [number] * int(keep.sum())
        corners.append(xy_l0[keep])
        regions.append(region_xy_l0[keep])
        held_out.append(held.out[keep])
    per_s = len(slides) / max(time.monotonic() - begin, 1e-9)
    yield Progress("finding tissue", len(slides), len(slides), per_s)
    manifest = CropManifest(
        slides=tuple(_entry(slide) for slide in slides),
        slide_index=np.asarray(index, np.int64),
        xy_l0=np.concatenate(corners) if corners else np.empty((0, 2)),
        held_out=np.concatenate(held_out) if held_out else np.empty(0, bool),
        crop_px=spec.crop_px,
        mpp=spec.mpp,
        region_xy_l0=np.concatenate(regions) if regions else np.empty((0, 2)),
        region_px=spec.region_px,
        reads_regions=spec.is_dense,
        views_mpp=spec.views_mpp,
    )
    if not (~manifest.held_out).any():
        raise NotEnoughDataError(
            "No crop of tissue was found. Choose slides with tissue, a smaller tile, "
            "or a smaller least share of tissue."
        )
    return manifest


def sample_crops(slide: Slide, tissue: TissueMask, spec: CropSpec) -> Floats:
    """Draw crops from one slide's tissue.

    A tissue pixel is drawn uniformly, so that large pieces get more crops, and the crop
    is centred on it with a jitter of half its side. A crop is refused if it leaves the
    scanned area, holds less tissue than ``spec.min_tissue``, in the middle too where
    that is seen at finer pixel sizes, or overlaps an accepted one by more than
    ``spec.max_iou``.

    Returns
    -------
    float64 (n, 2): top-left corners (x, y), whole level-0 pixels; n is at most
    ``spec.per_slide`` and less where ``TRIES_PER_CROP`` draws each did not suffice.
    """
    size = _side_l0(slide, spec, spec.crop_px)
    insets = [inset_l0(size, spec.mpp, finer) for finer in (spec.mpp, *spec.views_mpp)]
    pixels_yx = np.argwhere(tissue.mask)
    accepted = np.empty((0, 2))
    if not len(pixels_yx):
        return accepted
    random = np.random.default_rng(_stream(spec.seed, slide.slide_id))
    low = np.asarray(slide.bounds_l0[:2], float)
    high = low + slide.bounds_l0[2:] - size
    left = TRIES_PER_CROP * spec.per_slide
    while left > 0 and len(accepted) < spec.per_slide:
        draws = min(left, 4 * spec.per_slide)
        left -= draws
        picked = pixels_yx[random.integers(len(pixels_yx), size=draws)][:, ::-1]
        centre = (picked + random.random((draws, 2))) * tissue.pixel_size_l0
        # Whole level-0 pixels: a crop at the slide's own mpp is then not resampled.
        corner = np.floor(centre + (random.random((draws, 2)) - 0.5) * size - size / 2)
        inside = ((corner >= low) & (corner <= high)).all(1)
        corner = corner[inside]
        share = np.min(
            [
                tissue.fraction(np.hstack([corner + inset, corner + size - inset]))
                for inset in insets
            ],
            axis=0,
        )
        for candidate in corner[share >= spec.min_tissue]:
            if len(accepted) == spec.per_slide:
                break
            if not (iou(candidate, accepted, size) > spec.max_iou).any():
                accepted = np.vstack([accepted, candidate])
    return accepted


def inset_l0(size_l0: Floats, mpp: float, finer_mpp: float) -> Floats:
    """Return how far inside a crop the view of its middle begins, (x, y) level-0 px.

    Parameters
    ----------
    size_l0
        Width and height of the crop, level-0 pixels.
    mpp, finer_mpp
        Those of crop and view, which have as many pixels.
    """
    inset: Floats = size_l0 * (1 - finer_mpp / mpp) / 2
    return inset


def sample_regions(
    slide: Slide, tissue: TissueMask, spec: CropSpec
) -> tuple[Floats, Floats]:
    """Draw regions of one slide's tissue, and many crops from each.

    Regions are squares of a grid that begins where the scanned area does, so that few
    tiles of the file are decoded for one; they are drawn without repetition. In each,
    ``spec.crops_per_region`` crops are placed at random, whole pixels at ``spec.mpp``
    from its corner; they may overlap. Those with too little tissue are left out.

    Returns
    -------
    float64 (n, 2): top-left corners of the crops (x, y), level-0 pixels; n is at most
    ``spec.per_slide``. float64 (n, 2): corners of their regions.
    """
    random = np.random.default_rng(_stream(spec.seed, slide.slide_id))
    pixel, crop = _side_l0(slide, spec, 1), _side_l0(slide, spec, spec.crop_px)
    # Whole level-0 pixels, so that a region at the slide's own mpp is not resampled.
    region = np.floor(_side_l0(slide, spec, spec.region_px))
    low = np.asarray(slide.bounds_l0[:2], float)
    columns, rows = (np.asarray(slide.bounds_l0[2:]) // region).astype(int)
    corners = low + region * np.argwhere(np.ones((columns, rows), bool))
    corners = corners[tissue.fraction(np.hstack([corners, corners + region])) > 0]
    crops, of_region = [np.empty((0, 2))], [np.empty((0, 2))]
    wanted = spec.per_slide
    most = int(spec.region_px - spec.crop_px)
    for corner in random.permutation(corners):
        if wanted <= 0:
            break
        offsets = random.integers(most + 1, size=(spec.crops_per_region, 2))
        placed = corner + offsets * pixel
        share = tissue.fraction(np.hstack([placed, placed + crop]))
        placed = placed[share >= spec.min_tissue][:wanted]
        wanted -= len(placed)
        crops.append(placed)
        of_region.append(np.broadcast_to(corner, placed.shape))
    return np.concatenate(crops), np.concatenate(of_region)


def iou(corner: Floats, others: Floats, size: Floats) -> Floats:
    """Return the intersection over union (M,) of equal boxes at ``corner`` and others.

    Parameters
    ----------
    corner
        (2,) top-left corner.
    others
        (M, 2) top-left corners.
    size
        (2,) width and height of every box, in the same unit.
    """
    overlap = (size - np.abs(others - corner)).clip(0).prod(1)
    shares: Floats = overlap / (2 * size.prod() - overlap)
    return shares


@dataclass(frozen=True)
class HeldOutSplit:
    """Which crops train and which are held out; the rest touch both and do neither."""

    train: np.ndarray[Any, np.dtype[np.bool_]]
    out: np.ndarray[Any, np.dtype[np.bool_]]


def hold_out(
    xy_l0: Floats, size_l0: Floats, spec: CropSpec, slide_id: str
) -> HeldOutSplit:
    """Hold clusters of neighbours out of training; drop the crops that overlap them.

    Neighbouring crops show the same tissue, so single crops would be judged on what was
    seen; and of a cluster only the rim costs training crops. ``spec.held_out`` of the
    crops are held out, or none where that would leave nothing to train on.
    """
    count, wanted = len(xy_l0), round(len(xy_l0) * spec.held_out)
    random = np.random.default_rng(_stream(spec.seed + 1, slide_id))
    out = np.zeros(count, bool)
    for centre in random.permutation(count):
        missing = min(wanted - int(out.sum()), CLUSTER_CROPS)
        if missing <= 0:
            break
        distance = np.abs((xy_l0 - xy_l0[centre]) / size_l0).max(1)
        distance[out] = np.inf
        out[np.argsort(distance, kind="stable")[:missing]] = True
    touching = np.zeros(count, bool)
    for corner in xy_l0[out]:
        touching |= iou(corner, xy_l0, size_l0) > 0
    if touching.all():
        return HeldOutSplit(train=np.ones(count, bool), out=np.zeros(count, bool))
    return HeldOutSplit(train=~touching, out=out)


def _side_l0(slide: Slide, spec: CropSpec, side_px: int) -> Floats:
    """Return width and height, level-0 pixels, of so many pixels at ``spec.mpp``."""
    return side_px * spec.mpp / np.asarray(slide.mpp, float)


def _stream(seed: int, slide_id: str) -> int:
    """Return a seed of 64 bits that depends on this slide and on no other."""
    digest = hashlib.sha256(f"{seed}/{slide_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _entry(slide: Slide) -> SlideEntry:
    return SlideEntry(
        str(slide.path.resolve()),
        slide.slide_id,
        *slide.mpp,
        slide.mpp_source,
        params_of(slide).text,
    )
