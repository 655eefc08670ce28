"""Answers are remembered, one by one, and a damaged memory is no memory."""

import threading

import pytest

from histomae.files import home
from histomae.slides import mpp_memory


def test_remember_recall_forget():
    assert mpp_memory.recall("a") is None
    mpp_memory.remember("a", (0.25, 0.3))
    mpp_memory.remember("b", (0.5, 0.5))
    mpp_memory.remember("a", (0.4, 0.4))
    assert mpp_memory.recall("a") == (0.4, 0.4)
    assert mpp_memory.recall("b") == (0.5, 0.5)
    mpp_memory.forget("a")
    mpp_memory.forget("never known")
    assert mpp_memory.recall("a") is None
    assert mpp_memory.recall("b") == (0.5, 0.5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"\xff\xfe",
        b'{"a": 0.5}',
        b'{"a": [0.5]}',
        b'{"a": ["x", "y"]}',
        b'{"a": null}',
    ],
)
def test_a_damaged_memory_is_no_memory(content):
    home().mkdir(parents=True, exist_ok=True)
    (home() / "mpp.json").write_bytes(content)
    assert mpp_memory.recall("a") is None
    mpp_memory.remember("a", (0.25, 0.25))
    assert mpp_memory.recall("a") == (0.25, 0.25)


def test_several_threads_remember():
    threads = [
        threading.Thread(target=mpp_memory.remember, args=(str(number), (0.5, 0.5)))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [mpp_memory.recall(str(number)) for number in range(8)] == [(0.5, 0.5)] * 8
    assert [path.name for path in home().iterdir()] == ["mpp.json"]
