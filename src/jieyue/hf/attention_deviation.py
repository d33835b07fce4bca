"""How far a pattern moves each attention head's output, on a model and a text: measured, and bounded by the mass it drops.

The model runs once under full attention. At queries drawn from the text, with replacement and the same for every layer, each
self-attention's own q, k and v give what the pattern would have put out, and ``attention.deviation`` its distance and bounds.

Letters: H query heads, R drawn queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jieyue.attention import Pattern, attend, full, local
from jieyue.attention.deviation import Deviation, deviation
from jieyue.errors import InputError

from .attention import attention_modules, attention_of, is_cross, remove_attention, use_attention
from .entries import PatternEntry, parse_entry, split_layers
from .layers import SLOT
from .masks import Ask

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
    while number < most and not any(_kept(one, number) <= 0.75 for one in patterns):
        number *= 2
    return min(number, most)


def check_drops(attention: str, num_tokens: int) -> None:
    """Refuses patterns that show all keys of rows of ``num_tokens``: nothing could be said of them."""
    if all(_kept(one, num_tokens) == 1 for one in _patterns(attention)):
        found = f"{attention!r}, which drops no key of rows of {num_tokens} tokens"
        do = "longer passages, or --max-tokens"
        raise InputError("measure_deviation(attention)", found, "rows that are longer than the pattern reaches", do)


def _kept(pattern: Pattern, n: int) -> float:
    return pattern.causal().pairs(n, n) / full().causal().pairs(n, n)


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
    patterns = _patterns(attention)
    kept = [{name: x.to(model.device) for name, x in batch.items() if name != "labels"} for batch in batches]
    if not kept:
        raise InputError("measure_deviation: found no batch, expected at least one")
    training = model.training
    model.eval()
    use_attention(model, "full()", dropout=0.0)
    try:
        layers = {module: name for name, module in attention_modules(model) if not is_cross(name, module)}
        heads = int(getattr(model.config.get_text_config(), "num_attention_heads", 1))
        number = draws_needed(len(layers) * heads, share, confidence) if num_queries is None else num_queries
        watch = _Watch(layers, patterns, _drawn(kept, number, seed))
        for module in layers:
            vars(module)[SLOT].watch = watch
        with torch.no_grad():
            for place, batch in enumerate(kept):
                watch.batch = place
                model(**batch, use_cache=False)
    finally:
        remove_attention(model)
        model.train(training)
    return watch.gathered()


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
    """What every self-attention calls while the model runs: the output under full attention, and the deviations gathered."""

    def __init__(
        self, layers: Mapping[nn.Module, str], patterns: Sequence[Pattern], drawn: Sequence[Mapping[int, Sequence[int]]]
    ) -> None:
        self.layers, self.drawn, self.batch = layers, drawn, 0
        self.patterns = {module: patterns[place % len(patterns)] for place, module in enumerate(layers)}
        self.found: dict[nn.Module, list[Deviation]] = {module: [] for module in layers}

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, ask: Ask, scale: float | None) -> Tensor:
        vars(module)[SLOT].called = True
        if ask.more:
            raise InputError(
                f"{type(module).__name__}: asks for {', '.join(ask.more)}, expected plain softmax attention here"
            )
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        whole = full() if ask.window is None else local(ask.window)
        whole, near = (p.causal() if ask.causal else p for p in (whole, self.patterns[module]))
        for row, positions in self.drawn[self.batch].items():
            own = slice(None) if ask.keys is None else _run(ask.keys[row])
            keys, values, queries = k[row][:, own], v[row][:, own], q[row][:, own]
            n = keys.shape[1]
            at = torch.tensor(positions, device=q.device)
            sees, kept = (pattern.mask(n, n, device=q.device)[at] for pattern in (whole, near))
            self.found[module].append(deviation(queries[:, at], keys, values, sees, kept, scale=scale))
        out = attend(q, k, v, whole, key_mask=ask.keys, scale=scale)
        assert isinstance(out, Tensor)
        return out

    def gathered(self) -> list[HeadDeviations]:
        return [
            HeadDeviations(
                name, str(self.patterns[module]), Deviation(*map(_joined, zip(*self.found[module], strict=True)))
            )
            for module, name in self.layers.items()
        ]


def _joined(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=1)


def _run(keys: Tensor) -> slice:
    """The one run of True in keys [M]; ``InputError`` for padding between tokens, under which offsets mean something else."""
    at = keys.nonzero().flatten()
    first, last = int(at[0]), int(at[-1])
    if last - first + 1 != len(at):
        raise InputError("attention_mask", "padding between tokens", "padding at the ends alone")
    return slice(first, last + 1)
