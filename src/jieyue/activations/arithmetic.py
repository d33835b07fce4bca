"""Four kinds of number that run torch code unchanged, so that a formula is written once and used in all of them.

A form such as ``lambda x, a, b: torch.tanh(a * x + b * x**3)`` is called with

* a float64 tensor: the search for good constants, the drop-in activation;
* ``Exact``: an mpmath number of any precision, for Remez' method and for Taylor coefficients;
* ``Interval``: a set of reals between two float64 bounds, for certificates;
* ``Jet(value, slope)``: a dual number over any of these (a Jet too), for derivatives without difference quotients.

The kinds enter through torch's own ``__torch_function__``. What they know is one table, ``_RULES``: a monotone function,
its exact value and its derivative; everything else is composed. A formula that leaves the table raises ``Unsupported``, and the
caller falls back to float64 and says so.

Rounding: every sum and product of intervals is widened by one unit in the last place, every elementary function by
``FUNCTION_ULPS`` = 8 and, where torch has no relative accuracy (Φ far left), by an absolute slack; a test measures torch's
float64 functions against mpmath and allows them half of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias, overload

import torch
from torch import Tensor

from .multiprecision import Context, Real

__all__ = ["Exact", "Formula", "Interval", "Jet", "Unsupported", "constant", "slope"]

Formula: TypeAlias = Callable[..., Any]  # torch code of (x, *constants): a tensor for a tensor, a Number for a Number
Value: TypeAlias = "Tensor | Number"
Operand: TypeAlias = "Tensor | Number | Real | float | str"  # a str: one of the constants of ``_DECIMALS``

FUNCTION_ULPS = 8
_EPS = 2.0**-52
_TINY = 1e-300  # covers results that underflow
_DECIMALS = {
    "1/sqrt(2pi)": "0.398942280401432677939946059934381868475858631164934657666",
    "2/sqrt(pi)": "1.12837916709551257389615890312154517168810125865799771369",
}


class Unsupported(ArithmeticError):
    """A formula uses a function that these kinds of number do not know."""


class Number:
    """The operators and torch functions of one kind, from five operations that the kind defines.

    ``lift`` makes a constant of the same kind; ``_add``, ``_mul``, ``_inverse`` and ``_apply(name)`` compute.
    """

    depth = 0

    def lift(self, value: Operand) -> Self:
        raise NotImplementedError

    def _add(self, other: Self) -> Self:
        raise NotImplementedError

    def _mul(self, other: Self) -> Self:
        raise NotImplementedError

    def _inverse(self) -> Self:
        raise NotImplementedError

    def _apply(self, name: str) -> Self:
        raise NotImplementedError

    def _other(self, other: Operand) -> Self | None:
        """The other operand in this kind, or None when the other, deeper kind must do the work."""
        if isinstance(other, Number) and other.depth > self.depth:
            return None
        return other if isinstance(other, type(self)) and other.depth == self.depth else self.lift(other)

    def __add__(self, other: Operand) -> Self:
        found = self._other(other)
        return NotImplemented if found is None else self._add(found)

    def __mul__(self, other: Operand) -> Self:
        found = self._other(other)
        return NotImplemented if found is None else self._mul(found)

    def __truediv__(self, other: Operand) -> Self:
        found = self._other(other)
        return NotImplemented if found is None else self._mul(found._inverse())

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self * -1

    def __pos__(self) -> Self:
        return self

    def __sub__(self, other: Value | float) -> Self:
        return self + -other

    def __rsub__(self, other: Operand) -> Self:
        return -self + other

    def __rtruediv__(self, other: Operand) -> Self:
        return self._inverse() * other

    def __abs__(self) -> Self:
        return self._apply("relu") + (-self)._apply("relu")

    def __pow__(self, power: float) -> Self:
        if not float(power).is_integer() or power < 0:
            raise Unsupported(f"the power {power}")
        if power == 0:
            return self.lift(1)
        half = self ** (int(power) // 2)
        return half * half * self if power % 2 else (half * half if power > 1 else self)

    def __getattr__(self, name: str) -> Callable[..., Number]:
        if name in _RULES or name in _COMPOSED:
            return lambda *args, **kwargs: _call(name, (self, *args), kwargs)
        raise AttributeError(name)

    @classmethod
    def __torch_function__(
        cls, function: Formula, types: Sequence[type], args: Sequence[Number] = (), kwargs: Options | None = None
    ) -> Number:
        return _call(function.__name__, args, kwargs or {})


Options: TypeAlias = Mapping[str, bool | float | str | None]


def _call(name: str, args: Sequence[Number], kwargs: Options) -> Number:
    name = {"special_erf": "erf", "special_expit": "sigmoid", "arctan": "atan", "absolute": "abs"}.get(name, name)
    kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
    if name in _RULES and len(args) == 1 and not kwargs:
        return args[0]._apply(name)
    if name in _COMPOSED:
        return _COMPOSED[name](*args, **kwargs)
    raise Unsupported(f"torch's {name}{' with options' if name in _RULES else ''}")


def constant(like: Value | float, name: str) -> Number | float:
    """One of the irrational constants of ``_DECIMALS``, as precise as ``like`` can hold it."""
    return like.lift(name) if isinstance(like, Number) else float(_DECIMALS[name])


class Exact(Number):
    """An mpmath number; ``context`` (``mpmath.mp.clone()``) holds its precision, so that no global is changed."""

    def __init__(self, value: Real | float | str, context: Context) -> None:
        self.context = context
        self.value = context.mpf(value)

    def lift(self, value: Operand) -> Exact:
        if isinstance(value, str):
            value = _DECIMALS[value]
        assert not isinstance(value, Number), value
        return Exact(value.item() if isinstance(value, Tensor) else value, self.context)

    def _add(self, other: Exact) -> Exact:
        return Exact(self.value + other.value, self.context)

    def _mul(self, other: Exact) -> Exact:
        return Exact(self.value * other.value, self.context)

    def _inverse(self) -> Exact:
        return Exact(1 / self.value, self.context)

    def _apply(self, name: str) -> Exact:
        return Exact(_RULES[name].exact(self.context, self.value), self.context)

    def __float__(self) -> float:
        return float(self.value)


class Interval(Number):
    """Sets of reals [low, high], elementwise over float64 tensors; every result contains the true set (see Rounding)."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high

    @classmethod
    def _around(cls, low: Tensor, high: Tensor, ulps: int, slack: float = _TINY) -> Interval:
        margin = (ulps + 1) * _EPS
        low, high = low - (low.abs() * margin + slack), high + (high.abs() * margin + slack)
        return cls(low.nan_to_num(-torch.inf, torch.inf, -torch.inf), high.nan_to_num(torch.inf, torch.inf, -torch.inf))

    def lift(self, value: Operand) -> Interval:
        if isinstance(value, str):
            exact = self.low.new_tensor(float(_DECIMALS[value]))
            return Interval._around(exact, exact, 1)
        assert not isinstance(value, Number), value
        exact = self.low.new_tensor(float(value))
        return Interval(exact, exact)

    def _add(self, other: Interval) -> Interval:
        return Interval._around(self.low + other.low, self.high + other.high, 1)

    def _mul(self, other: Interval) -> Interval:
        if self is other:
            far = torch.maximum(self.low.abs(), self.high.abs())
            near = torch.where((self.low <= 0) & (self.high >= 0), 0.0, torch.minimum(self.low.abs(), self.high.abs()))
            return Interval._around(near * near, far * far, 1)
        a, b = self.low * other.low, self.low * other.high
        c, d = self.high * other.low, self.high * other.high
        low, high = (
            torch.minimum(torch.minimum(a, b), torch.minimum(c, d)),
            torch.maximum(torch.maximum(a, b), torch.maximum(c, d)),
        )
        return Interval._around(low, high, 1)

    def _inverse(self) -> Interval:
        safe = (self.low > 0) | (self.high < 0)
        low = torch.where(safe, 1 / self.high, -torch.inf)
        return Interval._around(low, torch.where(safe, 1 / self.low, torch.inf), 1)

    def _apply(self, name: str) -> Interval:
        rule = _RULES[name]
        return Interval._around(rule.torch(self.low), rule.torch(self.high), FUNCTION_ULPS, rule.slack)


