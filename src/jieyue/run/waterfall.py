"""The waterfall: one saving after another on the same model and batch, as values, a table and pictures.

Each step keeps what the steps above it do. Its peak is measured where it was run, else predicted, and every row and bar says
which. Nothing here measures: ``bench.memory`` does, each step in a process of its own, and ``planned`` at the end of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jieyue.report import Picture, Report
from jieyue.report.amounts import Given

__all__ = ["MEASURED", "PREDICTED", "Step", "Waterfall"]

MEASURED, PREDICTED = "measured", "predicted"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row: what was added, whether the update is still the undivided batch's, its peak and what else was measured.

    ``measured_bytes``: peak of torch's allocator in one warm update (None: not run, ``how`` says why); ``process_bytes``:
    highest resident set; ``seconds``: of one update, the median of ``seconds_range`` where it was repeated.
    """

    added: str
    update: str
    predicted_bytes: int
    measured_bytes: int | None = None
    process_bytes: int | None = None
    seconds: float | None = None
    seconds_range: tuple[float, float] | None = None
    how: str = ""

    @property
    def kind(self) -> str:
        return PREDICTED if self.measured_bytes is None else MEASURED

    @property
    def peak_bytes(self) -> int:
        """Measured where it was run, else predicted."""
        return self.predicted_bytes if self.measured_bytes is None else self.measured_bytes


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """``steps`` in the order in which they were added; an update has ``effective_batch`` rows of ``positions`` tokens."""

    steps: tuple[Step, ...]
    effective_batch: int
    positions: int

    def tell(self, report: Report, title: str = "Waterfall", *, what: str = "", note: str = "") -> None:
        """The section of any report: facts, the table, a picture of the peaks, and one of the rates that were measured."""
        section = report.section(title)
        section.fact("rows of an update", self.effective_batch, how=f"{what}rows of {self.positions} tokens")
        columns, rows = self._shown()
        section.table(columns, rows, title="Each row keeps what those above it do", note=note)
        peaks = {step.added: (step.kind, step.peak_bytes) for step in self.steps}
        section.picture(
            Picture.waterfall(
                "Peak of one update", peaks, value=("memory", "bytes"), note="Pale: what the step took away."
            )
        )
        rates = {step.added: (MEASURED, rate) for step in self.steps if (rate := self._rate(step)) is not None}
        if rates:
            section.picture(
                Picture.waterfall("Tokens per second", rates, value="tokens/s", note="Pale: what the step cost.")
            )

    def _rate(self, step: Step) -> float | None:
        return None if not step.seconds else self.effective_batch * self.positions / step.seconds

    def _spread(self, step: Step) -> str | None:
        """The slowest and the fastest of the repeated timings."""
        if step.seconds_range is None:
            return None
        fastest, slowest = (self.effective_batch * self.positions / one for one in step.seconds_range)
        return f"{slowest:,.0f} … {fastest:,.0f}"

    def _shown(self) -> tuple[list[str | tuple[str, str]], list[list[Given]]]:
        """Columns and cells; a column that nothing was measured for is left out."""
        columns: list[str | tuple[str, str]] = [
            "added", ("peak", "bytes"), ("change", "bytes"), "tokens/s", "from … to", ("change", "share"), "how",
            ("predicted", "bytes"), ("process", "bytes"), "update",
        ]  # fmt: skip
        rows = [self._cells(step, before) for before, step in zip((None, *self.steps), self.steps, strict=False)]
        kept = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
        return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]

    def _cells(self, step: Step, before: Step | None) -> Sequence[Given]:
        rate = self._rate(step)
        earlier = self._rate(step if before is None else before)
        return [
            step.added,
            step.peak_bytes,
            step.peak_bytes - (step if before is None else before).peak_bytes,
            None if rate is None else round(rate, 1),
            self._spread(step),
            None if rate is None or earlier is None else rate / earlier - 1,
            f"{step.kind} ({step.how})" if step.how else step.kind,
            step.predicted_bytes,
            step.process_bytes,
            step.update,
        ]
