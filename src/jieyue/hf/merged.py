"""A model with adapters as a plain transformers folder: each matrix plus its correction, written one at a time.

    W' = W + (α/r)·B A,   W made whole again where it is in four bits

What was trained and what the folder holds compute the same, up to rounding; nothing of peft or bitsandbytes is needed to open it. Two
matrices at most exist at a time, so a model that was trained in a small budget is saved in it too. The adapters alone, as peft
keeps them, stand in ``adapter`` beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .four_bit import dequantised, is_four_bit
from .low_rank import NAME, adapted_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ADAPTER", "merged_weights", "save_merged"]

ADAPTER = "adapter"
_WEIGHTS = "model.safetensors"
_DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Made = Callable[[], Tensor]


def save_merged(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes what ``save_pretrained`` writes of a model without adapters, and ``adapter`` in peft's format."""
    folder = Path(folder)
    model.save_pretrained(folder, state_dict={})  # configurations; its weights, none, are written over
    _write(dict(merged_weights(model)), folder / _WEIGHTS)
    _write_adapter(model, folder / ADAPTER)


def merged_weights(model: nn.Module) -> Iterator[tuple[str, tuple[Tensor, Made]]]:
    """Name -> (a tensor on the meta device of its shape and dtype, what makes it); ties once, under the name they are loaded by."""
    layers = adapted_layers(model)
    tied: set[str] = set(getattr(model, "all_tied_weights_keys", {}))
    for key, value in model.state_dict().items():
        owner = next((name for name in _parents(key) if name in layers), None)
        if owner is None and key not in tied:
            yield key, (value.to("meta"), partial(_as_it_is, value))
    for name, layer in layers.items():
        base = layer.get_submodule("base_layer")
        yield f"{name}.weight", (_shape(base), partial(_merged, layer, base))
        if isinstance(base.bias, Tensor):
            bias = base.bias.detach()
            yield f"{name}.bias", (bias.to("meta"), partial(_as_it_is, bias))


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _parents(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _shape(base: nn.Module) -> Tensor:
    if not is_four_bit(base):
        assert isinstance(base.weight, Tensor)
        return base.weight.detach().to("meta")
    state = vars(base.weight)["quant_state"]
    rows = torch.empty(tuple(state.shape), dtype=state.dtype, device="meta")
    return rows.T.contiguous() if vars(base)["source_cls"] is Conv1D else rows


@torch.no_grad()
def _merged(layer: nn.Module, base: nn.Module) -> Tensor:
    delta: Tensor = layer.get_delta_weight(NAME)  # type: ignore[operator]  # peft's
    if is_four_bit(base):
        whole = dequantised(base)
        delta = delta.T if vars(base)["source_cls"] is Conv1D else delta
    else:
        assert isinstance(base.weight, Tensor)
        whole = base.weight.detach()
    return (whole.to(delta.dtype) + delta).to(whole.dtype)


def _write(weights: dict[str, tuple[Tensor, Made]], path: Path) -> None:
    """A file of safetensors, whose header comes first: sizes are known before the tensors are made."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (shape, _) in weights.items():
        end = start + shape.numel() * shape.element_size()
        header[name] = {"dtype": _DTYPES[shape.dtype], "shape": list(shape.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape, make in weights.values():
            tensor = make().detach().cpu().contiguous()
            assert (tensor.shape, tensor.dtype) == (shape.shape, shape.dtype)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _write_adapter(model: PreTrainedModel, folder: Path) -> None:
    """The adapters, and what was trained whole, so that peft puts them on the checkpoint again."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = vars(model)["peft_config"][NAME]
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    found = get_peft_model_state_dict(model, adapter_name=NAME)
    state = {f"base_model.model.{name}": value.contiguous() for name, value in found.items() if "lora_" in name}
    own = dict(model.named_parameters())
    state |= {f"base_model.model.{name}": own[name].detach().contiguous() for name in sorted(trained)}
    save_file(state, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    before, config.modules_to_save = (
        config.modules_to_save,
        sorted({name.rpartition(".")[0] for name in trained}) or None,
    )
    inference, config.inference_mode = config.inference_mode, True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.modules_to_save, config.inference_mode = before, inference
