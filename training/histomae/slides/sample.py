"""The synthetic sample slide: made from a seed on first use, kept for later.

**It is synthetic: a program drew it, and there is no patient.** It looks like
haematoxylin and eosin so that everything can be tried without a download: glands with
a lumen ("Duct"), filled glands ("In situ"), cords ("Invasive"), "Stroma" and "Fat", on
glass with a pen mark, a smear, dust, and a fold in the tissue. Beside it lie the true
regions and the centres of all nuclei. Duct, in situ and invasive share stain and
density and differ in arrangement only, so that a classifier has to look at form.
"""

from __future__ import annotations

import csv
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import tifffile

from histomae.errors import ConfigError
from histomae.files import cache, write_beside
from histomae.slides._sample_anatomy import Anatomy, make_anatomy, one_tissue
from histomae.slides._sample_paint import Pixels, paint, paint_windows
from histomae.slides._sample_tissue import CLASS_NAMES, Mixture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: Part of the file names: raised whenever the same seed would give another slide.
VERSION = 1
#: Width and height of the slide, µm, and the least that they can be.
SIZE_UM, LEAST_UM = (3072.0, 2560.0), 1000.0
#: Pixel sizes to choose from, µm.
MPPS = (0.5, 0.25, 1.0)
#: Colours of the classes: Okabe and Ito's, which colour-blind people tell apart.
CLASS_COLORS = {
    "Duct": (0, 114, 178),
    "In situ": (230, 159, 0),
    "Invasive": (213, 94, 0),
    "Stroma": (86, 180, 233),
    "Fat": (240, 228, 66),
}
#: Between places that pictures are painted of, and around them, µm.
MARGIN_UM = 20.0
NOTICE = "synthetic sample slide, not a patient"
#: The coarsest level has fewer pixels a side than this.
COARSEST_PX = 1024
TILE_PX, JPEG_QUALITY = 256, 90


@dataclass(frozen=True)
class SampleSlide:
    """The three files of a sample slide.

    ``slide_path`` is a pyramidal TIFF; ``regions_path`` GeoJSON as QuPath writes it,
    in level-0 pixels; ``nuclei_path`` a CSV of the nuclei's centres, in µm and in
    level-0 pixels, with the class of the tissue that each belongs to.
    """

    slide_path: Path
    regions_path: Path
    nuclei_path: Path

    @property
    def exists(self) -> bool:
        """Whether all three files are there. Each is written whole or not at all."""
        paths = (self.slide_path, self.regions_path, self.nuclei_path)
        return all(path.is_file() for path in paths)


def sample_slide(
    seed: int = 0,
    *,
    mpp: float = 0.5,
    folder: Path | None = None,
    size_um: tuple[float, float] = SIZE_UM,
) -> SampleSlide:
    """Return the sample slide of ``seed``, making it (some 15 s) on first use.

    Parameters
    ----------
    seed
        Zero or more. Equal seeds give equal files, other seeds other slides.
    mpp
        Pixel size of level 0, µm: 0.5, 0.25 or 1. The anatomy is the same.
    folder
        Where the files go; default: ``sample`` in the program's cache.
    size_um
        Width and height, µm; smaller ones have fewer regions.

    Raises
    ------
    ConfigError
        If an argument is out of range.
    OSError
        If the folder cannot be written to.
    """
    _check(seed, mpp, size_um)
    files = _files(seed, mpp=mpp, folder=folder or cache() / "sample", size_um=size_um)
    if files.exists:
        return files
    anatomy_rng, look_rng = np.random.default_rng(seed).spawn(2)
    anatomy = make_anatomy(size_um, rng=anatomy_rng)
    _write_regions(files.regions_path, anatomy, mpp=mpp)
    _write_nuclei(files.nuclei_path, anatomy, mpp=mpp)
    image = paint(anatomy, mpp, rng=look_rng)
    _write_slide(files.slide_path, image, mpp=mpp, seed=seed)
    return files


def tissue_pictures(
    class_name: str,
    *,
    epithelium: float,
    white: float,
    density: float,
    places: int,
    mpps: Sequence[float],
    size_px: tuple[int, int],
    seed: Sequence[int],
) -> Iterator[list[Pixels]]:
    """Yield pictures of places in one tissue, each place at several pixel sizes.

    Of a place all pictures have one centre, are of one staining, and are uint8 (H, W,
    3). Equal seeds give equal pictures.

    Parameters
    ----------
    class_name
        The arrangement, one of ``CLASS_NAMES``.
    epithelium, white, density
        Shares of epithelium and of empty space, and nuclei per µm² of epithelium.
    mpps
        µm per pixel; places are as large as a picture at the coarsest.
    size_px
        (W, H) of every picture.
    """
    width, height = (side * max(mpps) for side in size_px)
    tissue_rng, look_rng = np.random.default_rng(seed).spawn(2)
    size_um = (MARGIN_UM + places * (width + MARGIN_UM), height + 2 * MARGIN_UM)
    mixture = Mixture(epithelium, white, density)
    anatomy = one_tissue(size_um, class_name, mixture, rng=tissue_rng)
    middle = MARGIN_UM + height / 2
    centres = [
        MARGIN_UM + width / 2 + place * (width + MARGIN_UM) for place in range(places)
    ]
    windows = [
        ((x - size_px[0] * mpp / 2, middle - size_px[1] * mpp / 2), mpp)
        for x in centres
        for mpp in mpps
    ]
    painted = paint_windows(anatomy, windows, size_px, rng=look_rng)
    for _ in centres:
        yield [next(painted) for _ in mpps]


