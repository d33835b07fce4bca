"""Low-rank adapters on a frozen model: peft's LoRA as it is, put into the linear layers of any encoder or decoder.

    y = W x + (α/r)·B A x,   W frozen (perhaps in four bits), A [r, in] drawn, B [out, r] zero at the start, α = 2r

so the outputs are the checkpoint's at the start, and r·(in + out) weights a matrix are trained in place of in·out: no gradient and
no moments of the rest. A new head, and the small heads of classifiers, taggers and span readers, are trained whole.
Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from jieyue.errors import InputError, MissingExtra

from .four_bit import block_of, check_rounding, four_bit, is_four_bit, loading_in_four_bit, settled

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

__all__ = ["BASES", "NAME", "Adapter", "adapted_layers", "check_names", "is_adapted", "targets", "trained_share"]

BASES = ("nf4",)
NAME = "default"  # peft's own
_SMALL_HEADS = ("classification", "token-classification", "image-classification", "span")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """``rank``: r; ``base``: "nf4" for frozen layers in four bits, None as they are; ``whole``: the head is new, so trained whole.

    ``MissingExtra`` without peft, or without bitsandbytes where ``base`` asks for it.
    """

    rank: int
    base: str | None = None

    def __post_init__(self) -> None:
        if find_spec("peft") is None:
            raise MissingExtra("peft", "adapters")
        if self.base is not None:
            check_rounding()

    @classmethod
    def parse(cls, text: str | None, base: str | None = None) -> Adapter | None:
        """Of "lora:16" and "nf4"; None for neither. ``InputError`` for anything else, and for a base without adapter."""
        check_names(text, base)
        return None if text is None else cls(rank=int(text.partition(":")[2]), base=base)

    def skipped(self, model: nn.Module) -> list[str]:
        """The linear layers of the model (of any weights) that transformers is not to put in four bits as it reads them."""
        chosen = {name for name in targets(model) if block_of(_width(model.get_submodule(name))) == 64}
        return [name for name in _linear(model) if name not in chosen]

    def loading(self, model: nn.Module) -> BitsAndBytesConfig | None:
        """What transformers needs to read such a model in four bits, a tensor at a time; None for a base as it is."""
        return None if self.base is None else loading_in_four_bit(self.skipped(model))

    def put_into(self, model: nn.Module, *, head: str, new_head: bool = False, seed: int = 0) -> nn.Module:
        """The model with its adapters, in place: all else frozen, but for a head that is small or new.

        ``head``: of ``hf.loading.HEADS``. A base that is not in four bits yet is put so (on the meta device its shapes alone).
        """
        from peft import LoraConfig, inject_adapter_in_model

        names = targets(model)
        if not names:
            raise InputError("adapter", f"a {type(model).__name__} without linear layers", "some to stand beside")
        if self.base is not None:
            open_layers = [name for name in names if not is_four_bit(model.get_submodule(name))]
            four_bit(model, [name for name in open_layers if block_of(_width(model.get_submodule(name))) is not None])
            if not any(map(is_four_bit, model.modules())):
                found = "layers of widths that bitsandbytes gives back wrong on this processor"
                raise InputError(f"base={self.base!r}", found, "multiples of 32", "train without --base")
            settled(_in_own_memory(_no_longer_quantised(model)))
        is_conv = any(isinstance(model.get_submodule(name), Conv1D) for name in names)
        config = LoraConfig(
            r=self.rank, lora_alpha=2 * self.rank, lora_dropout=0.0, target_modules=names, fan_in_fan_out=is_conv
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that fan_in_fan_out is of no use for layers that are no Conv1D
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, NAME)
        if new_head or head in _SMALL_HEADS:
            _train_head(model)
        return model


def check_names(text: str | None, base: str | None) -> None:
    """What can be said of "lora:16" and "nf4" without asking what is installed."""
    kind, _, rank = (text or "lora:1").partition(":")
    if kind != "lora" or not rank.isdecimal() or int(rank) < 1:
        raise InputError("adapter", repr(text), "lora:RANK with a rank of 1 or more, such as lora:16")
    if base is not None and base not in BASES:
        raise InputError("base", repr(base), f"one of {', '.join(BASES)}")
    if base is not None and text is None:
        do = "--adapter lora:16 beside it"
        raise InputError(f"base={base!r}", "no adapter", "one: weights in four bits cannot be trained", do)


def _linear(model: nn.Module) -> list[str]:
    return [
        name for name, module in model.named_modules() if type(module) in (nn.Linear, Conv1D) or is_four_bit(module)
    ]


def targets(model: nn.Module) -> list[str]:
    """The linear layers of the encoder or decoder itself: no pooler, no head, nothing whose weight is an embedding too."""
    body = _body(model)
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    inside = {id(module) for name, module in body.named_modules() if "pooler" not in name.split(".")}
    return [
        name
        for name in _linear(model)
        if (layer := model.get_submodule(name)) is not outputs and id(layer) in inside and id(layer.weight) not in tied
    ]


def _body(model: nn.Module) -> nn.Module:
    found = getattr(model, "base_model", model)
    return found if isinstance(found, nn.Module) else model


def _width(layer: nn.Module) -> int:
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[0])
    return int(layer.in_features)  # type: ignore[arg-type]


def _train_head(model: nn.Module) -> None:
    """Everything outside of the encoder or decoder, and its pooler, but for what is an embedding too."""
    body = _body(model)
    inside = {id(p) for name, p in body.named_parameters() if "pooler" not in name.split(".")}
    for parameter in model.parameters():
        if id(parameter) not in inside and parameter.is_floating_point():
            parameter.requires_grad_(True)


def _no_longer_quantised(model: nn.Module) -> nn.Module:
    """Takes back what transformers notes of a quantised model: the Trainer refuses such a one, not knowing of its adapters."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
    vars(vars(model)["config"]).pop("quantization_config", None)
    return model


def _in_own_memory(model: nn.Module) -> nn.Module:
    """Copies what is still a view of the checkpoint's file, whose pages would all stay with the process for it."""
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point() and not value.is_meta:
            value.data = value.data.clone()
    return model


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> layer with an adapter."""
    return {name: module for name, module in model.named_modules() if "lora_A" in module._modules}


def is_adapted(model: nn.Module) -> bool:
    return bool(adapted_layers(model))


def trained_share(model: nn.Module) -> str:
    """How many of the model's weights are trained, in words; how many of its layers are in four bits."""
    layers = adapted_layers(model)
    narrow = [layer for layer in layers.values() if is_four_bit(layer.get_submodule("base_layer"))]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(2 * p.numel() if p.dtype == torch.uint8 else p.numel() for p in model.parameters())  # two in a byte
    text = f"{trained:,} of {whole:,} weights trained ({trained / whole:.2%}), beside {len(layers)} layers"
    if narrow:
        widths = sorted(
            {_width(one) for layer in layers.values() if not is_four_bit(one := layer.get_submodule("base_layer"))}
        )
        text += f", {len(narrow)} of them in four bits"
        if widths:
            text += f" (those of width {', '.join(map(str, widths))} come back wrong from bitsandbytes here, so they stay whole)"
    return text
