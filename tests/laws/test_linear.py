"""Linear attention against its definition, the quadratic form written out; chunks, states and padding change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.errors import InputError
from jieyue.linear import FEATURES, LinearState, attend_linear

CAUSAL = [name for name in FEATURES if name != "softmax"]
F64 = torch.float64


def weights(q, k, name, scale):
    """sim(q_i, k_j) [B, H, N, M], from the articles' formulas."""
    if name == "cosine":
        unit = torch.nn.functional.normalize
        return 1 + unit(q, dim=-1) @ unit(k, dim=-1).transpose(-1, -2)
    q = q * (q.shape[-1] ** -0.5 if name == "taylor2" and scale is None else scale or 1.0)
    if name == "taylor2":
        s = q @ k.transpose(-1, -2)
        return 1 + s + s * s / 2
    phi = {"elu": lambda x: torch.where(x > 0, x + 1, x.exp()), "relu": torch.relu}[name]
    return phi(q) @ phi(k).transpose(-1, -2)


def definition(q, k, v, name, causal, key_mask, scale=None):
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if name == "softmax":  # queries over features, keys over positions
        shown = k if key_mask is None else k.masked_fill(~key_mask[:, None, :, None], -torch.inf)
        return (q * (scale or 1.0)).softmax(-1) @ (shown.softmax(-2).transpose(-1, -2) @ v)
    w = weights(q, k, name, scale)
    if key_mask is not None:
        w = w * key_mask[:, None, None, :]
    if causal:
        w = w * torch.ones(w.shape[-2:], dtype=w.dtype).tril()
    total = w.sum(-1, keepdim=True)
    return torch.where(total > 0, w @ v / total.where(total > 0, torch.ones_like(total)), torch.zeros_like(total))


def draw(n, m, heads=4, groups=2, d=5, dv=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, n, d), (2, groups, m, d), (2, groups, m, dv)]
    return [torch.randn(shape, dtype=F64, generator=generator, requires_grad=True) for shape in shapes]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(FEATURES)),
    causal=st.booleans(),
    n=st.integers(1, 150),
    masked=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_equals_the_quadratic_definition(name, causal, n, masked, groups, seed):
    causal = causal and name != "softmax"
    q, k, v = draw(n, n, groups=groups, seed=seed)
    key_mask = None
    if masked:
        key_mask = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) > 0.3
        key_mask[0, 0] = True
        key_mask[1, 0] = name == "softmax"
    out = attend_linear(q, k, v, name, causal=causal, key_mask=key_mask)
    expected = definition(q, k, v, name, causal, key_mask)
    upstream = torch.randn(out.shape, dtype=F64, generator=torch.Generator().manual_seed(seed + 1))
    assert (out - expected).abs().max() <= 1e-12 * max(1.0, float(expected.detach().abs().max())) * 10
    ours = torch.autograd.grad(out, (q, k, v), upstream)
    theirs = torch.autograd.grad(expected, (q, k, v), upstream)
    largest = max(1.0, *(float(x.abs().max()) for x in theirs))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-11 * largest


def test_the_alarm_rings():
    """The broken twin: the causal form of a shifted sequence is not the definition."""
    q, k, v = draw(40, 40)
    out = attend_linear(q, k, v.roll(1, 2), "elu", causal=True)
    assert (out - definition(q, k, v, "elu", True, None)).abs().max() > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
def test_continuing_from_a_state_is_the_whole(name):
    q, k, v = (x.detach() for x in draw(90, 90))
    whole = attend_linear(q, k, v, name, causal=True)
    first, state = attend_linear(*(x[:, :, :37] for x in (q, k, v)), name, causal=True, return_state=True)
    before = state.sums.clone()
    rest = attend_linear(*(x[:, :, 37:] for x in (q, k, v)), name, causal=True, state=state)
    assert torch.allclose(torch.cat([first, rest], 2), whole, atol=1e-12)
    assert torch.equal(state.sums, before)  # a state that is passed in is not changed


@pytest.mark.parametrize("name", CAUSAL)
def test_step_by_step_is_the_whole_with_constant_memory(name):
    q, k, v = (x.detach() for x in draw(30, 30))
    state, rows, sizes = LinearState.empty(k, v, name), [], set()
    for t in range(30):
        state.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        rows.append(state.read(q[:, :, t : t + 1]))
        sizes.add(state.nbytes)
    assert torch.allclose(torch.cat(rows, 2), attend_linear(q, k, v, name, causal=True), atol=1e-12)
    assert len(sizes) == 1


def test_masked_keys_may_hold_anything():
    q, k, v = (x.detach() for x in draw(20, 20))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 15:] = False
    expected = attend_linear(q, k, v, "elu", key_mask=mask)
    k[:, :, 15:], v[:, :, 15:] = float("nan"), float("inf")
    assert torch.equal(attend_linear(q, k, v, "elu", key_mask=mask), expected)


def test_rows_without_any_key_give_zeros_and_no_gradient():
    q, k, v = draw(12, 12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1] = False
    out = attend_linear(q, k, v, "elu", key_mask=mask)
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert not out[1].any()
    assert all(torch.isfinite(g).all() and not g[1].any() for g in grads)


def test_elu_does_not_cancel_far_below_zero_in_bfloat16():
    q, k, v = (x.detach() for x in draw(16, 16))
    far = (k - 20).bfloat16()
    out = attend_linear(q.bfloat16(), far, v.bfloat16(), "elu").double()
    expected = definition(q.bfloat16().double(), far.double(), v.bfloat16().double(), "elu", False, None)
    assert (out - expected).abs().max() < 0.02


def test_causal_double_softmax_is_refused_because_it_leaks():
    q, k, v = (x.detach() for x in draw(10, 10))
    with pytest.raises(InputError, match="softmax"):
        attend_linear(q, k, v, "softmax", causal=True)
    later = k.clone()
    later[:, :, 9] += 3  # the leak: weights of earlier keys move when a later key does
    assert (k.softmax(-2)[:, :, :9] - later.softmax(-2)[:, :, :9]).abs().max() > 1e-3


def test_gradcheck():
    q, k, v = draw(7, 7, heads=2, groups=1, d=3, dv=2)
    for name in CAUSAL:
        shifted = (q + 0.3, k + 0.3, v)  # away from relu's corner
        assert torch.autograd.gradcheck(lambda *x, name=name: attend_linear(*x, name, causal=True), shifted)