def _check(seed: int, mpp: float, size_um: tuple[float, float]) -> None:
    if seed < 0:
        raise ConfigError("seed", f"{seed} is negative; give zero or more.")
    if mpp not in MPPS:
        raise ConfigError("mpp", f"{mpp} is not offered; give 0.5, 0.25 or 1.")
    if not all(side >= LEAST_UM for side in size_um):
        raise ConfigError(
            "size_um", f"{size_um} is too small; give {LEAST_UM} or more."
        )


def _files(
    seed: int, *, mpp: float, folder: Path, size_um: tuple[float, float]
) -> SampleSlide:
    stem = f"synthetic-sample-v{VERSION}-seed{seed}-{mpp:.2f}mpp"
    if size_um != SIZE_UM:
        stem += f"-{size_um[0]:g}x{size_um[1]:g}um"
    return SampleSlide(
        folder / f"{stem}.tiff",
        folder / f"{stem}-regions.geojson",
        folder / f"{stem}-nuclei.csv",
    )


# ---- the truth


def _write_regions(path: Path, anatomy: Anatomy, *, mpp: float) -> None:
    """Write the regions as a GeoJSON FeatureCollection in level-0 pixels."""
    numbers = dict.fromkeys(CLASS_NAMES, 0)
    features = []
    for region in anatomy.regions:
        numbers[region.class_name] += 1
        name = f"{region.class_name} {numbers[region.class_name]}"
        outline_l0 = shapely.transform(region.outline_um, lambda xy: xy / mpp)
        features.append(_feature(path.stem, region.class_name, name, outline_l0))
    collection = {
        "type": "FeatureCollection",
        "metadata": {"synthetic": True, "description": NOTICE},
        "features": features,
    }
    with write_beside(path) as beside:
        beside.write_text(json.dumps(collection, indent=1) + "\n", encoding="utf-8")


def _feature(
    stem: str, class_name: str, name: str, outline_l0: shapely.Polygon
) -> dict[str, Any]:
    ring = [[round(x, 2), round(y, 2)] for x, y in outline_l0.exterior.coords]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{stem}/{name}")),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {
                "name": class_name,
                "color": list(CLASS_COLORS[class_name]),
            },
            "metadata": {"note": NOTICE},
        },
    }


def _write_nuclei(path: Path, anatomy: Anatomy, *, mpp: float) -> None:
    """Write the centres of the nuclei as a table."""
    nuclei = anatomy.nuclei
    with (
        write_beside(path) as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["x_um", "y_um", "x_l0", "y_l0", "class_name"])
        for (x, y), index in zip(nuclei.xy_um, nuclei.class_index, strict=True):
            numbers = (f"{value:.2f}" for value in (x, y, x / mpp, y / mpp))
            table.writerow([*numbers, CLASS_NAMES[index]])


# ---- the picture


def _write_slide(path: Path, image: Pixels, *, mpp: float, seed: int) -> None:
    """Write a tiled pyramid that OpenSlide reads, with nothing in it of the moment."""
    per_cm = 1e4 / mpp
    description = f"{NOTICE}; made by histomae from seed {seed}, version {VERSION}"
    with write_beside(path) as beside, tifffile.TiffWriter(beside) as tiff:
        for index, level in enumerate(_levels(image)):
            factor = image.shape[1] / level.shape[1]
            tiff.write(
                level,
                photometric="rgb",  # what it gets; the file holds YCbCr
                subsampling=(1, 1),  # halved colour would betray the length of edges
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                tile=(TILE_PX, TILE_PX),
                resolution=(per_cm / factor, per_cm / factor),
                resolutionunit="CENTIMETER",
                subfiletype=0 if index == 0 else 1,
                description=description if index == 0 else None,
                software="histomae",
                metadata=None,
                maxworkers=1,
            )


def _levels(image: Pixels) -> list[Pixels]:
    """Return the picture and its halves, each the mean of 2 × 2 pixels."""
    levels = [image]
    while max(levels[-1].shape[:2]) >= COARSEST_PX:
        fine = levels[-1][
            : levels[-1].shape[0] // 2 * 2, : levels[-1].shape[1] // 2 * 2
        ]
        total = np.full((fine.shape[0] // 2, fine.shape[1] // 2, 3), 2, np.uint16)
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            total += fine[row::2, column::2]
        levels.append((total // 4).astype(np.uint8))
    return levels
