"""Every map in every type, by the C kernel in all its builds and by stock torch operations: within the computed tolerances."""

import pytest
import torch
from tolerance import assert_near, largest

from jieyue.linear import FEATURES, attend_linear, chunked, native
from jieyue.linear.native import Native
from jieyue.linear.operator import sums_of_weights
from linear_definition import definition, draw_mask

BUILDS = native.builds()
DIRECTIONS = {"all": 0, "past": 1, "future": -1}
# N, H, G, D, V, padding: chunks of 64 and segments of 16 of them, one head and more, sizes that no vector divides
SHAPES = {
    "one token": (1, 2, 1, 8, 8, False),
    "a chunk": (64, 2, 2, 16, 16, False),
    "ragged": (150, 4, 2, 5, 7, True),
    "two segments": (1100, 2, 1, 8, 12, True),
    "wide": (70, 1, 1, 64, 80, False),
}
needs_library = pytest.mark.skipif(not BUILDS, reason="the C library is not built here")


def inputs(shape, dtype, seed=0):
    n, heads, groups, d, v, masked = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)

    def rows(count, width):  # [B, N, H, D] memory, as transformers has it
        made = torch.randn(2, n, count, width, generator=generator, dtype=torch.float64)
        return made.to(dtype).transpose(1, 2).requires_grad_()

    tensors = rows(heads, d), rows(groups, d), rows(groups, v)
    return tensors, draw_mask(n, 3) if masked else None, torch.randn(2, heads, n, v, generator=generator).to(dtype)


def results(function, tensors, upstream):
    out = function(*tensors)
    return [out], torch.autograd.grad(out, tensors, upstream)


def check(name, direction, shape, dtype):
    """Ours in ``dtype`` against the definition in float64, beside the definition in ``dtype``."""
    tensors, mask, upstream = inputs(shape, dtype)
    scale = FEATURES[name].scale_for(None, tensors[0].shape[3])

    def ours(q, k, v):
        return sums_of_weights(q, k, v, mask, None, FEATURES[name], scale, direction)[0]

    def plain(q, k, v):
        return definition(q, k, v, name, direction, mask)

    exact = results(plain, [x.detach().double().requires_grad_() for x in tensors], upstream.double())
    found, rounded = results(ours, tensors, upstream), results(plain, tensors, upstream)
    assert_near(found[0], exact[0], rounded[0], names=["out"])
    assert_near(found[1], exact[1], rounded[1], gradient=True, names=["dq", "dk", "dv"])


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["elu", "relu", "cosine"])
@pytest.mark.parametrize("build", BUILDS)
def test_the_kernel(build, name, direction, shape, monkeypatch):
    engine, calls = Native(BUILDS.index(build)), []
    monkeypatch.setattr(chunked, "native", engine)
    monkeypatch.setattr(
        engine, "_run", lambda which, *x, run=engine._run, **more: (calls.append(which), run(which, *x, **more))
    )
    check(name, DIRECTIONS[direction], shape, torch.float32)
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", ["one token", "ragged", "two segments"])
@pytest.mark.parametrize(
    ("name", "direction"), [(name, way) for name in FEATURES for way in DIRECTIONS if name != "softmax" or way == "all"]
)
def test_stock_operations(name, direction, shape, dtype, monkeypatch):
    monkeypatch.setattr(Native, "refuses", lambda *_: "not in this test")
    check(name, DIRECTIONS[direction], shape, dtype)


@needs_library
def test_the_alarm_rings():
    """The broken twin: a kernel that forgot one key would be found."""
    tensors, _, upstream = inputs("ragged", torch.float32)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[:, 7] = False
    exact = definition(*(x.double() for x in tensors), "elu", 1)
    with pytest.raises(AssertionError, match="error"):
        assert_near([attend_linear(*tensors, causal=True, key_mask=mask)], [exact], [definition(*tensors, "elu", 1)])
    assert largest(upstream) > 0


@needs_library
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_threads_and_layouts_change_nothing(direction):
    (q, k, v), mask, upstream = inputs("ragged", torch.float32)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for layout in ("as it is", "contiguous", "strided"):
                tensors = [x.detach() for x in (q, k, v)]
                if layout == "contiguous":
                    tensors = [x.contiguous() for x in tensors]
                if layout == "strided":
                    tensors = [torch.stack([x, x], -1)[..., 0] for x in tensors]
                tensors = [x.requires_grad_() for x in tensors]
                out, mass, _ = sums_of_weights(*tensors, mask, None, FEATURES["elu"], 1.0, DIRECTIONS[direction])
                found.append([out, mass, *torch.autograd.grad(out, tensors, upstream)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_library
def test_masked_rubbish_does_not_reach_the_kernels_sums():
    (q, k, v), mask, upstream = inputs("two segments", torch.float32)
    found = []
    for rubbish in (0.0, torch.nan):
        spoilt = [x.detach().masked_fill(~mask[:, None, :, None], rubbish).requires_grad_() for x in (k, v)]
        out = attend_linear(q, *spoilt, "cosine", causal=True, key_mask=mask)
        found.append([out, *torch.autograd.grad(out, (q, *spoilt), upstream)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_far_below_zero_nothing_cancels_in_any_type():
    """elu(x) + 1 at x = −20 is e^−20; computed by subtraction it is 0 in every type below float64."""
    for dtype in (torch.bfloat16, torch.float32):
        (q, k, v), _, _ = inputs("a chunk", dtype)
        far = (k.detach() - 20).to(dtype)
        exact = definition(q.detach().double(), far.double(), v.detach().double(), "elu", 1)
        out = attend_linear(q.detach(), far, v.detach(), "elu", causal=True)
        assert largest(out.double() - exact) <= 4 * torch.finfo(dtype).eps * largest(exact)
        if dtype == torch.bfloat16:
            assert not (torch.nn.functional.elu(far) + 1).any()  # what others compute


def test_sums_of_half_inputs_are_float32():
    """4096 equal keys: a bfloat16 sum of ones stops growing at 256, and would be 16 times too small."""
    q, k, v = (torch.ones(1, 1, 4096, 8, dtype=torch.bfloat16) for _ in range(3))
    out, mass, total = sums_of_weights(q, k, v, None, None, FEATURES["elu"], 1.0, 1)
    assert mass.dtype == total.dtype == torch.float32
    assert torch.equal(out, v) and mass[0, 0, -1] == 4096 * 8 * 4


def test_the_backward_pass_keeps_one_sum_in_sixteen_chunks():
    """What is saved for it beside q, k, v, out and m; recomputation makes the rest again."""
    (q, k, v), _, _ = inputs("two segments", torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        attend_linear(q, k, v, causal=True)
    sums = [x for x in kept if x.dim() == 5]
    assert [list(x.shape) for x in sums] == [[-(-1100 // (64 * 16)), 2, 1, 8, 13]]
