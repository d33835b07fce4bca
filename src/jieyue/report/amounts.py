"""Numbers with their units, said the same way in text, tables, pages and pictures: the one place that knows units.

========== ============================== =================
unit       meaning of the value           shown
========== ============================== =================
``""``     a count or a plain number      ``12,345`` ``0.713``
"bytes"    bytes                          ``1.50 GiB``
"seconds"  seconds                        ``1 min 15 s``
"share"    a part of one                  ``71.3%``
"x"        a factor                       ``1.03×``
any other  stands behind the number       ``812 tokens/s``
========== ============================== =================

Whole numbers get thousands separators, others four significant digits. An ``Estimate`` shows its interval, with as many
decimals as leave the interval's width two significant digits. ``None`` is "not measured": never a made-up zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import SupportsFloat

from jieyue.budget import format_bytes, format_seconds
from jieyue.errors import InputError

__all__ = ["Cell", "Estimate", "Given", "format_tick", "format_ticks", "format_value", "is_told", "plain", "plain_text"]

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Estimate:
    """A value between ``low`` and ``high``, and ``how`` that interval was found ("95 % bootstrap, 2000 resamples")."""

    value: float
    low: float
    high: float
    how: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            object.__setattr__(self, name, number(getattr(self, name), f"Estimate({name}=...)"))
        object.__setattr__(self, "how", plain_text(self.how))


Cell = None | bool | int | float | str | Estimate
Given = (
    Cell | PurePath | SupportsFloat | Sequence["Given"]
)  # what programs have; NumPy and torch scalars are SupportsFloat


def plain_text(text: str) -> str:
    """The text, with U+FFFD for what no file, page or terminal can hold: lone surrogates and control characters."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def number(value: Given, argument: str) -> int | float:
    """A Python int or float from any scalar (NumPy and torch ones too); ``InputError`` for anything else."""
    found = plain(value, argument)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError(f"{argument}: found {value!r}, expected a number")
    return found


def plain(value: Given, argument: str = "value") -> Cell:
    """What a report may hold, from what programs have: NumPy and torch scalars become Python's, paths and lists text.

    >>> plain((0.9, 0.999)), plain(True), plain(float("nan")) is math.nan
    ('0.9, 0.999', True, True)
    """
    item = getattr(value, "item", None)
    if item is not None:
        try:
            value = item()
        except (RuntimeError, ValueError, TypeError):
            raise InputError(f"{argument}: found {type(value).__name__} of many values, expected one number") from None
    if value is None or isinstance(value, bool | Estimate):
        return value
    if isinstance(value, float):
        return math.nan if math.isnan(value) else float(value)  # one NaN object, so that equal reports compare equal
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str | PurePath):
        return plain_text(str(value))
    if isinstance(value, list | tuple):
        return ", ".join(format_value(plain(part, argument), "text") for part in value)
    raise InputError(f"{argument}: found {type(value).__name__}, expected a number, a text, a bool or None")


def format_value(value: Cell, unit: str = "") -> str:
    """One value as people read it.

    >>> format_value(0.71, "share"), format_value(1536, "bytes"), format_value(12345), format_value(None, "seconds")
    ('71.0%', '1.5 KiB', '12,345', 'not measured')
    >>> format_value(Estimate(0.71, 0.68, 0.74)), format_value(Estimate(0.71, 0.684, 0.741), "share")
    ('0.710 [0.680, 0.740]', '71.0% [68.4%, 74.1%]')
    >>> format_value(Estimate(4.8, 3.7, 6.3), "x")
    '4.8× [3.7, 6.3]'
    >>> format_value(1.034, "x"), format_value(811.96, "tokens/s"), format_value(3e-05), format_value(False)
    ('1.034×', '812 tokens/s', '3e-5', 'no')
    """
    if isinstance(value, Estimate):
        width = abs(value.high - value.low)
        parts = [_number(part, unit, _decimals(width)) for part in (value.value, value.low, value.high)]
        between = f"[{parts[1]}, {parts[2]}]"
        return f"{_with_unit(parts[0], unit)} {between}" if unit == "x" else _with_unit(f"{parts[0]} {between}", unit)
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if unit == "text":
        return str(value)
    return _with_unit(_number(value, unit, None), unit)


