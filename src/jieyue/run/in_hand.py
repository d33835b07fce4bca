"""The Python face of a run: a model by name or in hand, data in files or in hand, and what came of it in one value.

What is in hand becomes files of a temporary folder (a model and tokenizer as transformers saves them, rows as JSON lines), and then
goes the way of the command line: read, checked, parted, planned, trained, judged and reported by the same code.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypedDict, Unpack

from torch import nn

from jieyue.attention import Pattern
from jieyue.budget import Budget, Plan
from jieyue.errors import InputError, check_known
from jieyue.hf.types import Model, Tokenizer
from jieyue.listener import ProgressListener
from jieyue.report import Report
from jieyue.tasks import Facts, RunConfig, Settings
from jieyue.tasks.sparsify.settings import SparseSettings
from jieyue.tasks.table import task as task_named
from jieyue.training.remedies.remedy import Remedy

from . import jobs
from .bars import Bars
from .config import TrainingConfig
from .folder import IN_HAND, Out, check_either
from .layer_options import Choosing, FullLayers
from .predict import Predictor, check_rows
from .sparsify import EFFECTIVE_BATCH
from .sparsify import sparsify as sparsify_files

__all__ = ["Data", "Options", "ReportedPlan", "SparseOptions", "TrainedModel", "plan", "sparsify", "train"]

Data = str | Path | Sequence[str | Path] | Iterable[Facts]
"""Files, or rows: dicts, or a ``datasets.Dataset``, whose class labels become their names."""


class _EveryTraining(TypedDict, total=False):
    """What every training takes by name."""

    limit: int
    skip_bad: bool
    effective_batch: int
    learning_rate: float
    warmup_steps: int
    schedule: str
    weight_decay: float
    max_grad_norm: float
    evaluate_every: int
    seed: int
    checkpointing: bool
    optimizer: str
    dtype: str
    save_steps: int
    resume: bool
    overwrite: bool
    device: str
    listener: ProgressListener


class Options(_EveryTraining, total=False):
    """What ``train`` and ``plan`` take by name besides: fields of ``RunConfig`` and ``TrainingConfig``; ``settings``: the task's own, a
    value of its class or a dict of what differs from the defaults."""

    settings: Settings | Facts
    vocabulary: Path
    new_head: bool
    attention: str
    unshare: int
    unshare_after: int
    adapter: str
    base: str
    steps: int
    epochs: float
    seconds: float
    keep: str
    patience: int
    start: str
    curriculum: str
    in_backward: bool
    remedies: Sequence[Remedy]
    plan: Plan


@dataclass(frozen=True)
class ReportedPlan(Plan):
    """A ``Plan`` with the ``report`` that says what it costs and what was rejected."""

    report: Report | None = None


@dataclass(frozen=True)
class TrainedModel:
    """``model`` and ``tokenizer`` as the ``folder`` holds them, in evaluation mode; ``report``: what the folder shows."""

    model: nn.Module
    tokenizer: Tokenizer
    report: Report
    folder: Path


def train(
    model: str | Path | Model = "tiny",
    tokenizer: Tokenizer | None = None,
    *,
    task: str = "read",
    data: Data = (),
    held_out: Data = (),
    out: str | Path = "runs/model",
    budget: str | int | Budget = jobs.DEFAULT_BUDGET,
    **options: Unpack[Options],
) -> TrainedModel:
    """Plans, trains, judges and reports, as ``jieyue train`` does; shows its progress.

    ``model``: a preset, a folder, a hub name, or a model in hand with its ``tokenizer`` (which stays as it is: a copy is trained
    and comes back). ``task``: "read", "classify", "tag", "mlm", "title", "chat", or a file of one's own. ``data``, ``held_out``: files,
    or rows in hand with the fields that the task's files have (classify: text, label; tag: text, entities; read: question, context,
    answers; title: text, title; chat: messages; mlm: text); () = the corpus that ships, and a part of the data.
    ``out``: the folder that is left. ``budget``: of the whole process. ``options``: fields of ``RunConfig`` and ``TrainingConfig``
    (steps=, keep=, plan=, ...), the task's ``settings=``; ``resume=``, ``overwrite=``, ``device=``, ``listener=``.

    Raises ``InputError`` (a ValueError) for what does not fit together, before anything is trained.
    """
    check_either(resume=options.get("resume", False), overwrite=options.get("overwrite", False))
    with _in_files(model, tokenizer, data=data, held_out=held_out) as (name, files):
        config, training, device = _configured(task, name, files, options)
        report = jobs.train(
            task,
            config,
            _out(out, options.get("overwrite", False)),
            budget=Budget.parse(budget, device),
            training=training,
            resume=options.get("resume", False),
            listener=options.get("listener") or Bars(),
        )
    opened = Predictor(out)
    return TrainedModel(opened.model, opened.tokenizer, report, Path(out))


def plan(
    model: str | Path | Model = "tiny",
    tokenizer: Tokenizer | None = None,
    *,
    task: str = "read",
    data: Data = (),
    held_out: Data = (),
    budget: str | int | Budget = jobs.DEFAULT_BUDGET,
    **options: Unpack[Options],
) -> ReportedPlan:
    """What ``train`` would do with the same ``model``, ``tokenizer``, ``task``, ``data``, ``held_out``, ``budget`` and ``options``.

    Predicted before a weight is allocated. ``accumulate(..., plan=)`` and ``train(..., plan=)`` take it; its ``report`` says what it
    costs. Raises ``BudgetError``, an ``InputError``, that says what the smallest piece would need where nothing fits.
    """
    with _in_files(model, tokenizer, data=data, held_out=held_out) as (name, files):
        config, training, device = _configured(task, name, files, options)
        found, report = jobs.planned(task, config, budget=Budget.parse(budget, device), training=training)
    return ReportedPlan(**{one.name: getattr(found.plan, one.name) for one in fields(Plan)}, report=report)


class SparseOptions(_EveryTraining, total=False):
    """What ``sparsify`` takes by name besides: ``held_out`` and ``second_data`` as ``data`` is given; fields of ``Choosing``,
    ``SparseSettings``, ``RunConfig`` and ``TrainingConfig``."""

    held_out: Data
    calibration_tokens: int | str
    price_tokens: int | str
    full_heads: int | str
    candidates: int
    second_data: Data
    positions: str
    position_factor: float
    control: bool
    savings_at: str
    needles: int
    row_tokens: int
    train: str
    distill: str
    rank: int


def sparsify(
    model: str | Path | Model,
    tokenizer: Tokenizer | None = None,
    *,
    attention: str | Pattern,
    data: Data = (),
    tokens: int | str = 0,
    full_layers: int | str | Sequence[int] = "auto:+2%",
    out: str | Path = "runs/sparse",
    budget: str | int | Budget = jobs.DEFAULT_BUDGET,
    **options: Unpack[SparseOptions],
) -> TrainedModel:
    """Sparse attention in a trained model, as ``jieyue sparsify`` does it: measured, full layers chosen, trained, the price told.

    ``model``: a folder, a hub name, or a model in hand with its ``tokenizer`` (which stays as it is). ``attention``: what sparse layers
    read, a pattern or its text, such as "first(4)+local(512)". ``data``: files of plain text, or rows with a text; () = the passages
    that ship, of which a part is held out. ``tokens``: to train on, 0 = measure and choose only. ``full_layers``: how many stay full, a
    number or "auto:+2%" of perplexity; or which, counted from 0, as "1,4,7-10" or a list of numbers, and nothing is chosen;
    ``full_heads`` in its place: how many key-value heads of all layers, or "auto:+2%".
    ``out``: the folder that is left. ``budget``: of the training process. ``options``: ``SparseOptions``.

    Raises ``InputError`` (a ValueError) for what does not fit together, before anything is measured. Cost: about a pass over the
    calibration text for each layer and ``candidates`` for each round of the choice, then the training.
    """
    check_either(resume=options.get("resume", False), overwrite=options.get("overwrite", False))
    held_out, second_data = options.get("held_out", ()), options.get("second_data", ())
    with _in_files(model, tokenizer, data=data, held_out=held_out, second_data=second_data) as (name, files):
        given: Facts = {**options, "tokens": tokens, "full_layers": str(FullLayers.parse(full_layers))}
        given["second_data"] = files.pop("second_data")
        for other in ("held_out", "resume", "overwrite", "listener", "device"):
            given.pop(other, None)
        parts = [
            {one.name: given.pop(one.name) for one in fields(kind) if one.name in given}
            for kind in (Choosing, RunConfig, TrainingConfig)
        ]
        known = {one.name for one in fields(SparseSettings)}
        check_known("options", set(given) - known, SparseOptions.__annotations__)
        training = TrainingConfig(**{"effective_batch": EFFECTIVE_BATCH, **parts[2]})
        settings = SparseSettings(**given, seed=training.seed)
        report = sparsify_files(
            RunConfig(**{**parts[1], **files, "model": name, "attention": _text_of(attention), "settings": settings}),
            Choosing(**parts[0]),
            _out(out, options.get("overwrite", False)),
            budget=Budget.parse(budget, options.get("device", "cpu")),
            training=training,
            resume=options.get("resume", False),
            listener=options.get("listener") or Bars(),
        )
    opened = Predictor(out)
    return TrainedModel(opened.model, opened.tokenizer, report, Path(out))


def _out(out: str | Path, overwrite: bool) -> Out:
    if not isinstance(out, str | Path):
        raise InputError("out", repr(out), "a folder for the model and its report")
    return Out(Path(out), overwrite)


def _text_of(attention: str | Pattern) -> str:
    if not isinstance(attention, str | Pattern):
        allowed = "a pattern, or its text such as 'first(4)+local(512)'"
        raise InputError("attention", repr(attention), allowed, "a list of layers is one text, commas between them")
    return str(attention)


@contextmanager
def _in_files(
    model: str | Path | Model, tokenizer: Tokenizer | None, **texts: Data
) -> Iterator[tuple[str, dict[str, list[str | Path]]]]:
    """The model's name and the files of data, held_out and others; what is in hand lies in a folder for as long as the run needs it."""
    with tempfile.TemporaryDirectory(prefix=IN_HAND) as temporary:
        place = Path(temporary)
        name = str(model)
        if isinstance(model, nn.Module):
            if tokenizer is None:
                raise InputError("model", "a model in hand without tokenizer", "its tokenizer beside it")
            own = str(getattr(model.config, "name_or_path", "")).strip("/").rpartition("/")[2] or "model"
            model.save_pretrained(place / own)
            tokenizer.save_pretrained(place / own)
            name = str((place / own).rename(_made(place / _checksum(place / own)) / own))
        elif tokenizer is not None:
            raise InputError("tokenizer", "one beside a name", "a model in hand, or the name's own tokenizer")
        yield name, {role: _files(role, given, place) for role, given in texts.items()}


