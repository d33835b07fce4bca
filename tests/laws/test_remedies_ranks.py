"""Remedies under DDP: two processes with ragged shares give the gradient of one process, in float64."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_remedies import Writer, objective, ragged
from torch.nn.parallel import DistributedDataParallel

from jieyue.training.accumulation import accumulate
from jieyue.training.remedies.remedy import apply
from jieyue.training.remedies.texts import parse_remedy

WORLD = 2
REMEDIES = {
    "replacement, target": ["replace_tokens(0.5, 0.8)"],
    "replacement, sequence": ["replace_tokens(0.5, 0.8, pool='sequence')"],
    "scheduled": ["sample_scheduled(0.6, 'sample')"],
    "fgm": ["fgm(0.5)"],
    "fgm with clean": ["fgm(0.5, add_clean=True)"],
    "penalty": ["penalize_gradient(1.0)"],
    "rdrop": ["rdrop(1.0)"],
    "unlikelihood": ["unlikelihood(1.0)"],
    "nested": ["replace_tokens(0.5, 0.8)", "fgm(0.5)", "penalize_gradient(0.5)"],
}


def writer():
    torch.manual_seed(4)
    return Writer().train()


def rows():
    batch = ragged(num_rows=7)
    return batch | {"seeds": torch.arange(7) * 1001 + 5}


def gradients(names, model, batch, micro_batch):
    """Name -> gradient of the batch's mean under these remedies; a weight that took no part has None."""
    accumulate(apply(map(parse_remedy, names), objective), model, batch, micro_batch=micro_batch)
    inner = getattr(model, "module", model)
    return {name: p.grad.clone() for name, p in inner.named_parameters() if p.grad is not None}


def mean_of_means(names, model, batch):
    """The broken twin: every process takes its own mean, DDP averages them."""
    tally = apply(map(parse_remedy, names), objective)(model, batch)
    (tally.total / tally.weight).backward()
    return {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    try:
        shares = (slice(0, 5), slice(5, 7))  # five rows and two: other numbers of pieces, of rows and of labels
        own = {name: value[shares[rank]] for name, value in rows().items()}
        found = {
            key: gradients(names, DistributedDataParallel(writer()), own, micro_batch=2)
            for key, names in REMEDIES.items()
        }
        found["broken twin"] = mean_of_means(REMEDIES["fgm"], DistributedDataParallel(writer()), own)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def far(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("key", REMEDIES)
def test_two_processes_give_the_gradient_of_one(processes, key):
    whole = gradients(REMEDIES[key], writer(), rows(), micro_batch=7)
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    assert scale > 1e-3
    for own in processes:
        assert far(own[key], whole) <= 1e-12 * max(1.0, scale)
    plain = gradients([], writer(), rows(), micro_batch=7)
    assert key == "rdrop" or far(whole, plain) > 1e-4, "the remedy does something; rdrop needs dropout to"


def test_the_mean_of_means_differs(processes):
    whole = gradients(REMEDIES["fgm"], writer(), rows(), micro_batch=7)
    assert far(processes[0]["broken twin"], whole) > 1e-4
