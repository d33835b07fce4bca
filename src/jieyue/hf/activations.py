"""GELU inside transformers' models: our names in its table, which modules hold one, and another one in its place.

After ``import jieyue.hf`` a configuration may say ``hidden_act="jieyue:tanh-minimax"`` (any name of ``activations.NAMED``, and
``none``). A fit of your own has its constants in its name, ``jieyue:tanh(a=0.8,b=0.035)``: ``use_gelu`` registers it, and
``register("jieyue:tanh(a=0.8,b=0.035)")`` does so in the process that loads the folder; ``register_config`` finds it there.

A model's variants are found by what its modules are, not by what its configuration says: the two differ after a swap, and
where a class has its own GELU wired in, which is reported and left alone.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.activations import NAMED, Activation, Approximation, Gelu, Weight, histogram, variant
from jieyue.activations.operator import Variant
from jieyue.errors import InputError

__all__ = [
    "Holder",
    "collect_inputs",
    "find_activations",
    "known_mismatch",
    "register",
    "register_all",
    "register_config",
    "short_name",
    "use_gelu",
    "wired_in",
]

PREFIX = "jieyue:"
# Keys of configurations that name an activation.
_KEYS = (
    "hidden_act", "hidden_activation", "activation_function", "activation", "dense_act_fn", "decoder_activation_function",
    "mlp_hidden_act", "projector_hidden_act", "feat_extract_activation", "classifier_activation", "act_fn",
)  # fmt: skip
# transformers' own modules and names, and the variant that each computes.
_CLASSES = {
    "GELUActivation": "none",
    "GELUTanh": "tanh",
    "PytorchGELUTanh": "tanh",  # its former name
    "NewGELUActivation": "tanh",
    "FastGELUActivation": "tanh",
    "AccurateGELUActivation": "tanh",
    "QuickGELUActivation": "sigmoid",
}
_NAMES = {
    "gelu": "none", "gelu_python": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_accurate": "tanh",
    "gelu_pytorch_tanh": "tanh", "gelu_python_tanh": "tanh", "quick_gelu": "sigmoid",
}  # fmt: skip
_WRITTEN = {"none": "gelu", "tanh": "gelu_pytorch_tanh", "sigmoid": "quick_gelu"}
_MISMATCHES = {
    "albert": "Google trained its English ALBERT with the tanh form (transformers #2395)",
    "gpt2": "OpenAI trained GPT-2 with the tanh form",
    "gemma": "Google trained Gemma with the tanh form (vllm #3411)",
}


@dataclass(frozen=True)
class Holder:
    """One place in a model that holds an activation: ``parent.attribute``; ``kind`` is a GELU variant's text, or None."""

    path: str
    parent: nn.Module
    attribute: str
    kind: str | None

    @property
    def held(self) -> Any:
        return getattr(self.parent, self.attribute)


def register(name: str) -> str:
    """Puts ``jieyue:…`` into transformers' table ``ACT2FN``, once. Returns the name; ``InputError`` for one that cannot be read."""
    from transformers.activations import ACT2FN

    if not name.startswith(PREFIX):
        raise InputError(
            f"register({name!r}): expected a name that begins with {PREFIX!r}, such as {PREFIX}tanh-minimax"
        )
    chosen = variant(name.removeprefix(PREFIX))
    if name not in ACT2FN:
        ACT2FN[name] = (Gelu, {"approximate": chosen})
    return name


def register_all() -> None:
    """The names of ``NAMED`` and ``none``; ``import jieyue.hf`` does it."""
    for name in ("none", *NAMED):
        register(PREFIX + name)


def register_config(config: Any) -> list[str]:
    """Registers each ``jieyue:…`` activation that a configuration (or a nested one) names, before its model is built."""
    found: list[str] = []
    entries = config if isinstance(config, Mapping) else config.to_dict()
    for key, value in entries.items():
        if isinstance(value, Mapping):
            found += register_config(value)
        elif key in _KEYS and isinstance(value, str) and value.startswith(PREFIX):
            found.append(register(value))
    return found


