"""Several processes train as one does: the same losses, one folder, one stop."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import histomae
from histomae.errors import ConfigError
from histomae.events import Finished, HeldOut, Note, Saved, Started, Step
from histomae.learn import processes
from histomae.learn.deciding import MACHINE_CHANGED
from histomae.learn.methods import METHODS
from histomae.learn.pretrain import run_in
from histomae.learn.runs import RunFolder
from histomae.models.checkpoint import load_checkpoint
from histomae.models.cnn import CnnSpec, build_cnn
from tests.patience import wait_until


@pytest.fixture
def begin(tmp_path, quick):
    """Return a function that makes a run folder with settings in it."""

    def make(name, **changes):
        run = RunFolder(tmp_path / name)
        run.create(replace(quick(), **changes))
        return run

    return make


def start_two(run):
    """Start two processes on one run, as ``torchrun`` does."""
    root = str(Path(histomae.__file__).parents[1])
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "--"),
            *("histomae", "pretrain", "--run", str(run.path)),
        ],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def numbers(run, kind=Step):
    return [event.loss for event in run.events() if isinstance(event, kind)]


def test_two_processes_train_as_one_does(begin):
    """The losses agree to 1e-5, and so do those on crops held out."""
    alone, together = begin("alone", micro_batch=20), begin("together", micro_batch=4)
    list(run_in(alone))
    said = finish(start_two(together))
    assert said.count("run folder:") == 1
    assert said.count("checkpoint:") == 1
    assert len(numbers(alone)) == 8
    np.testing.assert_allclose(numbers(together), numbers(alone), rtol=1e-5)
    np.testing.assert_allclose(
        numbers(together, HeldOut), numbers(alone, HeldOut), rtol=1e-5
    )
    (started,) = [e for e in together.events() if isinstance(e, Started)]
    assert started.processes == 2
    saved = [e.path for e in together.events() if isinstance(e, Saved)]
    assert len(saved) == len([e for e in alone.events() if isinstance(e, Saved)])
    assert together.state == "done"
    one, other = load_checkpoint(alone.last), load_checkpoint(together.last)
    for name, tensor in one.tensors.items():
        if name.startswith("blocks") and name.endswith("mlp.fc1.weight"):
            torch.testing.assert_close(other.tensors[name], tensor, rtol=0, atol=2e-3)


def test_two_processes_stop_as_one_and_one_goes_on(begin):
    run = begin("run", epochs=300, save_every=10**6, preview_every=10**6)
    process = start_two(run)
    wait_until(lambda: numbers(run))
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert run.last_event.reason == "stopped"
    step = run.last_event.step
    assert 0 < step == load_checkpoint(run.last).header.step
    run.reopen()
    for event in run_in(run):
        if isinstance(event, Step):
            run.request("stop")
    notes = [event.text for event in run.events() if isinstance(event, Note)]
    assert MACHINE_CHANGED in notes
    assert run.last_event == Finished(step + 1, "stopped")


def test_a_batch_is_shared_out_without_rest():
    class Fabric:
        world_size = 3

    parts = []
    for rank in range(3):
        fabric = Fabric()
        fabric.global_rank = rank
        parts.append(processes.part_of(np.arange(10), fabric).tolist())
    assert parts == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


def several(device):
    return SimpleNamespace(world_size=2, device=torch.device(device))


def test_batch_norm_of_several_processes_is_of_the_whole_batch():
    model = build_cnn(CnnSpec("efficientnet_b2", 64))
    weights = list(model.parameters())
    shared = processes.with_shared_norms(model, several("cuda"))
    norms = [m for m in shared.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == []
    assert any(isinstance(m, nn.SyncBatchNorm) for m in shared.modules())
    assert all(a is b for a, b in zip(weights, shared.parameters(), strict=True))


def test_batch_norm_of_several_processors_is_refused():
    model = build_cnn(CnnSpec("efficientnet_b2", 64))
    with pytest.raises(ConfigError, match=r"GPUs only.*vit_small, or start one"):
        processes.with_shared_norms(model, several("cpu"))
    alone = SimpleNamespace(world_size=1, device=torch.device("cpu"))
    assert processes.with_shared_norms(model, alone) is model


def test_a_transformer_is_pretrained_by_several_processors(quick):
    """MPCS's projector has batch norm too, but sees the whole batch."""
    config = replace(quick(), method="mpcs")
    model = METHODS["mpcs"].build(config, torch.Generator().manual_seed(0))
    assert any(isinstance(part, nn.BatchNorm1d) for part in model.modules())
    assert processes.with_shared_norms(model.encoder, several("cpu")) is model.encoder


def test_one_process_is_the_first_and_only(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert processes.is_first()
    assert processes.count() == 1
    assert processes.agreed("a", processes.join("cpu")) == "a"


def test_processes_are_found_as_they_were_started(monkeypatch):
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert (processes.count(), processes.is_first()) == (4, False)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert (processes.count(), processes.is_first()) == (1, True)


def test_a_numbered_gpu_is_not_for_several_processes(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "pick_device", lambda _: torch.device("cuda:1"))
    with pytest.raises(ConfigError, match="each process takes a GPU of its own"):
        processes.join("cuda:1")
