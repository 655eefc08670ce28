"""Features of labelled pictures, computed once for each encoder and rule, and kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.tiling import tiles_of
from histomae.errors import RunError
from histomae.evaluate.candidates import batch_size, tiling_for
from histomae.evaluate.trial_files import (
    DAMAGE,
    load_arrays,
    save_arrays,
    short_hash,
)
from histomae.events import Event, Heartbeat, Progress

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from histomae.data.labelled import LabelledSet
    from histomae.data.tiling import Tiling
    from histomae.evaluate.candidates import Candidate

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
#: Pictures of one file: what is lost at most when the work is broken off.
PER_FILE = 256


@dataclass(frozen=True, eq=False)
class Features:
    """Vectors of tiles: ``values`` float32 (q, D), ``picture`` int64 (q,).

    ``picture`` are rows of the data set, ascending; of pictures that are one vector
    each it is 0 to n - 1.
    """

    values: Floats
    picture: Indices

    def of(self, rows: Indices) -> tuple[Floats, Indices]:
        """Return the vectors of some pictures, and of each its place in ``rows``."""
        starts = np.searchsorted(self.picture, rows, side="left")
        counts = np.searchsorted(self.picture, rows, side="right") - starts
        place = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.values[starts[place] + within], place

    def averaged(self) -> Features:
        """Return one vector for each picture, the mean of its own."""
        count = int(self.picture.max(initial=-1)) + 1
        sums = np.zeros((count, self.values.shape[1]))
        np.add.at(sums, self.picture, self.values)
        means = sums / np.bincount(self.picture, minlength=count)[:, None]
        return Features(means.astype(np.float32), np.arange(count))


def compute_features(
    data: LabelledSet,
    candidate: Candidate,
    tiling: Tiling,
    folder: Path,
    *,
    data_id: str,
) -> Generator[Event, None, Features]:
    """Return the features of all pictures of a data set.

    What lies in ``folder`` already, of the same encoder, rule and data, is not computed
    again.

    Parameters
    ----------
    data_id
        Hash of the data set.

    Raises
    ------
    DataSetError
        If a picture cannot be read.
    ConfigError, UpsamplingError
        If the rule does not fit the pictures.
    """
    tiling = tiling_for(candidate, tiling)
    asked = [candidate.identity, str(tiling), candidate.tile_px, data_id]
    within = folder / short_hash(asked)
    parts, begin = [], time.monotonic()
    for start in range(0, len(data), PER_FILE):
        rows = np.arange(start, min(start + PER_FILE, len(data)))
        path = within / f"{start:07d}.npz"
        part = _kept(path, rows)
        if part is None:
            part = yield from _computed(data, candidate, tiling, rows, begin)
            save_arrays(path, {"values": part.values, "picture": part.picture})
        parts.append(part)
    return Features(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.picture for part in parts]),
    )


def _kept(path: Path, rows: Indices) -> Features | None:
    """Return what a file holds; None where there is none, or it is damaged."""
    try:
        found = Features(**load_arrays(path))
    except DAMAGE:
        return None
    whole = np.array_equal(np.unique(found.picture), rows)
    return found if whole and len(found.values) == len(found.picture) else None


def _computed(
    data: LabelledSet,
    candidate: Candidate,
    tiling: Tiling,
    rows: Indices,
    begin: float,
) -> Generator[Event, None, Features]:
    """Read some pictures and compute their features, a batch of tiles at a time."""
    what, most = f"features of {candidate.label}", batch_size()
    values: list[Floats] = []
    pictures: list[Indices] = []
    waiting: list[Array] = []
    for row in rows.tolist():
        done = time.monotonic() - begin
        left = done / row * (len(data) - row) if row else None
        yield Progress(what, row, len(data), seconds_left=left)
        picture = data.pictures[row]
        tiles = tiles_of(tiling, picture, data.read(picture), candidate.tile_px)
        pictures.append(np.full(len(tiles), row))
        waiting.append(tiles)
        last = row == rows[-1]
        while sum(map(len, waiting)) >= (1 if last else most):
            ready = np.concatenate(waiting)
            waiting = [ready[most:]] if len(ready) > most else []
            values.append(candidate.embed(ready[:most]))
            yield Heartbeat()
    found = np.concatenate(values)
    if not np.isfinite(found).all():
        raise RunError(
            f"{candidate.label} gives numbers that are not finite. Choose f32 as "
            "precision, or another encoder."
        )
    yield Progress(what, int(rows[-1]) + 1, len(data))
    return Features(found.astype(np.float32), np.concatenate(pictures).astype(np.int64))
