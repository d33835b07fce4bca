"""``train``: plan → train → evaluate → report, for a reader, under a budget. One call, one folder, every number in it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy

from jieyue import __version__
from jieyue.budget import Plan
from jieyue.data.batch import collate
from jieyue.data.curriculum import Curriculum
from jieyue.errors import InputError
from jieyue.hf.loading import save
from jieyue.hf.presets import PRESETS
from jieyue.hf.trainer import EffectiveBatchTrainer, Progress, Work, make_optimizer, training_arguments
from jieyue.machine import peak_resident_bytes
from jieyue.recipes import read as reading
from jieyue.report import write_whole
from jieyue.training.microbatch import MicroBatch

from .courses import Stage, num_positions, seconds_per_position, staged_batches, stages_of, updates_within
from .models import ModelSource, open_model
from .planned import Planned
from .sources import Sources, open_sources
from .watch import SILENT, Watch

__all__ = ["Course", "Materials", "Prepared", "Trained", "default_settings", "fit", "prepare", "store"]

RESOLVED = "training.json"  # the resolved settings of a run, for --resume
PRESET_CURRICULUM = "1:0.22,2:0.42"
CURVE_POINTS, CURVE_QUESTIONS = 8, 200


@dataclass(frozen=True, kw_only=True)
class Course:
    """How to train; every default is a real value, None means "decide for me" and the report says what was decided.

    At most one of ``steps``, ``epochs`` and ``seconds`` (none: two epochs). ``learning_rate``: None = 1e-3 for a preset,
    3e-5 for a checkpoint. ``curriculum``: as ``data.curriculum.Curriculum`` reads it, such as "1:0.22,2:0.42"; None = the
    preset's own, "none" = whole passages from the beginning. ``start``: how a preset's weights begin.
    """

    effective_batch: int = 32
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    seed: int = 0
    start: str = "orthogonal-copy"
    curriculum: str | None = None
    checkpointing: bool | None = None
    save_steps: int = 200

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "epochs", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)}: found {len(given)} lengths of training, expected one of them")
        for name in ("effective_batch", "steps", "epochs", "seconds", "learning_rate", "save_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name}={value}: expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What to train, and on what. ``model``: a preset, a folder or a hub name; ``data`` and ``held_out``: files, () = shipped.

    ``settings``: lengths of the rows, None = ``default_settings``. ``vocabulary``: a ``vocab.txt`` for a preset, None =
    learned from the data. ``questions``: at most so many. ``new_head``: a checkpoint may lack the masked-LM head.
    ``attention``: a pattern such as "local(64)+atrous(16)" in place of full self-attention.
    """

    model: str = "tiny"
    data: Sequence[str | Path] = ()
    held_out: Sequence[str | Path] = ()
    settings: reading.ReadSettings | None = None
    vocabulary: Path | None = None
    questions: int | None = None
    skip_bad: bool = False
    new_head: bool = False
    attention: str | None = None


@dataclass(frozen=True)
class Prepared:
    """All that is known before a weight is allocated: questions, tokenizer, rows, lengths, and the stages of the course."""

    sources: Sources
    model: ModelSource
    settings: reading.ReadSettings
    rows: list[dict[str, Any]]
    lengths: list[int]
    stages: list[Stage]
    counts: Mapping[str, int]

    def batch(self, numbers: Iterable[int]) -> dict[str, Any]:
        return collate([self.rows[number] for number in numbers], self.model.tokenizer.pad_token_id)

    def longest(self, count: int) -> dict[str, Any]:
        """``count`` rows as long as the longest, what memory must hold; as in training, some row has padding (and so a mask)."""
        batch = self.batch([self.lengths.index(max(self.lengths))] * count)
        batch["attention_mask"][1:, -1] = 0
        return batch


@dataclass(frozen=True)
class Trained:
    """A trained model and what training it took."""

    trainer: EffectiveBatchTrainer
    losses: list[tuple[int, float]]
    curve: list[tuple[int, float]]
    facts: dict[str, Any]


