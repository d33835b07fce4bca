"""More positions than a checkpoint was trained with, so that sparse attention has long inputs to work on.

Rotary positions: transformers' own ``rope_parameters``, written into the configuration.

    yarn:     wavelengths that fit often into the trained length stay, long ones are stretched by the factor, logits are sharpened
    dynamic:  the base grows with a row that is longer than the trained length; shorter rows stay as they were

Tables of positions:

    hierarchical:  u_i = (p_i − α p_0) / (1 − α),   q_{i·n + j} = α u_i + (1 − α) u_j,   0 ≤ i, j < n
    interpolate:   q_t = the table read at t·(n − 1)/(m − 1), linearly between rows

p the trained table of n rows, q the new one of m. Hierarchical leaves the first n positions as they were (q_j = p_j) and
reaches n²; interpolation moves all but the ends. Both are a start for more training, not exact.

Sources: Peng et al. 2023 (arXiv 2309.00071) for YaRN and dynamic; J. Su, "hierarchical decomposition of position codes"
(kexue.fm 7947, 2020).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.record import RECORD, read_record

from .loading import load, save
from .surgery import own_config, replace_parameters

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["METHODS", "ROTARY", "check_stretch", "extend_positions", "interpolate", "split_hierarchically", "stretch"]

ALPHA = 0.4
METHODS = ("hierarchical", "interpolate")
ROTARY = ("yarn", "dynamic")
_NAMES = ("position_embeddings", "wpe")
_LENGTHS = ("max_position_embeddings", "n_positions")


def check_stretch(config: PretrainedConfig, how: str, factor: float) -> None:
    """Refuses, before any weight is read, what ``stretch`` cannot do with a model of this configuration."""
    asked, allowed = f"positions={how!r}", f"one of {', '.join((*ROTARY, *METHODS))}"
    if how not in (*ROTARY, *METHODS):
        raise InputError(asked, repr(how), allowed)
    own = config.get_text_config()
    rope, positions = _rotary(own), int(getattr(own, "max_position_embeddings", None) or 0)
    if how in METHODS:
        if rope is not None:
            raise InputError(asked, f"rotary positions ({own.model_type})", "a table of them", "yarn, dynamic")
        return
    if rope is None or not positions:
        do = "for a table of positions: hierarchical, interpolate"
        raise InputError(asked, f"no rotary positions ({own.model_type})", "rotary positions", do)
    if (kind := rope.get("rope_type", "several kinds, one a layer")) != "default":
        raise InputError(asked, f"rotary positions of the kind {kind}", "plain ones, not stretched before")


def stretch(name: str | Path, how: str, factor: float, folder: Path, record: Facts) -> Path:
    """The model of ``name`` with ``factor`` times its positions, as a folder of its own; weights as they are but a table's.

    ``how``: "yarn" or "dynamic" for rotary positions, "hierarchical" or "interpolate" for a table (``extend_positions``). ``record``:
    what its jieyue.json holds besides. A folder that was made so before is taken as it is. ``InputError``: see ``check_stretch``. Cost:
    the model is read and written once.
    """
    told = {**record, "model": str(name), "positions": how, "factor": float(factor)}
    if (folder / RECORD).is_file() and read_record(folder) == told:
        return folder
    model, tokenizer = load(name)
    check_stretch(model.config, how, factor)
    own = own_config(model, model).get_text_config()
    many = round(own.max_position_embeddings * factor)
    if how in METHODS:
        extend_positions(model, many, how, tokenizer=tokenizer)
    else:
        own.rope_parameters = dict(_rotary(own) or {}) | {"rope_type": how, "factor": float(factor)}
        if how == "yarn":
            own.rope_parameters["original_max_position_embeddings"] = own.max_position_embeddings
            own.max_position_embeddings = many
        tokenizer.model_max_length = many  # of dynamic the configuration's stays: by it transformers sees what is long
    return save(model, tokenizer, folder, told)


def _rotary(config: PretrainedConfig) -> dict[str, Any] | None:
    """The configuration's rotary parameters; None where it has none."""
    return getattr(config, "rope_parameters", None) or None


def extend_positions(model: Any, num_positions: int, how: str = "hierarchical", *, tokenizer: Any = None) -> Any:
    """The model with ``num_positions`` absolute positions, in place; returns it. ``tokenizer``: its limit is raised too.

    BERT, RoBERTa (which keeps its first rows for padding), ALBERT, ELECTRA, GPT-2 and others with a table of that kind. Cost: the
    table. An optimizer made before does not fit. Refuses models without such a table (rotary, relative: they need none), fewer
    positions than there are, more than n² hierarchically, unknown methods.
    """
    asked = f"extend_positions(model, {num_positions}, how={how!r})"
    if how not in METHODS:
        raise InputError(asked, repr(how), f"one of {', '.join(METHODS)}")
    tables = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _NAMES and isinstance(module, nn.Embedding)
    ]
    if len(tables) != 1:
        found = f"{len(tables)} tables of absolute positions of that kind in {type(model).__name__}"
        # OPT's and BART's tables count from an offset on
        others = any(name.endswith("embed_positions") for name, _ in model.named_modules())
        do = "" if tables or others else "rotary and relative positions have no such limit"
        raise InputError(asked, found, "one (BERT, RoBERTa, ALBERT, ELECTRA, GPT-2)", do)
    (table,) = tables
    reserved = 0 if table.padding_idx is None else table.padding_idx + 1
    before = table.num_embeddings - reserved
    most = before**2 if how == "hierarchical" else None
    if num_positions <= before or (most is not None and num_positions > most):
        raise InputError(asked, f"{before} positions", f"more than {before}" + (f", at most {most}" if most else ""))
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
