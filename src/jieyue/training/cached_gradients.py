"""Losses that compare all rows of a batch with one another (in-batch negatives), exact in pieces: cached gradients.

    pass 1   e_i = embed(piece_i), no graph            all embeddings of the effective batch, a few numbers a row
    loss     g = ∂ loss(e) / ∂e                        over the whole batch, on the embeddings alone
    pass 2   embed(piece_i) again, backward of Σ e_i·g_i      the chain rule, piece by piece

Exact: pass 2 replays the random state of pass 1, so dropout draws the same. Cost: one more forward pass; memory: one piece's
activations, the embeddings and their gradients. Plain accumulation is not exact here: a piece sees its own rows as
negatives and no others. Source: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.tally import Tally

from .microbatch import RandomState, device_of, is_out_of_memory, to_device
from .objective import Batch
from .ranks import Ranks
from .trained import check_leaves

__all__ = ["CachedGradients"]


class CachedGradients:
    """An objective whose loss sees the embeddings of the whole effective batch, though only pieces go through the model.

    ``embed(model, piece)``: a tensor, or a tuple of them, each with one entry per row of the piece; what else the loss needs
    (labels, say) is returned too. ``loss(model, *parts) -> Tally``: the sum over rows, given the parts of all rows.

        def embed(model, piece):
            return model(piece["question"]), model(piece["passage"])

        def loss(model, questions, passages):
            scores = questions @ passages.T / 0.05
            return token_loss(scores, torch.arange(len(scores), device=scores.device))

        accumulate(CachedGradients(embed, loss), model, batch, micro_batch=8)

    Called as an objective it runs undivided, ``loss(model, *embed(model, batch))``; ``accumulate`` and the Trainer run it in
    pieces with the same gradient. Weights that ``loss`` uses directly (a temperature) get theirs too. Under DDP the parts of
    all processes are gathered, one process after another: negatives come from every rank. Rows may arrive in another order
    (token budgets sort them), all parts alike, so the loss must not depend on it. Refused: FSDP.
    """

    def __init__(
        self,
        embed: Callable[[nn.Module, Batch], Tensor | tuple[Tensor, ...]],
        loss: Callable[..., Tally],
    ) -> None:
        self.embed, self.loss = embed, loss

    def within(self, surroundings: Callable[[], AbstractContextManager[None]]) -> CachedGradients:
        """The same, each of its passes inside a context (autocast)."""

        def embed(model: nn.Module, piece: Batch) -> Tensor | tuple[Tensor, ...]:
            with surroundings():
                return self.embed(model, piece)

        def loss(model: nn.Module, *parts: Tensor) -> Tally:
            with surroundings():
                return self.loss(model, *parts)

        return CachedGradients(embed, loss)

    def __call__(self, model: nn.Module, batch: Batch) -> Tally:
        return self.loss(model, *_parts(self.embed(model, batch)))

    def backward_pieces(
        self,
        model: nn.Module,
        pieces: Iterable[Batch],
        backward: Callable[[Tensor], object],
        ranks: Ranks,
    ) -> Tally:
        """Adds the gradient of the total to ``.grad``, like ``accumulation.backward_pieces``; this rank's share of the Tally."""
        if ranks.sharded:
            raise InputError("CachedGradients", "a model under FSDP", "one process, or DDP")
        kept = list(pieces)
        states, found = self._first_pass(model, kept, ranks)
        tally, gradients, direct = self._loss(model, [torch.cat(part) for part in zip(*found, strict=True)], ranks)
        after = RandomState(device_of(model))
        if direct:
            backward(_dot(direct))
        start, own = 0, {id(p) for p in model.parameters()}
        for piece, state in zip(kept, states, strict=True):
            state.restore()
            parts = _parts(self.embed(model, to_device(piece, device_of(model))))
            stop = start + len(parts[0])
            pairs = [(p, g[start:stop]) for p, g in zip(parts, gradients, strict=True) if g is not None]
            summed = _dot(pairs)
            check_leaves(summed, own)
            backward(summed)
            start = stop
        after.restore()
        return tally

    def measure_pieces(self, model: nn.Module, pieces: Iterable[Batch], ranks: Ranks) -> Tally:
        """The Tally of all pieces and ranks, without gradients; it counts on the first rank alone."""
        if ranks.sharded:
            raise InputError("CachedGradients", "a model under FSDP", "one process, or DDP")
        _, found = self._first_pass(model, list(pieces), ranks)
        parts, _ = ranks.gather([torch.cat(part) for part in zip(*found, strict=True)], device_of(model))
        with torch.no_grad():
            tally = self.loss(model, *parts)
        return tally if ranks.is_first else Tally(0.0, 0)

    def _first_pass(
        self, model: nn.Module, pieces: list[Batch], ranks: Ranks
    ) -> tuple[list[RandomState], list[tuple[Tensor, ...]]]:
        """Random state before each piece and its embeddings. Out of memory on one rank is raised on all, before they gather."""
        states, found = [], []
        failure: BaseException | None = None
        device = device_of(model)
        try:
            with torch.no_grad():
                for piece in pieces:
                    states.append(RandomState(device))
                    found.append(_parts(self.embed(model, to_device(piece, device))))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = error
        if ranks.highest([float(failure is not None)], device)[0]:
            raise failure or torch.OutOfMemoryError("out of memory on another rank")
        return states, found

    def _loss(
        self, model: nn.Module, own: list[Tensor], ranks: Ranks
    ) -> tuple[Tally, list[Tensor | None], list[tuple[Tensor, Tensor]]]:
        """(this rank's share of the tally, gradients of its own embeddings, (weight, gradient) where the loss uses one)."""
        parts, leaves = ranks.gather(own, device_of(model))
        tally = self.loss(model, *parts)
        if not isinstance(tally, Tally):
            raise InputError("loss", type(tally).__name__, "a Tally(total, weight)")
        total = tally.total
        if not (isinstance(total, Tensor) and total.requires_grad):
            raise InputError("loss", "a total without a graph", "one that depends on the embeddings")
        weights = [p for p in model.parameters() if p.requires_grad]
        check_leaves(total, {id(one) for one in (*leaves, *model.parameters())})
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = torch.autograd.grad(total, [*wanted, *weights], allow_unused=True)
        of_leaf = iter(found[: len(wanted)])
        gradients = [next(of_leaf) if leaf.requires_grad else None for leaf in leaves]
        if not ranks.is_first:  # every rank computed the same total; it counts once
            return Tally(0.0, 0), gradients, []
        direct: list[tuple[Tensor, Tensor]] = [
            (w, g) for w, g in zip(weights, found[len(wanted) :], strict=True) if g is not None
        ]
        return Tally(total.detach(), tally.weight), gradients, direct


def _parts(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    parts = found if isinstance(found, tuple) else (found,)
    if not all(isinstance(part, Tensor) and part.ndim and len(part) == len(parts[0]) for part in parts):
        shapes = [[*part.shape] if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        raise InputError("embed", str(shapes), "tensors with one entry per row of the piece")
    return parts


def _dot(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ value·gradient: its gradient with respect to each value is that gradient."""
    return torch.stack([(value * gradient).sum() for value, gradient in pairs]).sum()
