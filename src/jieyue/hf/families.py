"""The law of ``use``, tried on a type: ``full()`` leaves every output as it is, and a pattern equals its mask; or it is refused.

``check_family("llama")`` gives a row of docs/families.md. Everything in float64 on a tiny model with fresh weights; the oracle
is the model's own four-dimensional mask and ``Pattern.mask``, softmax written out. Unchanged: within 1e-12, or 10 times what
the model's own SDPA and eager attention differ by, of max(1, largest output).

    forward   full() = the model, padded and not; a pattern = the oracle
    cached    a call, a token and a chunk over our cache = the whole in one call
    generate  greedy tokens under full() = the model's; under a pattern with cache = without
    trained   gradients under full() = the model's
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from jieyue.attention import Pattern, parse
from jieyue.errors import InputError

from .attention import use_attention
from .implementation import held_configs, running
from .outside import is_outside
from .probe import runs_under_sdpa
from .tiny import tiny_config, tiny_inputs, tiny_model

__all__ = ["COLUMNS", "FamilyRow", "check_family", "check_model"]

COLUMNS = ("forward", "cached", "generate", "trained")
PATTERN = "local(3)+atrous(5)"
_SIZES: tuple[dict[str, object], ...] = (
    {},
    {"head_dim": None},
    {"head_dim": 32, "hidden_size": 128},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
    {"image_size": 32},
)
_ORACLE = "jieyue families oracle"
_FLOOR = 1e-12
_Inputs = dict[str, Tensor]


@dataclass
class FamilyRow:
    """One line of the page. ``outcome``: "equal", "refused", "not built", "wrong" or "crash"; ``why`` says more.

    ``found``: column -> "equal", "refused: …", "wrong: …", "crash: …", or "–" where the plain model has no such thing.
    """

    model_type: str
    tried: str = ""
    outcome: str = "not built"
    why: str = ""
    found: dict[str, str] = field(default_factory=dict)


def check_family(model_type: str) -> FamilyRow:
    """Builds a tiny model of the type, in the first of a few sizes in which the plain model runs, and checks it."""
    row = FamilyRow(model_type)
    for sizes in _SIZES:
        try:
            model = tiny_model(tiny_config(model_type, **sizes))
        except InputError as error:
            row.why = row.why or _short(error)
            if "parameters in its smallest form" in str(error):
                break
            continue
        row.tried = type(model).__name__
        inputs, why = _running(model)
        if inputs:
            return check_model(model_type, model, inputs)
        row.why = why
        refused = _refused(model)
        if refused and "interface" in refused:
            row.outcome, row.why = "refused", refused
            return row
    return row


def _running(model: PreTrainedModel) -> tuple[_Inputs, str]:
    """The first call that the plain model runs on; ({}, why) for none."""
    why = "made-up inputs of its kind are not known"
    for inputs in tiny_inputs(model):
        try:
            if bool(_output(model, inputs).isfinite().all()):
                return inputs, ""
            why = "its outputs are not finite"
        except TimeoutError:
            raise
        except Exception as error:
            why = f"the plain model does not run on {', '.join(inputs)}: {_short(error)}"
    return {}, why


def _refused(model: PreTrainedModel) -> str:
    try:
        for text in ("full()", PATTERN):
            use_attention(copy.deepcopy(model), text)
    except InputError as error:
        return _short(error)
    return ""


def check_model(model_type: str, model: PreTrainedModel, inputs: _Inputs) -> FamilyRow:
    """The row of one model, in float64 and ``eval`` mode, on a call that it runs on."""
    row = FamilyRow(model_type, type(model).__name__)
    try:
        row.why = _refused(model)
        row.outcome = "refused" if row.why else "equal"
    except Exception as error:
        row.outcome, row.why = "crash", f"use: {_short(error)}"
    if row.outcome != "equal":
        return row
    row.found["forward"] = _said(lambda: _forward(model, inputs))
    row.found["cached"] = _said(lambda: _cached(model, inputs)) if _writes(model, inputs) else "–"
    row.found["generate"] = _said(lambda: _generate(model, inputs)) if _writes(model, inputs) else "–"
    row.found["trained"] = _said(lambda: _trained(model, inputs))
    first = {said.split(":")[0]: said for said in reversed(row.found.values())}
    forward = row.found["forward"]
    row.outcome = next((bad for bad in ("wrong", "crash") if bad in first), forward.split(":")[0])
    row.why = first.get(row.outcome, "").partition(": ")[2] if row.outcome != "equal" else ""
    if forward == "–":
        row.outcome, row.why = "not built", "the plain model does not run twice alike on made-up inputs"
    return row


def _said(check: Callable[[], str | None]) -> str:
    """ "equal", or what a check found or raised."""
    try:
        return check() or "equal"
    except InputError as error:
        return f"refused: {_short(error)}"
    except TimeoutError:
        raise
    except _PlainFailsError:
        return "–"
    except Exception as error:
        return f"crash: {_short(error)}"


class _PlainFailsError(Exception):
    """The plain model cannot do this on these inputs."""


_T = TypeVar("_T")


def _plain(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except Exception as error:
        raise _PlainFailsError(_short(error)) from error


def _forward(model: PreTrainedModel, inputs: _Inputs) -> str | None:
    unpadded = {name: torch.ones_like(x) if name == "attention_mask" else x for name, x in inputs.items()}
    for given in (unpadded, inputs):
        plain, allowed = _own(model, given)
        found = _output(_used(model, "full()"), given)
        apart = _apart(found, plain, given)
        if apart > allowed:
            return f"wrong: full() changes the output by {apart:.0e}"
        patterned = copy.deepcopy(model)
        entries = use_attention(patterned, PATTERN)
        apart = _apart(_output(patterned, given), _oracle(model, entries, given), given)
        if apart > allowed:
            return f"wrong: the pattern differs from its mask by {apart:.0e}"
    return None


def _own(model: PreTrainedModel, given: _Inputs) -> tuple[Tensor, float]:
    """The model's output, and how far from it is unchanged."""
    plain = _plain(lambda: _output(model, given))
    configs = held_configs(model)
    with running(configs, "eager"):
        eager = _plain(lambda: _output(model, given))
    noise = 0.0
    try:
        with running(configs, "sdpa"):
            noise = _apart(_output(model, given), eager, given)
    except Exception:  # SDPA is not this model's own, or refuses (soft-capping)
        noise = 0.0
    if noise > 1e-5 and not runs_under_sdpa(model):
        noise = 0.0  # SDPA is not this model's own: it may ignore what eager does not
    # an eager attention that rounds its weights to float32 is no closer than that to anything
    return plain, max(_FLOOR, 10 * noise, 0.0 if runs_under_sdpa(model) else 1e-6)


