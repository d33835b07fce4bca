"""What a loss would rise by if one layer, or one key-value head, read by its pattern: to first order, for all of them in one pass.

Between the output under all keys and the one under the pattern stands a gate, out = full + g·(sparse − full), with g = 0. The loss's
derivative to g is what making that head sparse costs to first order. It orders heads before any is tried; what is kept is decided by
prices that are measured. Source: Michel et al. 2019 (arXiv 1905.10650) for the importance of heads by gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jieyue.attention import full
from jieyue.tally import Tally

from .entries import Entry, PatternEntry
from .layers import LayerAttention
from .masks import Ask
from .switched_layers import SwitchedLayers

__all__ = ["gate_derivatives"]


def gate_derivatives(
    model: nn.Module,
    switched: SwitchedLayers,
    batches: Sequence[Mapping[str, Tensor]],
    objective: Callable[[nn.Module, Mapping[str, Tensor]], Tally],
) -> dict[int, float]:
    """Number of a layer or head (of ``switched.free``) -> the derivative of the mean loss to its gate, all of them full.

    ``objective``: (model, batch) -> summed loss and weight, without a cache, since layers are computed twice. The model and its
    gradients are left as they were. Cost: a forward and backward pass over each row with both attentions, and another forward one;
    memory: what one row leaves of one layer, and each layer's output.
    """
    device = next(model.parameters()).device
    per, weight = switched.heads, 0.0
    gates = {
        number: torch.zeros(per, requires_grad=True, device=device)
        for number in sorted({one // per for one in switched.free})
    }
    switched.keep_full(switched.free)
    around = [] if switched.memory is None else switched.memory.layers
    with _frozen(model), torch.enable_grad(), _recomputed(around):
        try:
            for number, gate in gates.items():
                layer = switched.layers[number]
                layer.watch = _Gated(layer, switched.sparse[number], gate)
            for batch in batches:
                for row in range(len(batch["input_ids"])):
                    tally = objective(model, {name: one[row : row + 1].to(device) for name, one in batch.items()})
                    torch.as_tensor(tally.total).backward()
                    weight += float(tally.weight)
        finally:
            for number in gates:
                switched.layers[number].watch = None
    rises = {number: ([0.0] * per if gate.grad is None else gate.grad.tolist()) for number, gate in gates.items()}
    return {one: rises[one // per][one % per] / weight for one in switched.free}


class _Gated:
    """In an entry's place: attention over all keys, and the gates of a layer's heads towards the sparse one."""

    def __init__(self, layer: LayerAttention, sparse: Entry, gates: Tensor) -> None:
        self.layer, self.sparse, self.gates = layer, sparse, gates

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, ask: Ask, scale: float | None) -> Tensor:
        self.layer.called = True
        whole, near = PatternEntry(full()), self.sparse
        out, sparse = (
            (entry.causal() if ask.causal else entry).attend(q, k, v, ask, scale=scale) for entry in (whole, near)
        )
        gates = self.gates.to(out.dtype).repeat_interleave(q.shape[1] // len(self.gates))
        return out + gates[:, None, None] * (sparse - out)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """In evaluation, without gradients of weights."""
    training, trained = model.training, [own for own in model.parameters() if own.requires_grad]
    model.eval()
    for own in trained:
        own.requires_grad_(False)
    try:
        yield
    finally:
        for own in trained:
            own.requires_grad_(True)
        model.train(training)


@contextmanager
def _recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, each layer is computed anew in the backward pass, from what it was given. transformers' own checkpointing does so in
    training alone, and there is dropout."""
    for layer in layers:
        vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward")
