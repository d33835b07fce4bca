"""The moments of a training's tensors, and what they reach by the allocator's rules; on a GPU, beside what it measures."""

import importlib
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from jieyue.errors import InputError
from jieyue.planning import cuda_prediction
from jieyue.planning.cuda_memory import replay
from jieyue.planning.cuda_prediction import moments_of, predict_cuda
from jieyue.planning.prediction import predict
from jieyue.planning.setting import Setting
from jieyue.planning.subject import Subject

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}


def step(device="cpu"):
    return Subject(config=BertConfig(**SIZES), head="masked-lm", positions=16, device=device).step(
        Setting(micro_batch=1)
    )


def live(moments, held):
    """(the most, what is left) of the sums of bytes that are there."""
    most = 0
    for number, num_bytes in moments:
        if num_bytes:
            assert number not in held
            held[number] = num_bytes
            most = max(most, sum(held.values()))
        else:
            del held[number]
    return most, sum(held.values())


def test_moments_are_those_of_the_update_that_is_predicted():
    """On the CPU, where measurements have confirmed predictions: the same peak, weights and optimizer state left at the end."""
    options = {"effective_batch": 2, "micro_batch": 1}
    first, last = moments_of(step(), **options, checkpointing=False, workspace=0)
    cost, held = predict(step(), **options), {}
    _, between = live(first, held)
    most, left = live(last, held)
    batch = 2 * 16 * 8 * 3  # ids, mask and labels, which wait on the host
    assert most == cost.peak_bytes
    assert left == between == cost.weight_bytes + cost.optimizer_bytes + batch
    reached = replay([*first, *last])
    assert reached.reserved_bytes >= reached.allocated_bytes > most

    with_workspaces = moments_of(step(), **options, checkpointing=False, workspace=2**20 + 1)
    taken = [[num_bytes for _, num_bytes in part].count(2**20 + 1) for part in with_workspaces]
    assert taken == [2, 0]  # one for the thread of forward passes, one for autograd's, and they stay


def test_refusals():
    options = {"effective_batch": 2, "micro_batch": 1}
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="'cpu' where there is no GPU"):
            predict_cuda(step("cuda"), **options)
    with pytest.raises(InputError, match="micro_batch: found 3"):
        moments_of(step(), effective_batch=2, micro_batch=3, checkpointing=False, workspace=0)


def test_scratch_of_attention():
    """δ of every row; in half precision dq in float32 beside it, rows and columns in the kernel's multiples."""
    q = torch.empty(2, 3, 130, 40)
    assert cuda_prediction._scratch(q, half=False, rows=1) == 4 * 2 * 3 * 130
    assert cuda_prediction._scratch(q, half=True, rows=128) == 4 * 2 * 3 * 256 * (1 + 64)


@pytest.mark.gpu
@pytest.mark.parametrize("number", [0, 7, 9])
def test_predicted_within_five_percent_of_a_gpu(monkeypatch, number):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    predictions = importlib.import_module("cuda_predictions")
    configuration = predictions.CONFIGURATIONS[number]
    capability = torch.cuda.get_device_capability()
    made, _ = predictions.parts(configuration, "cuda")
    promised = predict_cuda(
        made, effective_batch=2 * configuration.rows, micro_batch=configuration.rows,
        checkpointing=configuration.checkpointing, capability=capability,
    )  # fmt: skip
    for one, other in zip(promised, predictions.measured(configuration), strict=True):
        assert abs(one / other - 1) < 0.05