def find_activations(model: nn.Module) -> list[Holder]:
    """Every attribute of every module that holds an activation of transformers' table, of torch's, or of ours.

    Functions (``torch.nn.functional.gelu``) held as attributes are found too. See ``wired_in`` for what cannot be found so.
    """
    return list(_holders(model))


def _holders(model: nn.Module) -> Iterator[Holder]:
    known = _activation_classes()
    for path, parent in model.named_modules():
        if isinstance(parent, known):
            continue  # an activation's own parts are not places of their own
        prefix = f"{path}." if path else ""
        for attribute, child in parent._modules.items():
            if child is not None and isinstance(child, known):
                yield Holder(prefix + attribute, parent, attribute, _kind(child))
        for attribute, value in vars(parent).items():
            if not attribute.startswith("_") and (kind := _function_kind(value)) is not None:
                yield Holder(prefix + attribute, parent, attribute, kind)


def _activation_classes() -> tuple[type, ...]:
    from transformers.activations import ACT2CLS

    listed: list[Any] = [content[0] if isinstance(content, tuple) else content for content in ACT2CLS.values()]
    return (*dict.fromkeys(listed), nn.GELU, Gelu, Activation)


def _kind(module: object) -> str | None:
    if isinstance(module, Gelu):
        return short_name(module.approximate)
    if isinstance(module, nn.GELU):
        return str(module.approximate)
    return _CLASSES.get(type(module).__name__)


def _function_kind(value: Any) -> str | None:
    if value is nn.functional.gelu:
        return "none"
    if isinstance(value, functools.partial) and value.func is nn.functional.gelu and not value.args:
        return str(value.keywords.get("approximate", "none"))
    return None


def wired_in(model: nn.Module) -> list[str]:
    """Modules whose own ``forward`` calls a GELU by name ("lm_head: RobertaLMHead"): no attribute to swap."""
    found = []
    for path, module in model.named_modules():
        code = getattr(type(module).forward, "__code__", None)
        if code is None or isinstance(module, _activation_classes()):
            continue
        if "gelu" in code.co_names and not hasattr(module, "gelu"):
            found.append(f"{path or 'the model'}: {type(module).__name__}")
    return found


def use_gelu(model: Any, gelu: Variant) -> list[Holder]:
    """Puts another GELU in the place of every GELU of a loaded model, in place; returns the places.

    ``gelu``: as in ``activations.gelu``: "none", "tanh", "sigmoid", a named or written fit, a ``Fit``. The configuration is told,
    with transformers' own name where it has one, so that a saved folder remembers; a warning says where it cannot, and which
    classes have a GELU wired into their code. Weights, dtype, device and hooks are untouched. ``InputError`` where the
    model holds no GELU.
    """
    chosen = variant(gelu)
    holders = [holder for holder in find_activations(model) if holder.kind is not None]
    if not holders:
        others = sorted({type(holder.held).__name__ for holder in find_activations(model)})
        raise InputError(
            f"use(model, gelu={short_name(chosen)!r}): found {', '.join(others) or 'no activation'} in {type(model).__name__}, "
            "expected at least one module that holds a GELU"
        )
    for holder in holders:
        made = Gelu(chosen)
        made.train(holder.parent.training)
        setattr(holder.parent, holder.attribute, made)
    _tell_configs(model, holders, chosen)
    forgetful = _forgotten(model, holders, chosen)
    if forgetful:
        warnings.warn(
            f"use(model, gelu={short_name(chosen)!r}): the configuration cannot say so for {', '.join(forgetful)}; "
            "a saved folder will load with another activation there",
            stacklevel=2,
        )
    left = wired_in(model)
    if left:
        warnings.warn(
            f"use(model, gelu={short_name(chosen)!r}): left as it is where the class calls its own GELU: {', '.join(left)}",
            stacklevel=2,
        )
    return [Holder(h.path, h.parent, h.attribute, short_name(chosen)) for h in holders]


def _tell_configs(model: nn.Module, holders: list[Holder], chosen: str | Approximation) -> None:
    """Writes the name into every configuration above a swapped place, wherever it named a GELU."""
    name = _WRITTEN.get(short_name(chosen)) or register(PREFIX + short_name(chosen))
    for path, owner in model.named_modules():
        if not hasattr(owner, "config") or not any(h.path.startswith(f"{path}." if path else "") for h in holders):
            continue
        for key in _KEYS:
            value = getattr(owner.config, key, None)
            if isinstance(value, str) and (value in _NAMES or value.startswith(PREFIX)):
                _tell(owner.config, key, name)


