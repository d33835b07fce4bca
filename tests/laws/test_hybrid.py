"""Near softmax with a linear map for the rest, and maps cut to a window: exact against the matrix of all weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.attention import first, local, parse
from jieyue.errors import InputError
from jieyue.linear import HybridState, WindowState, attend_hybrid, attend_linear, attend_window
from linear_definition import F64, assert_equal, draw, draw_mask, hybrid_definition, window_definition

MAPS = ["elu", "relu", "cosine", "taylor2"]
CALLS = {
    "hybrid": lambda *x, **more: attend_hybrid(*x, local(3), "elu", **more),
    "window": lambda *x, **more: attend_window(*x, "elu", 3, **more),
}
STATES = {"hybrid": lambda: HybridState(local(3), "elu"), "window": lambda: WindowState("elu", 3)}


@settings(max_examples=40, derandomize=True)
@given(
    name=st.sampled_from(MAPS),
    causal=st.booleans(),
    masked=st.booleans(),
    n=st.integers(1, 90),
    window=st.integers(0, 40),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_both_equal_their_definitions(name, causal, masked, n, window, groups, seed):
    q, k, v = draw(n, groups=groups, seed=seed)
    mask = draw_mask(n, seed) if masked else None
    out = attend_window(q, k, v, name, window, causal=causal, key_mask=mask)
    assert_equal(out, window_definition(q, k, v, name, window, causal, mask), (q, k, v))
    out = attend_hybrid(q, k, v, local(window), name, causal=causal, key_mask=mask)
    near = local(window).mask(n, n)
    assert_equal(out, hybrid_definition(q, k, v, near, name, causal, mask), (q, k, v))


@settings(max_examples=30, derandomize=True)
@given(
    name=st.sampled_from(MAPS),
    causal=st.booleans(),
    masked=st.booleans(),
    n=st.integers(1, 60),
    window=st.integers(0, 20),
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_first_keys_are_near(name, causal, masked, n, window, count, seed):
    q, k, v = draw(n, seed=seed)
    mask, near = draw_mask(n, seed) if masked else None, first(count) | local(window)
    out = attend_hybrid(q, k, v, near, name, causal=causal, key_mask=mask)
    shown = (near.causal() if causal else near).mask(n, n)
    assert_equal(out, hybrid_definition(q, k, v, shown, name, causal, mask), (q, k, v))


@settings(max_examples=30, derandomize=True)
@given(
    kind=st.sampled_from(["linear", "window", "hybrid", "hybrid with first"]),
    name=st.sampled_from([*MAPS, "softmax"]),
    causal=st.booleans(),
    masked=st.booleans(),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_each_run_is_alone(kind, name, causal, masked, lengths, seed):
    """Packed rows equal their runs one by one, gradients too; rows of no segment are zero and may hold anything."""
    if name == "softmax" and (causal or kind != "linear"):
        name = "elu"
    calls = {
        "linear": lambda *x, **more: attend_linear(*x, name, **more),
        "window": lambda *x, **more: attend_window(*x, name, 3, **more),
        "hybrid": lambda *x, **more: attend_hybrid(*x, local(2), name, **more),
        "hybrid with first": lambda *x, **more: attend_hybrid(*x, first(2) | local(2), name, **more),
    }
    n = sum(lengths)
    q, k, v = draw(n, seed=seed)
    mask = draw_mask(n, seed) if masked else None
    ids = [number if number % 4 != 1 else -1 for number, length in enumerate(lengths) for _ in range(length)]
    ids = ids if ids.count(-1) <= 12 and len(lengths) < 6 else [0] * n
    segments = torch.tensor([ids, [0] * n])
    out = calls[kind](q, k, v, causal=causal, key_mask=mask, segments=segments)
    expected = torch.zeros_like(out)
    for b in range(2):
        for own in set(segments[b].tolist()) - {-1}:
            at = (segments[b] == own).nonzero()[:, 0]
            rows = slice(int(at[0]), int(at[-1]) + 1)
            alone = [x[b : b + 1, :, rows] for x in (q, k, v)]
            expected[b : b + 1, :, rows] = calls[kind](
                *alone, causal=causal, key_mask=None if mask is None else mask[b : b + 1, rows]
            )
    assert_equal(out, expected, (q, k, v))
    assert out.transpose(1, 2).is_contiguous()


def test_segments_and_patterns_that_a_map_cannot_take_are_refused():
    q, k, v = draw(6)
    segments = torch.zeros(2, 6).long()
    with pytest.raises(InputError, match="segments with a state, expected one of them"):
        attend_linear(q, k, v, causal=True, segments=segments, return_state=True)
    with pytest.raises(InputError, match="the id 0 fills more than one run"):
        attend_linear(q, k, v, segments=torch.tensor([[0, 0, 1, 0, 0, 0]] * 2))
    with pytest.raises(InputError, match=r"attend_window: segments has shape \[2, 5\]"):
        attend_window(q, k, v, "elu", 2, segments=segments[:, :5])
    with pytest.raises(InputError, match="found global tokens"):
        attend_hybrid(q, k, v, "global(2)+local(1)", "elu")
    with pytest.raises(InputError, match="first keys that only later queries see"):
        attend_hybrid(q, k, v, "causal(first(2)+local(1))", "elu")


@pytest.mark.parametrize("cuts", [[1] * 20, [7, 1, 1, 6, 5], [3, 17], [20]])
@pytest.mark.parametrize("window", [0, 3])
def test_decoding_with_first_keys_counts_from_each_row_s_first_kept(cuts, window):
    q, k, v = (x.detach() for x in draw(20))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :6] = False
    near, rows, at = first(4) | local(window), [], 0
    state = HybridState(near, "elu", from_kept=True)
    for count in cuts:
        here = slice(at, at + count)
        state.append(k[:, :, here], v[:, :, here], mask[:, here])
        rows.append(state.read(q[:, :, here]))
        at += count
        other = HybridState(near, "elu", from_kept=True)
        other.load({name: x.clone() for name, x in state.tensors().items()})
        state.settle()
        other.settle()
        state = other
    expected = attend_hybrid(q, k, v, near, "elu", causal=True, segments=mask.int() - 1)
    assert (torch.cat(rows, 2) - expected).abs().max() < 1e-12


def test_a_one_sided_window_leaves_the_other_side_to_the_map():
    q, k, v = draw(30)
    out = attend_hybrid(q, k, v, "causal(local(4))", "elu")
    assert_equal(out, hybrid_definition(q, k, v, parse("causal(local(4))").mask(30, 30), "elu", False), (q, k, v))


def test_the_alarm_rings():
    """Broken twins: two softmaxes averaged have another normaliser, and another window is another result."""
    q, k, v = draw(40)
    near = local(4).mask(40, 40)
    out = attend_hybrid(q, k, v, local(4), "elu", causal=True)
    alone = [
        hybrid_definition(q, k, v, every, "elu", True)
        for every in (torch.zeros_like(near), torch.ones_like(near), local(5).mask(40, 40))
    ]
    assert (out - (alone[0] + alone[1]) / 2).abs().max() > 1e-2
    assert (out - alone[2]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CALLS)
def test_extreme_scores_neither_overflow_nor_drown_the_near_keys(kind):
    q, k, v = draw(24)
    with torch.no_grad():
        k[:, :, 5] *= 400.0
    out = CALLS[kind](q, k, v, causal=True)
    expected = (
        hybrid_definition(q, k, v, local(3).mask(24, 24), "elu", True)
        if kind == "hybrid"
        else window_definition(q, k, v, "elu", 3, True)
    )
    assert torch.isfinite(out).all()
    assert (out - expected).abs().max() <= 1e-12 * float(expected.detach().abs().max())


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("cuts", [[1] * 20, [7, 1, 1, 6, 5], [2, 2, 1, 15], [20]])
def test_decoding_in_any_steps_is_the_whole(kind, cuts):
    q, k, v = (x.detach() for x in draw(20))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :6] = False  # padding on the left
    state, rows, at = STATES[kind](), [], 0
    for count in cuts:
        here = slice(at, at + count)
        state.append(k[:, :, here], v[:, :, here], mask[:, here])
        rows.append(state.read(q[:, :, here]))
        at += count
    assert (torch.cat(rows, 2) - CALLS[kind](q, k, v, causal=True, key_mask=mask)).abs().max() < 1e-12


@pytest.mark.parametrize("kind", CALLS)
def test_a_state_is_of_constant_size_and_can_be_saved_and_reordered(kind):
    q, k, v = (x.detach() for x in draw(30))
    state, sizes = STATES[kind](), []
    for t in range(29):
        state.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        state.settle()
        sizes.append(state.nbytes)
    assert len(set(sizes[5:])) == 1
    other = STATES[kind]()
    other.load({name: x.clone() for name, x in state.tensors().items()})
    swap = torch.tensor([1, 0])
    other.reorder(swap)
    found = []
    for each, rows in ((state, torch.tensor([0, 1])), (other, swap)):
        each.append(k[rows][:, :, 29:], v[rows][:, :, 29:])
        found.append(each.read(q[rows][:, :, 29:]))
    assert torch.equal(found[0], found[1][swap])
    with pytest.raises(InputError, match="expected no cropping"):
        state.crop(3)


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_gradients(kind, causal):
    q, k, v = draw(7, heads=2, groups=1, d=3, dv=2)
    assert torch.autograd.gradcheck(lambda *x: CALLS[kind](*x, causal=causal), (q, k, v))
    q, k, v = draw(5, heads=1, groups=1, d=2, dv=1)
    assert torch.autograd.gradgradcheck(lambda *x: CALLS[kind](*x, causal=causal), (q, k, v))


@pytest.mark.parametrize("kind", CALLS)
def test_rows_without_any_key_and_masked_rubbish(kind):
    q, k, v = draw(12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1] = False
    expected = CALLS[kind](q, k, v, key_mask=mask)
    grads = torch.autograd.grad(expected.sum(), (q, k, v))
    assert not expected[1].any() and all(torch.isfinite(g).all() and not g[1].any() for g in grads)
    with torch.no_grad():
        k[1], v[1] = 40.0, -1e6  # finite: softmax attention multiplies what it does not see by 0
    assert torch.equal(CALLS[kind](q, k, v, key_mask=mask), expected)


@pytest.mark.parametrize("kind", CALLS)
def test_half_precision_is_rounded_once(kind):
    q, k, v = (x.detach().bfloat16() for x in draw(40))
    out = CALLS[kind](q, k, v, causal=True)
    exact = CALLS[kind](q.to(F64), k.to(F64), v.to(F64), causal=True)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * float(exact.abs().max())


def test_what_cannot_be_done_is_refused():
    q, k, v = (x.detach() for x in draw(9))
    for near in ("atrous(3)", "sparse(4)", "full()", "local(2, step=2)", "band(1, 2, 5)"):
        with pytest.raises(InputError, match="no window around the query"):
            attend_hybrid(q, k, v, near, "elu")
    with pytest.raises(InputError, match="over all positions"):
        attend_hybrid(q, k, v, "local(2)", "softmax")
    with pytest.raises(InputError, match="over all positions"):
        attend_window(q, k, v, "softmax", 2)
    with pytest.raises(InputError, match="window=-1"):
        attend_window(q, k, v, "elu", -1)
    with pytest.raises(InputError, match="9 queries and 5 keys"):
        attend_hybrid(q, k[:, :, :5], v[:, :, :5], "local(2)", "elu")
    with pytest.raises(InputError, match="9 queries and 5 keys"):
        attend_window(q, k[:, :, :5], v[:, :, :5], "elu", 2)
