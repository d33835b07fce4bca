"""A model's tables for another set of tokens: which weights have a row (or column) per token, found before any is changed.

The model's class is built twice without memory, from its configuration and from the one it is to have. What differs in shape is
what belongs to the vocabulary, wherever it stands and along whichever dimension (MobileBERT's head has tokens along its columns);
the rest stays. Positions that are counted from the padding's number (RoBERTa and its kin) move with it: their table loses as
many rows at its head. A model of which a difference is not understood is refused, and is then as it was.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from jieyue.errors import InputError

from .surgery import own_config, replace_parameters

__all__ = ["Tables"]

_POSITIONS = "max_position_embeddings"
_PER_POSITION = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class Tables:
    """What changes: for each weight (and buffer) its dimensions of tokens, and how many positions go at a table's head.

    ``kept``: old numbers, in the order of the new ones; ``pieces``: for each added token the old numbers it is the mean of.
    """

    model: PreTrainedModel
    kept: list[int]
    pieces: list[list[int]]
    config: PretrainedConfig
    tokens: Mapping[str, tuple[int, ...]]
    positions: Mapping[str, int]
    padding: Mapping[str, int]

    @classmethod
    def of(cls, model: PreTrainedModel, kept: list[int], pieces: list[list[int]]) -> Tables:
        """What ``apply`` will do; ``InputError`` for a model that cannot be changed so."""
        number = {old: new for new, old in enumerate(kept)}
        config = renumbered(model.config, number, len(kept) + len(pieces))
        before = _imagined(model, model.config)
        shifted, moved = _shifted(before, model.config.pad_token_id, config.pad_token_id), 0
        if shifted:
            moved = model.config.pad_token_id - config.pad_token_id
            setattr(config, _POSITIONS, getattr(config, _POSITIONS) - moved)
        after = _imagined(model, config)
        table = model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        rows = len(table)
        tokens, positions = {}, {}
        new = _shapes(after)
        for name, old in _shapes(before).items():
            if new.get(name) == old:
                continue
            actual = _named(model).get(name)
            if name.rpartition(".")[0] in shifted or (moved and name.rpartition(".")[2] in _PER_POSITION):
                positions[name] = moved
            elif name in new and actual is not None:
                tokens[name] = _dimensions(name, actual, new[name], rows, len(kept) + len(pieces))
            else:
                raise _refused(model, f"{name} of {old} that would be {new.get(name, 'gone')}")
        _check_rest(model, before, tokens, rows)
        padding = {
            name: module.padding_idx
            for name, module in after.named_modules()
            if isinstance(getattr(module, "padding_idx", None), int)
        }
        return cls(model, kept, pieces, config, tokens, positions, padding)

    @torch.no_grad()
    def apply(self) -> None:
        """Changes the model: its tables, its configuration and the numbers that its modules remember."""
        model, named = self.model, _named(self.model)
        changed: dict[nn.Parameter, nn.Parameter] = {}
        for name in (*self.tokens, *self.positions):
            old = named[name]
            cut = old
            for dimension in self.tokens.get(name, ()):
                cut = self._picked(cut, dimension)
            if name in self.positions:
                cut = self._later(name, old)
            if isinstance(old, nn.Parameter):
                changed[old] = nn.Parameter(cut.contiguous(), old.requires_grad)
            else:
                owner, _, last = name.rpartition(".")
                model.get_submodule(owner)._buffers[last] = cut
        replace_parameters(model, changed)
        for name, module in model.named_modules():
            if name in self.padding:
                module.padding_idx = self.padding[name]
            if isinstance(module, nn.Embedding):
                module.num_embeddings = len(module.weight)
            if isinstance(module, nn.Linear):
                module.out_features, module.in_features = module.weight.shape
        own = own_config(model, model)
        own.__dict__.update(self.config.__dict__)
        if isinstance(generation := getattr(model, "generation_config", None), GenerationConfig):
            _renumber(generation, {old: new for new, old in enumerate(self.kept)})

    def _picked(self, old: Tensor, dimension: int) -> Tensor:
        rows = old.transpose(0, dimension)
        means = [rows[ids].mean(0, keepdim=True) for ids in self.pieces]
        return torch.cat([rows[torch.tensor(self.kept, device=old.device)], *means]).transpose(0, dimension)

    def _later(self, name: str, old: Tensor) -> Tensor:
        gone = self.positions[name]
        return old[gone:].clone() if isinstance(old, nn.Parameter) else old[:, : old.shape[1] - gone]


def renumbered(config: PretrainedConfig, number: Mapping[int, int], size: int) -> PretrainedConfig:
    """A copy of the configuration with the vocabulary's size and the tokens' new numbers."""
    changed = copy.deepcopy(config)
    changed.vocab_size = size
    _renumber(changed, number)
    return changed


def _renumber(settings: object, number: Mapping[int, int]) -> None:
    for name, old in list(vars(settings).items()):
        if not name.endswith(("_token_id", "_token_ids")):
            continue
        if isinstance(old, int) and not isinstance(old, bool):
            setattr(settings, name, number.get(old))
        elif isinstance(old, list):
            setattr(settings, name, [number[one] for one in old if one in number])


def _imagined(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The model's class with that configuration, without memory."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return type(model)(copy.deepcopy(config))
    except Exception as error:  # what a class does with a configuration is its own
        raise _refused(model, f"a class that cannot be built from its configuration ({error})") from error


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: [*value.shape] for name, value in _named(model).items()}


def _shifted(model: PreTrainedModel, old: int | None, new: int | None) -> set[str]:
    """The tables of positions that are counted from the padding's number and lose rows; refuses other uses of that number."""
    found, rows = set(), model.config.vocab_size
    for name, module in model.named_modules():
        number = getattr(module, "padding_idx", None)
        is_words = isinstance(module, nn.Embedding) and (type(module) is nn.Embedding or len(module.weight) == rows)
        if not isinstance(number, int) or is_words:
            continue
        table = getattr(module, "position_embeddings", None)
        if number != old or new is None:
            raise _refused(
                model,
                f"{type(module).__name__}, which takes token {number} for padding while the configuration has {old}",
            )
        if number == new:
            continue
        if not isinstance(table, nn.Embedding) or table.padding_idx != number:
            raise _refused(model, f"{type(module).__name__}, which does something of its own with the padding's number")
        found.add(f"{name}.position_embeddings")
    return found


def _dimensions(name: str, actual: Tensor, new: Sequence[int], rows: int, size: int) -> tuple[int, ...]:
    found = []
    for dimension, (have, want) in enumerate(zip(actual.shape, new, strict=True)):
        if have != want:
            if have != rows or want != size:
                raise InputError("prune_vocabulary", f"{name} of {[*actual.shape]}", f"{[*new]}, or {rows} tokens")
            found.append(dimension)
    return tuple(found)


def _check_rest(model: PreTrainedModel, before: PreTrainedModel, tokens: Mapping[str, object], rows: int) -> None:
    """What the class does not build (adapters, changed layers) may have rows of tokens that nobody would cut."""
    table = next((name for name, p in _named(model).items() if p is model.get_input_embeddings().weight), "")
    if table not in tokens:
        raise _refused(model, "an embedding that does not follow the configuration's vocab_size")
    known = _shapes(before)
    for name, value in _named(model).items():
        if name not in known and rows in value.shape:
            raise _refused(model, f"{name} of {[*value.shape]}, which its class does not build")


def _refused(model: PreTrainedModel, found: str) -> InputError:
    kind = "a model of transformers whose tables follow its configuration; the model is as it was"
    return InputError(f"prune_vocabulary of {type(model).__name__}", found, kind)
