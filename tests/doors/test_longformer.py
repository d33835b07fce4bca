"""The Longformer that the benchmark times computes what ours computes."""

import pytest
import torch

from jieyue.attention import attend, local
from jieyue.hf.longformer import longformer_attention


def test_longformer_equals_local_attention():
    tensors = [torch.randn(1, 3, 48, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    theirs, ours = longformer_attention(4)(*tensors), attend(*tensors, local(4))
    assert torch.allclose(theirs, ours, atol=1e-12)
    weights = torch.randn_like(ours)
    for one, two in zip(
        torch.autograd.grad(theirs, tensors, weights), torch.autograd.grad(ours, tensors, weights), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-12)
    assert not torch.allclose(theirs, attend(*tensors, local(5)))


def test_longformer_refuses_ragged_lengths():
    with pytest.raises(ValueError, match="found 20 positions, expected a multiple of 8"):
        longformer_attention(4)(*[torch.randn(1, 1, 20, 4)] * 3)
    with pytest.raises(ValueError, match="at least 1"):
        longformer_attention(0)
