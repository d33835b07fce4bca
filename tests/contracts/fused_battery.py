"""The Triton kernels run by Triton's interpreter on the CPU, against the definition: run by test_fused.py, in a process whose
environment has TRITON_INTERPRET=1. Tiles are made small, so that short inputs have edges, middles and many tiles."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from test_engines import HALF, PATTERNS, calls, check

from jieyue.attention import Call, local, parse
from jieyue.attention.engines import fused


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    small = {"ROWS": 16, "KEYS": 16, "num_warps": 4, "num_stages": 2}
    monkeypatch.setattr(fused, "tiles", lambda *_: small)


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """The interpreter keeps bfloat16 as bits and would multiply those: its products get them widened."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    product = InterpreterBuilder.create_dot

    def widened(self, a, b, *more):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return product(self, a, b, *more)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", widened)


@pytest.fixture
def halves_stay_halves(monkeypatch):
    """Half precision is computed in float32 on the CPU; here the kernels get it as they would on CUDA."""
    monkeypatch.setattr(Call, "lifted", property(lambda call: call))


@pytest.mark.parametrize("number", range(len(PATTERNS)))
def test_battery(number):
    shape = [(1, 2, 1, 53, 53, 16, 16), (1, 1, 1, 37, 61, 8, 12), (2, 2, 2, 1, 50, 5, 5)][number % 3]
    key_mask = torch.rand(shape[0], shape[4]) > 0.3 if number % 2 else None
    options = {"layout": ["bnhd", "bhnd", "slice"][number // 3 % 3], "q_offset": [0, 24, 49][number % 3]}
    check("fused", shape, parse(PATTERNS[number]), torch.float32, key_mask=key_mask, **options)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("text", ["causal(local(20))", "sparse(8)"])
def test_half_precision(halves_stay_halves, dtype, text):
    check("fused", (1, 2, 1, 45, 45, 16, 16), parse(text), dtype)


@pytest.mark.parametrize("text", ["full()", "causal(sparse(4))", "local(3, step=4)"])
def test_dropout(text):
    check("fused", (2, 2, 1, 37, 37, 8, 8), parse(text), torch.float32, dropout=0.3, q_offset=5)


@settings(max_examples=4)
@given(case=calls())
def test_any_call(case):
    options = dict(case)
    _, heads, groups, n, m, depth, width = options.pop("shape")
    shape = (1, heads // groups, 1, min(n, 30), min(m, 30), depth, width)
    seed = options.pop("key_mask_seed")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        options["key_mask"] = torch.rand(1, shape[4], generator=generator) > seed / 99
    check("fused", shape, options.pop("pattern"), torch.float32, **options)


def test_the_alarm_rings(monkeypatch):
    """The broken twin: a window one key too wide."""
    right = fused.Fused.attend
    monkeypatch.setattr(fused.Fused, "attend", lambda self, call: right(self, replace(call, pattern=local(6))))
    with pytest.raises(AssertionError, match="out"):
        check("fused", (1, 1, 1, 40, 40, 8, 8), local(5), torch.float32)
