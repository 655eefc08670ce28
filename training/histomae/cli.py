"""The command line: it reads settings, calls the rooms and prints events.

Exit codes: 0 done (a training that was stopped is done), 1 failed with a sentence on
standard error, 2 the command was not understood.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
from tqdm import tqdm

from histomae.config import PretrainConfig, load_recipe
from histomae.errors import ConfigError, HistomaeError
from histomae.events import (
    Event,
    Finished,
    HeldOut,
    Note,
    Preview,
    Progress,
    Result,
    Saved,
    Started,
    Step,
)
from histomae.files import new_run_path

if TYPE_CHECKING:
    from histomae.infer.encoder import TileEncoder
    from histomae.slides.slide import Slide

Paths = Annotated[tuple[Path, ...], tyro.conf.Positional]
BAR = (
    "{desc}: {percentage:3.0f} %|{bar}| {n_fmt} of {total_fmt}, {remaining} left"
    "{postfix}"
)


@dataclass(frozen=True, kw_only=True)
class Pretrain(PretrainConfig):
    """Train an encoder on the tissue of slides, without labels.

    The run folder it writes holds everything: settings, events, crops, checkpoints and
    pictures. Ctrl-C stops the training and keeps what it learned; naming the folder
    without slides goes on with it. Example: histomae pretrain slides/ --recipe quick
    --run runs/first, and after a stop: histomae pretrain --run runs/first
    """

    slides: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Slide files, or folders of them."""
    recipe: str | None = None
    """Settings to begin with: a name, or a TOML file; options here outrank it."""
    run: Path | None = None
    """The run folder; by default a new one named after the first slide and the time."""

    def __call__(self) -> None:
        """Train."""
        from histomae.learn.pretrain import run_in
        from histomae.learn.runs import RunFolder, stop_on_signals

        run = RunFolder(self.run or new_run_path(next(iter(self.slides), "run")))
        if self.slides:
            run.create(self._config())
        elif not run.config_file.exists():
            raise ConfigError("slides", "none is given. Name slides or a folder.")
        else:
            self._refuse_changes()
        print(f"run folder: {run.path}")
        with stop_on_signals(run):
            checkpoint = show(run_in(run))
        print(f"checkpoint: {checkpoint}")

    def _refuse_changes(self) -> None:
        """Refuse settings for a run that goes on: it keeps its own."""
        unchanged = Pretrain(run=self.run)
        for known in fields(self):
            if getattr(self, known.name) != getattr(unchanged, known.name):
                raise ConfigError(
                    known.name,
                    "a run keeps its settings. Leave it out to go on with "
                    f"{self.run}, or name slides and a new folder to start another.",
                )

    def _config(self) -> PretrainConfig:
        names = [known.name for known in fields(PretrainConfig)]
        return PretrainConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Teach an encoder classes from regions drawn on slides, and score it honestly.

    The score is that of tiles whose region took no part in the training. Example:
    histomae probe a.svs --regions a.geojson --encoder runs/first --out a.probe
    """

    slides: Paths
    """Slide files."""
    regions: tuple[Path, ...]
    """GeoJSON files, one for each slide, as QuPath writes them."""
    encoder: Path
    """A checkpoint of an encoder, or a run folder."""
    out: Path
    """Where the probe is written."""
    pooling: str = "class_token"
    """How a tile becomes a vector: class_token or mean."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __call__(self) -> None:
        """Fit the probe."""
        from histomae.exchange.qupath import read_annotations
        from histomae.learn.teach import LabelledSlide, teach
        from histomae.slides.slide import Slide

        if len(self.slides) != len(self.regions):
            raise ConfigError(
                "regions",
                f"{len(self.regions)} files for {len(self.slides)} slides. Give one "
                "GeoJSON file for each slide, in the same order.",
            )
        encoder = _encoder(self.encoder, self.device)
        labelled = []
        for path, regions in zip(self.slides, self.regions, strict=True):
            slide = Slide.open(path, fallback_mpp=self.slide_mpp)
            corner = slide.bounds_l0[:2]
            drawn = read_annotations(regions, bounds_xy=corner)
            labelled.append(LabelledSlide(slide, drawn))
        probe = show(teach(labelled, encoder, pooling=self.pooling))
        probe.save(self.out)
        print(json.dumps(probe.scores, indent=1))
        print(f"probe: {self.out}")


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Lay a probe's classes over slides, as files for QuPath and for spreadsheets.

    Example: histomae predict a.svs --encoder runs/first --probe a.probe --out results
    """

    slides: Paths
    """Slide files, or folders of them."""
    encoder: Path
    """A checkpoint of an encoder, or a run folder."""
    probe: Path
    """The probe that was fitted to this encoder."""
    out: Path
    """A folder for <slide>.geojson and <slide>.csv."""
    min_tissue: float = 0.5
    """Tiles with a smaller share of tissue are left out."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __call__(self) -> None:
        """Predict every slide."""
        from histomae.exchange.qupath import write_predictions
        from histomae.exchange.tables import write_csv
        from histomae.infer.predict import predict_slide
        from histomae.models.probe import Probe as FittedProbe

        encoder = _encoder(self.encoder, self.device)
        probe = FittedProbe.load(self.probe)
        for slide in _slides(self.slides, self.slide_mpp):
            work = predict_slide(slide, encoder, probe, min_tissue=self.min_tissue)
            prediction = show(work)
            table = prediction.table()
            target = self.out / slide.name
            write_predictions(
                target.with_name(f"{slide.name}.geojson"),
                table,
                bounds_xy=slide.bounds_l0[:2],
            )
            write_csv(target.with_name(f"{slide.name}.csv"), table)
            areas = prediction.area_mm2()
            print(
                f"{slide.name}: "
                + ", ".join(f"{name} {area:.2f} mm²" for name, area in areas.items())
            )


