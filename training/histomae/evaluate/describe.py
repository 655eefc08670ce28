"""What a file is, in lines for a person."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histomae.errors import CheckpointError, SlideError
from histomae.events import Failed, HeldOut, Step
from histomae.exchange.features import SUFFIX, read_features
from histomae.learn.runs import RunFolder
from histomae.models.checkpoint import (
    SEGMENTER_KEY,
    SLIDE_KEY,
    held_in,
    load_checkpoint,
)
from histomae.models.probe import Probe
from histomae.models.segmenter import Segmenter, load_segmenter, segmenter_id
from histomae.models.slide_checkpoint import SlideCheckpoint, load_slide_checkpoint
from histomae.models.tensor_files import is_tensor_file
from histomae.slides.find import find_slides
from histomae.slides.slide import Slide
from histomae.slides.tissue import tissue_mask

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Files that hold an encoder, a probe or a segmenter, also when they are damaged.
WEIGHTS_SUFFIXES = (".safetensors", ".probe", ".segmenter")
#: What is said of the last event of a kind.
LAST_OF = (
    (Step, "step {0.step} of {0.total_steps}, loss {0.loss:.4f}"),
    (HeldOut, "held-out loss {0.loss:.4f} at step {0.step}"),
    (Failed, "{0.message}"),
)


def contents(path: Path) -> list[Path]:
    """Return what to describe one by one: the slides of a folder, else the path."""
    if path.is_dir() and not RunFolder(path).config_file.exists():
        with suppress(SlideError):
            return find_slides([path])
    return [path]


def describe(path: str | Path, *, slide_mpp: float | None = None) -> list[str]:
    """Describe a slide, a folder of them, weights, features or a run folder.

    Raises
    ------
    SlideError, CheckpointError, FeatureError, RunError
        If it is none of these, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        if RunFolder(path).config_file.exists():
            return describe_run(path)
        return [
            line
            for slide in find_slides([path])
            for line in describe_slide(slide, slide_mpp=slide_mpp)
        ]
    if path.suffix in WEIGHTS_SUFFIXES or (path.is_file() and is_tensor_file(path)):
        return describe_weights(path)
    if path.suffix == SUFFIX:
        return describe_features(path)
    return describe_slide(path, slide_mpp=slide_mpp)


def describe_features(path: Path) -> list[str]:
    """Describe a file of a slide's features."""
    header = read_features(path).header
    spec = header.spec
    known = f" {spec.encoder_id}" if spec.encoder_id else ""
    lines = [
        f"{path.name}: features of {header.slide}, {header.tiles} tiles, by "
        f"{header.program}",
        f"  encoder{known}, {spec.encoder}: {spec.width} numbers a tile"
        + (f", pooling {spec.pooling}" if spec.pooling else ""),
    ]
    if spec.mpp is not None:
        lines.append(f"  tiles of {spec.tile_px} px at {spec.mpp:.4g} µm/px")
    if header.caveat:
        lines.append(f"  {header.caveat}")
    if header.unreadable:
        lines.append(f"  {header.unreadable} tiles could not be read")
    if header.synthetic:
        lines.append("  synthetic: made by a program, no patient's tissue")
    return lines


def describe_slide(path: Path, *, slide_mpp: float | None = None) -> list[str]:
    """Describe a slide: size, pixel size, levels, tissue."""
    with Slide.open(path, fallback_mpp=slide_mpp) as slide:
        width, height = slide.dimensions
        lines = [
            f"{path.name}: slide, {slide.vendor}",
            f"  {width} × {height} px, {_levels(slide)}",
        ]
        if slide.bounds_l0 != (0, 0, width, height):
            lines.append("  scanned area x {}, y {}, {} × {}".format(*slide.bounds_l0))
        if slide.is_synthetic:
            lines.append("  synthetic: made by a program, no patient's tissue")
        if slide.icc_profile:
            lines.append("  has a colour profile, used when it is shown")
        if not slide.has_mpp:
            guess = slide.suggested_mpp
            hint = f"; its objective suggests {guess:.3g}" if guess else ""
            lines.append(f"  no believable pixel size: give --slide-mpp{hint}")
            slide.thumbnail(64)  # says if it cannot be read
            return lines
        mpp_x, mpp_y = slide.mpp
        tissue = tissue_mask(slide)
        lines += [
            f"  {mpp_x:.4g} × {mpp_y:.4g} µm/px ({slide.mpp_source}), "
            f"{width * mpp_x / 1000:.2f} × {height * mpp_y / 1000:.2f} mm",
            f"  tissue {tissue.area_mm2():.2f} mm² ({tissue.mask.mean():.0%})",
        ]
        if abs(mpp_x / mpp_y - 1) > 0.05:
            lines.append("  pixels are not square: tiles are cut square in micrometres")
        return lines


def _levels(slide: Slide) -> str:
    factors = ", ".join(f"{level.factor[0]:g}" for level in slide.levels)
    if len(slide.levels) == 1:
        return "one level"
    return f"{len(slide.levels)} levels (downsamples {factors})"


