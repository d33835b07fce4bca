"""What would another attention change in a checkpoint? The entropy of its weights, layer by layer, and the loss.

The model runs once as it is loaded; each self-attention's q and k give the weights that softmax and every candidate would have
made of them, on the same inputs. Then each candidate takes the place of attention in the whole model, by ``use_attention``, and the
loss is compared row by row. The entropy of a query's weights is Σ_j w_j log(1/w_j), averaged over queries that count and heads;
uniform weights over n keys have log n, the most there is. A linear map in a model that was trained with softmax is close to that.

Cost: one pass with whole matrices of weights, and a pass for each candidate; memory H·N² numbers for each row of a batch.

Letters: B batch, H query heads, G key heads, N queries and keys, D size of a query.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.linear.features import resolve
from jieyue.report import Picture, Report

from .attention import attention_modules, attention_of, is_cross, remove_attention, use_attention
from .entries import Entry, HeadsEntry, HybridEntry, LinearEntry, PatternEntry, WindowEntry, parse_entry, split_layers
from .keywords import refuse_keywords, with_keywords
from .masks import Ask, ask_of, asked_mask
from .row_losses import mean_difference, row_losses

__all__ = ["AttentionCheck", "CandidateRow", "verify_attention"]

_PROBE = "jieyue entropy probe"


@dataclass(frozen=True)
class CandidateRow:
    """One attention: mean entropy of each layer's weights, and the loss with its change per label and standard error."""

    name: str
    entropies: tuple[float, ...]
    loss: float | None = None
    loss_change: float | None = None
    loss_error: float | None = None


@dataclass(frozen=True)
class AttentionCheck:
    """What ``verify_attention`` found; the first row is softmax, ``uniform`` the entropy of equal weights in each layer."""

    model: str
    layers: tuple[str, ...]
    uniform: tuple[float, ...]
    rows: tuple[CandidateRow, ...]
    num_rows: int
    num_labels: int

    def report(self) -> Report:
        """The table, the entropies by layer as a table and a picture, and what they say."""
        report = Report(f"Attention of {self.model}")
        section = report.section("Candidates")
        section.fact("rows", self.num_rows).fact("labels", self.num_labels)
        section.table(
            ["attention", ("mean entropy", "nats"), ("of uniform", "share"), "loss", "Δ loss", "± (s.e.)"],
            [
                [row.name, _mean(row.entropies), _mean(row.entropies) / max(_mean(self.uniform), 1e-12), row.loss,
                 row.loss_change, row.loss_error]
                for row in self.rows
            ],
            note="Entropies of the weights that each would make of the loaded model's queries and keys; losses with each in "
            "the model's place of softmax, untrained.",
        )  # fmt: skip
        section.table(
            ["layer", *(row.name for row in self.rows), "uniform"],
            [[name, *(row.entropies[i] for row in self.rows), self.uniform[i]] for i, name in enumerate(self.layers)],
        )
        curves = {row.name: (list(range(len(self.layers))), list(row.entropies)) for row in self.rows}
        curves["uniform"] = (list(range(len(self.layers))), list(self.uniform))
        section.picture(Picture.lines("Entropy of attention weights", curves, x="layer", y=("entropy", "nats")))
        return report


def verify_attention(
    model: Any, batches: Iterable[Mapping[str, Tensor]], attentions: Sequence[str] = ("linear(elu)",)
) -> AttentionCheck:
    """Measures softmax and each of ``attentions`` (texts as ``use`` takes them), and leaves the model as it was.

    ``batches``: keyword arguments of the model, with ``labels`` where a loss is wanted (``row_losses.text_batches`` makes them).
    ``InputError`` for a model that has an attention of ours already, for what ``use`` refuses, and without a batch.
    """
    if attention_of(model):
        raise InputError(
            f"verify_attention: {type(model).__name__} has the attention {next(iter(attention_of(model).values()))}, expected a "
            "model with its own; take it off by use(model, attention=None)"
        )
    kept = [{name: x.to(model.device) for name, x in batch.items()} for batch in batches]
    if not kept:
        raise InputError("verify_attention: found no batch, expected at least one")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            base = _losses(model, kept)
            losses = {}
            for text in attentions:
                use_attention(model, text, dropout=0.0)
                try:
                    losses[text] = _losses(model, kept)
                finally:
                    remove_attention(model)
            probe = _entropies(model, kept, attentions)
    finally:
        model.train(training)
    labels = sum(base[1])
    rows = [CandidateRow("softmax", probe.means("softmax"), sum(base[0]) / labels if labels else None)]
    for text in attentions:
        totals, weights = losses[text]
        change, error = mean_difference(totals, base[0], weights) if labels else (None, None)
        rows.append(CandidateRow(text, probe.means(text), sum(totals) / labels if labels else None, change, error))
    num_rows = sum(len(next(iter(batch.values()))) for batch in kept)
    return AttentionCheck(
        type(model).__name__, tuple(probe.order), probe.means("uniform"), tuple(rows), num_rows, int(labels)
    )


