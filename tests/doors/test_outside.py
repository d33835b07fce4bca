"""BLOOM, MPT, Falcon and MPNet, which are outside transformers' interface: the law, caches, long rows in 16 bits, and off again."""

import copy

import pytest
import torch
import transformers
from attention_models import inputs

import jieyue
from jieyue.errors import InputError
from jieyue.hf import outside
from jieyue.hf.loading import load_model
from jieyue.hf.tiny import tiny_config, tiny_model

ALIBI = ["bloom", "mpt", "falcon-alibi"]
MODELS = ["mpnet", *ALIBI, "falcon", "falcon-grouped"]
MORE = {"falcon-alibi": {"alibi": True, "multi_query": False}, "falcon-grouped": {"new_decoder_architecture": True}}
OWN = {"bloom": 1e-6, "mpt": 1e-6}  # their eager attention rounds weights to float32


def build(name, **more):
    config = tiny_config(name.partition("-")[0])
    for key, value in (MORE.get(name, {}) | more).items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return tiny_model(config).double().eval()


def under_the_pattern(model, pattern, given):
    """The same model with the probe's softmax written out, under the pattern's mask as well."""
    keep = jieyue.attention.parse(pattern).mask
    jieyue.use(model, attention=pattern)
    for layer in layers(model):
        layer.called = True
        layer.watch = lambda module, q, k, v, ask, scale: dense(q, k, v, ask, scale, keep)
    found = model(**given)[0]
    jieyue.use(model, attention=None)
    return found


def layers(model):
    return [vars(module)["jieyue_attention"] for module in model.modules() if "jieyue_attention" in vars(module)]


def dense(q, k, v, ask, scale, keep):
    n, heads = q.shape[2], q.shape[1]
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * scale
    if ask.offset_bias is not None:
        i = torch.arange(n)
        scores = scores + ask.offset_bias[:, i[:, None] - i + n - 1]
    seen = keep(n, n) & ask.sees(n, n, q.device)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0) @ v


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_full_leaves_outputs_and_gradients(name, padding):
    model = build(name)
    twin = copy.deepcopy(model)
    if padding == "left" and name in OWN:
        model, twin = model.float(), twin.float()  # in float64 their own eager attention is NaN there
    ids, mask = inputs(17, padding=padding)
    jieyue.use(model, attention="full()")
    found, expected = (one(input_ids=ids, attention_mask=mask)[0][mask.bool()] for one in (model, twin))
    most = 1e-5 if found.dtype == torch.float32 else OWN.get(name, 1e-12)
    assert float((found - expected).detach().abs().max()) <= most
    for out in (found, expected):
        out.square().sum().backward()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e3 * most, msg=key)
    jieyue.use(model, attention=None)
    assert torch.equal(model(input_ids=ids, attention_mask=mask)[0][mask.bool()], expected)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("pattern", ["local(3)+atrous(5)", "first(2)+local(2)"])
@pytest.mark.parametrize("name", MODELS)
def test_patterns_keep_the_models_biases(name, pattern):
    model = build(name)
    ids, mask = inputs(19)
    given = {"input_ids": ids, "attention_mask": mask}
    expected = under_the_pattern(model, pattern, given)
    jieyue.use(model, attention=pattern)
    apart = (model(**given)[0] - expected)[mask.bool()].abs().max()
    assert float(apart) <= 1e-11


@pytest.mark.parametrize("attention", ["full()", "first(2)+local(3)"])
@pytest.mark.parametrize("name", [*ALIBI, "falcon"])
def test_caches_and_generate(name, attention):
    model = build(name).float()
    twin = copy.deepcopy(model)
    ids, mask = inputs(15, padding="left")
    given, more = (
        {"input_ids": ids, "attention_mask": mask},
        {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False},
    )
    jieyue.use(model, attention=attention)
    written = model.generate(**given, **more)
    assert torch.equal(written, model.generate(**given, **more, use_cache=False))
    if attention == "full()":
        assert torch.equal(written, twin.generate(**given, **more))
    assert torch.equal(
        model.generate(**given, **more, num_beams=2), model.generate(**given, **more, num_beams=2, use_cache=False)
    )


