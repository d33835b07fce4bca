"""What several processes must agree on for one update: sums of tallies, a common flag, summed gradients.

The gradients are added after the last piece, not inside its backward pass: so no collective runs while a piece may
still run out of memory, and one rank's failure can never leave the others waiting. One process pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jieyue.errors import InputError

__all__ = ["Ranks"]

_BUCKET_BYTES = 25 * 2**20


class Ranks:
    """The processes that share an update, read from how ``model`` is wrapped: DDP, FSDP2 (``fully_shard``), or none.

    ``module`` is what the objective runs: DDP's inner module (its reducer rests), else the model itself.
    ``sharded`` is True under FSDP2, whose own collectives run inside every forward and backward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        self.sharded = False
        self.world = 1
        self._group: dist.ProcessGroup | None = None
        if isinstance(model, DistributedDataParallel):
            self.module, self._group = model.module, model.process_group
            self.world = dist.get_world_size(self._group)
        elif dist.is_available() and dist.is_initialized():
            mesh = next((p.device_mesh for p in model.parameters() if hasattr(p, "device_mesh")), None)
            if mesh is not None:
                self.sharded, self.world = True, mesh.size()
                if self.world != dist.get_world_size():
                    raise InputError(
                        f"accumulate: found a mesh of {self.world} of {dist.get_world_size()} processes,"
                        " expected one that spans them all"
                    )

    @property
    def rank(self) -> int:
        """This process's place among those that share the update."""
        return 0 if self.world == 1 else dist.get_rank(self._group)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, own: list[Tensor], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """(the rows of all ranks, one rank after another; this rank's part of them, a leaf where it is floating point).

        Each tensor has one entry per row; ranks may hold different numbers of rows, and none at all.
        """
        if self.world > 1:
            shapes: list[list[tuple[tuple[int, ...], torch.dtype]] | None] = [None] * self.world
            dist.all_gather_object(shapes, [(tuple(part.shape), part.dtype) for part in own], group=self._group)
            known = next((found for found in shapes if found), [])
            own = own or [torch.zeros(0, *shape[1:], dtype=dtype, device=device) for shape, dtype in known]
        leaves = [part.detach().requires_grad_(part.is_floating_point()) for part in own]
        if self.world == 1:
            return leaves, leaves
        counts = [found[0][0][0] if found else 0 for found in shapes]
        rank, whole = self.rank, []
        for leaf in leaves:
            padded = leaf.new_zeros(max(counts), *leaf.shape[1:])
            padded[: len(leaf)] = leaf.detach()
            received = [torch.empty_like(padded) for _ in counts]
            dist.all_gather(received, padded, group=self._group)
            parts = [part[:count] for part, count in zip(received, counts, strict=True)]
            whole.append(torch.cat([leaf if place == rank else part for place, part in enumerate(parts)]))
        return whole, leaves

    def sum(self, values: list[float], device: torch.device) -> list[float]:
        """Each number summed over the ranks, in float64."""
        return self._reduced(values, device, dist.ReduceOp.SUM) if self.world > 1 else values

    def highest(self, values: list[float], device: torch.device) -> list[float]:
        """Each number's maximum over the ranks."""
        return self._reduced(values, device, dist.ReduceOp.MAX) if self.world > 1 else values

    def _reduced(self, values: list[float], device: torch.device, op: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, op=op, group=self._group)
        return tensor.tolist()

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Adds the gradients of all ranks in place, in flat buckets of 25 MiB.

        A parameter that has a gradient on some ranks only counts as zero on the others; one that has none anywhere
        keeps None, as it would in a single process. Sharded gradients were summed by their own backward pass.
        """
        if self.world == 1 or self.sharded or not parameters:
            return
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(present, op=dist.ReduceOp.MAX, group=self._group)
        gradients = []
        for parameter, anywhere in zip(parameters, present.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad.is_sparse:
                raise InputError("accumulate: found a sparse gradient under DDP, expected dense ones; use sparse=False")
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat, group=self._group)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(g.nbytes for g in bucket) + gradient.nbytes > _BUCKET_BYTES
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
