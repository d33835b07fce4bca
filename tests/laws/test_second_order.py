"""The closed form of attention's second derivative against autograd through the definition, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.attention import parse, second_order
from jieyue.attention.engines import Call

PATTERNS = ("full()", "causal(full())", "causal(local(2))", "local(1)+atrous(3)")


def call_of(pattern, groups, dropout, hidden, seed, n=7, m=7):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    mask = None
    if hidden:
        mask = torch.rand(2, m, generator=generator) > 0.4
        mask[0, :] = False  # nobody is seen in the first row
    q, k, v = draw(2, 4, n, 3), draw(2, groups, m, 3), draw(2, groups, m, 5)
    call = Call(q, k, v, parse(pattern), mask, scale=0.7, dropout=dropout, seed=5)
    return call, (draw(2, 4, n, 3), draw(2, groups, m, 3), draw(2, groups, m, 5)), draw(2, 4, n, 5), draw(2, 4, n)


def by_autograd(weights, grad_out, grad_lse, call):
    leaves = [None if x is None else x.clone().requires_grad_() for x in (grad_out, grad_lse, call.q, call.k, call.v)]
    inner = second_order._inner(weights, [*leaves, None, None], call, slice(0, call.q.shape[2]))
    found = iter(torch.autograd.grad(inner, [x for x in leaves if x is not None], allow_unused=True))
    return [None if x is None else next(found) for x in leaves]


def far(found, wanted):
    largest = 0.0
    for one, other in zip(found, wanted, strict=True):
        if other is None:
            assert one is None or float(one.abs().max()) == 0
        else:
            largest = max(largest, float((one - other).abs().max()))
    return largest


@settings(max_examples=60)
@given(
    st.sampled_from(PATTERNS), st.sampled_from((1, 2, 4)), st.sampled_from((0.0, 0.3)), st.booleans(), st.booleans(),
    st.sets(st.sampled_from((0, 1, 2)), min_size=1), st.integers(0, 99), st.sampled_from((1, 14, 10_000)),
)  # fmt: skip
def test_the_closed_form_is_the_derivative(pattern, groups, dropout, hidden, with_lse, asked, seed, chunk):
    call, weights, grad_out, grad_lse = call_of(pattern, groups, dropout, hidden, seed)
    weights = tuple(x if at in asked else None for at, x in enumerate(weights))
    lse = grad_lse if with_lse else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_order, "_CHUNK_SCORES", chunk)
        with torch.no_grad():
            found = second_order.second_backward(weights, grad_out, lse, call)[:5]
    assert far(found, by_autograd(weights, grad_out, lse, call)) < 1e-12


def test_without_the_softmax_s_mean_it_is_wrong(monkeypatch):
    """The broken twin: as if the weights were independent of one another."""
    call, weights, grad_out, grad_lse = call_of("full()", 2, 0.0, False, 3)
    wanted = by_autograd(weights, grad_out, grad_lse, call)
    whole = torch.linalg.vecdot
    monkeypatch.setattr(torch.linalg, "vecdot", lambda a, b: torch.zeros_like(whole(a, b)))
    with torch.no_grad():
        assert far(second_order.second_backward(weights, grad_out, grad_lse, call)[:5], wanted) > 1e-3
