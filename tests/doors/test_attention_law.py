"""``use(model, "full()")`` leaves every output as it is, cached and not, or is refused: the kinds of models that broke it."""

import copy
import warnings

import pytest
import torch
import transformers
from attention_models import GROUPED, PAD, inputs, make, twins
from transformers.models.llama import modeling_llama

import jieyue
from jieyue.hf.attention import attention_of
from jieyue.hf.tiny import tiny_config, tiny_model


def build(kind, auto="AutoModelForCausalLM", **more):
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(getattr(transformers, kind)(**GROUPED | PAD | more)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.2)
    return model


def written(model, ids, **more):
    return model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, **more)


@pytest.mark.parametrize("model_type", ["nllb-moe", "moonshine"])
def test_decoders_do_not_see_later_targets(model_type):
    model = tiny_model(tiny_config(model_type))
    source = (
        {"input_ids": inputs(17)[0]} if model_type == "nllb-moe" else {"input_values": torch.randn(2, 2000).double()}
    )
    targets = torch.randint(3, 40, (2, 9))
    other = targets.clone()
    other[:, -1] = 41
    seen = torch.ones_like(targets)
    seen[1, -2:] = 0
    plain = model(**source, decoder_input_ids=targets, decoder_attention_mask=seen, use_cache=False)[0]
    for attention in ("full()", "local(3)", "linear(elu)"):
        jieyue.use(model, attention=attention, dropout=0.0)
        one, two = (
            model(**source, decoder_input_ids=x, decoder_attention_mask=seen, use_cache=False)[0]
            for x in (targets, other)
        )
        assert torch.allclose(one[:, :-1], two[:, :-1], atol=1e-12)
        if attention == "full()":
            assert torch.allclose(one[seen.bool()], plain[seen.bool()], atol=1e-11)


@pytest.mark.parametrize("model_type", ["splinter", "clap_text_model", "align_text_model"])
def test_encoders_stay_bidirectional(model_type):
    model = tiny_model(tiny_config(model_type))
    ids, mask = inputs(17)
    plain = model(ids, attention_mask=mask)[0]
    jieyue.use(model, attention="full()")
    assert torch.allclose(model(ids, attention_mask=mask)[0][mask.bool()], plain[mask.bool()], atol=1e-6)


def test_models_that_disagree_with_themselves_are_refused():
    model = build(
        "GemmaConfig", use_bidirectional_attention=True
    )  # its mask is causal, its modules say that they are not
    with pytest.raises(ValueError, match="own eager and SDPA attention differ"):
        jieyue.use(model, attention="full()")
    assert attention_of(model) == {} and model.config._attn_implementation == "sdpa"
    called = make("llama")
    jieyue.use(called, attention="full()")
    with pytest.raises(ValueError, match="called with is_causal=False"):
        called(inputs(9)[0], is_causal=False)


