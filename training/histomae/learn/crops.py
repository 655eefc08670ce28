"""The data set of crops: read beside the computing, kept in memory while they fit.

A crop that cannot be read is left out: another one of the batch stands in for it, and
the training says how many there are. Only when nothing can be read for a while, as when
a drive was unplugged, does it end.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotReady
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from histomae.data.pictures import as_tile, middle_square, read_picture
from histomae.errors import DataSetError, HistomaeError, SlideError
from histomae.slides.crops import inset_l0

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from histomae.data.picture_sets import PictureSets
    from histomae.slides.crops import CropManifest
    from histomae.slides.slide import Slide

Indices = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

#: Decoded pictures are kept up to this many bytes.
MEMORY_BYTES = 2 * 2**30
#: Reading threads; the decoders free Python's lock.
READERS = 2
#: Longest wait for a batch before saying that it is not ready, seconds.
PATIENCE_S = 0.1
#: So many other crops are tried when none of a batch can be read.
OTHERS = 16
#: That is tried again after this time, seconds, and given up after the other.
AGAIN_S, GIVE_UP_S = 1.0, 60.0


class Source(Protocol):
    """Where a method's pictures come from."""

    def stream(self, batches: Iterable[Indices]) -> Iterator[Any]:
        """Yield the pictures of each batch of crop numbers, in order.

        uint8 (N, H, W, 3); of methods that see a place at M magnifications
        (N, M, H, W, 3), the coarsest first; or what else the method takes, with a
        method ``to(device)``.
        None says that nothing is ready yet; it is yielded every ``PATIENCE_S`` while
        reading is slow, so that whoever waits can be asked to stop.
        """
        ...

    def complaints(self, *, at_the_end: bool = False) -> list[str]:
        """Return sentences on what cannot be read: what is new, or all at the end."""
        ...


