"""Which weights of a model are trained: all of them, the matrices of its attention, or low-rank corrections of those; and dropout
taken off a model that learns from another.

    adapters:  W + B·A,   A [r, n] drawn, B [m, r] = 0 at the start, W [m, n] as it is

The outputs do not change at that moment, and ``merged_weights`` are those of the plain model that computes the same.

Source: Hu et al. 2021, "LoRA: low-rank adaptation of large language models" (arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .attention import attention_modules
from .layers import SLOT, LayerAttention

__all__ = ["attention_matrices", "merged_weights", "train_part", "without_dropout"]

_LEFT = "parametrizations.weight."


class LowRank(nn.Module):
    """W -> W + B·A."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns, dtype=weight.dtype, device=weight.device) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def attention_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the projections q, k, v and o of every attention; o of BERT's family stands beside its attention."""
    for path, module in attention_modules(model):
        parts = [(path, module)]
        if path.endswith(".self"):
            beside = f"{path.removesuffix('self')}output.dense"
            parts.append((beside, model.get_submodule(beside)))
        for place, part in parts:
            for name, one in part.named_modules():
                weight = getattr(one, "weight", None)
                if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(one, nn.Embedding):
                    yield f"{place}.{name}".rstrip("."), one


def train_part(model: nn.Module, what: str, rank: int = 8) -> nn.Module:
    """The model, in place, with nothing trained but ``what``: "all", "qkvo", or "adapters" of this ``rank``."""
    if what == "all":
        return model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _, module in list(attention_matrices(model)):
        if what == "adapters":
            weight = module.weight
            assert isinstance(weight, Tensor)
            parametrize.register_parametrization(module, "weight", LowRank(weight, rank), unsafe=True)
        else:
            for parameter in module.parameters():
                parameter.requires_grad_(True)
    return model


def merged_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """The weights by the names that they have without adapters, each with its correction; None where there are no adapters."""
    changed = {name: one for name, one in model.named_modules() if parametrize.is_parametrized(one, "weight")}
    if not changed:
        return None
    kept = {name: value for name, value in model.state_dict().items() if _LEFT not in name}
    for name, module in changed.items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        kept[f"{name}.weight"] = weight.detach()
    return kept


def without_dropout(model: nn.Module) -> nn.Module:
    """The model, in place, with every rate of dropout 0; its configuration keeps the rates.

    A model that is to say what another says in eval mode would otherwise learn to say it with a tenth of its states missing.
    Rates are found where transformers' models keep them: in dropout layers, and in numbers of modules whose names hold "drop".
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and type(value) in (int, float):
                setattr(module, name, 0.0)
        layer = vars(module).get(SLOT)
        if isinstance(layer, LayerAttention) and layer.dropout is not None:
            layer.dropout = 0.0
    return model
