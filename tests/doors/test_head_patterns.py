"""A pattern for some key-value heads and another for the rest: the definition head by head, the cache, folders, and what is refused."""

import json

import pytest
import torch
from attention_models import inputs, make

import jieyue
from jieyue.errors import InputError
from jieyue.hf.attention import attention_engines, attention_of
from jieyue.hf.entries import HeadsEntry, parse_entry, split_layers
from jieyue.hf.loading import load_model
from jieyue.hf.masks import Ask

NEAR = "first(2)+local(3)"
HEADS = f"heads(0,2: full(), else: {NEAR})"  # not side by side, so that heads are copied
SIDE = f"heads(1: full(), else: {NEAR})"  # a view, and the rest a copy
MORE = {"num_key_value_heads": 3, "num_attention_heads": 6, "hidden_size": 48}


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def by_definition(entry, q, k, v, ask, shown=None):
    """Softmax under a mask written out for each head: queries are the last of the keys' tokens, first keys count from the kept."""
    groups, n, m = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    masks = []
    for head in range(k.shape[1]):
        pattern = (entry.named if head in entry.heads else entry.other).pattern
        masks += [pattern.mask(n, m, m - n)] * groups if shown is None else [shown(pattern)] * groups
    sees = torch.stack(masks)[None].expand(q.shape[0], -1, -1, -1)
    if ask.keys is not None:
        sees = sees & ask.keys[:, None, None]
    if ask.segments is not None:
        sees = sees & (ask.segments[:, None, :, None] == ask.segments[:, None, None])
    logits = q @ k.repeat_interleave(groups, 1).mT * q.shape[-1] ** -0.5
    if ask.softcap is not None:
        logits = ask.softcap * (logits / ask.softcap).tanh()
    if ask.offset_bias is not None:
        at = torch.arange(n)[:, None] - torch.arange(m) + m - 1
        logits = logits + ask.offset_bias[:, at]
    logits = logits.masked_fill(~sees, -torch.inf)
    if ask.sinks is not None:
        logits = torch.cat([logits, ask.sinks[:, None, None].expand(*logits.shape[:3], 1)], -1)
    weights = logits.softmax(-1).nan_to_num(0.0)[..., :m]
    return weights @ v.repeat_interleave(groups, 1)