def _tell(config: Any, key: str, name: str) -> None:
    """One entry; T5's family derives it from ``feed_forward_proj``, split at dashes, where "gated-gelu" means the tanh form."""
    projection = getattr(config, "feed_forward_proj", None)
    if key == "dense_act_fn" and projection is not None and "-" not in name:
        name = "gelu_python" if name == "gelu" else name
        config.feed_forward_proj = f"gated-{name}" if projection.startswith("gated-") else name
    setattr(config, key, name)


def _forgotten(model: nn.Module, holders: list[Holder], chosen: str | Approximation) -> list[str]:
    """Places where a model built anew from the saved configuration, without weights, would hold another activation."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return [holder.path for holder in holders]
    again = type(config).from_dict(config.to_dict())
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = {holder.path: holder.kind for holder in find_activations(type(model)(again))}
    return [holder.path for holder in holders if built.get(holder.path) != short_name(chosen)]


def short_name(chosen: str | Approximation) -> str:
    """The name in ``NAMED`` where there is one, else the text with its constants."""
    return next((name for name, known in NAMED.items() if str(known) == str(chosen)), str(chosen))


def known_mismatch(model_or_config: Any) -> str | None:
    """A sentence where a model family is known to be configured with another GELU than it was trained with, else None.

    It says what is known of the family's own checkpoints; one trained from scratch with this configuration is right as it is.
    """
    config = getattr(model_or_config, "config", model_or_config)
    family = str(getattr(config, "model_type", ""))
    for key in _KEYS:
        if family in _MISMATCHES and _NAMES.get(str(getattr(config, key, None))) == "none":
            return (
                f"{family}: the configuration says {key}={getattr(config, key)!r}, the exact GELU, but {_MISMATCHES[family]}; "
                "for such a checkpoint use gelu='tanh'"
            )
    return None


def collect_inputs(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, bins: int = 800) -> Weight:
    """The histogram of what a model's own GELUs are given, as a ``Weight`` for ``fit(criterion=...)``.

    ``batches``: keyword arguments of the model; padded positions are counted too where ``attention_mask`` does not say otherwise.
    Runs without gradients, in evaluation mode. Range: the extremes found, at most ±64 (values beyond are counted in the
    end bins). Cost: a forward pass and one histogram a layer.
    """
    holders = [
        holder for holder in find_activations(model) if holder.kind is not None and isinstance(holder.held, nn.Module)
    ]
    if not holders:
        raise InputError(f"collect_inputs: found no GELU in {type(model).__name__}, expected a model that holds one")
    fine = 64 * 256
    counts = torch.zeros(fine, dtype=torch.float64)
    mask: Tensor | None = None

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        if mask is not None and x.shape[: mask.ndim] == mask.shape:
            x = x[mask.bool()]
        held = x.float().flatten().clamp(-64 + 1e-6, 64 - 1e-6).cpu()
        counts.add_(torch.histc(held, fine, -64, 64).double())

    modules = dict.fromkeys(holder.held for holder in holders)
    hooks = [module.register_forward_pre_hook(count) for module in modules]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                mask = batch.get("attention_mask")
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return _coarser(counts, bins)


def _coarser(counts: Tensor, bins: int) -> Weight:
    """The filled range of the fine histogram over [−64, 64], in about ``bins`` bins."""
    filled = torch.nonzero(counts).flatten()
    if len(filled) == 0:
        raise InputError("collect_inputs: found no values, expected at least one batch")
    edges = torch.linspace(-64, 64, len(counts) + 1, dtype=torch.float64)
    low, high = int(filled[0]), int(filled[-1]) + 1
    group = max(1, -(-(high - low) // bins))
    high = min(len(counts), low + group * -(-(high - low) // group))
    low = high - group * ((high - low) // group)
    return histogram(edges[low : high + 1 : group], counts[low:high].view(-1, group).sum(1), "the model's own inputs")
