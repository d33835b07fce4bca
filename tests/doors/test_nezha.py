"""NEZHA: what transformers 4 computed with its checkpoint; segments counted alike everywhere; cached = uncached."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import jieyue
from jieyue.hf.loading import load_model
from jieyue.hf.nezha import NezhaConfig, NezhaForCausalLM, NezhaForMaskedLM, NezhaModel
from jieyue.hf.prefix import as_prefix_lm
from jieyue.hf.segments import NezhaCache, segments_of
from jieyue.hf.steps import steps

GOLDEN = Path(__file__).parent / "golden" / "nezha.safetensors"
SEP, PAD = 3, 0
SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_relative_position": 4, "sep_token_id": SEP, "bos_token_id": 2, "eos_token_id": None, "pad_token_id": PAD,
}  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture
def former(golden, tmp_path):
    """A folder as transformers 4 wrote it, position buffers of its first versions included."""
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "nezha", "architectures": ["NezhaForMaskedLM"]} | config)
    )
    weights = {name.removeprefix("weights/"): x for name, x in golden.items() if name.startswith("weights/")}
    weights["nezha.encoder.layer.0.attention.self.relative_positions_encoding.positions_encoding"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def make(kind=NezhaForCausalLM, **more):
    model = kind(NezhaConfig(**SIZES | more)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def dialogue(length=14):
    """Two rows with [SEP]s, the second padded on the left."""
    ids = torch.randint(4, 30, (2, length))
    ids[0, [3, 6, 11]] = SEP
    ids[1, [5, 9]] = SEP
    kept = torch.ones_like(ids)
    kept[1, :3] = 0
    return {"input_ids": ids * kept, "attention_mask": kept}


def test_golden_outputs_of_transformers_4(former, golden):
    given = {"attention_mask": golden["kept"], "token_type_ids": golden["segments"]}
    real = golden["kept"].bool()
    model = load_model(former).double()
    out = model(golden["ids"], **given, output_hidden_states=True)
    assert isinstance(model, NezhaForMaskedLM) and len(out.hidden_states) == 3
    # The table of positions is float32 there and here; sines may differ in the last bit from machine to machine
    assert torch.allclose(out.logits[real], golden["logits"][real], rtol=0, atol=2e-6)
    assert torch.allclose(out.hidden_states[-1][real], golden["hidden"][real], rtol=0, atol=2e-6)
    causal = load_model(former, "causal-lm").double()
    assert isinstance(causal, NezhaForCausalLM)
    assert torch.allclose(causal(golden["ids"], **given).logits[real], golden["causal"][real], rtol=0, atol=2e-6)
    assert (causal(golden["ids"], **given).logits - golden["logits"]).abs().max() > 1e-2  # the broken twin
    bare = load_model(former, None, new_head=True).double()
    assert isinstance(bare, NezhaModel)
    assert torch.allclose(bare(golden["ids"], **given).last_hidden_state[real], golden["hidden"][real], atol=2e-6)


def test_the_separator_comes_from_the_tokenizer(former):
    assert load_model(former).config.sep_token_id == 102
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(25))]
    transformers.BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(former)
    model, tokenizer = jieyue.load(former)
    assert model.config.sep_token_id == tokenizer.sep_token_id == 3


def test_auto_classes_know_it_after_the_import(former, fresh):
    code = (
        "import jieyue.hf, transformers\n"
        f"for auto in ('AutoModel', 'AutoModelForMaskedLM', 'AutoModelForCausalLM'):\n"
        f"    print(type(getattr(transformers, auto).from_pretrained({str(former)!r})).__name__)"
    )
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["NezhaModel", "NezhaForMaskedLM", "NezhaForCausalLM"]


@pytest.mark.parametrize("kind", [NezhaModel, NezhaForMaskedLM, NezhaForCausalLM])
def test_saved_and_loaded(kind, tmp_path):
    model = make(kind)
    model.save_pretrained(tmp_path)
    again, found = kind.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not any(found.values())
    given = dialogue()
    assert torch.allclose(again.eval()(**given)[0], model(**given)[0], rtol=0, atol=1e-12)
    if kind is not NezhaModel:
        assert again.cls.predictions.decoder.weight is again.get_input_embeddings().weight


def segments_by_hand(ids, kept):
    rows = []
    for row, real in zip(ids.tolist(), kept.tolist(), strict=True):
        count, segments = 0, []
        for token, keep in zip(row, real, strict=True):
            segments.append(count % 2)
            count += token == SEP and keep
        rows.append(segments)
    return torch.tensor(rows)


@pytest.mark.parametrize("kind", [NezhaForMaskedLM, NezhaForCausalLM])
def test_segments_are_counted_where_none_are_given(kind):
    model, given = make(kind), dialogue()
    segments = segments_by_hand(**{"ids": given["input_ids"], "kept": given["attention_mask"]})
    assert torch.equal(segments_of(given["input_ids"], SEP, kept=given["attention_mask"].bool()), segments)
    assert torch.equal(model(**given).logits, model(**given, token_type_ids=segments).logits)
    zeros = model(**given, token_type_ids=torch.zeros_like(segments)).logits
    assert (model(**given).logits - zeros).abs().max() > 1e-3


@pytest.mark.parametrize("chunks", [[14], [1] * 14, [4, 1, 6, 3]])
def test_cached_logits_are_the_uncached(chunks):
    model, given = make(), dialogue()
    whole = model(**given).logits
    real = given["attention_mask"].bool()
    cache, start, parts = NezhaCache(model.config), 0, []
    for width in chunks:
        ids, kept = given["input_ids"][:, start : start + width], given["attention_mask"][:, : start + width]
        out = model(ids, attention_mask=kept, past_key_values=cache, use_cache=True)
        parts.append(out.logits)
        start += width
    assert out.past_key_values is cache
    assert torch.allclose(torch.cat(parts, 1)[real], whole[real], rtol=0, atol=1e-12)
    cache.crop(-5)
    again = model(
        given["input_ids"][:, -5:], attention_mask=given["attention_mask"], past_key_values=cache, use_cache=True
    )
    assert torch.allclose(again.logits, whole[:, -5:], rtol=0, atol=1e-12)
    cache.crop(-5)
    cache.reorder_cache(torch.tensor([1, 1]))
    twice = model(
        given["input_ids"][[1, 1], -5:], attention_mask=given["attention_mask"][[1, 1]], past_key_values=cache
    )
    assert torch.allclose(twice.logits[0], whole[1, -5:], rtol=0, atol=1e-12)


def greedy(model, ids, kept, steps):
    for _ in range(steps):
        token = model(ids, attention_mask=kept).logits[:, -1].argmax(-1, keepdim=True)
        ids, kept = torch.cat([ids, token], 1), torch.cat([kept, torch.ones_like(token)], 1)
    return ids


def test_generate():
    model, given = make(), dialogue()
    with torch.no_grad():
        model.cls.predictions.bias[SEP] += 2.5  # so that turns end
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = greedy(model, *given.values(), 12)
    assert (expected[:, 14:] == SEP).any(1).all() and not (expected[:, 14:] == SEP).all(1).any()
    assert torch.equal(model.generate(**given, **settings), expected)
    assert torch.equal(model.generate(**given, **settings, use_cache=False), expected)
    one = {name: x[1:] for name, x in given.items()}
    assert torch.equal(model.generate(**one, **settings, prompt_lookup_num_tokens=3)[0], expected[1])
    beams = [model.generate(**given, **settings, num_beams=3, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*beams)
    counted = segments_of(given["input_ids"], SEP, kept=given["attention_mask"].bool())
    assert torch.equal(model.generate(**given, token_type_ids=counted, **settings), expected)
    with pytest.raises(ValueError, match="which the model counts"):
        model.generate(**given, token_type_ids=1 - counted, **settings)


def test_it_writes_as_a_prefix_lm():
    """The prefix mask inside NEZHA's own attention: cached = uncached, later targets and padding unseen."""
    model, given = as_prefix_lm(make(NezhaForMaskedLM)), dialogue()
    segments = (torch.arange(14) >= 8).long().expand(2, -1)
    whole = model(**given, token_type_ids=segments).logits
    changed = given["input_ids"].clone()
    changed[:, 12:] = 7
    again = model(changed, attention_mask=given["attention_mask"], token_type_ids=segments).logits
    assert torch.equal(again[:, :12], whole[:, :12]) and not torch.equal(again[:, 12:], whole[:, 12:])
    other = given["input_ids"].clone()
    other[:, 7] = 8
    assert (
        (model(other, attention_mask=given["attention_mask"], token_type_ids=segments).logits - whole)[:, 4].abs() > 0
    ).all()
    step = steps(model)
    logits, state = step(given["input_ids"][:, :8], given["attention_mask"][:, :8])
    found = [logits]
    for token in given["input_ids"][:, 8:].T:
        logits, state = step(token, state)
        found.append(logits)
    assert torch.allclose(torch.stack(found, 1), whole[:, 7:], rtol=0, atol=1e-12)
    source = {name: x[:, :8] for name, x in given.items()}
    texts = [model.generate(**source, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*texts)


def test_the_losses_and_checkpointing():
    given = dialogue()
    labels = torch.where(given["attention_mask"] == 1, given["input_ids"], -100)
    causal, masked = make(), make(NezhaForMaskedLM)
    log = causal(**given).logits.log_softmax(-1)[:, :-1].gather(-1, given["input_ids"][:, 1:, None])[..., 0]
    assert torch.allclose(causal(**given, labels=labels).loss, -log[labels[:, 1:] != -100].mean())
    log = masked(**given).logits.log_softmax(-1).gather(-1, given["input_ids"][..., None])[..., 0]
    assert torch.allclose(masked(**given, labels=labels).loss, -log[labels != -100].mean())
    masked(**given, labels=labels).loss.backward()
    plain = [p.grad.clone() for p in masked.parameters()]
    masked.zero_grad()
    masked.gradient_checkpointing_enable()
    masked.train()
    for module in masked.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    masked(**given, labels=labels).loss.backward()
    assert all(torch.allclose(p.grad, g, rtol=0, atol=1e-12) for p, g in zip(masked.parameters(), plain, strict=True))


def test_refusals():
    model, given = make(), dialogue()
    with pytest.raises(ValueError, match="outside transformers' attention interface"):
        jieyue.use(model, attention="local(4)")
    with pytest.raises(ValueError, match="either input_ids"):
        model()
    with pytest.raises(ValueError, match="positions are relative"):
        model(**given, position_ids=torch.arange(14)[None])
    with pytest.raises(ValueError, match="without token_type_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 16).double())
    with pytest.raises(ValueError, match=r"attention_mask of shape \[2, 13\], expected \[2, 14\]"):
        model(given["input_ids"], attention_mask=given["attention_mask"][:, 1:])
    with pytest.raises(ValueError, match=r"sep_token_id=102.*set config.sep_token_id"):
        make(sep_token_id=102)(**given)
    cache = transformers.DynamicCache(config=model.config)
    segments = segments_of(given["input_ids"], SEP)
    model(**given, token_type_ids=segments, past_key_values=cache)
    with pytest.raises(ValueError, match="a DynamicCache that does not know the segments of the 14 tokens"):
        model(given["input_ids"][:, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="not a multiple of the number of attention heads"):
        NezhaModel(NezhaConfig(**SIZES | {"num_attention_heads": 3}))
