"""Mixtures and averages of keys: equal to their formulas, exact under padding, and never causal, because they leak."""

import pytest
import torch

from jieyue.errors import InputError
from jieyue.linear import Linformer, PooledKeys
from linear_definition import assert_equal, draw

MODULES = {"linformer": lambda: Linformer(24, 6).double(), "pooled": lambda: PooledKeys(4)}


def softmax_over(q, k, v):
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def test_linformer_equals_its_formula_and_trains_its_projections():
    module = MODULES["linformer"]()
    q, k, v = draw(24)
    expected = softmax_over(q, module.key_mixtures @ k, module.value_mixtures @ v)
    assert_equal(module(q, k, v), expected, (q, k, v, *module.parameters()))


def test_pooling_equals_its_formula():
    q, k, v = draw(24)
    few = [x.unflatten(2, (6, 4)).mean(3) for x in (k, v)]
    assert_equal(PooledKeys(4)(q, k, v), softmax_over(q, *few), (q, k, v))
    assert_equal(PooledKeys(1)(q, k, v), softmax_over(q, k, v), (q, k, v))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("real", [1, 5, 22])
def test_padding_is_the_shorter_sequence(kind, real):
    """Masked keys and values may hold anything, also where the average's window is cut."""
    module = MODULES[kind]()
    q, k, v = (x.detach() for x in draw(24))
    mask = torch.arange(24).expand(2, -1) < real
    short = module(q, k[:, :, :real], v[:, :, :real])
    k[:, :, real:], v[:, :, real:] = torch.nan, torch.inf
    assert torch.allclose(module(q, k, v, mask), short, atol=1e-12)
    mask = mask.clone()
    mask[1] = False
    out = module(q, k, v, mask)
    assert not out[1].any() and torch.isfinite(out).all()


@pytest.mark.parametrize("kind", MODULES)
def test_causal_is_refused_because_it_would_leak(kind):
    """The leak: a later key moves what an earlier query sees, even through the mixtures that hold the query's own key."""
    with pytest.raises(InputError, match="earlier queries would see later keys"):
        Linformer(24, 6, causal=True) if kind == "linformer" else PooledKeys(4, causal=True)
    module = MODULES[kind]()
    q, k, v = draw(24)
    early = module(q, k, v)[:, :, 8]  # query 8 and keys 8 … 11 share a window
    (moved,) = torch.autograd.grad(early.sum(), v)
    assert moved[:, :, 9:12].abs().min() > 1e-6


def test_what_they_refuse():
    q, k, v = (x.detach() for x in draw(24))
    with pytest.raises(InputError, match="24 keys, expected at most the 8"):
        Linformer(8, 4).double()(q, k, v)
    for wrong in (lambda: Linformer(0, 4), lambda: Linformer(8, -1), lambda: PooledKeys(0), lambda: PooledKeys(2.0)):
        with pytest.raises(InputError, match="expected a whole number, at least 1"):
            wrong()
    with pytest.raises(InputError, match=r"PooledKeys: key_mask is torch\.int64"):
        PooledKeys(2)(q, k, v, torch.ones(2, 24, dtype=torch.int64))
