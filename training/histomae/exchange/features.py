"""The tiles of a slide as vectors, in one HDF5 file per slide.

The layout is TRIDENT's: ``features`` (N, D) and ``coords`` (N, 2), the level-0 (x, y)
of each tile's top-left corner, with attributes. TRIDENT goes through magnifications;
the exact pixel size, the grid and the encoder's identity stand in attributes besides,
and ``cells`` (N, 2) holds each tile's (row, column). Files of TRIDENT and of CLAM are
read too; what they do not say is None.

Features of different encoders, pixel sizes or grids must never be mixed:
:func:`check_alike` names what differs.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np

from histomae.errors import FeatureError
from histomae.files import write_beside
from histomae.models.feature_spec import UNKNOWN, FeatureSpec, or_unknown
from histomae.slides.grid import TileGrid, TileSpec

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from io import BufferedRandom, BufferedReader

Array = np.ndarray[Any, Any]
Value = TypeVar("Value")
SUFFIX = ".h5"
#: Of level 0 at magnification 1, µm: what a nominal magnification means.
NOMINAL_MPP = 10.0
#: A data set that says it is larger is refused before it is read, and one that says it
#: is so many times as large as its file: nothing can be packed so well.
MOST_BYTES, MOST_PACKED = 1 << 34, 1100
#: A corner, rounded to whole level-0 pixels, may lie so far from its place, in tiles.
OFF_GRID = 0.02
#: How a file of ours begins, and one of HDF5 without a user block.
SEAL, SEAL_BYTES = b"features of napari-histomae, sha256 ", 512
HDF5 = b"\x89HDF\r\n\x1a\n"
AGAIN = "Copy the file again, or delete it and embed the slide anew."
#: What h5py raises on damaged files.
READ_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class FeatureHeader:
    """What a file says of itself, without its vectors."""

    spec: FeatureSpec
    slide: str
    """Name of the slide's file, without its suffix."""
    region: str = ""
    """Name of the region whose tiles these are; empty for the whole slide."""
    region_id: str = ""
    """Hash of the region's outline."""
    tiles: int
    """N."""
    program: str = "histomae"
    """Who wrote it: histomae, TRIDENT or CLAM."""
    slide_id: str | None = None
    slide_mpp: tuple[float, float] | None = None
    """Pixel size (x, y) of level 0, µm."""
    mpp_source: str | None = None
    """Where that comes from: file, given or remembered."""
    dimensions: tuple[int, int] | None = None
    """Width and height of level 0."""
    grid: TileGrid | None = None
    """On which the tiles lie; None in other programs' files."""
    tissue: Mapping[str, float] = field(default_factory=dict)
    """What counted as tissue: ``min_tissue`` and the fields of ``TissueParams``."""
    precision: str | None = None
    """f32 or bf16: what the encoder computed in."""
    unreadable: int = 0
    """Tiles that the slide could not give; they are left out."""
    synthetic: bool = False
    """Whether the slide is made by a program."""

    @property
    def caveat(self) -> str:
        """What a user of the file must know; empty for nothing."""
        if self.spec.mpp is not None:
            return ""
        nominal = self.spec.magnification
        known = (
            f"; {self.program} says {nominal:g}x, which is no measure"
            if nominal
            else ""
        )
        return f"the pixel size of the tiles is unknown{known}"

    def difference(self, other: FeatureHeader) -> str:
        """Say in what the making of one slide's features differs; empty for nothing."""
        compared = [
            ("slide", self.slide_id, other.slide_id),
            ("region", _region(self), _region(other)),
            ("pixel size of level 0", self.slide_mpp, other.slide_mpp),
            *(
                (f"tissue's {name}", self.tissue.get(name), other.tissue.get(name))
                for name in sorted({*self.tissue, *other.tissue})
            ),
        ]
        told = [
            f"{what} {or_unknown(mine)} and {or_unknown(theirs)}"
            for what, mine, theirs in compared
            if mine != theirs
        ]
        return "; ".join(filter(None, [self.spec.difference(other.spec), *told]))


