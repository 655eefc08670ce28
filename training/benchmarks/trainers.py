"""Trainings to disturb: a small slide, and pretrainings in processes of their own.

The processes come from a fork server that has torch imported already, so that one
starts in a moment and hundreds can be killed within minutes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from histomae.config import PretrainConfig
from histomae.events import Step
from histomae.learn import pretrain
from histomae.learn.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    #: Called in the process of a training before it begins: see :mod:`spoil`.
    Spoil = Sequence[Callable[[], None]]

#: What a training imports only when it begins, which takes longer than its steps.
IMPORTED_LATE = ("lightning_fabric", "pandas", "PIL.Image")
#: The decoder of MAE's own recipe.
REFERENCE_DECODER = {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16}
#: Steps of some ten milliseconds.
SMALL = PretrainConfig(
    encoder="vit_micro",
    tile_px=64,
    patch_size=16,
    decoder_dim=64,
    decoder_depth=1,
    decoder_heads=2,
    crops_per_slide=40,
    batch_size=8,
    micro_batch=8,  # not timed: runs are compared
    precision="f32",
    warmup_epochs=0,
    save_every=3,
    preview_every=10**9,
    device="cpu",
    threads=1,
)


def make_slide(path: Path) -> Path:
    """Write a small slide with something like tissue: quicker than the sample."""
    random = np.random.default_rng(0)
    high, wide = 1500, 2000
    y, x = np.mgrid[:high, :wide]
    inside = ((x / wide - 0.5) / 0.42) ** 2 + ((y / high - 0.5) / 0.42) ** 2 < 1
    nuclei = np.kron(random.random((high // 10, wide // 10)) < 0.3, np.ones((10, 10)))
    pixels = np.full((high, wide, 3), 245, np.uint8)
    pixels[inside] = (225, 150, 190)
    pixels[inside & (nuclei > 0)] = (90, 50, 130)
    pixels -= random.integers(0, 8, pixels.shape, dtype=np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        for level in range(2):
            tiff.write(
                pixels[:: 2**level, :: 2**level],
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                subfiletype=1 if level else 0,
                resolution=(2e4, 2e4),  # 0.5 µm
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def begin(folder: Path, config: PretrainConfig) -> RunFolder:
    """Make a run folder with settings in it."""
    run = RunFolder(folder)
    run.create(config)
    return run


class Trainers:
    """Starts pretrainings in processes of their own."""

    def __init__(self) -> None:
        here = str(Path(__file__).parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["trainers", *IMPORTED_LATE])

    def start(
        self,
        run: RunFolder,
        *,
        spoil: Spoil = (),
        going: Connection | None = None,
        dies_after: int | None = None,
    ) -> BaseProcess:
        """Begin, or go on with, the training of a run folder.

        ``going`` is the sending end of a pipe: it gets a word after the first step.
        ``dies_after`` is a step after which the process kills itself (SIGKILL).
        """
        process = self._context.Process(
            target=train, args=(run.path, spoil, going, dies_after)
        )
        process.start()
        return process


def train(
    folder: Path, spoil: Spoil, going: Connection | None, dies_after: int | None
) -> None:
    """Train to the end of the plan, or until somebody ends this process.

    It ends with the fork server, which ends with whoever started it.
    """
    import torch

    server = os.getppid()
    torch.set_num_threads(1)
    for put_in in spoil:
        put_in()
    for event in pretrain.run_in(RunFolder(folder)):
        if going is not None and isinstance(event, Step):
            going.send(event.step)
            going = None
        if dies_after and isinstance(event, Step) and event.step >= dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.getppid() != server:
            break


def kill(process: BaseProcess) -> None:
    """End a process as the system does, without a word."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.join()
