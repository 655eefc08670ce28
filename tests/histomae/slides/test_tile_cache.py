"""Decoded tiles: one budget, one decoding for all who ask, none that nobody wants."""

import os
import threading

import numpy as np
import pytest

from histomae.errors import SlideError
from histomae.slides import tile_cache
from histomae.slides.tile_cache import TileCache, TileGivenUpError, shared_cache
from tests.patience import PATIENCE_S, wait_until

KB = 1024


def tile(kilobytes=1, value=0):
    return np.full(kilobytes * KB, value, np.uint8)


class Slow:
    """Makes a tile when it is let; counts how often."""

    def __init__(self, value=0):
        self.made = 0
        self.value = value
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self):
        self.made += 1
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return tile(value=self.value)


@pytest.fixture
def cache():
    return TileCache(10 * KB, threads=1)


def test_a_tile_is_made_once_and_kept(cache):
    made = []
    for _ in range(3):
        got = cache.get("a", lambda: made.append(1) or tile(value=7))
        assert (got == 7).all()
    assert len(made) == 1
    assert cache.nbytes == KB


def test_kept_tiles_cannot_be_changed(cache):
    with pytest.raises(ValueError, match="read-only"):
        cache.get("a", tile)[:] = 1


def test_the_budget_is_a_bound(cache):
    random = np.random.default_rng(0)
    for number in range(300):
        size = int(random.integers(1, 13))
        got = cache.get(number, lambda size=size: tile(size))
        assert got.nbytes == size * KB
        assert cache.nbytes <= 10 * KB
    assert cache.nbytes > 0


def test_a_part_of_a_larger_array_does_not_keep_it_alive(cache):
    large = tile(9)
    got = cache.get("a", lambda: large[:KB])
    assert got.base is None
    assert cache.nbytes == KB


def test_the_least_recently_used_goes_first(cache):
    for name in "abcdefghij":
        cache.get(name, tile)
    assert cache.peek("a") is not None  # used again
    cache.get("k", tile)
    assert cache.peek("b") is None
    assert cache.peek("a") is not None
    assert cache.peek("k") is not None


def test_a_smaller_budget_takes_effect_at_once(cache):
    for name in "abcdefghij":
        cache.get(name, tile)
    cache.max_bytes = 3 * KB
    assert cache.max_bytes == cache.nbytes == 3 * KB
    cache.clear()
    assert cache.nbytes == 0
    assert cache.peek("j") is None


@pytest.mark.parametrize("ahead", [False, True])
def test_requests_for_one_tile_join(cache, ahead):
    slow, got = Slow(5), []
    threads = [
        threading.Thread(target=lambda: got.append(cache.get("a", slow)))
        for _ in range(4)
    ]
    request = cache.request("a", slow) if ahead else None
    for thread in threads:
        thread.start()
    assert slow.begun.wait(PATIENCE_S)
    also = cache.request("a", slow)
    assert not also.is_done
    with pytest.raises(TimeoutError):
        also.result(0.01)
    slow.go_on.set()
    for thread in threads:
        thread.join()
    assert (also.result(PATIENCE_S) == 5).all()
    assert request is None or request.result(PATIENCE_S) is also.result()
    assert slow.made == 1
    assert all(each is also.result() for each in got)


def test_an_error_reaches_all_who_wait_and_is_not_kept(cache):
    slow = Slow()

    def fail():
        slow()
        raise SlideError("It cannot be read. Check it.")

    request = cache.request("a", fail)
    assert slow.begun.wait(PATIENCE_S)
    also = cache.request("a", fail)
    slow.go_on.set()
    for each in (request, also):
        with pytest.raises(SlideError, match="cannot be read"):
            each.result(PATIENCE_S)
    assert (cache.get("a", lambda: tile(value=3)) == 3).all()


def test_what_nobody_wants_any_more_is_never_made(cache):
    first, dropped, wanted = Slow(), Slow(), Slow()
    told = []
    running = cache.request("a", first)
    assert first.begun.wait(PATIENCE_S)  # the only thread is busy
    given_up = cache.request("b", dropped)
    given_up.add_done_callback(lambda: told.append("b"))
    still_wanted, not_here = cache.request("c", wanted), cache.request("c", wanted)
    given_up.cancel()
    given_up.cancel()
    not_here.cancel()
    not_here.cancel()  # counts once: somebody else wants it
    assert told == ["b"]
    running.cancel()  # too late: it is being made
    for slow in (first, dropped, wanted):
        slow.go_on.set()
    assert running.result(PATIENCE_S) is cache.peek("a")
    still_wanted.result(PATIENCE_S)
    assert (dropped.made, wanted.made) == (0, 1)
    with pytest.raises(TileGivenUpError):
        given_up.result(0)
    # Asked for again, it is made after all.
    assert cache.request("b", dropped).result(PATIENCE_S).nbytes == KB


def test_the_most_urgent_is_made_first(cache):
    order, first = [], Slow()
    cache.request("busy", first)
    assert first.begun.wait(PATIENCE_S)

    def make(name):
        return lambda: order.append(name) or tile()

    asked = [
        cache.request(name, make(name), priority=priority)
        for name, priority in (("late", 9), ("b", 1), ("c", 1), ("a", 0), ("soon", 9))
    ]
    asked.append(cache.request("soon", make("soon"), priority=-1))
    first.go_on.set()
    for request in asked:
        request.result(PATIENCE_S)
    assert order == ["soon", "a", "b", "c", "late"]


def test_who_needs_a_tile_at_once_does_not_wait_in_the_queue(cache):
    first, second = Slow(), Slow(4)
    cache.request("busy", first)
    assert first.begun.wait(PATIENCE_S)
    ahead = cache.request("a", second)
    second.go_on.set()
    assert (cache.get("a", second) == 4).all()  # the thread is busy still
    assert ahead.is_done
    assert second.made == 1
    first.go_on.set()


def test_many_threads_and_few_tiles(cache):
    made, wrong = [], []

    def read(seed):
        random = np.random.default_rng(seed)
        for name in random.integers(0, 30, 200).tolist():
            if random.random() < 0.3:
                request = cache.request(name, lambda name=name: tile(value=name))
                if random.random() < 0.5:
                    request.cancel()
                    continue
                got = request.result(PATIENCE_S)
            else:
                got = cache.get(
                    name, lambda name=name: made.append(1) or tile(value=name)
                )
            wrong.append((got != name).any() or cache.nbytes > 10 * KB)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) > 400
    assert not any(wrong)
    wait_until(lambda: not cache._here().jobs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_its_parents_threads(cache):
    slow = Slow()
    cache.get("kept", tile)
    running = cache.request("a", slow)
    assert slow.begun.wait(PATIENCE_S)
    with cache._here().lock:  # as if a thread were just in the midst
        child = os.fork()
    if not child:
        made = cache.get("a", lambda: tile(value=9))
        os._exit(0 if (made == 9).all() and cache.nbytes == KB else 1)
    assert os.waitpid(child, 0)[1] == 0
    slow.go_on.set()
    running.result(PATIENCE_S)


@pytest.mark.parametrize(
    ("written", "megabytes"), [("64", 64), ("", 512), ("a lot", 512), ("-3", 512)]
)
def test_the_shared_budget_can_be_set(monkeypatch, written, megabytes):
    monkeypatch.setenv(tile_cache.BUDGET_VARIABLE, written)
    assert tile_cache._budget() == megabytes << 20
    assert shared_cache() is shared_cache()
