"""Models whose attention does not look itself up in transformers' interface: BLOOM, MPT, Falcon and MPNet, by a forward of ours.

While such a model has an attention of ours, each of its attention modules has, as an attribute of the instance, a forward that makes
queries, keys and values as the module does and hands them to ``attention_forward``; the projections stay the module's.
``use`` compares the outputs with the model's own before it says yes.

MPNet's biases are by offset (``offset_bias``). ALiBi adds to each logit a bias of the key alone, a slope times its position, which
BLOOM and Falcon round, Falcon to bfloat16 at any dtype: no bias by offset any more. So it becomes columns of the key,

    q' = [q, 1/scale, 0 …],  k' = [k, bias_j, 0 …]:   scale·q'·k'_j = scale·q·k_j + bias_j

to the last bit of what the model adds. In 16 bits a float32 bias and 1/scale are each cut into parts whose sum they are.

Letters: B batch, H heads, G key heads, N queries, M keys, D size of a query.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from jieyue.errors import InputError

from .attention_call import attention_forward
from .masks import ask_of

if TYPE_CHECKING:
    from transformers.models.bloom.modeling_bloom import BloomAttention
    from transformers.models.falcon.modeling_falcon import FalconAttention
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention
    from transformers.models.mpt.modeling_mpt import MptAttention

__all__ = ["adapted", "adds_alibi_twice", "drop_forwards", "give_forwards", "is_outside", "with_key_bias"]

_Given: TypeAlias = Tensor | Cache | bool | None
_Put: TypeAlias = Callable[..., Tensor | tuple[Tensor] | tuple[Tensor, None]] | bool
_Door: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...], Mapping[str, _Given]], None]

_KEPT = "jieyue_outside"  # on a module: the attributes that it had in the place of ours, and the handle of its door
_UNREAD = ("use_cache", "position_ids")  # of forwards whose own code does not read them
_COLUMNS = 8  # of a key that hold its bias, and the zeros that fill them up
_PARTS = 3  # bfloat16 numbers that a float32 one is the sum of


def is_outside(module: nn.Module) -> bool:
    """Whether an attention module is one of those that get a forward of ours."""
    adapter = _ADAPTERS.get(_name(module))
    return adapter is not None and "forward" in adapter.puts


def adds_alibi_twice(model: nn.Module) -> bool:
    """Whether the model's eager attention is not the one that it was trained with (Falcon with ALiBi in transformers 5)."""
    twice = {name for name, adapter in _ADAPTERS.items() if adapter.twice}
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and _name(part) in twice]
    return any(part.config.alibi for part in parts)


def give_forwards(model: nn.Module, modules: Collection[nn.Module]) -> None:
    """Puts our forwards on those of ``modules`` that need one, and what goes with them on the modules around these.

    ``InputError`` where a forward of this transformers takes other arguments than ours.
    """
    chosen = {module for module in modules if is_outside(module)}
    for module in model.modules() if chosen else ():
        adapter = _ADAPTERS.get(_name(module))
        if adapter is None or _KEPT in vars(module) or chosen.isdisjoint(module.modules()):
            continue
        handle = None
        if adapter.door is not None:
            handle = module.register_forward_pre_hook(adapter.door, with_kwargs=True)
        before = {name: vars(module)[name] for name in adapter.puts if name in vars(module)}
        for name, put in adapter.puts.items():
            if not isinstance(put, bool):
                _check_signature(module, name, put)
                put = functools.partial(put, module)
            vars(module)[name] = put
        vars(module)[_KEPT] = (before, handle)


def drop_forwards(model: nn.Module) -> None:
    """Takes them off again."""
    for module in model.modules():
        before, handle = vars(module).pop(_KEPT, (None, None))
        if before is not None:
            for name in _ADAPTERS[_name(module)].puts:
                vars(module).pop(name)
            vars(module).update(before)
        if handle is not None:
            handle.remove()


@contextlib.contextmanager
def adapted(model: nn.Module, modules: Collection[nn.Module]) -> Iterator[None]:
    """For a while."""
    give_forwards(model, modules)
    try:
        yield
    finally:
        drop_forwards(model)