class Reader:
    """Reads pictures by number, and keeps them in memory. A context manager.

    A kind of pictures is a subclass that knows how to decode one (:meth:`_decode`), and
    raises one of ``errors`` where it cannot.

    Parameters
    ----------
    held_out
        bool (n,): which pictures are kept out of training.
    room
        Decoded pictures that are kept.
    evicts
        A picture that has no room takes that of the one used longest ago; else it is
        decoded every time.
    readers
        Reading threads; without any, reading waits until it is asked for.
    """

    #: What the pictures are called.
    what = "crops"
    #: What is raised where one cannot be read.
    errors: tuple[type[HistomaeError], ...] = (SlideError,)

    def __init__(
        self, held_out: Bools, *, room: int, evicts: bool = False, readers: int
    ) -> None:
        self._held_out, self._room, self._evicts = held_out, room, evicts
        self._kept: OrderedDict[int, Future[Pixels]] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = readers
        self._pool = ThreadPoolExecutor(max(readers, 1), thread_name_prefix=self.what)
        self._closing = threading.Event()
        self._unreadable: dict[int, HistomaeError] = {}
        self._complained_of = 0

    def __len__(self) -> int:
        return len(self._held_out)

    @property
    def fits_in_memory(self) -> bool:
        """Whether every picture is decoded only once."""
        return len(self) <= self._room

    def read(self, index: int) -> Pixels:
        """Return picture ``index``; raises one of ``errors`` if it cannot be read."""
        return self._decoded(index, index)

    def _decode(self, index: int) -> Pixels:
        raise NotImplementedError

    def read_batch(self, indices: Indices) -> Pixels:
        """Return several crops, uint8 (N, H, W, 3) or (N, M, H, W, 3).

        In the place of those that cannot be read are others of the batch, or of the
        manifest where there is none; training and held-out crops are never mixed.

        Raises
        ------
        SlideError
            If nothing could be read for ``GIVE_UP_S`` seconds.
        """
        crops = [self._try(index) for index in indices.tolist()]
        there = [crop for crop in crops if crop is not None]
        others = cycle(there or [self._another(int(indices[0]))])
        return np.stack([next(others) if crop is None else crop for crop in crops])

    def complaints(self, *, at_the_end: bool = False) -> list[str]:
        """Say how many crops could not be read, when that has doubled or at the end."""
        with self._lock:
            unreadable = dict(self._unreadable)
        known, count = self._complained_of, len(unreadable)
        if count == known or (count < 2 * known and not at_the_end):
            return []
        self._complained_of = count
        reason = list(unreadable.values())[-1]
        which = f"{count} of {len(self)} {self.what} could not be read"
        return [f"{which} and were left out. {reason}"]

    def _try(self, index: int) -> Pixels | None:
        try:
            return self.read(index)
        except self.errors as error:
            with self._lock:
                self._unreadable[index] = error
            return None

    def _another(self, index: int) -> Pixels:
        """Return a crop of the same kind that can be read; wait for one."""
        held_out = self._held_out
        same = np.flatnonzero(held_out == held_out[index])
        start = int(np.searchsorted(same, index))
        spread = np.unique(np.linspace(0, len(same) - 1, OTHERS).astype(int))
        end = time.monotonic() + GIVE_UP_S
        while True:
            for away in spread.tolist():
                crop = self._try(int(same[(start + away) % len(same)]))
                if crop is not None:
                    return crop
            if self._closing.wait(AGAIN_S) or time.monotonic() > end:
                raise SlideError(
                    f"No crop could be read for {GIVE_UP_S:.0f} s. Bring the slides "
                    f"back, then resume. {self._unreadable[index]}"
                ) from self._unreadable[index]

    def stream(self, batches: Iterable[Indices]) -> Iterator[Pixels | None]:
        """Yield the crops of each batch, uint8 (N, H, W, 3), in order, read ahead.

        See :meth:`Source.stream`.

        Raises
        ------
        SlideError
            As :meth:`read_batch`.
        """
        if not self._readers:
            yield from map(self.read_batch, batches)
            return
        todo = iter(batches)
        ahead: deque[Future[Pixels]] = deque()
        try:
            while True:
                for batch in islice(todo, self._readers + 1 - len(ahead)):
                    ahead.append(self._pool.submit(self.read_batch, batch))
                if not ahead:
                    return
                try:
                    ready = ahead[0].result(timeout=PATIENCE_S)
                except NotReady:
                    yield None
                    continue
                ahead.popleft()
                yield ready
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """End the reading threads and let the memory go."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kept.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _decoded(self, key: int, index: int) -> Pixels:
        """Return what is kept under ``key``, decoded for ``index`` if it is not there.

        Whoever asks for what another thread decodes waits for it.
        """
        with self._lock:
            future, mine = self._kept.get(key), False
            if future is None:
                future, mine = Future(), True
                self._keep(key, future)
            elif self._evicts:
                self._kept.move_to_end(key)
        if mine:
            try:
                future.set_result(self._decode(index))
            except Exception as error:
                with self._lock:  # the next one may have better luck
                    self._kept.pop(key, None)
                future.set_exception(error)
                raise
        return future.result()

    def _keep(self, key: int, future: Future[Pixels]) -> None:
        """Keep a picture if there is room, or make room for a region."""
        full = len(self._kept) >= self._room
        if full and not self._evicts:
            return
        if full and self._kept:
            self._kept.popitem(last=False)
        self._kept[key] = future


class CropReader(Reader):
    """Reads the crops of a manifest. A context manager: threads end with it.

    Where the manifest reads regions, a region is decoded for all of its crops at once.
    Where it has finer views, a crop is (M, H, W, 3): itself, then its middle in each.

    Parameters
    ----------
    slides
        Open slides, one for each of ``manifest.slides``, in order.
    manifest
        Which crops there are; a crop's number is its row.
    memory_bytes
        Decoded pictures are kept until they fill this: crops for good, and what does
        not fit is read every time; of regions those that were used last.
    readers
        Reading threads; without any, reading waits until it is asked for.
    """

    def __init__(
        self,
        slides: Sequence[Slide],
        manifest: CropManifest,
        *,
        memory_bytes: int = MEMORY_BYTES,
        readers: int = READERS,
    ) -> None:
        side = manifest.region_px if manifest.reads_regions else manifest.crop_px
        views = 1 + len(manifest.views_mpp)
        super().__init__(
            manifest.held_out,
            room=memory_bytes // (3 * side**2 * views),
            evicts=manifest.reads_regions,
            readers=readers,
        )
        self._slides = tuple(slides)
        self._manifest = manifest

    @property
    def fits_in_memory(self) -> bool:
        """Whether every crop is decoded only once."""
        manifest = self._manifest
        regions = int(manifest.region.max(initial=-1)) + 1
        return (regions if manifest.reads_regions else len(self)) <= self._room

    def read(self, index: int) -> Pixels:
        """Return crop ``index``, uint8 (H, W, 3), RGB at the manifest's mpp.

        With finer views (M, H, W, 3), the crop itself first.

        Raises
        ------
        SlideError
            If its slide cannot be read there.
        """
        if not self._manifest.reads_regions:
            return self._decoded(index, index)
        try:
            region = self._decoded(int(self._manifest.region[index]), index)
        except SlideError:  # which need not be for this crop's sake
            return self._cut(index, self._manifest.xy_l0, self._manifest.crop_px)
        x, y = self._place_in_region(index)
        side = self._manifest.crop_px
        return region[y : y + side, x : x + side]

    def _decode(self, index: int) -> Pixels:
        manifest = self._manifest
        if manifest.reads_regions:
            return self._cut(index, manifest.region_xy_l0, manifest.region_px)
        crop = self._cut(index, manifest.xy_l0, manifest.crop_px)
        if not manifest.views_mpp:
            return crop
        views = [self._middle(index, finer) for finer in manifest.views_mpp]
        return np.stack([crop, *views])

    def _middle(self, index: int, finer_mpp: float) -> Pixels:
        """Read the middle of a crop, as many pixels wide, at a finer pixel size."""
        manifest = self._manifest
        slide = self._slides[manifest.slide_index[index]]
        size = manifest.crop_px * manifest.mpp / np.asarray(slide.mpp)
        x, y = manifest.xy_l0[index] + inset_l0(size, manifest.mpp, finer_mpp)
        side_px = (manifest.crop_px, manifest.crop_px)
        return slide.read_region((x, y), side_px, finer_mpp)

    def _cut(self, index: int, corners_l0: Floats, side_px: int) -> Pixels:
        """Read a square of a crop's slide; its corner is one of (n, 2), by crop."""
        slide = self._slides[self._manifest.slide_index[index]]
        x, y = corners_l0[index].tolist()
        return slide.read_region((x, y), (side_px, side_px), self._manifest.mpp)

    def _place_in_region(self, index: int) -> tuple[int, int]:
        """Return a crop's corner (x, y) in its region, pixels at the manifest's mpp."""
        manifest = self._manifest
        slide = self._slides[manifest.slide_index[index]]
        away_l0 = manifest.xy_l0[index] - manifest.region_xy_l0[index]
        x, y = (away_l0 * np.asarray(slide.mpp) / manifest.mpp).round().astype(int)
        return int(x), int(y)


