"""A folder that was saved with our attention, opened by transformers itself after ``import jieyue.hf``.

transformers asks its table for the name in ``config.json`` ("jieyue:" and the patterns' text) before it builds the model. The table
answers for every such name from here on, and a module that ``use`` never saw takes its entry from its configuration, by the number of
its layer, at its first call. What the model asks for is honoured or refused call by call as ever; ``jieyue.load`` proves the whole
model beforehand and gives ``generate`` a cache of the pattern's size, which this way has not: same tokens, plain cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface

from jieyue.errors import InputError

from .entries import parse_entry, split_layers
from .layers import SLOT, LayerAttention

__all__ = [
    "DROPOUT_FIELD",
    "FIELD",
    "LOAD_ALONE",
    "PART_FIELD",
    "PREFIX",
    "WINDOWS_FIELD",
    "SavedNames",
    "answer_for_saved_names",
    "layer_from_config",
]

PREFIX = "jieyue:"
LOAD_ALONE = "jieyue.load:"  # of a model that needs more than a name, so that transformers refuses the folder
FIELD = "jieyue_attention"  # the key of config.json that says the same without the prefix
DROPOUT_FIELD = "jieyue_attention_dropout"
PART_FIELD = "jieyue_attention_part"
WINDOWS_FIELD = (
    "jieyue_attention_windows"  # number of a layer -> the model's own window, which one entry for all leaves there
)


class _Any(str):
    """A name that equals every name of ours: what a list of the known names has to hold."""

    __slots__ = ()

    def __eq__(self, other: str) -> bool:  # type: ignore[override]
        return isinstance(other, str) and other.startswith(PREFIX)

    __hash__ = str.__hash__


class SavedNames(dict[str, Callable[..., object]]):
    """A table of transformers, which has ``answer`` for every name that begins with ours and is not in it otherwise."""

    def __init__(self, table: dict[str, Callable[..., object]], answer: Callable[..., object]) -> None:
        super().__init__(table)
        self.answer = answer

    def __missing__(self, name: str) -> Callable[..., object]:
        if isinstance(name, str) and name.startswith(PREFIX):
            return self.answer
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        yield _Any(PREFIX)

    def __contains__(self, name: str) -> bool:  # type: ignore[override]
        return super().__contains__(name) or (isinstance(name, str) and name.startswith(PREFIX))

    def keys(self) -> list[str]:  # type: ignore[override]
        return list(self)


def answer_for_saved_names(attend: Callable[..., object], make_mask: Callable[..., object]) -> None:
    """Puts ``attend`` and ``make_mask`` into transformers' tables for every name of ours, once."""
    for table, answer in ((AttentionInterface, attend), (AttentionMaskInterface, make_mask)):
        if not isinstance(table._global_mapping, SavedNames):
            table._global_mapping = SavedNames(dict(table._global_mapping.items()), answer)  # type: ignore[arg-type]


def layer_from_config(module: nn.Module) -> LayerAttention | None:
    """What a module of a folder that was opened by transformers itself gets, kept there; None where its configuration says nothing.

    ``InputError`` where that cannot be told from the module alone: an encoder with a decoder, a part of a larger model, and a list of
    entries for a module that does not know its number. ``jieyue.load`` opens all of these.
    """
    config = getattr(module, "config", None)
    text = getattr(config, FIELD, None)
    if not isinstance(config, PretrainedConfig) or not text:
        return None
    name, number = type(module).__name__, getattr(module, "layer_idx", None)
    entries = [parse_entry(one) for one in split_layers(str(text))]
    numbered = isinstance(number, int) or len(entries) == 1
    if getattr(config, "is_encoder_decoder", False) or getattr(config, PART_FIELD, None) or not numbered:
        found = f"the attention {text} in a model whose modules do not say which layer they are"
        raise InputError(name, found, "a decoder or an encoder alone", "open the folder with jieyue.load")
    layer = LayerAttention(
        entries[number % len(entries) if isinstance(number, int) else 0],
        cross=bool(getattr(module, "is_cross_attention", False)),
        dropout=getattr(config, DROPOUT_FIELD, None),
        named=len(entries) > 1,
    )
    windows = getattr(config, WINDOWS_FIELD, None)
    if windows and not layer.cross and not layer.named:
        layer.seen = True  # by use(), before the folder was saved
        layer.keep_window(dict(windows).get(str(number)))
    vars(module)[SLOT] = layer
    return layer
