"""The gradient that two processes (DDP on gloo) agree on, computed in processes of their own on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jieyue.training.accumulation import accumulate
from jieyue.training.objective import Objective

__all__ = ["gradients_of_processes"]

WORLD = 2


def gradients_of_processes(
    model: nn.Module, objective: Objective, batch: Mapping[str, Tensor], micro_batch: int
) -> dict[str, Tensor]:
    """Name -> gradient of the whole batch, each process holding every second row. ``objective``: a module's function.

    Memory: two more copies of the model. Takes some seconds: each process imports torch anew.
    """
    with tempfile.TemporaryDirectory(prefix="jieyue-") as folder:
        arguments = (folder, model, objective, dict(batch), micro_batch)
        torch.multiprocessing.spawn(_process, args=arguments, nprocs=WORLD)
        return load_file(Path(folder) / "gradients.safetensors")


def _process(
    rank: int, folder: str, model: nn.Module, objective: Objective, batch: dict[str, Tensor], micro_batch: int
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // WORLD))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    try:
        own = {name: value[rank::WORLD] for name, value in batch.items()}
        accumulate(objective, DistributedDataParallel(model.train()), own, micro_batch=micro_batch)
        if rank == 0:
            found = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
            save_file(found, Path(folder) / "gradients.safetensors")
    finally:
        dist.destroy_process_group()
