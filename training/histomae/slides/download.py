"""Public files that are fetched once, checked by their SHA-256, and kept."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from histomae.errors import DownloadError
from histomae.events import Event, Progress
from histomae.files import cache, write_beside

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

CHUNK_BYTES = 1 << 16
#: Longest silence of a server, s.
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Download:
    """A file on a public server: where, what it is called here, and what it must be."""

    url: str
    name: str
    sha256: str
    size_bytes: int


#: A small real slide (Aperio, H&E, 2220 × 2967 px, 0.499 µm/px), in the public domain
#: (CC0).
CMU_SMALL_REGION = Download(
    url="https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/"
    "CMU-1-Small-Region.svs",
    name="CMU-1-Small-Region.svs",
    sha256="ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
    size_bytes=1_938_955,
)


def fetch(
    download: Download, *, folder: Path | None = None, timeout_s: float = TIMEOUT_S
) -> Generator[Event, None, Path]:
    """Return where a file lies, after fetching it unless it is there already.

    A file that is there is checked as well: a damaged one is fetched again. Nothing is
    left behind by a download that fails.

    Parameters
    ----------
    folder
        Where files are kept; by default a folder of :func:`histomae.files.cache`.

    Raises
    ------
    DownloadError
        If the server cannot be reached, sends too little, or another file.
    """
    path = (folder or cache() / "downloads") / download.name
    if path.is_file() and _sha256(path) == download.sha256:
        return path
    try:
        with write_beside(path) as beside:
            yield from _receive(download, beside, timeout_s)
            _check(download, beside)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(_why(download, error)) from error
    return path


def _receive(
    download: Download, to: Path, timeout_s: float
) -> Generator[Event, None, None]:
    begin, done = time.monotonic(), 0
    with (
        urllib.request.urlopen(download.url, timeout=timeout_s) as answer,
        to.open("wb") as file,
    ):
        total = int(answer.headers.get("Content-Length") or download.size_bytes)
        # One byte more than expected is enough to know that it is another file.
        while done <= download.size_bytes:
            chunk = answer.read(CHUNK_BYTES)
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            seconds = max(1e-6, time.monotonic() - begin)
            yield Progress(
                f"fetching {download.name}",
                done,
                total,
                per_s=done / seconds,
                seconds_left=max(0, total - done) * seconds / done,
            )
    if done < total:
        raise DownloadError(
            f"Only {done:,} of {total:,} bytes of {download.name} arrived. Check the "
            "connection and try again."
        )


def _check(download: Download, path: Path) -> None:
    found = _sha256(path)
    if found != download.sha256:
        raise DownloadError(
            f"What {_server(download)} sent as {download.name} is not the file that is "
            f"expected (SHA-256 {found[:12]}… instead of {download.sha256[:12]}…); it "
            "was thrown away. Try again later, or fetch it by hand and open it."
        )


def _why(download: Download, error: OSError | http.client.HTTPException) -> str:
    """Return a sentence for an error on the way."""
    server = _server(download)
    if isinstance(error, urllib.error.HTTPError):
        return (
            f"{server} has no {download.name} to give (HTTP {error.code}). Try again "
            "later, or open a slide of your own."
        )
    if isinstance(error, urllib.error.URLError | TimeoutError | ConnectionError):
        return (
            f"{server} cannot be reached ({getattr(error, 'reason', error)}). Connect "
            "to the internet and try again, or open the synthetic sample slide, which "
            "needs no download."
        )
    return (
        f"{download.name} cannot be fetched ({error}). Check the connection and the "
        "free room on the disk, and try again."
    )


def _server(download: Download) -> str:
    return urlsplit(download.url).hostname or download.url


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