def _checksum(folder: Path) -> str:
    """Of all files in the folder: a run that goes on knows its model by it."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            found.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _files(role: str, given: Data, place: Path) -> list[str | Path]:
    """The files as they are, or one of JSON lines with the rows."""
    if given is None:
        raise InputError(role, "None", "files, or rows in hand", "() stands for what ships, or for none")
    if isinstance(given, str | Path):
        return [_named(role, given)]
    check_rows(role, given)
    rows = [dict(row) if isinstance(row, Mapping) else row for row in given]
    if not rows and given != ():
        raise InputError(role, "no rows", "files or rows, or nothing at all for what ships")
    paths = [row for row in rows if isinstance(row, str | Path)]
    if len(paths) == len(rows):
        return [_named(role, path) for path in paths]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(role, "files and rows together, or rows that are no dicts", "files, or dicts")
    names = _class_names(given)
    file = place / f"{role}.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            assert isinstance(row, dict)
            told = {
                key: names[key](value) if key in names and value is not None else value for key, value in row.items()
            }
            stream.write(json.dumps(told, ensure_ascii=False) + "\n")
    return [file]


def _named(role: str, path: str | Path) -> str | Path:
    """The file's name; ``InputError`` for a text in its place, which is no name of a file."""
    text = str(path)
    with suppress(OSError, ValueError):  # a name that is too long, or has a null byte
        if len(text.split()) < 2 or Path(text).exists():
            return path
    start = text if len(text) < 40 else text[:40] + "…"
    do = 'texts in hand are rows: [{"text": "…"}, …]'
    raise InputError(role, f"no file {start!r}", "files that exist, or rows", do)


