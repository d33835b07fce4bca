"""Adapters: outputs as before at the start, gradients of W + s·B·A, a folder that computes the same; four bits as NF4 is defined."""

import importlib.util

import pytest
import torch
from torch.func import functional_call

from jieyue.errors import InputError, MissingExtra
from jieyue.hf.four_bit import (
    BLOCKS,
    EXACT,
    _by_definition,
    block_of,
    check_rounding,
    dequantised,
    four_bit,
    is_four_bit,
)
from jieyue.hf.loading import load_config, load_model, model_from_config
from jieyue.hf.low_rank import Adapter, adapted_layers, trained_share
from jieyue.hf.merged import merged_weights, save_merged
from jieyue.hf.tiny import tiny_config, tiny_model
from jieyue.tasks import RunConfig

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
needs_four_bit = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("peft") is None,
    reason="bitsandbytes or peft is not installed",
)
IDS = torch.arange(5, 29).view(2, 12)


def small(kind):
    """Float32, wide enough that some rows are multiples of a block."""
    wide = {"n_embd": 64, "n_inner": 128} if kind == "gpt2" else {"hidden_size": 64, "intermediate_size": 96}
    return tiny_model(tiny_config(kind, **wide)).float()


def stirred(model):
    """As if trained for a while."""
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    return model


def first(model):
    return model(input_ids=IDS)[0]


@needs_peft
@pytest.mark.parametrize("kind", ["bert", "gpt2", "albert", "qwen2", "modernbert"])
def test_outputs_stay_and_the_folder_computes_the_same(kind, tmp_path):
    model = tiny_model(tiny_config(kind))
    model.save_pretrained(tmp_path / "before")
    with torch.no_grad():
        before = first(model)
        adapted = Adapter(rank=3).put_into(load_model(tmp_path / "before", _head(kind)), head=_head(kind)).eval()
        assert (first(adapted) - before).abs().max() < 1e-12
        trained = first(stirred(adapted))
        assert (trained - before).abs().max() > 1e-3
        (tmp_path / "after").mkdir()
        save_merged(adapted, tmp_path / "after")
        found = first(load_model(tmp_path / "after", _head(kind)))
        assert (found - trained).abs().max() < 1e-12
    assert {*model.state_dict()} - {*dict(merged_weights(adapted))} <= {*model.all_tied_weights_keys}


def _head(kind):
    return "causal-lm" if kind in ("gpt2", "qwen2") else "masked-lm"


@needs_peft
def test_gradients_are_those_of_the_sum_and_nothing_else_moves():
    """Oracle: the plain model called with W + 2·B A; twin: one factor more is seen."""
    model = tiny_model(tiny_config("bert"))
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = stirred(Adapter(rank=3).put_into(tiny_model(tiny_config("bert")), head="masked-lm")).eval()
    first(adapted).square().sum().backward()
    factors = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert factors and all("lora_" in name for name in factors)

    def gradients(scale):
        own = {name: p.detach().clone().requires_grad_() for name, p in factors.items()}
        weights = {}
        for path in adapted_layers(adapted):
            a, b = (own[f"{path}.lora_{side}.default.weight"] for side in "AB")
            weights[f"{path}.weight"] = plain[f"{path}.weight"] + scale * b @ a
        functional_call(model, weights, (), {"input_ids": IDS})[0].square().sum().backward()
        return {name: p.grad for name, p in own.items()}

    wanted, twin = gradients(2.0), gradients(4.0)
    off = {name: float((p.grad - wanted[name]).abs().max() / wanted[name].abs().max()) for name, p in factors.items()}
    assert max(off.values()) < 1e-9
    assert any((p.grad - twin[name]).abs().max() > 1e-3 * wanted[name].abs().max() for name, p in factors.items())
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)


