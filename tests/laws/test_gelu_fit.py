"""Fits of activations: every named constant to its digits, equal extremes, and bounds that are bounds."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st

from jieyue.activations import FORMS, NAMED, TARGETS, Form, Target, certify, fit, gaussian, given, histogram
from jieyue.activations.arithmetic import _RULES, FUNCTION_ULPS, Exact, Interval, Jet, slope
from jieyue.activations.forms import Approximation, view

A = math.sqrt(2 / math.pi)
fitted = functools.lru_cache(maxsize=None)(fit)


@functools.cache
def mixed_continuous():
    return fit("tanh", "erf", fixed={"a": "local"})


# What, from which fit, and all the digits that are known of it.
CONSTANTS = {
    "local ratio": (lambda: fitted("tanh", "erf", "local").ratios["b/a"], "0.0455399241225"),
    "grid b": (lambda: fitted("tanh", "erf", "mixed").constants["b"], "0.0356773373148"),
    "grid ratio": (lambda: fitted("tanh", "erf", "mixed").ratios["b/a"], "0.0447149112385"),
    "grid lambda": (lambda: fitted("sigmoid", "phi", "grid").constants["l"], "1.70174492563"),
    "continuous b": (lambda: mixed_continuous().constants["b"], "0.03567733730620"),
    "continuous ratio": (lambda: mixed_continuous().ratios["b/a"], "0.04471491122763"),
    "continuous lambda": (lambda: fitted("sigmoid", "phi").constants["l"], "1.70174492533800"),
    "lambda on GELU": (lambda: fitted("sigmoid").constants["l"], "1.772934"),
    "a on GELU": (lambda: fitted("tanh").constants["a"], "0.8001571"),
    "ratio on GELU": (lambda: fitted("tanh").ratios["b/a"], "0.0433676"),
    "x5 error": (lambda: fitted("tanh5").error, "0.000025"),
    "ratio on GELU with a fixed": (lambda: fit("tanh", fixed={"a": A}).ratios["b/a"], "0.0443829"),
}


def agrees(value, digits):
    """Equal to the digits shown, whether these were cut off or rounded."""
    places = len(digits.partition(".")[2])
    return abs(value - float(digits)) < 10.0**-places


@pytest.mark.parametrize("name", CONSTANTS)
def test_named_constants(name):
    found, digits = CONSTANTS[name]
    assert agrees(found(), digits), (found(), digits)


def test_the_digits_tell_the_criteria_apart():
    """Broken twin: the grid's digits are not the continuous ones, nor the published constant."""
    assert not agrees(fitted("tanh", "erf", "mixed").constants["b"], CONSTANTS["continuous b"][1])
    assert not agrees(fitted("sigmoid", "phi", "grid").constants["l"], CONSTANTS["continuous lambda"][1])
    assert not agrees(0.044715, CONSTANTS["grid ratio"][1])


def test_local_match_is_the_closed_form():
    found = fitted("tanh", "erf", "local")
    assert found.digits["a"].startswith("0.79788456080286535587989")
    assert found.constants["b"] == pytest.approx((4 - math.pi) / (3 * math.sqrt(2) * math.pi**1.5), rel=1e-15)
    assert fit("sigmoid", "gelu", "local").constants["l"] == pytest.approx(2 * A, rel=1e-15)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "tanh5"])
def test_named_approximations_are_outputs_of_fit(name):
    assert NAMED[f"{name}-minimax"].constants == pytest.approx(fitted(name).approximation.constants, rel=1e-14)
    if name == "tanh":
        local = fitted("tanh", "erf", "local").approximation
        assert NAMED["tanh-local"].constants == pytest.approx(local.constants, rel=1e-14)


LEVELLED = [
    ("sigmoid", "phi"),
    ("sigmoid", "gelu"),
    ("tanh", "erf"),
    ("tanh", "gelu"),
    ("tanh5", "gelu"),
    ("tanh-powers", "erf"),
]


@pytest.mark.parametrize(("form", "target"), [*LEVELLED, ("tanh", "gelu'")])
def test_extremes_are_equal_and_nothing_nearby_is_better(form, target):
    found = fitted(form, target)
    assert found.levelled
    assert found.alternating is ((form, target) in LEVELLED)  # GELU' has no Haar space: equal, but + + −
    sizes = [abs(error) for _, error in found.peaks if abs(error) > found.error * (1 - 1e-6)]
    assert len(sizes) == len(found.approximation.constants) + 1
    assert max(sizes) - min(sizes) < 1e-11 * max(sizes) + 1e-15
    assert is_best(found)


def is_best(found, attempts=40):
    """No small step of the constants, in any of many directions, lowers the maximum."""
    x = torch.linspace(*found.domain, 6001, dtype=torch.float64)
    aim, function = found.approximation.target.function(x), view(found.approximation.form, found.approximation.target)
    constants = torch.tensor(found.approximation.constants, dtype=torch.float64)
    here = float((function(x, *found.approximation.constants) - aim).abs().max())
    for _ in range(attempts):
        step = 1e-3 * torch.randn(len(constants), dtype=torch.float64) * constants
        if float((function(x, *(constants + step).tolist()) - aim).abs().max()) < here * (1 - 1e-5):
            return False
    return True


def test_published_constants_are_not_best_on_gelu():
    """Broken twin of the law above."""
    assert not is_best(given("tanh", {"a": A, "b": A * 0.044715}))
    assert not is_best(given("sigmoid", {"l": 1.702}))