def describe_weights(path: Path) -> list[str]:
    """Describe a checkpoint: an encoder of tiles or of slides, a probe, a segmenter."""
    held = held_in(path) if path.is_file() and is_tensor_file(path) else None
    if held == SLIDE_KEY:
        return _describe_slide_encoder(path, load_slide_checkpoint(path))
    if held == SEGMENTER_KEY:
        return _describe_segmenter(path, load_segmenter(path))
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as not_an_encoder:
        try:
            probe = Probe.load(path)
        except CheckpointError:
            raise not_an_encoder from None
        return _describe_probe(path, probe)
    header = checkpoint.header
    decoder = header.decoder
    return [
        f"{path.name}: encoder {checkpoint.encoder_id}, {header.architecture}",
        f"  {header.method}, {header.step} steps, "
        + (f"mask ratio {header.mask_ratio:g}, " if header.mask_ratio else "")
        + (f"decoder {decoder.dim} × {decoder.depth}" if decoder else "no decoder"),
        f"  tiles of {header.tile_px} px"
        + _at(header.mpp)
        + (" (a pixel size was entered by hand)" if header.mpp_given else ""),
        _versions(header.versions),
    ]


def _at(mpp: float | None) -> str:
    return ", whole pictures" if mpp is None else f" at {mpp:.4g} µm/px"


def _describe_segmenter(path: Path, segmenter: Segmenter) -> list[str]:
    header = segmenter.header
    inside = f"the encoder {header.began_with}"
    if not header.frozen:
        inside = f"an encoder that began as {header.began_with} and learned along"
    lines = [
        f"{path.name}: segmenter {segmenter_id(segmenter)}, with {inside}, "
        f"{header.encoder.architecture}",
        f"  taught by {header.taught_by}, {header.step} steps",
        f"  tiles of {header.tile_px} px{_at(header.mpp)}",
        f"  {'areas' if header.areas else 'objects'}: {', '.join(header.class_names)}",
    ]
    if isinstance(told := header.scores.get("lines"), list):
        lines += [f"  {line!s:.200}" for line in told]
    return [*lines, _versions(header.versions)]


def _describe_slide_encoder(path: Path, checkpoint: SlideCheckpoint) -> list[str]:
    header = checkpoint.header
    model, features = header.model, header.features
    decoder = f"decoder {model.decoder_dim} × {model.decoder_depth}"
    tiles = f"  tiles of {features.width} numbers by {features.encoder}"
    if features.mpp is not None:
        tiles += f", {features.tile_px} px at {features.mpp:.4g} µm/px"
    published = ", the published equations" if model.compat else ""
    return [
        f"{path.name}: encoder of slides {checkpoint.encoder_id}, "
        f"{header.architecture}{published}",
        f"  {header.method}, {header.step} steps, mask ratio {header.mask_ratio:g}, "
        + (decoder if header.has_decoder else "no decoder"),
        f"{tiles}; {model.tiles_per_anchor} tiles an anchor",
        f"  trained on {len(header.seen)} slides",
        _versions(header.versions),
    ]


def _versions(versions: Mapping[str, str]) -> str:
    return "  " + ", ".join(f"{name} {n}" for name, n in versions.items())


def _describe_probe(path: Path, probe: Probe) -> list[str]:
    lines = [
        f"{path.name}: probe {probe.probe_id} of the encoder {probe.encoder_id}",
        f"  tiles of {probe.tile_px} px at {probe.mpp:.4g} µm/px",
        "  classes: " + ", ".join(_counted(name, probe) for name in probe.class_names),
    ]
    for key in ("summary", "caveat"):
        if isinstance(told := probe.scores.get(key), str) and told:
            lines.append(f"  {told}")
    return lines + _confusion(probe)


def _counted(name: str, probe: Probe) -> str:
    """Return a class with what it was taught from, if the scores tell."""
    counts = []
    for key, what in (("tiles", "tile"), ("regions", _group_of(probe))):
        table = probe.scores.get(key)
        number = table.get(name) if isinstance(table, dict) else None
        if isinstance(number, int):
            counts.append(f"{number} {what}" + "s" * (number != 1))
    return f"{name} ({' in '.join(counts)})" if counts else name


def _group_of(probe: Probe) -> str:
    """Return what its tiles were grouped by, such as a region."""
    told = probe.scores.get("grouped_by")
    return told if isinstance(told, str) else "region"


def _confusion(probe: Probe) -> list[str]:
    """Return the confusion matrix as a table; nothing if the scores have none."""
    matrix, names = probe.scores.get("confusion"), probe.class_names
    try:
        counts = np.array(matrix, np.int64)
    except (TypeError, ValueError, OverflowError):  # the scores are anyone's JSON
        return []
    if counts.shape != (len(names), len(names)):
        return []
    first = max(map(len, names))
    widths = [max(len(name), len(str(counts.max()))) for name in names]
    groups = f"{_group_of(probe)}s"
    lines = [
        f"  tiles of {groups} it did not learn from, rows true, columns predicted:"
    ]
    for title, row in [("", names), *zip(names, counts.tolist(), strict=True)]:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append(f"    {title:<{first}}  {'  '.join(cells)}")
    return lines


def describe_run(path: Path) -> list[str]:
    """Describe a run folder: its state, how far it came, its last loss."""
    run = RunFolder(path)
    config = run.config()
    lines = [
        f"{path.name}: run, {run.state}",
        f"  {config.method}, {config.architecture}, on {', '.join(config.slides)}",
    ]
    events = list(reversed(list(run.events())))
    for kind, text in LAST_OF:
        last = next((event for event in events if isinstance(event, kind)), None)
        if last is not None:
            lines.append("  " + text.format(last))
    return lines
