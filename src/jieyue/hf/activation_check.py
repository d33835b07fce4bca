"""Will this checkpoint mind another GELU? Logits, loss and every layer under each variant, and which one it was trained with.

The model runs once as it is loaded and once with each variant in every place that holds a GELU, on the same batches. All
differences are against the model as loaded. Losses are compared row by row (the same rows, so their difference has a far
smaller spread than either): the difference's standard error decides whether a variant can be told from another.

A checkpoint sits near a minimum of its loss under the activation that it was trained with, so that one is the most likely
whose loss is lowest. It takes text like the training text, and hundreds of rows; on a few rows nothing is excluded.

Cost: (1 + variants) forward passes of each batch; memory: the hidden states of one batch, twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.activations import Gelu, variant
from jieyue.activations.operator import Variant
from jieyue.errors import InputError
from jieyue.report import Picture, Report

from .activations import Holder, find_activations, known_mismatch, short_name, wired_in
from .row_losses import mean_difference, row_losses

__all__ = ["ActivationCheck", "VariantRow", "verify_activation"]

PUBLISHED = ("none", "tanh", "sigmoid")  # what checkpoints are trained with
CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class VariantRow:
    """One variant against the model as loaded.

    ``logit_change``: max |Δ logits|; ``logit_share``: the same over max |logits|; ``top_changed``: share of positions whose
    largest logit is another one; ``loss`` and its change per label (None without labels) with the change's standard
    error; ``layer_errors``: per hidden state, ‖Δ‖/‖h‖ over all positions that are not padding.
    """

    name: str
    logit_change: float
    logit_share: float
    top_changed: float
    layer_errors: tuple[float, ...]
    loss: float | None = None
    loss_change: float | None = None
    loss_error: float | None = None


@dataclass(frozen=True)
class ActivationCheck:
    """What ``verify_activation`` found: ``loaded`` is the variant in the model, ``possible`` are those it may have been trained with.

    ``likely`` is the only possible one, or None where several cannot be told apart (or nothing was labelled).
    """

    model: str
    loaded: str
    places: tuple[str, ...]
    rows: tuple[VariantRow, ...]
    possible: tuple[str, ...]
    verdict: str
    num_rows: int
    num_labels: int
    warnings: tuple[str, ...] = field(default=())

    @property
    def likely(self) -> str | None:
        return self.possible[0] if len(self.possible) == 1 else None

    def report(self) -> Report:
        """The table, the layers' picture and the verdict."""
        report = Report(f"Activations of {self.model}")
        section = report.section("Variants")
        section.fact("as loaded", self.loaded, how=f"{len(self.places)} places, such as {self.places[0]}")
        section.fact("rows", self.num_rows).fact("labels", self.num_labels)
        for warning in self.warnings:
            section.note(f"Warning: {warning}")
        section.table(
            [
                "variant",
                "max |Δ logit|",
                ("of the largest", "share"),
                ("other first choice", "share"),
                "loss",
                "Δ loss",
                "± (s.e.)",
            ],
            [
                [
                    row.name,
                    row.logit_change,
                    row.logit_share,
                    row.top_changed,
                    row.loss,
                    row.loss_change,
                    row.loss_error,
                ]
                for row in self.rows
            ],
            note="Against the model as loaded, on the same rows.",
        )
        section.fact(
            "most likely trained with", " or ".join(self.possible) or "cannot be told", how=self.verdict, key=True
        )
        curves = {
            row.name: (list(range(len(row.layer_errors))), list(row.layer_errors))
            for row in self.rows
            if any(row.layer_errors)
        }
        if curves:
            title = "How a swapped activation spreads through the layers"
            section.picture(Picture.lines(title, curves, x="hidden state", y="relative error", log="y"))
        return report


def verify_activation(
    model: Any, batches: Iterable[Mapping[str, Tensor]], variants: Sequence[Variant] = PUBLISHED
) -> ActivationCheck:
    """Swaps each variant into the loaded model, measures, and puts the model back as it was.

    ``batches``: keyword arguments of the model, with ``labels`` where a loss is wanted (``row_losses.text_batches`` makes them).
    ``InputError`` where the model holds no GELU or there is no batch.
    """
    holders = [holder for holder in find_activations(model) if holder.kind is not None]
    if not holders:
        raise InputError(f"verify_activation: found no GELU in {type(model).__name__}, expected a model that holds one")
    kinds = sorted({str(holder.kind) for holder in holders})
    names = list(dict.fromkeys(short_name(variant(each)) for each in variants))
    chosen = {short_name(variant(each)): variant(each) for each in variants}
    sums = {name: _Sums() for name in names}
    base = _Sums()
    training, num_rows = model.training, 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                reference = _run(model, batch)
                num_rows += reference.logits.shape[0]
                base.add(reference, reference)
                for name in names:
                    with _Swapped(holders, chosen[name]):
                        sums[name].add(_run(model, batch), reference)
    finally:
        model.train(training)
    if num_rows == 0:
        raise InputError("verify_activation: found no batch, expected at least one")
    rows = tuple(sums[name].row(name) for name in names)
    possible, verdict = _judge({name: found for name, found in sums.items() if name in PUBLISHED})
    warned = [text for text in (known_mismatch(model),) if text]
    wired = wired_in(model)
    if wired:
        warned.append(f"a GELU is wired into the code of {', '.join(wired)} and was not swapped")
    if possible and not set(kinds) <= set(possible) and set(kinds) <= set(sums):
        warned.append(
            f"the model runs with {' and '.join(kinds)}, but was most likely trained with {' or '.join(possible)}"
        )
    return ActivationCheck(
        model=type(model).__name__, loaded=" and ".join(kinds), places=tuple(holder.path for holder in holders), rows=rows,
        possible=possible, verdict=verdict, num_rows=num_rows, num_labels=int(sum(base.weights)), warnings=tuple(warned),
    )  # fmt: skip


