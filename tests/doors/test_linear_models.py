"""Linear maps inside transformers' models equal the same models with the matrix of weights written out, padding included."""

import pytest
import torch
from attention_models import MODELS, inputs, make, twins
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import jieyue
from jieyue.hf.attention import attention_of
from jieyue.hf.loading import load_model

NAMES = {"elu": lambda x: torch.nn.functional.elu(x) + 1, "relu": torch.relu}
ENTRIES = ["linear(elu)", "linear(relu, window=5)", "local(4)+linear(elu)", "linear(elu),local(3)"]


def dense_attention(entry):
    """transformers' kind of attention function with all weights written out; the mask is four-dimensional and complete."""
    features = NAMES["relu" if "relu" in entry else "elu"]

    def forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        n = query.shape[2]
        d = torch.arange(n)[:, None] - torch.arange(n)
        sees = torch.ones(n, n, dtype=torch.bool) if attention_mask is None else attention_mask
        if getattr(module, "is_causal", True):
            sees = sees & (d >= 0)
        weights = features(query) @ features(key).mT
        if "window" in entry:
            sees = sees & (d.abs() <= 5)
        if entry.startswith("local"):
            weights = torch.where(d.abs() <= 4, (query @ key.mT * scaling).exp(), weights)
        weights = weights * sees
        out = weights @ value / weights.sum(-1, keepdim=True).clamp(min=1e-300)
        return out.transpose(1, 2).contiguous(), None

    return forward


def use_dense(model, entry):
    name = f"dense {entry}"
    AttentionInterface.register(name, dense_attention(entry))
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)


def result(model, ids, mask):
    """Logits of the tokens that count, and every gradient of a function of them."""
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    assert torch.allclose(found[0], expected[0], atol=1e-11)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        assert torch.allclose(found[1][name], grad, atol=1e-9), name


@pytest.mark.parametrize("entry", ENTRIES[:3])
@pytest.mark.parametrize("name", ["bert", "albert", "gpt2", "llama", "qwen3"])
def test_equals_the_matrix_of_weights(name, entry):
    model, twin = twins(name)
    model.config.use_cache = twin.config.use_cache = False
    jieyue.use(model, attention=entry)
    use_dense(twin, entry)
    ids, mask = inputs(padding="left" if MODELS[name][3] else "right")
    assert_same(result(model, ids, mask), result(twin, ids, mask))


def test_the_map_matters():
    """The broken twin: relu in the place of elu gives other logits."""
    model, twin = twins("llama")
    jieyue.use(model, attention="linear(relu)")
    use_dense(twin, "linear(elu)")
    ids, mask = inputs()
    assert (result(model, ids, mask)[0] - result(twin, ids, mask)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("entry", ENTRIES)
def test_checkpointing_recomputes_the_same(entry):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = make("llama").train()
        jieyue.use(model, attention=entry)
        if checkpointing:
            model.gradient_checkpointing_enable()
        found.append(result(model, *inputs()))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("entry", ENTRIES[:3])
def test_a_compiled_model_needs_no_graph_break(entry):
    model = make("gpt2", n_layer=1, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0).train()
    jieyue.use(model, attention=entry)
    ids, mask = inputs(12)
    plain = result(model, ids, mask)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    logits = compiled(ids, attention_mask=mask).logits[mask.bool()]
    logits.square().sum().backward()
    assert torch.allclose(logits, plain[0], atol=1e-11)
    assert torch.allclose(model.get_input_embeddings().weight.grad, plain[1]["transformer.wte.weight"], atol=1e-10)


def test_a_training_step_lowers_the_loss_and_generation_follows():
    """Train, save, load, generate: one small story through every door."""
    torch.manual_seed(0)
    model = make("llama").train()
    jieyue.use(model, attention="linear(elu),local(4)+linear(elu)")
    ids = torch.arange(3, 15).repeat(4, 3)  # a cycle to learn
    optimizer, losses = torch.optim.Adam(model.parameters(), 2e-2), []
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    written = model.eval().generate(ids[:1, :14], max_new_tokens=10, do_sample=False)
    assert torch.equal(written[0], ids[0, :24])


@pytest.mark.parametrize(
    "entry", ["linear(relu, window=5)", "local(4)+linear(elu)", "linear(taylor2),local(3)+linear(elu)"]
)
def test_saved_and_loaded(tmp_path, entry):
    model = make("gpt2")
    given = jieyue.use(model, attention=entry)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, "causal-lm").double()
    assert attention_of(again) == given
    ids, mask = inputs(9)
    assert torch.equal(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("linear(softmax)", "later keys would change"),
        ("linear(softmax, window=4)", "later keys would change"),
        ("local(3)+linear(softmax)", "later keys would change"),
        ("local(3)+linear(elu, window=4)", r"expected linear\(map\), linear\(map, window=w\) or local\(w\)\+linear"),
        ("linear(elu)+linear(relu)", r"expected linear\(map\)"),
        ("linear(elu, step=2)", r"expected linear\(map\)"),
        ("sparse(4)+linear(elu)", "no window around the query"),
        ("atrous(3)+linear(elu)", "no window around the query"),
    ],
)
def test_entries_that_cannot_be(entry, found):
    model = make("gpt2")
    with pytest.raises(ValueError, match=found):
        jieyue.use(model, attention=entry)
    assert not attention_of(model)


def test_a_linear_cache_cannot_take_tokens_back():
    model = make("llama")
    jieyue.use(model, attention="linear(elu)")
    ids, _ = inputs(9)
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="taking keys back by subtraction"):
        past.crop(-2)
