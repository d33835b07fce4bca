"""Layers that share one block, given copies: the same values at that moment, and a gradient that is the sum of theirs."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AlbertConfig, AlbertForMaskedLM

from jieyue.hf.albert import reshare, unshare
from jieyue.hf.sharing import Turns, average, reshare_modules, unshare_modules

SIZES = {
    "vocab_size": 30,
    "embedding_size": 8,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def albert(layers=6, groups=1, inner=1):
    config = AlbertConfig(**SIZES, num_hidden_layers=layers, num_hidden_groups=groups, inner_group_num=inner)
    return AlbertForMaskedLM(config).double()


def gradients(model, ids):
    model.zero_grad()
    model(ids).logits.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def summed(grads, old, new):
    """Σ over the copies of each old block, by the old names."""
    found = {}
    for name, grad in grads.items():
        before, group, after = name.partition("albert_layer_groups.")
        if group:
            number, _, rest = after.partition(".")
            name = f"{before}{group}{int(number) * old // new}.{rest}"
        found[name] = found.get(name, 0) + grad
    return found


def largest(one, other):
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in other)


@settings(max_examples=12)
@given(
    st.sampled_from([(1, 1), (2, 1), (4, 1), (4, 2), (6, 1), (6, 2), (6, 3)]),
    st.integers(1, 2),
    st.data(),
    st.integers(),
)
def test_the_gradient_of_the_shared_block_is_the_sum(shape, inner, data, seed):
    torch.manual_seed(seed % 2**32)
    layers, before = shape
    after = data.draw(st.sampled_from([n for n in range(before, layers + 1) if layers % n == 0 and n % before == 0]))
    model = albert(layers, before, inner)
    ids = torch.randint(1, 30, (2, data.draw(st.integers(1, 9))))
    logits, expected = model(ids).logits, gradients(model, ids)
    if after > before:
        model.zero_grad()
        unshare(model, after)
    assert torch.equal(model(ids).logits, logits)
    found = gradients(model, ids)
    assert largest(summed(found, before, after), expected) < 1e-12
    if after > before:  # the broken twin: no single copy has the whole gradient
        alone = {name: found[name] for name in expected}
        assert largest(alone, expected) > 1e-3


@pytest.mark.parametrize(("groups", "left"), [(3, 1), (6, 1), (6, 2), (6, 3)])
def test_reshare_undoes_unshare_and_means_otherwise(groups, left):
    model = albert()
    before = copy.deepcopy(model.state_dict())
    unshare(model, groups)
    after = copy.deepcopy(model)
    reshare(model, left)
    assert model.config.num_hidden_groups == left
    first = {name: value for name, value in model.state_dict().items() if name in before}
    assert first.keys() == before.keys()
    assert all(torch.equal(first[name], before[name]) for name in before)
    with torch.no_grad():
        for p in after.parameters():
            p.add_(torch.randn_like(p))
    weights = [group.albert_layers[0].ffn.weight.detach().clone() for group in after.albert.encoder.albert_layer_groups]
    reshare(after, left)
    many = groups // left
    for number, group in enumerate(after.albert.encoder.albert_layer_groups):
        mean = torch.stack(weights[number * many : (number + 1) * many]).mean(0)
        assert torch.allclose(group.albert_layers[0].ffn.weight, mean, rtol=0, atol=1e-14)


class Looped(nn.Module):
    """One block three times, in a loop or from a list."""

    def __init__(self, listed):
        super().__init__()
        block = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.listed = listed
        self.inner = nn.ModuleDict({"block": nn.ModuleList([block] * 3) if listed else block})

    def forward(self, x):
        for step in range(3):
            x = self.inner["block"][step](x) if self.listed else self.inner["block"](x)
        return x


@pytest.mark.parametrize(("listed", "path"), [(True, "inner.block"), (True, "inner.block.0"), (False, "inner.block")])
def test_any_module(listed, path):
    model, x = Looped(listed).double(), torch.randn(4, 5, dtype=torch.float64)
    out = model(x)
    out.square().sum().backward()
    block = model.inner["block"][0] if listed else model.inner["block"]
    shared = [p.grad.clone() for p in block.parameters()]
    model.zero_grad()
    assert unshare_modules(model, path, None if listed else 3) is model
    assert torch.equal(model(x), out) and torch.equal(model(x), out)  # the turns begin anew with each pass
    model(x).square().sum().backward()
    copies = list(model.inner["block"] if listed else model.inner["block"].copies)
    for number, expected in enumerate(shared):
        found = [list(one.parameters())[number].grad for one in copies]
        assert torch.allclose(sum(found), expected, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(found[0], expected, rtol=1e-3)
    reshare_modules(model, "inner.block")
    assert torch.equal(model(x), out) and not any(isinstance(m, Turns) for m in model.modules())
    assert len(list(model.parameters())) == 2 and not model._forward_pre_hooks


def test_turns_copy_and_save_with_the_model():
    model, x = Looped(False).double(), torch.randn(4, 5, dtype=torch.float64)
    unshare_modules(model, "inner.block", 3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x)) and torch.equal(twin(x), model(x))
    fresh = unshare_modules(Looped(False).double(), "inner.block", 3)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_a_call_too_many_is_noticed():
    model = Looped(False)
    unshare_modules(model, "inner.block", 2)
    with pytest.raises(ValueError, match="a call more than the 2"):
        model(torch.randn(1, 5))


def test_checkpointing_of_the_block_alone_is_noticed():
    """The second run of a checkpointed call would meet another copy: it must not pass in silence."""
    model = Looped(False)
    unshare_modules(model, "inner.block", 3)
    block = model.inner["block"]
    forward = block.forward
    block.forward = lambda x: torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=False)
    out = model(torch.randn(2, 5, requires_grad=True))
    with pytest.raises(ValueError, match="no checkpointing of the block alone"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("path", "times", "found"),
    [
        ("inner.blocks", None, "no such module"),
        ("", 3, "no such module"),
        ("inner.block", None, "stands once"),
        ("inner.block", 1, "stands once"),
    ],
)
def test_paths_that_name_no_shared_block(path, times, found):
    with pytest.raises(ValueError, match=found):
        unshare_modules(Looped(False), path, times)


def test_other_refusals():
    with pytest.raises(ValueError, match="3 places"):
        unshare_modules(Looped(True), "inner.block", 4)
    lists = nn.Module()
    lists.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="0 of them at several places"):
        unshare_modules(lists, "layers")
    with pytest.raises(ValueError, match="the path of a list of copies"):
        reshare_modules(Looped(False), "inner.block")
    with pytest.raises(ValueError, match="not in every copy"):
        average([nn.Linear(2, 2), nn.Linear(2, 3)])


def test_resharing_tells_the_optimizer():
    """The weights that go leave its groups, the states that stay are the mean; one that is not named is refused."""
    model = albert()
    unshare(model, 6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    blocks = model.albert.encoder.albert_layer_groups
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    moments = [optimizer.state[block.albert_layers[0].ffn.weight]["exp_avg"].clone() for block in blocks]
    weights = [block.albert_layers[0].ffn.weight.detach().clone() for block in blocks]
    with pytest.raises(ValueError, match="a AdamW that holds the weights"):
        reshare(model, 2)
    assert all(torch.equal(b.albert_layers[0].ffn.weight, w) for b, w in zip(blocks, weights, strict=True))
    reshare(model, 2, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()} and len(optimizer.state) == len(held)
    for number, block in enumerate(model.albert.encoder.albert_layer_groups):
        found = optimizer.state[block.albert_layers[0].ffn.weight]["exp_avg"]
        assert torch.allclose(found, torch.stack(moments[number * 3 : number * 3 + 3]).mean(0), rtol=0, atol=1e-14)
    looped = Looped(True)
    unshare_modules(looped, "inner.block")
    other = torch.optim.SGD(looped.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="a SGD that holds the weights"):
        reshare_modules(looped, "inner.block")
    reshare_modules(looped, "inner.block", optimizer=other)
    assert {id(p) for p in other.param_groups[0]["params"]} == {id(p) for p in looped.parameters()}
