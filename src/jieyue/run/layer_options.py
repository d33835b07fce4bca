"""What can be chosen when the layers that stay full are chosen; light, so that the command line can tell its flags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from jieyue.errors import InputError
from jieyue.options import option

__all__ = ["STRETCHED", "Choosing", "FullLayers", "parse_count"]

USUAL = "auto:+2%"
STRETCHED = ("yarn", "dynamic", "hierarchical", "interpolate")


def parse_count(text: str | int, name: str = "tokens") -> int:
    """A number of tokens, k and M for thousands and millions.

    >>> parse_count("200k"), parse_count("1.5M"), parse_count(64)
    (200000, 1500000, 64)
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kM]?)", str(text).strip())
    count = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6}[found[2]] if found else 0.5
    if count != int(count):
        raise InputError(name, repr(text), "a whole number of tokens, such as 200000, 200k or 2M")
    return int(count)


@dataclass(frozen=True)
class FullLayers:
    """Which layers stay full: ``count`` of them, as few as keep the price at ``most``, or these ``layers`` (ascending, from 0) and no
    others; exactly one of the three."""

    count: int | None = None
    most: float | None = None
    layers: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str | int | Sequence[int]) -> FullLayers:
        """A number, "auto:+2%", or the layers themselves: "1,4,7-10" ("5-5" where it is one), or a sequence of whole numbers.

        ``InputError`` for anything else, and for a layer that is named twice.

        >>> FullLayers.parse("15").count, FullLayers.parse("auto:+2%").most, FullLayers.parse("1,4,7-10").layers
        (15, 0.02, (1, 4, 7, 8, 9, 10))
        >>> str(FullLayers.parse([4, 5, 6, 1]))
        '1,4-6'
        """
        if _is_number(text):
            text = str(text)
        if not isinstance(text, str):
            told = list(text) if isinstance(text, Iterable) else []
            return cls(layers=_ascending(text, [int(one) if _is_number(one) else one for one in told]))
        written = str(text).strip()
        if re.fullmatch(r"[0-9]{1,6}", written):
            return cls(count=int(written))
        found = re.fullmatch(r"auto:\+([0-9]+(?:\.[0-9]+)?)%", written)
        if found is None:
            return cls(layers=_ascending(text, _listed(written)))
        return cls(most=float(found[1]) / 100)

    def __str__(self) -> str:
        if self.layers is not None:
            firsts = [one for one in self.layers if one - 1 not in self.layers]
            lasts = [one for one in self.layers if one + 1 not in self.layers]
            alone = len(self.layers) == 1  # "5-5", since "5" is how many
            ends = zip(firsts, lasts, strict=True)
            return ",".join(str(one) if one == last and not alone else f"{one}-{last}" for one, last in ends)
        return str(self.count) if self.most is None else f"auto:+{self.most * 100:g}%"


def _lengths(written: str) -> list[int]:
    """Of "1k,4k"; none of "none"."""
    if written.strip() == "none":
        return []
    found = [parse_count(one, "savings_at") for one in written.split(",")]
    if min(found) < 16:
        raise InputError("savings_at", repr(written), "lengths of 16 tokens or more, commas between them")
    return sorted(set(found))


def _is_number(given: str | int | Sequence[int]) -> bool:
    """Whether it is a whole number, of NumPy too."""
    return isinstance(given, Integral) and not isinstance(given, bool)


def _listed(written: str) -> list[int]:
    """The layers of "1,4,7-10"; none where it is not written so."""
    if not re.fullmatch(r"[0-9]{1,4}(?:-[0-9]{1,4})?(?: *, *[0-9]{1,4}(?:-[0-9]{1,4})?)*", written):
        return []
    ranges = [[int(end) for end in part.split("-")] for part in written.split(",")]
    if any(first > last for first, last in (one for one in ranges if len(one) > 1)):
        return []
    return [layer for one in ranges for layer in range(one[0], one[-1] + 1)]


