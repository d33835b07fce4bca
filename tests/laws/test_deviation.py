"""The bound on what a pattern changes: never violated, tight in its example, its mass the one that log-sum-exps tell."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from jieyue import attend, full
from jieyue.attention import parse
from jieyue.attention.deviation import deviation

PATTERNS = ("local(2)", "causal(local(3))", "atrous(3)", "causal(first(2)+local(1))", "sparse(4)", "full()")


def drawn(seed, n=12, heads=4, groups=2, width=5, sharp=1.0):
    torch.manual_seed(seed)
    q = torch.randn(1, heads, n, width, dtype=torch.float64) * sharp
    k, v = (torch.randn(1, groups, n, size, dtype=torch.float64) for size in (width, 3))
    return q, k, v


def measured(q, k, v, pattern, sinks=None, key_mask=None):
    n, whole = q.shape[2], parse(pattern).causal() if "causal" in pattern else parse(pattern)
    sees = (full().causal() if "causal" in pattern else full()).mask(n, n)
    if key_mask is not None:
        sees = sees & key_mask
    return deviation(q[0], k[0], v[0], sees, whole.mask(n, n), scale=q.shape[-1] ** -0.5, sinks=sinks)


@given(
    seed=some.integers(0, 10**6),
    pattern=some.sampled_from(PATTERNS),
    sharp=some.floats(0.1, 30),
    has_sinks=some.booleans(),
    hides=some.booleans(),
)
def test_the_deviation_is_never_above_the_bounds(seed, pattern, sharp, has_sinks, hides):
    q, k, v = drawn(seed, sharp=sharp)
    sinks = torch.randn(q.shape[1], dtype=torch.float64) * sharp if has_sinks else None
    found = measured(q, k, v, pattern, sinks, torch.arange(q.shape[2]) % 3 != seed % 3 if hides else None)
    assert not bool(found.violated.any())
    assert bool((found.tight <= found.by_norms + found.rounding).all())
    assert bool((found.by_norms <= found.by_largest + found.rounding).all())
    assert bool(((found.mass >= 0) & (found.mass <= 1 + 1e-12)).all())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("has_sinks", [False, True])
def test_mass_and_distance_are_those_of_attend(pattern, has_sinks):
    """m = 1 − exp(lse of the pattern − lse of all keys), and the outputs are attend's own."""
    q, k, v = drawn(3)
    sinks = torch.randn(q.shape[1], dtype=torch.float64) if has_sinks else None
    found = measured(q, k, v, pattern, sinks)
    causal = "causal" in pattern
    out, lse = attend(q, k, v, full().causal() if causal else full(), return_lse=True, sinks=sinks)
    near, near_lse = attend(q, k, v, parse(pattern), return_lse=True, sinks=sinks)
    torch.testing.assert_close(found.mass, 1 - (near_lse - lse).exp()[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.distance, (near - out)[0].norm(dim=-1), rtol=0, atol=1e-12)


def test_it_is_tight():
    """One kept key u and one dropped −u: the deviation is m·2‖u‖, which every form of the bound says."""
    u = torch.tensor([3.0, 4.0])
    q, k, v = torch.ones(1, 1, 1), torch.tensor([[[0.3], [1.0]]]), torch.stack([u, -u])[None]
    sees, kept = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    found = deviation(q, k, v, sees, kept, scale=1.0)
    mass = math.exp(1.0) / (math.exp(1.0) + math.exp(float(torch.tensor(0.3).double())))
    assert float(found.mass) == pytest.approx(mass, abs=1e-12)
    for bound in (found.tight, found.by_norms, found.by_largest):
        assert float(bound) == pytest.approx(10 * mass, abs=1e-9)
    assert float(found.distance) == pytest.approx(10 * mass, abs=1e-9)


def test_the_alarm_rings():
    """The broken twin takes the mass of what is kept for that of what is dropped: a violation is found."""
    q, k, v = drawn(5, sharp=0.1)
    found = measured(q, k, v, "local(8)")
    assert bool((found._replace(tight=found.tight * 0.2).violated).any())
    swapped = found._replace(tight=found.tight / found.mass.clamp(min=1e-9) * (found.mass * 0.01))
    assert bool(swapped.violated.any())
    assert bool(measured(q, k, v * torch.nan, "local(8)").violated.all()), "what is no number is no proof"


def test_a_query_of_which_nothing_is_kept_is_bounded_by_its_values():
    q, k, v = drawn(7, n=4)
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    found = deviation(q[0], k[0], v[0], torch.ones_like(nothing), nothing, scale=1.0)
    torch.testing.assert_close(found.mass, torch.ones_like(found.mass))
    assert not bool(found.violated.any()) and bool((found.distance > 0).all())


def test_values_far_from_zero_and_near_one_another_are_told_apart():
    """The fault: distances by products of values lose what is left of them, from 26 keys on, and the bound was passed."""
    torch.manual_seed(1)
    v = 1e3 + 1e-5 * torch.randn(1, 40, 3, dtype=torch.float64)
    q, k, at = torch.ones(1, 2, 1), torch.zeros(1, 40, 1), torch.arange(40)
    sees, kept = torch.stack([at < 2, at >= 38]), torch.stack([at == 0, at == 39])
    found = deviation(q, k, v, sees, kept, scale=1.0)
    apart = torch.stack([(v[0, 0] - v[0, 1]).norm(), (v[0, 38] - v[0, 39]).norm()])
    torch.testing.assert_close(found.tight[0], apart / 2, rtol=1e-6, atol=0)
    assert not bool(found.violated.any())


@pytest.mark.slow
def test_a_million_rows_have_no_violation():
    """Sharp and flat queries, all patterns, heads that share keys; the twin whose bound is a fifth has some."""
    rows = violations = missed = 0
    for seed in range(700):
        pattern, sharp = PATTERNS[seed % len(PATTERNS)], 10.0 ** (seed % 5 - 2)
        found = measured(*drawn(seed, n=24, heads=64, groups=8, sharp=sharp), pattern)
        rows += found.mass.numel()
        violations += int(found.violated.sum())
        missed += int(found._replace(tight=found.tight * 0.2).violated.sum())
    assert rows > 10**6 and violations == 0 < missed
