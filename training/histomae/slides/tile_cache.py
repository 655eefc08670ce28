"""Decoded tiles, kept within a budget of bytes and shared by all who read slides.

Who asks for a tile that someone is decoding waits for that one; a tile that was asked
for ahead and that nobody wants any more is never decoded. Decoders free Python's lock,
so threads suffice. A forked process begins with an empty cache of its own.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: Environment variable with the budget of the shared cache, megabytes.
BUDGET_VARIABLE = "HISTOMAE_TILE_CACHE_MB"
DEFAULT_BYTES = 512 << 20
#: Threads that decode what was asked for ahead.
THREADS = min(4, os.cpu_count() or 1)


class TileCache:
    """Decoded tiles by key, the least recently used dropped beyond ``max_bytes``.

    The budget is a real bound: what would exceed it is not kept. Kept arrays are
    read-only. All methods may be called from any thread.

    Parameters
    ----------
    max_bytes
        Bytes of pixels kept at most.
    threads
        How many tiles are decoded at once for :meth:`request`.
    """

    def __init__(
        self, max_bytes: int = DEFAULT_BYTES, *, threads: int = THREADS
    ) -> None:
        self._max_bytes = max_bytes
        self._threads = threads
        self._kept = _Kept()

    def _here(self) -> _Kept:
        """Return what this process keeps; a parent's locks may be held for ever."""
        if self._kept.process != os.getpid():
            self._kept = _Kept()
        return self._kept

    @property
    def nbytes(self) -> int:
        """Bytes of pixels kept."""
        return self._here().nbytes

    @property
    def max_bytes(self) -> int:
        """Bytes of pixels kept at most; may be set at any time."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, most: int) -> None:
        kept = self._here()
        with kept.lock:
            self._max_bytes = most
            kept.shrink(most)

    def peek(self, key: Hashable) -> Pixels | None:
        """Return the tile of ``key`` if it is kept, at once."""
        kept = self._here()
        with kept.lock:
            return kept.find(key)

    def get(self, key: Hashable, make: Callable[[], Pixels]) -> Pixels:
        """Return the tile of ``key``; if need be, ``make`` it here or wait for it.

        Whatever ``make`` raises is raised by all who wait, and nothing is kept.
        """
        kept = self._here()
        with kept.lock:
            tile = kept.find(key)
            if tile is not None:
                return tile
            job = kept.jobs.get(key)
            if job is None:
                job = kept.jobs[key] = _Job(key, make)
            job.wanted_by += 1
            is_mine = job.begin()
        if is_mine:
            self._run(job)
        try:
            return job.future.result()
        finally:
            # An error knows this frame: it would keep itself, and its pixels, alive.
            del job

    def request(
        self, key: Hashable, make: Callable[[], Pixels], *, priority: int = 0
    ) -> TileRequest:
        """Ask for a tile ahead; it is made in a thread of the cache.

        Parameters
        ----------
        priority
            Lower is served first; equal ones in the order of asking.
        """
        kept = self._here()
        with kept.lock:
            job = kept.jobs.get(key) or _Job(key, make)
            request = TileRequest(self, job)
            job.wanted_by += 1
            tile = kept.find(key)
            if tile is not None:
                job.begin()
                job.future.set_result(tile)
            if not job.is_queued:
                return request
            kept.jobs[key] = job
            # Once more if it waits already: the more urgent of the two counts.
            heapq.heappush(kept.queue, (priority, next(kept.numbers), job))
            if kept.pool is None:
                kept.pool = ThreadPoolExecutor(self._threads, "tiles")
        kept.pool.submit(self._work)
        return request

    def clear(self) -> None:
        """Forget every tile that is kept."""
        kept = self._here()
        with kept.lock:
            kept.shrink(0)

    def _work(self) -> None:
        """Make the most urgent tile that is still wanted."""
        kept = self._here()
        with kept.lock:
            while kept.queue:
                job = heapq.heappop(kept.queue)[2]
                if job.begin():
                    break
            else:
                return
        self._run(job)

    def _run(self, job: _Job) -> None:
        kept = self._here()
        try:
            tile = _owned(job.make())
        except BaseException as error:  # noqa: BLE001 - all who wait must hear of it
            with kept.lock:
                kept.jobs.pop(job.key, None)
            job.future.set_exception(error)
            del job  # as in get
            return
        with kept.lock:
            kept.jobs.pop(job.key, None)
            if tile.nbytes <= self._max_bytes:
                kept.shrink(self._max_bytes - tile.nbytes)
                kept.tiles[job.key] = tile
                kept.nbytes += tile.nbytes
        job.future.set_result(tile)

    def _forgo(self, job: _Job) -> None:
        kept = self._here()
        with kept.lock:
            job.wanted_by -= 1
            if job.wanted_by or not job.begin():
                return
            kept.jobs.pop(job.key, None)
        job.future.set_exception(TileGivenUpError("Nobody waited for this tile."))


class TileGivenUpError(Exception):
    """A tile was given up before it was begun."""


class _Kept:
    """What one process keeps. Everything but ``process`` is used under ``lock``."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.tiles: OrderedDict[Hashable, Pixels] = OrderedDict()
        self.nbytes = 0
        self.jobs: dict[Hashable, _Job] = {}
        self.queue: list[tuple[int, int, _Job]] = []
        self.numbers = count()
        self.pool: ThreadPoolExecutor | None = None

    def find(self, key: Hashable) -> Pixels | None:
        tile = self.tiles.get(key)
        if tile is not None:
            self.tiles.move_to_end(key)
        return tile

    def shrink(self, most: int) -> None:
        while self.nbytes > most:
            self.nbytes -= self.tiles.popitem(last=False)[1].nbytes


