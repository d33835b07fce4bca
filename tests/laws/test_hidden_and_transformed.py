"""What is hidden may hold anything; torch's function transforms and forward mode agree with autograd; inference-mode caches go on."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

from jieyue.attention import ENGINES, Call, State, attend, full, parse
from jieyue.attention.engines import named
from jieyue.linear import HybridState, LinearState, WindowState, attend_hybrid, attend_linear, attend_window

NEAR = {"atol": 1e-12, "rtol": 0}


def drawn(n=9, dtype=torch.float64, groups=1):
    return [torch.randn(2, h, n, d, dtype=dtype) for h, d in ((2, 4), (groups, 4), (groups, 3))]


CALLS = {
    **{
        engine.name: lambda q, k, v, mask, name=engine.name: attend(q, k, v, "sparse(3)", key_mask=mask, engine=name)
        for engine in ENGINES
    },
    "linear": lambda q, k, v, mask: attend_linear(q, k, v, key_mask=mask),
    "causal linear": lambda q, k, v, mask: attend_linear(q, k, v, "taylor2", causal=True, key_mask=mask),
    "window": lambda q, k, v, mask: attend_window(q, k, v, "elu", 2, key_mask=mask),
    "hybrid": lambda q, k, v, mask: attend_hybrid(q, k, v, "local(1)", "elu", key_mask=mask),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_key_mask_hides_may_hold_anything(call, dtype, value):
    """Out and every gradient are those without it, for the first order and the second."""
    if call in {engine.name for engine in ENGINES}:
        x = torch.zeros(1, 1, 1, 1, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
        reason = named(call).refuses(Call(x, x, x, full()))
        if reason is not None:
            pytest.skip(reason)
    q, k, v = drawn(dtype=dtype)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 3:5], mask[1] = False, False
    results = []
    for filling in (0.0, value):
        leaves = [q.clone(), *(x.masked_fill(~mask[:, None, :, None], filling) for x in (k, v))]
        leaves = [x.requires_grad_() for x in leaves]
        out = CALLS[call](*leaves, mask)
        grads = torch.autograd.grad(out.sin().sum(), leaves, create_graph=dtype == torch.float64)
        second = torch.autograd.grad(sum(g.sin().sum() for g in grads), leaves) if dtype == torch.float64 else ()
        results.append([out, *grads, *second])
    for clean, found in zip(*results, strict=True):
        assert torch.equal(clean, found)


@pytest.mark.parametrize("engine", ["composed", "dense"])
def test_what_no_segment_holds_may_be_anything(engine):
    q, k, v = drawn()
    segments = torch.tensor([[0, 0, 0, -1, -1, 1, 1, 1, 1]] * 2)
    results = []
    for filling in (0.0, torch.nan):
        leaves = [x.masked_fill((segments == -1)[:, None, :, None], filling).requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, "first(1)+local(1)", segments=segments, engine=engine)
        grads = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        results.append([out, *grads, *torch.autograd.grad(sum(g.sin().sum() for g in grads), leaves)])
    for clean, found in zip(*results, strict=True):
        assert torch.equal(clean, found)
        assert clean[:, :, 3:5].abs().max() == 0


def worn(q, k, v):
    sinks, bias = torch.tensor([0.3, -1.0]).double(), torch.linspace(-1, 1, 17).double()[None]
    segments = torch.tensor([[0] * 4 + [-1] + [1] * 4] * q.shape[0])
    return attend(q, k, v, "first(1)+local(2)", segments=segments, sinks=sinks, softcap=2.0, offset_bias=bias)


TRANSFORMED = {
    "attend": lambda q, k, v: attend(q, k, v, "causal(sparse(3))"),
    "attend, worn": worn,
    "linear": attend_linear,
    "causal linear": lambda q, k, v: attend_linear(q, k, v, "cosine", causal=True),
    "hybrid": lambda q, k, v: attend_hybrid(q, k, v, "local(1)", "elu", causal=True),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_function_transforms_agree_with_autograd(name):
    q, k, v = drawn()
    tangent = torch.randn_like(q)

    def loss(q):
        return TRANSFORMED[name](q, k, v).sin().sum()

    leaf = q.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    torch.testing.assert_close(grad(loss)(q), first.detach(), **NEAR)
    torch.testing.assert_close(jvp(loss, (q,), (tangent,)), (loss(q), (first.detach() * tangent).sum()), **NEAR)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(loss(forward_ad.make_dual(q, tangent)))
    torch.testing.assert_close(found.tangent, (first.detach() * tangent).sum(), **NEAR)
    each = vmap(grad(lambda q, k, v: TRANSFORMED[name](q, k, v).sin().sum()))(q[:, None], k[:, None], v[:, None])
    torch.testing.assert_close(each[:, 0], first.detach(), **NEAR)
    (twice,) = torch.autograd.grad((first * tangent).sum(), leaf)
    curved = torch.tensordot(hessian(loss)(q), tangent, 4)
    torch.testing.assert_close(curved, twice, **NEAR)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x):
        return attend(self.project(x), x, x, "local(2)")


def test_functional_call():
    layer, x = Layer(), torch.randn(1, 2, 6, 4, dtype=torch.float64)
    found = grad(lambda p: functional_call(layer, p, (x,)).sin().sum())(dict(layer.named_parameters()))
    layer(x).sin().sum().backward()
    torch.testing.assert_close(found["project.weight"], layer.project.weight.grad, **NEAR)


def test_dropout_is_the_same_under_transforms():
    q, k, v = drawn()
    results = []
    for transform in (lambda f: f(q), lambda f: vmap(f, randomness="same")(q[None])[0]):
        torch.manual_seed(2)
        results.append(transform(lambda q: attend(q, k, v, "local(3)", dropout=0.5)))
    torch.testing.assert_close(*results, **NEAR)


STATES = {
    "ring": lambda k, v: State(parse("local(2)")),
    "all": lambda k, v: State(parse("sparse(3)")),
    "linear": lambda k, v: LinearState.empty(k, v),
    "window": lambda k, v: WindowState("elu", 2),
    "hybrid": lambda k, v: HybridState(parse("local(1)"), "elu"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_made_in_inference_mode_goes_on(name):
    q, k, v = drawn()

    def decode(state, first, last):
        outs = []
        for t in range(first, last):
            part = slice(t, t + 1)
            state.append(k[:, :, part], v[:, :, part])
            outs.append(state.read(q[:, :, part]))
        return torch.cat(outs, 2)

    expected = decode(STATES[name](k, v), 0, 9)[:, :, 5:]
    state = STATES[name](k, v)
    with torch.inference_mode():
        decode(state, 0, 5)
    with torch.no_grad():
        torch.testing.assert_close(decode(state, 5, 9), expected, **NEAR)
