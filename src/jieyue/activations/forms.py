"""Forms with constants, and what they approximate: a family of activations is a table of formulas.

A **gate** form s(x; constants) stands for erf(x/√2), an odd function between −1 and 1. From it follow, for every target,

======== ============================== =====================
view     the approximation              targets
======== ============================== =====================
odd      s                              erf(x/√2)
gate     (1 + s)/2                      Φ
product  x·(1 + s)/2                    GELU, SiLU, Mish
slope    the derivative of the product  GELU′
direct   the form itself, whatever it is softplus, any callable
======== ============================== =====================

so a form is fitted to one view and used in another. Any callable ``f(x, a, b, …)`` in torch code is a *direct* form.
Two constants c₁, c₃, c₅ … of an odd polynomial q with gate σ(q(x)) describe four of the named forms; the argument of q is kept
below its turning point, where the gate is full (see ``limit``), so x⁵ cannot turn the gate over and x³ cannot overflow.

Legend: Φ the standard normal distribution function, σ the logistic function, s the form, q its polynomial.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from jieyue.errors import InputError

from .arithmetic import Formula, slope

__all__ = ["FORMS", "NAMED", "TARGETS", "Approximation", "Form", "Target", "as_form", "as_target", "view"]

_EMPTY = 750.0  # σ(−750) is 0 in float64
_NEARLY = 20.0  # σ(−20) is 2·10⁻⁹
_FULL = 64.0  # arguments are never larger: x⁵ stays below 2³⁰, and every gate worth its name is full long before


def limit(polynomial: tuple[float, float, float]) -> float:
    """Where the argument of q(x) = c₁x + c₃x³ + c₅x⁵ is held: at q's first turning point, at 64 where it has none before.

    The slope of q is 0 at its turning point, so the held gate still has a continuous derivative.

    >>> round(limit((1.59501577, 0.07401129, -0.00070303)), 3), limit((1.6, 0.07, 0.0))
    (8.347, 64.0)
    """
    c1, c3, c5 = polynomial
    roots = []
    if c5 == 0:
        roots = [-c1 / (3 * c3)] if c3 != 0 else []
    else:
        inside = 9 * c3 * c3 - 20 * c1 * c5
        if inside >= 0:
            roots = [(-3 * c3 + sign * math.sqrt(inside)) / (10 * c5) for sign in (1, -1)]
    positive = [root for root in roots if 0 < root < _FULL**2]
    return math.sqrt(min(positive)) if positive else _FULL


def push(polynomial: tuple[float, float, float]) -> float:
    """The slope that q gets beyond its limit, so that a gate that is held nearly full there becomes full: c₁, mostly 0.

    The fitted x⁵ is held at σ(−28) = 8·10⁻¹³, and −10³⁰ times that is no zero. Where the limit is no such place (a gate that
    turns back long before it is full) or the gate is full to the last bit, nothing is added.
    """
    c1, c3, c5 = polynomial
    if c3 == c5 == 0:
        return 0.0
    end = limit(polynomial)
    return c1 if _NEARLY < end * (c1 + end * end * (c3 + end * end * c5)) < _EMPTY else 0.0


def lowest(polynomial: tuple[float, float, float]) -> float | None:
    """Where x·σ(q(x)) is −0 to the last bit, and so may be held for the sake of −∞; None where it never is."""
    c1, c3, c5 = polynomial
    if c3 == c5 == 0:
        return -_EMPTY / c1 if c1 > 0 else None
    end = limit(polynomial)
    if slope := push(polynomial):
        return -end - _EMPTY / slope
    return -end if end * (c1 + end * end * (c3 + end * end * c5)) >= _EMPTY else None


def _polynomial_gate(x: Tensor, c1: float, c3: float, c5: float) -> Tensor:
    """tanh(q(x)/2) = 2σ(q(x)) − 1."""
    polynomial = (float(c1), float(c3), float(c5))
    y = torch.clamp(x, -(end := limit(polynomial)), end)
    square = y * y
    logit = y * (c1 + square * (c3 + square * c5))
    if slope := push(polynomial):
        logit = logit + slope * ((torch.clamp(x, min=end) - end) + (torch.clamp(x, max=-end) + end))
    return torch.tanh(logit * 0.5)


def _sigmoid(x: Tensor, l: float) -> Tensor:
    return torch.tanh(l * x * 0.5)


def _tanh(x: Tensor, a: float, b: float) -> Tensor:
    return _polynomial_gate(x, 2 * a, 2 * b, 0.0)


def _tanh5(x: Tensor, a: float, b: float, c: float) -> Tensor:
    return _polynomial_gate(x, 2 * a, 2 * b, 2 * c)


def _tanh_powers(x: Tensor, a: float, b: float) -> Tensor:
    t = torch.tanh(x)
    return t * (a + b * (t * t))


def _tanh_sum(x: Tensor, a: float, b: float) -> Tensor:
    return a * torch.tanh(b * x) + (1 - a) * torch.tanh(2 * (b * x))


_Reduced: TypeAlias = "tuple[Callable[..., Form | Target], tuple[Hashable, ...]]"


@dataclass(frozen=True)
class Form:
    """A formula with constants. ``function(x, *constants)`` is torch code; ``start`` is where a search begins.

    ``gate``: it stands for erf(x/√2) and is odd in x; otherwise it stands for the target itself. ``polynomial`` gives
    (c₁, c₃, c₅) of gates σ(c₁x + c₃x³ + c₅x⁵), which have a fast path.
    """

    name: str
    constants: tuple[str, ...]
    function: Formula
    start: tuple[float, ...]
    formula: str = ""
    gate: bool = True
    polynomial: Callable[..., tuple[float, float, float]] | None = None

    def __reduce__(self) -> _Reduced:
        return _reduced(self, FORMS, as_form)


_START = math.sqrt(2 / math.pi)
FORMS = {
    form.name: form
    for form in (
        Form("sigmoid", ("l",), _sigmoid, (2 * _START,), "2σ(l·x) − 1", polynomial=lambda l: (l, 0.0, 0.0)),
        Form("tanh", ("a", "b"), _tanh, (_START, 0.0363), "tanh(a·x + b·x³)", polynomial=lambda a, b: (2 * a, 2 * b, 0.0)),
        Form("tanh5", ("a", "b", "c"), _tanh5, (_START, 0.037, -0.0003), "tanh(a·x + b·x³ + c·x⁵)",
             polynomial=lambda a, b, c: (2 * a, 2 * b, 2 * c)),
        Form("tanh-powers", ("a", "b"), _tanh_powers, (_START, 0.2), "a·tanh(x) + b·tanh(x)³"),
        Form("tanh-sum", ("a", "b"), _tanh_sum, (1.2, 0.9), "a·tanh(b·x) + (1 − a)·tanh(2b·x)"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What is approximated: ``function(x)`` in torch code, and the ``view`` that a gate form gives of it."""

    name: str
    function: Formula
    view: str = "direct"
    formula: str = ""

    def __reduce__(self) -> _Reduced:
        return _reduced(self, TARGETS, as_target)