def with_key_bias(q: Tensor, k: Tensor, bias: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """q [B, H, N, D + 8] and k [B, H, M, D + 8] whose products are q·k_j + weight·bias_j; ``bias`` [B, H, M], ``weight`` 1/scale.

    k [B, G, M, D] of fewer heads is repeated. Exact to the products of q's dtype where a bias is a number of that dtype,
    else to 2^−24 of it.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    wide = torch.promote_types(bias.dtype, torch.float32)
    parts = _parts(bias.to(wide), k.dtype)
    weights = _parts(torch.tensor(weight, dtype=torch.float64, device=q.device), q.dtype)[:2]
    pairs = [(part, own) for at, part in enumerate(parts) for own in (weights if at < 2 else weights[:1])]
    columns = torch.stack([part for part, _ in pairs], -1)
    ones = torch.stack([own for _, own in pairs]).expand(*q.shape[:3], -1)
    rest = _COLUMNS - len(pairs)
    return torch.cat([q, F.pad(ones, (0, rest))], -1), torch.cat([k, F.pad(columns, (0, rest))], -1)


def _parts(value: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Numbers of this dtype whose sum is the value, largest first; one where it is of that dtype already."""
    found = [value.to(dtype)]
    while len(found) < _PARTS:
        value = value - found[-1].to(value.dtype)
        if torch.finfo(value.dtype).bits <= torch.finfo(dtype).bits:
            break
        found.append(value.to(dtype))
    return found


def _bloom(
    module: BloomAttention,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor,
    layer_past: Cache | None = None,
    output_attentions: bool = False,
    **kwargs: _Given,
) -> tuple[Tensor, None]:
    if module.pretraining_tp > 1 and module.slow_but_exact:
        raise InputError("BloomAttention: found slow_but_exact with pretraining_tp > 1, expected slow_but_exact=False")
    q, k, v = module._reshape(module.query_key_value(hidden_states))
    bias = alibi.view(len(q), module.num_heads, -1)[:, :, -k.shape[2] :]
    q, k = with_key_bias(q, k, bias, 1 / module.inv_norm_factor)
    if layer_past is not None:
        assert module.layer_idx is not None
        k, v = layer_past.update(k, v, module.layer_idx)
    out, _ = attention_forward(
        module, q, k, v, attention_mask, dropout=module.attention_dropout.p if module.training else 0.0,
        scaling=module.inv_norm_factor, key_bias=True, output_attentions=output_attentions,
    )  # fmt: skip
    out = F.dropout(module.dense(out.flatten(2)), module.hidden_dropout, module.training)
    return residual + out, None


def _mpt(
    module: MptAttention,
    hidden_states: Tensor,
    position_bias: Tensor,
    past_key_values: Cache | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: _Given,
) -> tuple[Tensor, None]:
    scale = module.softmax_scale
    assert scale is not None
    mixed = module.Wqkv(hidden_states)
    if module.clip_qkv:
        mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    q, k, v = (x.unflatten(2, (module.n_heads, module.head_dim)).transpose(1, 2) for x in mixed.chunk(3, dim=2))
    # the model's bias of a key is slope·(its column - the last column), whose difference from slope·column no softmax sees
    slopes = position_bias[:, 0, -1] - position_bias[:, 0, -2]
    before, number = 0, module.layer_idx
    if past_key_values is not None:
        assert number is not None
        before = past_key_values.get_seq_length(number)
    columns = torch.arange(before, before + k.shape[2], device=k.device)
    q, k = with_key_bias(q, k, (slopes[:, None] * columns).expand(len(q), -1, -1), 1 / scale)
    if past_key_values is not None and number is not None:
        k, v = past_key_values.update(k, v, number)
    out, _ = attention_forward(
        module, q, k, v, attention_mask, dropout=module.attn_dropout_p if module.training else 0.0,
        scaling=scale, key_bias=True,
    )  # fmt: skip
    return module.out_proj(out.flatten(2)), None


def _falcon(
    module: FalconAttention,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor,
    layer_past: Cache | None = None,
    output_attentions: bool = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: _Given,
) -> tuple[Tensor, None]:
    q, k, v = (x.transpose(1, 2) for x in module._split_heads(module.query_key_value(hidden_states)))
    code = sys.modules[type(module).__module__]
    dropout = 0.0
    if module.config.alibi:
        ask = ask_of(attention_mask)
        assert ask is not None
        kept = ask.keys if ask.keys is not None else q.new_ones(len(q), ask.columns)
        bias = code.build_alibi_tensor(kept.long(), module.num_heads, q.dtype).view(*q.shape[:2], -1)
        q, k = with_key_bias(q, k, bias[:, :, -k.shape[2] :], 1.0)  # Falcon scales its ALiBi too
        v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        dropout = module.attention_dropout.p if module.training else 0.0
    else:
        assert position_embeddings is not None
        q, k = code.apply_rotary_pos_emb(q, k, *position_embeddings)
    if layer_past is not None:
        assert module.layer_idx is not None
        k, v = layer_past.update(k, v, module.layer_idx)
    out, _ = attention_forward(
        module, q, k, v, attention_mask, dropout=dropout, scaling=module.inv_norm_factor, key_bias=module.config.alibi,
        output_attentions=output_attentions,
    )  # fmt: skip
    return module.dense(out.flatten(2)), None


def _mpnet(
    module: MPNetSelfAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: _Given,
) -> tuple[Tensor]:
    shape = (module.num_attention_heads, module.attention_head_size)
    q, k, v = (make(hidden_states).unflatten(2, shape).transpose(1, 2) for make in (module.q, module.k, module.v))
    out, _ = attention_forward(
        module, q, k, v, attention_mask, dropout=module.dropout.p if module.training else 0.0,
        scaling=module.attention_head_size**-0.5, position_bias=position_bias, output_attentions=output_attentions,
    )  # fmt: skip
    return (module.o(out.flatten(2)),)


def _mpnet_biases(module: MPNetEncoder, x: Tensor, num_buckets: int = 32) -> Tensor:
    """[H, 2N - 1], entry i - j + N - 1 for row i and column j, in the place of [B, H, N, N]."""
    count = x.shape[1]
    behind = torch.arange(count - 1, -count, -1, device=x.device)  # j - i
    return module.relative_attention_bias(module.relative_position_bucket(behind, num_buckets=num_buckets)).T


def _refuse_holes(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, _Given]) -> None:
    """ALiBi counts the tokens that are kept: behind a hole a key is nearer than its place in the row, which no offset says."""
    if not getattr(model.config, "alibi", True) or torch.compiler.is_compiling():
        return
    given = dict(zip(tuple(inspect.signature(type(model).forward).parameters)[1:], args, strict=False)) | dict(kwargs)
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return
    kept = F.pad(mask.bool(), (1, 0))
    if bool(((kept[:, 1:] & ~kept[:, :-1]).sum(1) > 1).any()):
        raise InputError(
            f"{type(model).__name__}: found an attention_mask with a hole, behind which ALiBi counts on as if it were not there; "
            "expected padding on the left or the right of each row"
        )


