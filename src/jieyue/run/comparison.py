"""The same training in several variants and with several seeds, side by side with intervals: no claim from a single run.

Every cell (variant, seed) is trained from the same beginning, judged on the same examples, and kept as one JSON file; an
interrupted comparison goes on where it stopped, a cell whose settings or data have changed is trained anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from jieyue import __version__
from jieyue.budget import Budget
from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.listener import SILENT, ProgressListener
from jieyue.machine import describe
from jieyue.metrics.intervals import student
from jieyue.report import Estimate, Picture, Report
from jieyue.report.amounts import Given
from jieyue.tasks import RunConfig
from jieyue.tasks.table import AnyTask, task
from jieyue.training.remedies.remedy import Remedy

from .cells import content_of, digest_of, read_cell, write_cell
from .config import TrainingConfig
from .devices import check_device
from .fit import Curve, Trained, fit, set_aside_curve
from .plan import RunPlan
from .prepare import Prepared, prepare
from .resume import RESOLVED
from .sections import settings_section
from .ways import decide

__all__ = ["OneTraining", "Variant", "compare", "train_on"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one row of a comparison changes: the remedies, and fields of ``RunConfig`` (such as another model)."""

    remedies: tuple[Remedy, ...] = ()
    config: Facts = field(default_factory=dict)


class OneTraining(NamedTuple):
    """One training of a comparison."""

    prepared: Prepared
    planned: RunPlan
    trained: Trained


