"""What the benchmark of attention found: rows, and their report with tables and log-log pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jieyue.machine import describe
from jieyue.report import Picture, Report

if TYPE_CHECKING:
    from .linear_attention import LinearBench

__all__ = ["CELLS", "CUDA_CELLS", "AttentionBench", "Cell", "LongRow", "RivalRow", "ShareRow", "crossing"]

DENSE = "SDPA, full"


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
    Cell("causal(sparse(64))", 16384, 0.65, 0.60),
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
class RivalRow:
    """A contestant at one pattern and length: median seconds, how many times ours, peak bytes; or why it did not run."""

    pattern: str
    n: int
    name: str
    forward_seconds: float | None = None
    both_seconds: float | None = None
    forward_times: float | None = None
    both_times: float | None = None
    peak_bytes: int | None = None
    note: str = ""


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
    shares: tuple[ShareRow, ...] = ()
    small: tuple[RivalRow, ...] = ()
    rivals: tuple[RivalRow, ...] = ()
    curves: tuple[RivalRow, ...] = ()
    long: LongRow | None = None
    linear: LinearBench | None = None

    def report(self) -> Report:
        """Tables of all rows, and log-log pictures of time and memory against N."""
        about = f"{self.sizes}, {self.device}, {self.threads} threads"
        report = Report("Attention on this machine", about=about)
        machine = report.section("Machine")
        for what, value in describe().items():
            machine.fact(what, value, "bytes" if what.endswith("_bytes") else "")
        machine.fact("repeats", self.repeats, how="alternating between all contestants; medians are shown")
        if self.shares:
            self._add_shares(report)
        for title, rows in (("Short sequences", self.small), ("Beside others", self.rivals), ("Growth", self.curves)):
            if rows:
                _add_rivals(report, title, rows)
        if self.long is not None:
            section = report.section("A long sequence")
            what = f"{self.long.pattern}, {self.long.n} tokens, forward + backward"
            section.fact(f"{what}: seconds", self.long.seconds, "seconds")
            section.fact(
                f"{what}: tensors", self.long.tensor_bytes, "bytes", how="inputs, outputs, gradients, workspace"
            )
            section.fact("allowed", self.long.allowed_bytes, "bytes")
        if self.linear is not None:
            self.linear.add_to(report)
        if self.curves:
            self._add_payoff(report)
            self._add_pictures(report)
        return report

    def _add_shares(self, report: Report) -> None:
        unit = "x" if self.device.startswith("cuda") else ""
        rows = [
            [r.cell.pattern, r.cell.n, r.engine, r.forward_seconds, r.forward_share, r.cell.forward_goal,
             r.both_seconds, r.both_share, r.cell.both_goal, r.reached]
            for r in self.shares
        ]  # fmt: skip
        section = report.section("Against dense attention")
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

    def _add_payoff(self, report: Report) -> None:
        """From which N each entry beats full attention, and by how much at the longest N that both were measured at."""
        curves = {
            name: {row.n: row for row in self.curves if row.name == name and row.both_seconds}
            for name in dict.fromkeys(row.name for row in self.curves)
        }
        dense = curves.get(DENSE)
        if not dense:
            return
        shortest, rows = min(row.n for row in self.curves), []
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
            rows.append([name.removeprefix("jieyue "), text, last, times])
        report.section("When each pays").table(
            ["attention", "faster than full attention from N", "at N", ("times faster", "x")],
            rows,
            note="Forward and backward, all keys, against torch's dense kernel; between measured N by straight lines on "
            "logarithmic axes.",
        )

    def _add_pictures(self, report: Report) -> None:
        names = list(dict.fromkeys(row.name for row in self.curves))
        section = report.section("Pictures")
        for what, unit, read in (
            ("time", "seconds", lambda row: row.both_seconds),
            ("peak memory", "bytes", lambda row: row.peak_bytes),
        ):
            curves = {
                name: {row.n: read(row) for row in self.curves if row.name == name and read(row)} for name in names
            }
            title = f"Forward + backward: {what} against N"
            section.picture(
                Picture.lines(
                    title, {k: c for k, c in curves.items() if c}, x=("N", "tokens"), y=(what, unit), log="xy"
                )
            )


def crossing(dense: dict[int, float], ours: dict[int, float]) -> float | None:
    """The N from which ``ours`` is faster, straight lines between measured points on logarithmic axes; None: nowhere."""
    shared = sorted(dense.keys() & ours.keys())
    gaps = [math.log(dense[n] / ours[n]) for n in shared]
    if not shared or gaps[-1] < 0:
        return None
    for i in range(len(shared) - 1, 0, -1):
        if gaps[i - 1] < 0:
            n, m, before, after = shared[i - 1], shared[i], gaps[i - 1], gaps[i]
            return float(round(n * (m / n) ** (-before / (after - before))))
    return float(shared[0])


def _add_rivals(report: Report, title: str, rows: Sequence[RivalRow]) -> None:
    against = "SDPA, full" if title == "Short sequences" else "ours"
    report.section(title).table(
        ["pattern", "N", "by", ("forward", "seconds"), (f"of {against}", "x"), ("forward + backward", "seconds"),
         (f"of {against} ", "x"), ("peak", "bytes"), "note"],
        [[r.pattern, r.n, r.name, r.forward_seconds, r.forward_times, r.both_seconds, r.both_times, r.peak_bytes, r.note]
         for r in rows],
    )  # fmt: skip
