"""A pattern in any transformers model: ``use_attention(model, "local(128)+atrous(8)")``.

Through transformers' own ``AttentionInterface`` and ``AttentionMaskInterface``: no model code is replaced. An entry takes the
place of self-attention over all keys; cross-attention stays full, and layers with a window of their own keep it unless a
comma-separated list names every layer. Causality and windows come from the mask that the model asks for (``masks``); a small
forward pass shows beforehand that mask and arguments are all that the model's attention depends on (``probe``). What cannot be
honoured is refused, never ignored. The choice is written to the model's configuration, under a key of ours and as
``attn_implementation``: our loading restores it, plain transformers refuses the name.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from jieyue.attention import Pattern, full
from jieyue.errors import InputError

from .attention_call import PREFIX, interface_name, register_attention
from .biases import drop_biases, give_biases
from .cache import close_doors, open_doors
from .entries import Entry, HeadsEntry, PatternEntry, parse_entry, refuse_more, split_layers
from .implementation import held_configs, implementations, own_configs, set_implementations
from .layers import SLOT, LayerAttention
from .outside import adds_alibi_twice, drop_forwards, give_forwards, is_outside
from .probe import Seen, look, runs_under_sdpa
from .saved_attention import DROPOUT_FIELD, FIELD, LOAD_ALONE, PART_FIELD, WINDOWS_FIELD

__all__ = [
    "FIELD",
    "PART_FIELD",
    "attention_engines",
    "attention_modules",
    "attention_of",
    "forget_attention",
    "interface_name",
    "is_cross",
    "part_of",
    "register_attention",
    "remove_attention",
    "restore_attention",
    "use_attention",
]

_HANDLE = "jieyue_proof"
_BEFORE = "jieyue_attention_before"
_CROSS = ("crossattention", "cross_attn", "encoder_attn", "encdecattention", "cross_attention")


def use_attention(
    model: PreTrainedModel, attention: str | Pattern, *, dropout: float | None = None, part: str | None = None
) -> dict[str, str]:
    """Gives each self-attention of ``model`` its entry; returns module path -> its text, for the report.

    ``attention``: a pattern, the text of an entry, or a comma-separated list tiled over the layers ("local(64),atrous(8)").
    ``dropout``: in the place of the model's attention dropout in training. ``part``: the path of the module whose attentions
    get it ("language_model"); all others stay. ``InputError`` for models outside the interface, shared
    layers (ALBERT) with a list, lists longer than the layers, and what cannot be honoured; the model is then as it was.
    """
    entries = [parse_entry(text) for text in split_layers(str(attention))]
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError(f"use(dropout={dropout})", str(dropout), "0 <= dropout < 1")
    _check_model(model)
    inside = part_of(model, part)
    named = [(f"{inside[0]}{name}", module) for name, module in attention_modules(inside[1])]
    _check_list(model, len(entries), len([name for name, module in named if not is_cross(name, module)]))
    own_configs(model)
    if adds_alibi_twice(model) and "eager" in (vars(model).get(_BEFORE) or implementations(held_configs(model))):
        raise InputError(
            f"use(attention=...): {type(model).__name__}'s eager attention adds ALiBi twice, to the scores and with the mask; "
            "expected a model that was made with attn_implementation='sdpa'"
        )
    configs = _configs_for(model, inside[1], [module for _, module in named])
    by_sdpa = runs_under_sdpa(model)
    blank = {
        module: LayerAttention(PatternEntry(full()), is_cross(name, module), by_sdpa=by_sdpa) for name, module in named
    }
    with _bare(model, blank):
        seen = look(model, blank, configs)
    given = _assigned(model, named, entries, seen or {}, by_sdpa)
    for layer in given.values():
        layer.dropout = dropout
        layer.entry_for(layer.causal and not layer.cross)  # what cannot be causal is refused here
    _tell_what_stays(model, entries, list(given.values()))
    _tell_of_pictures(model, given)
    remove_attention(model)
    for module, layer in given.items():
        vars(module)[SLOT] = layer
        vars(module)[_HANDLE] = module.register_forward_hook(_prove)
    text = ",".join(map(str, entries))
    held = held_configs(model)
    vars(model)[_BEFORE] = implementations(held)
    set_implementations(configs, [register_attention(text)] * len(configs))
    for config in configs:
        config.attn_implementation = LOAD_ALONE + text if any(map(is_outside, given)) else interface_name(text)
    told = ((FIELD, text), (DROPOUT_FIELD, dropout), (PART_FIELD, part), (WINDOWS_FIELD, _own_windows(given) or None))
    for key, chosen in told:
        if chosen is not None:
            setattr(model.config, key, chosen)
    give_biases(given)
    give_forwards(model, given)
    open_doors(model)
    return attention_of(model)


def restore_attention(model: PreTrainedModel) -> dict[str, str]:
    """Gives a model that was built from a configuration of ours the attention that it names; {} if it names none."""
    text = getattr(model.config, FIELD, None)
    if not text:
        return {}
    dropout, part = (getattr(model.config, key, None) for key in (DROPOUT_FIELD, PART_FIELD))
    return use_attention(model, text, dropout=dropout, part=part)


def remove_attention(model: PreTrainedModel) -> None:
    """Takes it off: the attention that the model had before, and nothing of ours in model or configuration."""
    if not attention_of(model) and not getattr(model.config, FIELD, None):
        return
    close_doors(model)
    drop_forwards(model)
    for _, module in attention_modules(model):
        vars(module).pop(SLOT, None)
        drop_biases([module])
        handle = vars(module).pop(_HANDLE, None)
        if handle is not None:
            handle.remove()
    held = held_configs(model)
    plain = "sdpa" if runs_under_sdpa(model) else "eager"
    before = vars(model).pop(_BEFORE, None) or [plain] * len(held)
    set_implementations(held, [plain if str(name).startswith(PREFIX) else name for name in before])
    forget_attention(model)


def forget_attention(model: PreTrainedModel) -> None:
    """Takes the choice out of the model's configurations, which then save as if it had none of ours; the model keeps it."""
    for config in held_configs(model):
        for key in (FIELD, DROPOUT_FIELD, PART_FIELD, WINDOWS_FIELD):
            vars(config).pop(key, None)
        if str(vars(config).get("attn_implementation")).startswith((PREFIX, LOAD_ALONE)):
            del config.attn_implementation


