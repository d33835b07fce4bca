"""A pruned vocabulary: the corpus is cut as before, logits over kept tokens are what they were, plain transformers loads it."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from jieyue.hf.nezha import NezhaConfig, NezhaForCausalLM
from jieyue.hf.tokenizers import SPECIAL_TOKENS, make_tokenizer
from jieyue.hf.vocabulary import prune_vocabulary

WORDS = ["我", "们", "你", "好", "the", "cat", "cats", "##s", "do", "##g", "##gs", "a", "##b", "sat", "龘", "。"]
VOCABULARY = [*SPECIAL_TOKENS.values(), *WORDS]
TEXTS = ["我们好。", "The dogs sat"]
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "bert": lambda v: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=v, **SIZES, sep_token_id=3)),
    "untied": lambda v: transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=v, **SIZES, tie_word_embeddings=False)
    ),
    "albert": lambda v: transformers.AlbertForMaskedLM(transformers.AlbertConfig(vocab_size=v, embedding_size=8, **SIZES)),
    "electra": lambda v: transformers.ElectraForMaskedLM(transformers.ElectraConfig(vocab_size=v, embedding_size=8, **SIZES)),
    "roberta": lambda v: transformers.RobertaForMaskedLM(transformers.RobertaConfig(vocab_size=v, **SIZES)),
    "nezha": lambda v: NezhaForCausalLM(NezhaConfig(vocab_size=v, **SIZES, sep_token_id=3)),
    "padded": lambda v: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=32, **SIZES)),
}  # fmt: skip


def pair(name="bert", tokenizer=None):
    tokenizer = tokenizer or make_tokenizer(VOCABULARY)
    model = MODELS[name](len(tokenizer)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model, tokenizer


@pytest.mark.parametrize("name", MODELS)
def test_logits_over_kept_tokens(name, tmp_path):
    model, tokenizer = pair(name)
    before = tokenizer(TEXTS, padding=True, return_tensors="pt")
    logits = model(**before).logits
    weight, total = model.get_input_embeddings().weight.detach().clone(), model.get_output_embeddings().bias
    bias = None if total is None else total.detach().clone()
    pruned, made = prune_vocabulary(model, tokenizer, TEXTS, keep=["cat"], add=["你好"])
    assert pruned is model and made.tokenize(TEXTS[1]) == tokenizer.tokenize(TEXTS[1])
    kept = [token for token in made.get_vocab() if token != "你好"]
    assert set(kept) == {*SPECIAL_TOKENS.values(), "我", "们", "好", "。", "the", "do", "##gs", "sat", "cat"}
    after = made(TEXTS, padding=True, return_tensors="pt")
    assert [made.convert_ids_to_tokens(row) for row in after["input_ids"]] == [
        tokenizer.convert_ids_to_tokens(row) for row in before["input_ids"]
    ]
    found = model(**after).logits
    assert found.shape[-1] == len(made) == model.config.vocab_size == len(kept) + 1
    new, old = made.convert_tokens_to_ids(kept), tokenizer.convert_tokens_to_ids(kept)
    assert torch.allclose(found[..., new], logits[..., old], rtol=0, atol=1e-12)
    row, pieces = made.convert_tokens_to_ids("你好"), tokenizer.convert_tokens_to_ids(["你", "好"])
    assert torch.equal(model.get_input_embeddings().weight[row], weight[pieces].mean(0))
    if bias is not None:
        assert torch.allclose(model.get_output_embeddings().bias[row], bias[pieces].mean(0))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (name != "untied") and made.tokenize("我你好。") == ["我", "你好", "。"]
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    auto = transformers.AutoModelForCausalLM if name == "nezha" else AutoModelForMaskedLM
    plain, info = auto.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not any(info.values())
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again([*TEXTS, "我你好。"])["input_ids"] == made([*TEXTS, "我你好。"])["input_ids"]
    assert again.decode(again("我你好。")["input_ids"], skip_special_tokens=True) == "我你好。"
    assert torch.allclose(plain.eval()(**after).logits, found, rtol=0, atol=1e-12)


def test_numbers_in_the_configuration_follow():
    words = ["x", "[PAD]", "y", "[UNK]", "z", "[CLS]", "[SEP]", "[MASK]", "a"]
    tokenizer = BertTokenizer(vocab={word: n for n, word in enumerate(words)})
    config = transformers.BertConfig(
        **SIZES | {"pad_token_id": 1, "vocab_size": 9, "eos_token_id": [6, 0], "bos_token_id": 5}
    )
    model = transformers.BertForMaskedLM(config)
    _, made = prune_vocabulary(model, tokenizer, ["a"])
    assert made.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5}
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 2, [3])
    assert model.get_input_embeddings().padding_idx == 0 and config.vocab_size == 9
    assert made("a")["input_ids"] == [2, 5, 3]


def unigram():
    pieces = [("<unk>", 0.0), ("[PAD]", 0.0), ("▁the", -2.0), ("▁", -3.0), ("t", -4.0), ("he", -4.0), ("▁do", -2.5), ("g", -4.0),
              ("gs", -5.0), ("s", -4.5), ("c", -6.0), ("▁cat", -3.0), ("[CLS]", 0.0), ("[SEP]", 0.0)]  # fmt: skip
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 12), ("[SEP]", 13)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def test_unigram(tmp_path):
    model, tokenizer = pair("albert", unigram())
    model.config.pad_token_id = 1
    texts = ["the dogs", "the dog"]
    before = [tokenizer.convert_ids_to_tokens(row) for row in tokenizer(texts)["input_ids"]]
    _, made = prune_vocabulary(model, tokenizer, texts)
    assert [made.convert_ids_to_tokens(row) for row in made(texts)["input_ids"]] == before
    assert "▁cat" not in made.get_vocab() and made.unk_token_id == 0 and len(made) < len(tokenizer)
    made.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == made(texts)["input_ids"]


def test_only_adding_keeps_everything():
    model, tokenizer = pair()
    _, made = prune_vocabulary(model, tokenizer, add=["dos"])
    assert len(made) == len(tokenizer) + 1 and made.tokenize("the dos dosg") == ["the", "dos", "do", "##s", "##g"]


def test_the_broken_twin_is_noticed():
    """Rows in another order than the tokenizer's numbers."""
    model, tokenizer = pair()
    before = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    _, made = prune_vocabulary(model, tokenizer, TEXTS)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[5:] = table[5:].flip(0)
    kept = list(made.get_vocab())
    found = model(**made(TEXTS, padding=True, return_tensors="pt")).logits[..., made.convert_tokens_to_ids(kept)]
    assert (found - before[..., tokenizer.convert_tokens_to_ids(kept)]).abs().max() > 1e-3


