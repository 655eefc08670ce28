"""By what a file is known again without reading it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histomae.errors import SlideError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Stamp:
    """Where a file lies on its disk, its bytes, and when they last changed."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Look at a file.

        Raises
        ------
        SlideError
            If it is missing, a folder, or cannot be looked at.
        """
        try:
            seen = path.stat()
        except FileNotFoundError as error:
            raise SlideError(
                f"{path} does not exist. Check the name, or bring it back."
            ) from error
        except OSError as error:
            raise SlideError(
                f"{path.name} cannot be reached ({error.strerror}). Check its folder "
                "and the connection to it."
            ) from error
        if stat.S_ISDIR(seen.st_mode):
            raise SlideError(f"{path} is a folder. Choose a slide file inside it.")
        return cls._from(seen)

    @classmethod
    def of_open(cls, descriptor: int) -> Stamp:
        """Look at an open file."""
        return cls._from(os.fstat(descriptor))

    @classmethod
    def _from(cls, seen: os.stat_result) -> Stamp:
        return cls(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