def _ascending(given: str | int | Sequence[int], layers: Sequence[int]) -> tuple[int, ...]:
    if not layers or any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in layers):
        allowed = "a number of layers, or auto:+2% (of perplexity), or layers counted from 0 such as 1,4,7-10"
        raise InputError("full_layers", repr(given), allowed)
    if twice := sorted({one for one in layers if layers.count(one) > 1}):
        found = f"{', '.join(map(str, twice))} twice in {given!r}"
        raise InputError("full_layers", found, "each layer once")
    return tuple(sorted(layers))


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How many layers stay full and how they are chosen; counts of tokens may be written 200k or 2M.

    ``full_heads``: key-value heads are chosen in place of whole layers, "none" = they are not.
    ``savings_at``: lengths of rows by which it is told what the attention saves, "none" = it is not. ``needles``: numbers hidden at
    each of five depths of held-out rows, which the model is asked for. ``tokens``: what is trained on afterwards, 0 = nothing;
    ``control``: the full model is trained on the same tokens too, by the text's loss, and told beside. ``positions``: how the model
    gets ``position_factor`` times as many positions ("none": it keeps its own); rows may then be as long, and the model as it is
    stands beside.
    """

    tokens: int = option(
        0, "Tokens to train on afterwards, such as 200k; 0 = measure and choose only.", metavar="COUNT"
    )
    full_layers: str = option(
        USUAL,
        "Layers that stay full: how many, auto:+2% (of perplexity), or which, counted from 0, such as 1,4,7-10.",
        metavar="N|auto:+P%|LAYERS",
    )
    full_heads: str = option(
        "none",
        "Key-value heads that stay full, chosen one by one in place of layers: how many in all layers, or auto:+2%.",
        metavar="N|auto:+P%",
    )
    calibration_tokens: int = option(16_384, "Tokens of training text by which layers are chosen.", metavar="COUNT")
    price_tokens: int = option(65_536, "Tokens of held-out text on which the price is told.", metavar="COUNT")
    candidates: int = option(4, "Layers, or heads, that are tried in each round of the choice.")
    second_data: Sequence[str | Path] = option((), "Files of another kind of text, on which the price is told too.")
    positions: str = option(
        "none",
        "Positions past the trained length: yarn or dynamic (rotary), hierarchical or interpolate (a table).",
        metavar="WHAT",
    )
    position_factor: float = option(2.0, "How many times as many positions, with --positions.")
    control: bool = option(False, "Train the full model on the same tokens as well, and tell the price beside it.")
    savings_at: str = option(
        "1024,4096,16384",
        "Lengths at which reading, one more token and the cache are measured, where the model has the positions; none: not.",
        metavar="TOKENS,…|none",
    )
    needles: int = option(
        0, "Numbers hidden at each of five depths of held-out rows, and asked for; 0 = none. The sentences are English."
    )

    def __post_init__(self) -> None:
        for name in ("tokens", "calibration_tokens", "price_tokens"):
            object.__setattr__(self, name, parse_count(getattr(self, name), name))
        object.__setattr__(self, "full_layers", str(FullLayers.parse(self.full_layers)))
        self._check_heads()
        object.__setattr__(self, "savings_at", ",".join(map(str, _lengths(str(self.savings_at)))) or "none")
        least_of = {"tokens": 0, "calibration_tokens": 1, "price_tokens": 1, "candidates": 1, "needles": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {least}")
        for path in self.second_data:
            if not Path(path).is_file():
                raise InputError("second_data", f"no file {path}", "files that exist")
        if self.positions not in ("none", *STRETCHED):
            allowed = f"one of none, {', '.join(STRETCHED)}"
            raise InputError(f"positions={self.positions!r}", repr(self.positions), allowed)
        if not 1 < self.position_factor <= 64:
            raise InputError("position_factor", f"{self.position_factor:g}", "more than 1, at most 64")
        if self.positions == "none" and self.position_factor != 2:
            allowed = f"positions, one of {', '.join(STRETCHED)}"
            raise InputError(f"position_factor={self.position_factor:g}", "positions='none'", allowed)
        if self.control and not self.tokens:
            raise InputError("control", "tokens=0, so that nothing is trained", "tokens to train on")

    @property
    def lengths(self) -> list[int]:
        """Of rows by which it is told what the attention saves."""
        return _lengths(self.savings_at)

    @property
    def wanted(self) -> FullLayers:
        """How many layers, or heads, stay full."""
        return FullLayers.parse(self.full_heads if self.by_heads else self.full_layers)

    @property
    def by_heads(self) -> bool:
        return self.full_heads != "none"

    @property
    def noun(self) -> str:
        """What is chosen."""
        return "head" if self.by_heads else "layer"

    def _check_heads(self) -> None:
        written = str(self.full_heads).strip()
        object.__setattr__(self, "full_heads", written)
        if not re.fullmatch(r"none|[0-9]{1,6}|auto:\+[0-9]+(?:\.[0-9]+)?%", written):
            allowed = "none, a number of key-value heads, or auto:+2% (of perplexity)"
            raise InputError("full_heads", repr(written), allowed)
        if self.by_heads and self.full_layers != USUAL:
            found = f"full_heads={written} and full_layers={self.full_layers}"
            raise InputError("full_heads", found, "one of the two", "heads are chosen in place of whole layers")