@pytest.mark.parametrize(
    ("kind", "more", "texts"),
    [
        (
            "Exaone4Config",
            {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
            ["local(5)", "full()"],
        ),
        ("LlamaConfig", {"sliding_window": 6}, ["full()", "full()"]),
        ("OlmoeConfig", {"sliding_window": 6, "num_experts": 4, "num_experts_per_tok": 2}, ["full()", "full()"]),
        ("Starcoder2Config", {"sliding_window": 6}, ["local(5)", "local(5)"]),
    ],
)
def test_windows_are_those_that_the_mask_asks_for(kind, more, texts):
    model = build(kind, **more)
    model.config._experts_implementation = "eager"
    twin = copy.deepcopy(model)
    ids, mask = inputs(21)
    assert list(jieyue.use(model, attention="full()").values()) == texts
    real = mask.bool()
    ours, theirs = (one(ids, attention_mask=mask).logits[real] for one in (model, twin))
    noise = 10 * _noise(twin, ids, mask)
    assert torch.allclose(ours, theirs, atol=max(1e-11, noise))


def _noise(model, ids, mask):
    sdpa = model(ids, attention_mask=mask).logits[mask.bool()]
    model.set_attn_implementation("eager")
    return (model(ids, attention_mask=mask).logits[mask.bool()] - sdpa).abs().max().item()


def test_unknown_keywords_are_refused():
    model = make("llama")
    jieyue.use(model, attention="local(3)")
    ids = inputs(9)[0]
    for name, found in (("indices", "an indexer"), ("wobble", "passes wobble")):
        with pytest.raises(ValueError, match=found):
            model(ids, **{name: torch.zeros(1)})
    with pytest.raises(ValueError, match="an indexer: it passes indices"):
        jieyue.use(tiny_model(tiny_config("deepseek_v32")), attention="full()")


def test_what_reaches_attention_by_another_way_is_refused(monkeypatch):
    """The broken twin: an attention that reads an attribute of its module, as one of a later transformers may."""
    plain = modeling_llama.eager_attention_forward

    def secret(module, query, *args, **kwargs):
        return plain(module, query * getattr(module, "secret", 1.0), *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", secret)
    monkeypatch.setattr(modeling_llama.LlamaPreTrainedModel, "_supports_sdpa", False)
    model = build("LlamaConfig")
    jieyue.use(model, attention="full()")
    jieyue.use(model, attention=None)
    model.model.layers[1].self_attn.secret = 2.0
    with pytest.raises(ValueError, match="computes more than these say"):
        jieyue.use(model, attention="full()")
    assert attention_of(model) == {} and model.config._attn_implementation == "eager"


def test_a_cache_does_not_outlive_its_attention():
    model, token = make("llama"), torch.tensor([[7]])
    ids = torch.randint(3, 40, (1, 9))
    for now in (None, "atrous(3)", "linear(elu)"):
        jieyue.use(model, attention="local(3)")
        with torch.no_grad():
            past = model(ids, use_cache=True).past_key_values
            jieyue.use(model, attention=now)
            with pytest.raises(ValueError, match=r"a cache made under the attention causal\(local\(3\)\)"):
                model(token, past_key_values=past)
    jieyue.use(model, attention="local(3)")
    other = copy.deepcopy(model)
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="a cache made under"):
        other(token, past_key_values=past)
    model(token, past_key_values=copy.deepcopy(past))


@pytest.mark.parametrize("model_type", ["gemma4_text", "diffllama", "deepseek_v3"])
def test_keys_that_are_shared_read_twice_or_expanded_later(model_type):
    """Equal to the plain model with a cache, in generate() with padding, and under a pattern to no cache."""
    model = tiny_model(tiny_config(model_type))
    ids, mask = inputs(12, padding="left")
    plain = written(model, ids, attention_mask=mask, num_beams=2)
    jieyue.use(model, attention="full()")
    assert torch.equal(written(model, ids, attention_mask=mask, num_beams=2), plain)
    jieyue.use(model, attention="sparse(4)" if model_type != "deepseek_v3" else "local(2)+linear(elu)")
    cached, whole = (written(model, ids, attention_mask=mask, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached, whole)


def test_a_request_that_changes_nothing_is_told():
    model = build("MistralConfig", sliding_window=6)
    with pytest.warns(UserWarning, match=r"nothing changes.*\(local\(5\)\)"):
        jieyue.use(model, attention="linear(elu)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jieyue.use(model, attention="full()")
        jieyue.use(model, attention="linear(elu),linear(elu)")


def test_a_window_that_use_could_not_see_is_not_put_in_a_patterns_place():
    """An audio encoder has no inputs that a probe could make up: its first call tells of its window."""
    config, features = tiny_config("voxtral_realtime_encoder"), torch.randn(1, 16, 80).double()
    config.sliding_window = 6
    model = tiny_model(config)
    plain = model(features).last_hidden_state
    jieyue.use(model, attention="full()")
    assert torch.allclose(model(features).last_hidden_state, plain, atol=1e-11)
    jieyue.use(model, attention="local(3)")
    with pytest.raises(ValueError, match=r"of its own, 5 to each side.*given local\(3\).*a list with an entry"):
        model(features)
    jieyue.use(model, attention="local(3), local(3)")
    assert (model(features).last_hidden_state - plain).abs().max() > 1e-3


def test_models_of_one_configuration_are_apart():
    config = transformers.LlamaConfig(**GROUPED | PAD)
    teacher, student = (transformers.LlamaForCausalLM(config).double().eval() for _ in range(2))
    ids, mask = inputs(9)
    plain = teacher(ids, attention_mask=mask).logits
    jieyue.use(student, attention="local(3)")
    assert torch.equal(teacher(ids, attention_mask=mask).logits, plain) and "jieyue_attention" not in vars(config)
    assert student.config is student.model.config is student.model.layers[0].self_attn.config


def test_masks_of_the_callers_own_are_refused():
    model = make("llama")
    jieyue.use(model, attention="local(3)")
    ids, mask = inputs(9)
    for odd in ({"full_attention": mask[:, None, None]}, mask[:, None, None]):
        with pytest.raises(ValueError, match="four-dimensional"):
            model(ids, attention_mask=odd)


def test_layer_lists_and_windows_of_mixed_models():
    model = tiny_model(tiny_config("lfm2"))
    with pytest.raises(ValueError, match="list of 2 entries, expected at most one for each of the 1 self-att"):
        jieyue.use(model, attention="local(3),atrous(2)")
    config = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
    model = build("Lfm2Config", **config)
    assert list(jieyue.use(model, attention="local(3),atrous(2)").values()) == ["local(3)", "atrous(2)"]


def test_gemma_that_looks_both_ways():
    more = {
        "use_bidirectional_attention": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    model = build("Gemma3TextConfig", "AutoModel", **more)
    twin = copy.deepcopy(model)
    ids, mask = inputs(21)
    assert list(jieyue.use(model, attention="full()").values()) == [
        f"local({model.config.sliding_window - 1})",
        "full()",
    ]
    ours, theirs = (one(ids, attention_mask=mask)[0][mask.bool()] for one in (model, twin))
    assert torch.allclose(ours, theirs, atol=1e-11)


def test_an_encoder_and_a_decoder_put_together(tmp_path):
    for name in ("encoder", "decoder"):
        make("bert").save_pretrained(tmp_path / name)
    model = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(
        tmp_path / "encoder", tmp_path / "decoder"
    ).double()
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.pad_token_id = 0
    ids, mask = inputs(13)
    plain = written(model.eval(), ids, attention_mask=mask)
    assert len(jieyue.use(model, attention="full()")) == 4
    assert torch.equal(written(model, ids, attention_mask=mask), plain)
    jieyue.use(model, attention="local(2)")
    assert torch.equal(*(written(model, ids, attention_mask=mask, use_cache=use_cache) for use_cache in (True, False)))


def test_the_language_model_alone():
    config = tiny_config("llava")
    model = transformers.AutoModelForImageTextToText.from_config(config).double().eval()
    ids = torch.randint(3, 40, (2, 11))
    for attention in ("full()", "local(2)"):
        twin = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            given = jieyue.use(twin, attention=attention, part="language_model")
        assert all("language_model" in name for name in given) and len(given) == 2
        inner = copy.deepcopy(model)
        jieyue.use(inner.model.language_model, attention=attention)
        expected = written(model, ids) if attention == "full()" else written(twin, ids, use_cache=False)
        assert torch.equal(written(twin, ids), expected) and torch.equal(written(inner, ids), expected)
    with pytest.warns(UserWarning, match="patches of pictures"):
        jieyue.use(model, attention="local(2)")
    with pytest.raises(ValueError, match="0 modules of that path"):
        jieyue.use(model, attention="local(2)", part="language")
    with pytest.raises(ValueError, match="shares its configuration"):
        jieyue.use(make("bart"), attention="local(2)", part="encoder")


def test_linear_maps_refuse_assistants_before_the_first_token():
    model, _ = twins("llama")
    jieyue.use(model, attention="linear(elu)")
    with pytest.raises(ValueError, match=r"take rejected tokens back, which linear\(elu\) cannot"):
        model.generate(torch.tensor([[7, 8, 9, 7, 8]]), max_new_tokens=3, prompt_lookup_num_tokens=2)
