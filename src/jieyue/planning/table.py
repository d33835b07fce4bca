"""The table of settings that fit a budget: cheapest exact first, each with its predicted peak by part and its seconds.

For each kind of setting (loss whole or chunked, checkpointing, dtype, optimizer, attention) the largest fitting micro-batch
is found by tracing (``search``), then its seconds are predicted (``calibration``). Exact ones come first, the fastest at the
top; those of another optimizer and approximate ones follow, likewise. Checkpointing and updates in backward are left out where
the whole batch fits without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jieyue.budget import Budget, Cost, format_bytes
from jieyue.errors import BudgetError, InputError, message
from jieyue.hf.optimizers import optimizer_named
from jieyue.listener import SILENT, ProgressListener
from jieyue.training.techniques import UPDATES

from .calibration import Calibration
from .prediction import TrainingStep
from .search import fixed_cost, largest_fitting, refusal, step_costs
from .setting import DTYPES, FOLDED, OPTIMIZERS, Setting
from .subject import VOCABULARY_HEADS, Subject

__all__ = ["Row", "Table", "feasible", "kinds"]

_TRIED = ("adamw", "adafactor", "adamw-8bit")  # momentum alone saves less than Adafactor; in backward it is tried
_FOLDED_TRIED = ("momentum", "adamw")  # Tiger takes what momentum takes


@dataclass(frozen=True, kw_only=True)
class Row:
    """A setting that fits, and what it will cost (``cost.seconds``: of one update)."""

    setting: Setting
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Table:
    """``rows``: what fits, best first; ``rejected``: (kind of setting, why)."""

    effective_batch: int
    budget_bytes: int | None
    rows: tuple[Row, ...]
    rejected: tuple[tuple[Setting, str], ...]


def kinds(
    subject: Subject, *, attention: str | None = None, optimizer: str | None = None, dtype: str | None = None
) -> Iterator[Setting]:
    """The kinds of setting worth tracing, their micro-batch open (1): the exact ones, then one approximation at a time.

    Exact: loss whole or chunked (heads over a vocabulary alone), with checkpointing or without, under the first optimizer and
    dtype. Then, at the leaner loss, each other optimizer that is installed, the updates in backward, dtype and the pattern.
    ``optimizer``, ``dtype``: the only ones wanted. ``InputError`` for an unknown one, ``MissingExtra`` for one not installed.
    """
    if optimizer is not None:
        optimizer_named(optimizer)
    optimizers = _TRIED if optimizer is None else (optimizer,)
    dtypes = tuple(DTYPES) if dtype is None else (dtype,)
    in_backward = [one for one in FOLDED if optimizer == one or (optimizer is None and one in _FOLDED_TRIED)]
    losses = (False, True) if subject.head in VOCABULARY_HEADS else (False,)
    first = Setting(micro_batch=1, optimizer=optimizers[0], dtype=dtypes[0])
    lean = replace(first, chunked=losses[-1])
    starts = [replace(first, chunked=chunked) for chunked in losses]
    starts += [replace(lean, optimizer=optimizer) for optimizer in optimizers[1:] if OPTIMIZERS[optimizer].installed]
    starts += [replace(lean, optimizer=optimizer, in_backward=True) for optimizer in in_backward]
    starts += [replace(lean, dtype=dtype) for dtype in dtypes[1:]]
    if attention is not None:
        starts.append(replace(lean, attention=attention))
    for start in starts:
        yield start
        yield replace(start, checkpointing=True)


def feasible(
    subject: Subject,
    budget: Budget,
    *,
    effective_batch: int,
    settings: Sequence[Setting] | None = None,
    fixed_bytes: int | None = None,
    timed: bool = True,
    listener: ProgressListener = SILENT,
) -> Table:
    """Of ``settings`` (None: all ``kinds``), those that fit ``budget.memory_bytes``, the whole process included.

    ``fixed_bytes``: what the process holds without the model, None measures it now. ``timed=False`` predicts memory alone
    (exact ones then come in the order of ``settings``). ``BudgetError`` where nothing fits: the floor, and what lowers it.
    """
    if effective_batch < 1:
        raise InputError("effective_batch", str(effective_batch), "at least 1 row")
    fixed = fixed_cost(subject.device) if fixed_bytes is None else fixed_bytes
    allowed = float("inf") if budget.memory_bytes is None else budget.memory_bytes - fixed
    rows: list[Row] = []
    rejected: list[tuple[Setting, str]] = []
    floors: list[tuple[str, TrainingStep, Cost]] = []
    tried = list(kinds(subject) if settings is None else settings)
    with listener.progress("tracing settings") as update:
        for number, kind in enumerate(tried):
            update(number, len(tried), {"fitting": len(rows)})
            if any(_whole(row, kind, effective_batch) for row in rows):
                rejected.append((kind, "not needed: the whole batch fits without it"))
                continue
            try:
                step = subject.step(kind)
                found = largest_fitting(
                    step_costs(step, effective_batch, kind.checkpointing, fixed), effective_batch, allowed
                )
            except InputError as error:  # logits changed after the output layer; no layers to checkpoint
                rejected.append((kind, str(error)))
                continue
            if isinstance(found, Cost):
                floors.append((f"{kind.optimizer_text}, {kind.dtype}", step, found))
                over = format_bytes(found.peak_bytes - allowed)
                rejected.append((kind, f"one row needs {format_bytes(found.peak_bytes + fixed)}, {over} too much"))
                continue
            micro_batch, cost = found
            rows.append(Row(setting=replace(kind, micro_batch=micro_batch), cost=cost))
        update(len(tried), len(tried), {"fitting": len(rows)})
    if not rows and floors:
        raise BudgetError(refusal(budget.memory_bytes or 0, floors))
    if not rows:
        raise InputError("; ".join(why for _, why in rejected) or message("plan", "no setting", "at least one"))
    if timed:
        rows = list(_timed(Calibration(subject), rows, effective_batch, listener))
    rows.sort(key=lambda row: (UPDATES.index(row.setting.update), row.cost.seconds or 0.0))
    return Table(
        effective_batch=effective_batch,
        budget_bytes=budget.memory_bytes,
        rows=tuple(rows),
        rejected=tuple(rejected),
    )


def _timed(clock: Calibration, rows: list[Row], effective_batch: int, listener: ProgressListener) -> Iterator[Row]:
    with listener.progress("timing settings") as update:
        for number, row in enumerate(rows):
            update(number, len(rows), {})
            yield replace(row, cost=replace(row.cost, seconds=clock.seconds(row.setting, effective_batch)))
        update(len(rows), len(rows), {})


def _whole(row: Row, kind: Setting, effective_batch: int) -> bool:
    """Whether the row takes all of the batch in one piece without the kind's checkpointing or update in backward."""
    plain = replace(kind, checkpointing=False, micro_batch=effective_batch)
    own = row.setting
    if kind.checkpointing and own == plain:
        return True
    return kind.in_backward and own == replace(plain, in_backward=False, optimizer=own.optimizer)
