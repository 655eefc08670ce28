"""The data set of crops: read beside the computing, kept in memory while they fit."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotReady
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from histomae.slides.crops import CropManifest
    from histomae.slides.slide import Slide

Indices = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

#: Decoded pictures are kept up to this many bytes.
MEMORY_BYTES = 2 * 2**30
#: Reading threads; the decoders free Python's lock.
READERS = 2
#: Longest wait for a batch before saying that it is not ready, seconds.
PATIENCE_S = 0.1


class Source(Protocol):
    """Where a method's pictures come from. A context manager."""

    def stream(self, batches: Iterable[Indices]) -> Iterator[Pixels | None]:
        """Yield the pictures of each batch of crop numbers, in order.

        None says that nothing is ready yet; it is yielded every ``PATIENCE_S`` while
        reading is slow, so that whoever waits can be asked to stop.
        """
        ...

    def __enter__(self) -> Source: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class CropReader:
    """Reads the crops of a manifest. A context manager: threads end with it.

    Where the manifest reads regions, a region is decoded for all of its crops at once.

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
        self._slides = tuple(slides)
        self._manifest = manifest
        side = manifest.region_px if manifest.reads_regions else manifest.crop_px
        self._room = memory_bytes // (3 * side**2)
        self._kept: OrderedDict[int, Future[Pixels]] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = readers
        self._pool = ThreadPoolExecutor(max(readers, 1), thread_name_prefix="crops")

    def __len__(self) -> int:
        return len(self._manifest)

    @property
    def fits_in_memory(self) -> bool:
        """Whether every crop is decoded only once."""
        manifest = self._manifest
        regions = int(manifest.region.max(initial=-1)) + 1
        return (regions if manifest.reads_regions else len(self)) <= self._room

    def read(self, index: int) -> Pixels:
        """Return crop ``index``, uint8 (H, W, 3), RGB at the manifest's mpp.

        Raises
        ------
        SlideError
            If its slide cannot be read there.
        """
        if not self._manifest.reads_regions:
            return self._decoded(index, index)
        region = self._decoded(int(self._manifest.region[index]), index)
        x, y = self._place_in_region(index)
        side = self._manifest.crop_px
        return region[y : y + side, x : x + side]

    def read_batch(self, indices: Indices) -> Pixels:
        """Return several crops, uint8 (N, H, W, 3)."""
        return np.stack([self.read(index) for index in indices.tolist()])

    def stream(self, batches: Iterable[Indices]) -> Iterator[Pixels | None]:
        """Yield the crops of each batch, uint8 (N, H, W, 3), in order, read ahead.

        See :meth:`Source.stream`.

        Raises
        ------
        SlideError
            If a slide cannot be read.
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
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kept.clear()

    def __enter__(self) -> CropReader:
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
            elif self._manifest.reads_regions:
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
        if full and not self._manifest.reads_regions:
            return
        if full and self._kept:
            self._kept.popitem(last=False)
        self._kept[key] = future

    def _decode(self, index: int) -> Pixels:
        manifest = self._manifest
        corners, side = manifest.xy_l0, manifest.crop_px
        if manifest.reads_regions:
            corners, side = manifest.region_xy_l0, manifest.region_px
        slide = self._slides[manifest.slide_index[index]]
        x, y = corners[index].tolist()
        return slide.read_region((x, y), (side, side), manifest.mpp)

    def _place_in_region(self, index: int) -> tuple[int, int]:
        """Return a crop's corner (x, y) in its region, pixels at the manifest's mpp."""
        manifest = self._manifest
        slide = self._slides[manifest.slide_index[index]]
        away_l0 = manifest.xy_l0[index] - manifest.region_xy_l0[index]
        x, y = (away_l0 * np.asarray(slide.mpp) / manifest.mpp).round().astype(int)
        return int(x), int(y)
