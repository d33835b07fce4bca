"""A fit as source code: the constants and the function, in Python (torch) and in C, ready to be pasted elsewhere.

The C function is ``static inline float``, needs ``<math.h>`` alone and returns finite values for finite arguments. Constants are
written with all the digits of their type. A form that was given as a callable is only a name here: its constants are
written, and a comment says what is missing. A product x·gate is held where the gate is empty, so that −∞ gives 0 and NaN stays.
"""

from __future__ import annotations

import re

from jieyue.errors import InputError

from .fitting import Fit
from .forms import limit, lowest, push

__all__ = ["LANGUAGES", "check_language", "code"]

LANGUAGES = ("python", "c")

# s(x) of the gates that are not σ of a polynomial; t stands for tanh, in the language's own spelling.
_GATES = {
    "tanh-powers": "t(x) * (A + B * t(x) * t(x))",
    "tanh-sum": "A * t(B * x) + (1 - A) * t(2 * B * x)",
}
# The target from a gate p = (1 + s)/2.
_VIEWS = {"product": "x * p", "slope": "x * p", "gate": "p", "odd": "2 * p - 1"}


def check_language(language: str) -> None:
    """``InputError`` for one that ``code`` does not write."""
    if language not in LANGUAGES:
        raise InputError(f"code(language={language!r}): expected one of {', '.join(LANGUAGES)}")


def code(fit: Fit, language: str = "python") -> str:
    """Source code of the fitted approximation; ``language``: "python" or "c".

    >>> from jieyue.activations import given
    >>> print(code(given("sigmoid", {"l": 1.702}), "c"))
    #include <math.h>
    <BLANKLINE>
    /* x·Φ(x) within 0.02036 on [-8, 8]: sigmoid(l=1.702) */
    static inline float approx_gelu(float x) {
        float q = 1.702f * x;
        float p = 1.0f / (1.0f + expf(-q));
        return (x < -440.658049f ? -440.658049f : x) * p;
    }
    <BLANKLINE>
    """
    check_language(language)
    form, target = fit.approximation.form, fit.approximation.target
    result = _VIEWS.get(target.view, "p")
    if result.startswith("x *") and form.polynomial is not None:
        result = _product(form.polynomial(*fit.approximation.constants), language)
    bound = _above(fit.bound) if fit.proven else f"about {fit.error:.4g}"
    what = target.formula or target.name
    if target.view == "slope":
        what = f"Its derivative is {what}"
    about = f"{what} within {bound} on [{fit.domain[0]:g}, {fit.domain[1]:g}]: {fit}"
    name = "approx_" + re.sub(r"\W+", "_", "gelu" if target.view == "slope" else target.name).strip("_").lower()
    if not form.gate or target.view == "direct":
        return _constants_only(fit, language, about)
    lines = _gate_lines(fit, language)
    if language == "python":
        body = "\n".join(f"    {line}" for line in lines)
        return f'import torch\n\n\ndef {name}(x: torch.Tensor) -> torch.Tensor:\n    """{about}"""\n{body}\n    return {result}\n'
    body = "\n".join(f"    float {line};" for line in lines)
    result = result if "?" in result else _floats(result)
    return f"#include <math.h>\n\n/* {about} */\nstatic inline float {name}(float x) {{\n{body}\n    return {result};\n}}\n"


def _product(polynomial: tuple[float, float, float], language: str) -> str:
    """x times the gate p; x is held where that is −0 anyway, else −∞ times 0 would be NaN."""
    end = lowest(polynomial)
    if end is None:
        return "x * p"
    low = _number(end, language)
    return f"(x < {low} ? {low} : x) * p" if language == "c" else f"x.clamp(min={low}) * p"


def _above(value: float) -> str:
    """Four digits, never less than the value: a bound stays one."""
    text = f"{value:.3e}"
    if float(text) < value:
        digits, _, power = text.partition("e")
        text = f"{float(digits) + 0.001:.3f}e{power}"
    return f"{float(text):g}"


def _number(value: float, language: str) -> str:
    if language == "python":
        return repr(value)
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _floats(expression: str) -> str:
    """The whole numbers of an expression as C floats."""
    return re.sub(r"(?<![\w.])(\d+)(?![\w.])", r"\1.0f", expression)


def _gate_lines(fit: Fit, language: str) -> list[str]:
    """Assignments that end in p, the gate."""
    form, constants = fit.approximation.form, fit.approximation.constants
    if form.polynomial is None:
        if form.name not in _GATES:
            raise InputError(
                f"code: found the form {form.name!r}, which has no source code here; use its own with {fit.constants}"
            )
        expression = _GATES[form.name]
        if language == "c":
            expression = _floats(expression.replace("t(", "tanhf("))
        else:
            expression = expression.replace("t(", "torch.tanh(")
        for letter, value in zip("ABC", constants, strict=False):
            expression = re.sub(rf"\b{letter}\b", _number(value, language), expression)
        return [f"s = {expression}", "p = 0.5f * (1.0f + s)" if language == "c" else "p = 0.5 * (1 + s)"]
    c1, c3, c5 = (_number(c, language) for c in form.polynomial(*constants))
    gate = "p = 1.0f / (1.0f + expf(-q))" if language == "c" else "p = torch.sigmoid(q)"
    if form.polynomial(*constants)[1:] == (0.0, 0.0):
        return [f"q = {c1} * x", gate]
    end = _number(limit(form.polynomial(*constants)), language)
    held = f"y = fminf(fmaxf(x, -{end}), {end})" if language == "c" else f"y = x.clamp(-{end}, {end})"
    inner = f"{c1} + s * ({c3} + s * {c5})" if form.polynomial(*constants)[2] else f"{c1} + s * {c3}"
    slope = push(form.polynomial(*constants))
    beyond = f" + {_number(slope, language)} * (x - y)" if slope else ""
    return [held, "s = y * y", f"q = y * ({inner}){beyond}", gate]


def _constants_only(fit: Fit, language: str, about: str) -> str:
    missing = f"the formula is the callable {fit.approximation.form.name!r}"
    if language == "python":
        lines = [f"# {about}", f"# {missing}", *(f"{key} = {value!r}" for key, value in fit.constants.items())]
    else:
        lines = [f"/* {about} */", f"/* {missing} */"]
        lines += [f"static const float {key} = {_number(value, 'c')};" for key, value in fit.constants.items()]
    return "\n".join(lines) + "\n"
