"""The model of a run: a preset that starts from scratch, or any model that transformers loads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from jieyue.data.batch import pad_of
from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError
from jieyue.hf.albert import Sharing, sharing_of, unshare
from jieyue.hf.classic_presets import CLASSIC_PRESETS, build_classic, classic_config, refuse_misspelt
from jieyue.hf.entries import parse_entry, split_layers
from jieyue.hf.loading import (
    check_name,
    check_tokenizer,
    head_of,
    load_config,
    load_model,
    load_tokenizer,
    model_from_config,
)
from jieyue.hf.low_rank import Adapter, trained_share
from jieyue.hf.prefix import as_prefix_lm
from jieyue.hf.presets import PRESETS, STARTS, build, preset_config
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.hf.use import use
from jieyue.json_values import Facts

if TYPE_CHECKING:
    from jieyue.hf.types import Config, Tokenizer

    from .config import RunConfig

NO_LIMIT = 1_000_000  # positions of a model that sets none

__all__ = ["NO_LIMIT", "ModelSource", "check_model", "open_model", "with_attention", "with_padding"]


@dataclass(frozen=True)
class ModelSource:
    """``build()`` makes the model; ``blueprint()`` without its trained weights (free under fake tensors), ``plain()`` without
    the pattern as well. ``unshare(model, ...)``: what is done to it after some updates, where that was asked for.
    ``sharing``: of an ALBERT that is unshared, as it was and as it becomes. ``head``: "new" where it starts anew;
    ``start``: how a preset's weights begin; ``adapter``: in words, where adapters alone are trained."""

    name: str
    is_preset: bool
    tokenizer: Tokenizer
    positions: int
    plain: Callable[[], nn.Module]
    blueprint: Callable[[], nn.Module]
    build: Callable[[], nn.Module]
    unshare: Callable[..., nn.Module] | None = None
    sharing: tuple[Sharing, Sharing] | None = None
    head: str = "the checkpoint's"
    start: str | None = None
    adapter: str | None = None


def check_model(config: RunConfig) -> None:
    """``InputError`` for what a look tells, before data are read: a misspelt preset, a folder that is none, a pattern that is none."""
    refuse_misspelt(config.model)
    if config.model not in {*PRESETS, *CLASSIC_PRESETS}:
        check_name(config.model)
    if "/" in config.model and not Path(config.model).is_dir():
        load_config(config.model)  # the hub's, or what is kept of it here
    for text in () if config.attention is None else split_layers(config.attention):
        parse_entry(text)


def open_model(
    config: RunConfig,
    head: str,
    texts: Callable[[], Iterable[str]],
    *,
    entries: Facts | None = None,
    start: str | None = None,
    seed: int = 0,
    new_head: bool = False,
) -> ModelSource:
    """``config.model``: a preset's name, a folder or a hub name. No weight is allocated before ``build()``.

    ``head``: of ``hf.loading.HEADS``; ``entries``: of the model's configuration; ``new_head``: a checkpoint with
    another head is what is expected. A preset's vocabulary is learned from ``texts()``, or read from a ``vocab.txt``.
    """
    name, own_entries = config.model, dict(entries or {})
    adapter = Adapter.parse(config.adapter, config.base)
    if name in {*PRESETS, *CLASSIC_PRESETS} and not Path(name).is_dir():
        if adapter is not None:
            found = f"the preset {name}, whose frozen weights would stay random"
            raise InputError(f"adapter={config.adapter!r}", found, "a trained model: a folder or a hub name")
        own = make_tokenizer(learn_vocabulary(texts()) if config.vocabulary is None else config.vocabulary)
        if head not in ("masked-lm", "prefix", "classification", "token-classification", "span"):
            raise InputError(f"model={name!r}", f"the head {head!r}", "a masked LM or a prefix LM", "name a checkpoint")
        if name in PRESETS:
            settled: Any = preset_config(name, own, **own_entries)
            make = partial(build, name, own, head=head, start=start or STARTS[0], seed=seed, **own_entries)
        else:
            settled = classic_config(name, own, **own_entries)
            make = partial(build_classic, name, own, head=head, start=start, seed=seed, **own_entries)
        return replace(_source(config, head, own, settled, make, True, "new", None), start=start or STARTS[0])
    refuse_misspelt(name)
    tokenizer, settled = load_tokenizer(name), load_config(name)
    before = head_of(name)
    permitted = config.new_head or (new_head and before != head)
    if new_head and before == head and not config.new_head:
        _same_labels(name, settled, own_entries)
    for key, value in own_entries.items():
        setattr(settled, key, value)
    is_new = permitted and before != head
    finish = None if adapter is None else partial(adapter.put_into, head=head, new_head=is_new, seed=seed)
    make = partial(_loaded, name, head, permitted, settled, seed, adapter)
    return _source(config, head, tokenizer, settled, make, False, "new" if is_new else "the checkpoint's", finish)