ASKS = {
    "plain": lambda n: Ask(causal=True),
    "keys": lambda n: Ask(causal=True, keys=torch.arange(n).expand(2, n) < torch.tensor([[n], [n - 5]])),
    "segments": lambda n: Ask(causal=True, segments=(torch.arange(n) * 3 // n).expand(2, n)),
    "scoring": lambda n: Ask(causal=True, sinks=drawn(6), softcap=2.0, offset_bias=drawn(6, 2 * n - 1)),
}


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.parametrize("text", [HEADS, SIDE, "heads(1,2: atrous(3), else: local(2))"])
def test_each_head_wears_its_pattern(text, name):
    """Outputs and all gradients of the dense definition; the twin with the two groups swapped is far off."""
    torch.manual_seed(0)
    entry, n = parse_entry(text).causal(), 23
    q, k, v, ask = drawn(2, 6, n, 8), drawn(2, 3, n, 8), drawn(2, 3, n, 5), ASKS[name](23)
    given = [x for x in (q, k, v, ask.sinks, ask.offset_bias) if x is not None]

    def of_its_document(pattern):  # patterns with first keys count from each document's start
        return torch.block_diag(*[pattern.mask(c, c) for c in torch.bincount(ask.segments[0]).tolist()]).bool()

    shown = of_its_document if name == "segments" else None
    found, expected = entry.attend(q, k, v, ask), by_definition(entry, q, k, v, ask, shown)
    assert float((found - expected).detach().abs().max()) < 1e-12
    upstream = torch.randn_like(found)
    for own, other in zip(*(torch.autograd.grad(out, given, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)
    swapped = HeadsEntry(entry.heads, entry.other, entry.named)
    assert float((swapped.attend(q, k, v, ask) - expected).detach().abs().max()) > 1e-3
    rest = tuple(head for head in range(3) if head not in entry.heads)
    assert torch.equal(HeadsEntry(rest, entry.other, entry.named).attend(q, k, v, ask), found)


def test_gradcheck_and_fewer_queries_than_keys():
    torch.manual_seed(1)
    entry = parse_entry("heads(0: full(), else: first(1)+local(1))").causal()
    q, k, v = drawn(1, 2, 2, 2), drawn(1, 2, 4, 2), drawn(1, 2, 4, 1)
    ask = Ask(causal=True)
    assert torch.autograd.gradcheck(lambda *given: entry.attend(*given, ask), (q, k, v))
    assert float((entry.attend(q, k, v, ask) - by_definition(entry, q, k, v, ask)).detach().abs().max()) < 1e-12


def test_the_text_is_kept():
    assert str(parse_entry(" heads( 2,0 :full(),else : first(2) + local(3) )")) == HEADS
    for text in (HEADS, SIDE, "heads(11: causal(local(2)), else: band(2, 0, 8))"):
        assert str(parse_entry(str(parse_entry(text)))) == str(parse_entry(text))
    assert split_layers(f"{HEADS},full()") == [HEADS, "full()"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("heads(full(), else: local(2))", "numbers of key-value heads"),
        ("heads(0: full())", "numbers of key-value heads"),
        ("heads(0: full(), else: local(2))+local(3)", "found"),
        ("heads(0,0: full(), else: local(2))", "a head twice"),
        ("heads(0: linear(elu), else: local(2))", "heads with a linear map"),
        ("heads(0: full(), else: locl(2))", "did you mean local"),
        ("heads(3: full(), else: local(2))", r"3 key-value heads, expected some heads of 0 to 2, not all"),
        ("heads(0,1,2: full(), else: local(2))", "not all"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_is_as_it_was(text, says):
    model, ids = make("llama", **MORE), inputs(9)[0]
    before = model(ids).logits
    with pytest.raises(InputError, match=says):
        jieyue.use(model, attention=text)
    assert torch.equal(model(ids).logits, before) and not attention_of(model)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_model_under_head_patterns(padding):
    """Equal patterns for all heads change nothing against one pattern; unequal ones lie between, and padding is nobody's key."""
    model, (ids, mask) = make("llama", **MORE), inputs(21, padding)
    kept = mask.bool()
    jieyue.use(model, attention=NEAR)
    plain = model(ids, attention_mask=mask).logits
    jieyue.use(model, attention=f"heads(0,2: {NEAR}, else: {NEAR})")
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[kept], plain[kept], rtol=0, atol=1e-12)
    jieyue.use(model, attention=HEADS)
    found = model(ids, attention_mask=mask).logits
    assert float((found - plain)[kept].detach().abs().max()) > 1e-3
    alone = model(ids[1:, mask[1].bool()]).logits
    torch.testing.assert_close(found[1:, mask[1].bool()], alone, rtol=0, atol=1e-6)  # rotary angles are float32
    assert {row[1] for row in attention_engines(model)} == {HEADS}


def test_generating_is_the_whole_pass_and_the_cache_holds_what_each_head_needs(tmp_path):
    model, (ids, mask), text = make("llama", **MORE), inputs(20, "left"), f"{HEADS},{SIDE}"
    jieyue.use(model, attention=text)
    given = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = model.generate(ids, **given)
    assert torch.equal(cached, model.generate(ids, **given, use_cache=False))
    beams = given | {"num_beams": 2}
    assert torch.equal(model.generate(ids, **beams), model.generate(ids, **beams, use_cache=False))
    row = torch.randint(3, 40, (1, 28))
    whole, past, steps = model(row).logits, None, []
    for piece in (row[:, :20], *row[:, 20:].split(1, 1)):
        out = model(piece, past_key_values=past, use_cache=True)
        past, steps = out.past_key_values, [*steps, out.logits]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-10)
    full, near = (one.memory.nbytes for one in self_caches(model, row, ("full()", NEAR)))
    for layer, named in zip(past.layers, (2, 1), strict=True):
        assert layer.nbytes == pytest.approx(full * named / 3 + near * (3 - named) / 3, abs=4) and layer.nbytes < full
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["jieyue_attention"] == text
    again = load_model(tmp_path, "causal-lm").double()
    assert attention_of(again) == attention_of(model) and torch.equal(again(row).logits, model(row).logits)


def self_caches(model, row, entries):
    """The first layer's cache under each entry after the same tokens."""
    text = ",".join(str(one) for one in list(attention_of(model).values()))
    for entry in entries:
        jieyue.use(model, attention=entry)
        past = model(row[:, :20], use_cache=True).past_key_values
        for piece in row[:, 20:].split(1, 1):
            model(piece, past_key_values=past, use_cache=True)
        yield past.layers[0]
    jieyue.use(model, attention=text)


def test_assisted_decoding_takes_tokens_back():
    model, ids = make("llama", **MORE), inputs(20)[0][:1]
    jieyue.use(model, attention=HEADS)
    given = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assert torch.equal(
        model.generate(ids, prompt_lookup_num_tokens=4, **given), model.generate(ids, use_cache=False, **given)
    )


def test_an_encoder_has_them_too_and_training_reaches_every_head():
    model, (ids, mask) = make("bert"), inputs(17)
    jieyue.use(model, attention="heads(0,3: full(), else: local(2))", dropout=0.3)
    model.train()
    model(ids, attention_mask=mask).logits.square().mean().backward()
    weight = model.bert.encoder.layer[0].attention.self.value.weight.grad
    assert (weight.unflatten(0, (4, 8)).abs().sum((1, 2)) > 0).all()
