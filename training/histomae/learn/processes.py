"""One process, or several that train together: devices and distribution.

lightning-fabric finds the processes that ``torchrun`` or SLURM started, gives each its
device and adds up their gradients (DDP). Each takes its part of every batch; the first
one writes the run folder, the others only compute. What is trained does not depend on
how many there are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from histomae.errors import ConfigError
from histomae.infer.encoder import pick_device

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Indices = np.ndarray[Any, np.dtype[np.int64]]
Value = TypeVar("Value")


def is_first() -> bool:
    """Whether this process writes and speaks; known before the processes have met."""
    return _from_environment("RANK", "SLURM_PROCID", otherwise=0) == 0


def count() -> int:
    """Return how many processes were started together."""
    return _from_environment("WORLD_SIZE", "SLURM_NTASKS", otherwise=1)


def _from_environment(torchrun: str, slurm: str, *, otherwise: int) -> int:
    if not {torchrun, slurm} & os.environ.keys():  # lightning takes seconds to load
        return otherwise
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import (
        TorchElasticEnvironment,
    )

    if TorchElasticEnvironment.detect():
        return int(os.environ[torchrun])
    # Not in an interactive job, where one process is started by hand.
    return int(os.environ[slurm]) if SLURMEnvironment.detect() else otherwise


def join(device: str) -> Fabric:
    """Meet the other processes, if there are any.

    Parameters
    ----------
    device
        As in ``PretrainConfig.device``; among several processes a GPU has no number,
        for each takes its own.

    Raises
    ------
    ConfigError
        If the device is not here.
    """
    from lightning_fabric import Fabric

    chosen, processes = pick_device(device), count()
    if processes == 1:
        devices: Any = 1 if chosen.index is None else [chosen.index]
        fabric = Fabric(accelerator=chosen.type, devices=devices)
    else:
        if chosen.index is not None:
            raise ConfigError(
                "device",
                f"{device} is one GPU, but {processes} processes were started. Say "
                f"{chosen.type}: each process takes a GPU of its own.",
            )
        here = _processes_here(processes)
        fabric = Fabric(
            accelerator=chosen.type,
            devices=here,
            num_nodes=processes // here,
            strategy="ddp",
        )
    fabric.launch()
    return fabric


def _processes_here(processes: int) -> int:
    """Return how many of the processes are on this computer."""
    said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
    return int(said) if said else processes // int(os.environ["SLURM_NNODES"])


def part_of(indices: Indices, fabric: Fabric) -> Indices:
    """Return this process's part of a batch."""
    part: Indices = np.array_split(indices, fabric.world_size)[fabric.global_rank]
    return part


def agreed(value: Value, fabric: Fabric) -> Value:
    """Return what the first process has, in all of them."""
    return fabric.broadcast(value) if fabric.world_size > 1 else value


def summed(numbers: torch.Tensor, fabric: Fabric) -> torch.Tensor:
    """Return the sum of what each process has."""
    if fabric.world_size == 1:
        return numbers
    total = fabric.all_reduce(numbers, reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return total


def with_shared_norms(encoder: nn.Module, fabric: Fabric) -> nn.Module:
    """Let batch norm see the whole batch, not one process's part; weights stay theirs.

    Of an encoder: what comes after it sees the whole batch in every process.

    Raises
    ------
    ConfigError
        On processors, for which torch has no such norm.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    if fabric.world_size == 1 or not any(
        isinstance(part, norms) for part in encoder.modules()
    ):
        return encoder
    if fabric.device.type != "cuda":
        raise ConfigError(
            "encoder",
            "normalises over the batch, which several processes share on GPUs only. "
            "Choose a vision transformer such as vit_small, or start one process.",
        )
    from timm.layers import convert_sync_batchnorm

    shared: nn.Module = convert_sync_batchnorm(encoder)
    return shared


def leave() -> None:
    """Part from the other processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
