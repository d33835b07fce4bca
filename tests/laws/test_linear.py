"""Linear attention against its definition, the quadratic form written out; chunks, states and padding change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.errors import InputError
from jieyue.linear import FEATURES, FeatureMap, LinearState, attend_linear
from jieyue.linear.operator import sums_of_weights
from linear_definition import assert_equal, definition, draw, draw_mask

CAUSAL = [name for name in FEATURES if name != "softmax"]
SQUARE = FeatureMap(name="square", prepare=lambda x: x * x)  # a new map is one value


@settings(max_examples=40, derandomize=True)
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
    q, k, v = draw(n, groups=groups, seed=seed)
    mask = draw_mask(n, seed) if masked else None
    out = attend_linear(q, k, v, name, causal=causal, key_mask=mask)
    assert_equal(out, definition(q, k, v, name, causal, mask), (q, k, v))


@settings(max_examples=40, derandomize=True)
@given(
    name=st.sampled_from(CAUSAL),
    direction=st.sampled_from([-1, 0, 1]),
    chunk=st.integers(1, 70),
    n=st.integers(1, 90),
    masked=st.booleans(),
    scale=st.sampled_from([None, 0.3, 2.0]),
    seed=st.integers(0, 99),
)
def test_chunks_of_any_length_give_the_same(name, direction, chunk, n, masked, scale, seed):
    """More than one segment of chunks too: the sums between marks are made again in the backward pass."""
    q, k, v = draw(n, seed=seed)
    mask = draw_mask(n, seed) if masked else None
    scale = None if name == "cosine" else scale
    used = FEATURES[name].scale_for(scale, q.shape[3])
    out, mass, _ = sums_of_weights(q, k, v, mask, None, FEATURES[name], used, direction, chunk)
    assert_equal(out, definition(q, k, v, name, direction, mask, scale), (q, k, v))
    assert (mass >= 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_queries_may_be_fewer_or_more_than_keys(causal):
    for n, m in ((5, 40), (40, 5)):
        q, k, v = draw(n, m)
        if causal:
            with pytest.raises(InputError, match=f"{n} queries and {m} keys"):
                attend_linear(q, k, v, causal=True)
        else:
            assert_equal(attend_linear(q, k, v, "taylor2"), definition(q, k, v, "taylor2"), (q, k, v))


@pytest.mark.parametrize("causal", [False, True])
def test_a_new_map_is_one_value(causal):
    q, k, v = draw(40)
    out = attend_linear(q, k, v, SQUARE, causal=causal, scale=0.5)
    w = (q * 0.5).square() @ k.repeat_interleave(2, 1).square().mT
    w = w.tril() if causal else w
    assert_equal(out, w @ v.repeat_interleave(2, 1) / w.sum(-1, keepdim=True), (q, k, v))


def test_scale_belongs_to_the_map():
    q, k, v = (x.detach() for x in draw(9))
    assert torch.equal(attend_linear(q, k, v, "taylor2"), attend_linear(q, k, v, "taylor2", scale=5**-0.5))
    assert torch.equal(attend_linear(q, k, v, "elu"), attend_linear(q, k, v, "elu", scale=1.0))
    assert not torch.equal(attend_linear(q, k, v, "elu"), attend_linear(q, k, v, "elu", scale=0.5))
    with pytest.raises(InputError, match=r"scale=1\.0 with features='cosine', expected None"):
        attend_linear(q, k, v, "cosine", scale=1.0)


def test_weights_that_are_all_zero_give_zeros_and_no_gradient():
    """relu of a query below zero; no epsilon is added anywhere."""
    q, k, v = draw(20)
    with torch.no_grad():
        q[0, 0, 3:6] = -1.0
    out = attend_linear(q, k, v, "relu", causal=True)
    grads = torch.autograd.grad(out[0, 0, 3:6].sum(), (q, k, v))
    assert not out[0, 0, 3:6].any() and not any(g.any() for g in grads)
    tiny, plain = attend_linear(q * 2.0**-300, k, v, "relu"), attend_linear(q, k, v, "relu")
    assert torch.equal(tiny, plain)  # an epsilon in the denominator would show here


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


@pytest.mark.parametrize("name", CAUSAL)
def test_the_recurrent_form_has_the_same_gradients(name):
    q, k, v = draw(20)
    state, rows = LinearState.empty(k, v, name), []
    for t in range(20):
        state.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        rows.append(state.read(q[:, :, t : t + 1]))
    assert_equal(torch.cat(rows, 2), attend_linear(q, k, v, name, causal=True), (q, k, v))


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