@dataclass(frozen=True)
class _Adapter:
    """What is put on the modules of one class while their attention is ours: attributes, and what runs before a forward.

    ``twice``: whether its own eager attention adds ALiBi a second time, to the scores and with the mask, so that SDPA is the model.
    """

    puts: Mapping[str, _Put] = field(default_factory=dict)
    door: _Door | None = None
    twice: bool = False


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}".removeprefix("transformers.models.")


_ADAPTERS: Mapping[str, _Adapter] = {
    "bloom.modeling_bloom.BloomAttention": _Adapter({"forward": _bloom}),
    "bloom.modeling_bloom.BloomModel": _Adapter(door=_refuse_holes),
    "mpt.modeling_mpt.MptAttention": _Adapter({"forward": _mpt}),
    "falcon.modeling_falcon.FalconAttention": _Adapter({"forward": _falcon}),
    "falcon.modeling_falcon.FalconModel": _Adapter(
        {"use_alibi": False}, _refuse_holes, twice=True
    ),  # its mask would be N x M
    "mpnet.modeling_mpnet.MPNetSelfAttention": _Adapter({"forward": _mpnet}),
    "mpnet.modeling_mpnet.MPNetEncoder": _Adapter({"compute_position_bias": _mpnet_biases}),
}


def _check_signature(
    module: nn.Module, name: str, ours: Callable[..., Tensor | tuple[Tensor] | tuple[Tensor, None]]
) -> None:
    theirs = set(inspect.signature(getattr(type(module), name)).parameters) - {"self", "kwargs", *_UNREAD}
    expected = set(inspect.signature(ours).parameters) - {"module", "kwargs"}
    if theirs != expected:
        raise InputError(
            f"use(attention=...): {type(module).__name__}.{name} of this transformers takes {', '.join(sorted(theirs))}, expected "
            f"{', '.join(sorted(expected))}"
        )
