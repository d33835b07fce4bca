"""Law of the batch over processes: what the ranks hold together gives the undivided batch's gradient, in float64."""

import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from jieyue.errors import InputError
from jieyue.training.accumulation import accumulate
from jieyue.training.cached_gradients import CachedGradients
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import token_loss

WORLD = 3


class Net(nn.Module):
    """A path for even rows and one for odd rows, so that some ranks lack the gradient of one of them."""

    def __init__(self):
        super().__init__()
        self.even, self.odd, self.nowhere = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(4, 5)
        self.out = nn.Linear(5, 6)
        self.double()

    def forward(self, x, odd):
        parts = []
        if bool((~odd).any()):
            parts.append(self.even(x) * (~odd)[:, None])
        if bool(odd.any()):
            parts.append(self.odd(x) * odd[:, None])
        return self.out(torch.tanh(sum(parts)))


def objective(model, batch):
    return token_loss(model(batch["x"], batch["odd"]), batch["labels"])


def whole_batch(rows):
    generator = torch.Generator().manual_seed(rows)
    labels = torch.randint(0, 6, (rows,), generator=generator)
    labels[1::4] = -100
    return {
        "x": torch.randn(rows, 4, generator=generator, dtype=torch.float64),
        "odd": torch.arange(rows) % 2 == 1,
        "labels": labels,
    }


def gap(model, reference):
    worst = 0.0
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            found = one.grad.full_tensor() if isinstance(one.grad, DTensor) else one.grad
            worst = max(worst, float((found - other.grad).abs().max()))
    return worst


def share(batch, rank):
    return {name: value[rank::WORLD] for name, value in batch.items()}


def reference_of(batch):
    torch.manual_seed(1)
    reference = Net()
    objective(reference, batch).mean().backward()
    return reference


def fresh():
    torch.manual_seed(1)
    return Net()


def replicated(rank):
    for rows in (2, 4, 7, 12):  # with 2 rows one rank has none; shares are ragged
        batch = whole_batch(rows)
        for size in (1, 2, 8):
            model = DistributedDataParallel(fresh())
            tally = accumulate(objective, model, share(batch, rank), micro_batch=size)
            assert gap(model.module, reference_of(batch)) < 1e-14
            assert tally.weight == int((batch["labels"] != -100).sum())
    plain = DistributedDataParallel(fresh())
    objective(plain, share(batch, rank)).mean().backward()  # the broken twin: DDP's mean of the ranks' means
    assert gap(plain.module, reference_of(batch)) > 1e-3


def out_of_memory_on_one_rank(rank):
    batch, seen = whole_batch(12), []

    def tight(model, piece):
        seen.append(len(piece["labels"]))
        if rank == 1 and len(piece["labels"]) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return objective(model, piece)

    model, micro = DistributedDataParallel(fresh()), MicroBatch(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accumulate(tight, model, share(batch, rank), micro_batch=micro)
    assert micro.rows == 1 and micro.halvings == 2 and seen[-4:] == [1] * 4
    assert gap(model.module, reference_of(batch)) < 1e-14


def sharded(rank):
    mesh = init_device_mesh("cpu", (WORLD,))
    for rows in (4, 7):
        batch = {**whole_batch(rows), "odd": torch.zeros(rows, dtype=torch.bool)}
        model = fresh()
        for layer in (model.even, model.out):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        accumulate(objective, model, share(batch, rank), micro_batch=1)
        assert gap(model, reference_of(batch)) < 1e-14
    with pytest.raises(torch.OutOfMemoryError):
        accumulate(out_of_memory_everywhere, model, share(batch, rank), micro_batch=2)


def out_of_memory_everywhere(model, batch):
    raise torch.OutOfMemoryError("out of memory")


def embed(model, piece):
    return model(piece["x"], piece["odd"]), piece["labels"]


def compare(model, embeddings, labels):
    """Every row against all others of the batch, those of other ranks too; ``out.bias`` is used by the loss itself."""
    scores = (embeddings * model.out.bias) @ embeddings.T
    return token_loss(scores, torch.where(labels == -100, labels, torch.arange(len(scores))))


def compared(rank):
    objective = CachedGradients(embed, compare)
    for rows in (2, 7, 12):
        shares = [share(whole_batch(rows), each) for each in range(WORLD)]
        whole = {name: torch.cat([one[name] for one in shares]) for name in shares[0]}
        reference = fresh()
        objective(reference, whole).mean().backward()
        for limit in (9, 1):
            model, micro = DistributedDataParallel(fresh()), MicroBatch(3)

            def tight(model, piece, limit=limit):
                if rank == 1 and len(piece["x"]) > limit:
                    raise torch.OutOfMemoryError("out of memory")
                return embed(model, piece)

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tally = accumulate(CachedGradients(tight, compare), model, shares[rank], micro_batch=micro)
            assert gap(model.module, reference) < 1e-13
            assert tally.weight == int((whole["labels"] != -100).sum())
            assert micro.rows == (1 if rows > 2 and limit == 1 else 3)


def sparse(rank):
    model = DistributedDataParallel(nn.Embedding(9, 6, sparse=True).double())
    batch = {"x": torch.tensor([[rank]]), "labels": torch.tensor([[1]])}
    with pytest.raises(InputError, match="sparse gradient"):
        accumulate(lambda m, b: token_loss(m(b["x"]), b["labels"]), model, batch, micro_batch=1)


def worker(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    try:
        for check in (replicated, out_of_memory_on_one_rank, compared, sharded, sparse):
            check(rank)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_three_processes(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=WORLD)
