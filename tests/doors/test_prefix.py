"""Masked LMs that write: the mask in every family, cached = uncached, transformers' generate as oracle, folders that load back."""

import json

import pytest
import torch
import transformers

import jieyue
from jieyue.decoding import search
from jieyue.hf.loading import head_of, load_model, model_from_config
from jieyue.hf.prefix import NAME, additive_mask, as_prefix_lm, is_prefix_lm
from jieyue.hf.steps import steps

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "Bert": {},
    "Roberta": {"type_vocab_size": 1},
    "Electra": {"embedding_size": 12},
    "EuroBert": {"mask_token_id": 3, "num_key_value_heads": 1},
}
SOURCE, TARGET = 6, 5


def make(family, **more):
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family] | more)
    model = getattr(transformers, f"{family}ForMaskedLM")(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def inputs(padded=3):
    """Two rows of source and target; the second is padded on the left."""
    ids = torch.randint(4, 40, (2, SOURCE + TARGET))
    kept = torch.ones_like(ids)
    kept[1, :padded] = 0
    segments = (torch.arange(SOURCE + TARGET) >= SOURCE).long().expand(2, -1)
    return {"input_ids": ids * kept, "attention_mask": kept, "token_type_ids": segments}


families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_without_segments_it_is_the_masked_lm(family):
    model, given = make(family), inputs(padded=0)
    given.pop("token_type_ids")
    expected = model(**given).logits
    assert as_prefix_lm(model) is model and is_prefix_lm(model)
    assert torch.allclose(model(**given).logits, expected, rtol=0, atol=1e-12)


@families
def test_who_sees_whom(family):
    """The gradient of the logits at i with respect to the embedding at j is zero exactly where the mask says so."""
    model, given = as_prefix_lm(make(family)), inputs()
    seen = torch.zeros(2, SOURCE + TARGET, SOURCE + TARGET)
    found = []
    hook = model.get_input_embeddings().register_forward_hook(lambda m, i, out: found.append(out))
    logits = model(**given).logits
    hook.remove()
    for i in range(SOURCE + TARGET):
        (grad,) = torch.autograd.grad(logits[:, i].square().sum(), found[0], retain_graph=True)
        seen[:, i] = (grad.abs().amax(-1) > 0).float()
    source = given["token_type_ids"] == 0
    shown = (
        additive_mask(source, given["attention_mask"].bool(), SOURCE + TARGET, SOURCE + TARGET, torch.zeros(()))[:, 0]
        == 0
    )
    real = given["attention_mask"].bool()
    assert torch.equal(seen.bool()[real], shown[real])


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_attention_with_a_float_mask(family, attention):
    if (family, attention) == ("EuroBert", "eager"):
        pytest.skip("EuroBERT's eager attention rounds its softmax to float32")
    model, given = as_prefix_lm(make(family)), inputs()
    expected = model(**given).logits
    model.set_attn_implementation(attention)
    real = given["attention_mask"].bool()
    assert torch.allclose(model(**given).logits[real], expected[real], rtol=0, atol=1e-12)


@families
def test_cached_logits_are_the_uncached(family):
    model, given = as_prefix_lm(make(family)), inputs()
    whole = model(**given).logits[:, SOURCE - 1 :]
    ids, kept = given["input_ids"], given["attention_mask"]
    step = steps(model)
    logits, state = step(ids[:, :SOURCE], kept[:, :SOURCE])
    found = [logits]
    for token in ids[:, SOURCE : SOURCE + 3].T:
        logits, state = step(token, state)
        found.append(logits)
    logits, state = step(ids[:, SOURCE + 3 :], state)  # two tokens at once
    assert torch.allclose(torch.stack(found, 1), whole[:, :4], rtol=0, atol=1e-12)
    assert torch.allclose(logits, whole[:, 5], rtol=0, atol=1e-12)
    assert max(state.lengths) == SOURCE + TARGET
    state.reorder(torch.tensor([1, 1, 0]))
    again, _ = step(torch.tensor([7, 7, 9]), state)
    assert torch.equal(again[0], again[1]) and again.shape == (3, 40)
    twin = given | {"token_type_ids": None}  # the broken twin: a prompt that sees the target
    assert (model(**twin).logits[:, SOURCE - 1] - whole[:, 0]).abs().max() > 1e-3


def greedy(model, ids, kept, steps):
    """The oracle: the whole sequence again at every step."""
    for _ in range(steps):
        segments = torch.zeros_like(ids)
        segments[:, SOURCE:] = 1
        token = model(ids, attention_mask=kept, token_type_ids=segments).logits[:, -1].argmax(-1, keepdim=True)
        ids, kept = torch.cat([ids, token], 1), torch.cat([kept, torch.ones_like(token)], 1)
    return ids


@families
def test_generate(family):
    model, given = as_prefix_lm(make(family)), inputs()
    model.generation_config.eos_token_id = None
    source = {"input_ids": given["input_ids"][:, :SOURCE], "attention_mask": given["attention_mask"][:, :SOURCE]}
    settings = {"max_new_tokens": 7, "do_sample": False}
    expected = greedy(model, *source.values(), 7)
    assert torch.equal(model.generate(**source, **settings), expected)
    assert torch.equal(model.generate(**source, **settings, use_cache=False), expected)
    one = {name: x[1:] for name, x in source.items()}
    assert torch.equal(model.generate(**one, **settings)[0], expected[1])  # alone as in a batch
    assert torch.equal(model.generate(**one, **settings, prompt_lookup_num_tokens=2)[0], expected[1])  # crops the cache
    beams = [model.generate(**source, **settings, num_beams=3, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*beams)
    begun = {
        "input_ids": expected[:, : SOURCE + 2],
        "attention_mask": torch.nn.functional.pad(source["attention_mask"], (0, 2), value=1),
    }
    segments = (torch.arange(SOURCE + 2) >= SOURCE).long().expand(2, -1)
    rest = model.generate(**begun, token_type_ids=segments, **settings | {"max_new_tokens": 5})
    assert torch.equal(rest, expected)


@families
def test_search_over_the_decoder_is_generate(family):
    model, given = as_prefix_lm(make(family)), inputs()
    model.generation_config.eos_token_id = None
    ids, kept = (given[name][:, :SOURCE] for name in ("input_ids", "attention_mask"))
    expected = model.generate(input_ids=ids, attention_mask=kept, max_new_tokens=6, do_sample=False)[:, SOURCE:]
    found = search.greedy(steps(model), ids, kept, max_tokens=6)
    assert [list(one.tokens) for one in found] == expected.tolist()


def test_folders_load_back_and_stay_masked_lms(tmp_path):
    tokenizer = transformers.BertTokenizerFast(
        vocab={token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(35))])}
    )
    model, given = as_prefix_lm(make("Bert"), tokenizer), inputs()
    model.generation_config.max_new_tokens = 4
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"] and "jieyue" not in config.get("attn_implementation", "")
    assert head_of(tmp_path) == "prefix" and is_prefix_lm(model)
    again = load_model(tmp_path, "prefix").double()
    assert again.generation_config.eos_token_id == 3 and again.generation_config.max_new_tokens == 4
    assert torch.allclose(again(**given).logits, model(**given).logits, rtol=0, atol=1e-5)
    tokenizer.save_pretrained(tmp_path)
    assert is_prefix_lm(jieyue.load(tmp_path, "prefix")[0]) and not is_prefix_lm(jieyue.load(tmp_path, "masked-lm")[0])
    plain, found = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(plain) is transformers.BertForMaskedLM and not any(found.values())
    assert (plain.double().eval()(**given).logits - model(**given).logits).abs().max() > 1e-3  # bidirectional


