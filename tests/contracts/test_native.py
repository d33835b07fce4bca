"""The native engine against a dense float64 computation: shapes, bands, layouts, groups, masks, offsets, dropout, builds.

Tolerance: 2 x (gradients 3 x) the error of the plain float32 computation + 8 eps R, R the largest reference value, and at
least 1 for lse, an exponent.
"""

import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.attention import Band, Call, Pattern, attend, full, parse
from jieyue.attention.call import Upstream
from jieyue.attention.engines import library, native
from jieyue.attention.engines.dense import DENSE
from jieyue.attention.engines.native import NATIVE, Native
from jieyue.attention.segments import runs_of

EPS = torch.finfo(torch.float32).eps
missing = native._missing()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


def band(step, lo, hi):
    return SimpleNamespace(step=step, lo=lo, hi=hi)


def tensors(shape, seed=0, layout="bnhd"):
    """q, k, v and a gradient; in [B, N, H, D] memory as transformers hands them, or contiguous, or as slices."""
    batch, heads, groups, n, m, depth, width = shape
    generator = torch.Generator().manual_seed(seed)

    def one(h, rows, columns):
        if layout == "bnhd":
            return torch.randn(batch, rows, h, columns, generator=generator).transpose(1, 2)
        if layout == "slice":
            return torch.randn(batch, h, rows + 1, columns + 3, generator=generator)[:, :, 1:, 1:-2]
        return torch.randn(batch, h, rows, columns, generator=generator)

    return one(heads, n, depth), one(groups, m, depth), one(groups, m, width), one(heads, n, width)


def kept_pairs(shape, seed, p, q_offset):
    """The dropout contract, in int64: 1 / (1 - p) or 0 for each (b, h, i, j)."""
    batch, heads, _, n, m, *_ = shape
    low = 0xFFFFFFFF

    def mix(x):
        x = (x ^ x >> 16) * 0x7FEB352D & low
        x = (x ^ x >> 15) * 0x846CA68B & low
        return x ^ x >> 16

    head = torch.arange(batch * heads).view(batch, heads, 1)
    row = mix((mix((seed & low) ^ mix((seed >> 32) + head & low)) + torch.arange(n) + q_offset) & low)
    hashed = mix(row[..., None] ^ (torch.arange(m) * 0x9E3779B9 & low))
    return (hashed >= int(p * 2**32)).double() / (1 - p)


def visible(bands, shape, key_mask, q_offset):
    n, m = shape[3:5]
    d = torch.arange(n)[:, None] + q_offset - torch.arange(m)
    seen = torch.zeros(n, m, dtype=torch.bool)
    for b in bands:
        seen |= (
            (d % b.step == 0)
            & (d >= (-math.inf if b.lo is None else b.lo))
            & (d <= (math.inf if b.hi is None else b.hi))
        )
    return seen if key_mask is None else seen & key_mask[:, None, None]


