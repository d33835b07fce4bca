"""What you allow (``Budget``), what a thing costs (``Cost``), what will be done (``Plan``): values only, and their units.

``Plan`` is made by planning and obeyed by training; neither knows the other, both know this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .errors import InputError

__all__ = ["Budget", "Cost", "Plan", "format_bytes", "format_seconds", "parse_bytes", "parse_seconds"]

_BYTES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
          "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}  # fmt: skip
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _parse(text: str | int | float, units: Mapping[str, float], argument: str, example: str) -> float:
    if isinstance(text, int | float):
        value = float(text)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
        if match is None or match[2].lower() not in units:
            raise InputError(f"{argument}={text!r}: expected a number with a unit, such as {example}")
        value = float(match[1]) * units[match[2].lower()]
    if not 0 < value < float("inf"):
        raise InputError(f"{argument}={text!r}: expected a finite amount above zero, such as {example}")
    return value


def parse_bytes(text: str | int, argument: str = "budget") -> int:
    """Bytes from text: ``GiB`` and ``G`` are 2**30, ``GB`` is 10**9; an integer is bytes. ``InputError`` otherwise.

    >>> parse_bytes("1.5GiB"), parse_bytes("2 GB"), parse_bytes(4096)
    (1610612736, 2000000000, 4096)
    """
    return int(_parse(text, _BYTES, argument, "4GiB, 800MB"))


def parse_seconds(text: str | float, argument: str = "time") -> float:
    """Seconds from text: s, min (or m), h, d; a number is seconds.

    >>> parse_seconds("1.5h"), parse_seconds("30min"), parse_seconds(5)
    (5400.0, 1800.0, 5.0)
    """
    return _parse(text, _SECONDS, argument, "90s, 30min, 2h")


def format_bytes(num_bytes: float) -> str:
    """Bytes with three or four significant digits and a binary unit, signed.

    >>> format_bytes(1610612736), format_bytes(-3 * 2**20), format_bytes(17)
    ('1.50 GiB', '-3.0 MiB', '17 B')
    """
    magnitude = abs(num_bytes)
    if magnitude >= 2**30:
        return f"{num_bytes / 2**30:.2f} GiB"
    if magnitude >= 2**20:
        return f"{num_bytes / 2**20:.1f} MiB"
    if magnitude >= 2**10:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """
    >>> format_seconds(0.0123), format_seconds(75), format_seconds(7300)
    ('12.3 ms', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the user allows: ``memory_bytes`` for the whole process (or device), ``seconds`` of wall time; None = no limit."""

    memory_bytes: int | None = None
    seconds: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "seconds"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise InputError(
                    f"{name}={value!r}: expected a number above 0, or None; Budget.parse('4GiB') reads text"
                )

    @classmethod
    def parse(cls, text: str | int | Budget, device: str = "cpu") -> Budget:
        """``Budget.parse("1GiB")``; ``text`` as ``parse_bytes`` reads it, a Budget comes back as it is."""
        return text if isinstance(text, Budget) else cls(memory_bytes=parse_bytes(text), device=device)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes of one training step at its peak, by part, and its seconds where known.

    ``fixed_bytes`` is what the interpreter and its libraries (or the GPU context) hold before any tensor;
    ``peak_bytes`` is the highest sum of live tensor bytes; the other parts are what that peak is made of.
    """

    peak_bytes: int
    fixed_bytes: int = 0
    weight_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    activation_bytes: int = 0
    temporary_bytes: int = 0
    seconds: float | None = None

    @property
    def process_bytes(self) -> int:
        """What the operating system will see: the fixed part and the tensors' peak."""
        return self.fixed_bytes + self.peak_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done: chosen settings, their predicted cost, and what was rejected with the reason.

    ``effective_batch`` and ``micro_batch`` count rows; one update sees ``effective_batch`` rows in
    ``pieces`` = ceil(effective_batch / micro_batch) pieces. ``exact`` says that the update equals the undivided batch's.
    """

    effective_batch: int
    micro_batch: int
    checkpointing: bool = False
    predicted: Cost | None = None
    exact: bool = True
    rejected: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("effective_batch", "micro_batch"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"{name}={getattr(self, name)!r}: expected a whole number of rows")
        if self.effective_batch < 1:
            raise InputError(f"effective_batch={self.effective_batch}: expected at least 1 row")
        if not 1 <= self.micro_batch <= self.effective_batch:
            raise InputError(
                f"micro_batch={self.micro_batch}: expected between 1 and effective_batch={self.effective_batch} rows"
            )

    @property
    def pieces(self) -> int:
        """The micro-batches of one update."""
        return -(-self.effective_batch // self.micro_batch)

    def halved(self) -> Plan:
        """The same effective batch in pieces of half the rows, after a real out-of-memory."""
        return replace(self, micro_batch=max(1, self.micro_batch // 2))
