"""What the benchmark of attention found: rows, and their report with tables and log-log pictures.

A part is a section, and says when, where and by which command it was measured: ``joined`` keeps an earlier run's other parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jieyue.errors import InputError
from jieyue.machine import describe
from jieyue.report import Column, Picture, Report, Section
from jieyue.report.amounts import Given

from .linear_rows import LinearBench
from .rival_rows import RivalRow, crossing
from .worn import WornRow, add_worn

__all__ = [
    "CELLS",
    "CUDA_CELLS",
    "TITLES",
    "AttentionBench",
    "Cell",
    "LongRow",
    "ShareRow",
    "joined",
]

DENSE = "SDPA, full"
RIVAL_GOALS = (
    "Goals: 2.5 times FlexAttention's rate forward, 5 times local-attention's forward + backward, in every row. Where a row is below, "
    "the goal is missed: on visible pairs ours runs at about the dense kernel's rate (first table), which bounds it, and ratios "
    "differ between runs on a shared machine."
)
TITLES = {
    "shares": "Against dense attention",
    "small": "Short sequences",
    "rivals": "Beside others",
    "curves": "Growth",
    "long": "A long sequence",
    "worn": "What real models wear",
    "linear": "Linear attention",
}


class Cell(NamedTuple):
    """A pattern at a length, and the shares to reach (on CUDA: how many times faster than dense attention)."""

    pattern: str
    n: int
    forward_goal: float
    both_goal: float | None


CELLS = (
    Cell("local(128)", 8192, 0.80, 0.77),
    Cell("local(256)", 16384, 0.90, 0.86),
    Cell("atrous(16)", 16384, 0.92, 0.90),
    Cell("sparse(64)", 16384, 0.75, 0.70),
    Cell("causal(local(128))", 8192, 0.70, 0.67),
    Cell("causal(local(256))", 16384, 0.80, 0.76),
    Cell("causal(atrous(16))", 16384, 0.82, 0.80),
    Cell("causal(sparse(64))", 16384, 0.85, 0.90),
)
CUDA_CELLS = (
    Cell("local(2048)", 32768, 8.0, None),
    Cell("atrous(16)", 16384, 12.8, None),
    Cell("atrous(32)", 32768, 25.6, None),
    Cell("causal(sparse(64, 256))", 32768, 10.0, None),
)


_TIMES_FASTER = "How many times faster than dense attention of the same N (causal for causal patterns)."


@dataclass(frozen=True)
class ShareRow:
    """A cell: seconds of ours and shares of the dense kernel's rate (on CUDA: times faster than dense at the same N)."""

    cell: Cell
    engine: str
    forward_seconds: float
    both_seconds: float
    forward_share: float
    both_share: float

    @property
    def reached(self) -> bool:
        both = self.cell.both_goal is None or self.both_share >= self.cell.both_goal
        return both and self.forward_share >= self.cell.forward_goal


@dataclass(frozen=True)
class LongRow:
    """Forward and backward of many tokens: tensor bytes at the peak, inputs and gradients among them."""

    pattern: str
    n: int
    seconds: float
    tensor_bytes: int
    allowed_bytes: int


