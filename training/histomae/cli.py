"""The command line: it reads settings, calls the rooms and prints events.

Results go to standard output, progress and complaints to standard error. Exit codes:
0 done (a training that was stopped is done), 1 failed with a sentence on standard
error, 2 the command was not understood, 130 broken off by Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from histomae import __version__
from histomae.cli_segment import Segment, TeachSegmenter
from histomae.cli_shared import (
    Encoder,
    File,
    Folder,
    Slides,
    checkpoint_of,
    complain,
    counted,
    each_of,
    encoder_of,
    last_of,
    mention,
    say,
    show,
    told_apart,
)
from histomae.config import (
    METHOD_DEFAULTS,
    PretrainConfig,
    check_least,
    check_within,
    load_recipe,
)
from histomae.errors import (
    CheckpointError,
    ConfigError,
    HistomaeError,
    NotEnoughDataError,
    RunError,
)
from histomae.events import Event
from histomae.files import new_run_path, runs_folder

if TYPE_CHECKING:
    from histomae.data.labelled import LabelledSet
    from histomae.data.masking import MaskSetting
    from histomae.evaluate.candidates import Candidate
    from histomae.evaluate.protocols import Protocol as HowToExamine
    from histomae.evaluate.protocols import Settings
    from histomae.infer.embedder import EncoderChoice
    from histomae.infer.regions import Region
    from histomae.learn.runs import RunFolder
    from histomae.models.probe import Probe as FittedProbe
    from histomae.slides.slide import Slide
    from histomae.slides.tissue import TissueParams

ABOUT = (
    "Masked autoencoders on whole-slide images. For research only: this is no medical "
    "device. 'histomae pretrain --help' tells more of a command."
)


# The commands ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Where:
    """What a training begins with, and where it is kept."""

    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    """Settings to begin with: quick, paper or a TOML file; options here outrank it."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The run folder; None: a new one, named after the first slide and the day."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(PretrainConfig, _Where):
    """Train an encoder on the tissue of slides, without labels.

    The run folder it writes holds everything: settings, events, crops, checkpoints and
    pictures. Ctrl-C stops the training and keeps what it learned; naming the folder
    without slides goes on with it.

    $ histomae pretrain slides/ --recipe quick --run runs/first
    $ histomae pretrain --run runs/first
    """

    slides: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[SLIDE ...]", help_behavior_hint=""),
    ] = ()
    """Slide files, folders of them, or addresses (s3://…); none: go on with --run."""

    def __post_init__(self) -> None:
        """Leave the checks to :meth:`settings`: tyro would wrap what they say."""

    def __call__(self) -> None:
        """Train."""
        from histomae.learn import processes
        from histomae.learn.runs import RunFolder

        if self.run is None and processes.count() > 1:
            raise ConfigError(
                "run",
                "is needed where several processes train: name the run folder, on a "
                "disk that all of them see.",
            )
        run = RunFolder(self.run or new_run_path(next(iter(self.slides), "run")))
        if not processes.is_first():
            self._follow_the_first(run)
        elif not self.slides:
            self._go_on(run)
        elif run.config_file.exists():
            raise RunError(
                f"{run.path} already holds a run ({run.state}). Name it without slides "
                "to go on with it, or choose another folder."
            )
        else:
            run.create(self.settings())
            try:
                self._train(run)
            except HistomaeError:
                run.forget_unstarted()
                raise

    def settings(self) -> PretrainConfig:
        """Return the settings alone, checked."""
        names = [known.name for known in fields(PretrainConfig)]
        return PretrainConfig(**{name: getattr(self, name) for name in names})

    def _go_on(self, run: RunFolder) -> None:
        if self.run is None:
            raise ConfigError(
                "slides",
                "none is given. Name slides or a folder, or with --run the run to go "
                "on with.",
            )
        if self.recipe is not None:
            raise ConfigError(
                "recipe",
                f"a run keeps its settings. Leave it out to go on with {self.run}, or "
                "name slides and a new folder to start another.",
            )
        run.config()  # says what is wrong if there is none
        self._train(run, self.settings())

    def _follow_the_first(self, run: RunFolder) -> None:
        """Train along with the process that writes the folder, in silence."""
        from histomae.events import result_of
        from histomae.learn.pretrain import run_in
        from histomae.learn.runs import stop_on_signals

        with stop_on_signals(run):
            result_of(run_in(run, self.settings()))

    def _train(self, run: RunFolder, config: PretrainConfig | None = None) -> None:
        from histomae.learn.pretrain import run_in
        from histomae.learn.runs import stop_on_signals

        say(f"run folder: {run.path}")
        with stop_on_signals(run):
            kept = show(run_in(run, config))
        if kept == run.path:
            say("no checkpoint: it ended before anything was learned")
        else:
            say(f"checkpoint: {kept}")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Teach an encoder classes from regions on slides or from pictures; score it.

    The score is that of tiles whose region, or patient, took no part in the training.
    Pictures come from a data set ('histomae datasets' lists what is known) or are your
    own: a folder for each class, or a table (CSV).

    $ histomae probe a.svs --regions a.geojson --encoder runs/first --out a.probe
    $ histomae probe --data BRACS_RoI --encoder runs/first --out bracs.probe
    """

    slides: Slides = ()
    """Slide files, or addresses of them."""
    regions: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint=""),
    ] = ()
    """GeoJSON files as QuPath writes them: one for each slide, in the same order."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|FILE")] = None
    """Or labelled pictures: a data set, folders of classes, or a table."""
    kind: str = "auto"
    """Which data set it is, as 'histomae datasets' names it; auto: it is found out."""
    task: str | None = None
    """Which of its tasks; None: its first, the finest classes."""
    picture_mpp: float | None = None
    """µm per pixel of pictures that do not tell it."""
    allow_upsampling: bool = False
    """Use pictures coarser than the encoder's tiles, too."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read."""
    encoder: Encoder
    """A checkpoint of an encoder, or a run folder."""
    out: File
    """Where the probe is written."""
    pooling: Literal["class_token", "mean"] | None = None
    """How a tile becomes a vector: its class token, or the mean of its patches; None:
    the class token where the encoder has one."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __call__(self) -> None:
        """Fit the probe."""
        from histomae.evaluate.describe import describe_weights

        probe = self._of_regions() if self.data is None else self._of_data(self.data)
        probe.save(self.out)
        say("\n".join(describe_weights(self.out)))
        say(f"probe: {self.out}")

    def _of_data(self, path: Path) -> FittedProbe:
        from histomae.data.datasets import open_dataset
        from histomae.learn.teach import teach_pictures

        if self.slides or self.regions:
            raise ConfigError(
                "data", "slides and regions are named too. Teach from one of both."
            )
        data = open_dataset(path, self.kind, task=self.task)
        return show(
            teach_pictures(
                data,
                encoder_of(self.encoder, self.device),
                mpp=self.picture_mpp,
                pooling=self.pooling,
                allow_upsampling=self.allow_upsampling,
                skip_unreadable=self.skip_unreadable,
            )
        )

    def _of_regions(self) -> FittedProbe:
        from histomae.exchange.qupath import read_annotations
        from histomae.learn.teach import LabelledSlide, teach
        from histomae.slides.remote import local_copies
        from histomae.slides.slide import Slide

        if not self.slides:
            raise ConfigError(
                "slides", "none is given. Name slides before --regions; or --data."
            )
        if len(self.slides) != len(self.regions):
            raise ConfigError(
                "regions",
                f"{counted(len(self.regions), 'file')} for "
                f"{counted(len(self.slides), 'slide')}. Give one GeoJSON file for each "
                "slide, in the same order.",
            )
        encoder = encoder_of(self.encoder, self.device)
        with ExitStack() as stack:
            labelled = []
            copies = show(local_copies(self.slides))
            for path, regions in zip(copies, self.regions, strict=True):
                slide = Slide.open(path, fallback_mpp=self.slide_mpp)
                stack.callback(slide.close)
                corner = slide.bounds_l0[:2]
                drawn = read_annotations(regions, bounds_xy=corner, on_skipped=mention)
                labelled.append(LabelledSlide(slide, drawn))
            return show(teach(labelled, encoder, pooling=self.pooling))


@dataclass(frozen=True, kw_only=True)
class _IntoFolder:
    """What every command asks that makes files of slides."""

    slides: Slides = ()
    """Slide files, folders of them, or addresses such as s3://bucket/a.svs."""
    out: Folder
    """The folder for the results."""
    min_tissue: float = 0.5
    """Tiles with a smaller share of tissue are left out."""
    tissue: str = ""
    """What counts as tissue, such as 'closing_um=0, least_texture=0.03'; empty: what
    was set for each slide in the dock, or the defaults."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    @property
    def tissue_params(self) -> TissueParams | None:
        """What counts as tissue; None: what is remembered for each slide."""
        from histomae.slides.tissue import TissueParams

        return TissueParams.from_text(self.tissue) if self.tissue else None


@dataclass(frozen=True, kw_only=True)
class _OnSlides(_IntoFolder):
    """What every command asks that looks at slides with an encoder of ours."""

    encoder: Encoder
    """A checkpoint of an encoder, or a run folder."""

    def on_each(self, look: Callable[[Slide], None]) -> None:
        """Look at each slide; exit with 1 at the end if one could not be read."""
        from histomae.slides.slide import Slide

        counts = self.tissue_params

        def open_and_look(path: Path) -> None:
            with Slide.open(path, fallback_mpp=self.slide_mpp, tissue=counts) as slide:
                look(slide)

        each_of(told_apart(self.slides), open_and_look)


@dataclass(frozen=True, kw_only=True)
class Predict(_OnSlides):
    """Lay a probe's classes over slides, as files for QuPath and for spreadsheets.

    For each slide it writes NAME.geojson, which QuPath opens, and NAME.csv.

    $ histomae predict a.svs --encoder runs/first --probe a.probe --out results
    """

    probe: File
    """The probe that was fitted to this encoder."""

    def __call__(self) -> None:
        """Predict every slide."""
        from histomae.exchange.qupath import write_predictions
        from histomae.exchange.tables import write_csv
        from histomae.infer.predict import check_fits, predict_slide
        from histomae.models.probe import Probe as FittedProbe

        check_within("min_tissue", self.min_tissue, 0, 1)
        encoder = encoder_of(self.encoder, self.device)
        probe = FittedProbe.load(self.probe)
        check_fits(encoder, probe)

        def look(slide: Slide) -> None:
            work = predict_slide(slide, encoder, probe, min_tissue=self.min_tissue)
            prediction = show(work)
            table = prediction.table()
            for_qupath = self.out / f"{slide.name}.geojson"
            write_predictions(for_qupath, table, bounds_xy=slide.bounds_l0[:2])
            write_csv(self.out / f"{slide.name}.csv", table)
            areas = prediction.area_mm2().items()
            told = ", ".join(f"{name} {area:.2f} mm²" for name, area in areas)
            say(f"{slide.name}: {counted(len(table), 'tile')}, {told}")

        self.on_each(look)


@dataclass(frozen=True, kw_only=True)
class Reconstruct(_OnSlides):
    """Map how badly each patch of a slide is predicted when it is hidden.

    For each slide it writes NAME.error.png, the map over the slide, its numbers as
    NAME.error.npz, and a few tiles as NAME.tiles.png: input, masked, reconstruction.

    $ histomae reconstruct a.svs --encoder runs/first --out results
    """

    mask_ratio: float | None = None
    """Share of the patches hidden; None: as in training."""
    seed: int = 0
    """Of the masks."""
    examples: int = 8
    """Tiles shown as pictures, spread over the tissue."""
    statistics: Literal["neighbours", "true"] = "neighbours"
    """Where the colour of hidden patches comes from: the visible patches around them;
    or true, from the hidden patches themselves, which the network never saw."""

    def __call__(self) -> None:
        """Reconstruct every slide."""
        from histomae.evaluate.pictures import write_examples, write_map
        from histomae.infer.maps import error_map
        from histomae.infer.predict import tissue_grid

        self._check()
        encoder = encoder_of(self.encoder, self.device)
        if not encoder.has_decoder:
            raise CheckpointError(
                f"{self.encoder.name} is an encoder without its decoder, so it cannot "
                "reconstruct. Give the run folder of a masked autoencoder (mae or "
                "sd-mae), or its checkpoints/last.safetensors."
            )

        def look(slide: Slide) -> None:
            grid, cells = tissue_grid(slide, encoder, min_tissue=self.min_tissue)
            ratio, seed = self.mask_ratio, self.seed
            work = error_map(slide, encoder, grid, cells, mask_ratio=ratio, seed=seed)
            say(write_map(self.out / f"{slide.name}.error", show(work), slide))
            tiles = write_examples(
                self.out / f"{slide.name}.tiles.png",
                slide,
                encoder,
                grid,
                cells,
                count=self.examples,
                mask_ratio=ratio,
                seed=seed,
                statistics=self.statistics,
            )
            say(tiles)

        self.on_each(look)

    def _check(self) -> None:
        check_within("min_tissue", self.min_tissue, 0, 1)
        if self.mask_ratio is not None:
            check_within("mask_ratio", self.mask_ratio, 0, 1)
        for name, least in (("seed", 0), ("examples", 1)):
            check_least(name, getattr(self, name), least)


@dataclass(frozen=True, kw_only=True)
class Attend(_OnSlides):
    """Map where the encoder looks in every tile of a slide, or in whole pictures.

    For each slide it writes NAME.attention.png, the map over the slide, and its numbers
    as NAME.attention.npz: 1 is a patch that stands out in nothing. Convolutions have no
    attention; of them --probe and --class-name map what speaks for a class (Grad-CAM).
    Of a picture with a mask of its lesion beside it, it says how much of the attention
    lies on the lesion.

    $ histomae attend a.svs --encoder runs/first --head rollout --out results
    $ histomae attend Dataset_BUSI_with_GT --encoder runs/busi --out results
    """

    block: int = -1
    """The transformer block; -1 is the last."""
    head: Literal["mean", "rollout"] | int = "mean"
    """A head's number, mean over the heads, or rollout through all blocks."""
    query: Literal["class_token", "mean"] = "class_token"
    """Who looks: the class token; or the patches on average, for models whose vectors
    are the mean of the patches."""
    probe: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A probe fitted to this encoder, for Grad-CAM."""
    class_name: str = ""
    """Its class that Grad-CAM asks for."""

    def __call__(self) -> None:
        """Map the attention of every slide."""
        from histomae.data.busi import lesion_at
        from histomae.evaluate.pictures import write_map
        from histomae.infer.maps import attention_map
        from histomae.infer.predict import tissue_grid
        from histomae.infer.shares import share_on_lesion
        from histomae.models.probe import Probe as FittedProbe

        check_within("min_tissue", self.min_tissue, 0, 1)
        if (self.probe is None) != (not self.class_name):
            raise ConfigError("class_name", "and probe go together. Give both.")
        encoder = encoder_of(self.encoder, self.device)
        probe = None if self.probe is None else FittedProbe.load(self.probe)
        wanted = ("block", "head", "query", "class_name")
        how = {name: getattr(self, name) for name in wanted}

        def look(slide: Slide) -> None:
            grid, cells = tissue_grid(slide, encoder, min_tissue=self.min_tissue)
            found = show(attention_map(slide, encoder, grid, cells, probe=probe, **how))
            say(write_map(self.out / f"{slide.name}.attention", found, slide))
            lesion = lesion_at(slide.path) if slide.is_picture else None
            share = share_on_lesion(grid, found.values, lesion)
            if share is not None:
                say(f"{slide.name}: {share.words()}")

        self.on_each(look)


@dataclass(frozen=True, kw_only=True)
class Embed(_IntoFolder):
    """Turn the tissue tiles of slides into vectors, one HDF5 file per slide.

    For each slide it writes NAME.h5, which TRIDENT, CLAM and the like read too. Slides
    that are done are not done again: after whatever ended it, the same command goes on.
    With --scheduler the slides are shared among the workers of a dask cluster, which
    must see slides, weights and results under the same paths. With --regions each
    region of a slide is a file of its own, NAME.REGION.h5.

    $ histomae embed slides/ --encoder runs/first --out features
    $ histomae embed slides/ --encoder timm:vit_small_patch16_224 --out features
    """

    encoder: Annotated[str, tyro.conf.arg(metavar="FILE|FOLDER|timm:NAME")]
    """A checkpoint, a run folder, timm:NAME, or a file of weights for a timm model."""
    regions: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]")] = ()
    """GeoJSON files as QuPath writes them: one for each slide, in the same order. Only
    the tiles in each region are embedded."""
    architecture: str | None = None
    """timm's name of the model that a file of weights is for."""
    tile_px: int | None = None
    """Side of a tile, pixels; None: the encoder's own."""
    mpp: float | None = None
    """µm per pixel; None: the encoder's own, or else the coarser of 0.5 and the pixel
    size of the coarsest slide."""
    mean: tuple[float, float, float] | None = None
    """Of the channels of the encoder's pictures, 0 to 1; None: the encoder's own."""
    std: tuple[float, float, float] | None = None
    """Their standard deviation."""
    pooling: Literal["class_token", "mean", "own"] | None = None
    """How a tile becomes a vector: its class token, the mean of its patches, or as timm
    does it for a foreign model (own); None: class_token for our encoders, else own."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """auto: bf16 where the device computes in it."""
    batch_size: int | None = None
    """Tiles computed at a time; None: by device."""
    scheduler: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """A dask scheduler, such as tcp://10.0.0.1:8786; None: this process."""

    def __call__(self) -> None:
        """Embed every slide."""
        from histomae.infer.cohort import embed_cohort, plan_cohort
        from histomae.infer.embed import SlideEmbedding
        from histomae.infer.embedder import open_embedder

        check_within("min_tissue", self.min_tissue, 0, 1)
        slides = told_apart(self.slides)
        choice = self._choice(slides)
        embedding = SlideEmbedding(
            open_embedder(choice), self.pooling, self.min_tissue, self.batch_size
        )
        plan = show(
            plan_cohort(
                slides,
                embedding,
                self.out,
                slide_mpp=self.slide_mpp,
                tissue=self.tissue_params,
                regions_of=self._regions_of(slides),
            )
        )
        if self.scheduler is None:
            done = show(embed_cohort(plan, embedding))
        else:
            from histomae.infer.cluster import Order, embed_on_cluster

            order = Order.of(embedding, choice)
            done = show(embed_on_cluster(plan, order, self.scheduler))
        say(self._told(len(plan.finished), len(done.written)))
        if failures := [*plan.failures, *done.failures]:
            named = ", ".join(failure.slide.name for failure in failures)
            total = len(failures) + len(plan.finished) + len(done.written)
            complain(f"{len(failures)} of {total} failed: {named}.")
            sys.exit(1)

    def _regions_of(
        self, slides: Sequence[Path]
    ) -> Callable[[Slide], Sequence[Region]] | None:
        """Return what reads a slide's regions; None: slides are embedded whole."""
        from histomae.exchange.qupath import read_annotations
        from histomae.infer.regions import named_regions

        if not self.regions:
            return None
        if len(self.regions) != len(slides):
            raise ConfigError(
                "regions",
                f"{counted(len(self.regions), 'file')} for "
                f"{counted(len(slides), 'slide')}. Give one GeoJSON file for each "
                "slide, in the same order.",
            )
        files = dict(zip(slides, self.regions, strict=True))

        def read(slide: Slide) -> Sequence[Region]:
            corner = slide.bounds_l0[:2]
            file = files[slide.path]
            drawn = read_annotations(file, bounds_xy=corner, on_skipped=mention)
            return named_regions(drawn)

        return read

    def _choice(self, slides: Sequence[Path]) -> EncoderChoice:
        from histomae.infer.cohort import cohort_mpp
        from histomae.infer.embedder import EncoderChoice

        source = self.encoder
        if Path(source).is_dir():
            source = str(last_of(Path(source)))
        asked = ("architecture", "tile_px", "mpp", "mean", "std", "device", "precision")
        choice = EncoderChoice(
            source=source, **{name: getattr(self, name) for name in asked}
        )
        if choice.mpp is None and not choice.is_ours:
            mpp = show(cohort_mpp(slides, self.slide_mpp))
            mention(f"tiles are read at {mpp:.4g} µm/px; --mpp chooses another")
            choice = replace(choice, mpp=mpp)
        return choice

    def _told(self, finished: int, written: int) -> str:
        were = "was" if finished == 1 else "were"
        before = f", {finished} {were} done before" if finished else ""
        what = "region" if self.regions else "slide"
        return f"{self.out}: {counted(written, what)} embedded{before}"


