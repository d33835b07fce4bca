"""Muon for the matrices inside a model, AdamW for what it is not made for: embeddings, output heads, biases and norms.

    matrices   torch.optim.Muon: the momentum, made orthogonal (Newton-Schulz in bfloat16); the step scaled to AdamW's size
    the rest   torch.optim.AdamW

Both are torch's own; here is which weight goes where, and one optimizer of both that is scheduled, saved and loaded as one.
State: one tensor a matrix, two of what is left. Source: Jordan 2024 (Muon); Liu et al. 2025, arXiv 2502.16982 (the scale).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from jieyue.errors import InputError

from .parameter_groups import Closure, computed_again

__all__ = ["MuonAdamW", "hidden_matrices"]

_MUON = "ns_steps"  # a field of Muon's groups alone


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained 2-D weights of linear layers, without embeddings and what is tied to them, and without the output head."""
    outside = {id(p) for one in model.modules() if isinstance(one, nn.Embedding) for p in one.parameters()}
    for name in ("get_input_embeddings", "get_output_embeddings"):
        ask: Callable[[], nn.Module | None] | None = getattr(model, name, None)
        found = None if ask is None else ask()
        outside |= set() if found is None else {id(p) for p in found.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in outside]


class MuonAdamW(Optimizer):
    """``matrices`` under Muon, ``others`` under AdamW, one learning rate for both (Muon's steps have AdamW's root mean square).

    ``weight_decay``: of both, but not of vectors. ``momentum``, ``betas``: Muon's and AdamW's. ``nesterov``: as in torch's Muon.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        first, rest = list(matrices), list(others)
        if any(p.ndim != 2 for p in first):
            raise InputError("MuonAdamW", "matrices that are not 2-D", "those of hidden_matrices(model)")
        named = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        self._muon = Muon(first, **named, adjust_lr_fn="match_rms_adamw") if first else None  # type: ignore[arg-type]
        split = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        split = [group for group in split if group["params"]]
        self._adamw = AdamW(split, lr=lr, betas=betas) if split else None
        groups = [group for part in (self._muon, self._adamw) if part is not None for group in part.param_groups]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One update of both."""
        loss = computed_again(closure)
        for part in (self._muon, self._adamw):
            if part is not None:  # what schedules and loaded states changed is here, and the parts work on it
                part.param_groups = [group for group in self.param_groups if (_MUON in group) == (part is self._muon)]
                part.state = self.state
                part.step()
        return loss
