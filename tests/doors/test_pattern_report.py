"""A run with a pattern reports what each layer got, by which engine, and what it saves against full attention."""

from functools import partial

import torch
from attention_models import SMALL, inputs, make
from transformers import BertConfig

import jieyue
from jieyue.hf.attention import attention_engines, attention_of
from jieyue.hf.loading import model_from_config
from jieyue.run.measure import _patterned


def test_both_sides_of_the_comparison_are_what_they_say():
    """A pattern given to one model of a configuration stays off the next, also where the configuration itself names one."""
    config = BertConfig(**SMALL, num_hidden_layers=2)
    plain = partial(model_from_config, config)
    assert set(attention_of(_patterned(plain, "local(3)")).values()) == {"local(3)"}
    assert attention_of(_patterned(plain, "full()")) == {}
    assert "jieyue" not in str(config)
    named = _patterned(plain, "atrous(3)").config
    assert attention_of(_patterned(partial(model_from_config, named), "full()")) == {}
    assert set(attention_of(_patterned(partial(model_from_config, named), "local(3)")).values()) == {"local(3)"}


def test_engines_are_reported_with_reasons():
    model = make("bert", num_hidden_layers=3)
    jieyue.use(model, attention="local(3),linear(elu)")
    assert attention_engines(model) == []  # nothing has run yet
    ids, mask = inputs(9)
    model(ids, attention_mask=mask)
    patterned, linear = attention_engines(model)
    assert patterned[0].count("attention.self") == 2 and patterned[1:3] == ("local(3)", "dense")
    assert "float64" in patterned[3] and linear[1] == "linear(elu)"
    model.float()
    jieyue.use(model, attention="full()")
    model(ids, attention_mask=mask)
    ((_, text, engine, reasons),) = attention_engines(model)
    assert (text, engine in ("native", "dense"), bool(reasons)) == ("full()", True, engine == "dense")


def test_grouped_heads_reach_the_kernel_as_they_are(monkeypatch):
    """Each layer calls it once, with the keys' own two heads for four of the queries."""
    import jieyue.hf.pattern_entries as entries

    model = make("llama")
    jieyue.use(model, attention="sparse(4)")
    seen, attend = [], entries.attend

    def spy(q, k, v, *more, **options):
        seen.append((q.shape[1], k.shape[1], v.shape[1]))
        return attend(q, k, v, *more, **options)

    monkeypatch.setattr(entries, "attend", spy)
    model(torch.randint(3, 40, (1, 12)), use_cache=False)
    assert seen == [(4, 2, 2)] * 2


def test_engines_are_asked_about_the_call_that_runs(monkeypatch):
    """With its mask, documents, causality and dropout, not about the pattern alone."""
    import jieyue.hf.layers as layers

    model = make("llama").train()
    jieyue.use(model, attention="first(2)+local(4)", dropout=0.25)
    calls, why = [], layers.why
    monkeypatch.setattr(layers, "why", lambda call: calls.append(call) or why(call))
    ids, mask = inputs(12, padding="left")
    model(ids, attention_mask=mask, use_cache=False)
    assert len(calls) == 2 and all(
        call.pattern.is_causal
        and call.dropout == 0.25
        and call.key_mask is not None
        and call.asked == ("first", "segments")
        for call in calls
    )