class Jet(Number):
    """``value + slope·ε`` with ε² = 0, over tensors or any kind above; a slope of None is zero."""

    def __init__(self, value: Value | float, slope: Slope = None) -> None:
        self.value, self.slope = value, slope
        self.depth = 1 + (value.depth if isinstance(value, Number) else 0)

    def lift(self, value: Operand) -> Jet:
        if isinstance(value, str):
            return Jet(constant(self.value, value))
        if isinstance(self.value, Number) and not isinstance(value, Number):
            return Jet(self.value.lift(value))
        assert isinstance(value, Number | Tensor | int | float), value
        return Jet(value)

    def _add(self, other: Jet) -> Jet:
        return Jet(self.value + other.value, _sum(self.slope, other.slope))

    def _mul(self, other: Jet) -> Jet:
        if self is other:
            return Jet(self.value * self.value, _product(2 * self.value, self.slope))
        return Jet(self.value * other.value, _sum(_product(self.value, other.slope), _product(other.value, self.slope)))

    def _inverse(self) -> Jet:
        inverse = 1 / self.value
        return Jet(inverse, _product(-(inverse * inverse), self.slope))

    def _apply(self, name: str) -> Jet:
        rule = _RULES[name]
        value = self.value._apply(name) if isinstance(self.value, Number) else rule.torch(self.value)
        return Jet(value, None if self.slope is None else _product(rule.slope(self.value, value), self.slope))


