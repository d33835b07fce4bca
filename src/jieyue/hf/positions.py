"""More absolute positions than a checkpoint was trained with, so that sparse attention has long inputs to work on.

    hierarchical:  u_i = (p_i − α p_0) / (1 − α),   q_{i·n + j} = α u_i + (1 − α) u_j,   0 ≤ i, j < n
    interpolate:   q_t = the table read at t·(n − 1)/(m − 1), linearly between rows

p the trained table of n rows, q the new one of m. Hierarchical leaves the first n positions as they were (q_j = p_j) and
reaches n²; interpolation moves all but the ends. Both are a start for more training, not exact.

Source: J. Su, "hierarchical decomposition of position codes" (kexue.fm 7947, 2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jieyue.errors import InputError, message

from .surgery import own_config, replace_parameters

__all__ = ["METHODS", "extend_positions", "interpolate", "split_hierarchically"]

ALPHA = 0.4
METHODS = ("hierarchical", "interpolate")
_NAMES = ("position_embeddings", "wpe")
_LENGTHS = ("max_position_embeddings", "n_positions")


def extend_positions(model: Any, num_positions: int, how: str = "hierarchical", *, tokenizer: Any = None) -> Any:
    """The model with ``num_positions`` absolute positions, in place; returns it. ``tokenizer``: its limit is raised too.

    BERT, RoBERTa (which keeps its first rows for padding), ALBERT, ELECTRA, GPT-2 and others with a table of that kind. Cost: the
    table. An optimizer made before does not fit. Refuses models without such a table (rotary, relative: they need none), fewer
    positions than there are, more than n² hierarchically, unknown methods.
    """
    asked = f"extend_positions(model, {num_positions}, how={how!r})"
    if how not in METHODS:
        raise InputError(message(asked, repr(how), f"one of {', '.join(METHODS)}"))
    tables = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _NAMES and isinstance(module, nn.Embedding)
    ]
    if len(tables) != 1:
        found = f"{len(tables)} tables of absolute positions in {type(model).__name__}"
        do = "" if tables else "rotary and relative positions have no such limit"
        raise InputError(message(asked, found, "one (BERT, RoBERTa, ALBERT, ELECTRA, GPT-2)", do))
    (table,) = tables
    reserved = 0 if table.padding_idx is None else table.padding_idx + 1
    before = table.num_embeddings - reserved
    most = before**2 if how == "hierarchical" else None
    if num_positions <= before or (most is not None and num_positions > most):
        raise InputError(
            message(asked, f"{before} positions", f"more than {before}" + (f", at most {most}" if most else ""))
        )
    old: Any = table.weight
    extend = split_hierarchically if how == "hierarchical" else interpolate
    rows = torch.cat([old.detach()[:reserved], extend(old.detach()[reserved:], num_positions)])
    replace_parameters(model, {old: nn.Parameter(rows, old.requires_grad)})
    table.num_embeddings = len(rows)
    _tell(model, len(rows))
    if tokenizer is not None:
        tokenizer.model_max_length = num_positions
    return model


def split_hierarchically(table: Tensor, num_rows: int, alpha: float = ALPHA) -> Tensor:
    """q [num_rows, D] of p [n, D], num_rows ≤ n²; the first n rows are p's own."""
    n = len(table)
    base = (table - alpha * table[:1]) / (1 - alpha)
    t = torch.arange(n, num_rows, device=table.device)
    return torch.cat([table, alpha * base[t // n] + (1 - alpha) * base[t % n]])


def interpolate(table: Tensor, num_rows: int) -> Tensor:
    """q [num_rows, D] of p [n, D], linearly, the ends kept."""
    wide = table.float() if table.dtype in (torch.float16, torch.bfloat16) else table
    spread = nn.functional.interpolate(wide.T[None], num_rows, mode="linear", align_corners=True)
    return spread[0].T.contiguous().to(table.dtype)


def _tell(model: Any, num_rows: int) -> None:
    """The configuration's limit, and the buffers of positions and segments that are as long as the table."""
    config = own_config(model, model)
    for name in _LENGTHS:
        if name in vars(config):
            setattr(config, name, num_rows)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is None or buffer.ndim != 2 or name not in ("position_ids", "token_type_ids"):
                continue
            filled = torch.arange(num_rows, device=buffer.device)[None]
            module._buffers[name] = filled if name == "position_ids" else torch.zeros_like(filled)
