"""Intervals: Student's quantile against known values, coverage on simulated data, groups drawn together, same seed same answer."""

import math

import numpy
import pytest

from jieyue.errors import InputError
from jieyue.metrics.intervals import bootstrap, proportion, share_bound, student, student_quantile

DRAWS = 300
SLACK = 3 * (0.95 * 0.05 / DRAWS) ** 0.5  # three standard deviations of a share of 0.95 among the draws


def test_quantiles_are_those_of_the_tables():
    """Abramowitz and Stegun, table 26.10, and the Cauchy distribution at one degree of freedom."""
    table = {(0.975, 1): 12.706, (0.975, 2): 4.303, (0.95, 5): 2.015, (0.995, 10): 3.169, (0.975, 120): 1.980}
    for (probability, freedom), value in table.items():
        assert student_quantile(probability, freedom) == pytest.approx(value, abs=6e-4)
    assert student_quantile(0.9, 1) == pytest.approx(numpy.tan(numpy.pi * 0.4), rel=1e-11)
    assert student_quantile(0.2, 7) == -student_quantile(0.8, 7)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 57, 400])
def test_quantiles_agree_with_the_integral_of_the_density(freedom):
    """The definition: ∫ Γ((f+1)/2) / (√(πf) Γ(f/2)) · (1 + x²/f)^(−(f+1)/2) dx, by Simpson's rule."""
    for probability in (0.6, 0.9, 0.975):
        x = numpy.linspace(0, student_quantile(probability, freedom), 20_001)
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi * freedom)
        density = scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        area = (density[0] + density[-1] + 4 * density[1::2].sum() + 2 * density[2:-1:2].sum()) * (x[1] - x[0]) / 3
        assert 0.5 + area == pytest.approx(probability, abs=1e-10)


def test_student_covers_the_mean_of_few_seeds():
    random = numpy.random.default_rng(5)
    held = [student(random.normal(70, 2, size=4)) for _ in range(DRAWS)]
    assert abs(numpy.mean([e.low <= 70 <= e.high for e in held]) - 0.95) <= SLACK


def test_bootstrap_covers_the_share():
    random = numpy.random.default_rng(6)
    held = [bootstrap(random.random(200) < 0.7, resamples=400, seed=i) for i in range(DRAWS)]
    assert abs(numpy.mean([e.low <= 0.7 <= e.high for e in held]) - 0.95) <= SLACK + 0.01  # 400 resamples, n = 200


def test_groups_must_be_drawn_together():
    """Ten questions a passage that stand or fall together: single draws (the broken twin) are far too sure."""
    random = numpy.random.default_rng(7)
    groups = numpy.repeat(numpy.arange(60), 10).tolist()
    hit = {True: 0, False: 0}
    for i in range(DRAWS):
        values = numpy.repeat(random.random(60) < 0.6, 10)
        for grouped in hit:
            found = bootstrap(values, groups=groups if grouped else None, resamples=300, seed=i)
            hit[grouped] += found.low <= 0.6 <= found.high
    assert hit[True] / DRAWS > 0.90
    assert hit[False] / DRAWS < 0.60


def test_pairs_are_drawn_together():
    """The difference of two systems on the same hard and easy questions is known far better than either."""
    random = numpy.random.default_rng(8)
    hard = random.normal(0, 10, size=300)
    first, second = hard + random.normal(1, 1, size=300), hard + random.normal(0, 1, size=300)
    found = bootstrap(first, second, statistic=lambda a, b: a.mean() - b.mean(), resamples=500)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.low > 0.7 and found.high < 1.3


@pytest.mark.parametrize("groups", [None, [i // 3 for i in range(60)]])
def test_the_short_way_for_means_is_the_long_way(groups):
    """Same seed, same draws: sums and counts give what calling ``mean`` on every resample gives."""
    values = numpy.random.default_rng(9).normal(size=60)
    fast = bootstrap(values, groups=groups, resamples=200, seed=3)
    slow = bootstrap(values, groups=groups, resamples=200, seed=3, statistic=numpy.mean)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), rel=1e-12)


def test_same_seed_same_interval():
    values = numpy.random.default_rng(1).normal(size=50)
    assert bootstrap(values, seed=4) == bootstrap(values, seed=4)
    assert bootstrap(values, seed=4) != bootstrap(values, seed=5)
    assert "2000 resamples, seed 4" in bootstrap(values, seed=4).how


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bootstrap([1.0]), "length of at least 2"),
        (lambda: bootstrap([1.0, 2.0], [1.0]), "equal length"),
        (lambda: bootstrap([1.0, 2.0], [1.0, 2.0]), "no statistic"),
        (lambda: bootstrap([1.0, float("nan")]), "finite"),
        (lambda: bootstrap([1.0, 2.0], level=95), "level=95"),
        (lambda: bootstrap([1.0, 2.0], groups=["a", "a"]), "1 groups"),
        (lambda: student([1.0]), "two or more"),
        (lambda: student_quantile(1.0, 3), "probability"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(InputError, match=says):
        call()


@pytest.mark.parametrize(("share", "confidence"), [(0.9, 0.95), (0.5, 0.8)])
def test_a_share_s_bound_holds_as_often_as_it_says(share, confidence):
    """Uniform draws: the bound is above the true quantile (the share itself) with the confidence, or a little more often."""
    random = numpy.random.default_rng(5)
    found = [share_bound(random.random(60).tolist(), share, confidence) for _ in range(DRAWS)]
    covered = numpy.mean([bound is not None and bound >= share for bound in found])
    slack = 3 * (confidence * (1 - confidence) / DRAWS) ** 0.5
    assert confidence - slack <= covered
    twin = numpy.mean([sorted(random.random(60))[int(share * 60) - 1] >= share for _ in range(DRAWS)])
    assert twin < confidence - slack  # the broken twin: the sample's own quantile


def test_too_few_draws_bound_no_share():
    assert share_bound([0.1] * 100, 0.99, 0.95) is None and share_bound([0.1] * 300, 0.99, 0.95) == 0.1
    with pytest.raises(InputError, match="between 0 and 1"):
        share_bound([0.1], 1.0, 0.95)


@pytest.mark.parametrize(
    ("found", "count", "low", "high"),
    [(0, 10, 0, 0.3084971), (10, 10, 0.6915029, 1), (5, 10, 0.1870860, 0.8129140)],
)
def test_a_proportion_has_the_tabulated_interval(found, count, low, high):
    estimate = proportion(found, count)
    assert estimate.value == found / count
    assert estimate.low == pytest.approx(low, abs=1e-6) and estimate.high == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(("found", "count"), [(1, 3), (81, 263), (49, 50)])
def test_the_ends_of_a_proportion_are_where_the_tails_are(found, count):
    def below(k, share):
        return sum(math.comb(count, i) * share**i * (1 - share) ** (count - i) for i in range(k))

    estimate = proportion(found, count, 0.9)
    assert 1 - below(found, estimate.low) == pytest.approx(0.05, abs=1e-9)
    assert below(found + 1, estimate.high) == pytest.approx(0.05, abs=1e-9)


def test_a_proportion_of_nothing_is_refused():
    for wrong in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="at least one"):
            proportion(*wrong)