def compare(
    name: str,
    variants: Mapping[str, Variant],
    config: RunConfig = RunConfig(),
    out: str | Path = "runs/comparison",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    training: TrainingConfig = TrainingConfig(),
    budget: str | Budget = "4GiB",
    listener: ProgressListener = SILENT,
) -> Report:
    """Trains and judges every variant of the task ``name`` with every seed; the first is the baseline that the others are held against.

    The report has mean and 95 % t interval over the seeds of every score, the paired difference to the baseline (same seed),
    seconds, and the task's own curves. ``out``: ``cells/*.json``, ``report.html``, ``report.json``; a cell that is there is
    not run again. ``config``, ``training`` and ``budget`` as in ``train``, ``listener`` is told how it goes. Fewer than two variants or
    two different seeds: ``InputError``.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or len(variants) < 2:
        raise InputError(
            f"compare: found {len(variants)} variants and seeds {list(seeds)}, expected at least two of each, all different"
        )
    job, folder, allowed = task(name), Path(out), Budget.parse(budget)
    cells: dict[str, list[Facts]] = {label: [] for label in variants}
    for number, seed in enumerate(seeds):
        for label, variant in variants.items():
            own = replace(training, seed=seed, remedies=variant.remedies)
            listener.say(f"seed {seed} ({number + 1} of {len(seeds)}): {label}")
            changed = replace(config, **variant.config)
            cells[label].append(_cell(job, label, changed, own, folder, allowed, listener))
    report = Report(f"Comparison · {job.title.lower()} · {config.model}")
    _sections(report, job, variants, cells, seeds)
    resolved = {label: value for label, value in training.to_dict().items() if label not in ("seed", "remedies")}
    settings_section(report, {**resolved, "model": config.model, "data": ", ".join(map(str, config.data))}, describe())
    report.save(folder)
    return report


def _cell(
    job: AnyTask,
    label: str,
    config: RunConfig,
    training: TrainingConfig,
    folder: Path,
    budget: Budget,
    listener: ProgressListener,
) -> Facts:
    """One variant with one seed: read from its file where that is of the same settings, else trained and written."""
    key = _key(job, config, training)
    digest = digest_of(key)
    found = read_cell(folder, digest)
    if found is not None:
        return found
    work = folder / "work" / digest
    prepared, _, trained = train_on(job, config, training, work, budget, listener)
    sources, tokenizer = prepared.sources, prepared.model.tokenizer
    settings, _ = job.fitted(prepared.settings, trained.model, tokenizer, sources.set_aside)
    judged = job.judge(trained.model, tokenizer, sources.held_out, settings, prepared.memory(), listener=listener)
    cell = {
        "variant": label,
        "key": key,
        "numbers": job.numbers(judged),
        "curves": judged.beside,
        "losses": trained.course.losses,
        "seconds": trained.facts["seconds"],
        "steps": trained.facts["steps"],
    }
    return write_cell(folder, digest, json.dumps(cell, ensure_ascii=False, indent=1))


def train_on(
    job: AnyTask,
    config: RunConfig,
    training: TrainingConfig,
    work: Path,
    budget: Budget,
    listener: ProgressListener = SILENT,
    curve: Curve | None = set_aside_curve,
) -> OneTraining:
    """Plans and trains in the folder ``work``, from the last checkpoint there if there is one; ``curve`` as in ``fit``."""
    check_device(budget.device, must_exist=True)
    work.mkdir(parents=True, exist_ok=True)
    prepared = prepare(job, config, training, device=budget.device)
    decided = decide(prepared, budget, training)
    prepared, training, planned = decided.prepared, decided.training, decided.planned
    begun = (work / RESOLVED).is_file() and any((work / "checkpoints").glob("checkpoint-*"))
    trained = fit(prepared, planned, training, work, resume=begun, device=budget.device, listener=listener, curve=curve)
    return OneTraining(prepared, planned, trained)


def _key(job: AnyTask, config: RunConfig, training: TrainingConfig) -> Facts:
    """All that decides a cell, as JSON values; files by their content."""
    values = {name: value for name, value in asdict(config).items() if name not in ("data", "held_out", "progress")}
    for name in ("adapter", "base"):  # cells of before there were any are of the same settings
        if values[name] is None:
            del values[name]
    for name, paths in (("data", config.data), ("held_out", config.held_out)):
        values[name] = [content_of([Path(path)]) for path in paths]
    if Path(config.model).is_dir():
        values["weights"] = [content_of([path]) for path in sorted(Path(config.model).glob("*.safetensors"))]
    values = {"task": job.name, "version": __version__, "training": training.to_dict(), "config": values}
    return dict(json.loads(json.dumps(values, default=str)))


def _sections(
    report: Report,
    job: AnyTask,
    variants: Mapping[str, Variant],
    cells: Mapping[str, Sequence[Facts]],
    seeds: Sequence[int],
) -> None:
    """The table of scores, the differences to the baseline, their picture, the losses, and the task's own curves."""
    section = report.section("Comparison")
    baseline, names = next(iter(cells)), list(next(iter(cells.values()))[0]["numbers"])
    rows: list[list[Given]] = []
    gains: dict[str, Estimate] = {}
    for name, own in cells.items():
        scores = [student([cell["numbers"][one] for cell in own]) for one in names]
        rows.append([name, *scores, sum(cell["seconds"] for cell in own) / len(own)])
        if name != baseline:
            pairs = zip(own, cells[baseline], strict=True)
            gains[name] = student([one["numbers"][names[0]] - other["numbers"][names[0]] for one, other in pairs])
    columns: list[str | tuple[str, str]] = [
        "variant",
        *((one.replace("_", " "), "share") for one in names),
        ("training", "seconds"),
    ]
    section.table(
        columns, rows, note=f"Mean and 95 % t interval over {len(seeds)} seeds; all judged on the same examples."
    )
    title = f"{names[0].replace('_', ' ')} over {baseline}, paired by seed"
    clear = [[name, gain, "yes" if gain.low > 0 or gain.high < 0 else "no"] for name, gain in gains.items()]
    section.table(["variant", ("difference", "share"), "interval without 0"], clear, title=title)
    section.picture(Picture.bars(title, gains, value=("difference", "share"), rules={"no difference": 0.0}))
    described = [
        [name, ", ".join(map(str, one.remedies)) or "none", _text(one.config)] for name, one in variants.items()
    ]
    section.table(["variant", "remedies, the first innermost", "other changes"], described, title="The variants")
    losses = {name: dict(own[0]["losses"]) for name, own in cells.items()}
    section.picture(Picture.lines(f"Loss that is trained on, seed {seeds[0]}", losses, x="update", y="nats per label"))
    job.report_beside(report, {name: [cell["curves"] for cell in own] for name, own in cells.items()})


def _text(changes: Facts) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items()) or "none"
