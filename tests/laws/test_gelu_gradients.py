"""GELU and its derivatives: of the definition, of the second order, without overflow, and keeping the input alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from jieyue.activations import FORMS, NAMED, Activation, Approximation, Gelu, apply, fit, gelu, given
from jieyue.activations import operator as operator_module
from jieyue.bench.activation import saved_bytes

VARIANTS = [
    "none",
    *NAMED,
    "tanh(a=0.8,b=-0.01)",
    "tanh5(a=0.7,b=0.05,c=0.001)",
    "tanh-powers(a=0.77,b=0.23)",
    "tanh-sum(a=1.36,b=1.0)",
]

SHUT = ["none", *NAMED]  # gates that are 0 far left; the others end near it, or turn back


def definition(x, name):
    """The slow obvious formula, straight from the form."""
    if name == "none":
        return x * torch.special.ndtr(x)
    approximation = Approximation.parse(name)
    return x * (1 + approximation.form.function(x, *approximation.constants)) / 2


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(operator_module, "PIECE", 7)  # so that small tensors are cut too


@pytest.mark.parametrize("name", VARIANTS)
def test_derivatives_of_every_order(name):
    x = torch.cat(
        [3 * torch.randn(17, dtype=torch.float64), torch.tensor([0.0, -30.0, 70.0], dtype=torch.float64)]
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: gelu(t, name), x)
    assert torch.autograd.gradgradcheck(lambda t: gelu(t, name), x)
    ours, plain = gelu(x, name), definition(x, name)
    assert torch.allclose(ours, plain, rtol=1e-13, atol=1e-14)
    for order in range(3):
        (ours,) = torch.autograd.grad(ours.sum(), x, create_graph=True)
        (plain,) = torch.autograd.grad(plain.sum(), x, create_graph=True)
        assert torch.allclose(ours, plain, rtol=1e-9, atol=1e-11), order


def test_a_wrong_derivative_is_noticed(monkeypatch):
    """Broken twin: the slope without its factor three."""

    def wrong(x, c):
        y, square = operator_module._held(x, c)
        p = torch.sigmoid(y * (c[0] + square * c[1]))
        return p + y * p * (1 - p) * (c[0] + c[1] * square)

    monkeypatch.setattr(operator_module, "_slope_in_place", wrong)
    x = torch.randn(9, dtype=torch.float64, requires_grad=True)
    assert not torch.autograd.gradcheck(lambda t: gelu(t, "tanh-minimax"), x, raise_exception=False)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_finite_argument_overflows(name, dtype):
    top = torch.finfo(dtype).max / (2 if name == "none" else 1)
    values = [-top, -top / 3, -3e4, -300.0, -41.0, 0.0, 41.0, 300.0, 3e4, top / 3, top]
    x = torch.tensor(values, dtype=torch.float64).to(dtype).requires_grad_()
    y = gelu(x, name)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(y).all() and torch.isfinite(slope).all()
    if name in SHUT:
        assert torch.equal(y[6:], x[6:]) and (slope[6:] == 1).all()
        assert (slope[:5].double().abs() < 1e-11).all()


def test_torchs_own_tanh_derivative_does_overflow():
    """Broken twin of the above: why the tanh form has a backward pass of ours."""
    x = torch.tensor([1e20], requires_grad=True)
    assert torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x)[0].isnan()


@pytest.mark.parametrize("name", VARIANTS)
def test_only_the_input_is_kept(name):
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda t: gelu(t, name), x) == 4000


def test_the_formula_written_out_keeps_more():
    """Broken twin of the above."""
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda t: 0.5 * t * (1 + torch.tanh(t + 0.04 * t**3)), x) >= 4 * 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", VARIANTS)
def test_rounding_is_that_of_the_dtype(name, dtype):
    """At most twice (derivative: three times) the error of the plain formula in the same dtype, and 8·eps·R."""
    x = (3 * torch.randn(4001)).to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    upstream = torch.randn(4001).to(dtype)

    def both(function, leaf):
        y = function(leaf, name)
        return y.detach().double(), torch.autograd.grad(y, leaf, upstream.to(y.dtype))[0].double()

    for ours, plain, exact, times in zip(
        both(gelu, x), both(definition, x), both(definition, wide), (2, 3), strict=True
    ):
        room = times * (plain - exact).abs().max() + 8 * torch.finfo(dtype).eps * exact.abs().max()
        assert (ours - exact).abs().max() <= room
        if dtype != torch.float32:  # rounded once, at the end
            assert (ours - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_layouts_shapes_and_devices():
    wide = torch.randn(6, 5, 4, dtype=torch.float64)
    for x in (wide.transpose(0, 2), wide[:, ::2], wide[0, 0, 0], wide[:0], wide.expand(2, 6, 5, 4)):
        for name in ("tanh", "tanh-minimax", "tanh-sum(a=1.36,b=1.0)"):
            leaf = x.detach().requires_grad_()
            y = gelu(leaf, name)
            assert y.shape == x.shape and y.dtype == x.dtype
            (slope,) = torch.autograd.grad(y.sum(), leaf)
            assert torch.allclose(y, definition(x, name)) and slope.shape == x.shape


def test_under_vmap_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.randn(3, 5, dtype=torch.float64)
    for name in ("tanh", "sigmoid", "tanh5-minimax"):
        assert torch.allclose(torch.vmap(lambda row, name=name: gelu(row, name))(x), definition(x, name))
        with FakeTensorMode():
            fake = torch.empty(4, 6, requires_grad=True)
            assert torch.autograd.grad(gelu(fake, name).sum(), fake)[0].shape == (4, 6)


@pytest.mark.parametrize("target", ["silu", "mish", "softplus"])
def test_fits_of_other_activations_are_activations(target):
    if target == "softplus":
        found = fit(lambda x, a, b=0.5: torch.relu(x) + torch.exp(-a * x.abs()) * b, "softplus", domain=(-6, 6))
    else:
        found = fit("tanh", target)
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).requires_grad_()
    module = Activation(found)
    assert torch.allclose(module(x), getattr(F, target)(x), atol=found.bound + 1e-8, rtol=0)
    assert torch.autograd.gradcheck(lambda t: apply(t, found), x)
    assert saved_bytes(module, x) == 50 * 8


def test_fits_to_each_view_of_gelu_give_gelu():
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)
    exact = F.gelu(x)
    for target in ("erf", "phi", "gelu", "gelu'"):
        assert (gelu(x, fit("tanh", target)) - exact).abs().max() < 8e-4
    direct = fit(lambda x, a: torch.sigmoid(a * x), "phi")
    assert torch.allclose(gelu(x, direct), x * torch.sigmoid(direct.constants["a"] * x))
    odd = given(lambda x, a: torch.tanh(a * x), {"a": 0.85}, "erf")
    assert torch.allclose(gelu(x, odd), x * torch.sigmoid(1.7 * x))


def test_modules_are_plain_and_copyable():
    import copy
    import pickle

    for module in (Gelu("tanh5-minimax"), Gelu(), Activation(fit("sigmoid", "mish"))):
        assert not module.state_dict()
        x = torch.randn(5)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(x), module(x))
    assert "tanh5" in repr(Gelu("tanh5-minimax"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(name, dtype):
    x = (3 * torch.randn(5000)).to(dtype)
    there = x.cuda().requires_grad_()
    y = gelu(there, name)
    (slope,) = torch.autograd.grad(y.sum(), there)
    wide = x.double().requires_grad_()
    (exact,) = torch.autograd.grad(definition(wide, name).sum(), wide)
    room = 8 * torch.finfo(dtype).eps
    assert (slope.cpu().double() - exact).abs().max() <= room * math.e
    assert torch.allclose(y.cpu().double(), definition(wide, name), atol=room, rtol=room)
    assert all(form in FORMS for form in ("tanh", "sigmoid"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMED)
def test_far_left_is_nothing(name, dtype):
    """A gate that is held is pushed on until it is empty: a number that is nearly 0 times −10³⁰ is none."""
    far = torch.tensor(
        [-torch.finfo(dtype).max, -(torch.finfo(dtype).max ** 0.75), -50.0], dtype=dtype, requires_grad=True
    )
    out = gelu(far, name)
    (slope,) = torch.autograd.grad(out.sum(), far)
    assert out.double().abs().max() < 1e-20 and slope.double().abs().max() < 1e-20
    assert Approximation.parse(name)(far.detach().double()).abs().max() < 1e-20
    near = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    assert (gelu(near, name) - definition(near, name)).abs().max() < 1e-14
