"""Files and folders: written beside and renamed; where the program keeps its own."""

from __future__ import annotations

import glob
import os
import threading
from contextlib import contextmanager, suppress
from datetime import date
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` on success.

    Whoever reads ``path`` sees the old file or the whole new one, never a part. On any
    error the temporary file is removed and ``path`` is left as it was. What a killed
    process left behind is removed by the next one that writes ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    writer = f"{os.getpid()}-{threading.get_ident()}"
    beside = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        yield beside
        _flush(beside)
        beside.replace(path)
        _flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def append_whole(path: Path, data: bytes) -> bool:
    """Append bytes to a file, all or none; return whether the disk took them."""
    with suppress(OSError), path.open("ab", buffering=0) as file:
        whole = file.tell()
        try:
            written = file.write(data)
        except OSError:
            written = 0
        if written == len(data):
            return True
        file.truncate(whole)  # half of it would spoil what comes next
    return False


def _sweep(path: Path) -> None:
    """Remove the temporary files of ``path`` whose process is no more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*.tmp"):
        writer = left.name.removesuffix(".tmp").rpartition(".")[2].partition("-")[0]
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            left.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Force a file, or a folder's entries, onto the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def home() -> Path:
    """Return the folder of what is remembered; ``HISTOMAE_HOME`` overrides it."""
    own = os.environ.get("HISTOMAE_HOME")
    return Path(own) if own else Path(platformdirs.user_data_dir("histomae", False))


def cache() -> Path:
    """Return the folder of what can be made or fetched again."""
    own = os.environ.get("HISTOMAE_HOME")
    return (
        Path(own) / "cache"
        if own
        else Path(platformdirs.user_cache_dir("histomae", False))
    )


def runs_folder() -> Path:
    """Return the folder in which new training runs are put."""
    own = os.environ.get("HISTOMAE_HOME")
    return (Path(own) if own else Path.home() / "histomae") / "runs"


def new_run_path(slide: str | Path) -> Path:
    """Return a folder for a new run, named after a slide (or a folder) and the day."""
    stem = f"{Path(slide).stem or 'run'}_{date.today().isoformat()}"
    numbers = (f"-{number}" if number > 1 else "" for number in count(1))
    paths = (runs_folder() / f"{stem}{number}" for number in numbers)
    return next(path for path in paths if not path.exists())