@pytest.mark.parametrize("name", ALIBI)
def test_a_rounded_bias_over_long_rows(name):
    """Falcon's bias is a bfloat16 number at any dtype, BLOOM's one of the model's; MPT's is float32. All are met in 16 bits."""
    model = build(name, **{"max_position_embeddings": 700, "max_seq_len": 700})
    ids = torch.randint(3, 90, (1, 600), generator=torch.Generator().manual_seed(0))
    true = model(ids)[0]
    found = {}
    for own in (False, True):
        twin = copy.deepcopy(model).bfloat16()
        if own:
            jieyue.use(twin, attention="full()")
        found[own] = float((twin(ids)[0].double() - true).detach().pow(2).mean())
    assert found[True] <= 1.5 * found[False]
    if name == "falcon-alibi":  # to the last bit, where offsets alone are not
        jieyue.use(model, attention="full()")
        assert float((model(ids)[0] - true).detach().abs().max()) <= 1e-12


def test_a_bias_in_columns_is_exact(monkeypatch):
    """In every dtype; the broken twin has one number of 16 bits for a bias of 24."""
    torch.manual_seed(0)
    bias = -torch.rand(2, 3, 9) * 900
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 9, 8)

    def error(dtype):
        wide = [x.to(dtype) for x in (q, k)]
        found = torch.matmul(
            *[x.double() if at == 0 else x.double().mT for at, x in enumerate(outside.with_key_bias(*wide, bias, 3.7))]
        )
        exact = wide[0].double() @ wide[1].double().mT + 3.7 * bias.double()[:, :, None]
        return float((found - exact).abs().max())

    assert error(torch.float64) < 1e-11 and error(torch.float32) < 1e-9 and error(torch.bfloat16) < 0.05
    monkeypatch.setattr(outside, "_PARTS", 1)
    assert error(torch.bfloat16) > 1


@pytest.mark.parametrize("name", ["bloom", "falcon-alibi"])
def test_holes_in_the_padding_are_refused(name):
    model = build(name)
    jieyue.use(model, attention="full()")
    ids, mask = inputs(9)
    with pytest.raises(InputError, match="a hole"):
        model(input_ids=ids, attention_mask=mask.index_fill(1, torch.tensor([3]), 0))
    jieyue.use(model, attention=None)
    model(input_ids=ids, attention_mask=mask.index_fill(1, torch.tensor([3]), 0))


def test_what_cannot_be_honoured_is_refused(monkeypatch):
    for name in ("mpnet", *ALIBI):
        with pytest.raises(InputError, match="only exact softmax"):
            jieyue.use(build(name), attention="linear(elu)")
    config = build("falcon-alibi").config
    eager = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with pytest.raises(InputError, match="twice"):
        jieyue.use(eager, attention="full()")
    model = build("bloom")
    jieyue.use(model, attention="full()")
    with pytest.raises(InputError, match="output_attentions"):
        model(inputs(9)[0], output_attentions=True)
    monkeypatch.setattr(type(model.transformer.h[0].self_attention), "forward", lambda self, hidden_states, other: None)
    with pytest.raises(InputError, match="takes hidden_states, other, expected"):
        jieyue.use(build("bloom"), attention="full()")


@pytest.mark.parametrize("name", ["bloom", "mpnet", "falcon"])
def test_a_saved_model_comes_back_through_our_loading_alone(name, tmp_path):
    """transformers would run it without our forward: it is refused there, ``import jieyue.hf`` or not."""
    model = build(name)
    jieyue.use(model, attention="local(4)")
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, "masked-lm" if name == "mpnet" else "causal-lm").double().eval()
    ids, mask = inputs(9)
    given = {"input_ids": ids, "attention_mask": mask}
    assert torch.allclose(again(**given)[0][mask.bool()], model(**given)[0][mask.bool()], atol=1e-5)
    assert len(layers(again)) == 2
    with pytest.raises(ValueError, match=r"jieyue\.load"):
        type(model).from_pretrained(tmp_path)
    jieyue.use(again, attention=None)
    again.save_pretrained(tmp_path / "plain")
    type(model).from_pretrained(tmp_path / "plain")