def dense(q, k, v, grad, grad_lse, seen, scale, kept, dtype):
    """out, lse, dq, dk, dv by matmul, softmax, matmul."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    s = (q @ keys.mT * scale).masked_fill(~seen, -math.inf)
    empty = ~seen.any(-1, keepdim=True)
    p = torch.where(empty, 0.0, s.masked_fill(empty, 0.0).softmax(-1))
    out = (p * kept.to(dtype)) @ values
    lse = torch.where(empty[..., 0], -math.inf, s.masked_fill(empty, 0.0).logsumexp(-1)).expand(out.shape[:3])
    loss = (out * grad).sum() + (torch.where(empty[..., 0], 0.0, lse) * grad_lse).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, (q, k, v))


def call_of(q, k, v, bands, **options):
    """The call of bands that need not be tidy; one that shows nothing stands for none."""
    tidy = [Band.tidy(b.step, b.lo, b.hi) for b in bands]
    return Call(q, k, v, Pattern(tuple(b for b in tidy if b) or (Band(1, 10**6, 10**6),)), **options)


def ours(engine, q, k, v, grad, grad_lse, bands, options):
    call = call_of(q, k, v, bands, **options)
    out, lse = engine.attend(call)
    return out, lse, *engine.differentiate(call, Upstream(grad, lse, engine.delta(grad, out) - grad_lse))[:3]


def agree(shape, bands, *, key_mask=None, dropout=0.0, seed=0, q_offset=0, layout="bnhd", engine=NATIVE, slack=1):
    """Compares all five results; `slack` loosens the tolerance."""
    q, k, v, grad = tensors(shape, seed & 0xFFFF, layout)
    grad_lse = torch.randn(q.shape[:3], generator=torch.Generator().manual_seed(1))
    scale = shape[5] ** -0.5
    options = {"key_mask": key_mask, "scale": scale, "dropout": dropout, "seed": seed, "q_offset": q_offset}
    seen = visible(bands, shape, key_mask, q_offset)
    kept = kept_pairs(shape, seed, dropout, q_offset) if dropout else torch.ones(())
    inputs = (q, k, v, grad, grad_lse, seen, scale, kept)
    exact, plain = dense(*inputs, torch.float64), dense(*inputs, torch.float32)
    found = ours(engine, q, k, v, grad, grad_lse, bands, options)
    largest = max(x.abs().max().item() for x in exact[2:])
    for name, x, e, p in zip(("out", "lse", "dq", "dk", "dv"), found, exact, plain, strict=True):
        assert x.shape == e.shape, name
        if name == "lse":
            assert torch.equal(x == -math.inf, e == -math.inf), "empty rows"
            x, e, p = (torch.where(t == -math.inf, 0.0, t) for t in (x, e, p))
        gradient = name.startswith("d")
        reference = largest if gradient else max(e.abs().max().item(), float(name == "lse"))
        allowed = (3 if gradient else 2) * (p - e).abs().max().item() + slack * 8 * EPS * reference
        error = (x - e).abs().max().item()
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


FULL, LOCAL, ATROUS = band(1, None, None), band(1, -5, 5), band(4, None, None)
CASES = {
    "one": ((1, 1, 1, 1, 1, 8, 8), [LOCAL]),
    "local": ((1, 2, 2, 300, 300, 64, 64), [band(1, -128, 128)]),
    "several tiles": ((1, 1, 1, 700, 700, 16, 16), [band(1, -40, 40)]),
    "causal local": ((1, 2, 2, 700, 700, 64, 64), [band(1, 0, 128)]),
    "only later keys": ((1, 1, 1, 200, 200, 32, 32), [band(1, -70, -3)]),
    "itself": ((2, 1, 1, 100, 100, 24, 24), [band(1, 0, 0)]),
    "full": ((1, 2, 2, 130, 130, 64, 64), [FULL]),
    "full, several chunks": ((1, 1, 1, 600, 900, 200, 200), [FULL]),
    "causal, several chunks": ((1, 1, 1, 900, 900, 200, 200), [band(1, 0, None)]),
    "atrous": ((1, 2, 2, 161, 161, 64, 64), [ATROUS]),
    "step beyond the rows": ((1, 1, 1, 40, 40, 8, 8), [band(100, None, None)]),
    "more steps than rows": ((1, 1, 1, 7, 9, 8, 8), [band(8, None, None)]),
    "dilated window": ((1, 2, 1, 333, 333, 40, 40), [band(3, -60, 60)]),
    "odd sizes": ((2, 3, 1, 77, 91, 19, 45), [band(1, -20, 11)]),
    "wide values": ((1, 1, 1, 60, 60, 130, 200), [band(1, -20, 11)]),
    "sparse": ((1, 2, 2, 400, 400, 64, 64), [band(1, -7, 7), band(8, None, -8), band(8, 8, None)]),
    "causal sparse": ((1, 2, 1, 400, 400, 64, 64), [band(1, 0, 7), band(8, 8, None)]),
    "no key at all": ((1, 1, 1, 5, 5, 8, 8), [band(1, 10, 20)]),
    "grouped heads": ((2, 6, 2, 150, 150, 32, 32), [band(1, -30, 30)]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["bnhd", "bhnd", "slice"])
def test_equals_dense(name, layout):
    agree(*CASES[name], layout=layout)


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("name", ["local", "odd sizes", "sparse", "causal, several chunks"])
def test_every_build(rank, name):
    if rank >= len(native.builds()):
        pytest.skip(f"this processor runs {native.builds()} only")
    mask = torch.rand(CASES[name][0][0], CASES[name][0][4], generator=torch.Generator().manual_seed(3)) > 0.3
    agree(*CASES[name], engine=Native(rank), key_mask=mask, dropout=0.2, seed=5)


@pytest.mark.parametrize("name", CASES)
def test_dropout_draws_the_contract(name):
    agree(*CASES[name], dropout=0.3, seed=0x1234567887654321)


@pytest.mark.parametrize("name", CASES)
def test_masked_keys(name):
    shape, bands = CASES[name]
    mask = torch.rand(shape[0], shape[4], generator=torch.Generator().manual_seed(3)) > 0.4
    mask[0, shape[4] // 2 :] = False
    agree(shape, bands, key_mask=mask)


@settings(max_examples=60)
@given(data=st.data())
def test_any_shape(data):
    draw = data.draw
    groups, step = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2, 3, 7]))
    shape = (
        *(draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), groups),
        *(draw(st.integers(1, 200)), draw(st.integers(1, 200)), draw(st.integers(1, 40)), draw(st.integers(1, 40))),
    )
    lo = draw(st.none() | st.integers(-250, 250))
    hi = draw(st.none() | st.integers(-250 if lo is None else lo, 300))
    key_mask = torch.rand(shape[0], shape[4]) > draw(st.floats(0, 1)) if draw(st.booleans()) else None
    agree(
        *(shape, [band(step, lo, hi)]),
        key_mask=key_mask,
        dropout=draw(st.sampled_from([0.0, 0.1, 0.9])),
        seed=draw(st.integers(0, 2**63 - 1)),
        q_offset=draw(st.integers(-50, 200)),
        layout=draw(st.sampled_from(["bnhd", "bhnd", "slice"])),
        slack=4,  # where each row sees one key, softmax is exactly 1 and the plain computation makes no error at all
    )


def test_very_large_scores():
    """Near one-hot rows: outputs as exact as ever, gradients finite (their rounding grows with abs(lse), as that of any
    backward that recomputes weights from lse)."""
    q, k, v, grad = tensors((1, 1, 1, 90, 90, 16, 16))
    bands, options = [band(1, -20, 20)], {"scale": 1e4}
    seen = visible(bands, (1, 1, 1, 90, 90), None, 0)
    exact = dense(q, k, v, grad, torch.zeros(()), seen, 1e4, torch.ones(()), torch.float64)
    found = ours(NATIVE, q, k, v, grad, torch.zeros(()), bands, options)
    torch.testing.assert_close(found[0].double(), exact[0], atol=1e-2, rtol=0)  # ulp of a score of 1e5
    assert all(x.isfinite().all() for x in found)


def test_masked_keys_may_hold_anything():
    q, k, v, _ = tensors((1, 1, 1, 50, 50, 8, 8))
    mask = torch.arange(50)[None] < 40
    expected, _ = NATIVE.attend(Call(q, k, v, full(), mask, 1.0))
    k[:, :, 40:], v[:, :, 40:] = math.nan, math.inf
    found, _ = NATIVE.attend(Call(q, k, v, full(), mask, 1.0))
    assert torch.equal(found, expected)


ODD = {
    "q": lambda q, k, v: q[:, :, 7].fill_(math.nan),
    "one number of q": lambda q, k, v: q[:, :, 7, 0].fill_(math.nan),
    "k, first of a panel": lambda q, k, v: k[:, :, 16].fill_(math.nan),
    "k": lambda q, k, v: k[:, :, 17].fill_(math.nan),
    "v": lambda q, k, v: v[:, :, 7].fill_(math.nan),
    "infinite q": lambda q, k, v: q[:, :, 7].fill_(math.inf),
    "infinite scores": lambda q, k, v: k[:, :, 16, 0].fill_(math.inf),
}
AROUND = {
    "nothing": {},
    "a mask": {"key_mask": torch.arange(50)[None] % 3 > 0},
    "a mask that hides all of some rows": {"key_mask": torch.arange(50)[None] > 12},
    "segments": {"runs": runs_of(torch.arange(50)[None] // 20)},
    "sinks": {"sinks": torch.tensor([0.5, math.inf])},
    "softcap": {"softcap": 2.0},
    "biases": {"offset_bias": torch.linspace(-1, 1, 198).view(2, 99)},
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("text", ["causal(local(3))", "sparse(8)", "full()", "global(2)+local(3)"])
def test_what_is_no_number_stays_so(text, odd):
    """NaN scores must not pass for no scores, whose row would be zeros; and reach no row that the dense definition keeps clean."""
    for options in AROUND.values():
        q, k, v, grad = tensors((1, 2, 2, 50, 50, 8, 8))
        clean = Call(q, k, v, parse(text), scale=0.4, **options)
        dirty = replace(clean, q=q.clone(), k=k.clone(), v=v.clone())
        ODD[odd](dirty.q, dirty.k, dirty.v)
        seen = DENSE.sees(clean)[0]
        rows = seen[:, {"k": 17, "v": 7}.get(odd, 16)] if odd[0] in "kv" else (torch.arange(50) == 7) & seen.any(1)
        exact = both(DENSE, replace(dirty, **{name: getattr(dirty, name).double() for name in "qkv"}), grad.double())
        for rank, build in enumerate(native.builds()):
            expected, found = both(Native(rank), clean, grad), both(Native(rank), dirty, grad)
            for name, x, e, c in zip(("out", "lse", "dq", "dk", "dv"), found, exact, expected, strict=False):
                assert not (e.isfinite() & ~x.isfinite()).any(), (build, name)
                if name == "lse":
                    assert torch.equal(x.isnan(), e.isnan()) and torch.equal(x.isinf(), e.isinf()), build
                    assert torch.equal(x == -math.inf, e == -math.inf), build
                if name in ("out", "lse") and odd != "infinite scores":
                    unmoved = x.isfinite() & ~rows.view(-1, *[1] * (x.ndim - 3))
                    assert torch.equal(x[unmoved], c[unmoved]), (build, name)
                if odd[0] == "i":
                    continue
                lost = seen[rows].any(0) if name in ("dk", "dv") else rows
                if odd != "v" or name not in ("lse", "dv"):
                    assert x[:, :, lost].isnan().all(), (build, name)


def test_parts_know_the_whole():
    """Each band alone, its backward given the merged lse and delta: the contract of the operator."""
    shape, bands = CASES["sparse"]
    q, k, v, grad = tensors(shape)
    options = {"key_mask": None, "scale": 0.125, "dropout": 0.1, "seed": 9, "q_offset": 0}
    grad_lse = torch.randn(q.shape[:3])
    whole = ours(NATIVE, q, k, v, grad, grad_lse, bands, options)
    calls = [call_of(q, k, v, [b], **options) for b in bands]
    parts = [NATIVE.attend(call) for call in calls]
    lse = torch.stack([part[1] for part in parts]).logsumexp(0)
    out = sum(part[0] * torch.where(part[1] == -math.inf, 0.0, (part[1] - lse).exp())[..., None] for part in parts)
    delta = (out * grad).sum(-1) - grad_lse
    gradients = [NATIVE.differentiate(call, Upstream(grad, lse, delta))[:3] for call in calls]
    for x, y in zip(whole, (out, lse, *(sum(g) for g in zip(*gradients, strict=True))), strict=True):
        torch.testing.assert_close(x, y, atol=2e-6, rtol=2e-6)


def test_results_do_not_depend_on_threads():
    before = torch.get_num_threads()
    shape, bands = (1, 3, 1, 1500, 1500, 32, 32), [band(1, -9, 9), band(16, 16, None)]
    inputs = tensors(shape)
    options = {"key_mask": None, "scale": 0.2, "dropout": 0.1, "seed": 3, "q_offset": 0}
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(ours(NATIVE, *inputs, torch.zeros(1, 3, 1500), bands, options))
        torch.set_num_threads(3)
        library.parallel.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native.ctypes, "CDLL", lambda _: SimpleNamespace())
            library.parallel()
        found.append(ours(NATIVE, *inputs, torch.zeros(1, 3, 1500), bands, options))
    finally:
        library.parallel.cache_clear()
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_workspace_does_not_grow():
    def floats(n):
        library._WORKSPACES.__dict__.clear()
        q, k, v, grad = tensors((1, 1, 1, n, n, 16, 16))
        ours(NATIVE, q, k, v, grad, torch.zeros(1, 1, n), [band(1, -60, 60), band(4, 64, None)], {"scale": 0.25})
        return library._WORKSPACES.held.numel() / torch.get_num_threads()

    assert floats(20000) == floats(10000) < 2**20


def test_the_alarm_rings():
    """Broken twins: a window one key too wide, and another drop of the dice, must be told apart."""
    shape, options = (1, 1, 1, 120, 120, 16, 16), {"dropout": 0.1, "seed": 4}
    agree(shape, [band(1, -9, 9)], **options)
    with pytest.raises(AssertionError, match="out"):
        agree(shape, [band(1, -9, 9)], engine=Broken(band=band(1, -9, 10)), **options)
    with pytest.raises(AssertionError, match="out"):
        agree(shape, [band(1, -9, 9)], engine=Broken(seed=5), **options)


class Broken(Native):
    """Computes something else than what it is asked."""

    def __init__(self, band=None, seed=None):
        super().__init__()
        self.band, self.seed = band, seed

    def attend(self, call, *, alone=False):
        pattern = call_of(call.q, call.k, call.v, [self.band]).pattern if self.band else call.pattern
        return super().attend(replace(call, pattern=pattern, seed=self.seed or call.seed), alone=alone)


def test_refusals_name_the_reason(monkeypatch):
    q = torch.zeros(1, 1, 2, 4)
    call = Call(q, q, q, full())
    assert NATIVE.refuses(call) is None
    assert "v is torch.float64" in NATIVE.refuses(Call(q, q, q.double(), full()))
    monkeypatch.setattr(native, "_missing", lambda: "the native library is not built")
    assert "not built" in NATIVE.refuses(call)


def dressed(seed, n=290, text="causal(first(5)+local(40))"):
    """A call with everything: packed rows of which some are nobody's, sinks, softcap, biases, a key mask, dropout, groups."""
    q, k, v, grad = tensors((2, 2, 1, n, n, 24, 40), seed)
    generator = torch.Generator().manual_seed(seed)
    ids = [
        [i for i, length in enumerate(lengths) for _ in range(length)][:n]
        for lengths in ((3, 1, 150, 90, 90), (7, 500))
    ]
    segments = torch.tensor(ids)
    segments[0, 154:180] = -1
    options = {
        "key_mask": torch.rand(2, n, generator=generator) > 0.2,
        "scale": 0.2,
        "dropout": 0.1,
        "seed": 5,
        "sinks": torch.randn(2, generator=generator),
        "softcap": 2.0,
        "offset_bias": torch.randn(2, 2 * n - 1, generator=generator),
    }
    return Call(q, k, v, parse(text), runs=runs_of(segments), **options), grad