def test_the_loss_is_that_of_the_next_token():
    model, given = as_prefix_lm(make("Bert")), inputs(padded=0)
    labels = torch.where(given["token_type_ids"] == 1, given["input_ids"], -100)
    out = model(**given, labels=labels)
    log = out.logits[:, SOURCE - 1 : -1].log_softmax(-1).gather(-1, given["input_ids"][:, SOURCE:, None])
    assert torch.allclose(out.loss.double(), -log.mean(), rtol=0, atol=1e-6)
    out.loss.backward()


def test_it_is_planned_without_weights():
    with torch.device("meta"):
        model = model_from_config(transformers.BertConfig(**SIZES), "prefix")
    assert is_prefix_lm(model) and next(model.parameters()).is_meta


def test_others_are_refused_by_name():
    config = transformers.AlbertConfig(**SIZES, embedding_size=8)
    with pytest.raises(ValueError, match="found AlbertForMaskedLM, expected one of BertForMaskedLM, Roberta"):
        as_prefix_lm(transformers.AlbertForMaskedLM(config))
    with pytest.raises(ValueError, match="found BertModel"):
        as_prefix_lm(transformers.BertModel(transformers.BertConfig(**SIZES)))


def test_inputs_that_cannot_be_meant():
    model, given = as_prefix_lm(make("Bert")), inputs()
    with pytest.raises(ValueError, match="no input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 16))
    with pytest.raises(ValueError, match="one segment for each new token"):
        model(given["input_ids"], token_type_ids=given["token_type_ids"][:, 1:])
    with pytest.raises(ValueError, match="one for each token seen"):
        model(given["input_ids"], attention_mask=given["attention_mask"][:, 1:])
    _, state = steps(model)(given["input_ids"], None)
    with pytest.raises(ValueError, match="give the source in one call"):
        model(
            torch.ones(2, 1, dtype=torch.long),
            token_type_ids=torch.zeros(2, 1, dtype=torch.long),
            past_key_values=state.cache,
        )
    with pytest.raises(ValueError, match="no attention matrix is formed"):
        model(**given, output_attentions=True)
    jieyue.use(model, attention="local(2)")
    with pytest.raises(ValueError, match=NAME):
        model(**given)