def _with_unit(text: str, unit: str) -> str:
    if unit == "x":
        return f"{text}×"
    return text if unit in ("", "bytes", "seconds", "share", "text") else f"{text} {unit}"


def is_told(unit: str) -> bool:
    """Whether the ticks of an axis name the unit themselves; an axis in any other unit says it beside its label."""
    return unit in ("", "bytes", "seconds", "share", "x", "text")


def _decimals(width: float) -> int | None:
    """Decimals that give ``width`` two significant digits; None where it has no scale."""
    if not 0 < width < math.inf:
        return None
    return max(0, 1 - math.floor(math.log10(width)))


def _number(value: int | float, unit: str, decimals: int | None) -> str:
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if unit == "bytes":
        return format_bytes(value)
    if unit == "seconds":
        return format_seconds(value) if value >= 0 else f"-{format_seconds(-value)}"
    if unit == "share":
        return f"{100 * value:.{1 if decimals is None else min(max(decimals - 2, 1), 3)}f}%"
    if isinstance(value, int):
        return f"{value:,}"
    if decimals is not None and decimals <= 6 and abs(value) < 1e15:
        return f"{value:,.{decimals}f}"
    return _four_digits(value)


def _four_digits(value: float) -> str:
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e15:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_ticks(values: list[float], unit: str = "") -> list[str]:
    """The marks along an axis: short, and no two alike where the values differ.

    >>> format_ticks([0, 0.25, 0.5], "share"), format_ticks([0, 2**29, 2**30], "bytes"), format_ticks([0, 0.5, 1])
    (['0%', '25%', '50%'], ['0', '0.5 GiB', '1 GiB'], ['0.0', '0.5', '1.0'])
    """
    scale, suffix = _tick_scale(max((abs(v) for v in values), default=0.0), unit)
    for decimals in range(5):
        texts = [f"{v / scale:,.{decimals}f}" for v in values]
        if all(
            abs(float(t.replace(",", "")) - v / scale) <= 1e-6 * abs(v / scale)
            for t, v in zip(texts, values, strict=True)
        ):
            break
    else:
        texts = [_four_digits(v / scale) for v in values]
    texts = [t.rstrip("0").rstrip(".") if "." in t and unit in ("bytes", "seconds") else t for t in texts]
    return [t if v == 0 and unit != "share" else t + suffix for t, v in zip(texts, values, strict=True)]


def _tick_scale(largest: float, unit: str) -> tuple[float, str]:
    if unit == "bytes":
        power = min(3, max(0, math.floor(math.log2(largest) / 10))) if largest > 0 else 0
        return float(1024**power), " " + ("B", "KiB", "MiB", "GiB")[power]
    if unit == "seconds":
        steps = ((3600.0, " h"), (60.0, " min"), (1.0, " s"), (1e-3, " ms"))
        return next((step for step in steps if largest >= 2 * step[0]), steps[-1])
    if unit == "share":
        return 0.01, "%"
    if largest >= 1e6:
        power = 3 * math.floor(math.log10(largest) / 3)
        return 10.0**power, "M" if power == 6 else f"e{power}"
    return 1.0, "×" if unit == "x" else ""


def format_tick(value: float, unit: str = "") -> str:
    """One mark of a logarithmic axis, in the unit that suits it alone.

    >>> [format_tick(v, "seconds") for v in (0.01, 1, 1000)], format_tick(2**31, "bytes")
    (['10 ms', '1 s', '1,000 s'], '2 GiB')
    """
    if unit != "seconds":
        return format_ticks([value], unit)[0]
    scale, suffix = (1.0, "s") if value >= 1 else (1e-3, "ms") if value >= 1e-3 else (1e-6, "µs")
    return f"{_four_digits(value / scale)} {suffix}"
