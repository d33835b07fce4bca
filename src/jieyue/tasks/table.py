"""The tasks by name, and tasks in files of one's own."""

from __future__ import annotations

from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from jieyue.errors import InputError

from . import Task

__all__ = ["TASKS", "AnyTask", "task"]

TASKS = {
    "read": "jieyue.tasks.read.task",
    "classify": "jieyue.tasks.classify.task",
    "tag": "jieyue.tasks.tag.task",
    "mlm": "jieyue.tasks.mlm.task",
    "title": "jieyue.tasks.title.task",
    "chat": "jieyue.tasks.chat.task",
    "sparsify": "jieyue.tasks.sparsify.task",
}

AnyTask = Task[Any, Any, Any]
"""A task of examples, settings and answers that only it knows."""


def task(name: str) -> AnyTask:
    """The task of that name, or of a Python file that defines ``TASK``; ``InputError`` lists the known names."""
    if name in TASKS:
        module = import_module(TASKS[name])
    elif name.endswith(".py") and Path(name).is_file():
        spec = spec_from_file_location(Path(name).stem, name)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        raise InputError("task", repr(name), f"one of {', '.join(TASKS)}, or the path of a .py file")
    found = getattr(module, "TASK", None)
    if not isinstance(found, Task):
        raise InputError(f"task {name!r}", "no TASK in it", "TASK = MyTask(), of a subclass of jieyue.tasks.Task")
    return found
