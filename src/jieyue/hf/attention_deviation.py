"""How far a pattern moves each attention head's output, on a model and a text: measured, and bounded by the mass it drops.

The model runs once under full attention. At queries drawn from the text, with replacement and the same for every layer, each
self-attention's own q, k and v give what the pattern would have put out, and ``attention.deviation`` its distance and bounds.

Letters: H query heads, R drawn queries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jieyue.attention import Pattern, full, local
from jieyue.attention.deviation import Deviation, deviation
from jieyue.errors import InputError

from .attention import attention_modules, attention_of, remove_attention, use_attention
from .entries import PatternEntry, parse_entry, split_layers
from .layers import SLOT, LayerAttention
from .masks import Ask
from .pattern_entries import kept_share

__all__ = ["SHORT", "HeadDeviations", "check_drops", "draws_needed", "measure_deviation", "tokens_to_drop"]

SHORT = 128  # tokens of a row, where no pattern needs more


@dataclass(frozen=True)
class HeadDeviations:
    """One self-attention: its path, its pattern's text, and what was found at the drawn queries, each [H, R]."""

    layer: str
    pattern: str
    found: Deviation


def draws_needed(num_statements: int, share: float, confidence: float) -> int:
    """How many queries must be drawn so that the largest value bounds ``share`` of them, for all statements together.

    >>> draws_needed(1, 0.95, 0.95), draws_needed(270, 0.99, 0.99)
    (59, 1016)
    """
    return math.ceil(math.log((1 - confidence) / num_statements) / math.log(share))


def tokens_to_drop(attention: str, positions: int | None) -> int:
    """Tokens of a row in which one of these patterns drops a quarter of the keys up to a query: 128, or twice as many, and so on; at
    most ``positions`` (None: 16,384)."""
    most, number, patterns = positions or 16_384, SHORT, _patterns(attention)
    while number < most and not any(kept_share(one, number) <= 0.75 for one in patterns):
        number *= 2
    return min(number, most)


def check_drops(attention: str, num_tokens: int) -> None:
    """Refuses patterns that show all keys of rows of ``num_tokens``: nothing could be said of them."""
    if all(kept_share(one, num_tokens) == 1 for one in _patterns(attention)):
        found = f"{attention!r}, which drops no key of rows of {num_tokens} tokens"
        do = "longer passages, or --max-tokens"
        raise InputError("measure_deviation(attention)", found, "rows that are longer than the pattern reaches", do)


def _patterns(attention: str) -> list[Pattern]:
    entries = [parse_entry(text) for text in split_layers(attention)]
    patterns = [entry.pattern for entry in entries if isinstance(entry, PatternEntry)]
    if len(patterns) < len(entries):
        allowed = "patterns alone, without linear(...) or heads(...)"
        raise InputError("measure_deviation(attention)", repr(attention), allowed)
    return patterns


def measure_deviation(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    attention: str,
    *,
    num_queries: int | None = None,
    share: float = 0.99,
    confidence: float = 0.99,
    seed: int = 0,
) -> list[HeadDeviations]:
    """One entry for each self-attention, in order; the model is left as it was.

    ``batches``: keyword arguments of the model, "attention_mask" [B, N] among them; ``attention``: a pattern or a list of
    patterns, as ``use`` takes it. ``num_queries``: None = as many as a statement about ``share`` of the queries, at ``confidence``
    for all layers and heads together, needs. ``seed``: of the draw. ``InputError``: what ``use`` refuses, an attention with a
    ``linear`` part (the bound is of softmax) or with ``heads(...)``, padding between tokens, a model that has an attention of
    ours, no batch.

    Cost: one pass, and at each layer H·R·N·D operations in float64; memory G·N² numbers.
    """
    if attention_of(model):
        raise InputError("measure_deviation(model)", "an attention of ours", "the model's own", "use(model, None)")
    _patterns(attention)
    if getattr(model.config, "is_encoder_decoder", False):
        found = f"{type(model).__name__}, an encoder with a decoder, which read different tokens"
        raise InputError("measure_deviation(model)", found, "a decoder or an encoder alone")
    kept = [{name: x.to(model.device) for name, x in batch.items() if name != "labels"} for batch in batches]
    if not kept:
        raise InputError("measure_deviation: found no batch, expected at least one")
    training = model.training
    model.eval()
    use_attention(model, attention, dropout=0.0)
    try:
        layers = {module: name for name, module in attention_modules(model) if name in attention_of(model)}
        _check_windows(model, attention, [vars(module)[SLOT] for module in layers])
        with torch.no_grad():
            if num_queries is None:
                one = {name: x[:1] for name, x in kept[0].items()}
                statements = _watched(model, layers, [one], [{}]).statements
                num_queries = draws_needed(statements, share, confidence)
            watch = _watched(model, layers, kept, _drawn(kept, num_queries, seed))
    finally:
        remove_attention(model)
        model.train(training)
    return watch.gathered()


def _check_windows(model: PreTrainedModel, attention: str, layers: Sequence[LayerAttention]) -> None:
    """Refuses a pattern that no layer takes: each would keep a window of its own, and every m would be 0."""
    if all(layer.window is not None and not layer.named for layer in layers):
        found = f"{attention!r}, and {type(model).__name__}, whose self-attentions all keep a window of their own"
        do = f"name every layer by a list: '{attention},{attention}'"
        raise InputError("measure_deviation(attention)", found, "a layer that reads all keys, or a list", do)


