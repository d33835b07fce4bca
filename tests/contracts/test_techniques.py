"""The table of techniques: what it names exists, approximations carry the word, and every one of ours is in it."""

import importlib
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from jieyue import errors
from jieyue.hf.optimizers import make_optimizer
from jieyue.hf.trainer import training_arguments
from jieyue.training.techniques import OTHER, TECHNIQUES, UPDATES


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda one: one.name)
def test_what_is_named_exists(technique):
    module, _, name = technique.where.rpartition(".")
    if module.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed here")
    assert getattr(importlib.import_module(module), name).__doc__
    assert technique.saves and technique.costs


def test_approximations_say_so():
    for technique in TECHNIQUES:
        assert technique.exact or "approx" in technique.name or "another optimizer" in technique.name
        assert technique.update in UPDATES and (technique.update == OTHER) == ("another optimizer" in technique.name)
    assert len({technique.name for technique in TECHNIQUES}) == len(TECHNIQUES)
    order = [UPDATES.index(technique.update) for technique in TECHNIQUES]
    assert order == sorted(order)  # exact first


def test_the_page_on_memory_tells_the_table():
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")
    told = [line for line in page.splitlines() if line.startswith("|") and line.endswith("` |")]
    assert told == [f"| {one.name} | {one.update} | {one.saves} | {one.costs} | `{one.where}` |" for one in TECHNIQUES]


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))


def test_adafactor_keeps_a_row_and_a_column(tmp_path):
    net = model()
    optimizer = make_optimizer(net, training_arguments(tmp_path, steps=1, optim="adafactor", learning_rate=1e-2))
    net(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    kept = [value for value in optimizer.state[net[0].weight].values() if isinstance(value, torch.Tensor)]
    assert (
        sum(value.numel() for value in kept if value.ndim) == 8
    )  # of 16 weights: a row and a column, where Adam keeps 32


@pytest.mark.parametrize(("optim", "package"), [("adamw_bnb_8bit", "bitsandbytes"), ("adamw_torch_8bit", "torchao")])
def test_eight_bits_need_their_extra(tmp_path, optim, package):
    try:
        importlib.import_module(package)
    except ImportError:
        pass
    else:
        pytest.skip(f"{package} is installed here")
    try:
        arguments = training_arguments(tmp_path, steps=1, optim=optim)
    except ValueError:
        pytest.skip(f"this transformers has no {optim}")
    assert isinstance(arguments, TrainingArguments)
    with pytest.raises(errors.MissingExtra, match=rf"{package}.*jieyue\[eight-bit\]"):
        make_optimizer(model(), arguments)