@dataclass(frozen=True, kw_only=True)
class _Map:
    slides: Paths
    """Slide files, or folders of them."""
    encoder: Path
    """A checkpoint of an encoder, or a run folder."""
    out: Path
    """A folder for <slide>.<map>.npz (values and place) and a picture of it."""
    min_tissue: float = 0.5
    """Tiles with a smaller share of tissue are left out."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class Reconstruct(_Map):
    """Map how badly each patch of a slide is predicted when it is hidden.

    Beside the map it writes a few tiles as pictures: input, masked, reconstruction.
    """

    mask_ratio: float | None = None
    """Share of the patches hidden; None: as in training."""
    seed: int = 0
    """Of the masks."""
    examples: int = 8
    """Tiles shown as pictures, spread over the tissue."""
    statistics: Literal["neighbours", "true"] = "neighbours"
    """Colour of hidden patches: from visible neighbours, or the true one (it knows)."""

    def __call__(self) -> None:
        """Reconstruct every slide."""
        from histomae.evaluate.pictures import write_examples, write_map
        from histomae.infer.maps import error_map
        from histomae.infer.predict import tissue_grid

        encoder = _encoder(self.encoder, self.device)
        for slide in _slides(self.slides, self.slide_mpp):
            grid, cells = tissue_grid(slide, encoder, min_tissue=self.min_tissue)
            work = error_map(
                slide, encoder, grid, cells, mask_ratio=self.mask_ratio, seed=self.seed
            )
            heatmap = show(work)
            print(write_map(self.out / f"{slide.name}.error", heatmap, slide))
            print(
                write_examples(
                    self.out / f"{slide.name}.tiles.png",
                    slide,
                    encoder,
                    grid,
                    cells,
                    count=self.examples,
                    mask_ratio=self.mask_ratio,
                    seed=self.seed,
                    statistics=self.statistics,
                )
            )


@dataclass(frozen=True, kw_only=True)
class Attend(_Map):
    """Map where the encoder looks in every tile of a slide."""

    block: int = -1
    """The transformer block; -1 is the last."""
    head: Literal["mean", "rollout"] | int = "mean"
    """A head's number, mean over the heads, or rollout through all blocks."""

    def __call__(self) -> None:
        """Map the attention of every slide."""
        from histomae.evaluate.pictures import write_map
        from histomae.infer.maps import attention_map
        from histomae.infer.predict import tissue_grid

        encoder = _encoder(self.encoder, self.device)
        for slide in _slides(self.slides, self.slide_mpp):
            grid, cells = tissue_grid(slide, encoder, min_tissue=self.min_tissue)
            work = attention_map(
                slide, encoder, grid, cells, block=self.block, head=self.head
            )
            print(write_map(self.out / f"{slide.name}.attention", show(work), slide))


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what files are: slides, checkpoints, probes and run folders."""

    paths: Paths
    """Files or folders."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""

    def __call__(self) -> None:
        """Describe every path; fail at the end if one could not be read."""
        from histomae.evaluate.describe import describe

        if not self.paths:
            raise ConfigError("paths", "none is given. Name a slide or a checkpoint.")
        failures = []
        for path in self.paths:
            try:
                print("\n".join(describe(path, slide_mpp=self.slide_mpp)))
            except HistomaeError as error:
                failures.append(str(error))
                print(f"{path.name}\n  {error}")
        if failures:
            sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Make the synthetic sample slide, with its regions and nuclei."""

    folder: Path = Path()
    """Where to put it."""
    seed: int = 0
    """Another seed, another slide."""
    mpp: float = 0.5
    """µm per pixel: 0.5 or 0.25."""

    def __call__(self) -> None:
        """Make it."""
        from histomae.slides.sample import sample_slide

        sample = sample_slide(self.seed, mpp=self.mpp, folder=self.folder)
        for path in asdict(sample).values():
            print(path)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what is installed, what works, and how to cure what does not."""

    def __call__(self) -> None:
        """Examine this installation."""
        from histomae.doctor import examine

        findings = list(examine())
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            mark = "ok  " if finding.healthy else "CURE"
            print(f"{mark} {finding.what:<{width}}  {finding.state}")
            if not finding.healthy:
                print(f"     {finding.cure}")
        if not all(finding.healthy for finding in findings):
            sys.exit(1)


