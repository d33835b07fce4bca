"""A model whose self-attentions, or their key-value heads, are switched one by one between a sparse entry and all keys.

How a choice of layers or heads is measured.

``use`` proves once that the model can have the entries; after that a switch is an assignment, so that hundreds of choices cost
hundreds of forward passes and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from jieyue.attention import full
from jieyue.errors import InputError

from .attention import attention_modules, attention_of, is_cross, remove_attention, use_attention
from .entries import (
    Entry,
    HeadsEntry,
    HybridEntry,
    LinearEntry,
    Memory,
    PatternEntry,
    WindowEntry,
    parse_entry,
    split_layers,
)
from .layers import SLOT, LayerAttention
from .masks import Ask
from .pattern_entries import kept_share
from .remembered_layers import RememberedLayers

__all__ = ["SwitchedLayers", "check_drops", "check_sparse", "switch_off_linear", "switched_layers"]


@dataclass(frozen=True)
class SwitchedLayers:
    """The self-attentions in order; ``sparse``: the entry of each; ``free``: the numbers of those without a window of their own,
    which alone are switched. ``memory``: what the layers around them gave (``RememberedLayers``), None where they are not apart.
    ``heads``: of how many key-value heads of a layer each is switched by itself, 1 = whole layers. Head h of layer n has the number
    n·heads + h."""

    layers: Sequence[LayerAttention]
    sparse: Sequence[Entry]
    free: tuple[int, ...]
    memory: RememberedLayers | None = None
    heads: int = 1

    def keep_full(self, chosen: Collection[int]) -> None:
        """From now on the chosen layers (or heads) read all keys, the others have their sparse entry."""
        for number, layer in enumerate(self.layers):
            layer.put(self._entry(number, chosen))
        if self.memory is not None:
            every = range(len(self.layers))
            self.memory.setting = tuple(sum(1 << head for head in self._full(number, chosen)) for number in every)

    def _full(self, number: int, chosen: Collection[int]) -> tuple[int, ...]:
        """The heads of a layer that stay full."""
        return tuple(head for head in range(self.heads) if number * self.heads + head in chosen)

    def _entry(self, number: int, chosen: Collection[int]) -> Entry:
        own, sparse = self._full(number, chosen), self.sparse[number]
        if len(own) == self.heads:
            return PatternEntry(full())
        if not own:
            return sparse
        assert isinstance(sparse, PatternEntry)
        return HeadsEntry(own, PatternEntry(full()), sparse)

    def without_linear(self, chosen: Collection[int]) -> None:
        """The same with every linear map switched off: of a hybrid entry softmax over its near keys stays, of a map alone nothing."""
        self.keep_full(chosen)
        for layer in self.layers:
            layer.put(_without_linear(layer.entry))

    @property
    def has_linear(self) -> bool:
        return any(_without_linear(entry) is not entry for entry in self.sparse)

    def text(self, chosen: Collection[int]) -> str:
        """The list that ``use`` takes for this choice: an entry for each layer, or one where all are alike."""
        entries = [str(self._entry(number, chosen)) for number in range(len(self.layers))]
        return entries[0] if len(set(entries)) == 1 else ",".join(entries)


def check_sparse(attention: str, by_heads: bool = False) -> None:
    """Refuses, before any model is read, what no choice can be measured for: heads that are named already; where heads are chosen
    (``by_heads``) every linear map."""
    for text in split_layers(attention):
        entry, asked = parse_entry(text), f"sparsify(attention={attention!r})"
        if isinstance(entry, HeadsEntry):
            raise InputError(
                asked, str(entry), "a pattern for all heads", "choose heads with full_heads (--full-heads)"
            )
        if by_heads and not isinstance(entry, PatternEntry):
            raise InputError(asked, f"{entry}, and heads to choose", "a pattern without linear(...)", "choose layers")


def check_drops(attention: str, row_tokens: int, *, is_causal: bool) -> None:
    """Refuses patterns that show every key of rows of ``row_tokens``, all of them: such an attention saves nothing. Of hybrids, the
    near part; a linear map alone needs no row."""
    entries = [parse_entry(text) for text in split_layers(attention)]
    if any(isinstance(one, LinearEntry | WindowEntry) for one in entries):
        return
    patterns = [one.pattern for one in entries if isinstance(one, PatternEntry)]
    patterns += [one.near for one in entries if isinstance(one, HybridEntry)]
    if any(kept_share(one, row_tokens, is_causal=is_causal) < 1 for one in patterns):
        return
    asked, allowed = f"sparsify(attention={attention!r})", "an attention that drops some"
    if all(one == full() for one in patterns):
        raise InputError(asked, "every key in every layer", allowed, "a pattern such as first(4)+local(512)")
    found = f"no key that it drops in rows of {row_tokens} tokens"
    raise InputError(asked, found, allowed, "a narrower pattern, or longer rows (--row-tokens)")


def switch_off_linear(model: PreTrainedModel) -> bool:
    """Switches every linear map of a model that wears one off, until ``use`` puts on what it had; False where there is none."""
    layers = [vars(module)[SLOT] for _, module in attention_modules(model) if SLOT in vars(module)]
    found = any(_without_linear(layer.entry) is not layer.entry for layer in layers)
    for layer in layers:
        layer.put(_without_linear(layer.entry))
    return found


def _without_linear(entry: Entry) -> Entry:
    """Softmax over the near keys of a hybrid entry, nothing of a linear map alone; another entry as it is."""
    if isinstance(entry, HybridEntry):
        return PatternEntry(entry.near)
    return _Off() if isinstance(entry, LinearEntry | WindowEntry) else entry


@dataclass(frozen=True)
class _Off:
    """A linear map that is switched off, and what it remembers, nothing: its output is 0, so that its layer adds a bias at most."""

    croppable = True
    nbytes = 0

    def causal(self) -> _Off:
        return self

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, *, scale: float | None = None, dropout: float = 0.0
    ) -> Tensor:
        return v.new_zeros(*q.shape[:-1], v.shape[-1])

    def decode(
        self,
        memory: _Off | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ask: Ask,
        *,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, Memory]:
        return self.attend(q, k, v, ask), self

    def reorder(self, index: Tensor) -> None: ...

    def crop(self, length: int) -> None: ...


@contextmanager
def switched_layers(model: PreTrainedModel, attention: str, by_heads: bool = False) -> Iterator[SwitchedLayers]:
    """The model under ``attention`` for a while, its layers (or their key-value heads) to be switched; then it is as it was before.

    ``InputError``: what ``use`` refuses, a model that has an attention of ours, an encoder with a decoder, layers that share one
    module; by heads a model whose layers have one key-value head, or not all as many.
    """
    check_sparse(attention, by_heads)
    name = type(model).__name__
    if attention_of(model):
        raise InputError("sparsify(model)", "an attention of ours", "the model's own", "use(model, attention=None)")
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError("sparsify(model)", f"{name}, an encoder with a decoder", "a decoder or an encoder alone")
    named = [(path, module) for path, module in attention_modules(model) if not is_cross(path, module)]
    modules = [module for _, module in named]
    num_layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", len(modules)))
    if modules and len(modules) < num_layers and getattr(model.config, "num_hidden_groups", None) is not None:
        do = "give each its own with jieyue.unshare(model) and save that"
        raise InputError("sparsify(model)", f"{num_layers} layers that share a module", "a module a layer", do)
    use_attention(model, attention)
    try:
        layers = [vars(module)[SLOT] for module in modules]
        open_ones = [number for number, layer in enumerate(layers) if layer.window is None]
        heads = _heads_of(name, [layers[number] for number in open_ones]) if by_heads and open_ones else 1
        free = tuple(number * heads + head for number in open_ones for head in range(heads))
        around = _around(model, [path for path, _ in named])
        yield SwitchedLayers(layers, [layer.entry for layer in layers], free, around, heads)
    finally:
        remove_attention(model)


def _heads_of(name: str, layers: Sequence[LayerAttention]) -> int:
    """How many key-value heads each of these layers has; ``InputError`` where these are not as many, or one, or were not seen."""
    counts = sorted({0 if layer.heads is None else layer.heads for layer in layers})
    if len(counts) == 1 and counts[0] > 1:
        return counts[0]
    found = f"{name}, whose layers have {' or '.join(map(str, counts))} key-value head{'' if counts == [1] else 's'}"
    if counts[0] == 0:
        found = f"{name}, of which use() could not see how many key-value heads a layer has"
    raise InputError("full_heads", found, "as many in every layer, at least 2", "choose layers: full_layers")


def _around(model: PreTrainedModel, paths: Sequence[str]) -> RememberedLayers | None:
    """The layers that hold one attention each, in order ("model.layers.3" of "model.layers.3.self_attn")."""
    found = [re.match(r"(.*?\.\d+)\.", path) for path in paths]
    names = [match[1] for match in found if match]
    if len(set(names)) < len(paths) or len({re.sub(r"\d+$", "", name) for name in names}) > 1:
        return None
    return RememberedLayers([model.get_submodule(name) for name in names])
