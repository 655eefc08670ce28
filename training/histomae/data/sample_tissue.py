"""What all trees that a program draws have in common: cases, looks, files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from histomae.errors import DataSetError
from histomae.files import write_beside
from histomae.slides.sample import tissue_pictures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: Arrangement, and shares of epithelium and of empty space.
Look = tuple[str, float, float]

#: Epithelial nuclei per µm² of epithelium, and how much cases differ in everything.
DENSITY, SPREAD = 8.2e-3, 0.07


def case_pictures(
    look: Look,
    *,
    places: int,
    mpps: Sequence[float],
    size_px: tuple[int, int],
    seed: tuple[int, int],
) -> Iterator[list[Pixels]]:
    """Yield pictures of places of a case, which differs a little from others alike.

    See :func:`histomae.slides.sample.tissue_pictures`; ``seed`` is the tree's, and the
    number of the case.
    """
    arrangement, *shares = look
    differs = np.random.default_rng((*seed, 1)).normal(1, SPREAD, 3)
    epithelium, white, density = np.array((*shares, DENSITY)) * differs
    return tissue_pictures(
        arrangement,
        epithelium=epithelium,
        white=white,
        density=density,
        places=places,
        mpps=mpps,
        size_px=size_px,
        seed=seed,
    )


def new_tree(root: Path) -> Path:
    """Return the root of a tree that is not there yet.

    Raises
    ------
    DataSetError
        If it is.
    """
    if root.exists():
        raise DataSetError(f"{root} is there already. Choose another folder.")
    return root


def write_picture(path: Path, pixels: Pixels) -> None:
    """Write pixels, uint8 (H, W, 3), as PNG or TIFF, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".png": "PNG", ".tif": "TIFF"}[path.suffix]
    with write_beside(path) as beside:
        Image.fromarray(pixels).save(beside, format=kind, compress_level=3)
