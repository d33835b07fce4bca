"""Tiny models of the families that the attention tests run, in float64, and inputs with padding."""

import pytest
import torch
import transformers

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
PAD = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SMALL | {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
BART = {
    "vocab_size": 40, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "forced_eos_token_id": None, "decoder_start_token_id": 1,
}  # fmt: skip

# name -> (configuration class, its settings, auto class, is causal)
MODELS = {
    "bert": ("BertConfig", SMALL | {"num_hidden_layers": 2}, "AutoModelForMaskedLM", False),
    "albert": ("AlbertConfig", SMALL | {"num_hidden_layers": 2, "embedding_size": 16}, "AutoModelForMaskedLM", False),
    "roberta": ("RobertaConfig", SMALL | {"num_hidden_layers": 2, "max_position_embeddings": 130}, "AutoModelForMaskedLM", False),
    "modernbert": ("ModernBertConfig", SMALL | PAD | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2,
                   "cls_token_id": 1, "sep_token_id": 2}, "AutoModelForMaskedLM", False),
    "gpt2": ("GPT2Config", {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128} | PAD,
             "AutoModelForCausalLM", True),
    "llama": ("LlamaConfig", GROUPED | PAD, "AutoModelForCausalLM", True),
    "qwen3": ("Qwen3Config", GROUPED | PAD, "AutoModelForCausalLM", True),
    "mistral": ("MistralConfig", GROUPED | PAD | {"sliding_window": None}, "AutoModelForCausalLM", True),
    "bart": ("BartConfig", BART | PAD, "AutoModelForSeq2SeqLM", True),
}  # fmt: skip


def skip_where_it_differs_from_itself(name):
    """``use`` refuses a model whose own eager and SDPA attention differ, as those of these do under transformers 5.17."""
    if name in ("gemma2", "umt5") and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        pytest.skip(f"{name}'s own eager and SDPA attention differ under transformers {transformers.__version__}")


def make(name, **more):
    kind, settings, auto, _ = MODELS[name]
    config = getattr(transformers, kind)(**settings | more)
    return getattr(transformers, auto).from_config(config, attn_implementation="sdpa").double().eval()


def twins(name, **more):
    """Two models with the same weights."""
    model, twin = make(name, **more), make(name, **more)
    twin.load_state_dict(model.state_dict())
    return model, twin


def inputs(length=37, padding="right"):
    """Two rows of tokens, nine of the second row padding."""
    ids = torch.randint(3, 40, (2, length))
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, slice(length - 9, None) if padding == "right" else slice(0, 9)] = 0
    return ids.where(mask.bool(), torch.tensor(0)), mask
