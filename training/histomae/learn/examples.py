"""What a method trains on: pictures by number, and which of them are held out.

A method names the function that makes its examples (:attr:`Method.examples`); this is
the one for crops of slides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from histomae.errors import ConfigError, RunError
from histomae.events import Event, Heartbeat, Note
from histomae.learn.crops import CropReader
from histomae.slides.crops import CropManifest, CropSpec, build_manifest
from histomae.slides.find import find_slides
from histomae.slides.slide import Slide, default_mpp

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from contextlib import ExitStack
    from pathlib import Path

    import numpy as np

    from histomae.config import PretrainConfig
    from histomae.learn.crops import Source
    from histomae.learn.runs import RunFolder

GB = 10**9


@dataclass(frozen=True, eq=False)
class Examples:
    """What a method trains on.

    ``held_out`` bool (n,) marks the examples kept out of training; ``region`` int64
    (n,) numbers from 0 who are neighbours, and are best read at about the same time.
    ``mpp`` is in µm/px, None where feature files do not say it; ``mpp_given``: a person
    supplied that of one slide at least.
    """

    source: Source
    held_out: np.ndarray[Any, np.dtype[np.bool_]]
    region: np.ndarray[Any, np.dtype[np.int64]]
    mpp: float | None
    mpp_given: bool


def slide_crops(
    config: PretrainConfig, run: RunFolder, stack: ExitStack, *, anew: bool
) -> Generator[Event, None, tuple[PretrainConfig, Examples]]:
    """Open the slides, and draw their crops or read those of the run.

    Parameters
    ----------
    stack
        Slides and reading threads end with it.
    anew
        Draw the crops and write them into the run folder.

    Returns
    -------
    The settings with the mpp decided, and the crops.

    Raises
    ------
    ConfigError
        If no slide is named.
    RunError
        If the run's crops, or a slide that they are from, are missing.
    SlideError, MissingMppError, UpsamplingError, NotEnoughDataError
        If the slides do not serve.
    """
    paths = find_slides(config.slides)
    if not paths:
        raise ConfigError("slides", "none is named. Choose slides or a folder.")
    slides = []
    for path in paths:
        slides.append(open_slide(path, config, stack))
        yield Heartbeat()
    mpp = default_mpp(slides) if config.mpp is None else config.mpp
    config = replace(config, mpp=mpp)
    if anew:
        manifest = yield from build_manifest(slides, crop_spec(config, mpp))
        manifest.save(run.crops_file)
    else:
        manifest = CropManifest.load(run.crops_file)
        slides = slides_of(manifest, slides, config, stack)
    memory_bytes = int(config.cache_gb * GB)
    reader = CropReader(
        slides, manifest, memory_bytes=memory_bytes, readers=config.readers
    )
    stack.enter_context(reader)
    if not reader.fits_in_memory:
        yield Note(
            f"The crops do not fit into {config.cache_gb:g} GB (cache_gb): what does "
            "not is decoded again in every epoch."
        )
    return config, Examples(
        source=reader,
        held_out=manifest.held_out,
        region=manifest.region,
        mpp=manifest.mpp,
        mpp_given=any(slide.mpp_source != "file" for slide in manifest.slides),
    )


def crop_spec(config: PretrainConfig, mpp: float) -> CropSpec:
    """Return which crops the settings ask for."""
    return CropSpec(
        crop_px=config.tile_px,
        mpp=mpp,
        per_slide=config.crops_per_slide,
        min_tissue=config.min_tissue,
        max_iou=config.max_iou,
        held_out=config.held_out,
        seed=config.seed,
        allow_upsampling=config.allow_upsampling,
        sampler=config.sampler,
        region_px=config.region_px,
        crops_per_region=config.crops_per_region,
    )


def open_slide(path: Path, config: PretrainConfig, stack: ExitStack) -> Slide:
    """Open a slide until ``stack`` ends; ``slide_mpp`` serves where the file has none.

    Raises
    ------
    SlideError
        If it cannot be opened.
    MissingMppError
        If its pixel size is unknown.
    """
    slide = stack.enter_context(Slide.open(path, fallback_mpp=config.slide_mpp))
    _ = slide.mpp  # says what is missing
    return slide


def slides_of(
    manifest: CropManifest,
    slides: Iterable[Slide],
    config: PretrainConfig,
    stack: ExitStack,
) -> list[Slide]:
    """Return the slides of a manifest, in its order, with the pixel sizes it noted.

    They are known by what is in them, so that they may have been moved.

    Raises
    ------
    RunError
        If one is missing.
    """
    known = {slide.slide_id: slide for slide in slides}
    ordered = []
    for entry in manifest.slides:
        slide = known.get(entry.slide_id)
        if slide is None:
            raise RunError(
                f"The run was trained on {entry.path}, which is not among "
                f"{', '.join(config.slides)}, or has changed. Bring it back, or resume "
                "with slides that name its place."
            )
        if slide.mpp != (entry.mpp_x, entry.mpp_y):
            mpp = (entry.mpp_x, entry.mpp_y)
            slide = stack.enter_context(Slide.open(slide.path, mpp=mpp))
        ordered.append(slide)
    return ordered
