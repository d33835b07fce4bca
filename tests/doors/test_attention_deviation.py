"""The deviation of every head under a pattern: measured on the model's own q, k, v, never above its bound, padding apart."""

import contextlib
import json

import pytest
import torch
import transformers
from attention_models import GROUPED, PAD, SMALL, inputs, make, skip_where_it_differs_from_itself

import jieyue
from jieyue.bench.deviation import statements
from jieyue.cli import build
from jieyue.errors import InputError
from jieyue.hf.attention import attention_of
from jieyue.hf.attention_deviation import check_drops, draws_needed, measure_deviation, tokens_to_drop
from jieyue.hf.row_losses import as_written
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer


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
    with pytest.raises(InputError, match="an encoder with a decoder"):
        measure_deviation(make("bart"), [batch()], "local(2)")
    broken = make("llama")
    torch.nn.init.constant_(broken.model.layers[1].self_attn.v_proj.weight, torch.inf)
    with pytest.raises(InputError, match=r"not finite in model\.layers\.1"):
        measure_deviation(broken, [batch()], "local(2)", num_queries=9)
    holes = batch()
    holes["attention_mask"][:, 4] = 0
    with pytest.raises(InputError, match="between tokens"):
        measure_deviation(model, [holes], "local(2)", num_queries=200)


OTHERS = {
    "gemma2": {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4, "sliding_window": 6},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "experts_implementation": "eager", "sliding_window": 6},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2},
    "mpnet": {},
}  # fmt: skip


def other(name):
    """A family whose logits are more than products of queries and keys."""
    build = transformers.T5EncoderModel if name == "t5" else transformers.AutoModel.from_config
    settings = (
        {} if name == "t5" else (GROUPED | PAD if "_" in name or "2" in name else SMALL | {"num_hidden_layers": 2})
    )
    model = build(transformers.AutoConfig.for_model(name, **{"vocab_size": 40, **settings, **OTHERS[name]}))
    for own in model.parameters():
        own.data.mul_(6) if own.ndim > 1 else own.data.add_(torch.randn_like(own) * 0.3)
    return model.double().eval()


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_in_the_logits_is_in_the_mass(name):
    """Soft-capped logits, sinks and biases by offset, against the weights that the model itself tells."""
    skip_where_it_differs_from_itself(name)
    model = other(name)
    ids = inputs(15)[0]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = measure_deviation(model, [given], "local(2)", num_queries=800)
    with contextlib.suppress(ValueError):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        told = model(**given, output_attentions=True).attentions
    away = (torch.arange(15)[:, None] - torch.arange(15)).abs() > 2
    for layer, weights in zip(found, told, strict=True):
        kept = layer.pattern == "local(5)"  # a window of the layer's own
        masses = (weights * (away & ~torch.tensor(kept))).sum(-1).transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(layer.found.mass.amax(1), masses.amax(1), rtol=0, atol=1e-6)
        assert float((layer.found.mass[..., None] - masses[:, None]).abs().amin(-1).max()) < 1e-6
        assert kept or float(masses.max()) > 0.1
        assert not bool(layer.found.violated.any())


def test_a_module_that_runs_twice_is_two_layers():
    """The fault: ALBERT's queries were counted once a layer, as if twice as many had been drawn for one."""
    model = make("albert")
    found = measure_deviation(model, [batch()], "local(2)", share=0.9, confidence=0.9)
    assert [layer.layer.rpartition(", ")[2] for layer in found] == ["pass 1", "pass 2"]
    needed = draws_needed(2 * model.config.num_attention_heads, 0.9, 0.9)
    assert all(layer.found.mass.shape[1] == needed for layer in found)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        told = model(**batch(), output_attentions=True).attentions
    away = (torch.arange(21)[:, None] - torch.arange(21)).abs() > 2
    for layer, weights in zip(found, told, strict=True):
        masses = (weights * away).sum(-1).transpose(0, 1)[:, batch()["attention_mask"].bool()]
        assert float((layer.found.mass[..., None] - masses[:, None]).abs().amin(-1).max()) < 1e-12


def test_windows_of_the_models_own_stay_as_use_leaves_them():
    """The fault: a pattern was bounded on layers that keep a window of their own and never wear it."""
    model = make("mistral", sliding_window=6)
    with pytest.raises(InputError, match="all keep a window of their own"), pytest.warns(UserWarning, match="nothing"):
        measure_deviation(model, [batch()], "local(2)", num_queries=9)
    assert not attention_of(model)
    found = measure_deviation(model, [batch()], "local(2),local(3)", num_queries=200)
    assert [layer.pattern for layer in found] == ["local(2)", "local(3)"]
    with pytest.raises(InputError, match="own window of 5 to each side hides"):
        measure_deviation(model, [batch()], "local(2),local(8)", num_queries=200)


def test_the_text_is_read_as_it_is_written():
    """The fault: queries of a masked-LM's text were drawn with its hidden tokens in place."""
    ids = torch.randint(5, 40, (2, 9))
    hidden = torch.arange(9) % 3 == 1
    one = {"input_ids": ids.masked_fill(hidden, 4), "labels": ids.masked_fill(~hidden, -100)}
    assert torch.equal(as_written(one)["input_ids"], ids) and set(as_written(one)) == {"input_ids"}
    assert as_written({"input_ids": ids})["input_ids"] is ids


def test_rows_are_long_enough_for_the_pattern_to_drop_keys():
    """The fault: first(4)+local(512) was bounded on rows of 128 tokens, of which it drops none."""
    assert [tokens_to_drop(one, 4096) for one in ("local(8)", "local(64)", "first(4)+local(512)", "full(),local(8)")] == [
        128, 256, 2048, 128,
    ]  # fmt: skip
    assert tokens_to_drop("local(512)", 512) == 512 and tokens_to_drop("full()", None) == 16_384
    check_drops("local(8),full()", 10)
    with pytest.raises(InputError, match="drops no key of rows of 9 tokens"):
        check_drops("local(8),full()", 9)


def test_short_lines_are_read_as_running_text(tmp_path, capsys):
    """The fault: a pattern was refused on a text of short lines, since no line alone was longer than it reaches."""
    lines = [f"alpha beta {'gamma' if n % 3 else 'delta'}" for n in range(90)]
    (tmp_path / "text.txt").write_text("\n".join(f"{line} {n}" for n, line in enumerate(lines)), encoding="utf-8")
    tokenizer = make_tokenizer(learn_vocabulary(lines))
    make("llama", vocab_size=len(tokenizer), max_position_embeddings=48).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    asked = ["verify", "attention", str(tmp_path / "model"), "--attention", "local(20)", "--json"]
    asked += ["--text", str(tmp_path / "text.txt"), "--share", "0.9", "--confidence", "0.9"]
    build("verify")(asked, prog_name="jieyue", standalone_mode=False)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    heads = [one for one in told if one["event"] == "deviation"]
    assert len(heads) == 2 * make("llama").config.num_attention_heads
    for one in heads:
        assert {"layer", "head", "m", "bound", "deviation", "violations"} <= set(one)
        assert one["violations"] == 0 and 0 < one["deviation"] <= one["bound"] and 0 < one["m"] < 1
    (report,) = (one for one in told if one["event"] == "report")
    facts = {item["what"]: item["value"] for part in report["sections"] for item in part["items"] if "what" in item}
    assert facts["tokens read"] >= facts["longest row"] == 48, "no longer than the model has positions"
