"""Tasks. A recipe is five functions: how to read its files, make rows of them, train, answer and judge."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jieyue.errors import InputError, message

__all__ = ["RECIPES", "Recipe", "recipe"]

RECIPES = {"read": "jieyue.recipes.read"}


@dataclass(frozen=True)
class Recipe:
    """One task.

    ``read(paths, *, skip_bad) -> (examples, findings)``; ``encode(examples, tokenizer, settings) -> (rows, counts)``;
    ``objective(model, batch) -> Tally``; ``answer(model, tokenizer, examples, settings, ...) -> answers``;
    ``score(answers, examples, ...) -> facts``.
    """

    read: Callable[..., Any]
    encode: Callable[..., Any]
    objective: Callable[..., Any]
    answer: Callable[..., Any]
    score: Callable[..., Any]


def recipe(name: str) -> Recipe:
    """The recipe of that name, or of a Python file that defines ``RECIPE``. ``InputError`` lists the known names."""
    if name in RECIPES:
        module = importlib.import_module(RECIPES[name])
    elif name.endswith(".py") and Path(name).is_file():
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        raise InputError(message("recipe", repr(name), f"one of {', '.join(RECIPES)}, or the path of a .py file"))
    found = getattr(module, "RECIPE", None)
    if not isinstance(found, Recipe):
        raise InputError(
            message(f"recipe {name!r}", "no RECIPE in it", "RECIPE = Recipe(read, encode, objective, ...)")
        )
    return found
