"""What kind of labels a file has: one of several (single-label), any number of them (multi-label), or a number (regression).

Told once for all of a file's records and never mixed: lists of several labels make it multi-label, numbers of which one has a
fraction make it regression, all else single-label. Whoever knows better says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jieyue.errors import InputError

from .findings import BadRecord

__all__ = ["KINDS", "check_kind", "kind_of", "number_of", "parted"]

KINDS = ("auto", "single-label", "multi-label", "regression")

Given = tuple[str, str | None, tuple[str, ...] | None]
"""A record's place, its label where it has one, and its list of labels where it has a list."""


def check_kind(problem: str) -> None:
    """``InputError`` for a kind that there is not."""
    if problem not in KINDS:
        raise InputError("problem", repr(problem), f"one of {', '.join(KINDS)}")


def parted(text: str | None, separator: str) -> tuple[str, ...] | None:
    """The labels of a cell, each once; None where it is empty, which says nothing.

    >>> parted("a | b|a", "|"), parted(" ", "|")
    (('a', 'b'), None)
    """
    names = dict.fromkeys(part.strip() for part in (text or "").split(separator))
    return tuple(name for name in names if name) or None


def number_of(label: str) -> float:
    """A label as a finite number; ``BadRecord`` where it is none."""
    try:
        found = float(label)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BadRecord(f"the label {label!r:.40}", "a number, as the other labels are (--problem regression)")
    return found


def kind_of(given: Sequence[Given]) -> str:
    """The kind of these labels; ``InputError`` names two records of different kinds."""
    several = next((place for place, _, labels in given if labels is not None and len(labels) > 1), None)
    if several is not None:
        other = next((place for place, label, labels in given if labels is None and label is not None), None)
        if other is not None:
            raise _mixed(f"several labels in {several}, one that is no list in {other}", "multi-label")
        return "multi-label"
    fraction = next((place for place, label, _ in given if label is not None and _has_fraction(label)), None)
    if fraction is None:
        return "single-label"
    name = next((place for place, label, _ in given if label is not None and not _is_number(label)), None)
    if name is not None:
        raise _mixed(f"a number with a fraction in {fraction}, a name in {name}", "single-label")
    return "regression"


def _mixed(found: str, kind: str) -> InputError:
    return InputError("labels", found, "labels of one kind", f"--problem {kind} takes them as that")


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def _has_fraction(label: str) -> bool:
    return _is_number(label) and ("." in label or not float(label).is_integer())
