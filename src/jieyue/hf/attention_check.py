"""What would another attention change in a checkpoint? The entropy of its weights, layer by layer, and the loss.

The model runs once as it is loaded; each self-attention's q and k give the weights that softmax and every candidate would have
made of them, on the same inputs. Then each candidate takes the place of attention in the whole model, by ``use_attention``, and the
loss is compared row by row. The entropy of a query's weights is Σ_j w_j log(1/w_j), averaged over queries that count and heads;
uniform weights over n keys have log n, the most there is. A linear map in a model that was trained with softmax is close to that.

Cost: one pass with whole matrices of weights, and a pass for each candidate; memory H·N² numbers for each row of a batch.

Letters: B batch, H query heads, G key heads, N queries and keys, D size of a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.attention.scoring import Scoring
from jieyue.errors import InputError
from jieyue.linear.features import resolve
from jieyue.report import Picture, Report

from .attention import attention_modules, attention_of, is_cross, remove_attention, use_attention
from .entries import Entry, HeadsEntry, HybridEntry, LinearEntry, PatternEntry, WindowEntry
from .layers import SLOT
from .masks import Ask
from .row_losses import mean_difference, row_losses

__all__ = ["AttentionCheck", "CandidateRow", "verify_attention"]


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
            losses, entries = {}, {}
            layers = {module: name for name, module in attention_modules(model) if not is_cross(name, module)}
            for text in attentions:
                use_attention(model, text, dropout=0.0)
                try:
                    losses[text] = _losses(model, kept)
                    entries[text] = [vars(module)[SLOT].entry for module in layers]
                finally:
                    remove_attention(model)
            probe = _entropies(model, kept, layers, entries)
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
    """What every self-attention calls: softmax attention with all weights written out, and the sums of entropies over the queries
    that count, ``sums[kind][layer]``."""

    def __init__(self, layers: Mapping[nn.Module, str], candidates: Mapping[str, Sequence[Entry]]) -> None:
        self.candidates, self.order = candidates, list(layers.values())
        self.places = {module: number for number, module in enumerate(layers)}
        self.sums = {kind: [0.0] * len(layers) for kind in ("softmax", "uniform", *candidates)}
        self.counts = [0.0] * len(layers)

    def means(self, kind: str) -> tuple[float, ...]:
        return tuple(total / max(count, 1.0) for total, count in zip(self.sums[kind], self.counts, strict=True))

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, ask: Ask, scale: float | None) -> Tensor:
        vars(module)[SLOT].called = True
        groups, m = q.shape[1] // k.shape[1], k.shape[2]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scoring = Scoring(q.shape[-1] ** -0.5 if scale is None else scale, m, ask.sinks, ask.softcap, ask.offset_bias)
        sees = ask.sees(q.shape[2], m, q.device)
        softmax = softmax_weights(q, k, sees, scoring)
        self._add(self.places[module], q, k, sees, scoring, groups, softmax)
        return softmax.to(v.dtype) @ v

    def _add(
        self, layer: int, q: Tensor, k: Tensor, sees: Tensor, scoring: Scoring, groups: int, softmax: Tensor
    ) -> None:
        """Takes the entropies of every kind; ``groups``: query heads that read one key-value head."""
        real = sees.any(-2).expand(q.shape[:3])  # a token that nobody sees as a key is padding
        kinds = {"softmax": softmax, "uniform": sees / sees.sum(-1, keepdim=True).clamp(min=1)}
        for text, entries in self.candidates.items():
            kinds[text] = entry_weights(entries[layer], q, k, sees, scoring, groups)
        for kind, weights in kinds.items():
            entropy = torch.special.entr(weights.double()).sum(-1).expand(q.shape[:3])
            self.sums[kind][layer] += float(entropy[real].sum())
        self.counts[layer] += float(real.sum())


def _entropies(
    model: Any,
    batches: Sequence[Mapping[str, Tensor]],
    layers: Mapping[nn.Module, str],
    candidates: Mapping[str, Sequence[Entry]],
) -> _Probe:
    """``layers``: the self-attentions and their paths; ``candidates``: what each of them wears under each text."""
    probe = _Probe(layers, candidates)
    use_attention(model, "full()", dropout=0.0)
    try:
        for module in layers:
            vars(module)[SLOT].watch = probe
        for batch in batches:
            given = dict(batch)
            if not getattr(model.config, "is_encoder_decoder", False):
                given.pop("labels", None)
            model(**given, use_cache=False)
    finally:
        remove_attention(model)
    return probe


def softmax_weights(q: Tensor, k: Tensor, sees: Tensor, scoring: Scoring) -> Tensor:
    """[B, H, N, N], zeros where nothing is seen; what a sink takes is of no key."""
    scores = scoring.logits(q.float(), k.float(), range(k.shape[2])).flatten(1, 2).masked_fill(~sees, -torch.inf)
    if scoring.sinks is None:
        return scores.softmax(-1).nan_to_num(0.0)
    sink = scoring.sinks.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


def entry_weights(entry: Entry, q: Tensor, k: Tensor, sees: Tensor, scoring: Scoring, groups: int = 1) -> Tensor:
    """The normalised weights [B, H, N, N] that an entry makes of q and k, by its definition; ``groups``: neighbouring heads that
    read one key-value head. Linear maps know nothing of a score but its scale: ``use`` refuses them where there is more."""
    n = q.shape[2]
    d = torch.arange(n, device=q.device)
    d = d[:, None] - d
    if isinstance(entry, PatternEntry):
        return softmax_weights(q, k, sees & entry.pattern.mask(n, n, device=q.device), scoring)
    if isinstance(entry, HeadsEntry):
        shown = entry.mask(q.shape[1] // groups, n, n, device=q.device).repeat_interleave(groups, 0)
        return softmax_weights(q, k, sees & shown, scoring)
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
        scores = q.double() @ k.double().mT * scoring.scale
        weights = torch.where(entry.near.mask(n, n, device=q.device), scores.exp(), weights)
    weights = weights.masked_fill(~sees, 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
