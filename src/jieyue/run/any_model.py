"""``plan`` for any model: no recipe, no weight; its configuration, its head's plain objective, a length or a file of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jieyue.budget import Budget, format_bytes, format_seconds
from jieyue.data.files import read_text
from jieyue.errors import InputError, check_least
from jieyue.hf.classic_presets import CLASSIC_PRESETS, classic_config, refuse_misspelt
from jieyue.hf.loading import head_of, load_config, load_tokenizer
from jieyue.hf.presets import PRESETS, preset_config
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.listener import SILENT, ProgressListener
from jieyue.planning.bfloat16 import Bfloat16Price, bfloat16_price
from jieyue.planning.measurement import Measured, measure_alone
from jieyue.planning.setting import Setting
from jieyue.planning.subject import OBJECTIVES, Subject
from jieyue.planning.table import Row, Table, feasible, kinds
from jieyue.report import Picture, Report
from jieyue.report.amounts import Given
from jieyue.report.values import Section
from jieyue.training.techniques import TECHNIQUES

__all__ = ["Planned", "Rows", "check_asked", "open_subject", "plan_model", "plan_subject", "setting_cells"]

DEFAULT_LENGTH = 128
QUANTILES = ((0.0, "shortest"), (0.5, "median"), (0.9, "nine of ten"), (1.0, "longest"))


@dataclass(frozen=True)
class Rows:
    """Tokens of each text of the file, as the model's tokenizer cuts them, ascending; none without a file."""

    lengths: tuple[int, ...]
    truncated: int = 0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The table, and what was measured of its first rows (beside each of them)."""

    name: str
    subject: Subject
    rows: Rows
    table: Table
    measured: tuple[Measured, ...] = ()
    bfloat16: Bfloat16Price | None = None

    def report(self) -> Report:
        """Settings that fit, what each peak is made of, what was rejected; lengths of the file; predicted against measured."""
        report = Report(f"Plan · {self.name} · {self.subject.head}")
        section = report.section("Settings")
        if self.table.budget_bytes is not None:
            section.fact("budget", self.table.budget_bytes, "bytes", "for the whole process", key=True)
        section.fact("tokens of a row", self.subject.positions, how="memory is predicted for rows this long")
        section.fact("effective batch", self.table.effective_batch, how="rows of an update, in every setting")
        columns: list[str | tuple[str, str]] = [
            *_SETTING,
            ("process", "bytes"),
            ("seconds an update", "seconds"),
            "update",
        ]
        cells = [
            [*setting_cells(row.setting, self.table.effective_batch), row.cost.process_bytes, row.cost.seconds,
             row.setting.update] for row in self.table.rows
        ]  # fmt: skip
        section.table(columns, cells, title="What fits, cheapest exact first", note=_NOTE)
        parts: list[str | tuple[str, str]] = ["row", *((name, "bytes") for name in _PARTS)]
        section.table(
            parts,
            [[number, *(getattr(row.cost, f"{name}_bytes") for name in _PARTS)] for number, row in _numbered(self)],
            title="What each predicted peak is made of",
        )
        self._tell_techniques(section)
        if self.measured:
            self._tell_measured(report)
        if self.table.rejected:
            rows = [[*setting_cells(kind, 0)[2:], why] for kind, why in self.table.rejected]
            section.table([*_SETTING[2:], "why not"], rows, title="Left out")
        if self.rows.lengths:
            self._tell_lengths(report)
        return report

    def _tell_techniques(self, section: Section) -> None:
        """What the rows above the floor of the undivided batch make use of, in the order of ``TECHNIQUES``."""
        used = {one.name for row in self.table.rows for one in row.setting.techniques}
        if any(row.setting.micro_batch < self.table.effective_batch for row in self.table.rows):
            used.add("micro-batches")
        cells = [[one.name, one.update, one.saves, one.costs, one.where] for one in TECHNIQUES if one.name in used]
        columns: list[str | tuple[str, str]] = ["technique", "update", "saves", "costs", "in Python"]
        section.table(columns, cells, title="What they are made of")

    def _tell_measured(self, report: Report) -> None:
        section = report.section("Predicted against measured")
        columns: list[str | tuple[str, str]] = ["row", "of what", "predicted", "measured", "error", "goal"]
        cells: list[list[Given]] = []
        for (number, row), found in zip(_numbered(self), self.measured, strict=False):
            peak, process = row.cost.peak_bytes, found.fixed_bytes + row.cost.peak_bytes
            cells += [
                [number, "torch's allocator", format_bytes(peak), format_bytes(found.peak_bytes),
                 f"{peak / found.peak_bytes - 1:+.2%}", "1 %"],
                [number, "process (VmHWM)", format_bytes(process), format_bytes(found.process_bytes),
                 f"{process / found.process_bytes - 1:+.1%}", "5 % or 8 MiB"],
            ]  # fmt: skip
            if row.cost.seconds is not None and found.seconds is not None:
                error = f"{row.cost.seconds / found.seconds - 1:+.0%}"
                seconds = [format_seconds(row.cost.seconds), format_seconds(found.seconds)]
                cells.append([number, "an update", *seconds, error, "20 %"])
        section.table(columns, cells, note="Each row in a process of its own; fixed bytes as that process found them.")

    def _tell_lengths(self, report: Report) -> None:
        section, lengths = report.section("Lengths"), self.rows.lengths
        for share, what in QUANTILES:
            section.fact(what, lengths[round(share * (len(lengths) - 1))], "", "tokens")
        if self.rows.truncated:
            section.fact("longer than the model", self.rows.truncated, how="texts; they would be cut")
        width = max(1, -(-lengths[-1] // 12))
        counts = {f"≤ {(n + 1) * width}": 0 for n in range(-(-lengths[-1] // width))}
        for length in lengths:
            counts[f"≤ {((length - 1) // width + 1) * width}"] += 1
        section.picture(Picture.bars("Texts by tokens", counts, value="texts"))


_SETTING = ["micro-batch", "pieces", "checkpointing", "loss", "attention", "optimizer", "dtype"]
_PARTS = ("weight", "gradient", "optimizer", "activation", "temporary", "fixed")
_NOTE = (
    "Memory from traces of the very step on fake tensors; seconds from two shallow copies of the model run on this machine. "
    "Exact: the update of AdamW on the undivided batch with full attention, up to rounding; or of another optimizer, likewise."
)


def setting_cells(setting: Setting, effective_batch: int) -> list[Given]:
    """A setting as cells of a table: micro-batch, pieces, checkpointing, loss, attention, optimizer, dtype."""
    return [
        setting.micro_batch,
        -(-effective_batch // setting.micro_batch),
        "yes" if setting.checkpointing else "no",
        "chunked" if setting.chunked else "whole",
        setting.attention or "the model's",
        setting.optimizer_text,
        setting.dtype,
    ]


def _numbered(planned: Planned) -> Iterable[tuple[int, Row]]:
    return enumerate(planned.table.rows, 1)


def plan_model(
    name: str,
    *,
    budget: str | int | Budget = "4GiB",
    effective_batch: int = 32,
    length: int | None = None,
    data: str | Path | None = None,
    head: str | None = None,
    settings: Callable[[Subject], Iterable[Setting]] = kinds,
    measure: int = 0,
) -> Planned:
    """The settings in which a model of any kind could be trained within ``budget``; no weight of it is read or allocated.

    ``name``: a preset, a folder (its ``config.json`` is enough) or a hub name; ``length``: tokens of a row, None = the
    longest text of ``data`` (a text a line; needs the tokenizer) or 128; ``head``: of ``OBJECTIVES``,
    None = the checkpoint's own. ``settings``: the kinds to try, such as ``partial(kinds, dtype="float32")``. ``measure``: so
    many rows from the top are run.

    Time: about a second a trace of some layers (``planning.alike``), or of all where they differ, some traces a setting, and a short
    run of single layers.
    """
    check_asked(budget, effective_batch, measure)
    opened = open_subject(name, length=length, data=data, head=head)
    return plan_subject(
        name, opened, budget=budget, effective_batch=effective_batch, settings=settings, measure=measure
    )


def check_asked(budget: str | int | Budget, effective_batch: int, measure: int) -> Budget:
    """What is allowed, before a model is opened; ``InputError`` for a budget, rows or a number of runs that are none."""
    allowed = Budget.parse(budget)
    check_least(1, effective_batch=effective_batch)
    check_least(0, measure=measure)
    return allowed


def plan_subject(
    name: str,
    opened: tuple[Subject, Rows],
    *,
    budget: str | int | Budget = "4GiB",
    effective_batch: int = 32,
    settings: Callable[[Subject], Iterable[Setting]] = kinds,
    measure: int = 0,
    listener: ProgressListener = SILENT,
) -> Planned:
    """``plan_model`` of a model that ``open_subject`` opened; ``listener`` is told how far it is."""
    allowed, (subject, rows) = check_asked(budget, effective_batch, measure), opened
    tried = list(settings(subject))
    listener.say(f"Planning: {len(tried)} kinds of setting are traced, and those that fit are timed")
    table = feasible(subject, allowed, effective_batch=effective_batch, settings=tried, listener=listener)
    measured = tuple(measure_alone(subject, row.setting, effective_batch) for row in table.rows[:measure])
    narrow = bfloat16_price() if any(setting.dtype == "bfloat16" for setting in tried) else None
    return Planned(name=name, subject=subject, rows=rows, table=table, measured=measured, bfloat16=narrow)


def open_subject(
    name: str, *, length: int | None = None, data: str | Path | None = None, head: str | None = None
) -> tuple[Subject, Rows]:
    """The model by its configuration, rows as long as asked or as the longest text of the file (at most its positions)."""
    check_least(1, length=length)
    texts = [] if data is None else _texts(Path(data))
    config: Any
    tokenizer: Callable[[], Any]
    if name in {*PRESETS, *CLASSIC_PRESETS} and not Path(name).is_dir():
        own = make_tokenizer(learn_vocabulary(texts or _shipped()))
        config = preset_config(name, own) if name in PRESETS else classic_config(name, own)
        tokenizer, found = lambda: own, "masked-lm"
    else:
        refuse_misspelt(name)
        config, tokenizer, found = load_config(name), lambda: load_tokenizer(name), head_of(name) or ""
    chosen = head or found
    if chosen not in OBJECTIVES:
        allowed = f"head={' or '.join(OBJECTIVES)}"
        raise InputError(f"plan of {name!r}", f"a head {chosen or 'of no kind'}", allowed, "name one with --head")
    rows = Rows(())
    if chosen == "image-classification":
        side = length or getattr(config, "image_size", None) or 224
        return Subject(config=config, head=chosen, positions=side if isinstance(side, int) else max(side)), rows
    room = getattr(config, "max_position_embeddings", None) or 2**30
    if texts:
        lengths = sorted(len(ids) for ids in tokenizer()(texts)["input_ids"])
        rows = Rows(tuple(lengths), sum(each > room for each in lengths))
    positions = length or (min(rows.lengths[-1], room) if rows.lengths else min(DEFAULT_LENGTH, room))
    return Subject(config=config, head=chosen, positions=positions), rows


def _texts(path: Path) -> list[str]:
    text = read_text(path).text
    found = [line for line in text.splitlines() if line.strip()]
    if not found:
        raise InputError(str(path), "no text", "a text a line")
    return found


def _shipped() -> Sequence[str]:
    from jieyue.data.corpora import heldout_path
    from jieyue.data.qa_files import read_questions

    return [passage.text for question in read_questions(heldout_path())[0] for passage in question.passages]
