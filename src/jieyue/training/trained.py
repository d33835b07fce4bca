"""What a divided batch may train: weights of the model, in layers that treat each row alone and stay as they are meanwhile.

A weight that is used but is not the model's would get the *sum* over the batch in its ``.grad``: it is never divided by N, nor
cleared before a retry. So the graph of every piece is walked (about a microsecond a node) and such a leaf is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from jieyue.errors import InputError

__all__ = ["check_leaves", "check_whole_batch_layers", "probe"]

_PROBES = "jieyue_probe"


def probe(value: Tensor) -> Tensor:
    """``value`` as a leaf that collects a gradient to look at, which nobody trains; ``check_leaves`` lets it pass."""
    leaf = value.detach().requires_grad_()
    setattr(leaf, _PROBES, True)
    return leaf


def check_leaves(total: Tensor, own: Collection[int]) -> None:
    """``InputError`` where ``total`` depends on a trained tensor whose id is not in ``own``."""
    todo = [total.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node is None:
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in own and not hasattr(leaf, _PROBES):
            raise InputError(
                "objective",
                f"a trained {type(leaf).__name__} of shape {[*leaf.shape]} that is not the model's",
                "trained weights inside the model, whose gradients are divided by the labels of the whole batch",
                "make it part of the model (model.register_parameter), or detach it",
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)


def check_whole_batch_layers(
    model: nn.Module, divided: bool, allow: Collection[str], checkpointing: bool = False
) -> None:
    """Refuses layers whose output for one row depends on the others, or on how many passes there were, when it matters.

    BatchNorm in training takes its statistics from the rows it sees at once: refused where the batch is ``divided``.
    ``spectral_norm`` in training moves its vectors at every pass: refused there and under ``checkpointing``, which passes twice.
    """
    for name, module in model.named_modules():
        for kind, why, twice in _moving(module):
            if (divided or (twice and checkpointing)) and not {name, kind} & set(allow):
                raise InputError(
                    f"accumulate of {name or 'the model'}",
                    f"{kind} in training, {why}",
                    "layers that treat each row alone and stay as they are during an update",
                    f"put it in eval mode, or allow=({kind!r},) for an approximate update",
                )


def _moving(module: nn.Module) -> Iterator[tuple[str, str, bool]]:
    """(kind, why it is no sum over rows, whether running a piece twice matters too) of a module in training."""
    if not module.training:
        return
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        yield type(module).__name__, "which takes its statistics from the rows it sees at once", False
    hooks = module._forward_pre_hooks.values()
    if (isinstance(module, _SpectralNorm) and hasattr(module, "_u")) or any(
        isinstance(hook, SpectralNorm) for hook in hooks
    ):
        yield "spectral_norm", "whose vectors move at every pass", True
