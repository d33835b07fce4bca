"""bfloat16 on the CPU: as near to float64 as torch's own bfloat16 attention, unbiased over long rows, without float32 copies."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jieyue.attention import attend, parse
from jieyue.attention.call import Call, Upstream
from jieyue.attention.engines import native
from jieyue.attention.engines.native import Native

missing = native._missing()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


def tensors(shape, seed=0):
    batch, heads, groups, n, m, depth, width = shape
    generator = torch.Generator().manual_seed(seed)

    def one(h, rows, columns):
        return torch.randn(batch, rows, h, columns, generator=generator).transpose(1, 2).bfloat16()

    return one(heads, n, depth), one(groups, m, depth), one(groups, m, width), one(heads, n, width)


def stock(q, k, v, grad, seen, dtype):
    """out, dq, dk, dv by torch's own attention in `dtype`."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=seen, enable_gqa=True)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))


def ours(engine, q, k, v, grad, text, **options):
    call = Call(q, k, v, parse(text), scale=q.shape[3] ** -0.5, **options)
    assert engine.refuses(call) is None
    out, lse = engine.attend(call)
    out = out.bfloat16()
    grads = engine.differentiate(call, Upstream(grad, lse, engine.delta(grad, out)))
    return out, *(x.bfloat16() for x in grads[:3])


def root_mean_square(x):
    return x.square().mean().sqrt().item()


CASES = [
    ("local(40)", (1, 2, 2, 300, 300, 64, 64)),
    ("causal(full())", (2, 4, 2, 333, 333, 62, 48)),
    ("causal(sparse(8))", (1, 2, 1, 301, 301, 24, 24)),
    ("full()", (1, 2, 1, 40, 700, 33, 17)),
]


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize(("text", "shape"), CASES)
def test_no_further_from_float64_than_twice_torch_itself(text, shape, rank):
    if rank >= len(native.builds()):
        pytest.skip(f"this processor runs {native.builds()} only")
    q, k, v, grad = tensors(shape)
    seen = parse(text).mask(*shape[3:5])
    exact, plain = (stock(q, k, v, grad, seen, dtype) for dtype in (torch.float64, torch.bfloat16))
    found = ours(Native(rank), q, k, v, grad, text)
    for name, x, e, p in zip(("out", "dq", "dk", "dv"), found, exact, plain, strict=True):
        assert root_mean_square(x - e) <= 2 * root_mean_square(p - e), name
        assert (x - e).abs().max() <= 2 * (p - e).abs().max(), name


@pytest.mark.parametrize("rank", range(4))
def test_hidden_keys_may_hold_anything(rank):
    if rank >= len(native.builds()):
        pytest.skip(f"this processor runs {native.builds()} only")
    q, k, v, grad = tensors((1, 2, 2, 90, 90, 16, 16))
    mask = torch.rand(1, 90, generator=torch.Generator().manual_seed(1)) > 0.3
    expected = ours(Native(rank), q, k, v, grad, "local(20)", key_mask=mask)
    k[:, :, ~mask[0]], v[:, :, ~mask[0]] = math.nan, math.inf
    found = ours(Native(rank), q, k, v, grad, "local(20)", key_mask=mask)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def bias_in_deviations(found, exact):
    """The mean error over rows, in standard deviations of that mean: about 1 where errors have no direction."""
    rows = (found.double() - exact).mean(-1).flatten()
    return abs(rows.mean().item()) / (rows.std().item() / len(rows) ** 0.5)


@pytest.mark.parametrize("rank", range(4))
def test_rounding_has_no_direction_over_long_rows(rank):
    """Values of one sign over 2,000 keys, where a rounding that leans adds up; truncated weights must be told apart."""
    if rank >= len(native.builds()):
        pytest.skip(f"this processor runs {native.builds()} only")
    q, k, v, _ = tensors((1, 2, 2, 400, 2000, 32, 32))
    v = (v.abs() + 1).bfloat16()
    scores = (q.double() @ k.double().mT) * 32**-0.5
    weights = scores.softmax(-1)
    exact = weights @ v.double()
    out, _ = Native(rank).attend(Call(q, k, v, parse("full()"), scale=32**-0.5))
    assert bias_in_deviations(out, exact) < 5
    high = (scores - scores.amax(-1, keepdim=True)).exp().float()
    truncated = (high.view(torch.int32) & -65536).view(torch.float32).double() / high.sum(-1, keepdim=True).double()
    assert bias_in_deviations((truncated @ v.double()).bfloat16(), exact) > 20


class Wide(TorchDispatchMode):
    """Remembers the largest float32 tensor that an operation returns."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, tuple | list) else (found,):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float32:
                self.most = max(self.most, x.numel())
        return found


def test_no_float32_copy_of_a_tensor():
    q, k, v, grad = tensors((1, 2, 2, 4000, 4000, 64, 64))
    native.NATIVE.attend(Call(q, k, v, parse("local(30)"), scale=1.0))  # the workspace, kept for later calls
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with Wide() as seen:
        out = attend(*leaves, "local(30)", engine="native")
        torch.autograd.grad(out, leaves, grad)
    assert out.dtype == torch.bfloat16
    assert seen.most < q.numel()
