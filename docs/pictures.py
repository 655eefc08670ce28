"""Make the pictures of the documentation from the real program: ``make docs``.

It plays the demo on the synthetic sample slide, in a window of 1280 × 800 pixels, and
photographs each dock in use in napari's dark and light themes; then a slide as a whole
(``whole_slide.py``), and its nuclei (``segment.py``).
"""

import shutil
import sys
import tempfile
from pathlib import Path

from segment import mark_nuclei
from whole_slide import Walk, walk

from histomae.learn.runs import RunFolder
from histomae.slides.sample import sample_slide
from napari_histomae.demo import Demo, play

PICTURES = Path(__file__).parent / "pictures"
THEMES = ("dark", "light")


def main() -> int:
    """Take the pictures; return the demo's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        code = play(Demo(out=out, close=True), themes=THEMES)
        sample = sample_slide(0)
        code = code or walk(Walk((sample.slide_path,), out), themes=THEMES)
        encoder = RunFolder(out / "encoder").last
        code = code or mark_nuclei(encoder, sample, out, themes=THEMES)
        PICTURES.mkdir(exist_ok=True)
        for theme in THEMES:
            for picture in out.glob(f"*-{theme}.png"):
                shutil.copy(picture, PICTURES)
    return code


if __name__ == "__main__":
    sys.exit(main())
