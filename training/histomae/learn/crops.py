"""The data set of crops: read beside the computing, kept in memory while they fit."""

from __future__ import annotations

import threading
from collections import deque
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

#: Decoded crops are kept up to this many bytes.
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

    Parameters
    ----------
    slides
        Open slides, one for each of ``manifest.slides``, in order.
    manifest
        Which crops there are; a crop's number is its row.
    memory_bytes
        Decoded crops are kept until they fill this; the rest is read every time.
    readers
        Reading threads. Reading is done when it is asked for, whatever their number.
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
        self._room = memory_bytes // (3 * manifest.crop_px**2)
        self._kept: dict[int, Pixels] = {}
        self._lock = threading.Lock()
        self._readers = readers
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="crops")

    def __len__(self) -> int:
        return len(self._manifest)

    @property
    def fits_in_memory(self) -> bool:
        """Whether every crop is decoded only once."""
        return len(self) <= self._room

    def read(self, index: int) -> Pixels:
        """Return crop ``index``, uint8 (H, W, 3), RGB at the manifest's mpp.

        Raises
        ------
        SlideError
            If its slide cannot be read there.
        """
        crop = self._kept.get(index)
        if crop is None:
            crop = self._decode(index)
            with self._lock:
                if len(self._kept) < self._room:
                    self._kept[index] = crop
        return crop

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

    def _decode(self, index: int) -> Pixels:
        manifest = self._manifest
        slide = self._slides[manifest.slide_index[index]]
        x, y = manifest.xy_l0[index].tolist()
        side = (manifest.crop_px, manifest.crop_px)
        return slide.read_region((x, y), side, manifest.mpp)