def with_padding(source: ModelSource) -> ModelSource:
    """The model as it is; ``InputError`` where its tokenizer has no padding token, by which rows of one batch are filled up."""
    pad_of(source.tokenizer)
    return source


def _source(
    run: RunConfig,
    head: str,
    tokenizer: Tokenizer,
    config: Config,
    make: Callable[[], nn.Module],
    is_preset: bool,
    kind: str,
    finish: Callable[[nn.Module], nn.Module] | None,
) -> ModelSource:
    """``finish``: puts adapters into the model, last of all."""
    groups, after = run.unshare, run.unshare_after
    apart = None if groups is None else partial(_unshared, groups)
    with torch.device("meta"):
        drawn = model_from_config(copy.deepcopy(config), head)
        check_tokenizer(run.model, tokenizer, drawn)
        positions = positions_of(drawn)
        sharing = None
        if apart is not None:
            shared = sharing_of(drawn)
            sharing = (shared, sharing_of(apart(drawn)))
        adapter = None if finish is None else trained_share(finish(drawn))

    def fresh(attention: str | None = None) -> nn.Module:
        own = copy.deepcopy(config)
        if sharing is not None:  # fake tensors cannot be copied: the same shapes from the configuration
            own.num_hidden_groups = sharing[1].num_groups
        return finished(_ready(model_from_config(own, head), head, tokenizer), attention)

    def finished(model: nn.Module, attention: str | None) -> nn.Module:
        patterned = with_attention(model, attention)
        return patterned if finish is None else finish(model)

    def built() -> nn.Module:
        model = _ready(make(), head, tokenizer)
        return model if apart is None or after else apart(model)

    return ModelSource(
        name=run.model,
        is_preset=is_preset,
        tokenizer=tokenizer,
        positions=positions or NO_LIMIT,
        plain=fresh,
        blueprint=lambda: fresh(run.attention),
        build=lambda: finished(built(), run.attention),
        unshare=apart if after else None,
        sharing=sharing,
        head=kind,
        adapter=adapter,
    )


def _loaded(name: str, head: str, new_head: bool, config: Config, seed: int, adapter: Adapter | None) -> nn.Module:
    """The checkpoint's weights, in four bits where the adapter's base is; a head that starts anew is drawn from the seed."""
    rounding = None
    if adapter is not None and adapter.base is not None:
        with torch.device("meta"):
            rounding = adapter.loading(model_from_config(copy.deepcopy(config), head))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_model(name, head, new_head=new_head, config=copy.deepcopy(config), quantization=rounding)


def _unshared(groups: int, model: nn.Module, **options: bool) -> nn.Module:
    return unshare(model, groups or None, **options)


def _same_labels(name: str, config: Config, entries: Facts) -> None:
    """Refuses a classifier of other labels: its head would mean something else by the same number."""
    wanted = entries.get("id2label")
    found = {int(at): str(label) for at, label in (config.id2label or {}).items()}
    if wanted is not None and [found[at] for at in sorted(found)] != list(wanted.values()):
        raise InputError(
            f"model={name!r}",
            f"a head for the labels {', '.join(found.values())[:80]}",
            f"one for {', '.join(wanted.values())[:80]}",
            "let the head start anew with new_head (--new-head)",
        )


def _ready(model: nn.Module, head: str, tokenizer: Tokenizer) -> nn.Module:
    """A prefix LM with its mask, and the tokenizer's special tokens."""
    return as_prefix_lm(model, tokenizer) if head == "prefix" else model


def with_attention(model: nn.Module, attention: str | None) -> nn.Module:
    """The model, its self-attention replaced by a pattern where one is given."""
    if attention is not None:
        use(model, attention=attention)
    return model