def _region(header: FeatureHeader) -> str:
    if not header.region_id:
        return "the whole slide"
    return f"{header.region} ({header.region_id})"


@dataclass(frozen=True, eq=False)
class SlideFeatures:
    """The tiles of one slide as vectors.

    ``values`` float32 (N, D), finite. ``coords_l0`` int64 (N, 2): top-left (x, y) of
    each tile, level-0 pixels. ``cells`` int64 (N, 2), no two alike: (row, column) on
    the tile grid; where a file of another program has its tiles on no single grid,
    their (y, x) in level-0 pixels.
    """

    header: FeatureHeader
    values: Array
    coords_l0: Array
    cells: Array

    def __post_init__(self) -> None:
        count, width = self.header.tiles, self.header.spec.width
        shapes = {"values": (count, width), "coords_l0": (count, 2)}
        for name, shape in {**shapes, "cells": (count, 2)}.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"{name} has shape {np.shape(getattr(self, name))}, not {shape}. "
                    "Give one row per tile."
                )


def check_alike(headers: Iterable[tuple[Path, FeatureHeader]]) -> None:
    """Refuse files that must not be mixed.

    Parameters
    ----------
    headers
        Each file with what it says of itself.

    Raises
    ------
    FeatureError
        Naming the first two that differ, and in what.
    """
    ordered = iter(headers)
    first_path, first = next(ordered, (Path(), None))
    for path, header in ordered:
        if first and (difference := first.spec.difference(header.spec)):
            raise FeatureError(
                f"{first_path.name} and {path.name} must not be mixed: {difference}. "
                "Embed all slides with one encoder, pixel size and tile."
            )


