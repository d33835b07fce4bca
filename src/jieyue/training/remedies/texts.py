"""Remedies by their text, as a command line or a saved run has them: "replace_tokens(0.3, pool='sequence')".

>>> str(parse_remedy("fgm(0.5)"))
'fgm(0.5)'
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TypeAlias

from jieyue.errors import InputError, near

from .adversarial import fgm, penalize_gradient
from .consistency import rdrop, unlikelihood
from .remedy import Remedy
from .replacement import replace_tokens
from .sampling import sample_scheduled

__all__ = ["REMEDIES", "parse_remedy"]

_Plain: TypeAlias = float | str | bool | dict[int, float]

REMEDIES: dict[str, Callable[..., Remedy]] = {
    "replace_tokens": replace_tokens,
    "sample_scheduled": sample_scheduled,
    "fgm": fgm,
    "penalize_gradient": penalize_gradient,
    "rdrop": rdrop,
    "unlikelihood": unlikelihood,
}

_PLAIN = "a call with plain values, such as fgm(0.5)"


def parse_remedy(text: str) -> Remedy:
    """The remedy that the text calls; arguments are plain values (numbers, texts, true or false, a schedule {update: p}).

    A bare name takes the defaults. ``InputError`` lists the known names; nothing else is ever evaluated.
    """
    asked = f"remedy {text!r}"
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in REMEDIES):
            name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
            hint = near(name, REMEDIES)
            raise InputError(asked, "no such remedy", f"one of {', '.join(REMEDIES)}, such as fgm(0.5){hint}")
    except SyntaxError as error:
        raise InputError(asked, str(error), _PLAIN) from None
    values = [_plain_value(value, asked) for value in call.args]
    named = {one.arg or "**": _plain_value(one.value, asked) for one in call.keywords}
    try:
        return REMEDIES[call.func.id](*values, **named)
    except TypeError as error:
        raise InputError(asked, str(error), f"the arguments of {call.func.id}") from None


def _plain_value(written: ast.expr, asked: str) -> _Plain:
    try:
        value: _Plain = ast.literal_eval(written)
    except ValueError:
        raise InputError(asked, ast.unparse(written), _PLAIN) from None
    return value