def both(engine, call, grad):
    out, lse = engine.attend(call)
    return out, lse, *engine.differentiate(call, Upstream(grad, lse, engine.delta(grad, out)))


def widened(call):
    q, k, v, sinks, bias = (x.double() for x in (call.q, call.k, call.v, call.sinks, call.offset_bias))
    return replace(call, q=q, k=k, v=v, sinks=sinks, offset_bias=bias)


DRESSED = [
    "causal(first(5)+local(40))",
    "global(20)+local(30)",
    "first(3)+sparse(8)",
    "global(2)",
    "causal(first(200))",
]


@pytest.mark.parametrize("text", DRESSED)
def test_everything_at_once_in_every_build(text):
    for runs in (True, False):
        call, grad = dressed(3, text=text)
        call = call if runs else replace(call, runs=None)
        exact = both(DENSE, widened(call), grad.double())
        for rank, build in enumerate(native.builds()):
            found = both(Native(rank), call, grad)
            assert torch.equal(found[1] == -math.inf, exact[1] == -math.inf)
            for name, x, e in zip(("out", "lse", "dq", "dk", "dv", "dbias"), found, exact, strict=True):
                x, e = (torch.where(t == -math.inf, 0.0, t) for t in (x, e))
                assert (x - e).abs().max() <= 60 * EPS * max(1.0, e.abs().max().item()), (build, name)


