"""What can be chosen when the layers that stay full are chosen; light, so that the command line can tell its flags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jieyue.errors import InputError, message
from jieyue.options import option

__all__ = ["Choosing", "FullLayers", "parse_count"]


def parse_count(text: str | int, name: str = "tokens") -> int:
    """A number of tokens, k and M for thousands and millions.

    >>> parse_count("200k"), parse_count("1.5M"), parse_count(64)
    (200000, 1500000, 64)
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kM]?)", str(text).strip())
    count = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6}[found[2]] if found else 0.5
    if count != int(count):
        raise InputError(message(name, repr(text), "a whole number of tokens, such as 200000, 200k or 2M"))
    return int(count)


@dataclass(frozen=True)
class FullLayers:
    """How many layers stay full: ``count`` of them, or as few as keep the price at ``most``; exactly one of the two."""

    count: int | None = None
    most: float | None = None

    @classmethod
    def parse(cls, text: str | int) -> FullLayers:
        """A number, or "auto:+2%".

        >>> FullLayers.parse("15"), FullLayers.parse("auto:+2%")
        (FullLayers(count=15, most=None), FullLayers(count=None, most=0.02))
        """
        written = str(text).strip()
        if re.fullmatch(r"[0-9]{1,6}", written):
            return cls(count=int(written))
        found = re.fullmatch(r"auto:\+([0-9]+(?:\.[0-9]+)?)%", written)
        if found is None:
            raise InputError(message("full_layers", repr(text), "a number of layers, or auto:+2% (of perplexity)"))
        return cls(most=float(found[1]) / 100)

    def __str__(self) -> str:
        return str(self.count) if self.most is None else f"auto:+{self.most * 100:g}%"


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How many layers stay full and how they are chosen; counts of tokens may be written 200k or 2M.

    ``tokens``: what is trained on afterwards, 0 = nothing; ``control``: the full model is trained on the same tokens too, by the
    text's loss, and told beside.
    """

    tokens: int = option(
        0, "Tokens to train on afterwards, such as 200k; 0 = measure and choose only.", metavar="COUNT"
    )
    full_layers: str = option(
        "auto:+2%", "How many layers stay full: a number, or auto:+2% (of perplexity).", metavar="N|auto:+P%"
    )
    calibration_tokens: int = option(16_384, "Tokens of training text by which layers are chosen.", metavar="COUNT")
    price_tokens: int = option(65_536, "Tokens of held-out text on which the price is told.", metavar="COUNT")
    candidates: int = option(4, "Layers that are tried in each round of the choice.")
    second_data: Sequence[str | Path] = option((), "Files of another kind of text, on which the price is told too.")
    control: bool = option(False, "Train the full model on the same tokens as well, and tell the price beside it.")

    def __post_init__(self) -> None:
        for name in ("tokens", "calibration_tokens", "price_tokens"):
            object.__setattr__(self, name, parse_count(getattr(self, name), name))
        FullLayers.parse(self.full_layers)
        for name, least in (("tokens", 0), ("calibration_tokens", 1), ("price_tokens", 1), ("candidates", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {least}")
        for path in self.second_data:
            if not Path(path).is_file():
                raise InputError(message("second_data", f"no file {path}", "files that exist"))
        if self.control and not self.tokens:
            raise InputError(message("control", "tokens=0, so that nothing is trained", "tokens to train on"))
