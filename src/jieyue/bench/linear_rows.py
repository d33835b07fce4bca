"""What the benchmark of linear attention found: rows, and how a section of the report shows them."""

from __future__ import annotations

from dataclasses import dataclass

from jieyue.report import Picture, Section

from .rival_rows import RivalRow

__all__ = ["ALLOWED_BYTES", "DecodingRow", "GoalRow", "LinearBench"]

ALLOWED_BYTES = 4 * 2**30


@dataclass(frozen=True)
class GoalRow:
    """A long sequence: best seconds, shares of the matrix-product rate, and tensor bytes at the peak, inputs among them."""

    causal: bool
    n: int
    forward_seconds: float
    both_seconds: float
    forward_share: float
    both_share: float
    goal: float
    tensor_bytes: int


@dataclass(frozen=True)
class DecodingRow:
    """One more token after ``context``: median seconds, and bytes that are kept between tokens."""

    what: str
    context: int
    seconds: float
    held_bytes: int


@dataclass(frozen=True)
class LinearBench:
    """What ``bench_linear`` measured; ``crossover``: from which N ours beats dense attention, per causality (None: nowhere)."""

    rate: float
    goals: tuple[GoalRow, ...] = ()
    rivals: tuple[RivalRow, ...] = ()
    crossover: dict[str, float | None] | None = None
    decoding: tuple[DecodingRow, ...] = ()

    def add_to(self, section: Section) -> None:
        """Tables, the crossover, and a picture of decoding."""
        section.fact("matrix product, 1024³ float32", self.rate, "FLOP/s", how="best of the repeats")
        if self.goals:
            section.table(
                ["linear(elu)", "N", ("forward", "seconds"), "share", ("forward + backward", "seconds"), "share ", "goal",
                 "reached", ("tensors", "bytes"), "within 4 GiB"],
                [["causal" if r.causal else "all keys", r.n, r.forward_seconds, r.forward_share, r.both_seconds, r.both_share,
                  r.goal, r.both_share >= r.goal, r.tensor_bytes, r.tensor_bytes <= ALLOWED_BYTES] for r in self.goals],
                note="Share of the matrix-product rate, operations counted at chunks of 64 positions.",
            )  # fmt: skip
        if self.rivals:
            section.table(
                ["what", "N", "by", ("forward", "seconds"), ("forward + backward", "seconds"), ("of ours", "x"),
                 ("peak", "bytes"), "note"],
                [[r.pattern, r.n, r.name, r.forward_seconds, r.both_seconds, r.both_times, r.peak_bytes, r.note]
                 for r in self.rivals],
            )  # fmt: skip
        for what, n in (self.crossover or {}).items():
            shortest = min(r.n for r in self.rivals)
            text = "not up to the longest N measured" if n is None else n
            how = "the shortest measured: it may be less" if n == shortest else "between measured N, by straight lines"
            section.fact(
                f"{what}: faster than dense attention from N", text, "" if n is None else "tokens", how=how, key=True
            )
        if self.decoding:
            section.table(
                ["one more token", ("context", "tokens"), ("time", "seconds"), ("kept", "bytes")],
                [[r.what, r.context, r.seconds, r.held_bytes] for r in self.decoding],
            )
            curves = {
                name: {r.context: r.seconds for r in self.decoding if r.what == name}
                for name in dict.fromkeys(r.what for r in self.decoding)
            }
            title = "Time for one more token against the context"
            section.picture(Picture.lines(title, curves, x=("context", "tokens"), y=("time", "seconds"), log="xy"))