def find_features(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the feature files among files and folders, in order, each once.

    Raises
    ------
    FeatureError
        If a path does not exist, or there is no feature file.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FeatureError(f"{path} does not exist. Check the path.")
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        found.update(dict.fromkeys(inside))
    if not found:
        raise FeatureError(
            f"{', '.join(map(str, paths)) or 'Nothing'} holds no feature file "
            f"({SUFFIX}). Make some with 'histomae embed'."
        )
    return list(found)


# Writing ---------------------------------------------------------------------


def write_features(path: str | os.PathLike[str], features: SlideFeatures) -> None:
    """Write one slide's features beside ``path`` and rename.

    The same features give the same bytes.
    """
    path, header = Path(path), features.header
    grid, spec = header.grid, header.spec
    if grid is None or header.slide_mpp is None or header.dimensions is None:
        raise ValueError("There is no grid to write. Give features of histomae's own.")
    where = {"name": header.slide, "savetodir": path.parent.name}
    with (
        write_beside(path) as beside,
        _sealed(beside) as file,
    ):
        values = file.create_dataset("features", data=features.values.astype("<f4"))
        values.attrs.update(
            {
                **where,
                "encoder": spec.encoder,
                "encoder_id": spec.encoder_id or "",
                "pooling": spec.pooling or "",
                "precision": header.precision or "",
            }
        )
        coords = file.create_dataset("coords", data=features.coords_l0.astype("<i8"))
        coords.attrs.update(
            {
                **where,
                "patch_size": grid.spec.tile_px,
                "patch_size_level0": round(sum(grid.tile_size_l0) / 2),
                "level0_magnification": round(NOMINAL_MPP / min(header.slide_mpp)),
                "target_magnification": round(NOMINAL_MPP / grid.spec.mpp),
                "overlap": 0,
                "level0_width": header.dimensions[0],
                "level0_height": header.dimensions[1],
                # From here on: what those are exactly.
                "mpp": grid.spec.mpp,
                "patch_size_um": grid.spec.tile_um,
                "step_level0": grid.tile_size_l0,
                "origin_level0": grid.origin_xy_l0,
                "grid_shape": grid.shape,
                "slide_id": header.slide_id or "",
                "region": header.region,
                "region_id": header.region_id,
                "slide_mpp": header.slide_mpp,
                "mpp_source": header.mpp_source or "",
                "tissue": json.dumps(dict(header.tissue), sort_keys=True),
                "unreadable_tiles": header.unreadable,
                "synthetic": header.synthetic,
            }
        )
        file.create_dataset("cells", data=features.cells.astype("<i8"))


@contextmanager
def _sealed(path: Path) -> Iterator[h5py.File]:
    """Open a new file, and write a digest of it into its user block at the end."""
    # Many network disks know no locks, and nobody else knows this name.
    with h5py.File(path, "w", locking=False, userblock_size=SEAL_BYTES) as file:
        yield file
    with path.open("r+b") as stream:
        seal = SEAL + _digest(stream)
        stream.seek(0)
        stream.write(seal)


def _digest(stream: BufferedRandom | BufferedReader) -> bytes:
    """Return the hash of what follows the user block, as text."""
    stream.seek(SEAL_BYTES)
    return hashlib.file_digest(stream, "sha256").hexdigest().encode()


def _check_seal(path: Path) -> None:
    """Refuse what is no HDF5, and a file of ours that is not as it was written.

    HDF5's library is not made for damaged files: some bytes changed can crash it, or
    keep it busy for ever. Whole files and those cut short it knows.
    """
    with path.open("rb") as stream:
        start = stream.read(SEAL_BYTES)
        if start.startswith(SEAL):
            if start[len(SEAL) :].rstrip(b"\0") != _digest(stream):
                raise ValueError("its bytes are not those that were written")
        elif not start.startswith(HDF5):
            raise ValueError("it is no HDF5 file")


# Reading ---------------------------------------------------------------------


def read_header(path: str | os.PathLike[str]) -> FeatureHeader:
    """Read what a file says of itself; quick, no vector is read.

    Raises
    ------
    FeatureError
        If it is no file of features, or is damaged.
    """
    with _reading(Path(path)) as file:
        return _header(file)


def read_features(path: str | os.PathLike[str]) -> SlideFeatures:
    """Read one slide's features.

    Raises
    ------
    FeatureError
        If it is no file of features, is damaged, has no tile, two tiles in one place,
        or numbers that are not finite.
    """
    with _reading(Path(path)) as file:
        header = _header(file)
        with np.errstate(over="ignore"):  # the infinity that comes of it is told
            values = file.features[()].reshape(header.tiles, -1).astype(np.float32)
        coords = file.coords[()].astype(np.int64)
        if header.grid is None:
            cells = cells_of(coords, _step_l0(file))
        else:
            cells = file.data_set("cells", "iu")[()].astype(np.int64)
            _check_places(cells, coords, header.grid)
    bad = int((~np.isfinite(values).all(1)).sum())
    if bad:
        raise _refused(
            Path(path),
            f"holds numbers that are not finite in {bad} of {header.tiles} tiles",
            "Delete it and embed the slide anew.",
        )
    if len(np.unique(cells, axis=0)) < header.tiles:
        raise _refused(Path(path), "has two tiles in one place", AGAIN)
    return SlideFeatures(header, values, coords, cells)


def cells_of(coords_l0: Array, step_l0: float | None = None) -> Array:
    """Return where tiles lie on a grid that nobody described.

    Parameters
    ----------
    coords_l0
        int (N, 2), level-0 (x, y), N at least 1.
    step_l0
        From one tile to the next, level-0 pixels; None: as most neighbours lie.

    Returns
    -------
    int64 (N, 2), (row, column) from the first ones; where the tiles lie on no single
    grid (CLAM begins one at each piece of tissue): (y, x) in level-0 pixels.
    """
    places = (coords_l0 - coords_l0.min(0))[:, ::-1].astype(np.int64)
    steps = places / (step_l0 or _usual_step(places))
    cells = np.rint(steps)
    on_grid = np.abs(steps - cells).max() <= OFF_GRID
    return cells.astype(np.int64) if on_grid else places


def _usual_step(places: Array) -> float:
    """Return the gap that most neighbours in a row or a column have; 1 for none."""
    gaps = []
    for along in (0, 1):
        line, order = places[:, 1 - along], np.lexsort(places.T[[along, 1 - along]])
        same_line = np.diff(line[order]) == 0
        gaps.append(np.diff(places[order, along])[same_line])
    found, counts = np.unique(np.concatenate(gaps), return_counts=True)
    return float(found[counts.argmax()]) if len(found) else 1.0


class _File:
    """An open file of features, its data sets judged before they are read."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._file, self._bytes = file, path.stat().st_size
        self.path = path
        self.features = self.data_set("features", "f")
        self.coords = self.data_set("coords", "iu")
        if self.coords.ndim != 2 or self.coords.shape[1] != 2:
            raise ValueError(f"its coords have the shape {self.coords.shape}")
        self.tiles = len(self.coords)
        if not self.tiles:
            raise _refused(path, "holds no tile", "Choose a slide with tissue.")
        # Some programs keep a batch of one.
        if self.features.shape[-2:-1] != (self.tiles,) or (
            self.features.shape[:-2] not in ((), (1,))
        ):
            raise ValueError(
                f"its features have the shape {self.features.shape} and its coords "
                f"{self.coords.shape}"
            )

    def data_set(self, name: str, kinds: str) -> h5py.Dataset:
        """Return a data set that lies in this file and holds numbers of a kind."""
        if name not in self._file:
            raise _refused(
                self.path,
                f"holds no data set {name!r}",
                "Choose a file of histomae embed, TRIDENT or CLAM.",
            )
        link = self._file.get(name, getlink=True)
        found = self._file[name] if isinstance(link, h5py.HardLink) else None
        if (
            not isinstance(found, h5py.Dataset)
            or found.is_virtual
            or found.external
            or found.dtype.kind not in kinds
        ):
            raise ValueError(f"{name} is no plain array of numbers")
        if found.nbytes > min(MOST_BYTES, MOST_PACKED * self._bytes):
            raise ValueError(f"{name} declares {found.nbytes} bytes")
        return found

    @property
    def is_ours(self) -> bool:
        return "cells" in self._file and "encoder_id" in self.features.attrs


@contextmanager
def _reading(path: Path) -> Iterator[_File]:
    """Open a file; whatever is wrong with it becomes a sentence."""
    try:
        if not path.is_file():  # a folder, or a pipe that would block
            raise FileNotFoundError(2, "no such file")
        _check_seal(path)
        with h5py.File(path, "r", locking=False) as file:
            yield _File(path, file)
    except FeatureError:
        raise
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno:
            reason = f"cannot be read ({error.strerror})"
        else:
            reason = f"is damaged, or no file of features ({error!s:.200})"
        raise _refused(path, reason, AGAIN) from error


def _refused(path: Path, reason: str, cure: str) -> FeatureError:
    return FeatureError(f"{path.name} {reason}. {cure}")


def _header(file: _File) -> FeatureHeader:
    return _own_header(file) if file.is_ours else _foreign_header(file)


def _own_header(file: _File) -> FeatureHeader:
    made, placed = file.features.attrs, file.coords.attrs
    grid = TileGrid(
        spec=TileSpec(_whole(placed, "patch_size"), _number(placed, "mpp")),
        origin_xy_l0=_pair(placed, "origin_level0"),
        tile_size_l0=_pair(placed, "step_level0"),
        rows=int(_pair(placed, "grid_shape")[0]),
        cols=int(_pair(placed, "grid_shape")[1]),
    )
    spec = FeatureSpec(
        encoder=_text(made, "encoder"),
        encoder_id=_text(made, "encoder_id"),
        pooling=_text(made, "pooling"),
        width=file.features.shape[-1],
        tile_px=grid.spec.tile_px,
        mpp=grid.spec.mpp,
        step_px=grid.spec.tile_px,
    )
    return FeatureHeader(
        spec=spec,
        slide=_text(placed, "name"),
        tiles=file.tiles,
        slide_id=_text(placed, "slide_id"),
        region=_said(placed, "region", _text) or "",
        region_id=_said(placed, "region_id", _text) or "",
        slide_mpp=_pair(placed, "slide_mpp"),
        mpp_source=_text(placed, "mpp_source"),
        dimensions=(_whole(placed, "level0_width"), _whole(placed, "level0_height")),
        grid=grid,
        tissue=dict(json.loads(_text(placed, "tissue"))),
        precision=_text(made, "precision"),
        unreadable=_whole(placed, "unreadable_tiles"),
        synthetic=bool(_whole(placed, "synthetic")),
    )


def _foreign_header(file: _File) -> FeatureHeader:
    """Return what TRIDENT or CLAM say; neither says the pixel size."""
    made, placed = file.features.attrs, file.coords.attrs
    by_trident = "patch_size_level0" in placed
    magnification = _said(placed, "target_magnification", _number)
    tile_px = _said(placed, "patch_size", _whole)
    overlap = _said(placed, "overlap", _number) or 0.0
    return FeatureHeader(
        spec=FeatureSpec(
            encoder=_said(made, "encoder", _text) or UNKNOWN,
            width=file.features.shape[-1],
            tile_px=tile_px,
            step_px=None if tile_px is None else tile_px - overlap,
            magnification=magnification,
        ),
        slide=_said(placed, "name", _text) or file.path.stem,
        tiles=file.tiles,
        program="TRIDENT" if by_trident else "CLAM",
    )


def _step_l0(file: _File) -> float | None:
    """Return from one tile to the next, level-0 pixels, if the file says it."""
    placed = file.coords.attrs
    size_l0 = _said(placed, "patch_size_level0", _number)
    size = _said(placed, "patch_size", _number)
    if not size_l0 or not size:
        return None
    step = size_l0 * (1 - (_said(placed, "overlap", _number) or 0.0) / size)
    return step if step > 0 else None


def _check_places(cells: Array, coords: Array, grid: TileGrid) -> None:
    """Refuse tiles that do not lie where the grid has them."""
    if cells.shape != coords.shape:
        raise ValueError(f"its cells have the shape {cells.shape}")
    corners = grid.l0_from_grid(cells[:, ::-1].astype(float))
    apart = np.abs(corners - coords).max()
    if not apart <= 1 or cells.min() < 0 or (cells >= grid.shape).any():
        raise ValueError("its tiles do not lie on its grid")


# Attributes, which may be anyone's -------------------------------------------


def _said(
    attrs: Mapping[str, Any], name: str, read: Callable[..., Value]
) -> Value | None:
    """Return an attribute if it is there; TRIDENT writes None as a text."""
    if name not in attrs or str(attrs[name]) in ("None", ""):
        return None
    return read(attrs, name)


def _text(attrs: Mapping[str, Any], name: str) -> str:
    value = attrs[name]
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _number(attrs: Mapping[str, Any], name: str) -> float:
    value = float(attrs[name])
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}")
    return value


def _whole(attrs: Mapping[str, Any], name: str) -> int:
    value = _number(attrs, name)
    if value != int(value):
        raise ValueError(f"{name} is {value}")
    return int(value)


def _pair(attrs: Mapping[str, Any], name: str) -> tuple[float, float]:
    first, second = (float(value) for value in attrs[name])
    if not math.isfinite(first) or not math.isfinite(second):
        raise ValueError(f"{name} is {first}, {second}")
    return first, second
