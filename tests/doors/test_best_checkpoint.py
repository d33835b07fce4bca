"""The best weights stay, training stops when nothing gets better, an interrupted run finds the same; what chooses never judges."""

import copy
import math

import pytest
import torch

from jieyue.budget import Budget
from jieyue.errors import InputError
from jieyue.run import RunConfig, TrainingConfig
from jieyue.run.best import BestWeights
from jieyue.run.fit import fit
from jieyue.run.jobs import train
from jieyue.run.plan import plan_for
from jieyue.run.prepare import prepare
from jieyue.tasks.sources import Sources, halved
from jieyue.tasks.table import task

HOW = {"steps": 8, "effective_batch": 8, "evaluate_every": 1, "save_steps": 3}


class Looks:
    """Gives these scores one after another and remembers the weights that each was given for."""

    def __init__(self, scores, stop_at=None):
        self.scores, self.stop_at, self.weights = scores, stop_at, []

    def __call__(self, model, prepared):
        if len(self.weights) == self.stop_at:
            raise KeyboardInterrupt
        self.weights.append(copy.deepcopy(model.state_dict()))
        return self.scores[len(self.weights) - 1]


@pytest.fixture(scope="module")
def ready():
    config = RunConfig(limit=120)
    prepared = prepare(task("classify"), config, TrainingConfig(**HOW))
    return prepared, plan_for(prepared, Budget.parse("2GiB"), TrainingConfig(**HOW))


def trained(ready, folder, looks, *, resume=False, **how):
    return fit(*ready, TrainingConfig(**{**HOW, **how}), folder, resume=resume, curve=looks)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("keep", "at"), [("best", 2), ("last", 7)])
def test_the_best_weights_stay(ready, tmp_path, keep, at):
    looks = Looks([0.1, 0.5, 0.9, 0.3, 0.9, math.nan, 0.2, 0.4])
    found = trained(ready, tmp_path, looks, keep=keep)
    assert same(found.model.state_dict(), looks.weights[at])
    assert found.facts.get("best_step") == (3 if keep == "best" else None)
    assert not list((tmp_path / "checkpoints").glob("best.safetensors*"))


def test_training_stops_when_nothing_gets_better(ready, tmp_path):
    looks = Looks([0.1, 0.5, 0.4, 0.5, 0.3, 0.9, 0.9, 0.9])
    found = trained(ready, tmp_path, looks, patience=3, keep="best")
    assert (found.facts["steps"], found.facts["best_step"], found.facts["stopped_early"]) == (5, 2, True)
    assert same(found.model.state_dict(), looks.weights[1])


def test_an_interrupted_run_finds_the_same(ready, tmp_path):
    scores = [0.1, 0.8, 0.3, 0.9, 0.2, 0.1, 0.4, 0.3]
    whole = trained(ready, tmp_path / "whole", Looks(scores), keep="best")
    with pytest.raises(KeyboardInterrupt):
        trained(ready, tmp_path / "parts", Looks(scores, stop_at=5), keep="best")
    step = max(int(path.name[11:]) for path in (tmp_path / "parts" / "checkpoints").glob("checkpoint-*"))
    later = trained(ready, tmp_path / "parts", Looks(scores[step:]), keep="best", resume=True)
    assert later.facts["best_step"] == whole.facts["best_step"] == 4
    assert same(later.model.state_dict(), whole.model.state_dict())


def test_lower_may_be_better_and_what_came_later_does_not_count(tmp_path):
    model = torch.nn.Linear(2, 2)
    best = BestWeights(tmp_path, higher_is_better=False, keeps=True)
    for step, score in enumerate((3.0, 1.0, 2.0, 0.5), 1):
        best.take(step, score, model)
    assert best.best == (4, 0.5)
    again = BestWeights(tmp_path, higher_is_better=False, keeps=True)
    again.resumed(3)
    assert again.best is None and [step for step, _ in again.scores] == [1, 2, 3]


def test_what_chooses_does_not_judge():
    held = list("abcde")
    found = halved(Sources("x", [], held, held, None))
    assert (found.set_aside, found.held_out) == (["a", "c", "e"], ["b", "d"])
    apart = Sources("x", [], ["s"], held, None)
    assert halved(apart) is apart


@pytest.mark.parametrize(
    "wrong", [{"keep": "first"}, {"patience": 0}, {"evaluate_every": 0}, {"schedule": "step"}, {"weight_decay": -1.0}]
)
def test_mistakes_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


@pytest.mark.slow
def test_a_report_says_what_was_kept_and_decided(tmp_path):
    how = TrainingConfig(
        steps=4, effective_batch=8, evaluate_every=2, keep="best", schedule="constant", weight_decay=0.1
    )
    text = train("classify", RunConfig(limit=120), tmp_path / "model", training=how).text()
    for told in (
        "best update",
        "its accuracy",
        "best weights kept",
        "evaluate every",
        "constant_with_warmup",
        "weight decay",
    ):
        assert told in text, told
    assert "decided by jieyue" not in text
