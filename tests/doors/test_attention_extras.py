"""What real models wear besides a mask: packed rows, soft-capping, sinks, position biases; first keys under padding."""

import copy

import pytest
import torch
import transformers
from attention_models import GROUPED, PAD, inputs, make, skip_where_it_differs_from_itself

import jieyue
from jieyue.errors import InputError
from jieyue.hf.tiny import tiny_config, tiny_model

LENGTHS = (9, 4, 12)


def packed_inputs(generator=None):
    ids = torch.randint(3, 40, (1, sum(LENGTHS)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return ids, positions


def build(kind, **more):
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**GROUPED | PAD | more)
    config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 or "sinks" in name:
                p.normal_(0, 0.2)
    return model


EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": 5}
MODELS = {
    "llama": lambda: build("LlamaConfig"),
    "gpt-oss": lambda: build("GptOssConfig", **EXPERTS),
    "gemma2": lambda: build("Gemma2Config", sliding_window=5, attn_logit_softcapping=5.0, final_logit_softcapping=None),
}


@pytest.mark.parametrize("attention", ["full()", "local(3)+atrous(4)", "first(2)+local(3)"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_equal_their_documents_alone(name, attention):
    """Outputs and gradients; told by positions that start again, and by the ends of the documents."""
    skip_where_it_differs_from_itself(name)
    model = MODELS[name]()
    jieyue.use(model, attention=attention)
    ids, positions = packed_inputs()
    alone = torch.cat([model(part, use_cache=False).logits for part in ids.split(LENGTHS, 1)], 1)
    alone.square().sum().backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    ends = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    for more in ({}, {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 12, "max_length_k": 12}):
        model.zero_grad()
        found = model(ids, position_ids=positions, **more).logits
        assert torch.allclose(found, alone, atol=1e-7 if name == "gpt-oss" else 1e-11)
        found.square().sum().backward()
        for key, p in model.named_parameters():
            if p.grad is not None:
                assert torch.allclose(p.grad, expected[key], atol=1e-5 if name == "gpt-oss" else 1e-8), key


@pytest.mark.parametrize("attention", ["linear(elu)", "local(2)+linear(elu)", "linear(relu, window=3)"])
def test_packed_rows_under_linear_maps(attention):
    model = MODELS["llama"]()
    jieyue.use(model, attention=attention)
    ids, positions = packed_inputs()
    alone = torch.cat([model(part, use_cache=False).logits for part in ids.split(LENGTHS, 1)], 1)
    assert torch.allclose(model(ids, position_ids=positions).logits, alone, atol=1e-11)


def test_packing_matters():
    """The broken twin: positions that do not start again."""
    model = MODELS["llama"]()
    jieyue.use(model, attention="full()")
    ids, positions = packed_inputs()
    packed = model(ids, position_ids=positions).logits
    assert not torch.allclose(packed, model(ids).logits, atol=1e-6)


@pytest.mark.parametrize("attention", ["first(2)+local(2)", "global(2)+atrous(3)", "first(2)+local(1)+linear(elu)"])
def test_first_keys_count_from_each_rows_first_token(attention):
    """A left-padded batch equals each row alone, in one call and in ``generate``."""
    model = make("llama")
    jieyue.use(model, attention=attention)
    ids, mask = inputs(19, padding="left")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    written = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(written, model.generate(ids, attention_mask=mask, use_cache=False, **options))
    for row, kept in enumerate(mask.bool()):
        own = ids[row : row + 1, kept]
        assert torch.allclose(together[row : row + 1, kept], model(own, use_cache=False).logits, atol=1e-11)
        assert torch.equal(written[row, ids.shape[1] :], model.generate(own, **options)[0, own.shape[1] :])


@pytest.mark.parametrize("model_type", ["t5", "umt5"])
def test_position_biases_by_offset(model_type, monkeypatch):
    """T5's own matrix of biases is never made for self-attention; the table's gradient is the plain model's."""
    skip_where_it_differs_from_itself(model_type)
    model = tiny_model(tiny_config(model_type))
    twin = copy.deepcopy(model)
    ids, mask = inputs(23)
    targets = inputs(13)[0]
    jieyue.use(model, attention="full()", dropout=0.0)
    kind = type(model.encoder.block[0].layer[0].SelfAttention)
    plain, shapes = kind.compute_bias, []

    def spy(module, query_length, key_length, **more):
        shapes.append((query_length, key_length))
        return plain(module, query_length, key_length, **more)

    call = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": targets, "use_cache": False}
    expected = twin(**call).logits
    monkeypatch.setattr(kind, "compute_bias", spy)
    found = model(**call).logits
    assert set(shapes) == {(1, 45), (1, 25)}
    assert torch.allclose(found, expected, atol=1e-11)
    found.square().sum().backward()
    monkeypatch.undo()
    expected.square().sum().backward()
    for (key, p), q in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.allclose(p.grad, q[1].grad, atol=1e-8), key
    jieyue.use(model, attention=None)
    assert torch.equal(model(**call).logits, expected)


@pytest.mark.parametrize("model_type", ["t5", "bert"])
def test_packed_rows_of_encoders_equal_their_documents(model_type):
    model = tiny_model(tiny_config(model_type))
    model = model.encoder if model_type == "t5" else model
    jieyue.use(model, attention="local(3)")
    ids, positions = packed_inputs()
    places = torch.cat([torch.full((length,), place) for place, length in enumerate(LENGTHS)])[None]
    more = {} if model_type == "t5" else {"position_ids": positions}
    alone = torch.cat([model(part)[0] for part in ids.split(LENGTHS, 1)], 1)
    assert torch.allclose(model(ids, seq_idx=places, **more)[0], alone, atol=1e-11)


PACKED = ((5, 9), (12,), (3, 4, 6))  # documents of each row; rows end in padding of their own
PADDED = [length for row in PACKED for length in row]


def documents(generator):
    """The documents as a padded batch [6, 12] with its mask, and packed [3, 14]: tokens, positions, the document of each, -1 = none."""
    padded = torch.zeros(len(PADDED), max(PADDED), dtype=torch.long)
    mask = torch.arange(max(PADDED)) < torch.tensor(PADDED)[:, None]
    padded[mask] = torch.randint(3, 40, (sum(PADDED),), generator=generator)
    parts = iter([row[own] for row, own in zip(padded, mask, strict=True)])
    packed = torch.zeros(3, len(PACKED), max(map(sum, PACKED)), dtype=torch.long)
    packed[2] = -1
    for row, lengths in enumerate(PACKED):
        end = sum(lengths)
        packed[0, row, :end] = torch.cat([next(parts) for _ in lengths])
        packed[1, row, :end] = torch.cat([torch.arange(length) for length in lengths])
        packed[2, row, :end] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return padded, mask, packed


@pytest.mark.parametrize("name", ["llama", "t5", "gpt-oss"])
def test_a_packed_batch_equals_the_plain_models_padded_one(name):
    """Outputs and gradients in float64, within 10 times what the model's own SDPA and eager attention differ by."""
    model = transformers.T5EncoderModel(tiny_config("t5")).double().eval() if name == "t5" else MODELS[name]()
    padded, mask, (ids, positions, places) = documents(torch.Generator().manual_seed(4))
    found = {}
    for attention in ("eager", "sdpa"):
        twin = copy.deepcopy(model)
        if attention == "sdpa" and not twin._supports_sdpa:
            continue  # then its weights may be rounded to float32
        twin.set_attn_implementation(attention)
        more = {} if name == "t5" else {"use_cache": False}
        out = twin(padded, attention_mask=mask.long(), **more)[0][mask]
        out.square().sum().backward()
        found[attention] = (out, {key: p.grad for key, p in twin.named_parameters() if p.grad is not None})
    expected, gradients = found["eager"]
    noise = float((found["sdpa"][0] - expected).detach().abs().max()) if "sdpa" in found else 1e-7
    jieyue.use(model, attention="full()", dropout=0.0)
    out = model(ids, seq_idx=places, **({} if name == "t5" else {"position_ids": positions, "use_cache": False}))[0]
    assert bool((out[places < 0].isfinite()).all())
    out = out[places >= 0]
    most = max(1e-12, 10 * noise) * max(1.0, float(expected.detach().abs().max()))
    assert float((out - expected).detach().abs().max()) <= most
    out.square().sum().backward()
    for key, p in model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(p.grad, gradients[key], rtol=0, atol=1e3 * most, msg=key)


@pytest.mark.parametrize("name", ["llama", "bert", "bart"])
def test_a_keyword_that_nobody_names_is_refused_before_any_layer_runs(name):
    model = make(name)
    jieyue.use(model, attention="full()")
    ran = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.register_forward_pre_hook(lambda module, args: ran.append(module))
    ids, mask = inputs(9)
    with pytest.raises(InputError, match="passes strange"):
        model(ids, attention_mask=mask, strange=torch.ones(1))
    assert not ran
    assert model(ids, attention_mask=mask, labels=ids, num_items_in_batch=3, strange=None).loss.isfinite() and ran
    jieyue.use(model, attention=None)
    model(ids, attention_mask=mask, strange=torch.ones(1))