def _losses(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> tuple[list[float], list[float]]:
    """Summed loss and number of labels of each row; nothing without labels."""
    totals: list[float] = []
    weights: list[float] = []
    for batch in batches:
        if "labels" not in batch:
            continue
        given = dict(batch)
        labels = given.pop("labels")
        if getattr(model.config, "is_encoder_decoder", False):
            given["labels"] = labels
        more = row_losses(model, model(**given, return_dict=True, use_cache=False).logits.float(), labels)
        totals += more[0]
        weights += more[1]
    return totals, weights


class _Probe:
    """Sums of entropies over the queries that count: ``sums[kind][layer]``."""

    def __init__(self, candidates: Mapping[str, Sequence[Entry]], order: list[str]) -> None:
        self.candidates, self.order = candidates, order
        self.sums = {kind: [0.0] * len(order) for kind in ("softmax", "uniform", *candidates)}
        self.counts = [0.0] * len(order)

    def means(self, kind: str) -> tuple[float, ...]:
        return tuple(total / max(count, 1.0) for total, count in zip(self.sums[kind], self.counts, strict=True))

    def add(self, layer: int, q: Tensor, k: Tensor, sees: Tensor, scaling: float, groups: int) -> Tensor:
        """Takes the entropies of every kind; returns softmax's weights. ``groups``: query heads that read one key-value head."""
        real = sees.any(-2).expand(q.shape[:3])  # a token that nobody sees as a key is padding
        softmax = softmax_weights(q, k, sees, scaling)
        kinds = {"softmax": softmax, "uniform": sees / sees.sum(-1, keepdim=True).clamp(min=1)}
        for text, entries in self.candidates.items():
            kinds[text] = entry_weights(entries[layer % len(entries)], q, k, sees, scaling, groups)
        for kind, weights in kinds.items():
            entropy = torch.special.entr(weights.double()).sum(-1).expand(q.shape[:3])
            self.sums[kind][layer] += float(entropy[real].sum())
        self.counts[layer] += float(real.sum())
        return softmax


def _entropies(model: Any, batches: Sequence[Mapping[str, Tensor]], attentions: Sequence[str]) -> _Probe:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    names = {module: name for name, module in attention_modules(model) if not is_cross(name, module)}
    candidates = {text: [parse_entry(part) for part in split_layers(text)] for text in attentions}
    probe = _Probe(candidates, list(names.values()))
    places = {module: number for number, module in enumerate(names)}
    AttentionInterface.register(_PROBE, functools.partial(_probing_forward, probe, places))
    AttentionMaskInterface.register(_PROBE, asked_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_PROBE)
    try:
        for batch in batches:
            given = dict(batch)
            if not getattr(model.config, "is_encoder_decoder", False):
                given.pop("labels", None)
            model(**given, use_cache=False)
    finally:
        model.set_attn_implementation(before)
    return probe


def _probing_forward(
    probe: _Probe,
    places: Mapping[nn.Module, int],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """What transformers calls: softmax attention with all weights written out, and the probe in between."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    n, m = query.shape[2], key.shape[2]
    place = places.get(module)
    name = type(module).__name__
    kwargs.pop("dropout", None)  # 0 here: the model is in eval mode
    refuse_keywords(name, kwargs)
    ask = Ask(causal=False) if attention_mask is None else ask_of(attention_mask)
    ask = None if ask is None else with_keywords(name, ask, kwargs, n, m)
    if ask is None or set(ask.more) - {"segments"}:
        found = "a mask of its own" if ask is None else ", ".join(ask.more)
        raise InputError(f"verify_attention: {name} asks for {found}, expected plain softmax attention over kept keys")
    sees = ask.sees(n, m, query.device)
    if place is None:
        weights = softmax_weights(query, key, sees, scaling)
    else:
        weights = probe.add(place, query, key, sees, scaling, groups)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def softmax_weights(q: Tensor, k: Tensor, sees: Tensor, scaling: float) -> Tensor:
    """[B, H, N, N], zeros where nothing is seen."""
    scores = (q.float() @ k.float().mT * scaling).masked_fill(~sees, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0)


def entry_weights(entry: Entry, q: Tensor, k: Tensor, sees: Tensor, scaling: float, groups: int = 1) -> Tensor:
    """The normalised weights [B, H, N, N] that an entry makes of q and k, by its definition; ``groups``: neighbouring heads that
    read one key-value head."""
    n = q.shape[2]
    d = torch.arange(n, device=q.device)
    d = d[:, None] - d
    if isinstance(entry, PatternEntry):
        return softmax_weights(q, k, sees & entry.pattern.mask(n, n, device=q.device), scaling)
    if isinstance(entry, HeadsEntry):
        shown = entry.mask(q.shape[1] // groups, n, n, device=q.device).repeat_interleave(groups, 0)
        return softmax_weights(q, k, sees & shown, scaling)
    assert isinstance(entry, LinearEntry | WindowEntry | HybridEntry)
    features = resolve(entry.features)
    x = q.double() * features.scale_for(None, q.shape[-1])
    if features.over_positions:
        keys = k.double().masked_fill(~sees.any(-2)[..., None], -torch.inf).softmax(-2).nan_to_num(0.0)
        return x.softmax(-1) @ keys.mT
    c0, c1, c2 = features.polynomial
    s = features.prepare(x) @ features.prepare(k.double()).mT
    weights = c0 + c1 * s + c2 * s * s
    if isinstance(entry, WindowEntry):
        sees = sees & (d.abs() <= entry.window)
    if isinstance(entry, HybridEntry):
        scores = q.double() @ k.double().mT * scaling
        weights = torch.where(entry.near.mask(n, n, device=q.device), scores.exp(), weights)
    weights = weights.masked_fill(~sees, 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