@dataclass(frozen=True)
class AttentionBench:
    """What ``bench_attention`` measured."""

    sizes: str
    device: str
    threads: int
    repeats: int
    day: str = ""
    shares: tuple[ShareRow, ...] = ()
    small: tuple[RivalRow, ...] = ()
    rivals: tuple[RivalRow, ...] = ()
    curves: tuple[RivalRow, ...] = ()
    long: LongRow | None = None
    worn: tuple[WornRow, ...] = ()
    linear: LinearBench | None = None

    def report(self) -> Report:
        """A section for each part: tables of its rows, and log-log pictures of time and memory against N."""
        report = Report("Attention on this machine", about=f"{self.sizes}, {self.device}")
        add: dict[str, Callable[[Section], None]] = {
            "shares": self._add_shares,
            "small": lambda section: _add_rivals(section, self.small, DENSE),
            "rivals": lambda section: _add_rivals(
                section, self.rivals, "ours", RIVAL_GOALS if self.device == "cpu" else ""
            ),
            "curves": self._add_curves,
            "long": self._add_long,
            "worn": lambda section: add_worn(section, self.worn),
            "linear": lambda section: self.linear.add_to(section) if self.linear else None,
        }
        for part, title in TITLES.items():
            if getattr(self, part):
                section = report.section(title)
                section.fact("measured", self._run(), how=self._command(part))
                add[part](section)
        return report

    def _run(self) -> str:
        found = describe()
        names = ("processor", "system", "python", "torch", "jieyue", "device")
        told = [
            str(found[name]) if name in ("processor", "system") else f"{name} {found[name]}"
            for name in names
            if name in found
        ]
        return ", ".join(
            [*([self.day] if self.day else []), *told, f"{self.threads} threads", f"{self.repeats} repeats"]
        )

    def _command(self, part: str) -> str:
        device = "" if self.device == "cpu" else f" --device {self.device}"
        return f"jieyue bench attention --parts {part} --repeats {self.repeats}{device}; contestants take turns, medians are shown"

    def _add_shares(self, section: Section) -> None:
        unit = "x" if self.device.startswith("cuda") else ""
        rows = [
            [r.cell.pattern, r.cell.n, r.engine, r.forward_seconds, r.forward_share, r.cell.forward_goal,
             r.both_seconds, r.both_share, r.cell.both_goal, r.reached]
            for r in self.shares
        ]  # fmt: skip
        section.table(
            ["pattern", "N", "engine", ("forward", "seconds"), ("forward share", unit), ("goal", unit),
             ("forward + backward", "seconds"), ("share", unit), ("goal ", unit), "reached"],
            rows,
            note="Share: rate on visible pairs over that of the dense flash kernel at N = 2048 in the same run."
            if not unit else _TIMES_FASTER,
        )  # fmt: skip
        if not unit:
            section.table(
                ["pattern", "N", "engine", ("times faster, forward", "x"), ("goal", "x"), ("both", "x"), "reached"],
                [[cell.pattern, cell.n, "fused", None, cell.forward_goal, None, None] for cell in CUDA_CELLS],
                title="On CUDA",
                note=f"{_TIMES_FASTER} Not measured: this run was on the CPU (jieyue bench attention --device cuda).",
            )

    def _add_long(self, section: Section) -> None:
        assert self.long is not None
        what = f"{self.long.pattern}, {self.long.n} tokens, forward + backward"
        section.fact(f"{what}: seconds", self.long.seconds, "seconds")
        section.fact(f"{what}: tensors", self.long.tensor_bytes, "bytes", how="inputs, outputs, gradients, workspace")
        section.fact("allowed", self.long.allowed_bytes, "bytes")

    def _add_curves(self, section: Section) -> None:
        """A table of each measure, N across; when each pays; pictures of time and memory."""
        names, lengths = list(dict.fromkeys(row.name for row in self.curves)), sorted({row.n for row in self.curves})
        place = {(row.name, row.n): row for row in self.curves}
        left_out = "not measured: a call predicted from the shorter ones to take more than 12 seconds, or a mask of more than 1 GiB"
        for title, unit, read in _MEASURES:
            rows = [[name, *(read(place[name, n]) for n in lengths)] for name in names]
            missing = any(cell is None for row in rows for cell in row)
            columns: list[str | tuple[str, str] | Column] = ["attention", *((f"N = {n}", unit) for n in lengths)]
            section.table(columns, rows, title=title, note=left_out if missing else "")
        self._add_payoff(section)
        for title, unit, read in _MEASURES[1:]:
            curves = {name: {n: read(place[name, n]) for n in lengths if read(place[name, n])} for name in names}
            section.picture(
                Picture.lines(
                    f"{title} against N",
                    {name: curve for name, curve in curves.items() if curve},
                    x=("N", "tokens"),
                    y=("time" if unit == "seconds" else "peak memory", unit),
                    log="xy",
                )
            )

    def _add_payoff(self, section: Section) -> None:
        """From which N each entry beats full attention, and by how much at the longest N that both were measured at."""
        curves = {
            name: {row.n: row for row in self.curves if row.name == name and row.both_seconds}
            for name in dict.fromkeys(row.name for row in self.curves)
        }
        dense = curves.get(DENSE)
        if not dense:
            return
        shortest = min(row.n for row in self.curves)
        rows: list[list[Given]] = []
        for name, found in curves.items():
            shared = found.keys() & dense.keys()
            if name == DENSE or not shared:
                continue
            start = crossing(
                {n: dense[n].both_seconds or 0.0 for n in shared}, {n: found[n].both_seconds or 0.0 for n in shared}
            )
            last = max(shared)
            text = "nowhere measured" if start is None else f"≤ {shortest}" if start <= shortest else str(round(start))
            times = (dense[last].both_seconds or 0.0) / (found[last].both_seconds or 1.0)
            rows.append([name, text, last, times])
        section.table(
            ["attention", "faster than full attention from N", "at N", ("times faster", "x")],
            rows,
            title="When each pays",
            note="Forward and backward, all keys, against torch's dense kernel; between measured N by straight lines on "
            "logarithmic axes.",
        )


_MEASURES: tuple[tuple[str, str, Callable[[RivalRow], float | None]], ...] = (
    ("Forward: time", "seconds", lambda row: row.forward_seconds),
    ("Forward + backward: time", "seconds", lambda row: row.both_seconds),
    ("Forward + backward: peak memory", "bytes", lambda row: row.peak_bytes),
)


def joined(earlier: Report, later: Report) -> Report:
    """``later`` with the parts that it lacks from ``earlier``, in the parts' order; ``InputError`` for another's report."""
    if (earlier.title, earlier.about) != (later.title, later.about):
        raise InputError(
            f"the report that is there is {earlier.title!r}, {earlier.about}; this run is {later.title!r}, {later.about}: "
            "name another folder"
        )
    found = {section.title: section for report in (earlier, later) for section in report.sections}
    return replace(later, sections=[found[title] for title in TITLES.values() if title in found])


def _add_rivals(section: Section, rows: Sequence[RivalRow], against: str, note: str = "") -> None:
    section.table(
        ["pattern", "N", "by", ("forward", "seconds"), (f"of {against}", "x"), ("forward + backward", "seconds"),
         (f"of {against} ", "x"), ("peak", "bytes"), "note"],
        [[r.pattern, r.n, r.name, r.forward_seconds, r.forward_times, r.both_seconds, r.both_times, r.peak_bytes, r.note]
         for r in rows],
        note=note,
    )  # fmt: skip