@pytest.mark.parametrize(("form", "target"), [*LEVELLED, ("tanh", "gelu'"), ("tanh-sum", "gelu"), ("sigmoid", "mish")])
def test_certified_bound_holds_and_is_tight(form, target):
    found = fitted(form, target)
    assert found.proven and "interval" in found.how
    low, high = found.domain
    x = low + (high - low) * torch.rand(200_000, dtype=torch.float64)
    seen = float((found(x) - found.approximation.target.function(x)).abs().max())
    assert seen <= found.bound <= found.error * 1.003


def bump(x, a):
    return a * torch.exp(-(((x - 1.2345678) * 1e6) ** 2))


def test_a_bump_that_every_grid_misses_is_inside_the_bound():
    """Broken twin: a maximum over points says nothing is there."""
    found = given(bump, {"a": 1.0}, Target("zero", lambda x: x * 0))
    assert found.error < 1e-3
    assert 1.0 <= found.bound < 1.01
    assert found.proven


def test_a_formula_without_intervals_says_what_it_assumes():
    def kinked(x, a):
        return torch.where(x > 0, x, a * x)

    found = fit(kinked, F.softplus, domain=(-4, 4))
    assert not found.proven and "assumed" in found.how
    assert found.bound >= found.error
    with_slope = certify(found.approximation, (-4, 4), lipschitz=2.0)
    assert with_slope.proven and "as given" in with_slope.how and with_slope.bound >= found.error


def test_any_callable_finds_the_same_constants():
    assert fit(lambda x, a: x * torch.sigmoid(a * x), F.gelu).constants["a"] == pytest.approx(
        1.7729339656167546, abs=1e-14
    )
    scaled = fit(lambda x, k, m=2.0: x * torch.sigmoid(k * x * m), "gelu", fixed={"m": 2.0})
    assert 2 * scaled.constants["k"] == pytest.approx(1.7729339656167546, abs=1e-14)


def test_an_exact_form_is_recognised():
    found = fit("sigmoid", F.silu)
    assert found.constants["l"] == pytest.approx(1, abs=1e-12)
    assert found.error < 1e-14 and found.bound < 1e-8


@pytest.mark.parametrize("weight", [gaussian(1.0), gaussian(0.5, 1.0), histogram([-3, -1, 0, 2, 5], [1, 5, 3, 2])])
def test_weighted_fit_is_a_minimum_of_the_weighted_square(weight):
    found = fit("tanh", "gelu", weight)

    def mean_square(constants):
        e = view(FORMS["tanh"], TARGETS["gelu"])(weight.points, *constants) - TARGETS["gelu"].function(weight.points)
        return float((weight.shares * e.square()).sum())

    best = mean_square(found.approximation.constants)
    assert found.rms == pytest.approx(math.sqrt(best))
    for factors in ((1.001, 1), (0.999, 1), (1, 1.01), (1, 0.99)):
        assert mean_square([c * f for c, f in zip(found.approximation.constants, factors, strict=True)]) > best
    assert mean_square(fitted("tanh").approximation.constants) > best  # broken twin: the minimax constants


def test_histogram_of_a_gaussian_is_the_gaussian():
    edges = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    counts = torch.exp(-((edges[1:] + edges[:-1]) / 2).square() / 2)
    by_bins, by_formula = fit("sigmoid", "gelu", histogram(edges, counts)), fit("sigmoid", "gelu", gaussian(1.0))
    assert by_bins.constants["l"] == pytest.approx(by_formula.constants["l"], rel=1e-5)


def test_text_round_trip():
    for approximation in NAMED.values():
        assert Approximation.parse(str(approximation)) == approximation


# The kinds of number behind it.

POINTS = st.floats(-6, 6).filter(lambda x: abs(x) > 1e-3)


def expression(x):
    return torch.tanh(0.3 * x + x**3 * 0.01) * torch.sigmoid(x) - torch.special.ndtr(x * 0.7) / (1 + x * x) + F.mish(x)


@cases(POINTS, st.floats(0, 0.1))
@settings(max_examples=60)
def test_intervals_enclose_and_jets_differentiate(x, width):
    import mpmath

    context = mpmath.mp.clone()
    context.dps = 40
    low, high = (torch.tensor(value, dtype=torch.float64) for value in (x, x + width))
    interval = expression(Jet(Interval(low, high), 1.0))
    for share in (0.0, 0.31, 1.0):
        place = float(low + (high - low) * share)
        exact = expression(Jet(Exact(place, context), 1.0))
        assert float(interval.value.low) <= exact.value.value <= float(interval.value.high)
        assert float(interval.slope.low) <= exact.slope.value <= float(interval.slope.high)
        point = torch.tensor(place, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(expression(point), point)
        assert float(slope(expression, point.detach())) == pytest.approx(float(gradient), rel=1e-9, abs=1e-11)


def test_torch_functions_err_less_than_intervals_allow():
    """The one assumption of the certificates: float64 functions are within half of what is allowed."""
    import mpmath

    context = mpmath.mp.clone()
    context.dps = 40
    x = torch.cat([torch.linspace(-9, 9, 400, dtype=torch.float64), torch.randn(200, dtype=torch.float64)])
    for name, rule in _RULES.items():
        inside = x.abs() + 1e-3 if name in ("log", "sqrt", "log1p") else x
        for place, value in zip(inside.tolist(), rule.torch(inside).tolist(), strict=True):
            true = context.mpf(rule.exact(context, context.mpf(place)))
            assert abs(value - true) <= FUNCTION_ULPS / 2 * 2.0**-52 * abs(true) + rule.slack / 2, (name, place)


def test_a_form_of_ones_own_is_a_row_of_data():
    arctan = Form("arctan", ("a",), lambda x, a: torch.atan(a * x) * (2 / math.pi), (1.0,), "2/π·arctan(a·x)")
    found = fit(arctan, "phi")
    assert found.levelled and found.proven and found.error > 10 * fitted("sigmoid", "phi").error / 2