def test_wide_patterns_in_several_chunks():
    """Keys that no tile holds at once: forward sweeps, backward takes turns."""
    q, k, v, grad = tensors((1, 2, 1, 900, 900, 200, 200))
    bias = torch.randn(2, 1799, generator=torch.Generator().manual_seed(0))
    call = Call(
        q, k, v, parse("causal(first(40)+full())"), scale=0.05, offset_bias=bias, sinks=torch.randn(2), softcap=9.0
    )
    call = replace(call, pattern=parse("global(40)+band(1, 3, inf)"))
    exact, found = both(DENSE, widened(call), grad.double()), both(NATIVE, call, grad)
    for x, e in zip(found, exact, strict=True):
        assert (x - e).abs().max() <= 60 * EPS * max(1.0, e.abs().max().item())


def test_what_segments_hide_may_hold_anything():
    call, grad = dressed(4)
    expected = both(NATIVE, call, grad)
    absent, other = call.runs[1] == 0, call.runs[0] == 7  # rows of nobody; of another document
    dirty = replace(call, **{name: getattr(call, name).clone() for name in "qkv"})
    for x in (dirty.q, dirty.k, dirty.v):
        x.transpose(1, 2)[absent | other] = math.nan
    found = both(NATIVE, dirty, grad)
    for x, e in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(x.transpose(1, 2)[~other], e.transpose(1, 2)[~other])
    for x, e in zip(found[2:5], expected[2:5], strict=True):
        assert torch.equal(x.transpose(1, 2)[~other], e.transpose(1, 2)[~other])
    assert other.any() and absent.any()