COMMANDS = {
    "pretrain": Pretrain,
    "probe": Probe,
    "predict": Predict,
    "reconstruct": Reconstruct,
    "attend": Attend,
    "info": Info,
    "sample": Sample,
    "doctor": Doctor,
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command; the entry point of ``histomae``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command = tyro.cli(
            _any_command(arguments),
            prog="histomae",
            description="Masked autoencoders on whole-slide images. For research only: "
            "this is no medical device.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        command()
    except HistomaeError as error:
        print(f"histomae: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("histomae: stopped.", file=sys.stderr)
        sys.exit(130)


def _any_command(arguments: list[str]) -> Any:
    """Return the union of the commands, pretrain's defaults taken from its recipe."""
    if "--recipe" in arguments[:-1]:
        name = arguments[arguments.index("--recipe") + 1]
        pretrain = Pretrain(**vars(load_recipe(name)), recipe=name)
    else:
        pretrain = Pretrain()
    subcommand = partial(tyro.conf.subcommand, prefix_name=False)
    commands = tuple(
        Annotated[command, subcommand(name)]
        if command is not Pretrain
        else Annotated[command, subcommand(name, default=pretrain)]
        for name, command in COMMANDS.items()
    )
    return Union[commands]  # noqa: UP007  (made at run time)


def show(work: Generator[Event, None, Result]) -> Result:
    """Run long work to its end, showing its events as bars and lines."""
    bars = _Bars()
    try:
        while True:
            try:
                bars.show(next(work))
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
    finally:
        bars.close()


class _Bars:
    """One progress bar at a time, and lines above it."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show(self, event: Event) -> None:
        match event:
            case Progress():
                self._move(event.what, event.done, event.total)
            case Step():
                self._move("training", event.step, event.total_steps)
                self._note(f"loss {event.loss:.4f}, {event.images_per_s:.0f} images/s")
            case Started():
                self._line(
                    f"{event.method}: {event.crops} crops, {event.held_out_crops} held "
                    f"out, at {event.mpp:.3g} µm/px; {event.parameters / 1e6:.1f} M "
                    f"parameters on {event.device} in {event.precision}"
                )
            case HeldOut():
                self._line(f"step {event.step}: held-out loss {event.loss:.4f}")
            case Preview() | Saved():
                self._line(f"step {event.step}: wrote {event.path}")
            case Note():
                self._line(event.text)
            case Finished():
                self._line(f"{event.reason} at step {event.step}")

    def _move(self, what: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc != what:
            self.close()
            self._bar = tqdm(total=total, desc=what, bar_format=BAR, unit="")
        self._bar.update(done - self._bar.n)

    def _note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def _line(self, text: str) -> None:
        tqdm.write(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _encoder(path: Path, device: str) -> TileEncoder:
    """Load an encoder from a checkpoint, or from the last one of a run folder."""
    from histomae.infer.encoder import TileEncoder

    if path.is_dir():
        path = path / "checkpoints" / "last.safetensors"
    return TileEncoder.load(path, device=device)


def _slides(paths: tuple[Path, ...], slide_mpp: float | None) -> Iterator[Slide]:
    """Open the slides among files and folders, one after the other."""
    from histomae.slides.slide import Slide, find_slides

    if not paths:
        raise ConfigError("slides", "none is given. Name slides or a folder.")
    for path in find_slides(paths):
        with Slide.open(path, fallback_mpp=slide_mpp) as slide:
            yield slide
