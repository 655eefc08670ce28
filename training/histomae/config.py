"""Settings of a pretraining: one flat frozen dataclass, to and from TOML.

The command line, the dock's form and the run folder are all made from
:class:`PretrainConfig`, so that a run from any of them is the same run. A recipe is a
TOML file that lists only what differs from the defaults.
"""

from __future__ import annotations

import hashlib
import math
import os
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from histomae.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

METHODS = ("mae", "sd-mae", "mpcs", "pama")
#: What a method changes of the defaults, unless it is said.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "mae": {},
    "sd-mae": {"mask_ratio": 0.6},
    "mpcs": {},
    # Slides are fewer than crops, and each is a thousand tokens.
    "pama": {
        "epochs": 100,
        "warmup_epochs": 10.0,
        "batch_size": 16,
        "base_lr": 1e-2,
        "grad_clip": 1.0,
        "preview_every": 50,
        "save_every": 50,
    },
}
#: Those that take files of tile features in the place of slides.
ON_FEATURES = ("pama",)
TEACHERS = ("ema", "reference", "none")
STRATEGIES = ("ordered", "random", "fixed")
FLIPS = ("all", "horizontal")
POOLINGS = ("class_token", "mean")
OPTIMIZERS = ("adamw", "lars")
CONVOLUTIONS = ("resnet50", "resnet50_dilated", "efficientnet_b2")
ENCODERS = ("vit_small", "vit_tiny", "vit_micro", *CONVOLUTIONS)
SLIDE_ENCODERS = ("pama_small", "pama_base")
#: Methods that hide patches, which convolutions do not have.
MASKING = ("mae", "sd-mae")
CHANNELS = (1, 3)
PRECISIONS = ("auto", "f32", "bf16")
SAMPLERS = ("random", "region-dense")
#: Smaller tiles leave convolutions a map of a single place.
LEAST_CNN_PX = 64
#: Below this share of a slide's own pixel size a read would invent detail.
FINEST_MPP_RATIO = 0.9
#: What to ask for, by annotation.
KINDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[str, ...]": "a list of paths",
    "tuple[float, ...]": "a list of numbers",
    "tuple[int, ...]": "a list of whole numbers",
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything a pretraining needs to know; ``None`` means: decided at the start.

    Whatever is decided at the start is written back, so that the ``config.toml`` of a
    run folder has no ``None`` left but for ``slide_mpp``, for ``mpp`` of pictures, and
    what its method does not ask for.
    """

    slides: tuple[str, ...] = ()
    """Slide files, folders of them, or addresses such as s3://bucket/a.svs; or one
    folder of pictures; for pama files of features."""
    method: str = "mae"
    """Self-supervised method: mae, sd-mae, mpcs or pama."""
    encoder: str = "vit_small"
    """ViT by width and blocks: vit_small 384/12, vit_tiny 192/12, vit_micro 192/4; with
    mpcs also resnet50, resnet50_dilated (a finer map) and efficientnet_b2."""
    init_from: str = "random"
    """Weights to begin with: random, our checkpoint, timm:NAME or a weights file."""

    tile_px: int = 224
    """Side of a crop, pixels at mpp."""
    mpp: float | None = None
    """Micrometres per pixel; None: the coarser of 0.5 and the coarsest slide's own."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, for slides whose file names none."""
    allow_upsampling: bool = False
    """Permit an mpp finer than the slides have."""
    crops_per_slide: int = 200
    """Crops drawn at random from each slide's tissue."""
    sampler: str = "random"
    """random: crops with little overlap, anywhere in the tissue; region-dense: many
    from each of fewer regions, overlapping, which are faster to read."""
    region_px: int = 1024
    """Side of a region of the region-dense sampler, pixels at mpp."""
    crops_per_region: int = 16
    """Crops taken from each region of the region-dense sampler."""
    min_tissue: float = 0.5
    """A crop with a smaller share of tissue is not taken."""
    tissue: str = ""
    """What counts as tissue, such as 'closing_um=0, least_texture=0.03'; empty: what
    was set for each slide in the dock, or the defaults."""
    max_iou: float = 0.25
    """Two crops of the random sampler overlap by no more (intersection over union)."""
    held_out: float = 0.1
    """Share of crops kept to judge the training; they overlap no training crop."""
    crop_scale_min: float = 0.5
    """Random resized crop: the least area taken (0.2 would destroy magnification)."""
    flips: str = "all"
    """How views are turned: all, flips and quarter turns; or horizontal, left for right
    alone, for ultrasound, where shadows fall down. mae and sd-mae."""
    scan_sector: bool = False
    """Pictures of ultrasound: crop them to what was scanned, and make them grey."""
    in_chans: int = 3
    """Channels of the encoder's pictures: 3, or 1 for grey ones. Weights to begin with
    that were trained in colour are summed up to the same answers."""
    gamma: float = 0.0
    """Greys are raised to a power from 1 / (1 + gamma) to 1 + gamma, drawn for each
    view; 0: left as they are. mae and sd-mae; 0.2 is mild."""

    patch_size: int = 16
    """Side of a ViT patch, pixels; it divides tile_px."""
    mask_ratio: float = 0.75
    """Share of the patches hidden from the encoder; 0.6 is usual with sd-mae."""
    norm_pix: bool = True
    """Predict pixels normalised within each patch."""
    decoder_dim: int = 192
    """Width of the decoder."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 3
    """Attention heads of the decoder."""
    decoded_share: float = 1.0
    """Share of the hidden patches painted in training; fewer is faster."""

    distill_teacher: str = "ema"
    """SD-MAE's teacher: ema, a moving average; reference, as published; or none, the
    decoupled form without distillation."""
    distill_weight: float = 0.2
    """SD-MAE: share of the distillation in the loss (λ)."""
    visible_weight: float = 0.0
    """SD-MAE without teacher: share of the visible patches' error in the loss (α)."""
    prototypes: int = 4096
    """SD-MAE: answers that its heads choose among."""

    view_factors: tuple[float, ...] = (1.0, 2.0, 4.0)
    """MPCS: pixel sizes at which each place is seen, times mpp."""
    pair_strategy: str = "ordered"
    """MPCS, which two of them are a pair: ordered, one and the next finer; random, any
    two; fixed, always the two finest."""
    temperature: float = 0.1
    """MPCS: likeness is divided by it (τ); smaller minds near misses more."""
    projector_dims: tuple[int, ...] = (1024, 128)
    """MPCS: widths of the layers between the encoder and the comparison."""
    pooling: str = "class_token"
    """MPCS compares the class_token, or the mean of the patch tokens."""
    exclude_same_patient: bool = False
    """MPCS: do not tell apart what is of one patient, or of one slide."""
    partial_sets: bool = False
    """MPCS on BreakHis: take sets that lack some magnifications too."""
    skip_unreadable: bool = False
    """On pictures: leave out those that cannot be read, and say which."""

    slide_encoder: str = "pama_small"
    """PAMA by width and blocks: pama_small 256/2, or pama_base 1024/4, as published."""
    feature_dim: int | None = None
    """PAMA: numbers of a tile; None: as in the feature files."""
    tiles_per_anchor: int = 144
    """PAMA: tiles for each anchor; 144 suits whole slides, 18 regions of hundreds."""
    most_tiles: int = 2048
    """PAMA: tiles of a slide in a step; of a larger one others in the next epoch."""
    anchor_dropout: float = 0.2
    """PAMA: share of the anchors that take no part in a step."""
    compat: bool = False
    """PAMA with the published equations, which mind how a slide is turned."""

    epochs: int = 400
    """Passes over the crops."""
    warmup_epochs: float = 40.0
    """Epochs of linear warm-up, before the half cosine."""
    batch_size: int = 256
    """Crops per optimizer step."""
    micro_batch: int | None = None
    """Crops per forward pass; gradients are summed over a batch. None: as many as take
    half a second at most, timed at the start."""
    base_lr: float = 1.5e-4
    """Learning rate per 256 crops of a batch."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    optimizer: str = "adamw"
    """adamw; or lars, for convolutions in large batches, with a base_lr such as 0.2."""
    weight_decay: float = 0.05
    """Decay of the weights, on matrices only."""
    grad_clip: float | None = None
    """Largest gradient norm; None: unclipped, as in the paper."""

    seed: int = 0
    """Of crops, augmentation, masks and initial weights."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: str = "auto"
    """f32, bf16, or auto: bf16 where that is faster, timed at the start."""
    compile: bool = False
    """Compile the model with torch.compile: worth it on some GPUs, not on a CPU."""
    threads: int | None = None
    """CPU threads for computing; None: all cores."""
    readers: int = 2
    """Threads that read slides beside the computing; 0: none, read when needed."""
    cache_gb: float = 2.0
    """Memory for decoded crops, GB: while they fit, each is decoded once."""
    preview_every: int = 200
    """Steps between pictures of input, masked and reconstruction."""
    save_every: int = 200
    """Steps between checkpoints; one is always written at the end."""
    keep_every: int = 0
    """Steps between checkpoints that are kept for good, without optimizer; 0: none."""

    def __post_init__(self) -> None:
        for field in fields(PretrainConfig):  # a subclass checks its own
            value = _typed(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        check_one_of("method", self.method, METHODS)
        check_one_of("encoder", self.encoder, ENCODERS)
        check_one_of("precision", self.precision, PRECISIONS)
        check_one_of("sampler", self.sampler, SAMPLERS)
        check_one_of("distill_teacher", self.distill_teacher, TEACHERS)
        check_one_of("pair_strategy", self.pair_strategy, STRATEGIES)
        check_one_of("flips", self.flips, FLIPS)
        check_one_of("pooling", self.pooling, POOLINGS)
        check_one_of("optimizer", self.optimizer, OPTIMIZERS)
        check_one_of("slide_encoder", self.slide_encoder, SLIDE_ENCODERS)
        for name in (
            *("tile_px", "patch_size", "crops_per_slide", "epochs", "batch_size"),
            *("decoder_dim", "decoder_depth", "decoder_heads"),
            *("preview_every", "save_every", "region_px", "crops_per_region"),
            *("prototypes", "tiles_per_anchor"),
        ):
            check_least(name, getattr(self, name), 1)
        check_least("most_tiles", self.most_tiles, 2)
        for name in ("micro_batch", "threads", "feature_dim"):
            if getattr(self, name) is not None:
                check_least(name, getattr(self, name), 1)
        for name in (
            *("min_tissue", "max_iou", "mask_ratio", "held_out"),
            *("distill_weight", "visible_weight"),
        ):
            check_within(name, getattr(self, name), 0.0, 1.0)
        if self.in_chans not in CHANNELS:
            raise ConfigError("in_chans", f"{self.in_chans} is neither 3 nor 1.")
        check_within("gamma", self.gamma, 0.0, 2.0)
        check_within("anchor_dropout", self.anchor_dropout, 0.0, 0.9)
        check_within("decoded_share", self.decoded_share, 0.01, 1.0)
        check_within("crop_scale_min", self.crop_scale_min, 0.05, 1.0)
        for name in ("mpp", "slide_mpp"):
            if getattr(self, name) is not None:
                check_within(name, getattr(self, name), 0.02, 100.0)
        for name in (
            *("base_lr", "min_lr", "weight_decay", "warmup_epochs", "seed"),
            *("readers", "cache_gb", "keep_every"),
        ):
            check_least(name, getattr(self, name), 0)
        if self.grad_clip is not None:
            check_within("grad_clip", self.grad_clip, 1e-6, 1e6)
        check_within("temperature", self.temperature, 1e-3, 1e3)
        for factor in self.view_factors:
            check_within("view_factors", factor, 1.0, 64.0)
        for width in self.projector_dims:
            check_least("projector_dims", width, 1)
        self._check_fit()

    def _check_fit(self) -> None:
        if self.encoder not in CONVOLUTIONS:
            self._check_patches()
        elif self.method in MASKING:
            raise ConfigError(
                "encoder",
                f"{self.encoder} has no patches that {self.method} could hide. Choose "
                "vit_small, or the method mpcs.",
            )
        elif self.tile_px < LEAST_CNN_PX:
            raise ConfigError(
                "tile_px",
                f"{self.tile_px} px are too few for {self.encoder}. Choose at least "
                f"{LEAST_CNN_PX}.",
            )
        self._check_training()

    def _check_patches(self) -> None:
        if self.tile_px % self.patch_size:
            raise ConfigError(
                "patch_size",
                f"{self.patch_size} px does not divide the tile of {self.tile_px} px. "
                "Choose a patch size such as 8, 16 or 32 that does.",
            )
        patches = (self.tile_px // self.patch_size) ** 2
        if not 0 < round(patches * self.mask_ratio) < patches:
            raise ConfigError(
                "mask_ratio",
                f"{self.mask_ratio:g} of {patches} patches leaves none hidden or none "
                "visible. Choose a ratio such as 0.75.",
            )

    def _check_training(self) -> None:
        if self.sampler == "region-dense" and self.region_px < self.tile_px:
            raise ConfigError(
                "region_px",
                f"{self.region_px} px holds no crop of {self.tile_px} px. Choose "
                f"{4 * self.tile_px}, say.",
            )
        if self.held_out > 0.5:
            raise ConfigError(
                "held_out",
                f"{self.held_out:g} keeps more crops out of training than in it. "
                "Choose 0.5 at most.",
            )
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 4:
            raise ConfigError(
                "decoder_dim",
                f"{self.decoder_dim} must be a multiple of 4 and of the "
                f"{self.decoder_heads} heads. Choose 192 with 3 heads, or 256 with 8.",
            )
        if not self.projector_dims:
            raise ConfigError("projector_dims", "is empty. Give 1024 and 128, say.")
        if len(set(self.view_factors)) < max(2, len(self.view_factors)):
            raise ConfigError(
                "view_factors",
                f"{_listed(self.view_factors)} makes no pair of two pixel sizes. "
                "Choose two or more that differ, such as 1, 2 and 4.",
            )
        if self.method == "mpcs" and self.sampler != "random":
            raise ConfigError(
                "sampler",
                f"{self.sampler} cuts crops of one pixel size, and mpcs sees each "
                "place at several. Choose random.",
            )
        if self.method == "mpcs" and self.batch_size < 2:
            raise ConfigError(
                "batch_size",
                "of one leaves mpcs nothing to compare with. Choose 128, say.",
            )
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                "warmup_epochs",
                f"{self.warmup_epochs:g} is longer than the training of {self.epochs} "
                "epochs. Choose a tenth of the epochs.",
            )

    def to_toml(self) -> str:
        """Return the settings as TOML; those that are None are left out."""
        known = {k: v for k, v in asdict(self).items() if v is not None}
        return tomli_w.dumps(known)

    @classmethod
    def from_toml(
        cls, text: str, *, base: PretrainConfig | None = None
    ) -> PretrainConfig:
        """Return ``base`` (or the defaults) changed by the settings in ``text``.

        Raises
        ------
        ConfigError
            If the text is no TOML, names an unknown setting, or a value is wrong.
        """
        try:
            changes = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                "recipe", f"not TOML ({error}). Mend the file."
            ) from error
        return (base or cls()).changed(changes)

    def changed(self, changes: dict[str, Any]) -> PretrainConfig:
        """Return these settings with ``changes``; unknown names are refused."""
        self.check_names(changes)
        return replace(self, **changes)

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Refuse names that are no settings.

        Raises
        ------
        ConfigError
            It lists the settings.
        """
        known = [field.name for field in fields(cls)]
        for name in names:
            if name not in known:
                raise ConfigError(
                    name, f"is no setting. The settings are: {', '.join(known)}."
                )

    @property
    def architecture(self) -> str:
        """Name after timm's pattern, such as ``vit_small_patch16_224``; or PAMA's."""
        if self.method == "pama":
            return self.slide_encoder
        if self.encoder in CONVOLUTIONS:
            return self.encoder
        return f"{self.encoder}_patch{self.patch_size}_{self.tile_px}"

    @property
    def short_hash(self) -> str:
        """Of all settings, hexadecimal."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()[:16]


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that ship with the package."""
    folder = files("histomae") / "recipes"
    return tuple(
        sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))
    )


def load_recipe(name_or_path: str | os.PathLike[str]) -> PretrainConfig:
    """Return the settings of a recipe that ships with the package, or of a TOML file.

    Raises
    ------
    ConfigError
        If there is no such recipe, or it cannot be understood.
    """
    if str(name_or_path) in recipe_names():
        shipped = files("histomae") / "recipes" / f"{name_or_path}.toml"
        return PretrainConfig.from_toml(shipped.read_text("utf-8"))
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            "recipe",
            f"{str(name_or_path)!r} is neither a file nor one of "
            f"{', '.join(recipe_names())}. Choose one of these, or name a TOML file.",
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "recipe", f"{path.name} cannot be read ({error}). Choose a TOML file."
        ) from error
    return PretrainConfig.from_toml(text)


def _typed(name: str, annotation: str, value: Any) -> Any:
    """Return a value in the type of its setting; refuse what plainly differs."""
    kind, _, optional = annotation.partition(" | ")
    if value is None and optional:
        return None
    if kind == "tuple[str, ...]" and _is_paths(value):
        return tuple(os.fspath(path) for path in value)
    if kind.startswith("tuple") and kind != "tuple[str, ...]":
        return _typed_numbers(name, kind, value)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = {"str": str, "int": int, "float": float, "bool": bool}.get(kind)
    fits = wanted is not None and isinstance(value, wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(name, f"{value!r} has the wrong type. Give {KINDS[kind]}.")
    return value


def _typed_numbers(name: str, kind: str, value: Any) -> tuple[Any, ...]:
    """Return a list of numbers, each in the type of its setting."""
    one = kind.removeprefix("tuple[").removesuffix(", ...]")
    try:
        if isinstance(value, list | tuple):
            return tuple(_typed(name, one, number) for number in value)
    except ConfigError:
        pass
    raise ConfigError(name, f"{value!r} has the wrong type. Give {KINDS[kind]}.")


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "nothing"


def _is_paths(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(path, str | Path) for path in value
    )


def check_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse a word that is none of those that are known.

    Raises
    ------
    ConfigError
        Naming them.
    """
    if value not in known:
        raise ConfigError(
            name, f"{value!r:.40} is unknown. Choose one of {', '.join(known)}."
        )


def check_least(name: str, value: float, least: float) -> None:
    """Refuse a number below the least that it may be, and infinity.

    Raises
    ------
    ConfigError
        Naming the least.
    """
    if not least <= value < math.inf:
        raise ConfigError(name, f"{value!r} is out of range. Choose at least {least}.")


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside a range; both ends belong to it.

    Raises
    ------
    ConfigError
        Naming the range.
    """
    if not low <= value <= high:
        raise ConfigError(
            name,
            f"{value!r} is out of range. Choose a number from {low:g} to {high:g}.",
        )