def _cached(model: PreTrainedModel, inputs: _Inputs) -> str | None:
    ids = inputs["input_ids"]
    fixed = {} if "decoder_input_ids" not in inputs else {"input_ids": ids}
    name = "decoder_input_ids" if fixed else "input_ids"
    ids = inputs[name][:, :16]
    plain = _plain(lambda: _output(model, fixed | {name: ids}))
    own = _plain(lambda: _steps(model, fixed, name, ids))
    largest = max(1.0, float(plain.abs().max()))
    allowed = max(1e-7, 10 * float((own - plain).abs().max()) / largest)
    for text in ("full()", PATTERN):
        used = _used(model, text)
        whole = _output(used, fixed | {name: ids})
        if text == "full()" and float((whole - plain).abs().max()) > 1e-6 * largest:
            return "wrong: full() without padding"
        steps = _steps(used, fixed, name, ids)
        apart = float((steps - whole).abs().max()) / max(1.0, float(whole.abs().max()))
        if apart > allowed:
            return f"wrong: steps under {text} differ by {apart:.0e}"
    return None


def _steps(model: PreTrainedModel, fixed: _Inputs, name: str, ids: Tensor) -> Tensor:
    """The outputs of nine tokens, one, and the rest, each call with the cache of those before."""
    past, rows = None, []
    for first, last in ((0, 9), (9, 10), (10, ids.shape[1])):
        more: dict[str, object] = {} if past is None else {"past_key_values": past}
        with torch.no_grad():
            found = model(**fixed, **{name: ids[:, first:last]}, **more, use_cache=True)
        past = found.past_key_values
        rows.append(found[0])
    return torch.cat(rows, 1)


def _generate(model: PreTrainedModel, inputs: _Inputs) -> str | None:
    ids = inputs["input_ids"][:, :12]
    padded = torch.ones_like(ids)
    if "decoder_input_ids" not in inputs:
        padded[1, :4] = 0
    for mask in (padded, torch.ones_like(ids)):
        plain, finite = _plain(functools.partial(_written, model, ids, mask))
        if finite:  # else the plain model itself makes nothing of padding (Gemma 2 in float64)
            break
    if not torch.equal(_written(_used(model, "full()"), ids, mask)[0], plain):
        return "wrong: full() writes other tokens"
    patterned = _used(model, PATTERN)
    if not torch.equal(_written(patterned, ids, mask)[0], _written(patterned, ids, mask, use_cache=False)[0]):
        return "wrong: a pattern writes other tokens with a cache than without"
    return None


def _written(model: PreTrainedModel, ids: Tensor, mask: Tensor, **more: bool) -> tuple[Tensor, bool]:
    """Five greedy tokens behind each row, and whether all their logits are finite."""
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "output_logits": True}
    found = model.generate(  # type: ignore[operator]
        ids, attention_mask=mask, return_dict_in_generate=True, **settings, **more
    )
    return found.sequences, not any(bool(x.isnan().any()) for x in found.logits)


