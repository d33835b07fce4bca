"""A pattern inside transformers' models equals the same model under a dense additive mask, padding and gradients included."""

import pytest
import torch
import transformers

from jieyue.attention import parse
from jieyue.hf.attention import attention_of as layers_of
from jieyue.hf.attention import remove_attention, use_attention

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
PAD = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SMALL | {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}

# name -> (configuration class, its settings, auto class, is causal)
MODELS = {
    "bert": ("BertConfig", SMALL | {"num_hidden_layers": 2}, "AutoModelForMaskedLM", False),
    "albert": ("AlbertConfig", SMALL | {"num_hidden_layers": 2, "embedding_size": 16}, "AutoModelForMaskedLM", False),
    "roberta": ("RobertaConfig", SMALL | {"num_hidden_layers": 2, "max_position_embeddings": 130}, "AutoModelForMaskedLM", False),
    "modernbert": ("ModernBertConfig", SMALL | PAD | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2,
                   "cls_token_id": 1, "sep_token_id": 2}, "AutoModelForMaskedLM", False),
    "gpt2": ("GPT2Config", {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128} | PAD, "AutoModelForCausalLM", True),
    "llama": ("LlamaConfig", GROUPED | PAD, "AutoModelForCausalLM", True),
    "qwen3": ("Qwen3Config", GROUPED | PAD, "AutoModelForCausalLM", True),
    "mistral": ("MistralConfig", GROUPED | PAD | {"sliding_window": None}, "AutoModelForCausalLM", True),
}  # fmt: skip


def make(name, **more):
    kind, settings, auto, _ = MODELS[name]
    config = getattr(transformers, kind)(**settings | more)
    return getattr(transformers, auto).from_config(config, attn_implementation="sdpa").double().eval()


def inputs(length=37):
    ids = torch.randint(3, 40, (2, length))
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length - 9 :] = 0
    return ids, mask


def dense_mask(pattern, mask, causal):
    """The additive mask [B, 1, N, N] that means the same: hugely negative where the pattern or the padding hides a key."""
    length = mask.shape[1]
    pattern = parse(pattern).causal() if causal else parse(pattern)
    sees = pattern.mask(length, length) & mask.bool()[:, None, None, :]
    return torch.zeros(sees.shape, dtype=torch.float64).masked_fill(~sees, -1e30)