@needs_peft
def test_the_adapter_alone_opens_in_peft(tmp_path):
    from peft import PeftModel

    small("bert").save_pretrained(tmp_path / "base")
    load = lambda: load_model(tmp_path / "base", "classification", new_head=True).eval()  # noqa: E731
    torch.manual_seed(3)
    adapted = stirred(Adapter(rank=2).put_into(load(), head="classification")).eval()
    assert "classifier.weight" in {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert not adapted.bert.embeddings.word_embeddings.weight.requires_grad
    (tmp_path / "after").mkdir()
    save_merged(adapted, tmp_path / "after")
    with torch.no_grad():
        opened = PeftModel.from_pretrained(load(), str(tmp_path / "after" / "adapter")).eval()
        torch.testing.assert_close(opened(input_ids=IDS).logits, adapted(input_ids=IDS).logits)


@needs_four_bit
def test_rounded_weights_are_nf4s_own():
    """Every width that is taken comes back as NF4 defines it; without the choice of a block some would not, on some processors."""
    import bitsandbytes.functional as functional

    code = functional.get_4bit_type("nf4", device="cpu").double()
    for width in (32, 48, 64, 96, 100, 160, 768):
        block, rows = block_of(width), torch.randn(7, width)
        assert width % 64 or block == 64
        if block is None:
            with pytest.raises(InputError, match="gives back wrong"):
                four_bit(torch.nn.Sequential(torch.nn.Linear(width, 7)), ["0"])
            continue
        layer = torch.nn.Linear(width, 7)
        layer.weight.data = rows.clone()
        found = dequantised(four_bit(torch.nn.Sequential(layer), ["0"])[0])
        assert (found - _by_definition(rows, code, block)).abs().max() <= EXACT
        assert (found - _by_definition(rows, 1.01 * code, block)).abs().max() > EXACT  # another table is seen
    told = check_rounding()
    assert told.product < 1e-5 and 0.05 < told.weights < 0.15
    assert told.fast_path is None or told.fast_path > 100 * told.product
    assert set(BLOCKS) == {64, 32}


@needs_four_bit
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2"])
def test_a_four_bit_base_is_read_as_it_is_rounded_and_saved_whole(kind, tmp_path):
    small(kind).save_pretrained(tmp_path / "before")
    adapter, head = Adapter(rank=3, base="nf4"), _head(kind)
    with torch.device("meta"):
        loading = adapter.loading(model_from_config(load_config(tmp_path / "before"), head))
    read = adapter.put_into(load_model(tmp_path / "before", head, quantization=loading), head=head).eval()
    rounded = adapter.put_into(load_model(tmp_path / "before", head), head=head).eval()  # read whole, then rounded
    assert sum(map(is_four_bit, read.modules())) == len(adapted_layers(read)) > 0
    for one, other in zip(filter(is_four_bit, read.modules()), filter(is_four_bit, rounded.modules()), strict=True):
        assert torch.equal(one.weight, other.weight) and torch.equal(one.absmax, other.absmax)
    stirred(read)
    (tmp_path / "after").mkdir()
    save_merged(read, tmp_path / "after")
    with torch.no_grad():
        torch.testing.assert_close(first(load_model(tmp_path / "after", head)), first(read), rtol=1e-4, atol=1e-4)
    assert "in four bits" in trained_share(read)


@needs_four_bit
def test_judging_between_updates_leaves_the_gradient_as_it_was():
    """The path of bitsandbytes without gradients changes a layer for good; twin: where it is let in, the gradient is lost."""
    from bitsandbytes.nn import Linear4bit

    def gradient(fast, looks):
        torch.manual_seed(0)
        model = four_bit(torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(2))), ["0", "1"])
        for layer in model:
            layer.support_avx512bf16_for_cpu = fast
        if looks:
            with torch.no_grad():
                model.eval()(torch.ones(2, 64))
        x = torch.ones(2, 64, requires_grad=True)
        y = model.train()(x)
        if not y.requires_grad:
            return None
        y.square().sum().backward()
        return x.grad

    wanted = gradient(False, looks=False)
    assert torch.equal(gradient(False, looks=True), wanted)
    if Linear4bit(2, 2).support_avx512bf16_for_cpu:
        assert gradient(True, looks=True) is None


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"adapter": "lora"}, "adapter: found 'lora', expected lora:RANK"),
        ({"adapter": "lora:0"}, "expected lora:RANK with a rank of 1 or more"),
        ({"adapter": "dora:4"}, "expected lora:RANK"),
        ({"base": "nf4"}, "base='nf4': found no adapter"),
        ({"base": "int3", "adapter": "lora:4"}, "base: found 'int3', expected one of nf4"),
        ({"adapter": "lora:4", "unshare": 0}, "adapter: found unshare beside it"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(how, told):
    with pytest.raises(InputError, match=told):
        RunConfig(**how)


@pytest.mark.parametrize("package", ["peft", "bitsandbytes"])
def test_what_is_not_installed_is_named(monkeypatch, package):
    found = importlib.util.find_spec
    for module in ("low_rank", "four_bit"):
        monkeypatch.setattr(f"jieyue.hf.{module}.find_spec", lambda name: None if name == package else found("json"))
    check_rounding.cache_clear()
    with pytest.raises(MissingExtra, match=f"{package} is not installed; run: pip install 'jieyue"):
        RunConfig(adapter="lora:4", base="nf4")