def _trained(model: PreTrainedModel, inputs: _Inputs) -> str | None:
    def gradients(one: PreTrainedModel) -> list[Tensor]:
        one.zero_grad()
        _output(one, inputs, grad=True).tanh().square().mean().backward()
        return [p.grad.clone() for p in one.parameters() if p.grad is not None and p.numel()]

    plain = _plain(lambda: gradients(copy.deepcopy(model)))
    ours = gradients(_used(model, "full()"))
    if len(ours) != len(plain):
        return f"wrong: {len(ours)} gradients in the place of {len(plain)}"
    largest = max((float(g.abs().max()) for g in plain), default=0.0)
    apart = max((float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True)), default=0.0)
    return f"wrong: gradients change by {apart:.0e} of {largest:.0e}" if apart > 1e-6 * max(1.0, largest) else None


def _used(model: PreTrainedModel, text: str) -> PreTrainedModel:
    twin = copy.deepcopy(model)
    use_attention(twin, text, dropout=0.0)
    return twin


def _output(model: PreTrainedModel, given: _Inputs, grad: bool = False) -> Tensor:
    takes = inspect.signature(type(model).forward).parameters
    settings = {"use_cache": False} if "use_cache" in takes else {}
    with torch.set_grad_enabled(grad):
        found = model(**given, **settings)
    return next(x for x in (found if isinstance(found, tuple) else found.values()) if isinstance(x, Tensor))


def _apart(found: Tensor, expected: Tensor, given: _Inputs) -> float:
    mask = given.get("attention_mask")
    if mask is not None and "decoder_input_ids" not in given and expected.shape[:2] == mask.shape:
        found, expected = found[mask.bool()], expected[mask.bool()]
    assert bool(found.isfinite().all())
    if not bool(expected.isfinite().all()):
        raise _PlainFailsError("its own output is not finite")
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def _writes(model: PreTrainedModel, inputs: _Inputs) -> bool:
    takes = inspect.signature(type(model).forward).parameters
    return (
        {"past_key_values", "use_cache", "input_ids"} <= set(takes) and "input_ids" in inputs and model.can_generate()
    )


def _oracle(model: PreTrainedModel, entries: dict[str, str], given: _Inputs) -> Tensor:
    """The output with each self-attention under the model's own mask and its pattern's, all scores written out."""
    twin = copy.deepcopy(model)
    patterns = {twin.get_submodule(name): parse(text) for name, text in entries.items()}
    outside = any(map(is_outside, patterns))  # it adds what it is handed as its mask
    AttentionInterface.register(_ORACLE, _Dense(patterns))
    AttentionMaskInterface.register(
        _ORACLE, functools.partial(_added_mask, next(iter(patterns.values()))) if outside else _whole_mask
    )
    with running(held_configs(twin), _ORACLE):
        return _output(twin, given)


class _Dense:
    """An attention function for transformers: the mask, and a pattern where the module has one."""

    def __init__(self, patterns: dict[nn.Module, Pattern]) -> None:
        self.patterns = patterns

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **more: object,
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        n, m = query.shape[2], key.shape[2]
        scores = query @ key.repeat_interleave(groups, 1).mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        softcap, bias, sinks = (more.get(name) for name in ("softcap", "position_bias", "s_aux"))
        if isinstance(softcap, float):
            scores = softcap * torch.tanh(scores / softcap)
        if isinstance(bias, Tensor):
            scores = scores + bias
        sees = torch.ones(1, 1, n, m, dtype=torch.bool) if attention_mask is None else attention_mask
        if sees.dtype != torch.bool:
            scores, sees = scores + sees, sees > torch.finfo(sees.dtype).min / 2
        if module in self.patterns:
            sees = sees & self.patterns[module].mask(n, m, q_offset=m - n)
        scores = scores.masked_fill(~sees, -torch.inf)
        if isinstance(sinks, Tensor):
            scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
        weights = scores.softmax(-1).nan_to_num(0.0)[..., :m]
        return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None


def _whole_mask(*args: object, **kwargs: object) -> Tensor | None:
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    found: Tensor | None = sdpa_mask(*args, **kwargs)  # type: ignore[arg-type]
    return found


def _added_mask(pattern: Pattern, **given: int | bool | Tensor) -> Tensor:
    """The mask that eager attention adds, the pattern's included; finite in float32 too, so that no row is NaN."""
    found = _whole_mask(**given)
    assert found is not None
    n, m = found.shape[-2:]
    sees = found & pattern.mask(n, m, q_offset=m - n)
    return torch.zeros_like(sees, dtype=torch.float64).masked_fill(~sees, torch.finfo(torch.float32).min)


def _short(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).replace("use(attention=...): ", "")
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return kind + (text if len(text) <= 160 else text[:157] + "…")
