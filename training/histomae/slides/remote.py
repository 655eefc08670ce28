"""Slides that lie on a server or in a cloud: copied here once, and read from the copy.

OpenSlide reads files alone, and a viewer asks for hundreds of tiles a second, so a
slide is not read over the network piece by piece. Whatever `fsspec
<https://filesystem-spec.readthedocs.io>`_ can reach serves: ``https://``, ``s3://``,
``gs://``, ``sftp://``, ``smb://`` and more, if the library for it is installed; it is
only ever read. Keys and the like are fsspec's to know, see its own settings.

Copies are kept in a folder of :func:`histomae.files.cache`, until the original changes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from histomae.errors import SlideError
from histomae.events import Event, Note, Progress
from histomae.files import cache, write_beside

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

#: A name such as s3 or https, not the letter of a drive; a path has one slash less.
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?!/)(.+)", re.DOTALL)
#: So much is asked for at once.
PIECE_BYTES = 4 << 20
#: After so many seconds it can be told how fast a copy goes.
MEASURE_S = 3.0
#: A copy that will take longer is called slow, seconds.
SLOW_S = 60.0
#: Room that a copy leaves on the disk.
SPARE_BYTES = 1 << 30
#: By what a file on a server is known to be as it was, as file systems call it.
MARKS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
#: Formats of which one file is not the whole slide.
OF_MANY_FILES = (".mrxs", ".vms", ".vmu", ".dcm")


def address(path: str | PurePath) -> str | None:
    """Return the address of a slide on a server, or None if the path is a file's.

    A path into which an address was turned, ``s3:/bucket/a.svs``, is understood too.
    """
    found = ADDRESS.fullmatch(path.as_posix() if isinstance(path, PurePath) else path)
    return None if found is None else f"{found[1]}://{found[2]}"


def local_copies(
    paths: Iterable[str | Path],
) -> Generator[Event, None, list[Path]]:
    """Return paths with a file here in place of each address on a server.

    Raises
    ------
    SlideError
        If a slide cannot be copied.
    """
    found = []
    for path in paths:
        url = address(path)
        found.append(Path(path) if url is None else (yield from copied(url)))
    return found


def copied(url: str) -> Generator[Event, None, Path]:
    """Return the copy of a slide, after making it unless it is there already.

    A note is given where the copy will take long, and where the server does not answer
    and an older copy serves.

    Raises
    ------
    SlideError
        If the slide cannot be copied: it is not there, may not be read, is no single
        file, or there is no room for it. Nothing is left behind then.
    """
    original = _Original.at(url)
    copy = cache() / "slides" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path, known_by = copy / original.name, copy / "original.json"
    try:
        mark = original.look()
    except SlideError as error:
        if not path.is_file():
            raise
        yield Note(f"{error} The copy of {_day(path)} is used.")
        return path
    if path.is_file() and _recalled(known_by) == mark:
        return path
    _check_room(original.name, copy, mark["size"])
    with write_beside(path) as beside:
        yield from original.copy_to(beside, mark["size"])
    with write_beside(known_by) as beside:
        beside.write_text(json.dumps(mark), "utf-8")
    return path


@dataclass(frozen=True)
class _Original:
    """A file on a server, and what reaches it."""

    name: str
    where: str
    files: Any
    path: str

    @classmethod
    def at(cls, url: str) -> _Original:
        kind = url.partition("://")[0]
        name = PurePosixPath(unquote(urlsplit(url).path)).name or urlsplit(url).netloc
        if PurePosixPath(name).suffix.lower() in OF_MANY_FILES:
            raise SlideError(
                f"{name} is one of several files that are a slide together. Copy all "
                "of them to this computer and open that."
            )
        try:
            import fsspec

            files, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SlideError(
                f"{name} cannot be fetched by {kind}:// ({error}). Install what is "
                "missing (pip install 'napari-histomae[cloud]' serves https, sftp and "
                "smb), or copy the slide to this computer."
            ) from error
        place = urlsplit(url).netloc.rpartition("@")[2]  # without a password
        return cls(name, f"{kind}://{place}", files, path)

    def look(self) -> dict[str, Any]:
        """Return its size, bytes (0: not told), and by what it is known again."""
        try:
            seen = self.files.info(self.path)
        except Exception as error:
            raise self._error(error) from error
        marks = {key: str(seen[key]) for key in MARKS if key in seen}
        return {"size": int(seen.get("size") or 0), **marks}

    def copy_to(self, beside: Path, size: int) -> Generator[Event, None, None]:
        began, done, is_slow = time.monotonic(), 0, False
        try:
            with (
                self.files.open(self.path, "rb", block_size=PIECE_BYTES) as there,
                beside.open("wb") as here,
            ):
                while piece := there.read(PIECE_BYTES):
                    here.write(piece)
                    done += len(piece)
                    seconds = max(1e-6, time.monotonic() - began)
                    left_s = max(0, size - done) * seconds / done
                    yield Progress(
                        f"copying {self.name} (MB)",
                        round(done / 1e6),
                        round(max(size, done) / 1e6),
                        per_s=done / seconds / 1e6,
                        seconds_left=left_s,
                    )
                    if not is_slow and seconds > MEASURE_S and left_s > SLOW_S:
                        is_slow = True
                        yield Note(self._is_slow(done / seconds, left_s))
        except Exception as error:
            raise self._error(error) from error
        if size and done != size:
            raise SlideError(
                f"Only {done:,} of {size:,} bytes of {self.name} arrived from "
                f"{self.where}. Check the connection and try again."
            )

    def _is_slow(self, bytes_per_s: float, left_s: float) -> str:
        return (
            f"{self.name} comes slowly from {self.where}: {bytes_per_s / 1e6:.1f} "
            f"MB/s, about {left_s / 60:.0f} min to go. The copy is kept: next time it "
            "opens at once."
        )

    def _error(self, error: Exception) -> SlideError:
        """Return a sentence for what a file system's library raised."""
        if isinstance(error, FileNotFoundError):
            return SlideError(
                f"{self.name} is not at {self.where}, or that does not answer. Check "
                "the address, the connection and your right to see it."
            )
        if isinstance(error, PermissionError):
            return SlideError(
                f"{self.where} does not let you read {self.name}. Give fsspec your "
                "keys for it, or ask for the right."
            )
        why = str(error) or type(error).__name__
        return SlideError(
            f"{self.name} cannot be fetched from {self.where} ({why}). Check the "
            "connection and the free room on the disk, and try again."
        )


def _check_room(name: str, folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    missing = size + SPARE_BYTES - shutil.disk_usage(folder).free
    if missing > 0:
        raise SlideError(
            f"There is no room for a copy of {name} in {folder.parent}: "
            f"{missing / 1e6:,.0f} MB are missing. Remove older copies there, or set "
            "HISTOMAE_HOME to a larger disk."
        )


def _recalled(path: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text("utf-8"))
    return None


def _day(path: Path) -> str:
    return time.strftime("%d %B %Y", time.localtime(path.stat().st_mtime))