def _reduced(value: Form | Target, table: Mapping[str, Form | Target], read: Callable[..., Form | Target]) -> _Reduced:
    """What pickle keeps: the name of a table's entry, the fields of anything else (whose callables may refuse)."""
    if table.get(value.name) is value:
        return read, (value.name,)
    return type(value), tuple(getattr(value, each.name) for each in fields(value))


def _gelu(x: Tensor) -> Tensor:
    return x * torch.special.ndtr(x)


TARGETS = {
    target.name: target
    for target in (
        Target("erf", lambda x: 2 * torch.special.ndtr(x) - 1, "odd", "erf(x/√2)"),
        Target("phi", lambda x: torch.special.ndtr(x), "gate", "Φ(x)"),
        Target("gelu", _gelu, "product", "x·Φ(x)"),
        Target("gelu'", lambda x: slope(_gelu, x), "slope", "Φ(x) + x·φ(x)"),
        Target("silu", F.silu, "product", "x·σ(x)"),
        Target("mish", F.mish, "product", "x·tanh(softplus(x))"),
        Target("softplus", F.softplus, "direct", "log(1 + eˣ)"),
    )
}


def view(form: Form, target: Target) -> Formula:
    """The approximation of ``target`` that ``form`` gives, as a function of (x, *constants); see the table above."""
    s = form.function
    if not form.gate or target.view == "direct" or target.view == "odd":
        return s
    if target.view == "gate":
        return lambda x, *c: (s(x, *c) + 1) * 0.5
    if target.view == "product":
        return lambda x, *c: x * ((s(x, *c) + 1) * 0.5)
    assert target.view == "slope", target.view
    return lambda x, *c: slope(lambda point: point * ((s(point, *c) + 1) * 0.5), x)


def as_form(form: str | Form | Formula) -> Form:
    """A Form from its name, from any callable ``f(x, a, b=1.0, …)`` (defaults are starting values), or as it is."""
    if isinstance(form, Form):
        found = form
    elif isinstance(form, str):
        if form not in FORMS:
            raise InputError(f"form={form!r}: expected one of {', '.join(FORMS)}, or a callable f(x, a, b, ...)")
        return FORMS[form]
    elif callable(form):
        try:
            parameters = list(inspect.signature(form).parameters.values())
        except (TypeError, ValueError) as error:
            raise InputError(f"form={form!r}: its parameters cannot be read ({error}); wrap it in a lambda") from error
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:]
        starts = tuple(1.0 if p.default is p.empty else float(p.default) for p in plain)
        name = getattr(form, "__name__", type(form).__name__)
        found = Form(
            name,
            tuple(p.name for p in plain),
            form,
            starts,
            f"{name}(x, {', '.join(p.name for p in plain)})",
            gate=False,
        )
    else:
        raise InputError(
            f"form={form!r}: found {type(form).__name__}, expected a name, a Form or a callable f(x, a, b, ...)"
        )
    if not found.constants:
        raise InputError(
            f"form={found.name!r}: found no constants after x, expected a callable f(x, a, ...) with at least one"
        )
    if len(found.start) != len(found.constants):
        raise InputError(f"form={found.name!r}: found {len(found.start)} starts for {len(found.constants)} constants")
    return found


