"""NEZHA's attention in blocks against its definition with the whole table R [N, M, D]; gradients to the second order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.attention.dropout import kept as stays
from jieyue.attention.dropout import row_keys
from jieyue.hf import relative
from jieyue.hf.relative import attend_relative, position_table


def definition(q, k, v, table, causal, source, key_mask, dropout=0.0, seed=0):
    n, m, w = q.shape[2], k.shape[2], len(table) // 2
    i = torch.arange(m - n, m)[:, None]
    j = torch.arange(m)
    positions = table[(j - i).clamp(-w, w) + w]  # [N, M, D]
    shown = torch.ones(1, n, m, dtype=torch.bool)
    if causal:
        shown = (j <= i)[None] | (torch.zeros(1, m, dtype=torch.bool) if source is None else source)[:, None, :]
    if key_mask is not None:
        shown = shown & key_mask[:, None, :]
    scores = torch.einsum("bhid,bhijd->bhij", q, k[:, :, None] + positions) * q.shape[3] ** -0.5
    scores = scores.masked_fill(~shown[:, None], -torch.inf)
    weights = scores.softmax(3).masked_fill(~shown[:, None], 0.0)
    if dropout:
        heads = torch.arange(q.shape[0] * q.shape[1]).view(q.shape[:2])
        weights = weights * stays(row_keys(seed, heads, i[:, 0]), j, dropout) / (1 - dropout)
    return torch.einsum("bhij,bhijd->bhid", weights, v[:, :, None] + positions)


def drawn(n, m, width=6, distance=3):
    tensors = [torch.randn(2, 2, length, width, dtype=torch.float64, requires_grad=True) for length in (n, m, m)]
    return *tensors, position_table(distance, width, tensors[0].detach())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(relative, "_CPU_WEIGHTS", 60)


@settings(max_examples=40)
@given(st.data(), st.integers(1, 17), st.integers(0, 2**32 - 1))
def test_blocks_are_the_definition(data, m, seed):
    torch.manual_seed(seed)
    causal = data.draw(st.booleans())
    n = data.draw(st.integers(1, m)) if causal else m
    q, k, v, table = drawn(n, m)
    source = (torch.arange(m) < data.draw(st.integers(0, m)))[None].expand(2, -1) if data.draw(st.booleans()) else None
    mask = (
        torch.tensor([[data.draw(st.booleans()) for _ in range(m)] for _ in range(2)])
        if data.draw(st.booleans())
        else None
    )
    found = attend_relative(q, k, v, table, causal=causal, source=source, key_mask=mask)
    expected = definition(q, k, v, table, causal, source, mask)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(found)
    pairs = [torch.autograd.grad((x * weights).sum(), (q, k, v), retain_graph=True) for x in (found, expected)]
    for grad, other in zip(*pairs, strict=True):
        assert torch.allclose(grad, other.nan_to_num(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_both_orders(causal):
    q, k, v, table = drawn(5, 5, width=4, distance=2)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    def call(q, k, v):
        return attend_relative(q, k, v, table, causal=causal, key_mask=mask)

    assert torch.autograd.gradcheck(call, (q, k, v))
    assert torch.autograd.gradgradcheck(call, (q, k, v))


def test_dropout_is_the_seeds_and_the_same_in_both_passes():
    q, k, v, table = drawn(7, 7)
    torch.manual_seed(3)
    found = attend_relative(q, k, v, table, causal=True, dropout=0.4)
    torch.manual_seed(3)
    seed = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
    expected = definition(q, k, v, table, True, None, None, 0.4, seed)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    pairs = [torch.autograd.grad(x.square().sum(), (q, k, v), retain_graph=True) for x in (found, expected)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(*pairs, strict=True))


def test_the_table():
    table = position_table(64, 8, torch.empty(0))
    assert table.shape == (129, 8)
    for p in (0, 1, 64, 128):
        for t in range(4):
            angle = torch.tensor(p * 10000 ** (-2 * t / 8), dtype=torch.float64)
            assert torch.allclose(table[p, 2 * t].double(), angle.sin(), atol=1e-5)
            assert torch.allclose(table[p, 2 * t + 1].double(), angle.cos(), atol=1e-5)


def test_the_broken_twins_are_noticed():
    q, k, v, table = drawn(9, 9)
    expected = definition(q, k, v, table, True, None, None)
    found = attend_relative(q, k, v, table, causal=True)
    for wrong in (table.flip(0), torch.zeros_like(table)):  # i − j for j − i; no positions
        assert (attend_relative(q, k, v, wrong, causal=True) - expected).abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types(dtype):
    q, k, v, table = (x.detach().to(dtype).requires_grad_(i < 3) for i, x in enumerate(drawn(9, 9)))
    found = attend_relative(q, k, v, table, causal=True)
    exact = definition(*(x.detach().double() for x in (q, k, v, table)), True, None, None)
    plain = definition(*(x.detach() for x in (q, k, v, table)), True, None, None)
    error = (found.double() - exact).abs().max()
    assert found.dtype == dtype and error <= 2 * (plain.double() - exact).abs().max() + 8 * torch.finfo(dtype).eps
    found.sum().backward()
    assert q.grad.isfinite().all() and q.grad.dtype == dtype