Slope: TypeAlias = "Tensor | Number | float | None"


def _sum(a: Slope, b: Slope) -> Slope:
    return b if a is None else a if b is None else a + b


def _product(factor: Value | float, slope: Slope) -> Slope:
    return None if slope is None else factor * slope


@overload
def slope(function: Formula, x: Tensor) -> Tensor: ...
@overload
def slope(function: Formula, x: Exact) -> Exact: ...
def slope(function: Formula, x: Value) -> Value | float:
    """The derivative of torch code at ``x`` of any kind, by one Jet.

    >>> slope(lambda x: x**3, torch.tensor(2.0, dtype=torch.float64))
    tensor(12., dtype=torch.float64)
    """
    found = function(Jet(x, 1.0))
    if isinstance(found, Jet) and found.slope is not None:
        return found.slope
    return x * 0


@dataclass(frozen=True)
class Rule:
    """An increasing function: itself in torch (no thresholds), in mpmath, and its derivative from x and y = f(x).

    ``slack``: an absolute error that torch's function makes beside the relative one.
    """

    torch: Callable[..., Tensor]
    exact: Callable[..., Real | int]
    slope: Callable[..., Value]
    slack: float = _TINY


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


_RULES = {
    "exp": Rule(torch.exp, lambda m, x: m.exp(x), lambda x, y: y),
    "expm1": Rule(torch.expm1, lambda m, x: m.expm1(x), lambda x, y: y + 1),
    "log": Rule(torch.log, lambda m, x: m.log(x), lambda x, y: 1 / x),
    "log1p": Rule(torch.log1p, lambda m, x: m.log1p(x), lambda x, y: 1 / (1 + x)),
    "sqrt": Rule(torch.sqrt, lambda m, x: m.sqrt(x), lambda x, y: 0.5 / y),
    "tanh": Rule(torch.tanh, lambda m, x: m.tanh(x), lambda x, y: 1 - y * y),
    "atan": Rule(torch.atan, lambda m, x: m.atan(x), lambda x, y: 1 / (1 + x * x)),
    "sigmoid": Rule(torch.sigmoid, lambda m, x: 1 / (1 + m.exp(-x)), lambda x, y: y * (1 - y)),
    "softplus": Rule(lambda x: torch.logaddexp(x, torch.zeros_like(x)), lambda m, x: m.log1p(m.exp(-abs(x))) + max(x, 0),
                     lambda x, y: torch.sigmoid(x)),
    "erf": Rule(torch.erf, lambda m, x: m.erf(x), lambda x, y: torch.exp(-(x * x)) * constant(x, "2/sqrt(pi)")),
    "special_ndtr": Rule(torch.special.ndtr, lambda m, x: m.ncdf(x),
                         lambda x, y: torch.exp(-(x * x) * 0.5) * constant(x, "1/sqrt(2pi)"), slack=2 * _EPS),
    "relu": Rule(torch.relu, lambda m, x: max(x, 0), lambda x, y: x._apply("step") if isinstance(x, Number) else _step(x)),
    "step": Rule(_step, lambda m, x: int(x > 0), lambda x, y: 0 * y),
}  # fmt: skip


def _gelu(x: Number, approximate: str = "none") -> Number:
    if approximate != "none":
        raise Unsupported(f"torch's gelu with approximate={approximate!r}")
    return x * x._apply("special_ndtr")


def _clamp(x: Number, min: float | None = None, max: float | None = None) -> Number:
    """min + relu(x − min) − relu(x − max): the two relus cancel above max."""
    if min is not None:
        x = min + (x - min)._apply("relu")
    return x if max is None else max - (max - x)._apply("relu")


def _softplus(x: Number, beta: float = 1.0, threshold: float = 20.0) -> Number:
    return (x * beta)._apply("softplus") / beta


_COMPOSED: dict[str, Callable[..., Number]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: b - a,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "neg": lambda a: -a,
    "abs": abs,
    "square": lambda a: a * a,
    "reciprocal": lambda a: 1 / a,
    "gelu": _gelu,
    "silu": lambda x: x * x._apply("sigmoid"),
    "mish": lambda x: x * x._apply("softplus")._apply("tanh"),
    "log_sigmoid": lambda x: -((-x)._apply("softplus")),
    "clamp": _clamp,
    "hardtanh": lambda x, min_val=-1.0, max_val=1.0: _clamp(x, min_val, max_val),
    "softplus": _softplus,
}