@pytest.mark.parametrize("pattern", ["sparse(6)"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_dense_mask(name, pattern):
    model, twin = make(name), make(name)
    twin.load_state_dict(model.state_dict())
    causal = MODELS[name][3]
    ids, mask = inputs()
    given = use_attention(model, pattern)
    assert set(given.values()) == {str(parse(pattern))}
    out = model(input_ids=ids, attention_mask=mask).logits
    expected = twin(input_ids=ids, attention_mask=dense_mask(pattern, mask, causal)).logits
    real = mask.bool()
    assert torch.allclose(out[real], expected[real], atol=1e-11)
    out[real].square().sum().backward()
    expected[real].square().sum().backward()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if q.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-9), key


def test_the_pattern_matters():
    """The broken twin: another pattern gives other logits."""
    model, twin = make("bert"), make("bert")
    twin.load_state_dict(model.state_dict())
    ids, mask = inputs()
    use_attention(model, "local(5)")
    out = model(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(
        out, twin(input_ids=ids, attention_mask=dense_mask("local(6)", mask, False)).logits, atol=1e-6
    )


def test_a_list_is_tiled_over_the_layers():
    model, twin = make("bert", num_hidden_layers=3), make("bert", num_hidden_layers=3)
    given = use_attention(model, "local(3),atrous(4)")
    assert list(given.values()) == ["local(3)", "atrous(4)", "local(3)"]
    assert layers_of(model) == given
    ids, mask = inputs()
    assert torch.isfinite(model(input_ids=ids, attention_mask=mask).logits).all()
    remove_attention(model)
    twin.load_state_dict(model.state_dict())
    twin.set_attn_implementation("sdpa")
    assert layers_of(model) == {}
    assert torch.equal(model(input_ids=ids).logits, twin(input_ids=ids).logits)


def test_layers_with_a_window_keep_it():
    model = make(
        "modernbert",
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        local_attention=8,
    )
    twin = make(
        "modernbert",
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        local_attention=8,
    )
    twin.load_state_dict(model.state_dict())
    assert list(use_attention(model, "full()").values()) == ["full()", "local(4)", "full()"]
    ids, mask = inputs()
    real = mask.bool()
    assert torch.allclose(
        model(ids, attention_mask=mask).logits[real], twin(ids, attention_mask=mask).logits[real], atol=1e-11
    )


def test_mistral_keeps_its_window():
    model, twin = make("mistral", sliding_window=6), make("mistral", sliding_window=6)
    twin.load_state_dict(model.state_dict())
    assert set(use_attention(model, "full()").values()) == {"local(5)"}
    ids, mask = inputs()
    real = mask.bool()
    ours, theirs = model(ids, attention_mask=mask).logits, twin(ids, attention_mask=mask).logits
    assert torch.allclose(ours[real], theirs[real], atol=1e-11)


def test_bart_keeps_cross_attention_full():
    config = transformers.BartConfig(vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, forced_eos_token_id=None)  # fmt: skip
    model = transformers.BartForConditionalGeneration._from_config(config, attn_implementation="eager").double().eval()
    ids, mask = inputs(23)
    targets = torch.randint(3, 40, (2, 11))
    expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits
    given = use_attention(model, "full()")
    assert len(given) == 4
    assert torch.allclose(
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits, expected, atol=1e-11
    )
    use_attention(model, "local(2)")
    changed = model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits
    assert not torch.allclose(changed, expected, atol=1e-6)


def test_training_under_checkpointing_and_dropout():
    """Recomputation draws the same dropout: gradients with and without checkpointing agree."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = make("bert", attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.1)
        use_attention(model, "sparse(4)")
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(4)
        ids, mask = inputs()
        model(input_ids=ids, attention_mask=mask).logits.square().sum().backward()
        found.append(model.bert.embeddings.word_embeddings.weight.grad)
    assert torch.equal(*found)


def test_dropout_can_be_overridden():
    model = make("bert", attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.0)
    use_attention(model, "local(4)", dropout=0.0)
    ids, mask = inputs()
    model.train()
    assert torch.equal(model(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda m, ids, mask: m(ids, attention_mask=dense_mask("local(2)", mask, False)), "four-dimensional"),
        (lambda m, ids, mask: use_attention(m, "lokal(3)"), r"local"),
        (lambda m, ids, mask: use_attention(m, "local(3)", dropout=1.5), r"0 <= dropout < 1"),
    ],
)
def test_what_cannot_be_honoured_is_refused(call, found):
    model = make("bert")
    use_attention(model, "local(3)")
    with pytest.raises(ValueError, match=found):
        call(model, *inputs())


def test_albert_refuses_a_list():
    with pytest.raises(ValueError, match="share one module"):
        use_attention(make("albert"), "local(3),atrous(4)")


def test_models_outside_the_interface_are_refused():
    config = transformers.RoFormerConfig(**SMALL, num_hidden_layers=1)
    with pytest.raises(ValueError, match="outside transformers' attention interface"):
        use_attention(transformers.RoFormerForMaskedLM(config), "local(3)")


def test_soft_caps_are_refused():
    config = transformers.Gemma2Config(**GROUPED)
    with pytest.raises(ValueError, match="caps its logits"):
        use_attention(transformers.Gemma2ForCausalLM(config), "local(3)")


def test_packed_documents_are_refused():
    model = make("llama")
    use_attention(model, "local(3)")
    with pytest.raises(ValueError, match="mask"):
        model(torch.randint(3, 40, (1, 8)), position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]), use_cache=False)
