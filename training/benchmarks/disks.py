"""Disks that fill up: small ones in memory, in a mount namespace of one's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Set in the process that may mount.
OWN_MOUNTS = "HISTOMAE_BENCHMARK_OWN_MOUNTS"
#: A disk on which a file is being written cannot be made read-only; try so long, s.
PATIENCE_S = 10.0


class NotPossibleHereError(Exception):
    """What should be shown cannot be done on this machine."""


def in_own_mounts() -> None:
    """Begin this program again where it may mount, if the system lets it.

    On Linux a mount namespace is enough, and a user namespace for one who is not root:
    nobody else sees what is mounted there, and it is gone with the last process.
    """
    if OWN_MOUNTS in os.environ or shutil.which("unshare") is None:
        return
    mine = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *mine, "--mount"]
    if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        sys.stdout.flush()
        os.environ[OWN_MOUNTS] = "1"
        os.execvp(command[0], [*command, sys.executable, *sys.argv])


class Disk:
    """A disk in memory (tmpfs) at a folder, of some megabytes."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        self._megabytes = megabytes

    def fill(self, *, leave: int = 0) -> None:
        """Take all its room but ``leave`` bytes."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            while (free := shutil.disk_usage(self.path).free - leave) > 0:
                try:
                    file.write(bytes(min(free, 2**20)))
                except OSError:  # somebody else was quicker
                    return

    def enlarge(self) -> None:
        """Make it twice as large."""
        self._megabytes *= 2
        self._remount(f"size={self._megabytes}m")

    def make_read_only(self) -> None:
        """Refuse every write."""
        self._remount("ro")

    def make_writable(self) -> None:
        """Allow writing again."""
        self._remount("rw")

    def _remount(self, how: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while (said := _mount("-o", f"remount,{how}", str(self.path))) is not None:
            if time.monotonic() > until:
                raise NotPossibleHereError(f"remount {how} refused: {said}")
            time.sleep(0.005)


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """Mount a disk of that size at a new folder.

    Raises
    ------
    NotPossibleHereError
        If the system refuses.
    """
    path.mkdir()
    said = "no mount namespace of its own"
    if OWN_MOUNTS in os.environ:
        said = _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path))
    if said is not None:
        raise NotPossibleHereError(f"no disk can be mounted ({said})")
    try:
        yield Disk(path, megabytes)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], capture_output=True)


def _mount(*words: str) -> str | None:
    """Mount; return what the system said if it refused."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


@contextlib.contextmanager
def sealed(folder: Path) -> Iterator[None]:
    """Let nothing be made, renamed or removed in a folder.

    Raises
    ------
    NotPossibleHereError
        If the system cannot: the permissions of a folder do not bind root.
    """
    if os.geteuid() != 0:
        before = folder.stat().st_mode
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(before)
        return
    if shutil.which("chattr") is None:
        raise NotPossibleHereError("root, and no chattr")
    done = subprocess.run(["chattr", "+i", folder], capture_output=True, text=True)
    if done.returncode != 0:
        raise NotPossibleHereError(f"no folder can be sealed ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)
