"""Law of the vocabulary: the loss of chunks of positions, summed, is the loss of the logits that were never made."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from jieyue.errors import InputError
from jieyue.planning.measurement import measure_step
from jieyue.planning.prediction import TrainingStep, predict
from jieyue.tally import Tally
from jieyue.timer import peak_bytes
from jieyue.training.accumulation import accumulate
from jieyue.training.objective import token_loss
from jieyue.training.vocabulary_loss import model_vocabulary_loss, vocabulary_loss


def example(positions, hidden=5, vocabulary=11, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()  # noqa: E731
    labels = torch.randint(0, vocabulary, (positions,), generator=generator)
    labels[torch.rand(positions, generator=generator) < 0.3] = -100
    return make(positions, hidden), make(vocabulary, hidden), make(vocabulary), labels


def plain(hidden, weight, bias, labels, smoothing=0.0):
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum", label_smoothing=smoothing)


@settings(max_examples=60)
@given(
    positions=st.integers(1, 13),
    rows=st.integers(1, 14),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    with_bias=st.booleans(),
    frozen=st.sampled_from([None, "hidden", "weight"]),
    factor=st.sampled_from([1.0, -0.3]),
)
def test_chunks_equal_the_whole(positions, rows, smoothing, with_bias, frozen, factor):
    hidden, weight, bias, labels = example(positions)
    bias = bias if with_bias else None
    if frozen is not None:
        {"hidden": hidden, "weight": weight}[frozen].requires_grad_(False)
    asked = [t for t in (hidden, weight, bias) if t is not None and t.requires_grad]
    tally = vocabulary_loss(hidden, weight, labels, bias, smoothing=smoothing, chunk_bytes=rows * 11 * 8)
    reference = plain(hidden, weight, bias, labels, smoothing)
    assert tally.weight == (labels != -100).sum()
    assert torch.allclose(tally.total, reference, rtol=1e-13, atol=1e-13)
    found = torch.autograd.grad(tally.total * factor, asked)
    expected = torch.autograd.grad(reference * factor, asked)
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-12


def test_gradcheck_and_large_logits():
    hidden, weight, bias, labels = example(4)
    labels[0] = 3
    assert torch.autograd.gradcheck(
        lambda h, w, b: vocabulary_loss(h, w, labels, b, smoothing=0.2, chunk_bytes=200).total, (hidden, weight, bias)
    )
    huge = vocabulary_loss(hidden * 1e4, weight, labels, bias).total
    assert torch.allclose(huge, plain(hidden * 1e4, weight, bias, labels), rtol=1e-12)
    pruned = torch.where(torch.arange(11) == (labels.clamp(min=0)[0] + 1) % 11, -torch.inf, bias.detach())
    only = labels.where(torch.arange(4) == 0, torch.tensor(-100))
    assert torch.allclose(vocabulary_loss(hidden, weight, only, pruned).total, plain(hidden, weight, pruned, only))


def test_a_mean_of_chunk_means_is_not_the_loss():
    """The broken twin: chunks with other counts of labels, each averaged."""
    hidden, weight, bias, labels = example(12)
    labels[:4] = -100
    labels[0] = 1
    means = [vocabulary_loss(hidden[p], weight, labels[p], bias).mean() for p in (slice(0, 4), slice(4, 12))]
    whole = vocabulary_loss(hidden, weight, labels, bias).mean()
    assert abs(sum(means) / 2 - whole).item() > 1e-3


def test_backward_twice_and_without_gradients():
    hidden, weight, bias, labels = example(6)
    total = vocabulary_loss(hidden, weight, labels, bias).total
    first = torch.autograd.grad(total, hidden, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(total, hidden)[0], first)
    with torch.no_grad():
        assert not vocabulary_loss(hidden, weight, labels, bias).total.requires_grad
    assert torch.autograd.gradgradcheck(
        lambda h, w, b: vocabulary_loss(h, w, labels, b, smoothing=0.2, chunk_bytes=200).total, (hidden, weight, bias)
    )


def test_hooks_on_the_model_see_logits():
    """Remedies read the model's logits through a forward hook: they get logits, and the loss is the same."""
    model = BertForMaskedLM(BertConfig(**sizes(num_hidden_layers=1))).double().eval()
    ids, seen = torch.randint(0, 37, (2, 5)), []
    chunked = model_vocabulary_loss(model, {"input_ids": ids}, ids, smoothing=0.1)
    model.register_forward_hook(lambda module, given, out: seen.append(out.logits.shape))
    hooked = model_vocabulary_loss(model, {"input_ids": ids}, ids, smoothing=0.1)
    assert seen == [(2, 5, 37)] and torch.allclose(chunked.total, hooked.total, rtol=1e-12)
    assert chunked.weight == hooked.weight == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_good_as_plain(dtype):
    """Against float64: at most twice the error of the plain computation, logits and softmax in that dtype."""
    hidden, weight, bias, labels = example(64, 32, 200)
    exact = plain(hidden, weight, bias, labels)
    expected = torch.autograd.grad(exact, (hidden, weight))
    low = [t.detach().to(dtype).requires_grad_() for t in (hidden, weight, bias)]
    errors = {}
    for name, total in (
        ("ours", vocabulary_loss(low[0], low[1], labels, low[2], chunk_bytes=10 * 200 * 4).total),
        ("plain", plain(*low, labels)),
    ):
        found = torch.autograd.grad(total, low[:2])
        errors[name] = [((total - exact).abs() / exact).item()]
        errors[name] += [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    eps = torch.finfo(dtype).eps
    assert all(a <= 2 * b + 8 * eps for a, b in zip(errors["ours"], errors["plain"], strict=True)), errors


def test_autocast():
    hidden, weight, bias, labels = example(9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        tally = vocabulary_loss(hidden, weight, labels, bias)
        reference = token_loss(F.linear(hidden, weight, bias).float(), labels)
    assert torch.allclose(tally.total, reference.total, rtol=2e-2)
    tally.total.backward()
    assert weight.grad.dtype == torch.float32 and hidden.grad is not None


def test_the_peak_is_a_chunk():
    """Plain cross entropy holds three [P, V] tensors; ours the gradients of hidden and weight and one chunk."""
    positions, hidden_size, vocabulary, chunk = 512, 16, 4096, 2**18
    hidden, weight, bias, labels = example(positions, hidden_size, vocabulary, torch.float32)

    def ours():
        vocabulary_loss(hidden, weight, labels, bias, chunk_bytes=chunk).total.backward()

    def theirs():
        plain(hidden, weight, bias, labels).backward()

    peaks = {}
    for name, call in (("ours", ours), ("theirs", theirs)):
        call()
        peaks[name] = peak_bytes(call)
    gradients = 4 * (positions * hidden_size + vocabulary * hidden_size + vocabulary)
    assert peaks["ours"] <= 1.2 * (gradients + chunk)
    assert peaks["theirs"] >= 2 * 4 * positions * vocabulary


def sizes(**more):
    return {"vocab_size": 37, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8} | more


def models():
    layers = {"num_hidden_layers": 1}
    yield BertForMaskedLM(BertConfig(**sizes(**layers))), False
    yield AlbertForMaskedLM(AlbertConfig(**sizes(embedding_size=6, **layers))), False
    yield BertForMaskedLM(BertConfig(**sizes(tie_word_embeddings=False, **layers))), False
    yield GPT2LMHeadModel(GPT2Config(vocab_size=37, n_embd=8, n_head=2, n_layer=1, n_positions=16)), True


@pytest.mark.parametrize("number", range(4))
def test_models_with_tied_weights(number):
    torch.manual_seed(0)
    model, causal = list(models())[number]
    model = model.double().eval()
    ids = torch.randint(0, 37, (3, 7))
    labels = torch.where(torch.rand(3, 7) < 0.6, ids, -100)
    batch = {"input_ids": ids, "labels": labels}

    def chunked(model, batch):
        inputs = {"input_ids": batch["input_ids"]}
        return model_vocabulary_loss(model, inputs, batch["labels"], shift=causal, chunk_bytes=37 * 8 * 2)

    def whole(model, batch):
        logits, asked = model(input_ids=batch["input_ids"]).logits, batch["labels"]
        return token_loss(logits[:, :-1], asked[:, 1:]) if causal else token_loss(logits, asked)

    def gradients(objective):
        model.zero_grad()
        tally = accumulate(objective, model, batch, micro_batch=2)
        return tally, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    (ours, found), (theirs, expected) = gradients(chunked), gradients(whole)
    assert ours.total == pytest.approx(theirs.total, rel=1e-12) and ours.weight == theirs.weight
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-12
    assert model(input_ids=ids).logits.shape == (3, 7, 37)  # the output layer is back in its place


def test_its_peak_is_predicted():
    """The plan's tracer sees the chunks: predicted bytes are those of torch's allocator, and far below plain logits'."""
    sizes = {"vocab_size": 3000, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def example(rows, length):
        return {"input_ids": torch.zeros(rows, length, dtype=torch.long), "labels": torch.ones(rows, length).long()}

    def chunked(model, batch):
        return model_vocabulary_loss(model, {"input_ids": batch["input_ids"]}, batch["labels"], chunk_bytes=2**20)

    def whole(model, batch):
        return token_loss(model(input_ids=batch["input_ids"]).logits, batch["labels"])

    peaks = {}
    for objective in (chunked, whole):
        step = TrainingStep(
            build_model=lambda: BertForMaskedLM(config),
            objective=objective,
            example_batch=example,
            make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0),
            length=128,
        )
        cost = predict(step, effective_batch=8, micro_batch=4)
        model = BertForMaskedLM(config).train()
        optimizer = step.make_optimizer(model)
        accumulate(objective, model, example(4, 128), micro_batch=4)
        model.zero_grad()
        measured = measure_step(objective, model, example(8, 128), optimizer, micro_batch=4)
        assert cost.peak_bytes == pytest.approx(measured, rel=0.01)
        peaks[objective] = measured
    assert peaks[chunked] < 0.4 * peaks[whole]


def test_refusals():
    hidden, weight, bias, labels = example(4)
    with pytest.raises(InputError, match="labels"):
        vocabulary_loss(hidden, weight, labels[:3], bias)
    with pytest.raises(InputError, match="smoothing"):
        vocabulary_loss(hidden, weight, labels, bias, smoothing=1.0)
    with pytest.raises(InputError, match="output layer is nn"):
        model_vocabulary_loss(nn.Linear(2, 2), {}, labels)
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIDE.items()}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=37, d_model=8, **sides))
    ids = torch.randint(5, 37, (2, 6))
    with pytest.raises(InputError, match="changed after the output layer"):
        model_vocabulary_loss(bart, {"input_ids": ids}, ids)
    assert bart(input_ids=ids).logits.shape[-1] == 37


SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 8}


def test_tally_of_nothing():
    hidden, weight, bias, labels = example(3)
    tally = vocabulary_loss(hidden, weight, torch.full_like(labels, -100), bias)
    assert isinstance(tally, Tally) and tally.weight == 0 and float(tally.total) == 0
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(tally.total, (hidden, weight, bias)))
