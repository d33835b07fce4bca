"""A number for each difference of row and column, as a matrix, and back: offset biases without a tensor of all pairs.

Entry c of N + M − 1 stands at every row a and column b with a − b + M − 1 = c.

Letters: N rows, M columns.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

__all__ = ["along_diagonals", "sums_along_diagonals"]


def along_diagonals(x: Tensor, n: int, m: int) -> Tensor:
    """x [..., N + M − 1] as [..., N, M]: each row is a window of x, one further than the row above, read backwards.

    >>> import torch
    >>> along_diagonals(torch.arange(4), 2, 3).tolist()
    [[2, 1, 0], [3, 2, 1]]
    """
    return x.unfold(-1, m, 1)[..., :n, :].flip(-1)


def sums_along_diagonals(x: Tensor) -> Tensor:
    """[..., N + M − 1], the sum of x [..., N, M] along each diagonal: the adjoint of ``along_diagonals``."""
    n, m = x.shape[-2:]
    skewed = pad(x.flip(-1), (0, n)).flatten(-2)[..., : n * (n + m - 1)]
    return skewed.unflatten(-1, (n, n + m - 1)).sum(-2)