class PictureSetReader(Reader):
    """Reads sets of pictures: (M, H, W, 3), black where there is none.

    Parameters
    ----------
    sets
        Which pictures there are; a set's number is its row.
    side_px
        H and W: the middle square of each picture is resampled to it.
    memory_bytes, readers
        As for :class:`CropReader`.
    """

    what = "sets"
    errors = (DataSetError,)

    def __init__(
        self,
        sets: PictureSets,
        side_px: int,
        *,
        memory_bytes: int = MEMORY_BYTES,
        readers: int = READERS,
    ) -> None:
        each = sets.present.shape[1] * 3 * side_px**2
        super().__init__(sets.held_out, room=memory_bytes // each, readers=readers)
        self._sets, self._side_px = sets, side_px

    def _decode(self, index: int) -> Pixels:
        blank = np.zeros((self._side_px, self._side_px, 3), np.uint8)
        return np.stack(
            [
                blank if path is None else self._picture(path)
                for path in self._sets.paths[index]
            ]
        )

    def _picture(self, path: Path) -> Pixels:
        return middle_square(read_picture(path), self._side_px)


class PictureReader(PictureSetReader):
    """Reads plain pictures, each a set of one: (H, W, 3), whole, black around them.

    Parameters
    ----------
    sector
        They are of ultrasound: cropped to what was scanned, and grey.
    """

    what = "pictures"

    def __init__(
        self, sets: PictureSets, side_px: int, *, sector: bool, **how: int
    ) -> None:
        super().__init__(sets, side_px, **how)
        self._sector = sector

    def _decode(self, index: int) -> Pixels:
        (path,) = self._sets.paths[index]
        assert path is not None
        return as_tile(read_picture(path), self._side_px, sector=self._sector)