def _class_names(given: Data) -> dict[str, Callable[[int], str]]:
    """Of a ``datasets.Dataset``: column -> what makes a name of a class number."""
    features = getattr(given, "features", None) or {}
    return {name: naming for name, kind in features.items() if (naming := getattr(kind, "int2str", None)) is not None}


def _configured(
    task: str, name: str, files: Mapping[str, list[str | Path]], options: Options
) -> tuple[RunConfig, TrainingConfig, str]:
    """The configurations that the options spell out, and the device."""
    given: Facts = dict(options)
    for other in ("resume", "overwrite", "listener"):
        given.pop(other, None)
    settings, device = given.pop("settings", None), given.pop("device", "cpu")
    run: Facts = {one.name: given.pop(one.name) for one in fields(RunConfig) if one.name in given}
    run |= {"model": name, **files}
    how = {one.name: given.pop(one.name) for one in fields(TrainingConfig) if one.name in given}
    known = {one.name for one in (*fields(RunConfig), *fields(TrainingConfig))} | {"settings", "device"}
    check_known("options", given, sorted({*known, "listener", "overwrite", "resume"}))
    if how.get("plan") is not None:
        how.setdefault("effective_batch", how["plan"].effective_batch)
        how.setdefault("checkpointing", how["plan"].checkpointing)
    how["remedies"] = tuple(how.get("remedies", ()))
    training = TrainingConfig(**how)
    config = RunConfig(**run)
    if isinstance(settings, Mapping):
        job = task_named(task)
        check_known("settings", settings, sorted(one.name for one in fields(job.settings_class)))
        settings = job.default_settings(config, training.seed).changed(**settings)
    return RunConfig(settings=settings, **run), training, device
