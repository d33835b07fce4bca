"""A small forward pass that tells what a model asks of its attention, and whether that is all there is to it.

``look`` runs the model on a few tokens: under its own eager attention, under SDPA where it has that, and with every call computed
from what its mask and arguments say alone, softmax written out. Equal outputs prove that nothing reaches its attention
by another way (an attribute of the module, a cache, a mask of its own making), and each call tells its layer's causality and window.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PretrainedConfig, PreTrainedModel

from jieyue.attention import full
from jieyue.errors import InputError

from .attention_call import register_attention
from .biases import biases_by_offset
from .entries import PatternEntry
from .implementation import running
from .layers import SLOT, LayerAttention
from .masks import Ask
from .outside import adapted, adds_alibi_twice
from .prefix import PrefixLM

__all__ = ["TOLERATED", "Seen", "look", "made_up_ids", "runs_under_sdpa", "undisturbed"]

_TOKENS, _TARGETS = 7, 5
# per number type: how far eager and SDPA may differ, and ours from eager where those two agree, of the largest output
_OWN = {torch.float64: 1e-5, torch.float32: 1e-3}
TOLERATED = {torch.float64: 1e-6, torch.float32: 2e-4}  # some models round the weights of a float64 softmax to float32


@dataclass
class Seen:
    """What one attention module did: ``forwards`` of the module, and the last call's causality, window, kind, ``Ask.more`` and number
    of key-value heads."""

    causal: bool = False
    window: int | None = None
    cross: bool = False
    more: tuple[str, ...] = ()
    forwards: int = 0
    heads: int | None = None


@dataclass
class _Looking:
    """The watch of every module while the model runs, and what it saw."""

    seen: dict[nn.Module, Seen] = field(default_factory=dict)

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, ask: Ask, scale: float | None) -> Tensor:
        vars(module)[SLOT].called = True
        seen = self.seen.setdefault(module, Seen())
        seen.causal, seen.window, seen.more, seen.cross = ask.causal, ask.window, ask.more, q.shape[2] != k.shape[2]
        seen.heads = k.shape[1]
        return _by_definition(q, k, v, ask, scale)

    def count(self, module: nn.Module, *_: object) -> None:
        self.seen.setdefault(module, Seen()).forwards += 1


def look(
    model: PreTrainedModel, modules: Mapping[nn.Module, LayerAttention], configs: Sequence[PretrainedConfig]
) -> dict[nn.Module, Seen] | None:
    """Attention module -> what it asked for; None where the model does not run on a few tokens or pixels.

    ``modules``: those that get an attention of ours; ``configs``: the configurations in which they look it up. ``InputError``
    where the model's own eager and SDPA attention differ, where a call asks for what no entry honours, and where outputs
    differ from the model's own though every call was computed as it asked. The model is left as it was.
    """
    inputs = _inputs(model)
    if isinstance(model, PrefixLM):  # makes masks of its own, and refuses calls under any attention but its own
        return None
    if inputs is None or any(p.is_meta or isinstance(p, FakeTensor) for p in model.parameters()):
        return None
    name = type(model).__name__
    looking, plain = _Looking(), "sdpa" if adds_alibi_twice(model) else "eager"
    with undisturbed(model):
        for given in inputs:
            try:
                with running(configs, plain):
                    eager = _output(model, given)
            except Exception:  # the plain model does not run on what was made up here: nothing can be said
                return None
            noise = 0.0 if plain == "sdpa" else _under_sdpa(model, configs, eager, given)
            if noise > _OWN.get(eager.dtype, 0.1):
                raise InputError(
                    f"use(attention=...): {name}'s own eager and SDPA attention differ by {noise:.1e} of its largest output, so "
                    "that it is not known what to keep; expected a model that agrees with itself"
                )
            ours = _watched(model, modules, configs, looking, given)
            apart = _difference(ours, eager, given)
            if apart > max(10 * noise, TOLERATED.get(eager.dtype, 0.1)):
                raise InputError(
                    f"use(attention=...): {name}'s outputs change by {apart:.1e} of the largest when each attention is computed as "
                    "its mask and arguments say, so it computes more than these say; expected plain softmax attention"
                )
    return looking.seen


def runs_under_sdpa(model: nn.Module) -> bool:
    """Whether transformers would run the model, and all parts of it, under SDPA."""
    return all(part._supports_sdpa for part in model.modules() if isinstance(part, PreTrainedModel))


def _under_sdpa(
    model: PreTrainedModel, configs: Sequence[PretrainedConfig], eager: Tensor, given: dict[str, Tensor | bool]
) -> float:
    """How far SDPA is from eager attention; 0 where the model has no SDPA, or SDPA refuses (soft-capping)."""
    if not runs_under_sdpa(model):
        return 0.0
    try:
        with running(configs, "sdpa"):
            return _difference(_output(model, given), eager, given)
    except ValueError:
        return 0.0


def _watched(
    model: PreTrainedModel,
    modules: Mapping[nn.Module, LayerAttention],
    configs: Sequence[PretrainedConfig],
    looking: _Looking,
    given: dict[str, Tensor | bool],
) -> Tensor:
    handles = [module.register_forward_pre_hook(looking.count) for module in modules]
    looking.seen.clear()
    for module, layer in modules.items():
        vars(module)[SLOT] = LayerAttention(PatternEntry(full()), layer.cross, by_sdpa=layer.by_sdpa, watch=looking)
    try:
        with running(configs, register_attention("full()")), biases_by_offset(modules), adapted(model, modules):
            return _output(model, given)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"use(attention=...): {type(model).__name__} does not run with an attention of ours in the place of its own: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for module, handle in zip(modules, handles, strict=True):
            vars(module).pop(SLOT, None)
            handle.remove()


def _by_definition(q: Tensor, k: Tensor, v: Tensor, ask: Ask, scale: float | None) -> Tensor:
    """Softmax over what the mask shows: q [B, H, N, D], k [B, G, M, D], v [B, G, M, V] -> [B, H, N, V]."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    n, m = q.shape[2], k.shape[2]
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if ask.softcap is not None:
        scores = ask.softcap * torch.tanh(scores / ask.softcap)
    if ask.offset_bias is not None:
        scores = scores + ask.offset_bias[:, torch.arange(n)[:, None] - torch.arange(m) + m - 1]
    scores = scores.masked_fill(~ask.sees(n, m, q.device), -torch.inf)
    if ask.sinks is not None:
        scores = torch.cat([scores, ask.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores)], -1)
    return (scores.softmax(-1).nan_to_num(0.0)[..., :m] @ v).to(q.dtype)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients, and with the random numbers put back."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        for module, before in training:
            module.training = before


