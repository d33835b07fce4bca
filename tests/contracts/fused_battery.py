"""The Triton kernels run by Triton's interpreter on the CPU, against the definition: run by test_fused.py, in a process whose
environment has TRITON_INTERPRET=1. Tiles are made small, so that short inputs have edges, middles and many tiles. Every lane of
every load and store must lie in a tensor that its launch was handed."""

from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engines import HALF, PATTERNS, calls, check, packed

from jieyue.attention import Call, attend, first, local, parse
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


def extents(given):
    """(first address, end) of every tensor in the arguments of a launch, as far as its strides reach."""
    for one in given:
        if isinstance(one, tuple):
            yield from extents(one)
        elif isinstance(one, torch.Tensor) and one.numel():
            reach = 1 + sum((size - 1) * stride for size, stride in zip(one.shape, one.stride(), strict=True))
            yield one.data_ptr(), one.data_ptr() + reach * one.element_size()


@pytest.fixture(autouse=True)
def in_bounds(monkeypatch):
    """Loads, stores and atomic sums outside the tensors of a launch are refused, lane by lane, before they happen."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    allowed: list[tuple[int, int]] = []
    begin = GridExecutor._init_args_hst

    def noted(self, given, named):
        found = begin(self, given, named)
        allowed[:] = set(extents((*found[0], *found[1].values())))
        return found

    def checked(act, pointers_at, mask_at):
        def run(self, *arguments):
            pointers, mask = arguments[pointers_at], arguments[mask_at]
            taken = numpy.asarray(pointers.data)[numpy.asarray(mask.data)].astype(numpy.uint64)
            width = pointers.get_element_ty().primitive_bitwidth // 8
            inside = numpy.zeros(taken.shape, bool)
            for start, end in allowed:
                inside |= (taken >= start) & (taken + width <= end)
            assert inside.all(), f"{act.__name__}: {(~inside).sum()} lanes outside every tensor of the launch"
            return act(self, *arguments)

        return run

    monkeypatch.setattr(GridExecutor, "_init_args_hst", noted)
    for name, *places in (("create_masked_load", 0, 1), ("create_masked_store", 0, 2), ("create_atomic_rmw", 1, 3)):
        monkeypatch.setattr(InterpreterBuilder, name, checked(getattr(InterpreterBuilder, name), *places))


@pytest.fixture
def halves_stay_halves(monkeypatch):
    """Half precision is computed in float32 on the CPU; here the kernels get it as they would on CUDA."""
    monkeypatch.setattr(Call, "lifted", property(lambda call: call))


@pytest.mark.parametrize(
    "number",
    [number if number % 2 else pytest.param(number, marks=pytest.mark.slow) for number in range(len(PATTERNS))],
)
def test_battery(number):
    shape = [(1, 2, 1, 53, 53, 16, 16), (1, 1, 1, 37, 61, 8, 12), (2, 2, 2, 1, 50, 5, 5)][number % 3]
    key_mask = torch.rand(shape[0], shape[4]) > 0.3 if number % 2 else None
    options = {"layout": ["bnhd", "bhnd", "slice"][number // 3 % 3], "q_offset": [0, 24, 49][number % 3]}
    check("fused", shape, parse(PATTERNS[number]), torch.float32, key_mask=key_mask, **options)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("text", ["causal(local(20))", pytest.param("sparse(8)", marks=pytest.mark.slow)])
def test_half_precision(halves_stay_halves, dtype, text):
    check("fused", (1, 2, 1, 45, 45, 16, 16), parse(text), dtype)


@pytest.mark.parametrize(
    "text",
    ["causal(sparse(4))", *(pytest.param(one, marks=pytest.mark.slow) for one in ("full()", "local(3, step=4)"))],
)
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


def worn(heads, n, m, cap=2.0):
    generator = torch.Generator().manual_seed(5)
    sinks = torch.randn(heads, generator=generator, dtype=torch.float64)
    bias = torch.randn(heads, n + m - 1, generator=generator, dtype=torch.float64)
    return {"sinks": sinks, "softcap": cap, "offset_bias": bias}


SEGMENTS = torch.tensor([[2] * 9 + [-1] * 3 + [0] * 21 + [7] * 4, [1] * 37])
WORN = {
    "causal(first(20)+sparse(4))": ("softcap",),
    "causal(first(2))+local(4)": ("sinks", "softcap", "offset_bias"),
    "first(3)+local(5)": ("sinks",),
    "global(2)+atrous(3)": ("offset_bias",),
    "full()": (),
}
FAST = [("causal(first(2))+local(4)", False), ("first(3)+local(5)", True)]
SLOW = [(text, is_packed) for text in WORN for is_packed in (False, True) if (text, is_packed) not in FAST]


@pytest.mark.parametrize(("text", "is_packed"), FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW])
def test_what_real_models_wear(text, is_packed):
    """Each pattern with segments or an offset of the queries; sinks, soft-capping and offset biases alone, and all together."""
    n, number = 37 if is_packed else 29, list(WORN).index(text)
    more = {name: value for name, value in worn(2, n, 37).items() if name in WORN[text]}
    if is_packed:
        more["segments"] = SEGMENTS[:1]
    key_mask = torch.rand(1, 37) > 0.2 if number % 2 == 0 else None
    options = {"q_offset": 0 if is_packed else 8, "key_mask": key_mask, "dropout": 0.25 * (number == 1)}
    check("fused", (1, 2, 1, n, 37, 8, 8), parse(text), torch.float32, **options, **more)


@pytest.mark.slow
@settings(max_examples=6)
@given(segments=packed(1, 30), causal=st.booleans(), count=st.integers(1, 9))
def test_any_segments(segments, causal, count):
    pattern = first(count) | local(4)
    check("fused", (1, 2, 1, 30, 30, 8, 8), pattern.causal() if causal else pattern, torch.float32, segments=segments)


@pytest.mark.slow
def test_half_precision_of_all_together(halves_stay_halves):
    more = worn(2, 37, 37, 30.0) | {"segments": SEGMENTS[:1]}
    check("fused", (1, 2, 1, 37, 37, 16, 16), parse("first(2)+local(6)"), torch.bfloat16, **more)


def test_what_is_hidden_may_be_anything():
    """NaN in hidden keys and in rows of no segment changes neither out nor gradients."""
    q, k, v = (torch.randn(1, 1, 37, 8) for _ in range(3))
    key_mask = torch.ones(1, 37, dtype=torch.bool)
    key_mask[0, 14:20] = False
    hidden, results = (SEGMENTS[:1] == -1) | ~key_mask, []
    for filling in (0.0, torch.nan):
        leaves = [q.masked_fill((SEGMENTS[:1] == -1)[:, None, :, None], filling)]
        leaves += [x.masked_fill(hidden[:, None, :, None], filling) for x in (k, v)]
        leaves = [x.requires_grad_() for x in leaves]
        out = attend(*leaves, local(5), key_mask=key_mask, segments=SEGMENTS[:1], softcap=2.0, engine="fused")
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for clean, found in zip(*results, strict=True):
        assert torch.equal(clean, found)


def test_the_alarm_rings(monkeypatch):
    """The broken twin: a window one key too wide."""
    right = fused.Fused.attend
    monkeypatch.setattr(fused.Fused, "attend", lambda self, call: right(self, replace(call, pattern=local(6))))
    with pytest.raises(AssertionError, match="out"):
        check("fused", (1, 1, 1, 40, 40, 8, 8), local(5), torch.float32)


@pytest.mark.parametrize("end", [1, 3])
def test_the_alarm_of_the_bounds_rings(monkeypatch, end):
    """The broken twin: a launch over one row more, or one key more, than there are."""
    right = fused._launches

    def wrong(call):
        for launch in right(call):
            part = tuple(x + (place == end) for place, x in enumerate(launch.part))
            yield launch._replace(part=part)

    monkeypatch.setattr(fused, "_launches", wrong)
    with pytest.raises(Exception, match="outside every tensor of the launch"):
        check("fused", (1, 1, 1, 40, 40, 8, 8), local(5), torch.float32)