@dataclass(frozen=True, kw_only=True)
class MaskCheck:
    """Say how often a mask hides a structure entirely, and which setting would not.

    $ histomae mask-check --structure-px 16
    $ histomae mask-check --structure-um 8 --mpp 0.5 --patch-size 8
    $ histomae mask-check --busi Dataset_BUSI_with_GT
    """

    structure_px: float | None = None
    """Width of the smallest structure that must not be lost, pixels of the tile."""
    structure_um: float | None = None
    """The same in micrometres; needs mpp."""
    busi: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Or the lesions of BUSI, breast ultrasound, as its masks show them."""
    mpp: float | None = None
    """µm per pixel of the tile."""
    tile_px: int = 224
    """Side of a tile, pixels."""
    patch_size: int = 16
    """Side of a ViT patch, pixels."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""

    def __call__(self) -> None:
        """Print a table of settings, and the suggestion."""
        from histomae.data.masking import MaskSetting, compared, suggested

        present = MaskSetting(self.patch_size, self.mask_ratio)
        if self.busi is not None:
            self._on_lesions(self.busi, present)
            return
        size_px = self._size_px()
        say(f"a structure of {size_px:.4g} px in tiles of {self.tile_px} px is hidden")
        say("patch  hidden  on average  at worst")
        for setting, hidden in compared(size_px, self.tile_px, present):
            mark = "  <- asked for" if setting == present else ""
            say(
                f"{setting.patch_size:>2} px  {setting.mask_ratio:>6.0%}  "
                f"{hidden.mean:>10.2%}  {hidden.worst:>8.2%}{mark}"
            )
        self._suggest(suggested(size_px, self.tile_px, present))

    def _on_lesions(self, root: Path, present: MaskSetting) -> None:
        from histomae.data.busi import lesion_tiles, lesion_width, read_busi
        from histomae.data.masking import AT_MOST, chances_hidden, settings_from

        settings = settings_from(present, self.tile_px)
        busi = read_busi(root)
        for note in busi.notes:
            mention(note)
        lesions = show(lesion_tiles(busi, self.tile_px))
        if not lesions:
            raise NotEnoughDataError(
                f"{root} holds no mask of a lesion. Choose Dataset_BUSI_with_GT."
            )
        widths = sorted(map(lesion_width, lesions))
        named = ("smallest", "a quarter", "half", "three quarters", "largest")
        told = [
            f"{name} {widths[round(share * (len(widths) - 1))]:.0f}"
            for name, share in zip(named, (0, 0.25, 0.5, 0.75, 1), strict=True)
        ]
        say(f"{len(lesions)} lesions, width in px of a tile: {', '.join(told)}")
        say(f"patch  hidden  on average  worst lesion  lesions above {AT_MOST:.0%}")
        better = None
        for setting in settings:
            chances = chances_hidden(lesions, setting)
            above = float((chances > AT_MOST).mean())
            if better is None and above <= AT_MOST:
                better = setting
            mark = "  <- asked for" if setting == present else ""
            say(
                f"{setting.patch_size:>2} px  {setting.mask_ratio:>6.0%}  "
                f"{chances.mean():>10.2%}  {chances.max():>12.2%}  {above:>16.1%}{mark}"
            )
        self._suggest(better)

    def _suggest(self, better: MaskSetting | None) -> None:
        if better is None:
            say("suggested: tiles at a finer pixel size; no setting helps")
        else:
            ratio = f"--mask-ratio {better.mask_ratio:g}"
            say(f"suggested: --patch-size {better.patch_size} {ratio}")

    def _size_px(self) -> float:
        if (self.structure_px is None) == (self.structure_um is None):
            raise ConfigError(
                "structure",
                "give its width: --structure-px or --structure-um; or --busi.",
            )
        if self.structure_px is not None:
            return self.structure_px
        if self.mpp is None or not self.mpp > 0:
            raise ConfigError(
                "mpp", "is needed with --structure-um. Give µm per pixel of the tile."
            )
        return self.structure_um / self.mpp  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Tell how well slides are classified from their features, and if PAMA helps.

    Classifiers learn from some patients and are judged on the others: PAMA's vectors of
    slides (linear) and PAMA fine-tuned, beside the mean of the tiles and attention MIL,
    which know no places. The labels are CSV with the columns slide, patient, label; a
    column split (train, test) takes the place of folds.

    $ histomae judge features/ --labels labels.csv --encoder runs/slides
    """

    features: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FEATURES [FEATURES ...]", help_behavior_hint=""),
    ] = ()
    """Feature files (see 'histomae embed'), or folders of them."""
    labels: File
    """The table of labels."""
    encoder: Annotated[Path | None, tyro.conf.arg(metavar="FILE|FOLDER")] = None
    """A checkpoint of PAMA, or a run folder; None: only what needs none."""
    fine_tune: bool = True
    """Judge PAMA fine-tuned too; it takes longest."""
    folds: int = 5
    """Parts of the patients, each judged by what learned from the others."""
    epochs: int = 30
    """How often what is trained step by step sees each slide."""
    seed: int = 0
    """Of folds, weights and batches."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where the scores are written as JSON too."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __call__(self) -> None:
        """Judge, and print a table."""
        from histomae.data.bags import check_alike
        from histomae.evaluate.slide_cohort import read_cohort, write_scores
        from histomae.evaluate.slides import (
            FINE_TUNED,
            classifiers,
            judge_slides,
            lines,
        )
        from histomae.infer.encoder import pick_device
        from histomae.learn.slide_classes import SlideFit
        from histomae.models.slide_checkpoint import (
            load_slide_checkpoint,
            slide_encoder_from,
        )

        self._check()
        bags, labels = show(read_cohort(self.features, self.labels))
        pama, seen = None, []
        if self.encoder is not None:
            checkpoint = load_slide_checkpoint(checkpoint_of(self.encoder))
            check_alike(list(bags.values()), checkpoint.header.features)
            pama = slide_encoder_from(checkpoint).to(pick_device(self.device))
            slides = {bag.slide for bag in bags.values()}
            seen = sorted(one for one in slides if checkpoint.header.has_seen(one))
        settings = SlideFit(epochs=self.epochs, warmup_epochs=self.epochs / 10)
        compared = classifiers(pama, replace(settings, device=self.device))
        if not self.fine_tune:
            compared.pop(FINE_TUNED, None)
        scores = show(
            judge_slides(
                bags,
                labels,
                compared,
                folds=self.folds,
                seed=self.seed,
                pretrained_on=seen,
            )
        )
        say("\n".join(lines(scores)))
        if self.out is not None:
            told = {"encoder": self.encoder and str(self.encoder), "seed": self.seed}
            write_scores(self.out, scores, labels, **told, pretrained_on=seen)
            say(f"scores: {self.out}")

    def _check(self) -> None:
        for name, least in (("folds", 2), ("epochs", 1), ("seed", 0)):
            check_least(name, getattr(self, name), least)
        if not self.features:
            raise ConfigError(
                "features", "none is given. Name feature files or a folder of them."
            )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Examine encoders on labelled pictures as papers do, beside baselines.

    Protocols: linear, knn, finetune, few-label, transfer, leaderboard, sgd-probe,
    mask-ratio, crop-size; as MPCS does it: mpcs-breakhis, mpcs-bach, mpcs-bcc; and
    busi. In the same table stand the untrained encoder, ImageNet and
    colour. Finished trials are kept: after Ctrl-C the same command goes on. It writes
    report.html, evaluation.json and CSV tables.

    With --pretrain it is a sweep: an encoder is pretrained for each value of --vary,
    and all of them are examined.

    $ histomae evaluate linear --data BACH/ --encoder runs/first --out bach
    $ histomae evaluate transfer --data A --test-data B --encoder runs/first --out ab
    $ histomae evaluate mask-ratio --data BACH/ --pretrain slides/ --out ratios
    $ histomae evaluate busi --data BUSI/ --pretrain other/ --recipe ultrasound
      --vary patch_size=16,8 mask_ratio=0.5,0.6,0.75 --out sizes
    """

    protocol: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROTOCOL")]
    """How to examine."""
    data: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """The data set's folder or file, or a table: path,label,patient."""
    encoder: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="FILE|FOLDER|timm:NAME|ARCH=FILE ...")
    ] = ()
    """Checkpoints, run folders, timm:NAME, or ARCHITECTURE=FILE for a file of weights
    of a timm model."""
    pretrain: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="SLIDE|FOLDER|ADDRESS ...")
    ] = ()
    """Slides, or a folder of pictures, to pretrain encoders on, one for each value."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    """Of --pretrain: settings that all have in common."""
    vary: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=VALUES] ...")] = ()
    """Settings of the pretraining that encoders differ in. Of --pretrain with their
    values (one value: the same for all); of --encoder by name."""
    out: Folder
    """The folder for trials, tables and report; one that is there is gone on with."""
    test_data: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Of transfer: the data set to test on."""
    test_task: str | None = None
    """Of the data set to test on; None: its first."""
    kind: str = "auto"
    """Of data set, as 'histomae datasets' names it; auto: by its folder."""
    task: str | None = None
    """Of the data set; None: its first, the finest."""
    imagenet: Annotated[str, tyro.conf.arg(metavar="auto|none|timm:NAME|ARCH=FILE")] = (
        "auto"
    )
    """The weights that stand for ImageNet; auto: timm's ViT-S/16."""
    untrained: bool = True
    """Compare with the untrained encoder."""
    colour: bool = True
    """Compare with histograms of colours."""
    tiles: Literal["whole", "fit", "patches", "mpp"] | None = None
    """The whole picture as one tile (squeezed, or fit with its shape kept), patches of
    patch_px, or tiles at the encoder's µm per pixel; None: as the protocol has it, or
    mpp where pictures and encoder know theirs, else whole."""
    patch_px: int = 224
    """Side of a patch, pixels of the picture."""
    overlap: float = 0.0
    """Share that a patch or tile has in common with the next."""
    votes: bool = False
    """The tiles of a picture vote; else their features are averaged."""
    mpp: float | None = None
    """µm per pixel of tiles; None: the encoder's own."""
    pooling: Literal["class_token", "mean", "own"] | None = None
    """How a tile becomes a vector; None: as the encoder has it."""
    split: Annotated[
        str, tyro.conf.arg(metavar="auto|official|patients|hold-out|FILE")
    ] = "auto"
    """auto: the official split where there is one, else folds by patient."""
    folds: int = 5
    """Parts of the patients, each tested on once."""
    val_share: float = 0.2
    """Share of the training side by which C, epoch and temperature are chosen."""
    seed: int = 0
    """Of splits, weights and batches."""
    teacher: Literal["linear", "knn", "sgd-probe", "leaderboard", "finetune"] = "linear"
    """How few-label, transfer and the sweeps teach."""
    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Of few-label: shares of the labels."""
    draws: int = 3
    """Of few-label: draws of each share below 0.4."""
    runs: int = 5
    """Of leaderboard: trainings with other seeds."""
    epochs: int = 50
    """Of fine-tuning: passes over the tiles; validation chooses one."""
    batch_size: int = 32
    """Of fine-tuning."""
    micro_batch: int | None = None
    """Of fine-tuning: tiles at once; None: the batch."""
    base_lr: float = 1e-3
    """Of fine-tuning: learning rate per 256 tiles."""
    layer_decay: float = 0.65
    """Of fine-tuning: how much slower each layer below learns."""
    drop_path: float = 0.1
    """Of fine-tuning: how often the last block is left out."""
    mixup: float = 0.8
    """Of fine-tuning: how strongly tiles are mixed; 0: not at all."""
    smoothing: float = 0.1
    """Of fine-tuning: share of a label spread over all classes."""
    flips: Literal["all", "horizontal"] = "all"
    """Of fine-tuning; horizontal: ultrasound."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and say which."""
    compare_pixels: bool = True
    """Look for leaks among the pixels too."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "f32", "bf16"] = "f32"
    """Of frozen encoders."""

    def __call__(self) -> None:
        """Examine, print the table, and write the report."""
        from histomae.evaluate.examine import check_folder, evaluate
        from histomae.evaluate.protocols import protocol_of, transfer
        from histomae.evaluate.report import write_report

        protocol, settings = protocol_of(self.protocol), self._settings()
        data = self._open(self.data, self.task or protocol.task)
        if protocol.name == "transfer":
            if self.test_data is None:
                raise ConfigError("test_data", "is needed: the data set to test on.")
            data, protocol = transfer(data, self._open(self.test_data, self.test_task))
        elif self.test_data is not None:
            raise ConfigError(
                "test_data", f"{protocol.name} takes none. Choose transfer."
            )
        if self.pretrain:
            check_folder(protocol, data, self.out, settings)
        try:
            candidates, notes = self._candidates(protocol)
            work = evaluate(
                protocol,
                data,
                candidates,
                self.out,
                settings,
                notes=notes,
                pixels=self.compare_pixels,
            )
            evaluation = show(work)
        except KeyboardInterrupt:
            mention(f"What is finished is in {self.out}: the same command goes on.")
            raise
        for line in protocol.lines(evaluation):
            say(line)
        for note in (*(evaluation.leaks or ()), *evaluation.notes):
            say(f"- {note}")
        say(f"report: {write_report(evaluation, self.out)}")

    def _open(self, path: Path, task: str | None) -> LabelledSet:
        from histomae.data.datasets import only_readable, open_dataset

        data = open_dataset(path, self.kind, task=task)
        if not self.skip_unreadable:
            return data
        return show(only_readable(data, skip_unreadable=True))

    def _pretrained(self, values: dict[str, tuple[Any, ...]]) -> tuple[str, ...]:
        """Pretrain an encoder for each value; return their run folders."""
        from histomae.evaluate.sweeps import pretrain_each

        method = next(iter(values.get("method", ())), "mae")
        base = PretrainConfig(**METHOD_DEFAULTS.get(method, {}))
        if self.recipe is not None:
            base = load_recipe(self.recipe)
        base = base.changed({"slides": self.pretrain})
        return tuple(map(str, show(pretrain_each(base, values, self.out))))

    def _candidates(
        self, protocol: HowToExamine
    ) -> tuple[tuple[Candidate, ...], list[str]]:
        """Load what is compared; return it, and what was left out."""
        from histomae.evaluate.candidates import (
            IMAGENET_SOURCE,
            Compared,
            open_candidates,
        )
        from histomae.evaluate.sweeps import read_values, varied

        if self.recipe is not None and not self.pretrain:
            raise ConfigError(
                "recipe", "is of --pretrain. Name slides there, or leave it out."
            )
        values = {**protocol.vary, **read_values(self.vary)}
        swept, others = (self.encoder, ()) if values else ((), self.encoder)
        if self.pretrain:
            swept, others = self._pretrained(values), self.encoder
        known = {"auto": IMAGENET_SOURCE, "none": None}
        asked = ("untrained", "colour", "pooling", "mpp", "device", "precision", "seed")
        compared = Compared(
            encoders=others,
            swept=swept,
            vary=varied(values),
            imagenet=known.get(self.imagenet, self.imagenet),
            **{name: getattr(self, name) for name in asked},
        )
        found = show(open_candidates(compared))
        left_out = (
            ["The ImageNet baseline could not be loaded and is left out."]
            if compared.imagenet and not any(one.kind == "ImageNet" for one in found)
            else []
        )
        return found, left_out

    def _settings(self) -> Settings:
        from histomae.data.tiling import Tiling
        from histomae.evaluate.protocols import Settings
        from histomae.learn.finetune import FineTuning

        asked = (
            *("epochs", "batch_size", "micro_batch", "base_lr", "layer_decay"),
            *("drop_path", "mixup", "smoothing", "flips", "device"),
        )
        fine_tuning = FineTuning(
            warmup_epochs=self.epochs / 10,
            **{name: getattr(self, name) for name in asked},
        )
        tiling = self.tiles and Tiling(
            how=self.tiles,
            patch_px=self.patch_px,
            overlap=self.overlap,
            mpp=self.mpp,
            votes=self.votes,
        )
        same = ("split", "folds", "val_share", "seed", "teacher", "fractions")
        return Settings(
            tiling=tiling or None,
            draws=self.draws,
            runs=self.runs,
            fine_tuning=fine_tuning,
            **{name: getattr(self, name) for name in same},
        )


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """List the data sets that are known: what they need on disk, how to cite them.

    'histomae datasets check' verifies a download.

    $ histomae datasets
    """

    def __call__(self) -> None:
        """Print the list."""
        from histomae.data.datasets import KINDS

        for kind in KINDS:
            say(f"{kind.name}: {kind.title}")
            told = {
                "holds": f"{kind.total:,} pictures" if kind.total else "",
                "disk": f"about {kind.disk_gb:g} GB" if kind.disk_gb else "",
                "tasks": ", ".join(kind.tasks),
                "name": kind.layout,
                "from": kind.address,
                "cite": kind.citation,
            }
            for word, text in told.items():
                if text:
                    say(f"  {word:<6}{text}")
            for flaw in kind.flaws:
                say(f"  note  {flaw}")
            say("")


@dataclass(frozen=True, kw_only=True)
class CheckDataset:
    """Verify a download: official counts; missing, extra and unreadable files.

    Every picture is read. The exit code is 1 where something is wrong.

    $ histomae datasets check BreaKHis_v1
    """

    path: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FOLDER|FILE", help_behavior_hint=""),
    ]
    """The folder of the data set, or a table."""
    kind: str = "auto"
    """Which data set it is, as 'histomae datasets' names it; auto: it is found out."""

    def __call__(self) -> None:
        """Print what is there, and what is wrong."""
        from histomae.data.datasets import check_dataset

        check = show(check_dataset(self.path, self.kind))
        say(f"{check.kind.name}: {check.kind.title}")
        for note in check.data.notes:
            say(f"note: {note}")
        for part, number in sorted(check.found.items()):
            say(f"{number:>8,}  {part}")
        say(f"{len(check.data):>8,}  pictures")
        for line in check.wrong:
            say(line)
        if check.wrong:
            complain(f"{self.path}: {counted(len(check.wrong), 'thing')} wrong.")
            sys.exit(1)
        say("nothing is wrong")


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what files are: slides, checkpoints, probes, features and run folders.

    $ histomae info a.svs runs/first a.probe
    """

    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint=""),
    ] = ()
    """Files or folders."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""

    def __call__(self) -> None:
        """Describe every path; exit with 1 at the end if one could not be read."""
        from histomae.evaluate.describe import contents, describe
        from histomae.slides.remote import local_copies

        if not self.paths:
            raise ConfigError("paths", "none is given. Name a slide or a checkpoint.")

        def tell(path: Path) -> None:
            (here,) = show(local_copies([path]))
            say("\n".join(describe(here, slide_mpp=self.slide_mpp)))

        each_of(
            [one for path in self.paths for one in contents(path)],
            tell,
            of_one=(HistomaeError,),
        )


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs of a folder: how each stands, how far it came, how good it is.

    The one last active comes first. 'histomae runs compare' puts some side by side.

    $ histomae runs
    $ histomae runs /shared/runs
    """

    folder: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[FOLDER]", help_behavior_hint=""),
    ] = field(default_factory=runs_folder)
    """Where the runs are; by default where new ones are put."""

    def __call__(self) -> None:
        """Print the list."""
        from histomae.evaluate.runs import overview

        say("\n".join(overview(self.folder)))


