"""Generation with a memory per layer equals generation without a cache, in every mode; foreign caches are refused."""

import pytest
import torch
from attention_models import inputs, make
from transformers import DynamicCache, StaticCache

import jieyue
from jieyue.hf.cache import StateCache, StateLayer

MODES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
}
GENERATE = {"max_new_tokens": 12, "min_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}


def generate(model, ids, mask, use_cache, **options):
    torch.manual_seed(5)
    return model.generate(ids, attention_mask=mask, use_cache=use_cache, **GENERATE | options)


def state_cache(model, ids, **options):
    return model(ids, use_cache=True, **options).past_key_values


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("gpt2", "local(3)"),
        ("llama", "sparse(4),local(5)"),
        ("mistral", "atrous(3)"),
        ("bart", "local(2)"),
        ("qwen3", "linear(elu)"),
        ("gpt2", "linear(taylor2),sparse(3)"),
        ("llama", "local(3)+linear(elu)"),
        ("mistral", "linear(cosine, window=4),linear(relu)"),
        ("bart", "local(2)+linear(taylor2),linear(elu)"),
    ],
)
def test_generate_equals_no_cache(name, attention, mode):
    model = make(name)
    jieyue.use(model, attention=attention)
    ids, mask = inputs(17, padding="right" if name == "bart" else "left")
    cached, plain = (generate(model, ids, mask, use_cache, **MODES[mode]) for use_cache in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    for ours, theirs in zip(cached.logits, plain.logits, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)
    past = cached.past_key_values
    past = past.self_attention_cache if name == "bart" else past
    assert isinstance(past, StateCache) and all(isinstance(layer, StateLayer) for layer in past.layers)
    assert plain.past_key_values is None


@pytest.mark.parametrize(
    "attention", ["local(3)", "sparse(4)", "linear(elu)", "linear(elu, window=3)", "local(3)+linear(elu)"]
)
def test_steps_of_any_length_equal_the_whole(attention):
    """A direct call makes the cache; chunks, single tokens and padding within the past included."""
    model = make("llama")
    jieyue.use(model, attention=attention)
    ids, mask = inputs(29, padding="left")
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False, position_ids=torch.arange(29)[None]).logits
        past, rows = None, []
        for first, last in ((0, 13), (13, 14), (14, 20), (20, 21), (21, 29)):
            positions = torch.arange(first, last)[None]
            found = model(
                ids[:, first:last], attention_mask=mask[:, :last], past_key_values=past, position_ids=positions
            )
            past = found.past_key_values
            rows.append(found.logits)
    real = mask.bool()
    assert torch.allclose(torch.cat(rows, 1)[real], whole[real], atol=1e-11)
    assert past.get_seq_length() == 29


def test_local_memory_is_constant_and_sparse_reads_few_keys():
    held, reads = {}, {}
    constant = ("local(3)", "linear(elu)", "linear(elu, window=3)", "local(3)+linear(elu)")
    for attention in (*constant, "sparse(8, 4)", "full()"):
        model = make("llama", max_position_embeddings=512)
        jieyue.use(model, attention=attention)
        with torch.no_grad():
            past = state_cache(model, torch.randint(3, 40, (1, 200)))
            before = past.nbytes
            for _ in range(2):
                model(torch.tensor([[5]]), past_key_values=past)
        reads[attention] = getattr(past.layers[0].memory, "keys_read", None)
        short = state_cache(model, torch.randint(3, 40, (1, 20)))
        held[attention] = (short.nbytes, before, past.nbytes)
    assert all(len(set(held[attention])) == 1 for attention in constant)
    assert held["full()"][1] > 2 * held["full()"][0]
    assert held["local(3)"][2] < held["full()"][2] / 10
    assert (reads["local(3)"], reads["full()"]) == (4, 202)
    assert reads["sparse(8, 4)"] <= 202 / 8 + 5


def test_cropped_repeated_and_selected_rows():
    model = make("gpt2")
    jieyue.use(model, attention="sparse(4)")
    ids, _ = inputs(12)
    following = torch.randint(3, 40, (3, 2))
    with torch.no_grad():
        past = state_cache(model, ids)
        past.crop(-4)
        assert past.get_seq_length() == 8
        past.batch_repeat_interleave(2)  # rows 0 0 1 1
        past.batch_select_indices(torch.tensor([True, False, True, True]))  # 0 1 1
        past.reorder_cache(torch.tensor([1, 0, 2]))  # 1 0 1
        found = model(following, past_key_values=past).logits
        expected = model(torch.cat([ids[[1, 0, 1], :8], following], 1), use_cache=False).logits[:, -2:]
    assert torch.allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize("attention", ["local(3)", "sparse(4)"])
def test_assisted_decoding_takes_tokens_back(attention):
    model, helper = make("llama"), make("llama", num_hidden_layers=1)
    for part in (model, helper):
        jieyue.use(part, attention=attention)
    ids = torch.tensor([[7, 8, 9, 10, 7, 8, 9, 10, 7, 8]])
    plain = generate(model, ids, None, True).sequences
    assert torch.equal(generate(model, ids, None, True, prompt_lookup_num_tokens=3).sequences, plain)
    assert torch.equal(generate(model, ids, None, True, assistant_model=helper).sequences, plain)


def test_a_past_can_be_used_again_by_generate():
    model = make("gpt2")
    jieyue.use(model, attention="local(4)")
    ids, _ = inputs(12)
    with torch.no_grad():
        past = state_cache(model, ids[:, :9])
    found = generate(model, ids, None, True, past_key_values=past)
    assert torch.equal(found.sequences, generate(model, ids, None, False).sequences)


def test_foreign_caches_are_refused():
    model = make("llama")
    jieyue.use(model, attention="local(3)")
    ids, mask = inputs(9)
    with pytest.raises(ValueError, match="DynamicCache, whose keys a pattern cannot read"):
        model(ids, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="StaticCache, whose keys"):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=32))
    with pytest.raises(ValueError, match=r"cache_implementation='static'.*expected None"):
        model.generate(ids, attention_mask=mask, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="width 5, expected 9"):
        model(ids, attention_mask=mask[:, :5])


def test_our_cache_in_foreign_attention_is_refused():
    """The broken twin: without this alarm a step would see its own key only."""
    model = make("llama")
    jieyue.use(model, attention="local(3)")
    with torch.no_grad():
        past = state_cache(model, inputs(9)[0])
        model.set_attn_implementation("sdpa")
        model(torch.tensor([[5], [6]]), past_key_values=past)
        with pytest.raises(ValueError, match="attention that is not ours"):
            model(torch.tensor([[5], [6]]), past_key_values=past)


def test_gradients_flow_in_the_first_call_and_are_refused_later():
    model = make("gpt2")
    jieyue.use(model, attention="local(3)")
    ids, _ = inputs(9)
    grads = []
    for use_cache in (False, True):
        model.zero_grad()
        found = model(ids, use_cache=use_cache)
        found.logits.square().sum().backward()
        grads.append(model.transformer.wte.weight.grad.clone())
    past = found.past_key_values
    assert torch.allclose(*grads, atol=1e-10)
    later = model(ids[:, :1], past_key_values=past).logits
    with pytest.raises(ValueError, match="carry no gradient"):
        later.sum().backward()


def test_training_keeps_no_cache_unless_asked():
    model = make("gpt2").train()
    jieyue.use(model, attention="local(3)")
    ids, _ = inputs(9)
    assert model(ids).past_key_values is None
    assert isinstance(model(ids, use_cache=True).past_key_values, StateCache)
    assert isinstance(model.eval()(ids).past_key_values, StateCache)
