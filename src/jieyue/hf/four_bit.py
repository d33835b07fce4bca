"""A frozen base in four bits: bitsandbytes' NF4, its layers as they are, on the CPU and on GPUs.

    w ≈ c_k · s,   c_k one of 16 fixed values in [-1, 1] (quantiles of a normal distribution), s the largest |w| of a block

half a byte a weight, and 4 bytes for a block of 64 of them. A product first makes the matrix in float32 again, for the time of the
product, so the update of what stands on top is exact for the rounded base.

Two faults of bitsandbytes 0.50 on processors with AVX512 are kept out. Matrices whose rows are multiples of 16 weights but not of a
block come back wrong: each width is tried against the definition, with blocks of 64, then 32, and a layer for which neither is
right stays whole. And a layer that is run without gradients is turned into another layout, whose products are made in bfloat16 and
which later trainings would go through without a gradient: that path is switched off, layer by layer.
Source: Dettmers et al. 2023, "QLoRA" (arXiv 2305.14314).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from jieyue.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

__all__ = [
    "BLOCKS",
    "Rounding",
    "block_of",
    "check_rounding",
    "dequantised",
    "four_bit",
    "is_four_bit",
    "loading_in_four_bit",
    "settled",
]

BLOCKS = (64, 32)  # weights that share a scale: what bitsandbytes takes by itself, and what it can be told
EXACT = 1e-6  # of weights of about 1, in float32
SCALES = "absmax"  # the scales as a buffer of the layer, so that they are counted, moved and traced with it


def _package() -> ModuleType:
    """bitsandbytes; ``MissingExtra`` where it is not installed."""
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "four-bit")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # an unused path's missing package
    import bitsandbytes

    return bitsandbytes


def is_four_bit(module: nn.Module) -> bool:
    """Whether it is a layer of bitsandbytes with four-bit weights."""
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")


@cache
def block_of(width: int) -> int | None:
    """Weights a block with which rows of ``width`` come back right on this processor, of ``BLOCKS``; None: with none of them."""
    functional = _package().functional
    code = functional.get_4bit_type("nf4", device="cpu").double()
    rows = torch.randn(5, width, generator=torch.Generator().manual_seed(0), device="cpu")
    for block in BLOCKS:
        packed, state = functional.quantize_4bit(rows, blocksize=block, quant_type="nf4", compress_statistics=False)
        found = functional.dequantize_4bit(packed, state).double()
        if float((found - _by_definition(rows, code, block)).abs().max()) <= EXACT:
            return block
    return None


def _by_definition(rows: Tensor, code: Tensor, block: int) -> Tensor:
    """Every weight as the nearest of the 16 values times the largest weight of its block, in float64."""
    flat = rows.double().flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % block)]).view(-1, block)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scales).unsqueeze(-1).sub(code).abs().argmin(-1)
    return (code[nearest] * scales).flatten()[: len(flat)].view(rows.shape)


def loading_in_four_bit(skip: Collection[str]) -> BitsAndBytesConfig:
    """What transformers is to be told when it reads a checkpoint, a tensor at a time; ``skip``: layers that stay as they are."""
    _package()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=sorted(skip) or ["-"],
    )


def four_bit(model: nn.Module, names: Collection[str]) -> nn.Module:
    """The linear layers ``names`` in four bits, in place; on the meta device their shapes alone, for a trace.

    ``InputError`` for a layer of a width that does not come back right (``block_of``).
    """
    layers = _package().nn
    for name in names:
        source = model.get_submodule(name)
        weight, bias = source.weight, source.bias
        assert isinstance(weight, Tensor)
        rows = weight.T if isinstance(source, Conv1D) else weight  # [out, in]
        block = block_of(rows.shape[1])
        if block is None:
            found = f"rows of {rows.shape[1]} weights, which bitsandbytes gives back wrong on this processor"
            raise InputError(f"four bits for {name}", found, "another width")
        with torch.device("meta"):
            layer = layers.Linear4bit(rows.shape[1], rows.shape[0], bias is not None, torch.float32, False, "nf4")
        layer.source_cls = type(source)
        layer.bias = bias
        layer.weight = _rounded(rows.detach().contiguous(), layer, block)
        model.set_submodule(name, layer)
    return settled(model)


def settled(model: nn.Module) -> nn.Module:
    """Four-bit layers as training needs them, in place: exact with and without gradients, their scales counted, frozen."""
    for layer in filter(is_four_bit, list(model.modules())):
        layer.requires_grad_(False)
        vars(layer)["support_avx512bf16_for_cpu"] = False  # its layout has no gradient
        state = vars(layer.weight)["quant_state"]
        vars(layer)["quant_state"] = state
        if SCALES not in layer._buffers:
            layer.register_buffer(SCALES, state.absmax, persistent=False)
            if state.absmax.is_meta:  # a trace gives the layer other tensors, which its state must hold
                layer.register_forward_pre_hook(_refresh)
    vars(model)["is_loaded_in_4bit"] = True  # what peft asks
    return model


def _refresh(layer: nn.Module, _: tuple[Tensor, ...]) -> None:
    state = copy.copy(vars(layer)["quant_state"])
    state.absmax = layer._buffers[SCALES]
    vars(layer.weight)["quant_state"] = state


def _rounded(rows: Tensor, layer: nn.Module, block: int) -> nn.Parameter:
    package = _package()
    options = {
        "requires_grad": False,
        "compress_statistics": False,
        "quant_type": "nf4",
        "blocksize": block,
        "module": layer,
    }
    if not rows.is_meta:
        weight: nn.Parameter = package.nn.Params4bit(rows, **options).to(rows.device)
        return weight
    state = package.functional.QuantState(
        absmax=torch.empty(-(-rows.numel() // block), device="meta"),
        shape=rows.shape,
        code=package.functional.get_4bit_type("nf4", device="cpu"),
        blocksize=block,
        quant_type="nf4",
        dtype=rows.dtype,
    )
    packed = torch.empty((rows.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
    known: nn.Parameter = package.nn.Params4bit(packed, quant_state=state, bnb_quantized=True, **options)
    return known


def dequantised(layer: nn.Module) -> Tensor:
    """The weights that its products are made with, as the layer it came from keeps them: [out, in], a Conv1D's [in, out]."""
    state = vars(layer.weight)["quant_state"]
    rows: Tensor = _package().functional.dequantize_4bit(layer.weight.data, state)
    return rows.T.contiguous() if vars(layer)["source_cls"] is Conv1D else rows


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What four bits do on this processor. ``weights``: of normally distributed ones, the share of their norm that is lost;
    ``product``: error, relative to the largest entry, against float64 with the very weights that it was rounded to;
    ``fast_path``: the same of bitsandbytes' own path without gradients, which is not taken here; None where it has none.
    """

    weights: float
    product: float
    fast_path: float | None

    @property
    def text(self) -> str:
        fast = "no other path without gradients on this processor"
        if self.fast_path is not None:
            fast = f"bitsandbytes' path without gradients, which is not taken, is off by {self.fast_path:.1e}"
        return (
            f"weights rounded by {self.weights:.1%} of their norm; products with them off by {self.product:.1e}; {fast}"
        )


@cache
def check_rounding() -> Rounding:
    """Rounds weights, and holds products with and without gradients against float64; ``InputError`` where they differ.

    Cost: some milliseconds, once a process.
    """
    package, width = _package(), 256
    if block_of(width) is None:
        do = "install another version of bitsandbytes, or train without --base"
        raise InputError("base='nf4'", "a bitsandbytes that gives weights back wrong", "NF4's own values", do)
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(width, 64, bias=False))
    rows, values = torch.randn(64, width, generator=generator), torch.randn(16, width, generator=generator)
    model[0].weight.data = rows.clone()
    layer = four_bit(model, ["0"]).get_submodule("0").eval()
    found = dequantised(layer).double()
    exact = values.double() @ found.T
    with torch.no_grad():
        product = _off(layer(values), exact)
    trained = values.clone().requires_grad_()
    layer(trained).sum().backward()
    assert trained.grad is not None
    gradient = _off(trained.grad, found.sum(0).expand_as(values))
    if max(product, gradient) > 1e-5:
        off = f"products off by {product:.1e} and their gradients by {gradient:.1e}"
        raise InputError("base='nf4'", off, "both within 1e-5", "install another version of bitsandbytes")
    fast = None
    if package.nn.Linear4bit(2, 2).support_avx512bf16_for_cpu:
        vars(layer)["support_avx512bf16_for_cpu"] = True
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fast = _off(layer(values), exact)
    return Rounding(weights=float((found - rows).norm() / rows.norm()), product=max(product, gradient), fast_path=fast)


def _off(product: Tensor, exact: Tensor) -> float:
    return float((product.detach().double() - exact).abs().max() / exact.abs().max())
