"""``verify update``: exact settings are found equal, transformers' accumulation and a mean of means are not."""

import math

import pytest
import torch
from transformers import AlbertConfig, AlbertForMaskedLM, BertConfig, BertForMaskedLM

from jieyue.bench import equality
from jieyue.bench.equality import SETTINGS, Equality, verify_update, without_dropout
from jieyue.bench.verify import verify
from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.objective import token_loss

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def objective(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return token_loss(model(**inputs).logits, batch["labels"])


def mean_of_means(model, batch):
    """The broken twin: each piece counts as one, however many labels it has."""
    tally = objective(model, batch)
    return Tally(tally.mean(), 1)


def batch(rows=6, length=10):
    ids = torch.randint(5, 40, (rows, length))
    labels = torch.full_like(ids, -100)
    for row in range(rows):
        labels[row, : 1 + row] = ids[row, : 1 + row]  # ragged
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def check(model, objective, *settings):
    found = verify_update(model, objective, batch(), micro_batch=2, settings=settings, dtype=torch.float64)
    return dict(zip(settings, found.settings, strict=True))


def test_exact_settings_are_equal_and_transformers_is_not():
    found = check(BertForMaskedLM(BertConfig(**SIZES)), objective, *(set(SETTINGS) - {"processes"}))
    for name in ("accumulation", "checkpointing", "attention"):
        assert found[name].equal and found[name].largest < 1e-12, found[name]
    assert "not an ALBERT" in found["unsharing"].verdict and not found["unsharing"].equal
    plain = found["transformers"]
    assert not plain.equal and plain.ratio > 2 and plain.cosine < 0.999
    assert "times as long, turned by" in plain.verdict


@pytest.mark.parametrize("recipe", ["read", "classify", "mlm", "title"])
def test_transformers_is_given_the_labels_that_its_own_loss_takes(recipe, monkeypatch):
    """One row a piece, as many labels in each: then nothing but our layout of the labels could turn the gradient."""
    given = []
    own = equality.trainer_gradients
    monkeypatch.setattr(
        equality, "trainer_gradients", lambda model, batch, rows: given.append(batch) or own(model, batch, rows)
    )
    model = "bert-tiny" if recipe == "classify" else "tiny"
    found = verify("update", model, recipe=recipe, rows=3, micro_batch=1, settings=("transformers",), dtype="float64")
    assert found.settings[0].cosine > 0.8, found.settings[0].verdict
    labels = given[0]["labels"]
    assert labels.shape == (given[0]["input_ids"].shape if recipe != "classify" else (3,))
    assert "places" not in given[0]


def test_transformers_is_left_out_where_its_loss_is_another():
    """Dialogues that share rows are kept apart by a mask that a plain Trainer never sees: no verdict about it."""
    found = verify("update", "tiny", recipe="chat", rows=3, micro_batch=1, settings=("accumulation", "transformers"))
    assert found.settings[0].equal and "expected the recipe's" in found.settings[1].verdict


def test_unsharing_is_the_sum_of_its_copies():
    found = check(AlbertForMaskedLM(AlbertConfig(**SIZES, embedding_size=8)), objective, "unsharing")
    assert found["unsharing"].largest < 1e-12 and found["unsharing"].equal


@pytest.mark.slow
def test_two_processes_are_as_one():
    found = check(BertForMaskedLM(BertConfig(**SIZES)), objective, "processes")
    assert found["processes"].largest < 1e-12


def test_a_mean_of_means_is_another_update():
    found = check(BertForMaskedLM(BertConfig(**SIZES)), mean_of_means, "accumulation")
    assert not found["accumulation"].equal and "another update" in found["accumulation"].verdict


def test_the_model_stays_as_it_is_and_mistakes_are_refused():
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verify_update(model, objective, batch(), micro_batch=3, settings=("accumulation",))
    assert not model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="settings of accumulation"):
        verify_update(model, objective, batch(), micro_batch=3, settings=("accumulate",))
    with pytest.raises(InputError, match="fewer than all"):
        verify_update(model, objective, batch(), micro_batch=6)


def test_no_dropout_is_left():
    model = without_dropout(BertForMaskedLM(BertConfig(**SIZES))).train()
    ids = batch()["input_ids"]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_verdicts():
    scaled = Equality(setting="x", ratio=4.0, cosine=1.0)
    assert scaled.verdict == "another update: 4 times as long, in the same direction"
    assert Equality(setting="x", ratio=1.0, cosine=math.cos(0.1)).verdict.endswith("turned by 5.7 degrees")
