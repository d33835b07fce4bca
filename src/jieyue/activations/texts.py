"""What text may say: a fit's arguments as the command line or a file has them, and formulas such as ``a*tanh(b*x)``.

A formula is arithmetic (``+ - * / **``), numbers, ``x``, names of constants and the functions of ``FUNCTIONS``; it is read as a syntax
tree and nothing else in it is ever run. Names other than x, in the order of their appearance, are the constants to fit.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from jieyue.errors import InputError, near

from .arithmetic import Formula
from .criteria import CRITERIA, Weight, gaussian
from .fitting import Fit, fit
from .forms import FORMS, TARGETS, Form, Target

__all__ = ["FUNCTIONS", "fit_text", "read_criterion", "read_domain", "read_fixed", "read_form", "read_target"]

MOST_CHARACTERS = 300
FUNCTIONS: dict[str, Formula] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "phi": torch.special.ndtr,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "atan": torch.atan,
    "softplus": F.softplus,
    "relu": torch.relu,
    "abs": torch.abs,
    "silu": F.silu,
}
_OPERATORS: dict[type, Formula] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def fit_text(
    form: str = "tanh", target: str = "gelu", criterion: str = "minimax", domain: str = "", fixed: str = ""
) -> Fit:
    """``fit`` from texts, as ``jieyue fit gelu --form … --target … --criterion … --domain … --fix …`` gives them.

    >>> found = fit_text(form="x*sigmoid(k*x)", domain="-6,6")
    >>> round(found.constants["k"], 6)
    1.772934
    """
    return fit(read_form(form), read_target(target), read_criterion(criterion), read_domain(domain), read_fixed(fixed))


def read_form(text: str) -> Form:
    """One of ``FORMS``, or a formula in x and constants."""
    if text in FORMS:
        return FORMS[text]
    tree, names = _tree(text, "form", FORMS, "a formula such as a*tanh(b*x)")
    if not names:
        raise InputError(f"form={text!r}: found no constants to fit, expected names such as a and b in the formula")
    return Form(text, tuple(names), _callable(tree, names), tuple(1.0 for _ in names), text, gate=False)


def read_target(text: str) -> Target:
    """One of ``TARGETS``, or a formula in x alone."""
    if text in TARGETS:
        return TARGETS[text]
    tree, names = _tree(text, "target", TARGETS, "a formula in x such as x*tanh(softplus(x))")
    if names:
        raise InputError(f"target={text!r}: found {', '.join(names)}, expected a formula in x alone")
    return Target(text, _callable(tree, names), "direct", text)


def read_criterion(text: str) -> str | Weight:
    """One of ``CRITERIA``, or ``gaussian(sigma)``, ``gaussian(sigma, mean)``."""
    if text in CRITERIA:
        return text
    name, _, rest = text.partition("(")
    if name.strip() == "gaussian" and rest.endswith(")"):
        numbers = _numbers(rest[:-1], f"criterion={text!r}", "gaussian(sigma) or gaussian(sigma, mean)")
        if 1 <= len(numbers) <= 2:
            return gaussian(*numbers)
    raise InputError(
        f"criterion={text!r}: expected one of {', '.join(CRITERIA)}, gaussian(sigma) or gaussian(sigma, mean)"
    )


def read_domain(text: str) -> tuple[float, float] | None:
    """``low,high``; an empty text is None, the criterion's own domain.

    >>> read_domain("-4, 4")
    (-4.0, 4.0)
    """
    if not text.strip():
        return None
    numbers = _numbers(text, f"domain={text!r}", "low,high such as -8,8")
    if len(numbers) != 2:
        raise InputError(f"domain={text!r}: found {len(numbers)} numbers, expected low,high such as -8,8")
    return numbers[0], numbers[1]


def read_fixed(text: str) -> dict[str, float | str]:
    """``a=0.8,b=local``: constants that are not fitted.

    >>> read_fixed("a=local, b=0.035")
    {'a': 'local', 'b': 0.035}
    """
    found: dict[str, float | str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name.isidentifier() and equals and value):
            raise InputError(f"fixed={text!r}: found {part!r}, expected name=number or name=local")
        found[name] = value if value == "local" else _numbers(value, f"fixed={text!r}", "name=number or name=local")[0]
    return found


def _numbers(text: str, asked: str, allowed: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{asked}: found {text!r}, expected {allowed}") from None


def _tree(text: str, argument: str, known: Collection[str], formula: str) -> tuple[ast.expr, list[str]]:
    """The checked syntax tree and its constants' names in order of appearance; ``known``: the names that are no formulas."""
    allowed = f"one of {', '.join(known)}, or {formula}"
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{argument}: found {len(text)} characters, expected at most {MOST_CHARACTERS}")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        raise InputError(f"{argument}={text!r}: expected {allowed}") from None
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and id(node) not in called and node.id != "x":
            names[node.id] = min(names.get(node.id, node.col_offset), node.col_offset)
        problem = _problem(node)
        if problem:
            raise InputError(f"{argument}={text!r}: found {problem}, expected {allowed}")
    has_x = any(isinstance(node, ast.Name) and node.id == "x" for node in ast.walk(tree))
    is_word = (
        len(text.strip()) > 1 and text.strip().isidentifier()
    )  # a misspelt name; a letter alone is a constant to fit
    if not has_x and (is_word or argument != "form"):
        raise InputError(f"{argument}={text!r}: found no x in it, expected {allowed}{near(text, known)}")
    return tree, sorted(names, key=names.__getitem__)


def _problem(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            return f"the function {ast.unparse(node.func)!r}; known are {', '.join(FUNCTIONS)}"
        return None if len(node.args) == 1 and not node.keywords else f"{node.func.id} with {len(node.args)} arguments"
    if isinstance(node, ast.Constant):
        number = isinstance(node.value, int | float) and not isinstance(node.value, bool) and math.isfinite(node.value)
        return None if number else repr(node.value)
    if isinstance(node, ast.BinOp | ast.UnaryOp):
        return None if type(node.op) in _OPERATORS else f"the operator of {ast.unparse(node)!r}"
    return (
        None if isinstance(node, ast.Name | ast.operator | ast.unaryop | ast.expr_context) else f"{ast.unparse(node)!r}"
    )


def _callable(tree: ast.expr, names: list[str]) -> Formula:
    def value(node: ast.AST, known: dict[str, Tensor | float]) -> Tensor | float:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int | float)
            return float(node.value)  # whole powers stay whole; huge ones overflow instead of taking forever
        if isinstance(node, ast.Name):
            return known[node.id]
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            return FUNCTIONS[node.func.id](value(node.args[0], known))
        if isinstance(node, ast.UnaryOp):
            return _OPERATORS[type(node.op)](value(node.operand, known))
        assert isinstance(node, ast.BinOp)
        return _OPERATORS[type(node.op)](value(node.left, known), value(node.right, known))

    def formula(x: Tensor, *constants: float) -> Tensor | float:
        try:
            return value(tree, {"x": x, **dict(zip(names, constants, strict=True))})
        except (OverflowError, ZeroDivisionError) as error:
            raise InputError(f"formula {ast.unparse(tree)!r}: {error}") from None

    return formula