def as_target(target: str | Target | Formula) -> Target:
    """A Target from its name, from any callable of x (torch's own SiLU, Mish, GELU are recognised), or as it is."""
    if isinstance(target, Target):
        return target
    if isinstance(target, str):
        if target not in TARGETS:
            raise InputError(f"target={target!r}: expected one of {', '.join(TARGETS)}, or a callable of x")
        return TARGETS[target]
    if not callable(target):
        raise InputError(
            f"target={target!r}: found {type(target).__name__}, expected a name, a Target or a callable of x"
        )
    known = {F.silu: "silu", F.mish: "mish", F.softplus: "softplus", F.gelu: "gelu", torch.special.ndtr: "phi"}
    try:
        return TARGETS[known[target]]
    except (KeyError, TypeError):
        pass
    return Target(getattr(target, "__name__", type(target).__name__), target)


@dataclass(frozen=True)
class Approximation:
    """A form with its constants chosen: a value that is called, printed as text, read back, and handed to ``gelu``.

    >>> text = str(Approximation(FORMS["tanh"], (0.8, 0.035)))
    >>> text, Approximation.parse(text).constants
    ('tanh(a=0.8,b=0.035)', (0.8, 0.035))
    """

    form: Form
    constants: tuple[float, ...]
    target: Target = TARGETS["gelu"]

    def __post_init__(self) -> None:
        if len(self.constants) != len(self.form.constants) or not all(math.isfinite(c) for c in self.constants):
            raise InputError(
                f"constants={self.constants}: expected finite values of {', '.join(self.form.constants)} for {self.form.name!r}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """The approximation of the target at ``x``, by the plain formula in x's own precision."""
        found = view(self.form, self.target)(x, *self.constants)
        return found if isinstance(found, Tensor) and found.shape == x.shape else torch.zeros_like(x) + found

    def __str__(self) -> str:
        return f"{self.form.name}({','.join(f'{k}={v!r}' for k, v in zip(self.form.constants, self.constants, strict=True))})"

    @classmethod
    def of(cls, form: str | Form, constants: Mapping[str, float], target: str | Target = "gelu") -> Approximation:
        """From constants by name; ``InputError`` lists missing and unknown ones."""
        form = as_form(form)
        if set(constants) != set(form.constants):
            raise InputError(
                f"constants of {form.name!r}: found {', '.join(constants) or 'none'}, "
                f"expected {', '.join(form.constants)}"
            )
        return cls(form, tuple(float(constants[name]) for name in form.constants), as_target(target))

    @classmethod
    def parse(cls, text: str) -> Approximation:
        """``name(a=0.8,b=0.035)`` with one of ``FORMS``, or one of ``NAMED``."""
        if text in NAMED:
            return NAMED[text]
        name, _, rest = text.strip().partition("(")
        if name not in FORMS or not rest.endswith(")"):
            raise InputError(
                f"approximation {text!r}: expected one of {', '.join(NAMED)}, or a form with its constants, "
                "such as 'tanh(a=0.8,b=0.035)'"
            )
        constants = {}
        for part in filter(None, rest[:-1].split(",")):
            key, _, value = part.partition("=")
            try:
                constants[key.strip()] = float(ast.literal_eval(value.strip()))
            except (ValueError, SyntaxError, TypeError):
                raise InputError(f"approximation {text!r}: found {part!r}, expected name=number") from None
        return cls.of(name, constants)


_PAPER = math.sqrt(2 / math.pi)
# "tanh" and "sigmoid" are the paper's published constants; the others are outputs of ``fit``, kept so that a configuration can
# name them. A test fits each anew.
NAMED = {
    "tanh": Approximation(FORMS["tanh"], (_PAPER, _PAPER * 0.044715)),
    "sigmoid": Approximation(FORMS["sigmoid"], (1.702,)),
    "tanh-local": Approximation(FORMS["tanh"], (_PAPER, 0.03633560235749836)),
    "sigmoid-minimax": Approximation(FORMS["sigmoid"], (1.7729339656167546,)),
    "tanh-minimax": Approximation(FORMS["tanh"], (0.8001570785481036, 0.03470089343233106)),
    "tanh5-minimax": Approximation(FORMS["tanh5"], (0.7975078842853996, 0.03700564602234821, -0.00035151678853818854)),
}
