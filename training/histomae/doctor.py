"""Examine an installation: what is there, what works, and the cure of what does not."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Oldest versions that are safe, and why.
FLOORS = {
    "torch": ("2.10", "older ones can be attacked by a file (CVE-2026-24747)"),
    "openslide-bin": (
        "4.0.1",
        "older ones can be attacked by a slide (CVE-2026-48977, CVE-2026-54604)",
    ),
    "pillow": ("12.3", "older ones can be attacked by a picture (CVE-2026-55798)"),
}
QT_BINDINGS = ("PyQt6", "PySide6", "PyQt5", "PySide2")


@dataclass(frozen=True)
class Finding:
    """One thing examined. ``cure`` says what to do where it is not healthy."""

    what: str
    state: str
    healthy: bool = True
    cure: str = ""


def examine() -> Iterator[Finding]:
    """Yield findings: Python, versions, torch and its device, slides, Qt."""
    yield _python()
    for package in ("napari-histomae", "napari", "torchvision", "timm", *FLOORS):
        yield _version(package)
    yield _torch_and_torchvision()
    yield _device()
    yield _openslide()
    yield _formats()
    yield _qt()


def _python() -> Finding:
    return Finding(
        "Python",
        f"{platform.python_version()} on {platform.platform(terse=True)}",
        sys.version_info >= (3, 11),
        "Install Python 3.11 or newer.",
    )


def _version(package: str) -> Finding:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "missing", False, f"pip install {package}")
    floor, reason = FLOORS.get(package, ("0", ""))
    return Finding(
        package,
        version,
        _numbers(version) >= _numbers(floor),
        f'{reason}: pip install --upgrade "{package}>={floor}"',
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _torch_and_torchvision() -> Finding:
    """Import them: a CPU-only torch beside the usual torchvision fails there."""
    what = "torch and torchvision"
    try:
        importlib.import_module("torchvision")
        importlib.import_module("timm")
    except ModuleNotFoundError as error:
        cure = f"pip install {error.name}"
        return Finding(what, f"{error.name} is missing", False, cure)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Finding(
            what,
            f"do not fit each other ({_first_line(error)})",
            False,
            "Install both from the same place: pip install --force-reinstall torch "
            "torchvision",
        )
    return Finding(what, "fit each other")


def _device() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        cure = "pip install --force-reinstall torch torchvision"
        return Finding("device", f"unknown ({_first_line(error)})", False, cure)
    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        return Finding("device", f"cuda: {torch.cuda.get_device_name()}")
    if torch.backends.mps.is_available():
        return Finding("device", "mps: Apple's GPU")
    return Finding("device", f"cpu, {threads} threads (no GPU found; training is slow)")


def _openslide() -> Finding:
    try:
        import openslide
    except (ImportError, OSError) as error:
        return Finding(
            "OpenSlide",
            f"cannot be loaded ({_first_line(error)})",
            False,
            "pip install --force-reinstall openslide-python openslide-bin",
        )
    version = openslide.__library_version__
    floor, reason = FLOORS["openslide-bin"]
    return Finding(
        "OpenSlide",
        version,
        _numbers(version) >= _numbers(floor),
        f'{reason}: pip install --upgrade "openslide-bin>={floor}"',
    )


def _formats() -> Finding:
    """Read a slide that is made on the spot, and name the formats."""
    try:
        from histomae.slides.find import SHARED_SUFFIXES, SLIDE_SUFFIXES
        from histomae.slides.slide import Slide

        with (
            tempfile.TemporaryDirectory() as folder,
            Slide.open(_tiny_slide(Path(folder)), mpp=1.0) as slide,
        ):
            slide.read_region((0, 0), (8, 8), 1.0)
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(
            "slide formats",
            f"a slide made to try cannot be read ({_first_line(error)})",
            False,
            "pip install --force-reinstall openslide-python openslide-bin imagecodecs",
        )
    return Finding(
        "slide formats",
        f"{' '.join(SLIDE_SUFFIXES)}, and {' '.join(SHARED_SUFFIXES)} where tiled",
    )


def _tiny_slide(folder: Path) -> Path:
    import numpy as np
    import tifffile

    path = folder / "tiny.tiff"
    pixels = np.full((256, 256, 3), 200, np.uint8)
    tifffile.imwrite(
        path, pixels, tile=(256, 256), photometric="rgb", compression="jpeg"
    )
    return path


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _qt() -> Finding:
    found = [name for name in QT_BINDINGS if importlib.util.find_spec(name)]
    return Finding(
        "Qt binding",
        ", ".join(found) or "none: the command line works, the window does not",
        bool(found),
        'pip install "napari[all]"',
    )