def prepare(materials: Materials, course: Course) -> Prepared:
    """Reads, checks and encodes; no weight is allocated."""
    data, seed = materials.data, course.seed
    sources = open_sources(
        data, materials.held_out, questions=materials.questions, seed=seed, skip_bad=materials.skip_bad
    )
    source = open_model(
        materials.model,
        sources.train,
        vocabulary=materials.vocabulary,
        start=course.start,
        seed=seed,
        new_head=materials.new_head,
        attention=materials.attention,
    )
    settings = materials.settings or default_settings(materials.model, bool(data), seed)
    settings = settings.fitted(source.positions)
    rows: list[dict[str, Any]] = []
    stages: list[Stage] = []
    counts: Mapping[str, int] = {}
    for until, questions in stages_of(_curriculum(course, source.is_preset), sources.train, seed):
        own, counts = reading.encode(
            questions, source.tokenizer, settings
        )  # the last stage's counts: all questions, uncut
        if not own:
            raise InputError(f"{sources.name}: encoding gave no training row; counted {dict(counts)}")
        stages.append(Stage(until, len(rows), len(rows) + len(own)))
        rows += own
    return Prepared(sources, source, settings, rows, [len(row["input_ids"]) for row in rows], stages, counts)


def default_settings(model: str, own_data: bool, seed: int = 0) -> reading.ReadSettings:
    """The article's lengths; for a preset on the corpus that ships, ones that fit its short answers and passages."""
    if model in PRESETS and not own_data:
        return reading.ReadSettings(
            answer_slots=10, question_tokens=32, window_tokens=192, overlap_tokens=48, seed=seed
        )
    return reading.ReadSettings(seed=seed)