def _inputs(model: PreTrainedModel) -> list[dict[str, Tensor | bool]] | None:
    """Two calls, without padding and with; None for a model that takes neither token ids nor pixels."""
    takes = inspect.signature(type(model).forward).parameters
    settings: dict[str, Tensor | bool] = {"use_cache": False} if "use_cache" in takes else {}
    device = next(model.parameters()).device
    if model.main_input_name == "pixel_values" and "input_ids" not in takes:
        size = getattr(model.config, "image_size", None)
        sides = (size, size) if isinstance(size, int) else tuple(size or ())
        if len(sides) != 2:
            return None
        pixels = torch.linspace(-1, 1, 2 * sides[0] * sides[1], dtype=model.dtype, device=device).view(2, 1, *sides)
        return [settings | {"pixel_values": pixels.repeat(1, getattr(model.config, "num_channels", 3), 1, 1)}]
    if model.main_input_name != "input_ids":
        return None
    ids = made_up_ids(model, _TOKENS)
    if ids is None:
        return None
    settings["input_ids"] = ids
    if "decoder_input_ids" in takes:
        settings["decoder_input_ids"] = ids[:, -_TARGETS:]
    if "attention_mask" not in takes:
        return [settings]
    mask = torch.ones_like(ids)
    padded = mask.clone()
    padded[1, -2:] = 0
    return [settings | {"attention_mask": mask}, settings | {"attention_mask": padded}]


def made_up_ids(model: PreTrainedModel, count: int) -> Tensor | None:
    """[2, count] token ids that no configuration gives a meaning of its own."""
    try:
        table = model.get_input_embeddings()
        rows = getattr(table, "num_embeddings", None) or getattr(model.config.get_text_config(), "vocab_size", None)
    except (NotImplementedError, ValueError):  # it has none, or several texts (MusicGen)
        return None
    if not rows:
        return None
    special = {
        value
        for key, value in _flat(model.config.to_dict())
        if key.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    plain = [number for number in range(3, int(rows)) if number not in special][: 4 * count]
    if len(plain) < 2:
        return None
    chosen = [plain[(7 * i * i + 3 * i) % len(plain)] for i in range(2 * count)]
    return torch.tensor(chosen, device=next(model.parameters()).device).view(2, count)


def _flat(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield str(key), value


def _output(model: PreTrainedModel, given: dict[str, Tensor | bool]) -> Tensor:
    found = model(**given)
    values = found if isinstance(found, tuple) else list(found.values())
    return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())


def _difference(found: Tensor, expected: Tensor, given: dict[str, Tensor | bool]) -> float:
    """The largest difference where no padding stands, of the largest expected; 0 where that is not finite."""
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and "decoder_input_ids" not in given and expected.shape[:2] == mask.shape:
        found, expected = found[mask.bool()], expected[mask.bool()]
    found, expected = found.double(), expected.double()
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) / largest if 0 < largest < torch.inf else 0.0
