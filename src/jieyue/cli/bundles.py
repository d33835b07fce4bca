"""Bundles: flags that several verbs share, as one value. A verb takes a bundle; on the command line its fields are flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from typing import Any, get_type_hints

from jieyue.budget import parse_seconds
from jieyue.errors import InputError, message

from .options import (
    AsJson,
    Attention,
    BudgetText,
    Checkpointing,
    Device,
    Dtype,
    EffectiveBatch,
    Epochs,
    LabelColumn,
    LearningRate,
    MaxTokens,
    NewHead,
    Optimizer,
    PairColumn,
    Resume,
    SaveSteps,
    Seed,
    Share,
    SkipBad,
    Steps,
    TextColumn,
    Time,
    Unshare,
    UnshareAfter,
    Vocabulary,
    WholeWords,
)

__all__ = ["Backbone", "Columns", "Hidden", "Lengths", "Planning", "Running", "Training", "spread"]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long to train, and in what steps."""

    effective_batch: EffectiveBatch = 32
    steps: Steps = None
    epochs: Epochs = None
    time: Time = None
    learning_rate: LearningRate = None
    save_steps: SaveSteps = 200
    checkpointing: Checkpointing = None
    optimizer: Optimizer = "adamw"
    dtype: Dtype = "float32"

    def course(self, **more: Any) -> Any:
        """The ``Course`` of these flags; ``more``: its other fields."""
        from jieyue import run

        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "time"}
        return run.Course(**given, seconds=None if self.time is None else parse_seconds(self.time, "time"), **more)


@dataclass(frozen=True, kw_only=True)
class Training(Lengths):
    """``Lengths`` of one training."""

    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Running:
    """Where a training runs and how it is told."""

    budget: BudgetText = "4GiB"
    device: Device = "cpu"
    resume: Resume = False
    as_json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class Planning:
    """What a plan is for."""

    budget: BudgetText = "4GiB"
    effective_batch: EffectiveBatch = 32
    seed: Seed = 0
    checkpointing: Checkpointing = None
    optimizer: Optimizer = "adamw"
    dtype: Dtype = "float32"
    device: Device = "cpu"
    as_json: AsJson = False

    def course(self, **more: Any) -> Any:
        """The ``Course`` of these flags; ``more``: its other fields."""
        from jieyue import run

        names = ("effective_batch", "seed", "checkpointing", "optimizer", "dtype")
        return run.Course(**{name: getattr(self, name) for name in names}, **more)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """What becomes of the model before it is trained, and of broken records."""

    vocabulary: Vocabulary = None
    skip_bad: SkipBad = False
    new_head: NewHead = False
    attention: Attention = None
    unshare: Unshare = None
    unshare_after: UnshareAfter = 0

    def materials(self, **more: Any) -> Any:
        """The ``Materials`` of these flags; ``more``: its other fields, a list that was not given as None."""
        from jieyue import run

        given = {field.name: getattr(self, field.name) for field in fields(self)} | {"unshare": _blocks(self.unshare)}
        files = {name: more[name] or () for name in ("data", "held_out")}
        return run.Materials(**(given | more | files))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a classifier finds text and label."""

    max_tokens: MaxTokens = 128
    text_column: TextColumn = None
    label_column: LabelColumn = None
    pair_column: PairColumn = None

    def settings(self) -> Any:
        """``ClassifySettings`` of these flags."""
        from jieyue.recipes.classify import ClassifySettings

        return ClassifySettings(**vars(self))


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """What of a row is hidden from a masked language model."""

    max_tokens: MaxTokens = 128
    share: Share = 0.15
    whole_words: WholeWords = False

    def settings(self, **more: Any) -> Any:
        """``MaskSettings`` of these flags; ``more``: its other fields."""
        from jieyue.recipes.mlm import MaskSettings

        return MaskSettings(**vars(self), **more)


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as Typer is to read it: a parameter whose type is a bundle becomes the bundle's flags.

    The parameter's default is a bundle too, and gives the flags their defaults.
    """
    hints = get_type_hints(verb, include_extras=True)
    bundles: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(verb).parameters.values():
        if not is_dataclass(hints[own.name]):
            parameters.append(own.replace(annotation=hints[own.name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        bundles[own.name] = own.default
        flags = get_type_hints(hints[own.name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(own.default, field.name),
                annotation=flags[field.name],
            )
            for field in fields(hints[own.name])
        ]

    @wraps(verb)
    def called(**given: Any) -> None:
        filled = {
            name: replace(bundle, **{field.name: given.pop(field.name) for field in fields(bundle)})
            for name, bundle in bundles.items()
        }
        verb(**given, **filled)

    del called.__wrapped__  # signature() would read the verb's own
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called


def _blocks(text: str | None) -> int | None:
    """``--unshare``: a number of blocks; 0 for "all", a block for each layer; None = not asked for."""
    if text is None:
        return None
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise InputError(message("--unshare", repr(text), "a number of blocks, or all"))
    return int(text)
