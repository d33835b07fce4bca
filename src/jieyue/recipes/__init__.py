"""Tasks. A recipe is five functions: how to read its files, make rows of them, train, answer and judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from jieyue.errors import InputError, message

__all__ = ["Recipe", "Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a recipe's frozen dataclass of settings can do beside naming them."""

    def head(self, default: str) -> str:
        """The model's head under these settings, of ``hf.loading.HEADS``; ``default`` is the recipe's own."""
        return default

    def fitted(self, positions: int) -> Self:
        """These settings, cut to a model of so many ``positions``; ``InputError`` where that leaves nothing to work with."""
        return self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """``InputError`` names what is not a setting of this recipe."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise InputError(message(cls.__name__, ", ".join(unknown), ", ".join(known)))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One task.

    ``head``: the model's, of ``hf.loading.HEADS``. ``settings``: its frozen dataclass, a ``Settings``.

    ``read(paths, *, skip_bad) -> (examples, findings)``; ``encode(examples, tokenizer, settings) -> (rows, counts)``, a row
    holding ``input_ids`` and ``labels``; ``objective(model, batch) -> Tally``;
    ``answer(model, tokenizer, examples, settings, ...) -> answers``; ``score(answers, examples, ...) -> facts``.
    ``example(settings, rows, positions)``: a batch of the widest shape, its values without meaning, for the planner.
    ``collate(rows, tokenizer, settings)``: rows as tensors; None = padded by ``data.batch.collate``.
    ``keeps_tokens``: ``encode`` takes a ``folder`` too, in which it leaves the tokens and finds them again.
    ``objective_of(settings)``: the objective, where settings choose among several; ``under`` puts it in its place.
    """

    name: str
    head: str
    settings: type[Settings]
    read: Callable[..., Any]
    encode: Callable[..., Any]
    objective: Callable[..., Any]
    answer: Callable[..., Any]
    score: Callable[..., Any]
    example: Callable[[Any, int, int], dict[str, Any]]
    collate: Callable[..., dict[str, Any]] | None = None
    objective_of: Callable[[Any], Callable[..., Any]] | None = None
    keeps_tokens: bool = False

    def under(self, settings: Any) -> Self:
        """The recipe as it is under these settings."""
        return self if self.objective_of is None else replace(self, objective=self.objective_of(settings))
