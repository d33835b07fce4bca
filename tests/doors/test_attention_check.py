"""Entropies and losses of other attentions in a checkpoint, against entropies computed by hand."""

import math

import pytest
import torch
from attention_models import inputs, make

import jieyue
from jieyue.attention.scoring import Scoring
from jieyue.hf.attention import attention_of
from jieyue.hf.attention_check import entry_weights, verify_attention
from jieyue.hf.entries import parse_entry
from jieyue.linear import attend_hybrid, attend_linear, attend_window

ENTRIES = ["linear(elu)", "linear(taylor2)", "local(3)+linear(elu)", "linear(cosine, window=4)", "local(5)"]


def batches(name, labels=True):
    torch.manual_seed(7)
    ids, mask = inputs(21)
    batch = {"input_ids": ids, "attention_mask": mask}
    return [batch | ({"labels": ids.masked_fill(mask == 0, -100)} if labels else {}) for _ in range(2)]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_model_is_measured_and_left_as_it_was(name):
    model = make(name)
    ids, mask = inputs(21)
    before = model(ids, attention_mask=mask).logits
    found = verify_attention(model, batches(name), ENTRIES)
    assert torch.equal(model(ids, attention_mask=mask).logits, before) and not attention_of(model)
    assert [row.name for row in found.rows] == ["softmax", *ENTRIES]
    assert len(found.layers) == 2 and (found.num_rows, found.num_labels > 0) == (4, True)
    for row in found.rows:
        for entropy, most in zip(row.entropies, found.uniform, strict=True):
            assert 0 <= entropy <= most + 1e-9
    softmax, linear = found.rows[:2]
    jieyue.use(model, attention="linear(elu)")
    causal = name != "bert"
    totals = labels = 0.0
    for batch in batches(name):
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        wanted = batch["labels"]
        if causal:
            logits, wanted = logits[:, :-1], wanted[:, 1:]
        totals += torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
        labels += (wanted != -100).sum().item()
    assert linear.loss == pytest.approx(totals / labels, rel=1e-6)
    assert linear.loss_change == pytest.approx(linear.loss - softmax.loss, rel=1e-6)
    assert linear.loss_change != 0


def test_entropies_of_known_weights():
    """Keys that are all equal give uniform weights; a peaked softmax has almost no entropy, and the map much of it."""
    model = make("bert", num_hidden_layers=1)
    attention = model.bert.encoder.layer[0].attention.self
    with torch.no_grad():
        attention.key.weight.zero_()
    found = verify_attention(model, batches("bert", labels=False), ["linear(elu)"])
    real = inputs(21)[1].sum(1).double()
    uniform = float((real * real.log()).sum() / real.sum())
    for values in (found.uniform, found.rows[0].entropies, found.rows[1].entropies):
        assert values[0] == pytest.approx(uniform, rel=1e-6)
    assert found.rows[1].loss is None
    with torch.no_grad():
        attention.query.weight.normal_(std=20)
        attention.key.weight.copy_(attention.query.weight)
    found = verify_attention(model, batches("bert", labels=False), ["linear(elu)"])
    assert found.rows[0].entropies[0] < 0.1 * uniform < 0.5 * uniform < found.rows[1].entropies[0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("text", [*ENTRIES, "linear(softmax)"])
def test_the_weights_are_those_of_the_operators(text, causal):
    if text == "linear(softmax)" and causal:
        return
    q, k, v = (torch.randn(2, 3, 17, 8, dtype=torch.float64) for _ in range(3))
    mask = inputs(17)[1].bool()
    sees = mask[:, None, None].expand(2, 1, 17, 17)
    sees = sees.tril() if causal else sees
    weights = entry_weights(parse_entry(text), q, k, sees, Scoring(8**-0.5, 17))
    expected = {
        "linear(elu)": lambda: attend_linear(q, k, v, "elu", causal=causal, key_mask=mask),
        "linear(softmax)": lambda: attend_linear(q, k, v, "softmax", key_mask=mask),
        "linear(taylor2)": lambda: attend_linear(q, k, v, "taylor2", causal=causal, key_mask=mask),
        "local(3)+linear(elu)": lambda: attend_hybrid(q, k, v, "local(3)", "elu", causal=causal, key_mask=mask),
        "linear(cosine, window=4)": lambda: attend_window(q, k, v, "cosine", 4, causal=causal, key_mask=mask),
        "local(5)": lambda: jieyue.attend(q, k, v, "causal(local(5))" if causal else "local(5)", key_mask=mask),
    }[text]()
    assert torch.allclose(weights.double() @ v, expected, atol=1e-5 if text == "local(5)" else 1e-11)
    total = weights.sum(-1)
    assert ((total - 1).abs() < 1e-5).logical_or(total == 0).all()


def test_what_it_refuses_and_says():
    model = make("bert")
    with pytest.raises(ValueError, match="found no batch"):
        verify_attention(model, [])
    with pytest.raises(ValueError, match="did you mean 'elu'"):
        verify_attention(model, batches("bert"), ["linear(elo)"])
    text = verify_attention(model, batches("bert")).report().text()
    assert "linear(elu)" in text and "Δ loss" in text and "uniform" in text
    jieyue.use(model, attention="local(3)")
    with pytest.raises(ValueError, match=r"has the attention local\(3\), expected a model with its own"):
        verify_attention(model, batches("bert"))


def test_random_queries_and_keys_have_the_entropies_that_are_known():
    """n = 512, D = 64, normal: softmax 5.73 nats, elu + 1 6.233, double softmax 6.208, uniform log 512 = 6.238."""
    q, k = (torch.randn(1, 8, 512, 64, dtype=torch.float64) for _ in range(2))
    sees = torch.ones(1, 1, 512, 512, dtype=torch.bool)
    expected = {"full()": 5.73, "linear(elu)": 6.233, "linear(cosine)": 6.230, "linear(softmax)": 6.208}
    for text, entropy in expected.items():
        weights = entry_weights(parse_entry(text), q, k, sees, Scoring(64**-0.5, 512))
        assert torch.special.entr(weights.double()).sum(-1).mean().item() == pytest.approx(entropy, abs=0.02)
    assert math.log(512) == pytest.approx(6.238, abs=0.001)
