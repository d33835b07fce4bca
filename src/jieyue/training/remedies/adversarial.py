"""Small steps against the model in the space of its embeddings: FGM (7234) and the gradient penalty (7234, 7259).

With ℓ_b the mean over the n_b labels of example b and e_b the output of the word embedding for it:

    fgm        δ_b = ε · g_b/‖g_b‖,  g_b = ∂ℓ_b/∂e_b; the loss is that at e + δ (with ``add_clean``: plus that at e)
    penalty    total += Σ_b n_b · ½ε ‖∂ℓ_b/∂e_b‖²

Both are per example, so the parts of a batch add up to the whole; the customary forms (one norm for the whole batch, a penalty
of the batch's mean) do not. The penalty's gradient is a real second derivative. What is perturbed is the embedding's output: a
tied output head stays as it is. The source's embeddings count as well as the target's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.objective import Objective
from jieyue.training.trained import probe

from .embeddings import embeddings_through
from .remedy import Remedy, Rows, check_strength
from .targets import bare, labels_per_example

__all__ = ["fgm", "penalize_gradient"]

_ONCE_ONLY = ("flash", "flex", "paged")  # transformers' attentions without a second derivative


def fgm(epsilon: float = 0.5, add_clean: bool = False) -> Remedy:
    """A remedy: the loss is taken where the embeddings were moved by ε (``epsilon``) against the model, each example on its own.

    ``add_clean``: the loss at the embeddings themselves is added (bert4torch's form; the article trains on the moved one only).
    An example without gradient is not moved. ``InputError`` for ε < 0.

    Cost: a second forward pass and the part of a backward pass that leads to the embeddings: about 5/3 of a plain step;
    memory as a plain step (``add_clean``: the activations of both passes at once). Source: Miyato et al. 2017; Su 2020, 7234.
    """
    check_strength("fgm(epsilon)", epsilon)

    def run(objective: Objective, model: nn.Module, rows: Rows, step: int) -> Tally:
        watch = _Watch(len(rows.seeds), detach=not add_clean)
        with embeddings_through(model, watch):
            clean = objective(model, rows)
        grads = watch.gradients(clean, retain_graph=True if add_clean else None)
        norms = _squares(grads, rows.seeds).sqrt()
        factors = torch.where(norms > 0, epsilon / norms, 0.0)
        moves = {place: grad * _per_row(factors, grad) for place, grad in grads.items()}

        def move(out: Tensor, place: int, module: nn.Module) -> Tensor:
            return out + moves[place].to(out.dtype) if place in moves else out

        with embeddings_through(model, move):
            moved = objective(model, rows)
        return Tally(clean.total + moved.total, moved.weight) if add_clean else moved

    return Remedy(f"fgm({epsilon:g}{', add_clean=True' if add_clean else ''})", run, by_embedding=True)


def penalize_gradient(epsilon: float = 1.0) -> Remedy:
    """A remedy: the loss grows by ½ε (``epsilon``) times the square of its gradient in the embeddings, each example for itself.

    The article's penalty is that of a batch's mean loss: its ε at a batch of B examples is ε/B here; at B = 1 they are equal.
    Attention must have a second derivative: jieyue's patterns and ``eager`` have; torch's fused kernels have not, so ``sdpa``
    runs on its mathematical form (with a warning, N·N memory), and flash, flex and paged attention are refused. So is ``sdpa``
    under activation checkpointing, which would run the fused kernel again in the backward pass.

    Cost: under three plain steps (``benchmarks/remedies.py``), and the activations of the forward pass and of its derivative at
    once.
    Source: Su 2020, 7234 and 7259.
    """
    check_strength("penalize_gradient(epsilon)", epsilon)

    def run(objective: Objective, model: nn.Module, rows: Rows, step: int) -> Tally:
        watch = _Watch(len(rows.seeds), detach=False)
        with _twice_differentiable(model):
            with embeddings_through(model, watch):
                clean = objective(model, rows)
            grads = watch.gradients(clean, create_graph=True)
        squares = _squares(grads, rows.seeds)
        counts = labels_per_example(model, rows).clamp_min(1)
        return Tally(clean.total + (0.5 * epsilon * squares / counts).sum(), clean.weight)

    return Remedy(f"penalize_gradient({epsilon:g})", run, by_embedding=True)


class _Watch:
    """Keeps the embeddings' outputs, by place; ``detach``: as leaves, so that nothing before them is differentiated."""

    def __init__(self, num_rows: int, detach: bool) -> None:
        self.num_rows, self.detach = num_rows, detach
        self.found: list[tuple[int, Tensor]] = []

    def __call__(self, out: Tensor, place: int, module: nn.Module) -> Tensor:
        if out.shape[0] != self.num_rows:
            raise InputError(
                "the embedding's output", f"shape {[*out.shape]}", f"{self.num_rows} rows, one for each example"
            )
        if not torch.is_grad_enabled():
            return out
        if self.detach or not out.requires_grad:
            leaf = probe(out)
            out = leaf.view_as(leaf)  # no leaf: hooks of memory trackers cannot tell whether a leaf will be reached
        self.found.append((place, out))
        return out

    def gradients(
        self, tally: Tally, retain_graph: bool | None = None, create_graph: bool = False
    ) -> dict[int, Tensor]:
        """∂total/∂e at each place, summed over the passes."""
        assert isinstance(tally.total, Tensor)
        found = torch.autograd.grad(
            tally.total,
            [out for _, out in self.found],
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
        grads: dict[int, Tensor] = {}
        for (place, _), grad in zip(self.found, found, strict=True):
            if grad is not None:
                grads[place] = grads[place] + grad if place in grads else grad
        return grads


def _squares(grads: dict[int, Tensor], like: Tensor) -> Tensor:
    """‖g_b‖² [B], over all places; at least in float32."""
    total = torch.zeros(len(like), device=like.device)
    for grad in grads.values():
        total = total + grad.to(torch.promote_types(grad.dtype, torch.float32)).square().flatten(1).sum(1)
    return total


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


@contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Attention with a second derivative inside the ``with``, or a refusal."""
    attentions = _attentions(model)
    once = sorted(one for one in attentions if any(name in one for name in _ONCE_ONLY))
    if once:
        raise InputError("penalize_gradient", f"the attention {once[0]!r}, which has no second derivative",
                "jieyue's, 'eager' or 'sdpa'", "model.set_attn_implementation('eager'), or jieyue.use(...)")  # fmt: skip
    if "sdpa" not in attentions:
        yield
        return
    if _is_checkpointed(model):
        raise InputError("penalize_gradient", "the attention 'sdpa' under activation checkpointing", "jieyue's or 'eager'",
                "model.set_attn_implementation('eager'), or jieyue.use(...)")  # fmt: skip
    warnings.warn(
        "penalize_gradient: 'sdpa' runs on its mathematical form, of N·N memory: its fused kernels have no second derivative",
        stacklevel=4,
    )
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _attentions(model: nn.Module) -> set[str]:
    """What the model and its parts say they use: an encoder or decoder can have a configuration, and an attention, of its own."""
    configs = (getattr(module, "config", None) for module in bare(model).modules())
    return {str(getattr(config, "_attn_implementation", None)) for config in configs if config is not None}


def _is_checkpointed(model: nn.Module) -> bool:
    """By transformers' own switch or by ``training.checkpointing``."""
    return any(
        getattr(module, "gradient_checkpointing", False) or "forward" in module.__dict__
        for module in bare(model).modules()
    )