def bpe():
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


LARGER = make_tokenizer([*SPECIAL_TOKENS.values(), *map(chr, range(0x4E00, 0x4F00))])
SHIFTED = make_tokenizer(["x", *SPECIAL_TOKENS.values(), *WORDS[:-1]])


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "no texts, keep or add"),
        ({"keep": ["dog"]}, r"unknown \['dog'\]"),
        ({"add": ["the"]}, "new words"),
        ({"add": ["catnip", "catnip"]}, "new words"),
        ({"add": [" "]}, "new words"),
        ({"add": ["xyz"]}, "cannot spell"),
        ({"tokenizer": bpe(), "texts": ["a"]}, "found a BPE tokenizer, expected WordPiece or Unigram"),
        ({"tokenizer": LARGER, "texts": ["a"]}, "261 tokens and 21 rows"),
        ({"tokenizer": SHIFTED, "texts": ["a"]}, "pad is 1 .* and 0 for the model"),
    ],
)  # fmt: skip
def test_refusals(settings, found):
    model, tokenizer = pair()
    before = json.dumps(model.config.to_dict(), default=str)
    with pytest.raises(ValueError, match=found):
        prune_vocabulary(model, settings.pop("tokenizer", tokenizer), **settings)
    assert (
        json.dumps(model.config.to_dict(), default=str) == before and model.get_input_embeddings().num_embeddings == 21
    )


LATE = ["们", "我", *SPECIAL_TOKENS.values(), *WORDS[2:]]  # padding at 2: with 们 gone it moves
OTHERS = {
    "roberta": lambda **s: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**s)),
    "xlm-roberta": lambda **s: transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**s)),
    "mobilebert": lambda **s: transformers.MobileBertForMaskedLM(
        transformers.MobileBertConfig(**s, embedding_size=8, intra_bottleneck_size=8)
    ),
    "deberta-v2": lambda **s: transformers.DebertaV2ForMaskedLM(transformers.DebertaV2Config(**s, legacy=False)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_positions_and_heads_of_their_own(name, tmp_path):
    """Positions counted from the padding's number move with it; a head with tokens along its columns is cut there."""
    tokenizer = make_tokenizer(LATE)
    model = OTHERS[name](**SIZES | {"vocab_size": len(LATE), "pad_token_id": 2}).double().eval()
    before = model(**tokenizer(["我 a 。", "我"], padding=True, return_tensors="pt")).logits
    _, made = prune_vocabulary(model, tokenizer, ["我 a 。"])
    kept = list(made.get_vocab())
    assert made.pad_token_id == model.config.pad_token_id == 1
    given = made(["我 a 。", "我"], padding=True, return_tensors="pt")
    expected = before[..., tokenizer.convert_tokens_to_ids(kept)]
    new = made.convert_tokens_to_ids(kept)
    assert torch.allclose(model(**given).logits[..., new], expected, rtol=0, atol=1e-12)
    model.save_pretrained(tmp_path)
    plain, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    if name != "deberta-v2":  # AutoModel takes the other head's class from the same configuration
        assert torch.allclose(plain.eval()(**given).logits[..., new], expected, rtol=0, atol=1e-12)


def test_a_model_that_is_not_understood_is_left_as_it_was():
    """MPNet takes token 1 for padding, whatever its configuration says."""
    tokenizer = make_tokenizer(LATE)
    settings = SIZES | {"vocab_size": len(LATE), "pad_token_id": 2}
    model = transformers.MPNetForMaskedLM(transformers.MPNetConfig(**settings))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="MPNetEmbeddings, which takes token 1"):
        prune_vocabulary(model, tokenizer, ["我"])
    wider = pair()[0]
    wider.extra = torch.nn.Linear(3, 21)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        prune_vocabulary(wider, pair()[1], ["我"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.vocab_size == len(LATE) and wider.config.vocab_size == 21
