"""Runs of every recipe that Ctrl-C stops in the middle of an update and ``resume`` finishes: the same bits as one run."""

import json
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_cli import jieyue

from jieyue.budget import Plan
from jieyue.errors import InputError
from jieyue.hf.interrupts import Interrupted
from jieyue.hf.trainer import EffectiveBatchTrainer
from jieyue.run import jobs
from jieyue.run.config import TrainingConfig
from jieyue.run.fit import fit
from jieyue.run.prepare import prepare
from jieyue.run.waterfall import Step, Waterfall
from jieyue.tasks import RunConfig
from jieyue.tasks.chat.settings import ChatSettings
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.mlm.settings import MaskSettings
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.table import task
from jieyue.tasks.title.settings import TitleSettings
from jieyue.training.remedies.replacement import replace_tokens

COURSE = TrainingConfig(steps=5, effective_batch=4, save_steps=2, curriculum="none", warmup_steps=1)
RECIPES = {
    "read": {
        "model": "tiny",
        "settings": ReadSettings(answer_slots=4, question_tokens=12, window_tokens=32, overlap_tokens=8),
    },
    "title": {"model": "bert-tiny", "settings": TitleSettings(source_tokens=24, title_tokens=8)},
    "classify": {"model": "bert-tiny", "settings": ClassifySettings(max_tokens=24)},
    "mlm": {"model": "albert-tiny", "settings": MaskSettings(max_tokens=24)},
    "chat": {"model": "tiny", "settings": ChatSettings(max_tokens=24, row_tokens=24)},
}


@pytest.fixture(autouse=True)
def terminal():
    """Ctrl-C as at a terminal: a process started in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(objective, at):
    """The objective, and Ctrl-C in its call number ``at``: between the passes of one update."""
    calls = []

    def run(model, batch):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, batch)

    return run


def trained(name, folder, *, resume=False, at=None, course=COURSE, **materials):
    """The weights after the course in micro-batches of two, so that an update is two calls."""
    given = RunConfig(**(RECIPES[name] | {"limit": 60} | materials))
    prepared = prepare(task(name), given, course, folder=folder)
    planned = SimpleNamespace(plan=Plan(effective_batch=course.effective_batch, micro_batch=2), wall_bytes=None)
    if at is not None:
        prepared = replace(prepared, objective=interrupted(prepared.objective, at))
    return fit(prepared, planned, course, folder, resume=resume, curve=None).model.state_dict()


def noted(folder):
    return [json.loads(line) for line in (folder / "checkpoints" / "course.jsonl").read_text().splitlines()]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "name", ["classify", "mlm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("read", "title", "chat"))]
)
def test_resumed_is_the_whole_run(name, tmp_path):
    whole = trained(name, tmp_path / "whole")
    with pytest.raises(Interrupted) as stopped:
        trained(name, tmp_path / "run", at=8)
    assert stopped.value.checkpoint == tmp_path / "run" / "checkpoints" / "checkpoint-3"
    before = noted(tmp_path / "run")
    assert same(whole, trained(name, tmp_path / "run", resume=True))
    lived, again = noted(tmp_path / "whole"), noted(tmp_path / "run")
    assert [one["step"] for one in again] == list(range(1, len(lived) + 1))
    assert [one["loss"] for one in again] == [one["loss"] for one in lived]
    assert again[: len(before)] == before and again[len(before)]["seconds"] > before[-1]["seconds"]


def test_the_alarm_rings(tmp_path, monkeypatch):
    """The broken twin: the state of the random numbers is not restored, so other tokens are replaced. A lost one is noticed."""
    course = replace(COURSE, remedies=(replace_tokens(0.5, 1.0),))
    whole = trained("title", tmp_path / "whole", course=course)
    with pytest.raises(Interrupted):
        trained("title", tmp_path / "run", at=8, course=course)
    shutil.copytree(tmp_path / "run", tmp_path / "twin")
    shutil.copytree(tmp_path / "run", tmp_path / "lost")
    (tmp_path / "lost" / "checkpoints" / "checkpoint-3" / "rng_state.pth").unlink()
    assert same(whole, trained("title", tmp_path / "run", resume=True, course=course))
    with pytest.warns(UserWarning, match=r"rng_state\.pth missing.*trying the one before"):
        assert same(whole, trained("title", tmp_path / "lost", resume=True, course=course))
    monkeypatch.setattr(EffectiveBatchTrainer, "_load_rng_state", lambda *_: None)
    assert not same(whole, trained("title", tmp_path / "twin", resume=True, course=course))


@pytest.mark.parametrize("name", ["classify", pytest.param("mlm", marks=pytest.mark.slow)])
def test_ctrl_c_on_the_command_line(name, tmp_path, monkeypatch):
    """Exit code 130 and what to do; ``--resume`` goes on, without it the run starts anew."""
    flags = ["train", name, "--model", "bert-tiny", "--limit", "60", "--max-tokens", "24", "--effective-batch", "4"]
    flags += ["--steps", "4", "--budget", "3GiB", "--out", tmp_path / "run"]
    if name == "mlm":
        flags += ["--pseudo-rows", "1"]
    step = Step(added="s", update="exact", predicted_bytes=1)
    monkeypatch.setattr(jobs, "savings", lambda *_: Waterfall(steps=(step,), effective_batch=4, positions=24))
    with monkeypatch.context() as patch:
        own = jobs.fit
        patch.setattr(jobs, "fit", lambda p, *a, **k: own(replace(p, objective=interrupted(p.objective, 3)), *a, **k))
        stopped = jieyue(*flags)
    assert stopped.returncode == 130 and "--resume goes on from there" in " ".join(stopped.stdout.split()), (
        stopped.stderr
    )
    assert not (tmp_path / "run" / "model.safetensors").exists()
    other = jieyue(*flags, "--seed", "1", "--resume")
    assert other.returncode == 2 and "expected the same" in other.stderr
    done = jieyue(*flags, "--resume")
    assert done.returncode == 0 and (tmp_path / "run" / "model.safetensors").is_file(), done.stderr


def test_a_dialogue_run_goes_on_with_its_own_tokens_alone(tmp_path, monkeypatch):
    """Resumed on the same file, nothing is tokenised again; on one that changed, it is refused, though it has as many rows."""
    file, folder = tmp_path / "talks.jsonl", tmp_path / "run"
    file.write_text("\n".join(json.dumps([f"q {n}", f"a {n}"]) for n in range(400)), encoding="utf-8")
    with pytest.raises(Interrupted):
        trained("chat", folder, data=[file], at=5)
    with monkeypatch.context() as patch:
        patch.setattr("jieyue.tasks.chat.rows.encode_talks", None)
        assert trained("chat", folder, data=[file], resume=True)
    file.write_text(file.read_text(encoding="utf-8").replace("a 7", "a 8"), encoding="utf-8")
    with pytest.raises(InputError, match=r"resume: tokens is '\w{16}', but the interrupted run had '\w{16}'"):
        trained("chat", folder, data=[file], resume=True)
