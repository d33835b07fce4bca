"""The three kinds of labels: what each trains, answers, and is judged by.

  single-label   Σ −w_y·log softmax(logits)[y]  over  Σ w_y                              cross entropy, weighted by the label
  multi-label    Σ −w_c·y_c·log σ(z_c) − (1 − y_c)·log(1 − σ(z_c))  over  rows × labels  binary cross entropy; w is torch's pos_weight
  regression     Σ (z − y)²  over  rows                                                  squared error

Weights belong to labels, and totals and weights are sums over rows: so pieces add up to the whole batch exactly.
"Balanced" weighs a label by n / (k·n_c), as scikit-learn does; multi-label by the texts without it over those with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jieyue.data.labelled import Labelled
from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.metrics.multilabel import score_sets
from jieyue.metrics.regression import score_numbers
from jieyue.tally import Tally
from jieyue.training.objective import IGNORED, Objective, token_loss

from .settings import ClassifySettings, per_label

__all__ = [
    "Choice",
    "Choices",
    "Estimated",
    "label_loss",
    "label_set",
    "label_weights",
    "objective_of",
    "scores_beside",
]


@dataclass(frozen=True, slots=True)
class Choice:
    """The likeliest label, its probability, and the others with theirs, likeliest first."""

    label: str
    confidence: float
    rivals: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Choices:
    """The labels above their thresholds; all labels with their probabilities, likeliest first; ``confidence``: the probability of
    exactly this set, where labels do not depend on one another."""

    labels: tuple[str, ...]
    confidence: float
    shares: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, shares: Sequence[float], labels: Sequence[str], thresholds: Sequence[float]) -> Choices:
        """Of each label's probability."""
        told = [share >= least for share, least in zip(shares, thresholds, strict=True)]
        sure = math.prod(share if own else 1 - share for share, own in zip(shares, told, strict=True))
        ranked = sorted(zip(labels, shares, strict=True), key=lambda one: -one[1])
        return cls(tuple(label for label, own in zip(labels, told, strict=True) if own), sure, tuple(ranked))


@dataclass(frozen=True, slots=True)
class Estimated:
    """A number; a model states no confidence in it."""

    value: float


def label_set(examples: Sequence[Labelled]) -> tuple[str, ...]:
    """The labels that occur, in order; whole numbers in the order of their values. ``InputError`` where there is one only."""
    names = {name for one in examples for name in one.names}
    if len(names) < 2:
        raise InputError("labels", ", ".join(names) or "none", "two different ones or more")
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def label_weights(settings: ClassifySettings, examples: Sequence[Labelled]) -> tuple[float, ...]:
    """What each of ``settings.labels`` weighs; () where all weigh alike."""
    asked = settings.class_weights
    if asked is None:
        return ()
    if asked.strip() != "balanced":
        return tuple(per_label("class_weights", asked, settings.labels, 1.0))
    counts = Counter(name for one in examples for name in one.names)
    known = sum(one.is_known for one in examples)
    missing = [name for name in settings.labels if not counts[name]]
    if missing:
        found = f"no training example of {', '.join(missing)[:60]}"
        raise InputError("class_weights=balanced", found, "some of every label")
    if settings.problem == "multi-label":
        return tuple(max(1, known - counts[name]) / counts[name] for name in settings.labels)
    return tuple(known / (len(settings.labels) * counts[name]) for name in settings.labels)


def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits.float() if logits.dtype.itemsize < 4 else logits


def label_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p(label) over the rows, and their number. ``labels`` [B, 1]."""
    return token_loss(_logits(model, batch), batch["labels"][:, 0])


def number_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of squared errors over the rows, and their number. ``labels`` [B, 1] of floats."""
    error = _logits(model, batch)[:, 0] - batch["labels"][:, 0]
    return Tally((error * error).sum(), error.shape[0])


@dataclass(frozen=True)
class WeightedLoss:
    """``label_loss``, a row weighing what its label does; total and weight are those of torch's weighted mean."""

    weights: tuple[float, ...]

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
        logits, labels = _logits(model, batch), batch["labels"][:, 0]
        weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)
        total = nn.functional.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction="sum")
        return Tally(total, weights[labels[labels != IGNORED]].sum())


@dataclass(frozen=True)
class SetLoss:
    """Binary cross entropy of each label. ``labels`` [B, C] of 0 and 1, ``IGNORED`` where nothing is asked."""

    weights: tuple[float, ...] = ()

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
        logits, labels = _logits(model, batch), batch["labels"]
        weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device) if self.weights else None
        counted = labels != IGNORED
        target = labels.clamp(min=0).to(logits.dtype)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
        return Tally((losses * counted).sum(), counted.sum())


def objective_of(settings: ClassifySettings) -> Objective:
    """What is trained under these settings."""
    if settings.problem == "regression":
        return number_loss
    if settings.problem == "multi-label":
        return SetLoss(settings.weights)
    return WeightedLoss(settings.weights) if settings.weights else label_loss


def scores_beside(memory: Facts, golds: Sequence[Labelled]) -> dict[str, Facts]:
    """The baselines of several labels (the most frequent set) and of numbers (the mean of training)."""
    if "mean" in memory:
        values = [float(one.value or 0.0) for one in golds]
        return {"mean of training": score_numbers([float(memory["mean"])] * len(golds), values)}
    return {"most frequent labels": score_sets([memory["most_frequent_labels"]] * len(golds), [g.names for g in golds])}


def memory_of(examples: Sequence[Labelled], problem: str) -> Facts:
    """What ``scores_beside`` must know of training."""
    if problem == "regression":
        values = [one.value for one in examples if one.value is not None]
        return {"mean": math.fsum(values) / max(1, len(values))}
    sets = Counter(tuple(sorted(one.names)) for one in examples if one.is_known)
    most = max(sets.values())
    return {"most_frequent_labels": list(min(own for own, count in sets.items() if count == most))}
