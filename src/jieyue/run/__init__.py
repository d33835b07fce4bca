"""Whole jobs by task: ``plan``, ``train``, ``evaluate``, ``doctor``, ``compare``. Joins tasks, planning and transformers."""

from importlib import import_module
from typing import Any

_FACE = {
    "RunConfig": "jieyue.tasks.config",
    "TASKS": "jieyue.tasks.table",
    "TrainingConfig": "jieyue.run.config",
    "Variant": "jieyue.run.comparison",
    "compare": "jieyue.run.comparison",
    "doctor": "jieyue.run.jobs",
    "evaluate": "jieyue.run.jobs",
    "plan": "jieyue.run.jobs",
    "task": "jieyue.tasks.table",
    "train": "jieyue.run.jobs",
}

__all__ = [*_FACE]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'jieyue.run' has no attribute {name!r}; it has {', '.join(_FACE)}")
    return getattr(import_module(_FACE[name]), name)
