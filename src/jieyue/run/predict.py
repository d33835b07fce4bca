"""A trained model's answers to rows without labels: to rows in hand, or to a file of any length, into a file beside it.

The output has the input's rows in their order with their own columns, plus ``answer`` and ``confidence``. A file is read, answered
and written some hundreds of rows at a time. It is written as ``OUT.part`` and moved when it is whole; a run that was killed leaves
whole rows there, from which ``resume`` goes on; the file is then the same, byte for byte, as that of a run without a stop.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO, runtime_checkable

from torch import nn

from jieyue.errors import InputError
from jieyue.hf.loading import load
from jieyue.hf.types import Tokenizer
from jieyue.listener import SILENT, ProgressListener
from jieyue.record import read_record
from jieyue.tasks import Facts, Prediction, Settings
from jieyue.tasks.table import AnyTask, task

from .devices import check_device
from .row_files import PACKED, RowReader, RowWriter, cell, is_table, whole_rows

__all__ = ["ADDED", "Predicted", "Predictor", "predict", "predict_file"]

ADDED = ("answer", "confidence")
_BATCHES = 16  # of rows that are answered together, so that rows of like length share a batch


class Predictor:
    """A trained model that answers rows; opened once. ``folder``: what ``train`` wrote; its record names the task."""

    def __init__(self, folder: str | Path, *, device: str = "cpu") -> None:
        check_device(device, must_exist=True)
        record = read_record(folder)
        self.task: AnyTask = task(str(record["recipe"]))
        self.settings: Settings = self.task.settings_class.from_dict(record["settings"])
        model, self.tokenizer = load(folder, self.settings.head(self.task.head))
        self.model: nn.Module = model.to(device)

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Tokenizer, job: AnyTask, settings: Settings) -> Predictor:
        """One of a model in hand."""
        made = cls.__new__(cls)
        made.model, made.tokenizer, made.task, made.settings = model, tokenizer, job, settings
        return made

    def __call__(self, rows: Sequence[Facts], *, batch_size: int = 32) -> list[Prediction]:
        """An answer to each row, in order. ``InputError``: what the task does not understand, or a column ``answer``."""
        for row in rows:
            check_columns(row)
        return self.task.predict(self.model, self.tokenizer, rows, self.settings, batch_size=batch_size)


@dataclass(frozen=True)
class Predicted:
    """What ``predict_file`` did: rows answered now, rows that were there already, and seconds of answering."""

    rows: int
    kept: int
    seconds: float


def predict(
    model: str | Path | nn.Module,
    rows: Iterable[Facts | str],
    *,
    tokenizer: Tokenizer | None = None,
    task_name: str | None = None,
    settings: Settings | None = None,
    batch_size: int = 32,
    device: str = "cpu",
) -> list[Facts]:
    """The rows with ``answer`` and ``confidence`` added, in order.

    ``model``: a folder that ``train`` wrote, or a model in hand with its ``tokenizer``, ``task_name`` (of ``TASKS``) and ``settings``
    (None = the task's defaults). ``rows``: dicts with the task's fields (classify, tag: text; read: question, context; title: text;
    chat: messages or text; mlm: a text with masks), or texts. ``batch_size``: rows of a forward pass; ``device``: of a folder's model.
    confidence is None where the task has none. Raises ``InputError`` (a ValueError) for rows that the task does not understand.
    """
    check_rows("predict(rows)", rows)
    rows = list(rows)
    if wrong := [row for row in rows if not isinstance(row, str | Mapping)]:
        raise InputError(
            "predict(rows)", f"a row that is {type(wrong[0]).__name__}", "dicts with the task's fields, or texts"
        )
    given = [{"text": row} if isinstance(row, str) else dict(row) for row in rows]
    if isinstance(model, nn.Module):
        if tokenizer is None or task_name is None:
            raise InputError("predict(model)", "a model without tokenizer or task_name", "both beside it")
        job = task(task_name)
        found = settings if settings is not None else _settings_of(model, job)
        answering = Predictor.of(model, tokenizer, job, found)
    else:
        answering = Predictor(model, device=device)
    answers = answering(given, batch_size=batch_size)
    return [joined(row, one) for row, one in zip(given, answers, strict=True)]


@runtime_checkable
class _Frame(Protocol):
    def iterrows(self) -> Iterator[object]: ...


def check_rows(name: str, rows: Iterable[Facts | str | Path]) -> None:
    """``InputError`` for what would be gone through otherwise than row by row: a text, one row, a table by its columns."""
    if isinstance(rows, _Frame):
        raise InputError(
            name, f"a {type(rows).__name__}, which gives its columns", "rows", "frame.to_dict('records') gives them"
        )
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise InputError(name, f"{type(rows).__name__} {str(rows)[:60]!r}", "a list of rows", "put one row into a list")


def predict_file(
    answering: Predictor,
    source: Path | BinaryIO,
    out: Path | TextIO,
    *,
    batch_size: int = 32,
    resume: bool = False,
    overwrite: bool = False,
    encoding: str | None = None,
    listener: ProgressListener = SILENT,
) -> Predicted:
    """Answers every row of ``source`` into ``out``: files, or open streams such as standard input and output.

    A name that ends in .csv or .tsv is a table, another one JSON lines. ``encoding``: the source's, None = found. ``InputError``: an
    ``out`` that is there without ``overwrite`` or ``resume``, rows that differ from those already answered, and what ``Predictor``
    refuses, with its place.
    Memory: sixteen batches of rows.
    """
    if batch_size < 1:
        raise InputError("batch_size", str(batch_size), "at least 1")
    path, piped = (source, None) if isinstance(source, Path) else (Path("standard input"), source)
    rows = iter(RowReader(path, piped, encoding))
    if not isinstance(out, Path):
        return _answered(answering, rows, RowWriter(out, delimiter=None), batch_size, 0, listener)
    check_out(out, resume=resume, overwrite=overwrite)
    delimiter = ("\t" if out.suffix.lower() == ".tsv" else ",") if is_table(out) else None
    part, kept = out.with_name(out.name + ".part"), 0
    with _put_away(part):
        if resume:
            kept, rows = _kept(part, rows, delimiter, batch_size * _BATCHES)
        else:
            part.unlink(missing_ok=True)
        with part.open("a", encoding="utf-8", newline="") as stream:
            writer = RowWriter(stream, delimiter=delimiter, goes_on=part.stat().st_size > 0)
            done = _answered(answering, rows, writer, batch_size, kept, listener)
        part.replace(out)
    return done


@contextmanager
def _put_away(part: Path) -> Iterator[None]:
    """Whatever ends the run, rows that ``resume`` goes on from stay, and nothing else; a full disk is told in one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        do = "make room, then --resume goes on from the rows that are whole"
        raise InputError(str(part), str(error.strerror), "room for the answers", do) from error
    finally:
        part.with_name(part.name + ".whole").unlink(missing_ok=True)
        if part.is_file() and not part.stat().st_size:
            part.unlink()


def check_out(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses to write over what is there, before a model is loaded."""
    part = out.with_name(out.name + ".part")
    if resume and overwrite:
        raise InputError("resume and overwrite: found both, expected one of them")
    if out.suffix.lower() in PACKED:
        raise InputError("out", f"{out}, a packed file", "a plain one", "pack it afterwards")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError("out", str(out), "a file in a folder that is there")
    if out.exists() and not overwrite:
        raise InputError("out", f"{out}, which is there and whole", "another name", "--overwrite writes it anew")
    if part.exists() and not (resume or overwrite):
        do = "--resume goes on from there, --overwrite begins anew"
        raise InputError("out", f"{part} of a run that was interrupted", "none", do)


def check_columns(row: Facts) -> None:
    """``InputError`` for a row that has a column of a name that is added."""
    taken = [name for name in ADDED if name in row]
    if taken:
        raise InputError("row", f"a column {taken[0]!r}", "none of that name: it is added", "rename it")


def joined(row: Facts, found: Prediction) -> Facts:
    """The row's own columns, then what was added."""
    sure = None if found.confidence is None else round(found.confidence, 6)
    return {**row, "answer": found.answer, "confidence": sure}


def _answered(
    answering: Predictor,
    rows: Iterator[tuple[str, Facts]],
    writer: RowWriter,
    batch_size: int,
    kept: int,
    listener: ProgressListener,
) -> Predicted:
    done, started = 0, time.perf_counter()
    with listener.progress("predicting") as update:
        while some := list(itertools.islice(rows, batch_size * _BATCHES)):
            try:
                answers = answering([row for _, row in some], batch_size=batch_size)
            except InputError as error:
                raise _placed(answering, some, error) from None
            writer.write([joined(row, one) for (_, row), one in zip(some, answers, strict=True)])
            done += len(some)
            seconds = max(time.perf_counter() - started, 1e-9)
            update(kept + done, kept + done, {"rows_per_second": done / seconds})
    return Predicted(done, kept, time.perf_counter() - started)


def _placed(answering: Predictor, some: Sequence[tuple[str, Facts]], error: InputError) -> InputError:
    """The error with the place of the first row that is not understood."""
    for place, row in some:
        try:
            answering([row])
        except InputError as own:
            return InputError(f"{place}: {own}")
    return error


def _kept(
    part: Path, rows: Iterator[tuple[str, Facts]], delimiter: str | None, together: int
) -> tuple[int, Iterator[tuple[str, Facts]]]:
    """How many rows of ``part`` stay, and the rows behind them.

    Rows that were answered ``together`` share batches, whose padding shows in the last bits of their numbers; so only whole groups
    of them stay, and the file ends as it would have without a stop. A row that was cut off, and a group that was, are taken away.
    """
    if not part.is_file():
        return 0, rows
    count, whole = 0, part.with_name(part.name + ".whole")
    group: list[tuple[tuple[str, Facts], Facts]] = []
    with whole.open("w", encoding="utf-8", newline="") as stream:
        writer = RowWriter(stream, delimiter=delimiter)
        for written in whole_rows(part, delimiter):
            place, own = next(rows, ("the end of the input", {"row": None}))
            if any(cell(written.get(name)) != cell(value) for name, value in own.items()):
                raise InputError(f"resume: {place}", "another row than was answered", "the same input as before")
            group.append(((place, own), written))
            if len(group) == together:
                writer.write([one for _, one in group])
                count, group = count + together, []
    whole.replace(part)
    return count, itertools.chain([one for one, _ in group], rows)


def _settings_of(model: nn.Module, job: AnyTask) -> Settings:
    """The task's defaults, with the labels that a classifier's configuration names."""
    from jieyue.tasks.config import RunConfig

    found: Settings = job.default_settings(RunConfig(), 0)
    names = getattr(getattr(model, "config", None), "id2label", None)
    if names and "labels" in found.to_dict():
        return found.changed(labels=tuple(names[at] for at in sorted(names)))
    return found