def fit(
    prepared: Prepared,
    planned: Planned,
    course: Course,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    watch: Watch = SILENT,
) -> Trained:
    """Trains as planned and writes checkpoints under ``folder/checkpoints``; Ctrl-C leaves one that ``resume`` continues."""
    model = prepared.model.build()
    micro = MicroBatch(planned.plan, mask="attention_mask")
    arguments = _arguments(prepared, course, folder, 1, device)
    resolved = folder / RESOLVED
    if resume and not resolved.is_file():
        raise InputError(f"resume: no {RESOLVED} in {folder}; expected the folder of an interrupted run")
    batches = _batches(
        prepared, course, planned.plan, model, arguments, json.loads(resolved.read_text()) if resume else None
    )
    _resolve(resolved, course, prepared, len(batches), resume)
    arguments = _arguments(prepared, course, folder, len(batches), device)
    losses: list[tuple[int, float]] = []
    curve: list[tuple[int, float]] = []
    started, tokens = time.perf_counter(), sum(prepared.lengths[number] for batch in batches for number in batch)
    with watch.progress("training") as update:

        def progressed(state: Progress) -> None:
            losses.append((state.step, state.loss))
            facts = {
                "loss": state.loss,
                "tokens_per_second": state.tokens_per_second,
                "remaining_seconds": state.remaining_seconds,
            }
            update(state.step, state.steps, facts)
            if state.step % max(1, state.steps // CURVE_POINTS) == 0:
                curve.append((state.step, _exact_match(trainer.model, prepared)))

        work = Work(
            objective=reading.objective,
            rows=prepared.rows,
            collate=lambda rows: collate(rows, prepared.model.tokenizer.pad_token_id),
            batches=[batch.tolist() for batch in batches],
            micro_batch=micro,
        )
        trainer = EffectiveBatchTrainer(model, arguments, work, progress=progressed)
        trainer.train(resume_from_checkpoint=resume)
    facts = {
        "steps": len(batches),
        "rows": sum(len(batch) for batch in batches),
        "tokens": tokens,
        "seconds": time.perf_counter() - started,
        "process_peak_bytes": peak_resident_bytes(),
        "micro_batch": micro.rows,
        "halvings": micro.halvings,
        "learning_rate": arguments.learning_rate,
    }
    return Trained(trainer, losses, curve, facts)


def store(trained: Trained, prepared: Prepared, folder: Path, record: Mapping[str, Any]) -> None:
    """The trained model as a plain transformers folder, with what jieyue needs to read with it."""
    contents = {"recipe": "read", "version": __version__, "settings": prepared.settings.to_dict(), **record}
    save(trained.trainer.model, prepared.model.tokenizer, folder, contents)


def _arguments(prepared: Prepared, course: Course, folder: Path, steps: int, device: str) -> Any:
    preset = prepared.model.is_preset
    warmup = course.warmup_steps if course.warmup_steps is not None else min(100, max(1, steps // 10))
    options: dict[str, Any] = {
        "learning_rate": course.learning_rate or (1e-3 if preset else 3e-5),
        "warmup_steps": warmup,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "save_steps": course.save_steps,
        "seed": course.seed,
    }
    if preset:  # constant until half time, then falling; a young model forgets its second moments sooner
        decay = steps // 2
        options |= {"adam_beta2": 0.98, "lr_scheduler_type": "warmup_stable_decay"}
        options["lr_scheduler_kwargs"] = {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": 0.02}
    return training_arguments(folder / "checkpoints", steps=steps, device=device, **options)


def _batches(
    prepared: Prepared, course: Course, plan: Plan, model: Any, arguments: Any, resolved: Mapping[str, Any] | None
) -> list[numpy.ndarray]:
    """The whole course of training, decided here; a resumed run takes the number of updates that was decided first."""

    def batches(steps: int) -> list[numpy.ndarray]:
        return staged_batches(prepared.lengths, prepared.stages, plan.effective_batch, steps=steps, seed=course.seed)

    if resolved is not None:
        return batches(resolved["steps"])
    if course.steps is not None:
        return batches(course.steps)
    if course.seconds is not None:
        tried = [prepared.batch(batch) for batch in batches(400)[40::60]]
        micro = MicroBatch(plan, mask="attention_mask")
        rate = seconds_per_position(
            model, lambda twin: make_optimizer(twin, arguments), reading.objective, tried, micro
        )
        return batches(
            updates_within(
                course.seconds, lambda steps: rate * num_positions(prepared.lengths, batches(steps), plan.micro_batch)
            )
        )
    rows = prepared.stages[-1].stop - prepared.stages[-1].first
    return batches(max(1, round((course.epochs or 2.0) * rows / plan.effective_batch)))


def _curriculum(course: Course, is_preset: bool) -> Curriculum:
    """A preset's own curriculum, a given one, or none: checkpoints need none."""
    if course.curriculum is None:
        return Curriculum.parse(PRESET_CURRICULUM) if is_preset else Curriculum()
    return Curriculum.parse(course.curriculum)


def _resolve(path: Path, course: Course, prepared: Prepared, steps: int, resume: bool) -> None:
    """Writes what was decided, or compares it with what the interrupted run had decided."""
    values = {"version": __version__, "model": prepared.model.name, "data": prepared.sources.name, "steps": steps}
    values |= {"course": asdict(course), "settings": prepared.settings.to_dict(), "rows": len(prepared.rows)}
    values = json.loads(json.dumps(values))
    if not resume:
        write_whole(path, json.dumps(values, ensure_ascii=False, indent=1) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name in values if name not in ("version", "steps") and before.get(name) != values[name]]
    if other:
        name = other[0]
        raise InputError(
            f"resume: {name} is {values[name]!r}, but the interrupted run had {before.get(name)!r}; expected the same"
        )


def _exact_match(model: Any, prepared: Prepared) -> float:
    asked = prepared.sources.calibration[:CURVE_QUESTIONS]
    answers = reading.answer(model, prepared.model.tokenizer, asked, prepared.settings)
    return float(reading.score(answers, asked)["exact_match"])
