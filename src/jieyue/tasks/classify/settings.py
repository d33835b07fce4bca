"""What can be chosen of a classifier."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from jieyue.data.label_kinds import check_kind
from jieyue.errors import InputError, check_least
from jieyue.json_values import Facts
from jieyue.options import option
from jieyue.tasks.settings import DELIMITER, PackedSettings

__all__ = ["ClassifySettings", "per_label"]


@dataclass(frozen=True, kw_only=True)
class ClassifySettings(PackedSettings):
    """``max_tokens``: of a row, special tokens included. ``labels``: all of them, in order; () until the data are read.

    ``text_column``, ``label_column``, ``pair_column``: names or numbers (``data.labelled.Columns``), None = found by name.
    ``problem``: of ``data.label_kinds.KINDS``, "auto" until the data are read; ``label_separator`` parts a column of several labels.
    ``class_weights``: "balanced" or "a=2,b=1", and ``weights`` by label, in order, once the labels are known; ``thresholds``: the
    probability from which a label of several is told, 0.5 or "a=0.3,b=0.6"; None = fitted on the examples set aside.
    """

    max_tokens: int = option(128, "Tokens of a row, special ones included.")
    labels: tuple[str, ...] = ()
    text_column: str | None = option(None, "The text's column: a name, or a number from 1.")
    label_column: str | None = option(None, "The label's column: a name or a number.")
    pair_column: str | None = option(None, "A second text's column: a name or a number.")
    delimiter: str | None = option(None, DELIMITER)
    problem: str = option("auto", "single-label, multi-label or regression. Default: told from the labels.")
    label_separator: str | None = option(None, "What parts the labels of a multi-label column, such as '|'.")
    class_weights: str | None = option(
        None, "balanced, or label=weight,…: how much a label's examples weigh. Default: alike."
    )
    thresholds: str | None = option(
        None,
        "Multi-label: the probability from which a label is told, 0.3 or label=0.3,…. Default: fitted on examples set aside.",
    )
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(4, max_tokens=self.max_tokens)
        check_kind(self.problem)
        if self.label_separator is not None and self.problem == "auto":
            object.__setattr__(self, "problem", "multi-label")
        if self.label_separator is not None and (self.problem != "multi-label" or not self.label_separator.strip()):
            found = f"{self.label_separator!r} with problem={self.problem}"
            raise InputError("label_separator", found, "characters, and --problem multi-label")
        if self.class_weights is not None and self.problem == "regression":
            raise InputError("class_weights", "labels that are numbers (regression)", "none")
        if self.thresholds is not None and self.problem in ("single-label", "regression"):
            raise InputError("thresholds", f"problem={self.problem}", "multi-label, or none")
        if self.labels and self.thresholds is not None:
            self.threshold_of_each()

    def threshold_of_each(self) -> list[float]:
        """The thresholds, in the order of ``labels``."""
        found = per_label("thresholds", self.thresholds or "0.5", self.labels, 0.5)
        if not all(0 < one < 1 for one in found):
            raise InputError("thresholds", str(self.thresholds), "probabilities between 0 and 1")
        return found

    def fitted(self, positions: int) -> Self:
        """These settings with shorter rows where the model has fewer ``positions``."""
        return replace(self, max_tokens=min(self.max_tokens, positions))

    def to_dict(self) -> Facts:
        return super().to_dict() | {"labels": list(self.labels), "weights": list(self.weights)}

    @classmethod
    def from_dict(cls, values: Facts) -> Self:
        """As ``to_dict`` gave them; a folder from before there were several kinds is single-label."""
        own = {"problem": "single-label" if values.get("labels") else "auto", **values}
        lists = {name: tuple(values.get(name, ())) for name in ("labels", "weights")}
        return super().from_dict({**own, **lists})


def per_label(name: str, text: str, labels: Sequence[str], default: float) -> list[float]:
    """``0.3`` for all, ``a=0.3,b=1`` or a JSON object for some: a number for each label, ``default`` where none is named.

    >>> per_label("thresholds", "b=2", ["a", "b"], 1.0)
    [1.0, 2.0]
    """
    expected = "label=number,label=number, or a JSON object where labels have commas"
    try:
        if text.lstrip().startswith("{"):
            found = {str(label): float(value) for label, value in json.loads(text).items()}
        elif "=" not in text:
            return [_positive(float(text))] * len(labels)
        else:
            parts = [part.rpartition("=") for part in text.split(",")]
            found = {label.strip(): float(value) for label, _, value in parts}
            if len(found) != len(parts):
                raise ValueError("a label twice")
        found = {label: _positive(value) for label, value in found.items()}
    except (ValueError, TypeError) as error:
        raise InputError(name, f"{text!r:.60} ({error})", expected) from None
    unknown = sorted(set(found) - set(labels))
    if unknown:
        raise InputError(name, f"labels that the data lack: {', '.join(unknown)[:80]}", ", ".join(labels)[:80])
    return [found.get(label, default) for label in labels]


def _positive(value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{value} is no positive number")
    return value
