"""Slides as PAMA sees them, from pixels to pictures of the *Whole slide* dock.

    python docs/whole_slide.py SLIDE [SLIDE ...] --out FOLDER

It pretrains a small encoder of tiles on the slides, embeds them, pretrains a small PAMA
on samples of their tiles, and looks at the first slide in the real window: a picture of
each map goes to FOLDER. What FOLDER holds of an earlier call is used again. The
documentation's picture is made of the synthetic sample slide (``make docs``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from windows import in_window

from histomae.config import METHOD_DEFAULTS, PretrainConfig, load_recipe
from histomae.events import Step, result_of
from histomae.infer.cohort import embed_cohort, plan_cohort
from histomae.infer.embed import SlideEmbedding
from histomae.infer.encoder import TileEncoder
from histomae.learn.pretrain import run_in
from histomae.learn.runs import RunFolder
from histomae.slides.slide import Slide
from napari_histomae import _whole_slide
from napari_histomae._layers import open_slide
from napari_histomae._session import Session
from napari_histomae.demo import PLUGIN, Steps, photograph, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari

#: Small tiles, so that a small slide has a thousand, and a small network.
TILES = {"tile_px": 112, "patch_size": 16, "crops_per_slide": 400}
MAPS = (
    _whole_slide.GATHERED,
    _whole_slide.ONE_ANCHOR,
    _whole_slide.ATTENTION,
    _whole_slide.ERROR,
    _whole_slide.AREAS,
)
#: Those in the documentation.
SHOWN = MAPS[-2:]


@dataclass(frozen=True)
class Walk:
    """From slides to pictures of them as a whole."""

    slides: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Slide files; the first is looked at."""
    out: Path = Path("whole-slide")
    """Folder for runs, features and pictures."""
    encoder_epochs: int = 40
    """Of the encoder of tiles."""
    epochs: int = 600
    """Of PAMA; each sees another sample of every slide's tiles."""
    tiles_per_anchor: int = 48
    """Tiles for each anchor."""
    most_tiles: int = 500
    """Tiles of a slide in a sample."""


def main() -> int:
    """Do it all; return the exit code."""
    return walk(tyro.cli(Walk))


def walk(how: Walk, *, themes: Sequence[str] = ()) -> int:
    """Pretrain, embed, pretrain PAMA, and take the pictures; return the exit code."""
    encoder = trained(
        RunFolder(how.out / "encoder"),
        load_recipe("quick").changed(
            {
                **TILES,
                "slides": tuple(map(str, how.slides)),
                "epochs": how.encoder_epochs,
            }
        ),
    )
    embedding = SlideEmbedding(TileEncoder.load(encoder))
    features = how.out / "features"
    plan = result_of(plan_cohort(how.slides, embedding, features))
    result_of(embed_cohort(plan, embedding))
    pama = trained(
        RunFolder(how.out / "pama"),
        PretrainConfig(
            **{
                **METHOD_DEFAULTS["pama"],
                "method": "pama",
                "slides": (str(features),),
                "epochs": how.epochs,
                "warmup_epochs": how.epochs / 20,
                "tiles_per_anchor": how.tiles_per_anchor,
                "most_tiles": how.most_tiles,
                "base_lr": 2e-2,
                "preview_every": 10 * how.epochs,
                "save_every": 10 * how.epochs,
            }
        ),
    )
    return pictures(how, pama, features / f"{how.slides[0].stem}.h5", themes)


def trained(run: RunFolder, config: PretrainConfig) -> Path:
    """Return the checkpoint of a run, which is done now if it was not."""
    if not run.last.exists():
        run.create(config)
        for event in run_in(run):
            if isinstance(event, Step) and event.step % 20 == 0:
                say(
                    f"{run.path.name}: step {event.step} of {event.total_steps}, loss "
                    f"{event.loss:.3f}"
                )
    return run.last


def pictures(how: Walk, pama: Path, features: Path, themes: Sequence[str]) -> int:
    """Open the window, press the dock's buttons, and write what is seen."""

    def steps(viewer: napari.Viewer) -> Steps:
        open_slide(viewer, Slide.open(how.slides[0]))
        session = Session.of(viewer)
        session.use_slide_model(pama)
        _, dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Whole slide")
        yield None
        viewer.reset_view()
        dock.use_features(features)
        dock.run_button.click()
        yield lambda: not dock.running
        say(dock.state.text)
        oddest = dock.view.cells[int(np.argmax(dock.view.error))]
        dock.look_at(tuple(int(place) for place in oddest))
        for kind in SHOWN if themes else MAPS:
            dock.choose_map(kind)
            dock.arrows_box.setChecked(kind == _whole_slide.AREAS)
            name = kind.removeprefix("slide ").replace(" ", "-")
            yield from photograph(viewer, how.out, f"whole-slide-{name}", themes)

    return in_window("Whole slide", steps)


if __name__ == "__main__":
    sys.exit(main())