def _watched(
    model: PreTrainedModel,
    layers: Mapping[nn.Module, str],
    batches: Sequence[Mapping[str, Tensor]],
    drawn: Sequence[Mapping[int, Sequence[int]]],
) -> _Watch:
    """What was seen at the drawn queries of each batch."""
    watch = _Watch(layers, drawn)
    for module in layers:
        vars(module)[SLOT].watch = watch
    for batch in batches:
        watch.begin()
        model(**batch, use_cache=False)
    return watch


def _drawn(batches: Sequence[Mapping[str, Tensor]], number: int, seed: int) -> list[dict[int, list[int]]]:
    """For each batch: row -> positions (among its kept tokens), drawn uniformly with replacement from all tokens of all rows."""
    lengths = []
    for place, batch in enumerate(batches):
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        lengths += [(place, row, int(count)) for row, count in enumerate(mask.sum(1))]
    ends = torch.tensor([count for _, _, count in lengths]).cumsum(0)
    chosen = torch.randint(int(ends[-1]), (number,), generator=torch.Generator().manual_seed(seed)).sort().values
    found: list[dict[int, list[int]]] = [{} for _ in batches]
    for which, query in zip(torch.searchsorted(ends, chosen, right=True).tolist(), chosen.tolist(), strict=True):
        place, row, count = lengths[which]
        found[place].setdefault(row, []).append(query - (int(ends[which]) - count))
    return found


class _Watch:
    """What every self-attention calls while the model runs: the output under full attention, and the deviations gathered.

    A module that runs several times in a pass (ALBERT's layers share one) is a layer each time.
    """

    def __init__(self, layers: Mapping[nn.Module, str], drawn: Sequence[Mapping[int, Sequence[int]]]) -> None:
        self.layers, self.drawn, self.batch = layers, drawn, -1
        self.entries = {module: str(vars(module)[SLOT].entry) for module in layers}
        self.runs: Counter[nn.Module] = Counter()  # of each module in this batch
        self.heads: dict[tuple[nn.Module, int], int] = {}
        self.found: dict[tuple[nn.Module, int], list[Deviation]] = {}

    def begin(self) -> None:
        """The next batch is read from now on."""
        self.batch += 1
        self.runs.clear()

    @property
    def statements(self) -> int:
        """Layers times heads."""
        return sum(self.heads.values())

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, ask: Ask, scale: float | None) -> Tensor:
        layer: LayerAttention = vars(module)[SLOT]
        name = type(module).__name__
        layer.hear(name, ask)
        layer.called = True
        if ask.segments is not None:
            raise InputError(f"{name}: asks for segments, expected a text a row here")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        whole, near = PatternEntry(full() if ask.window is None else local(ask.window)), layer.entry
        assert isinstance(near, PatternEntry)
        if ask.causal:
            whole, near = whole.causal(), near.causal()
        place = (module, self.runs[module])
        self.runs[module] += 1
        self.heads[place] = q.shape[1]
        for row, positions in self.drawn[self.batch].items():
            own = slice(None) if ask.keys is None else _run(ask.keys[row])
            keys, values, queries = k[row][:, own], v[row][:, own], q[row][:, own]
            n = keys.shape[1]
            at = torch.tensor(positions, device=q.device)
            sees, kept = (entry.pattern.mask(n, n, device=q.device)[at] for entry in (whole, near))
            _check_within(name, near, ask.window, bool((kept & ~sees).any()))
            bias = None
            if ask.offset_bias is not None:
                bias = ask.offset_bias[:, at[:, None] - torch.arange(n, device=q.device) + k.shape[2] - 1]
            more = {"sinks": ask.sinks, "softcap": ask.softcap, "bias": bias}
            found = deviation(queries[:, at], keys, values, sees, kept, scale=scale, **more)  # type: ignore[arg-type]
            if not bool((found.mass + found.distance).isfinite().all()):
                allowed = "weights whose queries, keys and values are finite"
                raise InputError(
                    "measure_deviation(model)", f"numbers that are not finite in {self.layers[module]}", allowed
                )
            self.found.setdefault(place, []).append(found)
        return whole.attend(q, k, v, ask, scale=scale)

    def gathered(self) -> list[HeadDeviations]:
        """In the order of the model's modules, those that run several times one time after the other."""
        times = Counter(module for module, _ in self.found)
        order = {module: place for place, module in enumerate(self.layers)}
        return [
            HeadDeviations(
                self.layers[module] + (f", pass {run + 1}" if times[module] > 1 else ""),
                self.entries[module],
                Deviation(*map(_joined, zip(*found, strict=True))),
            )
            for (module, run), found in sorted(self.found.items(), key=lambda one: (order[one[0][0]], one[0][1]))
        ]


def _check_within(name: str, near: PatternEntry, window: int | None, goes_beyond: bool) -> None:
    """A list may show more than the model's own window: no bound is of keys that are added."""
    if goes_beyond:
        found = f"{near}, which shows keys that {name}'s own window of {window} to each side hides"
        raise InputError("measure_deviation(attention)", found, "a pattern within that window")


def _joined(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=1)


def _run(keys: Tensor) -> slice:
    """The one run of True in keys [M]; ``InputError`` for padding between tokens, under which offsets mean something else."""
    at = keys.nonzero().flatten()
    first, last = int(at[0]), int(at[-1])
    if last - first + 1 != len(at):
        raise InputError("attention_mask", "padding between tokens", "padding at the ends alone")
    return slice(first, last + 1)
