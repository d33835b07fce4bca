"""T5's position biases without their matrix: a bias for each offset between query and key, [H, N + M - 1] in place of [1, H, N, M].

T5, mT5, UMT5 and their kin look their biases up by ``compute_bias(N, M)``. While such a module has an attention of ours, that
method asks itself for one row that has every offset, and hands its biases on in ``jieyue.attend``'s order; the lookup, and so
the gradient of its table, stay the model's own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["biases_by_offset", "by_offset", "drop_biases", "give_biases"]

_NAME = "compute_bias"


def give_biases(modules: Iterable[nn.Module]) -> None:
    """Puts ``by_offset`` in the place of ``compute_bias`` where a module has one."""
    for module in modules:
        if _NAME in dir(type(module)):
            vars(module)[_NAME] = functools.partial(by_offset, module)


def drop_biases(modules: Iterable[nn.Module]) -> None:
    """Takes it off again."""
    for module in modules:
        vars(module).pop(_NAME, None)


@contextlib.contextmanager
def biases_by_offset(modules: Iterable[nn.Module]) -> Iterator[None]:
    """For a while."""
    chosen = list(modules)
    give_biases(chosen)
    try:
        yield
    finally:
        drop_biases(chosen)


def by_offset(
    module: nn.Module,
    query_length: int,
    key_length: int,
    device: torch.device | None = None,
    past_seen_tokens: int = 0,
) -> Tensor:
    """The biases [H, N + M - 1] of N queries behind ``past_seen_tokens`` over M keys: entry i - j + M - 1 for row i, column j.

    A cache of ours hands out the newest keys only, so M is at least the tokens seen.
    """
    own: Callable[..., Tensor] = functools.partial(getattr(type(module), _NAME), module)
    num_keys = max(key_length, past_seen_tokens + query_length)
    every = query_length + num_keys - 1
    # one query at the last position sees key j at offset j - (N - 1 + past): every offset that the whole has
    row = own(1, every, device=device, past_seen_tokens=query_length - 1 + past_seen_tokens)
    return row[0, :, 0, :].flip(-1)