class _Job:
    """One tile being made, or waiting to be; ``wanted_by`` counts who wants it."""

    def __init__(self, key: Hashable, make: Callable[[], Pixels]) -> None:
        self.key = key
        self.make = make
        self.future: Future[Pixels] = Future()
        self.wanted_by = 0
        self.is_queued = True

    def begin(self) -> bool:
        """Take it from the queue; tell whether it was still there."""
        was_queued, self.is_queued = self.is_queued, False
        return was_queued


class TileRequest:
    """A tile that was asked for ahead."""

    def __init__(self, cache: TileCache, job: _Job) -> None:
        self._cache = cache
        self._job = job
        self._is_cancelled = False

    @property
    def is_done(self) -> bool:
        """Whether :meth:`result` returns, or raises, at once."""
        return self._job.future.done()

    def result(self, timeout_s: float | None = None) -> Pixels:
        """Wait for the tile and return it.

        Raises
        ------
        TimeoutError
            If it is not there after ``timeout_s`` seconds.
        TileGivenUpError
            If all who asked for it cancelled before it was begun.
        SlideError
            If the tile cannot be read.
        """
        return self._job.future.result(timeout_s)

    def cancel(self) -> None:
        """Say that the tile is not wanted here any more; harmless when repeated."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self._cache._forgo(self._job)

    def add_done_callback(self, call: Callable[[], None]) -> None:
        """Call when it is done or given up: in any thread, or at once."""
        self._job.future.add_done_callback(lambda _: call())


def _owned(tile: Pixels) -> Pixels:
    """Return a read-only tile that keeps no larger array alive."""
    if tile.base is not None or not tile.flags.c_contiguous:
        tile = tile.copy()
    tile.flags.writeable = False
    return tile


def _budget() -> int:
    written = os.environ.get(BUDGET_VARIABLE, "")
    return int(written) << 20 if written.isdecimal() else DEFAULT_BYTES


_SHARED = TileCache(_budget())


def shared_cache() -> TileCache:
    """Return the cache that all slides of this process share.

    Its budget is ``DEFAULT_BYTES``, or ``HISTOMAE_TILE_CACHE_MB`` megabytes, until its
    ``max_bytes`` is set.
    """
    return _SHARED
