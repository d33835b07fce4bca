"""The Trainer door: one step is one effective batch; resume is bitwise, Ctrl-C and out-of-memory lose nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from jieyue.budget import Plan
from jieyue.errors import InputError
from jieyue.hf.optimizers import make_optimizer
from jieyue.hf.trainer import EffectiveBatchTrainer, Interrupted, Work, training_arguments
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import token_loss

ROWS = 13


def model(dropout=0.1):
    torch.manual_seed(7)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForMaskedLM(BertConfig(vocab_size=17, max_position_embeddings=16, **sizes, **drops))


def rows():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 17, (3 + index % 6,), generator=generator) for index in range(ROWS)]


def collate(chosen):
    ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.where(ids > 4, ids, -100)}


def objective(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return token_loss(logits, batch["labels"])


def batches(steps=6, size=5):
    generator = torch.Generator().manual_seed(3)
    return [torch.randperm(ROWS, generator=generator)[: size - step % 2].tolist() for step in range(steps)]


def trainer(
    folder, *, dropout=0.1, micro_batch=2, objective=objective, steps=6, progress=None, callbacks=(), **options
):
    work = Work(objective=objective, rows=rows(), collate=collate, batches=batches(steps), micro_batch=micro_batch)
    options = {"learning_rate": 1e-2, "warmup_steps": 2, "seed": 11} | options
    arguments = training_arguments(folder, steps=steps, **options)
    return EffectiveBatchTrainer(model(dropout), arguments, work, progress=progress, callbacks=callbacks)


def weights(trained):
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_is_the_undivided_batch(tmp_path):
    """Against a plain hand-written loop over whole batches: same losses, same weights, whatever the micro-batch."""
    trained = trainer(tmp_path, dropout=0.0, micro_batch=2)
    output = trained.train()
    reference = model(0.0).train()
    arguments = trained.args
    optimizer = make_optimizer(reference, arguments)
    losses, total, weight = [], 0.0, 0
    for step, batch in enumerate(batches()):
        tally = objective(reference, collate([rows()[row] for row in batch]))
        tally.mean().backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), arguments.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(step / 2, (6 - step) / 4)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(tally.mean().item())
        total, weight = total + tally.total.item(), weight + int(tally.weight)
    for name, value in reference.state_dict().items():
        assert torch.allclose(trained.model.state_dict()[name], value, rtol=2e-5, atol=2e-6), name
    logged = [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-5)
    assert output.training_loss == pytest.approx(total / weight, rel=1e-5)  # not the mean of the steps' means
    assert output.training_loss != pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_resume_is_bitwise(tmp_path):
    whole = trainer(tmp_path / "whole", save_steps=4, logging_steps=3)
    whole.train()
    resumed = trainer(tmp_path / "resumed", save_steps=4, logging_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.state.global_step == 6 and equal(weights(whole), weights(resumed))
    assert [e["loss"] for e in whole.state.log_history if "loss" in e] == [
        e["loss"] for e in resumed.state.log_history if "loss" in e
    ]
    assert not list(tmp_path.rglob(".*partial"))
    fresh = trainer(tmp_path / "fresh")
    fresh.train(resume_from_checkpoint=True)  # nothing there yet: from the start
    assert equal(weights(whole), weights(fresh))


def interrupting(at, seen):
    """An objective during whose ``at``-th call the user presses Ctrl-C."""

    def run(model, batch):
        seen.append(1)
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, batch)

    return run


@pytest.fixture
def terminal():
    """Ctrl-C as at a terminal: a process started in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_leaves_a_checkpoint_that_continues(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    stopped = trainer(tmp_path / "run", objective=interrupting(8, []))
    with pytest.raises(Interrupted) as caught:
        stopped.train()
    assert caught.value.checkpoint == tmp_path / "run" / "checkpoint-2"  # in the third step's middle
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = trainer(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert equal(weights(whole), weights(resumed))
    first = trainer(tmp_path / "first", objective=interrupting(1, []))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = trainer(tmp_path / "first")
    resumed.train(resume_from_checkpoint=True)
    assert equal(weights(whole), weights(resumed))


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_outside_the_passes_waits_for_the_update(tmp_path):
    pressed = []

    def progress(now):
        if now.step == 2 and not pressed:
            pressed.append(os.kill(os.getpid(), signal.SIGINT))

    stopped = trainer(tmp_path / "run", progress=progress)
    with pytest.raises(Interrupted) as caught:
        stopped.train()
    assert caught.value.checkpoint is not None and stopped.state.global_step == 2
    whole = trainer(tmp_path / "whole")
    whole.train()
    resumed = trainer(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert equal(weights(whole), weights(resumed))


def test_a_smaller_micro_batch_is_kept_in_the_checkpoint(tmp_path):
    sizes = []

    def small(model, batch):
        sizes.append(len(batch["labels"]))
        if len(batch["labels"]) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return objective(model, batch)

    plan = Plan(effective_batch=5, micro_batch=5)
    halved = trainer(tmp_path / "halved", objective=small, micro_batch=plan, save_steps=3)
    with pytest.warns(UserWarning, match="pieces of 2 rows"):
        halved.train()
    assert sizes[0] == 5 and max(sizes[1:]) == 2 and halved.micro.rows == 2
    straight = trainer(tmp_path / "straight", micro_batch=2)
    straight.train()
    assert equal(weights(halved), weights(straight))
    sizes.clear()
    resumed = trainer(tmp_path / "halved", objective=small, micro_batch=plan)
    resumed.train(resume_from_checkpoint=str(tmp_path / "halved" / "checkpoint-3"))
    assert max(sizes) == 2 and resumed.micro.halvings == 1 and equal(weights(resumed), weights(straight))


def test_trimmed_and_checkpointed_runs_agree(tmp_path):
    plain = trainer(tmp_path / "plain", dropout=0.0)
    plain.train()
    plan = Plan(effective_batch=5, micro_batch=3, checkpointing=True)
    other = trainer(tmp_path / "other", dropout=0.0, micro_batch=MicroBatch(plan, mask="attention_mask", tokens=16))
    other.train()
    for name, value in weights(plain).items():
        assert torch.allclose(value, weights(other)[name], rtol=1e-4, atol=1e-5), name


def test_progress_and_silence(tmp_path, capfd):
    told = []
    trainer(tmp_path, progress=told.append).train()
    assert [now.step for now in told] == [1, 2, 3, 4, 5, 6] and told[-1].remaining_seconds == 0
    assert all(now.tokens_per_second > 0 and now.loss > 0 and now.steps == 6 and now.micro_batch == 2 for now in told)
    out, _ = capfd.readouterr()
    assert out == ""


def test_checkpoints_are_rotated_and_refuse_other_data(tmp_path):
    run = trainer(tmp_path, save_steps=1, save_total_limit=2)
    run.train()
    assert sorted(path.name for path in tmp_path.glob("*")) == ["checkpoint-5", "checkpoint-6"]
    with pytest.raises(InputError, match="other rows or batches"):
        trainer(tmp_path, steps=7).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-6" / "jieyue_training.json").unlink()
    with pytest.raises(InputError, match="a checkpoint written by this trainer"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"gradient_accumulation_steps": 2}, "set micro_batch instead"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "save_steps": 1}, "load_best_model_at_end"),
        ({"max_steps": 5}, "max_steps"),
        ({"fsdp": "full_shard"}, "would run DDP in its place"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "version 1, expected version 2"),
    ],
)
def test_refusals(tmp_path, options, found, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    before = set(os.environ)
    try:
        with pytest.raises(InputError, match=found):
            trainer(tmp_path, **options)
    finally:
        for name in set(os.environ) - before:  # transformers sets FSDP variables, which later runs would read
            monkeypatch.delenv(name)


def test_record_is_plain_json(tmp_path):
    trainer(tmp_path).train()
    record = json.loads((tmp_path / "checkpoint-6" / "jieyue_training.json").read_text(encoding="utf-8"))
    assert record["micro_batch"] == 2 and len(record["batches"]) == 16


def test_plain_transformers_accumulation_differs(tmp_path):
    """The broken twin: what transformers' own accumulation does to this head."""
    from transformers import Trainer

    def gradient(run):
        net = model(0.0)
        net.zero_grad()
        run(net)
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    batch = collate(rows()[:4])
    whole = gradient(lambda net: objective(net, batch).mean().backward())
    ours = gradient(lambda net: accumulate(objective, net, batch, micro_batch=1))
    assert torch.allclose(ours, whole, rtol=1e-4, atol=1e-6)
    caught = []

    class Caught(Trainer):
        def _clip_grad_norm(self, model):
            caught.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
            return super()._clip_grad_norm(model)

    arguments = training_arguments(
        tmp_path, steps=1, gradient_accumulation_steps=4, per_device_train_batch_size=1, save_strategy="no"
    )
    arguments.train_sampling_strategy = "sequential"
    theirs = Caught(model(0.0), arguments, data_collator=collate, train_dataset=rows()[:4])
    theirs.train()
    assert caught[0].norm() > 2 * whole.norm()


def test_evaluation_counts_every_row_once_and_disturbs_nothing(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    work = Work(objective=objective, rows=rows(), collate=collate, batches=batches(), micro_batch=2)
    options = {"learning_rate": 1e-2, "warmup_steps": 2, "seed": 11, "eval_strategy": "steps", "eval_steps": 2}
    arguments = training_arguments(tmp_path / "evaluated", steps=6, **options)
    evaluated = EffectiveBatchTrainer(model(), arguments, work, held_out=rows()[:7])
    evaluated.train()
    assert equal(weights(whole), weights(evaluated))
    logged = [entry for entry in evaluated.state.log_history if "eval_loss" in entry]
    net = evaluated.model.eval()
    tally = objective(net, collate(rows()[:7]))
    assert len(logged) == 3 and logged[-1]["eval_loss"] == pytest.approx(float(tally.mean()), rel=1e-5)
    assert logged[-1]["eval_labels"] == int(tally.weight)
    with pytest.raises(InputError, match="held_out=rows"):
        trainer(tmp_path / "none").evaluate()


def test_two_processes_give_the_same_update(tmp_path):
    """torchrun with gloo, ragged and empty shares, an out-of-memory on one rank: as one process, in float64."""
    script = Path(__file__).with_name("two_processes.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, script, tmp_path, "5"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    together = torch.load(tmp_path / "out.pt", weights_only=True)
    assert together["rows"] == 1  # the second process ran out of memory with two, and both went down together
    single = trainer_alone(tmp_path / "alone")
    for name, value in single.model.state_dict().items():
        assert value.dtype == torch.float64 or not value.is_floating_point()
        assert torch.allclose(together["weights"][name], value, rtol=1e-12, atol=1e-12), name
    logged = [entry["loss"] for entry in single.state.log_history if "loss" in entry]
    assert together["losses"] == pytest.approx(logged, rel=1e-12)
    assert together["held_out"] == pytest.approx(single.held_out, rel=1e-12)
    labels = collate(rows()[:7])["labels"]
    assert together["held_out"]["eval_labels"] == int((labels != -100).sum())  # seven rows on two ranks, none twice


def trainer_alone(folder):
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        from two_processes import run
    finally:
        sys.path.pop(0)
    return run(folder, 5)


@pytest.mark.gpu
def test_sharded_processes_give_the_same_update(tmp_path):
    """FSDP2 through the Trainer on as many GPUs as there are, at most two: as one process without, in float64."""
    script, count = Path(__file__).with_name("sharded_process.py"), min(2, torch.cuda.device_count())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    done = subprocess.run([*launch, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    together = torch.load(tmp_path / "out.pt", weights_only=True)
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        from sharded_process import run
    finally:
        sys.path.pop(0)
    single, watched = run(tmp_path / "alone", "cpu")
    assert not any(watched.sharded) and len(watched.sharded) == 4
    for name, value in single.model.named_parameters():
        assert torch.allclose(together[name], value, rtol=1e-10, atol=1e-10), name