class _Swapped:
    """Another activation in all places inside, the former objects themselves afterwards."""

    def __init__(self, holders: list[Holder], chosen: Any) -> None:
        self.holders, self.chosen = holders, chosen
        self.former = [holder.held for holder in holders]

    def __enter__(self) -> None:
        for holder in self.holders:
            setattr(holder.parent, holder.attribute, Gelu(self.chosen))

    def __exit__(self, *_: object) -> None:
        for holder, former in zip(self.holders, self.former, strict=True):
            if not isinstance(former, nn.Module):
                delattr(holder.parent, holder.attribute)  # a module's slot would shadow a plain function
            setattr(holder.parent, holder.attribute, former)


@dataclass(frozen=True)
class _Outcome:
    logits: Tensor
    states: tuple[Tensor, ...]
    real: Tensor | None
    totals: list[float]  # summed loss of each row, [] without labels
    weights: list[float]  # labels of each row


def _run(model: Any, batch: Mapping[str, Tensor]) -> _Outcome:
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    labels = inputs.pop("labels", None)
    if labels is not None and getattr(model.config, "is_encoder_decoder", False):
        inputs["labels"] = labels
    output = model(**inputs, output_hidden_states=True, return_dict=True)
    states = output.get("hidden_states") or output.get("encoder_hidden_states") or ()
    logits = output.get("logits")
    if logits is None:
        logits = output.get("prediction_logits", output[0])
    totals, weights = row_losses(model, logits.float(), labels) if labels is not None else ([], [])
    return _Outcome(
        logits.float(), tuple(state.float() for state in states), inputs.get("attention_mask"), totals, weights
    )


class _Sums:
    """Running maxima and sums over the batches of one variant."""

    def __init__(self) -> None:
        self.change = self.largest = 0.0
        self.moved = self.positions = 0
        self.squares: list[tuple[float, float]] = []
        self.totals: list[float] = []
        self.base: list[float] = []
        self.weights: list[float] = []

    def add(self, outcome: _Outcome, reference: _Outcome) -> None:
        real = reference.real
        logits, before = outcome.logits, reference.logits
        if real is not None and logits.shape[:-1] == real.shape:
            logits, before = logits[real.bool()], before[real.bool()]
        self.change = max(self.change, float((logits - before).abs().max()))
        self.largest = max(self.largest, float(before.abs().max()))
        self.moved += int((logits.argmax(-1) != before.argmax(-1)).sum())
        self.positions += before[..., 0].numel()
        squares = []
        for state, former in zip(outcome.states, reference.states, strict=True):
            if real is not None and state.shape[:-1] == real.shape:
                state, former = state[real.bool()], former[real.bool()]
            squares.append((float((state - former).double().square().sum()), float(former.double().square().sum())))
        self.squares = [
            (a + c, b + d) for (a, b), (c, d) in zip(self.squares or [(0.0, 0.0)] * len(squares), squares, strict=True)
        ]
        self.totals += outcome.totals
        self.base += reference.totals
        self.weights += outcome.weights

    def row(self, name: str) -> VariantRow:
        layers = tuple(math.sqrt(gap / whole) if whole else 0.0 for gap, whole in self.squares)
        share = self.change / self.largest if self.largest else 0.0
        loss = change = error = None
        if sum(self.weights):
            loss = sum(self.totals) / sum(self.weights)
            change, error = mean_difference(self.totals, self.base, self.weights)
        return VariantRow(name, self.change, share, self.moved / max(self.positions, 1), layers, loss, change, error)


def _judge(sums: dict[str, _Sums]) -> tuple[tuple[str, ...], str]:
    """(the variants that the checkpoint may have been trained with, lowest loss first; what excludes the others)."""
    measured = {name: found for name, found in sums.items() if sum(found.weights)}
    if len(measured) < 2:
        return (), f"needs labels and at least two of {', '.join(PUBLISHED)}"
    best, *others = sorted(measured, key=lambda name: sum(measured[name].totals))
    possible, told = [best], []
    for other in others:
        gap, error = mean_difference(measured[other].totals, measured[best].totals, measured[best].weights)
        clear = gap > CLEAR * error
        possible += [] if clear else [other]
        told.append(
            f"{other} {'excluded' if clear else 'not excluded'}: loss {gap:.2g} ± {error:.2g} above that of {best}"
        )
    return tuple(possible), "; ".join(told)
