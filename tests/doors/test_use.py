"""``use`` and ``load``: what was chosen is saved and restored, plain transformers refuses it, and so is all we cannot honour."""

import json
import warnings

import pytest
import torch
import transformers
from attention_models import GROUPED, PAD, SMALL, inputs, make

import jieyue
from jieyue.hf.attention import attention_of, use_attention
from jieyue.hf.loading import load_model, model_from_config


def saved(model, folder):
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def test_load_save_load_keeps_everything(tmp_path):
    model = make("gpt2", attn_pdrop=0.3)
    given = jieyue.use(model, attention="local(3),linear(elu)", dropout=0.0, gelu="tanh-minimax")
    assert given["transformer.h.0.attn"] == "local(3)" and given["transformer.h.1.attn"] == "linear(elu)"
    assert given["transformer.h.0.mlp.act"] == "gelu tanh-minimax"
    config = saved(model, tmp_path / "once")
    assert config["jieyue_attention"] == "local(3),linear(elu)"
    assert config["attn_implementation"] == "jieyue:local(3),linear(elu)"
    again = load_model(tmp_path / "once", "causal-lm").double()
    assert saved(again, tmp_path / "twice") == config
    ids, mask = inputs(9)
    for one in (again, load_model(tmp_path / "twice", "causal-lm").double()):
        assert attention_of(one) == attention_of(model)
        assert torch.equal(one(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)
    assert list(attention_of(model_from_config(again.config, "causal-lm")).values()) == ["local(3)", "linear(elu)"]
    jieyue.use(again, attention=None, gelu="none")
    assert "jieyue" not in json.dumps(saved(again, tmp_path / "without"))


def test_plain_transformers_refuses_the_folder(tmp_path, fresh):
    model = make("bert", num_hidden_layers=1)
    jieyue.use(model, attention="sparse(4)")
    saved(model, tmp_path)
    refused = fresh(f"import transformers\ntransformers.AutoModelForMaskedLM.from_pretrained({str(tmp_path)!r})")
    assert (
        refused.returncode != 0 and 'ValueError: Specified `attn_implementation="jieyue:sparse(4)"`' in refused.stderr
    )


@pytest.mark.parametrize(("name", "attention"), [("llama", "first(2)+local(3),full()"), ("bert", "local(3),atrous(2)")])
def test_plain_transformers_opens_the_folder_once_ours_is_imported(name, attention, tmp_path, fresh):
    """Plain loading must mean the patterns: layer by layer what ``load`` gives, in ``generate`` as well."""
    model, ids = make(name), inputs(19)[0]
    kind = "AutoModelForCausalLM" if name == "llama" else "AutoModelForMaskedLM"
    jieyue.use(model, attention=attention)
    saved(model, tmp_path)
    plain = getattr(transformers, kind).from_pretrained(tmp_path).double()
    expected = model(ids).logits
    assert torch.equal(plain(ids).logits, expected) and list(attention_of(plain).values()) == attention.split(",")
    twin = getattr(transformers, kind).from_pretrained(tmp_path, attn_implementation="sdpa").double()  # means all keys
    assert not torch.allclose(twin(ids).logits, expected)
    if name == "llama":
        asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
        assert torch.equal(plain.generate(ids, **asked), model.generate(ids, **asked))
    code = f"import jieyue.hf, transformers; transformers.{kind}.from_pretrained({str(tmp_path)!r})"
    assert fresh(code).returncode == 0


def test_windows_of_a_models_own_stay_where_transformers_opens_the_folder(tmp_path):
    """One entry for all layers leaves own windows; the folder has to say which, since no module can tell before its first call."""
    sizes = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    config = transformers.Gemma3TextConfig(**GROUPED | PAD | sizes)
    model, ids = transformers.Gemma3ForCausalLM(config).double().eval(), inputs(19)[0]
    jieyue.use(model, attention="first(2)+local(5)")
    saved(model, tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).double()
    ours = load_model(tmp_path, "causal-lm").double()
    assert torch.equal(plain(ids).logits, ours(ids).logits)
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, rtol=0, atol=1e-6)  # its scale is kept in float32
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    assert torch.equal(plain.generate(ids, **asked), model.generate(ids, **asked))
    assert list(attention_of(plain).values()) == list(attention_of(model).values())


def test_what_a_module_alone_cannot_tell_is_refused(tmp_path):
    model = make("bart")
    jieyue.use(model, attention="local(3)")
    saved(model, tmp_path)
    with pytest.raises(ValueError, match=r"jieyue\.load"):
        transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)(inputs(9)[0])


def test_dropout_alone_and_nothing_at_all():
    model = make("bert")
    with pytest.raises(ValueError, match="nothing to do"):
        jieyue.use(model)
    with pytest.raises(ValueError, match="no attention of ours"):
        jieyue.use(model, dropout=0.0)
    with pytest.raises(ValueError, match="only together"):
        jieyue.use(model, attention=None, dropout=0.1)
    jieyue.use(model, attention=jieyue.local(3) | jieyue.atrous(4))
    jieyue.use(model, dropout=0.25)
    assert model.config.jieyue_attention_dropout == 0.25
    assert set(attention_of(model).values()) == {"local(3)+atrous(4)"}


