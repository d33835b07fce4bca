"""A pattern as text.

pattern = term {"+" term}
term    = "full()" | "local(window[, step])" | "atrous(rate)" | "sparse(rate[, window])" | "first(count)" | "global(count)"
        | "band(step, lo, hi)" | "causal(" pattern ")"
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable

from jieyue.errors import InputError

from .pattern import Band, Pattern, atrous, first, full, global_tokens, local, sparse

__all__ = ["GRAMMAR", "parse"]

GRAMMAR = (
    "a pattern is term+term+..., a term one of full(), local(window), local(window, step), atrous(rate), "
    "sparse(rate), sparse(rate, window), first(count), global(count), band(step, lo, hi), causal(pattern)"
)


def _one_band(step: int, lo: int | None, hi: int | None) -> Pattern:
    if step < 1:
        raise InputError(f"band(step={step!r}): expected a whole number, at least 1")
    band = Band.tidy(step, lo, hi)
    if band is None:
        raise InputError(f"band({step}, {lo}, {hi}): found no multiple of {step} between {lo} and {hi}, expected one")
    return Pattern((band,))


_TERMS: dict[str, tuple[Callable[..., Pattern], tuple[str, ...]]] = {
    "full": (full, ()),
    "local": (local, ("window", "step")),
    "atrous": (atrous, ("rate",)),
    "sparse": (sparse, ("rate", "window")),
    "first": (first, ("count",)),
    "global": (global_tokens, ("count",)),
    "band": (_one_band, ("step", "lo", "hi")),
}


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Pattern:
    """The pattern that a text names; the grammar is in this module's docstring, spaces are free.

    >>> parse("sparse(32)") == parse("local(31) + atrous(32)")
    True
    >>> parse("locl(64)")
    Traceback (most recent call last):
    jieyue.errors.InputError: attention pattern 'locl(64)': found the name 'locl', did you mean local? ...
    """
    if not isinstance(text, str):
        raise InputError(f"parse(text): found {text!r} of type {type(text).__name__}, expected text: {GRAMMAR}")
    terms = _split(text, text)
    pattern = _term(terms[0], text)
    for term in terms[1:]:
        pattern = pattern | _term(term, text)
    return pattern


def _wrong(whole: str, what: str) -> InputError:
    return InputError(f"attention pattern {whole!r}: found {what}; {GRAMMAR}")


def _split(text: str, whole: str) -> list[str]:
    """The terms between the plus signs that stand outside parentheses."""
    terms, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth < 0:
            raise _wrong(whole, "a ) without its (")
        if char == "+" and depth == 0:
            terms.append("")
        else:
            terms[-1] += char
    if depth:
        raise _wrong(whole, "a ( without its )")
    return terms


def _term(text: str, whole: str) -> Pattern:
    match = re.fullmatch(r"\s*([^\W\d]\w*)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
    if match is None:
        raise _wrong(whole, f"{text.strip()!r} where a term should be" if text.strip() else "an empty term")
    name, inside = match[1], match[2] or ""
    if name == "causal":
        return _united(_split(inside, whole), whole).causal()
    if name not in _TERMS:
        near = difflib.get_close_matches(name.lower(), [*_TERMS, "causal"], n=1, cutoff=0.0)[0]
        raise _wrong(whole, f"the name {name!r}, did you mean {near}?")
    make, names = _TERMS[name]
    return make(**_arguments(name, inside, names, whole))


def _united(terms: list[str], whole: str) -> Pattern:
    return functools.reduce(Pattern.__or__, [_term(term, whole) for term in terms])


def _arguments(name: str, inside: str, names: tuple[str, ...], whole: str) -> dict[str, int | None]:
    given: dict[str, int | None] = {}
    for position, piece in enumerate(inside.split(",") if inside.strip() else []):
        match = re.fullmatch(r"\s*(?:([a-z_]+)\s*=)?\s*([+-]?\d+|[+-]?inf)\s*", piece)
        key = (match[1] or (names[position] if position < len(names) else None)) if match else None
        if match is None or key not in names or key in given or (match[2].endswith("inf") and key not in ("lo", "hi")):
            raise _wrong(whole, f"{piece.strip()!r} in {name}({', '.join(names)}), where whole numbers should be")
        given[key] = None if match[2].endswith("inf") else int(match[2])
    required = names[: 3 if name == "band" else 1]
    if missing := [key for key in required if key not in given]:
        raise _wrong(whole, f"no {missing[0]} in {name}({', '.join(names)})")
    return given
