"""What a user of transformers' Trainer brings: datasets, sets to evaluate, metrics, predictions, best checkpoints, damaged ones."""

import json
import shutil

import pytest
import torch
from test_trainer import batches, collate, equal, model, objective, rows, weights
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
    TrainingArguments,
)

from jieyue.errors import InputError
from jieyue.hf.checkpoints import checkpoints_of, intact_checkpoint, keep_newest
from jieyue.hf.head_loss import head_loss
from jieyue.hf.trainer import EffectiveBatchTrainer, Work, training_arguments
from jieyue.hf.unsharing import Unsharing


def make(folder, *, steps=6, held_out=None, callbacks=(), optimizers=(None, None), changes=None, **options):
    settings = {"objective": objective, "rows": rows(), "collate": collate, "batches": batches(steps), "micro_batch": 2}
    options = {"learning_rate": 1e-2, "seed": 11} | options
    return EffectiveBatchTrainer(
        model(),
        training_arguments(folder, steps=steps, **options),
        Work(**settings | (changes or {})),
        held_out=held_out,
        callbacks=callbacks,
        optimizers=optimizers,
    )


class Worse(EffectiveBatchTrainer):
    """Every evaluation is worse than the one before."""

    count = 0

    def evaluate(self, *args, **kwargs):
        self.count += 1
        found = {"eval_loss": float(self.count)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_checkpoint_stays_and_is_named_where_it_stands(tmp_path, limit):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": limit}
    options |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-2-backup").mkdir()
    work = Work(objective=objective, rows=rows(), collate=collate, batches=batches(), micro_batch=2)
    run = Worse(model(), training_arguments(tmp_path, steps=6, **options), work, held_out=rows()[:3])
    run.train()
    left = [path.name for path in checkpoints_of(tmp_path)]
    assert left == (["checkpoint-2", "checkpoint-6"] if limit == 2 else ["checkpoint-2"])
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-best").is_dir() and (tmp_path / "checkpoint-2-backup").is_dir()
    said = json.loads((tmp_path / left[-1] / "trainer_state.json").read_text())
    assert said["best_model_checkpoint"] == run.state.best_model_checkpoint


def test_checkpoints_that_may_go(tmp_path):
    for number in (2, 10, 4, 8, 6):
        (tmp_path / f"checkpoint-{number}").mkdir()
    keep_newest(tmp_path, 2, str(tmp_path / "checkpoint-4"))
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-4", "checkpoint-10"]
    keep_newest(tmp_path, 1, str(tmp_path / "checkpoint-4"))
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-4", "checkpoint-10"]
    keep_newest(tmp_path, None, None)
    assert len(checkpoints_of(tmp_path)) == 2
    keep_newest(tmp_path, 1, None)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-10"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run = make(folder, save_steps=2, save_total_limit=3)
    run.train()
    return folder, weights(run)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damaged_checkpoints_are_passed_over(finished, tmp_path, name, damage):
    source, expected = finished
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    shutil.rmtree(folder / "checkpoint-6")
    path = folder / "checkpoint-4" / name
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(InputError, match=rf"{name} {damage}.*resume from an older one"):
        make(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    with pytest.warns(UserWarning, match="trying the one before"):
        assert not Unsharing(print, 3, folder, True).done  # a change after step 3 is still to come
    run = make(folder, save_total_limit=3)
    with pytest.warns(UserWarning, match=rf"{name} {damage}.*trying the one before"):
        run.train(resume_from_checkpoint=True)
    assert equal(weights(run), expected)
    shutil.rmtree(folder / "checkpoint-6")
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "checkpoint-2" / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="missing"):
        intact_checkpoint(folder)


def test_a_checkpoint_of_the_model_alone_is_no_place_to_resume(tmp_path):
    make(tmp_path, save_only_model=True).train()
    with pytest.raises(InputError, match="no optimizer state"):
        make(tmp_path).train(resume_from_checkpoint=True)


def test_rows_that_changed_are_refused_on_resume(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    changed = rows()
    changed[3] = changed[3].flip(0)
    assert not torch.equal(changed[3], rows()[3])
    with pytest.raises(InputError, match="other rows or batches"):
        make(folder, changes={"rows": changed}).train(resume_from_checkpoint=str(folder / "checkpoint-4"))


class Averaged(torch.optim.SGD):
    """As schedule-free optimizers do it: in evaluation the weights are the mean of the training weights so far."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.training, self.seen = True, {p: [] for p in params}

    def step(self, closure=None):
        assert self.training
        super().step(closure)
        for p, seen in self.seen.items():
            seen.append(p.detach().clone())

    def switch(self, training):
        for p, seen in self.seen.items() if training != self.training else ():
            if seen:
                p.data.copy_(seen[-1] if training else torch.stack(seen).mean(0))
        self.training = training

    def train(self):
        self.switch(True)

    def eval(self):
        self.switch(False)


def test_optimizers_with_modes_are_evaluated_and_saved_in_theirs(tmp_path):
    run = make(tmp_path, held_out=rows()[:7], eval_strategy="steps", eval_steps=3, save_steps=6, max_grad_norm=0.0)
    inner = Averaged(list(run.model.parameters()), lr=0.5)
    run.optimizer = inner
    run.train()
    assert not inner.training
    means = {name: torch.stack(inner.seen[p]).mean(0) for name, p in run.model.named_parameters()}
    assert all(torch.allclose(p, means[name]) for name, p in run.model.named_parameters())
    saved = type(run.model).from_pretrained(tmp_path / "checkpoint-6")
    assert all(torch.allclose(p, means[name]) for name, p in saved.named_parameters())
    logged = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry][-1]
    tally = objective(saved.eval(), collate(rows()[:7]))
    assert logged == pytest.approx(float(tally.mean().detach()), rel=1e-5)
    assert len(inner.seen[next(run.model.parameters())]) == 6


def test_several_sets_metrics_and_predictions(tmp_path):
    def metrics(asked):
        right = asked.predictions.argmax(-1) == asked.label_ids
        return {"right": float(right[asked.label_ids != -100].mean())}

    work = Work(objective=objective, rows=rows(), collate=collate, batches=batches(), micro_batch=2)
    sets = {"few": rows()[:3], "more": rows()[3:]}
    run = EffectiveBatchTrainer(
        model(), training_arguments(tmp_path, steps=6), work, eval_dataset=sets, compute_metrics=metrics
    )
    found = run.evaluate()
    names = ("loss", "labels", "right")
    assert found.keys() == {f"eval_{one}_{name}" for one in sets for name in names}
    net = run.model.eval()
    whole = collate(sets["more"])
    logits = net(input_ids=whole["input_ids"], attention_mask=whole["attention_mask"]).logits
    tally = objective(net, whole)
    assert found["eval_more_loss"] == pytest.approx(float(tally.mean().detach()), rel=1e-5)
    asked = whole["labels"] != -100
    expected = (logits.argmax(-1) == whole["labels"])[asked].float().mean()
    assert found["eval_more_right"] == pytest.approx(float(expected))
    said = run.predict(sets["more"])
    assert said.predictions.shape == logits.shape and said.metrics["test_loss"] == found["eval_more_loss"]
    kept = whole["attention_mask"].bool()
    assert torch.allclose(torch.tensor(said.predictions)[kept], logits[kept], atol=1e-5)
    assert (said.label_ids == whole["labels"].numpy())[kept.numpy()].all()
    with pytest.raises(InputError, match="no rows"):
        run.predict([])


def test_batches_without_labels_are_left_out_where_asked(tmp_path):
    silent = rows()
    silent[0] = torch.tensor([1, 2, 3])  # tokens below 5 have no label
    changes = {"rows": silent, "batches": [[0], [1, 2], [0, 0], [3]], "non_finite": "skip"}
    run = make(tmp_path, steps=4, changes=changes)
    with pytest.warns(UserWarning, match="left out"):
        output = run.train()
    assert run.state.global_step == 4 and run.micro.skipped == 2 and output.training_loss > 0
    with pytest.raises(InputError, match="without any counted label"):
        run.evaluate(silent[:1])


def test_speeds_are_those_of_the_rows_that_were_seen(tmp_path):
    run = make(tmp_path, steps=4)
    metrics = run.train().metrics
    seen = sum(len(batch) for batch in batches(4))
    assert metrics["train_samples_per_second"] * metrics["train_runtime"] == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: found 0.1, expected 0.0"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"num_train_epochs": 7}, "num_train_epochs"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size"),
        ({"per_device_eval_batch_size": 2}, "per_device_eval_batch_size"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last"),
        ({"changes": {"rows": (row for row in rows())}}, "rows: found generator"),
    ],
)
def test_arguments_that_would_change_nothing_are_refused(tmp_path, options, found):
    with pytest.raises(InputError, match=found):
        make(tmp_path, **options)


class Watched(TrainerCallback):
    """The gradient before each update."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))


def classes(count=10):
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, 9, (count,), generator=generator)
    return [{"input_ids": torch.randint(1, 17, (int(n),), generator=generator), "labels": int(n) % 3} for n in lengths]


def padded(chosen):
    ids = nn.utils.rnn.pad_sequence([row["input_ids"] for row in chosen], batch_first=True)
    labels = torch.tensor([row["labels"] for row in chosen])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def test_a_dataset_and_a_collator_are_enough(tmp_path):
    """As transformers' Trainer is called: the update is the undivided batch's of per-device size x accumulation steps."""
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_labels": 3,
    }
    torch.manual_seed(0)
    config = BertConfig(vocab_size=17, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    net = BertForSequenceClassification(config)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    args = TrainingArguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2, max_grad_norm=0.0,
        train_sampling_strategy="sequential", report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    watched = Watched()
    run = EffectiveBatchTrainer(
        net, args, train_dataset=classes(), eval_dataset=classes(4), data_collator=padded, callbacks=[watched]
    )
    run.train()
    assert [len(batch) for batch in run.work.batches] == [4, 4, 2] * 2 and args.gradient_accumulation_steps == 2
    whole = BertForSequenceClassification(config)
    whole.load_state_dict(start)
    batch = padded(classes()[:4])
    whole(**batch).loss.backward()
    assert torch.allclose(watched.found[0], torch.cat([p.grad.flatten() for p in whole.parameters()]), atol=1e-6)
    assert run.evaluate()["eval_labels"] == 4
    assert run.predict(
        [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in classes(5)]
    ).predictions.shape == (5, 3)
    for wrong, found in (({}, "neither work= nor train_dataset="), ({"train_dataset": iter(())}, "train_dataset")):
        with pytest.raises(InputError, match=found):
            EffectiveBatchTrainer(net, args, **wrong)
    given = {"objective": head_loss, "rows": classes(), "collate": padded, "batches": [[0]], "micro_batch": 1}
    with pytest.raises(InputError, match=r"work= and data_collator="):
        EffectiveBatchTrainer(net, training_arguments(tmp_path, steps=1), Work(**given), data_collator=padded)


@pytest.mark.parametrize("kind", ["classes", "several", "regression", "causal", "span", "masked"])
def test_head_losses_are_the_heads_own(kind):
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 17,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    ids = torch.randint(1, 17, (4, 6))
    labels = torch.where(ids > 6, ids, -100)
    heads = {
        "classes": ("BertForSequenceClassification", {"num_labels": 3}, {"labels": torch.tensor([0, 2, 1, 1])}),
        "several": (
            "BertForSequenceClassification",
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            {"labels": torch.randint(0, 2, (4, 3)).float()},
        ),
        "regression": ("BertForSequenceClassification", {"num_labels": 1}, {"labels": torch.randn(4)}),
        "span": (
            "BertForQuestionAnswering",
            {},
            {"start_positions": torch.tensor([1, 2, 9, 0]), "end_positions": torch.tensor([2, 3, 9, 5])},
        ),
        "masked": ("BertForMaskedLM", {}, {"labels": labels}),
    }
    if kind == "causal":
        net = GPT2LMHeadModel(GPT2Config(vocab_size=17, n_embd=8, n_layer=1, n_head=2))
        batch = {"input_ids": ids, "labels": labels}
    else:
        name, settings, given = heads[kind]
        net = getattr(transformers, name)(BertConfig(**sizes, **settings))
        batch = {"input_ids": ids, **given}
    net.eval()
    assert torch.allclose(head_loss(net, batch).mean(), net(**batch).loss, rtol=1e-5)
    with pytest.raises(InputError, match="labels"):
        head_loss(net, {"input_ids": ids})


def test_the_real_schedule_free_optimizer(tmp_path):
    pytest.importorskip("schedulefree")
    options = {"optim": "schedule_free_adamw", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "save_steps": 6}
    run = make(tmp_path, held_out=rows()[:7], eval_strategy="steps", eval_steps=6, **options)
    run.train()
    saved = type(run.model).from_pretrained(tmp_path / "checkpoint-6").eval()
    assert all(torch.equal(p, dict(saved.named_parameters())[name]) for name, p in run.model.named_parameters())
    run.optimizer.train()
    assert not all(torch.equal(p, dict(saved.named_parameters())[name]) for name, p in run.model.named_parameters())
    logged = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry][-1]
    assert logged == pytest.approx(float(objective(saved, collate(rows()[:7])).mean().detach()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optim", [{}, {"optim": "sgd", "optim_args": "jieyue=muon"}, {"optim": "sgd", "optim_args": "jieyue=tiger"}]
)
def test_updates_in_the_backward_pass(tmp_path, optim):
    """The same weights as without, where nothing is clipped; a resumed run goes on to the same bits, clipped by the step before."""
    plain = make(tmp_path / "plain", changes={"micro_batch": 5}, max_grad_norm=0.0, **optim)
    plain.train()
    run = make(tmp_path / "run", changes={"micro_batch": 5, "in_backward": True}, max_grad_norm=0.0, **optim)
    run.train()
    for name, value in weights(plain).items():
        assert torch.allclose(value, weights(run)[name], atol=2e-6), name
    clipped = make(tmp_path / "clipped", changes={"micro_batch": 5, "in_backward": True}, save_steps=3, **optim)
    clipped.train()
    shutil.rmtree(tmp_path / "clipped" / "checkpoint-6")
    again = make(tmp_path / "clipped", changes={"micro_batch": 5, "in_backward": True}, save_steps=3, **optim)
    again.train(resume_from_checkpoint=True)
    assert equal(weights(again), weights(clipped))
    assert clipped.updates.clip.norm == again.updates.clip.norm > 0
    with pytest.raises(InputError, match="one piece"):
        make(tmp_path / "cut", changes={"in_backward": True}, **optim).train()
