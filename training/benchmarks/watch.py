"""No training is left behind: what a benchmark started ends with it.

A trainer outlives its window, which is what a user wants and a benchmark does not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def away_from_the_user() -> Iterator[Path]:
    """Yield a folder for the runs and napari's settings; nothing else is touched.

    What still runs there at the end is ended, and the folder is removed.
    """
    folder = tempfile.mkdtemp(prefix="benchmark-")
    watcher = watch_over(folder)
    os.environ["NAPARI_CONFIG"] = str(Path(folder, "napari.yaml"))
    os.environ["HISTOMAE_HOME"] = folder
    try:
        yield Path(folder)
    finally:
        watcher.communicate()


def end_trainers(folder: str) -> None:
    """End every process that trains in a folder of ours."""
    for process in trainers_in(folder):
        with contextlib.suppress(psutil.Error):  # it went by itself
            process.kill()


def trainers_in(folder: str) -> list[psutil.Process]:
    """Return the processes that name something in a folder."""
    found, inside = [], folder + os.sep
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it went, or is not ours
            if any(word.startswith(inside) for word in process.cmdline()):
                found.append(process)
    return found


def watch_over(folder: str) -> subprocess.Popen[bytes]:
    """Start a process that cleans up when this one ends, however it ends."""
    command = (
        "import sys; sys.stdin.read(); sys.path.insert(0, sys.argv[1]); "
        "from watch import clean_up; clean_up(sys.argv[2])"
    )
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", command, here, folder],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def clean_up(folder: str) -> None:
    """End our trainers and remove their folder."""
    end_trainers(folder)
    shutil.rmtree(folder, ignore_errors=True)