def test_pretrained_softmax_models_warn_before_linear_maps(tmp_path):
    model = make("bert", num_hidden_layers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jieyue.use(model, attention="linear(relu)")
        jieyue.use(model, attention=None)
        saved(model, tmp_path / "softmax")
        jieyue.use(model, attention="linear(relu)")
        saved(model, tmp_path / "linear")
        jieyue.use(load_model(tmp_path / "linear"), attention="linear(elu)")
        jieyue.use(load_model(tmp_path / "softmax"), attention="local(4)")
    with pytest.warns(UserWarning, match="trained with softmax attention.*nearly uniform"):
        jieyue.use(load_model(tmp_path / "softmax"), attention="linear(elu)")


@pytest.mark.parametrize(
    ("attention", "found"),
    [
        ("lokal(3)", "a pattern is term"),
        ("local(3),", "a pattern is term"),
        ("local(3),atrous(4),full()", "list of 3 entries, expected at most one for each of the 2"),
        ("linear(elo)", "did you mean 'elu'"),
        ("linear()", "expected one of elu"),
        ("linear(softmax)", "later keys would change"),
    ],
)
def test_text_that_cannot_be_read_or_run(attention, found):
    model = make("gpt2")
    with pytest.raises(ValueError, match=found):
        jieyue.use(model, attention=attention)
    assert not attention_of(model)


def model_of(kind, auto="AutoModelForCausalLM", **more):
    return getattr(transformers, auto).from_config(getattr(transformers, kind)(**GROUPED | PAD | more))


@pytest.mark.parametrize(
    ("build", "attention", "found"),
    [
        (lambda: make("albert"), "local(3),atrous(4)", "share one module"),
        (
            lambda: model_of("RoFormerConfig", "AutoModelForMaskedLM"),
            "local(3)",
            "outside transformers' attention interface",
        ),
        (
            lambda: model_of("Gemma2Config", final_logit_softcapping=None),
            "linear(elu)",
            "asks for softcap, which only exact",
        ),
        (lambda: model_of("GptOssConfig", num_local_experts=2, num_experts_per_tok=1), "linear(elu)", "asks for sinks"),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=40, d_model=16, d_ff=16, d_kv=4, num_heads=2, num_layers=1)
            ),
            "linear(elu)",
            "asks for offset_bias",
        ),
        (lambda: torch.nn.Linear(2, 2), "local(3)", "outside transformers' attention interface"),
    ],
    ids=["albert", "roformer", "gemma2", "gpt-oss", "t5", "no model"],
)
def test_models_that_cannot_be_honoured(build, attention, found):
    with pytest.raises(ValueError, match=found):
        jieyue.use(build(), attention=attention)


@pytest.mark.parametrize(
    ("name", "call", "found"),
    [
        ("bert", {"attention_mask": torch.zeros(1, 1, 8, 8)}, "four-dimensional"),
        ("bert", {"output_attentions": True}, "no attention matrix"),
        ("gpt2", {"output_attentions": True}, "no attention matrix"),
        (
            "llama",
            {"position_ids": torch.arange(8)[None] % 4, "use_cache": True},
            "packed documents with use_cache=True",
        ),
        ("llama", {"cu_seq_lens_q": torch.tensor([0, 4, 9])}, r"cu_seq_lens_q \[0, 4, 9\] for a row of 8"),
        ("llama", {"softcap": 30.0}, "passes softcap"),
        ("llama", {"sliding_window": 4}, "sliding_window=4"),
    ],
)
def test_calls_that_cannot_be_honoured(name, call, found):
    model = make(name)
    jieyue.use(model, attention="local(3)")
    with pytest.raises(ValueError, match=found):
        model(torch.randint(3, 40, (1, 8)), **call)


def test_linear_maps_refuse_dropout():
    model = make("bert", attention_probs_dropout_prob=0.1).train()
    jieyue.use(model, attention="linear(elu)")
    with pytest.raises(ValueError, match=r"attention dropout of 0\.1.*dropout=0\.0"):
        model(inputs(9)[0])
    jieyue.use(model, dropout=0.0)
    model(inputs(9)[0])


def test_a_layer_that_bypasses_the_interface_is_noticed(monkeypatch):
    """The broken twin of every equality test: attention that never comes through here."""
    model = make("bert")
    jieyue.use(model, attention="local(3)")
    module = model.bert.encoder.layer[1].attention.self
    monkeypatch.setattr(module, "forward", lambda hidden, *_, **__: (hidden, None))
    with pytest.raises(RuntimeError, match="ran without it"):
        model(inputs(9)[0])


def test_using_twice_and_composite_models():
    encoder, decoder = (transformers.BertConfig(**SMALL, num_hidden_layers=1) for _ in range(2))
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = transformers.EncoderDecoderModel(config).double().eval()
    for attention in ("full()", "local(2)"):
        given = use_attention(model, attention)
    assert len(given) == 2
    ids, mask = inputs(11)
    options = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))
