"""A deep model's update is told by a few of its layers, to the byte; what is not alike is traced whole."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, BertConfig, GPT2Config, LlamaConfig

from jieyue.hf.depth import layer_period
from jieyue.planning import alike, search
from jieyue.planning.alike import predict_by_depth
from jieyue.planning.prediction import predict
from jieyue.planning.setting import Setting
from jieyue.planning.subject import Subject

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


def bert(layers=9):
    return Subject(config=BertConfig(**SIZES, num_hidden_layers=layers), head="masked-lm", positions=16)


def llama(layers=8, **more):
    config = LlamaConfig(**SIZES, num_key_value_heads=1, num_hidden_layers=layers, **more)
    return Subject(config=config, head="causal-lm", positions=16)


def gpt2(layers=8):
    config = GPT2Config(
        n_embd=16, n_head=2, n_positions=64, vocab_size=100, n_layer=layers, bos_token_id=1, eos_token_id=1
    )
    return Subject(config=config, head="causal-lm", positions=8)


def albert(layers=8):
    config = AlbertConfig(**SIZES, embedding_size=8, num_hidden_layers=layers)
    return Subject(config=config, head="masked-lm", positions=16)


SETTINGS = [
    Setting(micro_batch=2),
    Setting(micro_batch=2, checkpointing=True),
    Setting(micro_batch=4, chunked=True, checkpointing=True),
    Setting(micro_batch=1, optimizer="adafactor", dtype="bfloat16"),
    Setting(micro_batch=2, optimizer="momentum", in_backward=True),
    Setting(micro_batch=2, checkpointing=True, in_backward=True),
    Setting(micro_batch=6, moving=True),
]
FAST = [(gpt2, Setting(micro_batch=6, chunked=True, checkpointing=True))]
SLOW = [(make, setting) for make in (bert, llama, gpt2) for setting in SETTINGS]
SLOW.append(
    (lambda: llama(19), Setting(micro_batch=2, attention="local(4),full()"))
)  # full layers beside sparse ones, one left over


@pytest.mark.parametrize(("make", "setting"), FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW])
def test_a_few_layers_tell_what_all_cost(make, setting):
    step = make().step(setting)
    how = {"effective_batch": 6, "micro_batch": setting.micro_batch, "checkpointing": setting.checkpointing}
    found = predict_by_depth(step, **how)
    assert step.depth.shallow < step.depth.layers
    if found is None:  # what autocast keeps of every layer goes at once, behind the last one: seen by a block more
        assert setting.dtype == "bfloat16" and not all(step.depth.proven.values())
        found = search.traced(step, **how)
    assert found == predict(step, **how), "every part, to the byte"


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_layer_that_runs_again_and_again_is_traced_whole(checkpointing):
    """ALBERT's gradients are sums over its runs: the second of them is another one than the third."""
    step, how = albert().step(Setting(micro_batch=2)), {"effective_batch": 4, "micro_batch": 2}
    assert predict_by_depth(step, **how, checkpointing=checkpointing) is None
    assert search.traced(step, **how, checkpointing=checkpointing) == predict(step, **how, checkpointing=checkpointing)


class Wider(nn.Module):
    """A layer of other sizes, of other numbers, of one module more: none is alike, wherever it stands."""

    def __init__(self, build, change):
        super().__init__()
        self.build, self.change = build, change

    def __call__(self, layers):
        model = self.build(layers)
        if layers == 8:
            self.change(model.transformer.h[5])
        return model


def wider(layer):
    layer.mlp.c_fc.weight = nn.Parameter(torch.empty(16, 65, device="meta"))


def colder(layer):
    layer.attn.attn_dropout.p = 0.5


def longer(layer):
    layer.mlp.add_module("more", nn.Identity())


def frozen(layer):
    layer.ln_1.weight.requires_grad_(False)


@pytest.mark.parametrize("change", [wider, colder, longer, frozen])
def test_a_layer_that_is_not_alike_is_seen(change):
    """The broken twins: without this look the layers that are not traced would be taken for the others."""
    depth = gpt2().step(Setting(micro_batch=1)).depth
    assert alike._is_alike(depth)
    assert not alike._is_alike(replace(depth, build=Wider(depth.build, change)))


def test_where_a_few_layers_would_tell_nothing_there_is_no_such_way():
    for config, period in (
        ({"num_hidden_layers": 12}, 1),
        ({"num_hidden_layers": 12, "layer_types": ["full_attention"] * 12}, 1),
        ({"num_hidden_layers": 12, "layer_types": ["sliding_attention", "full_attention"] * 6}, 2),
    ):
        assert layer_period(LlamaConfig(**SIZES, **config)) == period
    assert layer_period(LlamaConfig(**SIZES, num_hidden_layers=12), "local(4),full(),local(4)") == 3
    assert llama(7).step(Setting(micro_batch=1)).depth is None, "half of them are traced in any case"
    for attention in ("local(4),full(),full()", "local(4),local(4),local(4),full(),full(),local(4),full()"):
        assert llama(8).step(Setting(micro_batch=1, attention=attention)).depth is None
    assert gpt2().step(Setting(micro_batch=1), 4).depth is None, "a shallow one itself"
    step = gpt2().step(Setting(micro_batch=1))
    for other in ({"build_model": lambda: None}, {"make_optimizer": lambda model: None}, {"max_grad_norm": 0.0}):
        changed = replace(step, **other)
        assert predict_by_depth(changed, effective_batch=1, micro_batch=1) is None, "it was made for another step"