@pytest.mark.parametrize("text", DRESSED[:3])
def test_what_is_added_up_does_not_depend_on_threads(text):
    call, grad = dressed(5, text=text)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(both(NATIVE, call, grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_what_lay_in_memory_before_is_never_read():
    """Few keys, one number a row: freed memory full of NaN and of large numbers must leave results and gradients as they are."""
    pattern = parse("local(7)")
    torch.manual_seed(0)
    for turn in range(40):
        dirt = [torch.full((1000 * (turn + 1) * (part + 1),), math.nan if turn % 2 else 1e3) for part in range(4)]
        del dirt
        q, k, v = (torch.randn(2, 1, rows, 1, requires_grad=True) for rows in (31, 17, 17))
        upstream, found = torch.randn(2, 1, 31, 1), []
        for engine in ("native", "dense"):
            out = attend(q, k, v, pattern, engine=engine)
            found.append((out.detach(), *torch.autograd.grad(out, (q, k, v), upstream)))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*CASES, "dressed"])
def test_nothing_is_read_before_it_is_written(name, monkeypatch):
    """Workspace and outputs full of NaN, and of large numbers, change no bit of a result."""
    if name == "dressed":
        inputs = [dressed(6, text=text) for text in DRESSED]
    else:
        shape, bands = CASES[name]
        q, k, v, grad = tensors(shape)
        inputs = [(call_of(q, k, v, bands, scale=0.3, dropout=0.1, seed=8), grad)]
    for call, grad in inputs:
        found = []
        for dirt in (0.0, math.nan, 3e38):
            patch = {
                "workspace": lambda floats, dirt=dirt: library.workspace(floats).fill_(dirt),
                "room": lambda *sizes, dirt=dirt: library.room(*sizes).fill_(dirt),
            }
            for one, dirty in patch.items():
                monkeypatch.setattr(native, one, dirty)
            found.append(both(NATIVE, call, grad))
        for other in found[1:]:
            assert all(x is y or torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@pytest.mark.slow
def test_what_the_stack_held_before_is_never_read(tmp_path, monkeypatch):
    """The kernel built anew so that its variables begin as large numbers: every build right, memory dirty too."""
    root, flag = Path(__file__).parents[2], "-ftrivial-auto-var-init=pattern"
    monkeypatch.syspath_prepend(str(root))
    import hatch_build

    try:
        hatch_build.compiled([hatch_build.find_compiler(), flag, "-fsyntax-only", "-x", "c++", os.devnull])
    except hatch_build.BuildFailed as failure:
        pytest.skip(f"needs a C++ compiler that knows {flag}: {failure}")
    made = hatch_build.build(root, hatch_build.LIBRARIES[0], flag, tmp_path / "libband.so")
    monkeypatch.setattr(native, "_LIBRARY", made)
    native._opened.cache_clear()
    try:
        for case in CASES.values():
            mask = torch.rand(case[0][0], case[0][4], generator=torch.Generator().manual_seed(3)) > 0.3
            for rank in range(len(native.builds())):
                agree(*case, engine=Native(rank), key_mask=mask, dropout=0.2, seed=5)
        for text in DRESSED:
            test_everything_at_once_in_every_build(text)
        test_what_lay_in_memory_before_is_never_read()
        for name in (*CASES, "dressed"):
            with monkeypatch.context() as patch:
                test_nothing_is_read_before_it_is_written(name, patch)
    finally:
        native._opened.cache_clear()
