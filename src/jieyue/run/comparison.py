"""The same training in several variants and with several seeds, side by side with intervals: no claim from a single run.

Every cell (variant, seed) is trained from the same beginning, judged on the same examples, and kept as one JSON file; an
interrupted comparison goes on where it stopped, a cell whose settings or data have changed is trained anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from jieyue import __version__
from jieyue.budget import Budget
from jieyue.errors import InputError
from jieyue.machine import describe
from jieyue.metrics.intervals import student
from jieyue.report import Picture, Report, write_whole
from jieyue.training.remedies.remedy import Remedy

from .planned import Planned, plan_for
from .story import tell_settings
from .tasks import Task, task
from .training import RESOLVED, Trained, fit, prepare
from .values import Course, Materials, Prepared
from .watch import SILENT, Watch

__all__ = ["Arm", "Variant", "compare", "train_on"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one row of a comparison changes: the remedies, and fields of ``Materials`` (such as another model)."""

    remedies: tuple[Remedy, ...] = ()
    materials: Mapping[str, Any] = field(default_factory=dict)


class Arm(NamedTuple):
    """One training of a comparison; ``resumed``: it went on from a checkpoint, so its seconds are not the whole's."""

    prepared: Prepared
    planned: Planned
    trained: Trained
    resumed: bool


def compare(
    recipe: str,
    variants: Mapping[str, Variant],
    materials: Materials = Materials(),
    out: str | Path = "runs/comparison",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    course: Course = Course(),
    budget: str | Budget = "4GiB",
    watch: Watch = SILENT,
) -> Report:
    """Trains and judges every variant with every seed; the first variant is the baseline that the others are held against.

    The report has mean and 95 % t interval over the seeds of every score, the paired difference to the baseline (same seed),
    seconds, and the recipe's own curves. ``out``: ``cells/*.json``, ``report.html``, ``report.json``; a cell that is there is
    not run again. ``materials``, ``course`` and ``budget`` as in ``train``, ``watch`` is told how it goes. Fewer than two variants or
    two different seeds: ``InputError``.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or len(variants) < 2:
        raise InputError(
            f"compare: found {len(variants)} variants and seeds {list(seeds)}, expected at least two of each, all different"
        )
    job, folder, allowed = task(recipe), Path(out), Budget.parse(budget)
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for number, seed in enumerate(seeds):
        for name, variant in variants.items():
            own = replace(course, seed=seed, remedies=variant.remedies)
            watch.say(f"seed {seed} ({number + 1} of {len(seeds)}): {name}")
            cells[name].append(_cell(job, name, replace(materials, **variant.materials), own, folder, allowed, watch))
    report = Report(f"Comparison · {job.title.lower()} · {materials.model}")
    _tell(report, job, variants, cells, seeds)
    resolved = {name: value for name, value in course.to_dict().items() if name not in ("seed", "remedies")}
    tell_settings(
        report, {**resolved, "model": materials.model, "data": ", ".join(map(str, materials.data))}, describe()
    )
    report.save(folder)
    return report


def _cell(
    job: Task, name: str, materials: Materials, course: Course, folder: Path, budget: Budget, watch: Watch
) -> dict[str, Any]:
    """One variant with one seed: read from its file where that is of the same settings, else trained and written."""
    key = _key(job, materials, course)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "cells" / f"{digest}.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    work = folder / "work" / digest
    started = time.perf_counter()
    prepared, _, trained, resumed = train_on(job, materials, course, work, budget, watch)
    seconds = trained.facts["seconds"] if not resumed else time.perf_counter() - started
    model = trained.trainer.model
    settings, _ = job.fitted(prepared, model)
    judged = job.judge(model, prepared.model.tokenizer, prepared.sources, settings, watch=watch)
    cell = {
        "variant": name,
        "key": key,
        "numbers": job.numbers(judged),
        "curves": job.curves(judged),
        "losses": trained.losses,
        "seconds": seconds,
        "resumed": resumed,
        "steps": trained.facts["steps"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(cell, ensure_ascii=False, indent=1) + "\n")
    shutil.rmtree(work)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def train_on(job: Task, materials: Materials, course: Course, work: Path, budget: Budget, watch: Watch = SILENT) -> Arm:
    """Plans and trains in the folder ``work``, from the last checkpoint there if there is one."""
    work.mkdir(parents=True, exist_ok=True)
    prepared = prepare(job, materials, course, device=budget.device)
    planned = plan_for(prepared, budget, course)
    begun = (work / RESOLVED).is_file() and any((work / "checkpoints").glob("checkpoint-*"))
    trained = fit(prepared, planned, course, work, resume=begun, device=budget.device, watch=watch)
    return Arm(prepared, planned, trained, begun)


def _key(job: Task, materials: Materials, course: Course) -> dict[str, Any]:
    """All that decides a cell, as JSON values; files by their content."""
    values = {name: value for name, value in asdict(materials).items() if name not in ("data", "held_out")}
    for name in ("data", "held_out"):
        values[name] = [_content(Path(path)) for path in getattr(materials, name)]
    if Path(materials.model).is_dir():
        values["weights"] = [_content(path) for path in sorted(Path(materials.model).glob("*.safetensors"))]
    values = {"recipe": job.recipe.name, "version": __version__, "course": course.to_dict(), "materials": values}
    return dict(json.loads(json.dumps(values, default=str)))


def _content(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _tell(
    report: Report,
    job: Task,
    variants: Mapping[str, Variant],
    cells: Mapping[str, Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
) -> None:
    """The table of scores, the differences to the baseline, their picture, the losses, and the recipe's own curves."""
    section = report.section("Comparison")
    baseline, names = next(iter(cells)), list(next(iter(cells.values()))[0]["numbers"])
    rows: list[list[Any]] = []
    gains: dict[str, Any] = {}
    for name, own in cells.items():
        scores = [student([cell["numbers"][one] for cell in own]) for one in names]
        seconds = sum(cell["seconds"] for cell in own if not cell["resumed"]) / max(
            1, sum(not c["resumed"] for c in own)
        )
        rows.append([name, *scores, seconds])
        if name != baseline:
            pairs = zip(own, cells[baseline], strict=True)
            gains[name] = student([one["numbers"][names[0]] - other["numbers"][names[0]] for one, other in pairs])
    columns: list[Any] = ["variant", *((one.replace("_", " "), "share") for one in names), ("training", "seconds")]
    section.table(
        columns, rows, note=f"Mean and 95 % t interval over {len(seeds)} seeds; all judged on the same examples."
    )
    title = f"{names[0].replace('_', ' ')} over {baseline}, paired by seed"
    clear = [[name, gain, "yes" if gain.low > 0 or gain.high < 0 else "no"] for name, gain in gains.items()]
    section.table(["variant", ("difference", "share"), "interval without 0"], clear, title=title)
    section.picture(Picture.bars(title, gains, value=("difference", "share"), rules={"no difference": 0.0}))
    described = [
        [name, ", ".join(map(str, one.remedies)) or "none", _text(one.materials)] for name, one in variants.items()
    ]
    section.table(["variant", "remedies, the first innermost", "other changes"], described, title="The variants")
    losses = {name: dict(own[0]["losses"]) for name, own in cells.items()}
    section.picture(Picture.lines(f"Loss that is trained on, seed {seeds[0]}", losses, x="update", y="nats per label"))
    if job.tell_curves is not None:
        job.tell_curves(report, {name: [cell["curves"] for cell in own] for name, own in cells.items()})


def _text(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items()) or "none"