@dataclass(frozen=True, kw_only=True)
class CompareRuns:
    """Compare runs: settings that differ, figures, and all curves in one picture.

    $ histomae runs compare runs/first runs/second --out compared.png
    """

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN RUN [RUN ...]", help_behavior_hint=""),
    ] = ()
    """Run folders; or names of runs where new ones are put."""
    out: File = Path("compared.png")
    """Where the picture of the curves is written."""

    def __call__(self) -> None:
        """Print both tables and draw the picture."""
        from histomae.evaluate.runs import RunReport, compare, draw
        from histomae.learn.runs import RunFolder

        known = runs_folder()
        reports = [
            RunReport.of(RunFolder(path if path.exists() else known / path))
            for path in self.runs
        ]
        say("\n".join(compare(reports)))
        draw(self.out, reports)
        say(f"\ncurves: {self.out}")


#: Where a tree is wanted, who draws it, and which settings it takes.
_Tree = tuple[Path | None, Callable[..., Generator[Event, None, Path]], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Make the synthetic sample slide, with its regions and nuclei.

    Or pictures in the official layout of a data set, drawn by the same hand: with
    --breakhis cases of eight subtypes, each place at four magnifications; with --bracs
    regions of seven classes; with --bach photos of four.

    $ histomae sample --folder sample
    $ histomae sample --breakhis sample
    """

    folder: Folder = Path()
    """Where to put it; by default here."""
    seed: int = 0
    """Another seed, another slide."""
    mpp: float = 0.5
    """µm per pixel: 0.5, 0.25 or 1."""
    breakhis: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to put the tree BreaKHis_v1, in the place of a slide."""
    bracs: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to put the tree BRACS_RoI, in the place of a slide."""
    bach: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to put the tree ICIAR2018_BACH_Challenge, in the place of a slide."""
    cases: int | None = None
    """Of a tree: patients, slides or photos; None: some three of each class."""
    sets: int | None = None
    """Of --breakhis and --bracs: pictures of each case (at each magnification); None:
    2."""
    width_px: int | None = None
    """Of a tree: width of a picture; None: as in the data set."""

    def __call__(self) -> None:
        """Make it."""
        from histomae.data.sample_breakhis import sample_breakhis
        from histomae.data.sample_sets import sample_bach, sample_bracs

        sized = ("cases", "sets", "width_px")
        trees: tuple[_Tree, ...] = (
            (self.breakhis, sample_breakhis, sized),
            (self.bracs, sample_bracs, sized),
            (self.bach, sample_bach, ("cases", "width_px")),
        )
        for folder, draw, names in trees:
            if folder is not None:
                how = {name: getattr(self, name) for name in names}
                said = {name: value for name, value in how.items() if value is not None}
                say(show(draw(folder, seed=self.seed, **said)))
        if not any(folder for folder, _, _ in trees):
            self._slide()

    def _slide(self) -> None:
        from histomae.slides.sample import sample_slide

        sample = sample_slide(self.seed, mpp=self.mpp, folder=self.folder)
        for path in asdict(sample).values():
            say(path)


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
            say(f"{mark} {finding.what:<{width}}  {finding.state}")
            if not finding.healthy:
                say(f"     {finding.cure}")
        if not all(finding.healthy for finding in findings):
            sys.exit(1)


COMMANDS: dict[str, type[Callable[[], None]]] = {
    "pretrain": Pretrain,
    "probe": Probe,
    "predict": Predict,
    "segment": Segment,
    "segment teach": TeachSegmenter,
    "reconstruct": Reconstruct,
    "attend": Attend,
    "embed": Embed,
    "mask-check": MaskCheck,
    "judge": Judge,
    "evaluate": Evaluate,
    "datasets": Datasets,
    "datasets check": CheckDataset,
    "info": Info,
    "runs": Runs,
    "runs compare": CompareRuns,
    "sample": Sample,
    "doctor": Doctor,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; the entry point of ``histomae``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold anything
            stream.reconfigure(errors="backslashreplace")
    try:
        _command(sys.argv[1:] if arguments is None else list(arguments))()
    except HistomaeError as error:
        complain(error)
        sys.exit(1)
    except BrokenPipeError:  # whoever read what this prints has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        complain(
            f"{error.filename or 'a file'}: {error.strerror or error}. Check that the "
            "path is right, that you may use it, and that the disk has room."
        )
        sys.exit(1)
    except (ImportError, RuntimeError) as error:
        if not isinstance(error, ImportError) and "torchvision" not in str(error):
            raise
        complain(
            f"a library cannot be loaded ({str(error).splitlines()[0]}). Run "
            "'histomae doctor': it says how to cure it."
        )
        sys.exit(1)
    except KeyboardInterrupt:
        complain("broken off.")
        sys.exit(130)


def _command(arguments: list[str]) -> Callable[[], None]:
    """Return the command that the arguments name, with its settings."""
    if arguments[:1] == ["--version"]:
        return lambda: say(f"histomae {__version__}")
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        read = partial(tyro.cli, _any_command(), prog="histomae", description=ABOUT)
    elif name == "pretrain":
        read = partial(tyro.cli, Pretrain, default=_pretrain_defaults(arguments[1:]))
    else:
        read = partial(tyro.cli, COMMANDS[name])
    if name in COMMANDS:
        read = partial(read, prog=f"histomae {name}")
        arguments = arguments[words:]
    command: Callable[[], None] = read(
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
    )
    return command


def _pretrain_defaults(arguments: list[str]) -> Pretrain:
    """Return the settings that options outrank: of a recipe, or of a run to go on."""
    from histomae.learn.runs import RunFolder

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?")
    parser.add_argument("--run", nargs="?")
    parser.add_argument("--method", nargs="?")
    known, _ = parser.parse_known_args(arguments)
    if known.recipe is not None:
        return Pretrain(**vars(load_recipe(known.recipe)))
    if known.run is not None and RunFolder(known.run).config_file.exists():
        begun = RunFolder(known.run).config()
        return Pretrain(**{**vars(begun), "slides": ()})
    return Pretrain(**METHOD_DEFAULTS.get(known.method, {}))


def _any_command() -> Any:
    """Return the union of the commands, for an overview or a complaint."""
    commands = tuple(
        Annotated[
            command,
            tyro.conf.subcommand(
                name,
                prefix_name=False,
                description=(command.__doc__ or "").splitlines()[0],
            ),
        ]
        for name, command in COMMANDS.items()
    )
    return Union[commands]  # noqa: UP007  (made at run time)
