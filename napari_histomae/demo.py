"""The main job, once through, in the real window: ``python -m napari_histomae.demo``.

It opens a slide and presses the docks' own buttons: pretrain, teach, review. What comes
out is written to a folder. On the sample slide it ends with the question that matters:
did pretraining help on a slide with another seed?
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari
import numpy as np
import tyro
from napari.settings import get_settings
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication
from tqdm import tqdm

from histomae.errors import HistomaeError, NotEnoughDataError, RunError
from histomae.events import HeldOut, Note, Step
from histomae.files import write_beside

if TYPE_CHECKING:
    from histomae.evaluate.compare import TransferScore
    from histomae.evaluate.heldout import Judgement
    from histomae.events import Event
    from histomae.learn.runs import RunFolder
    from histomae.slides.sample import SampleSlide
    from histomae.slides.slide import Slide

#: What a step waits for: a condition, or None for a moment of the window's.
Wait = Callable[[], bool] | None
Steps = Generator[Wait, None, None]

PLUGIN = "napari-histomae"
#: The three that colour alone cannot tell apart.
ARRANGED = ("Duct", "In situ", "Invasive")
#: Of the sample's regions of each class, so many teach; the rest is for looking.
TAUGHT_PER_CLASS = 4
#: How often the script looks whether it can go on, ms.
LOOK_MS = 100
#: Looks that a window needs to draw what is new.
MOMENTS = 10
WINDOW_PX = (1280, 800)


@dataclass(frozen=True)
class Demo:
    """Run the main job on a slide and show it in napari."""

    slide: Path | None = None
    """A slide of yours; without one the synthetic sample slide is made."""
    regions: Path | None = None
    """Its regions, GeoJSON; without them no class is shown on a slide of yours."""
    out: Path = Path("demo-output")
    """Folder for what comes out."""
    recipe: str = "quick"
    """Settings of the pretraining."""
    slide_mpp: float | None = None
    """Pixel size of level 0, µm, if your slide's file names none."""
    close: bool = False
    """End when done, instead of leaving the window open."""


class Script:
    """Steps that wait for the window without stopping it.

    ``steps`` yields a condition to wait for, or None to give the window a moment. When
    the steps end, or fail, ``exit_code`` is set and ``on_end`` is called.
    """

    def __init__(self, steps: Iterator[Wait], on_end: Callable[[], None]) -> None:
        self.exit_code: int | None = None
        self._steps = steps
        self._on_end = on_end
        self._ready: Wait = None
        self._timer = QTimer()
        self._timer.timeout.connect(self._look)
        self._timer.start(LOOK_MS)

    def _look(self) -> None:
        if self._ready is not None and not self._ready():
            return
        try:
            self._ready = next(self._steps)
        except StopIteration:
            self._end(0)
        except HistomaeError as error:
            say(f"the demo cannot go on: {error}")
            self._end(1)

    def _end(self, code: int) -> None:
        self._timer.stop()
        self.exit_code = code
        self._on_end()


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201  (it is a script)


def main() -> None:
    """Run the demo; the exit code is 1 if a step failed."""
    sys.exit(play(tyro.cli(Demo, prog="napari_histomae.demo")))


def play(demo: Demo, *, themes: Sequence[str] = ()) -> int:
    """Play the demo in a new window; return the exit code.

    ``themes`` are those of napari's in which every picture is taken, its name ending in
    the theme's; without any, the one that is set.
    """
    demo.out.mkdir(parents=True, exist_ok=True)
    # Runs and drawn regions of the demo stay in its own folder.
    os.environ.setdefault("HISTOMAE_HOME", str((demo.out / "home").absolute()))
    sample = None
    if demo.slide is None:
        from histomae.slides.sample import sample_slide

        say("making the sample slide (synthetic: made by a program, nobody's tissue)")
        sample = sample_slide(0)
    viewer = napari.Viewer(title="napari-histomae demo")
    viewer.window.resize(*WINDOW_PX)
    window = Play(demo, viewer, sample, themes)

    def ended() -> None:
        say(f"results are in {demo.out}/")
        if demo.close:
            viewer.close()
            QApplication.instance().quit()
        else:
            say("the window stays open; close it to end")

    script = Script(window.steps(), ended)
    napari.run()
    return script.exit_code or 0