def attention_of(model: nn.Module) -> dict[str, str]:
    """Module path -> text of every self-attention that has an entry of ours; empty when the model has none."""
    found = {name: vars(module).get(SLOT) for name, module in attention_modules(model)}
    return {name: str(layer.entry) for name, layer in found.items() if layer is not None and not layer.cross}


def attention_engines(model: nn.Module) -> list[tuple[str, str, str, str]]:
    """(module paths, entry, engine, why not the ones before it) of the self-attentions that have run, alike ones together."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for name, module in attention_modules(model):
        layer: LayerAttention | None = vars(module).get(SLOT)
        if layer is None or layer.cross or not layer.called:
            continue
        for asked in layer.engines or ((),):
            before = list(takewhile(lambda one: one[1] is not None, asked))
            ran = asked[len(before)][0] if asked else "linear attention's own"
            reasons = "; ".join(str(reason) for _, reason in before)
            found.setdefault((str(layer.entry), ran, reasons), {})[name] = None
    return [(", ".join(names), *what) for what, names in found.items()]


def attention_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of every module whose forward looks its attention up in transformers' interface, or is known, in order."""
    for name, module in model.named_modules():
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if is_outside(module) or (code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names):
            yield name, module


def part_of(model: nn.Module, part: str | None) -> tuple[str, nn.Module]:
    """(path with a dot behind, module) of the one module whose path is ``part`` or ends in it; the model itself for None.

    "language_model" is also the text decoder that a model names otherwise (Idefics: "text_model").
    """
    if part is None:
        return "", model
    found = {name: one for name, one in model.named_modules() if name == part or name.endswith(f".{part}")}
    if part == "language_model" and not found and isinstance(model, PreTrainedModel):
        found = {name: one for name, one in model.named_modules() if name and one is model.get_decoder()}
    shortest = min(found, key=len, default="")
    if not found or any(not name.startswith(shortest) for name in found):
        parts = [name for name, one in model.named_modules() if name and isinstance(one, PreTrainedModel)]
        raise InputError(
            f"use(part={part!r})", f"{len(found)} modules of that path", f"one of {', '.join(parts) or 'no part'}"
        )
    return f"{shortest}.", found[shortest]


def is_cross(name: str, module: nn.Module) -> bool:
    return bool(getattr(module, "is_cross_attention", False)) or any(word in name.lower() for word in _CROSS)


def _assigned(
    model: PreTrainedModel,
    named: Sequence[tuple[str, nn.Module]],
    entries: Sequence[Entry],
    seen: Mapping[nn.Module, Seen],
    by_sdpa: bool,
) -> dict[nn.Module, LayerAttention]:
    """The entry of each module: the list starts anew in each stack, encoder and decoder; own windows stay unless named."""
    given: dict[nn.Module, LayerAttention] = {}
    layers: Counter[str] = Counter()
    for name, module in named:
        fact = seen.get(module)
        cross = is_cross(name, module) or (fact is not None and fact.cross)
        stack = re.split(r"\.\d+\.", name)[0]
        layer = LayerAttention(
            PatternEntry(full()) if cross else entries[layers[stack] % len(entries)],
            cross,
            causal=bool(getattr(module, "is_causal", not seen)) if fact is None else fact.causal,
            named=len(entries) > 1,
            seen=fact is not None,
            heads=None if fact is None else fact.heads,
            by_sdpa=by_sdpa,
        )
        layers[stack] += not cross
        if fact is not None and not cross and not layer.named:
            layer.keep_window(fact.window)
        if fact is not None:
            refuse_more(layer.entry, fact.more)
            if isinstance(layer.entry, HeadsEntry) and fact.heads is not None:
                layer.entry.check(fact.heads)
        if fact is not None and fact.forwards > 1 and len(entries) > 1:
            _refuse_shared(model, len(entries))
        given[module] = layer
    return given


