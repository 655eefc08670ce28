"""What a method trains on: pictures by number, and which of them are held out.

A method names the function that makes its examples (:attr:`Method.examples`); here are
those for crops of slides, and for places at several magnifications, which are read from
slides or come from the BreakHis data set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.alike import groups_alike
from histomae.data.breakhis import (
    HEIGHT_PX,
    MPP,
    is_breakhis,
    picture_sets,
    read_breakhis,
)
from histomae.data.busi import doubts, is_busi, read_busi
from histomae.data.picture_sets import PictureSets
from histomae.data.pictures import find_pictures, readable
from histomae.data.splits import whole_groups
from histomae.errors import ConfigError, DataSetError, NotEnoughDataError, RunError
from histomae.events import Event, Heartbeat, Note
from histomae.learn.crops import CropReader, PictureReader, PictureSetReader
from histomae.learn.pairs import possible_pairs
from histomae.slides.crops import CropManifest, CropSpec, build_manifest
from histomae.slides.find import find_slides, holds_pictures
from histomae.slides.remote import local_copies
from histomae.slides.slide import Slide, default_mpp
from histomae.slides.tissue import TissueParams

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from contextlib import ExitStack

    from histomae.config import PretrainConfig
    from histomae.learn.crops import Source
    from histomae.learn.runs import RunFolder

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Indices = np.ndarray[Any, np.dtype[np.int64]]

GB = 10**9
#: Of the pictures at 100x: of the four the one that slides have too.
BREAKHIS_MPP = MPP[100]


@dataclass(frozen=True, eq=False)
class Examples:
    """What a method trains on.

    ``held_out`` bool (n,) marks the examples kept out of training; ``region`` int64
    (n,) numbers from 0 who are neighbours, and are best read at about the same time.
    ``mpp`` is in µm/px, None of pictures that have no micrometres, and where feature
    files do not say it; ``mpp_given``: a person supplied that of one slide at least.

    ``patient`` int64 (n,) numbers from 0 what is of one patient, or of one slide where
    no more is known; of plain pictures, what looks alike. ``present`` bool (n, M) marks
    which of M magnifications there are of each example, from the coarsest.
    """

    source: Source
    held_out: Bools
    region: Indices
    mpp: float | None
    mpp_given: bool
    patient: Indices
    present: Bools
    what: str = "crop"
    """One of them, for people."""


def slide_crops(
    config: PretrainConfig, run: RunFolder, stack: ExitStack, *, anew: bool
) -> Generator[Event, None, tuple[PretrainConfig, Examples]]:
    """Open the slides, and draw their crops or read those of the run.

    Or make ready the pictures of a folder, such as BUSI, each of them whole.

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
    DataSetError
        If a picture cannot be read, or slides and pictures are mixed.
    """
    paths = [Path(path) for path in config.slides]
    if any(holds_pictures(path) for path in paths):
        return (yield from _from_pictures(paths, config, run, stack, anew=anew))
    return (yield from _from_slides(config, run, stack, anew=anew, factors=(1.0,)))


def places(
    config: PretrainConfig, run: RunFolder, stack: ExitStack, *, anew: bool
) -> Generator[Event, None, tuple[PretrainConfig, Examples]]:
    """Make ready places that are seen at several magnifications.

    From slides, at ``view_factors``: all pictures of a place are as many pixels wide
    and have one centre, read from the slide's own pyramid; they need no registration.
    The coarsest is what is drawn, so that no picture leaves the slide and none held out
    touches one trained on. Or from a folder of BreakHis, its four magnifications.

    As :func:`slide_crops`, and raises

    NotEnoughDataError
        If there are fewer than two places to train on, or they have no pair.
    DataSetError
        If a picture cannot be read, or slides and BreakHis are mixed.
    """
    trees = [path for path in map(Path, config.slides) if is_breakhis(path)]
    if not trees:
        factors = tuple(sorted(config.view_factors, reverse=True))
        made = _from_slides(config, run, stack, anew=anew, factors=factors)
    elif len(config.slides) == 1:
        made = _from_breakhis(trees[0], config, run, stack, anew=anew)
    else:
        raise DataSetError(
            f"{trees[0]} holds BreakHis pictures, and other slides are named too. "
            "Train on this folder alone, or on slides alone."
        )
    config, examples = yield from made
    return config, _comparable(examples, config)


def _from_breakhis(
    root: Path,
    config: PretrainConfig,
    run: RunFolder,
    stack: ExitStack,
    *,
    anew: bool,
) -> Generator[Event, None, tuple[PretrainConfig, Examples]]:
    """Put the pictures of a tree into sets, or read those of the run."""
    if anew:
        sets = yield from _sets_of(root, config)
        sets.save(run.crops_file, root)
    else:
        sets = PictureSets.load(run.crops_file, root)
    reader = PictureSetReader(
        sets,
        config.tile_px,
        memory_bytes=int(config.cache_gb * GB),
        readers=config.readers,
    )
    stack.enter_context(reader)
    mpp = config.mpp or BREAKHIS_MPP * HEIGHT_PX / config.tile_px
    return replace(config, mpp=mpp), _of_sets(sets, reader, mpp)


def _of_sets(
    sets: PictureSets, reader: PictureSetReader, mpp: float | None
) -> Examples:
    return Examples(
        source=reader,
        held_out=sets.held_out,
        region=np.arange(len(sets)),
        mpp=mpp,
        mpp_given=False,
        patient=sets.patient,
        present=sets.present,
        what="picture" if mpp is None else "set",
    )


def _sets_of(root: Path, config: PretrainConfig) -> Generator[Event, None, PictureSets]:
    """Return the sets that have a pair, of pictures that can be read."""
    tree = read_breakhis(root)
    yield from map(Note, tree.notes)
    paths = [picture.path for picture in tree.pictures]
    good = yield from readable(paths, skip_unreadable=config.skip_unreadable)
    sets, note = picture_sets(
        (picture for picture in tree.pictures if picture.path in good),
        partial=config.partial_sets,
        held_out=config.held_out,
        seed=config.seed,
    )
    yield Note(note)
    paired = np.asarray(possible_pairs(config.pair_strategy, sets.present).any(1))
    if paired.sum() < 2:
        raise NotEnoughDataError(
            f"{root.name} has {note} Fewer than two have a pair for the strategy "
            f"{config.pair_strategy}, and each is told from the others. Choose more of "
            "BreakHis, partial_sets, or another pair_strategy."
        )
    if not paired.all():
        missing = f"{(~paired).sum()} sets"
        yield Note(f"{missing} have no pair for {config.pair_strategy}: left out.")
    return sets.of(paired)


def _from_pictures(
    paths: list[Path],
    config: PretrainConfig,
    run: RunFolder,
    stack: ExitStack,
    *,
    anew: bool,
) -> Generator[Event, None, tuple[PretrainConfig, Examples]]:
    """List the pictures of a folder, or read those of the run."""
    (root, *others) = paths
    if others or not root.is_dir():
        raise DataSetError(
            f"{next(p for p in paths if holds_pictures(p))} is of pictures, and these "
            "are trained on by themselves. Name one folder of pictures, or slides."
        )
    if config.mpp is not None or config.slide_mpp is not None:
        raise ConfigError(
            "mpp", "pictures are taken whole, whatever their micrometres. Leave it out."
        )
    if anew:
        sets = yield from _plain_sets(root, config)
        sets.save(run.crops_file, root)
    else:
        sets = PictureSets.load(run.crops_file, root)
    reader = PictureReader(
        sets,
        config.tile_px,
        sector=config.scan_sector,
        memory_bytes=int(config.cache_gb * GB),
        readers=config.readers,
    )
    stack.enter_context(reader)
    return config, _of_sets(sets, reader, None)


def _plain_sets(
    root: Path, config: PretrainConfig
) -> Generator[Event, None, PictureSets]:
    """Return the pictures that can be read; what looks alike is one case."""
    busi = read_busi(root) if is_busi(root) else None
    if busi is None:
        paths = find_pictures([root])
    else:
        yield from map(Note, busi.notes)
        paths = [picture.path for picture in busi.pictures]
    good = yield from readable(paths, skip_unreadable=config.skip_unreadable)
    paths = [path for path in paths if path in good]
    group = yield from groups_alike(paths)
    names = [f"{number}" for number in group]
    if busi is not None and len(paths) == len(busi.pictures):
        yield from map(Note, doubts(busi, group))
    elif len(set(names)) < len(names):
        more = len(names) - len(set(names))
        yield Note(
            f"{more} of {len(names)} pictures look like others: such are held out "
            "together, or not at all."
        )
    held_out = whole_groups(names, config.held_out, config.seed)
    if not (~held_out).any():
        raise NotEnoughDataError(
            f"{root} holds no picture to train on. Choose another folder."
        )
    return PictureSets(tuple((path,) for path in paths), tuple(names), held_out, 1)


def _comparable(examples: Examples, config: PretrainConfig) -> Examples:
    """Refuse examples of which none has another one to be told from.

    A single one held out is trained on: there is nothing to judge it by.
    """
    patients = examples.patient[~examples.held_out]
    if len(patients) < 2:
        raise NotEnoughDataError(
            f"{config.method} tells each place from the others, and there are fewer "
            "than two to train on. Choose slides with more tissue, or hold fewer "
            "places out."
        )
    if config.exclude_same_patient and len(np.unique(patients)) < 2:
        raise NotEnoughDataError(
            "All places are of one patient or slide, which exclude_same_patient does "
            "not tell apart. Choose slides of several, or leave it out."
        )
    if examples.held_out.sum() == 1:
        return replace(examples, held_out=np.zeros_like(examples.held_out))
    return examples


def _from_slides(
    config: PretrainConfig,
    run: RunFolder,
    stack: ExitStack,
    *,
    anew: bool,
    factors: tuple[float, ...],
) -> Generator[Event, None, tuple[PretrainConfig, Examples]]:
    """Open the slides and draw crops, or read them; ``factors`` fall, times the mpp."""
    paths = find_slides((yield from local_copies(config.slides)))
    if not paths:
        raise ConfigError("slides", "none is named. Choose slides or a folder.")
    slides = []
    for path in paths:
        slides.append(open_slide(path, config, stack))
        yield Heartbeat()
    mpp = default_mpp(slides) if config.mpp is None else config.mpp
    config = replace(config, mpp=mpp)
    if anew:
        spec = replace(
            crop_spec(config, factors[0] * mpp),
            views_mpp=tuple(factor * mpp for factor in factors[1:]),
        )
        manifest = yield from build_manifest(slides, spec)
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
        mpp=factors[-1] * mpp,
        patient=manifest.slide_index,
        present=np.ones((len(manifest), len(factors)), bool),
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
    tissue = TissueParams.from_text(config.tissue) if config.tissue else None
    slide = stack.enter_context(
        Slide.open(path, fallback_mpp=config.slide_mpp, tissue=tissue)
    )
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