class Play:
    """The steps of the demo, on one viewer."""

    def __init__(
        self,
        demo: Demo,
        viewer: napari.Viewer,
        sample: SampleSlide | None,
        themes: Sequence[str],
    ) -> None:
        self._demo = demo
        self._themes = themes
        self._viewer = viewer
        self._sample = sample
        self._begin = time.monotonic()

    def steps(self) -> Steps:
        """Yield what to wait for, from opening the slide to the last picture."""
        slide = self._open_slide()
        yield None
        run = yield from self._pretrain()
        yield from self._judge(run)
        regions = self._regions_file()
        if regions is not None:
            yield from self._teach(regions)
        yield from self._review(slide, classes=regions is not None)
        if self._sample is not None:
            yield from self._compare(run)
        say(f"done after {time.monotonic() - self._begin:.0f} s")

    # ---- what is pressed

    def _open_slide(self) -> Slide:
        from histomae.slides.slide import Slide
        from napari_histomae._layers import open_slide
        from napari_histomae._session import Session

        path = self._sample.slide_path if self._sample else self._demo.slide
        assert path is not None
        slide = Slide.open(path, fallback_mpp=self._demo.slide_mpp)
        mpp_x, mpp_y = slide.mpp  # says what is missing before anything is shown
        open_slide(self._viewer, slide)
        self._session = Session.of(self._viewer)
        say(f"opened {slide.path.name}: {mpp_x:.3g} × {mpp_y:.3g} µm/px")
        return slide

    def _pretrain(self) -> Generator[Wait, None, RunFolder]:
        from histomae.learn.runs import RunFolder

        train = self._dock("Train")
        train.use_recipe(self._demo.recipe)
        yield train.start_button.isEnabled
        run = RunFolder(train.run_path)
        say(f"pretraining into {run.path}")
        train.start_button.click()
        with Told(run) as told:
            yield lambda: told.tell() and not train.running
        if not run.last.exists():
            raise RunError(train.state.text)
        self._session.use_model(run.last)
        yield from self._picture("train")
        draw_loss(run, self._demo.out / "loss.png")
        return run

    def _judge(self, run: RunFolder) -> Steps:
        from histomae.evaluate.heldout import held_out_crops, judge

        def work() -> Generator[Event, None, Judgement]:
            return (yield from judge(run.last, held_out_crops(run)))

        judgement = yield from self._in_thread(work, "Judging on held-out crops")
        self._report("heldout.txt", judgement.lines())

    def _teach(self, regions: Path) -> Steps:
        teach = self._dock("Teach")
        yield None
        if not teach.book.regions_per_class():
            teach.load_regions_from(regions)
        yield lambda: teach.train.isEnabled() or teach.state.kind == "failed"
        teach.train.click()
        yield lambda: not teach.running
        yield None
        probe = self._session.probe
        if probe is None:
            raise NotEnoughDataError(teach.state.text)
        probe.save(self._demo.out / "classifier.safetensors")
        write_text(self._demo.out / "scores.json", json.dumps(probe.scores, indent=1))
        say(teach.score.text())
        yield from self._picture("teach")

    def _review(self, slide: Slide, *, classes: bool) -> Steps:
        from histomae.slides.grid import TileGrid

        review = self._dock("Review")
        yield lambda: review.run_button.isEnabled() and review.model.spec is not None
        review.run()
        yield lambda: not review.running
        maps = [review.maps.map_box.itemText(0)] if classes else []
        maps += ["likeness", "attention", "error"]
        for name in reversed(maps):  # the first one is shown last, and stays
            review.maps.map_box.setCurrentIndex(review.maps.map_box.findText(name))
            review.maps.map_box.activated.emit(review.maps.map_box.currentIndex())
            yield lambda: not review.running
        if classes:
            review.export(self._demo.out / f"{slide.name}.geojson")
            review.export(self._demo.out / f"{slide.name}.csv")
        yield from self._picture("review")
        if classes:
            review.step(1)
        else:
            cells = np.argwhere(review.findings.likeness.values[..., 3])
            row, col = cells[len(cells) // 2]
            grid = TileGrid.over(slide, review.model.spec)
            review.looker.go_to((int(row), int(col)), grid)
            say("no regions were given, so no class is shown; draw some in Teach")
        yield lambda: not review.looker.looking
        yield from self._picture("tile")

    def _compare(self, run: RunFolder) -> Steps:
        """Ask what pretraining brought, on a slide with another seed."""
        from histomae.evaluate import transfer
        from histomae.exchange.qupath import read_annotations
        from histomae.infer.encoder import TileEncoder
        from histomae.learn.teach import LabelledSlide
        from histomae.slides.sample import sample_slide
        from histomae.slides.slide import Slide

        def labelled(sample: SampleSlide) -> LabelledSlide:
            slide = Slide.open(sample.slide_path)
            return LabelledSlide(slide, read_annotations(sample.regions_path))

        def work() -> Generator[Event, None, dict[str, TransferScore]]:
            yield Note("making a sample slide with another seed")
            taught, unseen = labelled(sample_slide(0)), labelled(sample_slide(1))
            return (
                yield from transfer.what_pretraining_brought(
                    [taught], [unseen], TileEncoder.load(run.last), ARRANGED
                )
            )

        say(f"{', '.join(ARRANGED)} on a slide with another seed:")
        scores = yield from self._in_thread(work, "Comparing on another slide")
        self._report("other-slide.txt", transfer.lines(scores))

    # ---- how

    def _regions_file(self) -> Path | None:
        """Return the regions to teach with: the user's, or some of the sample's."""
        if self._sample is None:
            return self._demo.regions
        from histomae.exchange.qupath import read_annotations, write_annotations

        known = read_annotations(self._sample.regions_path)
        counts: Counter[str] = Counter()
        taught = []
        for region in known:
            counts[region.class_name] += 1
            if counts[region.class_name] <= TAUGHT_PER_CLASS:
                taught.append(region)
        path = self._demo.out / "taught-regions.geojson"
        write_annotations(path, taught)
        return path

    def _dock(self, name: str) -> Any:
        dock, widget = self._viewer.window.add_plugin_dock_widget(
            PLUGIN, name, tabify=True
        )
        dock.raise_()
        self._viewer.reset_view()  # the dock took some of the canvas
        return widget

    def _in_thread(
        self, make: Callable[[], Generator[Event, None, Any]], name: str
    ) -> Generator[Wait, None, Any]:
        """Run long work beside the window; return its result."""
        from napari_histomae._jobs import start_job

        outcome: dict[str, Any] = {}
        self._job = start_job(
            self._viewer.window._qt_window,
            make,
            name=name,
            on_event=None,
            on_done=lambda result: outcome.update(result=result),
            on_failed=lambda error: outcome.update(error=error),
            on_cancelled=lambda: outcome.update(error=RunError("It was cancelled.")),
        )
        yield lambda: bool(outcome)
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    def _picture(self, name: str) -> Steps:
        yield from photograph(self._viewer, self._demo.out, name, self._themes)

    def _report(self, name: str, lines: list[str]) -> None:
        write_text(self._demo.out / name, "\n".join([*lines, ""]))
        for line in lines:
            say(f"  {line}")


def photograph(
    viewer: napari.Viewer, out: Path, name: str, themes: Sequence[str]
) -> Steps:
    """Write what a window shows, once it has drawn it, into a folder.

    NAME-THEME.png for each theme; without any NAME.png, in the one that is set.
    """
    appearance = get_settings().appearance
    before = appearance.theme
    for theme in themes or (before,):
        appearance.theme = theme
        for _ in range(MOMENTS):
            yield None
        shown = f"{name}-{theme}.png" if themes else f"{name}.png"
        viewer.screenshot(str(out / shown), canvas_only=False, flash=False)
    appearance.theme = before


class Told:
    """Tells on the terminal how far a training is: a context manager."""

    def __init__(self, run: RunFolder) -> None:
        from histomae.learn.runs import EventReader

        self._reader = EventReader(run)
        self._bar = tqdm(total=0, desc="pretraining", unit=" steps", mininterval=1)

    def tell(self) -> bool:
        """Show what is new; always true."""
        for event in self._reader.read():
            if isinstance(event, Step):
                self._bar.total = event.total_steps
                self._bar.set_postfix_str(f"loss {event.loss:.3f}", refresh=False)
                self._bar.update(event.step - self._bar.n)
        return True

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *failure: object) -> None:
        self._bar.close()


def draw_loss(run: RunFolder, path: Path) -> None:
    """Draw the loss of a run, and that on held-out crops."""
    from matplotlib.figure import Figure

    events = list(run.events())
    steps = [event for event in events if isinstance(event, Step)]
    held_out = [event for event in events if isinstance(event, HeldOut)]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([e.step for e in steps], [e.loss for e in steps], label="training")
    axes.plot(
        [e.step for e in held_out], [e.loss for e in held_out], "o", label="held out"
    )
    axes.set(xlabel="step", ylabel="masked loss, normalised", title=run.path.name)
    axes.legend()
    with write_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=150)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with write_beside(path) as beside:
        beside.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
