"""The deviation of every head under a pattern: measured on the model's own q, k, v, never above its bound, padding apart."""

import pytest
import torch
from attention_models import inputs, make

import jieyue
from jieyue.bench.deviation import statements
from jieyue.errors import InputError
from jieyue.hf.attention import attention_of
from jieyue.hf.attention_deviation import check_drops, draws_needed, measure_deviation, tokens_to_drop


def batch():
    torch.manual_seed(7)
    ids, mask = inputs(21)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_heads_are_measured_and_the_model_is_left_as_it_was(name):
    model = make(name)
    before = model(**batch()).logits
    found = measure_deviation(model, [batch()] * 2, "local(2)", num_queries=80)
    assert torch.equal(model(**batch()).logits, before) and not attention_of(model)
    assert len(found) == 2
    for layer in found:
        assert layer.found.mass.shape[1] == 80 and not bool(layer.found.violated.any())
        assert 0 < float(layer.found.mass.max()) <= 1
    assert all(
        bool((layer.found.mass == 0).all()) for layer in measure_deviation(model, [batch()], "full()", num_queries=9)
    )


def test_the_first_layer_moves_as_far_as_it_says():
    """The broken twin's guard: what is told of a head is what putting the pattern into the model does to that layer."""
    model = make("bert").double()
    ids, mask = batch().values()
    outputs = []
    first = model.bert.encoder.layer[0].attention.self
    handle = first.register_forward_hook(lambda module, given, found: outputs.append(found[0]))
    model(ids, attention_mask=mask)
    jieyue.use(model, attention="local(2)")
    model(ids, attention_mask=mask)
    jieyue.use(model, attention=None)
    handle.remove()
    heads = model.config.num_attention_heads
    whole, near = (x.unflatten(-1, (heads, -1)) for x in (outputs[0], outputs[-1]))
    moved = (whole - near).detach().norm(dim=-1)[mask.bool()]  # [tokens, heads]
    found = measure_deviation(model, [{"input_ids": ids, "attention_mask": mask}], "local(2)", num_queries=4000)[
        0
    ].found
    assert float(found.distance.max()) == pytest.approx(float(moved.max()), rel=1e-6)
    torch.testing.assert_close(found.distance.mean(1), moved.mean(0), rtol=0.1, atol=0)


def test_left_and_right_padding_give_the_same():
    model = make("llama").double()
    ids = torch.randint(5, 40, (1, 12), generator=torch.Generator().manual_seed(1))
    pad, ones = torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 12, dtype=torch.long)
    right = {"input_ids": torch.cat([ids, pad], 1), "attention_mask": torch.cat([ones, pad], 1)}
    left = {"input_ids": torch.cat([pad, ids], 1), "attention_mask": torch.cat([pad, ones], 1)}
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    one, other = (
        measure_deviation(model, [each], "first(1)+local(2)", num_queries=50)[1].found for each in (right, left)
    )
    torch.testing.assert_close(one.distance, other.distance, rtol=0, atol=1e-10)


def test_statements_cover_all_heads_at_once():
    model = make("bert")
    found = measure_deviation(model, [batch()], "local(2)", share=0.9, confidence=0.9)
    made = statements(found, share=0.9, confidence=0.9)
    heads = 2 * model.config.num_attention_heads
    assert len(made) == heads and made[0].queries == draws_needed(heads, 0.9, 0.9)
    for one in made:
        assert one.violations == 0 and 0 <= one.deviation <= one.bound and 0 <= one.m < 1 and one.ratio >= 1
    assert all(one.m is None for one in statements(found, share=0.999, confidence=0.9))


def test_what_the_bound_does_not_cover_is_refused():
    model = make("bert")
    for attention in ("linear(elu)", "local(2)+linear(elu)"):
        with pytest.raises(InputError, match="patterns alone"):
            measure_deviation(model, [batch()], attention)
    with pytest.raises(InputError, match="no batch"):
        measure_deviation(model, [], "local(2)")
    holes = batch()
    holes["attention_mask"][:, 4] = 0
    with pytest.raises(InputError, match="between tokens"):
        measure_deviation(model, [holes], "local(2)", num_queries=200)


def test_rows_are_long_enough_for_the_pattern_to_drop_keys():
    """The fault: first(4)+local(512) was bounded on rows of 128 tokens, of which it drops none."""
    assert [tokens_to_drop(one, 4096) for one in ("local(8)", "local(64)", "first(4)+local(512)", "full(),local(8)")] == [
        128, 256, 2048, 128,
    ]  # fmt: skip
    assert tokens_to_drop("local(512)", 512) == 512 and tokens_to_drop("full()", None) == 16_384
    check_drops("local(8),full()", 10)
    with pytest.raises(InputError, match="drops no key of rows of 9 tokens"):
        check_drops("local(8),full()", 9)
