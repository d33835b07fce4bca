"""More positions: the first ones untouched (hierarchical), the ends kept (interpolation), folders load as plain transformers."""

import pytest
import torch
import transformers

import jieyue
from jieyue.hf.nezha import NezhaConfig, NezhaModel
from jieyue.hf.positions import ALPHA, extend_positions, interpolate, split_hierarchically

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 12, "pad_token_id": 1,
}  # fmt: skip
MODELS = {
    "Bert": ("MaskedLM", {}, 12),
    "Roberta": ("MaskedLM", {}, 10),
    "Albert": ("MaskedLM", {"embedding_size": 8}, 12),
    "Electra": ("MaskedLM", {"embedding_size": 8}, 12),
    "GPT2": ("LMHeadModel", {"n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}, 12),
}


def make(name):
    head, more, positions = MODELS[name]
    config = getattr(transformers, f"{name}Config")(**SIZES | more)
    kind = f"{name}{head}" if name == "GPT2" else f"{name}For{head}"
    return getattr(transformers, kind)(config).double().eval(), positions


@pytest.mark.parametrize("how", ["hierarchical", "interpolate"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, how, tmp_path):
    model, positions = make(name)
    short, long = torch.randint(4, 30, (2, positions)), torch.randint(4, 30, (2, 70))
    before, shared = model(short).logits, model.config
    with pytest.raises((IndexError, RuntimeError)):
        model(long)
    assert extend_positions(model, 70, how) is model
    assert torch.equal(model(short).logits, before) == (how == "hierarchical")
    assert model(long).logits.isfinite().all() and shared.max_position_embeddings == 12
    jieyue.use(model, attention="local(8)+atrous(8)")
    sparse = model(long).logits
    assert sparse.isfinite().all() and not torch.equal(sparse, before)
    jieyue.use(model, attention=None)
    model.save_pretrained(tmp_path)
    again, found = type(model).from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not any(found.values())
    assert torch.allclose(again.eval()(long).logits, model(long).logits, rtol=0, atol=1e-12)


def test_the_formulas():
    table = torch.randn(5, 3, dtype=torch.float64)
    grown = split_hierarchically(table, 25)
    base = [(p - ALPHA * table[0]) / (1 - ALPHA) for p in table]
    for i in range(5):
        for j in range(5):
            assert torch.allclose(grown[5 * i + j], ALPHA * base[i] + (1 - ALPHA) * base[j], rtol=0, atol=1e-14)
    assert torch.equal(grown[:5], table)
    spread = interpolate(table, 17)
    assert torch.allclose(spread[::4], table, rtol=0, atol=1e-14)
    assert torch.allclose(spread[2], (table[0] + table[1]) / 2, rtol=0, atol=1e-14)


def test_the_tokenizer_is_told():
    model, _ = make("Bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    tokenizer = transformers.BertTokenizer(vocab={word: n for n, word in enumerate(words)}, model_max_length=12)
    extend_positions(model, 100, tokenizer=tokenizer)
    assert tokenizer.model_max_length == 100 and model.config.max_position_embeddings == 100


@pytest.mark.parametrize(
    ("positions", "how", "found"),
    [
        (12, "hierarchical", "more than 12, at most 144"),
        (145, "hierarchical", "at most 144"),
        (4, "interpolate", "more than 12"),
        (64, "rotary", "one of hierarchical, interpolate"),
    ],
)
def test_refusals(positions, how, found):
    with pytest.raises(ValueError, match=found):
        extend_positions(make("Bert")[0], positions, how)


def test_models_without_a_table():
    settings = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    for model in (NezhaModel(NezhaConfig(**settings)), transformers.ModernBertModel(transformers.ModernBertConfig(
        **settings, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2))):  # fmt: skip
        with pytest.raises(ValueError, match="rotary and relative positions have no such limit"):
            extend_positions(model, 64)


def test_a_table_that_counts_from_an_offset_is_not_called_rotary():
    model = transformers.OPTModel(transformers.OPTConfig(
        vocab_size=9, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, word_embed_proj_dim=8
    ))  # fmt: skip
    with pytest.raises(ValueError, match="0 tables of absolute positions of that kind") as told:
        extend_positions(model, 4096)
    assert "rotary" not in str(told.value)
