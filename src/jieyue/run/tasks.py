"""What a run must know of a recipe beyond its five functions: where examples come from, how its quality is judged and told.

One file (or folder) of this room a recipe: ``reading``, … Each defines ``TASK``; ``TASKS`` names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, cast

from jieyue.errors import InputError, message
from jieyue.recipes import Recipe
from jieyue.report import Report

from .models import ModelSource, open_model
from .values import Course, Materials, Prepared, Sources

__all__ = ["TASKS", "Card", "Curve", "Task", "task"]

TASKS = {
    "read": "jieyue.run.reading",
    "classify": "jieyue.run.classifying",
    "mlm": "jieyue.run.masking",
    "title": "jieyue.run.title",
    "chat": "jieyue.run.talking",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says of any model of this recipe: Python code that uses the folder, limits, tags."""

    usage: Callable[[str], str]
    limits: str
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What is measured now and then while training: ``measure(model, prepared)`` on examples that were set aside."""

    title: str
    quantity: str
    unit: str
    measure: Callable[[Any, Prepared], float]


def _as_they_are(course: Course, is_preset: bool, examples: Sequence[Any]) -> list[tuple[float, Sequence[Any]]]:
    return [(1.0, examples)]


def _nothing_to_fit(prepared: Prepared, model: Any) -> tuple[Any, dict[str, Any]]:
    return prepared.settings, {}


def _no_numbers(judged: Any) -> dict[str, float]:
    return {}


def _settled(settings: Any, examples: Sequence[Any]) -> Any:
    return settings


def _nothing_more(settings: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One recipe as a run sees it.

    ``noun``: what its examples are ("questions"). ``open_sources(materials, seed)`` reads everything;
    ``check(materials)`` gives (examples, findings by file, what training and held-out share) without holding any out.
    ``texts``: what a preset's vocabulary is learned from. ``settings(materials, seed)``: the defaults for these materials.
    ``stages(course, is_preset, examples)``: (share of the updates at which it ends, its examples), the last one whole.
    ``fitted(prepared, model)``: settings that need a trained model (a temperature), and facts about them.
    ``judge(model, tokenizer, sources, settings, batch_size, watch)`` answers the held-out examples;
    ``tell(report, judged, facts)`` writes its scores, examples and speed into the report; ``shown``: these sections, and
    the memory, are what the command line prints; ``numbers(judged)``: its scores by name, the first the one that decides, which
    ``compare`` lays side by side; ``curves(judged)``: more facts (JSON values) that ``tell_curves(report, {variant: [one a
    seed]})`` draws. ``read_judged(files, skip_bad, settings)``: examples to judge by, as ``Sources``.
    ``resolved(settings, examples)``: settings that the training examples decide (a label set); ``config(settings)``: what
    they say in the model's configuration. ``new_heads``: heads that a checkpoint is not expected to have before training.
    """

    recipe: Recipe
    title: str
    noun: str
    open_sources: Callable[[Materials, int], Sources]
    check: Callable[[Materials], tuple[Sequence[Any], dict[str, Any], Mapping[str, int]]]
    texts: Callable[[Sequence[Any]], list[str]]
    settings: Callable[[Materials, int], Any]
    judge: Callable[..., Any]
    tell: Callable[[Report, Any, Mapping[str, Any]], None]
    read_judged: Callable[..., Sources]
    card: Card
    curve: Curve | None = None
    stages: Callable[[Course, bool, Sequence[Any]], list[tuple[float, Sequence[Any]]]] = _as_they_are
    fitted: Callable[[Prepared, Any], tuple[Any, dict[str, Any]]] = _nothing_to_fit
    shown: tuple[str, ...] = ("Quality",)
    open_model: Callable[..., ModelSource] = open_model
    numbers: Callable[[Any], dict[str, float]] = _no_numbers
    curves: Callable[[Any], dict[str, Any]] = _no_numbers
    tell_curves: Callable[[Report, Mapping[str, Sequence[Mapping[str, Any]]]], None] | None = None
    resolved: Callable[[Any, Sequence[Any]], Any] = _settled
    config: Callable[[Any], dict[str, Any]] = _nothing_more
    new_heads: tuple[str, ...] = ()


def task(name: str) -> Task:
    """The task of that recipe, or of a Python file that defines ``TASK``; ``InputError`` lists the known names."""
    if name in TASKS:
        return cast(Task, import_module(TASKS[name]).TASK)
    if not (name.endswith(".py") and Path(name).is_file()):
        raise InputError(message("recipe", repr(name), f"one of {', '.join(TASKS)}, or the path of a .py file"))
    spec = spec_from_file_location(Path(name).stem, name)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, "TASK", None)
    if not isinstance(found, Task):
        raise InputError(message(f"recipe {name!r}", "no TASK in it", "TASK = Task(recipe=..., ...)"))
    return found