def _own_windows(given: Mapping[nn.Module, LayerAttention]) -> dict[str, int]:
    """Number of a layer -> the window of its own that it keeps, for a folder that transformers itself opens."""
    kept = {getattr(module, "layer_idx", None): layer.window for module, layer in given.items() if not layer.cross}
    return {str(number): window for number, window in kept.items() if number is not None and window is not None}


def _tell_what_stays(model: PreTrainedModel, entries: Sequence[Entry], layers: Sequence[LayerAttention]) -> None:
    """A request that changes nothing is told; ``full()`` asks for nothing where a layer has a window of its own."""
    own = [layer for layer in layers if not layer.cross]
    if len(entries) == 1 and str(entries[0]) != "full()" and own and all(layer.window is not None for layer in own):
        kept = ", ".join(sorted({str(layer.entry) for layer in own}))
        warnings.warn(
            f"use(attention={str(entries[0])!r}): nothing changes, each self-attention of {type(model).__name__} has a window of "
            f"its own and keeps it ({kept}); a list of at least two entries names every layer",
            stacklevel=4,
        )


def _tell_of_pictures(model: PreTrainedModel, given: Mapping[nn.Module, LayerAttention]) -> None:
    """A pattern over the patches of a picture is told: neighbours in the row of patches are not neighbours in the picture."""
    reads: dict[nn.Module, str] = {}  # what the innermost part that a module is in reads
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            reads |= dict.fromkeys(part.modules(), part.main_input_name)
    found = [layer for module, layer in given.items() if reads[module] == "pixel_values" and not layer.cross]
    entries = sorted({str(layer.entry) for layer in found} - {"full()"})
    if entries:
        warnings.warn(
            f"use(attention={', '.join(entries)!r}): {len(found)} self-attentions read the patches of pictures, and a pattern counts "
            "along the flattened patches, row after row; part='language_model' leaves the pictures' attention as it is",
            stacklevel=4,
        )


def _check_model(model: nn.Module) -> None:
    can = isinstance(model, PreTrainedModel) and model._can_set_attn_implementation()
    if not can and not any(map(is_outside, model.modules())):
        raise InputError(
            f"use(attention=...): {type(model).__name__} is outside transformers' attention interface; expected a model such "
            "as BERT, RoBERTa, ModernBERT, GPT-2, BART, Llama, Qwen3 or Mistral"
        )


def _check_list(model: PreTrainedModel, num_entries: int, num_layers: int) -> None:
    if not num_layers:
        raise InputError(
            f"use(attention=...): {type(model).__name__} has no self-attention of transformers' interface; expected at least one"
        )
    groups = getattr(model.config, "num_hidden_groups", None)
    if num_entries > 1 and groups is not None and groups < model.config.num_hidden_layers and num_layers <= groups:
        _refuse_shared(model, num_entries)
    if num_entries > num_layers:
        raise InputError(
            f"use(attention=...): found a list of {num_entries} entries, expected at most one for each of the {num_layers} "
            f"self-attentions of {type(model).__name__}"
        )


def _refuse_shared(model: PreTrainedModel, num_entries: int) -> None:
    raise InputError(
        f"use(attention=...): found a list of {num_entries} entries, but the layers of {type(model).__name__} share one "
        "module; expected one entry, or layers unshared by jieyue.unshare(model)"
    )


def _configs_for(model: PreTrainedModel, inside: nn.Module, modules: Sequence[nn.Module]) -> list[PretrainedConfig]:
    """The configurations in which these modules, and what makes their masks, look attention up; no other module's."""
    if inside is model:
        return held_configs(model)
    chosen = {id(config): config for config in held_configs(inside)}
    others = [one for _, one in attention_modules(model) if one not in set(modules)]
    taken = {id(config) for one in others for config in vars(one).values() if isinstance(config, PretrainedConfig)}
    if taken & set(chosen):
        raise InputError(
            f"use(part=...): {type(inside).__name__} shares its configuration with attention outside of it; expected a part "
            "with a configuration of its own, such as the language model of a vision-language model"
        )
    return list(chosen.values())


@contextlib.contextmanager
def _bare(model: nn.Module, modules: Mapping[nn.Module, LayerAttention]) -> Iterator[None]:
    """Without what an earlier ``use`` put there, for a while."""
    before = {module: vars(module).pop(SLOT) for module in modules if SLOT in vars(module)}
    drop_biases(before)
    drop_forwards(model)
    close_doors(model)
    try:
        yield
    finally:
        for module, layer in before.items():
            vars(module)[SLOT] = layer
        give_biases(before)
        give_forwards(model, before)
        if before:
            open_doors(model)


def _prove(module: nn.Module, *_: object) -> None:
    """After a module's forward pass: it must have come through ``attention_forward``."""
    layer = vars(module).get(SLOT)
    if layer is not None and not layer.called:
        raise RuntimeError(f"{type(module).__name__} has the pattern {layer.entry}, but its attention ran without it")
